//! What stands where in the memory that the application shares with one worker.
//!
//! The layout is part of the protocol (`docs/protocol.md`, *The memory*). All words have 64 bits:
//!
//! ```text
//! 0 .. 256             the death note
//! 256, 257             the outbox's tail, and how many replies were committed to it
//! 264 | 272            the outbox's head; the number of replies at which the worker rings
//! 280                  whether the thread that runs tasks waits for a shared object
//!                      (each of these four in a cache line of its own)
//! 288 .. + slots       the claims: a word for each task in hand
//!      .. + slots      when each of them began
//!      .. + ring       the outbox's ring
//!      .. + slots      of tasks that yield: how much each may send
//!      .. + slots      and whether it waits for more
//! ```
//!
//! It belongs to one process and is never handed to its successor. Pages are taken as they are
//! touched, and slots are used again before new ones, so an idle worker has one or two.

use super::death_note::{NOTE_WORDS, NotePage};
use super::memory::{MemoryError, SharedMemory};
use crate::wire::claim::{Claims, SLOTS_MAX};
use crate::wire::credit::{CreditMemory, Credits};
use crate::wire::outbox::Ring;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;

const TAIL: usize = NOTE_WORDS;
const REPLIES: usize = TAIL + 1;
const HEAD: usize = TAIL + 8;
const RING_AT: usize = HEAD + 8;
const WAITS: usize = RING_AT + 8;
const CLAIMS: usize = WAITS + 8;
const WORD: usize = size_of::<u64>();

/// How large the ring of replies is, in bytes; a reply of up to a quarter of it fits in. It must
/// hold what a worker answers between two wake-ups of the pool, and should stay within the nearer
/// caches.
const RING_BYTES: usize = 64 << 10;

/// The memory of one worker, as either side has it.
#[derive(Debug)]
pub(crate) struct WorkerMemory {
    memory: SharedMemory,
    fd: OwnedFd,
    slots: usize,
    ring_bytes: usize,
}

impl WorkerMemory {
    /// New memory for a worker that has so many tasks in hand at most.
    ///
    /// # Errors
    ///
    /// As [`SharedMemory::create`].
    pub(crate) fn create(slots: usize) -> io::Result<Self> {
        let slots = slots.next_multiple_of(8).min(SLOTS_MAX);
        let (memory, fd) = SharedMemory::create(words(slots, RING_BYTES) * WORD)?;
        Ok(Self { memory, fd, slots, ring_bytes: RING_BYTES })
    }

    /// What came with the welcome, which says how it is divided.
    ///
    /// # Errors
    ///
    /// As [`SharedMemory::from_fd`]; `InvalidData` if it is divided otherwise.
    pub(crate) fn from_fd(fd: OwnedFd, slots: u32, ring_bytes: u32) -> io::Result<Self> {
        let memory = SharedMemory::from_fd(&fd)?;
        let (slots, ring_bytes) = (slots as usize, ring_bytes as usize);
        let len = memory.words().len();
        if slots > SLOTS_MAX
            || !ring_bytes.is_power_of_two()
            || ring_bytes < WORD
            || len != words(slots, ring_bytes)
        {
            return Err(MemoryError::Length((len * WORD) as u64).into());
        }
        Ok(Self { memory, fd, slots, ring_bytes })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// How many claims it has.
    pub(crate) fn slots(&self) -> u32 {
        self.slots as u32
    }

    /// How large its ring is, in bytes.
    pub(crate) fn ring_bytes(&self) -> u32 {
        self.ring_bytes as u32
    }

    pub(crate) fn note(&self) -> NotePage<'_> {
        NotePage::new(self.memory.words()).expect("the layout begins with a note")
    }

    /// Counts when the thread that runs tasks begins to wait for a shared object, and when it goes
    /// on. So it is odd as long as the thread waits, and the same odd number means the same wait.
    pub(crate) fn waits(&self) -> &AtomicU64 {
        &self.memory.words()[WAITS]
    }

    pub(crate) fn claims(&self) -> Claims<'_> {
        let (words, rest) = self.memory.words()[CLAIMS..].split_at(self.slots);
        Claims::new(words, &rest[..self.slots])
    }

    pub(crate) fn ring(&self) -> Ring<'_> {
        let words = self.memory.words();
        Ring {
            tail: &words[TAIL],
            replies: &words[REPLIES],
            head: &words[HEAD],
            ring_at: &words[RING_AT],
            words: &words[CLAIMS + 2 * self.slots..][..self.ring_bytes / WORD],
        }
    }
}

impl CreditMemory for WorkerMemory {
    fn credits(&self) -> Credits<'_> {
        let words = &self.memory.words()[CLAIMS + 2 * self.slots + self.ring_bytes / WORD..];
        let (limits, waits) = words.split_at(self.slots);
        Credits::new(limits, waits)
    }
}

fn words(slots: usize, ring_bytes: usize) -> usize {
    CLAIMS + 4 * slots + ring_bytes / WORD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::claim::{Claim, Progress};
    use crate::wire::credit::{Credit, Units, Waiter};
    use crate::wire::outbox::Intake;
    use std::sync::atomic::Ordering;

    #[test]
    fn both_sides_find_the_same_things_and_none_lies_in_another() {
        let ours = WorkerMemory::create(10).expect("create");
        let fd = ours.fd().try_clone_to_owned().expect("dup");
        let theirs = WorkerMemory::from_fd(fd, ours.slots(), ours.ring_bytes()).expect("from_fd");
        ours.note().write_panic("x".repeat(1536), "y".repeat(496));
        let claims: Vec<_> =
            (0..16).map(|slot| Claim { slot, id: 100 + u64::from(slot) }).collect();
        for claim in &claims {
            ours.claims().offer(*claim);
            theirs.claims().note_start(*claim, u64::MAX);
            ours.credits().open(*claim);
            theirs.credits().wait(*claim, Waiter::Thread);
        }
        while theirs.ring().put(&[0xff; 16 << 10]) {}
        theirs.waits().store(u64::MAX, Ordering::Relaxed);
        let mut bytes = Vec::new();
        assert_eq!(Intake::default().take(&ours.ring(), &mut bytes), Ok(true));
        assert_eq!(bytes, [0xff; RING_BYTES]);
        assert!(claims.iter().all(|claim| theirs.claims().look(*claim) == Progress::Queued));
        assert!(claims.iter().all(|claim| ours.claims().started_at(*claim) == u64::MAX));
        for claim in &claims {
            assert_eq!(theirs.credits().look(*claim, Units::default()), Credit::Granted);
            assert!(ours.credits().close(*claim).thread);
        }
        assert!(theirs.note().read().is_some());
        assert_eq!(ours.waits().load(Ordering::Relaxed), u64::MAX);
        assert_eq!(ours.ring().ring_at.load(Ordering::Relaxed), 0);
        assert_eq!(ours.claims().look(Claim { slot: 16, id: 0 }), Progress::Unknown);
    }

    #[test]
    fn memory_that_is_divided_otherwise_is_refused() {
        let ours = WorkerMemory::create(8).expect("create");
        for (slots, ring) in [
            (0, RING_BYTES as u32),
            (16, RING_BYTES as u32),
            (8, 0),
            (8, 12),
            (8, 1 << 17),
            (1 << 17, 1 << 16),
        ] {
            let fd = ours.fd().try_clone_to_owned().expect("dup");
            assert!(WorkerMemory::from_fd(fd, slots, ring).is_err(), "{slots} {ring}");
        }
    }
}
