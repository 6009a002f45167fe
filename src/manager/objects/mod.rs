//! The rules of the shared objects, one kind in each file: requests in, answers out (see
//! [`object`](super::object)).

pub(crate) mod barrier;
pub(crate) mod channel;
pub(crate) mod code;
pub(crate) mod condvar;
pub(crate) mod event;
pub(crate) mod line;
pub(crate) mod list;
pub(crate) mod map;
pub(crate) mod queue;
pub(crate) mod registered;
pub(crate) mod rwlock;
pub(crate) mod semaphore;
mod snapshot;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod when;
