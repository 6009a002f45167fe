//! The rules of a pool: which task goes to which worker, when a worker is started, stopped or
//! abandoned, and what becomes of the tasks of a worker that died.
//!
//! A plain struct: events go in by methods, [`Action`]s come out, `now` is an argument. It knows no
//! process, no socket and no clock, and is tested by simulation (`core_sim.rs`) and by an
//! exhaustive search (`core_search.rs`). It does not look at what a task carries (`T`), except for
//! the state of a batch ([`Carried`]). The one thing outside that it reads and changes is the
//! claims of each worker ([`Memory`]): single words, for which it never waits.
//!
//! In the code, a batch is a *run*, a poison task is a *suspect*, and an unresponsive worker is
//! *deaf*. The rules, by number:
//!
//! 1. **One queue.** There is one queue, and it is served in order. A task that cannot be placed
//!    holds back those behind it, so that neither sync nor async tasks starve.
//! 2. **One mode at a time.** A worker has either sync tasks or async tasks in flight, never both:
//!    they would block each other. It changes its mode when it has none in flight.
//! 3. **Placement.** A task goes to an idle worker if there is one; else to the worker with the
//!    fewest tasks in flight whose window has room; else it waits in the queue.
//! 4. **Window.** The window of sync tasks follows the measured service time:
//!    * [`WINDOW_WORK`] of work ([`WINDOW_WORK_LOW_LATENCY`] in a pool of low latency), at least
//!      two tasks and at most [`WINDOW_MAX`], while tasks are shorter than [`LONG`];
//!    * one task, while tasks are longer, while the service time is not known yet, and while the
//!      running task has lasted for [`LONG`].
//!
//!    Async tasks are bounded by `concurrency` instead.
//! 5. **Large tasks.** A large sync task is sent to an idle worker only, so that its bytes do not
//!    wait behind another task.
//! 6. **Starts.** A worker is started when a task finds no idle worker, as long as a worker slot is
//!    vacant (rule 15). After failed starts, a back-off must have passed first, unless all workers
//!    are requested ([`Core::start_all`]).
//! 7. **Death of a worker.** A worker that dies costs the tasks that it had begun and not answered,
//!    as the claims say. What it had not begun returns to the head of the queue, in order, as often
//!    as that happens. But if it had begun nothing at all, the first of its tasks (of async tasks,
//!    each) may be what killed it: a frame that cannot even be read, say. After [`MOVES_MAX`] such
//!    deaths a task is a *poison task*. It is sent to an idle worker with no task behind it, and
//!    the next such death is its own.
//! 8. **Stopping a task.** How a task is stopped depends on its state:
//!    * *Not begun*: it is revoked, and never begins.
//!    * *Running, async*: it is dropped at an await point ([`Action::Cancel`]).
//!    * *Running, with a grace*, sync or async: it is asked first, by its claim (and, if it is
//!      async or yields, by [`Action::Ask`], since its worker or the task may be asleep). When the grace is over, it is
//!      stopped as if it had none. An async task then has as long again to be dropped, at most
//!      [`ABORT_GRACE`].
//!    * *Running, sync*: first its worker is given no more tasks, and what the worker has not begun
//!      is revoked. Then the task is checked once more. Only then is the worker killed. So a kill
//!      never hits another task.
//!
//!    A task that is seen done, or is to be dropped, must be answered within [`ABORT_GRACE`].
//!    Otherwise its worker is killed, after another check of the task. What was answered until then
//!    is taken in first ([`Core::overdue`]). A task is settled when its process has ended, or by
//!    the reply, whichever comes first.
//! 9. **Failed starts.** Starts that fail in a row are counted. Of those that were under way
//!    together, one counts. If as many have failed as the pool attempts and no worker is left, all
//!    queued tasks fail with the cause. So they do if [`STARTS_MAX`] have failed, or as many as the
//!    pool attempts if that is more, and no worker is ready. A task that is submitted then fails,
//!    too, while no worker is left and the back-off has not passed. A worker that becomes ready
//!    ends the series. A task whose retries are for failed starts is tried again instead (rule 12).
//! 10. **Work stealing.** If a worker is idle while tasks are queued behind a running task
//!     elsewhere, those tasks are revoked and given to the idle worker, provided that the measured
//!     service time makes it worthwhile or the running task has lasted for [`LONG`].
//! 11. **Time limits.** A time limit counts from the moment at which the task began, as its worker
//!     has noted it, but at the latest from the moment at which the pool saw it begun. A task that
//!     has not begun is checked again after as long as its limit, since the limit cannot have
//!     passed before. A limit for the whole, with queueing and retries, is a deadline. When either
//!     has passed, the task is stopped as if it were aborted (rule 8), and its error says why.
//! 12. **Retries.** A task that failed in a way that its retries are for goes to the end of the
//!     queue, at once or after its back-off. Each failure is kept for the error that it may come
//!     to. A task that yields is run again, by this rule or by rule 13, only if its reader has taken
//!     none of its items, or has asked for it in any case.
//! 13. **Isolated tasks.** An isolated task, like a poison task, is sent to an idle worker, and no
//!     other task is beside it. An isolated task is always stopped by a kill. A task that dies only
//!     because its worker was killed to stop another task runs again if it is idempotent; that is
//!     not counted as a try.
//! 14. **Workers without claims.** A worker without such memory (of another program) has one sync
//!     task in hand at a time, which counts as begun.
//! 23. **Unresponsive workers.** It is checked every [`DEAF`] whether workers begin what they are
//!     given. A worker is unresponsive if two checks have found a task that had not begun though
//!     nothing was before it. Until it answers, or has begun all of its async tasks:
//!     * What it has not begun is revoked as soon as another worker can have it.
//!     * It is given a task only if no other worker can take the task.
//!     * As long as no other worker can, workers are started for what it has not begun, if worker
//!       slots are vacant.
//!     * If it has begun nothing of what it has in hand for as long as the time limit of one of
//!       those tasks (that of one try, or that of the whole), it is killed. Nothing has run, so
//!       that costs no task.
//!
//!     Without a limit, the worker is waited for: it may have been stopped to be looked into. So is
//!     a worker that has not begun a large task, which takes its time to arrive. A pool that drains
//!     retires no worker that could take what is revoked.
//! 24. **Batches.** A task may be a *batch*: a number of items, each with a number, a reply and an
//!     outcome of its own, which one worker runs one after another.
//!     * Where tasks in hand are counted, the items of a batch are.
//!     * The items that have not begun, of a batch that has, are revoked wherever rules 7, 8, 10
//!       and 13 revoke tasks. They are a batch of their own from then on. So only the one item that
//!       runs stays with a worker that is late, is killed or dies.
//!     * If it is not known which items have begun, all of them count as begun.
//!     * If a batch has not begun and the death of its worker is its own (rule 7), that costs its
//!       first item only.
//! 25. **Interrupt moderation.** A worker with much work in hand rings when it has done half of it
//!     ([`Core::arm`]), never later than when it has done all of it. If what it has in hand shrinks
//!     below that without a reply, its doorbell is armed anew ([`Core::take_rearm`]). The driver
//!     task checks for replies without the doorbell when a third should be done, and after
//!     [`MODERATION`] at the latest. A worker that has answered nothing by then rings for its next
//!     reply.
//!
//! Rules 15 to 22, of the worker set, are in `core_staff.rs`. How tasks are stopped (rules 8 and
//! 11) is in `core_stop.rs`, what becomes of unresponsive workers (rule 23) in `core_deaf.rs`, how
//! a pool ends in `core_ending.rs`, and how batches are split (rule 24) in `core_runs.rs`.

use super::loss::Loss;
use super::options::{Options, Retry};
use super::run::Run;
use super::slots::{Key, Slots};
use super::stats::ExitReason;
use crate::error::Error;
use crate::wire::claim::{Claim, Claims, Progress};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much work a worker should have in flight, so that it never waits for the pool: what it does
/// between two wake-ups of the pool ([`Core::arm`]), and twice that in reserve. What a worker has
/// not begun can be taken back at any moment, so a large window costs no fairness.
const WINDOW_WORK: Duration = Duration::from_millis(3);
/// The same for [`Rules::low_latency`]: some wake-ups of another processor, which were measured at
/// 45 µs each.
const WINDOW_WORK_LOW_LATENCY: Duration = Duration::from_micros(300);
/// How long a reply waits at most for the wake-up that takes many (rule 25); and at least, for
/// looking more often costs more than it brings.
const MODERATION: Duration = Duration::from_millis(1);
const MODERATION_MIN: Duration = Duration::from_micros(100);
/// So many tasks the service time that is known stands for, beside those that have just ended.
const REMEMBERED: u32 = 16;
/// So many replies of an async worker in one look mean that more are coming at once.
const BURST: usize = 4;
/// A task as long as this gains nothing from standing ready behind another one.
const LONG: Duration = Duration::from_millis(3);
/// Tasks in flight in one worker, at most: what one reading of its socket takes in.
pub(crate) const WINDOW_MAX: u32 = 2048;
/// So much work standing behind a task is worth taking back for a worker that is idle: twice what
/// it costs to wake one.
const WORTH: Duration = Duration::from_micros(100);
/// A task goes back so often from workers that died with nothing begun. Then its next such death is
/// its own: workers that end as soon as they are ready must not be started for it for ever.
const MOVES_MAX: u8 = 2;
/// How long an async task that was aborted has to reach an await point, and the reply of a task
/// that is done to come.
pub(crate) const ABORT_GRACE: Duration = Duration::from_secs(1);
/// How often it is looked whether workers begin what they are given. A process that has to wait for
/// its processor begins later at times; then it costs little that another begins it.
const DEAF: Duration = Duration::from_millis(100);
/// What the clock cannot hold is as good as this.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// The wait after a first failed start; it doubles with each further one, up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Where starts fail slowly, one may always be under way. So many in a row at least, each ordered
/// after one had failed, and the tasks that wait are told though one is.
const STARTS_MAX: u32 = 4;

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
    /// Workers on duty, at most.
    pub(crate) workers: usize,
    /// Async tasks in flight in one worker, at most.
    pub(crate) concurrency: usize,
    /// A start must have led to the worker's hello by then.
    pub(crate) hello_limit: Duration,
    /// A start must have led to a ready worker by then, `init` included.
    pub(crate) start_limit: Option<Duration>,
    /// Workers ring for every reply, and have little work in hand.
    pub(crate) low_latency: bool,
    /// Who is on the staff, and for how long.
    pub(crate) policy: Policy,
}

impl Rules {
    /// How long a start may take until the process has said hello.
    pub(crate) fn start_limit_to_hello(&self) -> Duration {
        self.start_limit.map_or(self.hello_limit, |limit| limit.min(self.hello_limit))
    }

    /// How much work a worker should have in flight.
    fn window_work(&self) -> Duration {
        if self.low_latency { WINDOW_WORK_LOW_LATENCY } else { WINDOW_WORK }
    }
}

/// What is to be done, in this order.
#[derive(Debug)]
pub(crate) enum Action<T> {
    /// Start a process for this worker.
    Start(WorkerKey),
    /// Send this task to this worker, which finds its word in this slot; it is its try of this
    /// number.
    Send(WorkerKey, TaskKey, u16, u8),
    /// Wake this task in this worker, an async one or one that yields: it has been asked to stop by
    /// itself.
    Ask(WorkerKey, TaskKey),
    /// Tell this worker to drop this async task.
    Cancel(WorkerKey, TaskKey),
    /// Close this worker's intake; it ends by itself.
    Retire(WorkerKey),
    /// Kill this worker.
    Kill(WorkerKey),
    /// Look how much memory this worker has, and tell [`Core::weighed`].
    Weigh(WorkerKey),
    /// This worker's start has taken too long: note why, then kill it.
    TimeOut(WorkerKey),
    /// A task has ended without a reply.
    Settle(T, Fate),
    /// A task has failed like this, and will be tried again.
    Note(TaskKey, Fate),
    /// The pool is closed, no task is open, no worker alive.
    Ended,
}

/// How a task ends without a reply.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    Cancelled,
    /// Its time is over: this limit's.
    TimedOut(Limit),
    Closed,
    StartFailed(Error),
    Lost(Arc<Loss>),
    /// This worker has it, which the kernel cannot end.
    Unkillable(WorkerKey),
}

/// A time limit that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Of one run.
    Timeout(Duration),
    /// Of the whole.
    Deadline(Duration),
}

/// Why a task is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Abort,
    TimedOut(Limit),
    /// The pool ends.
    Close,
}

impl Stop {
    pub(crate) fn fate(self) -> Fate {
        match self {
            Self::Abort => Fate::Cancelled,
            Self::TimedOut(limit) => Fate::TimedOut(limit),
            Self::Close => Fate::Closed,
        }
    }
}

/// How a reply counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A value, or a failure that nobody tries again.
    Final,
    /// The task was dropped, as it was asked to be.
    Dropped,
    Panicked,
    /// A value that its own predicate holds to be worth another try; final if there is none.
    Again,
}

/// What becomes of a task that was answered.
#[derive(Debug)]
pub(crate) enum Replied<T> {
    /// It has ended; if it was being stopped, why.
    Ended(T, Option<Stop>),
    /// It is tried again.
    Again(TaskKey, Option<Stop>),
    /// It is an item of a run, of which others are left.
    Item(TaskKey),
}

/// The clock of the workers, set beside ours: nanoseconds of `CLOCK_MONOTONIC` at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) moment: Instant,
    pub(crate) nanos: u64,
}

impl Clock {
    /// The moment that a worker noted; `None` for what cannot be one.
    fn at(&self, nanos: u64) -> Option<Instant> {
        match nanos.checked_sub(self.nanos) {
            Some(after) => self.moment.checked_add(Duration::from_nanos(after)),
            None => self.moment.checked_sub(Duration::from_nanos(self.nanos - nanos)),
        }
    }
}

/// A task as it is handed in.
#[derive(Debug)]
pub(crate) struct Call<T> {
    /// What the rules do not look at.
    pub(crate) cargo: T,
    /// Its number on the wire; never given twice. Of a run, that of its first item.
    pub(crate) id: u64,
    pub(crate) mode: Mode,
    /// Its frame is so long that nothing should wait behind it.
    pub(crate) large: bool,
    /// `None`: none.
    pub(crate) options: Option<Arc<Options>>,
}

/// What a task carries, as far as the rules look at it.
pub(crate) trait Carried {
    /// How a run stands; `None`: it is a single task.
    fn run(&self) -> Option<&Run>;
    fn run_mut(&mut self) -> Option<&mut Run>;
    /// Takes off the items of a run from this one on, none of which has been answered.
    fn part(&mut self, from: u32) -> Self;
    /// It sends items while it runs.
    fn yields(&self) -> bool {
        false
    }
    /// Begins another try: items that it has sent are forgotten. `false`: some have been taken, and
    /// the reader must not see them twice.
    fn start_anew(&self) -> bool {
        true
    }
}

/// A submission that was not taken; the cargo comes back.
#[derive(Debug)]
pub(crate) struct Refused<T>(pub(crate) T, pub(crate) Fate);

/// The memory that a worker shares with the pool, as far as the rules need it.
pub(crate) trait Memory {
    fn claims(&self) -> Claims<'_>;
}

#[derive(Clone, Debug)]
struct Task<T> {
    cargo: T,
    id: u64,
    mode: Mode,
    large: bool,
    options: Option<Arc<Options>>,
    /// `None` while it waits in the queue.
    worker: Option<WorkerKey>,
    stopping: Option<Stop>,
    /// It waits for its next try until then, and not in the queue.
    delayed: Option<Instant>,
    deadline: Option<Instant>,
    /// Which try it is in, from 1.
    attempt: u8,
    /// How often its worker died when it was next there, with nothing begun.
    moves: u8,
}

impl<T: Carried> Task<T> {
    /// It may be what kills whoever reads it (rule 7).
    fn is_suspect(&self) -> bool {
        self.moves == MOVES_MAX
    }

    /// Nothing may stand beside it in its worker.
    fn stands_alone(&self) -> bool {
        self.is_suspect() || self.options.as_ref().is_some_and(|options| options.isolated)
    }

    fn timeout(&self) -> Option<Duration> {
        self.options.as_ref()?.timeout
    }

    /// For so long a worker may stand still with it in hand, though nobody else can take it.
    fn patience(&self) -> Option<Duration> {
        let options = self.options.as_ref()?;
        options.timeout.into_iter().chain(options.deadline).min()
    }

    /// How it is stopped while it runs.
    fn way_to_stop(&self) -> Way {
        let options = self.options.as_ref();
        let grace = options.and_then(|options| options.grace).filter(|grace| !grace.is_zero());
        match (self.mode, grace) {
            _ if options.is_some_and(|options| options.isolated) => Way::Kill,
            (_, Some(grace)) => Way::Ask(grace),
            (Mode::Async, None) => Way::Drop,
            (Mode::Sync, None) => Way::Kill,
        }
    }

    /// How long it has to reach an await point, when it is dropped.
    fn drop_grace(&self) -> Duration {
        match self.way_to_stop() {
            Way::Ask(grace) => grace.min(ABORT_GRACE),
            _ => ABORT_GRACE,
        }
    }

    /// Whether it is to be tried again after such a failure, and after how long.
    fn again(&self, counts: impl Fn(&Retry) -> bool) -> Option<Duration> {
        let retry = &self.options.as_ref()?.retry;
        let is_due = u32::from(self.attempt) <= retry.most && counts(retry);
        (is_due && self.cargo.start_anew()).then(|| retry.wait(self.attempt))
    }
}

/// See rule 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It is asked, and has this long to stop by itself.
    Ask(Duration),
    /// It is dropped at an await point.
    Drop,
    Kill,
}

/// ```text
/// Starting ── hello, ready ──▶ Spare ──▶ Ready ──▶ Departing ──▶ Retiring
///     └────────────┬─────────────┴─────────┴────────────┘            │
///                  ▼                                                 │
///                Doomed ───── exit ◀─────────────────────────────────┘     (an exit may come in every state)
/// ```
/// Most get ready without having been a spare; and whoever has nothing to do retires without
/// departing first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting {
        until: Option<Instant>,
    },
    /// Ready, and given nothing until it is on duty.
    Spare,
    Ready,
    /// It is given nothing more, and leaves when it is empty.
    Departing,
    /// Its intake is closed, or it has closed its side: it ends by itself.
    Retiring,
    Doomed,
}

/// A task in a worker's hand.
#[derive(Clone, Copy, Debug)]
struct Flight {
    claim: Claim,
    task: TaskKey,
    /// Items that are the worker's to do, of a run; and those that have not been answered.
    items: u32,
    left: u32,
    /// When it was first seen to have begun.
    begun: Option<Instant>,
    /// It is to be stopped or its time is over, and it was seen to be done: its reply has a grace
    /// to come, and no other.
    done: bool,
    /// It was looked at, with nothing before it, and had not begun.
    overlooked: bool,
    /// An async one, which its worker has been told to drop.
    dropping: bool,
}

#[derive(Clone, Debug)]
struct Worker<M> {
    state: State,
    /// There from the moment it is ready, if it has any.
    memory: Option<M>,
    /// When its start was ordered.
    started: Instant,
    /// Tasks sent and not answered, in the order of sending.
    in_flight: VecDeque<Flight>,
    /// How many those are, each item of a run counted.
    load: usize,
    /// It rings after so many further replies; at most `load`, but for a moment after that has
    /// shrunk. See [`Core::arm`].
    armed: usize,
    /// Slots that were used and are free, the last freed last; and how many were ever used.
    free_slots: Vec<u16>,
    slots_used: u32,
    mode: Mode,
    /// Time of one sync task, smoothed.
    service: Option<Duration>,
    /// Since when the present service is measured: the last replies, or the first sending.
    busy_since: Instant,
    /// It has been given a task.
    used: bool,
    /// Its task stands alone.
    alone: bool,
    /// It was killed to stop a task.
    killed_for: Option<TaskKey>,
    /// When the time limits of its tasks are to be looked at: not before any can be over.
    look_at: Option<Instant>,
    /// Tasks that were asked to stop, or are done by their word though nobody has heard of it, and
    /// when their time is up, in this order.
    asked: VecDeque<(Instant, TaskKey)>,
    /// Then it must have ended, having hung up or been retired, else it is doomed; or having been
    /// killed, else it is given up.
    end_by: Option<Instant>,
    /// Looking for what stands behind its task has brought nothing; not before this again.
    fruitless: Option<Instant>,
    /// Its entry in `roomy`, and its part of `behind`.
    listed: Option<(Mode, usize)>,
    counted_behind: usize,
    /// Why it goes, if that is known.
    why: Option<ExitReason>,
    /// It is deaf (rule 23), since it last answered.
    deaf_since: Option<Instant>,
    post: Post,
}

impl<M: Memory> Worker<M> {
    fn window(&self, work: Duration) -> usize {
        match self.service {
            _ if self.memory.is_none() => 1, // rule 14
            None => 1,
            Some(service) if service >= LONG => 1,
            Some(service) => {
                let fits = work.as_nanos() / service.as_nanos().max(1);
                fits.clamp(2, u128::from(WINDOW_MAX)) as usize
            }
        }
    }

    /// Rule 4, but for the time that the running task has lasted.
    fn may_take_more(&self, rules: &Rules) -> bool {
        let limit = match self.mode {
            Mode::Sync => self.window(rules.window_work()),
            Mode::Async => rules.concurrency,
        };
        self.state == State::Ready
            && !self.alone
            && self.deaf_since.is_none()
            && (1..limit).contains(&self.load)
    }

    /// How many sync tasks stand behind another.
    fn behind(&self) -> usize {
        match (self.mode, self.state) {
            (Mode::Sync, State::Ready | State::Departing | State::Retiring) => {
                self.load.saturating_sub(1)
            }
            _ => 0,
        }
    }

    /// From when on an idle worker should have what stands behind its task (rule 10).
    fn share_from(&self) -> Instant {
        let worth = self
            .service
            .is_none_or(|service| service.saturating_mul(self.behind() as u32) >= WORTH);
        let from = if worth { self.busy_since } else { self.busy_since + LONG };
        self.fruitless.map_or(from, |fruitless| fruitless.max(from))
    }

    /// A word for a task that is about to be sent.
    fn claim(&mut self, id: u64) -> Claim {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots_used += 1;
            (self.slots_used - 1) as u16
        });
        let claim = Claim { slot, id };
        if let Some(memory) = &self.memory {
            memory.claims().offer(claim);
        }
        claim
    }

    /// How far a task in its hand has come; without memory, it has begun.
    fn look(&self, claim: Claim) -> Progress {
        self.memory.as_ref().map_or(Progress::Started, |memory| memory.claims().look(claim))
    }

    /// As [`Claims::revoke`].
    fn revoke(&self, claim: Claim) -> Progress {
        self.memory.as_ref().map_or(Progress::Started, |memory| memory.claims().revoke(claim))
    }

    /// A task must have been answered by then.
    fn give_until(&mut self, by: Instant, task: TaskKey) {
        let at = self.asked.partition_point(|(other, _)| *other <= by);
        self.asked.insert(at, (by, task));
    }

    /// It has begun none of the tasks in its hand.
    fn none_begun(&self) -> bool {
        self.in_flight.iter().all(|flight| self.look(flight.claim) == Progress::Queued)
    }

    /// A task is in its hand no more.
    fn let_go(&mut self, at: usize) -> Option<Flight> {
        let flight = self.in_flight.remove(at)?;
        self.load -= flight.left as usize;
        self.free_slots.push(flight.claim.slot);
        self.alone &= !self.in_flight.is_empty();
        Some(flight)
    }

    /// Nothing should stand behind its running task any more. True until it answers.
    fn is_late(&self, now: Instant) -> bool {
        self.mode == Mode::Sync && now.saturating_duration_since(self.busy_since) >= LONG
    }

    /// When `tick` has something to do with it.
    fn deadline(&self, somebody_idle: bool) -> Option<Instant> {
        let share = (somebody_idle && self.behind() > 0).then(|| self.share_from());
        match self.state {
            State::Starting { until } => until,
            State::Spare | State::Ready | State::Departing | State::Retiring => self
                .asked
                .front()
                .map(|(by, _)| *by)
                .into_iter()
                .chain(self.end_by)
                .chain(self.look_at)
                .chain(share)
                .min(),
            State::Doomed => self.end_by,
        }
    }
}

/// The last failed start, unless a worker has got ready since.
#[derive(Clone, Debug)]
struct Failure {
    cause: Error,
    /// When the last one failed that counts.
    counted_at: Instant,
    /// Failed starts before that one, each ordered after the one before had failed: those that
    /// were under way together fail together, and count once.
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
#[derive(Clone, Debug)]
pub(crate) struct Core<T, M> {
    rules: Rules,
    clock: Clock,
    phase: Phase,
    tasks: Slots<Task<T>>,
    /// Tasks without a worker. A key whose task was aborted stays until its turn, and is passed
    /// over.
    queue: VecDeque<TaskKey>,
    /// How many keys of `queue` still have their task.
    queued: usize,
    /// Tasks that wait for their next try.
    delayed: BTreeSet<(Instant, TaskKey)>,
    /// Tasks with a deadline.
    deadlines: BTreeSet<(Instant, TaskKey)>,
    workers: Slots<Worker<M>>,
    /// Ready workers without a task; the last used is the next used, for its caches are warm.
    /// Those that are deaf stand first.
    idle: Vec<WorkerKey>,
    /// When it is looked whether workers begin what they are given; `None`: nobody is known to
    /// have been given something.
    listen_at: Option<Instant>,
    /// Workers at work that may take more, by the number of tasks in flight; for each mode. Those
    /// that are late are taken out when they are met, and come back with their next reply.
    roomy: [BTreeSet<(usize, WorkerKey)>; 2],
    /// Sync tasks that stand behind another, in all workers.
    behind: usize,
    /// The next deadline has changed without an action that would tell.
    deadline_moved: bool,
    /// A worker rings after more replies than it has in hand: its doorbell is to be armed anew.
    rearm: bool,
    /// Those that are on duty as soon as they are ready.
    starting: usize,
    failure: Option<Failure>,
    staff: staff::Staff,
    ending: ending::Ending,
}

impl<T: Carried, M: Memory> Core<T, M> {
    pub(crate) fn new(rules: Rules, clock: Clock) -> Self {
        Self {
            rules,
            clock,
            phase: Phase::Open,
            tasks: Slots::new(),
            queue: VecDeque::new(),
            queued: 0,
            delayed: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            workers: Slots::new(),
            idle: Vec::new(),
            listen_at: None,
            roomy: [BTreeSet::new(), BTreeSet::new()],
            behind: 0,
            deadline_moved: false,
            rearm: false,
            starting: 0,
            failure: None,
            staff: staff::Staff::default(),
            ending: ending::Ending::default(),
        }
    }

    // ---- tasks

    /// A task is handed in.
    pub(crate) fn submit(
        &mut self,
        call: Call<T>,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) -> Result<TaskKey, Refused<T>> {
        let Call { cargo, id, mode, large, options } = call;
        if self.phase != Phase::Open {
            return Err(Refused(cargo, Fate::Closed));
        }
        if let Some(cause) = self.no_hope(options.as_deref(), now) {
            return Err(Refused(cargo, Fate::StartFailed(cause))); // rules 9 and 21
        }
        let found_idle = self.has_idle();
        let deadline = options.as_ref().and_then(|options| now.checked_add(options.deadline?));
        let task = Task {
            cargo,
            id,
            mode,
            large,
            options,
            worker: None,
            stopping: None,
            delayed: None,
            deadline,
            attempt: 1,
            moves: 0,
        };
        let key = self.tasks.insert(task);
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, key));
            self.deadline_moved |= self.deadlines.first() == Some(&(deadline, key));
        }
        self.queue.push_back(key);
        self.queued += 1;
        // Else the head cannot be placed, and this one changes nothing about it.
        if self.queued == 1 {
            self.serve(now, actions);
        }
        self.man(now, actions);
        self.want_workers(usize::from(!found_idle), now, actions);
        Ok(key)
    }

    /// What a task carries.
    pub(crate) fn cargo_mut(&mut self, key: TaskKey) -> Option<&mut T> {
        self.tasks.get_mut(key).map(|task| &mut task.cargo)
    }

    /// Returns after how many further replies a worker should ring, of which so many have just been
    /// taken in, and when the driver is to look by itself if that is more than one. `room` is how
    /// many replies its memory surely holds.
    ///
    /// That is half of what it has in hand: so it never waits for the pool, and the pool wakes once
    /// for half a window. It is 1 if little is in hand, if nothing came since the doorbell was armed
    /// last (its task is long), and if the worker has a grace to answer in. Of async tasks nobody
    /// knows how many end soon: as many as have just ended, if those were many.
    ///
    /// The driver looks when a third should be done: a timer wakes it where it ran last, and costs
    /// the worker no system call. So the doorbell rings only if the driver is late.
    pub(crate) fn arm(&mut self, key: WorkerKey, came: usize, room: usize) -> (usize, Duration) {
        let Some(worker) = self.workers.get_mut(key) else { return (1, MODERATION) };
        let soon = match worker.mode {
            _ if self.rules.low_latency || !worker.asked.is_empty() || came == 0 => 1,
            Mode::Sync => worker.load / 2,
            Mode::Async if came >= BURST => came.min(worker.load / 2),
            Mode::Async => 1,
        };
        worker.armed = soon.min(room).max(1);
        let third = match (worker.mode, worker.service) {
            (Mode::Sync, Some(service)) => service.saturating_mul(worker.load as u32 / 3),
            _ => MODERATION_MIN,
        };
        (worker.armed, third.clamp(MODERATION_MIN, MODERATION))
    }

    /// Returns whether a doorbell is to be armed anew, though no reply has come: the driver must be
    /// woken for that.
    pub(crate) fn take_rearm(&mut self) -> bool {
        std::mem::take(&mut self.rearm)
    }

    /// Whether a worker is still to run what it was sent with this claim.
    pub(crate) fn has(&self, key: WorkerKey, claim: Claim) -> bool {
        self.workers
            .get(key)
            .is_some_and(|worker| worker.in_flight.iter().rev().any(|flight| flight.claim == claim))
    }

    /// The task's number on the wire.
    pub(crate) fn id_of(&self, key: TaskKey) -> Option<u64> {
        self.tasks.get(key).map(|task| task.id)
    }

    /// The worker that has the task, unless it still waits; `None` for a task that has ended.
    pub(crate) fn worker_of(&self, key: TaskKey) -> Option<Option<WorkerKey>> {
        self.tasks.get(key).map(|task| task.worker)
    }

    /// What a task carries that this worker has in hand. `None`: it does not have it.
    pub(crate) fn in_hand(&mut self, worker: WorkerKey, id: u64) -> Option<&mut T> {
        let worker = self.workers.get(worker)?;
        let flight = worker.in_flight.iter().find(|flight| flight.has(id))?;
        self.tasks.get_mut(flight.task).map(|task| &mut task.cargo)
    }

    /// Has the worker of a task tell when it begins, and says how far the task has come. `None`: it
    /// waits in the pool. Without claims, it has begun.
    pub(crate) fn watch(&self, key: TaskKey) -> Option<Progress> {
        let task = self.tasks.get(key)?;
        let worker = self.workers.get(task.worker?)?;
        let flight = worker.in_flight.iter().find(|flight| flight.task == key)?;
        let watch = |memory: &M| memory.claims().watch(flight.claim);
        Some(worker.memory.as_ref().map_or(Progress::Started, watch))
    }

    /// The moment that a worker noted, or now if that is none.
    pub(crate) fn moment(&self, nanos: u64, now: Instant) -> Instant {
        self.clock.at(nanos).map_or(now, |at| at.min(now))
    }

    /// When a task that has begun did so, as far as its worker has noted it.
    pub(crate) fn noted_start(&self, key: TaskKey, now: Instant) -> Instant {
        let noted = || {
            let task = self.tasks.get(key)?;
            task.timeout()?;
            let worker = self.workers.get(task.worker?)?;
            let flight = worker.in_flight.iter().find(|flight| flight.task == key)?;
            Some(worker.memory.as_ref()?.claims().started_at(flight.claim))
        };
        noted().map_or(now, |nanos| self.moment(nanos, now))
    }

    /// As [`Core::replied_row`], of one task or item.
    #[cfg(test)]
    pub(crate) fn replied(
        &mut self,
        worker: WorkerKey,
        id: u64,
        answer: Answer,
        now: Instant,
    ) -> Option<Replied<T>> {
        self.replied_row(worker, id, 1, answer, now).map(|(_, replied)| replied)
    }

    /// A worker has answered a task, or items of a run, whose numbers follow each other from this
    /// one on, at most so many. Says how many those are (of what is no run, one) and what becomes of
    /// the task: its cargo, if nothing is left of it. `None` if that worker does not have that
    /// task: it breaks the protocol. Call [`Core::refill`] after the last reply of a batch.
    pub(crate) fn replied_row(
        &mut self,
        worker: WorkerKey,
        id: u64,
        most: u32,
        answer: Answer,
        now: Instant,
    ) -> Option<(u32, Replied<T>)> {
        let worker = self.workers.get_mut(worker)?;
        let at = worker.in_flight.iter().position(|flight| flight.has(id))?;
        let Flight { task: key, claim, .. } = worker.in_flight[at];
        let mut count = 1;
        if let Some(run) = self.tasks.get_mut(key)?.cargo.run_mut() {
            count = run.answer((id - claim.id) as u32, most);
            if count == 0 {
                return None;
            }
            let left = run.left();
            if left > 0 {
                worker.in_flight[at].left = left;
                worker.load -= count as usize;
                return Some((count, Replied::Item(key)));
            }
        }
        worker.let_go(at);
        let task = self.tasks.get(key)?;
        let stop = task.stopping;
        let wait = match (answer, stop) {
            _ if self.phase == Phase::Killed => None,
            (Answer::Panicked, None) => task.again(|retry| retry.panics),
            (Answer::Again, None) => task.again(|_| true),
            (Answer::Dropped, Some(Stop::TimedOut(Limit::Timeout(_)))) => {
                task.again(|retry| retry.timeouts)
            }
            _ => None,
        };
        match wait {
            Some(wait) => {
                self.try_again(key, wait, now);
                Some((count, Replied::Again(key, stop)))
            }
            None => {
                if (answer, stop) == (Answer::Dropped, Some(Stop::Close)) {
                    self.ending.cut_off.begun.push(id);
                }
                self.forget(key).map(|task| (count, Replied::Ended(task.cargo, stop)))
            }
        }
    }

    /// A worker has answered `replies` tasks, each item of a run counted: learn from it, and give
    /// it more.
    pub(crate) fn refill(
        &mut self,
        key: WorkerKey,
        replies: u32,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        if replies == 0 {
            return;
        }
        if worker.mode == Mode::Sync {
            let spent = now.saturating_duration_since(worker.busy_since);
            worker.service = Some(match worker.service {
                None => spent / replies,
                // Each task counts alike: a look that finds few replies says little.
                Some(old) => (old * REMEMBERED + spent) / (REMEMBERED + replies),
            });
        }
        worker.armed = worker.armed.saturating_sub(replies as usize);
        worker.busy_since = now;
        worker.fruitless = None;
        worker.deaf_since = None;
        self.answered(key, now, actions);
        let Some(worker) = self.workers.get_mut(key) else { return };
        if !worker.asked.is_empty() {
            // A task that is tried again may even be in this worker's hand anew.
            let mut asked = std::mem::take(&mut worker.asked);
            asked.retain(|(_, task)| {
                let flight = worker.in_flight.iter().find(|flight| flight.task == *task);
                flight.is_some_and(|flight| {
                    flight.done || self.tasks.get(*task).is_some_and(|task| task.stopping.is_some())
                })
            });
            worker.asked = asked;
        }
        self.emptied(key);
        self.go_on(now, actions); // a task that is tried again may want a worker more
    }

    /// A task goes to the end of the queue, after a while.
    fn try_again(&mut self, key: TaskKey, wait: Duration, now: Instant) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.worker = None;
        task.stopping = None;
        task.attempt += 1;
        task.moves = 0;
        if wait.is_zero() {
            self.queue.push_back(key);
            self.queued += 1;
            return;
        }
        let until = now.checked_add(wait).unwrap_or(now + FOR_EVER);
        task.delayed = Some(until);
        self.delayed.insert((until, key));
        self.deadline_moved |= self.delayed.first() == Some(&(until, key));
    }

    /// A task is taken out of the books, but for its key in the queue.
    fn forget(&mut self, key: TaskKey) -> Option<Task<T>> {
        let task = self.tasks.remove(key)?;
        if let Some(deadline) = task.deadline {
            self.deadlines.remove(&(deadline, key));
        }
        if let Some(until) = task.delayed {
            self.delayed.remove(&(until, key));
        }
        Some(task)
    }

    // ---- workers

    /// All workers that there are to be in any case are wanted, now.
    pub(crate) fn start_all(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if self.phase == Phase::Open {
            while self.staff.places < self.core_staff() {
                self.start(Duty::On, now, actions);
            }
            self.call_spares(now, actions);
        }
    }

    /// The start of a worker that is to be forked is bounded from when it has been, and until then
    /// (`None`) by its template: that preloads first, however long it takes.
    pub(crate) fn limit_start(&mut self, key: WorkerKey, from: Option<Instant>) {
        let limit = self.rules.start_limit_to_hello();
        if let Some(Worker { state: State::Starting { until }, started, .. }) =
            self.workers.get_mut(key)
        {
            *started = from.unwrap_or(*started);
            *until = from.and_then(|from| from.checked_add(limit));
        }
    }

    /// A process has said hello; its `init` runs now.
    pub(crate) fn hello(&mut self, key: WorkerKey) {
        if let Some(Worker { state: State::Starting { until }, started, .. }) =
            self.workers.get_mut(key)
        {
            *until = self.rules.start_limit.and_then(|limit| started.checked_add(limit));
        }
    }

    /// A process is ready for its first task. Without memory, see rule 14. `false`: too late, it is
    /// not wanted any more.
    pub(crate) fn ready(
        &mut self,
        key: WorkerKey,
        memory: Option<M>,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) -> bool {
        let Some(worker) = self.workers.get_mut(key) else { return false };
        let State::Starting { .. } = worker.state else { return false };
        worker.memory = memory;
        self.failure = None;
        self.take_up(key, now, actions);
        self.go_on(now, actions); // a back-off may be over
        true
    }

    /// A process could not be started, or ended before it was ready.
    pub(crate) fn start_failed(
        &mut self,
        key: WorkerKey,
        cause: Error,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        let Some(worker) = self.take_out(key) else { return };
        let (earlier, counted_at) = match &self.failure {
            None => (0, now),
            Some(last) if worker.started > last.counted_at => (last.earlier + 1, now),
            Some(last) => (last.earlier, last.counted_at),
        };
        let wait = BACKOFF_MIN.saturating_mul(1 << earlier.min(16)).min(BACKOFF_MAX);
        self.failure =
            Some(Failure { cause: cause.clone(), counted_at, earlier, retry: Some(now + wait) });
        let in_vain = earlier + 1 >= STARTS_MAX
            && !self.workers.iter().any(|(_, worker)| worker.state == State::Ready);
        if self.starts_are_used_up() && (self.nobody_left() || in_vain) {
            self.fail_queue_for_now(&cause, now, actions);
        }
        self.man(now, actions);
        self.want_end(now, actions);
    }

    /// A process that was ready has ended, and all that it had committed has been told.
    pub(crate) fn exited(
        &mut self,
        key: WorkerKey,
        loss: &Arc<Loss>,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        let Some(mut worker) = self.take_out(key) else { return };
        let none_begun = worker.none_begun();
        let mut back = Vec::new();
        for place in 0..worker.in_flight.len() {
            let flight = worker.in_flight[place];
            let Some(task) = self.tasks.get_mut(flight.task) else { continue };
            let was_next = none_begun && (place == 0 || task.mode == Mode::Async);
            let waited = flight.is_whole() && worker.look(flight.claim) == Progress::Queued;
            let unbegun = waited && !(was_next && task.is_suspect());
            let innocent = worker.killed_for.is_some_and(|key| key != flight.task)
                && task.options.as_ref().is_some_and(|options| options.idempotent);
            // It was done in time by its word, and its answer never came.
            let unanswered = task
                .timeout()
                .filter(|_| flight.done)
                .map(|limit| Stop::TimedOut(Limit::Timeout(limit)));
            let (fate, wait) = match task.stopping.or(unanswered) {
                None if unbegun || (innocent && task.cargo.start_anew()) => {
                    task.worker = None;
                    task.moves += u8::from(unbegun && was_next);
                    back.push(flight.task);
                    continue;
                }
                None => {
                    let again = task.again(|retry| retry.deaths);
                    back.extend(Self::rest(&mut self.tasks, &mut worker, place, waited));
                    (Fate::Lost(Arc::clone(loss)), again)
                }
                Some(stop @ Stop::TimedOut(Limit::Timeout(_))) => {
                    (stop.fate(), task.again(|retry| retry.timeouts))
                }
                Some(stop) => (stop.fate(), None),
            };
            match wait {
                Some(wait) => {
                    actions.push(Action::Note(flight.task, fate));
                    self.try_again(flight.task, wait, now);
                }
                None => {
                    if let Some(task) = self.forget(flight.task) {
                        if matches!(fate, Fate::Closed) {
                            self.ending.cut_off.begun.extend(task.ids());
                        }
                        actions.push(Action::Settle(task.cargo, fate));
                    }
                }
            }
        }
        self.queued += back.len();
        back.into_iter().rev().for_each(|key| self.queue.push_front(key));
        self.died(&worker, loss, now);
        // A worker that served is replaced at once, so that the next task need not wait for a
        // start.
        let replace = worker.used && worker.post.duty == Duty::On && self.phase == Phase::Open;
        self.serve(now, actions);
        self.man(now, actions);
        self.want_workers(usize::from(replace), now, actions);
        self.want_end(now, actions);
    }

    /// A worker broke the protocol, or must go for another reason of the caller's.
    pub(crate) fn doom(&mut self, key: WorkerKey, now: Instant, actions: &mut Vec<Action<T>>) {
        let starting = self
            .workers
            .get(key)
            .is_some_and(|worker| matches!(worker.state, State::Starting { .. }));
        self.condemn(key, now, actions);
        if starting {
            return; // its end will count as a failed start, and has a back-off follow
        }
        self.go_on(now, actions);
    }

    /// A process is known to have ended; what it has answered is still to come.
    pub(crate) fn ending(&mut self, key: WorkerKey) {
        self.withdraw(key, State::Doomed);
        if let Some(worker) = self.workers.get_mut(key) {
            worker.end_by = None;
        }
    }

    /// A worker has closed its side: it is about to end, and must have ended by then.
    pub(crate) fn hung_up(&mut self, key: WorkerKey, until: Instant) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        match &mut worker.state {
            State::Starting { until: limit } => {
                *limit = Some(limit.map_or(until, |limit| limit.min(until)))
            }
            State::Spare | State::Ready | State::Departing | State::Retiring => {
                // One that was retired has what it was given then: it may run exit handlers now.
                if worker.state != State::Retiring || worker.why.is_none() {
                    worker.end_by = Some(until);
                }
                self.withdraw(key, State::Retiring);
            }
            State::Doomed => {}
        }
    }

    // ---- time

    /// When [`Core::tick`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let retry = self.failure.as_ref().and_then(|failure| failure.retry);
        let somebody_idle = self.has_idle();
        let tasks = [&self.delayed, &self.deadlines]
            .into_iter()
            .filter_map(|times| times.first())
            .map(|(at, _)| *at);
        let workers = self.workers.iter().filter_map(|(_, worker)| worker.deadline(somebody_idle));
        workers
            .chain(retry)
            .chain(tasks)
            .chain(self.cut_at())
            .chain(self.staff_deadline())
            .chain(self.listen_at)
            .min()
    }

    /// Whether [`Core::next_deadline`] has changed without an action that would tell.
    pub(crate) fn deadline_moved(&mut self) -> bool {
        std::mem::take(&mut self.deadline_moved)
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        while let Some((_, key)) = self.delayed.first().copied().filter(|(at, _)| *at <= now) {
            self.delayed.pop_first();
            if let Some(task) = self.tasks.get_mut(key) {
                task.delayed = None;
                self.queue.push_back(key);
                self.queued += 1;
            }
        }
        while let Some((at, key)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, key));
            let limit = self.tasks.get_mut(key).and_then(|task| {
                task.deadline = None;
                task.options.as_ref()?.deadline
            });
            if let Some(limit) = limit {
                self.stop(key, Stop::TimedOut(Limit::Deadline(limit)), now, actions);
            }
        }
        for key in self.workers.keys() {
            self.look_at_limits(key, now, actions);
            let Some(worker) = self.workers.get(key) else { continue };
            if worker.deadline(false).is_none_or(|by| now < by) {
                continue;
            }
            if matches!(worker.state, State::Starting { .. }) {
                self.withdraw(key, State::Doomed);
                self.blame(key, ExitReason::StartFailed); // though it may get ready before the kill arrives
                self.expect_end(key, now);
                actions.push(Action::TimeOut(key));
            } else if worker.state == State::Doomed {
                self.give_up(key, actions);
            } else if self.is_given_up(key, now, actions) {
                // One that was retired, or whose task is stopped, has its reason; this one has
                // closed its side, and goes on all the same.
                self.blame(key, ExitReason::ProtocolViolation);
                self.condemn(key, now, actions);
            }
        }
        if let Some(failure) = &mut self.failure {
            failure.retry = failure.retry.filter(|retry| now < *retry);
        }
        if self.listen_at.is_some_and(|at| at <= now) {
            self.relieve(now, actions);
        }
        self.end_in_time(now, actions);
        self.time_the_staff(now, actions);
        self.go_on(now, actions);
    }

    // ---- the end

    /// No more tasks; what is here runs to its end.
    pub(crate) fn drain(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if self.phase == Phase::Open {
            self.phase = Phase::Draining;
            self.want_end(now, actions);
        }
    }

    /// At once: every worker is killed, and what has not begun is settled; the rest when its
    /// process has ended.
    pub(crate) fn kill(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if matches!(self.phase, Phase::Killed | Phase::Ended) {
            return;
        }
        self.phase = Phase::Killed;
        for key in self.workers.keys() {
            self.blame(key, ExitReason::Closed);
            self.condemn(key, now, actions);
        }
        self.settle_unbegun(&Fate::Closed, actions);
        for key in self.tasks.keys() {
            if let Some(task) =
                self.tasks.get_mut(key).filter(|task| task.stopping != Some(Stop::Abort))
            {
                task.stopping = Some(Stop::Close);
            }
        }
        self.want_end(now, actions);
    }

    // ---- what is asked about

    /// No new tasks are taken.
    pub(crate) fn is_closed(&self) -> bool {
        self.phase != Phase::Open
    }

    /// How many items of a run are half of what a worker should have in hand, or none: so another
    /// one stands ready behind it. Of a map that has no more in flight than this, each worker
    /// is to have some, and some in store.
    pub(crate) fn run_length(&self, in_flight: usize) -> usize {
        let workers = self.rules.workers.max(1);
        (self.appetite(Mode::Sync) / (6 * workers)).min(in_flight / (2 * workers))
    }

    /// How many tasks keep every worker at work: a window in hand each, and two waiting.
    pub(crate) fn appetite(&self, mode: Mode) -> usize {
        let now: usize = self
            .workers
            .iter()
            .map(|(_, worker)| match mode {
                Mode::Sync => worker.window(self.rules.window_work()),
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

    /// After a change that may have made room, or put something into the queue.
    fn go_on(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        self.serve(now, actions);
        self.share(now, actions);
        self.man(now, actions);
        self.want_workers(0, now, actions);
        self.want_end(now, actions);
    }

    /// Rules 1 and 3: sends what stands at the head of the queue, as long as somebody has room for
    /// it.
    fn serve(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        while let Some(next) = self.queue.front().copied() {
            if let Some(task) = self.tasks.get(next) {
                let needs_idle = task.stands_alone() || (task.large && task.mode == Mode::Sync);
                let Some(worker) = self.place(task.mode, needs_idle, now) else { return };
                self.queued -= 1;
                self.send(worker, next, now, actions);
            }
            self.queue.pop_front();
        }
    }

    /// Rule 10: what stands behind others goes to those who are idle.
    fn share(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        while self.queued == 0 && self.behind > 0 && self.has_idle() {
            let from = self
                .workers
                .iter()
                .filter(|(_, worker)| worker.behind() > 0 && worker.share_from() <= now);
            let Some((key, worker)) = from.max_by_key(|(_, worker)| worker.behind()) else {
                self.deadline_moved = true; // the time to look again
                return;
            };
            // Of one that is long, all; else half, since the one in front will end before long.
            let most =
                if worker.is_late(now) { worker.behind() } else { worker.behind().div_ceil(2) };
            if self.take_back(key, most, actions) == 0
                && let Some(worker) = self.workers.get_mut(key)
            {
                worker.fruitless = Some(now + LONG); // they have begun: their replies are on their way
            }
            self.serve(now, actions);
        }
    }

    /// Rules 2 to 5: where a task goes.
    fn place(&mut self, mode: Mode, needs_idle: bool, now: Instant) -> Option<WorkerKey> {
        // A deaf one is better than none: it may go on at any time.
        self.place_well(mode, needs_idle, now).or(self.idle.last().copied())
    }

    /// As [`Core::place`], but nothing goes to the deaf.
    fn place_well(&mut self, mode: Mode, needs_idle: bool, now: Instant) -> Option<WorkerKey> {
        if self.has_idle() {
            return self.idle.last().copied();
        }
        let roomy = &mut self.roomy[mode as usize];
        while !needs_idle && let Some((_, key)) = roomy.first().copied() {
            let worker = self.workers.get_mut(key)?;
            if !worker.is_late(now) {
                return Some(key);
            }
            worker.listed = None;
            roomy.pop_first();
        }
        None
    }

    /// Somebody is idle, and hears.
    fn has_idle(&self) -> bool {
        self.idle
            .last()
            .and_then(|key| self.workers.get(*key))
            .is_some_and(|worker| worker.deaf_since.is_none())
    }

    /// Only to where [`Core::place`] says.
    fn send(
        &mut self,
        key: WorkerKey,
        task_key: TaskKey,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        let (Some(worker), Some(task)) = (self.workers.get_mut(key), self.tasks.get_mut(task_key))
        else {
            return;
        };
        if worker.in_flight.is_empty() {
            worker.mode = task.mode;
            worker.busy_since = now;
            worker.fruitless = None;
            worker.used = true;
            worker.alone = task.stands_alone();
            self.idle.pop();
        }
        let items = task.items() as u32;
        let claim = worker.claim(task.id);
        // Without claims it is taken for begun as soon as it is sent.
        let begun = worker.memory.is_none().then_some(now);
        worker.in_flight.push_back(Flight {
            claim,
            task: task_key,
            items,
            left: items,
            begun,
            done: false,
            dropping: false,
            overlooked: false,
        });
        worker.load += items as usize;
        task.worker = Some(key);
        if self.listen_at.is_none() {
            self.listen_at = Some(now + DEAF);
            self.deadline_moved = true;
        }
        // What the clock cannot hold is never over.
        if let Some(over) = task.timeout().and_then(|timeout| now.checked_add(timeout))
            && worker.look_at.is_none_or(|at| over < at)
        {
            worker.look_at = Some(over);
            self.deadline_moved = true;
        }
        let attempt = task.attempt;
        self.count_task(key);
        self.list(key);
        actions.push(Action::Send(key, task_key, claim.slot, attempt));
    }

    /// Takes back what a worker has not begun, the last first, until it is so many; they go to the
    /// head of the queue, in order. Says how many, each item of a run counted.
    fn take_back(&mut self, key: WorkerKey, most: usize, actions: &mut Vec<Action<T>>) -> usize {
        let Some(worker) = self.workers.get_mut(key) else { return 0 };
        let (mut taken, load) = (0, worker.load);
        for at in (0..worker.in_flight.len()).rev() {
            if taken >= most {
                break;
            }
            // What is being stopped had begun, whatever its word says now: it must not run again.
            if self.tasks.get(worker.in_flight[at].task).is_some_and(|task| task.stopping.is_some())
            {
                continue;
            }
            // A run that is about to begin stands behind nothing, though its items stand behind
            // each other.
            let Flight { claim, left, .. } = worker.in_flight[at];
            let may_go =
                worker.in_flight[at].is_whole() && (at > 0 || most - taken >= left as usize);
            if may_go && worker.revoke(claim) == Progress::Queued {
                let Some(flight) = worker.let_go(at) else { continue };
                let Some(task) = self.tasks.get_mut(flight.task) else { continue };
                task.worker = None;
                worker.post.served -= 1;
                self.queue.push_front(flight.task);
                self.queued += 1;
            } else if let Some(rest) = Self::cut(&mut self.tasks, worker, at, most - taken) {
                self.queue.push_front(rest);
                self.queued += 1;
                Self::let_go_if_answered(&mut self.tasks, worker, at, actions);
            }
            taken = load - worker.load;
        }
        if taken > 0 {
            self.emptied(key);
        }
        taken
    }

    /// A worker has fewer tasks in hand than before, perhaps none.
    fn emptied(&mut self, key: WorkerKey) {
        match self.workers.get(key) {
            Some(Worker { state: State::Ready, in_flight, .. }) if in_flight.is_empty() => {
                // The deaf are used last.
                let at = if self.workers.get(key).is_some_and(|worker| worker.deaf_since.is_some())
                {
                    0
                } else {
                    self.idle.len()
                };
                self.idle.insert(at, key);
                self.somebody_idle();
            }
            Some(Worker { state: State::Departing, in_flight, .. }) if in_flight.is_empty() => {
                self.staff.look = true
            }
            _ => {}
        }
        self.list(key);
    }

    /// Enters a worker in `roomy` as it is now, or takes it out.
    fn list(&mut self, key: WorkerKey) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        let entry = worker.may_take_more(&self.rules).then_some((worker.mode, worker.load));
        if let Some((mode, load)) = std::mem::replace(&mut worker.listed, entry) {
            self.roomy[mode as usize].remove(&(load, key));
        }
        if let Some((mode, load)) = entry {
            self.roomy[mode as usize].insert((load, key));
        }
        if worker.armed > worker.load.max(1) {
            worker.armed = 0; // told once
            self.rearm = true;
        }
        let behind = worker.behind();
        self.behind = self.behind + behind - std::mem::replace(&mut worker.counted_behind, behind);
    }

    /// A worker is given nothing more.
    fn withdraw(&mut self, key: WorkerKey, state: State) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        match std::mem::replace(&mut worker.state, state) {
            State::Starting { .. } if worker.post.duty == Duty::On => self.starting -= 1,
            State::Starting { .. } => self.staff.starting -= 1,
            State::Spare => self.staff.spares.retain(|spare| *spare != key),
            State::Ready if worker.in_flight.is_empty() => self.idle.retain(|idle| *idle != key),
            _ => {}
        }
        self.staff.look = true;
        self.list(key);
    }

    /// A worker is to be killed; first it is given nothing more, and what it has not begun is taken
    /// back.
    fn condemn(&mut self, key: WorkerKey, now: Instant, actions: &mut Vec<Action<T>>) {
        let Some(worker) = self.workers.get(key).filter(|worker| worker.state != State::Doomed)
        else {
            return;
        };
        // With nothing begun it may be the first one that brought this about: the exit will count
        // it (rule 7).
        let most = match worker.mode {
            _ if !worker.none_begun() => usize::MAX,
            Mode::Sync => {
                worker.load - worker.in_flight.front().map_or(0, |flight| flight.left as usize)
            }
            Mode::Async => 0,
        };
        self.withdraw(key, State::Doomed);
        self.take_back(key, most, actions);
        self.expect_end(key, now);
        actions.push(Action::Kill(key));
    }

    /// A worker has ended.
    fn take_out(&mut self, key: WorkerKey) -> Option<Worker<M>> {
        self.withdraw(key, State::Doomed);
        let worker = self.workers.remove(key)?;
        self.staff.left(&worker.post);
        Some(worker)
    }

    /// A queued task ends without having been sent.
    fn forget_queued(&mut self, key: TaskKey, fate: Fate, actions: &mut Vec<Action<T>>) {
        if let Some(task) = self.forget(key) {
            self.queued -= usize::from(task.delayed.is_none());
            actions.push(Action::Settle(task.cargo, fate));
        }
        if self.queue.len() > 32 && self.queued < self.queue.len() / 2 {
            self.queue.retain(|key| self.tasks.get(*key).is_some()); // half of it is keys without a task
        }
    }

    /// Rule 6: as many starts under way as there are tasks that found nobody idle; but a spare is
    /// quicker (rule 18).
    fn want_workers(&mut self, extra: usize, now: Instant, actions: &mut Vec<Action<T>>) {
        let mut enlisted = false;
        loop {
            let behind = if self.phase == Phase::Open { self.behind } else { 0 };
            let demand = (self.queued + behind).max(extra);
            if demand == 0 || self.has_idle() {
                break;
            }
            if let Some(spare) = self.spare_for_a_vacancy() {
                enlisted = true;
                self.enlist(spare, now);
                self.serve(now, actions);
                self.share(now, actions);
            } else if self.starting >= demand || self.staff.places >= self.rules.workers {
                break;
            } else if let Some(coming) = self.surplus_to_come() {
                self.promise(coming);
            } else if self.starts_are_allowed(now) {
                self.start(Duty::On, now, actions);
            } else {
                break;
            }
        }
        if enlisted {
            self.call_spares(now, actions);
        }
    }

    fn start(&mut self, duty: Duty, now: Instant, actions: &mut Vec<Action<T>>) {
        let limit = self.rules.start_limit_to_hello();
        let key = self.workers.insert(Worker {
            state: State::Starting { until: now.checked_add(limit) },
            memory: None,
            started: now,
            in_flight: VecDeque::new(),
            load: 0,
            armed: 1,
            free_slots: Vec::new(),
            slots_used: 0,
            mode: Mode::Sync,
            service: None,
            busy_since: now,
            used: false,
            alone: false,
            killed_for: None,
            look_at: None,
            asked: VecDeque::new(),
            end_by: None,
            fruitless: None,
            listed: None,
            counted_behind: 0,
            why: None,
            deaf_since: None,
            post: Post::new(duty, self.staff.generation, now),
        });
        self.order(duty);
        actions.push(Action::Start(key));
    }

    /// While draining: workers without work may go, unless they could take what stands behind
    /// others, or in one that stands still; when the last has gone, the pool has ended.
    fn want_end(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if !matches!(self.phase, Phase::Draining | Phase::Killed) {
            return;
        }
        if self.phase == Phase::Draining && self.queued + self.behind == 0 {
            if !self.somebody_is_stuck() {
                for key in self.idle.iter().chain(&self.staff.spares).copied().collect::<Vec<_>>() {
                    self.retire(key, ExitReason::Closed, now, actions);
                }
            }
            // Who departed while something was queued kept his place for it; and nothing else may
            // have changed since.
            self.let_leave(now, actions);
        }
        if self.phase == Phase::Draining && self.tasks.len() == 0 {
            for key in self.workers.keys() {
                // It was started for a task that is gone; it may hang in `init` for ever. (As long
                // as a task is in flight it may come back to the queue, and want
                // this worker.)
                if self
                    .workers
                    .get(key)
                    .is_some_and(|worker| matches!(worker.state, State::Starting { .. }))
                {
                    self.blame(key, ExitReason::Closed);
                    self.condemn(key, now, actions);
                }
            }
        }
        if self.tasks.len() == 0 && self.only_given_up_are_left() {
            self.phase = Phase::Ended;
            actions.push(Action::Ended);
        }
    }
}

#[path = "core_stop.rs"]
mod stopping;

#[path = "core_deaf.rs"]
mod deaf;

#[path = "core_runs.rs"]
mod runs;

#[path = "core_ending.rs"]
mod ending;

#[path = "core_staff.rs"]
mod staff;

pub(crate) use ending::CutOff;
pub(crate) use staff::Policy;
use staff::{Duty, Post};

#[cfg(test)]
#[path = "core_sim.rs"]
mod simulation;

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "core_search.rs"]
mod search;

#[cfg(test)]
#[path = "core_drain_sim.rs"]
mod drain_simulation;
