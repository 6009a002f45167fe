//! What happens at the pool's descriptors, and what follows: replies are read and delivered,
//! workers that have ended are reaped, time passes.
//!
//! All descriptors of a pool are in the epoll set of one [`Reactor`]. So it does not matter which
//! thread drives: the task that [`drive`] runs in the pool's own runtime, or the supervisor when that
//! runtime is late.

use super::core::{Answer, Carried, Replied, Stop, WorkerKey};
use super::engine::{Engine, State, timed_out};
use super::events::{SharedObject, WorkerEvent};
use super::launch::Launched;
use super::link::{Link, Process};
use super::loss::{Loss, Note};
use super::reply::{Block, Came, Cargo, Encoded, Inlet};
use super::started::{Start, Started};
use super::stats::ExitReason;
use super::tokens::Tokens;
use super::yielded::TooMany;
use crate::error::{Error, TaskError, What, Why};
use crate::panics::catch_user_panic;
use crate::process::{
    DeathNote, Exit, PeerFd, PeerSocket, WorkerMemory, is_stopped, oom_kills, standard, sys,
};
use crate::reactor::readiness::watch_readable;
use crate::reactor::{self, Reactor, Token, drive_in_runtime, supervisor};
use crate::sync::handle::kinds;
use crate::sync::named::{Leases, Named};
use crate::wire::frame::{self, FrameBuffer};
use crate::wire::message::{self, Bad, Failed, Hello, InitFailed, Message, Welcome, kind};
use crate::wire::outbox::Intake;
use crate::wire::packet::Packet;
use crate::wire::value::names::Thing;
use nix::sys::epoll::EpollFlags;
use nix::sys::timerfd::TimerFd;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

/// Frames longer than this, in bytes, are sent to idle workers only (design 6).
pub(crate) const LARGE: usize = 64 << 10;
/// A worker that has closed its socket while it starts ends, as a rule, at once.
const END_GRACE: Duration = Duration::from_secs(2);
/// One that was at work has no reason to close it but its end, which follows within microseconds.
/// (One that was told to end may have exit handlers to run, and has the time for them.)
const HANG_UP_GRACE: Duration = Duration::from_millis(500);
/// Between two looks at frames that have not come whole.
const STALL_LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row at which nothing more of a frame had come mean that the worker does not
/// go on with it. They are counted, and not the time: an application that was stopped for a minute
/// sees one.
const STALL_LOOKS: u32 = 5;
/// Readings of one worker's socket in one go, at most, so that nobody else waits for long.
const READINGS: u32 = 16;
/// A process that has not yet said hello is trusted with no more than this, in bytes.
const HELLO_MAX: usize = 64 << 10;
/// Looks into one worker's outbox in one turn, at most, so that others have theirs.
const LOOKS: u32 = 4;

// ---- the epoll set

/// What a worker's descriptor is.
const SOCKET: u64 = 0;
const ENDED: u64 = 1;
/// A descriptor of the pool's own, whose key is one of the two below.
const OWN: u64 = 2;
const MODERATION: u64 = 0;
const TOKENS: u64 = 1;

fn token(key: WorkerKey, role: u64) -> Token {
    Token::new(key.to_u64(), role)
}

/// Sockets are watched by edge, and for room only while room is wanted: else each reading of a
/// worker would wake us.
const READ: EpollFlags =
    EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);
/// The other side has closed: no further edge will come, so it must be read to the end now.
const CLOSED: EpollFlags =
    EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLHUP).union(EpollFlags::EPOLLERR);
const READ_WRITE: EpollFlags = READ.union(EpollFlags::EPOLLOUT);

pub(super) fn register(reactor: &Reactor, moderation: &TimerFd, tokens: &Tokens) -> io::Result<()> {
    reactor.add(moderation.as_fd(), EpollFlags::EPOLLIN, Token::new(MODERATION, OWN))?;
    reactor.add(tokens.bell(), EpollFlags::EPOLLIN, Token::new(TOKENS, OWN))
}

/// The worker's socket is full; its event shall go on writing.
pub(super) fn want_room(reactor: &Reactor, socket: BorrowedFd<'_>, key: WorkerKey) {
    reactor.modify(socket, READ_WRITE, token(key, SOCKET));
}

// ---- the task in the pool's runtime

/// Tells the pool when its runtime goes, however it goes.
struct Driven(Arc<Engine>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.lost_runtime();
    }
}

/// The task that drives the pool whenever something is ready, until the pool has ended or the
/// runtime has. To be called in that runtime; it panics in one without I/O.
pub(super) fn drive(engine: Arc<Engine>) -> io::Result<impl Future<Output = ()> + Send> {
    // Both are made here, and not in the task, which may be dropped before it is polled.
    let driven = Driven(engine);
    let ready = watch_readable(Arc::clone(&driven.0))?;
    Ok(async move {
        let driven = driven;
        drive_in_runtime(ready, || driven.0.drive_by_runtime()).await;
    })
}

// ---- a pass

/// What only the thread that drives uses.
#[derive(Debug, Default)]
pub(super) struct Driver {
    readers: HashMap<WorkerKey, Reader>,
    replies: Vec<Told>,
    settled: Vec<Settled>,
    answered: Vec<Answered>,
    /// Workers that have rung, or answered by the socket: their doorbells are to be armed anew.
    due: Vec<WorkerKey>,
    /// Workers that ring after more than one reply.
    moderated: Vec<WorkerKey>,
    /// Then the driver looks by itself, for the sake of these.
    look_in: Option<Duration>,
    /// What was taken out of an outbox.
    taken: Vec<u8>,
    /// Workers that have ended and cannot be reaped yet.
    unreaped: Vec<WorkerKey>,
    /// Doorbells are armed anew after the events of this pass; by the timer that bounds the time
    /// for which replies wait.
    rearm: bool,
    time_is_up: bool,
    /// When frames that have not come whole are looked at next, if there is any.
    stall_at: Option<Instant>,
}

/// What a worker has told of the tasks that it has in hand.
#[derive(Debug)]
pub(super) enum Told {
    /// Plain results of tasks whose numbers follow each other, the first of which this is. Their
    /// frames follow each other as well, in what was taken out of the outbox.
    Row {
        id: u64,
        count: u32,
        frames: Range<usize>,
    },
    One(u64, Result<Value, Failed>),
}

impl Told {
    /// How many replies it is.
    pub(super) fn count(&self) -> u32 {
        match self {
            Self::Row { count, .. } => *count,
            Self::One(..) => 1,
        }
    }

    /// It is no reply, but comes of a task that goes on.
    fn is_news(&self) -> bool {
        matches!(self, Self::One(_, Ok(Value { news: Some(_), .. })))
    }
}

/// A task's result, as it came.
#[derive(Debug)]
pub(super) struct Value {
    packet: Packet,
    /// The shared objects that it names.
    named: Option<Named>,
    /// It is an error of the task's own that is worth another try.
    again: bool,
    /// It is no result, but comes of a task that goes on.
    news: Option<News>,
}

/// What comes of a task that goes on.
#[derive(Clone, Copy, Debug)]
enum News {
    /// An item.
    Item,
    /// It has begun, at this time.
    Started(u64),
}

/// A task that was answered; and if it was being stopped, why.
type Settled = (Cargo, Result<Value, Failed>, Option<Stop>);

/// Items of a run that were answered.
#[derive(Debug)]
pub(super) struct Answered {
    inlet: Arc<Inlet>,
    function: &'static str,
    results: Results,
}

#[derive(Debug)]
enum Results {
    /// So many. Copied, for a panic may leave them to a later batch, of another worker.
    Block(u32, Block),
    /// Of the item in this place.
    One(u64, Result<Value, Failed>),
}

#[derive(Debug)]
enum Reply {
    /// Plain results, in what was taken out of the outbox.
    Row(Range<usize>),
    One(Result<Value, Failed>),
}

/// How far a worker has come; what it may say depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Hello,
    Init,
    Ready,
}

/// How long a worker is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// For a while; others have their turn.
    OthersWait,
    /// To the end, for it has closed its side.
    End,
    /// It has ended: what it had sent by then, and no more.
    WhatItSent,
}

/// The incoming side of one worker.
#[derive(Debug)]
struct Reader {
    socket: Arc<PeerSocket>,
    pid: u32,
    buffer: FrameBuffer,
    stage: Stage,
    memory: Arc<WorkerMemory>,
    intake: Intake,
    /// It has rung, and does not until its doorbell is armed.
    rang: bool,
    /// How often it has rung, and how many replies it has committed to its outbox. It rings after a
    /// reply, and once at most, so it cannot have rung more often than there were replies.
    bells: u64,
    boxed: u64,
    /// It rings after more than one reply.
    is_moderated: bool,
    look_in: Duration,
    /// It stands in `Driver::due`; in `Driver::moderated`.
    is_due: bool,
    is_listed: bool,
    /// Nothing more comes by the socket, or nothing more is wanted.
    closed: bool,
    /// It broke the protocol: its outbox is not read either.
    silenced: bool,
    /// How often nothing more had come of a frame that is not whole, see [`STALL_LOOKS`].
    stalled: u32,
    /// Descriptors that came and have not been claimed by a message.
    descriptors: Vec<PeerFd>,
    /// Some came that could not be taken in.
    truncated: bool,
}

impl Engine {
    /// Handles an event of one descriptor.
    pub(super) fn handle(&self, driver: &mut Driver, token: Token, flags: EpollFlags) {
        let key = WorkerKey::from_u64(token.key());
        match token.role() {
            OWN if token.key() == TOKENS => {
                self.tokens.cancelled().into_iter().for_each(|task| self.abort(task));
                driver.rearm = true;
            }
            OWN => driver.time_is_up = true,
            ENDED => self.process_ended(driver, key),
            _ => {
                if flags.contains(EpollFlags::EPOLLOUT) {
                    self.has_room(key);
                }
                let until = if flags.intersects(CLOSED) { Until::End } else { Until::OthersWait };
                self.read(driver, key, until);
            }
        }
    }

    /// Follows the events of a pass.
    pub(super) fn finish_pass(&self, driver: &mut Driver) {
        let time_is_up = std::mem::take(&mut driver.time_is_up);
        let rearm = std::mem::take(&mut driver.rearm) || time_is_up;
        if time_is_up {
            let _ = nix::unistd::read(self.moderation.as_fd(), &mut [0; 8]);
            for key in std::mem::take(&mut driver.unreaped) {
                self.process_ended(driver, key);
            }
        }
        self.look_into_outboxes(driver, rearm);
        let look_again = match () {
            () if driver.look_in.is_some() => driver.look_in,
            () if !driver.unreaped.is_empty() => Some(supervisor::TRACED),
            () => None,
        };
        if look_again.is_some() {
            reactor::set(&self.moderation, look_again);
        }
    }

    /// A handler has panicked: what the worker had sent is lost, so it is killed. What it had in
    /// hand is told as of a worker that died.
    pub(super) fn lose(&self, token: Token) {
        if token.role() != OWN {
            let key = WorkerKey::from_u64(token.key());
            self.apply(|state, now| state.core.doom(key, now, &mut state.actions));
        }
    }

    pub(super) fn time_has_passed(&self, driver: &mut Driver) {
        self.send_again();
        self.look_for_stalls(driver);
        self.look_for_blocked_workers();
        // A process that has ended in time is not one that the kernel cannot end, though we come to
        // see it late.
        let unended = self.lock().core.unended(Instant::now());
        for key in unended {
            let child = self
                .lock()
                .links
                .get(&key)
                .and_then(|link| link.process.as_ref())
                .map(|process| Arc::clone(&process.child));
            if child.is_some_and(|child| child.has_ended()) {
                self.process_ended(driver, key);
            }
        }
        let mut then = None;
        loop {
            let (now, overdue) = self.apply(|state, now| {
                let overdue = state.core.overdue(then, now);
                if overdue.is_empty() {
                    state.timed = true;
                    state.core.tick(now, &mut state.actions);
                }
                (now, overdue)
            });
            if overdue.is_empty() {
                return;
            }
            // An answer that was given in time counts, though we come to read it late, or nobody
            // has rung.
            for key in overdue {
                self.read(driver, key, Until::OthersWait);
                self.empty_outbox(driver, key);
            }
            then = Some(now); // nobody is waited for twice, however long that took
        }
    }

    /// A full socket has room again.
    fn has_room(&self, key: WorkerKey) {
        let mut state = self.lock();
        let Some(Link { process: Some(process), out, .. }) = state.links.get_mut(&key) else {
            return;
        };
        // An event may be a stale one; then somebody else writes, or nobody needs to.
        if !std::mem::take(&mut out.blocked) {
            return;
        }
        let socket = Arc::clone(&process.socket);
        drop(state);
        self.reactor.modify(socket.as_fd(), READ, token(key, SOCKET));
        self.flush(key); // `busy` is set
    }

    // ---- starting

    /// A process has been started, or could not be. Runs on the supervisor thread.
    pub(super) fn started(&self, key: WorkerKey, launched: Result<Launched, Error>) {
        let Launched { child, socket, memory, early_stderr, streams, oom_kills } = match launched {
            Ok(launched) => launched,
            Err(cause) => return self.start_failed(key, cause),
        };
        let (child, socket) = (Arc::new(child), Arc::new(socket));
        let mut state = self.lock();
        let Some(link) = state.links.get_mut(&key) else { return };
        link.launch = None;
        let process = Process {
            child: Arc::clone(&child),
            socket: Arc::clone(&socket),
            memory,
            leases: Arc::default(),
            lifeline: None,
            early_stderr: early_stderr.map(Arc::new),
            streams,
            oom_kills,
        };
        link.process = Some(process);
        let doomed = link.doomed;
        drop(state);
        if doomed {
            // If the kernel refuses (the worker has changed its user), its end is waited for.
            let _ = child.kill();
        }
        // Its end first: once the socket is watched it may become ready, and be given tasks, on
        // another thread.
        let added = self
            .reactor
            .add(child.pidfd(), EpollFlags::EPOLLIN, token(key, ENDED))
            .and_then(|()| self.reactor.add(socket.as_fd(), READ, token(key, SOCKET)));
        if let Err(error) = added {
            // It is killed and reaped by the drop of its owner.
            self.reactor.delete(child.pidfd());
            self.start_failed(key, Error::spawn("watching over a worker process", error));
        }
    }

    fn start_failed(&self, key: WorkerKey, cause: Error) {
        let pid = self
            .lock()
            .links
            .get(&key)
            .and_then(|link| link.process.as_ref())
            .map(|process| process.child.pid());
        let told = (!cause.is_pool_closed()).then(|| cause.clone());
        self.tell_end(key, pid, ExitReason::StartFailed, None, told);
        // Before the tasks are told: whoever asks for workers after that is not told of this one.
        self.tell_start(Some(cause.clone()));
        let link = self.apply(|state, now| {
            state.timed = true;
            state.core.start_failed(key, cause.clone(), now, &mut state.actions);
            state.links.remove(&key)
        });
        drop(link);
    }

    // ---- reading

    /// Reads what has come from a worker.
    fn read(&self, driver: &mut Driver, key: WorkerKey, until: Until) {
        let reader = match driver.readers.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let state = self.lock();
                let Some(process) = state.links.get(&key).and_then(|link| link.process.as_ref())
                else {
                    return;
                };
                entry.insert(Reader {
                    socket: Arc::clone(&process.socket),
                    pid: process.child.pid(),
                    buffer: FrameBuffer::new(HELLO_MAX.min(self.config.frame_limit)),
                    stage: Stage::Hello,
                    memory: Arc::clone(&process.memory),
                    intake: Intake::default(),
                    rang: false,
                    bells: 0,
                    boxed: 0,
                    is_moderated: false,
                    look_in: Duration::MAX,
                    is_due: false,
                    is_listed: false,
                    closed: false,
                    silenced: false,
                    stalled: 0,
                    descriptors: Vec::new(),
                    truncated: false,
                })
            }
        };
        let mut readings = 0;
        let mut left = match until {
            // Whoever else holds its end, a grandchild say, may write for ever.
            Until::WhatItSent => sys::queued(reader.socket.as_fd()).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        while !reader.closed && left > 0 {
            readings += 1;
            if readings > READINGS && until == Until::OthersWait {
                // Others have their turn first; the socket is reported anew, for it is still
                // readable. Whoever waits for room in it must not be forgotten by
                // this.
                want_room(&self.reactor, reader.socket.as_fd(), key);
                return;
            }
            let space = reader.buffer.space();
            let len = space.len();
            // A reading ends behind a message that carries descriptors, whatever follows it
            // (unix(7)).
            let may_be_short = reader.stage != Stage::Ready;
            let n = sys::recv_with_fds(reader.socket.as_fd(), space).map(|received| {
                reader.descriptors.extend(received.fds);
                reader.truncated |= received.truncated;
                received.bytes
            });
            match n {
                Ok(0) => {
                    reader.closed = true;
                    self.hung_up(key, reader.stage);
                }
                Ok(n) => {
                    left -= n.min(left);
                    reader.buffer.filled(n);
                    driver.replies.clear(); // what a panic has left there is not this worker's
                    let result = take_frames(self, key, reader, &mut driver.replies);
                    reader.stalled = 0;
                    let is_cut = reader.stage == Stage::Ready && reader.buffer.rest() > 0;
                    if is_cut && driver.stall_at.is_none() {
                        driver.stall_at = Some(self.look_for_stalls_at(Instant::now()));
                    }
                    // A reply by the socket is one less in hand, and none in the ring. And a bell
                    // may be taken for a part of a frame that does not go on.
                    let rang = std::mem::take(&mut reader.rang);
                    let answered = driver.replies.iter().any(|told| !told.is_news());
                    if (rang || is_cut || answered) && !std::mem::replace(&mut reader.is_due, true)
                    {
                        driver.due.push(key);
                    }
                    let broken = self.replied(
                        key,
                        reader.pid,
                        &[],
                        &mut driver.replies,
                        &mut driver.settled,
                        &mut driver.answered,
                    );
                    if let Err(bad) = result.and(broken) {
                        (reader.closed, reader.silenced) = (true, true);
                        self.broke_protocol(key, reader.stage, reader.pid, bad);
                    }
                    if n < len && until == Until::OthersWait && !may_be_short {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // ECONNRESET: it ended with something of ours unread. Its end tells more.
                    reader.closed = true;
                    self.hung_up(key, reader.stage);
                }
            }
        }
    }

    /// Has the timer fire for [`Engine::look_for_stalls`]; gives when.
    fn look_for_stalls_at(&self, now: Instant) -> Instant {
        let at = now + STALL_LOOK;
        self.apply(|state, _| {
            state.stall_at = Some(at);
            state.timed = true;
        });
        at
    }

    /// Ends workers that do not go on with a frame. No answer takes that long to be written, unless
    /// the worker is stopped.
    fn look_for_stalls(&self, driver: &mut Driver) {
        if driver.stall_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        driver.stall_at = None;
        self.lock().stall_at = None;
        let cut = |(_, reader): &(&WorkerKey, &mut Reader)| {
            !reader.closed && reader.stage == Stage::Ready && reader.buffer.rest() > 0
        };
        let mut over = Vec::new();
        let mut is_any = false;
        for (key, reader) in driver.readers.iter_mut().filter(cut) {
            reader.stalled += u32::from(!is_stopped(reader.pid));
            if reader.stalled >= STALL_LOOKS {
                over.push(*key);
            }
            is_any = true;
        }
        for key in over {
            self.read(driver, key, Until::OthersWait);
            if let Some(reader) = driver.readers.get_mut(&key)
                && reader.stalled >= STALL_LOOKS
                && !reader.closed
            {
                (reader.closed, reader.silenced) = (true, true);
                let bad = Bad("it began a frame, and did not go on with it".into());
                self.broke_protocol(key, reader.stage, reader.pid, bad);
            }
        }
        if is_any && driver.stall_at.is_none() {
            driver.stall_at = Some(self.look_for_stalls_at(Instant::now()));
        }
    }

    /// Tells if all workers have waited for shared objects since the last look, with tasks queued.
    fn look_for_blocked_workers(&self) {
        let blocked = self.apply(|state, now| {
            if state.blocked.at.is_none_or(|at| now < at) {
                return None;
            }
            state.blocked.at = None; // set again as long as there is a backlog
            state.timed = true;
            state.blocked.on = self.feeds.is_any_open();
            let found = state.core.all_at_sync_tasks().map(|workers| {
                let look = |key: WorkerKey| {
                    let process = state.links.get(&key)?.process.as_ref()?;
                    let count = process.memory.waits().load(Ordering::Relaxed);
                    Some(((key, count), Arc::clone(&process.leases)))
                };
                workers.into_iter().filter_map(look).collect::<(Vec<_>, Vec<_>)>()
            });
            let (counts, leases) = found.unzip();
            if state.blocked.look(counts) { leases } else { None }
        });
        let Some(leases) = blocked else { return };
        let waits: BTreeMap<_, _> = leases
            .iter()
            .flat_map(|leases| leases.waits())
            .map(|(manager, object, kind, name)| ((manager, object), (kind, name)))
            .collect();
        let objects = waits
            .into_values()
            .map(|(kind, name)| SharedObject { kind: kinds::type_name(kind), name })
            .collect();
        self.feeds.tell(&WorkerEvent::Blocked { objects });
    }

    /// Takes in what lies in the outboxes of workers that have rung or ring late, and arms their
    /// doorbells. With `rearm` those of workers that have answered nothing as well.
    fn look_into_outboxes(&self, driver: &mut Driver, rearm: bool) {
        let mut due = std::mem::take(&mut driver.due);
        for key in due.drain(..) {
            if let Some(reader) = driver.readers.get_mut(&key) {
                reader.is_due = false;
                self.look_into_outbox(driver, key, true);
            }
        }
        due.append(&mut driver.due); // usually nothing; it keeps its memory
        driver.due = due;
        // The pool is awake anyway: so what others have committed needs no wake-up of its own.
        let mut moderated = std::mem::take(&mut driver.moderated);
        driver.look_in = None;
        moderated.retain(|key| {
            self.look_into_outbox(driver, *key, rearm);
            let Some(reader) = driver.readers.get_mut(key) else { return false };
            reader.is_listed = reader.is_moderated;
            if reader.is_listed {
                driver.look_in = driver.look_in.into_iter().chain([reader.look_in]).min();
            }
            reader.is_listed
        });
        driver.moderated = moderated; // all that was looked at stood there
        if !driver.due.is_empty() {
            self.tokens.wake_driver();
        }
    }

    /// Takes in what a worker has committed, and arms its doorbell; if nothing has come, only with
    /// `rearm`.
    fn look_into_outbox(&self, driver: &mut Driver, key: WorkerKey, mut rearm: bool) {
        for _ in 0..LOOKS {
            if let Some(reader) = driver.readers.get(&key)
                && !reader.intake.is_up_to_date(&reader.memory.ring())
            {
                reader.intake.wake(&reader.memory.ring());
            }
            let came = self.empty_outbox(driver, key);
            if came == Some(0) && !rearm {
                return;
            }
            let Some(reader) = driver.readers.get_mut(&key) else { return };
            reader.is_moderated = false;
            let Some(came) = came else { return };
            // Replies that find the ring full would go by the socket, one by one.
            let ring_bytes = reader.memory.ring_bytes() as usize;
            let room = if came > 0 { ring_bytes / 2 * came / driver.taken.len() } else { 1 };
            let (replies, look_in) = self.lock().core.arm(key, came, room);
            reader.look_in = look_in;
            reader.is_moderated = replies > 1;
            if reader.is_moderated && !std::mem::replace(&mut reader.is_listed, true) {
                driver.moderated.push(key);
            }
            if reader.intake.arm(&reader.memory.ring(), replies) {
                return;
            }
            rearm = true;
        }
        // It answers faster than its replies are taken in. Others have their turn.
        if let Some(reader) = driver.readers.get_mut(&key)
            && !std::mem::replace(&mut reader.is_due, true)
        {
            driver.due.push(key);
        }
    }

    /// Takes in what a worker has committed to its outbox, and says how many replies that were;
    /// `None`: it says nothing more.
    fn empty_outbox(&self, driver: &mut Driver, key: WorkerKey) -> Option<usize> {
        let reader = driver
            .readers
            .get_mut(&key)
            .filter(|reader| !reader.silenced && reader.stage == Stage::Ready)?;
        driver.taken.clear();
        driver.replies.clear(); // what a panic has left there is not this worker's
        let result = match reader.intake.take(&reader.memory.ring(), &mut driver.taken) {
            Ok(false) if reader.bells <= reader.boxed => return Some(0),
            Ok(false) => Ok(()),
            Ok(true) => take_replies(&driver.taken, self.config.frame_limit, &mut driver.replies),
            Err(bad) => Err(Bad(bad.to_string())),
        };
        let count = driver.replies.iter().map(|told| told.count() as usize).sum();
        reader.intake.took(count);
        reader.boxed += count as u64;
        // Each bell was read before the outbox, which then held what it rang for.
        let result = result.and_then(|()| match reader.bells <= reader.boxed {
            true => Ok(()),
            false => Err(Bad("it rang though there was nothing in its outbox".into())),
        });
        let broken = self.replied(
            key,
            reader.pid,
            &driver.taken,
            &mut driver.replies,
            &mut driver.settled,
            &mut driver.answered,
        );
        if let Err(bad) = result.and(broken) {
            (reader.closed, reader.silenced) = (true, true);
            self.broke_protocol(key, Stage::Ready, reader.pid, bad);
            return None;
        }
        Some(count)
    }

    fn hung_up(&self, key: WorkerKey, stage: Stage) {
        self.closed_its_side(key, if stage == Stage::Ready { HANG_UP_GRACE } else { END_GRACE });
    }

    /// A worker reads nothing that is sent to it now.
    pub(super) fn reads_no_more(&self, key: WorkerKey) {
        self.closed_its_side(key, HANG_UP_GRACE);
    }

    fn closed_its_side(&self, key: WorkerKey, grace: Duration) {
        self.apply(|state, now| {
            state.timed = true;
            if let Some(link) = state.links.get_mut(&key) {
                link.hung_up |= !link.doomed; // else it is our kill that closed it
            }
            state.core.hung_up(key, now + grace);
        });
    }

    fn broke_protocol(&self, key: WorkerKey, stage: Stage, pid: u32, Bad(reason): Bad) {
        let early = self
            .lock()
            .links
            .get(&key)
            .and_then(|link| link.process.as_ref()?.early_stderr.clone());
        let stderr = early.map(|file| standard::tail(&file)).unwrap_or_default();
        self.apply(|state, now| {
            if let Some(link) = state.links.get_mut(&key) {
                if stage == Stage::Ready {
                    link.bad_frame = Some(reason);
                } else {
                    link.failure.get_or_insert(Why::NotAWorker { pid, reason, stderr }.into());
                }
            }
            state.core.doom(key, now, &mut state.actions);
        });
    }

    /// Takes a batch of replies to the rules, and delivers them. `taken` is what was taken out of
    /// the outbox, if they come from there.
    fn replied(
        &self,
        key: WorkerKey,
        pid: u32,
        taken: &[u8],
        replies: &mut Vec<Told>,
        settled: &mut Vec<Settled>,
        answered: &mut Vec<Answered>,
    ) -> Result<(), Bad> {
        if replies.is_empty() {
            return Ok(());
        }
        for told in &*replies {
            // Before more is sent, which may name the same manager.
            if let Told::One(_, Err(Failed::Arguments { unattached: Some(manager), .. })) = told
                && let Some(leases) = self.leases(key)
            {
                leases.not_attached(*manager);
            }
        }
        let mut result = Ok(());
        // What an error that is tried again has named: taken over like any, and let go.
        let mut unwanted = Vec::new();
        let mut ended = Vec::new();
        let stranger = |id| Bad(format!("an answer to task {id}, which it was not to give"));
        let (mut readers, mut starts) = (Vec::new(), Vec::new());
        self.apply(|state, now| {
            let mut sum = 0;
            'all: for told in replies.drain(..) {
                let told = match told {
                    Told::One(id, Ok(Value { packet, news: Some(news), .. })) => {
                        let came = match news {
                            News::Item => take_item(state, key, id, packet)
                                .map(|reader| readers.extend(reader)),
                            News::Started(nanos) => {
                                let started = Started { pid, at: state.core.moment(nanos, now) };
                                let start = take_start(state, key, id);
                                start.map(|start| starts.push((start, started)))
                            }
                        };
                        if let Err(bad) = came {
                            result = Err(bad);
                            break;
                        }
                        continue;
                    }
                    told => told,
                };
                let (mut id, mut left, mut came) = match told {
                    Told::Row { id, count, frames } => (id, count, Reply::Row(frames)),
                    Told::One(id, outcome) => (id, 1, Reply::One(outcome)),
                };
                let answer = match &came {
                    Reply::One(Err(Failed::Panicked { .. })) => Answer::Panicked,
                    Reply::One(Err(Failed::Cancelled)) => Answer::Dropped,
                    Reply::One(Ok(Value { again: true, .. })) => Answer::Again,
                    _ => Answer::Final,
                };
                while left > 0 {
                    let Some((count, replied)) = state.core.replied_row(key, id, left, answer, now)
                    else {
                        result = Err(stranger(id));
                        break 'all;
                    };
                    let rest = came.split_off(taken, count, left);
                    match replied {
                        Replied::Item(task) => {
                            if let Some(cargo) = state.core.cargo_mut(task) {
                                answered.extend(Answered::new(cargo, id, count, came, taken));
                            }
                        }
                        Replied::Ended(cargo, _) if cargo.run().is_some() => {
                            answered.extend(Answered::new(&cargo, id, count, came, taken));
                            ended.push(cargo); // it may be the last of its map: it goes when the lock has been released
                        }
                        Replied::Ended(cargo, stop) => {
                            settled.push((cargo, came.of_one(taken), stop))
                        }
                        Replied::Again(task, stop) => {
                            let what = match came.of_one(taken) {
                                Ok(value) => {
                                    unwanted.extend(value.named);
                                    What::task_returned_error(pid, &value.packet)
                                }
                                Err(failed) => self.failure(pid, failed, stop),
                            };
                            if let Some(cargo) = state.core.cargo_mut(task) {
                                cargo.failed(TaskError::new(what, cargo.function));
                            }
                        }
                    }
                    (id, left, came) = (id + u64::from(count), left - count, rest);
                    sum += count;
                }
            }
            state.core.refill(key, sum, now, &mut state.actions);
        });
        replies.clear();
        for reader in readers {
            catch_user_panic(|| reader.wake());
        }
        for (start, started) in starts {
            catch_user_panic(|| start.tell(started));
        }
        for named in unwanted {
            if let Err(bad) = self.take_names(key, &named) {
                result = Err(bad);
            }
        }
        let (mut done, mut in_rows) = (0, 0);
        let mut outcome_of = |came: Result<Value, Failed>, stop, function| {
            let outcome = match came.map(|value| self.take_over(key, value)) {
                Ok(Ok(encoded)) => Ok(encoded),
                Ok(Err(Bad(reason))) => {
                    result = Err(Bad(reason.clone()));
                    Err(What::ProtocolViolation { pid, reason })
                }
                Err(failed) => Err(self.failure(pid, failed, stop)),
            };
            done += u64::from(outcome.is_ok());
            outcome.map_err(|what| TaskError::new(what, function))
        };
        for (cargo, came, stop) in settled.drain(..) {
            let outcome = outcome_of(came, stop, cargo.function);
            self.settle(cargo, outcome);
        }
        for Answered { inlet, function, results } in answered.drain(..) {
            let came = match results {
                Results::Block(count, block) => {
                    in_rows += u64::from(count);
                    Came::Block(block)
                }
                Results::One(place, came) => {
                    let outcome = outcome_of(came, None, function);
                    if let Err(error) = &outcome {
                        self.tally.failed(error.kind(), 1);
                    }
                    Came::One(place, outcome)
                }
            };
            catch_user_panic(|| inlet.put([came]));
        }
        self.tally.done(done + in_rows);
        result
    }

    /// Takes over the shared objects that a result names.
    fn take_over(
        &self,
        key: WorkerKey,
        Value { packet, named, .. }: Value,
    ) -> Result<Encoded, Bad> {
        let things = named.map(|named| self.take_names(key, &named)).transpose()?;
        Ok(Encoded { value: packet, things: things.map(Arc::new) })
    }

    /// What a worker was lent.
    fn leases(&self, key: WorkerKey) -> Option<Arc<Leases>> {
        let state = self.lock();
        Some(Arc::clone(&state.links.get(&key)?.process.as_ref()?.leases))
    }

    fn take_names(&self, key: WorkerKey, named: &Named) -> Result<Vec<Thing>, Bad> {
        let taken = self
            .leases(key)
            .ok_or_else(|| "objects that nobody lent it".to_owned())
            .and_then(|leases| leases.take(named));
        taken.map_err(|reason| Bad(format!("a result that names {reason}")))
    }

    fn failure(&self, pid: u32, failed: Failed, stop: Option<Stop>) -> What {
        match failed {
            Failed::Panicked { message, location, backtrace } => {
                What::Panicked { message, location, backtrace, pid, status: None }
            }
            Failed::Arguments { reason, .. } => What::ArgumentDecode { pid, reason },
            Failed::Result { reason } => What::ResultEncode { pid, reason },
            Failed::TooLarge => What::ResultTooLarge { pid, limit: self.config.frame_limit },
            Failed::Unknown => What::UnknownTask { pid: Some(pid) },
            Failed::NoRuntime { reason } => What::NoRuntime { pid, reason },
            Failed::Cancelled => match stop {
                Some(Stop::TimedOut(limit)) => timed_out(limit),
                Some(Stop::Close) => What::PoolClosed,
                _ => What::Cancelled,
            },
        }
    }

    /// The hello has come: keep the lifeline, and answer.
    fn welcome(
        &self,
        key: WorkerKey,
        hello: &Hello,
        lifeline: Option<PeerSocket>,
    ) -> Result<(), Bad> {
        match self.config.program {
            Some(_) => crate::worker::check_protocol(hello)?,
            None => crate::worker::check_hello(hello)?,
        }
        let memory = self
            .lock()
            .links
            .get(&key)
            .and_then(|link| link.process.as_ref())
            .map(|process| Arc::clone(&process.memory));
        let Some(memory) = memory else { return Ok(()) };
        // The first reply is to ring.
        Intake::default().arm(&memory.ring(), 1);
        let mut out = Vec::new();
        let welcome = Welcome {
            frame_limit: self.config.frame_limit as u32,
            depth: crate::worker::depth() + 1,
            init: self.config.init.is_some(),
            template: false,
            exit: self.config.exit.is_some(),
            slots: memory.slots(),
            ring: memory.ring_bytes(),
            name: self.config.name.clone(),
            limits: self.config.limits.clone(),
            single: None,
        };
        frame::write(&mut out, |out| message::control(out, kind::WELCOME, &welcome));

        let mut state = self.lock();
        let Some(Link { process: Some(process), out: outgoing, .. }) = state.links.get_mut(&key)
        else {
            return Ok(());
        };
        process.lifeline = lifeline;
        let (socket, early) = (Arc::clone(&process.socket), process.early_stderr.take());
        let stderr = process.streams.their_stderr.take();
        // The socket is empty and nobody else writes to it: the welcome goes at once, and whole.
        outgoing.busy = true;
        drop(state);
        // No further one is due. Before Linux 6.16 it comes, and breaks the protocol.
        let _ = sys::refuse_descriptors(socket.as_fd());
        let stderr = stderr.map_or_else(standard::stderr, Ok);
        let sent = stderr.and_then(|stderr| {
            sys::send_with_fds(
                socket.as_fd(),
                &[io::IoSlice::new(&out)],
                &[memory.fd(), stderr.as_fd()],
            )
        });
        drop(early);
        match sent {
            Ok(n) if n == out.len() => {}
            Ok(_) => return Err(Bad("it did not take the welcome".into())),
            // It has ended meanwhile: that will be told in its own words.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                return Ok(());
            }
            // Our own want of descriptors, say: no fault of the worker's.
            Err(error) => {
                self.start_refused(key, "answering a worker's hello", error);
                return Ok(());
            }
        }
        self.apply(|state, _| {
            state.timed = true;
            state.core.hello(key);
            if let Some(link) = state.links.get_mut(&key) {
                self.config
                    .init
                    .iter()
                    .chain(&self.config.exit)
                    .for_each(|hook| link.out.push_hook(&hook.frame, hook.things.clone()));
            }
        });
        self.flush(key);
        Ok(())
    }

    /// The system refuses what a started worker needs from us; it is killed.
    fn start_refused(&self, key: WorkerKey, step: &'static str, error: io::Error) {
        self.apply(|state, now| {
            if let Some(link) = state.links.get_mut(&key) {
                link.failure.get_or_insert(Error::spawn(step, error));
            }
            state.core.doom(key, now, &mut state.actions);
        });
    }

    /// Whether what becomes of this worker from now on is told as that of one that was ready.
    fn ready_for_work(&self, key: WorkerKey) -> bool {
        let (taken, doomed, pid) = self.apply(|state, now| {
            state.timed = true;
            let link = state.links.get(&key);
            let process = link.and_then(|link| link.process.as_ref());
            let pid = process.map(|process| process.child.pid());
            let doomed = link.is_some_and(|link| link.doomed);
            // Another program claims nothing in it.
            let process = process.filter(|_| self.config.program.is_none());
            let memory = process.map(|process| Arc::clone(&process.memory));
            (state.core.ready(key, memory, now, &mut state.actions), doomed, pid)
        });
        if !taken && doomed {
            return false; // its start has taken too long, say
        }
        self.tell_start(None);
        if let Some(pid) = pid {
            self.tally.started();
            self.feeds.tell(&WorkerEvent::Started { pid });
        }
        true
    }

    fn init_failed(&self, key: WorkerKey, pid: u32, failed: InitFailed) {
        let why = match failed {
            InitFailed::Error { message } => Why::InitError { pid, message },
            InitFailed::Panicked { message, location } => {
                Why::InitPanicked { pid, message, location }
            }
            InitFailed::NotForkable { reason } => Why::NotForkable { pid, reason },
        };
        self.apply(|state, now| {
            if let Some(link) = state.links.get_mut(&key) {
                link.failure.get_or_insert(why.into());
            }
            state.core.doom(key, now, &mut state.actions);
        });
    }

    // ---- the end of a process

    fn process_ended(&self, driver: &mut Driver, key: WorkerKey) {
        // It is given nothing more: what follows its last answers must not be charged to it.
        self.apply(|state, _| state.core.ending(key));
        // What it sent and committed before it ended still counts, all of it; only then its claims
        // are judged.
        self.read(driver, key, Until::WhatItSent);
        self.empty_outbox(driver, key);
        let child = self
            .lock()
            .links
            .get(&key)
            .and_then(|link| link.process.as_ref())
            .map(|process| Arc::clone(&process.child));
        let Some(child) = child else { return };
        let Some(exit) = child.try_reap() else {
            // Else its pidfd, which stays readable, would wake us again at once.
            self.reactor.modify(child.pidfd(), EpollFlags::empty(), token(key, ENDED));
            driver.unreaped.push(key);
            return;
        };
        let stage = driver.readers.remove(&key).map_or(Stage::Hello, |reader| reader.stage);
        let Some(link) = self.lock().links.remove(&key) else { return };
        let Some(process) = link.process.as_ref() else { return };
        self.reactor.delete(process.socket.as_fd());
        self.reactor.delete(process.child.pidfd());
        let note = process.memory.note().read().map(|note| match note {
            DeathNote::StackOverflow => Note::StackOverflow,
            DeathNote::OutOfMemory => Note::OutOfMemory,
            DeathNote::Panic { message, place } => Note::Panic { message, place },
        });
        // What we have not killed, the kernel may have.
        let note = match note {
            None if !link.doomed
                && exit.is_by(nix::libc::SIGKILL)
                && oom_kills::account_for(process.oom_kills) =>
            {
                Some(Note::OutOfMemory)
            }
            Some(Note::OutOfMemory) if !exit.is_by(nix::libc::SIGABRT) => None,
            note => note,
        };
        let stderr = process.streams.end();
        if stage == Stage::Ready {
            // Whatever else may have ended it meanwhile has a status of its own.
            let is_killed_for_silence = self.lock().core.why_ended(key)
                == Some(ExitReason::ProtocolViolation)
                && (exit.status.is_none() || exit.is_by(nix::libc::SIGKILL));
            let bad_frame = link.bad_frame.clone().or_else(|| {
                is_killed_for_silence.then(|| "it closed its socket, and did not end".into())
            });
            let loss =
                Arc::new(Loss { pid: exit.pid, status: exit.status, note, bad_frame, stderr });
            // First, since the pool may have ended with it.
            let by_itself = if loss.bad_frame.is_some() {
                ExitReason::ProtocolViolation
            } else {
                ExitReason::Died
            };
            self.tell_end(key, Some(exit.pid), by_itself, exit.status, None);
            let halted = self.apply(|state, now| {
                state.timed = true;
                let before = state.core.halted().is_some();
                state.core.exited(key, &loss, now, &mut state.actions);
                state.core.halted().filter(|_| !before).cloned()
            });
            if let Some(cause) = halted {
                self.feeds.tell(&WorkerEvent::GaveUp { cause });
            }
            self.tell_start(None);
        } else {
            // A process that the pool's end has killed while it started has not failed, unless it
            // had before.
            let called_off = self.lock().core.why_ended(key) == Some(ExitReason::Closed)
                && link.failure.is_none()
                && !link.timed_out
                && (exit.status.is_none() || exit.is_by(nix::libc::SIGKILL));
            let (cause, told) = if called_off {
                (Why::PoolClosed.into(), None)
            } else {
                let cause = self.why_start_failed(&link, process, stage, &exit, note, stderr);
                (cause.clone(), Some(cause))
            };
            self.tell_end(key, Some(exit.pid), ExitReason::StartFailed, exit.status, told);
            self.apply(|state, now| {
                state.timed = true;
                state.core.start_failed(key, cause.clone(), now, &mut state.actions);
            });
            self.tell_start(Some(cause));
        }
    }

    /// A worker has gone, by itself unless the rules know better.
    fn tell_end(
        &self,
        key: WorkerKey,
        pid: Option<u32>,
        by_itself: ExitReason,
        status: Option<ExitStatus>,
        cause: Option<Error>,
    ) {
        let why = self.lock().core.why_ended(key).unwrap_or(by_itself);
        self.tally.ended(why);
        self.feeds.tell(&WorkerEvent::Exited { pid, why, status, cause });
    }

    fn why_start_failed(
        &self,
        link: &Link,
        process: &Process,
        stage: Stage,
        exit: &Exit,
        note: Option<Note>,
        stderr: Option<Arc<str>>,
    ) -> Error {
        if let Some(failure) = &link.failure {
            return failure.clone();
        }
        let (pid, status) = (exit.pid, exit.status);
        let rules = &self.config.rules;
        let why = match (stage, link.timed_out) {
            (Stage::Hello, timed_out) => {
                let stderr =
                    process.early_stderr.as_deref().map(standard::tail).unwrap_or_default();
                if timed_out && link.hung_up {
                    Why::NotAWorker {
                        pid,
                        reason: "it closed its socket without a hello".into(),
                        stderr,
                    }
                } else if timed_out {
                    let limit = rules
                        .start_limit
                        .map_or(rules.hello_limit, |limit| limit.min(rules.hello_limit));
                    Why::HelloTimeout { pid, limit, stderr }
                } else {
                    Why::DiedAtStart { pid, status, stderr }
                }
            }
            (_, true) if link.hung_up => Why::NotAWorker {
                pid,
                reason: "it closed its socket in init".into(),
                stderr: String::new(),
            },
            (_, true) => Why::InitTimeout { pid, limit: rules.start_limit.unwrap_or_default() },
            (_, false) if self.config.init.is_none() => {
                let early = process.early_stderr.as_deref().map(standard::tail).unwrap_or_default();
                Why::DiedAtStart {
                    pid,
                    status,
                    stderr: stderr.map_or(early, |text| text.to_string()),
                }
            }
            (_, false) => match note {
                Some(Note::Panic { message, place }) => {
                    Why::InitPanicked { pid, message, location: Some(place) }
                }
                _ => Why::InitDied { pid, status, stderr },
            },
        };
        why.into()
    }
}

/// Puts an item of a task where its reader finds it; gives the reader, to be woken outside of the
/// lock.
fn take_item(
    state: &mut State,
    key: WorkerKey,
    id: u64,
    item: Packet,
) -> Result<Option<Waker>, Bad> {
    let items = state.core.in_hand(key, id).and_then(|cargo| cargo.yielded());
    let items =
        items.ok_or_else(|| Bad(format!("an item of task {id}, which it was not to send")))?;
    items
        .put(item)
        .map_err(|TooMany| Bad(format!("an item of task {id}, which had no credit for it")))
}

/// Those who wait for a task to begin, which is told once.
fn take_start(state: &mut State, key: WorkerKey, id: u64) -> Result<Start, Bad> {
    match state.core.in_hand(key, id).and_then(Cargo::start_mut) {
        Some(start) if start.is_due => {
            start.is_due = false;
            Ok(start.clone())
        }
        _ => Err(Bad(format!("the start of task {id}, which it was not to tell"))),
    }
}

impl Answered {
    /// The answer to so many items of a run from that of this number on.
    fn new(cargo: &Cargo, id: u64, count: u32, came: Reply, taken: &[u8]) -> Option<Self> {
        let (inlet, place) = cargo.item(id)?;
        let results = match came {
            Reply::Row(frames) => Results::Block(count, Block::new(place, &taken[frames])),
            Reply::One(came) => Results::One(place, came),
        };
        Some(Self { inlet: Arc::clone(inlet), function: cargo.function, results })
    }
}

impl Reply {
    /// Splits off what is behind the first `count` of `all` replies.
    fn split_off(&mut self, taken: &[u8], count: u32, all: u32) -> Self {
        let Self::Row(frames) = self else { return Self::Row(0..0) };
        let mut at = frames.end;
        if count < all {
            at = frames.start;
            for _ in 0..count {
                at = frame::boxed(taken, at).map_or(frames.end, |(_, next)| next);
            }
        }
        Self::Row(at..std::mem::replace(&mut frames.end, at))
    }

    /// The reply to a single task.
    fn of_one(self, taken: &[u8]) -> Result<Value, Failed> {
        match self {
            Self::One(outcome) => outcome,
            Self::Row(frames) => {
                let value = frame::boxed(taken, frames.start)
                    .and_then(|(body, _)| Some(&body[message::read_done(body)?.1..]));
                let packet = Packet::copy_from(value.unwrap_or_default());
                Ok(Value { packet, named: None, again: false, news: None })
            }
        }
    }
}

/// Takes whole frames out of a worker's buffer: replies are gathered, other messages are answered.
fn take_frames(
    engine: &Engine,
    key: WorkerKey,
    reader: &mut Reader,
    replies: &mut Vec<Told>,
) -> Result<(), Bad> {
    // At once, and not when the message is whole: until then any number could come.
    if reader.descriptors.len() > usize::from(reader.stage == Stage::Hello) {
        return Err(Bad("a descriptor that nobody asked for".into()));
    }
    while let Some(range) = reader.buffer.next_frame().map_err(|e| Bad(e.to_string()))? {
        let message = Message::new(reader.buffer.bytes(range.clone()))?;
        match (reader.stage, message.kind) {
            (
                Stage::Ready,
                kind::DONE | kind::FAILED | kind::DONE_NAMING | kind::AGAIN | kind::AGAIN_NAMING,
            ) => {
                let again = is_again(message.kind);
                let reply = match read_reply(message, reader.buffer.bytes(range.clone()))? {
                    (id, Ok((at, named))) => (
                        id,
                        Ok(Value {
                            packet: reader.buffer.take(range.start + at..range.end),
                            named,
                            again,
                            news: None,
                        }),
                    ),
                    (id, Err(failed)) => (id, Err(failed)),
                };
                replies.push(Told::One(reply.0, reply.1));
            }
            (Stage::Ready, kind::ITEM) => {
                let (id, at) = message::read_item_of_task(message)?;
                let packet = reader.buffer.take(range.start + at..range.end);
                let item = Value { packet, named: None, again: false, news: Some(News::Item) };
                replies.push(Told::One(id, Ok(item)));
            }
            (Stage::Ready, kind::STARTED) => {
                let mut message = message;
                let (id, nanos) = (message.uint()?, message.uint()?);
                message.end()?;
                let news = Some(News::Started(nanos));
                let value = Value { packet: Packet::default(), named: None, again: false, news };
                replies.push(Told::One(id, Ok(value)));
            }
            (Stage::Ready, kind::BELL) => {
                message.end()?;
                reader.rang = true;
                reader.bells += 1;
            }
            (Stage::Hello, kind::HELLO) => {
                let hello = message.map()?;
                if reader.truncated && reader.descriptors.is_empty() {
                    // It sent one, and we have no number left for it: no fault of the worker's.
                    engine.start_refused(
                        key,
                        "taking in a worker's lifeline",
                        nix::errno::Errno::EMFILE.into(),
                    );
                    continue;
                }
                let lifeline = reader.descriptors.pop().filter(|_| !reader.truncated);
                let lifeline = lifeline.map(crate::worker::check_lifeline).transpose()?;
                // Not every language can send one; what is lost without it is for that program to
                // know.
                if lifeline.is_none() && engine.config.program.is_none() {
                    return Err(Bad("a hello without its one descriptor".into()));
                }
                reader.stage = Stage::Init;
                reader.buffer.set_limit(engine.config.frame_limit);
                engine
                    .welcome(key, &hello, lifeline)
                    .inspect_err(|_| reader.stage = Stage::Hello)?;
            }
            (Stage::Init, kind::READY) => {
                message.end()?;
                reader.stage = if engine.ready_for_work(key) { Stage::Ready } else { Stage::Init };
            }
            (Stage::Init, kind::INIT_FAILED) => engine.init_failed(key, reader.pid, message.map()?),
            (_, other) => return Err(Bad(format!("a message of kind {other} out of its place"))),
        }
    }
    message::check_begun(reader.buffer.begun())
}

/// Takes the replies out of what lay in an outbox: whole frames, each padded to a multiple of 8
/// bytes.
pub(super) fn take_replies(bytes: &[u8], limit: usize, replies: &mut Vec<Told>) -> Result<(), Bad> {
    let mut at = 0;
    while bytes.len() - at >= frame::HEAD {
        let boxed = frame::boxed(bytes, at).filter(|(body, _)| body.len() <= limit);
        let (body, next) = boxed.ok_or_else(|| {
            let left = bytes.len() - at;
            Bad(format!(
                "a frame that is longer than the {left} bytes of its outbox, or than allowed"
            ))
        })?;
        let next = next.min(bytes.len());
        if let Some((number, _)) = message::read_done(body) {
            match replies.last_mut() {
                Some(Told::Row { id, count, frames })
                    if frames.end == at && number.checked_sub(*id) == Some(u64::from(*count)) =>
                {
                    *count += 1;
                    frames.end = next;
                }
                _ => replies.push(Told::Row { id: number, count: 1, frames: at..next }),
            }
            at = next;
            continue;
        }
        let message = Message::new(body)?;
        if !matches!(
            message.kind,
            kind::DONE | kind::FAILED | kind::DONE_NAMING | kind::AGAIN | kind::AGAIN_NAMING
        ) {
            return Err(Bad(format!("a message of kind {} in an outbox", message.kind)));
        }
        let again = is_again(message.kind);
        let (id, outcome) = read_reply(message, body)?;
        let outcome = outcome.map(|(value, named)| Value {
            packet: Packet::copy_from(&body[value..]),
            named,
            again,
            news: None,
        });
        replies.push(Told::One(id, outcome));
        at = next;
    }
    Ok(())
}

fn is_again(kind: u8) -> bool {
    matches!(kind, kind::AGAIN | kind::AGAIN_NAMING)
}

/// The number of a task that was answered, and where in the body its result begins and what it
/// names, or why it has none.
#[expect(clippy::type_complexity, reason = "it is taken apart at once")]
fn read_reply(
    mut message: Message<'_>,
    body: &[u8],
) -> Result<(u64, Result<(usize, Option<Named>), Failed>), Bad> {
    let id = message.uint()?;
    let naming = matches!(message.kind, kind::DONE_NAMING | kind::AGAIN_NAMING);
    if message.kind == kind::FAILED {
        return Ok((id, Err(message.map()?)));
    }
    match message.rest() {
        (1, at) if !naming => Ok((id, Ok((at, None)))),
        (2, at) if naming => {
            let (named, len) =
                Named::read(&body[at..]).map_err(|e| Bad(format!("the names of a result: {e}")))?;
            Ok((id, Ok((at + len, Some(named)))))
        }
        _ => Err(Bad("a result that is not one value".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        let start = frame::begin(out);
        write(out);
        frame::finish(out, start);
        out.resize(out.len().next_multiple_of(8), 0);
    }

    #[test]
    fn plain_results_whose_numbers_follow_each_other_are_rows_that_can_be_cut() {
        let mut taken = Vec::new();
        for id in [5, 6, 7, 127, 128, 129, 131] {
            framed(&mut taken, |out| {
                message::done(out, id);
                out.extend(vec![id as u8; id as usize % 5]);
            });
        }
        framed(&mut taken, |out| message::failed(out, 132, &Failed::TooLarge));
        framed(&mut taken, |out| message::done(out, 133));
        let mut replies = Vec::new();
        take_replies(&taken, 1 << 10, &mut replies).expect("they are replies");
        let told: Vec<_> = replies
            .iter()
            .map(|told| match told {
                Told::Row { id, .. } => (*id, told.count(), true),
                Told::One(id, _) => (*id, told.count(), false),
            })
            .collect();
        let expected =
            [(5, 3, true), (127, 3, true), (131, 1, true), (132, 1, false), (133, 1, true)];
        assert_eq!(told, expected);

        let Told::Row { frames, .. } = replies.swap_remove(1) else { unreachable!() };
        let mut row = Reply::Row(frames);
        let rest = row.split_off(&taken, 1, 3);
        let Reply::Row(frames) = rest else { unreachable!() };
        let mut block = Block::new(40, &taken[frames]);
        assert_eq!(block.next(), Some(&[128; 3][..]));
        assert_eq!(block.next(), Some(&[129; 4][..]));
        assert_eq!(block.next(), None);
        assert_eq!(block.place, 42);
        let value = row.of_one(&taken).expect("a value");
        assert_eq!(*value.packet, [127; 2]);
    }

    #[test]
    fn what_is_no_whole_reply_in_an_outbox_is_refused() {
        let mut taken = Vec::new();
        framed(&mut taken, |out| message::done(out, 5));
        let whole = taken.len();
        framed(&mut taken, |out| message::done(out, 6));
        for (bytes, limit) in [(&taken[..whole + 5], 1 << 10), (&taken[..], 2)] {
            take_replies(bytes, limit, &mut Vec::new()).expect_err("it is cut off, or too long");
        }
    }
}
