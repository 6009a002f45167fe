//! A semaphore against a made-up world and a model that counts.

use super::*;
use crate::manager::objects::testing::{Clients, Rng, rounds};
use std::time::Duration;

/// A broken rule, which the checks must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// A dead holder's permits are lost.
    LostWithTheDead,
    /// A cancelled one's come back twice.
    Doubled,
    /// Who wants few passes one who wants many.
    Passed,
    /// There may be one more than the limit says.
    AboveLimit,
    /// The dead wait on.
    DeadWaiter,
    /// Time is not looked at.
    NoTime,
    /// What was forgotten comes back.
    Remembered,
}

const FLAWS: [Flaw; 7] = [
    Flaw::LostWithTheDead,
    Flaw::Doubled,
    Flaw::Passed,
    Flaw::AboveLimit,
    Flaw::DeadWaiter,
    Flaw::NoTime,
    Flaw::Remembered,
];

struct World {
    rng: Rng,
    flaw: Option<Flaw>,
    semaphore: Semaphore,
    clients: Clients,
    now: Instant,
    // The model.
    limit: Option<u64>,
    available: u64,
    holders: BTreeMap<Caller, u32>,
    line: Vec<(Caller, u32, Option<Instant>)>,
    closed: bool,
}

impl World {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = Rng::new(seed);
        let (permits, bounded) = (rng.below(6), rng.chance(50));
        let mut semaphore = Semaphore::new(permits, bounded);
        if flaw == Some(Flaw::AboveLimit) {
            semaphore.limit = semaphore.limit.map(|limit| limit + 1);
        }
        Self {
            clients: Clients::new(1 + rng.below(4) as usize),
            rng,
            flaw,
            semaphore,
            now: Instant::now(),
            limit: bounded.then_some(permits),
            available: permits,
            holders: BTreeMap::new(),
            line: Vec::new(),
            closed: false,
        }
    }

    fn ask(&mut self, caller: Caller, ask: Ask) -> Result<Vec<Answer>, String> {
        let mut answers = Vec::new();
        self.semaphore.request(caller, ask.body(), self.now, &mut answers).map_err(|bad| bad.0)?;
        Ok(answers)
    }

    fn check(&mut self, answers: Vec<Answer>) -> Result<(), String> {
        for Answer { to, body, offer, .. } in answers {
            let reply = Reply::read(&body.head).map_err(|bad| bad.0)?;
            let at = self
                .line
                .iter()
                .position(|(caller, ..)| *caller == to)
                .ok_or(format!("{to:?} was told {reply:?}, and had asked nothing"))?;
            let (_, permits, until) = self.line[at];
            match reply {
                Reply::Done if at == 0 && u64::from(permits) <= self.available && !offer => {
                    self.available -= u64::from(permits);
                    self.holders.insert(to, permits);
                }
                Reply::None | Reply::TimedOut if until.is_some_and(|until| until <= self.now) => {}
                Reply::Closed if self.closed => {}
                other => {
                    return Err(format!(
                        "{to:?}, {at} in line, was told {other:?}; {} are available",
                        self.available
                    ));
                }
            }
            self.line.remove(at);
        }
        if self.line.first().is_some_and(|(_, permits, _)| u64::from(*permits) <= self.available) {
            return Err(format!("{:?} waits, and {} are available", self.line[0], self.available));
        }
        let deadline = self.line.iter().filter_map(|(_, _, until)| *until).min();
        if self.semaphore.next_deadline() != deadline
            || deadline.is_some_and(|deadline| deadline <= self.now)
        {
            return Err("somebody's time is not known".into());
        }
        let held: u64 = self.holders.values().map(|permits| u64::from(*permits)).sum();
        if (self.semaphore.available, self.semaphore.held) != (self.available, held) {
            return Err(format!(
                "{} are available and {held} held, not {} and {}",
                self.available, self.semaphore.available, self.semaphore.held
            ));
        }
        Ok(())
    }

    /// A request that is answered at once, before what follows from it.
    fn ask_now(&mut self, caller: Caller, ask: Ask, expected: Reply) -> Result<(), String> {
        let mut answers = self.ask(caller, ask.clone())?;
        let at = answers.iter().position(|answer| answer.to == caller).ok_or("no answer")?;
        let reply = Reply::read(&answers.remove(at).body.head).map_err(|bad| bad.0)?;
        if reply != expected {
            return Err(format!("{ask:?} was answered {reply:?}, not {expected:?}"));
        }
        self.check(answers)
    }

    fn step(&mut self) -> Result<(), String> {
        let caller = self.clients.caller(&mut self.rng);
        let holders: Vec<Caller> = self.holders.keys().copied().collect();
        match self.rng.below(100) {
            0..40 => {
                let permits = if self.rng.chance(70) { 1 } else { self.rng.below(5) as u32 };
                let wait = match self.rng.below(4) {
                    0 => Wait::No,
                    1 => Wait::Limit(self.rng.millis(20) + Duration::from_millis(1)),
                    _ => Wait::Ever,
                };
                let ask = Ask::Acquire { permits, wait };
                if self.closed {
                    return self.ask_now(caller, ask, Reply::Closed);
                }
                if let Some(limit) = self.limit
                    && u64::from(permits) > limit
                {
                    return self.ask_now(caller, ask, Reply::AboveLimit { limit });
                }
                self.line.push((caller, permits, wait.until(self.now)));
                let answers = self.ask(caller, ask)?;
                self.check(answers)
            }
            40..65 => {
                let Some(holder) = self.rng.pick(&holders) else { return Ok(()) };
                let has = self.holders[&holder];
                let permits = self.rng.below(u64::from(has) + 2) as u32;
                let forget = self.rng.chance(15);
                let teller = self.clients.caller_of(holder.client);
                let ask = match forget {
                    true => Ask::Forget { acquired: holder.ticket, permits },
                    false => Ask::Release { acquired: holder.ticket, permits },
                };
                if permits > has {
                    return self.ask_now(teller, ask, Reply::NotHeld);
                }
                if permits == has {
                    self.holders.remove(&holder);
                } else {
                    self.holders.insert(holder, has - permits);
                }
                if !forget {
                    self.available += u64::from(permits);
                } else if self.flaw == Some(Flaw::Remembered) {
                    self.semaphore.available += u64::from(permits);
                }
                self.ask_now(teller, ask, Reply::Done)
            }
            65..73 => {
                let permits = self.rng.below(3);
                let held: u64 = self.holders.values().map(|permits| u64::from(*permits)).sum();
                let reply = match self.limit {
                    Some(limit) if self.available + held + permits > limit => {
                        Reply::AboveLimit { limit }
                    }
                    _ => {
                        self.available += permits;
                        Reply::Done
                    }
                };
                self.ask_now(caller, Ask::Add { permits }, reply)
            }
            73..83 => {
                let mut callers = holders;
                callers.extend(self.line.iter().map(|(caller, ..)| *caller));
                let Some(caller) = self.rng.pick(&callers) else { return Ok(()) };
                self.line.retain(|(waiting, ..)| *waiting != caller);
                let back = self.holders.remove(&caller).unwrap_or(0);
                self.available += u64::from(back);
                if self.flaw == Some(Flaw::Doubled) {
                    self.semaphore.available += u64::from(back);
                }
                if self.flaw == Some(Flaw::Passed)
                    && let Some((first, with)) = self.semaphore.line.pop()
                {
                    let until = self
                        .line
                        .iter()
                        .find(|(waiting, ..)| *waiting == first)
                        .and_then(|(_, _, until)| *until);
                    self.semaphore.line.push(first, until, with);
                }
                let mut answers = Vec::new();
                self.semaphore.cancel(caller, self.now, &mut answers);
                self.check(answers)
            }
            83..88 => {
                let client = caller.client;
                self.clients.replace(client);
                let waiting =
                    self.line.iter().find(|(waiting, ..)| waiting.client == client).copied();
                self.line.retain(|(waiting, ..)| waiting.client != client);
                if self.flaw == Some(Flaw::LostWithTheDead) {
                    for holder in of_client(&self.semaphore.holders, client).collect::<Vec<_>>() {
                        let permits = self.semaphore.holders[&holder];
                        self.semaphore.leave(holder, permits);
                    }
                }
                for holder in of_client(&self.holders, client).collect::<Vec<_>>() {
                    self.available += u64::from(self.holders.remove(&holder).unwrap_or(0));
                }
                let mut answers = Vec::new();
                self.semaphore.gone(client, Gone::Died, self.now, &mut answers);
                if self.flaw == Some(Flaw::DeadWaiter)
                    && let Some((caller, permits, until)) = waiting
                {
                    self.semaphore.line.push(caller, until, (permits, Wait::Ever));
                }
                self.check(answers)
            }
            88..98 => {
                let then = self.now + self.rng.millis(15);
                while let Some(deadline) = self.line.iter().filter_map(|(_, _, until)| *until).min()
                    && deadline <= then
                {
                    self.now = if self.rng.chance(50) { deadline } else { then };
                    let mut answers = Vec::new();
                    if self.flaw != Some(Flaw::NoTime) {
                        self.semaphore.tick(self.now, &mut answers);
                    }
                    self.check(answers)?;
                }
                self.now = then;
                Ok(())
            }
            98 => {
                let held = self.holders.values().map(|permits| u64::from(*permits)).sum();
                let status = Reply::Status {
                    available: self.available,
                    held,
                    limit: self.limit,
                    closed: self.closed,
                };
                self.ask_now(caller, Ask::Status, status)
            }
            _ if self.rng.chance(90) => Ok(()),
            _ => {
                self.closed = true;
                self.ask_now(caller, Ask::Close, Reply::Done)
            }
        }
    }

    fn run(&mut self, steps: u64) -> Result<(), String> {
        (0..steps).try_for_each(|step| self.step().map_err(|wrong| format!("step {step}: {wrong}")))
    }
}

#[test]
fn whatever_happens_every_permit_is_accounted_for() {
    rounds(300, |seed| World::new(seed, None).run(300));
}

#[test]
fn broken_rules_are_found() {
    for flaw in FLAWS {
        let found = (0..2_000).find_map(|seed| World::new(seed, Some(flaw)).run(200).err());
        assert!(found.is_some(), "{flaw:?} was not found");
    }
}

#[test]
fn a_ticket_is_not_used_twice() {
    let mut world = World::new(0, None);
    world.semaphore = Semaphore::new(1, false);
    let caller = world.clients.caller(&mut world.rng);
    let ask = Ask::Acquire { permits: 1, wait: Wait::Ever };
    assert_eq!(world.ask(caller, ask.clone()).map(|answers| answers.len()), Ok(1));
    assert!(world.ask(caller, ask).is_err());
}
