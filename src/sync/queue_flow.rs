//! A queue as a stream and as a sink.

use super::handle::{Asking, Handle};
use super::queue::{how_many, recv, reply, send_some, strange};
use crate::coop::BudgetUnit;
use crate::error::sync::{Error, Why};
use crate::manager::object::Body;
use crate::manager::objects::code::{Message, Wait, unpack};
use crate::manager::objects::queue::{Ask, Reply};
use crate::wire::packet::Packet;
use crate::wire::value;
use futures::{Sink, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The items of a queue, each taken out as it is yielded: made by
/// [`Queue::stream`](crate::sync::Queue::stream).
///
/// It ends when the queue is closed and nothing is left, and after the manager has closed (with
/// that error before it). An item that cannot be decoded is an error in its place.
///
/// # Drop
///
/// Nothing is lost: what it had fetched and not yielded goes back to its place.
pub struct QueueStream<T> {
    handle: Handle,
    prefetch: usize,
    state: State,
    unit: BudgetUnit,
    marker: PhantomData<fn() -> T>,
}

enum State {
    Idle,
    Asking(Asking),
    /// Fetched, and the queue's until each is taken.
    Fetched(Fetched),
    Ended,
}

/// Items on offer under one ticket.
struct Fetched {
    handle: Handle,
    ticket: u64,
    items: VecDeque<Packet>,
    body: Body,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if !self.items.is_empty() {
            self.handle.giving_up(|| self.handle.cancel(self.ticket));
        }
    }
}

impl<T> QueueStream<T> {
    pub(super) fn new(handle: Handle) -> Self {
        Self {
            handle,
            prefetch: 1,
            state: State::Idle,
            unit: BudgetUnit::default(),
            marker: PhantomData,
        }
    }

    /// Fetches up to so many items in one message, instead of one at a time (0 counts as 1). What
    /// is fetched and not yet yielded is kept for this stream, and other consumers do not get
    /// it meanwhile: so choose a number that this one has soon worked off.
    #[must_use]
    pub fn prefetch(mut self, items: usize) -> Self {
        self.prefetch = items;
        self
    }
}

impl<T: DeserializeOwned> Stream for QueueStream<T> {
    type Item = Result<T, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        ready!(this.unit.poll_unit(cx));
        let polled = this.poll_item(cx);
        this.unit.per_item(polled)
    }
}

impl<T: DeserializeOwned> QueueStream<T> {
    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Error>>> {
        let this = self;
        loop {
            match &mut this.state {
                State::Idle => match this.handle.take_at_once() {
                    Some(item) => return Poll::Ready(Some(this.handle.decode(&item))),
                    None => {
                        this.state = State::Asking(recv(&this.handle, Wait::Ever, this.prefetch))
                    }
                },
                State::Asking(asking) => {
                    let answer = ready!(asking.poll_offer(cx));
                    this.state = State::Ended;
                    let (ticket, body) = match answer {
                        Ok(answer) => answer,
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    };
                    let items = match reply(&body) {
                        Ok(Reply::Item { .. }) => VecDeque::from([body.tail.clone()]),
                        Ok(Reply::Items) => match unpack(&body.tail) {
                            Ok(items) => items.into(),
                            Err(bad) => return Poll::Ready(Some(Err(Why::Decode(bad.0).into()))),
                        },
                        Ok(Reply::Closed { .. }) => return Poll::Ready(None),
                        Ok(other) => return Poll::Ready(Some(Err(strange(&other)))),
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    };
                    this.state = State::Fetched(Fetched {
                        handle: this.handle.clone(),
                        ticket,
                        items,
                        body,
                    });
                }
                State::Fetched(fetched) => {
                    if fetched.items.is_empty() {
                        this.state = State::Idle;
                        continue;
                    }
                    // It is told before anybody sees the item: see `manager/object.rs`.
                    let taken = Ask::Taken { recv: fetched.ticket, count: 1 }.body();
                    if let Err(error) = ready!(this.handle.poll_tell(&taken, cx)) {
                        this.state = State::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                    let Some(item) = fetched.items.pop_front() else { continue };
                    return Poll::Ready(Some(
                        this.handle.decode_with(|| value::decode(&item), &fetched.body),
                    ));
                }
                State::Ended => return Poll::Ready(None),
            }
        }
    }
}

impl<T> fmt::Debug for QueueStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueStream")
            .field("handle", &self.handle)
            .field("prefetch", &self.prefetch)
            .finish_non_exhaustive()
    }
}

/// So many items, or so many bytes of them, travel in one message.
const BATCH: usize = 256;

/// A sink of items into a queue: made by [`Queue::sink`](crate::sync::Queue::sink).
///
/// Items are gathered until it is flushed, or [`batch`](Self::batch) of them are there. Closing the
/// sink flushes it; it does not close the queue.
///
/// # Errors
///
/// Those of [`Queue::send_many`](crate::sync::Queue::send_many). [`unsent`](Self::unsent) gives back what
/// was not sent.
///
/// # Drop
///
/// What was not flushed is not sent.
pub struct QueueSink<T> {
    handle: Handle,
    batch: usize,
    items: Vec<T>,
    sending: Option<Asking>,
    unit: BudgetUnit,
    /// How many of `items` are being sent.
    under_way: usize,
}

impl<T> QueueSink<T> {
    pub(super) fn new(handle: Handle) -> Self {
        Self {
            handle,
            batch: BATCH,
            items: Vec::new(),
            sending: None,
            unit: BudgetUnit::default(),
            under_way: 0,
        }
    }

    /// How many items are sent in one message, at most (default: 256; 0 counts as 1).
    #[must_use]
    pub fn batch(mut self, items: usize) -> Self {
        self.batch = items.max(1);
        self
    }

    /// What has been fed and not sent. After an error, that includes what the error was about.
    pub fn unsent(self) -> Vec<T> {
        self.items
    }
}

impl<T: Serialize> QueueSink<T> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            if let Some(sending) = &mut self.sending {
                let answer = ready!(Pin::new(sending).poll(cx));
                self.sending = None;
                let result = how_many(answer);
                let sent = result.as_ref().map_or_else(|(sent, _)| *sent, |()| self.under_way);
                self.items.drain(..sent.min(self.items.len()));
                if let Err((_, error)) = result {
                    return Poll::Ready(Err(error));
                }
            }
            if self.items.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match send_some(&self.handle, &self.items, self.batch) {
                Ok((asking, count)) => (self.sending, self.under_way) = (Some(asking), count),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<T: Serialize + Unpin> Sink<T> for QueueSink<T> {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        ready!(this.unit.poll_unit(cx));
        let is_full = this.items.len() >= this.batch;
        let polled = if is_full { this.poll_send(cx) } else { Poll::Ready(Ok(())) };
        this.unit.per_item(polled)
    }

    fn start_send(self: Pin<&mut Self>, item: T) -> Result<(), Error> {
        self.get_mut().items.push(item);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        ready!(this.unit.poll_unit(cx));
        let polled = this.poll_send(cx);
        this.unit.per_item(polled)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        ready!(this.unit.poll_unit(cx));
        let polled = this.poll_send(cx);
        this.unit.per_item(polled)
    }
}

impl<T> fmt::Debug for QueueSink<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueSink")
            .field("handle", &self.handle)
            .field("unsent", &self.items.len())
            .finish_non_exhaustive()
    }
}
