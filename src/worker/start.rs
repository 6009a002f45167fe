//! The crate's constructor: how a fresh start of the program becomes a worker.
//!
//! The constructor stands in `.init_array`, so the C library calls it before `main`. In a worker it
//! never returns: the program's `main` does not run. In any other process it reads one environment
//! variable, looks at the children that the process has from the program that ran in it before an
//! exec, and returns.

#![expect(unsafe_code, reason = "a constructor, and the constructors behind it")]

use super::serve::{self, Origin};
use super::{detach, parent, raw};
use crate::process::{inherited, is_set_uid, sys};
use crate::task;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
#[cfg(target_env = "gnu")]
use std::ffi::c_char;
use std::ffi::{OsStr, c_int};
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

/// Refers to the constructor, so that it is linked into every program that can make a pool. `false`
/// where there is none.
pub(crate) fn linked() -> bool {
    #[cfg(not(miri))]
    {
        // Volatile: else the comparison is known, and the static not needed.
        // SAFETY: it is a static, initialised and never written.
        let constructor = unsafe { std::ptr::read_volatile(&raw const CONSTRUCTOR) };
        constructor as usize != 0
    }
    #[cfg(miri)]
    {
        let _: Constructor = constructor;
        false
    }
}

/// What the C library calls of `.init_array`. glibc passes the arguments of `main`; the standard
/// (the System V ABI) says nothing of arguments, and other libraries pass none.
#[cfg(target_env = "gnu")]
type Constructor = extern "C" fn(c_int, *const *const c_char, *const *const c_char);
#[cfg(not(target_env = "gnu"))]
type Constructor = extern "C" fn();

// Not under Miri: it has no processes, and would run the constructor, inline assembly included, in
// the tests of every crate that depends on this one.
// SAFETY: `.init_array` holds pointers to functions of this very signature, and the constructor is
// sound to call at that time: in an ordinary process it reads a variable of the environment, which
// nobody changes yet; for a worker see there.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: Constructor = constructor;

#[cfg(target_env = "gnu")]
extern "C" fn constructor(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    start(|later| later(argc, argv, envp));
}

#[cfg(not(target_env = "gnu"))]
extern "C" fn constructor() {
    start(|later| later());
}

/// Makes this process a worker if it was started to be one, and then does not return. `call` calls
/// another constructor as the C library calls ours.
fn start(call: impl Fn(Constructor) + std::panic::UnwindSafe) {
    let marker = std::env::var_os(MARKER);
    let is_detached = match marker
        .as_deref()
        .and_then(OsStr::to_str)
        .and_then(|text| text.strip_prefix(env!("CARGO_PKG_VERSION")))
    {
        Some("") => false,
        Some(DETACH) => true,
        // In a shared object there is no pool, so no program has left workers of ours; and it may
        // be a plugin of a program that has children.
        _ => return inherited::reap(|| task::in_main_executable().is_ok()),
    };
    drop(marker);
    // From here on `main` must not run: it would do again what it has done in the application.
    // No panic may leave: there is nothing above us to catch it.
    let ended = std::panic::catch_unwind(|| {
        if is_set_uid() {
            return Err(RAISED.into());
        }
        let socket = become_worker()?;
        if is_detached {
            // Before the constructors behind ours, which may start threads: a fork would leave
            // those behind.
            detach::detach(&socket)?;
        }
        run_later_constructors(call);
        serve::serve(socket, if is_detached { Origin::Detached } else { Origin::Started })
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

/// Why a process that the kernel has marked is no worker. Any user may start such a program, and
/// could, as its parent, have its tasks run with its privileges, past all that its `main` checks.
const RAISED: &str = "it has raised privileges (AT_SECURE: its effective user or group is not the \
                      real one, its file is set-uid or set-gid or has capabilities, or a security \
                      module has changed its domain)";

/// Checks that this process has no other rights than the one that made its socket.
///
/// The kernel does not mark a process that got its rights before the exec: one that a helper has
/// started as another user with the environment kept (`sudo -E`).
fn check_rights(peer: sys::Peer) -> Result<(), String> {
    let sys::Ids { user, effective_user, group, effective_group } = sys::ids();
    if [user, effective_user] != [peer.user; 2] {
        return Err(format!(
            "the socket at its standard input is of another user ({}, and this process has {user} \
             and, effectively, {effective_user})",
            peer.user
        ));
    }
    if [group, effective_group] != [peer.group; 2] {
        return Err(format!(
            "the socket at its standard input is of another group ({}, and this process has \
             {group} and, effectively, {effective_group})",
            peer.group
        ));
    }
    Ok(())
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
    let peer = sys::peer(stdin).map_err(|e| format!("its standard input is no socket ({e})"))?;
    let parent = nix::unistd::getppid();
    // A parent outside our PID namespace has no number here, and is 0 in both places.
    if peer.pid.unwrap_or(0) != parent.as_raw() as u32 {
        return Err(format!(
            "the socket at its standard input was not made by its parent, process {parent}"
        ));
    }
    check_rights(peer)?;
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
    // Before they are unblocked: one that came since the start is pending. A process of its own takes
    // them back as soon as it knows that it is one.
    raw::leave_signals_to_the_application()
        .map_err(|e| format!("setting a signal's action: {e}"))?;
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
fn run_later_constructors(call: impl Fn(Constructor)) {
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
        call(later);
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
