//! The whole under faults: tables of faults and endings, soak and stress.

#![cfg(target_os = "linux")]

#[path = "../support/mod.rs"]
mod support;

mod endings;
mod soak;
mod stress;
mod table;
