//! When a task begins to run.

use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// When and where a task began to run: what [`JoinHandle::started`](crate::JoinHandle::started)
/// gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    pub(super) pid: u32,
    pub(super) at: Instant,
}

impl Started {
    /// Returns the process that runs the task.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns when the task began, by the clock of its worker, which is the clock of
    /// [`Instant::now`]. If the task had begun before this was asked for and has no
    /// [`timeout`](crate::TaskBuilder::timeout), the moment of the question.
    pub fn at(&self) -> Instant {
        self.at
    }
}

/// Those who wait for a task to begin.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    news: Arc<watch::Sender<Option<Started>>>,
    /// Its worker is to tell.
    pub(super) is_due: bool,
}

impl Start {
    pub(super) fn new() -> Self {
        Self { news: Arc::new(watch::Sender::new(None)), is_due: false }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Started>> {
        self.news.subscribe()
    }

    /// The process that it was told to have begun in.
    pub(super) fn told(&self) -> Option<u32> {
        self.news.borrow().map(|told| told.pid)
    }

    /// Wakes whoever waits: not under the pool's lock.
    pub(super) fn tell(&self, started: Started) {
        self.news.send_replace(Some(started));
    }
}
