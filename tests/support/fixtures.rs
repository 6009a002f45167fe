//! Programs that tests have built for them: the packages below `tests/fixtures/`.
//!
//! They depend on this crate as any program would, and need nothing that building this crate has
//! not downloaded already: its `Cargo.lock` is theirs. All are built into one directory, so that
//! their dependencies are built once for each profile.

use nix::fcntl::{Flock, FlockArg};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may run: only one that hangs takes this long.
const LIMIT: Duration = Duration::from_secs(60);

/// Builds all of the package with a profile (`dev` or `release`, as its manifest sets them up);
/// gives the directory in which its programs and libraries lie.
pub(crate) fn build(package: &str, profile: &str) -> PathBuf {
    cargo(package, |command| {
        command.args(["build", "--profile", profile]);
    })
    .join(if profile == "dev" { "debug" } else { profile })
}

/// Builds one program of the package `ways` with the compiler's flags given. They are for the
/// program alone: what it depends on is the same as for all others, and need not be built again.
pub(crate) fn build_with(program: &str, flags: &[&str]) -> PathBuf {
    let wrapper = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ways/nightly-flags");
    let target = cargo("ways", |command| {
        command.args(["rustc", "--bin", program]);
        if flags.iter().any(|flag| flag.starts_with("-Z")) {
            command.env("RUSTC_WORKSPACE_WRAPPER", wrapper);
        }
        command.arg("--").args(flags);
    });
    target.join("debug").join(program)
}

/// Runs cargo on a package; gives the directory that all are built into.
fn cargo(package: &str, arguments: impl FnOnce(&mut Command)) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("tests/fixtures").join(package);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fixtures");
    fs::create_dir_all(&target).unwrap();
    // Tests may run as processes of their own: one of them copies and builds at a time. (Where
    // different packages meet, cargo has locks.)
    let lock = File::create(target.join(format!(".{package}"))).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    fs::copy(root.join("Cargo.lock"), source.join("Cargo.lock")).unwrap();
    let mut command = Command::new(env!("CARGO"));
    command
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("CARGO_BUILD_TARGET") // it would be one more directory
        .env("CARGO_NET_OFFLINE", "true")
        .env("CARGO_TERM_QUIET", "true")
        .current_dir(&source)
        .stdin(Stdio::null());
    arguments(&mut command);
    let built = command.output().unwrap();
    assert!(
        built.status.success(),
        "{package} does not build:\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
    target
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// What it printed, if it ended well.
    pub(crate) fn printed(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.stdout
    }
}

/// Runs a program to its end; its standard input is empty.
pub(crate) fn run(program: &Path, args: &[&str]) -> Ran {
    finish(Command::new(program).args(args).stdin(Stdio::null()))
}

/// Runs a command to its end. Standard output and error are taken; the input is the caller's
/// choice.
pub(crate) fn finish(command: &mut Command) -> Ran {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait(child)
}

/// Waits for the end of a process whose output and error are pipes.
pub(crate) fn wait(mut child: Child) -> Ran {
    fn all_of(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let stdout = all_of(child.stdout.take().unwrap());
    let stderr = all_of(child.stderr.take().unwrap());
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!(
                "process {} did not end; it wrote\n{}\n{}",
                child.id(),
                stdout.join().unwrap(),
                stderr.join().unwrap()
            );
        }
        thread::sleep(Duration::from_millis(2));
    };
    Ran { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// A copy of a program in a directory of its own, to which anything may be done.
pub(crate) struct Copied {
    pub(crate) path: PathBuf,
    _directory: tempfile::TempDir,
}

/// Copies a program, below the directory for things built (where programs may be run from).
pub(crate) fn copy(program: &Path) -> Copied {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join(program.file_name().unwrap_or(OsStr::new("program")));
    // By a process of its own: while we write a program, a fork by another thread could keep it
    // open, and then it cannot be started.
    assert!(Command::new("cp").arg(program).arg(&path).status().unwrap().success());
    Copied { path, _directory: directory }
}

/// What `fixture-program tasks` prints.
pub(crate) const TASKS: &str = "\
main
function abab
async function 2
closure 9
another crate's 42
another crate's, for a type -3
in a worker true
out of memory true
out of memory false
by another crate 1102
";
