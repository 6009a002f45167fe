//! Processes of their own: `Process`, its options, daemons.

#![cfg(target_os = "linux")]

#[path = "../support/mod.rs"]
mod support;

mod daemon;
mod life;
mod options;
