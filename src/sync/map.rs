//! The handle of a map.

use super::handle::{Asking, Handle, handle_travels, kinds};
use super::manager::Manager;
use super::map_lane::NO_LANE;
use super::map_watch::MapWatch;
use super::pieces;
use super::wait::park_on;
use crate::coop::take_unit;
use crate::error::sync::{Error, Why};
use crate::manager::held::join;
use crate::manager::message::KEY_MAX;
use crate::manager::object::{Body, Held, Part};
use crate::manager::objects::code::{Message, Pack, unpack};
use crate::manager::objects::map::{Ask, Map as Rules, Reply};
use crate::manager::objects::when::When;
use crate::manager::reads::Seen;
use crate::wire::packet::Packet;
use crate::wire::value;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;

/// A map that processes share (Python's `Manager().dict()`).
///
/// Made by [`Manager::map`]. A handle is cheap to clone, can be used from any thread and in any
/// runtime, and travels to other processes as an argument, in a result, or inside another shared
/// object.
///
/// Each call is one step: nobody sees half of it. What must be read, thought about and written in
/// one step is done by [`update`](Self::update) or [`compare_exchange`](Self::compare_exchange); a
/// `get` followed by an `insert` is two.
///
/// Keys and values are kept encoded. Two keys are the same when their encodings are: so a key is
/// asked for by `&str` where it is a `String`; and what has no fixed order (a `HashSet`) makes a
/// poor key. Entries stand in the order of their first insertion, as in Python.
///
/// [`set`](Self::set) does not say what was there before, as [`insert`](Self::insert) does; so a
/// worker that sets often needs no answer to each. Nor does it to each [`get`](Self::get), as long
/// as nobody else changes the map. Every other call is a round trip to the manager, and so are some
/// of these, whenever those who read and those who write take turns.
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
/// let ages = Manager::new()?.map::<String, u32>()?;
/// ages.insert("ann".into(), 30).await?;
/// ages.update("ann".into(), |age| Some(age.unwrap_or(0) + 1)).await?;
/// assert_eq!(ages.get("ann").await?, Some(31));
/// assert_eq!(ages.get("bob").await?, None);
/// # Ok(())
/// # }
/// ```
pub struct Map<K, V> {
    handle: Handle,
    marker: PhantomData<fn() -> (K, V)>,
}

handle_travels!(Map<K, V>, kinds::MAP);

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), marker: PhantomData }
    }
}

impl<K, V> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("handle", &self.handle).finish()
    }
}

impl Manager {
    /// Makes an empty map.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn map<K, V>(&self) -> Result<Map<K, V>, Error> {
        self.make_map(None)
    }

    /// The map of this name; makes it, empty, if there is none. `K` and `V` must be what it was
    /// made with: that is noticed only when something cannot be decoded.
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map).
    pub fn map_named<K, V>(&self, name: &str) -> Result<Map<K, V>, Error> {
        self.make_map(Some(name))
    }

    fn make_map<K, V>(&self, name: Option<&str>) -> Result<Map<K, V>, Error> {
        let handle = Handle::create(self.connection(), kinds::MAP, Part::WHOLE, name, || {
            Box::new(Rules::new())
        })?;
        Ok(Map { handle, marker: PhantomData })
    }
}

/// No more than this, in bytes, is put into one message (but always one entry).
const BATCH_BYTES: usize = 256 << 10;

/// The error of [`Map::compare_exchange`]: the key had another value than the expected one, and
/// nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareExchangeError<V> {
    /// The value that the key has instead; `None` if the key is absent.
    pub current: Option<V>,
}

impl<V> fmt::Display for CompareExchangeError<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.current {
            Some(_) => "the key has another value than the expected one",
            None => "the key is absent, and a value was expected",
        })
    }
}

impl<V: fmt::Debug> std::error::Error for CompareExchangeError<V> {}

impl<K, V> Map<K, V> {
    /// How many entries it has. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn len(&self) -> Result<usize, Error> {
        length(self.handle.ask(Ask::Len.body()).settle())
    }

    /// Whether it has no entries. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// Removes all entries.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn clear(&self) -> Result<(), Error> {
        length(self.handle.ask(Ask::Clear.body()).await).map(drop)
    }

    /// As [`clear`](Self::clear).
    ///
    /// # Errors
    ///
    /// As `clear`.
    pub fn blocking_clear(&self) -> Result<(), Error> {
        length(self.handle.ask(Ask::Clear.body()).settle()).map(drop)
    }
}

/// A key, encoded. It may hold no handles of shared objects: they are no data that could be
/// compared.
fn encode_key<Q: Serialize + ?Sized>(handle: &Handle, key: &Q) -> Result<Packet, Error> {
    match handle.encode(key)? {
        (key, None) if key.len() > KEY_MAX => Err(Why::TooLarge { limit: KEY_MAX }.into()),
        (key, None) => Ok(key),
        (_, Some(_)) => {
            Err(Why::Encode("a handle of a shared object cannot be a key".into()).into())
        }
    }
}

impl<K: Serialize, V> Map<K, V> {
    fn ask_key<Q>(&self, key: &Q, ask: impl FnOnce(Packet) -> Ask) -> Result<Asking, Error>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        Ok(self.handle.ask(ask(encode_key(&self.handle, key)?).body()))
    }

    /// Whether there is an entry with this key.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::sync::ErrorKind::Encode) and [`TooLarge`](crate::sync::ErrorKind::TooLarge) of the
    /// key; [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Nothing happens by dropping it.
    pub async fn contains_key<Q>(&self, key: &Q) -> Result<bool, Error>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        contained(self.ask_key(key, |key| Ask::Contains { key })?.await)
    }

    /// As [`contains_key`](Self::contains_key).
    ///
    /// # Errors
    ///
    /// As `contains_key`.
    pub fn blocking_contains_key<Q>(&self, key: &Q) -> Result<bool, Error>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        contained(self.ask_key(key, |key| Ask::Contains { key })?.settle())
    }
}

impl<K: Serialize, V: DeserializeOwned> Map<K, V> {
    /// The value of this key, if there is one.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::sync::ErrorKind::Encode) and [`TooLarge`](crate::sync::ErrorKind::TooLarge) of the
    /// key; [`Decode`](crate::sync::ErrorKind::Decode), when the value is not a `V`;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Nothing happens by dropping it.
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<V>, Error>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        let key = encode_key(&self.handle, key)?;
        match self.handle.get_at_once(&key) {
            Ok(value) => {
                take_unit().await;
                value.map(|value| self.handle.decode(&value)).transpose()
            }
            Err(seen) => {
                self.got(key.clone(), seen, self.handle.ask(Ask::Get { key }.body()).await)
            }
        }
    }

    /// As [`get`](Self::get).
    ///
    /// # Errors
    ///
    /// As `get`.
    pub fn blocking_get<Q>(&self, key: &Q) -> Result<Option<V>, Error>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        let key = encode_key(&self.handle, key)?;
        match self.handle.get_at_once(&key) {
            Ok(value) => value.map(|value| self.handle.decode(&value)).transpose(),
            Err(seen) => {
                self.got(key.clone(), seen, self.handle.ask(Ask::Get { key }.body()).settle())
            }
        }
    }

    /// Removes an entry; gives its value, if there was one.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn remove<Q>(&self, key: &Q) -> Result<Option<V>, Error>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.found(self.ask_key(key, |key| Ask::Remove { key, when: When::Always })?.await)
    }

    /// As [`remove`](Self::remove).
    ///
    /// # Errors
    ///
    /// As `remove`.
    pub fn blocking_remove<Q>(&self, key: &Q) -> Result<Option<V>, Error>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.found(self.ask_key(key, |key| Ask::Remove { key, when: When::Always })?.settle())
    }

    /// What was read, and is kept if nothing has changed since it was asked for.
    fn got(
        &self,
        key: Packet,
        seen: Option<Seen>,
        answer: Result<Body, Error>,
    ) -> Result<Option<V>, Error> {
        if let (Some(seen), Ok(body)) = (seen, &answer)
            && body.held.is_none()
        {
            match reply(body)? {
                Reply::Value { .. } => self.handle.keep(key, Some(body.tail.clone()), seen),
                Reply::Absent => self.handle.keep(key, None, seen),
                _ => {}
            }
        }
        self.found(answer)
    }

    fn found(&self, answer: Result<Body, Error>) -> Result<Option<V>, Error> {
        let body = answer?;
        match reply(&body)? {
            Reply::Value { .. } | Reply::Refused { .. } => self.handle.decode(&body).map(Some),
            Reply::Absent | Reply::Inserted { .. } | Reply::RefusedAbsent => Ok(None),
            other => Err(strange(&other)),
        }
    }
}

impl<K: Serialize, V: Serialize> Map<K, V> {
    /// Gives this key this value (Python's `d[key] = value`). What it had before is not told: so a
    /// worker need not wait for an answer each time, and can do this more often than
    /// [`insert`](Self::insert) by far.
    ///
    /// From when this is ready, every process sees it, and it stays if this one dies.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::sync::ErrorKind::Encode) and [`TooLarge`](crate::sync::ErrorKind::TooLarge) (16 MiB, a
    /// key 1 MiB);
    /// [`ManagerFull`](crate::sync::ErrorKind::ManagerFull);
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn set(&self, key: K, value: V) -> Result<(), Error> {
        match self.start_set(&key, &value)? {
            Some(asking) => was_set(asking.await),
            None => {
                take_unit().await;
                Ok(())
            }
        }
    }

    /// As [`set`](Self::set).
    ///
    /// # Errors
    ///
    /// As `set`.
    pub fn blocking_set(&self, key: K, value: V) -> Result<(), Error> {
        self.start_set(&key, &value)?.map_or(Ok(()), |asking| was_set(asking.settle()))
    }

    /// `None`: it is set.
    fn start_set(&self, key: &K, value: &V) -> Result<Option<Asking>, Error> {
        let (key, (value, held)) = (encode_key(&self.handle, key)?, self.handle.encode(value)?);
        let lane = match &held {
            Some(_) => NO_LANE,
            None => match self.handle.set_at_once(&key, &value) {
                Ok(()) => return Ok(None),
                Err(lane) => lane,
            },
        };
        Ok(Some(self.handle.ask(Body::with_value(Ask::Set { key, lane }.packet(), value, held))))
    }
}

impl<K: Serialize, V: Serialize + DeserializeOwned> Map<K, V> {
    fn ask_insert(&self, key: Packet, (value, held): (Packet, Held), when: When) -> Asking {
        self.handle.ask(Body::with_value(Ask::Insert { key, when }.packet(), value, held))
    }

    fn start_insert(&self, key: &K, value: &V, when: When) -> Result<Asking, Error> {
        Ok(self.ask_insert(encode_key(&self.handle, key)?, self.handle.encode(value)?, when))
    }

    /// Gives this key this value; gives the one it had before, if it had one.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::sync::ErrorKind::Encode) and [`TooLarge`](crate::sync::ErrorKind::TooLarge) (16 MiB, a
    /// key 1 MiB);
    /// [`ManagerFull`](crate::sync::ErrorKind::ManagerFull); [`Decode`](crate::sync::ErrorKind::Decode), when
    /// the one before is not a `V` (then it is replaced all the same);
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn insert(&self, key: K, value: V) -> Result<Option<V>, Error> {
        self.found(self.start_insert(&key, &value, When::Always)?.await)
    }

    /// As [`insert`](Self::insert).
    ///
    /// # Errors
    ///
    /// As `insert`.
    pub fn blocking_insert(&self, key: K, value: V) -> Result<Option<V>, Error> {
        self.found(self.start_insert(&key, &value, When::Always)?.settle())
    }

    /// The value of this key; if there is none, it is this one from now on (Python's `setdefault`).
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn get_or_insert(&self, key: K, value: V) -> Result<V, Error> {
        Ok(self.found(self.start_insert(&key, &value, When::Absent)?.await)?.unwrap_or(value))
    }

    /// As [`get_or_insert`](Self::get_or_insert).
    ///
    /// # Errors
    ///
    /// As `get_or_insert`.
    pub fn blocking_get_or_insert(&self, key: K, value: V) -> Result<V, Error> {
        Ok(self.found(self.start_insert(&key, &value, When::Absent)?.settle())?.unwrap_or(value))
    }

    /// Changes the value of this key in one step: `change` gets what is there, and says what is to
    /// be there (`None`: no entry). Gives that.
    ///
    /// `change` runs here, and again whenever somebody else has changed the value meanwhile; so it
    /// should do nothing but compute.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert); nothing is changed then.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it may have been done or not.
    pub async fn update(
        &self,
        key: K,
        change: impl FnMut(Option<V>) -> Option<V>,
    ) -> Result<Option<V>, Error> {
        self.update_with(&key, change, async |asking| asking.await).await
    }

    /// As [`update`](Self::update).
    ///
    /// # Errors
    ///
    /// As `update`.
    pub fn blocking_update(
        &self,
        key: K,
        change: impl FnMut(Option<V>) -> Option<V>,
    ) -> Result<Option<V>, Error> {
        let done = self.update_with(&key, change, async |asking| asking.settle());
        futures::FutureExt::now_or_never(done).expect("it has waited already")
    }

    async fn update_with(
        &self,
        key: &K,
        mut change: impl FnMut(Option<V>) -> Option<V>,
        wait: impl AsyncFn(Asking) -> Result<Body, Error>,
    ) -> Result<Option<V>, Error> {
        let key = encode_key(&self.handle, key)?;
        let mut body = wait(self.handle.ask(Ask::Get { key: key.clone() }.body())).await?;
        loop {
            let (now, when) = match reply(&body)? {
                Reply::Value { version } | Reply::Refused { version } => {
                    (Some(self.handle.decode(&body)?), When::Version(version))
                }
                Reply::Absent | Reply::RefusedAbsent => (None, When::Absent),
                other => return Err(strange(&other)),
            };
            let new = change(now);
            body = match &new {
                Some(value) => {
                    wait(self.ask_insert(key.clone(), self.handle.encode(value)?, when)).await?
                }
                None if when == When::Absent => return Ok(None),
                None => {
                    wait(self.handle.ask(Ask::Remove { key: key.clone(), when }.body())).await?
                }
            };
            match reply(&body)? {
                Reply::Refused { .. } | Reply::RefusedAbsent => {}
                Reply::Value { .. } | Reply::Inserted { .. } => return Ok(new),
                other => return Err(strange(&other)),
            }
        }
    }

    /// Puts `new` in the place of `expected` in one step, if that is what is there; `None` is no
    /// entry. Else gives what is there, in an inner error. Values are the same when their
    /// encodings are.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    ///
    /// # Cancel safety
    ///
    /// It is done once this was polled.
    pub async fn compare_exchange(
        &self,
        key: K,
        expected: Option<&V>,
        new: Option<&V>,
    ) -> Result<Result<(), CompareExchangeError<V>>, Error> {
        let asking = self.start_exchange(&key, expected, new)?;
        self.exchanged(asking.await)
    }

    /// As [`compare_exchange`](Self::compare_exchange).
    ///
    /// # Errors
    ///
    /// As `compare_exchange`.
    pub fn blocking_compare_exchange(
        &self,
        key: K,
        expected: Option<&V>,
        new: Option<&V>,
    ) -> Result<Result<(), CompareExchangeError<V>>, Error> {
        let asking = self.start_exchange(&key, expected, new)?;
        self.exchanged(asking.settle())
    }

    fn start_exchange(
        &self,
        key: &K,
        expected: Option<&V>,
        new: Option<&V>,
    ) -> Result<Asking, Error> {
        let when = match expected {
            Some(value) => When::Equals(self.handle.encode(value)?.0),
            None => When::Absent,
        };
        match new {
            Some(value) => self.start_insert(key, value, when),
            None => Ok(self
                .handle
                .ask(Ask::Remove { key: encode_key(&self.handle, key)?, when }.body())),
        }
    }

    fn exchanged(
        &self,
        answer: Result<Body, Error>,
    ) -> Result<Result<(), CompareExchangeError<V>>, Error> {
        let body = answer?;
        match reply(&body)? {
            Reply::Refused { .. } => {
                Ok(Err(CompareExchangeError { current: Some(self.handle.decode(&body)?) }))
            }
            Reply::RefusedAbsent => Ok(Err(CompareExchangeError { current: None })),
            Reply::Value { .. } | Reply::Inserted { .. } | Reply::Absent => Ok(Ok(())),
            other => Err(strange(&other)),
        }
    }

    /// Inserts many, some hundred KiB of them in one step.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert); some may be inserted then.
    ///
    /// # Cancel safety
    ///
    /// Dropped, some may be inserted.
    pub async fn extend(&self, entries: impl IntoIterator<Item = (K, V)>) -> Result<(), Error> {
        take_unit().await;
        self.extend_with(entries, async |asking| asking.await).await
    }

    /// As [`extend`](Self::extend).
    ///
    /// # Errors
    ///
    /// As `extend`.
    pub fn blocking_extend(&self, entries: impl IntoIterator<Item = (K, V)>) -> Result<(), Error> {
        let done = self.extend_with(entries, async |asking| asking.settle());
        futures::FutureExt::now_or_never(done).expect("it has waited already")
    }

    async fn extend_with(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
        wait: impl AsyncFn(Asking) -> Result<Body, Error>,
    ) -> Result<(), Error> {
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let (mut pack, mut held) = (Pack::default(), Vec::new());
            while pack.len() < BATCH_BYTES
                && let Some((key, value)) = entries.next()
            {
                pack.push(&encode_key(&self.handle, &key)?);
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

impl<K: DeserializeOwned, V: DeserializeOwned> Map<K, V> {
    /// Returns all entries, as they are in one moment.
    ///
    /// Another process fetches them in pieces of 512 KiB, or one entry if that is larger, and the
    /// manager serves others between two pieces. Until the last one is fetched, values that were
    /// replaced meanwhile count towards the manager's memory.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::sync::ErrorKind::Decode), when one is not of these types;
    /// [`TooManyRequests`](crate::sync::ErrorKind::TooManyRequests), when this process is
    /// fetching 256 snapshots of this map, or another one would exceed the manager's memory;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Nothing happens by dropping it.
    pub async fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        self.fetch_entries().await
    }

    /// As [`entries`](Self::entries).
    ///
    /// # Errors
    ///
    /// As `entries`.
    pub fn blocking_entries(&self) -> Result<Vec<(K, V)>, Error> {
        park_on(self.fetch_entries())
    }

    async fn fetch_entries(&self) -> Result<Vec<(K, V)>, Error> {
        let mut all = Vec::new();
        let take = |parts: &[Packet]| {
            for pair in parts.chunks_exact(2) {
                all.push((value::decode(&pair[0])?, value::decode(&pair[1])?));
            }
            Ok(())
        };
        fetch(&self.handle, true, take).await?;
        Ok(all)
    }

    /// Watches it: every change from now on, as a stream.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Nothing is watched.
    pub async fn watch(&self) -> Result<MapWatch<K, V>, Error> {
        let asking = self.handle.ask(Ask::Watch { key: None }.body());
        let ticket = asking.ticket();
        MapWatch::begin(self.handle.clone(), ticket, asking.await)
    }

    /// As [`watch`](Self::watch).
    ///
    /// # Errors
    ///
    /// As `watch`.
    pub fn blocking_watch(&self) -> Result<MapWatch<K, V>, Error> {
        let asking = self.handle.ask(Ask::Watch { key: None }.body());
        let ticket = asking.ticket();
        MapWatch::begin(self.handle.clone(), ticket, asking.settle())
    }
}

impl<K: Serialize + DeserializeOwned, V: DeserializeOwned> Map<K, V> {
    /// Watches one key: every change of it from now on, as a stream.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::sync::ErrorKind::Encode) of the key;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// As [`watch`](Self::watch).
    pub async fn watch_key<Q>(&self, key: &Q) -> Result<MapWatch<K, V>, Error>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        let asking = self.ask_key(key, |key| Ask::Watch { key: Some(key) })?;
        let ticket = asking.ticket();
        MapWatch::begin(self.handle.clone(), ticket, asking.await)
    }
}

impl<K: DeserializeOwned, V> Map<K, V> {
    /// Returns all keys, as they are in one moment.
    ///
    /// # Errors
    ///
    /// As [`entries`](Self::entries).
    ///
    /// # Cancel safety
    ///
    /// Nothing happens by dropping it.
    pub async fn keys(&self) -> Result<Vec<K>, Error> {
        self.fetch_keys().await
    }

    /// As [`keys`](Self::keys).
    ///
    /// # Errors
    ///
    /// As `keys`.
    pub fn blocking_keys(&self) -> Result<Vec<K>, Error> {
        park_on(self.fetch_keys())
    }

    async fn fetch_keys(&self) -> Result<Vec<K>, Error> {
        let mut all = Vec::new();
        let take = |keys: &[Packet]| {
            for key in keys {
                all.push(value::decode(key)?);
            }
            Ok(())
        };
        fetch(&self.handle, false, take).await?;
        Ok(all)
    }
}

/// Fetches what a map contains: keys and values by turns, or keys alone.
async fn fetch(
    handle: &Handle,
    values: bool,
    mut take: impl FnMut(&[Packet]) -> Result<(), value::DecodeError>,
) -> Result<(), Error> {
    let more = |snapshot| Ask::More { snapshot }.body();
    pieces::fetch(handle, Ask::Snapshot { values }.body(), more, |body| {
        let more = match reply(body)? {
            Reply::Entries { more } => more,
            other => return Err(strange(&other)),
        };
        let parts = unpack(&body.tail).map_err(|bad| Error::from(Why::Decode(bad.0)))?;
        handle.decode_with(|| take(&parts), body)?;
        Ok(more)
    })
    .await
}

pub(super) fn reply(body: &Body) -> Result<Reply, Error> {
    Reply::read(&body.head).map_err(|bad| Why::Decode(bad.0).into())
}

pub(super) fn strange(reply: &Reply) -> Error {
    match reply {
        Reply::TimedOut => Why::TimedOut,
        Reply::NotWatching => Why::NotHeld,
        Reply::Busy => Why::TooManyRequests,
        other => Why::Decode(format!("the map has answered {other:?}")),
    }
    .into()
}

fn length(answer: Result<Body, Error>) -> Result<usize, Error> {
    match reply(&answer?)? {
        Reply::Len { len } => Ok(len as usize),
        other => Err(strange(&other)),
    }
}

fn was_set(answer: Result<Body, Error>) -> Result<(), Error> {
    match reply(&answer?)? {
        Reply::Done => Ok(()),
        other => Err(strange(&other)),
    }
}

fn contained(answer: Result<Body, Error>) -> Result<bool, Error> {
    match reply(&answer?)? {
        Reply::Value { .. } => Ok(true),
        Reply::Absent => Ok(false),
        other => Err(strange(&other)),
    }
}
