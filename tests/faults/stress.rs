//! Many workers, many tasks, many deaths and many signals: what is right for one must be right for
//! ten thousand.
//!
//! `PROCPOOL_STRESS=1` makes the longest of these as long as the scenario says that they come from.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{
    KillOnDrop, children, in_own_process, lines, note, own_dir, own_process, pid, pids, soon,
    until, wait_until,
};
use futures::StreamExt;
use futures::future::join_all;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::time::{ClockId, clock_gettime};
use procpool::{Pool, Process, Stdio};
use std::collections::HashSet;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use std::sync::Mutex;
use std::time::Duration;
use tempfile::tempdir;

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

fn is_full_size() -> bool {
    std::env::var_os("PROCPOOL_STRESS").is_some()
}

// ---- what is kept

#[test]
fn a_process_after_the_other_leaves_nothing_behind() {
    in_own_process("own_process_with_many_processes");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_with_many_processes() {
    if own_dir().is_none() {
        return;
    }
    let cycles = if is_full_size() { 500 } else { 60 };
    let mut after = Vec::new();
    for _ in 0..20 {
        for n in 0..cycles {
            let child = Process::spawn(|n: u32| n + 1, n).unwrap();
            assert_eq!(soon(child).await.unwrap(), n + 1);
        }
        until("all are reaped", || children(pid()).is_empty()).await;
        after.push((support::holdings(), support::resident()));
    }
    let ((early, memory_early), (_, memory_late)) = (after[1], after[19]);
    // The last one's are closed a moment after it is told.
    until("no more descriptors and threads are held than before", || {
        let (descriptors, threads) = support::holdings();
        descriptors <= early.0 && threads <= early.1
    })
    .await;
    assert!(
        memory_late <= memory_early + memory_early / 20,
        "{memory_early} bytes became {memory_late}"
    );
}

// ---- many

#[test]
fn a_hundred_workers_do_ten_thousand_tasks_and_say_nothing() {
    let (test, dir) = ("own_process_with_a_hundred_workers", tempdir().unwrap());
    let output = own_process(&std::env::current_exe().unwrap(), test, dir.path()).output().unwrap();
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{output:?}"
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_with_a_hundred_workers() {
    if own_dir().is_none() {
        return;
    }
    let pool = pool(100);
    soon(pool.ready()).await.unwrap();
    assert_eq!(children(pid()).len(), 100);
    let tasks: Vec<_> =
        (0..10_000u64).map(|n| pool.spawn(|n: u64| (n * 3, std::process::id()), n)).collect();
    let (mut sum, mut workers) = (0, HashSet::new());
    for task in tasks {
        let (value, worker) = soon(task).await.unwrap();
        sum += value;
        workers.insert(worker);
    }
    assert_eq!(sum, 3 * (0..10_000).sum::<u64>());
    assert!(workers.len() > 1, "{workers:?}");
    soon(pool.shutdown()).await;
    assert_eq!(children(pid()), [0; 0]);
}

/// Seconds of processor time that this process has used: other work on the machine does not count.
fn cpu_seconds() -> f64 {
    Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap()).as_secs_f64()
}

#[test]
fn ten_times_the_tasks_cost_about_ten_times_as_much() {
    in_own_process("own_process_that_measures");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_measures() {
    if own_dir().is_none() {
        return;
    }
    let mut least = [[f64::INFINITY; 2]; 2];
    for round in 1.. {
        for (tasks, least) in [10_000, 100_000].into_iter().zip(&mut least) {
            for (least, cost) in least.iter_mut().zip(costs(tasks).await) {
                *least = least.min(cost);
            }
        }
        // What else the machine does costs caches: only what is always so counts.
        let ratios = [0, 1].map(|at| least[1][at] / least[0][at]);
        if ratios.iter().all(|ratio| *ratio < 15.0) {
            break;
        }
        assert!(
            round < 5,
            "ten times as many tasks take {ratios:?} times as long, done and aborted"
        );
    }
}

/// What so many tasks cost that are done, and that are aborted while they wait.
async fn costs(tasks: u32) -> [f64; 2] {
    let pool = pool(2);
    soon(pool.ready()).await.unwrap();
    let start = cpu_seconds();
    let handles: Vec<_> = (0..tasks).map(|n| pool.spawn(|n: u32| n, n)).collect();
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(soon(handle).await.unwrap(), n);
    }
    let done = cpu_seconds() - start;

    let dir = tempdir().unwrap();
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let running = [0; 2].map(|_| pool.spawn(support::wait_for, (log.clone(), gate.clone())));
    until("both run", || lines(&log).len() == 2).await;
    let start = cpu_seconds();
    let handles: Vec<_> = (0..tasks).map(|n| pool.spawn(|n: u32| n, n)).collect();
    // From both ends to the middle: the order of the queue is no help.
    for n in 0..handles.len() / 2 {
        handles[n].abort();
        handles[handles.len() - 1 - n].abort();
    }
    for handle in handles {
        assert!(soon(handle).await.unwrap_err().is_cancelled());
    }
    let aborted = cpu_seconds() - start;
    std::fs::write(gate, "").unwrap();
    for task in running {
        soon(task).await.unwrap();
    }
    [done, aborted]
}

// ---- all at once

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maps_and_tasks_that_are_aborted_at_once_do_not_disturb_each_other() {
    let pool = pool(3);
    for _ in 0..50 {
        let users = (0..10u32).map(|user| {
            let pool = pool.clone();
            tokio::spawn(async move {
                map_and_check(&pool, user).await;
                let mut kept = Vec::new();
                for n in 0..20u32 {
                    let handle = pool.spawn(|n: u32| n * 7, n);
                    if n.is_multiple_of(2) {
                        handle.abort();
                        drop(handle);
                    } else {
                        kept.push((n, handle));
                    }
                }
                for (n, handle) in kept {
                    assert_eq!(soon(handle).await.unwrap(), n * 7);
                }
                map_and_check(&pool, user).await;
            })
        });
        for user in users.collect::<Vec<_>>() {
            soon(user).await.unwrap();
        }
    }
    soon(pool.shutdown()).await;
}

async fn map_and_check(pool: &Pool, user: u32) {
    let results: Vec<_> =
        soon(pool.map(|a: u32, b: u32| a + b, (0..40).map(|n| (n, user))).collect::<Vec<_>>())
            .await;
    let sums: Vec<u32> = results.into_iter().map(Result::unwrap).collect();
    assert_eq!(sums, (0..40).map(|n| n + user).collect::<Vec<_>>());
}

// ---- many deaths

/// Says that it has begun, and takes some time; tells its process, too.
fn sum(log: PathBuf, a: u64, b: u64) -> (u64, u32) {
    note(&log, pid());
    std::thread::sleep(Duration::from_millis(4));
    (a + b, pid())
}

#[test]
fn a_sum_is_right_and_each_interrupted_task_is_told_while_workers_are_killed_in_three_ways() {
    in_own_process("own_process_that_sums");
}

/// Kills a random child of this process every 20 to 50 ms, without an end.
async fn kill_now_and_then(killed: &Mutex<Vec<u32>>) -> Infallible {
    let chance = RandomState::new();
    for n in 0usize.. {
        let random = chance.hash_one(n);
        tokio::time::sleep(Duration::from_millis(20 + random % 31)).await;
        let alive = children(pid());
        let Some(victim) = alive.get((random >> 32) as usize % alive.len().max(1)) else {
            continue;
        };
        killed.lock().unwrap().push(*victim);
        let way = [Signal::SIGKILL, Signal::SIGQUIT, Signal::SIGSEGV][n % 3];
        // It may have gone by itself, or been reaped, a moment ago.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim.cast_signed()), way);
    }
    unreachable!()
}

/// The sum of a tree with 256 leaves. What is told to have died is asked for again. Gives the
/// processes in which parts of it were done, and those of which it was told that they died.
async fn sum_of_the_tree(pool: &Pool, log: &Path) -> (u64, Vec<u32>, Vec<u32>) {
    let (mut done, mut died) = (Vec::new(), Vec::new());
    let mut values: Vec<u64> = (0..256).collect();
    while values.len() > 1 {
        let ask = |a, b| pool.spawn(sum, (log.to_path_buf(), a, b));
        let open: Vec<_> =
            values.chunks(2).map(|pair| (pair[0], pair[1], ask(pair[0], pair[1]))).collect();
        values.clear();
        for (a, b, mut handle) in open {
            let (sum, process) = loop {
                match soon(handle).await {
                    Ok(done) => break done,
                    // Those that were to begin were killed while they started: this part has not.
                    Err(error) if error.is_start_failed() => {}
                    Err(error) => {
                        assert!(error.is_worker_died(), "{error:?}");
                        died.push(error.pid().unwrap());
                    }
                }
                handle = ask(a, b);
            };
            values.push(sum);
            done.push(process);
        }
    }
    (values[0], done, died)
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_sums() {
    let Some(dir) = own_dir() else { return };
    for tree in 0.. {
        let (log, killed) = (dir.join(format!("log {tree}")), Mutex::default());
        let pool = Pool::builder().workers(4).stderr(Stdio::null()).build().unwrap();
        let (sum, done, died) = tokio::select! {
            tree = sum_of_the_tree(&pool, &log) => tree,
            never = kill_now_and_then(&killed) => match never {},
        };
        assert_eq!((sum, done.len()), ((0..256).sum(), 255));
        let (begun, killed) = (pids(&log), killed.into_inner().unwrap());
        let times = |all: &[u32], process| all.iter().filter(|one| **one == process).count();
        for process in begun.iter().chain(&died).copied().collect::<HashSet<_>>() {
            let interrupted = times(&begun, process) - times(&done, process);
            let told = times(&died, process);
            // One that was killed just before it could say that it had begun is told, and has said
            // nothing.
            assert!(
                (interrupted..=1).contains(&told),
                "process {process} interrupted {interrupted} tasks, {told} were told"
            );
            assert!(told <= times(&killed, process), "nobody has killed process {process}");
        }
        soon(pool.shutdown()).await;
        if !died.is_empty() {
            break;
        }
        assert!(tree < 20, "nobody was hit in {tree} trees");
    }
}

// ---- signals in the midst of large values

extern "C" fn nothing(_: libc::c_int) {}

/// From now on the signal interrupts system calls, and nothing else.
#[expect(unsafe_code, reason = "a handler")]
fn be_interrupted() -> Result<(), String> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.map(|_| ()).map_err(|e| e.to_string())
}

#[test]
fn signals_in_the_midst_of_large_values_tear_nothing() {
    let (test, dir) = ("own_process_that_is_interrupted", tempdir().unwrap());
    let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    let mut child = KillOnDrop(command.stdout(std::process::Stdio::piped()).spawn().unwrap());
    let (ready, stop) = (dir.path().join("ready"), dir.path().join("stop"));
    let echoed = || lines(&dir.path().join("echoed")).len();
    wait_until("it has begun", || lines(&ready).len() == 2);
    let all: Vec<u32> = pids(&ready).into_iter().chain([child.0.id()]).collect();
    std::thread::scope(|scope| {
        // Each by itself, so that they meet in all ways.
        for process in all {
            scope.spawn(move || {
                for n in 0..200u64 {
                    for signal in
                        [Signal::SIGUSR1, Signal::SIGSTOP, Signal::SIGCONT, Signal::SIGUSR1]
                    {
                        let _ = nix::sys::signal::kill(
                            nix::unistd::Pid::from_raw(process.cast_signed()),
                            signal,
                        );
                        std::thread::sleep(Duration::from_micros(100 + 37 * (n % 50)));
                    }
                }
            });
        }
    });
    wait_until("values have come, also when they were not disturbed", || echoed() > 2);
    std::fs::write(stop, "").unwrap();
    let status = child.0.wait().unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_is_interrupted() {
    let Some(dir) = own_dir() else { return };
    be_interrupted().unwrap();
    let pool = Pool::builder().workers(2).on_worker_start(be_interrupted, ()).build().unwrap();
    soon(pool.ready()).await.unwrap();
    children(pid()).into_iter().for_each(|worker| note(&dir.join("ready"), worker));
    let bytes: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    while !dir.join("stop").exists() {
        let both = [
            pool.spawn(|bytes: Vec<u8>| bytes, &bytes),
            pool.spawn(|bytes: Vec<u8>| bytes, &bytes),
        ];
        for echo in join_all(both).await {
            assert!(echo.unwrap() == bytes, "it is another value");
        }
        note(&dir.join("echoed"), "whole");
    }
    soon(pool.shutdown()).await;
}
