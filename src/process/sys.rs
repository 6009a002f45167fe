//! System calls that `nix` 0.30 does not wrap, or wraps so that something is lost.
//!
//! What is lost, and why these are written out:
//!
//! * `nix::sys::wait::waitid` reaps a child that a real-time signal killed and then answers
//!   `EINVAL`, because its `Signal` has no real-time signals: the status would be gone.
//! * `nix::sys::socket::recvmsg` gives no access to the descriptors that did arrive when the
//!   control message was cut (`MSG_CTRUNC`): they would stay open for ever.
//! * pidfds (`pidfd_open(2)`, `pidfd_send_signal(2)`, the `PIDFD_GET_INFO` ioctl) are not there at
//!   all.
//!
//! Nothing here keeps state. Every descriptor goes in as a [`BorrowedFd`] and comes out as an
//! [`OwnedFd`], with close-on-exec set. No call blocks unless it is told to ([`Patience`]): the
//! socket calls carry `MSG_DONTWAIT`, so the `O_NONBLOCK` flag, which belongs to
//! the file description and would be shared with another process, is left alone.

#![expect(unsafe_code, reason = "system calls that nix does not wrap")]

use std::ffi::CStr;
use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::peer_fd::PeerFd;
use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::sys::socket::{self, ControlMessage, MsgFlags, SockaddrStorage, UnixAddr, sockopt};

/// The most descriptors that one message carries: the kernel's `SCM_MAX_FD` (unix(7), since Linux
/// 2.6.38).
pub(crate) const MESSAGE_FDS_MAX: usize = 253;

/// The most slices that one `sendmsg` takes: the kernel's `UIO_MAXIOV` (readv(2), `IOV_MAX`).
const SLICES_MAX: usize = 1024;

// What follows stands in `include/uapi/linux/pidfd.h`. The `libc` crate has it too, but only
// lately, and nix asks for no version that has.

/// Flag of pidfd_send_signal(2), Linux 6.9.
const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

/// In [`PidfdInfo::mask`], an answer: the process still has a number.
const PIDFD_INFO_PID: u64 = 1 << 0;

/// In [`PidfdInfo::mask`], a question and an answer: how a process ended that has been reaped
/// (Linux 6.15).
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// The ioctl `_IOWR(0xFF, 11, struct pidfd_info)` of Linux 6.13, as
/// `include/uapi/asm-generic/ioctl.h` composes it for x86-64 and aarch64: direction (both), size,
/// type, number.
const PIDFD_GET_INFO: u32 = 3 << 30 | (size_of::<PidfdInfo>() as u32) << 16 | 0xFF << 8 | 11;

/// `struct pidfd_info` in its first version (`PIDFD_INFO_SIZE_VER0`). The kernel fills as much as
/// it is told there is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    /// Process, thread group and parent; then the four pairs of user and group ids.
    ids: [u32; 11],
    /// As wait(2) gives it.
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64, "PIDFD_INFO_SIZE_VER0");

/// Whom [`pidfd_send_signal`] signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The process alone.
    Process,
    /// Every member of the process group that the process leads or led
    /// (`PIDFD_SIGNAL_PROCESS_GROUP`, Linux 6.9; `EINVAL` before). The group is found by the
    /// kernel's own object, not by its number, so this is right even after the leader has been
    /// reaped: the number cannot be given away while the group has a member.
    Group,
}

/// What [`wait_pidfd`] does with the status it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reap {
    /// Looks only: the child stays a zombie (`WNOWAIT`).
    Peek,
    /// Takes the status; the zombie is gone.
    Take,
}

/// What the kernel says about a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// It has not ended yet; or it has, but a tracer (a debugger) has not taken notice yet.
    StillRunning,
    /// It has ended so; with its process id.
    Exited(ExitStatus, u32),
    /// It is no child of ours, or no longer: somebody else has reaped it (`ECHILD`).
    NoChild,
}

/// What [`exit_info`] found out about a process that somebody else may have reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitInfo {
    /// It has been reaped, and ended so.
    Exited(ExitStatus),
    /// It is still there: running, a zombie, or just being taken away by the kernel.
    Present,
    /// The kernel cannot tell: it is older than Linux 6.15, or did not keep it.
    Unknown,
}

/// Whether a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Not at all: `WouldBlock`.
    None,
    /// Until there is something.
    Waits,
}

impl Patience {
    fn flags(self) -> MsgFlags {
        match self {
            Self::None => MsgFlags::MSG_DONTWAIT,
            Self::Waits => MsgFlags::empty(),
        }
    }
}

/// What one [`recv_with_fds`] brought.
#[derive(Debug)]
pub(crate) struct Received {
    /// How many bytes; 0 is the end of the stream.
    pub(crate) bytes: usize,
    /// The descriptors that came with them, in the order in which they were sent.
    pub(crate) fds: Vec<PeerFd>,
    /// Some descriptors were lost, because this process cannot open more (`EMFILE`). The kernel has
    /// closed those; the bytes are complete.
    pub(crate) truncated: bool,
    /// The process that sent the bytes, as the kernel says, on a socket that asks for it
    /// (`SO_PASSCRED`, unix(7)).
    pub(crate) sender: Option<u32>,
}

/// Opens a descriptor that stands for the process with this number (pidfd_open(2), Linux 5.3).
///
/// The number may by now belong to another process than the one meant, if somebody reaped that: the
/// caller has to look ([`wait_pidfd`]) whether what it got is its child.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and no pointer.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns; the kernel set
    // close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The low half of a word, at which threads of several processes wait (futex(2)).
fn low_half(word: &AtomicU64) -> *const u32 {
    let halves: *const u32 = ptr::from_ref(word).cast();
    halves.wrapping_add(usize::from(cfg!(target_endian = "big")))
}

/// Waits until another thread or process has called [`futex_wake`] for the word, unless its low half
/// is not what it was (futex(2), `FUTEX_WAIT`). It may return for no reason.
pub(crate) fn futex_wait(word: &AtomicU64, seen: u32) {
    let forever: *const libc::timespec = ptr::null();
    // SAFETY: the address is that of an aligned half of a word that lives during the call; the kernel
    // only reads it. Without a timeout the pointer is null.
    let _ =
        unsafe { libc::syscall(libc::SYS_futex, low_half(word), libc::FUTEX_WAIT, seen, forever) };
}

/// Wakes all who wait for the word, in any process (futex(2), `FUTEX_WAKE`).
pub(crate) fn futex_wake(word: &AtomicU64) {
    // SAFETY: as above; the kernel uses the address only to find those who wait.
    let _ = unsafe { libc::syscall(libc::SYS_futex, low_half(word), libc::FUTEX_WAKE, c_int::MAX) };
}

/// Sends a signal through a pidfd (pidfd_send_signal(2), Linux 5.1); signal 0 only checks.
///
/// # Errors
///
/// `ESRCH` once the process is reaped or the group is empty, `EINVAL` for a group before Linux 6.9.
pub(crate) fn pidfd_send_signal(
    pidfd: BorrowedFd<'_>,
    signal: c_int,
    target: Target,
) -> io::Result<()> {
    let flags = match target {
        Target::Process => 0,
        Target::Group => PIDFD_SIGNAL_PROCESS_GROUP,
    };
    let info: *const libc::siginfo_t = ptr::null();
    // SAFETY: a null `info` is allowed and means what kill(2) would fill in; the rest are integers.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, flags)
    })?;
    Ok(())
}

/// Asks whether the child behind a pidfd has ended, without waiting for it (waitid(2); `P_PIDFD`
/// since Linux 5.4).
pub(crate) fn wait_pidfd(pidfd: BorrowedFd<'_>, reap: Reap) -> io::Result<Waited> {
    wait(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, reap)
}

/// The same for any child, of which one is told.
pub(crate) fn wait_any(reap: Reap) -> io::Result<Waited> {
    wait(libc::P_ALL, 0, reap)
}

/// The same by number, for a child that has no pidfd because none could be opened.
pub(crate) fn wait_pid(pid: u32, reap: Reap) -> io::Result<Waited> {
    wait(libc::P_PID, pid, reap)
}

/// The same for any child that is in this process group; its leader, too.
pub(crate) fn wait_group(leader: u32, reap: Reap) -> io::Result<Waited> {
    wait(libc::P_PGID, leader, reap)
}

fn wait(id_type: libc::idtype_t, id: libc::id_t, reap: Reap) -> io::Result<Waited> {
    let mut options = libc::WEXITED | libc::WNOHANG;
    if reap == Reap::Peek {
        options |= libc::WNOWAIT;
    }
    // SAFETY: all zeros is a valid `siginfo_t`, a C structure of integers and pointers. The kernel
    // leaves it so when there is nothing to tell, which is how that is recognised (waitid(2),
    // WNOHANG).
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    // SAFETY: `info` is valid for a write of a `siginfo_t`, and the rest are integers.
    match check(unsafe { libc::waitid(id_type, id, &raw mut info, options) }.into()) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(Waited::NoChild),
        Err(error) => return Err(error),
    }
    // SAFETY: waitid(2) filled the fields of SIGCHLD, or left zeros.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    // Who traces children of its own is told of their stops, too, though it does not ask for them
    // (ptrace(2)).
    if pid == 0
        || [libc::CLD_TRAPPED, libc::CLD_STOPPED, libc::CLD_CONTINUED].contains(&info.si_code)
    {
        return Ok(Waited::StillRunning);
    }
    // `waitid` gives the parts of what `wait` gives in one number (wait(2), WEXITSTATUS and its
    // relatives).
    let raw = match info.si_code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => (status & 0x7f) | 0x80,
        _ => status & 0x7f,
    };
    Ok(Waited::Exited(ExitStatus::from_raw(raw), pid.unsigned_abs()))
}

/// Asks how a process ended that somebody else reaped (the `PIDFD_GET_INFO` ioctl, Linux 6.13, with
/// `PIDFD_INFO_EXIT`, Linux 6.15: `include/uapi/linux/pidfd.h`).
///
/// Any error of the kernel is [`ExitInfo::Unknown`]: an older kernel says `ENOTTY`, or `ESRCH` for
/// a process that is gone, and nothing else could be done about another.
pub(crate) fn exit_info(pidfd: BorrowedFd<'_>) -> ExitInfo {
    match ask_exit_info(pidfd) {
        // The kernel looks for the exit first and for the process then: both may have changed
        // between the two, and then it finds neither. Asked again, it finds the exit, if it
        // keeps one.
        ExitInfo::Unknown => ask_exit_info(pidfd),
        told => told,
    }
}

fn ask_exit_info(pidfd: BorrowedFd<'_>) -> ExitInfo {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the number of the request carries the size of the structure, so the kernel reads and
    // writes no more than `info`; an unknown request, or a descriptor that isn't a pidfd, is
    // refused.
    let answer = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if answer < 0 {
        ExitInfo::Unknown
    } else if info.mask & PIDFD_INFO_EXIT != 0 {
        ExitInfo::Exited(ExitStatus::from_raw(info.exit_code))
    } else if info.mask & PIDFD_INFO_PID != 0 {
        ExitInfo::Present
    } else {
        ExitInfo::Unknown
    }
}

/// Signals a process group by its number (kill(2)): only for a group whose leader is known to be
/// unreaped.
pub(crate) fn kill_group(leader: u32, signal: c_int) -> io::Result<()> {
    match libc::pid_t::try_from(leader) {
        // 0 and 1 would be our own group and every process there is.
        Ok(leader) if leader > 1 => {
            // SAFETY: the call takes two integers.
            check(unsafe { libc::kill(-leader, signal) }.into())?;
            Ok(())
        }
        _ => Err(Errno::EINVAL.into()),
    }
}

/// Signals a process by its number (kill(2)): only for a child that is known to be unreaped.
pub(crate) fn kill_process(pid: u32, signal: c_int) -> io::Result<()> {
    match libc::pid_t::try_from(pid) {
        Ok(pid) if pid > 1 => {
            // SAFETY: the call takes two integers.
            check(unsafe { libc::kill(pid, signal) }.into())?;
            Ok(())
        }
        _ => Err(Errno::EINVAL.into()),
    }
}

/// Has a function called when this process ends by `exit` or by returning from `main` (atexit(3)).
/// `false`: there was no memory to remember it.
pub(crate) fn at_exit(function: extern "C" fn()) -> bool {
    // SAFETY: the function stays where it is, for this crate is never unloaded from a program that
    // it is linked into.
    unsafe { libc::atexit(function) == 0 }
}

/// Receives what is there, without waiting (recv(2)); 0 is the end of the stream. For tests: the
/// kernel closes descriptors that travel with these bytes, within the call.
///
/// # Errors
///
/// `WouldBlock` when nothing is there.
#[cfg(test)]
pub(crate) fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    retry(|| Ok(socket::recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?))
}

/// How many bytes can be received at this moment (`FIONREAD`, unix(7) `SIOCINQ`).
pub(crate) fn queued(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: c_int = 0;
    // SAFETY: the request writes one integer.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }.into())?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Has the kernel refuse descriptors that are sent to this socket: the sender gets `EPERM`.
///
/// A descriptor that cannot come need not be closed, which may block (`peer_fd.rs`).
///
/// # Errors
///
/// `ENOPROTOOPT` before Linux 6.16.
pub(crate) fn refuse_descriptors(socket: BorrowedFd<'_>) -> io::Result<()> {
    /// include/uapi/asm-generic/socket.h
    const SO_PASSRIGHTS: c_int = 83;
    let off: c_int = 0;
    // SAFETY: the option is one integer, which the kernel reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            size_of::<c_int>() as _,
        )
    };
    check(result.into())?;
    Ok(())
}

/// Sends as much as there is room for, without waiting and without SIGPIPE (send(2)).
///
/// # Errors
///
/// `WouldBlock` when there is no room at all, `BrokenPipe` when nobody can read it any more.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    send_or_wait(socket, bytes, Patience::None)
}

/// As [`send`], and waits for room for all of it, if it is to; a signal that comes when a part has
/// gone ends that. (Where the description is `O_NONBLOCK`, it does not wait.)
pub(crate) fn send_or_wait(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    patience: Patience,
) -> io::Result<usize> {
    let flags = patience.flags() | MsgFlags::MSG_NOSIGNAL;
    retry(|| Ok(socket::send(socket.as_raw_fd(), bytes, flags)?))
}

/// Descriptors that the system does not take, because too many of this user's are on their way
/// (`ETOOMANYREFS`, unix(7)): since when. No event says when that is over.
#[derive(Debug, Default)]
pub(crate) struct Held(Option<Instant>);

impl Held {
    /// After so long it is to be tried again.
    pub(crate) const AGAIN: Duration = Duration::from_millis(20);
    /// So long it is tried.
    const MOST: Duration = Duration::from_secs(5);

    /// Whether what has failed like this is to be tried again [later](Self::AGAIN).
    pub(crate) fn is_to_wait(&mut self, error: &io::Error) -> bool {
        are_too_many(error) && self.0.get_or_insert_with(Instant::now).elapsed() < Self::MOST
    }

    pub(crate) fn is_held(&self) -> bool {
        self.0.is_some()
    }

    /// It was sent, or given up.
    pub(crate) fn is_over(&mut self) {
        self.0 = None;
    }

    #[cfg(test)]
    pub(crate) fn since_long(&mut self) {
        self.0 = Instant::now().checked_sub(Self::MOST);
    }
}

/// Too many descriptors are on their way.
pub(crate) fn are_too_many(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETOOMANYREFS)
}

/// In a test: no descriptor that travels alone is taken, as if too many were on their way. (With a
/// welcome go two.)
#[cfg(test)]
pub(crate) static TOO_MANY: std::sync::atomic::AtomicBool =
    std::sync::atomic::AtomicBool::new(false);

/// Sends bytes from several places, and descriptors with the first of them (sendmsg(2), unix(7)
/// `SCM_RIGHTS`).
///
/// Returns how many bytes went, as [`send`] does. If it is an `Ok`, *all* descriptors went with the
/// first byte, and must not be sent again with the rest; if an error, none did.
///
/// # Errors
///
/// Those of [`send`]; `ETOOMANYREFS` when more descriptors are on their way than the user may have
/// open (`RLIMIT_NOFILE`; unix(7)): try later. `InvalidInput` for descriptors without a byte, which
/// a stream would drop, and for more than [`MESSAGE_FDS_MAX`].
pub(crate) fn send_with_fds(
    socket: BorrowedFd<'_>,
    slices: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let slices = &slices[..slices.len().min(SLICES_MAX)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    if fds.is_empty() {
        return retry(|| {
            Ok(socket::sendmsg::<SockaddrStorage>(socket.as_raw_fd(), slices, &[], flags, None)?)
        });
    }
    if fds.len() > MESSAGE_FDS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one message",
        ));
    }
    if slices.iter().all(|slice| slice.is_empty()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "descriptors need a byte to travel with",
        ));
    }
    #[cfg(test)]
    if fds.len() == 1 && TOO_MANY.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(Errno::ETOOMANYREFS.into());
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    retry(|| {
        Ok(socket::sendmsg::<SockaddrStorage>(socket.as_raw_fd(), slices, &rights, flags, None)?)
    })
}

/// Receives what is there, and the descriptors that come with it, without waiting (recvmsg(2)).
///
/// There is room for all descriptors of a message: the kernel would close those for which there is
/// none before the call returns, however long that takes.
///
/// One call never brings the descriptors of two messages, and the bytes that follow a message with
/// descriptors come with the next call; but bytes that were sent *before* may stand in front of its
/// own (unix(7), *ancillary data*). So it is the frames that must say which descriptors are theirs.
///
/// # Errors
///
/// `WouldBlock` when nothing is there. No descriptor is lost or left open by an error.
pub(crate) fn recv_with_fds(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    recv_with_fds_or_wait(socket, buffer, Patience::None)
}

/// As [`recv_with_fds`], and waits for something to come, if it is to.
pub(crate) fn recv_with_fds_or_wait(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    patience: Patience,
) -> io::Result<Received> {
    /// Room for one control message with [`MESSAGE_FDS_MAX`] descriptors, aligned as a `cmsghdr`
    /// has to be.
    #[repr(C)]
    union Control {
        header: libc::cmsghdr,
        bytes: [u8; 16 + 4 * MESSAGE_FDS_MAX],
    }
    let mut control = MaybeUninit::<Control>::uninit();
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeros is a valid `msghdr`: null pointers with lengths of zero.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: CMSG_LEN is arithmetic. The result is at most the size of `Control`, which the test
    // `control_buffer_holds_a_full_message` checks.
    message.msg_controllen = unsafe { libc::CMSG_LEN(4 * MESSAGE_FDS_MAX as u32) } as _;
    let flags = (MsgFlags::MSG_CMSG_CLOEXEC | patience.flags()).bits();
    let bytes = retry(|| {
        // SAFETY: `message` points to one slice over `buffer` and to `control`, both valid for
        // writes of the lengths given and alive; an interrupted call (which alone is
        // repeated) has changed nothing.
        let received =
            check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) }
                as libc::c_long)?;
        Ok(received as usize)
    })?;

    let (mut fds, mut sender) = (Vec::new(), None);
    // SAFETY: the kernel has set `msg_controllen` to what it wrote, and only that is read.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header within the control
        // buffer, aligned.
        let libc::cmsghdr { cmsg_len, cmsg_level, cmsg_type, .. } = unsafe { header.read() };
        // C libraries differ about the types.
        let message_bytes: usize = cmsg_len as _;
        // SAFETY: arithmetic.
        let payload_bytes = message_bytes.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        if cmsg_level == libc::SOL_SOCKET
            && (cmsg_type == libc::SCM_RIGHTS || cmsg_type == SCM_PIDFD)
        {
            // SAFETY: the payload follows its header.
            let payload = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for index in 0..payload_bytes / size_of::<RawFd>() {
                // SAFETY: the kernel wrote `payload_bytes` bytes of descriptors there, perhaps
                // unaligned.
                let fd = unsafe { payload.add(index).read_unaligned() };
                // SAFETY: it has just been made for this process; nobody else knows it. (A pidfd
                // that could not be made is a negative number.)
                let fd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
                if cmsg_type == libc::SCM_RIGHTS {
                    fds.extend(fd.map(PeerFd::from));
                }
            }
        }
        if cmsg_level == libc::SOL_SOCKET
            && cmsg_type == libc::SCM_CREDENTIALS
            && payload_bytes >= size_of::<libc::ucred>()
        {
            // SAFETY: the kernel wrote a `ucred` behind the header, perhaps unaligned.
            let sent_by = unsafe { libc::CMSG_DATA(header).cast::<libc::ucred>().read_unaligned() };
            sender = u32::try_from(sent_by.pid).ok().filter(|pid| *pid > 0);
        }
        // SAFETY: as for `header`; `message` is what recvmsg(2) left.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Received { bytes, fds, truncated: message.msg_flags & libc::MSG_CTRUNC != 0, sender })
}

/// A control message that brings a descriptor nobody asked for: `SCM_PIDFD` (Linux 6.5,
/// `include/linux/socket.h`), on a socket for which somebody has set `SO_PASSPIDFD`. It is closed.
const SCM_PIDFD: c_int = 4;

/// Whether a descriptor is a Unix stream socket (unix(7)) that is connected. Of a listening one no
/// end would ever be reported. No operation of a file is called, for a file system in user space
/// may let any of them block.
pub(crate) fn is_unix_stream(fd: BorrowedFd<'_>) -> bool {
    let option = |name| {
        let (mut value, mut len): (c_int, _) = (0, size_of::<c_int>() as libc::socklen_t);
        // SAFETY: the kernel writes at most `len` bytes, one integer, to `value`.
        let result = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                name,
                (&raw mut value).cast(),
                &raw mut len,
            )
        };
        (result == 0).then_some(value)
    };
    option(libc::SO_DOMAIN) == Some(libc::AF_UNIX)
        && option(libc::SO_TYPE) == Some(libc::SOCK_STREAM)
        && socket::getpeername::<UnixAddr>(fd.as_raw_fd()).is_ok()
}

/// Gives a Unix socket that has no name one of the kernel's choice in the abstract space (autobind,
/// unix(7)). [`has_named_peer`] tells this of its other end. Nothing listens under the name, so
/// nobody can connect to it.
///
/// # Errors
///
/// `EACCES` when a security module forbids it; `ENOSPC` when all names are in use.
pub(crate) fn give_name(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(socket::bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?)
}

/// Whether the other end of a connected Unix socket has a name.
pub(crate) fn has_named_peer(socket: BorrowedFd<'_>) -> bool {
    let peer = socket::getpeername::<UnixAddr>(socket.as_raw_fd());
    peer.is_ok_and(|peer| peer.path().is_some() || peer.as_abstract().is_some())
}

/// Whether a descriptor is a pidfd. As with [`is_unix_stream`], no operation of a file is called.
pub(crate) fn is_pidfd(fd: BorrowedFd<'_>) -> bool {
    match pidfd_send_signal(fd, 0, Target::Process) {
        Ok(()) => true,
        Err(error) => matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EPERM)),
    }
}

/// The process that made the other end of a socket; see [`peer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// `None` when it has no number in our PID namespace.
    pub(crate) pid: Option<u32>,
    /// Its effective user and group, at the time.
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// Returns who made the other end of a socket: for a pair, the process that called socketpair(2)
/// (unix(7), `SO_PEERCRED`).
pub(crate) fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let credentials = socket::getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(Peer {
        pid: u32::try_from(credentials.pid()).ok().filter(|&pid| pid > 0),
        user: credentials.uid(),
        group: credentials.gid(),
    })
}

/// The real and effective ids of the calling thread (credentials(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) user: u32,
    pub(crate) effective_user: u32,
    pub(crate) group: u32,
    pub(crate) effective_group: u32,
}

/// Returns the ids of the calling thread.
pub(crate) fn ids() -> Ids {
    // SAFETY: four calls that take nothing and always succeed.
    unsafe {
        Ids {
            user: libc::getuid(),
            effective_user: libc::geteuid(),
            group: libc::getgid(),
            effective_group: libc::getegid(),
        }
    }
}

/// Whether a file has capabilities (capabilities(7), `security.capability`).
pub(crate) fn has_file_capabilities(path: &CStr) -> bool {
    // SAFETY: both names are C strings, and of a buffer of no bytes nothing is written.
    let len = unsafe {
        libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), ptr::null_mut(), 0)
    };
    len > 0
}

/// Whether this process was started with raised privileges (set-uid, set-gid, file capabilities,
/// ids that differed, a transition of a security module): `AT_SECURE` (getauxval(3)).
pub(crate) fn is_set_uid() -> bool {
    // SAFETY: reads a value that the kernel gave the process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The error of the call that has just returned this, if it is -1.
fn check(returned: libc::c_long) -> io::Result<libc::c_long> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// Calls again while a signal interrupts.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The time that workers note, in nanoseconds of `CLOCK_MONOTONIC`, which is one for the whole
/// machine (clock_gettime(2)).
pub(crate) fn monotonic_nanos() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    // It fails for clocks only that do not exist.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;
    use crate::process::testing::{in_own_process, is_own_process, open_fds, wait_until};

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().expect("socketpair")
    }

    fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Errno {
        let error = result.expect_err("should fail");
        Errno::from_raw(error.raw_os_error().expect("an error of the kernel"))
    }

    #[test]
    fn what_is_queued_is_counted_over_all_messages() {
        let (a, b) = pair();
        assert_eq!(queued(b.as_fd()).expect("count"), 0);
        for bytes in [&[1; 10][..], &[2; 300]] {
            (&a).write_all(bytes).expect("write");
        }
        assert_eq!(queued(b.as_fd()).expect("count"), 310);
    }

    #[test]
    fn control_buffer_holds_a_full_message() {
        // SAFETY: arithmetic.
        let needed = unsafe { libc::CMSG_LEN(4 * MESSAGE_FDS_MAX as u32) } as usize;
        assert!(needed <= 16 + 4 * MESSAGE_FDS_MAX);
    }

    #[test]
    fn socket_calls_do_not_wait() {
        let (a, b) = pair();
        let mut buffer = [0; 64];
        assert_eq!(errno(recv(a.as_fd(), &mut buffer)), Errno::EAGAIN);
        assert_eq!(errno(recv_with_fds(a.as_fd(), &mut buffer)), Errno::EAGAIN);
        assert_eq!(send(b.as_fd(), b"hello").expect("send"), 5);
        assert_eq!(recv(a.as_fd(), &mut buffer).expect("recv"), 5);
        assert_eq!(&buffer[..5], b"hello");

        let full = vec![0; 1 << 20];
        while send(b.as_fd(), &full).is_ok() {}
        assert_eq!(errno(send(b.as_fd(), &full)), Errno::EAGAIN);
        assert_eq!(
            errno(send_with_fds(b.as_fd(), &[IoSlice::new(&full)], &[a.as_fd()])),
            Errno::EAGAIN
        );
        // The flag of the description, which another process may share, is as it was.
        let flags = fcntl(&b, FcntlArg::F_GETFL).expect("F_GETFL");
        assert_eq!(flags & libc::O_NONBLOCK, 0);
    }

    #[test]
    fn lost_reader_is_an_error_and_no_signal() {
        let (a, b) = pair();
        drop(a);
        assert_eq!(errno(send(b.as_fd(), b"x")), Errno::EPIPE);
        let slices = [IoSlice::new(b"x")];
        assert_eq!(errno(send_with_fds(b.as_fd(), &slices, &[])), Errno::EPIPE);
        assert_eq!(recv(b.as_fd(), &mut [0; 8]).expect("end"), 0);
        let end = recv_with_fds(b.as_fd(), &mut [0; 8]).expect("end");
        assert_eq!((end.bytes, end.fds.len(), end.truncated), (0, 0, false));
    }

    #[test]
    fn descriptors_arrive_in_order_and_close_on_exec() {
        let (a, b) = pair();
        let (mut first, first_end) = pair();
        let (mut second, second_end) = pair();
        let slices = [IoSlice::new(b"he"), IoSlice::new(b"llo")];
        let fds = [first_end.as_fd(), second_end.as_fd()];
        assert_eq!(send_with_fds(b.as_fd(), &slices, &fds).expect("send"), 5);
        let mut buffer = [0; 64];
        let received = recv_with_fds(a.as_fd(), &mut buffer).expect("recv");
        assert_eq!((received.bytes, received.truncated), (5, false));
        assert_eq!(&buffer[..5], b"hello");
        let [one, two] = <[PeerFd; 2]>::try_from(received.fds).expect("two").map(PeerFd::trusted);
        for fd in [&one, &two] {
            let flags = fcntl(fd, FcntlArg::F_GETFD).expect("F_GETFD");
            assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
        }
        UnixStream::from(one).write_all(b"1").expect("write");
        UnixStream::from(two).write_all(b"2").expect("write");
        let mut byte = [0];
        first.read_exact(&mut byte).expect("read");
        assert_eq!(&byte, b"1");
        second.read_exact(&mut byte).expect("read");
        assert_eq!(&byte, b"2");
    }

    #[test]
    fn most_descriptors_of_one_message_fit() {
        let (a, b) = pair();
        let fds = vec![a.as_fd(); MESSAGE_FDS_MAX];
        let slices = [IoSlice::new(b"x")];
        assert_eq!(send_with_fds(b.as_fd(), &slices, &fds).expect("send"), 1);
        let received = recv_with_fds(a.as_fd(), &mut [0; 8]).expect("recv");
        assert_eq!((received.fds.len(), received.truncated), (253, false));
        let fds = vec![a.as_fd(); MESSAGE_FDS_MAX + 1];
        let error = send_with_fds(b.as_fd(), &slices, &fds).expect_err("too many");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = send_with_fds(b.as_fd(), &[IoSlice::new(b"")], &fds[..1]);
        let error = error.expect_err("no byte");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn cut_messages_leak_nothing() {
        in_own_process("process::sys::tests::own_process_cut_messages");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_cut_messages() {
        if !is_own_process() {
            return;
        }
        let (a, b) = pair();
        let before = open_fds();
        let slices = [IoSlice::new(b"abc")];
        // Room for two of four in this process: two come, the rest is reported and the stream goes
        // on.
        send_with_fds(b.as_fd(), &slices, &[a.as_fd(); 4]).expect("send");
        let next = a.try_clone().expect("dup").as_raw_fd() as u64;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
        setrlimit(Resource::RLIMIT_NOFILE, next + 2, hard).expect("setrlimit");
        let received = recv_with_fds(a.as_fd(), &mut [0; 8]).expect("recv");
        assert_eq!((received.bytes, received.fds.len()), (3, 2));
        assert!(received.truncated);
        drop(received);
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("setrlimit");
        wait_until("all are closed", || open_fds() == before);
        send_with_fds(b.as_fd(), &slices, &[a.as_fd()]).expect("send");
        let received = recv_with_fds(a.as_fd(), &mut [0; 8]).expect("recv");
        assert_eq!((received.fds.len(), received.truncated), (1, false));
    }

    #[test]
    fn pidfd_nobody_asked_for_is_closed() {
        in_own_process("process::sys::tests::own_process_pass_pidfd");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_pass_pidfd() {
        if !is_own_process() {
            return;
        }
        /// `include/uapi/asm-generic/socket.h`, Linux 6.5.
        const SO_PASSPIDFD: c_int = 76;
        let (a, b) = pair();
        let on: c_int = 1;
        // SAFETY: the option is read from a c_int, whose size is given.
        let set = unsafe {
            libc::setsockopt(
                a.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PASSPIDFD,
                (&raw const on).cast(),
                size_of::<c_int>() as libc::socklen_t,
            )
        };
        if set != 0 {
            return; // before Linux 6.5
        }
        let before = open_fds();
        send(b.as_fd(), b"x").expect("send");
        let received = recv_with_fds(a.as_fd(), &mut [0; 8]).expect("recv");
        assert_eq!((received.bytes, received.fds.len()), (1, 0));
        assert_eq!(open_fds(), before);
    }

    #[test]
    fn peer_of_a_pair_is_its_maker() {
        let (a, _b) = pair();
        let maker = peer(a.as_fd()).expect("SO_PEERCRED");
        let ids = ids();
        let (user, group) = (ids.effective_user, ids.effective_group);
        assert_eq!(maker, Peer { pid: Some(std::process::id()), user, group });
        let file = std::fs::File::open("/dev/null").expect("open");
        assert_eq!(errno(peer(file.as_fd())), Errno::ENOTSOCK);
    }

    #[test]
    fn status_can_be_looked_at_before_it_is_taken() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read _; exit 3"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("spawn");
        let pid = child.id();
        let pidfd = pidfd_open(pid).expect("pidfd_open");
        let running = wait_pidfd(pidfd.as_fd(), Reap::Take).expect("waitid");
        assert_eq!(running, Waited::StillRunning);
        assert!(!matches!(exit_info(pidfd.as_fd()), ExitInfo::Exited(_)));
        drop(child.stdin.take());
        let exited = Waited::Exited(ExitStatus::from_raw(3 << 8), pid);
        wait_until("exit", || wait_pidfd(pidfd.as_fd(), Reap::Peek).expect("waitid") == exited);
        assert!(!matches!(exit_info(pidfd.as_fd()), ExitInfo::Exited(_)));
        assert_eq!(wait_pid(pid, Reap::Peek).expect("waitid"), exited);
        assert_eq!(wait_pidfd(pidfd.as_fd(), Reap::Take).expect("waitid"), exited);
        assert_eq!(wait_pidfd(pidfd.as_fd(), Reap::Take).expect("waitid"), Waited::NoChild);
        assert_eq!(errno(pidfd_send_signal(pidfd.as_fd(), 0, Target::Process)), Errno::ESRCH);
        assert_eq!(errno(child.wait()), Errno::ECHILD);
    }

    #[test]
    fn group_of_a_process_that_leads_none_is_empty() {
        // Else a child that has gone over to our own group would have us signal ourselves.
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read _"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("spawn");
        let pidfd = pidfd_open(child.id()).expect("pidfd_open");
        let error = errno(pidfd_send_signal(pidfd.as_fd(), 0, Target::Group));
        // EINVAL before Linux 6.9.
        assert!(matches!(error, Errno::ESRCH | Errno::EINVAL), "{error}");
        assert_eq!(errno(kill_group(child.id(), 0)), Errno::ESRCH);
        child.wait().expect("wait");
    }

    #[test]
    fn numbers_that_mean_many_processes_are_refused() {
        for number in [0, 1, u32::MAX, 1 << 31] {
            assert_eq!(errno(kill_group(number, 0)), Errno::EINVAL);
            assert_eq!(errno(kill_process(number, 0)), Errno::EINVAL);
        }
    }

    #[test]
    fn other_descriptors_are_no_processes() {
        let file = std::fs::File::open("/dev/null").expect("open");
        assert_eq!(exit_info(file.as_fd()), ExitInfo::Unknown);
        assert_eq!(errno(pidfd_send_signal(file.as_fd(), 0, Target::Process)), Errno::EBADF);
        assert!(wait_pidfd(file.as_fd(), Reap::Peek).is_err());
    }
}
