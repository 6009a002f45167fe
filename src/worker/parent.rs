//! Whose child this process is.

use crate::process::{fork, sys};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

static PARENT: OnceLock<u32> = OnceLock::new();

/// Called once, at the start, when it is known that the parent made our socket.
pub(super) fn remember(pid: u32) {
    let _ = PARENT.set(pid);
}

/// The process that started this one, whether it still exists or not: 0 if it is outside our PID
/// namespace. `None` in a process that was not started as a child by this crate, in a detached one,
/// and in a forked copy.
pub(crate) fn parent_pid() -> Option<u32> {
    if fork::is_forked_copy() || super::start::is_detached() {
        return None;
    }
    PARENT.get().copied()
}

/// A descriptor of the parent that is readable once it has ended; `None` if it has.
///
/// A child whose parent has ended is given to one of that one's ancestors, which existed at the
/// same time and so has another number (getppid(2), and PR_SET_CHILD_SUBREAPER in prctl(2)). So
/// while the numbers agree the parent exists, and nobody else can have its number.
pub(crate) fn parent_pidfd(pid: u32) -> io::Result<Option<OwnedFd>> {
    let is_parent = || std::os::unix::process::parent_id() == pid;
    if !is_parent() {
        return Ok(None);
    }
    match sys::pidfd_open(pid) {
        Ok(pidfd) => Ok(is_parent().then_some(pidfd)),
        Err(_) if !is_parent() => Ok(None),
        Err(error) => Err(error),
    }
}
