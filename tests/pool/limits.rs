//! Time limits, retries, and what else stops a task.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "a signal that is ignored")]

use crate::support::{Proc, Scene, gone, mark, pass, pass_async, until, within};
use futures::StreamExt;
use futures::future::join_all;
use procpool::{ExitReason, TaskError, TaskErrorKind};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_millis(50);

fn echo(n: u32) -> u32 {
    n
}

fn spin(marks: PathBuf) {
    mark(marks, std::process::id());
    loop {
        std::hint::spin_loop();
    }
}

fn sleep(time: Duration) -> Duration {
    std::thread::sleep(time);
    time
}

fn stand_still(marks: PathBuf) {
    mark(marks, std::process::id());
    stop_self();
}

fn ignore_terminate_and_sleep() {
    // SAFETY: a disposition, no handler.
    unsafe {
        nix::sys::signal::signal(
            nix::sys::signal::Signal::SIGTERM,
            nix::sys::signal::SigHandler::SigIgn,
        )
    }
    .unwrap();
    loop {
        std::thread::park();
    }
}

fn stop_self() {
    nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGSTOP).unwrap();
}

#[track_caller]
fn timed_out(error: &TaskError, limit: Duration) {
    assert_eq!(
        (error.kind(), error.is_timeout(), error.time_limit()),
        (TaskErrorKind::TimedOut, true, Some(limit)),
        "{error}"
    );
}

#[tokio::test]
async fn a_limit_ends_a_loop_a_stopped_process_and_one_that_ignores_signals() {
    let scene = Scene::new(1);
    for round in 0..3 {
        let marks = scene.marks(&format!("worker {round}"));
        let handle = match round {
            0 => scene.pool.task(spin).timeout(LIMIT).spawn(marks.path()),
            1 => scene.pool.task(stand_still).timeout(LIMIT).spawn(marks.path()),
            _ => scene.pool.task(ignore_terminate_and_sleep).timeout(LIMIT).spawn(()),
        };
        let begun = Instant::now();
        timed_out(&within("the limit", handle).await.unwrap_err(), LIMIT);
        assert!(begun.elapsed() >= LIMIT);
        if round < 2 {
            // What is told has happened: the process does not exist any more.
            let pid: u32 = marks.lines()[0].parse().unwrap();
            assert_eq!(Proc::of(pid), None);
        }
        assert_eq!(within("the next", scene.pool.spawn(echo, 7)).await.unwrap(), 7);
    }
    scene.end().await;
}

#[tokio::test]
async fn a_limit_counts_from_the_start_and_never_hits_another_task() {
    let scene = Scene::new(1);
    // Quick ones and slow ones behind one that takes six times their limit.
    let slow = scene.pool.spawn(sleep, 6 * LIMIT);
    let quick: Vec<_> = (0..5).map(|n| scene.pool.task(echo).timeout(LIMIT).spawn(n)).collect();
    let behind = scene.pool.task(sleep).timeout(LIMIT).spawn(Duration::from_secs(3600));
    let last = scene.pool.task(echo).timeout(LIMIT).spawn(9);
    within("the slow one", slow).await.unwrap();
    for (n, handle) in (0..).zip(quick) {
        assert_eq!(within("a quick one", handle).await.unwrap(), n);
    }
    timed_out(&within("the one behind", behind).await.unwrap_err(), LIMIT);
    assert_eq!(within("the last", last).await.unwrap(), 9);
    scene.end().await;
}

#[tokio::test]
async fn just_those_that_are_over_it_are_ended() {
    let scene = Scene::new(3);
    let times = [0, 3600, 1, 3600, 2, 3600];
    let handles = times.map(|seconds| {
        let time = if seconds == 3600 {
            Duration::from_secs(3600)
        } else {
            Duration::from_millis(seconds)
        };
        scene.pool.task(sleep).timeout(2 * LIMIT).spawn(time)
    });
    for (seconds, handle) in times.into_iter().zip(handles) {
        match within("a task", handle).await {
            Ok(_) => assert!(seconds < 3600),
            Err(error) => {
                assert_eq!(seconds, 3600);
                timed_out(&error, 2 * LIMIT);
            }
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn a_pool_has_a_limit_for_all_and_a_call_may_have_another() {
    let scene = Scene::with(|builder| builder.workers(2).timeout(LIMIT));
    let long = scene.pool.task(sleep).timeout(Duration::from_secs(3600)).spawn(3 * LIMIT);
    timed_out(
        &within("the pool's limit", scene.pool.spawn(sleep, Duration::from_secs(3600)))
            .await
            .unwrap_err(),
        LIMIT,
    );
    assert_eq!(within("the call's own", long).await.unwrap(), 3 * LIMIT);
    let outcomes: Vec<_> = scene
        .pool
        .map(sleep, [Duration::ZERO, Duration::from_secs(3600), Duration::ZERO])
        .collect()
        .await;
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    timed_out(outcomes[1].as_ref().unwrap_err(), LIMIT);
    assert_eq!(outcomes[1].as_ref().unwrap_err().item(), Some(1));
    scene.end().await;
}

#[tokio::test]
async fn an_async_task_over_its_limit_is_dropped_and_its_neighbours_go_on() {
    let scene = Scene::new(1);
    let mut gate = scene.gate("gate");
    let neighbour = scene.pool.spawn(async |gate: PathBuf| pass_async(gate).await, gate.path());
    let forever =
        scene.pool.task(async || std::future::pending::<()>().await).timeout(LIMIT).spawn(());
    timed_out(&within("the limit", forever).await.unwrap_err(), LIMIT);
    gate.open();
    within("the neighbour", neighbour).await.unwrap();
    // One that reaches no await point costs its process.
    let stuck = scene
        .pool
        .task(async |marks: PathBuf| spin(marks))
        .timeout(LIMIT)
        .grace(LIMIT)
        .spawn(scene.marks("spins").path());
    timed_out(&within("the one that spins", stuck).await.unwrap_err(), LIMIT);
    scene.end().await;
}

#[tokio::test]
async fn a_deadline_counts_the_queue_and_the_retries() {
    let scene = Scene::new(1);
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("ran"));
    let running = scene.pool.spawn(|gate: PathBuf| pass(gate), gate.path());
    let waiting =
        scene.pool.task(|marks: PathBuf| mark(marks, "ran")).deadline(LIMIT).spawn(marks.path());
    timed_out(&within("the one that waits", waiting).await.unwrap_err(), LIMIT);
    gate.open();
    within("the running one", running).await.unwrap();
    let endless = scene
        .pool
        .task(|| -> () { std::process::abort() })
        .retries(254)
        .backoff(LIMIT, LIMIT)
        .deadline(5 * LIMIT)
        .spawn(());
    let error = within("the one that is tried again", endless).await.unwrap_err();
    timed_out(&error, 5 * LIMIT);
    assert_eq!((error.is_deadline(), error.attempt()), (true, error.earlier_attempts().len() + 1));
    assert!(
        error.earlier_attempts().iter().all(TaskError::is_worker_died)
            && !error.earlier_attempts().is_empty()
    );
    assert!(marks.lines().is_empty());
    scene.end().await;
}

#[tokio::test]
async fn half_an_answer_does_not_keep_a_limit_from_its_time() {
    // G-095 (b): the worker stands still in the middle of a large result.
    let scene = Scene::new(1);
    let large = |marks: PathBuf| -> Vec<u8> {
        mark(marks, std::process::id());
        // The pool reads what the socket takes, and then nothing more comes.
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(1));
            stop_self();
        });
        vec![1; 256 << 20]
    };
    let handle = scene.pool.task(large).timeout(2 * LIMIT).spawn(scene.marks("worker").path());
    let error = within("the limit", handle).await.unwrap_err();
    timed_out(&error, 2 * LIMIT);
    assert_eq!((error.is_deadline(), error.attempt()), (false, 1));
    scene.end().await;
}

#[tokio::test]
async fn a_task_that_dies_is_tried_again_and_can_tell() {
    let scene = Scene::new(1);
    let flaky = || match procpool::attempt() {
        Some(n) if n < 3 => std::process::abort(),
        other => other,
    };
    assert_eq!(
        within("its third try", scene.pool.task(flaky).retries(2).spawn(())).await.unwrap(),
        Some(3)
    );
    let error =
        within("its last try", scene.pool.task(flaky).retries(1).spawn(())).await.unwrap_err();
    assert!(error.is_worker_died());
    assert_eq!(error.earlier_attempts().len(), 1);
    assert_ne!(error.pid(), error.earlier_attempts()[0].pid());
    assert_eq!(procpool::attempt(), None);
    scene.end().await;
}

#[tokio::test]
async fn a_poison_task_stops_after_its_attempts_and_nobody_else_pays() {
    let scene = Scene::new(2);
    let poison = scene
        .pool
        .task(|| -> u32 { std::process::abort() })
        .retries(3)
        .backoff(Duration::from_millis(1), LIMIT)
        .spawn(());
    let others: Vec<_> = (0..200).map(|n| scene.pool.spawn(echo, n)).collect();
    let error = within("the poison", poison).await.unwrap_err();
    assert_eq!((error.kind(), error.earlier_attempts().len()), (TaskErrorKind::WorkerDied, 3));
    for (n, other) in (0..).zip(others) {
        assert_eq!(within("another", other).await.unwrap(), n);
    }
    scene.end().await;
}

#[tokio::test]
async fn panics_are_tried_again_only_if_that_is_wanted() {
    let scene = Scene::new(1);
    let picky = || -> u32 {
        let attempt = procpool::attempt().unwrap();
        assert!(attempt == 2, "try {attempt}");
        attempt
    };
    let once = within("one try", scene.pool.task(picky).retries(5).spawn(())).await.unwrap_err();
    assert!(once.is_panic() && once.earlier_attempts().is_empty());
    assert_eq!(
        within("two tries", scene.pool.task(picky).retries(5).retry_panics(true).spawn(()))
            .await
            .unwrap(),
        2
    );
    let timeouts = scene.pool.task(sleep).timeout(LIMIT).retries(1);
    let error = within("two limits", timeouts.spawn(Duration::from_secs(3600))).await.unwrap_err();
    timed_out(&error, LIMIT);
    assert_eq!(error.earlier_attempts().len(), 1);
    scene.end().await;
}

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
enum Trouble {
    Busy { attempt: u32, bytes: Vec<u8> },
    NoSuchHost,
}

impl Trouble {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

/// Busy until the try of this number, 0: for ever; and how large its errors are.
fn busy_until(attempt: u32, bytes: usize) -> Result<u32, Trouble> {
    match procpool::attempt() {
        Some(now) if now == attempt => Ok(now),
        Some(now) => Err(Trouble::Busy { attempt: now, bytes: vec![7; bytes] }),
        None => Err(Trouble::NoSuchHost),
    }
}

#[tokio::test]
async fn an_own_error_is_tried_again_if_its_predicate_says_so() {
    let scene = Scene::new(1);
    let busy_async = async |attempt: u32, bytes: usize| busy_until(attempt, bytes);
    let transient = || scene.pool.task(busy_until).retries(3).retry_if(Trouble::is_transient);
    assert_eq!(within("its third try", transient().spawn((3, 0))).await.unwrap(), Ok(3));
    let again = scene
        .pool
        .task(busy_async)
        .retries(3)
        .backoff(Duration::from_millis(1), LIMIT)
        .retry_if(|e| e.is_transient());
    assert_eq!(within("its fourth try", again.spawn((4, 0))).await.unwrap(), Ok(4));
    // When it is exhausted, the last one's error is the value that it is; large ones as well.
    for bytes in [0, 100_000] {
        let last = Trouble::Busy { attempt: 4, bytes: vec![7; bytes] };
        assert_eq!(within("its last try", transient().spawn((0, bytes))).await.unwrap(), Err(last));
    }
    // Not of another error, not without a predicate, not without retries.
    let other = || Err::<u32, _>(procpool::attempt());
    let call =
        scene.pool.task(other).retries(3).retry_if(|attempt: &Option<u32>| *attempt == Some(1));
    assert_eq!(within("its second try", call.spawn(())).await.unwrap(), Err(Some(2)));
    assert_eq!(
        within("one try", scene.pool.task(other).retries(3).spawn(())).await.unwrap(),
        Err(Some(1))
    );
    assert_eq!(
        within("one try", scene.pool.task(other).retry_if(|_| true).spawn(())).await.unwrap(),
        Err(Some(1))
    );
    // Each item of a map for itself; and in order.
    let call = scene.pool.task(busy_until).retries(3).retry_if(Trouble::is_transient);
    let results: Vec<_> = call.map([(1, 0), (4, 0), (2, 0)]).map(Result::unwrap).collect().await;
    assert_eq!(results, [Ok(1), Ok(4), Ok(2)]);
    assert_eq!(scene.workers().len(), 1, "it costs no worker");
    scene.end().await;
}

#[tokio::test]
async fn own_errors_are_told_with_what_came_after_them() {
    let scene = Scene::new(1);
    let ends_badly = |bytes: usize| match busy_until(0, bytes) {
        Err(Trouble::Busy { attempt: 3, .. }) => std::process::abort(),
        other => other,
    };
    for (bytes, is_kept) in [(10, true), (100_000, false)] {
        let call = scene.pool.task(ends_badly).retries(2).retry_if(Trouble::is_transient);
        let error = within("its death", call.spawn(bytes)).await.unwrap_err();
        assert!(error.is_worker_died());
        let earlier = error.earlier_attempts();
        assert_eq!(
            earlier.iter().map(TaskError::kind).collect::<Vec<_>>(),
            [TaskErrorKind::TaskReturnedError; 2]
        );
        let second = is_kept.then(|| Trouble::Busy { attempt: 2, bytes: vec![7; bytes] });
        assert_eq!(earlier[1].task_returned_error::<Trouble>(), second);
        assert_eq!(
            (earlier[1].task_returned_error::<u8>(), error.task_returned_error::<Trouble>()),
            (None, None)
        );
        assert_eq!(earlier[0].pid(), error.pid());
    }
    scene.end().await;
}

#[tokio::test]
async fn a_predicate_is_a_part_of_its_task() {
    let scene = Scene::new(1);
    let fails = || Err::<(), _>(std::process::id());
    let panics = |_: &u32| -> bool { panic!("hard to say") };
    let error = within("a panic", scene.pool.task(fails).retries(1).retry_if(panics).spawn(()))
        .await
        .unwrap_err();
    assert_eq!(error.panic_message(), Some("hard to say"));
    let forever = |_: &u32| -> bool {
        loop {
            std::hint::spin_loop();
        }
    };
    let error =
        within("the limit", scene.pool.task(fails).timeout(LIMIT).retry_if(forever).spawn(()))
            .await
            .unwrap_err();
    timed_out(&error, LIMIT);
    // Where the caller is, it does not run.
    let here = std::process::id();
    let elsewhere = |pid: &u32| *pid == std::process::id() && procpool::attempt() == Some(1);
    let pid =
        within("its second try", scene.pool.task(fails).retries(1).retry_if(elsewhere).spawn(()))
            .await
            .unwrap();
    assert_ne!(pid, Err(here));
    scene.end().await;
}

#[cfg(feature = "sync")]
#[tokio::test]
async fn an_own_error_that_is_tried_again_gives_back_what_it_names() {
    let scene = Scene::new(1);
    let queue = scene.pool.manager().queue::<u32>(8).unwrap();
    let sends = |queue: procpool::sync::Queue<u32>| {
        queue.blocking_send(procpool::attempt().unwrap()).unwrap();
        Err::<(), _>(queue)
    };
    let call = scene.pool.task(sends).retries(2).retry_if(|_| true);
    let back = within("its last try", call.spawn(&queue)).await.unwrap().unwrap_err();
    for attempt in 1..=3 {
        assert_eq!(within("an item", back.recv()).await.unwrap(), Some(attempt));
    }
    scene.end().await;
}

#[tokio::test]
async fn a_sync_task_with_a_grace_is_asked_and_may_still_answer() {
    let scene = Scene::new(1);
    let marks = scene.marks("begun");
    let patient = |marks: PathBuf| {
        mark(marks, "begun");
        while !procpool::is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        "gave up".to_string()
    };
    let handle = scene.pool.task(patient).grace(Duration::from_secs(20)).spawn(marks.path());
    marks.count(1).await;
    handle.abort();
    assert_eq!(within("its answer", handle).await.unwrap(), "gave up");
    let handle = scene.pool.task(spin).grace(LIMIT).spawn(marks.path());
    marks.count(2).await;
    handle.abort();
    assert!(within("its end", handle).await.unwrap_err().is_cancelled());
    assert!(!procpool::is_cancelled());
    scene.end().await;
}

#[tokio::test]
async fn a_handle_may_take_its_task_along() {
    let scene = Scene::new(1);
    let marks = scene.marks("begun");
    let handle = scene.pool.spawn(spin, marks.path()).abort_on_drop();
    marks.count(1).await;
    let worker = Proc::of(marks.lines()[0].parse().unwrap()).unwrap();
    drop(handle);
    gone(&[worker]).await;
    // One that has ended is not touched, and the worker neither.
    let pid =
        within("a task", scene.pool.spawn(std::process::id, ()).abort_on_drop()).await.unwrap();
    assert_eq!(within("another", scene.pool.spawn(std::process::id, ())).await.unwrap(), pid);
    scene.end().await;
}

#[tokio::test]
async fn a_token_cancels_whatever_became_of_the_handles() {
    let scene = Scene::new(1);
    let (token, marks) = (CancellationToken::new(), scene.marks("begun"));
    drop(scene.pool.task(spin).cancel_on(&token).spawn(marks.path())); // detached
    marks.count(1).await;
    let waiting = scene.pool.task(echo).cancel_on(&token).spawn(1);
    let other = scene.pool.spawn(echo, 2);
    let worker = Proc::of(marks.lines()[0].parse().unwrap()).unwrap();
    token.cancel();
    gone(&[worker]).await;
    assert!(within("the one that waits", waiting).await.unwrap_err().is_cancelled());
    assert_eq!(within("the one without a token", other).await.unwrap(), 2);
    let late = scene.pool.task(echo).cancel_on(&token).spawn(3);
    assert!(within("the late one", late).await.unwrap_err().is_cancelled());
    // Many tasks end before their token does, and leave nothing with it.
    let token = CancellationToken::new();
    for outcome in within(
        "many",
        join_all((0..1000).map(|n| scene.pool.task(echo).cancel_on(&token).spawn(n))),
    )
    .await
    {
        outcome.unwrap();
    }
    token.cancel();
    let outcomes: Vec<_> = scene.pool.task(echo).cancel_on(&token).map(0..10).collect().await;
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_err_and(TaskError::is_cancelled)));
    until("nothing runs", || true).await;
    scene.end().await;
}

#[tokio::test]
async fn an_isolated_task_takes_what_it_left_along() {
    let scene = Scene::new(1);
    let marks = scene.marks("begun");
    let detaches = async |marks: PathBuf| {
        tokio::task::spawn_local(async {});
        mark(marks, std::process::id());
        std::future::pending::<()>().await
    };
    let handle = scene.pool.task(detaches).isolated(true).spawn(marks.path());
    marks.count(1).await;
    let worker = Proc::of(marks.lines()[0].parse().unwrap()).unwrap();
    handle.abort();
    assert!(within("its end", handle).await.unwrap_err().is_cancelled());
    assert!(worker.is_gone());
    scene.end().await;
}

// ---- limits beyond the clock, and workers that stand still

#[tokio::test]
async fn limits_beyond_what_the_clock_can_hold_are_none() {
    let builder = procpool::Pool::builder()
        .workers(1)
        .start_timeout(Duration::MAX)
        .exit_timeout(Duration::MAX);
    let pool = builder.timeout(Duration::MAX).build().unwrap();
    let call = pool.task(echo).deadline(Duration::MAX).grace(Duration::MAX);
    let tasks: Vec<_> = (0..3).map(|n| call.clone().spawn(n)).collect();
    for (task, n) in tasks.into_iter().zip(0..) {
        assert_eq!(within("a task", task).await.unwrap(), n);
    }
    within("the end", pool.shutdown()).await;
}

/// Its worker begins nothing any more from the mark on.
async fn leave_a_spinner(marks: PathBuf) -> u32 {
    tokio::task::spawn_local(async {
        mark(marks, "spins");
        loop {
            std::hint::spin_loop();
        }
    });
    std::process::id()
}

#[tokio::test]
async fn a_worker_that_a_task_has_left_spinning_swallows_no_other_task() {
    // Killed when the limit is over, or another one is started; or, without a limit, another one is
    // there.
    for (workers, limit) in
        [(1, Some(Duration::from_millis(300))), (4, Some(Duration::from_millis(300))), (4, None)]
    {
        let scene = Scene::new(workers);
        assert_eq!(scene.pool.stats().ended_by(ExitReason::Unresponsive), 0);
        let marks = scene.marks("spinner");
        let spoilt =
            within("the spinner", scene.pool.spawn(leave_a_spinner, marks.path())).await.unwrap();
        until("it spins", || marks.lines().len() == 1).await;
        let call = scene.pool.task(std::process::id);
        let call = if let Some(limit) = limit { call.timeout(limit) } else { call };
        assert_ne!(within("the next task", call.spawn(())).await.unwrap(), spoilt);
        if workers == 1 {
            assert_eq!(scene.pool.stats().ended_by(ExitReason::Unresponsive), 1);
        }
        within("the end", scene.pool.kill()).await;
    }
}
