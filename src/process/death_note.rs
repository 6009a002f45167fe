//! What a dying worker can still say, left in the memory that it shares with the pool.
//!
//! The process's status does not tell a stack overflow from any other SIGSEGV, nor a panic that
//! aborts from any other SIGABRT. So the handler of the one and the hook of the other leave a note,
//! which the pool reads once the process has ended. It is a hint by a process that may be hostile:
//! it can lie about its own death, and that is all.
//!
//! The layout is part of the protocol and changes only with its version. Words are 64 bits,
//! little-endian; texts are UTF-8, eight bytes a word, the first byte in the lowest bits:
//!
//! ```text
//! word    0            1                               2 .. 194             194 .. 256
//!         state        message bytes  (low 32 bits)    message              place: file:line:column
//!                      place bytes   (high 32 bits)    1536 bytes           496 bytes
//!
//! state   0 empty   1 stack overflow   2 panic   3 a panic that is being written   4 out of memory; any other: no note
//! ```
//!
//! States, with the transitions of one process (a note is never handed to another):
//!
//! ```text
//! empty ──(an abort for want of memory)──> out of memory
//!   ├─────(panic: the first thread wins)──> writing ──> panic
//!   └───────────(stack overflow, also from any other)─────────────────> stack overflow
//! ```

use crate::error::text::{self, floor_char_boundary};
use std::fmt::{self, Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};

const EMPTY: u64 = 0;
const STACK_OVERFLOW: u64 = 1;
const PANIC: u64 = 2;
const WRITING: u64 = 3;
const OUT_OF_MEMORY: u64 = 4;

/// How long a message may be; the rest is cut off. With what stands around it, a note is half a
/// page.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1536;

/// How long a place may be: file, line and column.
pub(crate) const PLACE_BYTES_MAX: usize = 496;

const WORD_BYTES: usize = 8;
const HEAD_WORDS: usize = 2;
const MESSAGE_WORDS: usize = MESSAGE_BYTES_MAX / WORD_BYTES;
const PLACE_WORDS: usize = PLACE_BYTES_MAX / WORD_BYTES;

/// How many words of shared memory a note takes.
pub(crate) const NOTE_WORDS: usize = HEAD_WORDS + MESSAGE_WORDS + PLACE_WORDS;

const _: () = assert!(NOTE_WORDS == 256, "the layout above is the protocol's");

/// What a worker said about its own death.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeathNote {
    /// A thread's stack overflowed.
    StackOverflow,
    /// It aborted because a request for memory had failed (std's `handle_alloc_error`).
    OutOfMemory,
    /// A panic that was not caught.
    Panic {
        /// What it said, perhaps cut off at [`MESSAGE_BYTES_MAX`].
        message: String,
        /// Where: file, line and column; perhaps cut off, or empty.
        place: String,
    },
}

/// The place in shared memory where a note stands or may be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotePage<'a> {
    words: &'a [AtomicU64; NOTE_WORDS],
}

impl<'a> NotePage<'a> {
    /// The page at the beginning of these words; `None` if there are fewer than [`NOTE_WORDS`].
    pub(crate) fn new(words: &'a [AtomicU64]) -> Option<Self> {
        let words = words.first_chunk()?;
        Some(Self { words })
    }

    /// Notes a stack overflow, whatever was noted before.
    ///
    /// Async-signal-safe: one atomic store.
    pub(crate) fn write_stack_overflow(&self) {
        self.words[0].store(STACK_OVERFLOW, Ordering::Release);
    }

    /// Notes that the process aborts for want of memory, unless something has been noted already.
    ///
    /// Async-signal-safe: one atomic operation.
    pub(crate) fn write_out_of_memory(&self) {
        let _ = self.words[0].compare_exchange(
            EMPTY,
            OUT_OF_MEMORY,
            Ordering::Release,
            Ordering::Relaxed,
        );
    }

    /// Notes a panic, unless something has been noted already: the first one is the cause.
    ///
    /// Allocates nothing itself. What is too long is cut off, at a whole character.
    pub(crate) fn write_panic(&self, message: impl Display, place: impl Display) {
        let claimed =
            self.words[0].compare_exchange(EMPTY, WRITING, Ordering::Acquire, Ordering::Relaxed);
        if claimed.is_err() {
            return;
        }
        let (message_words, place_words) = self.texts();
        let message_bytes = write_text(message_words, message);
        let place_bytes = write_text(place_words, place);
        let lengths = message_bytes as u64 | (place_bytes as u64) << 32;
        self.words[1].store(lengths, Ordering::Relaxed);
        // Not over a stack overflow that was noted meanwhile, say by a `Display` that recursed.
        let _ =
            self.words[0].compare_exchange(WRITING, PANIC, Ordering::Release, Ordering::Relaxed);
    }

    /// Reads the note, once its writer has ended.
    ///
    /// Whatever stands there, and whoever changes it meanwhile: it is copied first, and no length
    /// is believed.
    pub(crate) fn read(&self) -> Option<DeathNote> {
        match self.words[0].load(Ordering::Acquire) {
            STACK_OVERFLOW => Some(DeathNote::StackOverflow),
            OUT_OF_MEMORY => Some(DeathNote::OutOfMemory),
            PANIC => {
                let lengths = self.words[1].load(Ordering::Relaxed);
                let (message, place) = self.texts();
                Some(DeathNote::Panic {
                    message: read_text(message, (lengths & 0xffff_ffff) as usize),
                    place: read_text(place, (lengths >> 32) as usize),
                })
            }
            _ => None,
        }
    }

    fn texts(&self) -> (&'a [AtomicU64], &'a [AtomicU64]) {
        self.words[HEAD_WORDS..].split_at(MESSAGE_WORDS)
    }
}

/// Writes a text, as much as has room, and returns how many bytes that are; one more than there is
/// room for, if something was cut off.
fn write_text(words: &[AtomicU64], text: impl Display) -> usize {
    let mut writer = TextWriter { words, bytes: 0, word: 0, full: false };
    // The only errors are our own, when it is full, and those of a faulty `Display`: what was
    // written till then counts.
    let _ = write!(writer, "{text}");
    writer.flush();
    if writer.full { words.len() * WORD_BYTES + 1 } else { writer.bytes }
}

struct TextWriter<'a> {
    words: &'a [AtomicU64],
    /// How many have been written.
    bytes: usize,
    /// The word that is not full yet.
    word: u64,
    /// Something had no room: nothing that comes later may fill the gap that a long character
    /// left.
    full: bool,
}

impl TextWriter<'_> {
    fn flush(&self) {
        if let Some(word) = self.words.get(self.bytes / WORD_BYTES) {
            word.store(self.word, Ordering::Relaxed);
        }
    }
}

impl Write for TextWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.full {
            return Err(fmt::Error);
        }
        let room = self.words.len() * WORD_BYTES - self.bytes;
        let end = floor_char_boundary(text, room);
        for &byte in &text.as_bytes()[..end] {
            self.word |= u64::from(byte) << (8 * (self.bytes % WORD_BYTES));
            if self.bytes % WORD_BYTES == WORD_BYTES - 1 {
                self.flush();
                self.word = 0;
            }
            self.bytes += 1;
        }
        if end < text.len() {
            self.full = true;
            return Err(fmt::Error);
        }
        Ok(())
    }
}

/// Reads a text of so many bytes; more than there is room for means that it was cut.
fn read_text(words: &[AtomicU64], bytes: usize) -> String {
    let mut copy: Vec<u8> = words
        .iter()
        .take(bytes.div_ceil(WORD_BYTES))
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .collect();
    copy.truncate(bytes);
    let mut text = String::from_utf8_lossy(&copy).into_owned();
    if bytes > copy.len() {
        // Behind the last whole character nothing was written.
        text.truncate(text.trim_end_matches('\0').len());
        text.push(text::CUT);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::memory::SharedMemory;

    fn words() -> Vec<AtomicU64> {
        (0..NOTE_WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    fn panic_note(message: &str, place: &str) -> Option<DeathNote> {
        Some(DeathNote::Panic { message: message.to_owned(), place: place.to_owned() })
    }

    #[test]
    fn note_crosses_shared_memory() {
        let (memory, fd) = SharedMemory::create(4096).expect("create");
        let other = SharedMemory::from_fd(&fd).expect("from_fd");
        let ours = NotePage::new(memory.words()).expect("long enough");
        let theirs = NotePage::new(other.words()).expect("long enough");
        assert_eq!(ours.read(), None);
        theirs.write_panic("Grüße, 8 bytes and more", "src/main.rs:1:2");
        assert_eq!(ours.read(), panic_note("Grüße, 8 bytes and more", "src/main.rs:1:2"));
        theirs.write_stack_overflow();
        assert_eq!(ours.read(), Some(DeathNote::StackOverflow));
    }

    #[test]
    fn first_panic_stays() {
        let words = words();
        let page = NotePage::new(&words).expect("long enough");
        page.write_panic("first", "");
        page.write_panic("second", "elsewhere");
        assert_eq!(page.read(), panic_note("first", ""));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        for filler in 0..8 {
            let words = words();
            let page = NotePage::new(&words).expect("long enough");
            let message = "x".repeat(filler) + &"ß€😀".repeat(1000);
            page.write_panic(&message, "p".repeat(10_000));
            let Some(DeathNote::Panic { message: read, place }) = page.read() else {
                panic!("no note");
            };
            let read = read.strip_suffix(text::CUT).expect("the cut is marked");
            assert!(message.starts_with(read));
            assert!(read.len() > MESSAGE_BYTES_MAX - 4);
            assert_eq!(place, "p".repeat(PLACE_BYTES_MAX) + "\u{2026}");
        }
    }

    #[test]
    fn pieces_after_the_cut_are_dropped() {
        let words = words();
        let page = NotePage::new(&words).expect("long enough");
        let long = "x".repeat(MESSAGE_BYTES_MAX - 1);
        struct IgnoresErrors(String);
        impl Display for IgnoresErrors {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for piece in [&self.0, "€", "tail"] {
                    let _ = f.write_str(piece);
                }
                Ok(())
            }
        }
        page.write_panic(IgnoresErrors(long.clone()), "here");
        assert_eq!(page.read(), panic_note(&(long + "\u{2026}"), "here"));
    }

    #[test]
    fn stack_overflow_within_a_panic_wins() {
        struct Overflows<'a>(NotePage<'a>);
        impl Display for Overflows<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write_stack_overflow();
                f.write_str("deep")
            }
        }
        let words = words();
        let page = NotePage::new(&words).expect("long enough");
        page.write_panic(Overflows(page), "");
        assert_eq!(page.read(), Some(DeathNote::StackOverflow));
    }

    #[test]
    fn want_of_memory_is_noted_only_where_nothing_is() {
        let words = words();
        let page = NotePage::new(&words).expect("long enough");
        page.write_out_of_memory();
        page.write_panic("", "");
        assert_eq!(page.read(), Some(DeathNote::OutOfMemory));
        page.write_stack_overflow();
        page.write_out_of_memory();
        assert_eq!(page.read(), Some(DeathNote::StackOverflow));
    }

    #[test]
    fn no_bytes_are_believed() {
        let words = words();
        for state in [0, 1, 2, 3, 4, 5, u64::MAX] {
            for fill in [0, 1, 0x8080_8080_8080_8080, u64::MAX, 0xffff_ffff, 1 << 63] {
                for word in &words {
                    word.store(fill, Ordering::Relaxed);
                }
                words[0].store(state, Ordering::Relaxed);
                let note = NotePage::new(&words).expect("long enough").read();
                assert_eq!(note.is_some(), matches!(state, 1 | 2 | 4));
                if let Some(DeathNote::Panic { message, place }) = note {
                    assert!(message.chars().count() <= MESSAGE_BYTES_MAX + 1);
                    assert!(place.chars().count() <= PLACE_BYTES_MAX + 1);
                }
            }
        }
        assert!(NotePage::new(&words[1..]).is_none());
    }
}
