//! The rules of who is on the staff: how many workers there are, and why each of them goes.

use super::{Core, Memory, State, WorkerKey};
use crate::pool::stats::{Stats, WorkerEnd};

impl<T, M: Memory> Core<T, M> {
    /// Notes why a worker goes. The first reason counts.
    pub(super) fn blame(&mut self, key: WorkerKey, why: WorkerEnd) {
        if let Some(worker) = self.workers.get_mut(key) {
            worker.why.get_or_insert(why);
        }
    }

    /// Why a worker goes that has just ended; `None`: not by our doing.
    pub(crate) fn why_ended(&self, key: WorkerKey) -> Option<WorkerEnd> {
        self.workers.get(key)?.why
    }

    /// Counts workers and open tasks.
    pub(crate) fn census(&self) -> Stats {
        let mut stats = Stats { queued: self.queued, in_hand: self.tasks.len() - self.queued, ..Stats::default() };
        for (_, worker) in self.workers.iter() {
            let place = match worker.state {
                State::Starting { .. } => &mut stats.starting,
                State::Ready if worker.in_flight.is_empty() => &mut stats.idle,
                State::Ready => &mut stats.busy,
                State::Retiring | State::Doomed => &mut stats.leaving,
            };
            *place += 1;
        }
        stats
    }
}
