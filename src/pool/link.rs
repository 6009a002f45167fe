//! What the pool holds of one worker: its process, its socket, its memory, and the bytes that are
//! on their way to it.

use super::capture::Streams;
use super::reply::Things;
use crate::error::Error;
use crate::process::{Child, PeerSocket, WorkerMemory, sys};
use crate::sync::named::Leases;
use crate::wire::frame;
use crate::wire::message;
use crate::wire::packet::Packet;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Small frames are gathered into chunks of about this size, in bytes.
const CHUNK: usize = 64 << 10;

/// One worker. It exists from the order to start it until its process has been reaped.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// `None` while the steward starts it.
    pub(crate) process: Option<Process>,
    /// It is to be killed as soon as it exists.
    pub(crate) doomed: bool,
    /// Its start took too long.
    pub(crate) timed_out: bool,
    /// Its intake has been closed, for it is to end.
    pub(crate) retired: bool,
    /// It has closed its socket.
    pub(crate) hung_up: bool,
    /// Why its start failed, if it said so or broke the protocol in it.
    pub(crate) failure: Option<Error>,
    /// How it broke the protocol afterwards.
    pub(crate) bad_frame: Option<String>,
    pub(crate) out: Outgoing,
}

/// The process of a worker.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) child: Arc<Child>,
    pub(crate) socket: Arc<PeerSocket>,
    pub(crate) memory: Arc<WorkerMemory>,
    /// The shared objects that it was lent.
    pub(crate) leases: Arc<Leases>,
    /// Our end of the lifeline: when it closes, the kernel kills the worker. It came with the
    /// hello.
    pub(crate) lifeline: Option<PeerSocket>,
    /// Where the worker's standard error goes until it has said hello.
    pub(crate) early_stderr: Option<Arc<File>>,
    /// What it prints, as far as it does not go to the application's own streams.
    pub(super) streams: Streams,
    /// So many kills for want of memory had been counted when it was started.
    pub(super) oom_kills: Option<u64>,
}

/// A piece of what is to be written: gathered small frames, or one large one, or a call that names
/// shared objects.
#[derive(Debug)]
pub(crate) enum Chunk {
    Gathered(Vec<u8>),
    One(Packet),
    Naming(Box<Naming>),
}

/// A call that names shared objects.
#[derive(Debug)]
pub(crate) struct Naming {
    bytes: Vec<u8>,
    /// They are lent to the worker just before the first byte is sent.
    things: Things,
    /// Sockets to managers that the worker has not known so far; they go with the first byte.
    sockets: Vec<OwnedFd>,
}

impl Chunk {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Gathered(bytes) => bytes,
            Self::One(packet) => packet,
            Self::Naming(naming) => &naming.bytes,
        }
    }

    /// Whether something is to be lent before it is sent.
    pub(crate) fn lends(&self) -> bool {
        matches!(self, Self::Naming(naming) if naming.things.is_some())
    }

    /// Lends the worker what its call names, and announces the managers that it does not know. If
    /// that cannot be done (there is no descriptor to be had, say), the call goes all the same:
    /// the worker answers that it cannot decode its arguments.
    pub(crate) fn lend(&mut self, leases: &Leases, worker: &Child) {
        let Self::Naming(naming) = self else { return };
        let Some(things) = naming.things.take() else { return };
        let Ok(sockets) = leases.lend(&things, Some(worker.pidfd())) else { return };
        if sockets.is_empty() {
            return;
        }
        let mut bytes = Vec::with_capacity(naming.bytes.len() + 16 * sockets.len());
        for (manager, _) in &sockets {
            let start = frame::begin(&mut bytes);
            message::attach(&mut bytes, *manager);
            frame::finish(&mut bytes, start);
        }
        bytes.append(&mut naming.bytes);
        naming.bytes = bytes;
        naming.sockets = sockets.into_iter().map(|(_, socket)| socket).collect();
    }

    /// Sends as much of it as there is room for.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, from: usize) -> io::Result<usize> {
        let bytes = &self.bytes()[from..];
        match self {
            Self::Naming(naming) if from == 0 && !naming.sockets.is_empty() => {
                let sockets: Vec<_> = naming.sockets.iter().map(|socket| socket.as_fd()).collect();
                let sent = sys::send_with_fds(socket, &[IoSlice::new(bytes)], &sockets);
                // Too many descriptors are in flight (unix(7)): as if the socket were full.
                sent.map_err(|error| match error.raw_os_error() {
                    Some(nix::libc::ETOOMANYREFS) => io::ErrorKind::WouldBlock.into(),
                    _ => error,
                })
            }
            _ => sys::send(socket, bytes),
        }
    }
}

/// Bytes that are to be written to a worker. Whoever finds no writer writes (see `Engine::flush`);
/// nobody holds the pool's lock meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    chunks: VecDeque<Chunk>,
    /// How much of the first chunk has been written.
    offset: usize,
    /// An emptied chunk, to be filled again.
    spare: Vec<u8>,
    /// Somebody writes, or the socket is full and its event will be the writer.
    pub(crate) busy: bool,
    /// The socket is full: the event that there is room again is the writer.
    pub(crate) blocked: bool,
}

impl Outgoing {
    /// Appends a frame.
    pub(crate) fn push(&mut self, frame: &Packet) {
        match frame {
            Packet::Large(bytes) if bytes.len() > CHUNK => {
                self.chunks.push_back(Chunk::One(frame.clone()))
            }
            _ => {
                self.gather(frame);
            }
        }
    }

    /// Appends the frame of a call, with its slot and the number of its try filled in. If it names
    /// shared objects, those are lent when it is sent.
    pub(crate) fn push_call(&mut self, frame: &Packet, slot: u16, attempt: u8, things: Things) {
        /// All that is changed.
        const HEAD: usize = frame::HEAD + message::ADDRESS_END;
        if things.is_some() {
            let mut bytes = frame.to_vec();
            message::address(&mut bytes[frame::HEAD..HEAD], slot, attempt);
            let naming = Naming { bytes, things, sockets: Vec::new() };
            return self.chunks.push_back(Chunk::Naming(Box::new(naming)));
        }
        let at = match frame {
            // Not copied, but for its head.
            Packet::Large(bytes) if bytes.len() > CHUNK => {
                let at = self.gather(&bytes[..HEAD]);
                self.chunks.push_back(Chunk::One(Packet::Large(bytes.slice(HEAD..))));
                at
            }
            _ => self.gather(frame),
        };
        let gathered = self.chunks.iter_mut().rev().find_map(|chunk| match chunk {
            Chunk::Gathered(bytes) => Some(bytes),
            Chunk::One(_) | Chunk::Naming(_) => None,
        });
        let bytes = gathered.expect("it has just been put there");
        message::address(&mut bytes[at + frame::HEAD..at + HEAD], slot, attempt);
    }

    /// Appends to what is gathered; gives the place in its last chunk.
    fn gather(&mut self, bytes: &[u8]) -> usize {
        if let Some(Chunk::Gathered(chunk)) = self.chunks.back_mut()
            && chunk.len() < CHUNK
        {
            let at = chunk.len();
            chunk.extend_from_slice(bytes);
            return at;
        }
        let mut chunk = std::mem::take(&mut self.spare);
        chunk.extend_from_slice(bytes);
        self.chunks.push_back(Chunk::Gathered(chunk));
        0
    }

    /// The next piece to write, and where in it to begin.
    pub(crate) fn take(&mut self) -> Option<(Chunk, usize)> {
        let chunk = self.chunks.pop_front()?;
        Some((chunk, self.offset))
    }

    /// So much of the piece was written.
    pub(crate) fn wrote(&mut self, chunk: Chunk, from: usize, len: usize) {
        if from + len < chunk.bytes().len() {
            self.offset = from + len;
            self.chunks.push_front(chunk);
            return;
        }
        self.offset = 0;
        if let Chunk::Gathered(mut chunk) = chunk
            && self.spare.capacity() < chunk.capacity()
        {
            chunk.clear();
            self.spare = chunk;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_however_they_are_taken() {
        let frames: Vec<_> = [3, 60, 70_000, 1, 66_000, 40, 2]
            .iter()
            .zip(1u8..)
            .map(|(len, byte)| vec![byte; *len])
            .collect();
        for step in [1, 7, 64, 65_536, 1 << 20] {
            let (mut out, mut got) = (Outgoing::default(), Vec::<u8>::new());
            frames.iter().for_each(|frame| out.push(&Packet::copy_from(frame)));
            while let Some((chunk, from)) = out.take() {
                let part = chunk.bytes()[from..].iter().take(step).copied().collect::<Vec<_>>();
                got.extend(&part);
                out.wrote(chunk, from, part.len());
            }
            assert_eq!(got, frames.concat());
        }
    }

    #[test]
    fn each_call_gets_its_slot_and_is_else_as_it_was() {
        let mut out = Outgoing::default();
        let mut expected = Vec::new();
        for (slot, len) in
            [(1u16, 10), (515, 300), (65_535, 70_000), (7, 0), (8, 65_536), (9, 100_000), (2, 20)]
        {
            let mut bytes = Vec::new();
            let start = frame::begin(&mut bytes);
            message::call(&mut bytes, 300, 0, message::Callee::Index(1), 1);
            bytes.extend(std::iter::repeat_n(5, len));
            frame::finish(&mut bytes, start);
            out.push_call(&Packet::copy_from(&bytes), slot, 3, None);
            message::address(&mut bytes[frame::HEAD..], slot, 3);
            expected.extend(bytes);
        }
        let mut got: Vec<u8> = Vec::new();
        while let Some((chunk, from)) = out.take() {
            got.extend(&chunk.bytes()[from..]);
            let len = chunk.bytes().len() - from;
            out.wrote(chunk, from, len);
        }
        assert!(got == expected);
    }
}
