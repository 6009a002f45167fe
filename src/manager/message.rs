//! What a client and its manager say to each other: every message is a MessagePack array whose
//! first element is its kind.
//!
//! Every byte is specified in `docs/protocol.md`. Written and read by hand, as the calls of a pool
//! are: it is most of the traffic of shared objects. Nothing that is read here is believed: lengths
//! are checked against what is there, and what a number stands for is looked up by whoever gets it.

use super::lane::Way;
use super::object::{Bad, Part};
use crate::error::sync::{Error, Why};

/// Bytes of a value in a shared object, encoded: the most.
pub(crate) const VALUE_MAX: usize = 16 << 20;
/// Bytes of a map's key, encoded: the most.
pub(crate) const KEY_MAX: usize = 1 << 20;
/// Bytes of a frame's body: a value, its key, what the object says about it, and its names.
pub(crate) const FRAME_MAX: usize = VALUE_MAX + KEY_MAX + (3 << 20);
/// References that one message may name.
pub(crate) const NAMES_MAX: usize = 1 << 16;
/// Bytes of a name, at most.
const NAME_BYTES: usize = 40;
/// Bytes of a message beside its names and its two byte strings, at most.
const HEAD_BYTES: usize = 64;

const _: () = assert!(
    VALUE_MAX + KEY_MAX + NAMES_MAX * NAME_BYTES + 4 * HEAD_BYTES <= FRAME_MAX,
    "what is allowed by itself is allowed together"
);

/// Returns whether a request or an answer with so much in it can be sent: a reader ends the
/// connection at a longer one.
pub(crate) fn fits(head: usize, tail: usize, names: usize) -> bool {
    names <= NAMES_MAX && head + tail + names * NAME_BYTES + HEAD_BYTES <= FRAME_MAX
}

mod kind {
    // From the client.
    pub(super) const REQUEST: u8 = 1;
    pub(super) const TAKEN: u8 = 2;
    pub(super) const CANCEL: u8 = 3;
    pub(super) const RELEASE: u8 = 4;
    pub(super) const ACQUIRE: u8 = 5;
    pub(super) const PARK: u8 = 6;
    pub(super) const RANG: u8 = 7;
    pub(super) const COMMIT: u8 = 8;
    pub(super) const FETCH: u8 = 9;
    pub(super) const MAP: u8 = 10;
    pub(super) const INTRODUCE: u8 = 11;
    pub(super) const LEND: u8 = 12;
    pub(super) const PARCEL: u8 = 13;
    pub(super) const TAKE: u8 = 14;
    pub(super) const DISMISS: u8 = 15;
    pub(super) const LANE: u8 = 16;
    pub(super) const BACK: u8 = 17;
    // From the manager.
    pub(super) const WELCOME: u8 = 32;
    pub(super) const ANSWER: u8 = 33;
    pub(super) const REFUSED: u8 = 34;
    pub(super) const GRANTED: u8 = 35;
    pub(super) const MAPPED: u8 = 36;
    pub(super) const DEADLOCK: u8 = 37;
}

/// A reference that travels: to which object, in what part; and what its receiver has to know of
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) object: u64,
    pub(crate) part: Part,
    pub(crate) kind: Kind,
    pub(crate) place: Option<Place>,
}

/// What kind of object it is, as the handle's type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind(pub(crate) u8);

/// Where in the manager's memory an object lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    /// In words.
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// Why a request gets no answer from its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The manager is closed, or cannot be reached any more.
    Closed,
    /// There is no such object, or this client has no reference to it.
    NotYours,
    /// The manager's memory is full, to its bound.
    Full,
    /// The client has too many open requests.
    TooMany,
    /// The time is up.
    TimedOut,
    /// The object's memory was corrupted.
    Broken,
    /// There is no memory or no descriptor to be had.
    NoMemory,
    /// The answer exceeds what one message may carry.
    TooLarge,
    /// Under ticket 0: the client is one too many, and its connection ends.
    TooManyClients,
}

pub(super) const REFUSALS: [Refusal; 9] = [
    Refusal::Closed,
    Refusal::NotYours,
    Refusal::Full,
    Refusal::TooMany,
    Refusal::TimedOut,
    Refusal::Broken,
    Refusal::NoMemory,
    Refusal::TooLarge,
    Refusal::TooManyClients,
];

/// From a client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToManager<'a> {
    Request {
        object: u64,
        ticket: u64,
        names: Vec<Name>,
        head: &'a [u8],
        tail: &'a [u8],
    },
    Taken {
        object: u64,
        ticket: u64,
    },
    Cancel {
        object: u64,
        ticket: u64,
    },
    /// So many references have been dropped.
    Release {
        object: u64,
        part: Part,
        count: u64,
    },
    /// One more, in this part.
    Acquire {
        object: u64,
        part: Part,
    },
    /// Wants this lock, for at most so many nanoseconds (0: without a limit). If it is for a thread
    /// that blocks: its process, and what the thread holds.
    Park {
        object: u64,
        ticket: u64,
        limit: u64,
        pid: u32,
        holds: Vec<u64>,
    },
    /// Has left this lock to the manager.
    Rang {
        object: u64,
    },
    /// Came too late to accept this lock, and waits on.
    Back {
        object: u64,
        ticket: u64,
    },
    /// Leaves this lock, with a value that has no room in its place, or that names others, or that
    /// follows on such a one. `unmark`: it is no longer marked as recovered.
    Commit {
        object: u64,
        unmark: bool,
        names: Vec<Name>,
        value: &'a [u8],
    },
    /// Wants the value that had no room in its place.
    Fetch {
        object: u64,
        ticket: u64,
    },
    /// Wants this segment of the memory.
    Map {
        ticket: u64,
        segment: u32,
    },
    /// Has made a client of its own, which it will call so. Its socket comes with it, and if it
    /// says so, its process.
    Introduce {
        client: u64,
        process: bool,
    },
    Lend {
        client: u64,
        names: Vec<Name>,
    },
    /// Has put these into a result.
    Parcel {
        names: Vec<Name>,
    },
    /// Takes over what this client had put into its results.
    Take {
        client: u64,
        names: Vec<Name>,
    },
    /// This client's results have all been taken.
    Dismiss {
        client: u64,
    },
    /// Wants a lane into this queue, or out of it, until this ticket is cancelled.
    Lane {
        object: u64,
        ticket: u64,
        way: Way,
    },
}

/// From the manager.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToClient<'a> {
    /// Its seat; and whether it is to note which locks its threads hold.
    Welcome {
        seat: u32,
        generation: u32,
        note: bool,
    },
    Answer {
        ticket: u64,
        offer: bool,
        names: Vec<Name>,
        head: &'a [u8],
        tail: &'a [u8],
    },
    Refused {
        ticket: u64,
        why: Refusal,
    },
    Granted {
        ticket: u64,
        version: u64,
    },
    /// The segment, the lane, or the socket comes with it.
    Mapped {
        ticket: u64,
    },
    /// The lock is waited for in a ring, as told.
    Deadlock {
        ticket: u64,
        ring: &'a [u8],
    },
}

// ---- writing

struct Writer<'a>(&'a mut Vec<u8>);

impl<'a> Writer<'a> {
    fn new(out: &'a mut Vec<u8>, kind: u8, len: u8) -> Self {
        out.push(0x90 | (len + 1)); // a fixarray
        out.push(kind); // a positive fixint
        Self(out)
    }

    fn uint(self, value: u64) -> Self {
        rmp::encode::write_uint(self.0, value).expect("a Vec takes every byte");
        self
    }

    fn bin(self, bytes: &[u8]) -> Self {
        rmp::encode::write_bin(self.0, bytes).expect("a Vec takes every byte");
        self
    }

    fn uints(mut self, values: &[u64]) -> Self {
        rmp::encode::write_array_len(self.0, values.len() as u32).expect("a Vec takes every byte");
        for value in values {
            self = self.uint(*value);
        }
        self
    }

    fn names(mut self, names: &[Name]) -> Self {
        rmp::encode::write_array_len(self.0, names.len() as u32).expect("a Vec takes every byte");
        for name in names {
            rmp::encode::write_array_len(self.0, if name.place.is_some() { 6 } else { 3 })
                .expect("a Vec takes every byte");
            self = self.uint(name.object).uint(name.part.0.into()).uint(name.kind.0.into());
            if let Some(place) = name.place {
                self = self
                    .uint(place.segment.into())
                    .uint(place.offset.into())
                    .uint(place.len.into());
            }
        }
        self
    }
}

impl ToManager<'_> {
    /// Appends the message.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Request { object, ticket, names, head, tail } => {
                Writer::new(out, kind::REQUEST, 5)
                    .uint(*object)
                    .uint(*ticket)
                    .names(names)
                    .bin(head)
                    .bin(tail)
            }
            Self::Taken { object, ticket } => {
                Writer::new(out, kind::TAKEN, 2).uint(*object).uint(*ticket)
            }
            Self::Cancel { object, ticket } => {
                Writer::new(out, kind::CANCEL, 2).uint(*object).uint(*ticket)
            }
            Self::Release { object, part, count } => {
                Writer::new(out, kind::RELEASE, 3).uint(*object).uint(part.0.into()).uint(*count)
            }
            Self::Acquire { object, part } => {
                Writer::new(out, kind::ACQUIRE, 2).uint(*object).uint(part.0.into())
            }
            Self::Park { object, ticket, limit, pid, holds } => Writer::new(out, kind::PARK, 5)
                .uint(*object)
                .uint(*ticket)
                .uint(*limit)
                .uint((*pid).into())
                .uints(holds),
            Self::Rang { object } => Writer::new(out, kind::RANG, 1).uint(*object),
            Self::Back { object, ticket } => {
                Writer::new(out, kind::BACK, 2).uint(*object).uint(*ticket)
            }
            Self::Commit { object, unmark, names, value } => Writer::new(out, kind::COMMIT, 4)
                .uint(*object)
                .uint((*unmark).into())
                .names(names)
                .bin(value),
            Self::Fetch { object, ticket } => {
                Writer::new(out, kind::FETCH, 2).uint(*object).uint(*ticket)
            }
            Self::Map { ticket, segment } => {
                Writer::new(out, kind::MAP, 2).uint(*ticket).uint((*segment).into())
            }
            Self::Introduce { client, process } => {
                Writer::new(out, kind::INTRODUCE, 2).uint(*client).uint((*process).into())
            }
            Self::Lend { client, names } => {
                Writer::new(out, kind::LEND, 2).uint(*client).names(names)
            }
            Self::Parcel { names } => Writer::new(out, kind::PARCEL, 1).names(names),
            Self::Take { client, names } => {
                Writer::new(out, kind::TAKE, 2).uint(*client).names(names)
            }
            Self::Dismiss { client } => Writer::new(out, kind::DISMISS, 1).uint(*client),
            Self::Lane { object, ticket, way } => Writer::new(out, kind::LANE, 3)
                .uint(*object)
                .uint(*ticket)
                .uint((*way == Way::Out).into()),
        };
    }
}

impl ToClient<'_> {
    /// Appends the message.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome { seat, generation, note } => Writer::new(out, kind::WELCOME, 3)
                .uint((*seat).into())
                .uint((*generation).into())
                .uint((*note).into()),
            Self::Answer { ticket, offer, names, head, tail } => Writer::new(out, kind::ANSWER, 5)
                .uint(*ticket)
                .uint((*offer).into())
                .names(names)
                .bin(head)
                .bin(tail),
            Self::Refused { ticket, why } => {
                let why = REFUSALS.iter().position(|other| other == why).expect("all are listed");
                Writer::new(out, kind::REFUSED, 2).uint(*ticket).uint(why as u64)
            }
            Self::Granted { ticket, version } => {
                Writer::new(out, kind::GRANTED, 2).uint(*ticket).uint(*version)
            }
            Self::Mapped { ticket } => Writer::new(out, kind::MAPPED, 1).uint(*ticket),
            Self::Deadlock { ticket, ring } => {
                Writer::new(out, kind::DEADLOCK, 2).uint(*ticket).bin(ring)
            }
        };
    }
}

// ---- reading

fn bad(why: impl Into<String>) -> Bad {
    Bad(why.into())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn new(body: &'a [u8]) -> Result<(Self, u8, u32), Bad> {
        let mut rest = body;
        let len = rmp::decode::read_array_len(&mut rest)
            .map_err(|_| bad("a message that is no array"))?;
        let mut reader = Self(rest);
        let kind = reader.uint()?;
        Ok((reader, kind, len))
    }

    fn uint<T: TryFrom<u64>>(&mut self) -> Result<T, Bad> {
        let number: u64 =
            rmp::decode::read_int(&mut self.0).map_err(|_| bad("a number is missing"))?;
        T::try_from(number).map_err(|_| bad("a number is too large"))
    }

    fn bin(&mut self) -> Result<&'a [u8], Bad> {
        let len = rmp::decode::read_bin_len(&mut self.0).map_err(|_| bad("bytes are missing"))?;
        let (bytes, rest) = self
            .0
            .split_at_checked(len as usize)
            .ok_or_else(|| bad("more bytes announced than sent"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn uints(&mut self) -> Result<Vec<u64>, Bad> {
        let len = u64::from(
            rmp::decode::read_array_len(&mut self.0).map_err(|_| bad("numbers are missing"))?,
        );
        if len > NAMES_MAX as u64 || len > self.0.len() as u64 {
            return Err(bad("too many numbers"));
        }
        (0..len).map(|_| self.uint()).collect()
    }

    fn names(&mut self) -> Result<Vec<Name>, Bad> {
        let len = u64::from(
            rmp::decode::read_array_len(&mut self.0).map_err(|_| bad("names are missing"))?,
        );
        // A name takes at least four bytes.
        if len > NAMES_MAX as u64 || len > self.0.len() as u64 / 4 {
            return Err(bad("too many names"));
        }
        (0..len).map(|_| self.name()).collect()
    }

    fn name(&mut self) -> Result<Name, Bad> {
        let len = rmp::decode::read_array_len(&mut self.0).map_err(|_| bad("a name is missing"))?;
        let (object, part, kind) = (self.uint()?, Part(self.uint()?), Kind(self.uint()?));
        let place = match len {
            3 => None,
            6 => Some(Place { segment: self.uint()?, offset: self.uint()?, len: self.uint()? }),
            _ => return Err(bad("a name of another length")),
        };
        if part.0 >= Part::COUNT {
            return Err(bad("a part that no object has"));
        }
        Ok(Name { object, part, kind, place })
    }

    fn part(&mut self) -> Result<Part, Bad> {
        let part = Part(self.uint()?);
        if part.0 < Part::COUNT { Ok(part) } else { Err(bad("a part that no object has")) }
    }

    fn end<T>(self, message: T) -> Result<T, Bad> {
        if self.0.is_empty() { Ok(message) } else { Err(bad("a message that is too long")) }
    }
}

impl<'a> ToManager<'a> {
    /// Reads a frame's body.
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, Bad> {
        let (mut r, kind, len) = Reader::new(body)?;
        let message = match (kind, len) {
            (kind::REQUEST, 6) => Self::Request {
                object: r.uint()?,
                ticket: r.uint()?,
                names: r.names()?,
                head: r.bin()?,
                tail: r.bin()?,
            },
            (kind::TAKEN, 3) => Self::Taken { object: r.uint()?, ticket: r.uint()? },
            (kind::CANCEL, 3) => Self::Cancel { object: r.uint()?, ticket: r.uint()? },
            (kind::RELEASE, 4) => {
                Self::Release { object: r.uint()?, part: r.part()?, count: r.uint()? }
            }
            (kind::ACQUIRE, 3) => Self::Acquire { object: r.uint()?, part: r.part()? },
            (kind::PARK, 6) => Self::Park {
                object: r.uint()?,
                ticket: r.uint()?,
                limit: r.uint()?,
                pid: r.uint()?,
                holds: r.uints()?,
            },
            (kind::RANG, 2) => Self::Rang { object: r.uint()? },
            (kind::BACK, 3) => Self::Back { object: r.uint()?, ticket: r.uint()? },
            (kind::COMMIT, 5) => Self::Commit {
                object: r.uint()?,
                unmark: r.uint::<u8>()? != 0,
                names: r.names()?,
                value: r.bin()?,
            },
            (kind::FETCH, 3) => Self::Fetch { object: r.uint()?, ticket: r.uint()? },
            (kind::MAP, 3) => Self::Map { ticket: r.uint()?, segment: r.uint()? },
            (kind::INTRODUCE, 3) => {
                Self::Introduce { client: r.uint()?, process: r.uint::<u8>()? != 0 }
            }
            (kind::LEND, 3) => Self::Lend { client: r.uint()?, names: r.names()? },
            (kind::PARCEL, 2) => Self::Parcel { names: r.names()? },
            (kind::TAKE, 3) => Self::Take { client: r.uint()?, names: r.names()? },
            (kind::DISMISS, 2) => Self::Dismiss { client: r.uint()? },
            (kind::LANE, 4) => Self::Lane {
                object: r.uint()?,
                ticket: r.uint()?,
                way: if r.uint::<u8>()? == 0 { Way::In } else { Way::Out },
            },
            _ => return Err(bad(format!("a message of kind {kind} with {len} elements"))),
        };
        r.end(message)
    }
}

impl<'a> ToClient<'a> {
    /// Reads a frame's body.
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, Bad> {
        let (mut r, kind, len) = Reader::new(body)?;
        let message = match (kind, len) {
            (kind::WELCOME, 4) => {
                Self::Welcome { seat: r.uint()?, generation: r.uint()?, note: r.uint::<u8>()? != 0 }
            }
            (kind::ANSWER, 6) => Self::Answer {
                ticket: r.uint()?,
                offer: r.uint::<u8>()? != 0,
                names: r.names()?,
                head: r.bin()?,
                tail: r.bin()?,
            },
            (kind::REFUSED, 3) => {
                let (ticket, why) = (r.uint()?, r.uint::<usize>()?);
                Self::Refused {
                    ticket,
                    why: *REFUSALS.get(why).ok_or_else(|| bad("an unknown refusal"))?,
                }
            }
            (kind::GRANTED, 3) => Self::Granted { ticket: r.uint()?, version: r.uint()? },
            (kind::MAPPED, 2) => Self::Mapped { ticket: r.uint()? },
            (kind::DEADLOCK, 3) => Self::Deadlock { ticket: r.uint()?, ring: r.bin()? },
            _ => return Err(bad(format!("a message of kind {kind} with {len} elements"))),
        };
        r.end(message)
    }
}

/// What a refusal is to a user.
pub(crate) fn error(why: Refusal) -> Error {
    match why {
        Refusal::Closed => Why::ManagerClosed,
        Refusal::NotYours => Why::NoSuchObject,
        Refusal::Full => Why::ManagerFull,
        Refusal::TooMany => Why::TooManyRequests,
        Refusal::TooManyClients => Why::TooManyClients,
        Refusal::TimedOut => Why::TimedOut,
        Refusal::Broken => Why::ObjectBroken,
        Refusal::TooLarge => Why::TooLarge { limit: VALUE_MAX },
        Refusal::NoMemory => Why::Memory {
            step: "getting the memory of a shared object",
            source: std::io::Error::from(std::io::ErrorKind::OutOfMemory),
        },
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<Name> {
        let place = Some(Place { segment: 1, offset: 70_000, len: u32::MAX });
        vec![
            Name { object: u64::MAX, part: Part::RECEIVER, kind: Kind(9), place: None },
            Name { object: 1, part: Part::WHOLE, kind: Kind(200), place },
        ]
    }

    #[test]
    fn every_message_comes_back_and_cut_ones_are_refused() {
        let (names, tail) = (names(), vec![7; 300]);
        let to_manager = [
            ToManager::Request {
                object: 1,
                ticket: u64::MAX,
                names: names.clone(),
                head: &[1],
                tail: &tail,
            },
            ToManager::Taken { object: 1, ticket: 2 },
            ToManager::Cancel { object: 1, ticket: 2 },
            ToManager::Release { object: 1, part: Part::SENDER, count: 3 },
            ToManager::Acquire { object: 1, part: Part::SENDER },
            ToManager::Park {
                object: 1,
                ticket: 2,
                limit: 1_000_000_000,
                pid: 7,
                holds: vec![3, u64::MAX],
            },
            ToManager::Rang { object: 1 },
            ToManager::Back { object: 1, ticket: 2 },
            ToManager::Commit { object: 1, unmark: true, names: names.clone(), value: &tail },
            ToManager::Fetch { object: 1, ticket: 2 },
            ToManager::Map { ticket: 1, segment: u32::MAX },
            ToManager::Introduce { client: 1, process: true },
            ToManager::Lend { client: 1, names: names.clone() },
            ToManager::Parcel { names: names.clone() },
            ToManager::Take { client: 1, names: names.clone() },
            ToManager::Dismiss { client: 1 },
            ToManager::Lane { object: 1, ticket: 300, way: Way::In },
            ToManager::Lane { object: 1, ticket: 2, way: Way::Out },
        ];
        for message in to_manager {
            let mut out = Vec::new();
            message.write(&mut out);
            assert_eq!(ToManager::read(&out).expect("whole"), message);
            for cut in 0..out.len() {
                assert!(ToManager::read(&out[..cut]).is_err());
            }
            out.push(0);
            assert!(ToManager::read(&out).is_err());
        }
        let refused = REFUSALS.map(|why| ToClient::Refused { ticket: 1, why });
        let to_client = [
            ToClient::Welcome { seat: 3, generation: 4, note: true },
            ToClient::Answer { ticket: 1, offer: true, names, head: &[], tail: &tail },
            ToClient::Granted { ticket: 1, version: 2 },
            ToClient::Mapped { ticket: 1 },
            ToClient::Deadlock { ticket: 1, ring: b"ring" },
        ];
        for message in to_client.into_iter().chain(refused) {
            let mut out = Vec::new();
            message.write(&mut out);
            assert_eq!(ToClient::read(&out).expect("whole"), message);
            for cut in 0..out.len() {
                assert!(ToClient::read(&out[..cut]).is_err());
            }
        }
    }

    #[test]
    fn announced_lengths_take_no_memory() {
        for bytes in [
            &[0x92, 13, 0xdd, 0xff, 0xff, 0xff, 0xff][..],
            &[0x95, 8, 1, 0, 0x90, 0xc6, 0xff, 0xff, 0xff, 0xff],
            &[],
        ] {
            assert!(ToManager::read(bytes).is_err());
        }
    }
}
