//! The handle of a list.

use super::handle::{Asking, Handle, handle_travels, kinds};
use super::manager::Manager;
use super::pieces;
use super::wait::park_on;
use crate::coop::take_unit;
use crate::error::sync::{Error, Why};
use crate::manager::held::join;
use crate::manager::object::{Body, Part};
use crate::manager::objects::code::{Message, Pack, unpack};
use crate::manager::objects::list::{Ask, List as Rules, Reply};
use crate::manager::objects::when::When;
use crate::wire::value;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;

/// A list that processes share (Python's `Manager().list()`).
///
/// Made by [`Manager::list`]. A handle is cheap to clone, can be used from any thread and in any
/// runtime, and travels to other processes as an argument, in a result, or inside another shared
/// object.
///
/// Each call is one step: nobody sees half of it. What must be read, thought about and written in
/// one step is done by [`update`](Self::update) or [`compare_exchange`](Self::compare_exchange); a
/// `get` followed by a `set` is two. To hand work from one process to another a
/// [`Queue`](crate::sync::Queue) is better: what a process that dies had popped is lost.
///
/// The methods whose names begin with `blocking_` are for code that is not async. The manager
/// answers at once, so they may be called anywhere; in a worker they block the thread for the round
/// trip to it.
///
/// ```
/// use procpool::Manager;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let list = Manager::new()?.list::<i64>()?;
/// list.extend([3, 1, 2]).await?;
/// list.push(9).await?;
/// assert_eq!(list.pop().await?, Some(9));
/// assert_eq!(list.snapshot().await?, [3, 1, 2]);
/// assert!(list.set(7, 0).await.is_err()); // there is no such place
/// # Ok(())
/// # }
/// ```
pub struct List<T> {
    handle: Handle,
    marker: PhantomData<fn() -> T>,
}

handle_travels!(List<T>, kinds::LIST);

impl<T> Clone for List<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), marker: PhantomData }
    }
}

impl<T> fmt::Debug for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List").field("handle", &self.handle).finish()
    }
}

impl Manager {
    /// Makes an empty list.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn list<T>(&self) -> Result<List<T>, Error> {
        self.make_list(None)
    }

    /// The list of this name; makes it, empty, if there is none. `T` must be what it was made with:
    /// that is noticed only when an element cannot be decoded.
    ///
    /// # Errors
    ///
    /// As [`list`](Self::list).
    pub fn list_named<T>(&self, name: &str) -> Result<List<T>, Error> {
        self.make_list(Some(name))
    }

    fn make_list<T>(&self, name: Option<&str>) -> Result<List<T>, Error> {
        let handle = Handle::create(self.connection(), kinds::LIST, Part::WHOLE, name, || {
            Box::new(Rules::new())
        })?;
        Ok(List { handle, marker: PhantomData })
    }
}

/// No more values than this, in bytes, are put into one message (but always one).
const BATCH_BYTES: usize = 256 << 10;

#[cfg(test)]
impl<T> List<T> {
    pub(super) fn of(handle: Handle) -> Self {
        Self { handle, marker: PhantomData }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl<T> List<T> {
    fn ask(&self, ask: &Ask) -> Asking {
        self.handle.ask(ask.body())
    }

    /// How many elements it has. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn len(&self) -> Result<usize, Error> {
        length(self.ask(&Ask::Len).settle())
    }

    /// Whether it has no elements. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// Removes all elements.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn clear(&self) -> Result<(), Error> {
        length(self.ask(&Ask::Clear).await).map(drop)
    }

    /// As [`clear`](Self::clear).
    ///
    /// # Errors
    ///
    /// As `clear`.
    pub fn blocking_clear(&self) -> Result<(), Error> {
        length(self.ask(&Ask::Clear).settle()).map(drop)
    }

    /// Removes what stands behind the first `len` elements.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn truncate(&self, len: usize) -> Result<(), Error> {
        length(self.ask(&Ask::Truncate { len: len as u64 }).await).map(drop)
    }

    /// As [`truncate`](Self::truncate).
    ///
    /// # Errors
    ///
    /// As `truncate`.
    pub fn blocking_truncate(&self, len: usize) -> Result<(), Error> {
        length(self.ask(&Ask::Truncate { len: len as u64 }).settle()).map(drop)
    }

    /// Turns it round.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn reverse(&self) -> Result<(), Error> {
        length(self.ask(&Ask::Reverse).await).map(drop)
    }

    /// As [`reverse`](Self::reverse).
    ///
    /// # Errors
    ///
    /// As `reverse`.
    pub fn blocking_reverse(&self) -> Result<(), Error> {
        length(self.ask(&Ask::Reverse).settle()).map(drop)
    }

    /// Exchanges two elements.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](crate::sync::ErrorKind::OutOfRange);
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn swap(&self, a: usize, b: usize) -> Result<(), Error> {
        length(self.ask(&Ask::Swap { a: a as u64, b: b as u64 }).await).map(drop)
    }

    /// As [`swap`](Self::swap).
    ///
    /// # Errors
    ///
    /// As `swap`.
    pub fn blocking_swap(&self, a: usize, b: usize) -> Result<(), Error> {
        length(self.ask(&Ask::Swap { a: a as u64, b: b as u64 }).settle()).map(drop)
    }
}

impl<T: Serialize> List<T> {
    fn start(&self, ask: &Ask, value: &T) -> Result<Asking, Error> {
        let (tail, held) = self.handle.encode(value)?;
        Ok(self.handle.ask(Body::with_value(ask.packet(), tail, held)))
    }

    /// Puts an element at the end.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::sync::ErrorKind::Encode) and [`TooLarge`](crate::sync::ErrorKind::TooLarge) (16 MiB);
    /// [`ManagerFull`](crate::sync::ErrorKind::ManagerFull);
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn push(&self, value: T) -> Result<(), Error> {
        length(self.start(&Ask::Push, &value)?.await).map(drop)
    }

    /// As [`push`](Self::push).
    ///
    /// # Errors
    ///
    /// As `push`.
    pub fn blocking_push(&self, value: T) -> Result<(), Error> {
        length(self.start(&Ask::Push, &value)?.settle()).map(drop)
    }

    /// Puts an element at this place; those from there on move up. At the length, that is the end.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](crate::sync::ErrorKind::OutOfRange), and those of [`push`](Self::push).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn insert(&self, at: usize, value: T) -> Result<(), Error> {
        length(self.start(&Ask::Insert { at: at as u64 }, &value)?.await).map(drop)
    }

    /// As [`insert`](Self::insert).
    ///
    /// # Errors
    ///
    /// As `insert`.
    pub fn blocking_insert(&self, at: usize, value: T) -> Result<(), Error> {
        length(self.start(&Ask::Insert { at: at as u64 }, &value)?.settle()).map(drop)
    }

    /// Puts many at the end, some hundred KiB of them in one step.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push); some may be there then.
    ///
    /// # Cancel safety
    ///
    /// Dropped, some may be there.
    pub async fn extend(&self, values: impl IntoIterator<Item = T>) -> Result<(), Error> {
        take_unit().await;
        self.extend_with(values, async |asking| asking.await).await
    }

    /// As [`extend`](Self::extend).
    ///
    /// # Errors
    ///
    /// As `extend`.
    pub fn blocking_extend(&self, values: impl IntoIterator<Item = T>) -> Result<(), Error> {
        let done = self.extend_with(values, async |asking| asking.settle());
        futures::FutureExt::now_or_never(done).expect("it has waited already")
    }

    async fn extend_with(
        &self,
        values: impl IntoIterator<Item = T>,
        wait: impl AsyncFn(Asking) -> Result<Body, Error>,
    ) -> Result<(), Error> {
        let mut values = values.into_iter().peekable();
        while values.peek().is_some() {
            let (mut pack, mut held) = (Pack::default(), Vec::new());
            while pack.len() < BATCH_BYTES
                && let Some(value) = values.next()
            {
                let (value, holds) = self.handle.encode(&value)?;
                pack.push(&value);
                held.push(holds);
            }
            length(
                wait(self.handle.ask(Body::with_value(
                    Ask::Extend.packet(),
                    pack.finish(),
                    join(held),
                )))
                .await,
            )?;
        }
        Ok(())
    }
}

impl<T: DeserializeOwned> List<T> {
    fn value(&self, answer: Result<Body, Error>) -> Result<Option<T>, Error> {
        let body = answer?;
        match reply(&body)? {
            Reply::Value { .. } => self.handle.decode(&body).map(Some),
            Reply::Empty => Ok(None),
            other => Err(strange(&other)),
        }
    }

    /// One that must be there.
    fn one(&self, answer: Result<Body, Error>) -> Result<T, Error> {
        self.value(answer)?.ok_or_else(|| Why::OutOfRange { len: 0 }.into())
    }

    /// One that may be out of range.
    fn maybe(&self, answer: Result<Body, Error>) -> Result<Option<T>, Error> {
        match self.value(answer) {
            Err(error) if error.kind() == crate::sync::ErrorKind::OutOfRange => Ok(None),
            other => other,
        }
    }

    /// Takes the last element out, if there is one.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::sync::ErrorKind::Decode), when it is not a `T` (it is gone then);
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Dropped after it was polled, an element may be lost. Where that matters, use a
    /// [`Queue`](crate::sync::Queue).
    pub async fn pop(&self) -> Result<Option<T>, Error> {
        self.value(self.ask(&Ask::Pop).await)
    }

    /// As [`pop`](Self::pop).
    ///
    /// # Errors
    ///
    /// As `pop`.
    pub fn blocking_pop(&self) -> Result<Option<T>, Error> {
        self.value(self.ask(&Ask::Pop).settle())
    }

    /// Takes the first element out, if there is one.
    ///
    /// # Errors
    ///
    /// As [`pop`](Self::pop).
    ///
    /// # Cancel safety
    ///
    /// As `pop`.
    pub async fn pop_front(&self) -> Result<Option<T>, Error> {
        self.value(self.ask(&Ask::PopFront).await)
    }

    /// As [`pop_front`](Self::pop_front).
    ///
    /// # Errors
    ///
    /// As `pop`.
    pub fn blocking_pop_front(&self) -> Result<Option<T>, Error> {
        self.value(self.ask(&Ask::PopFront).settle())
    }

    /// Takes the element at this place out; those behind it move down.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](crate::sync::ErrorKind::OutOfRange), and those of [`pop`](Self::pop).
    ///
    /// # Cancel safety
    ///
    /// As `pop`.
    pub async fn remove(&self, at: usize) -> Result<T, Error> {
        self.one(self.ask(&Ask::Remove { at: at as u64 }).await)
    }

    /// As [`remove`](Self::remove).
    ///
    /// # Errors
    ///
    /// As `remove`.
    pub fn blocking_remove(&self, at: usize) -> Result<T, Error> {
        self.one(self.ask(&Ask::Remove { at: at as u64 }).settle())
    }

    /// The element at this place, if there is one.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::sync::ErrorKind::Decode), when it is not a `T`;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Nothing happens by dropping it.
    pub async fn get(&self, at: usize) -> Result<Option<T>, Error> {
        self.maybe(self.ask(&Ask::Get { at: at as u64 }).await)
    }

    /// As [`get`](Self::get).
    ///
    /// # Errors
    ///
    /// As `get`.
    pub fn blocking_get(&self, at: usize) -> Result<Option<T>, Error> {
        self.maybe(self.ask(&Ask::Get { at: at as u64 }).settle())
    }

    /// Returns all elements, as they are in one moment.
    ///
    /// Another process fetches them in pieces of 512 KiB, or one element if that is larger, and the
    /// manager serves others between two pieces. Until the last one is fetched, elements that were
    /// replaced meanwhile count towards the manager's memory.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::sync::ErrorKind::Decode), when one is not a `T`;
    /// [`TooManyRequests`](crate::sync::ErrorKind::TooManyRequests), when this process is
    /// fetching 256 snapshots of this list, or another one would exceed the manager's memory;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Nothing happens by dropping it.
    pub async fn snapshot(&self) -> Result<Vec<T>, Error> {
        self.values(0..usize::MAX).await
    }

    /// As [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    ///
    /// As `snapshot`.
    pub fn blocking_snapshot(&self) -> Result<Vec<T>, Error> {
        park_on(self.values(0..usize::MAX))
    }

    /// The elements of these places, as they are in one moment; those that do not exist are left
    /// out.
    ///
    /// # Errors
    ///
    /// As [`snapshot`](Self::snapshot).
    ///
    /// # Cancel safety
    ///
    /// Nothing happens by dropping it.
    pub async fn range(&self, places: std::ops::Range<usize>) -> Result<Vec<T>, Error> {
        self.values(places).await
    }

    /// As [`range`](Self::range).
    ///
    /// # Errors
    ///
    /// As `snapshot`.
    pub fn blocking_range(&self, places: std::ops::Range<usize>) -> Result<Vec<T>, Error> {
        park_on(self.values(places))
    }

    async fn values(&self, places: std::ops::Range<usize>) -> Result<Vec<T>, Error> {
        let first = Ask::Snapshot { from: places.start as u64, to: places.end as u64 };
        let more = |snapshot| Ask::More { snapshot }.body();
        let mut all = Vec::new();
        pieces::fetch(&self.handle, first.body(), more, |body| {
            let more = match reply(body)? {
                Reply::Values { more } => more,
                other => return Err(strange(&other)),
            };
            let values = unpack(&body.tail).map_err(|bad| Error::from(Why::Decode(bad.0)))?;
            let decode = || {
                for value in &values {
                    all.push(value::decode(value)?);
                }
                Ok::<_, value::DecodeError>(())
            };
            self.handle.decode_with(decode, body)?;
            Ok(more)
        })
        .await?;
        Ok(all)
    }
}

impl<T: Serialize + DeserializeOwned> List<T> {
    fn start_set(&self, at: usize, value: &T, when: When) -> Result<Asking, Error> {
        self.start(&Ask::Set { at: at as u64, when }, value)
    }

    /// Replaces the element at this place; gives the one that was there.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](crate::sync::ErrorKind::OutOfRange), and those of [`push`](Self::push) and
    /// [`get`](Self::get).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn set(&self, at: usize, value: T) -> Result<T, Error> {
        self.one(self.start_set(at, &value, When::Always)?.await)
    }

    /// As [`set`](Self::set).
    ///
    /// # Errors
    ///
    /// As `set`.
    pub fn blocking_set(&self, at: usize, value: T) -> Result<T, Error> {
        self.one(self.start_set(at, &value, When::Always)?.settle())
    }

    /// Changes the element at this place in one step: `change` gets what is there, and says what is
    /// to be there. Gives that.
    ///
    /// `change` runs here, and again whenever somebody else has changed the element meanwhile, or
    /// another one has come to this place; so it should do nothing but compute.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set); nothing is changed then.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it may have been done or not.
    pub async fn update(&self, at: usize, change: impl FnMut(T) -> T) -> Result<T, Error> {
        self.update_with(at, change, async |asking| asking.await).await
    }

    /// As [`update`](Self::update).
    ///
    /// # Errors
    ///
    /// As `update`.
    pub fn blocking_update(&self, at: usize, change: impl FnMut(T) -> T) -> Result<T, Error> {
        let done = self.update_with(at, change, async |asking| asking.settle());
        futures::FutureExt::now_or_never(done).expect("it has waited already")
    }

    async fn update_with(
        &self,
        at: usize,
        mut change: impl FnMut(T) -> T,
        wait: impl AsyncFn(Asking) -> Result<Body, Error>,
    ) -> Result<T, Error> {
        let mut body = wait(self.ask(&Ask::Get { at: at as u64 })).await?;
        loop {
            let version = match reply(&body)? {
                Reply::Value { version } | Reply::Refused { version } => version,
                other => return Err(strange(&other)),
            };
            let new = change(self.handle.decode(&body)?);
            body = wait(self.start_set(at, &new, When::Version(version))?).await?;
            if matches!(reply(&body)?, Reply::Value { .. }) {
                return Ok(new);
            }
        }
    }

    /// Puts `new` in the place of `expected` in one step, if that is what is there; else gives what
    /// is there, in an inner error. Values are the same when their encodings are.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn compare_exchange(
        &self,
        at: usize,
        expected: &T,
        new: &T,
    ) -> Result<Result<(), T>, Error> {
        let when = When::Equals(self.handle.encode(expected)?.0);
        self.exchanged(self.start_set(at, new, when)?.await)
    }

    /// As [`compare_exchange`](Self::compare_exchange).
    ///
    /// # Errors
    ///
    /// As `compare_exchange`.
    pub fn blocking_compare_exchange(
        &self,
        at: usize,
        expected: &T,
        new: &T,
    ) -> Result<Result<(), T>, Error> {
        let when = When::Equals(self.handle.encode(expected)?.0);
        self.exchanged(self.start_set(at, new, when)?.settle())
    }

    fn exchanged(&self, answer: Result<Body, Error>) -> Result<Result<(), T>, Error> {
        let body = answer?;
        match reply(&body)? {
            Reply::Value { .. } => Ok(Ok(())),
            Reply::Refused { .. } => Ok(Err(self.handle.decode(&body)?)),
            other => Err(strange(&other)),
        }
    }
}

fn reply(body: &Body) -> Result<Reply, Error> {
    Reply::read(&body.head).map_err(|bad| Why::Decode(bad.0).into())
}

fn strange(reply: &Reply) -> Error {
    match reply {
        Reply::OutOfRange { len } => Why::OutOfRange { len: *len },
        Reply::Busy => Why::TooManyRequests,
        other => Why::Decode(format!("the list has answered {other:?}")),
    }
    .into()
}

fn length(answer: Result<Body, Error>) -> Result<usize, Error> {
    match reply(&answer?)? {
        Reply::Done { len } => Ok(len as usize),
        other => Err(strange(&other)),
    }
}
