//! What happens between a process of its own and the application that started it: the handshake,
//! the one call, the answer, the end.
//!
//! The supervisor thread drives all of it, so it goes on whatever the application's runtimes do, and
//! whether the handle still exists or not: nobody needs to await anything for a process to get its
//! call, or to be reaped.
//!
//! ```text
//!          hello            ready, and the call is with it          an answer
//! Hello ──────────▶ Welcomed ─────────────────────────────▶ Running ─────────▶ Answered
//!   └─────────────────┴──────────────────────────────────────┴──────────────────┴──▶ its end: told, and all is closed
//! ```
//!
//! 1. The end is known from the pidfd alone. What the process had sent by then is read first, then
//!    it is reaped.
//! 2. A complete answer counts, however the process ended after it.
//! 3. A process that closes its socket goes on: it may have closed all descriptors that it did not
//!    know.
//! 4. A detached process is no child of ours. What was started is the one that forks it, and ends;
//!    what is known of the other comes over the socket, and its start is over when it says so.

use super::builder::Order;
use super::handover::Handover;
use super::streams::{Streams, open_streams};
use crate::error::{Error, ErrorKind, TaskError, What, Why};
use crate::lock::Lock;
use crate::process::{
    Child, DeathNote, Exit, PeerFd, PeerSocket, Spawn, WorkerMemory, fork, spawn_with_stdout,
    standard, sys,
};
use crate::reactor::once_event::OnceEvent;
use crate::reactor::{Deadline, Reactor, Source, Token, launcher, supervisor};
use crate::sync::named::{Leases, Named};
use crate::template::{Newborn, Nursery, Request, Template};
use crate::wire::frame::{self, FrameBuffer};
use crate::wire::message::{self, Bad, Failed, Hello, Message, Single, Welcome, kind};
use crate::wire::value::names::{Encoded, Thing};
use crate::worker::{self, DETACH, MARKER};
use nix::libc;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A process says hello in some milliseconds; one that has not after this long will not. Generous,
/// for machines that are overloaded at the time.
const HELLO_LIMIT: Duration = Duration::from_secs(30);
/// A child executes its program within some milliseconds; the caller waits for it.
const EXEC_LIMIT: Duration = Duration::from_secs(30);
/// A process that has not yet said hello is trusted with no more than this, in bytes.
const HELLO_MAX: usize = 64 << 10;
/// Readings of the socket, and writings to it, in one turn, at most, so that nobody else waits for
/// long.
const STEPS: u32 = 16;
/// How long the caller waits for a fork. One takes some 100 us.
const FORK_LIMIT: Duration = Duration::from_secs(5);
/// The number of the one call.
const CALL: u64 = 1;

/// How a process ended, and what became of its function.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    /// `None`: it is not known.
    pub(super) status: Option<ExitStatus>,
    /// The encoded result.
    pub(super) outcome: Result<Encoded, TaskError>,
}

/// One process, and what is said to it and by it.
pub(super) struct Machine {
    child: Child,
    function: &'static str,
    detach: bool,
    reactor: Reactor,
    /// What is needed until the end. The supervisor alone takes it, so nobody ever waits for it.
    inside: Lock<Option<Inside>>,
    /// The handle has sent a signal: an early death is no failure of the start.
    signalled: AtomicBool,
    /// The process has all that it needs; its number.
    started: Arc<OnceEvent<Result<u32, Error>>>,
    ended: OnceEvent<Ended>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Hello,
    Welcomed,
    Running,
    Answered,
}

struct Inside {
    stage: Stage,
    /// `None`: it, or we, have closed it.
    socket: Option<PeerSocket>,
    memory: WorkerMemory,
    /// Our end: when it closes, the kernel kills the process, unless that has let go.
    lifeline: Option<PeerSocket>,
    /// When its start has taken too long.
    starts_until: Option<Instant>,
    /// When to look again at a process that has ended and cannot be reaped.
    look_again_at: Option<Instant>,
    deadline: Deadline,
    /// How long it runs.
    limit: Duration,
    welcome: Welcome,
    /// Standard error and input as they are to be from the welcome on.
    given: Vec<OwnedFd>,
    early_stderr: Option<File>,
    /// The call, and how much of it has been written.
    out: Vec<u8>,
    written: usize,
    /// The shared objects that the call names, until they are lent; sockets to their managers go
    /// with its first byte.
    things: Vec<Thing>,
    sockets: Vec<OwnedFd>,
    /// The length of their announcements, which stand first in `out`.
    attaches: usize,
    leases: Leases,
    /// It has closed its socket before it had all of the call.
    is_deaf: bool,
    buffer: FrameBuffer,
    /// Descriptors that came before the welcome.
    received: Vec<PeerFd>,
    truncated: bool,
    answer: Option<Result<Encoded, Failed>>,
    /// Why we ended its start.
    refused: Option<Error>,
    /// How it broke the protocol.
    bad: Option<String>,
    timed_out: bool,
    /// The number of the detached process, from when it says that it is ready.
    detached: Option<u32>,
    /// The application's exit waits for it.
    handover: Option<Handover>,
}

/// What a descriptor is; there is one process, so its key says nothing.
const SOCKET: u64 = 0;
const ENDED: u64 = 1;

fn token(role: u64) -> Token {
    Token::new(0, role)
}

/// Starts a process and has the supervisor drive it; waits for the exec, up to a limit.
pub(super) fn spawn(order: Order) -> Result<(Arc<Machine>, Streams), Error> {
    spawn_within(EXEC_LIMIT, order)
}

pub(super) fn spawn_within(
    limit: Duration,
    mut order: Order,
) -> Result<(Arc<Machine>, Streams), Error> {
    let template = order.template.take();
    let (order, ours) = prepare(order)?;
    let Ready { order, kept } = order;
    let launched = match template {
        None => launcher::wait(limit, move || launch(order))
            .map_err(|why| not_launched(why, limit))??,
        Some(template) => fork_from(&template, order)?,
    };
    Ok((watch_over(launched, kept, Arc::new(OnceEvent::new()))?, ours))
}

fn not_launched(why: launcher::NotLaunched, limit: Duration) -> Error {
    match why {
        launcher::NotLaunched::TooLate => Why::ExecTimeout { limit }.into(),
        launcher::NotLaunched::Nobody => Why::Forked.into(),
    }
}

/// Has a template fork a process, and waits for that.
fn fork_from(
    template: &Template,
    (order, stdout): (Order, Option<OwnedFd>),
) -> Result<(Order, Launched), Error> {
    if fork::is_forked_copy() {
        return Err(Why::Forked.into());
    }
    let nursery = template.nursery();
    if !nursery.is_ready() {
        Nursery::want_ready(nursery, Box::new(drop));
        return Err(Why::TemplateNotReady.into());
    }
    if supervisor::is_this_thread() {
        let reason = "it was asked for by a waker on the supervisor thread, which forks".into();
        return Err(Why::ForkFailed { reason }.into());
    }
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let waits = Arc::new(());
    let is_waiting = Arc::downgrade(&waits);
    let request = Request {
        stdout,
        group: order.group,
        limit: FORK_LIMIT,
        is_wanted: Box::new(move || is_waiting.strong_count() > 0),
        then: Box::new(move |newborn| drop(sender.send(newborn))),
    };
    Nursery::fork(nursery, request);
    let newborn = receiver.recv_timeout(FORK_LIMIT).unwrap_or_else(|_| {
        let reason = format!("the template did not fork within {FORK_LIMIT:?}");
        Err(Why::ForkFailed { reason }.into())
    });
    drop(waits);
    let Newborn { child, socket } = newborn?;
    Ok((order, Launched { child, socket, early_stderr: None }))
}

/// Starts a process that detaches itself, and waits for nothing.
pub(super) fn detach(order: Order) -> Result<Arc<OnceEvent<Result<u32, Error>>>, Error> {
    let (order, _) = prepare(order)?;
    let started = Arc::new(OnceEvent::new());
    let told = Arc::clone(&started);
    let Ready { order, kept } = order;
    let done = move |launched: Option<Result<_, Error>>| {
        supervisor::run(move || {
            let machine = launched
                .ok_or_else(|| not_launched(launcher::NotLaunched::TooLate, EXEC_LIMIT))
                .and_then(|launched| watch_over(launched?, kept, Arc::clone(&told)));
            if let Err(error) = machine {
                told.set(Err(error));
            }
        });
    };
    launcher::begin(launcher::Launch::new(Some(EXEC_LIMIT), move || launch(order), done));
    Ok(started)
}

/// An order, with the streams as descriptors; and what is kept here of it in the meantime.
struct Ready {
    order: (Order, Option<OwnedFd>),
    kept: Given,
}

fn prepare(mut order: Order) -> Result<(Ready, Streams), Error> {
    worker::check_program()?;
    supervisor::start().map_err(|e| Error::spawn("starting the supervisor thread", e))?;
    let (ours, theirs) = open_streams(&mut order)
        .map_err(|e| Error::spawn("opening a standard stream of the process", e))?;
    let handover = (!order.tied).then(Handover::begin);
    let kept = Given { stdin: theirs.stdin, stderr: theirs.stderr, handover };
    Ok((Ready { order: (order, theirs.stdout), kept }, ours))
}

/// On a launcher's thread, since the parent-death signal follows the thread that spawned.
fn launch((mut order, stdout): (Order, Option<OwnedFd>)) -> Result<(Order, Launched), Error> {
    // Once more on the thread that starts it, whose ids may be others.
    worker::check_privileges()?;
    let (socket, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| Error::spawn("making a process's socket", errno.into()))?;
    let no_stderr = |e| Error::spawn("making a process's first standard error", e);
    let early_stderr = standard::early_stderr().map_err(no_stderr)?;
    let their_stderr = early_stderr.try_clone().map_err(no_stderr)?;
    let version = env!("CARGO_PKG_VERSION");
    let marker =
        OsString::from(if order.detach { format!("{version}{DETACH}") } else { version.into() });
    let surroundings = Spawn {
        program: None,
        env: std::mem::take(&mut order.env),
        env_clear: order.env_clear,
        current_dir: order.current_dir.take(),
        group: order.group,
    };
    let child =
        spawn_with_stdout(&surroundings, theirs, stdout, their_stderr.into(), (MARKER, &marker))
            .map_err(|e| Error::spawn("starting a process", e))?;
    let early_stderr = Some(early_stderr);
    Ok((order, Launched { child, socket: socket.into(), early_stderr }))
}

/// Has the supervisor drive it.
fn watch_over(
    (order, launched): (Order, Launched),
    kept: Given,
    started: Arc<OnceEvent<Result<u32, Error>>>,
) -> Result<Arc<Machine>, Error> {
    let machine = Machine::new(order, kept, launched, started, HELLO_LIMIT)?;
    supervisor::watch(Arc::clone(&machine) as _);
    Ok(machine)
}

/// A process that has just been started.
pub(super) struct Launched {
    pub(super) child: Child,
    pub(super) socket: PeerSocket,
    /// `None`: it has been forked.
    pub(super) early_stderr: Option<File>,
}

/// What it is given, or what it holds, until it has taken up its work.
pub(super) struct Given {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stderr: OwnedFd,
    pub(super) handover: Option<Handover>,
}

impl Machine {
    pub(super) fn new(
        order: Order,
        given: Given,
        launched: Launched,
        started: Arc<OnceEvent<Result<u32, Error>>>,
        limit: Duration,
    ) -> Result<Arc<Self>, Error> {
        let Launched { child, socket, early_stderr } = launched;
        let memory =
            WorkerMemory::create(0).map_err(|e| Error::spawn("making a process's memory", e))?;
        let reactor = Reactor::new()
            .map_err(|e| Error::spawn("making a process's epoll set and its timer", e))?;
        reactor
            .add(socket.as_fd(), READ, token(SOCKET))
            .and_then(|()| reactor.add(child.pidfd(), EpollFlags::EPOLLIN, token(ENDED)))
            .map_err(|e| Error::spawn("watching a process", e))?;
        let starts_until = Some(Instant::now() + limit);
        let mut deadline = Deadline::default();
        let set = deadline.update(starts_until);
        let welcome = Welcome {
            frame_limit: frame::BODY_MAX_DEFAULT as u32,
            depth: worker::depth() + 1,
            init: false,
            template: false,
            exit: false,
            slots: memory.slots(),
            ring: memory.ring_bytes(),
            name: order.name.unwrap_or_else(worker::program_name),
            limits: order.limits,
            single: Some(Single {
                tied: order.tied,
                stdin: given.stdin.is_some(),
                umask: order.umask,
            }),
        };
        let inside = Inside {
            stage: Stage::Hello,
            socket: Some(socket),
            memory,
            lifeline: None,
            starts_until,
            look_again_at: None,
            deadline,
            limit,
            welcome,
            given: [given.stderr].into_iter().chain(given.stdin).collect(),
            early_stderr,
            out: order.call,
            written: 0,
            things: order.things,
            sockets: Vec::new(),
            attaches: 0,
            leases: Leases::default(),
            is_deaf: false,
            buffer: FrameBuffer::new(HELLO_MAX),
            received: Vec::new(),
            truncated: false,
            answer: None,
            refused: None,
            bad: None,
            timed_out: false,
            detached: None,
            handover: given.handover,
        };
        let machine = Arc::new(Self {
            child,
            function: order.function,
            detach: order.detach,
            reactor,
            inside: Lock::new(Some(inside)),
            signalled: AtomicBool::new(false),
            started,
            ended: OnceEvent::new(),
        });
        if let Some(deadline) = set {
            machine.reactor.set_timer(&*machine, deadline);
        }
        Ok(machine)
    }
}

/// By level: what is not read in one pass is read in the next.
const READ: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);

impl Machine {
    pub(super) fn is_forked_copy() -> bool {
        fork::is_forked_copy()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub(super) fn function(&self) -> &'static str {
        self.function
    }

    pub(super) fn has_ended(&self) -> bool {
        self.child.has_ended()
    }

    /// Reaps it, if it has ended and the supervisor has not yet come to it.
    pub(super) fn exit_status(&self) -> Option<ExitStatus> {
        self.child.try_reap()?.status
    }

    pub(super) fn kill(&self) -> Result<(), Error> {
        self.signalled.store(true, Ordering::Relaxed);
        self.child.kill().map_err(|e| self.not_signalled(libc::SIGKILL, e))
    }

    pub(super) fn terminate(&self) -> Result<(), Error> {
        self.signal(libc::SIGTERM)
    }

    pub(super) fn signal(&self, signal: i32) -> Result<(), Error> {
        if signal != 0 {
            self.signalled.store(true, Ordering::Relaxed);
        }
        self.child.signal(signal).map_err(|e| self.not_signalled(signal, e))
    }

    fn not_signalled(&self, signal: i32, source: io::Error) -> Error {
        if fork::is_forked_copy() {
            return Why::Forked.into();
        }
        Why::Signal { pid: self.pid(), signal, source }.into()
    }

    pub(super) fn started(&self) -> &OnceEvent<Result<u32, Error>> {
        &self.started
    }

    pub(super) fn ended(&self) -> &OnceEvent<Ended> {
        &self.ended
    }

    // ---- reading

    fn read(&self, inside: &mut Inside, to_end: bool) {
        let mut steps = 0;
        // To the end of what it sent itself: whoever else holds its end, a grandchild say, may
        // write for ever. (Of a detached process it is a grandchild that speaks.)
        let mut left = match inside.socket.as_ref().filter(|_| to_end && !self.detach) {
            Some(socket) => sys::queued(socket.as_fd()).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        while let Some(socket) =
            inside.socket.as_ref().filter(|_| left > 0 && (to_end || steps < STEPS))
        {
            steps += 1;
            let space = inside.buffer.space();
            let read = sys::recv_with_fds(socket.as_fd(), space).map(|received| {
                inside.received.extend(received.fds);
                inside.truncated |= received.truncated;
                received.bytes
            });
            match read {
                Ok(0) => self.close_socket(inside),
                Ok(n) => {
                    left -= n.min(left);
                    inside.buffer.filled(n);
                    if let Err(Bad(reason)) = self.take_frames(inside) {
                        inside.bad.get_or_insert(reason);
                        self.close_socket(inside);
                        let _ = self.child.kill();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // ECONNRESET: it ended with something of ours unread. Its end tells more.
                Err(_) => self.close_socket(inside),
            }
        }
    }

    fn close_socket(&self, inside: &mut Inside) {
        if let Some(socket) = inside.socket.take() {
            self.reactor.delete(socket.as_fd());
        }
        inside.is_deaf |= !inside.out.is_empty();
        inside.out = Vec::new();
    }

    fn take_frames(&self, inside: &mut Inside) -> Result<(), Bad> {
        // At once, and not when the message is whole: until then any number could come.
        if inside.received.len() > usize::from(inside.stage == Stage::Hello) {
            return Err(Bad("a descriptor that nobody asked for".into()));
        }
        while let Some(range) = inside.buffer.next_frame().map_err(|e| Bad(e.to_string()))? {
            let mut message = Message::new(inside.buffer.bytes(range.clone()))?;
            match (inside.stage, message.kind) {
                (Stage::Hello, kind::HELLO) => {
                    let hello = message.map()?;
                    self.welcome(inside, &hello)?;
                }
                (Stage::Welcomed, kind::READY) if !self.detach => {
                    message.end()?;
                    self.ready(inside)?;
                }
                (Stage::Welcomed, kind::DETACHED) if self.detach => {
                    inside.detached = Some(message.uint()?);
                    message.end()?;
                    self.ready(inside)?;
                }
                (Stage::Running, kind::DONE) => {
                    let id: u64 = message.uint()?;
                    let (1, at) = message.rest() else {
                        return Err(Bad("a result that is not one value".into()));
                    };
                    self.answered(inside, id, |inside| {
                        Ok(Encoded {
                            value: inside.buffer.take(range.start + at..range.end),
                            things: None,
                        })
                    })?;
                }
                (Stage::Running, kind::DONE_NAMING) => {
                    let id: u64 = message.uint()?;
                    let (2, at) = message.rest() else {
                        return Err(Bad("a result that is not one value".into()));
                    };
                    let names = &inside.buffer.bytes(range.clone())[at..];
                    let (named, len) = Named::read(names)
                        .map_err(|e| Bad(format!("the names of a result: {e}")))?;
                    let things = inside
                        .leases
                        .take(&named)
                        .map_err(|reason| Bad(format!("a result that names {reason}")))?;
                    let things = Some(Arc::new(things));
                    self.answered(inside, id, |inside| {
                        Ok(Encoded {
                            value: inside.buffer.take(range.start + at + len..range.end),
                            things,
                        })
                    })?;
                }
                (Stage::Running, kind::FAILED) => {
                    let id: u64 = message.uint()?;
                    let failed = message.map()?;
                    self.answered(inside, id, |_| Err(failed))?;
                }
                (_, other) => {
                    return Err(Bad(format!("a message of kind {other} out of its place")));
                }
            }
        }
        Ok(())
    }

    fn ready(&self, inside: &mut Inside) -> Result<(), Bad> {
        if inside.truncated {
            return Err(Bad("a descriptor that nobody asked for".into()));
        }
        inside.stage = Stage::Running;
        inside.starts_until = None;
        Ok(())
    }

    fn answered(
        &self,
        inside: &mut Inside,
        id: u64,
        answer: impl FnOnce(&mut Inside) -> Result<Encoded, Failed>,
    ) -> Result<(), Bad> {
        if id != CALL || !inside.out.is_empty() {
            return Err(Bad(format!("an answer to call {id}, which it was not to give now")));
        }
        inside.answer = Some(answer(inside));
        inside.stage = Stage::Answered;
        self.close_socket(inside);
        Ok(())
    }

    /// The hello has come: keep the lifeline, and answer. The call follows.
    fn welcome(&self, inside: &mut Inside, hello: &Hello) -> Result<(), Bad> {
        worker::check_hello(hello)?;
        if inside.truncated && inside.received.is_empty() {
            // It sent one, and we have no number left for it: no fault of the process's.
            self.refuse(
                inside,
                Error::spawn("taking in a process's lifeline", nix::errno::Errno::EMFILE.into()),
            );
            return Ok(());
        }
        let lifeline = inside.received.pop().filter(|_| !inside.truncated);
        let lifeline = lifeline.ok_or_else(|| Bad("a hello without its one descriptor".into()))?;
        inside.lifeline = Some(worker::check_lifeline(lifeline)?);
        inside.stage = Stage::Welcomed;
        inside.buffer.set_limit(frame::BODY_MAX_DEFAULT);
        let Some(socket) = &inside.socket else { return Ok(()) };
        // No further one is due. Before Linux 6.16 it comes, and breaks the protocol.
        let _ = sys::refuse_descriptors(socket.as_fd());

        let mut out = Vec::new();
        frame::write(&mut out, |out| message::control(out, kind::WELCOME, &inside.welcome));
        let fds: Vec<_> = std::iter::once(inside.memory.fd())
            .chain(inside.given.iter().map(AsFd::as_fd))
            .collect();
        // The socket is empty: the welcome goes whole.
        match sys::send_with_fds(socket.as_fd(), &[IoSlice::new(&out)], &fds) {
            Ok(n) if n == out.len() => {
                drop(fds);
                inside.given.clear();
                inside.early_stderr = None;
                Ok(())
            }
            Ok(_) => Err(Bad("it did not take the welcome".into())),
            // It has ended meanwhile: that will be told in its own words.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            // Our own want of descriptors, say: no fault of the process's.
            Err(error) => {
                self.refuse(inside, Error::spawn("answering a process's hello", error));
                Ok(())
            }
        }
    }

    /// The system refuses what the process needs from us; it is killed.
    fn refuse(&self, inside: &mut Inside, error: Error) {
        inside.refused.get_or_insert(error);
        self.close_socket(inside);
        inside.lifeline = None;
        let _ = self.child.kill();
    }

    // ---- writing

    /// Lends the process what its call names, and announces the managers. If that cannot be done,
    /// the call goes all the same: it is answered that its arguments could not be decoded.
    fn lend(&self, inside: &mut Inside) {
        let things = std::mem::take(&mut inside.things);
        // What detaches itself is another process than the one that we have started.
        let process = (!self.detach).then(|| self.child.pidfd());
        let Ok(sockets) = inside.leases.lend(&things, process) else { return };
        let mut out = Vec::new();
        for (manager, socket) in sockets {
            frame::write(&mut out, |out| message::attach(out, manager));
            inside.sockets.push(socket);
        }
        inside.attaches = out.len();
        out.append(&mut inside.out);
        inside.out = out;
    }

    fn write(&self, inside: &mut Inside) {
        if inside.stage == Stage::Hello {
            return;
        }
        for _ in 0..STEPS {
            let Some(socket) = &inside.socket else { return };
            if inside.out.is_empty() {
                return;
            }
            if !inside.things.is_empty() {
                self.lend(inside);
                continue;
            }
            let rest = &inside.out[inside.written..];
            let sent = if inside.sockets.is_empty() {
                sys::send(socket.as_fd(), rest)
            } else {
                let sockets: Vec<_> = inside.sockets.iter().map(AsFd::as_fd).collect();
                sys::send_with_fds(socket.as_fd(), &[IoSlice::new(rest)], &sockets)
            };
            if sent.is_ok() {
                inside.sockets.clear();
            }
            match sent {
                Ok(n) => inside.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // More descriptors are on their way than this user may have open.
                // The call goes without the sockets: it is answered as in `lend`.
                Err(error) if sys::are_too_many(&error) => {
                    inside.sockets.clear();
                    inside.out.drain(..std::mem::take(&mut inside.attaches));
                    continue;
                }
                // It does not read any more; what it has to say comes all the same.
                Err(_) => {
                    inside.is_deaf = true;
                    inside.written = inside.out.len();
                }
            }
            if inside.written == inside.out.len() {
                inside.out = Vec::new();
                self.reactor.modify(socket.as_fd(), READ, token(SOCKET));
                return;
            }
        }
        // The rest when there is room, or when others have had their turn.
        if let Some(socket) = &inside.socket {
            self.reactor.modify(socket.as_fd(), READ | EpollFlags::EPOLLOUT, token(SOCKET));
        }
    }

    // ---- its end

    fn time_is_up(&self, inside: &mut Inside, now: Instant) {
        if inside.starts_until.take_if(|until| *until <= now).is_some() {
            inside.timed_out = true;
            self.close_socket(inside);
            // Of a detached process it is the lifeline that ends it.
            inside.lifeline = None;
            let _ = self.child.kill();
        }
    }

    fn end(&self, inside: Inside, status: Option<ExitStatus>) {
        let pid = self.pid();
        let note = inside.memory.note().read();
        let error = |what| TaskError::new(what, self.function);
        let outcome = match inside.answer {
            Some(Ok(encoded)) => Ok(encoded),
            Some(Err(failed)) => Err(error(match failed {
                Failed::Panicked { message, location, backtrace } => {
                    What::Panicked { message, location, backtrace, pid, status }
                }
                Failed::Arguments { reason, .. } => What::ArgumentDecode { pid, reason },
                Failed::Result { reason } => What::ResultEncode { pid, reason },
                Failed::TooLarge => What::ResultTooLarge { pid, limit: frame::BODY_MAX_DEFAULT },
                Failed::NoRuntime { reason } => What::NoRuntime { pid, reason },
                Failed::Cancelled => What::ProtocolViolation {
                    pid,
                    reason: "a call that nobody cancelled was".into(),
                },
                Failed::Unknown => What::ProtocolViolation {
                    pid,
                    reason: "a function of its own program is unknown to it".into(),
                },
            })),
            None if inside.stage == Stage::Running => Err({
                let is_out_of_memory = note == Some(DeathNote::OutOfMemory)
                    && Exit { pid, status }.is_by(libc::SIGABRT);
                let what = match (inside.bad, note) {
                    (Some(reason), _) => What::ProtocolViolation { pid, reason },
                    (None, Some(DeathNote::Panic { message, place })) => What::Panicked {
                        message,
                        location: Some(place),
                        backtrace: None,
                        pid,
                        status,
                    },
                    (None, note) => What::WorkerDied {
                        pid,
                        status,
                        stack_overflow: note == Some(DeathNote::StackOverflow),
                    },
                };
                error(what).last_words(is_out_of_memory, None)
            }),
            None => {
                let cause = self.why_start_failed(&inside, status);
                self.started.set(Err(cause.clone()));
                let is_our_doing = self.signalled.load(Ordering::Relaxed)
                    && cause.kind() == ErrorKind::DiedAtStart;
                Err(error(if is_our_doing {
                    What::WorkerDied { pid, status, stack_overflow: false }
                } else {
                    What::StartFailed(cause)
                }))
            }
        };
        // It may have ended with its call half written.
        self.started.set(Ok(pid));
        // All descriptors are closed before anybody is told.
        drop((
            inside.socket,
            inside.memory,
            inside.lifeline,
            inside.given,
            inside.early_stderr,
            inside.received,
        ));
        drop(inside.handover);
        self.ended.set(Ended { status, outcome });
    }

    fn why_start_failed(&self, inside: &Inside, status: Option<ExitStatus>) -> Error {
        if let Some(error) = &inside.refused {
            return error.clone();
        }
        let pid = inside.detached.unwrap_or(self.pid());
        let stderr = inside.early_stderr.as_ref().map(standard::tail).unwrap_or_default();
        let why = match &inside.bad {
            Some(reason) => Why::NotAWorker { pid, reason: reason.clone(), stderr },
            None if inside.timed_out => Why::HelloTimeout { pid, limit: inside.limit, stderr },
            None => Why::DiedAtStart { pid, status, stderr },
        };
        why.into()
    }
}

impl Source for Machine {
    fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// What is ready is looked at together, in `after_events`: whether the process has ended
    /// decides how far its socket is read.
    fn ready(&self, _: Token, _: EpollFlags) {}

    fn tick(&self, now: Instant) {
        if let Some(inside) = self.inside.lock().as_mut() {
            inside.deadline.passed();
            let _ = inside.look_again_at.take_if(|at| *at <= now);
            self.time_is_up(inside, now);
        }
    }

    fn after_events(&self) {
        let mut slot = self.inside.lock();
        let Some(inside) = slot.as_mut() else { return };
        // Looked at before the reading: what it sent before its end is there then.
        let has_ended = self.child.has_ended();
        self.read(inside, has_ended);
        self.write(inside);
        let is_with_it = inside.stage == Stage::Running && inside.out.is_empty() && !inside.is_deaf;
        if self.detach
            && let Some(result) = self.detached(inside, has_ended, is_with_it)
        {
            let inside = slot.take();
            drop(slot);
            drop(inside);
            self.started.set(result);
            return self.reactor.end();
        }
        let has_started = !self.detach && (is_with_it || inside.stage == Stage::Answered);
        if has_started {
            inside.handover = None;
        }
        let exit = if has_ended && !self.detach { self.child.try_reap() } else { None };
        if has_ended && !self.detach && exit.is_none() {
            self.look_again(inside);
        }
        let next = inside.starts_until.into_iter().chain(inside.look_again_at).min();
        let deadline = inside.deadline.update(next);
        let over = exit.and_then(|exit| Some((slot.take()?, exit.status)));
        drop(slot);
        if has_started {
            self.started.set(Ok(self.pid()));
        }
        if let Some((inside, status)) = over {
            self.end(inside, status);
            return self.reactor.end();
        }
        if let Some(deadline) = deadline {
            self.reactor.set_timer(self, deadline);
        }
    }

    fn panicked(&self, _: Token) {}

    fn deadline(&self) -> Deadline {
        self.inside.lock().as_ref().map(|inside| inside.deadline).unwrap_or_default()
    }

    fn is_alone(&self) -> bool {
        true
    }
}

impl Machine {
    /// It has ended, and its tracer has not taken notice; nobody tells when it does (ptrace(2)).
    /// Its pidfd stays readable.
    fn look_again(&self, inside: &mut Inside) {
        inside.look_again_at.get_or_insert_with(|| Instant::now() + supervisor::TRACED);
        // All that it sent has been read, and its end stays readable as well.
        if let Some(socket) = &inside.socket {
            self.reactor.delete(socket.as_fd());
        }
        self.reactor.modify(self.child.pidfd(), EpollFlags::empty(), token(ENDED));
    }

    /// What the start of a detached process came to; `None` while it is not over.
    fn detached(
        &self,
        inside: &mut Inside,
        has_ended: bool,
        is_with_it: bool,
    ) -> Option<Result<u32, Error>> {
        // What we have started is to fork and to end well, first of all.
        let exit = if has_ended { self.child.try_reap()? } else { return None };
        // It stays readable; from here on it is the socket that counts.
        self.reactor.delete(self.child.pidfd());
        if exit.status.is_some_and(|status| !status.success())
            || inside.refused.is_some()
            || inside.bad.is_some()
            || inside.timed_out
        {
            return Some(Err(self.why_start_failed(inside, exit.status)));
        }
        match (inside.detached, &inside.socket) {
            (Some(pid), _) if is_with_it => Some(Ok(pid)),
            // It has gone without a word; it is no child of ours, so nobody will ever know how.
            (_, None) => Some(Err(self.why_start_failed(inside, None))),
            _ => None,
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("child", &self.child)
            .field("function", &self.function)
            .finish_non_exhaustive()
    }
}
