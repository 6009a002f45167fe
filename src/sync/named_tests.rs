//! How references get to a worker and back, played in one process; and atomics.

use super::connection::Connection;
use super::handle::{Handle, kinds};
use super::list::List;
use super::manager::Manager;
use super::mutex::Mutex;
use super::named::{Leases, Named, given, parcel, received, write_names};
use super::testing::{Elsewhere, client, start_client};
use super::value::{Array, Value};
use super::wait::block_on;
use crate::error::sync::ErrorKind;
use crate::process::sys::pidfd_open;
use crate::process::testing::wait_until;
use crate::wire::value::names::{Thing, collecting, resolving};
use crate::wire::value::{decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Stands for the worker's process: this one.
fn process() -> OwnedFd {
    pidfd_open(std::process::id()).expect("pidfd")
}

struct Packed {
    bytes: Vec<u8>,
    names: Vec<u8>,
    things: Vec<Thing>,
}

fn pack(value: &impl Serialize) -> Packed {
    let (mut bytes, mut names) = (Vec::new(), Vec::new());
    let (encoded, things) = collecting(|| encode(value, &mut bytes, usize::MAX));
    encoded.expect("encode");
    write_names(&things, &mut names, usize::MAX).expect("encode");
    names.push(0xc0); // what follows is not its own
    Packed { bytes, names, things }
}

fn names_of(packed: &Packed) -> Named {
    let (named, end) = Named::read(&packed.names).expect("names");
    assert_eq!(end + 1, packed.names.len());
    named
}

fn unpack<T: DeserializeOwned>(packed: &Packed, things: Vec<Thing>) -> T {
    resolving(things, || decode(&packed.bytes)).expect("decode")
}

#[test]
fn a_handle_goes_to_a_worker_and_comes_back_and_all_is_counted() {
    let manager = Manager::new().expect("a manager");
    let mutex = manager.mutex(1u64).expect("a mutex");
    let leases = Leases::default();
    let call = pack(&(7u8, mutex.clone(), Some(mutex.clone())));
    let sockets = leases.lend(&call.things, Some(process().as_fd())).expect("lend");
    assert_eq!(sockets.len(), 1);
    for (manager, socket) in sockets {
        given(manager, Some(socket));
    }
    // The worker.
    let things = received(names_of(&call)).expect("known");
    let (seven, first, second): (u8, Mutex<u64>, Option<Mutex<u64>>) = unpack(&call, things);
    *block_on(first.lock()).expect("lock") += u64::from(seven);
    drop(first);
    let result = pack(&second);
    parcel(&result.things).expect("handed over");
    let Packed { bytes, names, things } = result;
    drop((things, second)); // the worker's own are gone before the result is looked at
    let result = Packed { bytes, names, things: Vec::new() };
    // And the pool: only the result keeps it.
    drop((mutex, call));
    let things = leases.take(&names_of(&result)).expect("it was handed over");
    let back: Option<Mutex<u64>> = unpack(&result, things);
    let back = back.expect("some");
    assert_eq!(block_on(back.get()).expect("get"), 8);
    assert_eq!(manager.objects(), 1);
    // The second time it is known.
    let call = pack(&back);
    assert!(leases.lend(&call.things, Some(process().as_fd())).expect("lend").is_empty());
    drop(received(names_of(&call)).expect("known")); // a call that is never run
    drop((call, back));
    wait_until("nobody has it any more", || manager.objects() == 0);
    drop(leases);
}

#[test]
fn a_result_that_nobody_takes_is_let_go_with_its_worker() {
    let manager = Manager::new().expect("a manager");
    let value = manager.value(1u64).expect("a value");
    let leases = Leases::default();
    let call = pack(&value);
    let (number, socket) =
        leases.lend(&call.things, Some(process().as_fd())).expect("lend").remove(0);
    let worker = Connection::remote(number, socket);
    let theirs = Handle::of(&worker, *value_handle(&value).name());
    worker.parcel(theirs.name());
    drop((value, call, theirs));
    drop(worker); // its end
    let server = Arc::clone(manager.connection().server().expect("local"));
    wait_until("its end is known", || server.clients() == 0);
    assert_eq!(manager.objects(), 1, "it may still be taken");
    drop(leases);
    wait_until("it is let go", || manager.objects() == 0);
}

#[test]
fn what_a_worker_names_without_having_it_is_refused() {
    let manager = Manager::new().expect("a manager");
    let (given_one, secret) =
        (manager.value(1u64).expect("a value"), manager.value(2u64).expect("a value"));
    let leases = Leases::default();
    let call = pack(&given_one);
    let _sockets = leases.lend(&call.things, Some(process().as_fd())).expect("lend");
    assert!(leases.take(&names_of(&pack(&secret))).is_err());
    let other = Manager::new().expect("a manager");
    assert!(leases.take(&names_of(&pack(&other.value(1u8).expect("a value")))).is_err());
    assert!(leases.take(&names_of(&call)).is_ok());
}

#[test]
fn a_worker_lends_what_it_was_lent_to_workers_of_its_own() {
    let manager = Manager::new().expect("a manager");
    let mutex = manager.mutex(1u64).expect("a mutex");
    // The worker is played by a connection, its own worker by another.
    let worker = Elsewhere::new(manager.connection());
    let there: Mutex<u64> = Mutex::of(worker.handle(mutex.handle()));
    let leases = Leases::default();
    let call = pack(&there);
    let (number, socket) =
        leases.lend(&call.things, Some(process().as_fd())).expect("lend").remove(0);
    let grandchild = Connection::remote(number, socket);
    let theirs = Handle::of(&grandchild, *mutex.handle().name());
    let mutex_there: Mutex<u64> = Mutex::of(theirs.clone());
    *block_on(mutex_there.lock()).expect("lock") += 1;
    // Back to the worker, while the grandchild lets its own go.
    grandchild.parcel(theirs.name());
    grandchild.flush();
    drop((theirs, mutex_there));
    drop((there, call, mutex));
    let mut names = Vec::new();
    encode(&[(number, 1u64, 0u8, kinds::MUTEX.0, None::<(u32, u32, u32)>)], &mut names, usize::MAX)
        .expect("encode");
    let back = leases.take(&Named::read(&names).expect("names").0);
    let back = back.expect("taken");
    assert_eq!(manager.objects(), 1);
    drop((back, leases));
    wait_until("nobody has it any more", || manager.objects() == 0);
    drop((grandchild, worker));
}

#[test]
fn a_name_that_was_not_handed_over_costs_a_grandchild_its_connection_and_its_worker_nothing() {
    let manager = Manager::new().expect("a manager");
    let value = manager.value(1u64).expect("a value");
    let list: List<u8> = manager.list().expect("a list");
    // The worker has both, and has lent the value alone.
    let worker = Elsewhere::new(manager.connection());
    let lent: Value<u64> = Value::of(worker.handle(value_handle(&value)));
    let there: List<u8> = List::of(worker.handle(list.handle()));
    drop(list);
    let leases = Leases::default();
    let sockets = leases.lend(&pack(&lent).things, None).expect("lend");
    // Twice as many as the worker has.
    let forged = names_of(&pack(&(there.clone(), there.clone())));
    drop(leases.take(&forged).expect("it cannot know better"));
    assert_eq!(there.len().expect("its own reference is left"), 0);
    let server = Arc::clone(manager.connection().server().expect("local"));
    wait_until("the grandchild has lost its connection", || server.clients() == 1);
    assert_eq!(manager.objects(), 2);
    drop(there);
    wait_until("it is let go", || manager.objects() == 1);
    drop((lent, sockets, leases));
}

#[test]
fn objects_share_no_memory_if_that_is_asked_for() {
    let manager = Manager::new().expect("a manager");
    let segment = |handle: &Handle| handle.name().place.expect("it lies in memory").segment;
    let shared = [manager.value(1u64).expect("a value"), manager.value(2u64).expect("a value")];
    assert_eq!(segment(value_handle(&shared[0])), segment(value_handle(&shared[1])));
    manager.separate_memory(true);
    let own = manager.value(3u64).expect("a value");
    let mutex = manager.mutex(4u64).expect("a mutex");
    let mut segments = vec![segment(value_handle(&shared[0])), segment(value_handle(&own))];
    segments.push(segment(mutex.handle()));
    segments.dedup();
    assert_eq!(segments.len(), 3);
    let elsewhere = Elsewhere::new(manager.connection());
    let (own_there, mutex_there): (Value<u64>, Mutex<u64>) = (
        Value::of(elsewhere.handle(value_handle(&own))),
        Mutex::of(elsewhere.handle(mutex.handle())),
    );
    assert_eq!(own_there.fetch_add(1).expect("add"), 3);
    *block_on(mutex_there.lock()).expect("lock") += 1;
    assert_eq!((own.load().expect("load"), block_on(mutex.get()).expect("get")), (4, 5));
}

#[test]
fn a_handle_of_another_manager_is_not_put_into_an_object() {
    let (one, other) = (Manager::new().expect("a manager"), Manager::new().expect("a manager"));
    let value = other.value(1u64).expect("a value");
    let mutex = one.mutex(None::<Value<u64>>).expect("a mutex");
    let mut guard = block_on(mutex.lock()).expect("lock");
    *guard = Some(value.clone());
    assert_eq!(guard.commit().expect_err("foreign").kind(), ErrorKind::ForeignHandle);
    assert!(block_on(mutex.get()).expect("get").is_none());
    assert_eq!(one.mutex(Some(value)).expect_err("foreign").kind(), ErrorKind::ForeignHandle);
}

fn value_handle(value: &Value<u64>) -> &Handle {
    value.handle_of()
}

// ---- atomics

#[test]
fn every_type_does_what_its_operations_say() {
    let manager = Manager::new().expect("a manager");
    let elsewhere = Elsewhere::new(manager.connection());
    let byte = manager.value(250u8).expect("a value");
    assert_eq!(byte.fetch_add(10).expect("add"), 250);
    assert_eq!(byte.load().expect("load"), 4, "it wraps");
    assert_eq!(byte.compare_exchange(5, 9).expect("exchange"), Err(4));
    assert_eq!(byte.compare_exchange(4, 9).expect("exchange"), Ok(4));
    assert_eq!((byte.fetch_sub(10).expect("sub"), byte.swap(1).expect("swap")), (9, 255));
    let signed = manager.value(-5i64).expect("a value");
    assert_eq!(
        (
            signed.fetch_add(-1).expect("add"),
            signed.fetch_max(3).expect("max"),
            signed.fetch_min(-9).expect("min")
        ),
        (-5, -6, 3)
    );
    assert_eq!(signed.load().expect("load"), -9);
    let small = manager.value(-5i8).expect("a value");
    assert_eq!((small.fetch_sub(127).expect("sub"), small.load().expect("load")), (-5, 124));
    let real = manager.value(1.5f64).expect("a value");
    assert_eq!((real.fetch_add(-0.25).expect("add"), real.load().expect("load")), (1.5, 1.25));
    let flag = manager.value(false).expect("a value");
    assert!(
        !flag.fetch_or(true).expect("or")
            && flag.fetch_xor(true).expect("xor")
            && !flag.load().expect("load")
    );
    let bits = manager.value(0b1100u32).expect("a value");
    assert_eq!(
        (bits.fetch_and(0b0110).expect("and"), bits.load().expect("load")),
        (0b1100, 0b0100)
    );
    assert_eq!(bits.fetch_update(|n| (n > 100).then_some(0)).expect("update"), Err(4));

    let array = manager.array(&[0.5f32, 1.0, 2.0]).expect("an array");
    let there: Array<f32> = Array::of(elsewhere.handle(array.handle()));
    there.at(1).expect("in range").store(7.0).expect("store");
    assert_eq!((array.to_vec().expect("read"), there.len()), (vec![0.5, 7.0, 2.0], 3));
    assert!(array.at(3).is_none());
    assert!(manager.array::<u8>(&[]).expect("an array").is_empty());
    let large = manager.array(&vec![1u64; 100_000]).expect("an array");
    let there: Array<u64> = Array::of(elsewhere.handle(large.handle()));
    assert_eq!(there.to_vec().expect("read").iter().sum::<u64>(), 100_000);
    assert_eq!(manager.value_named("n", 3u64).expect("a value").load().expect("load"), 3);
}

#[test]
fn processes_that_add_lose_nothing() {
    let manager = Manager::new().expect("a manager");
    let value = manager.value(0u64).expect("a value");
    let test = "sync::named_tests::client_adds_a_thousand";
    let children: Vec<_> = (0..10)
        .map(|_| start_client(manager.connection(), test, &[value_handle(&value)]))
        .collect();
    for mut child in children {
        assert!(child.wait().expect("wait").success());
    }
    assert_eq!(value.load().expect("load"), 10_000);
}

#[test]
#[ignore = "runs in a process of its own"]
fn client_adds_a_thousand() {
    let Some(handles) = client() else { return };
    let value: Value<u64> = Value::of(handles[0].clone());
    for _ in 0..1000 {
        value.fetch_add(1).expect("add");
    }
}

/// A client that this one introduces, and how it calls it. It is lent the object.
fn introduce(by: &Arc<Connection>, object: &Handle) -> (u64, Arc<Connection>) {
    let (number, socket) = by.introduce(None).expect("a socket pair");
    by.lend(number, object.name());
    (number, Connection::remote(by.manager(), socket))
}

fn get(by: &Arc<Connection>, object: &Handle) -> Result<u64, ErrorKind> {
    // Beside the reference that it was lent, which it keeps.
    let name = by.acquire(object.name(), object.name().part).expect("it is elsewhere");
    let mutex: Mutex<u64> = Mutex::of(Handle::of(by, name));
    block_on(mutex.get()).map_err(|error| error.kind())
}

#[test]
fn the_clients_that_descend_from_a_worker_are_counted_however_deep_and_one_too_many_is_told() {
    let manager = Manager::new().expect("a manager");
    let mutex = manager.mutex(5u64).expect("a mutex");
    let worker = Elsewhere::new(manager.connection());
    let there = worker.handle(mutex.handle());
    // Each one introduces the next one.
    let mut chain = vec![(0, Arc::clone(there.connection()))];
    for _ in 0..256 {
        let next = introduce(&chain.last().expect("the first").1, &there);
        chain.push(next);
    }
    // What was written by all of them is read before the last one's words.
    assert_eq!(get(&chain[256].1, &there), Ok(5));
    for by in [0, 1, 100, 255] {
        let (_, refused) = introduce(&chain[by].1, &there);
        assert_eq!(get(&refused, &there), Err(ErrorKind::TooManyClients), "by {by}");
        assert_eq!(get(&chain[by].1, &there), Ok(5), "its introducer goes on");
    }
    // Another worker has clients of its own.
    let other = Elsewhere::new(manager.connection());
    let there_too = other.handle(mutex.handle());
    let (_, of_other) = introduce(there_too.connection(), &there_too);
    assert_eq!(get(&of_other, &there_too), Ok(5));
    // One that has ended counts until its introducer wants nothing of it any more.
    let (number, last) = chain.pop().expect("the last");
    drop(last);
    let by = Arc::clone(&chain[255].1);
    let server = Arc::clone(manager.connection().server().expect("local"));
    wait_until("the last has ended", || server.clients() == 2 + 255 + 1);
    assert_eq!(get(&introduce(&by, &there).1, &there), Err(ErrorKind::TooManyClients));
    by.dismiss(number);
    assert_eq!(get(&introduce(&by, &there).1, &there), Ok(5));
}
