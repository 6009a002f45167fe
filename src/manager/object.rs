//! One shared object, as the manager serves it: requests in, answers out.
//!
//! An [`Object`] is a plain struct: no I/O, no clock (`now` is an argument; only what orders the
//! items of several [lanes](super::lane) reads the clock by which clients mark them), no thread, no
//! user code; what its users have encoded it keeps and hands on without looking at it. The manager
//! around it has the connections, the frames and the references; it calls the methods one at a time
//! and does what comes out, in that order.
//!
//! # Who asks
//!
//! A [`Client`] is one process's connection; a seat that was used by another process before has
//! another generation. The application itself is a client too. A *ticket* is one request of a
//! client, chosen by the client, never used twice by it. A [`Caller`] is both. Each request is
//! answered at most once, now or later; until then it *waits*. Ticket [`NO_ANSWER`] is that of all
//! requests whose answers nobody wants: they are not sent.
//!
//! # How something is handed over
//!
//! An answer is on its way when its caller gives up or dies, and what it carries must then neither
//! be lost nor given to two. There are two ways, by what is handed over:
//!
//! 1. **What the caller keeps under its ticket** (a permit, a lock, a lease). It belongs to the
//!    ticket from the answer on, whether or not that has arrived. [`Object::cancel`] of the ticket
//!    gives it back; so does the death of the client. Nothing more is needed.
//! 2. **What leaves the object for ever** (an item that `recv` takes out). Its answer is an
//!    [`Answer::offer`]: the object keeps it in mind until it hears, by the client's messages in
//!    their order,
//!    * [`Object::taken`]: the client is about to give it to its user. It says so *before* its user
//!      sees it, and the word has reached the kernel by then: so whoever dies earlier has shown it
//!      to nobody, and whoever dies later may have;
//!    * or [`Object::cancel`]: nobody has seen it, and it goes back to where it was;
//!    * or [`Object::gone`], after everything that the client had written was read: the same as a
//!      cancellation.
//!
//!    So it is given at most once, and lost only with a process that died with it in its hands.
//!
//! Rules for the client's side: `taken` is sent once, for an offer only, and before the answer is
//! let out; a request whose future is dropped before that sends `cancel`, whether or not it was
//! answered; messages of one client about one object keep their order. Rules for the manager: what
//! a dead client had sent is read to the end before `gone`, and nothing of a client comes after it.
//!
//! # Time
//!
//! Limits are counted here, not by the client (a handle needs no timer then, and works in any
//! runtime): a request says how long it will wait, the manager calls [`Object::tick`] when
//! [`Object::next_deadline`] has passed, and the answer says that the time was up. Which is final:
//! what was not done by then is not done later.
//!
//! # Memory
//!
//! [`Object::bytes`] is what the object holds, waiting requests and offers included. The manager
//! refuses a request with a value that would pass its bound before the object sees it, and a client
//! with too many open requests.

use super::lane::Way;
use crate::process::SharedMemory;
use crate::wire::packet::Packet;
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// One process's connection to the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Client {
    pub(crate) seat: u32,
    /// Of the seat: how many clients had it before.
    pub(crate) generation: u32,
}

/// The ticket of requests whose answers nobody wants.
pub(crate) const NO_ANSWER: u64 = 0;

/// One request of a client. Ordered by client first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Caller {
    pub(crate) client: Client,
    pub(crate) ticket: u64,
}

/// In what part somebody holds a reference to an object: as the whole of it, or as one of the
/// halves into which some kinds can be split (a queue's sender is not its receiver). References are
/// counted by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Part(pub(crate) u8);

impl Part {
    pub(crate) const WHOLE: Self = Self(0);
    pub(crate) const SENDER: Self = Self(1);
    pub(crate) const RECEIVER: Self = Self(2);
    /// How many there are.
    pub(crate) const COUNT: u8 = 3;
}

/// What the encoded values of a body name (other objects), kept alive for as long as the values are
/// kept. Whoever keeps or passes on the values keeps or passes on this.
pub(crate) type Held = Option<Arc<dyn Any + Send + Sync>>;

/// The content of a request or an answer.
#[derive(Clone, Default)]
pub(crate) struct Body {
    /// What is asked or answered: the object's own message.
    pub(crate) head: Packet,
    /// Encoded values of the users, if there are any.
    pub(crate) tail: Packet,
    pub(crate) held: Held,
}

impl Body {
    /// A message without a value.
    pub(crate) fn new(head: Packet) -> Self {
        Self { head, tail: Packet::default(), held: None }
    }

    pub(crate) fn with_value(head: Packet, tail: Packet, held: Held) -> Self {
        Self { head, tail, held }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("head", &self.head)
            .field("tail", &self.tail)
            .field("held", &self.held.is_some())
            .finish()
    }
}

/// What goes to a caller, who waits no longer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) to: Caller,
    pub(crate) body: Body,
    /// It hands something over in the second way: the object waits for `taken`, `cancel` or
    /// `gone`.
    pub(crate) offer: bool,
    /// A descriptor that the caller gets, instead of the body.
    pub(crate) descriptor: Option<Descriptor>,
}

/// A descriptor on its way. Where there are none, nothing can be one.
#[cfg(unix)]
pub(crate) type Descriptor = Arc<crate::process::PeerFd>;
#[cfg(not(unix))]
pub(crate) type Descriptor = std::convert::Infallible;

impl Answer {
    pub(crate) fn new(to: Caller, body: Body) -> Self {
        Self { to, body, offer: false, descriptor: None }
    }

    pub(crate) fn offer(to: Caller, body: Body) -> Self {
        Self { to, body, offer: true, descriptor: None }
    }

    pub(crate) fn descriptor(to: Caller, descriptor: Descriptor) -> Self {
        Self { to, body: Body::default(), offer: false, descriptor: Some(descriptor) }
    }
}

/// How a client went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// Its process has ended, or it broke the protocol, while it still had references.
    Died,
    /// It has dropped its last reference.
    Left,
}

/// A request that no client of this build sends: its connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bad(pub(crate) String);

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One shared object. See the module's documentation for the rules.
pub(crate) trait Object: Send {
    /// A client asks.
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad>;

    /// A caller is about to give its user what it was offered. Of what is not on offer (any more)
    /// nothing follows.
    fn taken(&mut self, caller: Caller, now: Instant, answers: &mut Vec<Answer>) {
        let _ = (caller, now, answers);
    }

    /// A caller waits no longer, and nobody has seen its answer, should there be one. No answer
    /// comes to it after this.
    fn cancel(&mut self, caller: Caller, now: Instant, answers: &mut Vec<Answer>);

    /// A client has died, or has dropped its last reference to this object. No answer comes to it
    /// after this.
    fn gone(&mut self, client: Client, how: Gone, now: Instant, answers: &mut Vec<Answer>);

    /// The first reference to a part has been made, or the last one is gone: those of all clients,
    /// of frames on their way and of values kept in other objects. Called after `gone`, when
    /// both happen at once.
    fn held(&mut self, part: Part, held: bool, now: Instant, answers: &mut Vec<Answer>) {
        let _ = (part, held, now, answers);
    }

    /// When `tick` has something to do. It is asked for after each call.
    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// Time has passed. May come early, and then does nothing.
    fn tick(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        let _ = (now, answers);
    }

    /// The manager closes. Whoever waits is told so by the plumbing; the object may answer those to
    /// whom it can say more. Nothing is asked afterwards.
    fn close(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        let _ = (now, answers);
    }

    /// Which part a client must hold to send this request; `None` if any part will do. A client that
    /// holds the whole may send any.
    fn part_for(&self, head: &[u8]) -> Option<Part> {
        let _ = head;
        None
    }

    /// What it holds, in bytes, roughly.
    fn bytes(&self) -> usize;

    // ---- shortcuts, for kinds of objects that have them

    /// How many bytes more all objects of the manager may hold: for what comes in without being
    /// asked about.
    fn left(&mut self, bytes: usize) {
        let _ = bytes;
    }

    /// A client wants a [lane](super::lane) under this ticket; it lasts until the ticket is
    /// cancelled. `false`: it gets none.
    fn lane(
        &mut self,
        caller: Caller,
        way: Way,
        memory: Arc<SharedMemory>,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> bool {
        let _ = (caller, way, memory, now, answers);
        false
    }

    /// The application hands in a value, if that can be done at once and as by a request of its
    /// own; else it comes back.
    fn put_now(
        &mut self,
        value: Packet,
        held: Held,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), (Packet, Held)> {
        let _ = (now, answers);
        Err((value, held))
    }

    /// The application takes a value out for ever, if that can be done at once and as by a request
    /// of its own.
    fn take_now(&mut self, now: Instant, answers: &mut Vec<Answer>) -> Option<Body> {
        let _ = (now, answers);
        None
    }
}
