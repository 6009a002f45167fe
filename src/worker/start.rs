//! How a fresh start of the program becomes a worker: the crate's constructor.
//!
//! It stands in `.init_array`, so the C library calls it before `main`. In any other process it
//! looks at one variable and returns. In a worker it never returns: the program's `main` does not
//! run.

#![expect(unsafe_code, reason = "a constructor, and the constructors behind it")]

use super::{detach, parent, serve};
use crate::process::{is_secure, sys};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use std::ffi::{OsStr, c_char, c_int};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The variable that makes a fresh start a worker. Its value is the version of the crate whose
/// worker it is to be, for a program may hold several.
pub(crate) const MARKER: &str = "PROCPOOL_WORKER";

/// What follows the version where the fresh start is to detach itself, as a daemon of the system
/// does.
pub(crate) const DETACH: &str = " detach";

/// What a process that cannot be a worker exits with; as a shell does when a command cannot be run.
const EXIT_REFUSED: c_int = 126;

/// How many pools this process is inside of: 0 in the application, 1 in its workers.
static DEPTH: AtomicU32 = AtomicU32::new(0);

pub(crate) fn depth() -> u32 {
    DEPTH.load(Ordering::Relaxed)
}

pub(super) fn set_depth(depth: u32) {
    DEPTH.store(depth, Ordering::Relaxed);
}

/// This process has left its parent.
static DETACHED: AtomicBool = AtomicBool::new(false);

pub(super) fn is_detached() -> bool {
    DETACHED.load(Ordering::Relaxed)
}

pub(super) fn set_detached() {
    DETACHED.store(true, Ordering::Relaxed);
}

/// Refers to the constructor, so that it is linked into every program that can make a pool.
pub(crate) fn linked() -> bool {
    // Volatile: else the comparison is known, and the static not needed.
    // SAFETY: it is a static, initialised and never written.
    let constructor = unsafe { std::ptr::read_volatile(&raw const CONSTRUCTOR) };
    constructor as usize != 0
}

/// As the C library calls what stands in `.init_array`: glibc with the arguments of `main`, others
/// with nothing, and then nothing is made of them.
type Constructor = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

// SAFETY: `.init_array` holds pointers to functions of this very signature, and the constructor is
// sound to call at that time: in an ordinary process it reads a variable of the environment, which
// nobody changes yet; for a worker see there.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: Constructor = constructor;

extern "C" fn constructor(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    // A program with raised privileges takes no orders from its environment: whoever starts it is
    // its parent, and could have its tasks run with those privileges, past all that its `main`
    // checks.
    if is_secure() {
        return;
    }
    let marker = std::env::var_os(MARKER);
    let is_detached = match marker
        .as_deref()
        .and_then(OsStr::to_str)
        .and_then(|text| text.strip_prefix(env!("CARGO_PKG_VERSION")))
    {
        Some("") => false,
        Some(DETACH) => true,
        _ => return,
    };
    drop(marker);
    // No panic may leave: there is nothing above us to catch it.
    let ended = std::panic::catch_unwind(|| {
        let socket = become_worker()?;
        if is_detached {
            // Before the constructors behind ours, which may start threads: a fork would leave
            // those behind.
            detach::detach(&socket)?;
        }
        run_later_constructors(argc, argv, envp);
        serve::serve(socket, is_detached)
    });
    match ended {
        Ok(Ok(code)) => std::process::exit(code),
        Ok(Err(why)) => {
            eprintln!("procpool: this process was started as a worker and cannot be one: {why}");
            // SAFETY: ends the process; nothing that an exit handler could want has happened yet.
            unsafe { libc::_exit(EXIT_REFUSED) }
        }
        Err(_) => std::process::abort(),
    }
}

/// Takes the socket from standard input, and puts the process into the state in which a Rust
/// program's `main` would begin.
fn become_worker() -> Result<OwnedFd, String> {
    // SAFETY: the constructors that ran before have, as a rule, started no thread; one that has and
    // that reads the environment at this moment would be at fault in any program that sets a
    // variable.
    unsafe { std::env::remove_var(MARKER) };
    // SAFETY: only looked at; if it is closed, the calls say so.
    let stdin = unsafe { BorrowedFd::borrow_raw(0) };
    // An Internet socket has no credentials of a peer, and would pass for that of a parent without
    // a number.
    nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(0)
        .map_err(|e| format!("its standard input is no socket of a pool ({e})"))?;
    let peer =
        sys::peer_pid(stdin).map_err(|e| format!("its standard input is no socket ({e})"))?;
    let parent = nix::unistd::getppid();
    // A parent outside our PID namespace has no number here, and is 0 in both places.
    if peer.unwrap_or(0) != parent.as_raw() as u32 {
        return Err(format!(
            "the socket at its standard input was not made by its parent, process {parent}"
        ));
    }
    parent::remember(parent.as_raw().unsigned_abs());
    let failed = |what: &'static str| move |e: nix::errno::Errno| format!("{what}: {e}");
    let socket = nix::fcntl::fcntl(stdin, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))
        .map_err(failed("moving the socket"))?;
    // SAFETY: fcntl has just made it, for nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    for fd in 0..=2 {
        // SAFETY: only looked at.
        let standard = unsafe { BorrowedFd::borrow_raw(fd) };
        // As std does before `main`: a file that is opened later must not become a standard stream.
        if fd == 0 || nix::fcntl::fcntl(standard, nix::fcntl::FcntlArg::F_GETFD).is_err() {
            let null = std::fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map_err(|e| format!("opening /dev/null: {e}"))?;
            // It may have got the very number that it is to have, where it would be closed with the
            // file.
            let raised = nix::fcntl::fcntl(&null, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))
                .map_err(failed("moving /dev/null"))?;
            // SAFETY: fcntl has just made it, for nobody else.
            let raised = unsafe { OwnedFd::from_raw_fd(raised) };
            drop(null);
            let replaced = match fd {
                0 => nix::unistd::dup2_stdin(raised),
                1 => nix::unistd::dup2_stdout(raised),
                _ => nix::unistd::dup2_stderr(raised),
            };
            replaced.map_err(failed("replacing a standard stream"))?;
        }
    }
    // The thread that started us blocks every signal, and who starts the application may ignore
    // some: a worker's own children are to be waited for, and its own pipes to be errors, as in
    // any program.
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(failed("setting the signal mask"))?;
    for (signal, handler) in
        [(Signal::SIGPIPE, SigHandler::SigIgn), (Signal::SIGCHLD, SigHandler::SigDfl)]
    {
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler is installed, only dispositions.
        unsafe { nix::sys::signal::sigaction(signal, &action) }
            .map_err(failed("setting a signal's action"))?;
    }
    Ok(socket)
}

/// Runs the constructors that the C library would have called after ours: those of C++ statics in
/// libraries linked into the program, say. (Those of shared libraries have run.)
fn run_later_constructors(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    let (start, end) = init_array();
    if start.is_null() || end.is_null() {
        return; // not the main program's array
    }
    let len = (end as usize - start as usize) / size_of::<usize>();
    // SAFETY: the linker puts both symbols around an array of pointers, which is relocated by now.
    let array = unsafe { std::slice::from_raw_parts(start, len) };
    let own = constructor as *const () as usize;
    for pointer in array
        .iter()
        .skip_while(|pointer| **pointer != own)
        .skip(1)
        .filter(|p| ![0, usize::MAX].contains(*p))
    {
        // SAFETY: an element of the array is such a function, and it is its turn.
        let later = unsafe { std::mem::transmute::<usize, Constructor>(*pointer) };
        later(argc, argv, envp);
    }
}

/// The bounds of the program's array; null where the linker does not define them (in a shared
/// object), which is why they are weak and read through the global offset table.
fn init_array() -> (*const usize, *const usize) {
    let (start, end): (*const usize, *const usize);
    // SAFETY: reads two addresses.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            ".weak __init_array_start",
            ".weak __init_array_end",
            "mov {start}, qword ptr [rip + __init_array_start@GOTPCREL]",
            "mov {end}, qword ptr [rip + __init_array_end@GOTPCREL]",
            start = out(reg) start, end = out(reg) end,
            options(nostack, preserves_flags, readonly, pure),
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            ".weak __init_array_start",
            ".weak __init_array_end",
            "adrp {start}, :got:__init_array_start",
            "ldr {start}, [{start}, :got_lo12:__init_array_start]",
            "adrp {end}, :got:__init_array_end",
            "ldr {end}, [{end}, :got_lo12:__init_array_end]",
            start = out(reg) start, end = out(reg) end,
            options(nostack, preserves_flags, readonly, pure),
        );
    }
    (start, end)
}
