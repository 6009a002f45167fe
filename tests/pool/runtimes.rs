//! Pools and runtimes: kinds of runtimes, pools that outlive theirs, pools without any, and forks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "tests that fork")]

use crate::support::{
    FUSE, Proc, children, die, hang, in_own_process, lines, note, own_dir, pid, pids, seen, soon,
    spin, until, wait_for, wait_until,
};
use futures::StreamExt;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use procpool::{ErrorKind, JoinHandle, Pool, TaskErrorKind};
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tempfile::tempdir;
use tokio::runtime::{Builder, Runtime};

fn pool_of(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn multi_thread(threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
}

/// Joins on a thread of its own, with a fuse.
fn joined<R: serde::de::DeserializeOwned + Send + 'static>(
    handle: JoinHandle<R>,
) -> Result<R, procpool::TaskError> {
    let (sender, result) = mpsc::channel();
    std::thread::spawn(move || sender.send(handle.blocking_join()));
    result.recv_timeout(FUSE).expect("it never came")
}

// ---- kinds of runtimes

async fn never(log: PathBuf) {
    note(&log, pid());
    std::future::pending().await
}

/// Something of everything.
async fn the_core_works() {
    let pool = pool_of(3);
    soon(pool.ready()).await.unwrap();
    assert_eq!(soon(pool.spawn(|a: u32, b: u32| a + b, (1, 2))).await.unwrap(), 3);
    assert_eq!(soon(pool.spawn(async |text: String| text.len(), "four")).await.unwrap(), 4);
    let mut results = pool.map(|n: u64| n * n, 0..1000);
    let mut next = 0;
    while let Some(result) = soon(results.next()).await {
        assert_eq!(result.unwrap(), next * next);
        next += 1;
    }
    assert_eq!(next, 1000);
    assert!(soon(pool.spawn(|| -> () { panic!("so it goes") }, ())).await.unwrap_err().is_panic());
    assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let running = [pool.spawn(spin, &log), pool.spawn(never, &log)];
    until("both run", || lines(&log).len() == 2).await;
    for task in running {
        task.abort();
        assert!(soon(task).await.unwrap_err().is_cancelled());
    }
    let last = pool.spawn(pid, ());
    soon(pool.shutdown()).await;
    assert!(soon(last).await.is_ok());
    assert!(soon(pool.spawn(pid, ())).await.unwrap_err().is_pool_closed());
}

#[tokio::test]
async fn the_core_works_on_one_thread() {
    the_core_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_core_works_on_a_runtime_of_one_worker_thread() {
    the_core_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_core_works_on_many_threads() {
    tokio::spawn(the_core_works()).await.unwrap();
}

#[test]
fn the_core_works_in_a_runtime_of_a_plain_thread() {
    std::thread::spawn(|| current_thread().block_on(the_core_works())).join().unwrap();
}

#[tokio::test]
async fn the_core_works_in_a_local_set() {
    tokio::task::LocalSet::new().run_until(the_core_works()).await;
}

#[test]
fn a_runtime_without_drivers_of_its_own_is_not_needed() {
    // No I/O, no time: such a runtime cannot watch the pool's descriptors, a thread of the crate's
    // does.
    let runtime = Builder::new_current_thread().build().unwrap();
    let pool = Pool::new().unwrap();
    assert!(runtime.block_on(pool.spawn(pid, ())).is_ok());
    // Built within, it would have to be driven by it: that is said at once.
    let built = std::panic::catch_unwind(|| runtime.block_on(async { Pool::new() }));
    assert!(built.is_err());
}

#[test]
fn a_pool_built_in_a_runtime_that_is_never_polled_or_ends_at_once_works() {
    for ends in [false, true] {
        let runtime = current_thread();
        let pool = {
            let _in = runtime.enter();
            pool_of(1)
        };
        let runtime = (!ends).then_some(runtime);
        assert!(joined(pool.spawn(pid, ())).is_ok());
        assert!(joined(pool.spawn(die, Signal::SIGKILL as i32)).unwrap_err().is_worker_died());
        drop(pool);
        drop(runtime);
    }
}

// ---- a pool in a static, shared by tests that each have a runtime of their own

static SHARED: LazyLock<Pool> = LazyLock::new(|| pool_of(2));

async fn use_shared_pool() {
    for n in 0..100u32 {
        assert_eq!(soon(SHARED.spawn(|n: u32| n + 1, n)).await.unwrap(), n + 1);
    }
    let mut results = SHARED.map(|n: u64| n + 1, 0..500).unordered();
    let mut sum = 0;
    while let Some(result) = soon(results.next()).await {
        sum += result.unwrap();
    }
    assert_eq!(sum, (1..=500).sum::<u64>());
}

macro_rules! tests_that_share_a_pool {
    ($($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                use_shared_pool().await;
            }
        )*
    };
}
tests_that_share_a_pool!(a_shared_pool_1 a_shared_pool_2 a_shared_pool_3 a_shared_pool_4 a_shared_pool_5 a_shared_pool_6);

#[tokio::test]
async fn tests_run_in_the_application_and_never_in_a_worker() {
    // Were a worker to run the harness, it would run this test, and so on.
    assert_eq!(soon(SHARED.spawn(|| std::env::args().count(), ())).await.unwrap(), 1);
    assert_ne!(soon(SHARED.spawn(pid, ())).await.unwrap(), pid());
}

/// Under the harness's other ways of running: one thread, and a process for each test.
#[test]
fn the_shared_pool_works_however_the_harness_is_run() {
    let program = std::env::current_exe().unwrap();
    for args in [
        vec!["runtimes::a_shared_pool", "--test-threads=1"],
        vec!["runtimes::a_shared_pool_1", "--exact", "--nocapture"],
        vec!["runtimes::a_shared_pool", "--nocapture"],
    ] {
        let output = Command::new(&program).args(&args).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let passed = if args[1] == "--exact" { "1 passed" } else { "6 passed" };
        assert!(output.status.success() && stdout.contains(passed), "{args:?}: {stdout}");
        assert_eq!(stdout.matches("running ").count(), 1, "{stdout}");
        assert_eq!(output.stderr, b"", "{}", String::from_utf8_lossy(&output.stderr));
    }
}

// ---- outside of runtimes

#[test]
fn a_pool_built_outside_any_runtime_works_there_and_in_every_other() {
    let pool = pool_of(2);
    assert_eq!(joined(pool.spawn(|n: u32| n + 1, 1)).unwrap(), 2);
    let mut handle = pool.spawn(|n: u32| n + 1, 2);
    let mut result = None;
    wait_until("it has ended", || {
        result = handle.try_join();
        result.is_some()
    });
    assert_eq!(result.unwrap().unwrap(), 3);
    for runtime in [current_thread(), multi_thread(2)] {
        assert_eq!(
            runtime.block_on(async { soon(pool.spawn(|n: u32| n + 1, 3)).await.unwrap() }),
            4
        );
        assert!(runtime.block_on(async {
            soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died()
        }));
    }
    futures_executor(async { pool.ready().await.unwrap() });
    let worker = Proc::of(joined(pool.spawn(pid, ())).unwrap()).unwrap();
    drop(pool);
    wait_until("it is gone", || worker.is_gone());
}

/// Any executor will do: this one parks its thread.
fn futures_executor<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    let start = std::time::Instant::now();
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        assert!(start.elapsed() < FUSE, "it never came");
        std::thread::park_timeout(FUSE);
    }
}

#[test]
fn any_executor_may_await_a_pool_of_any_runtime() {
    let runtime = current_thread(); // not polled
    let pool = {
        let _in = runtime.enter();
        pool_of(2)
    };
    for n in 0..50u32 {
        assert_eq!(futures_executor(pool.spawn(|n: u32| n + 1, n)).unwrap(), n + 1);
    }
    futures_executor(pool.shutdown());
}

// ---- runtimes that end, stand still, or are blocked

#[test]
fn a_pool_outlives_its_runtime() {
    for runtime in [current_thread(), multi_thread(2)] {
        let pool = runtime.block_on(async {
            let pool = pool_of(2);
            soon(pool.spawn(pid, ())).await.unwrap();
            pool
        });
        let open = pool.spawn(pid, ());
        runtime.shutdown_background();
        assert!(joined(open).is_ok());
        let other = current_thread();
        other.block_on(async {
            for n in 0..50u32 {
                assert_eq!(soon(pool.spawn(|n: u32| n + 1, n)).await.unwrap(), n + 1);
            }
            assert!(
                soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died()
            );
            assert!(soon(pool.spawn(pid, ())).await.is_ok());
            soon(pool.shutdown()).await;
        });
    }
}

#[test]
fn a_pool_whose_runtime_ends_again_and_again_loses_nothing() {
    // The hand-over from a runtime to the crate's thread, at every moment of a task's life.
    for round in 0..100u32 {
        let runtime = if round % 2 == 0 { current_thread() } else { multi_thread(1) };
        let (pool, handles) = runtime.block_on(async {
            let pool = pool_of(1);
            let handles: Vec<_> = (0..10u32).map(|n| pool.spawn(|n: u32| n + 1, n)).collect();
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            (pool, handles)
        });
        drop(runtime);
        for (n, handle) in (0..).zip(handles) {
            assert_eq!(joined(handle).unwrap(), n + 1);
        }
        drop(pool);
    }
}

#[test]
fn a_pool_works_while_its_runtime_is_not_polled() {
    let runtime = current_thread();
    let pool = runtime.block_on(async { pool_of(2) });
    // From threads …
    for n in 0..50u32 {
        assert_eq!(joined(pool.spawn(|n: u32| n + 1, n)).unwrap(), n + 1);
    }
    // … from another runtime, …
    current_thread().block_on(async {
        for n in 0..50u32 {
            assert_eq!(soon(pool.spawn(|n: u32| n + 1, n)).await.unwrap(), n + 1);
        }
        assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
        let mut results = pool.map(|n: u64| n, 0..1000);
        let mut count = 0;
        while let Some(result) = soon(results.next()).await {
            result.unwrap();
            count += 1;
        }
        assert_eq!(count, 1000);
    });
    // … and in its own again, to and fro.
    for n in 0..50u32 {
        let handle = pool.spawn(|n: u32| n + 1, n);
        let value = if n % 2 == 0 {
            runtime.block_on(async { soon(handle).await })
        } else {
            joined(handle)
        };
        assert_eq!(value.unwrap(), n + 1);
    }
    let worker = Proc::of(joined(pool.spawn(pid, ())).unwrap()).unwrap();
    drop(pool);
    wait_until("it is gone", || worker.is_gone());
}

#[test]
fn a_pool_works_while_its_runtime_is_blocked() {
    let (pool_sender, pools) = mpsc::channel();
    let (unblock, blocked) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        current_thread().block_on(async {
            let pool = pool_of(2);
            // It has turned before it stands still.
            soon(pool.spawn(pid, ())).await.unwrap();
            pool_sender.send(pool).unwrap();
            blocked.recv().unwrap();
        });
    });
    let pool = pools.recv_timeout(FUSE).unwrap();
    current_thread().block_on(async {
        for n in 0..50u32 {
            assert_eq!(soon(pool.spawn(|n: u32| n + 1, n)).await.unwrap(), n + 1);
        }
    });
    assert!(joined(pool.spawn(die, Signal::SIGKILL as i32)).unwrap_err().is_worker_died());
    for n in 0..50u32 {
        assert_eq!(joined(pool.spawn(|n: u32| n + 1, n)).unwrap(), n + 1);
    }
    unblock.send(()).unwrap();
    thread.join().unwrap();
    assert!(joined(pool.spawn(pid, ())).is_ok());
}

#[test]
fn a_task_of_the_pools_own_runtime_may_block_it_on_a_result() {
    // Bad manners, but no deadlock: on a runtime with one thread nobody else turns the pool.
    current_thread().block_on(async {
        let pool = pool_of(2);
        for n in 0..20u32 {
            let handle = pool.spawn(|n: u32| n + 1, n);
            let thread = std::thread::spawn(move || joined(handle));
            assert_eq!(thread.join().unwrap().unwrap(), n + 1);
            assert_eq!(soon(pool.spawn(|n: u32| n + 1, n)).await.unwrap(), n + 1);
        }
    });
}

#[test]
fn a_pool_answers_though_it_is_called_from_everywhere_while_its_runtime_comes_and_goes() {
    let runtime = current_thread();
    let pool = runtime.block_on(async { pool_of(2) });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                let pool = &pool;
                scope.spawn(move || {
                    let own = current_thread();
                    for n in 0..300u32 {
                        let handle = pool.spawn(|n: u32| n + 1, n);
                        let value = if caller % 2 == 0 {
                            own.block_on(async { soon(handle).await })
                        } else {
                            handle.blocking_join()
                        };
                        assert_eq!(value.unwrap(), n + 1);
                    }
                })
            })
            .collect();
        // Turns a little, then not at all, at random.
        let (runtime, over) = (&runtime, &over);
        scope.spawn(move || {
            let mut random = 88_172_645_463_325_252u64;
            while !over.load(Ordering::Relaxed) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                runtime.block_on(async {
                    for _ in 0..random % 50 {
                        tokio::task::yield_now().await;
                    }
                });
                std::thread::sleep(Duration::from_micros(random % 3000));
            }
        });
        let results: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
        over.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
}

// ---- ends

#[test]
fn a_runtime_that_is_dropped_with_tasks_running_takes_its_pool_along() {
    in_own_process("own_process_that_drops_runtimes");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_that_drops_runtimes() {
    let Some(dir) = own_dir() else { return };
    // What panics in a task of a runtime's, it keeps to itself.
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let tells = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        tells(panic);
    }));
    type End = fn(Runtime);
    let ends: [(&str, End); 3] = [
        ("drop", drop),
        ("background", Runtime::shutdown_background),
        ("timeout", |runtime| runtime.shutdown_timeout(Duration::ZERO)),
    ];
    for (name, end) in ends {
        for inside_another in [false, true] {
            let log = dir.join(format!("{name} {inside_another}"));
            let runtime = multi_thread(2);
            let task_log = log.clone();
            runtime.spawn(async move {
                let pool = pool_of(2); // held by this task alone
                let _ = (pool.spawn(hang, &task_log), pool.spawn(spin, &task_log).await);
            });
            wait_until("both run", || lines(&log).len() == 2);
            let workers = seen(&log);
            match (inside_another, name) {
                (false, _) => end(runtime),
                (true, "background") => current_thread().block_on(async move { end(runtime) }),
                // These wait, which tokio allows in a context only where one may block.
                (true, _) => {
                    current_thread().block_on(async move {
                        tokio::task::spawn_blocking(move || end(runtime)).await.unwrap()
                    });
                }
            }
            wait_until("the workers are gone", || workers.iter().all(|worker| worker.is_gone()));
        }
    }
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "something panicked");
}

#[test]
fn a_pool_is_dropped_inside_and_outside_of_runtimes() {
    let dir = tempdir().unwrap();
    let runtimes = [current_thread(), multi_thread(2)];
    for (n, runtime) in runtimes.iter().enumerate() {
        for place in ["own", "other", "none"] {
            let log = dir.path().join(format!("{n} {place}"));
            let (pool, task) = runtime.block_on(async {
                let pool = pool_of(2);
                let task = pool.spawn(hang, &log);
                until("it runs", || lines(&log).len() == 1).await;
                (pool, task)
            });
            let worker = seen(&log)[0];
            match place {
                "own" => runtime.block_on(async { drop(pool) }),
                "other" => runtimes[1 - n].block_on(async { drop(pool) }),
                _ => drop(pool),
            }
            assert!(joined(task).unwrap_err().is_pool_closed());
            wait_until("it is gone", || worker.is_gone());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_may_be_called_twice_and_by_many() {
    let (pool, dir) = (pool_of(2), tempdir().unwrap());
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let running = pool.spawn(wait_for, (log.clone(), gate.clone()));
    let queued: Vec<_> = (0..5).map(|_| pool.spawn(pid, ())).collect();
    until("it runs", || lines(&log).len() == 1).await;
    let shutdowns: Vec<_> = (0..8)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.shutdown().await })
        })
        .collect();
    // One that is dropped half way changes nothing.
    assert!(tokio::time::timeout(Duration::from_millis(10), pool.shutdown()).await.is_err());
    assert!(soon(pool.spawn(pid, ())).await.unwrap_err().is_pool_closed());
    for task in queued {
        assert!(soon(task).await.is_ok());
    }
    assert!(shutdowns.iter().all(|shutdown| !shutdown.is_finished()));
    std::fs::write(gate, "").unwrap();
    for shutdown in shutdowns {
        soon(shutdown).await.unwrap();
    }
    assert!(soon(running).await.is_ok());
    assert!(seen_none(&pids(&log)));
    soon(pool.shutdown()).await;
}

fn seen_none(pids: &[u32]) -> bool {
    pids.iter().all(|pid| Proc::of(*pid).is_none())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spawns_that_race_with_a_shutdown_are_done_or_refused() {
    for round in 0..30 {
        let pool = pool_of(2);
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    let mut done = 0u32;
                    loop {
                        match soon(pool.spawn(|n: u32| n + 1, done)).await {
                            Ok(value) => assert_eq!(value, done + 1),
                            Err(error) => {
                                assert!(error.is_pool_closed(), "{error:?}");
                                return;
                            }
                        }
                        done += 1;
                    }
                })
            })
            .collect();
        for _ in 0..round * 10 {
            tokio::task::yield_now().await;
        }
        soon(pool.shutdown()).await;
        for caller in callers {
            soon(caller).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_dropped_at_any_moment_of_their_start_leave_nothing() {
    for round in 0..60u32 {
        let pool = pool_of(3);
        let tasks: Vec<_> = (0..6).map(|_| pool.spawn(pid, ())).collect();
        for _ in 0..round * 3 {
            tokio::task::yield_now().await;
        }
        drop(pool);
        for task in tasks {
            if let Err(error) = soon(task).await {
                assert!(error.is_pool_closed(), "{error:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_end_of_a_pool_is_awaited_with_its_workers() {
    for _ in 0..20 {
        let pool = pool_of(3);
        soon(pool.ready()).await.unwrap();
        let mut workers = HashSet::new();
        for _ in 0..10 {
            workers.insert(Proc::of(soon(pool.spawn(pid, ())).await.unwrap()).unwrap());
        }
        soon(pool.shutdown()).await;
        assert!(workers.iter().all(|worker| worker.is_gone()), "reaped when `shutdown` returns");
    }
}

// ---- threads and forks of the application

#[test]
fn workers_start_while_threads_allocate_and_lock() {
    let over = AtomicBool::new(false);
    let lock = Mutex::new(0u64);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let bytes = std::hint::black_box(vec![0u8; 10_000]);
                    *lock.lock().unwrap() += bytes.len() as u64;
                    std::thread::yield_now();
                }
            });
        }
        let result = std::panic::catch_unwind(|| {
            current_thread().block_on(async {
                for _ in 0..15 {
                    let pool = pool_of(20);
                    soon(pool.ready()).await.unwrap();
                }
            });
        });
        over.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}

#[test]
fn a_forked_copy_of_a_runtime_does_not_take_in_what_is_for_the_original() {
    in_own_process("own_process_forked_runtime");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_forked_runtime() {
    let Some(dir) = own_dir() else { return };
    let runtime = current_thread();
    let pool = runtime.block_on(async {
        let pool = pool_of(1);
        soon(pool.spawn(pid, ())).await.unwrap();
        pool
    });
    for round in 0..5 {
        let (log, gate) = (dir.join(format!("log {round}")), dir.join(format!("gate {round}")));
        let running = pool.spawn(wait_for, (log.clone(), gate.clone()));
        wait_until("it runs", || lines(&log).len() == 1);
        // SAFETY: the copy ends by `_exit`; the locks that it takes are its own.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                std::fs::write(gate, "").unwrap();
                // It turns, and would be as quick as the original's supervisor at least.
                runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
                // SAFETY: ends the copy.
                unsafe { libc::_exit(7) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 7));
            }
        }
        runtime.block_on(async { soon(running).await }).unwrap();
    }
}

#[test]
fn a_forked_copy_of_the_application_is_refused_and_disturbs_nothing() {
    in_own_process("own_process_forked_copy");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_forked_copy() {
    let Some(dir) = own_dir() else { return };
    let (log, gate) = (dir.join("log"), dir.join("gate"));
    let pool = pool_of(2);
    let running = pool.spawn(wait_for, (log.clone(), gate.clone()));
    wait_until("it runs", || lines(&log).len() == 1);
    let mut also_running = Some(pool.spawn(wait_for, (log.clone(), gate.clone())));
    let mut third = Some(pool.spawn(wait_for, (log.clone(), gate.clone())));
    let mut results = Some(pool.map(wait_for, vec![(log.clone(), gate.clone()); 3]));
    let mut pool = Some(pool);

    // SAFETY: the copy ends by `_exit`; the locks that it takes are its own, which is a part of the
    // test.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                assert_eq!(Pool::new().unwrap_err().kind(), ErrorKind::Forked);
                let own = pool.take().unwrap();
                assert_eq!(
                    own.spawn(pid, ()).blocking_join().unwrap_err().kind(),
                    TaskErrorKind::Forked
                );
                assert_eq!(
                    futures_executor(own.spawn(pid, ())).unwrap_err().kind(),
                    TaskErrorKind::Forked
                );
                assert_eq!(futures_executor(own.ready()).unwrap_err().kind(), ErrorKind::Forked);
                // What the original waits for never comes to the copy.
                also_running.as_ref().unwrap().abort();
                assert_eq!(also_running.as_ref().unwrap().worker_pid(), None);
                assert_eq!(
                    also_running.take().unwrap().blocking_join().unwrap_err().kind(),
                    TaskErrorKind::Forked
                );
                let mut third = third.take().unwrap();
                assert_eq!(third.try_join().unwrap().unwrap_err().kind(), TaskErrorKind::Forked);
                let mut results = results.take().unwrap();
                // As after the end of a pool: told once, though three items are left.
                let error = futures_executor(results.next()).unwrap().unwrap_err();
                assert_eq!(error.kind(), TaskErrorKind::Forked);
                assert!(futures_executor(results.next()).is_none());
                drop(results);
                futures_executor(own.shutdown());
                drop(own);
            }));
            // SAFETY: ends the copy.
            unsafe { libc::_exit(if checked.is_ok() { 7 } else { 1 }) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 7));
        }
    }
    // The original has lost nothing.
    let pool = pool.unwrap();
    std::fs::write(gate, "").unwrap();
    assert!(joined(running).is_ok());
    assert!(joined(also_running.unwrap()).is_ok());
    assert!(joined(third.unwrap()).is_ok());
    current_thread().block_on(async {
        let mut results = results.unwrap();
        while let Some(result) = soon(results.next()).await {
            result.unwrap();
        }
    });
    for n in 0..20u32 {
        assert_eq!(joined(pool.spawn(|n: u32| n + 1, n)).unwrap(), n + 1);
    }
    drop(pool);
    wait_until("no child is left", || children(pid()).is_empty());
}
