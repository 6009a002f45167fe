//! A function over very many tiny items, which travel in runs: each item is a task of its own all
//! the same.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{Marks, Scene, mark, pass, until, within};
use futures::stream::{self, StreamExt};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{TaskError, TaskErrorKind};
use serde::{Deserialize, Serialize, de};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

const ITEMS: u64 = 20_000;

/// A pool whose workers know where to make their marks, so that an item need not be told.
fn scene(workers: usize) -> (Scene, Marks) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ran");
    let mut scene = Scene::with(|builder| builder.workers(workers).env("PROCPOOL_TEST_RAN", &path));
    scene.dir = dir;
    let marks = scene.marks("ran");
    (scene, marks)
}

/// Marks that this item runs: one system call.
fn ran(n: u64) {
    static FILE: OnceLock<File> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let path = std::env::var_os("PROCPOOL_TEST_RAN").unwrap();
        OpenOptions::new().create(true).append(true).open(path).unwrap()
    });
    let mut file = file;
    file.write_all(format!("{n}\n").as_bytes()).unwrap();
}

/// No item has run twice; gives which have run.
fn each_once(marks: &Marks) -> BTreeSet<u64> {
    let lines = marks.lines();
    let ran: BTreeSet<u64> = lines.iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(ran.len(), lines.len(), "an item has run twice");
    ran
}

fn item(outcome: &Result<u64, TaskError>) -> u64 {
    match outcome {
        Ok(n) => *n,
        Err(error) => error.item().unwrap(),
    }
}

fn runs(n: u64) -> u64 {
    ran(n);
    n
}

const FATAL: [u64; 5] = [5_000, 5_001, 7_777, 12_345, 19_999];

fn dies_at_times(n: u64) -> u64 {
    ran(n);
    if FATAL.contains(&n) {
        std::process::exit(3);
    }
    n
}

#[tokio::test]
async fn an_item_that_ends_its_worker_is_the_only_one_lost_and_every_item_runs_once() {
    for unordered in [false, true] {
        let (scene, marks) = scene(2);
        let mut results = scene.pool.map(dies_at_times, 0..ITEMS);
        if unordered {
            results = results.unordered();
        }
        let mut outcomes: Vec<_> = within("results", results.collect()).await;
        if unordered {
            outcomes.sort_by_key(item);
        }
        assert!(outcomes.iter().map(item).eq(0..ITEMS), "each item is answered, in its place");
        for outcome in &outcomes {
            match outcome {
                Ok(n) => assert!(!FATAL.contains(n)),
                Err(error) => {
                    assert!(error.is_worker_died() && FATAL.contains(&item(outcome)), "{error}")
                }
            }
        }
        assert!(each_once(&marks).into_iter().eq(0..ITEMS));
        let stats = scene.pool.stats();
        assert_eq!((stats.done, stats.failed()), (ITEMS - 5, 5));
        assert_eq!((stats.queued, stats.in_hand), (0, 0));
        scene.end().await;
    }
}

/// Whoever is killed at whatever moment: at most one item a death is lost, and none runs twice.
#[tokio::test]
async fn workers_that_are_killed_at_any_moment_cost_one_item_each_at_most() {
    let (scene, marks) = scene(2);
    within("workers", scene.pool.ready()).await.unwrap();
    let mut results = scene.pool.map(runs, 0..3 * ITEMS).unordered();
    let (mut outcomes, mut kills) = (Vec::new(), 0);
    while let Some(outcome) = within("a result", results.next()).await {
        outcomes.push(outcome);
        if outcomes.len() % 2_500 == 1_249 {
            for worker in scene.workers() {
                match kill(Pid::from_raw(worker.pid as i32), Signal::SIGKILL) {
                    Ok(()) => kills += 1,
                    Err(errno) => assert_eq!(errno, Errno::ESRCH, "it was killed before"),
                }
            }
        }
    }
    let lost = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert!(
        outcomes.iter().flat_map(|outcome| outcome.as_ref().err()).all(TaskError::is_worker_died)
    );
    assert!(lost <= kills, "{lost} of {kills}");
    outcomes.sort_by_key(item);
    assert!(outcomes.iter().map(item).eq(0..3 * ITEMS), "each is answered once");
    let ran = each_once(&marks);
    assert!(outcomes.iter().flatten().all(|n| ran.contains(n)));
    drop(results);
    scene.end().await;
}

/// Encoded as its number; some cannot be encoded, or decoded.
#[derive(Debug)]
struct Strange(u64);

impl Serialize for Strange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 % 1_000 {
            501 => Err(serde::ser::Error::custom("no")),
            _ => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Strange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            n if n % 1_000 == 502 => Err(de::Error::custom("never")),
            n => Ok(Self(n)),
        }
    }
}

fn fails_in_many_ways(Strange(n): Strange) -> Vec<u8> {
    assert_eq!((procpool::attempt(), procpool::is_cancelled()), (Some(1), false));
    match n % 1_000 {
        503 => panic!("item {n}"),
        504 => vec![0; 100_000], // more than a frame may have
        505 => vec![0; 30_000],  // more than the outbox takes
        506 => std::panic::panic_any(n),
        _ => n.to_be_bytes().to_vec(),
    }
}

#[tokio::test]
async fn whatever_else_goes_wrong_with_an_item_concerns_it_alone() {
    let scene = Scene::with(|builder| builder.workers(2).frame_limit(64 << 10));
    let outcomes: Vec<_> =
        within("results", scene.pool.map(fails_in_many_ways, (0..ITEMS).map(Strange)).collect())
            .await;
    assert_eq!(outcomes.len() as u64, ITEMS);
    for (n, outcome) in (0_u64..).zip(&outcomes) {
        let kind = match n % 1_000 {
            501 => TaskErrorKind::ArgumentEncode,
            502 => TaskErrorKind::ArgumentDecode,
            503 | 506 => TaskErrorKind::Panicked,
            504 => TaskErrorKind::TooLarge,
            505 => {
                assert_eq!(outcome.as_ref().unwrap().len(), 30_000);
                continue;
            }
            _ => {
                assert_eq!(outcome.as_ref().unwrap(), &n.to_be_bytes());
                continue;
            }
        };
        let error = outcome.as_ref().unwrap_err();
        assert_eq!((error.kind(), error.item()), (kind, Some(n)));
        if n % 1_000 == 503 {
            assert_eq!(error.panic_message(), Some(&*format!("item {n}")));
        }
    }
    let stats = scene.pool.stats();
    assert_eq!((stats.done, stats.failed_by(TaskErrorKind::Panicked)), (ITEMS - 5 * 20, 2 * 20));
    scene.end().await;
}

fn waits_at(n: u64, held: u64, gate: PathBuf) -> u64 {
    ran(n);
    if n == held {
        pass(gate);
    }
    n
}

#[tokio::test]
async fn an_item_that_takes_long_keeps_nobody_back_who_stood_behind_it() {
    let (scene, marks) = scene(2);
    let mut gate = scene.gate("gate");
    let path = gate.path().to_owned();
    let items = (0..ITEMS).map(|n| (n, 10_000, path.clone()));
    let mut results = scene.pool.map(waits_at, items).unordered();
    let mut came = BTreeSet::new();
    for _ in 1..ITEMS {
        came.insert(within("all the others", results.next()).await.unwrap().unwrap());
    }
    assert!(came.iter().copied().eq((0..ITEMS).filter(|n| *n != 10_000)));
    gate.open();
    assert_eq!(within("the long one", results.next()).await.unwrap().unwrap(), 10_000);
    assert!(within("the end", results.next()).await.is_none());
    assert_eq!(each_once(&marks).len() as u64, ITEMS);
    scene.end().await;
}

#[tokio::test]
async fn a_worker_that_stands_still_keeps_nothing_that_it_has_not_begun() {
    let (scene, marks) = scene(2);
    within("workers", scene.pool.ready()).await.unwrap();
    let mut results = scene.pool.map(runs, 0..ITEMS).unordered();
    let mut came = 0;
    while came < 10_000 {
        within("a result", results.next()).await.unwrap().unwrap();
        came += 1;
    }
    let stopped = Pid::from_raw(scene.workers()[0].pid as i32);
    kill(stopped, Signal::SIGSTOP).unwrap();
    while came < ITEMS - 1 {
        within("all but one", results.next()).await.unwrap().unwrap();
        came += 1;
    }
    kill(stopped, Signal::SIGCONT).unwrap();
    within("the last", results.next()).await.unwrap().unwrap();
    assert!(within("the end", results.next()).await.is_none());
    assert_eq!(each_once(&marks).len() as u64, ITEMS);
    scene.end().await;
}

#[tokio::test]
async fn a_map_that_is_dropped_midway_leaves_nothing_that_runs_or_begins() {
    let (scene, marks) = scene(2);
    let gate = scene.gate("never opened");
    let items = (0..).map(|n| (n, 10_000, gate.path().to_owned()));
    let mut results = scene.pool.map(waits_at, items).unordered();
    for _ in 0..12_000 {
        within("a result", results.next()).await.unwrap().unwrap();
    }
    drop(results);
    // Workers that were killed for it are replaced.
    until("nothing is left", || scene.pool.stats().in_hand + scene.pool.stats().queued == 0).await;
    scene.serves().await;
    let ran = each_once(&marks).len();
    let count = within("another map", scene.pool.map(|n: u64| n, 0..ITEMS).count()).await;
    assert_eq!((count as u64, each_once(&marks).len()), (ITEMS, ran));
    scene.end().await;
}

#[tokio::test]
async fn an_end_names_each_item_that_it_cuts_off() {
    let (scene, marks) = scene(2);
    let gate = scene.gate("never opened");
    let items = stream::iter((0..).map(|n| (n, 10_000, gate.path().to_owned())));
    let mut results = scene.pool.map_stream(waits_at, items).unordered();
    for _ in 0..12_000 {
        within("a result", results.next()).await.unwrap().unwrap();
    }
    // The worker that has it may be the slower one.
    until("the long one has begun", || each_once(&marks).contains(&10_000)).await;
    let cut_off = within("the end", scene.pool.shutdown_within(Duration::ZERO)).await;
    let ids: BTreeSet<procpool::TaskId> =
        cut_off.begun().iter().chain(cut_off.unbegun()).copied().collect();
    assert_eq!(ids.len(), cut_off.len(), "each is named once");
    assert!(
        !cut_off.begun().is_empty() && cut_off.begun().len() <= 2,
        "one item runs in each worker at most: {:?}",
        cut_off.begun()
    );
    // All of them were in flight, and are told so; what is pulled from now on is refused, and was
    // not cut off.
    for _ in 0..cut_off.len() {
        let came = within("what was cut off, or came before", results.next()).await.unwrap();
        assert!(came.as_ref().err().is_none_or(TaskError::is_pool_closed));
    }
}

#[tokio::test]
async fn a_source_that_has_nothing_more_just_now_holds_back_nothing_that_it_gave() {
    let scene = Scene::new(2);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let source =
        stream::unfold(
            receiver,
            |mut receiver| async move { Some((receiver.recv().await?, receiver)) },
        );
    let mut results = scene.pool.map_stream(|n: u64| n, source);
    let mut next = 0;
    // As many at a time as fill a run, or do not.
    for burst in [5_000, 1, 3, 500, 17, 255, 256, 257, 2] {
        (next..next + burst).for_each(|n| sender.send(n).unwrap());
        for _ in 0..burst {
            assert_eq!(within("what was given", results.next()).await.unwrap().unwrap(), next);
            next += 1;
        }
    }
    drop(sender);
    assert!(within("the end", results.next()).await.is_none());
    scene.end().await;
}

#[tokio::test]
async fn no_more_items_are_in_flight_than_were_asked_for() {
    for bound in [1, 2, 3, 10, 100] {
        let (scene, marks) = scene(2);
        let (pulled, mut given) = (std::cell::Cell::new(0), 0);
        let items = (0..ITEMS / 4).inspect(|_| pulled.set(pulled.get() + 1));
        let mut results = scene.pool.map(runs, items).buffered(bound);
        while let Some(n) = within("a result", results.next()).await {
            given += 1;
            assert_eq!(n.unwrap() + 1, given);
            assert!(pulled.get() - given < bound as u64, "{} and {given}", pulled.get());
        }
        drop(results);
        assert_eq!(each_once(&marks).len() as u64, ITEMS / 4);
        scene.end().await;
    }
}

/// Items of other maps and single tasks have their turn among them.
#[tokio::test]
async fn runs_and_single_tasks_share_the_workers() {
    let (scene, _) = scene(2);
    let marks = scene.marks("singles");
    let map = scene.pool.map(|n: u64| n, 0..10 * ITEMS).unordered().count();
    let singles = async {
        for n in 0..200_u32 {
            let path = marks.path().to_owned();
            within("a task", scene.pool.spawn(|n: u32, path: PathBuf| mark(path, n), (n, path)))
                .await
                .unwrap();
        }
    };
    let (count, ()) = tokio::join!(map, singles);
    assert_eq!((count as u64, marks.lines().len()), (10 * ITEMS, 200));
    scene.end().await;
}
