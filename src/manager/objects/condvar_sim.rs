//! A condition variable against a made-up world: no notification is lost while somebody is there
//! for it.

use super::*;
use crate::manager::objects::testing::{Clients, Rng, rounds};
use std::time::Duration;

/// A broken rule, which the checks must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// What a cancelled one had been told is lost.
    CancelLoses,
    /// So is what the dead had been told.
    DeathLoses,
    /// One notification wakes two.
    Two,
    /// Time is not looked at.
    NoTime,
    /// Who enrolled later is notified first.
    Order,
}

const FLAWS: [Flaw; 5] =
    [Flaw::CancelLoses, Flaw::DeathLoses, Flaw::Two, Flaw::NoTime, Flaw::Order];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    enrolled: Caller,
    waits: Option<(Caller, Option<Instant>)>,
    word: Word,
}

struct World {
    rng: Rng,
    flaw: Option<Flaw>,
    condvar: Condvar,
    clients: Clients,
    now: Instant,
    /// Who has enrolled and was not told yet, in order.
    seats: Vec<Seat>,
    offers: Vec<Caller>,
    told: u64,
}

impl World {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            clients: Clients::new(1 + rng.below(4) as usize),
            rng,
            flaw,
            condvar: Condvar::new(),
            now: Instant::now(),
            seats: Vec::new(),
            offers: Vec::new(),
            told: 0,
        }
    }

    fn notify(&mut self) {
        if let Some(seat) = self.seats.iter_mut().find(|seat| seat.word == Word::None) {
            seat.word = Word::One;
        }
    }

    /// What must follow: those who wait and have been notified are told, those whose time is up as
    /// well.
    fn check(&mut self, answers: Vec<Answer>) -> Result<(), String> {
        for answer in answers {
            let to = answer.to;
            let at = self
                .seats
                .iter()
                .position(|seat| seat.waits.is_some_and(|(caller, _)| caller == to));
            let at = at.ok_or(format!("{to:?} was told something, and did not wait"))?;
            let seat = self.seats.remove(at);
            match Reply::read(&answer.body.head).map_err(|bad| bad.0)? {
                Reply::Notified
                    if seat.word != Word::None && answer.offer == (seat.word == Word::One) =>
                {
                    self.offers.extend(answer.offer.then_some(to));
                    self.told += 1;
                }
                Reply::TimedOut
                    if seat.word == Word::None
                        && seat.waits.is_some_and(|(_, until)| {
                            until.is_some_and(|until| until <= self.now)
                        }) => {}
                other => return Err(format!("{seat:?} was told {other:?}")),
            }
        }
        if let Some(seat) =
            self.seats.iter().find(|seat| seat.word != Word::None && seat.waits.is_some())
        {
            return Err(format!("{seat:?} was notified, and waits"));
        }
        let deadline =
            self.seats.iter().filter_map(|seat| seat.waits.and_then(|(_, until)| until)).min();
        if self.condvar.next_deadline() != deadline
            || deadline.is_some_and(|deadline| deadline <= self.now)
        {
            return Err("somebody's time is not known".into());
        }
        if self.condvar.places.len() != self.seats.len()
            || self.condvar.offers.len() != self.offers.len()
        {
            return Err(format!(
                "{} have enrolled, not {}",
                self.seats.len(),
                self.condvar.places.len()
            ));
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let caller = self.clients.caller(&mut self.rng);
        let mut answers = Vec::new();
        match self.rng.below(100) {
            0..30 => {
                self.condvar
                    .request(caller, Ask::Enrol.body(), self.now, &mut answers)
                    .map_err(|bad| bad.0)?;
                answers.remove(0);
                self.seats.push(Seat { enrolled: caller, waits: None, word: Word::None });
                if self.flaw == Some(Flaw::Order) && self.condvar.line.len() > 1 {
                    let (_, first) = self.condvar.line.pop_first().expect("two");
                    let order = self.condvar.next;
                    self.condvar.next += 1;
                    self.condvar.line.insert(order, first);
                    self.condvar.places.get_mut(&first).expect("enrolled").order = order;
                }
            }
            30..55 => {
                let idle: Vec<usize> =
                    (0..self.seats.len()).filter(|at| self.seats[*at].waits.is_none()).collect();
                let Some(at) = self.rng.pick(&idle) else { return Ok(()) };
                let enrolled = self.seats[at].enrolled;
                let caller = self.clients.caller_of(enrolled.client);
                let wait =
                    if self.rng.chance(40) { Wait::Limit(self.rng.millis(20)) } else { Wait::Ever };
                self.seats[at].waits = Some((caller, wait.until(self.now)));
                let ask = Ask::Await { enrolled: enrolled.ticket, wait };
                self.condvar
                    .request(caller, ask.body(), self.now, &mut answers)
                    .map_err(|bad| bad.0)?;
            }
            55..68 => {
                self.notify();
                self.condvar
                    .request(caller, Ask::NotifyOne.body(), self.now, &mut answers)
                    .map_err(|bad| bad.0)?;
                answers.remove(0);
                if self.flaw == Some(Flaw::Two) {
                    self.condvar.notify(&mut answers);
                }
            }
            68..71 => {
                self.seats
                    .iter_mut()
                    .filter(|seat| seat.word == Word::None)
                    .for_each(|seat| seat.word = Word::All);
                self.condvar
                    .request(caller, Ask::NotifyAll.body(), self.now, &mut answers)
                    .map_err(|bad| bad.0)?;
                answers.remove(0);
            }
            71..78 => {
                let Some(caller) = self.rng.pick(&self.offers) else { return Ok(()) };
                self.offers.retain(|offer| *offer != caller);
                self.condvar.taken(caller, self.now, &mut answers);
            }
            78..88 => {
                // One who waits, one who has only enrolled, or one who was told and has not seen
                // it.
                let mut callers = self.offers.clone();
                callers.extend(
                    self.seats
                        .iter()
                        .map(|seat| seat.waits.map_or(seat.enrolled, |(caller, _)| caller)),
                );
                let Some(caller) = self.rng.pick(&callers) else { return Ok(()) };
                let before = self.offers.len();
                self.offers.retain(|offer| *offer != caller);
                let mut again = before - self.offers.len();
                self.seats.retain(|seat| {
                    let goes = seat.enrolled == caller
                        || seat.waits.is_some_and(|(waiting, _)| waiting == caller);
                    again += usize::from(goes && seat.word == Word::One);
                    !goes
                });
                if self.flaw == Some(Flaw::CancelLoses) {
                    self.condvar.offers.remove(&caller);
                }
                (0..again).for_each(|_| self.notify());
                self.condvar.cancel(caller, self.now, &mut answers);
            }
            88..92 => {
                let client = caller.client;
                self.clients.replace(client);
                let mut again = self.offers.iter().filter(|offer| offer.client == client).count();
                again += self
                    .seats
                    .iter()
                    .filter(|seat| seat.enrolled.client == client && seat.word == Word::One)
                    .count();
                self.offers.retain(|offer| offer.client != client);
                self.seats.retain(|seat| seat.enrolled.client != client);
                if self.flaw == Some(Flaw::DeathLoses) {
                    self.condvar.offers.retain(|offer| offer.client != client);
                }
                (0..again).for_each(|_| self.notify());
                self.condvar.gone(client, Gone::Died, self.now, &mut answers);
            }
            _ => {
                self.now += self.rng.millis(15) + Duration::from_micros(1);
                if self.flaw != Some(Flaw::NoTime) {
                    self.condvar.tick(self.now, &mut answers);
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
fn whatever_happens_no_notification_is_lost_while_somebody_is_there_for_it() {
    let mut told = 0;
    rounds(300, |seed| {
        let mut world = World::new(seed, None);
        let result = world.run(300);
        told += world.told;
        result
    });
    assert!(told > 1_000, "{told} notifications are no test");
}

#[test]
fn broken_rules_are_found() {
    for flaw in FLAWS {
        let found = (0..2_000).find_map(|seed| World::new(seed, Some(flaw)).run(200).err());
        assert!(found.is_some(), "{flaw:?} was not found");
    }
}
