//! Tests that run in a process of their own: those that change or count what concerns the whole
//! process.

use nix::sys::signal::{SigHandler, Signal};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Set in a process that [`own_process`] has started: the directory in which it tells what it
/// finds.
const OWN_PROCESS: &str = "PROCPOOL_TEST_DIR";

/// Returns what the harness calls a test of the file `caller` is in: `life::own_process_dropped` in
/// `tests/process/life.rs`; its bare name where the file is a whole program, as
/// `tests/program_allocator.rs` is.
pub(crate) fn path_of(test: &str, caller: &Location) -> String {
    let file = Path::new(caller.file()).with_extension("");
    let is_program = file.parent().is_some_and(|dir| dir.ends_with("tests"));
    match file.file_name().and_then(|name| name.to_str()) {
        Some(module) if !is_program => format!("{module}::{test}"),
        _ => test.to_owned(),
    }
}

/// Returns a command that runs one ignored test of this program in a process of its own, with `dir`
/// to tell what it finds. `test` stands in the file of the caller. The process dies of the signals that applications are ended by, even if whoever has
/// started us lets us ignore them, as nohup(1) does, and a shell with what it runs in the
/// background.
#[allow(unsafe_code, reason = "something is done between fork and exec")]
#[track_caller]
pub(crate) fn own_process(program: &Path, test: &str, dir: &Path) -> Command {
    let by_default = || {
        for ends in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
            // SAFETY: no handler of ours is set; signal(2) is async-signal-safe.
            unsafe { nix::sys::signal::signal(ends, SigHandler::SigDfl) }?;
        }
        Ok(())
    };
    let test = path_of(test, Location::caller());
    let mut command = Command::new(program);
    command.args([&test, "--exact", "--ignored", "--nocapture"]).env(OWN_PROCESS, dir);
    // SAFETY: it does what is async-signal-safe.
    unsafe { command.pre_exec(by_default) };
    command
}

/// Runs one ignored test of this program in a process of its own, and fails when it fails or does
/// not run.
#[track_caller]
pub(crate) fn in_own_process(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    passes(test, command);
}

/// The same in a process of a user who may not do everything: limits that count a user's processes
/// are not for one who may.
#[track_caller]
pub(crate) fn in_own_process_of_nobody(test: &str) {
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    let user = std::fs::metadata("/proc/self").unwrap().uid();
    if user == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    passes(test, command);
}

/// The same where /dev/shm is full. Needs the right to mount.
#[track_caller]
pub(crate) fn in_own_process_with_a_full_dev_shm(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let own = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    let fill = "mount -t tmpfs -o size=4096 none /dev/shm && head -c 4096 /dev/zero > /dev/shm/full && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", fill]).arg(own.get_program()).args(own.get_args());
    command.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    passes(test, command);
}

/// Runs a command of [`own_process`] to its end.
pub(crate) fn passes(test: &str, mut command: Command) {
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{test}: {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// In a process of [`own_process`] its directory. A test that changes what concerns the whole
/// process runs nowhere else.
pub(crate) fn own_dir() -> Option<PathBuf> {
    std::env::var_os(OWN_PROCESS).map(PathBuf::from)
}
