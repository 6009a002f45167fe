//! What all handles of shared objects have in common: a counted reference, requests to the object,
//! and how both travel.
//!
//! # How a kind of object gets its handle
//!
//! 1. Its rules are an [`Object`] in `manager/objects/`, its messages beside them.
//! 2. Its [`Kind`] is listed below: a number that is never used again.
//! 3. The handle is a struct around a [`Handle`] and a `PhantomData<fn() -> T>`, in a file of its
//!    own in this folder. It is made by a method of `Manager`, from a [`Handle::create`].
//! 4. [`handle_travels!`] makes it an argument, a result, and a value in other objects.
//! 5. A call is a request:
//!
//!    ```text
//!    pub async fn push(&self, item: T) -> Result<(), Error> {
//!        let (tail, held) = self.handle.encode(&item)?;
//!        let body = Body::with_value(Request::Push.packet(), tail, held);
//!        let answer = self.handle.ask(body).await?;
//!        match Answer::read(&answer.head) { … }  // values: self.handle.decode(&answer)?
//!    }
//!    ```
//!
//!    [`Asking`] is a future; [`Asking::wait`] blocks the thread instead (`blocking_` forms),
//!    [`Asking::settle`] is for requests that do not wait (`try_` forms: in the application the
//!    answer is there at once, in a worker it takes a round trip). Dropped before it is ready it
//!    cancels. What the caller keeps under its ticket is let go by [`Handle::cancel`] of
//!    [`Asking::ticket`].
//!
//! In a forked copy of the process every call is an error, and drops do nothing.

use super::cell::Cell;
use super::connection::{Connection, error, unexpected};
use super::queue_lanes::Lanes;
use super::wait;
use crate::coop::BudgetUnit;
use crate::error::sync::{Error, Why};
use crate::manager::mail::Arrived;
use crate::manager::message::{self, Kind, Name, Place, VALUE_MAX};
use crate::manager::object::{Body, Held, Object, Part};
use crate::manager::state::What;
use crate::process::{PeerFd, fork};
use crate::wire::packet::Packet;
use crate::wire::value::names::{self, Thing, Who};
use crate::wire::value::{self, EncodeError};
use serde::de::{self, DeserializeOwned, Deserializer};
use serde::{Serialize, Serializer};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

/// The kinds of objects; their numbers travel.
pub(crate) mod kinds {
    use crate::manager::message::Kind;

    pub(crate) const MUTEX: Kind = Kind(1);
    pub(crate) const VALUE: Kind = Kind(2);
    pub(crate) const ARRAY: Kind = Kind(3);
    pub(crate) const QUEUE: Kind = Kind(4);
    pub(crate) const SEMAPHORE: Kind = Kind(5);
    pub(crate) const RW_LOCK: Kind = Kind(6);
    pub(crate) const BARRIER: Kind = Kind(7);
    pub(crate) const EVENT: Kind = Kind(8);
    pub(crate) const MAP: Kind = Kind(9);
    pub(crate) const LIST: Kind = Kind(10);
    pub(crate) const REGISTERED: Kind = Kind(11);
    pub(crate) const CONDVAR: Kind = Kind(12);
    pub(crate) const CHANNEL: Kind = Kind(13);

    /// The name of the type of its handles.
    pub(crate) fn type_name(kind: Kind) -> &'static str {
        match kind {
            MUTEX => "Mutex",
            VALUE => "Value",
            ARRAY => "Array",
            QUEUE => "Queue",
            SEMAPHORE => "Semaphore",
            RW_LOCK => "RwLock",
            BARRIER => "Barrier",
            EVENT => "Event",
            MAP => "Map",
            LIST => "List",
            REGISTERED => "Registered",
            CONDVAR => "Condvar",
            CHANNEL => "Channel",
            Kind(_) => "object of an unknown kind",
        }
    }
}

/// A counted reference to a shared object. Clones share it.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Inner>);

/// The reference itself: as long as it lives, so does the object (unless its manager is closed).
pub(crate) struct Inner {
    connection: Arc<Connection>,
    name: Name,
    /// Its memory, if it has some, from its first use on.
    cell: OnceLock<Cell>,
    /// Of a queue or a map.
    lanes: OnceLock<Box<Lanes>>,
}

impl Inner {
    /// Takes over a reference that has been counted for this process.
    pub(super) fn new(connection: Arc<Connection>, name: Name) -> Self {
        Self { connection, name, cell: OnceLock::new(), lanes: OnceLock::new() }
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    pub(super) fn name(&self) -> &Name {
        &self.name
    }

    fn who(&self) -> Who {
        Who { manager: self.connection.manager(), object: self.name.object, part: self.name.part.0 }
    }
}

impl Inner {
    pub(super) fn lanes_mut(&mut self) -> Option<&mut Lanes> {
        self.lanes.get_mut().map(|lanes| &mut **lanes)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.lanes.get().is_some() {
            self.close_lanes();
        }
        self.connection.release(&self.name);
    }
}

/// A ticket under which something is to come.
pub(super) struct Opened<'a> {
    handle: &'a Handle,
    pub(super) number: u64,
}

impl<'a> Opened<'a> {
    pub(super) fn new(handle: &'a Handle) -> Result<Self, Error> {
        Ok(Self { handle, number: handle.connection().ticket()? })
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if !fork::is_forked_copy() {
            drop(self.handle.connection().mail().forget(self.number));
        }
    }
}

/// References that came with a value, or go with one.
pub(super) struct Things(pub(super) Vec<Thing>);

impl Handle {
    /// Makes an object in the manager of this application, or finds the one of this kind and name.
    pub(crate) fn create(
        connection: &Arc<Connection>,
        kind: Kind,
        part: Part,
        name: Option<&str>,
        object: impl FnOnce() -> Box<dyn Object>,
    ) -> Result<Self, Error> {
        let server = connection.local()?;
        let found = name.and_then(|name| server.find(kind, name, part));
        let made = match found {
            Some(found) => found,
            None => server
                .create(kind, What::Served(object()), name.map(str::to_owned), part)
                .map_err(error)?,
        };
        Ok(Self::of(connection, made))
    }

    /// Takes over a reference that has been counted for this process.
    pub(crate) fn of(connection: &Arc<Connection>, name: Name) -> Self {
        Self(Arc::new(Inner::new(Arc::clone(connection), name)))
    }

    #[inline]
    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.0.connection
    }

    #[inline]
    pub(crate) fn name(&self) -> &Name {
        &self.0.name
    }

    pub(super) fn lanes(&self) -> &Lanes {
        self.0.lanes.get_or_init(Box::default)
    }

    /// Tells that something goes back to its place which was on its way here, or here.
    pub(super) fn giving_up<R>(&self, tell: impl FnOnce() -> R) -> R {
        self.gave_up();
        let told = tell();
        self.gave_up(); // again: another thread may have asked meanwhile, before it was told
        told
    }

    fn gave_up(&self) {
        if !fork::is_forked_copy()
            && let Some(lanes) = self.0.lanes.get()
        {
            lanes.gave_up(self.connection().mail().newest());
        }
    }

    fn answered(&self, ticket: u64) {
        if let Some(lanes) = self.0.lanes.get() {
            lanes.answered(ticket);
        }
    }

    /// A reference of its own, in this part.
    pub(crate) fn part(&self, part: Part) -> Result<Self, Error> {
        if fork::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        let name =
            self.connection().acquire(self.name(), part).ok_or_else(|| Error::from(self.gone()))?;
        Ok(Self::of(self.connection(), name))
    }

    /// Why a reference cannot be had.
    fn gone(&self) -> Why {
        let is_closed = self.connection().mail().is_closed();
        if is_closed { Why::ManagerClosed } else { Why::NoSuchObject }
    }

    // ---- memory

    /// The object's memory, if this process has used it before, or need not ask for it.
    ///
    /// # Errors
    ///
    /// In a forked copy, where it is not mapped.
    #[inline]
    pub(crate) fn cell_at_once(&self) -> Result<Option<&Cell>, Error> {
        if fork::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        match self.0.cell.get() {
            Some(cell) => Ok(Some(cell)),
            None => self.find_cell(),
        }
    }

    #[cold]
    fn find_cell(&self) -> Result<Option<&Cell>, Error> {
        let place = self.place()?;
        Ok(self.connection().mapped(place).map(|cell| self.0.cell.get_or_init(|| cell)))
    }

    fn place(&self) -> Result<Place, Error> {
        self.name().place.ok_or_else(|| Why::ObjectBroken.into())
    }

    /// The object's memory.
    pub(crate) async fn cell(&self) -> Result<&Cell, Error> {
        if let Some(cell) = self.cell_at_once()? {
            return Ok(cell);
        }
        let (place, connection) = (self.place()?, self.connection());
        let ticket = Opened::new(self)?;
        connection.map(ticket.number, place.segment);
        let failed = |source| {
            Error::from(Why::Memory { step: "mapping the memory of a shared object", source })
        };
        match poll_fn(|cx| connection.poll(ticket.number, cx)).await {
            Arrived::Mapped(segment) => {
                let cell = connection.keep(place, segment.trusted()).map_err(failed)?;
                cell.map(|cell| self.0.cell.get_or_init(|| cell))
                    .ok_or_else(|| Why::ObjectBroken.into())
            }
            Arrived::Refused(why) => Err(error(why)),
            Arrived::Answer { .. } | Arrived::Granted(_) | Arrived::Deadlock(_) => {
                Err(unexpected())
            }
        }
    }

    // ---- requests

    /// Asks the object. The request is on its way when this returns.
    pub(crate) fn ask(&self, body: Body) -> Asking {
        let state = match self.send(body) {
            Ok(ticket) => State::Waiting(ticket),
            Err(error) => State::Failed(error),
        };
        Asking { handle: self.clone(), state, unit: BudgetUnit::default() }
    }

    fn send(&self, body: Body) -> Result<u64, Error> {
        self.send_under(body, || self.connection().ticket())
    }

    fn send_under(
        &self,
        body: Body,
        ticket: impl FnOnce() -> Result<u64, Error>,
    ) -> Result<u64, Error> {
        let names = self.connection().names(&body.held)?;
        if !message::fits(body.head.len(), body.tail.len(), names.len()) {
            return Err(Why::TooLarge { limit: VALUE_MAX }.into());
        }
        let ticket = ticket()?;
        self.connection().request(self.name().object, ticket, body, &names);
        Ok(ticket)
    }

    /// Tells the object something whose answer nobody wants. It keeps its place among the requests.
    pub(crate) fn tell(&self, body: Body) -> Result<(), Error> {
        self.send_under(body, || self.connection().no_answer()).map(drop)
    }

    /// As [`tell`](Self::tell), and it has reached the manager, or its kernel's socket, when this
    /// is ready. Nothing has been said when it is not.
    pub(crate) fn poll_tell(&self, body: &Body, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if fork::is_forked_copy() {
            return Poll::Ready(Err(Why::Forked.into()));
        }
        self.connection().poll_tell(self.name().object, body, cx)
    }

    /// Asks the object for a descriptor, which it answers at once. `None`: it has answered
    /// something else.
    pub(crate) fn descriptor(&self, body: Body) -> Result<Option<PeerFd>, Error> {
        let ticket = self.send(body)?;
        let connection = self.connection();
        let arrived = wait::park_on(poll_fn(|cx| connection.poll(ticket, cx)));
        drop(connection.mail().forget(ticket));
        match arrived {
            Arrived::Mapped(descriptor) => Ok(Some(descriptor)),
            Arrived::Refused(why) => Err(error(why)),
            Arrived::Answer { .. } | Arrived::Granted(_) | Arrived::Deadlock(_) => Ok(None),
        }
    }

    /// Lets go what is kept under a ticket that was answered.
    pub(crate) fn cancel(&self, ticket: u64) {
        self.connection().cancel(self.name().object, ticket);
    }

    // ---- values

    /// Encodes a value, and gives with it what it holds: both go into a [`Body`].
    pub(crate) fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<(Packet, Held), Error> {
        encode(value)
    }

    /// Decodes the value of an answer.
    pub(crate) fn decode<T: DeserializeOwned>(&self, body: &Body) -> Result<T, Error> {
        self.decode_with(|| value::decode(&body.tail), body)
    }

    /// Decodes something of an answer; `decode` may decode several values.
    pub(crate) fn decode_with<T, E: fmt::Display>(
        &self,
        decode: impl FnOnce() -> Result<T, E>,
        body: &Body,
    ) -> Result<T, Error> {
        let things = self.connection().things(body);
        names::resolving(things, decode).map_err(|error| Why::Decode(error.to_string()).into())
    }

    // ---- how it travels

    pub(crate) fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let thing: Thing = Arc::clone(&self.0) as _;
        names::serialize(self.0.who(), &thing, serializer)
    }

    /// Decodes a handle of this kind.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        kind: Kind,
        deserializer: D,
    ) -> Result<Self, D::Error> {
        let thing = names::deserialize(deserializer, |thing| thing.downcast_ref().map(Inner::who))?;
        let inner = thing.downcast::<Inner>().map_err(|_| de::Error::custom("no handle"))?;
        if inner.name.kind != kind {
            return Err(de::Error::custom("a handle of another kind of shared object"));
        }
        Ok(Self(inner))
    }
}

/// As [`Handle::encode`]: for what is encoded before there is an object.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<(Packet, Held), Error> {
    let mut out = Vec::new();
    let (result, things) = names::collecting(|| value::encode(value, &mut out, VALUE_MAX));
    match result {
        Ok(()) => Ok((Packet::from(&mut out), held(things))),
        Err(EncodeError::TooLarge { limit }) => Err(Why::TooLarge { limit }.into()),
        Err(error) => Err(Why::Encode(error.to_string()).into()),
    }
}

/// What a value holds that named these.
pub(super) fn held(things: Vec<Thing>) -> Held {
    (!things.is_empty()).then(|| Arc::new(Things(things)) as _)
}

impl Inner {
    /// The reference, if it is to an object of this manager.
    pub(super) fn name_in(&self, manager: u64) -> Option<Name> {
        (self.connection.manager() == manager).then_some(self.name)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("object", &self.name().object)
            .field("kind", &self.name().kind.0)
            .finish_non_exhaustive()
    }
}

/// A request under way: a future of the answer's body.
#[derive(Debug)]
pub(crate) struct Asking {
    handle: Handle,
    state: State,
    unit: BudgetUnit,
}

#[derive(Debug)]
enum State {
    Failed(Error),
    Waiting(u64),
    /// The answer has come, and it is an offer: the manager is to be told that it is taken.
    Offered(u64, Body),
    Done(u64),
    Over,
}

impl Asking {
    /// The request's ticket; `None` if it was refused at once.
    pub(crate) fn ticket(&self) -> Option<u64> {
        match self.state {
            State::Waiting(ticket) | State::Offered(ticket, _) | State::Done(ticket) => {
                Some(ticket)
            }
            State::Failed(_) | State::Over => None,
        }
    }

    /// As polling it, but an offer is not taken by that: the caller says what it takes of it, and
    /// cancels the ticket, which comes with the answer, when it wants nothing more.
    pub(crate) fn poll_offer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(u64, Body), Error>> {
        if let State::Waiting(ticket) = self.state
            && !fork::is_forked_copy()
            && let Poll::Ready(arrived) = self.handle.connection().poll(ticket, cx)
        {
            drop(self.handle.connection().mail().forget(ticket));
            self.state = State::Over;
            return Poll::Ready(match arrived {
                Arrived::Answer { body, .. } => Ok((ticket, body)),
                Arrived::Refused(why) => Err(error(why)),
                Arrived::Granted(_) | Arrived::Mapped(_) | Arrived::Deadlock(_) => {
                    Err(unexpected())
                }
            });
        }
        if matches!(self.state, State::Waiting(_)) && !fork::is_forked_copy() {
            return Poll::Pending;
        }
        Pin::new(self).poll(cx).map(|result| result.map(|body| (0, body)))
    }

    /// Blocks the thread until it is answered.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub(crate) fn wait(self) -> Result<Body, Error> {
        wait::block_on(self)
    }

    /// As [`wait`](Self::wait), for a request that the object answers at once; allowed in an async
    /// context.
    pub(crate) fn settle(self) -> Result<Body, Error> {
        wait::park_on(self)
    }
}

impl Future for Asking {
    type Output = Result<Body, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        ready!(this.unit.poll_unit(cx));
        if fork::is_forked_copy() {
            this.state = State::Over;
            return Poll::Ready(Err(Why::Forked.into()));
        }
        let connection = &this.handle.0.connection;
        loop {
            match std::mem::replace(&mut this.state, State::Over) {
                State::Failed(error) => return Poll::Ready(Err(error)),
                State::Waiting(ticket) => match connection.poll(ticket, cx) {
                    Poll::Pending => {
                        this.state = State::Waiting(ticket);
                        return Poll::Pending;
                    }
                    Poll::Ready(Arrived::Answer { body, offer: true }) => {
                        this.state = State::Offered(ticket, body)
                    }
                    Poll::Ready(arrived) => {
                        this.handle.answered(ticket);
                        drop(connection.mail().forget(ticket));
                        this.state = State::Done(ticket);
                        return Poll::Ready(match arrived {
                            Arrived::Answer { body, .. } => Ok(body),
                            Arrived::Refused(why) => Err(error(why)),
                            Arrived::Granted(_) | Arrived::Mapped(_) | Arrived::Deadlock(_) => {
                                Err(unexpected())
                            }
                        });
                    }
                },
                State::Offered(ticket, body) => {
                    match connection.poll_taken(this.handle.name().object, ticket, cx) {
                        Poll::Pending => {
                            this.state = State::Offered(ticket, body);
                            return Poll::Pending;
                        }
                        Poll::Ready(told) => {
                            this.handle.answered(ticket);
                            drop(connection.mail().forget(ticket));
                            this.state = State::Done(ticket);
                            return Poll::Ready(told.map(|()| body));
                        }
                    }
                }
                State::Done(_) | State::Over => panic!("polled after it was ready"),
            }
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let State::Waiting(ticket) | State::Offered(ticket, _) = self.state {
            if !fork::is_forked_copy() {
                drop(self.handle.connection().mail().forget(ticket));
            }
            self.handle.giving_up(|| self.handle.cancel(ticket));
        }
    }
}

/// Makes a handle type travel: `handle_travels!(Queue<T>, kinds::QUEUE)`, for a struct with a field
/// `handle` and a `PhantomData` in `marker`.
macro_rules! handle_travels {
    ($name:ident $(<$($param:ident),+>)?, $kind:expr) => {
        impl $(<$($param),+>)? serde::Serialize for $name $(<$($param),+>)? {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.handle.serialize(serializer)
            }
        }

        impl<'de $($(, $param)+)?> serde::Deserialize<'de> for $name $(<$($param),+>)? {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let handle = $crate::sync::handle::Handle::deserialize($kind, deserializer)?;
                Ok(Self { handle, marker: std::marker::PhantomData })
            }
        }
    };
}
pub(crate) use handle_travels;
