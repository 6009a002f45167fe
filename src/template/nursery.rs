//! The application's side of a template: it is started when a process is wanted, told to fork, and
//! replaced when it has ended. All of it happens on the supervisor thread.
//!
//! ```text
//!             HELLO          READY                    a request
//!   (start) ──────▶ Preloading ─────▶ Ready ──FORK──▶ a birth ──BORN──▶ owned, and handed over
//!                                                        └─NOT_FORKED, closed, too late──▶ an error
//! ```
//!
//! 1. **Whose child.** A forked worker is this process's child. It is owned from its BORN on, whose
//!    sender the kernel tells. It is moved out of the template's process group in the same step, so
//!    the group holds the template and those that are not known yet, and no one else.
//! 2. **Unknown children.** A worker that dies before its BORN is found by that group and reaped:
//!    while the template lives, when the worker's socket closes without a word; after the
//!    template's end, until the group is empty. What lives of it is killed with the template.
//! 3. **The template's end** is known from its pidfd. Requests that were sent to it are sent to its
//!    successor, [`TRIES`] times in all. A failed preload fails all that waits: the next request
//!    tries anew, and those who ask (a pool, with its start attempts) decide how often.
//! 4. **Limits.** The hello has [`HELLO_LIMIT`], the preload the limit that it was given, a birth
//!    that of its request. A template that is too late is killed.

use super::Plan;
use crate::error::{Error, Why};
use crate::lock::Lock;
use crate::panics::catch_user_panic;
use crate::process::{
    Child, PeerFd, PeerSocket, Spawn, WorkerMemory, spawn_with_stdout, standard, sys,
};
use crate::reactor::launcher::{self, Launch};
use crate::reactor::{Deadline, Reactor, Source, Token, supervisor};
use crate::wire::frame::{self, FrameBuffer};
use crate::wire::message::{self, Bad, Hello, InitFailed, Message, NotForked, Welcome, kind};
use crate::wire::packet::Packet;
use crate::worker::{self, MARKER};
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::unistd::Pid;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// As of a worker.
const HELLO_LIMIT: Duration = Duration::from_secs(30);
const HELLO_MAX: usize = 64 << 10;
/// What a template or an unborn worker may say, in bytes.
const WORD_MAX: usize = 64 << 10;
/// Forks that a template is asked for at once: enough for it to have one while another is taken in,
/// and few enough for its socket and for the descriptors that are on their way.
const WINDOW: usize = 4;
/// So often a request is sent, at most.
const TRIES: u32 = 3;
/// Until it is looked again for what nobody tells: descriptors that were not taken, members of a
/// dead template's group that have not ended.
const AGAIN: Duration = Duration::from_millis(20);

/// A process that is wanted.
pub(crate) struct Request {
    /// `None`: the template's.
    pub(crate) stdout: Option<OwnedFd>,
    /// Whether it is to lead a process group; else it is in the application's.
    pub(crate) group: bool,
    /// How long the fork may take.
    pub(crate) limit: Duration,
    /// Whether it is still wanted.
    pub(crate) is_wanted: Box<dyn Fn() -> bool + Send>,
    /// Called once, on the supervisor thread.
    pub(crate) then: Box<dyn FnOnce(Result<Newborn, Error>) + Send>,
}

/// A process that has been forked.
#[derive(Debug)]
pub(crate) struct Newborn {
    pub(crate) child: Child,
    pub(crate) socket: PeerSocket,
}

/// Who waits for the template itself.
pub(crate) type Waiter = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// What is called when the lock has been released.
type Calls = Vec<Box<dyn FnOnce() + Send>>;

/// One template, and what is asked of it.
pub(crate) struct Nursery {
    this: Weak<Self>,
    plan: Plan,
    reactor: Reactor,
    /// The supervisor thread alone takes it.
    inside: Lock<Inside>,
    /// 0: none runs.
    pid: AtomicU32,
    is_ready: AtomicBool,
}

#[derive(Default)]
struct Inside {
    zygote: Option<Zygote>,
    queue: VecDeque<(Request, u32)>,
    births: HashMap<u64, Birth>,
    waiters: Vec<Waiter>,
    /// The template is being started.
    starting: Option<Arc<Launch>>,
    /// Groups of templates that have ended, of which members may be left.
    remains: Vec<u32>,
    next: u64,
    /// What is called when the lock has been released.
    calls: Calls,
    deadline: Deadline,
    is_watched: bool,
    is_closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Hello,
    Preloading,
    Ready,
}

/// The template's process.
struct Zygote {
    child: Child,
    socket: PeerSocket,
    stage: Stage,
    /// Needed for the handshake only.
    memory: WorkerMemory,
    early_stderr: Option<File>,
    /// Our end of its lifeline.
    lifeline: Option<PeerSocket>,
    buffer: FrameBuffer,
    received: Vec<PeerFd>,
    /// It has said all that it will.
    is_closed: bool,
    /// What is still to be written.
    out: VecDeque<Outgoing>,
    is_full: bool,
    until: Option<Instant>,
    /// It has ended, and its tracer has not taken notice.
    is_unreaped: bool,
    /// Why it was killed.
    failure: Option<Error>,
}

struct Outgoing {
    bytes: Packet,
    written: usize,
    descriptors: Vec<OwnedFd>,
}

/// A process that the template has been asked for.
struct Birth {
    request: Request,
    tries: u32,
    socket: PeerSocket,
    buffer: FrameBuffer,
    until: Option<Instant>,
    /// Nobody waits for it any more.
    is_given_up: bool,
}

// The roles of what is watched; the key of a birth is its number.
const SOCKET: u64 = 0;
const ENDED: u64 = 1;
const BIRTH: u64 = 2;

impl Nursery {
    pub(crate) fn new(plan: Plan) -> Result<Arc<Self>, Error> {
        worker::check_program()?;
        supervisor::start().map_err(|e| Error::spawn("starting the supervisor thread", e))?;
        let reactor = Reactor::new()
            .map_err(|e| Error::spawn("making a template's epoll set and its timer", e))?;
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            plan,
            reactor,
            inside: Lock::default(),
            pid: AtomicU32::new(0),
            is_ready: AtomicBool::new(false),
        }))
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid > 0)
    }

    /// Whether a fork would be made now, and not after a preload.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// Asks for a process.
    pub(crate) fn fork(this: &Arc<Self>, request: Request) {
        Arc::clone(this).order(move |inside| inside.queue.push_back((request, 0)));
    }

    /// Starts the template, and tells when it is ready.
    pub(crate) fn want_ready(this: &Arc<Self>, waiter: Waiter) {
        Arc::clone(this).order(move |inside| inside.waiters.push(waiter));
    }

    /// Looks which requests are still wanted.
    pub(crate) fn look(this: &Arc<Self>) {
        Arc::clone(this).order(|_| {});
    }

    /// Ends the template. What is wanted of it is told that it is closed.
    pub(crate) fn close(this: &Arc<Self>) {
        Arc::clone(this).order(|inside| inside.is_closed = true);
    }

    fn order(self: Arc<Self>, order: impl FnOnce(&mut Inside) + Send + 'static) {
        supervisor::run(move || {
            let mut inside = self.inside.lock();
            order(&mut inside);
            let is_new = !std::mem::replace(&mut inside.is_watched, true);
            drop(inside);
            if is_new {
                supervisor::watch(Arc::clone(&self) as _);
            }
            self.after_events();
        });
    }

    /// Does what there is to do, after what was read.
    fn step(&self, inside: &mut Inside, now: Instant) {
        self.forget_unwanted(inside);
        self.time_is_up(inside, now);
        self.reap_remains(inside);
        if inside.zygote.as_ref().is_some_and(|zygote| zygote.child.has_ended()) {
            self.ended(inside);
        }
        if inside.is_closed {
            self.close_now(inside);
        } else if inside.zygote.is_none()
            && inside.starting.is_none()
            && !(inside.queue.is_empty() && inside.waiters.is_empty())
        {
            self.start(inside);
        }
        if self.is_ready() {
            for waiter in inside.waiters.drain(..) {
                inside.calls.push(Box::new(move || waiter(Ok(()))));
            }
        }
        self.send_requests(inside, now);
        self.flush(inside);
    }

    // ---- the template

    fn start(&self, inside: &mut Inside) {
        // Whoever is driven is held.
        let Some(this) = self.this.upgrade() else { return };
        let plan = self.plan.clone();
        let limit = self.hello_limit();
        let launch = Launch::new(
            Some(limit),
            move || launch(plan),
            move |launched| {
                let launched = launched.unwrap_or_else(|| Err(Why::ExecTimeout { limit }.into()));
                this.clone().order(move |inside| this.launched(inside, launched));
            },
        );
        inside.starting = Some(Arc::clone(&launch));
        launcher::begin(launch);
    }

    fn hello_limit(&self) -> Duration {
        self.plan.hello_limit.map_or(HELLO_LIMIT, |limit| limit.min(HELLO_LIMIT))
    }

    fn launched(&self, inside: &mut Inside, launched: Result<Launched, Error>) {
        inside.starting = None;
        match launched.and_then(|launched| self.take_over(launched)) {
            Ok(zygote) => inside.zygote = Some(zygote),
            Err(error) => fail_all(inside, &error),
        }
    }

    fn take_over(&self, launched: Launched) -> Result<Zygote, Error> {
        let Launched { child, socket, early_stderr } = launched;
        let memory =
            WorkerMemory::create(0).map_err(|e| Error::spawn("making a template's memory", e))?;
        self.reactor
            .add(child.pidfd(), EpollFlags::EPOLLIN, Token::new(0, ENDED))
            .and_then(|()| self.reactor.add(socket.as_fd(), READ, Token::new(0, SOCKET)))
            .map_err(|e| Error::spawn("watching a template process", e))?;
        self.pid.store(child.pid(), Ordering::Relaxed);
        Ok(Zygote {
            child,
            socket,
            stage: Stage::Hello,
            memory,
            early_stderr: Some(early_stderr),
            lifeline: None,
            buffer: FrameBuffer::new(HELLO_MAX),
            received: Vec::new(),
            is_closed: false,
            out: VecDeque::new(),
            is_full: false,
            until: Some(Instant::now() + self.hello_limit()),
            is_unreaped: false,
            failure: None,
        })
    }

    fn read_zygote(&self, inside: &mut Inside) {
        let Some(zygote) = &mut inside.zygote else { return };
        zygote.is_full = false;
        while !zygote.is_closed {
            let space = zygote.buffer.space();
            match sys::recv_with_fds(zygote.socket.as_fd(), space) {
                Ok(received) if received.bytes > 0 => {
                    zygote.buffer.filled(received.bytes);
                    zygote.received.extend(received.fds);
                    if let Err(Bad(reason)) = self.take_words(zygote) {
                        let pid = zygote.child.pid();
                        let stderr =
                            zygote.early_stderr.as_ref().map(standard::tail).unwrap_or_default();
                        self.doom(zygote, Why::NotAWorker { pid, reason, stderr }.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Its end tells more.
                Ok(_) | Err(_) => self.hung_up(zygote),
            }
        }
        if zygote.stage == Stage::Ready && !zygote.is_closed {
            self.is_ready.store(true, Ordering::Relaxed);
        }
    }

    fn hung_up(&self, zygote: &mut Zygote) {
        if !std::mem::replace(&mut zygote.is_closed, true) {
            self.reactor.delete(zygote.socket.as_fd());
        }
        self.is_ready.store(false, Ordering::Relaxed);
        // It has no reason to close its side but its end.
        let _ = zygote.child.kill();
        zygote.lifeline = None;
    }

    /// Kills it, for this reason.
    fn doom(&self, zygote: &mut Zygote, failure: Error) {
        zygote.failure.get_or_insert(failure);
        self.hung_up(zygote);
    }

    fn take_words(&self, zygote: &mut Zygote) -> Result<(), Bad> {
        if zygote.received.len() > usize::from(zygote.stage == Stage::Hello) {
            return Err(Bad("a descriptor that nobody asked for".into()));
        }
        while let Some(range) = zygote.buffer.next_frame().map_err(|e| Bad(e.to_string()))? {
            let message = Message::new(zygote.buffer.bytes(range.clone()))?;
            match (zygote.stage, message.kind) {
                (Stage::Hello, kind::HELLO) => {
                    let hello: Hello = message.map()?;
                    worker::check_hello(&hello)?;
                    let lifeline = zygote
                        .received
                        .pop()
                        .ok_or_else(|| Bad("a hello without its one descriptor".into()))?;
                    zygote.lifeline = Some(worker::check_lifeline(lifeline)?);
                    if let Err(error) = self.welcome(zygote) {
                        self.doom(zygote, error);
                    }
                }
                (Stage::Preloading, kind::READY) => {
                    message.end()?;
                    (zygote.stage, zygote.until) = (Stage::Ready, None);
                }
                (Stage::Preloading, kind::INIT_FAILED) => {
                    let pid = zygote.child.pid();
                    let why = match message.map()? {
                        InitFailed::Error { message } => Why::PreloadError { pid, message },
                        InitFailed::Panicked { message, location } => {
                            Why::PreloadPanicked { pid, message, location }
                        }
                        InitFailed::NotForkable { reason } => Why::NotForkable { pid, reason },
                    };
                    self.doom(zygote, why.into());
                    return Ok(());
                }
                (_, other) => {
                    return Err(Bad(format!("a message of kind {other} out of its place")));
                }
            }
        }
        Ok(())
    }

    fn welcome(&self, zygote: &mut Zygote) -> Result<(), Error> {
        let mut out = Vec::new();
        let start = frame::begin(&mut out);
        let welcome = Welcome {
            frame_limit: frame::BODY_MAX_DEFAULT as u32,
            depth: worker::depth() + 1,
            init: true,
            template: true,
            exit: false,
            slots: zygote.memory.slots(),
            ring: zygote.memory.ring_bytes(),
            name: self.plan.name.clone().unwrap_or_else(worker::program_name),
            limits: None,
            single: None,
        };
        message::control(&mut out, kind::WELCOME, &welcome);
        frame::finish(&mut out, start);
        let no_stderr = |e| Error::spawn("giving a template its standard error", e);
        let memory = zygote.memory.fd().try_clone_to_owned();
        let descriptors = vec![memory.map_err(no_stderr)?, standard::stderr().map_err(no_stderr)?];
        let bytes = Packet::from(&mut out);
        zygote.out.push_back(Outgoing { bytes, written: 0, descriptors });
        let bytes = self.plan.preload.clone();
        zygote.out.push_back(Outgoing { bytes, written: 0, descriptors: Vec::new() });
        zygote.early_stderr = None;
        zygote.stage = Stage::Preloading;
        zygote.until = self.plan.preload_limit.and_then(|limit| Instant::now().checked_add(limit));
        zygote.buffer.set_limit(WORD_MAX);
        Ok(())
    }

    /// The template has ended.
    fn ended(&self, inside: &mut Inside) {
        // What was born is known, before the rest of the group is killed.
        self.read_births(inside);
        self.read_zygote(inside);
        let Some(zygote) = &mut inside.zygote else { return };
        let Some(exit) = zygote.child.try_reap() else {
            self.reactor.modify(zygote.child.pidfd(), EpollFlags::empty(), Token::new(0, ENDED));
            zygote.is_unreaped = true;
            return;
        };
        let (pid, status) = (exit.pid, exit.status);
        let Some(zygote) = inside.zygote.take() else { return };
        self.pid.store(0, Ordering::Relaxed);
        self.is_ready.store(false, Ordering::Relaxed);
        if !inside.births.is_empty() {
            inside.remains.push(pid);
            self.reap_remains(inside);
        }
        let failure = zygote.failure.or_else(|| match zygote.stage {
            Stage::Hello => {
                let stderr = zygote.early_stderr.as_ref().map(standard::tail).unwrap_or_default();
                Some(Why::DiedAtStart { pid, status, stderr }.into())
            }
            Stage::Preloading => Some(Why::PreloadDied { pid, status }.into()),
            Stage::Ready => None,
        });
        let births: Vec<_> = inside.births.drain().map(|(_, birth)| birth).collect();
        for birth in births {
            self.reactor.delete(birth.socket.as_fd());
            let how = format!("template process {pid} ended ({})", crate::error::Ending(status));
            again_or_fail(inside, birth, how);
        }
        // What came for a template that was killed without a failure of its own waits for the next.
        if let Some(failure) = failure {
            fail_all(inside, &failure);
        }
    }

    // ---- births

    fn send_requests(&self, inside: &mut Inside, now: Instant) {
        let Some(zygote) = inside.zygote.as_mut().filter(|zygote| !zygote.is_closed) else {
            return;
        };
        if zygote.stage != Stage::Ready {
            return;
        }
        while inside.births.len() < WINDOW
            && let Some((mut request, tries)) = inside.queue.pop_front()
        {
            let begun = self.begin_birth(inside.next, &mut request, zygote);
            match begun {
                Ok(socket) => {
                    let until = now.checked_add(request.limit);
                    let buffer = FrameBuffer::new(WORD_MAX);
                    let tries = tries + 1;
                    let is_given_up = false;
                    let birth = Birth { request, tries, socket, buffer, until, is_given_up };
                    inside.births.insert(inside.next, birth);
                    inside.next = (inside.next + 1) & 0x3fff_ffff;
                }
                Err(error) => {
                    let then = request.then;
                    inside.calls.push(Box::new(move || then(Err(error))));
                }
            }
        }
    }

    fn begin_birth(
        &self,
        token: u64,
        request: &mut Request,
        zygote: &mut Zygote,
    ) -> Result<PeerSocket, Error> {
        let step = |step| move |errno: nix::errno::Errno| Error::spawn(step, errno.into());
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
                .map_err(step("making a worker's socket"))?;
        setsockopt(&socket, sockopt::PassCred, &true)
            .map_err(step("asking who speaks at a worker's socket"))?;
        // The request keeps its own, for another try.
        let stdout = match &request.stdout {
            Some(stdout) => Some(
                stdout
                    .try_clone()
                    .map_err(|e| Error::spawn("giving a worker its standard output", e))?,
            ),
            None => None,
        };
        let socket = PeerSocket::from(socket);
        self.reactor
            .add(socket.as_fd(), READ, Token::new(token, BIRTH))
            .map_err(|e| Error::spawn("watching a worker's socket", e))?;
        let mut out = Vec::new();
        frame::write(&mut out, |out| message::fork(out, stdout.is_some(), request.group));
        let descriptors = std::iter::once(theirs).chain(stdout).collect();
        zygote.out.push_back(Outgoing { bytes: Packet::from(&mut out), written: 0, descriptors });
        Ok(socket)
    }

    fn read_births(&self, inside: &mut Inside) {
        let tokens: Vec<_> = inside.births.keys().copied().collect();
        tokens.into_iter().for_each(|token| self.read_birth(inside, token));
    }

    /// Reads what has come on the socket of a worker that is to be forked.
    fn read_birth(&self, inside: &mut Inside, token: u64) {
        let template = inside.zygote.as_ref().map_or(0, |zygote| zygote.child.pid());
        let Some(birth) = inside.births.get_mut(&token) else { return };
        let word = match hear(birth, template) {
            Ok(None) => return,
            Ok(Some(word)) => word,
            Err(Bad(reason)) => Word::Refused(NotForked { reason, not_forkable: false }),
        };
        let Some(birth) = inside.births.remove(&token) else { return };
        self.reactor.delete(birth.socket.as_fd());
        match word {
            Word::Born(pid) => {
                let Birth { request, socket, .. } = birth;
                let born = own(pid, request.group, socket);
                let then = request.then;
                inside.calls.push(Box::new(move || then(born)));
            }
            Word::Refused(NotForked { reason, not_forkable }) => {
                let why = if not_forkable {
                    Why::NotForkable { pid: template, reason }
                } else {
                    Why::ForkFailed { reason }
                };
                let then = birth.request.then;
                inside.calls.push(Box::new(move || then(Err(why.into()))));
            }
            Word::Closed => {
                let mut reason = "its socket was closed before it had said anything".to_owned();
                if let Some((pid, status)) = self.reap_unborn(inside) {
                    reason = format!(
                        "process {pid} ended at once ({})",
                        crate::error::Ending(Some(status))
                    );
                }
                again_or_fail(inside, birth, reason);
            }
        }
    }

    /// Reaps a worker that has died before it could say that it exists, while its template lives.
    fn reap_unborn(&self, inside: &mut Inside) -> Option<(u32, std::process::ExitStatus)> {
        let template = inside.zygote.as_ref()?.child.pid();
        loop {
            let Ok(sys::Waited::Exited(status, pid)) = sys::wait_group(template, sys::Reap::Peek)
            else {
                return None;
            };
            if pid == template {
                return None; // then the rest is done with its end
            }
            // It may have said so, and died since: then it is owned now, and not in the group.
            let known = inside.births.len();
            self.read_births_but_closed(inside);
            if inside.births.len() == known {
                let _ = sys::wait_pid(pid, sys::Reap::Take);
                return Some((pid, status));
            }
        }
    }

    /// As [`read_births`](Self::read_births), and leaves those alone that have closed.
    fn read_births_but_closed(&self, inside: &mut Inside) {
        let has_spoken = |birth: &Birth| sys::queued(birth.socket.as_fd()).is_ok_and(|n| n > 0);
        let spoken = inside.births.iter().filter(|(_, birth)| has_spoken(birth));
        let tokens: Vec<_> = spoken.map(|(token, _)| *token).collect();
        tokens.into_iter().for_each(|token| self.read_birth(inside, token));
    }

    /// Reaps what is left of the groups of templates that have ended. Members were killed; none is
    /// anybody else's, and as long as there is one the number is the group's.
    fn reap_remains(&self, inside: &mut Inside) {
        inside.remains.retain(|group| {
            loop {
                match sys::wait_group(*group, sys::Reap::Take) {
                    Ok(sys::Waited::Exited(..)) => {}
                    Ok(sys::Waited::StillRunning) => {
                        let _ = sys::kill_group(*group, nix::libc::SIGKILL);
                        return true;
                    }
                    Ok(sys::Waited::NoChild) | Err(_) => return false,
                }
            }
        });
    }

    // ---- limits and ends

    fn forget_unwanted(&self, inside: &mut Inside) {
        let closed = |request: Request| {
            let then = request.then;
            Box::new(move || then(Err(Why::PoolClosed.into()))) as Box<dyn FnOnce() + Send>
        };
        let (wanted, unwanted) = std::mem::take(&mut inside.queue)
            .into_iter()
            .partition(|(request, _)| (request.is_wanted)());
        inside.queue = wanted;
        inside.calls.extend(unwanted.into_iter().map(|(request, _)| closed(request)));
        for birth in inside.births.values_mut() {
            if !birth.is_given_up && !(birth.request.is_wanted)() {
                // What comes of it is killed by the drop of its owner.
                birth.is_given_up = true;
                let then = std::mem::replace(&mut birth.request.then, Box::new(drop));
                inside.calls.push(Box::new(move || then(Err(Why::PoolClosed.into()))));
            }
        }
    }

    fn time_is_up(&self, inside: &mut Inside, now: Instant) {
        let is_due = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        let Some(zygote) = &mut inside.zygote else { return };
        let pid = zygote.child.pid();
        if is_due(zygote.until) {
            zygote.until = None;
            let limit = self.plan.preload_limit.unwrap_or(HELLO_LIMIT);
            match zygote.stage {
                Stage::Hello => {
                    let stderr =
                        zygote.early_stderr.as_ref().map(standard::tail).unwrap_or_default();
                    let why = Why::HelloTimeout { pid, limit: self.hello_limit(), stderr };
                    self.doom(zygote, why.into());
                }
                Stage::Preloading => self.doom(zygote, Why::PreloadTimeout { pid, limit }.into()),
                Stage::Ready => {}
            }
        }
        let mut is_late = false;
        for birth in inside.births.values_mut().filter(|birth| is_due(birth.until)) {
            (birth.until, birth.tries) = (None, TRIES); // not once more
            is_late = true;
        }
        if is_late {
            // Whether it is stopped, or hangs: its successor does better.
            self.hung_up(zygote);
        }
    }

    /// Nobody wants anything any more.
    fn close_now(&self, inside: &mut Inside) {
        fail_all(inside, &Why::PoolClosed.into());
        for birth in inside.births.values_mut() {
            birth.is_given_up = true;
            let then = std::mem::replace(&mut birth.request.then, Box::new(drop));
            inside.calls.push(Box::new(move || then(Err(Why::PoolClosed.into()))));
        }
        if let Some(zygote) = &mut inside.zygote {
            self.hung_up(zygote);
        }
        if let Some(launch) = &inside.starting {
            launch.call_off();
        }
    }

    fn flush(&self, inside: &mut Inside) {
        let Some(zygote) = &mut inside.zygote else { return };
        while let Some(first) = zygote.out.front_mut().filter(|_| !zygote.is_closed) {
            let rest = &first.bytes[first.written..];
            let fds: Vec<_> = first.descriptors.iter().map(AsFd::as_fd).collect();
            match sys::send_with_fds(zygote.socket.as_fd(), &[IoSlice::new(rest)], &fds) {
                Ok(n) => {
                    drop(fds);
                    first.written += n;
                    first.descriptors.clear();
                    if first.written == first.bytes.len() {
                        zygote.out.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    zygote.is_full = true;
                    break;
                }
                // Too many descriptors are on their way; the timer comes back to it.
                Err(error) if sys::are_too_many(&error) => break,
                Err(_) => {
                    drop(fds);
                    self.hung_up(zygote);
                    break;
                }
            }
        }
        if !zygote.is_closed {
            let flags = if zygote.is_full { READ | EpollFlags::EPOLLOUT } else { READ };
            self.reactor.modify(zygote.socket.as_fd(), flags, Token::new(0, SOCKET));
        }
    }

    /// When to look again.
    fn next(inside: &Inside, now: Instant) -> Option<Instant> {
        let looks_again = |zygote: &Zygote| {
            zygote.is_unreaped || !zygote.is_closed && !zygote.out.is_empty() && !zygote.is_full
        };
        let zygote = inside.zygote.as_ref();
        let again =
            (!inside.remains.is_empty() || zygote.is_some_and(looks_again)).then_some(now + AGAIN);
        let births = inside.births.values().map(|birth| birth.until);
        births.chain([zygote.and_then(|zygote| zygote.until), again]).flatten().min()
    }
}

/// A template's process that has just been started.
struct Launched {
    child: Child,
    socket: PeerSocket,
    early_stderr: File,
}

/// Starts the process, on a launcher's thread.
fn launch(plan: Plan) -> Result<Launched, Error> {
    worker::check_privileges()?;
    let (socket, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| Error::spawn("making a template's socket", errno.into()))?;
    let no_stderr = |e| Error::spawn("making a template's first standard error", e);
    let early_stderr = standard::early_stderr().map_err(no_stderr)?;
    let stderr = early_stderr.try_clone().map_err(no_stderr)?;
    let Plan { env, env_clear, current_dir, .. } = plan;
    let spawn = Spawn { program: None, env, env_clear, current_dir, group: true };
    let marker = (MARKER, OsStr::new(env!("CARGO_PKG_VERSION")));
    let child = spawn_with_stdout(&spawn, theirs, None, stderr.into(), marker)
        .map_err(|e| Error::spawn("starting a template process", e))?;
    Ok(Launched { child, socket: socket.into(), early_stderr })
}

/// What is said on the socket of a worker that is to be forked.
enum Word {
    Born(u32),
    Refused(NotForked),
    Closed,
}

fn hear(birth: &mut Birth, template: u32) -> Result<Option<Word>, Bad> {
    loop {
        // What follows the word is for whoever gets the worker.
        let due = birth.buffer.due();
        let space = &mut birth.buffer.space()[..due];
        let received = match sys::recv_with_fds(birth.socket.as_fd(), space) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(_) => return Ok(Some(Word::Closed)),
            Ok(received) if received.bytes == 0 => return Ok(Some(Word::Closed)),
            Ok(received) => received,
        };
        if !received.fds.is_empty() {
            return Err(Bad("a descriptor that nobody asked for".into()));
        }
        birth.buffer.filled(received.bytes);
        let Some(range) = birth.buffer.next_frame().map_err(|e| Bad(e.to_string()))? else {
            continue;
        };
        let message = Message::new(birth.buffer.bytes(range))?;
        return match message.kind {
            kind::NOT_FORKED => Ok(Some(Word::Refused(message.map()?))),
            kind::BORN => {
                message.end()?;
                let pid = received.sender.filter(|pid| *pid != template);
                let pid = pid.ok_or_else(|| Bad("a birth that no child of ours tells".into()))?;
                Ok(Some(Word::Born(pid)))
            }
            other => Err(Bad(format!("a message of kind {other} out of its place"))),
        };
    }
}

/// Takes over a worker that has been forked.
fn own(pid: u32, group: bool, socket: PeerSocket) -> Result<Newborn, Error> {
    let step = |step| move |errno: nix::errno::Errno| Error::spawn(step, errno.into());
    let child = Child::adopt(pid, group)
        .map_err(|e| Error::spawn("adopting a forked worker", io::Error::other(e)))?;
    let number = Pid::from_raw(pid as i32);
    let leader = if group { number } else { nix::unistd::getpgrp() };
    nix::unistd::setpgid(number, leader).map_err(step("moving a worker to its process group"))?;
    let _ = setsockopt(&socket, sockopt::PassCred, &false);
    Ok(Newborn { child, socket })
}

fn again_or_fail(inside: &mut Inside, birth: Birth, reason: String) {
    let Birth { request, tries, is_given_up, .. } = birth;
    if tries < TRIES && !is_given_up {
        inside.queue.push_front((request, tries));
        return;
    }
    let then = request.then;
    inside.calls.push(Box::new(move || then(Err(Why::ForkFailed { reason }.into()))));
}

/// All that waits is told.
fn fail_all(inside: &mut Inside, error: &Error) {
    for (request, _) in inside.queue.drain(..) {
        let (then, error) = (request.then, error.clone());
        inside.calls.push(Box::new(move || then(Err(error))));
    }
    for waiter in inside.waiters.drain(..) {
        let error = error.clone();
        inside.calls.push(Box::new(move || waiter(Err(error))));
    }
}

/// By level: what is not read in one turn is read in the next.
const READ: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);

impl Source for Nursery {
    fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    fn ready(&self, token: Token, _: EpollFlags) {
        let mut inside = self.inside.lock();
        match token.role() {
            SOCKET => self.read_zygote(&mut inside),
            BIRTH => self.read_birth(&mut inside, token.key()),
            _ => {} // its end is looked at when all has been read
        }
    }

    fn tick(&self, _: Instant) {
        self.inside.lock().deadline.passed();
    }

    fn after_events(&self) {
        let now = Instant::now();
        let mut inside = self.inside.lock();
        self.step(&mut inside, now);
        let next = Self::next(&inside, now);
        let deadline = inside.deadline.update(next);
        let calls = std::mem::take(&mut inside.calls);
        let is_over = inside.is_closed
            && inside.zygote.is_none()
            && inside.starting.is_none()
            && inside.remains.is_empty();
        drop(inside);
        for call in calls {
            catch_user_panic(call);
        }
        if is_over {
            self.reactor.end();
        } else if let Some(deadline) = deadline {
            self.reactor.set_timer(self, deadline);
        }
    }

    fn panicked(&self, _: Token) {}

    fn deadline(&self) -> Deadline {
        self.inside.lock().deadline
    }

    fn is_alone(&self) -> bool {
        true
    }
}

impl fmt::Debug for Nursery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nursery").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
