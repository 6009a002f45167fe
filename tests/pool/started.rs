//! When a task begins to run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{Scene, mark, pass, pass_async, within};
use futures::FutureExt;
use procpool::Pool;
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn pid_behind(gate: PathBuf) -> u32 {
    pass(gate);
    std::process::id()
}

async fn pid_behind_async(gate: PathBuf) -> u32 {
    pass_async(gate).await;
    std::process::id()
}

#[tokio::test]
async fn a_task_that_waits_has_not_started_and_is_told_when_it_has() {
    let scene = Scene::new(1);
    let (mut first_gate, mut gate) = (scene.gate("first"), scene.gate("gate"));
    let before = Instant::now();
    let first = scene.pool.spawn(pid_behind, first_gate.path());
    let started = within("the first starts", first.started()).await.unwrap();
    assert!(started.at() >= before && started.at() <= Instant::now());
    assert_eq!(Some(started.pid()), first.worker_pid());
    // Behind it, in the pool or in the worker.
    let second = scene.pool.spawn(pid_behind, gate.path());
    let mut waits = Box::pin(second.started());
    assert!((&mut waits).now_or_never().is_none(), "it waits");
    let opened = Instant::now();
    first_gate.open();
    let told = within("the second starts", waits).await.unwrap();
    assert!(told.at() >= opened && told.at() <= Instant::now());
    assert_eq!(within("again", second.started()).await, Some(told));
    gate.open();
    assert_eq!(within("its result", first).await.unwrap(), started.pid());
    assert_eq!(within("its result", second).await.unwrap(), told.pid());
    scene.end().await;
}

#[tokio::test]
async fn a_task_that_has_begun_is_told_at_once_sync_or_async_with_a_limit_or_not() {
    let scene = Scene::new(1);
    let mut gate = scene.gate("gate");
    let limit = Duration::from_secs(1000);
    let tasks = [
        scene.pool.spawn(pid_behind_async, gate.path()),
        scene.pool.task(pid_behind_async).timeout(limit).spawn(gate.path()),
    ];
    for task in &tasks {
        let told = within("it starts", task.started()).await.unwrap();
        assert!(told.at() <= Instant::now());
        assert_eq!(Some(told.pid()), task.worker_pid());
        assert_eq!(task.started().await.map(|told| told.pid()), task.worker_pid());
    }
    gate.open();
    for task in tasks {
        within("its result", task).await.unwrap();
    }
    let quick: Vec<_> = (0..500).map(|n| scene.pool.spawn(|n: u32| n, n)).collect();
    for task in &quick {
        within("told, or ended", task.started()).await;
    }
    for (n, task) in (0..).zip(quick) {
        assert_eq!(within("its result", task).await.unwrap(), n);
    }
}

#[tokio::test]
async fn a_task_that_never_began_has_not_started() {
    let scene = Scene::new(1);
    let gate = scene.gate("gate");
    let running = scene.pool.spawn(pid_behind, gate.path());
    within("it starts", running.started()).await.unwrap();
    let waits = scene.pool.spawn(pid_behind, gate.path());
    let mut started = Box::pin(waits.started());
    assert!((&mut started).now_or_never().is_none());
    waits.abort();
    assert_eq!(within("the end", started).await, None);
    running.abort();
    let _ = within("the end", async { (&mut { running }).await }).await;
    assert_eq!(within("it has ended", waits.started()).await, None);
    let closed = Pool::builder().workers(1).build().unwrap();
    within("its end", closed.shutdown()).await;
    assert_eq!(within("refused", closed.spawn(|| (), ()).started()).await, None);
}

#[tokio::test]
async fn a_task_that_is_tried_again_starts_again() {
    let scene = Scene::new(1);
    let (gate, marks) = (scene.gate("gate"), scene.marks("tries"));
    let dies_once = |gate: PathBuf, marks: PathBuf| {
        mark(&marks, std::process::id());
        if procpool::attempt() == Some(1) {
            std::process::abort();
        }
        pass(gate);
    };
    let args = (gate.path().to_owned(), marks.path().to_owned());
    let task = scene.pool.task(dies_once).retries(1).spawn(args);
    let first = within("it starts", task.started()).await.unwrap();
    marks.count(2).await;
    let pids: Vec<u32> = marks.lines().iter().map(|pid| pid.parse().unwrap()).collect();
    let second = within("it starts again", async {
        loop {
            match task.started().await {
                Some(told) if told.pid() == pids[1] => return told,
                _ => tokio::task::yield_now().await,
            }
        }
    });
    let second = second.await;
    assert!(pids.contains(&first.pid()) && second.at() >= first.at());
    let mut gate = gate;
    gate.open();
    within("its end", task).await.unwrap();
}
