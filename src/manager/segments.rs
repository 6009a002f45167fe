//! The memory that a manager shares with its clients, and who has which part of it.
//!
//! Small objects share segments, so that a process maps a few and not one for each lock; a large
//! one has a segment of its own, which goes with it; so has each one if that is asked for
//! ([`Segments::separate`]), since a process can use all of a segment that it has. Every part begins on a line of the processor's
//! cache, so that two locks do not slow each other down.
//!
//! The pages are taken from the kernel when a segment is made (fallocate(2)): a machine that is out
//! of memory says so here, by an error, and not by killing whoever touches a page first.

use super::message::Place;
use crate::error::sync::{Error, Why};
use crate::lock::Lock;
use crate::process::{MemoryError, SharedMemory};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Words of a segment that many share: 64 KiB.
const SEGMENT: usize = 8192;
/// Words of the smallest part: a line of the cache.
const LINE: usize = 8;
/// A part of more words than this has a segment of its own.
pub(crate) const SHARED_MAX: usize = 2048;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    /// Held only to look for room, and to give it back.
    inside: Lock<Inside>,
    /// Nothing is given away any more, so what is given back need not be cleared.
    closed: AtomicBool,
    separate: AtomicBool,
}

#[derive(Debug, Default)]
struct Inside {
    segments: HashMap<u32, Segment>,
    next: u32,
}

#[derive(Debug)]
struct Segment {
    memory: Arc<SharedMemory>,
    /// For those who come to map it later.
    fd: Arc<OwnedFd>,
    /// Words that were never given away begin here.
    fresh: usize,
    /// Parts given back, by their length.
    free: HashMap<usize, Vec<usize>>,
    /// Parts given away.
    used: usize,
    /// It is one object's, and goes with it.
    own: bool,
}

/// A part of the memory. Given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Allocated {
    segments: Arc<Segments>,
    memory: Arc<SharedMemory>,
    place: Place,
}

impl Allocated {
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        &self.memory.words()[self.place.offset as usize..][..self.place.len as usize]
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        // The next object that lies here may be lent to processes that were not lent this one.
        // (Of a closed manager the handles are still there, and read there that it is closed.)
        if !self.segments.closed.load(Ordering::Acquire) {
            self.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        self.segments.free(self.place);
    }
}

impl Segments {
    /// The manager closes, with all its objects.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether each part that is given from now on has a segment of its own.
    pub(crate) fn separate(&self, on: bool) {
        self.separate.store(on, Ordering::Relaxed);
    }

    /// Gives a part of at least so many words. What is in it is arbitrary.
    ///
    /// # Errors
    ///
    /// When the kernel gives no memory, or the limit on the size of files (`RLIMIT_FSIZE`) is too
    /// low for it.
    pub(crate) fn allocate(self: &Arc<Self>, words: usize) -> Result<Allocated, Error> {
        let own = words > SHARED_MAX || self.separate.load(Ordering::Relaxed);
        let words =
            if own { words.next_multiple_of(LINE) } else { words.max(LINE).next_power_of_two() };
        loop {
            if !own && let Some(allocated) = self.find(words) {
                return Ok(allocated);
            }
            // Without the lock: these are system calls. Two may do so at the same time; then there
            // is room for more.
            let create = |words| SharedMemory::create_reserved(words * 8);
            let memory = create(if own { words } else { SEGMENT }).or_else(|error| {
                match error.get_ref().and_then(|e| e.downcast_ref()) {
                    // Better a small one than none.
                    Some(MemoryError::FileSizeLimit { limit, .. })
                        if !own && *limit as usize >= words * 8 =>
                    {
                        create(words)
                    }
                    _ => Err(error),
                }
            });
            let (memory, fd) = memory.map_err(|source| {
                Error::from(Why::Memory { step: "getting the memory of a shared object", source })
            })?;
            let mut inside = self.inside.lock();
            inside.next += 1;
            let number = inside.next;
            let segment = Segment {
                memory: Arc::new(memory),
                fd: Arc::new(fd),
                fresh: 0,
                free: HashMap::new(),
                used: 0,
                own,
            };
            inside.segments.insert(number, segment);
            if own {
                return Ok(inside.take(self, number, words).expect("it is as long as that"));
            }
        }
    }

    fn find(self: &Arc<Self>, words: usize) -> Option<Allocated> {
        let mut inside = self.inside.lock();
        let shared = inside.segments.iter().filter(|(_, segment)| !segment.own);
        let mut numbers: Vec<_> = shared.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.into_iter().find_map(|number| inside.take(self, number, words))
    }

    fn free(&self, place: Place) {
        let mut inside = self.inside.lock();
        let Some(segment) = inside.segments.get_mut(&place.segment) else { return };
        segment.used -= 1;
        segment.free.entry(place.len as usize).or_default().push(place.offset as usize);
        // One that is empty is kept for what comes next, and no more.
        let own = segment.own;
        let remains = (segment.used == 0
            && (own || inside.segments.values().any(|other| other.used == 0 && other.fresh == 0)))
        .then(|| inside.segments.remove(&place.segment));
        if let Some(segment) = inside.segments.get_mut(&place.segment)
            && segment.used == 0
        {
            (segment.fresh, segment.free) = (0, HashMap::new());
        }
        drop(inside);
        drop(remains); // unmapped without the lock
    }

    /// A segment's descriptor, to be given to a client.
    pub(crate) fn fd(&self, segment: u32) -> Option<Arc<OwnedFd>> {
        self.inside.lock().segments.get(&segment).map(|segment| Arc::clone(&segment.fd))
    }

    /// A segment.
    pub(crate) fn memory(&self, segment: u32) -> Option<Arc<SharedMemory>> {
        self.inside.lock().segments.get(&segment).map(|segment| Arc::clone(&segment.memory))
    }
}

impl Inside {
    fn take(&mut self, segments: &Arc<Segments>, number: u32, words: usize) -> Option<Allocated> {
        let segment = self.segments.get_mut(&number)?;
        let end = segment.memory.words().len();
        let offset = match segment.free.get_mut(&words).and_then(Vec::pop) {
            Some(offset) => offset,
            None if end - segment.fresh >= words => {
                segment.fresh += words;
                segment.fresh - words
            }
            None => return None,
        };
        segment.used += 1;
        let place = Place { segment: number, offset: offset as u32, len: words as u32 };
        Some(Allocated {
            segments: Arc::clone(segments),
            memory: Arc::clone(&segment.memory),
            place,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_a_part_is_cleared_before_it_is_given_away_again() {
        let segments = Arc::new(Segments::default());
        let first = segments.allocate(16).expect("room");
        first.words().iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        let (place, memory) = (first.place(), Arc::clone(&first.memory));
        drop(first);
        assert!(memory.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
        let again = segments.allocate(16).expect("room");
        assert_eq!(again.place(), place, "the same part");
    }

    #[test]
    fn parts_may_each_have_a_segment_of_their_own() {
        let segments = Arc::new(Segments::default());
        let shared = segments.allocate(16).expect("room");
        segments.separate(true);
        let own: Vec<_> = (0..3).map(|_| segments.allocate(16).expect("room")).collect();
        segments.separate(false);
        let again = segments.allocate(8).expect("room");
        assert_eq!(again.place().segment, shared.place().segment);
        let numbers: Vec<_> = own.iter().map(|part| part.place().segment).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b) && !numbers.contains(&shared.place().segment));
        drop(own);
        assert!(numbers.into_iter().all(|number| segments.memory(number).is_none()));
    }

    #[test]
    fn parts_do_not_overlap_and_are_used_again() {
        let segments = Arc::new(Segments::default());
        let parts: Vec<_> =
            (0..3000).map(|i| segments.allocate(1 + i % 40).expect("room")).collect();
        for (number, part) in parts.iter().enumerate() {
            assert!(part.place().offset.is_multiple_of(8) && part.words().len() > number % 40);
            part.words().iter().for_each(|word| word.store(number as u64, Ordering::Relaxed));
        }
        for (number, part) in parts.iter().enumerate() {
            assert!(part.words().iter().all(|word| word.load(Ordering::Relaxed) == number as u64));
        }
        let count = segments.inside.lock().segments.len();
        let kept = parts.into_iter().next();
        assert!(segments.inside.lock().segments.len() < count.min(4), "given back");
        drop(kept);
        let own = segments.allocate(100_000).expect("room");
        let number = own.place().segment;
        assert!(segments.memory(number).is_some());
        drop(own);
        assert!(segments.memory(number).is_none());
    }
}
