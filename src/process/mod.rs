//! A child process and everything its owner needs: how it is started, signalled and reaped, what
//! tells a forked copy from the process that was started, and the memory that is shared with a
//! worker.
//!
//! | file | holds |
//! |---|---|
//! | `sys` | the system calls that `nix` does not wrap, or wraps in a way that loses something |
//! | `peer_fd` | descriptors of other processes, whose closing may block |
//! | `thread` | threads of the library's own |
//! | `fork` | whether this process is a forked copy |
//! | `inherited` | workers left from the program that ran in this process before an exec |
//! | `memory` | the sealed memory that the application shares with one worker |
//! | `worker_memory` | what stands where in that memory |
//! | `death_note` | what a dying worker can still say, in that memory |
//! | `oom_kills` | how often the kernel has killed for want of memory |
//! | `privileges` | whether a fresh start of this program would have raised privileges |
//! | `resident` | how much memory a process has |
//! | `clone` | the fork of a template, whose copy is a child of the application |
//! | `child` | the owner of one child: signals and the one reaping |
//! | `standard` | the standard streams that a child is given |
//! | `spawn` | this very program, started afresh |
//!
//! Nothing here knows tokio, a wire or a pool. No call here waits for a child or for a socket.

mod child;
pub(crate) mod clone;
mod death_note;
pub(crate) mod fork;
pub(crate) mod inherited;
mod memory;
pub(crate) mod oom_kills;
mod peer_fd;
pub(crate) mod privileges;
mod resident;
mod spawn;
pub(crate) mod standard;
pub(crate) mod sys;
pub(crate) mod thread;
mod worker_memory;

#[cfg(test)]
pub(crate) mod testing;

pub(crate) use child::{Child, Exit, Orphan, set_orphan_sink};
pub(crate) use death_note::DeathNote;
#[cfg(feature = "sync")]
pub(crate) use memory::{MemoryError, SharedMemory};
pub(crate) use peer_fd::{PeerFd, PeerSocket};
pub(crate) use resident::{is_stopped, resident};
pub(crate) use spawn::{Spawn, find_program, spawn_with_stdout};
pub(crate) use sys::is_set_uid;
pub(crate) use worker_memory::WorkerMemory;
