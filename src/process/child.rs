//! The one owner of a child process: the right to signal it, and the one reaping.
//!
//! Rules, cited by number below:
//!
//! 1. The child is known by its pidfd. A signal through a pidfd can never reach another process, so
//!    it needs no lock and no state: after the reaping the kernel says `ESRCH`.
//! 2. A *number* (of a process group, on kernels before 6.9) is signalled only while
//!    `waitid(WNOWAIT)` says that the leader is still our unreaped child, and under the lock that
//!    reaping takes, so it isn't us who frees the number between the look and the signal. (A host
//!    that itself reaps with `waitpid(-1)` could do so in that instant, and the kernel would have
//!    to go through all its numbers in it too: what is left of the risk on old kernels.)
//! 3. Before the leader is reaped, the rest of its group is killed: later the number might be
//!    somebody else's.
//! 4. `ECHILD` is no error: the host ignores SIGCHLD or reaped it with `waitpid(-1)`. How it ended
//!    is then asked of the kernel (`PIDFD_GET_INFO`, Linux 6.15), else it is unknown. That the
//!    process *has* ended is certain, since [`Child::adopt`] made sure that it was ours.
//! 5. In a forked copy of the application nothing here signals, reaps or even locks: the child
//!    belongs to the original.
//!
//! ```text
//!            try_reap: still running
//!                 ┌──┐
//!   adopt ──> unreaped ──(try_reap: ended)──> reaped, Exit remembered
//!                 │
//!              (drop) ──> killed ──(reaped at once, or by whoever takes the orphan)──> gone
//! ```

use crate::lock::Lock;
use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use nix::libc::{self, c_int};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::fork;
use super::sys::{self, ExitInfo, Reap, Target, Waited};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The number that it had; it may be another process's by now.
    pub(crate) pid: u32,
    /// Its status; `None` if somebody else reaped it and the kernel cannot tell.
    pub(crate) status: Option<ExitStatus>,
}

impl Exit {
    /// Whether it is known to have ended by this signal.
    pub(crate) fn is_by(&self, signal: c_int) -> bool {
        self.status.and_then(|status| status.signal()) == Some(signal)
    }
}

/// Why a process that has just been started has no owner.
#[derive(Debug)]
pub(crate) enum AdoptError {
    /// It ended at once and is no longer our child: the host reaps, or ignores SIGCHLD. How it
    /// ended is unknown.
    Gone {
        /// The number that it had.
        pid: u32,
    },
    /// The kernel gave no pidfd, or would not look at it (no descriptors left; older than Linux
    /// 5.4; forbidden). The process was killed and reaped.
    Unowned {
        /// The number that it had.
        pid: u32,
        /// What the kernel said.
        error: io::Error,
    },
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone { pid } => write!(
                f,
                "process {pid} ended at once and was reaped by the host program, exit status unknown"
            ),
            Self::Unowned { pid, error } => {
                write!(f, "cannot watch process {pid} through a pidfd, so it was killed: {error}")
            }
        }
    }
}

impl Error for AdoptError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Gone { .. } => None,
            Self::Unowned { error, .. } => Some(error),
        }
    }
}

/// One child process, owned.
///
/// All methods take `&self` and may be called from several threads; none waits for the child.
///
/// # Drop
///
/// Kills a child that has not been reaped, with its group, and reaps it: at once if it ends at
/// once, else through the sink of [`set_orphan_sink`].
#[derive(Debug)]
pub(crate) struct Child {
    /// Taken only by `drop`.
    process: Option<Process>,
}

impl Child {
    /// Takes over a process that has just been started by this process, and that nobody else will
    /// reap or signal.
    ///
    /// `group` says that it leads a process group of its own.
    ///
    /// # Errors
    ///
    /// See [`AdoptError`]. In no case does a process of ours go on without an owner.
    ///
    /// # Blocking
    ///
    /// Only in the case of [`AdoptError::Unowned`]: for the end of a process that has been killed,
    /// at most a second.
    pub(crate) fn adopt(pid: u32, group: bool) -> Result<Self, AdoptError> {
        sweep_orphans();
        let unowned = |error| {
            kill_unowned(pid, group);
            AdoptError::Unowned { pid, error }
        };
        // Rule 5 needs it, however this came about.
        fork::arm().map_err(unowned)?;
        let pidfd = match sys::pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            // It is gone, which for an unreaped child cannot be.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                return Err(AdoptError::Gone { pid });
            }
            Err(error) => return Err(unowned(error)),
        };
        // The number may have been freed and given away before the pidfd was opened: then it's no
        // child of ours.
        match sys::wait_pidfd(pidfd.as_fd(), Reap::Peek) {
            Ok(Waited::StillRunning | Waited::Exited(..)) => {}
            Ok(Waited::NoChild) => return Err(AdoptError::Gone { pid }),
            Err(error) => return Err(unowned(error)),
        }
        Ok(Self {
            process: Some(Process {
                pid,
                group,
                pidfd,
                exit: OnceLock::new(),
                reaping: Lock::new(()),
            }),
        })
    }

    /// Its number: for people to read. To signal it, use the methods.
    pub(crate) fn pid(&self) -> u32 {
        self.process().pid
    }

    /// A descriptor that is readable once the process has ended (all its threads; pidfd_open(2)),
    /// and stays so.
    ///
    /// One rare case: while a debugger traces the child, it is readable some time before
    /// [`try_reap`](Self::try_reap) gives an exit.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.process().pidfd.as_fd()
    }

    /// Whether it has ended, reaped or not. It asks the kernel, so it is never behind.
    pub(crate) fn has_ended(&self) -> bool {
        self.process().exit.get().is_some() || is_readable(self.pidfd())
    }

    /// Kills it at once (SIGKILL), with all that is in its process group if it leads one.
    ///
    /// `Ok` also if it has already ended. It is not reaped yet when this returns.
    ///
    /// # Errors
    ///
    /// When the kernel refuses (`EPERM`: it has become another user's), and in a forked copy.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.process().kill()
    }

    /// Sends a signal to the process alone; numbers as in signal(7), real-time ones too.
    ///
    /// `Ok`, and nothing happens, if it has already ended.
    ///
    /// # Errors
    ///
    /// When there is no such signal, when the kernel refuses, and in a forked copy.
    pub(crate) fn signal(&self, signal: c_int) -> io::Result<()> {
        self.process().signal(signal)
    }

    /// Sends a signal to all that is in its process group if it leads one, else to the process
    /// alone.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    #[cfg(test)]
    pub(crate) fn signal_group(&self, signal: c_int) -> io::Result<()> {
        self.process().signal_group(signal)
    }

    /// Reaps it if it has ended, and says how; `None` while it runs. Once it has given an exit,
    /// always the same.
    ///
    /// Before it is reaped, what is left of its process group is killed.
    pub(crate) fn try_reap(&self) -> Option<Exit> {
        self.process().try_reap()
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("only drop takes the process out")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Rule 5; its pidfd is closed in the copy only.
        if fork::is_forked_copy() {
            return;
        }
        let Some(process) = self.process.take() else {
            return;
        };
        if process.exit.get().is_some() {
            return;
        }
        // An error leaves a process that we may not kill; whoever gets the orphan will see it end
        // some day.
        let _ = process.kill();
        if process.try_reap().is_none() {
            hand_over(Orphan { process });
        }
    }
}

/// A child whose owner was dropped: it has been killed, and waits to be reaped.
///
/// Dropping an orphan that isn't reaped leaves a zombie.
#[derive(Debug)]
pub(crate) struct Orphan {
    process: Process,
}

impl Orphan {
    /// Takes over a child that the program has left which ran in this process before. Nobody else
    /// knows of it; what it has left of its group, if it led one, is not ours to kill.
    ///
    /// `None` if there is no such child, or no descriptor for it.
    pub(crate) fn inherited(pid: u32) -> Option<Self> {
        let pidfd = sys::pidfd_open(pid).ok()?;
        // Before `main` a standard stream may be closed, and this must not become one.
        if pidfd.as_raw_fd() <= 2 {
            return None;
        }
        match sys::wait_pidfd(pidfd.as_fd(), Reap::Peek) {
            Ok(Waited::StillRunning | Waited::Exited(..)) => {}
            Ok(Waited::NoChild) | Err(_) => return None,
        }
        let (exit, reaping) = (OnceLock::new(), Lock::new(()));
        Some(Self { process: Process { pid, group: false, pidfd, exit, reaping } })
    }

    /// Reaps it now if it has ended, else when it has.
    pub(crate) fn reap_or_hand_over(self) {
        if self.try_reap().is_none() {
            hand_over(self);
        }
    }

    /// Its number: for people to read.
    #[cfg(test)]
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }

    /// As [`Child::pidfd`].
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd.as_fd()
    }

    /// As [`Child::try_reap`].
    pub(crate) fn try_reap(&self) -> Option<Exit> {
        self.process.try_reap()
    }
}

/// Where orphans go.
enum Sink {
    /// Nobody has said yet: they are kept, and looked at with every adoption and every new orphan.
    Kept(Vec<Orphan>),
    /// To this function.
    Given(fn(Orphan)),
}

/// Held for a moment: no orphan is handed over under it.
static SINK: Lock<Sink> = Lock::new(Sink::Kept(Vec::new()));

/// From now on, orphans go to this function; so do those that have waited for it, at once.
///
/// It is called from `drop`, in any thread, and must neither block nor panic.
pub(crate) fn set_orphan_sink(sink: fn(Orphan)) {
    let before = {
        let mut current = SINK.lock();
        std::mem::replace(&mut *current, Sink::Given(sink))
    };
    if let Sink::Kept(orphans) = before {
        orphans.into_iter().for_each(sink);
    }
}

fn hand_over(orphan: Orphan) {
    sweep_orphans();
    let sink = {
        let mut sink = SINK.lock();
        match &mut *sink {
            Sink::Kept(orphans) => {
                orphans.push(orphan);
                return;
            }
            Sink::Given(sink) => *sink,
        }
    };
    sink(orphan);
}

/// Reaps the kept orphans that have ended.
fn sweep_orphans() {
    // Rule 5, before the lock.
    if fork::is_forked_copy() {
        return;
    }
    let mut sink = SINK.lock();
    if let Sink::Kept(orphans) = &mut *sink {
        orphans.retain(|orphan| orphan.try_reap().is_none());
    }
}

/// What [`Child`] and [`Orphan`] have in common.
#[derive(Debug)]
struct Process {
    pid: u32,
    /// It leads a process group, whose number is `pid`.
    group: bool,
    pidfd: OwnedFd,
    /// Set once, by the one who reaped it.
    exit: OnceLock<Exit>,
    /// Whoever holds it may reap, or rely on us not reaping (rule 2). Held over calls that never
    /// block.
    reaping: Lock<()>,
}

impl Process {
    fn kill(&self) -> io::Result<()> {
        fork::refuse_in_copy()?;
        if self.exit.get().is_some() {
            return Ok(());
        }
        let group = if self.group { self.signal_members(libc::SIGKILL, None) } else { Ok(()) };
        // Also by itself: it may have left the group that it led.
        self.signal_process(libc::SIGKILL).and(group)
    }

    fn signal(&self, signal: c_int) -> io::Result<()> {
        fork::refuse_in_copy()?;
        if self.exit.get().is_some() {
            return Ok(());
        }
        self.signal_process(signal)
    }

    #[cfg(test)]
    fn signal_group(&self, signal: c_int) -> io::Result<()> {
        if !self.group {
            return self.signal(signal);
        }
        fork::refuse_in_copy()?;
        if self.exit.get().is_some() {
            return Ok(());
        }
        self.signal_members(signal, None)
    }

    fn try_reap(&self) -> Option<Exit> {
        if fork::is_forked_copy() {
            return None;
        }
        if let Some(exit) = self.exit.get() {
            return Some(*exit);
        }
        let reaping = self.lock();
        // Another thread may have been faster.
        if let Some(exit) = self.exit.get() {
            return Some(*exit);
        }
        let status = self.reap(&reaping)?;
        let pid = self.pid;
        Some(*self.exit.get_or_init(|| Exit { pid, status }))
    }

    /// `None` while it runs; its status, if that is known, once it is gone.
    fn reap(&self, reaping: &MutexGuard<'_, ()>) -> Option<Option<ExitStatus>> {
        let pidfd = self.pidfd.as_fd();
        match sys::wait_pidfd(pidfd, Reap::Peek) {
            Ok(Waited::StillRunning) => None,
            Ok(Waited::Exited(status, _)) => {
                self.kill_rest(reaping);
                // If a host that reaps was faster just now, it is as good: we have seen the status.
                let _ = sys::wait_pidfd(pidfd, Reap::Take);
                Some(Some(status))
            }
            Ok(Waited::NoChild) => self.reaped_by_host(reaping),
            // No kernel that gives pidfds says so; a filter of system calls might. Whether it has
            // ended, its pidfd tells all the same.
            Err(_) => {
                if is_readable(pidfd) {
                    self.reaped_by_host(reaping)
                } else {
                    None
                }
            }
        }
    }

    /// Rule 4.
    fn reaped_by_host(&self, reaping: &MutexGuard<'_, ()>) -> Option<Option<ExitStatus>> {
        /// The kernel lets its parent forget a child some instructions before it notes the exit.
        /// That long, and no longer, it pays to look again; otherwise the next call will.
        const LOOKS: u32 = 100;
        for _ in 0..LOOKS {
            match sys::exit_info(self.pidfd.as_fd()) {
                ExitInfo::Exited(status) => {
                    self.kill_rest(reaping);
                    return Some(Some(status));
                }
                ExitInfo::Unknown => {
                    self.kill_rest(reaping);
                    return Some(None);
                }
                ExitInfo::Present => thread::yield_now(),
            }
        }
        None
    }

    /// Rule 3. What is left of the group cannot be killed only where it has become another user's.
    fn kill_rest(&self, reaping: &MutexGuard<'_, ()>) {
        if self.group {
            let _ = self.signal_members(libc::SIGKILL, Some(reaping));
        }
    }

    /// Rule 1.
    fn signal_process(&self, signal: c_int) -> io::Result<()> {
        ignore_gone(sys::pidfd_send_signal(self.pidfd.as_fd(), signal, Target::Process))
    }

    fn signal_members(
        &self,
        signal: c_int,
        reaping: Option<&MutexGuard<'_, ()>>,
    ) -> io::Result<()> {
        match sys::pidfd_send_signal(self.pidfd.as_fd(), signal, Target::Group) {
            // Before Linux 6.9, or no such signal, which the other way says too.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.signal_members_by_number(signal, reaping)
            }
            result => ignore_gone(result),
        }
    }

    /// Rule 2.
    fn signal_members_by_number(
        &self,
        signal: c_int,
        reaping: Option<&MutexGuard<'_, ()>>,
    ) -> io::Result<()> {
        let _reaping = reaping.is_none().then(|| self.lock());
        if self.exit.get().is_some() {
            return Ok(());
        }
        match sys::wait_pidfd(self.pidfd.as_fd(), Reap::Peek)? {
            Waited::StillRunning | Waited::Exited(..) => {
                ignore_gone(sys::kill_group(self.pid, signal))
            }
            Waited::NoChild => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.reaping.lock()
    }
}

fn is_readable(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1))
}

/// There is nobody left to signal: that is what was wanted.
fn ignore_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result,
    }
}

/// Ends a child that could not get a pidfd, by its number, as long as that is provably a child of
/// ours.
fn kill_unowned(pid: u32, group: bool) {
    /// A process that has been killed right after its start ends within some milliseconds. One that
    /// does not (stuck in the kernel) is left as a zombie to be.
    const LOOKS: u32 = 1000;
    for _ in 0..LOOKS {
        match sys::wait_pid(pid, Reap::Peek) {
            Ok(found @ (Waited::StillRunning | Waited::Exited(..))) => {
                if group {
                    let _ = sys::kill_group(pid, libc::SIGKILL);
                }
                if found == Waited::StillRunning {
                    let _ = sys::kill_process(pid, libc::SIGKILL);
                } else {
                    let _ = sys::wait_pid(pid, Reap::Take);
                    return;
                }
            }
            Ok(Waited::NoChild) | Err(_) => return,
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "tests that ignore a signal and fork")]
#[expect(clippy::zombie_processes, reason = "the child is ours to reap, not std's")]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{ChildStdin, Command, Stdio};

    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigHandler, Signal, signal};
    use nix::sys::wait::waitpid;

    use super::*;
    use crate::process::testing::{
        forked, has_ended, in_own_process, is_own_process, process_state, wait_until,
    };

    /// A shell that runs a script, in which `read _` waits for the end of its input; and the first
    /// line that it prints.
    struct Shell {
        child: Child,
        input: ChildStdin,
        line: String,
    }

    fn start(script: &str, group: bool) -> std::process::Child {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        if group {
            command.process_group(0);
        }
        command.spawn().expect("spawn")
    }

    fn shell(script: &str, group: bool) -> Shell {
        let mut started = start(script, group);
        let child = Child::adopt(started.id(), group).expect("adopt");
        let mut line = String::new();
        BufReader::new(started.stdout.take().expect("piped")).read_line(&mut line).expect("read");
        Shell { child, input: started.stdin.take().expect("piped"), line: line.trim().to_owned() }
    }

    /// A group leader with a grandchild, whose number it prints. It then waits for its input and
    /// exits with 5.
    const WITH_GRANDCHILD: &str = "sleep 1000 <&- >&- 2>&- & echo $!; read _; exit 5";

    fn reaped(child: &Child) -> Exit {
        wait_until("the end of the child", || child.try_reap().is_some());
        let exit = child.try_reap().expect("remembered");
        assert_eq!(exit.pid, child.pid());
        assert_ne!(process_state(exit.pid), Some('Z'), "a zombie is left");
        exit
    }

    fn status(child: &Child) -> ExitStatus {
        reaped(child).status.expect("we reaped it ourselves")
    }

    use super::is_readable as readable;

    fn wait_zombie(pid: u32) {
        wait_until("a zombie", || process_state(pid) == Some('Z'));
    }

    #[test]
    fn exit_codes_are_told() {
        for code in [0, 1, 77, 255] {
            let shell = shell(&format!("echo; read _; exit {code}"), code == 1);
            assert_eq!(shell.child.try_reap(), None);
            assert!(!readable(shell.child.pidfd()));
            drop(shell.input);
            assert_eq!(status(&shell.child).code(), Some(code));
            assert!(readable(shell.child.pidfd()));
        }
    }

    #[test]
    fn signals_are_told_real_time_ones_too() {
        for number in [libc::SIGTERM, libc::SIGKILL, libc::SIGRTMIN() + 3] {
            let shell = shell("echo; exec sleep 1000", true);
            shell.child.signal(number).expect("signal");
            assert_eq!(status(&shell.child).signal(), Some(number));
        }
        let shell = shell("echo; exec sleep 1000", true);
        shell.child.signal_group(libc::SIGTERM).expect("signal");
        assert_eq!(status(&shell.child).signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn stopped_child_is_killed() {
        let shell = shell("echo; kill -STOP $$", false);
        let pid = shell.child.pid();
        wait_until("stop", || process_state(pid) == Some('T'));
        assert_eq!(shell.child.try_reap(), None);
        shell.child.kill().expect("kill");
        assert_eq!(status(&shell.child).signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn kill_is_harmless_at_any_time() {
        for group in [false, true] {
            let shell = shell("echo; read _; exit 4", group);
            let Shell { child, input, .. } = shell;
            drop(input);
            wait_zombie(child.pid());
            child.kill().expect("kill a zombie");
            child.kill().expect("kill it twice");
            assert_eq!(status(&child).code(), Some(4));
            child.kill().expect("kill after the reaping");
            child.signal(libc::SIGTERM).expect("signal it");
            child.signal_group(libc::SIGTERM).expect("signal its group");
        }
        let Shell { child, .. } = shell("echo; exec sleep 1000", true);
        child.kill().expect("kill");
        child.kill().expect("kill twice");
        assert_eq!(status(&child).signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn unknown_signals_are_refused() {
        let shell = shell("echo; read _", true);
        for number in [-1, 65, 1000] {
            let one = shell.child.signal(number).expect_err("no such signal");
            let all = shell.child.signal_group(number).expect_err("no such signal");
            assert_eq!(one.raw_os_error(), Some(libc::EINVAL));
            assert_eq!(all.raw_os_error(), Some(libc::EINVAL));
        }
        assert_eq!(shell.child.try_reap(), None);
    }

    #[test]
    fn group_kill_takes_grandchildren() {
        let shell = shell(WITH_GRANDCHILD, true);
        let grandchild = shell.line.parse().expect("a number");
        assert!(!has_ended(grandchild));
        shell.child.kill().expect("kill");
        assert_eq!(status(&shell.child).signal(), Some(libc::SIGKILL));
        wait_until("the grandchild's end", || has_ended(grandchild));
    }

    #[test]
    fn group_ends_with_its_leader() {
        let shell = shell(WITH_GRANDCHILD, true);
        let grandchild = shell.line.parse().expect("a number");
        drop(shell.input);
        wait_zombie(shell.child.pid());
        assert!(!has_ended(grandchild));
        assert_eq!(status(&shell.child).code(), Some(5));
        wait_until("the grandchild's end", || has_ended(grandchild));
    }

    #[test]
    fn without_a_group_grandchildren_go_on() {
        let shell = shell(WITH_GRANDCHILD, false);
        let grandchild = shell.line.parse().expect("a number");
        shell.child.kill().expect("kill");
        assert_eq!(status(&shell.child).signal(), Some(libc::SIGKILL));
        assert!(!has_ended(grandchild));
        sys::kill_process(grandchild, libc::SIGKILL).expect("kill");
    }

    #[test]
    fn group_by_number_is_signalled_while_the_leader_is_ours() {
        let Shell { child, line, input, .. } = shell(WITH_GRANDCHILD, true);
        let grandchild = line.parse().expect("a number");
        let process = child.process();
        drop(input);
        wait_zombie(process.pid);
        process.signal_members_by_number(libc::SIGKILL, None).expect("kill");
        wait_until("the grandchild's end", || has_ended(grandchild));
        assert_eq!(status(&child).code(), Some(5));
        process.signal_members_by_number(libc::SIGKILL, None).expect("nothing to kill");
    }

    #[test]
    fn threads_reap_once_and_agree() {
        let Shell { child, input, .. } = shell("echo; read _; exit 9", true);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(status(&child).code(), Some(9)));
            }
            scope.spawn(|| {
                for _ in 0..100 {
                    child.signal_group(0).expect("look");
                    child.signal(0).expect("look");
                }
            });
            drop(input);
        });
    }

    #[test]
    fn what_is_not_our_child_is_not_adopted() {
        for pid in [1, std::process::id(), std::os::unix::process::parent_id()] {
            let error = Child::adopt(pid, true).expect_err("not ours");
            assert!(matches!(error, AdoptError::Gone { .. }), "{error:?}");
        }
        let mut ended = start("exit 1", false);
        ended.wait().expect("wait");
        let error = Child::adopt(ended.id(), true).expect_err("reaped");
        assert!(matches!(error, AdoptError::Gone { .. }), "{error:?}");
    }

    #[test]
    fn host_that_ignores_sigchld() {
        in_own_process("process::child::tests::own_process_sigchld_ignored");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_sigchld_ignored() {
        if !is_own_process() {
            return;
        }
        // SAFETY: it installs no handler.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.expect("signal");
        for _ in 0..200 {
            let Shell { child, input, .. } = shell("echo; read _; exit 6", true);
            assert_eq!(child.try_reap(), None);
            drop(input);
            // Without a pause, so as to meet the instant in which the child is nobody's and its
            // exit not yet noted.
            while child.try_reap().is_none() {}
            expect_if_told(reaped(&child), 6 << 8);
        }
        let shell = shell(WITH_GRANDCHILD, true);
        let grandchild = shell.line.parse().expect("a number");
        shell.child.kill().expect("kill");
        expect_if_told(reaped(&shell.child), libc::SIGKILL);
        wait_until("the grandchild's end", || has_ended(grandchild));

        let ended = start("exit 1", false);
        wait_until("its end", || process_state(ended.id()).is_none());
        let error = Child::adopt(ended.id(), true).expect_err("gone");
        assert!(matches!(error, AdoptError::Gone { .. }), "{error:?}");
    }

    #[test]
    fn host_that_reaps_every_child() {
        in_own_process("process::child::tests::own_process_thief");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_thief() {
        if !is_own_process() {
            return;
        }
        let Shell { child, input, .. } = shell(WITH_GRANDCHILD, true);
        drop(input);
        waitpid(None, None).expect("steal");
        child.kill().expect("kill what is gone");
        child.signal(libc::SIGTERM).expect("signal what is gone");
        child
            .process()
            .signal_members_by_number(libc::SIGKILL, None)
            .expect("the number is not ours any more");
        expect_if_told(reaped(&child), 5 << 8);

        // The group of a leader that a thief has reaped can be killed where the kernel knows it by
        // itself.
        let shell = shell(WITH_GRANDCHILD, true);
        let grandchild = shell.line.parse().expect("a number");
        drop(shell.input);
        waitpid(None, None).expect("steal");
        assert!(!has_ended(grandchild));
        expect_if_told(reaped(&shell.child), 5 << 8);
        if kernel_at_least(6, 9) {
            wait_until("the grandchild's end", || has_ended(grandchild));
        }

        // At the same time, many times.
        let stop = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
                }
            });
            for _ in 0..100 {
                let started = start("read _; exit 8", true);
                let child = Child::adopt(started.id(), true).expect("adopt");
                drop(started);
                expect_if_told(reaped(&child), 8 << 8);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    fn kernel_at_least(major: u32, minor: u32) -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc");
        let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
        let mut next = || numbers.next().expect("a number").expect("a number");
        (next(), next()) >= (major, minor)
    }

    /// Where the kernel tells how a child ended that another has reaped, it must be this; else
    /// unknown.
    fn expect_if_told(exit: Exit, raw: i32) {
        match exit.status {
            Some(status) => assert_eq!(status, ExitStatus::from_raw(raw)),
            None => assert!(!kernel_at_least(6, 15), "unknown"),
        }
    }

    #[test]
    fn child_without_a_pidfd_does_not_go_on() {
        in_own_process("process::child::tests::own_process_no_descriptors");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_no_descriptors() {
        if !is_own_process() {
            return;
        }
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
        for group in [false, true] {
            let mut started = start(WITH_GRANDCHILD, group);
            let pid = started.id();
            let mut line = String::new();
            BufReader::new(started.stdout.take().expect("piped"))
                .read_line(&mut line)
                .expect("read");
            setrlimit(Resource::RLIMIT_NOFILE, 0, hard).expect("setrlimit");
            let error = Child::adopt(pid, group).expect_err("no descriptor");
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("setrlimit");
            let AdoptError::Unowned { error, .. } = error else {
                panic!("{error:?}");
            };
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
            assert_eq!(process_state(pid), None, "it goes on, or is a zombie");
            let grandchild = line.trim().parse().expect("a number");
            if group {
                wait_until("the grandchild's end", || has_ended(grandchild));
            } else {
                sys::kill_process(grandchild, libc::SIGKILL).expect("kill");
            }
        }
    }

    #[test]
    fn dropped_child_is_killed_and_reaped() {
        in_own_process("process::child::tests::own_process_drop");
    }

    static GIVEN: Lock<Vec<Orphan>> = Lock::new(Vec::new());

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_drop() {
        if !is_own_process() {
            return;
        }
        // Ended already: reaped at once.
        let Shell { child, input, .. } = shell("echo; read _", true);
        let pid = child.pid();
        drop(input);
        wait_zombie(pid);
        drop(child);
        assert_eq!(process_state(pid), None);

        // Nobody takes orphans yet: the next adoption reaps them.
        let Shell { child, line, .. } = shell(WITH_GRANDCHILD, true);
        let grandchild = line.parse().expect("a number");
        let pid = child.pid();
        drop(child);
        wait_until("its end", || has_ended(pid) && has_ended(grandchild));
        let _ = Child::adopt(1, false);
        assert_eq!(process_state(pid), None);

        // Whoever takes them gets those that wait, and later ones.
        let sink = |orphan| GIVEN.lock().push(orphan);
        let mut pids = Vec::new();
        for round in 0..40 {
            let Shell { child, .. } = shell("echo; exec sleep 1000", true);
            pids.push(child.pid());
            drop(child);
            if round == 20 {
                set_orphan_sink(sink);
            }
        }
        wait_until("their end", || pids.iter().all(|&pid| has_ended(pid)));
        for orphan in GIVEN.lock().drain(..) {
            assert!(readable(orphan.pidfd()));
            let exit = orphan.try_reap().expect("ended");
            assert_eq!(exit.pid, orphan.pid());
        }
        for pid in pids {
            assert_eq!(process_state(pid), None);
        }
    }

    #[test]
    fn forked_copy_touches_nothing() {
        in_own_process("process::child::tests::own_process_forked_copy");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_forked_copy() {
        if !is_own_process() {
            return;
        }
        let Shell { child, input, .. } = shell("echo; read _; exit 2", true);
        let held = child.process().lock();
        let code = forked(|| {
            // A lock that another thread held at the fork is never opened in the copy.
            let refused =
                [child.kill(), child.signal(libc::SIGTERM), child.signal_group(libc::SIGTERM)];
            assert!(refused.iter().all(Result::is_err));
            assert_eq!(child.try_reap(), None);
            // SAFETY: the copy of `child` is not used again: this process ends.
            drop(unsafe { std::ptr::read(&raw const child) });
            let sink = SINK.lock();
            let Sink::Kept(orphans) = &*sink else {
                return 1;
            };
            assert!(orphans.is_empty());
            0
        });
        assert_eq!(code, 0);
        drop(held);
        assert_eq!(child.try_reap(), None);
        assert_ne!(process_state(child.pid()), Some('Z'));
        drop(input);
        assert_eq!(status(&child).code(), Some(2));
    }
}
