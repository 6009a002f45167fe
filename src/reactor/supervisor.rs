//! The supervisor thread: one thread for the whole application, for work that must not wait for a
//! runtime.
//!
//! * It watches over the threads that start processes (`launcher.rs`).
//! * It reaps children whose owner has been dropped.
//! * It drives what a runtime should drive but does not, and what has no runtime (see [`Source`]).
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
//! slot, and loses the slot when the supervisor thread has to take over ([`Source::taken_over`]).
//! Then the supervisor thread drives the manager, as it drives everything that has no runtime,
//! until another caller takes the slot.

use super::{Source, launcher};
use crate::lock::Lock;
use crate::panics::catch_user_panic;
use crate::process::thread::OwnThread;
use crate::process::{self, Orphan, fork};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a runtime has to drive what is ready before the supervisor does it.
const PATIENCE: Duration = Duration::from_millis(1);
/// How often a process that has ended is looked at that cannot be reaped, for its tracer comes
/// first; nobody tells when it has (ptrace(2)).
pub(crate) const TRACED: Duration = Duration::from_millis(20);

enum Order {
    Do(Box<dyn FnOnce() + Send>),
    Watch(Arc<dyn Source>),
    /// At what is ready by this descriptor.
    Look(RawFd),
    Reap(Orphan),
}

struct Supervisor {
    orders: Lock<Vec<Order>>,
    bell: EventFd,
}

static SUPERVISOR: OnceLock<Supervisor> = OnceLock::new();
static STARTING: Lock<()> = Lock::new(());

thread_local! {
    /// Without a destructor, so that it can be asked as late as in an exit handler.
    static IS_SUPERVISOR: Cell<bool> = const { Cell::new(false) };
}

/// Starts the supervisor thread, unless it runs.
pub(crate) fn start() -> io::Result<()> {
    let _one_at_a_time = STARTING.lock();
    if SUPERVISOR.get().is_some() {
        return Ok(());
    }
    let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
    launcher::start()?;
    process::thread::spawn("procpool-supervisor", move || {
        IS_SUPERVISOR.set(true);
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
        watch.run(SUPERVISOR.wait());
    })?;
    let _ = SUPERVISOR.set(Supervisor { orders: Lock::new(Vec::new()), bell });
    // Only now: those that have waited come at once, and an order before is not heard.
    process::set_orphan_sink(reap);
    Ok(())
}

fn order(order: Order) {
    // In a forked copy nobody would obey, and the lock may be held by a thread that is not there.
    if fork::is_forked_copy() {
        return;
    }
    // Before `start` there is nobody to ask, and nothing that could have been left to do.
    let Some(supervisor) = SUPERVISOR.get() else { return };
    supervisor.orders.lock().push(order);
    // It can only fail when the counter is full, and then the bell has been rung.
    let _ = supervisor.bell.write(1);
}

/// Has the supervisor look at its clock, and at those of the launchers.
pub(super) fn ring() {
    if !fork::is_forked_copy()
        && let Some(supervisor) = SUPERVISOR.get()
    {
        let _ = supervisor.bell.write(1);
    }
}

/// Runs `job` on the supervisor thread. It must not wait for anything.
pub(crate) fn run(job: impl FnOnce() + Send + 'static) {
    order(Order::Do(Box::new(job)));
}

/// Whether the caller is the supervisor thread: it runs wakers, which may be anything.
pub(crate) fn is_this_thread() -> bool {
    IS_SUPERVISOR.get()
}

/// Watches over `what` until it has ended.
pub(crate) fn watch(what: Arc<dyn Source>) {
    order(Order::Watch(what));
}

/// Somebody waits for `what` from outside its runtime.
pub(crate) fn attend(what: &dyn Source) {
    let unattended = &what.reactor().unattended;
    if unattended.load(Ordering::Relaxed) && unattended.swap(false, Ordering::AcqRel) {
        look(what);
    }
}

/// Looks at it again: it has lost its runtime.
pub(crate) fn look(what: &dyn Source) {
    order(Order::Look(what.reactor().ready_fd().as_raw_fd()));
}

/// Reaps a child whose owner has gone.
fn reap(orphan: Orphan) {
    order(Order::Reap(orphan));
}

const BELL: u64 = 0;

enum Watching {
    Armed,
    Checking {
        passes: u64,
        until: Instant,
    },
    Resting {
        until: Instant,
    },
    TakenOver {
        passes: u64,
    },
    /// It has no runtime, at least for now.
    Alone,
}

struct Entry {
    what: Arc<dyn Source>,
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
    fn run(mut self, supervisor: &Supervisor) {
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
                        let _ = supervisor.bell.read();
                        let orders = std::mem::take(&mut *supervisor.orders.lock());
                        orders.into_iter().for_each(|order| self.obey(order));
                    }
                    token if self.orphans.contains_key(&token) => self.try_reap(token),
                    token => self.ready(token),
                }
            }
            self.launches = launcher::look(Instant::now());
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
            Order::Do(job) => catch_user_panic(job).unwrap_or_default(),
            Order::Watch(what) => {
                let token = self.token();
                let alone = what.is_alone();
                let (flags, watching) =
                    if alone { (LEVEL, Watching::Alone) } else { (ONCE, Watching::Armed) };
                // It fails only for want of kernel memory; then its runtime alone drives it.
                if self.epoll.add(what.reactor().ready_fd(), EpollEvent::new(flags, token)).is_ok()
                {
                    self.entries.insert(token, Entry { what, watching, rest: PATIENCE });
                    if alone {
                        self.drive(token);
                    }
                }
            }
            Order::Look(ready) => {
                // It keeps its descriptor as long as it is among them; another's number is looked
                // at for nothing.
                let found = self
                    .entries
                    .iter()
                    .find(|(_, entry)| entry.what.reactor().ready_fd().as_raw_fd() == ready);
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
        let passes = entry.what.reactor().passes_by_runtime();
        match entry.watching {
            Watching::Armed => {
                entry.watching = Watching::Checking { passes, until: Instant::now() + PATIENCE }
            }
            // A runtime drives it now; or one that is late is at it still, and it is readable
            // until that pass is over.
            Watching::Alone if !entry.what.is_alone() || entry.what.reactor().is_driven() => {
                entry.watching = Watching::Checking { passes, until: Instant::now() + PATIENCE };
                entry.rest = PATIENCE;
                let _ = self.epoll.modify(
                    entry.what.reactor().ready_fd(),
                    &mut EpollEvent::new(EpollFlags::empty(), token),
                );
            }
            // Its runtime drives it again, or is at it right now.
            Watching::TakenOver { passes: before }
                if before != passes || entry.what.reactor().is_driven() =>
            {
                self.arm(token, PATIENCE)
            }
            Watching::TakenOver { .. } | Watching::Alone => self.drive(token),
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
            let Watching::Checking { passes, .. } = entry.watching else {
                let rest = entry.rest;
                self.arm(token, rest);
                continue;
            };
            if entry.what.reactor().passes_by_runtime() != passes {
                let until = now + entry.rest;
                entry.rest = (entry.rest * 2).min(entry.what.longest_rest());
                entry.watching = Watching::Resting { until };
                entry.what.reactor().unattended.store(true, Ordering::Release);
            } else if is_readable(entry.what.reactor().ready_fd()) {
                entry.what.taken_over();
                entry.watching = if entry.what.is_alone() {
                    Watching::Alone
                } else {
                    Watching::TakenOver { passes }
                };
                let _ = self
                    .epoll
                    .modify(entry.what.reactor().ready_fd(), &mut EpollEvent::new(LEVEL, token));
                self.drive(token);
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
                let _ = self
                    .epoll
                    .modify(entry.what.reactor().ready_fd(), &mut EpollEvent::new(LEVEL, token));
            }
            self.drive(token);
        } else if matches!(entry.watching, Watching::Resting { .. })
            && !entry.what.reactor().unattended.load(Ordering::Acquire)
        {
            self.arm(token, PATIENCE);
        }
    }

    /// Waits for the next event, once.
    fn arm(&mut self, token: u64, rest: Duration) {
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.watching = Watching::Armed;
            entry.rest = rest;
            entry.what.reactor().unattended.store(false, Ordering::Release);
            let _ = self
                .epoll
                .modify(entry.what.reactor().ready_fd(), &mut EpollEvent::new(ONCE, token));
        }
    }

    fn drive(&mut self, token: u64) {
        let Some(entry) = self.entries.get(&token) else { return };
        let (what, reactor) = (&*entry.what, entry.what.reactor());
        reactor.drive(what);
        if reactor.has_ended() {
            catch_user_panic(|| what.forgotten());
            let _ = self.epoll.delete(reactor.ready_fd());
            self.entries.remove(&token);
        }
    }
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
        in_own_process("reactor::supervisor::tests::own_process_orphan_before_the_start");
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
        process::sys::kill_process(pid, nix::libc::SIGKILL).expect("kill");
        wait_until("it is reaped", || process_state(pid).is_none());
    }
}
