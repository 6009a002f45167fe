//! What runs in a worker process.
//!
//! * `start.rs`: the constructor that makes a fresh start of the program a worker, before `main`;
//! * `lifeline.rs`: how it dies with the application;
//! * `serve.rs`: handshake, `init`, and the loop that runs tasks;
//! * `inbox.rs`: its end of the socket;
//! * `panics.rs`: what is told of a panic;
//! * `readiness.rs`: a descriptor that a runtime watches;
//! * `raw.rs`: system calls, and the handler that notes a stack overflow.
//!
//! Talks to the pool over its socket only, and knows nothing of `pool/`.

mod inbox;
mod lifeline;
mod panics;
mod raw;
mod readiness;
mod serve;
mod start;

pub(crate) use readiness::watch_readable;
pub(crate) use start::{MARKER, depth, linked};
