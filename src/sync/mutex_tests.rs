//! The lock, in the application and elsewhere.

use super::connection::Connection;
use super::manager::Manager;
use super::mutex::{Mutex, MutexGuard};
use super::testing::{Elsewhere, client, start_client};
use super::wait::block_on;
use super::{stopping, value::Value};
use crate::error::sync::ErrorKind;
use crate::process::testing::{
    forked, in_own_process, is_own_process, open_fds, threads, wait_until,
};
use futures::FutureExt;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

fn manager() -> Manager {
    Manager::new().expect("a manager")
}

impl<T> Mutex<T> {
    /// The same lock, as another process sees it.
    fn seen_by(&self, elsewhere: &Elsewhere) -> Self {
        Self::of(elsewhere.handle(self.handle()))
    }
}

/// A lock, and how another process sees it.
fn lock_and_there<T: serde::Serialize + serde::de::DeserializeOwned>(
    value: T,
) -> (Manager, Mutex<T>, Elsewhere, Mutex<T>) {
    let manager = manager();
    let mutex = manager.mutex(value).expect("a mutex");
    let elsewhere = Elsewhere::new(manager.connection());
    let there = mutex.seen_by(&elsewhere);
    (manager, mutex, elsewhere, there)
}

fn blocking<T>(future: impl Future<Output = Result<T, crate::sync::Error>>) -> T {
    block_on(future).expect("it is to be had")
}

#[test]
fn a_dropped_guard_commits_and_what_is_seen_elsewhere_is_the_same() {
    let (_manager, here, _elsewhere, there) = lock_and_there(vec![String::from("a")]);
    blocking(here.lock()).push("b".into());
    assert_eq!(*blocking(there.lock()), ["a", "b"]);
    there.blocking_lock().expect("lock").clear();
    assert!(blocking(here.get()).is_empty() && blocking(there.get()).is_empty());
    blocking(there.lock()).push("c".into());
    blocking(here.lock()).commit().expect("nothing to commit");
    assert_eq!(blocking(here.get()), ["c"]);
}

#[test]
fn what_is_rolled_back_never_was() {
    let (_manager, here, _elsewhere, there) = lock_and_there(1u64);
    for mutex in [&here, &there] {
        let mut guard = blocking(mutex.lock());
        *guard = 2;
        assert_eq!(blocking(here.get()), 1, "nobody sees what was not committed");
        guard.rollback();
        assert!(!blocking(mutex.lock()).recovered(), "that was its own decision");

        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut guard = blocking(mutex.lock());
            *guard = 3;
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        let mut guard = blocking(mutex.lock());
        assert_eq!(*guard, 1);
        assert!(guard.recovered());
        guard.clear_recovered();
        assert!(!guard.recovered());
        drop(guard);

        let mut guard = blocking(mutex.lock());
        assert!(!guard.recovered());
        *guard = 4;
        stopping::drop_stopped(guard);
        let mut guard = blocking(mutex.lock());
        assert_eq!((*guard, guard.recovered()), (1, true));
        guard.clear_recovered();
    }
}

#[test]
fn a_guard_used_in_a_destructor_of_a_panic_commits() {
    let manager = manager();
    let mutex = manager.mutex(0u64).expect("a mutex");
    struct Counts(Mutex<u64>);
    impl Drop for Counts {
        fn drop(&mut self) {
            *self.0.blocking_lock().expect("lock") += 1;
        }
    }
    let counts = Counts(mutex.clone());
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _counts = counts;
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(mutex.blocking_get().expect("get"), 1);
}

#[test]
fn a_value_that_cannot_be_encoded_is_rolled_back_and_told() {
    #[derive(Debug, Default)]
    struct Moody(u64);
    impl serde::Serialize for Moody {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0 {
                13 => Err(serde::ser::Error::custom("not thirteen")),
                99 => panic!("on purpose"),
                n => n.serialize(serializer),
            }
        }
    }
    impl<'de> serde::Deserialize<'de> for Moody {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            u64::deserialize(deserializer).map(Self)
        }
    }
    let (_manager, here, _elsewhere, there) = lock_and_there(Moody(1));
    let mut guard = blocking(here.lock());
    guard.0 = 13;
    let error = guard.commit().expect_err("it cannot be encoded");
    assert_eq!(error.kind(), ErrorKind::Encode);
    assert!(error.to_string().contains("not thirteen"), "{error}");
    let mut guard = blocking(there.lock());
    assert_eq!((guard.0, guard.recovered()), (1, false));
    guard.0 = 13;
    drop(guard);
    let mut guard = blocking(here.lock());
    assert_eq!((guard.0, guard.recovered()), (1, true));
    guard.clear_recovered();
    guard.0 = 99;
    assert!(catch_unwind(AssertUnwindSafe(|| drop(guard))).is_err());
    let guard = blocking(there.lock());
    assert_eq!((guard.0, guard.recovered()), (1, true));
}

#[test]
fn try_lock_never_waits_and_a_limit_is_kept() {
    let (_manager, here, _elsewhere, there) = lock_and_there(());
    let guard = here.try_lock().expect("try").expect("free");
    assert!(here.try_lock().expect("try").is_none());
    assert!(there.try_lock().expect("try").is_none());
    let begun = Instant::now();
    for mutex in [&here, &there] {
        let error = block_on(mutex.lock_timeout(Duration::from_millis(30))).expect_err("held");
        assert!(error.is_timeout());
    }
    assert!(begun.elapsed() >= Duration::from_millis(60));
    drop(guard);
    drop(blocking(there.lock_timeout(Duration::from_millis(30))));
    drop(blocking(there.clone().lock_owned()));
    assert!(here.try_lock().expect("try").is_some());
}

#[test]
fn fencing_numbers_rise_from_guard_to_guard() {
    let (_manager, here, _elsewhere, there) = lock_and_there(0u8);
    let numbers: Vec<_> =
        [&here, &there, &there, &here].map(|mutex| blocking(mutex.lock()).fencing_token()).into();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

#[test]
fn many_threads_of_two_processes_lose_no_update() {
    const ROUNDS: u64 = 300;
    let (_manager, here, _elsewhere, there) = lock_and_there(0u64);
    let inside = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for mutex in [&here, &there, &here, &there] {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let mut guard = mutex.blocking_lock().expect("lock");
                    assert!(!inside.swap(true, Ordering::SeqCst), "two are in");
                    let before = *guard;
                    if round % 50 == 0 {
                        std::thread::sleep(Duration::from_micros(50)); // so that others wait in line
                    }
                    *guard = before + 1;
                    inside.store(false, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(blocking(here.get()), 4 * ROUNDS);
}

#[test]
fn waiters_are_served_in_the_order_in_which_they_parked() {
    // One that does not get to run for 10 ms is passed over, as it should be: that says nothing of
    // the order.
    let in_order = (0..50).any(|_| {
        let (order, late) = order_of_twenty();
        let right = order.iter().copied().eq(0..20);
        assert!(right || late > 0, "{order:?}");
        right
    });
    assert!(in_order);
}

/// Twenty waiters of five processes park one after another: in what order they were served, and how
/// many came too late.
fn order_of_twenty() -> (Vec<usize>, u64) {
    let manager = manager();
    let mutex = manager.mutex(Vec::<usize>::new()).expect("a mutex");
    let elsewhere: Vec<_> = (0..5).map(|_| Elsewhere::new(manager.connection())).collect();
    let seen: Vec<_> = elsewhere.iter().map(|elsewhere| mutex.seen_by(elsewhere)).collect();
    let guard = blocking(mutex.lock());
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let server = manager.connection().server().expect("local");
    runtime.block_on(async {
        let set = tokio::task::LocalSet::new();
        let mut waiting = Vec::new();
        for number in 0..20 {
            let mutex = seen[number % 5].clone();
            waiting.push(set.spawn_local(async move {
                let mut guard = mutex.lock().await.expect("lock");
                guard.push(number);
            }));
            set.run_until(async {
                while server.waiting(mutex_object(&seen[0])) < number + 1 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        drop(guard);
        set.run_until(futures::future::join_all(waiting)).await;
    });
    (blocking(mutex.get()), server.late(mutex_object(&mutex)))
}

fn mutex_object<T>(mutex: &Mutex<T>) -> u64 {
    mutex.handle().name().object
}

#[test]
fn one_that_locks_again_and_again_does_not_pass_who_waits() {
    let (manager, here, _elsewhere, there) = lock_and_there(0u64);
    let server = manager.connection().server().expect("local");
    let got = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let mut guard = here.blocking_lock().expect("lock");
        scope.spawn(|| {
            drop(there.blocking_lock().expect("lock"));
            got.store(1, Ordering::SeqCst);
        });
        wait_until("it waits", || server.waiting(mutex_object(&here)) == 1);
        *guard += 1;
        drop(guard);
        // The next one to have it is not we.
        assert!(
            here.try_lock().expect("try").is_none()
                || got.load(Ordering::SeqCst) == 1
                || server.waiting(mutex_object(&here)) == 0
        );
        drop(here.blocking_lock().expect("lock"));
    });
    assert_eq!(got.load(Ordering::SeqCst), 1);
}

#[test]
fn waiters_that_give_up_at_any_moment_lose_nothing() {
    let (_manager, here, _elsewhere, there) = lock_and_there(0u64);
    let mut seed = 7u64;
    for round in 0..1000 {
        let held = blocking(here.lock());
        let giving_up = if round % 2 == 0 { &here } else { &there };
        let mut waiting = Box::pin(giving_up.lock());
        assert!(waiting.as_mut().now_or_never().is_none());
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Before, at and after the moment at which it is handed over.
        match seed >> 62 {
            0 => drop((waiting, held)),
            1 => drop((held, waiting)),
            2 => {
                drop(held);
                std::thread::yield_now();
                drop(waiting);
            }
            _ => {
                let thread = std::thread::scope(|scope| {
                    let other = scope.spawn(|| drop(held));
                    drop(waiting);
                    other.join()
                });
                thread.expect("no panic");
            }
        }
        let other = if round % 3 == 0 { &here } else { &there };
        let mut guard =
            block_on(other.lock_timeout(Duration::from_secs(30))).expect("it is never lost");
        *guard += 1;
    }
    assert_eq!(blocking(here.get()), 1000);
}

#[test]
fn values_without_room_in_their_place_travel_by_socket() {
    let (manager, here, elsewhere, there) = lock_and_there(Vec::<u8>::new());
    for (number, size) in [100_000, 1000, (16 << 20) - 16, 0].into_iter().enumerate() {
        let (writer, reader) = if number % 2 == 0 { (&here, &there) } else { (&there, &here) };
        *blocking(writer.lock()) = vec![number as u8; size];
        let guard = blocking(reader.lock());
        assert!(guard.len() == size && guard.iter().all(|byte| *byte == number as u8));
        drop(guard);
        assert_eq!(blocking(here.get()).len(), size);
        assert_eq!(blocking(there.get()).len(), size);
        let guard = there.try_lock().expect("try").expect("free");
        assert_eq!(guard.len(), size);
    }
    let mut guard = blocking(there.lock());
    guard.resize(17 << 20, 0);
    let error = guard.commit().expect_err("too large");
    assert_eq!((error.kind(), error.size_limit()), (ErrorKind::TooLarge, Some(16 << 20)));
    assert_eq!(blocking(here.get()).len(), 0);
    // One that begins large; and one with room enough, which stays in its place.
    let large = manager.mutex(vec![1u8; 300_000]).expect("a mutex");
    assert_eq!(blocking(large.seen_by(&elsewhere).get()).len(), 300_000);
    let roomy = manager.mutex_with_capacity(Vec::<u8>::new(), 1 << 20).expect("a mutex");
    let there = roomy.seen_by(&elsewhere);
    *blocking(there.lock()) = vec![5; 1 << 19];
    assert_eq!(blocking(roomy.get()), vec![5; 1 << 19]);
}

#[test]
fn handles_within_a_lock_keep_what_they_stand_for() {
    let (manager, here, elsewhere, there) = lock_and_there(Vec::<Value<u64>>::new());
    let value = manager.value(5u64).expect("a value");
    blocking(here.lock()).push(value);
    assert_eq!(manager.objects(), 2);
    let found = blocking(there.get());
    assert_eq!(found[0].fetch_add(1).expect("add"), 5);
    drop(found);
    let mut guard = blocking(there.lock());
    let again = guard[0].clone();
    guard.push(again);
    drop(guard);
    assert_eq!(
        blocking(here.lock()).iter().map(|value| value.load().expect("load")).collect::<Vec<_>>(),
        [6, 6]
    );
    blocking(here.lock()).clear();
    wait_until("nobody has it any more", || {
        // The other buffer's value goes when it is written over.
        drop(blocking(here.lock()));
        blocking(there.lock()).clear();
        manager.objects() == 1
    });
    drop(elsewhere);
}

#[test]
fn a_lock_of_another_type_is_an_error_and_is_released() {
    let (_manager, here, elsewhere, there) = lock_and_there("text".to_owned());
    for handle in [here.handle().clone(), there.handle().clone()] {
        let wrong: Mutex<u64> = Mutex::of(handle);
        assert_eq!(block_on(wrong.lock()).expect_err("it is a string").kind(), ErrorKind::Decode);
        assert_eq!(wrong.try_lock().expect_err("it is a string").kind(), ErrorKind::Decode);
        assert_eq!(block_on(wrong.get()).expect_err("it is a string").kind(), ErrorKind::Decode);
    }
    assert_eq!(*blocking(there.lock()), "text");
    drop(elsewhere);
}

#[test]
fn a_named_lock_is_found_again_while_somebody_has_it() {
    let manager = manager();
    let first = manager.mutex_named("x", 1u64).expect("a mutex");
    assert_eq!(blocking(manager.mutex_named("x", 2u64).expect("a mutex").get()), 1);
    assert_eq!(blocking(manager.mutex_named("y", 3u64).expect("a mutex").get()), 3);
    drop(first);
    assert_eq!(
        (manager.objects(), blocking(manager.mutex_named("x", 4u64).expect("a mutex").get())),
        (0, 4)
    );
}

#[test]
fn it_works_in_any_runtime_and_after_one_has_ended() {
    let manager = manager();
    let mutex = manager.mutex(0u64).expect("a mutex");
    for _ in 0..2 {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("runtime");
        let guard = runtime.block_on(mutex.lock()).expect("lock");
        let waiting = runtime.spawn({
            let mutex = mutex.clone();
            async move { *mutex.lock().await.expect("lock") += 1 }
        });
        drop(guard);
        runtime.block_on(waiting).expect("no panic");
        let held = runtime.block_on(mutex.clone().lock_owned()).expect("lock");
        let left = runtime.spawn({
            let mutex = mutex.clone();
            async move { drop(mutex.lock().await) }
        });
        drop((runtime, left)); // with somebody who waits in it
        drop(held);
    }
    assert_eq!(mutex.blocking_get().expect("get"), 2);
    std::thread::spawn(move || *mutex.blocking_lock().expect("lock") += 1)
        .join()
        .expect("no panic");
}

#[test]
fn the_end_of_the_manager_is_told_to_everyone_and_a_new_one_serves() {
    let (manager, here, _elsewhere, there) = lock_and_there(0u64);
    let value = manager.value(1u64).expect("a value");
    let guard = blocking(here.lock());
    let (mut a, mut b) = (pin!(here.lock()), pin!(there.lock()));
    assert!(a.as_mut().now_or_never().is_none() && b.as_mut().now_or_never().is_none());
    let begun = Instant::now();
    manager.close();
    assert!(block_on(a).expect_err("closed").is_manager_closed());
    assert!(block_on(b).expect_err("closed").is_manager_closed());
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(guard);
    for mutex in [&here, &there] {
        assert!(block_on(mutex.lock()).expect_err("closed").is_manager_closed());
        assert!(mutex.try_lock().expect_err("closed").is_manager_closed());
        assert!(block_on(mutex.get()).expect_err("closed").is_manager_closed());
    }
    assert!(value.load().expect_err("closed").is_manager_closed());
    assert!(manager.mutex(1u8).expect_err("closed").is_manager_closed());
    let again = Manager::new().expect("a manager");
    assert_eq!(*blocking(again.mutex(1u8).expect("a mutex").lock()), 1);
}

#[test]
fn of_many_who_make_the_object_of_a_name_all_get_one() {
    let manager = manager();
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|n| {
                scope.spawn({
                    let manager = &manager;
                    move || manager.mutex_named("x", n)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic").expect("a mutex"))
            .collect()
    });
    assert_eq!(manager.objects(), 1);
    *blocking(made[0].lock()) = 100;
    assert!(made.iter().all(|mutex| blocking(mutex.get()) == 100));
    drop(made);
    assert_eq!(blocking(manager.mutex_named("x", 7).expect("a mutex").get()), 7);
}

#[test]
fn what_the_manager_keeps_is_bounded() {
    let manager = manager();
    manager.connection().server().expect("local").set_bound(1 << 20);
    let mutex = manager.mutex(Vec::<u8>::new()).expect("a mutex");
    let elsewhere = Elsewhere::new(manager.connection());
    let there = mutex.seen_by(&elsewhere);
    *blocking(there.lock()) = vec![1; 500_000];
    let mut guard = blocking(mutex.lock());
    guard.resize(2 << 20, 2);
    assert_eq!(guard.commit().expect_err("too much").kind(), ErrorKind::ManagerFull);
    blocking(there.lock()).resize(2 << 20, 2);
    let guard = blocking(mutex.lock());
    assert_eq!((guard.len(), guard.recovered()), (500_000, true));
    assert_eq!(
        manager.mutex(vec![1u8; 800_000]).expect_err("too much").kind(),
        ErrorKind::ManagerFull
    );
    assert_eq!(manager.objects(), 1);
}

#[test]
fn what_arrays_and_many_small_objects_take_is_bounded_as_well() {
    let manager = manager();
    manager.connection().server().expect("local").set_bound(1 << 20);
    assert_eq!(
        manager.array(&[0u64; 200_000]).expect_err("too much").kind(),
        ErrorKind::ManagerFull
    );
    assert_eq!(manager.objects(), 0);
    let array = manager.array(&[7u64; 50_000]).expect("there is room");
    let mut all = Vec::new();
    let error = loop {
        match manager.value(all.len() as u64) {
            Ok(value) => all.push(value),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ManagerFull);
    // They take more than their eight bytes, and what each takes is not out of all proportion.
    assert!((600..80_000).contains(&all.len()), "{} objects", all.len());
    assert_eq!(manager.mutex(1u64).expect_err("too much").kind(), ErrorKind::ManagerFull);
    assert_eq!(manager.list::<u64>().expect_err("too much").kind(), ErrorKind::ManagerFull);
    // Those that are there serve on, and what is dropped makes room.
    assert!(all.iter().zip(0..).all(|(value, n)| value.load().expect("it is there") == n));
    drop(array);
    wait_until("the array is forgotten", || manager.objects() == all.len());
    let queue = manager.queue::<Vec<u8>>(10).expect("there is room");
    queue.try_send(vec![1; 200_000]).expect("there is room");
    let refused = queue.try_send(vec![2; 400_000]).expect_err("too much");
    assert_eq!(
        (refused.error().kind(), refused.into_inner().len()),
        (ErrorKind::ManagerFull, 400_000)
    );
    assert_eq!(queue.try_recv().expect("it is there"), Some(vec![1; 200_000]));
}

#[test]
fn nothing_stays_after_the_last_handle() {
    in_own_process("sync::mutex_tests::own_process_leaves_nothing");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_leaves_nothing() {
    if !is_own_process() {
        return;
    }
    let maps = || {
        std::fs::read_to_string("/proc/self/maps").expect("/proc").matches("memfd:procpool").count()
    };
    drop(manager().mutex(1u64).expect("a mutex")); // what stays is the supervisor
    wait_until("the first is forgotten", || maps() == 0);
    let (fds, threads_before) = (open_fds(), threads());
    for _ in 0..3 {
        let (manager, here, elsewhere, there) = lock_and_there(vec![0u8; 100_000]);
        let value = manager.value(1u64).expect("a value");
        blocking(there.lock()).push(1);
        blocking(here.lock()).resize(500_000, 1);
        elsewhere.connection.elsewhere().expect("elsewhere").lean().expect("a thread");
        assert!(maps() > 0 && open_fds() > fds && threads() > threads_before);
        drop((manager, here, there, elsewhere, value));
    }
    wait_until("no descriptor stays", || open_fds() == fds);
    wait_until("no memory stays", || maps() == 0);
    wait_until("no thread stays", || threads() == threads_before);
}

// ---- what hostile processes do

#[test]
fn a_corrupted_word_breaks_that_lock_and_no_other() {
    let (manager, here, elsewhere, there) = lock_and_there(1u64);
    let good = manager.mutex(2u64).expect("a mutex");
    drop(blocking(there.lock()));
    let words = |mutex: &Mutex<u64>| {
        mutex.handle().cell_at_once().expect("mapped").expect("mapped").words().as_ptr() as usize
    };
    assert_ne!(words(&here), words(&good));
    // An owner that is no client: whoever comes to wait is told.
    let cell = there.handle().cell_at_once().expect("mapped").expect("mapped");
    cell.words()[0].store(0xabc | 0x77 << 12, Ordering::SeqCst);
    assert_eq!(block_on(here.lock()).expect_err("broken").kind(), ErrorKind::ObjectBroken);
    for mutex in [&here, &there] {
        assert_eq!(block_on(mutex.lock()).expect_err("broken").kind(), ErrorKind::ObjectBroken);
        assert_eq!(mutex.try_lock().expect_err("broken").kind(), ErrorKind::ObjectBroken);
    }
    assert_eq!(blocking(good.seen_by(&elsewhere).get()), 2);

    // A length that is none.
    let second = manager.mutex(1u64).expect("a mutex");
    let there = second.seen_by(&elsewhere);
    drop(blocking(there.lock()));
    let cell = there.handle().cell_at_once().expect("mapped").expect("mapped");
    cell.words()[2].store(1 << 40, Ordering::SeqCst);
    assert_eq!(block_on(second.lock()).expect_err("broken").kind(), ErrorKind::ObjectBroken);
    assert_eq!(block_on(second.get()).expect_err("broken").kind(), ErrorKind::ObjectBroken);
    // It says that the manager keeps the value, which is not true.
    cell.words()[2].store(1 << 63, Ordering::SeqCst);
    assert!(block_on(second.lock()).is_err());
    assert!(block_on(second.get()).is_err());

    // Somebody else's release: the guard finds its word changed, and says so.
    let third = manager.mutex(1u64).expect("a mutex");
    let mut guard = blocking(third.lock());
    *guard = 5;
    third.handle().cell_at_once().expect("mapped").expect("mapped").words()[0]
        .store(0, Ordering::SeqCst);
    assert_eq!(guard.commit().expect_err("changed").kind(), ErrorKind::ObjectBroken);
    assert_eq!(blocking(good.get()), 2);
}

#[test]
fn a_word_that_never_stands_still_breaks_its_lock_and_holds_up_nobody() {
    let (manager, here, _elsewhere, there) = lock_and_there(1u64);
    let good = manager.mutex(2u64).expect("a mutex");
    drop((blocking(here.lock()), ()));
    drop(blocking(there.lock()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let cell = there.handle().cell_at_once().expect("mapped").expect("mapped");
            let mut seed = 1u64;
            while !stop.load(Ordering::Relaxed) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                cell.words()[0].store(seed, Ordering::Relaxed);
                cell.words()[(seed >> 60) as usize % cell.words().len()]
                    .store(seed, Ordering::Relaxed);
            }
        });
        for _ in 0..200 {
            // Whatever comes of it: an end, and no panic.
            let _ = block_on(here.lock_timeout(Duration::from_millis(1))).map(drop);
            let _ = block_on(here.get());
            *blocking(good.lock()) += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(blocking(good.get()), 202);
}

// ---- the end of processes

#[test]
fn one_that_ends_while_it_holds_gives_the_lock_back_as_it_was() {
    let (_manager, here, elsewhere, there) = lock_and_there(1u64);
    let mut guard = blocking(there.lock());
    *guard = 2;
    let mut waiting = pin!(here.lock());
    assert!(waiting.as_mut().now_or_never().is_none());
    std::mem::forget(guard); // as if killed here
    elsewhere.connection.cut();
    let guard = block_on(waiting).expect("lock");
    assert_eq!((*guard, guard.recovered()), (1, true));
}

fn line(child: &mut Child) -> String {
    let mut line = String::new();
    let mut out = BufReader::with_capacity(1, child.stdout.as_mut().expect("piped"));
    loop {
        line.clear();
        assert!(out.read_line(&mut line).expect("read") > 0, "it ended");
        if let Some(told) = line.split("told: ").nth(1) {
            return told.trim().to_owned();
        }
    }
}

fn tell(what: impl std::fmt::Display) {
    use std::io::Write;
    let mut out = std::io::stdout();
    writeln!(out, "told: {what}").and_then(|()| out.flush()).expect("write");
}

/// Stops a process, and waits until all its threads stand still.
fn stop(child: &Child) {
    kill(pid(child), Signal::SIGSTOP).expect("stop");
    wait_until("it stands still", || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("/proc");
        threads.filter_map(Result::ok).all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    });
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().expect("a number"))
}

#[test]
fn a_holder_that_is_killed_stopped_or_not_gives_the_lock_to_the_next() {
    let manager = manager();
    let mutex = manager.mutex(1u64).expect("a mutex");
    for stopped in [false, true] {
        let mut child = start_client(
            manager.connection(),
            "sync::mutex_tests::client_holds",
            &[mutex.handle()],
        );
        assert_eq!(line(&mut child), "held");
        let mut waiting = pin!(mutex.lock());
        assert!(waiting.as_mut().now_or_never().is_none());
        if stopped {
            stop(&child);
            assert!(
                block_on(mutex.lock_timeout(Duration::from_millis(50)))
                    .expect_err("it is held still")
                    .is_timeout()
            );
        }
        kill(pid(&child), Signal::SIGKILL).expect("kill");
        let mut guard = block_on(waiting).expect("lock");
        assert_eq!((*guard, guard.recovered()), (1, true));
        guard.clear_recovered();
        drop(guard);
        child.wait().expect("wait");
    }
}

#[test]
#[ignore = "runs in a process of its own"]
fn client_holds() {
    let Some(handles) = client() else { return };
    let mutex: Mutex<u64> = Mutex::of(handles[0].clone());
    let mut guard = mutex.blocking_lock().expect("lock");
    *guard = 77;
    tell("held");
    loop {
        std::thread::park();
    }
}

#[test]
fn one_that_is_stopped_when_its_turn_comes_is_passed_over() {
    let manager = manager();
    let mutex = manager.mutex(0u64).expect("a mutex");
    let server = manager.connection().server().expect("local");
    let guard = blocking(mutex.lock());
    let mut child = start_client(
        manager.connection(),
        "sync::mutex_tests::client_adds_once",
        &[mutex.handle()],
    );
    wait_until("it waits", || server.waiting(mutex_object(&mutex)) == 1);
    stop(&child);
    let mut waiting = pin!(mutex.lock());
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(guard);
    *block_on(waiting).expect("lock") += 10;
    assert_eq!(blocking(mutex.get()), 10);
    kill(pid(&child), Signal::SIGCONT).expect("continue");
    assert_eq!(line(&mut child), "11");
    assert!(child.wait().expect("wait").success());
}

/// The guard is dropped by another thread than took the lock, however it was taken. Else that thread
/// would be told of a ring that is none.
#[test]
fn a_guard_that_another_thread_drops_is_in_no_ring() {
    type Takes = for<'a> fn(&'a Mutex<u64>) -> MutexGuard<'a, u64>;
    let takes: [Takes; 3] = [
        |one| one.try_lock().expect("whole").expect("free"),
        |one| one.blocking_lock().expect("free"),
        |one| one.blocking_lock_timeout(Duration::MAX).expect("free"),
    ];
    for take in takes {
        let manager = manager();
        manager.detect_deadlocks(true);
        let (one, other) =
            (manager.mutex(0u64).expect("a mutex"), manager.mutex(0u64).expect("a mutex"));
        let server = manager.connection().server().expect("local");
        let held = take(&one);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _other = other.blocking_lock().expect("no deadlock");
                drop(one.blocking_lock().expect("no deadlock"));
            });
            wait_until("it waits for the one, and holds the other", || {
                server.waiting(mutex_object(&one)) == 1
            });
            scope.spawn(|| {
                let held = held;
                wait_until("the other is waited for", || server.waiting(mutex_object(&other)) == 1);
                drop(held);
            });
            drop(other.blocking_lock().expect("no deadlock"));
        });
    }
}

#[test]
fn those_that_are_stopped_hold_up_each_other_waiter_once_at_most_and_go_on_when_they_are_continued()
{
    let manager = manager();
    let mutex = manager.mutex(0u64).expect("a mutex");
    let (server, object) = (manager.connection().server().expect("local"), mutex_object(&mutex));
    let mut guard = blocking(mutex.lock());
    let mut children: Vec<_> = (0..2)
        .map(|before| {
            let child = start_client(
                manager.connection(),
                "sync::mutex_tests::client_adds_once",
                &[mutex.handle()],
            );
            wait_until("it waits", || server.waiting(object) == before + 1);
            stop(&child);
            child
        })
        .collect();
    // There is always one who waits when the lock is released, behind the two.
    for _ in 0..100 {
        let mut next = pin!(mutex.lock());
        assert!(next.as_mut().now_or_never().is_none());
        drop(guard);
        guard = block_on(next).expect("lock");
        *guard += 10;
    }
    assert_eq!((server.late(object), server.waiting(object)), (2, 2));
    drop(guard);
    // Nobody is in the line: it is as if nobody waited.
    let fencing_token = |guard: MutexGuard<'_, u64>| guard.fencing_token();
    for expected in [102, 103] {
        assert_eq!(mutex.try_lock().expect("whole").map(fencing_token), Some(expected));
    }
    for (number, child) in children.iter_mut().enumerate() {
        kill(pid(child), Signal::SIGCONT).expect("continue");
        assert_eq!(line(child), (1001 + number).to_string());
        assert!(child.wait().expect("wait").success());
    }
}

#[test]
#[ignore = "runs in a process of its own"]
fn client_adds_once() {
    let Some(handles) = client() else { return };
    let mutex: Mutex<u64> = Mutex::of(handles[0].clone());
    let mut guard = mutex.blocking_lock().expect("lock");
    *guard += 1;
    tell(*guard);
}

#[test]
fn processes_that_are_killed_at_any_instant_leave_an_exact_sum() {
    let manager = manager();
    // The sum, and what each process has been seen to add. In one value: either both count or
    // neither.
    let sum = manager.mutex((0u64, vec![0u64; 4])).expect("a mutex");
    let begun = manager.array(&[0u64; 4]).expect("an array");
    let mut seed = 42u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let start = |number: usize| {
        let mut child = start_client(
            manager.connection(),
            "sync::mutex_tests::client_adds_on",
            &[sum.handle(), begun.handle()],
        );
        assert_eq!(line(&mut child), "begins");
        (number, child)
    };
    let mut children: Vec<_> = (0..4).map(start).collect();
    for _ in 0..30 {
        std::thread::sleep(Duration::from_micros(random(4000)));
        let place = random(4) as usize;
        let (number, mut child) = children.swap_remove(place);
        if random(3) == 0 {
            kill(pid(&child), Signal::SIGSTOP).expect("stop");
            std::thread::sleep(Duration::from_micros(random(3000)));
        }
        kill(pid(&child), Signal::SIGKILL).expect("kill");
        child.wait().expect("wait");
        // It is to be had at once by somebody, whole.
        let guard = block_on(sum.lock_timeout(Duration::from_secs(30))).expect("lock");
        assert_eq!(guard.0, guard.1.iter().sum::<u64>());
        drop(guard);
        children.push(start(number));
    }
    for (_, mut child) in children {
        kill(pid(&child), Signal::SIGKILL).expect("kill");
        child.wait().expect("wait");
    }
    let guard = blocking(sum.lock());
    let tried: u64 = begun.to_vec().expect("read").iter().sum();
    assert_eq!(guard.0, guard.1.iter().sum::<u64>());
    // Each death costs at most the one change that was under way.
    assert!(guard.0 <= tried && tried <= guard.0 + 34, "{} of {tried}", guard.0);
}

#[test]
#[ignore = "runs in a process of its own"]
fn client_adds_on() {
    let Some(handles) = client() else { return };
    let sum: Mutex<(u64, Vec<u64>)> = Mutex::of(handles[0].clone());
    let tried: super::value::Array<u64> = super::value::Array::of(handles[1].clone());
    tell("begins");
    let mut place = std::process::id() as usize;
    loop {
        place = (place + 1) % 4;
        let mut guard = sum.blocking_lock().expect("lock");
        tried.at(place).expect("in range").fetch_add(1).expect("add");
        guard.0 += 1;
        guard.1[place] += 1;
        drop(guard);
    }
}

// ---- forks

#[test]
fn in_a_forked_copy_everything_is_an_error_and_nothing_is_released() {
    in_own_process("sync::mutex_tests::own_process_forked_copy");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_forked_copy() {
    if !is_own_process() {
        return;
    }
    let (_manager, here, _elsewhere, there) = lock_and_there(1u64);
    let value = _manager.value(1u64).expect("a value");
    let mut guard = blocking(there.lock());
    *guard = 2;
    let mut guard = Some(guard); // else the closure's end would drop it here
    let code = forked(|| {
        let refused = |error: crate::sync::Error| i32::from(error.kind() != ErrorKind::Forked);
        let mut wrong = 0;
        wrong += here.try_lock().map_or_else(refused, |_| 1);
        wrong += block_on(here.lock()).map_or_else(refused, |_| 1);
        wrong += block_on(there.get()).map_or_else(refused, |_| 1);
        wrong += value.load().map_or_else(refused, |_| 1);
        wrong += Manager::new().map_or_else(refused, |_| 1);
        wrong += Connection::start().map_or_else(refused, |_| 1);
        drop(guard.take());
        drop((here.clone(), there.clone()));
        wrong
    });
    assert_eq!(code, 0);
    assert!(here.try_lock().expect("try").is_none(), "the copy's guard was not its own");
}

#[test]
fn what_travels_and_where() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Manager>();
    is_send_and_sync::<Mutex<std::rc::Rc<u8>>>();
    is_send_and_sync::<super::mutex::OwnedMutexGuard<u64>>();
    fn is_send<T: Send>(_: T) {}
    let manager = manager();
    let mutex = manager.mutex(1u64).expect("a mutex");
    is_send(mutex.lock());
    is_send(mutex.get());
    is_send(Arc::new(mutex.clone()).blocking_get());
    let error = rmp_serde::to_vec(&mutex).expect_err("another serializer");
    assert!(error.to_string().contains("travels only"), "{error}");
    let mut ends = String::new();
    std::io::empty().read_to_string(&mut ends).expect("nothing");
}

#[test]
fn a_thread_that_blocks_reads_itself_and_starts_no_other() {
    let (_manager, here, elsewhere, there) = lock_and_there(1u64);
    let remote = elsewhere.connection.elsewhere().expect("elsewhere");
    for round in 1..=3 {
        let mut held = blocking(here.lock());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| *there.blocking_lock().expect("lock"));
            wait_until("it waits", || elsewhere.connection.mail().is_waited_for());
            *held += 1;
            drop(held);
            assert_eq!(waits.join().expect("no panic"), round + 1);
        });
    }
    assert!(!remote.has_thread());
}

#[test]
fn the_thread_that_reads_sleeps_while_another_one_reads_and_can_be_missing() {
    in_own_process("sync::mutex_tests::own_process_reader");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_reader() {
    if !is_own_process() {
        return;
    }
    let (_manager, here, elsewhere, there) = lock_and_there(1u64);
    blocking(there.get());
    let remote = elsewhere.connection.elsewhere().expect("elsewhere");

    // No descriptor is to be had: who would wait is told, and the next one may have better luck.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    let no_more = || setrlimit(Resource::RLIMIT_NOFILE, 3, hard).expect("limits");
    let as_before = || setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("limits");
    let held = blocking(here.lock());
    no_more();
    let refused = there.lock().now_or_never().expect("it is told at once").map(drop);
    as_before();
    assert_eq!(refused.expect_err("nobody reads").kind(), ErrorKind::Memory);
    let mut waits = pin!(there.lock());
    assert!(waits.as_mut().now_or_never().is_none());
    drop(held);
    let mut got = None;
    wait_until("somebody reads", || {
        got = waits.as_mut().now_or_never();
        got.is_some()
    });
    drop(got.expect("it came").expect("it has the lock"));

    // Nobody can write when there is room again: then all is over.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
    let alone = Connection::remote(1, ours.into());
    no_more();
    wait_until("the socket is full", || {
        alone.cancel(1, 1);
        (0..1000).for_each(|_| alone.cancel(1, 1));
        alone.mail().is_closed()
    });
    as_before();
    alone.flush();
    drop(theirs);

    // While another one reads, what is there is not for the thread, which sleeps.
    let mut threads = std::fs::read_dir("/proc/self/task")
        .expect("/proc")
        .map(|thread| thread.expect("/proc").path());
    let thread = threads
        .find(|thread| {
            std::fs::read_to_string(thread.join("comm"))
                .is_ok_and(|name| name.starts_with("procpool-manage"))
        })
        .expect("it runs");
    let sleeps = || std::fs::read_to_string(thread.join("stat")).expect("/proc").contains(") S ");
    let ticket = elsewhere.connection.ticket().expect("a ticket");
    let comes = || elsewhere.connection.mail().poll(ticket, Waker::noop());
    assert!(comes().is_pending());
    remote.while_reading_asked(
        || elsewhere.connection.fetch(there.handle().name().object, ticket),
        || wait_until("it sleeps", || (0..100).all(|_| sleeps())),
    );
    wait_until("it reads afterwards", || comes().is_ready());
}
