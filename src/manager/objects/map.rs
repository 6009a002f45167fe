//! A map from keys to values, both encoded. Two keys are equal when their encodings are.
//!
//! The rules, by number:
//!
//! 1. **Atomicity and order.** Each request is atomic: no client sees a part of its effect. Entries
//!    are in the order of their first insertion, as in Python's `dict`.
//! 2. **Versions.** Every value has a version, and no two values have the same one. A request that
//!    names a version is refused if the value with this version is no longer there, and is told
//!    what is there instead. So a client can read, compute and write in one atomic step
//!    (compare-and-swap), by trying again until no other client has interfered.
//! 3. **Watching.** A watcher is told every change since it began to watch, in order, in answers to
//!    its own requests. No change is lost when such a request is cancelled. The changes that are
//!    not fetched yet are kept, up to [`LOG_MAX`] of them and [`LOG_BYTES`] bytes. A watcher that
//!    lags further behind is told so, and continues with the oldest change that is kept.
//! 4. **Shared-memory rings.** A client that reads or writes often has a [`lane`] for it. By this
//!    ring it sees whether other clients have changed something, and it may put entries that it
//!    sets into the ring: see `map_lanes.rs`.

use self::lanes::{LANE_BYTES, LANES_MAX, Lane};
use super::code::{Message, Pack, Wait, messages, unpack};
use super::line::{Line, WAITER_BYTES, of_client};
use super::snapshot::{Item, Piece, Snapshots};
use super::when::When;
use crate::manager::held::join;
use crate::manager::lane::{self, Way};
use crate::manager::message::KEY_MAX;
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Gone, Held, Object};
use crate::manager::state::LOCAL;
use crate::process::SharedMemory;
use crate::wire::packet::Packet;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

messages!(
    /// What a map is asked.
    Ask {
        1 Get { key: Packet },
        /// The tail is the value.
        2 Insert { key: Packet, when: When },
        3 Remove { key: Packet, when: When },
        4 Contains { key: Packet },
        5 Len,
        6 Clear,
        /// All entries, packed: keys and values by turns, or keys alone.
        7 Snapshot { values: bool },
        /// The tail holds keys and values by turns.
        8 Extend,
        /// From now on; the ticket stands for the watch. With a key, only that one's changes.
        9 Watch { key: Option<Packet> },
        /// The changes after that position, as soon as there are some.
        10 Next { watch: u64, after: u64, wait: Wait },
        /// As an insertion that does not ask what was there. The tail is the value. It has not gone through this lane (0: there is none)
        /// only because nothing was granted there.
        11 Set { key: Packet, lane: u64 },
        /// In a lane something has happened that was wanted to be known.
        12 Rang,
        /// The next piece of a snapshot, which was taken under this ticket.
        13 More { snapshot: u64 },
    }
);

messages!(
    /// What a map answers. A value, if there is one, is the tail.
    Reply {
        /// There is no such key.
        1 Absent,
        /// Found or taken out; of an insertion, what was there before.
        2 Value { version: u64 },
        /// Inserted, where nothing was.
        3 Inserted { version: u64 },
        /// The condition did not hold, and this is there.
        4 Refused { version: u64 },
        /// The condition did not hold, and nothing is there.
        5 RefusedAbsent,
        6 Len { len: u64 },
        /// `more`: this is a piece, and another one can be fetched.
        7 Entries { more: bool },
        8 Watching { position: u64 },
        /// Packed, three by three: the key, 1 or 0 (whether it has a value now), the value. `lost`: there were more.
        9 Changes { position: u64, lost: bool },
        10 TimedOut,
        11 NotWatching,
        /// It is set.
        12 Done,
        /// Too many snapshots are being fetched.
        13 Busy,
    }
);

/// What an entry costs beside its key and its value, in bytes, roughly.
const ENTRY_BYTES: usize = 240;
/// Watches of one client other than the application, at most: each may be answered with a value of its own at once.
const WATCHES_MAX: usize = 16;
/// Changes kept for watchers, at most.
const LOG_MAX: usize = 4096;
/// Their keys and values, in bytes, at most (but always one).
const LOG_BYTES: usize = 4 << 20;
/// Changes in one answer, in bytes, at most (but always one).
const BATCH_BYTES: usize = 256 << 10;

struct Entry {
    order: u64,
    value: Packet,
    held: Held,
    version: u64,
}

struct Change {
    key: Packet,
    value: Option<(Packet, Held)>,
}

impl Change {
    fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, |(value, _)| value.len()) + size_of::<Self>()
    }
}

/// The changes that some watcher may still fetch.
#[derive(Default)]
struct Log {
    changes: VecDeque<Change>,
    /// How many there were before the first of `changes`.
    first: u64,
    bytes: usize,
}

impl Log {
    fn end(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    fn push(&mut self, change: Change) {
        self.bytes += change.bytes();
        self.changes.push_back(change);
        while self.changes.len() > LOG_MAX || self.bytes > LOG_BYTES && self.changes.len() > 1 {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(change) = self.changes.pop_front() {
            self.bytes -= change.bytes();
            self.first += 1;
        }
    }
}

struct Watch {
    key: Option<Packet>,
    /// What it is known to have.
    after: u64,
}

/// The state of one map.
pub(crate) struct Map {
    entries: HashMap<Packet, Entry>,
    order: BTreeMap<u64, Packet>,
    next: u64,
    version: u64,
    /// Counts what has changed, removals too.
    changes: u64,
    lanes: BTreeMap<Caller, Lane>,
    bytes: usize,
    /// Bytes that the manager has left.
    left: usize,
    watches: BTreeMap<Caller, Watch>,
    log: Log,
    /// Who waits for changes: its watch.
    line: Line<(Caller, Wait)>,
    snapshots: Snapshots,
}

impl Map {
    pub(crate) fn new() -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
            version: 0,
            changes: 0,
            lanes: BTreeMap::new(),
            bytes: 0,
            left: usize::MAX,
            watches: BTreeMap::new(),
            log: Log::default(),
            line: Line::new(),
            snapshots: Snapshots::default(),
        }
    }

    fn body(head: &Reply, value: &Packet, held: &Held) -> Body {
        Body::with_value(head.packet(), value.clone(), held.clone())
    }

    fn note(&mut self, key: &Packet, value: Option<(&Packet, &Held)>) {
        if !self.watches.is_empty() {
            self.log.push(Change {
                key: key.clone(),
                value: value.map(|(value, held)| (value.clone(), held.clone())),
            });
        }
    }

    /// Whether the caller stands anywhere already.
    fn knows(&self, caller: Caller) -> bool {
        self.watches.contains_key(&caller)
            || self.line.contains(caller)
            || self.snapshots.contains(caller)
            || self.lanes.contains_key(&caller)
    }

    /// Whether the condition holds, or else what there is to say.
    fn check(&self, key: &Packet, when: &When) -> Result<(), Body> {
        let entry = self.entries.get(key);
        if when.holds(entry.map(|entry| (&entry.value, entry.version))) {
            return Ok(());
        }
        Err(match entry {
            Some(entry) => {
                Self::body(&Reply::Refused { version: entry.version }, &entry.value, &entry.held)
            }
            None => Reply::RefusedAbsent.body(),
        })
    }

    /// Gives what was there before.
    fn set(&mut self, key: Packet, value: Packet, held: Held) -> Option<(Packet, Held)> {
        self.version += 1;
        self.changes += 1;
        let version = self.version;
        self.note(&key, Some((&value, &held)));
        self.bytes += value.len();
        match self.entries.get_mut(&key) {
            Some(entry) => {
                let value = std::mem::replace(&mut entry.value, value);
                let held = std::mem::replace(&mut entry.held, held);
                entry.version = version;
                self.bytes -= value.len();
                self.snapshots.dropped(value.len());
                Some((value, held))
            }
            None => {
                self.bytes += ENTRY_BYTES + 2 * key.len();
                self.order.insert(self.next, key.clone());
                self.entries.insert(key, Entry { order: self.next, value, held, version });
                self.next += 1;
                None
            }
        }
    }

    fn insert(&mut self, key: Packet, value: Packet, held: Held) -> Body {
        let before = self.set(key, value, held);
        let version = self.version;
        match before {
            Some((value, held)) => Self::body(&Reply::Value { version }, &value, &held),
            None => Reply::Inserted { version }.body(),
        }
    }

    fn remove(&mut self, key: &Packet) -> Body {
        let Some(entry) = self.entries.remove(key) else { return Reply::Absent.body() };
        self.changes += 1;
        self.order.remove(&entry.order);
        self.bytes -= ENTRY_BYTES + 2 * key.len() + entry.value.len();
        self.snapshots.dropped(key.len() + entry.value.len());
        self.note(key, None);
        Self::body(&Reply::Value { version: entry.version }, &entry.value, &entry.held)
    }

    fn snapshot(&mut self, caller: Caller, values: bool) -> Body {
        if self.snapshots.is_full(caller.client, self.order.len(), self.left) {
            return Reply::Busy.body();
        }
        let entry = |key| values.then(|| &self.entries[key]);
        let items = self.order.values().map(|key| Item {
            key: Some(key.clone()),
            value: entry(key).map(|entry| entry.value.clone()),
            held: entry(key).and_then(|entry| entry.held.clone()),
        });
        let items = items.collect();
        entries(self.snapshots.take(caller, items))
    }

    /// What a watcher has not seen yet; `None` if that is nothing.
    fn changes(&mut self, watch: Caller) -> Option<Body> {
        let watch = self.watches.get_mut(&watch)?;
        let lost = watch.after < self.log.first;
        let mut position = watch.after.max(self.log.first);
        let (mut pack, mut held) = (Pack::default(), Vec::new());
        for change in self.log.changes.range((position - self.log.first) as usize..) {
            if watch.key.as_ref().is_none_or(|key| *key == change.key) {
                if pack.len() > 0 && pack.len() + change.bytes() > BATCH_BYTES {
                    break;
                }
                pack.push(&change.key);
                pack.push(&[u8::from(change.value.is_some())]);
                pack.push(change.value.as_ref().map_or(&[], |(value, _)| value));
                held.push(change.value.as_ref().and_then(|(_, held)| held.clone()));
            }
            position += 1;
        }
        if pack.len() == 0 && !lost {
            watch.after = position; // nothing of what it has passed over is for it
            return None;
        }
        Some(Body::with_value(
            Reply::Changes { position, lost }.packet(),
            pack.finish(),
            join(held),
        ))
    }

    fn expire(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        if self.log.end() > self.log.first {
            for (caller, watch) in
                self.line.iter().map(|(caller, (watch, _))| (caller, *watch)).collect::<Vec<_>>()
            {
                if let Some(body) = self.changes(watch) {
                    self.line.remove(caller);
                    answers.push(Answer::new(caller, body));
                }
            }
            self.trim();
        }
        for (caller, _) in self.line.expire(now) {
            answers.push(Answer::new(caller, Reply::TimedOut.body()));
        }
    }

    /// Forgets the changes that everybody has.
    fn trim(&mut self) {
        let needed = self.watches.values().map(|watch| watch.after).min().unwrap_or(u64::MAX);
        while self.log.first < needed.min(self.log.end()) {
            self.log.pop();
        }
    }

    fn unwatch(&mut self, watch: Caller) {
        if self.watches.remove(&watch).is_some() {
            let waiting: Vec<Caller> = self
                .line
                .iter()
                .filter(|(_, (of, _))| *of == watch)
                .map(|(caller, _)| caller)
                .collect();
            for caller in waiting {
                self.line.remove(caller);
            }
            self.trim();
        }
    }

    /// After everything that may have changed something.
    fn turn(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.expire(now, answers);
        self.tend_lanes();
        if self.set_bells() {
            self.expire(now, answers);
        }
    }

    fn answer(
        &mut self,
        caller: Caller,
        ask: Ask,
        body: Body,
        now: Instant,
    ) -> Result<Option<Body>, Bad> {
        Ok(Some(match ask {
            Ask::Get { key } => match self.entries.get(&key) {
                Some(entry) => {
                    Self::body(&Reply::Value { version: entry.version }, &entry.value, &entry.held)
                }
                None => Reply::Absent.body(),
            },
            Ask::Insert { key, .. } | Ask::Set { key, .. } if key.len() > KEY_MAX => {
                return Err(Bad("a key that is too long".into()));
            }
            // No user's value is empty, so no honest client is told this. What has a value is
            // counted before it comes here.
            Ask::Insert { .. } | Ask::Set { .. }
                if body.tail.is_empty() && self.left < 4 * ENTRY_BYTES =>
            {
                return Err(Bad("a key without a value".into()));
            }
            Ask::Insert { key, when } => match self.check(&key, &when) {
                Ok(()) => self.insert(key, body.tail, body.held),
                Err(refused) => refused,
            },
            Ask::Set { key, .. } => {
                self.set(key, body.tail, body.held);
                Reply::Done.body()
            }
            Ask::Remove { key, when } => match self.check(&key, &when) {
                Ok(()) => self.remove(&key),
                Err(refused) => refused,
            },
            Ask::Contains { key } => match self.entries.get(&key) {
                Some(entry) => Reply::Value { version: entry.version }.body(),
                None => Reply::Absent.body(),
            },
            Ask::Len => Reply::Len { len: self.entries.len() as u64 }.body(),
            Ask::Clear => {
                for key in std::mem::take(&mut self.order).into_values() {
                    self.remove(&key);
                }
                Reply::Len { len: 0 }.body()
            }
            Ask::Snapshot { values } => self.snapshot(caller, values),
            Ask::More { snapshot } => {
                let of = Caller { client: caller.client, ticket: snapshot };
                let piece = self.snapshots.next(of);
                entries(piece.ok_or_else(|| Bad("a piece of no snapshot".into()))?)
            }
            Ask::Extend => {
                let values = unpack(&body.tail)?;
                if !values.len().is_multiple_of(2) {
                    return Err(Bad("a key without a value".into()));
                }
                let mut values = values.into_iter();
                while let (Some(key), Some(value)) = (values.next(), values.next()) {
                    self.set(key, value, body.held.clone());
                }
                Reply::Len { len: self.entries.len() as u64 }.body()
            }
            Ask::Watch { .. }
                if caller.client != LOCAL
                    && of_client(&self.watches, caller.client).count() >= WATCHES_MAX =>
            {
                Reply::Busy.body()
            }
            Ask::Watch { key } => {
                let position = self.log.end();
                self.watches.insert(caller, Watch { key, after: position });
                Reply::Watching { position }.body()
            }
            Ask::Next { watch, after, wait } => {
                let watch = Caller { client: caller.client, ticket: watch };
                if self.line.iter().any(|(_, (of, _))| *of == watch) {
                    return Err(Bad("a watch that is waited at already".into()));
                }
                let end = self.log.end();
                match self.watches.get_mut(&watch) {
                    Some(known) => known.after = after.clamp(known.after, end),
                    None => return Ok(Some(Reply::NotWatching.body())),
                }
                match self.changes(watch) {
                    Some(body) => body,
                    None => {
                        self.line.push(caller, wait.until(now), (watch, wait));
                        return Ok(None);
                    }
                }
            }
            Ask::Rang => return Ok(None),
        }))
    }
}

fn entries(Piece { tail, held, more }: Piece) -> Body {
    Body::with_value(Reply::Entries { more }.packet(), tail, held)
}

impl Object for Map {
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad> {
        if self.knows(caller) {
            return Err(Bad(format!("ticket {} is used twice", caller.ticket)));
        }
        let ask = Ask::read(&body.head)?;
        self.prepare_lanes(caller, &ask);
        if let Some(body) = self.answer(caller, ask, body, now)? {
            answers.push(Answer::new(caller, body));
        }
        self.turn(now, answers);
        Ok(())
    }

    fn cancel(&mut self, caller: Caller, now: Instant, answers: &mut Vec<Answer>) {
        self.close_lane(caller);
        self.snapshots.forget(caller);
        self.line.remove(caller);
        self.unwatch(caller);
        self.turn(now, answers);
    }

    fn gone(&mut self, client: Client, _: Gone, now: Instant, answers: &mut Vec<Answer>) {
        for caller in of_client(&self.lanes, client).collect::<Vec<_>>() {
            self.close_lane(caller);
        }
        self.line.remove_client(client);
        self.snapshots.forget_client(client);
        for watch in of_client(&self.watches, client).collect::<Vec<_>>() {
            self.unwatch(watch);
        }
        self.turn(now, answers);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.line.next_deadline()
    }

    fn tick(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.pull();
        self.turn(now, answers);
    }

    fn bytes(&self) -> usize {
        self.bytes
            + self.log.bytes
            + self.line.len() * WAITER_BYTES
            + self.watches.len() * 100
            + self.lanes.len() * LANE_BYTES
            + self.granted()
            + self.snapshots.bytes()
    }

    fn left(&mut self, bytes: usize) {
        self.left = bytes;
    }

    fn lane(
        &mut self,
        caller: Caller,
        way: Way,
        memory: Arc<SharedMemory>,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> bool {
        let full = self.lanes.len() >= LANES_MAX || self.left < 2 * LANE_BYTES;
        if way != Way::Out || full || memory.words().len() < lane::WORDS || self.knows(caller) {
            return false;
        }
        self.lanes.insert(caller, Lane::new(memory));
        self.turn(now, answers);
        true
    }
}

#[path = "map_lanes.rs"]
mod lanes;
pub(crate) use lanes::put_together;
#[cfg(test)]
#[path = "map_lanes_sim.rs"]
mod lanes_sim;
#[cfg(test)]
#[path = "map_sim.rs"]
mod sim;
