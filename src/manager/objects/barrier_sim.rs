//! A barrier and an event against made-up worlds.

use super::*;
use crate::manager::objects::testing::{Clients, Rng, rounds};
use std::collections::BTreeMap;

/// A broken rule, which the checks must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// One too few is enough.
    Few,
    /// Two are told that they lead.
    TwoLeaders,
    /// A dead party counts.
    DeadCounts,
    /// A party that died between two rounds is not noticed.
    DeadBetween,
    /// Nobody is told that it is broken.
    Untold,
    /// Time is not looked at.
    NoTime,
    /// A party that gave up counts.
    GoneCounts,
}

const FLAWS: [Flaw; 7] = [
    Flaw::Few,
    Flaw::TwoLeaders,
    Flaw::DeadCounts,
    Flaw::DeadBetween,
    Flaw::Untold,
    Flaw::NoTime,
    Flaw::GoneCounts,
];

struct World {
    rng: Rng,
    flaw: Option<Flaw>,
    barrier: Barrier,
    clients: Clients,
    now: Instant,
    // The model.
    parties: usize,
    waiting: BTreeMap<Caller, Option<Instant>>,
    last: Vec<Client>,
    broken: bool,
    round: u64,
    passed: u64,
}

impl World {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = Rng::new(seed);
        let parties = 1 + rng.below(4) as usize;
        let mut barrier = Barrier::new(parties as u32);
        if flaw == Some(Flaw::Few) {
            barrier.parties = barrier.parties.saturating_sub(1).max(1);
        }
        Self {
            clients: Clients::new(2 + rng.below(4) as usize),
            rng,
            flaw,
            barrier,
            now: Instant::now(),
            parties,
            waiting: BTreeMap::new(),
            last: Vec::new(),
            broken: false,
            round: 0,
            passed: 0,
        }
    }

    fn breaks(&mut self) {
        self.broken = true;
        self.last.clear();
    }

    fn check(&mut self, answers: Vec<Answer>) -> Result<(), String> {
        let mut places = Vec::new();
        for Answer { to, body, .. } in answers {
            let until = self
                .waiting
                .get(&to)
                .copied()
                .ok_or(format!("{to:?} was answered, and did not wait"))?;
            match Reply::read(&body.head).map_err(|bad| bad.0)? {
                Reply::Passed { place, round } if round == self.round && !self.broken => {
                    let place =
                        if self.flaw == Some(Flaw::TwoLeaders) && place == 1 { 0 } else { place };
                    places.push((place as usize, to.client));
                }
                // Told before or after what broke it.
                Reply::TimedOut if until.is_some_and(|until| until <= self.now) => self.breaks(),
                Reply::Broken
                    if self.broken
                        || self
                            .waiting
                            .values()
                            .any(|until| until.is_some_and(|until| until <= self.now)) =>
                {
                    self.breaks();
                }
                other => return Err(format!("{to:?} was told {other:?}")),
            }
            self.waiting.remove(&to);
        }
        if !places.is_empty() {
            places.sort();
            if !places.iter().map(|(place, _)| *place).eq(0..self.parties) {
                return Err(format!("{} parties, and these passed: {places:?}", self.parties));
            }
            self.last = places.into_iter().map(|(_, client)| client).collect();
            self.round += 1;
            self.passed += 1;
        }
        if !self.waiting.is_empty() && (self.broken || self.waiting.len() >= self.parties) {
            return Err(format!(
                "{} wait for {} parties, broken: {}",
                self.waiting.len(),
                self.parties,
                self.broken
            ));
        }
        let deadline = self.waiting.values().copied().flatten().min();
        if self.barrier.next_deadline() != deadline
            || deadline.is_some_and(|deadline| deadline <= self.now)
        {
            return Err("somebody's time is not known".into());
        }
        Ok(())
    }

    fn ask_now(&mut self, caller: Caller, ask: Ask, expected: Reply) -> Result<(), String> {
        let mut answers = Vec::new();
        self.barrier.request(caller, ask.body(), self.now, &mut answers).map_err(|bad| bad.0)?;
        let at = answers.iter().position(|answer| answer.to == caller).ok_or("no answer")?;
        let reply = Reply::read(&answers.remove(at).body.head).map_err(|bad| bad.0)?;
        if reply != expected {
            return Err(format!("{ask:?} was answered {reply:?}, not {expected:?}"));
        }
        // A reset tells those who wait that their round is broken, and leaves it whole.
        let whole = !self.broken;
        self.broken = true;
        self.check(answers)?;
        self.broken = !whole || ask == Ask::Abort;
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let caller = self.clients.caller(&mut self.rng);
        let mut answers = Vec::new();
        match self.rng.below(100) {
            0..60 => {
                let wait =
                    if self.rng.chance(20) { Wait::Limit(self.rng.millis(20)) } else { Wait::Ever };
                self.waiting.insert(caller, wait.until(self.now));
                self.barrier
                    .request(caller, Ask::Wait { wait }.body(), self.now, &mut answers)
                    .map_err(|bad| bad.0)?;
            }
            60..70 => {
                let waiting: Vec<Caller> = self.waiting.keys().copied().collect();
                let Some(caller) = self.rng.pick(&waiting) else { return Ok(()) };
                self.waiting.remove(&caller);
                if self.flaw != Some(Flaw::GoneCounts) {
                    self.barrier.cancel(caller, self.now, &mut answers);
                }
            }
            70..76 => {
                let client = caller.client;
                let how = if self.rng.chance(70) { Gone::Died } else { Gone::Left };
                self.clients.replace(client);
                let waited = self.waiting.keys().any(|waiting| waiting.client == client);
                self.waiting.retain(|waiting, _| waiting.client != client);
                let was_there = self.last.contains(&client);
                self.last.retain(|there| *there != client);
                if how == Gone::Died && (waited || was_there) {
                    self.breaks();
                }
                match self.flaw {
                    Some(Flaw::DeadCounts) if waited => return Ok(()),
                    Some(Flaw::DeadBetween) => self.barrier.last.clear(),
                    _ => {}
                }
                self.barrier.gone(client, how, self.now, &mut answers);
                if self.flaw == Some(Flaw::Untold) {
                    answers.clear();
                }
            }
            76..84 => {
                let then = self.now + self.rng.millis(15);
                while let Some(deadline) = self.waiting.values().copied().flatten().min()
                    && deadline <= then
                {
                    self.now = if self.rng.chance(50) { deadline } else { then };
                    if self.flaw != Some(Flaw::NoTime) {
                        self.barrier.tick(self.now, &mut answers);
                    }
                    self.check(std::mem::take(&mut answers))?;
                }
                self.now = then;
            }
            84..90 => {
                self.last.clear();
                self.ask_now(caller, Ask::Reset, Reply::Done)?;
                self.broken = false;
                return Ok(());
            }
            90..92 => {
                self.last.clear();
                return self.ask_now(caller, Ask::Abort, Reply::Done);
            }
            _ => {
                let status = Reply::Status {
                    parties: if self.flaw == Some(Flaw::Few) {
                        self.barrier.parties
                    } else {
                        self.parties as u32
                    },
                    waiting: self.waiting.len() as u32,
                    broken: self.broken,
                };
                self.barrier
                    .request(caller, Ask::Status.body(), self.now, &mut answers)
                    .map_err(|bad| bad.0)?;
                let reply = Reply::read(&answers.remove(0).body.head).map_err(|bad| bad.0)?;
                if reply != status {
                    return Err(format!("the status is {status:?}, not {reply:?}"));
                }
            }
        }
        self.check(answers)
    }

    fn run(&mut self, steps: u64) -> Result<(), String> {
        (0..steps).try_for_each(|step| self.step().map_err(|wrong| format!("step {step}: {wrong}")))
    }
}

#[test]
fn whatever_happens_a_round_is_passed_by_all_parties_or_broken_for_all() {
    let mut passed = 0;
    rounds(300, |seed| {
        let mut world = World::new(seed, None);
        let result = world.run(300);
        passed += world.passed;
        result
    });
    assert!(passed > 100, "{passed} rounds are no test");
}

#[test]
fn broken_rules_are_found() {
    for flaw in FLAWS {
        let found = (0..2_000).find_map(|seed| World::new(seed, Some(flaw)).run(200).err());
        assert!(found.is_some(), "{flaw:?} was not found");
    }
}
