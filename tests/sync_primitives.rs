//! Semaphores, events, barriers, read-write locks and condition variables across processes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/processes.rs"]
mod processes;

use futures::FutureExt;
use nix::sys::signal::Signal;
use processes::{signal, soon, until};
use procpool::{
    Barrier, Condvar, ErrorKind, Event, List, Manager, Mutex, Pool, RwLock, Semaphore, Value,
};
use std::time::{Duration, Instant};

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
