//! Drains of pools in which everything is on at once: runs, options, workers that stand still, that
//! are killed, recycled, replaced, too few, too many. From the drain on nothing happens but what
//! the pool does, and what is under way: it must come to its end.
//!
//! `core_sim.rs` and its like hold each rule against books; here there are none but the one of who
//! was told, so that nothing has to be left out. Time passes as the engine lets it pass: `tick`
//! comes when the deadline says that was known, and that is looked at when the engine would.

use super::runs::Parcel;
use super::simulation::{Rng, TestMemory};
use super::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};

/// More than any limit, and all of them one after another.
const LONG_ENOUGH: Duration = Duration::from_secs(200);
/// A pool that drains starts no more than this, or than there are open tasks and items: each may
/// need a worker of its own, where a worker has one task (`max_tasks`).
const STARTS_MOST: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Step,
    Drain,
    Started(WorkerKey, bool),
    Ready(WorkerKey),
    GoOn(WorkerKey),
    Work(WorkerKey),
    Finish(WorkerKey, u64),
    Deliver(WorkerKey),
    Exit(WorkerKey),
}

/// What a task does, and in how many of its tries.
#[derive(Clone, Copy, Debug)]
enum What {
    Done,
    Panics(u8),
    Dies(u8),
    Hangs,
}

#[derive(Debug, Default)]
struct Process {
    ready: bool,
    frames: VecDeque<(Claim, u32, bool, Mode, u8)>,
    /// What runs: its claim, how many items, which one, and which try.
    at: Vec<(Claim, u32, u32, Mode, u8)>,
    replies: Vec<(u64, Answer)>,
    still: bool,
    retired: bool,
    exits: bool,
}

struct World {
    rng: Rng,
    core: Core<Parcel, TestMemory>,
    beginning: Instant,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    serial: u64,
    deadline: Option<Instant>,
    whats: BTreeMap<u64, (What, Duration)>,
    next_id: u64,
    steps: u64,
    service: u64,
    open: HashSet<u64>,
    keys: Vec<TaskKey>,
    processes: BTreeMap<WorkerKey, Process>,
    actions: Vec<Action<Parcel>>,
    starts: usize,
    starts_most: usize,
    drained: Option<Instant>,
    ended: bool,
    /// It stands still from the drain on, and for ever, with nothing begun.
    rooted: Option<WorkerKey>,
    still: u64,
    kills: u64,
    fails: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let now = Instant::now();
        let max = 1 + rng.below(4) as usize;
        let some = |rng: &mut Rng, percent: u64, below: u64| {
            rng.chance(percent).then(|| 1 + rng.below(below))
        };
        let policy = Policy {
            min: if rng.chance(50) { max } else { rng.below(max as u64 + 1) as usize },
            idle_limit: some(&mut rng, 40, 35).map(Duration::from_millis),
            spares: [0, 0, 0, 1][rng.below(4) as usize],
            max_tasks: some(&mut rng, 35, 20),
            lifetime: some(&mut rng, 25, 200).map(Duration::from_millis),
            restarts: some(&mut rng, 20, 6).map(|most| most as u32),
            ..Policy::default()
        };
        let rules = Rules {
            workers: max,
            concurrency: 1 + rng.below(8) as usize,
            hello_limit: Duration::from_secs(10),
            start_limit: None,
            low_latency: false,
            policy,
        };
        let mut world = Self {
            core: Core::new(rules, Clock { moment: now, nanos: 0 }),
            steps: 10 + rng.below(150),
            service: [20, 2_000, 15_000, 150_000][rng.below(4) as usize],
            still: [0, 3, 10][rng.below(3) as usize],
            kills: [0, 3, 10][rng.below(3) as usize],
            fails: [0, 0, 20, 60][rng.below(4) as usize],
            rng,
            beginning: now,
            now,
            events: BinaryHeap::new(),
            serial: 0,
            deadline: None,
            whats: BTreeMap::new(),
            next_id: 1,
            open: HashSet::new(),
            keys: Vec::new(),
            processes: BTreeMap::new(),
            actions: Vec::new(),
            starts: 0,
            starts_most: STARTS_MOST,
            drained: None,
            ended: false,
            rooted: None,
        };
        world.after(Duration::ZERO, Event::Step);
        world
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((self.now + delay, self.serial, event)));
    }

    fn micros(&mut self, below: u64) -> Duration {
        Duration::from_nanos(self.rng.below(below * 1000) + 1)
    }

    /// Something is entered into the rules, and what they say is done; `timed` if the engine has
    /// the next deadline worked out in any case.
    fn enter<R>(
        &mut self,
        mut timed: bool,
        news: impl FnOnce(&mut Core<Parcel, TestMemory>, Instant, &mut Vec<Action<Parcel>>) -> R,
    ) -> R {
        let mut actions = std::mem::take(&mut self.actions);
        let result = news(&mut self.core, self.now, &mut actions);
        for action in actions.drain(..) {
            timed |= !matches!(action, Action::Send(..));
            match action {
                Action::Start(key) => {
                    self.starts += usize::from(self.drained.is_some());
                    self.processes.insert(key, Process::default());
                    let delay = self.micros(10_000);
                    let fails = self.rng.chance(self.fails);
                    self.after(delay, Event::Started(key, fails));
                }
                Action::Send(key, task, slot, attempt) => {
                    let Some(task) = self.core.tasks.get(task) else { continue };
                    let (claim, items) = (
                        Claim { slot, id: task.id },
                        task.cargo.run.as_ref().map_or(1, Run::items),
                    );
                    let frame = (claim, items, task.cargo.run.is_some(), task.mode, attempt);
                    self.processes.get_mut(&key).expect("it is there").frames.push_back(frame);
                    let most = if self.rng.chance(80) { 10 } else { 400 };
                    let delay = self.micros(most);
                    self.after(delay, Event::Work(key));
                }
                Action::Kill(key) | Action::TimeOut(key) => {
                    let delay = self.micros(2_000);
                    self.after(delay, Event::Exit(key));
                }
                Action::Retire(key) => {
                    self.processes.get_mut(&key).expect("it is there").retired = true;
                    self.after(Duration::from_micros(50), Event::Work(key));
                }
                Action::Cancel(key, task) => {
                    if let Some(id) = self.core.id_of(task) {
                        let delay = self.micros(300);
                        self.after(delay, Event::Finish(key, id));
                    }
                }
                Action::Settle(Parcel { id, run }, _) => {
                    for item in run.unwrap_or_else(|| Run::new(1)).unanswered() {
                        assert!(
                            self.open.remove(&(id + u64::from(item))),
                            "{id}.{item} is told twice"
                        );
                    }
                }
                Action::Ended => self.ended = true,
                Action::Ask(..) | Action::Note(..) => {}
                Action::Weigh(_) => unreachable!(),
            }
        }
        self.actions = actions;
        if self.core.deadline_moved() | timed {
            self.deadline = self.core.next_deadline();
        }
        result
    }

    fn submit(&mut self) {
        let id = self.next_id;
        let items = if self.rng.chance(25) { 1 + self.rng.below(20) as u32 } else { 1 };
        let run = (items > 1).then(|| Run::new(items));
        let mode = if run.is_none() && self.rng.chance(50) { Mode::Async } else { Mode::Sync };
        self.next_id += u64::from(items);
        for item in id..id + u64::from(items) {
            let what = match self.rng.below(40) {
                _ if items > 1 => What::Done,
                0..3 => What::Panics(1 + self.rng.below(3) as u8),
                3..6 => What::Dies(1 + self.rng.below(3) as u8),
                6..8 => What::Hangs,
                _ => What::Done,
            };
            let time = match self.rng.chance(50) {
                true => Duration::ZERO,
                false => self.micros(self.service),
            };
            self.whats.insert(item, (what, time));
            self.open.insert(item);
        }
        let hangs = matches!(self.whats[&id].0, What::Hangs);
        let options = (items == 1).then(|| {
            let retry = Retry {
                most: if self.rng.chance(33) { self.rng.below(4) as u32 } else { 0 },
                deaths: true,
                timeouts: true,
                panics: self.rng.chance(50),
                partial: false,
                starts: self.rng.chance(50),
                wait_min: if self.rng.chance(50) { Duration::ZERO } else { self.micros(5_000) },
                wait_max: Duration::from_millis(10),
            };
            Arc::new(Options {
                timeout: (self.rng.chance(8) || hangs && self.rng.chance(70))
                    .then(|| Duration::from_millis(2) + self.micros(40_000)),
                deadline: self.rng.chance(5).then(|| self.micros(100_000)),
                grace: (mode == Mode::Async || self.rng.chance(20))
                    .then(|| Duration::from_millis(20)),
                isolated: self.rng.chance(10),
                idempotent: self.rng.chance(25),
                retry,
            })
        });
        let large = self.rng.chance(5) && items == 1;
        let call = Call { cargo: Parcel { id, run }, id, mode, large, options };
        match self.enter(false, |core, now, actions| core.submit(call, now, actions)) {
            Ok(key) => self.keys.push(key),
            Err(_) => (id..id + u64::from(items)).for_each(|id| assert!(self.open.remove(&id))),
        }
    }

    fn some_worker(&mut self) -> Option<WorkerKey> {
        let count = self.processes.len() as u64;
        self.processes.keys().nth(self.rng.below(count) as usize).copied()
    }

    /// Somebody does something.
    fn step(&mut self) {
        match self.rng.below(100) {
            0..60 => (0..=self.rng.below(8)).for_each(|_| self.submit()),
            60..66 if !self.keys.is_empty() => {
                let key = self.keys[self.rng.below(self.keys.len() as u64) as usize];
                self.enter(false, |core, now, actions| core.abort(key, now, actions));
            }
            66..70 => {
                let from = self.rng.below(self.next_id);
                self.enter(false, |core, now, actions| {
                    core.abort_where(|cargo| cargo.run.is_some() && cargo.id >= from, now, actions)
                });
            }
            70 => {
                self.enter(false, |core, now, actions| core.abort_unbegun(now, actions));
            }
            71 => {
                let max = 1 + self.rng.below(4) as usize;
                self.enter(true, |core, now, actions| core.resize(max, max, now, actions));
            }
            72 => {
                self.enter(true, |core, now, actions| core.recycle(now, actions));
            }
            73 => self.enter(false, |core, now, actions| core.start_all(now, actions)),
            _ => {}
        }
        if self.rng.chance(self.kills)
            && let Some(key) = self.some_worker()
        {
            self.after(Duration::ZERO, Event::Exit(key));
        }
        if self.rng.chance(self.still)
            && let Some(key) = self.some_worker()
            && let Some(process) = self.processes.get_mut(&key)
            && !process.still
        {
            process.still = true;
            let long = [30_000, 400_000, 3_000_000][self.rng.below(3) as usize];
            let delay = self.micros(long);
            self.after(delay, Event::GoOn(key));
        }
        self.steps -= 1;
        let pause = if self.rng.chance(70) { self.micros(20) } else { self.micros(20_000) };
        self.after(pause, if self.steps == 0 { Event::Drain } else { Event::Step });
    }

    /// One that has begun nothing stands still for good, where there can be another in its place.
    /// (What is large is not taken from it.)
    fn root(&mut self) {
        let is_large = |key| self.core.tasks.get(key).is_some_and(|task| task.large);
        if self.core.tasks.keys().into_iter().any(is_large)
            || self.core.workers_max() < 2
            || self.core.rules.policy.max_tasks.is_some()
            || !self.rng.chance(50)
        {
            return;
        }
        let stands = |process: &Process| {
            process.ready && !process.exits && process.at.is_empty() && process.replies.is_empty()
        };
        self.rooted =
            self.processes.iter().find(|(_, process)| stands(process)).map(|(key, _)| *key);
        if let Some(process) = self.rooted.and_then(|key| self.processes.get_mut(&key)) {
            process.still = true;
        }
    }

    /// A process does what it can.
    fn work(&mut self, key: WorkerKey) {
        while let Some(process) = self
            .processes
            .get_mut(&key)
            .filter(|process| process.ready && !process.still && !process.exits)
        {
            let Some(memory) = self.core.workers.get(key).and_then(|worker| worker.memory.as_ref())
            else {
                return;
            };
            let Some((claim, items, is_run, mode, attempt)) = process.frames.front().copied()
            else {
                if process.retired && process.at.is_empty() {
                    process.exits = true;
                    self.after(Duration::from_micros(100), Event::Exit(key));
                }
                return;
            };
            if process.at.iter().any(|(.., other, _)| mode == Mode::Sync || *other == Mode::Sync) {
                return;
            }
            process.frames.pop_front();
            match is_run {
                true => memory.claims().set_up(claim, items),
                false => {
                    memory.claims().note_start(claim, (self.now - self.beginning).as_nanos() as u64)
                }
            }
            if memory.claims().begin(claim) {
                process.at.push((claim, items, 0, mode, attempt));
                self.begin(key, claim.id, attempt);
            }
        }
    }

    fn begin(&mut self, key: WorkerKey, id: u64, attempt: u8) {
        let (what, time) = self.whats[&id];
        match what {
            What::Hangs => {}
            What::Dies(tries) if attempt <= tries => self.after(time, Event::Exit(key)),
            _ => self.after(time, Event::Finish(key, id)),
        }
    }

    fn finish(&mut self, key: WorkerKey, id: u64) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let Some(at) =
            process.at.iter().position(|(claim, _, item, ..)| claim.id + u64::from(*item) == id)
        else {
            return;
        };
        if process.still {
            return self.after(Duration::from_millis(1), Event::Finish(key, id));
        }
        let (claim, items, item, mode, attempt) = process.at.swap_remove(at);
        let answer = match self.whats[&id].0 {
            What::Panics(tries) if attempt <= tries => Answer::Panicked,
            What::Hangs => Answer::Dropped,
            _ => Answer::Final,
        };
        process.replies.push((id, answer));
        let Some(memory) = self.core.workers.get(key).and_then(|worker| worker.memory.as_ref())
        else {
            return;
        };
        if item + 1 < items && memory.claims().next(claim, item + 1) {
            process.at.push((claim, items, item + 1, mode, attempt));
            self.begin(key, id + 1, attempt);
        } else {
            memory.claims().finish(claim);
        }
        let most = if self.rng.chance(70) { 5 } else { 3_000 };
        let delay = self.micros(most);
        self.after(delay, Event::Deliver(key));
        self.work(key);
    }

    fn deliver(&mut self, key: WorkerKey) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let replies = std::mem::take(&mut process.replies);
        if replies.is_empty() {
            return;
        }
        let told: Vec<_> = replies.iter().map(|(id, _)| *id).collect();
        let ended = self.enter(false, |core, now, actions| {
            let mut ended = Vec::new();
            for (id, answer) in &replies {
                match core.replied(key, *id, *answer, now).expect("it has that task") {
                    Replied::Again(..) => {}
                    Replied::Ended(..) | Replied::Item(_) => ended.push(*id),
                }
            }
            core.refill(key, replies.len() as u32, now, actions);
            ended
        });
        for id in ended {
            assert!(told.contains(&id) && self.open.remove(&id), "{id} is told twice");
        }
    }

    fn exit(&mut self, key: WorkerKey) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        process.exits = true;
        let ready = process.ready;
        self.enter(false, |core, _, _| core.ending(key));
        self.deliver(key);
        self.processes.remove(&key);
        if ready {
            let loss =
                Arc::new(Loss { pid: 1, status: None, note: None, bad_frame: None, stderr: None });
            self.enter(true, |core, now, actions| core.exited(key, &loss, now, actions));
        } else {
            let cause = Error::spawn("simulating", std::io::Error::other("no"));
            self.enter(true, |core, now, actions| core.start_failed(key, cause, now, actions));
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Step => self.step(),
            Event::Drain => {
                let hang: HashSet<u64> = self
                    .whats
                    .iter()
                    .filter(|(_, (what, _))| matches!(what, What::Hangs))
                    .map(|(id, _)| *id)
                    .collect();
                self.enter(false, |core, now, actions| {
                    core.abort_where(|cargo| hang.contains(&cargo.id), now, actions)
                });
                self.drained = Some(self.now);
                self.starts_most = STARTS_MOST.max(self.open.len());
                self.root();
                self.enter(false, |core, now, actions| core.drain(now, actions));
            }
            Event::Started(key, true) => self.exit(key),
            Event::Started(key, false) => {
                self.enter(true, |core, _, _| core.hello(key));
                let delay = self.micros(10_000);
                self.after(delay, Event::Ready(key));
            }
            Event::Ready(key) => {
                let Some(process) = self.processes.get_mut(&key) else { return };
                if process.still {
                    return self.after(Duration::from_millis(1), event);
                }
                process.ready = true;
                self.enter(true, |core, now, actions| {
                    core.ready(key, Some(TestMemory::new(2048)), now, actions)
                });
            }
            Event::GoOn(key) if self.rooted == Some(key) => {}
            Event::GoOn(key) => {
                if let Some(process) = self.processes.get_mut(&key) {
                    process.still = false;
                }
                self.work(key);
            }
            Event::Work(key) => self.work(key),
            Event::Finish(key, id) => self.finish(key, id),
            Event::Deliver(key) => self.deliver(key),
            Event::Exit(key) => self.exit(key),
        }
    }

    fn run(&mut self) -> Result<(), String> {
        let mut count = 0;
        while !self.ended {
            count += 1;
            if count > 1_000_000 {
                return Err("it goes on for ever".into());
            }
            let next = self.events.peek().map(|Reverse((at, ..))| *at);
            match (next, self.deadline) {
                (None, None) => return Err("nothing happens any more".into()),
                (next, Some(deadline)) if next.is_none_or(|at| deadline <= at) => {
                    self.now = self.now.max(deadline);
                    for key in self.core.overdue(None, self.now) {
                        self.deliver(key);
                    }
                    self.enter(true, |core, now, actions| core.tick(now, actions));
                }
                _ => {
                    let Reverse((at, _, event)) = self.events.pop().expect("there is one");
                    self.now = at;
                    self.event(event);
                }
            }
            if self.starts > self.starts_most
                || self.drained.is_some_and(|at| at + LONG_ENOUGH < self.now)
            {
                return Err(format!("no end, after {} starts", self.starts));
            }
        }
        match self.open.len() {
            0 => Ok(()),
            open => Err(format!("{open} were told nothing")),
        }
    }
}

#[test]
fn a_drain_ends_whatever_is_on() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("PROCPOOL_SEED").unwrap_or(0);
    let default = if number("PROCPOOL_SEED").is_some() { 1 } else { 100 };
    for seed in first..first + number("PROCPOOL_ROUNDS").unwrap_or(default) {
        let mut world = World::new(seed);
        if let Err(wrong) = world.run() {
            let workers: Vec<_> = world.core.workers.iter().collect();
            eprintln!(
                "LISTEN {:?} next {:?} known {:?} now {:?}",
                world.core.listen_at,
                world.core.next_deadline(),
                world.deadline,
                world.now
            );
            panic!(
                "PROCPOOL_SEED={seed}: {wrong}: {:?}\n{workers:#?}\n{:#?}",
                world.core.census(),
                world.core.staff
            );
        }
    }
}
