//! Bare child processes of this same program, without any pool: what the pool is measured against.

use crate::Result;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net;
use std::process::{Child, Command, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The first argument of such a child; the second says what it does.
pub(crate) const CHILD: &str = "--child";
const ECHO: &str = "echo";
const BYTE: &str = "byte";
const ZYGOTE: &str = "zygote";

/// Bytes of a frame with a call of `identity`, and of its reply, while the task's number and the
/// argument lie between 256 and 65,535 (found with `strace -e trace=sendto`).
const CALL: usize = 12;
const REPLY: usize = 10;

pub(crate) fn run(what: &str) -> Result<()> {
    match what {
        ECHO => echo(),
        BYTE => Ok(std::io::stdout().write_all(b"!")?),
        ZYGOTE => zygote(),
        other => Err(format!("no such child: {other}").into()),
    }
}

fn command(what: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([CHILD, what]);
    Ok(command)
}

// ---- round trips

/// The child's side: each call is answered, until the other side closes.
fn echo() -> Result<()> {
    let socket = net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut socket = wrap(socket)?;
        while read_frame(&mut socket, CALL).await? {
            socket.write_all(&[0; REPLY]).await?;
        }
        Ok(())
    })
}

/// A tokio socket with a child at its other end that answers.
pub(crate) struct Echo {
    socket: UnixStream,
    child: Child,
}

impl Echo {
    pub(crate) fn start() -> Result<Self> {
        let (ours, theirs) = net::UnixStream::pair()?;
        let child = command(ECHO)?.stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
        Ok(Self { socket: wrap(ours)?, child })
    }

    /// There and back.
    pub(crate) async fn lap(&mut self) -> Result<()> {
        self.socket.write_all(&[0; CALL]).await?;
        if !read_frame(&mut self.socket, REPLY).await? {
            return Err("the child has gone".into());
        }
        Ok(())
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        drop(self.socket);
        ended_well(&mut self.child)
    }
}

fn wrap(socket: net::UnixStream) -> Result<UnixStream> {
    socket.set_nonblocking(true)?;
    Ok(UnixStream::from_std(socket)?)
}

/// Reads a frame of that length; `false` at the end. There is space for more, as in any reader of
/// frames: so tokio sees a short read and does not try again before it waits, which makes the bare
/// lap shorter by a system call on each side.
async fn read_frame(socket: &mut UnixStream, len: usize) -> Result<bool> {
    let (mut space, mut got) = ([0; 4096], 0);
    while got < len {
        match socket.read(&mut space).await? {
            0 => return Ok(false),
            n => got += n,
        }
    }
    Ok(true)
}

// ---- starts

/// Children that write a byte first thing in `main`.
pub(crate) struct Starts(Vec<Child>);

impl Starts {
    /// Starts so many side by side, and waits for the first byte of each.
    pub(crate) fn start(count: usize) -> Result<Self> {
        let mut command = command(BYTE)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut children = (0..count).map(|_| command.spawn()).collect::<Result<Vec<_>, _>>()?;
        for child in &mut children {
            let stdout = child.stdout.as_mut().ok_or("no pipe")?;
            stdout.read_exact(&mut [0])?;
        }
        Ok(Self(children))
    }

    pub(crate) fn reap(mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(ended_well)
    }
}

// ---- forks

/// A bare template: forks for each byte that comes; the copy writes a byte, and ends.
#[expect(unsafe_code, reason = "it forks")]
fn zygote() -> Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    use nix::unistd::{ForkResult, fork};
    let mut socket = net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    // SAFETY: no handler; the kernel reaps the copies.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    while socket.read(&mut [0])? > 0 {
        // SAFETY: this process has one thread.
        if let ForkResult::Child = unsafe { fork() }? {
            socket.write_all(b"!")?;
            // SAFETY: ends the copy.
            unsafe { nix::libc::_exit(0) }
        }
    }
    Ok(())
}

/// A bare template, from its parent.
pub(crate) struct Zygote {
    socket: net::UnixStream,
    child: Child,
}

impl Zygote {
    pub(crate) fn start() -> Result<Self> {
        let (ours, theirs) = net::UnixStream::pair()?;
        let child = command(ZYGOTE)?.stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
        Ok(Self { socket: ours, child })
    }

    /// Milliseconds from a request to the first byte of the copy.
    pub(crate) fn lap(&mut self) -> Result<f64> {
        let start = std::time::Instant::now();
        self.socket.write_all(b"?")?;
        self.socket.read_exact(&mut [0])?;
        Ok(crate::report::seconds_since(start) * 1e3)
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        drop(self.socket);
        ended_well(&mut self.child)
    }
}

fn ended_well(child: &mut Child) -> Result<()> {
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(format!("a child: {status}").into()) }
}
