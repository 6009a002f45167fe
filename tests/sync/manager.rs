//! The manager, the lock and atomics across processes: what is left behind, stopped holders, and
//! processes that are killed at any instant.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{
    Dice, Proc, children, descriptors, in_own_process, in_own_process_of_nobody,
    in_own_process_with_a_full_dev_shm, lines, note, own_dir, own_process, pid, soon, until,
    wait_until,
};
use futures::StreamExt;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use procpool::sync::ErrorKind;
use procpool::sync::{
    Actor, ActorRef, Array, Barrier, Channel, Condvar, Event, List, Map, Mutex, Queue, RwLock,
    Semaphore, Value,
};
use procpool::{Manager, Pool, Process};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

/// Reads, pauses, writes: right only if nobody comes between.
fn add_slowly(total: Mutex<u64>, inside: Value<u32>, times: u64) -> bool {
    let mut alone = true;
    for n in 0..times {
        let mut guard = total.blocking_lock().unwrap();
        alone &= inside.fetch_add(1).unwrap() == 0;
        let before = *guard;
        if n % 64 == 0 {
            std::thread::yield_now();
        }
        *guard = before + 1;
        inside.fetch_sub(1).unwrap();
    }
    alone
}

#[tokio::test]
async fn eight_processes_add_by_read_pause_write_and_nothing_is_lost() {
    let pool = pool(8);
    let total = pool.manager().mutex(0u64).unwrap();
    let inside = pool.manager().value(0u32).unwrap();
    let adding = pool.map(add_slowly, (0..8).map(|_| (total.clone(), inside.clone(), 500)));
    let alone: Vec<_> = soon(adding.collect()).await;
    assert!(alone.into_iter().all(|alone| alone.unwrap()));
    assert_eq!(total.get().await.unwrap(), 4000);
}

#[tokio::test]
async fn twenty_waiters_in_five_processes_get_in_past_one_that_locks_again_and_again() {
    let pool = Pool::builder().workers(6).concurrency(4).build().unwrap();
    let manager = pool.manager();
    let (lock, entered, begun) =
        (manager.mutex(0u64).unwrap(), manager.value(0u32).unwrap(), manager.value(false).unwrap());
    // It never pauses, and ends only when all others were in.
    let hogs = |lock: Mutex<u64>, entered: Value<u32>, begun: Value<bool>| {
        while entered.load().unwrap() < 20 {
            *lock.blocking_lock().unwrap() += 1;
            begun.store(true).unwrap();
        }
    };
    async fn enters(
        lock: Mutex<u64>,
        entered: Value<u32>,
        pids: Mutex<BTreeSet<u32>>,
        all_wait: Barrier,
    ) {
        pids.lock().await.unwrap().insert(pid());
        all_wait.wait().await.unwrap();
        let guard = lock.lock().await.unwrap();
        entered.fetch_add(1).unwrap();
        drop(guard);
    }
    let (pids, all_wait) = (manager.mutex(BTreeSet::new()).unwrap(), manager.barrier(20).unwrap());
    let hogging = pool.spawn(hogs, (lock.clone(), entered.clone(), begun.clone()));
    until("it locks", || begun.load().unwrap()).await;
    let waiters: Vec<_> = (0..20)
        .map(|_| {
            pool.spawn(enters, (lock.clone(), entered.clone(), pids.clone(), all_wait.clone()))
        })
        .collect();
    for waiter in waiters {
        soon(waiter).await.unwrap();
    }
    soon(hogging).await.unwrap();
    assert_eq!(pids.get().await.unwrap().len(), 5);
}

#[tokio::test]
async fn while_a_holder_is_stopped_nobody_else_enters() {
    let pool = pool(3);
    let manager = pool.manager();
    let total = manager.mutex(0u64).unwrap();
    let (inside, holder) = (manager.value(0u32).unwrap(), manager.value(0u32).unwrap());
    let go_on = manager.event().unwrap();
    let holds = |total: Mutex<u64>, inside: Value<u32>, holder: Value<u32>, go_on: Event| {
        let mut guard = total.blocking_lock().unwrap();
        inside.fetch_add(1).unwrap();
        holder.store(std::process::id()).unwrap();
        go_on.blocking_wait().unwrap();
        *guard += 1;
        inside.fetch_sub(1).unwrap();
    };
    let held = pool.spawn(holds, (total.clone(), inside.clone(), holder.clone(), go_on.clone()));
    until("it holds", || holder.load().unwrap() != 0).await;
    let stopped = holder.load().unwrap();
    support::stop(stopped);
    let adding: Vec<_> =
        (0..2).map(|_| pool.spawn(add_slowly, (total.clone(), inside.clone(), 100))).collect();
    // A whole second, as the scenario has it: nobody gets in.
    assert!(total.lock_timeout(Duration::from_secs(1)).await.unwrap_err().is_timeout());
    assert_eq!((inside.load().unwrap(), total.get().await.unwrap()), (1, 0));
    support::signal(stopped, Signal::SIGCONT);
    go_on.set().unwrap();
    soon(held).await.unwrap();
    for adding in adding {
        assert!(soon(adding).await.unwrap());
    }
    assert_eq!(total.get().await.unwrap(), 201);
}

#[tokio::test]
async fn a_handle_that_has_been_everywhere_is_gone_when_all_have_dropped_it() {
    let pool = pool(2);
    let manager = pool.manager();
    let list: List<Mutex<u64>> = manager.list().unwrap();
    let before = manager.objects();
    let lock = manager.mutex(7u64).unwrap();
    // To a child, which puts it into the shared list, and sends it back.
    let stores = |lock: Mutex<u64>, list: List<Mutex<u64>>| {
        list.blocking_push(lock.clone()).unwrap();
        lock
    };
    let back = soon(pool.spawn(stores, (lock, list.clone()))).await.unwrap();
    drop(back);
    assert_eq!(manager.objects(), before + 1, "the list keeps it");
    let takes =
        |list: List<Mutex<u64>>| *list.blocking_pop().unwrap().unwrap().blocking_lock().unwrap();
    assert_eq!(soon(pool.spawn(takes, &list)).await.unwrap(), 7);
    until("nobody has it any more", || manager.objects() == before).await;
}

// ---- what is left behind

/// All that has a name where shared memory, semaphores and temporary files have theirs.
fn named_things(temporary: &Path) -> BTreeSet<String> {
    let files = |dir: &Path| -> Vec<String> {
        let entries = dir.read_dir().into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| entry.path().display().to_string()).collect()
    };
    let kernel = ["/dev/shm", "/dev/mqueue"].into_iter().flat_map(|dir| files(Path::new(dir)));
    // Other programs have theirs there.
    kernel.filter(|path| path.contains("procpool")).chain(files(temporary)).collect()
}

#[test]
fn a_program_that_is_killed_with_every_kind_of_object_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let before = named_things(&temporary);
    let program = std::env::current_exe().unwrap();
    let mut command = own_process(&program, "own_process_uses_everything", dir.path());
    let mut child = command
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let log = dir.path().join("ready");
    wait_until("it uses everything", || log.exists());
    let workers: Vec<_> = children(child.id()).into_iter().filter_map(Proc::of).collect();
    assert!(workers.len() >= 2);
    assert_eq!(named_things(&temporary), before, "nothing has a name even while it runs");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("its workers have gone", || workers.iter().all(|worker| worker.has_ended()));
    assert_eq!(named_things(&temporary), before);
}

struct Sum(u64);

impl Actor for Sum {
    type Call = u64;
    type Reply = u64;

    async fn call(&mut self, n: u64) -> u64 {
        self.0 += n;
        self.0
    }
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_uses_everything() {
    let Some(dir) = own_dir() else { return };
    let pool = pool(2);
    let manager = pool.manager();
    let lock = manager.mutex(vec![0u8; 100_000]).unwrap();
    type More = (Condvar, List<u64>, Channel<u64>, ActorRef<Sum>);
    let waits = |lock: Mutex<Vec<u8>>,
                 event: Event,
                 semaphore: Semaphore,
                 rwlock: RwLock<u64>,
                 (condvar, list, channel, sum): More| {
        list.blocking_push(1).unwrap();
        channel.blocking_send(1).unwrap();
        sum.blocking_call(1).unwrap();
        let guard = lock.blocking_lock().unwrap();
        let _guard = condvar.blocking_wait_while(guard, |bytes| bytes.is_empty()).unwrap();
        let _permit = semaphore.blocking_acquire().unwrap();
        let _writer = rwlock.blocking_write().unwrap();
        event.blocking_wait().unwrap();
    };
    let semaphore = manager.semaphore(1).unwrap();
    let rwlock = manager.rwlock(1u64).unwrap();
    let event = manager.event().unwrap();
    let (condvar, list, sum) =
        (manager.condvar().unwrap(), manager.list().unwrap(), manager.register(Sum(0)).unwrap());
    let (ours, theirs): (Vec<_>, Vec<_>) = (0..2).map(|_| manager.channel().unwrap()).unzip();
    let call = |channel| {
        let more = (condvar.clone(), list.clone(), channel, sum.clone());
        pool.spawn(waits, (lock.clone(), event.clone(), semaphore.clone(), rwlock.clone(), more))
    };
    let calls: Vec<_> = theirs.into_iter().map(call).collect();
    let queue: Queue<Value<u64>> = manager.queue(5).unwrap();
    queue.blocking_send(manager.value(1).unwrap()).unwrap();
    let map: Map<u32, String> = manager.map().unwrap();
    map.blocking_insert(1, "one".into()).unwrap();
    let _barrier: Barrier = manager.barrier(2).unwrap();
    let _array = manager.array(&[0u64; 1000]).unwrap();
    assert!(ours.iter().all(|channel| channel.blocking_recv().unwrap() == Some(1)));
    wait_until("both have come", || list.len().unwrap() == 2 && sum.blocking_call(0).unwrap() == 2);
    wait_until("they hold and wait", || semaphore.available_permits().unwrap() == 0);
    std::fs::write(dir.join("ready"), b"").unwrap();
    calls.into_iter().for_each(|call| drop(call.blocking_join()));
}

// ---- an application that is killed, with its manager

/// Waits for a lock, and looks at each object, when its manager's process is killed: what each call
/// says, and that it ends.
fn outlives_its_manager(lock: Mutex<u64>, queue: Queue<u64>, map: Map<u32, u64>, log: PathBuf) {
    assert_eq!(map.blocking_get(&1).unwrap(), Some(7));
    note(&log, pid());
    let error = lock.blocking_lock().unwrap_err(); // the application holds it
    let errors = [
        error,
        lock.try_lock().unwrap_err(),
        queue.blocking_send(1).unwrap_err().into_parts().1,
        queue.blocking_recv().unwrap_err(),
        map.blocking_insert(1, 8).unwrap_err(),
    ];
    errors.iter().for_each(|error| {
        note(&log, if error.is_manager_closed() { "closed".into() } else { format!("{error:?}") })
    });
    // It goes on without: with a manager of its own.
    let again = Manager::new().unwrap().mutex(1u64).unwrap();
    *again.blocking_lock().unwrap() += 1;
    note(&log, again.blocking_get().unwrap());
}

async fn outlives_its_manager_async(
    lock: Mutex<u64>,
    queue: Queue<u64>,
    map: Map<u32, u64>,
    log: PathBuf,
) {
    assert_eq!(map.get(&1).await.unwrap(), Some(7));
    note(&log, pid());
    let (error, received) = tokio::join!(lock.lock(), queue.recv());
    let errors = [
        error.unwrap_err(),
        received.unwrap_err(),
        lock.try_lock().unwrap_err(),
        queue.send(1).await.unwrap_err().into_parts().1,
        map.insert(1, 8).await.unwrap_err(),
    ];
    errors.iter().for_each(|error| {
        note(&log, if error.is_manager_closed() { "closed".into() } else { format!("{error:?}") })
    });
    let again = Manager::new().unwrap().mutex(1u64).unwrap();
    *again.lock().await.unwrap() += 1;
    note(&log, again.get().await.unwrap());
}

/// Looks at nothing but shared memory.
fn outlives_its_memory(value: Value<u64>, log: PathBuf) {
    note(&log, pid());
    let error = loop {
        if let Err(error) = value.fetch_add(1) {
            break error;
        }
    };
    note(&log, if error.is_manager_closed() { "closed".into() } else { format!("{error:?}") });
}

#[test]
fn who_outlives_the_application_is_told_that_the_manager_is_gone_and_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = own_process(
        &std::env::current_exe().unwrap(),
        "own_process_that_is_killed_with_its_manager",
        dir.path(),
    );
    let mut application = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let logs = ["sync", "async", "memory"].map(|name| dir.path().join(name));
    wait_until("all wait", || {
        logs.iter().all(|log| lines(log).len() == 1) && dir.path().join("ready").exists()
    });
    let all = logs.clone().map(|log| Proc::of(support::pids(&log)[0]).unwrap());
    application.kill().unwrap();
    application.wait().unwrap();
    wait_until("all have ended", || all.iter().all(|process| process.has_ended()));
    let of_many: &[&str] = &["closed", "closed", "closed", "closed", "closed", "2"];
    for (log, expected) in logs.iter().zip([of_many, of_many, &["closed"]]) {
        assert_eq!(lines(log)[1..], *expected, "{}", log.display());
        assert_eq!(std::fs::read_to_string(log.with_extension("stderr")).unwrap(), "");
    }
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_is_killed_with_its_manager() {
    let Some(dir) = own_dir() else { return };
    let manager = Manager::new().unwrap();
    let (lock, queue, map) =
        (manager.mutex(0u64).unwrap(), manager.queue(1).unwrap(), manager.map().unwrap());
    map.insert(1, 7).await.unwrap();
    let _held = lock.lock().await.unwrap();
    let builder = |log: &PathBuf| {
        let stderr = std::fs::File::create(log.with_extension("stderr")).unwrap();
        Process::builder().daemon(false).stdout(procpool::Stdio::null()).stderr(stderr)
    };
    let (sync, other, memory) = (dir.join("sync"), dir.join("async"), dir.join("memory"));
    let all = (
        builder(&sync)
            .spawn(outlives_its_manager, (lock.clone(), queue.clone(), map.clone(), sync))
            .unwrap(),
        builder(&other)
            .spawn(outlives_its_manager_async, (lock.clone(), queue.clone(), map.clone(), other))
            .unwrap(),
        builder(&memory)
            .spawn(outlives_its_memory, (manager.value(0u64).unwrap(), memory))
            .unwrap(),
    );
    soon(all.0.started()).await.unwrap();
    soon(all.1.started()).await.unwrap();
    soon(all.2.started()).await.unwrap();
    std::fs::write(dir.join("ready"), b"").unwrap();
    std::future::pending().await
}

// ---- deadlocks

/// Takes one lock, waits until the other side has the other, and wants that as well.
fn takes_both(first: Mutex<u64>, second: Mutex<u64>, both: Barrier) -> Result<(), String> {
    let _first = first.blocking_lock().unwrap();
    both.blocking_wait().unwrap();
    match second.blocking_lock() {
        Ok(_) => Ok(()),
        Err(error) => {
            assert!(error.is_deadlock(), "{error}");
            Err(error.to_string())
        }
    }
}

#[tokio::test]
async fn a_ring_of_processes_that_wait_for_each_other_is_told_to_one_of_them() {
    let pool = pool(2);
    let manager = pool.manager();
    manager.detect_deadlocks(true);
    let (one, other) =
        (manager.mutex_named("one", 0u64).unwrap(), manager.mutex_named("other", 0u64).unwrap());
    let both = manager.barrier(2).unwrap();
    let calls = [
        pool.spawn(takes_both, (one.clone(), other.clone(), both.clone())),
        pool.spawn(takes_both, (other.clone(), one.clone(), both.clone())),
    ];
    let mut rings = Vec::new();
    for call in calls {
        rings.extend(soon(call).await.unwrap().err());
    }
    let [ring] = &rings[..] else { panic!("{rings:?}") };
    assert!(
        ring.starts_with("deadlock: process ")
            && ring.contains("\"one\"")
            && ring.contains("\"other\""),
        "{ring}"
    );
    assert_eq!(ring.matches(" waits for mutex ").count(), 2, "{ring}");
    // It was an error for one, and nothing else: both locks are free.
    assert!(one.try_lock().unwrap().is_some() && other.try_lock().unwrap().is_some());
}

#[tokio::test]
async fn a_worker_that_wants_what_it_has_is_told_unless_another_thread_may_have_it() {
    let pool = pool(1);
    let manager = pool.manager();
    manager.detect_deadlocks(true);
    let one = manager.mutex(0u64).unwrap();
    let wants_it_twice = |one: Mutex<u64>| {
        let _held = one.blocking_lock().unwrap();
        one.blocking_lock().unwrap_err().is_deadlock()
    };
    assert!(soon(pool.spawn(wants_it_twice, &one)).await.unwrap());
    let gives_it_away = |one: Mutex<u64>| {
        let held = one.blocking_lock().unwrap();
        std::thread::scope(|scope| {
            let (asked, may_drop) = std::sync::mpsc::channel();
            scope.spawn(move || {
                may_drop.recv().unwrap();
                drop(held);
            });
            assert!(one.blocking_lock_timeout(Duration::from_millis(10)).unwrap_err().is_timeout());
            asked.send(()).unwrap();
            one.blocking_lock().is_ok()
        })
    };
    assert!(soon(pool.spawn(gives_it_away, &one)).await.unwrap());
    manager.detect_deadlocks(false);
    let wants_it_for_a_while = |one: Mutex<u64>| {
        let _held = one.blocking_lock().unwrap();
        one.blocking_lock_timeout(Duration::from_millis(20)).unwrap_err().is_timeout()
    };
    assert!(soon(pool.spawn(wants_it_for_a_while, &one)).await.unwrap());
}

/// Two threads of one process, whose locks are taken in both orders, but not by threads that
/// wait for each other.
#[test]
fn threads_that_take_locks_in_both_orders_and_give_up_are_not_told() {
    let manager = Manager::new().unwrap();
    manager.detect_deadlocks(true);
    let (one, other) = (manager.mutex(0u64).unwrap(), manager.mutex(0u64).unwrap());
    let held = one.blocking_lock().unwrap();
    let waits = std::thread::spawn({
        let (one, other) = (one.clone(), other.clone());
        move || {
            let _other = other.blocking_lock().unwrap();
            drop(one.blocking_lock().unwrap());
        }
    });
    wait_until("it holds the other", || other.try_lock().unwrap().is_none());
    assert!(
        other.blocking_lock_timeout(Duration::from_millis(10)).unwrap_err().is_timeout(),
        "it gives up by itself"
    );
    drop(held);
    waits.join().unwrap();
}

#[tokio::test]
async fn rings_are_looked_for_by_default_in_debug_builds_and_only_there() {
    let pool = pool(1);
    let one = pool.manager().mutex(0u64).unwrap();
    let waits = pool.spawn(
        |one: Mutex<u64>| {
            let _held = one.blocking_lock().unwrap();
            one.blocking_lock().map(drop).unwrap_err().is_deadlock()
        },
        &one,
    );
    if cfg!(debug_assertions) {
        assert!(soon(waits).await.unwrap());
    } else {
        assert!(one.lock_timeout(Duration::from_millis(100)).await.unwrap_err().is_timeout());
        assert!(!waits.is_finished());
        waits.abort();
        assert!(soon(waits).await.unwrap_err().is_cancelled());
    }
}

// ---- names

#[test]
fn each_kind_of_object_is_found_again_by_its_name() {
    let manager = Manager::new().unwrap();
    // Each is made twice by the same name: the second is the first, so it sees what was done to
    // that.
    let [one, other] = [(); 2].map(|()| manager.mutex_named("x", 1u64).unwrap());
    *one.blocking_lock().unwrap() = 2;
    assert_eq!(other.blocking_get().unwrap(), 2);
    let [one, other] = [(); 2].map(|()| manager.rwlock_named("x", 1u64).unwrap());
    let mut guard = one.blocking_write().unwrap();
    *guard = 2;
    guard.blocking_commit().unwrap();
    assert_eq!(other.blocking_get().unwrap(), 2);
    let [one, other] = [(); 2].map(|()| manager.value_named("x", 1u64).unwrap());
    one.store(2).unwrap();
    assert_eq!(other.load().unwrap(), 2);
    let [one, other] = [(); 2].map(|()| manager.array_named("x", &[1u64, 1]).unwrap());
    one.at(1).unwrap().store(2).unwrap();
    assert_eq!(other.to_vec().unwrap(), [1, 2]);
    let [one, other] = [(); 2].map(|()| manager.queue_named::<u64>("x", 1).unwrap());
    one.blocking_send(2).unwrap();
    assert_eq!(other.try_recv().unwrap(), Some(2));
    let [one, other] = [(); 2].map(|()| manager.semaphore_named("x", 1).unwrap());
    let permit = one.try_acquire().unwrap();
    assert!(permit.is_some() && other.try_acquire().unwrap().is_none());
    let [one, other] = [(); 2].map(|()| manager.bounded_semaphore_named("bounded", 1).unwrap());
    let permit = one.try_acquire().unwrap();
    assert!(permit.is_some() && other.try_acquire().unwrap().is_none());
    let [one, other] = [(); 2].map(|()| manager.event_named("x").unwrap());
    one.set().unwrap();
    assert!(other.is_set().unwrap());
    let [one, other] = [(); 2].map(|()| manager.barrier_named("x", 2).unwrap());
    let waits = std::thread::spawn(move || one.blocking_wait().map(|result| result.is_leader()));
    let is_leader = other.blocking_wait().unwrap().is_leader();
    assert_ne!(waits.join().unwrap().unwrap(), is_leader);
    let [one, other] = [(); 2].map(|()| manager.condvar_named("x").unwrap());
    let lock = manager.mutex(false).unwrap();
    let waits = std::thread::spawn({
        let lock = lock.clone();
        move || one.blocking_wait_while(lock.blocking_lock()?, |done| !*done).map(drop)
    });
    *lock.blocking_lock().unwrap() = true;
    other.notify_all().unwrap();
    waits.join().unwrap().unwrap();
    let [one, other] = [(); 2].map(|()| manager.map_named::<String, u64>("x").unwrap());
    one.blocking_insert("a".into(), 2).unwrap();
    assert_eq!(other.blocking_get("a").unwrap(), Some(2));
    let [one, other] = [(); 2].map(|()| manager.list_named::<u64>("x").unwrap());
    one.blocking_push(2).unwrap();
    assert_eq!(other.blocking_snapshot().unwrap(), [2]);
}

// ---- limits

#[test]
fn objects_work_where_files_and_address_space_are_limited() {
    in_own_process("own_process_with_limits");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_with_limits() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if own_dir().is_none() {
        return;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    let pool = pool(1);
    soon_blocking(pool.spawn(pid, ()));
    // Too low for the segments that many objects share, and for large values.
    setrlimit(Resource::RLIMIT_FSIZE, 16 << 10, hard).unwrap();
    let manager = Manager::new().unwrap();
    let number = manager.mutex(1u64).unwrap();
    let large = manager.mutex(vec![1u8; 200_000]).unwrap();
    *number.blocking_lock().unwrap() += 1;
    large.blocking_lock().unwrap().push(2);
    let reads = |number: Mutex<u64>, large: Mutex<Vec<u8>>| {
        (number.blocking_get().unwrap(), large.blocking_get().unwrap().len())
    };
    let seen = soon_blocking(pool.spawn(reads, (number.clone(), large.clone())));
    assert_eq!(seen, (2, 200_001));
    assert_eq!(manager.array(&[0u8; 100_000]).unwrap_err().kind(), ErrorKind::Memory);
    assert_eq!(*number.blocking_lock().unwrap(), 2);
}

#[tokio::test]
async fn a_worker_without_address_space_is_told_so_and_goes_on() {
    let pool = pool(1);
    let manager = pool.manager();
    let (small, large) =
        (manager.value(7u64).unwrap(), manager.array(&vec![1u64; 2 << 20]).unwrap());
    let tries = |small: Value<u64>, large: Array<u64>| {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        assert_eq!(small.load().unwrap(), 7);
        let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
        let pages: u64 = std::fs::read_to_string("/proc/self/statm")
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        setrlimit(Resource::RLIMIT_AS, pages * 4096 + (4 << 20), hard).unwrap();
        let refused = large.at(0).unwrap().load().map_err(|error| error.kind());
        setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
        (
            refused == Err(ErrorKind::Memory),
            small.load().unwrap(),
            large.at(5).unwrap().load().unwrap(),
        )
    };
    assert_eq!(soon(pool.spawn(tries, (small, large))).await.unwrap(), (true, 7, 1));
}

/// How many memfds are mapped here.
fn mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(" rw-s ") && line.contains("/memfd:")).count()
}

/// Sends, receives and reads so often that there are lanes, if they are to be had: how many, and
/// whether all was right.
fn use_lanes(queue: &Queue<u64>, map: &Map<u32, u64>) -> (usize, bool) {
    let before = mapped();
    let mut right = true;
    for n in 0..100 {
        queue.blocking_send(n).unwrap();
        right &= queue.blocking_recv().unwrap() == Some(n);
        right &= map.blocking_get(&1).unwrap() == Some(7);
        map.blocking_set(2, n).unwrap();
        right &= map.blocking_get(&2).unwrap() == Some(n);
    }
    (mapped() - before, right)
}

#[test]
fn where_files_may_not_grow_there_are_no_lanes_and_everything_goes_by_message() {
    in_own_process("own_process_without_lanes");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_without_lanes() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if own_dir().is_none() {
        return;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    let pool = pool(1);
    soon_blocking(pool.spawn(pid, ()));
    let manager = pool.manager();
    let uses = |queue: Queue<u64>, map: Map<u32, u64>| use_lanes(&queue, &map);
    for (limit, lanes) in [(16 << 10, 0), (soft, 3)] {
        setrlimit(Resource::RLIMIT_FSIZE, limit, hard).unwrap();
        let (queue, map) = (manager.queue(10).unwrap(), manager.map().unwrap());
        map.blocking_insert(1, 7).unwrap();
        assert_eq!(soon_blocking(pool.spawn(uses, (queue, map))), (lanes, true));
    }
}

#[test]
fn lanes_are_mapped_by_both_sides_and_keep_no_descriptor() {
    in_own_process("own_process_with_lanes");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_with_lanes() {
    if own_dir().is_none() {
        return;
    }
    fn memory_of(pid: u32) -> usize {
        descriptors(pid).iter().filter(|(_, what)| what.starts_with("/memfd:")).count()
    }
    let pool = pool(1);
    soon_blocking(pool.spawn(pid, ()));
    let manager = pool.manager();
    let (queue, map) = (manager.queue(10).unwrap(), manager.map().unwrap());
    map.blocking_insert(1, 7).unwrap();
    // In the worker, while it has its lanes.
    let uses = |queue: Queue<u64>, map: Map<u32, u64>, application: (u32, usize)| {
        let before = memory_of(pid());
        let used = use_lanes(&queue, &map);
        wait_until("the application has no descriptor for them", || {
            memory_of(application.0) == application.1
        });
        (used, memory_of(pid()) == before)
    };
    let application = (pid(), memory_of(pid()));
    assert_eq!(soon_blocking(pool.spawn(uses, (queue, map, application))), ((3, true), true));
}

#[tokio::test]
async fn a_worker_without_address_space_for_lanes_sends_and_receives_by_message() {
    let pool = pool(1);
    let manager = pool.manager();
    let uses = |queues: [Queue<u64>; 2], maps: [Map<u32, u64>; 2]| {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        maps[0].blocking_get(&1).unwrap(); // it has the thread that reads
        // Something on the heap, which a limit on addresses does not take away: it is free, and
        // stays below what is not.
        let free: Vec<_> = (0..40).map(|_| vec![0u8; 50_000]).collect();
        let stays = vec![0u8; 50_000];
        drop(free);
        let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
        let pages: u64 = std::fs::read_to_string("/proc/self/statm")
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        setrlimit(Resource::RLIMIT_AS, pages * 4096, hard).unwrap();
        let without = use_lanes(&queues[0], &maps[0]);
        setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
        drop(stays);
        (without, use_lanes(&queues[1], &maps[1]))
    };
    let queues = [manager.queue(10).unwrap(), manager.queue(10).unwrap()];
    let maps = [manager.map().unwrap(), manager.map().unwrap()];
    for map in &maps {
        map.insert(1, 7).await.unwrap();
    }
    assert_eq!(soon(pool.spawn(uses, (queues, maps))).await.unwrap(), ((0, true), (3, true)));
}

/// What is shared is in memfds, which no mounted file system counts.
#[test]
#[ignore = "needs root"]
fn needs_root_objects_and_lanes_work_where_dev_shm_is_full() {
    in_own_process_with_a_full_dev_shm("own_process_with_a_full_dev_shm");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_with_a_full_dev_shm() {
    if own_dir().is_none() {
        return;
    }
    let full = std::fs::write("/dev/shm/more", "more").unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let pool = pool(1);
    let manager = pool.manager();
    let (queue, map): (Queue<u64>, Map<u32, u64>) =
        (manager.queue(10).unwrap(), manager.map().unwrap());
    map.blocking_insert(1, 7).unwrap();
    let (lock, array) =
        (manager.mutex(vec![1u8; 200_000]).unwrap(), manager.array(&[1u64; 100_000]).unwrap());
    let uses = |queue: Queue<u64>, map: Map<u32, u64>, lock: Mutex<Vec<u8>>, array: Array<u64>| {
        lock.blocking_lock().unwrap().push(2);
        array.at(99_999).unwrap().fetch_add(1).unwrap();
        use_lanes(&queue, &map)
    };
    let used =
        soon_blocking(pool.spawn(uses, (queue.clone(), map.clone(), lock.clone(), array.clone())));
    assert_eq!(used, (3, true));
    assert_eq!((lock.blocking_get().unwrap().len(), array.to_vec().unwrap()[99_999]), (200_001, 2));
}

fn soon_blocking<R: serde::de::DeserializeOwned>(handle: procpool::JoinHandle<R>) -> R {
    handle.blocking_join().unwrap()
}

// ---- torture

/// Everything that one item does, each part of it once, however often it is begun: parts that were
/// done are passed over.
fn handle_item(
    item: u64,
    sum: Mutex<(u64, BTreeSet<u64>)>,
    stock: RwLock<(u64, BTreeSet<u64>)>,
    permits: Semaphore,
    seen: Map<u64, u32>,
) {
    let _permit = permits.blocking_acquire().unwrap();
    {
        let mut guard = sum.blocking_lock().unwrap();
        if guard.1.insert(item) {
            guard.0 += item;
        }
    }
    {
        let mut guard = stock.blocking_write().unwrap();
        if guard.1.insert(item) {
            guard.0 += 1;
        }
        guard.blocking_commit().unwrap();
    }
    seen.blocking_update(item, |times| Some(times.unwrap_or(0) + 1)).unwrap();
}

type Objects = (
    Queue<u64>,
    Mutex<(u64, BTreeSet<u64>)>,
    RwLock<(u64, BTreeSet<u64>)>,
    Semaphore,
    Map<u64, u32>,
);

/// Takes items until there are none; what it had when it died is delivered to another.
fn consume((queue, sum, stock, permits, seen): Objects) {
    while let Some(mut item) = queue.blocking_lease().unwrap() {
        handle_item(*item, sum.clone(), stock.clone(), permits.clone(), seen.clone());
        item.blocking_ack().unwrap();
    }
}

#[test]
fn processes_that_are_killed_at_random_instants_lose_and_double_nothing() {
    in_own_process("own_process_torture");
}

#[test]
#[ignore = "minutes"]
fn the_same_for_long() {
    in_own_process("own_process_torture_for_long");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_torture() {
    if own_dir().is_some() {
        torture(4, 400, 40, 1).await;
    }
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_torture_for_long() {
    if own_dir().is_some() {
        for seed in 0..20 {
            torture(6, 3000, 300, seed).await;
        }
    }
}

/// Kills children of this process, of whatever test.
async fn torture(workers: usize, items: u64, kills: u32, seed: u64) {
    let mut dice = Dice(seed);
    let pool = pool(workers);
    let manager = pool.manager();
    let queue: Queue<u64> = manager.queue(16).unwrap();
    let objects: Objects = (
        queue.clone(),
        manager.mutex((0, BTreeSet::new())).unwrap(),
        manager.rwlock((0, BTreeSet::new())).unwrap(),
        manager.semaphore(3).unwrap(),
        manager.map().unwrap(),
    );
    let consumers = tokio::spawn({
        let (pool, objects) = (pool.clone(), objects.clone());
        async move {
            // As many as there are workers, each begun again when it was killed.
            let again = |_| {
                let (pool, objects) = (pool.clone(), objects.clone());
                async move {
                    let mut deaths = 0u32;
                    while let Err(error) = pool.spawn(consume, objects.clone()).await {
                        assert!(error.is_worker_died(), "{error}");
                        deaths += 1;
                    }
                    deaths
                }
            };
            futures::future::join_all((0..workers).map(again)).await.into_iter().sum::<u32>()
        }
    });
    let producer = tokio::spawn({
        let queue = queue.clone();
        async move {
            for item in 0..items {
                queue.send(item).await.unwrap();
            }
        }
    });
    let mut killed = 0;
    while killed < kills && !producer.is_finished() {
        tokio::time::sleep(Duration::from_micros(dice.below(6000))).await;
        let alive = children(std::process::id());
        let Some(victim) = alive.get(dice.below(alive.len().max(1) as u64) as usize) else {
            continue;
        };
        if dice.below(4) == 0 {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(*victim as i32), Signal::SIGSTOP);
            tokio::time::sleep(Duration::from_micros(dice.below(15_000))).await;
        }
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*victim as i32), Signal::SIGKILL);
        killed += 1;
    }
    soon(producer).await.unwrap();
    soon(queue.join()).await.unwrap();
    queue.close().unwrap();
    let deaths = soon(consumers).await.unwrap();
    assert!(deaths > 0, "nobody was hit");

    let (_, sum, stock, permits, seen) = &objects;
    let all: BTreeSet<_> = (0..items).collect();
    let guard = soon(sum.lock()).await.unwrap();
    assert_eq!(guard.0, items * (items - 1) / 2);
    assert_eq!(guard.1, all);
    drop(guard);
    let guard = soon(stock.write()).await.unwrap();
    assert_eq!((guard.0, &guard.1), (items, &all));
    guard.rollback();
    until("every permit is back", || permits.available_permits().unwrap() == 3).await;
    let seen = seen.entries().await.unwrap();
    assert_eq!(seen.len() as u64, items);
    assert!(seen.iter().all(|(_, times)| *times >= 1));
    // What was begun again is no more than the dead had in hand.
    let again: u32 = seen.iter().map(|(_, times)| times - 1).sum();
    assert!(again <= killed, "{again} of {killed}");
    drop((objects, queue));
    until("no reference is left", || manager.objects() == 0).await;
}

// ---- without threads

#[test]
fn an_object_for_which_no_thread_is_to_be_had_is_a_spawn_error() {
    in_own_process_of_nobody("own_process_without_threads");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_without_threads() {
    if own_dir().is_none() {
        return;
    }
    let manager = Manager::new().unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
    setrlimit(Resource::RLIMIT_NPROC, 1, most).unwrap();
    assert_eq!(manager.register(Sum(0)).unwrap_err().kind(), ErrorKind::Memory);
    let output = Pool::builder().stdout(procpool::Stdio::lines(|_| {})).build();
    assert_eq!(output.unwrap_err().kind(), procpool::ErrorKind::Spawn);
    setrlimit(Resource::RLIMIT_NPROC, most, most).unwrap();
    assert_eq!(soon(manager.register(Sum(0)).unwrap().call(7)).await.unwrap(), 7);
    until("nothing is left, not of the one that was refused either", || manager.objects() == 0)
        .await;
}

// ---- after the end of a manager

/// Changes a value, waits until the manager has been closed, and says what is told then.
fn commits_late(lock: Mutex<u64>, held: Queue<u8>, closed: Queue<u8>) -> Vec<String> {
    let kind =
        |result: Result<(), procpool::sync::Error>| format!("{:?}", result.unwrap_err().kind());
    let mut guard = lock.blocking_lock().unwrap();
    *guard += 1;
    held.blocking_send(1).unwrap();
    closed.blocking_recv().unwrap();
    vec![
        kind(guard.commit()),
        kind(lock.blocking_lock().map(drop)),
        kind(lock.try_lock().map(drop)),
        kind(lock.blocking_get().map(drop)),
    ]
}

#[tokio::test]
async fn after_the_end_of_a_manager_every_call_says_that_and_nothing_else() {
    let (pool, manager) = (pool(1), Manager::new().unwrap());
    let (held, closed) = (pool.manager().queue(1).unwrap(), pool.manager().queue(1).unwrap());
    let (lock, elsewhere) = (manager.mutex(0u64).unwrap(), manager.mutex(0u64).unwrap());
    let late = pool.spawn(commits_late, (elsewhere, held.clone(), closed.clone()));
    soon(held.recv()).await.unwrap();
    let (rwlock, semaphore) = (manager.rwlock(0u64).unwrap(), manager.semaphore(1).unwrap());
    let (event, barrier) = (manager.event().unwrap(), manager.barrier(1).unwrap());
    let (condvar, list) = (manager.condvar().unwrap(), manager.list::<u8>().unwrap());
    let (map, queue) = (manager.map::<u8, u8>().unwrap(), manager.queue::<u8>(1).unwrap());
    let (value, sum) = (manager.value(0u64).unwrap(), manager.register(Sum(0)).unwrap());
    let (mut guard, mut writer) = (lock.lock().await.unwrap(), rwlock.write().await.unwrap());
    (*guard, *writer) = (1, 1);
    manager.close();
    closed.send(1).await.unwrap();
    let told = [
        ("MutexGuard::commit", guard.commit()),
        ("RwLockWriteGuard::commit", writer.commit().await),
        ("Mutex::lock", lock.lock().await.map(drop)),
        ("Mutex::try_lock", lock.try_lock().map(drop)),
        ("Mutex::get", lock.get().await.map(|_| ())),
        ("RwLock::read", rwlock.read().await.map(drop)),
        ("Semaphore::acquire", semaphore.acquire().await.map(drop)),
        ("Event::wait", event.wait().await),
        ("Event::set", event.set().map(|_| ())),
        ("Barrier::wait", barrier.wait().await.map(|_| ())),
        ("Condvar::notify_one", condvar.notify_one().map(|_| ())),
        ("List::push", list.push(1).await),
        ("Map::set", map.set(1, 1).await),
        ("Queue::send", queue.send(1).await.map_err(|error| error.into_parts().1)),
        ("Queue::recv", queue.recv().await.map(|_| ())),
        ("Queue::sender", queue.sender().map(drop)),
        ("Value::load", value.load().map(|_| ())),
        ("ActorRef::call", sum.call(1).await.map(|_| ())),
        ("Manager::mutex", manager.mutex(0u64).map(drop)),
        ("Manager::value", manager.value(0u64).map(drop)),
        ("Manager::queue", manager.queue::<u8>(1).map(drop)),
        ("Manager::register", manager.register(Sum(0)).map(drop)),
    ];
    for (call, told) in told {
        assert_eq!(told.unwrap_err().kind(), ErrorKind::ManagerClosed, "{call}");
    }
    assert_eq!(soon(late).await.unwrap(), ["ManagerClosed"; 4]);
}
