//! The endings table: however an application or a pool ends, none of its workers is left, nor
//! anything that they have started in their process groups, whatever they are at: one spins, one
//! sleeps, one stands still, one has a child of its own.
//!
//! Within a second; other work on the machine takes time as well, so of a few tries one must show
//! it. How long each took is printed (`cargo test --test faults endings:: -- --nocapture`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{
    KillOnDrop, Proc, hang, lines, note, own_dir, own_process, pids, signal, spin, start_sleeping,
    stop, until, wait_until,
};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, execv, fork};
use procpool::Pool;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::tempdir;

/// How it ends, and whether the application goes on after that.
const ENDINGS: [(&str, bool); 17] = [
    ("return", false),
    ("panic", false),
    ("exit", false),
    ("abort", false),
    ("SIGTERM", false),
    ("SIGINT", false),
    ("SIGHUP", false),
    ("SIGKILL", false),
    ("another program in its place", false),
    ("this program again in its place", false),
    ("a copy that goes on, and its own end", false),
    ("a copy that ends", true),
    ("shutdown_within", true),
    ("kill", true),
    ("drop in a runtime", true),
    ("drop outside of any", true),
    ("drop of the runtime that holds it", true),
];

fn hang_with_a_child(log: PathBuf) {
    note(&log, start_sleeping());
    hang(log);
}

const WORKERS: usize = 4;

const LIMIT: Duration = Duration::from_secs(1);
const TRIES: u32 = 5;

#[test]
fn nothing_is_left_however_it_ends() {
    see_every_ending(false);
}

/// The template as well.
#[test]
fn nothing_is_left_of_workers_that_are_forked_from_a_template() {
    see_every_ending(true);
}

/// Set in a process in which workers are forked from a template.
const TEMPLATE: &str = "PROCPOOL_TEST_TEMPLATE";

fn note_own_number(log: PathBuf) -> Result<(), String> {
    note(&log, std::process::id());
    Ok(())
}

fn see_every_ending(over_a_template: bool) {
    for (how, goes_on) in ENDINGS {
        let in_time = (0..TRIES).any(|_| {
            let took = time_until_all_are_gone(how, goes_on, over_a_template);
            eprintln!("{took:?} after {how}");
            took < LIMIT
        });
        assert!(in_time, "{how}: in none of {TRIES} tries were all gone within {LIMIT:?}");
    }
}

/// Has an application end in this way, or its pool, and waits until all are gone: how long that
/// took.
fn time_until_all_are_gone(how: &str, goes_on: bool, over_a_template: bool) -> Duration {
    let dir = tempdir().unwrap();
    let mut command =
        own_process(&std::env::current_exe().unwrap(), "own_process_that_ends_somehow", dir.path());
    // (A panic is not to read all of the program's symbols before it goes on.)
    command
        .env("PROCPOOL_TEST_HOW", how)
        .env("RUST_BACKTRACE", "0")
        .envs(over_a_template.then_some((TEMPLATE, "1")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut application = KillOnDrop(command.spawn().unwrap());
    let log = dir.path().join("log");
    // One of them has a child.
    wait_until(format!("{how}: all run"), || {
        lines(&log).len() + lines(&dir.path().join("to stop")).len()
            == WORKERS + 1 + usize::from(over_a_template)
    });
    let to_stop = pids(&dir.path().join("to stop"))[0];
    let all: Vec<_> =
        pids(&log).into_iter().chain([to_stop]).map(|pid| Proc::of(pid).unwrap()).collect();
    stop(to_stop);
    let mut start = Instant::now();
    match how {
        "SIGTERM" => signal(application.0.id(), Signal::SIGTERM),
        "SIGINT" => signal(application.0.id(), Signal::SIGINT),
        "SIGHUP" => signal(application.0.id(), Signal::SIGHUP),
        "SIGKILL" => signal(application.0.id(), Signal::SIGKILL),
        _ => std::fs::write(dir.path().join("go"), "").unwrap(),
    }
    // Zombies of the application are left behind; those of another process are that one's affair.
    // Another program, which knows nothing of workers, keeps those that it was given.
    let own = application.0.id();
    let is_gone = |process: &Proc| {
        let left_here = support::parent(process.pid) == Some(own);
        process.is_gone()
            || process.has_ended() && (!left_here || how == "another program in its place")
    };
    let all_are_gone = || wait_until(format!("{how}: all are gone"), || all.iter().all(is_gone));
    if how == "a copy that ends" {
        wait_until("the copy has ended", || dir.path().join("copy").exists());
        assert!(!all.iter().any(|process| process.has_ended()), "they are the original's");
        assert!(application.0.try_wait().unwrap().is_none(), "{how}: the application goes on");
        start = Instant::now(); // and end with it
        application.0.kill().unwrap();
        all_are_gone();
        return start.elapsed();
    }
    all_are_gone();
    let took = start.elapsed();
    if goes_on {
        assert!(application.0.try_wait().unwrap().is_none(), "{how}: the application goes on");
    } else if !how.ends_with("in its place") {
        application.0.wait().unwrap();
    }
    std::fs::write(dir.path().join("bye"), "").unwrap();
    took
}

fn wait_for_bye(dir: &std::path::Path) {
    wait_until("the end of the test", || dir.join("bye").exists() || !dir.exists());
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_that_ends_somehow() {
    let Some(dir) = own_dir() else { return };
    let how = std::env::var("PROCPOOL_TEST_HOW").unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let log = dir.join("log");
    let pool = runtime.block_on(async {
        let mut builder = Pool::builder().workers(WORKERS);
        if std::env::var_os(TEMPLATE).is_some() {
            builder = builder.template(note_own_number, &log);
        }
        let pool = builder.build().unwrap();
        // Forgotten: they run all the same.
        drop((
            pool.spawn(spin, &log),
            pool.spawn(hang, &log),
            pool.spawn(hang, dir.join("to stop")),
        ));
        drop(pool.spawn(hang_with_a_child, &log));
        until("to go", || dir.join("go").exists()).await;
        pool
    });
    match how.as_str() {
        "return" => std::mem::forget(pool), // nobody drops it
        "panic" => panic!("the application fails"),
        "exit" => std::process::exit(0),
        "abort" => std::process::abort(),
        "another program in its place" => drop(execv(c"/bin/sleep", &[c"sleep", c"1000"])),
        "this program again in its place" => {
            let mut again = own_process(
                &std::env::current_exe().unwrap(),
                "own_process_that_took_the_place_of_another",
                &dir,
            );
            panic!("{}", std::os::unix::process::CommandExt::exec(&mut again));
        }
        "a copy that goes on, and its own end" => {
            // As daemon(3) does it.
            // SAFETY: the copy looks at files, and ends.
            #[expect(unsafe_code, reason = "a program that forks")]
            match unsafe { fork() }.unwrap() {
                ForkResult::Parent { .. } => nix_exit(),
                ForkResult::Child => {
                    nix::unistd::alarm::set(60); // a copy of one thread may not even be able to panic, and is nobody's to kill
                    wait_for_bye(&dir); // and has a copy of all descriptors
                    nix_exit();
                }
            }
        }
        "a copy that ends" => {
            // SAFETY: as above.
            #[expect(unsafe_code, reason = "a program that forks")]
            if let ForkResult::Child = unsafe { fork() }.unwrap() {
                drop(pool);
                std::fs::write(dir.join("copy"), "").unwrap();
                nix_exit();
            }
            wait_for_bye(&dir);
        }
        "shutdown_within" => {
            runtime.block_on(async { pool.shutdown_within(Duration::from_millis(10)).await });
            wait_for_bye(&dir);
        }
        "kill" => {
            drop(pool.kill());
            wait_for_bye(&dir);
        }
        "drop in a runtime" => {
            runtime.block_on(async { drop(pool) });
            wait_for_bye(&dir);
        }
        "drop outside of any" => {
            drop(runtime);
            drop(pool);
            wait_for_bye(&dir);
        }
        "drop of the runtime that holds it" => {
            runtime.spawn(async move {
                std::future::pending::<()>().await;
                drop(pool);
            });
            drop(runtime);
            wait_for_bye(&dir);
        }
        other => panic!("{other} is no way to end"),
    }
}

/// What was there before its `main` were the workers of the program that ran in this process.
#[test]
#[ignore = "runs in a process of its own"]
fn own_process_that_took_the_place_of_another() {
    let Some(dir) = own_dir() else { return };
    let pool = Pool::builder().workers(1).build().unwrap();
    assert_eq!(pool.spawn(|n: u32| n + 1, 1).blocking_join().unwrap(), 2);
    wait_for_bye(&dir);
}

/// Ends a process that has been forked, or has forked, without what is done at an exit.
#[expect(unsafe_code, reason = "it ends the process")]
fn nix_exit() -> ! {
    // SAFETY: ends the process.
    unsafe { nix::libc::_exit(0) }
}
