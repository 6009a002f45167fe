//! The changes of a map, as they come.

use super::handle::{Asking, Handle};
use super::map::{reply, strange};
use super::wait;
use crate::coop::BudgetUnit;
use crate::error::sync::{Error, Why};
use crate::manager::object::Body;
use crate::manager::objects::code::{Message, Wait, unpack};
use crate::manager::objects::map::{Ask, Reply};
use crate::wire::value::{self, DecodeError};
use futures::Stream;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// What has happened to a [`Map`](crate::sync::Map).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapChange<K, V> {
    /// A key has this value from now on.
    Set {
        /// Which one.
        key: K,
        /// The new value.
        value: V,
    },
    /// A key has no value any more.
    Removed {
        /// Which one.
        key: K,
    },
    /// There were changes that were not kept: this watcher was some thousand changes, or some MiB
    /// of them, behind. Look at the [entries](crate::sync::Map::entries); what comes after this goes
    /// on without a gap.
    Missed,
}

/// Watches a [`Map`](crate::sync::Map): a stream of its changes, from when it was made, in their order,
/// each once.
///
/// It ends with an error when the manager is closed.
///
/// # Cancel safety
///
/// No change is lost by dropping what waits for it.
#[must_use = "streams do nothing unless polled"]
pub struct MapWatch<K, V> {
    handle: Handle,
    watch: u64,
    position: u64,
    asking: Option<Asking>,
    unit: BudgetUnit,
    ready: VecDeque<Result<MapChange<K, V>, Error>>,
    ended: bool,
}

impl<K, V> MapWatch<K, V> {
    pub(super) fn begin(
        handle: Handle,
        ticket: Option<u64>,
        answer: Result<Body, Error>,
    ) -> Result<Self, Error> {
        match (reply(&answer?)?, ticket) {
            (Reply::Watching { position }, Some(watch)) => Ok(Self {
                handle,
                watch,
                position,
                asking: None,
                unit: BudgetUnit::default(),
                ready: VecDeque::new(),
                ended: false,
            }),
            (other, _) => Err(strange(&other)),
        }
    }
}

impl<K: DeserializeOwned, V: DeserializeOwned> MapWatch<K, V> {
    /// Waits for the next change.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::sync::ErrorKind::Decode), when it is of other types; the next call goes on
    /// behind it. [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// No change is lost.
    pub async fn changed(&mut self) -> Result<MapChange<K, V>, Error> {
        std::future::poll_fn(|cx| self.poll_changed(cx)).await
    }

    /// As [`changed`](Self::changed), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `changed`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_changed(&mut self) -> Result<MapChange<K, V>, Error> {
        wait::block_on(self.changed())
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<Result<MapChange<K, V>, Error>> {
        ready!(self.unit.poll_unit(cx));
        let polled = self.poll_next_change(cx);
        self.unit.per_item(polled)
    }

    fn poll_next_change(&mut self, cx: &mut Context<'_>) -> Poll<Result<MapChange<K, V>, Error>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Poll::Ready(change);
            }
            let (handle, watch, after) = (&self.handle, self.watch, self.position);
            let asking = self.asking.get_or_insert_with(|| {
                handle.ask(Ask::Next { watch, after, wait: Wait::Ever }.body())
            });
            let answer = ready!(Pin::new(asking).poll(cx));
            self.asking = None;
            let body = answer?;
            match reply(&body)? {
                Reply::Changes { position, lost } => {
                    self.position = position;
                    self.ready.extend(lost.then_some(Ok(MapChange::Missed)));
                    let parts =
                        unpack(&body.tail).map_err(|bad| Error::from(Why::Decode(bad.0)))?;
                    for parts in parts.chunks_exact(3) {
                        let decode = || {
                            let key = value::decode(&parts[0])?;
                            Ok(match parts[1][..] == [1] {
                                true => MapChange::Set { key, value: value::decode(&parts[2])? },
                                false => MapChange::Removed { key },
                            })
                        };
                        self.ready
                            .push_back(self.handle.decode_with::<_, DecodeError>(decode, &body));
                    }
                }
                other => return Poll::Ready(Err(strange(&other))),
            }
        }
    }
}

impl<K: DeserializeOwned + Unpin, V: DeserializeOwned + Unpin> Stream for MapWatch<K, V> {
    type Item = Result<MapChange<K, V>, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let change = ready!(this.poll_changed(cx));
        this.ended =
            change.as_ref().is_err_and(|error| error.kind() != crate::sync::ErrorKind::Decode);
        Poll::Ready(Some(change))
    }
}

impl<K, V> Drop for MapWatch<K, V> {
    fn drop(&mut self) {
        self.handle.cancel(self.watch);
    }
}

impl<K, V> fmt::Debug for MapWatch<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapWatch")
            .field("handle", &self.handle)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
