//! How a fresh start of the program becomes a daemon of the system: a session of its own without a
//! terminal, adopted by init (daemon(7), *SysV daemons*).
//!
//! It happens in the constructor, where the process has one thread. In the application, which has
//! many, nothing but an `exec` may follow a fork.

#![expect(unsafe_code, reason = "a fork, in a process of one thread")]

use super::{raw, start};
use nix::unistd::{ForkResult, fork, setsid};
use std::os::fd::{AsRawFd, OwnedFd};

/// Goes on in a grandchild; the process that the application has started ends here, with exit code
/// 0.
///
/// Descriptors that the application did not close at the exec are closed: whoever waits for the end
/// of a pipe of the caller's must not wait for a daemon.
pub(super) fn detach(socket: &OwnedFd) -> Result<(), String> {
    // Nobody's terminal. It cannot fail: the application has not made this process the leader of a
    // group.
    setsid().map_err(|e| format!("making a session: {e}"))?;
    // A session's leader could still get a terminal, by opening one; a child of it cannot.
    // SAFETY: the constructors that ran before have, as a rule, started no thread, so no lock is
    // held in the copy that nobody will open. The parent goes on to `_exit` and does nothing
    // else.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => raw::exit_now(),
        Ok(ForkResult::Child) => {}
        Err(errno) => return Err(format!("forking a second time: {errno}")),
    }
    start::set_detached();
    close_inherited(socket).map_err(|e| format!("closing what was inherited: {e}"))
}

/// All but the standard streams and the socket.
fn close_inherited(socket: &OwnedFd) -> std::io::Result<()> {
    let keep = socket.as_raw_fd();
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        // The directory's own is among them, and closed by then.
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for number in numbers.into_iter().filter(|number| *number > 2 && *number != keep) {
        let _ = nix::unistd::close(number);
    }
    Ok(())
}
