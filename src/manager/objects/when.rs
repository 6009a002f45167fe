//! The condition on which a value is changed. It makes reading, computing and writing one atomic
//! step, as a compare-and-swap does.

use super::code::Field;
use crate::manager::object::Bad;
#[cfg(test)]
use crate::wire::fuzz::mutate::Rng;
use crate::wire::packet::Packet;

/// The condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    /// There is none.
    Absent,
    /// There is one.
    Present,
    /// It is still the one with this version.
    Version(u64),
    /// Its encoding is this.
    Equals(Packet),
}

impl When {
    /// Whether it holds of this value and its version.
    pub(crate) fn holds(&self, now: Option<(&Packet, u64)>) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => now.is_none(),
            Self::Present => now.is_some(),
            Self::Version(version) => now.is_some_and(|(_, at)| at == *version),
            Self::Equals(value) => now.is_some_and(|(at, _)| at == value),
        }
    }
}

impl Field for When {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Always => out.push(0),
            Self::Absent => out.push(1),
            Self::Present => out.push(2),
            Self::Version(version) => {
                out.push(3);
                version.put(out);
            }
            Self::Equals(value) => {
                out.push(4);
                value.put(out);
            }
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Bad> {
        match u8::get(from)? {
            0 => Ok(Self::Always),
            1 => Ok(Self::Absent),
            2 => Ok(Self::Present),
            3 => u64::get(from).map(Self::Version),
            4 => Packet::get(from).map(Self::Equals),
            other => Err(Bad(format!("no condition: {other}"))),
        }
    }

    #[cfg(test)]
    fn any(rng: &mut Rng) -> Self {
        match rng.below(5) {
            0 => Self::Always,
            1 => Self::Absent,
            2 => Self::Present,
            3 => Self::Version(u64::any(rng)),
            _ => Self::Equals(Packet::any(rng)),
        }
    }
}
