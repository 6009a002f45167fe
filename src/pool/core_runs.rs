//! How batches are split: rule 24. In the code, a batch is a *run*.

#[cfg(test)]
use super::Run;
use super::{Action, Carried, Core, Fate, Flight, Memory, Slots, Task, TaskKey, Worker};

impl Flight {
    /// Whether this is its number, or that of an item of it.
    pub(super) fn has(&self, id: u64) -> bool {
        id.checked_sub(self.claim.id).is_some_and(|item| item < u64::from(self.items))
    }

    /// Nothing of it has been answered. What has, has begun, whatever its word says.
    pub(super) fn is_whole(&self) -> bool {
        self.left == self.items
    }
}

impl<T: Carried> Task<T> {
    /// How many it counts for: those of its items that have not been answered.
    pub(super) fn items(&self) -> usize {
        self.cargo.run().map_or(1, |run| run.left() as usize)
    }

    /// The numbers of these.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        let run = self.cargo.run();
        (0..run.map_or(1, |run| run.items()))
            .filter(move |item| run.is_none_or(|run| !run.is_answered(*item)))
            .map(|item| self.id + u64::from(item))
    }
}

impl<T: Carried, M: Memory> Core<T, M> {
    /// Parts a run: the items from this one on are a task of their own, which is nowhere yet. What
    /// is left of the run must never be sent again: an earlier frame of it may still be on its
    /// way to that worker, which would take all its items for its own.
    pub(super) fn part(tasks: &mut Slots<Task<T>>, key: TaskKey, from: u32) -> Option<TaskKey> {
        let task = tasks.get_mut(key)?;
        let rest = Task {
            cargo: task.cargo.part(from),
            id: task.id + u64::from(from),
            mode: task.mode,
            large: task.large,
            options: task.options.clone(),
            worker: None,
            stopping: None,
            delayed: None,
            deadline: None,
            attempt: task.attempt,
            moves: 0,
        };
        Some(tasks.insert(rest))
    }

    /// Takes back what a worker has not begun of a run that has begun, the last first, at most so
    /// many items: a task of its own, which is nowhere yet. Of what is left there, all may have
    /// been answered; see [`let_go_if_answered`](Self::let_go_if_answered).
    pub(super) fn cut(
        tasks: &mut Slots<Task<T>>,
        worker: &mut Worker<M>,
        at: usize,
        most: usize,
    ) -> Option<TaskKey> {
        let Flight { claim, task, items, .. } = *worker.in_flight.get(at)?;
        let known = tasks.get(task)?.cargo.run()?.known();
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let limit = worker.memory.as_ref()?.claims().cut(claim, items, known, most)?;
        let flight = &mut worker.in_flight[at];
        flight.items = limit;
        flight.left -= items - limit;
        worker.load -= (items - limit) as usize;
        Self::part(tasks, task, limit)
    }

    /// What of a run is not lost with its worker: what that had not begun. If it had `waited` as a
    /// whole, all but the first item, for only that can be to blame.
    pub(super) fn rest(
        tasks: &mut Slots<Task<T>>,
        worker: &mut Worker<M>,
        at: usize,
        waited: bool,
    ) -> Option<TaskKey> {
        let Flight { task, items, .. } = *worker.in_flight.get(at)?;
        match waited {
            true if items > 1 => Self::part(tasks, task, 1),
            true => None,
            false => Self::cut(tasks, worker, at, usize::MAX),
        }
    }

    /// A run of which nothing is left has ended, though nobody answers any more.
    pub(super) fn let_go_if_answered(
        tasks: &mut Slots<Task<T>>,
        worker: &mut Worker<M>,
        at: usize,
        actions: &mut Vec<Action<T>>,
    ) -> bool {
        let Some(Flight { left: 0, task, .. }) = worker.in_flight.get(at).copied() else {
            return false;
        };
        worker.let_go(at);
        if let Some(task) = tasks.remove(task) {
            actions.push(Action::Settle(task.cargo, Fate::Cancelled)); // which settles nothing
        }
        true
    }
}

/// What a task carries in tests: its number, and how it stands if it is a run.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) id: u64,
    pub(super) run: Option<Run>,
}

#[cfg(test)]
impl Carried for Parcel {
    fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    fn run_mut(&mut self) -> Option<&mut Run> {
        self.run.as_mut()
    }

    fn part(&mut self, from: u32) -> Self {
        Self { id: self.id + u64::from(from), run: self.run.as_mut().map(|run| run.part(from)) }
    }
}

#[cfg(test)]
#[path = "core_runs_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "core_runs_sim.rs"]
mod simulation;
