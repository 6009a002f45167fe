//! The standard streams of this process, for its children.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::memory::create_memfd;
use crate::error::text::CUT;

/// So much of a failed start's standard error is kept, in bytes.
const TAIL: u64 = 4096;

/// A copy of our standard input.
pub(crate) fn stdin() -> io::Result<OwnedFd> {
    copy_of(io::stdin().as_fd())
}

/// A copy of our standard error.
pub(crate) fn stderr() -> io::Result<OwnedFd> {
    copy_of(io::stderr().as_fd())
}

/// Where nothing comes from, and everything goes lost.
pub(crate) fn null() -> io::Result<OwnedFd> {
    File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from)
}

/// Of nothing if we have none: where the application has closed it, something else has got its
/// number, perhaps the very socket of a worker. That is told by its being closed at an exec, as
/// nearly everything is, and a standard stream never.
fn copy_of(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = fcntl(stream, FcntlArg::F_GETFD).unwrap_or(libc::FD_CLOEXEC);
    let own = if flags & libc::FD_CLOEXEC == 0 {
        stream.try_clone_to_owned()
    } else {
        Err(io::ErrorKind::NotFound.into())
    };
    own.or_else(|_| null())
}

/// A file in memory: a child's standard error until it has said hello, and perhaps all that is ever
/// learnt of a failed start.
pub(crate) fn early_stderr() -> io::Result<File> {
    create_memfd(c"procpool-stderr").map(File::from)
}

/// Returns the last of what was written to it, marked if something stands before that.
pub(crate) fn tail(file: &File) -> String {
    let len = file.metadata().map_or(0, |meta| meta.len());
    let mut bytes = vec![0; len.min(TAIL) as usize];
    match file.read_exact_at(&mut bytes, len.saturating_sub(TAIL)) {
        Ok(()) if len > TAIL => format!("{CUT}{}", String::from_utf8_lossy(&bytes)),
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}
