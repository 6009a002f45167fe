//! Random and broken bytes, and what must never follow from them: a panic, a stack that overflows,
//! memory out of proportion, a value that is not the one that was sent.
//!
//! Cases are made from real frames, messages and values, which `mutate.rs` breaks. Each is made
//! from one number. As a rule some thousand of them are run, always the same. Two variables change
//! that:
//!
//! * `PROCPOOL_FUZZ_SECONDS`: each level for so long, beginning anywhere;
//! * `PROCPOOL_FUZZ_SEED`: beginning there. A failure says which number makes its case the first
//!   one; so does, after a crash that leaves no time for words, the file that is named at the
//!   beginning.
//!
//! # Longer runs
//!
//! By hand, on one slow core, with overflow checks: values for 48 minutes (the last 25 of them 2.6
//! million cases from seed 20260201), messages for 10 minutes (3.7 million), frames for 3 minutes
//! (450,000), hostile workers (`src/pool/hostile_workers.rs`) for 5 minutes (6,900 pools, seed 99),
//! and libFuzzer, guided by coverage, over values and messages for 15 minutes (34 million). Found
//! and fixed:
//!
//! * nested heads were each given room for all that is left: a frame of 64 KiB could take 128 MB;
//! * the marker of a `Some` in a longer form was not known where a value is skipped, so the rest
//!   was read one value off;
//! * bytes after the map of a message were skipped, and a map could be nested a thousand levels
//!   deep;
//! * before READY, descriptors that were not due piled up, one for each byte of a frame;
//! * a grandchild that went on writing to a dead worker's socket could keep the pool reading;
//! * a descriptor whose closing lasts (a TCP socket that lingers) delayed the reader of the socket,
//!   although the kernel closed it.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

pub(crate) mod mutate;

use self::mutate::{Rng, STEP, mutate};
use super::counting::peak_of;
use super::frame::{self, FrameBuffer, HEAD};
use super::message::{
    self, Bad, Callee, Failed, Hello, InitFailed, Message, RunHead, Welcome, kind,
};
use super::value::tests::{Chain, Tree, ambiguous, derived, fat, rich};
use super::value::{DEPTH_MAX, DecodeError, EncodeError, Reader, decode, encode};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::{ByteBuf, Bytes};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Debug, Write as _};
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// What is decoded is decoded on a thread of tokio or of the application: a stack is as small as
/// that.
const STACK: usize = 2 << 20;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// How often what came out of it, so that a run that tried nothing is seen.
pub(crate) type Tally = BTreeMap<String, u64>;

/// Runs cases; each gets the generator that makes it.
pub(crate) fn run(
    level: &'static str,
    cases: u64,
    case: impl Fn(&mut Rng, &mut Tally) + Send + 'static,
) -> Tally {
    struct Case(u64);
    impl Drop for Case {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("run it again with PROCPOOL_FUZZ_SEED={}", self.0);
            }
        }
    }
    let body = move || {
        let seconds = number("PROCPOOL_FUZZ_SECONDS");
        let clock =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed =
            number("PROCPOOL_FUZZ_SEED").unwrap_or(if seconds.is_some() { clock } else { 1 });
        let path =
            std::env::temp_dir().join(format!("procpool-fuzz-{level}-{}", std::process::id()));
        let noted = File::create(&path).unwrap();
        eprintln!("{level}: from {seed} on; the case that runs is noted in {}", path.display());
        let (start, mut count, mut tally) = (Instant::now(), 0, Tally::new());
        loop {
            let go_on = match seconds {
                Some(seconds) => start.elapsed() < Duration::from_secs(seconds),
                None => count < cases,
            };
            if !go_on {
                break;
            }
            let guard = Case(seed.wrapping_add(STEP.wrapping_mul(count)));
            noted.write_all_at(format!("{:020}", guard.0).as_bytes(), 0).unwrap();
            case(&mut Rng(guard.0), &mut tally);
            count += 1;
        }
        std::fs::remove_file(path).unwrap();
        eprintln!("{level}: {count} cases in {:?}, seed {seed}: {tally:?}", start.elapsed());
        tally
    };
    std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(body)
        .unwrap()
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(crate) fn count(tally: &mut Tally, what: &str) {
    match tally.get_mut(what) {
        Some(count) => *count += 1,
        None => drop(tally.insert(what.to_owned(), 1)),
    }
}

// ---- frames

/// What the bytes say, all of them at hand.
fn frames_of(mut bytes: &[u8], limit: usize) -> (Vec<Vec<u8>>, Result<usize, usize>) {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() {
        let len = u32::from_le_bytes(*head) as usize;
        if len > limit {
            return (frames, Err(len));
        }
        let Some((body, rest)) = rest.split_at_checked(len) else { break };
        frames.push(body.to_vec());
        bytes = rest;
    }
    (frames, Ok(bytes.len()))
}

fn frame_case(rng: &mut Rng, tally: &mut Tally) {
    let mut bytes = Vec::new();
    for _ in 0..rng.below(8) {
        frame::write(&mut bytes, |bytes| {
            let most = if rng.one_in(8) { 300_000 } else { 5000 };
            bytes.resize(bytes.len() + rng.length(most), rng.word() as u8);
        });
    }
    for _ in 0..rng.below(3) {
        match bytes.len() {
            0 => bytes.extend(rng.word().to_le_bytes()),
            len => match rng.below(3) {
                0 => bytes.truncate(rng.below(len)),
                1 => bytes[rng.below(len)] = rng.word() as u8,
                _ => {
                    let at = rng.below(len);
                    bytes.splice(at..at, (rng.length(1 << 20) as u32).to_le_bytes());
                }
            },
        }
    }
    let limit = 1 << rng.below(31);
    let (frames, end) = frames_of(&bytes, limit);

    let (mut buffer, mut got, mut left) = (FrameBuffer::new(limit), Vec::new(), &bytes[..]);
    let step = 1 + rng.length(1 << 20).max(bytes.len() / 2000);
    let ended = 'read: loop {
        loop {
            match buffer.next_frame() {
                Ok(None) => break,
                Ok(Some(range)) if rng.one_in(4) => buffer.put_back(range),
                Ok(Some(range)) => {
                    assert_eq!(buffer.bytes(range.clone()).len(), range.len());
                    got.push(buffer.take(range).to_vec());
                }
                Err(error) => break 'read Err(error.len),
            }
        }
        if left.is_empty() {
            break Ok(buffer.rest());
        }
        let due = if rng.one_in(2) { buffer.due() } else { usize::MAX };
        let space = buffer.space();
        assert!(!space.is_empty() && due > 0);
        let n = step.min(space.len()).min(left.len()).min(due);
        space[..n].copy_from_slice(&left[..n]);
        left = &left[n..];
        buffer.filled(n);
        let received = bytes.len() - left.len();
        assert!(
            buffer.capacity() <= (128 << 10).max(received * 2),
            "{} bytes for {received}",
            buffer.capacity()
        );
    };
    assert_eq!((got, ended), (frames, end));
    count(tally, if end.is_ok() { "whole" } else { "too long" });
}

#[test]
fn broken_frames_come_out_as_they_are_or_not_at_all() {
    let tally = run("frames", 3000, frame_case);
    assert!(tally["whole"] > tally["too long"] && tally["too long"] > 0);
}

// ---- messages

/// A message as pool and worker read it. Values are kept as they are.
#[derive(Debug)]
enum Read {
    Hello(Hello),
    Ready,
    InitFailed(InitFailed),
    Done(u64, Vec<u8>),
    Again(u64, Vec<u8>),
    Failed(u64, Failed),
    Welcome(Welcome),
    Init(u32, u32, Vec<u8>),
    Exit(u32, u32, Vec<u8>),
    /// Slot and try; number, flags, index, how many arguments, and these.
    Call((u16, u8), u64, u8, u32, u32, Vec<u8>),
    /// Slot and try; number, flags, index, and the items.
    Run((u16, u8), u64, u8, u32, Vec<Vec<u8>>),
    Item(u64, Vec<u8>),
    Started(u64, u64),
    Ask(u64),
    Cancel(u64),
    Bell,
    Detached(u32),
    Other,
}

fn read_message(body: &[u8]) -> Result<Read, Bad> {
    let mut message = Message::new(body)?;
    let rest = |message: &Message<'_>| (message.rest().0, body[message.rest().1..].to_vec());
    Ok(match message.kind {
        kind::HELLO => Read::Hello(message.map()?),
        kind::READY => {
            message.end()?;
            Read::Ready
        }
        kind::INIT_FAILED => Read::InitFailed(message.map()?),
        kind::DONE | kind::AGAIN => {
            let again = message.kind == kind::AGAIN;
            let id = message.uint()?;
            let (1, value) = rest(&message) else {
                return Err(Bad("a result that is not one value".into()));
            };
            if again { Read::Again(id, value) } else { Read::Done(id, value) }
        }
        kind::ITEM => {
            let (id, at) = message::read_item_of_task(message)?;
            Read::Item(id, body[at..].to_vec())
        }
        kind::STARTED => {
            let read = Read::Started(message.uint()?, message.uint()?);
            message.end()?;
            read
        }
        kind::FAILED => Read::Failed(message.uint()?, message.map()?),
        kind::WELCOME => Read::Welcome(message.map()?),
        kind::INIT | kind::EXIT => {
            let read = if message.kind == kind::INIT { Read::Init } else { Read::Exit };
            let index = message.uint()?;
            let (arity, values) = rest(&message);
            read(index, arity, values)
        }
        kind::CALL => {
            let place = (message.uint()?, message.uint()?);
            let (id, flags, index) = (message.uint()?, message.uint()?, message.uint()?);
            let (arity, values) = rest(&message);
            Read::Call(place, id, flags, index, arity, values)
        }
        kind::RUN => {
            let RunHead { slot, attempt, id, flags, task, items, mut at } =
                message::read_run(body)?;
            // As a worker reads it: item by item.
            let mut read = Vec::new();
            for _ in 0..items {
                let range = message::read_item(body, at)?;
                at = range.end;
                read.push(body[range].to_vec());
            }
            Read::Run((slot, attempt), id, flags, task, read)
        }
        kind::ASK | kind::CANCEL => {
            let ask = message.kind == kind::ASK;
            let id = message.uint()?;
            message.end()?;
            if ask { Read::Ask(id) } else { Read::Cancel(id) }
        }
        kind::BELL => {
            message.end()?;
            Read::Bell
        }
        kind::DETACHED => {
            let pid = message.uint()?;
            message.end()?;
            Read::Detached(pid)
        }
        _ => Read::Other,
    })
}

fn write_message(message: &Read) -> Vec<u8> {
    let mut out = Vec::new();
    let mut values: &[u8] = &[];
    match message {
        Read::Hello(hello) => message::control(&mut out, kind::HELLO, hello),
        Read::Ready => message::ready(&mut out),
        Read::InitFailed(failed) => message::control(&mut out, kind::INIT_FAILED, failed),
        Read::Done(id, value) => {
            message::done(&mut out, *id);
            values = value;
        }
        Read::Again(id, value) => {
            message::done(&mut out, *id);
            message::worth_another_try(&mut out);
            values = value;
        }
        Read::Failed(id, failed) => message::failed(&mut out, *id, failed),
        Read::Welcome(welcome) => message::control(&mut out, kind::WELCOME, welcome),
        Read::Init(index, arity, args) => {
            message::init(&mut out, *index, *arity);
            values = args;
        }
        Read::Exit(index, arity, args) => {
            message::exit(&mut out, *index, *arity);
            values = args;
        }
        Read::Call((slot, attempt), id, flags, index, arity, args) => {
            message::call(&mut out, *id, *flags, Callee::Index(*index), *arity);
            message::address(&mut out[..message::ADDRESS_END], *slot, *attempt);
            values = args;
        }
        Read::Run((slot, attempt), id, flags, task, items) => {
            message::run(&mut out, *id, *flags, *task, items.len() as u16);
            message::address(&mut out[..message::ADDRESS_END], *slot, *attempt);
            for item in items {
                let start = message::begin_item(&mut out);
                out.extend(item);
                message::finish_item(&mut out, start);
            }
        }
        Read::Bell => message::bell(&mut out),
        Read::Detached(pid) => message::detached(&mut out, *pid),
        Read::Item(id, value) => {
            message::item(&mut out, *id);
            values = value;
        }
        Read::Started(id, nanos) => message::started(&mut out, *id, *nanos),
        Read::Ask(id) => message::ask(&mut out, *id),
        Read::Cancel(id) => message::cancel(&mut out, *id),
        Read::Other => {}
    }
    out.extend(values);
    out
}

pub(crate) fn messages() -> Vec<Vec<u8>> {
    let text = || "a text".to_owned();
    let all = [
        Read::Hello(Hello { protocol: 1, version: "0.1.0".into(), fingerprint: Some(u64::MAX) }),
        Read::Ready,
        Read::InitFailed(InitFailed::Error { message: text() }),
        Read::InitFailed(InitFailed::Panicked { message: text(), location: None }),
        Read::Done(3, vec![0x92, 1, 2]),
        Read::Done(70_000, vec![0xc0]),
        Read::Again(4, vec![0x81, 0xa3, b'E', b'r', b'r', 1]),
        Read::Failed(
            1,
            Failed::Panicked {
                message: text(),
                location: Some(text()),
                backtrace: Some("x".repeat(300)),
            },
        ),
        Read::Failed(1, Failed::Arguments { reason: text(), unattached: Some(7) }),
        Read::Failed(1 << 40, Failed::Result { reason: String::new() }),
        Read::Failed(0, Failed::TooLarge),
        Read::Failed(5, Failed::Cancelled),
        Read::Failed(6, Failed::NoRuntime { reason: text() }),
        Read::Welcome(Welcome {
            frame_limit: 1 << 30,
            depth: 1,
            init: true,
            template: true,
            exit: true,
            slots: 8,
            ring: 64,
            name: text(),
            limits: None,
            single: None,
        }),
        Read::Init(70_000, 2, vec![5, 0xc0]),
        Read::Exit(70_000, 2, vec![5, 0xc0]),
        Read::Call((1000, 3), 300, 1, 7, 8, vec![1, 2, 3, 4, 5, 6, 7, 8]),
        Read::Call((0, 1), 0, 0, 0, 0, vec![]),
        Read::Run((1000, 1), 300, 1, 7, vec![vec![1], vec![], vec![2; 300]]),
        Read::Run((0, 1), 0, 0, 0, vec![vec![0xcd, 1, 2]; 20]),
        Read::Bell,
        Read::Detached(4242),
        Read::Item(9, vec![0x92, 1, 2]),
        Read::Item(u64::MAX, vec![0xc0]),
        Read::Started(7, u64::MAX),
        Read::Ask(8),
        Read::Cancel(u64::MAX),
    ];
    all.iter().map(write_message).collect()
}

#[test]
fn broken_messages_are_read_right_or_refused() {
    let corpus = messages();
    let tally = run("messages", 30_000, move |rng, tally| {
        let mut body = rng.pick(&corpus).clone();
        if !rng.one_in(50) {
            mutate(&mut body, &corpus, rng);
        }
        let (read, peak) = peak_of(|| read_message(&body));
        assert!(peak <= 2048 + 4 * body.len(), "{peak} bytes for {}: {}", body.len(), hex(&body));
        match read {
            Ok(Read::Other) => count(tally, "other kinds"),
            // Longer than any of ours: it is to be read, never written.
            Ok(
                Read::Call(_, _, _, _, 9.., _)
                | Read::Call(_, _, 128.., ..)
                | Read::Run(_, _, 128.., ..)
                | Read::Init(_, 9.., _)
                | Read::Exit(_, 9.., _),
            ) => count(tally, "calls that nobody writes"),
            Ok(read) => {
                let (text, again) = (format!("{read:?}"), write_message(&read));
                assert_eq!(format!("{:?}", read_message(&again).unwrap()), text, "{}", hex(&body));
                count(tally, text.split([' ', '(', '{']).next().unwrap());
            }
            Err(Bad(reason)) => {
                assert!(reason.len() <= 512 + 2 * body.len());
                count(tally, "refused");
            }
        }
    });
    for name in [
        "Hello",
        "Ready",
        "InitFailed",
        "Done",
        "Again",
        "Failed",
        "Welcome",
        "Init",
        "Exit",
        "Call",
        "Ask",
        "Cancel",
        "Bell",
        "Detached",
        "refused",
        "other kinds",
    ] {
        assert!(tally.contains_key(name), "no {name} in {tally:?}");
    }
}

// ---- values

/// Whatever there is, as a type sees it that does not say what it wants; written as it was.
#[derive(Debug, Clone, PartialEq)]
enum Anything {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Single(u32),
    Double(u64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Anything>),
    Map(Vec<(Anything, Anything)>),
    Some(Box<Anything>),
}

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Anything;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_unit<E>(self) -> Result<Anything, E> {
                Ok(Anything::Nil)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Anything, E> {
                Ok(Anything::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Anything, E> {
                Ok(Anything::Unsigned(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Anything, E> {
                Ok(u64::try_from(value).map_or(Anything::Signed(value), Anything::Unsigned))
            }
            fn visit_f32<E>(self, value: f32) -> Result<Anything, E> {
                Ok(Anything::Single(value.to_bits()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Anything, E> {
                Ok(Anything::Double(value.to_bits()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Anything, E> {
                Ok(Anything::Text(value.to_owned()))
            }
            fn visit_bytes<E>(self, value: &[u8]) -> Result<Anything, E> {
                Ok(Anything::Bytes(value.to_vec()))
            }
            fn visit_some<D: Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<Anything, D::Error> {
                // Where it says nothing it is not written.
                Ok(match Anything::deserialize(deserializer)? {
                    inner @ (Anything::Nil | Anything::Some(_)) => Anything::Some(Box::new(inner)),
                    inner => inner,
                })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Anything, A::Error> {
                let mut list = Vec::new();
                while let Some(element) = seq.next_element()? {
                    list.push(element);
                }
                Ok(Anything::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Anything, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Anything::Map(entries))
            }
        }
        deserializer.deserialize_any(V)
    }
}

impl Serialize for Anything {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nil => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            // A list of these is one of `u8`, if that is what fits them all.
            Self::Unsigned(value) => match u8::try_from(*value) {
                Ok(value) => serializer.serialize_u8(value),
                Err(_) => serializer.serialize_u64(*value),
            },
            Self::Signed(value) => serializer.serialize_i64(*value),
            Self::Single(bits) => serializer.serialize_f32(f32::from_bits(*bits)),
            Self::Double(bits) => serializer.serialize_f64(f64::from_bits(*bits)),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Self::Some(inner) => serializer.serialize_some(inner),
            Self::List(list) => {
                let mut seq = serializer.serialize_seq(Some(list.len()))?;
                list.iter().try_for_each(|element| seq.serialize_element(element))?;
                seq.end()
            }
            Self::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                entries.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

/// What borrows from the bytes, and what may.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Borrowed<'a> {
    text: &'a str,
    #[serde(borrow)]
    maybe: Option<Option<Cow<'a, str>>>,
    bytes: &'a Bytes,
    #[serde(borrow)]
    more: BTreeMap<&'a str, &'a Bytes>,
}

/// The same, owned.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Owned {
    text: String,
    maybe: Option<Option<String>>,
    bytes: ByteBuf,
    more: BTreeMap<String, ByteBuf>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Library {
    times: (Duration, SystemTime),
    places: Vec<(IpAddr, Option<SocketAddr>)>,
    paths: BTreeSet<PathBuf>,
    name: std::ffi::OsString,
    c: Option<std::ffi::CString>,
    result: Result<Option<()>, Box<str>>,
    range: std::ops::RangeInclusive<i128>,
    odd: [Option<std::num::NonZeroU8>; 3],
    bound: std::ops::Bound<u128>,
    chars: Vec<char>,
    phantom: std::marker::PhantomData<u8>,
}

fn libraries() -> impl Strategy<Value = Library> {
    use proptest::prelude::any;
    (any::<(u64, i128, u128, char)>(), proptest::collection::vec(any::<u8>(), 0..4)).prop_map(
        |((a, b, c, d), list)| Library {
            times: (
                Duration::from_nanos(a),
                SystemTime::UNIX_EPOCH + Duration::from_micros(a >> 8),
            ),
            places: list
                .iter()
                .map(|byte| (IpAddr::from([*byte; 4]), Some(SocketAddr::from(([*byte; 16], 80)))))
                .collect(),
            paths: list.iter().map(|byte| PathBuf::from(format!("/{byte}"))).collect(),
            name: "name".into(),
            c: (a % 2 == 0).then(|| std::ffi::CString::new("c").unwrap()),
            result: if a % 3 == 0 { Ok(Some(())) } else { Err("no".into()) },
            range: b..=i128::MAX,
            odd: [None, std::num::NonZeroU8::new(a as u8), None],
            bound: std::ops::Bound::Excluded(c),
            chars: vec![d; list.len()],
            phantom: std::marker::PhantomData,
        },
    )
}

/// Whatever decodes must come back equal when it is sent.
#[derive(Clone, Copy, PartialEq)]
enum Fidelity {
    /// At once.
    Exact,
    /// After some times: these types take one value for another themselves (untagged variants that
    /// are told apart by nothing but what they hold).
    Settles,
}

struct Target {
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    check: Check,
}

type Check = Box<dyn Fn(&[u8], &mut Tally) + Send>;

/// `each`: how many bytes of memory one byte may become. That is the largest element of any list in
/// the type, three times: twice for a vector that grows, and for the shorter one that it has grown
/// out of. Untagged enums that stand in each other (those that [`Settles`](Fidelity::Settles)
/// stands for) hold what is in them once more at each level: that is serde's way, whatever the
/// format.
fn target<T>(name: &'static str, fidelity: Fidelity, each: usize, values: Vec<T>) -> Target
where
    T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
{
    let corpus = values.iter().map(bytes_of).collect();
    let check = move |bytes: &[u8], tally: &mut Tally| {
        let (decoded, peak) = peak_of(|| decode::<T>(bytes));
        let levels = if fidelity == Fidelity::Settles { depth(bytes) } else { 1 };
        let most = 4096 + each * bytes.len() * levels;
        assert!(peak <= most, "{peak} bytes for {} as {name}: {}", bytes.len(), hex(bytes));
        let value = match decoded {
            Ok(value) => value,
            Err(error) => return count_error(tally, &error, bytes.len()),
        };
        // To pass over it is to take exactly as much.
        let mut reader = Reader::new(bytes);
        reader
            .next::<IgnoredAny>()
            .and_then(|_| reader.finish())
            .unwrap_or_else(|error| panic!("{error}: {}", hex(bytes)));
        let mut again = Vec::new();
        match encode(&value, &mut again, usize::MAX) {
            // In serde's own buffer an option is no level when it is read; it is one when it is
            // written.
            Err(EncodeError::TooDeep) if fidelity == Fidelity::Settles => {
                return count(tally, "too deep to be sent on");
            }
            result => result.unwrap_or_else(|error| panic!("{error}: {name} from {}", hex(bytes))),
        }
        let back = decode::<T>(&again)
            .unwrap_or_else(|error| panic!("{error}: {value:?} from {}", hex(bytes)));
        if fidelity == Fidelity::Exact {
            assert!(equal(&back, &value), "{back:?} is not {value:?} from {}", hex(bytes));
            assert_eq!(hex(&bytes_of(&back)), hex(&again));
        } else {
            // Each time a variant may be taken that stands before the last one; there are not as
            // many as this.
            let mut last = again;
            let settles = (0..40).any(|_| {
                let next = bytes_of(&decode::<T>(&last).unwrap());
                std::mem::replace(&mut last, next) == last
            });
            assert!(settles, "{back:?} from {}", hex(bytes));
        }
        count(tally, name);
    };
    Target { name, corpus, check: Box::new(check) }
}

/// How deep the bytes are nested.
fn depth(bytes: &[u8]) -> usize {
    let (mut open, mut most) = (Vec::new(), 1);
    for span in mutate::spans(bytes) {
        while open.last().is_some_and(|end| *end <= span.start) {
            open.pop();
        }
        open.push(span.end);
        most = most.max(open.len());
    }
    most.min(DEPTH_MAX)
}

/// By value, or else (no number that is none equals itself) by how it looks.
fn equal<T: PartialEq + Debug>(a: &T, b: &T) -> bool {
    a == b || format!("{a:?}") == format!("{b:?}")
}

fn bytes_of<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode(value, &mut out, usize::MAX).unwrap();
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn count_error(tally: &mut Tally, error: &DecodeError, len: usize) {
    let (name, at) = match error {
        DecodeError::End { at } => ("end", *at),
        DecodeError::Claim { at, .. } => ("claim", *at),
        DecodeError::TooDeep { at } => ("too deep", *at),
        DecodeError::Marker { at, .. } => ("marker", *at),
        DecodeError::Extension { at, .. } => ("extension", *at),
        DecodeError::Utf8 { at } => ("utf-8", *at),
        DecodeError::Excess { at, .. } => ("excess", *at),
        DecodeError::Trailing { at, .. } => ("trailing", *at),
        DecodeError::Message { at, .. } => ("refused", at.expect("an error on its way out")),
    };
    assert!(at <= len, "{error:?} in {len} bytes");
    assert!(error.to_string().len() <= 1024 + 10 * len, "{error}");
    count(tally, name);
}

fn values_of<S: Strategy>(strategy: S, count: usize) -> Vec<S::Value> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

fn targets() -> Vec<Target> {
    use Fidelity::{Exact, Settles};
    use proptest::prelude::any;
    let mut anything = target::<Anything>(
        "anything",
        Exact,
        200,
        vec![Anything::Map(vec![(Anything::Nil, Anything::List(vec![]))])],
    );
    anything.corpus.extend(values_of(rich(), 50).iter().map(bytes_of));
    let tree = |depth: usize| {
        (0..depth).fold(vec![0x90], |inner, _| [vec![0x92], inner, vec![0x90]].concat())
    };
    let mut trees = target::<TreeOf>("trees", Exact, 200, vec![]);
    trees.corpus.extend([0, 1, 5, 100].map(tree));
    let mut chains = target::<ChainOf>("chains", Exact, 200, vec![]);
    chains.corpus.extend(
        [&[0xc0][..], &[0xd4, 1, 0xc0], &[0xc7, 6, 1, 0xc7, 3, 1, 0xd4, 1, 0xc0]]
            .map(<[u8]>::to_vec),
    );
    let owned = || Owned {
        text: "text".into(),
        maybe: Some(None),
        bytes: ByteBuf::from([1, 2, 3]),
        more: BTreeMap::from([("a".into(), ByteBuf::from([0; 16]))]),
    };
    let borrowed = Target {
        name: "borrowed",
        corpus: vec![
            bytes_of(&owned()),
            bytes_of(&Owned { maybe: Some(Some("\"".into())), more: BTreeMap::new(), ..owned() }),
        ],
        check: Box::new(check_borrowed),
    };
    vec![
        target("rich", Exact, 1000, values_of(rich(), 150)),
        target("derived", Settles, 1000, values_of(derived(), 150)),
        target("ambiguous", Settles, 1000, values_of(ambiguous(), 150)),
        target("library", Exact, 400, values_of(libraries(), 30)),
        target("owned", Exact, 400, vec![owned()]),
        target("fat", Exact, 2000, vec![fat(0), fat(1), fat(3), fat(20)]),
        target(
            "numbers",
            Exact,
            400,
            values_of(any::<(u8, i8, u16, i16, u32, i32, u64, i64, u128, i128)>(), 30),
        ),
        target("floats", Exact, 400, values_of(any::<Vec<(f32, f64, bool)>>(), 10)),
        target(
            "bytes",
            Exact,
            400,
            vec![(vec![1u8, 200, 3], ByteBuf::from([7; 16]), [0u8; 4], Some(Some(vec![5u8])))],
        ),
        target(
            "hash maps",
            Exact,
            400,
            vec![vec![HashMap::from([(ByteBuf::from([1]), [Some(2u16), None])]), HashMap::new()]],
        ),
        anything,
        trees,
        chains,
        borrowed,
    ]
}

/// [`Tree`] and [`Chain`] as the tests beside the decoder have them, but equal by how they look.
macro_rules! by_look {
    ($($name:ident of $inner:ident),+) => {$(
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(transparent)]
        struct $name($inner);

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                format!("{self:?}") == format!("{other:?}")
            }
        }
    )+};
}
by_look!(TreeOf of Tree, ChainOf of Chain);

/// What is borrowed is what an owned type gets.
fn check_borrowed(bytes: &[u8], tally: &mut Tally) {
    let mut reader = Reader::new(bytes);
    let (borrowed, peak) = peak_of(|| reader.next::<Borrowed<'_>>());
    assert!(peak <= 4096 + 200 * bytes.len(), "{peak} bytes for {}: {}", bytes.len(), hex(bytes));
    let borrowed = match borrowed.and_then(|value| reader.finish().map(|()| value)) {
        Ok(borrowed) => borrowed,
        Err(error) => return count_error(tally, &error, bytes.len()),
    };
    let owned = decode::<Owned>(bytes).unwrap_or_else(|error| panic!("{error}: {}", hex(bytes)));
    assert_eq!(bytes_of(&borrowed), bytes_of(&owned), "{}", hex(bytes));
    count(tally, "borrowed");
}

#[test]
fn broken_values_are_refused_or_come_back_as_they_were_read() {
    let targets = targets();
    let corpus: Vec<Vec<u8>> =
        targets.iter().flat_map(|target| target.corpus.iter().cloned()).collect();
    let names: Vec<_> = targets.iter().map(|target| target.name).collect();
    let tally = run("values", 20_000, move |rng, tally| {
        let target = rng.pick(&targets);
        let source = if rng.one_in(5) { &corpus } else { &target.corpus };
        let mut bytes = rng.pick(source).clone();
        mutate(&mut bytes, if rng.one_in(4) { &corpus } else { &target.corpus }, rng);
        (target.check)(&bytes, tally);
    });
    let errors = [
        "end",
        "claim",
        "too deep",
        "marker",
        "extension",
        "utf-8",
        "excess",
        "trailing",
        "refused",
    ];
    for name in names.into_iter().chain(errors) {
        assert!(tally.contains_key(name), "no {name} in {tally:?}");
    }
}
