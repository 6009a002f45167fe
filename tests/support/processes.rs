//! Processes as the kernel tells of them, and tasks that many tests use.

use super::{until, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// A process, known by its number and its start time: told apart from a later one with the same
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Proc {
    pub(crate) pid: u32,
    started: u64,
}

/// What proc_pid_stat(5) says after the name: the state is the first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    Some(stat.rsplit(") ").next()?.split(' ').map(str::to_owned).collect())
}

impl Proc {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, started: stat(pid)?[19].parse().ok()? })
    }

    /// Neither running nor a zombie.
    pub(crate) fn is_gone(self) -> bool {
        Self::of(self.pid) != Some(self)
    }

    /// Gone, or a zombie whose parent (which may be anybody) has yet to reap it.
    pub(crate) fn has_ended(self) -> bool {
        self.is_gone() || matches!(state(self.pid), Some('Z' | 'X') | None)
    }
}

/// Waits until processes are gone, each reaped.
pub(crate) async fn gone(processes: &[Proc]) {
    until("processes are gone", || processes.iter().all(|process| process.is_gone())).await;
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

/// How many threads this process has, beside those that start processes: one is there for good, and
/// a start that takes long on a busy machine may have got it company.
pub(crate) fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc");
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| !name.starts_with("procpool-launch")).count()
}

/// Open descriptors and [`threads`] of this process.
pub(crate) fn holdings() -> (usize, usize) {
    (std::fs::read_dir("/proc/self/fd").expect("/proc").count(), threads())
}

/// Memory of this process that is in RAM, in bytes.
pub(crate) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches("kB").trim().parse::<usize>().expect("a number") << 10
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
pub(crate) fn seen(log: &Path) -> Vec<Proc> {
    pids(log).into_iter().map(|pid| Proc::of(pid).unwrap()).collect()
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
