//! Workers that do not end when they are killed.
//!
//! A process that hangs in the kernel cannot be made at will. But one that is traced with `PTRACE_O_TRACEEXIT` stops on its way
//! out, SIGKILL or not, until its tracer lets it go (ptrace(2)): to the pool that is the same.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "ptrace")]

use super::Pool;
use super::core::Policy;
use super::stats::WorkerEnd;
use nix::libc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Only a hang takes this long.
const FUSE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_millis(50);

/// Keeps a process from ending until it is dropped. The tracer is a thread, and only that one may let it go.
struct Hold {
    let_go: mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hold {
    fn of(pid: u32) -> Self {
        let (let_go, gone) = mpsc::channel();
        let (held, is_held) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let pid = libc::pid_t::try_from(pid).unwrap();
            let none = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: it traces a child of ours; no memory of ours is named.
            let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, libc::PTRACE_O_TRACEEXIT) };
            held.send((seized, std::io::Error::last_os_error())).unwrap();
            let _ = gone.recv();
            // SAFETY: as above; only a stopped one can be let go, and it stops as soon as it is killed.
            while unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, none, none) } == -1
                && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
                && std::path::Path::new("/proc").join(pid.to_string()).exists()
            {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let (seized, error) = is_held.recv().unwrap();
        assert_eq!(seized, 0, "{error}");
        Self { let_go, thread: Some(thread) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = self.let_go.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn pool() -> Pool {
    let mut builder = Pool::builder().workers(1);
    builder.policy = Policy { kill_limit: LIMIT, ..builder.policy };
    builder.build().unwrap()
}

async fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(start.elapsed() < FUSE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn exists(pid: u32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}

#[tokio::test]
async fn its_task_is_told_its_place_is_filled_and_it_is_reaped_when_it_ends() {
    let pool = pool();
    let pid = pool.spawn(std::process::id, ()).await.unwrap();
    let hold = Hold::of(pid);
    let task = pool.spawn(|| std::thread::sleep(FUSE * 100), ());
    until("it is sent", || task.worker_pid() == Some(pid)).await;
    let waits = pool.spawn(std::process::id, ());
    until("it runs", || pool.stats().busy == 1).await;
    // It may not have begun yet, and then is taken back: so it is given a moment, which only makes the test see more.
    tokio::time::sleep(Duration::from_millis(20)).await;
    task.abort();
    let error = tokio::time::timeout(FUSE, task).await.unwrap().unwrap_err();
    assert!(error.is_unkillable() && error.pid() == Some(pid), "{error}");
    let other = tokio::time::timeout(FUSE, waits).await.unwrap().unwrap();
    assert_ne!(other, pid);
    let stats = pool.stats();
    assert_eq!((stats.leaving, stats.ended()), (1, 0), "it is not forgotten: {stats:?}");
    drop(hold);
    until("it is reaped", || !exists(pid)).await;
    until("it is counted", || pool.stats().ended_by(WorkerEnd::TaskStopped) == 1).await;
    assert_eq!(pool.stats().leaving, 0);
}
