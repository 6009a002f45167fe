//! What the system refuses: memory, files, system calls. Something is told to whom it concerns, and
//! it passes.
//!
//! (A full table of descriptors, and too many processes: `start.rs`. A full disk:
//! `pool/output.rs`.)

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "a filter of system calls")]

use crate::support;
use crate::support::{
    children, descriptors, hang, in_own_process, in_own_process_with_a_full_dev_shm, lines, note,
    own_dir, own_process, pid, soon, until, wait_for, wait_until,
};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use procpool::{Error, ErrorKind, Pool, Process};
use std::error::Error as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::tempdir;

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

/// The number of the system's error behind one of ours.
fn errno(error: &Error) -> Option<i32> {
    error.source()?.downcast_ref::<std::io::Error>()?.raw_os_error()
}

// ---- memory and files

/// What is scarce, for workers that are to be started while another serves; then it is there again.
async fn for_a_while(resource: Resource, limit: u64) {
    let dir = own_dir().unwrap();
    let (log, gate) = (dir.join("log"), dir.join("gate"));
    let pool = pool(3);
    let running = pool.spawn(wait_for, (log.clone(), gate.clone()));
    until("it runs", || lines(&log).len() == 1).await;
    let before = descriptors(pid()).len();
    let (soft, most) = getrlimit(resource).unwrap();
    setrlimit(resource, limit, most).unwrap();
    let failed = soon(pool.ready()).await;
    setrlimit(resource, soft, most).unwrap();
    let error = failed.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Spawn, "{error:?}");
    assert!(error.source().is_some());
    assert!(!running.is_finished());
    while soon(pool.ready()).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(children(pid()).len(), 3);
    std::fs::write(gate, "").unwrap();
    soon(running).await.unwrap();
    soon(pool.shutdown()).await;
    assert_eq!(children(pid()), [0; 0]);
    until("no descriptor is left", || descriptors(pid()).len() <= before).await;
}

#[test]
fn memory_that_runs_out_fails_the_start_that_needs_it_and_the_pool_recovers() {
    in_own_process("own_process_without_memory");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_without_memory() {
    if own_dir().is_none() {
        return;
    }
    soon(pool(1).spawn(pid, ())).await.unwrap(); // the supervisor has its memory
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        })
        .unwrap();
    for_a_while(Resource::RLIMIT_AS, size << 10).await;
}

#[test]
fn files_that_may_not_grow_fail_the_start_that_needs_one_and_the_pool_recovers() {
    in_own_process("own_process_whose_files_may_not_grow");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_whose_files_may_not_grow() {
    if own_dir().is_none() {
        return;
    }
    for_a_while(Resource::RLIMIT_FSIZE, 1000).await;
}

/// What we share with workers is a memfd, which no mounted file system counts.
#[test]
#[ignore = "needs root"]
fn needs_root_a_full_dev_shm_is_no_matter() {
    in_own_process_with_a_full_dev_shm("own_process_with_a_full_dev_shm");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_with_a_full_dev_shm() {
    if own_dir().is_none() {
        return;
    }
    let error = std::fs::write("/dev/shm/more", "more").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    let pool = pool(2);
    soon(pool.ready()).await.unwrap();
    assert_eq!(
        soon(pool.spawn(|bytes: Vec<u8>| bytes, vec![7u8; 1 << 20])).await.unwrap().len(),
        1 << 20
    );
}

// ---- a program that is being written

#[test]
fn a_program_that_has_just_been_copied_starts_workers_while_others_fork() {
    let rounds = std::env::var("PROCPOOL_TEST_ROUNDS").map_or(8, |rounds| rounds.parse().unwrap());
    let (test, dir) = ("own_process_of_a_fresh_copy", tempdir().unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // Between fork and exec each of them holds whatever is open for writing here.
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert!(Command::new("/bin/true").status().unwrap().success());
                }
            });
        }
        for round in 0..rounds {
            let program = dir.path().join(format!("copy {round}"));
            std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
            let output = loop {
                // The copy's own start is the test's business.
                match own_process(&program, test, dir.path()).output() {
                    Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => {
                        std::thread::yield_now()
                    }
                    result => break result,
                }
            };
            done.fetch_or(round + 1 == rounds, Ordering::Relaxed);
            let output = output.unwrap();
            let stdout = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && stdout.contains("1 passed"),
                "{round}: {stdout}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
            std::fs::remove_file(program).unwrap();
        }
    });
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_of_a_fresh_copy() {
    if own_dir().is_none() {
        return;
    }
    let pool = pool(2);
    soon(pool.ready()).await.unwrap();
    assert_ne!(soon(pool.spawn(pid, ())).await.unwrap(), pid());
    soon(pool.shutdown()).await;
}

// ---- system calls that are refused

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_ANY: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn step(code: u16, jt: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf: 0, k }
}

/// From now on these system calls fail in this thread, in those that it starts, and in processes.
fn refuse(calls: &[libc::c_long], errno: i32) {
    // The number of the call stands first (seccomp(2)).
    let mut steps = vec![step(LOAD, 0, 0)];
    for (n, call) in calls.iter().enumerate() {
        steps.push(step(JUMP_IF_EQUAL, (calls.len() - n) as u8, u32::try_from(*call).unwrap()));
    }
    steps.push(step(RETURN, 0, libc::SECCOMP_RET_ALLOW));
    steps.push(step(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno as u32));
    filter(steps);
}

/// Has the kernel run this program before each system call.
fn filter(mut steps: Vec<libc::sock_filter>) {
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which is of the length that it says.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
            0
        );
    }
}

#[cfg(feature = "sync")]
#[test]
fn processes_start_whether_memory_has_to_be_marked_as_not_executable_or_must_not_be() {
    in_own_process("own_process_that_must_mark_its_memory");
    in_own_process("own_process_that_cannot_mark_its_memory");
}

/// As Linux 6.3 to 6.5 do with `vm.memfd_noexec=2`.
#[cfg(feature = "sync")]
#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_must_mark_its_memory() {
    processes_start_with_a_filter(|marked| {
        let refused = libc::SECCOMP_RET_ERRNO | libc::EACCES as u32;
        if marked { libc::SECCOMP_RET_ALLOW } else { refused }
    })
    .await;
}

/// As Linux before 6.3 does.
#[cfg(feature = "sync")]
#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_cannot_mark_its_memory() {
    processes_start_with_a_filter(|marked| {
        let refused = libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32;
        if marked { refused } else { libc::SECCOMP_RET_ALLOW }
    })
    .await;
}

#[cfg(feature = "sync")]
async fn processes_start_with_a_filter(answer: fn(bool) -> u32) {
    if own_dir().is_none() {
        return;
    }
    filter(vec![
        step(LOAD, 0, 0),
        libc::sock_filter {
            code: JUMP_IF_EQUAL,
            jt: 0,
            jf: 3,
            k: u32::try_from(libc::SYS_memfd_create).unwrap(),
        },
        // The low half of the second argument (seccomp(2)): the flags.
        step(LOAD, 0, 24),
        step(JUMP_IF_ANY, 2, libc::MFD_NOEXEC_SEAL),
        step(RETURN, 0, answer(false)),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, answer(true)),
    ]);
    let pool = pool(1);
    assert_ne!(soon(pool.spawn(pid, ())).await.unwrap(), pid());
    assert_ne!(soon(Process::spawn(pid, ()).unwrap()).await.unwrap(), pid());
    let value = pool.manager().value(1).unwrap();
    soon(pool.spawn(|value: procpool::sync::Value<i32>| value.store(2).unwrap(), &value))
        .await
        .unwrap();
    assert_eq!(value.load().unwrap(), 2);
    soon(pool.shutdown()).await;
}

#[test]
fn without_pidfds_no_pool_is_built() {
    in_own_process("own_process_without_pidfds");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_without_pidfds() {
    if own_dir().is_none() {
        return;
    }
    refuse(&[libc::SYS_pidfd_open], libc::ENOSYS);
    for error in [Pool::new().unwrap_err(), Process::spawn(pid, ()).unwrap_err()] {
        assert_eq!(
            (error.kind(), errno(&error)),
            (ErrorKind::Spawn, Some(libc::ENOSYS)),
            "{error:?}"
        );
        assert!(error.to_string().contains("pidfd"), "{error}");
    }
    assert_eq!(children(pid()), [0; 0]);
}

#[test]
fn a_kill_that_is_refused_is_told_and_the_pool_ends_its_workers_all_the_same() {
    in_own_process("own_process_that_may_signal_nobody");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_that_may_signal_nobody() {
    let Some(dir) = own_dir() else { return };
    let (log, gate) = (dir.join("log"), dir.join("gate"));
    refuse(&[libc::SYS_pidfd_send_signal, libc::SYS_kill], libc::EPERM);

    let child = Process::spawn(wait_for, (log.clone(), gate.clone())).unwrap();
    until("it runs", || lines(&log).len() == 1).await;
    for error in [child.terminate().unwrap_err(), child.kill().unwrap_err()] {
        assert_eq!(
            (error.kind(), errno(&error)),
            (ErrorKind::Signal, Some(libc::EPERM)),
            "{error:?}"
        );
    }
    assert!(child.is_alive());
    std::fs::write(gate, "").unwrap();
    soon(child).await.unwrap();

    let pool = pool(2);
    let log = dir.join("of the pool");
    let hanging = pool.spawn(hang, log.clone());
    until("it runs", || lines(&log).len() == 1).await;
    hanging.abort();
    assert!(soon(hanging).await.unwrap_err().is_cancelled());
    until("its process is gone", || seen_or_gone(&log)).await;

    let log = dir.join("of one that is shut down");
    let ending = self::pool(2);
    let cut = ending.spawn(hang, log.clone());
    until("it runs", || lines(&log).len() == 1).await;
    soon(ending.spawn(pid, ())).await.unwrap(); // another one, which is idle
    assert_eq!(soon(ending.shutdown_within(Duration::from_millis(10))).await.begun(), [cut.id()]);
    assert!(soon(cut).await.unwrap_err().is_pool_closed());
    assert!(seen_or_gone(&log));

    let hanging = pool.spawn(hang, dir.join("again"));
    until("it runs", || dir.join("again").exists()).await;
    soon(pool.spawn(pid, ())).await.unwrap();
    drop(pool);
    assert!(soon(hanging).await.unwrap_err().is_pool_closed());
    until("no process is left", || children(pid()).is_empty()).await;

    let last = Pool::builder().workers(1).build().unwrap();
    let hanging = last.spawn(hang, dir.join("last"));
    until("it runs", || dir.join("last").exists()).await;
    let cut_off = soon(last.shutdown_within(Duration::from_millis(10))).await;
    assert_eq!(cut_off.begun(), [hanging.id()]);
    assert!(soon(hanging).await.unwrap_err().is_pool_closed());
    assert_eq!(children(pid()), [0; 0]);
}

/// The one process in the log is gone.
fn seen_or_gone(log: &std::path::Path) -> bool {
    support::pids(log).iter().all(|pid| support::Proc::of(*pid).is_none())
}

// ---- a worker under a debugger

/// Traces a process, and takes no notice of its end until the gate opens.
fn trace(tracee: u32, log: PathBuf, gate: PathBuf) -> Result<(), String> {
    // SAFETY: a plain call; it attaches to a process that goes on.
    let attached = unsafe { libc::ptrace(libc::PTRACE_SEIZE, tracee, 0, 0) };
    if attached != 0 {
        return Err(std::io::Error::last_os_error().to_string());
    }
    note(&log, pid());
    wait_until("the gate opens", || gate.exists());
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(tracee.cast_signed()), None)
        .map(|_| ())
        .map_err(|e| e.to_string())
}

#[test]
fn a_process_that_its_tracer_keeps_from_being_reaped_is_waited_for_without_turning() {
    in_own_process("own_process_with_traced_ones");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_with_traced_ones() {
    let Some(dir) = own_dir() else { return };
    let (log, tracing, gate) = (dir.join("log"), dir.join("tracing"), dir.join("gate"));
    let pool = pool(1);
    let running = pool.spawn(hang, log.clone());
    let process = Process::spawn(hang, log.clone()).unwrap();
    until("both run", || lines(&log).len() == 2).await;
    let both = support::pids(&log);
    let tracers: Vec<_> = both
        .iter()
        .map(|one| Process::spawn(trace, (*one, tracing.clone(), gate.clone())).unwrap())
        .collect();
    until("both are traced", || {
        lines(&tracing).len() == 2 || tracers.iter().any(|tracer| !tracer.is_alive())
    })
    .await;
    if lines(&tracing).len() < 2 {
        eprintln!("no process may trace another here");
        return;
    }
    both.iter().for_each(|one| support::signal(*one, nix::sys::signal::Signal::SIGKILL));
    until("both are zombies", || both.iter().all(|one| support::state(*one) == Some('Z'))).await;
    let used = || {
        Duration::from(
            nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap(),
        )
    };
    let before = used();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let turned = used() - before;
    // Who turns without an end uses all that he is given.
    assert!(turned < Duration::from_millis(200), "{turned:?} of processor time for nothing");
    assert!(!running.is_finished());
    std::fs::write(gate, "").unwrap();
    for tracer in tracers {
        soon(tracer).await.unwrap().unwrap();
    }
    let error = soon(running).await.unwrap_err();
    assert!(error.is_worker_died(), "{error:?}");
    assert!(!soon(process.wait()).await.unwrap().success());
    soon(pool.spawn(pid, ())).await.unwrap();
    soon(pool.shutdown()).await;
    until("all are reaped", || children(pid()).is_empty()).await;
}
