//! Tasks that yield items while they run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{Proc, Scene, alone, gone, mark, pass, pass_async, resident, until, within};
use futures::future::join_all;
use futures::{FutureExt, StreamExt, TryStreamExt};
#[cfg(feature = "sync")]
use procpool::sync::Mutex;
use procpool::{Failure, TaskErrorKind, TaskStream, Yielder};
use serde_bytes::ByteBuf;
use std::path::PathBuf;
use std::time::Duration;

/// How many items of a few bytes a task sends ahead of its reader.
const AHEAD: u64 = 1024;

fn count(to: u64, out: Yielder<u64>) -> Result<String, Failure> {
    for n in 0..to {
        out.blocking_send(n)?;
    }
    Ok(format!("{to} items"))
}

async fn count_async(to: u64, out: Yielder<u64>) -> Result<String, Failure> {
    for n in 0..to {
        out.send(n).await?;
    }
    Ok(format!("{to} items"))
}

/// The items, and how the stream ended.
async fn collect<T: serde::de::DeserializeOwned, R>(
    stream: &mut TaskStream<T, R>,
) -> (Vec<T>, Option<TaskErrorKind>) {
    let mut items = Vec::new();
    while let Some(item) = within("an item or the end", stream.next()).await {
        match item {
            Ok(item) => items.push(item),
            Err(error) => {
                assert!(stream.next().await.is_none(), "an error is the end");
                return (items, Some(error.kind()));
            }
        }
    }
    assert!(stream.next().await.is_none(), "the end comes again");
    (items, None)
}

#[tokio::test]
async fn items_come_in_order_and_then_the_result() {
    let scene = Scene::new(2);
    for to in [0, 1, AHEAD, 10 * AHEAD + 7] {
        let sync = scene.pool.stream(count, to);
        let asynchronous = scene.pool.stream(count_async, to);
        for mut stream in [sync, asynchronous] {
            assert_eq!(collect(&mut stream).await, ((0..to).collect(), None));
            assert!(stream.is_finished());
            assert_eq!(
                within("the result", stream.finish()).await.unwrap().unwrap(),
                format!("{to} items")
            );
        }
    }
}

/// The first items come while the task runs.
#[tokio::test]
async fn an_item_comes_before_the_task_has_ended() {
    let scene = Scene::new(1);
    let mut gate = scene.gate("gate");
    let waits = |gate: PathBuf, out: Yielder<u32>| {
        out.blocking_send(1).unwrap();
        pass(gate);
        out.blocking_send(2).unwrap();
    };
    let mut stream = scene.pool.stream(waits, gate.path());
    assert_eq!(within("the first", stream.next()).await.unwrap().unwrap(), 1);
    assert!(!stream.is_finished());
    gate.open();
    assert_eq!(collect(&mut stream).await, (vec![2], None));
    stream.finish().await.unwrap();
}

#[tokio::test]
async fn items_may_be_of_any_size_up_to_a_frame() {
    fn sizes(sizes: Vec<usize>, out: Yielder<ByteBuf>) -> Result<(), Failure> {
        for (n, size) in sizes.into_iter().enumerate() {
            out.blocking_send(ByteBuf::from(vec![n as u8; size]))?;
        }
        Ok(())
    }
    fn nothings(n: usize, out: Yielder<()>) -> Result<(), Failure> {
        (0..n).try_for_each(|_| Ok(out.blocking_send(())?))
    }
    let scene = Scene::new(1);
    let of = [0, 16 << 20, 1, 63, 64, 65, 16 << 20, 16 << 20, 70_000, 0, 200_000, 3];
    let mut stream = scene.pool.stream(sizes, &of[..]);
    for (n, size) in of.iter().enumerate() {
        let item = within("an item", stream.next()).await.unwrap().unwrap();
        assert!(item.len() == *size && item.iter().all(|byte| *byte == n as u8), "{n}");
    }
    within("the result", stream.finish()).await.unwrap().unwrap();
    let mut stream = scene.pool.stream(nothings, 5 * AHEAD as usize);
    assert_eq!(collect(&mut stream).await, (vec![(); 5 * AHEAD as usize], None));

    let scene = Scene::with(|builder| builder.workers(1).frame_limit(64 << 10));
    let too_large = |out: Yielder<ByteBuf>| {
        let error = out.blocking_send(ByteBuf::from(vec![0; 64 << 10])).unwrap_err();
        out.blocking_send(ByteBuf::from(vec![1])).unwrap(); // it may go on
        let (limit, is_too_large) = (error.size_limit(), error.is_too_large());
        (error.into_inner().len(), limit, is_too_large)
    };
    let mut stream = scene.pool.stream(too_large, ());
    assert_eq!(collect(&mut stream).await, (vec![ByteBuf::from(vec![1])], None));
    assert_eq!(stream.finish().await.unwrap(), (64 << 10, Some(64 << 10), true));
}

/// Sends until that would wait, and says how many that were; then waits for the reader.
fn fill(size: usize, marks: PathBuf, out: Yielder<ByteBuf>) -> Result<(), Failure> {
    let mut sent = 0;
    while out.try_send(ByteBuf::from(vec![0; size])).is_ok() {
        sent += 1;
    }
    mark(marks, sent);
    loop {
        out.blocking_send(ByteBuf::from(vec![0; size]))?;
    }
}

async fn fill_async(size: usize, marks: PathBuf, out: Yielder<ByteBuf>) -> Result<(), Failure> {
    let mut sent = 0;
    while out.try_send(ByteBuf::from(vec![0; size])).is_ok() {
        sent += 1;
    }
    mark(marks, sent);
    loop {
        out.send(ByteBuf::from(vec![0; size])).await?;
    }
}

#[tokio::test]
async fn a_task_runs_ahead_of_its_reader_by_a_window_and_one_item() {
    for (size, ahead) in
        [(0, 1024), (1, 1024), (200, 256), (16 << 10, 4), (64 << 10, 1), (16 << 20, 1)]
    {
        let scene = Scene::new(2);
        let (marks, marks_async) = (scene.marks("sync"), scene.marks("async"));
        let mut sync = scene.pool.stream(fill, (size, marks.path().to_owned()));
        let mut other = scene.pool.stream(fill_async, (size, marks_async.path().to_owned()));
        for (stream, marks) in [(&mut sync, &marks), (&mut other, &marks_async)] {
            marks.count(1).await;
            let sent: usize = marks.lines()[0].parse().unwrap();
            assert!(sent.abs_diff(ahead) <= ahead / 50, "{} of {size} bytes", sent);
            // And it goes on as the reader does.
            for _ in 0..3 * ahead {
                assert_eq!(within("an item", stream.next()).await.unwrap().unwrap().len(), size);
            }
        }
    }
}

/// Each of these tasks would send without end.
#[tokio::test]
async fn memory_stays_flat_while_readers_do_not_read() {
    async fn grown() -> usize {
        const STREAMS: usize = 64;
        let scene = Scene::with(|builder| builder.workers(2).concurrency(STREAMS));
        let marks = scene.marks("full");
        within("a first", scene.pool.stream(count, 1).finish()).await.unwrap().unwrap();
        let before = resident();
        let args = (16 << 10, marks.path().to_owned());
        let mut streams: Vec<_> =
            (0..STREAMS).map(|_| scene.pool.stream(fill_async, args.clone())).collect();
        for stream in &mut streams {
            within("an item", stream.next()).await.unwrap().unwrap();
        }
        marks.count(STREAMS).await;
        resident().saturating_sub(before)
    }
    // What the tasks have credit for is 5 MiB, and the rest is the allocator's.
    let grown = alone(grown).await;
    assert!(grown < 24 << 20, "{grown} bytes");
}

#[tokio::test]
async fn a_stream_that_is_dropped_stops_its_task_and_spares_other_tasks() {
    let scene = Scene::new(2);
    let marks = scene.marks("pid");
    let endless = |marks: PathBuf, out: Yielder<u64>| {
        mark(marks, std::process::id());
        let mut n = 0;
        while out.blocking_send(n).is_ok() {
            n += 1;
        }
        n
    };
    let mut stream = scene.pool.stream(endless, marks.path());
    assert_eq!(within("an item", stream.next()).await.unwrap().unwrap(), 0);
    marks.count(1).await;
    let worker = Proc::of(marks.lines()[0].parse().unwrap()).unwrap();
    drop(stream);
    gone(&[worker]).await; // a sync task without a grace ends with its process
    assert_eq!(
        within("another", scene.pool.stream(count, 3).finish()).await.unwrap().unwrap(),
        "3 items"
    );
}

#[tokio::test]
async fn a_task_with_a_grace_finds_its_send_refused_when_its_stream_is_dropped() {
    let scene = Scene::new(2);
    let marks = scene.marks("ends");
    // The reader has stopped: both wait in their send.
    let sync = |marks: PathBuf, out: Yielder<u64>| {
        let mut n = 0;
        let error = loop {
            n += 1;
            if n == AHEAD + 1 {
                mark(&marks, "full");
            }
            if let Err(error) = out.blocking_send(n) {
                break error;
            }
        };
        assert!(error.is_closed());
        assert_eq!(error.into_inner(), n);
        mark(&marks, std::process::id());
    };
    let asynchronous = async |marks: PathBuf, out: Yielder<u64>| {
        let mut n = 0;
        loop {
            n += 1;
            if n == AHEAD + 1 {
                mark(&marks, "full");
            }
            if out.send(n).await.is_err_and(|error| error.is_closed()) {
                return mark(&marks, std::process::id());
            }
        }
    };
    let grace = Duration::from_secs(20);
    let one = scene.pool.task(sync).grace(grace).stream(marks.path());
    let two = scene.pool.task(asynchronous).grace(grace).stream(marks.path());
    marks.count(2).await;
    let workers = scene.workers();
    drop((one, two));
    marks.count(4).await;
    let ends = marks.lines().split_off(2);
    assert!(ends.iter().all(|pid| workers.iter().any(|worker| worker.pid.to_string() == *pid)));
    // Their processes go on.
    let pid = within("a task", scene.pool.spawn(std::process::id, ())).await.unwrap();
    assert!(workers.iter().any(|worker| worker.pid == pid));
}

#[tokio::test]
async fn a_task_that_dies_has_sent_its_items_and_then_one_error() {
    let scene = Scene::new(1);
    fn dies(how: String, out: Yielder<u64>) -> u8 {
        (0..500).for_each(|n| out.blocking_send(n).unwrap());
        match &*how {
            "abort" => std::process::abort(),
            "panic" => panic!("in the middle"),
            "exit" => std::process::exit(3),
            _ => loop {
                std::thread::park();
            },
        }
    }
    let items: Vec<u64> = (0..500).collect();
    for (how, kind) in [
        ("abort", TaskErrorKind::WorkerDied),
        ("panic", TaskErrorKind::Panicked),
        ("exit", TaskErrorKind::WorkerDied),
    ] {
        let mut stream = scene.pool.stream(dies, how);
        assert_eq!(collect(&mut stream).await, (items.clone(), Some(kind)), "{how}");
        assert_eq!(stream.finish().await.unwrap_err().kind(), kind, "it is told again");
    }
    let limit = Duration::from_millis(300);
    let mut stream = scene.pool.task(dies).timeout(limit).stream("limit");
    let (came, kind) = collect(&mut stream).await;
    assert_eq!((&came[..], kind), (&items[..came.len()], Some(TaskErrorKind::TimedOut)));
    let mut stream = scene.pool.stream(dies, "aborted");
    assert_eq!(within("an item", stream.next()).await.unwrap().unwrap(), 0);
    stream.abort();
    let (rest, kind) = collect(&mut stream).await;
    assert_eq!(kind, Some(TaskErrorKind::Cancelled));
    assert_eq!(rest, items[1..1 + rest.len()]);
}

/// The time limit counts while the task waits for its reader, and so does an abort.
#[tokio::test]
async fn a_task_that_waits_for_its_reader_can_be_stopped() {
    let scene = Scene::new(2);
    for limit in [None, Some(Duration::from_millis(200))] {
        for is_async in [false, true] {
            let marks = scene.marks(&format!("full-{is_async}-{}", limit.is_some()));
            let args = (10_000, marks.path().to_owned());
            let mut stream = match (is_async, limit) {
                (false, None) => scene.pool.stream(fill, args),
                (true, None) => scene.pool.stream(fill_async, args),
                (false, Some(limit)) => scene.pool.task(fill).timeout(limit).stream(args),
                (true, Some(limit)) => scene.pool.task(fill_async).timeout(limit).stream(args),
            };
            marks.count(1).await;
            if limit.is_none() {
                stream.abort();
            }
            until("it has ended", || stream.abort_handle().is_finished()).await;
            let (items, kind) = collect(&mut stream).await;
            assert!(!items.is_empty());
            let expected = limit.map_or(TaskErrorKind::Cancelled, |_| TaskErrorKind::TimedOut);
            assert_eq!(kind, Some(expected));
        }
    }
}

fn fails_at_first(items: u64, marks: PathBuf, out: Yielder<u64>) -> u32 {
    mark(marks, procpool::attempt().unwrap());
    (0..items).for_each(|n| out.blocking_send(n).unwrap());
    if procpool::attempt() == Some(1) {
        std::process::abort();
    }
    procpool::attempt().unwrap()
}

#[tokio::test]
async fn a_task_is_tried_again_if_nothing_was_taken() {
    let scene = Scene::new(1);
    let marks = scene.marks("tries");
    let mut stream =
        scene.pool.task(fails_at_first).retries(2).stream((100, marks.path().to_owned()));
    marks.count(2).await;
    assert_eq!(collect(&mut stream).await, ((0..100).collect(), None), "once");
    assert_eq!(stream.finish().await.unwrap(), 2);
}

#[tokio::test]
async fn a_task_of_which_something_was_taken_is_tried_again_only_if_asked_for() {
    // More than it may send ahead, so something is taken before it fails.
    let items = AHEAD + 10;
    for partial in [false, true] {
        let scene = Scene::new(1);
        let marks = scene.marks("tries");
        let mut stream = scene
            .pool
            .task(fails_at_first)
            .retries(2)
            .retry_partial(partial)
            .stream((items, marks.path().to_owned()));
        let (came, error) = collect(&mut stream).await;
        if partial {
            let second = came.len() - items as usize;
            assert!(came[second..].iter().copied().eq(0..items), "the second try, whole");
            assert!(came[..second].iter().copied().eq(0..second as u64) && second > 0);
            assert_eq!((error, marks.lines()), (None, vec!["1".to_owned(), "2".to_owned()]));
        } else {
            assert!(came.iter().copied().eq(0..items));
            assert_eq!(
                (error, marks.lines()),
                (Some(TaskErrorKind::WorkerDied), vec!["1".to_owned()])
            );
        }
    }
}

#[tokio::test]
async fn ten_thousand_streams_at_once() {
    const STREAMS: u64 = 10_000;
    let scene = Scene::with(|builder| builder.workers(2).concurrency(5000));
    let gate = scene.gate("gate");
    let meets = async |n: u64, gate: PathBuf, out: Yielder<u64>| {
        out.send(n).await.unwrap();
        // One for all in this worker.
        static OPEN: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
        OPEN.get_or_init(|| pass_async(gate)).await;
        for more in 1..20 {
            out.send(n + more).await.unwrap();
        }
        n
    };
    let path = gate.path().to_owned();
    let mut streams: Vec<_> =
        (0..STREAMS).map(|n| scene.pool.stream(meets, (n, path.clone()))).collect();
    for (stream, n) in streams.iter_mut().zip(0..) {
        assert_eq!(
            within(&format!("the first item of {n}"), stream.next()).await.unwrap().unwrap(),
            n
        );
    }
    let mut gate = gate;
    gate.open();
    let rest = streams.into_iter().zip(0..).map(|(mut stream, n)| async move {
        assert_eq!(collect(&mut stream).await, ((n + 1..n + 20).collect(), None));
        assert_eq!(stream.finish().await.unwrap(), n);
    });
    join_all(rest).await;
}

#[tokio::test]
async fn a_task_sends_from_several_threads_and_none_after_its_end() {
    let scene = Scene::new(1);
    let marks = scene.marks("late");
    let threads = |marks: PathBuf, out: Yielder<(u8, u32)>| {
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let out = out.clone();
                scope
                    .spawn(move || (0..2000).for_each(|n| out.blocking_send((thread, n)).unwrap()));
            }
        });
        std::thread::spawn(move || {
            let error = loop {
                match out.blocking_send((9, 0)) {
                    Ok(()) => {}
                    Err(error) => break error,
                }
            };
            mark(marks, error.is_closed());
        });
    };
    let mut stream = scene.pool.stream(threads, marks.path());
    let (items, error) = collect(&mut stream).await;
    assert_eq!(error, None);
    for thread in 0..4 {
        let of: Vec<_> = items.iter().filter(|(of, _)| *of == thread).map(|(_, n)| *n).collect();
        assert!(of.into_iter().eq(0..2000), "those of a thread come in order");
    }
    marks.count(1).await;
    assert_eq!(marks.lines(), ["true"]);
    assert_eq!(within("a task", scene.pool.spawn(|| 7, ())).await.unwrap(), 7);
}

/// Awaited in a runtime of a sync task's own, no message tells it of credit.
#[tokio::test]
async fn a_sync_task_may_await_its_credit_in_a_runtime_of_its_own() {
    let scene = Scene::new(1);
    let own = |out: Yielder<u64>| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for n in 0..4 * AHEAD {
                out.send(n).await.unwrap();
            }
        });
    };
    let mut stream = scene.pool.stream(own, ());
    assert_eq!(collect(&mut stream).await, ((0..4 * AHEAD).collect(), None));
}

#[cfg(feature = "sync")]
#[tokio::test]
async fn an_item_that_is_of_another_type_or_cannot_be_encoded_is_one_error() {
    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct Picky(#[serde(deserialize_with = "even")] u64);
    fn even<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let n: u64 = serde::Deserialize::deserialize(deserializer)?;
        if n.is_multiple_of(2) { Ok(n) } else { Err(serde::de::Error::custom("it is odd")) }
    }
    fn odd_one(out: Yielder<Picky>) {
        (2..5).for_each(|n| out.blocking_send(Picky(n)).unwrap());
    }
    let scene = Scene::new(1);
    let stream = scene.pool.stream(odd_one, ());
    let items: Vec<_> =
        within("all", stream.map(|item| item.map_err(|e| e.kind())).collect::<Vec<_>>()).await;
    assert!(
        matches!(items[..], [Ok(Picky(2)), Err(TaskErrorKind::ResultDecode), Ok(Picky(4))]),
        "{items:?}"
    );

    let names = |mutex: Mutex<u8>, out: Yielder<Mutex<u8>>| {
        out.blocking_send(mutex).unwrap_err().is_encode()
    };
    let mutex = scene.pool.manager().mutex(1).unwrap();
    assert!(within("the result", scene.pool.stream(names, mutex).finish()).await.unwrap());
}

#[tokio::test]
async fn the_pool_ends_with_streams_that_are_open() {
    let scene = Scene::new(1);
    let mut stream = scene.pool.stream(count, 100 * AHEAD);
    assert_eq!(within("an item", stream.next()).await.unwrap().unwrap(), 0);
    let waits = scene.pool.stream(count, 1);
    scene.pool.kill().now_or_never();
    assert_eq!(collect(&mut stream).await.1, Some(TaskErrorKind::PoolClosed));
    assert!(within("the other", waits.finish()).await.unwrap_err().is_pool_closed());
    let mut refused = scene.pool.stream(count, 1);
    assert_eq!(collect(&mut refused).await, (vec![], Some(TaskErrorKind::PoolClosed)));
}

#[test]
fn a_thread_reads_a_stream_without_a_runtime() {
    let scene = Scene::new(1);
    let mut stream = scene.pool.stream(count, 3 * AHEAD);
    let mut n = 0;
    while let Some(item) = stream.blocking_next() {
        assert_eq!(item.unwrap(), n);
        n += 1;
    }
    assert_eq!(n, 3 * AHEAD);
    assert_eq!(stream.blocking_finish().unwrap().unwrap(), format!("{n} items"));
}

#[tokio::test]
async fn a_stream_is_a_stream_like_any() {
    let scene = Scene::new(2);
    let all = futures::stream::iter(0..20u64)
        .map(|n| scene.pool.stream(count, n))
        .flatten_unordered(4)
        .try_fold(0, async |sum, n| Ok(sum + n));
    assert_eq!(
        within("all", all).await.unwrap(),
        (0..20).map(|n| n * (n.max(1) - 1) / 2).sum::<u64>()
    );
}
