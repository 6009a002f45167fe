//! Who turns the application's manager: a runtime in which somebody waits, and otherwise the
//! supervisor.

use super::object_tests::Process;
use super::*;
use crate::manager::post::{Seen, USELESS_MAX};
use crate::manager::server::Server;
use crate::park::park_until;
use crate::process::testing::{HANG, forked, in_own_process, is_own_process, wait_until};
use crate::reactor::readiness::watch_readable;
use crate::reactor::{Pass, Source};
use futures::FutureExt;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};
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

type Waits<'a> = Pin<Box<dyn Future<Output = Result<Option<u32>, Error>> + 'a>>;

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

/// The runtime is polled until the task has ended that had the post.
fn ended(runtime: &Runtime) {
    wait_until("the task has ended that had the post", || {
        runtime.block_on(tokio::task::yield_now());
        runtime.metrics().num_alive_tasks() == 0
    });
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
        let turns = server.reactor().passes_by_runtime();
        // (On a busy machine the supervisor may come first, and then the next one has the post.)
        wait_until("it has turned itself", || {
            let waits = waits_in(&one, &queue);
            let sends = thread::spawn({
                let there = there.clone();
                move || there.blocking_send(1).expect("send")
            });
            assert_eq!(comes(&one, waits), 1);
            sends.join().expect("no panic");
            server.reactor().passes_by_runtime() > turns
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
        assert!(server.post().is_vacant(), "the supervisor has turned");
        ended(&other); // it has lost the post as well, the last time
        drop(waits_in(&other, &queue));
        assert_eq!(sees(&server, &other), Seen::Own);
        // Polled again, it knows. And a worker's request is served whoever has the post, and stands
        // still.
        assert!(there.is_empty().expect("status"));
        ended(&still);
    }
}

#[test]
fn a_runtime_that_nobody_polls_is_not_given_the_post_again_and_again() {
    let manager = Manager::new().expect("manager");
    let (server, worker) = (server(&manager), Process::new(&manager));
    let queue = manager.queue(10).expect("queue");
    let there = worker.has(&queue);
    let still = runtime();
    let _in = still.enter();
    for round in 0..10 {
        let sends = thread::spawn({
            let there = there.clone();
            move || there.blocking_send(round).expect("send")
        });
        // By an executor that is not the runtime, within it.
        let come = park_until(queue.recv(), Some(Instant::now() + HANG)).expect("in time");
        assert_eq!(come.expect("recv"), Some(round));
        sends.join().expect("no panic");
    }
    assert!(still.metrics().num_alive_tasks() <= 1, "{} tasks", still.metrics().num_alive_tasks());
    // Once it is polled, it may have it as before.
    wait_until("it has the post again", || {
        still.block_on(tokio::task::yield_now());
        drop(waits_in(&still, &queue));
        sees(&server, &still) == Seen::Own && still.metrics().num_alive_tasks() == 1
    });
}

#[test]
fn a_forked_copy_does_not_turn_what_it_has_the_post_of() {
    in_own_process("sync::attendant_tests::own_process_fork");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_fork() {
    if !is_own_process() {
        return;
    }
    let manager = Manager::new().expect("manager");
    let (server, queue) = (server(&manager), manager.queue(10).expect("queue"));
    let runtime = runtime();
    let _waits = waits_in(&runtime, &queue);
    let number = server.post().given();
    assert_eq!(server.drive_in_slot(number), Pass::Done);
    assert_eq!(forked(|| i32::from(server.drive_in_slot(number) != Pass::Over)), 0);
}

/// Blocks whoever wakes it.
struct Blocks(Mutex<mpsc::Receiver<()>>, AtomicBool);

impl Wake for Blocks {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::Release);
        let _ = self.0.lock().expect("no panic").recv_timeout(HANG);
    }
}

#[test]
fn while_a_waker_blocks_who_has_the_post_the_supervisor_does_not_run_in_circles() {
    let manager = Manager::new().expect("manager");
    let (server, worker) = (server(&manager), Process::new(&manager));
    let queue = manager.queue(10).expect("queue");
    let there = worker.has(&queue);
    let send = |n| {
        let there = there.clone();
        thread::spawn(move || there.blocking_send(n).expect("send"))
    };
    let (release, released) = mpsc::channel();
    let blocks = Arc::new(Blocks(Mutex::new(released), AtomicBool::new(false)));
    let (runtime, mut waits) = (runtime(), Box::pin(queue.recv()));
    runtime.block_on(async {
        assert!(
            waits
                .as_mut()
                .poll(&mut Context::from_waker(&Waker::from(Arc::clone(&blocks))))
                .is_pending()
        );
    });
    assert_eq!(sees(&server, &runtime), Seen::Own);
    let one = send(1);
    // (If the supervisor was faster, that thread is blocked, and there is nothing to see.)
    let turns = thread::spawn(move || {
        runtime.block_on(async {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    });
    wait_until("the waker is called", || blocks.1.load(Ordering::Acquire));
    let other = send(2);
    let start = Instant::now();
    thread::sleep(Duration::from_millis(50));
    let wanted = server.reactor().wanted();
    assert!(
        u128::from(wanted) <= 5 + 2 * start.elapsed().as_millis(),
        "{wanted} turns were asked for"
    );
    drop(release);
    one.join().and(other.join()).and(turns.join()).expect("no panic");
    assert_eq!(waits.now_or_never().expect("it has come").expect("recv"), Some(1));
}

#[test]
fn what_workers_do_among_themselves_wakes_no_runtime_of_the_application() {
    let manager = Manager::new().expect("manager");
    let server = server(&manager);
    let (one, other) = (Process::new(&manager), Process::new(&manager));
    let [idle, there, back] = [(); 3].map(|()| manager.queue(10).expect("queue"));
    let runtime = runtime();
    let (asks, answers) =
        ((one.has(&there), one.has(&back)), (other.has(&there), other.has(&back)));
    let waits = waits_in(&runtime, &idle);
    assert_eq!(sees(&server, &runtime), Seen::Own);
    let echo = thread::spawn(move || {
        while let Some(n) = answers.0.blocking_recv().expect("recv") {
            answers.1.blocking_send(n).expect("send");
        }
    });
    let before = server.reactor().passes_by_runtime();
    let (done, all_done) = tokio::sync::oneshot::channel();
    let ask = thread::spawn(move || {
        for n in 0..300u32 {
            asks.0.blocking_send(n).expect("send");
            assert_eq!(asks.1.blocking_recv().expect("recv"), Some(n));
        }
        asks.0.close().expect("close");
        done.send(()).expect("it is waited for");
    });
    runtime.block_on(all_done).expect("no panic");
    let turns = server.reactor().passes_by_runtime() - before;
    assert!(turns <= USELESS_MAX.into(), "{turns} turns");
    assert!(server.post().is_vacant());
    ended(&runtime);
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
            tokio::task::yield_now().await; // else the task's budget is used up one day
        }
        let metrics = tokio::runtime::Handle::current().metrics();
        let gone = async {
            while metrics.num_alive_tasks() > 0
                || managers.iter().any(|server| server.strong_count() > 0)
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(HANG, gone).await.expect("their tasks and descriptors go");
    });
}

#[test]
fn a_runtime_without_io_and_a_thread_that_blocks_leave_it_to_the_supervisor() {
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
    assert!(
        queue.blocking_recv_timeout(Duration::from_millis(1)).expect_err("nothing").is_timeout()
    );
    assert_eq!(server.post().given(), 0);
}
