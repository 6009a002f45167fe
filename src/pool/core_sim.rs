//! The rules of a pool against a made-up world and an independent model.
//!
//! The world plays everything around [`Core`]: callers with time limits, retries and the other
//! options of a call, processes that start, work, answer, panic, hang and die, and the clock. It
//! does what the actions say, as late as it likes, and calls `tick` at `next_deadline` only, which
//! it looks at when the engine would. The model keeps its own books, in the plainest way; each
//! action is held against them before it is entered, and after each event they are held against the
//! core's own. What is wrong is returned, not panicked with, so that a test can also show that
//! broken rules are found ([`Flaw`]).
//!
//! `PROCPOOL_SEED` runs one seed, `PROCPOOL_ROUNDS` so many, from that seed or from 0; the ignored
//! test is the long run.

use super::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

const BASE_ID: u64 = 1_000;
const END_GRACE: Duration = Duration::from_secs(2);

// ---- what a worker shares with the pool

/// The real claims, in memory of the test's own. A clone is a copy.
#[derive(Debug)]
pub(super) struct TestMemory {
    words: Vec<AtomicU64>,
    starts: Vec<AtomicU64>,
}

impl TestMemory {
    pub(super) fn new(slots: usize) -> Self {
        let words = || (0..slots).map(|_| AtomicU64::new(0)).collect();
        Self { words: words(), starts: words() }
    }
}

impl Clone for TestMemory {
    fn clone(&self) -> Self {
        let copy = |words: &[AtomicU64]| {
            words.iter().map(|word| AtomicU64::new(word.load(Ordering::Relaxed))).collect()
        };
        Self { words: copy(&self.words), starts: copy(&self.starts) }
    }
}

impl Memory for TestMemory {
    fn claims(&self) -> Claims<'_> {
        Claims::new(&self.words, &self.starts)
    }
}

/// Tasks that are no runs (see `core_runs_sim.rs` for those).
impl Carried for u64 {
    fn run(&self) -> Option<&Run> {
        None
    }

    fn run_mut(&mut self) -> Option<&mut Run> {
        None
    }

    fn part(&mut self, _: u32) -> Self {
        unreachable!("it is no run")
    }

    fn yields(&self) -> bool {
        *self >= BASE_ID && yields(*self - BASE_ID)
    }

    fn start_anew(&self) -> bool {
        *self < BASE_ID || !was_read(*self - BASE_ID)
    }
}

/// Some of the simulated tasks yield, and of some of these items have been taken.
fn yields(id: u64) -> bool {
    id % 5 == 3
}

fn was_read(id: u64) -> bool {
    id % 10 == 8
}

// ---- randomness

/// SplitMix64: small, and the same everywhere.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Of `0..n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Once in `n`.
    pub(super) fn rarely(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }

    fn micros(&mut self, below: u64) -> Duration {
        Duration::from_nanos(self.below(below * 1_000) + 1)
    }

    /// Mostly short, now and then a thousand times longer.
    fn heavy_tail(&mut self, typical: Duration) -> Duration {
        let unit = 1 + self.below(1_000);
        typical * ((1_000 / unit) as u32) / 4 + self.micros(10)
    }
}

// ---- what a round is like

#[derive(Clone, Debug)]
struct Plan {
    rules: Rules,
    tasks: u64,
    /// Between submissions, at most.
    pace: Duration,
    /// Typical service time.
    service: Duration,
    burst: u64,
    async_percent: u64,
    large_percent: u64,
    /// One task in so many is aborted; hangs (and is aborted at some time); kills its worker.
    abort: u64,
    hang: u64,
    crash: u64,
    /// One task in so many kills whoever reads it.
    poison: u64,
    /// One run in so many panics.
    panic: u64,
    /// Percent of the tasks that have options, and how long a typical time limit is.
    options_percent: u64,
    limits: Duration,
    /// One reply in so many is nonsense; one worker in so many hangs up by itself.
    nonsense: u64,
    hang_up: u64,
    /// With one task in so many its worker stands still for a while, and begins nothing.
    still: u64,
    /// Percent of starts that fail; in bad phases all do.
    start_fails: u64,
    bad_phases: bool,
    abort_where: u64,
    start_all: bool,
    /// How it ends.
    kill: bool,
    end_early: bool,
    /// A drain is cut short after that.
    limit: Option<Duration>,
    abort_unbegun: u64,
    /// Looks over everything after one event in so many.
    thorough: u64,
}

impl Plan {
    /// What a call is told about its task.
    fn options(&self, rng: &mut Rng) -> Option<Arc<Options>> {
        if !rng.chance(self.options_percent) {
            return None;
        }
        let mut time = |percent: u64| rng.chance(percent).then(|| rng.heavy_tail(self.limits));
        let (timeout, deadline, grace) = (time(40), time(20), time(60));
        let retry = Retry {
            most: [0, 0, 1, 3][rng.below(4) as usize],
            deaths: rng.chance(80),
            timeouts: rng.chance(80),
            panics: rng.chance(50),
            partial: false,
            starts: rng.chance(30),
            wait_min: if rng.chance(50) { Duration::ZERO } else { rng.micros(5_000) },
            wait_max: Duration::from_millis(20),
        };
        Some(Arc::new(Options {
            timeout,
            deadline,
            grace,
            isolated: rng.chance(15),
            idempotent: rng.chance(85),
            retry,
        }))
    }

    fn random(rng: &mut Rng, tasks: u64, workers: u64) -> Self {
        let often = |rng: &mut Rng, n: u64| if rng.chance(50) { 0 } else { 1 + rng.below(n) };
        let workers = match rng.below(4) {
            0 => 1,
            1 => 2,
            _ => 1 + rng.below(workers) as usize,
        };
        let limit =
            if rng.chance(50) { Some(Duration::from_millis(1 + rng.below(300))) } else { None };
        let rules = Rules {
            workers,
            concurrency: 1 + rng.below(12) as usize,
            hello_limit: Duration::from_millis(50 + rng.below(200)),
            start_limit: limit,
            // It knows nothing of the budget.
            low_latency: false,
            policy: Policy {
                restarts: Some(u32::MAX),
                start_attempts: 1 + rng.below(4) as u32,
                ..Policy::default()
            },
        };
        Self {
            rules,
            tasks: 1 + rng.below(tasks),
            pace: Duration::from_micros([1, 20, 300, 5_000][rng.below(4) as usize]),
            service: Duration::from_micros([1, 10, 100, 2_000, 20_000][rng.below(5) as usize]),
            burst: [1, 5, 200][rng.below(3) as usize],
            async_percent: [0, 5, 50, 100][rng.below(4) as usize],
            large_percent: [0, 3, 50][rng.below(3) as usize],
            abort: often(rng, 40),
            hang: often(rng, 60),
            crash: often(rng, 200),
            poison: often(rng, 300),
            panic: often(rng, 50),
            options_percent: [0, 5, 50, 100][rng.below(4) as usize],
            limits: Duration::from_micros([50, 2_000, 50_000][rng.below(3) as usize]),
            nonsense: often(rng, 500),
            hang_up: often(rng, 200),
            still: often(rng, 25),
            start_fails: [0, 0, 20, 70][rng.below(4) as usize],
            bad_phases: rng.chance(30),
            abort_where: often(rng, 100),
            start_all: rng.chance(20),
            kill: rng.chance(30),
            end_early: rng.chance(40),
            limit: [None, Some(Duration::ZERO), Some(rng.micros(3_000)), Some(rng.micros(300_000))]
                [rng.below(4) as usize],
            abort_unbegun: often(rng, 200),
            thorough: 1,
        }
    }
}

/// A broken rule, which the checks must find: the core's own state is falsified, or what it says
/// and is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// The queue is served out of order.
    Order,
    /// A queued task is forgotten.
    Forget,
    /// The window is as large as it gets.
    Window,
    /// One async task too many.
    Concurrency,
    /// Sync and async tasks are mixed.
    Mixed,
    /// A large task is treated as a small one.
    Large,
    /// One worker too many.
    Workers,
    /// A doomed worker is used again.
    Revived,
    /// A worker that is idle is not known as such.
    NotIdle,
    /// What the dead worker had not begun counts as begun.
    Unbegun,
    /// What had run goes back to the queue.
    RunAgain,
    /// What kills whoever reads it is not suspected.
    Unsuspected,
    /// What stands behind a long task stays there.
    NoSharing,
    /// An abort is not kept in mind.
    Unaborted,
    /// A task is settled twice.
    SettleTwice,
    /// A task is not settled.
    Unsettled,
    /// An async task that does not answer is not killed.
    NoGrace,
    /// The grace of one abort is cut short.
    ShortGrace,
    /// No start is tried again.
    NoRetry,
    /// Starts are tried at once.
    NoBackoff,
    /// The counter of queued tasks drifts.
    Queued,
    /// The counter of starts drifts.
    Starting,
    /// The end is told twice.
    EndTwice,
    /// The end is not told.
    Endless,
    /// A drain is not cut short.
    NoLimit,
    /// What the end has stopped counts as aborted by its caller.
    Misnamed,
    /// A task that was cut off is not written down.
    Unwritten,
    /// No time limit is looked at; or it is over too early, or counts from when it was seen.
    Untimed,
    Early,
    Late,
    /// No deadline is kept in mind.
    NoDeadline,
    /// A task that waits for its next try is forgotten; or does not wait; or is not counted.
    NoSecondTry,
    Impatient,
    Uncounted,
    /// Others stand beside a task that is isolated.
    Together,
    /// An idempotent neighbour counts as what its worker was killed for; or everybody is innocent.
    Guilty,
    Innocent,
    /// Nobody looks whether workers stand still; or they are taken for that too soon, are used
    /// before others, or killed too soon.
    Unlistened,
    Hasty,
    DeafFirst,
    ShortPatience,
}

const FLAWS: [Flaw; 41] = [
    Flaw::Order,
    Flaw::Forget,
    Flaw::Window,
    Flaw::Concurrency,
    Flaw::Mixed,
    Flaw::Large,
    Flaw::Workers,
    Flaw::Revived,
    Flaw::NotIdle,
    Flaw::Unbegun,
    Flaw::RunAgain,
    Flaw::Unsuspected,
    Flaw::NoSharing,
    Flaw::Unaborted,
    Flaw::SettleTwice,
    Flaw::Unsettled,
    Flaw::NoGrace,
    Flaw::ShortGrace,
    Flaw::NoRetry,
    Flaw::NoBackoff,
    Flaw::Queued,
    Flaw::Starting,
    Flaw::EndTwice,
    Flaw::Endless,
    Flaw::NoLimit,
    Flaw::Misnamed,
    Flaw::Unwritten,
    Flaw::Untimed,
    Flaw::Early,
    Flaw::Late,
    Flaw::NoDeadline,
    Flaw::NoSecondTry,
    Flaw::Impatient,
    Flaw::Uncounted,
    Flaw::Together,
    Flaw::Guilty,
    Flaw::Innocent,
    Flaw::Unlistened,
    Flaw::Hasty,
    Flaw::DeafFirst,
    Flaw::ShortPatience,
];

// ---- the model's books

/// A place in the queue. What several workers gave back at once has the same first number, and a
/// lane for each: the order counts within each lane.
type Turn = (i64, Option<WorkerKey>, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Its place in the order of the queue.
    Queued(Turn),
    InFlight(WorkerKey),
    /// It waits for its next try until then.
    Delayed(Instant),
    Settled,
}

#[derive(Debug)]
struct Job {
    id: u64,
    key: Option<TaskKey>,
    mode: Mode,
    large: bool,
    place: Place,
    options: Options,
    deadline: Option<Instant>,
    /// Which try it is in, from 1.
    attempt: u8,
    /// Why it is to be stopped.
    stop: Option<Stop>,
    /// Async, it is to be dropped; and its worker has been told.
    dropping: bool,
    told: bool,
    /// It was done when its time was up, and its reply has had a grace of its own.
    excused: bool,
    sent_at: Instant,
    /// A process has begun it, in this try, and when.
    begun: bool,
    began_at: Instant,
    /// It has ended there, and its reply is committed.
    done: bool,
    /// And its time limit has passed since, without anybody having heard of it.
    unheard: bool,
    service: Duration,
    /// In so many tries it hangs, or kills its worker.
    hangs: u8,
    crashes: u8,
    poison: bool,
    /// How often it went back although it was next.
    moves: u8,
}

impl Job {
    /// Nothing may stand beside it.
    fn stands_alone(&self) -> bool {
        self.moves == MOVES_MAX || self.options.isolated
    }

    /// How it is stopped while it runs.
    fn way(&self) -> Way {
        match self.options.grace {
            _ if self.options.isolated => Way::Kill,
            Some(grace) => Way::Ask(grace),
            None if self.mode == Mode::Async => Way::Drop,
            None => Way::Kill,
        }
    }

    /// After such a failure it is tried again.
    fn is_tried_again(&self, failure: impl Fn(&Retry) -> bool) -> bool {
        failure(&self.options.retry)
            && u32::from(self.attempt) <= self.options.retry.most
            && !was_read(self.id)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Ordered; `until` is when it must have come further.
    Starting {
        until: Option<Instant>,
    },
    Ready,
    /// Hung up or retired, and must end by then.
    Leaving {
        by: Instant,
    },
    /// To be killed.
    Doomed,
}

/// A worker: what the model knows of it, and its process.
#[derive(Debug)]
struct Hand {
    life: Life,
    ordered: Instant,
    in_flight: VecDeque<u64>,
    /// The slots of those.
    slots: HashMap<u64, u16>,
    service: Option<Duration>,
    busy_since: Instant,
    /// Tasks that are to stop and were asked or are done, and when they must have ended.
    asked: Vec<(Instant, u64)>,
    /// It is killed for the sake of a task.
    killed_for_one: bool,
    /// What stands first in its hand, and since when.
    first: Option<(u64, Instant)>,
    /// It is taken to stand still, and to have done so since then.
    deaf: Option<Instant>,
    /// What was taken back from it in this event.
    given_back: Vec<u64>,
    // The process.
    got_ready: bool,
    /// Sent, and not yet taken in; taken in and waiting; running.
    wire: VecDeque<Claim>,
    inbox: VecDeque<Claim>,
    running: Vec<u64>,
    replies: Vec<(u64, Answer)>,
    delivery_due: bool,
    /// It says nothing more and begins nothing more.
    silent: bool,
    /// It stands still until then.
    still: Option<Instant>,
    hangs_at_end: bool,
    /// It has lost its place, though it has not ended.
    retired: bool,
    exit_due: bool,
}

impl Hand {
    /// Tasks that are not begun though nothing stands before them. What is large takes its time to
    /// arrive.
    fn could_begin<'a>(&'a self, jobs: &'a [Job]) -> impl Iterator<Item = &'a Job> {
        let in_hand = self.in_flight.iter().map(|id| &jobs[*id as usize]).enumerate();
        in_hand
            .filter(|(at, job)| (*at == 0 || job.mode == Mode::Async) && !job.begun && !job.large)
            .map(|(_, job)| job)
    }

    /// Since when nothing stands before such a task, and nothing was answered: who answers is
    /// awake.
    fn since_first(&self, job: &Job) -> Option<Instant> {
        let since = match job.mode {
            Mode::Sync => self.first?.1,
            Mode::Async => job.sent_at,
        };
        Some(since.max(self.busy_since))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Submit,
    Abort(u64),
    AbortWhere(u64),
    AbortUnbegun,
    StartAll,
    Drain,
    Kill,
    Phase(bool),
    StartFailed(WorkerKey),
    Hello(WorkerKey, bool),
    Ready(WorkerKey),
    Arrive(WorkerKey),
    Finish(WorkerKey, u64),
    /// The task has heard that it is to stop, or is dropped.
    Heard(WorkerKey, u64),
    Deliver(WorkerKey),
    HangUp(WorkerKey),
    GoOn(WorkerKey),
    Exit(WorkerKey),
}

/// What the model expects of the event at hand.
#[derive(Default)]
struct Expected {
    /// Tasks of a worker that died: why they were stopped (else they are lost). Those end; these
    /// are tried again.
    settles: HashMap<u64, Option<Stop>>,
    notes: HashMap<u64, Option<Stop>>,
    start_failed: bool,
    start_all: bool,
}

struct World {
    rng: Rng,
    plan: Plan,
    flaw: Option<Flaw>,
    beginning: Instant,
    now: Instant,
    core: Core<u64, TestMemory>,
    actions: Vec<Action<u64>>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    serial: u64,
    deadline: Option<Instant>,
    jobs: Vec<Job>,
    open: u64,
    queue: BTreeMap<Turn, u64>,
    front: i64,
    back: i64,
    hands: BTreeMap<WorkerKey, Hand>,
    failed_at: Option<Instant>,
    /// Failed starts since then after which no worker was left.
    times_alone: u32,
    bad_phase: bool,
    draining: bool,
    killed: bool,
    ended: bool,
    /// When a drain is to be cut short, and whether it was; what the end has cut off.
    cut_at: Option<Instant>,
    cut: bool,
    cut_off: CutOff,
    expected: Expected,
    /// The core has been told to doom this one.
    told: Option<WorkerKey>,
    /// Tasks were taken back in this event.
    shuffled: bool,
    /// A task that was begun a second time.
    ran_again: Option<u64>,
    error: Error,
    /// How often what came up.
    seen: BTreeMap<&'static str, u64>,
}

type Check = Result<(), String>;

macro_rules! ensure {
    ($truth:expr, $($why:tt)*) => {
        if !$truth { return Err(format!($($why)*)); }
    };
}

impl World {
    fn new(seed: u64, tasks: u64, workers: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = Rng(seed);
        let plan = Plan::random(&mut rng, tasks, workers);
        Self::with(plan, rng, flaw)
    }

    fn with(plan: Plan, rng: Rng, flaw: Option<Flaw>) -> Self {
        let now = Instant::now();
        let mut rules = plan.rules.clone();
        match flaw {
            Some(Flaw::Workers) => rules.workers += 1,
            Some(Flaw::Concurrency) => rules.concurrency += 1,
            _ => {}
        }
        let mut world = Self {
            core: Core::new(rules, Clock { moment: now, nanos: 0 }),
            error: Error::spawn("simulating", std::io::Error::other("no")),
            rng,
            flaw,
            now,
            actions: Vec::new(),
            events: BinaryHeap::new(),
            serial: 0,
            deadline: None,
            jobs: Vec::new(),
            open: 0,
            queue: BTreeMap::new(),
            front: 0,
            back: 0,
            hands: BTreeMap::new(),
            failed_at: None,
            times_alone: 0,
            bad_phase: false,
            draining: false,
            killed: false,
            ended: false,
            cut_at: None,
            cut: false,
            cut_off: CutOff::default(),
            expected: Expected::default(),
            told: None,
            shuffled: false,
            ran_again: None,
            seen: BTreeMap::new(),
            beginning: now,
            plan,
        };
        world.after(Duration::ZERO, Event::Submit);
        if world.plan.start_all {
            let delay = world.rng.micros(20_000);
            world.after(delay, Event::StartAll);
        }
        if world.plan.bad_phases {
            let delay = world.rng.micros(30_000);
            world.after(delay, Event::Phase(true));
        }
        if world.plan.end_early {
            let delay = world.rng.micros(200_000);
            let event = if world.plan.kill { Event::Kill } else { Event::Drain };
            world.after(delay, event);
        }
        world
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((self.now + delay, self.serial, event)));
    }

    /// To the end: until all is quiet, then the pool is closed, until it has ended.
    fn run(&mut self) -> Check {
        self.until_quiet()?;
        if !self.draining && !self.killed {
            ensure!(
                self.open == 0,
                "{} tasks wait for ever, {} of them queued",
                self.open,
                self.queue.len()
            );
            let event = if self.plan.kill { Event::Kill } else { Event::Drain };
            self.after(Duration::ZERO, event);
            self.until_quiet()?;
        }
        ensure!(self.open == 0, "{} tasks wait for ever in a pool that was closed", self.open);
        ensure!(self.hands.is_empty(), "{} workers are left", self.hands.len());
        ensure!(self.ended, "the end was not told");
        let (mut told, mut true_one) =
            (self.core.cut_off().clone(), std::mem::take(&mut self.cut_off));
        for list in [&mut told.unbegun, &mut told.begun, &mut true_one.unbegun, &mut true_one.begun]
        {
            list.sort_unstable();
        }
        ensure!(told == true_one, "cut off were {true_one:?}, told is {told:?}");
        Ok(())
    }

    fn until_quiet(&mut self) -> Check {
        loop {
            let next = self.events.peek().map(|Reverse((at, _, _))| *at);
            match (next, self.deadline) {
                (None, None) => return Ok(()),
                (next, Some(deadline)) if next.is_none_or(|at| deadline <= at) => {
                    self.now = self.now.max(deadline);
                    // As the driver does.
                    for key in self.core.overdue(None, self.now) {
                        self.deliver(key)?;
                    }
                    self.time_passes();
                    self.cut_in_time();
                    self.core.tick(self.now, &mut self.actions);
                    self.settle_up(true)?;
                    ensure!(
                        self.deadline.is_none_or(|next| next > self.now),
                        "the same deadline again, after its tick"
                    );
                    self.overdue()?;
                }
                (_, _) => {
                    let Some(Reverse((at, _, event))) = self.events.pop() else { return Ok(()) };
                    self.now = at;
                    let late = self.cut_at.is_some_and(|limit| limit < at)
                        && !self.cut
                        && !self.ended
                        && !self.killed;
                    ensure!(!late, "the drain was not cut short");
                    self.event(event)?;
                }
            }
        }
    }

    // ---- events

    fn event(&mut self, event: Event) -> Check {
        self.falsify();
        // Who stands still does this when it goes on.
        if let Event::Finish(key, _) | Event::Heard(key, _) | Event::HangUp(key) = event
            && let Some(until) = self.hands.get(&key).and_then(|hand| hand.still)
        {
            self.after(until - self.now, event);
            return Ok(());
        }
        match event {
            Event::Submit => return self.submit(),
            Event::Abort(id) => self.abort(id),
            Event::AbortWhere(rest) => {
                (0..self.jobs.len() as u64)
                    .filter(|id| id % 4 == rest)
                    .for_each(|id| self.stop(id, Stop::Abort));
                self.core.abort_where(|id| (id - BASE_ID) % 4 == rest, self.now, &mut self.actions);
                return self.settle_up(false);
            }
            Event::AbortUnbegun => {
                let unbegun =
                    self.jobs.iter_mut().filter(|job| job.place != Place::Settled && !job.begun);
                let count = unbegun.map(|job| job.stop = Some(Stop::Abort)).count();
                let told = self.core.abort_unbegun(self.now, &mut self.actions);
                self.settle_up(false)?;
                ensure!(told == count, "{told} are said to be aborted, {count} had not begun");
                let left = self.jobs.iter().find(|job| job.place != Place::Settled && !job.begun);
                ensure!(left.is_none(), "{left:?} was left");
                return Ok(());
            }
            Event::StartAll => {
                self.expected.start_all = true;
                self.core.start_all(self.now, &mut self.actions);
                self.settle_up(false)?;
                ensure!(
                    self.draining || self.killed || self.hands.len() == self.plan.rules.workers,
                    "not all were started"
                );
                return Ok(());
            }
            Event::Drain => {
                self.draining = true;
                match self.plan.limit {
                    None => self.core.drain(self.now, &mut self.actions),
                    Some(limit) => {
                        self.cut_at = Some(self.now + limit);
                        self.cut_in_time();
                        self.core.drain_by(self.now + limit, self.now, &mut self.actions);
                    }
                }
                self.settle_up(false)?;
                if self.plan.kill {
                    let delay = self.rng.micros(50_000);
                    self.after(delay, Event::Kill);
                }
                return Ok(());
            }
            Event::Kill => {
                self.killed = true;
                for job in self
                    .jobs
                    .iter_mut()
                    .filter(|job| job.place != Place::Settled && job.stop != Some(Stop::Abort))
                {
                    job.stop = Some(Stop::Close);
                }
                self.core.kill(self.now, &mut self.actions);
                self.settle_up(false)?;
                let left = self.jobs.iter().find(|job| job.place != Place::Settled && !job.begun);
                ensure!(left.is_none(), "{left:?} had not begun, and was not settled by the kill");
                return Ok(());
            }
            Event::Phase(bad) => {
                self.bad_phase = bad;
                if (self.jobs.len() as u64) < self.plan.tasks {
                    let delay = self.rng.micros(100_000);
                    self.after(delay, Event::Phase(!bad));
                } else {
                    self.bad_phase = false;
                }
                return Ok(());
            }
            Event::StartFailed(key) => return self.start_failed(key),
            Event::Hello(key, hangs) => return self.hello(key, hangs),
            Event::Ready(key) => return self.ready(key),
            Event::Arrive(key) => self.arrive(key),
            Event::Finish(key, id) => {
                let answer = match self.rng.rarely(self.plan.panic) {
                    true if self.rng.chance(50) => Answer::Again,
                    true => Answer::Panicked,
                    false => Answer::Final,
                };
                self.finish(key, id, answer);
            }
            Event::Heard(key, id) => {
                let job = &self.jobs[id as usize];
                let answer = if job.told { Answer::Dropped } else { Answer::Final };
                let heeds = job.attempt > job.hangs && (job.told || self.rng.chance(70));
                if heeds {
                    self.finish(key, id, answer);
                }
            }
            Event::Deliver(key) => return self.deliver(key),
            Event::HangUp(key) => return self.hang_up(key),
            Event::GoOn(key) => {
                if let Some(hand) = self.hands.get_mut(&key) {
                    hand.still = None;
                }
                self.begin(key);
            }
            Event::Exit(key) => return self.exit(key),
        }
        self.settle_up(false)
    }

    fn submit(&mut self) -> Check {
        let burst = 1 + self.rng.below(self.plan.burst);
        for _ in 0..burst {
            let id = self.jobs.len() as u64;
            if id == self.plan.tasks {
                return Ok(());
            }
            let mode =
                if self.rng.chance(self.plan.async_percent) { Mode::Async } else { Mode::Sync };
            let large = self.rng.chance(self.plan.large_percent);
            let service = match self.rng.below(3) {
                0 => self.plan.service,
                1 => self.rng.micros(2 * self.plan.service.as_micros() as u64),
                _ => self.rng.heavy_tail(self.plan.service),
            };
            let tries = [1, 2, u8::MAX][self.rng.below(3) as usize];
            let (hangs, crashes) =
                (self.rng.rarely(self.plan.hang), self.rng.rarely(self.plan.crash));
            let poison = self.rng.rarely(self.plan.poison);
            let options = self.plan.options(&mut self.rng);
            let known = options.as_deref().cloned().unwrap_or_default();
            let turn = (self.back, None, 0);
            let job = Job {
                id,
                key: None,
                mode,
                large,
                place: Place::Queued(turn),
                deadline: known.deadline.map(|limit| self.now + limit),
                options: known,
                attempt: 1,
                stop: None,
                dropping: false,
                told: false,
                excused: false,
                sent_at: self.now,
                begun: false,
                began_at: self.now,
                done: false,
                unheard: false,
                service,
                hangs: if hangs { tries } else { 0 },
                crashes: if crashes { tries } else { 0 },
                poison,
                moves: 0,
            };
            let refusing = self.draining || self.killed;
            let dead_pool = self.hands.is_empty()
                && self.failed_at.is_some_and(|at| self.now < at + BACKOFF_MAX);
            self.jobs.push(job);
            let large = large && self.flaw != Some(Flaw::Large);
            let call = Call { cargo: BASE_ID + id, id: BASE_ID + id, mode, large, options };
            match self.core.submit(call, self.now, &mut self.actions) {
                Ok(key) => {
                    ensure!(!refusing, "a closed pool took a task");
                    self.jobs[id as usize].key = Some(key);
                    self.queue.insert(turn, id);
                    self.back += 1;
                    self.open += 1;
                }
                Err(Refused(cargo, fate)) => {
                    ensure!(cargo == BASE_ID + id, "another cargo came back");
                    match fate {
                        Fate::Closed => ensure!(refusing, "an open pool is closed"),
                        Fate::StartFailed(_) => ensure!(
                            dead_pool,
                            "refused, but no start had failed or a worker was there"
                        ),
                        other => return Err(format!("refused with {other:?}")),
                    }
                    self.jobs[id as usize].place = Place::Settled;
                    self.see("refused");
                }
            }
            self.settle_up(false)?;
            let soon = self.rng.micros(4 * self.plan.service.as_micros() as u64 + 100);
            if self.rng.rarely(self.plan.abort) {
                self.after(soon, Event::Abort(id));
            }
            if hangs {
                // Some sit there for longer than one that is dropped beside them has.
                let long = if self.rng.chance(60) { 300_000 } else { 4_000_000 };
                let delay = self.rng.micros(long);
                self.after(delay, Event::Abort(id));
            }
            if self.rng.rarely(self.plan.abort_where * 5) {
                let rest = self.rng.below(4);
                self.after(soon, Event::AbortWhere(rest));
            }
            if self.rng.rarely(500) {
                self.after(soon, Event::StartAll);
            }
            if self.rng.rarely(self.plan.abort_unbegun) {
                self.after(soon, Event::AbortUnbegun);
            }
        }
        let pause = self.rng.micros(self.plan.pace.as_micros() as u64 * burst);
        self.after(pause, Event::Submit);
        Ok(())
    }

    fn abort(&mut self, id: u64) {
        if let Some(key) = self.jobs[id as usize].key {
            self.stop(id, Stop::Abort);
            self.core.abort(key, self.now, &mut self.actions);
        }
    }

    /// The model notes why a task is to stop, and until when it must have ended, if it is asked or
    /// done.
    fn stop(&mut self, id: u64, stop: Stop) {
        let job = &mut self.jobs[id as usize];
        if job.place == Place::Settled {
            return;
        }
        // What the caller wants counts more than the end, and that more than a limit.
        let first = job.stop.is_none();
        let timeouts = matches!(job.stop, Some(Stop::TimedOut(Limit::Timeout(_))))
            && matches!(stop, Stop::TimedOut(Limit::Deadline(_)));
        if first
            || timeouts
            || stop == Stop::Abort
            || (stop == Stop::Close && job.stop != Some(Stop::Abort))
        {
            job.stop = Some(stop);
        }
        if let Place::InFlight(worker) = job.place
            && (first && job.begun && !job.unheard) // else its reply has its time
            && let Some(hand) = self.hands.get_mut(&worker)
            && hand.life != Life::Doomed
        {
            let grace = match job.way() {
                Way::Kill if job.done => ABORT_GRACE,
                Way::Kill => return,
                Way::Drop => ABORT_GRACE,
                Way::Ask(grace) => grace,
            };
            job.dropping = job.way() == Way::Drop;
            job.excused = job.way() == Way::Kill;
            hand.asked.push((self.now + grace, id));
            if job.mode == Mode::Sync && job.way() != Way::Kill {
                self.hear(worker, id); // it looks at its word
            }
        }
    }

    /// Before long the task hears that it is to stop, or is dropped.
    fn hear(&mut self, worker: WorkerKey, id: u64) {
        let delay = self.rng.micros(500);
        self.after(delay, Event::Heard(worker, id));
    }

    /// The model follows the clock: waits that are over, deadlines, and the limits of what runs.
    fn time_passes(&mut self) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= self.now);
        let open = || (0..).zip(&self.jobs).filter(|(_, job)| job.place != Place::Settled);
        let mut waits: Vec<_> = open()
            .filter_map(|(id, job)| match job.place {
                Place::Delayed(until) => Some((until, job.key, id)),
                _ => None,
            })
            .filter(|(until, ..)| *until <= self.now)
            .collect();
        let mut over: Vec<_> = open()
            .filter(|(_, job)| due(job.deadline))
            .filter_map(|(id, job)| {
                Some((id, Stop::TimedOut(Limit::Deadline(job.options.deadline?))))
            })
            .collect();
        over.extend(open().filter(|(_, job)| self.is_over(job)).filter_map(|(id, job)| {
            Some((id, Stop::TimedOut(Limit::Timeout(job.options.timeout?))))
        }));
        waits.sort_unstable();
        for (_, _, id) in waits {
            self.enqueue(id);
        }
        for (id, stop) in over {
            if let Stop::TimedOut(Limit::Deadline(_)) = stop {
                self.jobs[id as usize].deadline = None;
            }
            self.stop(id, stop);
        }
        // What has ended in time must be heard of before long.
        for id in 0..self.jobs.len() as u64 {
            let job = &mut self.jobs[id as usize];
            let Place::InFlight(worker) = job.place else { continue };
            let over = job.options.timeout.is_some_and(|limit| job.began_at + limit <= self.now);
            if over
                && job.done
                && job.stop.is_none()
                && !std::mem::replace(&mut job.unheard, true)
                && let Some(hand) =
                    self.hands.get_mut(&worker).filter(|hand| hand.life != Life::Doomed)
            {
                job.excused = true;
                hand.asked.push((self.now + ABORT_GRACE, id));
            }
        }
        // Tasks that are done, and whose replies have not come; async ones that were asked, and
        // have not stopped by themselves.
        for hand in self.hands.values_mut().filter(|hand| hand.life != Life::Doomed) {
            for (by, id) in &mut hand.asked {
                let job = &mut self.jobs[*id as usize];
                if *by > self.now {
                    continue;
                }
                if job.done && !job.excused {
                    (*by, job.excused) = (self.now + ABORT_GRACE, true);
                } else if job.mode == Mode::Async && !job.dropping && !job.done {
                    // It has as long again, up to a second.
                    let grace = job.options.grace.unwrap_or(ABORT_GRACE).min(ABORT_GRACE);
                    (*by, job.dropping) = (self.now + grace, true);
                }
            }
        }
    }

    /// Its run has reached its time limit, and nobody has stopped it for another reason.
    fn is_over(&self, job: &Job) -> bool {
        let runs =
            matches!(job.place, Place::InFlight(_)) && job.begun && !job.done && job.stop.is_none();
        runs && job.options.timeout.is_some_and(|limit| job.began_at + limit <= self.now)
    }

    /// It goes to the end of the queue.
    fn enqueue(&mut self, id: u64) {
        let turn = (self.back, None, 0);
        self.back += 1;
        self.queue.insert(turn, id);
        self.jobs[id as usize].place = Place::Queued(turn);
    }

    /// It has failed, and is to be tried again.
    fn try_again(&mut self, id: u64) {
        self.see("tried again");
        let job = &mut self.jobs[id as usize];
        let wait = job.options.retry.wait(job.attempt);
        (job.attempt, job.moves, job.stop) = (job.attempt + 1, 0, None);
        (job.begun, job.done, job.dropping) = (false, false, false);
        (job.told, job.unheard, job.excused) = (false, false, false);
        if wait.is_zero() {
            self.enqueue(id);
        } else {
            job.place = Place::Delayed(self.now + wait);
        }
    }

    /// The limit of a drain has passed, perhaps: whatever runs is stopped.
    fn cut_in_time(&mut self) {
        if self.cut || self.killed || self.ended || self.cut_at.is_none_or(|limit| limit > self.now)
        {
            return;
        }
        self.cut = true;
        for id in 0..self.jobs.len() as u64 {
            if self.jobs[id as usize].begun {
                self.stop(id, Stop::Close);
            }
        }
    }

    fn start_failed(&mut self, key: WorkerKey) -> Check {
        if self.hands.remove(&key).is_some() {
            self.failed_at = Some(self.now);
            self.expected.start_failed = true;
            self.core.start_failed(key, self.error.clone(), self.now, &mut self.actions);
            self.settle_up(true)?;
            // Each time that nobody was left counts, and others may.
            self.times_alone += u32::from(self.hands.is_empty());
            let waiting = self.queue.values().filter(|id| {
                let job = &self.jobs[**id as usize];
                !(job.options.retry.is_for_starts() && job.attempt > 1)
            });
            let waiting = waiting.count();
            ensure!(
                !self.hands.is_empty()
                    || waiting == 0
                    || self.times_alone < self.plan.rules.policy.start_attempts,
                "starts failed, nobody is left, and {waiting} tasks wait"
            );
        }
        Ok(())
    }

    fn hello(&mut self, key: WorkerKey, hangs: bool) -> Check {
        let Some(hand) = self.hands.get_mut(&key) else { return Ok(()) };
        if let Life::Starting { until } = &mut hand.life {
            *until = self.plan.rules.start_limit.map(|limit| hand.ordered + limit);
        }
        self.core.hello(key);
        if !hangs {
            let delay = self.rng.micros(10_000);
            self.after(delay, Event::Ready(key));
        }
        self.settle_up(true)
    }

    fn ready(&mut self, key: WorkerKey) -> Check {
        let Some(hand) = self.hands.get_mut(&key) else { return Ok(()) };
        hand.got_ready = true;
        if matches!(hand.life, Life::Starting { .. }) {
            hand.life = Life::Ready;
            self.failed_at = None;
            self.times_alone = 0;
        }
        self.core.ready(key, Some(TestMemory::new(2048)), self.now, &mut self.actions);
        if self.rng.rarely(self.plan.hang_up) {
            let delay = self.rng.micros(100_000);
            self.after(delay, Event::HangUp(key));
        }
        self.settle_up(true)
    }

    // ---- the processes

    /// A task has come.
    fn arrive(&mut self, key: WorkerKey) {
        let Some(hand) = self.hands.get_mut(&key) else { return };
        let Some(claim) = hand.wire.pop_front() else { return };
        hand.inbox.push_back(claim);
        if hand.still.is_none() && self.rng.rarely(self.plan.still) {
            let long = [50_000, 500_000, 3_000_000][self.rng.below(3) as usize];
            let delay = self.rng.micros(long);
            hand.still = Some(self.now + delay);
            self.after(delay, Event::GoOn(key));
        }
        self.begin(key);
    }

    /// A process begins what it can.
    fn begin(&mut self, key: WorkerKey) {
        while let Some(hand) = self.hands.get_mut(&key)
            && !hand.silent
            && hand.still.is_none()
            && let Some(claim) = hand.inbox.front().copied()
            && (self.jobs[(claim.id - BASE_ID) as usize].mode == Mode::Async
                || hand.running.is_empty())
        {
            let id = claim.id - BASE_ID;
            let job = &mut self.jobs[id as usize];
            if job.poison {
                hand.silent = true;
                return self.after(Duration::from_micros(1), Event::Exit(key));
            }
            hand.inbox.pop_front();
            let memory = self.core.workers.get(key).and_then(|worker| worker.memory.as_ref());
            let since = (self.now - self.beginning).as_nanos() as u64;
            if !memory.is_some_and(|memory| {
                memory.claims().note_start(claim, since);
                memory.claims().begin(claim)
            }) {
                self.see("passed over");
                continue;
            }
            hand.running.push(id);
            if job.begun {
                self.ran_again = Some(id);
            }
            (job.begun, job.began_at) = (true, self.now);
            let (service, hangs, crashes) =
                (job.service, job.attempt <= job.hangs, job.attempt <= job.crashes);
            if crashes {
                let part = self.rng.micros(1 + service.as_micros() as u64);
                self.after(part, Event::Exit(key));
            } else if !hangs {
                self.after(service, Event::Finish(key, id));
            }
        }
    }

    fn finish(&mut self, key: WorkerKey, id: u64, answer: Answer) {
        let Some(hand) = self.hands.get_mut(&key) else { return };
        let Some(at) = hand.running.iter().position(|running| *running == id) else { return };
        hand.running.remove(at);
        hand.replies.push((id, answer));
        self.jobs[id as usize].done = true;
        if let (Some(slot), Some(memory)) = (
            hand.slots.get(&id),
            self.core.workers.get(key).and_then(|worker| worker.memory.as_ref()),
        ) {
            memory.claims().finish(Claim { slot: *slot, id: BASE_ID + id });
        }
        if !hand.delivery_due {
            hand.delivery_due = true;
            let delay =
                if self.rng.chance(70) { Duration::from_micros(5) } else { self.rng.micros(3_000) };
            self.after(delay, Event::Deliver(key));
        }
        self.begin(key);
    }

    fn deliver(&mut self, key: WorkerKey) -> Check {
        let Some(hand) = self.hands.get_mut(&key) else { return Ok(()) };
        hand.delivery_due = false;
        if hand.silent {
            return Ok(());
        }
        let replies = std::mem::take(&mut hand.replies);
        if replies.is_empty() {
            return Ok(());
        }
        let mut count = 0;
        for (id, answer) in replies {
            let replied = self.core.replied(key, BASE_ID + id, answer, self.now);
            let job = &mut self.jobs[id as usize];
            ensure!(
                job.place == Place::InFlight(key),
                "an answer to {id}, which is {:?}",
                job.place
            );
            let Some(hand) = self.hands.get_mut(&key) else { return Ok(()) };
            hand.in_flight.retain(|other| *other != id);
            hand.slots.remove(&id);
            hand.asked.retain(|(_, other)| *other != id);
            count += 1;
            let again = match (answer, job.stop) {
                (Answer::Panicked, None) => job.is_tried_again(|retry| retry.panics),
                (Answer::Again, None) => job.is_tried_again(|_| true),
                (Answer::Dropped, Some(Stop::TimedOut(Limit::Timeout(_)))) => {
                    job.is_tried_again(|retry| retry.timeouts)
                }
                _ => false,
            };
            match replied {
                Some(Replied::Ended(cargo, stop))
                    if !again && cargo == BASE_ID + id && stop == job.stop =>
                {
                    job.place = Place::Settled;
                    self.open -= 1;
                    if (answer, stop) == (Answer::Dropped, Some(Stop::Close)) {
                        self.cut_off.begun.push(BASE_ID + id);
                    }
                }
                Some(Replied::Again(task, stop))
                    if again && Some(task) == job.key && stop == job.stop =>
                {
                    self.try_again(id)
                }
                replied => {
                    return Err(format!(
                        "the answer {answer:?} to {id} was taken as {replied:?}: {job:?}"
                    ));
                }
            }
        }
        if let Some(hand) = self.hands.get_mut(&key)
            && count > 0
        {
            // An empty worker keeps the mode of its last task; its measure is of sync tasks only.
            if self.core.workers.get(key).is_some_and(|worker| worker.mode == Mode::Sync) {
                let spent = self.now.saturating_duration_since(hand.busy_since);
                // The mean of these tasks and of sixteen as they were before.
                let mean = |old: Duration| (old * 16 + spent) / (16 + count);
                hand.service = Some(hand.service.map_or(spent / count, mean));
            }
            hand.busy_since = self.now;
            hand.deaf = None;
        }
        let broken = !self.killed && self.rng.rarely(self.plan.nonsense);
        if broken && let Some(hand) = self.hands.get_mut(&key) {
            hand.silent = true;
            ensure!(
                self.core.replied(key, 7, Answer::Final, self.now).is_none(),
                "an answer to nothing was taken"
            );
        }
        self.core.refill(key, count, self.now, &mut self.actions);
        self.settle_up(false)?;
        if broken {
            // As the driver does when a worker has broken the protocol.
            self.told = Some(key);
            self.core.doom(key, self.now, &mut self.actions);
            self.settle_up(false)?;
        }
        Ok(())
    }

    fn hang_up(&mut self, key: WorkerKey) -> Check {
        self.deliver(key)?;
        let Some(hand) = self.hands.get_mut(&key) else { return Ok(()) };
        if hand.silent {
            return Ok(());
        }
        hand.silent = true;
        let by = self.now + END_GRACE;
        match &mut hand.life {
            Life::Starting { until } => *until = Some(until.map_or(by, |until| until.min(by))),
            // One that was retired has what it was given then.
            Life::Leaving { .. } if hand.retired => {}
            life @ (Life::Ready | Life::Leaving { .. }) => *life = Life::Leaving { by },
            Life::Doomed => {}
        }
        self.core.hung_up(key, by);
        if self.rng.chance(70) {
            let delay = self.rng.micros(50_000);
            self.after(delay, Event::Exit(key));
        }
        self.settle_up(true)
    }

    fn exit(&mut self, key: WorkerKey) -> Check {
        // What it had committed before it ended still counts.
        if let Some(hand) = self.hands.get_mut(&key) {
            hand.silent = false;
        }
        self.deliver(key)?;
        let Some(hand) = self.hands.get(&key) else { return Ok(()) };
        if !hand.got_ready {
            return self.start_failed(key);
        }
        let mut hand = self.hands.remove(&key).ok_or("no such worker")?;
        let (mut back, mut tried_again, mut innocent) = (Vec::new(), Vec::new(), 0);
        let none_begun = hand.in_flight.iter().all(|id| !self.jobs[*id as usize].begun);
        let memory = self.core.workers.get(key).and_then(|worker| worker.memory.as_ref());
        for (at, id) in hand.in_flight.iter().copied().enumerate() {
            let job = &mut self.jobs[id as usize];
            if let (Some(memory), Some(slot)) = (memory, hand.slots.get(&id)) {
                let claim = Claim { slot: *slot, id: BASE_ID + id };
                match self.flaw {
                    Some(Flaw::Unbegun) => drop(memory.claims().begin(claim)),
                    Some(Flaw::RunAgain) => memory.claims().offer(claim),
                    _ => {}
                }
            }
            let was_next = none_begun && (at == 0 || job.mode == Mode::Async);
            let lost = job.begun || (was_next && job.moves == MOVES_MAX);
            if job.unheard && job.stop.is_none() {
                job.stop = job.options.timeout.map(|limit| Stop::TimedOut(Limit::Timeout(limit)));
            }
            let again = match job.stop {
                None if !lost => {
                    job.moves += u8::from(was_next);
                    back.push(id);
                    continue;
                }
                None if hand.killed_for_one && job.options.idempotent && !was_read(id) => {
                    innocent += 1;
                    job.begun = false;
                    back.push(id);
                    continue;
                }
                None => job.is_tried_again(|retry| retry.deaths),
                Some(Stop::TimedOut(Limit::Timeout(_))) => {
                    job.is_tried_again(|retry| retry.timeouts)
                }
                Some(_) => false,
            };
            let expected =
                if again { &mut self.expected.notes } else { &mut self.expected.settles };
            expected.insert(id, job.stop);
            if again {
                tried_again.push(id);
            }
        }
        tried_again.into_iter().for_each(|id| self.try_again(id));
        for _ in 0..innocent {
            self.see("innocent");
        }
        self.front -= 1;
        for (at, id) in (0..).zip(back) {
            self.see("requeued");
            let turn = (self.front, Some(key), at);
            self.queue.insert(turn, id);
            self.jobs[id as usize].place = Place::Queued(turn);
        }
        hand.in_flight.clear();
        let loss =
            Arc::new(Loss { pid: 1, status: None, note: None, bad_frame: None, stderr: None });
        self.core.exited(key, &loss, self.now, &mut self.actions);
        self.settle_up(true)?;
        ensure!(
            self.expected.settles.is_empty(),
            "tasks of a dead worker were not settled: {:?}",
            self.expected.settles
        );
        ensure!(
            self.expected.notes.is_empty(),
            "tasks of a dead worker were not tried again: {:?}",
            self.expected.notes
        );
        Ok(())
    }

    // ---- what the core says

    /// Does the actions, against the books; then looks over the books.
    fn settle_up(&mut self, mut timed: bool) -> Check {
        let mut actions = std::mem::take(&mut self.actions);
        timed |= self.core.deadline_moved();
        self.deafness()?;
        // What was given back to the one that it had been taken from, its word does not tell.
        let mut resent = Vec::new();
        for action in &actions {
            if let Action::Send(key, task, ..) = action
                && let Some(id) = self.core.cargo_mut(*task).map(|id| *id - BASE_ID)
                && self.jobs[id as usize].place == Place::InFlight(*key)
            {
                resent.push(id);
            }
        }
        self.taken_back(&resent);
        match self.flaw {
            Some(Flaw::SettleTwice) => {
                if let Some(Action::Settle(id, fate)) =
                    actions.iter().find(|action| matches!(action, Action::Settle(..)))
                {
                    let again = Action::Settle(*id, fate.clone());
                    actions.push(again);
                }
            }
            Some(Flaw::Unsettled) => actions.retain(|action| !matches!(action, Action::Settle(..))),
            Some(Flaw::Endless) => actions.retain(|action| !matches!(action, Action::Ended)),
            Some(Flaw::EndTwice)
                if actions.iter().any(|action| matches!(action, Action::Ended)) =>
            {
                actions.push(Action::Ended)
            }
            _ => {}
        }
        for action in actions.drain(..) {
            timed |= !matches!(action, Action::Send(..));
            self.action(action)?;
        }
        self.actions = actions;
        // As the engine does: else the deadline must not have changed.
        if timed {
            self.deadline = self.core.next_deadline();
        }
        self.expected.start_failed = false;
        self.expected.start_all = false;
        ensure!(self.ran_again.is_none(), "{:?} runs a second time", self.ran_again);
        self.told = None;
        self.shuffled = false;
        for hand in self.hands.values_mut() {
            hand.given_back.clear();
            let first = hand.in_flight.front().copied();
            if first != hand.first.map(|(id, _)| id) {
                hand.first = first.map(|id| (id, self.now));
            }
        }
        if self.rng.rarely(self.plan.thorough) {
            self.look_over()?;
        }
        Ok(())
    }

    /// Whom the pool takes to stand still has been given something long ago that it could have
    /// begun, and has not (rule 23).
    fn deafness(&mut self) -> Check {
        let mut found = 0;
        for (key, hand) in &mut self.hands {
            let told =
                self.core.workers.get(*key).is_some_and(|worker| worker.deaf_since.is_some());
            let begins_all = |id: &u64| {
                let job = &self.jobs[*id as usize];
                job.mode == Mode::Async && job.begun
            };
            if !told && !hand.in_flight.is_empty() && hand.in_flight.iter().all(begins_all) {
                hand.deaf = None;
            }
            ensure!(told || hand.deaf.is_none(), "{hand:?} has not answered, and counts as awake");
            if !told || hand.deaf.is_some() {
                continue;
            }
            let overlooked = hand.could_begin(&self.jobs).any(|job| job.sent_at + DEAF <= self.now);
            ensure!(overlooked, "{hand:?} does not stand still");
            hand.deaf = Some(hand.busy_since);
            found += 1;
        }
        for _ in 0..found {
            self.see("deaf");
        }
        Ok(())
    }

    /// A worker has nothing to do, and hears.
    fn someone_idle(&self) -> Option<&WorkerKey> {
        let idle = |hand: &Hand| {
            hand.life == Life::Ready && hand.in_flight.is_empty() && hand.deaf.is_none()
        };
        self.hands.iter().find(|(_, hand)| idle(hand)).map(|(key, _)| key)
    }

    /// What the pool has taken back from workers, as their words say, is in the queue again, before
    /// everything else.
    fn taken_back(&mut self, resent: &[u64]) {
        let mut back = Vec::new();
        for (key, hand) in &mut self.hands {
            let Some(memory) =
                self.core.workers.get(*key).and_then(|worker| worker.memory.as_ref())
            else {
                continue;
            };
            let (jobs, slots, given_back) = (&self.jobs, &mut hand.slots, &mut hand.given_back);
            let mut at = 0;
            hand.in_flight.retain(|id| {
                let Some(slot) = slots.get(id) else { return true };
                let progress = memory.claims().look(Claim { slot: *slot, id: BASE_ID + id });
                // Its slot may be another task's by now.
                let gone = (matches!(progress, Progress::Revoked | Progress::Unknown)
                    || resent.contains(id))
                    && !jobs[*id as usize].begun;
                if gone {
                    slots.remove(id);
                    given_back.push(*id);
                    back.push(((self.front - 1, Some(*key), at), *id));
                    at += 1;
                }
                !gone
            });
        }
        self.front -= i64::from(!back.is_empty());
        for (turn, id) in back {
            self.shuffled = true;
            self.see("taken back");
            self.queue.insert(turn, id);
            self.jobs[id as usize].place = Place::Queued(turn);
        }
    }

    fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn action(&mut self, action: Action<u64>) -> Check {
        ensure!(!self.ended, "{action:?} after the end");
        self.see(match &action {
            Action::Start(_) => "Start",
            Action::Send(..) => "Send",
            Action::Note(..) => "Note",
            Action::Settle(_, Fate::TimedOut(_)) => "TimedOut",
            Action::Ask(..) => "Ask",
            Action::Cancel(..) => "Cancel",
            Action::Retire(_) => "Retire",
            Action::Kill(_) => "Kill",
            Action::Weigh(_) => "Weigh",
            Action::Settle(_, Fate::Unkillable(_)) => "Unkillable",
            Action::TimeOut(_) => "TimeOut",
            Action::Settle(_, Fate::Cancelled) => "Cancelled",
            Action::Settle(_, Fate::Closed) => "Closed",
            Action::Settle(_, Fate::StartFailed(_)) => "StartFailed",
            Action::Settle(_, Fate::Lost(_)) => "Lost",
            Action::Ended => "Ended",
        });
        match action {
            Action::Start(key) => self.do_start(key),
            Action::Send(key, task, slot, attempt) => self.do_send(key, task, slot, attempt),
            Action::Note(task, fate) => {
                let id = self
                    .core
                    .cargo_mut(task)
                    .map(|id| *id - BASE_ID)
                    .ok_or("a note about nothing")?;
                if matches!(fate, Fate::StartFailed(_)) {
                    let job = &self.jobs[id as usize];
                    let Place::Queued(turn) = job.place else {
                        return Err(format!("{id} waits for no start: {job:?}"));
                    };
                    ensure!(
                        self.expected.start_failed
                            && job.is_tried_again(|retry| retry.starts)
                            && self.hands.values().all(|hand| hand.life != Life::Ready),
                        "{id} is tried again though no start failed for it: {job:?}"
                    );
                    self.queue.remove(&turn);
                    self.see("waits for another start");
                    self.try_again(id);
                    return Ok(());
                }
                let true_one = match (self.expected.notes.remove(&id), &fate) {
                    (Some(None), Fate::Lost(_)) => true,
                    (Some(Some(Stop::TimedOut(limit))), Fate::TimedOut(told)) => limit == *told,
                    _ => false,
                };
                ensure!(true_one, "{id} fails and is tried again: {fate:?}");
                Ok(())
            }
            Action::Ask(key, task) => {
                let id =
                    self.core.cargo_mut(task).map(|id| *id - BASE_ID).ok_or("nobody is asked")?;
                let job = &self.jobs[id as usize];
                ensure!(
                    job.stop.is_some()
                        && (job.mode == Mode::Async || yields(id))
                        && matches!(job.way(), Way::Ask(_))
                        && job.place == Place::InFlight(key),
                    "{id} is asked: {job:?}"
                );
                self.hear(key, id);
                Ok(())
            }
            Action::Cancel(key, task) => {
                let id = self
                    .core
                    .cargo_mut(task)
                    .map(|id| *id - BASE_ID)
                    .ok_or("a cancel of nothing")?;
                let job = &self.jobs[id as usize];
                ensure!(
                    job.stop.is_some()
                        && job.dropping
                        && !job.told
                        && job.place == Place::InFlight(key),
                    "{id} is cancelled: {job:?}"
                );
                self.jobs[id as usize].told = true;
                self.hear(key, id);
                Ok(())
            }
            Action::Retire(key) => {
                ensure!(self.draining && self.queue.is_empty(), "retired while there is work");
                let left = self
                    .cut_at
                    .map(|until| until.saturating_duration_since(self.now).max(ABORT_GRACE));
                let by =
                    self.now + left.map_or(staff::EXIT_LIMIT, |left| left.min(staff::EXIT_LIMIT));
                let hand = self.hands.get_mut(&key).ok_or("nobody is retired")?;
                ensure!(
                    hand.life == Life::Ready && hand.in_flight.is_empty(),
                    "{key:?} is retired at work"
                );
                hand.life = Life::Leaving { by };
                hand.retired = true;
                if !hand.hangs_at_end {
                    let delay = self.rng.micros(2_000);
                    let event =
                        if self.rng.chance(50) { Event::Exit(key) } else { Event::HangUp(key) };
                    self.after(delay, event);
                }
                Ok(())
            }
            Action::Kill(key) => self.do_kill(key),
            Action::Weigh(key) => Err(format!("{key:?} is weighed")),
            Action::TimeOut(key) => {
                let now = self.now;
                let hand = self.hands.get_mut(&key).ok_or("nobody timed out")?;
                ensure!(
                    matches!(hand.life, Life::Starting { until: Some(until) } if until <= now),
                    "{key:?} is timed out in {:?}",
                    hand.life
                );
                self.die(key);
                Ok(())
            }
            Action::Settle(cargo, fate) => self.do_settle(cargo - BASE_ID, &fate),
            Action::Ended => {
                ensure!(self.draining || self.killed, "an open pool has ended");
                ensure!(
                    self.open == 0 && self.hands.is_empty(),
                    "ended with {} tasks and {} workers",
                    self.open,
                    self.hands.len()
                );
                self.ended = true;
                Ok(())
            }
        }
    }

    fn do_start(&mut self, key: WorkerKey) -> Check {
        ensure!(!self.killed, "a start after the kill");
        let stuck = self.hands.values().any(|hand| {
            hand.deaf.is_some() && hand.in_flight.iter().any(|id| !self.jobs[*id as usize].begun)
        });
        ensure!(
            !self.draining || !self.queue.is_empty() || stuck,
            "a start in a pool that closes and has nothing queued"
        );
        let early = self.failed_at.is_some_and(|at| self.now < at + BACKOFF_MIN);
        ensure!(!early || self.expected.start_all, "a start before the back-off has passed");
        let ordered = self.now;
        let limit =
            self.plan.rules.start_limit.map_or(self.plan.rules.hello_limit, |limit| {
                limit.min(self.plan.rules.hello_limit)
            });
        let hand = Hand {
            life: Life::Starting { until: Some(ordered + limit) },
            ordered,
            in_flight: VecDeque::new(),
            slots: HashMap::new(),
            service: None,
            busy_since: ordered,
            asked: Vec::new(),
            killed_for_one: false,
            first: None,
            deaf: None,
            given_back: Vec::new(),
            got_ready: false,
            wire: VecDeque::new(),
            inbox: VecDeque::new(),
            running: Vec::new(),
            replies: Vec::new(),
            delivery_due: false,
            silent: false,
            still: None,
            hangs_at_end: self.rng.chance(5),
            retired: false,
            exit_due: false,
        };
        ensure!(self.hands.insert(key, hand).is_none(), "{key:?} is started twice");
        let on_duty = self.hands.values().filter(|hand| !hand.retired).count();
        ensure!(
            on_duty <= self.plan.rules.workers,
            "{on_duty} workers, {} allowed",
            self.plan.rules.workers
        );
        let fails = self.bad_phase || self.rng.chance(self.plan.start_fails);
        let delay = self.rng.micros(10_000);
        match self.rng.below(4) {
            0 if fails => {} // it never says hello
            1 if fails && self.plan.rules.start_limit.is_some() => {
                self.after(delay, Event::Hello(key, true))
            }
            2 if fails => self.after(delay, Event::Exit(key)),
            _ if fails => self.after(delay, Event::StartFailed(key)),
            _ => self.after(delay, Event::Hello(key, false)),
        }
        Ok(())
    }

    fn do_send(&mut self, key: WorkerKey, task: TaskKey, slot: u16, attempt: u8) -> Check {
        // It may have been sent to another in this very event, and taken back again.
        self.taken_back(&[]);
        let Some(id) = self.core.cargo_mut(task).map(|id| *id - BASE_ID) else { return Ok(()) }; // and aborted
        ensure!(self.core.id_of(task) == Some(BASE_ID + id), "what is sent is not known");
        let Place::Queued(turn) = self.jobs[id as usize].place else {
            return Err(format!("{id} is sent, and not queued"));
        };
        let true_one = self.jobs[id as usize].attempt;
        ensure!(attempt == true_one, "{id} is sent as try {attempt}, which is try {true_one}");
        // What is shared out is taken back when the queue has been served, and in several goes, the
        // last first.
        let shared_out = |turn: &Turn| self.shuffled && turn.0 == self.front;
        let first = *self
            .queue
            .keys()
            .find(|other| !shared_out(other) || shared_out(&turn))
            .ok_or("the queue is empty")?;
        let in_lane =
            shared_out(&turn) || self.queue.range((turn.0, turn.1, 0)..turn).next().is_none();
        ensure!(turn.0 == first.0 && in_lane, "{id} at {turn:?} is sent before {first:?}");
        self.queue.remove(&turn);
        let (mode, needs_idle) = (self.jobs[id as usize].mode, self.needs_idle(id));
        let room = self.room(key, mode, needs_idle);
        let hand = self.hands.get(&key).ok_or("sent to nobody")?;
        ensure!(room, "{id} ({mode:?}, needs an idle one: {needs_idle}) is sent to {hand:?}");
        ensure!(hand.slots.values().all(|other| *other != slot), "slot {slot} is in use");
        if !self.shuffled && self.rng.rarely(self.plan.thorough) {
            let load = hand.in_flight.len();
            let deaf = hand.deaf.is_some(); // only if nobody else can take it
            let better = self.hands.iter().find(|(other, hand)| {
                hand.deaf.is_none()
                    && (deaf || hand.in_flight.len() < load)
                    && self.room(**other, mode, needs_idle)
            });
            ensure!(
                better.is_none(),
                "{id} is sent to one with {load} in flight, not to {better:?}"
            );
        }
        let lag =
            if self.rng.chance(70) { Duration::from_nanos(500) } else { self.rng.micros(300) };
        let hand = self.hands.get_mut(&key).ok_or("sent to nobody")?;
        if hand.in_flight.is_empty() {
            hand.busy_since = self.now;
        }
        hand.in_flight.push_back(id);
        hand.slots.insert(id, slot);
        hand.wire.push_back(Claim { slot, id: BASE_ID + id });
        (self.jobs[id as usize].place, self.jobs[id as usize].sent_at) =
            (Place::InFlight(key), self.now);
        self.after(lag, Event::Arrive(key));
        Ok(())
    }

    /// Only an idle worker is given such a task: rules 5 and 7.
    fn needs_idle(&self, id: u64) -> bool {
        let job = &self.jobs[id as usize];
        (job.large && job.mode == Mode::Sync) || job.stands_alone()
    }

    /// Rules 2, 4, 5 and 23, as the model understands them.
    fn room(&self, key: WorkerKey, mode: Mode, needs_idle: bool) -> bool {
        let hand = &self.hands[&key];
        if hand.life != Life::Ready {
            return false;
        }
        let Some(first) = hand.in_flight.front() else { return true };
        let window = match hand.service {
            Some(service) if service < LONG => {
                let fits = WINDOW_WORK.as_nanos() / service.as_nanos().max(1);
                fits.max(2).min(u128::from(WINDOW_MAX)) as usize
            }
            _ => 1,
        };
        let (limit, late) = match mode {
            Mode::Sync => (window, self.now >= hand.busy_since + LONG),
            Mode::Async => (self.plan.rules.concurrency, false),
        };
        !needs_idle
            && hand.deaf.is_none()
            && !self.jobs[*first as usize].stands_alone()
            && self.jobs[*first as usize].mode == mode
            && hand.in_flight.len() < limit
            && !late
    }

    fn do_kill(&mut self, key: WorkerKey) -> Check {
        let now = self.now;
        let hand = self.hands.get(&key).ok_or("nobody is killed")?;
        let stopped = hand.in_flight.iter().any(|id| {
            let job = &self.jobs[*id as usize];
            job.stop.is_some() && job.way() == Way::Kill && job.begun && !job.done
        });
        // What has not begun does not die with it, but for one that may be the cause.
        let unbegun = hand.in_flight.iter().filter(|id| !self.jobs[**id as usize].begun).count();
        let excused = hand.in_flight.len() == unbegun
            && (unbegun <= 1 || self.jobs[hand.in_flight[0] as usize].mode == Mode::Async);
        ensure!(
            unbegun == 0 || excused || self.killed,
            "{unbegun} tasks that had not begun are killed with {key:?}: {hand:?}"
        );
        let overdue = hand.asked.iter().any(|(by, _)| *by <= now);
        let late = matches!(hand.life, Life::Leaving { by } if by <= now);
        let unwanted = self.draining
            && (self.open == 0 || self.cut)
            && matches!(hand.life, Life::Starting { .. });
        // It has hung up by itself, and has not ended by the limit.
        let unwanted = unwanted
            || self.cut
                && matches!(hand.life, Life::Leaving { .. })
                && !hand.retired
                && hand.in_flight.is_empty();
        let told = self.told == Some(key);
        // It stands still, for longer than something that was taken back from it only now may take.
        let patience = |id: &u64| {
            let options = &self.jobs[*id as usize].options;
            options.timeout.into_iter().chain(options.deadline).min()
        };
        let unresponsive = self.core.why_ended(key) == Some(ExitReason::Unresponsive);
        if unresponsive {
            let still_for = hand.deaf.map(|since| now.saturating_duration_since(since));
            let too_long = hand
                .given_back
                .iter()
                .filter_map(patience)
                .min()
                .is_some_and(|limit| still_for.is_some_and(|time| limit <= time));
            ensure!(
                too_long && hand.in_flight.is_empty(),
                "{hand:?} is killed, as if it stood still for too long"
            );
            ensure!(
                self.someone_idle().is_none(),
                "{hand:?} is killed, though another could take its tasks"
            );
        }
        ensure!(hand.life != Life::Doomed, "{key:?} is killed twice");
        ensure!(
            self.killed || stopped || overdue || late || unwanted || told || unresponsive,
            "{hand:?} is killed for nothing"
        );
        if let Some(hand) = self.hands.get_mut(&key) {
            hand.killed_for_one = (stopped || overdue) && !told;
        }
        if unresponsive {
            self.see("Unresponsive");
        }
        self.die(key);
        Ok(())
    }

    /// A process is being killed: it ends before long, and may say something yet.
    fn die(&mut self, key: WorkerKey) {
        let Some(hand) = self.hands.get_mut(&key) else { return };
        hand.life = Life::Doomed;
        if !std::mem::replace(&mut hand.exit_due, true) {
            let delay = self.rng.micros(1_000);
            self.after(delay, Event::Exit(key));
        }
    }

    fn do_settle(&mut self, id: u64, fate: &Fate) -> Check {
        let job = &mut self.jobs[id as usize];
        ensure!(job.place != Place::Settled, "{id} is settled again, as {fate:?}");
        let lost = self.expected.settles.remove(&id);
        let waits = match job.place {
            Place::Queued(at) => self.queue.remove(&at).is_some(),
            Place::Delayed(_) => true,
            _ => false,
        };
        // Either it never began, or its worker has ended.
        let stopped = |why| job.stop == Some(why) && (waits || lost == Some(Some(why)));
        let truth = match fate {
            Fate::Cancelled => stopped(Stop::Abort),
            Fate::TimedOut(limit) => stopped(Stop::TimedOut(*limit)),
            Fate::Unkillable(_) => false, // here all that is killed ends
            Fate::Closed => ((self.killed || self.cut) && waits) || stopped(Stop::Close),
            Fate::StartFailed(_) => {
                waits
                    && self.expected.start_failed
                    && self.hands.values().all(|hand| hand.life != Life::Ready)
            }
            Fate::Lost(_) => lost == Some(None),
        };
        ensure!(truth, "{id} is settled as {fate:?}: {job:?}, lost: {lost:?}");
        ensure!(!waits || !job.begun, "{id} had begun and was queued");
        job.place = Place::Settled;
        self.open -= 1;
        if matches!(fate, Fate::Closed) {
            let list = if waits { &mut self.cut_off.unbegun } else { &mut self.cut_off.begun };
            list.push(BASE_ID + id);
            self.see(if waits { "cut off in the queue" } else { "cut off at work" });
        }
        Ok(())
    }

    // ---- looking over the books

    fn look_over(&self) -> Check {
        let core = &self.core;
        ensure!(
            core.queued() == self.queue.len(),
            "{} queued, counted {}",
            self.queue.len(),
            core.queued()
        );
        ensure!(
            core.tasks.len() as u64 == self.open,
            "{} open, {} kept",
            self.open,
            core.tasks.len()
        );
        ensure!(
            core.workers.len() == self.hands.len(),
            "{} workers, {} kept",
            self.hands.len(),
            core.workers.len()
        );
        let starting =
            self.hands.values().filter(|hand| matches!(hand.life, Life::Starting { .. })).count();
        ensure!(core.starting == starting, "{starting} start, counted {}", core.starting);
        let mut idle = core.idle.clone();
        idle.sort_unstable();
        let truly: Vec<_> = self
            .hands
            .iter()
            .filter(|(_, hand)| hand.life == Life::Ready && hand.in_flight.is_empty())
            .map(|(key, _)| *key)
            .collect();
        ensure!(idle == truly, "idle are {truly:?}, known are {idle:?}");
        ensure!(core.is_closed() == (self.draining || self.killed), "closed, or not");
        ensure!(
            !self.draining || self.open > 0 || starting == 0,
            "{starting} still start for nothing"
        );
        if self.someone_idle().is_some() {
            // Rule 10. Twice the time: a look that brings nothing is made again after that long.
            let stuck = self.hands.values().find(|hand| {
                let behind = hand.in_flight.iter().skip(1).any(|id| {
                    !self.jobs[*id as usize].begun && self.jobs[*id as usize].mode == Mode::Sync
                });
                hand.life == Life::Ready && behind && hand.busy_since + 2 * LONG < self.now
            });
            ensure!(stuck.is_none(), "somebody is idle, and tasks stand behind in {stuck:?}");
        }
        // Rule 23: it is looked at least so often.
        let unnoticed = self.hands.values().find(|hand| {
            let standing =
                |job: &Job| hand.since_first(job).is_some_and(|since| since + 2 * DEAF < self.now);
            hand.life == Life::Ready
                && hand.deaf.is_none()
                && hand.could_begin(&self.jobs).any(standing)
        });
        ensure!(unnoticed.is_none(), "nobody has noticed that it stands still: {unnoticed:?}");
        self.in_time(|over| over < self.now)?;
        let Some((first, _)) = self.queue.first_key_value() else { return Ok(()) };
        // Of what several gave back at once, any lane may stand at the head.
        let mut heads: Vec<(Turn, u64)> = self
            .queue
            .range((first.0, None, 0)..(first.0 + 1, None, 0))
            .map(|(turn, id)| (*turn, *id))
            .collect();
        heads.dedup_by_key(|(turn, _)| turn.1);
        let has_room = |id: u64| {
            self.hands
                .keys()
                .any(|key| self.room(*key, self.jobs[id as usize].mode, self.needs_idle(id)))
        };
        ensure!(
            heads.iter().any(|(_, id)| !has_room(*id)),
            "there is room for {heads:?}, which wait"
        );
        // A start that is being given up has not failed yet.
        let coming = self.hands.values().filter(|hand| !hand.got_ready).count();
        let held_back = self.failed_at.is_some_and(|at| self.now < at + BACKOFF_MAX);
        let more = coming < self.queue.len() && self.hands.len() < self.plan.rules.workers;
        ensure!(
            !more || held_back,
            "{} wait, {} of {} workers, {coming} starting: no start",
            self.queue.len(),
            self.hands.len(),
            self.plan.rules.workers
        );
        Ok(())
    }

    /// After a tick: nothing whose time is up is left alone.
    fn overdue(&self) -> Check {
        let late = self.hands.iter().find(|(_, hand)| match hand.life {
            Life::Starting { until } => until.is_some_and(|until| until <= self.now),
            Life::Ready => hand.asked.iter().any(|(by, _)| *by <= self.now),
            Life::Leaving { by } => by <= self.now,
            Life::Doomed => false,
        });
        ensure!(late.is_none(), "overdue: {late:?}");
        self.in_time(|over| over <= self.now)?;
        let untold = self
            .hands
            .values()
            .filter(|hand| hand.life != Life::Doomed)
            .flat_map(|hand| &hand.in_flight)
            .find(|id| {
                let job = &self.jobs[**id as usize];
                job.dropping && !job.told
            });
        ensure!(untold.is_none(), "nobody drops {untold:?}");
        let over = self.jobs.iter().find(|job| {
            job.place != Place::Settled && job.deadline.is_some_and(|deadline| deadline <= self.now)
        });
        ensure!(over.is_none(), "its deadline is over: {over:?}");
        Ok(())
    }

    /// No task runs whose limit was over at such a time, unless its worker is being killed anyway.
    fn in_time(&self, when: impl Fn(Instant) -> bool) -> Check {
        let over = self.jobs.iter().find(|job| {
            let Place::InFlight(worker) = job.place else { return false };
            self.is_over(job)
                && job.options.timeout.is_some_and(|limit| when(job.began_at + limit))
                && self.hands[&worker].life != Life::Doomed
        });
        ensure!(over.is_none(), "its time is over: {over:?}");
        Ok(())
    }

    /// Breaks the rule that this run is to break, where the core keeps to it.
    fn falsify(&mut self) {
        let core = &mut self.core;
        let workers = core.workers.keys();
        match self.flaw {
            Some(Flaw::Order) if core.queue.len() > 1 => core.queue.swap(0, 1),
            Some(Flaw::Forget) if core.queue.len() > 3 => {
                core.queue.pop_back();
            }
            Some(Flaw::Queued) if core.queued > 5 => core.queued -= 1,
            Some(Flaw::Starting) if core.starting > 1 => core.starting -= 1,
            Some(Flaw::NotIdle) => {
                core.idle.pop();
            }
            Some(Flaw::NoRetry | Flaw::NoBackoff) => {
                if let Some(failure) = &mut core.failure
                    && let Some(retry) = &mut failure.retry
                {
                    *retry = if self.flaw == Some(Flaw::NoRetry) {
                        *retry + 10_000 * BACKOFF_MAX
                    } else {
                        self.now
                    };
                }
            }
            Some(Flaw::Window | Flaw::Mixed | Flaw::NoGrace | Flaw::ShortGrace | Flaw::Revived) => {
                for key in workers {
                    let Some(worker) = core.workers.get_mut(key) else { continue };
                    match self.flaw {
                        Some(Flaw::Window) => {
                            worker.service = worker.service.map(|_| Duration::ZERO)
                        }
                        Some(Flaw::Mixed)
                            if worker.mode == Mode::Sync && !worker.in_flight.is_empty() =>
                        {
                            worker.mode = Mode::Async
                        }
                        Some(Flaw::NoGrace) => worker.asked.clear(),
                        Some(Flaw::ShortGrace) => {
                            worker.asked.iter_mut().for_each(|(by, _)| *by -= ABORT_GRACE / 2)
                        }
                        Some(Flaw::Revived) if worker.state == State::Doomed && worker.used => {
                            worker.state = State::Ready
                        }
                        _ => continue,
                    }
                    core.list(key);
                }
            }
            Some(Flaw::Unsuspected) => {
                for key in core.tasks.keys() {
                    if let Some(task) = core.tasks.get_mut(key) {
                        task.moves = 0;
                    }
                }
            }
            Some(Flaw::NoSharing) => {
                for key in workers {
                    if let Some(worker) = core.workers.get_mut(key) {
                        worker.fruitless = Some(self.now + 1000 * LONG);
                    }
                }
            }
            Some(
                Flaw::Untimed
                | Flaw::Early
                | Flaw::Late
                | Flaw::Together
                | Flaw::Guilty
                | Flaw::Innocent,
            ) => {
                for key in workers {
                    let Some(worker) = core.workers.get_mut(key) else { continue };
                    let Some(first) = worker.in_flight.front_mut() else { continue };
                    match self.flaw {
                        Some(Flaw::Untimed) => worker.look_at = None,
                        Some(Flaw::Early) => first.begun = Some(self.now - LONG),
                        Some(Flaw::Late) => {
                            worker.look_at = worker.look_at.map(|at| at.max(self.now + LONG))
                        }
                        Some(Flaw::Together) => worker.alone = false,
                        Some(Flaw::Guilty) => worker.killed_for = None,
                        Some(Flaw::Innocent) => {
                            worker.killed_for = Some(TaskKey::from_u64(u64::MAX))
                        }
                        _ => {}
                    }
                    core.list(key);
                }
            }
            Some(Flaw::Unlistened) => {
                core.listen_at = core.listen_at.map(|_| self.now + 1000 * DEAF)
            }
            Some(Flaw::Hasty | Flaw::ShortPatience) => {
                for key in workers {
                    let Some(worker) = core.workers.get_mut(key) else { continue };
                    match self.flaw {
                        Some(Flaw::Hasty) => {
                            worker.in_flight.iter_mut().for_each(|flight| flight.overlooked = true)
                        }
                        _ => worker.deaf_since = worker.deaf_since.map(|_| self.beginning),
                    }
                }
            }
            Some(Flaw::DeafFirst) => core.idle.sort_by_key(|key| {
                core.workers.get(*key).is_some_and(|worker| worker.deaf_since.is_some())
            }),
            Some(Flaw::NoDeadline) => core.deadlines.clear(),
            Some(Flaw::NoSecondTry) => core.delayed.clear(),
            Some(Flaw::Impatient) => {
                core.delayed = std::mem::take(&mut core.delayed)
                    .into_iter()
                    .map(|(_, key)| (self.now, key))
                    .collect();
            }
            Some(Flaw::Uncounted) => {
                for key in core.tasks.keys() {
                    if let Some(task) = core.tasks.get_mut(key) {
                        task.attempt = 1;
                    }
                }
            }
            Some(Flaw::NoLimit) => core.ending = ending::Ending::default(),
            Some(Flaw::Unwritten) => core.ending.cut_off = CutOff::default(),
            Some(Flaw::Misnamed) => {
                for key in core.tasks.keys() {
                    if let Some(task) = core.tasks.get_mut(key) {
                        task.stopping = task.stopping.map(|_| Stop::Abort);
                    }
                }
            }
            Some(Flaw::Unaborted) => {
                for key in core.tasks.keys() {
                    if let Some(task) = core.tasks.get_mut(key) {
                        task.stopping = None;
                    }
                }
            }
            _ => {}
        }
    }
}

// ---- the runs

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn rounds(default: u64, mut round: impl FnMut(u64) -> Check) {
    let (first, count) = match number("PROCPOOL_SEED") {
        Some(seed) => (seed, number("PROCPOOL_ROUNDS").unwrap_or(1)),
        None => (0, number("PROCPOOL_ROUNDS").unwrap_or(default)),
    };
    for seed in first..first + count {
        if let Err(wrong) = round(seed) {
            panic!("seed {seed}: {wrong}\nrun it again with PROCPOOL_SEED={seed}");
        }
    }
}

#[test]
fn whatever_happens_every_rule_is_kept() {
    rounds(60, |seed| World::new(seed, 300, 12, None).run());
}

#[test]
fn a_large_pool_keeps_every_rule() {
    rounds(3, |seed| {
        let mut world = World::new(seed, 20_000, 300, None);
        world.plan.thorough = 200;
        world.run()
    });
}

/// Millions of tasks; for an optimised build.
#[test]
#[ignore = "takes minutes"]
fn long_run() {
    rounds(20_000, |seed| World::new(seed, 500, 16, None).run());
    rounds(40, |seed| {
        let mut world = World::new(seed, 300_000, 500, None);
        world.plan.thorough = 1_000;
        world.run()
    });
}

#[test]
fn broken_rules_are_found() {
    for flaw in FLAWS {
        let found = (0..3000).find_map(|seed| World::new(seed, 200, 6, Some(flaw)).run().err());
        assert!(found.is_some(), "{flaw:?} was not found");
    }
}

/// The random rounds are worth something only if everything comes up in them.
#[test]
#[ignore = "long: the gate runs it, optimised"]
fn everything_comes_up() {
    let mut seen = BTreeMap::new();
    for seed in 1_000..1_300 {
        let mut world = World::new(seed, 200, 12, None);
        assert_eq!(world.run(), Ok(()), "seed {seed}");
        for (what, count) in world.seen {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    for what in [
        "Start",
        "Send",
        "Ask",
        "Cancel",
        "Retire",
        "Kill",
        "TimeOut",
        "Cancelled",
        "Closed",
        "StartFailed",
        "Lost",
        "Ended",
        "requeued",
        "refused",
        "taken back",
        "passed over",
        "cut off in the queue",
        "cut off at work",
        "TimedOut",
        "Note",
        "tried again",
        "deaf",
        "Unresponsive",
    ] {
        assert!(seen.get(what).is_some_and(|count| *count > 50), "{what} is rare: {seen:?}");
    }
    assert!(seen.get("innocent").is_some_and(|count| *count > 0), "nobody is innocent: {seen:?}");
}

#[path = "core_sim_staff.rs"]
mod staff_simulation;
