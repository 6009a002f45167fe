//! Programs whose privileges are not those of the process that starts them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::fixtures;
use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Anybody but root.
const SOMEBODY: u32 = 65534;

fn set_uid_program() -> fixtures::Copied {
    let program = fixtures::copy(&fixtures::build("program", "dev").join("fixture-program"));
    // In this order: a change of owner takes the bit away.
    chown(&program.path, Some(SOMEBODY), None).unwrap();
    fs::set_permissions(&program.path, Permissions::from_mode(0o4755)).unwrap();
    program
}

#[test]
#[ignore = "needs root"]
fn needs_root_a_set_uid_program_builds_no_pool() {
    let program = set_uid_program();
    let printed = fixtures::run(&program.path, &["build"]).printed();
    assert!(printed.starts_with("main\nSetUid: "), "{printed}");
}

/// Otherwise any user who may start the program could, as its parent, have it run any of its tasks
/// with its privileges.
#[test]
#[ignore = "needs root"]
fn needs_root_a_set_uid_program_refuses_to_be_a_worker_and_runs_nothing() {
    let program = set_uid_program();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(&program.path);
    command.arg("build").env("PROCPOOL_WORKER", env!("CARGO_PKG_VERSION"));
    for stdin in [OwnedFd::from(theirs).into(), Stdio::null()] {
        assert_refused(&fixtures::finish(command.stdin(stdin)), "raised privileges");
    }
}

/// The process says why it is no worker, and `main` has not run.
fn assert_refused(ran: &fixtures::Ran, why: &str) {
    assert_eq!((ran.status.code(), &*ran.stdout), (Some(126), ""), "{ran:#?}");
    assert!(ran.stderr.contains("cannot be one") && ran.stderr.contains(why), "{ran:#?}");
}

/// A process that was started by `exec` with unequal ids has `AT_SECURE`, whatever its parent has.
#[test]
#[ignore = "needs root"]
fn needs_root_a_program_that_lowers_its_effective_user_or_group_is_told_before_a_start() {
    let program = fixtures::build("program", "dev").join("fixture-program");
    for which in ["user", "group"] {
        let printed = fixtures::run(&program, &["lowered", which]).printed();
        let lines: Vec<_> = printed.lines().collect();
        assert_eq!((lines.len(), lines[0]), (4, "main"), "{printed}");
        for (line, what) in lines[1..].iter().zip(["worker", "process", "pool"]) {
            let told = line.strip_prefix(&format!("{what} SetUid: "));
            let named = format!("effective {which} (65534) is not its real {which} (0)");
            assert!(told.is_some_and(|told| told.contains(&named)), "{printed}");
        }
    }
}

/// The parent cannot see it: its own ids are equal, and only an `exec` raises them again. So does
/// a program with file capabilities, and a transition of a security module.
#[test]
#[ignore = "needs root"]
fn needs_root_a_start_that_raises_privileges_runs_no_main_and_its_error_says_why() {
    let program = fixtures::copy(&fixtures::build("program", "dev").join("fixture-program"));
    fs::set_permissions(&program.path, Permissions::from_mode(0o4755)).unwrap();
    // Another user than root can reach it.
    let directory = program.path.parent().unwrap();
    fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    let printed = fixtures::run(&program.path, &["lowered", "for good"]).printed();
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[3]), (4, "main", "pool built"), "{printed}");
    for (line, what) in lines[1..3].iter().zip(["worker", "process"]) {
        let told = line.strip_prefix(&format!("{what} DiedAtStart: "));
        assert!(told.is_some_and(|told| told.contains("raised privileges")), "{printed}");
    }
}

/// What SECURITY.md says of `PR_SET_DUMPABLE`, and of a worker of another user. Root may open
/// everything, so the application of the first test is somebody else's.
#[test]
#[ignore = "needs root"]
fn needs_root_an_application_that_is_not_dumpable_is_closed_to_workers_of_its_user() {
    let program = fixtures::copy(&fixtures::build("program", "dev").join("fixture-program"));
    // Another user than root can reach it.
    let directory = program.path.parent().unwrap();
    fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    let look = |user: u32, dumpable: &str| {
        let mut command = Command::new(&program.path);
        let printed = fixtures::finish(command.args(["memory", dumpable]).uid(user).gid(user));
        let printed = printed.printed();
        let lines: Vec<_> = printed.lines().map(str::to_owned).collect();
        assert_eq!((lines.len(), &*lines[0]), (3, "main"), "{printed}");
        [lines[1].clone(), lines[2].clone()]
    };
    const CLOSED: &str = "mem PermissionDenied, fd PermissionDenied";
    // Of the memory Yama may decide.
    let [open, _] = look(SOMEBODY, "1");
    assert!(open.ends_with("fd opened"), "{open}");
    assert_eq!(look(SOMEBODY, "0"), [CLOSED.to_owned(), format!("as nobody: {CLOSED}")]);
    let [of_root, of_nobody] = look(0, "1");
    assert!(of_root.ends_with("fd opened"), "{of_root}");
    assert_eq!([&*of_nobody, &*look(0, "0")[1]], [&*format!("as nobody: {CLOSED}"); 2]);
}

/// A helper that starts programs as another user and keeps the environment (`sudo -E`) makes the
/// caller the parent of a process that has more rights than the caller, without `AT_SECURE`.
#[test]
#[ignore = "needs root"]
fn needs_root_a_parent_of_another_user_or_group_gets_no_worker() {
    let program = fixtures::build("program", "dev").join("fixture-program");
    for (which, user, group) in [("user", SOMEBODY, 0), ("group", 0, SOMEBODY)] {
        // The socket is made by a thread with the ids of the caller, as far as the kernel knows.
        let (_ours, theirs) = std::thread::spawn(move || {
            lower_this_thread(user, group);
            UnixStream::pair().unwrap()
        })
        .join()
        .unwrap();
        let mut command = Command::new(&program);
        command.arg("build").env("PROCPOOL_WORKER", env!("CARGO_PKG_VERSION"));
        let ran = fixtures::finish(command.stdin(OwnedFd::from(theirs)));
        assert_refused(&ran, &format!("another {which}"));
    }
}

/// Sets the effective ids of the calling thread alone; the functions of the C library set those of
/// all threads.
#[expect(unsafe_code, reason = "system calls for one thread")]
fn lower_this_thread(user: u32, group: u32) {
    use nix::libc::{SYS_setresgid, SYS_setresuid, syscall};
    // SAFETY: both calls take integers.
    let done =
        unsafe { [syscall(SYS_setresgid, -1, group, -1), syscall(SYS_setresuid, -1, user, -1)] };
    assert_eq!(done, [0, 0]);
}
