//! What is to be written to one socket: frames in their order, some with descriptors.
//!
//! Used by both ends of a connection. Whoever appends and finds nobody writing writes, without a
//! lock, and looks again after each write; so frames that come meanwhile travel together, and
//! nobody waits for a socket.

use crate::process::sys;
use crate::wire::frame;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::Waker;

/// Frames are gathered into chunks of about this size, in bytes.
const CHUNK: usize = 64 << 10;

/// A descriptor that travels, and whoever keeps it open.
pub(crate) type Fd = Arc<dyn AsFd + Send + Sync>;

#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// They travel with the first byte.
    fds: Vec<Fd>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Outgoing {
    chunks: VecDeque<Chunk>,
    /// How much of the first chunk has been written.
    offset: usize,
    /// An emptied chunk, to be filled again.
    spare: Vec<u8>,
    /// All bytes ever put in, and all that the kernel has taken.
    put: u64,
    sent: u64,
    /// Somebody writes, or the socket is full and the event that it has room again will.
    busy: bool,
    blocked: bool,
    /// It is blocked since the first chunk's descriptors are not taken: no event will tell.
    held: sys::Held,
    /// Nothing can be written any more.
    dead: bool,
    /// That is so since descriptors were not taken for too long.
    gave_up: bool,
    /// Who waits until nothing is left.
    waiting: Vec<Waker>,
}

/// What has come of a frame written past the queue.
pub(crate) struct Past {
    /// The kernel has it. If not, it waits nowhere.
    pub(crate) sent: bool,
    /// There is more to write: as [`Outgoing::want_to_write`].
    pub(crate) more: bool,
    /// Whom to wake, without the lock: those who came meanwhile, and had to wait.
    pub(crate) wake: Vec<Waker>,
}

/// A piece that is being written, without the lock.
pub(crate) struct Piece {
    chunk: Chunk,
    from: usize,
}

impl Outgoing {
    /// Appends a frame; `body` writes its body.
    pub(crate) fn push(&mut self, fds: Vec<Fd>, body: impl FnOnce(&mut Vec<u8>)) {
        if self.dead {
            return;
        }
        let fits =
            fds.is_empty() && self.chunks.back().is_some_and(|chunk| chunk.bytes.len() < CHUNK);
        if !fits {
            self.chunks.push_back(Chunk { bytes: std::mem::take(&mut self.spare), fds });
        }
        let chunk = self.chunks.back_mut().expect("one has just been put there");
        let before = chunk.bytes.len();
        frame::write(&mut chunk.bytes, body);
        self.put += (chunk.bytes.len() - before) as u64;
    }

    /// Bytes that the kernel has not taken yet.
    pub(crate) fn backlog(&self) -> u64 {
        self.put - self.sent
    }

    /// Nothing can be written any more, nor will be.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    /// Wakes when nothing is left to write, or never will be written.
    pub(crate) fn wait_until_empty(&mut self, waker: Waker) {
        self.waiting.push(waker);
    }

    /// Whether nothing waits to be written, nor is being written. Then the caller is to write one
    /// frame past the queue, and to say what [has come of it](Self::wrote_past).
    pub(crate) fn write_past(&mut self) -> bool {
        !self.dead && self.chunks.is_empty() && !std::mem::replace(&mut self.busy, true)
    }

    /// What has come of a frame written past the queue.
    pub(crate) fn wrote_past(&mut self, frame: &[u8], result: &io::Result<usize>) -> Past {
        match result {
            Ok(len) => {
                self.put += frame.len() as u64;
                self.sent += *len as u64;
                if *len < frame.len() {
                    // A part of it has gone, so all of it will.
                    self.chunks
                        .push_front(Chunk { bytes: frame[*len..].to_vec(), fds: Vec::new() });
                }
                self.busy = !self.chunks.is_empty();
                // Else whoever writes the rest gives them out.
                let wake = if self.busy { Vec::new() } else { std::mem::take(&mut self.waiting) };
                Past { sent: true, more: self.busy, wake }
            }
            Err(error) if is_full(error) => {
                self.blocked = true; // it stays busy
                Past { sent: false, more: false, wake: Vec::new() }
            }
            Err(_) => Past { sent: false, more: false, wake: self.kill() },
        }
    }

    /// Whether the caller is to write: then [`take`](Self::take) until it gives nothing.
    pub(crate) fn want_to_write(&mut self) -> bool {
        !self.dead && !self.chunks.is_empty() && !std::mem::replace(&mut self.busy, true)
    }

    /// The socket has room again: as [`want_to_write`](Self::want_to_write).
    pub(crate) fn has_room(&mut self) -> bool {
        std::mem::take(&mut self.blocked)
    }

    /// The socket is full.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked && !self.held.is_held()
    }

    /// Descriptors were not taken, so it [has room](Self::has_room) after [`sys::Held::AGAIN`].
    pub(crate) fn is_held(&self) -> bool {
        self.blocked && self.held.is_held()
    }

    /// It is [dead](Self::is_dead) though the other end may be there, and has to be told.
    pub(crate) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// The next piece to write; else whom to wake, without the lock.
    fn take(&mut self) -> Result<Piece, Vec<Waker>> {
        match self.chunks.pop_front() {
            Some(chunk) => Ok(Piece { chunk, from: self.offset }),
            None => {
                self.busy = false;
                Err(std::mem::take(&mut self.waiting))
            }
        }
    }

    /// So much of the piece was written. Gives whom to wake, without the lock.
    fn wrote(&mut self, piece: Piece, result: &io::Result<usize>) -> Vec<Waker> {
        let Piece { mut chunk, from } = piece;
        match result {
            Ok(len) => {
                self.held.is_over();
                self.sent += *len as u64;
                if from + len < chunk.bytes.len() {
                    self.offset = from + len;
                    self.chunks.push_front(chunk);
                } else {
                    self.offset = 0;
                    chunk.bytes.clear();
                    if chunk.bytes.capacity() <= 2 * CHUNK
                        && self.spare.capacity() < chunk.bytes.capacity()
                    {
                        self.spare = chunk.bytes;
                    }
                }
            }
            Err(error) if is_full(error) || self.held.is_to_wait(error) => {
                self.chunks.push_front(chunk);
                self.blocked = true; // it stays busy
            }
            Err(error) => {
                self.gave_up = sys::are_too_many(error);
                return self.kill();
            }
        }
        Vec::new()
    }

    /// The other end has gone. Gives whom to wake.
    pub(crate) fn kill(&mut self) -> Vec<Waker> {
        self.dead = true;
        self.held.is_over();
        self.chunks.clear();
        self.put = self.sent;
        std::mem::take(&mut self.waiting)
    }
}

/// Whether a write has to wait for room.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Writes until there is nothing left or no room. Only for whom [`Outgoing::want_to_write`] or
/// [`Outgoing::has_room`] has told so. `with` gives access to the outgoing, under its lock, for a
/// moment; it gives `None` when it is not there any more. Gives whether the socket is full (or holds
/// up descriptors, or has been [given up](Outgoing::gave_up) for them), and whom to wake.
pub(crate) fn write_out(
    socket: BorrowedFd<'_>,
    mut with: impl FnMut(&mut dyn FnMut(&mut Outgoing)) -> Option<()>,
) -> (bool, Vec<Waker>) {
    let (mut wake, mut written) = (Vec::new(), None::<(Piece, io::Result<usize>)>);
    loop {
        let (mut piece, mut full) = (None, false);
        let there = with(&mut |out| {
            if let Some((piece, result)) = written.take() {
                wake.extend(out.wrote(piece, &result));
                full = out.blocked || out.gave_up;
                if result.is_err() {
                    return;
                }
            }
            match out.take() {
                Ok(next) => piece = Some(next),
                Err(waiting) => wake.extend(waiting),
            }
        });
        let Some(piece) = piece.filter(|_| there.is_some()) else { return (full, wake) };
        let bytes = &piece.chunk.bytes[piece.from..];
        let result = if piece.from == 0 && !piece.chunk.fds.is_empty() {
            let fds: Vec<_> = piece.chunk.fds.iter().map(|fd| fd.as_fd()).collect();
            sys::send_with_fds(socket, &[IoSlice::new(bytes)], &fds)
        } else {
            sys::send(socket, bytes)
        };
        written = Some((piece, result));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameBuffer;
    use std::os::unix::net::UnixStream;

    fn write(out: &mut Outgoing, socket: &UnixStream) -> bool {
        write_out(socket.as_fd(), |act| {
            act(out);
            Some(())
        })
        .0
    }

    #[test]
    fn who_comes_while_a_frame_is_written_past_is_woken_when_it_is_sent_or_never_will_be() {
        let waits = |out: &mut Outgoing| {
            assert!(out.write_past() && !out.write_past(), "one at a time");
            out.wait_until_empty(Waker::noop().clone());
        };
        let mut out = Outgoing::default();
        waits(&mut out);
        let past = out.wrote_past(&[0; 8], &Ok(8));
        assert!(past.sent && !past.more && past.wake.len() == 1);
        // More has come: who writes that wakes them.
        waits(&mut out);
        out.push(Vec::new(), |body| body.push(1));
        let past = out.wrote_past(&[0; 8], &Ok(8));
        assert!(past.sent && past.more && past.wake.is_empty());
        let (a, _b) = UnixStream::pair().expect("pair");
        let (full, wake) = write_out(a.as_fd(), |act| {
            act(&mut out);
            Some(())
        });
        assert!(!full && wake.len() == 1);
        // There is no room: they wait on.
        waits(&mut out);
        let past = out.wrote_past(&[0; 8], &Err(io::ErrorKind::WouldBlock.into()));
        assert!(!past.sent && !past.more && past.wake.is_empty() && out.has_room());
        out.take().err().expect("nothing to write").clear();
        waits(&mut out);
        let past = out.wrote_past(&[0; 8], &Err(io::ErrorKind::BrokenPipe.into()));
        assert!(!past.sent && !past.more && past.wake.len() == 1 && out.is_dead());
    }

    #[test]
    fn descriptors_that_are_not_taken_are_sent_later_and_not_for_ever() {
        let refused = || Err(nix::errno::Errno::ETOOMANYREFS.into());
        let (a, b) = UnixStream::pair().expect("pair");
        let fd: Fd = Arc::new(std::fs::File::open("/dev/null").expect("open"));
        let mut out = Outgoing::default();
        out.push(vec![Arc::clone(&fd)], |body| body.push(1));
        for _ in 0..3 {
            assert!(out.want_to_write() || out.has_room());
            let piece = out.take().expect("a piece");
            assert!(out.wrote(piece, &refused()).is_empty());
            assert!(out.is_held() && !out.is_blocked() && !out.is_dead(), "no room would tell");
        }
        assert!(out.has_room() && !write(&mut out, &a) && !out.is_held());
        let received = sys::recv_with_fds(b.as_fd(), &mut [0; 100]).expect("it has come");
        assert_eq!(received.fds.len(), 1);

        out.push(vec![fd], |body| body.push(1));
        out.wait_until_empty(Waker::noop().clone());
        assert!(out.want_to_write());
        out.held.since_long();
        let piece = out.take().expect("a piece");
        assert_eq!(out.wrote(piece, &refused()).len(), 1, "who waits is told");
        assert!(out.is_dead() && out.gave_up() && !out.is_held());
    }

    #[test]
    fn frames_and_their_descriptors_come_out_in_order_through_a_full_socket() {
        let (a, b) = UnixStream::pair().expect("pair");
        let mut out = Outgoing::default();
        let fd: Fd = Arc::new(std::fs::File::open("/dev/null").expect("open"));
        for number in 0..2000u32 {
            let fds = if number % 500 == 7 { vec![Arc::clone(&fd)] } else { Vec::new() };
            out.push(fds, |body| body.extend(number.to_le_bytes().repeat(100)));
        }
        assert!(out.want_to_write() && !out.want_to_write());
        assert!(write(&mut out, &a), "more than a socket holds");
        let (mut buffer, mut next, mut descriptors) = (FrameBuffer::new(1 << 20), 0u32, 0);
        while next < 2000 {
            if out.is_blocked() && next % 100 == 0 && out.has_room() {
                write(&mut out, &a);
            }
            match sys::recv_with_fds(b.as_fd(), buffer.space()) {
                Ok(received) => {
                    buffer.filled(received.bytes);
                    descriptors += received.fds.len();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(out.has_room());
                    write(&mut out, &a);
                }
                Err(error) => panic!("{error}"),
            }
            while let Some(range) = buffer.next_frame().expect("frames") {
                assert_eq!(buffer.bytes(range), next.to_le_bytes().repeat(100));
                next += 1;
            }
        }
        assert!(out.backlog() == 0 && descriptors == 4);
        // A process that another test starts may have a copy of it for a moment.
        b.shutdown(std::net::Shutdown::Both).expect("shutdown");
        drop(b);
        out.push(Vec::new(), |body| body.push(1));
        assert!(out.want_to_write());
        write(&mut out, &a);
        assert!(out.is_dead());
    }
}
