//! The rules of a pool's end. There are three ways, and a later one overtakes an earlier one:
//!
//! ```text
//! drain     takes nothing more; what is here runs to its end
//! drain_by  the same, but at the limit it is cut short: what has not begun is settled, async tasks are asked (as by an
//!           abort, with the same grace), and the workers of sync tasks are killed
//! kill      everything is settled at once, and every worker killed
//! ```
//!
//! What was cut off is written down ([`CutOff`]); a task that answered in time is not.

use super::{ABORT_GRACE, Action, Core, Fate, Memory, Mode, Phase, Progress, State};
use crate::pool::ending::CutOff;
use crate::pool::stats::WorkerEnd;
use std::time::Instant;

/// How far an end has come.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    /// A drain is cut short then.
    until: Option<Instant>,
    /// It has been.
    cutting: bool,
    pub(super) cut_off: CutOff,
}

impl<T, M: Memory> Core<T, M> {
    /// No more tasks; what is here runs to its end, or until that time.
    pub(crate) fn drain_by(&mut self, until: Instant, now: Instant, actions: &mut Vec<Action<T>>) {
        if !matches!(self.phase, Phase::Open | Phase::Draining) {
            return;
        }
        self.ending.until = Some(self.ending.until.map_or(until, |earlier| earlier.min(until)));
        self.deadline_moved = true;
        self.drain(now, actions);
        self.end_in_time(now, actions);
    }

    /// When a drain is to be cut short.
    pub(super) fn cut_at(&self) -> Option<Instant> {
        self.ending.until.filter(|_| self.phase == Phase::Draining && !self.ending.cutting)
    }

    /// Time has passed.
    pub(super) fn end_in_time(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if self.cut_at().is_some_and(|until| until <= now) {
            self.cut_short(now, actions);
            self.want_end(now, actions);
        }
    }

    fn cut_short(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        self.ending.cutting = true;
        self.deadline_moved = true;
        self.settle_unbegun(&Fate::Closed, actions);
        for key in self.workers.keys() {
            let Some(worker) = self.workers.get_mut(key) else { continue };
            // All that is in its hand has begun, or counts as begun.
            let mut running = false;
            for flight in &worker.in_flight {
                let Some(task) = self.tasks.get_mut(flight.task) else { continue };
                task.cut = true;
                running |= worker.look(flight.claim) != Progress::Done;
                if std::mem::replace(&mut task.aborting, true) || worker.state == State::Doomed {
                    continue; // it has been asked before, or is being killed
                }
                worker.asked.push_back((now + ABORT_GRACE, flight.task));
                if worker.mode == Mode::Async {
                    actions.push(Action::Cancel(key, flight.task));
                }
            }
            if matches!(worker.state, State::Starting { .. }) || (running && worker.mode == Mode::Sync) {
                self.blame(key, WorkerEnd::Closed);
                self.condemn(key, actions);
            }
        }
    }

    /// Aborts all that has not begun, and says how many tasks that were.
    pub(crate) fn abort_unbegun(&mut self, now: Instant, actions: &mut Vec<Action<T>>) -> usize {
        let count = self.settle_unbegun(&Fate::Cancelled, actions);
        self.go_on(now, actions);
        count
    }

    /// Settles what waits, and what workers have in hand and have not begun.
    fn settle_unbegun(&mut self, fate: &Fate, actions: &mut Vec<Action<T>>) -> usize {
        for key in self.workers.keys() {
            self.take_back(key, usize::MAX);
        }
        let mut count = 0;
        for key in std::mem::take(&mut self.queue) {
            let Some(task) = self.tasks.remove(key) else { continue };
            if matches!(fate, Fate::Closed) {
                self.ending.cut_off.unbegun.push(task.id);
            }
            actions.push(Action::Settle(task.cargo, fate.clone()));
            count += 1;
        }
        self.queued = 0;
        count
    }

    /// An async task that was asked has answered that it was dropped: whether that was because of the end.
    pub(crate) fn was_cut_off(&mut self, id: u64) -> bool {
        if self.ending.cutting {
            self.ending.cut_off.begun.push(id);
        }
        self.ending.cutting
    }

    /// What an end has cut off so far.
    pub(crate) fn cut_off(&self) -> &CutOff {
        &self.ending.cut_off
    }
}
