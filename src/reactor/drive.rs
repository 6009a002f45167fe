//! One reactor for everything that has descriptors of its own.
//!
//! A *pass* handles what is ready, without waiting. Any thread may make one: a task of a runtime
//! ([`drive_in_runtime`]), or the supervisor thread. While one thread makes a pass, a second one
//! asks for another pass and leaves, so no thread waits for another.

#[cfg(doc)]
use super::supervisor;
use crate::panics::catch_user_panic;
use crate::process::fork;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// Events that one pass handles, at most.
const EVENTS: usize = 64;
/// The longest rest of the supervisor between two looks at a source that its runtime drives.
const LONGEST_REST: Duration = Duration::from_millis(64);

/// What a descriptor of the epoll set stands for: a key of the source's own, and one of four roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(u64);

impl Token {
    /// No source has such a key.
    const TIMER: Self = Self(u64::MAX);

    /// `key` has an index below 2^30 in its low half (there are never so many), which leaves two
    /// bits for `role`.
    pub(crate) fn new(key: u64, role: u64) -> Self {
        debug_assert!(key & 0xc000_0000 == 0 && role < 4, "{key} {role}");
        Self(key & !0xffff_ffff | (key & 0x3fff_ffff) << 2 | role)
    }

    pub(crate) fn key(self) -> u64 {
        self.0 & !0xffff_ffff | (self.0 & 0xffff_ffff) >> 2
    }

    pub(crate) fn role(self) -> u64 {
        self.0 & 3
    }
}

/// Something that a [`Reactor`] drives. The handlers are called by one thread at a time.
pub(crate) trait Source: Send + Sync {
    fn reactor(&self) -> &Reactor;

    /// Handles an event of a descriptor, without waiting.
    fn ready(&self, token: Token, flags: EpollFlags);

    /// Handles the deadline, which has passed.
    fn tick(&self, now: Instant);

    /// Follows the events of a pass in which there were some.
    fn after_events(&self) {}

    /// [`ready`](Self::ready) has panicked with this token. What it had begun is lost.
    fn panicked(&self, token: Token);

    /// What the timer is to be set to.
    fn deadline(&self) -> Deadline;

    /// No runtime drives it, at least for now.
    fn is_alone(&self) -> bool;

    /// Its runtime has not driven it in time, so the supervisor does.
    fn taken_over(&self) {}

    /// Follows [`Reactor::end`], on the supervisor thread, which then forgets it.
    fn forgotten(&self) {}

    /// The longest rest between two looks at whether its runtime drives it.
    fn longest_rest(&self) -> Duration {
        LONGEST_REST
    }
}

/// What a timer is to be set to. A source has one, under its own lock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    /// Counts the changes: the last one counts.
    number: u64,
}

impl Deadline {
    /// Enters the next deadline. Returns what to [set the timer](Reactor::set_timer) to when the
    /// lock has been released; `None` if nothing has changed.
    pub(crate) fn update(&mut self, next: Option<Instant>) -> Option<Self> {
        if self.at == next {
            return None;
        }
        self.at = next;
        self.number += 1;
        Some(*self)
    }

    /// The timer has fired. It is to be set again, also to the same time.
    pub(crate) fn passed(&mut self) {
        self.at = None;
    }
}

/// What has come of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Done,
    /// There may be more to do.
    More,
    /// The caller is not, or no longer, the one to drive.
    Over,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Reactor {
    epoll: Epoll,
    timer: TimerFd,
    /// Passes that were asked for and not yet made.
    wanted: AtomicU32,
    /// The last pass has left something.
    more: AtomicBool,
    ended: AtomicBool,
    /// Passes by a runtime.
    by_runtime: AtomicU64,
    /// Set while the supervisor rests, see [`supervisor::attend`].
    pub(super) unattended: AtomicBool,
}

impl Reactor {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = new_timer()?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, Token::TIMER.0))?;
        Ok(Self {
            epoll,
            timer,
            wanted: AtomicU32::new(0),
            more: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            by_runtime: AtomicU64::new(0),
            unattended: AtomicBool::new(false),
        })
    }

    /// Readable when there is something to do.
    pub(crate) fn ready_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    // ---- the epoll set

    pub(crate) fn add(&self, fd: impl AsFd, flags: EpollFlags, token: Token) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token.0))?)
    }

    /// Changes what is watched for. It fails only if the descriptor has just been taken out.
    pub(crate) fn modify(&self, fd: impl AsFd, flags: EpollFlags, token: Token) {
        let _ = self.epoll.modify(fd, &mut EpollEvent::new(flags, token.0));
    }

    /// Takes a descriptor out. Closing it would do the same, unless a fork of this process holds a
    /// copy.
    pub(crate) fn delete(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    // ---- time

    /// Sets the timer, and looks again: another thread may have set it to something older
    /// meanwhile, or have ended the reactor.
    pub(crate) fn set_timer(&self, source: &dyn Source, mut deadline: Deadline) {
        loop {
            let ended = self.has_ended();
            let after = deadline.at.map(|at| at.saturating_duration_since(Instant::now()));
            set(&self.timer, if ended { Some(Duration::ZERO) } else { after });
            let latest = source.deadline();
            if latest.number == deadline.number && ended == self.has_ended() {
                return;
            }
            deadline = latest;
        }
    }

    /// There is nothing to drive any more. The reactor stays ready from now on, so that every
    /// driver sees it: the supervisor forgets the source, and a task of a runtime ends.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        set(&self.timer, Some(Duration::ZERO));
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    // ---- driving

    /// Makes a pass, unless another thread is at it, which then makes one more.
    /// Returns whether this thread has made it.
    pub(crate) fn drive(&self, source: &dyn Source) -> bool {
        let mut count = self.wanted.fetch_add(1, Ordering::AcqRel) + 1;
        if count > 1 {
            return false;
        }
        loop {
            self.pass(source);
            match self.wanted.compare_exchange(count, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(more) => count = more,
            }
        }
    }

    /// As [`drive`](Self::drive), for the runtime whose turn it is: the supervisor does not take
    /// over then.
    pub(crate) fn drive_by_runtime(&self, source: &dyn Source) -> Pass {
        self.by_runtime.fetch_add(1, Ordering::AcqRel);
        let is_own = self.drive(source);
        match () {
            () if self.has_ended() => Pass::Over,
            // What another thread leaves is its own to go on with.
            () if is_own && self.more.load(Ordering::Relaxed) => Pass::More,
            () => Pass::Done,
        }
    }

    /// Says that this pass leaves something that will not be told of again.
    pub(crate) fn leaves_more(&self) {
        self.more.store(true, Ordering::Relaxed);
    }

    /// Whether a thread makes a pass.
    pub(crate) fn is_driven(&self) -> bool {
        self.wanted.load(Ordering::Acquire) > 0
    }

    /// How many passes were asked for since the current ones began.
    #[cfg(test)]
    pub(crate) fn wanted(&self) -> u32 {
        self.wanted.load(Ordering::Acquire)
    }

    /// How many passes a runtime has made.
    pub(crate) fn passes_by_runtime(&self) -> u64 {
        self.by_runtime.load(Ordering::Acquire)
    }

    /// A panic in a handler is a bug of this crate, which the panic hook has reported. It must not
    /// keep other threads from driving, nor lose the other events of the pass.
    fn pass(&self, source: &dyn Source) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let n = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        self.more.store(n == events.len(), Ordering::Relaxed);
        for event in &events[..n] {
            let token = Token(event.data());
            if token == Token::TIMER {
                // Of a reactor that has ended it stays readable.
                if !self.has_ended() {
                    let _ = nix::unistd::read(self.timer.as_fd(), &mut [0; 8]);
                    catch_user_panic(|| source.tick(Instant::now()));
                }
            } else if catch_user_panic(|| source.ready(token, event.events())).is_none() {
                catch_user_panic(|| source.panicked(token));
            }
        }
        if n > 0 {
            catch_user_panic(|| source.after_events());
        }
    }
}

/// A timer that is not set.
pub(crate) fn new_timer() -> nix::Result<TimerFd> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)
}

/// Has a timer fire once after this time, or not at all.
pub(crate) fn set(timer: &TimerFd, after: Option<Duration>) {
    // It fails for no reason that would not be a bug of this crate: the arguments are in range.
    let _ = match after {
        // Zero would unset it.
        Some(after) => timer.set(
            Expiration::OneShot(after.max(Duration::from_nanos(1)).into()),
            TimerSetTimeFlags::empty(),
        ),
        None => timer.unset(),
    };
}

/// Drives from the current runtime: makes a `pass` whenever `ready` is readable, until that is over
/// or the runtime goes.
pub(crate) async fn drive_in_runtime<T: AsRawFd>(ready: AsyncFd<T>, pass: impl Fn() -> Pass) {
    while let Ok(mut readiness) = ready.readable().await {
        if fork::is_forked_copy() {
            // A copy of the runtime, too: what it read would be lost to the original. It does not
            // end either, for the two share what watches the descriptor, and it would be taken out
            // there.
            return std::future::pending().await;
        }
        // Before the pass: what comes during the pass makes it ready again.
        readiness.clear_ready();
        loop {
            match pass() {
                Pass::Done => break,
                // It has been looked at, and will not be told of again.
                Pass::More => tokio::task::yield_now().await,
                Pass::Over => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Lock;
    use nix::sys::eventfd::{EfdFlags, EventFd};

    /// Counts events; what it does with one is the test's.
    struct Counting {
        reactor: Reactor,
        on_ready: fn(&Counting, Token),
        seen: Lock<Vec<u64>>,
        panicked: Lock<Vec<u64>>,
        ticks: AtomicU32,
        after: AtomicU32,
        deadline: Lock<Deadline>,
    }

    impl Counting {
        fn new(on_ready: fn(&Self, Token)) -> Self {
            Self {
                reactor: Reactor::new().expect("reactor"),
                on_ready,
                seen: Lock::default(),
                panicked: Lock::default(),
                ticks: AtomicU32::new(0),
                after: AtomicU32::new(0),
                deadline: Lock::default(),
            }
        }

        /// A descriptor that is readable, by edge.
        fn add(&self, key: u64) -> EventFd {
            let fd = EventFd::from_value_and_flags(1, EfdFlags::EFD_NONBLOCK).expect("eventfd");
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            self.reactor.add(&fd, flags, Token::new(key, 1)).expect("add");
            fd
        }

        fn drive(&self) {
            self.reactor.drive(self);
        }
    }

    impl Source for Counting {
        fn reactor(&self) -> &Reactor {
            &self.reactor
        }

        fn ready(&self, token: Token, _: EpollFlags) {
            self.seen.lock().push(token.key());
            (self.on_ready)(self, token);
        }

        fn tick(&self, _: Instant) {
            self.deadline.lock().passed();
            self.ticks.fetch_add(1, Ordering::Relaxed);
        }

        fn after_events(&self) {
            self.after.fetch_add(1, Ordering::Relaxed);
        }

        fn panicked(&self, token: Token) {
            self.panicked.lock().push(token.key());
        }

        fn deadline(&self) -> Deadline {
            *self.deadline.lock()
        }

        fn is_alone(&self) -> bool {
            true
        }
    }

    #[test]
    fn tokens_give_back_their_keys_and_none_is_the_timers() {
        for key in [0, 1, 5 << 32 | 3, u64::from(u32::MAX) << 32 | 0x3fff_fffe] {
            for role in 0..4 {
                let token = Token::new(key, role);
                assert_eq!((token.key(), token.role()), (key, role));
                assert_ne!(token, Token::TIMER);
            }
        }
    }

    #[test]
    fn an_event_that_panics_costs_neither_the_others_nor_the_next_pass() {
        let source = Counting::new(|_, token| assert_ne!(token.key(), 2, "a bug"));
        let _fds = [1, 2, 3].map(|key| source.add(key));
        source.drive();
        assert_eq!(*source.seen.lock(), [1, 2, 3]);
        assert_eq!(
            (&source.panicked.lock()[..], source.after.load(Ordering::Relaxed)),
            (&[2][..], 1)
        );
        let _fd = source.add(4);
        source.drive();
        assert_eq!(source.seen.lock().last(), Some(&4), "no thread is taken to drive for ever");
        assert!(!source.reactor.is_driven());
    }

    #[test]
    fn a_pass_that_is_wanted_meanwhile_is_made_by_the_thread_that_drives() {
        let source = Counting::new(|source, token| {
            if token.key() == 1 {
                std::mem::forget(source.add(2));
                source.drive(); // as another thread would
                assert_eq!(*source.seen.lock(), [1], "one at a time");
            }
        });
        let _fd = source.add(1);
        source.drive();
        assert_eq!((&source.seen.lock()[..], source.reactor.wanted()), (&[1, 2][..], 0));
    }

    #[test]
    fn a_pass_with_many_events_leaves_some_and_says_so() {
        let source = Counting::new(|_, _| {});
        let _fds: Vec<_> = (0..EVENTS as u64 + 1).map(|key| source.add(key)).collect();
        assert_eq!(source.reactor.drive_by_runtime(&source), Pass::More);
        assert_eq!(source.reactor.drive_by_runtime(&source), Pass::Done);
        assert_eq!(source.seen.lock().len(), EVENTS + 1);
        assert_eq!(source.reactor.passes_by_runtime(), 2);
    }

    #[test]
    fn the_timer_fires_once_for_a_deadline_and_for_ever_after_the_end() {
        let source = Counting::new(|_, _| {});
        let now = Instant::now();
        let set = source.deadline.lock().update(Some(now)).expect("it has changed");
        assert!(source.deadline.lock().update(Some(now)).is_none(), "it has not");
        // An older deadline that is set late does not stay.
        source.reactor.set_timer(&source, Deadline::default());
        source.drive();
        assert_eq!(source.ticks.load(Ordering::Relaxed), 1);
        source.drive();
        assert_eq!(source.ticks.load(Ordering::Relaxed), 1);
        let again = source.deadline.lock().update(Some(now)).expect("it has passed");
        assert!(again.number > set.number);
        source.reactor.end();
        source.reactor.set_timer(&source, Deadline::default());
        for passes in 2..4 {
            assert_eq!(source.reactor.drive_by_runtime(&source), Pass::Over);
            assert_eq!(source.after.load(Ordering::Relaxed), passes, "it stays ready");
        }
        assert_eq!(source.ticks.load(Ordering::Relaxed), 1, "there is nothing to drive");
    }
}
