//! What a task finds in its worker, what it does not, and what it leaves to the next: the claims of
//! `docs/gotchas.md` that no other file shows.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "tests that change the process around the pool")]

#[path = "common/processes.rs"]
mod processes;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use processes::{descriptors, die, in_own_process, note, own_dir, pid, soon, until};
use procpool::{Output, Pool};
use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

fn pool_of(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

// ---- statics

static SET_UP: OnceLock<String> = OnceLock::new();

fn set_up() -> Result<(), String> {
    SET_UP.set("by init".to_owned())
}

#[tokio::test]
async fn statics_of_the_application_are_not_those_of_a_worker_and_init_is_their_place() {
    SET_UP.get_or_init(|| "by the application".to_owned());
    let what = || SET_UP.get().cloned();
    assert_eq!(soon(pool_of(1).spawn(what, ())).await.unwrap(), None);
    let prepared = Pool::builder().workers(1).init(set_up, ()).build().unwrap();
    assert_eq!(soon(prepared.spawn(what, ())).await.unwrap().as_deref(), Some("by init"));
}

#[tokio::test]
async fn what_a_task_changes_in_its_process_stays_for_the_next_one_there_and_ends_with_it() {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    thread_local!(static OWN: Cell<u32> = const { Cell::new(0) });
    type Found = (u32, u32, PathBuf, Option<String>, bool);
    fn change() -> Found {
        let (count, own) = (COUNT.fetch_add(1, Ordering::Relaxed), OWN.replace(OWN.get() + 1));
        let (dir, variable) =
            (std::env::current_dir().unwrap(), std::env::var("PROCPOOL_TEST_LEFT").ok());
        std::env::set_current_dir("/").unwrap();
        // SAFETY: the worker has no other thread that looks at the environment; the signal is
        // ignored from now on.
        let handler = unsafe {
            std::env::set_var("PROCPOOL_TEST_LEFT", "set");
            libc::signal(libc::SIGUSR1, libc::SIG_IGN)
        };
        (count, own, dir, variable, handler == libc::SIG_IGN)
    }
    let pool = pool_of(1);
    let here = std::env::current_dir().unwrap();
    let fresh = (0, 0, here.clone(), None, false);
    assert_eq!(soon(pool.spawn(change, ())).await.unwrap(), fresh);
    assert_eq!(
        soon(pool.spawn(change, ())).await.unwrap(),
        (1, 1, "/".into(), Some("set".into()), true)
    );
    assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
    assert_eq!(soon(pool.spawn(change, ())).await.unwrap(), fresh);
    assert_eq!(
        (std::env::current_dir().unwrap(), std::env::var("PROCPOOL_TEST_LEFT").ok()),
        (here, None)
    );
}

// ---- what goes on

#[tokio::test]
async fn a_panic_on_a_thread_that_a_task_has_left_is_that_threads_own() {
    static LEFT: Mutex<Option<std::thread::JoinHandle<()>>> = Mutex::new(None);
    let leave = || {
        *LEFT.lock().unwrap() = Some(std::thread::spawn(|| panic!("nobody else's")));
        pid()
    };
    let join = || (LEFT.lock().unwrap().take().unwrap().join().is_err(), pid());
    let pool = Pool::builder().workers(1).stderr(Output::null()).build().unwrap();
    let worker = soon(pool.spawn(leave, ())).await.unwrap();
    assert_eq!(soon(pool.spawn(join, ())).await.unwrap(), (true, worker));
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap(), worker);
}

#[tokio::test]
async fn what_an_async_task_has_spawned_goes_on_beside_later_ones_and_ends_with_the_worker() {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    async fn leave() {
        tokio::spawn(async {
            loop {
                COUNT.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    async fn goes_on() -> u32 {
        let before = COUNT.load(Ordering::Relaxed);
        until("it has counted on", || COUNT.load(Ordering::Relaxed) > before + 3).await;
        COUNT.load(Ordering::Relaxed)
    }
    let pool = pool_of(1);
    soon(pool.spawn(leave, ())).await.unwrap();
    assert!(soon(pool.spawn(goes_on, ())).await.unwrap() > 3);
    assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
    assert_eq!(soon(pool.spawn(async || COUNT.load(Ordering::Relaxed), ())).await.unwrap(), 0);
}

#[test]
fn who_inherits_orphans_keeps_what_tasks_had_started_as_zombies() {
    in_own_process("own_process_that_inherits_orphans");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_inherits_orphans() {
    fn hang_with_a_child(log: PathBuf) {
        note(&log, processes::start_sleeping());
        processes::hang(log);
    }
    let Some(dir) = own_dir() else { return };
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let (pool, log) = (pool_of(1), dir.join("log"));
    let task = pool.spawn(hang_with_a_child, &log);
    until("both run", || processes::lines(&log).len() == 2).await;
    let [orphan, worker] = processes::pids(&log)[..] else { panic!("two processes") };
    task.abort();
    assert!(soon(task).await.unwrap_err().is_cancelled());
    until("it is a zombie of ours", || {
        processes::state(orphan) == Some('Z') && processes::children(pid()).contains(&orphan)
    })
    .await;
    soon(pool.spawn(pid, ())).await.unwrap();
    soon(pool.shutdown()).await;
    assert_eq!(
        processes::children(pid()),
        [orphan],
        "the worker {worker} is reaped, and what is not ours is left to the application"
    );
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(orphan.cast_signed()), None).unwrap();
}

// ---- standard input

#[tokio::test]
async fn standard_input_is_at_its_end() {
    let read = || {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(soon(pool_of(1).spawn(read, ())).await.unwrap(), b"");
}

// ---- the end

/// Says when it is dropped.
struct Kept(PathBuf);

impl Drop for Kept {
    fn drop(&mut self) {
        note(&self.0, "dropped");
    }
}

#[tokio::test]
async fn what_init_has_made_is_not_dropped_at_a_workers_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let pool = Pool::builder()
        .workers(1)
        .init(|log: PathBuf| Ok::<_, String>(Kept(log)), &log)
        .build()
        .unwrap();
    let is_there = || procpool::state::<Kept>().is_some();
    assert!(soon(pool.spawn(is_there, ())).await.unwrap());
    soon(pool.shutdown()).await;
    assert!(!log.exists());
}

// ---- limits

#[tokio::test]
async fn memory_that_is_refused_aborts_the_worker_and_costs_the_task() {
    fn limit_memory() -> Result<(), String> {
        setrlimit(Resource::RLIMIT_AS, 2 << 30, 2 << 30).map_err(|e| e.to_string())
    }
    let allocate = |bytes: usize| vec![1u8; bytes].len();
    let pool = Pool::builder().workers(1).init(limit_memory, ()).build().unwrap();
    assert_eq!(soon(pool.spawn(allocate, 1 << 20)).await.unwrap(), 1 << 20);
    let error = soon(pool.spawn(allocate, 3 << 30)).await.unwrap_err();
    assert_eq!(error.exit_status().unwrap().signal(), Some(libc::SIGABRT), "{error:?}");
    assert_eq!(soon(pool.spawn(allocate, 1 << 20)).await.unwrap(), 1 << 20);
}

#[tokio::test]
async fn a_worker_may_offer_itself_to_the_kernel_that_is_out_of_memory() {
    let offer = || std::fs::write("/proc/self/oom_score_adj", "500").map_err(|e| e.to_string());
    let pool = Pool::builder().workers(1).init(offer, ()).build().unwrap();
    let score = || std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(soon(pool.spawn(score, ())).await.unwrap(), "500\n");
    assert_ne!(score(), "500\n");
}

// ---- what is inherited

#[test]
fn what_workers_inherit_is_what_is_there_when_each_is_started() {
    in_own_process("own_process_inheritance");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_inheritance() {
    let Some(dir) = own_dir() else { return };
    let find = || {
        let open: Vec<_> = descriptors(pid())
            .into_iter()
            .filter_map(|(_, what)| what.rsplit('/').next().map(str::to_owned))
            .collect();
        let has = |name: &str| open.iter().any(|what| what == name);
        (std::env::var("PROCPOOL_TEST_LATER").ok(), has("kept"), has("marked"))
    };
    let pool = pool_of(1);
    assert_eq!(soon(pool.spawn(find, ())).await.unwrap(), (None, false, false));
    // std marks what it opens close-on-exec; a library in C may not.
    let _marked = File::create(dir.join("marked")).unwrap();
    let kept = File::create(dir.join("kept")).unwrap();
    fcntl(&kept, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    // SAFETY: nobody else in this process looks at the environment now.
    unsafe { std::env::set_var("PROCPOOL_TEST_LATER", "set") };
    assert_eq!(
        soon(pool.spawn(find, ())).await.unwrap(),
        (None, false, false),
        "this one was there before"
    );
    assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
    assert_eq!(soon(pool.spawn(find, ())).await.unwrap(), (Some("set".into()), true, false));
}

// ---- what a pool takes

#[test]
fn a_worker_takes_few_descriptors_of_the_application() {
    in_own_process("own_process_count");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_count() {
    if own_dir().is_none() {
        return;
    }
    let count = || descriptors(pid()).len();
    let first = pool_of(1);
    soon(first.ready()).await.unwrap();
    let before = count();
    let second = pool_of(20);
    soon(second.ready()).await.unwrap();
    let taken = count() - before;
    assert!(taken <= 20 * 5, "{taken}"); // four each, at present, and the pool's own
}
