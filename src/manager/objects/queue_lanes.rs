//! The shared-memory rings of a queue (*lanes* in the code): rules 8 and 9 of `queue.rs`.

use super::{
    AHEAD_MAX, Answer, Caller, GRANT_MIN, ITEM_BYTES, Inlet, Item, LANE_BYTES, Message, Outlet,
    Packet, Queue, Reply, SLOTS,
};
use crate::manager::lane;

impl Queue {
    /// Takes note of what clients have put into their lanes, and taken out of them. A lane that
    /// makes no sense is closed: what its client has put in since is lost, and that is its own
    /// doing.
    pub(super) fn pull(&mut self) {
        if self.inlets.values().any(Inlet::has_news) {
            let mut items = Vec::new();
            let several = self.inlets.len() > 1;
            // They are emptied one after another. What is sent meanwhile waits for the next time:
            // else an item in an inlet that comes later here would pass one that was
            // sent before it into an inlet that we have been at.
            let until = if several { lane::time() } else { u64::MAX };
            self.inlets.retain(|_, inlet| {
                inlet.pull(until, |time, value| items.push((time, value))).is_ok()
            });
            self.credit = self.inlets.values().map(|inlet| inlet.credit() as usize).sum();
            if several {
                // Each inlet's are in their order; whoever had sent before another began, comes
                // before him.
                items.sort_by_key(|(time, _)| *time);
            }
            for (_, value) in items {
                self.let_in(value, None);
            }
        }
        if self.outlets.values().any(Outlet::has_news) {
            let (mut count, mut bytes, mut broken) = (0, 0, Vec::new());
            for (caller, outlet) in &mut self.outlets {
                let settled = outlet.settle(|item| {
                    count += 1;
                    bytes += item.bytes();
                });
                if settled.is_err() {
                    broken.push(*caller);
                }
            }
            self.offered -= count;
            self.bytes -= bytes;
            broken.into_iter().for_each(|caller| self.close_lane(caller));
        }
    }

    /// Nothing of what was granted may come any more, but what has come by now.
    pub(super) fn revoke(&mut self) {
        self.inlets.retain(|_, inlet| inlet.revoke().is_ok());
        self.pull();
        self.credit = 0;
    }

    /// Gives one who waits the next item through his lane: it is promised to him. `false`: it has
    /// to go another way.
    pub(super) fn promise(&mut self, caller: Caller, lane: u64, answers: &mut Vec<Answer>) -> bool {
        let at = Caller { client: caller.client, ticket: lane };
        let Some(outlet) = self.outlets.get_mut(&at) else { return false };
        let goes = |item: &Item| {
            outlet.len() == 0 && item.held.0.is_none() && outlet.fits(item.value.len())
        };
        if !self.ready.front().is_some_and(goes) {
            return false;
        }
        let Some(item) = self.ready.pop_front() else { return false };
        self.offered += 1;
        let value: Packet = item.value.clone();
        outlet.promise(&value, item, caller.ticket);
        if outlet.show().is_err() {
            self.close_lane(at);
            return false;
        }
        answers.push(Answer::new(caller, Reply::InLane.body()));
        true
    }

    /// What was promised to this one waits for nobody any more, unless it has been taken.
    pub(super) fn take_back(&mut self, caller: Caller) {
        let lane = self.outlets.iter_mut().find_map(|(at, outlet)| {
            let promised = at.client == caller.client && outlet.take_back(caller.ticket);
            promised.then_some(*at)
        });
        // To its place: something that comes before it may have come back meanwhile.
        if let Some(lane) = lane {
            self.empty(lane);
        }
    }

    /// What nobody has taken out of the outlets, and is promised to nobody, is ready again.
    pub(super) fn reclaim(&mut self) {
        if self.outlets.values().all(|outlet| outlet.len() == 0) {
            return;
        }
        let callers: Vec<Caller> = self.outlets.keys().copied().collect();
        for caller in callers {
            self.empty(caller);
        }
    }

    /// An outlet's items are ready again.
    fn empty(&mut self, caller: Caller) {
        let Some(outlet) = self.outlets.get_mut(&caller) else { return };
        let (mut count, mut bytes) = (0, 0);
        let taken = |item: Item| {
            count += 1;
            bytes += item.bytes();
        };
        let (rest, broken) = match outlet.reclaim(taken) {
            Ok(rest) => (rest, false),
            Err(lane::Broken) => {
                outlet.shut();
                (outlet.rest(), true)
            }
        };
        if broken {
            self.outlets.remove(&caller);
            self.ahead_for.take_if(|outlet| *outlet == caller);
        }
        self.offered -= count + rest.len();
        self.bytes -= bytes;
        // As a rule they come before everything that is ready.
        for item in rest.into_iter().rev() {
            self.put_back(item);
        }
    }

    /// A lane is wanted no longer. What is in it is the queue's.
    pub(super) fn close_lane(&mut self, caller: Caller) {
        if let Some(inlet) = self.inlets.get(&caller) {
            inlet.shut();
            self.pull();
            self.inlets.remove(&caller);
            self.credit = self.inlets.values().map(|inlet| inlet.credit() as usize).sum();
        }
        if let Some(outlet) = self.outlets.get_mut(&caller) {
            outlet.break_promise();
            self.empty(caller);
            self.outlets.remove(&caller);
            self.ahead_for.take_if(|outlet| *outlet == caller);
        }
    }

    /// Puts items ahead, grants room, sets bells. Gives whether something has come meanwhile.
    pub(super) fn tend_lanes(&mut self) -> bool {
        self.put_ahead();
        self.grant();
        let wanted = !self.receivers.is_empty();
        // They wait for room, or for the end: that of all there is, or of a closed queue.
        let missed = !self.senders.is_empty() || !self.joiners.is_empty() || self.closed && wanted;
        self.inlets.values().for_each(|inlet| inlet.set_bell(wanted));
        self.outlets.values().for_each(|outlet| outlet.set_bell(missed));
        if !wanted && !missed {
            return false;
        }
        lane::before_looking_again();
        wanted && self.inlets.values().any(Inlet::has_news)
            || missed && self.outlets.values().any(Outlet::has_news)
    }

    /// Puts what is ready into the outlet of the consumer that was served last: no consumer waits
    /// for it now.
    fn put_ahead(&mut self) {
        if self.outlets.is_empty() || self.ready.is_empty() || self.deaf {
            return;
        }
        // What has come back to its place goes before what was put ahead.
        if self.ready.front().is_some_and(|item| item.place < self.ahead) {
            self.reclaim();
        }
        // A part more, for those who have none. (All are reclaimed before somebody is served.)
        let part = self.ready.len().div_ceil(self.outlets.len() + 1).min(AHEAD_MAX);
        let Some(caller) = self.ahead_for else { return };
        let Some(outlet) = self.outlets.get_mut(&caller) else { return };
        let before = outlet.len();
        while outlet.len() < part
            && let Some(item) = self.ready.front()
            && item.held.0.is_none()
            && outlet.fits(item.value.len())
            && let Some(item) = self.ready.pop_front()
        {
            let value: Packet = item.value.clone();
            self.ahead = item.place;
            outlet.put(&value, item);
            self.offered += 1;
        }
        if outlet.len() > before && outlet.show().is_err() {
            self.close_lane(caller);
        }
    }

    /// Room that nobody waits for is granted to the inlets, in equal parts.
    fn grant(&mut self) {
        if self.inlets.is_empty() || !self.senders.is_empty() || self.closed {
            return;
        }
        // What they bring without being asked must not pass the manager's bound. (What is granted
        // now is counted already.)
        let most = self.inlets.len() * (SLOTS as usize * ITEM_BYTES + LANE_BYTES);
        if self.left.saturating_add(self.granted()) < most {
            return;
        }
        let used = self.ready.len() + self.offered + self.credit;
        let mut room = self.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(used));
        // (A part more, for those who have no lane.)
        let part = (room.saturating_add(self.credit) / (self.inlets.len() + 1)).max(1);
        let mut broken = Vec::new();
        for (caller, inlet) in &mut self.inlets {
            let credit = inlet.credit() as usize;
            let more = part.min(SLOTS as usize).saturating_sub(credit).min(room);
            if more > 0 && (credit == 0 || more >= GRANT_MIN) {
                if inlet.grant(more as u32).is_err() {
                    broken.push(*caller);
                }
                self.credit += more;
                room -= more;
            }
        }
        broken.into_iter().for_each(|caller| self.close_lane(caller));
    }
}
