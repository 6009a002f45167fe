//! What a client has read of a map, or written there, which is still so as long as nobody else has
//! changed anything.
//!
//! The manager counts the changes of others in memory that the client has ([`Mirror`]), before it
//! answers whoever made one. The client looks at that count *before* it asks for a value, and keeps
//! the answer with that count: so if it is still the same, nobody has changed anything since before
//! the value was read. A change in between costs no more than that the answer is not kept.
//!
//! What the client puts into its own lane changes nothing in that count, and is kept in the place
//! of what was read. So an answer that was asked for before that is older than it may be, and is
//! not kept: own writes are counted too.

use super::lane::Mirror;
use crate::process::SharedMemory;
use crate::wire::packet::Packet;
use std::collections::HashMap;
use std::sync::Arc;

/// No more is kept than this, in bytes.
const KEPT_MAX: usize = 1 << 20;
/// What an entry costs besides its key and value, in bytes, roughly.
const ENTRY_BYTES: usize = 100;

/// When something was asked for: after so many changes of others, and so many own ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) changes: u64,
    pub(crate) writes: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Reads {
    mirror: Mirror,
    /// What is kept is so at this count of changes.
    at: u64,
    /// Put into the lane so far.
    pub(crate) writes: u64,
    values: HashMap<Packet, Option<Packet>>,
    bytes: usize,
}

impl Reads {
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Self {
        Self { mirror: Mirror::new(memory), at: 0, writes: 0, values: HashMap::new(), bytes: 0 }
    }

    /// The count now; what was read before the last change is forgotten.
    fn look(&mut self) -> Option<Seen> {
        let changes = self.mirror.look()?;
        if changes != self.at {
            self.values.clear();
            (self.at, self.bytes) = (changes, 0);
        }
        Some(Seen { changes, writes: self.writes })
    }

    /// What is under this key (perhaps nothing), if that is known; else when it is asked for, if
    /// that is told, to be given to [`keep`](Self::keep) with what is read now.
    pub(crate) fn get(&mut self, key: &Packet) -> Result<Option<Packet>, Option<Seen>> {
        let now = self.look();
        match self.values.get(key) {
            Some(value) if now.is_some() => Ok(value.clone()),
            _ => Err(now),
        }
    }

    /// Keeps what was asked for then.
    pub(crate) fn keep(&mut self, key: Packet, value: Option<Packet>, seen: Seen) {
        if self.look() == Some(seen) {
            self.put(key, value);
        }
    }

    /// This was put into the lane. Not even the count is looked at: whatever others have changed
    /// since the last look, and whether it comes before this or after it, is told by the next
    /// one.
    pub(crate) fn wrote(&mut self, key: Packet, value: Packet) {
        self.writes += 1;
        self.put(key, Some(value));
    }

    fn put(&mut self, key: Packet, value: Option<Packet>) {
        let (of_key, of_value) =
            (key.len(), |value: &Option<Packet>| value.as_ref().map_or(0, |value| value.len()));
        self.bytes += of_key + of_value(&value) + ENTRY_BYTES;
        if let Some(old) = self.values.insert(key, value) {
            self.bytes -= of_key + of_value(&old) + ENTRY_BYTES;
        }
        if self.bytes > KEPT_MAX {
            self.values.clear();
            self.bytes = 0;
        }
    }
}
