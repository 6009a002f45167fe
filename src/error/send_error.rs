//! A value that could not be sent.

use super::sync::Error;
use std::fmt;

/// Why something was not sent, and the thing itself.
///
/// What is sent is given away only when it has arrived: a queue that is full, closed or gone gives
/// it back.
#[derive(Clone)]
pub struct SendError<T> {
    item: T,
    error: Error,
}

impl<T> SendError<T> {
    pub(crate) fn new(item: T, error: Error) -> Self {
        Self { item, error }
    }

    /// What was to be sent.
    pub fn into_inner(self) -> T {
        self.item
    }

    /// Why it was not sent.
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// Both.
    pub fn into_parts(self) -> (T, Error) {
        (self.item, self.error)
    }
}

impl<T> From<SendError<T>> for Error {
    fn from(error: SendError<T>) -> Self {
        error.error
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not sent: {}", self.error)
    }
}

/// Without the item, which need not be `Debug`.
impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<T> std::error::Error for SendError<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}
