//! Processes that are killed at random instants while they hold, wait for and change every kind of
//! shared object.
//!
//! Each test gives one or two kinds to workers, kills them, and begins what they did again, until
//! the work is done. At the end the sums are exact: what a process writes down before and after
//! each of its steps says how often a step was done, but for the one step that it was in when it
//! died. So the only room that a sum has is that of the deaths, and that is asserted.
//!
//! A round has one seed. A test goes on with further ones until a task has died of it, and a
//! barrier has broken: a round in which nobody was hit shows nothing. `PROCPOOL_TORTURE_SECONDS`
//! makes each go on for as long, and `PROCPOOL_TORTURE_SEED` says with which it begins. The lock,
//! the semaphore, the lock of readers and writers, the map and leases are tortured in
//! `manager.rs`, the lanes of a queue in `queue.rs` as well.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a failure tells the seed of its round")]

use crate::support;
use crate::support::{Dice, children, in_own_process, own_dir, pid, soon, until};
use futures::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::sync::ErrorKind;
use procpool::sync::{
    Actor, ActorRef, Array, Barrier, Channel, Condvar, Event, List, Map, Mutex, Queue, Value,
};
use procpool::{ArgsFor, Pool, Task};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const WORKERS: usize = 4;

// ---- who kills

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap())
}

/// One round: a pool whose workers are killed. It kills children of this process, whatever they
/// are.
struct Round {
    pool: Pool,
    dir: TempDir,
    seed: u64,
    dice: std::sync::Mutex<Dice>,
    killed: AtomicU32,
    /// Nobody is killed any more.
    enough: AtomicBool,
    deaths: AtomicU32,
}

impl Round {
    fn new(seed: u64) -> Self {
        // Some are killed before they were given anything, and that is not what is tried here.
        let pool = Pool::builder()
            .workers(WORKERS)
            .restart_limit(1_000_000, Duration::from_secs(1))
            .build()
            .unwrap();
        let dice = std::sync::Mutex::new(Dice(seed));
        let [killed, deaths] = [const { AtomicU32::new(0) }; 2];
        Self {
            pool,
            dir: TempDir::new().unwrap(),
            seed,
            dice,
            killed,
            enough: AtomicBool::new(false),
            deaths,
        }
    }

    fn random(&self, below: u64) -> u64 {
        self.dice.lock().unwrap().below(below)
    }

    /// Kills so many, one after another, at random instants; some stand still for a while before.
    async fn kill(&self, count: u32) {
        for _ in 0..count {
            tokio::time::sleep(Duration::from_micros(self.random(20_000))).await;
            let mut patience = 1000;
            let victim = loop {
                let alive = children(pid());
                if let Some(victim) = alive.get(self.random(alive.len().max(1) as u64) as usize) {
                    break Pid::from_raw(victim.cast_signed());
                }
                // After several starts in a row that were killed, a pool without tasks pauses for
                // longer than a round may last.
                patience -= 1;
                if patience == 0 {
                    return self.enough.store(true, Ordering::Release);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            if self.random(4) == 0 {
                let _ = kill(victim, Signal::SIGSTOP);
                tokio::time::sleep(Duration::from_micros(self.random(15_000))).await;
            }
            if kill(victim, Signal::SIGKILL).is_ok() {
                self.killed.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.enough.store(true, Ordering::Release);
    }

    /// Kills whatever there is now.
    async fn kill_all(&self) {
        for victim in children(pid()) {
            if kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL).is_ok() {
                self.killed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.enough.load(Ordering::Acquire)
    }

    /// Calls a function in a worker, again whenever it was killed.
    async fn again<F, A, M, P>(&self, function: F, args: P) -> F::Output
    where
        F: Task<A, M>,
        P: ArgsFor<A> + Clone,
    {
        loop {
            match self.pool.spawn(function, args.clone()).await {
                Ok(result) => return result,
                // So many were killed while they started that those who waited for them are told.
                // It did not run.
                Err(error) if error.is_start_failed() => {}
                Err(error) => {
                    assert!(error.is_worker_died(), "seed {}: {error}", self.seed);
                    self.deaths.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Relaxed).into()
    }

    /// All that is left is the manager, and nobody refers to anything in it. Whether somebody was
    /// hit.
    async fn ends(self) -> bool {
        until("no reference is left", || self.pool.manager().objects() == 0).await;
        // (Of those that are killed, some are just starting.)
        let killed = self.killed.load(Ordering::Relaxed).into();
        assert!(self.deaths() <= killed, "{} died of {killed}", self.deaths());
        soon(self.pool.shutdown()).await;
        self.deaths() > 0
    }
}

/// So many rounds in which nobody is hit are no chance any more.
const HARMLESS_MAX: u32 = 50;

/// Runs rounds in a runtime, until one has hit what it is meant to.
fn rounds<F: Future<Output = bool>>(round: impl Fn(Round) -> F) {
    if own_dir().is_none() {
        return;
    }
    let until =
        Instant::now() + Duration::from_secs(number("PROCPOOL_TORTURE_SECONDS").unwrap_or(0));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut hit, mut harmless) = (false, 0);
    for seed in number("PROCPOOL_TORTURE_SEED").unwrap_or(1).. {
        println!("seed {seed}");
        if runtime.block_on(round(Round::new(seed))) {
            hit = true;
        } else {
            harmless += 1;
        }
        assert!(hit || harmless < HARMLESS_MAX, "nobody was hit in {harmless} rounds");
        if hit && Instant::now() >= until {
            break;
        }
    }
}

// ---- what is written down

/// What a process has done, in a file of its own: it outlives it.
struct Journal(File);

impl Journal {
    fn of(dir: &Path) -> Self {
        Self(File::options().create(true).append(true).open(dir.join(pid().to_string())).unwrap())
    }

    fn note(&mut self, line: &str) {
        // One write: a line is there or not.
        self.0.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// What all have written: for each first word, the words after it.
    fn read(dir: &Path) -> BTreeMap<String, Vec<String>> {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        for entry in dir.read_dir().unwrap() {
            for line in support::lines(&entry.unwrap().path()) {
                let (what, rest) = line.split_once(' ').unwrap_or((&line, ""));
                all.entry(what.to_owned()).or_default().push(rest.to_owned());
            }
        }
        all
    }
}

fn numbers(notes: &BTreeMap<String, Vec<String>>, what: &str) -> Vec<u64> {
    notes.get(what).into_iter().flatten().map(|text| text.parse().unwrap()).collect()
}

/// A counter of which every step gives what was there before, each once: what nobody has noted
/// belongs to the dead.
fn assert_counts(total: u64, begun: &[u64], before: &[u64], deaths: u64) {
    let noted: BTreeSet<_> = before.iter().copied().collect();
    assert_eq!(noted.len(), before.len(), "two had the same step");
    assert!(
        noted.last().is_none_or(|last| *last < total),
        "a step was done that the sum does not have"
    );
    assert!(total <= begun.len() as u64, "{total} steps of {}", begun.len());
    let unsaid = total - before.len() as u64;
    assert!(unsaid <= deaths, "{unsaid} steps that nobody noted, and {deaths} have died");
}

// ---- values and arrays

fn count_on(
    dir: PathBuf,
    value: Value<u64>,
    array: Array<u32>,
    sum: Array<f64>,
    stop: Value<bool>,
) {
    let mut journal = Journal::of(&dir);
    let mut n = u64::from(pid());
    while !stop.load().unwrap() {
        n = n.wrapping_mul(25_214_903_917).wrapping_add(11);
        let at = (n >> 20) as usize % array.len();
        journal.note("value? 0");
        let before = value.fetch_add(1).unwrap();
        journal.note(&format!("value {before}"));
        journal.note(&format!("element{at}? 0"));
        let before = array.at(at).unwrap().fetch_add(1).unwrap();
        journal.note(&format!("element{at} {before}"));
        journal.note("float? 0");
        let before = sum.at(1).unwrap().fetch_update(|sum| Some(sum + 1.0)).unwrap().unwrap();
        journal.note(&format!("float {before}"));
    }
}

#[test]
fn steps_of_values_and_arrays_are_whole_or_not_there() {
    in_own_process("own_process_values");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_values() {
    rounds(|round| async move {
        let manager = round.pool.manager();
        let (value, array, sum) = (
            manager.value(0u64).unwrap(),
            manager.array(&[0u32; 8]).unwrap(),
            manager.array(&[0.5f64; 3]).unwrap(),
        );
        let stop = manager.value(false).unwrap();
        let dir = round.dir.path().to_owned();
        let args = (dir.clone(), value.clone(), array.clone(), sum.clone(), stop.clone());
        let counting = join_all((0..WORKERS).map(|_| round.again(count_on, args.clone())));
        let killing = async {
            round.kill(15).await;
            stop.store(true).unwrap();
        };
        soon(async { tokio::join!(counting, killing) }).await;

        let (notes, deaths) = (Journal::read(&dir), round.deaths());
        let count = |total: u64, what: &str| {
            assert_counts(
                total,
                &numbers(&notes, &format!("{what}?")),
                &numbers(&notes, what),
                deaths,
            )
        };
        count(value.load().unwrap(), "value");
        for (at, total) in array.to_vec().unwrap().into_iter().enumerate() {
            count(total.into(), &format!("element{at}"));
        }
        let [left, total, right] = sum.to_vec().unwrap()[..] else { panic!("three") };
        assert_eq!((left, right), (0.5, 0.5), "its neighbours");
        let before = notes
            .get("float")
            .into_iter()
            .flatten()
            .map(|text| text.parse::<f64>().unwrap() as u64)
            .collect::<Vec<_>>();
        assert_counts((total - 0.5) as u64, &numbers(&notes, "float?"), &before, deaths);
        drop((args, value, array, sum, stop));
        round.ends().await
    });
}

// ---- events

/// Passes through one event after the other: round n is that of event n % 2. Who begins again
/// begins with the round that it is; and with the next one if it had passed that, for everybody
/// else may go on then, and its event be cleared.
fn pass_on(number: usize, events: [Event; 2], now: Value<u64>, passed: Array<u32>) {
    let rounds = passed.len() / WORKERS;
    for at in now.load().unwrap() as usize..rounds {
        let mine = passed.at(at * WORKERS + number).unwrap();
        if mine.load().unwrap() == 0 {
            events[at % 2].blocking_wait().unwrap();
            mine.fetch_add(1).unwrap();
        }
    }
}

#[test]
fn nobody_waits_for_an_event_that_is_set() {
    in_own_process("own_process_events");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_events() {
    rounds(|round| async move {
        const ROUNDS: usize = 400;
        let manager = round.pool.manager();
        let events = [manager.event().unwrap(), manager.event().unwrap()];
        let (now, passed) =
            (manager.value(0u64).unwrap(), manager.array(&[0u32; ROUNDS * WORKERS]).unwrap());
        let waiting = join_all((0..WORKERS).map(|number| {
            round.again(pass_on, (number, events.clone(), now.clone(), passed.clone()))
        }));
        let setting = async {
            for at in 0..ROUNDS {
                events[(at + 1) % 2].clear().unwrap();
                now.store(at as u64).unwrap();
                events[at % 2].set().unwrap();
                let all = || {
                    (0..WORKERS)
                        .all(|number| passed.at(at * WORKERS + number).unwrap().load().unwrap() > 0)
                };
                until("all have passed it", all).await;
            }
        };
        soon(async { tokio::join!(waiting, setting, round.kill(15)) }).await;
        assert!(passed.to_vec().unwrap().into_iter().all(|by| by == 1));
        drop((events, now, passed));
        round.ends().await
    });
}

// ---- condition variables

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Stock {
    there: u64,
    taken: u64,
    no_more: bool,
}

/// Takes what comes, as long as something may come.
fn take_stock(stock: Mutex<Stock>, changed: Condvar) {
    loop {
        let guard = stock.blocking_lock().unwrap();
        let mut guard =
            changed.blocking_wait_while(guard, |stock| stock.there == 0 && !stock.no_more).unwrap();
        if guard.there == 0 {
            return;
        }
        guard.there -= 1;
        guard.taken += 1;
    }
}

#[test]
fn what_is_notified_of_is_taken_though_those_who_wait_are_killed() {
    in_own_process("own_process_condvar");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_condvar() {
    rounds(|round| async move {
        const ITEMS: u64 = 1500;
        let manager = round.pool.manager();
        let (stock, changed) =
            (manager.mutex(Stock::default()).unwrap(), manager.condvar().unwrap());
        let taking = join_all(
            (0..WORKERS).map(|_| round.again(take_stock, (stock.clone(), changed.clone()))),
        );
        let making = async {
            for _ in 0..ITEMS {
                stock.lock().await.unwrap().there += 1;
                changed.notify_one().unwrap();
            }
            // By nothing else than these notifications, and by those who begin again.
            while stock.get().await.unwrap().there > 0 || !round.is_over() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            stock.lock().await.unwrap().no_more = true;
            changed.notify_all().unwrap();
        };
        soon(async { tokio::join!(taking, making, round.kill(15)) }).await;
        let there = soon(stock.lock()).await.unwrap().clone();
        assert_eq!((there.there, there.taken), (0, ITEMS));
        drop((stock, changed));
        round.ends().await
    });
}

// ---- barriers

/// Passes rounds until there are `enough`, or until the barrier breaks: whether it did.
fn meet(barrier: Barrier, come: Value<u64>, passed: Array<u32>, leaders: Array<u32>) -> bool {
    // Whoever begins again when all is done has nobody to wait for.
    while passed.at(passed.len() - 1).unwrap().load().unwrap() == 0 {
        come.fetch_add(1).unwrap();
        match barrier.blocking_wait() {
            Ok(result) => {
                let round = result.round() as usize;
                if round >= passed.len() {
                    return false; // all who had passed the last round died before they said so
                }
                assert!(
                    come.load().unwrap() >= ((round + 1) * WORKERS) as u64,
                    "a round was passed by fewer than all"
                );
                passed.at(round).unwrap().fetch_add(1).unwrap();
                if result.is_leader() {
                    leaders.at(round).unwrap().fetch_add(1).unwrap();
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::BrokenBarrier, "{error}");
                return true;
            }
        }
    }
    false
}

#[test]
fn a_barrier_whose_parties_are_killed_breaks_for_the_others_and_serves_after_a_reset() {
    in_own_process("own_process_barrier");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_barrier() {
    rounds(|round| async move {
        const ROUNDS: usize = 600;
        let manager = round.pool.manager();
        let barrier = manager.barrier(WORKERS as u32).unwrap();
        let come = manager.value(0u64).unwrap();
        let (passed, leaders) =
            (manager.array(&[0u32; ROUNDS]).unwrap(), manager.array(&[0u32; ROUNDS]).unwrap());
        let args = (barrier.clone(), come.clone(), passed.clone(), leaders.clone());
        let mut resets = 0;
        let meeting = async {
            loop {
                // One that is begun again finds it broken, or comes to the round that the others
                // wait for.
                let broken = join_all((0..WORKERS).map(|_| round.again(meet, args.clone()))).await;
                if !broken.contains(&true) {
                    break;
                }
                if passed.at(ROUNDS - 1).unwrap().load().unwrap() > 0 {
                    break; // somebody died who had passed the last
                }
                assert!(barrier.is_broken().unwrap());
                barrier.reset().unwrap();
                resets += 1;
            }
        };
        soon(async { tokio::join!(meeting, round.kill(15)) }).await;
        assert!(resets <= round.deaths(), "it broke {resets} times by itself");
        let [passed, leaders] = [passed, leaders].map(|counts| counts.to_vec().unwrap());
        assert!(
            passed.iter().all(|count| (*count as usize) <= WORKERS)
                && leaders.iter().all(|count| *count <= 1)
        );
        let missing = |counts: Vec<u32>, all: usize| {
            (ROUNDS * all) as u64 - counts.into_iter().map(u64::from).sum::<u64>()
        };
        assert!(
            missing(passed, WORKERS) <= round.deaths() && missing(leaders, 1) <= round.deaths(),
            "who did not say so is dead"
        );
        drop((args, barrier, come));
        round.ends().await && resets > 0
    });
}

// ---- lists

/// Takes from one list and puts into another, and counts at random places of a third.
fn carry(dir: PathBuf, from: List<u64>, to: List<u64>, counts: List<u64>, no_more: Value<bool>) {
    let mut journal = Journal::of(&dir);
    loop {
        // First that: then nothing comes that is not there.
        let last = no_more.load().unwrap();
        let Some(item) = from.blocking_pop_front().unwrap() else {
            if last {
                return;
            }
            std::thread::yield_now();
            continue;
        };
        journal.note(&format!("has {item}"));
        to.blocking_push(item).unwrap();
        let at = item as usize % 5;
        journal.note(&format!("count{at}? 0"));
        let after = counts.blocking_update(at, |count| count + 1).unwrap();
        journal.note(&format!("count{at} {after}"));
    }
}

#[test]
fn lists_lose_what_a_dead_process_had_in_its_hands_and_double_nothing() {
    in_own_process("own_process_lists");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_lists() {
    rounds(|round| async move {
        let manager = round.pool.manager();
        let no_more = manager.value(false).unwrap();
        let [from, to, counts]: [List<u64>; 3] =
            [manager.list().unwrap(), manager.list().unwrap(), manager.list().unwrap()];
        counts.extend([0; 5]).await.unwrap();
        let dir = round.dir.path().to_owned();
        let args = (dir.clone(), from.clone(), to.clone(), counts.clone(), no_more.clone());
        let carrying = join_all((0..WORKERS).map(|_| round.again(carry, args.clone())));
        let feeding = async {
            let mut items = 0u64;
            while !round.is_over() {
                from.extend(items..items + 20).await.unwrap();
                items += 20;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            no_more.store(true).unwrap();
            items
        };
        let (_, items, ()) = soon(async { tokio::join!(carrying, feeding, round.kill(15)) }).await;
        assert!(from.is_empty().unwrap());
        let (notes, deaths) = (Journal::read(&dir), round.deaths());
        let carried = to.snapshot().await.unwrap();
        let there: BTreeSet<_> = carried.iter().copied().collect();
        assert_eq!(there.len(), carried.len(), "twice");
        assert!(there.iter().all(|item| *item < items));
        let lost = items - there.len() as u64;
        assert!(lost <= deaths, "{lost} are lost with {deaths} dead");
        let had: Vec<_> = numbers(&notes, "has");
        assert_eq!(had.iter().collect::<BTreeSet<_>>().len(), had.len(), "two had the same");
        assert!(there.iter().all(|item| had.contains(item)));
        for (at, total) in counts.snapshot().await.unwrap().into_iter().enumerate() {
            let (begun, after) =
                (numbers(&notes, &format!("count{at}?")), numbers(&notes, &format!("count{at}")));
            let before: Vec<_> = after.into_iter().map(|after| after - 1).collect();
            assert_counts(total, &begun, &before, deaths);
        }
        drop((args, from, to, counts, no_more));
        round.ends().await
    });
}

// ---- queues, by lanes

fn send_on(dir: PathBuf, queue: Queue<(u32, u64)>, stop: Value<bool>) {
    let mut journal = Journal::of(&dir);
    let mut n = 0;
    while !stop.load().unwrap() {
        journal.note(&format!("sends {}", u64::from(pid()) << 32 | n));
        queue.blocking_send((pid(), n)).unwrap();
        journal.note(&format!("sent {}", u64::from(pid()) << 32 | n));
        n += 1;
    }
}

fn take_on(dir: PathBuf, queue: Queue<(u32, u64)>) {
    let mut journal = Journal::of(&dir);
    while let Some((from, n)) = queue.blocking_recv().unwrap() {
        journal.note(&format!("took {}", u64::from(from) << 32 | n));
    }
}

#[test]
fn what_was_sent_through_a_queue_is_taken_once_or_was_in_the_hands_of_the_dead() {
    in_own_process("own_process_queue");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_queue() {
    rounds(|round| async move {
        let manager = round.pool.manager();
        let (queue, stop) = (manager.queue(64).unwrap(), manager.value(false).unwrap());
        let dir = round.dir.path().to_owned();
        let sending = async {
            join_all(
                (0..WORKERS / 2)
                    .map(|_| round.again(send_on, (dir.clone(), queue.clone(), stop.clone()))),
            )
            .await;
            queue.close().unwrap();
        };
        let taking =
            join_all((0..WORKERS / 2).map(|_| round.again(take_on, (dir.clone(), queue.clone()))));
        let killing = async {
            round.kill(15).await;
            stop.store(true).unwrap();
        };
        soon(async { tokio::join!(sending, taking, killing) }).await;
        let (notes, deaths) = (Journal::read(&dir), round.deaths());
        let [begun, sent, took] = ["sends", "sent", "took"].map(|what| numbers(&notes, what));
        let taken: BTreeSet<_> = took.iter().copied().collect();
        assert_eq!(taken.len(), took.len(), "taken twice");
        let begun: BTreeSet<_> = begun.into_iter().collect();
        assert!(taken.is_subset(&begun), "taken, and never sent");
        let lost = sent.iter().filter(|item| !taken.contains(item)).count() as u64;
        assert!(lost <= deaths, "{lost} are lost with {deaths} dead");
        drop((queue, stop));
        round.ends().await
    });
}

// ---- maps, by lanes

/// Sets its own process's key to 0, 1, 2 …; looks at the others' now and then, which never go back.
fn set_on(dir: PathBuf, map: Map<u32, u64>, stop: Value<bool>) {
    let mut journal = Journal::of(&dir);
    let mut newest = BTreeMap::new();
    // (It may have done so before, for another who has been killed.)
    let first = map.blocking_get(&pid()).unwrap().map_or(0, |last: u64| last + 1);
    for n in first.. {
        journal.note(&format!("sets {}", u64::from(pid()) << 32 | n));
        map.blocking_set(pid(), n).unwrap();
        journal.note(&format!("set {}", u64::from(pid()) << 32 | n));
        assert_eq!(map.blocking_get(&pid()).unwrap(), Some(n));
        if n % 64 == 0 {
            for (key, value) in map.blocking_entries().unwrap() {
                let before = newest.insert(key, value).unwrap_or(0);
                assert!(value >= before, "{value} of {key} after {before}");
            }
            if stop.load().unwrap() {
                return;
            }
        }
    }
}

#[test]
fn what_was_set_in_a_map_is_there_though_those_who_set_it_are_killed() {
    in_own_process("own_process_map");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_map() {
    rounds(|round| async move {
        let manager = round.pool.manager();
        let (map, stop) = (manager.map().unwrap(), manager.value(false).unwrap());
        let dir = round.dir.path().to_owned();
        let setting = join_all(
            (0..WORKERS).map(|_| round.again(set_on, (dir.clone(), map.clone(), stop.clone()))),
        );
        let killing = async {
            round.kill(15).await;
            stop.store(true).unwrap();
        };
        soon(async { tokio::join!(setting, killing) }).await;
        let notes = Journal::read(&dir);
        let last = |what: &str| -> BTreeMap<u32, u64> {
            numbers(&notes, what)
                .into_iter()
                .map(|note| ((note >> 32) as u32, note & u64::from(u32::MAX)))
                .collect()
        };
        let (begun, set, there) = (last("sets"), last("set"), map.entries().await.unwrap());
        let there: BTreeMap<u32, u64> = there.into_iter().collect();
        assert!(set.keys().all(|key| there.contains_key(key)), "what was set is not there");
        for (key, value) in there {
            let done = [set.get(&key), begun.get(&key)];
            assert!(done.contains(&Some(&value)), "{value} of {key}, which had set {done:?}");
        }
        drop((map, stop));
        round.ends().await
    });
}

// ---- channels

/// Sends numbered items until it is killed, or the other end is closed; some are larger than what
/// the socket has room for.
fn talk(dir: PathBuf, end: Channel<(u64, Vec<u8>)>) {
    let mut journal = Journal::of(&dir);
    for n in 0.. {
        let len = if n % 7 == 0 { 300_000 } else { 100 };
        journal.note(&format!("sends {n}"));
        match end.blocking_send((n, vec![n as u8; len])) {
            Ok(()) => journal.note(&format!("sent {n}")),
            Err(error) => return assert_eq!(error.error().kind(), ErrorKind::Closed, "{error}"),
        }
    }
}

#[test]
fn what_was_sent_through_a_channel_arrives_and_then_its_end() {
    in_own_process("own_process_channels");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_channels() {
    rounds(|round| async move {
        for n in 0..8 {
            let (here, there) = procpool::sync::channel::<(u64, Vec<u8>)>().unwrap();
            let dir = round.dir.path().join(n.to_string());
            std::fs::create_dir(&dir).unwrap();
            let talking = round.pool.spawn(talk, (dir.clone(), there));
            let mut next = 0;
            let mut listen = async |most: u64| {
                while next < most {
                    match here.recv().await {
                        Ok(Some((number, bytes))) => {
                            assert!(
                                number == next && bytes.iter().all(|byte| *byte == number as u8),
                                "{number} instead of {next}"
                            );
                            next += 1;
                        }
                        Ok(None) => return false,
                        // In the midst of an item: of one whose `send` has not returned.
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Decode, "{error}");
                            return true;
                        }
                    }
                }
                false
            };
            soon(listen(10 + round.random(50))).await;
            // Now in full flight, or waiting for room.
            let (torn, ()) = soon(async { tokio::join!(listen(u64::MAX), round.kill_all()) }).await;
            assert!(soon(talking).await.unwrap_err().is_worker_died());
            round.deaths.fetch_add(1, Ordering::Relaxed);
            let notes = Journal::read(&dir);
            let (begun, sent) =
                (numbers(&notes, "sends").len() as u64, numbers(&notes, "sent").len() as u64);
            assert!(sent <= next && next <= begun, "{next} arrived of {sent} to {begun}");
            assert!(!torn || next == sent, "the torn one is the one that was not sent");
            // And to one that is dead: told, and not waited for.
            let refused = async {
                while let Ok(()) = here.send((0, vec![0; 100])).await {}
                here.send((0, Vec::new())).await.unwrap_err()
            };
            assert_eq!(soon(refused).await.error().kind(), ErrorKind::Closed);
        }
        round.ends().await
    });
}

// ---- objects of one's own

#[derive(Default)]
struct Tally(u64);

impl Actor for Tally {
    type Call = bool;
    type Reply = u64;

    async fn call(&mut self, add: bool) -> u64 {
        self.0 += u64::from(add);
        self.0
    }
}

fn tally_on(dir: PathBuf, tally: ActorRef<Tally>, stop: Value<bool>) {
    let mut journal = Journal::of(&dir);
    while !stop.load().unwrap() {
        journal.note("calls 0");
        let after = tally.blocking_call(true).unwrap();
        journal.note(&format!("called {}", after - 1));
    }
}

#[test]
fn an_object_of_ones_own_does_each_call_once_though_its_caller_is_killed() {
    in_own_process("own_process_registered");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_registered() {
    rounds(|round| async move {
        let manager = round.pool.manager();
        let (tally, stop) =
            (manager.register(Tally::default()).unwrap(), manager.value(false).unwrap());
        let dir = round.dir.path().to_owned();
        let calling = join_all(
            (0..WORKERS).map(|_| round.again(tally_on, (dir.clone(), tally.clone(), stop.clone()))),
        );
        let killing = async {
            round.kill(15).await;
            stop.store(true).unwrap();
        };
        soon(async { tokio::join!(calling, killing) }).await;
        let notes = Journal::read(&dir);
        let total = tally.call(false).await.unwrap();
        assert_counts(total, &numbers(&notes, "calls"), &numbers(&notes, "called"), round.deaths());
        drop((tally, stop));
        round.ends().await
    });
}
