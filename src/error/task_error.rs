//! What happened to one task instead of a value.

use super::{Ending, Error};
use std::fmt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

/// Why a task gave no value.
///
/// A task's own `Err` is not a `TaskError`: it is a value, and stays inside the `Ok` (as with
/// tokio's `JoinError`). What kind of thing happened is told by [`kind`](Self::kind) or by the
/// predicates, never by the text. Cloning is cheap.
#[derive(Clone)]
pub struct TaskError {
    inner: Arc<Inner>,
    /// The place of the item in the input of its `map`.
    item: Option<u64>,
}

struct Inner {
    what: What,
    function: &'static str,
    /// How its earlier tries failed.
    earlier: Vec<TaskError>,
}

/// The kinds of [`TaskError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaskErrorKind {
    /// The task panicked. See [`TaskError::panic_message`] and its neighbours.
    Panicked,
    /// The worker process ended while it ran the task: a signal, an abort, an exit, a stack
    /// overflow. See [`TaskError::exit_status`], [`TaskError::pid`].
    WorkerDied,
    /// The task was aborted, and does not run any more.
    Cancelled,
    /// A time limit was over, and the task does not run any more. See [`TaskError::time_limit`].
    TimedOut,
    /// An argument could not be encoded. No worker has seen the task.
    ArgumentEncode,
    /// The worker could not decode the arguments.
    ArgumentDecode,
    /// The task ran, and the worker could not encode its result.
    ResultEncode,
    /// The task ran, and its result could not be decoded here.
    ResultDecode,
    /// Arguments or result are larger than a frame may be. See [`TaskError::size_limit`].
    TooLarge,
    /// The pool's backlog was full (`queue_limit`). Nothing was encoded.
    QueueFull,
    /// The pool was shut down or dropped before the task could run to its end.
    PoolClosed,
    /// No worker could be started for the task. [`std::error::Error::source`] says why.
    StartFailed,
    /// The pool's `init` function failed in the workers. [`std::error::Error::source`] says why.
    InitFailed,
    /// The worker broke the protocol while it ran the task; it was killed.
    BadFrame,
    /// The call was made in a forked copy of the application, which has no pool.
    Forked,
}

/// The full space behind [`TaskErrorKind`].
pub(crate) enum What {
    Panicked { message: String, location: Option<String>, backtrace: Option<String>, pid: u32, status: Option<ExitStatus> },
    WorkerDied { pid: u32, status: Option<ExitStatus>, stack_overflow: bool },
    Cancelled,
    TimedOut { limit: Duration, whole: bool },
    ArgumentEncode(String),
    ArgumentDecode { pid: u32, reason: String },
    ResultEncode { pid: u32, reason: String },
    ResultDecode(String),
    ArgumentTooLarge { limit: usize },
    ResultTooLarge { pid: u32, limit: usize },
    QueueFull { limit: usize },
    PoolClosed,
    StartFailed(Error),
    BadFrame { pid: u32, reason: String },
    Forked,
}

impl TaskError {
    pub(crate) fn new(what: What, function: &'static str) -> Self {
        Self { inner: Arc::new(Inner { what, function, earlier: Vec::new() }), item: None }
    }

    /// What came before it, in order.
    pub(crate) fn after(mut self, earlier: Vec<Self>) -> Self {
        if !earlier.is_empty()
            && let Some(inner) = Arc::get_mut(&mut self.inner)
        {
            inner.earlier = earlier;
        }
        self
    }

    /// Of which item of a `map` it tells.
    pub(crate) fn of_item(mut self, place: u64) -> Self {
        self.item = Some(place);
        self
    }

    /// What kind of thing happened.
    pub fn kind(&self) -> TaskErrorKind {
        match &self.inner.what {
            What::Panicked { .. } => TaskErrorKind::Panicked,
            What::WorkerDied { .. } => TaskErrorKind::WorkerDied,
            What::Cancelled => TaskErrorKind::Cancelled,
            What::TimedOut { .. } => TaskErrorKind::TimedOut,
            What::ArgumentEncode(_) => TaskErrorKind::ArgumentEncode,
            What::ArgumentDecode { .. } => TaskErrorKind::ArgumentDecode,
            What::ResultEncode { .. } => TaskErrorKind::ResultEncode,
            What::ResultDecode(_) => TaskErrorKind::ResultDecode,
            What::ArgumentTooLarge { .. } | What::ResultTooLarge { .. } => TaskErrorKind::TooLarge,
            What::QueueFull { .. } => TaskErrorKind::QueueFull,
            What::PoolClosed => TaskErrorKind::PoolClosed,
            What::StartFailed(cause) if cause.is_init_failed() => TaskErrorKind::InitFailed,
            What::StartFailed(cause) if cause.is_pool_closed() => TaskErrorKind::PoolClosed,
            What::StartFailed(_) => TaskErrorKind::StartFailed,
            What::BadFrame { .. } => TaskErrorKind::BadFrame,
            What::Forked => TaskErrorKind::Forked,
        }
    }

    /// The task panicked.
    pub fn is_panic(&self) -> bool {
        self.kind() == TaskErrorKind::Panicked
    }

    /// The worker process ended while it ran the task.
    pub fn is_worker_died(&self) -> bool {
        self.kind() == TaskErrorKind::WorkerDied
    }

    /// The task was aborted.
    pub fn is_cancelled(&self) -> bool {
        self.kind() == TaskErrorKind::Cancelled
    }

    /// A time limit was over: that of one run ([`Call::timeout`](crate::Call::timeout)) or that of the whole
    /// ([`Call::deadline`](crate::Call::deadline)).
    pub fn is_timeout(&self) -> bool {
        self.kind() == TaskErrorKind::TimedOut
    }

    /// Arguments or result could not be encoded or decoded, on either side.
    pub fn is_unserializable(&self) -> bool {
        use TaskErrorKind::{ArgumentDecode, ArgumentEncode, ResultDecode, ResultEncode};
        matches!(self.kind(), ArgumentEncode | ArgumentDecode | ResultEncode | ResultDecode)
    }

    /// Arguments or result are larger than a frame may be.
    pub fn is_too_large(&self) -> bool {
        self.kind() == TaskErrorKind::TooLarge
    }

    /// The pool's backlog was full.
    pub fn is_queue_full(&self) -> bool {
        self.kind() == TaskErrorKind::QueueFull
    }

    /// The pool was shut down or dropped.
    pub fn is_pool_closed(&self) -> bool {
        self.kind() == TaskErrorKind::PoolClosed
    }

    /// The worker broke the protocol.
    pub fn is_bad_frame(&self) -> bool {
        self.kind() == TaskErrorKind::BadFrame
    }

    /// The task was handed in, or awaited, in a forked copy of the application.
    pub fn is_forked(&self) -> bool {
        self.kind() == TaskErrorKind::Forked
    }

    /// No worker could be started, `init` included.
    pub fn is_start_failed(&self) -> bool {
        matches!(self.kind(), TaskErrorKind::StartFailed | TaskErrorKind::InitFailed)
    }

    /// The worker's stack overflowed (a [`WorkerDied`](TaskErrorKind::WorkerDied) told apart from
    /// other segmentation faults). Seen for the worker's main thread, on which tasks run; on a
    /// thread that a task made, an overflow is a plain SIGSEGV.
    pub fn is_stack_overflow(&self) -> bool {
        matches!(self.inner.what, What::WorkerDied { stack_overflow: true, .. })
    }

    /// The message of the panic, if the task panicked. A payload that is no string gives the
    /// fixed text `Box<dyn Any>`, as in std.
    pub fn panic_message(&self) -> Option<&str> {
        match &self.inner.what {
            What::Panicked { message, .. } => Some(message),
            _ => None,
        }
    }

    /// Where the task panicked, as `file:line:column`.
    pub fn panic_location(&self) -> Option<&str> {
        match &self.inner.what {
            What::Panicked { location, .. } => location.as_deref(),
            _ => None,
        }
    }

    /// The backtrace of the panic, if one was asked for (`Call::backtrace`, or `RUST_BACKTRACE` in
    /// the worker's environment) and the worker lived to send it.
    pub fn panic_backtrace(&self) -> Option<&str> {
        match &self.inner.what {
            What::Panicked { backtrace, .. } => backtrace.as_deref(),
            _ => None,
        }
    }

    /// How the worker process ended, if it ended and the status is known. It is not known when
    /// something else in the application reaps every child and the kernel (before 6.15) cannot
    /// tell afterwards. Present on [`WorkerDied`](TaskErrorKind::WorkerDied), on a panic that ended
    /// the process (`panic = "abort"`), and on a failed start.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        match &self.inner.what {
            What::Panicked { status, .. } | What::WorkerDied { status, .. } => *status,
            What::StartFailed(cause) => cause.exit_status(),
            _ => None,
        }
    }

    /// The process that ran the task, where one did.
    pub fn pid(&self) -> Option<u32> {
        match self.inner.what {
            What::Panicked { pid, .. }
            | What::WorkerDied { pid, .. }
            | What::ArgumentDecode { pid, .. }
            | What::ResultEncode { pid, .. }
            | What::ResultTooLarge { pid, .. }
            | What::BadFrame { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// The limit that was passed, in bytes, if something was too large.
    pub fn size_limit(&self) -> Option<usize> {
        match self.inner.what {
            What::ArgumentTooLarge { limit } | What::ResultTooLarge { limit, .. } => Some(limit),
            _ => None,
        }
    }

    /// The time limit that was over, if one was.
    pub fn time_limit(&self) -> Option<Duration> {
        match self.inner.what {
            What::TimedOut { limit, .. } => Some(limit),
            _ => None,
        }
    }

    /// How the earlier tries of the task failed, in order, if it had any ([`Call::retries`](crate::Call::retries)). This error
    /// is how the last one did, or why there was no further one.
    pub fn earlier_attempts(&self) -> &[Self] {
        &self.inner.earlier
    }

    /// Which item of a [`map`](crate::Pool::map) failed: its place in the input, counted from 0. `None` for a
    /// task that was spawned by itself. It tells items apart whose results come as they finish.
    pub fn item(&self) -> Option<u64> {
        self.item
    }

    /// The name of the task's function, as [`std::any::type_name`] gives it.
    pub fn function(&self) -> &'static str {
        self.inner.function
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = self.inner.function;
        match &self.inner.what {
            What::Panicked { message, location: Some(location), .. } => write!(f, "task {function} panicked at {location}: {message}"),
            What::Panicked { message, .. } => write!(f, "task {function} panicked: {message}"),
            What::WorkerDied { pid, status, stack_overflow } => {
                let how = if *stack_overflow { "its stack overflowed, " } else { "" };
                write!(f, "worker process {pid} died while it ran task {function} ({how}{})", Ending(*status))
            }
            What::Cancelled => write!(f, "task {function} was cancelled"),
            What::TimedOut { limit, whole: false } => write!(f, "task {function} ran longer than its limit of {limit:?}"),
            What::TimedOut { limit, whole: true } => write!(f, "task {function} had not ended {limit:?} after it was handed in"),
            What::ArgumentEncode(reason) => write!(f, "an argument of task {function} cannot be encoded: {reason}"),
            What::ArgumentDecode { pid, reason } => {
                write!(f, "worker process {pid} cannot decode the arguments of task {function}: {reason}")
            }
            What::ResultEncode { pid, reason } => write!(f, "worker process {pid} cannot encode the result of task {function}: {reason}"),
            What::ResultDecode(reason) => write!(f, "the result of task {function} cannot be decoded: {reason}"),
            What::ArgumentTooLarge { limit } => write!(f, "the arguments of task {function} are larger than {limit} bytes"),
            What::ResultTooLarge { limit, .. } => write!(f, "the result of task {function} is larger than {limit} bytes"),
            What::QueueFull { limit } => write!(f, "the pool's queue of {limit} tasks is full, task {function} was not taken"),
            What::PoolClosed => write!(f, "the pool was closed before task {function} ended"),
            What::StartFailed(cause) if cause.is_init_failed() => write!(f, "no worker for task {function}: its init failed"),
            What::StartFailed(_) => write!(f, "no worker for task {function} could be started"),
            What::BadFrame { pid, reason } => write!(f, "worker process {pid} broke the protocol while it ran task {function}: {reason}"),
            What::Forked => write!(f, "task {function} can be neither handed in nor awaited in a forked copy of the application"),
        }
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskError")
            .field("kind", &self.kind())
            .field("function", &self.inner.function)
            .field("item", &self.item)
            .field("earlier_attempts", &self.inner.earlier.len())
            .field("text", &self.to_string())
            .field("source", &std::error::Error::source(self).map(ToString::to_string))
            .finish()
    }
}

impl std::error::Error for TaskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.inner.what {
            What::StartFailed(cause) => Some(cause),
            _ => None,
        }
    }
}
