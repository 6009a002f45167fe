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
use processes::{descriptors, die, in_own_process, note, own_dir, pid, soon};
use procpool::Pool;
use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

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
    fn change() -> (u32, u32, PathBuf) {
        let before = (COUNT.fetch_add(1, Ordering::Relaxed), OWN.replace(OWN.get() + 1), std::env::current_dir().unwrap());
        std::env::set_current_dir("/").unwrap();
        before
    }
    let pool = pool_of(1);
    let here = std::env::current_dir().unwrap();
    assert_eq!(soon(pool.spawn(change, ())).await.unwrap(), (0, 0, here.clone()));
    assert_eq!(soon(pool.spawn(change, ())).await.unwrap(), (1, 1, "/".into()));
    assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
    assert_eq!(soon(pool.spawn(change, ())).await.unwrap(), (0, 0, here.clone()));
    assert_eq!(std::env::current_dir().unwrap(), here);
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
    let pool = Pool::builder().workers(1).init(|log: PathBuf| Ok::<_, String>(Kept(log)), &log).build().unwrap();
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
        let open: Vec<_> = descriptors(pid()).into_iter().filter_map(|(_, what)| what.rsplit('/').next().map(str::to_owned)).collect();
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
    assert_eq!(soon(pool.spawn(find, ())).await.unwrap(), (None, false, false), "this one was there before");
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
