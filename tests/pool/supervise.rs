//! What a pool tells of its workers, and how many it keeps for how long.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{die, hang, lines, pid, pids, soon, until, wait_for};
use futures::{FutureExt, StreamExt};
use nix::libc;
use procpool::{Events, ExitReason, Pool, Stats, TaskErrorKind, WorkerEvent};
use std::os::unix::process::ExitStatusExt;
use tempfile::tempdir;

fn pool_of(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

async fn up(events: &mut Events) -> u32 {
    match soon(events.next()).await {
        Some(WorkerEvent::Started { pid, .. }) => pid,
        other => panic!("{other:?}"),
    }
}

async fn down(events: &mut Events) -> (Option<u32>, ExitReason) {
    match soon(events.next()).await {
        Some(WorkerEvent::Exited { pid, why, .. }) => (pid, why),
        other => panic!("{other:?}"),
    }
}

// ---- numbers and events

#[tokio::test]
async fn numbers_tell_how_a_pool_stands_and_what_it_has_done() {
    let (pool, dir) = (pool_of(2), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    assert_eq!(pool.stats(), Stats::default(), "nothing is started");
    soon(pool.ready()).await.unwrap();
    let stats = pool.stats();
    assert_eq!((stats.idle, stats.busy, stats.started, stats.ended()), (2, 0, 2, 0));
    let tasks: Vec<_> = (0..5).map(|_| pool.spawn(wait_for, (log.clone(), gate.clone()))).collect();
    until("two run", || lines(&log).len() == 2).await;
    let stats = pool.stats();
    assert_eq!((stats.idle, stats.busy, stats.queued, stats.in_hand, stats.done), (0, 2, 3, 2, 0));
    std::fs::write(&gate, "").unwrap();
    for task in tasks {
        soon(task).await.unwrap();
    }
    let panics = (0..3).map(|_| pool.spawn(|| -> u32 { panic!("no") }, ()));
    for task in panics.collect::<Vec<_>>() {
        soon(task).await.unwrap_err();
    }
    soon(pool.spawn(die, libc::SIGKILL)).await.unwrap_err();
    let stopped = pool.spawn(hang, &log);
    until("it runs", || lines(&log).len() == 6).await;
    stopped.abort();
    assert!(soon(stopped).await.unwrap_err().is_cancelled());
    until("both ends are counted", || pool.stats().ended() == 2).await;
    let stats = pool.stats();
    assert_eq!((stats.done, stats.failed()), (5, 5), "{stats:?}");
    for (kind, count) in [
        (TaskErrorKind::Panicked, 3),
        (TaskErrorKind::WorkerDied, 1),
        (TaskErrorKind::Cancelled, 1),
    ] {
        assert_eq!(stats.failed_by(kind), count, "{kind:?}");
    }
    assert_eq!(stats.failures().count(), 3);
    assert_eq!((stats.ended_by(ExitReason::Died), stats.ended_by(ExitReason::TaskStopped)), (1, 1));
    soon(pool.ready()).await.unwrap();
    soon(pool.shutdown()).await;
    soon(pool.spawn(pid, ())).await.unwrap_err();
    let stats = pool.stats();
    assert_eq!((stats.idle, stats.busy, stats.leaving, stats.starting), (0, 0, 0, 0));
    assert_eq!(stats.failed_by(TaskErrorKind::PoolClosed), 1);
    assert_eq!(stats.ends().map(|(_, count)| count).sum::<u64>(), stats.started, "{stats:?}");
}

#[tokio::test]
async fn each_worker_that_comes_and_goes_is_told_with_its_reason() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let log = dir.path().join("log");
    let mut events = pool.events();
    let mut first = pool.spawn(die, libc::SIGSEGV);
    soon(&mut first).await.unwrap_err();
    let died = up(&mut events).await;
    match soon(events.next()).await {
        Some(WorkerEvent::Exited { pid, why, status, cause, .. }) => {
            assert_eq!((pid, why, cause.is_none()), (Some(died), ExitReason::Died, true));
            assert_eq!(status.and_then(|status| status.signal()), Some(libc::SIGSEGV));
        }
        other => panic!("{other:?}"),
    }
    let stopped = pool.spawn(hang, &log);
    until("it runs", || lines(&log).len() == 1).await;
    stopped.abort();
    soon(stopped).await.unwrap_err();
    let second = up(&mut events).await;
    assert_eq!(pids(&log), [second]);
    assert_eq!(down(&mut events).await, (Some(second), ExitReason::TaskStopped));
    let third = soon(pool.spawn(pid, ())).await.unwrap();
    soon(pool.shutdown()).await;
    assert_eq!(
        (up(&mut events).await, down(&mut events).await),
        (third, (Some(third), ExitReason::Closed))
    );
    assert!(soon(events.next()).await.is_none(), "the pool has ended");
    assert!(soon(pool.events().next()).await.is_none());
}

#[tokio::test]
async fn a_start_that_fails_is_told_with_its_cause() {
    fn refuse() -> Result<(), String> {
        Err("no model".into())
    }
    let pool = Pool::builder().workers(1).on_worker_start(refuse, ()).build().unwrap();
    let mut events = pool.events();
    soon(pool.ready()).await.unwrap_err();
    match soon(events.next()).await {
        Some(WorkerEvent::Exited {
            pid, why: ExitReason::StartFailed, cause: Some(cause), ..
        }) => {
            assert!(pid.is_some() && cause.is_init_failed(), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(pool.stats().ended_by(ExitReason::StartFailed), 1);
    assert_eq!(pool.stats().started, 0);
    drop(pool);
    while soon(events.next()).await.is_some() {}
}

#[test]
fn events_are_told_without_any_runtime() {
    let pool = pool_of(1);
    let mut events = pool.events();
    assert!(events.next().now_or_never().is_none());
    let worker = pool.spawn(pid, ()).blocking_join().unwrap();
    support::wait_until("it is told", || match events.next().now_or_never() {
        Some(Some(WorkerEvent::Started { pid, .. })) => pid == worker,
        _ => false,
    });
}
