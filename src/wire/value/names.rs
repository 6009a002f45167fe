//! Handles of shared objects within values.
//!
//! A handle is no data: it stands for a reference to something that lives elsewhere. So an encoded
//! value holds only who is meant ([`Payload`]), and the reference itself, a [`Thing`], travels
//! beside it: [`collecting`] gives what was named while something was encoded, and [`resolving`]
//! takes what came beside the bytes that are to be decoded. Who sends the bytes on has to send the
//! things on, and to keep both for as long as either.
//!
//! Any other serializer has nowhere to put the reference, so there the handle refuses. Ours is
//! known by the name of the newtype struct in which a handle stands: it opens a gate around the
//! content, and only behind that gate the content agrees to be encoded. (That a collection is under
//! way is not enough: within it, a type's own `Serialize` may use another serializer.)

use super::DecodeError;
use crate::wire::packet::Packet;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};
use serde::ser::{self, Serialize, Serializer};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::thread::LocalKey;

/// A reference to a shared object, as far as bytes need to know it.
pub(crate) type Thing = Arc<dyn Any + Send + Sync>;

/// What was named, where as a rule nothing is.
pub(crate) type Things = Option<Arc<Vec<Thing>>>;

/// An encoded value, and the references that it names.
#[derive(Clone)]
pub(crate) struct Encoded {
    pub(crate) value: Packet,
    pub(crate) things: Things,
}

impl Encoded {
    /// Decodes it; handles in it are made of the references.
    pub(crate) fn decode<T: DeserializeOwned>(self) -> Result<T, DecodeError> {
        let decode = || super::decode(&self.value);
        match self.things {
            None => decode(),
            Some(things) => resolving(Arc::unwrap_or_clone(things), decode),
        }
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoded")
            .field("value", &self.value)
            .field("things", &self.things.as_ref().map_or(0, |t| t.len()))
            .finish()
    }
}

/// The newtype struct in which a handle stands. Compared by its address, so it must stay one
/// static.
pub(super) static HANDLE: &str = "procpool::Handle";

/// Which object is meant: its manager's number, its own, and in which part it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Who {
    pub(crate) manager: u64,
    pub(crate) object: u64,
    pub(crate) part: u8,
}

/// Bytes of an encoded [`Who`].
pub(crate) const LEN: usize = 17;

// Without destructors, so that values can be encoded and decoded as late as in the destructor of
// another thread-local variable. Nothing leaks: each is empty whenever no call is under way.
thread_local! {
    /// What is being collected.
    static COLLECTED: Cell<Collected> = const { Cell::new(Collected { depth: 0, things: 0 }) };
    /// What has been named so far: what the outermost collection has, first.
    static NAMED: RefCell<ManuallyDrop<Vec<Thing>>> =
        const { RefCell::new(ManuallyDrop::new(Vec::new())) };
    /// Our serializer is at the content of a handle.
    static GATE: Cell<bool> = const { Cell::new(false) };
    /// What came beside the bytes that are being decoded, and where the last one was found.
    static CAME: Late<(Vec<Thing>, usize)> = const { RefCell::new(ManuallyDrop::new(None)) };
}

/// As a rule nothing is named, which is to cost nothing: so this says whether there is anything to
/// be looked for.
#[derive(Clone, Copy)]
struct Collected {
    /// How many collections are under way, each within the one before.
    depth: usize,
    /// How many things they have noted.
    things: usize,
}

type Late<T> = RefCell<ManuallyDrop<Option<T>>>;

/// Puts a value in, and gives the one that was there.
fn replace<T>(place: &'static LocalKey<Late<T>>, value: Option<T>) -> Option<T> {
    ManuallyDrop::into_inner(place.replace(ManuallyDrop::new(value)))
}

/// Puts a thread's state back, however the call ends.
struct Restore<F: FnMut()>(F);

impl<F: FnMut()> Drop for Restore<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Runs `encode`, and gives what was named by the values that it encoded.
#[inline]
pub(crate) fn collecting<R>(encode: impl FnOnce() -> R) -> (R, Vec<Thing>) {
    let before = COLLECTED.get();
    COLLECTED.set(Collected { depth: before.depth + 1, ..before });
    let mut named = Vec::new();
    let restore = Restore(|| {
        if COLLECTED.replace(before).things > before.things {
            named = named_since(before.things);
        }
    });
    let result = encode();
    drop(restore);
    (result, named)
}

/// Takes all but the first so many things that are noted.
#[cold]
fn named_since(before: usize) -> Vec<Thing> {
    NAMED.with_borrow_mut(|named| match before {
        0 => std::mem::take(&mut **named), // with its memory, which else would leak
        _ => named.split_off(before),
    })
}

/// Runs `decode`; the handles within the values that it decodes are found among `things`.
pub(crate) fn resolving<R>(things: Vec<Thing>, decode: impl FnOnce() -> R) -> R {
    let mut outer = replace(&CAME, Some((things, 0)));
    // What is left over is dropped outside of the borrow: that may run code which decodes.
    let _restore = Restore(|| drop(replace(&CAME, outer.take())));
    decode()
}

/// Writes a handle's content, by our own serializer.
pub(super) fn behind_the_gate<R>(write: impl FnOnce() -> R) -> R {
    let outer = GATE.replace(true);
    let _restore = Restore(|| GATE.set(outer));
    write()
}

/// Encodes a handle.
pub(crate) fn serialize<S: Serializer>(
    who: Who,
    thing: &Thing,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_newtype_struct(HANDLE, &Payload { who, thing })
}

struct Payload<'a> {
    who: Who,
    thing: &'a Thing,
}

impl Serialize for Payload<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let collected = COLLECTED.get();
        if GATE.get() && collected.depth > 0 {
            NAMED.with_borrow_mut(|named| named.push(Arc::clone(self.thing)));
            COLLECTED.set(Collected { things: collected.things + 1, ..collected });
        } else {
            return Err(ser::Error::custom(
                "a handle of a shared object travels only as an argument or a result of a task, or as a value in another shared object",
            ));
        }
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&self.who.manager.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.who.object.to_be_bytes());
        bytes[16] = self.who.part;
        serializer.serialize_bytes(&bytes)
    }
}

/// Decodes a handle: gives the reference that came beside the bytes. `identify` says which object a
/// thing is a reference to.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
    identify: impl Fn(&Thing) -> Option<Who>,
) -> Result<Thing, D::Error> {
    let who = deserializer.deserialize_newtype_struct(HANDLE, Within)?;
    CAME.with_borrow_mut(|came| {
        let (things, last) = came
            .as_mut()
            .ok_or_else(|| de::Error::custom("a handle of a shared object where none can be"))?;
        // As a rule they are met in the order in which they came.
        let len = things.len();
        for at in (0..len).map(|step| (*last + step) % len) {
            if identify(&things[at]) == Some(who) {
                *last = at;
                return Ok(Arc::clone(&things[at]));
            }
        }
        Err(de::Error::custom("a handle of a shared object that did not come with it"))
    })
}

struct Within;

impl<'de> Visitor<'de> for Within {
    type Value = Who;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a handle of a shared object")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Who, D::Error> {
        deserializer.deserialize_bytes(self)
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Who, E> {
        let bytes: &[u8; LEN] =
            bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        Ok(Who { manager: number(0), object: number(8), part: bytes[16] })
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Who, E> {
        self.visit_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Who {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(HANDLE, Within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::value::{decode, encode};
    use serde::Serialize;

    #[derive(Clone, Debug, PartialEq)]
    struct Door(u64);

    fn who(door: &Door) -> Who {
        Who { manager: 7, object: door.0, part: 0 }
    }

    impl Serialize for Door {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let thing: Thing = Arc::new(self.clone());
            serialize(who(self), &thing, serializer)
        }
    }

    impl<'de> Deserialize<'de> for Door {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let thing = deserialize(deserializer, |thing| thing.downcast_ref().map(who))?;
            Ok(thing.downcast_ref::<Self>().expect("identified").clone())
        }
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    #[serde(untagged)]
    enum Buffered {
        Number(u64),
        Doors(Vec<Option<Door>>),
    }

    fn through<T: Serialize + DeserializeOwned>(value: &T) -> (T, usize) {
        let mut out = Vec::new();
        let (result, things) = collecting(|| encode(value, &mut out, usize::MAX));
        result.expect("it can be encoded");
        let count = things.len();
        (resolving(things, || decode(&out)).expect("it can be decoded"), count)
    }

    #[test]
    fn a_handle_comes_back_wherever_it_stands() {
        let doors = Buffered::Doors(vec![Some(Door(1)), None, Some(Door(2)), Some(Door(1))]);
        assert_eq!(through(&doors), (doors, 3));
        assert_eq!(through(&(3, Some(Some(Door(9))))), ((3, Some(Some(Door(9)))), 1));
    }

    #[test]
    fn another_serializer_is_refused_even_within_ours() {
        let refused = rmp_serde::to_vec(&Door(1)).expect_err("no other serializer");
        assert!(refused.to_string().contains("travels only"), "{refused}");

        struct Smuggler;
        impl Serialize for Smuggler {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let bytes = rmp_serde::to_vec(&Door(1)).map_err(ser::Error::custom)?;
                serializer.serialize_bytes(&bytes)
            }
        }
        let (result, things) = collecting(|| encode(&Smuggler, &mut Vec::new(), usize::MAX));
        assert!(result.is_err() && things.is_empty());
    }

    #[test]
    fn where_nobody_collects_or_brings_it_is_an_error() {
        let mut out = Vec::new();
        assert!(encode(&Door(1), &mut out, usize::MAX).is_err());
        collecting(|| encode(&Door(1), &mut out, usize::MAX)).0.expect("collected");
        let error = decode::<Door>(&out).expect_err("nothing came").to_string();
        assert!(error.contains("where none can be"), "{error}");
        let other: Thing = Arc::new(Door(2));
        let error =
            resolving(vec![other], || decode::<Door>(&out)).expect_err("another came").to_string();
        assert!(error.contains("did not come"), "{error}");
    }

    #[test]
    fn what_collects_within_keeps_its_own() {
        let ((_, inner), outer) = collecting(|| {
            let mut out = Vec::new();
            encode(&Door(1), &mut out, usize::MAX).expect("outer");
            let inner =
                collecting(|| encode(&[Door(2), Door(3)], &mut Vec::new(), usize::MAX)).1.len();
            encode(&Door(4), &mut out, usize::MAX).expect("outer again");
            (out, inner)
        });
        assert_eq!((inner, outer.len()), (2, 2));
    }
}
