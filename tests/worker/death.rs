//! What the death of a worker costs: the task that ran in it, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "tasks that crash, fork and close what is not theirs")]

use crate::support::{
    Proc, die, hang, lines, note, pid, pids, seen, signal, soon, spin, start_sleeping, state, stop,
    until, wait_for, wait_until,
};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::{Pool, TaskError};
use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

/// The task's worker died by this signal.
fn died_by<R: std::fmt::Debug>(result: Result<R, TaskError>, signal: Signal) -> u32 {
    let error = result.unwrap_err();
    assert!(error.is_worker_died(), "{error:?}");
    assert_eq!(error.exit_status().unwrap().signal(), Some(signal as i32), "{error:?}");
    error.pid().unwrap()
}

// ---- how a process ends

#[tokio::test]
async fn a_task_that_kills_its_process_is_told_and_the_next_one_runs() {
    let pool = pool(1);
    let victim = soon(pool.spawn(pid, ())).await.unwrap();
    let error = soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err();
    assert!(error.is_worker_died() && !error.is_stack_overflow(), "{error:?}");
    assert_eq!(error.pid(), Some(victim));
    assert_eq!(error.exit_status().unwrap().signal(), Some(9));
    assert!(error.function().contains("die"), "{error:?}");
    assert_ne!(soon(pool.spawn(pid, ())).await.unwrap(), victim);
}

#[tokio::test]
async fn a_task_that_exits_is_never_taken_for_done() {
    let pool = pool(1);
    for code in [0, 1, 3, 137, 255] {
        let exits = [
            pool.spawn(|code: i32| -> u32 { std::process::exit(code) }, code),
            // SAFETY: ends the process.
            pool.spawn(|code: i32| -> u32 { unsafe { libc::_exit(code) } }, code),
            pool.spawn(async |code: i32| -> u32 { std::process::exit(code) }, code),
        ];
        for exit in exits {
            let error = soon(exit).await.unwrap_err();
            assert!(error.is_worker_died(), "{error:?}");
            assert_eq!(error.exit_status().unwrap().code(), Some(code), "{error:?}");
        }
    }
    assert!(soon(pool.spawn(pid, ())).await.is_ok());
}

#[tokio::test]
async fn each_signal_is_named_in_the_error() {
    let pool = pool(2);
    for signal in [
        Signal::SIGUSR1,
        Signal::SIGKILL,
        Signal::SIGABRT,
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
    ] {
        died_by(soon(pool.spawn(die, signal as i32)).await, signal);
    }
    died_by(soon(pool.spawn(|| -> () { std::process::abort() }, ())).await, Signal::SIGABRT);
}

/// Writes to a page that may not be written.
fn fault() {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    let one_page = std::num::NonZeroUsize::new(4096).unwrap();
    // SAFETY: a new mapping; the write to it is what kills the process, which is what is asked for.
    unsafe {
        let page =
            mmap_anonymous(None, one_page, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE).unwrap();
        page.cast::<u8>().as_ptr().write_volatile(1);
    }
}

#[expect(unconditional_recursion, reason = "it is to overflow the stack")]
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    overflow(depth + 1) + frame[0]
}

#[tokio::test]
async fn a_stack_overflow_is_told_apart_from_other_faults() {
    let pool = pool(1);
    let error = soon(pool.spawn(fault, ())).await.unwrap_err();
    assert!(error.is_worker_died() && !error.is_stack_overflow(), "{error:?}");
    assert_eq!(error.exit_status().unwrap().signal(), Some(libc::SIGSEGV));

    let in_a_thread = |depth: u64| std::thread::spawn(move || overflow(depth)).join().unwrap();
    let error = soon(pool.spawn(in_a_thread, 0)).await.unwrap_err();
    assert!(error.is_worker_died() && !error.is_stack_overflow(), "{error:?}");

    for overflow in [pool.spawn(overflow, 0), pool.spawn(async |depth: u64| overflow(depth), 0)] {
        let error = soon(overflow).await.unwrap_err();
        assert!(error.is_worker_died() && error.is_stack_overflow(), "{error:?}");
        assert_eq!(error.exit_status().unwrap().signal(), Some(libc::SIGSEGV));
    }
    // What was noted of one worker is not told of the next.
    let error = soon(pool.spawn(fault, ())).await.unwrap_err();
    assert!(error.is_worker_died() && !error.is_stack_overflow(), "{error:?}");
}

// ---- what a death costs

#[tokio::test]
async fn tasks_behind_the_dead_one_run_elsewhere_and_once() {
    let (pool, dir) = (pool(1), tempdir().unwrap());
    let log = dir.path().join("log");
    for round in 0..20 {
        // Quick tasks first: then several stand ready in one worker.
        for _ in 0..20 {
            soon(pool.spawn(|n: u32| n, 1)).await.unwrap();
        }
        let dying = pool.spawn(die, Signal::SIGKILL as i32);
        let behind: Vec<_> = (0..20)
            .map(|n| {
                let append = |log: PathBuf, line: String| {
                    note(&log, line);
                    pid()
                };
                pool.spawn(append, (log.clone(), format!("{round}.{n}")))
            })
            .collect();
        let dead = died_by(soon(dying).await, Signal::SIGKILL);
        for handle in behind {
            assert_ne!(soon(handle).await.unwrap(), dead);
        }
    }
    let ran = lines(&log);
    assert_eq!((ran.len(), ran.iter().collect::<HashSet<_>>().len()), (400, 400));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_task_that_kills_its_worker_runs_once_however_busy_the_machine_is() {
    let (pool, dir) = (pool(4), tempdir().unwrap());
    let log = dir.path().join("log");
    let callers = (0..8).map(|caller| {
        let (pool, log) = (pool.clone(), log.clone());
        tokio::spawn(async move {
            for n in 0..40 {
                let last_words = |log: PathBuf, line: String| {
                    note(&log, line);
                    die(Signal::SIGKILL as i32);
                };
                died_by(
                    soon(pool.spawn(last_words, (log.clone(), format!("{caller}.{n}")))).await,
                    Signal::SIGKILL,
                );
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let ran = lines(&log);
    assert_eq!(ran.iter().collect::<HashSet<_>>().len(), ran.len(), "a task ran twice");
    // A task may have been in the socket of a worker that died of the one before it, and never have
    // begun.
    assert!(ran.len() <= 320);
}

#[tokio::test]
async fn a_worker_killed_from_outside_costs_its_own_task_only() {
    let (pool, dir) = (pool(2), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let innocent = pool.spawn(wait_for, (log.clone(), gate.clone()));
    until("the first task runs", || lines(&log).len() == 1).await;
    let victim = pool.spawn(spin, &log);
    until("the second task runs", || lines(&log).len() == 2).await;
    let [a, b] = pids(&log)[..] else { panic!("two tasks") };
    assert_eq!((innocent.worker_pid(), victim.worker_pid()), (Some(a), Some(b)));
    signal(b, Signal::SIGKILL);
    assert_eq!(died_by(soon(victim).await, Signal::SIGKILL), b);
    assert_ne!(soon(pool.spawn(pid, ())).await.unwrap(), b);
    assert!(!innocent.is_finished());
    std::fs::write(gate, "").unwrap();
    assert_eq!(soon(innocent).await.unwrap(), a);
}

#[tokio::test]
async fn workers_that_kill_each_other_at_once_are_all_accounted_for() {
    const WORKERS: usize = 12;
    /// Who is killed by each: a ring, but for the last four, who have the same victim.
    fn victim(own: usize) -> usize {
        if own < 8 { (own + 1) % WORKERS } else { 5 }
    }
    fn kill_neighbour(dir: PathBuf, own: usize) {
        let at = |name: &str, n| dir.join(format!("{name}-{n}"));
        std::fs::write(at("new", own), pid().to_string()).unwrap();
        std::fs::rename(at("new", own), at("pid", own)).unwrap();
        wait_until("all are there", || (0..WORKERS).all(|n| at("pid", n).exists()));
        let neighbour = std::fs::read_to_string(at("pid", victim(own))).unwrap().parse().unwrap();
        let _ = kill(Pid::from_raw(neighbour), Signal::SIGKILL); // another may have been faster
        std::fs::write(at("killed", own), "").unwrap();
        wait_until("the gate opens", || dir.join("gate").exists());
    }
    let (pool, dir) = (pool(WORKERS), tempdir().unwrap());
    soon(pool.ready()).await.unwrap();
    let tasks: Vec<_> =
        (0..WORKERS).map(|own| pool.spawn(kill_neighbour, (dir.path().to_owned(), own))).collect();
    until("all have begun", || (0..WORKERS).all(|n| dir.path().join(format!("pid-{n}")).exists()))
        .await;
    let workers: Vec<u32> = (0..WORKERS)
        .map(|n| {
            std::fs::read_to_string(dir.path().join(format!("pid-{n}"))).unwrap().parse().unwrap()
        })
        .collect();
    let dead = |n: usize| state(workers[n]).is_none();
    until("each has killed or is dead", || {
        (0..WORKERS).all(|n| dir.path().join(format!("killed-{n}")).exists() || dead(n))
    })
    .await;
    let killed = (0..WORKERS).filter(|n| dir.path().join(format!("killed-{n}")).exists());
    let victims: HashSet<usize> = killed.map(victim).collect();
    until("the victims are dead", || victims.iter().all(|n| dead(*n))).await;
    std::fs::write(dir.path().join("gate"), "").unwrap();
    for (n, task) in tasks.into_iter().enumerate() {
        let result = soon(task).await;
        if dead(n) {
            assert_eq!(died_by(result, Signal::SIGKILL), workers[n]);
        } else {
            result.unwrap();
        }
    }
    soon(pool.ready()).await.unwrap();
    // All at once, so in as many processes.
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate 2"));
    let again: Vec<_> =
        (0..WORKERS).map(|_| pool.spawn(wait_for, (log.clone(), gate.clone()))).collect();
    until("all run at once", || lines(&log).len() == WORKERS).await;
    std::fs::write(&gate, "").unwrap();
    let mut pids = HashSet::new();
    for task in again {
        pids.insert(soon(task).await.unwrap());
    }
    assert_eq!(pids.len(), WORKERS);
}

/// Leaves a thread that aborts the process when `gate` opens.
fn time_bomb(gate: PathBuf) -> u32 {
    std::thread::spawn(move || {
        wait_until("the gate opens", || gate.exists());
        std::process::abort()
    });
    pid()
}

#[tokio::test]
async fn a_thread_left_behind_that_aborts_costs_whoever_runs_then() {
    let (pool, dir) = (pool(1), tempdir().unwrap());
    let gate = |n: u32| dir.path().join(format!("gate {n}"));

    // While it is idle: nobody.
    let first = Proc::of(soon(pool.spawn(time_bomb, gate(1))).await.unwrap()).unwrap();
    std::fs::write(gate(1), "").unwrap();
    until("it is gone", || first.is_gone()).await;
    let second = soon(pool.spawn(time_bomb, gate(2))).await.unwrap();
    assert_ne!(second, first.pid);

    // While the next one runs: that one, and none of those that wait.
    let log = dir.path().join("log");
    let running = pool.spawn(hang, &log);
    until("it runs", || lines(&log).len() == 1).await;
    let behind: Vec<_> = (0..5).map(|_| pool.spawn(pid, ())).collect();
    std::fs::write(gate(2), "").unwrap();
    assert_eq!(died_by(soon(running).await, Signal::SIGABRT), second);
    for handle in behind {
        assert_ne!(soon(handle).await.unwrap(), second);
    }
}

#[tokio::test]
async fn idle_workers_that_are_killed_cost_nothing() {
    let pool = pool(3);
    soon(pool.ready()).await.unwrap();
    for _ in 0..10 {
        let worker = Proc::of(soon(pool.spawn(pid, ())).await.unwrap()).unwrap();
        signal(worker.pid, Signal::SIGKILL);
        until("it is gone", || worker.is_gone()).await;
        for _ in 0..5 {
            assert_ne!(soon(pool.spawn(pid, ())).await.unwrap(), worker.pid);
        }
    }
}

#[tokio::test]
async fn a_worker_killed_while_it_reads_a_large_argument_costs_nothing() {
    let (pool, dir) = (pool(2), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let other = pool.spawn(wait_for, (log.clone(), gate.clone()));
    until("the first task runs", || lines(&log).len() == 1).await;
    let reader = soon(pool.spawn(pid, ())).await.unwrap();
    assert_ne!(other.worker_pid(), Some(reader));
    stop(reader); // so it takes no more than its socket holds
    let large = pool.spawn(|bytes: Vec<u8>| bytes.len(), vec![7; 4 << 20]);
    assert_eq!(large.worker_pid(), Some(reader));
    signal(reader, Signal::SIGKILL);
    assert_eq!(soon(large).await.unwrap(), 4 << 20, "it had not begun, so it runs elsewhere");
    std::fs::write(gate, "").unwrap();
    soon(other).await.unwrap();
    assert_eq!(
        soon(pool.spawn(|bytes: Vec<u8>| bytes.len(), vec![7; 1 << 20])).await.unwrap(),
        1 << 20
    );
}

/// Kills its process as soon as bytes stand in its socket that the pool has not read.
fn kill_when_something_is_written(begun: std::sync::mpsc::Sender<()>) {
    let is_socket = |fd: &i32| {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        link.is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    let sockets: Vec<_> = (3..64).filter(is_socket).collect();
    begun.send(()).unwrap();
    loop {
        for fd in &sockets {
            let mut unread: libc::c_int = 0;
            // SAFETY: asks for a number; SIOCOUTQ is the same request (unix(7)).
            if unsafe { libc::ioctl(*fd, libc::TIOCOUTQ, &raw mut unread) } == 0 && unread > 0 {
                die_as_a_process();
            }
        }
    }
}

fn die_as_a_process() {
    signal(pid(), Signal::SIGKILL);
}

fn answer_and_die(bytes: usize) -> (u32, Vec<u8>) {
    let (begun, has_begun) = std::sync::mpsc::channel();
    std::thread::spawn(move || kill_when_something_is_written(begun));
    has_begun.recv().unwrap();
    (pid(), vec![7; bytes])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_while_it_writes_a_large_result_costs_that_task_only() {
    let (pool, dir) = (pool(2), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let other = pool.spawn(wait_for, (log.clone(), gate.clone()));
    until("the first task runs", || lines(&log).len() == 1).await;
    died_by(
        soon(pool.spawn(answer_and_die, 64 << 20)).await.map(|(_, bytes)| bytes.len()),
        Signal::SIGKILL,
    );
    std::fs::write(gate, "").unwrap();
    soon(other).await.unwrap();
    soon(pool.spawn(pid, ())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_was_written_whole_counts_though_its_worker_died() {
    let pool = pool(2);
    for _ in 0..50 {
        // Whether the worker is killed before the pool reads is chance; the result is there in any
        // case.
        let (worker, bytes) = soon(pool.spawn(answer_and_die, 10)).await.unwrap();
        assert_eq!(bytes, vec![7; 10]);
        // The next one shall not meet a process that is about to kill itself.
        let _ = kill(Pid::from_raw(worker.cast_signed()), Signal::SIGKILL);
        until("it is gone", || state(worker).is_none()).await;
    }
}

#[tokio::test]
async fn tasks_with_large_arguments_that_all_abort_leave_no_writer_blocked() {
    let pool = pool(4);
    let abort = |_: Vec<u8>| -> () { std::process::abort() };
    let tasks: Vec<_> = (0..10).map(|_| pool.spawn(abort, vec![1; 3 << 20])).collect();
    for task in tasks {
        died_by(soon(task).await, Signal::SIGABRT);
    }
    assert_eq!(
        soon(pool.spawn(|bytes: Vec<u8>| bytes.len(), vec![1; 3 << 20])).await.unwrap(),
        3 << 20
    );
}

#[tokio::test]
async fn a_death_costs_all_async_tasks_that_ran_there_and_no_other() {
    async fn wait(log: PathBuf) {
        note(&log, pid());
        std::future::pending().await
    }
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let pool = Pool::builder().workers(1).concurrency(3).build().unwrap();
    let running: Vec<_> = (0..3).map(|_| pool.spawn(wait, &log)).collect();
    until("all run", || lines(&log).len() == 3).await;
    let waiting: Vec<_> = (0..3).map(|_| pool.spawn(async || pid(), ())).collect();
    let worker = pids(&log)[0];
    signal(worker, Signal::SIGKILL);
    for task in running {
        assert_eq!(died_by(soon(task).await, Signal::SIGKILL), worker);
    }
    for task in waiting {
        assert_ne!(soon(task).await.unwrap(), worker);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_of_a_map_is_answered_while_workers_are_killed() {
    use futures::StreamExt;
    let (pool, dir) = (pool(4), tempdir().unwrap());
    let log = dir.path().join("log");
    let work = |log: PathBuf, n: u32| {
        note(&log, n);
        if n.is_multiple_of(97) {
            die(Signal::SIGKILL as i32);
        }
        n
    };
    let mut results = pool.map(work, (1..=2000).map(|n| (log.clone(), n)));
    let mut n = 0;
    while let Some(result) = soon(results.next()).await {
        n += 1;
        match result {
            Ok(value) => assert_eq!(value, n),
            Err(error) => assert!(error.is_worker_died() && n.is_multiple_of(97), "{n}: {error:?}"),
        }
    }
    assert_eq!(n, 2000);
    let ran = lines(&log);
    assert_eq!((ran.len(), ran.iter().collect::<HashSet<_>>().len()), (2000, 2000));
}

// ---- tasks that meddle with the worker itself

#[tokio::test]
async fn a_task_that_closes_the_workers_descriptors_has_its_result_and_the_pool_goes_on() {
    let pool = pool(1);
    let close = || -> u32 {
        for fd in 3..64 {
            // SAFETY: it is not sound at all, and what becomes of the process is the question.
            unsafe { libc::close(fd) };
        }
        pid()
    };
    for _ in 0..3 {
        // The result is committed to memory, which needs no descriptor; then the worker ends.
        let closed = soon(pool.spawn(close, ())).await.unwrap();
        assert_ne!(soon(pool.spawn(pid, ())).await.unwrap(), closed);
    }
}

#[tokio::test]
async fn a_task_that_closes_or_shuts_the_socket_and_hangs_is_ended() {
    const CLOSE: i32 = -1;
    let shut = |how: i32, log: PathBuf| -> () {
        for fd in 3..64 {
            // SAFETY: not sound at all for `close`; `shutdown` fails on what is no socket.
            unsafe { if how == CLOSE { libc::close(fd) } else { libc::shutdown(fd, how) } };
        }
        hang(log)
    };
    for how in [CLOSE, libc::SHUT_WR, libc::SHUT_RDWR] {
        let (pool, dir) = (pool(1), tempdir().unwrap());
        let hanging = pool.spawn(shut, (how, dir.path().join("log")));
        told_that_it_closed_its_socket(&soon(hanging).await.unwrap_err());
        assert!(soon(pool.spawn(pid, ())).await.is_ok());
    }
}

fn told_that_it_closed_its_socket(error: &TaskError) {
    assert!(
        error.is_protocol_violation() && error.to_string().contains("closed its socket"),
        "{error:?}"
    );
}

/// The pool sees it when it writes: of async tasks a worker has several.
#[tokio::test]
async fn a_task_that_shuts_the_socket_for_reading_and_hangs_is_ended_when_something_is_sent() {
    let shut = async |log: PathBuf| -> () {
        for fd in 3..64 {
            // SAFETY: a plain call; it fails on what is no socket.
            unsafe { libc::shutdown(fd, libc::SHUT_RD) };
        }
        hang(log)
    };
    let (pool, dir) = (pool(1), tempdir().unwrap());
    let log = dir.path().join("log");
    let hanging = pool.spawn(shut, &log);
    until("it hangs", || log.exists()).await;
    let other = pool.spawn(async || pid(), ());
    told_that_it_closed_its_socket(&soon(hanging).await.unwrap_err());
    assert!(soon(other).await.is_ok());
}

/// The pool sees that only when it writes. The worker sees it when its task has ended.
#[tokio::test]
async fn a_task_that_shuts_the_socket_for_reading_costs_no_other_task() {
    let shut = || -> u32 {
        for fd in 3..64 {
            // SAFETY: a plain call; it fails on what is no socket.
            unsafe { libc::shutdown(fd, libc::SHUT_RD) };
        }
        pid()
    };
    let pool = pool(1);
    for _ in 0..3 {
        let first = soon(pool.spawn(shut, ())).await.unwrap();
        assert_ne!(soon(pool.spawn(pid, ())).await.unwrap(), first);
    }
    soon(pool.shutdown()).await;
}

/// Forks and returns in both processes; the original waits for its copy first.
fn fork_and_return() -> i32 {
    // SAFETY: the worker's main thread is its only one; the copy does nothing but return.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => -1,
        nix::unistd::ForkResult::Parent { child } => {
            match nix::sys::wait::waitpid(child, None).unwrap() {
                nix::sys::wait::WaitStatus::Exited(_, code) => 1000 + code,
                other => panic!("the copy ended by {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_forked_copy_that_returns_from_its_task_says_nothing() {
    let pool = pool(1);
    let worker = soon(pool.spawn(pid, ())).await.unwrap();
    for _ in 0..5 {
        assert_eq!(soon(pool.spawn(fork_and_return, ())).await.unwrap(), 1000);
        assert_eq!(soon(pool.spawn(async || fork_and_return(), ())).await.unwrap(), 1000);
        let after_await = async || {
            let code = fork_and_return();
            tokio::task::yield_now().await;
            code
        };
        assert_eq!(soon(pool.spawn(after_await, ())).await.unwrap(), 1000);
        let panics = || -> () { panic!("{}", fork_and_return()) };
        let error = soon(pool.spawn(panics, ())).await.unwrap_err();
        assert_eq!(error.panic_message(), Some("1000"));
    }
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap(), worker, "it serves on");
}

#[tokio::test]
async fn a_death_is_seen_though_a_forked_copy_holds_the_socket() {
    fn leave_a_copy(log: PathBuf, gate: PathBuf) {
        // SAFETY: as above; the copy ends by `_exit`.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                nix::unistd::setsid().unwrap(); // out of the group, or it would be killed as well
                note(&log, pid());
                wait_until("the gate opens", || gate.exists());
                // SAFETY: ends the copy.
                unsafe { libc::_exit(0) }
            }
            nix::unistd::ForkResult::Parent { .. } => {
                wait_until("the copy is there", || lines(&log).len() == 1);
                die(Signal::SIGKILL as i32);
            }
        }
    }
    let (pool, dir) = (pool(1), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    died_by(soon(pool.spawn(leave_a_copy, (log.clone(), gate.clone()))).await, Signal::SIGKILL);
    assert!(soon(pool.spawn(pid, ())).await.is_ok());
    let copy = seen(&log)[0];
    assert!(!copy.has_ended(), "it held the socket all the time");
    std::fs::write(gate, "").unwrap();
    until("the copy has ended", || copy.has_ended()).await;
}

#[tokio::test]
async fn what_a_task_has_started_dies_with_its_worker() {
    let (pool, dir) = (pool(1), tempdir().unwrap());
    let start = |log: PathBuf| {
        note(&log, start_sleeping());
        die(Signal::SIGKILL as i32);
    };
    let log = dir.path().join("log");
    let task = pool.spawn(start, &log);
    until("it has been started", || lines(&log).len() == 1).await;
    died_by(soon(task).await, Signal::SIGKILL);
    let child = Path::new("/proc").join(&lines(&log)[0]);
    until("it has ended", || !child.exists() || matches!(state(pids(&log)[0]), Some('Z') | None))
        .await;
}

#[tokio::test]
async fn a_stopped_worker_is_killed_with_its_pool() {
    let (pool, dir) = (pool(2), tempdir().unwrap());
    let log = dir.path().join("log");
    let tasks = [pool.spawn(hang, &log), pool.spawn(spin, &log)];
    until("both run", || lines(&log).len() == 2).await;
    let workers = seen(&log);
    workers.iter().for_each(|worker| stop(worker.pid));
    drop(pool);
    for task in tasks {
        assert!(soon(task).await.unwrap_err().is_pool_closed());
    }
    until("they are gone", || workers.iter().all(|worker| worker.is_gone())).await;
}
