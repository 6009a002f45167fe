//! Tells a forked copy of this process from the process itself.
//!
//! A library that owns children, sockets and shared memory must not touch them in a copy that
//! somebody's `fork()` has made: it would signal children that aren't its own, write into the
//! middle of another's frames, unmap what isn't mapped. A copy is known by a page that the kernel
//! empties in every child (`MADV_WIPEONFORK`, Linux 4.14, madvise(2)): no process id to compare,
//! which a copy in a PID namespace could share, and no system call.
//!
//! What is not seen: `vfork` and `clone(CLONE_VM)`, whose child runs in the very same memory. (It
//! must not call anything of ours, nor hardly anything else: vfork(2).)

#![expect(unsafe_code, reason = "a page that the kernel wipes at a fork")]

use std::io;
use std::num::NonZeroUsize;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use nix::libc;
use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};

/// The flag in the page: null until the guard is armed, then never changed.
///
/// A pointer and not a `OnceLock`: a fork while another thread is within `OnceLock::set` leaves the
/// copy a lock that nobody will ever open. Here it finds null, so it is a process of its own that
/// never armed, which is true.
static FLAG: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// What the flag holds in the process that armed the guard; 0, the wiped page, in its copies.
const ORIGINAL: u32 = 1;

/// One page is the least that can be mapped; only four bytes of it are used. The kernel rounds up
/// to its page size.
const PAGE_BYTES: NonZeroUsize = NonZeroUsize::new(4096).expect("not 0");

/// From now on, forked copies of this process will know that they are copies.
///
/// May be called often, from many threads. In a copy of an armed process it changes nothing.
///
/// # Errors
///
/// When the kernel gives no page, or does not know `MADV_WIPEONFORK`.
pub(crate) fn arm() -> io::Result<()> {
    if !FLAG.load(Ordering::Acquire).is_null() {
        return Ok(());
    }
    // SAFETY: a new private mapping at an address of the kernel's choice touches no memory that is
    // in use.
    let page = unsafe {
        mman::mmap_anonymous(
            None,
            PAGE_BYTES,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_PRIVATE,
        )
    }?;
    let flag = page.cast::<AtomicU32>();
    // SAFETY: the page is ours alone, zeroed, writable, and aligned for an AtomicU32.
    unsafe { flag.as_ref() }.store(ORIGINAL, Ordering::Relaxed);
    // SAFETY: the advice concerns the page that has just been mapped, and changes nothing in this
    // process.
    let advised = unsafe { mman::madvise(page, PAGE_BYTES.get(), MmapAdvise::MADV_WIPEONFORK) };
    if let Err(error) = advised {
        unmap(page);
        return Err(error.into());
    }
    let published =
        FLAG.compare_exchange(ptr::null_mut(), flag.as_ptr(), Ordering::AcqRel, Ordering::Acquire);
    if published.is_err() {
        // Another thread was faster, and its page is as good.
        unmap(page);
    }
    Ok(())
}

/// Whether this process is a copy, by `fork`, of one that had armed the guard.
///
/// `false` in a process that never armed it, and in a program that was started afresh. Two loads,
/// no system call. Async-signal-safe.
#[inline]
pub(crate) fn is_forked_copy() -> bool {
    let flag = FLAG.load(Ordering::Acquire);
    // SAFETY: null, or a page that was written before it was published and is never unmapped. In a
    // forked copy it is mapped too: MADV_WIPEONFORK empties the page and leaves it there.
    match unsafe { flag.as_ref() } {
        Some(flag) => flag.load(Ordering::Relaxed) != ORIGINAL,
        None => false,
    }
}

/// Makes a forked copy a process of its own, as a fresh start would be: for the workers that a
/// template forks, which have given up all that was the template's.
pub(crate) fn become_original() {
    // SAFETY: as in `is_forked_copy`.
    if let Some(flag) = unsafe { FLAG.load(Ordering::Acquire).as_ref() } {
        flag.store(ORIGINAL, Ordering::Relaxed);
    }
}

/// What every call says that a forked copy must not make.
pub(crate) fn refuse_in_copy() -> io::Result<()> {
    if is_forked_copy() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this process is a forked copy: the child belongs to the original",
        ));
    }
    Ok(())
}

fn unmap(page: NonNull<libc::c_void>) {
    // SAFETY: it was mapped by `arm` with this length, and never published.
    let unmapped = unsafe { mman::munmap(page, PAGE_BYTES.get()) };
    debug_assert!(unmapped.is_ok(), "munmap of our own page: {unmapped:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::{forked, in_own_process, is_own_process};

    #[test]
    fn fork_is_seen_in_copies_only() {
        in_own_process("process::fork::tests::own_process_fork");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_fork() {
        if !is_own_process() {
            return;
        }
        // Never armed: a copy is not told from the original, and may arm for itself.
        assert!(!is_forked_copy());
        assert_eq!(forked(|| i32::from(is_forked_copy())), 0);
        assert_eq!(
            forked(|| {
                arm().expect("arm in a copy");
                i32::from(is_forked_copy())
            }),
            0
        );

        arm().expect("arm");
        arm().expect("arm again");
        assert!(!is_forked_copy());
        assert_eq!(forked(|| i32::from(is_forked_copy())), 1);
        // Arming in a copy does not make it an original, nor does another fork.
        assert_eq!(
            forked(|| {
                arm().expect("arm in a copy");
                i32::from(is_forked_copy())
            }),
            1
        );
        assert_eq!(forked(|| forked(|| i32::from(is_forked_copy()))), 1);
        // But it may be made one, and tells its own copies then.
        let of_its_own = || {
            become_original();
            i32::from(is_forked_copy()) + 2 * forked(|| i32::from(is_forked_copy()))
        };
        assert_eq!(forked(of_its_own), 2);
        assert!(!is_forked_copy());
        assert!(refuse_in_copy().is_ok());
    }

    #[test]
    fn many_threads_arm_at_once() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    arm().expect("arm");
                    assert!(!is_forked_copy());
                });
            }
        });
    }
}
