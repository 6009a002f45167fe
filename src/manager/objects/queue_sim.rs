//! The rules of a queue against a made-up world and an independent model.
//!
//! The world plays the clients: they send, receive, lease, acknowledge, give up and die at random,
//! and time passes. The model keeps plain lists of what stands where; each answer is held against
//! them before it is entered, and after each event nobody may wait for what is there. What is wrong
//! is returned, so that a test can also show that broken rules are found ([`Flaw`]).

use super::*;
use crate::manager::lane::{Pusher, Taker};
use crate::manager::object::NO_ANSWER;
use crate::manager::objects::testing::{Clients, Rng, rounds};

/// A broken rule, which the checks must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// What a cancelled `recv` was offered is lost.
    CancelLoses,
    /// What was taken stays on offer, and comes back when its taker dies.
    TakenTwice,
    /// What comes back goes to the end.
    ToTheEnd,
    /// The leases of the dead are forgotten.
    LeaseForgotten,
    /// A delivery is not counted.
    Uncounted,
    /// One item too many.
    Bound,
    /// A lease that has run out is not noticed.
    LeaseForEver,
    /// One who waits for room passes the others.
    Passed,
    /// An answer is not given.
    Unanswered,
    /// The memory in use is not known.
    Bytes,
    /// Consumers are sent away while something may come back.
    ClosedEarly,
    /// The dead wait on.
    DeadReceiver,
    /// What a client had put into its lane when it died is lost.
    LaneLost,
    /// What is put ahead for one who has died is lost.
    AheadLost,
    /// The bell of a lane is not set.
    Unrung,
    /// Room is granted that others wait for.
    LanePasses,
    /// What is put ahead is not reclaimed for others.
    Hoarded,
    /// What is promised is reclaimed for others.
    PromiseBroken,
    /// What is promised to one who waits no longer is kept for him.
    PromiseKept,
    /// What was promised to one who waits no longer stays where it is, though something comes
    /// before it.
    PromiseStays,
    /// Items are put ahead for several consumers at a time.
    AheadForSeveral,
}

const FLAWS: [Flaw; 21] = [
    Flaw::CancelLoses,
    Flaw::TakenTwice,
    Flaw::ToTheEnd,
    Flaw::LeaseForgotten,
    Flaw::Uncounted,
    Flaw::Bound,
    Flaw::LeaseForEver,
    Flaw::Passed,
    Flaw::Unanswered,
    Flaw::Bytes,
    Flaw::ClosedEarly,
    Flaw::DeadReceiver,
    Flaw::LaneLost,
    Flaw::AheadLost,
    Flaw::Unrung,
    Flaw::LanePasses,
    Flaw::Hoarded,
    Flaw::PromiseBroken,
    Flaw::PromiseKept,
    Flaw::PromiseStays,
    Flaw::AheadForSeveral,
];

/// Where an item is. It was let in `nth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    Offered(Caller),
    Leased(Caller, Option<Instant>),
    /// Taken, acknowledged or dropped.
    Gone,
}

#[derive(Debug)]
struct Sender {
    caller: Caller,
    ids: Vec<u64>,
    accepted: usize,
    until: Option<Instant>,
}

/// Who waits for how many items at most; under a lease, and for how long; until when.
type Receiver = (Caller, u32, Option<Option<Duration>>, Option<Instant>);

struct World {
    rng: Rng,
    flaw: Option<Flaw>,
    queue: Queue,
    now: Instant,
    start: Instant,
    clients: Clients,
    capacity: Option<usize>,
    // The model.
    /// By id; ids are given in the order of sending, `order` holds them in the order in which they
    /// were let in.
    places: BTreeMap<u64, (Place, u32)>,
    order: Vec<u64>,
    sizes: BTreeMap<u64, usize>,
    producers: BTreeMap<u64, Client>,
    /// Items that came back from somebody: only these may be had out of order.
    returned: BTreeSet<u64>,
    /// By consumer and producer, the last item that the consumer was given.
    last: BTreeMap<(Client, Client), u64>,
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
    joiners: Vec<(Caller, Option<Instant>)>,
    closed: bool,
    deaf: bool,
    next_id: u64,
    pushers: BTreeMap<Caller, Pusher>,
    takers: BTreeMap<Caller, Taker>,
    /// Who waits at which lane; and what he was promised, once he was.
    at_lane: BTreeMap<Caller, (Caller, Option<u64>)>,
    seen: BTreeMap<&'static str, u64>,
}

fn value(id: u64, size: usize) -> Packet {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.resize(8 + size, 7);
    Packet::from(&mut bytes)
}

fn id_of(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().expect("eight bytes"))
}

impl World {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = Rng::new(seed);
        let capacity = match rng.below(4) {
            0 => None,
            1 => Some(1),
            _ => Some(1 + rng.below(8) as usize),
        };
        let clients = Clients::new(1 + rng.below(5) as usize);
        let mut queue = Queue::new(capacity);
        let now = Instant::now();
        for part in [Part::WHOLE, Part::SENDER, Part::RECEIVER] {
            queue.held(part, true, now, &mut Vec::new());
        }
        queue.held(Part::WHOLE, false, now, &mut Vec::new());
        if flaw == Some(Flaw::Bound) {
            queue.capacity = capacity.map(|capacity| capacity + 1);
        }
        Self {
            rng,
            flaw,
            queue,
            now,
            start: now,
            clients,
            capacity,
            places: BTreeMap::new(),
            order: Vec::new(),
            sizes: BTreeMap::new(),
            producers: BTreeMap::new(),
            returned: BTreeSet::new(),
            last: BTreeMap::new(),
            senders: Vec::new(),
            receivers: Vec::new(),
            joiners: Vec::new(),
            closed: false,
            deaf: false,
            next_id: 0,
            pushers: BTreeMap::new(),
            takers: BTreeMap::new(),
            at_lane: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    // ---- the model

    fn at(&self, wanted: impl Fn(Place) -> bool) -> Vec<u64> {
        self.order.iter().copied().filter(|id| wanted(self.places[id].0)).collect()
    }

    fn ready(&self) -> Vec<u64> {
        self.at(|place| place == Place::Ready)
    }

    fn is_drained(&self) -> bool {
        self.at(|place| place != Place::Gone).is_empty()
    }

    fn has_room(&self) -> bool {
        let inside = self.at(|place| matches!(place, Place::Ready | Place::Offered(_))).len();
        self.capacity.is_none_or(|capacity| inside < capacity)
    }

    /// The first who waits for room lets one item in.
    fn let_in(&mut self) -> Result<(), String> {
        if !self.has_room() {
            return Err("more was let in than there is room for".into());
        }
        let Some(sender) = self.senders.first_mut() else {
            return Err("something came in that nobody sent".into());
        };
        let Some(id) = sender.ids.get(sender.accepted) else { return Ok(()) };
        sender.accepted += 1;
        self.order.push(*id);
        self.places.insert(*id, (Place::Ready, 0));
        Ok(())
    }

    fn lengths(&self) -> usize {
        let item = |id: &u64| self.sizes[id] + 8 + ITEM_BYTES;
        let inside: usize = self.at(|place| place != Place::Gone).iter().map(item).sum();
        let waiting: usize = self
            .senders
            .iter()
            .map(|sender| {
                let rest = sender.ids[sender.accepted..]
                    .iter()
                    .map(|id| self.sizes[id] + 8 + size_of::<Packet>())
                    .sum::<usize>();
                WAITER_BYTES + rest
            })
            .sum();
        let lanes = self.takers.len() + if self.closed { 0 } else { self.pushers.len() };
        inside
            + waiting
            + (self.receivers.len() + self.joiners.len()) * WAITER_BYTES
            + lanes * LANE_BYTES
            + self.queue.granted()
    }

    fn deadline(&self) -> Option<Instant> {
        let leases = self.order.iter().filter_map(|id| {
            if let Place::Leased(_, until) = self.places[id].0 { until } else { None }
        });
        let senders = self.senders.iter().filter_map(|sender| sender.until);
        let receivers = self.receivers.iter().filter_map(|receiver| receiver.3);
        let joiners = self.joiners.iter().filter_map(|joiner| joiner.1);
        leases.chain(senders).chain(receivers).chain(joiners).min()
    }

    /// Leases that have run out are the queue's again.
    fn run_out(&mut self) {
        let now = self.now;
        for (id, (place, _)) in &mut self.places {
            if matches!(place, Place::Leased(_, Some(until)) if *until <= now) {
                *place = Place::Ready;
                self.returned.insert(*id);
            }
        }
    }

    /// A consumer is given an item. What the documentation promises: each consumer sees each
    /// producer's items in the order in which they were sent, but for those that came back.
    fn hand_over(&mut self, consumer: Client, id: u64) -> Result<(), String> {
        let producer = self.producers[&id];
        let last = self.last.entry((consumer, producer)).or_insert(id);
        if *last > id && !self.returned.contains(&id) {
            return Err(format!("{consumer:?} was given {id} of {producer:?} after {last}"));
        }
        *last = id.max(*last);
        Ok(())
    }

    fn check_answer(&mut self, answer: &Answer) -> Result<(), String> {
        let to = answer.to;
        let reply = Reply::read(&answer.body.head).map_err(|bad| bad.0)?;
        if let Some(at) = self.senders.iter().position(|sender| sender.caller == to) {
            match reply {
                Reply::Done => {
                    if at != 0 {
                        return Err(format!("{to:?} passed those who waited before"));
                    }
                    while self.senders[0].accepted < self.senders[0].ids.len() {
                        self.let_in()?;
                    }
                    self.note("sent");
                }
                Reply::Full { accepted } | Reply::TimedOut { accepted } => {
                    // What had come in of many before it.
                    while self.senders[0].accepted < self.senders[0].ids.len() && self.has_room() {
                        self.let_in()?;
                    }
                    let sender = &self.senders[at];
                    if sender.until.is_none_or(|until| until > self.now)
                        || accepted as usize != sender.accepted
                    {
                        return Err(format!(
                            "{to:?} was told {reply:?} at {:?}: {sender:?}",
                            self.now
                        ));
                    }
                    self.note("full or too late");
                }
                Reply::Closed { accepted } => {
                    while self.senders[0].accepted < self.senders[0].ids.len()
                        && self.has_room()
                        && !self.closed
                    {
                        self.let_in()?;
                    }
                    if !self.closed || accepted as usize != self.senders[at].accepted {
                        return Err(format!("{to:?} was told {reply:?}: {:?}", self.senders[at]));
                    }
                    self.note("send to a closed one");
                }
                other => return Err(format!("a sender was told {other:?}")),
            }
            self.senders.remove(at);
        } else if let Some(at) = self.receivers.iter().position(|receiver| receiver.0 == to) {
            let (_, max, lease, until) = self.receivers[at];
            match reply {
                Reply::Item { .. } | Reply::Items => {
                    if at != 0 {
                        return Err(format!("{to:?} was served before those who waited longer"));
                    }
                    let values = match reply {
                        Reply::Items => unpack(&answer.body.tail).map_err(|bad| bad.0)?,
                        _ => vec![answer.body.tail.clone()],
                    };
                    if values.len() > max as usize
                        || values.is_empty()
                        || answer.offer != lease.is_none()
                    {
                        return Err(format!(
                            "{to:?} was given {} items, where it wanted {max}",
                            values.len()
                        ));
                    }
                    for value in values {
                        let id = id_of(&value);
                        if value.len() != self.sizes[&id] + 8 {
                            return Err(format!("item {id} has changed"));
                        }
                        if !self.places.contains_key(&id) {
                            self.let_in()?;
                        }
                        self.hand_over(to.client, id)?;
                        if self.ready().first() != Some(&id) {
                            return Err(format!(
                                "item {id} was delivered, ready were {:?}; it was {:?}",
                                self.ready(),
                                self.places.get(&id)
                            ));
                        }
                        let (place, count) = self.places.get_mut(&id).expect("it was let in");
                        *place = match lease {
                            None => Place::Offered(to),
                            Some(limit) => {
                                *count += 1;
                                Place::Leased(to, limit.map(|limit| self.now + limit))
                            }
                        };
                        if matches!(reply, Reply::Item { deliveries } if deliveries != *count) {
                            return Err(format!(
                                "item {id} was delivered {count} times, and was told {reply:?}"
                            ));
                        }
                        self.note(if lease.is_some() { "leased" } else { "offered" });
                    }
                }
                Reply::InLane => {
                    let lane = self
                        .at_lane
                        .iter()
                        .find(|(_, (caller, _))| *caller == to)
                        .map(|(lane, _)| *lane);
                    let Some(lane) = lane.filter(|_| at == 0 && !answer.offer) else {
                        return Err(format!("{to:?} was told to look into a lane, in place {at}"));
                    };
                    if self.ready().is_empty() {
                        self.let_in()?;
                    }
                    let Some(id) = self.ready().first().copied() else {
                        return Err(format!("{to:?} was promised nothing"));
                    };
                    self.hand_over(to.client, id)?;
                    self.places.get_mut(&id).expect("it is there").0 = Place::Offered(to);
                    self.at_lane.insert(lane, (to, Some(id)));
                    self.note("promised");
                }
                Reply::Empty | Reply::TimedOut { .. } => {
                    if until.is_none_or(|until| until > self.now) {
                        return Err(format!("{to:?} was sent away early"));
                    }
                    self.note("empty or too late");
                }
                Reply::Closed { .. } => {
                    if !self.closed || !self.is_drained() {
                        return Err(format!(
                            "{to:?} was told that it is closed, while {:?}",
                            self.places
                        ));
                    }
                    self.note("recv from a closed one");
                }
                other => return Err(format!("a receiver was told {other:?}")),
            }
            self.receivers.remove(at);
            self.at_lane.retain(|_, (caller, promised)| *caller != to || promised.is_some());
        } else if let Some(at) = self.joiners.iter().position(|joiner| joiner.0 == to) {
            match reply {
                Reply::Done if self.is_drained() => self.note("joined"),
                Reply::Empty | Reply::TimedOut { .. }
                    if self.joiners[at].1.is_some_and(|until| until <= self.now) => {}
                other => {
                    return Err(format!("{to:?} waits until all is done, and was told {other:?}"));
                }
            }
            self.joiners.remove(at);
        } else {
            return Err(format!("{to:?} was answered {reply:?}, and had asked nothing"));
        }
        Ok(())
    }

    /// Holds the answers against the model, and then what has not been answered.
    fn check(&mut self, mut answers: Vec<Answer>) -> Result<(), String> {
        self.spoil_lanes();
        if self.deaf {
            self.places
                .values_mut()
                .filter(|(place, _)| *place == Place::Ready)
                .for_each(|(place, _)| *place = Place::Gone);
        }
        if self.flaw == Some(Flaw::Unanswered) && self.rng.chance(1) {
            answers.pop();
        }
        for answer in &answers {
            self.check_answer(answer)?;
        }
        // Of many, some may have come in, which nobody is told yet.
        while let Some(sender) = self.senders.first()
            && self.has_room()
        {
            if sender.ids.len() <= sender.accepted + 1 {
                return Err(format!("there is room, and {sender:?} waits"));
            }
            self.let_in()?;
        }
        if !self.receivers.is_empty() && !self.ready().is_empty() {
            return Err(format!("{:?} waits, and {:?} are ready", self.receivers[0], self.ready()));
        }
        if self.is_drained()
            && (!self.joiners.is_empty() || self.closed && !self.receivers.is_empty())
        {
            return Err("somebody waits for the end, and it is reached".into());
        }
        if self.deadline().is_some_and(|deadline| deadline <= self.now) {
            return Err("somebody's time is up, and nothing was done".into());
        }
        if self.queue.next_deadline() != self.deadline() {
            return Err(format!(
                "the next deadline is {:?}, not {:?}",
                self.deadline(),
                self.queue.next_deadline()
            ));
        }
        self.order.retain(|id| self.places[id].0 != Place::Gone);
        // (What has been taken by lane since the queue last looked, which not every event makes it
        // do, is still counted.)
        if !self.queue.outlets.values().any(Outlet::has_news)
            && self.queue.bytes() != self.lengths()
        {
            return Err(format!("{} bytes are held, not {}", self.lengths(), self.queue.bytes()));
        }
        Ok(())
    }

    // ---- the world

    fn ask(&mut self, caller: Caller, ask: Ask, tail: Packet) -> Result<Vec<Answer>, String> {
        let mut answers = Vec::new();
        let body = Body::with_value(ask.packet(), tail, None);
        // (As if what is put ahead were nobody else's.)
        let hidden =
            self.flaw == Some(Flaw::Hoarded) && matches!(ask, Ask::Recv { .. } | Ask::Lease { .. });
        if self.flaw == Some(Flaw::PromiseBroken) {
            self.queue.outlets.values_mut().for_each(Outlet::break_promise);
        }
        let outlets =
            if hidden { std::mem::take(&mut self.queue.outlets) } else { BTreeMap::new() };
        let result = self.queue.request(caller, body, self.now, &mut answers).map_err(|bad| bad.0);
        self.queue.outlets.extend(outlets);
        result?;
        Ok(answers)
    }

    fn wait(&mut self) -> Wait {
        match self.rng.below(4) {
            0 => Wait::No,
            1 => Wait::Limit(self.rng.millis(20) + Duration::from_millis(1)),
            _ => Wait::Ever,
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let rng = &mut self.rng;
        match rng.below(130) {
            100..103 => self.open_lane(),
            103..116 => self.push(),
            116..130 => self.take_out(),
            0..25 => {
                let caller = self.clients.caller(rng);
                let many = rng.chance(30);
                let count = if many { rng.below(4) } else { 1 };
                let ids: Vec<u64> = (self.next_id..self.next_id + count).collect();
                self.next_id += count;
                let mut pack = Pack::default();
                for id in &ids {
                    self.producers.insert(*id, caller.client);
                    let size = if rng.chance(10) { rng.below(2_000) } else { 0 } as usize;
                    self.sizes.insert(*id, size);
                    pack.push(&value(*id, size));
                }
                let wait = self.wait();
                self.senders.push(Sender {
                    caller,
                    ids: ids.clone(),
                    accepted: 0,
                    until: wait.until(self.now),
                });
                let (ask, tail) = match many {
                    true => (Ask::SendMany { wait }, pack.finish()),
                    false => (Ask::Send { wait }, value(ids[0], self.sizes[&ids[0]])),
                };
                let answers = self.ask(caller, ask, tail)?;
                self.check(answers)
            }
            25..45 => {
                let caller = self.clients.caller(rng);
                let max = 1 + if rng.chance(30) { rng.below(4) as u32 } else { 0 };
                let free = |lane: &&Caller| {
                    lane.client == caller.client && !self.at_lane.contains_key(lane)
                };
                let lane = self.takers.keys().find(free).copied();
                let wait = self.wait();
                let ask = match lane {
                    Some(lane) if max == 1 => {
                        self.at_lane.insert(lane, (caller, None));
                        Ask::RecvByLane { wait, lane: lane.ticket }
                    }
                    // (There may be no such lane.)
                    None if max == 1 => Ask::RecvByLane { wait, lane: caller.ticket },
                    _ => Ask::Recv { wait, max },
                };
                self.receivers.push((caller, max, None, wait.until(self.now)));
                let answers = self.ask(caller, ask, Packet::default())?;
                self.check(answers)
            }
            45..57 => {
                let caller = self.clients.caller(rng);
                let limit = rng.chance(50).then(|| rng.millis(30) + Duration::from_millis(1));
                let wait = self.wait();
                self.receivers.push((caller, 1, Some(limit), wait.until(self.now)));
                let answers = self.ask(caller, Ask::Lease { wait, limit }, Packet::default())?;
                self.check(answers)
            }
            57..67 => self.end_a_lease(),
            67..77 => self.take(),
            77..84 => self.give_up(),
            84..87 => {
                let client = self.clients.any(rng);
                self.die(client)
            }
            87..96 => {
                let pass = if rng.chance(50) {
                    rng.millis(4)
                } else {
                    Duration::from_millis(1 + rng.below(15))
                };
                self.pass(pass)
            }
            96..98 => {
                let caller = self.clients.caller(rng);
                let wait = self.wait();
                self.joiners.push((caller, wait.until(self.now)));
                let answers = self.ask(caller, Ask::Join { wait }, Packet::default())?;
                self.check(answers)
            }
            98 => self.status(),
            _ => self.close(),
        }
    }

    // ---- lanes

    fn open_lane(&mut self) -> Result<(), String> {
        let caller = self.clients.caller(&mut self.rng);
        let (memory, _) =
            SharedMemory::create(lane::WORDS * 8).map_err(|error| error.to_string())?;
        let memory = Arc::new(memory);
        let way = if self.rng.chance(50) { Way::In } else { Way::Out };
        let mut answers = Vec::new();
        if self.queue.lane(caller, way, Arc::clone(&memory), self.now, &mut answers) {
            match way {
                Way::In => drop(self.pushers.insert(caller, Pusher::new(memory).expect("a lane"))),
                Way::Out => drop(self.takers.insert(caller, Taker::new(memory).expect("a lane"))),
            }
        } else {
            // (Nothing was looked at: what is in the lanes is known later.)
            return if self.closed { Ok(()) } else { Err("a lane was refused".into()) };
        }
        self.check(answers)
    }

    /// A client whose lane wants to be heard.
    fn ring(&mut self, client: Client) -> Result<(), String> {
        let answers =
            self.ask(Caller { client, ticket: NO_ANSWER }, Ask::Rang, Packet::default())?;
        self.check(answers)
    }

    fn push(&mut self) -> Result<(), String> {
        let Some(caller) = self.rng.pick(&self.pushers.keys().copied().collect::<Vec<_>>()) else {
            return Ok(());
        };
        let id = self.next_id;
        let size = if self.rng.chance(10) { self.rng.below(900) } else { 0 } as usize;
        let pusher = self.pushers.get_mut(&caller).expect("it was just there");
        let Some(ring) = pusher.push(id, &value(id, size)) else { return Ok(()) };
        self.next_id += 1;
        self.sizes.insert(id, size);
        self.producers.insert(id, caller.client);
        if self.closed || !self.has_room() || !self.senders.is_empty() {
            return Err(format!("item {id} came in, where there is no room for it"));
        }
        self.order.push(id);
        self.places.insert(id, (Place::Ready, 0));
        self.note("by lane in");
        if !self.receivers.is_empty() && !ring {
            return Err(format!(
                "{:?} waits, and item {id} came without a bell",
                self.receivers[0]
            ));
        }
        if ring { self.ring(caller.client) } else { Ok(()) }
    }

    fn take_out(&mut self) -> Result<(), String> {
        // As long as somebody waits at a lane, nobody else takes there; and he only when he was
        // told.
        let may = |lane: &&Caller| !matches!(self.at_lane.get(lane), Some((_, None)));
        let Some(caller) =
            self.rng.pick(&self.takers.keys().filter(may).copied().collect::<Vec<_>>())
        else {
            return Ok(());
        };
        let promised = self.at_lane.remove(&caller);
        let Some((item, ring)) = self.takers.get_mut(&caller).and_then(Taker::take) else {
            return promised.map_or(Ok(()), |promised| Err(format!("{promised:?} was not there")));
        };
        let id = id_of(&item);
        if item.len() != self.sizes[&id] + 8 {
            return Err(format!("item {id} has changed"));
        }
        if let Some((to, promised)) = promised {
            if promised != Some(id) || self.places[&id].0 != Place::Offered(to) {
                return Err(format!("{to:?} has taken {id}, and was promised {promised:?}"));
            }
            self.note("taken as promised");
        } else {
            self.hand_over(caller.client, id)?;
            // (With that flaw it is to be seen by its consequence.)
            let first = self.flaw == Some(Flaw::AheadForSeveral)
                && self.places[&id].0 == Place::Ready
                || self.ready().first() == Some(&id);
            if !first {
                return Err(format!(
                    "item {id} was taken, ready were {:?}; it was {:?}",
                    self.ready(),
                    self.places[&id]
                ));
            }
        }
        self.places.insert(id, (Place::Gone, 0));
        self.note("by lane out");
        if !ring
            && (!self.senders.is_empty()
                || !self.joiners.is_empty()
                || self.closed && !self.receivers.is_empty())
        {
            return Err(format!("item {id} was taken without a bell"));
        }
        if ring { self.ring(caller.client) } else { Ok(()) }
    }

    /// What a broken rule does to lanes, after an event.
    fn spoil_lanes(&mut self) {
        match self.flaw {
            Some(Flaw::Unrung) => {
                self.queue.inlets.values().for_each(|inlet| inlet.set_bell(false));
                self.queue.outlets.values().for_each(|outlet| outlet.set_bell(false));
            }
            Some(Flaw::LanePasses) if !self.queue.senders.is_empty() => {
                if let Some(inlet) = self.queue.inlets.values_mut().next() {
                    inlet.grant(1).expect("well kept");
                    self.queue.credit += 1;
                }
            }
            Some(Flaw::AheadForSeveral) => {
                for outlet in self.queue.outlets.keys().copied().collect::<Vec<_>>() {
                    self.queue.ahead_for = Some(outlet);
                    self.queue.tend_lanes();
                }
            }
            _ => {}
        }
    }

    fn status(&mut self) -> Result<(), String> {
        let caller = self.clients.caller(&mut self.rng);
        let answers = self.ask(caller, Ask::Status, Packet::default())?;
        let expected = Reply::Status {
            ready: self.at(|place| matches!(place, Place::Ready | Place::Offered(_))).len() as u64,
            leased: self.at(|place| matches!(place, Place::Leased(..))).len() as u64,
            capacity: self.capacity.map(|capacity| capacity as u64),
            closed: self.closed,
        };
        match &answers[..] {
            [answer]
                if answer.to == caller
                    && Reply::read(&answer.body.head) == Ok(expected.clone())
                    || self.flaw == Some(Flaw::Bound) =>
            {
                Ok(())
            }
            other => Err(format!("the status is {expected:?}, not {other:?}")),
        }
    }

    fn close(&mut self) -> Result<(), String> {
        let mut answers = Vec::new();
        if self.rng.chance(70) {
            return Ok(()); // else nothing would ever happen but the end
        }
        self.closed = true;
        match self.rng.below(4) {
            0 => self.queue.held(Part::SENDER, false, self.now, &mut answers),
            1 => {
                // The last receiver goes after those that it had open.
                self.deaf = true;
                self.queue.held(Part::RECEIVER, false, self.now, &mut answers);
            }
            _ => {
                let caller = self.clients.caller(&mut self.rng);
                answers = self.ask(caller, Ask::Close, Packet::default())?;
                answers.retain(|answer| answer.to != caller);
            }
        }
        self.note("closed");
        self.check(answers)
    }

    fn end_a_lease(&mut self) -> Result<(), String> {
        let leases: Vec<(u64, Caller)> = self
            .places
            .iter()
            .filter_map(|(id, (place, _))| {
                if let Place::Leased(caller, _) = place { Some((*id, *caller)) } else { None }
            })
            .collect();
        let Some((id, lease)) = self.rng.pick(&leases) else { return Ok(()) };
        let caller = self.clients.caller_of(lease.client);
        let kind = self.rng.below(4);
        // A mark too many, or one of somebody else's.
        let wrong = self.rng.chance(15);
        let ticket = if wrong { lease.ticket + 1_000_000 } else { lease.ticket };
        let limit = self.rng.chance(70).then(|| self.rng.millis(30) + Duration::from_millis(1));
        let ask = match kind {
            0 | 1 => Ask::Acknowledge { lease: ticket },
            2 => Ask::Reject { lease: ticket },
            _ => Ask::Extend { lease: ticket, limit },
        };
        if !wrong {
            let place = &mut self.places.get_mut(&id).expect("it is leased").0;
            if kind == 2 {
                self.returned.insert(id);
            }
            *place = match kind {
                0 | 1 => Place::Gone,
                2 => Place::Ready,
                _ => Place::Leased(lease, limit.map(|limit| self.now + limit)),
            };
        }
        let mut answers = self.ask(caller, ask, Packet::default())?;
        if answers.is_empty() {
            return Err("nothing was said of the lease".into());
        }
        let answer = answers.remove(0);
        let expected = if wrong { Reply::NotHeld } else { Reply::Done };
        if answer.to != caller || Reply::read(&answer.body.head) != Ok(expected) {
            return Err(format!("of the lease was said {answer:?}"));
        }
        if self.flaw == Some(Flaw::ToTheEnd) && kind == 2 && self.queue.ready.len() > 1 {
            self.queue.ready.rotate_left(1);
        }
        if self.flaw == Some(Flaw::ClosedEarly) && self.closed && !self.queue.is_drained() {
            answers.extend(
                self.queue
                    .receivers
                    .drain()
                    .into_iter()
                    .map(|(to, _)| Answer::new(to, Reply::Closed { accepted: 0 }.body())),
            );
        }
        self.check(answers)
    }

    fn offers(&self) -> Vec<Caller> {
        let mut offers: Vec<Caller> = self
            .order
            .iter()
            .filter_map(|id| {
                if let Place::Offered(caller) = self.places[id].0 { Some(caller) } else { None }
            })
            .collect();
        offers.sort();
        offers.dedup();
        offers
    }

    fn take(&mut self) -> Result<(), String> {
        let mut offers = self.offers();
        offers.retain(|caller| self.at_lane.values().all(|(waits, _)| waits != caller));
        let Some(caller) = self.rng.pick(&offers) else { return Ok(()) };
        let items = self.at(|place| place == Place::Offered(caller));
        let mut answers = Vec::new();
        let part = self.rng.chance(40);
        let count = if part { 1 } else { items.len() };
        for id in &items[..count] {
            self.places.get_mut(id).expect("it is on offer").0 = Place::Gone;
        }
        self.note("taken");
        if part {
            let ask = Ask::Taken { recv: caller.ticket, count: 1 };
            let teller = self.clients.caller_of(caller.client);
            answers = self.ask(teller, ask, Packet::default())?;
        } else if self.flaw != Some(Flaw::TakenTwice) {
            self.queue.taken(caller, self.now, &mut answers);
        } else {
            // The bytes and the count are right, but it is still there.
            let kept = self.queue.offers.remove(&caller).into_iter().flatten().collect::<Vec<_>>();
            self.queue.offered -= kept.len();
            self.queue.bytes -= kept.iter().map(Item::bytes).sum::<usize>();
            self.queue.offers.insert(caller, kept.into());
            self.queue.turn(self.now, &mut answers);
        }
        self.check(answers)
    }

    /// A request is dropped: one that waits, or one whose answer nobody has seen.
    fn give_up(&mut self) -> Result<(), String> {
        let mut callers = self.offers();
        callers.extend(self.senders.iter().map(|sender| sender.caller));
        callers.extend(self.receivers.iter().map(|receiver| receiver.0));
        callers.extend(self.joiners.iter().map(|joiner| joiner.0));
        callers.extend(self.places.values().filter_map(|(place, _)| {
            if let Place::Leased(caller, _) = place { Some(*caller) } else { None }
        }));
        callers.extend(
            self.pushers
                .keys()
                .chain(self.takers.keys().filter(|lane| !self.at_lane.contains_key(lane))),
        );
        let Some(caller) = self.rng.pick(&callers) else { return Ok(()) };
        self.pushers.remove(&caller);
        self.takers.remove(&caller);
        let promised =
            self.at_lane.values().any(|(waits, promised)| *waits == caller && promised.is_some());
        self.at_lane.retain(|_, (waits, _)| *waits != caller);
        self.senders.retain(|sender| sender.caller != caller);
        self.receivers.retain(|receiver| receiver.0 != caller);
        self.joiners.retain(|joiner| joiner.0 != caller);
        for (id, (place, count)) in &mut self.places {
            match place {
                Place::Offered(to) if *to == caller => *place = Place::Ready,
                Place::Leased(to, _) if *to == caller => {
                    *place = Place::Ready;
                    *count -= 1;
                }
                _ => continue,
            }
            self.returned.insert(*id);
        }
        let mut answers = Vec::new();
        if self.flaw == Some(Flaw::CancelLoses) {
            self.queue.take(caller, usize::MAX);
        }
        if self.flaw == Some(Flaw::Passed)
            && let Some((first, sending)) = self.queue.senders.pop()
        {
            self.queue.senders.push(
                first,
                self.senders.iter().find(|s| s.caller == first).and_then(|s| s.until),
                sending,
            );
        }
        if self.flaw == Some(Flaw::PromiseStays) {
            self.queue.outlets.values_mut().for_each(|outlet| _ = outlet.take_back(caller.ticket));
        }
        if self.flaw != Some(Flaw::PromiseKept) || !promised {
            self.queue.cancel(caller, self.now, &mut answers);
        }
        self.note("gave up");
        self.check(answers)
    }

    fn die(&mut self, client: Client) -> Result<(), String> {
        self.senders.retain(|sender| sender.caller.client != client);
        self.receivers.retain(|receiver| receiver.0.client != client);
        self.joiners.retain(|joiner| joiner.0.client != client);
        for (id, (place, _)) in &mut self.places {
            if matches!(place, Place::Offered(to) | Place::Leased(to, _) if to.client == client) {
                *place = Place::Ready;
                self.returned.insert(*id);
            }
        }
        self.pushers.retain(|caller, _| caller.client != client);
        self.takers.retain(|caller, _| caller.client != client);
        self.at_lane.retain(|lane, _| lane.client != client);
        let mut answers = Vec::new();
        match self.flaw {
            Some(Flaw::LaneLost) => {
                self.queue.inlets.retain(|caller, _| caller.client != client);
                self.queue.credit =
                    self.queue.inlets.values().map(|inlet| inlet.credit() as usize).sum();
            }
            Some(Flaw::AheadLost) => {
                self.queue.pull();
                for (caller, outlet) in &mut self.queue.outlets {
                    if caller.client == client {
                        for item in outlet.reclaim(drop).unwrap_or_default() {
                            self.queue.offered -= 1;
                            self.queue.bytes -= item.bytes();
                        }
                    }
                }
            }
            Some(Flaw::LeaseForgotten) => {
                for caller in of_client(&self.queue.leases, client).collect::<Vec<_>>() {
                    let item = self.queue.end_lease(caller).expect("it is leased");
                    self.queue.bytes -= item.bytes();
                }
            }
            Some(Flaw::Uncounted) => {
                for caller in of_client(&self.queue.leases, client).collect::<Vec<_>>() {
                    self.queue.leases.get_mut(&caller).expect("it is leased").item.deliveries -= 1;
                }
            }
            _ => {}
        }
        let waiting = self
            .queue
            .receivers
            .iter()
            .find(|(caller, _)| caller.client == client)
            .map(|(caller, want)| (caller, *want));
        self.queue.gone(client, Gone::Died, self.now, &mut answers);
        if self.flaw == Some(Flaw::DeadReceiver)
            && let Some((caller, want)) = waiting
        {
            self.queue.receivers.push(caller, None, want);
        }
        self.clients.replace(client);
        self.note("died");
        self.check(answers)
    }

    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let then = self.now + time;
        if self.flaw == Some(Flaw::Bytes) {
            self.queue.bytes += 1;
        }
        if self.flaw == Some(Flaw::LeaseForEver) && self.rng.chance(20) {
            self.queue.limits.clear();
            self.queue.leases.values_mut().for_each(|lease| lease.until = None);
        }
        // The manager is on time, or late.
        while let Some(deadline) = self.deadline()
            && deadline <= then
        {
            self.now = if self.rng.chance(50) { deadline } else { then };
            self.run_out();
            let mut answers = Vec::new();
            self.queue.tick(self.now, &mut answers);
            self.note("on time");
            self.check(answers)?;
        }
        self.now = then;
        Ok(())
    }

    /// Everybody gives up, and one consumer gets what is left.
    fn finish(&mut self) -> Result<(), String> {
        let callers: Vec<Client> = self
            .senders
            .iter()
            .map(|sender| sender.caller.client)
            .chain(self.receivers.iter().map(|receiver| receiver.0.client))
            .chain(self.joiners.iter().map(|joiner| joiner.0.client))
            .chain(self.pushers.keys().chain(self.takers.keys()).map(|caller| caller.client))
            .chain(self.places.values().filter_map(|(place, _)| match place {
                Place::Offered(caller) | Place::Leased(caller, _) => Some(caller.client),
                _ => None,
            }))
            .collect();
        for client in callers {
            self.die(client)?;
        }
        while let Some(next) = self.ready().first().copied() {
            let caller = self.clients.caller(&mut self.rng);
            self.receivers.push((caller, 1, None, Some(self.now)));
            let answers =
                self.ask(caller, Ask::Recv { wait: Wait::No, max: 1 }, Packet::default())?;
            self.check(answers)?;
            let (place, _) = self.places[&next];
            if place != Place::Offered(caller) {
                return Err(format!("item {next} did not come"));
            }
            self.places.insert(next, (Place::Gone, 0));
            let mut answers = Vec::new();
            self.queue.taken(caller, self.now, &mut answers);
            self.check(answers)?;
        }
        if self.queue.bytes() != 0 || self.queue.next_deadline().is_some() {
            return Err(format!("something is left: {} bytes", self.queue.bytes()));
        }
        Ok(())
    }

    fn run(&mut self, steps: u64) -> Result<(), String> {
        for step in 0..steps {
            self.step()
                .map_err(|wrong| format!("step {step} at {:?}: {wrong}", self.now - self.start))?;
        }
        self.finish()
    }
}

#[test]
fn whatever_happens_every_rule_is_kept() {
    rounds(200, |seed| World::new(seed, None).run(300));
}

/// The long run; `PROCPOOL_ROUNDS` says how long.
#[test]
#[ignore = "takes minutes"]
fn long_run() {
    rounds(50_000, |seed| World::new(seed, None).run(1_000));
}

#[test]
fn broken_rules_are_found() {
    for flaw in FLAWS {
        // (What is counted twice may also be found by a count that goes below zero.)
        let run = |seed| {
            std::panic::catch_unwind(|| World::new(seed, Some(flaw)).run(300))
                .unwrap_or_else(|_| Err("a panic".into()))
        };
        let found = (0..2_000).find_map(|seed| run(seed).err());
        assert!(found.is_some(), "{flaw:?} was not found");
    }
}

/// Not by the order of places, but by what a consumer sees.
#[test]
fn items_put_ahead_for_several_consumers_are_seen_out_of_order() {
    let found = (0..2_000)
        .filter_map(|seed| World::new(seed, Some(Flaw::AheadForSeveral)).run(300).err())
        .find(|wrong| wrong.contains(" after "));
    assert!(found.is_some(), "no consumer has seen it");
}

/// The random rounds are worth something only if everything comes up in them.
#[test]
fn everything_comes_up() {
    let mut seen = BTreeMap::new();
    for seed in 0..200 {
        let mut world = World::new(seed, None);
        assert_eq!(world.run(300), Ok(()), "seed {seed}");
        for (what, count) in world.seen {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    for what in [
        "sent",
        "full or too late",
        "send to a closed one",
        "leased",
        "offered",
        "empty or too late",
        "recv from a closed one",
        "joined",
        "closed",
        "taken",
        "gave up",
        "died",
        "on time",
        "by lane in",
        "by lane out",
        "promised",
        "taken as promised",
    ] {
        assert!(
            seen.get(what).is_some_and(|count| *count > 20),
            "{what} came up {:?} times",
            seen.get(what)
        );
    }
}
