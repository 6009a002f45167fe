//! Stopping tasks, and time limits: rules 8 and 11.

use super::{
    ABORT_GRACE, Action, Carried, Core, Flight, Limit, Memory, Mode, Progress, State, Stop, Task,
    TaskKey, Way, Worker, WorkerKey,
};
use crate::pool::stats::ExitReason;
use std::time::Instant;

impl<T: Carried, M: Memory> Core<T, M> {
    /// The caller does not want the task any more. Nothing happens if it has ended.
    pub(crate) fn abort(&mut self, key: TaskKey, now: Instant, actions: &mut Vec<Action<T>>) {
        self.stop(key, Stop::Abort, now, actions);
        self.go_on(now, actions); // it may have held back others
    }

    /// Aborts every task whose cargo fits.
    pub(crate) fn abort_where(
        &mut self,
        fits: impl Fn(&T) -> bool,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        loop {
            let left = self
                .tasks
                .iter()
                .filter(|(_, task)| task.stopping != Some(Stop::Abort) && fits(&task.cargo));
            let keys: Vec<_> = left.map(|(key, _)| key).collect();
            if keys.is_empty() {
                break;
            }
            // It may part others: a run that stood behind one that is being stopped, and has begun
            // since then.
            for key in keys {
                self.stop(key, Stop::Abort, now, actions);
            }
        }
        // Only now: else tasks would be sent that are about to be aborted.
        self.go_on(now, actions);
    }

    /// Settles a task that has not begun; has one stopped that runs (rule 8).
    pub(super) fn stop(
        &mut self,
        key: TaskKey,
        stop: Stop,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Some(worker_key) = task.worker else {
            return self.forget_queued(key, stop.fate(), actions);
        };
        let stopping_before = task.stopping.is_some();
        // What the caller wants counts more than the end, that more than a limit, and that of the
        // whole more than that of one run.
        let by_the_whole = matches!(
            (task.stopping, stop),
            (Some(Stop::TimedOut(Limit::Timeout(_))), Stop::TimedOut(Limit::Deadline(_))) /* else it would be tried again */
        );
        if !stopping_before
            || by_the_whole
            || stop == Stop::Abort
            || (stop == Stop::Close && task.stopping != Some(Stop::Abort))
        {
            task.stopping = Some(stop);
        }
        let (way, yields) = (task.way_to_stop(), task.cargo.yields());
        let Some(worker) = self.workers.get_mut(worker_key) else { return };
        let Some(at) = worker.in_flight.iter().position(|flight| flight.task == key) else {
            return;
        };
        let Flight { claim, done, .. } = worker.in_flight[at];
        if worker.revoke(claim) == Progress::Queued {
            worker.let_go(at);
            worker.post.served -= 1;
            if let Some(task) = self.forget(key) {
                actions.push(Action::Settle(task.cargo, stop.fate()));
            }
            return self.emptied(worker_key);
        }
        if let Some(rest) = Self::cut(&mut self.tasks, worker, at, usize::MAX) {
            let answered = Self::let_go_if_answered(&mut self.tasks, worker, at, actions);
            if let Some(task) = self.forget(rest) {
                actions.push(Action::Settle(task.cargo, stop.fate()));
            }
            self.list(worker_key);
            if answered {
                return self.emptied(worker_key);
            }
        }
        let Some(worker) = self.workers.get_mut(worker_key) else { return };
        // One that was seen done has its time for the reply, which a grace must not cut short.
        if stopping_before || done || worker.state == State::Doomed {
            return;
        }
        let until = match way {
            Way::Kill => None,
            Way::Ask(grace) => {
                if let Some(memory) = &worker.memory {
                    memory.claims().ask(claim);
                }
                if worker.mode == Mode::Async || yields {
                    actions.push(Action::Ask(worker_key, key));
                }
                // What the clock cannot hold is for ever.
                Some(now.checked_add(grace))
            }
            Way::Drop => {
                worker.in_flight[at].dropping = true;
                actions.push(Action::Cancel(worker_key, key));
                Some(Some(now + ABORT_GRACE))
            }
        };
        if let Some(until) = until {
            until.into_iter().for_each(|until| worker.give_until(until, key));
            self.deadline_moved = true;
            return;
        }
        if worker.look(claim) != Progress::Done {
            self.take_back(worker_key, usize::MAX, actions);
        }
        let Some(worker) = self.workers.get_mut(worker_key) else { return };
        if worker.look(claim) == Progress::Done {
            // Its reply is on its way; one that only says so has until then.
            worker
                .in_flight
                .iter_mut()
                .filter(|flight| flight.task == key)
                .for_each(|flight| flight.done = true);
            worker.give_until(now + ABORT_GRACE, key);
            self.deadline_moved = true;
        } else {
            worker.killed_for = Some(key);
            self.blame(worker_key, ExitReason::TaskStopped);
            self.condemn(worker_key, now, actions);
        }
    }

    /// Workers that should have answered a task that was stopped by now, and not already by then
    /// (rule 8). What they have committed is to be taken in before [`Core::tick`]: else one
    /// that did answer in time is killed, and with it a task that it has begun since.
    pub(crate) fn overdue(&self, then: Option<Instant>, now: Instant) -> Vec<WorkerKey> {
        let is_new =
            |(by, _): &(Instant, TaskKey)| *by <= now && then.is_none_or(|then| then < *by);
        let is_overdue =
            |worker: &Worker<M>| worker.state != State::Doomed && worker.asked.iter().any(is_new);
        self.workers.iter().filter(|(_, worker)| is_overdue(worker)).map(|(key, _)| key).collect()
    }

    /// A worker's time is over. `false`: the tasks that should have been answered have been done
    /// after all, just now; each is given another grace, once, for its reply to come. Or they
    /// are async and were only asked so far: now they are dropped.
    pub(super) fn is_given_up(
        &mut self,
        key: WorkerKey,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) -> bool {
        loop {
            let Some(worker) = self.workers.get(key) else { return false };
            let Some((_, task)) = worker.asked.front().copied().filter(|(by, _)| *by <= now) else {
                return worker.deadline(false).is_some_and(|by| by <= now);
            };
            if worker.mode == Mode::Sync && worker.state != State::Doomed {
                self.take_back(key, usize::MAX, actions); // as in `stop`: what stands behind it begins if it is done now
            }
            let grace = self.tasks.get(task).map_or(ABORT_GRACE, Task::drop_grace);
            let Some(worker) = self.workers.get_mut(key) else { return false };
            let excused =
                worker.in_flight.iter().position(|flight| flight.task == task && !flight.done);
            let is_done = |at: &usize| worker.look(worker.in_flight[*at].claim) == Progress::Done;
            let Some(at) = excused.filter(is_done) else {
                if worker.mode == Mode::Async
                    && let Some(flight) = worker
                        .in_flight
                        .iter_mut()
                        .find(|flight| flight.task == task && !flight.dropping && !flight.done)
                {
                    flight.dropping = true;
                    actions.push(Action::Cancel(key, task));
                    worker.asked.pop_front();
                    worker.give_until(now + grace, task);
                    self.deadline_moved = true;
                    continue;
                }
                worker.killed_for = Some(task);
                worker.why.get_or_insert(ExitReason::TaskStopped);
                return true;
            };
            worker.in_flight[at].done = true;
            worker.asked.pop_front();
            worker.give_until(now + ABORT_GRACE, task);
            self.deadline_moved = true;
        }
    }

    /// Rule 11, for the tasks of one worker.
    pub(super) fn look_at_limits(
        &mut self,
        key: WorkerKey,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        if worker.look_at.is_none_or(|at| now < at) {
            return;
        }
        let (mut over, mut next) = (Vec::new(), None::<Instant>);
        for at in 0..worker.in_flight.len() {
            let Flight { claim, task, begun, done, .. } = worker.in_flight[at];
            let Some(task_in) = self.tasks.get(task).filter(|task| task.stopping.is_none()) else {
                continue;
            };
            let Some(timeout) = task_in.timeout().filter(|_| !done) else { continue };
            let progress = worker.look(claim);
            // What has begun does not wait again, and nobody but us takes a task back: the worker
            // has touched its word.
            let ends = if progress == Progress::Queued && begun.is_none() {
                now.checked_add(timeout)
            } else {
                let noted = worker
                    .memory
                    .as_ref()
                    .and_then(|memory| self.clock.at(memory.claims().started_at(claim)));
                let seen = begun.unwrap_or(now);
                worker.in_flight[at].begun = Some(seen);
                noted.map_or(seen, |noted| noted.min(seen)).checked_add(timeout)
            };
            let Some(ends) = ends else { continue }; // never
            if ends <= now && progress == Progress::Done {
                // It has ended in time, so it is not stopped; but a worker that only says so has no
                // longer than this.
                worker.in_flight[at].done = true;
                worker.give_until(now + ABORT_GRACE, task);
                self.deadline_moved = true;
            } else if ends <= now {
                over.push((task, timeout));
            } else {
                next = Some(next.map_or(ends, |next| next.min(ends)));
            }
        }
        worker.look_at = next;
        for (task, timeout) in over {
            self.stop(task, Stop::TimedOut(Limit::Timeout(timeout)), now, actions);
        }
    }
}
