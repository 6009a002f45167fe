//! What workers inherit from the application, what they do not, and what is left when all is over.

#![cfg(feature = "sync")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "tests that change the process around the pool")]

use crate::support;
use crate::support::{
    KillOnDrop, Proc, children, descriptors, die, in_own_process, lines, note, own_dir,
    own_process, passes, pid, pids, seen, signal, soon, spin, start_sleeping, stop, threads, until,
    wait_for, wait_until,
};
use nix::libc;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};
use procpool::sync::List;
use procpool::{Pool, TaskErrorKind};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::tempdir;

fn pool_of(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

// ---- variables

fn push_pid(list: List<u32>) {
    list.blocking_push(pid()).unwrap();
}

fn environment() -> HashMap<Vec<u8>, Vec<u8>> {
    std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())).collect()
}

fn environment_of_a_child() -> Vec<u8> {
    Command::new("/usr/bin/env").output().unwrap().stdout
}

#[tokio::test]
async fn variables_are_set_overridden_and_removed_for_the_workers_alone() {
    let before = environment();
    let odd = OsString::from_vec(b"not \xff UTF-8 = \n".to_vec());
    let pool = Pool::builder()
        .workers(1)
        .env("PROCPOOL_TEST_A", "a")
        .env("PROCPOOL_TEST_B", "first")
        .env("PROCPOOL_TEST_B", "second")
        .env("PROCPOOL_TEST_C", &odd)
        .env("PROCPOOL_TEST_D", "")
        .env("PROCPOOL_TEST_E", "set and removed")
        .env_remove("PROCPOOL_TEST_E")
        .env_remove("PATH")
        .build()
        .unwrap();
    let mut expected = before.clone();
    expected.remove(&b"PATH"[..]);
    for (name, value) in [("A", &b"a"[..]), ("B", b"second"), ("C", odd.as_bytes()), ("D", b"")] {
        expected.insert(format!("PROCPOOL_TEST_{name}").into_bytes(), value.to_vec());
    }
    assert_eq!(soon(pool.spawn(environment, ())).await.unwrap(), expected);
    assert_eq!(environment(), before);
}

#[tokio::test]
async fn a_cleared_environment_holds_what_was_set_and_nothing_of_the_crate() {
    let pool = Pool::builder().workers(1).env("PROCPOOL_TEST_A", "a").env_clear().build().unwrap();
    let expected = HashMap::from([(b"PROCPOOL_TEST_A".to_vec(), b"a".to_vec())]);
    assert_eq!(soon(pool.spawn(environment, ())).await.unwrap(), expected);
    let of_child = soon(pool.spawn(environment_of_a_child, ())).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&of_child), "PROCPOOL_TEST_A=a\n");
}

#[tokio::test]
async fn the_crates_own_variable_is_seen_by_nobody() {
    // Not even where somebody sets or removes it.
    let pool = Pool::builder()
        .workers(1)
        .env("PROCPOOL_WORKER", "nonsense")
        .env_remove("PROCPOOL_WORKER")
        .build()
        .unwrap();
    let of_child = soon(pool.spawn(environment_of_a_child, ())).await.unwrap();
    let of_child = String::from_utf8_lossy(&of_child);
    assert!(of_child.contains("PATH=") && !of_child.contains("PROCPOOL_WORKER"), "{of_child}");
    let own = soon(pool.spawn(|| std::fs::read("/proc/self/cmdline").unwrap(), ())).await.unwrap();
    assert_eq!(own.iter().filter(|byte| **byte == 0).count(), 1, "the program's name alone");
}

#[tokio::test]
async fn a_variable_that_cannot_be_set_is_a_failed_start() {
    for name in ["", "A=B", "A\0B"] {
        let pool = Pool::builder().workers(1).env(name, "value").build().unwrap();
        let error = soon(pool.spawn(pid, ())).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::StartFailed, "{error:?}");
    }
}

// ---- directory, program, arguments

#[tokio::test]
async fn workers_stand_in_the_directory_that_is_asked_for() {
    let dir = tempdir().unwrap();
    let here = |path: &Path| path.canonicalize().unwrap();
    let pool = Pool::builder().workers(1).current_dir(dir.path()).build().unwrap();
    let cwd = || std::env::current_dir().unwrap();
    assert_eq!(soon(pool.spawn(cwd, ())).await.unwrap(), here(dir.path()));
    assert_eq!(soon(pool_of(1).spawn(cwd, ())).await.unwrap(), cwd());
}

#[test]
fn workers_start_from_a_program_that_was_started_by_a_relative_path_and_moved_away() {
    let (test, dir) = ("own_process_elsewhere", tempdir().unwrap());
    std::fs::copy(std::env::current_exe().unwrap(), dir.path().join("prog")).unwrap();
    let mut command = own_process(Path::new("./prog"), test, dir.path());
    command.current_dir(dir.path());
    passes(test, command);
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_elsewhere() {
    if own_dir().is_none() {
        return;
    }
    std::env::set_current_dir("/").unwrap();
    // The options of this very command line would make a harness run this test again.
    let args: fn() -> Vec<String> = || std::env::args().collect();
    for pool in [pool_of(1), Pool::builder().workers(1).current_dir("usr").build().unwrap()] {
        let own = soon(pool.spawn(|| std::env::args().collect::<Vec<_>>(), ())).await.unwrap();
        assert_eq!(own, args()[..1], "its name, and no argument");
    }
}

#[test]
fn workers_start_from_the_running_program_though_its_file_is_replaced_or_removed() {
    for how in ["replaced", "removed"] {
        let (test, dir) = ("own_process_without_its_file", tempdir().unwrap());
        let program = dir.path().join("prog");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let mut command = own_process(&program, test, dir.path());
        command.env("PROCPOOL_TEST_HOW", how);
        passes(test, command);
    }
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_without_its_file() {
    let Some(dir) = own_dir() else { return };
    let pool = pool_of(2);
    soon(pool.spawn(pid, ())).await.unwrap();
    let program = dir.join("prog");
    if std::env::var("PROCPOOL_TEST_HOW").unwrap() == "replaced" {
        std::fs::copy("/usr/bin/env", dir.join("other")).unwrap();
        std::fs::rename(dir.join("other"), &program).unwrap();
    } else {
        std::fs::remove_file(&program).unwrap();
    }
    for _ in 0..3 {
        assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
        assert_eq!(soon(pool.spawn(|n: u32| n + 1, 1)).await.unwrap(), 2);
    }
    let another = pool_of(2);
    soon(another.ready()).await.unwrap();
}

// ---- descriptors

#[test]
fn a_parent_without_standard_streams_has_workers_that_work() {
    for closed in ["0 1 2", "2", "1", "0", "1 2"] {
        for when in ["before", "after"] {
            let (test, dir) = ("own_process_without_streams", tempdir().unwrap());
            let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
            command.env("PROCPOOL_TEST_CLOSED", closed).env("PROCPOOL_TEST_HOW", when);
            let mut application = KillOnDrop(
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap(),
            );
            let status = application.0.wait().unwrap();
            let said = lines(&dir.path().join("log"));
            assert!(
                status.success() && said == ["done"],
                "{closed} closed {when} the pool is built: {status}, {said:?}"
            );
        }
    }
}

/// Writes noise to its standard streams, and says which of the three it has.
fn shout() -> Vec<u32> {
    for fd in 1..=2 {
        let bytes = [0xc1u8; 4096];
        // SAFETY: plain writes of a buffer that is there; whatever stands on these numbers is
        // nothing of the pool's.
        unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    }
    let open = descriptors(pid());
    assert!(open.iter().take(3).all(|(_, what)| what == "/dev/null"), "{open:?}");
    open.into_iter().take(3).map(|(fd, _)| fd).collect()
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_without_streams() {
    let Some(dir) = own_dir() else { return };
    let log = dir.join("log");
    let says = log.clone();
    std::panic::set_hook(Box::new(move |info| {
        note(&says, info);
        std::process::exit(1);
    }));
    let close = || {
        for fd in std::env::var("PROCPOOL_TEST_CLOSED").unwrap().split(' ') {
            // SAFETY: the process is this test's own, and std does without them.
            unsafe { libc::close(fd.parse().unwrap()) };
        }
    };
    // Either the pool's own descriptors get those numbers, or the first worker's.
    let pool = if std::env::var("PROCPOOL_TEST_HOW").unwrap() == "before" {
        close();
        pool_of(2)
    } else {
        let pool = pool_of(2);
        close();
        pool
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        soon(pool.ready()).await.unwrap();
        for _ in 0..3 {
            assert_eq!(soon(pool.spawn(shout, ())).await.unwrap(), [0, 1, 2]);
        }
        assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
        assert_eq!(soon(pool.spawn(shout, ())).await.unwrap(), [0, 1, 2]);
        soon(pool.shutdown()).await;
    });
    note(&log, "done");
    std::process::exit(0); // the harness cannot speak any more
}

#[tokio::test]
async fn a_task_may_close_its_standard_streams() {
    let pool = pool_of(1);
    let close = || {
        for fd in 0..3 {
            // SAFETY: they are this process's own.
            unsafe { libc::close(fd) };
        }
        pid()
    };
    let worker = soon(pool.spawn(close, ())).await.unwrap();
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap(), worker);
    assert_eq!(soon(pool.spawn(async || pid(), ())).await.unwrap(), worker);
}

#[test]
fn workers_hold_few_descriptors_and_none_of_each_others() {
    in_own_process("own_process_descriptors");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_descriptors() {
    if own_dir().is_none() {
        return;
    }
    let pool = pool_of(20);
    soon(pool.ready()).await.unwrap();
    let workers = children(pid());
    assert_eq!(workers.len(), 20);
    // What the application was itself started with, and did not mark, goes on to whatever it
    // starts.
    let ours = descriptors(pid());
    let is_own = |open: &(u32, String)| open.0 < 3 || !ours.contains(open);
    let mut sockets = HashMap::new();
    for worker in &workers {
        let mut open = descriptors(*worker);
        open.retain(is_own);
        assert_eq!(open[0], (0, "/dev/null".to_string()), "{open:?}");
        // The standard streams, its socket, its lifeline, and its memory until it is mapped.
        assert!(open.len() <= 6, "{open:?}");
        for (fd, what) in
            open.into_iter().filter(|(fd, what)| *fd > 2 && what.starts_with("socket:"))
        {
            let other = sockets.insert(what, (*worker, fd));
            assert_eq!(other, None, "worker {worker} has it, too");
        }
    }
    assert_eq!(sockets.len(), 40, "a socket and a lifeline each");
    // What the application itself holds is the other ends: none of the workers has one of those.
    assert!(ours.iter().all(|(_, what)| !sockets.contains_key(what)));
    // What a task starts holds nothing of ours.
    let of_a_child = || {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        // Before that the kernel still closes what is not for the new program, and its loader opens
        // and closes libraries.
        let call = format!("/proc/{}/syscall", child.id());
        let sleeps =
            [libc::SYS_nanosleep, libc::SYS_clock_nanosleep].map(|number| format!("{number} "));
        wait_until("it sleeps", || {
            sleeps.iter().any(|number| std::fs::read_to_string(&call).unwrap().starts_with(number))
        });
        let open = descriptors(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        open
    };
    let mut open = soon(pool.spawn(of_a_child, ())).await.unwrap();
    open.retain(is_own);
    assert_eq!(open.iter().map(|(fd, _)| *fd).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn nothing_listens_and_nothing_has_a_name() {
    in_own_process("own_process_names");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_names() {
    if own_dir().is_none() {
        return;
    }
    fn names() -> Vec<String> {
        let listed = ["/tmp", "/dev/shm", "/run"]
            .into_iter()
            .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten());
        let names = listed.map(|entry| entry.unwrap().path().to_string_lossy().into_owned());
        names.filter(|name| name.contains("procpool")).collect()
    }
    let before = names(); // somebody may keep files of such a name there
    let pool = pool_of(4);
    soon(pool.ready()).await.unwrap();
    let list: List<u32> = pool.manager().list().unwrap();
    soon(pool.spawn(push_pid, list.clone())).await.unwrap();
    assert_eq!(list.len().unwrap(), 1);
    assert_eq!(names(), before);
    let mut ours = Vec::new();
    for process in children(pid()).into_iter().chain([pid()]) {
        ours.extend(descriptors(process).into_iter().filter_map(|(_, what)| {
            Some(what.strip_prefix("socket:[")?.strip_suffix(']')?.to_string())
        }));
    }
    assert!(ours.len() >= 12, "{ours:?}");
    // Columns of proc_net(5): number, references, protocol, flags, type, state, inode, path if any.
    let unix = std::fs::read_to_string("/proc/net/unix").unwrap();
    let mut named = 0;
    for line in unix.lines().skip(1) {
        let columns: Vec<_> = line.split_whitespace().collect();
        if ours.iter().any(|inode| inode == columns[6]) {
            assert_eq!(columns[3], "00000000", "listens: {line}");
            // The manager's end of a client's connection has a name, by which the manager would
            // know the other end. It leads nowhere.
            if let Some(name) = columns.get(7) {
                let name = name.strip_prefix('@').expect("not in a file system");
                let address = SocketAddr::from_abstract_name(name).unwrap();
                let error = UnixStream::connect_addr(&address).expect_err("somebody listens");
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
                named += 1;
            }
        }
    }
    assert!((1..=4).contains(&named), "{named} sockets have a name");
    for table in ["/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp"] {
        let table = std::fs::read_to_string(table).unwrap_or_default();
        assert!(!table.lines().any(|line| {
            line.split_whitespace().nth(9).is_some_and(|inode| ours.iter().any(|own| own == inode))
        }));
    }
}

#[test]
fn a_program_started_by_hand_with_the_variable_refuses_to_be_a_worker() {
    let version = env!("CARGO_PKG_VERSION");
    let (stranger, theirs) = UnixStream::pair().unwrap();
    (&stranger).write_all(b"\x00\x00\x00\x10garbage garbage!").unwrap();
    let null = || Stdio::from(std::fs::File::open("/dev/null").unwrap());
    // A socket, but made by somebody else than the parent: the shell in between is the parent.
    let by_another = format!("{:?} & wait $!", std::env::current_exe().unwrap());
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &by_another.replace('&', "<&0 &")])
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.stdin(null());
    for mut command in [alone, shell] {
        let output = command.env("PROCPOOL_WORKER", version).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(126), "{stderr}");
        assert!(stderr.contains("cannot be one"), "{stderr}");
        assert_eq!(output.stdout, b"", "no test is run");
    }
}

// ---- signals

#[test]
fn a_host_that_ignores_sigchld_or_reaps_everything_breaks_nothing() {
    for how in ["ignore", "thief"] {
        let (test, dir) = ("own_process_that_reaps", tempdir().unwrap());
        let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
        command.env("PROCPOOL_TEST_HOW", how);
        passes(test, command);
    }
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_reaps() {
    if own_dir().is_none() {
        return;
    }
    if std::env::var("PROCPOOL_TEST_HOW").unwrap() == "ignore" {
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler is installed.
        unsafe { sigaction(Signal::SIGCHLD, &ignore) }.unwrap();
    } else {
        std::thread::spawn(|| {
            loop {
                // SAFETY: a null pointer asks for no status.
                if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } == -1 {
                    std::thread::yield_now(); // no child at the moment
                }
            }
        });
    }
    for _ in 0..10 {
        let pool = pool_of(3);
        soon(pool.ready()).await.unwrap();
        for number in [Signal::SIGKILL, Signal::SIGUSR1, Signal::SIGABRT] {
            let error = soon(pool.spawn(die, number as i32)).await.unwrap_err();
            assert!(error.is_worker_died(), "{error:?}");
            // Known from Linux 6.15 on; never a wrong one.
            assert!(
                error.exit_status().is_none_or(|status| status.signal() == Some(number as i32)),
                "{error:?}"
            );
            assert!(soon(pool.spawn(pid, ())).await.is_ok());
        }
        let child = || Command::new("sh").args(["-c", "exit 5"]).status().unwrap().code();
        assert_eq!(
            soon(pool.spawn(child, ())).await.unwrap(),
            Some(5),
            "a task waits for its children as ever"
        );
        let bad_start = Pool::builder()
            .workers(1)
            .on_worker_start(|| -> Result<(), String> { std::process::exit(4) }, ())
            .build()
            .unwrap();
        let error = soon(bad_start.spawn(pid, ())).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::InitFailed, "{error:?}");
        soon(pool.shutdown()).await;
    }
    until("no child is left", || children(pid()).is_empty()).await;
}

#[test]
fn signals_blocked_or_ignored_in_the_parent_are_not_in_the_workers() {
    in_own_process("own_process_with_blocked_signals");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_with_blocked_signals() {
    let Some(dir) = own_dir() else { return };
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).unwrap();
    sigprocmask(SigmaskHow::SIG_BLOCK, None, Some(&mut before)).unwrap();
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed.
    unsafe { sigaction(Signal::SIGPIPE, &ignore) }.unwrap();
    // SAFETY: nor here: as `nohup` starts a program.
    unsafe { sigaction(Signal::SIGHUP, &ignore) }.unwrap();
    let pool = pool_of(1);
    let log = dir.join("log");
    let running = pool.spawn(spin, &log);
    until("it runs", || lines(&log).len() == 1).await;
    signal(pids(&log)[0], Signal::SIGUSR1);
    let error = soon(running).await.unwrap_err();
    assert_eq!(error.exit_status().unwrap().signal(), Some(libc::SIGUSR1));
    // A program that a task starts finds nothing blocked, and SIGPIPE as it should be.
    let child = || std::fs::read_to_string(format!("/proc/{}/status", start_sleeping())).unwrap();
    let status = soon(pool.spawn(child, ())).await.unwrap();
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0);
    assert_eq!(mask("SigIgn:") & 1 << (libc::SIGPIPE - 1), 0);
    assert_ne!(mask("SigIgn:") & 1 << (libc::SIGHUP - 1), 0, "what is ignored otherwise stays so");
    let mut after = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, None, Some(&mut after)).unwrap();
    assert_eq!(before, after);
}

// ---- the end of the application

/// Starts a task's own child, and goes on for ever.
fn hang_with_a_child(log: PathBuf) {
    note(&log, start_sleeping());
    support::hang(log)
}

/// Runs a pool in a worker, whose worker spins.
fn spin_in_a_nested_pool(log: PathBuf) {
    note(&log, pid());
    let pool = pool_of(1);
    let _ = pool.spawn(spin, &log).blocking_join();
}

/// Lines in the log when all has begun: a spinner, a sleeper and its child, a nested pool and its
/// spinner, and one that is to be stopped.
const DESCENDANTS: usize = 6;

#[test]
fn when_the_application_is_killed_all_its_descendants_go() {
    for round in 0..5 {
        let dir = tempdir().unwrap();
        let log = dir.path().join("log");
        let mut command =
            own_process(&std::env::current_exe().unwrap(), "own_process_to_be_killed", dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut application = KillOnDrop(command.spawn().unwrap());
        let ready = dir.path().join("ready");
        wait_until("all run", || ready.exists());
        let all = seen(&log);
        assert_eq!(all.len(), DESCENDANTS);
        let stopped: u32 = std::fs::read_to_string(ready).unwrap().parse().unwrap();
        stop(stopped);
        application.0.kill().unwrap();
        assert_eq!(application.0.wait().unwrap().signal(), Some(libc::SIGKILL));
        wait_until(format!("round {round}: all are gone"), || {
            all.iter().all(|process| process.has_ended())
        });
    }
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_to_be_killed() {
    let Some(dir) = own_dir() else { return };
    let log = dir.join("log");
    let pool = pool_of(5);
    let _tasks = (
        pool.spawn(spin, &log),
        pool.spawn(hang_with_a_child, &log),
        pool.spawn(spin_in_a_nested_pool, &log),
    );
    until("they run", || lines(&log).len() == DESCENDANTS - 1).await;
    let last = pool.spawn(wait_for, (log.clone(), dir.join("no gate")));
    until("the last one runs", || lines(&log).len() == DESCENDANTS).await;
    std::fs::write(dir.join("new"), last.worker_pid().unwrap().to_string()).unwrap();
    std::fs::rename(dir.join("new"), dir.join("ready")).unwrap();
    std::future::pending().await
}

#[test]
fn a_worker_outlives_the_thread_that_asked_for_it() {
    let pool = std::thread::spawn(|| {
        let pool = pool_of(1);
        pool.spawn(pid, ()).blocking_join().unwrap();
        pool
    });
    let pool = pool.join().unwrap();
    let first = std::thread::spawn({
        let pool = pool.clone();
        move || pool.spawn(pid, ()).blocking_join().unwrap()
    });
    let first = first.join().unwrap();
    // Its death signal would have come with the end of the thread.
    for _ in 0..100 {
        assert_eq!(pool.spawn(pid, ()).blocking_join().unwrap(), first);
    }
}

#[test]
fn an_application_that_ends_by_itself_leaves_nothing() {
    for how in ["return", "exit", "abort", "panic"] {
        let dir = tempdir().unwrap();
        let mut command =
            own_process(&std::env::current_exe().unwrap(), "own_process_that_ends", dir.path());
        command
            .env("PROCPOOL_TEST_HOW", how)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut application = KillOnDrop(command.spawn().unwrap());
        let log = dir.path().join("log");
        wait_until("both run", || lines(&log).len() == 2);
        let workers = seen(&log);
        std::fs::write(dir.path().join("go"), "").unwrap();
        application.0.wait().unwrap();
        wait_until(format!("{how}: the workers are gone"), || {
            workers.iter().all(|worker| worker.has_ended())
        });
    }
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_ends() {
    let Some(dir) = own_dir() else { return };
    let log = dir.join("log");
    let pool = pool_of(2);
    let _tasks = (pool.spawn(spin, &log), pool.spawn(support::hang, &log));
    until("to go", || dir.join("go").exists()).await;
    match std::env::var("PROCPOOL_TEST_HOW").unwrap().as_str() {
        "exit" => std::process::exit(0),
        "abort" => std::process::abort(),
        "panic" => panic!("the application fails"),
        _ => std::mem::forget(pool), // nobody drops it
    }
}

// ---- what is left

#[test]
fn nothing_is_left_of_pools_that_were_dropped() {
    in_own_process("own_process_leftovers");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_leftovers() {
    if own_dir().is_none() {
        return;
    }
    async fn round(by_shutdown: bool) {
        let pool = pool_of(3);
        soon(pool.ready()).await.unwrap();
        soon(pool.spawn(|bytes: Vec<u8>| bytes.len(), vec![1; 1 << 20])).await.unwrap();
        assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
        let aborted = pool.spawn(async || std::future::pending::<()>().await, ());
        aborted.abort();
        assert!(soon(aborted).await.unwrap_err().is_cancelled());
        let failing =
            Pool::builder().workers(2).on_worker_start(|| Err::<(), _>("no"), ()).build().unwrap();
        assert!(soon(failing.spawn(pid, ())).await.unwrap_err().is_start_failed());
        if by_shutdown {
            soon(pool.shutdown()).await;
        }
    }
    fn open() -> Vec<String> {
        let mut all: Vec<_> = descriptors(pid()).into_iter().map(|(_, what)| what).collect();
        all.sort();
        all
    }
    fn shared_maps() -> usize {
        std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:").count()
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(round(false));
    wait_until("the warm-up's workers are gone", || children(pid()).is_empty());
    // What a runtime that has nothing to do has yet to drop.
    let settle = || runtime.block_on(async { tokio::task::yield_now().await });
    let mut before = (open(), threads());
    wait_until("the warm-up has settled", || {
        settle();
        let now = (open(), threads());
        let same = now == before
            && !now.0.iter().any(|what| {
                what.contains("memfd") || what.contains("pidfd") || what.contains("timerfd")
            });
        before = now;
        same
    });
    for n in 0..20 {
        runtime.block_on(round(n % 2 == 0));
    }
    std::thread::spawn(|| {
        let pool = pool_of(1);
        pool.spawn(pid, ()).blocking_join().unwrap();
    })
    .join()
    .unwrap();
    wait_until("no child is left", || children(pid()).is_empty());
    let mut now = (Vec::new(), 0);
    let start = std::time::Instant::now();
    while now != before {
        settle();
        now = (open(), threads());
        assert!(start.elapsed() < support::FUSE, "left: {now:?}\nbefore: {before:?}");
    }
    assert_eq!(shared_maps(), 0);
}

#[tokio::test]
async fn a_worker_has_the_pools_name_and_one_thread() {
    let pool = Pool::builder().workers(1).name("thumbnails of cats").build().unwrap();
    let worker = soon(pool.spawn(pid, ())).await.unwrap();
    let of = |what: &str| std::fs::read_to_string(format!("/proc/{worker}/{what}")).unwrap();
    assert_eq!(of("comm"), "thumbnails of c\n");
    assert!(of("status").contains("Threads:\t1\n"));
    assert!(Proc::of(worker).is_some());
    // A leader of its own group, so that Ctrl-C is not for it.
    let group = of("stat").rsplit(") ").next().unwrap().split(' ').nth(2).unwrap().to_string();
    assert_eq!(group, worker.to_string());
    let pool = Pool::builder().workers(1).process_group(false).build().unwrap();
    let in_ours = soon(pool.spawn(|| nix::unistd::getpgrp().as_raw(), ())).await.unwrap();
    assert_eq!(in_ours, nix::unistd::getpgrp().as_raw());
    let _ = std::io::stdout().as_raw_fd();
}
