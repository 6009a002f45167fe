//! Workers that come and go: they are replaced, kept ready, let go, and end in good order.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{
    Proc, children, die, lines, note, pid, pids, seen, signal, soon, stop, until, wait_for,
};
use futures::StreamExt;
use nix::libc;
use nix::sys::signal::Signal;
use procpool::{Builder, ErrorKind, ExitReason, Pool, TaskErrorKind, WorkerEvent};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::tempdir;

const MS: Duration = Duration::from_millis(1);
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

fn pool_of(workers: usize, more: impl FnOnce(Builder) -> Builder) -> Pool {
    more(Pool::builder().workers(workers)).build().unwrap()
}

/// How many tasks each process has run.
async fn tally(tasks: Vec<procpool::JoinHandle<u32>>) -> BTreeMap<u32, u64> {
    let mut served = BTreeMap::new();
    for task in tasks {
        *served.entry(soon(task).await.unwrap()).or_insert(0) += 1;
    }
    served
}

// ---- replaced by count, age, memory, hand

#[tokio::test]
async fn no_worker_runs_more_tasks_than_it_may_though_all_were_queued_before() {
    for (workers, most, tasks) in [(1, 2, 6), (2, 2, 8), (3, 1, 20), (2, 7, 200)] {
        let pool = pool_of(workers, |builder| builder.max_tasks_per_worker(most));
        let served = tally((0..tasks).map(|_| pool.spawn(pid, ())).collect()).await;
        assert_eq!(served.values().sum::<u64>(), tasks);
        assert!(served.values().all(|count| *count <= most), "{served:?}");
        soon(pool.shutdown()).await;
        let stats = pool.stats();
        assert_eq!((stats.failed(), stats.ended_by(ExitReason::Died)), (0, 0), "{stats:?}");
        assert!(
            stats.ended_by(ExitReason::TasksServed) >= tasks / most - workers as u64,
            "{stats:?}"
        );
    }
}

#[tokio::test]
async fn after_its_last_task_a_worker_is_replaced_and_reaped() {
    let (pool, dir) = (pool_of(1, |builder| builder.max_tasks_per_worker(3)), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let mut events = pool.events();
    let mut first = Vec::new();
    for _ in 0..2 {
        first.push(soon(pool.spawn(pid, ())).await.unwrap());
    }
    let old = Proc::of(first[0]).unwrap();
    let third = pool.spawn(wait_for, (log.clone(), gate.clone()));
    until("the third runs", || lines(&log).len() == 1).await;
    let fourth = pool.spawn(pid, ());
    // Its successor gets ready while it runs, and takes over what waits.
    let successor = soon(fourth).await.unwrap();
    assert!(!old.has_ended());
    std::fs::write(&gate, "").unwrap();
    first.push(soon(third).await.unwrap());
    assert_eq!(first, [old.pid; 3]);
    assert_ne!(successor, old.pid);
    until("the old one is reaped", || old.is_gone()).await;
    let mut told = Vec::new();
    while told.len() < 3 {
        told.push(match soon(events.next()).await {
            Some(WorkerEvent::Started { pid, .. }) => (pid, None),
            Some(WorkerEvent::Exited { pid, why, .. }) => (pid.unwrap(), Some(why)),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(
        told,
        [(old.pid, None), (successor, None), (old.pid, Some(ExitReason::TasksServed))]
    );
}

#[tokio::test]
async fn the_last_tasks_of_a_pool_run_on_replacements_or_are_closed_with_it() {
    for drops in [false, true] {
        let (pool, dir) =
            (pool_of(1, |builder| builder.max_tasks_per_worker(1)), tempdir().unwrap());
        let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
        let first = pool.spawn(wait_for, (log.clone(), gate.clone()));
        let rest = [pool.spawn(pid, ()), pool.spawn(pid, ())];
        until("the first runs", || lines(&log).len() == 1).await;
        let ending = pool.shutdown();
        if drops {
            drop(pool);
        }
        std::fs::write(&gate, "").unwrap();
        let first = soon(first).await;
        let mut served = BTreeSet::new();
        for task in rest {
            match soon(task).await {
                Ok(pid) => assert!(served.insert(pid)),
                Err(error) => assert!(drops && error.is_pool_closed(), "{error}"),
            }
        }
        assert!(drops || (first.is_ok_and(|pid| served.insert(pid)) && served.len() == 3));
        soon(ending).await;
    }
}

#[tokio::test]
async fn a_worker_that_has_grown_is_replaced_between_tasks() {
    fn leak() -> u32 {
        std::mem::forget(vec![1u8; 10 << 20]);
        pid()
    }
    let pool = pool_of(1, |builder| builder.max_resident_memory(120 << 20));
    let mut served = BTreeMap::new();
    for _ in 0..100 {
        *served.entry(soon(pool.spawn(leak, ())).await.unwrap()).or_insert(0) += 1;
    }
    // How many each runs after it is over the mark, until its successor is ready, is not known.
    assert!(served.len() >= 2, "{served:?}");
    until("they are counted", || {
        pool.stats().ended_by(ExitReason::MemoryMark) + 1 >= served.len() as u64
    })
    .await;
    assert_eq!(pool.stats().failed(), 0);
}

#[tokio::test]
async fn a_worker_does_not_grow_old() {
    let pool = pool_of(2, |builder| builder.max_lifetime(20 * MS));
    let mut events = pool.events();
    soon(pool.ready()).await.unwrap();
    let mut replaced = 0;
    while replaced < 4 {
        soon(pool.spawn(pid, ())).await.unwrap();
        while let Some(Some(event)) = futures::FutureExt::now_or_never(events.next()) {
            match event {
                WorkerEvent::Exited { why, .. } => {
                    assert_eq!(why, ExitReason::TooOld);
                    replaced += 1;
                }
                WorkerEvent::Started { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(pool.stats().failed(), 0);
}

#[tokio::test]
async fn recycling_replaces_everybody_and_interrupts_nobody() {
    async fn wait(log: PathBuf, gate: PathBuf) -> u32 {
        note(&log, pid());
        while !gate.exists() {
            tokio::time::sleep(MS).await;
        }
        pid()
    }
    let (pool, dir) = (pool_of(3, |builder| builder.spares(1)), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    soon(pool.recycle()).await.unwrap(); // of nobody
    soon(pool.ready()).await.unwrap();
    let before: BTreeSet<_> = children(std::process::id()).into_iter().collect();
    let long = pool.spawn(wait, (log.clone(), gate.clone()));
    until("it runs", || lines(&log).len() == 1).await;
    let busy: Vec<_> = (0..200).map(|_| pool.spawn(pid, ())).collect();
    soon(pool.recycle()).await.unwrap();
    let after = tally((0..50).map(|_| pool.spawn(pid, ())).collect()).await;
    assert!(after.keys().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
    assert_eq!(tally(busy).await.values().sum::<u64>(), 200);
    let old = seen(&log);
    assert!(!old[0].has_ended(), "what runs is not interrupted");
    std::fs::write(&gate, "").unwrap();
    assert_eq!(soon(long).await.unwrap(), old[0].pid);
    until("it leaves when it is empty", || old[0].is_gone()).await;
    let stats = pool.stats();
    assert!(stats.ended_by(ExitReason::Recycled) >= 3 && stats.failed() == 0, "{stats:?}");
}

#[tokio::test]
async fn recycling_tells_why_it_cannot_and_the_old_ones_serve_on() {
    fn once(file: PathBuf) -> Result<(), String> {
        if file.exists() { Err("no more".into()) } else { Ok(()) }
    }
    let dir = tempdir().unwrap();
    let file = dir.path().join("file");
    let pool = pool_of(1, |builder| builder.on_worker_start(once, &file));
    let old = soon(pool.spawn(pid, ())).await.unwrap();
    std::fs::write(&file, "").unwrap();
    assert!(soon(pool.recycle()).await.unwrap_err().is_init_failed());
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap(), old);
    std::fs::remove_file(&file).unwrap();
    until("it is tried again", || pool.stats().ended_by(ExitReason::Recycled) == 1).await;
    assert_ne!(soon(pool.spawn(pid, ())).await.unwrap(), old);
    let recycling = pool.recycle();
    soon(pool.shutdown()).await;
    assert!(matches!(soon(recycling).await, Ok(()) | Err(_)));
    assert!(soon(pool.recycle()).await.unwrap_err().is_pool_closed());
    assert!(pool.resize(2).unwrap_err().is_pool_closed());
}

// ---- as many as are needed

#[tokio::test]
async fn a_pool_grows_with_its_queue_and_shrinks_when_it_is_quiet() {
    let (pool, dir) = (
        Pool::builder().workers(1..=3).idle_timeout(200 * MS).build().unwrap(),
        tempdir().unwrap(),
    );
    let burst = |name: &str| {
        let (log, gate) = (dir.path().join(name), dir.path().join(format!("{name}.gate")));
        let tasks: Vec<_> =
            (0..3).map(|_| pool.spawn(wait_for, (log.clone(), gate.clone()))).collect();
        (tasks, log, gate)
    };
    let (tasks, log, gate) = burst("first");
    until("three run at once", || lines(&log).len() == 3).await;
    std::fs::write(gate, "").unwrap();
    let old: BTreeSet<_> = tally(tasks).await.into_keys().collect();
    assert_eq!(old.len(), 3);
    until("two have left", || pool.stats().ended_by(ExitReason::Idle) == 2).await;
    let stats = pool.stats();
    assert_eq!((stats.idle, stats.busy, stats.ended()), (1, 0, 2));
    let (tasks, log, gate) = burst("second");
    until("three run at once again", || lines(&log).len() == 3).await;
    std::fs::write(gate, "").unwrap();
    let new: BTreeSet<_> = tally(tasks).await.into_keys().collect();
    assert_eq!((new.len(), new.intersection(&old).count()), (3, 1), "the survivor is an old one");
}

#[tokio::test]
async fn workers_leave_while_work_is_being_prepared_and_nothing_is_lost() {
    struct Slow(u32, Duration);
    impl serde::Serialize for Slow {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            std::thread::sleep(self.1);
            serializer.serialize_u32(self.0)
        }
    }
    impl<'de> serde::Deserialize<'de> for Slow {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Ok(Self(serde::Deserialize::deserialize(deserializer)?, Duration::ZERO))
        }
    }
    let pool = Pool::builder().workers(0..=2).idle_timeout(MS).build().unwrap();
    for number in 0..5 {
        // No runtime drives while it is encoded; the supervisor does.
        let task = pool.spawn(|slow: Slow| slow.0, Slow(number, 100 * MS));
        assert_eq!(soon(task).await.unwrap(), number);
    }
    until("nobody is left", || pool.stats().ended() == pool.stats().started).await;
    let preparing = {
        let pool = pool.clone();
        tokio::task::spawn_blocking(move || {
            pool.spawn(|slow: Slow| slow.0, Slow(7, 100 * MS)).blocking_join()
        })
    };
    soon(pool.shutdown()).await;
    match soon(preparing).await.unwrap() {
        Ok(number) => assert_eq!(number, 7),
        Err(error) => assert!(error.is_pool_closed(), "{error}"),
    }
}

#[tokio::test]
async fn a_pool_is_resized_while_it_works() {
    let (pool, dir) = (pool_of(1, |builder| builder), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let tasks: Vec<_> = (0..4).map(|_| pool.spawn(wait_for, (log.clone(), gate.clone()))).collect();
    until("one runs", || lines(&log).len() == 1).await;
    pool.resize(4).unwrap();
    assert_eq!(pool.workers(), 4);
    until("four run", || lines(&log).len() == 4).await;
    pool.resize(1).unwrap();
    assert_eq!(pool.stats().busy, 1);
    assert_eq!(pool.stats().leaving, 3, "at work, and given nothing more");
    std::fs::write(&gate, "").unwrap();
    assert_eq!(tally(tasks).await.len(), 4);
    until("three have left", || pool.stats().ended_by(ExitReason::Resized) == 3).await;
    assert_eq!(tally((0..9).map(|_| pool.spawn(pid, ())).collect()).await.len(), 1);
    pool.resize(0..=2).unwrap();
    for error in [
        pool.resize(0).unwrap_err(),
        pool.resize(0..=0).unwrap_err(),
        pool.resize(usize::MAX).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
    }
    assert_eq!(pool.workers(), 2, "what makes no sense changes nothing");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let backwards = Pool::builder().workers(3..=2);
    for builder in [
        backwards,
        Pool::builder().workers(0..=0),
        Pool::builder().workers(4).idle_timeout(MS),
        Pool::builder().max_tasks_per_worker(0),
        Pool::builder().max_lifetime(Duration::ZERO),
        Pool::builder().spares(usize::MAX),
        Pool::builder().program("true", [""; 0]).on_worker_exit(|| (), ()),
    ] {
        assert_eq!(builder.build().unwrap_err().kind(), ErrorKind::InvalidOption);
    }
}

#[tokio::test]
async fn a_spare_stands_in_for_one_that_dies_and_is_replaced() {
    fn slow(log: PathBuf, gate: PathBuf) -> Result<(), Infallible> {
        note(&log, pid());
        while lines(&log).len() > 2 && !gate.exists() {
            std::thread::sleep(MS);
        }
        Ok(())
    }
    let dir = tempdir().unwrap();
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let pool =
        pool_of(1, |builder| builder.spares(1).on_worker_start(slow, (log.clone(), gate.clone())));
    soon(pool.ready()).await.unwrap();
    let stats = pool.stats();
    assert_eq!((stats.idle, stats.spare, stats.started), (1, 1, 2));
    let first = soon(pool.spawn(pid, ())).await.unwrap();
    soon(pool.spawn(die, libc::SIGKILL)).await.unwrap_err();
    // Nobody gets ready from here on, so it is the spare that answers.
    let second = soon(pool.spawn(pid, ())).await.unwrap();
    assert_eq!(pids(&log)[..2].iter().collect::<BTreeSet<_>>(), BTreeSet::from([&first, &second]));
    until("another one is started", || lines(&log).len() == 3).await;
    std::fs::write(&gate, "").unwrap();
    until("it waits", || pool.stats().spare == 1).await;
    soon(pool.shutdown()).await;
}

// ---- the exit function

#[tokio::test]
async fn the_exit_function_runs_where_a_worker_ends_in_good_order_and_only_there() {
    fn load(name: String) -> Result<String, Infallible> {
        Ok(name)
    }
    fn goodbye(log: PathBuf) {
        note(&log, format!("{} {}", pid(), procpool::state::<String>().unwrap()));
    }
    async fn goodbye_async(log: PathBuf, word: String) -> u8 {
        tokio::time::sleep(MS).await;
        note(&log, format!("{} {word}", pid()));
        1
    }
    let dir = tempdir().unwrap();
    for (name, is_async) in [("sync", false), ("async", true)] {
        let log = dir.path().join(name);
        let pool = pool_of(1, |builder| match is_async {
            false => builder.on_worker_start(load, "state").on_worker_exit(goodbye, &log),
            true => builder.on_worker_exit(goodbye_async, (log.clone(), String::from("state"))),
        });
        let first = soon(pool.spawn(pid, ())).await.unwrap();
        soon(pool.recycle()).await.unwrap();
        until("the first has said it", || lines(&log) == [format!("{first} state")]).await;
        soon(pool.spawn(die, libc::SIGKILL)).await.unwrap_err();
        let last = soon(pool.spawn(|| async { pid() }, ())).await.unwrap();
        soon(pool.shutdown()).await;
        assert_eq!(
            lines(&log),
            [format!("{first} state"), format!("{last} state")],
            "who was killed did not say it"
        );
        let killed = pool_of(1, |builder| {
            builder.on_worker_exit(goodbye_async, (log.clone(), String::from("killed")))
        });
        soon(killed.spawn(pid, ())).await.unwrap();
        soon(killed.kill()).await;
        assert_eq!(lines(&log).len(), 2);
    }
}

/// Nothing else begins in its worker meanwhile, and its socket fills.
async fn block_until(begun: PathBuf, gate: PathBuf, _ballast: Vec<u8>) {
    note(&begun, "begun");
    while !gate.exists() {
        std::thread::sleep(MS);
    }
}

fn say_goodbye_slowly(log: PathBuf) {
    std::thread::sleep(300 * MS);
    note(&log, "done");
}

#[tokio::test]
async fn the_exit_function_runs_to_its_end_though_calls_were_taken_back_before_they_were_sent() {
    let dir = tempdir().unwrap();
    let (log, begun, gate) =
        (dir.path().join("log"), dir.path().join("begun"), dir.path().join("gate"));
    let pool = pool_of(1, |builder| builder.on_worker_exit(say_goodbye_slowly, &log));
    soon(pool.ready()).await.unwrap();
    let ballast = vec![7u8; 60_000];
    let tasks: Vec<_> = (0..100)
        .map(|_| pool.spawn(block_until, &(begun.clone(), gate.clone(), ballast.clone())))
        .collect();
    until("one blocks", || lines(&begun).len() == 1).await;
    soon(pool.recycle()).await.unwrap();
    std::fs::write(&gate, "").unwrap();
    for task in tasks {
        soon(task).await.unwrap();
    }
    until("the replaced one has gone", || pool.stats().ended() == 1).await;
    assert_eq!(pool.stats().ended_by(ExitReason::Recycled), 1, "{:?}", pool.stats());
    assert_eq!(lines(&log).len(), 1);
}

#[tokio::test]
async fn an_exit_function_has_a_second_whatever_the_limit_of_the_shutdown_is() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let pool = pool_of(1, |builder| builder.on_worker_exit(say_goodbye_slowly, &log));
    soon(pool.ready()).await.unwrap();
    assert!(soon(pool.shutdown_within(10 * MS)).await.is_empty());
    assert_eq!(lines(&log).len(), 1);
}

#[tokio::test]
async fn an_exit_function_that_panics_or_hangs_harms_nobody() {
    fn panic_at_exit() {
        panic!("at the end");
    }
    fn hang_at_exit(log: PathBuf) {
        note(&log, pid());
        loop {
            std::thread::park();
        }
    }
    let pool = pool_of(1, |builder| builder.on_worker_exit(panic_at_exit, ()));
    soon(pool.spawn(pid, ())).await.unwrap();
    let mut events = pool.events();
    assert!(soon(pool.shutdown()).await.is_empty());
    match soon(events.next()).await {
        Some(WorkerEvent::Exited { why: ExitReason::Closed, status: Some(status), .. }) => {
            assert_eq!(status.code(), Some(0))
        }
        other => panic!("{other:?}"),
    }

    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let pool = pool_of(1, |builder| {
        builder.max_tasks_per_worker(1).on_worker_exit(hang_at_exit, &log).exit_timeout(100 * MS)
    });
    let first = soon(pool.spawn(pid, ())).await.unwrap();
    assert_ne!(soon(pool.spawn(pid, ())).await.unwrap(), first, "the pool goes on meanwhile");
    until("it is killed", || pool.stats().ended_by(ExitReason::TasksServed) >= 1).await;
    assert_eq!(pids(&log)[0], first);

    let log = dir.path().join("other");
    let pool = pool_of(1, |builder| builder.on_worker_exit(hang_at_exit, &log).exit_timeout(NEVER));
    soon(pool.spawn(pid, ())).await.unwrap();
    let ending = pool.shutdown();
    until("it hangs", || lines(&log).len() == 1).await;
    assert!(soon(pool.shutdown_within(Duration::ZERO)).await.is_empty());
    soon(ending).await;
}

// ---- too many deaths

#[tokio::test]
async fn workers_that_die_before_they_are_given_a_task_are_not_started_for_ever() {
    fn doomed(gate: PathBuf) -> Result<(), Infallible> {
        std::thread::spawn(move || {
            while !gate.exists() {
                std::thread::sleep(MS);
            }
            std::process::exit(9);
        });
        Ok(())
    }
    let dir = tempdir().unwrap();
    let gate = dir.path().join("gate");
    let pool = pool_of(1, |builder| {
        builder.spares(1).restart_limit(3, NEVER).on_worker_start(doomed, &gate)
    });
    let mut events = pool.events();
    soon(pool.ready()).await.unwrap();
    std::fs::write(&gate, "").unwrap();
    let cause = loop {
        match soon(events.next()).await {
            Some(WorkerEvent::GaveUp { cause, .. }) => break cause,
            Some(_) => {}
            None => panic!("the pool has ended"),
        }
    };
    assert!(cause.is_restart_limit(), "{cause}");
    assert_eq!(cause.exit_status().and_then(|status| status.code()), Some(9));
    assert!(cause.to_string().contains("exit status: 9"), "{cause}");
    let there = || {
        let stats = pool.stats();
        stats.starting + stats.idle + stats.spare + stats.busy + stats.leaving
    };
    until("nobody is left", || there() == 0).await;
    let error = soon(pool.spawn(pid, ())).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::StartFailed, "{error}");
    let source =
        std::error::Error::source(&error).unwrap().downcast_ref::<procpool::Error>().unwrap();
    assert!(source.is_restart_limit());
    let started = pool.stats().started;
    assert!(started <= 6, "{started} processes");
    // Asked to, it tries again; and now the cause is gone.
    std::fs::remove_file(&gate).unwrap();
    soon(pool.ready()).await.unwrap();
    soon(pool.spawn(pid, ())).await.unwrap();
}

#[tokio::test]
async fn ready_gives_up_where_workers_die_right_after_they_got_ready() {
    fn doomed() -> Result<(), Infallible> {
        std::thread::spawn(|| {
            std::thread::sleep(MS);
            std::process::abort();
        });
        Ok(())
    }
    let pool = pool_of(2, |builder| builder.restart_limit(4, NEVER).on_worker_start(doomed, ()));
    loop {
        let ended = pool.stats().ended();
        match soon(pool.ready()).await {
            Err(error) if error.is_restart_limit() => break,
            Err(error) => assert!(error.is_init_failed(), "{error}"), /* that one died a moment
            * earlier */
            Ok(()) => until("one dies", || pool.stats().ended() > ended).await, /* for a moment all were ready */
        }
    }
    assert!(pool.stats().ended_by(ExitReason::Died) > 4);
}

#[tokio::test]
async fn deaths_in_tasks_never_halt_a_pool() {
    let pool = pool_of(2, |builder| builder.restart_limit(0, NEVER));
    for _ in 0..30 {
        assert!(soon(pool.spawn(die, libc::SIGKILL)).await.unwrap_err().is_worker_died());
    }
    soon(pool.spawn(pid, ())).await.unwrap();
}

// ---- what is stopped

#[tokio::test]
async fn a_worker_that_is_stopped_when_it_should_leave_is_killed_after_its_time() {
    let pool = pool_of(1, |builder| builder.exit_timeout(50 * MS));
    let old = Proc::of(soon(pool.spawn(pid, ())).await.unwrap()).unwrap();
    stop(old.pid);
    soon(pool.recycle()).await.unwrap();
    until("it is gone", || old.is_gone()).await;
    soon(pool.spawn(pid, ())).await.unwrap();
    assert_eq!(pool.stats().ended_by(ExitReason::Recycled), 1);
}

#[tokio::test]
async fn an_idle_worker_that_was_killed_does_not_count_as_recycled() {
    let pool = pool_of(1, |builder| builder.spares(1));
    let old = soon(pool.spawn(pid, ())).await.unwrap();
    signal(old, Signal::SIGKILL);
    until("it is counted", || pool.stats().ended_by(ExitReason::Died) == 1).await;
    assert_ne!(soon(pool.spawn(pid, ())).await.unwrap(), old);
}
