//! The user's code that never returns: it holds up whoever called it, and never what all pools
//! share. Meanwhile workers are killed, the dead are reaped, and other pools, processes and shared
//! objects go on.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/processes.rs"]
mod processes;

use nix::sys::signal::Signal;
use processes::{
    Seen, die, hang, in_own_process, lines, own_dir, pid, soon, spin, until, wait_until,
};
use procpool::{Builder, Manager, Output, Pool, Process, Served};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
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
        let worker = Seen::now(processes::pids(&log)[0]).unwrap();
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
            Pool::builder().workers(1).stdout(Output::lines(move |_| of_the_function.enter())),
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
        let output = Output::lines(move |_| assert_eq!(owned.0.0.load(Ordering::SeqCst), 0));
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

impl Served for Stuck {
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
