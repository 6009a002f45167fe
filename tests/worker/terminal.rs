//! Workers of a program that runs at a terminal: whom Ctrl-C reaches, and who may change the
//! terminal.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "makes terminals")]

use crate::support;
use crate::support::{
    KillOnDrop, Proc, hang, lines, note, own_dir, own_process, pid, seen, soon, state, until,
    wait_for, wait_until,
};
use nix::libc;
use procpool::Pool;
use std::fs::File;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::ptr;
use std::time::Duration;

const CTRL_C: &[u8] = b"\x03";
const CTRL_Z: &[u8] = b"\x1a";

/// Our end of a new terminal, and that of the program which it is for.
fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: openpty(3) with places for two descriptors, and nothing else asked for.
    let result = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    assert_eq!(result, 0);
    // SAFETY: openpty has just made them, for nobody else.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    // What else is started must not keep the terminal.
    for fd in [&ours, &theirs] {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
            .unwrap();
    }
    (ours.into(), theirs)
}

/// Runs a test of this program in a process of its own, in the foreground of a new terminal.
fn at_a_terminal(test: &str, dir: &Path) -> (KillOnDrop, File) {
    started_at_a_terminal(own_process(&std::env::current_exe().unwrap(), test, dir), dir)
}

fn started_at_a_terminal(mut command: Command, dir: &Path) -> (KillOnDrop, File) {
    let (ours, theirs) = terminal();
    command.stdin(theirs).stdout(Stdio::null()).stderr(File::create(dir.join("stderr")).unwrap());
    // SAFETY: system calls only, on a descriptor that is there.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() == -1 || libc::ioctl(0, libc::TIOCSCTTY, 0) == -1 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    (KillOnDrop(command.spawn().unwrap()), ours)
}

#[test]
fn ctrl_c_reaches_the_application_alone_which_lets_its_tasks_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut application, mut terminal) = at_a_terminal("own_process_with_a_handler", dir.path());
    let log = dir.path().join("log");
    wait_until("a task runs", || lines(&log).len() == 1);
    let worker = seen(&log)[0];
    terminal.write_all(CTRL_C).unwrap();
    let status = application.0.wait().unwrap();
    let stderr = std::fs::read_to_string(dir.path().join("stderr")).unwrap();
    assert!(status.success() && stderr.is_empty(), "{status}: {stderr}");
    assert!(dir.path().join("done").exists());
    wait_until("the worker is gone", || worker.has_ended());
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_with_a_handler() {
    let Some(dir) = own_dir() else { return };
    let mut interrupted =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
    let pool = Pool::builder().workers(1).build().unwrap();
    let gate = dir.join("gate");
    let task = pool.spawn(wait_for, (dir.join("log"), gate.clone()));
    soon(interrupted.recv()).await.unwrap();
    std::fs::write(gate, "").unwrap();
    soon(task).await.unwrap();
    soon(pool.shutdown()).await;
    std::fs::write(dir.join("done"), "").unwrap();
}

#[test]
fn ctrl_c_without_a_handler_ends_the_application_and_so_its_workers() {
    let dir = tempfile::tempdir().unwrap();
    let (mut application, mut terminal) =
        at_a_terminal("own_process_without_a_handler", dir.path());
    let log = dir.path().join("log");
    wait_until("both tasks run", || lines(&log).len() == 2);
    let workers = seen(&log);
    terminal.write_all(CTRL_C).unwrap();
    assert_eq!(application.0.wait().unwrap().signal(), Some(libc::SIGINT));
    wait_until("the workers are gone", || workers.iter().all(|worker| worker.has_ended()));
    let stderr = std::fs::read_to_string(dir.path().join("stderr")).unwrap();
    assert!(stderr.is_empty(), "{stderr}");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_without_a_handler() {
    let Some(dir) = own_dir() else { return };
    let log = dir.join("log");
    let pool = Pool::builder().workers(2).build().unwrap();
    let _tasks = (pool.spawn(hang, &log), pool.spawn(support::spin, &log));
    std::future::pending().await
}

#[test]
fn ctrl_z_stops_the_application_and_the_workers_in_its_group_alone() {
    let dir = tempfile::tempdir().unwrap();
    let own =
        own_process(&std::env::current_exe().unwrap(), "own_process_that_is_stopped", dir.path());
    // Only what has been started by a shell is stopped by that, which stays to let it go on.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "set -m; \"$0\" \"$@\"; exec sleep 1000"])
        .arg(own.get_program())
        .args(own.get_args());
    shell.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let (_shell, mut terminal) = started_at_a_terminal(shell, dir.path());
    let [application, apart, in_its_group] = ["application", "apart", "in its group"].map(|name| {
        let log = dir.path().join(name);
        wait_until(format!("{name}: it has begun"), || !lines(&log).is_empty());
        (Proc::of(lines(&log)[0].parse().unwrap()).unwrap(), log)
    });
    terminal.write_all(CTRL_Z).unwrap();
    wait_until("the application stands still", || state(application.0.pid) == Some('T'));
    wait_until("the worker in its group stands still", || state(in_its_group.0.pid) == Some('T'));
    let before = lines(&apart.1).len();
    wait_until("the other goes on", || lines(&apart.1).len() > before + 3);
    support::signal(application.0.pid, nix::sys::signal::Signal::SIGKILL);
    wait_until("all are gone", || {
        [&apart, &in_its_group].iter().all(|worker| worker.0.has_ended())
    });
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_is_stopped() {
    fn counts(log: PathBuf) {
        loop {
            note(&log, pid());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let Some(dir) = own_dir() else { return };
    let pools =
        [true, false].map(|apart| Pool::builder().workers(1).process_group(apart).build().unwrap());
    let _tasks = (
        pools[0].spawn(counts, dir.join("apart")),
        pools[1].spawn(counts, dir.join("in its group")),
    );
    note(&dir.join("application"), pid());
    std::future::pending().await
}

#[test]
fn a_task_that_changes_the_terminal_stands_still_unless_it_is_in_the_applications_group() {
    let dir = tempfile::tempdir().unwrap();
    let (mut application, _terminal) =
        at_a_terminal("own_process_that_changes_the_terminal", dir.path());
    let status = application.0.wait().unwrap();
    let stderr = std::fs::read_to_string(dir.path().join("stderr")).unwrap();
    assert!(status.success() && dir.path().join("done").exists(), "{status}: {stderr}");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_changes_the_terminal() {
    let Some(dir) = own_dir() else { return };
    fn change() -> bool {
        let terminal = File::options().read(true).write(true).open("/dev/tty").unwrap();
        let mut settings = MaybeUninit::uninit();
        // SAFETY: tcgetattr fills them in, or fails; tcsetattr reads them.
        unsafe {
            libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) == 0
                && libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, settings.as_ptr()) == 0
        }
    }
    let pool = Pool::builder().workers(1).build().unwrap();
    let task = pool.spawn(change, ());
    until("it is stopped", || task.worker_pid().is_some_and(|pid| state(pid) == Some('T'))).await;
    task.abort();
    assert!(soon(task).await.unwrap_err().is_cancelled());

    let in_ours = Pool::builder().workers(1).process_group(false).build().unwrap();
    assert!(soon(in_ours.spawn(change, ())).await.unwrap());
    std::fs::write(dir.join("done"), "").unwrap();
}
