//! One process for one function: `Process`.
//!
//! * `builder.rs`: the options of one; `streams.rs`: our ends of its pipes;
//! * `machine.rs`: what happens between it and us, on the supervisor thread;
//! * `detached.rs`: what is known of a daemon; `handover.rs`: the exit waits for those who outlive
//!   it;
//! * `parent.rs`: the child's view of its parent;
//! * `elsewhere.rs`: the machine of platforms without workers.
//!
//! It knows no pool: a process of its own has no scheduler, and is not one of a pool's workers.

mod builder;
mod detached;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod handover;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod machine;
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
)))]
#[path = "elsewhere.rs"]
mod machine;
mod parent;
#[cfg(all(test, target_os = "linux"))]
mod strange_processes;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod streams;
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
)))]
use machine as streams;

pub use builder::ProcessBuilder;
pub use detached::{Daemon, DaemonStart};
pub use parent::{Parent, parent};
pub use streams::{ChildStderr, ChildStdin, ChildStdout};

use crate::coop::{BudgetUnit, take_unit};
use crate::error::{Error, TaskError, What, Why};
use crate::park::refuse_in_async_context;
use crate::task::{ArgsFor, Callable, Task, ZeroSized};
use machine::{Ended, Machine};
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use streams::Streams;
use tokio::sync::oneshot;

/// One child process that runs one function: what Python calls `multiprocessing.Process`.
///
/// The handle is a future of the function's value. It resolves when the process has ended, and so
/// has everything it did. The functions and arguments are those of
/// [`Pool::spawn`](crate::Pool::spawn).
///
/// ```
/// use procpool::Process;
///
/// fn checksum(bytes: Vec<u8>) -> u64 { bytes.into_iter().map(u64::from).sum() }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let child = Process::spawn(checksum, &[1, 2, 3][..])?;
/// println!("process {}", child.pid());
/// assert_eq!(child.await?, 6);
///
/// fn stuck() { loop { std::thread::park() } }
///
/// let child = Process::spawn(stuck, ())?;
/// child.terminate()?;
/// let error = child.await.unwrap_err();
/// assert!(error.is_worker_died());
/// println!("{error}"); // worker process 4243 died while it ran task … (signal: 15 (SIGTERM))
/// # Ok(())
/// # }
/// ```
///
/// The function runs on the main thread of a fresh start of this program, whose `main` does not
/// run: the same that holds for workers. An async function runs in a current-thread runtime; what
/// it has left running there ends with the process.
///
/// # Exit status
///
/// 0 when the function returned, whatever it returned; 101 when it panicked (with `panic =
/// "abort"`, SIGABRT); 1 when its arguments could not be decoded or its result not be encoded;
/// otherwise what it exits with itself, or the signal that ended it. A function that exits by
/// itself, even with 0, has no value: the handle resolves to
/// [`is_worker_died`](TaskError::is_worker_died) with that status.
///
/// # The four ways of waiting
///
/// Awaiting it, [`wait`](Self::wait), [`blocking_join`](Self::blocking_join),
/// [`blocking_wait`](Self::blocking_wait), [`try_join`](Self::try_join),
/// [`exit_status`](Self::exit_status): see [`waiting`](crate::guide::waiting).
///
/// # Drop
///
/// Dropping the handle lets go of the process: it runs on, as with tokio's `Command` and
/// `JoinHandle`; its result is thrown away; when it ends it is reaped by itself, whether a runtime
/// runs or not. It does not outlive the application, unless it was started with
/// [`daemon(false)`](ProcessBuilder::daemon). With [`kill_on_drop`](ProcessBuilder::kill_on_drop)
/// it is killed, with its group. Pipes to it that were not taken are closed.
///
/// # Resources
///
/// A process that runs takes five descriptors here, and one for each pipe; one that has ended takes
/// two until its handle is dropped, beside its encoded value. None takes a thread.
///
/// # Cancel safety
///
/// Awaiting by `&mut` and dropping that future loses nothing, nor does it do anything to the
/// process. The value stays with the handle: it may be awaited again.
#[must_use = "a process whose handle is dropped goes on, and its result is lost"]
pub struct Process<R = ()> {
    machine: Arc<Machine>,
    streams: Streams,
    kill_on_drop: bool,
    waiting: Option<oneshot::Receiver<()>>,
    unit: BudgetUnit,
    /// Never an `R` inside: the handle may go where `R` may not.
    result: PhantomData<fn() -> R>,
}

impl Process<()> {
    /// Starts a process that runs the function, with the default options.
    ///
    /// The function is any `fn` or a closure that captures nothing, sync or async, of up to 8
    /// arguments (see [`Task`]). The arguments are encoded here and now; see [`ArgsFor`] for
    /// how they are given.
    ///
    /// # Errors
    ///
    /// What keeps processes from starting: [`ErrorKind`](crate::ErrorKind) `Unsupported`, `SetUid`,
    /// `NotInProgram`, `InsideWorker`, `NestingTooDeep`, `Forked`, `Spawn`; `StartTimeout` if the
    /// new process did not execute the program within 30 seconds (it is killed then); and
    /// `ArgumentEncode`, `TooLarge`.
    ///
    /// What fails after the exec is told by the handle, as
    /// [`StartFailed`](crate::TaskErrorKind::StartFailed), and by [`started`](Self::started).
    ///
    /// # Blocking
    ///
    /// For the exec, some 2 ms, as `tokio::process::Command::spawn` does; for 30 seconds at most,
    /// if the new process is stopped before it. It does not wait for the process to begin.
    #[doc(alias = "start")]
    pub fn spawn<F, Args, Marker, P>(function: F, args: P) -> Result<Process<F::Output>, Error>
    where
        F: Callable<Args> + Task<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        Self::builder().spawn(function, args)
    }

    /// The options of a process.
    pub fn builder() -> ProcessBuilder {
        ProcessBuilder::default()
    }
}

impl<R> Process<R> {
    fn new(machine: Arc<Machine>, streams: Streams, kill_on_drop: bool) -> Self {
        Self {
            machine,
            streams,
            kill_on_drop,
            waiting: None,
            unit: BudgetUnit::default(),
            result: PhantomData,
        }
    }

    /// Its process number, also after its end, when it may be another's: for people to read. To
    /// signal the process, use the methods.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Whether it has not ended. Never behind: it asks the kernel.
    ///
    /// Shortly after the end [`try_join`](Self::try_join) may still be `None`, until what the
    /// process said last has been read.
    pub fn is_alive(&self) -> bool {
        !self.machine.has_ended()
    }

    /// How it ended; never waits. `None` while it runs, and if it is not known how it ended (see
    /// [`wait`](Self::wait)); [`is_alive`](Self::is_alive) tells these apart. Never behind: it
    /// asks the kernel. Always `None` in a forked copy of the application.
    #[doc(alias = "exitcode")]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.machine.exit_status()
    }

    /// Asks it to end, by SIGTERM.
    ///
    /// The signal is sent to the process alone; what is left of its group when it ends is killed
    /// then. `Ok` if it has ended: no signal ever reaches another process that has got its
    /// number. A process that is stopped, or that handles or ignores SIGTERM (what the
    /// application ignores, it ignores too: execve(2)), does not end by this.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn terminate(&self) -> Result<(), Error> {
        self.machine.terminate()
    }

    /// Ends it at once, by SIGKILL, with all that is in its process group if it leads one.
    ///
    /// `Ok` if it has ended. It may not have ended yet when this returns: await that.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn kill(&self) -> Result<(), Error> {
        self.machine.kill()
    }

    /// Sends a signal to the process alone; numbers as in signal(7), real-time ones too; 0 sends
    /// nothing and checks only.
    ///
    /// `Ok`, and nothing happens, if it has ended.
    ///
    /// # Errors
    ///
    /// [`ErrorKind`](crate::ErrorKind) `Signal` if there is no such signal or the process has
    /// become another user's; `Forked` in a forked copy of the application.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.machine.signal(signal)
    }

    /// Waits until the process has all that it needs and is about to call its function.
    ///
    /// From then on a process with [`daemon(false)`](ProcessBuilder::daemon) goes on, whatever
    /// happens to the application. Nobody needs to wait for it otherwise.
    ///
    /// # Errors
    ///
    /// Why it could not be started: `DiedAtStart`, `NotAWorker`, `StartTimeout` (30 s), `Spawn`;
    /// `Forked`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn started(&self) -> Result<(), Error> {
        if Machine::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        take_unit().await;
        self.machine.started().wait().await.map(drop)
    }

    /// As [`started`](Self::started), on this thread.
    ///
    /// # Errors
    ///
    /// As [`started`](Self::started).
    ///
    /// # Blocking
    ///
    /// Some milliseconds.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do.
    #[track_caller]
    pub fn blocking_started(&self) -> Result<(), Error> {
        refuse_in_async_context();
        if Machine::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        self.machine.started().blocking_wait().map(drop)
    }

    /// Waits for its end. Any number may wait for one process, and as often as they like.
    ///
    /// # Errors
    ///
    /// `StatusUnknown` if it has ended and something else in the application reaped it, where the
    /// kernel (before Linux 6.15) cannot tell afterwards; `Forked`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: with `tokio::time::timeout` it is Python's
    /// `join(timeout)`.
    #[doc(alias = "join")]
    pub async fn wait(&self) -> Result<ExitStatus, Error> {
        if Machine::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        take_unit().await;
        self.status(&self.machine.ended().wait().await)
    }

    /// As [`wait`](Self::wait), on this thread.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    ///
    /// # Blocking
    ///
    /// Until the process has ended. No runtime is needed.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, await [`wait`](Self::wait).
    #[track_caller]
    pub fn blocking_wait(&self) -> Result<ExitStatus, Error> {
        refuse_in_async_context();
        if Machine::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        self.status(&self.machine.ended().blocking_wait())
    }

    /// As [`blocking_wait`](Self::blocking_wait), no longer than `limit`: Python's `join(timeout)`
    /// on a thread. `None` if the process has not ended by then.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    ///
    /// # Blocking
    ///
    /// Up to the limit.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, use `tokio::time::timeout` with
    /// [`wait`](Self::wait).
    #[track_caller]
    pub fn blocking_wait_timeout(&self, limit: Duration) -> Result<Option<ExitStatus>, Error> {
        refuse_in_async_context();
        if Machine::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        self.machine
            .ended()
            .blocking_wait_timeout(limit)
            .map(|ended| self.status(&ended))
            .transpose()
    }

    fn status(&self, ended: &Ended) -> Result<ExitStatus, Error> {
        ended.status.ok_or_else(|| Why::StatusUnknown { pid: self.pid() }.into())
    }

    /// Takes the pipe to its standard input, if that was [piped](crate::Stdio::piped). `None` the second
    /// time.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.streams.stdin.take()
    }

    /// Takes the pipe from its standard output, if that was [piped](crate::Stdio::piped). `None` the
    /// second time.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.streams.stdout.take()
    }

    /// Takes the pipe from its standard error, if that was [piped](crate::Stdio::piped). `None` the second
    /// time.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.streams.stderr.take()
    }
}

impl<R: DeserializeOwned> Process<R> {
    /// Asks for the function's value, and never waits: `None` until the process has ended.
    ///
    /// # Errors
    ///
    /// As awaiting it. The value stays with the handle: asked again, it is decoded again.
    pub fn try_join(&self) -> Option<Result<R, TaskError>> {
        match self.machine.ended().get() {
            Some(ended) => Some(self.decode(ended)),
            None if Machine::is_forked_copy() => Some(Err(self.forked())),
            None => None,
        }
    }

    /// Waits for the process's end on this thread, and gives the function's value.
    ///
    /// # Errors
    ///
    /// As awaiting it.
    ///
    /// # Blocking
    ///
    /// Until the process has ended. No runtime is needed.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, `.await` it.
    #[track_caller]
    pub fn blocking_join(self) -> Result<R, TaskError> {
        refuse_in_async_context();
        if Machine::is_forked_copy() {
            return self.try_join().unwrap_or_else(|| Err(self.forked()));
        }
        let ended = self.machine.ended().blocking_wait();
        self.decode(ended)
    }

    fn decode(&self, ended: Ended) -> Result<R, TaskError> {
        ended
            .outcome?
            .decode()
            .map_err(|e| TaskError::new(What::ResultDecode(e.to_string()), self.machine.function()))
    }

    /// Whoever would tell is in the original process.
    fn forked(&self) -> TaskError {
        TaskError::new(What::Forked, self.machine.function())
    }
}

impl<R: DeserializeOwned> Future for Process<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(self.unit.poll_unit(cx));
        loop {
            if let Some(result) = self.try_join() {
                // The value stays, so the handle may be awaited again.
                return self.unit.per_item(Poll::Ready(result));
            }
            match &mut self.waiting {
                Some(waiting) => {
                    let _ = ready!(Pin::new(waiting).poll(cx));
                    self.waiting = None;
                }
                None => self.waiting = self.machine.ended().waiter(),
            }
        }
    }
}

impl<R> Drop for Process<R> {
    fn drop(&mut self) {
        if self.kill_on_drop && !Machine::is_forked_copy() {
            // It fails for a process that has become another user's; that runs on, and is reaped.
            let _ = self.machine.kill();
        }
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("pid", &self.pid())
            .field("function", &self.machine.function())
            .finish_non_exhaustive()
    }
}
