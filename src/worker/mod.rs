//! What runs in a worker process.
//!
//! * `start.rs`: the constructor that makes a fresh start of the program a worker, before `main`;
//! * `lifeline.rs`: how it dies with the application;
//! * `program.rs`: whether fresh starts of this program can be workers;
//! * `detach.rs`: how one becomes a daemon of the system; `parent.rs`: whose child it is;
//! * `serve.rs`: handshake, `init`, and the loop that runs tasks; `once.rs`: the one call of a
//!   process of its own;
//! * `template.rs`: a worker that forks workers instead of running tasks;
//! * `inbox.rs`: its end of the socket;
//! * `limits.rs`: what it limits itself to;
//! * `panics.rs`: what is told of a panic;
//! * `raw.rs`: system calls, and the handlers that note a stack overflow and a want of memory.
//!
//! Talks to the pool, or to whoever started a single process, over its socket only, and knows
//! nothing of `pool/`.

mod detach;
mod inbox;
mod lifeline;
mod limits;
mod once;
mod outlet;
mod panics;
mod parent;
mod program;
mod raw;
mod serve;
mod start;
mod template;

pub(crate) use parent::{parent_pid, parent_pidfd};
pub(crate) use program::{
    check_hello, check_host, check_lifeline, check_privileges, check_program, check_protocol,
    program_name,
};
pub(crate) use start::{DETACH, MARKER, depth};
