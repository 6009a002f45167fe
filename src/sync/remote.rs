//! A manager in another process, at the other end of a socket.
//!
//! What is sent is written by whoever sends it, without waiting. What comes is read, and put into
//! the mail, by whoever waits for it, since to be woken by another thread would cost as much as the
//! answer itself:
//!
//! * **a thread that blocks** reads itself, as long as nobody else does;
//! * **a worker's own runtime** has a task that reads (`drive`);
//! * for all others (another runtime, another executor) there is a **thread**, which is started
//!   when first one *leans* on it, and reads as long as somebody may.
//!
//! A worker's own runtime does not turn while a task in it blocks, and what that waits for may be
//! just what the runtime would read (by another executor's `block_on`, say). So the thread is there
//! for it as well, and reads what the runtime has left lying for [`GRACE`].
//!
//! One reads at a time (`reading`, which is only tried, never waited for). Who comes second leaves
//! his waker, looks once more, and is woken when the first one is done: so whatever comes, somebody
//! reads it. That lock is held by the one who reads over his waiting for more; nobody else is kept
//! waiting by it, for what comes for others he delivers.

use super::connection::Connection;
use super::handle::{Inner, Things};
use super::holding;
use super::wait;
use crate::error::sync::Error;
use crate::lock::Lock;
use crate::manager::mail::{Arrived, Mail};
use crate::manager::message::{FRAME_MAX, Refusal, ToClient, ToManager};
use crate::manager::object::{Body, NO_ANSWER};
use crate::manager::outgoing::{Fd, Outgoing, Past, write_out};
use crate::panics::wake_all;
use crate::process::thread::OwnThread;
use crate::process::{self, PeerFd, SharedMemory, fork, sys};
use crate::reactor::readiness::watch_readable;
use crate::wire::frame::{self, FrameBuffer};
use crate::wire::packet::Packet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Shutdown, shutdown};
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

/// For so long the thread that reads goes on after nobody seems to need it, in milliseconds.
const LINGER: u16 = 100;

/// For so long what has come is left to a runtime that reads for itself, in milliseconds.
const GRACE: u16 = 10;

thread_local! {
    /// What is polled on this thread now is driven by the worker's own runtime.
    static DRIVEN: Cell<bool> = const { Cell::new(false) };
}

/// Runs the worker's own runtime, within which what comes from managers is read by the runtime
/// itself. It must have I/O.
pub(crate) fn driven<R>(run: impl FnOnce() -> R) -> R {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            DRIVEN.set(self.0);
        }
    }
    let _reset = Reset(DRIVEN.replace(true));
    run()
}

/// This process outlives the application, if that ends first.
static OUTLIVES: AtomicBool = AtomicBool::new(false);

/// Called in a process that goes on when the application ends: it wants to know when the managers
/// there have gone.
pub(crate) fn outlives_the_application() {
    OUTLIVES.store(true, Ordering::Relaxed);
}

pub(super) fn outlives() -> bool {
    OUTLIVES.load(Ordering::Relaxed)
}

/// What has come of an attempt to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Read,
    /// Somebody else reads, and tells when he is done.
    Busy,
    /// Nothing will come any more.
    Ended,
}

/// What has come and has not been read to its end.
struct Incoming {
    buffer: FrameBuffer,
    descriptors: VecDeque<PeerFd>,
    /// Nothing will come any more.
    ended: bool,
}

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
    out: Lock<Outgoing>,
    /// Wakes the reader when it is to wait for room as well.
    bell: OnceLock<EventFd>,
    /// See the module.
    reading: Lock<Incoming>,
    /// Who would read if nobody else did.
    next: Lock<Vec<Waker>>,
    /// Somebody may rely on the thread.
    leaned: AtomicBool,
    /// A runtime has a task that reads.
    is_driven: AtomicBool,
    /// How many times it has come to read.
    driven: AtomicU64,
    /// Held while the thread is being started.
    starting: Lock<()>,
    /// This process's seat and its generation.
    seat: OnceLock<(u32, u32)>,
    /// The manager's memory, as far as it was needed.
    segments: Lock<HashMap<u32, Mapped>>,
    connection: Weak<Connection>,
}

impl Remote {
    pub(super) fn new(socket: OwnedFd, mail: Arc<Mail>, connection: Weak<Connection>) -> Arc<Self> {
        Arc::new(Self {
            socket,
            mail,
            out: Lock::new(Outgoing::default()),
            bell: OnceLock::new(),
            reading: Lock::new(Incoming {
                buffer: FrameBuffer::new(FRAME_MAX),
                descriptors: VecDeque::new(),
                ended: false,
            }),
            next: Lock::default(),
            leaned: AtomicBool::new(false),
            is_driven: AtomicBool::new(false),
            driven: AtomicU64::new(0),
            starting: Lock::new(()),
            seat: OnceLock::new(),
            segments: Lock::default(),
            connection,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.out.lock()
    }

    /// This process's seat, once the manager has told it.
    pub(crate) fn seat(&self) -> Option<(u32, u32)> {
        self.seat.get().copied()
    }

    /// A segment of the memory, if it has been mapped.
    pub(super) fn segment(&self, number: u32) -> Option<Arc<SharedMemory>> {
        match self.segments.lock().get(&number)? {
            Mapped::Kept(memory) => Some(Arc::clone(memory)),
            Mapped::Lent(memory) => memory.upgrade(),
        }
    }

    /// Takes note of a segment that has been mapped. If another thread was faster, gives that
    /// one's.
    pub(super) fn keep_segment(
        &self,
        number: u32,
        memory: SharedMemory,
        shared: bool,
    ) -> Arc<SharedMemory> {
        if let Some(other) = self.segment(number) {
            return other;
        }
        let memory = Arc::new(memory);
        let mapped = if shared {
            Mapped::Kept(Arc::clone(&memory))
        } else {
            Mapped::Lent(Arc::downgrade(&memory))
        };
        let mut segments = self.segments.lock();
        // Those of objects that are gone go with the next one that comes. They are unmapped without
        // the lock.
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

    /// Sends one message past those that wait for room; if there is none for itself, nothing has
    /// been sent, and it is to be tried again when woken.
    pub(super) fn poll_send_past(
        self: &Arc<Self>,
        message: &ToManager<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Refusal>> {
        let waker = cx.waker().clone();
        let mut bytes = Vec::with_capacity(32);
        frame::write(&mut bytes, |bytes| message.write(bytes));
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
        let Past { sent, more, wake } = out.wrote_past(&bytes, &result);
        let dead = out.is_dead();
        if !sent && !dead {
            out.wait_until_empty(waker);
        }
        drop(out);
        wake_all(wake);
        if more {
            self.write();
        } else if !sent && !dead {
            self.wait_for_room();
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
        wake_all(wake);
        if full && self.lock().gave_up() {
            self.hang_up();
            self.ended();
        } else if full {
            self.wait_for_room();
        }
    }

    /// Leaves it to the thread to write when there is room. If there can be no thread, nothing
    /// would ever be sent: then the connection ends, and all who wait are told.
    fn wait_for_room(self: &Arc<Self>) {
        if self.listen().is_ok() {
            self.ring();
        } else {
            self.hang_up();
            self.ended();
        }
    }

    /// Nothing will come any more, nor can anything be sent.
    fn ended(&self) {
        let wakers = self.lock().kill();
        wake_all(wakers);
        self.mail.close();
    }

    fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            let _ = bell.write(1); // fails only when it has rung
        }
    }

    // ---- reading

    /// Before the first request.
    pub(super) fn prepare(&self) -> Result<(), Error> {
        fork::arm().map_err(|e| Error::system("arming the fork guard", e))
    }

    /// Somebody waits for something: sees to it that it is read. `false`: nobody can.
    pub(super) fn attend(self: &Arc<Self>) -> bool {
        if wait::will_read(self) {
            return true;
        }
        if DRIVEN.get() {
            if !self.is_driven.swap(true, Ordering::AcqRel) {
                tokio::spawn(drive(Arc::clone(self)));
                // If there can be no thread, there is none: it is needed only when the runtime does
                // not turn.
                if self.listen().is_ok() {
                    self.ring();
                }
            }
            return true;
        }
        self.lean().is_ok()
    }

    /// Somebody relies on the thread.
    pub(super) fn lean(self: &Arc<Self>) -> Result<(), Error> {
        if !self.leaned.load(Ordering::Acquire) {
            self.listen()?; // if that fails, the next one tries again
            self.leaned.store(true, Ordering::Release);
            self.ring();
        }
        Ok(())
    }

    /// Reads what is there, unless somebody else reads; then the waker is told when he is done.
    fn try_read(&self, waker: &Waker) -> Option<MutexGuard<'_, Incoming>> {
        self.reading.try_lock().or_else(|| {
            let waker = waker.clone(); // without the lock
            let mut next = self.next.lock();
            if next.iter().any(|other| other.will_wake(&waker)) {
                drop(next);
                drop(waker);
            } else {
                next.push(waker);
                drop(next);
            }
            self.reading.try_lock()
        })
    }

    /// Whoever would have read may now.
    fn let_others_read(&self, incoming: MutexGuard<'_, Incoming>) {
        let ended = incoming.ended;
        drop(incoming);
        if ended {
            self.ended();
        }
        let next = std::mem::take(&mut *self.next.lock());
        wake_all(next);
    }

    /// Blocks this thread until it has been woken, or has read something.
    pub(super) fn read_until(&self, woken: &dyn Fn() -> bool, waker: &Waker) {
        let Some(mut incoming) = self.try_read(waker) else {
            while !woken() {
                thread::park();
            }
            return;
        };
        // What was read before we came to it has been delivered, and what comes now nobody else
        // delivers.
        if !woken() && !incoming.ended {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::NONE); // a signal: look again
            self.read(&mut incoming);
        }
        self.let_others_read(incoming);
    }

    /// Reads what is there, for whoever it is.
    fn turn(&self, waker: &Waker) -> Turn {
        let Some(mut incoming) = self.try_read(waker) else { return Turn::Busy };
        self.read(&mut incoming);
        let ended = incoming.ended;
        self.let_others_read(incoming);
        if ended { Turn::Ended } else { Turn::Read }
    }

    // ---- the thread

    /// Starts the thread that reads, and writes when there is room again, unless it runs.
    pub(super) fn listen(self: &Arc<Self>) -> Result<(), Error> {
        if self.bell.get().is_some() {
            return Ok(());
        }
        let _one_at_a_time = self.starting.lock();
        if self.bell.get().is_some() {
            return Ok(());
        }
        let failed =
            |e: io::Error| Error::system("starting the thread that listens to a manager", e);
        let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| failed(e.into()))?;
        let this = Arc::clone(self);
        process::thread::spawn("procpool-manager", move || this.read_on()).map_err(failed)?;
        let _ = self.bell.set(bell);
        Ok(())
    }

    fn read_on(self: Arc<Self>) {
        let _registered = OwnThread::register();
        let bell = self.bell.wait();
        let waker = Waker::from(Arc::new(Ring(Arc::downgrade(&self))));
        let mut left_alone = None;
        let mut for_runtime = Turn::Read;
        loop {
            let leaned = self.leaned.load(Ordering::Acquire);
            let turn = if leaned { self.turn(&waker) } else { for_runtime };
            if turn == Turn::Ended {
                return;
            }
            // While another one reads, what is there is his, and so is the end: to be told of it
            // again and again would only keep him from it. He rings when he is done.
            let busy = turn == Turn::Busy;
            for_runtime = Turn::Read;
            let (blocked, held) = {
                let out = self.lock();
                (out.is_blocked(), out.is_held())
            };
            let mut wanted = if blocked { PollFlags::POLLOUT } else { PollFlags::empty() };
            // Else the end is heard of all the same (POLLHUP), for it need not be asked for.
            let driven = !leaned && self.is_driven.load(Ordering::Acquire);
            if (leaned || driven) && !busy {
                wanted |= PollFlags::POLLIN;
            }
            let mut fds = [
                PollFd::new(bell.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.socket.as_fd(), wanted),
            ];
            let count = if busy && !blocked { 1 } else { 2 };
            let limit = match (held, leaned) {
                (true, _) => PollTimeout::from(sys::Held::AGAIN.as_millis() as u16),
                (false, true) => PollTimeout::from(LINGER),
                (false, false) => PollTimeout::NONE,
            };
            let ready = match poll(&mut fds[..count], limit) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let _ = bell.read();
            let has =
                |what| count == 2 && fds[1].revents().is_some_and(|events| events.intersects(what));
            if has(PollFlags::POLLOUT) || held {
                let write = self.lock().has_room();
                if write {
                    self.write();
                }
            }
            if has(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
                self.leaned.store(true, Ordering::Release); // reads to the end
            }
            if driven && has(PollFlags::POLLIN) {
                // What waits for room may wait just for this to be read: a manager does not listen
                // to one who does not.
                for_runtime = if blocked || held {
                    self.turn(&waker)
                } else {
                    self.turn_for_runtime(bell, &mut left_alone, &waker)
                };
            }
            if leaned && ready == 0 && !held {
                // Who comes to lean now either is seen here, or sees that nobody leans.
                self.leaned.store(false, Ordering::SeqCst);
                if self.mail.is_waited_for() {
                    self.leaned.store(true, Ordering::SeqCst);
                }
            }
        }
    }

    /// Something has come for a runtime that reads for itself. If it has not come to it within the
    /// grace, it is read here; and from then on at once, until the runtime comes again.
    /// `left_alone`: how many times it had come when it was found not to come.
    fn turn_for_runtime(
        &self,
        bell: &EventFd,
        left_alone: &mut Option<u64>,
        waker: &Waker,
    ) -> Turn {
        let driven = self.driven.load(Ordering::Acquire);
        if *left_alone != Some(driven) {
            let _ =
                poll(&mut [PollFd::new(bell.as_fd(), PollFlags::POLLIN)], PollTimeout::from(GRACE));
            let lies =
                poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)
                    == Ok(1);
            if !lies || self.driven.load(Ordering::Acquire) != driven {
                return Turn::Read;
            }
            *left_alone = Some(driven);
        }
        self.turn(waker)
    }

    /// Reads what is there.
    fn read(&self, incoming: &mut Incoming) {
        let Incoming { buffer, descriptors, ended } = incoming;
        if !*ended && self.read_all(buffer, descriptors).is_err() {
            *ended = true;
        }
    }

    /// An error: nothing more will come.
    fn read_all(
        &self,
        buffer: &mut FrameBuffer,
        descriptors: &mut VecDeque<PeerFd>,
    ) -> Result<(), ()> {
        loop {
            let space = buffer.space();
            let room = space.len();
            let received = match sys::recv_with_fds(self.socket.as_fd(), space) {
                Ok(received) if received.bytes == 0 => return Err(()),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(()),
            };
            let all = received.bytes < room && received.fds.is_empty();
            buffer.filled(received.bytes);
            descriptors.extend(received.fds);
            while let Some(range) = buffer.next_frame().map_err(|_| ())? {
                let message = ToClient::read(buffer.bytes(range)).map_err(|_| ())?;
                self.come(message, descriptors);
            }
            if all {
                return Ok(()); // a short read: there was no more
            }
        }
    }

    fn come(&self, message: ToClient<'_>, descriptors: &mut VecDeque<PeerFd>) {
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
                    let things = names
                        .into_iter()
                        .map(|name| Arc::new(Inner::new(Arc::clone(&connection), name)) as _);
                    held = Some(Arc::new(Things(things.collect())) as _);
                }
                let body =
                    Body { head: Packet::copy_from(head), tail: Packet::copy_from(tail), held };
                (ticket, Arrived::Answer { body, offer })
            }
            ToClient::Refused { ticket: NO_ANSWER, why } => return self.mail.close_with(why),
            ToClient::Refused { ticket, why } => (ticket, Arrived::Refused(why)),
            ToClient::Deadlock { ticket, ring } => {
                (ticket, Arrived::Deadlock(String::from_utf8_lossy(ring).into_owned()))
            }
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

#[cfg(test)]
impl Remote {
    pub(super) fn has_thread(&self) -> bool {
        self.bell.get().is_some()
    }

    /// Reads, as far as others see, while what is asked for has come, and meanwhile does this.
    pub(super) fn while_reading_asked(self: &Arc<Self>, ask: impl FnOnce(), act: impl FnOnce()) {
        let incoming = self.reading.lock();
        ask();
        self.lean().expect("a thread");
        let come = poll(
            &mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(30_000u16),
        );
        assert_eq!(come, Ok(1), "nothing came");
        act();
        assert!(self.next.lock().len() <= 1);
        self.let_others_read(incoming);
    }
}

/// Rings the thread.
struct Ring(Weak<Remote>);

impl Wake for Ring {
    fn wake(self: Arc<Self>) {
        if let Some(remote) = self.0.upgrade() {
            remote.ring();
        }
    }
}

/// Reads within a worker's own runtime, until nothing will come any more.
async fn drive(remote: Arc<Remote>) {
    struct Undriven(Arc<Remote>);
    impl Drop for Undriven {
        fn drop(&mut self) {
            self.0.is_driven.store(false, Ordering::Release);
        }
    }
    let undriven = Undriven(remote);
    let remote = &undriven.0;
    let Ok(readiness) = remote.socket.try_clone().and_then(watch_readable) else {
        // Not even a descriptor: the thread may have what it needs already.
        if remote.lean().is_err() {
            remote.hang_up();
            remote.mail.close();
        }
        return;
    };
    std::future::poll_fn(|cx| {
        let mut first = true;
        loop {
            // Cleared before it is read, so that what comes meanwhile is heard of.
            let ready = match readiness.poll_read_ready(cx) {
                Poll::Ready(Ok(mut ready)) => {
                    ready.clear_ready();
                    true
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => false,
            };
            remote.driven.fetch_add(1, Ordering::Release);
            // (Woken by another who has read until now, there may be something as well.)
            if (ready || first) && remote.turn(cx.waker()) == Turn::Ended {
                return Poll::Ready(());
            }
            if !ready {
                return Poll::Pending;
            }
            first = false;
        }
    })
    .await;
}
