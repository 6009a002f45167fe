//! The outbox: a reply ring in the memory that a worker shares with the pool, for small replies.
//!
//! A reply that is written to a socket costs a system call, and one that is held back to be sent
//! with others would be lost with its process. By the ring, a reply costs neither: it is committed
//! by one store, and what was committed is read even if the process has died since.
//!
//! ```text
//! positions   count bytes, never wrap, and are multiples of 8; a frame is padded to that
//! tail        where the next frame goes; the worker's      (committed: all before it)
//! replies     how many frames have been committed; the worker's
//! head        what the pool has taken; the pool's
//! ring_at     the number of replies at which the worker rings; never, while the pool is awake
//!
//! worker      copy the frame in; tail := …; replies += 1   (put)
//!             if replies >= ring_at: ring_at := never, and ring the doorbell,
//!             a frame of two bytes on the socket   (wants_bell)
//! pool        on the doorbell, on the worker's end, or when it checks anyway:
//!             ring_at := never; take all to the tail   (wake, take, took)
//!             before it sleeps: ring_at := replies taken + k, and a second check   (arm)
//! ```
//!
//! **Interrupt moderation.** With `k` = 1 the worker rings for each reply that it commits while the
//! pool sleeps. With a larger `k` it goes on working, and the pool takes many replies with one
//! wake-up. `k` is never above the number of tasks that the worker has in hand, so a worker that
//! has done all of them has rung. If that number shrinks without a reply in the ring (a task is
//! revoked, or answered by the socket), the pool wakes and arms the doorbell anew.
//!
//! **Memory ordering.** The worker's store of `replies` and its load of `ring_at`, and the pool's
//! store of `ring_at` and its load of `replies`, are sequentially consistent. So at least one side
//! sees the other's store, and no reply that is due waits unnoticed. `pool/core_search.rs` checks
//! this exhaustively.
//!
//! **The worker is not trusted.** The pool keeps its positions in private memory. It reads each of
//! the worker's words once, checks it, and copies the data before it looks at them. Memory is
//! accessed as whole words, by atomics. An impossible tail is an error ([`BadTail`]).

use std::sync::atomic::{AtomicU64, Ordering};

const WORD: usize = size_of::<u64>();
/// As `ring_at`: the pool is awake.
const NEVER: u64 = u64::MAX;

/// The words of the ring and of its positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring<'a> {
    pub(crate) tail: &'a AtomicU64,
    pub(crate) replies: &'a AtomicU64,
    pub(crate) head: &'a AtomicU64,
    pub(crate) ring_at: &'a AtomicU64,
    /// A power of two of them.
    pub(crate) words: &'a [AtomicU64],
}

impl Ring<'_> {
    fn bytes(&self) -> u64 {
        (self.words.len() * WORD) as u64
    }

    fn place(&self, position: u64) -> usize {
        (position as usize / WORD) & (self.words.len() - 1)
    }

    // ---- the worker

    /// Commits a whole frame. `false`: it is longer than a quarter of the ring, or has no room now;
    /// it goes by the socket.
    pub(crate) fn put(&self, frame: &[u8]) -> bool {
        let len = frame.len().next_multiple_of(WORD) as u64;
        let tail = self.tail.load(Ordering::Relaxed);
        // Acquire: what the pool has read of these places, it has read before we write there again.
        let used = tail.wrapping_sub(self.head.load(Ordering::Acquire));
        if len > self.bytes() / 4 || used.saturating_add(len) > self.bytes() {
            return false;
        }
        let mut position = tail;
        let (whole, rest) = frame.as_chunks::<WORD>();
        for word in whole {
            self.words[self.place(position)].store(u64::from_ne_bytes(*word), Ordering::Relaxed);
            position += WORD as u64;
        }
        if !rest.is_empty() {
            let mut word = [0; WORD];
            word[..rest.len()].copy_from_slice(rest);
            self.words[self.place(position)].store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
        self.tail.store(tail.wrapping_add(len), Ordering::Release);
        // After the tail: a pool that sees the count sees the frame. And before the look at
        // `ring_at`, in the one order that all such accesses have.
        let replies = self.replies.load(Ordering::Relaxed);
        self.replies.store(replies.wrapping_add(1), Ordering::SeqCst);
        true
    }

    /// Returns whether the pool sleeps and enough has been committed to wake it. The pool is told
    /// once.
    pub(crate) fn wants_bell(&self) -> bool {
        let ring_at = self.ring_at.load(Ordering::SeqCst);
        // If the exchange fails, the pool is awake, or has armed the doorbell anew and looks itself.
        self.replies.load(Ordering::Relaxed) >= ring_at
            && ring_at != NEVER
            && self
                .ring_at
                .compare_exchange(ring_at, NEVER, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }
}

/// A worker's tail that lies where it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadTail {
    pub(crate) tail: u64,
    pub(crate) head: u64,
}

impl std::fmt::Display for BadTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an outbox whose end is at {} while {} has been read", self.tail, self.head)
    }
}

/// The pool's side of one worker's ring.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intake {
    /// Kept here: what stands in the memory is for the worker only.
    head: u64,
    /// How many replies have been taken.
    taken: u64,
}

impl Intake {
    /// Appends all that has been committed to `into`: whole frames, each padded to a multiple of 8
    /// bytes. `false`: nothing was.
    pub(crate) fn take(&mut self, ring: &Ring<'_>, into: &mut Vec<u8>) -> Result<bool, BadTail> {
        let tail = ring.tail.load(Ordering::Acquire);
        let len = tail.wrapping_sub(self.head);
        if len == 0 {
            return Ok(false);
        }
        if len > ring.bytes() || !len.is_multiple_of(WORD as u64) {
            return Err(BadTail { tail, head: self.head });
        }
        let start = ring.place(self.head);
        let words = len as usize / WORD;
        let first = words.min(ring.words.len() - start);
        into.reserve(len as usize);
        for word in ring.words[start..start + first].iter().chain(&ring.words[..words - first]) {
            into.extend_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        self.head = tail;
        ring.head.store(tail, Ordering::Release);
        Ok(true)
    }

    /// Counts the replies that lay in what [`take`](Self::take) has given.
    pub(crate) fn took(&mut self, replies: usize) {
        self.taken += replies as u64;
    }

    #[cfg(test)]
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Asks the worker to ring when it has committed so many further replies. Returns `false` if
    /// that many have come meanwhile: then the pool must look again. See the module's
    /// documentation for what `replies` may be.
    pub(crate) fn arm(&self, ring: &Ring<'_>, replies: usize) -> bool {
        self.set_ring_at(ring, replies);
        self.may_sleep(ring, replies)
    }

    /// The first half of [`arm`](Self::arm): from here on the worker rings.
    pub(crate) fn set_ring_at(&self, ring: &Ring<'_>, replies: usize) {
        ring.ring_at.store(self.taken + replies as u64, Ordering::SeqCst);
    }

    /// The second half of [`arm`](Self::arm): the second look.
    pub(crate) fn may_sleep(&self, ring: &Ring<'_>, replies: usize) -> bool {
        // A count without a frame can only be a lie, which must not keep the pool awake.
        ring.replies.load(Ordering::SeqCst) < self.taken + replies as u64
            || self.is_up_to_date(ring)
    }

    /// Returns whether nothing was committed since the last [`take`](Self::take).
    pub(crate) fn is_up_to_date(&self, ring: &Ring<'_>) -> bool {
        ring.tail.load(Ordering::Acquire) == self.head
    }

    /// Tells the worker that the pool looks by itself. (If the worker has just rung, the pool looks
    /// once for nothing.)
    pub(crate) fn wake(&self, ring: &Ring<'_>) {
        ring.ring_at.store(NEVER, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{self, HEAD};

    struct Memory {
        tail: AtomicU64,
        replies: AtomicU64,
        head: AtomicU64,
        ring_at: AtomicU64,
        words: Vec<AtomicU64>,
    }

    impl Memory {
        fn new(words: usize) -> Self {
            let word = || AtomicU64::new(0);
            Self {
                tail: word(),
                replies: word(),
                head: word(),
                ring_at: AtomicU64::new(NEVER),
                words: (0..words).map(|_| word()).collect(),
            }
        }

        fn ring(&self) -> Ring<'_> {
            Ring {
                tail: &self.tail,
                replies: &self.replies,
                head: &self.head,
                ring_at: &self.ring_at,
                words: &self.words,
            }
        }
    }

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame::write(&mut out, |out| out.extend(body));
        out
    }

    fn bodies(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut bodies = Vec::new();
        while let Some(head) = bytes.first_chunk::<HEAD>() {
            let len = u32::from_le_bytes(*head) as usize;
            bodies.push(bytes[HEAD..HEAD + len].to_vec());
            bytes = &bytes[(HEAD + len).next_multiple_of(WORD)..];
        }
        bodies
    }

    #[test]
    fn frames_of_every_length_come_out_whole_and_in_order_also_across_the_end() {
        let memory = Memory::new(64);
        let (ring, mut intake) = (memory.ring(), Intake::default());
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for round in 0..2000usize {
            let body: Vec<u8> = (0..round % 124).map(|i| (i + round) as u8).collect();
            while !ring.put(&framed(&body)) {
                let mut bytes = Vec::new();
                assert_eq!(intake.take(&ring, &mut bytes), Ok(true), "it is full");
                got.extend(bodies(&bytes));
            }
            sent.push(body);
        }
        let mut bytes = Vec::new();
        intake.take(&ring, &mut bytes).expect("a good tail");
        got.extend(bodies(&bytes));
        assert_eq!(got, sent);
        assert_eq!(intake.take(&ring, &mut bytes), Ok(false));
    }

    #[test]
    fn what_is_too_long_or_has_no_room_is_left_to_the_socket() {
        let memory = Memory::new(64);
        let ring = memory.ring();
        assert!(!ring.put(&[0; 129]), "more than a quarter");
        (0..4).for_each(|_| assert!(ring.put(&[0; 128])));
        assert!(!ring.put(&[0]), "full");
    }

    #[test]
    fn a_tail_that_cannot_be_is_refused_and_nothing_is_read() {
        for tail in [8 + 512, 4, u64::MAX, u64::MAX - 7] {
            let memory = Memory::new(64);
            let (ring, mut intake, mut bytes) = (memory.ring(), Intake::default(), Vec::new());
            ring.tail.store(tail, Ordering::Relaxed);
            assert_eq!(intake.take(&ring, &mut bytes), Err(BadTail { tail, head: 0 }));
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn a_head_or_a_word_that_the_worker_overwrites_changes_nothing_for_the_pool() {
        let memory = Memory::new(64);
        let (ring, mut intake, mut bytes) = (memory.ring(), Intake::default(), Vec::new());
        assert!(ring.put(&framed(&[1, 2, 3])));
        ring.head.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(intake.take(&ring, &mut bytes), Ok(true));
        assert_eq!((bodies(&bytes), ring.head.load(Ordering::Relaxed)), (vec![vec![1, 2, 3]], 8));
    }

    #[test]
    fn the_worker_rings_once_when_enough_is_committed() {
        let memory = Memory::new(64);
        let (ring, mut intake, mut bytes) = (memory.ring(), Intake::default(), Vec::new());
        assert!(ring.put(&framed(&[1])));
        assert!(!ring.wants_bell(), "the pool is awake");
        assert!(!intake.arm(&ring, 1), "a reply has come");
        assert!(intake.arm(&ring, 3));
        assert!(ring.put(&framed(&[2])));
        assert!(!ring.wants_bell(), "two of three");
        assert!(ring.put(&framed(&[3])));
        assert!(ring.wants_bell());
        assert!(!ring.wants_bell());
        assert_eq!(intake.take(&ring, &mut bytes), Ok(true));
        intake.took(3);
        assert!(intake.arm(&ring, 1));
        assert!(ring.put(&framed(&[4])));
        intake.wake(&ring);
        assert!(!ring.wants_bell(), "the pool is awake");
    }

    #[test]
    fn a_count_of_replies_that_is_a_lie_keeps_nothing_awake() {
        let memory = Memory::new(64);
        let (ring, intake) = (memory.ring(), Intake::default());
        for lie in [1, u64::MAX] {
            ring.replies.store(lie, Ordering::Relaxed);
            assert!(intake.arm(&ring, 1));
        }
    }

    /// Two threads stand for the two processes: no reply is lost, doubled or torn, and the pool
    /// never sleeps on a reply that is due.
    #[test]
    fn a_pool_that_sleeps_is_always_woken() {
        const FRAMES: u64 = 20_000;
        let memory = Memory::new(64);
        let (doorbell, heard) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let ring = memory.ring();
                for number in 0..FRAMES {
                    while !ring.put(&framed(&number.to_le_bytes())) {
                        std::thread::yield_now();
                    }
                    if ring.wants_bell() {
                        doorbell.send(()).expect("the pool is there");
                    }
                }
            });
            let (ring, mut intake, mut next) = (memory.ring(), Intake::default(), 0);
            while next < FRAMES {
                let mut bytes = Vec::new();
                intake.take(&ring, &mut bytes).expect("a good tail");
                for body in bodies(&bytes) {
                    assert_eq!(body, next.to_le_bytes());
                    next += 1;
                    intake.took(1);
                }
                // The ring holds 32 of these frames.
                let replies = (1 + next as usize % 7).min((FRAMES - next) as usize);
                if next < FRAMES && intake.arm(&ring, replies) {
                    heard.recv_timeout(std::time::Duration::from_secs(30)).expect("a doorbell");
                }
            }
        });
    }
}
