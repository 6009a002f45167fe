//! What integration tests share.

#![allow(dead_code, unused_imports, reason = "each program of tests uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub(crate) mod examples;
pub(crate) mod fixtures;
mod own_process;
mod processes;
mod random;
mod scene;
mod wait;

pub(crate) use own_process::*;
pub(crate) use processes::*;
pub(crate) use random::*;
pub(crate) use scene::*;
pub(crate) use wait::*;
