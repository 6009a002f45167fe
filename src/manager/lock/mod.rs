//! A lock between processes, with a value in shared memory: one word holds its state, and changes
//! by one atomic operation.
//!
//! * `word.rs`: the word and the value, and what a client does with them;
//! * `waiters.rs`: the manager's side: the wait queue, and which waiter is next;
//! * `kept.rs`: the out-of-line values, which do not go into their buffer;
//! * `served.rs`: the manager's side with time limits and late grants;
//! * `search.rs`: an exhaustive search over the interleavings of a few processes that use these
//!   functions, die, cancel and are late.
//!
//! `docs/internals/lock.md` has the states and the races.

mod kept;
#[cfg(test)]
mod search;
pub(crate) mod served;
pub(crate) mod waiters;
pub(crate) mod word;
