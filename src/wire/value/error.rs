//! Why a value could not be written or read.

use std::fmt::{self, Display};

use super::DEPTH_MAX;

/// Why a value could not be encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EncodeError {
    /// The output would have become longer than allowed.
    TooLarge {
        /// The length in bytes that may not be passed.
        limit: usize,
    },
    /// The value is nested deeper than [`DEPTH_MAX`].
    TooDeep,
    /// The value's own `Serialize` failed, or broke serde's rules.
    Message(String),
}

impl Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { limit } => write!(f, "the value does not fit into {limit} bytes"),
            Self::TooDeep => write!(f, "the value is nested deeper than {DEPTH_MAX} levels"),
            Self::Message(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for EncodeError {}

impl serde::ser::Error for EncodeError {
    #[cold]
    fn custom<T: Display>(text: T) -> Self {
        Self::Message(text.to_string())
    }
}

/// Why bytes could not be decoded, and at which byte (`at`, counted from the start of what the
/// reader was given).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// The bytes end within a value.
    End {
        /// Where more was needed.
        at: usize,
    },
    /// A header claims more than there is.
    Claim {
        /// Where the value with this header begins.
        at: usize,
        /// How many bytes its content takes at least.
        needed: u64,
        /// How many bytes follow the header, without those that what it stands in still needs.
        left: usize,
    },
    /// The value is nested deeper than [`DEPTH_MAX`].
    TooDeep {
        /// Where the level begins that is one too many.
        at: usize,
    },
    /// A byte that no value begins with.
    Marker {
        /// Where it is.
        at: usize,
        /// The byte.
        found: u8,
    },
    /// An extension that this format does not know, or a known one with a wrong length.
    Extension {
        /// Where it begins.
        at: usize,
        /// Its type code.
        code: u8,
        /// The length of its content.
        length: usize,
    },
    /// A string is not UTF-8.
    Utf8 {
        /// Where the first wrong byte is.
        at: usize,
    },
    /// The target type did not take all that an array, a map or a byte list holds.
    Excess {
        /// Where the remainder begins.
        at: usize,
        /// How many elements were not taken.
        count: usize,
    },
    /// Bytes follow the value.
    Trailing {
        /// Where they begin.
        at: usize,
        /// How many there are.
        count: usize,
    },
    /// The target type refused what it was given.
    Message {
        /// Where the value begins that was read last. Absent only while the error is on its way
        /// out.
        at: Option<usize>,
        /// What the type says.
        text: Box<str>,
    },
}

impl DecodeError {
    /// Notes the place of an error that was made by the target type, which does not know it.
    #[cold]
    pub(super) fn located(mut self, place: usize) -> Self {
        if let Self::Message { at: at @ None, .. } = &mut self {
            *at = Some(place);
        }
        self
    }
}

impl Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End { at } => write!(f, "the bytes end within a value, at byte {at}"),
            Self::Claim { at, needed, left } => {
                write!(
                    f,
                    "the header at byte {at} claims at least {needed} bytes of content, {left} are left for it"
                )
            }
            Self::TooDeep { at } => {
                write!(f, "the value is nested deeper than {DEPTH_MAX} levels, at byte {at}")
            }
            Self::Marker { at, found } => {
                write!(f, "no value begins with {found:#04x}, found at byte {at}")
            }
            Self::Extension { at, code, length } => {
                write!(f, "unknown extension of type {code} and length {length} at byte {at}")
            }
            Self::Utf8 { at } => write!(f, "a string is not UTF-8 at byte {at}"),
            Self::Excess { at, count } => {
                write!(f, "{count} more elements than the type takes, from byte {at} on")
            }
            Self::Trailing { at, count } => {
                write!(f, "{count} bytes follow the value, from byte {at} on")
            }
            Self::Message { at: Some(at), text } => write!(f, "{text}, at byte {at}"),
            Self::Message { at: None, text } => f.write_str(text),
        }
    }
}

impl std::error::Error for DecodeError {}

impl serde::de::Error for DecodeError {
    #[cold]
    fn custom<T: Display>(text: T) -> Self {
        Self::Message { at: None, text: text.to_string().into_boxed_str() }
    }
}
