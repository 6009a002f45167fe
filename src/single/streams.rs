//! Our ends of the pipes to a process.

use super::builder::Order;
use crate::process::standard;
use crate::stdio::{Kind, Stdio};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};

/// Our ends of what is piped.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

/// The process's ends.
pub(super) struct Theirs {
    /// `None`: nothing.
    pub(super) stdin: Option<OwnedFd>,
    /// `None`: ours, by inheritance.
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: OwnedFd,
}

/// Opens the streams as they are ordered; all are closed at an exec, but for the process's own.
pub(super) fn open_streams(order: &mut Order) -> io::Result<(Streams, Theirs)> {
    let mut ours = Streams::default();
    let kind = |stream: &mut Stdio| std::mem::replace(&mut stream.0, Kind::Null);
    let stdin = match kind(&mut order.stdin) {
        Kind::Null => None,
        Kind::Inherit => Some(standard::stdin()?),
        Kind::File(file) => Some(file.into()),
        Kind::Piped => {
            let (theirs, end) = io::pipe()?;
            ours.stdin = Some(ChildStdin { end: End::Fresh(end.into()) });
            Some(theirs.into())
        }
        Kind::Lines(_) => unreachable!("refused by ProcessBuilder"),
    };
    let stdout = match kind(&mut order.stdout) {
        Kind::Null => Some(standard::null()?),
        Kind::Inherit => None,
        Kind::File(file) => Some(file.into()),
        Kind::Piped => {
            let (end, theirs) = io::pipe()?;
            ours.stdout = Some(ChildStdout { end: End::Fresh(end.into()) });
            Some(theirs.into())
        }
        Kind::Lines(_) => unreachable!("refused by ProcessBuilder"),
    };
    let stderr = match kind(&mut order.stderr) {
        Kind::Null => standard::null()?,
        Kind::Inherit => standard::stderr()?,
        Kind::File(file) => file.into(),
        Kind::Piped => {
            let (end, theirs) = io::pipe()?;
            ours.stderr = Some(ChildStderr { end: End::Fresh(end.into()) });
            theirs.into()
        }
        Kind::Lines(_) => unreachable!("refused by ProcessBuilder"),
    };
    Ok((ours, Theirs { stdin, stdout, stderr }))
}

/// One end of a pipe: a plain descriptor until a runtime watches it.
#[derive(Debug)]
enum End<T> {
    Fresh(OwnedFd),
    Watched(T),
    /// The runtime would not watch it.
    Lost,
}

impl<T> End<T> {
    /// Has the runtime that polls now watch it.
    fn watched(&mut self, watch: impl FnOnce(OwnedFd) -> io::Result<T>) -> io::Result<Pin<&mut T>>
    where
        T: Unpin,
    {
        if let Self::Fresh(_) = self
            && let Self::Fresh(descriptor) = std::mem::replace(self, Self::Lost)
        {
            *self = Self::Watched(watch(descriptor)?);
        }
        match self {
            Self::Watched(pipe) => Ok(Pin::new(pipe)),
            _ => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the pipe could not be watched before",
            )),
        }
    }

    fn into_owned_fd(
        self,
        into_blocking_fd: impl FnOnce(T) -> io::Result<OwnedFd>,
    ) -> io::Result<OwnedFd> {
        match self {
            Self::Fresh(descriptor) => Ok(descriptor),
            Self::Watched(pipe) => into_blocking_fd(pipe),
            Self::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// The pipe to a process's standard input, taken by [`Process::stdin`](crate::Process::stdin).
///
/// Dropping it closes the pipe: the process reads its end. Shutting it down does not.
///
/// # Panics
///
/// When it is first written to outside a tokio runtime with I/O enabled. Without one, use
/// [`into_owned_fd`](Self::into_owned_fd).
#[derive(Debug)]
pub struct ChildStdin {
    end: End<Sender>,
}

impl ChildStdin {
    /// The pipe itself, in blocking mode: for `std::fs::File`, or to be given to another process.
    ///
    /// # Errors
    ///
    /// When the mode cannot be changed.
    pub fn into_owned_fd(self) -> io::Result<OwnedFd> {
        self.end.into_owned_fd(Sender::into_blocking_fd)
    }
}

impl AsyncWrite for ChildStdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.end.watched(Sender::from_owned_fd)?.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

macro_rules! reader {
    ($Name:ident, $method:literal, $stream:literal) => {
        #[doc = concat!("The pipe from a process's standard ", $stream, ", taken by [`Process::", $method, "`](crate::Process::", $method, ").")]
        ///
        /// It ends when the process and all that inherited the stream from it have closed it.
        ///
        /// # Panics
        ///
        /// When it is first read from outside a tokio runtime with I/O enabled. Without one, use
        /// [`into_owned_fd`](Self::into_owned_fd).
        #[derive(Debug)]
        pub struct $Name {
            end: End<Receiver>,
        }

        impl $Name {
            /// The pipe itself, in blocking mode: for `std::fs::File`, or to be given to another process.
            ///
            /// # Errors
            ///
            /// When the mode cannot be changed.
            pub fn into_owned_fd(self) -> io::Result<OwnedFd> {
                self.end.into_owned_fd(Receiver::into_blocking_fd)
            }
        }

        impl AsyncRead for $Name {
            fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                self.end.watched(Receiver::from_owned_fd)?.poll_read(cx, buffer)
            }
        }
    };
}
reader!(ChildStdout, "stdout", "output");
reader!(ChildStderr, "stderr", "error");
