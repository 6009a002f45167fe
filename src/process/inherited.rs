//! Workers that this process has from the program that ran in it before.
//!
//! A process that executes a program in its own place (execve(2)) keeps its children. Its workers
//! die with the exec, since it closes their lifelines, but nobody who knew of them is left: each
//! would stay a zombie for as long as the process lives, and a service that restarts itself so would
//! gather them. Nothing of the old program's can tell the new one: variables and descriptors that
//! survive an exec would reach every other child as well. So the new program looks at the children
//! that it has before its `main`, all of which are of the old one, and reaps those that are workers.
//! Children that are anything else are left alone, zombies too: the old program may have handed
//! them to the new one.
//!
//! A worker is known by the signals that it catches (proc_pid_status(5), `SigCgt`), which are there
//! to be read until a process is reaped: of the real-time signals, [`mark`] alone.

use super::child::Orphan;
use super::sys::{self, Reap, Waited};
use nix::libc::{self, c_int};

/// The signal that a worker catches from its first steps on. It is the one by which the worker
/// learns of its parent's death.
pub(crate) fn mark() -> c_int {
    libc::SIGRTMAX() - 1
}

/// Reaps workers that were inherited, or leaves them to the thread that reaps orphans. To be called
/// before `main`, when this process has started no children.
///
/// `is_before_main` is asked only if there are children. It must be false in a shared object that
/// is loaded later: the children may then be workers of a pool of the program.
pub(crate) fn reap(is_before_main: impl FnOnce() -> bool) {
    // One system call in nearly every program.
    if matches!(sys::wait_any(Reap::Peek), Ok(Waited::NoChild) | Err(_)) || !is_before_main() {
        return;
    }
    let own = std::process::id();
    // Without this file (`CONFIG_PROC_CHILDREN`) they stay.
    let children = std::fs::read_to_string(format!("/proc/self/task/{own}/children"));
    for pid in children.iter().flat_map(|pids| pids.split_whitespace()) {
        if is_worker(pid)
            && let Ok(pid) = pid.parse()
            && let Some(orphan) = Orphan::inherited(pid)
        {
            orphan.reap_or_hand_over();
        }
    }
}

/// Whether it is a worker, as far as the signals tell that it catches.
pub(crate) fn is_worker(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(catches_the_mark_alone)
}

/// Whether this is the mask of a worker: bit 0 is signal 1.
fn catches_the_mark_alone(mask: u64) -> bool {
    // Some runtimes catch every signal there is.
    let real_time = u64::MAX << (libc::SIGRTMIN() - 1);
    mask & real_time == 1 << (mark() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_known_by_one_real_time_signal() {
        let mark = 1 << (mark() - 1);
        let faults = 1 << (libc::SIGSEGV - 1) | 1 << (libc::SIGABRT - 1);
        assert!(catches_the_mark_alone(mark) && catches_the_mark_alone(mark | faults));
        for other in [0, faults, mark >> 1, u64::MAX, mark | mark << 1] {
            assert!(!catches_the_mark_alone(other), "{other:x}");
        }
    }
}
