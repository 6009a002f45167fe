//! The manager's side of a lock: who waits, in what order, and to whom it was granted.
//!
//! One rule: a word that is nobody's goes to the head of the queue; else it is told that somebody waits
//! ([`Waiters::pump`]). It is applied after everything that happens: somebody parks or gives up, the lock was left to the
//! manager, its holder died, a grant was not accepted in time.
//!
//! While a process owns the word the manager changes nothing in it but the bit that somebody waits, by one unconditional
//! operation; while nobody does, nobody else changes it, for a free word with that bit is not taken. So the manager's
//! compare-and-swaps fail only if somebody writes what he must not: then the lock is broken.

use super::word::{self, Memory, Owner, Word};
use std::collections::VecDeque;
use std::hash::Hash;

/// A grant is to be told: at this version of the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Grant<C> {
    pub(crate) to: C,
    pub(crate) version: u64,
}

/// Somebody wrote over the word: the lock cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// What may wait for a lock.
pub(crate) trait Waiting: Copy + Eq {
    /// Whose process it is.
    fn owner(self) -> Owner;
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Waiters<C> {
    queue: VecDeque<C>,
    /// The last grant; it may have been accepted since.
    granted: Option<Grant<C>>,
    /// Grants that came too late, one after another.
    late: usize,
}

type Outcome<T, M> = Result<Result<T, Broken>, <M as Memory>::Stop>;

impl<C: Waiting> Waiters<C> {
    pub(crate) fn new() -> Self {
        Self { queue: VecDeque::new(), granted: None, late: 0 }
    }

    /// Those that wait, in order; not the one to whom it was granted.
    pub(crate) fn queue(&self) -> impl ExactSizeIterator<Item = C> + '_ {
        self.queue.iter().copied()
    }

    /// To whom it was granted last; whether he has accepted is not known here.
    pub(crate) fn granted(&self) -> Option<C> {
        self.granted.map(|grant| grant.to)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Somebody wants it.
    pub(crate) fn park<M: Memory + ?Sized>(&mut self, memory: &M, who: C) -> Outcome<Option<Grant<C>>, M> {
        self.queue.push_back(who);
        self.pump(memory)
    }

    /// Somebody waits no longer. If it was granted to him, and he has not accepted, it is taken back.
    pub(crate) fn cancel<M: Memory + ?Sized>(&mut self, memory: &M, who: C) -> Outcome<Option<Grant<C>>, M> {
        let before = self.queue.len();
        self.queue.retain(|waiting| *waiting != who);
        if self.queue.len() == before {
            let Some(grant) = self.granted.filter(|grant| grant.to == who) else { return Ok(Ok(None)) };
            self.granted = None;
            if !self.take_back(memory, grant)? {
                return Ok(Ok(None)); // he has accepted it before
            }
        }
        self.pump(memory)
    }

    /// A grant has not been accepted for long, and others wait: the next one gets it, and the late one is second. If that
    /// one is late as well it is third, and so on, until one has accepted: else two that are stopped would take turns, and
    /// nobody behind them would ever get it.
    pub(crate) fn revoke<M: Memory + ?Sized>(&mut self, memory: &M) -> Outcome<Option<Grant<C>>, M> {
        let Some(grant) = self.granted.filter(|_| !self.queue.is_empty()) else { return Ok(Ok(None)) };
        self.granted = None;
        if !self.take_back(memory, grant)? {
            self.late = 0;
            return Ok(Ok(None));
        }
        self.late = (self.late + 1).min(self.queue.len());
        self.queue.insert(self.late, grant.to);
        self.pump(memory)
    }

    /// Whether the grant has been accepted, or lost.
    pub(crate) fn is_pending<M: Memory + ?Sized>(&self, memory: &M) -> Result<bool, M::Stop> {
        let Some(grant) = self.granted else { return Ok(false) };
        let word = word::look(memory)?;
        Ok(word.owner() == grant.to.owner() && word.is_granted() && word.version() == grant.version)
    }

    fn take_back<M: Memory + ?Sized>(&self, memory: &M, grant: Grant<C>) -> Result<bool, M::Stop> {
        let word = word::look(memory)?;
        if word.owner() != grant.to.owner() || !word.is_granted() || word.version() != grant.version {
            return Ok(false);
        }
        word::change(memory, word, word.taken_back())
    }

    /// A process has ended: its tickets are dropped, and what it held goes to the next, with the last committed value.
    pub(crate) fn died<M: Memory + ?Sized>(&mut self, memory: &M, owner: Owner) -> Outcome<Option<Grant<C>>, M> {
        self.drop_tickets(owner);
        match self.take_over(memory, owner)? {
            // Also if it was not its own: what it has left to us it may not have been able to say.
            Ok(()) => self.pump(memory),
            Err(broken) => Ok(Err(broken)),
        }
    }

    /// A holder has left the lock with a value that cannot be taken in: as if it had ended, but it goes on waiting for others.
    pub(crate) fn roll_back<M: Memory + ?Sized>(&mut self, memory: &M, owner: Owner) -> Outcome<Option<Grant<C>>, M> {
        if word::look(memory)?.is_granted() {
            return Ok(Ok(None)); // it does not hold it
        }
        match self.take_over(memory, owner)? {
            Ok(()) => self.pump(memory),
            Err(broken) => Ok(Err(broken)),
        }
    }

    pub(super) fn drop_tickets(&mut self, owner: Owner) {
        self.queue.retain(|waiting| waiting.owner() != owner);
        self.granted.take_if(|grant| grant.to.owner() == owner);
    }

    pub(super) fn take_over<M: Memory + ?Sized>(&self, memory: &M, owner: Owner) -> Outcome<(), M> {
        let word = word::look(memory)?;
        if word.owner() != owner {
            return Ok(Ok(()));
        }
        // What was granted and not accepted, it never had.
        let new = if word.is_granted() { word.taken_back() } else { word.taken_back().recovered() };
        Ok(if word::change(memory, word, new)? { Ok(()) } else { Err(Broken) })
    }

    /// A holder releases the lock with a value that has come to the manager: written to its place, if there is one, else
    /// kept. `committed` is told which buffer it was that is the value from now on.
    pub(crate) fn commit<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        owner: Owner,
        recovered: Option<bool>,
        here: Option<&[u8]>,
        committed: impl FnOnce(usize),
    ) -> Outcome<Option<Grant<C>>, M> {
        let word = word::look(memory)?;
        if word.owner() != owner || word.is_granted() {
            return Ok(Err(Broken));
        }
        match here {
            Some(value) => word::write(memory, word, value.len(), word::words_of(value))?,
            None => word::write_outside(memory, word)?,
        }
        if !word::change(memory, word, word.committed_for(recovered))? {
            return Ok(Err(Broken));
        }
        committed(word.other_buffer());
        self.pump(memory)
    }

    /// Applies the rule. Gives the grant that is to be told.
    pub(crate) fn pump<M: Memory + ?Sized>(&mut self, memory: &M) -> Outcome<Option<Grant<C>>, M> {
        let Some(next) = self.queue.front().copied() else {
            let word = word::clear_waiters(memory)?;
            let done = !word.is_managers() || word::change(memory, word, word.freed())?;
            return Ok(if done { Ok(None) } else { Err(Broken) });
        };
        let word = word::set_waiters(memory)?;
        if !word.is_nobodys() {
            return Ok(Ok(None));
        }
        let new: Word = word.granted_to(next.owner(), self.queue.len() > 1);
        if word.is_broken() || !word::change(memory, word, new)? {
            return Ok(Err(Broken));
        }
        self.queue.pop_front();
        let grant = Grant { to: next, version: new.version() };
        if self.granted.replace(grant).is_some() {
            self.late = 0; // the last one had accepted: what is taken back is forgotten
        }
        Ok(Ok(Some(grant)))
    }

    /// Nobody may have the lock any more; gives all that waited.
    pub(crate) fn break_up<M: Memory + ?Sized>(&mut self, memory: &M) -> Result<Vec<C>, M::Stop> {
        word::set_broken(memory)?;
        Ok(self.queue.drain(..).chain(self.granted.take().map(|grant| grant.to)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::word::{Attempt, Release, always};
    use super::*;
    use std::sync::atomic::AtomicU64;

    impl Waiting for u32 {
        fn owner(self) -> Owner {
            Owner::new(self + 10, 1) // the first are not processes
        }
    }

    #[test]
    fn those_behind_get_it_however_many_before_them_never_accept() {
        for stopped in 0..5u32 {
            let words: Vec<AtomicU64> = (0..32).map(|_| AtomicU64::new(0)).collect();
            let words = &words[..];
            word::init(words, Some(&[0; 8]));
            let mut waiters = Waiters::new();
            let Attempt::Held(mut held) = always(word::try_lock(words, 100.owner())) else { panic!("it is free") };
            let all = stopped + 3;
            for who in 0..all {
                assert_eq!(always(waiters.park(words, who)), Ok(None));
            }
            let (mut got, mut revoked, mut in_a_row) = (Vec::new(), 0, 0);
            while got.len() < 3 {
                always(word::release(words, held, Release { commit: false, recovered: None }));
                let mut grant = always(waiters.pump(words)).expect("well kept").expect("somebody waits");
                while grant.to < stopped {
                    (revoked, in_a_row) = (revoked + 1, in_a_row + 1);
                    assert!(in_a_row <= 30, "{stopped}: nobody gets it");
                    grant = always(waiters.revoke(words)).expect("well kept").expect("others wait");
                }
                in_a_row = 0;
                let Attempt::Held(mine) = always(word::accept(words, grant.to.owner(), grant.version)) else { panic!("granted") };
                held = mine;
                got.push(grant.to);
            }
            assert!(got.is_sorted(), "{got:?}");
            assert_eq!(waiters.queue().len(), stopped as usize, "they wait on");
            // A single late one is second.
            assert!(stopped != 1 || revoked == 3);
        }
    }
}
