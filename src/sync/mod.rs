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
mod list;
mod manager;
mod map;
mod map_watch;
#[cfg(test)]
mod object_tests;
mod queue;
mod queue_flow;
mod remote;
mod rwlock;
mod semaphore;
#[cfg(test)]
mod tests;
pub(crate) mod wait;

pub use barrier::{Barrier, BarrierWaitResult};
pub use delivery::Delivery;
pub use event::Event;
pub use list::List;
pub use manager::Manager;
pub use map::{Exchanged, Map};
pub use map_watch::{MapChange, MapWatch};
pub use queue::{Queue, QueueReceiver, QueueSender};
pub use queue_flow::{QueueSink, QueueStream};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{Semaphore, SemaphorePermit};
