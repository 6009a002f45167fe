//! Handing in tasks, and waiting for them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{Scene, is_pending, mark, pass, resident, until, within};
use futures::future::join_all;
use procpool::{ErrorKind, Pool, Stdio, TaskErrorKind};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Row {
    id: u64,
    name: String,
    tags: Vec<Option<String>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Nothing,
    Circle(f64),
    Line((i32, i32), (i32, i32)),
    Label { text: String, row: Row },
}

fn echo<T>(value: T) -> T {
    value
}

async fn echo_async<T>(value: T) -> T {
    tokio::task::yield_now().await;
    value
}

fn pid() -> u32 {
    std::process::id()
}

#[tokio::test]
async fn values_of_every_shape_come_back_equal() {
    let scene = Scene::new(2);
    let pool = &scene.pool;
    macro_rules! comes_back {
        ($value:expr, $type:ty) => {
            let value: $type = $value;
            assert_eq!(
                within("a sync echo", pool.spawn(echo::<$type>, &value)).await.unwrap(),
                value
            );
            assert_eq!(
                within("an async echo", pool.spawn(echo_async::<$type>, &value)).await.unwrap(),
                value
            );
        };
    }
    let row =
        Row { id: u64::MAX, name: "naïve 🦀\0".into(), tags: vec![None, Some(String::new())] };
    comes_back!(7, u64);
    comes_back!((1, "two".into(), 3.5), (u8, String, f64));
    comes_back!(row.clone(), Row);
    let shapes = [
        Shape::Nothing,
        Shape::Circle(-0.5),
        Shape::Line((0, 1), (i32::MIN, i32::MAX)),
        Shape::Label { text: "l".into(), row: row.clone() },
    ];
    for shape in shapes {
        comes_back!(shape, Shape);
    }
    comes_back!(None, Option<Row>);
    comes_back!(Some(row), Option<Row>);
    comes_back!(vec![vec![], vec![vec![1, 2], vec![]], vec![vec![3]]], Vec<Vec<Vec<i64>>>);
    comes_back!((), ());

    // No arguments, and eight; no result.
    assert_eq!(within("no argument", pool.spawn(|| "done".to_owned(), ())).await.unwrap(), "done");
    let () = within(
        "no result",
        pool.spawn(drop::<Row>, Row { id: 0, name: String::new(), tags: vec![] }),
    )
    .await
    .unwrap();
    let sum = |a: u8, b: u16, c: u32, d: u64, e: i8, f: i16, g: i32, h: String| {
        u64::from(a)
            + u64::from(b)
            + u64::from(c)
            + d
            + e as u64
            + f as u64
            + g as u64
            + h.len() as u64
    };
    assert_eq!(
        within("eight arguments", pool.spawn(sum, (1, 2, 3, 4, 5, 6, 7, "8".into())))
            .await
            .unwrap(),
        29
    );
    scene.end().await;
}

#[tokio::test]
async fn arguments_may_be_borrowed_and_confined_to_their_thread() {
    let scene = Scene::new(1);
    let pool = &scene.pool;
    let text = std::rc::Rc::new("borrowed".to_owned());
    assert_eq!(within("&str", pool.spawn(|s: String| s.len(), text.as_str())).await.unwrap(), 8);
    assert_eq!(
        within("&[T]", pool.spawn(|v: Vec<u32>| v.len(), &[1_u32, 2, 3][..])).await.unwrap(),
        3
    );
    assert!(
        within("&Path", pool.spawn(|p: PathBuf| p.is_absolute(), Path::new("/x"))).await.unwrap()
    );
    assert!(
        within("&str for a path", pool.spawn(|p: PathBuf| p == Path::new("/x"), "/x"))
            .await
            .unwrap()
    );
    let pair = (String::from("a"), 2);
    assert_eq!(
        within("&(A, B)", pool.spawn(|s: String, n: usize| s.repeat(n), &pair)).await.unwrap(),
        "aa"
    );
    assert_eq!(
        within("a pair as one", pool.spawn(|(s, n): (String, usize)| s.repeat(n), &pair))
            .await
            .unwrap(),
        "aa"
    );
    scene.end().await;
}

#[tokio::test]
async fn panics_cost_only_their_own_tasks() {
    let scene = Scene::new(4);
    let every_fourth = |n: u32| {
        assert!(n % 4 != 3, "number {n}");
        n
    };
    let handles: Vec<_> = (0..16).map(|n| scene.pool.spawn(every_fourth, n)).collect();
    for (n, outcome) in (0..).zip(within("16 tasks", join_all(handles)).await) {
        match outcome {
            Ok(value) => assert_eq!((value, n % 4 == 3), (n, false)),
            Err(error) => {
                assert_eq!((error.panic_message(), n % 4), (Some(&*format!("number {n}")), 3))
            }
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn handles_that_nobody_awaits_hold_up_no_worker() {
    let scene = Scene::new(2);
    let marks = scene.marks("done");
    let work = |n: usize, marks: PathBuf| {
        mark(marks, n);
        (n, "x".repeat(300_000)) // more than a socket takes in
    };
    let handles: Vec<_> =
        (0..10).map(|n| scene.pool.spawn(work, (n, marks.path().to_owned()))).collect();
    marks.count(10).await;
    let done: HashSet<_> =
        marks.lines().iter().map(|line| line.parse::<usize>().unwrap()).collect();
    assert_eq!(done, (0..10).collect());
    for (n, handle) in handles.into_iter().enumerate().rev() {
        let (number, text) = within("a handle", handle).await.unwrap();
        assert_eq!((number, text.len()), (n, 300_000));
    }
    scene.end().await;
}

#[tokio::test]
async fn no_more_tasks_run_than_there_are_workers() {
    let scene = Scene::new(2);
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let work = |gate: PathBuf, marks: PathBuf| {
        mark(marks, std::process::id());
        pass(gate);
    };
    let handles: Vec<_> = (0..30)
        .map(|_| scene.pool.spawn(work, (gate.path().to_owned(), marks.path().to_owned())))
        .collect();
    marks.count(2).await;
    let running: HashSet<u32> = marks.lines().iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(running.len(), 2, "two tasks in one worker");
    let workers: HashSet<u32> = scene.workers().iter().map(|worker| worker.pid).collect();
    assert_eq!(workers, running, "a process that runs nothing");
    let placed: HashSet<u32> = handles.iter().filter_map(|handle| handle.worker_pid()).collect();
    assert_eq!(placed, running);
    assert_eq!(
        handles.iter().filter(|handle| handle.worker_pid().is_some()).count(),
        2,
        "queued tasks have no worker"
    );
    assert!(handles.iter().all(|handle| !handle.is_finished()));
    assert_eq!(marks.lines().len(), 2, "more than two tasks run");
    gate.open();
    for outcome in within("30 tasks", join_all(handles)).await {
        outcome.unwrap();
    }
    assert_eq!(marks.lines().len(), 30);
    let ran_in: HashSet<u32> = marks.lines().iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(ran_in, running);
    scene.end().await;
}

#[tokio::test]
async fn an_idle_worker_is_used_again() {
    let scene = Scene::new(4);
    let mut pids = HashSet::new();
    for _ in 0..3 {
        pids.insert(within("a task", scene.pool.spawn(pid, ())).await.unwrap());
    }
    assert_eq!(pids.len(), 1);
    assert_eq!(scene.workers().iter().map(|worker| worker.pid).collect::<HashSet<_>>(), pids);
    scene.end().await;
}

#[tokio::test]
async fn two_tasks_at_once_make_no_more_than_two_workers() {
    let scene = Scene::new(4);
    for round in 0..3 {
        let mut gate = scene.gate(&format!("gate {round}"));
        let marks = scene.marks(&format!("started {round}"));
        let work = |gate: PathBuf, marks: PathBuf| {
            mark(marks, "");
            pass(gate);
        };
        let args = (gate.path().to_owned(), marks.path().to_owned());
        let two = [scene.pool.spawn(work, &args), scene.pool.spawn(work, &args)];
        marks.count(2).await; // they do run at once
        assert_eq!(scene.workers().len(), 2);
        gate.open();
        within("two tasks", join_all(two)).await.into_iter().for_each(|outcome| outcome.unwrap());
    }
    scene.end().await;
}

#[tokio::test]
async fn a_new_pool_has_no_process_until_it_is_given_a_task() {
    let scene = Scene::new(3);
    assert_eq!(scene.workers(), []);
    within("ready", scene.pool.ready()).await.unwrap();
    assert_eq!(scene.workers().len(), 3);
    scene.end().await;
}

#[tokio::test]
async fn the_greatest_and_the_least_frame_limit_are_those_that_are_documented() {
    for limit in [(4 << 30) - (1 << 10), 1 << 10] {
        Scene::with(|builder| builder.workers(1).frame_limit(limit)).end().await;
    }
}

#[test]
fn options_that_make_no_sense_are_refused_by_build() {
    let builders = [
        Pool::builder().workers(0),
        Pool::builder().queue_limit(0),
        Pool::builder().queue_limit(usize::MAX),
        Pool::builder().concurrency(0),
        Pool::builder().frame_limit(0),
        Pool::builder().stdout(Stdio::piped()),
        Pool::builder().stderr(Stdio::piped()),
        Pool::builder().frame_limit(usize::MAX),
        Pool::builder().frame_limit((4 << 30) - 1023),
        Pool::builder().start_timeout(Duration::ZERO),
        Pool::builder()
            .frame_limit(1 << 10)
            .on_worker_start(|_: String| Ok::<_, String>(()), "x".repeat(2000)),
    ];
    for builder in builders {
        let text = format!("{builder:?}");
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{text}");
        let (option, reason) = (error.option().unwrap(), error.reason().unwrap());
        assert_eq!(error.to_string(), format!("invalid option {option}: {reason}"));
        assert!(text.contains(option), "{option}: {text}");
    }
}

/// Of a large argument nothing stays in the application; measured in a process of its own.
#[tokio::test]
async fn large_arguments_are_given_back() {
    const SIZE: usize = 50 << 20;
    const SLACK: usize = 10 << 20;
    async fn measure() {
        let scene = Scene::new(1);
        let count = |bytes: ByteBuf| bytes.len();
        let count_and_mark = |bytes: ByteBuf, marks: PathBuf| mark(marks, bytes.len());
        let large = || ByteBuf::from(vec![7; SIZE]);
        assert_eq!(
            within("a small one", scene.pool.spawn(count, ByteBuf::from([1, 2, 3]))).await.unwrap(),
            3
        );
        let before = resident();
        for _ in 0..2 {
            assert_eq!(
                within("a large one", scene.pool.spawn(count, large())).await.unwrap(),
                SIZE
            );
            until("the memory is back", || resident() < before + SLACK).await;
        }
        // There and back again.
        let back =
            within("a large one back", scene.pool.spawn(echo::<ByteBuf>, large())).await.unwrap();
        assert_eq!(back.len(), SIZE);
        drop(back);
        until("the memory is back, also of the result", || resident() < before + SLACK).await;
        // Nobody awaits it.
        let marks = scene.marks("done");
        drop(scene.pool.spawn(count_and_mark, (large(), marks.path().to_owned())));
        marks.count(1).await;
        until("the memory is back without an await", || resident() < before + SLACK).await;
        drop(scene.pool.spawn(echo::<ByteBuf>, large()));
        within("a task behind it", scene.pool.spawn(pid, ())).await.unwrap();
        until("nor does a result stay", || resident() < before + SLACK).await;
        scene.end().await;
    }
    support::alone(measure).await;
}

// ---- the backlog's bound

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_encodes_nothing() {
    let scene = Scene::with(|builder| builder.workers(1).queue_limit(2));
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let work = |gate: PathBuf, marks: PathBuf| {
        mark(marks, "");
        pass(gate);
    };
    let running = scene.pool.spawn(work, (gate.path().to_owned(), marks.path().to_owned()));
    marks.count(1).await; // it holds no place in the queue any more
    let queued = [scene.pool.spawn(echo::<u32>, 1), scene.pool.spawn(echo::<u32>, 2)];
    let mut refused = scene.pool.spawn(drop::<Unspeakable>, Unspeakable);
    assert!(refused.is_finished());
    assert_eq!(refused.worker_pid(), None);
    let error = refused.try_join().unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.is_queue_full(), error.pid()),
        (TaskErrorKind::QueueFull, true, None)
    );
    gate.open();
    within("the one that ran", running).await.unwrap();
    for (n, outcome) in (1..).zip(within("queued ones", join_all(queued)).await) {
        assert_eq!(outcome.unwrap(), n);
    }
    scene.end().await;
}

#[tokio::test]
async fn spawn_wait_waits_for_room_and_no_longer() {
    let scene = Scene::with(|builder| builder.workers(1).queue_limit(1));
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let work = |n: u32, gate: PathBuf, marks: PathBuf| {
        mark(marks, n);
        pass(gate);
        n
    };
    let args = |n: u32| (n, gate.path().to_owned(), marks.path().to_owned());
    let first = within("room for the first", scene.pool.spawn_wait(work, args(1))).await;
    marks.count(1).await;
    let second = within("room for the second", scene.pool.spawn_wait(work, args(2))).await;
    let mut third = Box::pin(scene.pool.spawn_wait(work, args(3)));
    assert!(is_pending(&mut third).await);
    // One that is given up takes no place.
    let mut given_up = Box::pin(scene.pool.spawn_wait(work, args(99)));
    assert!(is_pending(&mut given_up).await);
    drop(given_up);
    assert!(scene.pool.spawn(work, args(98)).await.unwrap_err().is_queue_full());
    let mut fourth = Box::pin(scene.pool.spawn_wait(work, args(4)));
    assert!(is_pending(&mut fourth).await);
    gate.open();
    assert_eq!(within("the first", first).await.unwrap(), 1);
    let third = within("room for the third", third).await;
    let fourth = within("room for the fourth", fourth).await;
    assert_eq!(within("the second", second).await.unwrap(), 2);
    assert_eq!(within("the third", third).await.unwrap(), 3);
    assert_eq!(within("the fourth", fourth).await.unwrap(), 4);
    assert_eq!(marks.lines(), ["1", "2", "3", "4"]);
    scene.end().await;
}

#[tokio::test]
async fn an_aborted_task_gives_its_place_in_the_queue_back() {
    let scene = Scene::with(|builder| builder.workers(1).queue_limit(1));
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let work = |gate: PathBuf, marks: PathBuf| {
        mark(marks, "");
        pass(gate);
    };
    let running = scene.pool.spawn(work, (gate.path().to_owned(), marks.path().to_owned()));
    marks.count(1).await;
    for n in 0..100 {
        let queued = scene.pool.spawn(echo::<u32>, n);
        assert!(!queued.is_finished());
        queued.abort();
        assert!(within("the aborted one", queued).await.unwrap_err().is_cancelled());
    }
    // Nor does one that cannot be encoded keep a place.
    for _ in 0..3 {
        let bad = scene.pool.spawn(drop::<Unspeakable>, Unspeakable).await.unwrap_err();
        assert_eq!(bad.kind(), TaskErrorKind::ArgumentEncode);
    }
    let last = scene.pool.spawn(echo::<u32>, 100);
    gate.open();
    within("the one that ran", running).await.unwrap();
    assert_eq!(within("the last one", last).await.unwrap(), 100);
    scene.end().await;
}

#[derive(Debug, Deserialize)]
struct Unspeakable;

impl Serialize for Unspeakable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("unspeakable"))
    }
}

#[tokio::test]
async fn those_who_wait_for_room_are_told_of_the_end() {
    let scene = Scene::with(|builder| builder.workers(1).queue_limit(1));
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let work = |gate: PathBuf, marks: PathBuf| {
        mark(marks, "");
        pass(gate);
    };
    let running = scene.pool.spawn(work, (gate.path().to_owned(), marks.path().to_owned()));
    marks.count(1).await;
    let queued = scene.pool.spawn(echo::<u32>, 1);
    let mut waiting = Box::pin(scene.pool.spawn_wait(echo::<u32>, 2));
    assert!(is_pending(&mut waiting).await);
    let mut shutdown = Box::pin(scene.pool.shutdown());
    assert!(is_pending(&mut shutdown).await);
    let late = within("no more room, ever", waiting).await;
    assert!(within("the late one", late).await.unwrap_err().is_pool_closed());
    assert!(
        within("a later one", scene.pool.spawn(echo::<u32>, 3)).await.unwrap_err().is_pool_closed()
    );
    gate.open();
    within("shut down", shutdown).await;
    within("the one that ran", running).await.unwrap();
    assert_eq!(within("the queued one", queued).await.unwrap(), 1);
    assert_eq!(scene.workers(), []);
}
