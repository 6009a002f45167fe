//! The rules of a pool's shutdown. There are three ways, and a later one overrides an earlier one:
//!
//! * **`drain`**: new tasks are refused. The tasks that are there run to their end.
//! * **`drain_by`**: as `drain`, with a time limit. When that has passed:
//!   * a task that has not begun is settled as closed;
//!   * a running task is stopped as by an abort (rule 8), with the same grace;
//!   * a worker without tasks is retired, and has [`ABORT_GRACE`](super::ABORT_GRACE) to exit, or
//!     the pool's exit limit if that is shorter;
//!   * a worker that is still starting is killed.
//! * **`kill`**: every worker is killed. A task that has not begun is settled at once, a running
//!   task when its process has ended.
//!
//! The tasks that were cut off are recorded in [`CutOff`]. A task that answered in time is not.

use super::{Action, Carried, Core, Fate, Memory, Phase, State, Stop};
use crate::pool::stats::ExitReason;
use std::time::Instant;

/// The numbers of the tasks that an end has cut off: which of them had not begun, and which had, or
/// may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CutOff {
    pub(crate) unbegun: Vec<u64>,
    pub(crate) begun: Vec<u64>,
}

/// How far an end has come.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    /// A drain is cut short then.
    until: Option<Instant>,
    /// It has been.
    cutting: bool,
    pub(super) cut_off: CutOff,
}

impl<T: Carried, M: Memory> Core<T, M> {
    /// No more tasks; what is here runs to its end, or until that time.
    pub(crate) fn drain_by(&mut self, until: Instant, now: Instant, actions: &mut Vec<Action<T>>) {
        if !matches!(self.phase, Phase::Open | Phase::Draining) {
            return;
        }
        self.ending.until = Some(self.ending.until.map_or(until, |earlier| earlier.min(until)));
        self.deadline_moved = true;
        for key in self.workers.keys() {
            let limit = self.exit_limit(now);
            if let Some(worker) = self.workers.get_mut(key)
                && worker.state == State::Retiring
                && worker.why.is_some()
            // else it has hung up by itself, and is given what everybody is given
            {
                worker.end_by = worker.end_by.into_iter().chain(now.checked_add(limit)).min();
            }
        }
        self.phase = Phase::Draining;
        self.end_in_time(now, actions); // what it settles nobody is kept for
        self.want_end(now, actions);
    }

    /// What still ends by itself must have by then, or a moment later.
    pub(super) fn ending_by(&self) -> Option<Instant> {
        self.ending.until
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
        // All that is left has begun, or counts as begun.
        for key in self.tasks.keys() {
            self.stop(key, Stop::Close, now, actions);
        }
        for key in self.workers.keys() {
            let Some(worker) = self.workers.get(key) else { continue };
            let is_over = match worker.state {
                State::Starting { .. } => true,
                // It has hung up by itself. (One that was retired has the time that it was given.)
                State::Retiring => worker.in_flight.is_empty() && worker.why.is_none(),
                State::Spare | State::Ready | State::Departing | State::Doomed => false,
            };
            let is_free = matches!(worker.state, State::Spare | State::Ready | State::Departing)
                && worker.in_flight.is_empty();
            if is_over {
                self.blame(key, ExitReason::Closed);
                self.condemn(key, now, actions);
            } else if is_free {
                self.retire(key, ExitReason::Closed, now, actions);
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
    pub(super) fn settle_unbegun(&mut self, fate: &Fate, actions: &mut Vec<Action<T>>) -> usize {
        for key in self.workers.keys() {
            self.take_back(key, usize::MAX, actions);
        }
        let mut count = 0;
        let delayed: Vec<_> = self.delayed.iter().map(|(_, key)| *key).collect();
        for key in std::mem::take(&mut self.queue).into_iter().chain(delayed) {
            let Some(task) = self.forget(key) else { continue };
            count += task.items();
            if matches!(fate, Fate::Closed) {
                self.ending.cut_off.unbegun.extend(task.ids());
            }
            actions.push(Action::Settle(task.cargo, fate.clone()));
        }
        self.queued = 0;
        count
    }

    /// What an end has cut off so far.
    pub(crate) fn cut_off(&self) -> &CutOff {
        &self.ending.cut_off
    }
}
