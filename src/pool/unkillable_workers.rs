//! Workers that do not end when they are killed.
//!
//! A process that hangs in the kernel cannot be made at will. But one that is traced with
//! `PTRACE_O_TRACEEXIT` stops on its way out, SIGKILL or not, until its tracer lets it go
//! (ptrace(2)): to the pool that is the same.
//!
//! And workers that are held up before they have executed their program.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::Pool;
use super::core::Policy;
use super::stats::ExitReason;
use crate::process::testing::{
    Barrier, Hold, children, in_own_process, is_own_process, wait_until,
};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Only a hang takes this long.
const FUSE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_millis(50);

fn pool() -> Pool {
    let mut builder = Pool::builder().workers(1);
    builder.policy = Policy { kill_limit: LIMIT, ..builder.policy };
    builder.build().unwrap()
}

async fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(start.elapsed() < FUSE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn sleeps(begun: PathBuf) {
    std::fs::write(begun, "").unwrap();
    std::thread::sleep(FUSE * 100);
}

fn exists(pid: u32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}

#[tokio::test]
async fn its_task_is_told_its_place_is_filled_and_it_is_reaped_when_it_ends() {
    let pool = pool();
    let pid = pool.spawn(std::process::id, ()).await.unwrap();
    let hold = Hold::of(pid);
    let dir = tempfile::tempdir().unwrap();
    let begun = dir.path().join("begun");
    let task = pool.spawn(sleeps, begun.clone());
    let waits = pool.spawn(std::process::id, ());
    until("it has begun", || begun.exists()).await;
    task.abort();
    let error = tokio::time::timeout(FUSE, task).await.unwrap().unwrap_err();
    assert!(error.is_unkillable() && error.pid() == Some(pid), "{error}");
    let other = tokio::time::timeout(FUSE, waits).await.unwrap().unwrap();
    assert_ne!(other, pid);
    let stats = pool.stats();
    assert_eq!((stats.leaving, stats.ended()), (1, 0), "it is not forgotten: {stats:?}");
    drop(hold);
    until("it is reaped", || !exists(pid)).await;
    until("it is counted", || pool.stats().ended_by(ExitReason::TaskStopped) == 1).await;
    assert_eq!(pool.stats().leaving, 0);
}

#[tokio::test]
async fn the_end_of_its_pool_does_not_wait_for_it_and_it_is_reaped_all_the_same() {
    for keeps in [true, false] {
        let pool = pool();
        let pid = pool.spawn(std::process::id, ()).await.unwrap();
        let hold = Hold::of(pid);
        let ending = pool.kill();
        let kept = keeps.then_some(pool);
        tokio::time::timeout(FUSE, ending).await.unwrap();
        assert!(exists(pid));
        drop(hold);
        until("it is reaped", || !exists(pid)).await;
        drop(kept);
    }
}

#[test]
fn a_worker_that_is_held_up_before_its_exec_ends_with_its_pool() {
    in_own_process("pool::unkillable_workers::own_process_held_up");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_held_up() {
    if !is_own_process() {
        return;
    }
    let barrier = Barrier::new();
    let pool = Pool::builder().workers(1).build().unwrap();
    let task = pool.spawn(std::process::id, ());
    let barrier = tokio::task::spawn_blocking(move || {
        barrier.next();
        barrier
    });
    let _barrier = tokio::time::timeout(FUSE, barrier).await.unwrap().unwrap();
    assert_eq!(children().len(), 1);
    tokio::time::timeout(FUSE, pool.kill()).await.unwrap();
    assert!(tokio::time::timeout(FUSE, task).await.unwrap().is_err());
    wait_until("it is killed and reaped", || children().is_empty());
}
