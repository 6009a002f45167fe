//! What the tests of processes share: facts about processes as the kernel tells them, and tests
//! that run in a process of their own.

#![allow(dead_code, reason = "each test file uses a part of it")]

use nix::sys::signal::{SigHandler, Signal, kill};
use nix::unistd::Pid;
use std::fmt::Display;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A limit that only a hang reaches.
pub(crate) const FUSE: Duration = Duration::from_secs(30);

/// Set in a process that [`own_process`] has started: the directory in which it tells what it
/// finds.
const OWN_PROCESS: &str = "PROCPOOL_TEST_DIR";

// ---- waiting

/// Awaits something that must come.
pub(crate) async fn soon<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(FUSE, future.into_future()).await.expect("it never came")
}

/// Waits for a fact on this thread.
pub(crate) fn wait_until(what: impl Display, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(start.elapsed() < FUSE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for a fact within a runtime.
pub(crate) async fn until(what: impl Display, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(start.elapsed() < FUSE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

// ---- processes

/// A process, known by its number and its start time: a number that was given again does not
/// deceive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) pid: u32,
    started: u64,
}

/// What proc_pid_stat(5) says after the name: the state is the first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    Some(stat.rsplit(") ").next()?.split(' ').map(str::to_owned).collect())
}

impl Seen {
    /// The process that has this number now.
    pub(crate) fn now(pid: u32) -> Option<Self> {
        Some(Self { pid, started: stat(pid)?[19].parse().ok()? })
    }

    /// Neither running nor a zombie.
    pub(crate) fn is_gone(self) -> bool {
        Self::now(self.pid) != Some(self)
    }

    /// Gone, or a zombie whose parent (which may be anybody) has yet to reap it.
    pub(crate) fn has_ended(self) -> bool {
        self.is_gone() || matches!(state(self.pid), Some('Z' | 'X') | None)
    }
}

/// The parent of a process, which may be a zombie.
pub(crate) fn parent(of: u32) -> Option<u32> {
    stat(of)?[1].parse().ok()
}

/// The state letter of a process: `None` when there is no such process, `Z` a zombie, `T` stopped.
pub(crate) fn state(pid: u32) -> Option<char> {
    stat(pid)?[0].chars().next()
}

/// The children of a process, zombies included.
pub(crate) fn children(of: u32) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat[1] == of.to_string())).collect()
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Stops a process, and waits until it stands still.
pub(crate) fn stop(pid: u32) {
    signal(pid, Signal::SIGSTOP);
    wait_until("a process stands still", || state(pid) == Some('T'));
}

/// What the descriptors of a process stand for, by number.
pub(crate) fn descriptors(pid: u32) -> Vec<(u32, String)> {
    let dir = Path::new("/proc").join(pid.to_string()).join("fd");
    let entries = std::fs::read_dir(dir).unwrap().filter_map(Result::ok);
    let mut all: Vec<_> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        })
        .collect();
    all.sort();
    all
}

// ---- tasks that many tests use

pub(crate) fn pid() -> u32 {
    std::process::id()
}

/// Ends the process by a signal.
pub(crate) fn die(signal: i32) {
    nix::sys::signal::raise(Signal::try_from(signal).unwrap()).unwrap();
}

/// Says that it has begun, and waits until `gate` exists.
pub(crate) fn wait_for(log: PathBuf, gate: PathBuf) -> u32 {
    note(&log, pid());
    wait_until("the gate opens", || gate.exists());
    pid()
}

/// Says that it has begun, and never ends.
pub(crate) fn hang(log: PathBuf) {
    note(&log, pid());
    loop {
        std::thread::park();
    }
}

/// Says that it has begun, and never ends, nor makes a system call.
pub(crate) fn spin(log: PathBuf) {
    note(&log, pid());
    loop {
        std::hint::spin_loop();
    }
}

/// Starts a program that does nothing, and ends with its group.
#[expect(clippy::zombie_processes, reason = "its parent is killed before")]
pub(crate) fn start_sleeping() -> u32 {
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    let comm = format!("/proc/{}/comm", child.id());
    wait_until("it has begun", || std::fs::read_to_string(&comm).unwrap() == "sleep\n");
    child.id()
}

/// Appends a line to a log, whole.
pub(crate) fn note(log: &Path, line: impl Display) {
    let mut file = std::fs::File::options().create(true).append(true).open(log).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// The lines of a log.
pub(crate) fn lines(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// The process numbers in a log.
pub(crate) fn pids(log: &Path) -> Vec<u32> {
    lines(log).iter().map(|line| line.parse().unwrap()).collect()
}

/// The processes in a log, which are there.
pub(crate) fn seen(log: &Path) -> Vec<Seen> {
    pids(log).into_iter().map(|pid| Seen::now(pid).unwrap()).collect()
}

// ---- tests in a process of their own

/// A command that runs one ignored test of this program in a process of its own, with `dir` to tell
/// what it finds. It dies of the signals that applications are ended by, even if whoever has
/// started us lets us ignore them, as nohup(1) does, and a shell with what it runs in the
/// background.
#[allow(unsafe_code, reason = "something is done between fork and exec")]
pub(crate) fn own_process(program: &Path, test: &str, dir: &Path) -> Command {
    let by_default = || {
        for ends in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
            // SAFETY: no handler of ours is set; signal(2) is async-signal-safe.
            unsafe { nix::sys::signal::signal(ends, SigHandler::SigDfl) }?;
        }
        Ok(())
    };
    let mut command = Command::new(program);
    command.args([test, "--exact", "--ignored", "--nocapture"]).env(OWN_PROCESS, dir);
    // SAFETY: it does what is async-signal-safe.
    unsafe { command.pre_exec(by_default) };
    command
}

/// Runs one ignored test of this program in a process of its own, and fails when it fails or does
/// not run.
pub(crate) fn in_own_process(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    passes(test, command);
}

/// The same in a process of a user who may not do everything: limits that count a user's processes
/// are not for one who may.
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

/// Kills a process that a test has started, when the test fails.
#[derive(Debug)]
pub(crate) struct KillOnDrop(pub(crate) Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
