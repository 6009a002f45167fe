//! A program with more privileges than who starts it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/fixtures.rs"]
mod fixtures;

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
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
    assert!(printed.starts_with("main\nSecure: "), "{printed}");
}

/// Else whoever may start it could, as its parent, have any of its tasks run with its privileges.
#[test]
#[ignore = "needs root"]
fn needs_root_a_set_uid_program_is_nobodys_worker() {
    let program = set_uid_program();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(&program.path);
    command.arg("build").env("PROCPOOL_WORKER", env!("CARGO_PKG_VERSION"));
    for stdin in [OwnedFd::from(theirs).into(), Stdio::null()] {
        let printed = fixtures::finish(command.stdin(stdin)).printed();
        assert!(printed.starts_with("main\nSecure: "), "{printed}");
    }
}
