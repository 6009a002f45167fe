//! Workers that are forked from a template: what was preloaded is shared, all promises hold, and
//! whatever becomes of the template at any step, nothing is lost or left.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "where it goes is what is tested")]
#![expect(unsafe_code, reason = "a preload function that forbids a system call")]

use crate::support::{
    KillOnDrop, Proc, children, descriptors, hang, lines, note, own_dir, own_process, pids, signal,
    soon, spin, start_sleeping, state, stop, threads, until, wait_until,
};
use nix::sys::signal::Signal;
use procpool::{ErrorKind, Pool, Process, TaskErrorKind, Template};
use std::convert::Infallible;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::tempdir;

/// What is preloaded: the process that did it, and a text.
struct Loaded {
    by: u32,
    text: String,
}

fn load(text: String) -> Result<Loaded, Infallible> {
    Ok(Loaded { by: std::process::id(), text })
}

async fn load_async(text: String) -> Result<Loaded, String> {
    tokio::time::sleep(Duration::from_millis(1)).await;
    tokio::task::spawn_blocking(|| ()).await.map_err(|e| e.to_string())?;
    load(text).map_err(|e| e.to_string())
}

/// The worker, its parent, the template, and the text.
fn seen() -> (u32, u32, u32, String) {
    let loaded = procpool::state::<Loaded>().unwrap();
    let parent = std::os::unix::process::parent_id();
    (std::process::id(), parent, loaded.by, loaded.text.clone())
}

fn template_of(pool: &Pool) -> impl Future<Output = u32> {
    let seen = pool.spawn(seen, ());
    async { soon(seen).await.unwrap().2 }
}

// ---- what it is for

#[tokio::test]
async fn workers_find_what_was_preloaded_once() {
    for is_async in [false, true] {
        let builder = Pool::builder().workers(4);
        let builder = if is_async {
            builder.template(load_async, "words")
        } else {
            builder.template(load, "words")
        };
        let pool = builder.build().unwrap();
        soon(pool.ready()).await.unwrap();
        let all: Vec<_> = futures::future::join_all((0..64).map(|_| pool.spawn(seen, ()))).await;
        let own = std::process::id();
        let template = all[0].as_ref().unwrap().2;
        for (worker, parent, by, text) in all.into_iter().map(Result::unwrap) {
            assert_eq!((parent, by, &*text), (own, template, "words"));
            assert_ne!(worker, template);
        }
        soon(pool.shutdown()).await;
    }
}

#[tokio::test]
async fn the_start_function_runs_in_each_worker_after_the_fork() {
    static SET: OnceLock<u32> = OnceLock::new();
    fn start() -> Result<u64, Infallible> {
        SET.set(std::process::id()).unwrap();
        Ok(u64::from(std::process::id()))
    }
    fn both() -> (u64, String) {
        (*procpool::state::<u64>().unwrap(), procpool::state::<Loaded>().unwrap().text.clone())
    }
    let pool = Pool::builder().workers(1).template(load, "x").on_worker_start(start, ());
    let pool = pool.build().unwrap();
    let (worker, text) = soon(pool.spawn(both, ())).await.unwrap();
    assert_eq!((worker, &*text), (u64::from(soon(pool.spawn(seen, ())).await.unwrap().0), "x"));
}

#[tokio::test]
async fn pools_and_processes_share_one_template() {
    let template = Template::new(load, "shared").unwrap();
    assert_eq!(template.pid(), None);
    let error = Process::builder().fork_from(&template).spawn(seen, ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TemplateNotReady);
    soon(template.ready()).await.unwrap();
    let pid = template.pid().unwrap();
    let pools: Vec<_> =
        (0..2).map(|_| Pool::builder().workers(2).fork_from(&template).build().unwrap()).collect();
    for pool in &pools {
        assert_eq!(template_of(pool).await, pid);
    }
    let child = Process::builder().fork_from(&template).name("single").spawn(seen, ()).unwrap();
    let number = child.pid();
    let (own, parent, by, text) = soon(child).await.unwrap();
    assert_eq!((own, parent, by, &*text), (number, std::process::id(), pid, "shared"));
    // It ends with the last who has it.
    let process = Proc::of(pid).unwrap();
    drop(template);
    assert_eq!(template_of(&pools[1]).await, pid);
    drop(pools);
    until("the template has gone", || process.is_gone()).await;
}

#[tokio::test]
async fn a_forked_process_is_told_by_its_status() {
    let template = Template::new(load, "x").unwrap();
    soon(template.ready()).await.unwrap();
    let exit = |code: i32| -> () { std::process::exit(code) };
    let child = Process::builder().fork_from(&template).spawn(exit, 7).unwrap();
    assert_eq!(soon(child.wait()).await.unwrap().code(), Some(7));
    let child = Process::builder().fork_from(&template).spawn(std::thread::park, ()).unwrap();
    child.kill().unwrap();
    assert_eq!(soon(child.wait()).await.unwrap().signal(), Some(libc_kill()));
    // Limits, a pipe and the standard streams are its own.
    let mut child = Process::builder()
        .fork_from(&template)
        .stdout(procpool::Stdio::piped())
        .spawn(|| println!("printed"), ())
        .unwrap();
    let mut text = String::new();
    let mut stdout = child.stdout().unwrap();
    soon(tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut text)).await.unwrap();
    assert_eq!(text, "printed\n");
    soon(child).await.unwrap();
}

fn libc_kill() -> i32 {
    Signal::SIGKILL as i32
}

#[tokio::test]
async fn each_task_has_a_process_of_its_own() {
    let pool = Pool::builder().workers(2).spares(2).max_tasks_per_worker(1).template(load, "x");
    let pool = pool.build().unwrap();
    let mut all = Vec::new();
    for tasks in (0..100).map(|_| pool.spawn(seen, ())).collect::<Vec<_>>() {
        all.push(soon(tasks).await.unwrap().0);
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 100);
}

// ---- promises

#[tokio::test]
async fn a_crash_costs_one_task_and_no_second_preload() {
    let pool = Pool::builder().workers(2).template(load, "x").build().unwrap();
    let template = template_of(&pool).await;
    for _ in 0..5 {
        let crash = pool.spawn(|| -> () { std::process::abort() }, ());
        let others: Vec<_> = (0..20).map(|_| pool.spawn(seen, ())).collect();
        let error = soon(crash).await.unwrap_err();
        assert!(error.is_worker_died(), "{error}");
        assert_eq!(error.exit_status().unwrap().signal(), Some(Signal::SIGABRT as i32));
        for other in others {
            assert_eq!(soon(other).await.unwrap().2, template);
        }
    }
}

#[tokio::test]
async fn a_panic_a_stack_overflow_and_want_of_memory_are_told_as_of_any_worker() {
    #[expect(unconditional_recursion, reason = "it overflows the stack")]
    fn deep(n: u64) -> u64 {
        std::hint::black_box(n) + deep(n + 1)
    }
    let limits = procpool::Limits::new().memory(1 << 30);
    // Else std prints a backtrace first, which hides the want of memory.
    let pool = Pool::builder().workers(1).limits(limits).env("RUST_BACKTRACE", "0");
    let pool = pool.template(load, "x").build().unwrap();
    let error = soon(pool.spawn(|| -> () { panic!("no") }, ())).await.unwrap_err();
    assert_eq!(error.panic_message(), Some("no"));
    assert!(error.panic_location().unwrap().contains("template.rs"));
    let error = soon(pool.spawn(deep, 0)).await.unwrap_err();
    assert!(error.is_stack_overflow(), "{error}");
    let error = soon(pool.spawn(|| Vec::<u8>::with_capacity(1 << 32).len(), ())).await.unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    assert!(soon(pool.spawn(seen, ())).await.is_ok());
}

#[tokio::test]
async fn a_kill_ends_what_a_worker_has_started() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    fn with_child(log: PathBuf) {
        note(&log, start_sleeping());
        hang(log);
    }
    let pool = Pool::builder().workers(1).template(load, "x").build().unwrap();
    let task = pool.spawn(with_child, &log);
    until("both run", || lines(&log).len() == 2).await;
    let all: Vec<_> = pids(&log).into_iter().map(|pid| Proc::of(pid).unwrap()).collect();
    task.abort();
    assert!(soon(task).await.unwrap_err().is_cancelled());
    until("both have gone", || all.iter().all(|process| process.has_ended())).await;
    assert!(soon(pool.spawn(seen, ())).await.is_ok(), "the template is in another group");
}

/// Workers, a template that is at it, and one that is stopped: all are gone within a second.
#[test]
fn nothing_is_left_of_an_application_that_is_killed() {
    let mut took = Vec::new();
    for how in ["serving", "stopped template", "preloading", "forking"] {
        let in_time = (0..5).any(|_| {
            let time = time_until_all_are_gone(how);
            took.push((how, time));
            time < Duration::from_secs(1)
        });
        assert!(in_time, "{took:?}");
    }
    eprintln!("{took:?}");
}

fn time_until_all_are_gone(how: &str) -> Duration {
    let dir = tempdir().unwrap();
    let mut command =
        own_process(&std::env::current_exe().unwrap(), "own_process_with_a_template", dir.path());
    command.env("PROCPOOL_TEST_HOW", how).stdin(Stdio::null()).stdout(Stdio::null());
    let mut application = KillOnDrop(command.spawn().unwrap());
    let log = dir.path().join("log");
    wait_until(format!("{how}: all run"), || dir.path().join("go").exists());
    let own = application.0.id();
    let all: Vec<_> = pids(&log).into_iter().filter_map(Proc::of).collect();
    assert!(!all.is_empty());
    let start = Instant::now();
    application.0.kill().unwrap();
    application.0.wait().unwrap();
    wait_until(format!("{how}: all are gone"), || {
        all.iter().all(|process| process.has_ended()) && children(own).is_empty()
    });
    start.elapsed()
}

fn load_and_note(log: PathBuf) -> Result<Loaded, Infallible> {
    note(&log, std::process::id());
    load("x".into())
}

fn load_for_ever(log: PathBuf) -> Result<(), Infallible> {
    note(&log, std::process::id());
    loop {
        std::hint::spin_loop();
    }
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_with_a_template() {
    let Some(dir) = own_dir() else { return };
    let how = std::env::var("PROCPOOL_TEST_HOW").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = dir.join("log");
    runtime.block_on(async {
        let builder = Pool::builder().workers(4);
        let pool = match how.as_str() {
            "preloading" => builder.template(load_for_ever, &log),
            "forking" => builder.max_tasks_per_worker(1).template(load_and_note, &log),
            _ => builder.template(load_and_note, &log),
        }
        .build()
        .unwrap();
        if how == "preloading" {
            drop(pool.spawn(seen, ()));
            until("it preloads", || !lines(&log).is_empty()).await;
        } else if how == "forking" {
            for round in 0_u32.. {
                if round == 20 {
                    std::fs::write(dir.join("go"), "").unwrap();
                }
                drop(pool.spawn(spin, dir.join("spinning")));
                for task in (0..8).map(|_| pool.spawn(seen, ())).collect::<Vec<_>>() {
                    if let Ok(seen) = task.await {
                        note(&log, seen.0);
                    }
                    if round >= 20 {
                        std::future::pending::<()>().await;
                    }
                }
            }
        } else {
            drop((pool.spawn(spin, &log), pool.spawn(hang, &log)));
            until("they run", || lines(&log).len() == 3).await;
            if how == "stopped template" {
                stop(pids(&log)[0]);
                // One that waits for it.
                drop((0..4).map(|_| pool.spawn(seen, ())).collect::<Vec<_>>());
            }
        }
        std::fs::write(dir.join("go"), "").unwrap();
        std::future::pending::<()>().await;
    });
}

#[test]
fn nothing_is_left_when_a_pool_has_gone() {
    let dir = tempdir().unwrap();
    let mut command =
        own_process(&std::env::current_exe().unwrap(), "own_process_that_drops_pools", dir.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_that_drops_pools() {
    let Some(dir) = own_dir() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = dir.join("log");
    let mut before = None;
    for round in 0..4 {
        runtime.block_on(async {
            let pool = Pool::builder().workers(3).template(load, "x").build().unwrap();
            soon(pool.ready()).await.unwrap();
            assert!(soon(pool.spawn(seen, ())).await.is_ok());
            if round % 2 == 0 {
                soon(pool.shutdown()).await;
            }
            drop(pool);
            // One that never gets ready.
            let log = log.with_extension(round.to_string());
            let pool = Pool::builder().workers(3).template(load_for_ever, &log).build().unwrap();
            let task = pool.spawn(seen, ());
            until("it preloads", || !lines(&log).is_empty()).await;
            soon(pool.kill()).await;
            assert_eq!(soon(task).await.unwrap_err().kind(), TaskErrorKind::PoolClosed);
        });
        let own = std::process::id();
        wait_until("no child is left", || children(own).is_empty());
        // What a runtime that has nothing to do has yet to drop.
        let held = || {
            runtime.block_on(tokio::task::yield_now());
            (descriptors(own).len(), threads())
        };
        match before {
            None => {
                let mut last = held();
                wait_until("the first has settled", || {
                    std::thread::sleep(Duration::from_millis(200));
                    std::mem::replace(&mut last, held()) == last
                });
                before = Some(last);
            }
            Some(before) => wait_until(format!("it holds {before:?} again"), || held() == before),
        }
    }
}

#[tokio::test]
async fn a_template_that_is_ready_says_so_as_often_as_it_is_asked() {
    let template = Template::new(load, "x").unwrap();
    for _ in 0..2 {
        soon(template.ready()).await.unwrap();
        assert!(template.pid().is_some());
    }
    let asked = template.clone();
    soon(tokio::task::spawn_blocking(move || asked.blocking_ready())).await.unwrap().unwrap();
}

// ---- preloads that fail

async fn start_error(builder: procpool::Builder) -> procpool::Error {
    let pool = builder.workers(1).start_attempts(2).build().unwrap();
    let error = soon(pool.spawn(seen, ())).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::StartFailed, "{error}");
    let cause = error.start_error().unwrap().clone();
    soon(pool.shutdown()).await;
    cause
}

#[tokio::test]
async fn a_preload_that_fails_is_told_with_its_cause() {
    let fails = |_: u32| -> Result<(), String> { Err("no such model".into()) };
    let error = start_error(Pool::builder().template(fails, 1)).await;
    assert_eq!((error.kind(), error.reason()), (ErrorKind::PreloadFailed, Some("no such model")));

    let panics = || -> Result<(), String> { panic!("broken") };
    let error = start_error(Pool::builder().template(panics, ())).await;
    assert_eq!(error.kind(), ErrorKind::PreloadFailed);
    assert_eq!(error.panic_message(), Some("broken"));
    assert!(error.panic_location().unwrap().contains("template.rs"), "{error}");

    let panics = async || -> Result<(), String> { panic!("broken, too") };
    let error = start_error(Pool::builder().template(panics, ())).await;
    assert_eq!(error.panic_message(), Some("broken, too"));

    let dies = || -> Result<(), String> { std::process::exit(3) };
    let error = start_error(Pool::builder().template(dies, ())).await;
    assert_eq!(error.kind(), ErrorKind::PreloadFailed);
    assert_eq!(error.exit_status().unwrap().code(), Some(3));

    let hangs = || -> Result<(), String> {
        loop {
            std::thread::park()
        }
    };
    let builder = Pool::builder().template(hangs, ());
    let error = start_error(builder.preload_timeout(Duration::from_millis(200))).await;
    assert_eq!(error.kind(), ErrorKind::PreloadFailed);
    assert!(error.is_timeout(), "{error}");
    assert_eq!(error.time_limit(), Some(Duration::from_millis(200)));

    let template = Template::new(fails, 1).unwrap();
    for _ in 0..2 {
        let error = soon(template.ready()).await.unwrap_err();
        assert_eq!(error.reason(), Some("no such model"));
    }
}

#[tokio::test]
async fn a_preload_that_fails_once_costs_no_task() {
    fn second_time(log: PathBuf) -> Result<Loaded, String> {
        note(&log, std::process::id());
        if lines(&log).len() < 2 {
            Err("not yet".into())
        } else {
            Ok(Loaded { by: 0, text: String::new() })
        }
    }
    let dir = tempdir().unwrap();
    let pool = Pool::builder().workers(2).template(second_time, dir.path().join("log"));
    let pool = pool.build().unwrap();
    assert!(soon(pool.spawn(seen, ())).await.is_ok());
}

#[tokio::test]
async fn what_must_not_be_forked_is_refused_by_name() {
    let threads = || -> Result<(), String> {
        // It gives itself the name, before it runs anything.
        let (runs, has_run) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("left-behind".into()).spawn(move || {
            runs.send(()).unwrap();
            loop {
                std::thread::park()
            }
        });
        has_run.recv().unwrap();
        thread.map(drop).map_err(|e| e.to_string())
    };
    let error = start_error(Pool::builder().template(threads, ())).await;
    assert_eq!(error.kind(), ErrorKind::NotForkable);
    assert!(error.reason().unwrap().contains("left-behind"), "{error}");

    let pool_within = || -> Result<(), String> {
        std::mem::forget(Pool::new().map_err(|e| e.to_string())?);
        Ok(())
    };
    let error = start_error(Pool::builder().template(pool_within, ())).await;
    assert_eq!(error.kind(), ErrorKind::NotForkable);
    assert!(error.reason().unwrap().contains("other threads"), "{error}");

    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    let error = start_error(Pool::builder().template(runtime, ())).await;
    assert_eq!(error.kind(), ErrorKind::NotForkable);
    assert!(error.reason().unwrap().contains("eventpoll"), "{error}");

    // A blocking job that an async preload function has left.
    let blocking = async || -> Result<(), String> {
        drop(tokio::task::spawn_blocking(|| {
            loop {
                std::thread::park()
            }
        }));
        Ok(())
    };
    let error = start_error(Pool::builder().template(blocking, ())).await;
    assert_eq!(error.kind(), ErrorKind::NotForkable, "{error}");
}

#[tokio::test]
async fn options_that_make_no_sense_are_refused() {
    let refused = |builder: procpool::Builder| {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        error.option().unwrap()
    };
    let template = Template::new(load, "x").unwrap();
    let shared = || Pool::builder().fork_from(&template);
    assert_eq!(refused(shared().env("A", "b")), "fork_from");
    assert_eq!(refused(shared().current_dir("/")), "fork_from");
    assert_eq!(refused(shared().preload_timeout(Duration::from_secs(1))), "preload_timeout");
    assert_eq!(refused(shared().program("sh", ["-c", "exit"])), "template");
    let own = || Pool::builder().template(load, "x");
    assert_eq!(refused(own().preload_timeout(Duration::ZERO)), "preload_timeout");
    let process = || Process::builder().fork_from(&template);
    for process in [process().env("A", "b"), process().current_dir("/"), process().env_clear()] {
        assert_eq!(process.spawn(seen, ()).unwrap_err().option(), Some("fork_from"));
    }
    let error = soon(process().detach(|| (), ())).await.unwrap_err();
    assert_eq!(error.option(), Some("fork_from"));
    #[cfg(feature = "sync")]
    {
        let manager = procpool::Manager::new().unwrap();
        let queue = manager.queue::<u32>(1).unwrap();
        let keep =
            |queue: procpool::sync::Queue<u32>| -> Result<procpool::sync::Queue<u32>, Infallible> {
                Ok(queue)
            };
        assert_eq!(refused(Pool::builder().template(keep, &queue)), "template");
    }
}

// ---- the template's own end

#[tokio::test]
async fn the_templates_death_costs_no_task_and_it_is_replaced() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    fn wait_for(path: PathBuf) -> u32 {
        wait_until("to go", || path.exists());
        procpool::state::<Loaded>().unwrap().by
    }
    for sent in [Signal::SIGKILL, Signal::SIGABRT, Signal::SIGSEGV] {
        let go = dir.path().join(format!("go {sent}"));
        let pool = Pool::builder().workers(2).template(load_and_note, &log).build().unwrap();
        let running = [pool.spawn(wait_for, &go), pool.spawn(wait_for, &go)];
        until("both run", || running.iter().all(|task| task.worker_pid().is_some())).await;
        let first = *pids(&log).last().unwrap();
        let template = Proc::of(first).unwrap();
        signal(first, sent);
        until("it is reaped", || template.is_gone()).await;
        std::fs::write(&go, "").unwrap();
        for task in running {
            assert_eq!(soon(task).await.unwrap(), first);
        }
        // Its workers serve on; the next one that is started has another.
        assert!(soon(pool.spawn(|| -> () { std::process::abort() }, ())).await.is_err());
        assert!(soon(pool.spawn(|| -> () { std::process::abort() }, ())).await.is_err());
        let second = template_of(&pool).await;
        assert_ne!(second, first);
        soon(pool.shutdown()).await;
    }
}

#[tokio::test]
async fn a_template_that_is_stopped_is_replaced_when_it_does_not_fork() {
    let pool = Pool::builder().workers(2).template(load, "x");
    let pool = pool.start_timeout(Duration::from_secs(2)).build().unwrap();
    let first = template_of(&pool).await;
    stop(first);
    assert_eq!(state(first), Some('T'));
    let tasks: Vec<_> =
        (0..2).map(|_| pool.spawn(|| -> () { std::process::abort() }, ())).collect();
    for task in tasks {
        assert!(soon(task).await.unwrap_err().is_worker_died());
    }
    assert_ne!(template_of(&pool).await, first);
}

/// Killed at random moments while it forks: each task is done or has an error, and no child is left.
#[test]
fn a_template_that_is_killed_while_it_forks_leaves_nothing() {
    let dir = tempdir().unwrap();
    let mut command = own_process(
        &std::env::current_exe().unwrap(),
        "own_process_whose_template_is_killed",
        dir.path(),
    );
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_whose_template_is_killed() {
    if own_dir().is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let own = std::process::id();
    runtime.block_on(async {
        let template = Template::new(load, "x").unwrap();
        let pool = Pool::builder().workers(4).max_tasks_per_worker(1).fork_from(&template);
        // Preloads that are killed count as well.
        let pool = pool.start_attempts(1000).build().unwrap();
        for round in 0..30_u64 {
            let tasks: Vec<_> = (0..20).map(|_| pool.spawn(seen, ())).collect();
            tokio::time::sleep(Duration::from_micros(round * 200)).await;
            if let Some(pid) = template.pid() {
                signal(pid, Signal::SIGKILL);
            }
            for task in tasks {
                let told = soon(task).await;
                assert!(told.is_ok(), "{told:?}");
            }
        }
        soon(pool.shutdown()).await;
    });
    wait_until("no child is left", || children(own).is_empty());
}

// ---- a fork that fails at one of its steps

/// From now on, this system call does this, here and in what is forked (seccomp(2)).
fn forbid(call: i64, action: u32) -> Result<(), String> {
    use nix::libc;
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = [
        statement(
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            std::mem::offset_of!(libc::seccomp_data, nr) as u32,
        ),
        libc::sock_filter {
            jf: 1,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32)
        },
        statement(libc::BPF_RET | libc::BPF_K, action),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter outlive the calls.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().to_string()) }
}

/// The first thing that a copy does is a prctl(2): it dies before the application knows it.
#[tokio::test]
async fn what_dies_before_it_is_known_is_reaped() {
    use nix::libc;
    let prctl = (libc::SYS_prctl, libc::SECCOMP_RET_KILL_PROCESS);
    let error = start_error(Pool::builder().template(forbid, prctl)).await;
    assert_eq!(error.kind(), ErrorKind::ForkFailed);
    let reason = error.reason().unwrap();
    // Its socket closes a moment before it can be reaped.
    if reason != "its socket was closed before it had said anything" {
        assert!(reason.contains("ended at once") && reason.contains("SIGSYS"), "{reason}");
        let pid = reason.split(' ').find_map(|word| word.parse().ok()).unwrap();
        assert_eq!(state(pid), None, "it is a zombie");
    }
}

#[tokio::test]
async fn a_fork_that_the_system_refuses_is_told_and_the_template_lives() {
    use nix::libc;
    let action = libc::SECCOMP_RET_ERRNO | libc::ENOMEM as u32;
    let template = Template::new(forbid, (libc::SYS_clone, action)).unwrap();
    soon(template.ready()).await.unwrap();
    let pid = template.pid().unwrap();
    for _ in 0..3 {
        let error = Process::builder().fork_from(&template).spawn(seen, ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ForkFailed);
        assert!(error.reason().unwrap().contains("Cannot allocate memory"), "{error}");
    }
    assert_eq!(template.pid(), Some(pid));
}

// ---- scenarios that others ask for, over a template (`tests/start_methods.tsv`)

#[tokio::test]
async fn forked_processes_know_their_parent_and_start_others() {
    fn parents() -> (u32, Option<u32>, Option<u32>) {
        let nested = Process::spawn(|| procpool::parent().map(|parent| parent.pid()), ()).unwrap();
        let own = procpool::parent().map(|parent| parent.pid());
        (std::process::id(), own, nested.blocking_join().unwrap())
    }
    let template = Template::new(load, "x").unwrap();
    soon(template.ready()).await.unwrap();
    let child = Process::builder().fork_from(&template).spawn(parents, ()).unwrap();
    let (pid, own, nested) = soon(child).await.unwrap();
    assert_eq!((own, nested), (Some(std::process::id()), Some(pid)));
    // A pool within a forked worker.
    let pool = Pool::builder().workers(1).fork_from(&template).build().unwrap();
    let within = || Pool::new().unwrap().spawn(|n: u32| n + 1, 1).blocking_join().unwrap();
    assert_eq!(soon(pool.spawn(within, ())).await.unwrap(), 2);
}

#[tokio::test]
async fn forked_processes_that_are_signalled_at_once_end_by_that() {
    let template = Template::new(load, "x").unwrap();
    soon(template.ready()).await.unwrap();
    for round in 0..50 {
        let child = Process::builder().fork_from(&template).spawn(|| (), ()).unwrap();
        let sent = if round % 2 == 0 { child.kill() } else { child.terminate() };
        sent.unwrap();
        let status = soon(child.wait()).await.unwrap();
        let expected = if round % 2 == 0 { Signal::SIGKILL } else { Signal::SIGTERM } as i32;
        assert!(status.signal() == Some(expected) || status.success(), "{status}");
    }
}

#[test]
fn a_pool_over_a_template_works_in_each_runtime_and_outside_of_any() {
    let template = Template::new(load, "x").unwrap();
    template.blocking_ready().unwrap();
    let own = || Pool::builder().workers(2).fork_from(&template).build().unwrap();
    // Built and used on a thread that ends: the workers do not.
    let pool = std::thread::scope(|scope| scope.spawn(own).join().unwrap());
    assert_eq!(pool.spawn(seen, ()).blocking_join().unwrap().3, "x");
    let flavours = [
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
    ];
    for runtime in flavours {
        let within = runtime.block_on(async {
            let within = own();
            assert_eq!(soon(within.spawn(seen, ())).await.unwrap().3, "x");
            let slept = async || {
                tokio::time::sleep(Duration::from_millis(1)).await;
                procpool::state::<Loaded>().is_some()
            };
            for task in (0..8).map(|_| within.spawn(slept, ())).collect::<Vec<_>>() {
                assert!(soon(task).await.unwrap());
            }
            within
        });
        drop(runtime);
        assert_eq!(within.spawn(seen, ()).blocking_join().unwrap().3, "x");
    }
}

/// Signals that one worker gets wake that one, though a runtime has preloaded.
#[tokio::test]
async fn a_signal_wakes_the_runtime_of_the_worker_that_it_was_sent_to() {
    async fn wait_for_signals(log: PathBuf) -> u32 {
        use tokio::signal::unix::{SignalKind, signal};
        let mut signals = signal(SignalKind::user_defined1()).unwrap();
        note(&log, std::process::id());
        for _ in 0..20 {
            signals.recv().await.unwrap();
            note(&log.with_extension("got"), std::process::id());
        }
        std::process::id()
    }
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let pool = Pool::builder().workers(4).concurrency(1).template(load_async, "x");
    let pool = pool.build().unwrap();
    let tasks: Vec<_> = (0..4).map(|_| pool.spawn(wait_for_signals, &log)).collect();
    until("all wait", || lines(&log).len() == 4).await;
    let all = pids(&log);
    for round in 0..20 {
        for pid in &all {
            signal(*pid, Signal::SIGUSR1);
        }
        let got = || lines(&log.with_extension("got")).len();
        until("each has got it", || got() == 4 * (round + 1)).await;
    }
    for task in tasks {
        assert!(all.contains(&soon(task).await.unwrap()));
    }
}

/// Memory that was preloaded is shared: that of the workers is not counted in full.
#[tokio::test]
async fn what_is_only_read_takes_memory_once() {
    const BYTES: usize = 64 << 20;
    fn load_many() -> Result<Vec<u8>, Infallible> {
        Ok((0..BYTES).map(|n| n as u8).collect())
    }
    /// The private memory of this process, after it has read all, in KiB.
    fn read_all() -> (u32, u64) {
        let loaded = procpool::state::<Vec<u8>>().unwrap();
        std::hint::black_box(loaded.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let own = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
        (std::process::id(), own.trim().trim_end_matches(" kB").parse().unwrap())
    }
    let pool = Pool::builder().workers(4).template(load_many, ()).build().unwrap();
    soon(pool.ready()).await.unwrap();
    for task in (0..8).map(|_| pool.spawn(read_all, ())).collect::<Vec<_>>() {
        let (_, own) = soon(task).await.unwrap();
        assert!(own < (BYTES as u64 >> 10) / 4, "{own} KiB");
    }
}

#[tokio::test]
async fn a_forked_worker_holds_no_siblings_descriptors() {
    fn held() -> (u32, Vec<String>) {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let kinds = links.map(|link| {
            let target = std::fs::read_link(link.unwrap().path()).unwrap_or_default();
            target.to_string_lossy().split(':').next().unwrap_or_default().to_owned()
        });
        let mut kinds: Vec<_> = kinds.filter(|kind| kind == "socket").collect();
        kinds.sort();
        std::thread::sleep(Duration::from_millis(5)); // so that the others get tasks, too
        (std::process::id(), kinds)
    }
    let pool = Pool::builder().workers(8).template(load_async, "x").build().unwrap();
    soon(pool.ready()).await.unwrap();
    for task in (0..32).map(|_| pool.spawn(held, ())).collect::<Vec<_>>() {
        let (_, sockets) = soon(task).await.unwrap();
        // The pool's, the lifeline, and the two of tokio's signals.
        assert_eq!(sockets.len(), 4);
    }
}

/// Threads of the application that allocate, print and take locks disturb no fork.
#[test]
fn workers_are_forked_while_threads_of_the_application_allocate() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static OVER: AtomicBool = AtomicBool::new(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !OVER.load(Ordering::Relaxed) {
                    std::hint::black_box(vec![0u8; 4096]);
                    drop(std::io::stderr().lock());
                    std::thread::yield_now();
                }
            });
        }
        runtime.block_on(async {
            let pool = Pool::builder().workers(2).max_tasks_per_worker(1).template(load, "x");
            let pool = pool.build().unwrap();
            for task in (0..300).map(|_| pool.spawn(seen, ())).collect::<Vec<_>>() {
                assert_eq!(soon(task).await.unwrap().3, "x");
            }
        });
        OVER.store(true, Ordering::Relaxed);
    });
}
