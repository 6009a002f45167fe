//! What may be sent to other threads, and shared with them: every handle, whatever its values are.

#![cfg(feature = "sync")]
use procpool::sync::{
    Array, Barrier, Channel, Condvar, Delivery, Event, List, Map, MapWatch, Mutex, MutexGuard,
    OwnedMutexGuard, Queue, QueueReceiver, QueueSender, QueueSink, QueueStream, RwLock,
    RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphorePermit, Value,
};
use procpool::{
    AbortHandle, Builder, Error, Events, Failure, JoinHandle, Manager, Pool, Process,
    ProcessBuilder, Results, Shutdown, Stats, TaskBuilder, TaskError, TryResults,
};
use std::rc::Rc;
use std::time::Duration;

fn goes_anywhere<T: Send + Sync + Unpin>() {}
/// Only one thread polls a stream.
fn is_mobile<T: Send + Unpin>() {}
fn is_send<T: Send>(_: &T) {}

/// Neither `Send` nor `Sync`: what is of this type is made where it arrives.
type Here = Rc<u8>;
type Items = futures::stream::Iter<std::ops::Range<u8>>;

#[test]
fn every_handle_goes_anywhere_also_where_its_value_cannot() {
    goes_anywhere::<(
        Pool,
        Builder,
        TaskBuilder<'static, (), Here>,
        JoinHandle<Here>,
        AbortHandle,
        Shutdown,
        Events,
        Stats,
    )>();
    is_mobile::<(Results<Items, (u8,), Here>, TryResults<Items, Error, (u8,), Here>)>();
    goes_anywhere::<(Process<Here>, ProcessBuilder, Error, TaskError, Failure)>();
    goes_anywhere::<(
        Manager,
        Mutex<Here>,
        RwLock<Here>,
        Semaphore,
        SemaphorePermit,
        Barrier,
        Event,
        Condvar,
    )>();
    goes_anywhere::<(Queue<Here>, QueueSender<Here>, QueueReceiver<Here>, QueueStream<Here>)>();
    goes_anywhere::<(Map<Here, Here>, List<Here>, Value<u8>, Array<u8>, Channel<Here>)>();
}

#[test]
fn what_holds_values_goes_where_they_can() {
    goes_anywhere::<(
        MutexGuard<'static, String>,
        OwnedMutexGuard<String>,
        RwLockReadGuard<String>,
        RwLockWriteGuard<String>,
    )>();
    goes_anywhere::<(Delivery<String>, QueueSink<String>, MapWatch<String, String>)>();
}

/// So that `tokio::spawn` takes them: compiled, never run.
#[expect(dead_code, reason = "compiled")]
async fn what_waits_is_send(
    pool: Pool,
    manager: Manager,
) -> Result<(), Box<dyn std::error::Error>> {
    const LIMIT: Duration = Duration::from_secs(1);
    is_send(&pool.ready());
    is_send(&pool.shutdown());
    is_send(&pool.spawn(|n: u8| n, 1));
    is_send(&pool.spawn_wait(|n: u8| n, 1));
    is_send(&pool.map(|n: u8| n, 0..9u8));
    let mutex = manager.mutex(String::new())?;
    is_send(&(mutex.lock(), mutex.lock_timeout(LIMIT), mutex.get()));
    is_send(&mutex.clone().lock_owned());
    let rwlock = manager.rwlock(String::new())?;
    is_send(&(rwlock.read(), rwlock.write(), rwlock.get()));
    let queue = manager.queue::<String>(1)?;
    is_send(&(
        queue.send(String::new()),
        queue.recv(),
        queue.recv_timeout(LIMIT),
        queue.lease(),
        queue.join(),
    ));
    let (semaphore, barrier, event) =
        (manager.semaphore(1)?, manager.barrier(1)?, manager.event()?);
    is_send(&(semaphore.acquire(), barrier.wait(), event.wait()));
    let map = manager.map::<String, String>()?;
    is_send(&(map.get("a"), map.insert(String::new(), String::new()), map.entries()));
    let (here, _there) = procpool::sync::channel::<String>()?;
    is_send(&(here.send(String::new()), here.recv()));
    Ok(())
}

/// A stream can be printed whatever its values are.
#[test]
fn streams_have_debug_output_also_where_their_values_have_none() {
    struct Opaque;
    fn has_debug_output<T: std::fmt::Debug>() {}
    has_debug_output::<Results<Opaque, (Opaque,), Opaque>>();
    has_debug_output::<TryResults<Opaque, Opaque, (Opaque,), Opaque>>();
    has_debug_output::<procpool::ItemResults<Opaque, (Opaque,), Opaque>>();
    has_debug_output::<procpool::TaskStream<Opaque, Opaque>>();
    has_debug_output::<procpool::Yielder<Opaque>>();
}
