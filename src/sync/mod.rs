//! The handles of shared objects, and how they reach their manager.
//!
//! * `handle.rs`: what all handles have in common; its documentation shows how a new kind is added;
//! * `connection.rs`: the manager as one process sees it; `remote.rs`: one in another process;
//! * `manager.rs`: the public owner of them all;
//! * `wait.rs`: waiting by blocking the thread.

pub(crate) mod connection;
pub(crate) mod handle;
mod manager;
mod remote;
#[cfg(test)]
mod tests;
pub(crate) mod wait;

pub use manager::Manager;
