//! One end of a channel before its first use: two sockets, which are handed over once, to the
//! client that asks first.
//!
//! So an end can be sent to another process. It is open in that process from then on, and nowhere
//! else. A message carries one descriptor, so the client that has got the first socket asks for the
//! second one; no other client gets it.

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
    /// Who has taken the first: the second is his, and nobody's when he has gone.
    taken_by: Option<Client>,
}

impl End {
    pub(crate) fn new(receives: Descriptor, sends: Descriptor) -> Self {
        Self { receives: Some(receives), sends: Some(sends), taken_by: None }
    }
}

impl Object for End {
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        _: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad> {
        let socket = match Ask::read(&body.head)? {
            Ask::Take => {
                let socket = self.receives.take();
                self.taken_by = self.taken_by.or(socket.is_some().then_some(caller.client));
                socket
            }
            Ask::Sends => self.sends.take_if(|_| self.taken_by == Some(caller.client)),
        };
        answers.push(match socket {
            Some(socket) => Answer::descriptor(caller, socket),
            None => Answer::new(caller, Reply::Taken.body()),
        });
        Ok(())
    }

    fn cancel(&mut self, _: Caller, _: Instant, _: &mut Vec<Answer>) {}

    fn gone(&mut self, client: Client, _: Gone, _: Instant, _: &mut Vec<Answer>) {
        // Between the two: else the other end would wait for him as long as there is another
        // handle.
        self.sends.take_if(|_| self.taken_by == Some(client));
    }

    fn bytes(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::PeerFd;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    const OWNER: Client = Client { seat: 2, generation: 0 };
    const OTHER: Client = Client { seat: 3, generation: 0 };

    fn gets(end: &mut End, client: Client, ask: Ask) -> bool {
        let mut answers = Vec::new();
        end.request(Caller { client, ticket: 1 }, ask.body(), Instant::now(), &mut answers)
            .unwrap_or_else(|bad| panic!("{}", bad.0));
        let [answer] = &answers[..] else { panic!("one answer") };
        answer.descriptor.is_some()
    }

    #[test]
    fn both_sockets_are_those_of_who_asks_first_and_go_with_him() {
        let pair = || UnixStream::pair().expect("sockets");
        let ((receives, _writes), (sends, mut reads)) = (pair(), pair());
        let mut end =
            End::new(Arc::new(PeerFd::refusing(receives)), Arc::new(PeerFd::refusing(sends)));
        assert!(!gets(&mut end, OWNER, Ask::Sends), "the first comes first");
        assert!(gets(&mut end, OWNER, Ask::Take));
        assert!(!gets(&mut end, OTHER, Ask::Take) && !gets(&mut end, OTHER, Ask::Sends));
        end.gone(OTHER, Gone::Died, Instant::now(), &mut Vec::new());
        reads.set_nonblocking(true).expect("set");
        assert_eq!(
            reads.read(&mut [0]).expect_err("it is open").kind(),
            std::io::ErrorKind::WouldBlock
        );
        // He dies before he has asked for the second.
        end.gone(OWNER, Gone::Died, Instant::now(), &mut Vec::new());
        assert_eq!(reads.read(&mut [0]).expect("closed"), 0);
    }
}
