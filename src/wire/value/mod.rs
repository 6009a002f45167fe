//! The encoding of one value: MessagePack, with what serde's data model needs on top of it.
//!
//! Arguments and results stand in a frame as values of this encoding. The promise is that a value
//! comes back equal to what was sent. A plain MessagePack encoder breaks it in two places, and both
//! are mended here:
//!
//! * **Options.** `Some(x)` is written as `x`, which is right until `x` is itself written as nil:
//!   then `Some(None)`, `Some(())` and `None` would look the same. In exactly that case (and when
//!   `x` is itself such a `Some`) it is written as the extension [`EXT_SOME`], whose content is
//!   `x`.
//! * **Bytes.** serde has two kinds: a list whose elements are `u8` (`Vec<u8>`, `[u8; 16]`) and a
//!   byte string (`serialize_bytes`, used by `serde_bytes`, `bytes`, `uuid`). A type that is
//!   decoded without knowing what it will meet (`untagged`, `flatten`, tagged enums) has to see the
//!   kind that was sent. Lists of `u8` travel as `bin`, byte strings as the extension
//!   [`EXT_BYTES`]; both cost one byte per byte.
//!
//! # Format
//!
//! | serde                                   | bytes                                                                  |
//! |-----------------------------------------|------------------------------------------------------------------------|
//! | `bool`                                  | `false`, `true`                                                        |
//! | `i8` … `i64`, `u8` … `u64`              | the shortest integer; one that is not negative is written as unsigned  |
//! | `i128`                                  | `fixext 16`, type [`EXT_I128`], big-endian                             |
//! | `u128`                                  | `fixext 16`, type [`EXT_U128`], big-endian                             |
//! | `f32`, `f64`                            | `float 32`, `float 64`, every bit kept                                 |
//! | `char`, `str`                           | `str`                                                                  |
//! | `bytes`                                 | ext, type [`EXT_BYTES`]                                                |
//! | `()`, unit struct, `None`               | nil                                                                    |
//! | `Some(x)`                               | `x`; if `x` is nil or such an ext itself, ext, type [`EXT_SOME`]       |
//! | newtype struct                          | its content; with a [reserved name](NAMED), ext, type [`EXT_NAMED`]    |
//! | sequence, tuple                         | `bin` if it has elements and each is a `u8`, else array                |
//! | tuple struct                            | array                                                                  |
//! | map                                     | map                                                                    |
//! | struct                                  | map from field name to value; a skipped field is absent                |
//! | unit variant                            | `str`, its name                                                        |
//! | newtype, tuple, struct variant          | map of one entry, from its name to its content                         |
//!
//! Encoding and decoding nest at most [`DEPTH_MAX`] deep. Arrays, maps, `Some` and newtype structs
//! each count one level; the last two cost no bytes, but without counting them a recursive type
//! could be decoded without end.

mod de;
mod error;
pub(crate) mod names;
mod ser;
#[cfg(test)]
pub(super) mod tests;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::de::Reader;
pub(crate) use self::error::{DecodeError, EncodeError};

/// The names of newtype structs by which a type and a serializer of its own data format understand
/// each other: MessagePack's extensions, and dates and numbers of property lists. To every other
/// serializer they look like their content, and come back as that. So they travel with their name,
/// and a type that decodes without knowing what it will meet is told it in the way that its own
/// format uses.
const NAMED: [&str; 3] = [NEWTYPE, "PLIST-DATE", "PLIST-UID"];

/// The one of [`NAMED`] that is told as a newtype struct; the others are told as variants.
const NEWTYPE: &str = "_ExtStruct";

/// The variant by which CBOR's tags are told to a type that decodes without knowing what it will
/// meet.
const TAGGED: &str = "@@TAGGED@@";

/// The newtype struct by which text in JSON asks for the map in which it is written.
const RAW_JSON: &str = "$serde_json::private::RawValue";

/// How deep a value may be nested, both when it is encoded and when it is decoded.
pub(crate) const DEPTH_MAX: usize = 256;

/// Extension type of a `Some` that would otherwise read as `None`. Its content is what is in the
/// `Some`, one value.
pub(crate) const EXT_SOME: u8 = 1;
/// Extension type of a byte string.
pub(crate) const EXT_BYTES: u8 = 2;
/// Extension type of an `i128`.
pub(crate) const EXT_I128: u8 = 3;
/// Extension type of a `u128`.
pub(crate) const EXT_U128: u8 = 4;

/// Extension type of a newtype struct with one of the names in [`NAMED`]. Its content is two values,
/// the name and the struct's content.
pub(crate) const EXT_NAMED: u8 = 5;

/// Appends `value` to `out`.
///
/// Fails as soon as `out` would become longer than `limit` bytes, counting what was in it before.
/// After an error `out` is as long as it was.
#[inline]
pub(crate) fn encode<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<(), EncodeError> {
    let start = out.len();
    let result = ser::append(value, out, limit);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Reads the one value that `bytes` consist of.
#[inline]
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut reader = Reader::new(bytes);
    let value = reader.next()?;
    reader.finish()?;
    Ok(value)
}
