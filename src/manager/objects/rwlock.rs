//! A read-write lock with a value: many clients may read it, or one may change it.
//!
//! The rules, by number:
//!
//! 1. **Exclusion.** There are many readers or one writer. A lock belongs to the request id
//!    (*ticket*) of its caller, from the answer on.
//! 2. **Order.** Callers that wait are served in order. Readers that come after a waiting writer
//!    wait behind it, so that neither starves.
//! 3. **Commits.** Only a writer's commit changes the value. It ends the writer's lock, or makes it
//!    a reader's. When the lock's request is cancelled instead, or its client ends, the value is
//!    what it was.
//! 4. **Recovery mark.** When a writer dies, or says that it did not end well, the value is marked
//!    as recovered. Every client that is given the value is told, until a writer removes the mark.
//! 5. **Cached values.** A caller that says which version it has is not sent the same version
//!    again.

use super::code::{Message, Wait, messages};
use super::line::{KEPT_MAX, Line, WAITER_BYTES, of_client};
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Gone, Held, Object};
use crate::wire::packet::Packet;
use std::collections::BTreeMap;
use std::time::Instant;

messages!(
    /// What a read-write lock is asked.
    Ask {
        /// `have`: the version that the caller holds already, or 0.
        1 Read { wait: Wait, have: u64 },
        2 Write { wait: Wait, have: u64 },
        /// The tail is the new value. With `downgrade` the lock stays, as a reader's. `mark` sets the mark or takes it away.
        3 Commit { write: u64, downgrade: bool, mark: Option<bool> },
        /// The value, without a lock.
        4 Get { have: u64 },
        /// The value stays as it was.
        5 Release { write: u64, downgrade: bool, mark: Option<bool> },
    }
);

messages!(
    /// What a read-write lock answers. A tail, if there is one, is the value of that version.
    Reply {
        /// Or that `Get` is answered. `fence` counts the writers so far.
        1 Locked { version: u64, fence: u64, recovered: bool, value: bool },
        2 None,
        3 TimedOut,
        4 Released { version: u64 },
        5 NotHeld,
        /// Too many read.
        6 Busy,
    }
);

#[derive(Clone, Copy, Debug)]
struct Want {
    write: bool,
    have: u64,
    wait: Wait,
}

/// The state of one lock and its value.
pub(crate) struct RwLock {
    value: Packet,
    held: Held,
    /// From 1.
    version: u64,
    fence: u64,
    recovered: bool,
    readers: BTreeMap<Caller, ()>,
    writer: Option<Caller>,
    line: Line<Want>,
}

impl RwLock {
    pub(crate) fn new(value: Packet, held: Held) -> Self {
        Self {
            value,
            held,
            version: 1,
            fence: 0,
            recovered: false,
            readers: BTreeMap::new(),
            writer: None,
            line: Line::new(),
        }
    }

    fn locked(&self, have: u64) -> Body {
        let value = have != self.version;
        let head = Reply::Locked {
            version: self.version,
            fence: self.fence,
            recovered: self.recovered,
            value,
        }
        .packet();
        if value {
            Body::with_value(head, self.value.clone(), self.held.clone())
        } else {
            Body::new(head)
        }
    }

    fn serve(&mut self, answers: &mut Vec<Answer>) {
        while let Some((caller, want)) = self.line.front()
            && self.writer.is_none()
            && (!want.write || self.readers.is_empty())
        {
            let Want { write, have, .. } = *want;
            self.line.pop();
            if write {
                self.fence += 1;
                self.writer = Some(caller);
            } else {
                self.readers.insert(caller, ());
            }
            answers.push(Answer::new(caller, self.locked(have)));
        }
    }

    fn expire(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.serve(answers);
        for (caller, want) in self.line.expire(now) {
            let reply = if want.wait == Wait::No { Reply::None } else { Reply::TimedOut };
            answers.push(Answer::new(caller, reply.body()));
        }
        self.serve(answers); // a writer that has left may have held up readers
    }
}

impl Object for RwLock {
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad> {
        if self.readers.contains_key(&caller)
            || self.writer == Some(caller)
            || self.line.contains(caller)
        {
            return Err(Bad(format!("ticket {} is used twice", caller.ticket)));
        }
        match Ask::read(&body.head)? {
            Ask::Read { .. } if self.readers.len() + self.line.len() >= KEPT_MAX => {
                answers.push(Answer::new(caller, Reply::Busy.body()));
                return Ok(());
            }
            Ask::Read { wait, have } => {
                self.line.push(caller, wait.until(now), Want { write: false, have, wait })
            }
            Ask::Write { wait, have } => {
                self.line.push(caller, wait.until(now), Want { write: true, have, wait })
            }
            ref ask @ (Ask::Commit { write, downgrade, mark }
            | Ask::Release { write, downgrade, mark }) => {
                let writer = Caller { client: caller.client, ticket: write };
                if self.writer != Some(writer) {
                    answers.push(Answer::new(caller, Reply::NotHeld.body()));
                    return Ok(());
                }
                self.writer = None;
                if matches!(ask, Ask::Commit { .. }) {
                    (self.value, self.held) = (body.tail, body.held);
                    self.version += 1;
                }
                self.recovered = mark.unwrap_or(self.recovered);
                if downgrade {
                    self.readers.insert(writer, ());
                }
                answers.push(Answer::new(caller, Reply::Released { version: self.version }.body()));
            }
            Ask::Get { have } => answers.push(Answer::new(caller, self.locked(have))),
        }
        self.expire(now, answers);
        Ok(())
    }

    fn cancel(&mut self, caller: Caller, _: Instant, answers: &mut Vec<Answer>) {
        self.line.remove(caller);
        self.readers.remove(&caller);
        self.writer = self.writer.filter(|writer| *writer != caller);
        self.serve(answers);
    }

    fn gone(&mut self, client: Client, how: Gone, _: Instant, answers: &mut Vec<Answer>) {
        self.line.remove_client(client);
        for reader in of_client(&self.readers, client).collect::<Vec<_>>() {
            self.readers.remove(&reader);
        }
        if self.writer.is_some_and(|writer| writer.client == client) {
            self.writer = None;
            self.recovered |= how == Gone::Died;
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
        self.value.len() + self.line.len() * WAITER_BYTES + self.readers.len() * 48
    }
}

#[cfg(test)]
#[path = "rwlock_sim.rs"]
mod sim;
