//! The encoding of requests and answers: one byte for the kind of message, then the fields in
//! order.
//!
//! Numbers are little endian and of fixed length, an option is a byte and its content, and bytes
//! follow their length (four bytes). Users' values are not among the fields: they are in the tail
//! of the body, encoded by `wire::value`.

use crate::manager::object::{Bad, Body};
#[cfg(test)]
use crate::wire::fuzz::mutate::Rng;
use crate::wire::packet::Packet;
use bytes::Bytes;
use std::time::{Duration, Instant};

/// What a message consists of.
pub(crate) trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn get(from: &mut &[u8]) -> Result<Self, Bad>;
    /// Makes a value that a test's client may send: small ones mostly, and those at the edges.
    #[cfg(test)]
    fn any(rng: &mut Rng) -> Self;
}

fn short() -> Bad {
    Bad("a message that is too short".into())
}

fn split<'a>(from: &mut &'a [u8], len: usize) -> Result<&'a [u8], Bad> {
    let (taken, rest) = from.split_at_checked(len).ok_or_else(short)?;
    *from = rest;
    Ok(taken)
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Field for $number {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn get(from: &mut &[u8]) -> Result<Self, Bad> {
                let bytes = split(from, size_of::<Self>())?;
                Ok(Self::from_le_bytes(bytes.try_into().expect("it is as long as that")))
            }

            #[cfg(test)]
            fn any(rng: &mut Rng) -> Self {
                match rng.below(8) {
                    0 => rng.word() as Self,
                    1 => Self::MAX - rng.below(2) as Self,
                    _ => rng.below(12) as Self,
                }
            }
        }
    )*};
}

numbers!(u8, u32, u64);

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        match u8::get(from)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Bad(format!("neither false nor true: {other}"))),
        }
    }

    #[cfg(test)]
    fn any(rng: &mut Rng) -> Self {
        rng.one_in(2)
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        bool::get(from)?.then(|| T::get(from)).transpose()
    }

    #[cfg(test)]
    fn any(rng: &mut Rng) -> Self {
        rng.one_in(2).then(|| T::any(rng))
    }
}

impl Field for Packet {
    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).expect("a frame is below 4 GiB").put(out);
        out.extend_from_slice(self);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        let len = u32::get(from)?;
        Ok(Self::copy_from(split(from, len as usize)?))
    }

    #[cfg(test)]
    fn any(rng: &mut Rng) -> Self {
        let most = if rng.one_in(20) { 20_000 } else { 8 };
        Self::copy_from(&vec![rng.below(4) as u8; rng.length(most)])
    }
}

/// A length of time, in whole microseconds, rounded up.
impl Field for Duration {
    fn put(&self, out: &mut Vec<u8>) {
        u64::try_from(self.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX).put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        u64::get(from).map(Self::from_micros)
    }

    #[cfg(test)]
    fn any(rng: &mut Rng) -> Self {
        Self::from_micros(u64::any(rng))
    }
}

/// How long a request waits for what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    Limit(Duration),
    Ever,
}

impl Wait {
    /// When its time is up. A time so far off that it cannot be told is never.
    pub(crate) fn until(self, now: Instant) -> Option<Instant> {
        match self {
            Self::No => Some(now),
            Self::Limit(limit) => now.checked_add(limit),
            Self::Ever => None,
        }
    }
}

impl Field for Wait {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::No => out.push(0),
            Self::Limit(limit) => {
                out.push(1);
                limit.put(out);
            }
            Self::Ever => out.push(2),
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        match u8::get(from)? {
            0 => Ok(Self::No),
            1 => Duration::get(from).map(Self::Limit),
            2 => Ok(Self::Ever),
            other => Err(Bad(format!("no way of waiting: {other}"))),
        }
    }

    #[cfg(test)]
    fn any(rng: &mut Rng) -> Self {
        match rng.below(3) {
            0 => Self::No,
            1 => Self::Limit(Duration::any(rng)),
            _ => Self::Ever,
        }
    }
}

/// A message of its own kind.
pub(crate) trait Message: Sized {
    fn packet(&self) -> Packet;
    fn read(bytes: &[u8]) -> Result<Self, Bad>;

    /// A body without a value.
    fn body(&self) -> Body {
        Body::new(self.packet())
    }
}

/// An enum of messages, each with its number and its fields.
macro_rules! messages {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $number:literal $variant:ident $({ $($field:ident: $kind:ty),* $(,)? })?),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$doc])* $variant $({ $($field: $kind),* })?,)*
        }

        #[cfg(test)]
        impl $name {
            /// Makes one of them, of any kind and with any fields.
            #[allow(dead_code, reason = "tests make requests, not replies")]
            pub(crate) fn any(rng: &mut $crate::wire::fuzz::mutate::Rng) -> Self {
                type Make = fn(&mut $crate::wire::fuzz::mutate::Rng) -> $name;
                let all: &[Make] = &[$(|_rng| Self::$variant $({
                    $($field: <$kind as $crate::manager::objects::code::Field>::any(_rng)),*
                })?),*];
                rng.pick(all)(rng)
            }
        }

        impl $crate::manager::objects::code::Message for $name {
            fn packet(&self) -> $crate::wire::packet::Packet {
                let mut out = Vec::with_capacity(38);
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        out.push($number);
                        $($($crate::manager::objects::code::Field::put($field, &mut out);)*)?
                    })*
                }
                $crate::wire::packet::Packet::from(&mut out)
            }

            fn read(mut bytes: &[u8]) -> Result<Self, $crate::manager::object::Bad> {
                let from = &mut bytes;
                let message = match <u8 as $crate::manager::objects::code::Field>::get(from)? {
                    $($number => Self::$variant $({ $($field: $crate::manager::objects::code::Field::get(from)?),* })?,)*
                    other => return Err($crate::manager::object::Bad(format!("{} number {other}", stringify!($name)))),
                };
                if !bytes.is_empty() {
                    return Err($crate::manager::object::Bad(format!("{} bytes too many behind a message", bytes.len())));
                }
                Ok(message)
            }
        }
    };
}

pub(crate) use messages;

/// Several values in one tail, each behind its length.
#[derive(Debug, Default)]
pub(crate) struct Pack {
    bytes: Vec<u8>,
}

impl Pack {
    pub(crate) fn push(&mut self, value: &[u8]) {
        u32::try_from(value.len()).expect("a frame is below 4 GiB").put(&mut self.bytes);
        self.bytes.extend_from_slice(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn finish(mut self) -> Packet {
        Packet::from(&mut self.bytes)
    }
}

/// No message has more values than this. What is packed is gathered up to half a MiB, and each
/// value is at least a byte behind a length of four.
const VALUES_MAX: usize = 1 << 17;

/// Takes apart what [`Pack`] has put together; long values are not copied.
///
/// # Errors
///
/// When it makes no sense, and when there are more than [`VALUES_MAX`]: each costs memory beside its
/// bytes.
pub(crate) fn unpack(tail: &Packet) -> Result<Vec<Packet>, Bad> {
    let mut rest: &[u8] = tail;
    let mut values = Vec::new();
    while !rest.is_empty() {
        if values.len() == VALUES_MAX {
            return Err(Bad("more values than one message has".into()));
        }
        let len = u32::get(&mut rest)? as usize;
        let start = tail.len() - rest.len();
        split(&mut rest, len)?;
        values.push(slice(tail, start..start + len));
    }
    Ok(values)
}

fn slice(of: &Packet, range: std::ops::Range<usize>) -> Packet {
    match of {
        // A short part of a long packet would keep all of it.
        Packet::Large(bytes) if range.len() > bytes.len() / 2 => {
            Packet::Large(Bytes::slice(bytes, range))
        }
        _ => Packet::copy_from(&of[range]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fuzz;
    use crate::wire::fuzz::mutate::mutate;

    messages!(Example {
        1 Plain,
        2 Full { number: u64, small: u32, maybe: Option<u32>, yes: bool, wait: Wait, bytes: Packet2 },
    });

    type Packet2 = Bytewise;

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Bytewise(Vec<u8>);

    impl Field for Bytewise {
        fn put(&self, out: &mut Vec<u8>) {
            Packet::copy_from(&self.0).put(out);
        }

        fn get(from: &mut &[u8]) -> Result<Self, Bad> {
            Packet::get(from).map(|packet| Self(packet.to_vec()))
        }

        fn any(rng: &mut Rng) -> Self {
            Self(Packet::any(rng).to_vec())
        }
    }

    #[test]
    fn messages_come_back_and_cut_or_long_ones_are_refused() {
        let messages = [
            Example::Plain,
            Example::Full {
                number: u64::MAX,
                small: 7,
                maybe: Some(3),
                yes: true,
                wait: Wait::Limit(Duration::from_micros(5)),
                bytes: Bytewise(vec![1; 100]),
            },
            Example::Full {
                number: 0,
                small: 0,
                maybe: None,
                yes: false,
                wait: Wait::Ever,
                bytes: Bytewise(vec![]),
            },
        ];
        for message in messages {
            let packet = message.packet();
            assert_eq!(Example::read(&packet), Ok(message));
            for len in 0..packet.len() {
                assert!(Example::read(&packet[..len]).is_err());
            }
            assert!(Example::read(&[&packet[..], &[0]].concat()).is_err());
        }
        for strange in [&[][..], &[0], &[3]] {
            assert!(Example::read(strange).is_err());
        }
    }

    #[test]
    fn a_limit_is_never_cut_short() {
        for nanos in [0, 1, 999, 1_000, 1_001] {
            let mut out = Vec::new();
            Duration::from_nanos(nanos).put(&mut out);
            let read = Duration::get(&mut &out[..]).expect("it is a length of time");
            assert!(
                read >= Duration::from_nanos(nanos) && read < Duration::from_nanos(nanos + 1_000)
            );
        }
        assert_eq!(Wait::Limit(Duration::MAX).until(Instant::now()), None);
    }

    #[test]
    fn packed_values_come_apart_and_a_false_length_is_refused() {
        let values: Vec<Vec<u8>> = vec![vec![], vec![1], vec![2; 1000], vec![3; 40]];
        let mut pack = Pack::default();
        values.iter().for_each(|value| pack.push(value));
        let tail = pack.finish();
        let apart = unpack(&tail).expect("it was packed");
        assert_eq!(apart.iter().map(|packet| packet.to_vec()).collect::<Vec<_>>(), values);
        assert!(unpack(&Packet::copy_from(&tail[..tail.len() - 1])).is_err());
        assert!(unpack(&Packet::copy_from(&[255, 255, 255, 255, 0])).is_err());
    }

    #[test]
    fn a_message_has_a_bounded_number_of_values_however_small_they_are() {
        let mut pack = Pack::default();
        (0..VALUES_MAX).for_each(|_| pack.push(&[]));
        let most = pack.bytes.clone();
        assert_eq!(unpack(&Packet::copy_from(&most)).map(|values| values.len()), Ok(VALUES_MAX));
        pack.push(&[]);
        assert!(unpack(&pack.finish()).is_err());
    }

    #[test]
    fn broken_messages_of_objects_are_refused_or_are_what_they_say() {
        let tally = fuzz::run("objects", 20_000, |rng, tally| {
            let others = [Example::any(rng).packet().to_vec(), vec![2; 40]];
            let mut bytes = Example::any(rng).packet().to_vec();
            if !rng.one_in(20) {
                mutate(&mut bytes, &others, rng);
            }
            match Example::read(&bytes) {
                // A packet of a length is written as it was read, so there is one form only.
                Ok(message) => {
                    assert_eq!(message.packet()[..], bytes[..]);
                    fuzz::count(tally, "read");
                }
                Err(_) => fuzz::count(tally, "refused"),
            }
        });
        assert!(tally.contains_key("read") && tally.contains_key("refused"), "{tally:?}");
    }
}
