//! Descriptors that came from another process, and sockets into which another process may queue
//! descriptors.
//!
//! Closing a descriptor may block for as long as the process that made it likes: a TCP socket with
//! unsent data and `SO_LINGER` (socket(7)), a file of a FUSE file system, a terminal that drains.
//! The same holds for a socket of ours whose receive queue contains such a descriptor, because the
//! kernel closes what is queued together with the socket. So neither kind is closed on a thread of
//! a runtime, nor on the supervisor thread:
//!
//! * [`PeerFd`] hands its descriptor to the *closer*, a thread that is started when there is
//!   something to close, and ends when there is nothing left.
//! * [`PeerSocket`] first shuts the socket down, so the peer sees the end at once. If nothing is
//!   queued then, nothing ever will be, and the socket is closed at once; otherwise it goes to the
//!   closer.
//!
//! What is not covered: when this process is at its limit of descriptors, the kernel closes the
//! surplus within `recvmsg` itself. Since Linux 6.16, sockets on which no descriptor is due refuse
//! them ([`sys::refuse_descriptors`]).

use super::{fork, sys, thread};
use crate::lock::Lock;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::MutexGuard;

/// A descriptor that another process may have made. Dropping it does not block.
#[derive(Debug)]
pub(crate) struct PeerFd {
    fd: Option<OwnedFd>,
    /// Nothing that blocks can be behind it: it is closed at once.
    harmless: bool,
}

impl PeerFd {
    /// Accepts a socket that this process has just made, and that will be handed on. Other
    /// processes may queue descriptors in it until then, unless the kernel refuses them.
    pub(crate) fn refusing(socket: UnixStream) -> Self {
        let harmless = sys::refuse_descriptors(socket.as_fd()).is_ok();
        Self { fd: Some(socket.into()), harmless }
    }

    /// Makes another descriptor of the same file.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let fd = self.as_fd().try_clone_to_owned()?;
        Ok(Self { fd: Some(fd), harmless: self.harmless })
    }

    /// Returns the descriptor, for a sender that this process trusts: the application, seen from
    /// its worker.
    pub(crate) fn trusted(mut self) -> OwnedFd {
        self.fd.take().expect("it is taken only here and by the drop")
    }
}

impl From<OwnedFd> for PeerFd {
    fn from(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), harmless: false }
    }
}

impl AsFd for PeerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it is taken only by the drop").as_fd()
    }
}

impl AsRawFd for PeerFd {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for PeerFd {
    fn drop(&mut self) {
        match self.fd.take() {
            Some(fd) if !self.harmless => close_elsewhere(fd),
            closed => drop(closed),
        }
    }
}

/// This process's end of a connected Unix stream socket whose other end another process has.
/// Dropping it shuts it down, and does not block.
#[derive(Debug)]
pub(crate) struct PeerSocket(PeerFd);

impl PeerSocket {
    /// Accepts a socket that another process has made.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when it is not a connected Unix stream socket: any other kind may block this
    /// process in calls that are expected not to block, or never report an end.
    pub(crate) fn accept(fd: PeerFd) -> io::Result<Self> {
        if !sys::is_unix_stream(fd.as_fd()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self::from(fd))
    }
}

impl PeerSocket {
    /// Accepts a socket of whose connection this process must not have the other end, too: nobody
    /// else would, so the connection would never end.
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept), and `InvalidInput` when the other end has been claimed, or has a
    /// name otherwise.
    pub(crate) fn claim(fd: PeerFd) -> io::Result<Self> {
        let socket = Self::accept(fd)?;
        // Of the two ends of a connection, the first has its name before the second is looked at.
        // Where no name can be had, nothing is known.
        if sys::give_name(socket.as_fd()).is_ok() && sys::has_named_peer(socket.as_fd()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(socket)
    }
}

impl From<PeerFd> for PeerSocket {
    fn from(fd: PeerFd) -> Self {
        // Out-of-band bytes (`MSG_OOB`, Linux 5.15) would be skipped and freed by an ordinary
        // read, and the descriptors that travel with them would be closed within the read. Inline,
        // they are bytes like any others. The option cannot fail for a socket.
        let _ = setsockopt(&fd, sockopt::OobInline, &true);
        Self(fd)
    }
}

impl From<OwnedFd> for PeerSocket {
    fn from(socket: OwnedFd) -> Self {
        PeerFd::from(socket).into()
    }
}

impl From<UnixStream> for PeerSocket {
    fn from(socket: UnixStream) -> Self {
        OwnedFd::from(socket).into()
    }
}

impl AsFd for PeerSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PeerSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for PeerSocket {
    fn drop(&mut self) {
        // In a forked copy the original still uses the socket.
        if fork::is_forked_copy() {
            return;
        }
        let _ = shutdown(self.as_raw_fd(), Shutdown::Both);
        if let Ok(0) = sys::queued(self.as_fd()) {
            self.0.harmless = true; // each descriptor needs a byte to travel with: there is none
        }
    }
}

/// The descriptors that wait for the closer.
struct Closer {
    waiting: Vec<OwnedFd>,
    runs: bool,
}

static CLOSER: Lock<Closer> = Lock::new(Closer { waiting: Vec::new(), runs: false });

fn closer() -> MutexGuard<'static, Closer> {
    CLOSER.lock()
}

fn close_elsewhere(fd: OwnedFd) {
    // A forked copy has no closer, and its lock may be held by a thread that the copy lacks. It is
    // not the last holder either, as a rule, so this close does not block.
    if fork::is_forked_copy() {
        return drop(fd);
    }
    let mut closer = closer();
    closer.waiting.push(fd);
    let start = !std::mem::replace(&mut closer.runs, true);
    drop(closer);
    if start && thread::spawn("procpool-closer", close_waiting).is_err() {
        // The next descriptor tries again. Closing here could block for ever.
        self::closer().runs = false;
    }
}

fn close_waiting() {
    loop {
        let mut closer = closer();
        let waiting = std::mem::take(&mut closer.waiting);
        closer.runs = !waiting.is_empty();
        drop(closer);
        if waiting.is_empty() {
            return;
        }
        for fd in waiting {
            // For TCP this alone makes the close return at once; it fails for everything else.
            let off = nix::libc::linger { l_onoff: 0, l_linger: 0 };
            let _ = setsockopt(&fd, sockopt::Linger, &off);
            drop(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::wait_until;
    use std::io::{IoSlice, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    /// Seconds for which closing the socket of [`lingering`] blocks.
    const LINGER: i32 = 60;

    /// A TCP socket whose close blocks, and its peer, which does not read.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let mut socket =
            TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (peer, _) = listener.accept().expect("accept");
        socket.set_nonblocking(true).expect("set");
        let (junk, mut refused) = (vec![0; 1 << 20], 0);
        while refused < 5 {
            match socket.write(&junk) {
                Ok(written) if written > 0 => refused = 0,
                _ => {
                    refused += 1;
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        let on = nix::libc::linger { l_onoff: 1, l_linger: LINGER };
        setsockopt(&socket, sockopt::Linger, &on).expect("set");
        (socket.into(), peer)
    }

    fn does_not_block(act: impl FnOnce()) {
        let start = Instant::now();
        act();
        assert!(start.elapsed() < Duration::from_secs(LINGER as u64 / 2), "it blocked");
    }

    #[test]
    fn the_drop_of_a_lingering_socket_blocks_nothing() {
        let (socket, _peer) = lingering();
        does_not_block(|| drop(PeerFd::from(socket)));
    }

    #[test]
    fn a_socket_that_has_a_lingering_one_queued_ends_at_once_and_blocks_nothing() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let (socket, _peer) = lingering();
        let sent = sys::send_with_fds(theirs.as_fd(), &[IoSlice::new(b"x")], &[socket.as_fd()]);
        assert_eq!(sent.expect("send"), 1);
        drop(socket);
        does_not_block(|| drop(PeerSocket::from(ours)));
        assert_eq!(theirs.read(&mut [0]).expect("the end"), 0);
    }

    #[test]
    fn descriptors_sent_out_of_band_are_received_like_any() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let ours = PeerSocket::from(ours);
        let (socket, peer) = UnixStream::pair().expect("pair");
        let fds = [socket.as_raw_fd()];
        let rights = [nix::sys::socket::ControlMessage::ScmRights(&fds)];
        let sent = nix::sys::socket::sendmsg::<()>(
            theirs.as_raw_fd(),
            &[IoSlice::new(b"x")],
            &rights,
            nix::sys::socket::MsgFlags::MSG_OOB,
            None,
        );
        if sent.is_err() {
            return; // before Linux 5.15, or configured without it
        }
        drop(socket);
        sys::send(theirs.as_fd(), b"y").expect("send");
        let (mut bytes, mut fds) = (0, Vec::new());
        while let Ok(received) = sys::recv_with_fds(ours.as_fd(), &mut [0; 8]) {
            bytes += received.bytes;
            fds.extend(received.fds);
        }
        assert_eq!((bytes, fds.len()), (2, 1));
        drop(peer);
    }

    #[test]
    fn only_unix_stream_sockets_are_accepted() {
        let (a, _b) = UnixStream::pair().expect("pair");
        assert!(PeerSocket::accept(OwnedFd::from(a).into()).is_ok());
        let (c, _d) = std::os::unix::net::UnixDatagram::pair().expect("pair");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let file = std::fs::File::open("/dev/null").expect("open");
        for other in [OwnedFd::from(c), listener.into(), file.into()] {
            assert!(PeerSocket::accept(other.into()).is_err());
        }
    }

    #[test]
    fn of_one_connection_only_one_end_can_be_claimed() {
        let (a, b) = UnixStream::pair().expect("pair");
        let again = a.try_clone().expect("clone");
        let claimed = PeerSocket::claim(OwnedFd::from(a).into()).expect("nobody has it");
        assert!(PeerSocket::claim(OwnedFd::from(again).into()).is_ok(), "it is the same end");
        assert!(PeerSocket::claim(OwnedFd::from(b).into()).is_err());
        drop(claimed);
    }

    #[test]
    fn the_closer_ends_when_there_is_nothing_left() {
        drop(PeerFd::from(OwnedFd::from(std::fs::File::open("/dev/null").expect("open"))));
        wait_until("it has ended", || !closer().runs);
    }
}
