//! What the tests of this folder share.

#![expect(unsafe_code, reason = "tests that fork, that trace, and that filter system calls")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
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

/// From now on, whoever in this process, or in a child of it, executes a program waits until
/// it is let go (seccomp_unotify(2)).
#[derive(Debug)]
pub(crate) struct Barrier(OwnedFd);

impl Barrier {
    pub(crate) fn new() -> Self {
        let statement =
            |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let mut filter = [
            statement(
                libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
                std::mem::offset_of!(libc::seccomp_data, nr) as u32,
            ),
            libc::sock_filter {
                jf: 1,
                ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_execve as u32)
            },
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
            | libc::SECCOMP_FILTER_FLAG_TSYNC
            | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
        // SAFETY: the program and its filter outlive the calls.
        let fd = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just given it to us.
        Self(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Waits for one that waits to execute something, and returns what it is let go by.
    pub(crate) fn next(&self) -> u64 {
        // `_IOWR('!', 0, struct seccomp_notif)`
        let request = 0xc000_2100 | (size_of::<libc::seccomp_notif>() as u64) << 16;
        loop {
            // SAFETY: all zeros are a value, and the one that the kernel wants.
            let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes one notice.
            if unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw mut notice) } == 0 {
                return notice.id;
            }
            // One that has been killed in the meantime is none any more.
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
        }
    }

    pub(crate) fn let_go(&self, id: u64) {
        let answer = libc::seccomp_notif_resp {
            id,
            val: 0,
            error: 0,
            flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        };
        // `_IOWR('!', 1, struct seccomp_notif_resp)`
        let request = 0xc000_2101 | (size_of::<libc::seccomp_notif_resp>() as u64) << 16;
        // SAFETY: the kernel reads one answer.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw const answer) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Barrier {
    /// Else a test that fails would wait for ever for what is held up and has its output open.
    fn drop(&mut self) {
        for pid in children() {
            let _ = super::sys::kill_process(pid, libc::SIGKILL);
        }
    }
}

/// How many threads this process has, beside those that start processes: one is there for good, and
/// a start that takes long on a busy machine may have got it company.
pub(crate) fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc");
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| !name.starts_with("procpool-launch")).count()
}

/// All children of this process that have not been reaped.
pub(crate) fn children() -> Vec<u32> {
    let mut pids = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").expect("/proc") {
        let path = task.expect("a thread").path().join("children");
        // A thread may have ended in the meantime.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        pids.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().expect("a number")));
    }
    pids
}
