//! The death of one worker, as every task that it cost is told.

use crate::error::{TaskError, What};
use std::process::ExitStatus;
use std::sync::Arc;

/// What a dying worker wrote down.
#[derive(Debug)]
pub(crate) enum Note {
    StackOverflow,
    OutOfMemory,
    Panic { message: String, place: String },
}

/// What is known of a worker's end.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) pid: u32,
    /// `None`: somebody else reaped it, and the kernel could not tell.
    pub(crate) status: Option<ExitStatus>,
    /// What the dying worker wrote down.
    pub(crate) note: Option<Note>,
    /// We killed it because it broke the protocol.
    pub(crate) bad_frame: Option<String>,
    /// The last of what it printed to its standard error, if that is captured.
    pub(crate) stderr: Option<Arc<str>>,
}

impl Loss {
    /// The error of a task that ran in it.
    pub(crate) fn error(&self, function: &'static str) -> TaskError {
        let Loss { pid, status, .. } = *self;
        let what = match (&self.bad_frame, &self.note) {
            (Some(reason), _) => What::ProtocolViolation { pid, reason: reason.clone() },
            (None, Some(Note::Panic { message, place })) => What::Panicked {
                message: message.clone(),
                location: Some(place.clone()),
                backtrace: None,
                pid,
                status,
            },
            (None, note) => What::WorkerDied {
                pid,
                status,
                stack_overflow: matches!(note, Some(Note::StackOverflow)),
            },
        };
        TaskError::new(what, function)
            .last_words(matches!(self.note, Some(Note::OutOfMemory)), self.stderr.clone())
    }
}
