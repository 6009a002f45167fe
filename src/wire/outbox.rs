//! The outbox: a ring of bytes in the memory that a worker shares with the pool, through which its
//! small replies travel.
//!
//! A reply written to a socket costs a system call, and one kept back to go with others would be
//! lost with its process. Through the ring it costs neither: it is committed by one store, and what
//! was committed is read though the process has died since.
//!
//! ```text
//! positions   count bytes, never wrap, and are multiples of 8; a frame is padded to that
//! tail        where the next frame goes; the worker's      (committed: all before it)
//! head        what the pool has taken; the pool's
//! asleep      1 while the pool would not look by itself
//!
//! worker      copy the frame in; tail := …   (put)
//!             if asleep was 1: 0, and ring the bell, a frame of two bytes on the socket   (wants_bell)
//! pool        on the bell, on the worker's end, or when it looks anyway: take all to the tail   (take)
//!             before it sleeps: asleep := 1, and one more look at the tail   (sleep)
//! ```
//!
//! Between the worker's store of the tail and its look at `asleep`, and between the pool's store of
//! `asleep` and its look at the tail, stands a full fence each: so one of the two sees the other's
//! store, and no reply waits unnoticed.
//!
//! The worker is not trusted. The pool keeps its head in private memory, reads the tail once,
//! checks it, and copies before it looks; places are reached as whole words by atomics. A tail that
//! cannot be is an error ([`BadTail`]).

use std::sync::atomic::{AtomicU64, Ordering, fence};

const WORD: usize = size_of::<u64>();

/// The words of the ring and of its positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring<'a> {
    pub(crate) tail: &'a AtomicU64,
    pub(crate) head: &'a AtomicU64,
    pub(crate) asleep: &'a AtomicU64,
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
        true
    }

    /// Whether the pool sleeps and must be told of what was committed. It is told once.
    pub(crate) fn wants_bell(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) != 0 && self.asleep.swap(0, Ordering::AcqRel) != 0
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

    /// The pool will look no more by itself. `false`: something has come meanwhile, so it must look
    /// again.
    pub(crate) fn sleep(&self, ring: &Ring<'_>) -> bool {
        self.doze(ring);
        self.is_up_to_date(ring)
    }

    /// The first half of [`sleep`](Self::sleep): from here on the worker rings.
    pub(crate) fn doze(&self, ring: &Ring<'_>) {
        ring.asleep.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The second: nothing was committed since the last [`take`](Self::take).
    pub(crate) fn is_up_to_date(&self, ring: &Ring<'_>) -> bool {
        ring.tail.load(Ordering::Acquire) == self.head
    }

    /// The pool looks by itself again: the worker need not ring. (If it just has, the bell is only
    /// a look for nothing.)
    pub(crate) fn wake(&self, ring: &Ring<'_>) {
        ring.asleep.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{self, HEAD};

    struct Memory {
        tail: AtomicU64,
        head: AtomicU64,
        asleep: AtomicU64,
        words: Vec<AtomicU64>,
    }

    impl Memory {
        fn new(words: usize) -> Self {
            let word = || AtomicU64::new(0);
            Self {
                tail: word(),
                head: word(),
                asleep: word(),
                words: (0..words).map(|_| word()).collect(),
            }
        }

        fn ring(&self) -> Ring<'_> {
            Ring { tail: &self.tail, head: &self.head, asleep: &self.asleep, words: &self.words }
        }
    }

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let start = frame::begin(&mut out);
        out.extend(body);
        frame::finish(&mut out, start);
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
    fn the_bell_is_wanted_once_by_a_pool_that_sleeps() {
        let memory = Memory::new(64);
        let (ring, mut intake, mut bytes) = (memory.ring(), Intake::default(), Vec::new());
        assert!(!ring.wants_bell());
        assert!(intake.sleep(&ring));
        assert!(ring.put(&framed(&[1])));
        assert!(ring.wants_bell());
        assert!(!ring.wants_bell());
        assert!(!intake.sleep(&ring), "something has come");
        intake.wake(&ring);
        assert!(!ring.wants_bell());
        assert_eq!(intake.take(&ring, &mut bytes), Ok(true));
        assert!(intake.sleep(&ring));
    }

    /// Two threads, as the two processes: nothing is lost, doubled or torn, and nobody sleeps on a
    /// reply.
    #[test]
    fn a_sleeper_is_always_woken() {
        const FRAMES: u64 = 20_000;
        let memory = Memory::new(64);
        let (bell, heard) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let ring = memory.ring();
                for number in 0..FRAMES {
                    while !ring.put(&framed(&number.to_le_bytes())) {
                        std::thread::yield_now();
                    }
                    if ring.wants_bell() {
                        bell.send(()).expect("the pool is there");
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
                }
                if next < FRAMES && intake.sleep(&ring) {
                    heard.recv_timeout(std::time::Duration::from_secs(30)).expect("a bell");
                }
            }
        });
    }
}
