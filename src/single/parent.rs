//! A child's view of its parent.

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
use crate::coop::take_unit;
use crate::park::refuse_in_async_context;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
use crate::worker;

/// The process that started this one: what Python calls `multiprocessing.parent_process()`.
///
/// `None` in a process that was not started by this crate, in one that was
/// [detached](crate::ProcessBuilder::detach), and in a forked copy of one. In a pool's worker it is
/// the pool's application.
///
/// As a rule a child ends with its parent, so that it never sees it gone; one that was started with
/// [`daemon(false)`](crate::ProcessBuilder::daemon) does.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Process;
///
/// /// Goes on for as long as somebody is there to work for.
/// async fn serve() -> u32 {
///     let parent = procpool::parent().expect("started by procpool");
///     tokio::select! {
///         () = parent.exited() => 0,
///         () = async { /* a request has been served */ } => parent.pid(),
///     }
/// }
///
/// assert!(procpool::parent().is_none());
/// assert_eq!(Process::spawn(serve, ())?.await?, std::process::id());
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn parent() -> Option<Parent> {
    #[cfg(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(procpool_elsewhere)
    ))]
    return worker::parent_pid().map(|pid| Parent { pid });
    #[cfg(not(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(procpool_elsewhere)
    )))]
    None
}

/// The process that started this one; given by [`parent()`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parent {
    pid: u32,
}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
impl Parent {
    /// How long between two looks where no descriptor is left to be told by.
    const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

    /// Its process number, also after its end, when it may be another's. 0 if it is outside of this
    /// process's PID namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it exists. A parent that has ended is not alive, reaped or not. Never behind: it
    /// asks the kernel.
    ///
    /// A parent outside of this process's PID namespace is taken to be alive: the kernel tells
    /// nothing of it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        std::os::unix::process::parent_id() == self.pid
    }

    /// Waits for its end; at once if it has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled. Async functions run in one.
    pub async fn exited(&self) {
        take_unit().await;
        match worker::parent_pidfd(self.pid) {
            Ok(None) => return,
            Ok(Some(pidfd)) => {
                if let Ok(ended) = crate::reactor::readiness::watch_readable(pidfd)
                    && ended.readable().await.is_ok()
                {
                    return;
                }
            }
            Err(_) => {}
        }
        // No descriptors are left, or the parent is in another PID namespace.
        while self.is_alive() {
            tokio::time::sleep(Self::LOOK_AGAIN).await;
        }
    }

    /// Waits for its end on this thread: for sync functions.
    ///
    /// # Blocking
    ///
    /// Until the parent has ended.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, await [`exited`](Self::exited).
    #[track_caller]
    pub fn blocking_exited(&self) {
        refuse_in_async_context();
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let pidfd = match worker::parent_pidfd(self.pid) {
            Ok(None) => return,
            other => other.ok().flatten(),
        };
        while self.is_alive() {
            match &pidfd {
                // A signal may end the waiting early.
                Some(pidfd) => drop(poll(
                    &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
                    PollTimeout::NONE,
                )),
                None => std::thread::sleep(Self::LOOK_AGAIN),
            }
        }
    }
}

#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
)))]
impl Parent {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it exists.
    pub fn is_alive(&self) -> bool {
        true
    }

    /// Waits for its end.
    ///
    /// # Cancel safety
    ///
    /// Nothing happens by dropping it.
    pub async fn exited(&self) {
        std::future::pending().await
    }

    /// Waits for its end on this thread.
    pub fn blocking_exited(&self) {
        std::thread::park();
    }
}
