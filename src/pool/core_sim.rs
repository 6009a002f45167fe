//! The rules of a pool against a made-up world and an independent model.
//!
//! The world plays everything around [`Core`]: callers, processes that start, work, answer, hang and
//! die, and the clock. It does what the actions say, as late as it likes, and calls `tick` at
//! `next_deadline` only, which it looks at when the engine would. The model keeps its own books, in
//! the plainest way; each action is held against them before it is entered, and after each event
//! they are held against the core's own. What is wrong is returned, not panicked with, so that a test can
//! also show that broken rules are found ([`Flaw`]).
//!
//! `PROCPOOL_SEED` runs one seed, `PROCPOOL_ROUNDS` so many; the ignored test is the long run.

use super::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

const BASE_ID: u64 = 1_000;
const END_GRACE: Duration = Duration::from_secs(2);

// ---- randomness

/// SplitMix64: small, and the same everywhere.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Of `0..n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Once in `n`.
    fn rarely(&mut self, n: u64) -> bool {
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
    /// One reply in so many is nonsense; one worker in so many hangs up by itself.
    nonsense: u64,
    hang_up: u64,
    /// Percent of starts that fail; in bad phases all do.
    start_fails: u64,
    bad_phases: bool,
    abort_where: u64,
    start_all: bool,
    /// How it ends.
    kill: bool,
    end_early: bool,
    /// Looks over everything after one event in so many.
    thorough: u64,
}

impl Plan {
    fn random(rng: &mut Rng, tasks: u64, workers: u64) -> Self {
        let often = |rng: &mut Rng, n: u64| if rng.chance(50) { 0 } else { 1 + rng.below(n) };
        let workers = match rng.below(4) {
            0 => 1,
            1 => 2,
            _ => 1 + rng.below(workers) as usize,
        };
        let limit = if rng.chance(50) { Some(Duration::from_millis(1 + rng.below(300))) } else { None };
        let rules = Rules {
            workers,
            concurrency: 1 + rng.below(12) as usize,
            hello_limit: Duration::from_millis(50 + rng.below(200)),
            start_limit: limit,
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
            hang: often(rng, 200),
            crash: often(rng, 200),
            nonsense: often(rng, 500),
            hang_up: often(rng, 200),
            start_fails: [0, 0, 20, 70][rng.below(4) as usize],
            bad_phases: rng.chance(30),
            abort_where: often(rng, 100),
            start_all: rng.chance(20),
            kill: rng.chance(30),
            end_early: rng.chance(30),
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
    /// What had not reached the dead worker counts as run.
    Unreached,
    /// What had run goes back to the queue.
    RunAgain,
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
}

const FLAWS: [Flaw; 22] = [
    Flaw::Order,
    Flaw::Forget,
    Flaw::Window,
    Flaw::Concurrency,
    Flaw::Mixed,
    Flaw::Large,
    Flaw::Workers,
    Flaw::Revived,
    Flaw::NotIdle,
    Flaw::Unreached,
    Flaw::RunAgain,
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
];

// ---- the model's books

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Its place in the order of the queue.
    Queued(i64),
    InFlight(WorkerKey),
    Settled,
}

#[derive(Debug)]
struct Job {
    key: Option<TaskKey>,
    mode: Mode,
    large: bool,
    place: Place,
    aborted: bool,
    /// A process has begun it.
    begun: bool,
    service: Duration,
    hangs: bool,
    crashes: bool,
    /// How often it went back although it was next.
    moves: u8,
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
    service: Option<Duration>,
    busy_since: Instant,
    /// Aborted async tasks and when they must have ended.
    asked: Vec<(Instant, u64)>,
    // The process.
    got_ready: bool,
    /// Sent, and not yet taken in; taken in and waiting; running.
    wire: VecDeque<u64>,
    inbox: VecDeque<u64>,
    running: Vec<u64>,
    replies: Vec<u64>,
    delivery_due: bool,
    /// It says nothing more and begins nothing more.
    silent: bool,
    hangs_at_end: bool,
    exit_due: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Submit,
    Abort(u64),
    AbortWhere(u64),
    StartAll,
    Drain,
    Kill,
    Phase(bool),
    StartFailed(WorkerKey),
    Hello(WorkerKey, bool),
    Ready(WorkerKey),
    Arrive(WorkerKey),
    Finish(WorkerKey, u64),
    CancelArrives(WorkerKey, u64),
    Deliver(WorkerKey),
    HangUp(WorkerKey),
    Exit(WorkerKey),
}

/// What the model expects of the event at hand.
#[derive(Default)]
struct Expected {
    /// Tasks of a worker that died: whether they are lost (else cancelled).
    settles: HashMap<u64, bool>,
    start_failed: bool,
    start_all: bool,
}

struct World {
    rng: Rng,
    plan: Plan,
    flaw: Option<Flaw>,
    now: Instant,
    core: Core<u64>,
    actions: Vec<Action<u64>>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    serial: u64,
    deadline: Option<Instant>,
    jobs: Vec<Job>,
    open: u64,
    queue: BTreeMap<i64, u64>,
    front: i64,
    back: i64,
    hands: BTreeMap<WorkerKey, Hand>,
    failed_at: Option<Instant>,
    bad_phase: bool,
    draining: bool,
    killed: bool,
    ended: bool,
    expected: Expected,
    /// The core has been told to doom this one.
    told: Option<WorkerKey>,
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
            core: Core::new(rules),
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
            bad_phase: false,
            draining: false,
            killed: false,
            ended: false,
            expected: Expected::default(),
            told: None,
            ran_again: None,
            seen: BTreeMap::new(),
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
            ensure!(self.open == 0, "{} tasks wait for ever, {} of them queued", self.open, self.queue.len());
            let event = if self.plan.kill { Event::Kill } else { Event::Drain };
            self.after(Duration::ZERO, event);
            self.until_quiet()?;
        }
        ensure!(self.open == 0, "{} tasks wait for ever in a pool that was closed", self.open);
        ensure!(self.hands.is_empty(), "{} workers are left", self.hands.len());
        ensure!(self.ended, "the end was not told");
        Ok(())
    }

    fn until_quiet(&mut self) -> Check {
        loop {
            let next = self.events.peek().map(|Reverse((at, _, _))| *at);
            match (next, self.deadline) {
                (None, None) => return Ok(()),
                (next, Some(deadline)) if next.is_none_or(|at| deadline <= at) => {
                    self.now = self.now.max(deadline);
                    self.core.tick(self.now, &mut self.actions);
                    self.settle_up(true)?;
                    ensure!(self.deadline.is_none_or(|next| next > self.now), "the same deadline again, after its tick");
                    self.overdue()?;
                }
                (_, _) => {
                    let Some(Reverse((at, _, event))) = self.events.pop() else { return Ok(()) };
                    self.now = at;
                    self.event(event)?;
                }
            }
        }
    }

    // ---- events

    fn event(&mut self, event: Event) -> Check {
        self.falsify();
        match event {
            Event::Submit => return self.submit(),
            Event::Abort(id) => self.abort(id),
            Event::AbortWhere(rest) => {
                for (id, job) in self.jobs.iter_mut().enumerate() {
                    job.aborted |= job.place != Place::Settled && id as u64 % 4 == rest;
                }
                let asked: Vec<_> =
                    self.jobs.iter().enumerate().filter(|(id, _)| *id as u64 % 4 == rest).map(|(id, _)| id as u64).collect();
                asked.into_iter().for_each(|id| self.ask(id));
                self.core.abort_where(|id| (id - BASE_ID) % 4 == rest, self.now, &mut self.actions);
                return self.settle_up(false);
            }
            Event::StartAll => {
                self.expected.start_all = true;
                self.core.start_all(self.now, &mut self.actions);
                self.settle_up(false)?;
                ensure!(self.draining || self.killed || self.hands.len() == self.plan.rules.workers, "not all were started");
                return Ok(());
            }
            Event::Drain => {
                self.draining = true;
                self.core.drain(self.now, &mut self.actions);
                self.settle_up(false)?;
                if self.plan.kill {
                    let delay = self.rng.micros(50_000);
                    self.after(delay, Event::Kill);
                }
                return Ok(());
            }
            Event::Kill => {
                self.killed = true;
                self.core.kill(self.now, &mut self.actions);
                self.settle_up(false)?;
                ensure!(self.open == 0, "{} tasks were not settled by the kill", self.open);
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
            Event::Finish(key, id) => self.finish(key, id),
            Event::CancelArrives(key, id) => {
                if !self.jobs[id as usize].hangs {
                    self.finish(key, id);
                }
            }
            Event::Deliver(key) => return self.deliver(key),
            Event::HangUp(key) => return self.hang_up(key),
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
            let mode = if self.rng.chance(self.plan.async_percent) { Mode::Async } else { Mode::Sync };
            let large = self.rng.chance(self.plan.large_percent);
            let service = match self.rng.below(3) {
                0 => self.plan.service,
                1 => self.rng.micros(2 * self.plan.service.as_micros() as u64),
                _ => self.rng.heavy_tail(self.plan.service),
            };
            let (hangs, crashes) = (self.rng.rarely(self.plan.hang), self.rng.rarely(self.plan.crash));
            let job = Job {
                key: None,
                mode,
                large,
                place: Place::Queued(self.back),
                aborted: false,
                begun: false,
                service,
                hangs,
                crashes,
                moves: 0,
            };
            let refusing = self.draining || self.killed;
            let dead_pool = self.hands.is_empty() && self.failed_at.is_some_and(|at| self.now < at + BACKOFF_MAX);
            self.jobs.push(job);
            let large = large && self.flaw != Some(Flaw::Large);
            let call = Call { cargo: BASE_ID + id, id: BASE_ID + id, mode, large };
            match self.core.submit(call, self.now, &mut self.actions) {
                Ok(key) => {
                    ensure!(!refusing, "a closed pool took a task");
                    self.jobs[id as usize].key = Some(key);
                    self.queue.insert(self.back, id);
                    self.back += 1;
                    self.open += 1;
                }
                Err(Refused(cargo, fate)) => {
                    ensure!(cargo == BASE_ID + id, "another cargo came back");
                    match fate {
                        Fate::Closed => ensure!(refusing, "an open pool is closed"),
                        Fate::StartFailed(_) => ensure!(dead_pool, "refused, but no start had failed or a worker was there"),
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
                let delay = self.rng.micros(300_000);
                self.after(delay, Event::Abort(id));
            }
            if self.rng.rarely(self.plan.abort_where * 5) {
                let rest = self.rng.below(4);
                self.after(soon, Event::AbortWhere(rest));
            }
            if self.rng.rarely(500) {
                self.after(soon, Event::StartAll);
            }
        }
        let pause = self.rng.micros(self.plan.pace.as_micros() as u64 * burst);
        self.after(pause, Event::Submit);
        Ok(())
    }

    fn abort(&mut self, id: u64) {
        let job = &mut self.jobs[id as usize];
        if let Some(key) = job.key {
            job.aborted |= job.place != Place::Settled;
            self.ask(id);
            self.core.abort(key, self.now, &mut self.actions);
        }
    }

    /// The model notes until when an aborted async task must have ended.
    fn ask(&mut self, id: u64) {
        let job = &self.jobs[id as usize];
        if let (Mode::Async, Place::InFlight(worker)) = (job.mode, job.place)
            && let Some(hand) = self.hands.get_mut(&worker)
            && hand.life != Life::Doomed
            && hand.asked.iter().all(|(_, other)| *other != id)
        {
            hand.asked.push((self.now + ABORT_GRACE, id));
        }
    }

    fn start_failed(&mut self, key: WorkerKey) -> Check {
        if self.hands.remove(&key).is_some() {
            self.failed_at = Some(self.now);
            self.expected.start_failed = true;
            self.core.start_failed(key, self.error.clone(), self.now, &mut self.actions);
            self.settle_up(true)?;
            ensure!(!self.hands.is_empty() || self.queue.is_empty(), "a start failed, nobody is left, and {} tasks wait", self.queue.len());
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
        }
        self.core.ready(key, self.now, &mut self.actions);
        if self.rng.rarely(self.plan.hang_up) {
            let delay = self.rng.micros(100_000);
            self.after(delay, Event::HangUp(key));
        }
        self.settle_up(true)
    }

    // ---- the processes

    /// Some bytes of a task have come, all of them.
    fn arrive(&mut self, key: WorkerKey) {
        let Some(hand) = self.hands.get_mut(&key) else { return };
        let Some(id) = hand.wire.pop_front() else { return };
        hand.inbox.push_back(id);
        self.begin(key);
    }

    /// A process begins what it can.
    fn begin(&mut self, key: WorkerKey) {
        while let Some(hand) = self.hands.get_mut(&key)
            && !hand.silent
            && let Some(id) = hand.inbox.front().copied()
            && (self.jobs[id as usize].mode == Mode::Async || hand.running.is_empty())
        {
            hand.inbox.pop_front();
            hand.running.push(id);
            let job = &mut self.jobs[id as usize];
            if job.begun {
                self.ran_again = Some(id);
            }
            job.begun = true;
            let (service, hangs, crashes) = (job.service, job.hangs, job.crashes);
            if crashes {
                let part = self.rng.micros(1 + service.as_micros() as u64);
                self.after(part, Event::Exit(key));
            } else if !hangs {
                self.after(service, Event::Finish(key, id));
            }
        }
    }

    fn finish(&mut self, key: WorkerKey, id: u64) {
        let Some(hand) = self.hands.get_mut(&key) else { return };
        let Some(at) = hand.running.iter().position(|running| *running == id) else { return };
        hand.running.remove(at);
        hand.replies.push(id);
        if !hand.delivery_due {
            hand.delivery_due = true;
            let delay = if self.rng.chance(70) { Duration::from_micros(5) } else { self.rng.micros(3_000) };
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
        for id in replies {
            let cargo = self.core.replied(key, BASE_ID + id);
            if self.killed {
                ensure!(cargo.is_none(), "an answer after the kill was taken");
                continue;
            }
            ensure!(cargo == Some(BASE_ID + id), "the answer to {id} was not taken: {cargo:?}");
            let job = &mut self.jobs[id as usize];
            ensure!(job.place == Place::InFlight(key), "an answer to {id}, which is {:?}", job.place);
            job.place = Place::Settled;
            self.open -= 1;
            let Some(hand) = self.hands.get_mut(&key) else { return Ok(()) };
            hand.in_flight.retain(|other| *other != id);
            hand.asked.retain(|(_, other)| *other != id);
            count += 1;
        }
        if let Some(hand) = self.hands.get_mut(&key)
            && count > 0
            && !self.killed
        {
            // An empty worker keeps the mode of its last task; its measure is of sync tasks only.
            if self.core.workers.get(key).is_some_and(|worker| worker.mode == Mode::Sync) {
                let sample = self.now.saturating_duration_since(hand.busy_since) / count;
                hand.service = Some(hand.service.map_or(sample, |old| (old * 3 + sample) / 4));
            }
            hand.busy_since = self.now;
        }
        let broken = !self.killed && self.rng.rarely(self.plan.nonsense);
        if broken && let Some(hand) = self.hands.get_mut(&key) {
            hand.silent = true;
            let second = hand.in_flight.get(1).filter(|id| self.jobs[**id as usize].mode == Mode::Sync);
            let nonsense = second.map_or(7, |id| BASE_ID + id);
            ensure!(self.core.replied(key, nonsense).is_none(), "an answer out of turn was taken");
        }
        self.core.refill(key, count, self.now, &mut self.actions);
        self.settle_up(false)?;
        if broken {
            // As the driver does when a worker has broken the protocol.
            self.told = Some(key);
            self.core.doom(key, &mut self.actions);
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
        // What it had written before it ended still counts.
        self.deliver(key)?;
        let Some(hand) = self.hands.get(&key) else { return Ok(()) };
        if !hand.got_ready {
            return self.start_failed(key);
        }
        let mut hand = self.hands.remove(&key).ok_or("no such worker")?;
        // Of what is still on the wire any part may have reached the process.
        let cut = self.rng.below(hand.wire.len() as u64 + 1) as usize;
        let unreached: Vec<u64> = hand.wire.split_off(cut).into();
        if !self.killed {
            let mut back = Vec::new();
            for (at, id) in hand.in_flight.iter().copied().enumerate() {
                let job = &mut self.jobs[id as usize];
                let was_next = at == 0 || job.mode == Mode::Async;
                let ran = was_next && (!unreached.contains(&id) || job.moves == MOVES_MAX);
                job.moves += u8::from(was_next && !ran);
                if !ran && job.begun {
                    return Err(format!("{id} had begun, and is said not to have run"));
                }
                if job.aborted || ran {
                    self.expected.settles.insert(id, !job.aborted);
                } else {
                    back.push(id);
                }
            }
            for id in back.into_iter().rev() {
                self.see("requeued");
                self.front -= 1;
                self.queue.insert(self.front, id);
                self.jobs[id as usize].place = Place::Queued(self.front);
            }
        }
        let loss = Arc::new(Loss { pid: 1, status: None, note: None, bad_frame: None });
        let flaw = self.flaw;
        let reached = |cargo: &u64| match flaw {
            Some(Flaw::Unreached) => true,
            Some(Flaw::RunAgain) => false,
            _ => !unreached.contains(&(cargo - BASE_ID)),
        };
        self.core.exited(key, &loss, reached, self.now, &mut self.actions);
        self.settle_up(true)?;
        ensure!(self.expected.settles.is_empty(), "tasks of a dead worker were not settled: {:?}", self.expected.settles);
        Ok(())
    }

    // ---- what the core says

    /// Does the actions, against the books; then looks over the books.
    fn settle_up(&mut self, mut timed: bool) -> Check {
        let mut actions = std::mem::take(&mut self.actions);
        match self.flaw {
            Some(Flaw::SettleTwice) => {
                if let Some(Action::Settle(id, fate)) = actions.iter().find(|action| matches!(action, Action::Settle(..))) {
                    let again = Action::Settle(*id, fate.clone());
                    actions.push(again);
                }
            }
            Some(Flaw::Unsettled) => actions.retain(|action| !matches!(action, Action::Settle(..))),
            Some(Flaw::Endless) => actions.retain(|action| !matches!(action, Action::Ended)),
            Some(Flaw::EndTwice) if actions.iter().any(|action| matches!(action, Action::Ended)) => actions.push(Action::Ended),
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
        if self.rng.rarely(self.plan.thorough) {
            self.look_over()?;
        }
        Ok(())
    }

    fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn action(&mut self, action: Action<u64>) -> Check {
        ensure!(!self.ended, "{action:?} after the end");
        self.see(match &action {
            Action::Start(_) => "Start",
            Action::Send(..) => "Send",
            Action::Cancel(..) => "Cancel",
            Action::Retire(_) => "Retire",
            Action::Kill(_) => "Kill",
            Action::TimeOut(_) => "TimeOut",
            Action::Settle(_, Fate::Cancelled) => "Cancelled",
            Action::Settle(_, Fate::Closed) => "Closed",
            Action::Settle(_, Fate::StartFailed(_)) => "StartFailed",
            Action::Settle(_, Fate::Lost(_)) => "Lost",
            Action::Ended => "Ended",
        });
        match action {
            Action::Start(key) => self.do_start(key),
            Action::Send(key, task) => self.do_send(key, task),
            Action::Cancel(key, task) => {
                let id = self.core.cargo_mut(task).map(|id| *id - BASE_ID).ok_or("a cancel of nothing")?;
                let job = &self.jobs[id as usize];
                ensure!(job.aborted && job.mode == Mode::Async && job.place == Place::InFlight(key), "{id} is cancelled: {job:?}");
                let delay = self.rng.micros(500);
                self.after(delay, Event::CancelArrives(key, id));
                Ok(())
            }
            Action::Retire(key) => {
                ensure!(self.draining && self.queue.is_empty(), "retired while there is work");
                let by = self.now + RETIRE_GRACE;
                let hand = self.hands.get_mut(&key).ok_or("nobody is retired")?;
                ensure!(hand.life == Life::Ready && hand.in_flight.is_empty(), "{key:?} is retired at work");
                hand.life = Life::Leaving { by };
                if !hand.hangs_at_end {
                    let delay = self.rng.micros(2_000);
                    let event = if self.rng.chance(50) { Event::Exit(key) } else { Event::HangUp(key) };
                    self.after(delay, event);
                }
                Ok(())
            }
            Action::Kill(key) => self.do_kill(key),
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
                ensure!(self.open == 0 && self.hands.is_empty(), "ended with {} tasks and {} workers", self.open, self.hands.len());
                self.ended = true;
                Ok(())
            }
        }
    }

    fn do_start(&mut self, key: WorkerKey) -> Check {
        ensure!(!self.killed, "a start after the kill");
        ensure!(!self.draining || !self.queue.is_empty(), "a start in a pool that closes and has nothing queued");
        let early = self.failed_at.is_some_and(|at| self.now < at + BACKOFF_MIN);
        ensure!(!early || self.expected.start_all, "a start before the back-off has passed");
        let ordered = self.now;
        let limit = self.plan.rules.start_limit.map_or(self.plan.rules.hello_limit, |limit| limit.min(self.plan.rules.hello_limit));
        let hand = Hand {
            life: Life::Starting { until: Some(ordered + limit) },
            ordered,
            in_flight: VecDeque::new(),
            service: None,
            busy_since: ordered,
            asked: Vec::new(),
            got_ready: false,
            wire: VecDeque::new(),
            inbox: VecDeque::new(),
            running: Vec::new(),
            replies: Vec::new(),
            delivery_due: false,
            silent: false,
            hangs_at_end: self.rng.chance(5),
            exit_due: false,
        };
        ensure!(self.hands.insert(key, hand).is_none(), "{key:?} is started twice");
        ensure!(self.hands.len() <= self.plan.rules.workers, "{} workers, {} allowed", self.hands.len(), self.plan.rules.workers);
        let fails = self.bad_phase || self.rng.chance(self.plan.start_fails);
        let delay = self.rng.micros(10_000);
        match self.rng.below(4) {
            0 if fails => {} // it never says hello
            1 if fails && self.plan.rules.start_limit.is_some() => self.after(delay, Event::Hello(key, true)),
            2 if fails => self.after(delay, Event::Exit(key)),
            _ if fails => self.after(delay, Event::StartFailed(key)),
            _ => self.after(delay, Event::Hello(key, false)),
        }
        Ok(())
    }

    fn do_send(&mut self, key: WorkerKey, task: TaskKey) -> Check {
        let id = self.core.cargo_mut(task).map(|id| *id - BASE_ID).ok_or("nothing is sent")?;
        ensure!(
            self.core.id_of(task) == Some(BASE_ID + id) && self.core.worker_of(task) == Some(Some(key)),
            "what is sent is not known as sent"
        );
        let head = self.queue.pop_first();
        ensure!(head.is_some_and(|(_, head)| head == id), "{id} is sent before {head:?}");
        let (mode, large) = (self.jobs[id as usize].mode, self.jobs[id as usize].large);
        let room = self.room(key, mode, large);
        let hand = self.hands.get(&key).ok_or("sent to nobody")?;
        ensure!(room, "{id} ({mode:?}, large: {large}) is sent to {hand:?}");
        let starting = self.hands.values().any(|hand| matches!(hand.life, Life::Starting { .. }));
        ensure!(mode == Mode::Async || hand.in_flight.is_empty() || !starting, "{id} stands behind another while a worker starts");
        if self.rng.rarely(self.plan.thorough) {
            let load = hand.in_flight.len();
            let better = self.hands.iter().find(|(other, hand)| hand.in_flight.len() < load && self.room(**other, mode, large));
            ensure!(better.is_none(), "{id} is sent to one with {load} in flight, not to {better:?}");
        }
        let lag = if self.rng.chance(70) { Duration::from_nanos(500) } else { self.rng.micros(300) };
        let hand = self.hands.get_mut(&key).ok_or("sent to nobody")?;
        if hand.in_flight.is_empty() {
            hand.busy_since = self.now;
        }
        hand.in_flight.push_back(id);
        hand.wire.push_back(id);
        self.jobs[id as usize].place = Place::InFlight(key);
        self.after(lag, Event::Arrive(key));
        Ok(())
    }

    /// Rules 2, 4 and 5, as the model understands them.
    fn room(&self, key: WorkerKey, mode: Mode, large: bool) -> bool {
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
        !(large && mode == Mode::Sync) && self.jobs[*first as usize].mode == mode && hand.in_flight.len() < limit && !late
    }

    fn do_kill(&mut self, key: WorkerKey) -> Check {
        let now = self.now;
        let hand = self.hands.get(&key).ok_or("nobody is killed")?;
        let stopped = hand.in_flight.front().is_some_and(|id| {
            let job = &self.jobs[*id as usize];
            job.mode == Mode::Sync && job.aborted
        });
        let overdue = hand.asked.iter().any(|(by, _)| *by <= now) || matches!(hand.life, Life::Leaving { by } if by <= now);
        let unwanted = self.draining && self.open == 0 && matches!(hand.life, Life::Starting { .. });
        let told = self.told == Some(key);
        ensure!(hand.life != Life::Doomed, "{key:?} is killed twice");
        ensure!(self.killed || stopped || overdue || unwanted || told, "{hand:?} is killed for nothing");
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
        let queued = match job.place {
            Place::Queued(at) => self.queue.remove(&at).is_some(),
            _ => false,
        };
        let truth = match fate {
            Fate::Cancelled => job.aborted && (queued || lost == Some(false)),
            Fate::Closed => self.killed,
            Fate::StartFailed(_) => queued && self.expected.start_failed && self.hands.is_empty(),
            Fate::Lost(_) => lost == Some(true),
        };
        ensure!(truth, "{id} is settled as {fate:?}: {job:?}, lost: {lost:?}");
        ensure!(!queued || !job.begun, "{id} had begun and was queued");
        job.place = Place::Settled;
        self.open -= 1;
        Ok(())
    }

    // ---- looking over the books

    fn look_over(&self) -> Check {
        let core = &self.core;
        ensure!(core.queued() == self.queue.len(), "{} queued, counted {}", self.queue.len(), core.queued());
        ensure!(core.tasks.len() as u64 == self.open, "{} open, {} kept", self.open, core.tasks.len());
        ensure!(core.workers.len() == self.hands.len(), "{} workers, {} kept", self.hands.len(), core.workers.len());
        let starting = self.hands.values().filter(|hand| matches!(hand.life, Life::Starting { .. })).count();
        ensure!(core.starting == starting, "{starting} start, counted {}", core.starting);
        let mut idle = core.idle.clone();
        idle.sort_unstable();
        let truly: Vec<_> =
            self.hands.iter().filter(|(_, hand)| hand.life == Life::Ready && hand.in_flight.is_empty()).map(|(key, _)| *key).collect();
        ensure!(idle == truly, "idle are {truly:?}, known are {idle:?}");
        ensure!(core.is_closed() == (self.draining || self.killed), "closed, or not");
        ensure!(!self.draining || self.open > 0 || starting == 0, "{starting} still start for nothing");
        let Some(head) = self.queue.values().next() else { return Ok(()) };
        let job = &self.jobs[*head as usize];
        // Behind a sync task it need not stand (rule 10): what is in flight there brings the next chance.
        let may_stand_behind = |key: &WorkerKey| job.mode == Mode::Async || self.hands[key].in_flight.is_empty();
        let free = self.hands.keys().find(|key| may_stand_behind(key) && self.room(**key, job.mode, job.large));
        ensure!(free.is_none(), "{head} waits, though {free:?} has room");
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
                    *retry = if self.flaw == Some(Flaw::NoRetry) { *retry + 10_000 * BACKOFF_MAX } else { self.now };
                }
            }
            Some(Flaw::Window | Flaw::Mixed | Flaw::NoGrace | Flaw::ShortGrace | Flaw::Revived) => {
                for key in workers {
                    let Some(worker) = core.workers.get_mut(key) else { continue };
                    match self.flaw {
                        Some(Flaw::Window) => worker.service = worker.service.map(|_| Duration::ZERO),
                        Some(Flaw::Mixed) if worker.mode == Mode::Sync && !worker.in_flight.is_empty() => worker.mode = Mode::Async,
                        Some(Flaw::NoGrace) => worker.asked.clear(),
                        Some(Flaw::ShortGrace) => worker.asked.iter_mut().for_each(|(by, _)| *by -= ABORT_GRACE / 2),
                        Some(Flaw::Revived) if worker.state == State::Doomed && worker.used => worker.state = State::Ready,
                        _ => continue,
                    }
                    core.list(key);
                }
            }
            Some(Flaw::Unaborted) => {
                for key in core.tasks.keys() {
                    if let Some(task) = core.tasks.get_mut(key) {
                        task.aborting = false;
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
        Some(seed) => (seed, 1),
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
    rounds(300, |seed| World::new(seed, 300, 12, None).run());
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
    ] {
        assert!(seen.get(what).is_some_and(|count| *count > 50), "{what} is rare: {seen:?}");
    }
}

// ---- each rule by itself

/// A core and a clock that is moved by hand.
struct Bench {
    core: Core<u64>,
    now: Instant,
    next: u64,
}

impl Bench {
    fn new(workers: usize) -> Self {
        let rules = Rules { workers, concurrency: 3, hello_limit: Duration::from_secs(30), start_limit: Some(Duration::from_secs(60)) };
        Self { core: Core::new(rules), now: Instant::now(), next: 0 }
    }

    /// All workers are there and idle; the last is the next to be used.
    fn ready(workers: usize) -> (Self, Vec<WorkerKey>) {
        let mut bench = Self::new(workers);
        let started = bench.does(|core, now, actions| core.start_all(now, actions));
        let keys: Vec<_> = bench.core.workers.keys();
        assert_eq!(started.len(), workers);
        for key in &keys {
            assert!(bench.does(|core, now, actions| core.ready(*key, now, actions)).is_empty());
        }
        (bench, keys)
    }

    /// What the core does about it, in words: `send 0 3` is task 3 to the worker in place 0.
    fn does(&mut self, event: impl FnOnce(&mut Core<u64>, Instant, &mut Vec<Action<u64>>)) -> Vec<String> {
        let mut actions = Vec::new();
        event(&mut self.core, self.now, &mut actions);
        let place = |key: WorkerKey| key.to_u64() & u64::from(u32::MAX);
        let words = actions.into_iter().map(|action| match action {
            Action::Start(key) => format!("start {}", place(key)),
            Action::Send(key, task) => format!("send {} {:?}", place(key), self.core.id_of(task)).replace("Some(", "").replace(')', ""),
            Action::Cancel(key, task) => format!("cancel {} {:?}", place(key), self.core.id_of(task)).replace("Some(", "").replace(')', ""),
            Action::Retire(key) => format!("retire {}", place(key)),
            Action::Kill(key) => format!("kill {}", place(key)),
            Action::TimeOut(key) => format!("time out {}", place(key)),
            Action::Settle(id, Fate::Cancelled) => format!("cancelled {id}"),
            Action::Settle(id, Fate::Closed) => format!("closed {id}"),
            Action::Settle(id, Fate::StartFailed(_)) => format!("start failed {id}"),
            Action::Settle(id, Fate::Lost(_)) => format!("lost {id}"),
            Action::Ended => "ended".into(),
        });
        words.collect()
    }

    fn submit(&mut self, mode: Mode, large: bool) -> (Option<TaskKey>, Vec<String>) {
        let id = self.next;
        self.next += 1;
        let mut key = None;
        let words = self.does(|core, now, actions| key = core.submit(Call { cargo: id, id, mode, large }, now, actions).ok());
        (key, words)
    }

    fn task(&mut self, mode: Mode) -> (TaskKey, Vec<String>) {
        let (key, words) = self.submit(mode, false);
        (key.expect("it is taken"), words)
    }

    fn reply(&mut self, worker: WorkerKey, ids: &[u64]) -> Vec<String> {
        self.does(|core, now, actions| {
            ids.iter().for_each(|id| assert_eq!(core.replied(worker, *id), Some(*id)));
            core.refill(worker, ids.len() as u32, now, actions);
        })
    }

    fn exit(&mut self, worker: WorkerKey, reached: impl Fn(&u64) -> bool) -> Vec<String> {
        let loss = Arc::new(Loss { pid: 1, status: None, note: None, bad_frame: None });
        self.does(|core, now, actions| core.exited(worker, &loss, reached, now, actions))
    }

    fn fail(&mut self, worker: WorkerKey) -> Vec<String> {
        self.does(|core, now, actions| core.start_failed(worker, Error::spawn("testing", std::io::Error::other("no")), now, actions))
    }

    fn abort(&mut self, key: TaskKey) -> Vec<String> {
        self.does(|core, now, actions| core.abort(key, now, actions))
    }

    fn tick(&mut self) -> Vec<String> {
        self.does(|core, now, actions| core.tick(now, actions))
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Teaches a worker how long sync tasks take.
    fn teach(&mut self, worker: WorkerKey, service: Duration) {
        let (_, sent) = self.task(Mode::Sync);
        assert!(sent[0].starts_with("send"));
        self.pass(service);
        let id = self.next - 1;
        assert_eq!(self.reply(worker, &[id]), [""; 0]);
    }
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn rule_1_one_that_cannot_be_placed_holds_back_the_others() {
    let (mut bench, w) = Bench::ready(1);
    assert_eq!(bench.task(Mode::Async).1, ["send 0 0"]);
    let (sync, words) = bench.task(Mode::Sync);
    assert_eq!(words, [""; 0]);
    assert_eq!(bench.task(Mode::Async).1, [""; 0]); // there is room for it, but not before its turn
    assert_eq!(bench.abort(sync), ["cancelled 1", "send 0 2"]);
    assert_eq!(bench.reply(w[0], &[2, 0]), [""; 0]);
}

#[test]
fn rule_2_a_worker_changes_sides_when_it_is_empty() {
    let (mut bench, w) = Bench::ready(1);
    bench.task(Mode::Async);
    bench.task(Mode::Async);
    bench.task(Mode::Sync);
    assert_eq!(bench.reply(w[0], &[1]), [""; 0]);
    assert_eq!(bench.reply(w[0], &[0]), ["send 0 2"]);
}

#[test]
fn rule_3_idle_ones_first_then_the_one_with_the_fewest() {
    let (mut bench, _) = Bench::ready(2);
    let sent: Vec<_> = (0..7).map(|_| bench.task(Mode::Async).1.concat()).collect();
    assert_eq!(sent, ["send 1 0", "send 0 1", "send 0 2", "send 1 3", "send 0 4", "send 1 5", ""]);
}

#[test]
fn rule_3_holds_for_what_comes_back_as_well() {
    let (mut bench, w) = Bench::ready(3);
    bench.teach(w[2], MS / 100);
    bench.task(Mode::Sync); // 1, to worker 2, which is used to short tasks
    let others: Vec<_> = (0..2).map(|_| bench.task(Mode::Sync).1.concat()).collect();
    assert_eq!(others, ["send 1 2", "send 0 3"]);
    for _ in 1..2 * RESERVE * 3 {
        assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    }
    assert_eq!(bench.task(Mode::Sync).1, ["send 2 4", "send 2 5", "send 2 6", "send 2 7"]);
    bench.pass(LONG);
    assert_eq!(bench.reply(w[0], &[3]), ["send 0 8"]);
    assert_eq!(bench.exit(w[2], |_| true), ["lost 1", "start 2"]);
    assert_eq!(bench.reply(w[0], &[8]), ["send 0 4"], "what comes back goes first");
}

#[test]
fn rule_4_the_window_follows_the_service_time() {
    for (service, window) in [(MS / 1000, 300), (MS / 10, 3), (MS, 2), (LONG, 1), (Duration::ZERO, 1024)] {
        let (mut bench, w) = Bench::ready(1);
        bench.teach(w[0], service);
        let sent = (0..2000).filter(|_| !bench.task(Mode::Sync).1.is_empty()).count();
        assert_eq!(sent, window, "{service:?}");
    }
    let (mut bench, w) = Bench::ready(1);
    bench.task(Mode::Sync);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]); // not yet known
    bench.reply(w[0], &[0]);
    bench.pass(LONG);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]); // the running one has lasted long
    bench.pass(LONG);
    assert_eq!(bench.reply(w[0], &[1]), ["send 0 2"]);
}

#[test]
fn rule_5_a_large_task_waits_for_an_idle_worker() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    bench.task(Mode::Sync);
    assert_eq!(bench.submit(Mode::Sync, true).1, [""; 0]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0], "and holds back the next");
    assert_eq!(bench.reply(w[0], &[1]), ["send 0 2", "send 0 3"]);
    bench.reply(w[0], &[2]);
    bench.reply(w[0], &[3]);
    bench.task(Mode::Async);
    assert_eq!(bench.submit(Mode::Async, true).1, ["send 0 5"], "async tasks run side by side");
}

#[test]
fn rule_7_a_task_does_not_go_back_for_ever() {
    let (mut bench, w) = Bench::ready(1);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 0"]);
    let mut worker = w[0];
    for _ in 0..MOVES_MAX {
        assert_eq!(bench.exit(worker, |_| false), ["start 0"]);
        worker = bench.core.workers.keys()[0];
        assert_eq!(bench.does(|core, now, actions| core.ready(worker, now, actions)), ["send 0 0"]);
    }
    assert_eq!(bench.exit(worker, |_| false)[0], "lost 0");
}

#[test]
fn rule_10_nobody_is_given_more_than_a_share_and_nothing_stands_behind_while_a_worker_starts() {
    let (mut bench, w) = Bench::ready(2);
    bench.task(Mode::Sync);
    bench.pass(Duration::from_micros(1));
    bench.reply(w[1], &[0]); // it is known to be quick, and would take many
    assert_eq!(bench.task(Mode::Sync).1, ["send 1 1"]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 2"]);
    bench.submit(Mode::Sync, true); // holds back the others
    for _ in 0..2 * RESERVE * 2 - 1 {
        assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    }
    assert_eq!(bench.reply(w[1], &[1]), ["send 1 3", "send 1 4", "send 1 5", "send 1 6", "send 1 7"], "half of what is beyond the reserve");

    let (mut bench, w) = Bench::ready(1);
    bench.task(Mode::Sync);
    bench.pass(Duration::from_micros(1));
    bench.reply(w[0], &[0]);
    bench.task(Mode::Sync);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 2"], "nobody else is coming: it may stand behind");

    let mut bench = Bench::new(2);
    bench.task(Mode::Sync);
    let w = bench.core.workers.keys();
    bench.does(|core, now, actions| core.ready(w[0], now, actions));
    bench.pass(Duration::from_micros(1));
    bench.reply(w[0], &[0]);
    bench.task(Mode::Sync);
    assert_eq!(bench.task(Mode::Sync).1, ["start 1"], "it waits for whoever is free first");
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
}

#[test]
fn rule_6_a_start_for_each_that_finds_nobody_idle() {
    let mut bench = Bench::new(3);
    assert_eq!(bench.task(Mode::Sync).1, ["start 0"]);
    assert_eq!(bench.task(Mode::Sync).1, ["start 1"]);
    let w = bench.core.workers.keys();
    assert_eq!(bench.does(|core, now, actions| core.ready(w[0], now, actions)), ["send 0 0"]);
    bench.pass(LONG);
    assert_eq!(bench.reply(w[0], &[0]), ["send 0 1"]);
    // One start is still under way, for the one that finds nobody now.
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    assert_eq!(bench.task(Mode::Sync).1, ["start 2"]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
}

#[test]
fn rule_6_failed_starts_are_tried_again_after_a_back_off() {
    let (mut bench, w) = Bench::ready(1);
    bench.core.rules.workers = 3;
    bench.task(Mode::Sync);
    assert_eq!(bench.task(Mode::Sync).1, ["start 1"]);
    bench.pass(MS);
    let second = bench.core.workers.keys()[1];
    assert_eq!(bench.task(Mode::Sync).1, ["start 2"]);
    let third = bench.core.workers.keys()[2];
    bench.fail(second);
    bench.pass(MS);
    bench.fail(third); // was under way with the other: the wait does not double
    assert_eq!(bench.core.next_deadline(), Some(bench.now + BACKOFF_MIN));
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    bench.pass(BACKOFF_MIN);
    assert_eq!(bench.tick(), ["start 2", "start 1"]);
    let retried = *bench.core.workers.keys().last().expect("three workers");
    assert!(bench.core.next_deadline().is_some_and(|at| at > bench.now + MS), "nothing to do before a start is late");
    bench.pass(MS);
    bench.fail(retried);
    assert_eq!(bench.core.next_deadline(), Some(bench.now + 2 * BACKOFF_MIN));
    // A worker that gets ready ends the back-off.
    let other = bench.core.workers.keys()[1];
    assert_ne!(other, w[0]);
    assert_eq!(bench.does(|core, now, actions| core.ready(other, now, actions)), ["send 1 1", "start 2"]);
}

#[test]
fn rule_7_a_death_costs_what_ran() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    (1..=4).for_each(|id| assert_eq!(bench.task(Mode::Sync).1, [format!("send 0 {id}")]));
    assert_eq!(bench.reply(w[0], &[1]), [""; 0]);
    assert_eq!(bench.exit(w[0], |_| true), ["lost 2", "start 0"]);
    let again = bench.core.workers.keys()[0];
    assert_eq!(bench.does(|core, now, actions| core.ready(again, now, actions)), ["send 0 3"]);
    assert_eq!(bench.exit(again, |_| false), ["start 0"]); // it had not even arrived
    let again = bench.core.workers.keys()[0];
    assert_eq!(bench.does(|core, now, actions| core.ready(again, now, actions)), ["send 0 3"]);

    let (mut bench, w) = Bench::ready(1);
    (0..3).for_each(|_| drop(bench.task(Mode::Async)));
    assert_eq!(bench.exit(w[0], |id| *id < 2), ["lost 0", "lost 1", "start 0"]);
}

#[test]
fn rule_8_a_sync_task_is_stopped_by_a_kill_when_its_turn_has_come() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    let keys: Vec<_> = (1..=3).map(|_| bench.task(Mode::Sync).0).collect();
    assert_eq!(bench.abort(keys[1]), [""; 0]);
    assert_eq!(bench.reply(w[0], &[1]), ["kill 0"]);
    assert_eq!(bench.abort(keys[1]), [""; 0]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]); // it is doomed
    assert_eq!(bench.exit(w[0], |_| true), ["cancelled 2", "start 0"]);
    assert_eq!(bench.core.queued(), 2);
}

#[test]
fn rule_8_the_reply_that_came_first_counts() {
    let (mut bench, w) = Bench::ready(1);
    let (key, _) = bench.task(Mode::Sync);
    assert_eq!(bench.abort(key), ["kill 0"]);
    assert_eq!(bench.reply(w[0], &[0]), [""; 0]);
    assert_eq!(bench.exit(w[0], |_| true), ["start 0"]);
}

#[test]
fn rule_8_each_async_task_has_the_whole_grace() {
    let (mut bench, w) = Bench::ready(1);
    let keys: Vec<_> = (0..3).map(|_| bench.task(Mode::Async).0).collect();
    assert_eq!(bench.abort(keys[0]), ["cancel 0 0"]);
    bench.pass(ABORT_GRACE / 2);
    assert_eq!(bench.abort(keys[1]), ["cancel 0 1"]);
    bench.reply(w[0], &[0]);
    bench.pass(ABORT_GRACE / 2);
    assert_eq!(bench.tick(), [""; 0]);
    assert_eq!(bench.core.next_deadline(), Some(bench.now + ABORT_GRACE / 2));
    bench.pass(ABORT_GRACE / 2);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.exit(w[0], |_| true), ["cancelled 1", "lost 2", "start 0"]);
}

#[test]
fn rule_9_what_is_queued_fails_with_the_last_worker() {
    let mut bench = Bench::new(2);
    bench.task(Mode::Sync);
    bench.task(Mode::Sync);
    let w = bench.core.workers.keys();
    assert_eq!(bench.fail(w[0]), [""; 0]);
    assert_eq!(bench.fail(w[1]), ["start failed 0", "start failed 1"]);
    assert_eq!(bench.submit(Mode::Sync, false).0, None);
    bench.pass(BACKOFF_MIN);
    assert_eq!(bench.task(Mode::Sync).1, ["start 1"]);
}

#[test]
fn a_start_that_takes_too_long_is_given_up() {
    let mut bench = Bench::new(1);
    bench.task(Mode::Sync);
    let w = bench.core.workers.keys();
    assert_eq!(bench.core.next_deadline(), Some(bench.now + Duration::from_secs(30)));
    bench.core.hello(w[0]);
    assert_eq!(bench.core.next_deadline(), Some(bench.now + Duration::from_secs(60)));
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.tick(), ["time out 0"]);
    assert_eq!(bench.does(|core, now, actions| core.ready(w[0], now, actions)), [""; 0]);
    assert_eq!(bench.fail(w[0]), ["start failed 0"]);
}

#[test]
fn a_drained_pool_keeps_what_it_may_still_need() {
    let (mut bench, w) = Bench::ready(1);
    bench.core.rules.workers = 2;
    bench.teach(w[0], MS / 100);
    bench.task(Mode::Sync);
    assert_eq!(bench.task(Mode::Sync).1, ["start 1"]);
    let second = bench.core.workers.keys()[1];
    assert_eq!(bench.does(|core, now, actions| core.drain(now, actions)), [""; 0]);
    assert_eq!(bench.exit(w[0], |_| true), ["lost 1"]);
    assert_eq!(bench.does(|core, now, actions| core.ready(second, now, actions)), ["send 1 2"]);
    assert_eq!(bench.reply(second, &[2]), ["retire 1"]);
    bench.pass(RETIRE_GRACE);
    assert_eq!(bench.core.next_deadline(), Some(bench.now)); // it may be stopped, and never end
    assert_eq!(bench.tick(), ["kill 1"]);
    assert_eq!(bench.exit(second, |_| true), ["ended"]);
}

#[test]
fn a_kill_settles_everything_at_once() {
    let mut bench = Bench::new(2);
    let (key, _) = bench.task(Mode::Sync);
    bench.task(Mode::Sync);
    let w = bench.core.workers.keys();
    bench.does(|core, now, actions| core.ready(w[0], now, actions));
    assert_eq!(bench.does(|core, now, actions| core.kill(now, actions)), ["kill 0", "kill 1", "closed 0", "closed 1"]);
    assert_eq!(bench.abort(key), [""; 0]);
    assert_eq!(bench.submit(Mode::Sync, false), (None, vec![]));
    assert_eq!(bench.exit(w[0], |_| true), [""; 0]);
    assert_eq!(bench.fail(w[1]), ["ended"]);
    assert_eq!(bench.does(|core, now, actions| core.kill(now, actions)), [""; 0]);
}

/// Each step looks at no more than what it changes, so a hundred thousand are done in no time; and
/// the queue does not keep what has gone.
#[test]
fn a_hundred_thousand_are_aborted_one_by_one() {
    for backwards in [false, true] {
        let (mut bench, _) = Bench::ready(200);
        let mut keys: Vec<_> = (0..100_200).map(|_| bench.task(Mode::Sync).0).skip(200).collect();
        if backwards {
            keys.reverse();
        }
        for key in keys {
            assert_eq!(bench.abort(key).len(), 1);
            assert!(bench.core.queue.len() <= 2 * bench.core.queued() + 32);
        }
        assert_eq!(bench.core.queued(), 0);
    }
}
