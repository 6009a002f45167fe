//! A pool's rules, its claims and its outboxes, searched over every order in which pool, workers
//! and kernel may act, with a death at every step.
//!
//! The state is the real [`Core`], and the memory that each worker shares with it: real claims, a
//! small real ring. Around it stand the driver and the worker processes as explicit counters
//! ([`Op`], [`At`]), which call the functions that `driver.rs` and `serve.rs` call, in their order,
//! one at a time, and the kernel between the two: sockets, deaths, signals under way. From every
//! state all that may happen next is tried, breadth first ([`search`]); a state that was met before
//! is not entered again.
//!
//! The rules look at the claims inside of one call, while workers go on. So before each such look
//! the worker whose word it is may take any of its own steps up to one that changes a word (see
//! [`Hand`]'s `claims`). Its other steps, and those of other workers, change nothing that the rules
//! look at there, so it is enough to try them before and after.
//!
//! What is checked: [`World::check`], [`World::tell`], [`World::enter`], [`Hand::begin`],
//! [`Hand::killed`] and [`World::waits`]. That the checks find what is broken is shown by breaking
//! it here ([`Flaw`]).
//!
//! What is left out: memory is as if all saw one order (`outbox.rs` argues its fences, and is
//! tested with threads); what a worker writes there that no function of ours would
//! (`strange_workers.rs`); starts that fail (`core_sim.rs`).

use super::runs::Parcel;
use super::*;
use crate::pool::driver::{self, Until, take_replies};
use crate::wire::frame;
use crate::wire::message::{self, Failed};
use crate::wire::outbox::{Intake, Ring};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Past every grace of the rules.
const JUMP: Duration = Duration::from_secs(10);
const TASKS_MAX: usize = 6;
/// Of small replies four have room in it.
const RING_WORDS: usize = 4;

// ---- what is searched

#[derive(Clone, Copy, Debug)]
struct Kind {
    mode: Mode,
    /// Its reply may also be one that goes by the socket.
    may_be_large: bool,
    has: Has,
}

/// What options a task has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    Nothing,
    /// One retry after a death.
    Retry,
    /// It is asked first, when it is to be stopped.
    Grace,
    /// A time limit of half a [`JUMP`].
    Limit,
    Idempotent,
}

const SYNC: Kind = Kind { mode: Mode::Sync, may_be_large: false, has: Has::Nothing };
const ASYNC: Kind = Kind { mode: Mode::Async, ..SYNC };
const SYNC_ANY: Kind = Kind { may_be_large: true, ..SYNC };
const ASYNC_ANY: Kind = Kind { may_be_large: true, ..ASYNC };

impl Kind {
    const fn with(self, has: Has) -> Self {
        Self { has, ..self }
    }

    fn options(self) -> Option<Arc<Options>> {
        let mut options = Options::default();
        match self.has {
            Has::Nothing => return None,
            Has::Retry => options.retry.most = 1,
            Has::Grace => options.grace = Some(ABORT_GRACE),
            Has::Limit => options.timeout = Some(JUMP / 2),
            Has::Idempotent => options.idempotent = true,
        }
        Some(Arc::new(options))
    }
}

/// The size of a search.
#[derive(Clone, Debug)]
struct Plan {
    workers: usize,
    /// Handed in one after the other, at any time.
    tasks: Vec<Kind>,
    /// So many of them go together as one run, one after the other; those that are left go alone.
    runs: Vec<usize>,
    /// So many deaths of their own, aborts, and leaps of time at most.
    crashes: u8,
    aborts: u8,
    jumps: u8,
    /// How long a sync task lasts, for all that the rules know: it gives the window (rule 4).
    service: Duration,
    concurrency: usize,
    /// A worker may ring after any number of replies that the rules could ask for; and the time
    /// after which the driver looks by itself may pass.
    moderates: bool,
    /// The socket of one that died may be held by another process.
    held: bool,
    /// Tasks may come at any time; else all are there when workers are ready.
    later: bool,
    /// The pool may be drained, at any time.
    drain: bool,
    flaw: Option<Flaw>,
}

impl Plan {
    fn new(workers: usize, tasks: &[Kind]) -> Self {
        Self {
            workers,
            tasks: tasks.to_vec(),
            runs: Vec::new(),
            crashes: 0,
            aborts: 0,
            jumps: 0,
            service: Duration::ZERO,
            concurrency: 3,
            moderates: false,
            held: false,
            later: false,
            drain: false,
            flaw: None,
        }
    }

    /// The tasks that go together with this one.
    fn company(&self, id: u64) -> std::ops::Range<u64> {
        let mut first = 0;
        for run in &self.runs {
            let next = first + *run as u64;
            if id < next {
                return first..next;
            }
            first = next;
        }
        id..id + 1
    }
}

/// What may be broken, here and not in the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// A worker is killed, and what it has not begun is not taken back first.
    KillFirst,
    /// It is killed without another look at the task that is to be stopped.
    NoLook,
    /// The words of one that died are judged before its replies are taken in.
    WordsFirst,
    /// The pool sleeps without a second look.
    NoSecondLook,
    /// The pool does not say that it sleeps.
    SaysNothing,
    /// A worker is to ring after more replies than it has tasks in hand.
    RingsTooLate,
    /// What is taken back wakes no driver.
    TakesBackSilently,
    /// A reply by the socket does not have the doorbell armed anew.
    ForgetsTheSocket,
    /// A worker marks its task as done by a plain store.
    PlainFinish,
    /// A worker marks its task as done before the reply is committed.
    DoneFirst,
    /// A worker looks whether it may begin, and then begins.
    BeginsLater,
    /// A worker takes whatever stands in the slot for the task of its frame.
    AnyWord,
    /// A worker rings only if it is asked to before it commits.
    RingsEarly,
    /// What had begun when its worker died goes back to the queue.
    RunAgain,
    /// Time is up before what has come meanwhile is taken in.
    TimeFirst,
    /// A worker whose task has not stopped in its grace is killed without another look at it.
    NoLookAtGrace,
    /// A worker looks whether it may begin the next item of a run, and then counts it.
    CountsLater,
    /// What a dead worker had answered of a run is taken for what it had begun.
    AnswersOnly,
    /// What a dead worker had not begun of a run is handed in twice.
    RestTwice,
}

/// A run in a worker's hand, and which item of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    run: Claim,
    items: u8,
    at: u8,
}

impl Item {
    /// As if it were a task.
    fn claim(self) -> Claim {
        Claim { id: self.run.id + u64::from(self.at), ..self.run }
    }
}

// ---- choices

thread_local! {
    static CHOICES: RefCell<Choices> = RefCell::default();
}

/// One run of a step: what is chosen follows a script, and where that ends, the first of each.
#[derive(Default)]
struct Choices {
    script: Vec<u8>,
    /// What was chosen, of how many.
    taken: Vec<(u8, u8)>,
    /// This run leads nowhere that another does not.
    abandoned: bool,
    story: Option<Vec<String>>,
    /// What has come up in the whole search.
    seen: BTreeSet<&'static str>,
}

/// Of `0..n`.
fn choose(n: usize) -> usize {
    if n < 2 {
        return 0;
    }
    CHOICES.with_borrow_mut(|choices| {
        let choice = choices.script.get(choices.taken.len()).copied().unwrap_or(0);
        choices.taken.push((choice, n as u8));
        usize::from(choice)
    })
}

fn say(what: impl FnOnce() -> String) {
    CHOICES.with_borrow_mut(|choices| {
        if let Some(story) = &mut choices.story {
            story.push(what());
        }
    });
}

/// This has come up.
fn note(what: &'static str, truth: bool) {
    if truth {
        CHOICES.with_borrow_mut(|choices| choices.seen.insert(what));
    }
}

/// What is chosen from here on.
fn play(script: &[u8]) {
    CHOICES.with_borrow_mut(|choices| {
        choices.script = script.to_vec();
        choices.taken.clear();
        choices.abandoned = false;
    });
}

/// Runs `step` once for each way of choosing in it.
fn each_way(mut step: impl FnMut() -> bool, mut then: impl FnMut(&[u8])) {
    let mut script = Vec::new();
    loop {
        play(&script);
        if !step() {
            return;
        }
        let (mut taken, abandoned) = CHOICES
            .with_borrow_mut(|choices| (std::mem::take(&mut choices.taken), choices.abandoned));
        script = taken.iter().map(|(choice, _)| *choice).collect();
        if !abandoned {
            then(&script);
        }
        loop {
            match taken.pop() {
                None => return,
                Some((choice, of)) if choice + 1 < of => {
                    script.truncate(taken.len() + 1);
                    script[taken.len()] += 1;
                    break;
                }
                Some(_) => {}
            }
        }
    }
}

// ---- what is known of each task, beside the rules

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Value,
    Cancelled,
    TimedOut,
    Lost,
    Closed,
}

#[derive(Clone, Copy, Debug, Default)]
struct Fact {
    key: Option<TaskKey>,
    sent: bool,
    begun: bool,
    committed: bool,
    aborted: bool,
    /// It may have run for longer than its time limit.
    over: bool,
    /// It is tried again.
    again: bool,
    /// The grace of its stop has passed, and it had not been answered.
    late: bool,
    told: Option<Told>,
}

#[derive(Debug, Default)]
struct Facts {
    tasks: [Cell<Fact>; TASKS_MAX],
    /// Since the beginning, as workers note it.
    nanos: Cell<u64>,
    wrong: RefCell<Option<String>>,
}

impl Facts {
    fn get(&self, id: u64) -> Fact {
        self.tasks[id as usize].get()
    }

    fn set(&self, id: u64, change: impl FnOnce(&mut Fact)) {
        let mut fact = self.get(id);
        change(&mut fact);
        self.tasks[id as usize].set(fact);
    }

    fn ensure(&self, truth: bool, wrong: impl FnOnce() -> String) {
        if !truth {
            self.wrong.borrow_mut().get_or_insert_with(wrong);
        }
    }
}

impl Clone for Facts {
    fn clone(&self) -> Self {
        let tasks = std::array::from_fn(|id| Cell::new(self.tasks[id].get()));
        Self { tasks, nanos: self.nanos.clone(), wrong: RefCell::new(self.wrong.borrow().clone()) }
    }
}

// ---- a worker: its memory, its process, and the kernel around it

/// Where a worker's process stands: what it does next. Async tasks run beside that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Reads a frame; or one of the async tasks ends.
    Idle,
    /// Begins, having seen that it may ([`Flaw::BeginsLater`]).
    Begin(Claim, Mode),
    /// Runs a sync task, which ends, and commits its reply.
    Run(Claim),
    /// Runs an item of a run, which ends, and commits its reply.
    Item(Item),
    /// Looks whether the pool wants the bell, and perhaps rings, while the run goes on.
    LookInRun(Item),
    RingInRun(Item),
    /// Counts the next item, or marks the run as done.
    Next(Item),
    /// Counts it, having seen that it may, when that was the limit ([`Flaw::CountsLater`]).
    Counted(Item, u8),
    /// Commits it, having marked it as done ([`Flaw::DoneFirst`]), or having looked for the bell
    /// ([`Flaw::RingsEarly`]).
    Commit(Claim, bool),
    /// Marks it as done.
    Finish(Claim, Boxed),
    /// Looks whether the pool wants the bell.
    Look,
    /// Rings.
    Ring,
    Dead,
}

impl At {
    /// Of a run that goes on.
    fn item(self) -> Option<Item> {
        match self {
            Self::Item(item)
            | Self::LookInRun(item)
            | Self::RingInRun(item)
            | Self::Next(item)
            | Self::Counted(item, _) => Some(item),
            _ => None,
        }
    }
}

/// How the reply went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boxed {
    Socket,
    Outbox,
    /// And the bell is wanted ([`Flaw::RingsEarly`]).
    OutboxAndBell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToWorker {
    Call(Claim, Mode),
    Run(Claim, u8),
    Cancel(u64),
    /// The pool has closed its side.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToPool {
    Reply(u64),
    Bell,
}

#[derive(Clone, Debug)]
struct Process {
    at: At,
    /// Async tasks, and whether they are to be dropped.
    running: Vec<(Claim, bool)>,
    /// What was sent to it, and may have reached it at any later time.
    inbox: VecDeque<ToWorker>,
    /// Something was sent to it that cannot reach it any more.
    unsent: bool,
    outgoing: Vec<ToPool>,
    /// The pool's end of the socket has become readable since it was last looked at.
    edge: bool,
    /// Its end of the socket is closed.
    closed: bool,
    /// It is to be killed, at any later time.
    kill: bool,
}

#[derive(Debug)]
struct Hand {
    words: [AtomicU64; TASKS_MAX],
    starts: [AtomicU64; TASKS_MAX],
    tail: AtomicU64,
    replies: AtomicU64,
    head: AtomicU64,
    ring_at: AtomicU64,
    ring: [AtomicU64; RING_WORDS],
    process: RefCell<Process>,
    facts: Rc<Facts>,
    plan: Rc<Plan>,
}

impl Memory for Rc<Hand> {
    /// Called by the rules before each look at a word: the process may have gone on meanwhile.
    fn claims(&self) -> Claims<'_> {
        let mut may_stop = true;
        loop {
            let steps = self.steps();
            match choose(steps + usize::from(may_stop)) {
                0 if may_stop => return self.words(),
                _ if steps == 0 => {
                    CHOICES.with_borrow_mut(|choices| choices.abandoned = true);
                    return self.words();
                }
                n => {
                    say(|| "  meanwhile:".into());
                    may_stop = self.step(n - usize::from(may_stop));
                }
            }
        }
    }
}

fn copies<const N: usize>(words: &[AtomicU64; N]) -> [AtomicU64; N] {
    std::array::from_fn(|at| copy(&words[at]))
}

fn copy(word: &AtomicU64) -> AtomicU64 {
    AtomicU64::new(word.load(Ordering::Relaxed))
}

impl Hand {
    fn new(facts: Rc<Facts>, plan: Rc<Plan>) -> Self {
        let word = || AtomicU64::new(0);
        let process = Process {
            at: At::Idle,
            running: Vec::new(),
            inbox: VecDeque::new(),
            unsent: false,
            outgoing: Vec::new(),
            edge: false,
            closed: false,
            kill: false,
        };
        Self {
            words: std::array::from_fn(|_| word()),
            starts: std::array::from_fn(|_| word()),
            tail: word(),
            replies: word(),
            head: word(),
            ring_at: AtomicU64::new(u64::MAX),
            ring: std::array::from_fn(|_| word()),
            process: RefCell::new(process),
            facts,
            plan,
        }
    }

    fn copy(&self, facts: &Rc<Facts>) -> Self {
        Self {
            words: copies(&self.words),
            starts: copies(&self.starts),
            tail: copy(&self.tail),
            replies: copy(&self.replies),
            head: copy(&self.head),
            ring_at: copy(&self.ring_at),
            ring: copies(&self.ring),
            process: self.process.clone(),
            facts: Rc::clone(facts),
            plan: Rc::clone(&self.plan),
        }
    }

    /// The claims, without anybody's going on meanwhile.
    fn words(&self) -> Claims<'_> {
        Claims::new(&self.words, &self.starts)
    }

    fn ring(&self) -> Ring<'_> {
        Ring {
            tail: &self.tail,
            replies: &self.replies,
            head: &self.head,
            ring_at: &self.ring_at,
            words: &self.ring,
        }
    }

    fn is_dead(&self) -> bool {
        self.process.borrow().at == At::Dead
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.plan.flaw == Some(flaw)
    }

    /// How many steps of its own the process may take now.
    fn steps(&self) -> usize {
        let process = self.process.borrow();
        match process.at {
            At::Idle => usize::from(!process.inbox.is_empty()) + process.running.len(),
            At::Dead => 0,
            _ => 1,
        }
    }

    /// Takes one of them; says whether it was one that changes words.
    fn step(&self, step: usize) -> bool {
        let process = &mut *self.process.borrow_mut();
        match process.at {
            At::Idle => {
                let frame = if step == 0 { process.inbox.pop_front() } else { None };
                match frame {
                    Some(frame) => return self.read(process, frame),
                    None => {
                        let at = step - usize::from(!process.inbox.is_empty());
                        let (claim, dropped) = process.running.remove(at);
                        say(|| {
                            format!(
                                "    {} ends{}",
                                claim.id,
                                if dropped { ", dropped" } else { "" }
                            )
                        });
                        process.at = self.commit(process, claim, dropped);
                    }
                }
                false
            }
            At::Begin(claim, mode) => {
                self.words[usize::from(claim.slot)].store(claim.id << 3 | 2, Ordering::Relaxed);
                self.begin(process, claim, mode);
                true
            }
            At::Run(claim) if self.has(Flaw::DoneFirst) => {
                self.words().finish(claim);
                process.at = At::Commit(claim, false);
                true
            }
            At::Run(claim) if self.has(Flaw::RingsEarly) => {
                process.at = At::Commit(claim, self.ring().wants_bell());
                false
            }
            At::Run(claim) => {
                say(|| format!("    {} ends", claim.id));
                process.at = self.commit(process, claim, false);
                false
            }
            At::Item(item) => {
                say(|| format!("    {} ends", item.claim().id));
                process.at = match self.commit(process, item.claim(), false) {
                    At::Finish(_, boxed) if item.at + 1 == item.items => {
                        At::Finish(item.run, boxed)
                    }
                    At::Finish(_, Boxed::Socket) => At::Next(item),
                    _ => At::LookInRun(item),
                };
                false
            }
            At::LookInRun(item) => {
                process.at =
                    if self.ring().wants_bell() { At::RingInRun(item) } else { At::Next(item) };
                false
            }
            At::RingInRun(item) => {
                say(|| "    it rings".into());
                process.outgoing.push(ToPool::Bell);
                process.edge = true;
                process.at = At::Next(item);
                false
            }
            At::Next(item) if self.has(Flaw::CountsLater) => {
                let limit = (self.words().started_at(item.run) >> 32) as u8;
                process.at = if item.at + 1 < limit {
                    At::Counted(item, limit)
                } else {
                    At::Finish(item.run, Boxed::Socket)
                };
                false
            }
            At::Next(item) => {
                let next = Item { at: item.at + 1, ..item };
                if self.words().next(item.run, u32::from(next.at)) {
                    self.begin_item(process, next);
                } else {
                    note("a run that was cut", true);
                    process.at = At::Finish(item.run, Boxed::Socket);
                }
                true
            }
            At::Counted(item, limit) => {
                let next = Item { at: item.at + 1, ..item };
                self.starts[usize::from(item.run.slot)]
                    .store((u64::from(limit) << 32) | (u64::from(next.at) + 1), Ordering::Relaxed);
                self.begin_item(process, next);
                true
            }
            At::Commit(claim, bell) => {
                process.at = match self.commit(process, claim, false) {
                    At::Finish(_, Boxed::Outbox) if self.has(Flaw::DoneFirst) => At::Look,
                    At::Finish(_, Boxed::Outbox) if bell => At::Finish(claim, Boxed::OutboxAndBell),
                    finish => finish,
                };
                false
            }
            At::Finish(claim, boxed) => {
                say(|| format!("    {} is marked as done", claim.id));
                note(
                    "done, but the slot is another task's",
                    self.words[usize::from(claim.slot)].load(Ordering::Relaxed) >> 3 != claim.id,
                );
                if self.has(Flaw::PlainFinish) {
                    self.words[usize::from(claim.slot)].store(claim.id << 3 | 4, Ordering::Release);
                } else {
                    self.words().finish(claim);
                }
                process.at = match boxed {
                    Boxed::Socket => At::Idle,
                    Boxed::Outbox if self.has(Flaw::RingsEarly) => At::Idle,
                    Boxed::Outbox => At::Look,
                    Boxed::OutboxAndBell => At::Ring,
                };
                true
            }
            At::Look => {
                process.at = if self.ring().wants_bell() { At::Ring } else { At::Idle };
                say(|| format!("    whether the bell is wanted: {}", process.at == At::Ring));
                false
            }
            At::Ring => {
                say(|| "    it rings".into());
                process.outgoing.push(ToPool::Bell);
                process.edge = true;
                process.at = At::Idle;
                false
            }
            At::Dead => unreachable!("it has no steps"),
        }
    }

    fn read(&self, process: &mut Process, frame: ToWorker) -> bool {
        say(|| format!("    it reads {frame:?}"));
        match frame {
            ToWorker::Call(claim, mode) => {
                self.facts.ensure(mode == Mode::Async || process.running.is_empty(), || {
                    "a sync call while async tasks run".into()
                });
                if self.has(Flaw::BeginsLater) {
                    if self.words().look(claim) == Progress::Queued {
                        process.at = At::Begin(claim, mode);
                    }
                    return false;
                }
                let mut word = claim;
                if self.has(Flaw::AnyWord) {
                    word.id = self.words[usize::from(claim.slot)].load(Ordering::Relaxed) >> 3;
                }
                if self.plan.tasks[claim.id as usize].has == Has::Limit {
                    self.words().note_start(claim, self.facts.nanos.get());
                }
                if self.words().begin(word) {
                    self.begin(process, claim, mode);
                } else {
                    let whose = self.words[usize::from(claim.slot)].load(Ordering::Relaxed) >> 3;
                    note("a frame of a task that was taken back", whose == claim.id);
                    note("a frame whose slot is another task's", whose != claim.id);
                }
                true
            }
            ToWorker::Run(run, items) => {
                self.words().set_up(run, u32::from(items));
                if self.words().begin(run) {
                    self.begin_item(process, Item { run, items, at: 0 });
                } else {
                    note("a frame of a run that was taken back", true);
                }
                true
            }
            ToWorker::Cancel(id) => {
                process
                    .running
                    .iter_mut()
                    .filter(|(claim, _)| claim.id == id)
                    .for_each(|(_, dropped)| *dropped = true);
                false
            }
            ToWorker::End => {
                self.die(process);
                false
            }
        }
    }

    /// A task runs from here on.
    fn begin(&self, process: &mut Process, claim: Claim, mode: Mode) {
        say(|| format!("    {} begins", claim.id));
        let fact = self.facts.get(claim.id);
        self.facts.ensure(!fact.begun, || format!("task {} runs twice", claim.id));
        self.facts.ensure(fact.told.is_none(), || {
            format!("task {} begins, and was told as {:?}", claim.id, fact.told)
        });
        self.facts
            .ensure(!fact.committed, || format!("task {} begins, and has been answered", claim.id));
        self.facts.set(claim.id, |fact| fact.begun = true);
        match mode {
            Mode::Sync => process.at = At::Run(claim),
            Mode::Async => {
                process.running.push((claim, false));
                process.at = At::Idle;
            }
        }
    }

    fn begin_item(&self, process: &mut Process, item: Item) {
        self.begin(process, item.claim(), Mode::Sync);
        process.at = At::Item(item);
    }

    /// As `Worker::commit`, up to there.
    fn commit(&self, process: &mut Process, claim: Claim, dropped: bool) -> At {
        let mut out = Vec::new();
        let start = frame::begin(&mut out);
        if dropped {
            note("an async task is dropped", true);
            message::failed(&mut out, claim.id, &Failed::Cancelled);
        } else {
            message::done(&mut out, claim.id);
            out.push(0xc0);
        }
        frame::finish(&mut out, start);
        let is_large =
            self.plan.tasks[claim.id as usize].may_be_large && !dropped && choose(2) == 1;
        let boxed = !is_large && self.ring().put(&out);
        if !boxed {
            process.outgoing.push(ToPool::Reply(claim.id));
            process.edge = true;
        }
        self.facts.set(claim.id, |fact| fact.committed = true);
        let boxed = if boxed { Boxed::Outbox } else { Boxed::Socket };
        say(|| format!("    the reply of {} is committed: {boxed:?}", claim.id));
        At::Finish(claim, boxed)
    }

    /// Its end of the socket closes with it, unless somebody else holds that.
    fn die(&self, process: &mut Process) {
        let is_held = self.plan.held && choose(2) == 1;
        process.closed = !is_held;
        process.edge |= process.closed;
        process.at = At::Dead;
        process.running.clear();
        process.unsent = !process.inbox.is_empty();
        process.inbox.clear();
        process.kill = false;
    }

    /// A signal has arrived. What runs is what was to be stopped; async neighbours go with it.
    fn killed(&self) {
        let process = &mut *self.process.borrow_mut();
        note(
            "a kill that comes when nothing runs",
            process.at == At::Idle && process.running.is_empty(),
        );
        let running = match process.at {
            At::Run(claim) => Some(claim),
            At::Item(item) => Some(item.claim()),
            _ => None,
        };
        if let Some(claim) = running {
            note("a kill that ends its task", true);
            let fact = self.facts.get(claim.id);
            self.facts.ensure(fact.aborted || fact.over, || {
                format!("a kill ends task {}, which nobody wanted to stop", claim.id)
            });
        }
        self.die(process);
    }

    fn send(&self, frame: ToWorker) {
        let mut process = self.process.borrow_mut();
        match process.at {
            At::Dead => process.unsent = true,
            _ => process.inbox.push_back(frame),
        }
    }
}

// ---- the driver

/// What the driver still has to do for one event, the next one last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    Read(WorkerKey, Until),
    /// These were answered.
    Replied(WorkerKey, Vec<(u64, u32)>),
    HungUp(WorkerKey),
    /// Takes in what lies in the outbox.
    Empty(WorkerKey, Then),
    /// Works out after how many replies the worker rings: so many were there.
    Arm(WorkerKey, usize),
    /// And tells it, having worked that out.
    Tell(WorkerKey, usize),
    SecondLook(WorkerKey, usize),
    /// Those workers are still to be looked at, and to be armed anew if that is due.
    Look(VecDeque<(WorkerKey, bool)>),
    Exited(WorkerKey),
    /// What was overdue by then has been taken in.
    Tick(Option<Instant>),
}

/// What follows a look into an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    /// The doorbell is armed if something was there.
    ArmIfAny,
    Arm,
}

/// The pool's side of one worker.
#[derive(Clone, Debug)]
struct Reader {
    key: WorkerKey,
    hand: Rc<Hand>,
    intake: Intake,
    closed: bool,
    /// What could not be sent has been noticed.
    broken_pipe: bool,
}

#[derive(Debug)]
struct World {
    plan: Rc<Plan>,
    facts: Rc<Facts>,
    core: Core<Parcel, Rc<Hand>>,
    readers: Vec<Reader>,
    /// Killed before they were ready.
    stillborn: Vec<WorkerKey>,
    ops: Vec<Op>,
    /// Something was handled since the last look into the outboxes.
    turning: bool,
    due: Vec<WorkerKey>,
    /// Workers that ring after more than one reply; and their doorbells are to be armed anew.
    moderated: Vec<WorkerKey>,
    rearm: bool,
    /// The driver has been woken for that.
    woken: bool,
    began: Instant,
    now: Instant,
    loss: Arc<Loss>,
    submitted: usize,
    crashes: u8,
    aborts: u8,
    jumps: u8,
    drained: bool,
    /// The rules have said so.
    ended: bool,
    /// Tasks that may have killed their worker by being read (rule 7).
    suspects: Vec<u64>,
    /// For the encoding, since the table does not show it: which of its places are free, in order,
    /// and how often each was.
    freed: Vec<u8>,
    generations: [u8; 4],
}

impl Clone for World {
    fn clone(&self) -> Self {
        let facts = Rc::new((*self.facts).clone());
        let mut core = self.core.clone();
        let mut readers = self.readers.clone();
        for reader in &mut readers {
            reader.hand = Rc::new(reader.hand.copy(&facts));
            if let Some(worker) = core.workers.get_mut(reader.key) {
                worker.memory = Some(Rc::clone(&reader.hand));
            }
        }
        Self {
            plan: Rc::clone(&self.plan),
            facts,
            core,
            readers,
            stillborn: self.stillborn.clone(),
            ops: self.ops.clone(),
            due: self.due.clone(),
            moderated: self.moderated.clone(),
            loss: Arc::clone(&self.loss),
            suspects: Vec::new(),
            freed: self.freed.clone(),
            ..*self
        }
    }
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    // The worker in this place, and the kernel.
    Own(usize, usize),
    Crash(usize),
    Killed(usize),
    // The driver.
    Op,
    Socket(usize),
    Ended(usize),
    Timer,
    /// The driver was woken to arm doorbells.
    Woken,
    /// The driver looks by itself.
    TimeIsUp,
    Ready(WorkerKey),
    Stillborn(WorkerKey),
    Look,
    // Others who enter the rules.
    BrokenPipe(usize),
    Submit,
    Abort(u64),
    Drain,
    Jump,
}

impl Step {
    /// It need not happen, whatever the others wait for.
    fn is_optional(self) -> bool {
        matches!(
            self,
            Self::Crash(_)
                | Self::BrokenPipe(_)
                | Self::Abort(_)
                | Self::Drain
                | Self::Jump
                | Self::TimeIsUp
        )
    }
}

impl World {
    /// All workers are ready.
    fn new(plan: Plan) -> Self {
        play(&[]);
        let now = Instant::now();
        let never = Duration::from_secs(1 << 20);
        // Here a kill may take as long as it likes.
        let policy = Policy { kill_limit: never, ..Policy::default() };
        let rules = Rules {
            workers: plan.workers,
            concurrency: plan.concurrency,
            hello_limit: never,
            start_limit: None,
            low_latency: false,
            policy,
        };
        let mut world = Self {
            facts: Rc::new(Facts::default()),
            core: Core::new(rules, Clock { moment: now, nanos: 0 }),
            readers: Vec::new(),
            stillborn: Vec::new(),
            ops: Vec::new(),
            turning: false,
            due: Vec::new(),
            moderated: Vec::new(),
            rearm: false,
            woken: false,
            began: now,
            now,
            loss: Arc::new(Loss {
                pid: 1,
                status: None,
                note: None,
                bad_frame: None,
                stderr: None,
            }),
            submitted: 0,
            crashes: plan.crashes,
            aborts: plan.aborts,
            jumps: plan.jumps,
            drained: false,
            ended: false,
            suspects: Vec::new(),
            freed: Vec::new(),
            generations: [0; 4],
            plan: Rc::new(plan),
        };
        world.enter(|core, now, actions| core.start_all(now, actions));
        for key in world.core.workers.keys() {
            world.ready(key);
        }
        while !world.plan.later && world.submitted < world.plan.tasks.len() {
            world.submit();
        }
        world
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.plan.flaw == Some(flaw)
    }

    fn place(&self, key: WorkerKey) -> Option<usize> {
        self.readers.iter().position(|reader| reader.key == key)
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, reader) in self.readers.iter().enumerate() {
            let process = reader.hand.process.borrow();
            steps.extend((0..reader.hand.steps()).map(|step| Step::Own(at, step)));
            if process.at == At::Dead {
                steps.extend(
                    (process.closed && process.unsent && !reader.broken_pipe)
                        .then_some(Step::BrokenPipe(at)),
                );
            } else {
                steps.extend((self.crashes > 0).then_some(Step::Crash(at)));
                steps.extend(process.kill.then_some(Step::Killed(at)));
            }
        }
        if !self.ops.is_empty() {
            steps.push(Step::Op);
        } else {
            for (at, reader) in self.readers.iter().enumerate() {
                steps.extend(reader.hand.process.borrow().edge.then_some(Step::Socket(at)));
                steps.extend(reader.hand.is_dead().then_some(Step::Ended(at)));
            }
            steps.extend(
                self.core.next_deadline().is_some_and(|by| by <= self.now).then_some(Step::Timer),
            );
            steps.extend(self.woken.then_some(Step::Woken));
            steps.extend((!self.moderated.is_empty()).then_some(Step::TimeIsUp));
            steps.extend(self.turning.then_some(Step::Look));
            let starting = self
                .core
                .workers
                .iter()
                .filter(|(_, worker)| matches!(worker.state, State::Starting { .. }));
            steps.extend(starting.map(|(key, _)| Step::Ready(key)));
            steps.extend(self.stillborn.iter().map(|key| Step::Stillborn(*key)));
        }
        if self.submitted < self.plan.tasks.len() {
            steps.push(Step::Submit);
        }
        if self.aborts > 0 {
            let open = (0..self.submitted as u64).filter(|id| {
                let fact = self.facts.get(*id);
                fact.told.is_none() && !fact.aborted
            });
            steps.extend(open.map(Step::Abort));
        }
        if self.jumps > 0 {
            steps.push(Step::Jump);
        }
        if self.plan.drain && !self.drained {
            steps.push(Step::Drain);
        }
        steps
    }

    fn step(&mut self, step: Step) {
        say(|| format!("{step:?}"));
        match step {
            Step::Own(at, step) => {
                self.readers[at].hand.step(step);
            }
            Step::Crash(at) => {
                self.crashes -= 1;
                let hand = &self.readers[at].hand;
                hand.die(&mut hand.process.borrow_mut());
            }
            Step::Killed(at) => self.readers[at].hand.killed(),
            Step::Op => self.op(),
            Step::Socket(at) => {
                let reader = &self.readers[at];
                let mut process = reader.hand.process.borrow_mut();
                process.edge = false;
                self.ops.push(Op::Read(
                    reader.key,
                    if process.closed { Until::End } else { Until::OthersWait },
                ));
                self.turning = true;
            }
            Step::Ended(at) => {
                let key = self.readers[at].key;
                self.enter(|core, _, _| core.ending(key));
                let (read, empty, exited) = (
                    Op::Read(key, Until::WhatItSent),
                    Op::Empty(key, Then::Nothing),
                    Op::Exited(key),
                );
                self.ops.extend(if self.has(Flaw::WordsFirst) {
                    [read, empty, exited]
                } else {
                    [exited, empty, read]
                });
                self.turning = true;
            }
            Step::Timer => {
                self.ops.push(Op::Tick(None));
                self.turning = true;
            }
            Step::Woken => (self.woken, self.rearm, self.turning) = (false, true, true),
            Step::TimeIsUp => (self.rearm, self.turning) = (true, true),
            Step::Ready(key) => {
                self.ready(key);
                self.turning = true;
            }
            Step::Stillborn(key) => {
                self.stillborn.retain(|other| *other != key);
                let cause = Error::spawn("searching", std::io::Error::other("killed"));
                self.enter(|core, now, actions| core.start_failed(key, cause, now, actions));
                self.free(key);
            }
            Step::Look => {
                let due = std::mem::take(&mut self.due).into_iter().map(|key| (key, true));
                let rearm = std::mem::take(&mut self.rearm);
                let moderated = self.moderated.iter().map(|key| (*key, rearm));
                self.ops.push(Op::Look(due.chain(moderated).collect()));
                self.turning = false;
                self.one_op();
                self.op();
            }
            Step::BrokenPipe(at) => {
                note("a broken pipe", true);
                self.readers[at].broken_pipe = true;
                let key = self.readers[at].key;
                self.enter(|core, now, actions| core.doom(key, now, actions));
            }
            Step::Submit => self.submit(),
            Step::Abort(id) => self.abort(id),
            Step::Drain => {
                self.drained = true;
                self.enter(|core, now, actions| core.drain(now, actions));
            }
            Step::Jump => {
                self.jumps -= 1;
                self.now += JUMP;
                self.facts.nanos.set(self.facts.nanos.get() + JUMP.as_nanos() as u64);
                for id in 0..self.submitted as u64 {
                    let has_limit = self.plan.tasks[id as usize].has == Has::Limit;
                    self.facts.set(id, |fact| {
                        fact.late |= (fact.aborted || fact.over) && !fact.committed;
                        fact.over |= has_limit && fact.begun && !fact.committed;
                    });
                }
            }
        }
    }

    /// A worker has started, and says that it is ready.
    fn ready(&mut self, key: WorkerKey) {
        let hand = Rc::new(Hand::new(Rc::clone(&self.facts), Rc::clone(&self.plan)));
        let reader = Reader {
            key,
            hand: Rc::clone(&hand),
            intake: Intake::default(),
            closed: false,
            broken_pipe: false,
        };
        if !self.has(Flaw::SaysNothing) {
            reader.intake.arm(&hand.ring(), 1);
        }
        self.readers.push(reader);
        let service = self.plan.service;
        self.enter(|core, now, actions| {
            core.hello(key);
            if let Some(worker) = core.workers.get_mut(key) {
                worker.service = Some(service);
            }
            core.ready(key, Some(hand), now, actions);
        });
    }

    fn submit(&mut self) {
        let id = self.submitted as u64;
        let (mode, options) =
            (self.plan.tasks[id as usize].mode, self.plan.tasks[id as usize].options());
        let together = self.plan.company(id);
        self.submitted += together.clone().count();
        let run =
            (self.submitted as u64 > id + 1).then(|| Run::new(self.submitted as u32 - id as u32));
        let cargo = Parcel { id, run };
        let mut taken = None;
        self.enter(|core, now, actions| {
            taken = Some(core.submit(Call { cargo, id, mode, large: false, options }, now, actions))
        });
        for id in together {
            match &taken {
                Some(Ok(key)) => self.facts.set(id, |fact| fact.key = Some(*key)),
                _ => self.tell(id, Told::Closed),
            }
        }
    }

    /// A run is aborted as a whole, and what was cut off it, too.
    fn abort(&mut self, id: u64) {
        self.aborts -= 1;
        let together = self.plan.company(id);
        for id in together.clone() {
            self.facts.set(id, |fact| fact.aborted |= fact.told.is_none());
        }
        if together.end - together.start > 1 {
            return self.enter(|core, now, actions| {
                core.abort_where(|cargo| together.contains(&cargo.id), now, actions)
            });
        }
        let Some(key) = self.facts.get(id).key else { return };
        match self.plan.flaw {
            Some(flaw @ (Flaw::KillFirst | Flaw::NoLook)) => {
                self.enter(|core, now, actions| stop_badly(core, key, flaw, now, actions))
            }
            _ => self.enter(|core, now, actions| core.abort(key, now, actions)),
        }
    }

    /// Enters the rules, and does what they say, as far as that happens under the pool's lock; the
    /// rest comes later.
    fn enter(
        &mut self,
        news: impl FnOnce(&mut Core<Parcel, Rc<Hand>>, Instant, &mut Vec<Action<Parcel>>),
    ) {
        let mut actions = Vec::new();
        news(&mut self.core, self.now, &mut actions);
        self.core.deadline_moved();
        if self.core.take_rearm() && !self.has(Flaw::TakesBackSilently) {
            note("a doorbell that is armed anew", true);
            self.woken = true;
        }
        for key in self.core.workers.keys() {
            if let Some(worker) = self.core.workers.get_mut(key) {
                // The clock stands still, so what was measured means nothing.
                if worker.service.replace(self.plan.service) != Some(self.plan.service) {
                    self.core.list(key);
                }
            }
        }
        for action in actions {
            say(|| format!("    => {action:?}"));
            match action {
                Action::Start(key) => {
                    let (place, generation) = split(key);
                    self.freed.retain(|free| usize::from(*free) != place);
                    self.generations[place] = generation;
                }
                Action::Send(key, task, slot, _) => {
                    let (Some(id), Some(at)) = (self.core.id_of(task), self.place(key)) else {
                        continue;
                    };
                    note("sent again", self.facts.get(id).sent);
                    let claim = Claim { slot, id };
                    let run = self.core.cargo_mut(task).and_then(|cargo| cargo.run.clone());
                    note("the rest of a run", run.is_some() && id != self.plan.company(id).start);
                    for id in id..id + u64::from(run.as_ref().map_or(1, Run::items)) {
                        self.facts.set(id, |fact| fact.sent = true);
                    }
                    self.readers[at].hand.send(match run {
                        Some(run) => ToWorker::Run(claim, run.items() as u8),
                        None => ToWorker::Call(claim, self.plan.tasks[id as usize].mode),
                    });
                }
                // It may end by itself at any time, asked or not.
                Action::Ask(..) => note("an async task is asked", true),
                Action::Cancel(key, task) => {
                    let (Some(id), Some(at)) = (self.core.id_of(task), self.place(key)) else {
                        continue;
                    };
                    self.readers[at].hand.send(ToWorker::Cancel(id));
                }
                Action::Retire(key) => {
                    if let Some(at) = self.place(key) {
                        self.readers[at].hand.send(ToWorker::End);
                    }
                }
                Action::Kill(key) => self.kill(key),
                Action::TimeOut(key) => {
                    self.facts.ensure(false, || format!("the start of {key:?} took too long"))
                }
                Action::Weigh(key) => self.facts.ensure(false, || format!("{key:?} is weighed")),
                Action::Settle(Parcel { id, run }, fate) => {
                    let told = match fate {
                        Fate::Cancelled => Told::Cancelled,
                        Fate::TimedOut(_) => Told::TimedOut,
                        Fate::Lost(_) => Told::Lost,
                        Fate::Closed | Fate::StartFailed(_) | Fate::Unkillable(_) => Told::Closed,
                    };
                    note(
                        "a run of which nothing was left",
                        run.as_ref().is_some_and(|run| run.left() == 0),
                    );
                    let run = run.unwrap_or_else(|| Run::new(1));
                    run.unanswered().for_each(|item| self.tell(id + u64::from(item), told));
                }
                Action::Note(task, fate) => {
                    let Some(id) = self.core.id_of(task) else { continue };
                    let fact = self.facts.get(id);
                    note("tried again", true);
                    let truth = matches!(fate, Fate::Lost(_))
                        && !fact.committed
                        && (fact.begun || self.suspects.contains(&id));
                    self.facts.ensure(truth && !fact.again, || {
                        format!("task {id} is tried again after {fate:?}: {fact:?}")
                    });
                    self.facts.set(id, |fact| (fact.again, fact.begun) = (true, false));
                }
                Action::Ended => self.ended = true,
            }
        }
    }

    /// A worker is to be killed. One with async tasks only if one of them was not answered in its
    /// grace.
    fn kill(&mut self, key: WorkerKey) {
        let Some(at) = self.place(key) else { return self.stillborn.push(key) };
        let hand = &self.readers[at].hand;
        let mut process = hand.process.borrow_mut();
        if process.at == At::Dead {
            return;
        }
        process.kill = true;
        if !process.running.is_empty() {
            let late = self.core.workers.get(key).is_some_and(|worker| {
                worker.in_flight.iter().any(|flight| self.facts.get(flight.claim.id).late)
            });
            self.facts.ensure(late, || "async tasks are killed, though none is late".into());
        }
    }

    /// A task gets its outcome.
    fn tell(&mut self, id: u64, told: Told) {
        say(|| format!("    {id} is told as {told:?}"));
        let fact = self.facts.get(id);
        self.facts.ensure(fact.told.is_none(), || format!("task {id} is told twice"));
        note("lost without having begun", told == Told::Lost && !fact.begun);
        note("lost", told == Told::Lost && fact.begun);
        note("a value, though it was to be stopped", told == Told::Value && fact.aborted);
        note("refused", told == Told::Closed);
        note("over its limit", told == Told::TimedOut);
        self.facts.set(id, |fact| fact.told = Some(told));
        let truth = match told {
            Told::Value => fact.committed,
            Told::Cancelled => fact.aborted && !fact.committed,
            Told::TimedOut => fact.over && !fact.committed,
            Told::Lost => !fact.committed && (fact.begun || self.suspects.contains(&id)),
            Told::Closed => self.drained,
        };
        self.facts.ensure(truth, || format!("task {id} is told as {told:?}: {fact:?}"));
    }

    // ---- the driver

    /// The next one, and what follows that nobody else sees.
    fn op(&mut self) {
        self.one_op();
        while let Some(Op::Look(..)) = self.ops.last() {
            self.one_op();
        }
    }

    fn one_op(&mut self) {
        let Some(op) = self.ops.pop() else { return };
        say(|| format!("    {op:?}"));
        match op {
            Op::Read(key, until) => self.read(key, until),
            Op::Replied(key, rows) => {
                let facts = Rc::clone(&self.facts);
                let mut told = Vec::new();
                self.enter(|core, now, actions| {
                    let mut sum = 0;
                    for (mut id, mut left) in rows {
                        while left > 0 {
                            let Some((count, replied)) =
                                core.replied_row(key, id, left, Answer::Final, now)
                            else {
                                facts.ensure(false, || {
                                    format!(
                                        "an answer to task {id} from a worker that does not have it"
                                    )
                                });
                                break;
                            };
                            note("a row of replies that ends before the others do", count < left);
                            note("a row of replies", count > 1);
                            facts.ensure(!matches!(replied, Replied::Again(..)), || {
                                format!("task {id} was answered, and is tried again")
                            });
                            told.extend(id..id + u64::from(count));
                            (id, left, sum) = (id + u64::from(count), left - count, sum + count);
                        }
                    }
                    core.refill(key, sum, now, actions);
                });
                told.into_iter().for_each(|id| self.tell(id, Told::Value));
            }
            Op::HungUp(key) => {
                let until = self.now + Duration::from_secs(2);
                self.enter(|core, _, _| core.hung_up(key, until));
            }
            Op::Empty(key, then) => {
                let Some(at) = self.place(key) else { return };
                let reader = &mut self.readers[at];
                if then != Then::Nothing && !reader.intake.is_up_to_date(&reader.hand.ring()) {
                    reader.intake.wake(&reader.hand.ring());
                }
                let (mut taken, mut replies) = (Vec::new(), Vec::new());
                let result = reader.intake.take(&reader.hand.ring(), &mut taken);
                self.facts.ensure(result.is_ok(), || format!("{result:?}"));
                let result = take_replies(&taken, 1 << 10, &mut replies);
                note(
                    "a reply in the outbox of one that died",
                    !replies.is_empty() && reader.hand.is_dead(),
                );
                self.facts.ensure(result.is_ok(), || format!("{result:?}"));
                let rows = replies.into_iter().map(|told| match told {
                    driver::Told::Row { id, count, .. } => (id, count),
                    driver::Told::One(id, _) => (id, 1),
                });
                let rows: Vec<_> = rows.collect();
                let count = rows.iter().map(|(_, count)| *count as usize).sum();
                reader.intake.took(count);
                if then == Then::Arm || (then == Then::ArmIfAny && count > 0) {
                    self.ops.push(Op::Arm(key, count));
                }
                self.replied(key, rows);
            }
            Op::Arm(key, came) => {
                let (mut replies, _) = self.core.arm(key, came, usize::MAX);
                let in_hand = self.core.workers.get(key).map_or(0, |worker| worker.load);
                if self.plan.moderates {
                    replies = 1 + choose(in_hand);
                }
                if self.has(Flaw::RingsTooLate) {
                    replies = in_hand + 1;
                }
                if let Some(worker) = self.core.workers.get_mut(key) {
                    worker.armed = replies;
                }
                self.moderated.retain(|other| *other != key);
                if replies > 1 {
                    note("a worker that rings late", true);
                    self.moderated.push(key);
                }
                self.ops.push(Op::Tell(key, replies));
            }
            Op::Tell(key, replies) => {
                let Some(at) = self.place(key) else { return };
                let Reader { hand, intake, .. } = &self.readers[at];
                intake.set_ring_at(&hand.ring(), replies);
                self.ops.push(Op::SecondLook(key, replies));
            }
            Op::SecondLook(key, replies) => {
                let Some(at) = self.place(key) else { return };
                let Reader { hand, intake, .. } = &self.readers[at];
                if !self.has(Flaw::NoSecondLook) && !intake.may_sleep(&hand.ring(), replies) {
                    note("a second look that found something", true);
                    self.ops.push(Op::Empty(key, Then::Arm));
                }
            }
            Op::Look(mut keys) => {
                if let Some((key, rearm)) = keys.pop_front() {
                    let then = if rearm { Then::Arm } else { Then::ArmIfAny };
                    self.ops.extend([Op::Look(keys), Op::Empty(key, then)]);
                }
            }
            Op::Exited(key) => self.exited(key),
            Op::Tick(then) => {
                let overdue = self.core.overdue(then, self.now);
                note("a grace that is over", !overdue.is_empty());
                if !overdue.is_empty() && !self.has(Flaw::TimeFirst) {
                    self.ops.push(Op::Tick(Some(self.now)));
                    for key in overdue {
                        self.ops.extend([
                            Op::Empty(key, Then::Nothing),
                            Op::Read(key, Until::OthersWait),
                        ]);
                    }
                    return;
                }
                let unseen = if self.has(Flaw::NoLookAtGrace) {
                    self.core.overdue(None, self.now)
                } else {
                    Vec::new()
                };
                self.enter(|core, now, actions| {
                    unseen.into_iter().for_each(|key| core.condemn(key, now, actions));
                    core.tick(now, actions);
                });
            }
        }
    }

    fn read(&mut self, key: WorkerKey, until: Until) {
        let Some(at) = self.place(key) else { return };
        let reader = &mut self.readers[at];
        if reader.closed {
            return;
        }
        let mut process = reader.hand.process.borrow_mut();
        let came = std::mem::take(&mut process.outgoing);
        if came.is_empty() {
            if process.closed && until != Until::WhatItSent {
                reader.closed = true;
                self.ops.push(Op::HungUp(key));
            }
            return;
        }
        drop(process);
        if until == Until::End {
            self.ops.push(Op::Read(key, until));
        }
        let counts = |came: &ToPool| match came {
            ToPool::Bell => true,
            ToPool::Reply(_) => !self.has(Flaw::ForgetsTheSocket),
        };
        if came.iter().any(counts) && !self.due.contains(&key) {
            self.due.push(key);
        }
        let ids = came.into_iter().filter_map(|came| match came {
            ToPool::Reply(id) => Some((id, 1)),
            ToPool::Bell => None,
        });
        self.replied(key, ids.collect());
    }

    fn replied(&mut self, key: WorkerKey, rows: Vec<(u64, u32)>) {
        if !rows.is_empty() {
            self.ops.push(Op::Replied(key, rows));
        }
    }

    fn exited(&mut self, key: WorkerKey) {
        let Some(at) = self.place(key) else { return };
        if self.has(Flaw::RunAgain) {
            for word in &self.readers[at].hand.words {
                let seen = word.load(Ordering::Relaxed);
                word.store(if seen & 7 == 2 { seen & !7 | 1 } else { seen }, Ordering::Relaxed);
            }
        }
        if self.has(Flaw::AnswersOnly) {
            let flights =
                self.core.workers.get(key).into_iter().flat_map(|worker| &worker.in_flight);
            for Flight { claim, task, items, .. } in flights {
                let known = self
                    .core
                    .tasks
                    .get(*task)
                    .and_then(|task| task.cargo.run.as_ref())
                    .map_or(0, Run::known);
                let hand = &self.readers[at].hand;
                hand.starts[usize::from(claim.slot)]
                    .store(u64::from(*items) << 32 | u64::from(known.max(1)), Ordering::Relaxed);
            }
        }
        self.suspects = self
            .core
            .tasks
            .iter()
            .filter(|(_, task)| task.is_suspect())
            .map(|(_, task)| task.id)
            .collect();
        // Neighbours of one that was killed may run again, if that does no harm (rule 13).
        let worker = self.core.workers.get(key);
        for flight in worker
            .filter(|worker| worker.killed_for.is_some())
            .into_iter()
            .flat_map(|worker| &worker.in_flight)
        {
            let id = flight.claim.id;
            let fact = self.facts.get(id);
            if self.plan.tasks[id as usize].has == Has::Idempotent && fact.begun && !fact.aborted {
                note("a neighbour that runs again", true);
                self.facts.set(id, |fact| fact.begun = false);
            }
        }
        let loss = Arc::clone(&self.loss);
        let flaw = self.plan.flaw;
        self.enter(|core, now, actions| {
            core.exited(key, &loss, now, actions);
            if flaw == Some(Flaw::RestTwice)
                && let Some(rest) = core
                    .queue
                    .front()
                    .and_then(|key| core.tasks.get(*key))
                    .filter(|task| task.cargo.run.is_some())
                    .cloned()
            {
                let again = core.tasks.insert(rest);
                core.queue.push_back(again);
                core.queued += 1;
            }
        });
        self.suspects.clear();
        self.readers.remove(at);
        self.free(key);
    }

    fn free(&mut self, key: WorkerKey) {
        let (place, _) = split(key);
        if !self.core.workers.keys().iter().any(|key| split(*key).0 == place) {
            self.freed.push(place as u8);
        }
    }
}

/// `Core::abort`, broken.
fn stop_badly(
    core: &mut Core<Parcel, Rc<Hand>>,
    key: TaskKey,
    flaw: Flaw,
    now: Instant,
    actions: &mut Vec<Action<Parcel>>,
) {
    let Some(task) = core.tasks.get(key) else { return };
    let (Mode::Sync, Some(worker_key), None) = (task.mode, task.worker, task.stopping) else {
        return core.abort(key, now, actions);
    };
    let Some(worker) = core.workers.get(worker_key).filter(|worker| worker.state == State::Ready)
    else {
        return;
    };
    let Some(flight) = worker.in_flight.iter().find(|flight| flight.task == key) else { return };
    if matches!(worker.look(flight.claim), Progress::Queued | Progress::Done) {
        return core.abort(key, now, actions);
    }
    if let Some(task) = core.tasks.get_mut(key) {
        task.stopping = Some(Stop::Abort);
    }
    if flaw == Flaw::KillFirst {
        core.withdraw(worker_key, State::Doomed);
        actions.push(Action::Kill(worker_key));
    } else {
        core.take_back(worker_key, usize::MAX, actions);
        core.condemn(worker_key, now, actions);
    }
    core.go_on(now, actions);
}

fn stop_code(stop: Option<Stop>) -> u8 {
    match stop {
        None => 0,
        Some(Stop::Abort) => 1,
        Some(Stop::TimedOut(_)) => 2,
        Some(Stop::Close) => 3,
    }
}

/// Place and generation of a key.
fn split(key: WorkerKey) -> (usize, u8) {
    ((key.to_u64() & 0xffff_ffff) as usize, (key.to_u64() >> 32) as u8)
}

// ---- what must be true in every state

impl World {
    fn check(&self) -> Result<(), String> {
        if let Some(wrong) = self.facts.wrong.borrow().clone() {
            return Err(wrong);
        }
        let mut seen = [false; TASKS_MAX];
        for (key, worker) in self.core.workers.iter() {
            let mut held = [false; TASKS_MAX];
            for flight in &worker.in_flight {
                let (id, slot) = (flight.claim.id as usize, flight.claim.slot);
                if std::mem::replace(&mut held[usize::from(slot)], true)
                    || worker.free_slots.contains(&slot)
                {
                    return Err(format!("slot {slot} is held by two"));
                }
                for (id, seen) in seen.iter_mut().enumerate().skip(id).take(flight.items as usize) {
                    if std::mem::replace(seen, true) {
                        return Err(format!("task {id} is in two hands"));
                    }
                    let Some(at) = self.place(key) else { continue };
                    let done = self.readers[at].hand.words().look(flight.claim) == Progress::Done;
                    if done && !self.facts.get(id as u64).committed {
                        return Err(format!(
                            "task {id} is marked as done, and its reply is not there"
                        ));
                    }
                }
            }
        }
        for reader in &self.readers {
            let process = reader.hand.process.borrow();
            let sync = match process.at {
                At::Run(claim) | At::Begin(claim, _) => Some(claim.id),
                At::Item(item) => Some(item.claim().id),
                _ => None,
            };
            let running = process.running.iter().map(|(claim, _)| claim.id);
            if let Some(id) = running.chain(sync).find(|id| self.facts.get(*id).told.is_some()) {
                return Err(format!(
                    "task {id} runs, and was told as {:?}",
                    self.facts.get(id).told
                ));
            }
        }
        Ok(())
    }

    /// Something is undone.
    fn waits(&self) -> bool {
        (0..self.submitted as u64).any(|id| self.facts.get(id).told.is_none())
            || (self.drained && !self.ended)
    }

    // ---- states that are the same

    /// All that the future depends on.
    fn encode(&self, out: &mut Vec<u8>) {
        let key = |key: WorkerKey| {
            let (place, generation) = split(key);
            (place as u8) << 4 | generation
        };
        let time = |at: Instant| {
            ((at + Duration::from_secs(1000)).duration_since(self.began)).as_secs() as u16
        };
        let when = |at: Option<Instant>| at.map_or(0, time).to_le_bytes();
        let claim = |claim: Claim| (claim.slot as u8) << 4 | claim.id as u8;
        let core = &self.core;

        out.extend([
            u8::from(self.facts.wrong.borrow().is_some()),
            core.phase as u8,
            self.submitted as u8,
            self.crashes,
            self.aborts,
            self.jumps,
        ]);
        out.extend([u8::from(self.turning)
            | u8::from(self.rearm) << 1
            | u8::from(self.woken) << 4
            | u8::from(self.drained) << 2
            | u8::from(self.ended) << 3]);
        out.extend(time(self.now).to_le_bytes());
        for id in 0..self.submitted as u64 {
            let fact = self.facts.get(id);
            let task = fact.key.and_then(|key| core.tasks.get(key));
            let task = task.map_or(0xff, |task| {
                task.moves << 1
                    | u8::from(task.worker.is_some())
                    | stop_code(task.stopping) << 4
                    | task.attempt << 6
            });
            out.push(match fact.told {
                Some(_) => 0xff, // how does not matter any more
                None => {
                    u8::from(fact.begun)
                        | u8::from(fact.committed) << 1
                        | u8::from(fact.aborted) << 2
                        | u8::from(fact.late) << 3
                        | u8::from(fact.over) << 4
                        | u8::from(fact.again) << 5
                }
            });
            out.push(task);
        }
        for (_, task) in core.tasks.iter().filter(|(_, task)| task.cargo.run.is_some()) {
            out.extend([
                0xef,
                task.id as u8,
                task.items() as u8,
                task.moves << 4 | stop_code(task.stopping),
            ]);
        }
        // Keys whose tasks have gone are passed over.
        out.extend(core.queue.iter().filter_map(|key| core.id_of(*key)).map(|id| id as u8));
        out.push(0xf0);
        out.extend(core.idle.iter().map(|at| key(*at)));
        out.push(0xf1);
        out.extend(
            core.failure
                .as_ref()
                .map_or(0, |failure| {
                    1 + failure.earlier as u8 * 2 + u8::from(failure.retry.is_some())
                })
                .to_le_bytes(),
        );
        out.extend(self.stillborn.iter().map(|at| key(*at)));
        out.push(0xf1);
        out.extend(self.freed.iter().chain(&self.generations[..self.plan.workers]));
        for (at, worker) in core.workers.iter() {
            out.extend([0xf2, key(at)]);
            let hand_start =
                |claim| worker.memory.as_ref().map_or(0, |hand| hand.words().started_at(claim));
            out.push(match worker.state {
                State::Starting { .. } => 0,
                State::Ready => 1,
                State::Retiring => 2,
                State::Doomed => 3,
                State::Spare => 4,
                State::Departing => 5,
            });
            out.extend([
                worker.mode as u8 | u8::from(worker.used) << 1 | u8::from(worker.alone) << 2,
                worker.slots_used as u8,
                worker.armed as u8,
            ]);
            out.extend(time(worker.busy_since).to_le_bytes());
            out.extend(when(worker.end_by));
            out.extend(when(worker.fruitless));
            out.extend(when(worker.look_at));
            out.push(worker.killed_for.map_or(0xfe, |task| self.number(task)));
            out.push(worker.listed.map_or(0xff, |(mode, load)| (mode as u8) << 4 | load as u8));
            for flight in &worker.in_flight {
                out.extend([claim(flight.claim), self.number(flight.task)]);
                out.extend(when(flight.begun));
                out.push(u8::from(flight.done));
                if self.plan.runs.is_empty() {
                    out.push((hand_start(flight.claim) / JUMP.as_nanos() as u64) as u8);
                } else {
                    out.extend([flight.items as u8, flight.left as u8]);
                    let run = core.tasks.get(flight.task).and_then(|task| task.cargo.run.as_ref());
                    out.extend(
                        run.map_or(0, |run| run.unanswered().map(|item| 1_u8 << item).sum::<u8>())
                            .to_le_bytes(),
                    );
                }
            }
            out.push(0xf3);
            out.extend(worker.free_slots.iter().map(|slot| *slot as u8));
            out.push(0xf4);
            for (by, task) in &worker.asked {
                out.extend(time(*by).to_le_bytes());
                out.push(core.id_of(*task).map_or(0xff, |id| id as u8));
            }
        }
        for reader in &self.readers {
            let hand = &reader.hand;
            let process = hand.process.borrow();
            out.extend([
                0xf5,
                key(reader.key),
                u8::from(reader.closed) | u8::from(reader.broken_pipe) << 1,
            ]);
            let in_flight = core.workers.get(reader.key).map(|worker| &worker.in_flight);
            for (slot, word) in hand.words.iter().take(self.plan.tasks.len()).enumerate() {
                // Only a word that somebody may still look at.
                let word = word.load(Ordering::Relaxed);
                let counts = |claim: Claim| usize::from(claim.slot) == slot;
                let counts = in_flight
                    .is_some_and(|flights| flights.iter().any(|flight| counts(flight.claim)))
                    || matches!(process.at, At::Finish(claim, _) | At::Begin(claim, _) if counts(claim))
                    || process
                        .inbox
                        .iter()
                        .any(|frame| matches!(frame, ToWorker::Call(claim, _) if counts(*claim)))
                    || process.running.iter().any(|(claim, _)| counts(*claim))
                    || matches!(process.at, At::Run(claim) | At::Commit(claim, _) if counts(claim))
                    || process.at.item().is_some_and(|item| counts(item.run))
                    || process
                        .inbox
                        .iter()
                        .any(|frame| matches!(frame, ToWorker::Run(run, _) if counts(*run)));
                out.push(if counts { word as u8 } else { 0 });
                if counts && !self.plan.runs.is_empty() {
                    let start = hand.starts[slot].load(Ordering::Relaxed);
                    out.extend([(start >> 32) as u8, start as u8]);
                }
            }
            let (head, tail) =
                (hand.head.load(Ordering::Relaxed), hand.tail.load(Ordering::Relaxed));
            for at in (head..tail).step_by(8) {
                out.extend(
                    hand.ring[at as usize / 8 % RING_WORDS].load(Ordering::Relaxed).to_le_bytes(),
                );
            }
            // How far off the next ring is, and how many replies lie there.
            let (replies, ring_at) =
                (hand.replies.load(Ordering::Relaxed), hand.ring_at.load(Ordering::Relaxed));
            let taken = reader.intake.taken();
            let ring_at = if ring_at == u64::MAX { 0xff } else { (ring_at - taken) as u8 };
            out.extend([0xf6, ring_at, (replies - taken) as u8]);
            let flags = [process.unsent, process.edge, process.closed, process.kill]
                .iter()
                .fold(0, |flags, flag| flags << 1 | u8::from(*flag));
            out.push(flags);
            match process.at {
                At::Idle => out.push(1),
                At::Begin(at, mode) => out.extend([2, claim(at), mode as u8]),
                At::Run(at) => out.extend([3, claim(at)]),
                At::Commit(at, bell) => out.extend([4, claim(at), u8::from(bell)]),
                At::Finish(at, boxed) => out.extend([5, claim(at), boxed as u8]),
                At::Look => out.push(6),
                At::Ring => out.push(7),
                At::Dead => out.push(8),
                At::Item(item) => out.extend([9, claim(item.run), item.items, item.at]),
                At::LookInRun(item) => out.extend([10, claim(item.run), item.items, item.at]),
                At::RingInRun(item) => out.extend([11, claim(item.run), item.items, item.at]),
                At::Next(item) => out.extend([12, claim(item.run), item.items, item.at]),
                At::Counted(item, limit) => {
                    out.extend([13, claim(item.run), item.items, item.at, limit])
                }
            }
            for (at, dropped) in &process.running {
                out.extend([claim(*at), u8::from(*dropped)]);
            }
            out.push(0xf7);
            for frame in &process.inbox {
                match frame {
                    ToWorker::Call(at, mode) => out.extend([*mode as u8, claim(*at)]),
                    ToWorker::Run(at, items) => out.extend([4 + items, claim(*at)]),
                    ToWorker::Cancel(id) => out.extend([2, *id as u8]),
                    ToWorker::End => out.push(3),
                }
            }
            out.push(0xf8);
            out.extend(process.outgoing.iter().map(|sent| match sent {
                ToPool::Reply(id) => *id as u8,
                ToPool::Bell => 0x80,
            }));
        }
        out.push(0xf9);
        out.extend(self.due.iter().map(|at| key(*at)));
        out.push(0xf9);
        out.extend(self.moderated.iter().map(|at| key(*at)));
        for op in &self.ops {
            out.push(0xfa);
            match op {
                Op::Read(at, until) => out.extend([0, key(*at), *until as u8]),
                Op::Replied(at, rows) => {
                    out.extend([1, key(*at)]);
                    out.extend(rows.iter().flat_map(|(id, count)| [*id as u8, *count as u8]));
                }
                Op::HungUp(at) => out.extend([2, key(*at)]),
                Op::Empty(at, then) => out.extend([3, key(*at), *then as u8]),
                Op::Arm(at, came) => out.extend([4, key(*at), *came as u8]),
                Op::Tell(at, replies) => out.extend([9, key(*at), *replies as u8]),
                Op::SecondLook(at, replies) => out.extend([5, key(*at), *replies as u8]),
                Op::Look(rest) => {
                    out.push(6);
                    out.extend(rest.iter().flat_map(|(at, rearm)| [key(*at), u8::from(*rearm)]));
                }
                Op::Exited(at) => out.extend([7, key(*at)]),
                Op::Tick(then) => {
                    out.push(8);
                    out.extend(when(*then));
                }
            }
        }
    }

    /// Which task a key is, while it is there.
    fn number(&self, key: TaskKey) -> u8 {
        self.core.id_of(key).map_or(0xff, |id| id as u8)
    }

    fn digest(&self, scratch: &mut Vec<u8>) -> u128 {
        scratch.clear();
        self.encode(scratch);
        let half = |seed: u8| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u8(seed);
            hasher.write(scratch);
            u128::from(hasher.finish())
        };
        half(1) << 64 | half(2)
    }
}

// ---- the search

/// How a state was reached: from which one, by which choices.
struct Way {
    from: u32,
    choices: Box<[u8]>,
}

/// Goes through all states. The number of them, or what is wrong and the shortest way there.
fn search(plan: Plan) -> Result<usize, String> {
    let first = World::new(plan.clone());
    let (mut met, mut ways, mut scratch) = (HashSet::new(), Vec::new(), Vec::new());
    met.insert(first.digest(&mut scratch));
    ways.push(Way { from: 0, choices: Box::default() });
    let mut todo = VecDeque::from([(0, first)]);
    while let Some((number, world)) = todo.pop_front() {
        let steps = world.steps();
        if let Err(wrong) = world.check() {
            return Err(format!(
                "{wrong}, after {} states\n{}",
                ways.len(),
                story(plan, &ways, number)
            ));
        }
        if world.waits() && steps.iter().all(|step| step.is_optional()) {
            let wrong = "something waits for ever";
            return Err(format!(
                "{wrong}, after {} states\n{}",
                ways.len(),
                story(plan, &ways, number)
            ));
        }
        let next = Cell::new(None);
        each_way(
            || {
                if steps.is_empty() {
                    return false;
                }
                let step = steps[choose(steps.len())];
                let mut after = world.clone();
                after.step(step);
                next.set(Some(after));
                true
            },
            |choices| {
                let Some(after) = next.take() else { return };
                if met.insert(after.digest(&mut scratch)) {
                    todo.push_back((ways.len() as u32, after));
                    ways.push(Way { from: number, choices: choices.into() });
                }
            },
        );
    }
    Ok(ways.len())
}

/// The way to a state, in words.
fn story(plan: Plan, ways: &[Way], mut number: u32) -> String {
    let mut numbers = Vec::new();
    while number > 0 {
        numbers.push(number as usize);
        number = ways[number as usize].from;
    }
    CHOICES.with_borrow_mut(|choices| choices.story = Some(Vec::new()));
    let mut world = World::new(plan);
    for number in numbers.into_iter().rev() {
        play(&ways[number].choices);
        let steps = world.steps();
        let step = steps[choose(steps.len())];
        world.step(step);
    }
    CHOICES.with_borrow_mut(|choices| choices.story.take()).unwrap_or_default().join("\n")
}

/// All is well in every state; and in some of them this happened.
fn clean(plan: Plan, comes_up: &[&str]) {
    CHOICES.with_borrow_mut(|choices| choices.seen.clear());
    let started = Instant::now();
    match search(plan.clone()) {
        Ok(states) => eprintln!("{states} states in {:?}: {plan:?}", started.elapsed()),
        Err(wrong) => panic!("{wrong}\n{plan:?}"),
    }
    CHOICES.with_borrow(|choices| {
        for what in comes_up {
            assert!(choices.seen.contains(what), "{what} did not come up, but {:?}", choices.seen);
        }
    });
}

/// What is broken is found, and by what is wrong about it.
fn found(flaw: Flaw, sign: &str, plan: Plan) {
    clean(plan.clone(), &[]);
    match search(Plan { flaw: Some(flaw), ..plan }) {
        Ok(states) => panic!("{flaw:?} was not found in {states} states"),
        Err(wrong) => assert!(wrong.contains(sign), "{flaw:?} was found otherwise: {wrong}"),
    }
}

const US: Duration = Duration::from_micros(1);

#[test]
fn one_worker_and_its_successors() {
    let plan = Plan { crashes: 2, later: true, held: true, ..Plan::new(1, &[SYNC, SYNC, SYNC]) };
    clean(
        plan,
        &[
            "lost",
            "sent again",
            "a broken pipe",
            "a reply in the outbox of one that died",
            "a second look that found something",
        ],
    );
    let plan = Plan {
        crashes: 1,
        moderates: true,
        ..Plan::new(1, &[SYNC_ANY, SYNC_ANY, SYNC_ANY, SYNC_ANY])
    };
    clean(plan, &["lost", "a worker that rings late"]);
}

#[test]
fn deaths_with_nothing_begun() {
    clean(Plan { crashes: 4, ..Plan::new(1, &[SYNC, SYNC]) }, &["lost without having begun"]);
    clean(Plan { crashes: 3, ..Plan::new(1, &[ASYNC, ASYNC]) }, &["lost without having begun"]);
}

#[test]
fn slots_that_are_used_again_at_once() {
    let plan = Plan { later: true, aborts: 2, ..Plan::new(1, &[SYNC, SYNC, SYNC]) };
    clean(
        plan,
        &[
            "done, but the slot is another task's",
            "a frame whose slot is another task's",
            "a frame of a task that was taken back",
        ],
    );
}

#[test]
#[ignore = "long: the gate runs it, optimised"]
fn tasks_are_stopped() {
    let plan = Plan { crashes: 1, aborts: 1, ..Plan::new(1, &[SYNC_ANY, SYNC_ANY, SYNC]) };
    clean(
        plan,
        &[
            "a kill that ends its task",
            "a kill that comes when nothing runs",
            "a value, though it was to be stopped",
        ],
    );
    let plan = Plan { aborts: 1, jumps: 1, ..Plan::new(1, &[SYNC_ANY, SYNC_ANY, SYNC]) };
    clean(plan, &["a grace that is over", "a value, though it was to be stopped"]);
}

#[test]
fn async_neighbours() {
    let plan = Plan { crashes: 1, aborts: 1, ..Plan::new(1, &[ASYNC, ASYNC_ANY]) };
    clean(plan, &["an async task is dropped", "lost"]);
    let plan = Plan { aborts: 1, jumps: 1, ..Plan::new(1, &[ASYNC, ASYNC_ANY]) };
    clean(plan, &["a grace that is over", "lost"]);
    clean(Plan { crashes: 1, aborts: 1, later: true, ..Plan::new(1, &[SYNC, ASYNC]) }, &["lost"]);
}

#[test]
#[ignore = "long: the gate runs it, optimised"]
fn two_workers() {
    clean(
        Plan { crashes: 1, service: 100 * US, ..Plan::new(2, &[SYNC, SYNC, SYNC]) },
        &["sent again", "lost"],
    );
    clean(
        Plan { aborts: 1, service: 100 * US, ..Plan::new(2, &[SYNC, SYNC, SYNC]) },
        &["sent again", "a kill that ends its task"],
    );
    clean(Plan { crashes: 1, aborts: 1, ..Plan::new(2, &[SYNC, SYNC]) }, &["sent again"]);
}

#[test]
fn a_pool_that_drains() {
    clean(
        Plan { crashes: 1, aborts: 1, later: true, drain: true, ..Plan::new(1, &[SYNC, ASYNC]) },
        &["refused", "lost"],
    );
    clean(Plan { crashes: 1, drain: true, ..Plan::new(2, &[SYNC, SYNC]) }, &["lost"]);
}

#[test]
#[ignore = "long: the gate runs it, optimised"]
fn tasks_with_options() {
    let one = |kinds: &[Kind]| Plan::new(1, kinds);
    clean(Plan { crashes: 2, ..one(&[SYNC.with(Has::Retry), SYNC]) }, &["tried again", "lost"]);
    clean(
        Plan { crashes: 1, aborts: 1, jumps: 1, ..one(&[SYNC.with(Has::Grace), SYNC]) },
        &["a grace that is over", "a kill that ends its task"],
    );
    clean(
        Plan { jumps: 1, aborts: 1, ..one(&[SYNC.with(Has::Limit), SYNC.with(Has::Limit)]) },
        &["over its limit", "a kill that ends its task"],
    );
    clean(
        Plan { jumps: 2, ..one(&[ASYNC.with(Has::Limit), ASYNC.with(Has::Idempotent)]) },
        &["a grace that is over", "a neighbour that runs again"],
    );
    clean(
        Plan { aborts: 1, jumps: 2, ..one(&[ASYNC.with(Has::Grace), ASYNC]) },
        &["an async task is asked", "an async task is dropped", "a grace that is over"],
    );
    let two = Plan::new(2, &[SYNC.with(Has::Retry), SYNC.with(Has::Retry)]);
    clean(Plan { crashes: 2, service: 100 * US, ..two }, &["tried again"]);
}

#[test]
#[ignore = "long: the gate runs it, optimised"]
fn runs() {
    let run =
        |workers, items: &[Kind]| Plan { runs: vec![items.len()], ..Plan::new(workers, items) };
    clean(
        Plan { crashes: 2, ..run(1, &[SYNC, SYNC_ANY, SYNC]) },
        &["the rest of a run", "lost", "a reply in the outbox of one that died"],
    );
    clean(
        Plan { crashes: 4, ..run(1, &[SYNC, SYNC]) },
        &["lost without having begun", "the rest of a run"],
    );
    clean(
        Plan { aborts: 1, crashes: 1, ..run(1, &[SYNC, SYNC_ANY, SYNC]) },
        &["a kill that ends its task", "a run of which nothing was left"],
    );
    // Those who are idle take what has not begun.
    let shared = Plan { service: 100 * US, ..run(2, &[SYNC, SYNC, SYNC]) };
    clean(
        Plan { crashes: 1, ..shared.clone() },
        &["a run that was cut", "the rest of a run", "lost"],
    );
    clean(Plan { aborts: 1, ..shared }, &["a run that was cut", "a kill that ends its task"]);
    // A slot that is used again while the frame of a run that stood in it is on its way.
    let two = Plan { runs: vec![2, 2], later: true, ..Plan::new(1, &[SYNC; 4]) };
    clean(
        Plan { aborts: 1, ..two.clone() },
        &["a frame of a run that was taken back", "a run that was cut"],
    );
    clean(Plan { crashes: 1, drain: true, ..two }, &["the rest of a run", "refused"]);
}

#[test]
fn items_that_are_counted_in_two_steps_are_found() {
    let plan = Plan { runs: vec![3], service: 100 * US, ..Plan::new(2, &[SYNC; 3]) };
    found(Flaw::CountsLater, "twice", plan);
}

#[test]
fn a_rest_that_is_told_by_the_answers_is_found() {
    found(
        Flaw::AnswersOnly,
        "runs twice",
        Plan { crashes: 1, runs: vec![2], ..Plan::new(1, &[SYNC; 2]) },
    );
}

#[test]
fn a_rest_that_is_handed_in_twice_is_found() {
    found(
        Flaw::RestTwice,
        "two hands",
        Plan { crashes: 1, runs: vec![2], ..Plan::new(1, &[SYNC; 2]) },
    );
}

/// Minutes in an optimised build, and some gigabytes.
#[test]
#[ignore = "takes minutes"]
fn long_search() {
    let (retry, grace, limit) =
        (SYNC.with(Has::Retry), SYNC.with(Has::Grace), SYNC.with(Has::Limit));
    clean(
        Plan { crashes: 1, aborts: 1, service: 100 * US, ..Plan::new(2, &[SYNC, SYNC, SYNC]) },
        &[],
    );
    clean(
        Plan {
            crashes: 2,
            aborts: 1,
            jumps: 1,
            later: true,
            drain: true,
            ..Plan::new(1, &[SYNC, ASYNC, SYNC])
        },
        &[],
    );
    clean(
        Plan {
            crashes: 1,
            aborts: 1,
            jumps: 2,
            later: true,
            ..Plan::new(1, &[retry, grace, limit])
        },
        &[],
    );
    clean(
        Plan {
            crashes: 1,
            aborts: 1,
            jumps: 1,
            moderates: true,
            held: true,
            ..Plan::new(1, &[ASYNC_ANY, ASYNC, ASYNC])
        },
        &[],
    );
    clean(
        Plan {
            crashes: 1,
            aborts: 2,
            jumps: 1,
            moderates: true,
            later: true,
            ..Plan::new(1, &[SYNC_ANY, SYNC_ANY, SYNC])
        },
        &[],
    );
    clean(
        Plan {
            crashes: 1,
            aborts: 1,
            jumps: 1,
            service: 100 * US,
            ..Plan::new(2, &[SYNC, SYNC, SYNC])
        },
        &[],
    );
}

#[test]
fn a_kill_before_the_rest_is_taken_back_is_found() {
    found(
        Flaw::KillFirst,
        "which nobody wanted to stop",
        Plan { aborts: 1, ..Plan::new(1, &[SYNC, SYNC]) },
    );
}

#[test]
fn a_kill_without_another_look_is_found() {
    found(
        Flaw::NoLook,
        "which nobody wanted to stop",
        Plan { aborts: 1, ..Plan::new(1, &[SYNC, SYNC]) },
    );
}

#[test]
fn words_judged_before_the_replies_are_taken_in_are_found() {
    found(Flaw::WordsFirst, "is told as Lost", Plan { crashes: 1, ..Plan::new(1, &[SYNC]) });
}

#[test]
fn sleep_without_a_second_look_is_found() {
    found(Flaw::NoSecondLook, "waits for ever", Plan::new(1, &[SYNC, SYNC]));
}

#[test]
fn a_sleep_that_nobody_is_told_of_is_found() {
    found(Flaw::SaysNothing, "waits for ever", Plan::new(1, &[SYNC]));
}

#[test]
fn doorbells_that_are_rung_late() {
    let plan =
        Plan { crashes: 1, moderates: true, later: true, ..Plan::new(1, &[SYNC, SYNC_ANY, SYNC]) };
    clean(plan, &["a worker that rings late", "a second look that found something"]);
    let plan =
        Plan { aborts: 1, moderates: true, later: true, ..Plan::new(1, &[SYNC, SYNC, SYNC]) };
    clean(plan, &["a worker that rings late", "a doorbell that is armed anew"]);
    let plan = Plan { moderates: true, ..Plan::new(1, &[ASYNC, ASYNC_ANY, ASYNC]) };
    clean(plan, &["a worker that rings late"]);
    let plan = Plan { moderates: true, aborts: 1, runs: vec![3], ..Plan::new(1, &[SYNC; 4]) };
    clean(
        plan,
        &[
            "a worker that rings late",
            "a run that was cut",
            "a row of replies",
            "a row of replies that ends before the others do",
        ],
    );
}

#[test]
fn a_doorbell_that_is_armed_for_more_than_is_in_hand_is_found() {
    found(Flaw::RingsTooLate, "waits for ever", Plan::new(1, &[SYNC, SYNC]));
}

#[test]
fn a_late_doorbell_without_a_second_look_is_found() {
    let plan = Plan { moderates: true, ..Plan::new(1, &[SYNC, SYNC, SYNC]) };
    found(Flaw::NoSecondLook, "waits for ever", plan);
}

#[test]
fn what_is_taken_back_without_arming_the_doorbell_anew_is_found() {
    let plan = Plan { aborts: 1, moderates: true, ..Plan::new(1, &[SYNC, SYNC, SYNC]) };
    found(Flaw::TakesBackSilently, "waits for ever", plan);
}

#[test]
fn a_reply_by_the_socket_without_arming_the_doorbell_anew_is_found() {
    let plan = Plan { moderates: true, ..Plan::new(1, &[SYNC, SYNC_ANY, SYNC]) };
    found(Flaw::ForgetsTheSocket, "waits for ever", plan);
}

#[test]
fn a_bell_that_is_thought_of_too_early_is_found() {
    let plan = Plan { moderates: true, ..Plan::new(1, &[SYNC, SYNC, SYNC]) };
    found(Flaw::RingsEarly, "waits for ever", plan);
}

#[test]
fn a_plain_store_of_done_is_found() {
    found(
        Flaw::PlainFinish,
        "waits for ever",
        Plan { later: true, ..Plan::new(1, &[SYNC, SYNC, SYNC]) },
    );
    found(
        Flaw::PlainFinish,
        "waits for ever",
        Plan { later: true, ..Plan::new(1, &[SYNC_ANY, SYNC]) },
    );
}

#[test]
fn done_before_the_reply_is_there_is_found() {
    found(Flaw::DoneFirst, "its reply is not there", Plan::new(1, &[SYNC]));
}

#[test]
fn a_beginning_in_two_steps_is_found() {
    found(Flaw::BeginsLater, "and was told as", Plan { aborts: 1, ..Plan::new(1, &[SYNC, SYNC]) });
}

#[test]
fn a_frame_whose_slot_is_another_tasks_is_found() {
    found(
        Flaw::AnyWord,
        "begins, and was told as",
        Plan { aborts: 1, later: true, ..Plan::new(1, &[SYNC, SYNC]) },
    );
}

#[test]
fn what_had_begun_and_runs_again_is_found() {
    found(Flaw::RunAgain, "runs twice", Plan { crashes: 1, ..Plan::new(1, &[SYNC]) });
}

#[test]
fn a_kill_at_the_end_of_a_grace_without_another_look_is_found() {
    let plan = Plan { aborts: 1, jumps: 1, ..Plan::new(1, &[SYNC.with(Has::Grace), SYNC]) };
    found(Flaw::NoLookAtGrace, "which nobody wanted to stop", plan);
}

#[test]
fn a_grace_that_is_over_before_what_came_is_read_is_found() {
    found(
        Flaw::TimeFirst,
        "which nobody wanted to stop",
        Plan { aborts: 1, jumps: 1, ..Plan::new(1, &[SYNC, SYNC]) },
    );
    found(
        Flaw::TimeFirst,
        "though none is late",
        Plan { aborts: 1, jumps: 2, ..Plan::new(1, &[ASYNC, ASYNC]) },
    );
}
