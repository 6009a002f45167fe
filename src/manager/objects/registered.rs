//! An object of the user's own (an actor), which one client serves: other clients' calls come in,
//! and the server takes them one at a time.
//!
//! The rules, by number:
//!
//! 1. **Order.** Calls are served in order. A call that is cancelled, or whose client ends, before
//!    the call has begun never begins. If this happens later, the result of the call is dropped.
//! 2. **One at a time.** The server asks for the next call when it has answered the last one.
//! 3. **Time limits.** The limit of a call covers waiting and running. A call that has not begun by
//!    then never begins.
//! 4. **End.** When no client can call any more, the server is told that it is over.

use super::code::{Message, Wait, messages};
use super::line::{Line, WAITER_BYTES};
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Gone, Held, Object, Part};
use crate::wire::packet::Packet;
use std::time::Instant;

messages!(
    /// What is asked: by callers the first, by the one who serves the others.
    Ask {
        /// The tail is the argument.
        1 Call { wait: Wait },
        2 Next,
        /// The tail is the result of this call.
        3 Done { call: u64 },
        /// The call has come to nothing: its panic's message, or why its argument or its result could not travel.
        4 Failed { call: u64, how: u8, text: Packet },
    }
);

/// How a call has failed.
pub(crate) mod how {
    pub(crate) const PANICKED: u8 = 0;
    pub(crate) const ARGUMENT: u8 = 1;
    pub(crate) const RESULT: u8 = 2;
    pub(crate) const TOO_LARGE: u8 = 3;
}

messages!(
    /// What is answered: to callers the first three, to the one who serves the others.
    Reply {
        /// The tail is the result.
        1 Done,
        2 Failed { how: u8, text: Packet },
        3 TimedOut,
        /// The tail is the argument.
        4 Next { call: u64 },
        5 Over,
        /// The answer has arrived.
        6 Taken,
    }
);

struct Call {
    argument: Packet,
    held: Held,
    until: Option<Instant>,
}

/// The call that is being served. Its caller may wait no longer.
struct Running {
    number: u64,
    caller: Option<(Caller, Option<Instant>)>,
}

/// The state of one such object.
pub(crate) struct Registered {
    server: Client,
    line: Line<Call>,
    bytes: usize,
    running: Option<Running>,
    /// Whoever serves waits for a call.
    idle: Option<Caller>,
    next: u64,
    over: bool,
}

impl Registered {
    /// Served by this client.
    pub(crate) fn new(server: Client) -> Self {
        Self {
            server,
            line: Line::new(),
            bytes: 0,
            running: None,
            idle: None,
            next: 0,
            over: false,
        }
    }

    fn serve(&mut self, answers: &mut Vec<Answer>) {
        let Some(idle) = self.idle else { return };
        if let Some((caller, call)) = self.line.pop() {
            self.bytes -= call.argument.len();
            self.idle = None;
            self.next += 1;
            self.running = Some(Running { number: self.next, caller: Some((caller, call.until)) });
            let next = Reply::Next { call: self.next }.packet();
            answers.push(Answer::new(idle, Body::with_value(next, call.argument, call.held)));
        } else if self.over {
            self.idle = None;
            answers.push(Answer::new(idle, Reply::Over.body()));
        }
    }

    /// The call that is served is answered.
    fn answer(&mut self, call: u64, body: Body, answers: &mut Vec<Answer>) {
        if let Some(running) = self.running.take_if(|running| running.number == call)
            && let Some((caller, _)) = running.caller
        {
            answers.push(Answer::new(caller, body));
        }
    }

    fn expire(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.serve(answers);
        for (caller, call) in self.line.expire(now) {
            self.bytes -= call.argument.len();
            answers.push(Answer::new(caller, Reply::TimedOut.body()));
        }
        if let Some(running) = &mut self.running
            && let Some((caller, _)) =
                running.caller.take_if(|(_, until)| until.is_some_and(|until| until <= now))
        {
            answers.push(Answer::new(caller, Reply::TimedOut.body()));
        }
    }

    fn forget(&mut self, is: impl Fn(Caller) -> bool) {
        if let Some(running) = &mut self.running {
            running.caller.take_if(|(caller, _)| is(*caller));
        }
    }
}

impl Object for Registered {
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad> {
        let served = caller.client == self.server;
        match Ask::read(&body.head)? {
            Ask::Call { wait } => {
                if self.line.contains(caller) {
                    return Err(Bad(format!("ticket {} is used twice", caller.ticket)));
                }
                let until = wait.until(now);
                self.bytes += body.tail.len();
                self.line.push(caller, until, Call { argument: body.tail, held: body.held, until });
            }
            Ask::Next if served => self.idle = Some(caller),
            Ask::Done { call } if served => {
                self.answer(
                    call,
                    Body::with_value(Reply::Done.packet(), body.tail, body.held),
                    answers,
                );
                answers.push(Answer::new(caller, Reply::Taken.body()));
            }
            Ask::Failed { call, how, text } if served => {
                self.answer(call, Reply::Failed { how, text }.body(), answers);
                answers.push(Answer::new(caller, Reply::Taken.body()));
            }
            other => return Err(Bad(format!("{other:?} from one who does not serve"))),
        }
        self.expire(now, answers);
        Ok(())
    }

    fn cancel(&mut self, caller: Caller, _: Instant, _: &mut Vec<Answer>) {
        if let Some(call) = self.line.remove(caller) {
            self.bytes -= call.argument.len();
        }
        self.idle = self.idle.filter(|idle| *idle != caller);
        self.forget(|running| running == caller);
    }

    fn gone(&mut self, client: Client, _: Gone, _: Instant, _: &mut Vec<Answer>) {
        for (_, call) in self.line.remove_client(client) {
            self.bytes -= call.argument.len();
        }
        self.forget(|running| running.client == client);
    }

    fn held(&mut self, part: Part, held: bool, _: Instant, answers: &mut Vec<Answer>) {
        if part == Part::WHOLE {
            self.over = !held;
            self.serve(answers);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let running = self.running.as_ref().and_then(|running| running.caller?.1);
        self.line.next_deadline().into_iter().chain(running).min()
    }

    fn tick(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.expire(now, answers);
    }

    fn bytes(&self) -> usize {
        self.bytes + self.line.len() * WAITER_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::objects::testing::{Clients, Rng, rounds};
    use std::time::Duration;

    /// What a caller is to be told of its call, by the model.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Known {
        caller: Caller,
        number: u64,
        until: Option<Instant>,
    }

    fn packet(number: u64) -> Packet {
        Packet::copy_from(&number.to_le_bytes())
    }

    #[test]
    fn whatever_happens_calls_are_served_once_in_order_and_answered_once() {
        let mut served = 0;
        rounds(200, |seed| {
            let mut rng = Rng::new(seed);
            let mut clients = Clients::new(4);
            let server = Client { seat: 1_000, generation: 0 };
            let (mut object, mut now) = (Registered::new(server), Instant::now());
            let (mut line, mut running, mut idle) =
                (Vec::<Known>::new(), None::<(u64, Option<Known>)>, None);
            let mut numbers = 0;
            for step in 0..200 {
                let mut answers = Vec::new();
                let mut expected = Vec::new();
                let caller = clients.caller(&mut rng);
                match rng.below(12) {
                    0..4 => {
                        numbers += 1;
                        let wait = if rng.chance(30) {
                            Wait::Limit(rng.millis(20) + Duration::from_millis(1))
                        } else {
                            Wait::Ever
                        };
                        line.push(Known { caller, number: numbers, until: wait.until(now) });
                        let body =
                            Body::with_value(Ask::Call { wait }.packet(), packet(numbers), None);
                        object.request(caller, body, now, &mut answers).map_err(|bad| bad.0)?;
                    }
                    4..8 => match running.take() {
                        Some((call, known)) => {
                            let told = clients.caller_of(server);
                            let result = 100 + known.map_or(0, |known| known.number);
                            if let Some(known) = known {
                                expected.push((known.caller, Reply::Done, packet(result)));
                            }
                            expected.push((told, Reply::Taken, Packet::default()));
                            let body =
                                Body::with_value(Ask::Done { call }.packet(), packet(result), None);
                            object.request(told, body, now, &mut answers).map_err(|bad| bad.0)?;
                        }
                        None if idle.is_none() => {
                            let asks = clients.caller_of(server);
                            idle = Some(asks);
                            object
                                .request(asks, Ask::Next.body(), now, &mut answers)
                                .map_err(|bad| bad.0)?;
                        }
                        None => {}
                    },
                    8 => {
                        let mut all: Vec<Caller> = line.iter().map(|known| known.caller).collect();
                        all.extend(running.and_then(|(_, known)| known).map(|known| known.caller));
                        if let Some(caller) = rng.pick(&all) {
                            line.retain(|known| known.caller != caller);
                            running = running.map(|(call, known)| {
                                (call, known.filter(|known| known.caller != caller))
                            });
                            object.cancel(caller, now, &mut answers);
                        }
                    }
                    9 => {
                        let client = caller.client;
                        clients.replace(client);
                        line.retain(|known| known.caller.client != client);
                        running = running.map(|(call, known)| {
                            (call, known.filter(|known| known.caller.client != client))
                        });
                        object.gone(client, Gone::Died, now, &mut answers);
                    }
                    _ => {
                        now += rng.millis(10);
                        let late = |known: &Known| known.until.is_some_and(|until| until <= now);
                        let mut told: Vec<Known> = line.iter().copied().filter(late).collect();
                        told.sort_by_key(|known| known.until);
                        line.retain(|known| !late(known));
                        if let Some((_, known)) = &mut running {
                            told.extend(known.take_if(|known| late(known)));
                        }
                        expected.extend(
                            told.into_iter()
                                .map(|known| (known.caller, Reply::TimedOut, Packet::default())),
                        );
                        object.tick(now, &mut answers);
                    }
                }
                if let Some(asks) = idle
                    && !line.is_empty()
                {
                    idle = None;
                    served += 1;
                    let known = line.remove(0);
                    let call = match answers
                        .iter()
                        .find(|answer| answer.to == asks)
                        .map(|answer| Reply::read(&answer.body.head))
                    {
                        Some(Ok(Reply::Next { call })) => call,
                        other => {
                            return Err(format!("step {step}: whoever serves was told {other:?}"));
                        }
                    };
                    expected.push((asks, Reply::Next { call }, packet(known.number)));
                    running = Some((call, Some(known)));
                }
                let answers: Vec<_> = answers
                    .into_iter()
                    .map(|answer| {
                        (
                            answer.to,
                            Reply::read(&answer.body.head).expect("a reply"),
                            answer.body.tail,
                        )
                    })
                    .collect();
                if answers != expected {
                    return Err(format!("step {step}: {answers:?}, not {expected:?}"));
                }
                if object.bytes != 8 * line.len() {
                    return Err(format!(
                        "step {step}: {} bytes for {} calls",
                        object.bytes,
                        line.len()
                    ));
                }
            }
            Ok(())
        });
        assert!(served > 1_000, "{served} calls are no test");
    }

    #[test]
    fn only_the_one_who_serves_is_given_calls_and_it_is_told_of_the_end() {
        let server = Client { seat: 1, generation: 0 };
        let mut object = Registered::new(server);
        let (now, mut answers) = (Instant::now(), Vec::new());
        let stranger = Caller { client: Client { seat: 2, generation: 0 }, ticket: 1 };
        for ask in [
            Ask::Next,
            Ask::Done { call: 1 },
            Ask::Failed { call: 1, how: 0, text: Packet::default() },
        ] {
            assert!(object.request(stranger, ask.body(), now, &mut answers).is_err());
        }
        object.held(Part::WHOLE, true, now, &mut answers);
        object
            .request(Caller { client: server, ticket: 1 }, Ask::Next.body(), now, &mut answers)
            .expect("served");
        object
            .request(stranger, Ask::Call { wait: Wait::Ever }.body(), now, &mut answers)
            .expect("a call");
        object.held(Part::WHOLE, false, now, &mut answers);
        object
            .request(Caller { client: server, ticket: 2 }, Ask::Next.body(), now, &mut answers)
            .expect("served");
        let replies: Vec<_> =
            answers.iter().map(|answer| Reply::read(&answer.body.head).expect("a reply")).collect();
        assert_eq!(replies, [Reply::Next { call: 1 }, Reply::Over]);
    }
}
