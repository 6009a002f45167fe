//! What a task sends its items by.

use super::current::Waiter;
use super::function::for_each_arity;
use crate::coop::take_unit;
use crate::park::refuse_in_async_context;
use crate::wire::value::{self, EncodeError, names};
use crate::wire::{frame, message};
use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{self, Serialize, Serializer};
use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

/// Sends the items of a task that yields, to the [`TaskStream`](crate::TaskStream) in the
/// application.
///
/// It is the last argument of the task's function. [`Pool::stream`](crate::Pool::stream) gives it; it
/// cannot be made otherwise. It may be cloned, and used on any thread of the worker, until the task
/// ends.
///
/// A task runs ahead of its reader by at most 64 KiB of items and one more item, where each item
/// counts as 64 bytes more than its encoded length. Then [`send`](Self::send) and
/// [`blocking_send`](Self::blocking_send) wait until the reader has taken some.
#[derive(Clone)]
pub struct Yielder<T> {
    outlet: Arc<dyn Outlet>,
    /// It may go where `T` may not.
    items: PhantomData<fn(T)>,
}

/// An item that was not sent, and why not.
#[derive(Clone)]
pub struct YieldError<T> {
    item: T,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    Closed,
    Full,
    Encode(String),
    TooLarge { limit: usize },
    Forked,
}

impl<T> YieldError<T> {
    /// Returns the item.
    pub fn into_inner(self) -> T {
        self.item
    }

    /// Returns whether nobody wants more items: the stream was dropped, or the task is asked to
    /// stop, or has ended.
    pub fn is_closed(&self) -> bool {
        self.why == Why::Closed
    }

    /// Returns whether [`try_send`](Yielder::try_send) would have had to wait.
    pub fn is_full(&self) -> bool {
        self.why == Why::Full
    }

    /// Returns whether the item could not be encoded.
    pub fn is_encode(&self) -> bool {
        matches!(self.why, Why::Encode(_))
    }

    /// Returns whether the item is larger than a frame may be.
    pub fn is_too_large(&self) -> bool {
        self.size_limit().is_some()
    }

    /// Returns the limit that the item exceeds, in bytes.
    pub fn size_limit(&self) -> Option<usize> {
        match self.why {
            Why::TooLarge { limit } => Some(limit),
            _ => None,
        }
    }

    /// Returns whether the call was made in a forked copy of the worker.
    pub fn is_forked(&self) -> bool {
        self.why == Why::Forked
    }
}

impl<T> fmt::Display for YieldError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Why::Closed => f.write_str("nobody takes items of this task any more"),
            Why::Full => f.write_str("the reader of this task's items has not taken enough"),
            Why::Encode(reason) => write!(f, "encode an item: {reason}"),
            Why::TooLarge { limit } => {
                write!(f, "an item exceeds {limit} bytes, the most that a frame may have")
            }
            Why::Forked => f.write_str("the call was made in a forked copy of the worker"),
        }
    }
}

/// Without the item, which need not be `Debug`.
impl<T> fmt::Debug for YieldError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("YieldError").field("why", &self.why).finish_non_exhaustive()
    }
}

impl<T> std::error::Error for YieldError<T> {}

/// A worker's side of a task that yields: how its items get out.
pub(crate) trait Outlet: Send + Sync {
    /// The task's number.
    fn id(&self) -> u64;
    /// The bytes that the body of a frame may have.
    fn limit(&self) -> usize;
    /// Sends a whole frame, whose value has so many bytes, if there is credit.
    fn try_send(&self, frame: &[u8], value: usize) -> Sent;
    /// Has the worker be told when there is credit. To be followed by another try.
    fn notify(self: Arc<Self>);
    /// Blocks the thread until another try is worthwhile.
    fn wait(&self);
}

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Done,
    /// There is no credit: the reader has not taken enough.
    NoCredit,
    /// Nobody wants it any more.
    Closed,
    /// This is a forked copy of the worker.
    Forked,
}

/// That of the task whose arguments are about to be decoded.
static OFFERED: Mutex<Option<Arc<dyn Outlet>>> = Mutex::new(None);

/// Runs what decodes a task's arguments, among which there is a [`Yielder`] for this outlet.
pub(crate) fn offering<R>(outlet: Option<Arc<dyn Outlet>>, decode: impl FnOnce() -> R) -> R {
    let offer = |outlet| {
        *OFFERED.lock().unwrap_or_else(PoisonError::into_inner) = outlet;
    };
    let is_any = outlet.is_some();
    if is_any {
        offer(outlet);
    }
    let result = decode();
    if is_any {
        offer(None);
    }
    result
}

impl<T: Serialize> Yielder<T> {
    /// Sends an item; waits while the reader is slow.
    ///
    /// # Errors
    ///
    /// [`is_closed`](YieldError::is_closed) when the stream was dropped, or the task is asked to stop
    /// ([`is_cancelled`](crate::is_cancelled)), or has ended: then the task should end. [`is_encode`](YieldError::is_encode) if
    /// the item cannot be encoded, or holds a handle of a shared object;
    /// [`is_too_large`](YieldError::is_too_large) if it is larger than
    /// [`Builder::frame_limit`](crate::Builder::frame_limit): the task may go on after these. The item comes back with the error.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, nothing has been sent.
    pub async fn send(&self, item: T) -> Result<(), YieldError<T>> {
        take_unit().await;
        let (frame, value) = match self.encode(&item) {
            Ok(encoded) => encoded,
            Err(error) => return Err(YieldError { item, why: error }),
        };
        let mut waiter = Waiter::of(self.outlet.id());
        let sent = poll_fn(|cx| {
            match self.outlet.try_send(&frame, value) {
                Sent::NoCredit => {}
                sent => return Poll::Ready(sent),
            }
            // First enter, then look again: whoever gives credit does it the other way round.
            waiter.enter(cx.waker());
            Arc::clone(&self.outlet).notify();
            match self.outlet.try_send(&frame, value) {
                Sent::NoCredit => Poll::Pending,
                sent => Poll::Ready(sent),
            }
        })
        .await;
        told(sent).map_err(|error| YieldError { item, why: error })
    }

    /// As [`send`](Self::send), and blocks the thread while the reader is slow: in a sync task, or
    /// on a thread of an async one.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Blocking
    ///
    /// Blocks the thread until the reader has taken enough, or does not want any more.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, use [`send`](Self::send).
    #[track_caller]
    pub fn blocking_send(&self, item: T) -> Result<(), YieldError<T>> {
        refuse_in_async_context();
        self.send_now(item, true)
    }

    /// As [`send`](Self::send), and never waits: [`is_full`](YieldError::is_full) if it would.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`is_full`](YieldError::is_full).
    pub fn try_send(&self, item: T) -> Result<(), YieldError<T>> {
        self.send_now(item, false)
    }

    fn send_now(&self, item: T, waits: bool) -> Result<(), YieldError<T>> {
        let sent = self.encode(&item).and_then(|(frame, value)| {
            loop {
                match self.outlet.try_send(&frame, value) {
                    Sent::NoCredit if waits => self.outlet.wait(),
                    sent => return told(sent),
                }
            }
        });
        sent.map_err(|error| YieldError { item, why: error })
    }

    /// The whole frame of an item, and the length of its value.
    fn encode(&self, item: &T) -> Result<(Vec<u8>, usize), Why> {
        let limit = self.outlet.limit();
        let mut out = Vec::new();
        let start = frame::begin(&mut out);
        message::item(&mut out, self.outlet.id());
        let value = out.len();
        let end = start.saturating_add(limit);
        // What it names must not be taken for a part of the task's result.
        let (encoded, things) = names::collecting(|| value::encode(item, &mut out, end));
        encoded.map_err(|error| match error {
            EncodeError::TooLarge { .. } => Why::TooLarge { limit },
            error => Why::Encode(error.to_string()),
        })?;
        if !things.is_empty() {
            let reason = "an item of a stream cannot hold handles of shared objects";
            return Err(Why::Encode(reason.into()));
        }
        frame::finish(&mut out, start);
        let len = out.len() - value;
        Ok((out, len))
    }
}

fn told(sent: Sent) -> Result<(), Why> {
    match sent {
        Sent::Done => Ok(()),
        Sent::NoCredit => Err(Why::Full),
        Sent::Closed => Err(Why::Closed),
        Sent::Forked => Err(Why::Forked),
    }
}

impl<T> fmt::Debug for Yielder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Yielder").field("task", &self.outlet.id()).finish_non_exhaustive()
    }
}

/// A task's arguments must be `Serialize`; but this one is made in the worker.
impl<T> Serialize for Yielder<T> {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("a `Yielder` cannot leave its task"))
    }
}

impl<'de, T> Deserialize<'de> for Yielder<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer)?;
        let outlet = OFFERED.lock().unwrap_or_else(PoisonError::into_inner).take();
        let outlet = outlet.ok_or_else(|| {
            de::Error::custom("a `Yielder` is given to tasks by `Pool::stream` alone")
        })?;
        Ok(Self { outlet, items: PhantomData })
    }
}

/// The arguments of a task that yields: a tuple whose last element is a [`Yielder`].
#[diagnostic::on_unimplemented(
    message = "a task whose arguments are `{Self}` does not yield",
    label = "its last argument is not a `procpool::Yielder<T>`",
    note = "the function of `Pool::stream` takes a `procpool::Yielder<T>` as its last argument, and the caller gives \
            the other arguments"
)]
pub trait YieldingArgs {
    /// What the task yields.
    type Item;
    /// The arguments before the [`Yielder`], which the caller gives.
    type Given;
}

macro_rules! yielding {
    ($($Arg:ident $arg:ident),*) => {
        impl<$($Arg,)* T> YieldingArgs for ($($Arg,)* Yielder<T>,) {
            type Item = T;
            type Given = ($($Arg,)*);
        }
    };
}
for_each_arity!(yielding);
