//! A descriptor that a tokio runtime watches.

use std::io;
use std::os::fd::AsRawFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches for something to read: [`watch`].
pub(crate) fn watch_readable<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    watch(inner, Interest::READABLE)
}

/// Watches for what is of interest. `inner` must own its descriptor, or share in it, and keep it.
///
/// # Panics
///
/// In a runtime without I/O, as tokio's own types do.
#[expect(
    deprecated,
    reason = "the successor is unsafe and younger than the tokio we ask for; what we give in owns its descriptor, which is all it wants"
)]
pub(crate) fn watch<T: AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, interest)
}
