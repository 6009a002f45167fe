//! Random and mutated messages between clients and their manager.
//!
//! [`Known::message`] makes what a client may send: every kind of message, about objects that it
//! knows, with requests of the right kind of object or of another. Here the decoders are tried with
//! mutations of these; `sync/hostile_clients.rs` sends them to a real manager. The variables of
//! `wire/fuzz.rs` apply.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use super::lane::Way;
use super::message::{Kind, Name, Place, REFUSALS, ToClient, ToManager};
use super::object::{NO_ANSWER, Part};
use super::objects::code::{Message as _, Pack};
use super::objects::{
    barrier, channel, condvar, event, list, map, queue, registered, rwlock, semaphore,
};
use crate::wire::counting::peak_of;
use crate::wire::fuzz::mutate::{Rng, mutate};
use crate::wire::fuzz::{count, run};
use crate::wire::packet::Packet;

/// Makes the head of a request, each for one kind of object.
const HEADS: [fn(&mut Rng) -> Packet; 10] = [
    |rng| barrier::Ask::any(rng).packet(),
    |rng| channel::Ask::any(rng).packet(),
    |rng| condvar::Ask::any(rng).packet(),
    |rng| event::Ask::any(rng).packet(),
    |rng| list::Ask::any(rng).packet(),
    |rng| map::Ask::any(rng).packet(),
    |rng| queue::Ask::any(rng).packet(),
    |rng| registered::Ask::any(rng).packet(),
    |rng| rwlock::Ask::any(rng).packet(),
    |rng| semaphore::Ask::any(rng).packet(),
];

/// What a client of a test knows of its manager.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Objects with the place of their requests in [`HEADS`]; `None` for a lock, which has none.
    pub(crate) objects: Vec<(u64, Option<usize>)>,
    /// The ticket that was used last.
    pub(crate) ticket: u64,
}

/// The manager ends a connection at the first request that no client sends. So those are rare, or
/// nothing else would be tried.
fn breaks_the_protocol(rng: &mut Rng) -> bool {
    rng.one_in(300)
}

impl Known {
    fn object(&self, rng: &mut Rng) -> (u64, Option<usize>) {
        match self.objects.len() {
            0 => (1, Some(0)),
            _ => *rng.pick(&self.objects),
        }
    }

    /// The number of an object, sometimes of one that was not lent to this client, or that does
    /// not exist.
    fn number(&self, rng: &mut Rng) -> u64 {
        if rng.one_in(10) { rng.below(24) as u64 } else { self.object(rng).0 }
    }

    /// A ticket for a request.
    fn new_ticket(&mut self, rng: &mut Rng) -> u64 {
        match rng.below(12) {
            0 => NO_ANSWER,
            _ if breaks_the_protocol(rng) => rng.word(),
            _ => {
                self.ticket += 1;
                self.ticket
            }
        }
    }

    /// A ticket that a request may have.
    fn old_ticket(&self, rng: &mut Rng) -> u64 {
        if rng.one_in(10) { rng.word() } else { self.ticket.saturating_sub(rng.below(12) as u64) }
    }

    fn part(rng: &mut Rng) -> Part {
        Part(rng.below(usize::from(Part::COUNT)) as u8)
    }

    fn names(&self, rng: &mut Rng) -> Vec<Name> {
        let most = if rng.one_in(30) { 2000 } else { 3 };
        let name = |rng: &mut Rng| Name {
            object: if rng.one_in(200) { self.number(rng) } else { self.object(rng).0 },
            part: Self::part(rng),
            kind: Kind(rng.below(14) as u8),
            place: rng.one_in(4).then(|| Place {
                segment: rng.length(8) as u32,
                offset: rng.word() as u32,
                len: rng.word() as u32,
            }),
        };
        (0..if rng.one_in(3) { rng.length(most) } else { 0 }).map(|_| name(rng)).collect()
    }

    /// Users' values: an even number of them behind their lengths, which may as well be one value.
    fn tail(rng: &mut Rng) -> Packet {
        if breaks_the_protocol(rng) {
            return Packet::copy_from(&vec![rng.word() as u8; rng.length(40)]);
        }
        let most = if rng.one_in(30) { 60_000 } else { 40 };
        let mut pack = Pack::default();
        (0..2 * rng.length(6)).for_each(|_| pack.push(&vec![7; rng.length(most)]));
        pack.finish()
    }

    /// Appends a message that a client may send, its body only.
    pub(crate) fn message(&mut self, rng: &mut Rng, out: &mut Vec<u8>) {
        let (object, client) = (self.number(rng), rng.below(6) as u64);
        let (part, names, tail) = (Self::part(rng), self.names(rng), Self::tail(rng));
        // A value that names an object which holds it keeps both for ever, as a cycle of `Arc`
        // does. A test could not tell that from a leak.
        let below = |mut names: Vec<Name>, object| {
            names.retain(|name| name.object < object);
            names
        };
        let head;
        let message = match rng.below(24) {
            0 => ToManager::Taken { object, ticket: self.old_ticket(rng) },
            1 | 2 => ToManager::Cancel { object, ticket: self.old_ticket(rng) },
            3 => {
                let count = if rng.one_in(3) { rng.word() } else { rng.below(3) as u64 };
                ToManager::Release { object, part, count }
            }
            4 => ToManager::Acquire { object, part },
            5 => ToManager::Map { ticket: self.new_ticket(rng), segment: rng.length(8) as u32 },
            6 if rng.one_in(8) => ToManager::Introduce { client, process: rng.one_in(4) },
            7 => ToManager::Lend { client, names },
            8 => ToManager::Parcel { names },
            9 => ToManager::Take { client, names },
            10 => ToManager::Dismiss { client },
            11 => {
                let way = if rng.one_in(2) { Way::In } else { Way::Out };
                ToManager::Lane { object, ticket: self.new_ticket(rng), way }
            }
            12 => self.about_a_lock(rng, object, below(names, object), &tail),
            _ => match self.object(rng) {
                (object, None) => self.about_a_lock(rng, object, below(names, object), &tail),
                (object, Some(kind)) => {
                    let other = breaks_the_protocol(rng);
                    head = HEADS[if other { rng.below(HEADS.len()) } else { kind }](rng);
                    let (ticket, names) = (self.new_ticket(rng), below(names, object));
                    ToManager::Request { object, ticket, names, head: &head, tail: &tail }
                }
            },
        };
        message.write(out);
    }

    fn about_a_lock<'a>(
        &mut self,
        rng: &mut Rng,
        object: u64,
        names: Vec<Name>,
        value: &'a [u8],
    ) -> ToManager<'a> {
        match rng.below(8) {
            0 => ToManager::Rang { object },
            1 => ToManager::Back { object, ticket: self.old_ticket(rng) },
            2 | 3 => ToManager::Commit { object, unmark: rng.one_in(2), names, value },
            4 => ToManager::Fetch { object, ticket: self.new_ticket(rng) },
            _ => {
                let limit = if rng.one_in(2) { rng.word() } else { rng.below(5000) as u64 };
                let holds = (0..rng.length(4)).map(|_| self.number(rng)).collect();
                let pid = if rng.one_in(2) { 0 } else { std::process::id() };
                ToManager::Park { object, ticket: self.new_ticket(rng), limit, pid, holds }
            }
        }
    }
}

fn to_client(rng: &mut Rng, known: &mut Known, out: &mut Vec<u8>) {
    let (ticket, names, tail) = (known.old_ticket(rng), known.names(rng), Known::tail(rng));
    let message = match rng.below(6) {
        0 => ToClient::Welcome { seat: rng.word() as u32, generation: 1, note: rng.one_in(2) },
        1 => ToClient::Answer { ticket, offer: rng.one_in(2), names, head: &[1], tail: &tail },
        2 => ToClient::Refused { ticket, why: *rng.pick(&REFUSALS) },
        3 => ToClient::Granted { ticket, version: rng.word() },
        4 => ToClient::Mapped { ticket },
        _ => ToClient::Deadlock { ticket, ring: &tail },
    };
    message.write(out);
}

#[test]
fn broken_messages_of_clients_and_managers_are_refused_or_are_what_they_say() {
    let tally = run("manager", 20_000, |rng, tally| {
        let mut known =
            Known { objects: vec![(1, Some(6)), (u64::MAX, Some(5)), (2, None)], ticket: 1 << 40 };
        let (mut body, mut other) = (Vec::new(), Vec::new());
        let from_client = rng.one_in(2);
        for out in [&mut body, &mut other] {
            if from_client {
                known.message(rng, out);
            } else {
                to_client(rng, &mut known, out);
            }
        }
        let whole = rng.one_in(20);
        if !whole {
            mutate(&mut body, &[other], rng);
        }
        // What is read is written and read again.
        let mut again = Vec::new();
        let read = |bytes: &[u8], again: &mut Vec<u8>| {
            if from_client {
                ToManager::read(bytes).map(|message| message.write(again))
            } else {
                ToClient::read(bytes).map(|message| message.write(again))
            }
        };
        let (decoded, peak) = peak_of(|| {
            if from_client {
                ToManager::read(&body).map(drop)
            } else {
                ToClient::read(&body).map(drop)
            }
        });
        // A name takes four bytes of the message at least, and 40 in memory.
        assert!(peak <= 1024 + 40 * body.len(), "{peak} bytes for {}", body.len());
        match decoded {
            Ok(()) => {
                read(&body, &mut again).unwrap();
                let mut twice = Vec::new();
                read(&again, &mut twice).unwrap();
                assert_eq!(again, twice);
                count(tally, if whole { "whole" } else { "read" });
            }
            Err(bad) => {
                assert!(!whole, "{bad}");
                count(tally, "refused");
            }
        }
    });
    for what in ["whole", "read", "refused"] {
        assert!(tally.contains_key(what), "no {what} in {tally:?}");
    }
}
