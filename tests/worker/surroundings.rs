//! What a task finds in its worker, what it does not, and what it leaves to the next: the claims of
//! `docs/gotchas.md` that no other file shows.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "tests that change the process around the pool")]

use crate::support;
use crate::support::{
    children, descriptors, die, in_own_process, lines, note, own_dir, pid, soon, until, wait_for,
};
use futures::FutureExt;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, kill};
use nix::unistd::Pid;
use procpool::{Pool, Stdio, TaskErrorKind};
use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
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
    let prepared = Pool::builder().workers(1).on_worker_start(set_up, ()).build().unwrap();
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
    let pool = Pool::builder().workers(1).stderr(Stdio::null()).build().unwrap();
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
        note(&log, support::start_sleeping());
        support::hang(log);
    }
    let Some(dir) = own_dir() else { return };
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let (pool, log) = (pool_of(1), dir.join("log"));
    let task = pool.spawn(hang_with_a_child, &log);
    until("both run", || lines(&log).len() == 2).await;
    let [orphan, worker] = support::pids(&log)[..] else { panic!("two processes") };
    task.abort();
    assert!(soon(task).await.unwrap_err().is_cancelled());
    until("it is a zombie of ours", || {
        support::state(orphan) == Some('Z') && children(pid()).contains(&orphan)
    })
    .await;
    soon(pool.spawn(pid, ())).await.unwrap();
    soon(pool.shutdown()).await;
    assert_eq!(
        children(pid()),
        [orphan],
        "the worker {worker} is reaped, and what is not ours is left to the application"
    );
    nix::sys::wait::waitpid(Pid::from_raw(orphan.cast_signed()), None).unwrap();
}

// ---- signals that mean the application

#[test]
fn signals_to_all_processes_of_an_application_end_no_task_while_it_drains() {
    in_own_process("own_process_under_signals");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs in a process of its own"]
async fn own_process_under_signals() {
    let Some(dir) = own_dir() else { return };
    let (log, gate) = (dir.join("log"), dir.join("gate"));
    let (rounds, is_over) = (&AtomicU32::new(0), &AtomicBool::new(false));
    let signal_all = || {
        while !is_over.load(Ordering::Relaxed) {
            for child in children(pid()) {
                for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
                    // It may have ended by itself.
                    let _ = kill(Pid::from_raw(child.cast_signed()), signal);
                }
            }
            rounds.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let drain = async || {
        // Workers are signalled from their first instant on.
        let pool = pool_of(2);
        soon(pool.ready()).await.unwrap();
        let workers = children(pid());
        let tasks = [(); 6].map(|()| pool.spawn(wait_for, (log.clone(), gate.clone())));
        until("both run", || lines(&log).len() == 2).await;
        let end = pool.shutdown();
        let before = rounds.load(Ordering::Relaxed);
        until("both were signalled", || rounds.load(Ordering::Relaxed) > before + 10).await;
        std::fs::write(&gate, "").unwrap();
        for task in tasks {
            assert!(workers.contains(&soon(task).await.unwrap()));
        }
        assert!(soon(end).await.is_empty());
    };
    std::thread::scope(|scope| {
        scope.spawn(signal_all);
        let drained = std::panic::AssertUnwindSafe(drain());
        tokio::task::block_in_place(|| {
            let ended = tokio::runtime::Handle::current().block_on(drained.catch_unwind());
            is_over.store(true, Ordering::Relaxed);
            ended.unwrap();
        });
    });
}

#[tokio::test]
async fn a_task_may_ask_for_a_signals_default_action_and_its_children_have_it() {
    fn default_action() -> Result<(), String> {
        // SAFETY: no handler is installed.
        unsafe { nix::sys::signal::signal(Signal::SIGTERM, SigHandler::SigDfl) }.unwrap();
        Ok(())
    }
    let terminated_child = || {
        let mut shell = Command::new("sh");
        shell.args(["-c", "kill -TERM $$; exec sleep 1000"]).status().unwrap().signal()
    };
    let pool = pool_of(1);
    assert_eq!(soon(pool.spawn(terminated_child, ())).await.unwrap(), Some(libc::SIGTERM));
    soon(pool.spawn(die, Signal::SIGTERM as i32)).await.unwrap();
    soon(pool.spawn(default_action, ())).await.unwrap().unwrap();
    let error = soon(pool.spawn(die, Signal::SIGTERM as i32)).await.unwrap_err();
    assert_eq!(error.exit_status().unwrap().signal(), Some(libc::SIGTERM), "{error:?}");

    let pool = Pool::builder().workers(1).on_worker_start(default_action, ()).build().unwrap();
    let error = soon(pool.spawn(die, Signal::SIGTERM as i32)).await.unwrap_err();
    assert_eq!(error.exit_status().unwrap().signal(), Some(libc::SIGTERM), "{error:?}");
}

// ---- sandboxes

/// Makes a system call fail with `EPERM` from now on, in all threads to come (seccomp(2)).
fn forbid(call: libc::c_long) -> Result<(), String> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let (load, compare, give) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let mut filter = [
        statement(load, std::mem::offset_of!(libc::seccomp_data, nr) as u32),
        libc::sock_filter { jf: 1, ..statement(compare, call as u32) },
        statement(give, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(give, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter outlive the calls.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().to_string()) }
}

#[tokio::test]
async fn a_worker_that_can_have_no_runtime_says_why_and_serves_sync_tasks() {
    let needed =
        [libc::SYS_socketpair, libc::SYS_epoll_create1, libc::SYS_eventfd2, libc::SYS_epoll_ctl];
    for call in needed {
        let pool = Pool::builder().workers(1).on_worker_start(forbid, call).build().unwrap();
        let worker = soon(pool.spawn(pid, ())).await.unwrap();
        for _ in 0..2 {
            let error = soon(pool.spawn(async || 1, ())).await.unwrap_err();
            assert_eq!(error.kind(), TaskErrorKind::NoRuntime, "{error:?}");
            assert_eq!(error.pid(), Some(worker), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("not permitted") && text.contains("async task"), "{text}");
        }
        assert_eq!(soon(pool.spawn(pid, ())).await.unwrap(), worker);
    }
}

#[tokio::test]
async fn a_worker_that_must_not_change_signal_actions_ends_by_its_faults_all_the_same() {
    #[expect(unconditional_recursion, reason = "it is to overflow the stack")]
    fn overflow(depth: u64) -> u64 {
        let frame = std::hint::black_box([depth; 64]);
        overflow(depth + 1) + frame[0]
    }
    let pool =
        Pool::builder().workers(1).on_worker_start(forbid, libc::SYS_rt_sigaction).build().unwrap();
    let error = soon(pool.spawn(overflow, 0)).await.unwrap_err();
    assert!(error.is_stack_overflow(), "{error:?}");
    assert_eq!(error.exit_status().unwrap().signal(), Some(libc::SIGSEGV), "{error:?}");
    let abort = || -> () { std::process::abort() };
    let error = soon(pool.spawn(abort, ())).await.unwrap_err();
    assert_eq!(error.exit_status().unwrap().signal(), Some(libc::SIGABRT), "{error:?}");
    for signal in [Signal::SIGSEGV, Signal::SIGBUS] {
        let error = soon(pool.spawn(die, signal as i32)).await.unwrap_err();
        assert_eq!(error.exit_status().unwrap().signal(), Some(signal as i32), "{error:?}");
    }
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
        .on_worker_start(|log: PathBuf| Ok::<_, String>(Kept(log)), &log)
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
    let pool = Pool::builder().workers(1).on_worker_start(limit_memory, ()).build().unwrap();
    assert_eq!(soon(pool.spawn(allocate, 1 << 20)).await.unwrap(), 1 << 20);
    let error = soon(pool.spawn(allocate, 3 << 30)).await.unwrap_err();
    assert_eq!(error.exit_status().unwrap().signal(), Some(libc::SIGABRT), "{error:?}");
    assert_eq!(soon(pool.spawn(allocate, 1 << 20)).await.unwrap(), 1 << 20);
}

#[tokio::test]
async fn a_worker_may_offer_itself_to_the_kernel_that_is_out_of_memory() {
    let offer = || std::fs::write("/proc/self/oom_score_adj", "500").map_err(|e| e.to_string());
    let pool = Pool::builder().workers(1).on_worker_start(offer, ()).build().unwrap();
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
