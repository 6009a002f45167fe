//! What a pool has done and how it stands, in numbers.

use crate::error::TaskErrorKind;
use crate::lock::Lock;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a pool stands and what it has done so far: see [`Pool::stats`](crate::Pool::stats).
///
/// What stands is of one moment. What is counted since the pool was built is counted apart from
/// that, so it may be a task or so ahead or behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Worker processes that are being started, `init` included.
    pub starting: usize,
    /// Ready workers without a task.
    pub idle: usize,
    /// Workers with one task or more in hand.
    pub busy: usize,
    /// Spares that are ready and wait to be needed ([`Builder::spares`](crate::Builder::spares)).
    pub spare: usize,
    /// Workers that get no more tasks, and whose process has not ended yet. They may still be at
    /// the tasks that they have. A process that the kernel cannot end stays here.
    pub leaving: usize,
    /// Tasks that wait for a worker, or for their next try.
    pub queued: usize,
    /// Tasks that a worker has in hand: of the sync ones in one worker the first runs and the
    /// others stand behind it; async ones run side by side.
    pub in_hand: usize,
    /// Tasks that have given a value, a task's own `Err` included.
    pub done: u64,
    /// Workers that have got ready.
    pub started: u64,
    pub(super) failed: HashMap<TaskErrorKind, u64>,
    pub(super) ended: HashMap<ExitReason, u64>,
}

impl Stats {
    /// Tasks that gave an error in place of a value. (One whose value cannot be decoded is *done*:
    /// that is seen only by who awaits it.)
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Tasks that failed in this way.
    #[must_use]
    pub fn failed_by(&self, kind: TaskErrorKind) -> u64 {
        self.failed.get(&kind).copied().unwrap_or(0)
    }

    /// All the ways in which tasks have failed, and how often; in no order.
    pub fn failures(&self) -> impl Iterator<Item = (TaskErrorKind, u64)> {
        self.failed.iter().map(|(kind, count)| (*kind, *count))
    }

    /// Worker processes that have gone, failed starts included.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.ended.values().sum()
    }

    /// Worker processes that have gone for this reason.
    #[must_use]
    pub fn ended_by(&self, why: ExitReason) -> u64 {
        self.ended.get(&why).copied().unwrap_or(0)
    }

    /// All the reasons for which workers have gone, and how often; in no order.
    pub fn ends(&self) -> impl Iterator<Item = (ExitReason, u64)> {
        self.ended.iter().map(|(why, count)| (*why, *count))
    }
}

/// Why a worker has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitReason {
    /// Not by the pool's doing: a crash, an exit within a task, a signal from somebody else.
    Died,
    /// It was killed to stop a task that ran in it.
    TaskStopped,
    /// It stood still: it began nothing of what it had been given, for as long as a time limit of
    /// one of those tasks, while no other worker could take them. It was killed, and they go to
    /// another.
    Unresponsive,
    /// It broke the protocol, and was killed.
    ProtocolViolation,
    /// It never got ready: the start was refused, failed, or took too long.
    StartFailed,
    /// The pool has ended, or has nothing left to do for it while it ends.
    Closed,
    /// It has run as many tasks as it may
    /// ([`Builder::max_tasks_per_worker`](crate::Builder::max_tasks_per_worker)).
    TasksServed,
    /// It was on duty as long as it may be
    /// ([`Builder::max_lifetime`](crate::Builder::max_lifetime)).
    TooOld,
    /// It had more memory than it may have
    /// ([`Builder::max_resident_memory`](crate::Builder::max_resident_memory)).
    MemoryMark,
    /// It was replaced by hand ([`Pool::recycle`](crate::Pool::recycle)).
    Recycled,
    /// It had nothing to do for too long ([`Builder::idle_timeout`](crate::Builder::idle_timeout)).
    Idle,
    /// There were to be fewer workers ([`Pool::resize`](crate::Pool::resize)).
    Resized,
    /// It was started to replace one that then was not to be replaced.
    Surplus,
}

/// What is counted while the pool works.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    done: AtomicU64,
    started: AtomicU64,
    /// Both are held only to count.
    failed: Lock<HashMap<TaskErrorKind, u64>>,
    ended: Lock<HashMap<ExitReason, u64>>,
}

impl Tally {
    pub(crate) fn done(&self, tasks: u64) {
        self.done.fetch_add(tasks, Ordering::Relaxed);
    }

    pub(crate) fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, kind: TaskErrorKind, tasks: u64) {
        *self.failed.lock().entry(kind).or_default() += tasks;
    }

    pub(crate) fn ended(&self, why: ExitReason) {
        *self.ended.lock().entry(why).or_default() += 1;
    }

    /// Enters what was counted.
    pub(crate) fn fill(&self, stats: &mut Stats) {
        stats.done = self.done.load(Ordering::Relaxed);
        stats.started = self.started.load(Ordering::Relaxed);
        stats.failed = self.failed.lock().clone();
        stats.ended = self.ended.lock().clone();
    }
}
