//! Where what the workers print goes, as the builder is told.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::sync::Mutex;

/// Where what the workers print goes, given to [`Builder::stdout`](crate::Builder::stdout) and
/// [`Builder::stderr`](crate::Builder::stderr).
///
/// ```
/// use procpool::{Output, Pool};
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
///     .stdout(Output::null())
///     .stderr(Output::lines(|line| println!("worker {}: {line}", line.pid())))
///     .build()?;
///
/// let error = pool.spawn(give_up, ()).await.unwrap_err();
/// assert_eq!(error.stderr_tail(), Some("cannot go on\n"));
/// # Ok(())
/// # }
/// ```
///
/// With the crate `tracing` it would be `|line| tracing::warn!(pid = line.pid(), "{line}")`.
pub struct Output(pub(super) Kind);

pub(super) enum Kind {
    Inherit,
    Null,
    File(File),
    /// The callback is taken out by who calls it.
    Lines(Mutex<Option<Callback>>),
}

pub(super) type Callback = Box<dyn FnMut(&OutputLine<'_>) + Send>;

impl Output {
    /// To the application's own stream, as it is when the worker is started; nowhere if the
    /// application has closed it. The default.
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    /// Nowhere (`/dev/null`).
    pub fn null() -> Self {
        Self(Kind::Null)
    }

    /// To a function, line by line: those of one worker in their order. Whose task printed a line
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
        Self(Kind::Lines(Mutex::new(Some(Box::new(callback)))))
    }
}

impl From<File> for Output {
    /// To a file, which all workers share: it should be open for appending.
    fn from(file: File) -> Self {
        Self(Kind::File(file))
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Inherit => "Output::inherit()",
            Kind::Null => "Output::null()",
            Kind::File(_) => "Output::from(file)",
            Kind::Lines(_) => "Output::lines(callback)",
        })
    }
}

/// A line that a worker printed, as the function of [`Output::lines`] gets it. Its `Display` is
/// [`text`](Self::text).
#[derive(Clone, Copy, Debug)]
pub struct OutputLine<'a> {
    pub(super) pid: u32,
    pub(super) bytes: &'a [u8],
    pub(super) is_whole: bool,
    pub(super) lost: u64,
}

impl OutputLine<'_> {
    /// The worker's process number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What was printed, without the newline.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// What was printed, without the newline; what is not UTF-8 is replaced by U+FFFD.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.bytes)
    }

    /// Whether a newline came. It did not if the worker ended within the line, or if the line is
    /// longer than 16 KiB: that comes in pieces, cut between characters, of which the last one
    /// is whole.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// How many bytes were lost before this line, in all the pool: of workers that had ended while
    /// the function did not return.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl fmt::Display for OutputLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text())
    }
}
