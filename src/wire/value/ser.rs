//! Writing values.

use serde::ser::{
    self, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant,
};

use super::{
    DEPTH_MAX, EXT_BYTES, EXT_I128, EXT_NAMED, EXT_SOME, EXT_U128, EncodeError, NAMED, names,
};

type Result<T = ()> = std::result::Result<T, EncodeError>;

/// How much room is made at most for a byte list because of the length it announces.
const RESERVE_MAX: usize = 16 << 20;

/// The greatest length that a header is first written for. What a value announces need not be true.
const DECLARED_MAX: usize = u32::MAX as usize;

/// Appends `value` to `out`; after an error `out` may end in a part of it.
#[inline]
pub(super) fn append<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>, limit: usize) -> Result {
    let mut output = Output { bytes: out, limit, depth: DEPTH_MAX, failed: false };
    value.serialize(Serializer { output: &mut output, list: None })?;
    if output.failed { Err(passed_over()) } else { Ok(()) }
}

#[cold]
fn passed_over() -> EncodeError {
    EncodeError::Message(
        "a part of the value failed to serialize, and the whole passed over it".into(),
    )
}

/// Where the bytes go.
struct Output<'o> {
    bytes: &'o mut Vec<u8>,
    limit: usize,
    /// How many levels may still be opened.
    depth: usize,
    /// An element failed. `Serialize` may have dropped that error, but half of the element may be
    /// in the output.
    failed: bool,
}

impl Output<'_> {
    #[inline]
    fn room(&self, count: usize) -> Result {
        // Neither sum overflows: a `Vec` or slice is at most `isize::MAX` long.
        if self.bytes.len() + count > self.limit { Err(self.too_large()) } else { Ok(()) }
    }

    #[cold]
    fn too_large(&self) -> EncodeError {
        EncodeError::TooLarge { limit: self.limit }
    }

    #[inline]
    fn byte(&mut self, byte: u8) -> Result {
        self.room(1)?;
        self.bytes.push(byte);
        Ok(())
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result {
        self.room(bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// A marker byte and the fixed number of bytes behind it.
    #[inline]
    fn marked<const N: usize, const M: usize>(&mut self, marker: u8, content: [u8; N]) -> Result {
        const { assert!(M == N + 1) };
        let mut bytes = [0; M];
        bytes[0] = marker;
        bytes[1..].copy_from_slice(&content);
        self.put(&bytes)
    }

    #[inline]
    fn unsigned(&mut self, value: u64) -> Result {
        if value < 0x80 {
            self.byte(value as u8)
        } else if value <= 0xff {
            self.put(&[0xcc, value as u8])
        } else if value <= 0xffff {
            self.marked::<2, 3>(0xcd, (value as u16).to_be_bytes())
        } else if value <= 0xffff_ffff {
            self.marked::<4, 5>(0xce, (value as u32).to_be_bytes())
        } else {
            self.marked::<8, 9>(0xcf, value.to_be_bytes())
        }
    }

    #[inline]
    fn signed(&mut self, value: i64) -> Result {
        if value >= 0 {
            self.unsigned(value as u64)
        } else if value >= -0x20 {
            self.byte(value as u8)
        } else if value >= i64::from(i8::MIN) {
            self.put(&[0xd0, value as u8])
        } else if value >= i64::from(i16::MIN) {
            self.marked::<2, 3>(0xd1, (value as i16).to_be_bytes())
        } else if value >= i64::from(i32::MIN) {
            self.marked::<4, 5>(0xd2, (value as i32).to_be_bytes())
        } else {
            self.marked::<8, 9>(0xd3, value.to_be_bytes())
        }
    }

    #[inline]
    fn str(&mut self, text: &str) -> Result {
        self.room(text.len())?;
        let length = text.len();
        if length < 0x20 {
            self.byte(0xa0 | length as u8)?;
        } else if length <= 0xff {
            self.put(&[0xd9, length as u8])?;
        } else {
            self.long_header(0xda, length)?;
        }
        self.put(text.as_bytes())
    }

    /// A header with two or four bytes of length; `marker` is that of the shorter one, the longer
    /// one's is the next.
    #[cold]
    fn long_header(&mut self, marker: u8, length: usize) -> Result {
        if let Ok(length) = u16::try_from(length) {
            self.marked::<2, 3>(marker, length.to_be_bytes())
        } else if let Ok(length) = u32::try_from(length) {
            self.marked::<4, 5>(marker + 1, length.to_be_bytes())
        } else {
            Err(EncodeError::TooLarge { limit: self.limit.min(u32::MAX as usize) })
        }
    }

    fn byte_string(&mut self, bytes: &[u8]) -> Result {
        self.room(bytes.len())?;
        let length = bytes.len();
        match length {
            1 => self.put(&[0xd4, EXT_BYTES])?,
            2 => self.put(&[0xd5, EXT_BYTES])?,
            4 => self.put(&[0xd6, EXT_BYTES])?,
            8 => self.put(&[0xd7, EXT_BYTES])?,
            16 => self.put(&[0xd8, EXT_BYTES])?,
            0..=0xff => self.put(&[0xc7, length as u8, EXT_BYTES])?,
            _ => {
                self.long_header(0xc8, length)?;
                self.byte(EXT_BYTES)?;
            }
        }
        self.put(bytes)
    }

    #[inline]
    fn header(&mut self, kind: Kind, length: usize) -> Result {
        match kind {
            Kind::Array if length < 16 => self.byte(0x90 | length as u8),
            Kind::Array => self.long_header(0xdc, length),
            Kind::Map if length < 16 => self.byte(0x80 | length as u8),
            Kind::Map => self.long_header(0xde, length),
            Kind::Bytes if length <= 0xff => self.put(&[0xc4, length as u8]),
            Kind::Bytes => self.long_header(0xc5, length),
        }
    }

    /// Replaces the header at `start`, written for `declared` entries, by one for `count`.
    #[cold]
    fn correct(&mut self, start: usize, kind: Kind, declared: usize, count: usize) -> Result {
        let mut bytes = Vec::new();
        Output { bytes: &mut bytes, limit: self.limit, depth: 0, failed: false }
            .header(kind, count)?;
        let old = kind.header_length(declared);
        self.room(bytes.len().saturating_sub(old))?;
        self.bytes.splice(start..start + old, bytes);
        Ok(())
    }

    #[inline]
    fn enter(&mut self) -> Result {
        self.depth = self.depth.checked_sub(1).ok_or(EncodeError::TooDeep)?;
        Ok(())
    }

    #[inline]
    fn leave(&mut self) {
        self.depth += 1;
    }

    /// Marks a `Some` whose content, from `start` on, would be read as `None`, or as that content's
    /// own content.
    #[inline]
    fn mark_some(&mut self, start: usize) -> Result {
        match self.bytes.get(start) {
            Some(0xc0 | 0xc7 | 0xc8 | 0xd4) => self.mark_some_rarely(start),
            _ => Ok(()),
        }
    }

    #[cold]
    fn mark_some_rarely(&mut self, start: usize) -> Result {
        let content = &self.bytes[start..];
        let length = content.len();
        match content {
            [0xc0]
            | [0xd4, EXT_SOME, ..]
            | [0xc7, _, EXT_SOME, ..]
            | [0xc8, _, _, EXT_SOME, ..] => {}
            _ => return Ok(()),
        }
        // One level takes at most four bytes, and there are at most `DEPTH_MAX`.
        let [high, low] = (length as u16).to_be_bytes();
        let head: &[u8] = match length {
            1 => &[0xd4, EXT_SOME],
            ..=0xff => &[0xc7, low, EXT_SOME],
            _ => &[0xc8, high, low, EXT_SOME],
        };
        self.room(head.len())?;
        self.bytes.splice(start..start, head.iter().copied());
        Ok(())
    }
}

impl Output<'_> {
    /// A newtype struct together with its name.
    #[cold]
    fn named<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result {
        self.enter()?;
        let start = self.bytes.len();
        self.str(name)?;
        value.serialize(Serializer { output: &mut *self, list: None })?;
        self.leave();
        let mut head = Vec::new();
        let length = self.bytes.len() - start;
        if length <= 0xff {
            head.extend([0xc7, length as u8]);
        } else {
            Output { bytes: &mut head, limit: self.limit, depth: 0, failed: false }
                .long_header(0xc8, length)?;
        }
        head.push(EXT_NAMED);
        self.room(head.len())?;
        self.bytes.splice(start..start, head);
        Ok(())
    }
}

/// What has a header with a length in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Array,
    Map,
    Bytes,
}

impl Kind {
    fn header_length(self, length: usize) -> usize {
        match self {
            Self::Array | Self::Map if length < 16 => 1,
            Self::Bytes if length <= 0xff => 2,
            _ if length <= 0xffff => 3,
            _ => 5,
        }
    }
}

/// How a list has been written so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Nothing was written, not even a header: the first element decides.
    Open,
    /// As `bin`: every element was a `u8`.
    Bytes,
    /// As array.
    Array,
}

/// The state of a list. It is handed to the serializer of each element until one of them is no
/// `u8`.
struct List {
    start: usize,
    declared: usize,
    count: usize,
    form: Form,
}

impl List {
    #[inline]
    fn u8(&mut self, output: &mut Output<'_>, value: u8) -> Result {
        if self.form == Form::Open {
            self.form = Form::Bytes;
            Self::open_bytes(output, self.declared)?;
        }
        output.byte(value)
    }

    #[cold]
    fn open_bytes(output: &mut Output<'_>, declared: usize) -> Result {
        output.header(Kind::Bytes, declared)?;
        let room = output.limit.saturating_sub(output.bytes.len());
        output.bytes.reserve(declared.min(room).min(RESERVE_MAX));
        Ok(())
    }

    /// Makes room for the least that the elements take, so that the output grows once and not at
    /// every doubling.
    fn open_array(output: &mut Output<'_>, declared: usize) -> Result {
        output.header(Kind::Array, declared)?;
        let room = output.limit.saturating_sub(output.bytes.len());
        output.bytes.reserve(declared.min(room).min(RESERVE_MAX));
        Ok(())
    }

    /// An element comes that is no `u8`.
    #[inline]
    fn array(&mut self, output: &mut Output<'_>) -> Result {
        match self.form {
            Form::Array => Ok(()),
            Form::Open => {
                self.form = Form::Array;
                Self::open_array(output, self.declared)
            }
            Form::Bytes => {
                self.form = Form::Array;
                Self::rewrite(output, self.start, self.declared)
            }
        }
    }

    /// Turns the bytes that were written so far into the elements of an array.
    #[cold]
    fn rewrite(output: &mut Output<'_>, start: usize, declared: usize) -> Result {
        let content = start + Kind::Bytes.header_length(declared);
        if let [one] = output.bytes[content..] {
            output.bytes.truncate(start);
            output.header(Kind::Array, declared)?;
            return output.unsigned(one.into());
        }
        let bytes = output.bytes.split_off(content);
        output.bytes.truncate(start);
        output.header(Kind::Array, declared)?;
        bytes.into_iter().try_for_each(|byte| output.unsigned(byte.into()))
    }
}

/// Writes one value.
pub(super) struct Serializer<'s, 'o> {
    output: &'s mut Output<'o>,
    /// The list of which this value is an element, while all elements before it were `u8`.
    list: Option<&'s mut List>,
}

impl<'s, 'o> Serializer<'s, 'o> {
    /// The output, for anything but a `u8`.
    #[inline]
    fn output(self) -> Result<&'s mut Output<'o>> {
        if let Some(list) = self.list {
            list.array(self.output)?;
        }
        Ok(self.output)
    }

    /// An array, or the map of a variant around one.
    #[inline]
    fn array(
        output: &'s mut Output<'o>,
        declared: usize,
        levels: usize,
    ) -> Result<Elements<'s, 'o>> {
        output.enter()?;
        let start = output.bytes.len();
        let declared = declared.min(DECLARED_MAX);
        output.header(Kind::Array, declared)?;
        Ok(Elements { output, list: List { start, declared, count: 0, form: Form::Array }, levels })
    }

    #[inline]
    fn list(self, declared: usize) -> Result<Elements<'s, 'o>> {
        let output = self.output()?;
        output.enter()?;
        let start = output.bytes.len();
        let declared = declared.min(DECLARED_MAX);
        Ok(Elements {
            output,
            list: List { start, declared, count: 0, form: Form::Open },
            levels: 1,
        })
    }

    #[inline]
    fn map(output: &'s mut Output<'o>, declared: usize, levels: usize) -> Result<Entries<'s, 'o>> {
        output.enter()?;
        let start = output.bytes.len();
        let declared = declared.min(DECLARED_MAX);
        output.header(Kind::Map, declared)?;
        Ok(Entries { output, start, declared, halves: 0, levels })
    }

    /// The map of one entry around the content of a variant.
    #[inline]
    fn variant(self, name: &str) -> Result<&'s mut Output<'o>> {
        let output = self.output()?;
        output.enter()?;
        output.byte(0x81)?;
        output.str(name)?;
        Ok(output)
    }
}

impl<'s, 'o> ser::Serializer for Serializer<'s, 'o> {
    type Ok = ();
    type Error = EncodeError;
    type SerializeSeq = Elements<'s, 'o>;
    type SerializeTuple = Elements<'s, 'o>;
    type SerializeTupleStruct = Elements<'s, 'o>;
    type SerializeTupleVariant = Elements<'s, 'o>;
    type SerializeMap = Entries<'s, 'o>;
    type SerializeStruct = Entries<'s, 'o>;
    type SerializeStructVariant = Entries<'s, 'o>;

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_bool(self, value: bool) -> Result {
        self.output()?.byte(0xc2 | u8::from(value))
    }

    #[inline]
    fn serialize_i8(self, value: i8) -> Result {
        self.output()?.signed(value.into())
    }

    #[inline]
    fn serialize_i16(self, value: i16) -> Result {
        self.output()?.signed(value.into())
    }

    #[inline]
    fn serialize_i32(self, value: i32) -> Result {
        self.output()?.signed(value.into())
    }

    #[inline]
    fn serialize_i64(self, value: i64) -> Result {
        self.output()?.signed(value)
    }

    #[inline]
    fn serialize_i128(self, value: i128) -> Result {
        let output = self.output()?;
        output.put(&[0xd8, EXT_I128])?;
        output.put(&value.to_be_bytes())
    }

    #[inline]
    fn serialize_u8(self, value: u8) -> Result {
        match self.list {
            Some(list) => list.u8(self.output, value),
            None => self.output.unsigned(value.into()),
        }
    }

    #[inline]
    fn serialize_u16(self, value: u16) -> Result {
        self.output()?.unsigned(value.into())
    }

    #[inline]
    fn serialize_u32(self, value: u32) -> Result {
        self.output()?.unsigned(value.into())
    }

    #[inline]
    fn serialize_u64(self, value: u64) -> Result {
        self.output()?.unsigned(value)
    }

    #[inline]
    fn serialize_u128(self, value: u128) -> Result {
        let output = self.output()?;
        output.put(&[0xd8, EXT_U128])?;
        output.put(&value.to_be_bytes())
    }

    #[inline]
    fn serialize_f32(self, value: f32) -> Result {
        self.output()?.marked::<4, 5>(0xca, value.to_bits().to_be_bytes())
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result {
        self.output()?.marked::<8, 9>(0xcb, value.to_bits().to_be_bytes())
    }

    #[inline]
    fn serialize_char(self, value: char) -> Result {
        self.output()?.str(value.encode_utf8(&mut [0; 4]))
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result {
        self.output()?.str(value)
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result {
        self.output()?.byte_string(value)
    }

    #[inline]
    fn serialize_none(self) -> Result {
        self.output()?.byte(0xc0)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result {
        let output = self.output()?;
        output.enter()?;
        let start = output.bytes.len();
        value.serialize(Serializer { output: &mut *output, list: None })?;
        output.leave();
        output.mark_some(start)
    }

    #[inline]
    fn serialize_unit(self) -> Result {
        self.output()?.byte(0xc0)
    }

    #[inline]
    fn serialize_unit_struct(self, _name: &'static str) -> Result {
        self.output()?.byte(0xc0)
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result {
        self.output()?.str(variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result {
        if NAMED.contains(&name) {
            return self.output()?.named(name, value);
        }
        self.output.enter()?;
        let content = Serializer { output: &mut *self.output, list: self.list };
        if std::ptr::eq(name, names::HANDLE) {
            names::behind_the_gate(|| value.serialize(content))?;
        } else {
            value.serialize(content)?;
        }
        self.output.leave();
        Ok(())
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result {
        let output = self.variant(variant)?;
        value.serialize(Serializer { output: &mut *output, list: None })?;
        output.leave();
        Ok(())
    }

    #[inline]
    fn serialize_seq(self, length: Option<usize>) -> Result<Elements<'s, 'o>> {
        self.list(length.unwrap_or(0))
    }

    #[inline]
    fn serialize_tuple(self, length: usize) -> Result<Elements<'s, 'o>> {
        self.list(length)
    }

    #[inline]
    fn serialize_tuple_struct(
        self,
        _name: &'static str,
        length: usize,
    ) -> Result<Elements<'s, 'o>> {
        Self::array(self.output()?, length, 1)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Elements<'s, 'o>> {
        Self::array(self.variant(variant)?, length, 2)
    }

    #[inline]
    fn serialize_map(self, length: Option<usize>) -> Result<Entries<'s, 'o>> {
        Self::map(self.output()?, length.unwrap_or(0), 1)
    }

    #[inline]
    fn serialize_struct(self, _name: &'static str, length: usize) -> Result<Entries<'s, 'o>> {
        Self::map(self.output()?, length, 1)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Entries<'s, 'o>> {
        Self::map(self.variant(variant)?, length, 2)
    }
}

/// Writes the elements of a list.
pub(super) struct Elements<'s, 'o> {
    output: &'s mut Output<'o>,
    list: List,
    /// How many levels of depth end with the list.
    levels: usize,
}

impl Elements<'_, '_> {
    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
        let list = if self.list.form == Form::Array { None } else { Some(&mut self.list) };
        let result = value.serialize(Serializer { output: &mut *self.output, list });
        if result.is_err() {
            self.output.failed = true;
        }
        self.list.count += 1;
        result
    }

    #[inline]
    fn finish(self) -> Result {
        let List { start, declared, count, form } = self.list;
        self.output.depth += self.levels;
        let kind = match form {
            Form::Open => return self.output.byte(0x90),
            Form::Bytes => Kind::Bytes,
            Form::Array => Kind::Array,
        };
        if count == declared { Ok(()) } else { self.output.correct(start, kind, declared, count) }
    }
}

/// Writes the entries of a map.
pub(super) struct Entries<'s, 'o> {
    output: &'s mut Output<'o>,
    start: usize,
    declared: usize,
    /// How many keys and values were written.
    halves: usize,
    /// How many levels of depth end with the map.
    levels: usize,
}

impl Entries<'_, '_> {
    #[inline]
    fn half<T: Serialize + ?Sized>(&mut self, value: &T, is_value: usize) -> Result {
        let result = if self.halves & 1 == is_value {
            value.serialize(Serializer { output: &mut *self.output, list: None })
        } else {
            Err(out_of_order())
        };
        if result.is_err() {
            self.output.failed = true;
        }
        self.halves += 1;
        result
    }

    #[inline]
    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result {
        self.half(name, 0)?;
        self.half(value, 1)
    }

    #[inline]
    fn finish(self) -> Result {
        self.output.depth += self.levels;
        if self.halves & 1 != 0 {
            return Err(out_of_order());
        }
        let count = self.halves / 2;
        if count == self.declared {
            Ok(())
        } else {
            self.output.correct(self.start, Kind::Map, self.declared, count)
        }
    }
}

#[cold]
fn out_of_order() -> EncodeError {
    EncodeError::Message(
        "a map was serialized with a key without a value, or a value without a key".into(),
    )
}

/// Forwards the traits of serde's compounds to the one method each of them stands for.
macro_rules! forward {
    ($type:ident: $($trait:ident :: $method:ident => $to:ident),+) => {$(
        impl $trait for $type<'_, '_> {
            type Ok = ();
            type Error = EncodeError;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
                self.$to(value)
            }

            #[inline]
            fn end(self) -> Result {
                self.finish()
            }
        }
    )+};
}

forward!(Elements:
    SerializeSeq::serialize_element => element,
    SerializeTuple::serialize_element => element,
    SerializeTupleStruct::serialize_field => element,
    SerializeTupleVariant::serialize_field => element
);

impl SerializeMap for Entries<'_, '_> {
    type Ok = ();
    type Error = EncodeError;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result {
        self.half(key, 0)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
        self.half(value, 1)
    }

    #[inline]
    fn end(self) -> Result {
        self.finish()
    }
}

impl SerializeStruct for Entries<'_, '_> {
    type Ok = ();
    type Error = EncodeError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result {
        self.field(name, value)
    }

    #[inline]
    fn end(self) -> Result {
        self.finish()
    }
}

impl SerializeStructVariant for Entries<'_, '_> {
    type Ok = ();
    type Error = EncodeError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result {
        self.field(name, value)
    }

    #[inline]
    fn end(self) -> Result {
        self.finish()
    }
}
