//! A descriptor that a tokio runtime watches.

use crate::lock::Lock;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};

/// So many runtimes are known to have I/O, at most: the last ones.
const KNOWN_MAX: usize = 64;

static KNOWN: Lock<VecDeque<Id>> = Lock::new(VecDeque::new());

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
    let watched = AsyncFd::with_interest(inner, interest);
    this_one_has_io();
    watched
}

/// A timer that becomes readable after this time: real time, whatever the runtime's clock says.
///
/// # Panics
///
/// As [`watch`].
pub(crate) fn after(limit: Duration) -> io::Result<AsyncFd<OwnedFd>> {
    // Zero would never fire, and the kernel's seconds have a sign.
    let limit = limit.clamp(Duration::from_nanos(1), Duration::from_secs(u32::MAX.into()));
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
    timer.set(Expiration::OneShot(limit.into()), TimerSetTimeFlags::empty())?;
    watch_readable(timer.into())
}

/// The runtime in which this is called has watched something.
fn this_one_has_io() {
    let Ok(runtime) = Handle::try_current() else { return };
    let mut known = KNOWN.lock();
    if !known.contains(&runtime.id()) {
        known.truncate(KNOWN_MAX - 1);
        known.push_front(runtime.id());
    }
}

/// Whether a runtime is known to have I/O. Tokio tells it only by a panic, so it is known of those
/// in which something of ours has been watched that needs it: a pool has been built there, or a
/// channel used.
pub(crate) fn has_io(runtime: Id) -> bool {
    KNOWN.lock().contains(&runtime)
}
