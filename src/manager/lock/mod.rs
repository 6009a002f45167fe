//! A lock over processes, with a value in shared memory: one word says everything, and changes by
//! one atomic operation.
//!
//! * `word.rs`: the word and its value, and what a client does with them;
//! * `waiters.rs`: what the manager does: who waits, and who is next;
//! * `kept.rs`: the values that have no room in their place;
//! * `served.rs`: that, with limits and late grants;
//! * `search.rs`: every interleaving of a few processes that do this, die, give up and are late,
//!   over these very functions.
//!
//! `docs/architecture.md` has the states and the races.

mod kept;
#[cfg(test)]
mod search;
pub(crate) mod served;
pub(crate) mod waiters;
pub(crate) mod word;
