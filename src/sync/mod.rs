//! Objects that processes share: locks, queues, maps, channels.
//!
//! They belong to a [`Manager`], and their handles are arguments, results and values in other shared
//! objects. What a process holds when it dies is given back. The guide's chapter
//! [shared objects](crate::guide::shared) tells which is for what.

// The files:
//
// * `handle.rs`: what all handles have in common; its documentation shows how a new kind is added;
// * `connection.rs`: the manager as one process sees it; `remote.rs`: one in another process;
// * `named.rs`: references that travel beside calls and results;
// * `manager.rs`: the public owner of them all;
// * `cell.rs`: an object's part of the manager's memory;
// * `mutex.rs`: the lock; `value.rs`: atomics;
// * `queue_lanes.rs`: how items go into a queue and out of it without messages; `receiving.rs`:
//   how one waits for an item;
// * `map_lane.rs`: the same for a map;
// * `channel_pipe.rs`: what goes through a channel; `channel_waits.rs`: how its users wait;
// * `attendant.rs`: who turns the application's own manager while it is waited for;
// * `wait.rs`: waiting by blocking the thread; `stopping.rs`: whether a task is being aborted;
// * `holding.rs`: which locks each thread holds.

mod attendant;
#[cfg(test)]
mod attendant_tests;
mod barrier;
mod cell;
mod channel;
mod channel_pipe;
mod channel_waits;
mod condvar;
pub(crate) mod connection;
mod delivery;
mod event;
pub(crate) mod handle;
pub(crate) mod holding;
#[cfg(test)]
mod hostile_clients;
mod list;
mod manager;
mod map;
mod map_lane;
mod map_watch;
mod mutex;
#[cfg(test)]
mod mutex_tests;
pub(crate) mod named;
#[cfg(test)]
mod named_tests;
#[cfg(test)]
mod object_tests;
mod pieces;
mod queue;
mod queue_flow;
mod queue_lanes;
mod receiving;
mod registered;
pub(crate) mod remote;
mod rwlock;
mod semaphore;
pub(crate) mod stopping;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod value;
pub(crate) mod wait;

pub use barrier::{Barrier, BarrierWaitResult};
pub use channel::{Channel, channel, duplex};
pub use condvar::Condvar;
pub use delivery::Delivery;
pub use event::Event;
pub use list::List;
pub use manager::Manager;
pub use map::{CompareExchangeError, Map};
pub use map_watch::{MapChange, MapWatch};
pub use mutex::{Mutex, MutexGuard, OwnedMutexGuard};
pub use queue::{Queue, QueueReceiver, QueueSender};
pub use queue_flow::{QueueSink, QueueStream};
pub use registered::{Actor, ActorRef};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{Semaphore, SemaphorePermit};
pub use value::{Array, Atomic, Element, Value};

pub use crate::error::SendError;
pub use crate::error::sync::{Error, ErrorKind};
