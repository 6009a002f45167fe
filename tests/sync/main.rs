//! Shared objects, from one process and from many.

#![cfg(target_os = "linux")]

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
