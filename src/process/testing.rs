//! What the tests of this folder share.

#![expect(unsafe_code, reason = "tests that fork, and that trace")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// Set in a process that [`in_own_process`] has started.
const OWN_PROCESS: &str = "PROCPOOL_TEST_OWN_PROCESS";

/// A limit that only a hang reaches.
pub(crate) const HANG: Duration = Duration::from_secs(30);

/// Runs one ignored test in a process of its own, and fails when it fails or does not run.
pub(crate) fn in_own_process(test: &str) {
    let program = std::env::current_exe().expect("the test program");
    let output = Command::new(program)
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env(OWN_PROCESS, "1")
        .output()
        .expect("start the test program");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{test}: {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whether this is such a process: a test that changes what concerns the whole process runs nowhere
/// else.
pub(crate) fn is_own_process() -> bool {
    std::env::var_os(OWN_PROCESS).is_some()
}

/// Runs `body` in a forked copy of this process and returns the exit code that it asks for.
pub(crate) fn forked(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the test runs in a process of its own whose other thread only waits for it (so no
    // lock is held that `body` takes), and the copy ends by `_exit`, running nothing of the
    // test harness.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: always safe: ends this process.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).expect("waitpid") {
            WaitStatus::Exited(_, code) => code,
            other => panic!("the copy ended by {other:?}"),
        },
    }
}

/// Waits for a fact.
pub(crate) fn wait_until(what: &str, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(start.elapsed() < HANG, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The state letter of a process as proc_pid_stat(5) gives it: `None` when there is no such
/// process, `Z` a zombie.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    let stat = stat.ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// Whether it is gone, or a zombie that init has yet to reap.
pub(crate) fn has_ended(pid: u32) -> bool {
    matches!(process_state(pid), None | Some('Z' | 'X'))
}

/// How many descriptors this process has open.
pub(crate) fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// Keeps a process from ending until it is dropped. The tracer is a thread, and only that one may
/// let it go.
#[derive(Debug)]
pub(crate) struct Hold {
    let_go: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hold {
    pub(crate) fn of(pid: u32) -> Self {
        let (let_go, gone) = std::sync::mpsc::channel();
        let (held, is_held) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let pid = libc::pid_t::try_from(pid).expect("a process number");
            let none = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: it traces a child of ours; no memory of ours is named.
            let seized =
                unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, libc::PTRACE_O_TRACEEXIT) };
            held.send((seized, std::io::Error::last_os_error())).expect("it is waited for");
            let _ = gone.recv();
            // SAFETY: as above; only a stopped one can be let go: one that was killed has stopped,
            // any other does when it is interrupted.
            while unsafe {
                libc::ptrace(libc::PTRACE_INTERRUPT, pid, none, none);
                libc::ptrace(libc::PTRACE_DETACH, pid, none, none)
            } == -1
                && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
                && Path::new("/proc").join(pid.to_string()).exists()
            {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let (seized, error) = is_held.recv().expect("it says");
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
