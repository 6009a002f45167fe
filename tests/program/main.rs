//! Other programs: those built from `tests/fixtures/`, the examples, and workers that are not Rust.

#![cfg(target_os = "linux")]

#[path = "../support/mod.rs"]
mod support;

mod compile_fail;
mod constructors;
mod example_checksums;
mod example_web_service;
mod examples;
mod marked;
mod objects;
mod other_languages;
mod privileges;
mod profiles;
mod surroundings;
mod tasks;
mod versions;
