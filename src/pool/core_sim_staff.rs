//! The rules of the staff against a made-up world: workers come, grow, age, die early and late,
//! hang as they leave and when they are killed, and their number is changed all the time.
//!
//! As in `core_sim.rs`, whose tools it uses, the world does what the actions say, as late as it
//! likes, and keeps books of its own. That one knows every rule of tasks and one number of workers;
//! this one knows every rule of workers, and of tasks only that each is begun once at most and
//! settled exactly once, by whom nobody has sent away.

use super::*;

/// How long the world goes on when nothing more is asked of the pool: past every limit but those
/// that come again for ever.
const SETTLING: Duration = Duration::from_secs(40);

#[derive(Clone, Debug)]
struct StaffPlan {
    rules: Rules,
    tasks: u64,
    pace: Duration,
    burst: u64,
    service: Duration,
    async_percent: u64,
    /// One in so many: tasks that kill their worker, that are aborted, workers that die before
    /// they have a task, that hang when they leave, that do not end when killed; recyclings
    /// and resizings for each burst.
    crash: u64,
    abort: u64,
    early_death: u64,
    hangs_at_end: u64,
    unkillable: u64,
    recycle: u64,
    resize: u64,
    revive: u64,
    start_fails: u64,
    start_time: Duration,
    /// Bytes that a task leaks, at most.
    leak: u64,
    kill: bool,
    end_early: bool,
    limit: Option<Duration>,
    workers_max: u64,
    thorough: u64,
}

impl StaffPlan {
    fn random(rng: &mut Rng, tasks: u64, workers: u64) -> Self {
        let often = |rng: &mut Rng, n: u64| if rng.chance(50) { 0 } else { 1 + rng.below(n) };
        let max = 1 + rng.below(workers) as usize;
        let limit =
            if rng.chance(30) { Some(Duration::from_millis(20 + rng.below(300))) } else { None };
        let some = |rng: &mut Rng, percent: u64, value: fn(&mut Rng) -> u64| {
            if rng.chance(percent) { Some(value(rng)) } else { None }
        };
        let policy = Policy {
            min: if rng.chance(50) { max } else { rng.below(max as u64 + 1) as usize },
            idle_limit: some(rng, 60, |rng| 1 + rng.below(500)).map(Duration::from_millis),
            spares: [0, 0, 1, 3][rng.below(4) as usize],
            max_tasks: some(rng, 40, |rng| 1 + rng.below(20)),
            lifetime: some(rng, 30, |rng| 1 + rng.below(400)).map(Duration::from_millis),
            resident_max: some(rng, 40, |rng| 1 + rng.below(2_000)),
            exit_limit: Duration::from_millis(1 + rng.below(200)),
            restarts: some(rng, 60, |rng| rng.below(4)).map(|most| most as u32),
            restarts_within: Duration::from_millis(1 + rng.below(5_000)),
            start_attempts: 1 + rng.below(4) as u32,
            ..Policy::default()
        };
        Self {
            rules: Rules {
                workers: max,
                concurrency: 1 + rng.below(6) as usize,
                hello_limit: Duration::from_millis(100 + rng.below(200)),
                start_limit: limit,
                low_latency: false,
                policy,
            },
            tasks: 1 + rng.below(tasks),
            pace: Duration::from_micros([20, 300, 5_000, 100_000][rng.below(4) as usize]),
            burst: [1, 5, 100][rng.below(3) as usize],
            service: Duration::from_micros([10, 300, 5_000, 60_000][rng.below(4) as usize]),
            async_percent: [0, 30, 100][rng.below(3) as usize],
            crash: often(rng, 100),
            abort: often(rng, 15),
            early_death: often(rng, 4),
            hangs_at_end: often(rng, 10),
            unkillable: often(rng, 3),
            recycle: often(rng, 30),
            resize: often(rng, 20),
            revive: often(rng, 4),
            start_fails: [0, 0, 20, 60][rng.below(4) as usize],
            start_time: Duration::from_micros([100, 3_000, 80_000][rng.below(3) as usize]),
            leak: [0, 10, 300][rng.below(3) as usize],
            kill: rng.chance(30),
            end_early: rng.chance(30),
            limit: [None, None, Some(Duration::ZERO), Some(rng.micros(400_000))]
                [rng.below(4) as usize],
            workers_max: workers,
            thorough: 1,
        }
    }
}

/// A broken rule, which the checks must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StaffFlaw {
    /// A spare is given tasks.
    SpareServes,
    /// One that departs is given tasks.
    Departed,
    /// Tasks are not counted.
    Uncounted,
    /// One place too many.
    Place,
    /// One that is due is forgotten.
    NotDue,
    /// It goes before its successor is ready.
    Early,
    /// Nobody is too idle.
    Idlers,
    /// More leave than may.
    TooFew,
    /// Nobody counts the deaths.
    NoBudget,
    /// What does not end is waited for.
    Patience,
    /// A retired worker is not killed.
    NoGrace,
    /// Spares are not kept.
    NoSpares,
    /// A place is not vacated.
    Kept,
}

const STAFF_FLAWS: [StaffFlaw; 13] = [
    StaffFlaw::SpareServes,
    StaffFlaw::Departed,
    StaffFlaw::Uncounted,
    StaffFlaw::Place,
    StaffFlaw::NotDue,
    StaffFlaw::Early,
    StaffFlaw::Idlers,
    StaffFlaw::TooFew,
    StaffFlaw::NoBudget,
    StaffFlaw::Patience,
    StaffFlaw::NoGrace,
    StaffFlaw::NoSpares,
    StaffFlaw::Kept,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Queued,
    With(WorkerKey),
    Settled,
}

#[derive(Debug)]
struct Piece {
    key: Option<TaskKey>,
    mode: Mode,
    at: Where,
    begun: bool,
    done: bool,
    aborted: bool,
    crashes: bool,
    service: Duration,
}

#[derive(Debug, Default)]
struct Proc {
    ready: bool,
    /// Its intake is closed, and when it must have ended.
    retired: Option<Instant>,
    killed: Option<Instant>,
    given_up: bool,
    /// It had lost its place when the event at hand began.
    off: bool,
    wire: VecDeque<Claim>,
    inbox: VecDeque<Claim>,
    running: Vec<u64>,
    replies: Vec<u64>,
    delivery_due: bool,
    hand: Vec<u64>,
    slots: HashMap<u64, u16>,
    /// It was given a task, which may have been taken back.
    used: bool,
    begun: u64,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Submit,
    Abort(u64),
    Recycle,
    Resize,
    Revive,
    StartAll,
    End,
    Kill,
    StartFailed(WorkerKey),
    Hello(WorkerKey),
    Ready(WorkerKey),
    Arrive(WorkerKey),
    Finish(WorkerKey, u64),
    Deliver(WorkerKey),
    Weigh(WorkerKey),
    Exit(WorkerKey),
}

struct Office {
    rng: Rng,
    plan: StaffPlan,
    flaw: Option<StaffFlaw>,
    now: Instant,
    core: Core<u64, TestMemory>,
    actions: Vec<Action<u64>>,
    events: BinaryHeap<Reverse<(Instant, u64, Happening)>>,
    serial: u64,
    count: u64,
    deadline: Option<Instant>,
    pieces: Vec<Piece>,
    open: u64,
    procs: BTreeMap<WorkerKey, Proc>,
    /// Workers there ever might be; the present bounds.
    most: usize,
    min: usize,
    max: usize,
    generation: u64,
    /// Deaths that count.
    deaths: VecDeque<Instant>,
    halted: bool,
    settling: bool,
    draining: bool,
    killed: bool,
    cut_at: Option<Instant>,
    ended: bool,
    /// The event at hand; `None`: time has passed.
    event: Option<Happening>,
    /// The process that has just ended.
    gone: Option<WorkerKey>,
    error: Error,
    seen: BTreeMap<&'static str, u64>,
}

impl Office {
    fn new(seed: u64, tasks: u64, workers: u64, flaw: Option<StaffFlaw>) -> Self {
        let mut rng = Rng(seed);
        let plan = StaffPlan::random(&mut rng, tasks, workers);
        let now = Instant::now();
        let mut office = Self {
            core: Core::new(plan.rules.clone(), Clock { moment: now, nanos: 0 }),
            rng,
            flaw,
            now,
            actions: Vec::new(),
            events: BinaryHeap::new(),
            serial: 0,
            count: 0,
            deadline: None,
            pieces: Vec::new(),
            open: 0,
            procs: BTreeMap::new(),
            most: plan.rules.workers,
            min: plan.rules.policy.min,
            max: plan.rules.workers,
            generation: 0,
            deaths: VecDeque::new(),
            halted: false,
            settling: false,
            draining: false,
            killed: false,
            cut_at: None,
            ended: false,
            event: None,
            gone: None,
            error: Error::spawn("simulating", std::io::Error::other("no")),
            seen: BTreeMap::new(),
            plan,
        };
        office.after(Duration::ZERO, Happening::Submit);
        if office.rng.chance(30) {
            office.after(Duration::from_micros(1), Happening::StartAll);
        }
        if office.plan.end_early {
            let delay = office.rng.micros(300_000);
            office.after(delay, Happening::End);
        }
        office
    }

    fn after(&mut self, delay: Duration, event: Happening) {
        self.serial += 1;
        self.events.push(Reverse((self.now + delay, self.serial, event)));
    }

    fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn is_open(&self) -> bool {
        !self.draining && !self.killed
    }

    // ---- the run

    fn run(&mut self) -> Check {
        self.go_on_until(|office| {
            (office.pieces.len() as u64 == office.plan.tasks && office.open == 0)
                || !office.is_open()
        })?;
        if self.is_open() {
            self.settling = true;
            // Those that grow old are replaced for ever.
            let until = self.now
                + if self.plan.rules.policy.lifetime.is_some() { SETTLING / 40 } else { SETTLING };
            self.go_on_until(|office| office.now >= until)?;
            self.has_settled()?;
            self.after(Duration::ZERO, Happening::End);
        }
        self.go_on_until(|office| office.ended)?;
        ensure!(self.ended, "the end was not told");
        ensure!(self.open == 0, "{} tasks wait for ever in a pool that was closed", self.open);
        let left = self.procs.values().find(|process| !process.given_up);
        ensure!(left.is_none(), "{left:?} is left");
        Ok(())
    }

    fn go_on_until(&mut self, enough: impl Fn(&Self) -> bool) -> Check {
        while !enough(self) {
            let next = self.events.peek().map(|Reverse((at, _, _))| *at);
            self.count += 1;
            ensure!(self.count < 40_000_000, "it goes on for ever");
            match (next, self.deadline) {
                (None, None) => {
                    ensure!(self.settling || self.open == 0, "{} tasks wait for ever", self.open);
                    self.now += SETTLING;
                    return Ok(());
                }
                (next, Some(deadline)) if next.is_none_or(|at| deadline <= at) => {
                    self.now = self.now.max(deadline);
                    let before = self.places();
                    self.event = None;
                    self.core.tick(self.now, &mut self.actions);
                    self.settle_up(true, before)?;
                    ensure!(
                        self.deadline.is_none_or(|next| next > self.now),
                        "the same deadline again, after its tick"
                    );
                    self.overdue()?;
                }
                _ => {
                    let Some(Reverse((at, _, event))) = self.events.pop() else { return Ok(()) };
                    self.now = at;
                    self.falsify();
                    self.event(event)?;
                }
            }
        }
        Ok(())
    }

    /// Nothing has been asked of the pool for long, and no start fails any more.
    fn has_settled(&mut self) -> Check {
        let (there, spares) = (self.core.idle.len(), self.core.staff.spares.len());
        let policy = &self.plan.rules.policy;
        ensure!(
            there + spares == 0 || self.core.staff.starting == 0 || policy.lifetime.is_some(),
            "spares start for ever"
        );
        if policy.lifetime.is_none() && !self.halted && self.plan.early_death == 0 {
            let kept = if there + spares > 0 { policy.spares } else { spares };
            ensure!(spares == kept, "{spares} spares wait, {kept} are to be kept");
            let stands = self.core.stands(self.generation);
            ensure!(!stands, "somebody was not recycled");
            if policy.idle_limit.is_some() {
                ensure!(
                    there <= self.min || self.min == self.max,
                    "{there} idle, though {} are enough",
                    self.min
                );
            }
            self.see("settled");
        }
        Ok(())
    }

    // ---- events

    fn event(&mut self, event: Happening) -> Check {
        let before = self.places();
        let now = self.now;
        self.gone = None;
        self.event = Some(event);
        match event {
            Happening::Submit => return self.submit(),
            Happening::Abort(id) => {
                let piece = &mut self.pieces[id as usize];
                if let Some(key) = piece.key {
                    piece.aborted |= piece.at != Where::Settled;
                    self.core.abort(key, now, &mut self.actions);
                }
            }
            Happening::Recycle => {
                if self.is_open() {
                    self.generation = self.core.recycle(now, &mut self.actions);
                    self.see("recycled by hand");
                }
            }
            Happening::Resize => {
                if self.is_open() {
                    self.max = 1 + self.rng.below(self.plan.workers_max) as usize;
                    self.min = if self.rng.chance(50) {
                        self.max
                    } else {
                        self.rng.below(self.max as u64 + 1) as usize
                    };
                    self.most = self.most.max(self.max);
                    self.core.resize(self.min, self.max, now, &mut self.actions);
                    self.see("resized");
                    return self.settle_up(true, 0); // places may be lost
                }
            }
            Happening::Revive => {
                if self.is_open() {
                    if std::mem::take(&mut self.halted) {
                        self.deaths.clear();
                        self.see("revived");
                    }
                    self.core.revive(now, &mut self.actions);
                }
            }
            Happening::StartAll => self.core.start_all(now, &mut self.actions),
            Happening::End => {
                if self.plan.kill {
                    return self.event(Happening::Kill);
                }
                self.draining = true;
                match self.plan.limit {
                    None => self.core.drain(now, &mut self.actions),
                    Some(limit) => {
                        self.cut_at = Some(now + limit);
                        self.core.drain_by(now + limit, now, &mut self.actions);
                    }
                }
            }
            Happening::Kill => {
                self.killed = true;
                self.core.kill(now, &mut self.actions);
            }
            Happening::StartFailed(key) => {
                if self.procs.remove(&key).is_some() {
                    self.gone = Some(key);
                    self.core.start_failed(key, self.error.clone(), now, &mut self.actions);
                    return self.settle_up(true, before);
                }
                return Ok(());
            }
            Happening::Hello(key) => {
                if self.procs.contains_key(&key) {
                    self.core.hello(key);
                    let delay = self.rng.micros(1 + self.plan.start_time.as_micros() as u64);
                    self.after(delay, Happening::Ready(key));
                    return self.settle_up(true, before);
                }
                return Ok(());
            }
            Happening::Ready(key) => return self.ready(key),
            Happening::Arrive(key) => return self.arrive(key),
            Happening::Finish(key, id) => return self.finish(key, id),
            Happening::Deliver(key) => return self.deliver(key),
            Happening::Weigh(key) => {
                if let Some(process) = self.procs.get(&key) {
                    self.core.weighed(key, process.bytes, now, &mut self.actions);
                }
            }
            Happening::Exit(key) => return self.exit(key),
        }
        self.settle_up(true, before)
    }

    fn submit(&mut self) -> Check {
        let burst = 1 + self.rng.below(self.plan.burst);
        for _ in 0..burst {
            let id = self.pieces.len() as u64;
            if id == self.plan.tasks {
                return Ok(());
            }
            let before = self.places();
            let mode =
                if self.rng.chance(self.plan.async_percent) { Mode::Async } else { Mode::Sync };
            let service = self.rng.micros(2 * self.plan.service.as_micros() as u64);
            let crashes = self.rng.rarely(self.plan.crash);
            let piece = Piece {
                key: None,
                mode,
                at: Where::Queued,
                begun: false,
                done: false,
                aborted: false,
                crashes,
                service,
            };
            self.pieces.push(piece);
            let call =
                Call { cargo: BASE_ID + id, id: BASE_ID + id, mode, large: false, options: None };
            match self.core.submit(call, self.now, &mut self.actions) {
                Ok(key) => {
                    ensure!(self.is_open(), "a closed pool took a task");
                    self.pieces[id as usize].key = Some(key);
                    self.open += 1;
                }
                Err(Refused(_, fate)) => {
                    match fate {
                        Fate::Closed => ensure!(!self.is_open(), "an open pool is closed"),
                        Fate::StartFailed(_) if self.halted => self.see("refused by the budget"),
                        Fate::StartFailed(_) => self.see("refused"),
                        other => return Err(format!("refused with {other:?}")),
                    }
                    self.pieces[id as usize].at = Where::Settled;
                }
            }
            self.settle_up(false, before)?;
            if self.rng.rarely(self.plan.abort) {
                let soon = self.rng.micros(3 * self.plan.service.as_micros() as u64 + 100);
                self.after(soon, Happening::Abort(id));
            }
        }
        for (often, event) in [
            (self.plan.recycle, Happening::Recycle),
            (self.plan.resize, Happening::Resize),
            (self.plan.revive, Happening::Revive),
        ] {
            if self.rng.rarely(often) {
                let soon = self.rng.micros(10_000);
                self.after(soon, event);
            }
        }
        let pause = self.rng.micros(self.plan.pace.as_micros() as u64 * burst);
        self.after(pause, Happening::Submit);
        Ok(())
    }

    fn ready(&mut self, key: WorkerKey) -> Check {
        let before = self.places();
        let Some(process) = self.procs.get_mut(&key) else { return Ok(()) };
        process.ready = true;
        process.bytes = 100;
        self.core.ready(key, Some(TestMemory::new(2048)), self.now, &mut self.actions);
        if self.rng.rarely(self.plan.early_death) && !self.settling {
            let delay = self.rng.micros(20_000);
            self.after(delay, Happening::Exit(key));
        }
        self.settle_up(true, before)
    }

    fn arrive(&mut self, key: WorkerKey) -> Check {
        let Some(process) = self.procs.get_mut(&key) else { return Ok(()) };
        let Some(claim) = process.wire.pop_front() else { return Ok(()) };
        process.inbox.push_back(claim);
        self.begin(key)
    }

    fn begin(&mut self, key: WorkerKey) -> Check {
        while let Some(process) = self.procs.get_mut(&key)
            && let Some(claim) = process.inbox.front().copied()
            && (self.pieces[(claim.id - BASE_ID) as usize].mode == Mode::Async
                || process.running.is_empty())
        {
            process.inbox.pop_front();
            let memory = self.core.workers.get(key).and_then(|worker| worker.memory.as_ref());
            // Killed, and about to end: it begins nothing more, here.
            if process.killed.is_some()
                || !memory.is_some_and(|memory| memory.claims().begin(claim))
            {
                continue;
            }
            let id = claim.id - BASE_ID;
            let piece = &mut self.pieces[id as usize];
            ensure!(!std::mem::replace(&mut piece.begun, true), "{id} runs a second time");
            process.begun += 1;
            let most = self.plan.rules.policy.max_tasks;
            ensure!(
                most.is_none_or(|most| process.begun <= most),
                "{key:?} runs its task number {}",
                process.begun
            );
            process.running.push(id);
            let (service, crashes) = (piece.service, piece.crashes);
            if crashes {
                self.after(service, Happening::Exit(key));
            } else {
                self.after(service, Happening::Finish(key, id));
            }
        }
        Ok(())
    }

    fn finish(&mut self, key: WorkerKey, id: u64) -> Check {
        let Some(process) = self.procs.get_mut(&key) else { return Ok(()) };
        let Some(at) = process.running.iter().position(|running| *running == id) else {
            return Ok(());
        };
        if process.killed.is_some() {
            return Ok(());
        }
        process.running.remove(at);
        process.replies.push(id);
        process.bytes += if self.plan.leak == 0 { 0 } else { 1 + id % self.plan.leak };
        self.pieces[id as usize].done = true;
        if let (Some(slot), Some(memory)) = (
            process.slots.get(&id),
            self.core.workers.get(key).and_then(|worker| worker.memory.as_ref()),
        ) {
            memory.claims().finish(Claim { slot: *slot, id: BASE_ID + id });
        }
        if !std::mem::replace(&mut process.delivery_due, true) {
            let delay = self.rng.micros(500);
            self.after(delay, Happening::Deliver(key));
        }
        self.begin(key)
    }

    fn deliver(&mut self, key: WorkerKey) -> Check {
        let before = self.places();
        let Some(process) = self.procs.get_mut(&key) else { return Ok(()) };
        process.delivery_due = false;
        let replies = std::mem::take(&mut process.replies);
        let given_up = process.given_up;
        let mut count = 0;
        for id in replies {
            let replied = self.core.replied(key, BASE_ID + id, Answer::Final, self.now);
            if given_up {
                ensure!(replied.is_none(), "an answer of one that was given up was taken");
                continue;
            }
            ensure!(
                matches!(replied, Some(Replied::Ended(..))),
                "the answer to {id} was not taken: {replied:?}"
            );
            ensure!(
                self.pieces[id as usize].at == Where::With(key),
                "an answer to {id}, which is {:?}",
                self.pieces[id as usize].at
            );
            self.pieces[id as usize].at = Where::Settled;
            self.open -= 1;
            let Some(process) = self.procs.get_mut(&key) else { return Ok(()) };
            process.hand.retain(|other| *other != id);
            process.slots.remove(&id);
            count += 1;
        }
        if count > 0 && std::mem::take(&mut self.halted) {
            self.deaths.clear();
            self.see("lifted");
        }
        self.core.refill(key, count, self.now, &mut self.actions);
        self.settle_up(false, before)
    }

    fn exit(&mut self, key: WorkerKey) -> Check {
        self.deliver(key)?;
        let Some(process) = self.procs.get(&key) else { return Ok(()) };
        if !process.ready {
            return self.event(Happening::StartFailed(key));
        }
        let before = self.places();
        let Some(process) = self.procs.remove(&key) else { return Ok(()) };
        let by_itself = process.retired.is_none() && process.killed.is_none();
        if by_itself && !process.used && self.is_open() {
            let policy = &self.plan.rules.policy;
            let most = policy.restarts.map_or(10 + 2 * self.max, |most| most as usize);
            self.deaths.push_back(self.now);
            let within = policy.restarts_within;
            let now = self.now;
            self.deaths.retain(|at| now - *at <= within);
            if self.deaths.len() > most
                && !std::mem::replace(&mut self.halted, true)
                && self.rng.chance(70)
            {
                let delay = self.rng.micros(200_000);
                self.after(delay, Happening::Revive);
            }
            self.see("died early");
        }
        for id in &process.hand {
            let piece = &mut self.pieces[*id as usize];
            if !piece.begun && !piece.aborted {
                piece.at = Where::Queued;
            }
        }
        self.gone = Some(key);
        let loss =
            Arc::new(Loss { pid: 1, status: None, note: None, bad_frame: None, stderr: None });
        self.core.exited(key, &loss, self.now, &mut self.actions);
        self.settle_up(true, before)?;
        for id in process.hand {
            let at = self.pieces[id as usize].at;
            ensure!(
                at != Where::With(key),
                "{id} was with a worker that has ended, and nobody says what became of it"
            );
        }
        Ok(())
    }

    // ---- what the core says

    /// Workers that can serve, or did until their last task: what is not to become fewer when one
    /// is replaced.
    fn places(&self) -> usize {
        self.core.workers.iter().filter(|(_, worker)| worker.post.duty == Duty::On).count()
    }

    fn settle_up(&mut self, mut timed: bool, places: usize) -> Check {
        let actions = std::mem::take(&mut self.actions);
        timed |= self.core.deadline_moved();
        self.taken_back();
        let mut excused = usize::from(self.gone.is_some());
        for action in actions {
            timed |= !matches!(action, Action::Send(..));
            match action {
                Action::Retire(key) if self.core.why_ended(key) == Some(ExitReason::Idle) => {
                    excused += 1
                }
                // One that is being killed may give its place to a spare; and is given up some
                // time.
                Action::Kill(_) | Action::TimeOut(_) | Action::Settle(_, Fate::Unkillable(_)) => {
                    excused += self.most
                }
                _ => {}
            }
            self.action(action)?;
        }
        if timed {
            self.deadline = self.core.next_deadline();
        }
        for (key, process) in &mut self.procs {
            let duty = self.core.workers.get(*key).map(|worker| worker.post.duty);
            process.off = matches!(duty, Some(Duty::Off | Duty::GivenUp));
            let given_up = duty == Some(Duty::GivenUp);
            if given_up && !process.given_up {
                ensure!(
                    process.killed.is_some_and(|at| at + staff::KILL_LIMIT <= self.now),
                    "{key:?} is given up too early"
                );
                process.given_up = true;
                process.hand.clear();
                excused += 1;
                *self.seen.entry("given up").or_insert(0) += 1;
            }
        }
        let dying = self.procs.values().filter(|process| process.killed.is_some()).count();
        let after = self.places();
        ensure!(
            !self.is_open() || after + excused + dying >= places,
            "{places} places before, {after} after, {excused} excused, in {:?}",
            self.event
        );
        self.gone = None;
        if self.rng.rarely(self.plan.thorough) {
            self.look_over()?;
        }
        Ok(())
    }

    /// What the pool has taken back, as the words say.
    fn taken_back(&mut self) {
        for (key, process) in &mut self.procs {
            let Some(memory) =
                self.core.workers.get(*key).and_then(|worker| worker.memory.as_ref())
            else {
                continue;
            };
            let (pieces, slots) = (&mut self.pieces, &mut process.slots);
            process.hand.retain(|id| {
                let Some(slot) = slots.get(id) else { return true };
                let progress = memory.claims().look(Claim { slot: *slot, id: BASE_ID + id });
                let piece = &mut pieces[*id as usize];
                let gone =
                    matches!(progress, Progress::Revoked | Progress::Unknown) && !piece.begun;
                if gone {
                    slots.remove(id);
                    if piece.at == Where::With(*key) {
                        piece.at = Where::Queued;
                    }
                }
                !gone
            });
        }
    }

    fn action(&mut self, action: Action<u64>) -> Check {
        ensure!(!self.ended, "{action:?} after the end");
        let now = self.now;
        match action {
            Action::Start(key) => self.do_start(key),
            Action::Send(key, task, slot, _) => self.do_send(key, task, slot),
            Action::Cancel(key, task) => {
                if let Some(id) = self.core.cargo_mut(task).map(|id| *id - BASE_ID) {
                    let delay = self.rng.micros(300);
                    self.after(delay, Happening::Finish(key, id));
                }
                Ok(())
            }
            Action::Retire(key) => self.do_retire(key),
            Action::Kill(key) => {
                let process = self.procs.get(&key).ok_or("nobody is killed")?;
                let stopped = process.hand.iter().any(|id| self.pieces[*id as usize].aborted);
                let overdue = process.retired.is_some_and(|by| by <= now);
                let unwanted = !process.ready && !self.is_open();
                let cut = self.cut_at.is_some_and(|at| at <= now);
                ensure!(
                    stopped || overdue || unwanted || cut || self.killed,
                    "{process:?} is killed for nothing"
                );
                self.die(key)
            }
            Action::TimeOut(key) => {
                let is_starting = self.procs.get(&key).is_some_and(|process| !process.ready);
                ensure!(is_starting, "one that is ready is too slow to start");
                self.die(key)
            }
            Action::Weigh(key) => {
                let delay = self.rng.micros(100);
                self.after(delay, Happening::Weigh(key));
                Ok(())
            }
            Action::Ask(..) => Err("a task without a grace is asked".into()),
            Action::Note(task, fate) => Err(format!("{task:?} is tried again: {fate:?}")),
            Action::Settle(cargo, fate) => self.do_settle(cargo - BASE_ID, &fate),
            Action::Ended => {
                ensure!(!self.is_open(), "an open pool has ended");
                ensure!(self.open == 0, "ended with {} tasks", self.open);
                let left =
                    self.core.workers.iter().find(|(_, worker)| worker.post.duty != Duty::GivenUp);
                ensure!(left.is_none(), "ended with a worker");
                self.ended = true;
                Ok(())
            }
        }
    }

    fn do_start(&mut self, key: WorkerKey) -> Check {
        ensure!(!self.killed, "a start after the kill");
        ensure!(!self.halted, "a start in a pool that has used up its restarts");
        ensure!(self.procs.insert(key, Proc::default()).is_none(), "{key:?} is started twice");
        let delay = self.rng.micros(1 + self.plan.start_time.as_micros() as u64);
        let fails = self.rng.chance(self.plan.start_fails) && !self.settling;
        match self.rng.below(3) {
            0 if fails => {} // it never says hello
            1 if fails => self.after(delay, Happening::Exit(key)),
            _ if fails => self.after(delay, Happening::StartFailed(key)),
            _ => self.after(delay, Happening::Hello(key)),
        }
        Ok(())
    }

    fn do_send(&mut self, key: WorkerKey, task: TaskKey, slot: u16) -> Check {
        self.taken_back();
        let Some(id) = self.core.cargo_mut(task).map(|id| *id - BASE_ID) else { return Ok(()) };
        ensure!(
            self.pieces[id as usize].at == Where::Queued,
            "{id} is sent, and is {:?}",
            self.pieces[id as usize].at
        );
        let worker = self.core.workers.get(key).ok_or("sent to nobody")?;
        // It may have been taken back again, and its worker have lost its place, in this very
        // event.
        let taken_back = !worker.in_flight.iter().any(|flight| flight.task == task);
        let off = self.procs.get(&key).is_some_and(|process| process.off);
        ensure!(
            !off && worker.post.duty != Duty::Spare,
            "{id} is sent to one without a place: {:?}",
            worker.post.duty
        );
        let process = self.procs.get_mut(&key).ok_or("sent to nobody")?;
        ensure!(
            process.ready && process.retired.is_none() && process.killed.is_none(),
            "{id} is sent to {process:?}"
        );
        process.used = true;
        if taken_back {
            return Ok(());
        }
        process.hand.push(id);
        process.slots.insert(id, slot);
        process.wire.push_back(Claim { slot, id: BASE_ID + id });
        self.pieces[id as usize].at = Where::With(key);
        let lag = self.rng.micros(200);
        self.after(lag, Happening::Arrive(key));
        Ok(())
    }

    fn do_retire(&mut self, key: WorkerKey) -> Check {
        let why = self.core.why_ended(key);
        let limit = self.plan.rules.policy.exit_limit;
        let limit = self.cut_at.map_or(limit, |until| {
            limit.min(until.saturating_duration_since(self.now).max(ABORT_GRACE))
        });
        let by = self.now + limit;
        let hangs = self.rng.rarely(self.plan.hangs_at_end);
        let process = self.procs.get_mut(&key).ok_or("nobody is retired")?;
        ensure!(process.hand.is_empty(), "{key:?} is retired at work: {process:?}");
        ensure!(
            process.ready && process.retired.is_none() && process.killed.is_none(),
            "{process:?} is retired"
        );
        process.retired = Some(by);
        let there =
            self.core.workers.iter().filter(|(_, worker)| worker.state == State::Ready).count();
        match why {
            Some(ExitReason::Idle) => {
                self.see("Idle");
                ensure!(there >= self.min, "{there} are there, at least {} are to be", self.min);
            }
            Some(ExitReason::TasksServed) => self.see("TasksServed"),
            Some(ExitReason::TooOld) => self.see("TooOld"),
            Some(ExitReason::MemoryMark) => self.see("MemoryMark"),
            Some(ExitReason::Recycled) => self.see("Recycled"),
            Some(ExitReason::Resized) => self.see("Resized"),
            Some(ExitReason::Surplus) => self.see("Surplus"),
            Some(ExitReason::Closed) => ensure!(!self.is_open(), "closed in an open pool"),
            other => return Err(format!("retired because of {other:?}")),
        }
        if !hangs {
            let delay = self.rng.micros(3_000);
            self.after(delay, Happening::Exit(key));
        }
        Ok(())
    }

    fn die(&mut self, key: WorkerKey) -> Check {
        let unkillable = self.rng.rarely(self.plan.unkillable);
        let process = self.procs.get_mut(&key).ok_or("nobody dies")?;
        ensure!(process.killed.is_none(), "{key:?} is killed twice");
        process.killed = Some(self.now);
        // It may hang for long, or for ever.
        let delay = match self.rng.below(3) {
            0 if unkillable => return Ok(()),
            _ if unkillable => Duration::from_millis(4_000 + self.rng.below(10_000)),
            _ => self.rng.micros(1_000),
        };
        self.after(delay, Happening::Exit(key));
        Ok(())
    }

    fn do_settle(&mut self, id: u64, fate: &Fate) -> Check {
        let piece = &mut self.pieces[id as usize];
        ensure!(piece.at != Where::Settled, "{id} is settled again, as {fate:?}");
        let with = if let Where::With(key) = piece.at { Some(key) } else { None };
        let dead = with.is_some() && with == self.gone;
        let truth = match fate {
            Fate::Cancelled => piece.aborted && (with.is_none() || dead),
            Fate::TimedOut(_) => false,
            Fate::Closed => {
                self.killed
                    || (self.cut_at.is_some_and(|at| at <= self.now) && (with.is_none() || dead))
            }
            Fate::StartFailed(_) => with.is_none() && !piece.begun,
            Fate::Lost(_) => {
                dead && (piece.begun || piece.at != Where::Queued)
                    || self.gone.is_some() && !piece.begun
            }
            Fate::Unkillable(key) => with == Some(*key) && piece.begun,
        };
        ensure!(truth, "{id} is settled as {fate:?}: {piece:?}, gone: {:?}", self.gone);
        piece.at = Where::Settled;
        self.open -= 1;
        if let Fate::Unkillable(_) = fate {
            self.see("Unkillable");
        }
        Ok(())
    }

    // ---- looking over the books

    fn look_over(&self) -> Check {
        let core = &self.core;
        ensure!(
            core.workers.len() == self.procs.len(),
            "{} workers, {} kept",
            self.procs.len(),
            core.workers.len()
        );
        ensure!(
            core.tasks.len() as u64 == self.open,
            "{} open, {} kept",
            self.open,
            core.tasks.len()
        );
        let places = self.places();
        ensure!(core.staff.places == places, "{places} places, counted {}", core.staff.places);
        ensure!(places <= self.max, "{places} places, {} allowed", self.max);
        let starting = |duty| {
            let of = move |worker: &Worker<TestMemory>| {
                matches!(worker.state, State::Starting { .. }) && worker.post.duty == duty
            };
            core.workers.iter().filter(|(_, worker)| of(worker)).count()
        };
        ensure!(
            core.starting == starting(Duty::On),
            "{} start, counted {}",
            starting(Duty::On),
            core.starting
        );
        ensure!(
            core.staff.starting == starting(Duty::Spare),
            "{} spares start, counted {}",
            starting(Duty::Spare),
            core.staff.starting
        );
        let mut spares: Vec<_> = core
            .workers
            .iter()
            .filter(|(_, worker)| worker.state == State::Spare)
            .map(|(key, _)| key)
            .collect();
        spares.sort_unstable();
        let mut known = core.staff.spares.clone();
        known.sort_unstable();
        ensure!(spares == known, "spares are {spares:?}, known are {known:?}");
        let bound = self.plan.rules.policy.spares + 2 * self.most;
        ensure!(
            core.staff.spares.len() + core.staff.starting <= bound,
            "{} spares",
            core.staff.spares.len() + core.staff.starting
        );
        ensure!(
            core.halted().is_some() == self.halted,
            "halted: {}, told: {:?}",
            self.halted,
            core.halted()
        );
        let idle = |worker: &Worker<TestMemory>| {
            worker.state == State::Ready && worker.in_flight.is_empty()
        };
        let mut truly: Vec<_> =
            core.workers.iter().filter(|(_, worker)| idle(worker)).map(|(key, _)| key).collect();
        truly.sort_unstable();
        let mut known = core.idle.clone();
        known.sort_unstable();
        ensure!(known == truly, "idle are {truly:?}, known are {known:?}");
        // Nobody waits while a spare could serve.
        let vacant = places < self.max;
        ensure!(
            core.queued() == 0 || core.staff.spares.is_empty() || !vacant || !core.idle.is_empty(),
            "{} wait, a place is vacant and a spare stands by",
            core.queued()
        );
        // Nor does anybody keep a place or a process for nothing.
        let done = core.workers.iter().find(|(_, worker)| {
            worker.state == State::Departing
                && worker.in_flight.is_empty()
                && worker.post.duty != Duty::On
        });
        ensure!(
            done.is_none(),
            "{:?} has nothing to do and does not leave",
            done.map(|(key, _)| key)
        );
        if !self.is_open() && core.queued() == 0 && core.behind == 0 {
            ensure!(core.staff.spares.is_empty(), "spares in a pool that drains");
        }
        Ok(())
    }

    fn overdue(&self) -> Check {
        let late = self.procs.iter().find(|(_, process)| {
            let at_leave =
                process.killed.is_none() && process.retired.is_some_and(|by| by <= self.now);
            at_leave
                || !process.given_up
                    && process.killed.is_some_and(|at| at + staff::KILL_LIMIT <= self.now)
        });
        ensure!(late.is_none(), "overdue: {late:?}");
        Ok(())
    }

    /// Breaks the rule that this run is to break.
    fn falsify(&mut self) {
        let Some(flaw) = self.flaw else { return };
        let now = self.now;
        let core = &mut self.core;
        let keys = core.workers.keys();
        let each = |core: &mut Core<u64, TestMemory>, change: fn(&mut Worker<TestMemory>)| {
            for key in &keys {
                core.workers.get_mut(*key).into_iter().for_each(change);
            }
        };
        match flaw {
            StaffFlaw::SpareServes => {
                if let Some(spare) = core.staff.spares.pop() {
                    core.idle.push(spare);
                    if let Some(worker) = core.workers.get_mut(spare) {
                        worker.state = State::Ready;
                    }
                }
            }
            StaffFlaw::Departed => {
                for key in keys {
                    let Some(worker) = core.workers.get_mut(key) else { continue };
                    if worker.state == State::Departing && worker.post.duty == Duty::Off {
                        worker.state = State::Ready;
                        core.list(key);
                    }
                }
            }
            StaffFlaw::Uncounted => each(core, |worker| {
                worker.post.served = worker.post.served.min(worker.in_flight.len() as u64)
            }),
            StaffFlaw::Place => core.rules.workers = self.max + 1,
            StaffFlaw::NotDue => each(core, |worker| {
                worker.post.generation =
                    if worker.post.due.take().is_some() { 0 } else { worker.post.generation }
            }),
            StaffFlaw::Early => {
                if let Some(key) = keys.into_iter().find(|key| {
                    core.workers.get(*key).is_some_and(|worker| {
                        worker.state == State::Ready && worker.in_flight.is_empty() && worker.used
                    })
                }) {
                    core.blame(key, ExitReason::TooOld);
                    core.retire(key, ExitReason::TooOld, now, &mut self.actions);
                }
            }
            StaffFlaw::Idlers => core.staff.idle_at = None,
            StaffFlaw::TooFew => core.rules.policy.min = 0,
            StaffFlaw::NoBudget => core.staff.deaths.clear(),
            StaffFlaw::Patience => each(core, |worker| {
                if worker.state == State::Doomed {
                    worker.end_by = None;
                }
            }),
            StaffFlaw::NoGrace => each(core, |worker| {
                if worker.state == State::Retiring {
                    worker.end_by = None;
                }
            }),
            StaffFlaw::NoSpares => core.rules.policy.spares = 0,
            StaffFlaw::Kept => core.staff.places = core.staff.places.max(1),
        }
    }
}

// ---- the runs

#[test]
fn whatever_happens_the_staff_is_as_it_is_to_be() {
    rounds(60, |seed| Office::new(seed, 200, 10, None).run());
}

#[test]
fn a_large_staff_is_as_it_is_to_be() {
    rounds(2, |seed| {
        let mut office = Office::new(seed, 5_000, 200, None);
        office.plan.thorough = 100;
        office.run()
    });
}

/// Millions of events, hundreds of workers; for an optimised build.
#[test]
#[ignore = "takes minutes"]
#[expect(clippy::print_stdout, reason = "it is run by hand, and is to say how much came up")]
fn long_run_of_the_staff() {
    let mut events = 0;
    rounds(20_000, |seed| {
        let mut office = Office::new(seed, 500, 16, None);
        let end = office.run();
        events += office.count;
        end
    });
    println!("{events} events in small pools");
    // Slower with each process that does not end, and which is kept in the books.
    rounds(20, |seed| {
        let mut office = Office::new(seed, 150_000, 500, None);
        office.plan.thorough = 2_000;
        let end = office.run();
        println!("seed {seed}: {} events", office.count);
        end
    });
}

#[test]
fn broken_rules_of_the_staff_are_found() {
    for flaw in STAFF_FLAWS {
        let found = (0..2000).find_map(|seed| Office::new(seed, 150, 6, Some(flaw)).run().err());
        assert!(found.is_some(), "{flaw:?} was not found");
    }
}

#[test]
#[ignore = "long: the gate runs it, optimised"]
fn everything_comes_up_with_the_staff() {
    let mut seen = BTreeMap::new();
    for seed in 1_000..1_150 {
        let mut office = Office::new(seed, 150, 10, None);
        assert_eq!(office.run(), Ok(()), "seed {seed}");
        for (what, count) in office.seen {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    for what in [
        "settled",
        "recycled by hand",
        "resized",
        "revived",
        "lifted",
        "refused",
        "died early",
        "given up",
        "Idle",
        "TasksServed",
        "TooOld",
        "MemoryMark",
        "Recycled",
        "Resized",
        "Surplus",
        "Unkillable",
        "refused by the budget",
    ] {
        assert!(seen.get(what).is_some_and(|count| *count > 5), "{what} is rare: {seen:?}");
    }
}
