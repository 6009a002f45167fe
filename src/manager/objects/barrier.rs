//! A barrier: a fixed number of parties wait for each other, round by round.
//!
//! The rules, by number:
//!
//! 1. **Passing a round.** When as many parties wait as the barrier has, they all pass the round.
//!    Each is told its place (from 0, in order of arrival), and the party at place 0 is the leader.
//!    A party that arrives later waits for the next round.
//! 2. **Breaking.** The barrier breaks when a party dies that waits or was in the last round, when
//!    the time limit of a waiting party passes, and when it is aborted. All waiting parties are
//!    told, and so is every party that arrives, until the barrier is reset.
//! 3. **Reset.** A reset begins a new round. Parties that wait are told that the barrier is broken,
//!    since their round will not be passed.
//! 4. **Leaving.** A party that cancels its wait, or leaves for good, does not count. It may come
//!    again.

use super::code::{Message, Wait, messages};
use super::line::{Line, WAITER_BYTES};
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Gone, Object};
use std::collections::BTreeSet;
use std::time::Instant;

messages!(
    /// What a barrier is asked.
    Ask {
        1 Wait { wait: Wait },
        2 Reset,
        3 Abort,
        4 Status,
    }
);

messages!(
    /// What a barrier answers.
    Reply {
        1 Done,
        2 Passed { place: u32, round: u64 },
        3 Broken,
        /// The one who ran out of time, by which it is broken.
        4 TimedOut,
        5 Status { parties: u32, waiting: u32, broken: bool },
    }
);

/// The state of one barrier.
#[derive(Debug)]
pub(crate) struct Barrier {
    parties: u32,
    line: Line<()>,
    broken: bool,
    round: u64,
    /// Whose parties were in the last round.
    last: BTreeSet<Client>,
}

impl Barrier {
    /// For so many parties, at least 1.
    pub(crate) fn new(parties: u32) -> Self {
        Self {
            parties: parties.max(1),
            line: Line::new(),
            broken: false,
            round: 0,
            last: BTreeSet::new(),
        }
    }

    fn tell_waiting(&mut self, answers: &mut Vec<Answer>) {
        for (caller, ()) in self.line.drain() {
            answers.push(Answer::new(caller, Reply::Broken.body()));
        }
    }

    fn break_it(&mut self, answers: &mut Vec<Answer>) {
        self.broken = true;
        self.last.clear();
        self.tell_waiting(answers);
    }

    fn expire(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        let late = self.line.expire(now);
        if !late.is_empty() {
            answers.extend(
                late.into_iter().map(|(caller, ())| Answer::new(caller, Reply::TimedOut.body())),
            );
            self.break_it(answers);
        }
    }
}

impl Object for Barrier {
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad> {
        if self.line.contains(caller) {
            return Err(Bad(format!("ticket {} is used twice", caller.ticket)));
        }
        let reply = match Ask::read(&body.head)? {
            Ask::Wait { .. } if self.broken => Reply::Broken,
            Ask::Wait { wait } => {
                self.line.push(caller, wait.until(now), ());
                if self.line.len() == self.parties as usize {
                    let all = self.line.drain();
                    self.last = all.iter().map(|(caller, ())| caller.client).collect();
                    let round = self.round;
                    let passed = |(place, (caller, ())): (usize, (Caller, ()))| {
                        Answer::new(caller, Reply::Passed { place: place as u32, round }.body())
                    };
                    answers.extend(all.into_iter().enumerate().map(passed));
                    self.round += 1;
                }
                self.expire(now, answers);
                return Ok(());
            }
            Ask::Reset => {
                self.tell_waiting(answers);
                self.last.clear();
                self.broken = false;
                Reply::Done
            }
            Ask::Abort => {
                self.break_it(answers);
                Reply::Done
            }
            Ask::Status => Reply::Status {
                parties: self.parties,
                waiting: self.line.len() as u32,
                broken: self.broken,
            },
        };
        answers.push(Answer::new(caller, reply.body()));
        Ok(())
    }

    fn cancel(&mut self, caller: Caller, _: Instant, _: &mut Vec<Answer>) {
        self.line.remove(caller);
    }

    fn gone(&mut self, client: Client, how: Gone, _: Instant, answers: &mut Vec<Answer>) {
        let waited = !self.line.remove_client(client).is_empty();
        let was_there = self.last.remove(&client);
        if how == Gone::Died && (waited || was_there) {
            self.break_it(answers);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.line.next_deadline()
    }

    fn tick(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.expire(now, answers);
    }

    fn bytes(&self) -> usize {
        self.line.len() * WAITER_BYTES + self.last.len() * 24
    }
}

#[cfg(test)]
#[path = "barrier_sim.rs"]
mod sim;
