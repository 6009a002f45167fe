//! How a worker dies with its application, however that dies.
//!
//! The worker makes a second, silent socket pair. On its own end it asks for a signal whenever
//! something happens there (`O_ASYNC`, fcntl(2)), and that the signal be SIGKILL (`F_SETSIG`) for
//! its process group (`F_SETOWN`). The other end goes to the application with the hello. When the
//! application ends, the kernel closes that end, and thereby kills the group: workers that spin or
//! are stopped, too, with nobody left alive to do it.
//!
//! `PR_SET_PDEATHSIG` (prctl(2)) backs it up. It follows the *thread* that started us, which is why
//! that is the supervisor's. With a group of our own it is not SIGKILL, which would kill us before the
//! lifeline has killed the group, but a real-time signal whose handler kills the group.

use super::raw;
use crate::process::inherited;
use nix::libc;
use std::io;
use std::os::fd::OwnedFd;

/// What must stay open for the lifeline to hold.
#[derive(Debug)]
pub(super) struct Lifeline {
    _ours: OwnedFd,
}

/// Arms it; gives our end, to be kept, and the application's. `group`: this process leads a process
/// group, or is about to be made the leader of one.
pub(super) fn arm(group: bool) -> io::Result<(Lifeline, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    raw::kill_when_ready(&ours, group)?;
    Ok((Lifeline { _ours: ours }, theirs))
}

/// Whether this process leads a group of its own.
pub(super) fn leads_group() -> bool {
    nix::unistd::getpgrp() == nix::unistd::getpid()
}

/// Dies when the thread that started us ends.
pub(super) fn arm_parent_death(group: bool) -> io::Result<()> {
    // In both cases, since it is also what a worker is known by (`process/inherited.rs`).
    raw::kill_on(inherited::mark(), group)?;
    raw::set_parent_death_signal(if group { inherited::mark() } else { libc::SIGKILL })
}

/// Goes on from now on, whatever becomes of the application.
pub(super) fn let_go(lifeline: Lifeline) -> io::Result<()> {
    raw::set_parent_death_signal(0)?;
    // Without our end there is nothing at which something could happen.
    drop(lifeline);
    Ok(())
}
