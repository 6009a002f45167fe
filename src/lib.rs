//! A process pool for tokio: hand a plain function and its arguments to a child process, await the result.

#[cfg_attr(
    not(test),
    expect(dead_code, unused_imports, reason = "the pool that uses it comes next")
)]
mod task;
mod wire;

pub use task::{ArgsFor, Init, Task};
