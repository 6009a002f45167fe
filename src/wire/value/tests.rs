//! Tests of the value codec: byte by byte, by properties, and against `rmp-serde`.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Debug};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;

use super::super::counting::peak_of;
use super::{DEPTH_MAX, DecodeError, EXT_BYTES, EXT_NAMED, EncodeError, Reader, decode, encode};

fn bytes_of<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode(value, &mut out, usize::MAX).unwrap();
    out
}

#[track_caller]
fn hex<T: Serialize + ?Sized>(value: &T, expected: &str) {
    let text: Vec<String> = bytes_of(value).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(text.join(" "), expected);
}

#[track_caller]
fn same<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
    let bytes = bytes_of(&value);
    assert_eq!(decode::<T>(&bytes).unwrap(), value, "{bytes:02x?}");
    // The limit counts every byte and nothing else.
    let mut out = vec![7; 3];
    encode(&value, &mut out, bytes.len() + 3).unwrap();
    assert_eq!(out[3..], bytes);
    assert_eq!(
        encode(&value, &mut out, bytes.len() * 2 + 2),
        Err(EncodeError::TooLarge { limit: bytes.len() * 2 + 2 })
    );
    assert_eq!(out.len(), bytes.len() + 3, "cut back to what it was");
    // An ignored value is skipped as a whole.
    let mut reader = Reader::new(&bytes);
    reader.next::<serde::de::IgnoredAny>().unwrap();
    reader.finish().unwrap();
}

/// Like a UUID: written by `serialize_bytes`, accepts nothing but `visit_bytes`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::wire) struct Id([u8; 16]);

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("16 bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Id, E> {
                bytes.try_into().map(Id).map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(V)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::wire) struct UnitStruct;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::wire) enum Key {
    Unit,
    New(u8),
    Tuple(i8, char),
    Struct { a: Option<Option<()>> },
}

/// Floats are equal when their bits are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::wire) struct Floats(f32, f64);

impl PartialEq for Floats {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits() && self.1.to_bits() == other.1.to_bits()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::wire) struct New<T>(T);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::wire) enum Rich {
    Unit,
    Nil(()),
    Nothing(UnitStruct),
    Bool(bool),
    Ints(i8, i16, i32, i64, u8, u16, u32, u64),
    Wide(i128, u128),
    Floats(Floats),
    Char(char),
    Text(String),
    List(Vec<u8>),
    Bytes(ByteBuf),
    Id(Option<Id>),
    Pair((u8, u8)),
    Mixed((u8, u8, u16)),
    Array([u8; 5], [u8; 0], [u16; 2]),
    Options(Option<Option<Option<()>>>, Option<UnitStruct>, Vec<Option<u8>>, Vec<New<u8>>),
    Struct { inner: Box<Rich>, maybe: Option<Option<Box<Rich>>>, unit: Option<()> },
    Seq(Vec<Rich>),
    Some(Option<Box<Rich>>),
    Wrapped(New<Box<Rich>>),
    Words(BTreeMap<String, Rich>),
    Numbers(BTreeMap<i64, Rich>),
    Pairs(BTreeMap<(u8, i16), Rich>),
    Keys(BTreeMap<Option<Option<u32>>, BTreeMap<Key, Rich>>),
    ByteKeys(BTreeMap<Vec<u8>, Option<Option<bool>>>),
}

fn option<S: Strategy>(inner: S) -> impl Strategy<Value = Option<S::Value>>
where
    S::Value: Clone,
{
    prop_oneof![Just(None), inner.prop_map(Some)]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..20),
        1 => prop::collection::vec(any::<u8>(), 250..260),
        1 => (0xfffe_usize..0x10002).prop_map(|count| vec![0xab; count]),
    ]
}

fn small_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..20)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::collection::vec(any::<char>(), 0..12).prop_map(|chars| chars.into_iter().collect()),
        Just("\0".to_owned()),
        (30usize..34).prop_map(|count| "x".repeat(count)),
        (254usize..258).prop_map(|count| "\0".repeat(count)),
    ]
}

fn id() -> impl Strategy<Value = Id> {
    any::<[u8; 16]>().prop_map(Id)
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        Just(Key::Unit),
        any::<u8>().prop_map(Key::New),
        (any::<i8>(), any::<char>()).prop_map(|(a, b)| Key::Tuple(a, b)),
        option(option(Just(()))).prop_map(|a| Key::Struct { a }),
    ]
}

/// Integers around the edges of every width.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64, -2i64..3).prop_map(|(shift, off)| (1u64 << shift).wrapping_add(off as u64)),
        (0u32..64, -2i64..3)
            .prop_map(|(shift, off)| (1u64 << shift).wrapping_neg().wrapping_add(off as u64)),
    ]
}

fn wide() -> impl Strategy<Value = u128> {
    prop_oneof![
        any::<u128>(),
        word().prop_map(u128::from),
        word().prop_map(|word| word as i64 as i128 as u128),
        Just(u128::MAX),
        Just(1 << 127),
        Just((1 << 127) - 1),
    ]
}

fn floats() -> impl Strategy<Value = Floats> {
    (
        prop_oneof![any::<u32>(), Just(0x7fa0_0001), Just(0x8000_0000)],
        prop_oneof![any::<u64>(), Just(0xfff0_0000_dead_beef)],
    )
        .prop_map(|(a, b)| Floats(f32::from_bits(a), f64::from_bits(b)))
}

pub(in crate::wire) fn rich() -> impl Strategy<Value = Rich> {
    let leaf = prop_oneof![
        Just(Rich::Unit),
        Just(Rich::Nil(())),
        Just(Rich::Nothing(UnitStruct)),
        any::<bool>().prop_map(Rich::Bool),
        word().prop_map(|w| Rich::Ints(
            w as i8, w as i16, w as i32, w as i64, w as u8, w as u16, w as u32, w
        )),
        wide().prop_map(|w| Rich::Wide(w as i128, w)),
        floats().prop_map(Rich::Floats),
        any::<char>().prop_map(Rich::Char),
        text().prop_map(Rich::Text),
        bytes().prop_map(Rich::List),
        bytes().prop_map(|bytes| Rich::Bytes(ByteBuf::from(bytes))),
        option(id()).prop_map(Rich::Id),
        any::<(u8, u8)>().prop_map(Rich::Pair),
        any::<(u8, u8, u16)>().prop_map(Rich::Mixed),
        any::<([u8; 5], [u16; 2])>().prop_map(|(a, b)| Rich::Array(a, [], b)),
        (
            option(option(option(Just(())))),
            option(Just(UnitStruct)),
            prop::collection::vec(option(any::<u8>()), 0..20),
            prop::collection::vec(any::<u8>().prop_map(New), 0..20)
        )
            .prop_map(|(a, b, c, d)| Rich::Options(a, b, c, d)),
        prop::collection::btree_map(small_bytes(), option(option(any::<bool>())), 0..4)
            .prop_map(Rich::ByteKeys),
    ];
    leaf.prop_recursive(5, 48, 6, |inner| {
        prop_oneof![
            (inner.clone(), option(option(inner.clone())), option(Just(()))).prop_map(
                |(inner, maybe, unit)| Rich::Struct {
                    inner: Box::new(inner),
                    maybe: maybe.map(|maybe| maybe.map(Box::new)),
                    unit
                }
            ),
            prop::collection::vec(inner.clone(), 0..18).prop_map(Rich::Seq),
            option(inner.clone()).prop_map(|inner| Rich::Some(inner.map(Box::new))),
            inner.clone().prop_map(|inner| Rich::Wrapped(New(Box::new(inner)))),
            prop::collection::btree_map(text(), inner.clone(), 0..4).prop_map(Rich::Words),
            prop::collection::btree_map(word().prop_map(|w| w as i64), inner.clone(), 0..4)
                .prop_map(Rich::Numbers),
            prop::collection::btree_map(any::<(u8, i16)>(), inner.clone(), 0..4)
                .prop_map(Rich::Pairs),
            prop::collection::btree_map(
                option(option(any::<u32>())),
                prop::collection::btree_map(key(), inner, 0..3),
                0..3
            )
            .prop_map(Rich::Keys),
        ]
    })
}

/// What every container below holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::wire) struct Parts {
    nested: Option<Option<u16>>,
    unit: Option<Option<()>>,
    list: Vec<u8>,
    maybe_list: Option<Option<Vec<u8>>>,
    id: Id,
    maybe_id: Option<Option<Id>>,
    nothing: Option<UnitStruct>,
    pair: (u8, u8),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::wire) struct Flat {
    first: u8,
    #[serde(flatten)]
    parts: Parts,
    #[serde(flatten)]
    optional: Option<Other>,
    #[serde(flatten)]
    rest: BTreeMap<String, Option<Option<i32>>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::wire) struct Other {
    other_id: Id,
    other: Option<Option<Vec<u8>>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(in crate::wire) enum Untagged {
    Parts(Parts),
    Flat {
        name: String,
        #[serde(flatten)]
        other: Other,
    },
    Bytes(ByteBuf),
    List(Vec<u8>),
    Number(i64),
    Text {
        text: String,
    },
    Many {
        many: Vec<Untagged>,
    },
    Nested(Option<Option<bool>>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "tag")]
pub(in crate::wire) enum Internal {
    Unit,
    Parts(Parts),
    Nothing(UnitStruct),
    Struct {
        nested: Option<Option<Box<Internal>>>,
        list: Vec<u8>,
        id: Id,
    },
    Flat {
        #[serde(flatten)]
        other: Other,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        a: Option<Option<u8>>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", content = "c")]
pub(in crate::wire) enum Adjacent {
    Unit,
    Parts(Parts),
    List(Vec<u8>),
    Id(Id),
    Nested(Option<Option<Box<Adjacent>>>),
    Tuple(u8, u8, Option<()>),
    Struct { a: Option<Option<()>>, b: Vec<u8> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::wire) struct Attributes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left_out: Option<Option<u8>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    no_list: Vec<u8>,
    #[serde(rename = "ID", alias = "id")]
    named: Option<Option<Id>>,
    #[serde(skip)]
    skipped: (),
    #[serde(with = "serde_bytes")]
    with: Vec<u8>,
    #[serde(with = "serde_bytes")]
    with_option: Option<Vec<u8>>,
    #[serde(default)]
    untagged: Option<Untagged>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::wire) enum Derived {
    Flat(Flat),
    Untagged(Vec<Untagged>),
    Internal(Internal),
    Adjacent(Adjacent),
    Attributes(Attributes),
}

fn parts() -> impl Strategy<Value = Parts> {
    (
        option(option(any::<u16>())),
        option(option(Just(()))),
        small_bytes(),
        option(option(small_bytes())),
        id(),
        option(option(id())),
        option(Just(UnitStruct)),
        any::<(u8, u8)>(),
    )
        .prop_map(|(nested, unit, list, maybe_list, id, maybe_id, nothing, pair)| Parts {
            nested,
            unit,
            list,
            maybe_list,
            id,
            maybe_id,
            nothing,
            pair,
        })
}

fn other() -> impl Strategy<Value = Other> {
    (id(), option(option(small_bytes()))).prop_map(|(other_id, other)| Other { other_id, other })
}

fn flat() -> impl Strategy<Value = Flat> {
    (
        any::<u8>(),
        parts(),
        option(other()),
        prop::collection::btree_map("x[a-z]{0,3}", option(option(any::<i32>())), 0..4),
    )
        .prop_map(|(first, parts, optional, rest)| Flat { first, parts, optional, rest })
        // A flattened map takes what the absent option would have taken.
        .prop_map(|mut flat| {
            flat.rest.retain(|name, _| name != "other");
            flat
        })
}

fn untagged() -> impl Strategy<Value = Untagged> {
    let leaf = prop_oneof![
        parts().prop_map(Untagged::Parts),
        (text(), other()).prop_map(|(name, other)| Untagged::Flat { name, other }),
        // `ByteBuf` accepts lists as well, so no list ever comes back as `List`; it stands there
        // for the others.
        small_bytes().prop_map(|bytes| Untagged::Bytes(ByteBuf::from(bytes))),
        any::<i64>().prop_map(Untagged::Number),
        text().prop_map(|text| Untagged::Text { text }),
        option(option(any::<bool>())).prop_map(Untagged::Nested),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop::collection::vec(inner, 0..4).prop_map(|many| Untagged::Many { many })
    })
}

fn internal() -> impl Strategy<Value = Internal> {
    let leaf = prop_oneof![
        Just(Internal::Unit),
        parts().prop_map(Internal::Parts),
        Just(Internal::Nothing(UnitStruct)),
        (other(), option(option(any::<u8>()))).prop_map(|(other, a)| Internal::Flat { other, a }),
    ];
    leaf.prop_recursive(3, 8, 2, |inner| {
        (option(option(inner)), small_bytes(), id()).prop_map(|(nested, list, id)| {
            Internal::Struct { nested: nested.map(|nested| nested.map(Box::new)), list, id }
        })
    })
}

fn adjacent() -> impl Strategy<Value = Adjacent> {
    let leaf = prop_oneof![
        Just(Adjacent::Unit),
        parts().prop_map(Adjacent::Parts),
        small_bytes().prop_map(Adjacent::List),
        id().prop_map(Adjacent::Id),
        (any::<u8>(), any::<u8>(), option(Just(()))).prop_map(|(a, b, c)| Adjacent::Tuple(a, b, c)),
        (option(option(Just(()))), small_bytes()).prop_map(|(a, b)| Adjacent::Struct { a, b }),
    ];
    leaf.prop_recursive(3, 8, 2, |inner| {
        option(option(inner))
            .prop_map(|nested| Adjacent::Nested(nested.map(|nested| nested.map(Box::new))))
    })
}

pub(in crate::wire) fn derived() -> impl Strategy<Value = Derived> {
    prop_oneof![
        flat().prop_map(Derived::Flat),
        prop::collection::vec(untagged(), 0..3).prop_map(Derived::Untagged),
        internal().prop_map(Derived::Internal),
        adjacent().prop_map(Derived::Adjacent),
        (
            option(option(any::<u8>())),
            small_bytes(),
            option(option(id())),
            small_bytes(),
            option(small_bytes()),
            option(untagged())
        )
            .prop_map(|(left_out, no_list, named, with, with_option, untagged)| {
                Derived::Attributes(Attributes {
                    left_out,
                    no_list,
                    named,
                    skipped: (),
                    with,
                    with_option,
                    untagged,
                })
            }),
    ]
}

/// Whether `rmp-serde` brings `value` back equal.
fn rmp_brings_back<T: Serialize + DeserializeOwned + PartialEq>(value: &T) -> bool {
    rmp_serde::to_vec_named(value)
        .is_ok_and(|bytes| rmp_serde::from_slice::<T>(&bytes).is_ok_and(|back| back == *value))
}

/// An untagged enum whose variants are told apart by nothing but what they hold. No format brings
/// all of its values back, but what `rmp-serde` brings back has to come back here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(in crate::wire) enum Ambiguous {
    Byte(u8),
    Maybe(Option<i8>),
    Pair(u8, u8),
    Unit,
    Texts(Vec<char>),
    List(Vec<u8>),
    Id(Id),
    Bytes(ByteBuf),
    Float(f32),
    Double(f64),
    Nested(Option<Option<u64>>),
    Nothing(UnitStruct),
    Internal(Internal),
    Adjacent(Option<Adjacent>),
    Plain(Option<Key>),
    Map(BTreeMap<Option<u8>, Option<Ambiguous>>),
    Tree(Vec<Option<Ambiguous>>),
    Words(BTreeMap<String, Option<Option<Vec<u8>>>>),
}

pub(in crate::wire) fn ambiguous() -> impl Strategy<Value = Ambiguous> {
    let leaf = prop_oneof![
        any::<u8>().prop_map(Ambiguous::Byte),
        option(any::<i8>()).prop_map(Ambiguous::Maybe),
        any::<(u8, u8)>().prop_map(|(a, b)| Ambiguous::Pair(a, b)),
        Just(Ambiguous::Unit),
        prop::collection::vec(any::<char>(), 0..3).prop_map(Ambiguous::Texts),
        small_bytes().prop_map(Ambiguous::List),
        id().prop_map(Ambiguous::Id),
        small_bytes().prop_map(|bytes| Ambiguous::Bytes(ByteBuf::from(bytes))),
        any::<f32>().prop_map(Ambiguous::Float),
        any::<f64>().prop_map(Ambiguous::Double),
        option(option(any::<u64>())).prop_map(Ambiguous::Nested),
        Just(Ambiguous::Nothing(UnitStruct)),
        internal().prop_map(Ambiguous::Internal),
        option(adjacent()).prop_map(Ambiguous::Adjacent),
        option(key()).prop_map(Ambiguous::Plain),
        prop::collection::btree_map("[a-z]{0,3}", option(option(small_bytes())), 0..3)
            .prop_map(Ambiguous::Words),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(option(inner.clone()), 0..4).prop_map(Ambiguous::Tree),
            prop::collection::btree_map(option(any::<u8>()), option(inner), 0..3)
                .prop_map(Ambiguous::Map),
        ]
    })
}

/// Decodes `bytes` as many a type. No result is expected, only that none of them panics.
fn decode_as_anything(bytes: &[u8]) {
    drop(decode::<Rich>(bytes));
    drop(decode::<Derived>(bytes));
    drop(decode::<Ambiguous>(bytes));
    drop(decode::<Untagged>(bytes));
    drop(decode::<Internal>(bytes));
    drop(decode::<Flat>(bytes));
    drop(decode::<Vec<u64>>(bytes));
    drop(decode::<Vec<Option<New<Key>>>>(bytes));
    drop(decode::<(u128, i128, Id, String)>(bytes));
    drop(decode::<Vec<i128>>(bytes));
    drop(decode::<HashMap<ByteBuf, Vec<u128>>>(bytes));
    drop(decode::<SystemTime>(bytes));
    drop(decode::<serde::de::IgnoredAny>(bytes));
    if let Err(error) = decode::<u64>(bytes) {
        drop(error.to_string());
    }
}

/// Bytes that look like MessagePack more often than random ones.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        (0x80u8..0xa8).prop_map(|byte| vec![byte]),
        (0xc0u8..0xe0, any::<u8>()).prop_map(|(a, b)| vec![a, b % 20]),
        (0u8..4).prop_map(|length| vec![0xc7, length, 1]),
        Just(vec![0xd4, 1, 0xc0]),
        Just(vec![0xd8, 2]),
        prop::sample::select(vec![
            "Unit", "Struct", "tag", "t", "c", "Nested", "list", "Seq", "Ints", "Wide", "Id"
        ])
        .prop_map(bytes_of),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rich_values_come_back(value in rich()) {
        same(value);
    }

    #[test]
    fn derived_values_come_back(value in derived()) {
        same(value);
    }

    #[test]
    fn words_come_back(value in word()) {
        same(value);
        same(value as i64);
        same(value as u32);
        same(value as i16);
        same((value as u8, value as i8));
    }

    #[test]
    fn what_rmp_serde_keeps_is_kept(value in ambiguous(), rich in rich(), derived in derived()) {
        if rmp_brings_back(&value) {
            let bytes = bytes_of(&value);
            prop_assert_eq!(decode::<Ambiguous>(&bytes).unwrap(), value, "{:02x?}", bytes);
        }
        if rmp_brings_back(&rich) {
            prop_assert_eq!(decode::<Rich>(&bytes_of(&rich)).unwrap(), rich);
        }
        if rmp_brings_back(&derived) {
            prop_assert_eq!(decode::<Derived>(&bytes_of(&derived)).unwrap(), derived);
        }
    }

    #[test]
    fn what_rmp_serde_writes_is_read(value in rich(), derived in derived()) {
        if rmp_brings_back(&value) {
            prop_assert_eq!(decode::<Rich>(&rmp_serde::to_vec_named(&value).unwrap()).unwrap(), value);
        }
        if rmp_brings_back(&derived) {
            // Byte strings that `rmp-serde` writes are lists here, which a type behind a buffer can tell apart.
            drop(decode::<Derived>(&rmp_serde::to_vec_named(&derived).unwrap()));
        }
    }

    #[test]
    fn integers_of_any_width(value in wide()) {
        let bytes = bytes_of(&value);
        prop_assert_eq!(decode::<u8>(&bytes).ok(), u8::try_from(value).ok());
        prop_assert_eq!(decode::<i64>(&bytes).ok(), i64::try_from(value).ok());
        prop_assert_eq!(decode::<u64>(&bytes).ok(), u64::try_from(value).ok());
        prop_assert_eq!(decode::<i128>(&bytes).ok(), i128::try_from(value).ok());
        let value = value as i128;
        let bytes = bytes_of(&value);
        prop_assert_eq!(decode::<i8>(&bytes).ok(), i8::try_from(value).ok());
        prop_assert_eq!(decode::<i64>(&bytes).ok(), i64::try_from(value).ok());
        prop_assert_eq!(decode::<u64>(&bytes).ok(), u64::try_from(value).ok());
        prop_assert_eq!(decode::<u128>(&bytes).ok(), u128::try_from(value).ok());
        let value = value as i64;
        let bytes = bytes_of(&value);
        prop_assert_eq!(decode::<i32>(&bytes).ok(), i32::try_from(value).ok());
        prop_assert_eq!(decode::<u16>(&bytes).ok(), u16::try_from(value).ok());
        prop_assert_eq!(decode::<i128>(&bytes).ok(), Some(value.into()));
        prop_assert_eq!(decode::<u128>(&bytes).ok(), u128::try_from(value).ok());
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..64), noise()]) {
        decode_as_anything(&bytes);
    }

    #[test]
    fn broken_encodings_do_not_panic(value in derived(), rich in rich(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for mut bytes in [bytes_of(&value), bytes_of(&rich)] {
            let at = at.index(bytes.len());
            decode_as_anything(&bytes[..at]);
            bytes[at] = byte;
            decode_as_anything(&bytes);
            bytes.insert(at, 0xc0);
            decode_as_anything(&bytes);
            bytes.remove(at);
            decode_as_anything(&bytes);
        }
    }

    #[test]
    fn a_cut_encoding_is_an_error(rich in rich(), at in any::<prop::sample::Index>()) {
        let bytes = bytes_of(&rich);
        prop_assert!(decode::<Rich>(&bytes[..at.index(bytes.len())]).is_err());
    }
}

#[test]
fn scalars() {
    hex(&0u64, "00");
    hex(&127i32, "7f");
    hex(&128i64, "cc 80");
    hex(&256u32, "cd 01 00");
    hex(&0x1_0000u32, "ce 00 01 00 00");
    hex(&0x1_0000_0000u64, "cf 00 00 00 01 00 00 00 00");
    hex(&-1i8, "ff");
    hex(&-32i8, "e0");
    hex(&-33i64, "d0 df");
    hex(&-129i16, "d1 ff 7f");
    hex(&-32769i32, "d2 ff ff 7f ff");
    hex(&i64::MIN, "d3 80 00 00 00 00 00 00 00");
    hex(&1u128, "d8 04 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01");
    hex(&-1i128, "d8 03 ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff");
    hex(&1.5f32, "ca 3f c0 00 00");
    hex(&1.5f64, "cb 3f f8 00 00 00 00 00 00");
    hex(&true, "c3");
    hex(&'é', "a2 c3 a9");
    hex("a\0", "a2 61 00");
    hex(&(), "c0");
    hex(&UnitStruct, "c0");
    hex(&Key::Unit, "a4 55 6e 69 74");
    hex(&Key::New(5), "81 a3 4e 65 77 05");
    hex(&Key::Tuple(1, 'x'), "81 a5 54 75 70 6c 65 92 01 a1 78");
    hex(&Key::Struct { a: None }, "81 a6 53 74 72 75 63 74 81 a1 61 c0");
}

#[test]
fn options() {
    hex(&None::<u8>, "c0");
    hex(&Some(5u8), "05");
    hex(&Some(()), "d4 01 c0");
    hex(&Some(UnitStruct), "d4 01 c0");
    hex(&Some(None::<u8>), "d4 01 c0");
    hex(&Some(Some(())), "c7 03 01 d4 01 c0");
    hex(&Some(Some(5u8)), "05");
    hex(&Some(New(None::<u8>)), "d4 01 c0");
    hex(&Some(ByteBuf::new()), "c7 00 02");
    hex(&vec![Some(1u8), None], "92 01 c0");
}

#[test]
fn lists() {
    hex(&vec![1u8, 200], "c4 02 01 c8");
    hex(&[1u8, 200], "c4 02 01 c8");
    hex(&(1u8, 200u8), "c4 02 01 c8");
    hex(&(1u8,), "c4 01 01");
    hex(&vec![New(1u8)], "c4 01 01");
    hex(&vec![Some(1u8)], "91 01");
    hex(&Vec::<u8>::new(), "90");
    hex(&[0u8; 0], "90");
    hex(&vec![1u16, 200], "92 01 cc c8");
    hex(&(1u8, 200u8, "x"), "93 01 cc c8 a1 78");
    hex(&(200u8, "x"), "92 cc c8 a1 78");
    hex(&Floats(0.0, 1.0), "92 ca 00 00 00 00 cb 3f f0 00 00 00 00 00 00");
    hex(&ByteBuf::from(vec![1, 2]), "d5 02 01 02");
    hex(&ByteBuf::from(vec![1, 2, 3]), "c7 03 02 01 02 03");
    hex(&Id([7; 16]), &format!("d8 02{}", " 07".repeat(16)));
    assert_eq!(bytes_of(&vec![9u8; 300])[..4], [0xc5, 0x01, 0x2c, 9]);
    assert_eq!(bytes_of(&vec![9u8; 70_000])[..6], [0xc6, 0, 1, 0x11, 0x70, 9]);
    assert_eq!(bytes_of(&ByteBuf::from(vec![9u8; 300]))[..5], [0xc8, 0x01, 0x2c, 2, 9]);
    assert_eq!(bytes_of(&ByteBuf::from(vec![9u8; 70_000]))[..7], [0xc9, 0, 1, 0x11, 0x70, 2, 9]);
}

/// A list, map or struct that announces another length than it has.
struct Lying<'a>(Option<usize>, &'a [u64], char);

impl Serialize for Lying<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::{SerializeMap, SerializeSeq, SerializeStruct, SerializeTupleStruct};
        let length = self.0.unwrap_or(0);
        match self.2 {
            's' => {
                let mut list = serializer.serialize_seq(self.0)?;
                self.1.iter().try_for_each(|element| list.serialize_element(element))?;
                list.end()
            }
            'b' => {
                let mut list = serializer.serialize_seq(self.0)?;
                self.1.iter().try_for_each(|element| list.serialize_element(&(*element as u8)))?;
                list.end()
            }
            't' => {
                let mut list = serializer.serialize_tuple_struct("T", length)?;
                self.1.iter().try_for_each(|element| list.serialize_field(element))?;
                list.end()
            }
            'm' => {
                let mut map = serializer.serialize_map(self.0)?;
                self.1.iter().try_for_each(|element| map.serialize_entry(element, &()))?;
                map.end()
            }
            'k' => {
                let mut map = serializer.serialize_map(self.0)?;
                map.serialize_key(&1)?;
                map.end()
            }
            _ => {
                let mut fields = serializer.serialize_struct("S", length)?;
                fields.serialize_field("a", self.1)?;
                fields.end()
            }
        }
    }
}

#[test]
fn announced_lengths_are_not_trusted() {
    let content: Vec<u64> = (0..400).collect();
    let small: Vec<u8> = content.iter().map(|&element| element as u8).collect();
    let map: BTreeMap<u64, ()> = content.iter().map(|&element| (element, ())).collect();
    for length in
        [None, Some(0), Some(3), Some(15), Some(16), Some(300), Some(70_000), Some(usize::MAX)]
    {
        for count in [0, 1, 15, 16, 255, 256, 400] {
            let part = &content[..count];
            let truth = bytes_of(part);
            assert_eq!(bytes_of(&Lying(length, part, 's')), truth);
            assert_eq!(bytes_of(&Lying(length, part, 't')), truth);
            assert_eq!(bytes_of(&Lying(length, part, 'b')), bytes_of(&small[..count]));
            let entries: BTreeMap<_, _> = map.range(..count as u64).collect();
            assert_eq!(bytes_of(&Lying(length, part, 'm')), bytes_of(&entries));
            assert_eq!(bytes_of(&Lying(length, &[5], 'f'))[..4], [0x81, 0xa1, b'a', 0x91]);
        }
    }
    // A length that is only known at the end does not need more room than one known before.
    let truth = bytes_of(&content);
    encode(&Lying(None, &content, 's'), &mut Vec::new(), truth.len()).unwrap();
    let mut out = Vec::new();
    assert!(matches!(encode(&Lying(None, &[], 'k'), &mut out, 100), Err(EncodeError::Message(_))));
    assert!(out.is_empty());
}

/// Passes over the error of an element.
struct PassesOver;

impl Serialize for PassesOver {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq;
        struct Fails;
        impl Serialize for Fails {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut list = serializer.serialize_seq(Some(2))?;
                list.serialize_element("half")?;
                Err(serde::ser::Error::custom("no"))
            }
        }
        let mut list = serializer.serialize_seq(None)?;
        drop(list.serialize_element(&Fails));
        list.end()
    }
}

#[test]
fn half_an_element_is_never_sent() {
    let mut out = vec![1];
    assert!(matches!(encode(&PassesOver, &mut out, 100), Err(EncodeError::Message(_))));
    assert_eq!(out, [1]);
}

#[test]
fn types_of_the_standard_library() {
    same(Duration::new(5, 7));
    same(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 999_999_999));
    same("127.0.0.1".parse::<IpAddr>().unwrap());
    same("::1".parse::<IpAddr>().unwrap());
    same("[::1]:80".parse::<SocketAddr>().unwrap());
    same(PathBuf::from("/tmp/\u{0}/x"));
    same(std::ffi::OsString::from("x"));
    same(BTreeMap::from([((1u8, 2u8), Some(None::<u8>)), ((1, 3), None)]));
    same(HashMap::from([(Some(1u64), vec![0u8; 3]), (None, vec![])]));
    same(Cow::<str>::Owned("x".into()));
    same(Some(Cow::<[u8]>::Owned(vec![1, 2])));
    same(Ok::<Option<()>, String>(Some(())));
    same(1u32..5);
    same([[1u8; 4]; 4]);
    same((1u8, (2u8, 3u8), [4u8]));
    same(std::num::NonZeroU128::MAX);
    same(Some(std::marker::PhantomData::<u8>));
    same(std::sync::atomic::AtomicBool::new(true).into_inner());
}

/// Types that understand each other with the serializer of their own format by names of serde's.
#[test]
fn values_of_data_formats_come_back() {
    use rmpv::Value::{Array, Boolean, Ext};
    let named = |tag: i8, length: usize| Ext(tag, vec![7; length]);
    for tag in [42, 1, 2, 3, 4, 5, 0, -1, i8::MIN] {
        for length in [0, 1, 2, 16, 255, 70_000] {
            same(named(tag, length));
        }
    }
    same(Array(vec![named(1, 3), Array(vec![named(-1, 4)]), Boolean(true)]));
    same((Some(named(1, 1)), Some(Some(named(2, 2))), None::<rmpv::Value>));
    same(HashMap::from([("key".to_owned(), named(3, 3))]));
    same(Buffered::Value(Array(vec![named(1, 3)])));
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Buffered {
        Number(u8),
        Value(rmpv::Value),
    }

    let json: serde_json::Value = serde_json::from_str(
        r#"{"a": [1, -2.50, 123456789012345678901234567890, 1e400], "b": null}"#,
    )
    .unwrap();
    same(json.clone());
    same(json["a"][2].as_number().unwrap().clone());
    let raw = serde_json::value::RawValue::from_string("[1,  2]".into()).unwrap();
    let raw: Box<serde_json::value::RawValue> = decode(&bytes_of(&Some(raw))).unwrap();
    assert_eq!(raw.get(), "[1,  2]");

    let document: toml::Table =
        toml::from_str("at = 1979-05-27T07:32:00.5Z\nday = 1979-05-27\nall = [07:32:00, 1, 2.5]")
            .unwrap();
    same(toml::Value::Table(document.clone()));
    same(document["at"].as_datetime().copied().unwrap());

    use ciborium::Value as Cbor;
    let tagged =
        Cbor::Tag(1, Box::new(Cbor::Array(vec![Cbor::Tag(u64::MAX, Box::new(Cbor::Null))])));
    same(tagged.clone());
    same(Cbor::Map(vec![(Cbor::Text("x".into()), tagged), (Cbor::Null, Cbor::Bytes(vec![1]))]));
    same(ciborium::tag::Captured(Some(7), 5u8));
    same(ciborium::tag::Required::<String, 7>("x".into()));

    let date = plist::Date::from_xml_format("1981-05-16T11:32:06Z").unwrap();
    same(date);
    same(plist::Value::Date(date));
    same(plist::Uid::new(7));
    same(plist::Value::Array(vec![
        plist::Value::Uid(plist::Uid::new(7)),
        plist::Value::Date(date),
    ]));
    same(plist::Value::Data(vec![1, 2]));
}

#[test]
fn a_named_value_is_read_by_a_type_that_does_not_know_the_name() {
    let ext = bytes_of(&rmpv::Value::Ext(-1, vec![7, 8]));
    let content = [&b"\xaa_ExtStruct"[..], &[0x92, 0xff, 0xd5, EXT_BYTES, 7, 8]].concat();
    assert_eq!(ext, [&[0xc7, content.len() as u8, EXT_NAMED], &content[..]].concat());
    assert_eq!(decode::<(i8, ByteBuf)>(&ext).unwrap(), (-1, ByteBuf::from([7, 8])));
    let date = plist::Date::from_xml_format("1981-05-16T11:32:06Z").unwrap();
    assert_eq!(decode::<String>(&bytes_of(&date)).unwrap(), "1981-05-16T11:32:06Z");
    assert_eq!(decode::<u128>(&bytes_of(&plist::Uid::new(7))).unwrap(), 7);
    // Whatever another process sends in the place of one.
    for content in [&[][..], &[0xc0], &[0xa1], &[0xaa], b"\xaa_ExtStruct", b"\xa1x\xc0\xc0"] {
        let bytes = [&[0xc7, content.len() as u8, EXT_NAMED], content].concat();
        decode::<rmpv::Value>(&bytes).unwrap_err();
        decode::<New<u8>>(&bytes).unwrap_err();
        decode::<plist::Value>(&bytes).unwrap_err();
    }
}

#[test]
fn bytes_and_lists_are_told_apart_behind_a_buffer() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Id(Id),
        List(Vec<u8>),
    }
    same(Either::Id(Id([1; 16])));
    same(Either::List(vec![1; 16]));
    same(Either::List(vec![]));
    same(vec![Some(Either::List(vec![1; 300])), Some(Either::Id(Id([255; 16])))]);
}

#[test]
fn kinds_of_bytes_are_interchangeable_for_a_type_that_knows() {
    let list = vec![1u8; 16];
    let string = ByteBuf::from(list.clone());
    assert_eq!(decode::<Vec<u8>>(&bytes_of(&string)).unwrap(), list);
    assert_eq!(decode::<[u8; 16]>(&bytes_of(&string)).unwrap()[..], list);
    assert_eq!(decode::<ByteBuf>(&bytes_of(&list)).unwrap(), string);
    assert_eq!(decode::<Id>(&bytes_of(&list)).unwrap(), Id([1; 16]));
    assert_eq!(decode::<Id>(&bytes_of(&vec![1u16; 16])).unwrap(), Id([1; 16]));
    assert_eq!(decode::<Vec<u16>>(&bytes_of(&list)).unwrap(), [1; 16]);
    assert_eq!(decode::<Vec<Option<New<i128>>>>(&bytes_of(&list)).unwrap(), vec![Some(New(1)); 16]);
    assert_eq!(decode::<(u8, u16)>(&bytes_of(&(1u8, 2u8))).unwrap(), (1, 2));
    assert_eq!(decode::<ByteBuf>(&bytes_of("ab")).unwrap(), ByteBuf::from("ab"));
    assert!(decode::<ByteBuf>(&bytes_of(&vec![1000u16])).is_err());
    assert!(decode::<[u8; 15]>(&bytes_of(&list)).is_err());
    assert!(decode::<[u8; 17]>(&bytes_of(&list)).is_err());
}

#[test]
fn a_some_is_read_by_a_type_that_is_no_option() {
    decode::<()>(&bytes_of(&Some(()))).unwrap();
    decode::<UnitStruct>(&bytes_of(&Some(Some(UnitStruct)))).unwrap();
    decode::<UnitStruct>(&[0x90]).unwrap();
}

#[test]
fn several_values() {
    let mut bytes = bytes_of(&5u8);
    encode("x", &mut bytes, 100).unwrap();
    encode(&Some(None::<u8>), &mut bytes, 100).unwrap();
    let mut reader = Reader::new(&bytes);
    assert_eq!(reader.next::<u64>().unwrap(), 5);
    assert_eq!(reader.next::<&str>().unwrap(), "x");
    assert_eq!(reader.next::<Option<Option<u8>>>().unwrap(), Some(None));
    reader.finish().unwrap();
    let mut reader = Reader::new(&bytes);
    reader.next::<u64>().unwrap();
    assert_eq!(reader.finish(), Err(DecodeError::Trailing { at: 1, count: 5 }));
    assert_eq!(decode::<u8>(&[]), Err(DecodeError::End { at: 0 }));
}

#[test]
fn errors_say_where() {
    #[track_caller]
    fn says<T: DeserializeOwned + Debug>(bytes: &[u8], expected: &str) {
        assert_eq!(decode::<T>(bytes).unwrap_err().to_string(), expected);
    }
    says::<(u8, u8)>(
        &[0x92, 1, 0xcd, 1, 0],
        "invalid value: integer `256`, expected u8, at byte 2",
    );
    says::<Vec<u8>>(&[0x92, 1, 0xa1, b'x'], "invalid type: string \"x\", expected u8, at byte 2");
    says::<Vec<u8>>(
        &[0xdd, 0xff, 0xff, 0xff, 0xff, 0],
        "the header at byte 0 claims at least 4294967295 bytes of content, 1 are left for it",
    );
    says::<String>(&[0x91, 0xd9], "invalid type: sequence, expected a string, at byte 0");
    says::<String>(&[0xd9], "the bytes end within a value, at byte 1");
    says::<String>(&[0xa3, b'a', 0xff, b'b'], "a string is not UTF-8 at byte 2");
    says::<u8>(&[0xc1], "no value begins with 0xc1, found at byte 0");
    says::<Vec<u8>>(&[0x91, 0xd4, 9, 9], "unknown extension of type 9 and length 1 at byte 1");
    says::<(u8, u8)>(&[0xc4, 3, 1, 2, 3], "1 more elements than the type takes, from byte 4 on");
    says::<(u8, u16)>(&[0x93, 1, 2, 3], "1 more elements than the type takes, from byte 3 on");
    says::<u8>(&[1, 2, 3], "2 bytes follow the value, from byte 1 on");
    says::<u128>(&bytes_of(&-1), "invalid value: integer `-1`, expected u128, at byte 0");
    says::<Key>(
        &bytes_of("Other"),
        "unknown variant `Other`, expected one of `Unit`, `New`, `Tuple`, `Struct`, at byte 0",
    );
    says::<Key>(
        &bytes_of("New"),
        "invalid type: unit variant, expected newtype variant, at byte 0",
    );
}

/// A type whose values take much room on the stack while they are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::wire) struct Fat {
    a: [u64; 16],
    b: Option<[u64; 16]>,
    c: (String, String, [u64; 8]),
    d: Option<Box<Fat>>,
    e: FatEnum,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::wire) enum FatEnum {
    None,
    Struct { a: [u64; 32], next: Box<Fat> },
    Tuple([u64; 32], Box<FatEnum>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::wire) struct Chain(Option<Box<Chain>>);

#[derive(Debug, Deserialize)]
struct Endless(#[expect(dead_code, reason = "it cannot be made")] Box<Endless>);

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::wire) struct Tree(Vec<Tree>);

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum UntaggedTree {
    Leaf(u8),
    Node(Vec<UntaggedTree>),
    Maybe(Option<Box<UntaggedTree>>),
}

pub(in crate::wire) fn fat(levels: usize) -> Fat {
    let mut fat = Fat { a: [1; 16], b: None, c: Default::default(), d: None, e: FatEnum::None };
    for level in 0..levels {
        let mut outer = fat.clone();
        match level % 3 {
            0 => (outer.d, outer.e) = (Some(Box::new(fat)), FatEnum::None),
            1 => (outer.d, outer.e) = (None, FatEnum::Struct { a: [7; 32], next: Box::new(fat) }),
            _ => {
                (outer.d, outer.e) = (
                    None,
                    FatEnum::Tuple(
                        [2; 32],
                        Box::new(FatEnum::Struct { a: [7; 32], next: Box::new(fat) }),
                    ),
                )
            }
        }
        fat = outer;
    }
    fat
}

#[test]
fn depth() {
    let run = || {
        // Each level of `Tree` is a newtype struct and an array.
        let mut tree = Tree(vec![]);
        for _ in 1..DEPTH_MAX / 2 {
            tree = Tree(vec![tree]);
        }
        let bytes = bytes_of(&tree);
        decode::<Tree>(&bytes).unwrap();
        let tree = Tree(vec![tree]);
        assert_eq!(encode(&tree, &mut Vec::new(), usize::MAX), Err(EncodeError::TooDeep));

        let mut bytes = vec![0x91; DEPTH_MAX - 1];
        bytes.push(0x90);
        decode::<serde::de::IgnoredAny>(&bytes).unwrap();
        bytes.insert(0, 0x91);
        assert_eq!(
            decode::<serde::de::IgnoredAny>(&bytes).unwrap_err(),
            DecodeError::TooDeep { at: DEPTH_MAX }
        );

        for unit in [&[0x91][..], &[0x81, 0xa1, b'd'], &[0x92, 0x00]] {
            let mut bytes = unit.repeat(100_000);
            bytes.push(0xc0);
            decode::<UntaggedTree>(&bytes).unwrap_err();
            decode::<Fat>(&bytes).unwrap_err();
            decode::<Ambiguous>(&bytes).unwrap_err();
            decode::<Flat>(&bytes).unwrap_err();
            drop(decode::<serde::de::IgnoredAny>(&bytes));
            if unit == [0x91] {
                assert!(matches!(decode::<Tree>(&bytes), Err(DecodeError::TooDeep { .. })));
                assert!(matches!(decode::<UntaggedTree>(&bytes), Err(DecodeError::TooDeep { .. })));
                assert!(matches!(
                    decode::<serde::de::IgnoredAny>(&bytes),
                    Err(DecodeError::TooDeep { .. })
                ));
            }
        }
        // Types without end, which take no bytes for a level.
        assert!(matches!(decode::<Chain>(&[5]), Err(DecodeError::TooDeep { .. })));
        assert!(matches!(decode::<Endless>(&[5]), Err(DecodeError::TooDeep { .. })));
        assert!(matches!(decode::<Vec<Chain>>(&[0xc4, 1, 5]), Err(DecodeError::TooDeep { at: 2 })));

        // As deep as may be, and then too deep, with a type that needs much of the stack.
        let mut deepest = 0;
        for levels in 1..DEPTH_MAX {
            let value = fat(levels);
            let mut bytes = Vec::new();
            match encode(&value, &mut bytes, usize::MAX) {
                Ok(()) if levels > 60 => assert_eq!(decode::<Fat>(&bytes).unwrap(), value),
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error, EncodeError::TooDeep);
                    break;
                }
            }
            deepest = levels;
        }
        assert!(deepest > 70, "{deepest}");
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
}

#[test]
fn nothing_is_allocated_for_a_false_claim() {
    assert!(matches!(
        decode::<Vec<u8>>(&[0xc6, 0xff, 0xff, 0xff, 0xff]),
        Err(DecodeError::Claim { needed: 0xffff_ffff, .. })
    ));
    assert!(matches!(
        decode::<HashMap<u8, u8>>(&[0xdf, 0, 0, 0, 2, 1, 2, 3]),
        Err(DecodeError::Claim { needed: 4, left: 3, at: 0 })
    ));
    assert!(matches!(
        decode::<ByteBuf>(&[0xdd, 0xff, 0xff, 0xff, 0xff]),
        Err(DecodeError::Claim { .. })
    ));
    assert!(matches!(
        decode::<serde::de::IgnoredAny>(&[0xdd, 0xff, 0xff, 0xff, 0xff]),
        Err(DecodeError::Claim { .. })
    ));
    assert!(matches!(decode::<Key>(&[0x81]), Err(DecodeError::Claim { .. })));
    // What an outer array still needs an inner one cannot have.
    assert!(matches!(
        decode::<Vec<Vec<u64>>>(&[0x92, 0x91, 0xc0]),
        Err(DecodeError::Claim { needed: 1, left: 0, at: 1 })
    ));
    same(vec![vec![1u64 << 40], vec![]]);
}

#[test]
fn claims_within_each_other_are_given_room_once() {
    // Each of a hundred arrays, one in the other, claims all that follows.
    let count = 1 << 16;
    let mut bytes: Vec<u8> = [[0xdd, 0, 0, 0xff, 0]; 100].concat();
    bytes.resize(count, 0xc0);
    let (result, peak) = peak_of(|| decode::<Tree>(&bytes));
    assert!(matches!(result, Err(DecodeError::Claim { .. })));
    // One array's worth, and not a hundred.
    assert!(peak <= 2 * count * size_of::<Tree>(), "{peak}");
}

#[test]
fn a_marked_some_is_read_in_every_form() {
    for head in [&[0xd4, 1][..], &[0xc7, 1, 1], &[0xc8, 0, 1, 1], &[0xc9, 0, 0, 0, 1, 1]] {
        let some = [head, &[0xc0]].concat();
        assert_eq!(decode::<Option<()>>(&some), Ok(Some(())));
        assert_eq!(decode::<Option<Option<u8>>>(&some), Ok(Some(None)));
        assert_eq!(decode::<Option<u8>>(&[head, &[5]].concat()), Ok(Some(5)));
        assert_eq!(decode::<u8>(&[head, &[5]].concat()), Ok(5));
        decode::<()>(&some).unwrap();
        let list = [&[0x92], &some[..], &[7]].concat();
        assert!(decode::<serde::de::IgnoredAny>(&list).is_ok());
        assert_eq!(decode::<(Option<()>, u8)>(&list), Ok((Some(()), 7)));
    }
    let some = |content: &[u8]| [&[0xc7, content.len() as u8, 1], content].concat();
    assert_eq!(decode::<Key>(&some(&bytes_of(&Key::New(5)))), Ok(Key::New(5)));
    assert_eq!(decode::<i128>(&some(&some(&bytes_of(&i128::MIN)))), Ok(i128::MIN));
    assert_eq!(decode::<Vec<u8>>(&some(&bytes_of(&vec![1u8]))), Ok(vec![1]));
    // What is in it is one value.
    assert_eq!(
        decode::<Option<u8>>(&[0xd5, 1, 5, 6]),
        Err(DecodeError::Trailing { at: 3, count: 1 })
    );
    assert_eq!(decode::<Option<u8>>(&[0xc7, 0, 1]), Err(DecodeError::End { at: 3 }));
    assert!(decode::<Option<String>>(&[0xd4, 1, 0xa1, b'x']).is_err());
}

#[test]
fn marked_somes_within_each_other() {
    let chain =
        |levels: usize| (0..levels).fold(Chain(None), |chain, _| Chain(Some(Box::new(chain))));
    for levels in 0..DEPTH_MAX / 2 {
        let bytes = bytes_of(&chain(levels));
        assert!(bytes.len() <= 1 + 4 * levels);
        assert_eq!(bytes_of(&decode::<Chain>(&bytes).unwrap()), bytes, "{levels} levels");
        // It is one value for whoever knows nothing of options.
        assert!(rmp_serde::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok());
    }
    assert_eq!(encode(&chain(DEPTH_MAX / 2 + 1), &mut Vec::new(), 9999), Err(EncodeError::TooDeep));
}

#[test]
fn a_large_value_stops_at_the_limit() {
    let mut out = vec![0; 10];
    assert_eq!(
        encode(&vec![1u8; 1 << 20], &mut out, 1000),
        Err(EncodeError::TooLarge { limit: 1000 })
    );
    assert_eq!(
        encode(&ByteBuf::from(vec![1u8; 1 << 20]), &mut out, 1000),
        Err(EncodeError::TooLarge { limit: 1000 })
    );
    assert_eq!(
        encode(&"x".repeat(1 << 20), &mut out, 1000),
        Err(EncodeError::TooLarge { limit: 1000 })
    );
    assert_eq!(
        encode(&vec![1u64 << 60; 1 << 20], &mut out, 1000),
        Err(EncodeError::TooLarge { limit: 1000 })
    );
    assert!(out.capacity() <= 4096, "{}", out.capacity());
    assert_eq!(encode(&1, &mut out, 5), Err(EncodeError::TooLarge { limit: 5 }));
    assert_eq!(out, [0; 10]);
}

/// Not a test of anything, but the way to see what it costs: `cargo test --release --lib cost --
/// --ignored --nocapture`.
#[test]
#[ignore = "measures time"]
fn cost() {
    fn time(name: &str, per: usize, mut run: impl FnMut()) {
        let mut best = f64::MAX;
        for _ in 0..20 {
            let start = std::time::Instant::now();
            run();
            best = best.min(start.elapsed().as_nanos() as f64 / per as f64);
        }
        eprintln!("{name:30} {best:8.2} ns");
    }
    use std::hint::black_box;
    let count = 100_000;
    let mut out = Vec::with_capacity(16 << 20);
    for (name, value) in [("u64 small", 5u64), ("u64 large", u64::MAX)] {
        time(&format!("{name}, both ways"), count, || {
            for _ in 0..count {
                out.clear();
                encode(black_box(&value), &mut out, 1 << 20).unwrap();
                black_box(decode::<u64>(black_box(&out)).unwrap());
            }
        });
    }
    let tuple = (5u64, "hello".to_owned(), 7i32);
    time("(u64, String, i32), both ways", count, || {
        for _ in 0..count {
            out.clear();
            encode(black_box(&tuple), &mut out, 1 << 20).unwrap();
            black_box(decode::<(u64, String, i32)>(black_box(&out)).unwrap());
        }
    });
    let list = vec![0xa5u8; 8 << 20];
    time("Vec<u8>, encode, a byte", list.len(), || {
        out.clear();
        encode(black_box(&list), &mut out, usize::MAX).unwrap();
    });
    time("Vec<u8>, decode, a byte", list.len(), || {
        drop(black_box(decode::<Vec<u8>>(black_box(&out)).unwrap()))
    });
    let words: Vec<u64> = (0..1 << 20).map(|word| word << 20).collect();
    time("Vec<u64>, encode, an element", words.len(), || {
        out.clear();
        encode(black_box(&words), &mut out, usize::MAX).unwrap();
    });
    time("Vec<u64>, decode, an element", words.len(), || {
        drop(black_box(decode::<Vec<u64>>(black_box(&out)).unwrap()))
    });
}
