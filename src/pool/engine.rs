//! The machine behind a [`Pool`](crate::Pool): the scheduler's rules under one short lock, and the
//! hands that do what they say.
//!
//! Every thread with news (a caller with a task, the driver with a reply, the supervisor with a
//! started process) enters the rules by [`Engine::apply`], and afterwards, without the lock, does what came
//! out of it. So a submission reaches the worker's socket on the caller's thread, with no hop.
//!
//! The other half, what happens at the descriptors, is in `driver.rs`.

use super::blocked::{Blocked, LOOK};
use super::capture::Capture;
use super::core::{
    Action, Call, Carried, Clock, Core, Fate, Limit, Memory, Mode, Refused, TaskKey, WorkerKey,
};
use super::driver::{self, Driver};
use super::events::{Events, Feeds};
use super::launch;
use super::link::{Chunk, Link};
use super::reply::{Came, Cargo, Extra, Inlet, Outcome, Reply, Things};
use super::run::Run;
use super::shutdown::ShutdownReport;
use super::spec::{Config, Room, TaskSpec, Ticket};
use super::started::{Start, Started};
use super::stats::{Stats, Tally};
use super::tokens::Tokens;
use super::yielded::Wake;
use crate::error::{Error, TaskError, What, Why};
use crate::lock::Lock;
use crate::panics::catch_user_panic;
use crate::process::{WorkerMemory, fork, resident, sys};
use crate::reactor::launcher::Launch;
use crate::reactor::{self, Deadline, Pass, Reactor, Source, Token, supervisor};
use crate::sync::named::{for_call, write_names};
use crate::template::{Nursery, Template};
use crate::wire::claim::{Claim, Claims, Progress};
use crate::wire::message::Callee;
use crate::wire::packet::Packet;
use crate::wire::value::names;
use crate::wire::{frame, message};
use crate::worker;
use nix::sys::epoll::EpollFlags;
use nix::sys::timerfd::TimerFd;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, watch};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// See [`Engine::run_bytes`]. A run of twice as many is not a large frame.
const RUN_BYTES: usize = 16 << 10;

/// A worker that keeps to the protocol leaves no more words of credit unread than it has tasks in
/// hand, each of which waits for one.
const UNREAD_MAX: usize = 1 << 16;

/// News of starts, for those who wait for `ready()`.
#[derive(Clone, Debug, Default)]
pub(crate) struct StartNews {
    /// Counts failed starts.
    failures: u64,
    last: Option<Error>,
}

/// One pool.
pub(crate) struct Engine {
    pub(super) config: Config,
    /// Held only to enter the rules; never over a system call, user code, or an await.
    state: Lock<State>,
    /// What the workers are forked from, until the pool has ended.
    template: Lock<Option<Template>>,
    /// Reads what the workers print, if somebody wants it.
    pub(super) capture: Option<Capture>,
    pub(super) reactor: Reactor,
    /// Bounds the time for which replies wait, see `driver.rs`.
    pub(super) moderation: TimerFd,
    pub(super) tokens: Arc<Tokens>,
    /// Held by the thread that drives; none waits for it.
    pub(super) driver: Lock<Driver>,
    /// No runtime drives it (any more).
    alone: AtomicBool,
    runtime: Option<tokio::runtime::Id>,
    next_id: AtomicU64,
    room: Option<Arc<Semaphore>>,
    starts: watch::Sender<StartNews>,
    pub(super) tally: Tally,
    pub(super) feeds: Feeds,
    this: Weak<Self>,
    /// Cancelled when the pool takes no more tasks.
    closing: CancellationToken,
    ended: watch::Sender<bool>,
}

impl Memory for Arc<WorkerMemory> {
    fn claims(&self) -> Claims<'_> {
        WorkerMemory::claims(self)
    }
}

/// What the lock protects.
#[derive(Debug)]
pub(super) struct State {
    pub(super) core: Core<Cargo, Arc<WorkerMemory>>,
    pub(super) actions: Vec<Action<Cargo>>,
    pub(super) links: HashMap<WorkerKey, Link>,
    /// Workers claim what they begin: they are not another program.
    has_claims: bool,
    /// The next deadline may have changed.
    pub(super) timed: bool,
    pub(super) deadline: Deadline,
    /// When the driver looks at frames that have not come whole.
    pub(super) stall_at: Option<Instant>,
    /// When descriptors that were not taken are sent again.
    held_at: Option<Instant>,
    pub(super) blocked: Blocked,
}

/// What is to be done when the lock has been released.
#[derive(Default)]
struct Todo {
    /// Workers to whom nobody writes yet. One is the rule: it costs no allocation.
    flush: Option<WorkerKey>,
    flush_more: Vec<WorkerKey>,
    others: Vec<Action<Cargo>>,
    /// Places in the backlog that have become free: to give one back may wake somebody.
    rooms: Vec<OwnedSemaphorePermit>,
    deadline: Option<Deadline>,
    /// Those who wait for workers should look again.
    staff_changed: bool,
    /// The driver must arm doorbells anew.
    rearm: bool,
    /// Tasks that have begun, for those who wait for that.
    starts: Vec<(Start, Started)>,
    /// Tasks that wait for credit, and are asked to stop.
    wakes: Vec<Wake>,
    /// Only to be dropped, see `Outgoing`.
    gone: Vec<Chunk>,
}

impl Engine {
    /// A pool, without any process.
    pub(crate) fn new(config: Config, template: Option<Template>) -> Result<Arc<Self>, Error> {
        match config.program {
            Some(_) => worker::check_host()?,
            None => worker::check_program()?,
        }
        supervisor::start().map_err(|e| Error::spawn("starting the supervisor thread", e))?;
        let reactor = Reactor::new()
            .map_err(|e| Error::spawn("making the pool's epoll set and its timer", e))?;
        let moderation = reactor::new_timer()
            .map_err(|e| Error::spawn("making a timer of the pool", e.into()))?;
        let capture = Capture::start(&config.stdout, &config.stderr);
        let capture = capture
            .map_err(|e| Error::spawn("starting the thread that reads what workers print", e))?;
        let tokens = Tokens::new().map_err(|e| Error::spawn("making the pool's eventfd", e))?;
        driver::register(&reactor, &moderation, &tokens)
            .map_err(|e| Error::spawn("registering the pool's timer and its eventfd", e))?;
        let runtime = tokio::runtime::Handle::try_current().ok();
        let clock = Clock { moment: Instant::now(), nanos: sys::monotonic_nanos() };
        let engine = Arc::new_cyclic(|this| Self {
            state: Lock::new(State {
                core: Core::new(config.rules.clone(), clock),
                actions: Vec::new(),
                links: HashMap::new(),
                has_claims: config.program.is_none(),
                timed: false,
                deadline: Deadline::default(),
                stall_at: None,
                held_at: None,
                blocked: Blocked::default(),
            }),
            template: Lock::new(template),
            capture,
            reactor,
            moderation,
            tokens: Arc::new(tokens),
            driver: Lock::new(Driver::default()),
            alone: AtomicBool::new(runtime.is_none()),
            runtime: runtime.as_ref().map(tokio::runtime::Handle::id),
            next_id: AtomicU64::new(1),
            room: config.queue_limit.map(|limit| Arc::new(Semaphore::new(limit))),
            starts: watch::Sender::new(StartNews::default()),
            tally: Tally::default(),
            feeds: Feeds::new(),
            this: this.clone(),
            closing: CancellationToken::new(),
            ended: watch::Sender::new(false),
            config,
        });
        if let Some(runtime) = runtime {
            let drive = driver::drive(Arc::clone(&engine))
                .map_err(|e| Error::spawn("watching the pool's epoll descriptor", e))?;
            runtime.spawn(drive);
        }
        supervisor::watch(Arc::clone(&engine) as Arc<dyn Source>);
        Ok(engine)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Whether this process is a forked copy of the one that has the pool.
    pub(crate) fn is_forked_copy() -> bool {
        fork::is_forked_copy()
    }

    // ---- submission

    /// Hands in a task: encodes it, and sends it on if a worker has room. A ticket without a key:
    /// it has been settled already.
    pub(crate) fn submit(
        &self,
        task: &TaskSpec,
        encode: impl FnOnce(&mut Vec<u8>, usize) -> Result<(), What>,
        reply: Reply,
        room: Room,
    ) -> Ticket {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let refuse = |reply: Reply, what| {
            let error = TaskError::new(what, task.function);
            self.tally.failed(error.kind(), 1);
            reply.settle(Err(error));
            Ticket { id, key: None }
        };
        if fork::is_forked_copy() {
            // Nothing is counted in the copy.
            reply.settle(Err(TaskError::new(What::Forked, task.function)));
            return Ticket { id, key: None };
        }
        if matches!(task.callee, Callee::Name(_)) != self.config.program.is_some() {
            return refuse(reply, What::UnknownTask { pid: None });
        }
        if task.token.as_ref().is_some_and(|token| token.is_cancelled()) {
            return refuse(reply, What::Cancelled);
        }
        let room = match (&self.room, room) {
            (Some(semaphore), Room::Needed) => match Arc::clone(semaphore).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(why) => {
                    let what = match why {
                        TryAcquireError::NoPermits => {
                            What::QueueFull { limit: self.config.queue_limit.unwrap_or_default() }
                        }
                        TryAcquireError::Closed => What::PoolClosed,
                    };
                    return refuse(reply, what);
                }
            },
            (_, Room::Held(permit)) => permit,
            _ => None,
        };
        let (frame, things) = match self.encode(id, task, encode) {
            Ok(encoded) => encoded,
            Err(what) => return refuse(reply, what),
        };
        let large = frame.len() > driver::LARGE;
        let token = task.token.as_ref().map(|token| self.tokens.register(token));
        let watched = token.as_ref().map(|token| token.number());
        let cargo =
            Cargo { frame, reply, function: task.function, extra: Extra::of(token, things), room };
        #[expect(
            clippy::result_large_err,
            reason = "a refused task is given back whole, and is rare"
        )]
        let key = self.apply(|state, now| {
            let call = Call { cargo, id, mode: task.mode, large, options: task.options.clone() };
            state.core.submit(call, now, &mut state.actions)
        });
        match key {
            Ok(key) => {
                if watched.is_some_and(|number| self.tokens.arm(number, key)) {
                    self.abort(key);
                }
                Ticket { id, key: Some(key) }
            }
            Err(Refused(cargo, fate)) => {
                self.settle_by(cargo, fate);
                Ticket { id, key: None }
            }
        }
    }

    /// How many items a run should have now, of a map that has so many in flight, and of which so
    /// many have come; at most 1: they go one by one.
    pub(crate) fn run_length(&self, task: &TaskSpec, in_flight: usize, came: usize) -> usize {
        let goes_singly = task.mode == Mode::Async
            || task.options.is_some()
            || task.token.is_some()
            || self.config.program.is_some()
            || self.config.rules.policy.max_tasks.is_some();
        if goes_singly || fork::is_forked_copy() {
            return 1;
        }
        #[cfg(test)]
        if let Some(length) = self.config.run_length {
            return length;
        }
        // Of a map that has just begun nobody knows how long its items take.
        self.lock().core.run_length(in_flight).min(1 + came / 4)
    }

    /// So many bytes of arguments are enough for a run, and for one item of it.
    pub(crate) fn run_bytes(&self) -> usize {
        RUN_BYTES.min(self.config.frame_limit / 4)
    }

    /// Hands in a run: so many items of a map of which [`run_length`](Self::run_length) says that
    /// they may go together. `bytes` are their arguments, as a frame has them; the first has
    /// this place in the input.
    pub(crate) fn submit_run(
        &self,
        task: &TaskSpec,
        bytes: &[u8],
        items: u32,
        inlet: &Arc<Inlet>,
        place: u64,
    ) {
        let Callee::Index(index) = task.callee else {
            unreachable!("other programs are given no runs")
        };
        if fork::is_forked_copy() {
            let forked = || Err(TaskError::new(What::Forked, task.function));
            catch_user_panic(|| {
                inlet.put((place..place + u64::from(items)).map(|place| Came::One(place, forked())))
            });
            return;
        }
        let id = self.next_id.fetch_add(u64::from(items), Ordering::Relaxed);
        let mut frame = Vec::with_capacity(bytes.len() + 64);
        frame::write(&mut frame, |frame| {
            message::run(frame, id, task.flags, index, items as u16);
            frame.extend_from_slice(bytes);
        });
        let (reply, extra) =
            (Reply::Stream(Arc::clone(inlet), place), Extra::of_run(id, Run::new(items)));
        let cargo = Cargo {
            frame: Packet::from(&mut frame),
            reply,
            function: task.function,
            extra: Some(extra),
            room: None,
        };
        #[expect(
            clippy::result_large_err,
            reason = "a refused task is given back whole, and is rare"
        )]
        let taken = self.apply(|state, now| {
            let call = Call { cargo, id, mode: Mode::Sync, large: false, options: None };
            state.core.submit(call, now, &mut state.actions)
        });
        if let Err(Refused(cargo, fate)) = taken {
            self.settle_by(cargo, fate);
        }
    }

    fn encode(
        &self,
        id: u64,
        task: &TaskSpec,
        encode: impl FnOnce(&mut Vec<u8>, usize) -> Result<(), What>,
    ) -> Result<(Packet, Things), What> {
        thread_local! {
            static SCRATCH: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
        }
        // Taken out, not borrowed: an argument's own code may submit a task.
        let mut out = SCRATCH.try_with(std::cell::Cell::take).unwrap_or_default();
        out.clear();
        let start = frame::begin(&mut out);
        let timed = task.options.as_ref().is_some_and(|options| options.timeout.is_some());
        let flags = task.flags | if timed { message::FLAG_TIMED } else { 0 };
        message::call(&mut out, id, flags, task.callee, task.arity);
        let args = out.len();
        let left = self.config.frame_limit.saturating_sub(args - start);
        let (encoded, things) = names::collecting(|| encode(&mut out, left));
        let result = encoded.and_then(|()| {
            if things.is_empty() {
                frame::finish(&mut out, start);
                return Ok((Packet::from(&mut out), None));
            }
            if matches!(task.callee, Callee::Name(_)) {
                return Err(What::ArgumentEncode(
                    "shared objects cannot be handed to another program".into(),
                ));
            }
            // It is known only now that there are names, which stand before the arguments.
            let mut naming = Vec::with_capacity(out.len() + 32 * things.len());
            let start = frame::begin(&mut naming);
            message::call(
                &mut naming,
                id,
                flags | message::FLAG_NAMES,
                task.callee,
                task.arity + 1,
            );
            let too_large = |_| What::ArgumentTooLarge { limit: self.config.frame_limit };
            write_names(&things, &mut naming, start + self.config.frame_limit)
                .map_err(too_large)?;
            naming.extend_from_slice(&out[args..]);
            if naming.len() - start > self.config.frame_limit {
                return Err(What::ArgumentTooLarge { limit: self.config.frame_limit });
            }
            frame::finish(&mut naming, start);
            Ok((Packet::from(&mut naming), Some(Arc::new(for_call(things)))))
        });
        if out.capacity() <= driver::LARGE {
            let _ = SCRATCH.try_with(|scratch| scratch.set(out)); // the memory of a large one is not kept
        }
        // The caller is told the limit that was set, not what the frame's head had left of it.
        result.map_err(|what| match what {
            What::ArgumentTooLarge { .. } => {
                What::ArgumentTooLarge { limit: self.config.frame_limit }
            }
            what => what,
        })
    }

    /// Waits for a place in the backlog. `None`: the pool has none, or is closed.
    pub(crate) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        if fork::is_forked_copy() {
            return None; // `submit` says why
        }
        Arc::clone(self.room.as_ref()?).acquire_owned().await.ok()
    }

    // ---- tasks in flight

    pub(crate) fn abort(&self, key: TaskKey) {
        if !fork::is_forked_copy() {
            self.apply(|state, now| state.core.abort(key, now, &mut state.actions));
        }
    }

    /// Aborts whatever an abandoned `Results` still has in flight.
    pub(crate) fn abort_all_of(&self, inlet: &Arc<Inlet>) {
        if !fork::is_forked_copy() {
            self.apply(|state, now| {
                state.core.abort_where(|cargo| cargo.reply.is_of(inlet), now, &mut state.actions)
            });
        }
    }

    /// What tells when a task begins to run. `None`: it has ended.
    pub(crate) fn watch_start(&self, key: TaskKey) -> Option<watch::Receiver<Option<Started>>> {
        if fork::is_forked_copy() {
            return None;
        }
        let now = Instant::now();
        let mut state = self.lock();
        let worker = state.core.worker_of(key)?;
        let progress = state.core.watch(key);
        let pid = worker
            .and_then(|worker| state.links.get(&worker)?.process.as_ref())
            .map(|process| process.child.pid());
        let at = state.core.noted_start(key, now);
        let start = state.core.cargo_mut(key)?.start();
        let news = start.subscribe();
        let told = match (progress, pid) {
            (Some(Progress::Queued), _) => {
                start.is_due = true;
                None
            }
            // It has begun, and its worker was not asked to tell before.
            (Some(_), Some(pid)) if !start.is_due && start.told() != Some(pid) => {
                Some((start.clone(), Started { pid, at }))
            }
            _ => None,
        };
        drop(state);
        if let Some((start, started)) = told {
            catch_user_panic(|| start.tell(started));
        }
        Some(news)
    }

    /// Wakes a task that waits for credit, and has some now.
    pub(crate) fn wake_sender(&self, key: Option<TaskKey>, wake: &Wake) {
        if fork::is_forked_copy() {
            return;
        }
        wake_thread(wake);
        let Some(key) = key.filter(|_| wake.waiting.future) else { return };
        let mut state = self.lock();
        let (Some(Some(worker)), Some(id)) = (state.core.worker_of(key), state.core.id_of(key))
        else {
            return;
        };
        let Some(link) = state.links.get_mut(&worker) else { return };
        let mut out = Vec::new();
        let start = frame::begin(&mut out);
        message::ask(&mut out, id);
        frame::finish(&mut out, start);
        link.out.push(&Packet::from(&mut out));
        link.out.unread += 1;
        let reads = link.out.unread <= UNREAD_MAX;
        let is_busy = std::mem::replace(&mut link.out.busy, true);
        drop(state);
        if !is_busy {
            self.flush(worker);
        }
        if !reads {
            self.apply(|state, now| {
                if let Some(link) = state.links.get_mut(&worker) {
                    let reason = "it does not read that its tasks may send more items";
                    link.bad_frame.get_or_insert_with(|| reason.into());
                }
                state.core.doom(worker, now, &mut state.actions);
            });
        }
    }

    /// Whether the task has not ended.
    pub(crate) fn is_open(&self, key: TaskKey) -> bool {
        !fork::is_forked_copy() && self.lock().core.worker_of(key).is_some()
    }

    /// The process that has the task, if one has.
    pub(crate) fn worker_pid(&self, key: TaskKey) -> Option<u32> {
        if fork::is_forked_copy() {
            return None;
        }
        let state = self.lock();
        let worker = state.core.worker_of(key)??;
        state.links.get(&worker)?.process.as_ref().map(|process| process.child.pid())
    }

    /// How many tasks keep every worker at work.
    pub(crate) fn appetite(&self, mode: Mode) -> usize {
        if fork::is_forked_copy() {
            return 1; // it will be refused
        }
        self.lock().core.appetite(mode)
    }

    // ---- the pool's life

    /// Starts all workers, and waits until they are ready.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        if fork::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        self.apply(|state, now| state.core.revive(now, &mut state.actions));
        let mut news = self.starts.subscribe();
        let failures = news.borrow_and_update().failures;
        loop {
            self.attend();
            // Before the look, or what comes between the two would be taken for seen.
            let latest = news.borrow_and_update().clone();
            {
                let state = self.lock();
                if state.core.is_closed() {
                    return Err(Why::PoolClosed.into());
                }
                if state.core.all_ready() {
                    return Ok(());
                }
                if let Some(cause) = state.core.halted() {
                    return Err(cause.clone());
                }
            }
            if let (true, Some(cause)) = (latest.failures > failures, latest.last) {
                return Err(cause);
            }
            // Each time: a worker that ends meanwhile is not replaced as long as another one is
            // idle.
            self.apply(|state, now| state.core.start_all(now, &mut state.actions));
            // The sender lives in `self`; the pool's closing is news, too.
            let _ = news.changed().await;
        }
    }

    /// Has every worker replaced, and waits until that is done.
    pub(crate) async fn recycled(&self, generation: Result<u64, Error>) -> Result<(), Error> {
        let generation = generation?;
        let mut news = self.starts.subscribe();
        let failures = news.borrow_and_update().failures;
        loop {
            self.attend();
            let latest = news.borrow_and_update().clone();
            {
                let state = self.lock();
                if !state.core.stands(generation) {
                    return Ok(());
                }
                if state.core.is_closed() {
                    return Err(Why::PoolClosed.into());
                }
                if let Some(cause) = state.core.halted() {
                    return Err(cause.clone());
                }
            }
            if let (true, Some(cause)) = (latest.failures > failures, latest.last) {
                return Err(cause);
            }
            let _ = news.changed().await;
        }
    }

    /// Begins to replace every worker; gives what [`Engine::recycled`] waits for.
    pub(crate) fn recycle(&self) -> Result<u64, Error> {
        self.manage(|state, now| state.core.recycle(now, &mut state.actions))
    }

    /// There are to be so many workers from now on.
    pub(crate) fn resize(&self, min: usize, max: usize) -> Result<(), Error> {
        self.manage(|state, now| state.core.resize(min, max, now, &mut state.actions))
    }

    fn manage<R>(&self, change: impl FnOnce(&mut State, Instant) -> R) -> Result<R, Error> {
        if fork::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        self.apply(|state, now| {
            if state.core.is_closed() {
                return Err(Why::PoolClosed.into());
            }
            state.timed = true;
            Ok(change(state, now))
        })
    }

    /// How many workers there are to be at most.
    pub(crate) fn workers(&self) -> usize {
        if fork::is_forked_copy() {
            self.config.rules.workers
        } else {
            self.lock().core.workers_max()
        }
    }

    /// Takes no more tasks; those that are here run to their end, but not beyond the limit.
    pub(crate) fn drain(&self, limit: Option<Duration>) {
        self.close(|state, now| match limit.and_then(|limit| now.checked_add(limit)) {
            Some(until) => state.core.drain_by(until, now, &mut state.actions),
            None => state.core.drain(now, &mut state.actions),
        });
    }

    /// Ends everything now.
    pub(crate) fn kill(&self) {
        self.close(|state, now| state.core.kill(now, &mut state.actions));
    }

    fn close(&self, how: impl FnOnce(&mut State, Instant)) {
        if fork::is_forked_copy() {
            return;
        }
        if let Some(room) = &self.room {
            catch_user_panic(|| room.close());
        }
        self.apply(how);
        // Only now: a stream that is woken must find its items refused.
        catch_user_panic(|| self.closing.cancel());
        catch_user_panic(|| self.starts.send_modify(|_| {}));
        self.attend();
    }

    /// Aborts what has not begun; says how many tasks that were.
    pub(crate) fn abort_unbegun(&self) -> usize {
        if fork::is_forked_copy() {
            return 0;
        }
        self.apply(|state, now| state.core.abort_unbegun(now, &mut state.actions))
    }

    pub(crate) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// How it stands, and what it has done.
    pub(crate) fn stats(&self) -> Stats {
        if fork::is_forked_copy() {
            return Stats::default();
        }
        let mut stats = self.lock().core.census();
        self.tally.fill(&mut stats);
        stats
    }

    pub(crate) fn events(&self) -> Events {
        if fork::is_forked_copy() {
            return Feeds::none();
        }
        let events = self.feeds.subscribe(self.this.clone());
        self.apply(|state, _| state.blocked.on = true);
        events
    }

    /// Which tasks the end has cut off.
    pub(crate) fn cut_off(&self) -> ShutdownReport {
        ShutdownReport::of(self.lock().core.cut_off())
    }

    /// Whether every task would be refused: the pool was closed, or this is a forked copy.
    pub(crate) fn takes_nothing(&self) -> bool {
        fork::is_forked_copy() || self.closing.is_cancelled()
    }

    /// Waits until the pool takes no more tasks.
    pub(crate) fn closing(&self) -> WaitForCancellationFutureOwned {
        self.closing.clone().cancelled_owned()
    }

    /// Somebody waits. If it is from outside the pool's runtime, the supervisor is told.
    pub(crate) fn attend(&self) {
        if self.runtime.is_some()
            && tokio::runtime::Handle::try_current().map(|handle| handle.id()).ok() != self.runtime
        {
            supervisor::attend(self);
        }
    }

    /// As [`Engine::attend`], for a wait that blocks its thread, and perhaps the runtime with it.
    pub(crate) fn attend_blocking(&self) {
        supervisor::attend(self);
    }

    /// The pool's runtime has gone.
    pub(super) fn lost_runtime(&self) {
        self.alone.store(true, Ordering::Release);
        supervisor::look(self);
    }

    // ---- entering the rules

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Enters the rules with some news, and then does what they say.
    pub(super) fn apply<R>(&self, news: impl FnOnce(&mut State, Instant) -> R) -> R {
        let now = Instant::now();
        let mut state = self.lock();
        let result = news(&mut state, now);
        let todo = state.sort(now);
        drop(state);
        self.perform(todo);
        result
    }

    fn perform(&self, todo: Todo) {
        drop(todo.gone);
        for room in todo.rooms {
            catch_user_panic(|| drop(room));
        }
        todo.wakes.iter().for_each(wake_thread);
        for (start, started) in todo.starts {
            catch_user_panic(|| start.tell(started));
        }
        for key in todo.flush.into_iter().chain(todo.flush_more) {
            self.flush(key);
        }
        for action in todo.others {
            match action {
                Action::Start(key) => launch::order(self.this.upgrade(), key),
                Action::Kill(key) | Action::TimeOut(key) => {
                    self.kill_worker(key, matches!(action, Action::TimeOut(_)))
                }
                Action::Retire(key) => {
                    let mut state = self.lock();
                    let socket = state.links.get_mut(&key).and_then(|link| {
                        link.retired = true;
                        link.process.as_ref().map(|process| Arc::clone(&process.socket))
                    });
                    drop(state);
                    if let Some(socket) = socket {
                        let _ = nix::sys::socket::shutdown(
                            socket.as_raw_fd(),
                            nix::sys::socket::Shutdown::Write,
                        );
                    }
                }
                Action::Weigh(key) => self.weigh(key),
                Action::Settle(cargo, fate) => self.settle_by(cargo, fate),
                Action::Ended => {
                    // Of processes that the kernel cannot end. Whoever reaps orphans has them from
                    // now on.
                    let left = std::mem::take(&mut self.lock().links);
                    for process in left.values().filter_map(|link| link.process.as_ref()) {
                        self.reactor.delete(process.socket.as_fd());
                        self.reactor.delete(process.child.pidfd());
                    }
                    drop(left);
                    if let Some(capture) = &self.capture {
                        capture.close();
                    }
                    drop(self.template.lock().take());
                    // The pool stays ready from now on, so that the task in its runtime wakes and
                    // ends as well.
                    self.reactor.end();
                    catch_user_panic(|| {
                        self.ended.send_replace(true);
                    });
                    self.feeds.close();
                    self.alone.store(true, Ordering::Release); // so that the supervisor forgets it
                    supervisor::look(self);
                }
                Action::Send(..) | Action::Ask(..) | Action::Cancel(..) | Action::Note(..) => {
                    unreachable!("done under the lock")
                }
            }
        }
        if let Some(deadline) = todo.deadline {
            self.reactor.set_timer(self, deadline);
        }
        if todo.staff_changed {
            self.tell_start(None);
        }
        if todo.rearm {
            self.tokens.wake_driver();
        }
    }

    /// Looks how much memory a worker has.
    fn weigh(&self, key: WorkerKey) {
        let pid = self
            .lock()
            .links
            .get(&key)
            .and_then(|link| link.process.as_ref())
            .map(|process| process.child.pid());
        // A host that reaps our children may have freed the number. Then a worker is replaced for
        // what another process has, which harms nobody.
        if let Some(bytes) = pid.and_then(resident) {
            self.apply(|state, now| state.core.weighed(key, bytes, now, &mut state.actions));
        }
    }

    /// Tells the caller, and counts what failed. (What is done is counted by the batch.)
    pub(super) fn settle(&self, cargo: Cargo, outcome: Outcome) {
        if let Err(error) = &outcome {
            self.tally.failed(error.kind(), cargo.run().map_or(1, |run| u64::from(run.left())));
        }
        cargo.settle(outcome);
    }

    fn settle_by(&self, cargo: Cargo, fate: Fate) {
        let error = match fate {
            Fate::Unkillable(key) => {
                let pid = self
                    .lock()
                    .links
                    .get(&key)
                    .and_then(|link| link.process.as_ref())
                    .map(|process| process.child.pid());
                TaskError::new(What::Unkillable { pid }, cargo.function)
            }
            fate => why(fate, cargo.function),
        };
        self.settle(cargo, Err(error));
    }

    fn kill_worker(&self, key: WorkerKey, timed_out: bool) {
        let mut state = self.lock();
        let Some(link) = state.links.get_mut(&key) else { return };
        link.doomed = true;
        link.timed_out |= timed_out;
        let child = link.process.as_ref().map(|process| Arc::clone(&process.child));
        let launch = link.launch.clone();
        drop(state);
        if let Some(launch) = &launch {
            launch.call_off();
        }
        if child.is_none()
            && let Some(template) = self.template()
        {
            Nursery::look(template.nursery());
        }
        if let Some(child) = child
            && child.kill().is_err()
        {
            // We may not (it has become another user's, or we stand in a sandbox): then its
            // lifeline does it, for which the worker itself has given the right. What
            // has none yet, its end is waited for.
            let lifeline = self
                .lock()
                .links
                .get_mut(&key)
                .and_then(|link| link.process.as_mut()?.lifeline.take());
            drop(lifeline);
        }
    }

    /// A process is being started for a worker.
    pub(super) fn launching(&self, key: WorkerKey, launch: &Arc<Launch>) {
        let mut state = self.lock();
        let Some(link) = state.links.get_mut(&key) else { return };
        link.launch = Some(Arc::clone(launch));
        if link.doomed {
            launch.call_off();
        }
    }

    /// What the workers are forked from, if they are, and the pool has not ended.
    pub(super) fn template(&self) -> Option<Template> {
        self.template.lock().clone()
    }

    /// See [`Core::limit_start`].
    pub(super) fn limit_start(&self, key: WorkerKey, from: Option<Instant>) {
        self.apply(|state, _| {
            state.core.limit_start(key, from);
            state.timed = true;
        });
    }

    /// Whether a process is still to be started for a worker: not when the pool has been ended
    /// since that was ordered.
    pub(super) fn is_wanted(&self, key: WorkerKey) -> bool {
        let state = self.lock();
        !(state.core.is_closed() && state.links.get(&key).is_none_or(|link| link.doomed))
    }

    /// Sends descriptors again that were not taken, if it is time.
    pub(super) fn send_again(&self) {
        let mut state = self.lock();
        if state.held_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        state.held_at = None;
        let held: Vec<_> = state
            .links
            .iter_mut()
            .filter(|(_, link)| link.out.held.is_held())
            .filter_map(|(key, link)| std::mem::take(&mut link.out.blocked).then_some(*key))
            .collect();
        drop(state);
        held.into_iter().for_each(|key| self.flush(key)); // `busy` is set
    }

    /// Writes what there is for a worker. Only for whoever has set `busy`.
    pub(super) fn flush(&self, key: WorkerKey) {
        let (mut written, mut gone) = (None, Vec::new());
        loop {
            gone.clear(); // not under the lock
            let mut state = self.lock();
            let State { core, links, .. } = &mut *state;
            let Some(Link { process: Some(process), out, .. }) = links.get_mut(&key) else {
                return;
            };
            if let Some((chunk, from, len)) = written.take() {
                out.held.is_over();
                gone.extend(out.wrote(chunk, from, len));
            }
            let Some((chunk, from)) = out.take(|claim| core.has(key, claim), &mut gone) else {
                out.busy = false;
                return;
            };
            let socket = Arc::clone(&process.socket);
            let lends =
                chunk.lends().then(|| (Arc::clone(&process.leases), Arc::clone(&process.child)));
            drop(state);
            let mut chunk = chunk;
            if let Some((leases, child)) = lends {
                chunk.lend(&leases, &child);
            }
            match chunk.send(socket.as_fd(), from) {
                Ok(len) => written = Some((chunk, from, len)),
                Err(error) => {
                    let mut state = self.lock();
                    if let Some(link) = state.links.get_mut(&key) {
                        let out = &mut link.out;
                        if link.retired && error.kind() != std::io::ErrorKind::WouldBlock {
                            // We have closed its intake. What is left are calls that were taken
                            // back.
                            let left = std::mem::take(out);
                            drop(state);
                            drop(left);
                            return;
                        }
                        let held = out.held.is_to_wait(&error);
                        if held || sys::are_too_many(&error) {
                            let mut chunk = chunk;
                            if !held {
                                out.held.is_over();
                                let leases = link.process.as_ref().map(|p| Arc::clone(&p.leases));
                                drop(state);
                                if let Some(leases) = leases {
                                    chunk.do_without_sockets(&leases);
                                }
                                written = Some((chunk, from, 0));
                                continue;
                            }
                            gone.extend(out.wrote(chunk, from, 0));
                            out.blocked = true; // it stays busy
                            let again = Instant::now() + sys::Held::AGAIN;
                            state.held_at.get_or_insert(again);
                            drop(state);
                            return self.apply(|state, _| state.timed = true);
                        }
                        gone.extend(out.wrote(chunk, from, 0));
                        out.blocked = error.kind() == std::io::ErrorKind::WouldBlock;
                    }
                    drop(state);
                    if error.kind() == std::io::ErrorKind::WouldBlock {
                        // It stays busy: the event that there is room again goes on from here.
                        driver::want_room(&self.reactor, socket.as_fd(), key);
                    } else if matches!(
                        error.kind(),
                        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
                    ) {
                        // As a rule it is ending; if not, nothing more reaches it, but what it has
                        // in hand may still be answered. It stays busy.
                        self.reads_no_more(key);
                    } else {
                        self.apply(|state, now| state.core.doom(key, now, &mut state.actions));
                    }
                    return;
                }
            }
        }
    }

    /// A pass by the pool's own runtime.
    pub(super) fn drive_by_runtime(&self) -> Pass {
        self.reactor.drive_by_runtime(self)
    }

    pub(super) fn tell_start(&self, failure: Option<Error>) {
        catch_user_panic(|| {
            self.starts.send_modify(|news| {
                if let Some(cause) = failure {
                    news.failures += 1;
                    news.last = Some(cause);
                }
            });
        });
    }
}

impl Source for Engine {
    fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    fn ready(&self, token: Token, flags: EpollFlags) {
        self.handle(&mut self.driver.lock(), token, flags);
    }

    fn tick(&self, _: Instant) {
        self.lock().deadline.passed();
        self.time_has_passed(&mut self.driver.lock());
    }

    fn after_events(&self) {
        self.finish_pass(&mut self.driver.lock());
    }

    fn panicked(&self, token: Token) {
        self.lose(token);
    }

    fn deadline(&self) -> Deadline {
        self.lock().deadline
    }

    fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Acquire)
    }
}

impl AsRawFd for Engine {
    fn as_raw_fd(&self) -> RawFd {
        self.reactor.ready_fd().as_raw_fd()
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("config", &self.config).finish_non_exhaustive()
    }
}

impl State {
    /// What the timer is to be set to.
    fn next_deadline(&self) -> Option<Instant> {
        [self.core.next_deadline(), self.stall_at, self.held_at, self.blocked.at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what belongs under the lock, and says what is to be done outside.
    fn sort(&mut self, now: Instant) -> Todo {
        let mut todo = Todo::default();
        let mut timed = std::mem::take(&mut self.timed);
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Send(worker, task, slot, attempt) => {
                    let (Some(id), Some(link)) =
                        (self.core.id_of(task), self.links.get_mut(&worker))
                    else {
                        continue;
                    };
                    let claim = Claim { slot, id };
                    let is_large = |cargo: &Cargo| cargo.frame.len() > driver::LARGE;
                    if self.core.cargo_mut(task).is_some_and(|cargo| is_large(cargo)) {
                        // What is not wanted any more takes no memory behind a full socket. (If
                        // the task itself was here before, it is sent anew.)
                        link.out.retain(
                            |other| other != claim && self.core.has(worker, other),
                            &mut todo.gone,
                        );
                    }
                    let Some(cargo) = self.core.cargo_mut(task) else { continue };
                    if let (Some(items), Some(process)) = (cargo.yielded(), &link.process) {
                        items.sent(Arc::clone(&process.memory) as _, claim);
                    }
                    if let (Some(start), Some(process)) = (cargo.start_mut(), &link.process) {
                        // Before its frame is written: it cannot have begun.
                        start.is_due = self.has_claims;
                        if self.has_claims {
                            process.memory.claims().watch(claim);
                        } else {
                            let started = Started { pid: process.child.pid(), at: now };
                            todo.starts.push((start.clone(), started));
                        }
                    }
                    link.out.push_call(&cargo.frame, claim, attempt, cargo.things());
                    todo.rooms.extend(cargo.room.take());
                    todo.want_flush(worker, link);
                }
                Action::Note(task, fate) => {
                    timed = true;
                    let Some(cargo) = self.core.cargo_mut(task) else { continue };
                    cargo.failed(why(fate, cargo.function));
                }
                Action::Ask(worker, task) | Action::Cancel(worker, task) => {
                    timed = true;
                    let items =
                        self.core.cargo_mut(task).and_then(|cargo| cargo.yielded().cloned());
                    if let (Action::Ask(..), Some(items)) = (&action, items) {
                        todo.wakes.extend(items.close());
                        if !items.is_async() {
                            continue; // its worker reads nothing while it runs
                        }
                    }
                    let (Some(link), Some(id)) =
                        (self.links.get_mut(&worker), self.core.id_of(task))
                    else {
                        continue;
                    };
                    let mut out = Vec::new();
                    frame::write(&mut out, |out| match action {
                        Action::Ask(..) => message::ask(out, id),
                        _ => message::cancel(out, id),
                    });
                    link.out.push(&Packet::from(&mut out));
                    todo.want_flush(worker, link);
                }
                action => {
                    timed = true;
                    if let Action::Start(worker) = action {
                        self.links.insert(worker, Link::default());
                    }
                    todo.others.push(action);
                }
            }
        }
        self.actions = actions; // keeps its memory
        todo.staff_changed = self.core.staff_changed();
        todo.rearm = self.core.take_rearm();
        if self.blocked.on && self.blocked.at.is_none() && self.core.has_backlog() {
            self.blocked.at = Some(now + LOOK);
            timed = true;
        }
        if self.core.deadline_moved() || timed {
            let next = self.next_deadline();
            todo.deadline = self.deadline.update(next);
        }
        todo
    }
}

impl Todo {
    fn want_flush(&mut self, key: WorkerKey, link: &mut Link) {
        if std::mem::replace(&mut link.out.busy, true) {
            return;
        }
        match self.flush {
            None => self.flush = Some(key),
            Some(_) => self.flush_more.push(key),
        }
    }
}

/// Wakes a thread of a worker that waits for credit.
fn wake_thread(wake: &Wake) {
    if wake.waiting.thread
        && let Some(word) = wake.memory.credits().word(wake.claim)
    {
        sys::futex_wake(word);
    }
}

/// What a fate is to the one who waits.
fn why(fate: Fate, function: &'static str) -> TaskError {
    let what = match fate {
        Fate::Cancelled => What::Cancelled,
        Fate::TimedOut(limit) => timed_out(limit),
        Fate::Closed => What::PoolClosed,
        Fate::StartFailed(cause) => What::StartFailed(cause),
        Fate::Unkillable(_) => What::Unkillable { pid: None },
        Fate::Lost(loss) => return loss.error(function),
    };
    TaskError::new(what, function)
}

pub(super) fn timed_out(limit: Limit) -> What {
    match limit {
        Limit::Timeout(limit) => What::TimedOut { limit, whole: false },
        Limit::Deadline(limit) => What::TimedOut { limit, whole: true },
    }
}
