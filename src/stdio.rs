//! Where the standard streams of workers and processes lead: [`Stdio`].

use crate::lock::Lock;
use std::borrow::Cow;
use std::fmt;
use std::fs::File;

/// Where a standard stream of a worker or of a [`Process`](crate::Process) leads, as
/// [`std::process::Stdio`] says it of a command.
///
/// | | [`Builder`](crate::Builder) | [`ProcessBuilder`](crate::ProcessBuilder) |
/// |---|---|---|
/// | [`inherit`](Self::inherit), [`null`](Self::null), a `File`, an `OwnedFd` | yes | yes |
/// | [`piped`](Self::piped): a pipe, whose other end the handle gives | no | yes |
/// | [`lines`](Self::lines): a function that is called for each line | yes | no |
///
/// What is refused is [`InvalidOption`](crate::ErrorKind::InvalidOption) when the pool is built or
/// the process started.
///
/// ```
/// use procpool::{Pool, Stdio};
///
/// fn give_up() {
///     eprintln!("cannot go on");
///     std::process::abort();
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = Pool::builder()
///     .workers(1)
///     .stdout(Stdio::null())
///     .stderr(Stdio::lines(|line| println!("worker {}: {line}", line.pid())))
///     .build()?;
///
/// let error = pool.spawn(give_up, ()).await.unwrap_err();
/// assert_eq!(error.stderr_tail(), Some("cannot go on\n"));
/// # Ok(())
/// # }
/// ```
///
/// With the crate `tracing` it would be `|line| tracing::warn!(pid = line.pid(), "{line}")`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::{Process, Stdio};
/// use tokio::io::AsyncReadExt;
///
/// let mut child = Process::builder().stdout(Stdio::piped()).stderr(Stdio::null()).spawn(|| println!("hello"), ())?;
/// let mut text = String::new();
/// child.stdout().expect("piped").read_to_string(&mut text).await?;
/// assert_eq!(text, "hello\n");
/// child.await?;
/// # Ok(())
/// # }
/// ```
pub struct Stdio(pub(crate) Kind);

pub(crate) enum Kind {
    Inherit,
    Null,
    Piped,
    File(File),
    /// The callback is taken out by who calls it.
    Lines(Lock<Option<Callback>>),
}

pub(crate) type Callback = Box<dyn FnMut(&OutputLine<'_>) + Send>;

impl Stdio {
    /// The application's own stream, as it is when the process is started; nothing if the
    /// application has closed it.
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    /// Nothing: there is nothing to read, and what is written is lost (`/dev/null`).
    pub fn null() -> Self {
        Self(Kind::Null)
    }

    /// A new pipe, whose other end is taken from the handle:
    /// [`Process::stdin`](crate::Process::stdin), [`stdout`](crate::Process::stdout),
    /// [`stderr`](crate::Process::stderr). Not for workers of a pool.
    pub fn piped() -> Self {
        Self(Kind::Piped)
    }

    /// A function, line by line; for workers of a pool only. The lines of one worker come in their order. Whose task printed a line
    /// is not known, only which process did: a task may print without our knowing, and so may a
    /// thread or a program that it has started.
    ///
    /// The function runs on a thread that the pool has for this alone, so it may take its time, and
    /// block. It is all that reads what the workers print: while it does not return, a worker
    /// goes on until its pipe is full (64 KiB, pipe(7)), and then waits where it prints.
    /// Nothing else waits: other tasks, aborts, deaths, the pool's end. Should it never return, its
    /// thread never ends. A panic in it is caught; the next line comes all the same.
    ///
    /// What a worker has printed when it ends is delivered, also what is no whole line; then its
    /// pipe is closed, even if some process that it has left behind still holds it. (As long as
    /// the function does not return, no more than 1 MiB is kept of workers that have ended, see
    /// [`OutputLine::lost`].) Lines may come after the task's result, and shortly after
    /// [`shutdown`](crate::Pool::shutdown) has returned.
    ///
    /// The last of what a worker printed to its standard error is also part of the error of a task
    /// that it died of: [`TaskError::stderr_tail`](crate::TaskError::stderr_tail).
    ///
    /// What is printed by `print!` without a newline stands in the worker's own buffer, as in any
    /// program, until a line is full or [`flush`](std::io::Write::flush) is called; a worker
    /// that is killed loses it.
    pub fn lines(callback: impl FnMut(&OutputLine<'_>) + Send + 'static) -> Self {
        Self(Kind::Lines(Lock::new(Some(Box::new(callback)))))
    }
}

impl From<File> for Stdio {
    /// A file. All workers of a pool share it: it should be open for appending.
    fn from(file: File) -> Self {
        Self(Kind::File(file))
    }
}

#[cfg(unix)]
impl From<std::os::fd::OwnedFd> for Stdio {
    /// Any descriptor: a socket, or the end of a pipe that was taken from another process.
    fn from(descriptor: std::os::fd::OwnedFd) -> Self {
        Self(Kind::File(descriptor.into()))
    }
}

impl fmt::Debug for Stdio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Inherit => "Stdio::inherit()",
            Kind::Null => "Stdio::null()",
            Kind::Piped => "Stdio::piped()",
            Kind::File(_) => "Stdio::from(file)",
            Kind::Lines(_) => "Stdio::lines(callback)",
        })
    }
}

/// A line that a worker printed, as the function of [`Stdio::lines`] gets it. Its `Display` is
/// [`text`](Self::text).
#[derive(Clone, Copy, Debug)]
pub struct OutputLine<'a> {
    pub(crate) pid: u32,
    pub(crate) bytes: &'a [u8],
    pub(crate) is_whole: bool,
    pub(crate) lost: u64,
}

impl OutputLine<'_> {
    /// The worker's process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What was printed, without the newline.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// What was printed, without the newline; what is not UTF-8 is replaced by U+FFFD.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.bytes)
    }

    /// Whether a newline came. It did not if the worker ended within the line, or if the line is
    /// longer than 16 KiB: that comes in pieces, cut between characters, of which the last one
    /// is whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// How many bytes were lost before this line, in all the pool: of workers that had ended while
    /// the function did not return.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl fmt::Display for OutputLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text())
    }
}
