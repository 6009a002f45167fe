//! Maps and lists across processes, objects of one's own, and channels.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/processes.rs"]
mod processes;

use processes::soon;
use procpool::{Channel, ErrorKind, List, Map, MapChange, Mutex, Pool, Queue, Registered, Served, Value, channel};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};

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
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
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

#[tokio::test]
async fn operations_from_four_processes_are_as_if_done_one_after_another() {
    const PROCESSES: u32 = 4;
    const TIMES: u32 = 500;
    let pool = pool(4);
    let (map, list) = (pool.manager().map().unwrap(), pool.manager().list().unwrap());
    let tasks: Vec<_> = (0..PROCESSES).map(|n| pool.spawn(operate, (map.clone(), list.clone(), n, TIMES))).collect();
    let mut histories = Vec::new();
    for task in tasks {
        histories.push(soon(task).await.unwrap());
    }
    // An operation that met a value came after the one that wrote it, and before the one that took it away; and each process
    // did its own in their order. If that is possible at once, there is an order that explains every answer.
    let mut after: HashMap<(usize, usize), HashSet<(usize, usize)>> = HashMap::new();
    let (mut wrote, mut took, mut met) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for (process, history) in histories.iter().enumerate() {
        for (n, done) in history.iter().enumerate() {
            let me = (process, n);
            after.entry(me).or_default().extend(n.checked_sub(1).map(|before| (process, before)));
            let (written, taken) = match *done {
                Done::Insert { value, before, .. } => (Some(value), before),
                Done::Remove { before, .. } => (None, before),
                Done::Push(value) => (Some(value), None),
                Done::Pop { got, .. } => (None, got),
                Done::Get { found, .. } => {
                    met.extend(found.map(|value| (value, me)));
                    (None, None)
                }
            };
            if let Some(value) = written {
                wrote.insert(value, me);
            }
            if let Some(value) = taken {
                assert_eq!(took.insert(value, me), None, "{value} was taken twice");
                met.push((value, me));
            }
        }
    }
    for (value, me) in met {
        let writer = *wrote.get(&value).unwrap_or_else(|| panic!("{value} was never written"));
        after.entry(me).or_default().insert(writer);
        if let Some(taker) = took.get(&value).filter(|taker| **taker != me) {
            after.entry(*taker).or_default().insert(me);
        }
    }
    while !after.is_empty() {
        let free: Vec<_> = after.iter().filter(|(_, before)| before.is_empty()).map(|(me, _)| *me).collect();
        assert!(!free.is_empty(), "no order explains the answers: {} operations wait for each other", after.len());
        for me in free {
            after.remove(&me);
        }
        let left: HashSet<_> = after.keys().copied().collect();
        after.values_mut().for_each(|before| before.retain(|other| left.contains(other)));
    }
    // What was written and not taken is what is there.
    let mut there: Vec<u32> = map.entries().await.unwrap().into_iter().map(|(_, value)| value).collect();
    there.extend(list.snapshot().await.unwrap());
    there.sort_unstable();
    let expected: Vec<u32> = wrote.keys().copied().filter(|value| !took.contains_key(value)).collect();
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
    let (map, list) = (pool.manager().map::<String, u32>().unwrap(), pool.manager().list::<u32>().unwrap());
    map.insert("a".into(), 1).await.unwrap();
    list.push(1).await.unwrap();
    let ask = |map: Map<String, u32>, list: List<u32>| {
        assert_eq!(map.blocking_get("b").unwrap(), None);
        assert_eq!(map.blocking_remove("b").unwrap(), None);
        assert_eq!(map.blocking_compare_exchange("b".into(), Some(&1), Some(&2)).unwrap(), Err(None));
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
        let MapChange::Set { key, value } = soon(watch.changed()).await.unwrap() else { panic!("nothing was removed") };
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

impl Served for Counter {
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
    let add = |counter: Registered<Counter>, times: u64| {
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

impl Served for Giver {
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
    async fn errors(giver: Registered<Giver>) {
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
            assert!(reason.is_none_or(|reason| error.reason().unwrap().contains(reason)), "{error:?}");
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

/// Reads what another writes, until the end: never older than what had been written before. Gives how often it was the same.
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
    const COUNT: u64 = 3_000;
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

/// By turns with another: what one finds is what the other has set last, though it has read and set much before. Who has the turn
/// is told by a queue, or by a lock.
fn take_turns(map: Map<u64, u64>, turns: Queue<u64>, others: Queue<u64>, turn: Mutex<u64>, last: u64) {
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
            others.blocking_close().unwrap();
            return;
        }
    }
}

#[tokio::test]
async fn what_was_set_is_seen_by_whoever_hears_of_it_in_another_way() {
    let pool = pool(2);
    let manager = pool.manager();
    let map = manager.map().unwrap();
    let (one, other, turn) = (manager.queue(4).unwrap(), manager.queue(4).unwrap(), manager.mutex(0).unwrap());
    one.send(0).await.unwrap();
    let first = pool.spawn(take_turns, (map.clone(), one.clone(), other.clone(), turn.clone(), 1_000));
    let second = pool.spawn(take_turns, (map.clone(), other, one, turn, 1_000));
    soon(first).await.unwrap();
    soon(second).await.unwrap();
    assert_eq!(map.get(&0).await.unwrap(), Some(999));
}

#[tokio::test]
async fn several_who_set_are_each_seen_in_their_order_and_by_watchers() {
    const COUNT: u64 = 3_000;
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
