//! An event: a flag that can be waited for.
//!
//! The rules, by number:
//!
//! 1. **Waiting.** A waiter is answered at once if the flag is set, else when it is set. Setting
//!    the flag answers all waiters.
//! 2. **Setting.** Setting a flag that is set changes nothing.
//! 3. **Clearing.** Clearing the flag withdraws no answer that was given before.

use super::code::{Message, Wait, messages};
use super::line::{Line, WAITER_BYTES};
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Gone, Object};
use std::time::Instant;

messages!(
    /// What an event is asked.
    Ask {
        1 Set,
        2 Clear,
        3 Wait { wait: Wait },
    }
);

messages!(
    /// What an event answers.
    Reply {
        1 Set,
        2 Unset,
        3 TimedOut,
        /// It has been set or cleared; `was` is how it was before.
        4 Done { was: bool },
    }
);

/// The state of one event.
#[derive(Debug)]
pub(crate) struct Event {
    set: bool,
    line: Line<Wait>,
}

impl Event {
    pub(crate) fn new() -> Self {
        Self { set: false, line: Line::new() }
    }

    fn expire(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        if self.set {
            answers.extend(
                self.line
                    .drain()
                    .into_iter()
                    .map(|(caller, _)| Answer::new(caller, Reply::Set.body())),
            );
        }
        for (caller, wait) in self.line.expire(now) {
            let reply = if wait == Wait::No { Reply::Unset } else { Reply::TimedOut };
            answers.push(Answer::new(caller, reply.body()));
        }
    }
}

impl Object for Event {
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
        let was = self.set;
        match Ask::read(&body.head)? {
            Ask::Set => {
                self.set = true;
                answers.push(Answer::new(caller, Reply::Done { was }.body()));
            }
            Ask::Clear => {
                self.set = false;
                answers.push(Answer::new(caller, Reply::Done { was }.body()));
            }
            Ask::Wait { wait } => self.line.push(caller, wait.until(now), wait),
        }
        self.expire(now, answers);
        Ok(())
    }

    fn cancel(&mut self, caller: Caller, _: Instant, _: &mut Vec<Answer>) {
        self.line.remove(caller);
    }

    fn gone(&mut self, client: Client, _: Gone, _: Instant, _: &mut Vec<Answer>) {
        self.line.remove_client(client);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.line.next_deadline()
    }

    fn tick(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.expire(now, answers);
    }

    fn bytes(&self) -> usize {
        self.line.len() * WAITER_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::objects::testing::{Clients, Rng, rounds};
    use std::time::Duration;

    /// A model: who waits, and whether it is set.
    #[test]
    fn whatever_happens_nobody_waits_for_what_is_set() {
        rounds(200, |seed| {
            let mut rng = Rng::new(seed);
            let mut clients = Clients::new(3);
            let (mut event, mut now) = (Event::new(), Instant::now());
            let (mut set, mut waiting) = (false, Vec::<(Caller, Option<Instant>)>::new());
            for step in 0..200 {
                let caller = clients.caller(&mut rng);
                let mut answers = Vec::new();
                let mut expected = Vec::new();
                match rng.below(10) {
                    0 | 1 => {
                        let ask = if rng.chance(50) { Ask::Set } else { Ask::Clear };
                        expected.push((caller, Reply::Done { was: set }));
                        set = ask == Ask::Set;
                        event
                            .request(caller, ask.body(), now, &mut answers)
                            .map_err(|bad| bad.0)?;
                    }
                    2..6 => {
                        let wait = [
                            Wait::No,
                            Wait::Ever,
                            Wait::Limit(Duration::from_millis(1 + rng.below(9))),
                        ][rng.below(3) as usize];
                        if wait == Wait::No && !set {
                            expected.push((caller, Reply::Unset));
                        } else {
                            waiting.push((caller, wait.until(now)));
                        }
                        event
                            .request(caller, Ask::Wait { wait }.body(), now, &mut answers)
                            .map_err(|bad| bad.0)?;
                    }
                    6 => {
                        if let Some((caller, _)) = rng.pick(&waiting) {
                            waiting.retain(|(waiting, _)| *waiting != caller);
                            event.cancel(caller, now, &mut answers);
                        }
                    }
                    7 => {
                        waiting.retain(|(waiting, _)| waiting.client != caller.client);
                        clients.replace(caller.client);
                        event.gone(caller.client, Gone::Died, now, &mut answers);
                    }
                    _ => {
                        now += Duration::from_millis(rng.below(5));
                        let mut late: Vec<_> = waiting
                            .iter()
                            .filter(|(_, until)| until.is_some_and(|until| until <= now))
                            .collect();
                        late.sort_by_key(|(_, until)| *until);
                        expected
                            .extend(late.into_iter().map(|(caller, _)| (*caller, Reply::TimedOut)));
                        waiting.retain(|(_, until)| until.is_none_or(|until| until > now));
                        event.tick(now, &mut answers);
                    }
                }
                if set {
                    expected.extend(waiting.drain(..).map(|(caller, _)| (caller, Reply::Set)));
                }
                let answers: Vec<_> = answers
                    .iter()
                    .map(|answer| (answer.to, Reply::read(&answer.body.head).expect("a reply")))
                    .collect();
                if answers != expected {
                    return Err(format!("step {step}: {answers:?}, not {expected:?}"));
                }
                let deadline = waiting.iter().filter_map(|(_, until)| *until).min();
                if event.next_deadline() != deadline
                    || event.bytes() != waiting.len() * WAITER_BYTES
                {
                    return Err(format!("step {step}: the deadline or the memory is wrong"));
                }
            }
            Ok(())
        });
    }
}
