//! Clients that read and write by lane, against every order in which that may be explained.
//!
//! Clients act between any two steps that the manager makes in their memory: they read by their
//! mirrors, put in, put in late what they have given its time before, ask, are answered, keep the
//! answers, die. Each call has its beginning and its end, and after each end there must be an order
//! of all calls, in which none that had ended comes after one that began later, that explains all
//! answers ([`Orders`]). So each rule of the lanes that is broken on purpose is found ([`Flaw`]).

use super::*;
use crate::manager::lane::{MIRROR, Pusher, Step, WORDS, steps};
use crate::manager::object::NO_ANSWER;
use crate::manager::objects::testing::{Clients, Rng, rounds};
use crate::manager::reads::{Reads, Seen};
use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::atomic::Ordering;

const KEYS: u64 = 3;
/// Calls under way at a time, at most: all orders of them are tried.
const OPEN_MAX: usize = 3;

type Content = BTreeMap<u64, u64>;

fn packet(number: u64) -> Packet {
    Packet::copy_from(&number.to_le_bytes())
}

fn number(value: &[u8]) -> u64 {
    u64::from_le_bytes(value.try_into().expect("eight bytes"))
}

// ---- the orders that explain what was answered

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Call {
    Get(u64),
    Set(u64, u64),
    Remove(u64),
    Extend(Vec<(u64, u64)>),
    Snapshot,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Said {
    Done,
    Value(Option<u64>),
    All(Content),
}

impl Call {
    fn applied(&self, content: &mut Content) -> Said {
        match self {
            Self::Get(key) => Said::Value(content.get(key).copied()),
            Self::Set(key, value) => {
                content.insert(*key, *value);
                Said::Done
            }
            Self::Remove(key) => Said::Value(content.remove(key)),
            Self::Extend(entries) => {
                content.extend(entries.iter().copied());
                Said::Done
            }
            Self::Snapshot => Said::All(content.clone()),
        }
    }
}

/// What may be there now, and which of the calls under way have been done then, with what answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Possible {
    content: Content,
    done: BTreeMap<u64, Said>,
}

struct Orders {
    possible: HashSet<Possible>,
    open: BTreeMap<u64, Call>,
    next: u64,
}

impl Orders {
    fn new() -> Self {
        Self {
            possible: HashSet::from([Possible { content: Content::new(), done: BTreeMap::new() }]),
            open: BTreeMap::new(),
            next: 0,
        }
    }

    fn begin(&mut self, call: Call) -> u64 {
        self.next += 1;
        self.open.insert(self.next, call);
        self.next
    }

    /// It has been done by now; and this was the answer, if somebody has seen it.
    fn end(&mut self, call: u64, said: Option<&Said>) -> Result<(), String> {
        let (mut left, mut seen): (Vec<Possible>, _) =
            (self.possible.drain().collect(), HashSet::new());
        while let Some(mut one) = left.pop() {
            if !seen.insert(one.clone()) {
                continue;
            }
            if let Some(answer) = one.done.get(&call) {
                if said.is_none_or(|said| said == answer) {
                    one.done.remove(&call);
                    self.possible.insert(one);
                }
                continue;
            }
            for (other, what) in self.open.iter().filter(|(other, _)| !one.done.contains_key(other))
            {
                let mut next = one.clone();
                let answer = what.applied(&mut next.content);
                next.done.insert(*other, answer);
                left.push(next);
            }
        }
        let what = self.open.remove(&call);
        if self.possible.is_empty() {
            Err(format!("no order explains that {what:?} gave {said:?}"))
        } else {
            Ok(())
        }
    }

    /// It was never done.
    fn never(&mut self, call: u64) {
        self.open.remove(&call);
        self.possible.retain(|one| !one.done.contains_key(&call));
    }
}

// ---- the clients

/// What is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// Something is granted before the others' mirrors are blind.
    GrantedFirst,
    /// A read is answered from what the manager has.
    NotPulled,
    /// Mirrors are shown before what was granted is revoked; what comes in between is not counted.
    ShownFirst,
    /// The one who writes goes on reading while others' changes are made.
    ToldAfter,
    /// What stands in the lane of one who has died is lost.
    DeadLost,
    /// What has come by lane is counted for nobody.
    Uncounted,
    /// An answer is kept over what was put in since it was asked for.
    KeptOver,
    /// Items have no time.
    NoTime,
    /// The bells are not set.
    Unrung,
}

const FLAWS: [Flaw; 9] = [
    Flaw::GrantedFirst,
    Flaw::NotPulled,
    Flaw::ShownFirst,
    Flaw::ToldAfter,
    Flaw::DeadLost,
    Flaw::Uncounted,
    Flaw::KeptOver,
    Flaw::NoTime,
    Flaw::Unrung,
];

/// One handle, in a process of its own.
struct Handle {
    lane: Caller,
    memory: Arc<SharedMemory>,
    pusher: Pusher,
    reads: Reads,
    /// It has given this its time, and not yet put it in: key, value, time, the call.
    late: Option<(u64, u64, u64, u64)>,
}

/// A call by message.
struct Sent {
    caller: Caller,
    ask: Ask,
    tail: Packet,
    call: u64,
    seen: Option<Seen>,
}

/// What has come back, and has not been seen.
struct Answered {
    message: Sent,
    said: Said,
}

/// Everything but the manager.
struct Side {
    rng: Rng,
    flaw: Option<Flaw>,
    clients: Clients,
    handles: Vec<Handle>,
    /// On their way to the manager; those of each client keep their order.
    messages: VecDeque<Sent>,
    answers: Vec<Answered>,
    orders: Orders,
    value: u64,
    /// Of a hundred calls so many set something; and only the first handles are used.
    sets: u64,
    active: usize,
    wrong: Option<String>,
    /// What the manager is at; how many mirrors it blinds before it does anything else; what the
    /// mirrors would show.
    doing: Doing,
    blinds: usize,
    counts: Vec<(Caller, u64)>,
    pushed: u64,
    kept: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    Read,
    Change,
    Bury,
}

impl Side {
    fn ended(&mut self, call: u64, said: &Said) {
        let ended = self.orders.end(call, Some(said));
        self.wrong = self.wrong.take().or(ended.err());
    }

    fn send(&mut self, at: usize, call: u64, ask: Ask, tail: Packet, seen: Option<Seen>) {
        let caller = self.clients.caller_of(self.handles[at].lane.client);
        self.messages.push_back(Sent { caller, ask, tail, call, seen });
    }

    /// Puts an item in, or sends it as a message.
    fn put(&mut self, at: usize, key: u64, value: u64, time: u64, call: u64) {
        let handle = &mut self.handles[at];
        let mut item = Vec::new();
        put_together(&mut item, &packet(key), &packet(value));
        match handle.pusher.push(if self.flaw == Some(Flaw::NoTime) { 1 } else { time }, &item) {
            Some(ring) => {
                handle.reads.wrote(packet(key), packet(value));
                self.pushed += 1;
                if ring {
                    let caller = Caller { client: handle.lane.client, ticket: NO_ANSWER };
                    self.messages.push_back(Sent {
                        caller,
                        ask: Ask::Rang,
                        tail: Packet::default(),
                        call: 0,
                        seen: None,
                    });
                }
                self.ended(call, &Said::Done);
            }
            None => {
                let lane = handle.lane.ticket;
                self.send(at, call, Ask::Set { key: packet(key), lane }, packet(value), None);
            }
        }
    }

    /// One step of some client.
    fn act(&mut self) {
        if self.handles.is_empty() || self.wrong.is_some() {
            return;
        }
        if !self.answers.is_empty() && self.rng.chance(40) {
            let at = self.rng.below(self.answers.len() as u64) as usize;
            return self.hear(at);
        }
        let at = self.rng.below(self.active.min(self.handles.len()) as u64) as usize;
        if let Some((key, value, time, call)) = self.handles[at].late.take() {
            return self.put(at, key, value, time, call);
        }
        let key = self.rng.below(KEYS);
        if self.orders.open.len() >= OPEN_MAX {
            return;
        }
        if self.rng.below(100) < self.sets {
            self.value += 1;
            let (value, time) = (self.value, lane::time());
            let call = self.orders.begin(Call::Set(key, value));
            if self.rng.chance(20) {
                self.handles[at].late = Some((key, value, time, call));
            } else {
                self.put(at, key, value, time, call);
            }
            return;
        }
        match self.rng.below(60) {
            0 => {
                let entries: Vec<_> = (0..KEYS).map(|key| (key, self.value + key + 1)).collect();
                self.value += KEYS;
                let mut pack = Pack::default();
                for (key, value) in &entries {
                    pack.push(&packet(*key));
                    pack.push(&packet(*value));
                }
                let call = self.orders.begin(Call::Extend(entries));
                self.send(at, call, Ask::Extend, pack.finish(), None);
            }
            1 => {
                let call = self.orders.begin(Call::Remove(key));
                self.send(
                    at,
                    call,
                    Ask::Remove { key: packet(key), when: When::Always },
                    Packet::default(),
                    None,
                );
            }
            2 => {
                let call = self.orders.begin(Call::Snapshot);
                self.send(at, call, Ask::Snapshot { values: true }, Packet::default(), None);
            }
            _ => {
                let call = self.orders.begin(Call::Get(key));
                match self.handles[at].reads.get(&packet(key)) {
                    Ok(value) => {
                        self.kept += 1;
                        self.ended(call, &Said::Value(value.as_deref().map(number)));
                    }
                    Err(seen) => {
                        self.send(at, call, Ask::Get { key: packet(key) }, Packet::default(), seen)
                    }
                }
            }
        }
    }

    /// Many steps, of all clients and kinds: where a flaw shows, if it does.
    fn crowd(&mut self) {
        let usual = (self.sets, self.active);
        (self.sets, self.active) = (50, usize::MAX);
        (0..20).for_each(|_| self.act());
        (self.sets, self.active) = usual;
    }

    /// An answer is seen.
    fn hear(&mut self, at: usize) {
        let Answered { message, said } = self.answers.swap_remove(at);
        if let (Ask::Get { key }, Some(mut seen), Said::Value(value)) =
            (&message.ask, message.seen, &said)
            && let Some(handle) =
                self.handles.iter_mut().find(|handle| handle.lane.client == message.caller.client)
        {
            if self.flaw == Some(Flaw::KeptOver) {
                seen.writes = handle.reads.writes;
            }
            handle.reads.keep(key.clone(), value.map(packet), seen);
        }
        self.ended(message.call, &said);
    }

    fn show(&self, counts: &[(Caller, u64)]) {
        for (lane, count) in counts {
            let handle = self.handles.iter().find(|handle| handle.lane == *lane);
            handle.inspect(|handle| handle.memory.words()[MIRROR].store(*count, Ordering::SeqCst));
        }
    }

    /// Before the manager makes this step; gives whether it makes it.
    fn before(&mut self, step: Step) -> bool {
        let many = if self.rng.chance(10) { 12 } else { 3 };
        for _ in 0..self.rng.below(many) {
            self.act();
        }
        let first = step == Step::Blind && self.blinds > 0;
        self.blinds -= usize::from(first);
        match self.flaw {
            Some(Flaw::GrantedFirst) => step != Step::Blind || first,
            Some(Flaw::NotPulled) => step != Step::Pull || self.doing != Doing::Read,
            Some(Flaw::ShownFirst) if step == Step::Revoke => {
                self.show(&self.counts);
                self.crowd();
                true
            }
            Some(Flaw::ToldAfter) => !first,
            Some(Flaw::DeadLost) => step != Step::Pull || self.doing != Doing::Bury,
            Some(Flaw::Unrung) => step != Step::SetBell,
            _ => true,
        }
    }
}

// ---- the manager

struct World {
    side: Rc<RefCell<Side>>,
    map: Map,
    now: Instant,
    /// Who watches; the request with which it waits; up to where it has heard.
    watch: Caller,
    waits: Option<Caller>,
    position: u64,
    /// What it has been told is there.
    told: Content,
}

impl World {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = Rng::new(seed);
        let mut clients = Clients::new(5);
        let watch = clients.caller_of(Client { seat: 4, generation: 0 });
        let side = Side {
            sets: 50,
            active: 1 + rng.below(4) as usize,
            rng,
            flaw,
            clients,
            handles: Vec::new(),
            messages: VecDeque::new(),
            answers: Vec::new(),
            orders: Orders::new(),
            value: 0,
            wrong: None,
            doing: Doing::Nothing,
            blinds: 0,
            counts: Vec::new(),
            pushed: 0,
            kept: 0,
        };
        let side = Rc::new(RefCell::new(side));
        let acting = Rc::clone(&side);
        steps::hook(Some(Box::new(move |step| acting.borrow_mut().before(step))));
        Self {
            side,
            map: Map::new(),
            now: Instant::now(),
            watch,
            waits: None,
            position: 0,
            told: Content::new(),
        }
    }

    /// Calls the map, with what is planted around it. Clients act meanwhile.
    fn call<R>(
        &mut self,
        doing: Doing,
        call: impl FnOnce(&mut Map, Instant, &mut Vec<Answer>) -> R,
    ) -> (R, Vec<Answer>) {
        let own = |map: &Map| {
            map.lanes.iter().map(|(caller, lane)| (*caller, lane.own)).collect::<BTreeMap<_, _>>()
        };
        let before = own(&self.map);
        let flaw = {
            let mut side = self.side.borrow_mut();
            side.doing = doing;
            side.blinds = if doing == Doing::Change && self.map.writers() > 0 {
                self.map.lanes.len()
            } else {
                0
            };
            side.counts =
                before.iter().map(|(caller, own)| (*caller, self.map.changes - own)).collect();
            side.flaw
        };
        let mut answers = Vec::new();
        let result = call(&mut self.map, self.now, &mut answers);
        let mut side = self.side.borrow_mut();
        (side.doing, side.blinds) = (Doing::Nothing, 0);
        match flaw {
            Some(Flaw::GrantedFirst) => {
                let untold = self.map.lanes.iter().filter(|(_, lane)| {
                    !lane.is_told(self.map.writers()) && lane.mirror.look().is_some()
                });
                let untold: Vec<_> = untold.map(|(caller, _)| (*caller, 1 << 62)).collect();
                if !untold.is_empty() {
                    side.crowd();
                }
                side.show(&untold);
            }
            Some(Flaw::Uncounted) => {
                let after = own(&self.map);
                let came = |caller: &Caller| {
                    after.get(caller).map_or(0, |now| now - before.get(caller).unwrap_or(now))
                };
                let all: u64 = after.keys().map(came).sum();
                self.map.changes -= all;
                for (caller, lane) in &mut self.map.lanes {
                    lane.own -= came(caller);
                }
                let map = &self.map;
                let told = map
                    .lanes
                    .iter()
                    .filter(|(_, lane)| lane.is_told(map.writers()))
                    .map(|(caller, lane)| (*caller, map.changes - lane.own));
                side.show(&told.collect::<Vec<_>>());
            }
            _ => {}
        }
        drop(side);
        (result, answers)
    }

    /// The manager reads the next message of some client.
    fn serve(&mut self, only: Option<Client>) -> Result<bool, String> {
        let message = {
            let mut side = self.side.borrow_mut();
            let mut firsts: Vec<usize> = Vec::new();
            for (at, message) in side.messages.iter().enumerate() {
                let client = message.caller.client;
                if only.is_none_or(|only| only == client)
                    && firsts.iter().all(|first| side.messages[*first].caller.client != client)
                {
                    firsts.push(at);
                }
            }
            let at = side.rng.pick(&firsts);
            at.and_then(|at| side.messages.remove(at))
        };
        let Some(message) = message else { return Ok(false) };
        let doing = match message.ask {
            Ask::Get { .. } | Ask::Snapshot { .. } => Doing::Read,
            Ask::Rang => Doing::Nothing,
            _ => Doing::Change,
        };
        let (caller, body) =
            (message.caller, Body::with_value(message.ask.packet(), message.tail.clone(), None));
        let (asked, mut answers) =
            self.call(doing, |map, now, answers| map.request(caller, body, now, answers));
        asked.map_err(|bad| bad.0)?;
        if message.ask != Ask::Rang {
            let at = answers.iter().position(|answer| answer.to == caller).ok_or("no answer")?;
            let body = answers.remove(at).body;
            let said = match Reply::read(&body.head).map_err(|bad| bad.0)? {
                Reply::Done | Reply::Len { .. } => Said::Done,
                Reply::Value { .. } => Said::Value(Some(number(&body.tail))),
                Reply::Absent => Said::Value(None),
                Reply::Entries { more: false } => {
                    let all = unpack(&body.tail).map_err(|bad| bad.0)?;
                    Said::All(
                        all.chunks(2).map(|pair| (number(&pair[0]), number(&pair[1]))).collect(),
                    )
                }
                other => return Err(format!("{other:?}")),
            };
            self.side.borrow_mut().answers.push(Answered { message, said });
        }
        self.hear(answers)?;
        Ok(true)
    }

    /// What the watcher is told.
    fn hear(&mut self, answers: Vec<Answer>) -> Result<(), String> {
        for Answer { to, body, .. } in answers {
            if self.waits.take() != Some(to) {
                return Err(format!("{to:?} was told something"));
            }
            let Ok(Reply::Changes { position, lost: false }) = Reply::read(&body.head) else {
                return Err(format!("{body:?}"));
            };
            self.position = position;
            for change in unpack(&body.tail).map_err(|bad| bad.0)?.chunks(3) {
                let key = number(&change[0]);
                if change[1][..] == [1] {
                    self.told.insert(key, number(&change[2]));
                } else {
                    self.told.remove(&key);
                }
            }
        }
        Ok(())
    }

    /// Somebody begins to write, or ends: at any time, not only when the map thinks so.
    fn switch(&mut self) -> Result<(), String> {
        let at = self.side.borrow_mut().rng.below(self.map.lanes.len().max(1) as u64) as usize;
        if let Some(lane) = self.map.lanes.values_mut().nth(at) {
            if lane.writes {
                lane.idle = u32::MAX;
            } else {
                (lane.writes, lane.idle) = (true, 0);
            }
        }
        let ((), answers) = self.call(Doing::Nothing, |map, now, answers| map.turn(now, answers));
        self.hear(answers)
    }

    /// The watcher asks for what comes next.
    fn wait(&mut self) -> Result<(), String> {
        if self.waits.is_some() {
            return Ok(());
        }
        let caller = self.side.borrow_mut().clients.caller_of(self.watch.client);
        self.waits = Some(caller);
        let body =
            Ask::Next { watch: self.watch.ticket, after: self.position, wait: Wait::Ever }.body();
        let (asked, answers) =
            self.call(Doing::Nothing, |map, now, answers| map.request(caller, body, now, answers));
        asked.map_err(|bad| bad.0)?;
        self.hear(answers)
    }

    fn come(&mut self) -> Result<(), String> {
        let memory = Arc::new(SharedMemory::create(WORDS * 8).map_err(|e| e.to_string())?.0);
        let lane = {
            let mut side = self.side.borrow_mut();
            let taken = |seat| side.handles.iter().any(|handle| handle.lane.client.seat == seat);
            let Some(seat) = (0..4).find(|seat| !taken(*seat)) else { return Ok(()) };
            let client = side.clients.in_seat(seat);
            side.clients.caller_of(client)
        };
        let mapped = Arc::clone(&memory);
        let (made, answers) = self.call(Doing::Nothing, |map, now, answers| {
            map.lane(lane, Way::Out, mapped, now, answers)
        });
        if !made {
            return Err("no lane is made".into());
        }
        self.hear(answers)?;
        let pusher = Pusher::new(Arc::clone(&memory)).ok_or("it is too short")?;
        let reads = Reads::new(Arc::clone(&memory));
        self.side.borrow_mut().handles.push(Handle { lane, memory, pusher, reads, late: None });
        Ok(())
    }

    /// A client dies, or lets its lane go. What it has sent is read first.
    fn go(&mut self) -> Result<(), String> {
        let (handle, dies) = {
            let mut side = self.side.borrow_mut();
            if side.handles.is_empty() {
                return Ok(());
            }
            let count = side.handles.len() as u64;
            let at = side.rng.below(count) as usize;
            (side.handles.swap_remove(at), side.rng.chance(70))
        };
        let client = handle.lane.client;
        if let Some((.., call)) = handle.late {
            self.side.borrow_mut().orders.never(call);
        }
        while self.serve(Some(client))? {}
        {
            let mut side = self.side.borrow_mut();
            let (unheard, rest) = std::mem::take(&mut side.answers)
                .into_iter()
                .partition(|answer| answer.message.caller.client == client);
            side.answers = rest;
            for Answered { message, .. } in Vec::from_iter::<Vec<Answered>>(unheard) {
                side.orders.end(message.call, None)?;
            }
            side.clients.replace(client);
        }
        let ((), answers) = self.call(Doing::Bury, |map, now, answers| {
            if dies {
                map.gone(client, Gone::Died, now, answers)
            } else {
                map.cancel(handle.lane, now, answers)
            }
        });
        self.hear(answers)
    }

    fn step(&mut self) -> Result<(), String> {
        let what = self.side.borrow_mut().rng.below(200);
        match what {
            0 => self.go()?,
            1..5 => self.come()?,
            5..8 => {
                let mut side = self.side.borrow_mut();
                side.sets = [0, 10, 50, 100][side.rng.below(4) as usize];
                side.active = 1 + side.rng.below(4) as usize;
            }
            8..22 => (0..3).try_for_each(|_| self.wait())?,
            22..28 => self.switch()?,
            28..90 => drop(self.serve(None)?),
            _ => self.side.borrow_mut().act(),
        }
        let side = self.side.borrow();
        if let Some(wrong) = &side.wrong {
            return Err(wrong.clone());
        }
        if side.messages.is_empty()
            && self.waits.is_some()
            && self.map.lanes.values().any(|lane| lane.inlet.has_news())
        {
            return Err("a watcher waits, and nobody says that there is something".into());
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), String> {
        let body = Ask::Watch { key: None }.body();
        self.map.request(self.watch, body, self.now, &mut Vec::new()).map_err(|bad| bad.0)?;
        (0..500)
            .try_for_each(|step| self.step().map_err(|wrong| format!("step {step}: {wrong}")))?;
        // All go, and what is there then is what the watcher was told, and what one order explains.
        while !self.side.borrow().handles.is_empty() {
            self.go()?;
        }
        while self.waits.is_none() {
            self.wait()?;
        }
        let there: Content = self
            .map
            .entries
            .iter()
            .map(|(key, entry)| (number(key), number(&entry.value)))
            .collect();
        let side = self.side.borrow();
        if !side.orders.possible.iter().any(|one| one.content == there) {
            return Err(format!("no order explains that there is {there:?}"));
        }
        if self.told != there {
            return Err(format!("a watcher was told {:?}, and there is {there:?}", self.told));
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        steps::hook(None);
    }
}

#[test]
fn clients_that_read_and_write_by_lane_see_one_order() {
    let (mut pushed, mut kept) = (0, 0);
    rounds(30, |seed| {
        let mut world = World::new(seed, None);
        world.run()?;
        let side = world.side.borrow();
        (pushed, kept) = (pushed + side.pushed, kept + side.kept);
        Ok(())
    });
    assert!(pushed > 500 && kept > 500, "{pushed} items and {kept} reads by mirror are no test");
}

#[test]
fn every_flaw_that_is_planted_in_the_lanes_of_a_map_is_found() {
    for flaw in FLAWS {
        let found = (0..500).find_map(|seed| World::new(seed, Some(flaw)).run().err());
        assert!(found.is_some(), "{flaw:?} was not found");
    }
}

/// An item of a client that does not keep the rules.
#[test]
fn an_item_that_makes_no_sense_costs_its_client_the_lane_and_nothing_else() {
    let (now, mut map, client) = (Instant::now(), Map::new(), Client { seat: 9, generation: 0 });
    let memory = Arc::new(SharedMemory::create(WORDS * 8).expect("memory").0);
    let lane = Caller { client, ticket: 1 };
    assert!(map.lane(lane, Way::Out, Arc::clone(&memory), now, &mut Vec::new()));
    for ticket in 2..40 {
        let body =
            Body::with_value(Ask::Set { key: packet(1), lane: 1 }.packet(), packet(ticket), None);
        map.request(Caller { client, ticket }, body, now, &mut Vec::new()).expect("well formed");
    }
    let mut pusher = Pusher::new(Arc::clone(&memory)).expect("long enough");
    let mut good = Vec::new();
    put_together(&mut good, &packet(2), &packet(5));
    for item in [&good[..], &9u32.to_le_bytes(), &good] {
        pusher.push(lane::time(), item).expect("it is granted");
    }
    map.tick(now, &mut Vec::new());
    assert!(
        map.lanes.is_empty()
            && map.entries.len() == 2
            && pusher.push(lane::time(), &good).is_none()
    );
    assert_eq!(Reads::new(memory).get(&packet(1)), Err(None));
}
