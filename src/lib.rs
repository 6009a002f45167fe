//! A process pool for tokio: hand a plain function and its arguments to a child process, await the result.

mod error;
mod pool;
mod process;
mod task;
mod wire;
mod worker;

pub use error::{Error, ErrorKind, Failure, TaskError, TaskErrorKind};
pub use pool::{AbortHandle, Builder, Call, JoinHandle, Pool, Results, TryResults};
pub use task::{ArgsFor, Init, Task};
pub use worker::state;
