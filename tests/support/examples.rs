//! Finds the built examples.

use std::path::PathBuf;

/// The program of an example. `cargo test` and `cargo nextest run` build all of them before they
/// run any test, but no variable says where: `target/PROFILE/examples`, beside the `deps` that this
/// test is in.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its program");
    let profile =
        test.parent().and_then(|deps| deps.parent()).expect("it is in target/PROFILE/deps");
    let program = profile.join("examples").join(name);
    assert!(program.exists(), "{} is not built: `cargo build --example {name}`", program.display());
    program
}
