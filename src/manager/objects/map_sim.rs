//! A map against std's own, and its watchers against a list of all changes.

use super::*;
use crate::manager::objects::testing::{Clients, Rng, rounds};
use std::time::Duration;

fn packet(number: u64) -> Packet {
    Packet::copy_from(&number.to_le_bytes())
}

fn number(value: &[u8]) -> u64 {
    u64::from_le_bytes(value.try_into().expect("eight bytes"))
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
}

impl World {
    fn new(seed: u64) -> Self {
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
        }
    }

    fn ask(&mut self, caller: Caller, ask: &Ask, tail: Packet) -> Result<Vec<Answer>, String> {
        let mut answers = Vec::new();
        self.map.request(caller, Body::with_value(ask.packet(), tail, None), self.now, &mut answers).map_err(|bad| bad.0)?;
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
                (Ask::Insert { key: packet(key), when }, expected)
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
                Some((_, value, version)) => (Ask::Get { key: packet(key) }, (Reply::Value { version }, vec![value])),
                None => (Ask::Get { key: packet(key) }, (Reply::Absent, vec![])),
            },
            6 => match self.entry(key) {
                Some((_, _, version)) => (Ask::Contains { key: packet(key) }, (Reply::Value { version }, vec![])),
                None => (Ask::Contains { key: packet(key) }, (Reply::Absent, vec![])),
            },
            7 => {
                let values = self.rng.chance(50);
                let all = self.model.iter().flat_map(|(key, value, _)| [Some(*key), values.then_some(*value)]).flatten().collect();
                (Ask::Snapshot { values }, (Reply::Entries, all))
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
            Reply::Entries => unpack(&body.tail).map_err(|bad| bad.0)?.iter().map(|value| number(value)).collect(),
            _ if body.tail.is_empty() => vec![],
            _ => vec![number(&body.tail)],
        };
        if (&reply, &values) != (&expected.0, &expected.1) {
            return Err(format!("{request:?} was answered {reply:?} with {values:?}, not {expected:?}"));
        }
        self.told(answers)
    }

    /// What watchers are told.
    fn told(&mut self, answers: Vec<Answer>) -> Result<(), String> {
        for Answer { to, body, .. } in answers {
            let watcher = self.watchers.iter_mut().find(|watcher| watcher.waits.is_some_and(|(caller, _)| caller == to));
            let watcher = watcher.ok_or(format!("{to:?} was told something"))?;
            let (_, until) = watcher.waits.take().expect("it waits");
            match Reply::read(&body.head).map_err(|bad| bad.0)? {
                Reply::Changes { position, lost: false } => {
                    if self.drops > 0 && self.rng.below(self.drops) == 0 {
                        continue; // it is as if it had never come
                    }
                    watcher.position = position;
                    for change in unpack(&body.tail).map_err(|bad| bad.0)?.chunks(3) {
                        watcher.seen.push((number(&change[0]), (change[1][..] == [1]).then(|| number(&change[2]))));
                        self.fetched += 1;
                    }
                }
                Reply::TimedOut if until.is_some_and(|until| until <= self.now) => {}
                other => return Err(format!("a watcher was told {other:?}")),
            }
        }
        for watcher in &self.watchers {
            let changes = self.changes[watcher.began..].iter().filter(|(key, _)| watcher.key.is_none_or(|wanted| wanted == *key));
            let mut missing = changes.clone().copied();
            if !watcher.seen.iter().all(|seen| missing.next() == Some(*seen)) {
                return Err(format!("a watcher saw {:?}", watcher.seen));
            }
            if watcher.waits.is_some() && missing.next().is_some() {
                return Err("a watcher waits, and there are changes for it".into());
            }
        }
        let deadline = self.watchers.iter().filter_map(|watcher| watcher.waits.and_then(|(_, until)| until)).min();
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
        match self.rng.below(100) {
            0..60 => self.operate(),
            60..66 => {
                let caller = self.clients.caller(&mut self.rng);
                let key = self.rng.chance(50).then(|| self.rng.below(8));
                let answers = self.ask(caller, &Ask::Watch { key: key.map(packet) }, Packet::default())?;
                let Ok(Reply::Watching { position }) = Reply::read(&answers[0].body.head) else { return Err(format!("{answers:?}")) };
                let began = self.changes.len();
                self.watchers.push(Watcher { caller, key, began, position, seen: Vec::new(), waits: None });
                Ok(())
            }
            66..86 => {
                let idle: Vec<usize> = (0..self.watchers.len()).filter(|at| self.watchers[*at].waits.is_none()).collect();
                let Some(at) = self.rng.pick(&idle) else { return Ok(()) };
                let watcher = &mut self.watchers[at];
                let caller = self.clients.caller_of(watcher.caller.client);
                let wait = if self.rng.chance(40) { Wait::Limit(self.rng.millis(20) + Duration::from_millis(1)) } else { Wait::Ever };
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

#[test]
fn it_is_as_a_map_is_and_watchers_see_every_change_once() {
    let mut fetched = 0;
    rounds(150, |seed| {
        let mut world = World::new(seed);
        for step in 0..300 {
            world.step().map_err(|wrong| format!("step {step}: {wrong}"))?;
        }
        fetched += world.fetched;
        Ok(())
    });
    assert!(fetched > 100, "{fetched} changes are no test");
}

#[test]
fn a_watcher_that_is_too_far_behind_is_told_so_and_memory_stays_bounded() {
    let mut world = World::new(0);
    let (watch, writer) = (world.clients.caller(&mut world.rng), world.clients.any(&mut world.rng));
    world.ask(watch, &Ask::Watch { key: None }, Packet::default()).expect("watch");
    for _ in 0..3 * LOG_MAX {
        let caller = world.clients.caller_of(writer);
        world.ask(caller, &Ask::Insert { key: packet(1), when: When::Always }, packet(7)).expect("insert");
    }
    assert_eq!(world.map.log.changes.len(), LOG_MAX);
    let large = Packet::from(&mut vec![0; LOG_BYTES / 3]);
    for _ in 0..10 {
        let caller = world.clients.caller_of(writer);
        world.ask(caller, &Ask::Insert { key: packet(1), when: When::Always }, large.clone()).expect("insert");
    }
    assert!(world.map.bytes() < 2 * LOG_BYTES);
    let caller = world.clients.caller_of(watch.client);
    let ask = Ask::Next { watch: watch.ticket, after: 0, wait: Wait::Ever };
    let answers = world.ask(caller, &ask, Packet::default()).expect("next");
    let Ok(Reply::Changes { position, lost: true }) = Reply::read(&answers[0].body.head) else { panic!("{answers:?}") };
    let caller = world.clients.caller_of(watch.client);
    let ask = Ask::Next { watch: watch.ticket, after: position, wait: Wait::Ever };
    let answers = world.ask(caller, &ask, Packet::default()).expect("next");
    assert!(matches!(Reply::read(&answers[0].body.head), Ok(Reply::Changes { lost: false, .. })), "it goes on from there");
}
