//! A channel between exactly two processes: a pair of sockets, with nobody between them.
//!
//! Each end begins as a shared object (`manager/objects/channel.rs`) that holds its socket, so that it travels as every
//! handle does. The first call takes the socket out; from then on the end is this process's own, and cannot be sent away
//! any more.

use super::connection::Connection;
use super::handle::{Handle, kinds};
use super::manager::Manager;
use crate::error::{Error, SendError, Why};
use crate::manager::object::Part;
use crate::manager::objects::channel::{Ask, End};
use crate::manager::objects::code::Message;
use crate::process::{fork, sys};
use crate::wire::frame::{self, BODY_MAX_DEFAULT, FrameBuffer};
use crate::wire::value::{self, EncodeError, names};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::io::Interest;

/// Makes a channel: two ends, each of which sends to the other and receives from it (Python's `Pipe`). Either may be sent to
/// another process, as an argument or in a result. (Inside a shared object, too, if its manager has made the channel:
/// [`Manager::channel`].)
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::Error> {
/// let (here, there) = procpool::channel::<String>()?;
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
/// [`Spawn`](crate::ErrorKind::Spawn), when a descriptor or the thread for what is sent away is not to be had;
/// [`Forked`](crate::ErrorKind::Forked).
pub fn channel<T>() -> Result<(Channel<T>, Channel<T>), Error> {
    duplex()
}

/// The two ends of a channel: the first sends `A` and receives `B`, the second the other way round.
pub type Ends<A, B> = (Channel<A, B>, Channel<B, A>);

/// As [`channel`], with a type of its own for each direction.
///
/// # Errors
///
/// As `channel`.
pub fn duplex<A, B>() -> Result<Ends<A, B>, Error> {
    make(&home()?)
}

impl Manager {
    /// Makes a [channel](crate::channel()) whose ends may also be put into this manager's objects.
    ///
    /// # Errors
    ///
    /// [`Spawn`](crate::ErrorKind::Spawn), when a descriptor is not to be had;
    /// [`ManagerClosed`](crate::ErrorKind::ManagerClosed).
    pub fn channel<T>(&self) -> Result<(Channel<T>, Channel<T>), Error> {
        self.duplex()
    }

    /// As [`channel`](Self::channel), with a type of its own for each direction.
    ///
    /// # Errors
    ///
    /// As `channel`.
    pub fn duplex<A, B>(&self) -> Result<Ends<A, B>, Error> {
        make(self.connection())
    }
}

fn make<A, B>(home: &Arc<Connection>) -> Result<Ends<A, B>, Error> {
    let (one, two) = UnixStream::pair().map_err(|e| Error::spawn("making the sockets of a channel", e))?;
    let end = |socket: UnixStream| Handle::create(home, kinds::CHANNEL, Part::WHOLE, None, || Box::new(End::new(Arc::new(socket.into()))));
    Ok((Channel::new(end(one)?), Channel::new(end(two)?)))
}

/// Who keeps the ends that nobody has used yet: a manager of this process, as long as there are any.
fn home() -> Result<Arc<Connection>, Error> {
    static HOME: Mutex<Weak<Connection>> = Mutex::new(Weak::new());
    if fork::is_forked_copy() {
        return Err(Why::Forked.into());
    }
    let mut home = HOME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(connection) = home.upgrade() {
        return Ok(connection);
    }
    let connection = Connection::start()?;
    *home = Arc::downgrade(&connection);
    Ok(connection)
}

/// One end of a channel: made by [`channel`], sends `S` and receives `R`.
///
/// What is sent arrives in order, or not at all: the other process has it only when it takes it, and what was on its way is
/// lost with a process that dies. There is nobody between the two, so it is quicker than a [`Queue`](crate::Queue); it has
/// room for some hundred KiB on the way, and `send` waits while that is full.
///
/// The first call makes the end this process's own: after it, an attempt to send the end itself away is an
/// [`Encode`](crate::ErrorKind::Encode) error there, and any other copy of it says [`NotHeld`](crate::ErrorKind::NotHeld). So
/// there are never more than two.
///
/// The async methods need a tokio runtime with I/O enabled, any one; the `blocking_` ones need none. Handles of shared
/// objects do not travel through a channel.
///
/// # Drop
///
/// Closes the end. The other one receives what is on the way, and then `None`; sending to it is an error.
pub struct Channel<S, R = S> {
    handle: Handle,
    pipe: OnceLock<Pipe>,
    marker: PhantomData<fn(S) -> R>,
}

/// The socket, once it is this process's own.
struct Pipe {
    socket: OwnedFd,
    sending: tokio::sync::Mutex<Outgoing>,
    receiving: tokio::sync::Mutex<FrameBuffer>,
    /// Where it is watched: of which runtime, and by what. Held only to look.
    watched: Mutex<Option<(tokio::runtime::Id, Arc<tokio::net::UnixStream>)>>,
}

/// What has been encoded and not yet written: the rest of one item, when its sender was dropped midway.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
}

#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

/// How a caller waits until the socket can be read or written again.
trait Waits {
    /// The longest frame that may be begun, in bytes: one that does not wait cannot finish it.
    const FRAME_MAX: usize = BODY_MAX_DEFAULT;

    fn until(&self, pipe: &Pipe, way: Way) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A frame of so many bytes goes whole or not at all when nobody waits: the kernel takes up to half of a socket's buffer
/// (212,992 bytes by default) as one piece (Linux, `unix_stream_sendmsg`).
const WHOLE_MAX: usize = 64 << 10;

/// In the runtime.
struct InRuntime;
/// By blocking the thread, until then.
struct OnThread(Option<Instant>);
/// Not at all.
struct AtOnce;

impl Waits for InRuntime {
    async fn until(&self, pipe: &Pipe, way: Way) -> Result<(), Error> {
        let failed = |e| Error::from(Why::Memory { step: "watching the socket of a channel", source: e });
        let runtime = tokio::runtime::Handle::try_current().map_err(|e| failed(io::Error::other(e)))?;
        let watched = pipe.watched.lock().unwrap_or_else(PoisonError::into_inner).as_ref().filter(|(id, _)| *id == runtime.id()).cloned();
        let watched = match watched {
            Some((_, watched)) => watched,
            None => {
                let new = Arc::new(pipe.watch().map_err(failed)?);
                let old = pipe.watched.lock().unwrap_or_else(PoisonError::into_inner).replace((runtime.id(), Arc::clone(&new)));
                drop(old); // it is taken out of its runtime without the lock
                new
            }
        };
        let (interest, wanted) = match way {
            Way::In => (Interest::READABLE, PollFlags::POLLIN),
            Way::Out => (Interest::WRITABLE, PollFlags::POLLOUT),
        };
        watched.ready(interest).await.map_err(failed)?;
        // It may be known from before: then it is looked at, and if there is nothing, the runtime is told so.
        let mut fds = [PollFd::new(pipe.socket.as_fd(), wanted)];
        if poll(&mut fds, PollTimeout::ZERO) == Ok(0) {
            let _ = watched.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        Ok(())
    }
}

impl Waits for OnThread {
    async fn until(&self, pipe: &Pipe, way: Way) -> Result<(), Error> {
        let wanted = match way {
            Way::In => PollFlags::POLLIN,
            Way::Out => PollFlags::POLLOUT,
        };
        loop {
            let left = self.0.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Why::TimedOut.into());
            }
            // Rounded up: not before its time.
            let timeout =
                left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX));
            let mut fds = [PollFd::new(pipe.socket.as_fd(), wanted)];
            match poll(&mut fds, timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Why::Memory { step: "waiting for the socket of a channel", source: errno.into() }.into()),
            }
        }
    }
}

impl Waits for AtOnce {
    const FRAME_MAX: usize = WHOLE_MAX;

    async fn until(&self, _: &Pipe, way: Way) -> Result<(), Error> {
        Err(match way {
            Way::In => Why::Empty,
            Way::Out => Why::Full,
        }
        .into())
    }
}

impl Pipe {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            sending: tokio::sync::Mutex::default(),
            receiving: tokio::sync::Mutex::new(FrameBuffer::new(BODY_MAX_DEFAULT)),
            watched: Mutex::default(),
        }
    }

    /// The socket once more, as this runtime watches it.
    fn watch(&self) -> io::Result<tokio::net::UnixStream> {
        let socket = UnixStream::from(self.socket.try_clone()?);
        socket.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(socket).inspect(|_| super::readiness::this_one_has_io())
    }

    /// Writes what is to be written. An error for want of time or room leaves the rest for the next.
    async fn flush(&self, out: &mut Outgoing, waits: &impl Waits) -> Result<(), Error> {
        while out.written < out.bytes.len() {
            match sys::send(self.socket.as_fd(), &out.bytes[out.written..]) {
                Ok(len) => out.written += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => waits.until(self, Way::Out).await?,
                Err(_) => {
                    *out = Outgoing::default();
                    return Err(Why::Closed.into());
                }
            }
        }
        out.written = 0;
        out.bytes.clear();
        out.bytes.shrink_to(64 << 10);
        Ok(())
    }

    async fn send<T: Serialize, W: Waits>(&self, item: &T, waits: &W) -> Result<(), Error> {
        let mut out = self.sending.lock().await;
        // The rest of one whose sender gave up midway, or this would come into the midst of it.
        self.flush(&mut out, waits).await?;
        let Outgoing { bytes, .. } = &mut *out;
        let start = frame::begin(bytes);
        let (encoded, things) = names::collecting(|| value::encode(item, bytes, start + W::FRAME_MAX));
        let encoded = encoded.map_err(|error| match error {
            EncodeError::TooLarge { .. } => Why::TooLarge { limit: W::FRAME_MAX },
            error => Why::Encode(error.to_string()),
        });
        let refused = match encoded {
            Ok(()) if things.is_empty() => None,
            Ok(()) => Some(Why::Encode("a handle of a shared object does not travel through a channel".into())),
            Err(why) => Some(why),
        };
        if let Some(why) = refused {
            bytes.clear();
            return Err(why.into());
        }
        frame::finish(bytes, start);
        let begun = Begun(&mut out);
        let result = self.flush(begun.0, waits).await;
        drop(begun);
        result
    }

    async fn recv<T: DeserializeOwned>(&self, waits: &impl Waits) -> Result<Option<T>, Error> {
        let mut buffer = self.receiving.lock().await;
        loop {
            let frame = buffer.next_frame().map_err(|too_long| Error::from(Why::Decode(too_long.to_string())))?;
            if let Some(range) = frame {
                let decoded = value::decode(buffer.bytes(range));
                return decoded.map(Some).map_err(|error| Why::Decode(error.to_string()).into());
            }
            match sys::recv(self.socket.as_fd(), buffer.space()) {
                Ok(0) => return end_of(&buffer),
                Ok(len) => buffer.filled(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => waits.until(self, Way::In).await?,
                // The other end was closed with something of ours unread.
                Err(_) => return end_of(&buffer),
            }
        }
    }
}

/// What has not begun when its sender gives up is not sent later; what has is finished by the next.
struct Begun<'a>(&'a mut Outgoing);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.0.written == 0 {
            self.0.bytes.clear();
        }
    }
}

fn end_of<T>(buffer: &FrameBuffer) -> Result<Option<T>, Error> {
    match buffer.rest() {
        0 => Ok(None),
        rest => Err(Why::Decode(format!("the other end was closed in the midst of an item, after {rest} bytes of it")).into()),
    }
}

impl<S, R> Channel<S, R> {
    fn new(handle: Handle) -> Self {
        Self { handle, pipe: OnceLock::new(), marker: PhantomData }
    }

    fn pipe(&self) -> Result<&Pipe, Error> {
        if fork::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        if let Some(pipe) = self.pipe.get() {
            return Ok(pipe);
        }
        match self.handle.descriptor(Ask::Take.body())? {
            Some(socket) => Ok(self.pipe.get_or_init(|| Pipe::new(socket))),
            // Another thread was quicker, or another process has it.
            None => self.pipe.get().ok_or_else(|| Why::NotHeld.into()),
        }
    }
}

#[cfg(test)]
impl<S, R> Channel<S, R> {
    /// As it would arrive where it was sent.
    pub(super) fn copy_of(end: &Self) -> Self {
        Self::new(end.handle.clone())
    }
}

fn by_thread<T>(future: impl Future<Output = T>) -> T {
    super::wait::block_on(future)
}

impl<S: Serialize, R> Channel<S, R> {
    /// Sends an item to the other end; waits while there is no room on the way.
    ///
    /// # Errors
    ///
    /// Each gives the item back: [`Closed`](crate::ErrorKind::Closed), when the other end is closed or its process has ended;
    /// [`Encode`](crate::ErrorKind::Encode) and [`TooLarge`](crate::ErrorKind::TooLarge) (1 GiB);
    /// [`NotHeld`](crate::ErrorKind::NotHeld), when this end is another process's.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the item was sent whole, not at all, or in part: then the rest goes with the next one that is sent.
    pub async fn send(&self, item: S) -> Result<(), SendError<S>> {
        let result = async { self.pipe()?.send(&item, &InRuntime).await }.await;
        result.map_err(|error| SendError::new(item, error))
    }

    /// Sends an item, if there is room on the way.
    ///
    /// # Errors
    ///
    /// [`Full`](crate::ErrorKind::Full), and those of [`send`](Self::send); here [`TooLarge`](crate::ErrorKind::TooLarge) is
    /// more than 64 KiB, which could be sent only in parts.
    pub fn try_send(&self, item: S) -> Result<(), SendError<S>> {
        let sent = self.pipe().and_then(|pipe| {
            // Somebody who waits for room has come before.
            futures::FutureExt::now_or_never(pipe.send(&item, &AtOnce)).unwrap_or_else(|| Err(Why::Full.into()))
        });
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
    pub fn blocking_send(&self, item: S) -> Result<(), SendError<S>> {
        let result = by_thread(async { self.pipe()?.send(&item, &OnThread(None)).await });
        result.map_err(|error| SendError::new(item, error))
    }
}

impl<S, R: DeserializeOwned> Channel<S, R> {
    /// Receives the next item; waits while there is none. `None`: the other end is closed, or its process has ended, and
    /// nothing is left on the way.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::ErrorKind::Decode), when the item is not an `R` (the next call goes on behind it), or the other
    /// process has ended in the midst of sending it; [`NotHeld`](crate::ErrorKind::NotHeld), when this end is another
    /// process's.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn recv(&self) -> Result<Option<R>, Error> {
        self.pipe()?.recv(&InRuntime).await
    }

    /// Receives the next item, if it has come whole. `None` as in [`recv`](Self::recv).
    ///
    /// # Errors
    ///
    /// [`Empty`](crate::ErrorKind::Empty), and those of `recv`.
    pub fn try_recv(&self) -> Result<Option<R>, Error> {
        let pipe = self.pipe()?;
        futures::FutureExt::now_or_never(pipe.recv(&AtOnce)).unwrap_or_else(|| Err(Why::Empty.into()))
    }

    /// As [`recv`](Self::recv); waits at most so long. Needs a runtime with time enabled.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::ErrorKind::TimedOut), and those of `recv`.
    pub async fn recv_timeout(&self, limit: Duration) -> Result<Option<R>, Error> {
        tokio::time::timeout(limit, self.recv()).await.unwrap_or_else(|_| Err(Why::TimedOut.into()))
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
    pub fn blocking_recv(&self) -> Result<Option<R>, Error> {
        by_thread(async { self.pipe()?.recv(&OnThread(None)).await })
    }

    /// As [`blocking_recv`](Self::blocking_recv); waits at most so long.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::ErrorKind::TimedOut), and those of `recv`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    pub fn blocking_recv_timeout(&self, limit: Duration) -> Result<Option<R>, Error> {
        by_thread(async { self.pipe()?.recv(&OnThread(Instant::now().checked_add(limit))).await })
    }
}

impl<S, R> Serialize for Channel<S, R> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        if self.pipe.get().is_some() {
            return Err(ser::Error::custom("the end of a channel that has been used here cannot be sent away"));
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
        f.debug_struct("Channel").field("handle", &self.handle).field("used", &self.pipe.get().is_some()).finish()
    }
}
