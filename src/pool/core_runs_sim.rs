//! Runs, by the rules and against a made-up world: workers that do item after item, are slow, are
//! killed and die at any moment; callers that give up; pools that end in every way.
//!
//! As in `core_sim.rs`, the world does what the actions say, as late as it likes; its books hold
//! only what counts: which item has begun, was answered, was told. What is wrong is returned, so
//! that a test can show that it is found ([`Flaw`]).

use super::super::simulation::{Rng, TestMemory};
use super::super::*;
use super::Parcel;
use std::collections::BTreeMap;

/// What may be broken, here and not in the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// A worker goes on with its run without counting.
    Uncounted,
    /// What a dead worker had answered is taken for what it had begun.
    AnswersOnly,
    /// The rest of a run that was cut is forgotten.
    Forgotten,
    /// What a worker has in hand is counted wrong.
    Miscounted,
}

const FLAWS: [Flaw; 4] = [Flaw::Uncounted, Flaw::AnswersOnly, Flaw::Forgotten, Flaw::Miscounted];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Value,
    Cancelled,
    Lost,
    Closed,
}

#[derive(Clone, Copy, Debug, Default)]
struct Fact {
    group: u64,
    begun: bool,
    committed: bool,
    aborted: bool,
    /// It was what its worker was to begin next when that died with nothing begun.
    suspect: bool,
    told: Option<Told>,
}

/// A worker's process: what was sent to it, what it is at, and what it has committed that nobody
/// has read.
#[derive(Debug, Default)]
struct Process {
    frames: VecDeque<(Claim, u32, bool)>,
    at: Option<(Claim, u32, u32)>,
    replies: Vec<u64>,
    killed: bool,
    retired: bool,
}

struct World {
    rng: Rng,
    flaw: Option<Flaw>,
    core: Core<Parcel, TestMemory>,
    now: Instant,
    items: Vec<Fact>,
    /// What each run was sent as: its number, and how many items.
    sent: BTreeMap<u64, u32>,
    groups: u64,
    /// And whether it is killed before it is ready.
    starting: Vec<(WorkerKey, bool)>,
    processes: Vec<(WorkerKey, Process)>,
    actions: Vec<Action<Parcel>>,
    closing: bool,
    ended: bool,
    loss: Arc<Loss>,
    wrong: Option<String>,
    cuts: usize,
}

impl World {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = Rng(seed);
        let now = Instant::now();
        let long = Duration::from_secs(3600);
        let policy = Policy { restarts: Some(u32::MAX), kill_limit: long, ..Policy::default() };
        let rules = Rules {
            workers: 1 + rng.below(3) as usize,
            concurrency: 1,
            hello_limit: long,
            start_limit: None,
            low_latency: false,
            policy,
        };
        Self {
            core: Core::new(rules, Clock { moment: now, nanos: 0 }),
            rng,
            flaw,
            now,
            items: Vec::new(),
            sent: BTreeMap::new(),
            groups: 0,
            starting: Vec::new(),
            processes: Vec::new(),
            actions: Vec::new(),
            closing: false,
            ended: false,
            loss: Arc::new(Loss {
                pid: 1,
                status: None,
                note: None,
                bad_frame: None,
                stderr: None,
            }),
            wrong: None,
            cuts: 0,
        }
    }

    fn ensure(&mut self, truth: bool, wrong: impl FnOnce() -> String) {
        if !truth {
            self.wrong.get_or_insert_with(wrong);
        }
    }

    fn tell(&mut self, id: u64, told: Told) {
        let fact = self.items[id as usize];
        self.ensure(fact.told.is_none(), || format!("item {id} is told twice"));
        let truth = match told {
            Told::Value => fact.committed,
            Told::Lost => !fact.committed && (fact.begun || fact.suspect),
            Told::Cancelled => !fact.committed && fact.aborted,
            Told::Closed => !fact.committed && self.closing,
        };
        self.ensure(truth, || format!("item {id} is told as {told:?}: {fact:?}"));
        self.items[id as usize].told = Some(told);
    }

    fn enter(
        &mut self,
        news: impl FnOnce(&mut Core<Parcel, TestMemory>, Instant, &mut Vec<Action<Parcel>>),
    ) {
        let mut actions = std::mem::take(&mut self.actions);
        let tasks = self.core.tasks.len();
        news(&mut self.core, self.now, &mut actions);
        self.cuts += usize::from(self.core.tasks.len() > tasks);
        for action in actions.drain(..) {
            match action {
                Action::Start(key) => self.starting.push((key, false)),
                Action::Send(key, task, slot, _) => {
                    let Some(task) = self.core.tasks.get(task) else { continue };
                    let (claim, items) = (
                        Claim { slot, id: task.id },
                        task.cargo.run.as_ref().map_or(1, Run::items),
                    );
                    let is_run = task.cargo.run.is_some();
                    // An earlier frame may be on its way, and begin in the place of this one.
                    let before = *self.sent.entry(claim.id).or_insert(items);
                    self.ensure(before == items, || {
                        format!("{claim:?} is sent with {items} items, and was with {before}")
                    });
                    if let Some(process) = self.process(key) {
                        process.frames.push_back((claim, items, is_run));
                    }
                }
                Action::Kill(key) => match self.process(key) {
                    Some(process) => process.killed = true,
                    None => self
                        .starting
                        .iter_mut()
                        .filter(|(starting, _)| *starting == key)
                        .for_each(|(_, killed)| *killed = true),
                },
                Action::Retire(key) => self.process(key).expect("it is there").retired = true,
                Action::Settle(Parcel { id, run }, fate) => {
                    let told = match fate {
                        Fate::Cancelled => Told::Cancelled,
                        Fate::Lost(_) => Told::Lost,
                        Fate::Closed => Told::Closed,
                        fate => unreachable!("{fate:?}"),
                    };
                    run.unwrap_or_else(|| Run::new(1))
                        .unanswered()
                        .for_each(|item| self.tell(id + u64::from(item), told));
                }
                Action::Ended => self.ended = true,
                action => unreachable!("{action:?}"),
            }
        }
        self.actions = actions;
    }

    fn process(&mut self, key: WorkerKey) -> Option<&mut Process> {
        self.processes.iter_mut().find(|(other, _)| *other == key).map(|(_, process)| process)
    }

    fn submit(&mut self) {
        let id = self.items.len() as u64;
        let items = if self.rng.chance(30) { 1 } else { 1 + self.rng.below(20) as u32 };
        let run = (items > 1 || self.rng.chance(50)).then(|| Run::new(items));
        let fact = Fact { group: self.groups, ..Fact::default() };
        self.groups += u64::from(self.rng.chance(50));
        self.items.extend(std::iter::repeat_n(fact, items as usize));
        let mut refused = false;
        self.enter(|core, now, actions| {
            let call = Call {
                cargo: Parcel { id, run },
                id,
                mode: Mode::Sync,
                large: false,
                options: None,
            };
            refused = core.submit(call, now, actions).is_err();
        });
        if refused {
            (id..id + u64::from(items)).for_each(|id| self.tell(id, Told::Closed));
        }
    }

    /// One step of a worker's process.
    fn work(&mut self, at: usize) {
        let (key, process) = &mut self.processes[at];
        let Some(memory) = self.core.workers.get(*key).and_then(|worker| worker.memory.as_ref())
        else {
            return;
        };
        let claims = memory.claims();
        let begins = match process.at.take() {
            None => process.frames.pop_front().and_then(|(claim, items, is_run)| {
                if is_run {
                    claims.set_up(claim, items);
                }
                claims.begin(claim).then_some((claim, items, 0))
            }),
            Some((claim, items, item)) => {
                process.replies.push(claim.id + u64::from(item));
                self.items[claim.id as usize + item as usize].committed = true;
                let is_counted = item + 1 < items
                    && (self.flaw == Some(Flaw::Uncounted) || claims.next(claim, item + 1));
                if !is_counted {
                    claims.finish(claim);
                }
                is_counted.then_some((claim, items, item + 1))
            }
        };
        process.at = begins;
        if let Some((claim, _, item)) = begins {
            let id = claim.id + u64::from(item);
            let fact = self.items[id as usize];
            self.ensure(!fact.begun && fact.told.is_none(), || {
                format!("item {id} begins: {fact:?}")
            });
            self.items[id as usize].begun = true;
        }
    }

    /// The pool takes in what a worker has committed.
    fn deliver(&mut self, at: usize) {
        let (key, process) = &mut self.processes[at];
        let (key, replies) = (*key, std::mem::take(&mut process.replies));
        let mut unknown = None;
        self.enter(|core, now, actions| {
            for id in &replies {
                if core.replied(key, *id, Answer::Final, now).is_none() {
                    unknown = Some(*id);
                }
            }
            core.refill(key, replies.len() as u32, now, actions);
        });
        self.ensure(unknown.is_none(), || {
            format!("an answer to item {unknown:?}, which its worker does not have")
        });
        replies.into_iter().for_each(|id| self.tell(id, Told::Value));
    }

    fn die(&mut self, at: usize) {
        let key = self.processes[at].0;
        self.enter(|core, _, _| core.ending(key));
        self.deliver(at);
        if let Some(worker) = self.core.workers.get(key) {
            for Flight { claim, task, items, .. } in &worker.in_flight {
                let known = self
                    .core
                    .tasks
                    .get(*task)
                    .and_then(|task| task.cargo.run.as_ref())
                    .map_or(0, Run::known);
                if self.flaw == Some(Flaw::AnswersOnly)
                    && let Some(memory) = &worker.memory
                {
                    memory
                        .claims()
                        .note_start(*claim, u64::from(*items) << 32 | u64::from(known.max(1)));
                }
            }
            if worker.none_begun()
                && let Some(first) = worker.in_flight.front()
            {
                self.items[first.claim.id as usize].suspect = true;
            }
        }
        let loss = Arc::clone(&self.loss);
        self.enter(|core, now, actions| core.exited(key, &loss, now, actions));
        self.processes.remove(at);
    }

    fn step(&mut self) {
        self.now += Duration::from_nanos(self.rng.below(60_000));
        if self.rng.rarely(300) {
            self.now += Duration::from_millis(self.rng.below(20)); // somebody is slow
        }
        if self.core.next_deadline().is_some_and(|by| by <= self.now) {
            self.enter(|core, now, actions| core.tick(now, actions));
        }
        let at = self.rng.below(self.processes.len() as u64) as usize;
        match self.rng.below(100) {
            0..8 if !self.closing => self.submit(),
            8 if !self.starting.is_empty() => {
                let (key, killed) = self.starting.remove(0);
                if killed {
                    let cause = Error::spawn("simulating", std::io::Error::other("killed"));
                    return self
                        .enter(|core, now, actions| core.start_failed(key, cause, now, actions));
                }
                self.processes.push((key, Process::default()));
                self.enter(|core, now, actions| {
                    core.hello(key);
                    core.ready(key, Some(TestMemory::new(2048)), now, actions);
                });
            }
            9 if self.rng.rarely(4) => {
                let group = self.rng.below(self.groups + 1);
                for fact in
                    self.items.iter_mut().filter(|fact| fact.group == group && fact.told.is_none())
                {
                    fact.aborted = true;
                }
                let ids: BTreeSet<u64> = (0..)
                    .zip(&self.items)
                    .filter(|(_, fact)| fact.group == group)
                    .map(|(id, _)| id)
                    .collect();
                self.enter(|core, now, actions| {
                    core.abort_where(|cargo| ids.contains(&cargo.id), now, actions)
                });
            }
            10 if self.rng.rarely(10) && !self.processes.is_empty() => self.die(at),
            11 if self.rng.rarely(40) => {
                self.items
                    .iter_mut()
                    .filter(|fact| fact.told.is_none() && !fact.begun)
                    .for_each(|fact| fact.aborted = true);
                let before = self.items.iter().filter(|fact| fact.told.is_some()).count();
                let mut count = 0;
                self.enter(|core, now, actions| count = core.abort_unbegun(now, actions));
                let after = self.items.iter().filter(|fact| fact.told.is_some()).count();
                self.ensure(after - before == count, || {
                    format!("{count} were said to be aborted, and {} were", after - before)
                });
            }
            12 if self.rng.rarely(20) => self.forget_something(),
            13..30 if !self.processes.is_empty() => self.deliver(at),
            _ if !self.processes.is_empty() => {
                let process = &self.processes[at].1;
                let leaves = process.retired && process.at.is_none() && process.frames.is_empty();
                if leaves || (process.killed && self.rng.rarely(3)) {
                    self.die(at);
                } else {
                    self.work(at);
                }
            }
            _ => {}
        }
        self.check();
    }

    /// What a flaw is, if it lies in the rules.
    fn forget_something(&mut self) {
        match self.flaw {
            Some(Flaw::Forgotten) => {
                let rest = self.core.queue.iter().position(|key| {
                    self.core.tasks.get(*key).is_some_and(|task| task.cargo.run.is_some())
                });
                if let Some(key) = rest.and_then(|at| self.core.queue.remove(at)) {
                    self.core.queued -= 1;
                    self.core.forget(key);
                }
            }
            Some(Flaw::Miscounted) => {
                let key = self
                    .core
                    .workers
                    .iter()
                    .find(|(_, worker)| worker.load > 0)
                    .map(|(key, _)| key);
                if let Some(worker) = key.and_then(|key| self.core.workers.get_mut(key)) {
                    worker.load += 1;
                }
            }
            _ => {}
        }
    }

    fn check(&mut self) {
        let open = self.items.iter().filter(|fact| fact.told.is_none()).count();
        let stats = self.core.census();
        self.ensure(stats.queued + stats.in_hand == open, || {
            format!("{open} items are open, but {stats:?}")
        });
        let loads: Vec<_> = self
            .core
            .workers
            .iter()
            .map(|(_, worker)| (worker.load, worker.in_flight.clone()))
            .collect();
        for (load, flights) in loads {
            self.ensure(
                load == flights.iter().map(|flight| flight.left as usize).sum::<usize>(),
                || format!("{load} of {flights:?}"),
            );
            self.ensure(flights.iter().all(|flight| flight.left > 0), || {
                format!("nothing is left of one of {flights:?}")
            });
        }
    }

    fn end(&mut self) {
        self.closing = true;
        match self.rng.below(3) {
            0 => self.enter(|core, now, actions| core.drain(now, actions)),
            1 => {
                let limit = Duration::from_micros(self.rng.below(3000));
                self.enter(|core, now, actions| core.drain_by(now + limit, now, actions));
            }
            _ => self.enter(|core, now, actions| core.kill(now, actions)),
        }
    }
}

/// How often runs were parted, or what is wrong.
fn round(seed: u64, flaw: Option<Flaw>) -> Result<usize, String> {
    let mut world = World::new(seed, flaw);
    let steps = 200 + world.rng.below(3000);
    for step in 0..steps + 200_000 {
        if step == steps {
            world.end();
        }
        world.step();
        if let Some(wrong) = world.wrong {
            return Err(wrong);
        }
        if world.ended {
            let closed: BTreeSet<u64> = (0..)
                .zip(&world.items)
                .filter(|(_, fact)| fact.told == Some(Told::Closed))
                .map(|(id, _)| id)
                .collect();
            let CutOff { unbegun, begun } = world.core.cut_off();
            let named: BTreeSet<u64> = unbegun.iter().chain(begun).copied().collect();
            return if world.items.iter().any(|fact| fact.told.is_none()) {
                Err("it has ended, and an item was told nothing".into())
            } else if named != closed || named.len() != unbegun.len() + begun.len() {
                Err(format!("{closed:?} were cut off, not {unbegun:?} and {begun:?}"))
            } else {
                Ok(world.cuts)
            };
        }
    }
    Err("it does not end".into())
}

fn seeds(most: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("PROCPOOL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number("PROCPOOL_ROUNDS").unwrap_or(most),
    }
}

#[test]
fn each_item_runs_once_at_most_and_is_told_once_what_became_of_it() {
    let mut cuts = 0;
    for seed in seeds(150) {
        cuts += round(seed, None).unwrap_or_else(|wrong| panic!("PROCPOOL_SEED={seed}: {wrong}"));
    }
    assert!(cuts > 30 || std::env::var_os("PROCPOOL_SEED").is_some(), "{cuts} runs were parted");
}

#[test]
fn what_is_broken_is_found() {
    for flaw in FLAWS {
        assert!((1..200).any(|seed| round(seed, Some(flaw)).is_err()), "{flaw:?} was not found");
    }
}
