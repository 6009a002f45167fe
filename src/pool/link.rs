//! What the pool holds of one worker: its process, its socket, its memory, and the bytes that are
//! on their way to it.

use crate::error::Error;
use crate::process::{Child, SharedMemory};
use crate::wire::packet::Packet;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
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
    /// It has closed its socket.
    pub(crate) hung_up: bool,
    /// Its process has ended while somebody was writing to it, who shall say so once more.
    pub(crate) ended_in_writing: bool,
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
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) memory: SharedMemory,
    /// Our end of the lifeline: when it closes, the kernel kills the worker. It came with the hello.
    pub(crate) lifeline: Option<OwnedFd>,
    /// Where the worker's standard error goes until it has said hello.
    pub(crate) early_stderr: Option<Arc<File>>,
}

/// A piece of what is to be written: gathered small frames, or one large one.
#[derive(Debug)]
pub(crate) enum Chunk {
    Gathered(Vec<u8>),
    One(Packet),
}

impl Chunk {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Gathered(bytes) => bytes,
            Self::One(packet) => packet,
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
    /// All bytes ever put in, and all that the kernel has taken.
    put: u64,
    sent: u64,
    /// Somebody writes, or the socket is full and its event will be the writer.
    pub(crate) busy: bool,
    /// The socket is full: the event that there is room again is the writer.
    pub(crate) blocked: bool,
    /// A piece has been taken, and what the kernel took of it is not counted yet.
    writing: bool,
}

impl Outgoing {
    /// Appends a frame; gives the count of bytes before it.
    pub(crate) fn push(&mut self, frame: &Packet) -> u64 {
        let before = self.put;
        self.put += frame.len() as u64;
        match (self.chunks.back_mut(), frame) {
            (_, Packet::Large(bytes)) if bytes.len() > CHUNK => self.chunks.push_back(Chunk::One(frame.clone())),
            (Some(Chunk::Gathered(chunk)), _) if chunk.len() < CHUNK => chunk.extend_from_slice(frame),
            _ => {
                let mut chunk = std::mem::take(&mut self.spare);
                chunk.extend_from_slice(frame);
                self.chunks.push_back(Chunk::Gathered(chunk));
            }
        }
        before
    }

    /// The next piece to write, and where in it to begin.
    pub(crate) fn take(&mut self) -> Option<(Chunk, usize)> {
        let chunk = self.chunks.pop_front()?;
        self.writing = true;
        Some((chunk, self.offset))
    }

    /// So much of the piece was written.
    pub(crate) fn wrote(&mut self, chunk: Chunk, from: usize, len: usize) {
        self.writing = false;
        self.sent += len as u64;
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

    /// Whether somebody writes at this very moment. Until that is over, [`reached`](Self::reached) may be wrong.
    pub(crate) fn is_being_written(&self) -> bool {
        self.writing
    }

    /// Whether any byte of a frame that was put in at this count has been taken by the kernel.
    pub(crate) fn reached(&self, before: u64) -> bool {
        self.sent > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_however_they_are_taken() {
        let frames: Vec<_> = [3, 60, 70_000, 1, 66_000, 40, 2].iter().zip(1u8..).map(|(len, byte)| vec![byte; *len]).collect();
        for step in [1, 7, 64, 65_536, 1 << 20] {
            let (mut out, mut got) = (Outgoing::default(), Vec::<u8>::new());
            let starts: Vec<_> = frames.iter().map(|frame| out.push(&Packet::copy_from(frame))).collect();
            while let Some((chunk, from)) = out.take() {
                let part = chunk.bytes()[from..].iter().take(step).copied().collect::<Vec<_>>();
                got.extend(&part);
                out.wrote(chunk, from, part.len());
                let sent = got.len() as u64;
                assert!(starts.iter().all(|start| out.reached(*start) == (sent > *start)));
            }
            assert_eq!(got, frames.concat());
        }
    }
}
