//! The short ways to a map's values: without a message for each.
//!
//! In the application a request is a call of the rules. Elsewhere a handle that reads or sets often
//! asks for a [lane](crate::manager::lane), without waiting for it. In it the client is told how
//! often others have changed the map: as long as that is no more, what it has read is still so, and
//! need not be asked for again. And into it the client may put what it sets, when that is granted.
//! What cannot go by lane (nothing is granted, there is none, the item is large or names other
//! objects) goes as a message, as ever; so does everything after a request was given up, see
//! `queue_lanes.rs`.

use super::handle::Handle;
use super::queue_lanes::{Lane, lock};
use crate::manager::lane::{ITEM_MAX, Pusher, Way, time};
use crate::manager::object::Body;
use crate::manager::objects::code::Message;
use crate::manager::objects::map::{Ask, put_together};
use crate::manager::reads::{Reads, Seen};
use crate::process::{SharedMemory, fork};
use crate::wire::packet::Packet;
use std::sync::Arc;

/// The client's end of a map's lane.
#[derive(Debug)]
pub(super) struct MapLane {
    pusher: Pusher,
    reads: Reads,
    /// An item, before it is put in.
    item: Vec<u8>,
}

impl MapLane {
    fn new(memory: Arc<SharedMemory>) -> Option<Self> {
        let reads = Reads::new(Arc::clone(&memory));
        Pusher::new(memory).map(|pusher| Self { pusher, reads, item: Vec::new() })
    }

    /// Puts it in, if that is granted: whether to ring.
    fn set(&mut self, key: &Packet, value: &Packet) -> Option<bool> {
        put_together(&mut self.item, key, value);
        let ring = self.pusher.push(time(), &self.item)?;
        self.reads.wrote(key.clone(), value.clone());
        Some(ring)
    }
}

/// The ticket of no lane.
pub(super) const NO_LANE: u64 = 0;

impl Handle {
    /// Gives a key a value that names nothing, if that can be done at once; else gives the ticket
    /// of the lane in which it was not granted.
    pub(super) fn set_at_once(&self, key: &Packet, value: &Packet) -> Result<(), u64> {
        if self.connection().server().is_some()
            || fork::is_forked_copy()
            || key.len() + value.len() > ITEM_MAX - size_of::<u32>()
        {
            return Err(NO_LANE);
        }
        let lanes = self.may_use_lanes().ok_or(NO_LANE)?;
        let mut lane = lock(&lanes.map);
        if let Lane::Open(ticket, ends) = &mut *lane {
            let ring = ends.set(key, value).ok_or(*ticket)?;
            drop(lane);
            if ring {
                let _ = self.tell(Ask::Rang.body()); // it fails only when nobody is there any more
            }
            return Ok(());
        }
        self.open(&lanes.map, lane, Way::Out, MapLane::new);
        Err(NO_LANE)
    }

    /// What is under this key, if that is known; else when it is asked for, if that is told.
    pub(super) fn get_at_once(&self, key: &Packet) -> Result<Option<Body>, Option<Seen>> {
        if self.connection().server().is_some() || fork::is_forked_copy() {
            return Err(None);
        }
        let lanes = self.may_use_lanes().ok_or(None)?;
        let mut lane = lock(&lanes.map);
        if let Lane::Open(_, ends) = &mut *lane {
            let value = ends.reads.get(key)?;
            return Ok(value.map(|value| Body::with_value(Packet::default(), value, None)));
        }
        self.open(&lanes.map, lane, Way::Out, MapLane::new);
        Err(None)
    }

    /// Keeps what was read, having been asked for then.
    pub(super) fn keep(&self, key: Packet, value: Option<Packet>, seen: Seen) {
        if let Lane::Open(_, ends) = &mut *lock(&self.lanes().map) {
            ends.reads.keep(key, value, seen);
        }
    }
}
