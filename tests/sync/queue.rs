//! Queues across processes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{signal, soon, until};
use futures::{FutureExt, SinkExt, StreamExt};
use nix::sys::signal::Signal;
use procpool::sync::ErrorKind;
use procpool::sync::{Delivery, Event, Queue, QueueReceiver, QueueSender, Value};
use procpool::{Failure, Manager, Pool, Process};
use serde::Serialize;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(100);

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

fn take_all(queue: Queue<u32>) -> Vec<u32> {
    let mut got = Vec::new();
    while let Some(item) = queue.blocking_recv().unwrap() {
        got.push(item);
    }
    got
}

fn take_one(queue: Queue<u32>) -> Option<u32> {
    queue.blocking_recv().unwrap()
}

#[tokio::test]
async fn a_full_queue_refuses_or_waits_and_a_get_elsewhere_lets_one_in() {
    let pool = pool(1);
    let queue = pool.manager().queue(6).unwrap();
    for n in 0..6 {
        queue.try_send(n).unwrap();
    }
    let full = queue.try_send(6).unwrap_err();
    assert!(full.error().is_full());
    assert_eq!(full.into_inner(), 6, "it is given back");
    let begun = Instant::now();
    let late = soon(queue.send_timeout(6, SHORT)).await.unwrap_err();
    assert!(late.error().is_timeout() && begun.elapsed() >= SHORT);
    assert_eq!((queue.len().unwrap(), queue.capacity().unwrap()), (6, Some(6)));
    // The same from another process.
    let there = |queue: Queue<u32>| {
        let full = queue.try_send(6).unwrap_err().error().is_full();
        let late = queue.blocking_send_timeout(6, SHORT).unwrap_err().error().is_timeout();
        full && late
    };
    assert!(soon(pool.spawn(there, &queue)).await.unwrap());
    assert_eq!(queue.len().unwrap(), 6);
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.send(6).await }
    });
    assert_eq!(soon(pool.spawn(take_one, &queue)).await.unwrap(), Some(0));
    soon(waiting).await.unwrap().unwrap();
    assert_eq!(soon(queue.recv_many(100)).await.unwrap(), [1, 2, 3, 4, 5, 6]);
    let there = |queue: Queue<u32>| {
        let empty = queue.try_recv().unwrap_err().is_empty();
        let begun = Instant::now();
        let late = queue.blocking_recv_timeout(SHORT).unwrap_err().is_timeout();
        empty && late && begun.elapsed() >= SHORT
    };
    assert!(soon(pool.spawn(there, &queue)).await.unwrap());
}

#[tokio::test]
async fn gets_that_are_cancelled_at_any_moment_lose_nothing() {
    const ITEMS: u32 = 10_000;
    let pool = pool(3);
    const CANCELLED: u32 = 1_000;
    let queue = pool.manager().queue(16).unwrap();
    let cancelled = pool.manager().value(0u32).unwrap();
    /// So many, and as many more as it takes until enough were cancelled.
    fn send(queue: Queue<u32>, cancelled: Value<u32>) -> u32 {
        let mut sent = 0;
        while sent < ITEMS || cancelled.load().unwrap() < CANCELLED {
            sent += 1;
            queue.blocking_send(sent).unwrap();
        }
        queue.close().unwrap();
        sent
    }
    let readers: Vec<_> = (0..2).map(|_| pool.spawn(take_all, &queue)).collect();
    let sender = pool.spawn(send, (queue.clone(), cancelled.clone()));
    let mut got = Vec::new();
    let mut wait = 0;
    loop {
        wait = (wait * 7 + 13) % 300;
        // The timer is in milliseconds: shorter waits are some turns of the runtime.
        let patience = async {
            for _ in 0..wait {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = patience => drop(cancelled.fetch_add(1).unwrap()),
            item = queue.recv() => match item.unwrap() {
                Some(item) => got.push(item),
                None => break,
            },
        }
    }
    let sent = soon(sender).await.unwrap();
    for reader in readers {
        got.extend(soon(reader).await.unwrap());
    }
    got.sort_unstable();
    assert_eq!(got, (1..=sent).collect::<Vec<_>>());
    soon(pool.shutdown()).await;
}

#[tokio::test]
async fn a_reader_that_is_killed_while_it_waits_takes_no_item_along() {
    let pool = pool(2);
    let queue = pool.manager().queue(6).unwrap();
    let ready = pool.manager().value(0u32).unwrap();
    let waits = |queue: Queue<u32>, ready: Value<u32>| {
        ready.store(std::process::id()).unwrap();
        queue.blocking_recv().unwrap()
    };
    let doomed = pool.spawn(waits, (queue.clone(), ready.clone()));
    until("it waits", || ready.load().unwrap() != 0).await;
    let other = pool.spawn(take_one, &queue);
    signal(ready.load().unwrap(), Signal::SIGKILL);
    assert!(soon(doomed).await.unwrap_err().is_worker_died());
    queue.send(7).await.unwrap();
    assert_eq!(soon(other).await.unwrap(), Some(7));
}

#[tokio::test]
async fn what_a_producer_sent_before_it_exited_arrives_and_then_the_end() {
    let pool = pool(2);
    let (sender, receiver) = pool.manager().queue::<u32>(2_000).unwrap().split().unwrap();
    let produce = |sender: QueueSender<u32>| -> () {
        for n in 0..1_000 {
            sender.blocking_send(n).unwrap();
        }
        std::process::exit(0)
    };
    let consume = |receiver: QueueReceiver<u32>| {
        let mut got = Vec::new();
        while let Some(item) = receiver.blocking_recv().unwrap() {
            got.push(item);
        }
        got
    };
    let consumer = pool.spawn(consume, &receiver);
    let producer = pool.spawn(produce, &sender);
    drop(sender);
    let died: Result<(), _> = soon(producer).await;
    assert!(died.unwrap_err().is_worker_died());
    assert_eq!(soon(consumer).await.unwrap(), (0..1_000).collect::<Vec<_>>());

    let (sender, receiver) = pool.manager().queue::<String>(6).unwrap().split().unwrap();
    let dies = |receiver: QueueReceiver<String>| -> () {
        receiver.blocking_recv().unwrap();
        std::process::abort()
    };
    let died = pool.spawn(dies, &receiver);
    drop(receiver);
    sender.send("first".into()).await.unwrap();
    assert!(soon(died).await.unwrap_err().is_worker_died());
    until("there is no consumer any more", || sender.is_closed().unwrap()).await;
    let back = soon(sender.send("second".into())).await.unwrap_err();
    assert!(back.error().is_closed());
    assert_eq!(back.into_inner(), "second");
}

#[tokio::test]
async fn an_item_that_cannot_be_encoded_is_refused_and_takes_no_room() {
    #[derive(Debug)]
    struct Item(Option<u32>);
    impl Serialize for Item {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.ok_or_else(|| serde::ser::Error::custom("not this one"))?.serialize(serializer)
        }
    }
    let pool = pool(1);
    let queue = pool.manager().queue_named::<Item>("items", 1).unwrap();
    for _ in 0..2 {
        let refused = queue.send(Item(None)).await.unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::Encode);
        assert!(refused.into_inner().0.is_none() && queue.is_empty().unwrap());
    }
    queue.send(Item(Some(7))).await.unwrap();
    let numbers = pool.manager().queue_named::<u32>("items", 1).unwrap();
    assert_eq!(soon(pool.spawn(take_one, numbers)).await.unwrap(), Some(7));
}

#[tokio::test]
async fn join_waits_for_the_last_acknowledgement_and_one_too_many_is_an_error() {
    let pool = pool(4);
    let queue = pool.manager().queue::<u32>(20).unwrap();
    soon(queue.join()).await.unwrap();
    for n in 0..10 {
        queue.send(n).await.unwrap();
    }
    let mut last = soon(queue.lease()).await.unwrap().unwrap();
    let work = |queue: Queue<u32>| {
        let mut done = 0;
        while let Ok(Some(mut item)) = queue.try_lease() {
            item.blocking_ack().unwrap();
            assert!(item.blocking_ack().unwrap_err().is_not_held());
            done += 1;
        }
        done
    };
    let workers: Vec<_> = (0..4).map(|_| pool.spawn(work, &queue)).collect();
    let mut done = 0;
    for worker in workers {
        done += soon(worker).await.unwrap();
    }
    assert_eq!(done, 9);
    assert!(queue.join().now_or_never().is_none());
    last.ack().await.unwrap();
    soon(queue.join()).await.unwrap();
    assert!(last.ack().await.unwrap_err().is_not_held());
    soon(queue.join()).await.unwrap();
}

#[tokio::test]
async fn what_a_dead_process_had_leased_is_delivered_again_and_counted() {
    let pool = pool(1);
    let queue = pool.manager().queue::<String>(6).unwrap();
    queue.send("deadly".into()).await.unwrap();
    let dies = |queue: Queue<String>| -> u32 {
        let item = queue.blocking_lease().unwrap().unwrap();
        assert_eq!(&**item, "deadly");
        std::process::abort()
    };
    for _ in 0..3 {
        assert!(soon(pool.spawn(dies, &queue)).await.unwrap_err().is_worker_died());
    }
    let mut item: Delivery<String> = soon(queue.lease()).await.unwrap().unwrap();
    assert_eq!(item.deliveries(), 4);
    item.ack().await.unwrap();
    assert!(queue.is_empty().unwrap());
}

#[tokio::test]
async fn a_consumer_that_is_stopped_loses_its_lease_in_time() {
    let pool = pool(1);
    let queue = pool.manager().queue::<u32>(6).unwrap();
    let ready = pool.manager().value(0u32).unwrap();
    let go_on = pool.manager().event().unwrap();
    let slow = |queue: Queue<u32>, ready: Value<u32>, go_on: Event| {
        let mut item = queue.blocking_lease_for(SHORT).unwrap().unwrap();
        ready.store(std::process::id()).unwrap();
        go_on.blocking_wait().unwrap();
        item.blocking_ack().unwrap_err().is_not_held()
    };
    queue.send(1).await.unwrap();
    let task = pool.spawn(slow, (queue.clone(), ready.clone(), go_on.clone()));
    until("it has the item", || ready.load().unwrap() != 0).await;
    signal(ready.load().unwrap(), Signal::SIGSTOP);
    let mut mine = soon(queue.lease()).await.unwrap().unwrap();
    assert_eq!((*mine, mine.deliveries()), (1, 2));
    mine.ack().await.unwrap();
    signal(ready.load().unwrap(), Signal::SIGCONT);
    go_on.set().unwrap();
    assert!(soon(task).await.unwrap());
}

#[tokio::test]
async fn streams_and_sinks_carry_many_items_in_few_messages() {
    const ITEMS: u64 = 100_000;
    let pool = pool(2);
    let (sender, receiver) = pool.manager().queue::<u64>(10_000).unwrap().split().unwrap();
    async fn produce(sender: QueueSender<u64>, items: u64) {
        let mut sink = sender.sink();
        for n in 0..items {
            sink.feed(n).await.unwrap();
        }
        sink.close().await.unwrap();
    }
    async fn consume(receiver: QueueReceiver<u64>) -> (u64, bool) {
        let (mut sum, mut last, mut sorted) = (0, None, true);
        let mut items = receiver.stream().prefetch(256);
        while let Some(item) = items.next().await {
            let item = item.unwrap();
            sorted &= last < Some(item);
            last = Some(item);
            sum += item;
        }
        (sum, sorted)
    }
    let consumer = pool.spawn(consume, receiver);
    let producer = pool.spawn(produce, (sender.clone(), ITEMS));
    drop(sender);
    soon(producer).await.unwrap();
    assert_eq!(soon(consumer).await.unwrap(), (ITEMS * (ITEMS - 1) / 2, true));
}

#[tokio::test]
async fn large_items_and_handles_travel_through_a_queue() {
    let pool = pool(1);
    let queue = pool.manager().queue::<(Vec<u8>, Queue<usize>)>(2).unwrap();
    let serve = |queue: Queue<(Vec<u8>, Queue<usize>)>| {
        while let Some((bytes, answers)) = queue.blocking_recv().unwrap() {
            answers.blocking_send(bytes.iter().map(|byte| usize::from(*byte)).sum()).unwrap();
        }
    };
    let server = pool.spawn(serve, &queue);
    for size in [10, 1_000_000, 16_000_000] {
        let answers = pool.manager().queue(1).unwrap();
        queue.send((vec![1; size], answers.clone())).await.unwrap();
        assert_eq!(soon(answers.recv()).await.unwrap(), Some(size));
    }
    let answers = pool.manager().queue(1).unwrap();
    let refused = queue.send((vec![1; 17 << 20], answers)).await.unwrap_err();
    assert_eq!(
        (refused.error().kind(), refused.error().size_limit()),
        (ErrorKind::TooLarge, Some(16 << 20))
    );
    queue.close().unwrap();
    soon(server).await.unwrap();
    drop((queue, refused));
    until("nothing is left", || pool.manager().objects() == 0).await;
}

/// Sends numbers for ever, and says how many of the sends have returned.
async fn send_on(queue: Queue<u64>, returned: Value<u64>) -> Result<(), Failure> {
    for number in 0.. {
        queue.send(number).await?;
        returned.store(number + 1)?;
    }
    Ok(())
}

fn send_on_blocking(queue: Queue<u64>, returned: Value<u64>) -> Result<(), Failure> {
    for number in 0.. {
        queue.blocking_send(number)?;
        returned.store(number + 1)?;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_producer_that_is_killed_in_full_flight_has_sent_arrives_once_and_in_order() {
    let manager = Manager::new().unwrap();
    for round in 0..8u64 {
        let (queue, returned) =
            (manager.queue(1 << (2 * round)).unwrap(), manager.value(0u64).unwrap());
        let args = (queue.clone(), returned.clone());
        let process = if round % 2 == 0 {
            Process::spawn(send_on, args)
        } else {
            Process::spawn(send_on_blocking, args)
        };
        let process = process.map(Killed).unwrap();
        // In full flight: some thousand have come.
        let mut next = 0;
        while next < 2_000 + 321 * round {
            assert_eq!(soon(queue.recv()).await.unwrap(), Some(next));
            next += 1;
        }
        process.kill().await;
        let returned = returned.load().unwrap();
        while next < returned {
            assert_eq!(soon(queue.recv()).await.unwrap(), Some(next), "of {returned}");
            next += 1;
        }
        // One send may have been under way.
        let more = queue.recv_timeout(SHORT).await;
        assert!(
            matches!(more, Ok(Some(number)) if number == next)
                || more.as_ref().is_err_and(|e| e.is_timeout()),
            "{more:?} after {next}"
        );
        assert!(queue.recv_timeout(SHORT).await.unwrap_err().is_timeout());
    }
}

/// Receives numbers, and says the last that a `recv` has returned.
async fn take_on(queue: Queue<u64>, taken: Value<u64>) -> Result<(), Failure> {
    while let Some(number) = queue.recv().await? {
        taken.store(number + 1)?;
    }
    Ok(())
}

fn take_on_blocking(queue: Queue<u64>, taken: Value<u64>) -> Result<(), Failure> {
    while let Some(number) = queue.blocking_recv()? {
        taken.store(number + 1)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_is_killed_in_full_flight_takes_along_what_it_had_in_its_hands_and_no_more()
{
    let manager = Manager::new().unwrap();
    for round in 0..8u64 {
        let (queue, taken) =
            (manager.queue(1 << (2 * round)).unwrap(), manager.value(0u64).unwrap());
        let args = (queue.clone(), taken.clone());
        let process = if round % 2 == 0 {
            Process::spawn(take_on, args)
        } else {
            Process::spawn(take_on_blocking, args)
        };
        let process = process.map(Killed).unwrap();
        let mut sent = 0;
        while sent < 2_000 + 321 * round {
            soon(queue.send(sent)).await.unwrap();
            sent += 1;
        }
        until("it takes", || taken.load().unwrap() > 0).await;
        process.kill().await;
        let taken = taken.load().unwrap();
        // What it was sent by message comes back when its end is known: then nothing is on offer
        // any more.
        let mut rest = Vec::new();
        while rest.last().copied().unwrap_or(taken.max(1) - 1) + 1 < sent {
            let Ok(Some(number)) = queue.recv_timeout(SHORT).await else { break };
            rest.push(number);
        }
        let first = rest.first().copied().unwrap_or(sent);
        assert!(
            first == taken || first == taken + 1,
            "{first} is the first that is left, of {sent}; {taken} were taken"
        );
        assert!(rest.iter().copied().eq(first..sent), "{rest:?}");
        assert!(queue.is_empty().unwrap());
    }
}

/// A process that is about to be killed.
struct Killed(Process<Result<(), Failure>>);

impl Killed {
    async fn kill(self) {
        self.0.kill().unwrap();
        soon(self.0.wait()).await.unwrap();
    }
}

/// What one consumer has been sent ahead and has not taken is there for another, at once, and each
/// item comes once.
#[tokio::test]
async fn a_consumer_that_stops_keeps_nothing_from_another() {
    let manager = Manager::new().unwrap();
    let (queue, taken) = (manager.queue(1024).unwrap(), manager.value(0u64).unwrap());
    let process = Process::spawn(take_on, (queue.clone(), taken.clone())).map(Killed).unwrap();
    // It receives long enough to be sent ahead.
    for number in 0..500u64 {
        soon(queue.send(number)).await.unwrap();
    }
    until("all are taken", || taken.load().unwrap() == 500).await;
    signal(process.0.pid(), Signal::SIGSTOP);
    for number in 500..900u64 {
        soon(queue.send(number)).await.unwrap();
    }
    // The one that it waits for it was given; all others are ours.
    let mut got = Vec::new();
    while got.last() != Some(&899) {
        got.push(soon(queue.recv()).await.unwrap().unwrap());
    }
    assert!(got.is_sorted() && got.len() >= 399, "{} came", got.len());
    process.kill().await;
}

/// Numbers of one producer, the lowest first.
fn produce(queue: Queue<(u32, u32)>, producer: u32, count: u32) {
    for n in 0..count {
        queue.blocking_send((producer, n)).unwrap();
    }
}

fn consume(queue: Queue<(u32, u32)>) -> Vec<(u32, u32)> {
    let mut got = Vec::new();
    while let Some(item) = queue.blocking_recv().unwrap() {
        got.push(item);
    }
    got
}

async fn consume_awaiting(queue: Queue<(u32, u32)>) -> Vec<(u32, u32)> {
    let mut got = Vec::new();
    while let Some(item) = queue.recv().await.unwrap() {
        got.push(item);
    }
    got
}

#[tokio::test]
async fn each_consumer_sees_each_producers_items_in_the_order_sent() {
    const COUNT: u32 = 2_000;
    let pool = pool(6);
    for (capacity, consumers, producers) in [(3, 2, 1), (64, 2, 1), (64, 3, 2), (1024, 4, 2)] {
        let queue = pool.manager().queue(capacity).unwrap();
        let consuming: Vec<_> = (0..consumers)
            .map(|n| match n % 2 {
                0 => pool.spawn(consume, &queue),
                _ => pool.spawn(consume_awaiting, &queue),
            })
            .collect();
        let own = tokio::spawn(consume_awaiting(queue.clone()));
        let producing: Vec<_> =
            (0..producers).map(|n| pool.spawn(produce, (queue.clone(), n, COUNT))).collect();
        for producer in producing {
            soon(producer).await.unwrap();
        }
        queue.close().unwrap();
        let mut all = vec![soon(own).await.unwrap()];
        for consumer in consuming {
            all.push(soon(consumer).await.unwrap());
        }
        for producer in 0..producers {
            let of_one = |got: &Vec<(u32, u32)>| -> Vec<u32> {
                got.iter().filter(|(of, _)| *of == producer).map(|(_, n)| *n).collect()
            };
            for got in &all {
                assert!(of_one(got).is_sorted(), "capacity {capacity}, {consumers} consumers");
            }
            let mut together: Vec<_> = all.iter().flat_map(of_one).collect();
            together.sort_unstable();
            assert!(together.into_iter().eq(0..COUNT));
        }
    }
}

/// Takes a hundred items, so that items are put ahead for it, and then none until it is told.
fn take_and_stand_still(queue: Queue<u32>, stands: Event, go_on: Event) -> Vec<u32> {
    let mut got: Vec<_> =
        (0..100).map(|_| queue.blocking_recv().unwrap().expect("it is open")).collect();
    stands.set().unwrap();
    go_on.blocking_wait().unwrap();
    while let Some(item) = queue.blocking_recv().unwrap() {
        got.push(item);
    }
    got
}

#[tokio::test]
async fn a_consumer_that_stands_still_keeps_no_items_from_the_others() {
    let pool = pool(2);
    let queue = pool.manager().queue(1024).unwrap();
    let (stands, go_on) = (pool.manager().event().unwrap(), pool.manager().event().unwrap());
    queue.send_many((0..1000).collect()).await.unwrap();
    let slow = pool.spawn(take_and_stand_still, (queue.clone(), stands.clone(), go_on.clone()));
    soon(stands.wait()).await.unwrap();
    queue.close().unwrap();
    // All that the other one did not take, though some of it had been put ahead for it.
    let got = soon(pool.spawn(take_all, &queue)).await.unwrap();
    assert!(got.into_iter().eq(100..1000));
    go_on.set().unwrap();
    assert!(soon(slow).await.unwrap().into_iter().eq(0..100));
}
