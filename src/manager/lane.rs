//! A lane: a piece of memory through which one client and a queue, or a map, pass items without a
//! message for each.
//!
//! There are two kinds. Through an *inlet* a client sends: it may put in as many items as the
//! manager has granted. Through an *outlet* it receives: the manager puts in items ahead of the
//! client's asking. Both have the same layout, and one word that says everything:
//!
//! ```text
//! word 0       shut 1 | limit 31 | done 31       done: items that the client has put in, or taken out; limit: up to where it may
//! word 1       inlets: words that the manager has read, so that their place is free again
//! word 2       bell: the manager wants to hear of the client's next step
//! word 3       mirror (of a map's lane, which is an inlet): shut 1 | blind 1 | how often others have changed the map 62
//! words 8…     a slot for each item: where it lies and how many bytes it has
//! words 1032…  the items: a word with the time (of inlets), then the bytes, filled up to whole words
//! ```
//!
//! The client counts `done` up by compare-and-swap, one item at a time: at that instruction the
//! item is sent, or received. The manager moves `limit`, by compare-and-swap as well. So each of
//! them is exact at any moment:
//!
//! * **grant** (inlets), **put** (outlets): `limit` goes up;
//! * **revoke** (inlets): `limit` goes down to `done`: what was granted and not used is the
//!   manager's again;
//! * **reclaim** (outlets): `done` goes up to `limit`: what was not taken is the manager's again.
//!   (Were `limit` to go down, and up again with other items, a client that was stopped between
//!   copying an item and taking it would take another than it had copied. `done` never goes back,
//!   so it finds the word changed.)
//! * **promise** (outlets): the first item is for a client that waits for it; it is not reclaimed,
//!   as long as that one has not said that it waits no longer. What is behind it is reclaimed by
//!   `limit` going down to it: a client copies no item but the next one, and that one stays what it
//!   is;
//! * **shut**: nothing more.
//!
//! A client that dies at any instruction has sent what `done` says, and received what `done` says;
//! the manager looks after its end. It may write what it likes: its word, its slots and lengths are
//! checked, and a lane that makes no sense is *broken*, and closed. Nobody but this client has this
//! memory.
//!
//! **The bell.** Who steps first fences, then looks at the other's word (Dekker): the manager sets
//! the bell, and looks at `done` again; the client counts `done`, and looks at the bell. So either
//! the manager sees the step, or the client rings.

use crate::process::SharedMemory;
use crate::wire::packet::Packet;
use nix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Items in a lane, at most.
pub(crate) const SLOTS: u32 = 1024;
/// Words for items.
const DATA: usize = 4096;
/// A longer item goes by message, in bytes.
pub(crate) const ITEM_MAX: usize = 2048;

const COUNTS: usize = 0;
const FREED: usize = 1;
const BELL: usize = 2;
pub(crate) const MIRROR: usize = 3;
const SLOT: usize = 8;
const FIRST: usize = SLOT + SLOTS as usize;
/// Of a lane's memory.
pub(crate) const WORDS: usize = FIRST + DATA;

const SHUT: u64 = 1 << 63;
/// In a mirror: it is not told at the moment.
const BLIND: u64 = 1 << 62;
/// Counts are of 31 bits, and wrap.
const MASK: u32 = (1 << 31) - 1;

/// Which way a lane leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client into the queue.
    In,
    /// From the queue to the client.
    Out,
}

/// The word makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    shut: bool,
    limit: u32,
    done: u32,
}

impl Counts {
    fn of(word: u64) -> Self {
        Self { shut: word & SHUT != 0, limit: (word >> 31) as u32 & MASK, done: word as u32 & MASK }
    }

    fn word(self) -> u64 {
        u64::from(self.shut) << 63 | u64::from(self.limit) << 31 | u64::from(self.done)
    }

    /// How many steps the client may make.
    fn left(self) -> u32 {
        between(self.done, self.limit)
    }
}

/// From one count to another.
fn between(from: u32, to: u32) -> u32 {
    to.wrapping_sub(from) & MASK
}

fn plus(count: u32, more: u32) -> u32 {
    count.wrapping_add(more) & MASK
}

#[inline]
fn counts(words: &[AtomicU64]) -> Counts {
    Counts::of(words[COUNTS].load(Ordering::Acquire))
}

/// The manager's change of the counts, by compare-and-swap; gives them as they were before it. The
/// client can come between as often as it has steps left: beyond it somebody plays with us.
fn change(words: &[AtomicU64], mut change: impl FnMut(Counts) -> Counts) -> Result<Counts, Broken> {
    let mut word = words[COUNTS].load(Ordering::Acquire);
    for _ in 0..=SLOTS {
        let new = change(Counts::of(word)).word();
        match words[COUNTS].compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Ok(Counts::of(word)),
            Err(found) => word = found,
        }
    }
    Err(Broken)
}

/// So that who sent before another began comes before him: all processes have the same clock.
pub(crate) fn time() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// The client's step: gives whether it was made, and whether to ring.
#[inline]
fn step(words: &[AtomicU64], seen: Counts) -> Option<bool> {
    let next = Counts { done: plus(seen.done, 1), ..seen };
    words[COUNTS]
        .compare_exchange(seen.word(), next.word(), Ordering::AcqRel, Ordering::Acquire)
        .ok()?;
    fence(Ordering::SeqCst);
    Some(words[BELL].load(Ordering::Relaxed) != 0 && words[BELL].swap(0, Ordering::AcqRel) != 0)
}

/// Sets or clears the bell. Once it is set, the lane is to be looked at again.
fn set_bell(words: &[AtomicU64], on: bool) {
    if words[BELL].load(Ordering::Relaxed) != u64::from(on) {
        words[BELL].store(u64::from(on), Ordering::Relaxed);
    }
}

#[inline]
fn slot_of(count: u32) -> usize {
    SLOT + (count % SLOTS) as usize
}

#[inline]
fn data(words: &[AtomicU64], at: u64) -> &AtomicU64 {
    &words[FIRST + (at % DATA as u64) as usize]
}

fn words_of(bytes: usize) -> u64 {
    bytes.div_ceil(8) as u64
}

/// Writes an item; its first word lies at `at`.
#[inline]
fn write(words: &[AtomicU64], count: u32, at: u64, bytes: &[u8]) {
    words[slot_of(count)].store((at % DATA as u64) << 32 | bytes.len() as u64, Ordering::Relaxed);
    let (whole, rest) = bytes.as_chunks::<8>();
    let mut at = at;
    for chunk in whole {
        data(words, at).store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
        at += 1;
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        data(words, at).store(u64::from_le_bytes(last), Ordering::Relaxed);
    }
}

/// Copies an item out; it may be nonsense if somebody writes there.
#[inline]
fn copy(words: &[AtomicU64], at: u64, len: usize) -> Packet {
    if len <= 8 {
        return Packet::copy_from(&data(words, at).load(Ordering::Relaxed).to_le_bytes()[..len]);
    }
    let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
    bytes.extend(
        (at..at + words_of(len))
            .flat_map(|at| data(words, at).load(Ordering::Relaxed).to_le_bytes()),
    );
    bytes.truncate(len);
    Packet::from(&mut bytes)
}

// ---- the client's ends

/// The end of an inlet at which a client puts items in.
#[derive(Debug)]
pub(crate) struct Pusher {
    memory: Arc<SharedMemory>,
    /// Words written so far.
    tail: u64,
}

impl Pusher {
    /// `None`: this memory is no lane.
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Option<Self> {
        (memory.words().len() >= WORDS).then_some(Self { memory, tail: 0 })
    }

    /// Sends an item, if that was granted: whether to ring. `None`: it has to go another way.
    #[inline]
    pub(crate) fn push(&mut self, time: u64, bytes: &[u8]) -> Option<bool> {
        let words = self.memory.words();
        let need = 1 + words_of(bytes.len());
        let mut seen = counts(words);
        if seen.shut || seen.left() == 0 || bytes.len() > ITEM_MAX {
            return None;
        }
        if self.tail + need > words[FREED].load(Ordering::Acquire) + DATA as u64 {
            return None;
        }
        data(words, self.tail).store(time, Ordering::Relaxed);
        write(words, seen.done, self.tail + 1, bytes);
        loop {
            if let Some(ring) = step(words, seen) {
                self.tail += need;
                return Some(ring);
            }
            seen = counts(words); // the manager has moved the limit
            if seen.shut || seen.left() == 0 {
                return None;
            }
        }
    }
}

/// The end of an outlet at which a client takes items out.
#[derive(Debug)]
pub(crate) struct Taker {
    memory: Arc<SharedMemory>,
}

impl Taker {
    /// `None`: this memory is no lane.
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Option<Self> {
        (memory.words().len() >= WORDS).then_some(Self { memory })
    }

    /// Takes an item out, if there is one; and whether to ring.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<(Packet, bool)> {
        let words = self.memory.words();
        loop {
            let seen = counts(words);
            if seen.shut || seen.left() == 0 {
                return None;
            }
            let slot = words[slot_of(seen.done)].load(Ordering::Relaxed);
            let (at, len) = (slot >> 32, slot as u32 as usize);
            // Of a slot that is being written again nothing is believed: the step fails.
            let item = copy(words, at, len.min(ITEM_MAX));
            if let Some(ring) = step(words, seen) {
                return Some((item, ring));
            }
        }
    }
}

// ---- the manager's ends

/// The end of an inlet at which the manager takes items in.
#[derive(Debug)]
pub(crate) struct Inlet {
    memory: Arc<SharedMemory>,
    /// Items taken in so far; and up to where it was granted.
    seen: u32,
    limit: u32,
    /// Words read so far.
    head: u64,
}

impl Inlet {
    /// A new one, in which nothing is granted.
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Self {
        Self { memory, seen: 0, limit: 0, head: 0 }
    }

    /// How many items may still come, those included that have been put in and not been taken in.
    pub(crate) fn credit(&self) -> u32 {
        between(self.seen, self.limit)
    }

    pub(crate) fn has_news(&self) -> bool {
        counts(self.memory.words()).done != self.seen
    }

    /// Takes in what there is and was sent until this [`time`]: each item with its time.
    pub(crate) fn pull(
        &mut self,
        until: u64,
        mut put: impl FnMut(u64, Packet),
    ) -> Result<(), Broken> {
        if !step_is_made(Step::Pull) {
            return Ok(());
        }
        let words = self.memory.words();
        let done = counts(words).done;
        if done == self.seen {
            return Ok(());
        }
        if between(self.seen, done) > self.credit() {
            return Err(Broken);
        }
        while self.seen != done {
            let slot = words[slot_of(self.seen)].load(Ordering::Relaxed);
            let (at, len) = (slot >> 32, slot as u32 as usize);
            if len > ITEM_MAX || at != (self.head + 1) % DATA as u64 {
                return Err(Broken);
            }
            let sent = data(words, self.head).load(Ordering::Relaxed);
            if sent > until {
                if sent > time() {
                    return Err(Broken); // it is here, and was not sent yet
                }
                break;
            }
            put(sent, copy(words, at, len));
            self.head += 1 + words_of(len);
            self.seen = plus(self.seen, 1);
        }
        words[FREED].store(self.head, Ordering::Release);
        Ok(())
    }

    /// So many more may come.
    pub(crate) fn grant(&mut self, more: u32) -> Result<(), Broken> {
        if !step_is_made(Step::Grant) {
            return Ok(());
        }
        self.limit = plus(self.limit, more);
        let limit = self.limit;
        change(self.memory.words(), |counts| Counts { limit, ..counts }).map(drop)
    }

    /// What has not been put in by now may not come.
    pub(crate) fn revoke(&mut self) -> Result<(), Broken> {
        if !step_is_made(Step::Revoke) {
            return Ok(());
        }
        let before = change(self.memory.words(), |counts| Counts { limit: counts.done, ..counts })?;
        if between(self.seen, before.done) > self.credit() {
            return Err(Broken);
        }
        self.limit = before.done;
        Ok(())
    }

    /// Nothing more may come. What has been put in by now is to be taken in still.
    pub(crate) fn shut(&self) {
        self.memory.words()[COUNTS].fetch_or(SHUT, Ordering::AcqRel);
    }

    pub(crate) fn set_bell(&self, on: bool) {
        if step_is_made(Step::SetBell) {
            set_bell(self.memory.words(), on);
        }
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.shut();
    }
}

/// The end of an outlet at which the manager puts items in. It keeps them until they are taken.
#[derive(Debug)]
pub(crate) struct Outlet<T> {
    memory: Arc<SharedMemory>,
    /// Each with its words.
    items: VecDeque<(T, u64)>,
    /// Items taken, or reclaimed, so far; and those put in.
    done: u32,
    limit: u32,
    /// Words written so far, and of how many of them the place is free again.
    tail: u64,
    freed: u64,
    /// The first item is promised under this ticket, as long as so many are done.
    promised: Option<(u64, u32)>,
}

impl<T> Outlet<T> {
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Self {
        Self {
            memory,
            items: VecDeque::new(),
            done: 0,
            limit: 0,
            tail: 0,
            freed: 0,
            promised: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn has_news(&self) -> bool {
        counts(self.memory.words()).done != self.done
    }

    /// Gives what has been taken.
    pub(crate) fn settle(&mut self, taken: impl FnMut(T)) -> Result<(), Broken> {
        let done = counts(self.memory.words()).done;
        self.settle_to(done, taken)
    }

    fn settle_to(&mut self, done: u32, mut taken: impl FnMut(T)) -> Result<(), Broken> {
        if between(self.done, done) as usize > self.items.len() {
            return Err(Broken);
        }
        while self.done != done {
            self.done = plus(self.done, 1);
            if let Some((item, words)) = self.items.pop_front() {
                self.freed += words;
                taken(item);
            }
        }
        self.promised.take_if(|(_, done)| *done != self.done);
        Ok(())
    }

    /// Whether an item of so many bytes has room.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        bytes <= ITEM_MAX
            && self.items.len() < SLOTS as usize
            && self.tail + words_of(bytes) <= self.freed + DATA as u64
    }

    /// Puts an item in, for which there is room; the client sees it when it is [shown](Self::show).
    pub(crate) fn put(&mut self, bytes: &[u8], item: T) {
        let need = words_of(bytes.len());
        write(self.memory.words(), self.limit, self.tail, bytes);
        self.tail += need;
        self.limit = plus(self.limit, 1);
        self.items.push_back((item, need));
    }

    /// As [`put`](Self::put), and it is not reclaimed, for somebody waits for it under this ticket.
    /// Nothing else is here.
    pub(crate) fn promise(&mut self, bytes: &[u8], item: T, ticket: u64) {
        debug_assert!(self.items.is_empty(), "only the next item can be promised");
        self.promised = Some((ticket, self.done));
        self.put(bytes, item);
    }

    /// Under this ticket nobody waits for what was promised. Gives whether it was.
    pub(crate) fn take_back(&mut self, ticket: u64) -> bool {
        self.promised.take_if(|(promised, _)| *promised == ticket).is_some()
    }

    /// What was promised may be reclaimed.
    pub(crate) fn break_promise(&mut self) {
        self.promised = None;
    }

    pub(crate) fn show(&self) -> Result<(), Broken> {
        change(self.memory.words(), |counts| Counts { limit: self.limit, ..counts }).map(drop)
    }

    /// Takes back what has not been taken and is not promised, and gives it, in its order. What has
    /// been taken, is told first.
    pub(crate) fn reclaim(&mut self, taken: impl FnMut(T)) -> Result<Vec<T>, Broken> {
        let (limit, promised) = (self.limit, self.promised);
        let before = change(self.memory.words(), |counts| match promised {
            Some((_, done)) if done == counts.done => Counts { limit: plus(done, 1), ..counts },
            _ => Counts { done: limit, limit, ..counts },
        })?;
        self.settle_to(before.done, taken)?;
        if self.promised.is_some() {
            let behind: Vec<_> = self.items.drain(1..).collect();
            self.tail -= behind.iter().map(|(_, words)| words).sum::<u64>();
            self.limit = plus(self.done, 1);
            return Ok(behind.into_iter().map(|(item, _)| item).collect());
        }
        self.done = limit;
        self.freed = self.tail;
        Ok(self.rest())
    }

    /// Gives what the client cannot take any more: only after it is shut.
    pub(crate) fn rest(&mut self) -> Vec<T> {
        self.promised = None;
        self.items.drain(..).map(|(item, _)| item).collect()
    }

    pub(crate) fn shut(&self) {
        self.memory.words()[COUNTS].fetch_or(SHUT, Ordering::AcqRel);
    }

    pub(crate) fn set_bell(&self, on: bool) {
        set_bell(self.memory.words(), on);
    }
}

impl<T> Drop for Outlet<T> {
    fn drop(&mut self) {
        self.shut();
    }
}

/// Where a client sees whether somebody else has changed something of an object: the count of those
/// changes, in a word of its lane.
#[derive(Debug)]
pub(crate) struct Mirror {
    memory: Arc<SharedMemory>,
}

impl Mirror {
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Self {
        Self { memory }
    }

    pub(crate) fn show(&self, changes: u64) {
        if step_is_made(Step::Show) {
            self.memory.words()[MIRROR].store(changes & !(SHUT | BLIND), Ordering::SeqCst);
        }
    }

    /// Until it is shown again, the client does not know.
    pub(crate) fn blind(&self) {
        if step_is_made(Step::Blind) {
            self.memory.words()[MIRROR].store(BLIND, Ordering::SeqCst);
        }
    }

    /// The client's view. `None`: it is not told, at the moment or for ever.
    pub(crate) fn look(&self) -> Option<u64> {
        let changes = self.memory.words()[MIRROR].load(Ordering::SeqCst);
        (changes & (SHUT | BLIND) == 0).then_some(changes)
    }

    pub(crate) fn shut(&self) {
        self.memory.words()[MIRROR].fetch_or(SHUT, Ordering::SeqCst);
    }
}

/// What the manager does in an inlet and its mirror. Simulations let clients act before each of
/// these steps, and leave steps out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Blind,
    Show,
    Grant,
    Revoke,
    Pull,
    SetBell,
}

#[cfg(test)]
use steps::step_is_made;

#[cfg(not(test))]
#[inline]
fn step_is_made(_: Step) -> bool {
    true
}

/// See [`Step`].
#[cfg(test)]
pub(crate) mod steps {
    use super::Step;
    use std::cell::RefCell;

    type Hook = Box<dyn FnMut(Step) -> bool>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Calls this before each step of this thread; it says whether the step is made.
    pub(crate) fn hook(hook: Option<Hook>) {
        HOOK.set(hook);
    }

    pub(super) fn step_is_made(step: Step) -> bool {
        HOOK.with_borrow_mut(|hook| hook.as_mut().is_none_or(|hook| hook(step)))
    }
}

/// Bells that have been set are seen by the client, or its step is seen by who looks now.
pub(crate) fn before_looking_again() {
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    fn memory() -> (Arc<SharedMemory>, Arc<SharedMemory>) {
        let (memory, fd) = SharedMemory::create(WORDS * 8).expect("memory");
        let other = SharedMemory::from_fd(&fd).expect("memory");
        (Arc::new(memory), Arc::new(other))
    }

    fn item(number: u64) -> Vec<u8> {
        number.to_le_bytes().iter().copied().cycle().take(8 + (number % 50) as usize).collect()
    }

    fn number(item: &[u8]) -> u64 {
        let number = u64::from_le_bytes(item[..8].try_into().expect("eight bytes"));
        assert_eq!(item, self::item(number));
        number
    }

    #[test]
    fn what_is_granted_and_revoked_at_any_moment_comes_once_and_in_order() {
        const COUNT: u64 = 20_000;
        let (ours, theirs) = memory();
        let mut inlet = Inlet::new(ours);
        let client = thread::spawn(move || {
            let mut pusher = Pusher::new(theirs).expect("a lane");
            let mut next = 0;
            while next < COUNT {
                match pusher.push(next, &item(next)) {
                    Some(_) => next += 1,
                    None => thread::yield_now(),
                }
            }
        });
        let (mut next, mut turn) = (0, 0u32);
        while next < COUNT {
            turn += 1;
            inlet
                .pull(u64::MAX, |time, value| {
                    assert_eq!((time, number(&value)), (next, next));
                    next += 1;
                })
                .expect("well kept");
            if turn.is_multiple_of(3) {
                inlet.revoke().expect("well kept");
            }
            let more = (turn % 40).min(SLOTS - inlet.credit());
            inlet.grant(more).expect("well kept");
        }
        client.join().expect("no panic");
        assert!(inlet.credit() <= SLOTS && !inlet.has_news());
    }

    #[test]
    fn what_is_put_ahead_and_reclaimed_at_any_moment_is_had_once() {
        const COUNT: u64 = 20_000;
        let (ours, theirs) = memory();
        let mut outlet = Outlet::new(ours);
        let done = Arc::new(AtomicBool::new(false));
        let client = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                let mut taker = Taker::new(theirs).expect("a lane");
                let mut had = Vec::new();
                while !done.load(Ordering::Acquire) {
                    match taker.take() {
                        Some((value, _)) => had.push(number(&value)),
                        None => thread::yield_now(),
                    }
                }
                had
            }
        });
        let (mut gone, mut taken, mut back, mut next, mut turn) =
            (0, Vec::new(), VecDeque::new(), 0, 0u32);
        while gone < COUNT {
            turn += 1;
            while next < COUNT && back.len() < 20 {
                back.push_back(next);
                next += 1;
            }
            while let Some(first) = back.front().copied()
                && outlet.fits(item(first).len())
                && outlet.len() < 30
            {
                outlet.put(&item(first), first);
                back.pop_front();
            }
            outlet.show().expect("well kept");
            outlet.settle(|item| taken.push(item)).expect("well kept");
            if turn.is_multiple_of(50) {
                for item in
                    outlet.reclaim(|item| taken.push(item)).expect("well kept").into_iter().rev()
                {
                    back.push_front(item);
                }
            }
            gone = taken.len() as u64;
        }
        done.store(true, Ordering::Release);
        let had = client.join().expect("no panic");
        assert!(had == taken && had.is_sorted() && had.len() as u64 == COUNT);
    }

    #[test]
    fn what_is_promised_stays_for_its_client_while_what_is_behind_it_comes_and_goes() {
        let (ours, theirs) = memory();
        let mut outlet = Outlet::new(ours);
        const COUNT: u64 = 10_000;
        let client = thread::spawn(move || {
            let mut taker = Taker::new(theirs).expect("a lane");
            let mut had = Vec::new();
            while had.last() != Some(&COUNT) {
                match taker.take() {
                    Some((value, _)) => had.push(number(&value)),
                    None => thread::yield_now(),
                }
            }
            had
        });
        let (mut taken, mut next, mut promises) = (Vec::new(), 0, 0);
        while next <= COUNT {
            outlet.settle(|item| taken.push(item)).expect("well kept");
            // What is reclaimed is given to nobody else here: it is missing, and what is promised
            // is not.
            let reclaimed = outlet.reclaim(|item| taken.push(item)).expect("well kept");
            assert!(
                reclaimed
                    .iter()
                    .all(|number| number % 3 != 0 && !taken.contains(number) || *number == COUNT),
                "{reclaimed:?}"
            );
            if outlet.len() > 0 {
                thread::yield_now();
                continue;
            }
            next = next.next_multiple_of(3);
            outlet.promise(&item(next), next, 7);
            promises += 1;
            for behind in [next + 1, next + 2] {
                outlet.put(&item(behind), behind);
            }
            outlet.show().expect("well kept");
            next += 3;
        }
        assert!(!outlet.take_back(8));
        outlet.take_back(7);
        assert!(outlet.reclaim(|item| taken.push(item)).is_ok());
        outlet.put(&item(COUNT), COUNT);
        outlet.show().expect("well kept");
        let had = client.join().expect("no panic");
        outlet.settle(|item| taken.push(item)).expect("well kept");
        assert_eq!(had, taken);
        let kept = taken.iter().filter(|number| *number % 3 == 0).count();
        assert!(taken.is_sorted() && kept + 1 >= promises, "{kept} of {promises}");
    }

    #[test]
    fn a_client_that_writes_what_it_likes_breaks_its_own_lane() {
        for word in [u64::MAX, 1, 5 << 31 | 6, MASK.into()] {
            let (ours, theirs) = memory();
            let (mut inlet, mut outlet) = (Inlet::new(Arc::clone(&ours)), Outlet::<u64>::new(ours));
            let write = || theirs.words()[COUNTS].store(word, Ordering::Relaxed);
            write();
            assert_eq!(
                (inlet.pull(u64::MAX, |_, _| panic!("nothing came")), outlet.settle(|_| panic!())),
                (Err(Broken), Err(Broken))
            );
            assert_eq!(outlet.reclaim(|_| panic!()).err(), Some(Broken));
            write();
            assert_eq!(inlet.revoke(), Err(Broken));
        }
        for slot in [0, 1 << 32 | (ITEM_MAX as u64 + 1), 7 << 32 | 8, u64::MAX] {
            let (ours, theirs) = memory();
            let mut inlet = Inlet::new(ours);
            inlet.grant(2).expect("well kept");
            let mut pusher = Pusher::new(Arc::clone(&theirs)).expect("a lane");
            assert_eq!(pusher.push(0, b"x"), Some(false));
            theirs.words()[SLOT].store(slot, Ordering::Relaxed);
            assert_eq!(inlet.pull(u64::MAX, |_, _| panic!("nothing came")), Err(Broken));
        }
    }

    #[test]
    fn what_was_sent_later_waits_and_what_was_not_sent_yet_is_a_lie() {
        let (ours, theirs) = memory();
        let mut inlet = Inlet::new(ours);
        inlet.grant(9).expect("well kept");
        let mut pusher = Pusher::new(theirs).expect("a lane");
        for (time, value) in [(3, "a"), (5, "b"), (8, "c")] {
            assert!(pusher.push(time, value.as_bytes()).is_some());
        }
        for (until, expected) in [(5, &b"ab"[..]), (7, b""), (8, b"c")] {
            let mut got = Vec::new();
            inlet.pull(until, |_, value| got.extend_from_slice(&value)).expect("well kept");
            assert_eq!((got.as_slice(), inlet.has_news()), (expected, until < 8));
        }
        assert!(pusher.push(u64::MAX, b"d").is_some());
        assert_eq!(inlet.pull(time(), |_, _| panic!("it was not sent yet")), Err(Broken));
    }
}
