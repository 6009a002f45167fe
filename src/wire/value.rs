//! Values as MessagePack (a stand-in).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a value could not be encoded.
#[derive(Debug)]
#[expect(dead_code, reason = "a stand-in does not look at depth")]
pub(crate) enum EncodeError {
    TooLarge { limit: usize },
    TooDeep,
    Message(String),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { limit } => write!(f, "larger than {limit} bytes"),
            Self::TooDeep => write!(f, "nested too deeply"),
            Self::Message(message) => write!(f, "{message}"),
        }
    }
}

/// Why a value could not be decoded.
#[derive(Debug)]
pub(crate) struct DecodeError(String);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Appends `value` to `out`, by at most `limit` bytes.
pub(crate) fn encode<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<(), EncodeError> {
    let bytes =
        rmp_serde::to_vec(value).map_err(|error| EncodeError::Message(error.to_string()))?;
    if bytes.len() > limit {
        return Err(EncodeError::TooLarge { limit });
    }
    out.extend_from_slice(&bytes);
    Ok(())
}

/// Reads values one after another.
pub(crate) struct Reader<'de> {
    rest: &'de [u8],
}

impl<'de> Reader<'de> {
    pub(crate) fn new(rest: &'de [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn next<T: Deserialize<'de>>(&mut self) -> Result<T, DecodeError> {
        let mut decoder = rmp_serde::Deserializer::new(&mut self.rest);
        T::deserialize(&mut decoder).map_err(|error| DecodeError(error.to_string()))
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.rest {
            [] => Ok(()),
            rest => Err(DecodeError(format!("{} bytes are left over", rest.len()))),
        }
    }
}
