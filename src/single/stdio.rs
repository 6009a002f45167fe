//! What a standard stream of a process is to be.

use std::fs::File;

/// What a standard stream of a process is to be, given to
/// [`ProcessBuilder::stdin`](crate::ProcessBuilder::stdin) and its neighbours.
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
#[derive(Debug)]
pub struct Stdio(pub(super) Kind);

#[derive(Debug)]
pub(super) enum Kind {
    Inherit,
    Null,
    Piped,
    File(File),
}

impl Stdio {
    /// The application's own, as it is when the process is started; nothing if the application has
    /// closed it.
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    /// Nothing: there is nothing to read, and what is written is lost (`/dev/null`).
    pub fn null() -> Self {
        Self(Kind::Null)
    }

    /// A new pipe, whose other end is taken from the handle:
    /// [`Process::stdin`](crate::Process::stdin), [`stdout`](crate::Process::stdout),
    /// [`stderr`](crate::Process::stderr).
    pub fn piped() -> Self {
        Self(Kind::Piped)
    }
}

impl From<File> for Stdio {
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
