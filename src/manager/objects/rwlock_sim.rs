//! A read-write lock against a made-up world and a model of who holds what.

use super::*;
use crate::manager::objects::testing::{Clients, Rng, rounds};
use std::time::Duration;

/// A broken rule, which the checks must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// A writer is let in beside a reader.
    Together,
    /// Who comes later is served first.
    Passed,
    /// A dead holder keeps its lock.
    DeadHolder,
    /// The death of a writer is not told.
    NotRecovered,
    /// What was not committed is seen.
    Torn,
    /// The value is not sent to one who has an older one.
    Stale,
    /// Time is not looked at.
    NoTime,
    /// Two writers get the same number.
    Fence,
}

const FLAWS: [Flaw; 8] = [
    Flaw::Together,
    Flaw::Passed,
    Flaw::DeadHolder,
    Flaw::NotRecovered,
    Flaw::Torn,
    Flaw::Stale,
    Flaw::NoTime,
    Flaw::Fence,
];

struct World {
    rng: Rng,
    flaw: Option<Flaw>,
    lock: RwLock,
    clients: Clients,
    now: Instant,
    // The model.
    value: u64,
    version: u64,
    fence: u64,
    recovered: bool,
    readers: Vec<Caller>,
    writer: Option<Caller>,
    line: Vec<(Caller, bool, u64, Option<Instant>)>,
}

fn value(number: u64) -> Packet {
    Packet::copy_from(&number.to_le_bytes())
}

impl World {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            clients: Clients::new(1 + rng.below(4) as usize),
            rng,
            flaw,
            lock: RwLock::new(value(0), None),
            now: Instant::now(),
            value: 0,
            version: 1,
            fence: 0,
            recovered: false,
            readers: Vec::new(),
            writer: None,
            line: Vec::new(),
        }
    }

    fn ask(&mut self, caller: Caller, ask: Ask, tail: Packet) -> Result<Vec<Answer>, String> {
        let mut answers = Vec::new();
        let body = Body::with_value(ask.packet(), tail, None);
        self.lock.request(caller, body, self.now, &mut answers).map_err(|bad| bad.0)?;
        Ok(answers)
    }

    fn check_value(&self, have: u64, body: &Body) -> Result<(), String> {
        let locked = Reply::Locked {
            version: self.version,
            fence: self.fence,
            recovered: self.recovered,
            value: have != self.version,
        };
        let reply = Reply::read(&body.head);
        if reply != Ok(locked.clone()) || have != self.version && body.tail != value(self.value) {
            return Err(format!(
                "{reply:?} with {:?}, and should be {locked:?} with {}",
                &body.tail[..],
                self.value
            ));
        }
        Ok(())
    }

    fn check(&mut self, answers: Vec<Answer>) -> Result<(), String> {
        for Answer { to, body, .. } in answers {
            let at = self
                .line
                .iter()
                .position(|(caller, ..)| *caller == to)
                .ok_or(format!("{to:?} was answered, and had asked nothing"))?;
            let (_, write, have, until) = self.line[at];
            match Reply::read(&body.head).map_err(|bad| bad.0)? {
                Reply::Locked { .. } => {
                    if at != 0 || self.writer.is_some() || write && !self.readers.is_empty() {
                        return Err(format!(
                            "{to:?} was let in, {at} in line, beside {:?} and {:?}",
                            self.writer, self.readers
                        ));
                    }
                    if write {
                        self.fence += 1;
                        self.writer = Some(to);
                    } else {
                        self.readers.push(to);
                    }
                    self.check_value(have, &body)?;
                }
                Reply::None | Reply::TimedOut if until.is_some_and(|until| until <= self.now) => {}
                other => return Err(format!("{to:?} was told {other:?}")),
            }
            self.line.remove(at);
        }
        if let Some((caller, write, ..)) = self.line.first()
            && self.writer.is_none()
            && (!write || self.readers.is_empty())
        {
            return Err(format!("{caller:?} waits for nobody"));
        }
        let deadline = self.line.iter().filter_map(|(_, _, _, until)| *until).min();
        if self.lock.next_deadline() != deadline
            || deadline.is_some_and(|deadline| deadline <= self.now)
        {
            return Err("somebody's time is not known".into());
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let caller = self.clients.caller(&mut self.rng);
        let mut holders = self.readers.clone();
        holders.extend(self.writer);
        match self.rng.below(100) {
            0..40 => {
                let write = self.rng.chance(40);
                let have =
                    if self.rng.chance(50) { self.version } else { self.rng.below(self.version) };
                let wait = match self.rng.below(4) {
                    0 => Wait::No,
                    1 => Wait::Limit(self.rng.millis(20) + Duration::from_millis(1)),
                    _ => Wait::Ever,
                };
                self.line.push((caller, write, have, wait.until(self.now)));
                let ask = if write { Ask::Write { wait, have } } else { Ask::Read { wait, have } };
                if self.flaw == Some(Flaw::Together) && self.rng.chance(10) {
                    self.lock.readers.clear();
                }
                if self.flaw == Some(Flaw::Stale) && self.rng.chance(10) {
                    self.lock.version = have.max(1);
                }
                let answers = self.ask(caller, ask, Packet::default())?;
                self.check(answers)
            }
            40..55 => {
                let Some(writer) = self.writer else { return Ok(()) };
                let wrong = self.rng.chance(10);
                let ticket = if wrong { writer.ticket + 1_000_000 } else { writer.ticket };
                let downgrade = self.rng.chance(20);
                let commit = self.rng.chance(70);
                let mark = [None, Some(true), Some(false)][self.rng.below(3) as usize];
                if !wrong {
                    self.writer = None;
                    if commit {
                        self.value += 1;
                        self.version += 1;
                    }
                    self.recovered = mark.unwrap_or(self.recovered);
                    self.readers.extend(downgrade.then_some(writer));
                }
                let teller = self.clients.caller_of(writer.client);
                let ask = match commit {
                    true => Ask::Commit { write: ticket, downgrade, mark },
                    false => Ask::Release { write: ticket, downgrade, mark },
                };
                let mut answers = self.ask(teller, ask, value(self.value))?;
                let expected =
                    if wrong { Reply::NotHeld } else { Reply::Released { version: self.version } };
                let reply = Reply::read(&answers.remove(0).body.head);
                if reply != Ok(expected) {
                    return Err(format!("a commit was answered {reply:?}"));
                }
                self.check(answers)
            }
            55..75 => {
                holders.extend(self.line.iter().map(|(caller, ..)| *caller));
                let Some(caller) = self.rng.pick(&holders) else { return Ok(()) };
                self.line.retain(|(waiting, ..)| *waiting != caller);
                self.readers.retain(|reader| *reader != caller);
                if self.flaw == Some(Flaw::Torn) && self.writer == Some(caller) {
                    self.lock.value = value(999_999);
                }
                self.writer = self.writer.filter(|writer| *writer != caller);
                if self.flaw == Some(Flaw::Fence) && self.rng.chance(20) {
                    self.lock.fence = self.lock.fence.saturating_sub(1);
                }
                if self.flaw == Some(Flaw::Passed)
                    && let Some((first, want)) = self.lock.line.pop()
                {
                    let until = self
                        .line
                        .iter()
                        .find(|(waiting, ..)| *waiting == first)
                        .and_then(|(_, _, _, until)| *until);
                    self.lock.line.push(first, until, want);
                }
                let mut answers = Vec::new();
                self.lock.cancel(caller, self.now, &mut answers);
                self.check(answers)
            }
            75..83 => {
                let client = caller.client;
                let how = if self.rng.chance(70) { Gone::Died } else { Gone::Left };
                self.clients.replace(client);
                self.line.retain(|(waiting, ..)| waiting.client != client);
                self.readers.retain(|reader| reader.client != client);
                if self.writer.is_some_and(|writer| writer.client == client) {
                    self.writer = None;
                    self.recovered |= how == Gone::Died;
                }
                let mut answers = Vec::new();
                let kept = (self.lock.writer, self.lock.recovered);
                self.lock.gone(client, how, self.now, &mut answers);
                match self.flaw {
                    Some(Flaw::DeadHolder)
                        if kept.0.is_some_and(|writer| writer.client == client) =>
                    {
                        self.lock.writer = kept.0
                    }
                    Some(Flaw::NotRecovered) => self.lock.recovered = kept.1,
                    _ => {}
                }
                self.check(answers)
            }
            83..95 => {
                let then = self.now + self.rng.millis(15);
                while let Some(deadline) =
                    self.line.iter().filter_map(|(_, _, _, until)| *until).min()
                    && deadline <= then
                {
                    self.now = if self.rng.chance(50) { deadline } else { then };
                    let mut answers = Vec::new();
                    if self.flaw != Some(Flaw::NoTime) {
                        self.lock.tick(self.now, &mut answers);
                    }
                    self.check(answers)?;
                }
                self.now = then;
                Ok(())
            }
            _ => {
                let have = self.rng.below(self.version + 1);
                let mut answers = self.ask(caller, Ask::Get { have }, Packet::default())?;
                self.check_value(have, &answers.remove(0).body)?;
                self.check(answers)
            }
        }
    }

    fn run(&mut self, steps: u64) -> Result<(), String> {
        (0..steps).try_for_each(|step| self.step().map_err(|wrong| format!("step {step}: {wrong}")))
    }
}

#[test]
fn whatever_happens_one_writes_or_many_read_what_was_committed() {
    rounds(300, |seed| World::new(seed, None).run(300));
}

#[test]
fn broken_rules_are_found() {
    for flaw in FLAWS {
        let found = (0..2_000).find_map(|seed| World::new(seed, Some(flaw)).run(200).err());
        assert!(found.is_some(), "{flaw:?} was not found");
    }
}
