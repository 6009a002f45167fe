//! The handles of shared objects, and how they reach their manager.
//!
//! * `handle.rs`: what all handles have in common; its documentation shows how a new kind is added;
//! * `connection.rs`: the manager as one process sees it; `remote.rs`: one in another process;
//! * `manager.rs`: the public owner of them all;
//! * `cell.rs`: an object's part of the manager's memory;
//! * `mutex.rs`: the lock; `value.rs`: atomics;
//! * `wait.rs`: waiting by blocking the thread; `stopping.rs`: whether a task is being aborted.

mod cell;
pub(crate) mod connection;
pub(crate) mod handle;
mod manager;
mod mutex;
#[cfg(test)]
mod mutex_tests;
mod remote;
pub(crate) mod stopping;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod value;
pub(crate) mod wait;

pub use manager::Manager;
pub use mutex::{Mutex, MutexGuard, OwnedMutexGuard};
pub use value::{Array, Atomic, Element, Value};
