//! What a client and its manager say to each other: every message is a MessagePack array whose
//! first element is its kind.
//!
//! Every byte is specified in `docs/protocol.md`. Each message is declared once, with its number and
//! its fields. Nothing that is read here is believed: lengths are checked against what is there, and
//! what a number stands for is looked up by whoever gets it.

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

// ---- the codec

/// What a message consists of.
trait Field<'a>: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn get(from: &mut &'a [u8]) -> Result<Self, Bad>;
}

fn bad(why: impl Into<String>) -> Bad {
    Bad(why.into())
}

fn put_uint(out: &mut Vec<u8>, value: u64) {
    rmp::encode::write_uint(out, value).expect("a Vec takes every byte");
}

fn get_uint<T: TryFrom<u64>>(from: &mut &[u8]) -> Result<T, Bad> {
    let number: u64 = rmp::decode::read_int(from).map_err(|_| bad("a number is missing"))?;
    T::try_from(number).map_err(|_| bad("a number is too large"))
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    rmp::encode::write_array_len(out, len as u32).expect("a Vec takes every byte");
}

fn get_len(from: &mut &[u8]) -> Result<u32, Bad> {
    rmp::decode::read_array_len(from).map_err(|_| bad("an array is missing"))
}

/// Reads what a message begins with: its kind, and how many elements it has.
fn get_head(from: &mut &[u8]) -> Result<(u8, u32), Bad> {
    let len = get_len(from)?;
    Ok((get_uint(from)?, len))
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Field<'_> for $number {
            fn put(&self, out: &mut Vec<u8>) {
                put_uint(out, (*self).into());
            }

            fn get(from: &mut &[u8]) -> Result<Self, Bad> {
                get_uint(from)
            }
        }
    )*};
}

numbers!(u32, u64);

impl Field<'_> for bool {
    fn put(&self, out: &mut Vec<u8>) {
        put_uint(out, (*self).into());
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        Ok(get_uint::<u8>(from)? != 0)
    }
}

impl Field<'_> for Way {
    fn put(&self, out: &mut Vec<u8>) {
        (*self == Self::Out).put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        Ok(if bool::get(from)? { Self::Out } else { Self::In })
    }
}

impl Field<'_> for Part {
    fn put(&self, out: &mut Vec<u8>) {
        put_uint(out, self.0.into());
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        let part = Self(get_uint(from)?);
        if part.0 < Self::COUNT { Ok(part) } else { Err(bad("a part that no object has")) }
    }
}

impl Field<'_> for Refusal {
    fn put(&self, out: &mut Vec<u8>) {
        let why = REFUSALS.iter().position(|other| other == self).expect("all are listed");
        put_uint(out, why as u64);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        let why = get_uint::<usize>(from)?;
        REFUSALS.get(why).copied().ok_or_else(|| bad("an unknown refusal"))
    }
}

impl<'a> Field<'a> for &'a [u8] {
    fn put(&self, out: &mut Vec<u8>) {
        rmp::encode::write_bin(out, self).expect("a Vec takes every byte");
    }

    fn get(from: &mut &'a [u8]) -> Result<Self, Bad> {
        let len = rmp::decode::read_bin_len(from).map_err(|_| bad("bytes are missing"))?;
        let (bytes, rest) = from
            .split_at_checked(len as usize)
            .ok_or_else(|| bad("more bytes announced than sent"))?;
        *from = rest;
        Ok(bytes)
    }
}

impl Field<'_> for Name {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(out, if self.place.is_some() { 6 } else { 3 });
        self.object.put(out);
        self.part.put(out);
        put_uint(out, self.kind.0.into());
        if let Some(Place { segment, offset, len }) = self.place {
            [segment, offset, len].iter().for_each(|number| number.put(out));
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        let len = get_len(from)?;
        let (object, part, kind) = (u64::get(from)?, Part::get(from)?, Kind(get_uint(from)?));
        let place = match len {
            3 => None,
            6 => Some(Place {
                segment: u32::get(from)?,
                offset: u32::get(from)?,
                len: u32::get(from)?,
            }),
            _ => return Err(bad("a name of another length")),
        };
        Ok(Self { object, part, kind, place })
    }
}

/// Bytes that an element of a list takes, at least.
trait Element {
    const LEAST: usize;
}

impl Element for u64 {
    const LEAST: usize = 1;
}

impl Element for Name {
    const LEAST: usize = 4;
}

impl<'a, T: Field<'a> + Element> Field<'a> for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(out, self.len());
        self.iter().for_each(|element| element.put(out));
    }

    fn get(from: &mut &'a [u8]) -> Result<Self, Bad> {
        let len = get_len(from)? as usize;
        if len > NAMES_MAX || len > from.len() / T::LEAST {
            return Err(bad("more elements announced than sent"));
        }
        (0..len).map(|_| T::get(from)).collect()
    }
}

/// An enum of messages, each with its number and its fields in their order, as those of objects
/// are declared ([`objects::code`](super::objects::code)). These travel as MessagePack, and borrow
/// from the frame.
macro_rules! messages {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $number:literal $variant:ident { $($field:ident: $kind:ty),* $(,)? }),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum $name<'a> {
            $($(#[$doc])* $variant { $($field: $kind),* },)*
        }

        impl<'a> $name<'a> {
            /// Appends the message.
            pub(crate) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field),* } => {
                        put_len(out, 1 + [$(stringify!($field)),*].len());
                        put_uint(out, $number);
                        $(Field::put($field, out);)*
                    })*
                }
            }

            /// Reads a frame's body.
            pub(crate) fn read(mut body: &'a [u8]) -> Result<Self, Bad> {
                let from = &mut body;
                let (kind, len) = get_head(from)?;
                let message = match kind {
                    $($number if len as usize == 1 + [$(stringify!($field)),*].len() => {
                        Self::$variant { $($field: Field::get(from)?),* }
                    })*
                    _ => return Err(bad(format!("a message of kind {kind} with {len} elements"))),
                };
                if body.is_empty() { Ok(message) } else { Err(bad("a message that is too long")) }
            }
        }
    };
}

messages!(
    /// From a client.
    ToManager {
        1 Request { object: u64, ticket: u64, names: Vec<Name>, head: &'a [u8], tail: &'a [u8] },
        2 Taken { object: u64, ticket: u64 },
        3 Cancel { object: u64, ticket: u64 },
        /// So many references have been dropped.
        4 Release { object: u64, part: Part, count: u64 },
        /// One more, in this part.
        5 Acquire { object: u64, part: Part },
        /// Wants this lock, for at most so many nanoseconds (0: without a limit). If it is for a thread
        /// that blocks: its process, and what the thread holds.
        6 Park { object: u64, ticket: u64, limit: u64, pid: u32, holds: Vec<u64> },
        /// Has left this lock to the manager.
        7 Rang { object: u64 },
        /// Came too late to accept this lock, and waits on.
        17 Back { object: u64, ticket: u64 },
        /// Leaves this lock, with a value that has no room in its place, or that names others, or that
        /// follows on such a one. `unmark`: it is no longer marked as recovered.
        8 Commit { object: u64, unmark: bool, names: Vec<Name>, value: &'a [u8] },
        /// Wants the value that had no room in its place.
        9 Fetch { object: u64, ticket: u64 },
        /// Wants this segment of the memory.
        10 Map { ticket: u64, segment: u32 },
        /// Has made a client of its own, which it will call so. Its socket comes with it, and if it
        /// says so, its process.
        11 Introduce { client: u64, process: bool },
        12 Lend { client: u64, names: Vec<Name> },
        /// Has put these into a result.
        13 Parcel { names: Vec<Name> },
        /// Takes over what this client had put into its results.
        14 Take { client: u64, names: Vec<Name> },
        /// This client's results have all been taken.
        15 Dismiss { client: u64 },
        /// Wants a lane into this queue, or out of it, until this ticket is cancelled.
        16 Lane { object: u64, ticket: u64, way: Way },
    }
);

messages!(
    /// From the manager.
    ToClient {
        /// Its seat; and whether it is to note which locks its threads hold.
        32 Welcome { seat: u32, generation: u32, note: bool },
        33 Answer { ticket: u64, offer: bool, names: Vec<Name>, head: &'a [u8], tail: &'a [u8] },
        34 Refused { ticket: u64, why: Refusal },
        35 Granted { ticket: u64, version: u64 },
        /// The segment, the lane, or the socket comes with it.
        36 Mapped { ticket: u64 },
        /// The lock is waited for in a ring, as told.
        37 Deadlock { ticket: u64, ring: &'a [u8] },
    }
);

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
    fn messages_are_the_bytes_that_the_protocol_specifies() {
        let bytes = |message: ToManager<'_>| {
            let mut out = Vec::new();
            message.write(&mut out);
            out
        };
        let lane = ToManager::Lane { object: 1, ticket: 300, way: Way::Out };
        assert_eq!(bytes(lane), [0x94, 16, 1, 0xcd, 1, 44, 1]);
        let names = vec![Name { object: 2, part: Part(1), kind: Kind(9), place: None }];
        let request = ToManager::Request { object: 1, ticket: 3, names, head: &[4], tail: &[] };
        assert_eq!(bytes(request), [0x96, 1, 1, 3, 0x91, 0x93, 2, 1, 9, 0xc4, 1, 4, 0xc4, 0]);
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
