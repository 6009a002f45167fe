//! What drives a pool, a manager and a process of its own, and what waits for them.
//!
//! | file | holds |
//! |---|---|
//! | `drive` | [`Reactor`]: an epoll set, a timer, and the rule that one thread at a time drives; [`Source`]: what is driven |
//! | `supervisor` | the thread that reaps orphans, and drives what no runtime drives |
//! | `launcher` | the threads that start children |
//! | `readiness` | descriptors that a tokio runtime watches |
//! | `once_event` | a value that is set once, and that any number of threads and tasks wait for |
//! | `mailbox` | what many put in, and one reader takes out |
//!
//! The last two are there on every platform.

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod drive;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
pub(crate) mod launcher;
pub(crate) mod mailbox;
pub(crate) mod once_event;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
pub(crate) mod readiness;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
pub(crate) mod supervisor;

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
pub(crate) use drive::{Deadline, Pass, Reactor, Source, Token, drive_in_runtime, new_timer, set};
