//! A channel between exactly two processes: a pair of sockets for each direction, with nobody
//! between them.
//!
//! Each end begins as a shared object (`manager/objects/channel.rs`) that holds its two sockets, so
//! that it travels as every handle does. The first call takes them out; from then on the end is
//! this process's own, and cannot be sent away any more.

use super::channel_pipe::Pipe;
use super::channel_waits::{AtOnce, InRuntime, OnThread, not_watched};
use super::connection::Connection;
use super::handle::{Handle, kinds};
use super::manager::Manager;
use super::wait::park_on;
use crate::coop::take_unit;
use crate::error::SendError;
use crate::error::sync::{Error, Why};
use crate::lock::Lock;
use crate::manager::object::Part;
use crate::manager::objects::channel::{Ask, End};
use crate::manager::objects::code::Message;
use crate::park::refuse_in_async_context;
use crate::process::{PeerFd, fork};
use crate::reactor::readiness;
use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Makes a channel: two ends, each of which sends to the other and receives from it (Python's
/// `Pipe`). Either may be sent to another process, as an argument or in a result. (Inside a shared
/// object, too, if its manager has made the channel: [`Manager::channel`].)
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let (here, there) = procpool::sync::channel::<String>()?;
/// here.send("ping".into()).await?;
/// assert_eq!(there.recv().await?.as_deref(), Some("ping"));
/// there.send("pong".into()).await?;
/// drop(there);
/// assert_eq!(here.recv().await?.as_deref(), Some("pong"));
/// assert_eq!(here.recv().await?, None); // the other end is closed
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Memory`](crate::sync::ErrorKind::Memory), when a descriptor or the thread for what is sent away is not
/// to be had; [`Forked`](crate::sync::ErrorKind::Forked).
pub fn channel<T>() -> Result<(Channel<T>, Channel<T>), Error> {
    duplex()
}

/// As [`channel`], with a type of its own for each direction: the first end sends `A` and receives
/// `B`, the second the other way round.
///
/// # Errors
///
/// As `channel`.
pub fn duplex<A, B>() -> Result<(Channel<A, B>, Channel<B, A>), Error> {
    make(&home()?)
}

impl Manager {
    /// Makes a [channel](crate::sync::channel()) whose ends may also be put into this manager's objects.
    ///
    /// # Errors
    ///
    /// [`Memory`](crate::sync::ErrorKind::Memory), when a descriptor is not to be had;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn channel<T>(&self) -> Result<(Channel<T>, Channel<T>), Error> {
        self.duplex()
    }

    /// As [`channel`](Self::channel), with a type of its own for each direction.
    ///
    /// # Errors
    ///
    /// As `channel`.
    pub fn duplex<A, B>(&self) -> Result<(Channel<A, B>, Channel<B, A>), Error> {
        make(self.connection())
    }
}

fn make<A, B>(home: &Arc<Connection>) -> Result<(Channel<A, B>, Channel<B, A>), Error> {
    let pair =
        || UnixStream::pair().map_err(|e| Error::system("making the sockets of a channel", e));
    let ((from_a, to_b), (from_b, to_a)) = (pair()?, pair()?);
    let end = |receives: UnixStream, sends: UnixStream| {
        let end = || {
            let socket = |socket| Arc::new(PeerFd::refusing(socket));
            End::new(socket(receives), socket(sends))
        };
        Handle::create(home, kinds::CHANNEL, Part::WHOLE, None, || Box::new(end()))
    };
    Ok((Channel::new(end(from_b, to_b)?), Channel::new(end(from_a, to_a)?)))
}

/// Who keeps the ends that nobody has used yet: a manager of this process, as long as there are
/// any.
fn home() -> Result<Arc<Connection>, Error> {
    static HOME: Lock<Weak<Connection>> = Lock::new(Weak::new());
    if fork::is_forked_copy() {
        return Err(Why::Forked.into());
    }
    let mut home = HOME.lock();
    if let Some(connection) = home.upgrade() {
        return Ok(connection);
    }
    let connection = Connection::start()?;
    *home = Arc::downgrade(&connection);
    Ok(connection)
}

/// One end of a channel: made by [`channel`], sends `S` and receives `R`.
///
/// What is sent arrives in order, or not at all: the other process has it only when it takes it,
/// and what was on its way is lost with a process that dies. There is nobody between the two, so it
/// is quicker than a [`Queue`](crate::sync::Queue); it has room for some hundred KiB on the way, and
/// `send` waits while that is full.
///
/// The first call makes the end this process's own: after it, an attempt to send the end itself
/// away is an [`Encode`](crate::sync::ErrorKind::Encode) error there, and any other copy of it says
/// [`NotHeld`](crate::sync::ErrorKind::NotHeld). So there are never more than two.
///
/// The async methods need a tokio runtime with I/O enabled, any one; the `blocking_` ones need
/// none. Handles of shared objects do not travel through a channel.
///
/// # Drop
///
/// Closes the end. The other one receives what is on the way, and then `None`; sending to it is an
/// error.
pub struct Channel<S, R = S> {
    handle: Handle,
    pipe: OnceLock<Pipe>,
    /// Held to take the sockets: one does that, and the others have them then.
    taking: Lock<()>,
    marker: PhantomData<fn(S) -> R>,
}

impl<S, R> Channel<S, R> {
    fn new(handle: Handle) -> Self {
        Self { handle, pipe: OnceLock::new(), taking: Lock::new(()), marker: PhantomData }
    }

    fn pipe(&self) -> Result<&Pipe, Error> {
        if fork::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        if let Some(pipe) = self.pipe.get() {
            return Ok(pipe);
        }
        let _taking = self.taking.lock();
        if let Some(pipe) = self.pipe.get() {
            return Ok(pipe);
        }
        // Another process has it, if there is none.
        let receives = self.handle.descriptor(Ask::Take.body())?.ok_or(Why::NotHeld)?;
        let sends = self.handle.descriptor(Ask::Sends.body())?.ok_or(Why::NotHeld)?;
        Ok(self.pipe.get_or_init(|| Pipe::new(receives.into(), sends.into())))
    }
}

#[cfg(test)]
impl<S, R> Channel<S, R> {
    /// As it would arrive where it was sent.
    pub(super) fn copy_of(end: &Self) -> Self {
        Self::new(end.handle.clone())
    }
}

/// Blocks the thread until the future is ready, which it is at once where nobody else uses the same
/// end: it waits within its poll.
#[track_caller]
fn by_thread<T>(future: impl Future<Output = T>) -> T {
    refuse_in_async_context();
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => park_on(future),
    }
}

impl<S: Serialize, R> Channel<S, R> {
    /// Sends an item to the other end; waits while there is no room on the way.
    ///
    /// # Errors
    ///
    /// Each gives the item back: [`Closed`](crate::sync::ErrorKind::Closed), when the other end is closed
    /// or its process has ended; [`Encode`](crate::sync::ErrorKind::Encode) and
    /// [`TooLarge`](crate::sync::ErrorKind::TooLarge) (1 GiB);
    /// [`NotHeld`](crate::sync::ErrorKind::NotHeld), when this end is another process's.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the item was sent whole, not at all, or in part: then the rest goes with the next
    /// one that is sent.
    pub async fn send(&self, item: S) -> Result<(), SendError<S>> {
        take_unit().await;
        let result = async { self.pipe()?.send(&item, &InRuntime).await }.await;
        result.map_err(|error| SendError::new(item, error))
    }

    /// Sends an item, if there is room on the way.
    ///
    /// # Errors
    ///
    /// [`Full`](crate::sync::ErrorKind::Full), and those of [`send`](Self::send); here
    /// [`TooLarge`](crate::sync::ErrorKind::TooLarge) is more than 32 KiB, which could be sent only
    /// in parts.
    pub fn try_send(&self, item: S) -> Result<(), SendError<S>> {
        let sent = self.pipe().and_then(|pipe| park_on(pipe.send(&item, &AtOnce)));
        sent.map_err(|error| SendError::new(item, error))
    }

    /// As [`send`](Self::send), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `send`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_send(&self, item: S) -> Result<(), SendError<S>> {
        let result = by_thread(async { self.pipe()?.send(&item, &OnThread(None)).await });
        result.map_err(|error| SendError::new(item, error))
    }
}

impl<S, R: DeserializeOwned> Channel<S, R> {
    /// Receives the next item; waits while there is none. `None`: the other end is closed, or its
    /// process has ended, and nothing is left on the way.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::sync::ErrorKind::Decode), when the item is not an `R` (the next call goes on
    /// behind it), or the other process has ended in the midst of sending it;
    /// [`NotHeld`](crate::sync::ErrorKind::NotHeld), when this end is another process's.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn recv(&self) -> Result<Option<R>, Error> {
        take_unit().await;
        self.pipe()?.recv(&InRuntime).await
    }

    /// Receives the next item, if it has come whole. `None` as in [`recv`](Self::recv).
    ///
    /// # Errors
    ///
    /// [`Empty`](crate::sync::ErrorKind::Empty), and those of `recv`.
    pub fn try_recv(&self) -> Result<Option<R>, Error> {
        park_on(self.pipe()?.recv(&AtOnce))
    }

    /// As [`recv`](Self::recv); waits at most `limit`, in real time. An item that has arrived when
    /// the limit is over is received.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `recv`.
    ///
    /// # Cancel safety
    ///
    /// As `recv`.
    pub async fn recv_timeout(&self, limit: Duration) -> Result<Option<R>, Error> {
        let mut timer = None;
        {
            let mut receiving = pin!(self.recv());
            let received = poll_fn(|cx| {
                if let Poll::Ready(received) = receiving.as_mut().poll(cx) {
                    return Poll::Ready(Some(received));
                }
                let timer = match &timer {
                    Some(timer) => timer,
                    None => match readiness::after(limit) {
                        Ok(started) => timer.insert(started),
                        Err(error) => return Poll::Ready(Some(Err(not_watched(error)))),
                    },
                };
                timer.poll_read_ready(cx).map(|_| None)
            });
            if let Some(received) = received.await {
                return received;
            }
        }
        match self.try_recv() {
            Err(error) if error.is_empty() => Err(Why::TimedOut.into()),
            received => received,
        }
    }

    /// As [`recv`](Self::recv), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `recv`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_recv(&self) -> Result<Option<R>, Error> {
        by_thread(async { self.pipe()?.recv(&OnThread(None)).await })
    }

    /// As [`blocking_recv`](Self::blocking_recv); waits at most so long.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `recv`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_recv_timeout(&self, limit: Duration) -> Result<Option<R>, Error> {
        by_thread(async { self.pipe()?.recv(&OnThread(Instant::now().checked_add(limit))).await })
    }
}

impl<S, R> Serialize for Channel<S, R> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        if self.pipe.get().is_some() {
            return Err(ser::Error::custom(
                "the end of a channel that has been used here cannot be sent away",
            ));
        }
        self.handle.serialize(serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for Channel<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Handle::deserialize(kinds::CHANNEL, deserializer).map(Self::new).map_err(de::Error::custom)
    }
}

impl<S, R> fmt::Debug for Channel<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("handle", &self.handle)
            .field("used", &self.pipe.get().is_some())
            .finish()
    }
}
