//! The manager's side of a lock: which callers wait, in what order, and to which one it was
//! granted.
//!
//! **The one rule** ([`Waiters::pump`]). If no process owns the word, the lock is granted to the
//! head of the wait queue. If a process does, the bit is set that says that a caller waits. The
//! rule is applied after every event: a caller parks or cancels, the lock was left to the manager,
//! its holder died, a grant was not accepted in time.
//!
//! **Late callers.** A caller that does not accept its grant in time leaves the wait queue: it is
//! granted nothing more, and no other caller waits for it. As soon as it finds that its grant was
//! revoked it says so, and is at its position again, before all that came later. So a process that
//! is stopped delays the others once, and a process that is only slow loses nothing but time: see
//! [`Waiters::lapses`].
//!
//! **Who changes the word.** While a process holds the lock, the manager changes only the waiters
//! bit, by one unconditional operation. While no process owns the word, only the manager changes
//! it, since no client takes a free word with that bit. A grant is revoked by a compare-and-swap,
//! which fails if the process has accepted it before. Any other compare-and-swap of the manager
//! fails only if a process writes what it must not: then the lock is broken.

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

/// One that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place<C> {
    who: C,
    /// The how many-th that came.
    number: u64,
    /// Grants that he did not accept in time.
    lapses: u32,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Waiters<C> {
    /// Those in the line, by their numbers.
    queue: VecDeque<Place<C>>,
    /// The last grant, at this version; it may have been accepted since.
    granted: Option<(Place<C>, u64)>,
    /// Those that were late, and have not said that they are there.
    late: Vec<Place<C>>,
    /// How many have come.
    come: u64,
}

type Outcome<T, M> = Result<Result<T, Broken>, <M as Memory>::Stop>;

impl<C: Waiting> Waiters<C> {
    pub(crate) fn new() -> Self {
        Self { queue: VecDeque::new(), granted: None, late: Vec::new(), come: 0 }
    }

    /// How many wait; the one to whom it was granted is not among them.
    pub(crate) fn count(&self) -> usize {
        self.queue.len() + self.late.len()
    }

    /// Whether he waits, in the line or out of it; one to whom it was granted does not.
    pub(crate) fn has(&self, who: C) -> bool {
        self.any(|waiting| waiting == who)
    }

    /// Whether one of those waits.
    pub(crate) fn any(&self, mut which: impl FnMut(C) -> bool) -> bool {
        self.queue.iter().chain(&self.late).any(|place| which(place.who))
    }

    /// To whom it was granted last; whether he has accepted is not known here.
    pub(crate) fn granted(&self) -> Option<C> {
        self.granted.map(|(place, _)| place.who)
    }

    /// How many grants he has let lapse before to whom it was granted last. He is to be given twice
    /// the time after each: then one that is only slow, and says each time that he is there,
    /// has it after a few of them, however slow he is.
    pub(crate) fn lapses(&self) -> u32 {
        self.granted.map_or(0, |(place, _)| place.lapses)
    }

    /// Nobody stands in the line.
    pub(crate) fn is_line_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Somebody wants it.
    pub(crate) fn park<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        who: C,
    ) -> Outcome<Option<Grant<C>>, M> {
        self.queue.push_back(Place { who, number: self.come, lapses: 0 });
        self.come += 1;
        self.pump(memory)
    }

    /// Somebody has found that his grant was taken back: he is there.
    pub(crate) fn back<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        who: C,
    ) -> Outcome<Option<Grant<C>>, M> {
        // He may have been refused meanwhile.
        let Some(at) = self.late.iter().position(|place| place.who == who) else {
            return Ok(Ok(None));
        };
        let place = self.late.remove(at);
        let before = self.queue.partition_point(|other| other.number < place.number);
        self.queue.insert(before, place);
        self.pump(memory)
    }

    /// Somebody waits no longer. If it was granted to him, and he has not accepted, it is taken
    /// back.
    pub(crate) fn cancel<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        who: C,
    ) -> Outcome<Option<Grant<C>>, M> {
        if self.has(who) {
            self.drop_tickets(|waiting| waiting == who);
        } else {
            let Some((place, version)) = self.granted.filter(|(place, _)| place.who == who) else {
                return Ok(Ok(None));
            };
            self.granted = None;
            if !self.take_back(memory, place.who, version)? {
                return Ok(Ok(None)); // he has accepted it before
            }
        }
        self.pump(memory)
    }

    /// A grant has not been accepted for long, and others wait: the next one gets it, and the late
    /// one is asked no more until he says that he is there.
    pub(crate) fn revoke<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
    ) -> Outcome<Option<Grant<C>>, M> {
        let Some((mut place, version)) = self.granted.filter(|_| !self.queue.is_empty()) else {
            return Ok(Ok(None));
        };
        self.granted = None;
        if !self.take_back(memory, place.who, version)? {
            return Ok(Ok(None));
        }
        place.lapses += 1;
        self.late.push(place);
        self.pump(memory)
    }

    /// Whether the grant has been accepted, or lost.
    pub(crate) fn is_pending<M: Memory + ?Sized>(&self, memory: &M) -> Result<bool, M::Stop> {
        let Some((place, version)) = self.granted else { return Ok(false) };
        Ok(is_granted(word::look(memory)?, place.who, version))
    }

    fn take_back<M: Memory + ?Sized>(
        &self,
        memory: &M,
        who: C,
        version: u64,
    ) -> Result<bool, M::Stop> {
        let word = word::look(memory)?;
        if !is_granted(word, who, version) {
            return Ok(false);
        }
        word::change(memory, word, word.taken_back())
    }

    /// A process has ended: its tickets are dropped, and what it held goes to the next, with the
    /// last committed value.
    pub(crate) fn died<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        owner: Owner,
    ) -> Outcome<Option<Grant<C>>, M> {
        self.drop_tickets(|waiting| waiting.owner() == owner);
        match self.take_over(memory, owner)? {
            // Also if it was not its own: what it has left to us it may not have been able to say.
            Ok(()) => self.pump(memory),
            Err(broken) => Ok(Err(broken)),
        }
    }

    /// A holder has left the lock with a value that cannot be taken in: as if it had ended, but it
    /// goes on waiting for others.
    pub(crate) fn roll_back<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        owner: Owner,
    ) -> Outcome<Option<Grant<C>>, M> {
        if word::look(memory)?.is_granted() {
            return Ok(Ok(None)); // it does not hold it
        }
        match self.take_over(memory, owner)? {
            Ok(()) => self.pump(memory),
            Err(broken) => Ok(Err(broken)),
        }
    }

    pub(super) fn drop_tickets(&mut self, gone: impl Fn(C) -> bool) {
        self.queue.retain(|place| !gone(place.who));
        self.late.retain(|place| !gone(place.who));
        self.granted.take_if(|(place, _)| gone(place.who));
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

    /// A holder releases the lock with a value that has come to the manager: written to its place,
    /// if there is one, else kept. `committed` is told which buffer it was that is the value
    /// from now on.
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
        let new: Word = word.granted_to(next.who.owner(), self.queue.len() > 1);
        if word.is_broken() || !word::change(memory, word, new)? {
            return Ok(Err(Broken));
        }
        self.queue.pop_front();
        self.granted = Some((next, new.version()));
        Ok(Ok(Some(Grant { to: next.who, version: new.version() })))
    }

    /// Nobody may have the lock any more; gives all that waited.
    pub(crate) fn break_up<M: Memory + ?Sized>(&mut self, memory: &M) -> Result<Vec<C>, M::Stop> {
        word::set_broken(memory)?;
        let granted = self.granted.take().map(|(place, _)| place);
        Ok(self
            .queue
            .drain(..)
            .chain(self.late.drain(..))
            .chain(granted)
            .map(|place| place.who)
            .collect())
    }
}

fn is_granted<C: Waiting>(word: Word, who: C, version: u64) -> bool {
    word.owner() == who.owner() && word.is_granted() && word.version() == version
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

    fn lock() -> Vec<AtomicU64> {
        let words: Vec<AtomicU64> = (0..32).map(|_| AtomicU64::new(0)).collect();
        word::init(&words, Some(&[0; 8]));
        words
    }

    const AS_IT_WAS: Release = Release { commit: false, recovered: None };

    fn accept(words: &[AtomicU64], grant: Grant<u32>) -> Word {
        let Attempt::Held(word) = always(word::accept(words, grant.to.owner(), grant.version))
        else {
            panic!("granted")
        };
        word
    }

    /// They wait while one holds it, and are asked when it is released, until these do.
    fn asked_until(
        waiters: &mut Waiters<u32>,
        words: &[AtomicU64],
        stopped: u32,
    ) -> (Vec<u32>, Grant<u32>) {
        let mut late = Vec::new();
        let mut grant = always(waiters.pump(words)).expect("well kept").expect("somebody waits");
        while grant.to < stopped {
            late.push(grant.to);
            grant = always(waiters.revoke(words)).expect("well kept").expect("others wait");
        }
        (late, grant)
    }

    #[test]
    fn those_that_do_not_accept_are_asked_once_and_not_again_before_they_say_that_they_are_there() {
        for stopped in 0..5 {
            let (words, mut waiters) = (lock(), Waiters::new());
            let Attempt::Held(mut held) = always(word::try_lock(&words[..], 100.owner())) else {
                panic!("it is free")
            };
            for who in 0..stopped + 3 {
                assert_eq!(always(waiters.park(&words[..], who)), Ok(None));
            }
            let (mut got, mut late) = (Vec::new(), Vec::new());
            for _ in 0..3 {
                always(word::release(&words[..], held, AS_IT_WAS));
                let (more, grant) = asked_until(&mut waiters, &words, stopped);
                late.extend(more);
                held = accept(&words, grant);
                got.push(grant.to);
            }
            assert!(late.into_iter().eq(0..stopped) && got.into_iter().eq(stopped..stopped + 3));
            assert!((0..stopped).all(|who| waiters.has(who)), "they wait on");
            // Nobody is in the line any more, so whoever comes takes it as if nobody waited.
            assert_eq!(always(word::release(&words[..], held, AS_IT_WAS)), word::Released::Free);
        }
    }

    #[test]
    fn one_that_was_late_is_at_his_place_again_and_before_all_that_came_later() {
        let (words, mut waiters) = (lock(), Waiters::new());
        let Attempt::Held(held) = always(word::try_lock(&words[..], 100.owner())) else {
            panic!("it is free")
        };
        for who in 0..5 {
            assert_eq!(always(waiters.park(&words[..], who)), Ok(None));
        }
        always(word::release(&words[..], held, AS_IT_WAS));
        let (late, grant) = asked_until(&mut waiters, &words, 2);
        assert_eq!((late, grant.to), (vec![0, 1], 2));
        let mut held = accept(&words, grant);
        for who in [1, 0, 77] {
            assert_eq!(always(waiters.back(&words[..], who)), Ok(None));
        }
        let mut rest = Vec::new();
        for _ in 0..4 {
            always(word::release(&words[..], held, AS_IT_WAS));
            let (_, grant) = asked_until(&mut waiters, &words, 0);
            rest.push((grant.to, waiters.lapses()));
            held = accept(&words, grant);
        }
        assert_eq!(rest, [(0, 1), (1, 1), (3, 0), (4, 0)]);
    }

    #[test]
    fn one_that_is_late_and_gives_up_or_ends_is_forgotten() {
        let (words, mut waiters) = (lock(), Waiters::new());
        let Attempt::Held(held) = always(word::try_lock(&words[..], 100.owner())) else {
            panic!("it is free")
        };
        for who in 0..3 {
            assert_eq!(always(waiters.park(&words[..], who)), Ok(None));
        }
        always(word::release(&words[..], held, AS_IT_WAS));
        let (late, grant) = asked_until(&mut waiters, &words, 2);
        assert_eq!(late, [0, 1]);
        accept(&words, grant);
        assert_eq!(always(waiters.cancel(&words[..], 0)), Ok(None));
        assert_eq!(always(waiters.died(&words[..], 1.owner())), Ok(None));
        assert_eq!(waiters.count(), 0);
        assert_eq!(always(waiters.back(&words[..], 0)), Ok(None));
        assert_eq!(waiters.count(), 0);
    }
}
