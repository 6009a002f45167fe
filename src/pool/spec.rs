//! What a pool is built with, and what a task is handed in with: plain data.

use super::core::{Mode, Rules, TaskKey, WINDOW_MAX};
use super::options::Options;
use crate::stdio::Stdio;
use crate::wire::message::{self, Callee};
use crate::wire::packet::Packet;
use crate::wire::value::names::Things;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// What a pool was built with.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) rules: Rules,
    pub(crate) surroundings: Surroundings,
    pub(crate) name: String,
    /// What each worker limits itself to.
    pub(crate) limits: Option<message::Limits>,
    /// Where what they print goes.
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    /// The largest body of a frame, in bytes.
    pub(crate) frame_limit: usize,
    /// Tasks that may wait for a worker.
    pub(crate) queue_limit: Option<usize>,
    /// Another program whose processes are the workers, and its arguments.
    pub(crate) program: Option<(OsString, Vec<OsString>)>,
    /// What each call begins with.
    pub(crate) options: Option<Arc<Options>>,
    /// The whole `INIT` frame.
    pub(crate) init: Option<Hook>,
    /// The whole `EXIT` frame.
    pub(crate) exit: Option<Hook>,
    /// What is started instead of this program: tests play a worker themselves.
    #[cfg(test)]
    pub(crate) launcher: Option<super::launch::Launcher>,
    #[cfg(test)]
    pub(crate) run_length: Option<usize>,
}

/// A function that every worker runs at its start or its end.
#[derive(Debug)]
pub(crate) struct Hook {
    pub(crate) frame: Packet,
    /// The shared objects that its arguments name; each worker is lent them.
    pub(crate) things: Things,
}

impl Config {
    /// Tasks that a worker may have in hand.
    pub(crate) fn slots(&self) -> usize {
        self.rules.concurrency.max(WINDOW_MAX as usize)
    }
}

/// What a worker process is started into.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// Variables to set, or to remove; of several for one name, the last counts.
    pub(crate) env: Vec<(OsString, Option<OsString>)>,
    pub(crate) env_clear: bool,
    pub(crate) current_dir: Option<PathBuf>,
    /// Each worker leads a process group.
    pub(crate) group: bool,
}

/// A task, as far as the engine needs to know it.
#[derive(Clone, Debug)]
pub(crate) struct TaskSpec {
    pub(crate) callee: Callee,
    pub(crate) arity: u32,
    pub(crate) mode: Mode,
    pub(crate) flags: u8,
    pub(crate) options: Option<Arc<Options>>,
    /// Cancels it.
    pub(crate) token: Option<CancellationToken>,
    pub(crate) function: &'static str,
}

/// A place in a bounded backlog.
#[derive(Debug)]
pub(crate) enum Room {
    /// Take one, or be refused.
    Needed,
    /// It was waited for (and there is none if the backlog has no bound).
    Held(Option<OwnedSemaphorePermit>),
    /// The caller has a bound of its own.
    NotNeeded,
}

/// What a submission gives: its number, and its key if it was taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) id: u64,
    pub(crate) key: Option<TaskKey>,
}
