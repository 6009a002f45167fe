//! Processes and the end of their parents: those that end with it, those that go on, and daemons of
//! the system.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "programs that end without ceremony")]
#![expect(clippy::print_stdout, reason = "where it goes is what is tested")]

use crate::support::{
    Proc, children, descriptors, hang, in_own_process, lines, note, own_dir, own_process, passes,
    pid, signal, soon, until, wait_until,
};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use procpool::{ErrorKind, Process, ProcessBuilder, Stdio};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

/// One that goes on must not hold the pipes of a test harness that ends.
fn silent() -> ProcessBuilder {
    Process::builder().stdout(Stdio::null()).stderr(Stdio::null())
}

/// The one process whose number stands in a log.
fn one_of(log: &Path) -> Proc {
    wait_until(format!("a number in {}", log.display()), || !lines(log).is_empty());
    Proc::of(lines(log)[0].parse().unwrap()).unwrap()
}

/// Says that it has begun, and goes on until `gate` exists.
fn until_open(log: PathBuf, gate: PathBuf) -> u32 {
    note(&log, pid());
    wait_until("the gate opens", || gate.exists());
    note(&log, "end");
    pid()
}

// ---- with the parent, or after it

#[test]
fn a_daemon_process_ends_with_its_parent_and_another_goes_on() {
    for how in ["returns", "exits", "is killed", "aborts"] {
        let (test, dir) = ("own_process_that_ends", tempdir().unwrap());
        let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
        command.env("PROCPOOL_TEST_HOW", how);
        if how == "returns" {
            passes(test, command);
        } else {
            command
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
        }
        let (daemon, other) = (dir.path().join("daemon"), dir.path().join("other"));
        assert!(lines(&daemon).len() == 1 && lines(&other).len() == 1, "{how}: both had begun");
        let daemon: u32 = lines(&daemon)[0].parse().unwrap();
        wait_until("the daemon is gone", || Proc::of(daemon).is_none_or(Proc::has_ended));
        let going_on = one_of(&other);
        assert!(!going_on.has_ended(), "{how}");
        // It goes on to its end, though nobody will hear of it.
        std::fs::write(dir.path().join("gate"), "").unwrap();
        wait_until("the other ends", || going_on.has_ended());
        assert_eq!(lines(&other)[1], "end");
    }
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_ends() {
    let Some(dir) = own_dir() else { return };
    let gate = dir.join("gate");
    let daemon = silent().spawn(until_open, (dir.join("daemon"), gate.clone())).unwrap();
    let other = silent().daemon(false).spawn(until_open, (dir.join("other"), gate)).unwrap();
    soon(other.started()).await.unwrap();
    until("both have begun", || {
        ["daemon", "other"].iter().all(|log| !lines(&dir.join(log)).is_empty())
    })
    .await;
    assert!(daemon.is_alive() && other.is_alive());
    match std::env::var("PROCPOOL_TEST_HOW").unwrap().as_str() {
        "returns" => {}
        "exits" => std::process::exit(0),
        "is killed" => signal(pid(), Signal::SIGKILL),
        _ => std::process::abort(),
    }
}

/// Notes itself; as many levels of processes below it, each waited for.
fn descend(log: PathBuf, levels: u32) {
    note(&log, pid());
    if levels == 0 {
        hang(log);
    } else {
        let _ = Process::spawn(descend, (log, levels - 1)).unwrap().blocking_join();
    }
}

#[test]
fn when_the_application_is_killed_processes_of_processes_go_as_well() {
    let (test, dir) = ("own_process_with_descendants", tempdir().unwrap());
    let log = dir.path().join("log");
    let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    let mut application = command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("all have begun", || lines(&log).len() == 4);
    let all: Vec<_> =
        lines(&log).iter().map(|pid| Proc::of(pid.parse().unwrap()).unwrap()).collect();
    application.kill().unwrap();
    application.wait().unwrap();
    wait_until("all are gone", || all.iter().all(|process| process.has_ended()));
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_with_descendants() {
    let Some(dir) = own_dir() else { return };
    let _ = Process::spawn(descend, (dir.join("log"), 2)).unwrap().blocking_join();
}

#[test]
fn a_process_that_is_to_go_on_gets_its_call_though_its_parent_returns_at_once() {
    let dir = tempdir().unwrap();
    let test = "own_process_that_returns_at_once";
    passes(test, own_process(&std::env::current_exe().unwrap(), test, dir.path()));
    let (log, large) = (dir.path().join("log"), dir.path().join("large"));
    wait_until("both have been called", || lines(&log).len() == 1 && lines(&large).len() == 1);
    assert_eq!(lines(&large), [(8 << 20).to_string()]);
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_that_returns_at_once() {
    let Some(dir) = own_dir() else { return };
    fn measure(log: PathBuf, bytes: Vec<u8>) {
        note(&log, bytes.len());
    }
    drop(silent().daemon(false).spawn(|log: PathBuf| note(&log, pid()), dir.join("log")).unwrap());
    // More than a socket takes at once.
    drop(silent().daemon(false).spawn(measure, (dir.join("large"), vec![1; 8 << 20])).unwrap());
}

#[tokio::test]
async fn a_process_that_is_to_go_on_is_like_any_other_while_its_parent_lives() {
    let child = silent().daemon(false).spawn(|n: u32| n + 1, 1).unwrap();
    assert!(soon(child.wait()).await.unwrap().success());
    assert_eq!(soon(child).await.unwrap(), 2);
    let dir = tempdir().unwrap();
    let child = silent().daemon(false).spawn(hang, dir.path().join("log")).unwrap();
    child.terminate().unwrap();
    assert!(soon(child).await.unwrap_err().is_worker_died());
}

// ---- the parent, as its child sees it

/// Says what it sees of its parent, before and after its end.
async fn watch_parent(log: PathBuf) {
    let parent = procpool::parent().unwrap();
    note(&log, pid());
    note(&log, format!("{} {}", parent.pid(), parent.is_alive()));
    parent.exited().await;
    note(&log, format!("{} {}", parent.pid(), parent.is_alive()));
    parent.exited().await;
    note(&log, "again");
}

/// The same without a runtime.
fn watch_parent_blocking(log: PathBuf) {
    let parent = procpool::parent().unwrap();
    note(&log, pid());
    note(&log, format!("{} {}", parent.pid(), parent.is_alive()));
    parent.blocking_exited();
    note(&log, format!("{} {}", parent.pid(), parent.is_alive()));
    parent.blocking_exited();
    note(&log, "again");
}

#[tokio::test]
async fn a_child_sees_that_its_parent_is_gone() {
    fn start_watchers(logs: Vec<PathBuf>) {
        let _first = silent().daemon(false).spawn(watch_parent, &logs[0]).unwrap();
        let _second = silent().daemon(false).spawn(watch_parent_blocking, &logs[1]).unwrap();
        loop {
            std::thread::park();
        }
    }
    let dir = tempdir().unwrap();
    let logs = [dir.path().join("async"), dir.path().join("blocking")];
    let child = Process::spawn(start_watchers, &logs[..]).unwrap();
    until("both watch", || logs.iter().all(|log| lines(log).len() == 2)).await;
    let watchers: Vec<_> = logs.iter().map(|log| one_of(log)).collect();
    child.terminate().unwrap();
    soon(child.wait()).await.unwrap();
    for (log, watcher) in logs.iter().zip(watchers) {
        until("it has seen it", || watcher.has_ended()).await;
        let parent = child.pid();
        assert_eq!(
            lines(log)[1..],
            [format!("{parent} true"), format!("{parent} false"), "again".into()]
        );
    }
}

#[tokio::test]
async fn workers_and_processes_have_a_parent_and_the_application_has_none() {
    assert!(procpool::parent().is_none());
    let parent = || procpool::parent().map(|parent| (parent.pid(), parent.is_alive()));
    assert_eq!(soon(Process::spawn(parent, ()).unwrap()).await.unwrap(), Some((pid(), true)));
    let pool = procpool::Pool::builder().workers(1).build().unwrap();
    assert_eq!(soon(pool.spawn(parent, ())).await.unwrap(), Some((pid(), true)));
}

// ---- daemons of the system

/// What a daemon says of itself.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Told {
    pid: u32,
    directory: PathBuf,
    umask: u32,
    variable: Option<String>,
    has_parent: bool,
}

fn tell(log: PathBuf, gate: PathBuf) {
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::empty()).bits();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
    let variable = std::env::var("PROCPOOL_TEST_DAEMON").ok();
    let directory = std::env::current_dir().unwrap();
    let told =
        Told { pid: pid(), directory, umask, variable, has_parent: procpool::parent().is_some() };
    println!("to nobody");
    note(&log, format!("{told:?}"));
    wait_until("the gate opens", || gate.exists());
}

/// Session, terminal and parent of a process (proc_pid_stat(5), fields 6, 7 and 4).
fn standing(pid: u32) -> (u32, i32, u32) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[3].parse().unwrap(), fields[4].parse().unwrap(), fields[1].parse().unwrap())
}

fn ancestors(pid: u32) -> Vec<u32> {
    std::iter::successors(Some(pid), |pid| Some(standing(*pid).2).filter(|parent| *parent > 0))
        .skip(1)
        .collect()
}

#[test]
fn a_detached_process_holds_nothing_of_its_caller() {
    let dir = tempdir().unwrap();
    let test = "own_process_detaches";
    // It reads the output to its end: the daemon, which lives on, must not keep it from coming.
    passes(test, own_process(&std::env::current_exe().unwrap(), test, dir.path()));
    let log = dir.path().join("log");
    wait_until("the daemon tells", || lines(&log).len() == 2);
    let daemon = Proc::of(lines(&log)[0].parse().unwrap()).unwrap();
    assert!(!daemon.has_ended());
    let told = Told {
        pid: daemon.pid,
        directory: "/".into(),
        umask: 0o027,
        variable: Some("yes".into()),
        has_parent: false,
    };
    assert_eq!(lines(&log)[1], format!("{told:?}"));

    let (session, terminal, parent) = standing(daemon.pid);
    assert_ne!(session, daemon.pid, "not the leader of its session");
    assert_eq!(Proc::of(session), None, "whose leader has gone");
    assert_eq!(terminal, 0);
    assert!(
        parent == 1 || ancestors(pid()).contains(&parent),
        "adopted by init or by a subreaper, not by {parent}"
    );
    let open = descriptors(daemon.pid);
    let streams = open.iter().take_while(|(number, _)| *number < 3);
    assert!(streams.map(|(_, what)| what).eq(["/dev/null"; 3]), "{open:?}");
    assert!(
        open[3..].iter().all(|(_, what)| what.starts_with("/memfd:procpool ")),
        "some memory of its own, at most: {open:?}"
    );

    std::fs::write(dir.path().join("gate"), "").unwrap();
    wait_until("the daemon ends", || daemon.has_ended());
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_detaches() {
    let Some(dir) = own_dir() else { return };
    // A descriptor that programs inherit, as careless libraries make them.
    let careless = std::fs::File::create(dir.join("careless")).unwrap();
    // SAFETY: sets the flags of a descriptor of our own.
    unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&careless), libc::F_SETFD, 0) };
    let builder =
        Process::builder().umask(0o027).env("PROCPOOL_TEST_DAEMON", "yes").name("a-daemon");
    let daemon = soon(builder.detach(tell, (dir.join("log"), dir.join("gate")))).await.unwrap();
    assert_eq!(children(pid()), [0; 0], "it is no child of ours, and nothing else is left");
    assert_eq!(
        std::fs::read_to_string(format!("/proc/{}/comm", daemon.pid())).unwrap(),
        "a-daemon\n"
    );
    until("it tells", || lines(&dir.join("log")).len() == 1).await;
    let told = lines(&dir.join("log")).remove(0);
    assert!(told.contains(&format!("pid: {},", daemon.pid())), "{told}");
    // For who has started us.
    std::fs::write(dir.join("log"), format!("{}\n{told}\n", daemon.pid())).unwrap();
}

#[test]
fn a_detached_process_has_its_directory_and_streams_as_they_are_set() {
    let dir = tempdir().unwrap();
    let (out, input) = (dir.path().join("out"), dir.path().join("in"));
    std::fs::write(&input, "what stands in the file\n").unwrap();
    fn echo() {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        println!("{} {line}", std::env::current_dir().unwrap().display());
        eprintln!("end");
    }
    let file = std::fs::File::create(&out).unwrap();
    let daemon = Process::builder()
        .current_dir(dir.path())
        .stdin(std::fs::File::open(&input).unwrap())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .detach(echo, ())
        .blocking_wait()
        .unwrap();
    assert_ne!(daemon.pid(), pid());
    wait_until("it has written", || lines(&out).last().is_some_and(|line| line == "end"));
    let here = dir.path().canonicalize().unwrap();
    assert_eq!(lines(&out)[0], format!("{} what stands in the file", here.display()));
}

#[tokio::test]
async fn a_detached_process_that_cannot_start_is_told() {
    let error =
        soon(Process::builder().current_dir("/nowhere/at/all").detach(pid, ())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Spawn);
    let error = soon(Process::builder().stdout(Stdio::piped()).detach(pid, ())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    let error = soon(Process::builder().kill_on_drop(true).detach(pid, ())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    let mut detaching = Process::builder().detach(pid, ());
    let daemon = soon(&mut detaching).await.unwrap();
    assert_eq!(soon(&mut detaching).await.unwrap(), daemon, "awaited again");
}

#[test]
fn a_second_fork_that_fails_is_told() {
    let (test, dir) = ("own_process_that_may_fork_once", tempdir().unwrap());
    let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    // The limit counts the processes of a user, and is not for one who may do everything. Nobody
    // else is this one.
    const NOBODY_ELSE: u32 = 65_021;
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(NOBODY_ELSE).gid(NOBODY_ELSE);
    }
    passes(test, command);
}

/// Threads of all processes of this user.
fn threads_of_ours() -> u64 {
    use std::os::unix::fs::MetadataExt;
    // SAFETY: asks for a number.
    let own = unsafe { libc::geteuid() };
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let is_ours =
        |pid: &u32| std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|meta| meta.uid() == own);
    pids.filter(is_ours)
        .filter_map(|pid| Some(std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.count() as u64))
        .sum()
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_that_may_fork_once() {
    if own_dir().is_none() {
        return;
    }
    // The supervisor is there then.
    let daemon = Process::builder().detach(|| (), ()).blocking_wait().unwrap();
    wait_until("the daemon has ended", || Proc::of(daemon.pid()).is_none_or(Proc::has_ended));
    let (_, most) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
    let mut last = None;
    // Where we are not alone, the number of processes may change.
    for _ in 0..100 {
        setrlimit(Resource::RLIMIT_NPROC, threads_of_ours() + 1, most).unwrap();
        let result = Process::builder().detach(|| (), ()).blocking_wait();
        setrlimit(Resource::RLIMIT_NPROC, most, most).unwrap();
        match result {
            Err(error) if error.kind() == ErrorKind::DiedAtStart => {
                assert!(error.stderr_tail().unwrap().contains("forking a second time"), "{error}");
                assert!(error.exit_status().is_some_and(|status| !status.success()), "{error:?}");
                assert!(children(pid()).is_empty());
                return;
            }
            other => last = Some(other),
        }
    }
    panic!("it never failed so: {last:?}");
}

#[test]
fn an_exit_waits_for_a_daemon_that_is_starting() {
    let dir = tempdir().unwrap();
    let test = "own_process_that_detaches_and_returns";
    passes(test, own_process(&std::env::current_exe().unwrap(), test, dir.path()));
    wait_until("it was called", || lines(&dir.path().join("log")).len() == 1);
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_that_detaches_and_returns() {
    let Some(dir) = own_dir() else { return };
    drop(Process::builder().detach(|log: PathBuf| note(&log, pid()), dir.join("log")));
}

#[test]
fn a_forked_copy_starts_nothing_and_waits_for_nothing() {
    in_own_process("own_process_forked_copy");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_forked_copy() {
    let Some(dir) = own_dir() else { return };
    let log = dir.join("log");
    let child = Process::builder().kill_on_drop(true).spawn(hang, &log).unwrap();
    wait_until("it has begun", || lines(&log).len() == 1);
    // SAFETY: the copy ends by `_exit`, running nothing of the test harness.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let refused = [
                child.kill(),
                child.terminate(),
                child.blocking_started(),
                child.blocking_wait().map(drop),
            ];
            let kinds = refused.map(|result| result.unwrap_err().kind());
            let spawned = Process::spawn(pid, ()).unwrap_err().kind();
            let joined =
                child.try_join().is_some_and(|value| value.is_err_and(|error| error.is_forked()));
            let alive = child.is_alive();
            drop(child);
            let good =
                kinds == [ErrorKind::Forked; 4] && spawned == ErrorKind::Forked && joined && alive;
            // SAFETY: ends this process.
            unsafe { libc::_exit(i32::from(!good)) }
        }
        nix::unistd::ForkResult::Parent { child: copy } => {
            let status = nix::sys::wait::waitpid(copy, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(copy, 0));
        }
    }
    assert!(child.is_alive());
}
