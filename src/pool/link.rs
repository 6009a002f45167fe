//! What the pool holds of one worker: its process, its socket, its memory, and the bytes that are
//! on their way to it.

use super::capture::Streams;
use super::reply::Things;
use crate::error::Error;
use crate::process::{Child, PeerSocket, WorkerMemory, sys};
use crate::reactor::launcher::Launch;
use crate::sync::named::Leases;
use crate::wire::claim::Claim;
use crate::wire::frame;
use crate::wire::message;
use crate::wire::packet::Packet;
use bytes::Bytes;
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
    /// `None` while it is started.
    pub(crate) process: Option<Process>,
    /// Its start, as long as that has not ended.
    pub(crate) launch: Option<Arc<Launch>>,
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

/// All that a call's frame does not have from its task: its length, and where it goes.
const CALL_HEAD: usize = frame::HEAD + message::ADDRESS_END;

/// A piece of what is to be written: gathered small frames, or one large one, or the call of a
/// task with large arguments, or a call that names shared objects.
#[derive(Debug)]
pub(crate) enum Chunk {
    Gathered(Vec<u8>),
    One(Packet),
    Large(Box<LargeCall>),
    Naming(Box<Naming>),
}

/// A call with large arguments, which are not copied.
#[derive(Debug)]
pub(crate) struct LargeCall {
    claim: Claim,
    head: [u8; CALL_HEAD],
    rest: Bytes,
}

/// A call that names shared objects.
#[derive(Debug)]
pub(crate) struct Naming {
    /// `None`: it is no task's, but one that every worker gets.
    claim: Option<Claim>,
    bytes: Vec<u8>,
    /// They are lent to the worker just before the first byte is sent.
    things: Things,
    /// Sockets to managers that the worker has not known so far; they go with the first byte.
    sockets: Vec<OwnedFd>,
    /// Those managers, and the length of their announcements, which stand first.
    managers: Vec<u64>,
    attaches: usize,
}

impl Chunk {
    /// Bytes from this one on: all that follow, but for a large call, whose head comes by itself.
    pub(crate) fn bytes(&self, from: usize) -> &[u8] {
        match self {
            Self::Gathered(bytes) => &bytes[from..],
            Self::One(packet) => &packet[from..],
            Self::Large(call) if from < CALL_HEAD => &call.head[from..],
            Self::Large(call) => &call.rest[from - CALL_HEAD..],
            Self::Naming(naming) => &naming.bytes[from..],
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Large(call) => CALL_HEAD + call.rest.len(),
            _ => self.bytes(0).len(),
        }
    }

    /// The claim of the one call that it is, if it may be left out as long as no byte of it was
    /// sent. What a call names must not have been lent, or the worker would have to be told of it.
    fn claim(&self) -> Option<Claim> {
        match self {
            Self::Large(call) => Some(call.claim),
            Self::Naming(naming) if naming.things.is_some() => naming.claim,
            _ => None,
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
            frame::write(&mut bytes, |bytes| message::attach(bytes, *manager));
        }
        naming.attaches = bytes.len();
        bytes.append(&mut naming.bytes);
        naming.bytes = bytes;
        (naming.managers, naming.sockets) = sockets.into_iter().unzip();
    }

    /// The sockets to managers cannot be sent: the call goes without them, as where they
    /// [could not be made](Self::lend). No byte of it must have been sent.
    pub(crate) fn do_without_sockets(&mut self, leases: &Leases) {
        let Self::Naming(naming) = self else { return };
        if !naming.sockets.is_empty() {
            naming.sockets.clear();
            naming.bytes.drain(..std::mem::take(&mut naming.attaches));
            std::mem::take(&mut naming.managers)
                .into_iter()
                .for_each(|manager| leases.not_attached(manager));
        }
    }

    /// Sends as much of it as there is room for.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, from: usize) -> io::Result<usize> {
        let bytes = self.bytes(from);
        match self {
            Self::Naming(naming) if from == 0 && !naming.sockets.is_empty() => {
                let sockets: Vec<_> = naming.sockets.iter().map(|socket| socket.as_fd()).collect();
                sys::send_with_fds(socket, &[IoSlice::new(bytes)], &sockets)
            }
            _ => sys::send(socket, bytes),
        }
    }
}

/// Bytes that are to be written to a worker. Whoever finds no writer writes (see `Engine::flush`);
/// nobody holds the pool's lock meanwhile.
///
/// A chunk must not be dropped under the pool's lock: it may hold the last reference to a shared
/// object, whose drop runs code of the application, or a socket. So what is not needed any more is
/// given to the caller.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    chunks: VecDeque<Chunk>,
    /// How much of the first chunk has been written; 0 while a writer has that chunk.
    offset: usize,
    /// An emptied chunk, to be filled again.
    spare: Vec<u8>,
    /// Somebody writes, or the socket is full and its event will be the writer.
    pub(crate) busy: bool,
    /// The socket is full: the event that there is room again is the writer.
    pub(crate) blocked: bool,
    /// Words of credit that may not have been written yet.
    pub(crate) unread: usize,
    /// The first chunk's descriptors are not taken: it is the pool's timer that goes on.
    pub(crate) held: sys::Held,
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

    /// Appends the frame of a function that every worker runs. The shared objects that it names are
    /// lent when it is sent.
    pub(crate) fn push_hook(&mut self, frame: &Packet, things: Things) {
        if things.is_none() {
            return self.push(frame);
        }
        let naming = Naming {
            claim: None,
            bytes: frame.to_vec(),
            things,
            sockets: Vec::new(),
            managers: Vec::new(),
            attaches: 0,
        };
        self.chunks.push_back(Chunk::Naming(Box::new(naming)));
    }

    /// Appends the frame of a call, with its slot and the number of its try filled in. If it names
    /// shared objects, those are lent when it is sent.
    pub(crate) fn push_call(&mut self, frame: &Packet, claim: Claim, attempt: u8, things: Things) {
        let address = |bytes: &mut [u8]| message::address(bytes, claim.slot, attempt);
        if things.is_some() {
            let mut bytes = frame.to_vec();
            address(&mut bytes[frame::HEAD..CALL_HEAD]);
            let naming = Naming {
                claim: Some(claim),
                bytes,
                things,
                sockets: Vec::new(),
                managers: Vec::new(),
                attaches: 0,
            };
            return self.chunks.push_back(Chunk::Naming(Box::new(naming)));
        }
        match frame {
            Packet::Large(bytes) if bytes.len() > CHUNK => {
                let mut head = [0; CALL_HEAD];
                head.copy_from_slice(&bytes[..CALL_HEAD]);
                address(&mut head[frame::HEAD..]);
                let call = LargeCall { claim, head, rest: bytes.slice(CALL_HEAD..) };
                self.chunks.push_back(Chunk::Large(Box::new(call)));
            }
            _ => {
                let at = self.gather(frame);
                if let Some(Chunk::Gathered(bytes)) = self.chunks.back_mut() {
                    address(&mut bytes[at + frame::HEAD..at + CALL_HEAD]);
                }
            }
        }
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

    /// Leaves out the calls that the worker is not to run any more, as far as none of their bytes
    /// was sent. Those are put into `gone`.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(Claim) -> bool, gone: &mut Vec<Chunk>) {
        let mut begun = self.offset > 0;
        self.chunks.retain_mut(|chunk| {
            let stays = std::mem::take(&mut begun) || chunk.claim().is_none_or(&is_wanted);
            if !stays {
                gone.push(std::mem::replace(chunk, Chunk::Gathered(Vec::new())));
            }
            stays
        });
    }

    /// The next piece to write, and where in it to begin. What is not wanted is left out, see
    /// [`retain`](Self::retain).
    pub(crate) fn take(
        &mut self,
        is_wanted: impl Fn(Claim) -> bool,
        gone: &mut Vec<Chunk>,
    ) -> Option<(Chunk, usize)> {
        loop {
            let Some(chunk) = self.chunks.pop_front() else {
                self.unread = 0;
                return None;
            };
            let from = std::mem::take(&mut self.offset);
            if from > 0 || chunk.claim().is_none_or(&is_wanted) {
                return Some((chunk, from));
            }
            gone.push(chunk);
        }
    }

    /// So much of the piece was written. Returns a piece that is not needed any more.
    pub(crate) fn wrote(&mut self, chunk: Chunk, from: usize, len: usize) -> Option<Chunk> {
        if from + len < chunk.len() {
            self.offset = from + len;
            self.chunks.push_front(chunk);
            return None;
        }
        match chunk {
            Chunk::Gathered(mut chunk) if self.spare.capacity() < chunk.capacity() => {
                chunk.clear();
                self.spare = chunk;
                None
            }
            chunk => Some(chunk),
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
            while let Some((chunk, from)) = out.take(|_| true, &mut Vec::new()) {
                let part = chunk.bytes(from).iter().take(step).copied().collect::<Vec<_>>();
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
            frame::write(&mut bytes, |bytes| {
                message::call(bytes, 300, 0, message::Callee::Index(1), 1);
                bytes.extend(std::iter::repeat_n(5, len));
            });
            out.push_call(&Packet::copy_from(&bytes), Claim { slot, id: 300 }, 3, None);
            message::address(&mut bytes[frame::HEAD..], slot, 3);
            expected.extend(bytes);
        }
        let mut got: Vec<u8> = Vec::new();
        while let Some((chunk, from)) = out.take(|_| true, &mut Vec::new()) {
            let len = chunk.bytes(from).len();
            got.extend(chunk.bytes(from));
            out.wrote(chunk, from, len);
        }
        assert!(got == expected);
    }

    #[test]
    fn of_calls_that_are_not_wanted_only_the_one_that_was_begun_is_sent() {
        let large = |id: u64| {
            let mut bytes = Vec::new();
            frame::write(&mut bytes, |bytes| {
                message::call(bytes, id, 0, message::Callee::Index(1), 1);
                bytes.resize(100_000, id as u8);
            });
            Packet::copy_from(&bytes)
        };
        let mut out = Outgoing::default();
        let push = |out: &mut Outgoing, id| {
            out.push_call(&large(id), Claim { slot: id as u16, id }, 1, None);
        };
        push(&mut out, 1);
        // A writer has it when the next ones come, and puts it back.
        let (chunk, from) = out.take(|_| true, &mut Vec::new()).expect("it is there");
        (2..6).for_each(|id| push(&mut out, id));
        let mut gone = Vec::new();
        out.retain(|claim| claim.id != 2, &mut gone);
        out.wrote(chunk, from, 10);
        out.retain(|claim| claim.id > 3, &mut gone);
        let mut sent = Vec::new();
        while let Some((chunk, from)) = out.take(|claim| claim.id == 5, &mut gone) {
            let len = chunk.bytes(from).len();
            sent.push((chunk.claim().map(|claim| claim.id), len));
            out.wrote(chunk, from, len);
        }
        let (head, rest) = (CALL_HEAD, 100_000 - CALL_HEAD);
        assert_eq!(sent, [(Some(1), head - 10), (Some(1), rest), (Some(5), head), (Some(5), rest)]);
    }

    /// Dropping a reference to a shared object may run code of the application, which may use the
    /// pool: the caller does that when it has released the pool's lock.
    #[test]
    fn what_calls_name_that_are_left_out_is_given_to_the_caller() {
        let mut out = Outgoing::default();
        let object: Arc<dyn std::any::Any + Send + Sync> = Arc::new(());
        for id in 1..4 {
            let mut bytes = Vec::new();
            frame::write(&mut bytes, |bytes| {
                message::call(bytes, id, 0, message::Callee::Index(1), 1)
            });
            let things = Some(Arc::new(vec![Arc::clone(&object)]));
            out.push_call(&Packet::copy_from(&bytes), Claim { slot: 0, id }, 1, things);
        }
        let mut gone = Vec::new();
        out.retain(|claim| claim.id != 2, &mut gone);
        assert_eq!((gone.len(), Arc::strong_count(&object)), (1, 4));
        let (chunk, from) = out.take(|claim| claim.id == 3, &mut gone).expect("the third");
        assert_eq!((gone.len(), Arc::strong_count(&object)), (2, 4));
        let len = chunk.len();
        gone.extend(out.wrote(chunk, from, len));
        assert_eq!((gone.len(), Arc::strong_count(&object)), (3, 4));
        drop(gone);
        assert_eq!(Arc::strong_count(&object), 1);
    }
}
