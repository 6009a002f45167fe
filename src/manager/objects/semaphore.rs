//! A semaphore: permits that clients acquire, and that return when their holder gives them back or
//! dies.
//!
//! The rules, by number:
//!
//! 1. **Ownership.** Permits belong to the request id (*ticket*) of their caller, from the answer
//!    on. They return when they are released, when the request is cancelled, and when the client
//!    dies. A permit that is forgotten does not return.
//! 2. **Order.** Callers that wait are served in order, without overtaking. A caller that waits for
//!    many permits gets them, however many callers want few.
//! 3. **Limit.** A bounded semaphore never has more permits than its limit, including those that
//!    are held.

use super::code::{Message, Wait, messages};
use super::line::{KEPT_MAX, Line, WAITER_BYTES, of_client};
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Gone, Object};
use std::collections::BTreeMap;
use std::time::Instant;

messages!(
    /// What a semaphore is asked.
    Ask {
        1 Acquire { permits: u32, wait: Wait },
        /// So many of what was acquired under this ticket stay away for ever.
        2 Forget { acquired: u64, permits: u32 },
        /// So many of them come back.
        3 Release { acquired: u64, permits: u32 },
        4 Add { permits: u64 },
        5 Close,
        6 Status,
    }
);

messages!(
    /// What a semaphore answers.
    Reply {
        1 Done,
        2 None,
        3 TimedOut,
        4 Closed,
        /// More than there may ever be.
        5 AboveLimit { limit: u64 },
        6 NotHeld,
        7 Status { available: u64, held: u64, limit: Option<u64>, closed: bool },
        /// Too many have permits.
        8 Busy,
    }
);

/// Permits there may be without a limit of its own: sums stay far from the end of the numbers.
pub(crate) const PERMITS_MAX: u64 = u64::MAX >> 3;

/// The state of one semaphore.
#[derive(Debug)]
pub(crate) struct Semaphore {
    available: u64,
    limit: Option<u64>,
    holders: BTreeMap<Caller, u32>,
    /// The sum of `holders`.
    held: u64,
    line: Line<(u32, Wait)>,
    closed: bool,
}

impl Semaphore {
    /// With so many permits; `bounded` makes that number the limit.
    pub(crate) fn new(permits: u64, bounded: bool) -> Self {
        let permits = permits.min(PERMITS_MAX);
        Self {
            available: permits,
            limit: bounded.then_some(permits),
            holders: BTreeMap::new(),
            held: 0,
            line: Line::new(),
            closed: false,
        }
    }

    fn limit(&self) -> u64 {
        self.limit.unwrap_or(PERMITS_MAX)
    }

    /// So many of a holder's permits leave it. `None` if it has not so many.
    fn leave(&mut self, holder: Caller, permits: u32) -> Option<()> {
        let has = self.holders.get_mut(&holder)?;
        *has = has.checked_sub(permits)?;
        if *has == 0 {
            self.holders.remove(&holder);
        }
        self.held -= u64::from(permits);
        Some(())
    }

    fn give_back(&mut self, holder: Caller) {
        if let Some(permits) = self.holders.remove(&holder) {
            self.held -= u64::from(permits);
            self.available += u64::from(permits);
        }
    }

    fn serve(&mut self, answers: &mut Vec<Answer>) {
        while let Some((_, (permits, _))) = self.line.front()
            && u64::from(*permits) <= self.available
            && let Some((caller, (permits, _))) = self.line.pop()
        {
            self.available -= u64::from(permits);
            self.held += u64::from(permits);
            self.holders.insert(caller, permits);
            answers.push(Answer::new(caller, Reply::Done.body()));
        }
    }

    fn expire(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.serve(answers);
        for (caller, (_, wait)) in self.line.expire(now) {
            let reply = if wait == Wait::No { Reply::None } else { Reply::TimedOut };
            answers.push(Answer::new(caller, reply.body()));
        }
        self.serve(answers); // who wanted many may have held up others
    }
}

impl Object for Semaphore {
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad> {
        let own = |ticket| Caller { client: caller.client, ticket };
        if self.holders.contains_key(&caller) || self.line.contains(caller) {
            return Err(Bad(format!("ticket {} is used twice", caller.ticket)));
        }
        let reply = match Ask::read(&body.head)? {
            Ask::Acquire { .. } if self.closed => Reply::Closed,
            Ask::Acquire { permits, .. } if u64::from(permits) > self.limit() => {
                Reply::AboveLimit { limit: self.limit() }
            }
            Ask::Acquire { .. } if self.holders.len() + self.line.len() >= KEPT_MAX => Reply::Busy,
            Ask::Acquire { permits, wait } => {
                self.line.push(caller, wait.until(now), (permits, wait));
                self.expire(now, answers);
                return Ok(());
            }
            Ask::Forget { acquired, permits } => match self.leave(own(acquired), permits) {
                Some(()) => Reply::Done,
                None => Reply::NotHeld,
            },
            Ask::Release { acquired, permits } => match self.leave(own(acquired), permits) {
                Some(()) => {
                    self.available += u64::from(permits);
                    Reply::Done
                }
                None => Reply::NotHeld,
            },
            Ask::Add { permits } => match (self.available + self.held)
                .checked_add(permits)
                .filter(|sum| *sum <= self.limit())
            {
                Some(_) => {
                    self.available += permits;
                    Reply::Done
                }
                None => Reply::AboveLimit { limit: self.limit() },
            },
            Ask::Close => {
                self.closed = true;
                for (waiting, _) in self.line.drain() {
                    answers.push(Answer::new(waiting, Reply::Closed.body()));
                }
                Reply::Done
            }
            Ask::Status => Reply::Status {
                available: self.available,
                held: self.held,
                limit: self.limit,
                closed: self.closed,
            },
        };
        answers.push(Answer::new(caller, reply.body()));
        self.serve(answers);
        Ok(())
    }

    fn cancel(&mut self, caller: Caller, _: Instant, answers: &mut Vec<Answer>) {
        self.line.remove(caller);
        self.give_back(caller);
        self.serve(answers);
    }

    fn gone(&mut self, client: Client, _: Gone, _: Instant, answers: &mut Vec<Answer>) {
        self.line.remove_client(client);
        for holder in of_client(&self.holders, client).collect::<Vec<_>>() {
            self.give_back(holder);
        }
        self.serve(answers);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.line.next_deadline()
    }

    fn tick(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.expire(now, answers);
    }

    fn bytes(&self) -> usize {
        self.line.len() * WAITER_BYTES + self.holders.len() * 48
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_of_nothing_are_kept_up_to_a_number() {
        let (mut semaphore, mut answers) = (Semaphore::new(1, false), Vec::new());
        let client = Client { seat: 3, generation: 0 };
        let ask = Ask::Acquire { permits: 0, wait: Wait::No };
        for ticket in 1..=KEPT_MAX as u64 + 1 {
            answers.clear();
            let caller = Caller { client, ticket };
            let asked = semaphore.request(caller, ask.body(), Instant::now(), &mut answers);
            asked.unwrap_or_else(|bad| panic!("{bad}"));
        }
        assert_eq!(Reply::read(&answers[0].body.head), Ok(Reply::Busy));
        semaphore.gone(client, Gone::Died, Instant::now(), &mut answers);
        assert_eq!(semaphore.bytes(), 0);
    }
}

#[cfg(test)]
#[path = "semaphore_sim.rs"]
mod sim;
