//! The handles of tasks: asking, waiting, detaching; and what all handles are to the compiler.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{FUSE, Scene, gone, holdings, is_pending, mark, pass, until, within};
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use procpool::{
    AbortHandle, Builder, Error, Failure, JoinHandle, NamedTask, Pool, Results, TaskBuilder,
    TaskError, TryResults,
};
use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

fn echo(n: u32) -> u32 {
    n
}

fn mark_and_pass(n: u32, gate: PathBuf, marks: PathBuf) -> u32 {
    mark(marks, n);
    pass(gate);
    n
}

fn wait_until(what: &str, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(start.elapsed() < FUSE, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn try_join_asks_without_waiting_and_gives_the_result_once() {
    let scene = Scene::new(1);
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let mut handle =
        scene.pool.spawn(mark_and_pass, (7, gate.path().to_owned(), marks.path().to_owned()));
    assert!(handle.try_join().is_none() && !handle.is_finished());
    marks.count(1).await;
    assert!(handle.try_join().is_none() && !handle.is_finished());
    gate.open();
    until("it has finished", || handle.is_finished()).await;
    assert_eq!(handle.try_join().unwrap().unwrap(), 7);
    assert!(handle.is_finished());
    assert_eq!(handle.worker_pid(), None);
    catch_unwind(AssertUnwindSafe(|| handle.try_join())).expect_err("the result has been taken");
    scene.end().await;
}

#[tokio::test]
async fn a_handle_awaited_by_reference_may_be_given_up_and_taken_up_again() {
    let scene = Scene::new(1);
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let mut handle =
        scene.pool.spawn(mark_and_pass, (7, gate.path().to_owned(), marks.path().to_owned()));
    for _ in 0..10 {
        assert!(is_pending(&mut handle).await);
    }
    gate.open();
    assert_eq!(within("the result", &mut handle).await.unwrap(), 7);
    catch_unwind(AssertUnwindSafe(|| handle.try_join())).expect_err("the result has been taken");
    scene.end().await;
}

#[test]
fn blocking_join_waits_outside_of_any_runtime_and_panics_within() {
    // No runtime at all.
    let scene = Scene::new(2);
    let handles: Vec<_> = (0..20).map(|n| scene.pool.spawn(echo, n)).collect();
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(handle.blocking_join().unwrap(), n);
    }
    let died =
        scene.pool.spawn(|| -> u8 { std::process::exit(3) }, ()).blocking_join().unwrap_err();
    assert_eq!(died.exit_status().and_then(|status| status.code()), Some(3));

    // A runtime that stands still.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let still = runtime.block_on(async { Scene::new(1) });
    assert_eq!(still.pool.spawn(echo, 7).blocking_join().unwrap(), 7);

    // A thread beside one that turns; and within.
    runtime.block_on(async {
        let pool = still.pool.clone();
        let there =
            tokio::task::spawn_blocking(move || pool.spawn(echo, 8).blocking_join().unwrap());
        assert_eq!(within("the other thread", there).await.unwrap(), 8);
        let handle = still.pool.spawn(echo, 9);
        catch_unwind(AssertUnwindSafe(|| handle.blocking_join()))
            .expect_err("it would block the runtime");
        still.end().await;
        scene.end().await;
    });
}

#[test]
fn blocking_join_with_a_limit_gives_up_and_may_be_asked_again() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let scene = Scene::new(1);
    let mut gate = scene.gate("gate");
    let mut handle = scene
        .pool
        .spawn(mark_and_pass, (7, gate.path().to_owned(), scene.marks("marks").path().to_owned()));
    let abort = handle.abort_handle();
    let limit = Duration::from_millis(20);
    let begun = Instant::now();
    assert!(handle.blocking_join_timeout(limit).is_none());
    assert!(begun.elapsed() >= limit);
    assert!(handle.blocking_join_timeout(Duration::ZERO).is_none());
    assert!(!abort.is_finished() && !handle.is_finished());
    gate.open();
    assert_eq!(handle.blocking_join_timeout(FUSE).unwrap().unwrap(), 7);
    assert!(abort.is_finished() && handle.is_finished());
    assert!(
        catch_unwind(AssertUnwindSafe(|| handle.blocking_join_timeout(FUSE))).is_err(),
        "it has been taken"
    );
    let panic = catch_unwind(AssertUnwindSafe(|| handle.blocking_join())).unwrap_err();
    let message = panic.downcast::<&str>().unwrap();
    assert!(
        message.contains("`blocking_join` called after"),
        "as its twin with a limit: {message}"
    );
    // Calls with the same options.
    let call = scene.pool.task(echo).retries(1);
    let sum: u32 =
        (0..4).map(|n| call.clone().spawn(n).blocking_join_timeout(FUSE).unwrap().unwrap()).sum();
    assert_eq!(sum, 6);
    runtime.block_on(scene.end());
}

/// Whoever asks in a loop waits, too: the pool goes on although its runtime stands still.
#[test]
fn asking_in_a_loop_needs_no_runtime_that_turns() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let scene = runtime.block_on(async { Scene::new(1) });
    for round in 0..20 {
        let handle = scene.pool.spawn(echo, round);
        wait_until("it has finished", || handle.is_finished());
        assert_eq!(handle.blocking_join().unwrap(), round);
        let mut handle = scene.pool.spawn(echo, round);
        let mut outcome = None;
        wait_until("it has been joined", || {
            outcome = handle.try_join();
            outcome.is_some()
        });
        assert_eq!(outcome.unwrap().unwrap(), round);
        let handle = scene.pool.spawn(echo, round);
        wait_until("its worker has let it go", || {
            handle.worker_pid().is_none() && handle.is_finished()
        });
    }
    runtime.block_on(scene.end());
}

#[tokio::test]
async fn a_task_tells_its_worker_while_it_has_one() {
    let scene = Scene::new(1);
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let args = |n: u32| (n, gate.path().to_owned(), marks.path().to_owned());
    let running = scene.pool.spawn(mark_and_pass, args(1));
    marks.count(1).await;
    let queued = scene.pool.spawn(mark_and_pass, args(2));
    assert_eq!(running.worker_pid(), Some(scene.workers()[0].pid));
    assert_eq!(queued.worker_pid(), None);
    gate.open();
    until("both have finished", || running.is_finished() && queued.is_finished()).await;
    assert_eq!((running.worker_pid(), queued.worker_pid()), (None, None));
    within("the first", running).await.unwrap();
    within("the second", queued).await.unwrap();
    scene.end().await;
}

#[tokio::test]
async fn a_dropped_handle_detaches_its_task() {
    let scene = Scene::new(1);
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("ran"));
    let args = |n: u32| (n, gate.path().to_owned(), marks.path().to_owned());
    drop(scene.pool.spawn(mark_and_pass, args(1)));
    marks.count(1).await;
    drop(scene.pool.spawn(mark_and_pass, args(2))); // queued
    let in_async = async |n: u32, marks: PathBuf| {
        tokio::task::yield_now().await;
        mark(marks, n);
    };
    drop(scene.pool.spawn(in_async, (3, marks.path().to_owned())));
    drop(scene.pool.spawn(|| -> u8 { std::panic::resume_unwind(Box::new("nobody hears")) }, ()));
    gate.open();
    marks.count(3).await;
    assert_eq!(marks.lines(), ["1", "2", "3"]);
    scene.end().await;
}

#[tokio::test]
async fn numbers_of_tasks_are_unique_and_rise() {
    let scene = Scene::new(2);
    let handles: Vec<_> = (0..100).map(|n| scene.pool.spawn(echo, n)).collect();
    assert_eq!(
        handles.iter().map(|handle| handle.id().get()).collect::<Vec<_>>(),
        (1..=100).collect::<Vec<_>>()
    );
    assert!(handles.iter().all(|handle| handle.abort_handle().id() == handle.id()));
    within("all", join_all(handles)).await;
    scene.end().await;
}

#[tokio::test]
async fn tasks_may_be_handed_in_from_many_threads_at_once() {
    let scene = Scene::new(2);
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let pool = scene.pool.clone();
            tokio::task::spawn_blocking(move || {
                (0..200).map(|n| pool.spawn(echo, thread * 1000 + n)).collect::<Vec<_>>()
            })
        })
        .collect();
    let mut ids = HashSet::new();
    for (thread, handles) in (0..).zip(within("8 threads", join_all(threads)).await) {
        for (n, handle) in (0..).zip(handles.unwrap()) {
            assert!(ids.insert(handle.id()));
            assert_eq!(within("a task", handle).await.unwrap(), thread * 1000 + n);
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn handles_outlive_their_pool() {
    let scene = Scene::new(1);
    let (gate, marks) = (scene.gate("never opened"), scene.marks("started"));
    let done = scene.pool.spawn(echo, 7);
    until("it has finished", || done.is_finished()).await;
    let running =
        scene.pool.spawn(mark_and_pass, (1, gate.path().to_owned(), marks.path().to_owned()));
    marks.count(1).await;
    let queued = scene.pool.spawn(echo, 8);
    let mut results = scene
        .pool
        .map(mark_and_pass, vec![(2, gate.path().to_owned(), marks.path().to_owned()); 3]);
    assert!(is_pending(&mut results.next()).await);
    let workers = scene.workers();
    let abort = queued.abort_handle();
    let clone = scene.pool.clone();
    drop(scene); // the pool lives, by its clone
    assert!(!running.is_finished() && !workers[0].is_gone());
    drop(clone);
    assert_eq!(within("what was done", done).await.unwrap(), 7);
    assert!(within("what ran", running).await.unwrap_err().is_pool_closed());
    assert!(within("what waited", queued).await.unwrap_err().is_pool_closed());
    for _ in 0..3 {
        assert!(
            within("what was mapped", results.next()).await.unwrap().unwrap_err().is_pool_closed()
        );
    }
    assert!(within("the end", results.next()).await.is_none());
    abort.abort();
    gone(&workers).await;
}

/// Many rounds of everything leave no descriptor and no thread; measured in a process of its own.
#[tokio::test]
async fn pools_leave_nothing_behind() {
    async fn round() {
        let scene = Scene::new(2);
        let numbers: Vec<_> = within("a map", scene.pool.map(echo, 0..100).collect()).await;
        assert_eq!(numbers.len(), 100);
        let marks = scene.marks("started");
        let stuck = scene.pool.spawn(
            |marks: PathBuf| -> () {
                mark(marks, "");
                loop {
                    std::thread::park();
                }
            },
            marks.path(),
        );
        marks.count(1).await;
        stuck.abort();
        assert!(
            within("the aborted one", stuck)
                .await
                .is_err_and(|error: TaskError| error.is_cancelled())
        );
        assert!(
            within("a death", scene.pool.spawn(|| -> u8 { std::process::exit(1) }, ()))
                .await
                .unwrap_err()
                .is_worker_died()
        );
        scene.end().await;

        // Never used; and dropped while it works.
        drop(Scene::new(2));
        let scene = Scene::new(2);
        let gate = scene.gate("never opened");
        let marks = scene.marks("started");
        let handles: Vec<_> = (0..4)
            .map(|n| {
                scene
                    .pool
                    .spawn(mark_and_pass, (n, gate.path().to_owned(), marks.path().to_owned()))
            })
            .collect();
        marks.count(2).await;
        let workers = scene.workers();
        drop(scene);
        assert!(
            within("4 ends", join_all(handles))
                .await
                .into_iter()
                .all(|outcome| outcome.is_err_and(|error| error.is_pool_closed()))
        );
        gone(&workers).await;
    }
    async fn rounds() {
        round().await;
        let before = holdings();
        for _ in 0..20 {
            round().await;
        }
        // What was dropped last may still be on its way to be closed.
        until("descriptors and threads are back", || {
            let now = holdings();
            now.0 <= before.0 && now.1 <= before.1
        })
        .await;
    }
    support::alone(rounds).await;
}

#[tokio::test]
async fn every_handle_has_a_debug_text_that_names_it() {
    let scene = Scene::with(|builder| builder.workers(1).name("dbg"));
    let pool = &scene.pool;
    let handle = pool.spawn(echo, 1);
    let texts = [
        (format!("{pool:?}"), "Pool {"),
        (format!("{:?}", Pool::builder()), "Builder {"),
        (format!("{:?}", pool.task(echo)), "TaskBuilder {"),
        (format!("{handle:?}"), "JoinHandle {"),
        (format!("{:?}", handle.abort_handle()), "AbortHandle {"),
        (format!("{:?}", pool.map(echo, 0..3)), "Results {"),
        (
            format!("{:?}", pool.try_map_stream(echo, stream::empty::<Result<u32, String>>())),
            "TryResults {",
        ),
        (format!("{:?}", Pool::builder().workers(0).build().unwrap_err()), "Error {"),
    ];
    for (text, start) in texts {
        assert!(text.starts_with(start), "{text}");
    }
    assert!(format!("{pool:?}").contains("\"dbg\""));
    assert!(format!("{handle:?}").contains("echo"));
    within("a task", handle).await.unwrap();
    scene.end().await;
}

#[test]
fn handles_go_where_they_should() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    fn unpin<T: Unpin>() {}
    fn lives_for_ever<T: 'static>() {}
    macro_rules! all {
        ($($type:ty),+ $(,)?) => { $( send::<$type>(); sync::<$type>(); unpin::<$type>(); lives_for_ever::<$type>(); )+ };
    }
    all!(Pool, Builder, AbortHandle, Error, TaskError, Failure, TaskBuilder<'static, (), ()>, NamedTask<(), ()>);
    // The handle holds no result, so it goes where the result may not.
    all!(JoinHandle<u32>, JoinHandle<Cell<u32>>, JoinHandle<Rc<u32>>, JoinHandle<*const u8>);
    type Over<S> = Results<S, (u32,), Rc<u32>>;
    // It is as its source is, except that a source's panic is kept in it, which is not Sync.
    send::<Over<stream::Iter<std::ops::Range<u32>>>>();
    send::<
        TryResults<stream::Iter<std::vec::IntoIter<Result<u32, String>>>, String, (u32,), Rc<u32>>,
    >();
    unpin::<Over<stream::Iter<std::ops::Range<u32>>>>();
    unpin::<Over<std::marker::PhantomPinned>>();
    unpin::<TryResults<std::marker::PhantomPinned, String, (u32,), u32>>();
}

/// The futures may be spawned on a runtime of many threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_of_the_pool_may_move_between_threads() {
    let scene = Scene::with(|builder| builder.workers(2).queue_limit(10));
    let pool = scene.pool.clone();
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move {
                pool.ready().await.unwrap();
                let first = pool.spawn_wait(echo, n).await.await.unwrap();
                let mapped: Vec<_> = pool.map(echo, n..n + 3).collect().await;
                (first, mapped.into_iter().map(Result::unwrap).collect::<Vec<_>>())
            })
        })
        .collect();
    for (n, outcome) in (0..).zip(within("50 tasks", join_all(tasks)).await) {
        assert_eq!(outcome.unwrap(), (n, vec![n, n + 1, n + 2]));
    }
    drop(pool);
    tokio::spawn(scene.end()).await.unwrap();
}

/// A waker is the caller's code, and runs where the pool is turned.
#[tokio::test]
async fn a_waker_that_panics_stops_nobody_else() {
    struct Panics;
    impl futures::task::ArcWake for Panics {
        fn wake_by_ref(_: &std::sync::Arc<Self>) {
            panic!("woken");
        }
    }
    let scene = Scene::new(1);
    let gate = scene.gate("gate");
    let mut handle = scene.pool.spawn(pass, gate.path().to_owned());
    let waker = futures::task::waker(std::sync::Arc::new(Panics));
    assert!(
        std::pin::Pin::new(&mut handle)
            .poll(&mut std::task::Context::from_waker(&waker))
            .is_pending()
    );
    let mut gate = gate;
    gate.open();
    for n in 0..10 {
        assert_eq!(within("the others", scene.pool.spawn(|n: u32| n, n)).await.unwrap(), n);
    }
    within("its own", handle).await.unwrap();
    scene.end().await;
}
