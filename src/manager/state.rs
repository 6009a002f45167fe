//! The state of a manager: its clients, its objects, and which client has references to which
//! objects.
//!
//! A plain struct without I/O and clock: messages go in by methods, [`Action`]s come out, `now` is
//! an argument. Each kind of object has rules of its own ([`Object`]). The rules that they share,
//! by number:
//!
//! 1. **Access.** A client may name only objects to which it has a reference. (The application
//!    itself is trusted.)
//! 2. **Reference counts.** References are counted by object, part and client. Those in values that
//!    are kept in other objects are counted by object and part. An object lives as long as any
//!    reference is left.
//! 3. **End of a client.** All references of a client end with it. What it had put into the results
//!    of tasks (an ownership transfer, [`State::parcel`]) stays until these results are taken or
//!    given up.
//! 4. **Limits.** A request is refused if what it brings (a value, or a long key) would exceed the
//!    manager's bound, or if its client has too many requests open.
//! 5. **Removed objects.** Nothing of an object that is removed is dropped within the same call,
//!    since its values release the references that they hold when they are dropped. What is left of
//!    the object is in [`State::remains`], which the caller drops when it holds no lock.

use super::held::HeldNames;
use super::lane::Way;
use super::lock::served::{Lock, Told};
use super::lock::word::Owner;
use super::message::{Kind, Name, Place, Refusal};
use super::object::{Answer, Bad, Body, Caller, Client, Gone, Held, NO_ANSWER, Object, Part};
use super::rings::{Rings, Wait};
use super::segments::Allocated;
use crate::process::SharedMemory;
use crate::wire::packet::Packet;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Requests of one client that wait for an answer, at most.
const OPEN_MAX: usize = 1 << 16;
/// Clients at a time: as many seats as a lock's word can name, less those with a meaning of their
/// own.
const SEATS: u32 = 4096;
/// Seats that are kept for clients of the application's own.
const SEATS_KEPT: u32 = 1024;
/// What all objects may hold, in bytes, unless the manager is told otherwise.
pub(crate) const BYTES_MAX: usize = 1 << 30;
/// A request that brings nothing may come, and wait, as long as the bound is passed by no more than
/// this part of it: it may be one that takes something out.
const RESERVE: usize = 16;
/// A request's own message, in bytes, that may come even if the manager is full: it may be one that
/// takes something out.
const HEAD_BYTES: usize = 256;
/// What an object costs beside its content, in bytes, roughly.
const OBJECT_BYTES: usize = 512;

/// The application itself. The seats below it mean something else in a lock's word.
pub(crate) const LOCAL: Client = Client { seat: 2, generation: 0 };

/// What is to be told, in this order.
#[derive(Debug)]
pub(crate) enum Action {
    Answer(Answer),
    Refuse(Caller, Refusal),
    /// A lock is granted, at this version.
    Grant(Caller, u64),
    /// This segment of the memory.
    Map(Caller, u32),
    /// A lane's memory. Both ends have it mapped then: with the message, this descriptor is closed.
    Lane(Caller, OwnedFd),
    /// It waits for a lock in a ring, which is described.
    Deadlock(Caller, String),
    /// This client has broken the protocol: its connection ends.
    Cut(Client),
}

impl Action {
    /// What it adds to what a client has to read, in bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Answer(answer) => answer.body.head.len() + answer.body.tail.len(),
            _ => 0,
        }
    }
}

type Parts = [u64; Part::COUNT as usize];

#[derive(Debug, Default)]
struct ClientState {
    /// References by object.
    references: HashMap<u64, Parts>,
    /// Tickets that wait for an answer, and of which object.
    open: HashMap<u64, u64>,
    /// References in results that nobody has taken yet; negative where one was taken before we had
    /// heard of it.
    parcels: HashMap<(u64, Part), i64>,
    /// References that it believes to have and has not: clients that it has introduced had named
    /// them in results without handing them over.
    unfounded: HashMap<(u64, Part), u64>,
    /// It has ended; its parcels may still be taken.
    gone: bool,
    /// Nobody will take its parcels.
    dismissed: bool,
}

impl ClientState {
    /// How many of these references that it has dropped it may have had.
    fn without_unfounded(&mut self, object: u64, part: Part, count: u64) -> u64 {
        let Some(unfounded) = self.unfounded.get_mut(&(object, part)) else { return count };
        let passed_over = count.min(*unfounded);
        *unfounded -= passed_over;
        if *unfounded == 0 {
            self.unfounded.remove(&(object, part));
        }
        count - passed_over
    }
}

/// What an object is.
pub(crate) enum What {
    Served(Box<dyn Object>),
    Lock(Box<Lock>),
    /// So many atomics, with which the manager has nothing to do.
    Cells(Allocated, u32),
}

impl What {
    fn bytes(&self) -> usize {
        match self {
            Self::Served(object) => object.bytes(),
            Self::Lock(lock) => lock.bytes(),
            Self::Cells(memory, _) => memory.words().len() * 8,
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Served(object) => object.next_deadline(),
            Self::Lock(lock) => lock.next_deadline(),
            Self::Cells(..) => None,
        }
    }

    fn place(&self) -> Option<Place> {
        match self {
            Self::Served(_) => None,
            Self::Lock(lock) => Some(lock.memory().place()),
            Self::Cells(memory, len) => Some(Place { len: *len, ..memory.place() }),
        }
    }
}

/// One object.
struct Entry {
    kind: Kind,
    what: What,
    /// References of all clients and kept values.
    counts: Parts,
    name: Option<String>,
    deadline: Option<Instant>,
    bytes: usize,
}

/// See the module.
pub(crate) struct State {
    clients: HashMap<Client, ClientState>,
    /// The next generation of each seat from [`LOCAL`] on, and whether it is taken.
    seats: Vec<(u32, bool)>,
    objects: HashMap<u64, Entry>,
    names: HashMap<(Kind, String), u64>,
    next_object: u64,
    deadlines: BTreeSet<(Instant, u64)>,
    bytes: usize,
    bytes_max: usize,
    closed: bool,
    /// What keeps values tells of their end through this.
    dropped: Weak<dyn super::held::Dropped>,
    pub(crate) actions: Vec<Action>,
    answers: Vec<Answer>,
    told: Vec<Told>,
    /// Threads that wait for locks while they hold others.
    pub(crate) rings: Rings,
    /// What is left of objects that have gone: to be dropped without the lock.
    pub(crate) remains: Vec<What>,
}

impl State {
    pub(crate) fn new(dropped: Weak<dyn super::held::Dropped>) -> Self {
        Self {
            clients: HashMap::from([(LOCAL, ClientState::default())]),
            seats: vec![(0, true)],
            objects: HashMap::new(),
            names: HashMap::new(),
            next_object: 1,
            deadlines: BTreeSet::new(),
            bytes: 0,
            bytes_max: BYTES_MAX,
            closed: false,
            dropped,
            actions: Vec::new(),
            answers: Vec::new(),
            told: Vec::new(),
            rings: Rings::new(),
            remains: Vec::new(),
        }
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    #[cfg(test)]
    pub(crate) fn set_bound(&mut self, bytes: usize) {
        self.bytes_max = bytes;
    }

    #[cfg(test)]
    pub(crate) fn look_at(&self, object: u64) -> &Lock {
        match self.objects.get(&object).map(|entry| &entry.what) {
            Some(What::Lock(lock)) => lock,
            _ => panic!("no lock"),
        }
    }

    // ---- clients

    /// Gives a new client a seat; `None` if all are taken. One that was `introduced` by another
    /// client gets none of those that are kept for the application's own.
    pub(crate) fn seat(&mut self, introduced: bool) -> Option<Client> {
        if self.closed {
            return None;
        }
        let index = self.seats.iter().position(|(_, taken)| !taken).unwrap_or(self.seats.len());
        let kept = if introduced { SEATS_KEPT } else { 0 };
        if index as u32 + LOCAL.seat >= SEATS - kept {
            return None;
        }
        if index == self.seats.len() {
            self.seats.push((0, false));
        }
        let (generation, taken) = &mut self.seats[index];
        *taken = true;
        let client = Client { seat: index as u32 + LOCAL.seat, generation: *generation };
        self.clients.insert(client, ClientState::default());
        Some(client)
    }

    /// A client has ended: all that it had written has been read.
    pub(crate) fn client_gone(&mut self, client: Client, now: Instant) {
        let Some(state) = self.clients.get_mut(&client).filter(|state| !state.gone) else { return };
        state.gone = true;
        state.open.clear();
        state.unfounded.clear();
        let mut objects: Vec<_> = state.references.drain().collect();
        objects.sort_unstable_by_key(|(object, _)| *object);
        self.rings.gone(client);
        // All of them: it has the memory of some to which it has no reference. And before its seat
        // is given away.
        let locks: Vec<_> = self
            .objects
            .iter()
            .filter(|(_, entry)| matches!(entry.what, What::Lock(_)))
            .map(|(n, _)| *n)
            .collect();
        for lock in locks {
            self.lock(lock, |lock, _, told| lock.gone(client, now, told));
        }
        for (object, parts) in objects {
            self.served(object, now, |object, answers| {
                object.gone(client, Gone::Died, now, answers)
            });
            for (part, count) in (0..).map(Part).zip(parts) {
                self.uncount(object, part, count, now);
            }
        }
        if let Some((generation, taken)) = self.seats.get_mut((client.seat - LOCAL.seat) as usize) {
            *generation += 1;
            *taken = false;
        }
        self.forget(client, now);
    }

    /// The results of a client are taken or given up, all of them: whoever introduced it, waits for
    /// no more.
    pub(crate) fn dismiss(&mut self, client: Client, now: Instant) {
        if let Some(state) = self.clients.get_mut(&client) {
            state.dismissed = true;
            self.forget(client, now);
        }
    }

    fn forget(&mut self, client: Client, now: Instant) {
        if !self.clients.get(&client).is_some_and(|state| state.gone && state.dismissed) {
            return;
        }
        let parcels = self.clients.remove(&client).map(|state| state.parcels);
        for ((object, part), count) in parcels.into_iter().flatten() {
            self.uncount(object, part, count.max(0) as u64, now);
        }
    }

    // ---- references

    /// The objects that a client waits for now: their numbers, kinds and names.
    pub(crate) fn waits_of(&self, client: Client) -> Vec<(u64, Kind, Option<String>)> {
        let Some(state) = self.clients.get(&client) else { return Vec::new() };
        let locks = state.references.keys().filter(|object| {
            self.objects.get(object).is_some_and(
                |entry| matches!(&entry.what, What::Lock(lock) if lock.has_waiter_of(client)),
            )
        });
        let waits: BTreeSet<_> = state.open.values().chain(locks).collect();
        let entries = waits.into_iter().map(|object| Some((*object, self.objects.get(object)?)));
        entries.flatten().map(|(object, entry)| (object, entry.kind, entry.name.clone())).collect()
    }

    /// Whether a client has a reference to an object.
    pub(crate) fn has(&self, client: Client, object: u64) -> bool {
        client == LOCAL
            || self.clients.get(&client).is_some_and(|state| state.references.contains_key(&object))
    }

    /// Whether a client has a reference to an object in this part, or to the whole of it.
    pub(crate) fn covers(&self, client: Client, object: u64, part: Part) -> bool {
        let covered = |parts: &Parts| {
            parts[Part::WHOLE.0 as usize] > 0 || parts.get(part.0 as usize).is_some_and(|n| *n > 0)
        };
        client == LOCAL
            || self
                .clients
                .get(&client)
                .and_then(|state| state.references.get(&object))
                .is_some_and(covered)
    }

    fn count(&mut self, object: u64, part: Part, count: u64, now: Instant) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        let counted = &mut entry.counts[part.0 as usize];
        let before = *counted;
        *counted += count;
        if before == 0 && count > 0 {
            self.served(object, now, |object, answers| object.held(part, true, now, answers));
        }
    }

    fn uncount(&mut self, object: u64, part: Part, count: u64, now: Instant) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        let counted = &mut entry.counts[part.0 as usize];
        let before = *counted;
        *counted = counted.saturating_sub(count);
        if before == 0 || *counted > 0 {
            return;
        }
        self.served(object, now, |object, answers| object.held(part, false, now, answers));
        if self.objects.get(&object).is_some_and(|entry| entry.counts == Parts::default()) {
            self.remove(object);
        }
    }

    fn remove(&mut self, object: u64) {
        let Some(entry) = self.objects.remove(&object) else { return };
        if let Some(name) = entry.name {
            self.names.remove(&(entry.kind, name));
        }
        if let Some(deadline) = entry.deadline {
            self.deadlines.remove(&(deadline, object));
        }
        self.bytes -= entry.bytes;
        self.remains.push(entry.what);
    }

    /// Gives a client a reference, which must not be one too many: somebody else's keeps the object
    /// alive. Gives what its holder has to know; `None` if there is no such object.
    pub(crate) fn lend(
        &mut self,
        client: Client,
        object: u64,
        part: Part,
        now: Instant,
    ) -> Option<Name> {
        let entry = self.objects.get(&object)?;
        let name = Name { object, part, kind: entry.kind, place: entry.what.place() };
        let state = self.clients.get_mut(&client).filter(|state| !state.gone)?;
        state.references.entry(object).or_default()[part.0 as usize] += 1;
        self.count(object, part, 1, now);
        Some(name)
    }

    /// A client has one reference more, beside one that it has.
    pub(crate) fn acquire(
        &mut self,
        client: Client,
        object: u64,
        part: Part,
        now: Instant,
    ) -> Option<Name> {
        if self.covers(client, object, part) { self.lend(client, object, part, now) } else { None }
    }

    /// A client has dropped some references. Those that it did not have are passed over.
    pub(crate) fn release(
        &mut self,
        client: Client,
        object: u64,
        part: Part,
        count: u64,
        now: Instant,
    ) {
        let Some(state) = self.clients.get_mut(&client) else { return };
        let count = state.without_unfounded(object, part, count);
        if count == 0 {
            return;
        }
        let Some(parts) = state.references.get_mut(&object) else { return };
        let had = &mut parts[part.0 as usize];
        let count = count.min(*had);
        *had -= count;
        if *parts == Parts::default() {
            state.references.remove(&object);
            self.served(object, now, |object, answers| {
                object.gone(client, Gone::Left, now, answers)
            });
        }
        self.uncount(object, part, count, now);
    }

    /// The references that a value names, which `client` hands in: they are held until what comes
    /// back is dropped.
    pub(crate) fn hold(
        &mut self,
        client: Client,
        names: &[Name],
        now: Instant,
    ) -> Result<Held, Refusal> {
        if names.is_empty() {
            return Ok(None);
        }
        if !names.iter().all(|name| {
            self.objects.contains_key(&name.object) && self.covers(client, name.object, name.part)
        }) {
            return Err(Refusal::NotYours);
        }
        for name in names {
            self.count(name.object, name.part, 1, now);
        }
        Ok(HeldNames::of(self.dropped.clone(), names.iter().map(|name| (name.object, name.part))))
    }

    /// A value is kept no longer.
    pub(crate) fn unhold(&mut self, object: u64, part: Part, now: Instant) {
        self.uncount(object, part, 1, now);
    }

    /// A client has put some of its references into a result.
    pub(crate) fn parcel(&mut self, client: Client, names: &[Name], now: Instant) {
        for name in names {
            if !self.covers(client, name.object, name.part)
                || !self.objects.contains_key(&name.object)
            {
                continue;
            }
            let Some(state) = self.clients.get_mut(&client) else { return };
            let parcels = state.parcels.entry((name.object, name.part)).or_default();
            *parcels += 1;
            let known = *parcels > 0; // else it has been taken before
            if *parcels == 0 {
                state.parcels.remove(&(name.object, name.part));
            }
            if known {
                self.count(name.object, name.part, 1, now);
            }
        }
    }

    /// Takes over a reference from a result of `from`. It may be that we have not heard of it yet
    /// (that comes by another socket); then `from` has its own still, for it drops that later.
    /// `None`: neither.
    pub(crate) fn take(
        &mut self,
        to: Client,
        from: Client,
        object: u64,
        part: Part,
        now: Instant,
    ) -> Option<Name> {
        let has = self.covers(from, object, part) && from != LOCAL;
        let state = self.clients.get_mut(&from)?;
        let parcels = state.parcels.entry((object, part)).or_default();
        let known = *parcels > 0;
        if !known && !has {
            if *parcels == 0 {
                state.parcels.remove(&(object, part));
            }
            return None;
        }
        *parcels -= 1;
        if *parcels == 0 {
            state.parcels.remove(&(object, part));
        }
        let name = self.lend(to, object, part, now);
        if known {
            self.uncount(object, part, 1, now);
        }
        name
    }

    /// As [`take`](Self::take), by a client from one that it has introduced; `None`: there is no
    /// such client any more. The taker has a handle already, for it waits for no answer. If nothing
    /// was handed over, the release of that handle must not release a reference that the taker has
    /// besides, and `from` has broken the protocol.
    pub(crate) fn take_between(
        &mut self,
        to: Client,
        from: Option<Client>,
        object: u64,
        part: Part,
        now: Instant,
    ) {
        let taken = from.and_then(|from| self.take(to, from, object, part, now));
        // The number of an object that is gone is never used again.
        if taken.is_some() || !self.objects.contains_key(&object) {
            return;
        }
        if let Some(state) = self.clients.get_mut(&to)
            && state.unfounded.len() < OPEN_MAX
        {
            *state.unfounded.entry((object, part)).or_default() += 1;
        }
        self.actions.extend(from.map(Action::Cut));
    }

    // ---- objects

    /// Makes an object; its maker, the application, has the reference that comes back.
    pub(crate) fn create(
        &mut self,
        kind: Kind,
        what: What,
        name: Option<String>,
        part: Part,
        now: Instant,
    ) -> Result<Name, Refusal> {
        if self.closed {
            self.remains.push(what);
            return Err(Refusal::Closed);
        }
        if let Some(found) = name.as_deref().and_then(|name| self.find(kind, name, part, now)) {
            self.remains.push(what); // somebody has just made it
            return Ok(found);
        }
        let bytes = what.bytes() + OBJECT_BYTES;
        if self.bytes + bytes > self.bytes_max {
            self.remains.push(what);
            return Err(Refusal::Full);
        }
        let number = self.next_object;
        self.next_object += 1;
        self.bytes += bytes;
        if let Some(name) = &name {
            self.names.insert((kind, name.clone()), number);
        }
        self.objects.insert(
            number,
            Entry { kind, what, counts: Parts::default(), name, deadline: None, bytes },
        );
        Ok(self.lend(LOCAL, number, part, now).expect("it has just been made"))
    }

    /// The application wants a reference to the object of this kind and name.
    pub(crate) fn find(
        &mut self,
        kind: Kind,
        name: &str,
        part: Part,
        now: Instant,
    ) -> Option<Name> {
        let number = *self.names.get(&(kind, name.to_owned()))?;
        self.lend(LOCAL, number, part, now)
    }

    /// Whether a client has the part of an object that a request needs.
    fn may_ask(&self, client: Client, object: u64, head: &[u8]) -> bool {
        let Some(entry) = self.objects.get(&object) else { return false };
        if self.covers(client, object, Part::WHOLE) {
            return true;
        }
        let part = match &entry.what {
            What::Served(object) => object.part_for(head),
            What::Lock(_) | What::Cells(..) => None,
        };
        match part {
            Some(part) => self.covers(client, object, part),
            None => self.has(client, object),
        }
    }

    /// Whether what a request brings may not be kept. A key stands in the head; it is kept twice.
    fn would_be_full(&self, body: &Body) -> bool {
        let brings = if body.head.len() > HEAD_BYTES { 2 * body.head.len() } else { 0 };
        let brings = brings + body.tail.len();
        brings > 0 && self.bytes + brings > self.bytes_max
    }

    /// Whether a client may not even wait for something: what waits costs memory as well. Not so
    /// for the application, which could not empty what is full otherwise.
    fn is_over_full(&self, caller: Caller) -> bool {
        caller.client != LOCAL
            && caller.ticket != NO_ANSWER
            && self.bytes > self.bytes_max + self.bytes_max / RESERVE
    }

    pub(crate) fn request(
        &mut self,
        caller: Caller,
        object: u64,
        body: Body,
        now: Instant,
    ) -> Result<(), Bad> {
        let refusal = if self.closed {
            Some(Refusal::Closed)
        } else if !self.may_ask(caller.client, object, &body.head) {
            Some(Refusal::NotYours)
        } else if self.would_be_full(&body) || self.is_over_full(caller) {
            Some(Refusal::Full)
        } else {
            let state = self
                .clients
                .get_mut(&caller.client)
                .ok_or_else(|| Bad("a client that has gone".into()))?;
            if caller.ticket == NO_ANSWER {
                None // what is answered goes nowhere, for it is not open
            } else if state.open.len() >= OPEN_MAX {
                Some(Refusal::TooMany)
            } else {
                match state.open.entry(caller.ticket) {
                    Occupied(_) => return Err(Bad("a ticket that is in use".into())),
                    Vacant(place) => drop(place.insert(object)),
                }
                None
            }
        };
        if let Some(why) = refusal {
            self.actions.push(Action::Refuse(caller, why));
            return Ok(());
        }
        let asked =
            self.served(object, now, |object, answers| object.request(caller, body, now, answers));
        asked.unwrap_or_else(|| Err(Bad("a request to what answers none".into())))
    }

    /// A client wants a lane, for which there is this memory, and its descriptor.
    pub(crate) fn lane(
        &mut self,
        caller: Caller,
        object: u64,
        way: Way,
        memory: Arc<SharedMemory>,
        fd: OwnedFd,
        now: Instant,
    ) {
        let part = match way {
            Way::In => Part::SENDER,
            Way::Out => Part::RECEIVER,
        };
        let made = !self.closed
            && self.covers(caller.client, object, part)
            && self
                .served(object, now, |object, answers| {
                    object.lane(caller, way, memory, now, answers)
                })
                .unwrap_or(false);
        self.actions.push(if made {
            Action::Lane(caller, fd)
        } else {
            Action::Refuse(caller, Refusal::NoMemory)
        });
    }

    /// The application hands in a value, if that can be done at once; else it comes back.
    pub(crate) fn put_now(
        &mut self,
        object: u64,
        value: Packet,
        now: Instant,
    ) -> Result<(), Packet> {
        if self.closed || self.bytes + value.len() > self.bytes_max {
            return Err(value);
        }
        let mut value = Some(value);
        let put = self.served(object, now, |object, answers| {
            object
                .put_now(value.take().unwrap_or_default(), None, now, answers)
                .map_err(|(back, _)| back)
        });
        put.unwrap_or_else(|| Err(value.unwrap_or_default()))
    }

    /// The application takes a value out, if that can be done at once.
    pub(crate) fn take_now(&mut self, object: u64, now: Instant) -> Option<Body> {
        if self.closed {
            return None;
        }
        self.served(object, now, |object, answers| object.take_now(now, answers)).flatten()
    }

    pub(crate) fn taken(&mut self, caller: Caller, object: u64, now: Instant) {
        if self.has(caller.client, object) {
            self.served(object, now, |object, answers| object.taken(caller, now, answers));
        }
    }

    pub(crate) fn cancel(&mut self, caller: Caller, object: u64, now: Instant) {
        // Of another object it would be counted no longer, and still wait where it was made.
        if let Some(state) = self.clients.get_mut(&caller.client)
            && state.open.get(&caller.ticket) == Some(&object)
        {
            state.open.remove(&caller.ticket);
        }
        self.rings.over(caller);
        if self.has(caller.client, object) {
            self.with(object, |what, answers, told| match what {
                What::Served(object) => object.cancel(caller, now, answers),
                What::Lock(lock) => lock.cancel(caller, now, told),
                What::Cells(..) => {}
            });
        }
    }

    // ---- locks and memory

    /// Wants a lock, for at most so long.
    pub(crate) fn park(
        &mut self,
        caller: Caller,
        object: u64,
        limit: Option<Duration>,
        wait: Wait,
        now: Instant,
    ) {
        let refusal = if self.closed {
            Refusal::Closed
        } else if !self.has(caller.client, object) {
            Refusal::NotYours
        } else if self.is_over_full(caller) {
            Refusal::Full
        } else {
            let until = limit.and_then(|limit| now.checked_add(limit));
            let parked = self.lock(object, |lock, is_client, told| {
                if lock.waiting() >= OPEN_MAX {
                    return Some(Refusal::TooMany);
                }
                lock.check_owner(is_client, told);
                lock.park(caller, until, now, told);
                None
            });
            match parked {
                Some(None) => return self.look_for_ring(caller, object, wait, now),
                Some(Some(refusal)) => refusal,
                None => Refusal::NotYours,
            }
        };
        self.actions.push(Action::Refuse(caller, refusal));
    }

    /// A thread waits for a lock, and holds others.
    fn look_for_ring(&mut self, caller: Caller, object: u64, wait: Wait, now: Instant) {
        // It may have got it at once.
        let waits = self.objects.get(&object).is_some_and(
            |entry| matches!(&entry.what, What::Lock(lock) if lock.is_waiting(caller)),
        );
        if !waits || !self.rings.wait(caller, object, wait) {
            return;
        }
        let Self { rings, objects, .. } = self;
        let holder = |lock: u64| match objects.get(&lock).map(|entry| &entry.what) {
            Some(What::Lock(lock)) => lock.holder(),
            _ => None,
        };
        let name = |lock: u64| objects.get(&lock).and_then(|entry| entry.name.as_deref());
        if let Some(ring) = rings.find(caller, holder, name) {
            self.cancel(caller, object, now);
            self.actions.push(Action::Deadlock(caller, ring));
        }
    }

    /// A lock's waiter came too late to accept it.
    pub(crate) fn back(&mut self, caller: Caller, object: u64, now: Instant) {
        if self.has(caller.client, object) {
            self.lock(object, |lock, _, told| lock.back(caller, now, told));
        }
    }

    /// A lock was left to the manager.
    pub(crate) fn rang(&mut self, client: Client, object: u64, now: Instant) {
        if self.has(client, object) {
            self.lock(object, |lock, _, told| lock.rang(now, told));
        }
    }

    /// A lock is left with a value, by way of the manager. If that would pass the manager's bound,
    /// it is rolled back, and the lock marked as recovered. Gives whether it was committed, as
    /// far as the bound goes.
    pub(crate) fn commit(
        &mut self,
        client: Client,
        object: u64,
        unmark: bool,
        value: Packet,
        held: Held,
        now: Instant,
    ) -> bool {
        if !self.has(client, object) {
            return true;
        }
        if self.bytes + value.len() > self.bytes_max {
            self.lock(object, |lock, _, told| lock.roll_back(client, now, told));
            return false;
        }
        let recovered = unmark.then_some(false);
        let old = self
            .lock(object, |lock, _, told| lock.commit(client, recovered, value, held, now, told));
        drop(old); // what it held is let go when the lock has been released (see `Dropped`)
        true
    }

    /// Wants the value of a lock that the manager keeps. The answer has none if the value is in its
    /// place.
    pub(crate) fn fetch(&mut self, caller: Caller, object: u64) {
        let lock = self
            .objects
            .get(&object)
            .filter(|_| self.has(caller.client, object))
            .map(|entry| &entry.what);
        self.actions.push(match lock {
            _ if self.closed => Action::Refuse(caller, Refusal::Closed),
            Some(What::Lock(lock)) => {
                let (value, held) = lock.outside().cloned().unwrap_or_default();
                Action::Answer(Answer::new(
                    caller,
                    Body { head: Packet::default(), tail: value, held },
                ))
            }
            _ => Action::Refuse(caller, Refusal::NotYours),
        });
    }

    /// Wants a segment of the memory: one in which something lies that it has a reference to.
    pub(crate) fn map(&mut self, caller: Caller, segment: u32) {
        let lies = |object: &u64| {
            self.objects
                .get(object)
                .and_then(|entry| entry.what.place())
                .is_some_and(|place| place.segment == segment)
        };
        let may =
            self.clients.get(&caller.client).is_some_and(|state| state.references.keys().any(lies));
        let why = if self.closed { Refusal::Closed } else { Refusal::NotYours };
        self.actions.push(if may {
            Action::Map(caller, segment)
        } else {
            Action::Refuse(caller, why)
        });
    }

    fn lock<R>(
        &mut self,
        object: u64,
        call: impl FnOnce(&mut Lock, &dyn Fn(Owner) -> bool, &mut Vec<Told>) -> R,
    ) -> Option<R> {
        let apart = SeatsApart::of(self);
        let is_client = |owner: Owner| is_client(&apart.seats, owner);
        let result = apart.state.with(object, |what, _, told| match what {
            What::Lock(lock) => Some(call(lock, &is_client, told)),
            _ => None,
        });
        result.flatten()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub(crate) fn tick(&mut self, now: Instant) {
        let due: Vec<_> = self
            .deadlines
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, object)| *object)
            .collect();
        for object in due {
            let apart = SeatsApart::of(self);
            let seats = &apart.seats;
            apart.state.with(object, |what, answers, told| match what {
                What::Served(object) => object.tick(now, answers),
                What::Lock(lock) => lock.tick(now, |owner| is_client(seats, owner), told),
                What::Cells(..) => {}
            });
        }
    }

    /// Everyone who waits is told, and nothing is asked any more.
    pub(crate) fn close(&mut self, now: Instant) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let objects: Vec<_> = self.objects.keys().copied().collect();
        for object in objects {
            self.with(object, |what, answers, told| match what {
                What::Served(object) => object.close(now, answers),
                What::Lock(lock) => lock.close(told),
                What::Cells(..) => {}
            });
            self.remove(object);
        }
        self.deadlines.clear();
    }

    /// Calls an object that answers requests.
    fn served<R>(
        &mut self,
        number: u64,
        _: Instant,
        call: impl FnOnce(&mut dyn Object, &mut Vec<Answer>) -> R,
    ) -> Option<R> {
        let left = self.bytes_max.saturating_sub(self.bytes);
        self.with(number, |what, answers, _| match what {
            What::Served(object) => {
                object.left(left);
                Some(call(&mut **object, answers))
            }
            What::Lock(_) | What::Cells(..) => None,
        })
        .flatten()
    }

    /// Calls an object, and takes note of what has changed.
    fn with<R>(
        &mut self,
        number: u64,
        call: impl FnOnce(&mut What, &mut Vec<Answer>, &mut Vec<Told>) -> R,
    ) -> Option<R> {
        let entry = self.objects.get_mut(&number)?;
        let result = call(&mut entry.what, &mut self.answers, &mut self.told);
        let bytes = entry.what.bytes() + OBJECT_BYTES;
        self.bytes = self.bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        let deadline = entry.what.next_deadline();
        if deadline != entry.deadline {
            if let Some(old) = entry.deadline {
                self.deadlines.remove(&(old, number));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, number));
            }
            entry.deadline = deadline;
        }
        for answer in self.answers.drain(..) {
            // Only what is waited for: an object's mistake must not count as an answer to something
            // else.
            if let Some(client) = self.clients.get_mut(&answer.to.client)
                && client.open.remove(&answer.to.ticket).is_some()
            {
                self.actions.push(Action::Answer(answer));
            }
        }
        for told in &self.told {
            let (Told::Granted(caller, _) | Told::Refused(caller, _)) = told;
            self.rings.over(*caller);
        }
        self.actions.extend(self.told.drain(..).map(|told| match told {
            Told::Granted(caller, version) => Action::Grant(caller, version),
            Told::Refused(caller, why) => Action::Refuse(caller, why),
        }));
        Some(result)
    }
}

/// The seats, while the rules of an object are called. They go back also after a panic: else every
/// owner of a lock would count as gone, and seats would be given twice.
struct SeatsApart<'a> {
    state: &'a mut State,
    seats: Vec<(u32, bool)>,
}

impl<'a> SeatsApart<'a> {
    fn of(state: &'a mut State) -> Self {
        let seats = std::mem::take(&mut state.seats);
        Self { state, seats }
    }
}

impl Drop for SeatsApart<'_> {
    fn drop(&mut self) {
        self.state.seats = std::mem::take(&mut self.seats);
    }
}

/// Whether the owner of a lock is a client that has not ended.
fn is_client(seats: &[(u32, bool)], owner: Owner) -> bool {
    let (seat, _) = owner.seat();
    let index = seat.checked_sub(LOCAL.seat).map(|index| index as usize);
    index
        .and_then(|index| seats.get(index))
        .is_some_and(|(generation, taken)| *taken && owner.is(seat, *generation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::objects::code::{Message, Wait};
    use crate::manager::objects::event::{Ask, Event};

    struct Owner;

    impl super::super::held::Dropped for Owner {
        fn dropped(&self, _: Vec<(u64, Part)>) {}
    }

    #[test]
    fn what_waits_is_counted_and_past_the_bound_no_client_may_wait() {
        let owner: Arc<dyn super::super::held::Dropped> = Arc::new(Owner);
        let (mut state, now) = (State::new(Arc::downgrade(&owner)), Instant::now());
        let event = What::Served(Box::new(Event::new()));
        let made = state.create(Kind(8), event, None, Part::WHOLE, now).expect("an event").object;
        let bound = 1 << 20;
        state.set_bound(bound);
        let ask = |state: &mut State, client, ticket| {
            let wait = Ask::Wait { wait: Wait::Ever }.body();
            state.request(Caller { client, ticket }, made, wait, now).expect("the protocol");
            state.actions.pop()
        };
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let client = state.seat(false).expect("a seat");
                state.lend(client, made, Part::WHOLE, now).expect("lent");
                client
            })
            .collect();
        for ticket in 1..=bound as u64 {
            let refused = clients.iter().filter_map(|client| ask(&mut state, *client, ticket));
            let refused: Vec<_> = refused.collect();
            if !refused.is_empty() {
                let full = |action: &Action| matches!(action, Action::Refuse(_, Refusal::Full));
                assert!(refused.iter().all(full), "{refused:?}");
                break;
            }
        }
        assert!(state.bytes > bound && state.bytes < bound + bound / 8, "{}", state.bytes);
        assert!(ask(&mut state, LOCAL, 1).is_none(), "the application waits");
        // When some have given up, others may wait.
        (1..=1000)
            .for_each(|ticket| state.cancel(Caller { client: clients[0], ticket }, made, now));
        assert!(ask(&mut state, clients[1], u64::MAX).is_none());
    }

    #[test]
    fn what_may_come_by_lane_is_counted_when_it_is_granted() {
        use crate::manager::lane::{self, Pusher};
        use crate::manager::objects::queue;
        let owner: Arc<dyn super::super::held::Dropped> = Arc::new(Owner);
        let (mut state, now) = (State::new(Arc::downgrade(&owner)), Instant::now());
        let client = state.seat(false).expect("a seat");
        let bound = 4 << 20;
        state.set_bound(bound);
        let mut pushers = Vec::new();
        for ticket in 1..=60 {
            let what = What::Served(Box::new(queue::Queue::new(None)));
            let made = state.create(Kind(8), what, None, Part::WHOLE, now).expect("made");
            state.lend(client, made.object, Part::WHOLE, now).expect("lent");
            let (memory, fd) = SharedMemory::create(lane::WORDS * 8).expect("memory");
            let memory = Arc::new(memory);
            let theirs = Arc::clone(&memory);
            state.lane(Caller { client, ticket }, made.object, Way::In, memory, fd, now);
            if let Some(Action::Lane(..)) = state.actions.pop() {
                pushers.push((made.object, Pusher::new(theirs).expect("a lane")));
            }
            assert!(state.bytes <= bound, "{} after {ticket}", state.bytes);
        }
        let mut pushed = 0;
        for (object, pusher) in &mut pushers {
            while pusher.push(lane::time(), &[1; 8]).is_some() {
                pushed += 1;
            }
            let body = queue::Ask::Rang.body();
            let caller = Caller { client, ticket: NO_ANSWER };
            state.request(caller, *object, body, now).expect("the protocol");
        }
        assert!(pushed > 1000 && state.bytes <= bound, "{pushed}: {}", state.bytes);
    }

    #[test]
    fn a_request_is_counted_until_the_object_that_it_waits_for_has_let_it_go() {
        let owner: Arc<dyn super::super::held::Dropped> = Arc::new(Owner);
        let (mut state, now) = (State::new(Arc::downgrade(&owner)), Instant::now());
        let client = state.seat(false).expect("a seat");
        let mut event = || {
            let event = What::Served(Box::new(Event::new()));
            let made = state.create(Kind(8), event, None, Part::WHOLE, now).expect("an event");
            state.lend(client, made.object, Part::WHOLE, now).expect("lent").object
        };
        let (waited_for, other) = (event(), event());
        let caller = |ticket| Caller { client, ticket };
        let ask = |state: &mut State, ticket| {
            state
                .request(caller(ticket), waited_for, Ask::Wait { wait: Wait::Ever }.body(), now)
                .expect("it keeps to the protocol");
            matches!(state.actions.pop(), Some(Action::Refuse(_, Refusal::TooMany)))
        };
        let max = OPEN_MAX as u64;
        for ticket in 1..=max {
            assert!(!ask(&mut state, ticket));
            // It waits on: this is not where it waits.
            state.cancel(caller(ticket), other, now);
        }
        assert!(ask(&mut state, max + 1));
        state.cancel(caller(1), waited_for, now);
        assert!(!ask(&mut state, max + 2));
        assert!(ask(&mut state, max + 3));
    }
}
