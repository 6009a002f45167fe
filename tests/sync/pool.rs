//! Handles of shared objects as arguments and results of tasks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{soon, until};
use futures::StreamExt;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use procpool::sync::{Mutex, Queue, Value};
use procpool::{Events, Manager, Pool, Process, SharedObject, TaskErrorKind, WorkerEvent};
use std::time::{Duration, Instant};

fn add(total: Mutex<u64>, times: u64) -> u64 {
    for _ in 0..times {
        *total.blocking_lock().unwrap() += 1;
    }
    times
}

async fn add_async(total: Mutex<u64>, times: u64) -> u64 {
    for _ in 0..times {
        *total.lock().await.unwrap() += 1;
    }
    times
}

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

#[tokio::test]
async fn sync_and_async_tasks_of_many_workers_share_a_lock_and_the_sum_is_exact() {
    let pool = pool(4);
    let total = pool.manager().mutex(0u64).unwrap();
    let sync = pool.map(add, (0..20).map(|_| (total.clone(), 50)));
    let sync: Vec<_> = soon(sync.collect()).await;
    assert!(sync.into_iter().all(|done| done.unwrap() == 50));
    let calls: Vec<_> = (0..20).map(|_| pool.spawn(add_async, (total.clone(), 50))).collect();
    for call in calls {
        soon(call).await.unwrap();
    }
    *total.lock().await.unwrap() += 1;
    assert_eq!(total.get().await.unwrap(), 2001);
}

#[tokio::test]
async fn handles_come_back_in_results_and_all_are_counted() {
    let pool = pool(2);
    let manager = pool.manager();
    let total = manager.mutex(5u64).unwrap();
    let pass = |total: Mutex<u64>, n: u64| {
        *total.blocking_lock().unwrap() += n;
        (total.clone(), vec![Some(total)])
    };
    for _ in 0..10 {
        let (back, more) = soon(pool.spawn(pass, (total.clone(), 1))).await.unwrap();
        assert_eq!(more.len(), 1);
        drop((back, more));
    }
    async fn pass_async(total: Mutex<u64>) -> Result<Mutex<u64>, String> {
        tokio::task::yield_now().await;
        Ok(total)
    }
    let back = soon(pool.spawn(pass_async, &total)).await.unwrap().unwrap();
    assert_eq!(back.get().await.unwrap(), 15);
    // One that nobody takes, and one whose task is aborted before it begins.
    drop(pool.spawn(pass_async, &total));
    let value = manager.value(0u64).unwrap();
    assert_eq!(manager.objects(), 2);
    drop((total, back, value));
    until("all references are gone", || manager.objects() == 0).await;
}

#[tokio::test]
async fn a_worker_that_is_killed_gives_back_what_it_holds_and_has() {
    let pool = pool(1);
    let manager = pool.manager();
    let lock = manager.mutex(1u64).unwrap();
    // A hundred handles, and one that is held.
    let handles: Vec<_> = (0..100).map(|n| manager.value(n).unwrap()).collect();
    let holds = |lock: Mutex<u64>, handles: Vec<Value<u64>>, ready: Value<u32>| -> usize {
        let mut guard = lock.blocking_lock().unwrap();
        *guard = 99;
        ready.store(std::process::id()).unwrap();
        while !handles.is_empty() {
            std::thread::park();
        }
        handles.len()
    };
    let ready = manager.value(0u32).unwrap();
    let task = pool.spawn(holds, (lock.clone(), handles, ready.clone()));
    until("it holds", || ready.load().unwrap() != 0).await;
    assert_eq!(manager.objects(), 102);
    assert!(lock.try_lock().unwrap().is_none());
    support::signal(ready.load().unwrap(), Signal::SIGKILL);
    let guard = soon(lock.lock()).await.unwrap();
    assert_eq!((*guard, guard.recovered()), (1, true));
    drop(guard);
    assert!(soon(task).await.unwrap_err().is_worker_died());
    until("the hundred are gone", || manager.objects() == 2).await;
    assert_eq!(soon(pool.spawn(add, (lock, 3))).await.unwrap(), 3);
}

#[tokio::test]
async fn an_async_task_that_is_aborted_rolls_back_and_its_waiting_ends() {
    let pool = pool(1);
    let lock = pool.manager().mutex(1u64).unwrap();
    let begun = pool.manager().value(0u32).unwrap();
    async fn holds(lock: Mutex<u64>, begun: Value<u32>) {
        let mut guard = lock.lock().await.unwrap();
        *guard = 99;
        begun.fetch_add(1).unwrap();
        std::future::pending().await
    }
    let holder = pool.spawn(holds, (lock.clone(), begun.clone()));
    until("it holds", || begun.load().unwrap() == 1).await;
    let waiter = pool.spawn(holds, (lock.clone(), begun.clone()));
    tokio::time::sleep(Duration::from_millis(20)).await; // as a rule it waits by now, and if not, it is as good
    waiter.abort();
    assert!(soon(waiter).await.unwrap_err().is_cancelled());
    holder.abort();
    assert!(soon(holder).await.unwrap_err().is_cancelled());
    let guard = soon(lock.lock()).await.unwrap();
    assert_eq!((*guard, guard.recovered()), (1, true));
}

#[tokio::test]
async fn a_task_that_holds_a_lock_over_its_time_limit_rolls_back() {
    let pool = pool(1);
    let lock = pool.manager().mutex(1u64).unwrap();
    async fn holds(lock: Mutex<u64>) {
        *lock.lock().await.unwrap() = 2; // committed
        let mut guard = lock.lock().await.unwrap();
        *guard = 99;
        std::future::pending().await
    }
    fn blocks(lock: Mutex<u64>) {
        *lock.blocking_lock().unwrap() = 2;
        let mut guard = lock.blocking_lock().unwrap();
        *guard = 99;
        loop {
            std::thread::park();
        }
    }
    const LIMIT: Duration = Duration::from_millis(100);
    for sync in [false, true] {
        *lock.lock().await.unwrap() = 1;
        let task = if sync {
            pool.task(blocks).timeout(LIMIT).spawn(lock.clone())
        } else {
            pool.task(holds).timeout(LIMIT).spawn(lock.clone())
        };
        assert!(soon(task).await.unwrap_err().is_timeout());
        let mut guard = soon(lock.lock()).await.unwrap();
        assert_eq!((*guard, guard.recovered()), (2, true), "sync: {sync}");
        guard.clear_recovered();
    }
}

/// The issue's own bound, for the quickest of some: from a moment *before* the process ends.
#[tokio::test]
async fn a_holder_that_ends_however_gives_the_next_the_lock_within_ten_milliseconds() {
    fn holds(lock: Mutex<u64>, held: Value<u32>, exit: Value<bool>) {
        let mut guard = lock.blocking_lock().unwrap();
        *guard = 99;
        held.store(std::process::id()).unwrap();
        while !exit.load().unwrap() {
            std::thread::yield_now();
        }
        std::process::exit(0);
    }
    let pool = pool(1);
    let manager = pool.manager();
    let (lock, held, exit) =
        (manager.mutex(1u64).unwrap(), manager.value(0u32).unwrap(), manager.value(false).unwrap());
    for by_exit in [false, true] {
        let mut all = Vec::new();
        for _ in 0..20 {
            let task = pool.spawn(holds, (lock.clone(), held.clone(), exit.clone()));
            until("it holds", || held.load().unwrap() != 0).await;
            let waiting = tokio::spawn({
                let lock = lock.clone();
                async move { lock.lock_owned().await.map(|guard| (guard, Instant::now())) }
            });
            tokio::task::yield_now().await;
            let begin = Instant::now();
            if by_exit {
                exit.store(true).unwrap();
            } else {
                support::signal(held.load().unwrap(), Signal::SIGKILL);
            }
            let (mut guard, at) = soon(waiting).await.unwrap().unwrap();
            assert_eq!((*guard, guard.recovered()), (1, true), "by exit: {by_exit}");
            guard.clear_recovered();
            drop(guard);
            all.push(at - begin);
            assert!(soon(task).await.unwrap_err().is_worker_died());
            held.store(0).unwrap();
            exit.store(false).unwrap();
        }
        all.sort();
        eprintln!("by exit: {by_exit}: least {:?}, median {:?}", all[0], all[10]);
        assert!(all[0] < Duration::from_millis(10), "by exit: {by_exit}: {all:?}");
    }
}

#[tokio::test]
async fn two_pools_share_a_manager_and_it_outlives_either() {
    let manager = Manager::new().unwrap();
    let build = || Pool::builder().workers(1).manager(&manager).build().unwrap();
    let (one, other) = (build(), build());
    let total = one.manager().mutex(0u64).unwrap();
    soon(one.spawn(add, (total.clone(), 10))).await.unwrap();
    drop(one);
    soon(other.spawn(add, (total.clone(), 10))).await.unwrap();
    // And any pool takes a handle of any manager.
    let stranger = pool(1);
    soon(stranger.spawn(add, (total.clone(), 10))).await.unwrap();
    drop((other, stranger, manager));
    assert_eq!(total.get().await.unwrap(), 30);
}

/// Says that it waits, and what came of it.
fn waits_for_an_item(queue: Queue<u64>, waits: Queue<u8>) -> Result<Option<u64>, String> {
    waits.blocking_send(1).unwrap();
    queue.blocking_recv().map_err(|error| format!("{:?}", error.kind()))
}

async fn waits_async(queue: Queue<u64>, waits: Queue<u8>) -> Result<Option<u64>, String> {
    waits.send(1).await.unwrap();
    queue.recv().await.map_err(|error| format!("{:?}", error.kind()))
}

#[tokio::test]
async fn calls_that_wait_for_an_object_of_an_ended_pool_end_and_their_own_pools_as_well() {
    let (caller, owner) = (pool(2), pool(1));
    let queue = owner.manager().queue::<u64>(1).unwrap();
    let waits = caller.manager().queue::<u8>(8).unwrap();
    let args = (queue.clone(), waits.clone());
    let process = Process::spawn(waits_for_an_item, &args).unwrap();
    let calls = [caller.spawn(waits_for_an_item, &args), caller.spawn(waits_async, &args)];
    for _ in 0..3 {
        soon(waits.recv()).await.unwrap();
    }
    soon(owner.shutdown()).await;
    drop((queue, args, owner));
    let closed = Err("ManagerClosed".to_owned());
    for call in calls {
        assert_eq!(soon(call).await.unwrap(), closed);
    }
    assert_eq!(soon(process).await.unwrap(), closed);
    soon(caller.shutdown()).await;
}

#[tokio::test]
async fn an_object_of_an_ended_pool_goes_on_while_the_application_has_a_handle() {
    let (caller, owner) = (pool(1), pool(1));
    let queue = owner.manager().queue::<u64>(1).unwrap();
    let waits = caller.manager().queue::<u8>(1).unwrap();
    let call = caller.spawn(waits_for_an_item, (queue.clone(), waits.clone()));
    soon(waits.recv()).await.unwrap();
    drop(owner);
    queue.send(7).await.unwrap();
    assert_eq!(soon(call).await.unwrap(), Ok(Some(7)));
    // A handle in a result is one of the application's.
    let back = soon(caller.spawn(|queue: Queue<u64>| queue, &queue)).await.unwrap();
    drop(queue);
    back.send(8).await.unwrap();
    assert_eq!(back.recv().await.unwrap(), Some(8));
    // By itself a manager goes on as long as a call has something of it.
    let queue = Manager::new().unwrap().queue::<u64>(1).unwrap();
    let back = soon(caller.spawn(|queue: Queue<u64>| queue, queue)).await.unwrap();
    back.send(9).await.unwrap();
    assert_eq!(back.recv().await.unwrap(), Some(9));
}

#[tokio::test]
async fn workers_pass_handles_on_to_workers_of_their_own() {
    let pool = pool(2);
    let total = pool.manager().mutex(0u64).unwrap();
    async fn outer(total: Mutex<u64>) -> Mutex<u64> {
        let pool = Pool::builder().workers(2).build().unwrap();
        let inner = |total: Mutex<u64>| {
            *total.blocking_lock().unwrap() += 1;
            total
        };
        let calls: Vec<_> = (0..10).map(|_| pool.spawn(inner, &total)).collect();
        let mut back = None;
        for call in calls {
            back = Some(call.await.unwrap());
        }
        let back = back.unwrap();
        *back.lock().await.unwrap() += 100;
        back
    }
    let back = soon(pool.spawn(outer, &total)).await.unwrap();
    assert_eq!(back.get().await.unwrap(), 110);
    drop(total);
    assert_eq!(*back.lock().await.unwrap(), 110);
    drop(back);
    until("all references are gone", || pool.manager().objects() == 0).await;
}

#[tokio::test]
async fn a_manager_of_a_worker_stays_in_it() {
    let pool = pool(1);
    let own = |n: u64| {
        let manager = Manager::new().unwrap();
        let total = manager.mutex(n).unwrap();
        *total.blocking_lock().unwrap() += 1;
        total.blocking_get().unwrap()
    };
    assert_eq!(soon(pool.spawn(own, 1)).await.unwrap(), 2);
    let sends_it_home = || Manager::new().unwrap().mutex(1u64).unwrap();
    let error = soon(pool.spawn(sends_it_home, ())).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ResultEncode, "{error}");
}

#[tokio::test]
async fn after_the_manager_is_closed_every_worker_says_so() {
    let pool = pool(2);
    let total = pool.manager().mutex(0u64).unwrap();
    soon(pool.spawn(add, (total.clone(), 1))).await.unwrap();
    async fn waits(total: Mutex<u64>, begun: Value<u32>) -> String {
        begun.fetch_add(1).unwrap();
        total.lock().await.unwrap_err().to_string()
    }
    let begun = pool.manager().value(0u32).unwrap();
    let guard = total.lock().await.unwrap();
    let waiting: Vec<_> =
        (0..4).map(|_| pool.spawn(waits, (total.clone(), begun.clone()))).collect();
    until("they have begun", || begun.load().unwrap() == 4).await;
    pool.manager().close();
    for waiting in waiting {
        assert!(soon(waiting).await.unwrap().contains("closed"));
    }
    drop(guard);
    assert!(total.lock().await.unwrap_err().is_manager_closed());
    let manager = Manager::new().unwrap();
    let again = manager.mutex(0u64).unwrap();
    soon(pool.spawn(add, (again.clone(), 2))).await.unwrap();
    assert_eq!(again.get().await.unwrap(), 2);
}

#[tokio::test]
async fn a_process_of_its_own_gets_handles_and_gives_them_back() {
    let manager = Manager::new().unwrap();
    let total = manager.mutex(0u64).unwrap();
    let pass = |total: Mutex<u64>| {
        *total.blocking_lock().unwrap() += 5;
        total
    };
    let child = Process::spawn(pass, &total).unwrap();
    let back = soon(child).await.unwrap();
    drop(total);
    assert_eq!(back.get().await.unwrap(), 5);
    // One that is killed while it holds the lock.
    let holds = |total: Mutex<u64>, begun: Value<u32>| -> () {
        let mut guard = total.blocking_lock().unwrap();
        *guard = 99;
        begun.store(1).unwrap();
        loop {
            std::thread::park();
        }
    };
    let begun = manager.value(0u32).unwrap();
    let child = Process::spawn(holds, (back.clone(), begun.clone())).unwrap();
    until("it holds", || begun.load().unwrap() == 1).await;
    child.kill().unwrap();
    let guard = soon(back.lock()).await.unwrap();
    assert_eq!((*guard, guard.recovered()), (5, true));
    drop(guard);
    drop((back, begun, child));
    until("all references are gone", || manager.objects() == 0).await;
}

/// What a start function keeps for the tasks of its worker.
struct Kept {
    total: Mutex<u64>,
    starts: Value<u32>,
}

async fn shared_by_start_and_end(start_is_async: bool) {
    fn keep(total: Mutex<u64>, starts: Value<u32>) -> Result<Kept, procpool::sync::Error> {
        *total.blocking_lock()? += 100;
        starts.fetch_add(1)?;
        Ok(Kept { total, starts })
    }
    async fn keep_async(
        total: Mutex<u64>,
        starts: Value<u32>,
    ) -> Result<Kept, procpool::sync::Error> {
        *total.lock().await? += 100;
        starts.fetch_add(1)?;
        Ok(Kept { total, starts })
    }
    let use_it = || -> u32 {
        let kept = procpool::state::<Kept>().unwrap();
        *kept.total.blocking_lock().unwrap() += 1;
        kept.starts.load().unwrap()
    };
    let at_the_end = |total: Mutex<u64>| *total.blocking_lock().unwrap() += 1000;

    let manager = Manager::new().unwrap();
    let (total, starts) = (manager.mutex(0u64).unwrap(), manager.value(0u32).unwrap());
    let builder = Pool::builder().workers(2).on_worker_exit(at_the_end, &total);
    let args = (total.clone(), starts.clone());
    let pool = match start_is_async {
        false => builder.on_worker_start(keep, args),
        true => builder.on_worker_start(keep_async, args),
    };
    let pool = pool.build().unwrap();
    soon(pool.ready()).await.unwrap();
    assert_eq!((total.get().await.unwrap(), starts.load().unwrap()), (200, 2));
    assert_eq!(soon(pool.spawn(use_it, ())).await.unwrap(), 2);
    // Those that take their place get references as well.
    soon(pool.recycle()).await.unwrap();
    assert_eq!(starts.load().unwrap(), 4);
    soon(pool.shutdown()).await;
    assert_eq!(total.get().await.unwrap(), 4 * 100 + 1 + 4 * 1000);
    drop((pool, total, starts));
    until("all references are gone", || manager.objects() == 0).await;
}

#[tokio::test]
async fn a_start_function_and_an_end_function_are_given_handles() {
    shared_by_start_and_end(false).await;
}

#[tokio::test]
async fn an_async_start_function_is_given_handles() {
    shared_by_start_and_end(true).await;
}

#[tokio::test]
async fn a_worker_that_dies_in_its_start_gives_back_what_it_held_there() {
    let once = |total: Mutex<u64>, tries: Value<u32>| -> Result<(), procpool::sync::Error> {
        let mut guard = total.blocking_lock()?;
        *guard += 1;
        if tries.fetch_add(1)? == 0 {
            std::process::abort();
        }
        Ok(())
    };
    let manager = Manager::new().unwrap();
    let (total, tries) = (manager.mutex(0u64).unwrap(), manager.value(0u32).unwrap());
    let builder = Pool::builder().workers(1).on_worker_start(once, (total.clone(), tries.clone()));
    let pool = builder.build().unwrap();
    assert_eq!(soon(pool.spawn(|| 7, ())).await.unwrap(), 7);
    assert_eq!((total.get().await.unwrap(), tries.load().unwrap()), (1, 2));
}

#[tokio::test]
async fn a_start_function_whose_manager_is_closed_says_so() {
    let count = |starts: Mutex<u32>| -> Result<(), procpool::sync::Error> {
        *starts.blocking_lock()? += 1;
        Ok(())
    };
    let manager = Manager::new().unwrap();
    let starts = manager.mutex(0u32).unwrap();
    let pool = Pool::builder().workers(1).on_worker_start(count, &starts).build().unwrap();
    manager.close();
    let error = soon(pool.spawn(|| (), ())).await.unwrap_err();
    assert!(error.is_init_failed(), "{error}");
    assert!(error.to_string().contains("manager"), "{error}");
}

/// As another executor does it: blocks the thread until the future is ready.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = std::pin::pin!(future);
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut cx = std::task::Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

/// The worker's runtime, which would read what comes for it, does not turn meanwhile.
#[tokio::test]
async fn an_async_task_may_block_its_runtime_with_another_executor_that_waits_for_objects() {
    async fn waits_by_blocking(total: Mutex<u64>, items: Queue<u64>, reached: Value<u64>) -> u64 {
        let mut sum = 0;
        for _ in 0..20 {
            *block_on(total.lock()).unwrap() += 1;
            sum += block_on(items.recv()).unwrap().unwrap();
            reached.fetch_add(1).unwrap();
            *total.lock().await.unwrap() += 1;
            sum += items.recv().await.unwrap().unwrap();
            reached.fetch_add(1).unwrap();
        }
        sum
    }
    let pool = pool(1);
    let manager = pool.manager();
    let (total, items, reached) =
        (manager.mutex(0).unwrap(), manager.queue(8).unwrap(), manager.value(0u64).unwrap());
    let task = pool.spawn(waits_by_blocking, &(total.clone(), items.clone(), reached.clone()));
    for n in 0..40 {
        until("the task is so far", || reached.load().unwrap() == n).await;
        let guard = total.lock().await.unwrap();
        items.send(n).await.unwrap();
        drop(guard);
    }
    assert_eq!(soon(task).await.unwrap(), (0..40).sum());
    assert_eq!(total.get().await.unwrap(), 40);
}

/// A manager does not listen to one who does not read: what is sent has no room before what has
/// come is read, and the runtime does not turn.
#[tokio::test]
async fn a_task_that_blocks_its_runtime_may_send_and_receive_more_at_once_than_there_is_room_for() {
    const LARGE: usize = 12 << 20;
    async fn exchanges(items: Queue<String>, results: Queue<String>) -> usize {
        let received = futures::future::join_all((0..3).map(|_| items.recv()));
        let (received, sent) =
            block_on(futures::future::join(received, results.send("1".repeat(LARGE))));
        sent.unwrap();
        received.into_iter().map(|item| item.unwrap().unwrap().len()).sum()
    }
    let pool = pool(1);
    let manager = pool.manager();
    let (items, results) = (manager.queue(8).unwrap(), manager.queue(8).unwrap());
    for _ in 0..3 {
        items.send("0".repeat(LARGE)).await.unwrap();
    }
    assert_eq!(soon(pool.spawn(exchanges, &(items, results.clone()))).await.unwrap(), 3 * LARGE);
    assert_eq!(results.recv().await.unwrap().unwrap().len(), LARGE);
}

/// What a pool's workers wait for, all of them, as the next event that tells it says. `None`: the
/// pool has ended, and none told it.
async fn blocked(events: &mut Events) -> Option<Vec<SharedObject>> {
    while let Some(event) = soon(events.next()).await {
        if let WorkerEvent::Blocked { objects, .. } = event {
            return Some(objects);
        }
    }
    None
}

#[tokio::test]
async fn a_pool_whose_workers_all_wait_while_a_task_is_queued_tells_for_what() {
    fn receive(queue: Queue<u64>) -> u64 {
        queue.blocking_recv().unwrap().unwrap()
    }
    let pool = pool(3);
    let queue = pool.manager().queue_named::<u64>("orders", 8).unwrap();
    let total = pool.manager().mutex(0u64).unwrap();
    let mut events = pool.events();
    let guard = total.lock().await.unwrap();
    let receiving = [(); 2].map(|()| pool.spawn(receive, queue.clone()));
    let locking = pool.spawn(add, (total.clone(), 1));
    let queued = pool.spawn(add, (total.clone(), 1));
    let objects = blocked(&mut events).await.unwrap();
    let objects: Vec<_> =
        objects.iter().map(|object| (object.kind, object.name.as_deref())).collect();
    assert_eq!(objects, [("Queue", Some("orders")), ("Mutex", None)]);
    drop(guard);
    assert_eq!(soon(locking).await.unwrap(), 1);
    assert_eq!(soon(queued).await.unwrap(), 1);
    for n in 0..2 {
        soon(queue.send(n)).await.unwrap();
    }
    for received in receiving {
        soon(received).await.unwrap();
    }
}

#[tokio::test]
async fn a_pool_whose_worker_is_slow_does_not_tell_that_it_waits() {
    /// For more than two looks; meanwhile another thread of the worker waits.
    fn be_slow(queue: Queue<u64>) {
        std::thread::spawn(move || queue.blocking_recv());
        std::thread::sleep(Duration::from_millis(2500));
    }
    let pool = pool(1);
    let queue = pool.manager().queue::<u64>(8).unwrap();
    let mut events = pool.events();
    let slow = pool.spawn(be_slow, queue.clone());
    let queued = pool.spawn(support::pid, ());
    soon(slow).await.unwrap();
    soon(queued).await.unwrap();
    soon(pool.shutdown()).await;
    assert_eq!(blocked(&mut events).await, None);
}

/// Takes all descriptors that this process may have, or gives them back.
fn hold_all_descriptors(hold: bool) {
    static HELD: std::sync::Mutex<Vec<std::fs::File>> = std::sync::Mutex::new(Vec::new());
    let mut held = HELD.lock().unwrap();
    held.clear();
    if hold {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64.min(most), most).unwrap();
        held.extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()));
    }
}

fn load(value: Value<u64>) -> u64 {
    value.load().unwrap()
}

async fn load_async(value: Value<u64>) -> u64 {
    value.load().unwrap()
}

/// Tasks that name an object of a manager whose socket the worker cannot take in; then it can. Each
/// value is of another manager.
async fn run_out_of_descriptors(values: Vec<Value<u64>>) {
    let pool = pool(1);
    soon(pool.spawn(async || {}, ())).await.unwrap(); // it has a runtime from here on
    for value in values {
        soon(pool.spawn(hold_all_descriptors, true)).await.unwrap();
        for _ in 0..3 {
            let (one, two) = (pool.spawn(load, value.clone()), pool.spawn(load_async, &value));
            for call in [one, two] {
                let error = soon(call).await.unwrap_err();
                assert_eq!(error.kind(), TaskErrorKind::ArgumentDecode, "{error}");
                assert!(error.to_string().contains("descriptor"), "{error}");
            }
        }
        soon(pool.spawn(hold_all_descriptors, false)).await.unwrap();
        for _ in 0..3 {
            let (one, two) = (pool.spawn(load, value.clone()), pool.spawn(load_async, &value));
            assert_eq!(soon(one).await.unwrap(), 7);
            assert_eq!(soon(two).await.unwrap(), 7);
        }
    }
    soon(pool.shutdown()).await;
}

#[tokio::test]
async fn tasks_that_name_objects_work_again_once_their_worker_has_descriptors_again() {
    let values = || {
        let managers = [(); 2].map(|()| Manager::new().unwrap());
        let values: Vec<_> = managers.iter().map(|manager| manager.value(7u64).unwrap()).collect();
        (managers, values)
    };
    let (_managers, ours) = values();
    run_out_of_descriptors(ours).await;
    // In a worker's own pool, whose workers the worker introduces to the managers.
    let (_managers, ours) = values();
    let outer = pool(1);
    soon(outer.spawn(run_out_of_descriptors, ours)).await.unwrap();
}
