//! A function over many items.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{Scene, gone, is_pending, mark, pass, until, within};
use futures::future::{join, join_all};
use futures::stream::{self, LocalBoxStream, Stream, StreamExt, TryStreamExt};
use procpool::{Pool, Results, TaskError};
use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn square(n: u64) -> u64 {
    n * n
}

/// A task that takes a while, which follows from the number but seems random.
fn square_at_leisure(n: u64) -> u64 {
    std::thread::sleep(Duration::from_micros(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 2047));
    n * n
}

async fn square_at_leisure_async(n: u64) -> u64 {
    tokio::time::sleep(Duration::from_micros(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 2047))
        .await;
    n * n
}

#[tokio::test]
async fn results_come_in_the_order_of_the_input() {
    let expected: Vec<u64> = (0..1000).map(|n| n * n).collect();
    let each = [1, 2, 7].into_iter().flat_map(|workers| {
        [None, Some(1), Some(8), Some(usize::MAX)].map(|window| (workers, window))
    });
    let runs = each.map(|(workers, window)| async move {
        let scene = Scene::new(workers);
        let mut results = scene.pool.map(square_at_leisure, 0..1000);
        if let Some(window) = window {
            results = results.buffered(window);
        }
        let squares: Vec<u64> = within("1000 results", results.try_collect()).await.unwrap();
        let mut results = scene.pool.map(square_at_leisure_async, 0..1000).unordered();
        if let Some(window) = window {
            results = results.buffered(window);
        }
        let unordered: BTreeSet<u64> =
            within("1000 results of async tasks", results.try_collect()).await.unwrap();
        scene.end().await;
        (squares, unordered)
    });
    for (squares, unordered) in join_all(runs).await {
        assert_eq!(squares, expected);
        assert_eq!(unordered, expected.iter().copied().collect());
    }
}

#[tokio::test]
async fn results_come_with_the_place_of_their_item_in_any_order_and_whatever_befell_it() {
    let scene = Scene::new(2);
    let work = |n: u64| {
        if n % 100 == 50 {
            std::process::abort();
        }
        n + 1000
    };
    for is_unordered in [false, true] {
        let results = scene.pool.map(work, 0..300);
        let results = if is_unordered { results.unordered() } else { results };
        let all: Vec<_> = within("results", results.enumerate_items().collect()).await;
        let mut seen = Vec::new();
        for (item, result) in all {
            match result {
                Ok(value) => assert_eq!(value, item + 1000),
                Err(error) => assert_eq!((item % 100, error.item()), (50, Some(item)), "{error}"),
            }
            seen.push(item);
        }
        if is_unordered {
            seen.sort_unstable();
        }
        assert_eq!(seen, (0..300).collect::<Vec<_>>());
    }
    // What the source had yet to give when the pool was closed.
    let mut results = scene.pool.map(square, 0..).buffered(1).enumerate_items();
    assert_eq!(within("a result", results.next()).await.unwrap().0, 0);
    scene.pool.shutdown().await;
    let rest: Vec<_> = within("the end", results.collect()).await;
    for (item, (place, _)) in (1..).zip(&rest) {
        assert_eq!(*place, item);
    }
    assert!(rest.last().unwrap().1.as_ref().unwrap_err().is_pool_closed());
}

#[tokio::test]
async fn tuples_are_spread_over_the_arguments() {
    let scene = Scene::new(2);
    let repeat = |text: String, times: usize| text.repeat(times);
    let items = ["a", "b", "c"].into_iter().map(|text| (text.to_owned(), 2));
    let texts: Vec<String> =
        within("results", scene.pool.map(repeat, items).try_collect()).await.unwrap();
    assert_eq!(texts, ["aa", "bb", "cc"]);
    let borrowed = ["one", "three"];
    let lengths: Vec<usize> =
        within("results", scene.pool.map(|text: String| text.len(), borrowed).try_collect())
            .await
            .unwrap();
    assert_eq!(lengths, [3, 5]);
    let units: Vec<u32> =
        within("results", scene.pool.map(std::process::id, [(), ()]).try_collect()).await.unwrap();
    assert_eq!(units.len(), 2);
    scene.end().await;
}

#[tokio::test]
async fn a_map_over_nothing_ends_at_once_and_starts_no_worker() {
    let scene = Scene::new(2);
    let pool = &scene.pool;
    let squares = within("collect", pool.map(square, 0..0).try_collect::<Vec<u64>>()).await;
    assert!(squares.unwrap().is_empty());
    assert!(within("ordered", pool.map(square, 0..0).next()).await.is_none());
    assert!(within("unordered", pool.map(square, 0..0).unordered().next()).await.is_none());
    assert!(within("buffered", pool.map(square, 0..0).buffered(1).next()).await.is_none());
    assert!(
        within("over a stream", pool.map_stream(square, stream::empty::<u64>()).next())
            .await
            .is_none()
    );
    let nothing = stream::empty::<Result<u64, String>>();
    assert!(
        within("over a stream of results", pool.try_map_stream(square, nothing).next())
            .await
            .is_none()
    );
    // It goes on being at its end.
    let mut ended = pool.map(square, 0..0);
    assert!(
        within("the end", ended.next()).await.is_none()
            && within("still the end", ended.next()).await.is_none()
    );
    assert_eq!(scene.workers(), []);
    scene.end().await;
}

/// Item 1 does not end, and nothing else waits for it; with the stream it is gone.
#[tokio::test]
async fn a_slow_item_holds_up_nobody_and_goes_with_the_stream() {
    let scene = Scene::new(2);
    let (gate, marks) = (scene.gate("never opened"), scene.marks("slow one"));
    let work = |n: u32, gate: PathBuf, marks: PathBuf| {
        if n == 1 {
            mark(marks, std::process::id());
            pass(gate);
        }
        n
    };
    let items = (0..10).map(|n| (n, gate.path().to_owned(), marks.path().to_owned()));
    let mut results = scene.pool.map(work, items).unordered();
    let mut arrived = HashSet::new();
    for _ in 0..9 {
        arrived.insert(within("the nine others", results.next()).await.unwrap().unwrap());
    }
    assert_eq!(arrived, (0..10).filter(|n| *n != 1).collect());
    marks.count(1).await;
    let pid: u32 = marks.lines()[0].parse().unwrap();
    let slow: Vec<_> = scene.workers().into_iter().filter(|worker| worker.pid == pid).collect();
    assert_eq!(slow.len(), 1, "the slow one still runs");
    drop(results);
    gone(&slow).await;
    scene.end().await;
}

#[tokio::test]
async fn the_source_is_pulled_no_further_than_the_window() {
    let scene = Scene::new(1);
    let pulled = Cell::new(0);
    let source = (0..1_000_000_u64).inspect(|_| pulled.set(pulled.get() + 1));
    let mut results = scene.pool.map(square, source).buffered(4);
    assert_eq!(pulled.get(), 0, "nothing is pulled before the first poll");
    assert_eq!(within("the first result", results.next()).await.unwrap().unwrap(), 0);
    assert!(pulled.get() <= 5, "{} were pulled", pulled.get());
    let before = pulled.get();
    // The workers go on, and other tasks pass; nobody reads.
    for _ in 0..20 {
        scene.serves().await;
    }
    assert_eq!(pulled.get(), before);
    for n in 1..100 {
        assert_eq!(within("a result", results.next()).await.unwrap().unwrap(), n * n);
        assert!(pulled.get() <= n + 1 + 4, "{} were pulled for {} results", pulled.get(), n + 1);
    }
    drop(results);
    scene.end().await;
}

#[tokio::test]
async fn an_endless_source_takes_no_more_than_its_bound_by_default() {
    let scene = Scene::new(2);
    let pulled = Cell::new(0_u64);
    let mut results = scene.pool.map(square, (0..).inspect(|_| pulled.set(pulled.get() + 1)));
    for n in 0..20_000 {
        assert_eq!(within("a result", results.next()).await.unwrap().unwrap(), n * n);
        // Three times what each of two workers may have in hand.
        assert!(
            pulled.get() <= n + 1 + 3 * 2 * 2048,
            "{} were pulled for {} results",
            pulled.get(),
            n + 1
        );
    }
    drop(results);
    scene.end().await;
}

#[tokio::test]
async fn an_item_that_fails_neither_ends_the_stream_nor_hides_the_later_ones() {
    let scene = Scene::new(2);
    let parse = |text: String| text.parse::<u32>().map_err(|error| error.to_string());
    let outcomes: Vec<_> =
        within("three outcomes", scene.pool.map(parse, ["1", "bad", "3"]).collect()).await;
    let outcomes: Vec<Result<u32, String>> =
        outcomes.into_iter().map(|outcome: Result<_, TaskError>| outcome.unwrap()).collect();
    assert_eq!(outcomes, [Ok(1), Err("invalid digit found in string".into()), Ok(3)]);

    let strict = |text: String| text.parse::<u32>().unwrap();
    let mut results = scene.pool.map(strict, ["1", "bad", "3"]);
    assert_eq!(within("the first", results.next()).await.unwrap().unwrap(), 1);
    assert!(within("the second", results.next()).await.unwrap().unwrap_err().is_panic());
    assert_eq!(within("the third", results.next()).await.unwrap().unwrap(), 3);
    assert!(within("the end", results.next()).await.is_none());

    // The form that fails fast.
    let all: Result<Vec<u32>, TaskError> =
        within("the first failure", scene.pool.map(strict, ["1", "bad", "3"]).try_collect()).await;
    assert!(all.unwrap_err().is_panic());
    scene.end().await;
}

#[tokio::test]
async fn the_sources_own_error_comes_once_after_the_results_before_it() {
    let scene = Scene::new(2);
    for (at, window, unordered) in cases() {
        let source = stream::iter(
            (0..20_u64).map(|n| if n == at { Err(format!("item {n}")) } else { Ok(n) }),
        );
        let mut results = scene.pool.try_map_stream(square, source).buffered(window);
        if unordered {
            results = results.unordered();
        }
        let mut squares = Vec::new();
        let error = loop {
            match within("a result or the end", results.next())
                .await
                .expect("the error comes before the end")
            {
                Ok(outcome) => squares.push(outcome.unwrap()),
                Err(error) => break error,
            }
        };
        squares.sort_unstable();
        assert_eq!(error, format!("item {at}"));
        assert_eq!(squares, (0..at).map(|n| n * n).collect::<Vec<_>>());
        assert!(within("the end", results.next()).await.is_none());
    }
    scene.end().await;
}

fn cases() -> impl Iterator<Item = (u64, usize, bool)> {
    [0, 3, 19].into_iter().flat_map(|at| {
        [1, 2, 4].into_iter().flat_map(move |window| [(at, window, false), (at, window, true)])
    })
}

#[tokio::test]
async fn the_sources_panic_goes_on_after_the_results_before_it() {
    let scene = Scene::new(2);
    for (at, window, unordered) in cases() {
        let source = (0..20_u64).inspect(|n| {
            if *n == at {
                std::panic::resume_unwind(Box::new(format!("item {n}"))); // as a panic, but quiet
            }
        });
        let mut results = scene.pool.map(square, source).buffered(window);
        if unordered {
            results = results.unordered();
        }
        let mut squares = Vec::new();
        let panic = loop {
            match futures::FutureExt::catch_unwind(AssertUnwindSafe(within(
                "a result or the panic",
                results.next(),
            )))
            .await
            {
                Ok(outcome) => {
                    squares.push(outcome.expect("the panic comes before the end").unwrap())
                }
                Err(panic) => break panic,
            }
        };
        squares.sort_unstable();
        assert_eq!(panic.downcast_ref::<String>(), Some(&format!("item {at}")));
        assert_eq!(squares, (0..at).map(|n| n * n).collect::<Vec<_>>());
        assert!(within("the end", results.next()).await.is_none());
    }
    scene.end().await;
}

/// Encoding an item is the source's business, too: the results before it come first.
#[tokio::test]
async fn an_item_whose_encoding_panics_goes_on_after_the_results_before_it() {
    #[derive(serde::Deserialize)]
    struct Item(u64);
    impl serde::Serialize for Item {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if self.0 == 3 {
                std::panic::resume_unwind(Box::new("item 3"));
            }
            serializer.serialize_newtype_struct("Item", &self.0)
        }
    }
    let scene = Scene::new(2);
    for unordered in [false, true] {
        let mut results = scene.pool.map(|item: Item| item.0, (0..6).map(Item)).buffered(5);
        if unordered {
            results = results.unordered();
        }
        let mut arrived = BTreeSet::new();
        let panic = loop {
            match futures::FutureExt::catch_unwind(AssertUnwindSafe(within(
                "a result or the panic",
                results.next(),
            )))
            .await
            {
                Ok(outcome) => {
                    arrived.insert(outcome.expect("the panic comes before the end").unwrap())
                }
                Err(panic) => break panic,
            };
        };
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"item 3"));
        assert_eq!(arrived, [0, 1, 2].into());
        assert!(within("the end", results.next()).await.is_none());
    }
    scene.end().await;
}

#[tokio::test]
async fn an_item_that_cannot_be_encoded_keeps_its_place() {
    #[derive(serde::Deserialize)]
    struct Item(u64);
    impl serde::Serialize for Item {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0 % 3 {
                0 => Err(serde::ser::Error::custom("a multiple of three")),
                _ => serializer.serialize_newtype_struct("Item", &self.0),
            }
        }
    }
    let scene = Scene::new(2);
    let outcomes: Vec<_> =
        within("all outcomes", scene.pool.map(|item: Item| item.0, (0..300).map(Item)).collect())
            .await;
    assert_eq!(outcomes.len(), 300);
    for (n, outcome) in (0..).zip(outcomes) {
        match outcome {
            Ok(number) => assert_eq!(number, n),
            Err(error) => {
                assert_eq!((error.kind(), n % 3), (procpool::TaskErrorKind::ArgumentEncode, 0))
            }
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn large_failures_do_not_block_the_end() {
    let scene = Scene::new(2);
    let (gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let work = |gate: PathBuf, marks: PathBuf| -> Result<(), String> {
        mark(marks, "");
        pass(gate);
        Err("e".repeat(1 << 20))
    };
    let panics = |gate: PathBuf, marks: PathBuf| -> u32 {
        mark(marks, "");
        pass(gate);
        std::panic::resume_unwind(Box::new("p".repeat(1 << 20)))
    };
    let mut gate = gate;
    let items = vec![(gate.path().to_owned(), marks.path().to_owned()); 2];
    let mut errors = scene.pool.map(work, items.clone());
    assert!(is_pending(&mut errors.next()).await);
    marks.count(2).await;
    gate.open();
    assert_eq!(
        within("the first error", errors.next()).await.unwrap().unwrap().unwrap_err().len(),
        1 << 20
    );
    let mut failures = scene.pool.map(panics, items).unordered();
    let first = within("the first panic", failures.next()).await.unwrap().unwrap_err();
    let message = first.panic_message().unwrap();
    assert!(message.len() <= 16 << 10 && message.ends_with("p\u{2026}"), "{}", message.len());
    // The other two are left where they are.
    let workers = scene.workers();
    assert_eq!(workers.len(), 2);
    within("shut down", scene.pool.shutdown()).await;
    gone(&workers).await;
    assert_eq!(
        within("the second error", errors.next()).await.unwrap().unwrap().unwrap_err().len(),
        1 << 20
    );
    assert!(within("the second panic", failures.next()).await.unwrap().unwrap_err().is_panic());
}

#[tokio::test]
async fn dropping_the_stream_aborts_what_is_left() {
    let scene = Scene::new(2);
    let (gate, marks) = (scene.gate("never opened"), scene.marks("started"));
    let work = |n: u32, gate: PathBuf, marks: PathBuf| {
        mark(marks, n);
        pass(gate);
    };
    let items = (0..100).map(|n| (n, gate.path().to_owned(), marks.path().to_owned()));
    let mut results = scene.pool.map(work, items).buffered(100);
    assert!(is_pending(&mut results.next()).await);
    marks.count(2).await;
    let workers = scene.workers();
    drop(results);
    gone(&workers).await;
    scene.end().await; // with what was queued still there, it would never end
}

#[tokio::test]
async fn dropping_the_stream_drops_its_async_tasks_and_no_worker() {
    struct Ends(PathBuf);
    impl Drop for Ends {
        fn drop(&mut self) {
            mark(&self.0, "end");
        }
    }
    let scene = Scene::new(2);
    let marks = scene.marks("ends");
    let started = scene.marks("starts");
    let work = async |ends: PathBuf, starts: PathBuf| {
        let _ends = Ends(ends);
        mark(starts, "start");
        std::future::pending::<()>().await;
    };
    within("ready", scene.pool.ready()).await.unwrap();
    let before = scene.workers();
    let mut results = scene
        .pool
        .map(work, vec![(marks.path().to_owned(), started.path().to_owned()); 50])
        .buffered(50);
    assert!(is_pending(&mut results.next()).await);
    started.count(50).await;
    assert_eq!(marks.lines().len(), 0);
    drop(results);
    marks.count(50).await;
    assert_eq!(scene.workers(), before);
    scene.end().await;
}

/// `next()` in a `select!` that another branch wins, over and over.
#[tokio::test]
async fn a_dropped_next_loses_nothing() {
    let scene = Scene::new(2);
    let mut results = scene.pool.map(square_at_leisure, 0..300).buffered(5);
    let mut squares = Vec::new();
    loop {
        tokio::select! {
            biased;
            result = results.next() => match result {
                Some(square) => squares.push(square.unwrap()),
                None => break,
            },
            () = tokio::time::sleep(Duration::from_micros(300)) => {}
        }
    }
    assert_eq!(squares, (0..300).map(|n| n * n).collect::<Vec<_>>());
    scene.end().await;
}

#[tokio::test]
async fn a_source_that_is_not_ready_holds_up_no_result() {
    let scene = Scene::new(2);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<u64>();
    let source =
        stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    let mut results = scene.pool.map_stream(square, source);
    assert!(is_pending(&mut results.next()).await);
    for n in 0..50 {
        sender.send(n).unwrap();
        assert_eq!(within("its result", results.next()).await.unwrap().unwrap(), n * n);
        assert!(is_pending(&mut results.next()).await);
    }
    drop(sender);
    assert!(within("the end", results.next()).await.is_none());
    scene.end().await;
}

/// A stream of outcomes of `square`, of either kind.
fn outcomes(
    pool: &Pool,
    source: impl Stream<Item = u64> + 'static,
    buffered: usize,
    (unordered, is_fallible): (bool, bool),
) -> LocalBoxStream<'static, Result<u64, TaskError>> {
    if is_fallible {
        let results = pool.try_map_stream(square, source.map(Ok::<_, String>)).buffered(buffered);
        let results = if unordered { results.unordered() } else { results };
        results.map(Result::unwrap).boxed_local()
    } else {
        let results = pool.map_stream(square, source).buffered(buffered);
        let results = if unordered { results.unordered() } else { results };
        results.boxed_local()
    }
}

#[tokio::test]
async fn after_its_pool_a_stream_tells_once_that_it_is_closed_and_ends() {
    for (kills, kind) in [false, true].into_iter().flat_map(|kills| {
        [(false, false), (true, false), (false, true), (true, true)].map(|kind| (kills, kind))
    }) {
        let pool = Pool::builder().workers(1).build().unwrap();
        let source = stream::iter(0..4).chain(stream::pending());
        let mut pending = outcomes(&pool, source, 8, kind);
        let mut endless = outcomes(&pool, stream::iter(0..), 4, kind);
        for _ in 0..4 {
            within("a result", pending.next()).await.unwrap().unwrap();
        }
        within("a result", endless.next()).await.unwrap().unwrap();
        let end = async {
            tokio::task::yield_now().await; // the stream is waited for by now
            if kills { pool.kill().await } else { pool.shutdown().await }
        };
        let (last, _) = within("the closing of the pool", join(pending.next(), end)).await;
        assert!(last.unwrap().unwrap_err().is_pool_closed());
        assert!(within("the end of the stream", pending.next()).await.is_none());

        let rest: Vec<_> = within("the end of the stream", endless.collect()).await;
        let (done, refused) = rest.split_at(rest.partition_point(Result::is_ok));
        // What a kill cuts off are the items in hand, each for itself.
        let expected = if kills { 1..=4 } else { 1..=1 };
        assert!(expected.contains(&refused.len()), "{kills} {kind:?}: {rest:?}");
        assert!(done.len() <= 4, "{rest:?}");
        for outcome in refused {
            assert!(outcome.as_ref().unwrap_err().is_pool_closed(), "{rest:?}");
        }
    }
}

#[tokio::test]
async fn what_a_source_had_given_before_the_end_of_the_pool_is_delivered_whole() {
    let pool = Pool::builder().workers(1).build().unwrap();
    let mut whole = pool.map(square, 0..4).buffered(4);
    let failing = stream::iter([Ok(0), Err("its own")]);
    let mut failing = pool.try_map_stream(square, failing).buffered(1);
    assert!(is_pending(&mut whole.next()).await);
    assert!(is_pending(&mut failing.next()).await);
    within("the end of the pool", pool.shutdown()).await;
    let squares: Result<Vec<u64>, _> = within("the results", whole.try_collect()).await;
    assert_eq!(squares.unwrap(), [0, 1, 4, 9]);
    assert_eq!(within("the result", failing.next()).await.unwrap().unwrap().unwrap(), 0);
    assert_eq!(within("the error", failing.next()).await.unwrap().unwrap_err(), "its own");
    assert!(within("the end", failing.next()).await.is_none());
}

#[tokio::test]
async fn one_slow_item_leaves_no_part_of_the_window_unused() {
    fn slow_tenth(n: u64, gate: PathBuf) -> u64 {
        if n == 10 {
            pass(gate);
        }
        n
    }
    for is_fallible in [false, true] {
        let scene = Scene::new(2);
        let gate = scene.gate("never opened");
        let pulled = Cell::new(0);
        let items = (0..200_u64).map(|n| {
            pulled.set(pulled.get() + 1);
            (n, gate.path().to_owned())
        });
        let mut results = if is_fallible {
            let source = stream::iter(items.map(Ok::<_, String>));
            let results = scene.pool.try_map_stream(slow_tenth, source).buffered(64);
            results.map(|outcome| outcome.unwrap().unwrap()).boxed_local()
        } else {
            let results = scene.pool.map(slow_tenth, items).buffered(64);
            results.map(Result::unwrap).boxed_local()
        };
        assert!(is_pending(&mut results.next()).await);
        assert_eq!(pulled.get(), 64);
        until("all but the slow one are done", || scene.pool.stats().done == 63).await;
        for n in 0..10 {
            assert_eq!(within("a result", results.next()).await, Some(n));
        }
        assert!(is_pending(&mut results.next()).await);
        assert_eq!(pulled.get(), 64 + 10);
        drop(results);
        scene.end().await;
    }
}

/// Results are read in another runtime, on another thread, than the one that the pool was built in.
#[test]
fn a_stream_may_be_read_in_another_runtime() {
    let one = tokio::runtime::Runtime::new().unwrap();
    let scene = one.block_on(async { Scene::new(2) });
    let results: Results<_, _, u64> = scene.pool.map(square, 0..1000);
    let sum = std::thread::spawn(move || {
        let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        other
            .block_on(within("the sum", results.try_fold(0, |sum, n| async move { Ok(sum + n) })))
            .unwrap()
    });
    assert_eq!(sum.join().unwrap(), (0..1000).map(|n| n * n).sum::<u64>());
    one.block_on(scene.end());
}

#[tokio::test]
async fn several_maps_share_the_workers() {
    let scene = Scene::new(2);
    let done = Arc::new(AtomicUsize::new(0));
    let maps = (0..20_u64).map(|offset| {
        let (pool, done) = (scene.pool.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let results: Vec<u64> =
                pool.map(square, offset..offset + 200).try_collect().await.unwrap();
            assert_eq!(results, (offset..offset + 200).map(|n| n * n).collect::<Vec<_>>());
            done.fetch_add(1, Ordering::Relaxed);
        })
    });
    for map in within("20 maps", join_all(maps)).await {
        map.unwrap();
    }
    assert_eq!(done.load(Ordering::Relaxed), 20);
    until("nothing more is held", || Arc::strong_count(&done) == 1).await;
    scene.end().await;
}

#[tokio::test]
#[should_panic(expected = "buffered(0)")]
async fn a_window_of_nothing_is_refused() {
    let scene = Scene::new(1);
    drop(scene.pool.map(square, 0..10).buffered(0));
}
