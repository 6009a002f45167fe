//! Reading values.

use std::str;

use serde::de::{self, Deserialize, DeserializeSeed, Error as _, Visitor};
use serde::forward_to_deserialize_any;

use super::{
    DEPTH_MAX, DecodeError, EXT_BYTES, EXT_I128, EXT_NAMED, EXT_SOME, EXT_U128, NEWTYPE, RAW_JSON,
    TAGGED,
};

type Result<T> = std::result::Result<T, DecodeError>;

/// Reads values that stand one after another.
#[derive(Debug)]
pub(crate) struct Reader<'de> {
    input: Decoder<'de>,
}

impl<'de> Reader<'de> {
    /// Reads from the start of `bytes`.
    #[inline]
    pub(crate) fn new(bytes: &'de [u8]) -> Self {
        Self {
            input: Decoder {
                rest: bytes,
                length: bytes.len(),
                begun: bytes.len(),
                owed: 0,
                depth: DEPTH_MAX,
            },
        }
    }

    /// Reads the next value. After an error, what follows cannot be read.
    #[inline]
    pub(crate) fn next<T: Deserialize<'de>>(&mut self) -> Result<T> {
        let result = T::deserialize(&mut self.input);
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(error.located(self.input.length - self.input.begun)),
        }
    }

    /// What has not been read.
    pub(crate) fn rest(&self) -> &'de [u8] {
        self.input.rest
    }

    /// Makes sure that nothing is left.
    #[inline]
    pub(crate) fn finish(self) -> Result<()> {
        match self.input.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { at: self.input.at(), count }),
        }
    }
}

/// What a type asked for, as far as it changes what it is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hint {
    /// Nothing: it is to be told exactly what was sent.
    Any,
    /// A scalar, a string or a map.
    Typed,
    /// An integer.
    Integer,
    /// A byte string.
    Bytes,
    /// A list.
    List,
}

/// The part of the input that was not read yet.
#[derive(Debug)]
pub(super) struct Decoder<'de> {
    rest: &'de [u8],
    /// The length of the whole input.
    length: usize,
    /// How many bytes were left at the beginning of the value that was begun last.
    begun: usize,
    /// How many bytes the open arrays and maps need at least for what they still have to come. No
    /// header may claim these: else each of many within each other could claim, and be given
    /// room for, all that is left.
    owed: usize,
    /// How many levels may still be opened.
    depth: usize,
}

impl<'de> Decoder<'de> {
    /// The offset of the first byte that was not read.
    #[inline]
    fn at(&self) -> usize {
        self.length - self.rest.len()
    }

    #[cold]
    fn end(&self) -> DecodeError {
        DecodeError::End { at: self.length }
    }

    #[inline]
    fn peek(&self) -> Result<u8> {
        self.rest.first().copied().ok_or_else(|| self.end())
    }

    /// Reads the byte that a value begins with.
    #[inline]
    fn marker(&mut self) -> Result<u8> {
        self.begun = self.rest.len();
        let [byte] = self.fixed()?;
        Ok(byte)
    }

    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(*bytes)
            }
            None => Err(self.end()),
        }
    }

    /// Reads a length of `width` bytes: 1, 2 or 4.
    #[inline]
    fn length(&mut self, width: usize) -> Result<usize> {
        Ok(match width {
            1 => u8::from_be_bytes(self.fixed()?).into(),
            2 => u16::from_be_bytes(self.fixed()?).into(),
            _ => u32::from_be_bytes(self.fixed()?) as usize,
        })
    }

    #[cold]
    fn claim(&self, needed: u64) -> DecodeError {
        DecodeError::Claim {
            at: self.length - self.begun,
            needed,
            left: self.rest.len().saturating_sub(self.owed),
        }
    }

    /// Makes sure that `count` entries of at least `each` bytes can follow.
    #[inline]
    fn check(&self, count: usize, each: u64) -> Result<()> {
        let needed = count as u64 * each;
        // More may be owed than there is: a string has taken it, and what it was owed to will find
        // nothing.
        if needed > self.rest.len().saturating_sub(self.owed) as u64 {
            Err(self.claim(needed))
        } else {
            Ok(())
        }
    }

    #[inline]
    fn take(&mut self, count: usize) -> Result<&'de [u8]> {
        match self.rest.split_at_checked(count) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(self.claim(count as u64)),
        }
    }

    #[inline]
    fn enter(&mut self) -> Result<()> {
        match self.depth.checked_sub(1) {
            Some(depth) => {
                self.depth = depth;
                Ok(())
            }
            None => Err(DecodeError::TooDeep { at: self.length - self.begun }),
        }
    }

    #[cold]
    fn excess(&self, count: usize) -> DecodeError {
        DecodeError::Excess { at: self.at(), count }
    }

    /// If a marked `Some` comes, reads it and gives its content, which is to be read by
    /// [`inside`](Self::inside).
    #[inline]
    fn some_if(&mut self) -> Result<Option<&'de [u8]>> {
        match self.rest {
            [0xc7..=0xc9 | 0xd4..=0xd8, ..] => self.some_if_extension(),
            _ => Ok(None),
        }
    }

    fn some_if_extension(&mut self) -> Result<Option<&'de [u8]>> {
        let before = self.rest;
        let marker = self.marker()?;
        if let (EXT_SOME, content) = self.extension(marker)? {
            return Ok(Some(content));
        }
        self.rest = before;
        Ok(None)
    }

    /// Reads the one value that the content of a marked `Some` is.
    fn inside<T>(
        &mut self,
        content: &'de [u8],
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.enter()?;
        let mut inside = Decoder {
            rest: content,
            length: self.at(),
            begun: content.len(),
            owed: 0,
            depth: self.depth,
        };
        let result = read(&mut inside);
        let left = inside.rest.len();
        self.depth += 1;
        if left != 0 && result.is_ok() {
            return Err(DecodeError::Trailing { at: self.at() - left, count: left });
        }
        result
    }

    /// If a newtype struct comes that is written with this name, reads it and gives the name and the
    /// content, which are to be read by [`inside`](Self::inside).
    #[inline]
    fn named_if(&mut self, name: &str) -> Result<Option<&'de [u8]>> {
        match self.rest {
            [0xc7..=0xc9 | 0xd4..=0xd8, ..] => self.named_if_extension(name),
            _ => Ok(None),
        }
    }

    fn named_if_extension(&mut self, name: &str) -> Result<Option<&'de [u8]>> {
        let before = self.rest;
        let marker = self.marker()?;
        if let (EXT_NAMED, content) = self.extension(marker)?
            && Reader::new(content).input.name()? == name
        {
            return Ok(Some(content));
        }
        self.rest = before;
        Ok(None)
    }

    /// Reads the name of a newtype struct.
    fn name(&mut self) -> Result<&'de str> {
        self.text_if()?.ok_or_else(|| DecodeError::custom("a named value has no name"))
    }

    /// Reads the name and the content of a newtype struct that is written with its name.
    fn named<V: Visitor<'de>>(&mut self, hint: Hint, visitor: V) -> Result<V::Value> {
        let before = self.rest;
        let name = self.name()?;
        match (hint, name) {
            (Hint::Any, NEWTYPE) => visitor.visit_newtype_struct(self),
            (Hint::Any, _) => {
                self.rest = before;
                visitor.visit_enum(Variant { input: self })
            }
            _ => self.any(hint, visitor),
        }
    }

    #[inline]
    fn text(&mut self, count: usize) -> Result<&'de str> {
        let bytes = self.take(count)?;
        match str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(error) => Err(DecodeError::Utf8 { at: self.at() - count + error.valid_up_to() }),
        }
    }

    /// If a string comes, reads it.
    #[inline]
    fn text_if(&mut self) -> Result<Option<&'de str>> {
        let marker = self.peek()?;
        let width = match marker {
            0xa0..=0xbf => 0,
            0xd9 => 1,
            0xda => 2,
            0xdb => 4,
            _ => return Ok(None),
        };
        self.marker()?;
        let count = if width == 0 { usize::from(marker & 0x1f) } else { self.length(width)? };
        self.text(count).map(Some)
    }

    /// Reads the rest of an extension's header, and its content.
    fn extension(&mut self, marker: u8) -> Result<(u8, &'de [u8])> {
        let count = match marker {
            0xd4..=0xd8 => 1 << (marker - 0xd4),
            _ => self.length(1 << (marker - 0xc7))?,
        };
        let [code] = self.fixed()?;
        Ok((code, self.take(count)?))
    }

    #[cold]
    fn unknown(&self, code: u8, content: &[u8]) -> DecodeError {
        DecodeError::Extension { at: self.length - self.begun, code, length: content.len() }
    }

    #[inline]
    fn array<V: Visitor<'de>>(&mut self, count: usize, visitor: V) -> Result<V::Value> {
        self.check(count, 1)?;
        self.enter()?;
        let owed = self.owed;
        self.owed += count;
        let mut elements = Elements { input: self, left: count };
        let result = visitor.visit_seq(&mut elements);
        let left = elements.left;
        self.owed = owed;
        self.depth += 1;
        if left != 0 && result.is_ok() {
            return Err(self.excess(left));
        }
        result
    }

    #[inline]
    fn map<V: Visitor<'de>>(&mut self, count: usize, visitor: V) -> Result<V::Value> {
        self.check(count, 2)?;
        self.enter()?;
        let owed = self.owed;
        self.owed += count * 2; // no more than there is, so it does not overflow
        let mut entries = Entries { input: self, halves: count * 2 };
        let result = visitor.visit_map(&mut entries);
        let left = entries.halves;
        self.owed = owed;
        self.depth += 1;
        if left != 0 && result.is_ok() {
            return Err(self.excess(left.div_ceil(2)));
        }
        result
    }

    /// Hands `bytes`, just read, over as a list of `u8`.
    #[inline]
    fn list<V: Visitor<'de>>(&mut self, bytes: &'de [u8], visitor: V) -> Result<V::Value> {
        self.enter()?;
        let mut list = ByteList { bytes: bytes.iter(), end: self.at(), depth: self.depth };
        let result = visitor.visit_seq(&mut list);
        let left = list.bytes.len();
        self.depth += 1;
        if left != 0 && result.is_ok() {
            return Err(DecodeError::Excess { at: self.at() - left, count: left });
        }
        result
    }

    /// An array where a byte string is asked for: if its elements are all small enough, that is
    /// what they are.
    fn array_of_bytes(&mut self, count: usize) -> Result<Option<Vec<u8>>> {
        self.check(count, 1)?;
        let before = self.rest;
        let mut bytes = Vec::with_capacity(count);
        for _ in 0..count {
            match *self.rest {
                [byte @ 0..=0x7f, ref rest @ ..] | [0xcc, byte, ref rest @ ..] => {
                    bytes.push(byte);
                    self.rest = rest;
                }
                _ => {
                    self.rest = before;
                    return Ok(None);
                }
            }
        }
        Ok(Some(bytes))
    }

    fn bin<V: Visitor<'de>>(&mut self, width: usize, hint: Hint, visitor: V) -> Result<V::Value> {
        let count = self.length(width)?;
        let bytes = self.take(count)?;
        if hint == Hint::Bytes {
            visitor.visit_borrowed_bytes(bytes)
        } else {
            self.list(bytes, visitor)
        }
    }

    fn array_as<V: Visitor<'de>>(
        &mut self,
        count: usize,
        hint: Hint,
        visitor: V,
    ) -> Result<V::Value> {
        if hint == Hint::Bytes
            && let Some(bytes) = self.array_of_bytes(count)?
        {
            return visitor.visit_byte_buf(bytes);
        }
        self.array(count, visitor)
    }

    fn extended<V: Visitor<'de>>(
        &mut self,
        marker: u8,
        hint: Hint,
        visitor: V,
    ) -> Result<V::Value> {
        let (code, content) = self.extension(marker)?;
        match (code, content.len(), hint) {
            (EXT_SOME, _, Hint::Any) => self.inside(content, |inside| visitor.visit_some(inside)),
            // A type that is no option is given what is in it.
            (EXT_SOME, ..) => self.inside(content, |inside| inside.any(hint, visitor)),
            (EXT_NAMED, ..) => self.inside(content, |inside| inside.named(hint, visitor)),
            (EXT_BYTES, _, Hint::List) => self.list(content, visitor),
            (EXT_BYTES, ..) => visitor.visit_borrowed_bytes(content),
            (EXT_I128 | EXT_U128, 16, Hint::Integer) => {
                Wide::from_bytes(code == EXT_I128, content).visit_shortest(visitor)
            }
            (EXT_I128 | EXT_U128, 16, _) => visitor.visit_borrowed_bytes(content),
            _ => Err(self.unknown(code, content)),
        }
    }

    fn any<V: Visitor<'de>>(&mut self, hint: Hint, visitor: V) -> Result<V::Value> {
        let marker = self.marker()?;
        match marker {
            0x00..=0x7f => visitor.visit_u8(marker),
            0x81 if hint == Hint::Any && self.is_tagged() => self.variant(visitor),
            0x80..=0x8f => self.map(usize::from(marker & 0x0f), visitor),
            0x90..=0x9f => self.array_as(usize::from(marker & 0x0f), hint, visitor),
            0xa0..=0xbf => visitor.visit_borrowed_str(self.text(usize::from(marker & 0x1f))?),
            0xc0 => visitor.visit_unit(),
            0xc1 => Err(DecodeError::Marker { at: self.length - self.begun, found: marker }),
            0xc2 | 0xc3 => visitor.visit_bool(marker == 0xc3),
            0xc4..=0xc6 => self.bin(1 << (marker - 0xc4), hint, visitor),
            0xc7..=0xc9 | 0xd4..=0xd8 => self.extended(marker, hint, visitor),
            0xca => visitor.visit_f32(f32::from_bits(u32::from_be_bytes(self.fixed()?))),
            0xcb => visitor.visit_f64(f64::from_bits(u64::from_be_bytes(self.fixed()?))),
            0xcc => visitor.visit_u8(u8::from_be_bytes(self.fixed()?)),
            0xcd => visitor.visit_u16(u16::from_be_bytes(self.fixed()?)),
            0xce => visitor.visit_u32(u32::from_be_bytes(self.fixed()?)),
            0xcf => visitor.visit_u64(u64::from_be_bytes(self.fixed()?)),
            0xd0 => visitor.visit_i8(i8::from_be_bytes(self.fixed()?)),
            0xd1 => visitor.visit_i16(i16::from_be_bytes(self.fixed()?)),
            0xd2 => visitor.visit_i32(i32::from_be_bytes(self.fixed()?)),
            0xd3 => visitor.visit_i64(i64::from_be_bytes(self.fixed()?)),
            0xd9..=0xdb => {
                let count = self.length(1 << (marker - 0xd9))?;
                visitor.visit_borrowed_str(self.text(count)?)
            }
            0xdc | 0xdd => {
                let count = self.length(2 << (marker - 0xdc))?;
                self.array_as(count, hint, visitor)
            }
            0xde | 0xdf => {
                let count = self.length(2 << (marker - 0xde))?;
                self.map(count, visitor)
            }
            0xe0..=0xff => visitor.visit_i8(marker as i8),
        }
    }

    /// Reads an integer. The forms in which this crate writes unsigned ones are told apart by one
    /// match on a slice that is long enough; everything else goes the long way.
    #[inline]
    fn integer<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value> {
        match *self.rest {
            [byte @ 0..=0x7f, ref rest @ ..] => {
                self.begun = self.rest.len();
                self.rest = rest;
                visitor.visit_u8(byte)
            }
            [0xcc, a, ref rest @ ..] => {
                self.begun = self.rest.len();
                self.rest = rest;
                visitor.visit_u8(a)
            }
            [0xcd, a, b, ref rest @ ..] => {
                self.begun = self.rest.len();
                self.rest = rest;
                visitor.visit_u16(u16::from_be_bytes([a, b]))
            }
            [0xce, a, b, c, d, ref rest @ ..] => {
                self.begun = self.rest.len();
                self.rest = rest;
                visitor.visit_u32(u32::from_be_bytes([a, b, c, d]))
            }
            [0xcf, a, b, c, d, e, f, g, h, ref rest @ ..] => {
                self.begun = self.rest.len();
                self.rest = rest;
                visitor.visit_u64(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
            _ => self.any(Hint::Integer, visitor),
        }
    }

    /// Reads an integer of any width, if one comes. A string of 16 bytes is one as well:
    /// MessagePack itself has no integers of 128 bits, and other encoders write them so.
    fn wide(&mut self, signed: bool) -> Result<Option<Wide>> {
        if let Some(content) = self.some_if()? {
            return self.inside(content, |inside| inside.wide(signed));
        }
        let before = self.rest;
        let marker = self.marker()?;
        Ok(Some(match marker {
            0x00..=0x7f => Wide::Unsigned(marker.into()),
            0xcc => Wide::Unsigned(u8::from_be_bytes(self.fixed()?).into()),
            0xcd => Wide::Unsigned(u16::from_be_bytes(self.fixed()?).into()),
            0xce => Wide::Unsigned(u32::from_be_bytes(self.fixed()?).into()),
            0xcf => Wide::Unsigned(u64::from_be_bytes(self.fixed()?).into()),
            0xd0 => Wide::Signed(i8::from_be_bytes(self.fixed()?).into()),
            0xd1 => Wide::Signed(i16::from_be_bytes(self.fixed()?).into()),
            0xd2 => Wide::Signed(i32::from_be_bytes(self.fixed()?).into()),
            0xd3 => Wide::Signed(i64::from_be_bytes(self.fixed()?).into()),
            0xe0..=0xff => Wide::Signed((marker as i8).into()),
            0xc4 if self.rest.first() == Some(&16) => {
                self.fixed::<1>()?;
                Wide::from_bytes(signed, self.take(16)?)
            }
            0xc7..=0xc9 | 0xd4..=0xd8 => match self.extension(marker)? {
                (EXT_I128, content) if content.len() == 16 => Wide::from_bytes(true, content),
                (EXT_U128, content) if content.len() == 16 => Wide::from_bytes(false, content),
                (EXT_BYTES, content) if content.len() == 16 => Wide::from_bytes(signed, content),
                _ => {
                    self.rest = before;
                    return Ok(None);
                }
            },
            _ => {
                self.rest = before;
                return Ok(None);
            }
        }))
    }

    /// Reads past one value.
    fn skip(&mut self) -> Result<()> {
        let marker = self.marker()?;
        let (count, each) = match marker {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => return Ok(()),
            0xc1 => {
                return Err(DecodeError::Marker { at: self.length - self.begun, found: marker });
            }
            0xcc | 0xd0 => return self.take(1).map(drop),
            0xcd | 0xd1 => return self.take(2).map(drop),
            0xca | 0xce | 0xd2 => return self.take(4).map(drop),
            0xcb | 0xcf | 0xd3 => return self.take(8).map(drop),
            0xa0..=0xbf => return self.take(usize::from(marker & 0x1f)).map(drop),
            0xc4..=0xc6 | 0xd9..=0xdb => {
                let width = if marker < 0xd9 { marker - 0xc4 } else { marker - 0xd9 };
                let count = self.length(1 << width)?;
                return self.take(count).map(drop);
            }
            0xc7..=0xc9 | 0xd4..=0xd8 => return self.extension(marker).map(drop),
            0x90..=0x9f => (usize::from(marker & 0x0f), 1),
            0x80..=0x8f => (usize::from(marker & 0x0f), 2),
            0xdc | 0xdd => (self.length(2 << (marker - 0xdc))?, 1),
            0xde | 0xdf => (self.length(2 << (marker - 0xde))?, 2),
        };
        self.check(count, each)?;
        self.enter()?;
        for _ in 0..count as u64 * each {
            self.skip()?;
        }
        self.depth += 1;
        Ok(())
    }

    /// The number of entries, if a map comes.
    fn map_if(&mut self) -> Result<Option<usize>> {
        let marker = self.peek()?;
        match marker {
            0x80..=0x8f => {
                self.marker()?;
                Ok(Some(usize::from(marker & 0x0f)))
            }
            0xde | 0xdf => {
                self.marker()?;
                self.length(2 << (marker - 0xde)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The rest of a map of one entry is one of CBOR's tags.
    fn is_tagged(&self) -> bool {
        const { assert!(TAGGED.len() < 0x20) };
        matches!(self.rest, [head, rest @ ..] if *head == 0xa0 | TAGGED.len() as u8
            && rest.starts_with(TAGGED.as_bytes()))
    }

    /// The entry of a map that is a variant with content.
    fn variant<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value> {
        self.check(1, 2)?;
        self.enter()?;
        let result = visitor.visit_enum(Variant { input: &mut *self });
        self.depth += 1;
        result
    }

    /// The number of elements, if an array comes.
    fn array_if(&mut self) -> Result<Option<usize>> {
        let marker = self.peek()?;
        match marker {
            0x90..=0x9f => {
                self.marker()?;
                Ok(Some(usize::from(marker & 0x0f)))
            }
            0xdc | 0xdd => {
                self.marker()?;
                self.length(2 << (marker - 0xdc)).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// An integer of whatever width.
#[derive(Clone, Copy)]
enum Wide {
    Signed(i128),
    Unsigned(u128),
}

impl Wide {
    /// From 16 bytes.
    fn from_bytes(signed: bool, bytes: &[u8]) -> Self {
        let value = bytes.iter().fold(0, |value, &byte| value << 8 | u128::from(byte));
        if signed { Self::Signed(value as i128) } else { Self::Unsigned(value) }
    }

    /// For a type that asked for an integer of at most 64 bits.
    fn visit_shortest<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let (unsigned, signed) = match self {
            Self::Unsigned(value) => (u64::try_from(value).ok(), None),
            Self::Signed(value) => (u64::try_from(value).ok(), i64::try_from(value).ok()),
        };
        match (unsigned, signed, self) {
            (Some(value), ..) => visitor.visit_u64(value),
            (_, Some(value), _) => visitor.visit_i64(value),
            (.., Self::Unsigned(value)) => visitor.visit_u128(value),
            (.., Self::Signed(value)) => visitor.visit_i128(value),
        }
    }

    /// For a type that asked for an integer of 128 bits.
    fn visit<'de, V: Visitor<'de>>(self, signed: bool, visitor: V) -> Result<V::Value> {
        match self {
            Self::Signed(value) if signed => visitor.visit_i128(value),
            Self::Unsigned(value) if !signed => visitor.visit_u128(value),
            Self::Signed(value) => match u128::try_from(value) {
                Ok(value) => visitor.visit_u128(value),
                Err(_) => Err(out_of_range(value, "u128")),
            },
            Self::Unsigned(value) => match i128::try_from(value) {
                Ok(value) => visitor.visit_i128(value),
                Err(_) => Err(out_of_range(value, "i128")),
            },
        }
    }
}

#[cold]
fn out_of_range(value: impl std::fmt::Display, expected: &str) -> DecodeError {
    DecodeError::custom(format_args!("invalid value: integer `{value}`, expected {expected}"))
}

impl<'de> de::Deserializer<'de> for &mut Decoder<'de> {
    type Error = DecodeError;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.any(Hint::Any, visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.any(Hint::Typed, visitor)
    }

    #[inline]
    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.integer(visitor)
    }

    #[inline]
    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.integer(visitor)
    }

    #[inline]
    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.integer(visitor)
    }

    #[inline]
    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.integer(visitor)
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.wide(true)? {
            Some(value) => value.visit(true, visitor),
            None => self.any(Hint::Typed, visitor),
        }
    }

    #[inline]
    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.integer(visitor)
    }

    #[inline]
    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.integer(visitor)
    }

    #[inline]
    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.integer(visitor)
    }

    #[inline]
    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.integer(visitor)
    }

    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.wide(false)? {
            Some(value) => value.visit(false, visitor),
            None => self.any(Hint::Typed, visitor),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.any(Hint::Typed, visitor)
    }

    #[inline]
    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match *self.rest {
            [0xcb, a, b, c, d, e, f, g, h, ref rest @ ..] => {
                self.begun = self.rest.len();
                self.rest = rest;
                visitor.visit_f64(f64::from_bits(u64::from_be_bytes([a, b, c, d, e, f, g, h])))
            }
            _ => self.any(Hint::Typed, visitor),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    #[inline]
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.text_if()? {
            Some(text) => visitor.visit_borrowed_str(text),
            None => self.any(Hint::Typed, visitor),
        }
    }

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.any(Hint::Bytes, visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.any(Hint::Bytes, visitor)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        if let [0xc0, rest @ ..] = self.rest {
            self.begun = self.rest.len();
            self.rest = rest;
            return visitor.visit_none();
        }
        if let Some(content) = self.some_if()? {
            return self.inside(content, |inside| visitor.visit_some(inside));
        }
        self.enter()?;
        let result = visitor.visit_some(&mut *self);
        self.depth += 1;
        result
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.any(Hint::Typed, visitor)
    }

    /// An empty array will do as well; other encoders write one.
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        if self.rest.first() == Some(&0x90) {
            self.marker()?;
            return visitor.visit_unit();
        }
        self.any(Hint::Typed, visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        if let Some(content) = self.named_if(name)? {
            return self.inside(content, |inside| {
                inside.name()?;
                visitor.visit_newtype_struct(inside)
            });
        }
        if name == RAW_JSON {
            return self.deserialize_map(visitor);
        }
        self.enter()?;
        let result = visitor.visit_newtype_struct(&mut *self);
        self.depth += 1;
        result
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.array_if()? {
            Some(count) => self.array(count, visitor),
            None => self.any(Hint::List, visitor),
        }
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, _length: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _length: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.map_if()? {
            Some(count) => self.map(count, visitor),
            None => self.any(Hint::Typed, visitor),
        }
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        match self.map_if()? {
            Some(count) => self.map(count, visitor),
            None => self.any(Hint::List, visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        if let Some(content) = self.some_if()? {
            return self.inside(content, |inside| inside.deserialize_enum(name, variants, visitor));
        }
        match self.map_if()? {
            None => visitor.visit_enum(Unit { input: self }),
            Some(1) => self.variant(visitor),
            Some(count) => {
                Err(DecodeError::invalid_length(count, &"a map of one entry for a variant"))
            }
        }
    }

    #[inline]
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.skip()?;
        visitor.visit_unit()
    }
}

/// The elements of an array.
struct Elements<'a, 'de> {
    input: &'a mut Decoder<'de>,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for &mut Elements<'_, 'de> {
    type Error = DecodeError;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.input.owed -= 1;
        seed.deserialize(&mut *self.input).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left.min(self.input.rest.len()))
    }
}

/// The entries of a map.
struct Entries<'a, 'de> {
    input: &'a mut Decoder<'de>,
    /// How many keys and values are left.
    halves: usize,
}

#[cold]
fn out_of_order() -> DecodeError {
    DecodeError::custom("the type asks for a map's keys and values out of order")
}

impl<'de> de::MapAccess<'de> for &mut Entries<'_, 'de> {
    type Error = DecodeError;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        if self.halves == 0 {
            return Ok(None);
        }
        if self.halves & 1 != 0 {
            return Err(out_of_order());
        }
        self.halves -= 1;
        self.input.owed -= 1;
        seed.deserialize(&mut *self.input).map(Some)
    }

    #[inline]
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value> {
        if self.halves & 1 == 0 {
            return Err(out_of_order());
        }
        self.halves -= 1;
        self.input.owed -= 1;
        seed.deserialize(&mut *self.input)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some((self.halves / 2).min(self.input.rest.len() / 2))
    }
}

/// A variant without content: just its name (or, from other encoders, its index).
struct Unit<'a, 'de> {
    input: &'a mut Decoder<'de>,
}

/// Says that there is no content.
struct NoContent;

impl<'de> de::EnumAccess<'de> for Unit<'_, 'de> {
    type Error = DecodeError;
    type Variant = NoContent;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, NoContent)> {
        Ok((seed.deserialize(self.input)?, NoContent))
    }
}

impl NoContent {
    #[cold]
    fn error(expected: &str) -> DecodeError {
        DecodeError::invalid_type(de::Unexpected::UnitVariant, &expected)
    }
}

impl<'de> de::VariantAccess<'de> for NoContent {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<()> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value> {
        Err(Self::error("newtype variant"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, _visitor: V) -> Result<V::Value> {
        Err(Self::error("tuple variant"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value> {
        Err(Self::error("struct variant"))
    }
}

/// A variant with content.
struct Variant<'a, 'de> {
    input: &'a mut Decoder<'de>,
}

impl<'de> de::EnumAccess<'de> for Variant<'_, 'de> {
    type Error = DecodeError;
    type Variant = Self;

    #[inline]
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self)> {
        Ok((seed.deserialize(&mut *self.input)?, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_, 'de> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<()> {
        Deserialize::deserialize(self.input)
    }

    #[inline]
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value> {
        seed.deserialize(self.input)
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value> {
        de::Deserializer::deserialize_tuple(self.input, length, visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        de::Deserializer::deserialize_struct(self.input, "", fields, visitor)
    }
}

/// The elements of a byte list.
struct ByteList<'de> {
    bytes: std::slice::Iter<'de, u8>,
    /// The offset of its end.
    end: usize,
    depth: usize,
}

impl<'de> de::SeqAccess<'de> for &mut ByteList<'de> {
    type Error = DecodeError;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        match self.bytes.next() {
            Some(&value) => seed
                .deserialize(Byte { value, at: self.end - self.bytes.len() - 1, depth: self.depth })
                .map(Some),
            None => Ok(None),
        }
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.bytes.len())
    }
}

/// One of them.
struct Byte {
    value: u8,
    at: usize,
    depth: usize,
}

impl Byte {
    #[inline]
    fn deeper(self) -> Result<Self> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth, ..self }),
            None => Err(DecodeError::TooDeep { at: self.at }),
        }
    }
}

impl<'de> de::Deserializer<'de> for Byte {
    type Error = DecodeError;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_u8(self.value)
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_i128(self.value.into())
    }

    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_u128(self.value.into())
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_some(self.deeper()?)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_newtype_struct(self.deeper()?)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_enum(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

impl<'de> de::EnumAccess<'de> for Byte {
    type Error = DecodeError;
    type Variant = NoContent;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, NoContent)> {
        Ok((seed.deserialize(self)?, NoContent))
    }
}
