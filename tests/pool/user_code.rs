//! The user's code that never returns: it holds up whoever called it, and never what all pools
//! share. Meanwhile workers are killed, the dead are reaped, and other pools, processes and shared
//! objects go on.

#![cfg(feature = "sync")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{
    FUSE, Proc, die, hang, in_own_process, lines, own_dir, pid, soon, spin, until, wait_until,
};
use futures::{FutureExt, StreamExt};
use nix::sys::signal::Signal;
use procpool::sync::{Actor, Queue, channel};
use procpool::{Builder, Manager, Pool, Process, Stdio};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tempfile::tempdir;

/// Somebody has come here, and never goes on.
#[derive(Clone, Default)]
struct Trap(Arc<AtomicUsize>);

impl Trap {
    fn enter(&self) -> ! {
        self.0.fetch_add(1, Ordering::SeqCst);
        loop {
            std::thread::park();
        }
    }

    async fn is_entered(&self) {
        until("somebody is in the trap", || self.0.load(Ordering::SeqCst) > 0).await;
    }
}

/// Whoever drops it never comes back.
struct NeverDropped(Trap);

impl Drop for NeverDropped {
    fn drop(&mut self) {
        self.0.enter();
    }
}

/// Who turns a pool.
#[derive(Clone, Copy, Debug)]
enum Driver {
    Runtime,
    Steward,
}

const DRIVERS: [Driver; 2] = [Driver::Runtime, Driver::Steward];

fn build(builder: Builder, driver: Driver) -> Pool {
    match driver {
        Driver::Runtime => builder.build().unwrap(),
        // A plain thread is in no runtime.
        Driver::Steward => std::thread::spawn(|| builder.build().unwrap()).join().unwrap(),
    }
}

/// A task is killed with its worker, a worker that has died is reaped and replaced, tasks are done.
async fn goes_on(pool: &Pool, dir: &Path) {
    let log = dir.join("log");
    for spins in [false, true] {
        let stuck = if spins { pool.spawn(spin, &log) } else { pool.spawn(hang, &log) };
        until("it runs", || !lines(&log).is_empty()).await;
        let worker = Proc::of(support::pids(&log)[0]).unwrap();
        stuck.abort();
        assert!(soon(stuck).await.unwrap_err().is_cancelled());
        assert!(worker.is_gone(), "what was stopped has stopped, and is reaped");
        std::fs::remove_file(&log).unwrap();
    }
    let dead = soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err();
    assert!(dead.is_worker_died(), "{dead:?}");
    soon(pool.spawn(pid, ())).await.unwrap();
}

/// All of it, with what else the crate does in this process; and at last the pool ends.
async fn everything_goes_on(pool: Pool) {
    let dir = tempdir().unwrap();
    goes_on(&pool, dir.path()).await;
    for driver in DRIVERS {
        let other = build(Pool::builder().workers(1), driver);
        goes_on(&other, dir.path()).await;
        soon(other.shutdown()).await;
    }
    let process = Process::spawn(hang, dir.path().join("of the process")).unwrap();
    process.kill().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&soon(process.wait()).await.unwrap()),
        Some(9)
    );
    let total = Manager::new().unwrap().mutex(1u32).unwrap();
    *soon(total.lock()).await.unwrap() += 1;
    assert_eq!(soon(total.get()).await.unwrap(), 2);
    soon(pool.kill()).await;
}

#[expect(clippy::print_stdout, reason = "it is what is captured")]
fn print(text: String) {
    println!("{text}");
}

#[tokio::test]
async fn a_function_for_lines_that_never_returns_holds_up_nothing_else() {
    for driver in DRIVERS {
        let trap = Trap::default();
        let of_the_function = trap.clone();
        let pool = build(
            Pool::builder().workers(1).stdout(Stdio::lines(move |_| of_the_function.enter())),
            driver,
        );
        soon(pool.spawn(print, "a line")).await.unwrap();
        trap.is_entered().await;
        soon(pool.spawn(print, "another")).await.unwrap();
        everything_goes_on(pool).await;
    }
}

#[tokio::test]
async fn what_a_function_for_lines_owns_and_that_is_never_dropped_holds_up_nothing_else() {
    for driver in DRIVERS {
        let trap = Trap::default();
        let owned = NeverDropped(trap.clone());
        let output = Stdio::lines(move |_| assert_eq!(owned.0.0.load(Ordering::SeqCst), 0));
        let pool = build(Pool::builder().workers(1).stderr(output), driver);
        soon(pool.spawn(pid, ())).await.unwrap();
        let end = pool.shutdown();
        drop(pool);
        soon(end).await;
        trap.is_entered().await;
        everything_goes_on(build(Pool::builder().workers(1), driver)).await;
    }
}

/// An object whose method, and whose drop, never return.
struct Stuck(Trap, #[expect(dead_code, reason = "it is there to be dropped")] NeverDropped);

impl Actor for Stuck {
    type Call = bool;
    type Reply = ();

    async fn call(&mut self, waits: bool) {
        if waits {
            self.0.enter();
        }
    }
}

#[tokio::test]
async fn an_object_whose_method_or_drop_never_returns_holds_up_nothing_else() {
    for driver in DRIVERS {
        for waits in [true, false] {
            let (in_call, in_drop) = (Trap::default(), Trap::default());
            let pool = build(Pool::builder().workers(1), driver);
            let object = pool
                .manager()
                .register(Stuck(in_call.clone(), NeverDropped(in_drop.clone())))
                .unwrap();
            let beside = pool.manager().mutex(0u32).unwrap();
            if waits {
                let caller = tokio::spawn({
                    let object = object.clone();
                    async move { object.call(true).await }
                });
                in_call.is_entered().await;
                caller.abort();
            } else {
                soon(object.call(false)).await.unwrap();
                drop(object);
                in_drop.is_entered().await;
            }
            *soon(beside.lock()).await.unwrap() += 1;
            everything_goes_on(pool).await;
        }
    }
}

// ---- a waker

/// A waker that never comes back.
struct Sleeper(Trap);

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.0.enter();
    }
}

/// It holds up the runtime that calls it, as it would with anything in that runtime; and the pool
/// that this runtime is about to turn.
#[test]
fn a_waker_that_never_returns_holds_up_its_own_runtime_and_nothing_else() {
    in_own_process("own_process_with_a_waker");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_with_a_waker() {
    let Some(dir) = own_dir() else { return };
    let (trap, gate) = (Trap::default(), dir.join("gate"));
    let (tell, told) = std::sync::mpsc::channel();
    // Its runtime turns on a thread of its own, which is lost.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tell.send(Pool::builder().workers(1).build().unwrap()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let pool = told.recv().unwrap();
    let wait = |gate: PathBuf| wait_until("the gate opens", || gate.exists());
    let mut task = pool.spawn(wait, &gate);
    let waker = Waker::from(Arc::new(Sleeper(trap.clone())));
    assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
    std::fs::write(gate, "").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        trap.is_entered().await;
        everything_goes_on(Pool::builder().workers(1).build().unwrap()).await;
    });
    // The one that is held up takes tasks, and may be dropped.
    drop((pool.spawn(pid, ()), pool));
}

// ---- destructors of thread-local variables

/// Runs when a thread's local variables are destroyed.
struct Late(Option<Box<dyn FnOnce()>>);

impl Drop for Late {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            run();
        }
    }
}

thread_local! {
    static LATE: RefCell<Late> = const { RefCell::new(Late(None)) };
}

/// As an executor other than tokio's does it, and without a thread-local variable of its own.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

struct Echo;

impl Actor for Echo {
    type Call = u32;
    type Reply = u32;

    async fn call(&mut self, call: u32) -> u32 {
        call
    }
}

fn calls_of_pools_and_processes(pool: &Pool) {
    let handle = pool.spawn(|n: u8| n + 1, 1);
    assert!(!handle.abort_handle().is_finished() || handle.is_finished());
    assert_eq!(handle.blocking_join().unwrap(), 2);
    let mut handle = pool.spawn(|n: u8| n + 1, 1);
    assert_eq!(handle.blocking_join_timeout(FUSE).unwrap().unwrap(), 2);
    assert_eq!(block_on(pool.spawn(|n: u8| n + 1, 1)).unwrap(), 2);
    assert_eq!(block_on(pool.spawn_wait(async |n: u8| n + 1, 1).map(block_on)).unwrap(), 2);
    let results = block_on(pool.map(|n: u32| n, 0..100u32).collect::<Vec<_>>());
    assert!(results.into_iter().map(Result::unwrap).eq(0..100));
    let _ = (pool.stats(), pool.workers(), pool.resize(1), pool.abort_queued(), pool.events());
    let other = Pool::builder().workers(1).build().unwrap();
    other.kill();
    let mut process = Process::spawn(|n: u32| n + 1, 1).unwrap();
    process.blocking_started().unwrap();
    assert!(process.blocking_wait().unwrap().success());
    assert!(process.blocking_wait_timeout(FUSE).unwrap().is_some());
    assert_eq!(block_on(&mut process).unwrap(), 2);
    assert_eq!(process.blocking_join().unwrap(), 2);
}

fn calls_of_shared_objects(pool: &Pool) {
    let manager = pool.manager();
    let lock = manager.mutex(vec![0u8]).unwrap();
    lock.blocking_lock().unwrap().push(1);
    block_on(lock.lock()).unwrap().push(2);
    assert!(lock.blocking_lock_timeout(FUSE).is_ok() && lock.try_lock().unwrap().is_some());
    assert_eq!(lock.blocking_get().unwrap(), [0, 1, 2]);
    let rwlock = manager.rwlock(1u8).unwrap();
    *rwlock.blocking_write().unwrap() += 1;
    assert_eq!(*rwlock.blocking_read().unwrap(), 2);
    let semaphore = manager.semaphore(1).unwrap();
    drop(semaphore.blocking_acquire().unwrap());
    drop(block_on(semaphore.acquire()).unwrap());
    let event = manager.event().unwrap();
    event.set().unwrap();
    event.blocking_wait().unwrap();
    manager.barrier(1).unwrap().blocking_wait().unwrap();
    let (map, list) = (manager.map().unwrap(), manager.list().unwrap());
    map.blocking_set(1u8, lock.clone()).unwrap(); // a handle within a value
    assert!(map.blocking_get(&1).unwrap().is_some());
    list.blocking_push(1u8).unwrap();
    assert_eq!(list.blocking_snapshot().unwrap(), [1]);
    assert_eq!(manager.value(7u64).unwrap().load().unwrap(), 7);
    assert_eq!(manager.register(Echo).unwrap().blocking_call(7).unwrap(), 7);
    let (here, there) = channel::<u8>().unwrap();
    here.blocking_send(1).unwrap();
    assert_eq!(there.blocking_recv_timeout(FUSE).unwrap(), Some(1));
    let queue = manager.queue::<u8>(1).unwrap();
    let takes = pool.spawn(|queue: Queue<u8>| (queue.blocking_recv().unwrap(), queue), &queue);
    queue.blocking_send(9).unwrap();
    let (taken, handle) = takes.blocking_join().unwrap(); // a handle within a result
    assert_eq!(taken, Some(9));
    handle.blocking_send(1).unwrap();
    assert_eq!(handle.try_recv().unwrap(), Some(1));
    let condvar = manager.condvar().unwrap();
    let guard = condvar.blocking_wait_timeout(lock.blocking_lock().unwrap(), Duration::ZERO);
    drop(guard.unwrap());
}

#[test]
fn calls_work_in_the_destructor_of_a_thread_local_variable() {
    in_own_process("own_process_whose_threads_make_calls_as_they_end"); // else a panic ends all tests
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_whose_threads_make_calls_as_they_end() {
    if own_dir().is_none() {
        return;
    }
    let pool = Pool::builder().workers(1).build().unwrap();
    for calls in [calls_of_pools_and_processes, calls_of_shared_objects] {
        let (done, seen) = std::sync::mpsc::channel();
        let pool = pool.clone();
        let thread = std::thread::spawn(move || {
            LATE.with(|late| drop(late.borrow())); // registered first, so it is destroyed last
            calls(&pool);
            LATE.set(Late(Some(Box::new(move || {
                calls(&pool);
                done.send(()).unwrap();
            }))));
        });
        seen.recv_timeout(FUSE).expect("the calls return");
        thread.join().unwrap();
    }
}
