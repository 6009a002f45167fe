//! A list of values. Each request is atomic: no client sees a part of its effect.

use super::code::{Message, messages, unpack};
use super::snapshot::{Item, Piece, Snapshots};
use super::when::When;
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Gone, Held, Object};
use crate::wire::packet::Packet;
use std::collections::VecDeque;
use std::time::Instant;

messages!(
    /// What a list is asked. Places count from 0.
    Ask {
        /// At the end.
        1 Push,
        /// Several, packed, at the end.
        2 Extend,
        /// So that it stands at this place; one behind the last is the end.
        3 Insert { at: u64 },
        4 Pop,
        5 PopFront,
        6 Remove { at: u64 },
        7 Get { at: u64 },
        8 Set { at: u64, when: When },
        9 Len,
        10 Clear,
        /// Those of `from..to`.
        11 Snapshot { from: u64, to: u64 },
        12 Swap { a: u64, b: u64 },
        /// From this length on, the rest goes.
        13 Truncate { len: u64 },
        14 Reverse,
        /// The next piece of a snapshot, which was taken under this ticket.
        15 More { snapshot: u64 },
    }
);

messages!(
    /// What a list answers. A value, if there is one, is the tail.
    Reply {
        /// Done; it is so long now.
        1 Done { len: u64 },
        /// The value asked for, taken out, or replaced.
        2 Value { version: u64 },
        3 Empty,
        4 OutOfRange { len: u64 },
        /// The condition did not hold; the value is the one that is there.
        5 Refused { version: u64 },
        /// Several, packed. `more`: this is a piece, and another one can be fetched.
        6 Values { more: bool },
        /// Too many snapshots are being fetched.
        7 Busy,
    }
);

/// What an element costs beside its value, in bytes.
const ELEMENT_BYTES: usize = 72;

struct Element {
    value: Packet,
    held: Held,
    version: u64,
}

impl Element {
    fn bytes(&self) -> usize {
        self.value.len() + ELEMENT_BYTES
    }

    fn body(&self, head: Packet) -> Body {
        Body::with_value(head, self.value.clone(), self.held.clone())
    }
}

/// The state of one list.
#[derive(Default)]
pub(crate) struct List {
    elements: VecDeque<Element>,
    version: u64,
    bytes: usize,
    snapshots: Snapshots,
    /// Bytes that the manager has left.
    left: usize,
}

impl List {
    pub(crate) fn new() -> Self {
        Self { left: usize::MAX, ..Self::default() }
    }

    fn element(&mut self, value: Packet, held: Held) -> Element {
        self.version += 1;
        let element = Element { value, held, version: self.version };
        self.bytes += element.bytes();
        element
    }

    /// A place that a request names, if there is an element.
    fn place(&self, at: u64) -> Option<usize> {
        usize::try_from(at).ok().filter(|at| *at < self.elements.len())
    }

    fn out_of_range(&self) -> Body {
        Reply::OutOfRange { len: self.elements.len() as u64 }.body()
    }

    fn done(&self) -> Body {
        Reply::Done { len: self.elements.len() as u64 }.body()
    }

    fn gone_from(&mut self, element: &Element) {
        self.bytes -= element.bytes();
        self.snapshots.dropped(element.value.len());
    }

    /// One that has been taken out.
    fn out(&mut self, element: Option<Element>) -> Body {
        match element {
            Some(element) => {
                self.gone_from(&element);
                element.body(Reply::Value { version: element.version }.packet())
            }
            None => Reply::Empty.body(),
        }
    }

    fn answer(&mut self, caller: Caller, body: Body) -> Result<Body, Bad> {
        Ok(match Ask::read(&body.head)? {
            // No user's value is empty, so no honest client is told this. What has a value is
            // counted before it comes here.
            Ask::Push | Ask::Insert { .. } | Ask::Set { .. }
                if body.tail.is_empty() && self.left < 4 * ELEMENT_BYTES =>
            {
                return Err(Bad("an element without a value".into()));
            }
            Ask::Push => {
                let element = self.element(body.tail, body.held);
                self.elements.push_back(element);
                self.done()
            }
            Ask::Extend => {
                for value in unpack(&body.tail)? {
                    let element = self.element(value, body.held.clone());
                    self.elements.push_back(element);
                }
                self.done()
            }
            Ask::Insert { at } if at <= self.elements.len() as u64 => {
                let element = self.element(body.tail, body.held);
                self.elements.insert(at as usize, element);
                self.done()
            }
            Ask::Insert { .. } => self.out_of_range(),
            Ask::Pop => {
                let element = self.elements.pop_back();
                self.out(element)
            }
            Ask::PopFront => {
                let element = self.elements.pop_front();
                self.out(element)
            }
            Ask::Remove { at } => match self.place(at) {
                Some(at) => {
                    let element = self.elements.remove(at);
                    self.out(element)
                }
                None => self.out_of_range(),
            },
            Ask::Get { at } => match self.place(at) {
                Some(at) => self.elements[at]
                    .body(Reply::Value { version: self.elements[at].version }.packet()),
                None => self.out_of_range(),
            },
            Ask::Set { at, when } => match self.place(at) {
                Some(at)
                    if when.holds(Some((&self.elements[at].value, self.elements[at].version))) =>
                {
                    let element = self.element(body.tail, body.held);
                    let version = element.version;
                    let before = std::mem::replace(&mut self.elements[at], element);
                    self.gone_from(&before);
                    before.body(Reply::Value { version }.packet())
                }
                Some(at) => self.elements[at]
                    .body(Reply::Refused { version: self.elements[at].version }.packet()),
                None => self.out_of_range(),
            },
            Ask::Len => self.done(),
            Ask::Clear => {
                self.snapshots.dropped(self.bytes);
                (self.elements, self.bytes) = (VecDeque::new(), 0);
                self.done()
            }
            Ask::Snapshot { from, to } => {
                let to = to.min(self.elements.len() as u64);
                let count = (to - from.min(to)) as usize;
                if self.snapshots.is_full(caller.client, count, self.left) {
                    return Ok(Reply::Busy.body());
                }
                let elements = self.elements.range(from.min(to) as usize..to as usize);
                let items = elements.map(|element| Item {
                    key: None,
                    value: Some(element.value.clone()),
                    held: element.held.clone(),
                });
                let items = items.collect();
                values(self.snapshots.take(caller, items))
            }
            Ask::More { snapshot } => {
                let of = Caller { client: caller.client, ticket: snapshot };
                let piece = self.snapshots.next(of);
                values(piece.ok_or_else(|| Bad("a piece of no snapshot".into()))?)
            }
            Ask::Swap { a, b } => match (self.place(a), self.place(b)) {
                (Some(a), Some(b)) => {
                    self.elements.swap(a, b);
                    self.done()
                }
                _ => self.out_of_range(),
            },
            Ask::Reverse => {
                self.elements.make_contiguous().reverse();
                self.done()
            }
            Ask::Truncate { len } => {
                while self.elements.len() as u64 > len {
                    let element = self.elements.pop_back();
                    self.out(element);
                }
                self.done()
            }
        })
    }
}

fn values(Piece { tail, held, more }: Piece) -> Body {
    Body::with_value(Reply::Values { more }.packet(), tail, held)
}

impl Object for List {
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        _: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad> {
        if self.snapshots.contains(caller) {
            return Err(Bad(format!("ticket {} is used twice", caller.ticket)));
        }
        let answer = self.answer(caller, body)?;
        answers.push(Answer::new(caller, answer));
        Ok(())
    }

    fn cancel(&mut self, caller: Caller, _: Instant, _: &mut Vec<Answer>) {
        self.snapshots.forget(caller);
    }

    fn gone(&mut self, client: Client, _: Gone, _: Instant, _: &mut Vec<Answer>) {
        self.snapshots.forget_client(client);
    }

    fn bytes(&self) -> usize {
        self.bytes + self.snapshots.bytes()
    }

    fn left(&mut self, bytes: usize) {
        self.left = bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::objects::code::Pack;
    use crate::manager::objects::testing::{Clients, Rng, rounds};

    fn value(number: u64) -> Packet {
        Packet::copy_from(&number.to_le_bytes())
    }

    fn number(value: &[u8]) -> u64 {
        u64::from_le_bytes(value.try_into().expect("eight bytes"))
    }

    /// What a list says, with the values in it as numbers.
    fn ask(
        list: &mut List,
        clients: &mut Clients,
        rng: &mut Rng,
        ask: &Ask,
        tail: Packet,
    ) -> Result<(Reply, Vec<u64>), String> {
        let (caller, mut answers) = (clients.caller(rng), Vec::new());
        list.request(
            caller,
            Body::with_value(ask.packet(), tail, None),
            Instant::now(),
            &mut answers,
        )
        .map_err(|bad| bad.0)?;
        let [Answer { to, body, offer: false, .. }] = &answers[..] else {
            return Err(format!("{answers:?}"));
        };
        assert_eq!(*to, caller);
        let reply = Reply::read(&body.head).map_err(|bad| bad.0)?;
        let values = match &reply {
            Reply::Values { more: false } => {
                unpack(&body.tail).map_err(|bad| bad.0)?.iter().map(|value| number(value)).collect()
            }
            _ if body.tail.is_empty() => Vec::new(),
            _ => vec![number(&body.tail)],
        };
        Ok((reply, values))
    }

    /// Against std's own list.
    #[test]
    fn it_is_as_a_vector_is() {
        rounds(200, |seed| {
            let (mut rng, mut clients) = (Rng::new(seed), Clients::new(3));
            let (mut list, mut model) = (List::new(), Vec::<(u64, u64)>::new());
            let mut version = 0;
            for step in 0..300 {
                let len = model.len() as u64;
                let at = rng.below(len + 2);
                let place = usize::try_from(at).ok().filter(|at| *at < model.len());
                let mut tail = Packet::default();
                let mut fresh = |tail: &mut Packet| {
                    version += 1;
                    *tail = value(version * 7);
                    (version * 7, version)
                };
                let out_of_range = (Reply::OutOfRange { len }, vec![]);
                let (request, expected) = match rng.below(15) {
                    0 | 1 => {
                        model.push(fresh(&mut tail));
                        (Ask::Push, (Reply::Done { len: len + 1 }, vec![]))
                    }
                    2 => {
                        let mut pack = Pack::default();
                        for _ in 0..rng.below(4) {
                            model.push(fresh(&mut tail));
                            pack.push(&tail);
                        }
                        tail = pack.finish();
                        (Ask::Extend, (Reply::Done { len: model.len() as u64 }, vec![]))
                    }
                    3 if at <= len => {
                        model.insert(at as usize, fresh(&mut tail));
                        (Ask::Insert { at }, (Reply::Done { len: len + 1 }, vec![]))
                    }
                    3 => (Ask::Insert { at }, out_of_range),
                    4 | 5 => {
                        let front = rng.chance(50) && !model.is_empty();
                        let popped = if front { Some(model.remove(0)) } else { model.pop() };
                        let expected = match popped {
                            Some((number, version)) => (Reply::Value { version }, vec![number]),
                            None => (Reply::Empty, vec![]),
                        };
                        (if front { Ask::PopFront } else { Ask::Pop }, expected)
                    }
                    6 => match place {
                        Some(place) => {
                            let (number, version) = model.remove(place);
                            (Ask::Remove { at }, (Reply::Value { version }, vec![number]))
                        }
                        None => (Ask::Remove { at }, out_of_range),
                    },
                    7 => match place {
                        Some(place) => (
                            Ask::Get { at },
                            (Reply::Value { version: model[place].1 }, vec![model[place].0]),
                        ),
                        None => (Ask::Get { at }, out_of_range),
                    },
                    8 | 9 => match place {
                        Some(place) => {
                            let (number, before) = model[place];
                            let (when, holds) = [
                                (When::Always, true),
                                (When::Version(before), true),
                                (When::Version(before + 1), false),
                                (When::Equals(value(number)), true),
                                (When::Equals(value(number + 1)), false),
                                (When::Absent, false),
                                (When::Present, true),
                            ][rng.below(7) as usize]
                                .clone();
                            let expected = if holds {
                                model[place] = fresh(&mut tail);
                                (Reply::Value { version: model[place].1 }, vec![number])
                            } else {
                                tail = value(0);
                                (Reply::Refused { version: before }, vec![number])
                            };
                            (Ask::Set { at, when }, expected)
                        }
                        None => (Ask::Set { at, when: When::Always }, out_of_range),
                    },
                    10 => (Ask::Len, (Reply::Done { len }, vec![])),
                    11 => {
                        let (from, to) = (at, rng.below(len + 3));
                        let part = model
                            .iter()
                            .take(to as usize)
                            .skip(from as usize)
                            .map(|(number, _)| *number)
                            .collect();
                        (Ask::Snapshot { from, to }, (Reply::Values { more: false }, part))
                    }
                    12 => {
                        let (a, b) = (at, rng.below(len + 1));
                        if place.is_some() && b < len {
                            model.swap(a as usize, b as usize);
                            (Ask::Swap { a, b }, (Reply::Done { len }, vec![]))
                        } else {
                            (Ask::Swap { a, b }, out_of_range)
                        }
                    }
                    13 => {
                        model.reverse();
                        (Ask::Reverse, (Reply::Done { len }, vec![]))
                    }
                    _ if rng.chance(10) => {
                        model.clear();
                        (Ask::Clear, (Reply::Done { len: 0 }, vec![]))
                    }
                    _ => {
                        let to = len - len.min(rng.below(3));
                        model.truncate(to as usize);
                        (Ask::Truncate { len: to }, (Reply::Done { len: to }, vec![]))
                    }
                };
                let answer = ask(&mut list, &mut clients, &mut rng, &request, tail)?;
                if answer != expected || list.bytes() != model.len() * (8 + ELEMENT_BYTES) {
                    return Err(format!(
                        "step {step}: {request:?} was answered {answer:?}, not {expected:?}; {} bytes",
                        list.bytes()
                    ));
                }
            }
            Ok(())
        });
    }
}
