//! One end of a channel, until somebody uses it: a socket that is handed over once, to whoever asks first.
//!
//! So an end can be sent to another process, and it is there, and nowhere else, that it is open from then on.

use super::code::{Message, messages};
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Descriptor, Gone, Object};
use std::time::Instant;

messages!(
    /// What an end is asked.
    Ask {
        1 Take,
    }
);

messages!(
    /// What it answers, when there is no socket (any more) that it could answer with.
    Reply {
        1 Taken,
    }
);

/// One end.
pub(crate) struct End(Option<Descriptor>);

impl End {
    pub(crate) fn new(socket: Descriptor) -> Self {
        Self(Some(socket))
    }
}

impl Object for End {
    fn request(&mut self, caller: Caller, body: Body, _: Instant, answers: &mut Vec<Answer>) -> Result<(), Bad> {
        let Ask::Take = Ask::read(&body.head)?;
        answers.push(match self.0.take() {
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
