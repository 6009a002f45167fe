//! Credit: how far a task may run ahead of the reader of its items.
//!
//! A task that yields has two words in its worker's memory, in the slot of its claim. Both have the
//! low half of the task's number above, so a word of an earlier task in the slot is not mistaken:
//!
//! ```text
//! limit   number, limit (31 bits), closed    the pool's: the task may send while it has sent less
//! wait    number, flags                      the worker's: a thread, or a future, waits for credit
//! ```
//!
//! **Units.** Both sides count in units of 64 bytes, modulo 2³¹: an item costs one, and one more for
//! each 64 bytes of its value ([`cost`]). So no number of empty items is without a bound. A task may
//! send an item of any size as long as it has sent less than the limit, so it runs ahead of its
//! reader by [`WINDOW`] and one item at most.
//!
//! **Waiting.** A full fence is between the worker's store of a flag and its load of the limit, and
//! between the pool's store of the limit and its load of the flags. So at least one side sees the
//! other's store, and no task waits for credit that it has.
//!
//! **The worker is not trusted.** What it may send is checked against the pool's own count. What it
//! writes here costs the pool at most a wake-up.

use super::claim::Claim;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// How far a task runs ahead of its reader, in units.
pub(crate) const WINDOW: u32 = 1024;
/// Bytes of a unit.
const UNIT: usize = 64;
/// Counts wrap here.
const MASK: u32 = (1 << 31) - 1;
/// In the lowest bit of the limit's word.
const CLOSED: u32 = 1;
/// Flags of the wait word.
const THREAD: u32 = 1;
const FUTURE: u32 = 2;

/// What an item costs whose encoded value has so many bytes, in units.
pub(crate) fn cost(bytes: usize) -> u32 {
    1 + (bytes / UNIT) as u32
}

/// A count of units, which wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Units(u32);

impl Units {
    pub(crate) fn plus(self, units: u32) -> Self {
        Self(self.0.wrapping_add(units) & MASK)
    }

    /// Whether more may be sent, of which so much has been, up to this limit.
    pub(crate) fn is_below(self, limit: Self) -> bool {
        (1..=MASK / 2).contains(&limit.since(self))
    }

    /// How many units lie between an earlier count and this one.
    pub(crate) fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0) & MASK
    }
}

/// How a task that yields stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credit {
    /// It may send.
    Granted,
    /// It must wait until the low half of the word is not this any more.
    Spent(u32),
    /// Nobody wants its items any more.
    Closed,
}

/// How a task waits for credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A thread, at the word itself.
    Thread,
    /// A future, whose worker is to be told by a message.
    Future,
}

/// Those who waited when the limit was changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) thread: bool,
    pub(crate) future: bool,
}

/// The words of one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credits<'a> {
    limits: &'a [AtomicU64],
    waits: &'a [AtomicU64],
}

/// The memory that pool and worker share, as far as credit needs it.
pub(crate) trait CreditMemory: std::fmt::Debug + Send + Sync {
    fn credits(&self) -> Credits<'_>;
}

fn tag(claim: Claim) -> u64 {
    claim.id << 32
}

fn is_of(claim: Claim, word: u64) -> bool {
    word >> 32 == claim.id & u64::from(u32::MAX)
}

impl<'a> Credits<'a> {
    /// Over two runs of memory of the same length, one word a slot each.
    pub(crate) fn new(limits: &'a [AtomicU64], waits: &'a [AtomicU64]) -> Self {
        assert!(limits.len() == waits.len(), "as the layout has it");
        Self { limits, waits }
    }

    /// The word for whose change a thread waits.
    pub(crate) fn word(&self, claim: Claim) -> Option<&'a AtomicU64> {
        self.limits.get(usize::from(claim.slot))
    }

    // ---- the pool

    /// A task that yields is about to be sent, with a first credit of [`WINDOW`].
    pub(crate) fn open(&self, claim: Claim) {
        let slot = usize::from(claim.slot);
        if let (Some(limit), Some(wait)) = (self.limits.get(slot), self.waits.get(slot)) {
            wait.store(tag(claim), Ordering::Relaxed);
            limit.store(tag(claim) | u64::from(WINDOW << 1), Ordering::Release);
        }
    }

    /// Raises the limit. Returns who waits for that.
    pub(crate) fn grant(&self, claim: Claim, limit: Units) -> Waiting {
        self.change(claim, |low| (low & CLOSED) | limit.0 << 1)
    }

    /// Nobody wants more items of the task. Returns who waits for credit.
    pub(crate) fn close(&self, claim: Claim) -> Waiting {
        self.change(claim, |low| low | CLOSED)
    }

    fn change(&self, claim: Claim, change: impl Fn(u32) -> u32) -> Waiting {
        let Some(word) = self.word(claim) else { return Waiting::default() };
        let changed = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |seen| {
            is_of(claim, seen).then(|| tag(claim) | u64::from(change(seen as u32)))
        });
        if changed.is_err() {
            return Waiting::default(); // the slot is another task's, or was overwritten
        }
        fence(Ordering::SeqCst);
        let wait = &self.waits[usize::from(claim.slot)];
        let seen = wait.load(Ordering::Acquire);
        if seen as u32 == 0
            || !is_of(claim, seen)
            || wait
                .compare_exchange(seen, tag(claim), Ordering::AcqRel, Ordering::Acquire)
                .is_err_and(|seen| !is_of(claim, seen))
        {
            return Waiting::default();
        }
        Waiting { thread: seen as u32 & THREAD != 0, future: seen as u32 & FUTURE != 0 }
    }

    // ---- the worker

    /// Whether a task that has sent so much may send more.
    pub(crate) fn look(&self, claim: Claim, sent: Units) -> Credit {
        let Some(word) = self.word(claim) else { return Credit::Closed };
        let seen = word.load(Ordering::Acquire);
        match seen as u32 {
            _ if !is_of(claim, seen) => Credit::Closed,
            low if low & CLOSED != 0 => Credit::Closed,
            low if sent.is_below(Units(low >> 1)) => Credit::Granted,
            low => Credit::Spent(low),
        }
    }

    /// Notes that somebody waits; to be followed by another look.
    pub(crate) fn wait(&self, claim: Claim, waiter: Waiter) {
        let flag = match waiter {
            Waiter::Thread => THREAD,
            Waiter::Future => FUTURE,
        };
        if let Some(wait) = self.waits.get(usize::from(claim.slot)) {
            let _ = wait.fetch_update(Ordering::AcqRel, Ordering::Acquire, |seen| {
                is_of(claim, seen).then_some(seen | u64::from(flag))
            });
        }
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> [Vec<AtomicU64>; 2] {
        [(); 2].map(|()| (0..2).map(|_| AtomicU64::new(0)).collect())
    }

    #[test]
    fn a_task_sends_up_to_its_limit_and_one_item_more() {
        let [limits, waits] = memory();
        let credits = Credits::new(&limits, &waits);
        let task = Claim { slot: 1, id: 7 << 32 | 5 };
        assert_eq!(credits.look(task, Units(0)), Credit::Closed, "it was not opened");
        credits.open(task);
        assert_eq!(credits.look(task, Units(WINDOW - 1)), Credit::Granted);
        let large = Units(WINDOW - 1).plus(cost(usize::from(u16::MAX) << 16));
        let Credit::Spent(seen) = credits.look(task, large) else { panic!("it has sent too much") };
        credits.wait(task, Waiter::Thread);
        let waiting = credits.grant(task, large.plus(WINDOW));
        assert_eq!(waiting, Waiting { thread: true, future: false });
        assert_eq!(credits.look(task, large), Credit::Granted);
        assert_ne!(limits[1].load(Ordering::Relaxed) as u32, seen, "or a thread would sleep on");
        assert_eq!(credits.grant(task, large.plus(WINDOW + 1)), Waiting::default(), "told once");
        credits.wait(task, Waiter::Future);
        assert_eq!(credits.close(task), Waiting { thread: false, future: true });
        assert_eq!(credits.look(task, large), Credit::Closed);
        credits.grant(task, large.plus(3 * WINDOW));
        assert_eq!(credits.look(task, large), Credit::Closed, "it stays closed");
    }

    #[test]
    fn counts_wrap_without_a_gap() {
        let [limits, waits] = memory();
        let credits = Credits::new(&limits, &waits);
        let task = Claim { slot: 0, id: 1 };
        credits.open(task);
        let (mut sent, mut taken) = (Units(MASK - 5000), Units(MASK - 5000));
        credits.grant(task, taken.plus(WINDOW));
        for round in 0..10_000u32 {
            while credits.look(task, sent) == Credit::Granted {
                sent = sent.plus(cost((round as usize * 7919) % (1 << 20)));
                assert!(sent.since(taken) < WINDOW + cost(1 << 20));
            }
            taken = sent;
            credits.grant(task, taken.plus(WINDOW));
        }
        assert!(!Units(5).is_below(Units(5)) && !Units(6).is_below(Units(5)));
        assert!(Units(MASK).is_below(Units(0)));
    }

    #[test]
    fn the_words_of_another_task_are_left_alone() {
        let [limits, waits] = memory();
        let credits = Credits::new(&limits, &waits);
        let (old, new) = (Claim { slot: 0, id: 1 }, Claim { slot: 0, id: 2 });
        credits.open(new);
        let before = limits[0].load(Ordering::Relaxed);
        credits.wait(new, Waiter::Thread);
        assert_eq!(credits.grant(old, Units(5)), Waiting::default());
        assert_eq!(credits.close(old), Waiting::default());
        assert_eq!(limits[0].load(Ordering::Relaxed), before);
        assert_eq!(credits.look(old, Units(0)), Credit::Closed);
        let nowhere = Claim { slot: 9, id: 2 };
        credits.open(nowhere);
        credits.wait(nowhere, Waiter::Thread);
        assert_eq!(credits.grant(nowhere, Units(5)), Waiting::default());
        assert_eq!(credits.look(nowhere, Units(0)), Credit::Closed);
        assert!(credits.grant(new, Units(5)).thread);
    }

    /// Two threads, as the two processes: nobody sleeps on credit that is there.
    #[test]
    fn no_grant_is_missed() {
        const ROUNDS: u32 = 20_000;
        let [limits, waits] = memory();
        let credits = Credits::new(&limits, &waits);
        let task = Claim { slot: 0, id: 3 };
        credits.open(task);
        let woken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut sent = Units(0);
                for _ in 0..ROUNDS {
                    while let Credit::Spent(_) = credits.look(task, sent) {
                        let before = woken.load(Ordering::SeqCst);
                        credits.wait(task, Waiter::Thread);
                        if let Credit::Spent(_) = credits.look(task, sent) {
                            while woken.load(Ordering::SeqCst) == before {
                                std::hint::spin_loop();
                                std::thread::yield_now();
                            }
                        }
                    }
                    sent = sent.plus(WINDOW);
                }
            });
            for round in 2..=ROUNDS {
                if credits.grant(task, Units(0).plus(round * WINDOW)).thread {
                    woken.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
}
