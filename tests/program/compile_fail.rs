//! What is not a task does not compile, with a message that says what to do; and what is one
//! infers.
//!
//! Each source in `compile_fail/` is a program of a scratch package that is built, not checked: the
//! assertion that a task captures nothing fires only where code is generated.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::{env, fs};

#[test]
fn what_the_documentation_shows_infers() {
    let (built, output) = build("passes");
    assert!(built, "{output}");
}

#[test]
fn capture() {
    for program in ["capture", "function_pointer"] {
        fails(program, &["a task cannot capture variables: pass them as arguments"]);
    }
    fails("capture_predicate", &["a predicate cannot capture variables: it runs in the worker"]);
    fails(
        "capture_owned",
        &[
            "captures variables, which are not there in a worker process",
            "pass what it needs as arguments",
        ],
    );
    // The compiler's own advice is `move`, which leads to the messages above.
    fails("capture_borrowed", &["borrow"]);
}

/// Sound only if the worker may create the task's value, and a token can be a proof about the
/// application's process.
#[test]
fn captured_tokens_without_a_size() {
    // By their alignment some are seen wherever they are used.
    fails("capture_aligned", &["a task cannot capture variables, not even one of no size"]);
    // The checked form refuses all of them, and a function that only its maker can name.
    fails("checked_token", &["attempt to use a non-constant value in a constant"]);
    fails("checked_private_function", &["cannot call non-const function"]);
    fails("checked_predicate", &["attempt to use a non-constant value in a constant"]);
}

#[test]
fn reference_argument() {
    fails(
        "reference_argument_slice",
        &["`&[u32]` cannot be sent to a worker", "`Vec<T>` instead of `&[T]`"],
    );
    // Some references could be decoded, if only the bytes stayed; there the compiler names nothing
    // but a trait.
    for program in [
        "reference_argument",
        "reference_argument_async",
        "reference_argument_closure",
        "reference_argument_init",
        "reference_result",
    ] {
        fails(program, &["MustBeOwnedLikeString` is not general enough", "str` must implement"]);
    }
}

/// The message names the type that does not travel.
#[test]
fn result_that_is_not_serialize() {
    for (program, culprit) in [
        ("result_not_serialize", "`Result<u64, std::io::Error>`"),
        ("result_not_serialize_async", "impl Future<Output = "),
        ("result_nested", "`Result<Out, String>`"),
    ] {
        fails(
            program,
            &[culprit, "cannot come back from a worker", "return `Result<T, procpool::Failure>`"],
        );
    }
}

/// The message names the type that does not travel.
#[test]
fn argument_that_is_not_serialize() {
    fails(
        "argument_not_serialize",
        &["`Image` cannot be sent to a worker as an argument", "derive serde's `Serialize`"],
    );
}

#[test]
fn what_is_no_function_of_owned_values() {
    fails(
        "method",
        &["`&Shape` cannot be sent", "a method of `&self` within a closure: `|s: Shape| s.area()`"],
    );
    fails("function_parameter", &["is `impl Task<(u64,), M>`, not `impl Fn(u64)`"]);
    fails("called_function", &["it is handed over itself"]);
    fails("shared_memory", &["instead of `Arc<Mutex<T>>` and channels", "`Manager::mutex`"]);
}

/// The compiler's own words, which the guide explains.
#[test]
fn argument_without_a_type() {
    fails("argument_without_type", &["found `!`"]);
}

#[test]
fn wrong_arity() {
    for program in ["wrong_arity", "wrong_type"] {
        fails(
            program,
            &[
                "does not fit a task whose arguments are `(u64, u64)`",
                "a tuple of just as many owned values",
            ],
        );
    }
    fails("nine_arguments", &["it takes at most 8 arguments"]);
}

#[test]
fn init_that_returns_no_result() {
    fails(
        "init_not_result",
        &["is not a function that can set up a worker process", "it must return `Result<T, E>`"],
    );
}

#[track_caller]
fn fails(program: &str, words: &[&str]) {
    let (built, output) = build(program);
    assert!(!built, "{program} compiles");
    for word in words {
        assert!(output.contains(word), "no {word:?} for {program} in:\n{output}");
    }
}

/// Builds one of the programs; says whether that succeeded, and what the compiler said.
fn build(program: &str) -> (bool, String) {
    static SCRATCH: LazyLock<PathBuf> = LazyLock::new(scratch_package);

    let output = Command::new(env!("CARGO"))
        .current_dir(&*SCRATCH)
        .args(["build", "--offline", "--quiet", "--bin", program])
        .args(["--target-dir", "target"])
        .env("CARGO_TERM_COLOR", "never")
        .output()
        .expect("cargo starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text)
}

/// A package that has each source as a program, and the same versions of the dependencies as this
/// one.
fn scratch_package() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compile_fail");
    fs::create_dir_all(&scratch).expect("the directory is ours");

    let mut manifest = format!(
        "[package]\nname = \"scratch\"\nedition = \"2024\"\n\n[workspace]\n\n[profile.dev]\ndebug = false\n\n\
         [dependencies]\nprocpool = {{ path = {here:?} }}\n"
    );
    let sources = fs::read_dir(here.join("tests/compile_fail")).expect("the sources are there");
    for source in sources {
        let source = source.expect("the directory can be read").path();
        let name = source.file_stem().expect("a file has a name");
        manifest += &format!("\n[[bin]]\nname = {name:?}\npath = {source:?}\n");
    }
    put(&scratch.join("Cargo.toml"), manifest.as_bytes());
    // Without it cargo would choose versions anew, among which may be some that are not on this
    // machine.
    if let Ok(lock) = fs::read(here.join("Cargo.lock")) {
        put(&scratch.join("Cargo.lock"), &lock);
    }
    scratch
}

/// All at once: under a runner that gives each test a process of its own, others read it meanwhile.
fn put(path: &Path, bytes: &[u8]) {
    let new = path.with_extension(std::process::id().to_string());
    fs::write(&new, bytes).expect("the directory is ours");
    fs::rename(new, path).expect("the directory is ours");
}
