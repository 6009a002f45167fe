//! The supervisor thread (the *steward* in the code): one thread for the whole application, for
//! work that must not wait for a runtime.
//!
//! * It watches over the threads that start processes (`launcher.rs`).
//! * It reaps children whose owner has been dropped.
//! * It drives what a runtime should drive but does not, and what has no runtime (see [`Turn`]).
//!
//! No user code runs on this thread, except wakers (and the panic hook, if a waker panics). The
//! thread is started with the first pool or process, and stays. In a forked copy of the application
//! it does not exist, and nothing is asked of it.
//!
//! **Taking over from a runtime.** What a runtime should drive is checked when it is ready:
//!
//! ```text
//! Armed ──(it is ready)──▶ Checking ──(1 ms later: driven meanwhile)──▶ Resting ──▶ Armed
//!                             │                                        1 ms to 64 ms, doubling
//!                             └─(not driven)─▶ TakenOver ──(its runtime drives it again)──▶ Armed
//! ```
//!
//! A call from outside that runtime ends the rest ([`attend`]), so the call waits for about a
//! millisecond. If it comes just before a rest begins, it may wait for one rest more. A pool in
//! which nothing happens costs nothing, and a busy one costs some wake-ups a second.
//!
//! **Managers.** A manager has no runtime of its own. A caller that waits for it takes its driver
//! slot, and loses the slot when the supervisor thread has to take over ([`Turn::taken_over`]).
//! Then the supervisor thread drives the manager, as it drives everything that has no runtime,
//! until another caller takes the slot.

use super::child::Orphan;
use super::fork;
use super::thread::OwnThread;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a runtime has to turn what is ready before the steward does it.
const PATIENCE: Duration = Duration::from_millis(1);
/// How often a process that has ended is looked at that cannot be reaped, for its tracer comes
/// first; nobody tells when it has (ptrace(2)).
pub(crate) const TRACED: Duration = Duration::from_millis(20);
/// The longest rest between two looks at something that is turned as it should be.
const REST_MAX: Duration = Duration::from_millis(64);

/// Something that is turned by a runtime, or else by the steward.
pub(crate) trait Turn: Send + Sync {
    /// Readable when there is something to do.
    fn ready_fd(&self) -> BorrowedFd<'_>;
    /// Does what there is to do, without waiting. `false`: it has ended, and is forgotten.
    fn turn(&self) -> bool;
    /// Counts the turns that its own runtime made.
    fn turns(&self) -> &AtomicU64;
    /// Set while the steward rests; see [`attend`].
    fn unattended(&self) -> &AtomicBool;
    /// Somebody is turning it.
    fn is_turning(&self) -> bool;
    /// It has no runtime (any more), or none now.
    fn is_alone(&self) -> bool;
    /// Its runtime has not turned it in time, so the steward does.
    fn taken_over(&self) {}
    /// The longest rest between two looks at whether it is turned as it should be.
    fn longest_rest(&self) -> Duration {
        REST_MAX
    }
}

enum Order {
    Do(Box<dyn FnOnce() + Send>),
    Watch(Arc<dyn Turn>),
    /// At what is ready by this descriptor.
    Look(RawFd),
    Reap(Orphan),
}

struct Steward {
    orders: Mutex<Vec<Order>>,
    bell: EventFd,
}

static STEWARD: OnceLock<Steward> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());

thread_local! {
    /// Without a destructor, so that it can be asked as late as in an exit handler.
    static IS_STEWARD: Cell<bool> = const { Cell::new(false) };
}

/// Starts the steward, unless it runs.
pub(crate) fn start() -> io::Result<()> {
    let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if STEWARD.get().is_some() {
        return Ok(());
    }
    let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
    super::launcher::start()?;
    super::thread::spawn("procpool-steward", move || {
        IS_STEWARD.set(true);
        let _registered = OwnThread::register();
        let watch = Watches {
            epoll,
            launches: None,
            entries: HashMap::new(),
            orphans: HashMap::new(),
            traced: Vec::new(),
            look_again: None,
            next: BELL + 1,
        };
        watch.run(STEWARD.wait());
    })?;
    let _ = STEWARD.set(Steward { orders: Mutex::new(Vec::new()), bell });
    // Only now: those that have waited come at once, and an order before is not heard.
    super::child::set_orphan_sink(reap);
    Ok(())
}

fn order(order: Order) {
    // In a forked copy nobody would obey, and the lock may be held by a thread that is not there.
    if fork::is_forked_copy() {
        return;
    }
    // Before `start` there is nobody to ask, and nothing that could have been left to do.
    let Some(steward) = STEWARD.get() else { return };
    steward.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
    // It can only fail when the counter is full, and then the bell has been rung.
    let _ = steward.bell.write(1);
}

/// Has the steward look at its clock, and at those of the launchers.
pub(super) fn ring() {
    if !fork::is_forked_copy()
        && let Some(steward) = STEWARD.get()
    {
        let _ = steward.bell.write(1);
    }
}

/// Runs `job` on the steward's thread. It must not wait for anything.
pub(crate) fn run(job: impl FnOnce() + Send + 'static) {
    order(Order::Do(Box::new(job)));
}

/// Whether the caller is the steward: it runs wakers, which may be anything.
pub(crate) fn is_this_thread() -> bool {
    IS_STEWARD.get()
}

/// Watches over `what` until it has ended.
pub(crate) fn watch(what: Arc<dyn Turn>) {
    order(Order::Watch(what));
}

/// Somebody waits for `what` from outside its runtime.
pub(crate) fn attend(what: &dyn Turn) {
    if what.unattended().load(Ordering::Relaxed) && what.unattended().swap(false, Ordering::AcqRel)
    {
        look(what);
    }
}

/// Looks at it again: it has lost its runtime.
pub(crate) fn look(what: &dyn Turn) {
    order(Order::Look(what.ready_fd().as_raw_fd()));
}

/// Reaps a child whose owner has gone.
fn reap(orphan: Orphan) {
    order(Order::Reap(orphan));
}

const BELL: u64 = 0;

enum Watching {
    Armed,
    Checking {
        turns: u64,
        until: Instant,
    },
    Resting {
        until: Instant,
    },
    TakenOver {
        turns: u64,
    },
    /// It has no runtime, at least for now.
    Alone,
}

struct Entry {
    what: Arc<dyn Turn>,
    watching: Watching,
    rest: Duration,
}

struct Watches {
    epoll: Epoll,
    /// When the launchers are looked at.
    launches: Option<Instant>,
    entries: HashMap<u64, Entry>,
    orphans: HashMap<u64, Orphan>,
    /// Those that have ended and cannot be reaped yet, and when they are looked at again.
    traced: Vec<u64>,
    look_again: Option<Instant>,
    next: u64,
}

impl Watches {
    fn run(mut self, steward: &Steward) {
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let timeout = self.next_deadline().map_or(EpollTimeout::NONE, |at| {
                let wait =
                    at.saturating_duration_since(Instant::now()).as_nanos().div_ceil(1_000_000);
                EpollTimeout::try_from(wait.min(60_000) as i32).unwrap_or(EpollTimeout::ZERO)
            });
            let n = self.epoll.wait(&mut events, timeout).unwrap_or(0); // EINTR: look again
            for event in &events[..n] {
                match event.data() {
                    BELL => {
                        let _ = steward.bell.read();
                        let orders = std::mem::take(
                            &mut *steward.orders.lock().unwrap_or_else(PoisonError::into_inner),
                        );
                        orders.into_iter().for_each(|order| self.obey(order));
                    }
                    token if self.orphans.contains_key(&token) => self.try_reap(token),
                    token => self.ready(token),
                }
            }
            self.launches = super::launcher::look(Instant::now());
            self.look_at_the_clock();
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.entries
            .values()
            .filter_map(|entry| match entry.watching {
                Watching::Checking { until, .. } | Watching::Resting { until } => Some(until),
                _ => None,
            })
            .chain(self.look_again)
            .chain(self.launches)
            .min()
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Do(job) => shielded(job).unwrap_or_default(),
            Order::Watch(what) => {
                let token = self.token();
                let alone = what.is_alone();
                let (flags, watching) =
                    if alone { (LEVEL, Watching::Alone) } else { (ONCE, Watching::Armed) };
                // It fails only for want of kernel memory; then nobody but its runtime turns it.
                if self.epoll.add(what.ready_fd(), EpollEvent::new(flags, token)).is_ok() {
                    self.entries.insert(token, Entry { what, watching, rest: PATIENCE });
                    if alone {
                        self.turn(token);
                    }
                }
            }
            Order::Look(ready) => {
                // It keeps its descriptor as long as it is among them; another's number is looked
                // at for nothing.
                let found = self
                    .entries
                    .iter()
                    .find(|(_, entry)| entry.what.ready_fd().as_raw_fd() == ready);
                if let Some(token) = found.map(|(token, _)| *token) {
                    self.look(token);
                }
            }
            Order::Reap(orphan) => {
                let token = self.token();
                let added =
                    self.epoll.add(orphan.pidfd(), EpollEvent::new(EpollFlags::EPOLLIN, token));
                self.orphans.insert(token, orphan);
                if added.is_err() {
                    self.try_reap(token);
                }
            }
        }
    }

    fn token(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn try_reap(&mut self, token: u64) {
        let Some(orphan) = self.orphans.get(&token) else { return };
        if orphan.try_reap().is_some() {
            let _ = self.epoll.delete(orphan.pidfd());
            self.orphans.remove(&token);
        } else {
            // Else its pidfd, which stays readable, would wake us again at once.
            let _ =
                self.epoll.modify(orphan.pidfd(), &mut EpollEvent::new(EpollFlags::empty(), token));
            self.traced.push(token);
            self.look_again = Some(Instant::now() + TRACED);
        }
    }

    /// Its descriptor is readable.
    fn ready(&mut self, token: u64) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let turns = entry.what.turns().load(Ordering::Acquire);
        match entry.watching {
            Watching::Armed => {
                entry.watching = Watching::Checking { turns, until: Instant::now() + PATIENCE }
            }
            // A runtime has taken the post; or one that has lost it is at it still, and it is
            // readable until he is done.
            Watching::Alone if !entry.what.is_alone() || entry.what.is_turning() => {
                entry.watching = Watching::Checking { turns, until: Instant::now() + PATIENCE };
                entry.rest = PATIENCE;
                let _ = self.epoll.modify(
                    entry.what.ready_fd(),
                    &mut EpollEvent::new(EpollFlags::empty(), token),
                );
            }
            // Its runtime turns it again, or is at it right now.
            Watching::TakenOver { turns: before } if before != turns || entry.what.is_turning() => {
                self.arm(token, PATIENCE)
            }
            Watching::TakenOver { .. } | Watching::Alone => self.turn(token),
            Watching::Checking { .. } | Watching::Resting { .. } => {}
        }
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        if self.look_again.is_some_and(|at| at <= now) {
            self.look_again = None;
            std::mem::take(&mut self.traced).into_iter().for_each(|token| self.try_reap(token));
        }
        let due: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| match entry.watching {
                Watching::Checking { until, .. } | Watching::Resting { until } => until <= now,
                _ => false,
            })
            .map(|(token, _)| *token)
            .collect();
        for token in due {
            let Some(entry) = self.entries.get_mut(&token) else { continue };
            let Watching::Checking { turns, .. } = entry.watching else {
                let rest = entry.rest;
                self.arm(token, rest);
                continue;
            };
            if entry.what.turns().load(Ordering::Acquire) != turns {
                let until = now + entry.rest;
                entry.rest = (entry.rest * 2).min(entry.what.longest_rest());
                entry.watching = Watching::Resting { until };
                entry.what.unattended().store(true, Ordering::Release);
            } else if is_readable(entry.what.ready_fd()) {
                entry.what.taken_over();
                entry.watching = if entry.what.is_alone() {
                    Watching::Alone
                } else {
                    Watching::TakenOver { turns }
                };
                let _ =
                    self.epoll.modify(entry.what.ready_fd(), &mut EpollEvent::new(LEVEL, token));
                self.turn(token);
            } else {
                let rest = entry.rest;
                self.arm(token, rest);
            }
        }
    }

    /// Something about it may have changed: its runtime has gone, or somebody waits from outside.
    fn look(&mut self, token: u64) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        if entry.what.is_alone() {
            if !matches!(entry.watching, Watching::Alone) {
                entry.watching = Watching::Alone;
                let _ =
                    self.epoll.modify(entry.what.ready_fd(), &mut EpollEvent::new(LEVEL, token));
            }
            self.turn(token);
        } else if matches!(entry.watching, Watching::Resting { .. })
            && !entry.what.unattended().load(Ordering::Acquire)
        {
            self.arm(token, PATIENCE);
        }
    }

    /// Waits for the next event, once.
    fn arm(&mut self, token: u64, rest: Duration) {
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.watching = Watching::Armed;
            entry.rest = rest;
            entry.what.unattended().store(false, Ordering::Release);
            let _ = self.epoll.modify(entry.what.ready_fd(), &mut EpollEvent::new(ONCE, token));
        }
    }

    fn turn(&mut self, token: u64) {
        if let Some(entry) = self.entries.get(&token)
            && shielded(|| entry.what.turn()) == Some(false)
        {
            let _ = self.epoll.delete(entry.what.ready_fd());
            self.entries.remove(&token);
        }
    }
}

/// Drives something once for each call, unless another thread is at it, which then drives it once
/// more. After a panic, the next caller drives it.
pub(crate) fn take_turns(wanted: &AtomicU32, mut turn: impl FnMut()) {
    /// A turn that panics must not keep all other threads from turning, for good.
    struct AtIt<'a>(&'a AtomicU32);

    impl Drop for AtIt<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.store(0, Ordering::Release);
            }
        }
    }

    let mut count = wanted.fetch_add(1, Ordering::AcqRel) + 1;
    if count > 1 {
        return;
    }
    let _at_it = AtIt(wanted);
    loop {
        turn();
        match wanted.compare_exchange(count, 0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return,
            Err(more) => count = more,
        }
    }
}

/// A waker that panics (the only code here that is not ours) must not take the steward along.
pub(super) fn shielded<R>(job: impl FnOnce() -> R) -> Option<R> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).ok()
}

const LEVEL: EpollFlags = EpollFlags::EPOLLIN;
const ONCE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLONESHOT);

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::{in_own_process, is_own_process, process_state, wait_until};

    #[test]
    fn an_orphan_that_has_waited_for_the_start_is_reaped() {
        in_own_process("process::steward::tests::own_process_orphan_before_the_start");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    #[expect(clippy::zombie_processes, reason = "the supervisor thread reaps it")]
    fn own_process_orphan_before_the_start() {
        if !is_own_process() {
            return;
        }
        let child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = child.id();
        // As a worker that an exec has left, and that has not ended yet.
        Orphan::inherited(pid).expect("a child").reap_or_hand_over();
        start().expect("start");
        crate::process::sys::kill_process(pid, nix::libc::SIGKILL).expect("kill");
        wait_until("it is reaped", || process_state(pid).is_none());
    }

    #[test]
    fn after_a_turn_that_panics_others_turn() {
        let wanted = AtomicU32::new(0);
        let turn = || take_turns(&wanted, || panic!("a bug"));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(turn)).expect_err("it panics");
        let mut turns = 0;
        take_turns(&wanted, || turns += 1);
        assert_eq!((turns, wanted.load(Ordering::Relaxed)), (1, 0));
    }

    #[test]
    fn a_turn_that_is_wanted_meanwhile_is_taken_by_who_is_at_it() {
        let wanted = AtomicU32::new(0);
        let mut turns = 0;
        take_turns(&wanted, || {
            turns += 1;
            if turns == 1 {
                take_turns(&wanted, || unreachable!("somebody is at it"));
            }
        });
        assert_eq!((turns, wanted.load(Ordering::Relaxed)), (2, 0));
    }
}
