//! Workers: start, death, limits, and what surrounds them.

#![cfg(target_os = "linux")]

#[path = "../support/mod.rs"]
mod support;

mod death;
mod limits;
mod start;
mod surroundings;
mod system;
mod template;
mod terminal;
