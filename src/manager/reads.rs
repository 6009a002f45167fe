//! What a client has read of a map, which is still so as long as nothing has changed there.
//!
//! The manager counts the map's changes in memory that the client has ([`Mirror`]), before it answers whoever made one. The
//! client looks at that count *before* it asks for a value, and keeps the answer with that count: so if it is still the same, nothing
//! has changed since before the value was read. A change in between costs no more than that the answer is not kept.

use super::lane::Mirror;
use crate::process::SharedMemory;
use crate::wire::packet::Packet;
use std::collections::HashMap;
use std::sync::Arc;

/// No more is kept than this, in bytes.
const KEPT_MAX: usize = 1 << 20;
/// What an entry costs besides its key and value, in bytes, roughly.
const ENTRY_BYTES: usize = 100;

/// See the module.
#[derive(Debug)]
pub(crate) struct Reads {
    mirror: Mirror,
    /// At this count of changes.
    at: u64,
    values: HashMap<Packet, Option<Packet>>,
    bytes: usize,
}

impl Reads {
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Self {
        Self { mirror: Mirror::new(memory), at: 0, values: HashMap::new(), bytes: 0 }
    }

    /// The count now; what was read before the last change is forgotten.
    fn look(&mut self) -> Option<u64> {
        let now = self.mirror.look()?;
        if now != self.at {
            self.values.clear();
            (self.at, self.bytes) = (now, 0);
        }
        Some(now)
    }

    /// What was read under this key (perhaps that there is nothing), if nothing has changed since; else the count of changes, if that
    /// is told, to be given to [`keep`](Self::keep) with what is read now.
    pub(crate) fn get(&mut self, key: &Packet) -> Result<Option<Packet>, Option<u64>> {
        let now = self.look();
        match self.values.get(key) {
            Some(value) if now.is_some() => Ok(value.clone()),
            _ => Err(now),
        }
    }

    /// Keeps what was asked for when there had been so many changes.
    pub(crate) fn keep(&mut self, key: Packet, value: Option<Packet>, at: u64) {
        if self.look() != Some(at) {
            return;
        }
        self.bytes += key.len() + value.as_ref().map_or(0, |value| value.len()) + ENTRY_BYTES;
        if self.bytes > KEPT_MAX {
            self.values.clear();
            self.bytes = 0;
            return;
        }
        self.values.insert(key, value);
    }
}
