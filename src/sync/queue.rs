//! The handles of a queue: the whole of it, and its two halves.
//!
//! The rules are in `manager/objects/queue.rs`. What all three handles can do is written once, as
//! macros.

use super::delivery::Delivery;
use super::handle::{Asking, Handle, handle_travels, kinds};
use super::manager::Manager;
use super::queue_flow::{QueueSink, QueueStream};
use super::receiving::Receiving;
use crate::coop::take_unit;
use crate::error::SendError;
use crate::error::sync::{Error, Why};
use crate::manager::held::join;
use crate::manager::object::{Body, Part};
use crate::manager::objects::code::{Message, Pack, Wait, unpack};
use crate::manager::objects::queue::{Ask, Queue as Rules, Reply};
use crate::park::refuse_in_async_context;
use crate::wire::value;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// No more values than this, in bytes, are put into one message (but always one).
const BATCH_BYTES: usize = 256 << 10;

/// A queue that processes share: many producers, many consumers, bounded or not.
///
/// Made by [`Manager::queue`]. A handle is cheap to clone, can be used from any thread and in any
/// runtime, and travels to other processes as an argument, in a result, or inside another shared
/// object; all are the same queue.
///
/// # What is promised
///
/// * **Order.** Items leave in the order in which they were sent, so each consumer sees the items of
///   one producer in the order in which that producer sent them, with any number of consumers. The
///   exception is an item that comes back: from a consumer that died, from a call or a stream that
///   was dropped before it gave the item out, or from a lease that ended without acknowledgement.
///   Such an item goes to its place before all that are left, so a consumer may get it after later
///   ones.
/// * **An item whose `send` has returned is there**, whatever becomes of its producer.
/// * **[`recv`](Self::recv) is at most once.** The item belongs to the caller when `recv` returns
///   it, and is lost with the process if that dies then. What a `recv` that was dropped, or whose
///   process died before, had been sent is not lost: it goes back to its place.
/// * **[`lease`](Self::lease) is at least once.** The item stays the queue's until its [`Delivery`]
///   is acknowledged; it is delivered again when its holder dies, lets it go, or takes longer than
///   it has said. How often that was, it says.
/// * **The bound is kept:** `send` waits, in order, while as many items are inside as the queue may
///   hold. Leased items are not counted, so that a consumer that sends to its own queue cannot
///   block itself.
///
/// # The end
///
/// After [`close`](Self::close) nothing more can be sent. Consumers get what is left, and then
/// `None`; not before the last lease has ended, for its item may come back. A queue of which only
/// halves are left ([`split`](Self::split)) closes with its last [`QueueSender`]; without any
/// [`QueueReceiver`], sending is an error that gives the item back.
///
/// # Python
///
/// `put` is [`send`](Self::send), `get` [`recv`](Self::recv), `put_nowait`
/// [`try_send`](Self::try_send). `JoinableQueue`'s `task_done` is [`Delivery::ack`], and `join` is
/// [`join`](Self::join): there is no mark that one could forget for an item that a dead process
/// had.
///
/// ```
/// use procpool::Manager;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let queue = Manager::new()?.queue::<String>(16)?;
/// queue.send("one".into()).await?;
/// queue.send("two".into()).await?;
/// queue.close()?;
/// assert_eq!(queue.recv().await?.as_deref(), Some("one"));
/// assert_eq!(queue.recv().await?.as_deref(), Some("two"));
/// assert_eq!(queue.recv().await?, None); // closed, and empty
/// # Ok(())
/// # }
/// ```
pub struct Queue<T> {
    handle: Handle,
    marker: PhantomData<fn() -> T>,
}

/// The sending half of a [`Queue`]. A process that was given no other half cannot receive: the
/// manager refuses it.
///
/// When the last one is gone, in all processes, and no whole
/// handle is left, the queue closes.
pub struct QueueSender<T> {
    handle: Handle,
    marker: PhantomData<fn() -> T>,
}

/// The receiving half of a [`Queue`]. A process that was given no other half cannot send: the
/// manager refuses it.
///
/// When the last one is gone, in all processes, and no whole
/// handle is left, nothing can be sent any more, and what was inside is dropped.
pub struct QueueReceiver<T> {
    handle: Handle,
    marker: PhantomData<fn() -> T>,
}

handle_travels!(Queue<T>, kinds::QUEUE);
handle_travels!(QueueSender<T>, kinds::QUEUE);
handle_travels!(QueueReceiver<T>, kinds::QUEUE);

impl Manager {
    /// Makes a queue that holds at most `capacity` items.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](crate::sync::ErrorKind::InvalidOption) for a capacity of 0;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn queue<T>(&self, capacity: usize) -> Result<Queue<T>, Error> {
        self.make_queue(None, Some(capacity))
    }

    /// Makes a queue without a bound of its own. What it holds is bounded by the manager's memory:
    /// then sending is an error ([`ManagerFull`](crate::sync::ErrorKind::ManagerFull)).
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn unbounded_queue<T>(&self) -> Result<Queue<T>, Error> {
        self.make_queue(None, None)
    }

    /// The queue of this name; makes it, with this capacity, if there is none. `T` must be what it
    /// was made with: that is noticed only when an item cannot be decoded.
    ///
    /// # Errors
    ///
    /// As [`queue`](Self::queue).
    pub fn queue_named<T>(&self, name: &str, capacity: usize) -> Result<Queue<T>, Error> {
        self.make_queue(Some(name), Some(capacity))
    }

    fn make_queue<T>(
        &self,
        name: Option<&str>,
        capacity: Option<usize>,
    ) -> Result<Queue<T>, Error> {
        if capacity == Some(0) {
            return Err(Why::InvalidOption {
                option: "capacity",
                reason: "a queue for 0 items could never be sent to".into(),
            }
            .into());
        }
        let handle = Handle::create(self.connection(), kinds::QUEUE, Part::WHOLE, name, || {
            Box::new(Rules::new(capacity))
        })?;
        Ok(Queue { handle, marker: PhantomData })
    }
}

impl<T> Queue<T> {
    /// Another handle that can only send.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn sender(&self) -> Result<QueueSender<T>, Error> {
        Ok(QueueSender { handle: self.handle.part(Part::SENDER)?, marker: PhantomData })
    }

    /// Another handle that can only receive.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn receiver(&self) -> Result<QueueReceiver<T>, Error> {
        Ok(QueueReceiver { handle: self.handle.part(Part::RECEIVER)?, marker: PhantomData })
    }

    /// Into its halves: from now on the queue closes by itself, once all whole handles have been
    /// split or dropped.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn split(self) -> Result<(QueueSender<T>, QueueReceiver<T>), Error> {
        Ok((self.sender()?, self.receiver()?))
    }
}

macro_rules! common {
    ($($name:ident),*) => {$(
        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                Self { handle: self.handle.clone(), marker: PhantomData }
            }
        }

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).field("handle", &self.handle).finish()
            }
        }

        impl<T> $name<T> {
            /// Closes it: nothing more can be sent, and whoever waits for room is told. Closing twice is closing once. Asks
            /// the manager, which answers at once.
            ///
            /// # Errors
            ///
            /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
            pub fn close(&self) -> Result<(), Error> {
                done(self.handle.ask(Ask::Close.body()).settle())
            }

            /// Whether it was closed. Asks the manager, which answers at once.
            ///
            /// # Errors
            ///
            /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
            pub fn is_closed(&self) -> Result<bool, Error> {
                Ok(status(&self.handle)?.closed)
            }

            /// How many items are inside, without those that are leased. Asks the manager, which answers at once.
            ///
            /// # Errors
            ///
            /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
            pub fn len(&self) -> Result<usize, Error> {
                Ok(status(&self.handle)?.ready)
            }

            /// Whether nothing is inside; leased items are not counted. Asks the manager, which answers at once.
            ///
            /// # Errors
            ///
            /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
            pub fn is_empty(&self) -> Result<bool, Error> {
                Ok(status(&self.handle)?.ready == 0)
            }

            /// How many items are leased. Asks the manager, which answers at once.
            ///
            /// # Errors
            ///
            /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
            pub fn leased(&self) -> Result<usize, Error> {
                Ok(status(&self.handle)?.leased)
            }

            /// How many items it may hold; `None` is any number. Asks the manager, which answers at once.
            ///
            /// # Errors
            ///
            /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
            pub fn capacity(&self) -> Result<Option<usize>, Error> {
                Ok(status(&self.handle)?.capacity)
            }

            /// Waits until everything that was sent has been dealt with: taken by a `recv`, or leased and acknowledged. At
            /// once, if nothing is inside.
            ///
            /// # Errors
            ///
            /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
            ///
            /// # Cancel safety
            ///
            /// Nothing happens by dropping it.
            pub async fn join(&self) -> Result<(), Error> {
                done(self.handle.ask(Ask::Join { wait: Wait::Ever }.body()).await)
            }

            /// As [`join`](Self::join), for at most so long.
            ///
            /// # Errors
            ///
            /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `join`.
            ///
            /// # Cancel safety
            ///
            /// As `join`.
            pub async fn join_timeout(&self, limit: Duration) -> Result<(), Error> {
                done(self.handle.ask(Ask::Join { wait: Wait::Limit(limit) }.body()).await)
            }

            /// As [`join`](Self::join), blocking the thread.
            ///
            /// # Errors
            ///
            /// As `join`.
            ///
            /// # Panics
            ///
            /// Within an async context.
            #[track_caller]
            pub fn blocking_join(&self) -> Result<(), Error> {
                done(self.handle.ask(Ask::Join { wait: Wait::Ever }.body()).wait())
            }

            /// As [`join_timeout`](Self::join_timeout), blocking the thread.
            ///
            /// # Errors
            ///
            /// As `join_timeout`.
            ///
            /// # Panics
            ///
            /// Within an async context.
            #[track_caller]
            pub fn blocking_join_timeout(&self, limit: Duration) -> Result<(), Error> {
                done(self.handle.ask(Ask::Join { wait: Wait::Limit(limit) }.body()).wait())
            }
        }
    )*};
}

macro_rules! sending {
    ($($name:ident),*) => {$(
        impl<T: Serialize> $name<T> {
            /// Sends an item; waits while there is no room.
            ///
            /// # Errors
            ///
            /// Each gives the item back: [`Closed`](crate::sync::ErrorKind::Closed),
            /// [`Encode`](crate::sync::ErrorKind::Encode) and [`TooLarge`](crate::sync::ErrorKind::TooLarge) (then nothing was sent
            /// and no room is taken), [`ManagerFull`](crate::sync::ErrorKind::ManagerFull),
            /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
            ///
            /// # Cancel safety
            ///
            /// Dropped while it waits for room, the item was not sent. It may have been, when it is dropped just as it
            /// would be ready.
            pub async fn send(&self, item: T) -> Result<(), SendError<T>> {
                take_unit().await;
                match send(&self.handle, &item, Wait::Ever) {
                    Ok(None) => Ok(()),
                    Ok(Some(asking)) => sent(asking.await, item),
                    Err(error) => Err(SendError::new(item, error)),
                }
            }

            /// Sends an item if there is room, and nobody waits for it.
            ///
            /// # Errors
            ///
            /// [`Full`](crate::sync::ErrorKind::Full), and those of [`send`](Self::send).
            ///
            /// # Blocking
            ///
            /// In a worker, for the round trip to the manager, which does not wait.
            pub fn try_send(&self, item: T) -> Result<(), SendError<T>> {
                match send(&self.handle, &item, Wait::No) {
                    Ok(None) => Ok(()),
                    Ok(Some(asking)) => sent(asking.settle(), item),
                    Err(error) => Err(SendError::new(item, error)),
                }
            }

            /// As [`send`](Self::send); waits for room at most so long. What was not sent by then is not sent later.
            ///
            /// # Errors
            ///
            /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `send`.
            ///
            /// # Cancel safety
            ///
            /// As `send`.
            pub async fn send_timeout(&self, item: T, limit: Duration) -> Result<(), SendError<T>> {
                take_unit().await;
                match send(&self.handle, &item, Wait::Limit(limit)) {
                    Ok(None) => Ok(()),
                    Ok(Some(asking)) => sent(asking.await, item),
                    Err(error) => Err(SendError::new(item, error)),
                }
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
            pub fn blocking_send(&self, item: T) -> Result<(), SendError<T>> {
                refuse_in_async_context();
                match send(&self.handle, &item, Wait::Ever) {
                    Ok(None) => Ok(()),
                    Ok(Some(asking)) => sent(asking.wait(), item),
                    Err(error) => Err(SendError::new(item, error)),
                }
            }

            /// As [`send_timeout`](Self::send_timeout), blocking the thread.
            ///
            /// # Errors
            ///
            /// As `send_timeout`.
            ///
            /// # Panics
            ///
            /// Within an async context.
            #[track_caller]
            pub fn blocking_send_timeout(&self, item: T, limit: Duration) -> Result<(), SendError<T>> {
                refuse_in_async_context();
                match send(&self.handle, &item, Wait::Limit(limit)) {
                    Ok(None) => Ok(()),
                    Ok(Some(asking)) => sent(asking.wait(), item),
                    Err(error) => Err(SendError::new(item, error)),
                }
            }

            /// Sends several items, some hundred KiB of them in one message. They come in one by one, in their order, as
            /// there is room; other producers' items do not come between those of one message.
            ///
            /// # Errors
            ///
            /// As [`send`](Self::send); given back are those that were not sent.
            ///
            /// # Cancel safety
            ///
            /// Dropped while it waits for room, some of the items may have been sent.
            pub async fn send_many(&self, items: Vec<T>) -> Result<(), SendError<Vec<T>>> {
                take_unit().await;
                send_all(&self.handle, items, async |asking| asking.await).await
            }

            /// As [`send_many`](Self::send_many), blocking the thread.
            ///
            /// # Errors
            ///
            /// As `send_many`.
            ///
            /// # Panics
            ///
            /// Within an async context.
            #[track_caller]
            pub fn blocking_send_many(&self, items: Vec<T>) -> Result<(), SendError<Vec<T>>> {
                refuse_in_async_context();
                now(send_all(&self.handle, items, async |asking| asking.wait()))
            }

            /// A [`Sink`](futures::Sink) of items, which sends several in one message. What has been fed and not flushed is
            /// not sent yet.
            pub fn sink(&self) -> QueueSink<T> {
                QueueSink::new(self.handle.clone())
            }
        }
    )*};
}

macro_rules! receiving {
    ($($name:ident),*) => {$(
        impl<T: DeserializeOwned> $name<T> {
            /// Takes the next item out of the queue; waits while there is none. `None`: it is closed, and nothing is left.
            ///
            /// # Errors
            ///
            /// [`Decode`](crate::sync::ErrorKind::Decode), when the item is not a `T`; it is gone then.
            /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
            ///
            /// # Cancel safety
            ///
            /// Nothing was taken: an item that was on its way goes back to its place.
            pub async fn recv(&self) -> Result<Option<T>, Error> {
                take_unit().await;
                match self.handle.take_at_once() {
                    Some(item) => self.handle.decode(&item).map(Some),
                    None => received(&self.handle, Receiving::new(&self.handle, Wait::Ever).await),
                }
            }

            /// Takes the next item, if there is one. `None`: it is closed, and nothing is left.
            ///
            /// # Errors
            ///
            /// [`Empty`](crate::sync::ErrorKind::Empty), and those of [`recv`](Self::recv).
            ///
            /// # Blocking
            ///
            /// In a worker, for the round trip to the manager, which does not wait.
            pub fn try_recv(&self) -> Result<Option<T>, Error> {
                match self.handle.take_at_once() {
                    Some(item) => self.handle.decode(&item).map(Some),
                    None => received(&self.handle, recv(&self.handle, Wait::No, 1).settle()),
                }
            }

            /// As [`recv`](Self::recv); waits at most so long.
            ///
            /// # Errors
            ///
            /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `recv`.
            ///
            /// # Cancel safety
            ///
            /// As `recv`.
            pub async fn recv_timeout(&self, limit: Duration) -> Result<Option<T>, Error> {
                take_unit().await;
                match self.handle.take_at_once() {
                    Some(item) => self.handle.decode(&item).map(Some),
                    None => received(&self.handle, Receiving::new(&self.handle, Wait::Limit(limit)).await),
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
            pub fn blocking_recv(&self) -> Result<Option<T>, Error> {
                refuse_in_async_context();
                match self.handle.take_at_once() {
                    Some(item) => self.handle.decode(&item).map(Some),
                    None => received(&self.handle, Receiving::new(&self.handle, Wait::Ever).wait()),
                }
            }

            /// As [`recv_timeout`](Self::recv_timeout), blocking the thread.
            ///
            /// # Errors
            ///
            /// As `recv_timeout`.
            ///
            /// # Panics
            ///
            /// Within an async context.
            #[track_caller]
            pub fn blocking_recv_timeout(&self, limit: Duration) -> Result<Option<T>, Error> {
                refuse_in_async_context();
                match self.handle.take_at_once() {
                    Some(item) => self.handle.decode(&item).map(Some),
                    None => received(&self.handle, Receiving::new(&self.handle, Wait::Limit(limit)).wait()),
                }
            }

            /// Takes what there is, at most `max` items (0 counts as 1) and some hundred KiB, in one message; waits for the
            /// first. Nothing: it is closed, and nothing is left.
            ///
            /// # Errors
            ///
            /// As [`recv`](Self::recv); all of them are gone when one cannot be decoded.
            ///
            /// # Cancel safety
            ///
            /// Nothing was taken.
            pub async fn recv_many(&self, max: usize) -> Result<Vec<T>, Error> {
                take_unit().await;
                match take_many(&self.handle, max)? {
                    Some(items) => Ok(items),
                    None => received_many(&self.handle, recv(&self.handle, Wait::Ever, max).await),
                }
            }

            /// As [`recv_many`](Self::recv_many), blocking the thread.
            ///
            /// # Errors
            ///
            /// As `recv_many`.
            ///
            /// # Panics
            ///
            /// Within an async context.
            #[track_caller]
            pub fn blocking_recv_many(&self, max: usize) -> Result<Vec<T>, Error> {
                refuse_in_async_context();
                match take_many(&self.handle, max)? {
                    Some(items) => Ok(items),
                    None => received_many(&self.handle, recv(&self.handle, Wait::Ever, max).wait()),
                }
            }

            /// Leases the next item; waits while there is none. `None`: it is closed, and nothing is left.
            ///
            /// It stays the queue's until the [`Delivery`] is acknowledged, and is delivered again if this process dies, or
            /// lets it go.
            ///
            /// # Errors
            ///
            /// [`Decode`](crate::sync::ErrorKind::Decode), when the item is not a `T`; it is gone then, for nobody could ever use
            /// it. [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
            ///
            /// # Cancel safety
            ///
            /// Nothing was leased: an item that was on its way goes back to its place, and this does not count as a delivery.
            pub async fn lease(&self) -> Result<Option<Delivery<T>>, Error> {
                leased(self.handle.clone(), lease(&self.handle, Wait::Ever, None), async |asking| asking.await).await
            }

            /// As [`lease`](Self::lease); and the item is delivered again unless it is acknowledged, or the lease
            /// [extended](Delivery::extend), within `limit`: also when this process is alive, but stopped or stuck.
            ///
            /// # Errors
            ///
            /// As `lease`.
            ///
            /// # Cancel safety
            ///
            /// As `lease`.
            pub async fn lease_for(&self, limit: Duration) -> Result<Option<Delivery<T>>, Error> {
                leased(self.handle.clone(), lease(&self.handle, Wait::Ever, Some(limit)), async |asking| asking.await).await
            }

            /// Leases the next item, if there is one. `None`: it is closed, and nothing is left.
            ///
            /// # Errors
            ///
            /// [`Empty`](crate::sync::ErrorKind::Empty), and those of [`lease`](Self::lease).
            ///
            /// # Blocking
            ///
            /// In a worker, for the round trip to the manager, which does not wait.
            pub fn try_lease(&self) -> Result<Option<Delivery<T>>, Error> {
                now(leased(self.handle.clone(), lease(&self.handle, Wait::No, None), async |asking| asking.settle()))
            }

            /// As [`lease`](Self::lease); waits for an item at most so long.
            ///
            /// # Errors
            ///
            /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `lease`.
            ///
            /// # Cancel safety
            ///
            /// As `lease`.
            pub async fn lease_timeout(&self, limit: Duration) -> Result<Option<Delivery<T>>, Error> {
                leased(self.handle.clone(), lease(&self.handle, Wait::Limit(limit), None), async |asking| asking.await).await
            }

            /// As [`lease`](Self::lease), blocking the thread.
            ///
            /// # Errors
            ///
            /// As `lease`.
            ///
            /// # Panics
            ///
            /// Within an async context.
            #[track_caller]
            pub fn blocking_lease(&self) -> Result<Option<Delivery<T>>, Error> {
                refuse_in_async_context();
                now(leased(self.handle.clone(), lease(&self.handle, Wait::Ever, None), async |asking| asking.wait()))
            }

            /// As [`lease_for`](Self::lease_for), blocking the thread.
            ///
            /// # Errors
            ///
            /// As `lease_for`.
            ///
            /// # Panics
            ///
            /// Within an async context.
            #[track_caller]
            pub fn blocking_lease_for(&self, limit: Duration) -> Result<Option<Delivery<T>>, Error> {
                refuse_in_async_context();
                now(leased(self.handle.clone(), lease(&self.handle, Wait::Ever, Some(limit)), async |asking| asking.wait()))
            }

            /// A [`Stream`](futures::Stream) of the items, by [`recv`](Self::recv). It ends when the queue is closed and
            /// nothing is left.
            pub fn stream(&self) -> QueueStream<T> {
                QueueStream::new(self.handle.clone())
            }
        }
    )*};
}

common!(Queue, QueueSender, QueueReceiver);
sending!(Queue, QueueSender);
receiving!(Queue, QueueReceiver);

struct Status {
    ready: usize,
    leased: usize,
    capacity: Option<usize>,
    closed: bool,
}

fn status(handle: &Handle) -> Result<Status, Error> {
    match reply(&handle.ask(Ask::Status.body()).settle()?)? {
        Reply::Status { ready, leased, capacity, closed } => Ok(Status {
            ready: ready as usize,
            leased: leased as usize,
            capacity: capacity.map(|capacity| capacity as usize),
            closed,
        }),
        other => Err(strange(&other)),
    }
}

pub(super) fn reply(body: &Body) -> Result<Reply, Error> {
    Reply::read(&body.head).map_err(|bad| Why::Decode(bad.0).into())
}

/// An answer that does not fit the question, as an error.
pub(super) fn strange(reply: &Reply) -> Error {
    match reply {
        Reply::Full { .. } => Why::Full,
        Reply::Empty => Why::Empty,
        Reply::TimedOut { .. } => Why::TimedOut,
        Reply::Closed { .. } => Why::Closed,
        Reply::NotHeld => Why::NotHeld,
        other => Why::Decode(format!("the queue has answered {other:?}")),
    }
    .into()
}

pub(super) fn done(answer: Result<Body, Error>) -> Result<(), Error> {
    match reply(&answer?)? {
        Reply::Done => Ok(()),
        other => Err(strange(&other)),
    }
}

/// Sends an item: `None` when it is sent.
fn send<T: Serialize>(handle: &Handle, item: &T, wait: Wait) -> Result<Option<Asking>, Error> {
    let (mut tail, held) = handle.encode(item)?;
    if held.is_none() {
        tail = match handle.put_at_once(tail) {
            Ok(()) => return Ok(None),
            Err(tail) => tail,
        };
    }
    Ok(Some(handle.ask(Body::with_value(Ask::Send { wait }.packet(), tail, held))))
}

fn sent<T>(answer: Result<Body, Error>, item: T) -> Result<(), SendError<T>> {
    done(answer).map_err(|error| SendError::new(item, error))
}

/// Sends the first of these items, at most so many, as many as make one message: how many those
/// are.
pub(super) fn send_some<T: Serialize>(
    handle: &Handle,
    items: &[T],
    max: usize,
) -> Result<(Asking, usize), Error> {
    let (mut pack, mut held, mut count) = (Pack::default(), Vec::new(), 0);
    for item in items.iter().take(max.max(1)) {
        let (value, holds) = handle.encode(item)?;
        if count > 0 && pack.len() + value.len() > BATCH_BYTES {
            break;
        }
        pack.push(&value);
        held.push(holds);
        count += 1;
    }
    let head = Ask::SendMany { wait: Wait::Ever }.packet();
    Ok((handle.ask(Body::with_value(head, pack.finish(), join(held))), count))
}

/// Sends all, waiting in the caller's way.
async fn send_all<T: Serialize>(
    handle: &Handle,
    mut items: Vec<T>,
    wait: impl AsyncFn(Asking) -> Result<Body, Error>,
) -> Result<(), SendError<Vec<T>>> {
    while !items.is_empty() {
        let result = match send_some(handle, &items, usize::MAX) {
            Ok((asking, count)) => how_many(wait(asking).await).map(|()| count),
            Err(error) => Err((0, error)),
        };
        let sent = *result.as_ref().unwrap_or_else(|(sent, _)| sent);
        items.drain(..sent.min(items.len()));
        if let Err((_, error)) = result {
            return Err(SendError::new(items, error));
        }
    }
    Ok(())
}

/// How many of many were sent, and why no more.
pub(super) fn how_many(answer: Result<Body, Error>) -> Result<(), (usize, Error)> {
    match answer.and_then(|body| reply(&body)) {
        Ok(Reply::Done) => Ok(()),
        Ok(other) => {
            let sent = match other {
                Reply::Full { accepted }
                | Reply::TimedOut { accepted }
                | Reply::Closed { accepted } => accepted as usize,
                _ => 0,
            };
            Err((sent, strange(&other)))
        }
        Err(error) => Err((0, error)),
    }
}

pub(super) fn recv(handle: &Handle, wait: Wait, max: usize) -> Asking {
    handle.ask(Ask::Recv { wait, max: u32::try_from(max).unwrap_or(u32::MAX) }.body())
}

/// Takes what can be taken at once, at most so many.
fn take_many<T: DeserializeOwned>(handle: &Handle, max: usize) -> Result<Option<Vec<T>>, Error> {
    let (mut items, mut bytes) = (Vec::new(), 0);
    while items.len() < max.max(1)
        && bytes < BATCH_BYTES
        && let Some(item) = handle.take_at_once()
    {
        bytes += item.tail.len();
        items.push(item);
    }
    if items.is_empty() {
        return Ok(None);
    }
    items.iter().map(|item| handle.decode(item)).collect::<Result<_, _>>().map(Some)
}

fn received<T: DeserializeOwned>(
    handle: &Handle,
    answer: Result<Body, Error>,
) -> Result<Option<T>, Error> {
    let body = answer?;
    match reply(&body)? {
        Reply::Item { .. } => handle.decode(&body).map(Some),
        Reply::Closed { .. } => Ok(None),
        other => Err(strange(&other)),
    }
}

fn received_many<T: DeserializeOwned>(
    handle: &Handle,
    answer: Result<Body, Error>,
) -> Result<Vec<T>, Error> {
    let body = answer?;
    match reply(&body)? {
        Reply::Item { .. } => Ok(vec![handle.decode(&body)?]),
        Reply::Items => {
            let items = unpack(&body.tail).map_err(|bad| Error::from(Why::Decode(bad.0)))?;
            handle.decode_with(
                || items.iter().map(|item| value::decode(item)).collect::<Result<_, _>>(),
                &body,
            )
        }
        Reply::Closed { .. } => Ok(Vec::new()),
        other => Err(strange(&other)),
    }
}

fn lease(handle: &Handle, wait: Wait, limit: Option<Duration>) -> Asking {
    handle.ask(Ask::Lease { wait, limit }.body())
}

/// Waits for a lease in the caller's way.
async fn leased<T: DeserializeOwned>(
    handle: Handle,
    asking: Asking,
    wait: impl AsyncFnOnce(Asking) -> Result<Body, Error>,
) -> Result<Option<Delivery<T>>, Error> {
    let ticket = asking.ticket();
    let body = wait(asking).await?;
    match (reply(&body)?, ticket) {
        (Reply::Item { deliveries }, Some(ticket)) => match handle.decode(&body) {
            Ok(value) => Ok(Some(Delivery::new(handle, ticket, deliveries, value))),
            Err(error) => {
                let _ = handle.tell(Ask::Acknowledge { lease: ticket }.body());
                Err(error)
            }
        },
        (Reply::Closed { .. }, _) => Ok(None),
        (other, _) => Err(strange(&other)),
    }
}

/// The output of a future that does not wait.
fn now<R>(future: impl Future<Output = R>) -> R {
    futures::FutureExt::now_or_never(future).expect("it has waited already")
}
