//! Whether fresh starts of this program can be workers, and what their processes are called.

use super::start::{MARKER, depth, linked};
use crate::error::{Error, Why};
use crate::process::{PeerFd, PeerSocket, find_program, fork, privileges, sys};
use crate::task;
use crate::wire::message::{self, Bad, Hello};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Workers within workers, at most. Each level may multiply the number of processes, so a task that
/// builds a pool and submits itself comes to an end here.
const DEPTH_MAX: u32 = 8;

/// What can be known before a fresh start of this program is made.
pub(crate) fn check_program() -> Result<(), Error> {
    check_host()?;
    check_privileges()?;
    // Rather now than when the first task needs a worker.
    find_program().map_err(|e| Error::spawn("finding the program", e))?;
    task::in_main_executable().map_err(|object| Error::from(Why::NotInProgram { object }))
}

/// Whether the calling thread could start this program as a worker, as far as its privileges go.
///
/// Another program that is started as a worker judges for itself.
pub(crate) fn check_privileges() -> Result<(), Error> {
    match privileges::raised() {
        Some(raised) => Err(Why::SetUid { reason: raised.to_string() }.into()),
        None => Ok(()),
    }
}

/// What can be known before any process is started, of whatever program.
pub(crate) fn check_host() -> Result<(), Error> {
    if !task::supported() || !linked() {
        return Err(Why::Unsupported.into());
    }
    fork::arm().map_err(|e| Error::spawn("arming the fork guard", e))?;
    if fork::is_forked_copy() {
        return Err(Why::Forked.into());
    }
    if std::env::var_os(MARKER).is_some() {
        return Err(Why::InsideWorker.into());
    }
    // No child can be owned without one: an older kernel, a sandbox.
    sys::pidfd_open(std::process::id()).map_err(|e| Error::spawn("opening a pidfd", e))?;
    if depth() >= DEPTH_MAX {
        return Err(Why::NestingTooDeep { limit: DEPTH_MAX }.into());
    }
    Ok(())
}

/// Whether this is the hello of a process that speaks our version of the protocol.
pub(crate) fn check_protocol(hello: &Hello) -> Result<(), Bad> {
    if hello.protocol != message::PROTOCOL {
        return Err(Bad(format!(
            "it speaks version {} of the protocol, not {}",
            hello.protocol,
            message::PROTOCOL
        )));
    }
    Ok(())
}

/// Whether this is the hello of a fresh start of this very program.
pub(crate) fn check_hello(hello: &Hello) -> Result<(), Bad> {
    check_protocol(hello)?;
    if hello.version != env!("CARGO_PKG_VERSION") {
        return Err(Bad(format!(
            "it has version {} of this crate, not {}",
            hello.version,
            env!("CARGO_PKG_VERSION")
        )));
    }
    if hello.fingerprint != Some(task::fingerprint()) {
        return Err(Bad("it is another build of this program: its task table is not ours".into()));
    }
    Ok(())
}

/// Accepts the application's end of a lifeline, which came with a hello.
pub(crate) fn check_lifeline(fd: PeerFd) -> Result<PeerSocket, Bad> {
    let lifeline = PeerSocket::accept(fd)
        .map_err(|_| Bad("a lifeline that is not a Unix stream socket".into()))?;
    // Nothing is ever read from it.
    let _ = sys::refuse_descriptors(lifeline.as_fd());
    Ok(lifeline)
}

/// What the program was started as, without its directory: the name of its processes, unless
/// another is given.
pub(crate) fn program_name() -> String {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(|path| path.file_name());
    name.map_or_else(|| "procpool".into(), |name| name.to_string_lossy().into_owned())
}
