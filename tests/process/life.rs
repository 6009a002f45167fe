//! One process for one function: its life, its end, and everybody who waits for it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "where it goes is what is tested")]
#![expect(unsafe_code, reason = "functions that end their process without ceremony")]

use crate::support;
use crate::support::{
    FUSE, Proc, die, hang, in_own_process, lines, note, own_dir, pid, pids, signal, soon, spin,
    state, stop, until, wait_for, wait_until,
};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use procpool::{Error, ErrorKind, Process, Stdio, TaskError, TaskErrorKind};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use tempfile::tempdir;

/// How it ended: a code, or minus a signal.
fn ending(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap())
}

fn code(status: Result<ExitStatus, Error>) -> i32 {
    ending(status.unwrap())
}

/// It has ended, as the kernel sees it; whoever reaps it, it is not this.
fn has_ended(pid: u32) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(Pid::from_raw(pid as i32)), flags) {
        Ok(WaitStatus::StillAlive) => false,
        Ok(_) | Err(nix::errno::Errno::ECHILD) => true,
        Err(errno) => panic!("{errno}"),
    }
}

#[tokio::test]
async fn a_process_lives_and_its_end_is_told_as_often_as_it_is_asked_for() {
    let dir = tempdir().unwrap();
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let mut child = Process::spawn(wait_for, (log.clone(), gate.clone())).unwrap();
    until("it has begun", || lines(&log).len() == 1).await;
    assert_eq!(pids(&log), [child.pid()]);
    assert!(child.is_alive());
    assert_eq!(child.exit_status(), None);
    assert!(child.try_join().is_none());
    std::fs::write(gate, "").unwrap();
    for _ in 0..3 {
        assert_eq!(code(soon(child.wait()).await), 0);
    }
    assert!(!child.is_alive());
    assert_eq!(child.exit_status().map(ending), Some(0));
    let own = pids(&log)[0];
    assert_eq!(child.pid(), own, "as history");
    assert_eq!(state(own), None, "no zombie");
    // The value, too, stays.
    assert_eq!(child.try_join().unwrap().unwrap(), own);
    assert_eq!(soon(&mut child).await.unwrap(), own);
    assert_eq!(soon(child).await.unwrap(), own);
}

/// Ends its process in the way that is asked for.
fn end(how: String) {
    let (word, number) = how.split_once(' ').unwrap();
    let number: i32 = number.parse().unwrap();
    match word {
        "return" => {}
        "exit" => std::process::exit(number),
        // SAFETY: ends the process.
        "_exit" => unsafe { libc::_exit(number) },
        "panic" => panic!("as asked"),
        "abort" => std::process::abort(),
        "signal" => die(number),
        other => unreachable!("{other}"),
    }
}

async fn end_async(how: String) {
    tokio::task::yield_now().await;
    end(how);
}

#[tokio::test]
async fn every_way_to_end_is_told_by_its_status() {
    let table = [
        ("return 0", 0),
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 42", 42),
        ("exit 137", 137),
        ("exit 255", 255),
        ("_exit 0", 0),
        ("panic 0", 101),
        ("abort 0", -libc::SIGABRT),
        ("signal 15", -libc::SIGTERM),
        ("signal 9", -libc::SIGKILL),
        ("signal 6", -libc::SIGABRT),
        ("signal 11", -libc::SIGSEGV),
    ];
    for is_async in [false, true] {
        let all: Vec<_> = table
            .iter()
            .map(|(how, expected)| {
                let child = if is_async {
                    Process::spawn(end_async, *how)
                } else {
                    Process::spawn(end, *how)
                };
                (child.unwrap(), *how, *expected)
            })
            .collect();
        for (mut child, how, expected) in all {
            assert_eq!(code(soon(child.wait()).await), expected, "{how}");
            let value = soon(&mut child).await;
            match how.split(' ').next().unwrap() {
                "return" => value.unwrap(),
                "panic" => {
                    let error = value.unwrap_err();
                    assert_eq!(
                        (error.panic_message(), error.pid()),
                        (Some("as asked"), Some(child.pid()))
                    );
                    assert_eq!(error.exit_status().map(ending), Some(101));
                }
                // Also where it exits with 0: that is no return.
                _ => {
                    let error = value.unwrap_err();
                    assert_eq!(error.kind(), TaskErrorKind::WorkerDied, "{how}: {error:?}");
                    assert_eq!(error.exit_status().map(ending), Some(expected));
                }
            }
        }
    }
}

#[tokio::test]
async fn a_stack_overflow_is_told_apart() {
    fn deep(n: u64) -> u64 {
        if n == 0 { 0 } else { std::hint::black_box(deep(std::hint::black_box(n - 1))) + 1 }
    }
    let error = soon(Process::spawn(deep, u64::MAX).unwrap()).await.unwrap_err();
    assert!(error.is_stack_overflow(), "{error:?}");
}

#[tokio::test]
async fn values_travel_both_ways_whatever_their_size() {
    assert_eq!(soon(Process::spawn(|a: u64, b: u64| a + b, (1, 2)).unwrap()).await.unwrap(), 3);
    let large = vec![7u8; 10 << 20];
    let back = soon(Process::spawn(|bytes: Vec<u8>| bytes, &large[..]).unwrap()).await.unwrap();
    assert!(back == large);
    let own: Result<u32, String> =
        soon(Process::spawn(|| Err::<u32, _>("its own".to_string()), ()).unwrap()).await.unwrap();
    assert_eq!(own, Err("its own".into()));
}

#[tokio::test]
async fn a_call_that_is_taken_slowly_arrives_whole() {
    async fn taken(bytes: Vec<u8>) -> u64 {
        bytes.into_iter().map(u64::from).sum()
    }
    let bytes: Vec<u8> = (0..16 << 20).map(|n: u32| n as u8).collect();
    let child = Process::spawn(taken, &bytes[..]).unwrap();
    // It stands still in the middle, as often as not.
    for _ in 0..20 {
        child.signal(libc::SIGSTOP).unwrap();
        tokio::task::yield_now().await;
        child.signal(libc::SIGCONT).unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(soon(child).await.unwrap(), bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>());
}

#[tokio::test]
async fn what_cannot_be_encoded_starts_nothing() {
    struct Unspeakable;
    impl serde::Serialize for Unspeakable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("unspeakable"))
        }
    }
    impl<'de> serde::Deserialize<'de> for Unspeakable {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Ok(Self)
        }
    }
    let error = Process::spawn(|_: Unspeakable| (), Unspeakable).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ArgumentEncode);
    assert!(error.to_string().contains("unspeakable"), "{error}");
    // A result that cannot be: the function has run, and the process says so by its exit code.
    let mut child = Process::spawn(|| Unspeakable, ()).unwrap();
    let error = soon(&mut child).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ResultEncode, "{error:?}");
    assert_eq!(child.exit_status().map(ending), Some(1));
}

#[tokio::test]
async fn waiting_for_a_while_takes_nothing_from_the_process() {
    let dir = tempdir().unwrap();
    let mut child = Process::spawn(hang, dir.path().join("log")).unwrap();
    for limit in [Duration::ZERO, Duration::from_millis(20)] {
        assert!(tokio::time::timeout(limit, child.wait()).await.is_err());
        assert!(tokio::time::timeout(limit, &mut child).await.is_err());
        assert!(child.is_alive() && child.exit_status().is_none() && child.try_join().is_none());
    }
    child.signal(libc::SIGKILL).unwrap();
    assert_eq!(code(soon(child.wait()).await), -9);
    assert!(soon(child).await.unwrap_err().is_worker_died());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_who_waits_for_one_process_is_told() {
    let dir = tempdir().unwrap();
    let child = Arc::new(Process::spawn(hang, dir.path().join("log")).unwrap());
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let child = Arc::clone(&child);
            tokio::spawn(async move { child.wait().await })
        })
        .collect();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let child = Arc::clone(&child);
            std::thread::spawn(move || child.blocking_wait())
        })
        .collect();
    tokio::task::yield_now().await;
    child.kill().unwrap();
    for task in waiting {
        assert_eq!(code(soon(task).await.unwrap()), -9);
    }
    for thread in threads {
        assert_eq!(code(thread.join().unwrap()), -9);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_has_ended_is_never_said_to_run() {
    // Some at a time, so that 2,000 rounds take no longer than they must.
    for _ in 0..125 {
        let children: Vec<_> =
            (0..16).map(|_| Arc::new(Process::spawn(|| (), ()).unwrap())).collect();
        for child in children {
            let waiting = tokio::spawn({
                let child = Arc::clone(&child);
                async move { child.wait().await }
            });
            until("its end", || has_ended(child.pid())).await;
            assert!(!child.is_alive());
            assert_eq!(child.exit_status().map(ending), Some(0));
            assert_eq!(code(soon(waiting).await.unwrap()), 0);
        }
    }
}

#[tokio::test]
async fn signals_to_a_process_that_has_ended_are_sent_to_nobody() {
    for joined in [false, true] {
        let mut child = Process::spawn(|| (), ()).unwrap();
        if joined {
            soon(&mut child).await.unwrap();
        } else {
            until("its end", || has_ended(child.pid())).await;
        }
        for _ in 0..2 {
            child.terminate().unwrap();
            child.kill().unwrap();
            child.signal(libc::SIGUSR1).unwrap();
        }
        assert_eq!(code(soon(child.wait()).await), 0);
        assert_eq!(child.exit_status().map(ending), Some(0));
    }
    let child = Process::spawn(|| (), ()).unwrap();
    let error = child.signal(1000).unwrap_err();
    assert_eq!((error.kind(), error.pid()), (ErrorKind::Signal, Some(child.pid())));
}

/// Who else gets a number is chosen by its predecessor (`/proc/sys/kernel/ns_last_pid`,
/// proc_sys_kernel(5)), which takes privileges.
#[tokio::test]
#[ignore = "needs to say which number the next process gets"]
async fn needs_ns_last_pid_the_next_process_with_the_number_lives_on() {
    for _ in 0..100 {
        let child = Process::spawn(|| (), ()).unwrap();
        soon(child.wait()).await.unwrap();
        std::fs::write("/proc/sys/kernel/ns_last_pid", (child.pid() - 1).to_string()).unwrap();
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        if other.id() == child.pid() {
            child.terminate().unwrap();
            child.kill().unwrap();
            child.signal(libc::SIGKILL).unwrap();
            drop(child);
            assert!(other.try_wait().unwrap().is_none(), "it was signalled");
            other.kill().unwrap();
            assert_eq!(other.wait().unwrap().signal(), Some(libc::SIGKILL));
            return;
        }
        // Somebody else was faster.
        other.kill().unwrap();
        other.wait().unwrap();
    }
    panic!("no number was ever given again");
}

#[tokio::test]
async fn processes_that_are_terminated_at_once_end_by_that() {
    let children: Vec<_> = (0..40)
        .map(|_| {
            let child = Process::spawn(|| std::thread::sleep(FUSE), ()).unwrap();
            child.terminate().unwrap();
            child
        })
        .collect();
    for mut child in children {
        assert_eq!(code(soon(child.wait()).await), -libc::SIGTERM);
        let error = soon(&mut child).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::WorkerDied, "{error:?}");
        assert_eq!(error.exit_status().map(ending), Some(-libc::SIGTERM));
    }
}

/// Notes its place in the tree; starts two more, one after the other.
fn tree(log: PathBuf, place: String, levels: u32) -> Vec<i32> {
    note(&log, &place);
    let mut codes = vec![];
    for child in ["0", "1"].into_iter().filter(|_| levels > 0) {
        let child =
            Process::spawn(tree, (log.clone(), format!("{place}{child}"), levels - 1)).unwrap();
        codes.push(ending(child.blocking_wait().unwrap()));
        codes.extend(child.blocking_join().unwrap());
    }
    codes
}

#[tokio::test]
async fn processes_start_processes() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let child = Process::spawn(tree, (log.clone(), "r".to_string(), 2)).unwrap();
    assert_eq!(code(soon(child.wait()).await), 0);
    assert_eq!(soon(child).await.unwrap(), [0; 6]);
    assert_eq!(lines(&log), ["r", "r0", "r00", "r01", "r1", "r10", "r11"]);
}

#[test]
fn a_program_without_a_runtime_waits_as_well() {
    let child = Process::spawn(|n: u32| n + 1, 41).unwrap();
    child.blocking_started().unwrap();
    assert_eq!(code(child.blocking_wait()), 0);
    assert_eq!(child.blocking_join().unwrap(), 42);
    let child = Process::spawn(|| (), ()).unwrap();
    assert_eq!(child.blocking_wait_timeout(FUSE).unwrap().map(ending), Some(0));
    let child = Process::spawn(hang, PathBuf::from("/dev/null")).unwrap();
    for limit in [Duration::ZERO, Duration::from_millis(20)] {
        assert_eq!(child.blocking_wait_timeout(limit).unwrap(), None);
    }
    child.kill().unwrap();
    assert_eq!(child.blocking_wait_timeout(FUSE).unwrap().map(ending), Some(-9));
    let child = Process::spawn(|| (), ()).unwrap();
    wait_until("a poll finds it", || child.try_join().is_some());
}

#[test]
fn a_process_is_fed_and_waited_for_whatever_becomes_of_runtimes() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    // More than a socket takes at once, and nobody ever polls.
    let bytes = vec![1u8; 4 << 20];
    let inside = first.enter();
    let mut child = Process::spawn(|bytes: Vec<u8>| bytes.len(), &bytes[..]).unwrap();
    drop(inside);
    // A wait that began in a runtime which is gone.
    assert!(
        first.block_on(async { tokio::time::timeout(Duration::ZERO, &mut child).await }).is_err()
            || !child.is_alive()
    );
    drop(first);
    assert_eq!(runtime().block_on(soon(child)).unwrap(), 4 << 20);
}

#[tokio::test]
#[should_panic(expected = "block")]
async fn blocking_within_a_runtime_panics() {
    let _ = Process::spawn(|| (), ()).unwrap().blocking_join();
}

#[tokio::test]
async fn a_process_that_stands_still_is_killed_and_takes_its_group_along() {
    /// Starts a process that does nothing.
    fn with_a_grandchild(log: PathBuf) {
        note(&log, support::start_sleeping());
        hang(log);
    }
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let child = Process::spawn(with_a_grandchild, &log).unwrap();
    until("they are there", || lines(&log).len() == 2).await;
    let all: Vec<_> = pids(&log).into_iter().map(|pid| Proc::of(pid).unwrap()).collect();
    stop(child.pid());
    child.terminate().unwrap();
    assert!(child.is_alive());
    child.kill().unwrap();
    assert_eq!(code(soon(child.wait()).await), -9);
    until("both are gone", || all.iter().all(|process| process.has_ended())).await;
}

#[tokio::test]
async fn a_function_that_closes_every_descriptor_goes_on_to_its_end() {
    fn close_all(log: PathBuf) {
        for fd in 3..100 {
            let _ = nix::unistd::close(fd);
        }
        note(&log, pid());
        std::process::exit(7);
    }
    let dir = tempdir().unwrap();
    let child = Process::spawn(close_all, dir.path().join("log")).unwrap();
    assert_eq!(code(soon(child.wait()).await), 7);
    assert_eq!(lines(&dir.path().join("log")).len(), 1);
}

#[tokio::test]
async fn what_an_async_function_leaves_running_ends_with_the_process() {
    async fn leaves_behind() -> u32 {
        tokio::spawn(std::future::pending::<()>());
        tokio::task::spawn_blocking(|| std::thread::sleep(FUSE * 10));
        std::thread::spawn(|| std::thread::sleep(FUSE * 10));
        7
    }
    let child = Process::spawn(leaves_behind, ()).unwrap();
    assert_eq!(code(soon(child.wait()).await), 0);
    assert_eq!(soon(child).await.unwrap(), 7);
}

// ---- what is left

#[test]
fn processes_that_were_dropped_unjoined_are_reaped_without_anybody_waiting() {
    in_own_process("own_process_dropped");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_dropped() {
    let Some(dir) = own_dir() else { return };
    let (log, gate) = (dir.join("log"), dir.join("gate"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // With the runtime's: where it is built with signals, it leaves two sockets to the process.
    let before = support::descriptors(pid());
    let mut all = Vec::new();
    runtime.block_on(async {
        let dead: Vec<_> = (0..10).map(|_| Process::spawn(|| (), ()).unwrap()).collect();
        let alive: Vec<_> = (0..10)
            .map(|_| Process::spawn(wait_for, (log.clone(), gate.clone())).unwrap())
            .collect();
        all.extend(dead.iter().chain([]).map(Process::pid));
        all.extend(alive.iter().map(Process::pid));
        until("half of them have ended, half have begun", || {
            dead.iter().all(|c| !c.is_alive()) && lines(&log).len() == 10
        })
        .await;
    });
    // Dropped by now, within the runtime and without; and nothing is spawned or polled from here
    // on.
    drop(runtime);
    std::fs::write(gate, "").unwrap();
    wait_until("all have been reaped", || all.iter().all(|pid| state(*pid).is_none()));
    // Nor is anything left of them here: only the supervisor's bell and its set of descriptors are
    // new.
    let is_the_supervisors =
        |what: &str| ["anon_inode:[eventfd]", "anon_inode:[eventpoll]"].contains(&what);
    wait_until("their descriptors are closed", || {
        let mut new = support::descriptors(pid());
        new.retain(|one| !before.contains(one) && !one.1.ends_with("/fd")); // which is this very look
        new.len() <= 2 && new.iter().all(|(_, what)| is_the_supervisors(what))
    });
}

#[tokio::test]
async fn a_dropped_process_runs_on_unless_it_is_to_be_killed() {
    let dir = tempdir().unwrap();
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let runs_on = Process::spawn(wait_for, (log.clone(), gate.clone())).unwrap();
    let killed =
        Process::builder().kill_on_drop(true).spawn(wait_for, (log.clone(), gate.clone())).unwrap();
    until("both have begun", || lines(&log).len() == 2).await;
    let (first, second) = (Proc::of(runs_on.pid()).unwrap(), Proc::of(killed.pid()).unwrap());
    drop((runs_on, killed));
    until("one is gone", || second.is_gone()).await;
    assert!(!first.is_gone());
    std::fs::write(gate, "").unwrap();
    until("the other has ended by itself", || first.is_gone()).await;
}

#[tokio::test]
async fn a_host_that_reaps_everything_leaves_the_status_to_the_kernel_or_unknown() {
    in_own_process("own_process_thief");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_thief() {
    if own_dir().is_none() {
        return;
    }
    std::thread::spawn(|| {
        loop {
            match nix::sys::wait::wait() {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    });
    for _ in 0..50 {
        let child = match Process::spawn(|| 5u8, ()) {
            Ok(child) => child,
            Err(error) => panic!("{error:?}"),
        };
        match child.blocking_wait() {
            Ok(status) => assert_eq!(ending(status), 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::StatusUnknown),
        }
        assert_eq!(child.blocking_join().unwrap(), 5);
    }
}

#[test]
fn a_handle_goes_anywhere() {
    fn goes_anywhere<T: Send + Sync + Unpin + 'static>() {}
    // Also where its value cannot.
    goes_anywhere::<Process<std::rc::Rc<u8>>>();
    goes_anywhere::<procpool::DaemonStart>();
    fn is_send(_: impl Send) {}
    let child = Process::spawn(|| (), ()).unwrap();
    is_send(child.wait());
    is_send(child.started());
}

// ---- starts that fail

/// The cause of a start that failed, which the value tells.
fn cause(error: &TaskError) -> Error {
    std::error::Error::source(error).unwrap().downcast_ref::<Error>().unwrap().clone()
}

#[tokio::test]
async fn what_keeps_a_process_from_starting_is_told_by_spawn() {
    let error = Process::builder().current_dir("/nowhere/at/all").spawn(pid, ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Spawn);
    assert!(
        std::error::Error::source(&error).unwrap().to_string().contains("/nowhere/at/all"),
        "{error:?}"
    );
    let error = Process::builder().env("A=B", "").spawn(pid, ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Spawn);
    let error = Process::builder().umask(0o1000).spawn(pid, ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    let lines = || Stdio::lines(|line| println!("{line}"));
    let builders = [
        Process::builder().stdin(lines()),
        Process::builder().stdout(lines()),
        Process::builder().stderr(lines()),
    ];
    for (builder, option) in builders.into_iter().zip(["stdin", "stdout", "stderr"]) {
        assert_eq!(builder.spawn(pid, ()).unwrap_err().option(), Some(option));
    }
}

#[tokio::test]
async fn a_process_that_is_killed_from_outside_before_it_begins_is_a_failed_start_or_a_death() {
    let mut children: Vec<_> = (0..10)
        .map(|_| {
            let child = Process::spawn(spin, PathBuf::from("/dev/null")).unwrap();
            signal(child.pid(), Signal::SIGKILL);
            child
        })
        .collect();
    for child in &mut children {
        let error = soon(&mut *child).await.unwrap_err();
        assert_eq!(error.exit_status().map(ending), Some(-9), "{error:?}");
        assert_eq!(code(soon(child.wait()).await), -9);
        match error.kind() {
            TaskErrorKind::WorkerDied => {
                assert_eq!(soon(child.started()).await.map_err(|e| e.kind()), Ok(()))
            }
            TaskErrorKind::StartFailed => {
                assert_eq!(cause(&error).kind(), ErrorKind::DiedAtStart);
                assert_eq!(soon(child.started()).await.unwrap_err().kind(), ErrorKind::DiedAtStart);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_process_takes_few_descriptors_of_its_application() {
    in_own_process("own_process_that_counts");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_that_counts() {
    let Some(dir) = own_dir() else { return };
    drop(Process::spawn(|| (), ()).unwrap().blocking_join()); // the supervisor's are there from now on
    let count = || support::descriptors(pid()).len();
    let sets = || {
        support::descriptors(pid())
            .iter()
            .filter(|(_, what)| what == "anon_inode:[eventpoll]")
            .count()
    };
    wait_until("what the first took is given back", || sets() == 1); // the supervisor's own
    let before = count();
    let child = Process::spawn(wait_for, (dir.join("log"), dir.join("gate"))).unwrap();
    child.blocking_started().unwrap();
    wait_until("those of the start are closed", || count() <= before + 6);
    std::fs::write(dir.join("gate"), "").unwrap();
    child.blocking_wait().unwrap();
    wait_until("its handle keeps three", || count() <= before + 3);
    drop(child);
    wait_until("none is left", || count() == before);
}
