//! The machine where there are no processes of ours: none can be started, and so nothing else is
//! ever asked.

use super::builder::Order;
use crate::error::{Error, TaskError, Why};
use crate::reactor::once_event::OnceEvent;
use crate::wire::value::names::Encoded;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) status: Option<ExitStatus>,
    pub(super) outcome: Result<Encoded, TaskError>,
}

/// There is none.
#[derive(Debug)]
pub(super) enum Machine {}

#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

pub(super) fn spawn(_: Order) -> Result<(Arc<Machine>, Streams), Error> {
    Err(Why::Unsupported.into())
}

pub(super) fn detach(_: Order) -> Result<Arc<OnceEvent<Result<u32, Error>>>, Error> {
    Err(Why::Unsupported.into())
}

impl Machine {
    pub(super) fn is_forked_copy() -> bool {
        false
    }

    pub(super) fn pid(&self) -> u32 {
        match *self {}
    }

    pub(super) fn function(&self) -> &'static str {
        match *self {}
    }

    pub(super) fn has_ended(&self) -> bool {
        match *self {}
    }

    pub(super) fn exit_status(&self) -> Option<ExitStatus> {
        match *self {}
    }

    pub(super) fn kill(&self) -> Result<(), Error> {
        match *self {}
    }

    pub(super) fn terminate(&self) -> Result<(), Error> {
        match *self {}
    }

    pub(super) fn signal(&self, _: i32) -> Result<(), Error> {
        match *self {}
    }

    pub(super) fn started(&self) -> &OnceEvent<Result<u32, Error>> {
        match *self {}
    }

    pub(super) fn ended(&self) -> &OnceEvent<Ended> {
        match *self {}
    }
}

/// The pipe to a process's standard input, where there are processes.
#[derive(Debug)]
pub struct ChildStdin(Infallible);

impl AsyncWrite for ChildStdin {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        match self.0 {}
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0 {}
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0 {}
    }
}

/// The pipe from a process's standard output, where there are processes.
#[derive(Debug)]
pub struct ChildStdout(Infallible);

/// The pipe from a process's standard error, where there are processes.
#[derive(Debug)]
pub struct ChildStderr(Infallible);

impl AsyncRead for ChildStdout {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.0 {}
    }
}

impl AsyncRead for ChildStderr {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.0 {}
    }
}
