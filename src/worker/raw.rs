//! The system calls of a worker's start that nix does not wrap.

#![expect(unsafe_code, reason = "fcntl, prctl and signal handlers that nix does not wrap")]

use crate::process::WorkerMemory;
use nix::libc;
use std::alloc::Layout;
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

/// linux/fcntl.h: the signal of `O_ASYNC` (fcntl(2)). In libc for some targets only.
const F_SETSIG: c_int = 10;

fn check(result: c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// From now on, whatever happens at `fd` kills this process, or its whole group.
pub(super) fn kill_when_ready(fd: impl AsFd, group: bool) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: plain calls.
    let pid = unsafe { libc::getpid() };
    let owner = if group { -pid } else { pid };
    // SAFETY: fcntl with integers.
    unsafe {
        check(libc::fcntl(fd, F_SETSIG, libc::SIGKILL))?;
        check(libc::fcntl(fd, libc::F_SETOWN, owner))?;
        let flags = libc::fcntl(fd, libc::F_GETFL);
        check(flags)?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC))
    }
}

/// The signal that the kernel sends when the thread that started us ends (prctl(2)).
pub(super) fn set_parent_death_signal(signal: c_int) -> io::Result<()> {
    // SAFETY: prctl with integers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) })
}

/// From now on, this signal kills our process group, or this process alone.
pub(super) fn kill_on(signal: c_int, group: bool) -> io::Result<()> {
    extern "C" fn kill_group(_: c_int) {
        // SAFETY: kill(2) is async-signal-safe; 0 is our own group.
        unsafe { libc::kill(0, libc::SIGKILL) };
    }
    extern "C" fn kill_process(_: c_int) {
        // SAFETY: both calls are async-signal-safe.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    let handler: extern "C" fn(c_int) = if group { kill_group } else { kill_process };
    // SAFETY: the handler is async-signal-safe, and the rest of the struct valid as zeros.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        check(libc::sigaction(signal, &raw const action, ptr::null_mut()))
    }
}

/// Ends this process without running anything more of it.
pub(super) fn exit_now() -> ! {
    // SAFETY: always sound; skips exit handlers, which belong to another process.
    unsafe { libc::_exit(0) }
}

/// Waits until there is something to read.
pub(super) fn wait_readable(fd: impl AsFd) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout};
    match nix::poll::poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Names the process as `ps` and `/proc/PID/comm` show it; the kernel keeps 15 bytes.
pub(super) fn set_comm(name: &str) {
    let mut bytes = [0u8; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    // SAFETY: a C string of at most 16 bytes, which the kernel copies. It cannot fail.
    unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
}

static MEMORY: AtomicPtr<WorkerMemory> = AtomicPtr::new(ptr::null_mut());
/// The lowest address that the main thread's stack may grow to.
static STACK_END: AtomicUsize = AtomicUsize::new(0);
/// How far below the end of the stack an access may be that still means it overflowed: the gap that
/// the kernel keeps free below a stack (`stack_guard_gap`, 256 pages; Documentation/admin-guide).
const GAP: usize = 1 << 20;
/// For the frames of a handler with the widest vector registers, and some more.
const ALTERNATE_STACK: usize = 64 << 10;
/// The alternate stack: the kernel's pointer alone would make it a leak, to those who look for
/// leaks.
static ALTERNATE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
const FAULTS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];
/// What the faults did before: a sanitizer's or a crash reporter's handler, or the default.
static BEFORE: [AtomicPtr<libc::sigaction>; FAULTS.len()] =
    [const { AtomicPtr::new(ptr::null_mut()) }; FAULTS.len()];

/// Notes a stack overflow of the calling thread in `memory`, and lets it do what it did before.
///
/// The kernel itself puts the default action back when it calls the handler (`SA_RESETHAND`): in a
/// worker that has forbidden itself sigaction(2) (seccomp), the handler could not do so, and would
/// be called for the same access for ever.
pub(super) fn note_stack_overflow(memory: &'static WorkerMemory) -> io::Result<()> {
    STACK_END.store(own_stack_end()?, Ordering::Relaxed);
    MEMORY.store(ptr::from_ref(memory).cast_mut(), Ordering::Release);
    let alternate = Box::leak(vec![0; ALTERNATE_STACK].into_boxed_slice()).as_mut_ptr();
    ALTERNATE.store(alternate, Ordering::Relaxed);
    // SAFETY: the alternate stack lives for ever and belongs to this thread alone; the handler is
    // async-signal-safe; the rest of the structs is valid as zeros.
    unsafe {
        let stack =
            libc::stack_t { ss_sp: alternate.cast(), ss_flags: 0, ss_size: ALTERNATE_STACK };
        check(libc::sigaltstack(&raw const stack, ptr::null_mut()))?;
        for (signal, before) in FAULTS.into_iter().zip(&BEFORE) {
            let mut action: libc::sigaction = std::mem::zeroed();
            check(libc::sigaction(signal, ptr::null(), &raw mut action))?;
            before.store(Box::leak(Box::new(action)), Ordering::Release);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
            check(libc::sigaction(signal, &raw const action, ptr::null_mut()))?;
        }
    }
    Ok(())
}

/// What an abort did before.
static BEFORE_ABORT: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// Notes in `memory` when the process aborts for want of memory, and lets it do what it did before.
///
/// What std does when memory cannot be had is an abort like any other. It is known by its way: the
/// abort comes from within [`handle_alloc_error`](std::alloc::handle_alloc_error).
pub(super) fn note_out_of_memory(memory: &'static WorkerMemory) -> io::Result<()> {
    MEMORY.store(ptr::from_ref(memory).cast_mut(), Ordering::Release);
    // The first walk has the dynamic linker look up the unwinder's functions. That is not for a
    // handler, and takes more of its stack than a walk does (4.7 KB and 1.6 KB on x86-64).
    is_within_handle_alloc_error();
    // SAFETY: the handler is async-signal-safe, and the struct valid as zeros.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        check(libc::sigaction(libc::SIGABRT, ptr::null(), &raw mut before))?;
        BEFORE_ABORT.store(Box::leak(Box::new(before)), Ordering::Release);
        // The default is put back by the kernel, as for the faults.
        let flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
        set_action(libc::SIGABRT, on_abort as *const () as usize, flags)
    }
}

extern "C" fn on_abort(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // Before anything else can change it. It is no proof: it may be the error of a request that was
    // refused earlier, and done without. But it spares every other abort the walk, which reads a
    // stack that may be corrupt.
    let may_be = io::Error::last_os_error().raw_os_error() == Some(libc::ENOMEM);
    // SAFETY: the kernel gives a valid info; reading it, atomics, getpid(2), sigaction(2) and
    // raise(3) are async-signal-safe; for the walk see there. The memory is never unmapped, and an
    // action that was stored never changes.
    unsafe {
        // An abort comes from a thread to itself (tgkill(2)).
        let is_own = (*info).si_code == libc::SI_TKILL && (*info).si_pid() == libc::getpid();
        if may_be
            && is_own
            && is_within_handle_alloc_error()
            && let Some(memory) = MEMORY.load(Ordering::Acquire).as_ref()
        {
            memory.note().write_out_of_memory();
        }
        // Then it kills, as a rule, as soon as this returns.
        if let Some(before) = BEFORE_ABORT.load(Ordering::Acquire).as_ref() {
            libc::sigaction(signal, before, ptr::null_mut());
        }
        libc::raise(signal);
    }
}

/// The unwinder's interface (Itanium C++ ABI: Exception Handling, 1.3 and 1.6), as libgcc and
/// LLVM's libunwind have it; std is linked with one of them. Both values are of `_Unwind_Reason_Code`.
const URC_NO_REASON: c_int = 0;
const URC_NORMAL_STOP: c_int = 4;
unsafe extern "C" {
    fn _Unwind_Backtrace(
        step: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    /// Where the function of a frame begins.
    fn _Unwind_GetRegionStart(context: *mut c_void) -> usize;
}

/// How many frames are looked at. From `handle_alloc_error` to the abort, and from that to here,
/// there are about twelve (std 1.88 to 1.95).
const FRAMES_MAX: u32 = 32;

/// Whether the calling thread is at present within `handle_alloc_error`.
///
/// # Soundness
///
/// It is called in a signal handler. The walk allocates nothing. It reads the tables of the loaded
/// objects, without a lock (glibc from 2.35 on) or under one that a thread may take again
/// (dl_iterate_phdr(3)). The signal is an abort's, so it came at a call of this thread, and not in
/// the middle of what the lock guards. The tables describe the frames of std and of the C library up
/// to the function that is looked for, and there the walk ends. If the stack is corrupt, the walk
/// may fault: then the process, which is about to die, ends by SIGSEGV.
fn is_within_handle_alloc_error() -> bool {
    struct Walk {
        frames: u32,
        is_found: bool,
    }
    extern "C" fn step(context: *mut c_void, walk: *mut c_void) -> c_int {
        // SAFETY: the context is that of the walk, and `walk` what was given to it below.
        let (start, walk) = unsafe { (_Unwind_GetRegionStart(context), &mut *walk.cast::<Walk>()) };
        let wanted = std::alloc::handle_alloc_error as fn(Layout) -> ! as *const ();
        walk.frames += 1;
        walk.is_found = start == wanted.addr();
        let is_over = walk.is_found || walk.frames == FRAMES_MAX;
        if is_over { URC_NORMAL_STOP } else { URC_NO_REASON }
    }
    let mut walk = Walk { frames: 0, is_found: false };
    // SAFETY: `step` is such a function, keeps nothing, and does not unwind.
    unsafe { _Unwind_Backtrace(step, (&raw mut walk).cast()) };
    walk.is_found
}

/// The signals that mean the application: a service manager, a terminal or an operator sends them
/// to all processes of it, and the application decides what its workers still do.
const FOR_THE_APPLICATION: [c_int; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

/// Which of these came while [`note_signal`] was their action; the signal's number is the bit's.
static CAME: AtomicU32 = AtomicU32::new(0);

/// Does nothing but note the signal. A handler, not `SIG_IGN`: a program that this process starts
/// inherits what is ignored (signal(7)), and would ignore its own SIGTERM.
extern "C" fn note_signal(signal: c_int) {
    CAME.fetch_or(1 << signal, Ordering::Relaxed);
}

/// Leaves the signals that mean the application to the application. An action other than the
/// default stays: `nohup`, a handler of a library's constructor.
pub(super) fn leave_signals_to_the_application() -> io::Result<()> {
    for signal in FOR_THE_APPLICATION {
        replace_action(signal, libc::SIG_DFL, note_signal as *const () as usize)?;
    }
    Ok(())
}

/// Forgets the signals that came before a fork.
pub(super) fn forget_signals() {
    CAME.store(0, Ordering::Relaxed);
}

/// Writes out what the C library's streams hold.
pub(super) fn flush_c_streams() {
    // SAFETY: a null pointer means all of them (fflush(3)).
    unsafe { libc::fflush(ptr::null_mut()) };
}

/// Makes `old` another number of the open file that `new` is the number of, closed at an exec.
pub(super) fn put_in_place(new: c_int, old: c_int) -> io::Result<()> {
    // SAFETY: dup3 with integers; `old` stays open, as whoever has it expects.
    check(unsafe { libc::dup3(new, old, libc::O_CLOEXEC) })
}

/// Undoes [`leave_signals_to_the_application`]: a signal that came meanwhile has its effect now.
pub(super) fn take_signals_back() -> io::Result<()> {
    for signal in FOR_THE_APPLICATION {
        replace_action(signal, note_signal as *const () as usize, libc::SIG_DFL)?;
        if CAME.load(Ordering::Relaxed) & 1 << signal != 0 {
            // SAFETY: a plain call.
            check(unsafe { libc::raise(signal) })?;
        }
    }
    Ok(())
}

/// Gives the signal the action `new`, if it has the action `old` now. Both are the default or
/// [`note_signal`].
fn replace_action(signal: c_int, old: usize, new: usize) -> io::Result<()> {
    // SAFETY: the handler is async-signal-safe, and the rest of the structs valid as zeros.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        check(libc::sigaction(signal, ptr::null(), &raw mut action))?;
        if action.sa_sigaction != old {
            return Ok(());
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = new;
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        check(libc::sigaction(signal, &raw const action, ptr::null_mut()))
    }
}

/// From now on, this signal does what it does by default.
pub(super) fn reset_signal(signal: c_int) -> io::Result<()> {
    // SAFETY: no handler.
    unsafe { set_action(signal, libc::SIG_DFL, 0) }
}

/// From now on, this signal does nothing.
pub(super) fn ignore_signal(signal: c_int) -> io::Result<()> {
    // SAFETY: no handler.
    unsafe { set_action(signal, libc::SIG_IGN, 0) }
}

/// # Safety
///
/// `action` is `SIG_DFL`, `SIG_IGN` or a handler that is async-signal-safe, of one argument or, with
/// `SA_SIGINFO` among the flags, of three.
unsafe fn set_action(signal: c_int, action: usize, flags: c_int) -> io::Result<()> {
    // SAFETY: as the caller says; the rest of the struct is valid as zeros.
    unsafe {
        let mut new: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = action;
        new.sa_flags = libc::SA_ONSTACK | flags;
        check(libc::sigaction(signal, &raw const new, ptr::null_mut()))
    }
}

/// The lowest address that the calling thread's stack may grow to.
fn own_stack_end() -> io::Result<usize> {
    // SAFETY: the attributes are initialised by pthread_getattr_np before they are read, and
    // destroyed.
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        match libc::pthread_getattr_np(libc::pthread_self(), &raw mut attributes) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        let (mut address, mut len) = (ptr::null_mut(), 0);
        let result =
            libc::pthread_attr_getstack(&raw const attributes, &raw mut address, &raw mut len);
        libc::pthread_attr_destroy(&raw mut attributes);
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        Ok(address as usize)
    }
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives a valid info; reading it, atomics, sigaction(2) and
    // raise(3) are async-signal-safe. The memory is never unmapped, and an action that was
    // stored never changes.
    unsafe {
        let address = (*info).si_addr() as usize;
        let is_fault = (*info).si_code > 0; // else somebody sent it (sigaction(2))
        let end = STACK_END.load(Ordering::Relaxed);
        if is_fault
            && (end.saturating_sub(GAP)..end + 4096).contains(&address)
            && let Some(memory) = MEMORY.load(Ordering::Acquire).as_ref()
        {
            memory.note().write_stack_overflow();
        }
        // Then it kills, as a rule: the access is tried again, with the action that was there
        // before.
        if let Some(at) = FAULTS.iter().position(|fault| *fault == signal)
            && let Some(before) = BEFORE[at].load(Ordering::Acquire).as_ref()
        {
            libc::sigaction(signal, before, ptr::null_mut());
        }
        if !is_fault {
            libc::raise(signal);
        }
    }
}
