//! Claims: one word for each task that a worker has in hand, in the memory that it shares with the
//! pool.
//!
//! **Ownership.** The word says whether the task belongs to the pool or to the worker. It changes
//! by single atomic instructions. So at every moment, also at the moment of a death, either the
//! pool can revoke the task or the worker has begun it, never both:
//!
//! ```text
//!            offer (pool)           begin (worker)          finish (worker)
//! anything ────────────▶ QUEUED ──────────────▶ STARTED ────────────────▶ DONE
//!                           │                      │ ask (pool)             ▲
//!                           │ revoke (pool)        ▼                        │
//!                           ▼                    ASKED ─────────────────────┘
//!                        REVOKED
//! ```
//!
//! **Watched tasks.** The pool may note in the word that it wants to be told when a queued task
//! begins: QUEUED becomes WATCHED, which is the same in all else. The worker finds that when it
//! begins the task, and sends STARTED. A task that nobody asks about costs nothing.
//!
//! **Reuse of slots.** The word also holds the task's number, which is never given twice in a pool.
//! So a slot can be reused at once: the frame of an earlier task, or a late check of it, finds a
//! word with another number, and nothing is mistaken.
//!
//! **Batches.** A batch of many items (a *run* in the code) is one task with one claim. The claim
//! says whether the batch has begun, and its first item with it. The second word of the slot says
//! how far the batch has come: a *limit*, and how many items have *begun*. (A single task with a
//! time limit notes its start there.)
//!
//! * The worker sets that word up before it begins the batch. So until the batch is known to have
//!   begun, only the worker that has it writes there, whatever has used the slot before.
//! * Before each further item, the worker increments *begun* by compare-and-swap, as long as it is
//!   below the limit.
//! * The pool revokes the items that have not begun, by lowering the limit to *begun* or more.
//!
//! ```text
//! set up (worker)   limit n, begun 1           then `begin`
//! next (worker)     begun + 1                  as long as it is below the limit
//! cut (pool)        limit: begun, or more      only of a batch that is STARTED
//! ```
//!
//! **The worker is not trusted.** It may write anything at any time. What the pool reads here is a
//! hint about that worker's *own* tasks, and each value is copied once before it is checked. A word
//! that fits no state of the task counts as begun ([`Progress::Unknown`]): the worker has touched
//! it.

use std::sync::atomic::{AtomicU64, Ordering};

const QUEUED: u64 = 1;
const STARTED: u64 = 2;
const ASKED: u64 = 3;
const DONE: u64 = 4;
const REVOKED: u64 = 5;
/// Queued, and the pool is to be told when it begins.
const WATCHED: u64 = 6;
/// Bits of the state; the number of the task stands above them.
const STATE_BITS: u32 = 3;

/// Of the second word of a run: the limit stands above, and below it how many items have begun.
const LIMIT_SHIFT: u32 = 32;

/// Slots of one worker, at most: a slot travels in 16 bits.
pub(crate) const SLOTS_MAX: usize = 1 << 16;

/// Where a task's word stands, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) slot: u16,
    /// The task's number in its pool; below 2^61.
    pub(crate) id: u64,
}

impl Claim {
    fn word(self, state: u64) -> u64 {
        self.id << STATE_BITS | state
    }
}

/// How far a task has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Progress {
    /// The worker has not begun it.
    Queued,
    Started,
    /// Begun, and asked to stop.
    Asked,
    /// Its reply has been committed.
    Done,
    /// The pool has taken it back.
    Revoked,
    /// The word was overwritten, or belongs to another task.
    Unknown,
}

/// What came of beginning a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// The pool has taken it back.
    Not,
    Unwatched,
    /// And the pool is to be told.
    Watched,
}

/// The words of one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claims<'a> {
    words: &'a [AtomicU64],
    /// When each task began, in nanoseconds of `CLOCK_MONOTONIC`; written for those that have a
    /// time limit. Of a run, how far it has come.
    starts: &'a [AtomicU64],
}

impl<'a> Claims<'a> {
    /// Over two runs of memory of the same length, one word a slot each.
    pub(crate) fn new(words: &'a [AtomicU64], starts: &'a [AtomicU64]) -> Self {
        assert!(words.len() == starts.len() && words.len() <= SLOTS_MAX, "as the layout has it");
        Self { words, starts }
    }

    fn word(&self, claim: Claim) -> Option<&'a AtomicU64> {
        self.words.get(usize::from(claim.slot))
    }

    // ---- the pool

    /// The task is the worker's to begin, as soon as its frame arrives. To be called before the
    /// frame is written.
    pub(crate) fn offer(&self, claim: Claim) {
        if let Some(word) = self.word(claim) {
            word.store(claim.word(QUEUED), Ordering::Release);
        }
    }

    /// Takes a task back that has not begun. [`Progress::Queued`]: it was, and will not begin any
    /// more. Else how far it has come.
    pub(crate) fn revoke(&self, claim: Claim) -> Progress {
        let Some(word) = self.word(claim) else { return Progress::Unknown };
        let mut queued = claim.word(QUEUED);
        loop {
            match word.compare_exchange(
                queued,
                claim.word(REVOKED),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Progress::Queued,
                Err(seen) if seen == claim.word(WATCHED) && seen != queued => queued = seen,
                Err(seen) => return progress(claim, seen),
            }
        }
    }

    /// Has the worker tell when the task begins. [`Progress::Queued`]: it will. Else it has begun.
    pub(crate) fn watch(&self, claim: Claim) -> Progress {
        let Some(word) = self.word(claim) else { return Progress::Unknown };
        match word.compare_exchange(
            claim.word(QUEUED),
            claim.word(WATCHED),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => Progress::Queued,
            Err(seen) => progress(claim, seen),
        }
    }

    /// Asks a task that has begun to stop: it may look for that. Says how far it had come.
    pub(crate) fn ask(&self, claim: Claim) -> Progress {
        let Some(word) = self.word(claim) else { return Progress::Unknown };
        match word.compare_exchange(
            claim.word(STARTED),
            claim.word(ASKED),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => Progress::Started,
            Err(seen) => progress(claim, seen),
        }
    }

    /// How far the task has come. What was committed before [`Progress::Done`] can be read
    /// afterwards.
    pub(crate) fn look(&self, claim: Claim) -> Progress {
        self.word(claim)
            .map_or(Progress::Unknown, |word| progress(claim, word.load(Ordering::Acquire)))
    }

    /// When the task began, as the worker says; 0 if it does not.
    pub(crate) fn started_at(&self, claim: Claim) -> u64 {
        self.starts.get(usize::from(claim.slot)).map_or(0, |start| start.load(Ordering::Acquire))
    }

    /// Takes back of a run that has begun, and whose limit is this, what has not begun of it, the
    /// last first, at most so many items. Gives the new limit. `None`: there is nothing to take
    /// back; or what stands there makes no sense (as it does if fewer have begun than the pool
    /// knows of), so nobody can say what has not begun.
    pub(crate) fn cut(&self, claim: Claim, limit: u32, known: u32, most: u32) -> Option<u32> {
        let word = self.starts.get(usize::from(claim.slot))?;
        if self.look(claim) != Progress::Started {
            return None;
        }
        // A worker that counts takes it from us once for each item, at most.
        for _ in 0..=limit {
            let seen = word.load(Ordering::Acquire);
            let begun = seen as u32;
            if seen >> LIMIT_SHIFT != u64::from(limit) || begun < known.max(1) || begun >= limit {
                return None;
            }
            let cut = begun.max(limit.saturating_sub(most));
            if cut == limit {
                return None;
            }
            if word
                .compare_exchange(seen, run_word(cut, begun), Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                return Some(cut);
            }
        }
        None
    }

    // ---- the worker

    /// Sets up the second word of a run of so many items. To be called before
    /// [`begin`](Self::begin), which begins the first of them.
    pub(crate) fn set_up(&self, claim: Claim, items: u32) {
        self.note_start(claim, run_word(items, 1));
    }

    /// Begins the next item of a run, of which so many have begun. `false`: the pool has taken it
    /// back, with all behind it.
    pub(crate) fn next(&self, claim: Claim, begun: u32) -> bool {
        let Some(word) = self.starts.get(usize::from(claim.slot)) else { return false };
        loop {
            let seen = word.load(Ordering::Acquire);
            if seen as u32 != begun || seen >> LIMIT_SHIFT <= u64::from(begun) {
                return false;
            }
            // The pool may have moved the limit meanwhile, if only so often as there are items.
            if word.compare_exchange(seen, seen + 1, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return true;
            }
        }
    }

    /// Notes when the task begins. To be called before [`begin`](Self::begin), so that whoever sees
    /// it begun can read it.
    pub(crate) fn note_start(&self, claim: Claim, nanos: u64) {
        if let Some(start) = self.starts.get(usize::from(claim.slot)) {
            start.store(nanos, Ordering::Release);
        }
    }

    /// Begins a task. `false`: the pool has taken it back, and it must not run.
    pub(crate) fn begin(&self, claim: Claim) -> bool {
        self.begin_or_tell(claim) != Begun::Not
    }

    /// Begins a task, and says whether the pool is to be told.
    pub(crate) fn begin_or_tell(&self, claim: Claim) -> Begun {
        let Some(word) = self.word(claim) else { return Begun::Not };
        for (from, begun) in [(QUEUED, Begun::Unwatched), (WATCHED, Begun::Watched)] {
            if word
                .compare_exchange(
                    claim.word(from),
                    claim.word(STARTED),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                )
                .is_ok()
            {
                return begun;
            }
        }
        Begun::Not
    }

    /// The task has ended, and its reply is committed. The pool may have read that by now, and have
    /// given the slot to another task: then nothing is to be said any more.
    pub(crate) fn finish(&self, claim: Claim) {
        let Some(word) = self.word(claim) else { return };
        let done = claim.word(DONE);
        if word
            .compare_exchange(claim.word(STARTED), done, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            // Else it was asked to stop meanwhile.
            let _ =
                word.compare_exchange(claim.word(ASKED), done, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

fn run_word(limit: u32, begun: u32) -> u64 {
    u64::from(limit) << LIMIT_SHIFT | u64::from(begun)
}

fn progress(claim: Claim, seen: u64) -> Progress {
    if seen >> STATE_BITS != claim.id {
        return Progress::Unknown;
    }
    match seen & ((1 << STATE_BITS) - 1) {
        QUEUED | WATCHED => Progress::Queued,
        STARTED => Progress::Started,
        ASKED => Progress::Asked,
        DONE => Progress::Done,
        REVOKED => Progress::Revoked,
        _ => Progress::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(slots: usize) -> (Vec<AtomicU64>, Vec<AtomicU64>) {
        let words = || (0..slots).map(|_| AtomicU64::new(0)).collect();
        (words(), words())
    }

    #[test]
    fn a_task_is_either_begun_or_taken_back() {
        let (words, starts) = memory(2);
        let claims = Claims::new(&words, &starts);
        let task = Claim { slot: 1, id: 7 };
        assert_eq!(claims.look(task), Progress::Unknown);
        claims.offer(task);
        assert_eq!(claims.look(task), Progress::Queued);
        assert!(claims.begin(task));
        assert!(!claims.begin(task), "nothing begins twice");
        assert_eq!(claims.revoke(task), Progress::Started);
        assert_eq!(claims.ask(task), Progress::Started);
        assert_eq!((claims.ask(task), claims.look(task)), (Progress::Asked, Progress::Asked));
        claims.finish(task);
        assert_eq!((claims.revoke(task), claims.ask(task)), (Progress::Done, Progress::Done));

        let next = Claim { slot: 1, id: 8 };
        claims.offer(next);
        assert_eq!(claims.revoke(next), Progress::Queued);
        assert!(!claims.begin(next));
        assert_eq!(
            (claims.revoke(next), claims.look(next)),
            (Progress::Revoked, Progress::Revoked)
        );
    }

    #[test]
    fn a_watched_task_is_queued_until_it_begins_and_then_the_worker_knows() {
        let (words, starts) = memory(1);
        let claims = Claims::new(&words, &starts);
        let task = |id| Claim { slot: 0, id };
        claims.offer(task(1));
        assert_eq!(claims.begin_or_tell(task(1)), Begun::Unwatched);
        assert_eq!(claims.watch(task(1)), Progress::Started, "too late");
        claims.offer(task(2));
        assert_eq!(claims.watch(task(2)), Progress::Queued);
        assert_eq!(
            (claims.look(task(2)), claims.watch(task(2))),
            (Progress::Queued, Progress::Queued)
        );
        assert_eq!(claims.begin_or_tell(task(2)), Begun::Watched);
        assert_eq!(claims.look(task(2)), Progress::Started);
        claims.offer(task(3));
        claims.watch(task(3));
        assert_eq!(claims.revoke(task(3)), Progress::Queued);
        assert_eq!(claims.begin_or_tell(task(3)), Begun::Not);
    }

    #[test]
    fn a_word_of_another_task_is_not_mistaken() {
        let (words, starts) = memory(1);
        let claims = Claims::new(&words, &starts);
        let (old, new) = (Claim { slot: 0, id: 1 }, Claim { slot: 0, id: 2 });
        claims.offer(old);
        assert_eq!(claims.revoke(old), Progress::Queued);
        claims.offer(new);
        assert!(!claims.begin(old), "the frame of the old one is still on its way");
        claims.finish(old);
        assert_eq!((claims.look(old), claims.look(new)), (Progress::Unknown, Progress::Queued));
    }

    #[test]
    fn each_item_of_a_run_is_either_begun_or_taken_back() {
        let (words, starts) = memory(1);
        let claims = Claims::new(&words, &starts);
        let run = Claim { slot: 0, id: 7 };
        claims.offer(run);
        claims.note_start(run, u64::MAX); // by the frame of an earlier task, which is still on its way
        assert_eq!(
            claims.cut(run, 8, 0, u32::MAX),
            None,
            "it has not begun: it can be taken back whole"
        );
        claims.set_up(run, 8);
        assert!(claims.begin(run));
        assert!(claims.next(run, 1));
        assert_eq!(claims.cut(run, 8, 2, 3), Some(5));
        assert!(claims.next(run, 2));
        assert_eq!(claims.cut(run, 5, 2, u32::MAX), Some(3));
        assert_eq!(claims.cut(run, 3, 2, u32::MAX), None, "nothing is left");
        assert!(!claims.next(run, 3));
        claims.finish(run);
        assert_eq!(claims.look(run), Progress::Done);
    }

    #[test]
    fn a_run_whose_word_makes_no_sense_is_not_cut() {
        let (words, starts) = memory(1);
        let claims = Claims::new(&words, &starts);
        let run = Claim { slot: 0, id: 7 };
        claims.offer(run);
        assert!(claims.begin(run));
        // Eight items, of which the last that is known to have begun is the third.
        for (limit, begun) in
            [(0, 0), (8, 0), (8, 2), (8, 8), (8, 9), (8, u32::MAX), (7, 3), (9, 3), (u32::MAX, 3)]
        {
            starts[0].store(run_word(limit, begun), Ordering::Relaxed);
            assert_eq!(claims.cut(run, 8, 3, u32::MAX), None, "{limit} {begun}");
            assert_eq!(starts[0].load(Ordering::Relaxed), run_word(limit, begun));
        }
        starts[0].store(run_word(8, 3), Ordering::Relaxed);
        words[0].store(0, Ordering::Relaxed);
        assert_eq!(claims.cut(run, 8, 3, u32::MAX), None, "the word is not the run's");
        assert_eq!(claims.cut(Claim { slot: 9, id: 7 }, 8, 3, u32::MAX), None);
        assert!(!claims.next(Claim { slot: 9, id: 7 }, 1));
    }

    /// Two threads, as the two processes: no item is had by both, and none by nobody.
    #[test]
    fn a_run_that_is_cut_while_it_is_counted_is_divided() {
        const ITEMS: u32 = 1000;
        let (words, starts) = memory(1);
        for round in 0..200 {
            let claims = Claims::new(&words, &starts);
            let run = Claim { slot: 0, id: round };
            claims.offer(run);
            claims.set_up(run, ITEMS);
            assert!(claims.begin(run));
            let (limit, begun) = std::thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    (1..ITEMS).take_while(|begun| claims.next(run, *begun)).count() as u32 + 1
                });
                let mut limit = ITEMS;
                while let Some(cut) = claims.cut(run, limit, 1, 1 + limit / 4) {
                    limit = cut;
                }
                (limit, worker.join().expect("it counts"))
            });
            assert_eq!(limit, begun);
        }
    }

    #[test]
    fn whatever_is_written_there_and_whatever_slot_is_named_is_only_unknown() {
        let (words, starts) = memory(1);
        let claims = Claims::new(&words, &starts);
        let task = Claim { slot: 0, id: 3 };
        for word in [0, u64::MAX, 3 << STATE_BITS, 3 << STATE_BITS | 7, 4 << STATE_BITS | QUEUED] {
            words[0].store(word, Ordering::Relaxed);
            assert_eq!(
                (claims.look(task), claims.revoke(task), claims.ask(task)),
                (Progress::Unknown, Progress::Unknown, Progress::Unknown)
            );
            assert!(!claims.begin(task));
        }
        let nowhere = Claim { slot: 9, id: 3 };
        claims.offer(nowhere);
        claims.note_start(nowhere, 1);
        claims.finish(nowhere);
        assert_eq!((claims.look(nowhere), claims.started_at(nowhere)), (Progress::Unknown, 0));
        assert!(!claims.begin(nowhere));
    }
}
