//! The memory that the application shares with one worker: a memfd, sealed, mapped by both.
//!
//! The other side is not trusted. What it can do and what that does here:
//!
//! * *Resize it*: it cannot, by the seals against shrinking and growing (`F_SEAL_SHRINK`,
//!   `F_SEAL_GROW`, and `F_SEAL_SEAL` so that nobody seals it against writing under us:
//!   memfd_create(2)). So no access is past the end, which would be a SIGBUS.
//! * *Write anything at any time*: so it is reached by atomics only, never as a `&[u8]`, and a
//!   reader copies before it judges.
//! * *Punch a hole* (`FALLOC_FL_PUNCH_HOLE` is not sealed): the hole reads as zeros, and is filled
//!   again by the next access. (A machine that counts every page, `vm.overcommit_memory=2`, and has
//!   none left answers that access by a SIGBUS, as it does for any first touch of shared memory.)
//! * *Give us a file of another kind* in its place: [`SharedMemory::from_fd`] takes memory of tmpfs
//!   only; huge pages (`MFD_HUGETLB`) would be a SIGBUS when the machine has none free.
//!
//! A mapping needs no descriptor: whoever makes the memory has one, to send it to the other side,
//! for as long as it likes.
//!
//! In a forked copy it is not mapped (`MADV_DONTFORK`): there, touching it is a SIGSEGV, and the
//! copy has to ask [`fork::is_forked_copy`] first.

#![expect(unsafe_code, reason = "shared memory")]

use std::error::Error;
use std::ffi::{CStr, c_void};
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;

use super::fork;

/// What both sides rely on.
const SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// Its length is a multiple of this, so that it is whole words.
const WORD_BYTES: usize = size_of::<AtomicU64>();

/// Why memory is refused. It is the inner error of an [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryError {
    /// It is empty, not whole words, or too large to be mapped.
    Length(u64),
    /// It is longer than this process may make a file (`RLIMIT_FSIZE`); trying would raise SIGXFSZ.
    FileSizeLimit {
        /// What was asked for.
        len: usize,
        /// What is allowed.
        limit: u64,
    },
    /// The descriptor is not memory that can be sealed.
    NotMemory,
    /// Its length could still change, or its seals could.
    NotSealed,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(len) => write!(f, "shared memory cannot be {len} bytes long"),
            Self::FileSizeLimit { len, limit } => {
                write!(
                    f,
                    "shared memory of {len} bytes exceeds the limit on file sizes (RLIMIT_FSIZE, {limit} bytes)"
                )
            }
            Self::NotMemory => f.write_str("descriptor is not sealable memory"),
            Self::NotSealed => f.write_str("shared memory is not sealed against resizing"),
        }
    }
}

impl Error for MemoryError {}

impl From<MemoryError> for io::Error {
    fn from(error: MemoryError) -> Self {
        let kind = match error {
            MemoryError::FileSizeLimit { .. } => io::ErrorKind::FileTooLarge,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// Sealed memory, mapped into this process for as long as this lives.
pub(crate) struct SharedMemory {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and nothing but atomics reach it.
unsafe impl Send for SharedMemory {}
// SAFETY: as above: shared access is atomic.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Makes new memory of `len` bytes, all zeros, seals and maps it. No page of it is taken before
    /// it is touched. The descriptor is there to be sent to the other side.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Length`] unless `len` is a positive multiple of 8,
    /// [`MemoryError::FileSizeLimit`], or what the kernel says: no descriptor, no address space
    /// (`RLIMIT_AS`).
    pub(crate) fn create(len: usize) -> io::Result<(Self, OwnedFd)> {
        let len = checked_len(len as u64)?;
        let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
        if len.get() as u64 > limit {
            let len = len.get();
            return Err(MemoryError::FileSizeLimit { len, limit }.into());
        }
        let fd = create_memfd(c"procpool")?;
        ftruncate(&fd, len.get() as libc::off_t)?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SEALS))?;
        Ok((Self::map(&fd, len)?, fd))
    }

    /// As [`create`](Self::create), and takes all its pages from the kernel now (fallocate(2)):
    /// else each is taken by whoever touches it first, and killed by a SIGBUS if there is none.
    ///
    /// # Errors
    ///
    /// As `create`; when there is not enough memory.
    pub(crate) fn create_reserved(len: usize) -> io::Result<(Self, OwnedFd)> {
        let (memory, fd) = Self::create(len)?;
        loop {
            match fallocate(&fd, FallocateFlags::empty(), 0, len as libc::off_t) {
                Err(Errno::EINTR) => {}
                result => return result.map(|()| (memory, fd)).map_err(io::Error::from),
            }
        }
    }

    /// Maps memory that came from the other side, after looking at its kind, seals and length.
    ///
    /// # Errors
    ///
    /// A [`MemoryError`] within the [`io::Error`] when it is not what [`create`](Self::create)
    /// makes, or what the kernel says: sealed against writing (`EPERM`), no address space.
    pub(crate) fn from_fd(fd: &impl AsFd) -> io::Result<Self> {
        // Only descriptors of tmpfs and of huge pages know seals; all others say EINVAL.
        let seals = match fcntl(fd, FcntlArg::F_GET_SEALS) {
            Ok(seals) => SealFlag::from_bits_retain(seals),
            Err(Errno::EINVAL) => return Err(MemoryError::NotMemory.into()),
            Err(error) => return Err(error.into()),
        };
        if fstatfs(fd)?.filesystem_type() != TMPFS_MAGIC {
            return Err(MemoryError::NotMemory.into());
        }
        if !seals.contains(SEALS) {
            return Err(MemoryError::NotSealed.into());
        }
        // Last, since only now it cannot change any more.
        let len = fstat(fd)?.st_size;
        Self::map(fd, checked_len(len.unsigned_abs())?)
    }

    fn map(fd: &impl AsFd, len: NonZeroUsize) -> io::Result<Self> {
        // So that `drop` can tell, whoever made this.
        fork::arm()?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in
        // use. Others may write to the file, so it is reached by atomics alone; its length
        // is sealed.
        let start = unsafe {
            mman::mmap(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                fd,
                0,
            )
        }?;
        let memory = Self { start, len };
        // SAFETY: the advice concerns this mapping, and changes nothing in this process.
        unsafe { mman::madvise(start, len.get(), MmapAdvise::MADV_DONTFORK) }?;
        Ok(memory)
    }

    /// All of it as words.
    ///
    /// Nobody may use a place of it by atomics of another size: such must not race
    /// ([`std::sync::atomic`], *memory model*).
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is valid for its length and as long as `self`, at a page boundary,
        // and the length is whole words. Whatever bits are there are an AtomicU64.
        // Everybody in this process uses atomics; another process may do anything, which
        // for an atomic is just another value.
        unsafe { slice::from_raw_parts(self.start.cast().as_ptr(), self.len.get() / WORD_BYTES) }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // In a forked copy it isn't mapped, and its addresses may have become somebody else's.
        if fork::is_forked_copy() {
            return;
        }
        // SAFETY: it was mapped with this length, and no reference to it outlives `self`.
        let unmapped = unsafe { mman::munmap(self.start, self.len.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of our own memory: {unmapped:?}");
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("len", &self.len).finish_non_exhaustive()
    }
}

fn checked_len(len: u64) -> Result<NonZeroUsize, MemoryError> {
    usize::try_from(len)
        .ok()
        .and_then(NonZeroUsize::new)
        .filter(|len| len.get().is_multiple_of(WORD_BYTES) && len.get() <= isize::MAX as usize)
        .ok_or(MemoryError::Length(len))
}

/// Makes a file in memory (memfd_create(2)), closed at an exec, which can be sealed. The name is seen
/// in /proc/PID/maps and has no other meaning.
///
/// All such files of the crate are made here, since each needs the flag and its fallback.
pub(super) fn create_memfd(name: &CStr) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Linux 6.3 wants to be told that it is not to be executed: with `vm.memfd_noexec=2` it refuses
    // otherwise (until 6.5), and a sandbox may. Older kernels don't know the flag (EINVAL).
    let not_executable = flags | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    match memfd_create(name, not_executable) {
        Err(Errno::EINVAL) => Ok(memfd_create(name, flags)?),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::process::testing::{forked, in_own_process, is_own_process};

    fn refusal<T: fmt::Debug>(result: io::Result<T>) -> MemoryError {
        let error = result.expect_err("should be refused");
        *error
            .get_ref()
            .and_then(|inner| inner.downcast_ref())
            .unwrap_or_else(|| panic!("not a MemoryError: {error:?}"))
    }

    fn memfd(len: i64, seals: SealFlag, extra: MFdFlags) -> OwnedFd {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | extra;
        let fd = memfd_create(c"test", flags).expect("memfd");
        ftruncate(&fd, len).expect("ftruncate");
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).expect("seal");
        fd
    }

    #[test]
    fn both_sides_see_each_others_stores() {
        let (ours, fd) = SharedMemory::create(8192).expect("create");
        let theirs = SharedMemory::from_fd(&fd).expect("from_fd");
        drop(fd); // of no use to those who have it mapped
        assert_eq!(theirs.words().len(), 1024);
        assert!(ours.words().iter().all(|w| w.load(Ordering::Relaxed) == 0));
        ours.words()[1023].store(7, Ordering::Release);
        assert_eq!(theirs.words()[1023].load(Ordering::Acquire), 7);
    }

    #[test]
    fn length_is_sealed() {
        let (_memory, fd) = SharedMemory::create(4096).expect("create");
        assert_eq!(ftruncate(&fd, 0), Err(Errno::EPERM));
        assert_eq!(ftruncate(&fd, 8192), Err(Errno::EPERM));
        let seal = fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
        assert_eq!(seal, Err(Errno::EPERM));
    }

    #[test]
    fn punched_hole_reads_as_zeros() {
        let (memory, fd) = SharedMemory::create(8192).expect("create");
        memory.words()[0].store(u64::MAX, Ordering::Relaxed);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&fd, flags, 0, 8192).expect("punch");
        assert_eq!(memory.words()[0].load(Ordering::Relaxed), 0);
        memory.words()[0].store(1, Ordering::Relaxed);
        assert_eq!(memory.words()[0].load(Ordering::Relaxed), 1);
    }

    #[test]
    fn bad_memory_is_refused() {
        let none = MFdFlags::empty();
        let unsealed = memfd(4096, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL, none);
        assert_eq!(refusal(SharedMemory::from_fd(&unsealed)), MemoryError::NotSealed);
        let resealable = memfd(4096, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW, none);
        assert_eq!(refusal(SharedMemory::from_fd(&resealable)), MemoryError::NotSealed);
        for len in [0, 4, 4097] {
            let odd = memfd(len, SEALS, none);
            assert_eq!(
                refusal(SharedMemory::from_fd(&odd)),
                MemoryError::Length(len.unsigned_abs())
            );
        }
        let file = std::fs::File::open("/dev/zero").expect("open");
        assert_eq!(refusal(SharedMemory::from_fd(&file)), MemoryError::NotMemory);
        let read_only = memfd(4096, SEALS | SealFlag::F_SEAL_WRITE, none);
        let error = SharedMemory::from_fd(&read_only).expect_err("cannot be written");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        for len in [0, 12] {
            assert!(matches!(refusal(SharedMemory::create(len)), MemoryError::Length(_)));
        }
        assert!(matches!(refusal(SharedMemory::create(usize::MAX - 7)), MemoryError::Length(_)));
    }

    #[test]
    fn huge_pages_are_refused() {
        // Reserves nothing before it is mapped, so this works on machines without huge pages.
        let huge = memfd_create(c"test", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB);
        let Ok(huge) = huge else {
            return; // a kernel without them
        };
        ftruncate(&huge, 1 << 30).expect("ftruncate");
        fcntl(&huge, FcntlArg::F_ADD_SEALS(SEALS)).expect("seal");
        assert_eq!(refusal(SharedMemory::from_fd(&huge)), MemoryError::NotMemory);
    }

    #[test]
    fn file_size_limit_is_an_error_and_no_signal() {
        in_own_process("process::memory::tests::own_process_file_size_limit");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_file_size_limit() {
        if !is_own_process() {
            return;
        }
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).expect("getrlimit");
        nix::sys::resource::setrlimit(Resource::RLIMIT_FSIZE, 4096, hard).expect("setrlimit");
        SharedMemory::create(4096).expect("within the limit");
        assert_eq!(
            refusal(SharedMemory::create(8192)),
            MemoryError::FileSizeLimit { len: 8192, limit: 4096 }
        );
    }

    #[test]
    fn forked_copy_does_not_unmap() {
        in_own_process("process::memory::tests::own_process_forked_copy");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_forked_copy() {
        if !is_own_process() {
            return;
        }
        let (memory, _) = SharedMemory::create(1 << 20).expect("create");
        let code = forked(|| {
            // Take the addresses that the copy has free, as an allocator might.
            // SAFETY: MAP_FIXED_NOREPLACE touches no memory that is in use.
            let taken = unsafe {
                mman::mmap_anonymous(
                    NonZeroUsize::new(memory.start.as_ptr() as usize),
                    memory.len,
                    ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                    MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE,
                )
            }
            .expect("the addresses are free in a copy");
            drop(memory);
            // SAFETY: mapped above; a SIGSEGV if `drop` had unmapped it, which is what is tested.
            unsafe { taken.cast::<u8>().write_volatile(1) };
            0
        });
        assert_eq!(code, 0);
    }
}
