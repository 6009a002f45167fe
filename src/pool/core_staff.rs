//! The rules of the worker set: how many workers there are, which of them are given tasks, and when
//! each of them leaves.
//!
//! In the code, the worker set is the [`Staff`], a worker slot is a *place*, and a standby is a
//! *spare*.
//!
//! 15. **Worker slots.** At most `workers` workers hold a worker slot, and only they are given
//!     tasks. Beside them there may be *standbys*: workers that are ready and wait for a slot. A
//!     worker holds its slot until it is retired, its process has ended, it is abandoned (rule 22),
//!     or the slot is taken from it (rules 16, 18 and 20).
//! 16. **Replacement without interruption.** A worker that is to go although it could serve on (it
//!     is too old, has too much memory, or is recycled by hand) serves until a standby is ready.
//!     The standby takes its slot. Then the old worker departs: what it has not begun is revoked,
//!     it is given no more tasks, and it leaves when it has none in flight. Standbys are ordered
//!     for a quarter of the workers at a time, rounded up.
//! 17. **Task limit.** A worker that was given the last task that it may run (`max_tasks`) departs
//!     at once. It keeps its slot, and leaves when it has no task in flight and has been replaced;
//!     in a pool that drains, also when no task is queued. It cannot serve meanwhile, so its
//!     replacement is ordered at once, whatever other replacements are under way.
//! 18. **Standbys fill vacancies.** A task that finds no idle worker gets a standby, if one is
//!     ready and a slot is vacant. For a standby, the slot of a worker that is being killed, or
//!     that has closed its side, counts as vacant. So a worker that goes is replaced without
//!     waiting for a start. Then another standby is ordered. A standby that is no longer needed,
//!     ready or still starting, takes a vacant slot or leaves.
//! 19. **Idle limit.** A worker that is idle for longer than the idle limit leaves, as long as more
//!     than the minimum number of workers are ready. Workers are started only when tasks need them,
//!     the minimum too, unless all are requested (rule 6).
//! 20. **Shrinking.** When the number of workers is reduced, workers lose their slots in this
//!     order: those that leave anyway; those that are not ready yet (they become standbys); idle
//!     ones; those with the fewest tasks in flight. They depart without a replacement.
//! 21. **Restart budget.** A worker that becomes ready, is given no task and ends by itself costs
//!     no task. So no error would report it, and it would be replaced for ever. Such deaths are
//!     counted. If there are more of them within a period than the budget allows, the pool *halts*:
//!     it starts no worker, and when no worker is left that serves, every task fails with the
//!     cause. Any reply to a task, or [`Core::revive`], ends the halt. Other deaths do not count.
//!     Those of workers that were given tasks are bounded by the number of tasks that are submitted
//!     (rule 7), and reported by their errors. Failed starts have rule 9. After a death that
//!     counts, no standby is started for a pause of at most [`PAUSE_MAX`].
//! 22. **Abandoned processes.** A process that has not ended [`KILL_LIMIT`] after its kill is one
//!     that the kernel cannot end. It is abandoned: what it had begun ends as unkillable, what it
//!     had not begun runs elsewhere, its slot is vacant, and the end of the pool does not wait for
//!     it. Its entry stays until the process has ended.

use super::{
    Action, BACKOFF_MIN, Carried, Core, Failure, Fate, Memory, Mode, Phase, Progress, State, Task,
    Worker, WorkerKey,
};
use crate::error::{Error, Why};
use crate::pool::loss::Loss;
use crate::pool::options::Options;
use crate::pool::stats::{ExitReason, Stats};
use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a worker that is retired has to end, its exit function included: it may be stopped,
/// too.
pub(crate) const EXIT_LIMIT: Duration = Duration::from_secs(5);
/// A process that has not ended so long after SIGKILL hangs in the kernel.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(5);
/// The period of the restart budget; and the budget, to which two are added for each worker, since
/// all of them may be killed by somebody else at once.
pub(crate) const RESTARTS_WITHIN: Duration = Duration::from_secs(10);
const RESTARTS: u32 = 10;
/// Starts in a row that may fail before the tasks that wait are told, unless said otherwise: what
/// passes in a moment (a server that restarts, a table of processes that is full) costs no task,
/// and an `init` that always fails is told before long.
pub(crate) const START_ATTEMPTS: u32 = 3;
/// The wait before a spare is started after a death that counts, at most: it grows by
/// [`BACKOFF_MIN`] for each of them. Short enough for the budget to be used up.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// How often a worker is weighed, at most: to read its size costs some microseconds.
const WEIGH_EVERY: Duration = Duration::from_millis(10);

/// Who is on the staff, and for how long; see [`Rules`](super::Rules) for how many.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// So many workers are not let go for being idle; a number above `workers` is that one.
    pub(crate) min: usize,
    /// Those who are idle longer leave.
    pub(crate) idle_limit: Option<Duration>,
    /// Spares beside the workers.
    pub(crate) spares: usize,
    /// Tasks in one worker's life, at most.
    pub(crate) max_tasks: Option<u64>,
    /// A worker is on duty for so long.
    pub(crate) lifetime: Option<Duration>,
    /// Resident memory of one worker, in bytes, above which it is replaced.
    pub(crate) resident_max: Option<u64>,
    /// A retired worker has so long to end.
    pub(crate) exit_limit: Duration,
    /// A killed one has so long.
    pub(crate) kill_limit: Duration,
    /// Deaths that count, at most, in so much time; `None`: as many as are usual for the number of
    /// workers.
    pub(crate) restarts: Option<u32>,
    pub(crate) restarts_within: Duration,
    /// Starts that may fail in a row before the tasks that wait are told (rule 9).
    pub(crate) start_attempts: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            min: usize::MAX,
            idle_limit: None,
            spares: 0,
            max_tasks: None,
            lifetime: None,
            resident_max: None,
            exit_limit: EXIT_LIMIT,
            kill_limit: KILL_LIMIT,
            restarts: None,
            restarts_within: RESTARTS_WITHIN,
            start_attempts: START_ATTEMPTS,
        }
    }
}

/// What a worker is to the staff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// It has a place.
    On,
    /// It waits for one, or is started to.
    Spare,
    /// It has lost its place, and leaves.
    Off,
    /// It has been killed and does not end.
    GivenUp,
}

/// A worker's entry in the books of the staff.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) duty: Duty,
    /// Tasks that it was given and that were not taken back.
    pub(super) served: u64,
    /// On duty since then.
    since: Instant,
    /// Why it is to be replaced.
    pub(super) due: Option<ExitReason>,
    /// Which of the workers that were ever recycled by hand it belongs to.
    pub(super) generation: u64,
    /// When it was weighed last, and whether it has answered since.
    weighed: Option<Instant>,
    unweighed: bool,
}

impl Post {
    pub(super) fn new(duty: Duty, generation: u64, now: Instant) -> Self {
        Self { duty, served: 0, since: now, due: None, generation, weighed: None, unweighed: false }
    }
}

/// The books of the staff.
#[derive(Clone, Debug, Default)]
pub(super) struct Staff {
    /// Workers that have a place.
    pub(super) places: usize,
    /// Spares that are ready; the last is the next to be used.
    pub(super) spares: Vec<WorkerKey>,
    /// Spares that are being started.
    pub(super) starting: usize,
    /// Something has changed that [`Core::man`] looks at.
    pub(super) look: bool,
    /// Something has changed that those who wait for the staff look at.
    changed: bool,
    /// Counts the recyclings by hand.
    pub(super) generation: u64,
    /// Workers have been asked for, so that spares are wanted.
    awake: bool,
    /// The idle are looked at then.
    pub(super) idle_at: Option<Instant>,
    /// Somebody has become idle, and no time to look is set.
    idle_anew: bool,
    /// Deaths that count, the oldest first.
    pub(super) deaths: VecDeque<Instant>,
    /// How the last ones of them ended: a few, however large the budget is.
    last_ends: VecDeque<(u32, Option<ExitStatus>)>,
    /// No spare is started before.
    pause: Option<Instant>,
    /// The budget is used up.
    halt: Option<Error>,
}

impl Staff {
    /// A worker has ended.
    pub(super) fn left(&mut self, post: &Post) {
        self.places -= usize::from(post.duty == Duty::On);
        self.look = true;
        self.changed = true;
    }
}

impl<M: Memory> Worker<M> {
    /// When it will be too old.
    fn old_at(&self, lifetime: Option<Duration>) -> Option<Instant> {
        if self.state != State::Ready || self.post.due.is_some() {
            return None;
        }
        self.post.since.checked_add(lifetime?)
    }

    /// When it may be weighed again.
    fn weigh_at(&self) -> Option<Instant> {
        let waits = self.post.unweighed && self.state == State::Ready && self.post.due.is_none();
        waits.then(|| self.post.weighed.map(|at| at + WEIGH_EVERY)).flatten()
    }

    /// It is to be replaced: it cannot serve until then, or it can (rules 17 and 16).
    fn is_due(&self) -> (bool, bool) {
        let on = self.post.duty == Duty::On;
        (
            on && self.state == State::Departing,
            on && self.state == State::Ready && self.post.due.is_some(),
        )
    }
}

impl<T: Carried, M: Memory> Core<T, M> {
    // ---- what is asked for

    /// There are to be so many workers from now on (rule 20).
    pub(crate) fn resize(
        &mut self,
        min: usize,
        max: usize,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        (self.rules.policy.min, self.rules.workers) = (min, max);
        while self.staff.places > max {
            let rank = |worker: &Worker<M>| match worker.state {
                State::Doomed | State::Retiring => (0, 0),
                State::Departing => (1, 0),
                State::Starting { .. } => (2, 0),
                State::Spare | State::Ready => (3, worker.load),
            };
            let on_duty = self.workers.iter().filter(|(_, worker)| worker.post.duty == Duty::On);
            // Of the idle, the one that has been for the longest.
            let Some((key, worker)) =
                on_duty.min_by_key(|(_, worker)| (rank(worker), worker.busy_since))
            else {
                break;
            };
            if matches!(worker.state, State::Starting { .. }) {
                self.starting -= 1;
                self.staff.starting += 1;
                self.vacate(key, Duty::Spare);
            } else {
                self.vacate(key, Duty::Off);
                self.depart(key, ExitReason::Resized, actions);
            }
        }
        self.staff.look = true;
        self.somebody_idle();
        self.go_on(now, actions);
    }

    /// All workers that are there are to be replaced; gives what to ask [`Core::stands`] for.
    pub(crate) fn recycle(&mut self, now: Instant, actions: &mut Vec<Action<T>>) -> u64 {
        self.staff.generation += 1;
        self.staff.look = true;
        for key in self.workers.keys() {
            let Some(worker) = self.workers.get_mut(key) else { continue };
            match worker.state {
                // Nobody loses anything by it, and its successor is ordered now.
                State::Spare => self.retire(key, ExitReason::Recycled, now, actions),
                // It has read what it read before.
                State::Starting { .. } | State::Ready => {
                    worker.post.due.get_or_insert(ExitReason::Recycled);
                }
                State::Departing | State::Retiring | State::Doomed => {}
            }
        }
        self.go_on(now, actions);
        self.staff.generation
    }

    /// Somebody may still be given tasks who was there at that recycling.
    pub(crate) fn stands(&self, generation: u64) -> bool {
        self.workers.iter().any(|(_, worker)| {
            worker.post.generation < generation
                && matches!(worker.post.duty, Duty::On | Duty::Spare)
        })
    }

    /// Who gave up hope, hopes again (rule 21).
    pub(crate) fn revive(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if self.staff.halt.take().is_some() {
            self.staff.deaths.clear();
            self.staff.look = true;
            self.go_on(now, actions);
        }
    }

    /// Why the pool starts nobody, if it has used up its restarts.
    pub(crate) fn halted(&self) -> Option<&Error> {
        self.staff.halt.as_ref()
    }

    /// So many workers there are in any case once they have been asked for; of a pool that may
    /// shrink to none, one.
    pub(super) fn core_staff(&self) -> usize {
        self.rules.policy.min.clamp(1, self.rules.workers)
    }

    /// Every worker that there is in any case is ready (or was, and is now at work), every spare
    /// too.
    pub(crate) fn all_ready(&self) -> bool {
        let is_there = |worker: &Worker<M>| {
            worker.post.duty == Duty::On
                && matches!(worker.state, State::Ready | State::Departing | State::Retiring)
        };
        let there = self.workers.iter().filter(|(_, worker)| is_there(worker)).count();
        there >= self.core_staff() && self.staff.spares.len() >= self.rules.policy.spares
    }

    /// How many workers there are to be at most.
    pub(crate) fn workers_max(&self) -> usize {
        self.rules.workers
    }

    /// Whether those who wait for the staff should look again.
    pub(crate) fn staff_changed(&mut self) -> bool {
        std::mem::take(&mut self.staff.changed)
    }

    // ---- what happens

    /// A worker is ordered.
    pub(super) fn order(&mut self, duty: Duty) {
        self.staff.awake = true;
        self.staff.look = true;
        match duty {
            Duty::On => {
                (self.starting, self.staff.places) = (self.starting + 1, self.staff.places + 1)
            }
            _ => self.staff.starting += 1,
        }
    }

    /// A worker is ready.
    pub(super) fn take_up(&mut self, key: WorkerKey, now: Instant, actions: &mut Vec<Action<T>>) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        self.staff.look = true;
        self.staff.changed = true;
        if worker.post.duty == Duty::On {
            worker.state = State::Ready;
            self.starting -= 1;
            self.begin_duty(key, now);
            return;
        }
        worker.state = State::Spare;
        let stale = worker.post.due;
        self.staff.starting -= 1;
        self.staff.spares.push(key);
        if let Some(why) = stale {
            self.retire(key, why, now, actions);
        }
    }

    /// A worker is on duty and ready from now on.
    fn begin_duty(&mut self, key: WorkerKey, now: Instant) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        worker.busy_since = now;
        worker.post.since = now;
        self.deadline_moved = true;
        self.idle.push(key);
        self.somebody_idle();
    }

    /// A spare gets a place.
    pub(super) fn enlist(&mut self, key: WorkerKey, now: Instant) {
        self.withdraw(key, State::Ready);
        let Some(worker) = self.workers.get_mut(key) else { return };
        worker.post.duty = Duty::On;
        self.staff.places += 1;
        self.begin_duty(key, now);
    }

    /// A worker that has a place loses it.
    fn vacate(&mut self, key: WorkerKey, duty: Duty) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        self.staff.places -= usize::from(worker.post.duty == Duty::On);
        worker.post.duty = duty;
        self.staff.changed = true;
    }

    /// A worker is given nothing more, and leaves when it is empty.
    fn depart(&mut self, key: WorkerKey, why: ExitReason, actions: &mut Vec<Action<T>>) {
        if let Some(worker) = self.workers.get_mut(key)
            && worker.state == State::Ready
        {
            worker.post.due.get_or_insert(why);
            self.withdraw(key, State::Departing);
            self.take_back(key, usize::MAX, actions);
        }
    }

    /// A worker without tasks ends.
    pub(super) fn retire(
        &mut self,
        key: WorkerKey,
        why: ExitReason,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        self.withdraw(key, State::Retiring);
        self.vacate(key, Duty::Off);
        let by = now.checked_add(self.exit_limit(now));
        if let Some(worker) = self.workers.get_mut(key) {
            worker.end_by = by;
            worker.why.get_or_insert(why);
            actions.push(Action::Retire(key));
        }
    }

    /// A task has been given to a worker (rule 17).
    pub(super) fn count_task(&mut self, key: WorkerKey) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        worker.post.served += 1;
        if self.rules.policy.max_tasks.is_some_and(|most| worker.post.served >= most) {
            worker.state = State::Departing;
            worker.post.due.get_or_insert(ExitReason::TasksServed);
            self.staff.look = true;
        }
    }

    /// A worker has answered: it may have grown, and it works.
    pub(super) fn answered(&mut self, key: WorkerKey, now: Instant, actions: &mut Vec<Action<T>>) {
        if self.staff.halt.take().is_some() {
            self.staff.deaths.clear();
            self.staff.look = true;
        }
        if self.rules.policy.resident_max.is_some() {
            if let Some(worker) = self.workers.get_mut(key) {
                worker.post.unweighed = true;
            }
            self.weigh(key, now, actions);
        }
    }

    fn weigh(&mut self, key: WorkerKey, now: Instant, actions: &mut Vec<Action<T>>) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        if !worker.post.unweighed || worker.state != State::Ready || worker.post.due.is_some() {
            return;
        }
        if worker.weigh_at().is_some_and(|at| now < at) {
            self.deadline_moved = true;
            return;
        }
        (worker.post.weighed, worker.post.unweighed) = (Some(now), false);
        actions.push(Action::Weigh(key));
    }

    /// A worker has so much resident memory, in bytes.
    pub(crate) fn weighed(
        &mut self,
        key: WorkerKey,
        bytes: u64,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        if self.rules.policy.resident_max.is_some_and(|most| bytes > most)
            && let Some(worker) = self.workers.get_mut(key)
        {
            worker.post.due.get_or_insert(ExitReason::MemoryMark);
            self.staff.look = true;
            self.go_on(now, actions);
        }
    }

    /// A worker has become idle.
    pub(super) fn somebody_idle(&mut self) {
        // Else nobody may leave, or the time to look is known and not too late for this one.
        if self.staff.idle_at.is_none() && self.rules.policy.min < self.rules.workers {
            (self.staff.look, self.staff.idle_anew) = (true, true);
        }
    }

    /// A worker has ended that had been ready (rule 21).
    pub(super) fn died(&mut self, worker: &Worker<M>, loss: &Arc<Loss>, now: Instant) {
        if worker.used || worker.why.is_some() || self.phase != Phase::Open {
            return;
        }
        let within = self.rules.policy.restarts_within;
        let most = self.rules.policy.restarts.unwrap_or_else(|| {
            RESTARTS.saturating_add(2 * u32::try_from(self.rules.workers).unwrap_or(u32::MAX / 4))
        });
        let deaths = &mut self.staff.deaths;
        deaths.push_back(now);
        while deaths.front().is_some_and(|at| now.saturating_duration_since(*at) > within) {
            deaths.pop_front();
        }
        self.staff.last_ends.push_back((loss.pid, loss.status));
        while self.staff.last_ends.len() > deaths.len().min(3) {
            self.staff.last_ends.pop_front();
        }
        self.staff.pause =
            Some(now + BACKOFF_MIN.saturating_mul(deaths.len() as u32).min(PAUSE_MAX));
        if deaths.len() > most as usize && self.staff.halt.is_none() {
            let last = self.staff.last_ends.iter().copied().collect();
            self.staff.halt = Some(Why::RestartLimit { most, within, last }.into());
        }
    }

    // ---- manning

    /// Brings the staff to what it is to be, after a change.
    pub(super) fn man(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        if !std::mem::take(&mut self.staff.look)
            || matches!(self.phase, Phase::Killed | Phase::Ended)
        {
            return;
        }
        if std::mem::take(&mut self.staff.idle_anew)
            && self.staff.idle_at.is_none()
            && !self.idle.is_empty()
        {
            self.staff.idle_at =
                self.rules.policy.idle_limit.and_then(|limit| now.checked_add(limit));
            self.deadline_moved = true;
        }
        if let Some(cause) = self.staff.halt.clone()
            && !self.workers.iter().any(|(_, worker)| {
                matches!(worker.state, State::Starting { .. } | State::Spare | State::Ready)
            })
        {
            self.fail_queue(&cause, actions);
        }
        self.replace(now, actions);
        self.call_spares(now, actions);
        if self.phase == Phase::Open {
            self.place_surplus(now, actions);
        }
        self.let_leave(now, actions);
        self.want_workers(0, now, actions);
    }

    /// Those who depart and have nothing left to do leave, if nobody is to take their place first.
    pub(super) fn let_leave(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        for key in self.workers.keys() {
            let Some(worker) = self.workers.get(key) else { continue };
            let may_leave =
                worker.post.duty != Duty::On || (self.phase != Phase::Open && self.queued == 0);
            if worker.state == State::Departing && worker.in_flight.is_empty() && may_leave {
                let why = worker.post.due.unwrap_or(ExitReason::Recycled);
                self.retire(key, why, now, actions);
            }
        }
    }

    /// Those who are due, as far as spares are ready: who cannot serve first.
    fn replace(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        let mut replaced = false;
        let open = self.phase == Phase::Open;
        while let Some(spare) = self.staff.spares.last().copied()
            && (open || self.queued > 0)
        {
            let due = self
                .workers
                .iter()
                .filter(|(_, worker)| worker.is_due().0 || open && worker.is_due().1);
            let first = due.min_by_key(|(_, worker)| (!worker.is_due().0, worker.load));
            let Some((old, _)) = first else { break };
            self.vacate(old, Duty::Off);
            self.depart(old, ExitReason::Recycled, actions); // why, it knows
            self.enlist(spare, now);
            replaced = true;
        }
        if replaced {
            self.serve(now, actions);
            self.share(now, actions);
        }
    }

    /// How many spares there are to be: those that wait, and those that are to replace somebody.
    fn spares_wanted(&self) -> usize {
        let count = |of: fn((bool, bool)) -> bool| {
            self.workers.iter().filter(|(_, worker)| of(worker.is_due())).count()
        };
        if self.phase != Phase::Open {
            return count(|due| due.0).min(self.queued); // nobody is replaced for his own sake any more
        }
        let at_once = self.rules.workers.div_ceil(4);
        let kept = if self.staff.awake { self.rules.policy.spares } else { 0 };
        kept + count(|due| due.0) + count(|due| due.1).min(at_once)
    }

    /// A spare that is being started and not needed any more: whom it was to replace has gone, say.
    pub(super) fn surplus_to_come(&self) -> Option<WorkerKey> {
        if self.staff.starting == 0
            || self.staff.starting + self.staff.spares.len() <= self.spares_wanted()
        {
            return None; // the first, as nearly always
        }
        let starts = |worker: &Worker<M>| {
            worker.post.duty == Duty::Spare && matches!(worker.state, State::Starting { .. })
        };
        let (key, _) = self
            .workers
            .iter()
            .filter(|(_, worker)| starts(worker))
            .min_by_key(|(_, worker)| worker.started)?;
        Some(key)
    }

    /// A spare that is being started has a place as soon as it is ready.
    pub(super) fn promise(&mut self, key: WorkerKey) {
        if let Some(worker) = self.workers.get_mut(key) {
            worker.post.duty = Duty::On;
            self.staff.starting -= 1;
            self.staff.places += 1;
            self.starting += 1;
        }
    }

    pub(super) fn call_spares(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        let wanted = self.spares_wanted();
        let paused = self.staff.pause.is_some_and(|until| now < until);
        while self.staff.spares.len() + self.staff.starting < wanted
            && !paused
            && self.starts_are_allowed(now)
        {
            self.start(Duty::Spare, now, actions);
        }
    }

    fn place_surplus(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        let wanted = self.spares_wanted();
        while self.staff.spares.len() > wanted
            && let Some(spare) = self.staff.spares.last().copied()
        {
            if self.staff.places < self.rules.workers {
                self.enlist(spare, now);
                self.serve(now, actions);
                self.share(now, actions);
            } else {
                self.retire(spare, ExitReason::Surplus, now, actions);
            }
        }
    }

    /// A spare that is ready, for a place that is vacant or about to be (rule 18).
    pub(super) fn spare_for_a_vacancy(&mut self) -> Option<WorkerKey> {
        let spare = self.staff.spares.last().copied()?;
        if self.staff.places >= self.rules.workers {
            let going = |worker: &Worker<M>| {
                worker.post.duty == Duty::On
                    && matches!(worker.state, State::Doomed | State::Retiring)
            };
            let (key, _) = self.workers.iter().find(|(_, worker)| going(worker))?;
            self.vacate(key, Duty::Off);
        }
        Some(spare)
    }

    /// A start may be ordered, if there is room for it.
    pub(super) fn starts_are_allowed(&self, now: Instant) -> bool {
        let too_early = self
            .failure
            .as_ref()
            .and_then(|failure| failure.retry)
            .is_some_and(|retry| now < retry);
        !too_early
            && self.staff.halt.is_none()
            && !matches!(self.phase, Phase::Killed | Phase::Ended)
    }

    /// Nobody is there who could be given a task, or whose end is waited for to start another.
    pub(super) fn nobody_left(&self) -> bool {
        let counts = |worker: &Worker<M>| match worker.post.duty {
            Duty::On => worker.state != State::Departing,
            Duty::Spare => true,
            Duty::Off | Duty::GivenUp => false,
        };
        !self.workers.iter().any(|(_, worker)| counts(worker))
    }

    /// As many starts in a row have failed as the pool attempts.
    pub(super) fn starts_are_used_up(&self) -> bool {
        let failed = self.failure.as_ref().map_or(0, |failure| failure.earlier + 1);
        failed >= self.rules.policy.start_attempts
    }

    /// Why a task with these options cannot be taken, if it cannot.
    pub(super) fn no_hope(&self, options: Option<&Options>, now: Instant) -> Option<Error> {
        if self.failure.is_none() && self.staff.halt.is_none() {
            return None; // as nearly always
        }
        let serves = |worker: &Worker<M>| {
            matches!(worker.state, State::Starting { .. } | State::Spare | State::Ready)
        };
        match (&self.staff.halt, &self.failure) {
            (Some(cause), _) => {
                (!self.workers.iter().any(|(_, worker)| serves(worker))).then(|| cause.clone())
            }
            (None, Some(Failure { cause, retry: Some(retry), .. })) if now < *retry => {
                let waits = options.is_some_and(|options| options.retry.is_for_starts());
                (!waits && self.starts_are_used_up() && self.nobody_left()).then(|| cause.clone())
            }
            _ => None,
        }
    }

    /// All that waits fails, but what its retries have wait for the next start.
    pub(super) fn fail_queue_for_now(
        &mut self,
        cause: &Error,
        now: Instant,
        actions: &mut Vec<Action<T>>,
    ) {
        for key in std::mem::take(&mut self.queue) {
            let Some(task) = self.tasks.get(key) else { continue };
            match task.again(|retry| retry.starts) {
                Some(wait) => {
                    self.queued -= 1;
                    actions.push(Action::Note(key, Fate::StartFailed(cause.clone())));
                    self.try_again(key, wait, now);
                }
                None => self.forget_queued(key, Fate::StartFailed(cause.clone()), actions),
            }
        }
    }

    /// All that waits fails, since nothing will be started.
    pub(super) fn fail_queue(&mut self, cause: &Error, actions: &mut Vec<Action<T>>) {
        for key in std::mem::take(&mut self.queue) {
            self.forget_queued(key, Fate::StartFailed(cause.clone()), actions);
        }
    }

    // ---- time

    /// When something is to be done about the staff.
    pub(super) fn staff_deadline(&self) -> Option<Instant> {
        let policy = &self.rules.policy;
        let pause = self.staff.pause.filter(|_| self.staff.halt.is_none());
        if self.phase != Phase::Open {
            return pause; // for a task may need a spare in a pool that drains, too (rule 17)
        }
        let times = self.staff.idle_at.into_iter().chain(pause);
        if policy.lifetime.is_none() && policy.resident_max.is_none() {
            return times.min(); // as nearly always
        }
        let each = self.workers.iter().flat_map(|(_, worker)| {
            worker.old_at(policy.lifetime).into_iter().chain(worker.weigh_at())
        });
        times.chain(each).min()
    }

    /// Time has passed.
    pub(super) fn time_the_staff(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        self.staff.look = true;
        self.staff.pause = self.staff.pause.filter(|until| now < *until);
        if self.phase != Phase::Open {
            return;
        }
        let (lifetime, weighs) =
            (self.rules.policy.lifetime, self.rules.policy.resident_max.is_some());
        if lifetime.is_some() || weighs {
            for key in self.workers.keys() {
                let Some(worker) = self.workers.get_mut(key) else { continue };
                if worker.old_at(lifetime).is_some_and(|at| at <= now) {
                    worker.post.due = Some(ExitReason::TooOld);
                }
                if worker.weigh_at().is_some_and(|at| at <= now) {
                    self.weigh(key, now, actions);
                }
            }
        }
        if self.staff.idle_at.is_some_and(|at| at <= now) {
            self.let_idle_ones_go(now, actions);
        }
    }

    /// Rule 19.
    fn let_idle_ones_go(&mut self, now: Instant, actions: &mut Vec<Action<T>>) {
        self.staff.idle_at = None;
        let Some(limit) = self.rules.policy.idle_limit else { return };
        let mut there =
            self.workers.iter().filter(|(_, worker)| worker.state == State::Ready).count();
        while there > self.rules.policy.min {
            let idle =
                self.idle.iter().filter_map(|key| Some((*key, self.workers.get(*key)?.busy_since)));
            let Some((key, since)) = idle.min_by_key(|(_, since)| *since) else { return };
            if now.saturating_duration_since(since) < limit {
                self.staff.idle_at = since.checked_add(limit);
                return;
            }
            self.retire(key, ExitReason::Idle, now, actions);
            there -= 1;
        }
    }

    // ---- ends

    /// How long a worker that is retired now has.
    pub(super) fn exit_limit(&self, now: Instant) -> Duration {
        let limit = self.rules.policy.exit_limit;
        match self.ending_by() {
            Some(until) => limit.min(until.saturating_duration_since(now).max(super::ABORT_GRACE)),
            None => limit,
        }
    }

    /// A worker is being killed: it ends before long, or never.
    pub(super) fn expect_end(&mut self, key: WorkerKey, now: Instant) {
        let by = now.checked_add(self.rules.policy.kill_limit);
        if let Some(worker) = self.workers.get_mut(key) {
            worker.end_by = by;
        }
    }

    /// Workers that were killed and should have ended by now. Whether they have is to be looked at
    /// before [`Core::tick`].
    pub(crate) fn unended(&self, now: Instant) -> Vec<WorkerKey> {
        let is_late = |worker: &Worker<M>| {
            worker.state == State::Doomed && worker.end_by.is_some_and(|by| by <= now)
        };
        self.workers.iter().filter(|(_, worker)| is_late(worker)).map(|(key, _)| key).collect()
    }

    /// Rule 22.
    pub(super) fn give_up(&mut self, key: WorkerKey, actions: &mut Vec<Action<T>>) {
        self.vacate(key, Duty::GivenUp);
        self.staff.look = true;
        let Some(worker) = self.workers.get_mut(key) else { return };
        worker.end_by = None;
        let killed_for = worker.killed_for;
        worker.asked.clear();
        let mut back = Vec::new();
        for place in 0..worker.in_flight.len() {
            let Some(worker) = self.workers.get_mut(key) else { continue };
            let flight = worker.in_flight[place];
            let unbegun = flight.is_whole() && worker.revoke(flight.claim) == Progress::Queued;
            let Some(task) = self.tasks.get_mut(flight.task) else { continue };
            let idempotent = task.options.as_ref().is_some_and(|options| options.idempotent);
            let innocent = unbegun && !task.is_suspect()
                || idempotent && killed_for.is_some_and(|other| other != flight.task);
            if innocent && task.stopping.is_none() {
                task.worker = None;
                back.push(flight.task);
                continue;
            }
            let fate = match task.stopping {
                Some(stop) if unbegun => stop.fate(),
                _ => Fate::Unkillable(key),
            };
            if task.stopping.is_none() {
                back.extend(Self::rest(&mut self.tasks, worker, place, unbegun));
            }
            if let Some(task) = self.forget(flight.task) {
                if matches!(fate, Fate::Closed) {
                    self.ending.cut_off.unbegun.extend(task.ids());
                }
                actions.push(Action::Settle(task.cargo, fate));
            }
        }
        if let Some(worker) = self.workers.get_mut(key) {
            worker.in_flight.clear();
            worker.load = 0;
        }
        self.queued += back.len();
        back.into_iter().rev().for_each(|key| self.queue.push_front(key));
        self.list(key);
    }

    /// Nobody is there but processes that the kernel cannot end.
    pub(super) fn only_given_up_are_left(&self) -> bool {
        self.workers.iter().all(|(_, worker)| worker.post.duty == Duty::GivenUp)
    }

    /// Notes why a worker goes. The first reason counts.
    pub(super) fn blame(&mut self, key: WorkerKey, why: ExitReason) {
        if let Some(worker) = self.workers.get_mut(key) {
            worker.why.get_or_insert(why);
        }
    }

    /// Why a worker goes that has just ended; `None`: not by our doing.
    pub(crate) fn why_ended(&self, key: WorkerKey) -> Option<ExitReason> {
        self.workers.get(key)?.why
    }

    /// Whether tasks wait for a worker, or behind a sync task, and no worker is idle.
    pub(crate) fn has_backlog(&self) -> bool {
        (self.queued > 0 || self.behind > 0) && self.idle.is_empty()
    }

    /// The workers that have tasks in hand, if there is a [backlog](Self::has_backlog) that waits
    /// for them alone: each of them runs a sync task, and none is being started.
    pub(crate) fn all_at_sync_tasks(&self) -> Option<Vec<WorkerKey>> {
        if !self.has_backlog() || self.starting > 0 {
            return None;
        }
        let at_work = |worker: &Worker<M>| {
            matches!(worker.state, State::Ready | State::Departing | State::Retiring)
                && !worker.in_flight.is_empty()
        };
        let workers: Vec<_> = self.workers.iter().filter(|(_, worker)| at_work(worker)).collect();
        let all_sync = workers.iter().all(|(_, worker)| worker.mode == Mode::Sync);
        (all_sync && !workers.is_empty()).then(|| workers.into_iter().map(|(key, _)| key).collect())
    }

    /// Counts workers and open tasks.
    pub(crate) fn census(&self) -> Stats {
        // Of runs each item counts.
        let queued = self.queue.iter().filter_map(|key| self.tasks.get(*key));
        let queued: usize = queued.map(Task::items).sum();
        let in_hand = self.workers.iter().map(|(_, worker)| worker.load).sum();
        let mut stats = Stats { queued: queued + self.delayed.len(), in_hand, ..Stats::default() };
        for (_, worker) in self.workers.iter() {
            let place = match worker.state {
                State::Starting { .. } => &mut stats.starting,
                State::Spare => &mut stats.spare,
                State::Ready if worker.in_flight.is_empty() => &mut stats.idle,
                State::Ready => &mut stats.busy,
                State::Departing | State::Retiring | State::Doomed => &mut stats.leaving,
            };
            *place += 1;
        }
        stats
    }
}

#[cfg(test)]
#[path = "core_staff_tests.rs"]
mod tests;
