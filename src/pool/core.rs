//! The rules of a pool: which task goes to which worker, when a worker is started, stopped or
//! given up, and what becomes of the tasks of a worker that died.
//!
//! A plain struct: events go in by methods, [`Action`]s come out, `now` is an argument. It knows no
//! process, no socket and no clock, and is tested by simulation (`core_sim.rs`). What a task
//! carries (`T`) is not looked at.
//!
//! The rules, by number:
//!
//! 1. There is one queue, and it is served in order. A task that cannot be placed holds back those
//!    behind it, so that neither sync nor async tasks starve.
//! 2. A worker has in flight either sync tasks or async ones, never both: they would freeze each
//!    other. It changes sides when it is empty.
//! 3. A task goes to an idle worker if there is one; else to the worker with the fewest tasks in
//!    flight whose window has room; else it waits.
//! 4. The window of sync tasks follows the measured service time: [`WINDOW_WORK`] of work, at least
//!    two tasks while tasks are shorter than [`LONG`], one when they are longer, not yet known, or when
//!    the running one has lasted longer. Async tasks are bounded by `concurrency` instead.
//! 5. A large sync task is sent to an idle worker only: its bytes wait behind nobody.
//! 6. Workers are started when a task finds none idle, up to `workers`; after failed starts not
//!    before a back-off has passed, unless all are asked for ([`Core::start_all`]).
//! 7. A worker that dies costs what it ran: the first unanswered sync task, or all unanswered async
//!    ones. What had not reached it, or stood behind, goes back to the head of the queue, in order; what was next
//!    and not reached, only [`MOVES_MAX`] times.
//! 8. To stop a running task, its worker is doomed (given nothing more) before it is killed; the task
//!    is settled when the process has ended, or by the reply that came first. A sync task that
//!    stands behind another in a worker is stopped when its turn comes. An async task is asked
//!    first ([`Action::Cancel`]), and its worker killed if it has not answered in [`ABORT_GRACE`].
//! 9. If no worker is left and a start fails, everything queued fails with the cause; so does what
//!    is submitted before the back-off has passed.
//! 10. What stands behind a sync task in a worker cannot be taken back, should that one turn out to be long. So
//!     nothing does while another worker is being started or may be, nor while fewer than [`RESERVE`] tasks a worker
//!     wait for whoever is free first; and a worker is given no more at once than its part of what waits beyond that.
//!     (A single worker has nobody who could take it instead.)

use super::loss::Loss;
use super::slots::{Key, Slots};
use crate::error::Error;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much work a worker should have in flight, so that it never waits for the pool: some wake-ups
/// of another processor, which were measured at 45 µs each.
const WINDOW_WORK: Duration = Duration::from_micros(300);
/// A task as long as this gains nothing from standing ready behind another one.
const LONG: Duration = Duration::from_millis(3);
/// Tasks in flight in one worker, at most: what one reading of its socket takes in.
const WINDOW_MAX: u32 = 1024;
/// While no more tasks a worker wait than this, they go to idle workers only. Some wake-ups are lost at the end of a
/// map, and a task that does not end holds up few others.
const RESERVE: usize = 4;
/// A task goes back so often from workers that died before it had reached them. Then its next such death is its
/// own: workers that end as soon as they are ready must not be started for it for ever.
const MOVES_MAX: u8 = 2;
/// How long an async task that was aborted has to reach an await point.
pub(crate) const ABORT_GRACE: Duration = Duration::from_secs(1);
/// How long a worker that is retired has to close its side: it has nothing to do, but may be stopped.
const RETIRE_GRACE: Duration = Duration::from_secs(5);
/// The wait after a first failed start; it doubles with each further one, up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A task in this pool. (On the wire it has a number of its own, which its worker answers.)
pub(crate) type TaskKey = Key;
/// A worker of this pool.
pub(crate) type WorkerKey = Key;

/// How a task is run in its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Sync,
    Async,
}

/// What a pool is told once, when it is built.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Worker processes, at most.
    pub(crate) workers: usize,
    /// Async tasks in flight in one worker, at most.
    pub(crate) concurrency: usize,
    /// A start must have led to the worker's hello by then.
    pub(crate) hello_limit: Duration,
    /// A start must have led to a ready worker by then, `init` included.
    pub(crate) start_limit: Option<Duration>,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub(crate) enum Action<T> {
    /// Start a process for this worker.
    Start(WorkerKey),
    /// Send this task to this worker.
    Send(WorkerKey, TaskKey),
    /// Tell this worker to drop this async task.
    Cancel(WorkerKey, TaskKey),
    /// Close this worker's intake; it ends by itself.
    Retire(WorkerKey),
    /// Kill this worker.
    Kill(WorkerKey),
    /// This worker's start has taken too long: note why, then kill it.
    TimeOut(WorkerKey),
    /// A task has ended without a reply.
    Settle(T, Fate),
    /// The pool is closed, no task is open, no worker alive.
    Ended,
}

/// How a task ends without a reply.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    Cancelled,
    Closed,
    StartFailed(Error),
    Lost(Arc<Loss>),
}

/// A task as it is handed in.
#[derive(Debug)]
pub(crate) struct Call<T> {
    /// What the rules do not look at.
    pub(crate) cargo: T,
    /// Its number on the wire; never given twice.
    pub(crate) id: u64,
    pub(crate) mode: Mode,
    /// Its frame is so long that nothing should wait behind it.
    pub(crate) large: bool,
}

/// A submission that was not taken; the cargo comes back.
#[derive(Debug)]
pub(crate) struct Refused<T>(pub(crate) T, pub(crate) Fate);

#[derive(Debug)]
struct Task<T> {
    cargo: T,
    id: u64,
    mode: Mode,
    large: bool,
    /// `None` while it waits in the queue.
    worker: Option<WorkerKey>,
    aborting: bool,
    /// How often its worker died when it was next there, and had not reached it.
    moves: u8,
}

/// ```text
/// Starting ── hello, ready ──▶ Ready ──▶ Retiring
///     └────────────┬─────────────┘          │
///                  ▼                        │
///                Doomed ───── exit ◀────────┘     (an exit may come in every state)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting { until: Option<Instant> },
    Ready,
    Retiring,
    Doomed,
}

#[derive(Debug)]
struct Worker {
    state: State,
    /// When its start was ordered.
    started: Instant,
    /// Tasks sent and not answered, in the order of sending, with their numbers on the wire.
    in_flight: VecDeque<(u64, TaskKey)>,
    mode: Mode,
    /// Time of one sync task, smoothed.
    service: Option<Duration>,
    /// Since when the present service is measured: the last replies, or the first sending.
    busy_since: Instant,
    /// It has been given a task.
    used: bool,
    /// Async tasks that were asked to stop, and when their time is up, in this order. The first is
    /// still in flight.
    asked: VecDeque<(Instant, TaskKey)>,
    /// Then it must have ended, having hung up or been retired; else it is doomed.
    end_by: Option<Instant>,
    /// Its entry in `roomy`.
    listed: Option<(Mode, usize)>,
}

impl Worker {
    fn window(&self) -> usize {
        match self.service {
            None => 1,
            Some(service) if service >= LONG => 1,
            Some(service) => (WINDOW_WORK.as_nanos() / service.as_nanos().max(1)).clamp(2, u128::from(WINDOW_MAX)) as usize,
        }
    }

    /// Rule 4, but for the time that the running task has lasted.
    fn may_take_more(&self, concurrency: usize) -> bool {
        let limit = match self.mode {
            Mode::Sync => self.window(),
            Mode::Async => concurrency,
        };
        self.state == State::Ready && (1..limit).contains(&self.in_flight.len())
    }

    /// Nothing should stand behind its running task any more. True until it answers.
    fn is_late(&self, now: Instant) -> bool {
        self.mode == Mode::Sync && now.saturating_duration_since(self.busy_since) >= LONG
    }

    /// When `tick` has something to do with it.
    fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Starting { until } => until,
            State::Ready | State::Retiring => self.asked.front().map(|(by, _)| *by).into_iter().chain(self.end_by).min(),
            State::Doomed => None,
        }
    }
}

/// The last failed start, unless a worker has got ready since.
#[derive(Debug)]
struct Failure {
    cause: Error,
    at: Instant,
    /// Failed starts before it, each ordered after the one before had failed: those that were under
    /// way together fail together, and count once.
    earlier: u32,
    /// When the next start may be tried; `None` when that has passed.
    retry: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// No new tasks; the old ones run to their end.
    Draining,
    /// Everything is settled, the workers are being killed.
    Killed,
    Ended,
}

/// The state of one pool.
#[derive(Debug)]
pub(crate) struct Core<T> {
    rules: Rules,
    phase: Phase,
    tasks: Slots<Task<T>>,
    /// Tasks without a worker. A key whose task was aborted stays until its turn, and is passed over.
    queue: VecDeque<TaskKey>,
    /// How many keys of `queue` still have their task.
    queued: usize,
    workers: Slots<Worker>,
    /// Ready workers without a task; the last used is the next used, for its caches are warm.
    idle: Vec<WorkerKey>,
    /// Workers at work that may take more, by the number of tasks in flight; for each mode. Those
    /// that are late are taken out when they are met, and come back with their next reply.
    roomy: [BTreeSet<(usize, WorkerKey)>; 2],
    starting: usize,
    failure: Option<Failure>,
}

impl<T> Core<T> {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            phase: Phase::Open,
            tasks: Slots::new(),
            queue: VecDeque::new(),
            queued: 0,
            workers: Slots::new(),
            idle: Vec::new(),
            roomy: [BTreeSet::new(), BTreeSet::new()],
            starting: 0,
            failure: None,
        }
    }

    // ---- tasks

    /// A task is handed in.
    pub(crate) fn submit(&mut self, call: Call<T>, now: Instant, actions: &mut Vec<Action<T>>) -> Result<TaskKey, Refused<T>> {
        let Call { cargo, id, mode, large } = call;
        if self.phase != Phase::Open {
            return Err(Refused(cargo, Fate::Closed));
        }
        if self.workers.len() == 0
            && let Some(Failure { cause, retry: Some(retry), .. }) = &self.failure
            && now < *retry
        {
            return Err(Refused(cargo, Fate::StartFailed(cause.clone()))); // rule 9
        }
        let found_idle = !self.idle.is_empty();
        let key = self.tasks.insert(Task { cargo, id, mode, large, worker: None, aborting: false, moves: 0 });
        self.queue.push_back(key);
        self.queued += 1;
        // Else the head cannot be placed, and this one changes it only by making the queue long (rule 10).
        if self.queued == 1 || self.queued.is_multiple_of(RESERVE * self.workers.len().max(1)) {
            self.serve(now, actions);
        }
        self.want_workers(usize::from(!found_idle), now, actions);
        Ok(key)
    }

    /// What a task carries.
    pub(crate) fn cargo_mut(&mut self, key: TaskKey) -> Option<&mut T> {
        self.tasks.get_mut(key).map(|task| &mut task.cargo)
    }

    /// The task's number on the wire.
    pub(crate) fn id_of(&self, key: TaskKey) -> Option<u64> {
        self.tasks.get(key).map(|task| task.id)
    }

    /// The worker that has the task, unless it still waits; `None` for a task that has ended.
    pub(crate) fn worker_of(&self, key: TaskKey) -> Option<Option<WorkerKey>> {
        self.tasks.get(key).map(|task| task.worker)
    }

    /// A worker has answered a task: its cargo. `None` if that worker does not have that task, or
    /// answers a sync task out of turn: it breaks the protocol. Call [`Core::refill`] after the last
    /// reply of a batch.
    pub(crate) fn replied(&mut self, worker: WorkerKey, id: u64) -> Option<T> {
        let worker = self.workers.get_mut(worker)?;
        let turn = if worker.mode == Mode::Sync { 1 } else { usize::MAX };
        let at = worker.in_flight.iter().take(turn).position(|(sent, _)| *sent == id)?;
        let (_, key) = worker.in_flight.remove(at)?;
        self.tasks.remove(key).map(|task| task.cargo)
    }

    /// A worker has answered `replies` tasks: learn from it, and give it more.
    pub(crate) fn refill(&mut self, key: WorkerKey, replies: u32, now: Instant, actions: &mut Vec<Action<T>>) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        if replies == 0 {
            return;
        }
        if worker.mode == Mode::Sync {
            let sample = now.saturating_duration_since(worker.busy_since) / replies;
            worker.service = Some(worker.service.map_or(sample, |old| (old * 3 + sample) / 4));
        }
        worker.busy_since = now;
        while worker.asked.front().is_some_and(|(_, task)| self.tasks.get(*task).is_none()) {
            worker.asked.pop_front();
        }
        if worker.mode == Mode::Sync
            && let Some((_, next)) = worker.in_flight.front()
            && self.tasks.get(*next).is_some_and(|task| task.aborting)
        {
            return self.doom(key, actions); // rule 8: its turn has come
        }
        if worker.state == State::Ready && worker.in_flight.is_empty() {
            self.idle.push(key);
        }
        self.list(key);
        self.serve(now, actions);
        self.want_end(now, actions);
    }

    /// The caller does not want the task any more. Nothing happens if it has ended.
    pub(crate) fn abort(&mut self, key: TaskKey, now: Instant, actions: &mut Vec<Action<T>>) {
        self.stop(key, now, actions);
        self.serve(now, actions); // it may have held back others
        self.want_end(now, actions);
    }

    /// Aborts every task whose cargo fits.
    pub(crate) fn abort_where(&mut self, fits: impl Fn(&T) -> bool, now: Instant, actions: &mut Vec<Action<T>>) {
        let keys: Vec<_> = self.tasks.iter().filter(|(_, task)| fits(&task.cargo)).map(|(key, _)| key).collect();
        for key in keys {
            self.stop(key, now, actions);
        }
        // Only now: else tasks would be sent that are about to be aborted.
        self.serve(now, actions);
        self.want_end(now, actions);
    }

    // ---- workers

    /// All workers are wanted, now.
    pub(crate) fn start_all(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if self.phase == Phase::Open {
            while self.workers.len() < self.rules.workers {
                self.start(now, actions);
            }
        }
    }

    /// A process has said hello; its `init` runs now.
    pub(crate) fn hello(&mut self, key: WorkerKey) {
        if let Some(Worker { state: State::Starting { until }, started, .. }) = self.workers.get_mut(key) {
            *until = self.rules.start_limit.map(|limit| *started + limit);
        }
    }

    /// A process is ready for its first task.
    pub(crate) fn ready(&mut self, key: WorkerKey, now: Instant, actions: &mut Vec<Action<T>>) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        let State::Starting { .. } = worker.state else { return };
        worker.state = State::Ready;
        self.starting -= 1;
        self.failure = None;
        self.idle.push(key);
        self.serve(now, actions);
        self.want_workers(0, now, actions); // a back-off may be over
        self.want_end(now, actions);
    }

    /// A process could not be started, or ended before it was ready.
    pub(crate) fn start_failed(&mut self, key: WorkerKey, cause: Error, now: Instant, actions: &mut Vec<Action<T>>) {
        let Some(worker) = self.take_out(key) else { return };
        let earlier = match &self.failure {
            None => 0,
            Some(last) => last.earlier + u32::from(worker.started > last.at),
        };
        let wait = BACKOFF_MIN.saturating_mul(1 << earlier.min(16)).min(BACKOFF_MAX);
        self.failure = Some(Failure { cause: cause.clone(), at: now, earlier, retry: Some(now + wait) });
        if self.workers.len() == 0 {
            for key in std::mem::take(&mut self.queue) {
                self.forget_queued(key, Fate::StartFailed(cause.clone()), actions);
            }
        }
        self.want_end(now, actions);
    }

    /// A process that was ready has ended. `reached` says of a task whether any of its bytes
    /// reached the process.
    pub(crate) fn exited(
        &mut self,
        key: WorkerKey,
        loss: &Arc<Loss>,
        reached: impl Fn(&T) -> bool,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        let Some(worker) = self.take_out(key) else { return };
        let mut back = Vec::new();
        for (place, (_, task_key)) in worker.in_flight.into_iter().enumerate() {
            let Some(task) = self.tasks.get_mut(task_key) else { continue };
            let was_next = place == 0 || task.mode == Mode::Async;
            let ran = was_next && (reached(&task.cargo) || task.moves == MOVES_MAX); // rule 7
            let fate = match (task.aborting, ran) {
                (true, _) => Fate::Cancelled,
                (false, true) => Fate::Lost(Arc::clone(loss)),
                (false, false) => {
                    task.worker = None;
                    task.moves += u8::from(was_next);
                    back.push(task_key);
                    continue;
                }
            };
            if let Some(task) = self.tasks.remove(task_key) {
                actions.push(Action::Settle(task.cargo, fate));
            }
        }
        self.queued += back.len();
        back.into_iter().rev().for_each(|key| self.queue.push_front(key));
        // A worker that served is replaced at once, so that the next task need not wait for a start.
        let replace = worker.used && self.phase == Phase::Open;
        self.serve(now, actions);
        self.want_workers(usize::from(replace), now, actions);
        self.want_end(now, actions);
    }

    /// A worker broke the protocol, or must go for another reason of the caller's.
    pub(crate) fn doom(&mut self, key: WorkerKey, actions: &mut Vec<Action<T>>) {
        if self.workers.get(key).is_some_and(|worker| worker.state != State::Doomed) {
            self.withdraw(key, State::Doomed);
            actions.push(Action::Kill(key));
        }
    }

    /// A process is known to have ended; what it has answered is still to come.
    pub(crate) fn ending(&mut self, key: WorkerKey) {
        self.withdraw(key, State::Doomed);
    }

    /// A worker has closed its side: it is about to end, and must have ended by then.
    pub(crate) fn hung_up(&mut self, key: WorkerKey, until: Instant) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        match &mut worker.state {
            State::Starting { until: limit } => *limit = Some(limit.map_or(until, |limit| limit.min(until))),
            State::Ready | State::Retiring => {
                worker.end_by = Some(until);
                self.withdraw(key, State::Retiring);
            }
            State::Doomed => {}
        }
    }

    // ---- time

    /// When [`Core::tick`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let retry = self.failure.as_ref().and_then(|failure| failure.retry);
        self.workers.iter().filter_map(|(_, worker)| worker.deadline()).chain(retry).min()
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        for key in self.workers.keys() {
            let Some(worker) = self.workers.get(key) else { continue };
            if worker.deadline().is_none_or(|by| now < by) {
                continue;
            }
            if matches!(worker.state, State::Starting { .. }) {
                self.withdraw(key, State::Doomed);
                actions.push(Action::TimeOut(key));
            } else {
                self.doom(key, actions);
            }
        }
        if let Some(failure) = &mut self.failure {
            failure.retry = failure.retry.filter(|retry| now < *retry);
        }
        self.want_workers(0, now, actions);
    }

    // ---- the end

    /// No more tasks; what is here runs to its end.
    pub(crate) fn drain(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if self.phase == Phase::Open {
            self.phase = Phase::Draining;
            self.want_end(now, actions);
        }
    }

    /// At once: every task is settled, every worker killed.
    pub(crate) fn kill(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if matches!(self.phase, Phase::Killed | Phase::Ended) {
            return;
        }
        self.phase = Phase::Killed;
        self.queue.clear();
        self.queued = 0;
        for key in self.workers.keys() {
            self.doom(key, actions);
            if let Some(worker) = self.workers.get_mut(key) {
                worker.in_flight.clear();
            }
        }
        for key in self.tasks.keys() {
            if let Some(task) = self.tasks.remove(key) {
                actions.push(Action::Settle(task.cargo, Fate::Closed));
            }
        }
        self.want_end(now, actions);
    }

    // ---- what is asked about

    /// No new tasks are taken.
    pub(crate) fn is_closed(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Every worker there may be is ready (or was, and is now at work).
    pub(crate) fn all_ready(&self) -> bool {
        self.workers.len() == self.rules.workers && self.workers.iter().all(|(_, w)| matches!(w.state, State::Ready | State::Retiring))
    }

    /// How many tasks keep every worker at work: a window in hand each, and two waiting.
    pub(crate) fn appetite(&self, mode: Mode) -> usize {
        let now: usize = self
            .workers
            .iter()
            .map(|(_, worker)| match mode {
                Mode::Sync => worker.window(),
                Mode::Async => self.rules.concurrency,
            })
            .sum();
        3 * now.max(self.rules.workers)
    }

    /// Tasks that wait for a worker.
    #[cfg(test)]
    fn queued(&self) -> usize {
        self.queued
    }

    // ---- inside

    /// Rules 1 and 3: sends what stands at the head of the queue, as long as somebody has room for it.
    fn serve(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        let mut behind = self.may_stand_behind(now);
        while let Some(next) = self.queue.front().copied() {
            if let Some(task) = self.tasks.get(next) {
                let (mode, large) = (task.mode, task.large);
                if mode == Mode::Sync && self.idle.is_empty() {
                    let Some(left) = behind.checked_sub(1) else { return };
                    behind = left;
                }
                let Some(worker) = self.place(mode, large, now) else { return };
                self.queued -= 1;
                self.send(worker, next, now, actions);
            }
            self.queue.pop_front();
        }
    }

    /// Rule 10: how many sync tasks may be sent to workers that are at work.
    fn may_stand_behind(&self, now: Instant) -> usize {
        if self.starting > 0 || self.may_start(now) {
            return 0;
        }
        match self.workers.len() {
            0 | 1 => self.queued,
            workers => self.queued.saturating_sub(RESERVE * workers) / workers,
        }
    }

    /// Rules 2 to 5: where a task goes.
    fn place(&mut self, mode: Mode, large: bool, now: Instant) -> Option<WorkerKey> {
        if let Some(key) = self.idle.last() {
            return Some(*key);
        }
        let roomy = &mut self.roomy[mode as usize];
        while !(large && mode == Mode::Sync)
            && let Some((_, key)) = roomy.first().copied()
        {
            let worker = self.workers.get_mut(key)?;
            if !worker.is_late(now) {
                return Some(key);
            }
            worker.listed = None;
            roomy.pop_first();
        }
        None
    }

    /// Only to where [`Core::place`] says.
    fn send(&mut self, key: WorkerKey, task_key: TaskKey, now: Instant, actions: &mut Vec<Action<T>>) {
        let (Some(worker), Some(task)) = (self.workers.get_mut(key), self.tasks.get_mut(task_key)) else { return };
        if worker.in_flight.is_empty() {
            worker.mode = task.mode;
            worker.busy_since = now;
            worker.used = true;
            self.idle.pop();
        }
        worker.in_flight.push_back((task.id, task_key));
        task.worker = Some(key);
        self.list(key);
        actions.push(Action::Send(key, task_key));
    }

    /// Enters a worker in `roomy` as it is now, or takes it out.
    fn list(&mut self, key: WorkerKey) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        let entry = worker.may_take_more(self.rules.concurrency).then_some((worker.mode, worker.in_flight.len()));
        if let Some((mode, load)) = std::mem::replace(&mut worker.listed, entry) {
            self.roomy[mode as usize].remove(&(load, key));
        }
        if let Some((mode, load)) = entry {
            self.roomy[mode as usize].insert((load, key));
        }
    }

    /// A worker is given nothing more.
    fn withdraw(&mut self, key: WorkerKey, state: State) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        match std::mem::replace(&mut worker.state, state) {
            State::Starting { .. } => self.starting -= 1,
            State::Ready if worker.in_flight.is_empty() => self.idle.retain(|idle| *idle != key),
            _ => {}
        }
        self.list(key);
    }

    /// A worker has ended.
    fn take_out(&mut self, key: WorkerKey) -> Option<Worker> {
        self.withdraw(key, State::Doomed);
        self.workers.remove(key)
    }

    /// Settles a task that waits; has one stopped that runs (rule 8).
    fn stop(&mut self, key: TaskKey, now: Instant, actions: &mut Vec<Action<T>>) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Some(worker_key) = task.worker else { return self.forget_queued(key, Fate::Cancelled, actions) };
        let asked_before = std::mem::replace(&mut task.aborting, true);
        let Some(worker) = self.workers.get_mut(worker_key) else { return };
        if asked_before || worker.state == State::Doomed {
            return;
        }
        match worker.mode {
            Mode::Async => {
                worker.asked.push_back((now + ABORT_GRACE, key));
                actions.push(Action::Cancel(worker_key, key));
            }
            Mode::Sync if worker.in_flight.front().is_some_and(|(_, first)| *first == key) => self.doom(worker_key, actions),
            Mode::Sync => {} // when its turn comes, see `refill`
        }
    }

    /// A queued task ends without having been sent.
    fn forget_queued(&mut self, key: TaskKey, fate: Fate, actions: &mut Vec<Action<T>>) {
        if let Some(task) = self.tasks.remove(key) {
            self.queued -= 1;
            actions.push(Action::Settle(task.cargo, fate));
        }
        if self.queue.len() > 32 && self.queued < self.queue.len() / 2 {
            self.queue.retain(|key| self.tasks.get(*key).is_some()); // half of it is keys without a task
        }
    }

    /// Rule 6: as many starts under way as there are tasks that found nobody idle.
    fn want_workers(&mut self, extra: usize, now: Instant, actions: &mut Vec<Action<T>>) {
        let demand = self.queued.max(extra);
        while self.starting < demand && self.idle.is_empty() && self.may_start(now) {
            self.start(now, actions);
        }
    }

    fn may_start(&self, now: Instant) -> bool {
        let too_early = self.failure.as_ref().and_then(|failure| failure.retry).is_some_and(|retry| now < retry);
        self.workers.len() < self.rules.workers && !too_early && !matches!(self.phase, Phase::Killed | Phase::Ended)
    }

    fn start(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        let limit = self.rules.start_limit.map_or(self.rules.hello_limit, |limit| limit.min(self.rules.hello_limit));
        let key = self.workers.insert(Worker {
            state: State::Starting { until: Some(now + limit) },
            started: now,
            in_flight: VecDeque::new(),
            mode: Mode::Sync,
            service: None,
            busy_since: now,
            used: false,
            asked: VecDeque::new(),
            end_by: None,
            listed: None,
        });
        self.starting += 1;
        actions.push(Action::Start(key));
    }

    /// While draining: workers without work may go; when the last has gone, the pool has ended.
    fn want_end(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if !matches!(self.phase, Phase::Draining | Phase::Killed) {
            return;
        }
        if self.phase == Phase::Draining && self.queued == 0 {
            for key in std::mem::take(&mut self.idle) {
                if let Some(worker) = self.workers.get_mut(key) {
                    worker.state = State::Retiring;
                    worker.end_by = Some(now + RETIRE_GRACE);
                    actions.push(Action::Retire(key));
                }
            }
        }
        if self.phase == Phase::Draining && self.tasks.len() == 0 {
            for key in self.workers.keys() {
                // It was started for a task that is gone; it may hang in `init` for ever. (As long as
                // a task is in flight it may come back to the queue, and want this worker.)
                if self.workers.get(key).is_some_and(|worker| matches!(worker.state, State::Starting { .. })) {
                    self.doom(key, actions);
                }
            }
        }
        if self.tasks.len() == 0 && self.workers.len() == 0 {
            self.phase = Phase::Ended;
            actions.push(Action::Ended);
        }
    }
}

#[cfg(test)]
#[path = "core_sim.rs"]
mod simulation;
