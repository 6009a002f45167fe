//! A manager in another process, at the other end of a socket.
//!
//! What is sent is written by whoever sends it, without waiting. What comes is read by a thread, which is started with
//! the first request and ends with the socket: it does no more than put things into the mail, so that `blocking_` calls
//! work in sync tasks and no runtime is needed.

use super::connection::Connection;
use super::handle::{Inner, Things};
use super::holding;
use crate::error::Error;
use crate::manager::mail::{Arrived, Mail, shielded};
use crate::manager::message::{FRAME_MAX, Refusal, ToClient, ToManager};
use crate::manager::object::Body;
use crate::manager::outgoing::{Fd, Outgoing, write_out};
use crate::process::{SharedMemory, fork, sys};
use crate::wire::frame::{self, FrameBuffer};
use crate::wire::packet::Packet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::socket::{Shutdown, shutdown};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};

/// Descriptors that one message brings, at most.
const DESCRIPTORS_MAX: usize = 4;

/// A segment of the manager's memory in this process.
enum Mapped {
    /// Many objects share it: it is kept for the next.
    Kept(Arc<SharedMemory>),
    /// Of a large object: it goes with the last handle.
    Lent(Weak<SharedMemory>),
}

/// See the module.
pub(crate) struct Remote {
    socket: OwnedFd,
    mail: Arc<Mail>,
    out: Mutex<Outgoing>,
    /// Wakes the reader when it is to wait for room as well.
    bell: OnceLock<EventFd>,
    /// Held while the reader is being started.
    starting: Mutex<()>,
    /// This process's seat and its generation.
    seat: OnceLock<(u32, u32)>,
    /// The manager's memory, as far as it was needed.
    segments: Mutex<HashMap<u32, Mapped>>,
    connection: Weak<Connection>,
}

impl Remote {
    pub(super) fn new(socket: OwnedFd, mail: Arc<Mail>, connection: Weak<Connection>) -> Arc<Self> {
        Arc::new(Self {
            socket,
            mail,
            out: Mutex::new(Outgoing::default()),
            bell: OnceLock::new(),
            starting: Mutex::new(()),
            seat: OnceLock::new(),
            segments: Mutex::default(),
            connection,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process's seat, once the manager has told it.
    pub(crate) fn seat(&self) -> Option<(u32, u32)> {
        self.seat.get().copied()
    }

    /// A segment of the memory, if it has been mapped.
    pub(super) fn segment(&self, number: u32) -> Option<Arc<SharedMemory>> {
        match self.segments.lock().unwrap_or_else(PoisonError::into_inner).get(&number)? {
            Mapped::Kept(memory) => Some(Arc::clone(memory)),
            Mapped::Lent(memory) => memory.upgrade(),
        }
    }

    /// Takes note of a segment that has been mapped. If another thread was faster, gives that one's.
    pub(super) fn keep_segment(&self, number: u32, memory: SharedMemory, shared: bool) -> Arc<SharedMemory> {
        if let Some(other) = self.segment(number) {
            return other;
        }
        let memory = Arc::new(memory);
        let mapped = if shared { Mapped::Kept(Arc::clone(&memory)) } else { Mapped::Lent(Arc::downgrade(&memory)) };
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of objects that are gone go with the next one that comes. They are unmapped without the lock.
        let gone: Vec<_> = segments
            .extract_if(|_, mapped| match mapped {
                Mapped::Kept(memory) => Arc::strong_count(memory) == 1,
                Mapped::Lent(memory) => memory.strong_count() == 0,
            })
            .collect();
        segments.insert(number, mapped);
        drop(segments);
        drop(gone);
        memory
    }

    // ---- sending

    /// Sends, or leaves it to the reader to send when there is room.
    pub(super) fn send(self: &Arc<Self>, message: &ToManager<'_>) {
        self.send_with(Vec::new(), message);
    }

    /// As [`send`](Self::send), with descriptors.
    pub(super) fn send_with(self: &Arc<Self>, fds: Vec<Fd>, message: &ToManager<'_>) {
        let mut out = self.lock();
        out.push(fds, |body| message.write(body));
        let write = out.want_to_write();
        drop(out);
        if write {
            self.write();
        }
    }

    /// Sends one message past those that wait for room; if there is none for itself, nothing has been sent, and it is to
    /// be tried again when woken.
    pub(super) fn poll_send_past(self: &Arc<Self>, message: &ToManager<'_>, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        let waker = cx.waker().clone();
        let mut bytes = Vec::with_capacity(32);
        let start = frame::begin(&mut bytes);
        message.write(&mut bytes);
        frame::finish(&mut bytes, start);
        let mut out = self.lock();
        if out.is_dead() {
            return Poll::Ready(Err(Refusal::Closed));
        }
        if !out.write_past() {
            out.wait_until_empty(waker);
            return Poll::Pending;
        }
        drop(out);
        let result = sys::send(self.socket.as_fd(), &bytes);
        let mut out = self.lock();
        let (sent, more) = out.wrote_past(&bytes, &result);
        let dead = out.is_dead();
        if !sent && !dead {
            out.wait_until_empty(waker);
        }
        drop(out);
        if more {
            self.write();
        } else if !sent && !dead {
            self.ring();
        }
        match (sent, dead) {
            (true, _) => Poll::Ready(Ok(())),
            (false, true) => Poll::Ready(Err(Refusal::Closed)),
            (false, false) => Poll::Pending,
        }
    }

    /// Ready when nothing waits to be written, or nothing ever will be.
    pub(super) fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let mut out = self.lock();
        if out.is_dead() || out.backlog() == 0 {
            return Poll::Ready(());
        }
        out.wait_until_empty(waker);
        Poll::Pending
    }

    /// Only for whom the outgoing has told to write.
    fn write(self: &Arc<Self>) {
        let (full, wake) = write_out(self.socket.as_fd(), |act| {
            act(&mut self.lock());
            Some(())
        });
        wake.into_iter().for_each(|waker| shielded(|| waker.wake()));
        if full && self.listen().is_ok() {
            self.ring();
        }
    }

    fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            let _ = bell.write(1); // fails only when it has rung
        }
    }

    // ---- the reader

    /// Starts the thread that reads, unless it runs.
    pub(super) fn listen(self: &Arc<Self>) -> Result<(), Error> {
        if self.bell.get().is_some() {
            return Ok(());
        }
        let _one_at_a_time = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.bell.get().is_some() {
            return Ok(());
        }
        let failed = |e: io::Error| Error::spawn("starting the thread that listens to a manager", e);
        fork::arm().map_err(failed)?;
        let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|e| failed(e.into()))?;
        let this = Arc::clone(self);
        // A signal meant for the program must not be handled there, where nobody expects it.
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before)).map_err(|e| failed(e.into()))?;
        let thread = std::thread::Builder::new().name("procpool-manager".into()).spawn(move || this.read_on());
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        thread.map_err(failed)?;
        let _ = self.bell.set(bell);
        Ok(())
    }

    fn read_on(self: Arc<Self>) {
        let bell = self.bell.wait();
        let mut buffer = FrameBuffer::new(FRAME_MAX);
        let mut descriptors = VecDeque::new();
        while self.read(&mut buffer, &mut descriptors).is_ok() {
            let room = if self.lock().is_blocked() { PollFlags::POLLOUT } else { PollFlags::empty() };
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN | room), PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
            let _ = bell.read();
            let has = |i: usize, what| fds[i].revents().is_some_and(|events| events.contains(what));
            if has(0, PollFlags::POLLOUT) {
                let write = self.lock().has_room();
                if write {
                    self.write();
                }
            }
        }
        // Nothing will come any more, nor can anything be sent.
        let wake = self.lock().kill();
        wake.into_iter().for_each(|waker| shielded(|| waker.wake()));
        self.mail.close();
    }

    /// Reads what is there. An error: nothing more will come.
    fn read(&self, buffer: &mut FrameBuffer, descriptors: &mut VecDeque<OwnedFd>) -> Result<(), ()> {
        loop {
            match sys::recv_with_fds(self.socket.as_fd(), buffer.space(), DESCRIPTORS_MAX) {
                Ok(received) if received.bytes == 0 => return Err(()),
                Ok(received) => {
                    buffer.filled(received.bytes);
                    descriptors.extend(received.fds);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(()),
            }
            while let Some(range) = buffer.next_frame().map_err(|_| ())? {
                let message = ToClient::read(buffer.bytes(range)).map_err(|_| ())?;
                self.come(message, descriptors);
            }
        }
    }

    fn come(&self, message: ToClient<'_>, descriptors: &mut VecDeque<OwnedFd>) {
        let (ticket, arrived) = match message {
            ToClient::Welcome { seat, generation, note } => {
                if note {
                    holding::note_from_now_on();
                }
                let _ = self.seat.set((seat, generation));
                return;
            }
            ToClient::Answer { ticket, offer, names, head, tail } => {
                let mut held = None;
                if !names.is_empty()
                    && let Some(connection) = self.connection.upgrade()
                {
                    let things = names.into_iter().map(|name| Arc::new(Inner::new(Arc::clone(&connection), name)) as _);
                    held = Some(Arc::new(Things(things.collect())) as _);
                }
                let body = Body { head: Packet::copy_from(head), tail: Packet::copy_from(tail), held };
                (ticket, Arrived::Answer { body, offer })
            }
            ToClient::Refused { ticket, why } => (ticket, Arrived::Refused(why)),
            ToClient::Deadlock { ticket, ring } => (ticket, Arrived::Deadlock(String::from_utf8_lossy(ring).into_owned())),
            ToClient::Granted { ticket, version } => (ticket, Arrived::Granted(version)),
            ToClient::Mapped { ticket } => match descriptors.pop_front() {
                Some(descriptor) => (ticket, Arrived::Mapped(descriptor)),
                None => (ticket, Arrived::Refused(Refusal::NoMemory)),
            },
        };
        drop(self.mail.deliver(ticket, arrived));
    }

    /// Nobody needs it any more: the manager sees the end of the socket, and the reader as well.
    pub(super) fn hang_up(&self) {
        if !fork::is_forked_copy() {
            let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        }
    }
}
