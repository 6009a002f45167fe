//! The fork of a template: a copy of this process whose parent is this process's own parent.
//!
//! `fork(3)` makes the copy a child of the caller, which then would be the one to reap it and to
//! know how it ended. With `CLONE_PARENT` (clone(2)) the copy is a child of the application, like a
//! worker that was started afresh: the application has its pidfd, its exit status and its
//! parent-death signal, whatever becomes of the template.
//!
//! The C library has no function for that, so what its `fork` does beside the system call is done
//! here, as far as a process of one thread needs it:
//!
//! * Locks need no care: with one thread, nobody holds one.
//! * The thread's number, which the C library keeps for recursive and robust locks, is written anew
//!   by the kernel (`CLONE_CHILD_SETTID`).
//! * The list of robust locks, which the kernel forgets, is registered anew.
//!
//! What is not done: the handlers of `pthread_atfork(3)` do not run.

#![expect(unsafe_code, reason = "a system call that the C library does not wrap so")]

use std::ffi::c_void;
use std::io;
use std::ptr;

use nix::libc;

/// Which of the two this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that was there before.
    Original,
    /// The new one.
    Copy,
}

/// What the C library has registered with the kernel for the calling thread.
#[derive(Clone, Copy, Debug)]
struct Registered {
    /// The head of the list of robust locks, and its length in bytes.
    robust: *mut c_void,
    robust_len: usize,
    /// Where the thread's number is kept.
    thread_id: *mut libc::pid_t,
}

/// Forks this process, of one thread, so that its parent is the parent of the copy.
///
/// # Safety
///
/// The calling thread is the only one of this process, and no `vfork` is under way.
///
/// # Errors
///
/// Those of clone(2): `EAGAIN` and `ENOMEM` as of fork(2), `EINVAL` if this process is the first of
/// its PID namespace. `Unsupported` if the C library is not glibc.
pub(crate) unsafe fn fork_sibling() -> io::Result<Side> {
    let registered = registered()?;
    let flags = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    let none = ptr::null_mut::<c_void>();
    // The order of the last two arguments is the architecture's (clone(2), NOTES).
    #[cfg(target_arch = "x86_64")]
    // SAFETY: without `CLONE_VM`, the copy has memory and a stack of its own (as of fork(2)), and
    // goes on here; the kernel writes the thread's number where the C library keeps it. With one
    // thread, the copy finds no lock that somebody holds who is not there.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone, flags, none, none, registered.thread_id, none) };
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: as above.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, registered.thread_id) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: what was registered in the original, at the same addresses.
            unsafe {
                libc::syscall(libc::SYS_set_robust_list, registered.robust, registered.robust_len)
            };
            Ok(Side::Copy)
        }
        _ => Ok(Side::Original),
    }
}

/// Whether this process can fork so, as far as the C library goes.
pub(crate) fn check() -> io::Result<()> {
    registered().map(drop)
}

fn registered() -> io::Result<Registered> {
    /// In glibc's `struct pthread` (nptl/descr.h) stand, in this order, the thread's number, an
    /// unused one, a pointer, and the head of the list of robust locks.
    const BEHIND_THREAD_ID: usize = 2 * size_of::<libc::pid_t>() + size_of::<*mut c_void>();
    let (mut robust, mut robust_len) = (ptr::null_mut::<c_void>(), 0usize);
    // SAFETY: the kernel writes a pointer and a length to the two.
    let result = unsafe {
        libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust, &raw mut robust_len)
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    let unsupported = || io::Error::new(io::ErrorKind::Unsupported, "the C library is not glibc");
    if robust.is_null() || !cfg!(target_env = "gnu") {
        return Err(unsupported());
    }
    let thread_id = robust.wrapping_byte_sub(BEHIND_THREAD_ID).cast::<libc::pid_t>();
    // SAFETY: glibc keeps the head within its description of the thread, some 700 bytes behind the
    // beginning, so what stands before it is mapped and aligned; and it is glibc. If another
    // version has other members there, this is another number.
    if unsafe { thread_id.read() } != nix::unistd::gettid().as_raw() {
        return Err(unsupported());
    }
    Ok(Registered { robust, robust_len, thread_id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::child::Child;
    use crate::process::testing::{forked, in_own_process, is_own_process, wait_until};

    #[test]
    fn the_copy_is_a_child_of_the_parent_and_knows_its_own_number() {
        in_own_process("process::clone::tests::own_process_fork_sibling");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_fork_sibling() {
        if !is_own_process() {
            return;
        }
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        let own = std::process::id();
        let code = forked(|| {
            // SAFETY: a forked copy has one thread.
            match unsafe { fork_sibling() }.expect("fork") {
                Side::Original => 0,
                Side::Copy => {
                    use std::io::Write;
                    // SAFETY: as it was when it was registered.
                    let kept = unsafe { registered().expect("registered").thread_id.read() };
                    let (pid, parent) = (std::process::id(), std::os::unix::process::parent_id());
                    // Another thread: the C library takes and gives its locks.
                    let sum = std::thread::spawn(|| 40 + 2).join().expect("a thread");
                    let line = format!("{pid} {parent} {kept} {sum}\n");
                    (&theirs).write_all(line.as_bytes()).expect("write");
                    // SAFETY: ends this process.
                    unsafe { libc::_exit(7) }
                }
            }
        });
        assert_eq!(code, 0);
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(ours), &mut line).expect("read");
        let numbers: Vec<u32> =
            line.split_whitespace().map(|number| number.parse().expect("a number")).collect();
        assert_eq!(numbers[1..], [own, numbers[0], 42], "{line}");
        let child = Child::adopt(numbers[0], false).expect("it is our child");
        wait_until("its end", || child.try_reap().is_some());
        let status = child.try_reap().and_then(|exit| exit.status).expect("ours to reap");
        assert_eq!(status.code(), Some(7));
    }
}
