//! Programs of several crates, and what is special about a worker's being the program itself.

use crate::support::fixtures;

#[test]
fn tasks_of_other_crates_run() {
    let program = fixtures::build("program", "dev").join("fixture-program");
    assert_eq!(fixtures::run(&program, &["tasks"]).printed(), fixtures::TASKS);
}

#[test]
fn a_program_that_submits_nothing_has_workers_all_the_same() {
    let programs = fixtures::build("program", "dev");
    // It has tasks, in code that never runs; and none at all.
    assert_eq!(fixtures::run(&programs.join("never"), &[]).printed(), "ended\n");
    assert_eq!(fixtures::run(&programs.join("none"), &[]).printed(), "ended\n");
}

#[test]
fn a_workers_own_children_are_no_workers_and_see_nothing_of_it() {
    let program = fixtures::build("program", "dev").join("fixture-program");
    // The second `main` is that of the program which the task has started.
    assert_eq!(
        fixtures::run(&program, &["children"]).printed(),
        "main\nmain\n[]\nfalse\n0 variables\n"
    );
}

#[test]
fn workers_start_when_the_programs_file_has_been_replaced_or_removed() {
    let program = fixtures::copy(&fixtures::build("program", "dev").join("fixture-program"));
    assert_eq!(
        fixtures::run(&program.path, &["replaced"]).printed(),
        "main\n\
         as it was: a new worker true\n\
         replaced: a new worker true\n\
         removed: a new worker true\n\
         its directory removed: a new worker true\n"
    );
}
