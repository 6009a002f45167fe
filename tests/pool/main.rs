//! Pools: tasks, their outcomes and limits, streams, runtimes, shutdown.

#![cfg(target_os = "linux")]

#[path = "../support/mod.rs"]
mod support;

mod abort;
mod auto_traits;
mod endings;
mod environment;
mod handle;
mod limits;
mod map;
mod nested;
mod outcomes;
mod output;
mod runs;
mod runtimes;
mod staff;
mod started;
mod stream;
mod submit;
mod supervise;
mod user_code;
