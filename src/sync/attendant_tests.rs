//! Who turns the application's manager: a runtime in which somebody waits, and otherwise the steward.

use super::object_tests::Process;
use super::readiness::watch_readable;
use super::*;
use crate::manager::post::{Seen, USELESS_MAX};
use crate::manager::server::Server;
use crate::process::steward::Turn;
use crate::process::testing::{HANG, wait_until};
use futures::FutureExt;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// A runtime of one thread that is known to have I/O.
fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build().expect("runtime");
    let (socket, _other) = UnixStream::pair().expect("pair");
    runtime.block_on(async { drop(watch_readable(socket)) });
    runtime
}

fn server(manager: &Manager) -> Arc<Server> {
    Arc::clone(manager.connection().server().expect("local"))
}

fn sees(server: &Server, runtime: &Runtime) -> Seen {
    server.post().look(Some(runtime.handle().id()))
}

type Waits<'a> = Pin<Box<dyn Future<Output = Result<Option<u32>, crate::Error>> + 'a>>;

/// Somebody waits in this runtime, which is not polled afterwards.
fn waits_in<'a>(runtime: &Runtime, queue: &'a Queue<u32>) -> Waits<'a> {
    let mut waits: Waits<'a> = Box::pin(queue.recv());
    runtime.block_on(async { assert!(waits.as_mut().now_or_never().is_none()) });
    waits
}

/// In a runtime that is driven.
fn comes(runtime: &Runtime, waits: Waits<'_>) -> u32 {
    let come = runtime.block_on(async { tokio::time::timeout(HANG, waits).await });
    come.expect("in time").expect("recv").expect("one")
}

#[test]
fn a_runtime_in_which_somebody_waits_has_the_post_until_it_ends_and_then_another_may() {
    let manager = Manager::new().expect("manager");
    let (server, worker) = (server(&manager), Process::new(&manager));
    let queue = manager.queue(10).expect("queue");
    let there = worker.has(&queue);
    for _ in 0..3 {
        let (one, other) = (runtime(), runtime());
        let waits = waits_in(&one, &queue);
        assert_eq!((sees(&server, &one), sees(&server, &other)), (Seen::Own, Seen::Others));
        drop(waits);
        let turns = server.turns().load(Ordering::Relaxed);
        // (On a busy machine the steward may come first, and then the next one has the post.)
        wait_until("it has turned itself", || {
            let waits = waits_in(&one, &queue);
            let sends = thread::spawn({
                let there = there.clone();
                move || there.blocking_send(1).expect("send")
            });
            assert_eq!(comes(&one, waits), 1);
            sends.join().expect("no panic");
            server.turns().load(Ordering::Relaxed) > turns
        });
        // It ends while somebody waits elsewhere.
        drop(waits_in(&one, &queue));
        assert_eq!((sees(&server, &one), sees(&server, &other)), (Seen::Own, Seen::Others));
        let waits = waits_in(&other, &queue);
        drop(one);
        assert!(server.post().is_vacant());
        there.blocking_send(2).expect("send");
        assert_eq!(comes(&other, waits), 2);
        drop(waits_in(&other, &queue));
        assert_eq!(sees(&server, &other), Seen::Own);
    }
    assert!(server.post().is_vacant());
}

#[test]
fn a_runtime_that_stands_still_with_the_post_stops_nobody_and_loses_it() {
    let manager = Manager::new().expect("manager");
    let (server, worker) = (server(&manager), Process::new(&manager));
    let queue = manager.queue(10).expect("queue");
    let there = worker.has(&queue);
    let (still, other) = (runtime(), runtime());
    for round in 0..3 {
        drop(waits_in(&still, &queue));
        assert_eq!(sees(&server, &still), Seen::Own);
        let waits = waits_in(&other, &queue);
        assert_eq!(sees(&server, &other), Seen::Others);
        there.blocking_send(round).expect("send");
        assert_eq!(comes(&other, waits), round);
        assert!(server.post().is_vacant(), "the steward has turned");
        drop(waits_in(&other, &queue));
        assert_eq!(sees(&server, &other), Seen::Own);
        // Polled again, it knows. And a worker's request is served whoever has the post, and stands still.
        assert!(there.is_empty().expect("status"));
        wait_until("the task has ended that had the post", || {
            still.block_on(tokio::task::yield_now());
            still.metrics().num_alive_tasks() == 0
        });
    }
}

#[test]
fn what_workers_do_among_themselves_wakes_no_runtime_of_the_application() {
    let manager = Manager::new().expect("manager");
    let server = server(&manager);
    let (one, other) = (Process::new(&manager), Process::new(&manager));
    let [idle, there, back] = [(); 3].map(|()| manager.queue(10).expect("queue"));
    let runtime = runtime();
    let (asks, answers) = ((one.has(&there), one.has(&back)), (other.has(&there), other.has(&back)));
    let waits = waits_in(&runtime, &idle);
    assert_eq!(sees(&server, &runtime), Seen::Own);
    let echo = thread::spawn(move || {
        while let Some(n) = answers.0.blocking_recv().expect("recv") {
            answers.1.blocking_send(n).expect("send");
        }
    });
    let before = server.turns().load(Ordering::Relaxed);
    let (done, all_done) = tokio::sync::oneshot::channel();
    let ask = thread::spawn(move || {
        for n in 0..300u32 {
            asks.0.blocking_send(n).expect("send");
            assert_eq!(asks.1.blocking_recv().expect("recv"), Some(n));
        }
        asks.0.blocking_close().expect("close");
        done.send(()).expect("it is waited for");
    });
    runtime.block_on(all_done).expect("no panic");
    let turns = server.turns().load(Ordering::Relaxed) - before;
    assert!(turns <= USELESS_MAX.into(), "{turns} turns");
    assert!(server.post().is_vacant());
    wait_until("its task has ended", || {
        runtime.block_on(tokio::task::yield_now());
        runtime.metrics().num_alive_tasks() == 0
    });
    drop(waits);
    ask.join().and(echo.join()).expect("no panic");
}

#[test]
fn managers_that_have_gone_leave_nothing_in_the_runtime() {
    let runtime = runtime();
    runtime.block_on(async {
        let mut managers = Vec::new();
        for _ in 0..100 {
            let manager = Manager::new().expect("manager");
            let queue = manager.queue::<u32>(1).expect("queue");
            assert!(queue.recv().now_or_never().is_none());
            let server = server(&manager);
            assert_eq!(server.post().given(), 1);
            managers.push(Arc::downgrade(&server));
        }
        let metrics = tokio::runtime::Handle::current().metrics();
        let gone = async {
            while metrics.num_alive_tasks() > 0 || managers.iter().any(|server| server.strong_count() > 0) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(HANG, gone).await.expect("their tasks and descriptors go");
    });
}

#[test]
fn a_runtime_without_io_and_a_thread_that_blocks_leave_it_to_the_steward() {
    let manager = Manager::new().expect("manager");
    let (server, worker) = (server(&manager), Process::new(&manager));
    let queue = manager.queue(10).expect("queue");
    let there = worker.has(&queue);
    let without = Builder::new_current_thread().build().expect("runtime");
    let mut waits = waits_in(&without, &queue);
    there.blocking_send(1).expect("send");
    assert_eq!(without.block_on(&mut waits).expect("recv"), Some(1));
    drop(waits);
    let with = runtime();
    let _in = with.enter();
    assert!(queue.blocking_recv_timeout(Duration::from_millis(1)).expect_err("nothing").is_timeout());
    assert_eq!(server.post().given(), 0);
}
