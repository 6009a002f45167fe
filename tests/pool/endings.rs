//! How a pool ends, and what becomes of its tasks and processes: the table in the docs of `Pool`.
//! (What a killed application leaves behind is in `environment.rs`, what a runtime that ends
//! leaves in `runtimes.rs`.)

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "a terminal is made for a test")]

use crate::support::{
    KillOnDrop, Proc, children, hang, lines, note, own_dir, own_process, pid, pids, seen, signal,
    soon, spin, start_sleeping, stop, until, wait_for, wait_until,
};
use futures::future::join_all;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use procpool::{JoinHandle, Pool, ShutdownReport, TaskErrorKind, TaskId};
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tempfile::tempdir;

fn pool_of(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

/// Never reached by a test that passes.
const HOUR: Duration = Duration::from_secs(3600);

fn sleep_for(millis: u64) -> u32 {
    std::thread::sleep(Duration::from_millis(millis));
    pid()
}

/// Says that it has begun, and that it is dropped.
async fn wait_until_dropped(log: PathBuf) {
    struct Guard(PathBuf);
    impl Drop for Guard {
        fn drop(&mut self) {
            note(&self.0, "dropped");
        }
    }
    let _guard = Guard(log.clone());
    note(&log, "begun");
    std::future::pending().await
}

async fn never_yield(log: PathBuf) {
    note(&log, "begun");
    loop {
        std::hint::spin_loop();
    }
}

fn ids<'a, R: 'a>(handles: impl IntoIterator<Item = &'a JoinHandle<R>>) -> HashSet<TaskId> {
    handles.into_iter().map(JoinHandle::id).collect()
}

fn set(ids: &[TaskId]) -> HashSet<TaskId> {
    let set: HashSet<_> = ids.iter().copied().collect();
    assert_eq!(set.len(), ids.len(), "a task is named twice");
    set
}

// ---- what is stopped has stopped

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_told_of_a_kill_or_a_drop_does_not_run_any_more() {
    for drops in [false, true] {
        for stops in [false, true] {
            let (pool, dir) = (pool_of(2), tempdir().unwrap());
            let log = dir.path().join("log");
            let running = [pool.spawn(spin, &log), pool.spawn(hang, &log)];
            until("both run", || lines(&log).len() == 2).await;
            let queued = pool.spawn(hang, &log);
            let workers =
                running.each_ref().map(|task| Proc::of(task.worker_pid().unwrap()).unwrap());
            if stops {
                workers.iter().for_each(|worker| stop(worker.pid));
            }
            if drops {
                drop(pool);
            } else {
                drop(pool.kill());
            }
            for (task, worker) in running.into_iter().zip(workers) {
                assert!(soon(task).await.unwrap_err().is_pool_closed());
                assert!(worker.is_gone(), "it has been told to have stopped");
            }
            assert!(soon(queued).await.unwrap_err().is_pool_closed());
            assert_eq!(lines(&log).len(), 2, "what was queued has not run");
        }
    }
}

// ---- shutdown

#[tokio::test]
async fn a_shutdown_lets_everything_end_first() {
    let pool = pool_of(5);
    let tasks: Vec<_> = (0..50).map(|_| pool.spawn(sleep_for, 20)).collect();
    let end = pool.shutdown();
    assert!(soon(pool.spawn(pid, ())).await.unwrap_err().is_pool_closed());
    assert_eq!(soon(end).await, ShutdownReport::default());
    let workers: HashSet<_> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    assert!(workers.len() <= 5);
    assert!(
        workers.iter().all(|pid| !children(std::process::id()).contains(pid)),
        "they have been reaped"
    );
}

#[tokio::test]
async fn a_shutdown_that_nobody_awaits_happens_all_the_same() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let tasks = [0; 3].map(|_| pool.spawn(wait_for, (log.clone(), gate.clone())));
    until("it runs", || lines(&log).len() == 1).await;
    drop(pool.shutdown());
    assert!(soon(pool.spawn(pid, ())).await.unwrap_err().is_pool_closed());
    std::fs::write(&gate, "").unwrap();
    for task in tasks {
        soon(task).await.unwrap();
    }
    let workers: Vec<_> = pids(&log);
    until("they are gone, and reaped", || {
        workers.iter().all(|pid| !children(std::process::id()).contains(pid))
    })
    .await;
}

#[tokio::test]
async fn what_runs_ends_and_what_waits_is_dropped_if_the_queue_is() {
    let (pool, dir) = (pool_of(2), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let tasks: Vec<_> =
        (0..50).map(|_| pool.spawn(wait_for, (log.clone(), gate.clone()))).collect();
    until("two run", || lines(&log).len() == 2).await;
    let end = pool.shutdown();
    assert_eq!(pool.abort_queued(), 48);
    assert_eq!(pool.abort_queued(), 0);
    std::fs::write(&gate, "").unwrap();
    let outcomes: Vec<_> = soon(join_all(tasks)).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 2);
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.as_ref().err().is_none_or(|error| error.is_cancelled()))
    );
    assert!(soon(end).await.is_empty(), "an abort is not the end's doing");
    assert_eq!(lines(&log).len(), 2, "nothing else has run");
}

#[tokio::test]
async fn a_pool_whose_queue_was_dropped_goes_on() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let first = pool.spawn(wait_for, (log.clone(), gate.clone()));
    until("it runs", || lines(&log).len() == 1).await;
    let waiting = pool.spawn(pid, ());
    assert_eq!(pool.abort_queued(), 1);
    assert!(soon(waiting).await.unwrap_err().is_cancelled());
    std::fs::write(&gate, "").unwrap();
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap(), soon(first).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_who_ends_a_pool_is_told_the_same() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let log = dir.path().join("log");
    let running = pool.spawn(hang, &log);
    until("it runs", || lines(&log).len() == 1).await;
    let queued = pool.spawn(pid, ());
    let ends: Vec<_> = (0..4)
        .map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move {
                match n {
                    0 | 1 => pool.shutdown().await,
                    2 => pool.shutdown_within(HOUR).await,
                    _ => pool.shutdown_within(Duration::from_millis(50)).await,
                }
            })
        })
        .collect();
    for end in ends {
        let cut_off = soon(end).await.unwrap();
        assert_eq!((cut_off.unbegun(), cut_off.begun()), (&[queued.id()][..], &[running.id()][..]));
    }
    for again in [pool.shutdown(), pool.shutdown_within(Duration::ZERO), pool.kill()] {
        assert_eq!(soon(again).await.len(), 2);
    }
    assert!(soon(running).await.unwrap_err().is_pool_closed());
    assert!(soon(queued).await.unwrap_err().is_pool_closed());
}

// ---- shutdown within a limit

#[tokio::test]
async fn a_shutdown_in_time_cuts_nothing_off() {
    let pool = pool_of(2);
    let tasks: Vec<_> = (0..10).map(|_| pool.spawn(pid, ())).collect();
    assert!(soon(pool.shutdown_within(HOUR)).await.is_empty());
    assert!(soon(join_all(tasks)).await.iter().all(Result::is_ok));
    assert!(soon(pool_of(2).shutdown_within(Duration::ZERO)).await.is_empty(), "nothing was there");
}

#[tokio::test]
async fn at_its_limit_a_shutdown_kills_what_runs_and_tells() {
    let (pool, dir) = (pool_of(3), tempdir().unwrap());
    let log = dir.path().join("log");
    let running = [pool.spawn(hang, &log), pool.spawn(spin, &log), pool.spawn(hang, &log)];
    until("they run", || lines(&log).len() == 3).await;
    let queued: Vec<_> = (0..5).map(|_| pool.spawn(hang, &log)).collect();
    let workers = seen(&log);
    // One that is stopped could not even be asked.
    stop(workers[0].pid);
    let (begun, limit) = (Instant::now(), Duration::from_millis(100));
    let cut_off = soon(pool.shutdown_within(limit)).await;
    assert!(begun.elapsed() >= limit);
    assert!(workers.iter().all(|worker| worker.is_gone()));
    assert_eq!((set(cut_off.unbegun()), set(cut_off.begun())), (ids(&queued), ids(&running)));
    for task in running.into_iter().chain(queued) {
        assert!(soon(task).await.unwrap_err().is_pool_closed());
    }
    assert_eq!(lines(&log).len(), 3, "nothing else has run");
}

#[tokio::test]
async fn at_its_limit_a_shutdown_drops_async_tasks_at_an_await_point() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let log = dir.path().join("log");
    let tasks: Vec<_> = (0..3).map(|_| pool.spawn(wait_until_dropped, &log)).collect();
    until("they run", || lines(&log).len() == 3).await;
    let cut_off = soon(pool.shutdown_within(Duration::from_millis(10))).await;
    assert_eq!((set(cut_off.begun()), cut_off.unbegun()), (ids(&tasks), &[][..]));
    assert_eq!(lines(&log)[3..], ["dropped"; 3]);
    for task in tasks {
        assert!(soon(task).await.unwrap_err().is_pool_closed());
    }
}

#[tokio::test]
async fn an_async_task_that_does_not_yield_is_killed_after_a_grace() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let log = dir.path().join("log");
    let (quiet, stubborn) = (pool.spawn(wait_until_dropped, &log), pool.spawn(never_yield, &log));
    until("they run", || lines(&log).len() == 2).await;
    let cut_off = soon(pool.shutdown_within(Duration::ZERO)).await;
    assert_eq!(set(cut_off.begun()), HashSet::from([quiet.id(), stubborn.id()]));
    assert!(soon(quiet).await.unwrap_err().is_pool_closed());
    assert!(soon(stubborn).await.unwrap_err().is_pool_closed());
}

static GOODBYE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();

extern "C" fn say_goodbye_very_slowly() {
    // Longer than a worker has that hangs up without having been told to end.
    std::thread::sleep(Duration::from_millis(2500));
    if let Some(log) = GOODBYE.get() {
        note(log, "done");
    }
}

fn register_goodbye(log: PathBuf) {
    GOODBYE.set(log).unwrap();
    // SAFETY: the handler unwinds nowhere, and lives as long as the program.
    assert_eq!(unsafe { libc::atexit(say_goodbye_very_slowly) }, 0);
}

#[tokio::test]
async fn exit_handlers_have_the_exit_limit_though_the_socket_is_closed_by_then() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let pool = Pool::builder().workers(1).exit_timeout(HOUR).build().unwrap();
    soon(pool.spawn(register_goodbye, &log)).await.unwrap();
    soon(pool.shutdown()).await;
    assert_eq!(lines(&log).len(), 1);
}

extern "C" fn say_goodbye() {
    if let Some(log) = GOODBYE.get() {
        note(log, "done");
    }
}

async fn leave_a_blocking_job(log: PathBuf) {
    GOODBYE.set(log).unwrap();
    // SAFETY: the handler unwinds nowhere, and lives as long as the program.
    assert_eq!(unsafe { libc::atexit(say_goodbye) }, 0);
    tokio::task::spawn_blocking(|| {
        loop {
            std::thread::park();
        }
    });
}

#[tokio::test]
async fn a_blocking_job_that_a_task_left_delays_no_end_and_costs_no_exit_handler() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let pool = Pool::builder().workers(1).exit_timeout(HOUR).build().unwrap();
    soon(pool.spawn(leave_a_blocking_job, &log)).await.unwrap();
    soon(pool.shutdown()).await;
    assert_eq!(lines(&log).len(), 1);
}

// ---- at once

#[tokio::test]
async fn a_kill_resolves_ten_thousand_handles_and_leaves_no_process() {
    let (pool, dir) = (pool_of(3), tempdir().unwrap());
    let log = dir.path().join("log");
    let tasks: Vec<_> = (0..10_000).map(|_| pool.spawn(hang, &log)).collect();
    until("three run", || lines(&log).len() == 3).await;
    let workers = seen(&log);
    let cut_off = soon(pool.kill()).await;
    assert!(workers.iter().all(|worker| worker.is_gone()));
    assert_eq!((cut_off.len(), cut_off.begun().len()), (10_000, 3));
    for outcome in soon(join_all(tasks)).await {
        assert_eq!(outcome.unwrap_err().kind(), TaskErrorKind::PoolClosed);
    }
    assert!(soon(pool.spawn(pid, ())).await.unwrap_err().is_pool_closed());
    assert_eq!(lines(&log).len(), 3);
}

#[tokio::test]
async fn a_kill_takes_what_workers_have_started_along_and_does_not_wait_for_the_stopped() {
    fn with_a_child(log: PathBuf) {
        note(&log, start_sleeping());
        hang(log)
    }
    let (pool, dir) = (pool_of(3), tempdir().unwrap());
    let log = dir.path().join("log");
    let _tasks = (pool.spawn(with_a_child, &log), pool.spawn(spin, &log), pool.spawn(hang, &log));
    until("they run", || lines(&log).len() == 4).await;
    let all = seen(&log);
    all.iter().for_each(|process| stop(process.pid));
    soon(pool.kill()).await;
    // The grandchild is no child of ours: whoever has it now reaps it.
    until("all have ended", || all.iter().all(|process| process.has_ended())).await;
}

#[tokio::test]
async fn a_kill_ends_workers_that_hang_at_their_start() {
    fn never_ready(log: PathBuf) -> Result<(), String> {
        hang(log);
        Ok(())
    }
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let pool = Pool::builder().workers(2).on_worker_start(never_ready, &log).build().unwrap();
    let tasks = [pool.spawn(pid, ()), pool.spawn(pid, ())];
    until("both start", || lines(&log).len() == 2).await;
    let workers = seen(&log);
    soon(pool.kill()).await;
    assert!(workers.iter().all(|worker| worker.is_gone()));
    for task in tasks {
        assert!(soon(task).await.unwrap_err().is_pool_closed());
    }
}

fn wait_on_this_thread<F: Future + Unpin>(mut future: F) -> F::Output {
    let mut cx = Context::from_waker(Waker::noop());
    let mut output = None;
    wait_until("the future is ready", || {
        output = match Pin::new(&mut future).poll(&mut cx) {
            Poll::Ready(ready) => Some(ready),
            Poll::Pending => None,
        };
        output.is_some()
    });
    output.unwrap()
}

#[test]
fn an_end_is_waited_for_without_any_runtime() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let log = dir.path().join("log");
    let task = pool.spawn(hang, &log);
    wait_until("it runs", || lines(&log).len() == 1);
    let worker = seen(&log)[0];
    assert_eq!(wait_on_this_thread(pool.kill()).begun(), [task.id()]);
    assert!(worker.is_gone());
    assert!(task.blocking_join().unwrap_err().is_pool_closed());
}

#[tokio::test]
async fn an_end_that_is_awaited_holds_no_pool() {
    let (pool, dir) = (pool_of(1), tempdir().unwrap());
    let log = dir.path().join("log");
    let task = pool.spawn(hang, &log);
    until("it runs", || lines(&log).len() == 1).await;
    let end = pool.shutdown();
    drop(pool); // the last one: it kills
    assert_eq!(soon(end).await.begun(), [task.id()]);
}

// ---- drop

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_last_pool_resolves_every_handle_and_ends_every_process() {
    for in_a_task in [false, true] {
        for (running, queued) in [(0, 0), (2, 0), (2, 5)] {
            let (pool, dir) = (pool_of(2), tempdir().unwrap());
            let log = dir.path().join("log");
            let done = pool.spawn(pid, ());
            let idle = Proc::of(soon(done).await.unwrap());
            let tasks: Vec<_> = (0..running + queued).map(|_| pool.spawn(hang, &log)).collect();
            until("they run", || lines(&log).len() == running).await;
            let workers: Vec<_> = seen(&log).into_iter().chain(idle).collect();
            if in_a_task {
                let clone = pool.clone();
                drop(pool);
                soon(tokio::spawn(async move { drop(clone) })).await.unwrap();
            } else {
                drop(pool);
            }
            for task in tasks {
                assert!(soon(task).await.unwrap_err().is_pool_closed());
            }
            until("no process stays", || workers.iter().all(|worker| worker.is_gone())).await;
        }
    }
}

// ---- signals to the application

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_at_a_terminal() {
    let Some(dir) = own_dir() else { return };
    let (log, gate) = (dir.join("log"), dir.join("gate"));
    let handled = std::env::var_os("PROCPOOL_TEST_HANDLED").is_some();
    let action =
        SigAction::new(SigHandler::Handler(interrupted), SaFlags::SA_RESTART, SigSet::empty());
    if handled {
        // SAFETY: the handler stores one atomic flag.
        unsafe { sigaction(Signal::SIGINT, &action) }.unwrap();
    }
    let pool = pool_of(2);
    let tasks = [0; 2].map(|_| pool.spawn(wait_for, (log.clone(), gate.clone())));
    until("told to end", || INTERRUPTED.load(Ordering::SeqCst)).await;
    let end = pool.shutdown();
    std::fs::write(dir.join("draining"), "").unwrap();
    for task in tasks {
        soon(task).await.unwrap();
    }
    assert!(soon(end).await.is_empty());
}

/// The application's end of a terminal, and ours.
fn terminal() -> (File, File) {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: both places are ours; name, settings and size may be null (openpty(3)).
    let made = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    assert_eq!(made, 0);
    // SAFETY: they are new, and nobody else's.
    unsafe { (File::from_raw_fd(ours), File::from_raw_fd(theirs)) }
}

#[test]
fn ctrl_c_reaches_the_application_alone_and_takes_all_with_it() {
    for handled in [true, false] {
        let dir = tempdir().unwrap();
        let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
        let (mut ours, theirs) = terminal();
        let mut command =
            own_process(&std::env::current_exe().unwrap(), "own_process_at_a_terminal", dir.path());
        command
            .stdin(theirs.try_clone().unwrap())
            .stdout(theirs.try_clone().unwrap())
            .stderr(theirs);
        if handled {
            command.env("PROCPOOL_TEST_HANDLED", "1");
        }
        // SAFETY: both are async-signal-safe (setsid(2), ioctl(2)).
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                // Its standard input becomes the terminal that controls it.
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    Err(std::io::Error::last_os_error())
                } else {
                    Ok(())
                }
            });
        }
        let mut application = KillOnDrop(command.spawn().unwrap());
        drop(command); // and its copies of the terminal
        wait_until("both run", || lines(&log).len() == 2);
        let workers = seen(&log);
        ours.write_all(b"\x03").unwrap();
        if handled {
            wait_until("it drains", || dir.path().join("draining").exists());
            assert!(workers.iter().all(|worker| !worker.has_ended()), "they go on");
            std::fs::write(&gate, "").unwrap();
        }
        let status = application.0.wait().unwrap();
        let mut said = Vec::new();
        let mut part = [0; 4096];
        while let Ok(n @ 1..) = ours.read(&mut part) {
            said.extend(&part[..n]); // until its other end is closed everywhere (EIO), so by the workers, too
        }
        let said = String::from_utf8_lossy(&said);
        let by_the_harness =
            ["running 1 test", "test endings::own_process_at_a_terminal", "test result", "ok"];
        let unexpected = said.lines().map(|line| line.trim_start_matches("^C")).find(|line| {
            !line.is_empty() && !by_the_harness.iter().any(|known| line.starts_with(known))
        });
        assert_eq!(unexpected, None, "{said}");
        assert_eq!(
            (status.success(), status.signal()),
            if handled { (true, None) } else { (false, Some(libc::SIGINT)) },
            "{said}"
        );
        wait_until("the workers are gone", || workers.iter().all(|worker| worker.has_ended()));
    }
}

#[test]
fn an_application_that_is_terminated_takes_its_workers_along() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let mut command =
        own_process(&std::env::current_exe().unwrap(), "own_process_at_a_terminal", dir.path());
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let mut application = KillOnDrop(command.spawn().unwrap());
    wait_until("both run", || lines(&log).len() == 2);
    let workers = seen(&log);
    signal(application.0.id(), Signal::SIGTERM);
    assert_eq!(application.0.wait().unwrap().signal(), Some(libc::SIGTERM));
    wait_until("the workers are gone", || workers.iter().all(|worker| worker.has_ended()));
}
