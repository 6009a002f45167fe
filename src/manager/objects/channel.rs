//! One end of a channel, until somebody uses it: two sockets that are handed over once, to whoever asks first.
//!
//! So an end can be sent to another process, and it is there, and nowhere else, that it is open from then on. A message brings
//! one descriptor: who has got the first asks for the second, and nobody else does.

use super::code::{Message, messages};
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Descriptor, Gone, Object};
use std::time::Instant;

messages!(
    /// What an end is asked.
    Ask {
        /// The socket to receive from: the end is the caller's from now on.
        1 Take,
        /// The socket to send to, by who has taken the first.
        2 Sends,
    }
);

messages!(
    /// What it answers, when it has not (any more) what it could answer with.
    Reply {
        1 Taken,
    }
);

/// One end.
pub(crate) struct End {
    receives: Option<Descriptor>,
    sends: Option<Descriptor>,
}

impl End {
    pub(crate) fn new(receives: Descriptor, sends: Descriptor) -> Self {
        Self { receives: Some(receives), sends: Some(sends) }
    }
}

impl Object for End {
    fn request(&mut self, caller: Caller, body: Body, _: Instant, answers: &mut Vec<Answer>) -> Result<(), Bad> {
        let socket = match Ask::read(&body.head)? {
            Ask::Take => self.receives.take(),
            Ask::Sends => self.sends.take(),
        };
        answers.push(match socket {
            Some(socket) => Answer::descriptor(caller, socket),
            None => Answer::new(caller, Reply::Taken.body()),
        });
        Ok(())
    }

    fn cancel(&mut self, _: Caller, _: Instant, _: &mut Vec<Answer>) {}

    fn gone(&mut self, _: Client, _: Gone, _: Instant, _: &mut Vec<Answer>) {}

    fn bytes(&self) -> usize {
        0
    }
}
