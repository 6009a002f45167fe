//! The objects as several processes see them, each through a socket of its own; a process that is
//! killed is one whose socket ends. (The same with true processes: `tests/sync_*.rs`.)

use super::connection::Connection;
use super::handle::{Handle, handle_travels, kinds};
use super::wait::block_on;
use super::*;
use crate::error::sync::ErrorKind;
use crate::manager::object::Part;
use crate::process::testing::wait_until;
use futures::{FutureExt, SinkExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes.
const FUSE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(20);

/// Another process.
pub(super) struct Process {
    connection: Arc<Connection>,
    /// By which handles get there.
    bag: List<u8>,
    here: List<u8>,
}

struct Any {
    handle: Handle,
    marker: std::marker::PhantomData<()>,
}

handle_travels!(Any, kinds::LIST);

impl Process {
    pub(super) fn new(manager: &Manager) -> Self {
        let here: List<u8> = manager.list().expect("list");
        let server = manager.connection().server().expect("local");
        let (client, socket) = server.connect(None).expect("connect");
        server.dismiss(client);
        let connection = Connection::remote(manager.connection().manager(), socket);
        let bag = Any::of(&here);
        let name = server.lend(client, bag.handle.name().object, Part::WHOLE).expect("lend");
        let there = Any { handle: Handle::of(&connection, name), marker: std::marker::PhantomData };
        Self { connection, bag: there.into(), here }
    }

    /// A handle as this process has it.
    pub(super) fn has<H: Serialize + DeserializeOwned + Clone>(&self, handle: &H) -> H {
        let (here, there): (List<H>, List<H>) =
            (Any::of(&self.here).into(), Any::of(&self.bag).into());
        here.blocking_push(handle.clone()).expect("push");
        there.blocking_pop().expect("pop").expect("one")
    }

    /// As [`has`](Self::has), of what cannot be cloned.
    fn has_moved<H: Serialize + DeserializeOwned>(&self, manager: &Manager, handle: H) -> H {
        let here = manager.list::<H>().expect("list");
        here.blocking_push(handle).expect("push");
        self.has(&here).blocking_pop().expect("pop").expect("one")
    }

    fn kill(&self) {
        self.connection.cut();
    }
}

impl Any {
    fn of<T>(list: &List<T>) -> Self {
        Self { handle: list.handle().clone(), marker: std::marker::PhantomData }
    }
}

impl<T> From<Any> for List<T> {
    fn from(any: Any) -> Self {
        Self::of(any.handle)
    }
}

fn manager() -> Manager {
    Manager::new().expect("manager")
}

#[test]
fn a_queue_keeps_its_order_and_its_bound_through_sockets() {
    let manager = manager();
    let (one, two) = (Process::new(&manager), Process::new(&manager));
    let queue = manager.queue::<u32>(6).expect("queue");
    let (sends, receives) = (one.has(&queue), two.has(&queue));
    for n in 0..6 {
        sends.try_send(n).expect("room");
    }
    let full = sends.try_send(6).expect_err("full");
    assert_eq!((full.error().kind(), full.into_inner()), (ErrorKind::Full, 6));
    let begun = Instant::now();
    let late = block_on(sends.send_timeout(6, SHORT)).expect_err("no room");
    assert!(late.error().is_timeout() && begun.elapsed() >= SHORT);
    assert_eq!(queue.len().expect("len"), 6);
    let mut waiting = Box::pin(sends.send(6));
    assert!(waiting.as_mut().now_or_never().is_none());
    for n in 0..6 {
        assert_eq!(receives.blocking_recv().expect("recv"), Some(n));
    }
    block_on(waiting).expect("sent");
    assert_eq!(queue.try_recv().expect("recv"), Some(6));
    assert_eq!(receives.try_recv().expect_err("empty").kind(), ErrorKind::Empty);
    let begun = Instant::now();
    assert!(
        receives.blocking_recv_timeout(SHORT).expect_err("empty").is_timeout()
            && begun.elapsed() >= SHORT
    );
}

#[test]
fn a_receiver_that_is_killed_while_it_waits_takes_nothing_with_it() {
    let manager = manager();
    let (dies, lives) = (Process::new(&manager), Process::new(&manager));
    let queue = manager.queue::<u32>(6).expect("queue");
    let (first, second) = (dies.has(&queue), lives.has(&queue));
    let mut waits = Box::pin(first.recv());
    assert!(waits.as_mut().now_or_never().is_none());
    second.len().expect("the request is there"); // and so is the other, as far as it has come
    dies.kill();
    assert!(block_on(waits).expect_err("dead").is_manager_closed());
    queue.try_send(7).expect("room");
    assert_eq!(second.blocking_recv().expect("recv"), Some(7));
}

#[test]
fn what_a_dead_process_was_sent_and_nobody_saw_goes_to_another() {
    let manager = manager();
    let queue = manager.queue::<u32>(1000).expect("queue");
    for round in 0..50 {
        let dies = Process::new(&manager);
        let there = dies.has(&queue);
        let mut stream = there.stream().prefetch(8);
        queue.blocking_send_many((0..10).collect()).expect("sent");
        let seen: Vec<u32> =
            block_on(stream.by_ref().take(round % 8).map(|item| item.expect("item")).collect());
        dies.kill();
        let mut rest = Vec::new();
        wait_until("all have come", || {
            rest.extend(std::iter::from_fn(|| queue.try_recv().ok().flatten()));
            seen.len() + rest.len() >= 10
        });
        rest.sort_unstable(); // those that were left came before those that came back
        assert_eq!([seen, rest].concat(), (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn receives_that_are_given_up_at_any_moment_lose_and_double_nothing() {
    const ITEMS: u32 = 2_000;
    let manager = manager();
    let queue = manager.queue::<u32>(16).expect("queue");
    let processes: Vec<Process> = (0..3).map(|_| Process::new(&manager)).collect();
    let sends = processes[0].has(&queue);
    let sender = thread::spawn(move || {
        (0..ITEMS).for_each(|n| sends.blocking_send(n).expect("sent"));
        sends.close().expect("closed");
    });
    let readers: Vec<_> = processes[1..]
        .iter()
        .map(|process| {
            let there = process.has(&queue);
            thread::spawn(move || {
                let (mut got, mut given_up, mut asked) = (Vec::new(), 0u32, 0u32);
                block_on(async {
                    loop {
                        let mut receiving = Box::pin(there.recv());
                        // Every other one is given up after a few polls, unless it has got
                        // something by then.
                        asked += 1;
                        let mut polls = if asked % 2 == 0 { 1 + asked % 97 } else { 0 };
                        let item = std::future::poll_fn(|cx| {
                            let polled = receiving.as_mut().poll(cx);
                            if polled.is_pending() && polls > 0 {
                                polls -= 1;
                                cx.waker().wake_by_ref();
                                if polls == 0 {
                                    return std::task::Poll::Ready(None);
                                }
                            }
                            polled.map(Some)
                        })
                        .await;
                        match item {
                            None => given_up += 1,
                            Some(item) => match item.expect("recv") {
                                Some(item) => got.push(item),
                                None => return,
                            },
                        }
                    }
                });
                (got, given_up)
            })
        })
        .collect();
    sender.join().expect("no panic");
    let (mut all, mut given_up) = (Vec::new(), 0);
    for reader in readers {
        let (got, times) = reader.join().expect("no panic");
        all.extend(got);
        given_up += times;
    }
    all.sort_unstable();
    assert_eq!(all, (0..ITEMS).collect::<Vec<_>>());
    assert!(given_up > 100, "{given_up} were given up");
}

#[test]
fn a_lease_comes_back_from_the_dead_with_its_count_and_join_waits_for_it() {
    let manager = manager();
    let queue = manager.queue::<String>(6).expect("queue");
    block_on(queue.join()).expect("nothing was sent");
    queue.try_send("job".into()).expect("room");
    for count in 1..4 {
        let dies = Process::new(&manager);
        let lease = dies.has(&queue).blocking_lease().expect("lease").expect("open");
        assert_eq!((&**lease, lease.deliveries()), ("job", count));
        assert_eq!(queue.len().expect("len"), 0);
        assert!(queue.join_timeout(Duration::from_millis(1)).now_or_never().is_none());
        assert!(
            queue.blocking_join_timeout(Duration::from_millis(1)).is_err_and(|e| e.is_timeout())
        );
        dies.kill();
        drop(lease);
    }
    let mut lease = queue.blocking_lease().expect("lease").expect("open");
    assert_eq!(lease.deliveries(), 4);
    queue.close().expect("close");
    let mut recv = Box::pin(queue.recv());
    assert!(recv.as_mut().now_or_never().is_none(), "it may come back");
    block_on(lease.ack()).expect("acknowledged");
    assert!(block_on(lease.ack()).expect_err("a mark too many").is_not_held());
    assert_eq!(block_on(recv).expect("closed"), None);
    queue.blocking_join().expect("all is done");
}

#[test]
fn a_lease_that_has_run_out_is_somebody_elses() {
    let manager = manager();
    let process = Process::new(&manager);
    let queue = manager.queue::<u8>(6).expect("queue");
    let there = process.has(&queue);
    queue.try_send(1).expect("room");
    let mut slow = there.blocking_lease_for(SHORT).expect("lease").expect("open");
    slow.blocking_extend(SHORT * 2).expect("held");
    let begun = Instant::now();
    let mut second = queue.blocking_lease().expect("lease").expect("open");
    assert!(begun.elapsed() >= SHORT, "it was extended");
    assert_eq!((*second, second.deliveries()), (1, 2));
    assert!(slow.blocking_ack().expect_err("not any more").is_not_held());
    second.blocking_extend(FUSE).expect("held");
    second.blocking_reject().expect("held");
    let third = there.try_lease().expect("lease").expect("open");
    assert_eq!(third.deliveries(), 3);
    drop(third);
    assert_eq!(queue.blocking_lease().expect("lease").expect("open").deliveries(), 4);
}

#[test]
fn a_queue_ends_with_its_last_sender_and_refuses_without_a_receiver() {
    let manager = manager();
    let (one, two) = (Process::new(&manager), Process::new(&manager));
    let (sender, receiver) = manager.queue::<u32>(2000).expect("queue").split().expect("split");
    let (sends, receives) = (one.has(&sender), two.has(&receiver));
    drop(sender);
    block_on(async {
        let mut sink = sends.sink().batch(100);
        for n in 0..1000 {
            sink.feed(n).await.expect("fed");
        }
        sink.close().await.expect("flushed");
    });
    // It exits at once.
    one.kill();
    let got: Vec<u32> =
        block_on(receives.stream().prefetch(64).map(|item| item.expect("item")).collect());
    assert_eq!(got, (0..1000).collect::<Vec<_>>());
    assert_eq!(receiver.blocking_recv().expect("closed"), None);

    let (sender, receiver) = manager.queue::<String>(6).expect("queue").split().expect("split");
    let receives = two.has(&receiver);
    drop(receiver);
    sender.try_send("kept".into()).expect("there is a receiver");
    two.kill();
    drop(receives);
    wait_until("its death is known", || sender.is_closed().expect("status"));
    let back = block_on(sender.send("back".into())).expect_err("nobody receives");
    assert!(back.error().is_closed());
    assert_eq!(back.into_inner(), "back");
}

#[test]
fn an_item_that_cannot_be_encoded_or_decoded_costs_itself_alone() {
    struct Strange(bool);
    impl Serialize for Strange {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if self.0 { serializer.serialize_u8(7) } else { Err(serde::ser::Error::custom("no")) }
        }
    }
    let manager = manager();
    let queue = manager.queue_named::<Strange>("q", 1).expect("queue");
    let refused = queue.try_send(Strange(false)).expect_err("it cannot be encoded");
    assert_eq!(refused.error().kind(), ErrorKind::Encode);
    assert_eq!(queue.len().expect("len"), 0);
    queue.try_send(Strange(true)).expect("the room is still there");
    let other = manager.queue_named::<String>("q", 1).expect("the same");
    assert_eq!(other.try_recv().expect_err("no string").kind(), ErrorKind::Decode);
    queue.try_send(Strange(true)).expect("room");
    assert_eq!(other.try_lease().expect_err("no string").kind(), ErrorKind::Decode);
    wait_until("it is gone for good", || other.leased().expect("status") == 0);
    assert!(queue.is_empty().expect("status"));
}

#[test]
fn permits_of_the_dead_come_back_and_one_who_wants_many_gets_them() {
    let manager = manager();
    let dies = Process::new(&manager);
    let semaphore = manager.bounded_semaphore(2).expect("semaphore");
    let there = dies.has(&semaphore);
    let permit = there.blocking_acquire().expect("permit");
    assert_eq!(semaphore.available_permits().expect("status"), 1);
    let mut both = Box::pin(semaphore.acquire_many(2));
    assert!(both.as_mut().now_or_never().is_none());
    assert!(there.try_acquire().expect("asked").is_none(), "nobody passes");
    dies.kill();
    let both = block_on(both).expect("its death gave the permit back");
    assert_eq!(both.num_permits(), 2);
    drop(permit); // which gives nothing back any more
    drop(both);
    assert_eq!(semaphore.available_permits().expect("status"), 2);
    assert_eq!(semaphore.add_permits(1).expect_err("bounded").kind(), ErrorKind::AboveLimit);
    assert_eq!(semaphore.available_permits().expect("status"), 2);
}

#[test]
fn a_barrier_breaks_when_a_party_dies_that_waits_or_was_there() {
    let manager = manager();
    let barrier = manager.barrier(3).expect("barrier");
    for waits in [true, false] {
        let (dies, lives) = (Process::new(&manager), Process::new(&manager));
        let (a, b) = (dies.has(&barrier), lives.has(&barrier));
        if !waits {
            let waiting = [a.clone(), b.clone()]
                .map(|barrier| thread::spawn(move || barrier.blocking_wait()));
            let mut leaders = usize::from(barrier.blocking_wait().expect("passed").is_leader());
            for thread in waiting {
                leaders +=
                    usize::from(thread.join().expect("no panic").expect("passed").is_leader());
            }
            assert_eq!(leaders, 1);
        }
        let mut doomed = Box::pin(a.wait());
        if waits {
            assert!(doomed.as_mut().now_or_never().is_none());
        }
        let survivor = thread::spawn(move || b.blocking_wait());
        wait_until("they wait", || barrier.n_waiting().expect("status") == 1 + u32::from(waits));
        dies.kill();
        assert!(survivor.join().expect("no panic").expect_err("broken").is_broken_barrier());
        assert!(
            barrier.blocking_wait().expect_err("broken for newcomers, too").is_broken_barrier()
        );
        assert!(barrier.is_broken().expect("status"));
        barrier.reset().expect("reset");
    }
}

#[test]
fn an_event_wakes_all_who_wait_wherever() {
    let manager = manager();
    let event = manager.event().expect("event");
    let processes: Vec<Process> = (0..5).map(|_| Process::new(&manager)).collect();
    assert!(!event.is_set().expect("status"));
    let begun = Instant::now();
    assert!(
        processes[0].has(&event).blocking_wait_timeout(SHORT).expect_err("unset").is_timeout()
            && begun.elapsed() >= SHORT
    );
    let mut waiting: Vec<_> = (0..50).map(|n| processes[n % 5].has(&event)).collect();
    let mut waiting: Vec<_> = waiting.iter_mut().map(|event| Box::pin(event.wait())).collect();
    waiting.iter_mut().for_each(|wait| assert!(wait.as_mut().now_or_never().is_none()));
    assert!(!processes[1].has(&event).set().expect("set"));
    assert!(event.set().expect("set"), "it was set already");
    waiting.into_iter().for_each(|wait| block_on(wait).expect("told"));
    assert!(event.clear().expect("clear"));
    assert!(event.wait().now_or_never().is_none(), "it waits again");
}

#[test]
fn what_a_writer_had_not_committed_when_it_died_was_never_there() {
    let manager = manager();
    let lock = manager.rwlock(vec![1; 2000]).expect("lock");
    let dies = Process::new(&manager);
    let there = dies.has(&lock);
    let mut guard = there.blocking_write().expect("write");
    guard[0] = 7;
    assert!(lock.try_read().expect("asked").is_none());
    let waits = thread::spawn({
        let lock = lock.clone();
        move || {
            lock.blocking_write().map(|guard| (guard[0], guard.recovered(), guard.fencing_token()))
        }
    });
    dies.kill();
    assert_eq!(waits.join().expect("no panic").expect("write"), (1, true, 2));
    drop(guard); // the dead says nothing
    let process = Process::new(&manager);
    let there = process.has(&lock);
    let mut guard = there.blocking_write().expect("write");
    assert!(guard.recovered());
    guard.clear_recovered();
    guard[0] = 2;
    drop(guard);
    let (one, two) = (lock.blocking_read().expect("read"), there.blocking_read().expect("read"));
    assert_eq!((one[0], two[0], one.recovered(), one.len()), (2, 2, false, 2000));
    assert!(there.try_write().expect("asked").is_none());
    drop((one, two));
    let mut guard = block_on(there.write()).expect("write");
    guard[0] = 3;
    let guard = block_on(guard.downgrade()).expect("downgrade");
    assert_eq!((lock.blocking_read().expect("both read")[0], guard[0]), (3, 3));
    drop(guard);
    let mut guard = lock.blocking_write().expect("write");
    guard[0] = 99;
    guard.rollback();
    let panicked = thread::spawn({
        let lock = lock.clone();
        move || {
            let mut guard = lock.blocking_write().expect("write");
            guard[0] = 100;
            panic!("on purpose");
        }
    });
    panicked.join().expect_err("it panics");
    assert_eq!(there.blocking_get().expect("get")[0], 3);
    assert!(lock.blocking_read().expect("read").recovered());
}

#[test]
fn maps_and_lists_are_the_same_everywhere() {
    let manager = manager();
    let process = Process::new(&manager);
    let map = manager.map::<String, u64>().expect("map");
    let there = process.has(&map);
    let mut watch = there.blocking_watch().expect("watch");
    let mut watch_b = block_on(map.watch_key("b")).expect("watch");
    assert_eq!(map.blocking_insert("a".into(), 1).expect("insert"), None);
    assert_eq!(there.blocking_insert("a".into(), 2).expect("insert"), Some(1));
    assert_eq!(block_on(there.get("a")).expect("get"), Some(2));
    assert_eq!(there.blocking_get_or_insert("b".into(), 5).expect("insert"), 5);
    assert_eq!(map.blocking_get_or_insert("b".into(), 6).expect("there"), 5);
    assert_eq!(
        map.blocking_compare_exchange("b".into(), Some(&6), Some(&7)).expect("asked"),
        Err(CompareExchangeError { current: Some(5) })
    );
    assert_eq!(
        there.blocking_compare_exchange("b".into(), Some(&5), Some(&7)).expect("asked"),
        Ok(())
    );
    assert_eq!(
        there.blocking_compare_exchange("c".into(), Some(&5), None).expect("asked"),
        Err(CompareExchangeError { current: None })
    );
    assert_eq!(
        there.blocking_entries().expect("entries"),
        [("a".to_owned(), 2), ("b".to_owned(), 7)]
    );
    assert_eq!(block_on(there.keys()).expect("keys"), ["a", "b"]);
    assert_eq!(there.blocking_remove("a").expect("remove"), Some(2));
    assert_eq!(map.blocking_remove("a").expect("absent"), None);
    let set = |key: &str, value| MapChange::Set { key: key.to_owned(), value };
    for expected in
        [set("a", 1), set("a", 2), set("b", 5), set("b", 7), MapChange::Removed { key: "a".into() }]
    {
        assert_eq!(watch.blocking_changed().expect("change"), expected);
    }
    assert!(watch.next().now_or_never().is_none());
    assert_eq!(block_on(watch_b.changed()).expect("change"), set("b", 5));

    let list = manager.list::<u64>().expect("list");
    let there = process.has(&list);
    list.blocking_extend(0..1000).expect("extend");
    assert_eq!(there.blocking_pop().expect("pop"), Some(999));
    assert_eq!(there.blocking_set(3, 33).expect("set"), 3);
    assert_eq!(there.blocking_update(3, |n| n + 1).expect("update"), 34);
    assert_eq!(list.blocking_compare_exchange(3, &35, &36).expect("asked"), Err(34));
    assert_eq!(there.blocking_range(2..5).expect("range"), [2, 34, 4]);
    assert_eq!(there.blocking_get(999).expect("absent"), None);
    for error in [
        there.blocking_set(999, 0).expect_err("set"),
        there.blocking_remove(999).expect_err("remove"),
    ] {
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
    }
    assert_eq!(there.blocking_insert(1001, 0).expect_err("insert").kind(), ErrorKind::OutOfRange);
    there.blocking_clear().expect("clear");
    assert_eq!(list.blocking_pop_front().expect("empty"), None);
}

#[test]
fn changes_from_many_processes_at_once_are_each_one_step() {
    let manager = manager();
    let map = manager.map::<String, u64>().expect("map");
    let list = manager.list::<u64>().expect("list");
    list.blocking_push(0).expect("push");
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let process = Process::new(&manager);
            let (map, list) = (process.has(&map), process.has(&list));
            thread::spawn(move || {
                for _ in 0..100 {
                    map.blocking_update("sum".into(), |n| Some(n.unwrap_or(0) + 1))
                        .expect("update");
                    list.blocking_update(0, |n| n + 1).expect("update");
                }
                drop(process);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    assert_eq!(map.blocking_get("sum").expect("get"), Some(400));
    assert_eq!(list.blocking_get(0).expect("get"), Some(400));
}

#[test]
fn nobody_waits_for_an_object_of_a_manager_that_is_closed() {
    let manager = manager();
    let process = Process::new(&manager);
    let queue = process.has(&manager.queue::<u8>(1).expect("queue"));
    let semaphore = process.has(&manager.semaphore(0).expect("semaphore"));
    let event = process.has(&manager.event().expect("event"));
    let barrier = process.has(&manager.barrier(2).expect("barrier"));
    let mut watch =
        process.has(&manager.map::<u8, u8>().expect("map")).blocking_watch().expect("watch");
    let here = manager.event().expect("event");
    let threads = [
        thread::spawn(move || queue.blocking_recv().map(drop)),
        thread::spawn(move || semaphore.blocking_acquire().map(drop)),
        thread::spawn(move || event.blocking_wait()),
        thread::spawn(move || barrier.blocking_wait().map(drop)),
        thread::spawn(move || watch.blocking_changed().map(drop)),
        thread::spawn(move || here.blocking_wait()),
    ];
    manager.close();
    for thread in threads {
        assert!(thread.join().expect("no panic").expect_err("closed").is_manager_closed());
    }
}

#[test]
fn a_notification_is_passed_on_by_one_who_dies_and_none_is_missed_after_the_lock_was_let_go() {
    let manager = manager();
    let (stock, changed) =
        (manager.mutex(0u32).expect("mutex"), manager.condvar().expect("condvar"));
    let taken = manager.semaphore(0).expect("semaphore");
    let consumers: Vec<_> = (0..3)
        .map(|_| {
            let process = Process::new(&manager);
            let (stock, changed, taken) =
                (process.has(&stock), process.has(&changed), process.has(&taken));
            thread::spawn(move || {
                for _ in 0..50 {
                    let guard = stock.blocking_lock().expect("lock");
                    let mut guard =
                        changed.blocking_wait_while(guard, |stock| *stock == 0).expect("wait");
                    *guard -= 1;
                    guard.commit().expect("commit");
                    taken.add_permits(1).expect("add");
                }
                drop(process);
            })
        })
        .collect();
    for round in 0..150 {
        if round % 10 == 0 {
            // One that waits, and dies when it may have been notified.
            let dies = Process::new(&manager);
            let (theirs, told) = (dies.has(&stock), dies.has(&changed));
            let waits =
                thread::spawn(move || told.blocking_wait(theirs.blocking_lock()?).map(drop));
            thread::yield_now();
            changed.notify_one().expect("notify");
            dies.kill();
            waits.join().expect("no panic").map_err(|error| error.kind()).ok();
        }
        *stock.blocking_lock().expect("lock") += 1;
        changed.notify_one().expect("notify");
        if round % 3 == 0 {
            taken
                .blocking_acquire_timeout(FUSE)
                .expect("somebody has taken it")
                .forget()
                .expect("forget");
        }
    }
    consumers.into_iter().for_each(|consumer| consumer.join().expect("no panic"));
    assert_eq!(stock.blocking_get().expect("get"), 0);
    let guard = stock.blocking_lock().expect("lock");
    let (guard, notified) = changed.blocking_wait_timeout(guard, SHORT).expect("wait");
    assert!(!notified);
    drop(guard);
    changed.notify_all().expect("nobody waits");
}

struct Account {
    balance: i64,
    gone: Arc<Mutex0>,
}

type Mutex0 = std::sync::Mutex<Option<thread::ThreadId>>;

impl Drop for Account {
    fn drop(&mut self) {
        *self.gone.lock().expect("lock") = Some(thread::current().id());
    }
}

impl Actor for Account {
    type Call = (String, i64);
    type Reply = i64;

    async fn call(&mut self, (what, sum): (String, i64)) -> i64 {
        match &*what {
            "add" => self.balance += sum,
            "sleep" => tokio::time::sleep(Duration::from_millis(sum as u64)).await,
            other => panic!("no {other}"),
        }
        self.balance
    }
}

#[test]
fn a_registered_object_is_called_by_all_one_after_another_and_ends_with_its_last_handle() {
    let manager = manager();
    let gone = Arc::new(Mutex0::default());
    let account =
        manager.register(Account { balance: 0, gone: Arc::clone(&gone) }).expect("register");
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let process = Process::new(&manager);
            let account = process.has(&account);
            thread::spawn(move || {
                for _ in 0..100 {
                    account.blocking_call(("add".into(), 1)).expect("call");
                }
                drop(process);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    let panicked = block_on(account.call(("nonsense".into(), 0))).expect_err("it panics");
    assert_eq!(
        (panicked.kind(), panicked.panic_message()),
        (ErrorKind::Panicked, Some("no nonsense"))
    );
    // It goes on. A call that is late runs on, one that had not begun does not.
    let slow =
        block_on(account.call_timeout(("sleep".into(), 50), SHORT)).expect_err("it takes longer");
    let never = block_on(account.call_timeout(("add".into(), 1000), Duration::from_millis(1)))
        .expect_err("one at a time");
    assert!(slow.is_timeout() && never.is_timeout());
    assert_eq!(account.blocking_call(("add".into(), 0)).expect("call"), 400);
    let process = Process::new(&manager);
    let last = process.has(&account);
    drop(account);
    assert_eq!(last.blocking_call(("add".into(), 1)).expect("call"), 401);
    let objects = manager.objects();
    drop(last);
    wait_until("it is dropped", || gone.lock().expect("lock").is_some());
    assert_ne!(*gone.lock().expect("lock"), Some(thread::current().id()), "on its own thread");
    wait_until("nothing of it is left", || manager.objects() == objects - 1);
    let account = manager.register(Account { balance: 0, gone: Arc::default() }).expect("register");
    manager.close();
    assert!(account.blocking_call(("add".into(), 1)).expect_err("closed").is_manager_closed());
}

#[test]
fn a_channel_has_two_ends_wherever_they_are() {
    let (here, there) = channel::<Vec<u8>>().expect("channel");
    assert_eq!(here.try_recv().expect_err("nothing was sent").kind(), ErrorKind::Empty);
    let begun = Instant::now();
    assert!(
        here.blocking_recv_timeout(SHORT).expect_err("nothing").is_timeout()
            && begun.elapsed() >= SHORT
    );
    // More than there is room for, both ways at once.
    let large = vec![7; 3 << 20];
    let echo = thread::spawn(move || {
        while let Some(item) = there.blocking_recv().expect("recv") {
            there.blocking_send(item).expect("send");
        }
        there
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    for _ in 0..3 {
        runtime.block_on(async {
            here.send(large.clone()).await.expect("send");
            assert_eq!(here.recv().await.expect("recv").as_ref(), Some(&large));
        });
        // Another runtime, or none, is as good.
        let other =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        other.block_on(here.send(vec![1])).expect("send");
        assert_eq!(here.blocking_recv().expect("recv"), Some(vec![1]));
    }
    let refused = here.try_send(large).expect_err("it could only be begun");
    assert_eq!(refused.error().kind(), ErrorKind::TooLarge);
    let mut sent = 0;
    let full = loop {
        match here.try_send(vec![0; 1000]) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.error().kind(), ErrorKind::Full);
    for _ in 0..sent {
        assert_eq!(here.blocking_recv().expect("recv").map(|item| item.len()), Some(1000));
    }
    drop(here);
    let there = echo.join().expect("no panic");
    let refused = there.blocking_send(vec![2]).expect_err("closed");
    assert!(refused.error().is_closed());
    assert_eq!(refused.into_inner(), [2]);
}

#[test]
fn an_end_of_a_channel_travels_until_it_is_used_and_is_then_in_one_place() {
    let (here, there) = duplex::<u32, String>().expect("channel");
    let manager = manager();
    let list = manager.list::<Channel<String, u32>>().expect("list");
    // Another manager keeps the ends that wait: they cannot be in a list of this one.
    assert_eq!(list.blocking_push(there).expect_err("foreign").kind(), ErrorKind::ForeignHandle);
    let (one, two) = manager.duplex::<u32, String>().expect("channel");
    let (p, q) = (Process::new(&manager), Process::new(&manager));
    let bag = p.has(&list);
    list.blocking_push(two).expect("of this manager");
    let two = bag.blocking_pop().expect("pop").expect("one");
    let (there, back) = (p.has_moved(&manager, one), q.has_moved(&manager, two));
    there.blocking_send(7).expect("send");
    assert_eq!(back.blocking_recv().expect("recv"), Some(7));
    back.blocking_send("seven".into()).expect("send");
    drop(back); // its process's end, and no other
    assert_eq!(there.blocking_recv().expect("recv").as_deref(), Some("seven"));
    assert_eq!(there.blocking_recv().expect("closed"), None);
    let (kept, given) = duplex::<u32, String>().expect("channel");
    let text = crate::wire::value::names::collecting(|| {
        crate::wire::value::encode(&given, &mut Vec::new(), 100)
    });
    text.0.expect("it can be sent away");
    kept.blocking_send(1).expect("send");
    assert_eq!(given.blocking_recv().expect("recv"), Some(1));
    let text = crate::wire::value::names::collecting(|| {
        crate::wire::value::encode(&given, &mut Vec::new(), 100)
    });
    text.0.expect_err("it is used here");
    let copy = Channel::<String, u32>::copy_of(&given);
    assert!(copy.blocking_recv().expect_err("another one has it").is_not_held());
    let refused = kept.blocking_send(2).map(|()| given.blocking_recv());
    assert_eq!(refused.expect("send").expect("recv"), Some(2));
    drop((here, kept));
    assert_eq!(given.blocking_recv().expect("closed"), None);
    let (here, there) = channel::<Box<Event>>().expect("channel");
    let event = manager.event().expect("event");
    assert_eq!(
        here.blocking_send(Box::new(event)).expect_err("a handle").error().kind(),
        ErrorKind::Encode
    );
    drop(there);
}

/// As much as is promised of auto traits, whatever is inside.
#[test]
fn handles_and_their_futures_are_send() {
    fn is_send<T: Send>(_: &T) {}
    fn is_shared<T: Send + Sync + Unpin>() {}
    is_shared::<(Queue<*const u8>, QueueSender<*const u8>, QueueReceiver<*const u8>)>();
    is_shared::<(
        Map<*const u8, *const u8>,
        List<*const u8>,
        RwLock<*const u8>,
        Semaphore,
        Event,
        Barrier,
    )>();
    let manager = manager();
    let queue = manager.queue::<String>(1).expect("queue");
    is_send(&queue.send(String::new()));
    is_send(&queue.recv());
    is_send(&queue.lease());
    is_send(&queue.stream());
    is_send(&queue.sink());
    is_send(&manager.rwlock(String::new()).expect("lock").write());
}

// ---- what is given up while more is on its way

/// A queue as a process sees it that has lanes by now; it is empty.
fn queue_with_lanes(manager: &Manager) -> (Process, Queue<u32>, Queue<u32>) {
    let process = Process::new(manager);
    let here: Queue<u32> = manager.queue(1000).expect("queue");
    let there = process.has(&here);
    for number in 0..100 {
        here.blocking_send(number).expect("send");
        assert_eq!(there.blocking_recv().expect("recv"), Some(number));
    }
    (process, here, there)
}

fn rest(queue: &Queue<u32>, count: usize) -> Vec<u32> {
    (0..count).map(|_| queue.blocking_recv().expect("recv").expect("one")).collect()
}

#[test]
fn what_a_dropped_stream_had_fetched_comes_before_what_came_later() {
    let manager = Manager::new().expect("manager");
    let (_process, here, there) = queue_with_lanes(&manager);
    for _ in 0..20 {
        let mut stream = there.stream().prefetch(10);
        assert!(stream.next().now_or_never().is_none());
        assert!(there.is_empty().expect("status"), "by now it is known that it waits");
        here.blocking_send_many((0..30).collect()).expect("send");
        let mut got: Vec<u32> =
            (0..3).map(|_| block_on(stream.next()).expect("one").expect("decoded")).collect();
        drop(stream);
        got.extend(rest(&there, 27));
        assert!(got.is_sorted(), "{got:?}");
    }
}

#[test]
fn what_a_dropped_lease_gives_back_comes_before_what_came_later() {
    let manager = Manager::new().expect("manager");
    let (_process, here, there) = queue_with_lanes(&manager);
    for _ in 0..20 {
        here.blocking_send_many((0..10).collect()).expect("send");
        drop(there.blocking_lease().expect("lease").expect("one"));
        assert_eq!(rest(&there, 10), (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn one_waits_at_a_lane_and_the_others_of_its_process_and_elsewhere_have_their_turns() {
    let manager = Manager::new().expect("manager");
    let (_process, here, there) = queue_with_lanes(&manager);
    for _ in 0..20 {
        let [mut first, mut second] = [(); 2].map(|()| Box::pin(there.recv()));
        assert!(
            first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none()
        );
        assert!(there.is_empty().expect("status"), "by now it is known that they wait");
        here.blocking_send_many((0..4).collect()).expect("send");
        assert!(there.leased().is_ok(), "and by now what was promised and offered has come");
        // What is behind the first one's is anybody's.
        assert_eq!(there.blocking_recv().expect("recv"), Some(2));
        assert_eq!(here.blocking_recv().expect("recv"), Some(3));
        assert_eq!(block_on(second).expect("recv"), Some(1));
        assert_eq!(here.try_recv().expect_err("it is promised").kind(), ErrorKind::Empty);
        assert_eq!(block_on(first).expect("recv"), Some(0));
        // One who waits no longer gives it back to its place.
        let mut first = Box::pin(there.recv());
        assert!(first.as_mut().now_or_never().is_none() && there.is_empty().expect("status"));
        here.blocking_send_many((4..6).collect()).expect("send");
        drop(first);
        assert_eq!(rest(&there, 2), [4, 5]);
    }
}

#[test]
fn a_set_that_was_dropped_is_not_passed_by_those_after_it() {
    let manager = Manager::new().expect("manager");
    let here = manager.map::<u8, Vec<u32>>().expect("map");
    let process = Process::new(&manager);
    let there = process.has(&here);
    let mut dropped = 0;
    for number in 0..100 {
        for _ in 0..50 {
            there.blocking_set(1, vec![number]).expect("set"); // by lane, in the end
        }
        // Too long for a lane.
        dropped += u32::from(there.set(1, vec![number; 4000]).now_or_never().is_none());
        there.blocking_set(1, vec![number, number]).expect("set");
        assert_eq!(there.len().expect("len"), 1); // by now all that was sent before has been read
        assert_eq!(here.blocking_get(&1).expect("get"), Some(vec![number, number]));
    }
    assert!(dropped > 0, "each was answered at once");
}
