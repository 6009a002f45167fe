//! Programs that are built in other ways: without unwinding, and all at once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/fixtures.rs"]
mod fixtures;

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
