//! Unresponsive workers, which begin nothing of what they are given: rule 23. In the code they are
//! *deaf*.

use super::{Action, Carried, Core, DEAF, Flight, Memory, Mode, Progress, State, TaskKey, Worker};
use crate::pool::stats::ExitReason;
use std::time::Instant;

impl<M: Memory> Worker<M> {
    /// Whether something that it could have begun was not begun at two looks, of which this is one.
    /// What is large takes its time to arrive.
    fn overlooks(&mut self, is_large: impl Fn(TaskKey) -> bool) -> bool {
        let first = match self.mode {
            Mode::Sync => 1,
            Mode::Async => usize::MAX,
        };
        let mut twice = false;
        for at in 0..self.in_flight.len().min(first) {
            let Flight { claim, task, .. } = self.in_flight[at];
            if self.look(claim) == Progress::Queued && !is_large(task) {
                twice |= std::mem::replace(&mut self.in_flight[at].overlooked, true);
            }
        }
        twice
    }

    /// How many of its tasks have not begun.
    fn unbegun(&self) -> usize {
        self.in_flight.iter().filter(|flight| self.look(flight.claim) == Progress::Queued).count()
    }
}

impl<T: Carried, M: Memory> Core<T, M> {
    /// Rule 23.
    pub(super) fn relieve(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        let stuck = self.listen(now, actions);
        if stuck > 0 {
            self.want_workers(stuck, now, actions);
            if self.has_idle() {
                self.listen(now, actions); // a spare was there
            }
        }
    }

    /// Something that has not begun is in the hand of a worker that stands still: who is idle gets
    /// it at the next look.
    pub(super) fn somebody_is_stuck(&self) -> bool {
        let stands_still = |worker: &Worker<M>| {
            matches!(worker.state, State::Ready | State::Departing) && worker.deaf_since.is_some()
        };
        self.workers.iter().any(|(_, worker)| stands_still(worker) && worker.unbegun() > 0)
    }

    /// Looks whether workers begin what they are given. What a deaf one has not begun goes to
    /// whoever can take it; says how much nobody can.
    pub(super) fn listen(&mut self, now: Instant, actions: &mut Vec<Action<T>>) -> usize {
        self.listen_at = None;
        let mut stuck = 0;
        for key in self.workers.keys() {
            let Some(worker) = self.workers.get_mut(key) else { continue };
            if !matches!(worker.state, State::Ready | State::Departing)
                || worker.memory.is_none()
                || worker.in_flight.is_empty()
            {
                continue;
            }
            self.listen_at = Some(now + DEAF);
            if !worker.overlooks(|task| self.tasks.get(task).is_some_and(|task| task.large)) {
                // Async tasks may run for as long as they like, so nobody waits for an answer.
                if worker.mode == Mode::Async
                    && worker.deaf_since.is_some()
                    && worker.unbegun() == 0
                {
                    worker.deaf_since = None;
                    self.list(key);
                }
                continue;
            }
            let since = *worker.deaf_since.get_or_insert(worker.busy_since);
            let (mode, alone, all) = (worker.mode, worker.alone, worker.load);
            let limits = worker
                .in_flight
                .iter()
                .filter_map(|flight| self.tasks.get(flight.task)?.patience());
            let patience = limits.min().filter(|_| worker.none_begun());
            let unbegun = worker.unbegun();
            self.list(key);
            if self.place_well(mode, alone, now).is_some() {
                self.take_back(key, usize::MAX, actions);
            } else if patience.is_some_and(|limit| limit <= now.saturating_duration_since(since)) {
                // Else it has begun something just now.
                if self.take_back(key, usize::MAX, actions) == all {
                    self.blame(key, ExitReason::Unresponsive);
                    self.condemn(key, now, actions);
                }
            } else {
                stuck += unbegun;
            }
        }
        stuck
    }
}
