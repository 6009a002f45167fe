//! The threads that start processes, the *launchers*.
//!
//! To start a process is to wait until it has executed its program (vfork(2), which `posix_spawn`
//! is built on). As a rule that takes a millisecond. But a child that is stopped or frozen before
//! its exec, or whose program lies on a file system that does not answer, keeps the thread that
//! starts it for as long as that lasts. So it is a thread that nothing else waits for:
//!
//! * There is one launcher. Only when it has been at one start for [`STUCK`] and others wait, there
//!   is one more. None of them ever ends, since the parent-death signal of a child is bound to the
//!   *thread* that spawned it (prctl(2)).
//! * A start that takes longer than its limit is given up: whoever waits for it is told, and what
//!   it starts later on is dropped, and thereby killed and reaped. One that is called off is told
//!   of when it has ended, like any.
//! * In both cases the child that has not executed its program is killed. Its number is known by
//!   then to nobody but the kernel, which lists the children of each thread (proc_tid_children(5))
//!   and says which of them have not executed anything. Where it does not list them, or where a
//!   child does not end by SIGKILL, the thread goes on when the child does.
//!
//! The clock of all this is the supervisor thread's (`supervisor.rs`), and that of those who wait.

use super::supervisor;
use crate::lock::Lock;
use crate::panics::catch_user_panic;
use crate::process::sys::{self, Target};
use crate::process::thread::{self, OwnThread};
use crate::process::{fork, inherited};
use nix::libc;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, PoisonError};
use std::time::{Duration, Instant};

/// A start that others wait for, and that takes longer, gets them another launcher.
const STUCK: Duration = Duration::from_secs(1);
/// So many launchers there are at most: with all of them stuck, starts wait for their limits.
const LAUNCHERS: usize = 16;
/// How long after a child has been looked for, to kill it, it is looked for again.
const KILL_AGAIN: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce() + Send>;

/// One start.
pub(crate) struct Launch {
    /// When it is given up.
    until: Option<Instant>,
    is_off: AtomicBool,
    run: Lock<Option<Job>>,
    give_up: Lock<Option<Job>>,
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch").field("is_off", &self.is_off).finish_non_exhaustive()
    }
}

impl Launch {
    /// A start by `job`. `done` gets what the job gave, or `None` when the start was given up; it
    /// must not wait for anything. If the job panics, `done` is dropped.
    pub(crate) fn new<T: 'static>(
        limit: Option<Duration>,
        job: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(Option<T>) + Send + 'static,
    ) -> Arc<Self> {
        let done = Arc::new(Lock::new(Some(done)));
        let told = Arc::clone(&done);
        let run = move || {
            let launched = catch_user_panic(job);
            let done = done.lock().take();
            if let (Some(done), Some(launched)) = (done, launched) {
                done(Some(launched));
            }
        };
        let give_up = move || {
            let done = told.lock().take();
            if let Some(done) = done {
                done(None);
            }
        };
        Arc::new(Self {
            until: limit.and_then(|limit| Instant::now().checked_add(limit)),
            is_off: AtomicBool::new(false),
            run: Lock::new(Some(Box::new(run))),
            give_up: Lock::new(Some(Box::new(give_up))),
        })
    }

    /// Kills its child if that has not executed its program. One that has, the job gives.
    pub(crate) fn call_off(&self) {
        self.is_off.store(true, Ordering::Release);
        supervisor::ring();
    }

    fn run(&self) {
        let run = self.run.lock().take();
        if let Some(run) = run {
            run();
        }
    }

    /// Returns when whoever waits for it has been told, by this thread or by another one.
    fn give_up(&self) {
        let mut give_up = self.give_up.lock();
        if let Some(give_up) = give_up.take() {
            give_up();
        }
    }
}

struct UnderWay {
    launch: Arc<Launch>,
    /// The thread that is at it.
    tid: i32,
    since: Instant,
    /// When its child is looked for and killed.
    kill_at: Option<Instant>,
}

struct Launchers {
    queue: VecDeque<Arc<Launch>>,
    under_way: Vec<UnderWay>,
    threads: usize,
    idle: usize,
    /// When the last one was begun, or could not be.
    grown: Option<Instant>,
}

static LAUNCHERS_STATE: Lock<Launchers> = Lock::new(Launchers {
    queue: VecDeque::new(),
    under_way: Vec::new(),
    threads: 0,
    idle: 0,
    grown: None,
});
static QUEUED: Condvar = Condvar::new();

/// Starts the first launcher, unless it runs. Called once at a time, with the supervisor's start.
pub(super) fn start() -> io::Result<()> {
    if LAUNCHERS_STATE.lock().threads == 0 {
        grow()?;
    }
    Ok(())
}

fn grow() -> io::Result<()> {
    LAUNCHERS_STATE.lock().threads += 1;
    thread::spawn("procpool-launcher", run).inspect_err(|_| LAUNCHERS_STATE.lock().threads -= 1)
}

fn run() {
    let _registered = OwnThread::register();
    let tid = nix::unistd::gettid().as_raw();
    let mut state = LAUNCHERS_STATE.lock();
    loop {
        let Some(launch) = state.queue.pop_front() else {
            state.idle += 1;
            state = QUEUED.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        let since = Instant::now();
        state.under_way.push(UnderWay { launch: Arc::clone(&launch), tid, since, kill_at: None });
        drop(state);
        launch.run();
        state = LAUNCHERS_STATE.lock();
        state.under_way.retain(|one| one.tid != tid);
    }
}

/// Has a launcher do it. In a forked copy it is dropped.
pub(crate) fn begin(launch: Arc<Launch>) {
    if fork::is_forked_copy() {
        return;
    }
    LAUNCHERS_STATE.lock().queue.push_back(launch);
    QUEUED.notify_one();
    supervisor::ring();
}

/// Why nothing was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotLaunched {
    /// Its limit is over.
    TooLate,
    /// There is nobody who does it: this is a forked copy, or the job has panicked.
    Nobody,
}

/// Has a launcher do `job`, and waits for what that gives, for so long at most.
pub(crate) fn wait<T: Send + 'static>(
    limit: Duration,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotLaunched> {
    let (sender, receiver) = sync_channel(1);
    if fork::is_forked_copy() {
        return Err(NotLaunched::Nobody);
    }
    begin(Launch::new(Some(limit), job, move |launched| drop(sender.send(launched))));
    loop {
        // The supervisor, too, may wait here (in a waker that starts something).
        let now = Instant::now();
        let next = look(now).map_or(STUCK, |next| next.saturating_duration_since(now));
        match receiver.recv_timeout(next) {
            Ok(launched) => return launched.ok_or(NotLaunched::TooLate),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(NotLaunched::Nobody),
        }
    }
}

/// Looks at the clock: gives up, kills, and gets one more launcher. Returns when to look again.
pub(super) fn look(now: Instant) -> Option<Instant> {
    let is_over = |launch: &Launch| launch.until.is_some_and(|until| until <= now);
    let mut late = Vec::new();
    let mut state = LAUNCHERS_STATE.lock();
    state.queue.retain(|launch| {
        let is_over = is_over(launch);
        late.extend(is_over.then(|| Arc::clone(launch)));
        !is_over
    });
    let under_way = state.under_way.iter().map(|one| &one.launch);
    late.extend(under_way.filter(|launch| is_over(launch)).cloned());
    drop(state);
    // First: a child that is killed ends its start.
    late.iter().for_each(|launch| launch.give_up());

    let mut state = LAUNCHERS_STATE.lock();
    for one in &mut state.under_way {
        let launch = &one.launch;
        if one.kill_at.is_none() && (is_over(launch) || launch.is_off.load(Ordering::Acquire)) {
            one.kill_at = Some(now);
        }
        if one.kill_at.is_some_and(|at| at <= now) {
            // Under the lock, so that the thread cannot have gone on to the next start.
            kill_child_before_exec(one.tid);
            one.kill_at = Some(now + KILL_AGAIN);
        }
    }
    let grows = state.grows_at().is_some_and(|at| at <= now);
    if grows {
        state.grown = Some(now);
    }
    let next = state.next(now);
    drop(state);
    if grows {
        let _ = grow(); // else it is tried again
    }
    next
}

impl Launchers {
    /// When there is to be one more, if nothing goes on by then.
    fn grows_at(&self) -> Option<Instant> {
        if self.queue.is_empty() || self.idle > 0 || self.threads >= LAUNCHERS {
            return None;
        }
        let last = self.under_way.iter().map(|one| one.since).max()?;
        Some(self.grown.map_or(last, |grown| grown.max(last)) + STUCK)
    }

    fn next(&self, now: Instant) -> Option<Instant> {
        let limits = self
            .queue
            .iter()
            .chain(self.under_way.iter().map(|one| &one.launch))
            .filter_map(|launch| launch.until)
            .filter(|until| *until > now);
        let kills = self.under_way.iter().filter_map(|one| one.kill_at);
        limits.chain(kills).chain(self.grows_at()).min()
    }
}

/// "Forked but didn't exec", in the flags of proc_pid_stat(5).
const PF_FORKNOEXEC: u64 = 0x40;

/// Kills the child of this thread that has not executed anything.
///
/// A launcher starts one process at a time, so it is the one that it is starting. The children of
/// other threads become a launcher's, when those end, only if there is no main thread any more. The
/// workers that a template forks are children of the launcher that has started the template, and
/// never execute anything: they are known as workers are.
fn kill_child_before_exec(tid: i32) {
    let this = Path::new("/proc/self");
    if stat(this).is_none_or(|(state, _)| state == 'Z') {
        return;
    }
    let path = this.join("task").join(tid.to_string()).join("children");
    let Ok(children) = std::fs::read_to_string(path) else { return };
    for pid in children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()) {
        // First the descriptor: what it stands for is what is looked at, or nothing any more.
        let Ok(pidfd) = sys::pidfd_open(pid) else { continue };
        if stat(&Path::new("/proc").join(pid.to_string()))
            .is_some_and(|(_, flags)| flags & PF_FORKNOEXEC != 0)
            && !inherited::is_worker(&pid.to_string())
        {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL, Target::Process);
        }
    }
}

/// State and flags of a process.
fn stat(process: &Path) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.nth(5)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Child;
    use crate::process::testing::{
        Barrier, HANG, children, in_own_process, is_own_process, process_state, wait_until,
    };
    use std::process::Command;
    use std::sync::mpsc::{Receiver, channel};

    #[expect(clippy::zombie_processes, reason = "its owner reaps it")]
    fn child() -> Child {
        let child = Command::new("/bin/sleep").arg("1000").spawn().expect("it is started");
        Child::adopt(child.id(), false).expect("it is ours")
    }

    fn begin_one(limit: Option<Duration>) -> (Arc<Launch>, Receiver<Option<Child>>) {
        let (sender, receiver) = channel();
        let launch = Launch::new(limit, child, move |child| drop(sender.send(child)));
        begin(Arc::clone(&launch));
        (launch, receiver)
    }

    fn supervisor_answers() {
        let (sender, receiver) = channel();
        supervisor::run(move || sender.send(()).expect("it is waited for"));
        receiver.recv_timeout(HANG).expect("the supervisor waits for no start");
    }

    #[test]
    fn a_child_that_is_held_up_before_its_exec_holds_up_nobody() {
        in_own_process("reactor::launcher::tests::own_process_held_up");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_held_up() {
        if !is_own_process() {
            return;
        }
        supervisor::start().expect("start");
        let barrier = Barrier::new();

        // One that is waited for is given up in time, and its child is killed.
        let result = wait(Duration::from_millis(50), child);
        assert_eq!(result.expect_err("it is held up"), NotLaunched::TooLate);
        supervisor_answers();
        wait_until("its child is reaped", || children().is_empty());
        assert_eq!(LAUNCHERS_STATE.lock().threads, 1);

        // Others are started while one is held up, by another thread.
        let (stuck, stuck_done) = begin_one(None);
        let _held = barrier.next();
        let (_, done) = begin_one(None);
        supervisor_answers();
        barrier.let_go(barrier.next());
        let other = done.recv_timeout(HANG).expect("it is started").expect("it has no limit");
        assert!(other.try_reap().is_none() && stuck_done.try_recv().is_err());
        assert_eq!(LAUNCHERS_STATE.lock().threads, 2);

        // One that is called off ends, and what was started in the meantime does not.
        let before = children();
        assert_eq!(before.len(), 2, "{before:?}");
        stuck.call_off();
        let ended = stuck_done.recv_timeout(HANG).expect("it ends").expect("it has no limit");
        wait_until("the end", || ended.try_reap().is_some_and(|exit| exit.is_by(libc::SIGKILL)));
        assert!(other.try_reap().is_none());

        // One that waits behind those that are held up is given up as well.
        let (first, first_done) = begin_one(None);
        let (second, second_done) = begin_one(None);
        let (_, third) = begin_one(Some(Duration::from_millis(20)));
        assert!(third.recv_timeout(HANG).expect("it is told").is_none());
        first.call_off();
        second.call_off();
        for done in [first_done, second_done] {
            drop(done.recv_timeout(HANG).expect("it ends"));
        }
        drop(other);
        wait_until("all are reaped", || children().iter().all(|pid| process_state(*pid).is_none()));
    }

    #[test]
    fn what_has_executed_something_is_not_taken_for_the_one_that_is_started() {
        let child = child();
        let (_, flags) = stat(&Path::new("/proc").join(child.pid().to_string())).expect("it runs");
        assert_eq!(flags & PF_FORKNOEXEC, 0);
        kill_child_before_exec(nix::unistd::gettid().as_raw());
        assert!(child.try_reap().is_none() && process_state(child.pid()).is_some());
    }
}
