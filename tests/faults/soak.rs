//! A soak: random tasks, and whatever can happen to them, in pools and runtimes that come and go.
//!
//! It goes on for `PROCPOOL_SOAK_SECONDS` (10 by default; with as many or more, until all that may
//! happen has), in rounds. A round has one or two pools, driven by a runtime of this thread, by one
//! with threads of its own (which may end before the pool does), or by none. Tasks are handed in,
//! aborted, forgotten, cancelled by tokens, given limits and retries; their workers are killed,
//! stopped and continued from outside; at last each pool ends in one of the ways there are. A model
//! knows of each task how it may end, given what it is and what was done to it; each ends once,
//! no task runs more often than it may, and after each round nothing is left in this process.
//!
//! What happens in a round follows from its seed, which a failure prints, as far as the machine
//! allows: `PROCPOOL_SOAK_SEED=… cargo test --test faults soak:: -- --nocapture` begins with that round. How
//! long it has run, and what it has found, stands in `docs/internals/testing.md`.

#![cfg(feature = "sync")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "signals by pidfd, so that they reach nobody else")]

use crate::support::{
    Dice, FUSE, children, descriptors, lines, note, own_dir, own_process, pid, state, threads,
};
use futures::StreamExt;
use nix::libc;
use nix::sys::signal::{Signal, raise};
use procpool::sync::Mutex;
use procpool::{
    JoinHandle, Limits, Manager, Pool, ShutdownReport, Stdio, TaskError, TaskErrorKind, TaskId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder as RuntimeBuilder, Runtime};
use tokio_util::sync::CancellationToken;

// ---- tasks

/// How a process ends itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Death {
    Exit,
    Abort,
    Kill,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum What {
    Echo,
    Sleep(Duration),
    Fail,
    Panic,
    Die(Death),
    /// Never ends; an async one waits.
    Hang,
    /// Never ends, and an async one does not even wait.
    Spin,
    /// Dies, or panics, in its first tries.
    Flaky(u32, Option<Death>),
}

#[derive(Clone, Serialize, Deserialize)]
struct Order {
    id: u64,
    what: What,
    log: PathBuf,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} with {} bytes", self.id, self.what, self.bytes.len())
    }
}

type Answer = Result<Order, String>;

fn die(death: Death) {
    match death {
        Death::Exit => std::process::exit(7),
        Death::Abort => std::process::abort(),
        Death::Kill => raise(Signal::SIGKILL).unwrap(),
    }
}

fn work(order: Order) -> Answer {
    note(&order.log, order.id);
    match order.what {
        What::Sleep(time) => std::thread::sleep(time),
        What::Hang => loop {
            std::thread::park();
        },
        _ => at_once(&order)?,
    }
    Ok(order)
}

async fn work_async(order: Order) -> Answer {
    note(&order.log, order.id);
    match order.what {
        What::Sleep(time) => tokio::time::sleep(time).await,
        What::Hang => std::future::pending().await,
        _ => {
            let attempt = procpool::attempt();
            tokio::task::yield_now().await;
            assert!(attempt.is_some());
            at_once(&order)?;
        }
    }
    Ok(order)
}

/// What sync and async tasks do alike.
fn at_once(order: &Order) -> Result<(), String> {
    match order.what {
        What::Fail => return Err(format!("{}", order.id)),
        What::Panic => panic!("{}", order.id),
        What::Die(death) => die(death),
        What::Spin => loop {
            std::hint::spin_loop();
        },
        What::Flaky(tries, death) if procpool::attempt().unwrap() <= tries => match death {
            Some(death) => die(death),
            None => panic!("{}", order.id),
        },
        _ => {}
    }
    Ok(())
}

fn add(total: Mutex<u64>, order: Order) -> Answer {
    let mut total = total.blocking_lock().map_err(|e| e.to_string())?;
    *total += 1;
    if !matches!(order.what, What::Sleep(_)) {
        drop(total); // else it has the lock for a while, in which it may be killed, or stopped
    }
    work(order)
}

// ---- what is known of a task

#[derive(Debug)]
struct Asked {
    order: Order,
    is_async: bool,
    adds: bool,
    retries: u32,
    retries_panics: bool,
    idempotent: bool,
    /// Somebody has wanted it to stop.
    cancelled: bool,
    limited: bool,
    /// It was handed in when its pool had been closed.
    late: bool,
}

#[derive(Debug)]
struct Open {
    handle: JoinHandle<Answer>,
    asked: Asked,
}

/// How a pool ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Shutdown,
    Within(Duration),
    Kill,
    Drop,
    /// Two of them, of which the second overtakes.
    ShutdownThenKill,
    ShutdownThenDrop,
}

/// One pool, and what is known of it.
struct World {
    pool: Option<Pool>,
    /// Where it was built, if that is a runtime of its own.
    runtime: Option<Runtime>,
    tag: String,
    log: PathBuf,
    total: Mutex<u64>,
    queue_limit: bool,
    open: Vec<Open>,
    token: CancellationToken,
    /// Signals that have ended a worker, at most.
    kills: usize,
    /// Sync tasks that were told that their worker died, and did not do it themselves.
    victims: usize,
    /// Something was done for which a worker with async tasks may have been killed.
    async_harm: bool,
    /// Its workers that stand still, until then.
    stopped: Vec<(Instant, u32)>,
    /// A limit was over, or it was killed.
    closed: bool,
    /// A task was forgotten that may never end.
    endless: bool,
    /// All its tasks end by themselves.
    calm: bool,
    /// How often a task may have run, by its number, and whether it must have.
    runs: HashMap<u64, (u32, bool)>,
    added: u64,
    /// Tasks that were told that the pool was closed, by their numbers in the pool.
    told_closed: HashSet<TaskId>,
    told_else: HashSet<TaskId>,
}

/// What has come up in all rounds.
type Census = BTreeMap<String, u64>;

fn count(census: &mut Census, what: impl fmt::Display) {
    *census.entry(what.to_string()).or_default() += 1;
}

/// What must come up, or a soak has shown nothing: what is done to tasks and pools, and what tasks are told.
#[rustfmt::skip]
const ALL: [&str; 28] = [
    "task", "task, async", "forgotten", "dropped", "aborted", "queue dropped", "cancelled by token", "map, dropped",
    "killed by SIGKILL", "killed by SIGQUIT", "killed by SIGSEGV", "killed by SIGABRT", "stopped", "resized", "recycled", "runtime gone",
    "end, Shutdown", "end, Within", "end, Kill", "end, Drop", "end, ShutdownThenKill", "end, ShutdownThenDrop",
    "done", "Panicked", "WorkerDied", "Cancelled", "TimedOut", "PoolClosed",
];

/// What has not come up yet.
fn missing(census: &Census) -> Vec<&'static str> {
    ALL.into_iter().filter(|what| !census.contains_key(*what)).collect()
}

impl World {
    fn processes(&self) -> Vec<u32> {
        let needle = format!("PROCPOOL_SOAK_POOL={}\0", self.tag);
        let is_ours = |child: &u32| {
            let environment = std::fs::read(format!("/proc/{child}/environ"));
            environment
                .is_ok_and(|all| all.windows(needle.len()).any(|part| part == needle.as_bytes()))
        };
        children(pid()).into_iter().filter(is_ours).collect()
    }

    /// Signals a worker, and nobody else, whatever becomes of its number. `false`: it has gone.
    fn signal(&self, worker: u32, signal: Signal) -> bool {
        // SAFETY: makes a descriptor, for us alone.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, worker, 0) };
        if pidfd < 0 {
            return false;
        }
        // SAFETY: as above.
        let pidfd = unsafe { OwnedFd::from_raw_fd(i32::try_from(pidfd).unwrap()) };
        // Only now that we have hold of it: else it might be another by then.
        // SAFETY: the call reads no memory.
        self.processes().contains(&worker)
            && unsafe {
                libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as i32, 0, 0)
                    == 0
            }
    }

    fn submit(&mut self, dice: &mut Dice, id: u64, census: &mut Census) {
        let Some(pool) = &self.pool else { return };
        let what = match dice.below(40) {
            0..=11 => What::Echo,
            12..=19 => What::Sleep(dice.millis(15)),
            20..=22 => What::Fail,
            23..=25 => What::Panic,
            26 => What::Die(Death::Exit),
            27 => What::Die(Death::Abort),
            28 => What::Die(Death::Kill),
            29..=31 if self.calm => What::Echo,
            29..=30 => What::Hang,
            31 => What::Spin,
            32..=35 => What::Flaky(
                1 + dice.below(3) as u32,
                Some(if dice.one_in(2) { Death::Exit } else { Death::Kill }),
            ),
            36..=37 => What::Flaky(1 + dice.below(2) as u32, None),
            _ => What::Echo,
        };
        let len = match dice.below(30) {
            0 => dice.below(3 << 20),
            1..=3 => dice.below(200_000),
            _ => dice.below(50),
        };
        let order = Order { id, what, log: self.log.clone(), bytes: vec![id as u8; len as usize] };
        let adds = dice.one_in(8);
        let is_async = !adds && dice.one_in(2);
        let endless = matches!(order.what, What::Hang | What::Spin);
        let mut asked = Asked {
            is_async,
            adds,
            retries: if dice.one_in(3) { dice.below(4) as u32 } else { 0 },
            retries_panics: dice.one_in(2),
            idempotent: dice.one_in(4),
            cancelled: false,
            limited: false,
            late: self.closed,
            order: order.clone(),
        };
        count(census, if is_async { "task, async" } else { "task" });
        macro_rules! call {
            ($function:expr, $args:expr) => {{
                let mut call =
                    pool.task($function).retries(asked.retries).retry_panics(asked.retries_panics);
                if is_async {
                    call = call.grace(Duration::from_millis(20));
                }
                if asked.idempotent {
                    call = call.idempotent(true);
                }
                if dice.one_in(10) {
                    call = call.isolated(true);
                }
                if asked.retries > 0 && dice.one_in(2) {
                    call = call.backoff(dice.millis(5), Duration::from_millis(10));
                }
                if dice.one_in(12) || (endless && !dice.one_in(4)) {
                    (call, asked.limited) =
                        (call.timeout(Duration::from_millis(2) + dice.millis(40)), true);
                }
                if dice.one_in(20) {
                    (call, asked.limited) = (call.deadline(dice.millis(100)), true);
                }
                if dice.one_in(20) {
                    (call, asked.cancelled) = (call.cancel_on(&self.token), true);
                }
                call.spawn($args)
            }};
        }
        // Of an object that is named, a reference goes with the call, and comes back however it
        // ends.
        let handle = match (adds, is_async) {
            (true, _) => call!(add, (self.total.clone(), order)),
            (_, true) => call!(work_async, order),
            _ => call!(work, order),
        };
        self.async_harm |= is_async
            && (asked.limited
                || asked.cancelled
                || !matches!(asked.order.what, What::Echo | What::Sleep(_)));
        self.runs.insert(id, (if asked.idempotent { u32::MAX } else { asked.retries + 1 }, false));
        match dice.below(30) {
            0 => {
                self.endless |= endless;
                count(census, "forgotten"); // and it runs on
            }
            1 => {
                self.async_harm |= is_async;
                count(census, "dropped");
                drop(handle.abort_on_drop());
            }
            _ => self.open.push(Open { handle, asked }),
        }
    }

    fn abort_some(&mut self, dice: &mut Dice, census: &mut Census) {
        if self.open.is_empty() {
            return;
        }
        let at = dice.below(self.open.len() as u64) as usize;
        let open = &mut self.open[at];
        open.asked.cancelled = true;
        self.async_harm |= open.asked.is_async;
        open.handle.abort();
        count(census, "aborted");
    }

    fn disturb(&mut self, dice: &mut Dice, census: &mut Census) {
        let workers = self.processes();
        if workers.is_empty() {
            return;
        }
        let worker = workers[dice.below(workers.len() as u64) as usize];
        if dice.one_in(2) {
            let by = [Signal::SIGKILL, Signal::SIGQUIT, Signal::SIGSEGV, Signal::SIGABRT]
                [dice.below(4) as usize];
            // Counted first: what it does may be told at once.
            self.kills += 1;
            self.async_harm = true;
            if self.signal(worker, by) {
                count(census, format!("killed by {by}"));
            }
        } else if self.signal(worker, Signal::SIGSTOP) {
            self.stopped.push((Instant::now() + dice.millis(30), worker));
            count(census, "stopped");
        }
    }

    fn go_on(&mut self, all: bool) {
        let due = |(at, _): &mut (Instant, u32)| all || *at <= Instant::now();
        let due: Vec<_> = self.stopped.extract_if(.., due).collect();
        for (_, worker) in due {
            self.signal(worker, Signal::SIGCONT);
        }
    }

    /// Takes the results that are there.
    fn look(&mut self, dice: &mut Dice, census: &mut Census) {
        let mut at = 0;
        while at < self.open.len() {
            if dice.one_in(3)
                && let Some(result) = self.open[at].handle.try_join()
            {
                let Open { handle, asked } = self.open.swap_remove(at);
                self.judge(handle.id(), &asked, &result, census);
            } else {
                at += 1;
            }
        }
    }

    /// Whether this may be told of such a task.
    fn judge(
        &mut self,
        number: TaskId,
        asked: &Asked,
        result: &Result<Answer, TaskError>,
        census: &mut Census,
    ) {
        let order = &asked.order;
        let known =
            format!("kills {}, async harm {}, closed {}", self.kills, self.async_harm, self.closed);
        let wrong = |why: &str| -> ! { panic!("{why}: {result:?}\n{asked:?}\n{known}") };
        let error = match result {
            Ok(value) => {
                match (value, &order.what) {
                    (Ok(_), What::Fail | What::Panic | What::Die(_) | What::Hang | What::Spin) => {
                        wrong("it cannot be done")
                    }
                    (Ok(_), What::Flaky(tries, _)) if *tries > asked.retries => {
                        wrong("it was tried too often")
                    }
                    (Ok(value), _) if value.id != order.id || value.bytes != order.bytes => {
                        wrong("it is another's value")
                    }
                    (Err(text), What::Fail) if *text == order.id.to_string() => {}
                    (Err(_), _) => wrong("it has no such error"),
                    _ => {}
                }
                count(census, "done");
                self.added += u64::from(asked.adds);
                self.runs.entry(order.id).and_modify(|(_, ran)| *ran = true);
                self.told_else.insert(number);
                return;
            }
            Err(error) => error,
        };
        count(census, format!("{:?}", error.kind()));
        if error.earlier_attempts().len() > asked.retries as usize {
            wrong("it was tried too often");
        }
        match error.kind() {
            TaskErrorKind::Cancelled if asked.cancelled => {}
            TaskErrorKind::TimedOut if asked.limited => {}
            TaskErrorKind::QueueFull if self.queue_limit => {}
            TaskErrorKind::PoolClosed if asked.late || self.closed => {
                if !asked.late {
                    self.told_closed.insert(number);
                }
                return;
            }
            TaskErrorKind::StartFailed if self.kills > 0 => {}
            TaskErrorKind::Panicked => {
                let own = matches!(order.what, What::Panic | What::Flaky(_, None));
                if !own || error.panic_message() != Some(&order.id.to_string()) {
                    wrong("it does not panic");
                }
            }
            TaskErrorKind::WorkerDied => {
                let status = error.exit_status().unwrap_or_else(|| wrong("it ended in no way"));
                let death = match order.what {
                    What::Die(death) | What::Flaky(_, Some(death)) => Some(death),
                    _ => None,
                };
                let by_itself = death.is_some_and(|death| match death {
                    Death::Exit => status.code() == Some(7),
                    Death::Abort => status.signal() == Some(libc::SIGABRT),
                    Death::Kill => status.signal() == Some(libc::SIGKILL),
                });
                let by_neighbour = asked.is_async && self.async_harm;
                if !by_itself && !by_neighbour {
                    self.victims += 1;
                    if self.victims > self.kills || status.signal().is_none() {
                        wrong("nobody has killed it");
                    }
                }
            }
            _ => wrong("it cannot end so"),
        }
        self.told_else.insert(number);
    }

    /// What there still is, for who wants to know why there is no end; processes of other pools as
    /// well, for they share a lock.
    fn standing(&self, pool: &Pool) -> String {
        let states: Vec<_> = children(pid()).into_iter().map(|pid| (pid, state(pid))).collect();
        let open: Vec<_> = self
            .open
            .iter()
            .filter(|open| !open.handle.is_finished())
            .map(|open| &open.asked)
            .collect();
        format!(
            "processes: {states:?}, of them its own: {:?}; {:?}; unfinished: {open:#?}",
            self.processes(),
            pool.stats()
        )
    }

    /// What the end says that it cut off, and what the tasks were told.
    fn compare(&self, cut_off: &ShutdownReport) {
        let cut: HashSet<TaskId> =
            cut_off.begun().iter().chain(cut_off.unbegun()).copied().collect();
        assert_eq!(cut.len(), cut_off.len(), "a task is named twice");
        assert!(
            self.told_closed.is_subset(&cut),
            "{:?} were told that the pool is closed, cut off were {cut:?}",
            self.told_closed
        );
        assert!(
            self.told_else.is_disjoint(&cut),
            "{cut_off:?} were cut off, and {:?} were told something else",
            self.told_else
        );
    }
}

/// Awaits what must come; what does not is named.
async fn must<F: IntoFuture>(what: impl fmt::Debug, future: F) -> F::Output {
    match tokio::time::timeout(FUSE, future).await {
        Ok(output) => output,
        Err(_) => panic!("it never came: {what:?}"),
    }
}

// ---- a round

fn build(dice: &mut Dice, dir: &Path, tag: String, total: &Mutex<u64>) -> World {
    let mut builder = Pool::builder()
        .workers(1 + dice.below(4) as usize)
        .concurrency(1 + dice.below(8) as usize)
        .limits(Limits::new().core_size(0))
        .env("PROCPOOL_SOAK_POOL", &tag)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null());
    // A thread reads it, or nobody.
    builder = if dice.one_in(3) {
        builder.stderr(Stdio::lines(|_| {}))
    } else {
        builder.stderr(Stdio::null())
    };
    if dice.one_in(4) {
        builder = builder
            .workers(1..=2 + dice.below(3) as usize)
            .idle_timeout(Duration::from_millis(5) + dice.millis(30));
    }
    if dice.one_in(4) {
        builder = builder.max_tasks_per_worker(1 + dice.below(20));
    }
    if dice.one_in(6) {
        builder = builder.max_lifetime(Duration::from_millis(20) + dice.millis(200));
    }
    if dice.one_in(5) {
        builder = builder.spares(1);
    }
    let queue_limit = dice.one_in(5);
    if queue_limit {
        builder = builder.queue_limit(1 + dice.below(20) as usize);
    }
    let runtime = dice.one_in(3).then(|| {
        RuntimeBuilder::new_multi_thread()
            .worker_threads(1 + dice.below(2) as usize)
            .enable_all()
            .build()
            .unwrap()
    });
    let entered = runtime.as_ref().map(Runtime::enter);
    let pool = builder.build().unwrap();
    drop(entered);
    World {
        pool: Some(pool),
        runtime,
        log: dir.join(&tag),
        tag,
        total: total.clone(),
        queue_limit,
        open: Vec::new(),
        token: CancellationToken::new(),
        kills: 0,
        victims: 0,
        async_harm: false,
        stopped: Vec::new(),
        closed: false,
        endless: false,
        calm: dice.one_in(2),
        runs: HashMap::new(),
        added: 0,
        told_closed: HashSet::new(),
        told_else: HashSet::new(),
    }
}

async fn play(dice: &mut Dice, worlds: &mut [World], census: &mut Census) {
    let mut id = 0;
    for _ in 0..20 + dice.below(150) {
        let at = dice.below(worlds.len() as u64) as usize;
        let world = &mut worlds[at];
        world.go_on(false);
        match dice.below(100) {
            0..=64 => {
                for _ in 0..1 + dice.below(8) {
                    id += 1;
                    world.submit(dice, id, census);
                }
            }
            65..=74 => world.look(dice, census),
            75..=79 => world.abort_some(dice, census),
            80..=84 => world.disturb(dice, census),
            85 => {
                // All that came before has been given it, or not.
                world.async_harm = true;
                std::mem::take(&mut world.token).cancel();
                count(census, "cancelled by token");
            }
            86..=87 => map(dice, world, census).await,
            88 => {
                if let Some(runtime) = world.runtime.take() {
                    runtime.shutdown_background();
                    count(census, "runtime gone");
                }
            }
            97 => {
                let Some(pool) = &world.pool else { continue };
                if dice.one_in(2) {
                    pool.resize(1 + dice.below(4) as usize).unwrap();
                    count(census, "resized");
                } else {
                    // It begins in the call, or goes on without anybody who waits.
                    let _ = tokio::time::timeout(dice.millis(5), pool.recycle()).await;
                    count(census, "recycled");
                }
            }
            89 if dice.one_in(3) => {
                world.open.iter_mut().for_each(|open| open.asked.cancelled = true);
                world.pool.as_ref().map(Pool::abort_queued).unwrap();
                count(census, "queue dropped");
            }
            89 => {
                let stats = world.pool.as_ref().map(Pool::stats).unwrap();
                assert!(
                    stats.busy + stats.idle + stats.starting + stats.leaving <= 64,
                    "{stats:?}"
                );
            }
            90..=96 => tokio::time::sleep(dice.millis(20)).await,
            _ => tokio::task::yield_now().await,
        }
    }
}

/// Part of a map is taken, for a while, and the rest is dropped.
async fn map(dice: &mut Dice, world: &mut World, census: &mut Census) {
    let Some(pool) = &world.pool else { return };
    let (most, while_) = (dice.below(200), dice.millis(20));
    let taken = tokio::time::timeout(while_, async {
        let mut results = pool.map(|n: u64| n * 2, 0..most);
        let mut n = 0;
        while let Some(result) = results.next().await {
            // In order, whatever else happens; workers may be killed.
            assert!(result.is_err() || result.is_ok_and(|double| double == 2 * n));
            n += 1;
        }
        assert_eq!(n, most);
    });
    count(census, if taken.await.is_ok() { "map, whole" } else { "map, dropped" });
}

async fn end(dice: &mut Dice, mut world: World, others: &mut [World], census: &mut Census) {
    let how = match dice.below(7) {
        0 | 1 if !world.endless => End::Shutdown,
        0 | 1 => End::Kill,
        2 => End::Within(dice.millis(60)),
        3 => End::Kill,
        4 => End::Drop,
        5 => End::ShutdownThenKill,
        _ => End::ShutdownThenDrop,
    };
    let began = Instant::now();
    count(census, format!("end, {}", format!("{how:?}").split('(').next().unwrap()));
    if how == End::Shutdown {
        // It waits for all: what stands still goes on (in the other pool too, where it may have the
        // lock of the total), and what never ends is stopped.
        world.go_on(true);
        others.iter_mut().for_each(|other| other.go_on(true));
        for open in world
            .open
            .iter_mut()
            .filter(|open| matches!(open.asked.order.what, What::Hang | What::Spin))
        {
            open.asked.cancelled = true;
            world.async_harm = true;
            open.handle.abort();
        }
    }
    let pool = world.pool.take().unwrap();
    let cut_off = match how {
        End::Shutdown => {
            let Ok(cut_off) = tokio::time::timeout(FUSE, pool.shutdown()).await else {
                panic!("the end never came; {}", world.standing(&pool));
            };
            assert!(cut_off.is_empty(), "{cut_off:?}");
            Some(cut_off)
        }
        End::Within(limit) => {
            world.closed = true;
            let end = pool.shutdown_within(limit);
            for open in &mut world.open {
                if dice.one_in(8) {
                    open.asked.cancelled = true;
                    open.handle.abort();
                }
            }
            Some(must("the end in time", end).await)
        }
        End::Kill => {
            world.closed = true;
            Some(must("the end at once", pool.kill()).await)
        }
        End::ShutdownThenKill => {
            let first = pool.shutdown();
            tokio::time::sleep(dice.millis(10)).await;
            world.closed = true;
            let both =
                (must("the second end", pool.kill()).await, must("the first end", first).await);
            assert_eq!(both.0, both.1);
            Some(both.0)
        }
        End::Drop => {
            world.closed = true;
            drop(pool);
            None
        }
        End::ShutdownThenDrop => {
            drop(pool.shutdown());
            tokio::time::sleep(dice.millis(10)).await;
            world.closed = true;
            drop(pool);
            None
        }
    };
    let ended = began.elapsed();
    for Open { mut handle, asked } in std::mem::take(&mut world.open) {
        let number = handle.id();
        let result = must(&asked, &mut handle).await;
        world.judge(number, &asked, &result, census);
    }
    if let Some(cut_off) = &cut_off {
        world.compare(cut_off);
    }
    world.stopped.clear();
    let start = Instant::now();
    while !world.processes().is_empty() {
        assert!(
            start.elapsed() < FUSE,
            "workers are left: {:?}",
            world.processes().iter().map(|pid| (*pid, state(*pid))).collect::<Vec<_>>()
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if std::env::var_os("PROCPOOL_SOAK_TIMES").is_some() {
        eprintln!("{}: {how:?} took {ended:?}, and all of it {:?}", world.tag, began.elapsed());
    }
    // Nobody runs any more: what has run has run.
    let mut ran: HashMap<u64, u32> = HashMap::new();
    for line in lines(&world.log) {
        *ran.entry(line.parse().unwrap()).or_default() += 1;
    }
    for (id, (most, must_have)) in &world.runs {
        let times = ran.get(id).copied().unwrap_or(0);
        assert!(times <= *most, "task {id} has run {times} times");
        assert!(times > 0 || !must_have, "task {id} is done and has not run");
    }
    if let Some(runtime) = world.runtime.take() {
        runtime.shutdown_background();
    }
}

fn round(seed: u64, dir: &Path, census: &mut Census) {
    let mut dice = Dice(seed);
    let manager = Manager::new().unwrap();
    let total = manager.mutex(0u64).unwrap();
    let runtime = if dice.one_in(2) {
        RuntimeBuilder::new_current_thread().enable_all().build().unwrap()
    } else {
        RuntimeBuilder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    let mut worlds = Vec::new();
    for n in 0..1 + dice.below(2) {
        // In the runtime that awaits, or in none.
        let entered = dice.one_in(2).then(|| runtime.enter());
        worlds.push(build(&mut dice, dir, format!("{seed}.{n}"), &total));
        drop(entered);
    }
    let (mut added, mut asked) = (0, 0);
    runtime.block_on(async {
        let began = Instant::now();
        play(&mut dice, &mut worlds, census).await;
        if std::env::var_os("PROCPOOL_SOAK_TIMES").is_some() {
            eprintln!("{seed}: played for {:?}", began.elapsed());
        }
        while let Some(mut world) = worlds.pop() {
            world.look(&mut dice, census);
            asked += world.runs.len() as u64;
            added += world.added;
            end(&mut dice, world, &mut worlds, census).await;
        }
        // Each that is done has added one; others may have, before they failed.
        let sum = must("the total", total.get()).await.unwrap();
        assert!(sum >= added, "{added} tasks are done, {sum} have added");
    });
    drop(runtime);
    count(census, "rounds");
}

// ---- what is left

#[derive(Debug, PartialEq, Eq)]
struct Left {
    children: Vec<u32>,
    descriptors: usize,
    threads: usize,
    /// Mappings of shared memory.
    mappings: usize,
    files: Vec<PathBuf>,
}

fn left(dir: &Path) -> Left {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let shared =
        |line: &&str| line.split_whitespace().nth(1).is_some_and(|rights| rights.ends_with('s'));
    Left {
        children: children(pid()),
        descriptors: descriptors(pid()).len(),
        threads: threads(),
        mappings: maps.lines().filter(shared).count(),
        files: std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect(),
    }
}

#[test]
fn whatever_happens_each_task_ends_once_and_truly_and_nothing_is_left() {
    let (test, dir) = ("own_process_that_soaks", tempfile::tempdir().unwrap());
    let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    command.env("TMPDIR", dir.path()).current_dir(dir.path());
    if std::env::var_os("PROCPOOL_SOAK_SECONDS").is_some() {
        command.stderr(std::process::Stdio::inherit()); // nobody wants to wait for an hour to see that it has begun
    }
    let output = command.output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    eprintln!("{stderr}");
    assert!(output.status.success() && stdout.contains("1 passed"), "{}\n{stdout}", output.status);
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_that_soaks() {
    let Some(dir) = own_dir() else { return };
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().unwrap());
    let limit = Duration::from_secs(number("PROCPOOL_SOAK_SECONDS").unwrap_or(10));
    let first = number("PROCPOOL_SOAK_SEED")
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() << 16);
    let mut census = Census::new();
    // What stays for good is made now: the supervisor.
    round(0, &dir.join("."), &mut census);
    for entry in std::fs::read_dir(&dir).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    // Its last processes and a runtime's threads may still be about to end. Those that stay: this
    // thread, that of the test program, and the supervisor. What those that end have open goes
    // with them or a little later, of which nobody tells: so two looks must be equal.
    let (settling, mut before) = (Instant::now(), left(&dir));
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = left(&dir);
        if now == before && (now.children.len(), now.threads) == (0, 3) {
            break;
        }
        assert!(settling.elapsed() < FUSE, "left by the first round: {now:?}");
        before = now;
    }
    let start = Instant::now();
    let mut seed = first;
    eprintln!("{limit:?} from PROCPOOL_SOAK_SEED={first} on");
    // One that is to be long enough to meet everything goes on until it has.
    let meets_all = limit >= Duration::from_secs(10);
    while start.elapsed() < limit || (meets_all && !missing(&census).is_empty()) {
        assert!(start.elapsed() < limit * 30, "never met: {:?}", missing(&census));
        let rounds = tempfile::tempdir().unwrap();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            round(seed, rounds.path(), &mut census)
        }));
        drop(rounds);
        let settled = Instant::now();
        while done.is_ok() && left(&dir) != before {
            assert!(
                settled.elapsed() < FUSE,
                "left by the round PROCPOOL_SOAK_SEED={seed}: {:?}\nbefore: {before:?}",
                left(&dir)
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Err(panic) = done {
            eprintln!("in the round PROCPOOL_SOAK_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        seed += 1;
    }
    eprintln!("{:?} from PROCPOOL_SOAK_SEED={first} on:", start.elapsed()); // the gate looks for this
    for (what, count) in census {
        eprintln!("{count:>9} {what}");
    }
}
