//! A queue: many producers, many consumers, bounded or not.
//!
//! The rules, by number:
//!
//! 1. **Order.** Items leave in the order in which they came in, so the items of each producer keep
//!    their order. Producers that wait for room are served in the order in which they asked, and no
//!    producer overtakes them.
//! 2. **Receiving.** An item that `recv` takes is a pending delivery (an *offer*, see
//!    [`object`](crate::manager::object)) until its caller has acknowledged it. An item that is not
//!    acknowledged returns to its position, before all that came in later.
//! 3. **Leases.** A leased item belongs to the queue until it is acknowledged. It returns to its
//!    position when it is rejected, when its lease has expired, when its holder has died, and when
//!    the answer was cancelled before the consumer saw it. Each delivery is counted, except in the
//!    last case.
//! 4. **Bound.** The bound counts items that are ready or pending. Leased items are not counted, so
//!    a consumer that sends to its own queue before it acknowledges cannot block itself. An item
//!    that returns from a lease may exceed the bound.
//! 5. **Closing.** A closed queue takes no more items, and producers that wait for room are told.
//!    Consumers get what is left. Then they are told, but not before the last lease has ended,
//!    since its item may return.
//! 6. **Last handles.** When its last sender is dropped, a queue closes. When its last receiver is
//!    dropped, it closes, and its items are dropped.
//! 7. **Join.** `join` waits until no item is left: ready, pending or leased.
//! 8. **Shared-memory rings.** A client that sends or receives often has a [`lane`] for it.
//!    * *Producer rings* (inlets): an item is in the queue from the moment at which it was put into
//!      the ring. So before anything is decided, the producer rings are drained, in the order of
//!      the times at which items were put in.
//!    * *Credit*: credit that was granted and is not used takes room. None is granted while a
//!      producer waits for room, and what was granted before is revoked first.
//!    * *Consumer rings* (outlets): their items are pending. They are reclaimed before another
//!      consumer is served, so no consumer waits for items that another one has and has not taken.
//!    * *Prefetching*: items are prefetched (*put ahead*) into one consumer ring at a time, that of
//!      the consumer that was served last. If two consumers had prefetched items, the one with the
//!      later items could take them, and then be given those that were reclaimed from the other
//!      one, out of their order.
//! 9. **Reservations.** A consumer that waits may be given its item through its consumer ring. The
//!    item is *reserved* for it (a *promise* in the code): it is pending as any other (rule 2), but
//!    is not reclaimed. The consumer takes it as any item in the ring, and sends no
//!    acknowledgement. One item of a consumer ring is reserved at a time, and it is the first one
//!    there.

use super::code::{Message, Pack, Wait, messages, unpack};
use super::line::{Line, WAITER_BYTES, of_client};
use crate::manager::held::join;
use crate::manager::lane::{self, Inlet, Outlet, SLOTS, Way};
use crate::manager::object::{Answer, Bad, Body, Caller, Client, Gone, Held, Object, Part};
use crate::process::SharedMemory;
use crate::wire::packet::Packet;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

messages!(
    /// What a queue is asked.
    Ask {
        /// With one value.
        1 Send { wait: Wait },
        /// With several, packed. They come in one by one, as there is room.
        2 SendMany { wait: Wait },
        /// At most so many at once, at least one.
        3 Recv { wait: Wait, max: u32 },
        /// One item under a lease; without a limit it lasts until it is ended.
        4 Lease { wait: Wait, limit: Option<Duration> },
        5 Acknowledge { lease: u64 },
        6 Reject { lease: u64 },
        /// From now on the lease lasts so long.
        7 Extend { lease: u64, limit: Option<Duration> },
        8 Join { wait: Wait },
        9 Close,
        10 Status,
        /// So many more of the items that this `Recv` was offered are taken. The rest stays on offer.
        11 Taken { recv: u64, count: u32 },
        /// In a lane something has happened that was wanted to be known.
        12 Rang,
        /// One item, if it can be so in the lane of this ticket, out of which nobody else takes meanwhile.
        13 RecvByLane { wait: Wait, lane: u64 },
    }
);

messages!(
    /// What a queue answers.
    Reply {
        /// All that was asked is done.
        1 Done,
        /// One item.
        2 Item { deliveries: u32 },
        /// Several, packed.
        3 Items,
        /// There was no room, for a sender that does not wait. Of many, so many came in.
        4 Full { accepted: u32 },
        5 Empty,
        6 TimedOut { accepted: u32 },
        7 Closed { accepted: u32 },
        /// There is no such lease (any more).
        8 NotHeld,
        9 Status { ready: u64, leased: u64, capacity: Option<u64>, closed: bool },
        /// It is in the lane.
        10 InLane,
    }
);

/// What an item costs beside its value, in bytes, roughly.
const ITEM_BYTES: usize = 96;
/// No more values than this, in bytes, are put into one answer (but always one).
const BATCH_BYTES: usize = 256 << 10;
/// What a lane costs, in bytes.
const LANE_BYTES: usize = lane::WORDS * 8;
/// Lanes of one queue, at most: who comes later does without.
const LANES_MAX: usize = 64;
/// What is granted is made more only by so many at once, or when nothing is left of it.
const GRANT_MIN: usize = 64;
/// Looks at the lanes without a pause, at most, while clients are busy in them.
const ROUNDS_MAX: u32 = 100;
/// So many items are put into an outlet ahead, at most.
const AHEAD_MAX: usize = 256;

#[derive(Debug)]
struct Item {
    /// Its place: items are ordered by it for ever.
    place: u64,
    value: Packet,
    held: HeldItem,
    deliveries: u32,
}

/// `Held` has no `Debug`.
#[derive(Clone)]
struct HeldItem(Held);

impl std::fmt::Debug for HeldItem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "held" } else { "-" })
    }
}

impl Item {
    fn bytes(&self) -> usize {
        self.value.len() + ITEM_BYTES
    }
}

#[derive(Debug)]
struct Lease {
    item: Item,
    until: Option<Instant>,
}

/// Values that wait for room.
#[derive(Debug)]
struct Sending {
    values: VecDeque<Packet>,
    held: HeldItem,
    accepted: u32,
    wait: Wait,
}

impl Sending {
    fn bytes(&self) -> usize {
        WAITER_BYTES
            + self.values.iter().map(|value| value.len() + size_of::<Packet>()).sum::<usize>()
    }
}

/// What somebody who waits for an item wants.
#[derive(Clone, Copy, Debug)]
struct Want {
    how: How,
    wait: Wait,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Recv {
        max: u32,
    },
    /// By the lane of this ticket, if that can be.
    ByLane(u64),
    Lease {
        limit: Option<Duration>,
    },
}

/// The state of one queue.
#[derive(Debug)]
pub(crate) struct Queue {
    capacity: Option<usize>,
    /// In the order of their places.
    ready: VecDeque<Item>,
    offers: BTreeMap<Caller, VecDeque<Item>>,
    /// How many items are in `offers`.
    offered: usize,
    leases: BTreeMap<Caller, Lease>,
    limits: BTreeSet<(Instant, Caller)>,
    senders: Line<Sending>,
    receivers: Line<Want>,
    joiners: Line<Wait>,
    closed: bool,
    /// The last receiver has gone: nothing is kept any more.
    deaf: bool,
    /// Which parts are held by somebody.
    parts: BTreeSet<Part>,
    next: u64,
    /// Of all items and of what waits for room.
    bytes: usize,
    inlets: BTreeMap<Caller, Inlet>,
    /// What is in them counts as `offered`.
    outlets: BTreeMap<Caller, Outlet<Item>>,
    /// The place of the item that was put into an outlet last.
    ahead: u64,
    /// The outlet into which items are put ahead: no other one has items that are not promised.
    ahead_for: Option<Caller>,
    /// How many items may still come through inlets.
    credit: usize,
    /// Its lanes are to be looked at again then.
    look_at: Option<Instant>,
    /// Bytes that the manager has left.
    left: usize,
}

impl Queue {
    /// `capacity`: how many items may be ready or on offer; `None` is any number. At least 1.
    pub(crate) fn new(capacity: Option<usize>) -> Self {
        debug_assert_ne!(capacity, Some(0), "nothing could ever be sent");
        Self {
            capacity,
            ready: VecDeque::new(),
            offers: BTreeMap::new(),
            offered: 0,
            leases: BTreeMap::new(),
            limits: BTreeSet::new(),
            senders: Line::new(),
            receivers: Line::new(),
            joiners: Line::new(),
            closed: false,
            deaf: false,
            parts: BTreeSet::new(),
            next: 0,
            bytes: 0,
            inlets: BTreeMap::new(),
            outlets: BTreeMap::new(),
            ahead: 0,
            ahead_for: None,
            credit: 0,
            look_at: None,
            left: usize::MAX,
        }
    }

    fn send(
        &mut self,
        caller: Caller,
        values: VecDeque<Packet>,
        held: Held,
        wait: Wait,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) {
        if self.closed {
            answers.push(Answer::new(caller, Reply::Closed { accepted: 0 }.body()));
            return;
        }
        let sending = Sending { values, held: HeldItem(held), accepted: 0, wait };
        let bytes = sending.bytes();
        self.senders.push(caller, wait.until(now), sending);
        self.bytes += bytes;
    }

    /// Whether the caller stands anywhere already.
    fn knows(&self, caller: Caller) -> bool {
        self.senders.contains(caller)
            || self.receivers.contains(caller)
            || self.joiners.contains(caller)
            || self.offers.contains_key(&caller)
            || self.leases.contains_key(&caller)
            || self.inlets.contains_key(&caller)
            || self.outlets.contains_key(&caller)
    }

    /// What may come by lane without being asked about, in bytes, at most.
    fn granted(&self) -> usize {
        if self.credit == 0 {
            return 0;
        }
        self.credit * ITEM_BYTES + self.inlets.len() * LANE_BYTES
    }

    fn has_room(&self) -> bool {
        self.capacity
            .is_none_or(|capacity| self.ready.len() + self.offered + self.credit < capacity)
    }

    fn is_drained(&self) -> bool {
        self.ready.is_empty() && self.offered == 0 && self.leases.is_empty()
    }

    /// Everything that can go on goes on.
    fn turn(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.look_at = None;
        for round in 0.. {
            self.pull();
            // What came back from leases may have passed the bound: then nothing more may come in.
            if self.credit > 0
                && self.capacity.is_some_and(|capacity| {
                    self.ready.len() + self.offered + self.credit > capacity
                })
            {
                self.revoke();
            }
            loop {
                self.deliver(now, answers);
                if !self.accept(answers) {
                    break;
                }
            }
            if self.inlets.is_empty() && self.outlets.is_empty() || !self.tend_lanes() {
                break;
            }
            if round == ROUNDS_MAX {
                self.look_at = Some(now); // others want the manager as well
                break;
            }
        }
        if self.is_drained() {
            for (caller, _) in self.joiners.drain() {
                answers.push(Answer::new(caller, Reply::Done.body()));
            }
            if self.closed {
                for (caller, _) in self.receivers.drain() {
                    answers.push(Answer::new(caller, Reply::Closed { accepted: 0 }.body()));
                }
            }
        }
    }

    /// Lets in what there is room for. Says whether anything came in.
    fn accept(&mut self, answers: &mut Vec<Answer>) -> bool {
        let mut some = false;
        if self.credit > 0 && !self.senders.is_empty() && !self.has_room() {
            self.revoke();
            some = true; // some may have come in meanwhile
        }
        while self.has_room()
            && let Some((caller, sending)) = self.senders.front_mut()
        {
            if let Some(value) = sending.values.pop_front() {
                sending.accepted += 1;
                let (held, rest) = (sending.held.0.clone(), sending.values.len());
                self.bytes -= value.len() + size_of::<Packet>();
                self.let_in(value, held);
                some = true;
                if rest > 0 {
                    continue;
                }
            }
            self.senders.pop();
            self.bytes -= WAITER_BYTES;
            answers.push(Answer::new(caller, Reply::Done.body()));
        }
        some
    }

    /// One item more is in.
    fn let_in(&mut self, value: Packet, held: Held) {
        let item = Item { place: self.next, value, held: HeldItem(held), deliveries: 0 };
        self.next += 1;
        self.bytes += item.bytes();
        self.ready.push_back(item);
    }

    fn deliver(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        if !self.receivers.is_empty() {
            self.reclaim();
        }
        while !self.ready.is_empty()
            && let Some((caller, want)) = self.receivers.pop()
        {
            match want.how {
                How::Recv { max } => {
                    // (One of its handles. If it has several, it may be another one's outlet.)
                    let outlet = of_client(&self.outlets, caller.client).next();
                    self.ahead_for = outlet.or(self.ahead_for);
                    self.offer(caller, max, answers)
                }
                How::ByLane(lane) => {
                    let outlet = Caller { client: caller.client, ticket: lane };
                    if self.outlets.contains_key(&outlet) {
                        self.ahead_for = Some(outlet);
                    }
                    if !self.promise(caller, lane, answers) {
                        self.offer(caller, 1, answers);
                    }
                }
                How::Lease { limit } => self.lease(caller, limit, now, answers),
            }
        }
    }

    fn offer(&mut self, caller: Caller, max: u32, answers: &mut Vec<Answer>) {
        let (mut items, mut bytes) = (VecDeque::new(), 0);
        while items.len() < max.max(1) as usize
            && let Some(item) = self.ready.front()
            && (items.is_empty() || bytes + item.value.len() <= BATCH_BYTES)
        {
            bytes += item.value.len();
            items.extend(self.ready.pop_front());
        }
        let body = match items.iter().collect::<Vec<_>>()[..] {
            [item] => Body::with_value(
                Reply::Item { deliveries: item.deliveries }.packet(),
                item.value.clone(),
                item.held.0.clone(),
            ),
            ref items => {
                let (mut pack, mut held) = (Pack::default(), Vec::new());
                for item in items {
                    pack.push(&item.value);
                    held.push(item.held.0.clone());
                }
                Body::with_value(Reply::Items.packet(), pack.finish(), join(held))
            }
        };
        self.offered += items.len();
        self.offers.insert(caller, items);
        answers.push(Answer::offer(caller, body));
    }

    fn lease(
        &mut self,
        caller: Caller,
        limit: Option<Duration>,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) {
        let Some(mut item) = self.ready.pop_front() else { return };
        item.deliveries = item.deliveries.saturating_add(1);
        let reply = Reply::Item { deliveries: item.deliveries };
        answers.push(Answer::new(
            caller,
            Body::with_value(reply.packet(), item.value.clone(), item.held.0.clone()),
        ));
        let until = limit.and_then(|limit| now.checked_add(limit));
        self.limits.extend(until.map(|until| (until, caller)));
        self.leases.insert(caller, Lease { item, until });
    }

    /// A lease ends; its item is the caller's to put back or to drop.
    fn end_lease(&mut self, caller: Caller) -> Option<Item> {
        let Lease { item, until } = self.leases.remove(&caller)?;
        if let Some(until) = until {
            self.limits.remove(&(until, caller));
        }
        Some(item)
    }

    /// Back to its place.
    fn put_back(&mut self, item: Item) {
        if self.deaf {
            self.bytes -= item.bytes();
            return;
        }
        let at = self.ready.partition_point(|other| other.place < item.place);
        self.ready.insert(at, item);
    }

    fn put_back_offer(&mut self, caller: Caller) {
        for item in self.offers.remove(&caller).into_iter().flatten() {
            self.offered -= 1;
            self.put_back(item);
        }
    }

    /// So many items of an offer have left for ever.
    fn take(&mut self, caller: Caller, count: usize) {
        let Some(items) = self.offers.get_mut(&caller) else { return };
        for item in items.drain(..count.min(items.len())) {
            self.offered -= 1;
            self.bytes -= item.bytes();
        }
        if items.is_empty() {
            self.offers.remove(&caller);
        }
    }

    /// It takes nothing more.
    fn shut(&mut self, answers: &mut Vec<Answer>) {
        self.closed = true;
        for inlet in self.inlets.values() {
            inlet.shut();
        }
        self.pull();
        self.inlets.clear();
        self.credit = 0;
        for (caller, sending) in self.senders.drain() {
            self.bytes -= sending.bytes();
            answers.push(Answer::new(caller, Reply::Closed { accepted: sending.accepted }.body()));
        }
    }

    fn forget_sender(&mut self, caller: Caller) -> bool {
        let sending = self.senders.remove(caller);
        if let Some(sending) = &sending {
            self.bytes -= sending.bytes();
        }
        sending.is_some()
    }

    fn expire(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        while let Some((until, caller)) = self.limits.first().copied()
            && until <= now
        {
            let item = self.end_lease(caller).expect("each limit is that of a lease");
            self.put_back(item);
        }
        self.turn(now, answers);
        for (caller, sending) in self.senders.expire(now) {
            self.bytes -= sending.bytes();
            let accepted = sending.accepted;
            let reply = if sending.wait == Wait::No {
                Reply::Full { accepted }
            } else {
                Reply::TimedOut { accepted }
            };
            answers.push(Answer::new(caller, reply.body()));
        }
        for (caller, want) in self.receivers.expire(now) {
            answers.push(Answer::new(caller, nothing(want.wait).body()));
        }
        for (caller, wait) in self.joiners.expire(now) {
            answers.push(Answer::new(caller, nothing(wait).body()));
        }
    }
}

/// What is said to one who has waited in vain.
fn nothing(wait: Wait) -> Reply {
    if wait == Wait::No { Reply::Empty } else { Reply::TimedOut { accepted: 0 } }
}

impl Object for Queue {
    fn request(
        &mut self,
        caller: Caller,
        body: Body,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Bad> {
        let own = |ticket| Caller { client: caller.client, ticket };
        let answer = |reply: Reply| Answer::new(caller, reply.body());
        if self.knows(caller) {
            return Err(Bad(format!("ticket {} is used twice", caller.ticket)));
        }
        let ask = Ask::read(&body.head)?;
        self.pull();
        match ask {
            Ask::Rang => {}
            Ask::Send { wait } => {
                self.send(caller, VecDeque::from([body.tail]), body.held, wait, now, answers)
            }
            Ask::SendMany { wait } => {
                self.send(caller, unpack(&body.tail)?.into(), body.held, wait, now, answers)
            }
            Ask::Recv { wait, max } => {
                self.receivers.push(caller, wait.until(now), Want { how: How::Recv { max }, wait })
            }
            Ask::RecvByLane { wait, lane } => {
                self.receivers.push(caller, wait.until(now), Want { how: How::ByLane(lane), wait })
            }
            Ask::Lease { wait, limit } => self.receivers.push(
                caller,
                wait.until(now),
                Want { how: How::Lease { limit }, wait },
            ),
            Ask::Acknowledge { lease } => match self.end_lease(own(lease)) {
                Some(item) => {
                    self.bytes -= item.bytes();
                    answers.push(answer(Reply::Done));
                }
                None => answers.push(answer(Reply::NotHeld)),
            },
            Ask::Reject { lease } => match self.end_lease(own(lease)) {
                Some(item) => {
                    self.put_back(item);
                    answers.push(answer(Reply::Done));
                }
                None => answers.push(answer(Reply::NotHeld)),
            },
            Ask::Extend { lease, limit } => match self.end_lease(own(lease)) {
                Some(item) => {
                    let until = limit.and_then(|limit| now.checked_add(limit));
                    self.limits.extend(until.map(|until| (until, own(lease))));
                    self.leases.insert(own(lease), Lease { item, until });
                    answers.push(answer(Reply::Done));
                }
                None => answers.push(answer(Reply::NotHeld)),
            },
            Ask::Join { wait } => self.joiners.push(caller, wait.until(now), wait),
            Ask::Close => {
                self.shut(answers);
                answers.push(answer(Reply::Done));
            }
            Ask::Status => answers.push(answer(Reply::Status {
                ready: (self.ready.len() + self.offered) as u64,
                leased: self.leases.len() as u64,
                capacity: self.capacity.map(|capacity| capacity as u64),
                closed: self.closed,
            })),
            Ask::Taken { recv, count } => self.take(own(recv), count as usize),
        }
        self.expire(now, answers);
        Ok(())
    }

    fn part_for(&self, head: &[u8]) -> Option<Part> {
        match Ask::read(head).ok()? {
            Ask::Send { .. } | Ask::SendMany { .. } => Some(Part::SENDER),
            Ask::Recv { .. }
            | Ask::RecvByLane { .. }
            | Ask::Lease { .. }
            | Ask::Acknowledge { .. }
            | Ask::Reject { .. }
            | Ask::Extend { .. }
            | Ask::Taken { .. } => Some(Part::RECEIVER),
            Ask::Join { .. } | Ask::Close | Ask::Status | Ask::Rang => None,
        }
    }

    fn taken(&mut self, caller: Caller, now: Instant, answers: &mut Vec<Answer>) {
        self.take(caller, usize::MAX);
        self.turn(now, answers);
    }

    fn cancel(&mut self, caller: Caller, now: Instant, answers: &mut Vec<Answer>) {
        self.pull();
        self.close_lane(caller);
        if !self.forget_sender(caller)
            && self.receivers.remove(caller).is_none()
            && self.joiners.remove(caller).is_none()
        {
            self.put_back_offer(caller);
            self.take_back(caller);
            if let Some(mut item) = self.end_lease(caller) {
                item.deliveries -= 1;
                self.put_back(item);
            }
        }
        self.turn(now, answers);
    }

    fn gone(&mut self, client: Client, _: Gone, now: Instant, answers: &mut Vec<Answer>) {
        self.pull();
        let lanes = of_client(&self.inlets, client).chain(of_client(&self.outlets, client));
        for caller in lanes.collect::<Vec<_>>() {
            self.close_lane(caller);
        }
        for (_, sending) in self.senders.remove_client(client) {
            self.bytes -= sending.bytes();
        }
        self.receivers.remove_client(client);
        self.joiners.remove_client(client);
        for caller in of_client(&self.offers, client).collect::<Vec<_>>() {
            self.put_back_offer(caller);
        }
        for caller in of_client(&self.leases, client).collect::<Vec<_>>() {
            let item = self.end_lease(caller).expect("it was just found");
            self.put_back(item);
        }
        self.turn(now, answers);
    }

    fn held(&mut self, part: Part, held: bool, now: Instant, answers: &mut Vec<Answer>) {
        if held {
            self.parts.insert(part);
            return;
        }
        self.parts.remove(&part);
        if self.parts.contains(&Part::WHOLE) {
            return;
        }
        if !self.parts.contains(&Part::SENDER) {
            self.shut(answers);
        }
        if !self.parts.contains(&Part::RECEIVER) {
            self.shut(answers);
            self.deaf = true;
            self.reclaim();
            for item in std::mem::take(&mut self.ready) {
                self.bytes -= item.bytes();
            }
        }
        self.turn(now, answers);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let lease = self.limits.first().map(|(until, _)| *until);
        [
            lease,
            self.senders.next_deadline(),
            self.receivers.next_deadline(),
            self.joiners.next_deadline(),
            self.look_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn tick(&mut self, now: Instant, answers: &mut Vec<Answer>) {
        self.expire(now, answers);
    }

    fn bytes(&self) -> usize {
        let lanes = (self.inlets.len() + self.outlets.len()) * LANE_BYTES + self.granted();
        self.bytes + (self.receivers.len() + self.joiners.len()) * WAITER_BYTES + lanes
    }

    fn left(&mut self, bytes: usize) {
        self.left = bytes;
    }

    fn lane(
        &mut self,
        caller: Caller,
        way: Way,
        memory: Arc<SharedMemory>,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> bool {
        let full =
            self.inlets.len() + self.outlets.len() >= LANES_MAX || self.left < 2 * LANE_BYTES;
        if self.closed || full || memory.words().len() < lane::WORDS || self.knows(caller) {
            return false;
        }
        match way {
            Way::In => drop(self.inlets.insert(caller, Inlet::new(memory))),
            Way::Out => {
                self.outlets.insert(caller, Outlet::new(memory));
                self.ahead_for = self.ahead_for.or(Some(caller));
            }
        }
        self.turn(now, answers);
        true
    }

    fn put_now(
        &mut self,
        value: Packet,
        held: Held,
        now: Instant,
        answers: &mut Vec<Answer>,
    ) -> Result<(), (Packet, Held)> {
        self.pull();
        if self.closed || !self.senders.is_empty() || !self.has_room() {
            return Err((value, held));
        }
        self.let_in(value, held);
        self.turn(now, answers);
        Ok(())
    }

    fn take_now(&mut self, now: Instant, answers: &mut Vec<Answer>) -> Option<Body> {
        self.pull();
        self.reclaim();
        let item = self.ready.pop_front()?;
        self.bytes -= item.bytes();
        self.turn(now, answers);
        Some(Body::with_value(
            Reply::Item { deliveries: item.deliveries }.packet(),
            item.value,
            item.held.0,
        ))
    }
}

#[path = "queue_lanes.rs"]
mod lanes;
#[cfg(test)]
#[path = "queue_sim.rs"]
mod sim;
