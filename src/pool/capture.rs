//! What the workers print, read line by line and given to the user's functions.
//!
//! A pool that captures has one thread, which reads and calls: so a function that blocks blocks the
//! reading, and with it, as soon as their pipes are full, the workers that print; nothing is lost,
//! and nothing but 64 KiB a worker is kept. The pool itself never waits for that thread. What it
//! needs, it takes itself:
//!
//! 1. When a worker has ended, the driver takes what is left in its pipes, and closes them. So the
//!    last words of a worker are there for its tasks' errors whatever the thread does, and a
//!    process that holds the other end holds up nobody.
//! 2. Who reads holds the stream's lock over a read that never blocks, so that bytes stay in order.
//!    No lock is held over a call of the user's function.
//! 3. The functions belong to the thread alone: they are called and dropped there, and nowhere
//!    else.
//!
//! ```text
//! worker ──▶ pipe ──▶ thread: tail, lines ──▶ function
//!              └────▶ driver, once, at its end: tail, rest ──▶ thread: lines ──▶ function
//! ```

use crate::error::text::CUT;
use crate::lock::Lock;
use crate::panics::catch_user_panic;
use crate::process::{self, standard};
use crate::stdio::{Callback, Kind, OutputLine, Stdio};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};

/// Longer lines come in pieces, in bytes: what is kept of each stream until a newline comes.
const LINE_MAX: usize = 16 << 10;
/// So much is read at once, in bytes: what a pipe holds (pipe(7)).
const READ: usize = 64 << 10;
/// So many readings when a worker has ended, at most: it may have made its pipe larger, and
/// somebody may still write to it.
const LAST_READINGS: usize = 4;
/// So much is kept of workers that have ended, in bytes, while the function does not return.
const KEPT_MAX: usize = 1 << 20;
/// So much of a worker's last words is part of its tasks' errors, in bytes: enough for a panic's
/// message with its backtrace.
const TAIL: usize = 16 << 10;

const BELL: u64 = u64::MAX;

/// The capture of one pool. Its drop ends the thread, once the function has had all that there is.
#[derive(Debug)]
pub(super) struct Capture {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    epoll: Epoll,
    bell: EventFd,
    orders: Lock<Vec<Order>>,
    next: AtomicU64,
    /// Bytes that were taken from the pipes of workers that have ended, and have not come to the
    /// thread.
    kept: AtomicUsize,
    /// Bytes that were not kept.
    lost: AtomicU64,
    closing: AtomicBool,
}

#[derive(Debug)]
enum Order {
    Watch(Arc<Stream>, u32),
    /// The driver has taken what was left.
    Ended(u64),
}

/// One stream of one worker.
#[derive(Debug)]
pub(super) struct Stream {
    id: u64,
    is_stderr: bool,
    shared: Arc<Shared>,
    inside: Lock<Inside>,
}

#[derive(Debug)]
struct Inside {
    /// Our end; `None` when everything has been read.
    pipe: Option<OwnedFd>,
    /// The last that was read, [`TAIL`] bytes or some more; of standard error only.
    tail: Vec<u8>,
    /// What was left when the worker ended.
    rest: Vec<u8>,
}

/// What a worker that is started is given, and what is kept of it.
#[derive(Debug, Default)]
pub(super) struct Streams {
    stdout: Option<Arc<Stream>>,
    stderr: Option<Arc<Stream>>,
    /// Its standard output from the beginning; the application's if `None`.
    pub(super) their_stdout: Option<OwnedFd>,
    /// Its standard error once it has said hello; the application's if `None`.
    pub(super) their_stderr: Option<OwnedFd>,
}

impl Capture {
    /// Starts the thread, if one of the two streams is to be captured.
    pub(super) fn start(stdout: &Stdio, stderr: &Stdio) -> io::Result<Option<Self>> {
        let take = |output: &Stdio| {
            let Kind::Lines(callback) = &output.0 else { return None };
            callback.lock().take()
        };
        let (stdout, stderr) = (take(stdout), take(stderr));
        if stdout.is_none() && stderr.is_none() {
            return Ok(None);
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let bell =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let shared = Arc::new(Shared {
            epoll,
            bell,
            orders: Lock::default(),
            next: AtomicU64::new(0),
            kept: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        });
        let reader =
            Reader { shared: Arc::clone(&shared), streams: HashMap::new(), stdout, stderr };
        process::thread::spawn("procpool-output", move || reader.run())?;
        Ok(Some(Self { shared }))
    }

    /// A stream of a worker that is about to be started, and the worker's end of it.
    fn pipe(&self, is_stderr: bool) -> io::Result<(Arc<Stream>, OwnedFd)> {
        let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let inside = Lock::new(Inside { pipe: Some(ours), tail: Vec::new(), rest: Vec::new() });
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        Ok((Arc::new(Stream { id, is_stderr, shared: Arc::clone(&self.shared), inside }), theirs))
    }

    /// No more workers will be started.
    pub(super) fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.ring();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn order(&self, order: Order) {
        self.orders.lock().push(order);
        self.ring();
    }

    fn ring(&self) {
        // It can only fail when the counter is full, and then the bell has been rung.
        let _ = self.bell.write(1);
    }
}

impl Streams {
    /// For a worker that is about to be started.
    pub(super) fn open(
        capture: Option<&Capture>,
        stdout: &Stdio,
        stderr: &Stdio,
    ) -> io::Result<Self> {
        let open =
            |output: &Stdio, is_stderr| -> io::Result<(Option<Arc<Stream>>, Option<OwnedFd>)> {
                Ok(match (&output.0, capture) {
                    (Kind::Inherit, _) => (None, None),
                    (Kind::Null, _) => (None, Some(standard::null()?)),
                    (Kind::File(file), _) => (None, Some(file.try_clone()?.into())),
                    (Kind::Lines(_), Some(capture)) => {
                        let (stream, theirs) = capture.pipe(is_stderr)?;
                        (Some(stream), Some(theirs))
                    }
                    (Kind::Lines(_), None) | (Kind::Piped, _) => unreachable!("see Builder::build"),
                })
            };
        let (stdout, their_stdout) = open(stdout, false)?;
        let (stderr, their_stderr) = open(stderr, true)?;
        Ok(Self { stdout, stderr, their_stdout, their_stderr })
    }

    /// The worker exists, and has this number: from now on its streams are read.
    pub(super) fn watch(&self, pid: u32) -> io::Result<()> {
        self.stdout.iter().chain(&self.stderr).try_for_each(|stream| stream.watch(pid))
    }

    /// The worker has ended: gives the last of what it printed to its standard error, if that is
    /// captured.
    pub(super) fn end(&self) -> Option<Arc<str>> {
        self.stdout.iter().chain(&self.stderr).for_each(|stream| stream.end());
        self.stderr.as_ref().map(|stream| text_of(&stream.inside().tail))
    }
}

impl Stream {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    fn watch(self: &Arc<Self>, pid: u32) -> io::Result<()> {
        // First, so that the thread knows of what it sees.
        self.shared.order(Order::Watch(Arc::clone(self), pid));
        let inside = self.inside();
        let Some(pipe) = &inside.pipe else { return Ok(()) };
        self.shared.epoll.add(pipe, EpollEvent::new(EpollFlags::EPOLLIN, self.id)).map_err(
            |errno| {
                self.shared.order(Order::Ended(self.id));
                errno.into()
            },
        )
    }

    /// Reads once, behind what is in `buffer`; `false` when there will be no more.
    fn read(&self, inside: &mut Inside, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let Some(pipe) = &inside.pipe else { return Ok(false) };
        let len = buffer.len();
        buffer.resize(len + READ, 0);
        let read = nix::unistd::read(pipe, &mut buffer[len..]);
        buffer.truncate(len + read.unwrap_or(0));
        if self.is_stderr {
            keep_tail(&mut inside.tail, &buffer[len..]);
        }
        Ok(read? > 0)
    }

    /// For the thread: what there is, and whether there will be more.
    fn take(&self, buffer: &mut Vec<u8>) -> bool {
        buffer.clear();
        let mut inside = self.inside();
        if inside.pipe.is_none() {
            std::mem::swap(&mut inside.rest, buffer);
            self.shared.kept.fetch_sub(buffer.len(), Ordering::AcqRel);
            return false;
        }
        match self.read(&mut inside, buffer) {
            Ok(more) => more,
            // It is as if somebody else had read it; what else is wrong with a pipe will be so the
            // next time.
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
            }
        }
    }

    /// Rule 1.
    fn end(&self) {
        let mut inside = self.inside();
        let mut rest = Vec::new();
        let mut readings = 0;
        while readings < LAST_READINGS {
            match self.read(&mut inside, &mut rest) {
                Ok(true) => readings += 1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        if self.shared.kept.fetch_add(rest.len(), Ordering::AcqRel) > KEPT_MAX {
            self.shared.kept.fetch_sub(rest.len(), Ordering::AcqRel);
            self.shared.lost.fetch_add(rest.len() as u64, Ordering::Relaxed);
            rest = Vec::new();
        }
        inside.rest = rest;
        let pipe = inside.pipe.take();
        drop(inside);
        if let Some(pipe) = &pipe {
            // Closing it would take it out as well, unless a fork of ours holds a copy.
            let _ = self.shared.epoll.delete(pipe.as_fd());
        }
        self.shared.order(Order::Ended(self.id));
    }
}

// ---- the thread

struct Reader {
    shared: Arc<Shared>,
    streams: HashMap<u64, Watched>,
    stdout: Option<Callback>,
    stderr: Option<Callback>,
}

struct Watched {
    stream: Arc<Stream>,
    pid: u32,
    lines: Lines,
}

impl Reader {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 32];
        let mut buffer = Vec::new();
        loop {
            // Before the look at the orders: what was ordered before the pool closed is done.
            let is_closing = self.shared.closing.load(Ordering::Acquire);
            let n = if is_closing {
                0
            } else {
                self.shared.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0)
            };
            if events[..n].iter().any(|event| event.data() == BELL) {
                let _ = self.shared.bell.read();
            }
            let orders = std::mem::take(&mut *self.shared.orders.lock());
            for order in orders {
                match order {
                    Order::Watch(stream, pid) => {
                        self.streams
                            .insert(stream.id, Watched { stream, pid, lines: Lines::default() });
                    }
                    Order::Ended(id) => self.read(id, &mut buffer),
                }
            }
            for event in events[..n].iter().filter(|event| event.data() != BELL) {
                self.read(event.data(), &mut buffer);
            }
            if is_closing {
                return;
            }
        }
    }

    /// Reads a stream once; forgets it when there is no more.
    fn read(&mut self, id: u64, buffer: &mut Vec<u8>) {
        let Some(Watched { stream, pid, lines }) = self.streams.get_mut(&id) else { return };
        let is_open = stream.take(buffer);
        let callback = if stream.is_stderr { &mut self.stderr } else { &mut self.stdout };
        let Some(callback) = callback else { return };
        let (shared, pid) = (&self.shared, *pid);
        let mut deliver = |bytes: &[u8], is_whole| {
            let lost = shared.lost.swap(0, Ordering::Relaxed);
            let line = OutputLine { pid, bytes, is_whole, lost };
            catch_user_panic(|| callback(&line));
        };
        lines.feed(buffer, &mut deliver);
        if !is_open {
            lines.end(&mut deliver);
            let stream = self.streams.remove(&id).map(|watched| watched.stream);
            // It may have closed it and live on: then it is ours to close, or it would be reported
            // for ever.
            let pipe = stream.and_then(|stream| stream.inside().pipe.take());
            if let Some(pipe) = pipe {
                let _ = self.shared.epoll.delete(pipe.as_fd());
            }
        }
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    /// The beginning of a line, shorter than [`LINE_MAX`].
    part: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, mut bytes: &[u8], deliver: &mut impl FnMut(&[u8], bool)) {
        while !bytes.is_empty() {
            let window = &bytes[..bytes.len().min(LINE_MAX - self.part.len())];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(at) if self.part.is_empty() => {
                    deliver(&window[..at], true);
                    bytes = &bytes[at + 1..];
                }
                Some(at) => {
                    self.part.extend_from_slice(&window[..at]);
                    deliver(&self.part, true);
                    self.part.clear();
                    bytes = &bytes[at + 1..];
                }
                None => {
                    self.part.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.part.len() == LINE_MAX {
                        let end = whole_characters(&self.part);
                        deliver(&self.part[..end], false);
                        self.part.drain(..end);
                    }
                }
            }
        }
    }

    /// There will be no more.
    fn end(&mut self, deliver: &mut impl FnMut(&[u8], bool)) {
        if !self.part.is_empty() {
            deliver(&self.part, false);
            self.part.clear();
        }
    }
}

/// How many bytes there are without the beginning of a character that is cut off at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    let len = bytes.len();
    for back in 1..=len.min(3) {
        let needed = match bytes[len - back] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if needed > back { len - back } else { len };
    }
    len
}

/// Appends to a tail; it keeps more than [`TAIL`] bytes if there are more, and twice as many at
/// most.
fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    const KEPT: usize = TAIL + 1; // one more tells that something was cut off
    let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
    if tail.len() + bytes.len() > 2 * TAIL {
        tail.drain(..tail.len().saturating_sub(KEPT - bytes.len()));
    }
    tail.extend_from_slice(bytes);
}

/// The last [`TAIL`] bytes, from the first whole character on. If there were more, it is marked.
fn text_of(tail: &[u8]) -> Arc<str> {
    if tail.len() <= TAIL {
        return String::from_utf8_lossy(tail).into();
    }
    let tail = &tail[tail.len() - TAIL..];
    let part = tail.iter().take(3).take_while(|byte| (0x80..=0xbf).contains(*byte)).count();
    format!("{CUT}{}", String::from_utf8_lossy(&tail[part..])).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let (mut lines, mut got) = (Lines::default(), Vec::new());
        let mut deliver = |bytes: &[u8], whole| got.push((bytes.to_vec(), whole));
        pieces.iter().for_each(|piece| lines.feed(piece, &mut deliver));
        lines.end(&mut deliver);
        got
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let text = b"one\n\ntwo \xe2\x82\xac\n\xff\xfe\nand a rest";
        let expected = lines_of(&[text]);
        assert_eq!(expected.len(), 5);
        assert_eq!(expected.iter().filter(|(_, whole)| *whole).count(), 4);
        for step in 1..text.len() {
            assert_eq!(
                lines_of(&text.chunks(step).collect::<Vec<_>>()),
                expected,
                "in steps of {step}"
            );
        }
    }

    #[test]
    fn long_lines_come_in_pieces_that_end_between_characters() {
        for filler in 0..4 {
            let text = "x".repeat(filler) + &"€😀ß".repeat(10_000) + "\nnext\n";
            for step in [1000, 16 << 10, 1 << 20] {
                let got = lines_of(&text.as_bytes().chunks(step).collect::<Vec<_>>());
                assert!(got.iter().all(
                    |(bytes, _)| bytes.len() <= LINE_MAX && std::str::from_utf8(bytes).is_ok()
                ));
                let (last, pieces) = got[..got.len() - 1].split_last().expect("some");
                assert!(
                    last.1
                        && pieces.iter().all(|(bytes, whole)| !whole && bytes.len() > LINE_MAX - 4)
                );
                let joined: Vec<u8> = got
                    .iter()
                    .flat_map(|(bytes, whole)| {
                        [&bytes[..], if *whole { b"\n" } else { b"" }].concat()
                    })
                    .collect();
                assert!(joined == text.as_bytes());
            }
        }
        let rubbish = vec![0x80; LINE_MAX + 1];
        assert_eq!(
            lines_of(&[&rubbish]).iter().map(|(bytes, _)| bytes.len()).sum::<usize>(),
            LINE_MAX + 1
        );
    }

    #[test]
    fn a_tail_is_the_last_of_it_and_text() {
        let all: Vec<u8> = "0123456789€".repeat(8000).into_bytes();
        for step in [7, 1000, 16 << 10, 20_000, 100_000] {
            let mut tail = Vec::new();
            for (n, piece) in all.chunks(step).enumerate() {
                keep_tail(&mut tail, piece);
                assert!(tail.len() <= 2 * TAIL);
                if n % 97 == 0 || step > 100 {
                    let so_far = &all[..((n + 1) * step).min(all.len())];
                    assert!(
                        tail.ends_with(&so_far[so_far.len().saturating_sub(TAIL)..]),
                        "in steps of {step}"
                    );
                }
            }
            let text = text_of(&tail);
            let text = text.strip_prefix(CUT).expect("the cut is marked");
            assert!(text.len() > TAIL - 3 && !text.contains('\u{fffd}') && text.ends_with("9€"));
        }
        assert_eq!(text_of(&[b'.'; TAIL]).len(), TAIL);
        assert_eq!(&*text_of(b"short \xe2\x82"), "short \u{fffd}");
    }
}
