//! Shared objects, from one process and from many.

#![cfg(all(target_os = "linux", feature = "sync"))]

#[path = "../support/mod.rs"]
mod support;

mod channel;
mod collections;
mod hostile;
mod manager;
mod pool;
mod primitives;
mod queue;
mod torture;
