//! An event: a flag that can be waited for.
//!
//! The rules: who waits while it is set, or when it is set, is told so at once; all who wait are. Setting twice is
//! setting once. Whoever was told stays told, also when it is cleared in the next moment.

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
        4 Closed,
        /// It has been set or cleared; `was` is how it was before.
        5 Done { was: bool },
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
            answers.extend(self.line.drain().into_iter().map(|(caller, _)| Answer::new(caller, Reply::Set.body())));
        }
        for (caller, wait) in self.line.expire(now) {
            let reply = if wait == Wait::No { Reply::Unset } else { Reply::TimedOut };
            answers.push(Answer::new(caller, reply.body()));
        }
    }
}

impl Object for Event {
    fn request(&mut self, caller: Caller, body: Body, now: Instant, answers: &mut Vec<Answer>) -> Result<(), Bad> {
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

    fn close(&mut self, _: Instant, answers: &mut Vec<Answer>) {
        for (caller, _) in self.line.drain() {
            answers.push(Answer::new(caller, Reply::Closed.body()));
        }
    }

    fn bytes(&self) -> usize {
        self.line.len() * WAITER_BYTES
    }
}
