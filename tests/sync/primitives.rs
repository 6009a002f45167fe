//! Semaphores, events, barriers, read-write locks and condition variables across processes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{FUSE, signal, soon, until};
use futures::{FutureExt, SinkExt, StreamExt};
use nix::sys::signal::Signal;
use procpool::sync::ErrorKind;
use procpool::sync::{
    Actor, Barrier, Condvar, Event, List, Mutex, RwLock, Semaphore, Value, channel,
};
use procpool::{Manager, Pool, Process, Stdio};
use std::cell::Cell;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Once};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::task::coop::unconstrained;

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

#[tokio::test]
async fn a_semaphore_counts_and_a_bounded_one_stays_at_its_limit() {
    let pool = pool(1);
    let values = |semaphore: Semaphore| {
        let mut values = vec![semaphore.available_permits().unwrap()];
        let one = semaphore.blocking_acquire().unwrap();
        values.push(semaphore.available_permits().unwrap());
        let two = semaphore.try_acquire().unwrap().unwrap();
        values.push(semaphore.available_permits().unwrap());
        assert!(semaphore.try_acquire().unwrap().is_none());
        assert!(
            semaphore.blocking_acquire_timeout(Duration::from_millis(10)).unwrap_err().is_timeout()
        );
        drop(one);
        values.push(semaphore.available_permits().unwrap());
        drop(two);
        values.push(semaphore.available_permits().unwrap());
        values
    };
    let manager = pool.manager();
    for semaphore in [manager.semaphore(2).unwrap(), manager.bounded_semaphore(2).unwrap()] {
        assert_eq!(soon(pool.spawn(values, &semaphore)).await.unwrap(), [2, 1, 0, 1, 2]);
    }
    let bounded = manager.bounded_semaphore(2).unwrap();
    let refused = |semaphore: Semaphore| {
        let error = semaphore.add_permits(1).unwrap_err();
        (error.kind() == ErrorKind::AboveLimit, semaphore.available_permits().unwrap())
    };
    assert_eq!(soon(pool.spawn(refused, &bounded)).await.unwrap(), (true, 2));
    assert_eq!(bounded.acquire_many(3).await.unwrap_err().kind(), ErrorKind::AboveLimit);
    let mut permit = bounded.acquire_many(2).await.unwrap();
    assert!(permit.release(3).unwrap_err().is_not_held());
    permit.release(1).unwrap();
    permit.forget().unwrap();
    assert_eq!(bounded.available_permits().unwrap(), 1);
    bounded.add_permits(1).unwrap();
    let free = manager.semaphore(0).unwrap();
    free.add_permits(5).unwrap();
    assert_eq!(free.available_permits().unwrap(), 5);
    free.close().unwrap();
    assert!(free.acquire().await.unwrap_err().is_closed());
}

#[tokio::test]
async fn a_killed_process_gives_its_permits_back() {
    let pool = pool(1);
    let semaphore = pool.manager().semaphore(2).unwrap();
    let held = pool.manager().event().unwrap();
    let holds = |semaphore: Semaphore, held: Event, pid: Value<u32>| {
        let permit = semaphore.blocking_acquire().unwrap();
        pid.store(std::process::id()).unwrap();
        held.set().unwrap();
        while permit.num_permits() == 1 {
            std::thread::park();
        }
    };
    let pid = pool.manager().value(0u32).unwrap();
    let task = pool.spawn(holds, (semaphore.clone(), held.clone(), pid.clone()));
    soon(held.wait()).await.unwrap();
    assert_eq!(semaphore.available_permits().unwrap(), 1);
    let mut both = Box::pin(semaphore.acquire_many(2));
    assert!(both.as_mut().now_or_never().is_none());
    signal(pid.load().unwrap(), Signal::SIGKILL);
    assert_eq!(soon(both).await.unwrap().num_permits(), 2);
    assert!(soon(task).await.unwrap_err().is_worker_died());
    assert_eq!(semaphore.available_permits().unwrap(), 2);
}

#[tokio::test]
async fn a_barrier_is_broken_for_the_survivor_and_for_newcomers_when_a_party_is_killed() {
    let pool = pool(2);
    let barrier = pool.manager().barrier(3).unwrap();
    let waits = |barrier: Barrier, pids: List<u32>| {
        pids.blocking_push(std::process::id()).unwrap();
        barrier
            .blocking_wait()
            .map(|result| result.is_leader())
            .map_err(|error| error.is_broken_barrier())
    };
    let pids = pool.manager().list::<u32>().unwrap();
    let doomed = pool.spawn(waits, (barrier.clone(), pids.clone()));
    until("one waits", || barrier.n_waiting().unwrap() == 1).await;
    let survivor = pool.spawn(waits, (barrier.clone(), pids.clone()));
    until("two wait", || barrier.n_waiting().unwrap() == 2).await;
    signal(pids.get(0).await.unwrap().unwrap(), Signal::SIGKILL);
    assert!(soon(doomed).await.unwrap_err().is_worker_died());
    assert_eq!(soon(survivor).await.unwrap(), Err(true));
    assert!(soon(barrier.wait()).await.unwrap_err().is_broken_barrier());
    barrier.reset().unwrap();
    assert!(!barrier.is_broken().unwrap());
    // A party that runs out of time breaks it as well, and is told so itself.
    let survivor = pool.spawn(waits, (barrier.clone(), pids));
    until("one waits", || barrier.n_waiting().unwrap() == 1).await;
    let begun = Instant::now();
    let late = soon(barrier.wait_timeout(Duration::from_millis(20))).await.unwrap_err();
    assert!(late.is_timeout() && begun.elapsed() >= Duration::from_millis(20));
    assert_eq!(soon(survivor).await.unwrap(), Err(true));
}

#[tokio::test]
async fn five_processes_pass_a_barrier_a_thousand_times_in_step_with_one_leader_each() {
    const ROUNDS: u64 = 1_000;
    let pool = pool(5);
    let barrier = pool.manager().barrier(5).unwrap();
    let here = pool.manager().value(0u64).unwrap();
    let run = |barrier: Barrier, here: Value<u64>, rounds: u64| {
        let mut led = 0;
        for round in 0..rounds {
            here.fetch_add(1).unwrap();
            let passed = barrier.blocking_wait().unwrap();
            assert_eq!(passed.round(), 2 * round);
            led += u64::from(passed.is_leader());
            // All five are here, and nobody is ahead.
            assert_eq!(here.load().unwrap(), 5 * (round + 1));
            barrier.blocking_wait().unwrap();
        }
        led
    };
    let tasks: Vec<_> =
        (0..5).map(|_| pool.spawn(run, (barrier.clone(), here.clone(), ROUNDS))).collect();
    let mut led = 0;
    for task in tasks {
        led += tokio::time::timeout(Duration::from_secs(100), task).await.unwrap().unwrap();
    }
    assert_eq!(led, ROUNDS);
}

#[tokio::test]
async fn an_event_that_one_process_sets_wakes_fifty_waiters_in_five() {
    let pool = Pool::builder().workers(6).concurrency(10).build().unwrap();
    let event = pool.manager().event().unwrap();
    let waiting = pool.manager().value(0u32).unwrap();
    assert!(!event.is_set().unwrap());
    let begun = Instant::now();
    assert!(soon(event.wait_timeout(Duration::from_millis(50))).await.unwrap_err().is_timeout());
    assert!(begun.elapsed() >= Duration::from_millis(50));
    assert!(soon(event.wait_timeout(Duration::ZERO)).await.unwrap_err().is_timeout());
    async fn waits(event: Event, waiting: Value<u32>) -> u32 {
        let mut wait = Box::pin(event.wait());
        assert!(wait.as_mut().now_or_never().is_none());
        waiting.fetch_add(1).unwrap();
        wait.await.unwrap();
        std::process::id()
    }
    let waiters: Vec<_> =
        (0..50).map(|_| pool.spawn(waits, (event.clone(), waiting.clone()))).collect();
    until("all wait", || waiting.load().unwrap() == 50).await;
    let set = |event: Event| (event.set().unwrap(), event.set().unwrap());
    assert_eq!(soon(pool.spawn(set, &event)).await.unwrap(), (false, true));
    let mut pids = std::collections::BTreeSet::new();
    for waiter in waiters {
        pids.insert(soon(waiter).await.unwrap());
    }
    assert!(pids.len() >= 5, "{} processes", pids.len());
    soon(event.wait()).await.unwrap();
    assert!(event.clear().unwrap());
    assert!(event.wait().now_or_never().is_none());
}

#[tokio::test]
async fn a_writer_that_is_killed_leaves_the_value_as_it_was() {
    let pool = pool(1);
    let lock = pool.manager().rwlock(vec![1u32, 2, 3]).unwrap();
    let dies = |lock: RwLock<Vec<u32>>| -> () {
        let mut guard = lock.blocking_write().unwrap();
        guard.clear();
        std::process::abort()
    };
    assert!(soon(pool.spawn(dies, &lock)).await.unwrap_err().is_worker_died());
    let mut guard = soon(lock.write()).await.unwrap();
    assert!(guard.recovered());
    assert_eq!(*guard, [1, 2, 3]);
    guard.clear_recovered();
    guard.push(4);
    guard.commit().await.unwrap();
    let sum = |lock: RwLock<Vec<u32>>| {
        let (one, two) = (lock.blocking_read().unwrap(), lock.blocking_read().unwrap());
        assert!(!one.recovered() && lock.try_write().unwrap().is_none());
        one.iter().chain(two.iter()).sum::<u32>()
    };
    assert_eq!(soon(pool.spawn(sum, &lock)).await.unwrap(), 20);
}

#[tokio::test]
async fn a_condition_is_waited_for_across_processes() {
    let pool = pool(3);
    let manager = pool.manager();
    let (stock, changed) = (manager.mutex(0u32).unwrap(), manager.condvar().unwrap());
    let take = |stock: Mutex<u32>, changed: Condvar, times: u32| {
        for _ in 0..times {
            let mut stock = changed
                .blocking_wait_while(stock.blocking_lock().unwrap(), |stock| *stock == 0)
                .unwrap();
            *stock -= 1;
        }
        times
    };
    let takers: Vec<_> =
        (0..3).map(|_| pool.spawn(take, (stock.clone(), changed.clone(), 50))).collect();
    for _ in 0..150 {
        *stock.lock().await.unwrap() += 1;
        changed.notify_one().unwrap();
    }
    for taker in takers {
        assert_eq!(soon(taker).await.unwrap(), 50);
    }
    assert_eq!(stock.get().await.unwrap(), 0);
}

/// Handles need neither a worker nor the runtime in which they were made, nor any.
#[test]
fn in_the_application_objects_work_from_any_thread_and_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    let first = runtime();
    let (manager, queue, semaphore) = first.block_on(async {
        let manager = Manager::new().unwrap();
        let queue = manager.queue::<u32>(2).unwrap();
        queue.send(1).await.unwrap();
        let semaphore = manager.semaphore(1).unwrap();
        (manager, queue, semaphore)
    });
    let permit = first.block_on(semaphore.acquire()).unwrap();
    drop(first);
    let waits = std::thread::spawn({
        let semaphore = semaphore.clone();
        move || semaphore.blocking_acquire().map(drop)
    });
    assert_eq!(queue.blocking_recv().unwrap(), Some(1));
    runtime().block_on(queue.send(2)).unwrap();
    assert_eq!(runtime().block_on(queue.recv()).unwrap(), Some(2));
    drop(permit);
    waits.join().unwrap().unwrap();
    drop(manager);
    queue.blocking_send(3).unwrap(); // as long as a handle is left
    assert_eq!(queue.try_recv().unwrap(), Some(3));
}

// ---- cooperative scheduling

/// How often each call is made in one poll: tokio gives a task 128 operations per poll.
const CALLS: usize = 150;

/// Checks that a loop over these calls, each of which is ready at once, yields to the runtime.
async fn yields<R>(name: &str, call: impl AsyncFnMut() -> R) {
    yields_after(name, async || {}, call).await;
}

/// As [`yields`]; `prepare` makes [`CALLS`] calls ready.
async fn yields_after<R>(
    name: &str,
    mut prepare: impl AsyncFnMut(),
    mut call: impl AsyncFnMut() -> R,
) {
    prepare().await;
    {
        let mut without_budget = pin!(unconstrained(async {
            for _ in 0..CALLS {
                drop(call().await);
            }
        }));
        let polled = poll_fn(|cx| Poll::Ready(without_budget.as_mut().poll(cx))).await;
        assert!(polled.is_ready(), "{name} waits here, so that its loop yields anyway");
    }
    prepare().await;
    let mut calls = pin!(async {
        for _ in 0..CALLS {
            drop(call().await);
        }
    });
    let polled = poll_fn(|cx| Poll::Ready(calls.as_mut().poll(cx))).await;
    assert!(polled.is_pending(), "a loop over {name} never yields");
    soon(calls).await; // the runtime polls it again
}

struct Answers;

impl Actor for Answers {
    type Call = u32;
    type Reply = u32;

    async fn call(&mut self, call: u32) -> u32 {
        call
    }
}

/// `tests/tidy.rs` looks here for the name of every public async function, future, stream and sink.
/// What is not called stands in the comment below.
#[tokio::test]
async fn every_public_async_call_takes_part_in_the_cooperative_budget() {
    const LONG: Duration = Duration::from_secs(600);
    let manager = Manager::new().unwrap();

    let lock = manager.mutex(7u64).unwrap();
    yields("sync/mutex.rs: lock", async || lock.lock().await.unwrap()).await;
    yields("sync/mutex.rs: lock_timeout", async || lock.lock_timeout(LONG).await.unwrap()).await;
    yields("sync/mutex.rs: lock_owned", async || lock.clone().lock_owned().await.unwrap()).await;
    yields("sync/mutex.rs: get", async || assert_eq!(lock.get().await.unwrap(), 7)).await;

    let lock = manager.rwlock(7u64).unwrap();
    yields("sync/rwlock.rs: read", async || lock.read().await.unwrap()).await;
    yields("sync/rwlock.rs: read_timeout", async || lock.read_timeout(LONG).await.unwrap()).await;
    yields("sync/rwlock.rs: get", async || assert_eq!(lock.get().await.unwrap(), 7)).await;
    yields("sync/rwlock.rs: write", async || lock.write().await.unwrap()).await;
    yields("sync/rwlock.rs: write_timeout", async || lock.write_timeout(LONG).await.unwrap()).await;
    yields("sync/rwlock.rs: commit", async || {
        lock.try_write().unwrap().unwrap().commit().await.unwrap();
    })
    .await;
    yields("sync/rwlock.rs: downgrade", async || {
        lock.try_write().unwrap().unwrap().downgrade().await.unwrap()
    })
    .await;

    let semaphore = manager.semaphore(9).unwrap();
    yields("sync/semaphore.rs: acquire", async || semaphore.acquire().await.unwrap()).await;
    yields("sync/semaphore.rs: acquire_many", async || semaphore.acquire_many(2).await.unwrap())
        .await;
    yields("sync/semaphore.rs: acquire_timeout", async || {
        semaphore.acquire_timeout(LONG).await.unwrap()
    })
    .await;
    yields("sync/semaphore.rs: acquire_many_timeout", async || {
        semaphore.acquire_many_timeout(2, LONG).await.unwrap()
    })
    .await;

    let event = manager.event().unwrap();
    event.set().unwrap();
    yields("sync/event.rs: wait", async || event.wait().await.unwrap()).await;
    yields("sync/event.rs: wait_timeout", async || event.wait_timeout(LONG).await.unwrap()).await;

    let barrier = manager.barrier(1).unwrap();
    yields("sync/barrier.rs: wait", async || barrier.wait().await.unwrap()).await;
    yields("sync/barrier.rs: wait_timeout", async || {
        barrier.wait_timeout(LONG).await.unwrap();
    })
    .await;

    let (lock, condvar) = (manager.mutex(0u32).unwrap(), manager.condvar().unwrap());
    yields("sync/condvar.rs: wait_while", async || {
        let guard = lock.try_lock().unwrap().unwrap();
        condvar.wait_while(guard, |_| false).await.unwrap()
    })
    .await;
    yields("sync/condvar.rs: wait_timeout", async || {
        let guard = lock.try_lock().unwrap().unwrap();
        condvar.wait_timeout(guard, Duration::ZERO).await.unwrap()
    })
    .await;

    let list = manager.list::<u32>().unwrap();
    list.blocking_extend(0..4 * CALLS as u32).unwrap();
    yields("sync/list.rs: get", async || list.get(0).await.unwrap()).await;
    yields("sync/list.rs: range", async || list.range(0..1).await.unwrap()).await;
    yields("sync/list.rs: set", async || list.set(0, 1).await.unwrap()).await;
    yields("sync/list.rs: update", async || list.update(0, |n| n).await.unwrap()).await;
    yields("sync/list.rs: compare_exchange", async || {
        list.compare_exchange(0, &1, &1).await.unwrap().unwrap();
    })
    .await;
    yields("sync/list.rs: swap", async || list.swap(0, 0).await.unwrap()).await;
    yields("sync/list.rs: pop", async || list.pop().await.unwrap().unwrap()).await;
    yields("sync/list.rs: pop_front", async || list.pop_front().await.unwrap()).await;
    yields("sync/list.rs: push", async || list.push(1).await.unwrap()).await;
    yields("sync/list.rs: remove", async || list.remove(0).await.unwrap()).await;
    yields("sync/list.rs: truncate", async || list.truncate(3).await.unwrap()).await;
    yields("sync/list.rs: reverse", async || list.reverse().await.unwrap()).await;
    yields("sync/list.rs: snapshot", async || list.snapshot().await.unwrap()).await;
    yields("sync/list.rs: insert", async || list.insert(0, 1).await.unwrap()).await;
    yields("sync/list.rs: extend", async || list.extend([]).await.unwrap()).await;
    yields("sync/list.rs: clear", async || list.clear().await.unwrap()).await;

    let map = manager.map::<u32, u32>().unwrap();
    yields("sync/map.rs: set", async || map.set(1, 1).await.unwrap()).await;
    yields("sync/map.rs: insert", async || map.insert(1, 1).await.unwrap()).await;
    yields("sync/map.rs: get_or_insert", async || map.get_or_insert(1, 1).await.unwrap()).await;
    yields("sync/map.rs: update", async || map.update(1, |n| n).await.unwrap()).await;
    yields("sync/map.rs: compare_exchange", async || {
        map.compare_exchange(1, Some(&1), Some(&1)).await.unwrap().unwrap();
    })
    .await;
    yields("sync/map.rs: extend", async || map.extend([]).await.unwrap()).await;
    yields("sync/map.rs: contains_key", async || assert!(map.contains_key(&1).await.unwrap()))
        .await;
    yields("sync/map.rs: get", async || assert_eq!(map.get(&1).await.unwrap(), Some(1))).await;
    yields("sync/map.rs: entries", async || map.entries().await.unwrap()).await;
    yields("sync/map.rs: keys", async || map.keys().await.unwrap()).await;
    yields("sync/map.rs: watch", async || map.watch().await.unwrap()).await;
    yields("sync/map.rs: watch_key", async || map.watch_key(&1).await.unwrap()).await;
    let mut watch = map.watch().await.unwrap();
    (0..4 * CALLS as u32).for_each(|n| map.blocking_set(n, n).unwrap());
    yields("sync/map_watch.rs: changed", async || watch.changed().await.unwrap()).await;
    yields("sync/map_watch.rs: Stream for MapWatch", async || {
        watch.next().await.unwrap().unwrap();
    })
    .await;
    yields("sync/map.rs: remove", async || map.remove(&1).await.unwrap()).await;
    yields("sync/map.rs: clear", async || map.clear().await.unwrap()).await;

    let queue = manager.unbounded_queue::<u32>().unwrap();
    yields("sync/queue.rs: send", async || queue.send(1).await.unwrap()).await;
    yields("sync/queue.rs: send_timeout", async || queue.send_timeout(1, LONG).await.unwrap())
        .await;
    yields("sync/queue.rs: send_many", async || queue.send_many(vec![]).await.unwrap()).await;
    yields("sync/queue.rs: recv", async || queue.recv().await.unwrap().unwrap()).await;
    yields("sync/queue.rs: recv_timeout", async || {
        queue.recv_timeout(LONG).await.unwrap().unwrap();
    })
    .await;
    let mut sink = queue.sink();
    yields("sync/queue_flow.rs: Sink for QueueSink", async || sink.feed(1).await.unwrap()).await;
    yields("a sink's flush", async || sink.flush().await.unwrap()).await;
    yields("a sink's close", async || sink.close().await.unwrap()).await;
    let mut stream = queue.stream();
    yields("sync/queue_flow.rs: Stream for QueueStream", async || {
        queue.try_send(1).unwrap();
        stream.next().await.unwrap().unwrap();
    })
    .await;
    yields("sync/queue.rs: recv_many", async || {
        queue.try_send(1).unwrap();
        assert!(!queue.recv_many(2 * CALLS).await.unwrap().is_empty());
    })
    .await;
    while queue.try_recv().is_ok() {}
    yields("sync/queue.rs: join", async || queue.join().await.unwrap()).await;
    yields("sync/queue.rs: join_timeout", async || queue.join_timeout(LONG).await.unwrap()).await;
    let item = || queue.try_send(1).unwrap();
    yields("sync/queue.rs: lease", async || {
        item();
        queue.lease().await.unwrap().unwrap().blocking_ack().unwrap();
    })
    .await;
    yields("sync/queue.rs: lease_for", async || {
        item();
        queue.lease_for(LONG).await.unwrap().unwrap().blocking_ack().unwrap();
    })
    .await;
    yields("sync/queue.rs: lease_timeout", async || {
        item();
        queue.lease_timeout(LONG).await.unwrap().unwrap().blocking_ack().unwrap();
    })
    .await;
    yields("sync/delivery.rs: ack", async || {
        item();
        queue.try_lease().unwrap().unwrap().ack().await.unwrap();
    })
    .await;
    yields("sync/delivery.rs: extend", async || {
        item();
        let mut delivery = queue.try_lease().unwrap().unwrap();
        delivery.extend(LONG).await.unwrap();
        delivery.blocking_ack().unwrap();
    })
    .await;
    item();
    yields("sync/delivery.rs: reject", async || {
        queue.try_lease().unwrap().unwrap().reject().await.unwrap();
    })
    .await;

    let (here, there) = channel::<u8>().unwrap();
    yields("sync/channel.rs: send", async || {
        here.send(1).await.unwrap();
        there.try_recv().unwrap().unwrap();
    })
    .await;
    // Items that arrived together are received without a look at the socket.
    let arrive = async || {
        (0..=CALLS).for_each(|_| here.try_send(1).unwrap());
        soon(there.recv()).await.unwrap().unwrap();
    };
    yields_after("sync/channel.rs: recv", arrive, async || {
        there.recv().await.unwrap().unwrap();
    })
    .await;
    drop(here);
    soon(there.recv()).await.unwrap();
    yields("sync/channel.rs: recv_timeout", async || {
        assert!(there.recv_timeout(LONG).await.unwrap().is_none());
    })
    .await;

    // Of a closed manager every call is ready at once.
    let other = Manager::new().unwrap();
    let answers = other.register(Answers).unwrap();
    let condvar = other.condvar().unwrap();
    other.close();
    yields("sync/registered.rs: call", async || answers.call(1).await.unwrap_err()).await;
    yields("sync/registered.rs: call_timeout", async || {
        answers.call_timeout(1, LONG).await.unwrap_err();
    })
    .await;
    yields("sync/condvar.rs: wait", async || {
        let guard = lock.try_lock().unwrap().unwrap();
        condvar.wait(guard).await.unwrap_err()
    })
    .await;

    let pool = pool(1);
    soon(pool.ready()).await.unwrap();
    yields("pool/mod.rs: ready", async || pool.ready().await.unwrap()).await;
    let many = 6 * CALLS as u32;
    let done = |tasks: u32| {
        let before = pool.stats().done;
        let stats = pool.clone();
        until("all are done", move || stats.stats().done >= before + u64::from(tasks))
    };
    let all_done = done(2 * CALLS as u32);
    yields("pool/mod.rs: spawn_wait", async || pool.spawn_wait(|n: u32| n, 1).await).await;
    all_done.await;
    let all_done = done(2 * CALLS as u32);
    yields("pool/task_builder.rs: spawn_wait", async || pool.task(|n: u32| n).spawn_wait(1).await)
        .await;
    all_done.await;
    let mut handles: Vec<_> = (0..many).map(|n| pool.spawn(|n: u32| n, n)).collect();
    until("all are done", || handles.iter().all(|handle| handle.is_finished())).await;
    yields("pool/join.rs: started", async || assert!(handles[0].started().await.is_none())).await;
    yields("pool/join.rs: Future for JoinHandle", async || {
        handles.pop().unwrap().await.unwrap();
    })
    .await;
    let (all_done, source) = (done(many), 0..many);
    let mut results = pool.map(|n: u32| n, source.clone()).buffered(many as usize);
    // A poll pulls only so many items: with these the source has been pulled whole.
    for n in 0..many / 3 {
        assert_eq!(soon(results.next()).await.unwrap().unwrap(), n);
    }
    all_done.await;
    soon(pool.spawn(|| (), ())).await.unwrap(); // its answer is delivered after theirs
    yields("pool/results.rs: Stream for Results", async || {
        results.next().await.unwrap().unwrap();
    })
    .await;
    let all_done = done(many);
    let mut items = pool.map(|n: u32| n, source.clone()).buffered(many as usize).enumerate_items();
    for n in 0..many / 3 {
        assert_eq!(soon(items.next()).await.unwrap().1.unwrap(), n);
    }
    all_done.await;
    soon(pool.spawn(|| (), ())).await.unwrap();
    yields("pool/results.rs: Stream for ItemResults", async || {
        items.next().await.unwrap().1.unwrap();
    })
    .await;
    let all_done = done(many);
    let source = futures::stream::iter(source.map(Ok::<_, ()>));
    let mut results = pool.try_map_stream(|n: u32| n, source).buffered(many as usize);
    for n in 0..many / 3 {
        assert_eq!(soon(results.next()).await.unwrap().unwrap().unwrap(), n);
    }
    all_done.await;
    soon(pool.spawn(|| (), ())).await.unwrap();
    yields("pool/results.rs: Stream for TryResults", async || {
        results.next().await.unwrap().unwrap().unwrap();
    })
    .await;
    let counts = |to: u32, out: procpool::Yielder<u32>| {
        (0..to).for_each(|n| out.blocking_send(n).unwrap());
    };
    // All that it sends is there: it is less than it may send ahead.
    let sent = 2 * CALLS as u32;
    let mut stream = pool.stream(counts, sent);
    let task = stream.abort_handle();
    until("it has ended", move || task.is_finished()).await;
    yields("pool/task_stream.rs: Stream for TaskStream", async || {
        stream.next().await.unwrap().unwrap();
    })
    .await;
    let mut streams = Vec::new();
    for _ in 0..2 * CALLS {
        let stream = pool.stream(counts, 0);
        let task = stream.abort_handle();
        until("it has ended", move || task.is_finished()).await;
        streams.push(stream);
    }
    yields("pool/task_stream.rs: started", async || streams[0].started().await).await;
    yields("pool/task_stream.rs: finish", async || streams.pop().unwrap().finish().await.unwrap())
        .await;
    // In a worker, with as much credit as there are calls.
    let sends = async |out: procpool::Yielder<u32>| {
        let polls = Cell::new(0);
        let mut sends = std::pin::pin!(async {
            for n in 0..900 {
                out.send(n).await.unwrap();
            }
        });
        poll_fn(|cx| {
            polls.set(polls.get() + 1);
            sends.as_mut().poll(cx)
        })
        .await;
        polls.get()
    };
    let polls: u32 = soon(pool.stream(sends, ()).finish()).await.unwrap();
    assert!(polls > 1, "task/yielder.rs: send never yields");
    let (mut events, closing) = (pool.events(), pool.clone());
    soon(pool.shutdown()).await;
    yields("pool/mod.rs: recycle", async || pool.recycle().await.unwrap_err()).await;
    yields("pool/shutdown.rs: Future for Shutdown", async || closing.shutdown().await).await;
    while soon(events.next()).await.is_some() {}
    yields("pool/events.rs: Stream for Events", async || {
        assert!(events.next().await.is_none());
    })
    .await;

    let mut process = Process::spawn(|| 7, ()).unwrap();
    soon(process.wait()).await.unwrap();
    yields("single/mod.rs: started", async || process.started().await.unwrap()).await;
    yields("single/mod.rs: wait", async || process.wait().await.unwrap()).await;
    yields("single/mod.rs: Future for Process", async || {
        assert_eq!((&mut process).await.unwrap(), 7);
    })
    .await;
    let mut refused = Process::builder().stdout(Stdio::piped()).detach(|| (), ());
    yields("single/detached.rs: Future for DaemonStart", async || {
        (&mut refused).await.unwrap_err();
    })
    .await;
}

// Those that no loop in this process can have ready at once:
//
// * single/parent.rs: exited -- only in a child that has outlived its parent;
// * pool/items.rs: Stream for Items -- an iterator, which `Results` takes the budget for;
// * template/mod.rs: ready -- the supervisor thread answers;
// * task/current.rs: Future for Cancelled -- only in a task, see the last test;
// * single/streams.rs: AsyncWrite for ChildStdin, single/streams.rs: AsyncRead for $Name -- tokio's
//   own pipes, which take part.

thread_local! {
    /// Where the last panic of this thread was.
    static PLACE: Cell<Option<(String, u32)>> = const { Cell::new(None) };
}

#[tokio::test]
async fn a_blocking_call_in_an_async_context_panics_at_the_callers_line() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PLACE.set(info.location().map(|at| (at.file().to_owned(), at.line())));
            next(info);
        }));
    });
    // Each call stands on a line of its own.
    let mut last = line!();
    macro_rules! refused {
        ($($call:expr;)*) => {$(
            let call = AssertUnwindSafe(|| drop($call));
            assert!(std::panic::catch_unwind(call).is_err(), "{}", stringify!($call));
            let (file, line) = PLACE.take().unwrap();
            assert_eq!(file, file!(), "{}", stringify!($call));
            assert!(line > last, "{}: line {line}", stringify!($call));
            last = line;
        )*};
    }
    let pool = pool(1);
    let manager = pool.manager();
    let child = Process::spawn(|| (), ()).unwrap();
    let mutex = manager.mutex(1).unwrap();
    let lock = manager.rwlock(1).unwrap();
    let semaphore = manager.semaphore(1).unwrap();
    let (event, barrier) = (manager.event().unwrap(), manager.barrier(2).unwrap());
    let condvar = manager.condvar().unwrap();
    let queue = manager.queue::<u8>(1).unwrap();
    let (here, _there) = channel::<u8>().unwrap();
    refused! {
        pool.spawn(|| (), ()).blocking_join();
        pool.spawn(|| (), ()).blocking_join_timeout(FUSE);
        child.blocking_started();
        child.blocking_wait();
        child.blocking_wait_timeout(FUSE);
        mutex.blocking_lock();
        mutex.blocking_lock_timeout(FUSE);
        mutex.blocking_get();
        lock.blocking_read();
        lock.blocking_read_timeout(FUSE);
        lock.blocking_write();
        lock.blocking_write_timeout(FUSE);
        semaphore.blocking_acquire();
        semaphore.blocking_acquire_many(1);
        semaphore.blocking_acquire_timeout(FUSE);
        event.blocking_wait();
        event.blocking_wait_timeout(FUSE);
        barrier.blocking_wait();
        barrier.blocking_wait_timeout(FUSE);
        queue.blocking_send(1);
        queue.blocking_send_timeout(1, FUSE);
        queue.blocking_send_many(vec![1]);
        queue.blocking_recv();
        queue.blocking_recv_timeout(FUSE);
        queue.blocking_recv_many(1);
        queue.blocking_lease();
        queue.blocking_lease_for(FUSE);
        queue.blocking_join();
        here.blocking_send(1);
        here.blocking_recv();
        here.blocking_recv_timeout(FUSE);
    }
    let guard = mutex.lock().await.unwrap();
    refused! { condvar.blocking_wait(guard); }
    let guard = mutex.lock().await.unwrap();
    refused! { condvar.blocking_wait_while(guard, |_| true); }
    let guard = mutex.lock().await.unwrap();
    refused! { condvar.blocking_wait_timeout(guard, FUSE); }
    refused! { child.blocking_join(); }
    let detaching = Process::builder().detach(|| (), ());
    refused! { detaching.blocking_wait(); }
    assert!(last < line!());
}

#[tokio::test]
async fn a_loop_over_calls_in_a_worker_can_be_aborted_without_harm_to_others() {
    let pool = Pool::builder().workers(1).concurrency(2).build().unwrap();
    let (lock, event) = (pool.manager().mutex(0u64).unwrap(), pool.manager().event().unwrap());
    let neighbour = pool.spawn(
        |event: Event| async move {
            event.wait().await.unwrap();
            std::process::id()
        },
        &event,
    );
    let spinning = pool.spawn(
        |lock: Mutex<u64>| async move {
            loop {
                *lock.lock().await.unwrap() += 1;
            }
        },
        &lock,
    );
    while soon(lock.get()).await.unwrap() < 1000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let worker = spinning.worker_pid();
    spinning.abort();
    let _: Result<(), _> = soon(spinning).await;
    event.set().unwrap();
    assert_eq!(Some(soon(neighbour).await.unwrap()), worker, "the worker lives");
}

#[tokio::test]
async fn a_task_that_was_asked_to_stop_may_await_that_in_a_loop() {
    let pool = pool(1);
    let task = pool
        .task(|event: Event| async move {
            event.set().unwrap();
            procpool::cancelled().await;
            yields("task/current.rs: Future for Cancelled", async || procpool::cancelled().await)
                .await;
            7
        })
        .grace(Duration::from_secs(600));
    let event = pool.manager().event().unwrap();
    let task = task.spawn(&event);
    soon(event.wait()).await.unwrap();
    task.abort();
    assert_eq!(soon(task).await.unwrap(), 7);
}

/// Blocks the thread, as executors other than tokio's do.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn a_thread_that_blocks_within_a_task_needs_no_budget() {
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let manager = Manager::new().unwrap();
            let (lock, event) = (manager.mutex(0u32).unwrap(), manager.event().unwrap());
            for _ in 0..2 * CALLS {
                *block_on(lock.lock()).unwrap() += 1;
                event.set().unwrap(); // waits for the manager's answer on this thread
                block_on(event.wait()).unwrap();
            }
        });
        done.send(()).unwrap();
    });
    finished.recv_timeout(FUSE).expect("a thread waits for a runtime that it keeps from running");
}

// ---- limits

/// The clock of a paused runtime jumps to the next timer as soon as nothing else is to be done. What
/// is waited for comes from other threads and processes, whose time is real.
#[test]
fn limits_count_real_time_in_a_runtime_whose_clock_is_paused() {
    const LONG: Duration = Duration::from_secs(600);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let pool = pool(1);
        let manager = pool.manager();
        let (lock, rwlock) = (manager.mutex(0u32).unwrap(), manager.rwlock(0u32).unwrap());
        let (guard, writer) =
            (lock.clone().lock_owned().await.unwrap(), rwlock.write().await.unwrap());
        let (semaphore, event) = (manager.semaphore(0).unwrap(), manager.event().unwrap());
        let barrier = manager.barrier(2).unwrap();
        let (queue, full) = (manager.queue(4).unwrap(), manager.queue(1).unwrap());
        full.send(0u8).await.unwrap();
        let (here, there) = channel::<u8>().unwrap();
        let task = pool.task(|event: Event| event.blocking_wait().is_ok()).timeout(LONG);
        let task = task.spawn(&event);
        let releases = std::thread::spawn({
            let (semaphore, event, barrier) = (semaphore.clone(), event.clone(), barrier.clone());
            let (queue, full) = (queue.clone(), full.clone());
            move || {
                std::thread::sleep(Duration::from_millis(100)); // all of them wait as a rule
                drop((guard, writer));
                semaphore.add_permits(3).unwrap();
                event.set().unwrap();
                barrier.blocking_wait().unwrap();
                queue.blocking_send_many(vec![1u8, 2]).unwrap();
                full.blocking_recv().unwrap();
                here.blocking_send(1).unwrap();
                here // the channel stays open
            }
        });
        let (a, b, c, d, e) = tokio::join!(
            lock.lock_timeout(LONG),
            rwlock.read_timeout(LONG),
            semaphore.acquire_timeout(LONG),
            semaphore.acquire_many_timeout(2, LONG),
            event.wait_timeout(LONG),
        );
        assert!(a.is_ok() && b.is_ok() && c.is_ok() && d.is_ok() && e.is_ok());
        drop((a, b));
        let (a, b, c, d, e) = tokio::join!(
            rwlock.write_timeout(LONG),
            barrier.wait_timeout(LONG),
            queue.recv_timeout(LONG),
            queue.lease_timeout(LONG),
            full.send_timeout(1, LONG),
        );
        assert!(a.is_ok() && b.is_ok() && e.is_ok());
        assert!(c.unwrap().is_some());
        d.unwrap().unwrap().ack().await.unwrap();
        queue.join_timeout(LONG).await.unwrap();
        assert_eq!(there.recv_timeout(LONG).await.unwrap(), Some(1));
        assert!(task.await.unwrap());
        let here = releases.join().unwrap();
        assert!(there.recv_timeout(Duration::ZERO).await.unwrap_err().is_timeout());
        here.try_send(2).unwrap();
        assert_eq!(there.recv_timeout(Duration::ZERO).await.unwrap(), Some(2));
    });
}
