//! The word of a lock, the two buffers of its value, and what a client does with them.
//!
//! ```text
//! word 0     version 39 | buffer 1 | broken 1 | recovered 1 | waiters 1 | granted 1 | generation 8 | seat 12
//! word 1     the last fencing token that was given
//! word 2, 3  length in bytes of what is in buffer 0, in buffer 1; or that the manager keeps it
//! word 4..   buffer 0, then buffer 1, equally long
//! ```
//!
//! The *seat* is the client slot of the owner.
//!
//! **Commit.** The value is what is in the buffer that the word names. The holder of the lock
//! writes into the other buffer, and then changes the word. That one compare-and-swap releases the
//! lock, names the other buffer and increments the version. So a death at any instruction leaves
//! nothing to repair.
//!
//! **Exhaustive search.** All functions are generic over the [`Memory`], so that the search
//! (`search.rs`) can stop them between any two of its operations.
//!
//! **No process is trusted.** Any process that has the memory may write anything at any time, so
//! nothing that is read is believed.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Memory that other processes change at any time. The error never happens with real memory; in the
/// search, a step ends there.
pub(crate) trait Memory {
    type Stop;

    /// How many words.
    fn len(&self) -> usize;
    fn load(&self, at: usize, order: Ordering) -> Result<u64, Self::Stop>;
    fn store(&self, at: usize, value: u64) -> Result<(), Self::Stop>;
    fn compare_exchange(
        &self,
        at: usize,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, Self::Stop>;
    fn fetch_or(&self, at: usize, bits: u64) -> Result<u64, Self::Stop>;
    fn fetch_and(&self, at: usize, bits: u64) -> Result<u64, Self::Stop>;
    fn fence(&self, order: Ordering);
}

impl Memory for [AtomicU64] {
    type Stop = Infallible;

    fn len(&self) -> usize {
        <[AtomicU64]>::len(self)
    }

    #[inline]
    fn load(&self, at: usize, order: Ordering) -> Result<u64, Infallible> {
        Ok(self[at].load(order))
    }

    #[inline]
    fn store(&self, at: usize, value: u64) -> Result<(), Infallible> {
        self[at].store(value, Ordering::Relaxed);
        Ok(())
    }

    #[inline]
    fn compare_exchange(
        &self,
        at: usize,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, Infallible> {
        Ok(self[at].compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire))
    }

    fn fetch_or(&self, at: usize, bits: u64) -> Result<u64, Infallible> {
        Ok(self[at].fetch_or(bits, Ordering::AcqRel))
    }

    fn fetch_and(&self, at: usize, bits: u64) -> Result<u64, Infallible> {
        Ok(self[at].fetch_and(bits, Ordering::AcqRel))
    }

    #[inline]
    fn fence(&self, order: Ordering) {
        fence(order);
    }
}

/// Takes what real memory gives.
#[inline]
pub(crate) fn always<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
    }
}

const WORD: usize = 0;
const FENCE: usize = 1;
const LENGTHS: usize = 2;
/// Words before the buffers.
pub(crate) const HEAD: usize = 4;

/// In a length: the manager keeps this value, for it has no room in its place.
pub(super) const OUTSIDE: u64 = 1 << 63;

const SEAT_BITS: u32 = 12;
const GENERATION_BITS: u32 = 8;
const OWNER: u64 = (1 << (SEAT_BITS + GENERATION_BITS)) - 1;
const GRANTED: u64 = 1 << 20;
const WAITERS: u64 = 1 << 21;
const RECOVERED: u64 = 1 << 22;
const BROKEN: u64 = 1 << 23;
const BUFFER: u64 = 1 << 24;
const VERSION: u32 = 25;

/// Who owns a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner(u64);

impl Owner {
    const FREE: Self = Self(0);
    const MANAGER: Self = Self(1);

    /// The seat, and the lowest bits of its generation.
    pub(crate) fn seat(self) -> (u32, u32) {
        ((self.0 & ((1 << SEAT_BITS) - 1)) as u32, (self.0 >> SEAT_BITS) as u32)
    }

    /// Whether it is the owner of this seat and generation.
    pub(crate) fn is(self, seat: u32, generation: u32) -> bool {
        self == Self::new(seat, generation)
    }

    /// A process's seat: from 2 to 4095. Of the generation the lowest bits count: a seat is taken
    /// again only when no word names it any more, so it only tells apart what came late.
    pub(crate) fn new(seat: u32, generation: u32) -> Self {
        debug_assert!((2..1 << SEAT_BITS).contains(&seat), "a seat has a number of its own");
        Self(u64::from(generation) << SEAT_BITS & OWNER | u64::from(seat))
    }
}

/// The word of a lock, as it was at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Word(u64);

impl Word {
    pub(crate) fn owner(self) -> Owner {
        Owner(self.0 & OWNER)
    }

    /// Taken by nobody, and waited for by nobody.
    fn is_free(self) -> bool {
        self.0 & (OWNER | GRANTED | WAITERS | BROKEN) == 0
    }

    /// It is the manager's to give away.
    pub(crate) fn is_nobodys(self) -> bool {
        matches!(self.owner(), Owner::FREE | Owner::MANAGER)
    }

    pub(super) fn is_managers(self) -> bool {
        self.owner() == Owner::MANAGER
    }

    pub(super) fn is_granted(self) -> bool {
        self.0 & GRANTED != 0
    }

    pub(crate) fn has_waiters(self) -> bool {
        self.0 & WAITERS != 0
    }

    /// Nobody may have it any more.
    pub(crate) fn is_broken(self) -> bool {
        self.0 & BROKEN != 0
    }

    /// Who had it before ended without releasing it.
    pub(crate) fn is_recovered(self) -> bool {
        self.0 & RECOVERED != 0
    }

    /// Which of the buffers holds the value.
    fn buffer(self) -> usize {
        usize::from(self.0 & BUFFER != 0)
    }

    /// Where what is written next goes.
    pub(super) fn other_buffer(self) -> usize {
        1 - self.buffer()
    }

    /// Counts up with every commit and every grant, and wraps.
    pub(crate) fn version(self) -> u64 {
        self.0 >> VERSION
    }

    fn owned_by(self, owner: Owner) -> Self {
        Self(self.0 & !OWNER | owner.0)
    }

    fn with(self, bits: u64, on: bool) -> Self {
        Self(if on { self.0 | bits } else { self.0 & !bits })
    }

    fn next_version(self) -> Self {
        Self(self.0.wrapping_add(1 << VERSION))
    }

    fn committed(self) -> Self {
        Self(self.0 ^ BUFFER).next_version()
    }

    // ---- what the manager makes of it

    pub(super) fn freed(self) -> Self {
        self.owned_by(Owner::FREE).with(GRANTED | WAITERS, false)
    }

    pub(super) fn granted_to(self, owner: Owner, more_wait: bool) -> Self {
        self.owned_by(owner).with(GRANTED, true).with(WAITERS, more_wait).next_version()
    }

    pub(super) fn taken_back(self) -> Self {
        self.owned_by(Owner::MANAGER).with(GRANTED, false)
    }

    pub(super) fn recovered(self) -> Self {
        self.with(RECOVERED, true)
    }

    pub(super) fn committed_for(self, recovered: Option<bool>) -> Self {
        self.committed().owned_by(Owner::MANAGER).marked(recovered)
    }

    fn marked(self, recovered: Option<bool>) -> Self {
        recovered.map_or(self, |on| self.with(RECOVERED, on))
    }
}

/// What came of an attempt to get the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It is ours; and this is its word.
    Held(Word),
    /// Not now.
    Busy,
    Broken,
}

/// What came of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    Free,
    /// It was left to the manager, who has to be told.
    Ring,
    /// Somebody had written over the word: nothing was released, nor committed.
    Broken,
}

/// How a lock is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Release {
    /// What was written is the value from now on.
    pub(crate) commit: bool,
    /// The mark that a holder did not end as he should: on, off, or as it was.
    pub(crate) recovered: Option<bool>,
}

/// Compare-and-swaps that fail one after another because the manager changes its bit, at most: it
/// does so once for each that comes or goes. Beyond it somebody plays with us.
const TRIES: u32 = 1000;

#[inline]
pub(crate) fn look<M: Memory + ?Sized>(memory: &M) -> Result<Word, M::Stop> {
    memory.load(WORD, Ordering::Acquire).map(Word)
}

/// Takes the lock if it is free.
#[inline]
pub(crate) fn try_lock<M: Memory + ?Sized>(memory: &M, me: Owner) -> Result<Attempt, M::Stop> {
    let word = look(memory)?;
    if word.is_free() {
        let mine = word.owned_by(me);
        if memory.compare_exchange(WORD, word.0, mine.0)?.is_ok() {
            return Ok(Attempt::Held(mine));
        }
    }
    Ok(if word.is_broken() { Attempt::Broken } else { Attempt::Busy })
}

/// Takes the lock if it is granted to us at this version: of another version, it is granted to
/// somebody else of this process, or to us anew.
pub(crate) fn accept<M: Memory + ?Sized>(
    memory: &M,
    me: Owner,
    version: u64,
) -> Result<Attempt, M::Stop> {
    let mut word = look(memory)?;
    for _ in 0..TRIES {
        if word.is_broken() {
            return Ok(Attempt::Broken);
        }
        if word.owner() != me || !word.is_granted() || word.version() != version {
            return Ok(Attempt::Busy);
        }
        let mine = word.with(GRANTED, false);
        match memory.compare_exchange(WORD, word.0, mine.0)? {
            Ok(_) => return Ok(Attempt::Held(mine)),
            Err(found) => word = Word(found), // who waits has changed, or it was taken back
        }
    }
    Ok(Attempt::Broken)
}

/// Releases the lock that we hold with this word.
#[inline]
pub(crate) fn release<M: Memory + ?Sized>(
    memory: &M,
    held: Word,
    how: Release,
) -> Result<Released, M::Stop> {
    let mut word = held;
    for _ in 0..TRIES {
        let waited_for = word.has_waiters();
        let mut new = word.owned_by(if waited_for { Owner::MANAGER } else { Owner::FREE });
        if how.commit {
            new = new.committed();
        }
        new = new.marked(how.recovered);
        match memory.compare_exchange(WORD, word.0, new.0)? {
            Ok(_) => return Ok(if waited_for { Released::Ring } else { Released::Free }),
            // Only the manager changes what is ours, and only this.
            Err(found) if Word(found).with(WAITERS, false) == word.with(WAITERS, false) => {
                word = Word(found)
            }
            Err(_) => break,
        }
    }
    Ok(Released::Broken)
}

/// Whether the lock is still held by whoever got it with this word.
pub(crate) fn is_held<M: Memory + ?Sized>(memory: &M, held: Word) -> Result<bool, M::Stop> {
    let word = look(memory)?;
    Ok(word.with(WAITERS, false) == held.with(WAITERS, false))
}

/// A number that is higher than any that was given before. Only for whoever holds the lock.
pub(crate) fn next_fencing_number<M: Memory + ?Sized>(memory: &M) -> Result<u64, M::Stop> {
    let number = memory.load(FENCE, Ordering::Relaxed)?.wrapping_add(1);
    memory.store(FENCE, number)?;
    Ok(number)
}

// ---- the value

/// A value where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// In its place, so many bytes.
    Here(usize),
    /// With the manager.
    Outside,
    /// Its length is nonsense.
    Broken,
}

/// Bytes that have room in the place of a lock whose memory has so many words.
pub(crate) fn capacity(words: usize) -> usize {
    words.saturating_sub(HEAD) / 2 * 8
}

/// Words of the memory for a lock whose value has so many bytes.
pub(crate) fn words_for(bytes: usize) -> usize {
    HEAD + 2 * bytes.div_ceil(8)
}

fn start_of<M: Memory + ?Sized>(memory: &M, buffer: usize) -> usize {
    HEAD + buffer * ((memory.len() - HEAD) / 2)
}

/// Where the value stands that `word` names.
#[inline]
pub(crate) fn stored<M: Memory + ?Sized>(memory: &M, word: Word) -> Result<Stored, M::Stop> {
    let length = memory.load(LENGTHS + word.buffer(), Ordering::Relaxed)?;
    Ok(match length {
        OUTSIDE => Stored::Outside,
        length if length <= capacity(memory.len()) as u64 => Stored::Here(length as usize),
        _ => Stored::Broken,
    })
}

/// Whether the manager keeps a value, or did before the last commit: then it has to hear of the
/// next one, to let it go.
#[inline]
pub(crate) fn has_outside<M: Memory + ?Sized>(memory: &M) -> Result<bool, M::Stop> {
    Ok(memory.load(LENGTHS, Ordering::Relaxed)? == OUTSIDE
        || memory.load(LENGTHS + 1, Ordering::Relaxed)? == OUTSIDE)
}

/// Copies the value out, so many words of it: as many as hold what [`stored`] has said.
#[inline]
pub(crate) fn read<M: Memory + ?Sized>(
    memory: &M,
    word: Word,
    words: usize,
    mut put: impl FnMut(u64),
) -> Result<(), M::Stop> {
    let start = start_of(memory, word.buffer());
    for at in start..start + words {
        put(memory.load(at, Ordering::Relaxed)?);
    }
    Ok(())
}

/// Writes what is to be the value after the release. Only for whoever holds the lock with this
/// word; it has to have room.
#[inline]
pub(crate) fn write<M: Memory + ?Sized>(
    memory: &M,
    word: Word,
    len: usize,
    words: impl Iterator<Item = u64>,
) -> Result<(), M::Stop> {
    // Whoever reads without the lock, and sees any of this, must then see the version that we found
    // (see `snapshot`).
    memory.fence(Ordering::Release);
    let start = start_of(memory, word.other_buffer());
    for (at, value) in (start..).zip(words) {
        memory.store(at, value)?;
    }
    memory.store(LENGTHS + word.other_buffer(), len as u64)
}

/// As [`write()`], for a value that the manager keeps.
pub(super) fn write_outside<M: Memory + ?Sized>(memory: &M, word: Word) -> Result<(), M::Stop> {
    memory.fence(Ordering::Release);
    memory.store(LENGTHS + word.other_buffer(), OUTSIDE)
}

/// The value without the lock: where it stands, and its words; `None` when it was changed
/// meanwhile.
pub(crate) fn snapshot<M: Memory + ?Sized>(
    memory: &M,
    mut put: impl FnMut(u64),
) -> Result<Option<(Stored, Word)>, M::Stop> {
    let word = look(memory)?;
    let stored = stored(memory, word)?;
    if let Stored::Here(len) = stored {
        read(memory, word, len.div_ceil(8), &mut put)?;
    }
    // What was read of a later value was written behind a fence, by one who had seen a later
    // version.
    memory.fence(Ordering::Acquire);
    let after = Word(memory.load(WORD, Ordering::Relaxed)?);
    Ok((after.version() == word.version() && after.buffer() == word.buffer())
        .then_some((stored, word)))
}

/// Makes the memory that of a new lock, with this value, or with one that the manager keeps. Nobody
/// else has it yet.
pub(crate) fn init(memory: &[AtomicU64], value: Option<&[u8]>) {
    memory.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    // Who sees the second buffer as that of the value writes into the first.
    let seen = Word(BUFFER);
    match value {
        Some(value) => always(write(memory, seen, value.len(), words_of(value))),
        None => always(write_outside(memory, seen)),
    }
}

/// Bytes as words, the last one filled up with zeros.
#[inline]
pub(crate) fn words_of(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (whole, rest) = bytes.as_chunks::<8>();
    let rest = (!rest.is_empty()).then(|| {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        last
    });
    whole.iter().copied().chain(rest).map(u64::from_le_bytes)
}

// ---- what only the manager does

/// Says that somebody waits; gives the word as it is then.
pub(super) fn set_waiters<M: Memory + ?Sized>(memory: &M) -> Result<Word, M::Stop> {
    memory.fetch_or(WORD, WAITERS).map(|word| Word(word).with(WAITERS, true))
}

/// Says that nobody waits; gives the word as it is then.
pub(super) fn clear_waiters<M: Memory + ?Sized>(memory: &M) -> Result<Word, M::Stop> {
    memory.fetch_and(WORD, !WAITERS).map(|word| Word(word).with(WAITERS, false))
}

/// Nobody may have the lock any more.
pub(super) fn set_broken<M: Memory + ?Sized>(memory: &M) -> Result<(), M::Stop> {
    memory.fetch_or(WORD, BROKEN).map(drop)
}

/// Changes the word, if it is still this one.
pub(super) fn change<M: Memory + ?Sized>(
    memory: &M,
    from: Word,
    to: Word,
) -> Result<bool, M::Stop> {
    Ok(memory.compare_exchange(WORD, from.0, to.0)?.is_ok())
}
