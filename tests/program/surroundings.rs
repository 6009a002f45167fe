//! Programs in unusual surroundings: another library before the C library, the first process of a
//! namespace, no /proc.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "looks up symbols")]

use crate::support;
use crate::support::fixtures;
use crate::support::{own_dir, own_process, passes, pid, soon};
use nix::libc;
use procpool::Pool;
use std::ffi::{CStr, c_int, c_long};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

// ---- LD_PRELOAD

#[test]
fn a_preloaded_library_is_in_the_workers_as_well_unless_the_variable_is_removed() {
    let (test, dir) = ("own_process_preloaded", tempfile::tempdir().unwrap());
    let library = dir.path().join("libpreload.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preload.c");
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
    let status = compiler
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-pthread", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(status.success());
    let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    command.env("LD_PRELOAD", &library);
    passes(test, command);
}

/// How often the library's constructor has run, and how many blocks it has given; `None` without
/// it.
fn preloaded() -> Option<(c_int, c_long)> {
    let symbol = |name: &CStr| {
        // SAFETY: dlsym(3).
        let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    };
    let (constructed, count) = (symbol(c"preload_constructed")?, symbol(c"preload_count")?);
    // SAFETY: variables of these types, of which one is written before `main` only, and the other
    // atomically.
    Some(unsafe {
        (
            *constructed.cast::<c_int>(),
            std::sync::atomic::AtomicI64::from_ptr(count.cast())
                .load(std::sync::atomic::Ordering::Relaxed),
        )
    })
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_preloaded() {
    if own_dir().is_none() {
        return;
    }
    assert!(preloaded().is_some());
    let count = || {
        let before = preloaded()?;
        let blocks: Vec<_> = (1..100).map(|n| vec![1u8; n]).collect();
        let after = preloaded()?;
        Some((after.0, after.1 - before.1 >= i64::try_from(blocks.len()).unwrap()))
    };
    let pool = Pool::builder().workers(2).build().unwrap();
    soon(pool.ready()).await.unwrap();
    for _ in 0..10 {
        assert_eq!(soon(pool.spawn(count, ())).await.unwrap(), Some((1, true)));
        assert_eq!(soon(pool.spawn(async |text: String| text, "text")).await.unwrap(), "text");
        assert!(soon(pool.spawn(support::die, libc::SIGKILL)).await.unwrap_err().is_worker_died());
    }
    let without = Pool::builder().workers(1).env_remove("LD_PRELOAD").build().unwrap();
    assert!(!soon(without.spawn(|| preloaded().is_some(), ())).await.unwrap());
    assert_ne!(soon(without.spawn(pid, ())).await.unwrap(), pid());
}

// ---- namespaces

fn program() -> PathBuf {
    fixtures::build("program", "dev").join("fixture-program")
}

/// A command that runs in namespaces of its own; `None`, and a note, where they are not to be had.
fn unshare(what: &[&str]) -> Option<Command> {
    let command = |user: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(user).args(what).stdin(Stdio::null());
        command
    };
    // Root may; others may as root of a user namespace, as a rule.
    for user in [&[][..], &["--user", "--map-root-user"]] {
        let tried = command(user).args(["--", "true"]).stderr(Stdio::null()).status();
        if tried.is_ok_and(|status| status.success()) {
            let mut command = command(user);
            command.arg("--");
            return Some(command);
        }
    }
    eprintln!("skipped: this machine gives no namespaces ({what:?})");
    None
}

/// As in a container without an init. The pool works; but who is the first process inherits what
/// others leave behind, and nobody reaps it.
#[test]
#[ignore = "needs namespaces"]
fn needs_namespaces_the_first_process_has_workers_and_keeps_zombies_of_others() {
    let Some(mut command) = unshare(&["--pid", "--fork", "--mount-proc", "--kill-child"]) else {
        return;
    };
    let printed = fixtures::finish(command.arg(program()).arg("first")).printed();
    assert_eq!(
        printed,
        "main\n\
         process 1\n\
         in a worker true\n\
         a crash: WorkerDied signal Some(6)\n\
         after it true\n\
         children after the end: the sleep of the task, a zombie\n"
    );
}

/// Who has asked for a namespace for its children, and stays outside, can have no thread any more
/// (clone(2), EINVAL), and so no supervisor.
#[test]
#[ignore = "needs namespaces"]
fn needs_namespaces_who_cannot_have_threads_is_told_by_build() {
    let Some(mut command) = unshare(&["--pid"]) else { return };
    let printed = fixtures::finish(command.arg(program()).arg("build")).printed();
    assert!(printed.starts_with("main\nSpawn: "), "{printed}");
}

#[test]
#[ignore = "needs namespaces"]
fn needs_namespaces_without_proc_build_says_so_and_a_pool_that_had_it_says_so_per_task() {
    let Some(mut command) = unshare(&["--mount"]) else { return };
    command.args(["sh", "-c", r#"mount -t tmpfs none /proc && exec "$0" build"#]).arg(program());
    let printed = fixtures::finish(&mut command).printed();
    let said =
        "Spawn: finding the program: cannot start /proc/self/exe: /proc is not mounted: No such";
    assert!(printed.starts_with(&format!("main\n{said}")), "{printed}");

    let Some(mut command) = unshare(&["--mount"]) else { return };
    let printed = fixtures::finish(command.arg(program()).arg("hidden")).printed();
    assert_eq!(
        printed,
        "main\n\
         while it is hidden: StartFailed true\n\
         when it is back true\n"
    );
}

// ---- ways to start a program

/// The program proper is the loader then, and a fresh start of it knows nothing of ours.
#[test]
fn a_program_that_is_run_through_the_loader_has_no_workers_and_is_told_why() {
    let program = program();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let loader = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.contains("/ld-"))
        .unwrap();
    let mut command = Command::new(loader);
    let printed =
        fixtures::finish(command.arg(&program).arg("start").stdin(Stdio::null())).printed();
    assert!(
        printed.starts_with("main\nDiedAtStart: ") && printed.contains("missing program name"),
        "{printed}"
    );
}

#[test]
fn a_program_that_goes_into_the_background_first_has_workers_there() {
    // Its output ends when the last of its processes has.
    assert_eq!(fixtures::run(&program(), &["daemon"]).printed(), "main\nin the background 2\n");
}
