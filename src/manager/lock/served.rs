//! A lock as the manager serves it: the wait queue over its memory, time limits, late grants, and
//! out-of-line values.
//!
//! **Periodic checks.** The lock is checked when a client sends a message, and from time to time
//! while a caller waits: a process may have been stopped between leaving the lock to the manager
//! and saying so, or may never say so. The pause between two checks doubles from [`LATE`] to a
//! second.

use super::kept::Kept;
use super::waiters::{Broken, Grant, Waiters, Waiting};
use super::word::{self, Owner, always};
use crate::manager::message::Refusal;
use crate::manager::object::{Caller, Client, Held};
use crate::manager::segments::Allocated;
use crate::wire::packet::Packet;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// A grant that has not been accepted for so long is taken back, if others wait: the process is
/// stopped, or hardly gets to run. Twice as long after each that the same one has let lapse.
const LATE: Duration = Duration::from_millis(10);
/// The longest pause between two looks, and the longest time to accept a grant.
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl Waiting for Caller {
    fn owner(self) -> Owner {
        owner_of(self.client)
    }
}

/// How a client is called in a lock's word.
pub(crate) fn owner_of(client: Client) -> Owner {
    Owner::new(client.seat, client.generation)
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Granted(Caller, u64),
    Refused(Caller, Refusal),
}

/// See the module.
pub(crate) struct Lock {
    memory: Allocated,
    waiters: Waiters<Caller>,
    limits: Limits,
    /// To whom it was granted last, if it has not been taken back since.
    granted: Option<Caller>,
    outside: Kept<(Packet, Held)>,
    broken: bool,
    /// Grants that were taken back because they came too late.
    late: u64,
    /// From when on the last grant is late.
    late_at: Option<Instant>,
    look_at: Option<Instant>,
    pause: Duration,
}

/// Until when each waits who does not wait for ever. Whoever has had the lock is forgotten with the
/// next grant.
#[derive(Default)]
struct Limits {
    by_time: BTreeSet<(Instant, Caller)>,
    by_caller: BTreeMap<Caller, Instant>,
}

impl Limits {
    fn insert(&mut self, until: Instant, caller: Caller) {
        self.remove(caller);
        self.by_time.insert((until, caller));
        self.by_caller.insert(caller, until);
    }

    fn remove(&mut self, caller: Caller) {
        if let Some(until) = self.by_caller.remove(&caller) {
            self.by_time.remove(&(until, caller));
        }
    }

    fn remove_of(&mut self, client: Client) {
        self.by_time.retain(|(_, waiting)| waiting.client != client);
        self.by_caller.retain(|waiting, _| waiting.client != client);
    }

    fn first(&self) -> Option<(Instant, Caller)> {
        self.by_time.first().copied()
    }
}

type Step = Result<Result<Option<Grant<Caller>>, Broken>, Infallible>;

impl Lock {
    /// A free lock with a value.
    pub(crate) fn new(memory: Allocated, value: Packet, held: Held) -> Self {
        let fits = held.is_none() && value.len() <= word::capacity(memory.words().len());
        let outside = if fits {
            word::init(memory.words(), Some(&value));
            None
        } else {
            word::init(memory.words(), None);
            Some((value, held))
        };
        Self {
            memory,
            waiters: Waiters::new(),
            limits: Limits::default(),
            granted: None,
            outside: Kept::new(outside),
            broken: false,
            late: 0,
            late_at: None,
            look_at: None,
            pause: LATE,
        }
    }

    pub(crate) fn memory(&self) -> &Allocated {
        &self.memory
    }

    /// What it holds, in bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let outside = self.outside.values().map(|(value, _)| value.len()).sum::<usize>();
        self.memory.words().len() * 8 + outside + self.waiters.count() * 64
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiters.count()
    }

    /// How many grants were taken back because they were not accepted in time.
    #[cfg(test)]
    pub(crate) fn late(&self) -> u64 {
        self.late
    }

    /// Whether he waits, and it is not granted to him.
    pub(crate) fn is_waiting(&self, caller: Caller) -> bool {
        self.waiters.has(caller)
    }

    /// Whether some thread or task of a client waits.
    pub(crate) fn has_waiter_of(&self, client: Client) -> bool {
        self.waiters.any(|caller| caller.client == client)
    }

    /// Whose process has it, if one has.
    pub(crate) fn holder(&self) -> Option<Owner> {
        let word = always(word::look(self.memory.words()));
        (!word.is_nobodys()).then(|| word.owner())
    }

    /// Somebody wants it, until then.
    pub(crate) fn park(
        &mut self,
        caller: Caller,
        until: Option<Instant>,
        now: Instant,
        told: &mut Vec<Told>,
    ) {
        if self.broken {
            return told.push(Told::Refused(caller, Refusal::Broken));
        }
        if let Some(until) = until {
            self.limits.insert(until, caller);
        }
        self.step(now, told, |waiters, memory| waiters.park(memory, caller));
        // One that came earlier may have been late already, with nobody to mind.
        self.take_back_late(now, told);
    }

    /// Somebody waits no longer.
    pub(crate) fn cancel(&mut self, caller: Caller, now: Instant, told: &mut Vec<Told>) {
        self.limits.remove(caller);
        self.step(now, told, |waiters, memory| waiters.cancel(memory, caller));
    }

    /// Somebody came too late to accept it, and waits on.
    pub(crate) fn back(&mut self, caller: Caller, now: Instant, told: &mut Vec<Told>) {
        self.step(now, told, |waiters, memory| waiters.back(memory, caller));
    }

    /// It was left to the manager.
    pub(crate) fn rang(&mut self, now: Instant, told: &mut Vec<Told>) {
        self.step(now, told, |waiters, memory| waiters.pump(memory));
    }

    /// A client has ended.
    pub(crate) fn gone(&mut self, client: Client, now: Instant, told: &mut Vec<Told>) {
        self.limits.remove_of(client);
        self.step(now, told, |waiters, memory| waiters.died(memory, owner_of(client)));
    }

    /// A holder leaves it, with a value. What it replaces comes back, to be dropped elsewhere.
    pub(crate) fn commit(
        &mut self,
        client: Client,
        recovered: Option<bool>,
        value: Packet,
        held: Held,
        now: Instant,
        told: &mut Vec<Told>,
    ) -> [Option<(Packet, Held)>; 2] {
        if self.broken {
            return [Some((value, held)), None];
        }
        let fits = held.is_none() && value.len() <= word::capacity(self.memory.words().len());
        let mut buffer = None;
        let here = fits.then_some(&value[..]);
        let step =
            self.waiters.commit(self.memory.words(), owner_of(client), recovered, here, |at| {
                buffer = Some(at)
            });
        let Some(buffer) = buffer else {
            return [Some((value, held)), None]; // it did not hold it: its own mistake, and nobody else's
        };
        let old = self.outside.committed(buffer, (value, held), fits);
        self.tell(step, now, told);
        old
    }

    /// A holder leaves it, and its value cannot be taken in: it is as it was, and marked.
    pub(crate) fn roll_back(&mut self, client: Client, now: Instant, told: &mut Vec<Told>) {
        self.step(now, told, |waiters, memory| waiters.roll_back(memory, owner_of(client)));
    }

    /// The value that the manager keeps, if it does at this version.
    pub(crate) fn outside(&self) -> Option<&(Packet, Held)> {
        let word = always(word::look(self.memory.words()));
        match always(word::stored(self.memory.words(), word)) {
            word::Stored::Outside => self.outside.of(word),
            _ => None,
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.limits.first().map(|(at, _)| at).into_iter().chain(self.look_at).min()
    }

    pub(crate) fn tick(
        &mut self,
        now: Instant,
        is_client: impl Fn(Owner) -> bool,
        told: &mut Vec<Told>,
    ) {
        while let Some((at, caller)) = self.limits.first()
            && at <= now
        {
            self.limits.remove(caller);
            // One that has accepted has it.
            let waits = self.waiters.has(caller)
                || self.waiters.granted() == Some(caller)
                    && always(self.waiters.is_pending(self.memory.words()));
            if waits {
                told.push(Told::Refused(caller, Refusal::TimedOut));
                self.step(now, told, |waiters, memory| waiters.cancel(memory, caller));
            }
        }
        if self.look_at.is_some_and(|at| at <= now) {
            let pause = (self.pause * 2).min(PAUSE_MAX);
            self.take_back_late(now, told);
            self.check_owner(is_client, told);
            self.step(now, told, |waiters, memory| waiters.pump(memory));
            let next =
                self.late_at.filter(|at| *at > now).map_or(now + pause, |at| at.min(now + pause));
            (self.pause, self.look_at) = (pause, self.look_at.map(|_| next));
        }
    }

    /// An owner that is no client has been written there by somebody who must not.
    pub(crate) fn check_owner(&mut self, is_client: impl Fn(Owner) -> bool, told: &mut Vec<Told>) {
        if self.holder().is_some_and(|owner| !is_client(owner)) {
            self.break_up(told);
        }
    }

    /// The manager closes: nobody may have it any more.
    pub(crate) fn close(&mut self, told: &mut Vec<Told>) {
        self.broken = true;
        let waiting = always(self.waiters.break_up(self.memory.words()));
        told.extend(waiting.into_iter().map(|caller| Told::Refused(caller, Refusal::Closed)));
        (self.look_at, self.limits) = (None, Limits::default());
    }

    fn break_up(&mut self, told: &mut Vec<Told>) {
        self.broken = true;
        let waiting = always(self.waiters.break_up(self.memory.words()));
        told.extend(waiting.into_iter().map(|caller| Told::Refused(caller, Refusal::Broken)));
        (self.look_at, self.limits) = (None, Limits::default());
    }

    fn take_back_late(&mut self, now: Instant, told: &mut Vec<Told>) {
        if self.late_at.is_some_and(|at| now >= at) && !self.waiters.is_line_empty() && !self.broken
        {
            self.late_at = None;
            let pending = always(self.waiters.is_pending(self.memory.words()));
            self.late += u64::from(pending);
            if let Some(last) = self.granted.take()
                && !pending
            {
                self.limits.remove(last);
            }
            self.step(now, told, |waiters, memory| waiters.revoke(memory));
        }
    }

    fn step(
        &mut self,
        now: Instant,
        told: &mut Vec<Told>,
        step: impl FnOnce(&mut Waiters<Caller>, &[std::sync::atomic::AtomicU64]) -> Step,
    ) {
        if !self.broken {
            let step = step(&mut self.waiters, self.memory.words());
            self.tell(step, now, told);
        }
    }

    fn tell(&mut self, step: Step, now: Instant, told: &mut Vec<Told>) {
        match always(step) {
            Ok(Some(Grant { to, version })) => {
                if let Some(last) = self.granted.replace(to)
                    && last != to
                {
                    self.limits.remove(last); // he has had it
                }
                self.late_at =
                    Some(now + (LATE * 2u32.saturating_pow(self.waiters.lapses())).min(PAUSE_MAX));
                (self.pause, self.look_at) = (LATE, None);
                told.push(Told::Granted(to, version));
            }
            Ok(None) => {}
            Err(Broken) => self.break_up(told),
        }
        if self.waiters.is_line_empty() {
            (self.pause, self.look_at) = (LATE, None);
        } else {
            // What a client tells cannot put it off.
            self.look_at = Some(self.look_at.map_or(now + LATE, |at| at.min(now + LATE)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::word::{Attempt, Release};
    use super::*;
    use crate::manager::segments::Segments;
    use std::sync::Arc;

    const CLIENT: Client = Client { seat: 5, generation: 1 };

    fn caller(ticket: u64) -> Caller {
        Caller { client: CLIENT, ticket }
    }

    fn lock() -> Lock {
        let segments = Arc::new(Segments::default());
        Lock::new(segments.allocate(64).expect("memory"), Packet::copy_from(b"value"), None)
    }

    #[test]
    fn the_limit_of_one_who_has_had_it_is_forgotten() {
        let (mut lock, now) = (lock(), Instant::now());
        for ticket in 1..=100 {
            let mut told = Vec::new();
            lock.park(caller(ticket), Some(now + Duration::from_secs(3600)), now, &mut told);
            let [Told::Granted(to, version)] = told[..] else { panic!("{told:?}") };
            assert_eq!(to, caller(ticket));
            let accepted = always(word::accept(lock.memory.words(), owner_of(CLIENT), version));
            let Attempt::Held(held) = accepted else { panic!("{accepted:?}") };
            assert_eq!((lock.limits.by_time.len(), lock.limits.by_caller.len()), (1, 1));
            always(word::release(
                lock.memory.words(),
                held,
                Release { commit: false, recovered: None },
            ));
        }
        lock.gone(CLIENT, now, &mut Vec::new());
        assert_eq!((lock.limits.by_time.len(), lock.limits.by_caller.len()), (0, 0));
    }

    #[test]
    fn what_a_client_tells_does_not_put_off_the_look_at_it() {
        let (mut lock, begun) = (lock(), Instant::now());
        let holder = Client { seat: 6, generation: 1 };
        assert!(matches!(
            always(word::try_lock(lock.memory.words(), owner_of(holder))),
            Attempt::Held(_)
        ));
        let mut told = Vec::new();
        lock.park(caller(1), None, begun, &mut told);
        for step in 1..10 {
            lock.rang(begun + LATE * step / 10, &mut told);
        }
        assert_eq!((lock.next_deadline(), told.len()), (Some(begun + LATE), 0));
    }
}
