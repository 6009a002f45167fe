//! What a worker may use of the machine, and how a task is told that it wanted more.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "a test that becomes another user")]

use crate::support::{
    die, in_own_process, in_own_process_of_nobody, own_dir, own_process, passes, pid, soon,
};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use procpool::{Builder, ErrorKind, Limits, Pool, Process, TaskError};
use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::tempdir;

const GIB: u64 = 1 << 30;

/// Without backtraces: std's printing of one, before it aborts for want of memory, hides what it
/// aborts for.
fn builder() -> Builder {
    Pool::builder().workers(1).env("RUST_BACKTRACE", "0")
}

fn pool(limits: Limits) -> Pool {
    builder().limits(limits).build().unwrap()
}

/// The task's worker ended by this signal.
fn ended_by<R: std::fmt::Debug>(result: Result<R, TaskError>, signal: Signal) -> TaskError {
    let error = result.unwrap_err();
    assert!(error.is_worker_died(), "{error:?}");
    assert_eq!(error.exit_status().unwrap().signal(), Some(signal as i32), "{error:?}");
    error
}

/// So many seconds of processor time has this process used.
fn cpu_seconds() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    Duration::from(time).as_secs_f64()
}

fn burn(seconds: f64) -> f64 {
    let start = cpu_seconds();
    while cpu_seconds() < start + seconds {
        std::hint::spin_loop();
    }
    cpu_seconds()
}

// ---- memory

fn take(bytes: usize) -> usize {
    std::hint::black_box(vec![1u8; bytes]).len()
}

async fn take_async(bytes: usize) -> usize {
    take(bytes)
}

fn take_in_a_thread(bytes: usize) -> usize {
    std::thread::spawn(move || take(bytes)).join().unwrap()
}

#[tokio::test]
async fn a_task_that_wants_more_memory_than_it_may_have_is_told_so_and_no_other_is_harmed() {
    let pool = pool(Limits::new().memory(2 * GIB));
    let want = 3 * GIB as usize;
    for error in [
        soon(pool.spawn(take, want)).await.unwrap_err(),
        soon(pool.spawn(take_async, want)).await.unwrap_err(),
        soon(pool.spawn(take_in_a_thread, want)).await.unwrap_err(),
    ] {
        assert!(
            error.is_worker_died() && error.is_out_of_memory() && !error.is_stack_overflow(),
            "{error:?}"
        );
        assert_eq!(error.exit_status().unwrap().signal(), Some(Signal::SIGABRT as i32));
        assert!(error.to_string().contains("out of memory"), "{error}");
        assert_eq!(soon(pool.spawn(take, 1000)).await.unwrap(), 1000);
    }
    let process = Process::builder()
        .env("RUST_BACKTRACE", "0")
        .limits(Limits::new().memory(2 * GIB))
        .spawn(take, want)
        .unwrap();
    assert!(soon(process).await.unwrap_err().is_out_of_memory());
}

#[tokio::test]
async fn a_request_that_no_machine_can_grant_is_want_of_memory_without_any_limit() {
    let pool = builder().build().unwrap();
    let error =
        soon(pool.spawn(
            || std::hint::black_box(Vec::<u8>::with_capacity(isize::MAX as usize)).len(),
            (),
        ))
        .await
        .unwrap_err();
    assert!(error.is_out_of_memory(), "{error:?}");
}

#[tokio::test]
async fn a_task_may_ask_for_memory_and_be_refused() {
    let pool = pool(Limits::new().memory(2 * GIB));
    let refused = |bytes: usize| Vec::<u8>::new().try_reserve(bytes).is_err();
    assert!(soon(pool.spawn(refused, 3 * GIB as usize)).await.unwrap());
    assert!(!soon(pool.spawn(refused, 1 << 20)).await.unwrap());
}

#[tokio::test]
async fn an_abort_for_another_reason_is_no_want_of_memory() {
    let pool = pool(Limits::new().memory(2 * GIB));
    let abort = || -> u32 { std::process::abort() };
    // What an earlier task was refused is not this one's cause.
    soon(pool.spawn(|| assert!(Vec::<u8>::new().try_reserve(3 << 30).is_err()), ())).await.unwrap();
    for error in [
        ended_by(soon(pool.spawn(abort, ())).await, Signal::SIGABRT),
        ended_by(
            soon(pool.spawn(async || -> u32 { std::process::abort() }, ())).await,
            Signal::SIGABRT,
        ),
        ended_by(soon(pool.spawn(die, Signal::SIGABRT as i32)).await, Signal::SIGABRT),
        ended_by(soon(pool.spawn(die, Signal::SIGKILL as i32)).await, Signal::SIGKILL),
    ] {
        assert!(!error.is_out_of_memory(), "{error:?}");
    }
}

#[tokio::test]
async fn an_abort_after_a_refused_request_that_was_done_without_is_no_want_of_memory() {
    fn refused() {
        let error = Vec::<u8>::new().try_reserve(isize::MAX as usize);
        assert!(std::hint::black_box(error).is_err());
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOMEM));
    }
    fn refused_then_abort() -> u32 {
        refused();
        std::process::abort()
    }
    fn refused_then_raise() -> u32 {
        refused();
        die(Signal::SIGABRT as i32);
        0
    }
    fn refused_then_abort_in_a_thread() -> u32 {
        std::thread::spawn(refused_then_abort).join().unwrap()
    }
    let pool = builder().build().unwrap();
    for error in [
        ended_by(soon(pool.spawn(refused_then_abort, ())).await, Signal::SIGABRT),
        ended_by(soon(pool.spawn(async || refused_then_abort(), ())).await, Signal::SIGABRT),
        ended_by(soon(pool.spawn(refused_then_raise, ())).await, Signal::SIGABRT),
        ended_by(soon(pool.spawn(refused_then_abort_in_a_thread, ())).await, Signal::SIGABRT),
    ] {
        assert!(!error.is_out_of_memory(), "{error:?}");
    }
}

#[tokio::test]
async fn init_is_limited_as_well() {
    fn greedy(bytes: usize) -> Result<usize, String> {
        Ok(take(bytes))
    }
    let pool = Pool::builder()
        .workers(1)
        .limits(Limits::new().memory(2 * GIB))
        .on_worker_start(greedy, 3 * GIB as usize)
        .build()
        .unwrap();
    let error = soon(pool.spawn(pid, ())).await.unwrap_err();
    assert!(error.is_start_failed(), "{error:?}");
    assert_eq!(error.exit_status().unwrap().signal(), Some(Signal::SIGABRT as i32));
}

/// In a cgroup of its own, with less memory than a task wants: the kernel kills the worker, and not
/// the application.
#[test]
#[ignore = "needs a memory cgroup"]
fn needs_memory_cgroup_a_worker_that_the_kernel_kills_for_want_of_memory_is_told_so() {
    let (test, dir) = ("own_process_in_a_small_cgroup", tempdir().unwrap());
    let own = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    let Some(group) = Group::with_memory(200 << 20) else { return };
    let mut command = group.command();
    command
        .arg(own.get_program())
        .args(own.get_args())
        .envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    passes(test, command);
}

/// A cgroup (v1 or v2) for one test.
struct Group(PathBuf);

impl Group {
    /// `None`, and a note, where this machine gives none.
    fn with_memory(bytes: u64) -> Option<Self> {
        let name = format!("procpool-test-{}", pid());
        let (path, limit, swap) = match PathBuf::from("/sys/fs/cgroup/memory") {
            v1 if v1.is_dir() => (v1.join(name), "memory.limit_in_bytes", "memory.swappiness"),
            _ => (PathBuf::from("/sys/fs/cgroup").join(name), "memory.max", "memory.swap.max"),
        };
        let made = std::fs::create_dir(&path).map(|()| Self(path)).and_then(|group| {
            std::fs::write(group.0.join(limit), bytes.to_string())?;
            let _ = std::fs::write(group.0.join(swap), "0"); // where there is swapping
            Ok(group)
        });
        let usable = made.map(|group| {
            (group.command().arg("true").stderr(Stdio::null()).status().unwrap().success(), group)
        });
        match usable {
            Ok((true, group)) => return Some(group),
            Ok((false, _)) => eprintln!("skipped: no process may enter a memory cgroup here"),
            Err(error) => eprintln!("skipped: this machine gives no memory cgroup ({error})"),
        }
        None
    }

    /// A command that runs its arguments as a command in the group.
    fn command(&self) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$CGROUP\"/cgroup.procs && exec \"$0\" \"$@\""])
            .env("CGROUP", &self.0);
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_in_a_small_cgroup() {
    if own_dir().is_none() {
        return;
    }
    // The application itself is larger than its workers, and yet it lives.
    let own = std::hint::black_box(vec![1u8; 80 << 20]);
    let pool = builder().workers(2).build().unwrap();
    for _ in 0..3 {
        let error = ended_by(soon(pool.spawn(take, 400 << 20)).await, Signal::SIGKILL);
        assert!(error.is_out_of_memory(), "{error:?}");
        let error = ended_by(soon(pool.spawn(die, Signal::SIGKILL as i32)).await, Signal::SIGKILL);
        assert!(!error.is_out_of_memory(), "{error:?}");
        assert_eq!(soon(pool.spawn(take, 1000)).await.unwrap(), 1000);
    }
    assert_eq!(own.len(), 80 << 20);
}

// ---- processor time

#[tokio::test]
async fn a_task_that_uses_too_much_processor_time_ends_and_only_that_one() {
    let pool = pool(Limits::new().task_cpu_time(Duration::from_millis(100)));
    for _ in 0..2 {
        // Each for itself: together they use more.
        for _ in 0..10 {
            soon(pool.spawn(burn, 0.02)).await.unwrap();
        }
        // Waiting costs nothing.
        soon(pool.spawn(|| std::thread::sleep(Duration::from_millis(300)), ())).await.unwrap();
        let error = ended_by(soon(pool.spawn(burn, 1000.0)).await, Signal::SIGXCPU);
        assert!(error.is_cpu_limit() && !error.is_out_of_memory(), "{error:?}");
    }
    // Async ones have no such limit.
    soon(pool.spawn(async |seconds: f64| burn(seconds), 0.3)).await.unwrap();
}

#[tokio::test]
async fn the_one_function_of_a_process_is_limited_too_sync_or_async() {
    let limits = Limits::new().task_cpu_time(Duration::from_millis(50));
    let child = Process::builder().limits(limits.clone()).spawn(burn, 1000.0).unwrap();
    assert!(ended_by(soon(child).await, Signal::SIGXCPU).is_cpu_limit());
    let child = Process::builder()
        .limits(limits)
        .spawn(async |seconds: f64| burn(seconds), 1000.0)
        .unwrap();
    assert!(ended_by(soon(child).await, Signal::SIGXCPU).is_cpu_limit());
}

#[tokio::test]
async fn a_worker_has_processor_time_for_its_whole_life() {
    let pool = pool(Limits::new().cpu_time(Duration::from_secs(1)));
    let mut used = 0.0;
    let error = loop {
        match soon(pool.spawn(burn, 0.1)).await {
            Ok(seconds) => used = seconds,
            Err(error) => break error,
        }
    };
    assert!(error.is_cpu_limit(), "{error:?}");
    assert!((0.5..1.5).contains(&used), "{used}");
    assert!(soon(pool.spawn(burn, 0.1)).await.unwrap() < 1.0, "a new one has its own");
}

#[tokio::test]
async fn one_that_ignores_the_signal_is_killed_a_second_later() {
    fn stubborn() -> f64 {
        // SAFETY: ignores a signal.
        unsafe { libc::signal(libc::SIGXCPU, libc::SIG_IGN) };
        burn(1000.0)
    }
    let pool = pool(Limits::new().cpu_time(Duration::from_secs(1)));
    ended_by(soon(pool.spawn(stubborn, ())).await, Signal::SIGKILL);
}

// ---- files, descriptors, processes

#[tokio::test]
async fn a_file_that_grows_too_long_is_an_error_in_the_task() {
    fn write(path: PathBuf, bytes: usize) -> Option<i32> {
        let result = File::create(path).unwrap().write_all(&vec![0; bytes]);
        assert!(
            result.as_ref().err().is_none_or(|e| e.kind() == IoErrorKind::FileTooLarge),
            "{result:?}"
        );
        result.err()?.raw_os_error()
    }
    let dir = tempdir().unwrap();
    let path = dir.path().join("file");
    let pool = pool(Limits::new().file_size(1000));
    let before = soon(pool.spawn(pid, ())).await.unwrap();
    assert_eq!(soon(pool.spawn(write, (path.clone(), 1001))).await.unwrap(), Some(libc::EFBIG));
    assert_eq!(soon(pool.spawn(write, (path.clone(), 1000))).await.unwrap(), None);
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap(), before, "it lives");
    // Large results come through: what they travel by is no file.
    assert_eq!(soon(pool.spawn(|| vec![7u8; 1 << 20], ())).await.unwrap().len(), 1 << 20);
}

#[tokio::test]
async fn descriptors_are_limited_and_the_least_that_is_allowed_is_enough_for_a_worker() {
    fn open_all() -> (usize, Option<i32>) {
        let mut files = Vec::new();
        loop {
            match File::open("/dev/null") {
                Ok(file) => files.push(file),
                Err(error) => return (files.len(), error.raw_os_error()),
            }
        }
    }
    let pool = pool(Limits::new().open_files(32));
    let (opened, error) = soon(pool.spawn(async || open_all(), ())).await.unwrap();
    assert!((1..32).contains(&opened) && error == Some(libc::EMFILE), "{opened} {error:?}");
    let (opened, error) = soon(pool.spawn(open_all, ())).await.unwrap();
    assert!((1..32).contains(&opened) && error == Some(libc::EMFILE), "{opened} {error:?}");
}

#[test]
fn processes_are_limited() {
    in_own_process_of_nobody("own_process_whose_workers_may_start_nothing");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_whose_workers_may_start_nothing() {
    if own_dir().is_none() {
        return;
    }
    let pool = pool(Limits::new().processes(0));
    let start = || Command::new("/bin/true").status().err().and_then(|e| e.raw_os_error());
    assert_eq!(soon(pool.spawn(start, ())).await.unwrap(), Some(libc::EAGAIN));
    let thread = || std::thread::Builder::new().spawn(|| ()).err().and_then(|e| e.raw_os_error());
    assert_eq!(soon(pool.spawn(thread, ())).await.unwrap(), Some(libc::EAGAIN));
    soon(pool.spawn(async || (), ())).await.unwrap();
    // The application itself is not limited.
    assert!(Command::new("/bin/true").status().unwrap().success());
}

// ---- what is set, and what is not

/// The limits of this process, as the kernel has them.
fn own_limits() -> String {
    std::fs::read_to_string("/proc/self/limits").unwrap()
}

fn own_oom_score() -> i32 {
    std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn what_is_not_asked_for_stays_as_the_application_has_it() {
    assert_eq!(
        soon(Pool::builder().workers(1).build().unwrap().spawn(own_limits, ())).await.unwrap(),
        own_limits()
    );
    assert_eq!(soon(pool(Limits::new()).spawn(own_limits, ())).await.unwrap(), own_limits());
}

#[test]
fn workers_write_no_core_dumps_though_the_application_may() {
    in_own_process("own_process_that_may_dump_core");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_may_dump_core() {
    if own_dir().is_none() {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    if most == 0 {
        eprintln!("skipped: nobody may write a core dump here");
        return;
    }
    setrlimit(Resource::RLIMIT_CORE, most, most).unwrap();
    let ours = own_limits();
    let limits = || Limits::new().core_size(0);
    let child = Process::builder().limits(limits()).spawn(own_limits, ()).unwrap();
    for theirs in
        [soon(child).await.unwrap(), soon(pool(limits()).spawn(own_limits, ())).await.unwrap()]
    {
        assert_eq!(theirs.lines().count(), ours.lines().count());
        let changed: Vec<Vec<_>> = theirs
            .lines()
            .zip(ours.lines())
            .filter(|(theirs, ours)| theirs != ours)
            .map(|(theirs, _)| theirs.split_whitespace().collect())
            .collect();
        assert_eq!(changed, [["Max", "core", "file", "size", "0", "0", "bytes"]]);
    }
    assert_eq!(own_limits(), ours);
    // Those that are started when the application may write none may write none.
    setrlimit(Resource::RLIMIT_CORE, 0, most).unwrap();
    assert_eq!(
        soon(pool(Limits::new()).spawn(|| getrlimit(Resource::RLIMIT_CORE).unwrap().0, ()))
            .await
            .unwrap(),
        0
    );
}

#[tokio::test]
async fn more_than_the_application_may_have_is_as_much_as_it_may_have() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let limits = || getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert_eq!(
        soon(pool(Limits::new().open_files(u64::MAX)).spawn(limits, ())).await.unwrap(),
        (most, most)
    );
}

#[tokio::test]
async fn workers_go_before_the_application_when_memory_runs_out() {
    let own = own_oom_score();
    assert_eq!(
        soon(Pool::builder().workers(1).build().unwrap().spawn(own_oom_score, ())).await.unwrap(),
        (own + 300).min(1000)
    );
    assert_eq!(
        soon(pool(Limits::new().oom_score(1000)).spawn(own_oom_score, ())).await.unwrap(),
        1000
    );
    assert_eq!(soon(pool(Limits::new().oom_score(0)).spawn(own_oom_score, ())).await.unwrap(), own);
    assert_eq!(soon(Process::spawn(own_oom_score, ()).unwrap()).await.unwrap(), own);
}

#[tokio::test]
async fn limits_that_make_no_sense_are_refused() {
    let limits = Limits::new().open_files(3);
    assert_eq!(
        Pool::builder().limits(limits.clone()).build().unwrap_err().kind(),
        ErrorKind::InvalidOption
    );
    assert_eq!(
        Process::builder().limits(limits).spawn(pid, ()).unwrap_err().kind(),
        ErrorKind::InvalidOption
    );
}
