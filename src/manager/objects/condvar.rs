//! The wait queue of a condition variable. The mutex is another object.
//!
//! The rules, by number:
//!
//! 1. **Registration.** A waiter registers (*enrols*) while it still holds the mutex, and has the
//!    answer before it releases the mutex. So it misses no notification that comes after the
//!    release.
//! 2. **Order.** A notification goes to the waiter that registered first, among those that are not
//!    notified yet. If there is none, the notification is lost, as with std.
//! 3. **Passing on.** A notification of one waiter is a pending delivery (an *offer*, see
//!    [`object`](crate::manager::object)): if the waiter cancels or dies before it has acknowledged
//!    the notification, the next waiter gets it. A waiter whose time limit passes before it is
//!    notified takes no notification.

use super::code::{Message, Wait, messages};
use super::line::{KEPT_MAX, of_client};
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Gone, Object};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

messages!(
    /// What a condition variable is asked.
    Ask {
        /// The ticket stands for the place.
        1 Enrol,
        /// At this place.
        2 Await { enrolled: u64, wait: Wait },
        3 NotifyOne,
        4 NotifyAll,
    }
);

messages!(
    /// What a condition variable answers.
    Reply {
        1 Done,
        2 Notified,
        3 TimedOut,
        4 NotEnrolled,
    }
);

/// What one place costs, in bytes, roughly.
const PLACE_BYTES: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    None,
    /// Notified alone: to be passed on if nobody takes it.
    One,
    /// Notified with all the others.
    All,
}

#[derive(Debug)]
struct Place {
    order: u64,
    word: Word,
    /// Who waits here, and until when.
    waits: Option<(Caller, Option<Instant>)>,
}

/// The state of one condition variable.
#[derive(Debug, Default)]
pub(crate) struct Condvar {
    places: BTreeMap<Caller, Place>,
    /// Of those not notified yet.
    line: BTreeMap<u64, Caller>,
    /// From the waiting request to its place.
    waiting: BTreeMap<Caller, Caller>,
    /// Notifications on their way.
    offers: BTreeSet<Caller>,
    limits: BTreeSet<(Instant, Caller)>,
    next: u64,
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn leave(&mut self, place: Caller) -> Option<Place> {
        let left = self.places.remove(&place)?;
        self.line.remove(&left.order);
        if let Some((caller, until)) = left.waits {
            self.waiting.remove(&caller);
            if let Some(until) = until {
                self.limits.remove(&(until, caller));
            }
        }
        Some(left)
    }

    /// Leaves, and passes on what nobody has taken.
    fn give_up(&mut self, place: Caller, answers: &mut Vec<Answer>) {
        if let Some(left) = self.leave(place)
            && left.word == Word::One
        {
            self.notify(answers);
        }
    }

    fn notify(&mut self, answers: &mut Vec<Answer>) {
        let Some((_, first)) = self.line.pop_first() else { return };
        self.places.get_mut(&first).expect("who is in line has a place").word = Word::One;
        self.answer(first, answers);
    }

    /// Tells the one at this place, if it waits there already.
    fn answer(&mut self, place: Caller, answers: &mut Vec<Answer>) {
        let Some(Place { word, waits: Some((caller, _)), .. }) = self.places.get(&place) else {
            return;
        };
        let (word, caller) = (*word, *caller);
        if word == Word::None {
            return;
        }
        self.leave(place);
        if word == Word::One {
            self.offers.insert(caller);
            answers.push(Answer::offer(caller, Reply::Notified.body()));
        } else {
            answers.push(Answer::new(caller, Reply::Notified.body()));
        }
    }

    fn expire(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        while let Some((until, caller)) = self.limits.first().copied()
            && until <= now
        {
            let place = self.waiting[&caller];
            self.leave(place);
            answers.push(Answer::new(caller, Reply::TimedOut.body()));
        }
    }
}

impl Object for Condvar {
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad> {
        if self.places.contains_key(&caller)
            || self.waiting.contains_key(&caller)
            || self.offers.contains(&caller)
        {
            return Err(Bad(format!("ticket {} is used twice", caller.ticket)));
        }
        match Ask::read(&body.head)? {
            Ask::Enrol if self.places.len() >= KEPT_MAX => {
                return Err(Bad("too many enrolled at a condition variable".into()));
            }
            Ask::Enrol => {
                self.places
                    .insert(caller, Place { order: self.next, word: Word::None, waits: None });
                self.line.insert(self.next, caller);
                self.next += 1;
                answers.push(Answer::new(caller, Reply::Done.body()));
            }
            Ask::Await { enrolled, wait } => {
                let at = Caller { client: caller.client, ticket: enrolled };
                match self.places.get_mut(&at) {
                    Some(place @ Place { waits: None, .. }) => {
                        let until = wait.until(now);
                        place.waits = Some((caller, until));
                        self.waiting.insert(caller, at);
                        self.limits.extend(until.map(|until| (until, caller)));
                        self.answer(at, answers);
                    }
                    _ => answers.push(Answer::new(caller, Reply::NotEnrolled.body())),
                }
            }
            Ask::NotifyOne => {
                answers.push(Answer::new(caller, Reply::Done.body()));
                self.notify(answers);
            }
            Ask::NotifyAll => {
                answers.push(Answer::new(caller, Reply::Done.body()));
                for place in std::mem::take(&mut self.line).into_values() {
                    self.places.get_mut(&place).expect("who is in line has a place").word =
                        Word::All;
                    self.answer(place, answers);
                }
            }
        }
        self.expire(now, answers);
        Ok(())
    }

    fn taken(&mut self, caller: Caller, _: Instant, _: &mut Vec<Answer>) {
        self.offers.remove(&caller);
    }

    fn cancel(&mut self, caller: Caller, _: Instant, answers: &mut Vec<Answer>) {
        if self.offers.remove(&caller) {
            self.notify(answers);
        }
        let place = self.waiting.get(&caller).copied().unwrap_or(caller);
        self.give_up(place, answers);
    }

    fn gone(&mut self, client: Client, _: Gone, _: Instant, answers: &mut Vec<Answer>) {
        // First all of it leaves, so that nothing is passed on to the dead; then what it had is
        // passed on.
        let places: Vec<Place> = of_client(&self.places, client)
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|place| self.leave(place))
            .collect();
        let before = self.offers.len();
        self.offers.retain(|caller| caller.client != client);
        for _ in 0..before - self.offers.len()
            + places.iter().filter(|place| place.word == Word::One).count()
        {
            self.notify(answers);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.limits.first().map(|(until, _)| *until)
    }

    fn tick(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.expire(now, answers);
    }

    fn bytes(&self) -> usize {
        self.places.len() * PLACE_BYTES + self.offers.len() * 32
    }
}

#[cfg(test)]
#[path = "condvar_sim.rs"]
mod sim;
