//! How those who use a channel's end wait until its sockets can be read or written, and until it is
//! their turn.
//!
//! Each with as few system calls as it can: a thread without a limit waits in the call itself, and
//! a task reads only when the runtime knows that there is something.

use crate::error::sync::{Error, Why};
use crate::park::park_until;
use crate::process::PeerSocket;
use crate::process::sys::{self, Patience};
use crate::reactor::readiness::{watch, watch_readable};
use crate::wire::frame::BODY_MAX_DEFAULT;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime;
use tokio::sync::{Mutex, MutexGuard};

#[derive(Clone, Copy)]
pub(super) enum Way {
    In,
    Out,
}

pub(super) trait Waits: Sync {
    /// The longest frame that may be begun, in bytes: one that does not wait cannot finish it.
    const FRAME_MAX: usize = BODY_MAX_DEFAULT;

    /// Waits until nobody else goes this way.
    fn turn<'a, T: Send>(
        &self,
        way: Way,
        side: &'a Mutex<T>,
    ) -> impl Future<Output = Result<MutexGuard<'a, T>, Error>> + Send;

    /// Receives what there is, at least a byte. 0: the other end is closed.
    fn recv(
        &self,
        socket: &Arc<PeerSocket>,
        watched: &mut Option<Watched>,
        space: &mut [u8],
    ) -> impl Future<Output = Result<usize, Error>> + Send;

    /// Sends what there is room for, at least a byte.
    fn send(
        &self,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
    ) -> impl Future<Output = Result<usize, Error>> + Send;
}

/// What a call on the socket gave. `None`: nothing at the moment.
///
/// Descriptors that have come with it are dropped: no end of ours sends any.
fn received(result: io::Result<sys::Received>) -> Option<usize> {
    match result {
        Ok(received) => Some(received.bytes),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        // The other end was closed with something of ours unread.
        Err(_) => Some(0),
    }
}

fn sent(result: io::Result<usize>) -> Result<Option<usize>, Error> {
    match result {
        Ok(len) => Ok(Some(len)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(_) => Err(Why::Closed.into()),
    }
}

// ---- in a runtime

pub(super) struct InRuntime;

/// A socket that one runtime watches for something to read, as long as nobody reads it in another.
pub(super) struct Watched {
    runtime: runtime::Id,
    readiness: AsyncFd<Arc<PeerSocket>>,
}

pub(super) fn not_watched(error: io::Error) -> Error {
    Why::Memory { step: "watching the socket of a channel", source: error }.into()
}

impl Watched {
    /// By this runtime from now on.
    fn here<'a>(
        place: &'a mut Option<Self>,
        socket: &Arc<PeerSocket>,
    ) -> io::Result<&'a AsyncFd<Arc<PeerSocket>>> {
        let runtime = runtime::Handle::try_current().map_err(io::Error::other)?.id();
        let watched = match place.take().filter(|watched| watched.runtime == runtime) {
            Some(watched) => watched,
            None => Self { runtime, readiness: watch_readable(Arc::clone(socket))? },
        };
        Ok(&place.insert(watched).readiness)
    }
}

impl Waits for InRuntime {
    async fn turn<'a, T: Send>(
        &self,
        _: Way,
        side: &'a Mutex<T>,
    ) -> Result<MutexGuard<'a, T>, Error> {
        Ok(side.lock().await)
    }

    async fn recv(
        &self,
        socket: &Arc<PeerSocket>,
        watched: &mut Option<Watched>,
        space: &mut [u8],
    ) -> Result<usize, Error> {
        let readiness = Watched::here(watched, socket).map_err(not_watched)?;
        loop {
            let mut ready = readiness.readable().await.map_err(not_watched)?;
            let received = received(sys::recv_with_fds(socket.as_fd(), space));
            // Less than there was space for is all there was (only descriptors cut it, and no end
            // of ours sends any): the next call need not look. What has come meanwhile
            // is known to the runtime (`clear_ready` clears only what it knew
            // before), and so is the end.
            if received.is_none_or(|len| len < space.len()) {
                ready.clear_ready();
            }
            if let Some(len) = received {
                return Ok(len);
            }
        }
    }

    async fn send(&self, socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Error> {
        if let Some(len) = sent(sys::send(socket, bytes))? {
            return Ok(len);
        }
        // Only now, and not longer: whoever is watched for room is woken by each item that the
        // other end takes.
        runtime::Handle::try_current().map_err(io::Error::other).map_err(not_watched)?;
        let readiness = watch(socket, Interest::WRITABLE).map_err(not_watched)?;
        loop {
            let mut ready = readiness.writable().await.map_err(not_watched)?;
            match sent(sys::send(socket, bytes))? {
                Some(len) => return Ok(len),
                None => ready.clear_ready(),
            }
        }
    }
}

// ---- on a thread

/// By blocking it, until then.
pub(super) struct OnThread(pub(super) Option<Instant>);

impl OnThread {
    /// Whether the call itself waits: it can, where it need not end before anything happens.
    fn patience(&self) -> Patience {
        if self.0.is_none() { Patience::Waits } else { Patience::None }
    }

    fn until(&self, socket: BorrowedFd<'_>, wanted: PollFlags) -> Result<(), Error> {
        loop {
            let left = self.0.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Why::TimedOut.into());
            }
            // Rounded up: not before its time.
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut [PollFd::new(socket, wanted)], timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => {
                    return Err(Why::Memory {
                        step: "waiting for the socket of a channel",
                        source: errno.into(),
                    }
                    .into());
                }
            }
        }
    }
}

impl Waits for OnThread {
    async fn turn<'a, T: Send>(
        &self,
        _: Way,
        side: &'a Mutex<T>,
    ) -> Result<MutexGuard<'a, T>, Error> {
        if let Ok(side) = side.try_lock() {
            return Ok(side);
        }
        match self.0 {
            None => Ok(side.lock().await),
            Some(until) => park_until(side.lock(), Some(until)).ok_or_else(|| Why::TimedOut.into()),
        }
    }

    async fn recv(
        &self,
        socket: &Arc<PeerSocket>,
        _: &mut Option<Watched>,
        space: &mut [u8],
    ) -> Result<usize, Error> {
        loop {
            match received(sys::recv_with_fds_or_wait(socket.as_fd(), space, self.patience())) {
                Some(len) => return Ok(len),
                None => self.until(socket.as_fd(), PollFlags::POLLIN)?,
            }
        }
    }

    async fn send(&self, socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Error> {
        loop {
            match sent(sys::send_or_wait(socket, bytes, self.patience()))? {
                Some(len) => return Ok(len),
                None => self.until(socket, PollFlags::POLLOUT)?,
            }
        }
    }
}

// ---- not at all

pub(super) struct AtOnce;

/// A frame of so many bytes goes whole or not at all when nobody waits: so many, and somewhat less
/// than a page more, the kernel takes as one piece (`UNIX_SKB_FRAGS_SZ` in Linux's
/// `unix_stream_sendmsg`), if there is twice as much room in a socket's buffer (212,992 bytes by
/// default). Of what is longer a part may go, and the rest find no room.
pub(super) const WHOLE_MAX: usize = 32 << 10;

impl Waits for AtOnce {
    const FRAME_MAX: usize = WHOLE_MAX;

    /// Somebody who waits has come before.
    async fn turn<'a, T: Send>(
        &self,
        way: Way,
        side: &'a Mutex<T>,
    ) -> Result<MutexGuard<'a, T>, Error> {
        side.try_lock().map_err(|_| match way {
            Way::In => Why::Empty.into(),
            Way::Out => Why::Full.into(),
        })
    }

    async fn recv(
        &self,
        socket: &Arc<PeerSocket>,
        _: &mut Option<Watched>,
        space: &mut [u8],
    ) -> Result<usize, Error> {
        received(sys::recv_with_fds(socket.as_fd(), space)).ok_or_else(|| Why::Empty.into())
    }

    async fn send(&self, socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Error> {
        sent(sys::send(socket, bytes))?.ok_or_else(|| Why::Full.into())
    }
}
