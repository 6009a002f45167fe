//! Maps and lists across processes, objects of one's own, and channels.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{soon, until};
use futures::FutureExt;
use nix::sys::signal::Signal;
use procpool::sync::ErrorKind;
use procpool::sync::{
    Actor, ActorRef, Channel, CompareExchangeError, List, Map, MapChange, Mutex, Queue, RwLock,
    Value, channel,
};
use procpool::{Manager, Pool};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

/// What one process did, in its order: what it asked, and what it was answered.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Done {
    Insert { key: u8, value: u32, before: Option<u32> },
    Remove { key: u8, before: Option<u32> },
    Get { key: u8, found: Option<u32> },
    Push(u32),
    Pop { front: bool, got: Option<u32> },
}

/// Random operations; every value is written once by one process.
fn operate(map: Map<u8, u32>, list: List<u32>, process: u32, times: u32) -> Vec<Done> {
    let mut random = u64::from(process) + 1;
    let mut below = |n: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % n
    };
    let mut done = Vec::new();
    for n in 0..times {
        let (key, value) = (below(4) as u8, process * times + n);
        done.push(match below(7) {
            0 | 1 => Done::Insert { key, value, before: map.blocking_insert(key, value).unwrap() },
            2 => Done::Remove { key, before: map.blocking_remove(&key).unwrap() },
            3 => Done::Get { key, found: map.blocking_get(&key).unwrap() },
            4 | 5 => {
                list.blocking_push(value).unwrap();
                Done::Push(value)
            }
            _ => {
                let front = below(2) == 0;
                let got = if front { list.blocking_pop_front() } else { list.blocking_pop() };
                Done::Pop { front, got: got.unwrap() }
            }
        });
    }
    done
}

/// Looks for one order of all operations, in which those of each process stand in theirs, and each
/// answer is what it must be. (In which order pushes came is not looked at, but what can be popped,
/// and when there is nothing.)
fn has_an_order(histories: &[Vec<Done>]) -> bool {
    let mut scene = Replay {
        unread: HashMap::new(),
        nothing_left: 0,
        map: BTreeMap::new(),
        list: HashSet::new(),
    };
    for done in histories.iter().flatten() {
        match done {
            Done::Get { found: Some(value), .. } => *scene.unread.entry(*value).or_default() += 1,
            Done::Pop { got: None, .. } => scene.nothing_left += 1,
            _ => {}
        }
    }
    // States from which there is no way to the end, once they have been tried; they are tried in
    // depth.
    let mut tried = HashSet::new();
    let mut open = vec![(vec![0; histories.len()], scene)];
    while let Some((mut at, mut scene)) = open.pop() {
        while let Some(process) = (0..at.len())
            .find(|n| histories[*n].get(at[*n]).is_some_and(|done| scene.is_safe(done)))
        {
            scene.play(&histories[process][at[process]]);
            at[process] += 1;
        }
        if at.iter().zip(histories).all(|(at, history)| *at == history.len()) {
            return true;
        }
        // What is in the list follows from how far each is.
        if tried.insert((at.clone(), scene.map.clone())) {
            for (process, history) in histories.iter().enumerate() {
                if let Some(done) = history.get(at[process]).filter(|done| scene.is_possible(done))
                {
                    let (mut at, mut scene) = (at.clone(), scene.clone());
                    scene.play(done);
                    at[process] += 1;
                    open.push((at, scene));
                }
            }
        }
    }
    false
}

/// What is there after some operations, and what of the others still needs it.
#[derive(Clone)]
struct Replay {
    /// How many have yet to find this value.
    unread: HashMap<u32, u32>,
    /// How many have yet to find the list empty.
    nothing_left: u32,
    map: BTreeMap<u8, u32>,
    list: HashSet<u32>,
}

impl Replay {
    /// It may come next.
    fn is_possible(&self, done: &Done) -> bool {
        let there = |key| self.map.get(&key).copied();
        let takes = |key, before: Option<u32>| {
            there(key) == before
                && before.is_none_or(|value| self.unread.get(&value).is_none_or(|n| *n == 0))
        };
        match *done {
            Done::Insert { key, before, .. } | Done::Remove { key, before } => takes(key, before),
            Done::Get { key, found } => there(key) == found,
            Done::Push(_) => true,
            Done::Pop { got: Some(value), .. } => self.list.contains(&value),
            Done::Pop { got: None, .. } => self.list.is_empty(),
        }
    }

    /// It may come next, and nothing is lost if it does: no other could have come before it only.
    fn is_safe(&self, done: &Done) -> bool {
        let may_come_later = match done {
            Done::Insert { before: None, .. } => true, // others may have to find nothing before
            Done::Push(_) => self.nothing_left > 0,
            _ => false,
        };
        !may_come_later && self.is_possible(done)
    }

    fn play(&mut self, done: &Done) {
        match *done {
            Done::Insert { key, value, .. } => drop(self.map.insert(key, value)),
            Done::Remove { key, .. } => drop(self.map.remove(&key)),
            Done::Get { found: Some(value), .. } => *self.unread.get_mut(&value).unwrap() -= 1,
            Done::Get { found: None, .. } => {}
            Done::Push(value) => drop(self.list.insert(value)),
            Done::Pop { got: Some(value), .. } => drop(self.list.remove(&value)),
            Done::Pop { got: None, .. } => self.nothing_left -= 1,
        }
    }
}

#[test]
fn answers_that_no_order_explains_are_found() {
    use Done::*;
    let insert = |value, before| Insert { key: 1, value, before };
    let get = |found| Get { key: 1, found };
    let pop = |got| Pop { front: true, got };
    // Nobody has taken it away; or somebody else has, or may have come later.
    assert!(!has_an_order(&[vec![insert(1, None), get(None)]]));
    assert!(has_an_order(&[
        vec![insert(1, None), get(None)],
        vec![Remove { key: 1, before: Some(1) }]
    ]));
    assert!(has_an_order(&[vec![insert(1, None)], vec![get(None), get(Some(1))]]));
    assert!(!has_an_order(&[vec![insert(1, None)], vec![get(Some(1)), get(None)]]));
    // Two that both found nothing, and nobody took the first away.
    assert!(!has_an_order(&[vec![insert(1, None)], vec![insert(2, None)]]));
    assert!(!has_an_order(&[
        vec![insert(1, None), insert(3, Some(2))],
        vec![insert(2, Some(1)), get(Some(1))]
    ]));
    assert!(has_an_order(&[
        vec![insert(1, None), insert(3, Some(2))],
        vec![insert(2, Some(1)), get(Some(3))]
    ]));
    assert!(!has_an_order(&[vec![Push(1), pop(None)], vec![pop(None), pop(None)]]));
    assert!(has_an_order(&[vec![Push(1), pop(None)], vec![pop(None), pop(Some(1)), pop(None)]]));
}

#[tokio::test]
async fn operations_from_four_processes_are_as_if_done_one_after_another() {
    const PROCESSES: u32 = 4;
    const TIMES: u32 = 500;
    let pool = pool(4);
    let (map, list) = (pool.manager().map().unwrap(), pool.manager().list().unwrap());
    let tasks: Vec<_> = (0..PROCESSES)
        .map(|n| pool.spawn(operate, (map.clone(), list.clone(), n, TIMES)))
        .collect();
    let mut histories = Vec::new();
    for task in tasks {
        histories.push(soon(task).await.unwrap());
    }
    let (mut wrote, mut took) = (BTreeSet::new(), BTreeSet::new());
    for done in histories.iter().flatten() {
        let (written, taken) = match *done {
            Done::Insert { value, before, .. } => (Some(value), before),
            Done::Remove { before, .. } => (None, before),
            Done::Push(value) => (Some(value), None),
            Done::Pop { got, .. } => (None, got),
            Done::Get { .. } => (None, None),
        };
        wrote.extend(written);
        if let Some(value) = taken {
            assert!(took.insert(value), "{value} was taken twice");
        }
    }
    assert!(has_an_order(&histories), "no order explains the answers");
    // What was written and not taken is what is there.
    let mut there: Vec<u32> =
        map.entries().await.unwrap().into_iter().map(|(_, value)| value).collect();
    there.extend(list.snapshot().await.unwrap());
    there.sort_unstable();
    let expected: Vec<u32> = wrote.difference(&took).copied().collect();
    assert_eq!(there, expected);
    // Each process's own pushes stand in its order, unless popped.
    let left = list.snapshot().await.unwrap();
    for process in 0..PROCESSES {
        assert!(left.iter().filter(|value| **value / TIMES == process).is_sorted());
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_to_the_one_who_asked_and_harms_nobody() {
    let pool = pool(1);
    let (map, list) =
        (pool.manager().map::<String, u32>().unwrap(), pool.manager().list::<u32>().unwrap());
    map.insert("a".into(), 1).await.unwrap();
    list.push(1).await.unwrap();
    let ask = |map: Map<String, u32>, list: List<u32>| {
        assert_eq!(map.blocking_get("b").unwrap(), None);
        assert_eq!(map.blocking_remove("b").unwrap(), None);
        assert_eq!(
            map.blocking_compare_exchange("b".into(), Some(&1), Some(&2)).unwrap(),
            Err(CompareExchangeError { current: None })
        );
        assert_eq!(list.blocking_get(1).unwrap(), None);
        let errors = [
            list.blocking_set(1, 0).unwrap_err(),
            list.blocking_remove(1).unwrap_err(),
            list.blocking_insert(3, 0).unwrap_err(),
            list.blocking_swap(0, 1).unwrap_err(),
            list.blocking_update(1, |n| n).unwrap_err(),
        ];
        assert!(errors.iter().all(|error| error.kind() == ErrorKind::OutOfRange));
        assert_eq!(list.blocking_pop().unwrap(), Some(1));
        assert_eq!(list.blocking_pop().unwrap(), None);
        assert_eq!(list.blocking_pop_front().unwrap(), None);
        list.blocking_push(2).unwrap();
    };
    soon(pool.spawn(ask, (map.clone(), list.clone()))).await.unwrap();
    assert_eq!(map.entries().await.unwrap(), [("a".to_owned(), 1)]);
    assert_eq!(list.snapshot().await.unwrap(), [2]);
}

#[tokio::test]
async fn a_watcher_sees_what_other_processes_change() {
    let pool = pool(2);
    let map = pool.manager().map::<String, u32>().unwrap();
    let mut watch = map.watch().await.unwrap();
    let write = |map: Map<String, u32>, n: u32| {
        for _ in 0..100 {
            map.blocking_update(format!("key {n}"), |value| Some(value.unwrap_or(0) + 1)).unwrap();
        }
    };
    let writers: Vec<_> = (0..2).map(|n| pool.spawn(write, (map.clone(), n))).collect();
    let mut seen = BTreeMap::<String, u32>::new();
    for _ in 0..200 {
        let MapChange::Set { key, value } = soon(watch.changed()).await.unwrap() else {
            panic!("nothing was removed")
        };
        let before = seen.insert(key, value).unwrap_or(0);
        assert_eq!(value, before + 1);
    }
    for writer in writers {
        soon(writer).await.unwrap();
    }
    assert_eq!(seen.values().copied().collect::<Vec<_>>(), [100, 100]);
}

struct Counter(u64);

#[derive(Serialize, Deserialize)]
enum Call {
    Add(u64),
    Fail,
}

impl Actor for Counter {
    type Call = Call;
    type Reply = u64;

    async fn call(&mut self, call: Call) -> u64 {
        match call {
            Call::Add(n) => {
                let before = self.0;
                tokio::task::yield_now().await; // nobody comes between
                self.0 = before + n;
                self.0
            }
            Call::Fail => panic!("as asked"),
        }
    }
}

#[tokio::test]
async fn an_object_of_ones_own_is_called_by_many_processes_one_after_another() {
    let pool = pool(3);
    let counter = pool.manager().register(Counter(0)).unwrap();
    let add = |counter: ActorRef<Counter>, times: u64| {
        for _ in 0..times {
            counter.blocking_call(Call::Add(1)).unwrap();
        }
        let error = counter.blocking_call(Call::Fail).unwrap_err();
        error.panic_message().unwrap().to_owned()
    };
    let tasks: Vec<_> = (0..3).map(|_| pool.spawn(add, (counter.clone(), 100))).collect();
    for task in tasks {
        assert_eq!(soon(task).await.unwrap(), "as asked");
    }
    assert_eq!(soon(counter.call(Call::Add(0))).await.unwrap(), 300);
}

/// What cannot travel this way or that.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Odd {
    Fine(String),
    Unwritable(#[serde(serialize_with = "refuse_to_write")] ()),
    Unreadable(#[serde(deserialize_with = "refuse_to_read")] ()),
}

fn refuse_to_write<S: serde::Serializer>((): &(), _: S) -> Result<S::Ok, S::Error> {
    Err(serde::ser::Error::custom("not to be written"))
}

fn refuse_to_read<'de, D: serde::Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(serde::de::Error::custom("not to be read"))
}

/// Gives what it is asked for, and counts.
struct Giver(u64);

impl Actor for Giver {
    type Call = (Odd, u8);
    type Reply = (Odd, u64);

    async fn call(&mut self, (odd, what): (Odd, u8)) -> (Odd, u64) {
        self.0 += 1;
        let reply = match what {
            0 => odd,
            1 => Odd::Unwritable(()),
            2 => Odd::Unreadable(()),
            _ => Odd::Fine("x".repeat((16 << 20) + 1)),
        };
        (reply, self.0)
    }
}

#[tokio::test]
async fn what_cannot_travel_to_an_object_of_ones_own_or_back_is_told_and_the_object_goes_on() {
    let pool = pool(1);
    let giver = pool.manager().register(Giver(0)).unwrap();
    async fn errors(giver: ActorRef<Giver>) {
        let fine = || Odd::Fine("x".into());
        let large = Odd::Fine("x".repeat((16 << 20) + 1));
        for (call, expected, reason) in [
            ((Odd::Unwritable(()), 0), ErrorKind::Encode, Some("not to be written")),
            ((large, 0), ErrorKind::TooLarge, None),
            ((Odd::Unreadable(()), 0), ErrorKind::Decode, Some("not to be read")),
            ((fine(), 1), ErrorKind::Encode, Some("not to be written")),
            ((fine(), 2), ErrorKind::Decode, Some("not to be read")),
            ((fine(), 3), ErrorKind::TooLarge, None),
        ] {
            let error = giver.call(call).await.unwrap_err();
            assert_eq!(error.kind(), expected, "{error}");
            assert!(
                reason.is_none_or(|reason| error.reason().unwrap().contains(reason)),
                "{error:?}"
            );
        }
        // Of those it has seen the last three only.
        assert_eq!(giver.call((fine(), 0)).await.unwrap(), (fine(), 4));
    }
    soon(pool.spawn(errors, giver.clone())).await.unwrap();
    assert_eq!(giver.call((Odd::Fine(String::new()), 0)).await.unwrap().1, 5);
}

#[tokio::test]
async fn the_ends_of_a_channel_go_to_two_workers_and_end_with_them() {
    let pool = pool(2);
    let echo = |end: Channel<u32>| {
        let mut count = 0;
        while let Some(n) = end.blocking_recv().unwrap() {
            end.blocking_send(n + 1).unwrap();
            count += 1;
        }
        count
    };
    async fn count(end: Channel<u32>, times: u32) -> u32 {
        let mut n = 0;
        for _ in 0..times {
            end.send(n).await.unwrap();
            n = end.recv().await.unwrap().unwrap();
        }
        n
    }
    let (here, there) = channel().unwrap();
    let (one, two) = (pool.spawn(echo, here), pool.spawn(count, (there, 1_000)));
    assert_eq!(soon(two).await.unwrap(), 1_000);
    assert_eq!(soon(one).await.unwrap(), 1_000, "the end of one ends the other");

    let (here, there) = channel::<u32>().unwrap();
    let dies = |end: Channel<u32>| -> () {
        end.blocking_send(1).unwrap();
        std::process::abort()
    };
    assert!(soon(pool.spawn(dies, there)).await.unwrap_err().is_worker_died());
    assert_eq!(soon(here.recv()).await.unwrap(), Some(1));
    assert_eq!(soon(here.recv()).await.unwrap(), None);
    assert!(soon(here.send(2)).await.unwrap_err().error().is_closed());
}

#[tokio::test]
async fn half_an_item_and_silence_keep_no_limit_from_its_time() {
    const LIMIT: Duration = Duration::from_millis(50);
    let (mut rounds, mut halves) = (0, 0);
    while halves < 2 {
        assert!(rounds < 20, "{halves} of {rounds} were stopped in the midst of an item");
        rounds += 1;
        let pool = pool(1);
        let (here, there) = channel::<Vec<u8>>().unwrap();
        let begun = pool.manager().value(0u32).unwrap();
        // More than there is room for on the way.
        let sends = |end: Channel<Vec<u8>>, begun: Value<u32>| {
            begun.store(std::process::id()).unwrap();
            end.blocking_send(vec![7; 2 << 20]).unwrap();
        };
        let sending = pool.spawn(sends, (there, begun.clone()));
        until("it has begun", || begun.load().unwrap() != 0).await;
        until("it waits, as a rule in the midst of it", || {
            support::state(begun.load().unwrap()) == Some('S')
        })
        .await;
        support::stop(begun.load().unwrap());
        for _ in 0..2 {
            assert!(soon(here.recv_timeout(LIMIT)).await.unwrap_err().is_timeout());
        }
        let here = soon(tokio::task::spawn_blocking(move || {
            assert!(here.blocking_recv_timeout(LIMIT).unwrap_err().is_timeout());
            here
        }));
        let here = here.await.unwrap();
        support::signal(begun.load().unwrap(), Signal::SIGKILL);
        assert!(soon(sending).await.unwrap_err().is_worker_died());
        // Whether it was half of one is told when it has ended.
        match soon(here.recv()).await {
            Ok(none) => assert_eq!(none, None, "it was stopped before it sent anything"),
            Err(error) => {
                assert!(
                    error.kind() == ErrorKind::Decode
                        && error.to_string().contains("in the midst of an item"),
                    "{error}"
                );
                halves += 1;
            }
        }
    }
}

/// Reads what another writes, until the end: never older than what had been written before. Gives
/// how often it was the same.
async fn read_on(map: Map<String, u64>, written: Value<u64>, last: u64) -> u64 {
    let (mut same, mut before) = (0, 0);
    loop {
        let least = written.load().unwrap();
        let got = map.get("counter").await.unwrap().unwrap_or(u64::MAX);
        assert!(got >= least, "{got} was read, and {least} had been written");
        same += u64::from(got == before);
        before = got;
        // What one has written oneself one reads; and what is not there is told as often.
        map.insert("own".into(), got).await.unwrap();
        assert_eq!(map.get("own").await.unwrap(), Some(got));
        map.remove("own").await.unwrap();
        for _ in 0..3 {
            assert_eq!(map.get("own").await.unwrap(), None);
        }
        if least == last {
            return same;
        }
    }
}

#[tokio::test]
async fn what_is_read_often_is_never_older_than_what_was_written_before() {
    const LAST: u64 = 2_000;
    let pool = pool(1);
    let (map, written) = (pool.manager().map().unwrap(), pool.manager().value(0u64).unwrap());
    map.insert("counter".into(), 0).await.unwrap();
    let reader = pool.spawn(read_on, (map.clone(), written.clone(), LAST));
    for number in 1..=LAST {
        map.insert("counter".into(), number).await.unwrap();
        written.store(number).unwrap();
        for _ in 0..number % 5 * 20 {
            tokio::task::yield_now().await;
        }
    }
    soon(reader).await.unwrap();
    soon(pool.shutdown()).await;
}

// ---- what is set

#[tokio::test]
async fn what_was_set_is_there_though_its_process_dies_at_once() {
    // All together less than what a watcher may be behind.
    const COUNT: u64 = 1_300;
    let pool = pool(1);
    for round in 0..20 {
        let map = pool.manager().map().unwrap();
        let dies = |map: Map<u64, u64>, count: u64| -> () {
            (0..count).for_each(|n| map.blocking_set(n % 100, n).unwrap());
            std::process::abort()
        };
        let count = COUNT + round * 7;
        assert!(soon(pool.spawn(dies, (map.clone(), count))).await.unwrap_err().is_worker_died());
        let there: BTreeMap<u64, u64> = map.entries().await.unwrap().into_iter().collect();
        assert_eq!(there, (count - 100..count).map(|n| (n % 100, n)).collect());
    }
}

/// By turns with another: what one finds is what the other has set last, though it has read and set
/// much before. Who has the turn is told by a queue, or by a lock.
fn take_turns(
    map: Map<u64, u64>,
    turns: Queue<u64>,
    others: Queue<u64>,
    turn: Mutex<u64>,
    last: u64,
) {
    const KEYS: u64 = 3;
    while let Some(n) = turns.blocking_recv().unwrap() {
        loop {
            // (Whoever reads without asking has something to read.)
            if *turn.blocking_lock().unwrap() == n {
                break;
            }
            map.blocking_get(&(n % KEYS)).unwrap();
        }
        for key in 0..KEYS {
            for _ in 0..n % 4 + 1 {
                let newest = (0..n).rev().find(|before| before % KEYS == key);
                assert_eq!(map.blocking_get(&key).unwrap(), newest, "in turn {n}");
            }
        }
        for _ in 0..n % 30 {
            map.blocking_set(n % KEYS, u64::MAX).unwrap();
            assert_eq!(map.blocking_get(&(n % KEYS)).unwrap(), Some(u64::MAX));
        }
        map.blocking_set(n % KEYS, n).unwrap();
        assert_eq!(map.blocking_get(&(n % KEYS)).unwrap(), Some(n));
        if n % 5 == 0 {
            others.blocking_send(n + 1).unwrap();
            *turn.blocking_lock().unwrap() = n + 1;
        } else {
            *turn.blocking_lock().unwrap() = n + 1;
            others.blocking_send(n + 1).unwrap();
        }
        if n + 1 >= last {
            others.close().unwrap();
            return;
        }
    }
}

#[tokio::test]
async fn what_was_set_is_seen_by_whoever_hears_of_it_in_another_way() {
    let pool = pool(2);
    let manager = pool.manager();
    let map = manager.map().unwrap();
    let (one, other, turn) =
        (manager.queue(4).unwrap(), manager.queue(4).unwrap(), manager.mutex(0).unwrap());
    one.send(0).await.unwrap();
    let first =
        pool.spawn(take_turns, (map.clone(), one.clone(), other.clone(), turn.clone(), 1_000));
    let second = pool.spawn(take_turns, (map.clone(), other, one, turn, 1_000));
    soon(first).await.unwrap();
    soon(second).await.unwrap();
    assert_eq!(map.get(&0).await.unwrap(), Some(999));
}

#[tokio::test]
async fn several_who_set_are_each_seen_in_their_order_and_by_watchers() {
    // All together less than what a watcher may be behind.
    const COUNT: u64 = 1_300;
    let pool = pool(3);
    let map = pool.manager().map().unwrap();
    let mut watch = map.watch().await.unwrap();
    let set = |map: Map<u64, u64>, own: u64| {
        let mut newest = [0; 3];
        for n in 1..=COUNT {
            map.blocking_set(own, n).unwrap();
            if n % 50 == 0 {
                assert_eq!(map.blocking_get(&own).unwrap(), Some(n));
                for (key, newest) in (0..).zip(&mut newest) {
                    let now = map.blocking_get(&key).unwrap().unwrap_or(0);
                    assert!(now >= *newest, "{now} after {newest}");
                    *newest = now;
                }
            }
        }
    };
    let setting: Vec<_> = (0..3).map(|own| pool.spawn(set, (map.clone(), own))).collect();
    let mut seen = [0; 3];
    while seen != [COUNT; 3] {
        match soon(watch.changed()).await.unwrap() {
            MapChange::Set { key, value } => {
                let before = std::mem::replace(&mut seen[key as usize], value);
                assert_eq!(value, before + 1, "of {key}");
            }
            other => panic!("{other:?}"),
        }
    }
    for task in setting {
        soon(task).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_set_may_be_of_any_size_and_name_other_objects() {
    let pool = pool(1);
    let map = pool.manager().map().unwrap();
    let set = |map: Map<u32, (Vec<u8>, Option<Value<u64>>)>| {
        for n in 0..400u32 {
            let bytes = vec![n as u8; if n % 3 == 0 { 20 } else { 1 << (n % 18) }];
            map.blocking_set(n % 5, (bytes.clone(), None)).unwrap();
            assert_eq!(map.blocking_get(&(n % 5)).unwrap().unwrap().0, bytes);
        }
        let value = map.blocking_get(&7).unwrap().unwrap().1;
        for _ in 0..20 {
            map.blocking_set(8, (vec![], None)).unwrap();
            map.blocking_set(8, (vec![1], value.clone())).unwrap();
            assert!(map.blocking_get(&8).unwrap().unwrap().1.is_some());
        }
    };
    let value = pool.manager().value(5u64).unwrap();
    map.set(7, (vec![], Some(value))).await.unwrap();
    soon(pool.spawn(set, map.clone())).await.unwrap();
    assert_eq!(map.get(&8).await.unwrap().unwrap().1.unwrap().load().unwrap(), 5);
    assert_eq!(map.get(&4).await.unwrap().unwrap().0, vec![143u8; 20]);
}

/// A link of a chain of shared objects of all kinds that keep values.
#[derive(Clone, Serialize, Deserialize)]
enum Link {
    End,
    Mutex(Mutex<Self>),
    RwLock(RwLock<Self>),
    List(List<Self>),
    Map(Map<u8, Self>),
    Queue(Queue<Self>),
}

/// Makes a chain of so many objects: each holds the only handle to the next one.
async fn chain(manager: &Manager, links: usize) -> Link {
    let mut head = Link::End;
    for n in 0..links {
        head = match n % 5 {
            0 => Link::Mutex(manager.mutex(head).unwrap()),
            1 => Link::RwLock(manager.rwlock(head).unwrap()),
            2 => {
                let list = manager.list().unwrap();
                list.push(head).await.unwrap();
                Link::List(list)
            }
            3 => {
                let map = manager.map().unwrap();
                map.insert(1, head).await.unwrap();
                Link::Map(map)
            }
            _ => {
                let queue = manager.queue(1).unwrap();
                queue.send(head).await.unwrap();
                Link::Queue(queue)
            }
        };
    }
    head
}

#[tokio::test]
async fn a_chain_of_objects_that_hold_each_other_is_dropped_without_recursion() {
    const LINKS: usize = 10_000;
    let pool = pool(1);
    let manager = pool.manager();
    // The last handle is in the application.
    let head = chain(manager, LINKS).await;
    assert_eq!(manager.objects(), LINKS);
    drop(head);
    assert_eq!(manager.objects(), 0);
    // It is in an answer that nobody takes.
    let queue = manager.queue(1).unwrap();
    let mut waits = Box::pin(queue.recv());
    assert!((&mut waits).now_or_never().is_none());
    queue.send(chain(manager, LINKS).await).await.unwrap();
    drop(waits);
    drop(queue);
    until("the chain has gone", || manager.objects() == 0).await;
    // It is in a worker that drops it, and in one that dies.
    let head = chain(manager, LINKS).await;
    soon(pool.spawn(|head: Link| drop(head), head)).await.unwrap();
    until("the chain has gone", || manager.objects() == 0).await;
    let head = chain(manager, LINKS).await;
    let dies = |head: Link| -> () {
        std::mem::forget(head);
        std::process::abort()
    };
    soon(pool.spawn(dies, head)).await.unwrap_err();
    until("the chain has gone", || manager.objects() == 0).await;
    // The manager closes.
    let _head = chain(manager, LINKS).await;
    soon(pool.shutdown()).await;
}

#[tokio::test]
async fn the_first_value_of_a_lock_may_hold_handles_which_a_worker_can_use() {
    let pool = pool(1);
    let manager = pool.manager();
    let inner = manager.value(7u64).unwrap();
    let (read_write, mutex) =
        (manager.rwlock(inner.clone()).unwrap(), manager.mutex(inner).unwrap());
    assert_eq!(manager.objects(), 3);
    let look = |read_write: RwLock<Value<u64>>, mutex: Mutex<Value<u64>>| {
        let read = read_write.blocking_read().unwrap().load().unwrap();
        (read, mutex.blocking_lock().unwrap().load().unwrap())
    };
    assert_eq!(soon(pool.spawn(look, (read_write.clone(), mutex.clone()))).await.unwrap(), (7, 7));
    drop((read_write, mutex));
    until("all have gone", || manager.objects() == 0).await;
    // A handle of another manager is refused, as in a mutex.
    let foreign = Manager::new().unwrap().value(7u64).unwrap();
    let refused = manager.rwlock(foreign).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ForeignHandle);
}

// ---- more than one message carries

type Blob = serde_bytes::ByteBuf;

fn blob(byte: u8, mib: usize) -> Blob {
    Blob::from(vec![byte; mib << 20])
}

#[tokio::test]
async fn a_snapshot_larger_than_any_message_arrives_whole_and_the_worker_goes_on() {
    let pool = pool(1);
    let (map, list) = (pool.manager().map().unwrap(), pool.manager().list().unwrap());
    for n in 0..4u8 {
        soon(map.set(n, blob(n, 8))).await.unwrap();
        soon(list.push(blob(n, 8))).await.unwrap();
    }
    let look = |map: Map<u8, Blob>, list: List<Blob>| {
        let is = |n: u8, blob: &Blob| blob.len() == 8 << 20 && blob.iter().all(|byte| *byte == n);
        let entries = map.blocking_entries().unwrap();
        assert!(entries.len() == 4 && entries.iter().all(|(n, blob)| is(*n, blob)));
        assert_eq!(map.blocking_keys().unwrap(), [0, 1, 2, 3]);
        let values = list.blocking_snapshot().unwrap();
        assert!(values.len() == 4 && (0..).zip(&values).all(|(n, blob)| is(n, blob)));
        assert_eq!(list.blocking_range(1..3).unwrap()[..], values[1..3]);
        (map.len().unwrap(), list.len().unwrap())
    };
    for _ in 0..2 {
        assert_eq!(soon(pool.spawn(look, (map.clone(), list.clone()))).await.unwrap(), (4, 4));
    }
    assert_eq!(soon(map.entries()).await.unwrap().len(), 4);
    assert_eq!(soon(list.snapshot()).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_snapshot_is_of_one_moment_though_it_comes_in_pieces() {
    let pool = pool(2);
    let map: Map<u16, Blob> = pool.manager().map().unwrap();
    let stop = pool.manager().value(false).unwrap();
    let value = |round: u8| Blob::from(vec![round; 300 << 10]);
    for key in 0..8 {
        soon(map.set(key, value(0))).await.unwrap();
    }
    // From the first key to the last, again and again: so a moment shows at most two rounds, the
    // newer one in front.
    let write = move |map: Map<u16, Blob>, stop: Value<bool>| {
        for round in 1..=u8::MAX {
            for key in 0..8 {
                map.blocking_insert(key, value(round)).unwrap();
            }
            if stop.load().unwrap() {
                return;
            }
        }
    };
    let writing = pool.spawn(write, (map.clone(), stop.clone()));
    for _ in 0..10 {
        let entries = soon(map.entries()).await.unwrap();
        let rounds: Vec<u8> = entries.iter().map(|(_, blob)| blob[0]).collect();
        assert!(rounds.is_sorted_by(|a, b| a >= b), "{rounds:?}");
        assert!(rounds[0] - rounds[7] <= 1, "{rounds:?}");
    }
    stop.store(true).unwrap();
    soon(writing).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_is_given_up_keeps_nothing() {
    let pool = pool(1);
    let list = pool.manager().list().unwrap();
    for n in 0..3 {
        soon(list.push(blob(n, 1))).await.unwrap();
    }
    for _ in 0..1000 {
        // Polled once or twice: the first pieces are there at once.
        let mut fetching = Box::pin(list.snapshot());
        let _ = (&mut fetching).now_or_never();
        drop(fetching);
    }
    assert_eq!(soon(list.snapshot()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn what_exceeds_a_message_is_an_error_of_that_call_alone() {
    let pool = pool(1);
    let map = pool.manager().map().unwrap();
    soon(map.set("key".to_owned(), blob(1, 15))).await.unwrap();
    let over = |map: Map<String, Blob>| {
        let long = map.blocking_get(&"k".repeat(2 << 20)).unwrap_err();
        // Both what is expected and what is to be there.
        let both =
            map.blocking_compare_exchange("key".to_owned(), Some(&blob(1, 15)), Some(&blob(2, 15)));
        let count = map.len().unwrap();
        let both = both.unwrap_err();
        ((long.is_too_large(), long.size_limit()), both.is_too_large(), count)
    };
    let (long, both, count) = soon(pool.spawn(over, &map)).await.unwrap();
    assert_eq!((long, both, count), ((true, Some(1 << 20)), true, 1));
    // The longest key and value that there may be.
    let longest = "k".repeat((1 << 20) - 5);
    let value = Blob::from(vec![3; (16 << 20) - 64]);
    soon(map.set(longest.clone(), value)).await.unwrap();
    let len = |map: Map<String, Blob>| {
        let entries = map.blocking_entries().unwrap();
        entries.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
    };
    let all = soon(pool.spawn(len, &map)).await.unwrap();
    assert_eq!(all, 3 + (15 << 20) + (17 << 20) - 69);
}
