//! How workers start: `init`, what it leaves for the tasks, and starts that fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "init functions that end their process without ceremony")]

use crate::support;
use crate::support::{
    Proc, children, die, in_own_process, in_own_process_of_nobody, lines, note, own_dir, pid, pids,
    signal, soon, until, wait_for, wait_until,
};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use procpool::{Builder, ErrorKind, Pool, TaskError, TaskErrorKind};
use std::collections::HashSet;
use std::error::Error;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::tempdir;

/// What `init` leaves behind in these tests: the process that it ran in.
struct Initialised {
    pid: u32,
}

fn set_up(log: PathBuf) -> Result<Initialised, String> {
    note(&log, pid());
    Ok(Initialised { pid: pid() })
}

async fn set_up_async(log: PathBuf) -> Result<Initialised, String> {
    tokio::task::yield_now().await;
    set_up(log)
}

fn state_pid() -> Option<(u32, u32)> {
    Some((pid(), procpool::state::<Initialised>()?.pid))
}

/// The cause of a start that failed, which the task was told.
fn cause(error: &TaskError) -> &procpool::Error {
    let cause = error.start_error().unwrap();
    assert!(std::ptr::eq(error.source().unwrap().downcast_ref().unwrap(), cause));
    cause
}

// ---- init

async fn init_runs_once_in_each_worker(builder: Builder, log: &Path) {
    let pool = builder.workers(3).build().unwrap();
    assert!(lines(log).is_empty(), "`build` starts nothing");
    soon(pool.ready()).await.unwrap();
    assert_eq!(pids(log).len(), 3, "`ready` includes `init`");
    let mut used = HashSet::new();
    for round in 0..30 {
        let (own, state) = soon(pool.spawn(state_pid, ())).await.unwrap().unwrap();
        assert_eq!(own, state);
        used.insert(own);
        if round % 5 == 0 {
            assert!(
                soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died()
            );
        }
    }
    let initialised = pids(log);
    assert_eq!(initialised.len(), initialised.iter().collect::<HashSet<_>>().len(), "once in each");
    assert!(used.iter().all(|pid| initialised.contains(pid)), "in each that ran a task");
    assert!(used.len() > 3, "in replacements, too");
}

#[tokio::test]
async fn init_runs_once_in_each_worker_and_in_replacements() {
    let dir = tempdir().unwrap();
    let logs = [dir.path().join("sync"), dir.path().join("async")];
    init_runs_once_in_each_worker(Pool::builder().on_worker_start(set_up, &logs[0]), &logs[0])
        .await;
    init_runs_once_in_each_worker(
        Pool::builder().on_worker_start(set_up_async, &logs[1]),
        &logs[1],
    )
    .await;
}

#[tokio::test]
async fn state_is_what_init_returned_and_nothing_else() {
    fn greet(whom: String, times: u32) -> Result<Vec<String>, String> {
        Ok(vec![whom; times as usize])
    }
    let read =
        || (procpool::state::<Vec<String>>().cloned(), procpool::state::<String>().is_some());
    let pool =
        Pool::builder().workers(1).on_worker_start(greet, ("you".to_string(), 2)).build().unwrap();
    assert_eq!(
        soon(pool.spawn(read, ())).await.unwrap(),
        (Some(vec!["you".to_string(); 2]), false)
    );
    assert_eq!(read(), (None, false), "not in the application");
    let pool = Pool::builder().workers(1).build().unwrap();
    assert_eq!(soon(pool.spawn(read, ())).await.unwrap(), (None, false), "not without `init`");
}

#[tokio::test]
async fn what_an_async_init_leaves_behind_goes_on_in_the_tasks() {
    struct Server(tokio::sync::mpsc::UnboundedSender<(u32, tokio::sync::oneshot::Sender<u32>)>);
    async fn serve() -> Result<Server, String> {
        let (sender, mut requests) =
            tokio::sync::mpsc::unbounded_channel::<(u32, tokio::sync::oneshot::Sender<u32>)>();
        tokio::spawn(async move {
            while let Some((number, reply)) = requests.recv().await {
                let _ = reply.send(number * 2);
            }
        });
        Ok(Server(sender))
    }
    async fn ask(number: u32) -> u32 {
        let (reply, answer) = tokio::sync::oneshot::channel();
        procpool::state::<Server>().unwrap().0.send((number, reply)).unwrap();
        answer.await.unwrap()
    }
    let pool = Pool::builder().workers(1).on_worker_start(serve, ()).build().unwrap();
    for number in 0..10 {
        assert_eq!(soon(pool.spawn(ask, number)).await.unwrap(), number * 2);
    }
}

// ---- init that fails

/// Fails in the way that is asked for.
fn fail(log: PathBuf, how: String) -> Result<(), String> {
    note(&log, pid());
    match how.as_str() {
        "error" => Err("the model is missing".to_string()),
        "panic" => panic!("the model is broken"),
        "exit" => std::process::exit(3),
        // SAFETY: ends the process.
        "_exit" => unsafe { libc::_exit(0) },
        "abort" => std::process::abort(),
        other => unreachable!("{other}"),
    }
}

async fn fail_async(log: PathBuf, how: String) -> Result<(), String> {
    tokio::task::yield_now().await;
    fail(log, how)
}

#[tokio::test]
async fn a_failing_init_fails_every_task_with_its_cause_and_starts_few_processes() {
    let dir = tempdir().unwrap();
    for (how, is_async) in ["error", "panic", "exit", "_exit", "abort"]
        .into_iter()
        .flat_map(|how| [(how, false), (how, true)])
    {
        let (log, stderr) = (
            dir.path().join(format!("{how} {is_async}")),
            dir.path().join(format!("{how} {is_async}, stderr")),
        );
        let args = (log.clone(), how.to_string());
        let builder = Pool::builder()
            .workers(2)
            .env("RUST_BACKTRACE", "0")
            .stderr(File::options().create(true).append(true).open(&stderr).unwrap());
        let builder = if is_async {
            builder.on_worker_start(fail_async, args)
        } else {
            builder.on_worker_start(fail, args)
        };
        let pool = builder.build().unwrap();
        let tasks: Vec<_> = (0..10).map(|_| pool.spawn(pid, ())).collect();
        for task in tasks {
            let error = soon(task).await.unwrap_err();
            assert_eq!(error.kind(), TaskErrorKind::InitFailed, "{how}: {error:?}");
            assert!(error.is_start_failed() && error.is_init_failed());
            let cause = cause(&error);
            assert!(cause.is_init_failed() && !cause.is_timeout(), "{how}: {cause:?}");
            assert!(pids(&log).contains(&cause.pid().unwrap()), "{how}: {cause:?}");
            let status = error.exit_status();
            match how {
                "error" => {
                    assert_eq!(
                        (cause.reason(), cause.is_panic()),
                        (Some("the model is missing"), false)
                    );
                    assert!(cause.to_string().contains("the model is missing"), "{cause}");
                }
                "panic" => {
                    assert_eq!(
                        (cause.panic_message(), cause.is_panic()),
                        (Some("the model is broken"), true)
                    );
                    assert!(cause.panic_location().unwrap().contains(file!()), "{cause:?}");
                    assert!(
                        cause.to_string().contains("the model is broken")
                            && cause.to_string().contains(file!()),
                        "{cause}"
                    );
                }
                "exit" => assert_eq!(status.unwrap().code(), Some(3)),
                "_exit" => assert_eq!(status.unwrap().code(), Some(0)),
                _ => assert_eq!(status.unwrap().signal(), Some(libc::SIGABRT)),
            }
        }
        // Those that come later fail as well; each failed start makes the next wait longer.
        for _ in 0..100 {
            assert_eq!(
                soon(pool.spawn(pid, ())).await.unwrap_err().kind(),
                TaskErrorKind::InitFailed,
                "{how}"
            );
        }
        assert!(pids(&log).len() <= 20, "{how}: {} processes were started", pids(&log).len());
        assert!(soon(pool.ready()).await.unwrap_err().is_init_failed());
        soon(pool.shutdown()).await;
        assert!(soon(pool.ready()).await.unwrap_err().is_pool_closed());
        // A panic says it by itself, once, unless its process is killed before that; nobody else
        // says anything.
        let (starts, said) = (
            pids(&log).len(),
            lines(&stderr).iter().filter(|line| line.contains("the model is")).count(),
        );
        let by_itself = if how == "panic" { 1..=starts } else { 0..=0 };
        assert!(
            by_itself.contains(&said),
            "{how}: {said} of {starts} starts: {:?}",
            lines(&stderr)
        );
    }
}

#[tokio::test]
async fn a_pool_recovers_when_its_init_no_longer_fails() {
    fn unless_forbidden(forbidden: PathBuf) -> Result<(), String> {
        if forbidden.exists() { Err("forbidden".to_string()) } else { Ok(()) }
    }
    let dir = tempdir().unwrap();
    let forbidden = dir.path().join("forbidden");
    std::fs::write(&forbidden, "").unwrap();
    let pool =
        Pool::builder().workers(1).on_worker_start(unless_forbidden, &forbidden).build().unwrap();
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap_err().kind(), TaskErrorKind::InitFailed);
    std::fs::remove_file(forbidden).unwrap();
    while let Err(error) = soon(pool.spawn(pid, ())).await {
        assert_eq!(error.kind(), TaskErrorKind::InitFailed);
        tokio::task::yield_now().await;
    }
}

/// Fails at its first, third, fifth … run.
fn fail_every_second_time(log: PathBuf) -> Result<(), String> {
    note(&log, pid());
    if lines(&log).len() % 2 == 1 { Err("not this time".to_string()) } else { Ok(()) }
}

/// Fails its first so many runs.
fn fail_at_first(log: PathBuf, times: usize) -> Result<(), String> {
    note(&log, pid());
    if lines(&log).len() <= times { Err("not yet".to_string()) } else { Ok(()) }
}

#[tokio::test]
async fn a_start_that_fails_in_between_fails_no_task() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let pool =
        Pool::builder().workers(1).on_worker_start(fail_every_second_time, &log).build().unwrap();
    for _ in 0..2 {
        let tasks: Vec<_> = (0..40).map(|_| pool.spawn(pid, ())).collect();
        for task in tasks {
            soon(task).await.unwrap();
        }
        assert!(soon(pool.spawn(die, libc::SIGKILL)).await.unwrap_err().is_worker_died());
    }
    assert!(pids(&log).len() >= 4);
}

#[tokio::test]
async fn the_number_of_starts_that_may_fail_in_a_row_is_an_option() {
    let dir = tempdir().unwrap();
    let log = |name: &str| dir.path().join(name);
    let builder = |name: &str, fails: usize| {
        Pool::builder().workers(1).on_worker_start(fail_at_first, (log(name), fails))
    };
    let error = Pool::builder().start_attempts(0).build().unwrap_err();
    assert_eq!((error.kind(), error.option()), (ErrorKind::InvalidOption, Some("start_attempts")));

    let pool = builder("one", 1).start_attempts(1).build().unwrap();
    assert!(soon(pool.spawn(pid, ())).await.unwrap_err().is_init_failed());
    assert_eq!(pids(&log("one")).len(), 1);

    let pool = builder("five", 5).start_attempts(6).build().unwrap();
    soon(pool.spawn(pid, ())).await.unwrap();
    assert_eq!(pids(&log("five")).len(), 6);

    let pool = builder("default", 3).build().unwrap();
    assert!(soon(pool.spawn(pid, ())).await.unwrap_err().is_init_failed());
    assert_eq!(pids(&log("default")).len(), 3);
}

#[tokio::test]
async fn a_task_that_names_failed_starts_in_its_retries_waits_for_another() {
    let dir = tempdir().unwrap();
    let log = |name: &str| dir.path().join(name);
    let builder = |name: &str, fails: usize| {
        Pool::builder()
            .workers(1)
            .start_attempts(1)
            .on_worker_start(fail_at_first, (log(name), fails))
    };
    let pool = builder("in time", 3).build().unwrap();
    let task = pool.task(procpool::attempt).retries(3).retry_starts(true).spawn(());
    assert!(soon(pool.spawn(pid, ())).await.unwrap_err().is_init_failed(), "it names none");
    assert_eq!(soon(task).await.unwrap(), Some(4));

    let pool = builder("too late", 3).build().unwrap();
    let error = soon(pool.task(pid).retries(2).retry_starts(true).spawn(())).await.unwrap_err();
    assert!(error.is_init_failed());
    assert_eq!(error.earlier_attempts().len(), 2);
    assert!(error.earlier_attempts().iter().all(TaskError::is_init_failed), "{error:?}");
}

#[tokio::test]
async fn a_start_that_is_called_off_by_the_pools_end_is_told_as_no_failure() {
    use futures::StreamExt;
    use procpool::{ExitReason, WorkerEvent};
    fn hang(log: PathBuf) -> Result<(), String> {
        support::hang(log);
        Ok(())
    }
    let dir = tempdir().unwrap();
    for how in ["shutdown", "shutdown_within", "kill"] {
        let log = dir.path().join(how);
        let pool = Pool::builder().workers(1).on_worker_start(hang, &log).build().unwrap();
        let mut events = pool.events();
        let ready = tokio::spawn({
            let pool = pool.clone();
            async move { pool.ready().await }
        });
        until("init runs", || lines(&log).len() == 1).await;
        match how {
            "shutdown" => drop(soon(pool.shutdown()).await),
            "shutdown_within" => drop(soon(pool.shutdown_within(Duration::ZERO)).await),
            _ => drop(soon(pool.kill()).await),
        }
        let event = soon(events.next()).await.unwrap();
        assert!(
            matches!(event, WorkerEvent::Exited { why: ExitReason::Closed, cause: None, .. }),
            "{how}: {event:?}"
        );
        assert!(soon(ready).await.unwrap().unwrap_err().is_pool_closed(), "{how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cause_counts_though_the_process_ends_right_after_saying_it() {
    /// Kills its process as soon as something stands in its socket that the pool has not read.
    fn fail_and_die() -> Result<(), String> {
        let (begun, has_begun) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            begun.send(()).unwrap();
            loop {
                for fd in 3..16 {
                    let mut unread: libc::c_int = 0;
                    // SAFETY: asks for a number; on what is no socket it fails.
                    if unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut unread) } == 0
                        && unread > 0
                    {
                        signal(pid(), Signal::SIGKILL);
                    }
                }
            }
        });
        has_begun.recv().unwrap();
        Err("the cause".to_string())
    }
    for _ in 0..30 {
        let pool = Pool::builder().workers(1).on_worker_start(fail_and_die, ()).build().unwrap();
        let error = soon(pool.spawn(pid, ())).await.unwrap_err();
        assert!(cause(&error).to_string().contains("the cause"), "{:?}", cause(&error));
    }
}

#[tokio::test]
async fn an_init_that_hangs_is_ended_by_the_start_limit() {
    fn hang(log: PathBuf) -> Result<(), String> {
        support::hang(log);
        Ok(())
    }
    async fn hang_async(log: PathBuf) -> Result<(), String> {
        note(&log, pid());
        std::future::pending().await
    }
    let dir = tempdir().unwrap();
    for (log, is_async) in [(dir.path().join("sync"), false), (dir.path().join("async"), true)] {
        let builder = Pool::builder().workers(1).start_timeout(Duration::from_millis(300));
        let builder = if is_async {
            builder.on_worker_start(hang_async, &log)
        } else {
            builder.on_worker_start(hang, &log)
        };
        let pool = builder.build().unwrap();
        let error = soon(pool.spawn(pid, ())).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::InitFailed, "{error:?}");
        assert_eq!(
            (cause(&error).is_timeout(), cause(&error).time_limit()),
            (true, Some(Duration::from_millis(300))),
            "{error:?}"
        );
        let started = pids(&log);
        assert_eq!(cause(&error).pid(), started.last().copied());
        let left = started.iter().any(|pid| Path::new("/proc").join(pid.to_string()).exists());
        assert!(!left, "told when they have ended");
    }
}

#[tokio::test]
async fn while_an_init_hangs_tasks_can_be_aborted_and_the_pool_be_closed() {
    fn hang(log: PathBuf) -> Result<(), String> {
        support::spin(log);
        Ok(())
    }
    let dir = tempdir().unwrap();
    for by_drop in [false, true] {
        let log = dir.path().join(format!("{by_drop}"));
        let pool = Pool::builder().workers(1).on_worker_start(hang, &log).build().unwrap();
        let (first, second) = (pool.spawn(pid, ()), pool.spawn(pid, ()));
        until("init runs", || lines(&log).len() == 1).await;
        let worker = Proc::of(pids(&log)[0]).unwrap();
        first.abort();
        assert!(soon(first).await.unwrap_err().is_cancelled());
        if by_drop {
            drop(pool);
            assert!(soon(second).await.unwrap_err().is_pool_closed());
        } else {
            second.abort();
            assert!(soon(second).await.unwrap_err().is_cancelled());
            soon(pool.shutdown()).await;
            assert!(worker.is_gone());
        }
        until("it is gone", || worker.is_gone()).await;
    }
}

#[tokio::test]
async fn ready_waits_for_the_replacement_of_a_worker_that_dies_meanwhile() {
    /// The first is set up at once, the others when the gate opens.
    fn first_is_quick(log: PathBuf, gate: PathBuf) -> Result<(), String> {
        note(&log, pid());
        if pids(&log)[0] != pid() {
            wait_until("the gate opens", || gate.exists());
        }
        Ok(())
    }
    let dir = tempdir().unwrap();
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let pool = Pool::builder()
        .workers(2)
        .on_worker_start(first_is_quick, (log.clone(), gate.clone()))
        .build()
        .unwrap();
    let ready = tokio::spawn({
        let pool = pool.clone();
        async move { pool.ready().await }
    });
    until("both have begun", || lines(&log).len() == 2).await;
    let first = Proc::of(pids(&log)[0]).unwrap();
    let in_recv = format!("{} ", libc::SYS_recvmsg);
    until("the first waits for a task", || {
        std::fs::read_to_string(format!("/proc/{}/syscall", first.pid))
            .unwrap()
            .starts_with(&in_recv)
    })
    .await;
    signal(first.pid, Signal::SIGKILL);
    until("it is gone", || first.is_gone()).await;
    std::fs::write(gate, "").unwrap();
    soon(ready).await.unwrap().unwrap();
    assert_eq!(pids(&log).len(), 3);
}

// ---- starts that fail

/// Without a look at its sources.
#[tokio::test]
async fn a_failed_start_says_in_its_text_what_was_to_be_started_and_why_it_was_not() {
    let missing = "/no/such/program";
    let long = "x".repeat(1 << 20); // more than one variable may take (execve(2))
    let programs = [
        (Pool::builder().program(missing, [""; 0]), missing, "No such file or directory"),
        (Pool::builder().env("LONG", &long), "/worker-", "Argument list too long"),
        (Pool::builder().current_dir("/no/such/place"), "/no/such/place", "No such file"),
        (Pool::builder().env("A=B", "x"), "A=B", "name contains '='"),
    ];
    for (builder, what, why) in programs {
        let pool = builder.workers(1).build().unwrap();
        let start = soon(pool.ready()).await.unwrap_err().to_string();
        assert!(start.contains(what) && start.contains(why), "{start}");
        if what != missing {
            let task = soon(pool.spawn(pid, ())).await.unwrap_err().to_string();
            assert!(task.contains(what) && task.contains(why), "{task}");
        }
    }
    let process = procpool::Process::builder().env("LONG", &long).spawn(pid, ()).unwrap_err();
    let process = process.to_string();
    assert!(process.contains("/worker-") && process.contains("too long"), "{process}");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_named_and_the_pool_recovers_with_it() {
    let dir = tempdir().unwrap();
    let home = dir.path().join("home of the workers");
    let pool = Pool::builder().workers(2).current_dir(&home).build().unwrap();
    let tasks: Vec<_> = (0..5).map(|_| pool.spawn(pid, ())).collect();
    for task in tasks {
        let error = soon(task).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::StartFailed, "{error:?}");
        let cause = cause(&error);
        assert_eq!(cause.kind(), ErrorKind::Spawn);
        let source = cause.source().unwrap().downcast_ref::<std::io::Error>().unwrap();
        assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
        assert!(source.to_string().contains("home of the workers"), "{source}");
    }
    assert_eq!(soon(pool.ready()).await.unwrap_err().kind(), ErrorKind::Spawn);

    std::fs::create_dir(&home).unwrap();
    while soon(pool.spawn(pid, ())).await.is_err() {
        tokio::task::yield_now().await;
    }
    soon(pool.ready()).await.unwrap();

    // It goes while workers live: they serve on, and replacements fail.
    std::fs::remove_dir(&home).unwrap();
    for _ in 0..2 {
        assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
    }
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap_err().kind(), TaskErrorKind::StartFailed);
}

#[test]
fn descriptors_that_run_out_fail_what_needs_them_and_the_pool_recovers() {
    in_own_process("own_process_without_descriptors");
}

/// With each number of descriptors left, for each step of a start needs some.
#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_without_descriptors() {
    let Some(dir) = own_dir() else { return };
    for left in 0..=16 {
        let (log, gate) = (dir.join(format!("log {left}")), dir.join(format!("gate {left}")));
        let pool = Pool::builder().workers(5).build().unwrap();
        let running = pool.spawn(wait_for, (log.clone(), gate.clone()));
        until("it runs", || lines(&log).len() == 1).await;
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // Reading the directory takes one itself.
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
        setrlimit(Resource::RLIMIT_NOFILE, open + left, most).unwrap();

        let error = soon(pool.ready()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Spawn, "{left}: {error:?}");
        assert!(error.to_string().contains("Too many open files"), "{left}: {error:?}");
        assert!(!running.is_finished());
        if left == 0 {
            // A task that waits for a worker is given up as well, or waits for the one that runs;
            // nobody turns meanwhile.
            let waiting = pool.spawn(pid, ());
            does_not_turn().await;
            waiting.abort();
        }

        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        while soon(pool.ready()).await.is_err() {
            tokio::task::yield_now().await;
        }
        assert_eq!(children(pid()).len(), 5);
        std::fs::write(gate, "").unwrap();
        soon(running).await.unwrap();
        soon(pool.shutdown()).await;
        assert_eq!(children(pid()), [0; 0]);
    }
}

/// Who tries again and again without a pause uses all the processor time that he is given.
async fn does_not_turn() {
    let used = || Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap());
    let before = used();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let turned = used() - before;
    assert!(turned < Duration::from_millis(200), "{turned:?} of processor time for nothing");
}

#[test]
fn processes_that_run_out_fail_what_needs_them_and_the_pool_recovers() {
    in_own_process_of_nobody("own_process_without_processes");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_without_processes() {
    if own_dir().is_none() {
        return;
    }
    // (Of a directory that is another user's.)
    let dir = tempdir().unwrap();
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let pool = Pool::builder().workers(2).build().unwrap();
    soon(pool.ready()).await.unwrap();
    let running = pool.spawn(wait_for, (log.clone(), gate.clone()));
    until("it runs", || lines(&log).len() == 1).await;
    let (_, most) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
    setrlimit(Resource::RLIMIT_NPROC, 1, most).unwrap();
    let before = soon(pool.spawn(pid, ())).await;
    assert!(before.is_ok(), "those that run serve on: {before:?}");
    // Now one of them must be replaced.
    assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
    let error = soon(pool.ready()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Spawn);
    assert!(error.to_string().contains("Resource temporarily unavailable"), "{error:?}");
    let waiting = pool.spawn(pid, ());
    does_not_turn().await;
    waiting.abort();
    assert!(!running.is_finished());

    setrlimit(Resource::RLIMIT_NPROC, most, most).unwrap();
    while soon(pool.ready()).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(children(pid()).len(), 2);
    std::fs::write(gate, "").unwrap();
    soon(running).await.unwrap();
    soon(pool.spawn(pid, ())).await.unwrap();
}

#[tokio::test]
async fn workers_that_had_started_are_gone_when_the_pool_of_a_failed_start_is_dropped() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    /// The fourth and later fail.
    fn three_only(log: PathBuf) -> Result<(), String> {
        note(&log, pid());
        let place = pids(&log).iter().position(|own| *own == pid()).unwrap();
        if place < 3 { Ok(()) } else { Err(format!("number {place}")) }
    }
    let pool = Pool::builder().workers(5).on_worker_start(three_only, &log).build().unwrap();
    assert!(soon(pool.ready()).await.unwrap_err().is_init_failed());
    soon(pool.spawn(pid, ())).await.unwrap(); // those that started are there
    let started: Vec<_> = pids(&log).into_iter().filter_map(Proc::of).collect();
    assert!(started.len() >= 3);
    drop(pool);
    until("they are gone", || started.iter().all(|worker| worker.is_gone())).await;
}

#[tokio::test]
async fn options_that_make_no_sense_are_refused_before_anything_starts() {
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
    let builders = [
        Pool::builder().workers(0),
        Pool::builder().concurrency(0),
        Pool::builder().queue_limit(0),
        Pool::builder().frame_limit(10),
        Pool::builder().start_timeout(Duration::ZERO),
        Pool::builder().on_worker_start(|_: Unspeakable| Ok::<_, String>(()), Unspeakable),
    ];
    for builder in builders {
        let text = format!("{builder:?}");
        assert_eq!(builder.build().unwrap_err().kind(), ErrorKind::InvalidOption, "{text}");
    }
}
