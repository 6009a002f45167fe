//! What a worker, or a process of its own, may use of the machine.

use crate::error::{Error, Why};
use crate::wire::message;
use std::time::Duration;

/// A process with fewer descriptors than this could not even make the runtime of an async task.
const OPEN_FILES_MIN: u64 = 32;
/// The highest `oom_score_adj` (proc_pid_oom_score_adj(5)).
const OOM_SCORE_MAX: u16 = 1000;

/// What a worker may use of the machine, given to [`Builder::limits`](crate::Builder::limits), or a
/// process of its own, to [`ProcessBuilder::limits`](crate::ProcessBuilder::limits).
///
/// Each process sets its own limits before `init` and its first task, and nothing that it starts
/// can have more. What is not set here is as the application has it; where the application may
/// itself have no more than so much (its hard limit), neither has the worker, whatever is asked for
/// here.
///
/// These limits hold mistakes in check, not an enemy. Each counts for one process alone: a task
/// that starts others multiplies it. The sum is limited by a cgroup only, in which the application
/// is started.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::{Limits, Pool};
/// use std::time::Duration;
///
/// let limits = Limits::new().memory(2 << 30).task_cpu_time(Duration::from_secs(5)).core_size(0);
/// let pool = Pool::builder().workers(1).env("RUST_BACKTRACE", "0").limits(limits).build()?;
///
/// let error = pool.spawn(|| vec![1u8; 8 << 30].len(), ()).await.unwrap_err();
/// assert!(error.is_out_of_memory());
/// let error = pool.spawn(|| vec![1u8; 8 << 10].len(), ()).await;
/// assert_eq!(error?, 8 << 10);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "it does nothing until it is given to a builder"]
pub struct Limits {
    pub(crate) asked: message::Limits,
}

impl Limits {
    /// No limits but those that the application itself has.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes of address space the process may have (`RLIMIT_AS`, getrlimit(2)).
    ///
    /// It is the one limit of a process's memory that the kernel keeps. It counts what is *mapped*,
    /// touched or not: the program and its libraries (an idle worker has some ten to a hundred
    /// MiB), stacks of threads (2 MiB each, as std makes them), and what an allocator keeps in
    /// reserve (glibc: 128 MiB while a thread's first arena is made, 64 MiB after). So it is set
    /// with room to spare.
    ///
    /// What a task sees: the request for memory fails. `Vec` and its kin then end the process by
    /// SIGABRT ([`std::alloc::handle_alloc_error`]), which the task's error tells as
    /// [`is_out_of_memory`](crate::TaskError::is_out_of_memory); `try_reserve` gives an error, and
    /// so does what maps a file.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.asked.memory = Some(bytes);
        self
    }

    /// How much processor time the process may use in its whole life, all its threads together
    /// (`RLIMIT_CPU`). The kernel counts whole seconds: more are rounded up.
    ///
    /// When it has run out the process ends by SIGXCPU
    /// ([`is_cpu_limit`](crate::TaskError::is_cpu_limit)), or, if it handles, blocks or ignores
    /// that signal, by SIGKILL a second later. That costs the task that runs then, however
    /// little of the time it has used itself: for a pool [`task_cpu_time`](Self::task_cpu_time)
    /// is as a rule what is meant.
    pub fn cpu_time(mut self, limit: Duration) -> Self {
        self.asked.cpu_time =
            Some(limit.as_secs().saturating_add(u64::from(limit.subsec_nanos() > 0)));
        self
    }

    /// How much processor time one *sync* task may use: what the whole process uses (so threads
    /// that an earlier task left running count too) from when its arguments are decoded until
    /// its result is encoded. The kernel looks at every tick of its clock, some milliseconds.
    ///
    /// When it has run out the process ends by SIGXCPU, and the task's error is
    /// [`is_cpu_limit`](crate::TaskError::is_cpu_limit). Unlike a limit on time, it does not run
    /// while the task waits or the machine is busy with something else. A task that handles,
    /// blocks or ignores SIGXCPU gets round it.
    ///
    /// It does not hold for async tasks, several of which run side by side in one worker: no time
    /// could be told to be one task's. (It does for the one function of a
    /// [`Process`](crate::Process), sync or async.)
    pub fn task_cpu_time(mut self, limit: Duration) -> Self {
        self.asked.task_cpu_time = Some(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        self
    }

    /// How long a file may become by being written to or extended, in bytes (`RLIMIT_FSIZE`). Pipes
    /// and sockets are not counted; standard streams that are files are, and so is shared
    /// memory that a task makes.
    ///
    /// What a task sees: the write fails with [`FileTooLarge`](std::io::ErrorKind::FileTooLarge)
    /// (`EFBIG`). The signal that would kill the process, SIGXFSZ, is ignored in it, and in
    /// programs that it starts.
    pub fn file_size(mut self, bytes: u64) -> Self {
        self.asked.file_size = Some(bytes);
        self
    }

    /// How many descriptors the process may have open (`RLIMIT_NOFILE`), at least 32: the worker
    /// itself needs some, about ten with a runtime for async tasks. It may be more than the
    /// application's own soft limit.
    ///
    /// What a task sees: what would open one more fails with `EMFILE`.
    pub fn open_files(mut self, descriptors: u64) -> Self {
        self.asked.open_files = Some(descriptors);
        self
    }

    /// How many processes and threads there may be for this one to be allowed to start another
    /// (`RLIMIT_NPROC`).
    ///
    /// The kernel counts those of the *user*, all over the machine, not those of this process; and
    /// the limit does not hold for a user who may do everything (`CAP_SYS_RESOURCE` or
    /// `CAP_SYS_ADMIN`). With 0 a worker can start no process and no thread at all. To limit
    /// the processes of one application, give it a user or a cgroup of its own.
    ///
    /// What a task sees: starting a process or a thread fails with `EAGAIN`.
    pub fn processes(mut self, count: u64) -> Self {
        self.asked.processes = Some(count);
        self
    }

    /// How long a core dump may be, in bytes (`RLIMIT_CORE`); 0 for none. How a crash is told does
    /// not depend on it.
    pub fn core_size(mut self, bytes: u64) -> Self {
        self.asked.core_size = Some(bytes);
        self
    }

    /// How much sooner than the application the process is killed when the machine, or the cgroup,
    /// has run out of memory: so many thousandths of that memory it is taken to use beside what
    /// it uses. Added to the application's own `oom_score_adj` (proc_pid_oom_score_adj(5)), at
    /// most to 1000, which is *before all others*; 0 to 1000.
    ///
    /// Default: 300 for the workers of a pool, since one of them costs a task and the application
    /// costs everything; 0 for a [`Process`](crate::Process). Where there is no `/proc` to
    /// write to, it is left out.
    pub fn oom_score(mut self, raise: u16) -> Self {
        self.asked.oom_score = Some(raise);
        self
    }

    /// What makes no sense is an invalid option.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |reason: &str| {
            Err(Why::InvalidOption { option: "limits", reason: reason.into() }.into())
        };
        let asked = &self.asked;
        if asked.cpu_time == Some(0) || asked.task_cpu_time == Some(0) {
            return invalid("nothing runs in no processor time");
        }
        if asked.memory == Some(0) {
            return invalid("nothing runs in no memory");
        }
        if asked.open_files.is_some_and(|files| files < OPEN_FILES_MIN) {
            return invalid("open_files: a worker needs 32 descriptors");
        }
        if asked.oom_score.is_some_and(|raise| raise > OOM_SCORE_MAX) {
            return invalid("oom_score is at most 1000");
        }
        Ok(())
    }

    /// As the welcome says it; `None` if nothing is asked for.
    pub(crate) fn into_message(self) -> Option<message::Limits> {
        (self != Self::default()).then_some(self.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_under_which_nothing_could_run_are_refused() {
        for limits in [
            Limits::new().cpu_time(Duration::ZERO),
            Limits::new().task_cpu_time(Duration::ZERO),
            Limits::new().memory(0),
            Limits::new().open_files(31),
            Limits::new().oom_score(1001),
        ] {
            assert_eq!(
                limits.check().expect_err("it makes no sense").kind(),
                crate::ErrorKind::InvalidOption,
                "{limits:?}"
            );
        }
        Limits::new()
            .cpu_time(Duration::from_nanos(1))
            .processes(0)
            .file_size(0)
            .core_size(0)
            .oom_score(0)
            .check()
            .expect("they make sense");
    }

    #[test]
    fn processor_time_is_rounded_up() {
        for (nanos, seconds) in [(1, 1), (1_000_000_000, 1), (1_000_000_001, 2)] {
            assert_eq!(
                Limits::new().cpu_time(Duration::from_nanos(nanos)).asked.cpu_time,
                Some(seconds)
            );
        }
        assert_eq!(
            Limits::new().cpu_time(Duration::MAX).asked.cpu_time,
            Some(u64::MAX),
            "and not over the end"
        );
    }
}
