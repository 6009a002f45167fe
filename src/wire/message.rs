//! Messages: one MessagePack array in each frame, whose first element is the kind of message.
//!
//! Calls and results are most of the traffic. Their values are encoded in place in the frame, and
//! they are read and written by hand. All other payloads are plain MessagePack with named fields,
//! so that fields can be added.

use super::value::Reader;
use crate::error::text;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of the protocol; a worker of another one is refused.
pub(crate) const PROTOCOL: u32 = 2;

/// The kinds of message. Numbers are never used twice; 16 to 31 are kept for what a running task
/// sends.
pub(crate) mod kind {
    // From the worker.
    pub(crate) const HELLO: u8 = 1;
    pub(crate) const READY: u8 = 2;
    pub(crate) const INIT_FAILED: u8 = 3;
    pub(crate) const DONE: u8 = 4;
    pub(crate) const FAILED: u8 = 5;
    /// There is something in the outbox.
    pub(crate) const BELL: u8 = 6;
    /// In the place of READY, from a process that has detached itself: its number follows.
    pub(crate) const DETACHED: u8 = 7;
    /// As DONE, with a value that names shared objects.
    pub(crate) const DONE_NAMING: u8 = 8;
    /// As DONE and DONE_NAMING, with an error of the task's own that is worth another try.
    pub(crate) const AGAIN: u8 = 9;
    pub(crate) const AGAIN_NAMING: u8 = 10;
    /// From a worker that a template has forked, on its own socket: it exists.
    pub(crate) const BORN: u8 = 11;
    /// From a template, on the socket of the worker that it did not fork.
    pub(crate) const NOT_FORKED: u8 = 12;
    /// An item of a task that yields.
    pub(crate) const ITEM: u8 = 16;
    /// A task has begun whose word said that the pool is to be told.
    pub(crate) const STARTED: u8 = 17;
    // From the pool.
    pub(crate) const WELCOME: u8 = 32;
    pub(crate) const INIT: u8 = 33;
    pub(crate) const CALL: u8 = 34;
    pub(crate) const CANCEL: u8 = 35;
    /// What is to be run when the worker ends.
    pub(crate) const EXIT: u8 = 38;
    /// A socket to a manager of shared objects comes with it; the manager's number follows.
    pub(crate) const ATTACH: u8 = 36;
    /// An async task has been asked to stop by itself, or has got credit: its words say so, too.
    pub(crate) const ASK: u8 = 37;
    /// As so many CALLs of one sync task, whose numbers follow each other: a run.
    pub(crate) const RUN: u8 = 39;
    /// To a template: fork a worker, whose socket comes with it.
    pub(crate) const FORK: u8 = 40;
}

/// Flags of a call: send a backtrace with a panic, or send none. Without either the worker's
/// environment decides.
pub(crate) const FLAG_BACKTRACE: u8 = 1;
pub(crate) const FLAG_NO_BACKTRACE: u8 = 2;
/// The task has a time limit: note when it begins.
pub(crate) const FLAG_TIMED: u8 = 4;
/// Flag of a call whose arguments name shared objects: which, stands before them.
pub(crate) const FLAG_NAMES: u8 = 8;
/// The task yields: it may send items, as far as it has credit.
pub(crate) const FLAG_YIELDS: u8 = 16;

/// The worker's first words. A descriptor goes with it: the pool's end of the lifeline.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) protocol: u32,
    /// The version of the crate; of another program, whatever it likes to say.
    #[serde(default)]
    pub(crate) version: String,
    /// Of the task table: parent and child must be the same build. Another program has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<u64>,
}

/// The pool's answer. Two descriptors go with it: the worker's memory, and its standard error.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The largest body of a frame, in both directions, in bytes.
    pub(crate) frame_limit: u32,
    /// How many pools this worker is inside of.
    pub(crate) depth: u32,
    /// An `INIT` message follows.
    pub(crate) init: bool,
    /// It is a template: after `INIT`, which preloads, it forks workers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) template: bool,
    /// An `EXIT` message follows, after `INIT` if that does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) exit: bool,
    /// How the worker's memory is divided: claims in it, and bytes of the ring.
    pub(crate) slots: u32,
    pub(crate) ring: u32,
    /// The main thread's name.
    pub(crate) name: String,
    /// What it limits itself to, before it does anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<Limits>,
    /// It is no worker of a pool: it gets one call, and ends with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) single: Option<Single>,
}

/// What a process limits itself to; what is absent stays as it was inherited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Limits {
    /// Bytes of address space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<u64>,
    /// Seconds of processor time in its whole life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_time: Option<u64>,
    /// Nanoseconds of processor time for each sync task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) task_cpu_time: Option<u64>,
    /// Bytes of a file that it writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file_size: Option<u64>,
    /// Descriptors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) open_files: Option<u64>,
    /// Processes and threads of its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) processes: Option<u64>,
    /// Bytes of a core dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) core_size: Option<u64>,
    /// What is added to its `oom_score_adj`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oom_score: Option<u16>,
}

/// What a process of one function is told beside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Single {
    /// It ends with its parent. Else it lets go of the lifeline before it says that it is ready.
    pub(crate) tied: bool,
    /// A third descriptor comes with the welcome: its standard input.
    pub(crate) stdin: bool,
    /// Its file mode creation mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) umask: Option<u32>,
}

/// Why `init` failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum InitFailed {
    Error {
        message: String,
    },
    Panicked {
        message: String,
        location: Option<String>,
    },
    /// The template must not be forked.
    NotForkable {
        reason: String,
    },
}

/// Why a template has not forked a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NotForked {
    pub(crate) reason: String,
    /// It must not be forked as it is; else the system would not do it.
    pub(crate) not_forkable: bool,
}

/// Why a task has no result, told by its worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failed {
    Panicked {
        message: String,
        location: Option<String>,
        backtrace: Option<String>,
    },
    Arguments {
        reason: String,
        /// The socket to this manager did not arrive (the worker had no descriptor left): the
        /// manager is to be announced again. Said once for each such ATTACH.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unattached: Option<u64>,
    },
    Result {
        reason: String,
    },
    TooLarge,
    Cancelled,
    /// The task is async, and the worker could not make a runtime.
    NoRuntime {
        reason: String,
    },
    /// The worker serves no task of this name.
    Unknown,
}

impl InitFailed {
    /// Cuts its texts, so that it fits into a frame with a body of `limit` bytes.
    pub(crate) fn cut(&mut self, limit: usize) {
        match self {
            Self::Error { message } | Self::NotForkable { reason: message } => {
                cut([Some(message)], limit)
            }
            Self::Panicked { message, location } => cut([Some(message), location.as_mut()], limit),
        }
    }
}

impl Failed {
    /// Cuts its texts, so that it fits into a frame with a body of `limit` bytes.
    pub(crate) fn cut(&mut self, limit: usize) {
        match self {
            Self::Panicked { message, location, backtrace } => {
                cut([Some(message), location.as_mut(), backtrace.as_mut()], limit)
            }
            Self::Arguments { reason, .. }
            | Self::Result { reason }
            | Self::NoRuntime { reason } => cut([Some(reason)], limit),
            Self::TooLarge | Self::Cancelled | Self::Unknown => {}
        }
    }
}

/// What a frame with a failure holds beside its texts, at most, in bytes: heads, names, a number.
const AROUND_TEXTS: usize = 128;

/// Cuts the texts, if all together are too long, to an equal share each. What is cut is marked.
fn cut<const N: usize>(texts: [Option<&mut String>; N], limit: usize) {
    let room = limit.saturating_sub(AROUND_TEXTS);
    let sum: usize = texts.iter().flatten().map(|text| text.len()).sum();
    if sum > room {
        texts.into_iter().flatten().for_each(|text| text::cut(text, room / N));
    }
}

/// A message that breaks the protocol, in words.
#[derive(Debug)]
pub(crate) struct Bad(pub(crate) String);

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn bad(reason: impl Into<String>) -> Bad {
    Bad(reason.into())
}

// ---- writing

/// Appends an array's head and the message's kind; `len` counts the elements after the kind.
fn head(out: &mut Vec<u8>, kind: u8, len: u32) {
    array_head(out, len + 1);
    out.push(kind); // a positive fixint
}

fn array_head(out: &mut Vec<u8>, len: u32) {
    debug_assert!(len < 16, "the longest message has fourteen elements");
    out.push(0x90 | len as u8); // a fixarray
}

/// As short as it can be.
#[inline]
fn uint(out: &mut Vec<u8>, value: u64) {
    let bytes = value.to_be_bytes();
    let (marker, from) = match value {
        0..0x80 => return out.push(value as u8),
        0x80..0x100 => (0xcc, 7),
        0x100..0x1_0000 => (0xcd, 6),
        0x1_0000..0x1_0000_0000 => (0xce, 4),
        _ => (0xcf, 0),
    };
    out.push(marker);
    out.extend_from_slice(&bytes[from..]);
}

/// What a call is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callee {
    /// A place in the table of tasks, which both sides have.
    Index(u32),
    /// What another program serves under this name.
    Name(&'static str),
}

/// Where the slot stands in the body of a call, and behind it the number of the try: they are
/// filled in when the task is sent.
const SLOT_AT: usize = 2;
const ATTEMPT_AT: usize = SLOT_AT + 3;
/// So many bytes of a call's body hold all that [`address`] changes.
pub(crate) const ADDRESS_END: usize = ATTEMPT_AT + 2;

/// A call, up to its arguments, of which there are `arity`; its slot is 0 and its try the first for
/// now.
pub(crate) fn call(out: &mut Vec<u8>, id: u64, flags: u8, task: Callee, arity: u32) {
    head(out, kind::CALL, 5 + arity);
    out.extend([0xcd, 0, 0, 0xcc, 1]); // always a uint 16 and a uint 8
    uint(out, id);
    out.push(flags);
    match task {
        Callee::Index(index) => uint(out, u64::from(index)),
        Callee::Name(name) => rmp::encode::write_str(out, name).expect("a Vec takes every byte"),
    }
}

/// A run of so many items, up to the first of them. It has its slot and its try where a call has
/// them.
pub(crate) fn run(out: &mut Vec<u8>, id: u64, flags: u8, task: u32, items: u16) {
    head(out, kind::RUN, 6);
    out.extend([0xcd, 0, 0, 0xcc, 1]);
    uint(out, id);
    out.push(flags);
    uint(out, u64::from(task));
    out.push(0xdc); // an array 16, always
    out.extend(items.to_be_bytes());
}

/// Begins an item of a run at the end of `out`: its arguments, at most 65,535 bytes, as a bin 16.
/// Gives the place to finish it.
pub(crate) fn begin_item(out: &mut Vec<u8>) -> usize {
    out.extend([0xc5, 0, 0]);
    out.len()
}

/// Ends the item that was begun there: writes its length.
pub(crate) fn finish_item(out: &mut [u8], start: usize) {
    let len = u16::try_from(out.len() - start).expect("an item has a limit");
    out[start - 2..start].copy_from_slice(&len.to_be_bytes());
}

/// A run, as its body says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunHead {
    pub(crate) slot: u16,
    pub(crate) attempt: u8,
    pub(crate) id: u64,
    pub(crate) flags: u8,
    pub(crate) task: u32,
    pub(crate) items: u16,
    /// Where in the body the first item begins.
    pub(crate) at: usize,
}

/// Reads a run up to its first item.
pub(crate) fn read_run(body: &[u8]) -> Result<RunHead, Bad> {
    let mut message = Message::new(body)?;
    if message.kind != kind::RUN || message.len != 6 {
        return Err(bad(format!(
            "a message of kind {} with {} elements instead of a run",
            message.kind, message.len
        )));
    }
    let (slot, attempt, id) = (message.uint()?, message.uint()?, message.uint()?);
    let (flags, task) = (message.uint()?, message.uint()?);
    let mut rest = &body[message.at..];
    let items = rmp::decode::read_array_len(&mut rest)
        .ok()
        .and_then(|len| u16::try_from(len).ok())
        .filter(|items| *items > 0);
    let items = items.ok_or_else(|| bad("a run without items"))?;
    Ok(RunHead { slot, attempt, id, flags, task, items, at: body.len() - rest.len() })
}

/// The arguments of the item that begins there, as a place in the body; the next item begins where
/// they end.
#[inline]
pub(crate) fn read_item(body: &[u8], at: usize) -> Result<std::ops::Range<usize>, Bad> {
    // As `begin_item` writes it.
    if let Some([0xc5, high, low]) = body.get(at..).and_then(<[u8]>::first_chunk) {
        let (start, len) = (at + 3, usize::from(u16::from_be_bytes([*high, *low])));
        if len <= body.len() - start {
            return Ok(start..start + len);
        }
    }
    let mut rest = body.get(at..).unwrap_or_default();
    let len = rmp::decode::read_bin_len(&mut rest).map_err(|_| bad("an item is missing"))? as usize;
    let start = body.len() - rest.len();
    if len > rest.len() {
        return Err(bad("an item that is cut off"));
    }
    Ok(start..start + len)
}

/// Parts a run of ours: appends the items before this one to one body, and the others to another
/// one.
pub(crate) fn part_run(
    body: &[u8],
    from: u16,
    front: &mut Vec<u8>,
    rest: &mut Vec<u8>,
) -> Result<(), Bad> {
    let head = read_run(body)?;
    let mut at = head.at;
    for _ in 0..from {
        at = read_item(body, at)?.end;
    }
    run(front, head.id, head.flags, head.task, from);
    front.extend_from_slice(&body[head.at..at]);
    run(rest, head.id + u64::from(from), head.flags, head.task, head.items - from);
    rest.extend_from_slice(&body[at..]);
    Ok(())
}

/// Fills in the slot and the number of the try of a call, of whose body these are the first bytes.
pub(crate) fn address(body: &mut [u8], slot: u16, attempt: u8) {
    body[SLOT_AT + 1..ATTEMPT_AT].copy_from_slice(&slot.to_be_bytes());
    body[ATTEMPT_AT + 1] = attempt;
}

/// The `init` call, up to the names of shared objects and its arguments: `arity` values.
pub(crate) fn init(out: &mut Vec<u8>, task: u32, arity: u32) {
    head(out, kind::INIT, 1 + arity);
    uint(out, u64::from(task));
}

/// The call that a worker makes when it ends, up to the names and its arguments, as of `init`.
pub(crate) fn exit(out: &mut Vec<u8>, task: u32, arity: u32) {
    head(out, kind::EXIT, 1 + arity);
    uint(out, u64::from(task));
}

/// A result, up to its value.
pub(crate) fn done(out: &mut Vec<u8>, id: u64) {
    head(out, kind::DONE, 2);
    uint(out, id);
}

/// An item of a task that yields, up to its value.
pub(crate) fn item(out: &mut Vec<u8>, id: u64) {
    head(out, kind::ITEM, 2);
    uint(out, id);
}

/// A task has begun, at this time.
pub(crate) fn started(out: &mut Vec<u8>, id: u64, nanos: u64) {
    head(out, kind::STARTED, 2);
    uint(out, id);
    uint(out, nanos);
}

/// Reads an item: the number of its task, and where in the body its value begins.
pub(crate) fn read_item_of_task(mut message: Message<'_>) -> Result<(u64, usize), Bad> {
    let id = message.uint()?;
    match message.rest() {
        (1, at) if at < message.body.len() => Ok((id, at)),
        _ => Err(bad("an item that is not one value")),
    }
}

/// The number of the task, and where in the body its value begins, of a result that is written as
/// [`done`] writes it: nearly every one. `None`: it is another message, or is written otherwise.
#[inline]
pub(crate) fn read_done(body: &[u8]) -> Option<(u64, usize)> {
    let ([head, kind, marker], rest) = body.split_first_chunk::<3>()?;
    if (*head, *kind) != (0x93, kind::DONE) {
        return None;
    }
    Some(match marker {
        0..=0x7f => (u64::from(*marker), 3),
        0xcc => (u64::from(*rest.first()?), 4),
        0xcd => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 5),
        0xce => (u64::from(u32::from_be_bytes(*rest.first_chunk()?)), 7),
        0xcf => (u64::from_be_bytes(*rest.first_chunk()?), 11),
        _ => return None,
    })
}

/// A result whose value names shared objects, up to their names; the value follows on these.
pub(crate) fn done_naming(out: &mut Vec<u8>, id: u64) {
    head(out, kind::DONE_NAMING, 3);
    uint(out, id);
}

/// Where the kind stands in the body of a message.
const KIND_AT: usize = 1;

/// Makes a result, of whose body these are the first bytes, one that is worth another try.
pub(crate) fn worth_another_try(body: &mut [u8]) {
    body[KIND_AT] =
        if body[KIND_AT] == kind::DONE_NAMING { kind::AGAIN_NAMING } else { kind::AGAIN };
}

/// A socket to this manager comes with it.
pub(crate) fn attach(out: &mut Vec<u8>, manager: u64) {
    head(out, kind::ATTACH, 1);
    uint(out, manager);
}

/// A failure of one task.
pub(crate) fn failed(out: &mut Vec<u8>, id: u64, why: &Failed) {
    head(out, kind::FAILED, 2);
    uint(out, id);
    named(out, why);
}

/// The wish that a task be dropped.
pub(crate) fn cancel(out: &mut Vec<u8>, id: u64) {
    head(out, kind::CANCEL, 1);
    uint(out, id);
}

/// The word that an async task has been asked to stop by itself, or has got credit.
pub(crate) fn ask(out: &mut Vec<u8>, id: u64) {
    head(out, kind::ASK, 1);
    uint(out, id);
}

/// There is something in the outbox.
pub(crate) fn bell(out: &mut Vec<u8>) {
    head(out, kind::BELL, 0);
}

/// The worker is ready.
pub(crate) fn ready(out: &mut Vec<u8>) {
    head(out, kind::READY, 0);
}

/// The process has detached itself, and is ready.
pub(crate) fn detached(out: &mut Vec<u8>, pid: u32) {
    head(out, kind::DETACHED, 1);
    uint(out, u64::from(pid));
}

/// A worker that was forked exists.
pub(crate) fn born(out: &mut Vec<u8>) {
    head(out, kind::BORN, 0);
}

/// The template is to fork a worker. Its socket comes with it; and its standard output, if that is
/// to be another than the template's. `group` says that it is to lead a process group.
pub(crate) fn fork(out: &mut Vec<u8>, has_stdout: bool, group: bool) {
    head(out, kind::FORK, 2);
    uint(out, u64::from(has_stdout));
    uint(out, u64::from(group));
}

/// A message that is one map: `HELLO`, `WELCOME`, `INIT_FAILED`, `NOT_FORKED`.
pub(crate) fn control(out: &mut Vec<u8>, kind: u8, body: &impl Serialize) {
    head(out, kind, 1);
    named(out, body);
}

fn named(out: &mut Vec<u8>, body: &impl Serialize) {
    rmp_serde::encode::write_named(out, body).expect("our own messages can be encoded");
}

// ---- reading

/// Refuses what cannot be the beginning of a message, long before the rest of it has come: what was
/// written into a socket by mistake is as a rule the head of a very long frame, which nobody should
/// wait for.
pub(crate) fn check_begun(body: &[u8]) -> Result<(), Bad> {
    /// An array's head and a kind take no more, in bytes.
    const WHOLE: usize = 5 + 9;
    match body.first().map(|first| rmp::Marker::from_u8(*first)) {
        Some(rmp::Marker::FixArray(_) | rmp::Marker::Array16 | rmp::Marker::Array32)
            if body.len() >= WHOLE =>
        {
            Message::new(body).map(|_| ())
        }
        None | Some(rmp::Marker::FixArray(_) | rmp::Marker::Array16 | rmp::Marker::Array32) => {
            Ok(())
        }
        Some(_) => Err(bad("the beginning of a frame that is no array")),
    }
}

/// Reads a message's elements one after another.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u8,
    /// Elements after the kind.
    len: u32,
    body: &'a [u8],
    at: usize,
}

impl<'a> Message<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Result<Self, Bad> {
        let mut rest = body;
        let len =
            rmp::decode::read_array_len(&mut rest).map_err(|_| bad("a frame that is no array"))?;
        let kind = rmp::decode::read_int::<u8, _>(&mut rest)
            .map_err(|_| bad("a message without a kind"))?;
        let len = len.checked_sub(1).ok_or_else(|| bad("an empty message"))?;
        Ok(Self { kind, len, body, at: body.len() - rest.len() })
    }

    /// The next element, an unsigned integer.
    pub(crate) fn uint<T: TryFrom<u64>>(&mut self) -> Result<T, Bad> {
        self.len = self.len.checked_sub(1).ok_or_else(|| bad("a message that is too short"))?;
        let mut rest = &self.body[self.at..];
        let number: u64 =
            rmp::decode::read_int(&mut rest).map_err(|_| bad("a number is missing"))?;
        self.at = self.body.len() - rest.len();
        T::try_from(number).map_err(|_| bad("a number is too large"))
    }

    /// The last element, a map with names.
    pub(crate) fn map<T: DeserializeOwned>(self) -> Result<T, Bad> {
        if self.len != 1 {
            return Err(bad(format!("a message of kind {} with {} elements", self.kind, self.len)));
        }
        let body = &self.body[self.at..];
        // One value, of a nesting that no stack need fear, and nothing behind it: none of that is
        // looked at below.
        let mut reader = Reader::new(body);
        let whole = reader.next::<IgnoredAny>().and_then(|_| reader.finish());
        whole.map_err(|e| bad(format!("a message of kind {}: {e}", self.kind)))?;
        rmp_serde::from_slice(body)
            .map_err(|e| bad(format!("a message of kind {}: {e}", self.kind)))
    }

    /// The elements that are left, unread: how many, and where in the body they begin.
    pub(crate) fn rest(&self) -> (u32, usize) {
        (self.len, self.at)
    }

    /// No element may be left.
    pub(crate) fn end(self) -> Result<(), Bad> {
        if self.len != 0 || self.at != self.body.len() {
            return Err(bad(format!("a message of kind {} that is too long", self.kind)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_no_message_is_refused_as_soon_as_it_begins() {
        for rubbish in [
            &b"a line of text"[..],
            b"7",
            &[0; 20],
            &[0x93, 0xa1, b'x', 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        ] {
            assert!(check_begun(rubbish).is_err(), "{rubbish:?}");
        }
        // Whatever is one, at whatever byte it is cut, and however its numbers are written.
        let mut out = Vec::new();
        done(&mut out, u64::MAX);
        out.extend([7; 20]);
        let wide = [0xdd, 0, 0, 0, 3, 0xcf, 0, 0, 0, 0, 0, 0, 0, kind::DONE, 1, 1, 1, 1];
        for bytes in [&out[..], &wide] {
            for cut in 0..bytes.len() {
                check_begun(&bytes[..cut]).expect("it is one");
            }
        }
    }

    #[test]
    fn a_call_is_read_as_written() {
        let mut out = Vec::new();
        call(&mut out, u64::MAX, FLAG_BACKTRACE, Callee::Index(70_000), 2);
        out.extend([1, 2]);
        address(&mut out[..ADDRESS_END], 0x1234, 7);
        let mut message = Message::new(&out).expect("it is a message");
        assert_eq!(message.kind, kind::CALL);
        assert_eq!(message.uint::<u16>().expect("the slot"), 0x1234);
        assert_eq!(message.uint::<u8>().expect("the try"), 7);
        assert_eq!(message.uint::<u64>().expect("the id"), u64::MAX);
        assert_eq!(message.uint::<u8>().expect("the flags"), FLAG_BACKTRACE);
        assert_eq!(message.uint::<u32>().expect("the task"), 70_000);
        let (left, at) = message.rest();
        assert_eq!((left, &out[at..]), (2, &[1, 2][..]));
    }

    #[test]
    fn a_run_is_read_as_written_and_can_be_parted() {
        let items: Vec<Vec<u8>> = vec![vec![1], vec![], vec![2; 300], vec![3, 4], vec![5; 65_535]];
        let mut out = Vec::new();
        run(&mut out, 500, FLAG_BACKTRACE, 70_000, items.len() as u16);
        for item in &items {
            let start = begin_item(&mut out);
            out.extend(item);
            finish_item(&mut out, start);
        }
        address(&mut out[..ADDRESS_END], 0x1234, 7);
        let head = read_run(&out).expect("it is a run");
        assert_eq!((head.slot, head.attempt), (0x1234, 7));
        assert!(read_item(&out[..out.len() - 1], out.len() - 65_538).is_err(), "it is cut off");
        for from in 1..items.len() {
            let (mut front, mut rest) = (Vec::new(), Vec::new());
            part_run(&out, from as u16, &mut front, &mut rest).expect("it has as many");
            for (part, first, items) in [(front, 0, &items[..from]), (rest, from, &items[from..])] {
                let head = read_run(&part).expect("it is a run");
                assert_eq!(
                    (head.id, head.flags, head.task),
                    (500 + first as u64, FLAG_BACKTRACE, 70_000)
                );
                assert_eq!((head.slot, head.attempt, usize::from(head.items)), (0, 1, items.len()));
                let mut at = head.at;
                for item in items {
                    let range = read_item(&part, at).expect("it is there");
                    assert_eq!(&part[range.clone()], item);
                    at = range.end;
                }
                assert_eq!(at, part.len());
                assert!(read_item(&part, at).is_err(), "there are no more");
            }
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            &[][..],
            &[0x90],
            &[0xc0],
            &[0x91, 0xc0],
            &[0xdd, 0xff, 0xff, 0xff, 0xff],
            &[0x91, 0xff],
        ] {
            assert!(Message::new(bytes).is_err(), "{bytes:?}");
        }
        let mut out = Vec::new();
        done(&mut out, 7);
        let mut message = Message::new(&out).expect("it is a message");
        assert_eq!(message.uint::<u64>().expect("the id"), 7);
        assert!(message.map::<Failed>().is_err(), "the value is missing");
    }

    #[test]
    fn a_plain_result_is_read_alike_by_both_ways() {
        for id in [0, 127, 128, 255, 256, 65_535, 65_536, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            let mut out = Vec::new();
            done(&mut out, id);
            let mut message = Message::new(&out).expect("it is a message");
            assert_eq!(message.uint::<u64>().expect("the id"), id);
            assert_eq!(read_done(&out), Some((id, message.rest().1)));
            for len in 0..out.len() {
                assert_eq!(read_done(&out[..len]), None, "cut off");
            }
            done_naming(&mut out, id);
            assert!(read_done(&out[out.len() / 2..]).is_none(), "of another kind");
        }
    }

    #[test]
    fn a_map_is_all_of_the_message_and_not_nested_without_end() {
        let mut out = Vec::new();
        control(
            &mut out,
            kind::HELLO,
            &Hello { protocol: 1, version: "1".into(), fingerprint: Some(1) },
        );
        let hello = |bytes: &[u8]| Message::new(bytes).expect("it is a message").map::<Hello>();
        hello(&out).expect("it is a hello");
        let behind = [&out[..], &[0xc0]].concat();
        assert!(hello(&behind).is_err(), "something follows it");
        // A name that is not known is passed over, but for that it has to be a value.
        for (depth, is_read) in [(250, true), (1000, false), (60_000, false)] {
            let mut deep = out.clone();
            deep[2] += 1;
            deep.extend([0xa1, b'x']);
            deep.extend(vec![0x91; depth]);
            deep.push(0xc0);
            assert_eq!(hello(&deep).is_ok(), is_read, "{depth} levels");
        }
    }

    #[test]
    fn texts_are_cut_to_fit_a_frame_and_only_then() {
        let text = |len: usize| "é".repeat(len / 2);
        for len in [0, 10, 300, 448, 900, 1024, 5000] {
            let panicked = Failed::Panicked {
                message: text(len),
                location: Some(text(len)),
                backtrace: Some(text(len)),
            };
            for mut why in [
                panicked,
                Failed::Arguments { reason: text(len), unattached: Some(u64::MAX) },
                Failed::Result { reason: text(len) },
            ] {
                why.cut(1024);
                let mut out = Vec::new();
                failed(&mut out, u64::MAX, &why);
                assert!(out.len() <= 1024, "{} bytes", out.len());
                if let Failed::Arguments { reason, .. } = why {
                    let most = 1024 - AROUND_TEXTS;
                    assert!(reason.len() <= most && reason.len() + 4 > len.min(most));
                    assert_eq!(reason.ends_with(text::CUT), len > most);
                }
            }
        }
    }

    #[test]
    fn every_failure_comes_back() {
        for why in [
            Failed::Panicked { message: "m".into(), location: None, backtrace: Some("b".into()) },
            Failed::Arguments { reason: "r".into(), unattached: None },
            Failed::Arguments { reason: "r".into(), unattached: Some(u64::MAX) },
            Failed::TooLarge,
            Failed::Cancelled,
            Failed::NoRuntime { reason: "r".into() },
            Failed::Unknown,
        ] {
            let mut out = Vec::new();
            failed(&mut out, 1, &why);
            let mut message = Message::new(&out).expect("it is a message");
            message.uint::<u64>().expect("the id");
            assert_eq!(
                format!("{:?}", message.map::<Failed>().expect("it is a failure")),
                format!("{why:?}")
            );
        }
    }
}
