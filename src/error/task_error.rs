//! What happened to one task instead of a value.

use super::text::{self, BACKTRACE_MAX, Escaped, TEXT_MAX};
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
    /// The process noted that it aborted for want of memory, or the kernel counted that it killed
    /// one.
    out_of_memory: bool,
    /// The last of what it printed to its standard error.
    stderr: Option<Arc<str>>,
    /// How its earlier tries failed.
    earlier: Vec<TaskError>,
}

/// `SIGABRT`, `SIGKILL` and `SIGXCPU` on Linux, on all processors that there are workers for
/// (signal(7)).
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
const SIGXCPU: i32 = 24;

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
    /// No worker could be started for the task. [`TaskError::start_error`] says why.
    StartFailed,
    /// The pool's `init` function failed in the workers. [`TaskError::start_error`] says why.
    InitFailed,
    /// The worker broke the protocol while it ran the task; it was killed.
    ProtocolViolation,
    /// The call was made in a forked copy of the application, which has no pool.
    Forked,
    /// The task was to be stopped, and the process that runs it has not ended 5 seconds after it
    /// was killed: it hangs in the kernel, in a system call that cannot be interrupted. None of
    /// the program's code runs in it any more, but what that call does may still happen. See
    /// [`TaskError::pid`].
    Unkillable,
    /// The pool's workers have no such task: they are another program that serves none of this
    /// name, or one that knows tasks by name only; or they are this program, whose tasks have
    /// no names.
    UnknownTask,
    /// The task is async, and its worker could not make the runtime that async tasks run in: a
    /// system call was refused (`init` may have installed a seccomp filter), or there were no
    /// descriptors left. The task did not begin. See [`TaskError::reason`].
    NoRuntime,
    /// The task returned an error that its [`retry_if`](crate::TaskBuilder::retry_if) held to be worth
    /// another try. This is only ever one of the
    /// [`earlier_attempts`](TaskError::earlier_attempts): the last one's is a value. See
    /// [`TaskError::task_returned_error`].
    TaskReturnedError,
}

/// The full space behind [`TaskErrorKind`].
pub(crate) enum What {
    Panicked {
        message: String,
        location: Option<String>,
        backtrace: Option<String>,
        pid: u32,
        status: Option<ExitStatus>,
    },
    WorkerDied {
        pid: u32,
        status: Option<ExitStatus>,
        stack_overflow: bool,
    },
    Cancelled,
    Unkillable {
        pid: Option<u32>,
    },
    TimedOut {
        limit: Duration,
        whole: bool,
    },
    ArgumentEncode(String),
    ArgumentDecode {
        pid: u32,
        reason: String,
    },
    ResultEncode {
        pid: u32,
        reason: String,
    },
    ResultDecode(String),
    ArgumentTooLarge {
        limit: usize,
    },
    ResultTooLarge {
        pid: u32,
        limit: usize,
    },
    QueueFull {
        limit: usize,
    },
    PoolClosed,
    StartFailed(Error),
    ProtocolViolation {
        pid: u32,
        reason: String,
    },
    Forked,
    /// Told by a worker, or known without asking one.
    UnknownTask {
        pid: Option<u32>,
    },
    NoRuntime {
        pid: u32,
        reason: String,
    },
    /// The encoded `Result`, unless it is long.
    TaskReturnedError {
        pid: u32,
        result: Option<Box<[u8]>>,
    },
}

/// An error of a task's own is kept among its earlier tries if it is no longer than this, in bytes,
/// encoded: there may be 254.
const OWN_ERROR_MAX: usize = 16 << 10;

impl What {
    pub(crate) fn task_returned_error(pid: u32, result: &[u8]) -> Self {
        Self::TaskReturnedError {
            pid,
            result: (result.len() <= OWN_ERROR_MAX).then(|| result.into()),
        }
    }

    /// Cuts what a worker may have written.
    fn cut(&mut self) {
        match self {
            Self::Panicked { message, location, backtrace, .. } => {
                text::cut(message, TEXT_MAX);
                if let Some(location) = location {
                    text::cut(location, TEXT_MAX);
                }
                if let Some(backtrace) = backtrace {
                    text::cut(backtrace, BACKTRACE_MAX);
                }
            }
            Self::ArgumentEncode(reason)
            | Self::ArgumentDecode { reason, .. }
            | Self::ResultEncode { reason, .. }
            | Self::ResultDecode(reason)
            | Self::NoRuntime { reason, .. }
            | Self::ProtocolViolation { reason, .. } => text::cut(reason, TEXT_MAX),
            _ => {}
        }
    }
}

impl TaskError {
    pub(crate) fn new(mut what: What, function: &'static str) -> Self {
        what.cut();
        Self {
            inner: Arc::new(Inner {
                what,
                function,
                out_of_memory: false,
                stderr: None,
                earlier: Vec::new(),
            }),
            item: None,
        }
    }

    /// What the process left behind as it ended: whether it noted an abort for want of memory, and
    /// the last that it printed.
    pub(crate) fn last_words(mut self, out_of_memory: bool, stderr: Option<Arc<str>>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            (inner.out_of_memory, inner.stderr) = (out_of_memory, stderr);
        }
        self
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
    #[must_use]
    pub fn kind(&self) -> TaskErrorKind {
        match &self.inner.what {
            What::Panicked { .. } => TaskErrorKind::Panicked,
            What::WorkerDied { .. } => TaskErrorKind::WorkerDied,
            What::Cancelled => TaskErrorKind::Cancelled,
            What::Unkillable { .. } => TaskErrorKind::Unkillable,
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
            What::ProtocolViolation { .. } => TaskErrorKind::ProtocolViolation,
            What::Forked => TaskErrorKind::Forked,
            What::UnknownTask { .. } => TaskErrorKind::UnknownTask,
            What::NoRuntime { .. } => TaskErrorKind::NoRuntime,
            What::TaskReturnedError { .. } => TaskErrorKind::TaskReturnedError,
        }
    }

    /// The task panicked.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.kind() == TaskErrorKind::Panicked
    }

    /// The worker process ended while it ran the task.
    #[must_use]
    pub fn is_worker_died(&self) -> bool {
        self.kind() == TaskErrorKind::WorkerDied
    }

    /// The task was aborted.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.kind() == TaskErrorKind::Cancelled
    }

    /// The process that runs the task was killed, and the kernel cannot end it
    /// ([`Unkillable`](TaskErrorKind::Unkillable)).
    #[must_use]
    pub fn is_unkillable(&self) -> bool {
        self.kind() == TaskErrorKind::Unkillable
    }

    /// A time limit was over: that of one run ([`TaskBuilder::timeout`](crate::TaskBuilder::timeout)) or that of
    /// the whole ([`TaskBuilder::deadline`](crate::TaskBuilder::deadline)).
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.kind() == TaskErrorKind::TimedOut
    }

    /// Arguments or result could not be encoded or decoded, on either side.
    #[must_use]
    pub fn is_unserializable(&self) -> bool {
        use TaskErrorKind::{ArgumentDecode, ArgumentEncode, ResultDecode, ResultEncode};
        matches!(self.kind(), ArgumentEncode | ArgumentDecode | ResultEncode | ResultDecode)
    }

    /// Arguments or result are larger than a frame may be.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.kind() == TaskErrorKind::TooLarge
    }

    /// The pool's backlog was full.
    #[must_use]
    pub fn is_queue_full(&self) -> bool {
        self.kind() == TaskErrorKind::QueueFull
    }

    /// The pool was shut down or dropped.
    #[must_use]
    pub fn is_pool_closed(&self) -> bool {
        self.kind() == TaskErrorKind::PoolClosed
    }

    /// The worker broke the protocol.
    #[must_use]
    pub fn is_protocol_violation(&self) -> bool {
        self.kind() == TaskErrorKind::ProtocolViolation
    }

    /// The task was handed in, or awaited, in a forked copy of the application.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.kind() == TaskErrorKind::Forked
    }

    /// The pool's workers have no such task.
    #[must_use]
    pub fn is_unknown_task(&self) -> bool {
        self.kind() == TaskErrorKind::UnknownTask
    }

    /// No worker could be started, `init` included. Why, says [`start_error`](Self::start_error).
    #[must_use]
    pub fn is_start_failed(&self) -> bool {
        matches!(self.kind(), TaskErrorKind::StartFailed | TaskErrorKind::InitFailed)
    }

    /// The pool's `init` function failed in the workers.
    #[must_use]
    pub fn is_init_failed(&self) -> bool {
        self.kind() == TaskErrorKind::InitFailed
    }

    /// The worker's stack overflowed (a [`WorkerDied`](TaskErrorKind::WorkerDied) told apart from
    /// other segmentation faults). Seen for the worker's main thread, on which tasks run; on a
    /// thread that a task made, an overflow is a plain SIGSEGV.
    #[must_use]
    pub fn is_stack_overflow(&self) -> bool {
        matches!(self.inner.what, What::WorkerDied { stack_overflow: true, .. })
    }

    /// The worker ran out of memory (a [`WorkerDied`](TaskErrorKind::WorkerDied) told apart from
    /// other aborts): it ended by SIGABRT, and the abort was that of std's
    /// [`handle_alloc_error`](std::alloc::handle_alloc_error). That is how a Rust program ends when
    /// an allocation fails: under [`Limits::memory`](crate::Limits::memory), or when more is asked
    /// for than the machine could ever have. A request that was refused and done without
    /// (`try_reserve`, a null pointer of `malloc`) is not told, whatever the worker ends by later.
    ///
    /// In two cases it is told only if standard error is captured
    /// ([`Stdio::lines`](crate::Stdio::lines)), by the message in
    /// [`stderr_tail`](Self::stderr_tail):
    ///
    /// * With `RUST_BACKTRACE` set, recent versions of std print a backtrace before they abort,
    ///   which hides the error of the request.
    /// * C++ code ends by an exception `std::bad_alloc` that nothing catches.
    ///
    /// Or the kernel killed it because the machine or the cgroup had no memory left: it ended by
    /// SIGKILL, not sent by the pool, and while it lived the kernel counted such a kill in the
    /// application's cgroup (`memory.events`, cgroups(7)) that no other worker's death accounts
    /// for. (So if something else in that cgroup was killed for want of memory, and then somebody
    /// kills a worker, it may be told here.) Where there is no such count, and for a
    /// [`Process`](crate::Process), it is not told.
    pub fn is_out_of_memory(&self) -> bool {
        let noted = self.inner.out_of_memory;
        let is_aborted = self.died_by(SIGABRT)
            && (noted || self.inner.stderr.as_deref().is_some_and(tells_want_of_memory));
        is_aborted || noted && self.died_by(SIGKILL)
    }

    /// The worker ended by SIGXCPU: a limit on processor time has run out
    /// ([`Limits::task_cpu_time`](crate::Limits::task_cpu_time),
    /// [`Limits::cpu_time`](crate::Limits::cpu_time), or one that the application was started
    /// with).
    #[must_use]
    pub fn is_cpu_limit(&self) -> bool {
        self.died_by(SIGXCPU)
    }

    fn died_by(&self, signal: i32) -> bool {
        #[cfg(unix)]
        if let What::WorkerDied { status: Some(status), .. } = &self.inner.what {
            return std::os::unix::process::ExitStatusExt::signal(status) == Some(signal);
        }
        let _ = signal;
        false
    }

    /// The message of the panic, if the task panicked. A payload that is no string gives the
    /// fixed text `Box<dyn Any>`, as in std.
    ///
    /// A message longer than 16 KiB is cut, and ends with `…` then; so does one longer than 1.5 KiB
    /// of a panic that ended the process (`panic = "abort"`). It may hold any character. The
    /// error's own text shows its control characters escaped, but for line breaks and tabs.
    #[must_use]
    pub fn panic_message(&self) -> Option<&str> {
        match &self.inner.what {
            What::Panicked { message, .. } => Some(message),
            _ => None,
        }
    }

    /// Where the task panicked, as `file:line:column`. `None` if that is not known, as of a panic
    /// that was resumed ([`std::panic::resume_unwind`]) and of one that a hook set by the task has
    /// kept from the crate's own.
    #[must_use]
    pub fn panic_location(&self) -> Option<&str> {
        match &self.inner.what {
            What::Panicked { location, .. } => location.as_deref(),
            _ => None,
        }
    }

    /// The backtrace of the panic, if one was asked for (`TaskBuilder::backtrace`, or `RUST_BACKTRACE` in
    /// the worker's environment) and the worker lived to send it; at most 64 KiB of it, and then
    /// it ends with `…`.
    #[must_use]
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
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        match &self.inner.what {
            What::Panicked { status, .. } | What::WorkerDied { status, .. } => *status,
            What::StartFailed(cause) => cause.exit_status(),
            _ => None,
        }
    }

    /// The process that ran the task, where one did.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match self.inner.what {
            What::Panicked { pid, .. }
            | What::WorkerDied { pid, .. }
            | What::ArgumentDecode { pid, .. }
            | What::ResultEncode { pid, .. }
            | What::ResultTooLarge { pid, .. }
            | What::ProtocolViolation { pid, .. }
            | What::NoRuntime { pid, .. }
            | What::TaskReturnedError { pid, .. } => Some(pid),
            What::UnknownTask { pid } | What::Unkillable { pid } => pid,
            _ => None,
        }
    }

    /// The last of what the worker printed to its standard error before it ended, at most 16 KiB
    /// (behind a `…`, if it had printed more); empty if it printed nothing. Only if that is captured
    /// ([`Stdio::lines`](crate::Stdio::lines)) and the task's worker ended; or if it failed to
    /// start, see [`Error::stderr_tail`].
    ///
    /// It is what the *process* printed, in earlier tasks perhaps, with whatever control characters.
    /// It is not part of the error's text.
    #[must_use]
    pub fn stderr_tail(&self) -> Option<&str> {
        match &self.inner.what {
            What::StartFailed(cause) => cause.stderr_tail(),
            _ => self.inner.stderr.as_deref(),
        }
    }

    /// The limit that was passed, in bytes, if something was too large.
    #[must_use]
    pub fn size_limit(&self) -> Option<usize> {
        match self.inner.what {
            What::ArgumentTooLarge { limit } | What::ResultTooLarge { limit, .. } => Some(limit),
            _ => None,
        }
    }

    /// The time limit that was over, if one was: that of one run, or that of the whole, as
    /// [`is_deadline`](Self::is_deadline) says.
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        match self.inner.what {
            What::TimedOut { limit, .. } => Some(limit),
            _ => None,
        }
    }

    /// The time limit that was over was that of the whole
    /// ([`TaskBuilder::deadline`](crate::TaskBuilder::deadline)), not that of one run.
    #[must_use]
    pub fn is_deadline(&self) -> bool {
        matches!(self.inner.what, What::TimedOut { whole: true, .. })
    }

    /// Why no worker could be started, if that is what happened. (The same as
    /// [`source`](std::error::Error::source).)
    #[must_use]
    pub fn start_error(&self) -> Option<&Error> {
        match &self.inner.what {
            What::StartFailed(cause) => Some(cause),
            _ => None,
        }
    }

    /// What is wrong with the arguments or the result that could not be encoded or decoded, or with
    /// the frame that broke the protocol, or why no runtime could be made, in words; at most
    /// 16 KiB, as of a [`panic_message`](Self::panic_message).
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match &self.inner.what {
            What::ArgumentEncode(reason)
            | What::ArgumentDecode { reason, .. }
            | What::ResultEncode { reason, .. }
            | What::ResultDecode(reason)
            | What::NoRuntime { reason, .. }
            | What::ProtocolViolation { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Which try of the task failed like this, from 1: one more than there are
    /// [`earlier_attempts`](Self::earlier_attempts).
    #[must_use]
    pub fn attempt(&self) -> usize {
        self.inner.earlier.len() + 1
    }

    /// How the earlier tries of the task failed, in order, if it had any
    /// ([`TaskBuilder::retries`](crate::TaskBuilder::retries)). This error is how the last one did, or why
    /// there was no further one.
    ///
    /// Their texts are cut as any, see [`panic_message`](Self::panic_message).
    #[must_use]
    pub fn earlier_attempts(&self) -> &[Self] {
        &self.inner.earlier
    }

    /// The encoded `Result` of a task that was tried again because of it.
    pub(crate) fn own_result(&self) -> Option<&[u8]> {
        match &self.inner.what {
            What::TaskReturnedError { result, .. } => result.as_deref(),
            _ => None,
        }
    }

    /// Which item of a [`map`](crate::Pool::map) failed: its place in the input, counted from 0.
    /// `None` for a task that was spawned by itself. It tells items apart whose results come as
    /// they finish.
    #[must_use]
    pub fn item(&self) -> Option<u64> {
        self.item
    }

    /// The name of the task's function, as [`std::any::type_name`] gives it.
    #[must_use]
    pub fn function(&self) -> &'static str {
        self.inner.function
    }
}

/// Whether the message of a program that ends for want of memory is among these lines: of std's
/// [`std::alloc::handle_alloc_error`], or of C++ for an exception that nothing catches.
fn tells_want_of_memory(text: &str) -> bool {
    text.lines().any(|line| {
        let bytes = line
            .strip_prefix("memory allocation of ")
            .and_then(|rest| rest.strip_suffix(" bytes failed"));
        bytes.is_some_and(|bytes| bytes.parse::<u64>().is_ok())
            // libstdc++ and libc++
            || line == "terminate called after throwing an instance of 'std::bad_alloc'"
            || line.starts_with("libc++abi: terminating ") && line.contains("std::bad_alloc")
    })
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = self.inner.function;
        match &self.inner.what {
            What::Panicked { message, location: Some(location), .. } => {
                let (location, message) = (Escaped(location), Escaped(message));
                write!(f, "task {function} panicked at {location}: {message}")
            }
            What::Panicked { message, .. } => {
                write!(f, "task {function} panicked: {}", Escaped(message))
            }
            What::WorkerDied { pid, status, stack_overflow } => {
                let how = match () {
                    () if *stack_overflow => "its stack overflowed, ",
                    () if self.is_out_of_memory() => "out of memory, ",
                    () if self.is_cpu_limit() => "its processor time ran out, ",
                    () => "",
                };
                write!(
                    f,
                    "worker process {pid} died while it ran task {function} ({how}{})",
                    Ending(*status)
                )
            }
            What::Cancelled => write!(f, "task {function} was cancelled"),
            What::Unkillable { pid: Some(pid) } => write!(
                f,
                "worker process {pid} was killed to stop task {function}, and does not end"
            ),
            What::Unkillable { pid: None } => {
                write!(f, "the worker process of task {function} was killed, and does not end")
            }
            What::TimedOut { limit, whole: false } => {
                write!(f, "task {function} ran longer than its limit of {limit:?}")
            }
            What::TimedOut { limit, whole: true } => {
                write!(f, "task {function} had not ended {limit:?} after it was handed in")
            }
            What::ArgumentEncode(reason) => {
                write!(f, "an argument of task {function} cannot be encoded: {}", Escaped(reason))
            }
            What::ArgumentDecode { pid, reason } => {
                write!(
                    f,
                    "worker process {pid} cannot decode the arguments of task {function}: {}",
                    Escaped(reason)
                )
            }
            What::ResultEncode { pid, reason } => write!(
                f,
                "worker process {pid} cannot encode the result of task {function}: {}",
                Escaped(reason)
            ),
            What::ResultDecode(reason) => {
                write!(f, "the result of task {function} cannot be decoded: {}", Escaped(reason))
            }
            What::ArgumentTooLarge { limit } => {
                write!(f, "the arguments of task {function} are larger than {limit} bytes")
            }
            What::ResultTooLarge { limit, .. } => {
                write!(f, "the result of task {function} is larger than {limit} bytes")
            }
            What::QueueFull { limit } => write!(
                f,
                "the pool's queue of {limit} tasks is full, task {function} was not taken"
            ),
            What::PoolClosed => write!(f, "the pool was closed before task {function} ended"),
            What::StartFailed(cause) => {
                write!(f, "no worker for task {function} could be started: {cause}")
            }
            What::ProtocolViolation { pid, reason } => write!(
                f,
                "worker process {pid} broke the protocol while it ran task {function}: {}",
                Escaped(reason)
            ),
            What::UnknownTask { pid: Some(pid) } => {
                write!(f, "worker process {pid} serves no task {function}")
            }
            What::UnknownTask { pid: None } => {
                write!(
                    f,
                    "task {function} is unknown to this pool's workers: another program has tasks by name, this one has not"
                )
            }
            What::NoRuntime { pid, reason } => write!(
                f,
                "worker process {pid} has no runtime for the async task {function}: {}",
                Escaped(reason)
            ),
            What::TaskReturnedError { pid, .. } => {
                write!(
                    f,
                    "task {function} returned an error in worker process {pid} that was worth another try"
                )
            }
            What::Forked => write!(
                f,
                "task {function} can be neither handed in nor awaited in a forked copy of the application"
            ),
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
        self.start_error().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_memory_is_known_by_the_messages_of_std_and_of_cpp() {
        for text in [
            "memory allocation of 9 bytes failed",
            "a\nmemory allocation of 9 bytes failed\nb",
            "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  ...",
            "libc++abi: terminating due to uncaught exception of type std::bad_alloc: ...",
        ] {
            assert!(tells_want_of_memory(text), "{text}");
        }
        for text in [
            "",
            "memory allocation of my own making failed",
            "terminate called after throwing an instance of 'std::runtime_error'",
            "caught std::bad_alloc",
        ] {
            assert!(!tells_want_of_memory(text), "{text}");
        }
    }

    fn panicked(text: &str) -> TaskError {
        let text = || text.to_owned();
        let what = What::Panicked {
            message: text(),
            location: Some(text()),
            backtrace: Some(text()),
            pid: 1,
            status: None,
        };
        TaskError::new(what, "f")
    }

    #[test]
    fn long_texts_are_kept_in_part() {
        let error = panicked(&"\u{e9}".repeat(1 << 20));
        for (text, most) in [
            (error.panic_message(), TEXT_MAX),
            (error.panic_location(), TEXT_MAX),
            (error.panic_backtrace(), BACKTRACE_MAX),
        ] {
            let text = text.unwrap_or_default();
            assert!(
                text.len() <= most
                    && text.len() > most - 4
                    && text.starts_with("\u{e9}\u{e9}")
                    && text.ends_with(text::CUT),
                "{}",
                text.len()
            );
        }
        assert!(error.to_string().len() < 3 * TEXT_MAX);
        assert_eq!(panicked("short").panic_message(), Some("short"));
    }

    #[test]
    fn what_a_worker_says_is_displayed_without_controls() {
        let error = panicked("red \x1b[31m\n");
        assert_eq!(error.panic_message(), Some("red \x1b[31m\n"));
        let text = "task f panicked at red \\u{1b}[31m\n: red \\u{1b}[31m\n";
        assert_eq!(error.to_string(), text);
    }
}
