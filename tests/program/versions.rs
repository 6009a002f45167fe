//! Two versions of the crate in one program.

use crate::support::fixtures;

/// They share a section of the program, and its list of constructors: each must find its own there.
#[test]
fn two_versions_have_workers_of_their_own_side_by_side_and_one_within_the_other() {
    let program = fixtures::build("versions", "dev").join("fixture-versions");
    assert_eq!(
        fixtures::run(&program, &[]).printed(),
        "main\nworkers in common: 0\none within the other: true\n"
    );
}
