//! Constructors of other languages: a worker begins before `main`, but not before they have run;
//! and what they leave for the exit runs at its exit.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::fixtures;
use std::path::Path;
use std::process::{Command, Stdio};

fn run_with_log(package: &str) -> String {
    let program = fixtures::build(package, "dev").join(format!("fixture-{package}"));
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    fixtures::finish(Command::new(program).env("FIXTURE_LOG", log).stdin(Stdio::null())).printed()
}

/// `marked` tells that there is one on either side of ours: who sees the worker's variable ran
/// before it.
#[test]
fn constructors_in_c_run_once_before_the_first_task_and_exit_handlers_at_shutdown() {
    assert_eq!(
        run_with_log("constructors"),
        "here: early Seen { runs: 1, marked: 0, arguments: 1 }, late Seen { runs: 1, marked: 0, arguments: 1 }\n\
         in a worker: early Seen { runs: 1, marked: 1, arguments: 1 }, late Seen { runs: 1, marked: 0, arguments: 1 }\n\
         later the same: true\n\
         before its end: \"\"\n\
         at its end: exit handler, by the worker true\n\
         at its end: destructor, by the worker true\n"
    );
}

#[test]
#[ignore = "needs a C++ compiler"]
fn needs_cxx_statics_and_the_standard_library_are_ready_and_destroyed_at_shutdown() {
    assert_eq!(
        run_with_log("cxx"),
        "greeting: a string that is too long for the place within a std::string\n\
         caught: yes\n\
         formatted: 1.5 42\n\
         nothing: missing\n\
         by a worker's std::cout\n\
         worker: destructor of 3 entries\n"
    );
}

/// Miri calls constructors, too. One in a library must not be in the way of the tests of the crates
/// that depend on it.
#[test]
#[ignore = "needs Miri"]
fn needs_miri_the_tests_of_a_crate_that_depends_on_this_one_run_under_miri() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("tests/fixtures/program");
    std::fs::copy(root.join("Cargo.lock"), source.join("Cargo.lock")).unwrap();
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo", "miri", "test", "--lib", "-p", "fixture-parts"])
        .current_dir(source)
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("miri"))
        .env("CARGO_NET_OFFLINE", "true")
        .env("CARGO_TERM_QUIET", "true")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Only the compiler's time, so there is no limit of ours.
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{stdout}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
