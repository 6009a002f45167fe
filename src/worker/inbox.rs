//! The worker's end of the socket: frames in, frames out, waiting or not.

use crate::process::{PeerFd, sys};
use crate::wire::frame::FrameBuffer;
use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// The socket and what has come of it.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) socket: Arc<OwnedFd>,
    buffer: FrameBuffer,
    /// They came with a frame that is to be read.
    descriptors: VecDeque<OwnedFd>,
}

/// Held over the writing of a frame: a task that yields may write from any thread.
static WRITING: Mutex<()> = Mutex::new(());

/// Writes whole frames; waits while the pool does not read.
pub(super) fn send_all(socket: &impl AsRawFd, mut bytes: &[u8]) -> io::Result<()> {
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    while !bytes.is_empty() {
        match socket::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// What a look into the socket brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Frame(Range<usize>),
    /// Nothing whole is there yet.
    Nothing,
    /// The pool has closed its side.
    End,
}

impl Inbox {
    pub(super) fn new(socket: OwnedFd, frame_limit: usize) -> Self {
        Self {
            socket: Arc::new(socket),
            buffer: FrameBuffer::new(frame_limit),
            descriptors: VecDeque::new(),
        }
    }

    /// The next frame; waits for it. `None`: the pool has closed its side.
    pub(super) fn wait(&mut self) -> io::Result<Option<Range<usize>>> {
        loop {
            if let Some(range) = self.buffered()? {
                return Ok(Some(range));
            }
            if self.take_in(sys::Patience::Waits)? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next frame, if it is there.
    pub(super) fn look(&mut self) -> io::Result<Next> {
        loop {
            if let Some(range) = self.buffered()? {
                return Ok(Next::Frame(range));
            }
            match self.take_in(sys::Patience::None) {
                Ok(0) => return Ok(Next::End),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Next::Nothing);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn take_in(&mut self, patience: sys::Patience) -> io::Result<usize> {
        let received =
            sys::recv_with_fds_or_wait(self.socket.as_fd(), self.buffer.space(), patience)?;
        self.buffer.filled(received.bytes);
        self.descriptors.extend(received.fds.into_iter().map(PeerFd::trusted));
        Ok(received.bytes)
    }

    /// The next descriptor that has come. `None`: there is none, or it could not be taken in.
    pub(super) fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// The bytes of a frame, until the next look.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.buffer.bytes(range)
    }

    /// Gives back the frame that was taken last; the next look brings it again.
    pub(super) fn put_back(&mut self, range: Range<usize>) {
        self.buffer.put_back(range);
    }

    /// Writes all of it; waits while the pool does not read.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send_all(&*self.socket, bytes)
    }

    fn buffered(&mut self) -> io::Result<Option<Range<usize>>> {
        self.buffer
            .next_frame()
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
    }
}
