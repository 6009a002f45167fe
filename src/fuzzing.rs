//! What the coverage-guided fuzzers in `fuzz/` call, one function for each decoder of bytes that
//! another process has written.
//!
//! `cargo fuzz` sets `--cfg fuzzing`, and only then this module exists. Each function must return
//! for all bytes. What a decoder accepts is written and read again, where that is possible.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::manager::message::{ToClient, ToManager};
use crate::manager::objects::code::Message as _;
use crate::manager::objects::{
    barrier, channel, condvar, event, list, map, queue, registered, rwlock, semaphore,
};
use crate::wire::frame::FrameBuffer;
use crate::wire::message::{self, Failed, Hello, InitFailed, Message, RunHead, Welcome, kind};
use crate::wire::value::{self, Reader};

/// Reads a stream of frames, in pieces whose size the first byte says.
pub fn frame(bytes: &[u8]) {
    let Some((first, mut left)) = bytes.split_first() else { return };
    let limit = 1 << (first >> 3);
    let piece = 1 + usize::from(first & 7) * 100;
    let mut buffer = FrameBuffer::new(limit);
    let (mut received, mut delivered) = (0, 0);
    loop {
        loop {
            match buffer.next_frame() {
                Ok(Some(range)) => {
                    assert!(range.len() <= limit, "a frame above the limit");
                    delivered += 4 + range.len();
                    drop(buffer.take(range));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(delivered + buffer.rest() == received, "bytes are lost or invented");
        if left.is_empty() {
            return;
        }
        let space = buffer.space();
        let len = piece.min(space.len()).min(left.len());
        space[..len].copy_from_slice(&left[..len]);
        left = &left[len..];
        buffer.filled(len);
        received += len;
    }
}

/// Reads a message between a pool and its worker, as either of them does.
pub fn message(body: &[u8]) {
    let read = || -> Result<(), message::Bad> {
        let mut message = Message::new(body)?;
        match message.kind {
            kind::HELLO => drop(message.map::<Hello>()?),
            kind::WELCOME => drop(message.map::<Welcome>()?),
            kind::INIT_FAILED => drop(message.map::<InitFailed>()?),
            kind::FAILED => {
                message.uint::<u64>()?;
                drop(message.map::<Failed>()?);
            }
            kind::ITEM => {
                let (_, at) = message::read_item_of_task(message)?;
                assert!(at < body.len(), "an item without a value");
            }
            kind::STARTED => {
                message.uint::<u64>()?;
                message.uint::<u64>()?;
                message.end()?;
            }
            kind::RUN => {
                let RunHead { items, mut at, .. } = message::read_run(body)?;
                for _ in 0..items {
                    at = message::read_item(body, at)?.end;
                }
            }
            _ => {
                message.uint::<u64>()?;
                message.uint::<u32>()?;
                message.end()?;
            }
        }
        Ok(())
    };
    // What has begun well may be the beginning of a whole message; what has not never is.
    if read().is_ok() {
        assert!(message::check_begun(body).is_ok(), "a whole message has not begun well");
    }
}

/// Reads a message between a client and its manager, and the requests of objects in it.
pub fn manager_message(body: &[u8]) {
    let twice = |first: &[u8]| {
        if let Ok(message) = ToManager::read(first) {
            let mut again = Vec::new();
            message.write(&mut again);
            assert_eq!(ToManager::read(&again), Ok(message), "not read as written");
        }
        if let Ok(message) = ToClient::read(first) {
            let mut again = Vec::new();
            message.write(&mut again);
            assert_eq!(ToClient::read(&again), Ok(message), "not read as written");
        }
    };
    twice(body);
    let head = match ToManager::read(body) {
        Ok(ToManager::Request { head, .. }) => head,
        _ => body,
    };
    macro_rules! requests {
        ($($kind:ident),*) => {$(
            if let Ok(request) = $kind::Ask::read(head) {
                assert_eq!(&request.packet()[..], head, "a request has one form");
            }
        )*};
    }
    requests!(barrier, channel, condvar, event, list, map, queue, registered, rwlock, semaphore);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Tree {
    Leaf,
    Number(i64),
    Text(String),
    Pair(Box<Tree>, Option<Box<Tree>>),
    Many { of: Vec<Tree>, named: BTreeMap<String, Option<Option<u8>>> },
}

/// Reads a value as several types.
pub fn value(bytes: &[u8]) {
    fn twice<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
        let Ok(value) = value::decode::<T>(bytes) else { return };
        // Floats need not be equal to themselves, so bytes are compared.
        let (mut first, mut second) = (Vec::new(), Vec::new());
        value::encode(&value, &mut first, usize::MAX).expect("it was decoded");
        let again = value::decode::<T>(&first).expect("it was encoded");
        value::encode(&again, &mut second, usize::MAX).expect("it was decoded");
        assert_eq!(first, second, "another value");
    }
    twice::<Tree>(bytes);
    twice::<(u64, i128, f32, f64, char)>(bytes);
    twice::<Vec<Option<Option<String>>>>(bytes);
    twice::<BTreeMap<String, Vec<u8>>>(bytes);
    twice::<Result<(Duration, SystemTime), crate::Failure>>(bytes);
    let mut reader = Reader::new(bytes);
    while reader.next::<IgnoredAny>().is_ok() && !reader.rest().is_empty() {}
    let _ = reader.finish();
}
