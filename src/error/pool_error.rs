//! What goes wrong with a pool or a process, as opposed to one task.

use super::Ending;
use super::text::{self, Escaped, TEXT_MAX};
use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

/// Why a pool or a [`Process`](crate::Process) could not be built, started or used. What goes wrong
/// with shared objects is a [`sync::Error`](crate::sync::Error).
///
/// The kinds are told apart by [`kind`](Self::kind) or the predicates, never by the text. Cloning
/// is cheap: one failed start answers every task that needed it.
#[derive(Clone)]
pub struct Error {
    why: Arc<Why>,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option of the builder makes no sense.
    InvalidOption,
    /// Workers do not exist on this platform (x86-64 and aarch64 Linux only).
    Unsupported,
    /// A fresh start of this program would have raised privileges (`AT_SECURE`) and could not be a
    /// worker: the effective user or group differs from the real one, or the program's file is
    /// set-uid, set-gid or has capabilities. It is asked when a pool is built, and before each
    /// start. Where only the new process can know it, the start fails as
    /// [`DiedAtStart`](Self::DiedAtStart), with the reason in [`Error::stderr_tail`].
    SetUid,
    /// The task table lies in a shared object, so a fresh start of the program would not find it.
    NotInProgram,
    /// This process was meant to be a worker, but the crate's start-up code did not run in it.
    InsideWorker,
    /// Pools inside workers of pools inside workers …, deeper than the documented limit.
    NestingTooDeep,
    /// The call was made in a forked copy of the application.
    Forked,
    /// The operating system did not start the process, or refused something it needs.
    Spawn,
    /// The new process ended before it had said hello.
    DiedAtStart,
    /// Something answered that is not a worker of this program and this version.
    NotAWorker,
    /// The new process did not execute the program, or did not say hello, within its time.
    StartTimeout,
    /// The pool's `init` function failed: its own error, a panic, the end of its process, or no end
    /// within [`Builder::start_timeout`](crate::Builder::start_timeout)
    /// ([`Error::is_timeout`]).
    InitFailed,
    /// The preload function of a [`Template`](crate::Template) failed: its own error
    /// ([`Error::reason`]), a panic, the end of its process, or no end within
    /// [`TemplateBuilder::preload_timeout`](crate::TemplateBuilder::preload_timeout)
    /// ([`Error::is_timeout`]).
    PreloadFailed,
    /// A [`Template`](crate::Template) must not be forked as its preload function has left it: other
    /// threads run, or it holds something that processes cannot share. [`Error::reason`] names them.
    NotForkable,
    /// A [`Template`](crate::Template) was to fork a process and did not: the system refused, or the
    /// template, or what it forked, ended. See [`Error::reason`].
    ForkFailed,
    /// A single process cannot be forked yet, for its [`Template`](crate::Template) has not
    /// preloaded yet, or has ended and is being replaced:
    /// [`Template::ready`](crate::Template::ready) waits for it.
    TemplateNotReady,
    /// Workers ended by themselves too often before they were given any task
    /// ([`Builder::restart_limit`](crate::Builder::restart_limit)).
    RestartLimit,
    /// The pool has been shut down or dropped.
    PoolClosed,
    /// An argument could not be encoded, so that no process was started.
    ArgumentEncode,
    /// The arguments are larger than a frame may be, so that no process was started. See
    /// [`Error::size_limit`].
    TooLarge,
    /// The operating system would not send a signal: there is no such one, or the process has
    /// become another user's.
    Signal,
    /// The process has ended, and how it did is not known: something else in the application reaped
    /// it, and the kernel (before Linux 6.15) cannot tell afterwards.
    StatusUnknown,
}

/// The full space behind [`ErrorKind`].
pub(crate) enum Why {
    InvalidOption {
        option: &'static str,
        reason: String,
    },
    Unsupported,
    SetUid {
        reason: String,
    },
    NotInProgram {
        object: String,
    },
    InsideWorker,
    NestingTooDeep {
        limit: u32,
    },
    Forked,
    Spawn {
        step: &'static str,
        source: io::Error,
    },
    DiedAtStart {
        pid: u32,
        status: Option<ExitStatus>,
        stderr: String,
    },
    NotAWorker {
        pid: u32,
        reason: String,
        stderr: String,
    },
    HelloTimeout {
        pid: u32,
        limit: Duration,
        stderr: String,
    },
    /// Its number is not known.
    ExecTimeout {
        limit: Duration,
    },
    InitTimeout {
        pid: u32,
        limit: Duration,
    },
    InitError {
        pid: u32,
        message: String,
    },
    InitPanicked {
        pid: u32,
        message: String,
        location: Option<String>,
    },
    InitDied {
        pid: u32,
        status: Option<ExitStatus>,
        stderr: Option<Arc<str>>,
    },
    PreloadError {
        pid: u32,
        message: String,
    },
    PreloadPanicked {
        pid: u32,
        message: String,
        location: Option<String>,
    },
    PreloadDied {
        pid: u32,
        status: Option<ExitStatus>,
    },
    PreloadTimeout {
        pid: u32,
        limit: Duration,
    },
    NotForkable {
        pid: u32,
        reason: String,
    },
    ForkFailed {
        reason: String,
    },
    TemplateNotReady,
    /// The last deaths: process and status.
    RestartLimit {
        most: u32,
        within: Duration,
        last: Vec<(u32, Option<ExitStatus>)>,
    },
    PoolClosed,
    ArgumentEncode {
        function: &'static str,
        reason: String,
    },
    ArgumentTooLarge {
        function: &'static str,
        limit: usize,
    },
    Signal {
        pid: u32,
        signal: i32,
        source: io::Error,
    },
    StatusUnknown {
        pid: u32,
    },
}

impl Why {
    /// Cuts what a process may have written.
    fn cut(&mut self) {
        match self {
            Self::NotAWorker { reason: text, .. }
            | Self::InitError { message: text, .. }
            | Self::PreloadError { message: text, .. }
            | Self::NotForkable { reason: text, .. }
            | Self::ForkFailed { reason: text } => text::cut(text, TEXT_MAX),
            Self::InitPanicked { message, location, .. }
            | Self::PreloadPanicked { message, location, .. } => {
                text::cut(message, TEXT_MAX);
                if let Some(location) = location {
                    text::cut(location, TEXT_MAX);
                }
            }
            _ => {}
        }
    }
}

impl From<Why> for Error {
    fn from(mut why: Why) -> Self {
        why.cut();
        Self { why: Arc::new(why) }
    }
}

impl Error {
    /// A system call failed while a process was started or a pool was built.
    pub(crate) fn spawn(step: &'static str, source: io::Error) -> Self {
        Why::Spawn { step, source }.into()
    }

    /// What kind of thing went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &*self.why {
            Why::InvalidOption { .. } => ErrorKind::InvalidOption,
            Why::Unsupported => ErrorKind::Unsupported,
            Why::SetUid { .. } => ErrorKind::SetUid,
            Why::NotInProgram { .. } => ErrorKind::NotInProgram,
            Why::InsideWorker => ErrorKind::InsideWorker,
            Why::NestingTooDeep { .. } => ErrorKind::NestingTooDeep,
            Why::Forked => ErrorKind::Forked,
            Why::Spawn { .. } => ErrorKind::Spawn,
            Why::DiedAtStart { .. } => ErrorKind::DiedAtStart,
            Why::NotAWorker { .. } => ErrorKind::NotAWorker,
            Why::ExecTimeout { .. } | Why::HelloTimeout { .. } => ErrorKind::StartTimeout,
            Why::InitTimeout { .. }
            | Why::InitError { .. }
            | Why::InitPanicked { .. }
            | Why::InitDied { .. } => ErrorKind::InitFailed,
            Why::PreloadError { .. }
            | Why::PreloadPanicked { .. }
            | Why::PreloadDied { .. }
            | Why::PreloadTimeout { .. } => ErrorKind::PreloadFailed,
            Why::NotForkable { .. } => ErrorKind::NotForkable,
            Why::ForkFailed { .. } => ErrorKind::ForkFailed,
            Why::TemplateNotReady => ErrorKind::TemplateNotReady,
            Why::RestartLimit { .. } => ErrorKind::RestartLimit,
            Why::PoolClosed => ErrorKind::PoolClosed,
            Why::ArgumentEncode { .. } => ErrorKind::ArgumentEncode,
            Why::ArgumentTooLarge { .. } => ErrorKind::TooLarge,
            Why::Signal { .. } => ErrorKind::Signal,
            Why::StatusUnknown { .. } => ErrorKind::StatusUnknown,
        }
    }

    /// The pool's `init` function failed.
    #[must_use]
    pub fn is_init_failed(&self) -> bool {
        self.kind() == ErrorKind::InitFailed
    }

    /// Workers ended by themselves too often before they were given any task. How the last one did,
    /// say [`pid`](Self::pid) and [`exit_status`](Self::exit_status).
    #[must_use]
    pub fn is_restart_limit(&self) -> bool {
        self.kind() == ErrorKind::RestartLimit
    }

    /// A time limit ran out: of the start, or of `init` or a preload within it.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(
            *self.why,
            Why::ExecTimeout { .. }
                | Why::HelloTimeout { .. }
                | Why::InitTimeout { .. }
                | Why::PreloadTimeout { .. }
        )
    }

    /// The pool's `init` or a preload function panicked.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.panic_message().is_some()
    }

    /// The message of that panic.
    #[must_use]
    pub fn panic_message(&self) -> Option<&str> {
        match &*self.why {
            Why::InitPanicked { message, .. } | Why::PreloadPanicked { message, .. } => {
                Some(message)
            }
            _ => None,
        }
    }

    /// Where `init` panicked, as `file:line:column`.
    #[must_use]
    pub fn panic_location(&self) -> Option<&str> {
        match &*self.why {
            Why::InitPanicked { location, .. } | Why::PreloadPanicked { location, .. } => {
                location.as_deref()
            }
            _ => None,
        }
    }

    /// What is wrong, in words, with the option that makes no sense, with the argument that could not
    /// be encoded, or with what answered in a worker's place; the error that `init` or a preload
    /// function returned; and why a template was not forked.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match &*self.why {
            Why::ArgumentEncode { reason, .. }
            | Why::InvalidOption { reason, .. }
            | Why::NotForkable { reason, .. }
            | Why::ForkFailed { reason }
            | Why::NotAWorker { reason, .. } => Some(reason),
            Why::InitError { message, .. } | Why::PreloadError { message, .. } => Some(message),
            _ => None,
        }
    }

    /// The builder's option that makes no sense, by the name of its method.
    #[must_use]
    pub fn option(&self) -> Option<&'static str> {
        match &*self.why {
            Why::InvalidOption { option, .. } => Some(option),
            _ => None,
        }
    }

    /// The time that a worker had to start, if it took longer.
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        match &*self.why {
            Why::ExecTimeout { limit }
            | Why::HelloTimeout { limit, .. }
            | Why::InitTimeout { limit, .. }
            | Why::PreloadTimeout { limit, .. } => Some(*limit),
            _ => None,
        }
    }

    /// An argument could not be encoded.
    #[must_use]
    pub fn is_unserializable(&self) -> bool {
        self.kind() == ErrorKind::ArgumentEncode
    }

    /// Something was larger than it may be: see [`size_limit`](Self::size_limit).
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.kind() == ErrorKind::TooLarge
    }

    /// The call was made in a forked copy of the application.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.kind() == ErrorKind::Forked
    }

    /// Workers do not exist on this platform.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.kind() == ErrorKind::Unsupported
    }

    /// How many bytes a value may take, if it took more.
    #[must_use]
    pub fn size_limit(&self) -> Option<usize> {
        match *self.why {
            Why::ArgumentTooLarge { limit, .. } => Some(limit),
            _ => None,
        }
    }

    /// The pool has been shut down or dropped.
    #[must_use]
    pub fn is_pool_closed(&self) -> bool {
        self.kind() == ErrorKind::PoolClosed
    }

    /// How the process ended, if one ended and its status is known.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        match &*self.why {
            Why::DiedAtStart { status, .. }
            | Why::InitDied { status, .. }
            | Why::PreloadDied { status, .. } => *status,
            Why::RestartLimit { last, .. } => last.last()?.1,
            _ => None,
        }
    }

    /// The process that was started, if one was.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match &*self.why {
            Why::RestartLimit { last, .. } => last.last().map(|(pid, _)| *pid),
            Why::DiedAtStart { pid, .. }
            | Why::NotAWorker { pid, .. }
            | Why::HelloTimeout { pid, .. }
            | Why::InitTimeout { pid, .. }
            | Why::InitError { pid, .. }
            | Why::InitPanicked { pid, .. }
            | Why::InitDied { pid, .. }
            | Why::PreloadError { pid, .. }
            | Why::PreloadPanicked { pid, .. }
            | Why::PreloadDied { pid, .. }
            | Why::PreloadTimeout { pid, .. }
            | Why::NotForkable { pid, .. }
            | Why::Signal { pid, .. }
            | Why::StatusUnknown { pid } => Some(*pid),
            _ => None,
        }
    }

    /// The last of what the process wrote to its standard error before it failed to start (at most
    /// 4 KiB, behind a `…` if there was more); empty if it wrote nothing. From when it has said hello, which is before `init`, only
    /// if standard error is captured ([`Stdio::lines`](crate::Stdio::lines)).
    #[must_use]
    pub fn stderr_tail(&self) -> Option<&str> {
        match &*self.why {
            Why::DiedAtStart { stderr, .. }
            | Why::NotAWorker { stderr, .. }
            | Why::HelloTimeout { stderr, .. } => Some(stderr),
            Why::InitDied { stderr, .. } => stderr.as_deref(),
            _ => None,
        }
    }
}

/// ` (it wrote: …)`, or nothing.
struct Wrote<'a>(&'a str);

impl fmt::Display for Wrote<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.trim_end() {
            "" => Ok(()),
            text => write!(f, "; it wrote: {}", Escaped(text)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.why {
            Why::InvalidOption { option, reason } => write!(f, "invalid option {option}: {reason}"),
            Why::Unsupported => f.write_str("worker processes are not supported on this platform (x86-64 and aarch64 Linux only)"),
            Why::SetUid { reason } => {
                write!(f, "a fresh start of this program would run with raised privileges, and refuse to be a worker: {reason}")
            }
            Why::NotInProgram { object } => {
                write!(
                    f,
                    "the task table lies in {object}, not in the program itself, so that a fresh start of the program would not find it"
                )
            }
            Why::InsideWorker => f.write_str(
                "this process was started as a worker but runs the program's main: the crate's start-up code was not linked or did not run",
            ),
            Why::NestingTooDeep { limit } => write!(f, "pools within workers are nested deeper than {limit}"),
            Why::Forked => f.write_str("the call was made in a forked copy of the application"),
            Why::Spawn { step, source } => write!(f, "{step}: {source}"),
            Why::DiedAtStart { pid, status, stderr } => {
                write!(f, "worker process {pid} ended before it said hello ({}){}", Ending(*status), Wrote(stderr))
            }
            Why::NotAWorker { pid, reason, stderr } => write!(f, "process {pid} is no worker of this program: {}{}", Escaped(reason), Wrote(stderr)),
            Why::HelloTimeout { pid, limit, stderr } => {
                write!(f, "worker process {pid} did not say hello within {limit:?}{}", Wrote(stderr))
            }
            Why::ExecTimeout { limit } => write!(f, "the new process did not execute the program within {limit:?}"),
            Why::InitTimeout { pid, limit } => write!(f, "init in worker process {pid} did not end within {limit:?}"),
            Why::InitError { pid, message } => write!(f, "init failed in worker process {pid}: {}", Escaped(message)),
            Why::InitPanicked { pid, message, location: Some(at) } => write!(f, "init panicked in worker process {pid} at {}: {}", Escaped(at), Escaped(message)),
            Why::InitPanicked { pid, message, location: None } => write!(f, "init panicked in worker process {pid}: {}", Escaped(message)),
            Why::PreloadError { pid, message } => {
                write!(f, "preload failed in template process {pid}: {}", Escaped(message))
            }
            Why::PreloadPanicked { pid, message, location } => {
                write!(f, "preload panicked in template process {pid}")?;
                if let Some(at) = location {
                    write!(f, " at {}", Escaped(at))?;
                }
                write!(f, ": {}", Escaped(message))
            }
            Why::PreloadDied { pid, status } => {
                write!(f, "template process {pid} ended in preload ({})", Ending(*status))
            }
            Why::PreloadTimeout { pid, limit } => {
                write!(f, "preload in template process {pid} did not end within {limit:?}")
            }
            Why::NotForkable { pid, reason } => {
                write!(f, "template process {pid} must not be forked: {}", Escaped(reason))
            }
            Why::ForkFailed { reason } => {
                write!(f, "no process was forked from the template: {}", Escaped(reason))
            }
            Why::TemplateNotReady => f.write_str(
                "the template has not preloaded (yet): await `Template::ready` first",
            ),
            Why::InitDied { pid, status, .. } => write!(f, "worker process {pid} ended in init ({})", Ending(*status)),
            Why::RestartLimit { most, within, last } => {
                write!(f, "more than {most} workers ended by themselves within {within:?} before they were given a task")?;
                for (nth, (pid, status)) in last.iter().enumerate() {
                    write!(f, "{} process {pid}: {}", if nth == 0 { "; the last were" } else { "," }, Ending(*status))?;
                }
                Ok(())
            }
            Why::PoolClosed => f.write_str("the pool is closed"),
            Why::ArgumentEncode { function, reason } => write!(f, "an argument of {function} cannot be encoded: {reason}"),
            Why::ArgumentTooLarge { function, limit } => write!(f, "the arguments of {function} are larger than {limit} bytes"),
            Why::Signal { pid, signal, source } => {
                write!(f, "cannot send signal {signal} to process {pid}: {source}")
            }
            Why::StatusUnknown { pid } => write!(f, "process {pid} has ended, and was reaped by something else: its status is unknown"),
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
            Why::Spawn { source, .. } | Why::Signal { source, .. } => Some(source),
            _ => None,
        }
    }
}
