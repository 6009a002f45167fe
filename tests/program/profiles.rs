//! Programs that are built in other ways: without unwinding, all at once, static, instrumented.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::fixtures;
use std::process::{Command, Stdio};

#[test]
fn a_panic_that_aborts_is_told_with_message_and_place_and_the_next_task_runs() {
    let program = fixtures::build("abort", "dev").join("fixture-abort");
    let panicked = |n: u8| format!("Panicked \"n is {n}\" signal Some(6)\nits place true\n");
    let expected = [
        panicked(3), // a function
        "next 2\n".into(),
        panicked(4), // an async function
        "next 4\n".into(),
        "before 6\n".into(),
        panicked(5),
        panicked(6), // a thread that a task made
        panicked(8), // beside another
        "its neighbour true\nnext 10\n".into(),
        "InitFailed true\nInitFailed true\n".into(),
        "ended by Some(6)\n".into(),
        panicked(8), // a process of its own
    ];
    assert_eq!(fixtures::run(&program, &[]).printed(), expected.concat());
}

#[test]
#[ignore = "needs a build with link-time optimisation"]
fn needs_lto_tasks_are_found_when_the_program_is_optimised_as_a_whole() {
    let programs = fixtures::build("lto", "release");
    assert_eq!(fixtures::run(&programs.join("lto-program"), &["tasks"]).printed(), fixtures::TASKS);
    assert_eq!(fixtures::run(&programs.join("lto-never"), &[]).printed(), "ended\n");
}

/// Whether an ELF program for 64 bits has a header of the type PT_INTERP (elf(5)).
fn asks_for_a_loader(program: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| {
        program[at..at + bytes]
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let (offset, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|header| number(offset + header * size, 4) == 3)
}

#[test]
#[ignore = "needs the static C library"]
fn needs_static_libc_a_program_without_shared_libraries_has_workers() {
    let program = fixtures::build_with("static-program", &["-Ctarget-feature=+crt-static"]);
    assert!(!asks_for_a_loader(&std::fs::read(&program).unwrap()));
    assert!(
        asks_for_a_loader(&std::fs::read(std::env::current_exe().unwrap()).unwrap()),
        "as this one does"
    );
    assert_eq!(fixtures::run(&program, &["tasks"]).printed(), fixtures::TASKS);
    assert_eq!(
        fixtures::run(&program, &["children"]).printed(),
        "main\nmain\n[]\nfalse\n0 variables\n"
    );
}

/// The runtime of the instrumentation writes a profile in an exit handler.
#[test]
#[ignore = "needs a compiler with the runtime of instrumented programs"]
fn needs_profiler_workers_that_exit_leave_a_coverage_profile_and_those_that_are_killed_do_not() {
    let program = fixtures::build_with("coverage-program", &["-Cinstrument-coverage"]);
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    command.env("LLVM_PROFILE_FILE", directory.path().join("%p")).stdin(Stdio::null());
    let printed = fixtures::finish(&mut command).printed();
    let left: Vec<_> = printed
        .lines()
        .map(|line| {
            let (what, pid) = line.split_once(' ').unwrap();
            (what, directory.path().join(pid).metadata().is_ok_and(|profile| profile.len() > 0))
        })
        .collect();
    assert_eq!(
        left,
        [
            ("application", true),
            ("shut-down", true),
            ("exited", true),
            ("aborted", false),
            ("dropped", false)
        ]
    );
    assert_eq!(directory.path().read_dir().unwrap().count(), 3);
}

/// What it finds ends the worker, as everywhere; its report comes, also where a handler of ours is
/// first. And it finds nothing wrong with a worker itself: neither what it reads, nor what it
/// leaves unfreed.
#[test]
#[ignore = "needs a compiler with the address sanitizer"]
fn needs_asan_what_the_sanitizer_finds_costs_the_task_and_workers_are_clean() {
    let program = fixtures::build_with("asan-program", &["-Zsanitizer=address"]);
    let mut command = Command::new(program);
    // Whatever the user's options are; and to find the names of functions would take long.
    let ran = fixtures::finish(command.env("ASAN_OPTIONS", "symbolize=0").stdin(Stdio::null()));
    let died = |what: &str, overflow: bool| {
        format!("{what}: WorkerDied, code Some(1), signal None, stack overflow {overflow}\n")
    };
    let expected = [
        "within: 7\nasync: text!\n".to_owned(),
        died("beyond", false),
        died("segfault", false),
        died("overflow", true),
        "after all: 7\n".to_owned(),
    ];
    assert_eq!(ran.stdout, expected.concat(), "{}", ran.stderr);
    let reports: Vec<_> = ran
        .stderr
        .lines()
        .filter_map(|line| line.split_once("ERROR: ")?.1.split(' ').nth(1))
        .collect();
    assert_eq!(reports, ["heap-buffer-overflow", "SEGV", "stack-overflow"], "{}", ran.stderr);
    assert!(ran.status.success(), "{ran:#?}");
}
