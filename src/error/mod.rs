//! What can go wrong: with a task ([`TaskError`]), with everything else ([`Error`]), and inside a
//! task whose own error cannot travel ([`Failure`]).
//!
//! Knows nothing of processes, sockets or pools: the layers above put in what happened.

mod failure;
mod pool_error;
#[cfg(feature = "sync")]
mod send_error;
#[cfg(feature = "sync")]
pub(crate) mod sync;
mod task_error;
pub(crate) mod text;

pub use failure::Failure;
pub use pool_error::{Error, ErrorKind};
#[cfg(feature = "sync")]
#[allow(unreachable_pub, reason = "exported where there are queues")]
pub use send_error::SendError;
pub use task_error::{TaskError, TaskErrorKind};

pub(crate) use pool_error::Why;
pub(crate) use task_error::What;

use std::fmt;
use std::process::ExitStatus;

/// How a process ended, in words: `exit status: 3`, `signal: 9 (SIGKILL)`, `status unknown`.
pub(crate) struct Ending(pub(crate) Option<ExitStatus>);

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => write!(f, "{status}"),
            None => f.write_str("status unknown"),
        }
    }
}
