//! Pools beside each other, and pools in the workers of pools.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{
    Proc, die, hang, lines, note, own_process, passes, pid, pids, seen, signal, soon, spin, until,
    wait_for,
};
use futures::StreamExt;
use nix::sys::signal::Signal;
use procpool::{ErrorKind, Pool};
use std::path::PathBuf;
use tempfile::tempdir;

fn pool_of(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

/// Maps over a pool of its own, `levels` deep: 1 if there is no further level, else the sum of
/// three.
async fn count_leaves(log: PathBuf, levels: u32) -> u64 {
    note(&log, pid());
    if levels == 0 {
        return 1;
    }
    let pool = pool_of(2);
    let mut sum = 0;
    let mut results = pool.map(count_leaves, (0..3).map(|_| (log.clone(), levels - 1)));
    while let Some(result) = results.next().await {
        sum += result.unwrap();
    }
    pool.shutdown().await;
    sum
}

/// The same in a sync task, whose pool has no runtime.
fn count_leaves_sync(log: PathBuf, levels: u32) -> u64 {
    note(&log, pid());
    if levels == 0 {
        return 1;
    }
    let pool = pool_of(2);
    let handles: Vec<_> =
        (0..3).map(|_| pool.spawn(count_leaves_sync, (log.clone(), levels - 1))).collect();
    handles.into_iter().map(|handle| handle.blocking_join().unwrap()).sum()
}

#[tokio::test]
async fn tasks_use_pools_of_their_own_two_levels_deep_and_leave_nothing() {
    let (pool, dir) = (pool_of(2), tempdir().unwrap());
    let log = dir.path().join("log");
    let two =
        [pool.spawn(count_leaves, (log.clone(), 2)), pool.spawn(count_leaves, (log.clone(), 2))];
    for handle in two {
        assert_eq!(soon(handle).await.unwrap(), 9);
    }
    soon(pool.shutdown()).await;
    let left: Vec<_> =
        pids(&log).into_iter().filter(|pid| support::state(*pid).is_some()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn sync_tasks_use_pools_of_their_own_without_any_runtime() {
    let (pool, dir) = (pool_of(2), tempdir().unwrap());
    let log = dir.path().join("log");
    let two = [
        pool.spawn(count_leaves_sync, (log.clone(), 2)),
        pool.spawn(count_leaves_sync, (log.clone(), 2)),
    ];
    for handle in two {
        assert_eq!(soon(handle).await.unwrap(), 9);
    }
    soon(pool.shutdown()).await;
    let gone = || pids(&log).into_iter().all(|pid| support::state(pid).is_none());
    until("all are gone", gone).await;
}

/// Two levels: 1 + 2, and 1 + 2 of the next.
const HANGING: usize = 6;

async fn hanging(pool: &Pool, log: PathBuf) -> Vec<Proc> {
    async fn two_levels(log: PathBuf, levels: u32) {
        note(&log, pid());
        let pool = pool_of(3);
        let others = (pool.spawn(hang, &log), pool.spawn(spin, &log));
        if levels > 0 {
            let _ = pool.spawn(two_levels, (log.clone(), levels - 1)).await;
        }
        let _ = (others.0.await, others.1.await);
    }
    drop(pool.spawn(two_levels, (log.clone(), 1)));
    until("all hang", || lines(&log).len() == HANGING).await;
    seen(&log)
}

#[tokio::test]
async fn all_descendants_go_with_the_outermost_pool() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let all = hanging(&pool, dir.path().join("log")).await;
    drop(pool);
    until("all are gone", || all.iter().all(|process| process.has_ended())).await;
}

#[tokio::test]
async fn all_descendants_go_with_a_worker_that_is_killed() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let all = hanging(&pool, dir.path().join("log")).await;
    signal(all[0].pid, Signal::SIGKILL);
    until("all are gone", || all.iter().all(|process| process.has_ended())).await;
    assert!(soon(pool.spawn(pid, ())).await.is_ok());
}

#[tokio::test]
async fn all_descendants_go_when_their_task_is_aborted() {
    fn nested(log: PathBuf) {
        note(&log, pid());
        let pool = pool_of(2);
        let _ = (pool.spawn(hang, &log), pool.spawn(spin, &log).blocking_join());
    }
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let log = dir.path().join("log");
    let task = pool.spawn(nested, &log);
    until("all hang", || lines(&log).len() == 3).await;
    let all = seen(&log);
    task.abort();
    assert!(soon(task).await.unwrap_err().is_cancelled());
    until("all are gone", || all.iter().all(|process| process.has_ended())).await;
    assert!(soon(pool.spawn(pid, ())).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_does_not_notice_what_happens_to_another() {
    let (doomed, other, dir) = (pool_of(2), pool_of(2), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    // The first of its worker: of a task that follows quick ones it is not known how long it will
    // be, and another might stand behind it.
    let bystander = other.spawn(wait_for, (log.clone(), gate.clone()));
    until("it runs", || lines(&log).len() == 1).await;
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let (doomed, other) = (doomed.clone(), other.clone());
            tokio::spawn(async move {
                let mut closed = 0;
                for n in 0..200u32 {
                    let (first, second) =
                        (doomed.spawn(|n: u32| n, n), other.spawn(|n: u32| n + 1, n));
                    match soon(first).await {
                        Ok(value) => assert_eq!((value, closed), (n, 0)),
                        Err(error) => {
                            assert!(error.is_pool_closed(), "{error:?}");
                            closed += 1;
                        }
                    }
                    assert_eq!(soon(second).await.unwrap(), n + 1);
                }
                closed
            })
        })
        .collect();
    assert!(soon(doomed.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
    soon(doomed.shutdown()).await;
    let mut closed = 0;
    for caller in callers {
        closed += caller.await.unwrap();
    }
    assert!(soon(doomed.spawn(pid, ())).await.unwrap_err().is_pool_closed(), "{closed}");
    assert!(!bystander.is_finished());
    std::fs::write(gate, "").unwrap();
    soon(bystander).await.unwrap();
}

/// Builds a pool and submits itself; says how deep it came and why no deeper.
fn descend(log: PathBuf, depth: u32) -> (u32, String) {
    note(&log, pid());
    match Pool::builder().workers(2).build() {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NestingTooDeep, "{error:?}");
            (depth, error.to_string())
        }
        Ok(pool) => pool.spawn(descend, (log, depth + 1)).blocking_join().unwrap(),
    }
}

#[tokio::test]
async fn a_task_that_submits_itself_to_a_pool_of_its_own_comes_to_an_end() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let log = dir.path().join("log");
    let (depth, why) = soon(pool.spawn(descend, (log.clone(), 1))).await.unwrap();
    assert_eq!(depth, 8, "{why}");
    assert_eq!(lines(&log).len(), 8, "one process a level");
}

#[test]
fn a_program_that_was_meant_to_be_a_worker_and_is_none_makes_no_pool() {
    let (test, dir) = ("own_process_with_the_variable", tempdir().unwrap());
    let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    command.env("PROCPOOL_WORKER", "another version"); // so that the constructor does nothing
    passes(test, command);
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_with_the_variable() {
    if std::env::var_os("PROCPOOL_WORKER").is_some() {
        assert_eq!(Pool::new().unwrap_err().kind(), ErrorKind::InsideWorker);
    }
}
