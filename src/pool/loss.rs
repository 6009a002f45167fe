//! The death of one worker, as every task that it cost is told.

use crate::error::{TaskError, What};
use crate::process::DeathNote;
use std::process::ExitStatus;

/// What is known of a worker's end.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) pid: u32,
    /// `None`: somebody else reaped it, and the kernel could not tell.
    pub(crate) status: Option<ExitStatus>,
    /// What the dying worker wrote down.
    pub(crate) note: Option<DeathNote>,
    /// We killed it because it broke the protocol.
    pub(crate) bad_frame: Option<String>,
}

impl Loss {
    /// The error of a task that ran in it.
    pub(crate) fn error(&self, function: &'static str) -> TaskError {
        let Loss { pid, status, .. } = *self;
        let what = match (&self.bad_frame, &self.note) {
            (Some(reason), _) => What::BadFrame { pid, reason: reason.clone() },
            (None, Some(DeathNote::Panic { message, place })) => {
                What::Panicked { message: message.clone(), location: Some(place.clone()), backtrace: None, pid, status }
            }
            (None, note) => What::WorkerDied { pid, status, stack_overflow: matches!(note, Some(DeathNote::StackOverflow)) },
        };
        TaskError::new(what, function)
    }
}
