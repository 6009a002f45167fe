//! The shared-memory rings of a map (*lanes* in the code), by which clients read and write without
//! a message for each operation.
//!
//! A lane is a producer ring (an *inlet*), into which its client puts the entries that it sets, and
//! a version word (a *mirror*), by which its client sees whether another client has changed
//! something since it read. Two clients cannot have both at once: the one may put an entry into its
//! ring at any moment, and the other could not be told of that in time. So at any moment a map is
//! in one of two modes:
//!
//! * **Reader mode**: no credit is granted in any producer ring, and every version word is valid
//!   (*shown*). A client that sets an entry sends a message.
//! * **Writer mode**: clients put entries into their producer rings. Every version word is
//!   invalidated (*blind*), so a client that reads sends a message. But if there is only one
//!   writer, its own version word is valid: no other client can change the map without a message.
//!
//! The rules, by number:
//!
//! 1. **Draining first.** Before the map is read or changed, for whatever reason, the producer
//!    rings are drained, up to this moment and in the order of the times at which items were put
//!    in. So an item takes effect at the moment at which it was put in.
//! 2. **Changing the mode.** From reader mode to writer mode, first the other clients' version
//!    words are invalidated, then credit is granted. On the way back, first all credit is revoked,
//!    then what has come by then is taken in, then the version words are made valid.
//! 3. **The version word.** It counts the changes, except those that came by the client's own ring,
//!    which the client knows. So it has an earlier value again only if no other client has changed
//!    anything.
//! 4. **Changes by message.** While a message changes something, the version word of the only
//!    writer is invalidated, from before the rings are drained. Otherwise the writer could put in
//!    an item that comes after that change, and go on reading what was there before the change.
//! 5. **End of a client.** What has come by the ring of a client that ends is in the map.
//!
//! **Choosing the mode.** A client becomes a writer when it has set entries by message [`SETS`]
//! times while no other client has read by message. (A client that reads by its version word has to
//! ask after each such change; so its reads are noticed.) A client is no longer a writer when its
//! ring had nothing for [`READS`] reads by message in a row.

use super::{Ask, Caller, ENTRY_BYTES, Map, Packet};
use crate::manager::lane::{self, Inlet, Mirror, SLOTS};
use crate::process::SharedMemory;
use std::sync::Arc;

/// Lanes of one map, at most: who comes later does without.
pub(super) const LANES_MAX: usize = 64;
/// What a lane costs, in bytes.
pub(super) const LANE_BYTES: usize = lane::WORDS * 8;
/// What it may bring without being asked, in bytes, roughly: as many entries as it has room for,
/// with keys that are kept twice.
const BROUGHT_MAX: usize = SLOTS as usize * ENTRY_BYTES + 2 * LANE_BYTES;
/// After so many changes by message in a row a client writes. They cost it as many round trips, and
/// who reads often comes between.
const SETS: u32 = 8;
/// After so many reads by message in a row that found nothing in its lane it writes no longer. They
/// cost the readers as many round trips.
const READS: u32 = 4;

/// One client's lane.
pub(super) struct Lane {
    pub(super) inlet: Inlet,
    pub(super) mirror: Mirror,
    /// Something may be in its inlet, or come.
    pub(super) writes: bool,
    /// How many changes have come by it.
    pub(super) own: u64,
    /// How often its client has set something by message, since another client has read by
    /// message.
    sets: u32,
    /// How many reads by message have found nothing in it, since something was.
    pub(super) idle: u32,
}

impl Lane {
    /// Nothing is granted. It is to be [tended](Map::tend_lanes) before its client has it.
    pub(super) fn new(memory: Arc<SharedMemory>) -> Self {
        Self {
            inlet: Inlet::new(Arc::clone(&memory)),
            mirror: Mirror::new(memory),
            writes: false,
            own: 0,
            sets: 0,
            idle: 0,
        }
    }

    /// Whether nobody else can change anything without a message, when there are so many who write.
    pub(super) fn is_told(&self, writers: usize) -> bool {
        writers == usize::from(self.writes)
    }
}

/// Its inlet shuts itself.
impl Drop for Lane {
    fn drop(&mut self) {
        self.mirror.shut();
    }
}

impl Map {
    pub(super) fn writers(&self) -> usize {
        self.lanes.values().filter(|lane| lane.writes).count()
    }

    /// What may come by lane without being asked about, in bytes, at most.
    pub(super) fn granted(&self) -> usize {
        let granting = |lane: &&Lane| lane.inlet.credit() > 0;
        self.lanes.values().filter(granting).count() * BROUGHT_MAX
    }

    /// Before a request is answered: the map is as it is at this moment.
    pub(super) fn prepare_lanes(&mut self, caller: Caller, ask: &Ask) {
        match ask {
            Ask::Get { .. } | Ask::Contains { .. } | Ask::Len | Ask::Snapshot { .. } => {
                for (of, lane) in &mut self.lanes {
                    lane.idle = lane.idle.saturating_add(1); // unless something is found
                    if of.client != caller.client {
                        lane.sets = 0;
                    }
                }
            }
            Ask::Watch { .. } | Ask::Next { .. } | Ask::More { .. } | Ask::Rang => {}
            Ask::Insert { .. }
            | Ask::Set { .. }
            | Ask::Remove { .. }
            | Ask::Clear
            | Ask::Extend => {
                if self.writers() > 0 {
                    self.lanes.values().for_each(|lane| lane.mirror.blind());
                    lane::before_looking_again(); // who puts in an item that is not seen now, sees that he is blind
                }
            }
        }
        self.pull();
        if let Ask::Set { lane, .. } = ask
            && let Some(lane) = self.lanes.get_mut(&Caller { client: caller.client, ticket: *lane })
        {
            lane.sets = lane.sets.saturating_add(1);
            lane.idle = 0;
            lane.writes |= lane.sets >= SETS;
        }
    }

    /// Takes in what clients have put into their lanes. A lane that makes no sense is closed: what
    /// its client has put in since is lost, and that is its own doing.
    pub(super) fn pull(&mut self) {
        if !self.lanes.values().any(|lane| lane.inlet.has_news()) {
            return;
        }
        // They are emptied one after another. What is put in meanwhile waits for the next time:
        // else an item in an inlet that comes later here would pass one that was put before
        // it into an inlet that we have been at.
        let (until, mut items) = (lane::time(), Vec::new());
        self.lanes.retain(|caller, lane| {
            let mut sound = true;
            let pulled = lane.inlet.pull(until, |time, item| match apart(&item) {
                Some((key, value)) if sound => {
                    lane.idle = 0;
                    items.push((time, *caller, key, value));
                }
                _ => sound = false,
            });
            sound && pulled.is_ok()
        });
        items.sort_by_key(|(time, ..)| *time);
        for (_, caller, key, value) in items {
            self.set(key, value, None);
            if let Some(lane) = self.lanes.get_mut(&caller) {
                lane.own += 1;
            }
        }
    }

    /// A lane is wanted no longer. What is in it is the map's.
    pub(super) fn close_lane(&mut self, caller: Caller) {
        if let Some(lane) = self.lanes.get(&caller) {
            lane.inlet.shut();
            self.pull();
            self.lanes.remove(&caller);
        }
    }

    /// Who reads by mirror, and who writes, when everything else has been done.
    pub(super) fn tend_lanes(&mut self) {
        // What they bring without being asked must not pass the manager's bound. (What is granted
        // now is counted already.)
        let full = self.left.saturating_add(self.granted()) < BROUGHT_MAX * self.writers();
        let mut revoked = false;
        self.lanes.retain(|_, lane| {
            if !lane.writes || lane.idle < READS && !full {
                return true;
            }
            (lane.writes, lane.sets, revoked) = (false, 0, true);
            lane.inlet.revoke().is_ok()
        });
        if revoked {
            self.pull();
        }
        let (writers, changes) = (self.writers(), self.changes);
        let is_told = |lane: &Lane| lane.is_told(writers);
        self.lanes.values().filter(|lane| !is_told(lane)).for_each(|lane| lane.mirror.blind());
        self.lanes.retain(|_, lane| {
            let more = SLOTS - lane.inlet.credit();
            !lane.writes || more < SLOTS / 2 || lane.inlet.grant(more).is_ok()
        });
        self.lanes
            .values()
            .filter(|lane| is_told(lane))
            .for_each(|lane| lane.mirror.show(changes - lane.own));
    }

    /// Sets the bells if somebody waits for changes, and takes in what was put in before they were
    /// seen; whatever comes later rings. Whether something may have come.
    pub(super) fn set_bells(&mut self) -> bool {
        let wanted = !self.line.is_empty();
        self.lanes.values().for_each(|lane| lane.inlet.set_bell(wanted));
        let look = wanted && self.writers() > 0;
        if look {
            lane::before_looking_again();
            self.pull();
        }
        look
    }
}

/// An item's key and value.
fn apart(item: &[u8]) -> Option<(Packet, Packet)> {
    let (len, rest) = item.split_first_chunk()?;
    let (key, value) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((Packet::copy_from(key), Packet::copy_from(value)))
}

/// Writes an item, in the place of what is there.
pub(crate) fn put_together(item: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    item.clear();
    item.extend_from_slice(&(key.len() as u32).to_le_bytes());
    item.extend_from_slice(key);
    item.extend_from_slice(value);
}
