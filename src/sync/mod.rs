//! The handles of shared objects, and how they reach their manager.
//!
//! * `handle.rs`: what all handles have in common; its documentation shows how a new kind is added;
//! * `connection.rs`: the manager as one process sees it; `remote.rs`: one in another process;
//! * `manager.rs`: the public owner of them all;
//! * `wait.rs`: waiting by blocking the thread.

mod barrier;
pub(crate) mod connection;
mod delivery;
mod event;
pub(crate) mod handle;
mod manager;
mod queue;
mod queue_flow;
mod remote;
mod semaphore;
#[cfg(test)]
mod tests;
pub(crate) mod wait;

pub use barrier::{Barrier, BarrierWaitResult};
pub use delivery::Delivery;
pub use event::Event;
pub use manager::Manager;
pub use queue::{Queue, QueueReceiver, QueueSender};
pub use queue_flow::{QueueSink, QueueStream};
pub use semaphore::{Semaphore, SemaphorePermit};
