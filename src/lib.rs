#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere))),
    allow(dead_code, unused_imports, reason = "where there are no workers, nothing is sent to one")
)]

mod error;
mod pool;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere)))]
mod process;
mod single;
mod task;
mod wire;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere)))]
mod worker;

pub use error::{Error, ErrorKind, Failure, TaskError, TaskErrorKind};
pub use pool::{AbortHandle, Builder, Call, JoinHandle, Pool, Results, TryResults};
pub use single::{ChildStderr, ChildStdin, ChildStdout, Detached, Detaching, Parent, Process, ProcessBuilder, Stdio, parent};
pub use task::{ArgsFor, Init, Task, attempt, is_cancelled, state};

#[doc = include_str!("../docs/waiting.md")]
pub mod waiting {}
