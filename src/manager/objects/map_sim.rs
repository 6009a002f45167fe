//! A map against std's own, its watchers against a list of all changes, and clients that keep what
//! they have read.
//!
//! A reader does in steps what its process does: looks for what it has kept, asks, keeps the
//! answer; others change the map in between. What it gives without asking must be what is there at
//! that moment. So five ways of counting the changes wrongly are found ([`Flaw`]).

use super::*;
use crate::manager::lane::{MIRROR, Mirror, WORDS};
use crate::manager::objects::testing::{Clients, Rng, rounds};
use crate::manager::reads::{Reads, Seen};
use std::sync::atomic::Ordering;
use std::time::Duration;

fn packet(number: u64) -> Packet {
    Packet::copy_from(&number.to_le_bytes())
}

fn number(value: &[u8]) -> u64 {
    u64::from_le_bytes(value.try_into().expect("eight bytes"))
}

/// What is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// Changes are not counted.
    NotMoved,
    /// A removal is not counted.
    NotByRemove,
    /// A change is counted before it is made, and somebody reads in between.
    MovedBefore,
    /// A change is counted only after who made it was answered.
    MovedLate,
    /// The reader looks at the count when it has the answer, not before it asks.
    LookedAfter,
}

const FLAWS: [Flaw; 5] =
    [Flaw::NotMoved, Flaw::NotByRemove, Flaw::MovedBefore, Flaw::MovedLate, Flaw::LookedAfter];

/// A client that keeps what it has read.
struct Reader {
    lane: Caller,
    memory: Arc<SharedMemory>,
    reads: Reads,
    asks: Option<Asks>,
}

/// Under this key, when there had been so many changes; and the answer, when it has come.
#[derive(Clone, Copy)]
struct Asks {
    key: u64,
    at: Option<Seen>,
    answer: Option<Option<u64>>,
}

/// A watcher: what it has been told so far, and what it waits with.
struct Watcher {
    caller: Caller,
    key: Option<u64>,
    /// How many changes there were when it began.
    began: usize,
    position: u64,
    seen: Vec<(u64, Option<u64>)>,
    waits: Option<(Caller, Option<Instant>)>,
}

struct World {
    rng: Rng,
    map: Map,
    clients: Clients,
    now: Instant,
    /// Key, value, version, in the order of insertion.
    model: Vec<(u64, u64, u64)>,
    version: u64,
    changes: Vec<(u64, Option<u64>)>,
    watchers: Vec<Watcher>,
    /// One answer in so many is thrown away, as if its request had been given up just then.
    drops: u64,
    fetched: u64,
    readers: Vec<Reader>,
    /// Reads that were not asked for.
    kept: u64,
    flaw: Option<Flaw>,
}

impl World {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            drops: rng.below(6),
            clients: Clients::new(3),
            rng,
            map: Map::new(),
            now: Instant::now(),
            model: Vec::new(),
            version: 0,
            changes: Vec::new(),
            watchers: Vec::new(),
            fetched: 0,
            readers: Vec::new(),
            kept: 0,
            flaw,
        }
    }

    fn ask(&mut self, caller: Caller, ask: &Ask, tail: Packet) -> Result<Vec<Answer>, String> {
        let mut answers = Vec::new();
        self.map
            .request(caller, Body::with_value(ask.packet(), tail, None), self.now, &mut answers)
            .map_err(|bad| bad.0)?;
        Ok(answers)
    }

    fn entry(&self, key: u64) -> Option<(usize, u64, u64)> {
        let at = self.model.iter().position(|(other, ..)| *other == key)?;
        Some((at, self.model[at].1, self.model[at].2))
    }

    fn set(&mut self, key: u64) -> (Packet, (Reply, Vec<u64>)) {
        self.version += 1;
        let (value, version) = (self.version * 3, self.version);
        self.changes.push((key, Some(value)));
        let expected = match self.entry(key) {
            Some((at, before, _)) => {
                self.model[at] = (key, value, version);
                (Reply::Value { version }, vec![before])
            }
            None => {
                self.model.push((key, value, version));
                (Reply::Inserted { version }, vec![])
            }
        };
        (packet(value), expected)
    }

    fn condition(&mut self, key: u64) -> (When, bool) {
        match (self.rng.below(6), self.entry(key)) {
            (0, entry) => (When::Absent, entry.is_none()),
            (1, entry) => (When::Present, entry.is_some()),
            (2, Some((_, _, version))) => (When::Version(version), true),
            (3, Some((_, value, _))) => (When::Equals(packet(value)), true),
            (4, _) => (When::Version(self.version + 1), false),
            _ => (When::Always, true),
        }
    }

    fn refused(&self, key: u64) -> (Reply, Vec<u64>) {
        match self.entry(key) {
            Some((_, value, version)) => (Reply::Refused { version }, vec![value]),
            None => (Reply::RefusedAbsent, vec![]),
        }
    }

    /// What the readers see of the count of changes.
    fn counts(&self) -> Vec<u64> {
        self.readers
            .iter()
            .map(|reader| reader.memory.words()[MIRROR].load(Ordering::SeqCst))
            .collect()
    }

    fn set_counts(&self, counts: impl IntoIterator<Item = u64>) {
        for (reader, count) in self.readers.iter().zip(counts) {
            reader.memory.words()[MIRROR].store(count, Ordering::SeqCst);
        }
    }

    /// One request of somebody's, with what is planted around it.
    fn request(&mut self) -> Result<(), String> {
        let changes = self.map.changes;
        if self.flaw == Some(Flaw::MovedBefore) {
            self.set_counts(std::iter::repeat(changes + 1));
            for _ in 0..self.rng.below(6) {
                self.read()?;
            }
        }
        self.set_counts(vec![
            self.map.changes;
            if self.flaw == Some(Flaw::MovedLate) {
                self.readers.len()
            } else {
                0
            }
        ]);
        let (before, len) = (self.counts(), self.model.len());
        self.operate()?;
        let shown = match self.flaw {
            Some(Flaw::NotMoved | Flaw::MovedLate) => false,
            Some(Flaw::NotByRemove) => self.model.len() >= len,
            _ => true,
        };
        if !shown {
            self.set_counts(before);
        }
        Ok(())
    }

    /// One step of some reader.
    fn read(&mut self) -> Result<(), String> {
        let at = self.rng.below(self.readers.len() as u64) as usize;
        let key = self.rng.below(8);
        let there = |world: &Self, key| world.entry(key).map(|(_, value, _)| value);
        let Some(reader) = self.readers.get_mut(at) else { return Ok(()) };
        match reader.asks.take() {
            None => match reader.reads.get(&packet(key)) {
                Ok(value) => {
                    let (value, now) = (value.as_deref().map(number), there(self, key));
                    self.kept += 1;
                    if value != now {
                        return Err(format!(
                            "a reader has kept {value:?} under {key}, where {now:?} is"
                        ));
                    }
                }
                Err(at) => reader.asks = Some(Asks { key, at, answer: None }),
            },
            Some(asks @ Asks { key, answer: None, .. }) => {
                let caller = self.clients.caller_of(reader.lane.client);
                let answers =
                    self.ask(caller, &Ask::Get { key: packet(key) }, Packet::default())?;
                let [Answer { body, .. }] = &answers[..] else {
                    return Err(format!("{} answers", answers.len()));
                };
                let value = match Reply::read(&body.head) {
                    Ok(Reply::Value { .. }) => Some(number(&body.tail)),
                    Ok(Reply::Absent) => None,
                    other => return Err(format!("a reader was answered {other:?}")),
                };
                if value != there(self, key) {
                    return Err(format!("a reader was given {value:?}"));
                }
                self.readers[at].asks = Some(Asks { answer: Some(value), ..asks });
            }
            Some(Asks { key, at, answer: Some(value) }) => {
                let now = Mirror::new(Arc::clone(&reader.memory)).look();
                let late = now.filter(|_| self.flaw == Some(Flaw::LookedAfter));
                if let Some(at) = late.map(|changes| Seen { changes, writes: 0 }).or(at) {
                    reader.reads.keep(packet(key), value.map(packet), at);
                }
            }
        }
        Ok(())
    }

    /// A reader comes, or goes.
    fn come_or_go(&mut self) -> Result<(), String> {
        if self.readers.len() < 3 {
            let lane = self.clients.caller(&mut self.rng);
            let (memory, _) = SharedMemory::create(WORDS * 8).map_err(|e| e.to_string())?;
            let memory = Arc::new(memory);
            if !self.map.lane(lane, Way::Out, Arc::clone(&memory), self.now, &mut Vec::new()) {
                return Err("no memory is taken".into());
            }
            self.readers.push(Reader {
                lane,
                reads: Reads::new(Arc::clone(&memory)),
                memory,
                asks: None,
            });
        } else {
            let at = self.rng.below(self.readers.len() as u64) as usize;
            let reader = self.readers.remove(at);
            self.map.cancel(reader.lane, self.now, &mut Vec::new());
        }
        if self.map.lanes.len() != self.readers.len() {
            return Err("changes are told to nobody, or not to somebody".into());
        }
        Ok(())
    }

    fn operate(&mut self) -> Result<(), String> {
        let key = self.rng.below(8);
        let mut tail = Packet::default();
        let (request, expected) = match self.rng.below(10) {
            0..3 => {
                let (when, holds) = self.condition(key);
                let expected = if holds {
                    let (value, expected) = self.set(key);
                    tail = value;
                    expected
                } else {
                    self.refused(key)
                };
                if when == When::Always && self.rng.chance(50) {
                    (Ask::Set { key: packet(key), lane: 0 }, (Reply::Done, vec![]))
                } else {
                    (Ask::Insert { key: packet(key), when }, expected)
                }
            }
            3 | 4 => {
                let (when, holds) = self.condition(key);
                let expected = match (holds, self.entry(key)) {
                    (false, _) => self.refused(key),
                    (true, None) => (Reply::Absent, vec![]),
                    (true, Some((at, value, version))) => {
                        self.model.remove(at);
                        self.changes.push((key, None));
                        (Reply::Value { version }, vec![value])
                    }
                };
                (Ask::Remove { key: packet(key), when }, expected)
            }
            5 => match self.entry(key) {
                Some((_, value, version)) => {
                    (Ask::Get { key: packet(key) }, (Reply::Value { version }, vec![value]))
                }
                None => (Ask::Get { key: packet(key) }, (Reply::Absent, vec![])),
            },
            6 => match self.entry(key) {
                Some((_, _, version)) => {
                    (Ask::Contains { key: packet(key) }, (Reply::Value { version }, vec![]))
                }
                None => (Ask::Contains { key: packet(key) }, (Reply::Absent, vec![])),
            },
            7 => {
                let values = self.rng.chance(50);
                let all = self
                    .model
                    .iter()
                    .flat_map(|(key, value, _)| [Some(*key), values.then_some(*value)])
                    .flatten()
                    .collect();
                (Ask::Snapshot { values }, (Reply::Entries { more: false }, all))
            }
            8 => {
                let mut pack = Pack::default();
                for _ in 0..self.rng.below(4) {
                    let key = self.rng.below(8);
                    pack.push(&packet(key));
                    pack.push(&self.set(key).0);
                }
                tail = pack.finish();
                (Ask::Extend, (Reply::Len { len: self.model.len() as u64 }, vec![]))
            }
            _ if self.rng.chance(10) => {
                self.changes.extend(self.model.drain(..).map(|(key, ..)| (key, None)));
                (Ask::Clear, (Reply::Len { len: 0 }, vec![]))
            }
            _ => (Ask::Len, (Reply::Len { len: self.model.len() as u64 }, vec![])),
        };
        let caller = self.clients.caller(&mut self.rng);
        let mut answers = self.ask(caller, &request, tail)?;
        let at = answers.iter().position(|answer| answer.to == caller).ok_or("no answer")?;
        let body = answers.remove(at).body;
        let reply = Reply::read(&body.head).map_err(|bad| bad.0)?;
        let values: Vec<u64> = match &reply {
            Reply::Entries { more: false } => {
                unpack(&body.tail).map_err(|bad| bad.0)?.iter().map(|value| number(value)).collect()
            }
            _ if body.tail.is_empty() => vec![],
            _ => vec![number(&body.tail)],
        };
        if (&reply, &values) != (&expected.0, &expected.1) {
            return Err(format!(
                "{request:?} was answered {reply:?} with {values:?}, not {expected:?}"
            ));
        }
        self.told(answers)
    }

    /// What watchers are told.
    fn told(&mut self, answers: Vec<Answer>) -> Result<(), String> {
        for Answer { to, body, .. } in answers {
            let watcher = self
                .watchers
                .iter_mut()
                .find(|watcher| watcher.waits.is_some_and(|(caller, _)| caller == to));
            let watcher = watcher.ok_or(format!("{to:?} was told something"))?;
            let (_, until) = watcher.waits.take().expect("it waits");
            match Reply::read(&body.head).map_err(|bad| bad.0)? {
                Reply::Changes { position, lost: false } => {
                    if self.drops > 0 && self.rng.below(self.drops) == 0 {
                        continue; // it is as if it had never come
                    }
                    watcher.position = position;
                    for change in unpack(&body.tail).map_err(|bad| bad.0)?.chunks(3) {
                        watcher.seen.push((
                            number(&change[0]),
                            (change[1][..] == [1]).then(|| number(&change[2])),
                        ));
                        self.fetched += 1;
                    }
                }
                Reply::TimedOut if until.is_some_and(|until| until <= self.now) => {}
                other => return Err(format!("a watcher was told {other:?}")),
            }
        }
        for watcher in &self.watchers {
            let changes = self.changes[watcher.began..]
                .iter()
                .filter(|(key, _)| watcher.key.is_none_or(|wanted| wanted == *key));
            let mut missing = changes.clone().copied();
            if !watcher.seen.iter().all(|seen| missing.next() == Some(*seen)) {
                return Err(format!("a watcher saw {:?}", watcher.seen));
            }
            if watcher.waits.is_some() && missing.next().is_some() {
                return Err("a watcher waits, and there are changes for it".into());
            }
        }
        let deadline = self
            .watchers
            .iter()
            .filter_map(|watcher| watcher.waits.and_then(|(_, until)| until))
            .min();
        if self.map.next_deadline() != deadline {
            return Err("somebody's time is not known".into());
        }
        if self.watchers.is_empty() && self.map.log.changes.len() + self.map.log.bytes > 0 {
            return Err("changes are kept for nobody".into());
        }
        let bytes = self.model.len() * (ENTRY_BYTES + 24);
        if self.map.bytes != bytes {
            return Err(format!("{bytes} bytes are held, not {}", self.map.bytes));
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        match self.rng.below(140) {
            0..60 => self.request(),
            100..138 => self.read(),
            138..140 => self.come_or_go(),
            60..66 => {
                let caller = self.clients.caller(&mut self.rng);
                let key = self.rng.chance(50).then(|| self.rng.below(8));
                let answers =
                    self.ask(caller, &Ask::Watch { key: key.map(packet) }, Packet::default())?;
                let Ok(Reply::Watching { position }) = Reply::read(&answers[0].body.head) else {
                    return Err(format!("{answers:?}"));
                };
                let began = self.changes.len();
                self.watchers.push(Watcher {
                    caller,
                    key,
                    began,
                    position,
                    seen: Vec::new(),
                    waits: None,
                });
                Ok(())
            }
            66..86 => {
                let idle: Vec<usize> = (0..self.watchers.len())
                    .filter(|at| self.watchers[*at].waits.is_none())
                    .collect();
                let Some(at) = self.rng.pick(&idle) else { return Ok(()) };
                let watcher = &mut self.watchers[at];
                let caller = self.clients.caller_of(watcher.caller.client);
                let wait = if self.rng.chance(40) {
                    Wait::Limit(self.rng.millis(20) + Duration::from_millis(1))
                } else {
                    Wait::Ever
                };
                watcher.waits = Some((caller, wait.until(self.now)));
                let ask = Ask::Next { watch: watcher.caller.ticket, after: watcher.position, wait };
                let answers = self.ask(caller, &ask, Packet::default())?;
                self.told(answers)
            }
            86..92 => {
                // A waiting request is given up, or the watch itself.
                let at = self.rng.below(self.watchers.len() as u64) as usize;
                let Some(watcher) = self.watchers.get_mut(at) else { return Ok(()) };
                let caller = match watcher.waits.take() {
                    Some((caller, _)) => caller,
                    None => self.watchers.remove(at).caller,
                };
                self.map.cancel(caller, self.now, &mut Vec::new());
                self.told(vec![])
            }
            92..94 => {
                let client = self.clients.any(&mut self.rng);
                self.clients.replace(client);
                self.watchers.retain(|watcher| watcher.caller.client != client);
                self.readers.retain(|reader| reader.lane.client != client);
                self.map.gone(client, Gone::Died, self.now, &mut Vec::new());
                self.told(vec![])
            }
            _ => {
                self.now += self.rng.millis(15);
                let mut answers = Vec::new();
                self.map.tick(self.now, &mut answers);
                self.told(answers)
            }
        }
    }
}

fn run(world: &mut World) -> Result<(), String> {
    (0..400).try_for_each(|step| world.step().map_err(|wrong| format!("step {step}: {wrong}")))
}

#[test]
fn it_is_as_a_map_is_and_watchers_see_every_change_once() {
    let (mut fetched, mut kept) = (0, 0);
    rounds(150, |seed| {
        let mut world = World::new(seed, None);
        run(&mut world)?;
        (fetched, kept) = (fetched + world.fetched, kept + world.kept);
        Ok(())
    });
    assert!(fetched > 100 && kept > 100, "{fetched} changes and {kept} reads are no test");
}

#[test]
fn every_flaw_that_is_planted_in_the_count_of_changes_is_found() {
    for flaw in FLAWS {
        let found = (0..500).find_map(|seed| run(&mut World::new(seed, Some(flaw))).err());
        assert!(
            found.is_some_and(|found| found.contains("a reader has kept")),
            "{flaw:?} was not found"
        );
    }
}

#[test]
fn a_watcher_that_is_too_far_behind_is_told_so_and_memory_stays_bounded() {
    let mut world = World::new(0, None);
    let (watch, writer) = (world.clients.caller(&mut world.rng), world.clients.any(&mut world.rng));
    world.ask(watch, &Ask::Watch { key: None }, Packet::default()).expect("watch");
    for _ in 0..3 * LOG_MAX {
        let caller = world.clients.caller_of(writer);
        world
            .ask(caller, &Ask::Insert { key: packet(1), when: When::Always }, packet(7))
            .expect("insert");
    }
    assert_eq!(world.map.log.changes.len(), LOG_MAX);
    let large = Packet::from(&mut vec![0; LOG_BYTES / 3]);
    for _ in 0..10 {
        let caller = world.clients.caller_of(writer);
        world
            .ask(caller, &Ask::Insert { key: packet(1), when: When::Always }, large.clone())
            .expect("insert");
    }
    assert!(world.map.bytes() < 2 * LOG_BYTES);
    let caller = world.clients.caller_of(watch.client);
    let ask = Ask::Next { watch: watch.ticket, after: 0, wait: Wait::Ever };
    let answers = world.ask(caller, &ask, Packet::default()).expect("next");
    let Ok(Reply::Changes { position, lost: true }) = Reply::read(&answers[0].body.head) else {
        panic!("{answers:?}")
    };
    let caller = world.clients.caller_of(watch.client);
    let ask = Ask::Next { watch: watch.ticket, after: position, wait: Wait::Ever };
    let answers = world.ask(caller, &ask, Packet::default()).expect("next");
    assert!(
        matches!(Reply::read(&answers[0].body.head), Ok(Reply::Changes { lost: false, .. })),
        "it goes on from there"
    );
}
