//! What goes wrong with shared objects: [`Error`], as [`procpool::sync`](crate::sync) exports it.

use std::fmt;
use std::io;
use std::sync::Arc;

/// Why a shared object could not be made or used.
///
/// The kinds are told apart by [`kind`](Self::kind) or the predicates, never by the text. Cloning is
/// cheap. What goes wrong with pools and processes is a [`procpool::Error`](crate::Error).
#[derive(Clone)]
pub struct Error {
    why: Arc<Why>,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument makes no sense, such as a barrier of no parties.
    InvalidOption,
    /// There are no shared objects on this platform (x86-64 and aarch64 Linux only).
    Unsupported,
    /// The call was made in a forked copy of the application.
    Forked,
    /// The manager is closed, or its process has ended.
    ManagerClosed,
    /// The object was waited for, and the time was up.
    TimedOut,
    /// The memory of the object was corrupted, by a process that has access to it. Other objects are
    /// not affected.
    ObjectBroken,
    /// There is no such object (any more), or this process has no reference to it.
    NoSuchObject,
    /// The manager's objects hold as many bytes as they may.
    ManagerFull,
    /// This process has too many requests under way.
    TooManyRequests,
    /// The manager takes no further client from the worker that started this process: a worker may
    /// make at most 256 processes of its own clients of one manager, fewer when the application
    /// runs out of descriptors.
    TooManyClients,
    /// The locks that processes hold and wait for form a cycle.
    Deadlock,
    /// A value could not be encoded.
    Encode,
    /// The object's value could not be decoded: it is of another type.
    Decode,
    /// A value is larger than a shared object's may be. See [`Error::size_limit`].
    TooLarge,
    /// A handle was put into a shared object of another manager.
    ForeignHandle,
    /// The operating system gave no memory, no descriptor or no thread that is needed.
    Memory,
    /// The queue, the semaphore or the other end of the channel is closed.
    Closed,
    /// A queue had no room, for a call that does not wait.
    Full,
    /// A queue had nothing, for a call that does not wait.
    Empty,
    /// What was to be acknowledged, extended, given back or committed is not held (any more).
    NotHeld,
    /// A barrier is broken: a party has died or run out of time, or it was aborted.
    BrokenBarrier,
    /// A semaphore would have more permits than its limit, or never has as many as were asked for.
    AboveLimit,
    /// A list has no element at that place.
    OutOfRange,
    /// A call to a registered object panicked. See [`Error::panic_message`].
    Panicked,
}

/// The full space behind [`ErrorKind`].
pub(crate) enum Why {
    InvalidOption {
        option: &'static str,
        reason: String,
    },
    #[allow(dead_code, reason = "made where there are no workers")]
    Unsupported,
    Forked,
    ManagerClosed,
    TimedOut,
    ObjectBroken,
    NoSuchObject,
    ManagerFull,
    TooManyRequests,
    TooManyClients,
    Deadlock {
        ring: String,
    },
    Encode(String),
    Decode(String),
    TooLarge {
        limit: usize,
    },
    ForeignHandle,
    Memory {
        step: &'static str,
        source: io::Error,
    },
    Closed,
    Full,
    Empty,
    NotHeld,
    BrokenBarrier,
    AboveLimit {
        limit: u64,
    },
    OutOfRange {
        len: u64,
    },
    ObjectPanicked {
        message: String,
    },
}

impl From<Why> for Error {
    fn from(why: Why) -> Self {
        Self { why: Arc::new(why) }
    }
}

impl Error {
    /// The operating system refused something.
    pub(crate) fn system(step: &'static str, source: io::Error) -> Self {
        Why::Memory { step, source }.into()
    }

    /// What kind of thing went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &*self.why {
            Why::InvalidOption { .. } => ErrorKind::InvalidOption,
            Why::Unsupported => ErrorKind::Unsupported,
            Why::Forked => ErrorKind::Forked,
            Why::ManagerClosed => ErrorKind::ManagerClosed,
            Why::TimedOut => ErrorKind::TimedOut,
            Why::ObjectBroken => ErrorKind::ObjectBroken,
            Why::NoSuchObject => ErrorKind::NoSuchObject,
            Why::ManagerFull => ErrorKind::ManagerFull,
            Why::TooManyRequests => ErrorKind::TooManyRequests,
            Why::TooManyClients => ErrorKind::TooManyClients,
            Why::Deadlock { .. } => ErrorKind::Deadlock,
            Why::Encode(_) => ErrorKind::Encode,
            Why::Decode(_) => ErrorKind::Decode,
            Why::TooLarge { .. } => ErrorKind::TooLarge,
            Why::ForeignHandle => ErrorKind::ForeignHandle,
            Why::Memory { .. } => ErrorKind::Memory,
            Why::Closed => ErrorKind::Closed,
            Why::Full => ErrorKind::Full,
            Why::Empty => ErrorKind::Empty,
            Why::NotHeld => ErrorKind::NotHeld,
            Why::BrokenBarrier => ErrorKind::BrokenBarrier,
            Why::AboveLimit { .. } => ErrorKind::AboveLimit,
            Why::OutOfRange { .. } => ErrorKind::OutOfRange,
            Why::ObjectPanicked { .. } => ErrorKind::Panicked,
        }
    }

    /// The object was waited for, and the time was up.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::TimedOut
    }

    /// The manager of a shared object is closed, or its process has ended.
    #[must_use]
    pub fn is_manager_closed(&self) -> bool {
        self.kind() == ErrorKind::ManagerClosed
    }

    /// The queue, the semaphore or the other end of the channel is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.kind() == ErrorKind::Closed
    }

    /// A queue had no room, for a call that does not wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.kind() == ErrorKind::Full
    }

    /// A queue had nothing, for a call that does not wait.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kind() == ErrorKind::Empty
    }

    /// What was to be acknowledged, extended, given back or committed is not held (any more).
    #[must_use]
    pub fn is_not_held(&self) -> bool {
        self.kind() == ErrorKind::NotHeld
    }

    /// A call to a registered object panicked.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.kind() == ErrorKind::Panicked
    }

    /// The message of that panic. (Where it was, the application's panic hook has told.)
    #[must_use]
    pub fn panic_message(&self) -> Option<&str> {
        match &*self.why {
            Why::ObjectPanicked { message } => Some(message),
            _ => None,
        }
    }

    /// What is wrong, in words, with the argument that makes no sense, or with the value that could
    /// not be encoded or decoded.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match &*self.why {
            Why::Encode(reason) | Why::Decode(reason) | Why::InvalidOption { reason, .. } => {
                Some(reason)
            }
            _ => None,
        }
    }

    /// The argument that makes no sense, by its name.
    #[must_use]
    pub fn option(&self) -> Option<&'static str> {
        match &*self.why {
            Why::InvalidOption { option, .. } => Some(option),
            _ => None,
        }
    }

    /// A value could not be encoded or decoded.
    #[must_use]
    pub fn is_unserializable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Encode | ErrorKind::Decode)
    }

    /// A value was larger than it may be: see [`size_limit`](Self::size_limit).
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.kind() == ErrorKind::TooLarge
    }

    /// How many bytes a value may take, if it took more.
    #[must_use]
    pub fn size_limit(&self) -> Option<usize> {
        match *self.why {
            Why::TooLarge { limit } => Some(limit),
            _ => None,
        }
    }

    /// The call was made in a forked copy of the application.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.kind() == ErrorKind::Forked
    }

    /// There are no shared objects on this platform.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.kind() == ErrorKind::Unsupported
    }

    /// A barrier is broken.
    #[must_use]
    pub fn is_broken_barrier(&self) -> bool {
        self.kind() == ErrorKind::BrokenBarrier
    }

    /// The locks that processes hold and wait for form a cycle.
    #[must_use]
    pub fn is_deadlock(&self) -> bool {
        self.kind() == ErrorKind::Deadlock
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.why {
            Why::InvalidOption { option, reason } => write!(f, "invalid option {option}: {reason}"),
            Why::Unsupported => f.write_str(
                "shared objects are not supported on this platform (x86-64 and aarch64 Linux only)",
            ),
            Why::Forked => f.write_str("the call was made in a forked copy of the application"),
            Why::ManagerClosed => f.write_str("the manager of the shared object is closed"),
            Why::TimedOut => f.write_str("the time was up before the shared object was to be had"),
            Why::ObjectBroken => f.write_str("the memory of the shared object was corrupted"),
            Why::NoSuchObject => f.write_str(
                "there is no such shared object, or this process has no reference to it",
            ),
            Why::ManagerFull => f.write_str("the manager's objects hold as many bytes as they may"),
            Why::TooManyRequests => {
                f.write_str("this process has too many requests to shared objects under way")
            }
            Why::TooManyClients => f.write_str(
                "the manager takes no further process from the worker that this one descends from",
            ),
            Why::Deadlock { ring } => write!(f, "deadlock: {ring}"),
            Why::Encode(reason) => write!(f, "encode the value: {reason}"),
            Why::Decode(reason) => write!(f, "decode the value of a shared object: {reason}"),
            Why::TooLarge { limit } => {
                write!(f, "the value exceeds {limit} bytes, the most that it may take")
            }
            Why::ForeignHandle => {
                f.write_str("a handle cannot be put into a shared object of another manager")
            }
            Why::Memory { step, source } => write!(f, "{step}: {source}"),
            Why::Closed => f.write_str("it is closed"),
            Why::Full => f.write_str("the queue is full"),
            Why::Empty => f.write_str("the queue is empty"),
            Why::NotHeld => f.write_str("it is not held (any more)"),
            Why::BrokenBarrier => f.write_str("the barrier is broken"),
            Why::AboveLimit { limit } => {
                write!(f, "the semaphore never has more than {limit} permits")
            }
            Why::OutOfRange { len } => {
                write!(f, "the list has {len} elements, and none at that place")
            }
            Why::ObjectPanicked { message } => {
                write!(f, "the call to the registered object panicked: {message}")
            }
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind())
            .field("text", &self.to_string())
            .field("source", &std::error::Error::source(self).map(ToString::to_string))
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.why {
            Why::Memory { source, .. } => Some(source),
            _ => None,
        }
    }
}
