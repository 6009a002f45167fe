//! The short ways into a queue and out of it: without a message for each item.
//!
//! In the application that is a call of the rules. Elsewhere it is a [lane](crate::manager::lane),
//! which a handle asks for once it has been used some times, without waiting for it; what cannot go
//! by lane (there is none, it is full or empty, the item is large or names other objects) goes as a
//! message, as ever.
//!
//! (Those of a map are in `map_lane.rs`.)
//!
//! **What was given up.** A `recv` that was dropped has said so by a message, and what it may have
//! been sent goes back to its place when that is read; until then the lane may hold what comes
//! after it. So from then on everything goes by message, until one that was sent later than that
//! message has been answered. The same with a `send`, with a stream that had fetched more
//! than it has yielded, and with a delivery that is let go.

use super::connection::Connection;
use super::handle::{Handle, Inner};
use super::map_lane::MapLane;
use crate::lock::Lock;
use crate::manager::lane::{Pusher, Taker, Way, time};
use crate::manager::mail::Arrived;
use crate::manager::object::Body;
use crate::manager::objects::code::Message;
use crate::manager::objects::queue::{Ask, Reply};
use crate::process::{SharedMemory, fork};
use crate::wire::packet::Packet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::task::{Poll, Waker};

/// A handle that sends, or receives, so many times by message, asks for a lane.
const USES: u32 = 8;

/// The lanes of one handle and its clones.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// Held only to use the lane: system calls are made without it.
    into: Lock<Lane<Pusher>>,
    out: Lock<Lane<Taker>>,
    /// Somebody waits for what comes out: nobody else takes it. Changed only while `out` is held.
    waits: AtomicBool,
    /// Of a map.
    pub(super) map: Lock<Lane<MapLane>>,
    /// The last request that may have been sent before it was told that something was given up,
    /// until one that was sent later is answered.
    given_up: AtomicU64,
}

#[derive(Debug)]
pub(super) enum Lane<T> {
    /// It was used so many times.
    None(u32),
    /// Asked for, under this ticket.
    Asked(u64),
    /// What has come is being mapped.
    Coming,
    Open(u64, T),
    /// There is none to be had.
    Refused,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self::None(0)
    }
}

impl<T> Lane<T> {
    fn ticket(&self) -> Option<u64> {
        match self {
            Self::Asked(ticket) | Self::Open(ticket, _) => Some(*ticket),
            Self::None(_) | Self::Coming | Self::Refused => None,
        }
    }
}

pub(super) fn lock<T>(lane: &Lock<Lane<T>>) -> MutexGuard<'_, Lane<T>> {
    lane.lock()
}

impl Lanes {
    /// Something was given up; `newest` is the last ticket.
    pub(super) fn gave_up(&self, newest: u64) {
        self.given_up.fetch_max(newest, Ordering::AcqRel);
    }

    /// A request was answered.
    pub(super) fn answered(&self, ticket: u64) {
        let given_up = self.given_up.load(Ordering::Acquire);
        if given_up != 0 && ticket > given_up {
            // If another is given up just now, that one stays.
            let _ =
                self.given_up.compare_exchange(given_up, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Its handle is dropped.
    pub(super) fn close(&mut self, connection: &Connection, object: u64) {
        let lanes = [
            self.map.get_mut().ticket(),
            self.into.get_mut().ticket(),
            self.out.get_mut().ticket(),
        ];
        for ticket in lanes.into_iter().flatten() {
            drop(connection.mail().forget(ticket));
            connection.cancel(object, ticket);
        }
    }
}

impl Handle {
    pub(super) fn may_use_lanes(&self) -> Option<&Lanes> {
        let lanes = self.lanes();
        (lanes.given_up.load(Ordering::Acquire) == 0 && !self.connection().mail().is_closed())
            .then_some(lanes)
    }

    /// Sends an item that names nothing, if that can be done at once; else it comes back.
    pub(super) fn put_at_once(&self, item: Packet) -> Result<(), Packet> {
        if fork::is_forked_copy() {
            return Err(item);
        }
        if let Some(server) = self.connection().server() {
            return server.put_now(self.name().object, item);
        }
        let Some(lanes) = self.may_use_lanes() else { return Err(item) };
        let mut lane = lock(&lanes.into);
        if let Lane::Open(_, pusher) = &mut *lane {
            let ring = pusher.push(time(), &item);
            drop(lane);
            return match ring {
                Some(ring) => {
                    if ring {
                        self.ring();
                    }
                    Ok(())
                }
                None => Err(item),
            };
        }
        self.open(&lanes.into, lane, Way::In, Pusher::new);
        Err(item)
    }

    /// Takes an item, if that can be done at once: as an answer's body.
    pub(super) fn take_at_once(&self) -> Option<Body> {
        if fork::is_forked_copy() {
            return None;
        }
        if let Some(server) = self.connection().server() {
            return server.take_now(self.name().object);
        }
        let lanes = self.may_use_lanes()?;
        let lane = lock(&lanes.out);
        if let Lane::Open(..) = &*lane {
            return if lanes.waits.load(Ordering::Relaxed) { None } else { self.take_out(lane) };
        }
        self.open(&lanes.out, lane, Way::Out, Taker::new);
        None
    }

    fn take_out(&self, mut lane: MutexGuard<'_, Lane<Taker>>) -> Option<Body> {
        let Lane::Open(_, taker) = &mut *lane else { return None };
        let (item, ring) = taker.take()?;
        drop(lane);
        if ring {
            self.ring();
        }
        Some(Body::with_value(Reply::Item { deliveries: 0 }.packet(), item, None))
    }

    /// Somebody is about to wait for an item. If it can come by lane, gives the lane's ticket; then
    /// nobody else takes there until he [has left](Self::leave_lane).
    pub(super) fn wait_at_lane(&self) -> Option<u64> {
        if self.connection().server().is_some() || fork::is_forked_copy() {
            return None;
        }
        let lanes = self.may_use_lanes()?;
        let lane = lock(&lanes.out);
        let Lane::Open(ticket, _) = *lane else { return None };
        (!lanes.waits.swap(true, Ordering::Relaxed)).then_some(ticket)
    }

    /// Who has waited at the lane leaves it: with his item, if he was told that it is there.
    pub(super) fn leave_lane(&self, is_there: bool) -> Option<Body> {
        let lanes = self.lanes();
        let lane = lock(&lanes.out);
        lanes.waits.store(false, Ordering::Relaxed);
        if is_there { self.take_out(lane) } else { None }
    }

    /// The manager wants to know that something has happened in a lane.
    fn ring(&self) {
        let _ = self.tell(Ask::Rang.body()); // it fails only when nobody is there any more
    }

    /// Comes a step nearer to having a lane.
    pub(super) fn open<T>(
        &self,
        place: &Lock<Lane<T>>,
        mut lane: MutexGuard<'_, Lane<T>>,
        way: Way,
        end: impl FnOnce(Arc<SharedMemory>) -> Option<T>,
    ) {
        match &mut *lane {
            Lane::None(uses) if *uses < USES => *uses += 1,
            Lane::None(_) => {
                *lane = Lane::Coming;
                drop(lane);
                let asked = self
                    .connection()
                    .ticket()
                    .inspect(|ticket| self.connection().lane(self.name().object, *ticket, way));
                *lock(place) = asked.map_or(Lane::Refused, Lane::Asked);
            }
            Lane::Asked(ticket) => {
                let ticket = *ticket;
                let Poll::Ready(arrived) = self.connection().mail().poll(ticket, Waker::noop())
                else {
                    return;
                };
                *lane = Lane::Coming;
                drop(lane);
                drop(self.connection().mail().forget(ticket));
                let opened = match arrived {
                    Arrived::Mapped(memory) => map(memory.trusted()).and_then(end),
                    _ => None,
                };
                if opened.is_none() {
                    self.cancel(ticket);
                }
                *lock(place) = opened.map_or(Lane::Refused, |end| Lane::Open(ticket, end));
            }
            Lane::Coming | Lane::Open(..) | Lane::Refused => {}
        }
    }
}

fn map(memory: OwnedFd) -> Option<Arc<SharedMemory>> {
    SharedMemory::from_fd(&memory).ok().map(Arc::new)
}

impl Inner {
    pub(super) fn close_lanes(&mut self) {
        let (connection, object) = (Arc::clone(self.connection()), self.name().object);
        if let Some(lanes) = self.lanes_mut() {
            lanes.close(&connection, object);
        }
    }
}
