//! Each rule of a pool by itself; see `core.rs` for their numbers.

use super::simulation::TestMemory;
use super::*;

/// A core and a clock that is moved by hand.
pub(super) struct Bench {
    pub(super) core: Core<u64, TestMemory>,
    pub(super) now: Instant,
    start: Instant,
    next: u64,
}

impl Bench {
    pub(super) fn new(workers: usize) -> Self {
        Self::with_policy(workers, Policy { start_attempts: 1, ..Policy::default() })
    }

    pub(super) fn with_policy(workers: usize, policy: Policy) -> Self {
        let (hello_limit, start_limit) = (Duration::from_secs(30), Some(Duration::from_secs(60)));
        let rules =
            Rules { workers, concurrency: 3, hello_limit, start_limit, low_latency: false, policy };
        let now = Instant::now();
        Self { core: Core::new(rules, Clock { moment: now, nanos: 0 }), now, start: now, next: 0 }
    }

    /// All workers are there and idle; the last is the next to be used.
    pub(super) fn ready(workers: usize) -> (Self, Vec<WorkerKey>) {
        let mut bench = Self::new(workers);
        let started = bench.does(|core, now, actions| core.start_all(now, actions));
        let keys: Vec<_> = bench.core.workers.keys();
        assert_eq!(started.len(), workers);
        for key in &keys {
            assert!(bench.ready_now(*key).is_empty());
        }
        (bench, keys)
    }

    pub(super) fn ready_now(&mut self, key: WorkerKey) -> Vec<String> {
        self.does(|core, now, actions| {
            _ = core.ready(key, Some(TestMemory::new(2048)), now, actions)
        })
    }

    /// The next deadline but for rule 23, by which it is always looked again before long.
    pub(super) fn deadline(&mut self) -> Option<Instant> {
        let listen_at = self.core.listen_at.take();
        let deadline = self.core.next_deadline();
        self.core.listen_at = listen_at;
        deadline
    }

    /// The worker begins these tasks, as far as they are its own to begin.
    pub(super) fn begin(&self, worker: WorkerKey, ids: &[u64]) {
        self.each(worker, ids, |claims, claim| assert!(claims.begin(claim), "{claim:?}"));
    }

    pub(super) fn finish(&self, worker: WorkerKey, ids: &[u64]) {
        self.each(worker, ids, |claims, claim| claims.finish(claim));
    }

    pub(super) fn each(&self, worker: WorkerKey, ids: &[u64], with: impl Fn(Claims<'_>, Claim)) {
        let worker = self.core.workers.get(worker).expect("it lives");
        let memory = worker.memory.as_ref().expect("it is ready");
        for id in ids {
            let flight = worker
                .in_flight
                .iter()
                .find(|flight| flight.claim.id == *id)
                .expect("it is in hand");
            with(memory.claims(), flight.claim);
        }
    }

    /// What the core does about it, in words: `send 0 3` is task 3 to the worker in place 0.
    pub(super) fn does(
        &mut self,
        event: impl FnOnce(&mut Core<u64, TestMemory>, Instant, &mut Vec<Action<u64>>),
    ) -> Vec<String> {
        let mut actions = Vec::new();
        event(&mut self.core, self.now, &mut actions);
        let place = |key: WorkerKey| key.to_u64() & u64::from(u32::MAX);
        let words = actions.into_iter().map(|action| match action {
            Action::Start(key) => format!("start {}", place(key)),
            Action::Send(key, task, ..) => {
                format!("send {} {:?}", place(key), self.core.id_of(task))
                    .replace("Some(", "")
                    .replace(')', "")
            }
            Action::Ask(key, task) => format!("ask {} {:?}", place(key), self.core.id_of(task))
                .replace("Some(", "")
                .replace(')', ""),
            Action::Cancel(key, task) => {
                format!("cancel {} {:?}", place(key), self.core.id_of(task))
                    .replace("Some(", "")
                    .replace(')', "")
            }
            Action::Retire(key) => format!("retire {}", place(key)),
            Action::Kill(key) => format!("kill {}", place(key)),
            Action::Weigh(key) => format!("weigh {}", place(key)),
            Action::TimeOut(key) => format!("time out {}", place(key)),
            Action::Settle(id, Fate::Cancelled) => format!("cancelled {id}"),
            Action::Settle(id, Fate::TimedOut(limit)) => format!("timed out {id} {limit:?}"),
            Action::Note(key, Fate::Lost(_)) => format!("noted lost {:?}", self.core.id_of(key))
                .replace("Some(", "")
                .replace(')', ""),
            Action::Note(key, Fate::TimedOut(_)) => {
                format!("noted timed out {:?}", self.core.id_of(key))
                    .replace("Some(", "")
                    .replace(')', "")
            }
            Action::Note(_, fate) => format!("noted {fate:?}"),
            Action::Settle(id, Fate::Closed) => format!("closed {id}"),
            Action::Settle(id, Fate::StartFailed(_)) => format!("start failed {id}"),
            Action::Settle(id, Fate::Lost(_)) => format!("lost {id}"),
            Action::Settle(id, Fate::Unkillable(key)) => format!("unkillable {id} {}", place(key)),
            Action::Ended => "ended".into(),
        });
        words.collect()
    }

    pub(super) fn submit(&mut self, mode: Mode, large: bool) -> (Option<TaskKey>, Vec<String>) {
        self.submit_with(mode, large, None)
    }

    pub(super) fn with(&mut self, mode: Mode, options: Options) -> (TaskKey, Vec<String>) {
        let (key, words) = self.submit_with(mode, false, Some(Arc::new(options)));
        (key.expect("it is taken"), words)
    }

    pub(super) fn submit_with(
        &mut self,
        mode: Mode,
        large: bool,
        options: Option<Arc<Options>>,
    ) -> (Option<TaskKey>, Vec<String>) {
        let id = self.next;
        self.next += 1;
        let mut key = None;
        let words = self.does(|core, now, actions| {
            key = core
                .submit(Call { cargo: id, id, mode, large, options: options.clone() }, now, actions)
                .ok()
        });
        (key, words)
    }

    pub(super) fn task(&mut self, mode: Mode) -> (TaskKey, Vec<String>) {
        let (key, words) = self.submit(mode, false);
        (key.expect("it is taken"), words)
    }

    pub(super) fn reply(&mut self, worker: WorkerKey, ids: &[u64]) -> Vec<String> {
        self.does(|core, now, actions| {
            for id in ids {
                let replied = core.replied(worker, *id, Answer::Final, now);
                assert!(
                    matches!(replied, Some(Replied::Ended(cargo, _)) if cargo == *id),
                    "{id}: {replied:?}"
                );
            }
            core.refill(worker, ids.len() as u32, now, actions);
        })
    }

    /// Answers a task in this way; whether it is tried again.
    pub(super) fn answer(
        &mut self,
        worker: WorkerKey,
        id: u64,
        answer: Answer,
    ) -> (bool, Vec<String>) {
        let mut again = false;
        let words = self.does(|core, now, actions| {
            let replied = core.replied(worker, id, answer, now).expect("it has the task");
            again = matches!(replied, Replied::Again(..));
            core.refill(worker, 1, now, actions);
        });
        (again, words)
    }

    /// The worker begins a task and notes when.
    pub(super) fn begin_timed(&self, worker: WorkerKey, id: u64) {
        let nanos = (self.now - self.start).as_nanos() as u64;
        self.each(worker, &[id], |claims, claim| {
            claims.note_start(claim, nanos);
            assert!(claims.begin(claim));
        });
    }

    pub(super) fn exit(&mut self, worker: WorkerKey) -> Vec<String> {
        let loss =
            Arc::new(Loss { pid: 1, status: None, note: None, bad_frame: None, stderr: None });
        self.does(|core, now, actions| core.exited(worker, &loss, now, actions))
    }

    pub(super) fn fail(&mut self, worker: WorkerKey) -> Vec<String> {
        self.does(|core, now, actions| {
            core.start_failed(
                worker,
                Error::spawn("testing", std::io::Error::other("no")),
                now,
                actions,
            )
        })
    }

    pub(super) fn abort(&mut self, key: TaskKey) -> Vec<String> {
        self.does(|core, now, actions| core.abort(key, now, actions))
    }

    pub(super) fn tick(&mut self) -> Vec<String> {
        self.does(|core, now, actions| core.tick(now, actions))
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Teaches a worker how long sync tasks take.
    pub(super) fn teach(&mut self, worker: WorkerKey, service: Duration) {
        let (_, sent) = self.task(Mode::Sync);
        assert!(sent[0].starts_with("send"));
        self.pass(service);
        let id = self.next - 1;
        assert_eq!(self.reply(worker, &[id]), [""; 0]);
    }
}

pub(super) const MS: Duration = Duration::from_millis(1);

#[test]
fn rule_1_one_that_cannot_be_placed_holds_back_the_others() {
    let (mut bench, w) = Bench::ready(1);
    assert_eq!(bench.task(Mode::Async).1, ["send 0 0"]);
    let (sync, words) = bench.task(Mode::Sync);
    assert_eq!(words, [""; 0]);
    assert_eq!(bench.task(Mode::Async).1, [""; 0]); // there is room for it, but not before its turn
    assert_eq!(bench.abort(sync), ["cancelled 1", "send 0 2"]);
    assert_eq!(bench.reply(w[0], &[2, 0]), [""; 0]);
}

#[test]
fn rule_2_a_worker_changes_sides_when_it_is_empty() {
    let (mut bench, w) = Bench::ready(1);
    bench.task(Mode::Async);
    bench.task(Mode::Async);
    bench.task(Mode::Sync);
    assert_eq!(bench.reply(w[0], &[1]), [""; 0]);
    assert_eq!(bench.reply(w[0], &[0]), ["send 0 2"]);
}

#[test]
fn rule_3_idle_ones_first_then_the_one_with_the_fewest() {
    let (mut bench, _) = Bench::ready(2);
    let sent: Vec<_> = (0..7).map(|_| bench.task(Mode::Async).1.concat()).collect();
    assert_eq!(sent, ["send 1 0", "send 0 1", "send 0 2", "send 1 3", "send 0 4", "send 1 5", ""]);
}

#[test]
fn rule_3_holds_for_what_comes_back_as_well() {
    let (mut bench, w) = Bench::ready(2);
    bench.teach(w[1], MS / 100);
    let sent: Vec<_> = (0..4).map(|_| bench.task(Mode::Sync).1.concat()).collect();
    assert_eq!(sent, ["send 1 1", "send 0 2", "send 1 3", "send 1 4"]);
    for _ in 0..40 {
        bench.task(Mode::Sync);
    }
    bench.begin(w[1], &[1]);
    bench.begin(w[0], &[2]);
    bench.pass(LONG);
    assert_eq!(bench.exit(w[1])[..2], ["lost 1", "start 1"]);
    assert_eq!(bench.reply(w[0], &[2]), ["send 0 3"], "what comes back goes first");
}

#[test]
fn rule_4_the_window_follows_the_service_time() {
    for (service, window) in [
        (MS / 1000, 2048),
        (MS / 100, 300),
        (MS / 10, 30),
        (MS, 3),
        (2 * MS, 2),
        (LONG, 1),
        (Duration::ZERO, 2048),
    ] {
        let (mut bench, w) = Bench::ready(1);
        bench.teach(w[0], service);
        let sent = (0..3000).filter(|_| !bench.task(Mode::Sync).1.is_empty()).count();
        assert_eq!(sent, window, "{service:?}");
    }
    let (mut bench, w) = Bench::ready(1);
    bench.task(Mode::Sync);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]); // not yet known
    bench.reply(w[0], &[0]);
    bench.pass(LONG);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]); // the running one has lasted long
    bench.pass(LONG);
    assert_eq!(bench.reply(w[0], &[1]), ["send 0 2"]);
}

#[test]
fn rule_25_a_worker_rings_when_half_of_what_it_has_in_hand_is_done() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    let keys: Vec<_> = (0..10).map(|_| bench.task(Mode::Sync).0).collect();
    assert_eq!(bench.core.arm(w[0], 1, 100).0, 5);
    assert_eq!(bench.core.arm(w[0], 1, 4).0, 4, "there is room for no more");
    assert_eq!(bench.core.arm(w[0], 0, 100).0, 1, "nothing came");
    assert_eq!(bench.core.arm(w[0], 1, 100).0, 5);
    bench.begin(w[0], &[1]);
    for key in &keys[5..] {
        bench.abort(*key);
    }
    assert!(!bench.core.take_rearm(), "five are left");
    bench.abort(keys[4]);
    assert!(bench.core.take_rearm(), "four are left");
    bench.abort(keys[3]);
    assert!(!bench.core.take_rearm(), "it has been told");
    assert_eq!(bench.core.arm(w[0], 1, 100).0, 1, "little is in hand");
    bench.abort(keys[0]);
    assert_eq!(bench.core.arm(w[0], 1, 100).0, 1, "a reply is awaited urgently");
}

#[test]
fn rule_25_the_driver_looks_when_a_third_should_be_done() {
    for (service, within) in [
        (Duration::from_micros(2), MODERATION_MIN),
        (Duration::from_micros(60), Duration::from_micros(180)),
        (Duration::from_micros(400), MODERATION),
    ] {
        let (mut bench, w) = Bench::ready(1);
        bench.teach(w[0], service);
        bench.task(Mode::Sync);
        for _ in 0..8 {
            bench.task(Mode::Sync);
        }
        let in_hand = bench.core.workers.get(w[0]).expect("a worker").load;
        let within = within.min(service * (in_hand as u32 / 3)).max(MODERATION_MIN);
        assert_eq!(bench.core.arm(w[0], 1, 100).1, within, "{service:?} {in_hand}");
    }
}

#[test]
fn rule_25_replies_leave_the_doorbell_armed() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    for _ in 0..8 {
        bench.task(Mode::Sync);
    }
    assert_eq!(bench.core.arm(w[0], 1, 100).0, 4);
    bench.begin(w[0], &[1, 2, 3, 4, 5, 6, 7, 8]);
    bench.reply(w[0], &[1, 2, 3]);
    bench.reply(w[0], &[4, 5, 6, 7, 8]);
    assert!(!bench.core.take_rearm());
}

#[test]
fn rule_25_async_tasks_that_ended_at_once_are_followed_by_as_many() {
    let (mut bench, w) = Bench::ready(1);
    for _ in 0..3 {
        bench.task(Mode::Async);
    }
    assert_eq!(bench.core.arm(w[0], 1, 100).0, 1);
    assert_eq!(bench.core.arm(w[0], BURST, 100).0, 1, "little is in hand");
}

#[test]
fn rule_5_a_large_task_waits_for_an_idle_worker() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    bench.task(Mode::Sync);
    assert_eq!(bench.submit(Mode::Sync, true).1, [""; 0]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0], "and holds back the next");
    assert_eq!(bench.reply(w[0], &[1]), ["send 0 2", "send 0 3"]);
    bench.reply(w[0], &[2]);
    bench.reply(w[0], &[3]);
    bench.task(Mode::Async);
    assert_eq!(bench.submit(Mode::Async, true).1, ["send 0 5"], "async tasks run side by side");
}

#[test]
fn rule_7_a_task_does_not_go_back_for_ever() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 1"]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 2"]);
    let mut worker = w[0];
    for _ in 0..MOVES_MAX {
        assert_eq!(bench.exit(worker), ["start 0"]);
        worker = bench.core.workers.keys()[0];
        assert_eq!(bench.ready_now(worker), ["send 0 1"]);
    }
    assert_eq!(bench.core.workers.get(worker).map(|worker| worker.alone), Some(true));
    assert_eq!(bench.exit(worker), ["lost 1", "start 0"]);
    worker = bench.core.workers.keys()[0];
    assert_eq!(bench.ready_now(worker), ["send 0 2"], "the one behind it is not charged");
    assert_eq!(
        bench
            .core
            .tasks
            .get(bench.core.workers.get(worker).expect("it lives").in_flight[0].task)
            .map(|task| task.moves),
        Some(0)
    );
}

#[test]
fn rule_7_nothing_stands_behind_a_suspect() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    let (key, _) = bench.task(Mode::Sync);
    bench.exit(w[0]);
    bench.core.tasks.get_mut(key).expect("it is open").moves = MOVES_MAX;
    let worker = bench.core.workers.keys()[0];
    assert_eq!(bench.ready_now(worker), ["send 0 1"]);
    bench.core.workers.get_mut(worker).expect("it lives").service = Some(MS / 100);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    assert_eq!(bench.reply(worker, &[1]), ["send 0 2"]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 3"]);
}

#[test]
fn rule_10_who_is_idle_takes_what_stands_behind_others() {
    // Half of it, while the one in front is short; and what is not worth it is looked at again.
    let (mut bench, w) = Bench::ready(2);
    bench.teach(w[1], MS / 10);
    bench.teach(w[1], MS / 10);
    let sent: Vec<_> = (0..4).map(|_| bench.task(Mode::Sync).1.concat()).collect();
    assert_eq!(sent, ["send 1 2", "send 0 3", "send 1 4", "send 1 5"]);
    bench.begin(w[1], &[2]);
    assert_eq!(bench.reply(w[0], &[3]), ["send 0 5"]);
    assert_eq!(
        bench.reply(w[0], &[5]),
        ["send 0 4"],
        "one is worth it, too: it takes a tenth of a millisecond"
    );

    let (mut bench, w) = Bench::ready(2);
    bench.teach(w[1], MS / 1000);
    let sent: Vec<_> = (0..3).map(|_| bench.task(Mode::Sync).1.concat()).collect();
    assert_eq!(sent, ["send 1 1", "send 0 2", "send 1 3"]);
    bench.begin(w[1], &[1]);
    assert_eq!(bench.reply(w[0], &[2]), [""; 0], "a microsecond's work");
    assert!(bench.core.deadline_moved());
    assert_eq!(bench.deadline(), Some(bench.now + LONG));
    bench.pass(LONG);
    assert_eq!(bench.tick(), ["send 0 3"], "but the one in front is long");
    assert_eq!(bench.deadline(), None);
}

#[test]
fn rule_10_what_has_begun_meanwhile_stays_and_is_looked_at_again() {
    let (mut bench, w) = Bench::ready(2);
    bench.teach(w[1], MS / 10);
    let sent: Vec<_> = (0..3).map(|_| bench.task(Mode::Sync).1.concat()).collect();
    assert_eq!(sent, ["send 1 1", "send 0 2", "send 1 3"]);
    bench.begin(w[1], &[1]);
    bench.finish(w[1], &[1]);
    bench.begin(w[1], &[3]);
    assert_eq!(bench.reply(w[0], &[2]), [""; 0]);
    assert_eq!(bench.deadline(), Some(bench.now + LONG));
    assert_eq!(bench.reply(w[1], &[1]), [""; 0]);
    assert_eq!(bench.deadline(), None);
}

#[test]
fn rule_10_a_worker_that_gets_ready_takes_its_share_and_so_does_one_in_a_pool_that_drains() {
    let mut bench = Bench::new(2);
    bench.task(Mode::Sync);
    let w = bench.core.workers.keys();
    bench.ready_now(w[0]);
    bench.pass(MS / 10);
    bench.reply(w[0], &[0]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 1"]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 2", "start 1"]);
    bench.begin(w[0], &[1]);
    let second = bench.core.workers.keys()[1];
    assert_eq!(bench.ready_now(second), ["send 1 2"]);

    let (mut bench, w) = Bench::ready(2);
    bench.teach(w[1], MS / 1000);
    (0..3).for_each(|_| drop(bench.task(Mode::Sync)));
    bench.begin(w[1], &[1]);
    assert_eq!(bench.does(|core, now, actions| core.drain(now, actions)), [""; 0]);
    assert_eq!(
        bench.reply(w[0], &[2]),
        [""; 0],
        "it stays, for what stands behind may turn out to be stuck"
    );
    bench.pass(LONG);
    assert_eq!(bench.tick(), ["send 0 3"]);
}

#[test]
fn rule_14_without_memory_one_sync_task_is_in_hand_and_counts_as_begun() {
    let mut bench = Bench::new(1);
    let (first, _) = bench.task(Mode::Sync);
    let worker = bench.core.workers.keys()[0];
    assert_eq!(
        bench.does(|core, now, actions| _ = core.ready(worker, None, now, actions)),
        ["send 0 0"]
    );
    bench.pass(MS / 1000);
    bench.reply(worker, &[0]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 1"]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    assert_eq!(bench.abort(first), [""; 0]);
    assert_eq!(bench.exit(worker), ["lost 1", "start 0"]);
}

#[test]
fn rule_6_a_start_for_each_that_finds_nobody_idle() {
    let mut bench = Bench::new(3);
    assert_eq!(bench.task(Mode::Sync).1, ["start 0"]);
    assert_eq!(bench.task(Mode::Sync).1, ["start 1"]);
    let w = bench.core.workers.keys();
    assert_eq!(bench.ready_now(w[0]), ["send 0 0"]);
    bench.pass(LONG);
    assert_eq!(bench.reply(w[0], &[0]), ["send 0 1"]);
    // One start is still under way, for the one that finds nobody now.
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    assert_eq!(bench.task(Mode::Sync).1, ["start 2"]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
}

#[test]
fn rule_6_failed_starts_are_tried_again_after_a_back_off() {
    let (mut bench, w) = Bench::ready(1);
    bench.core.rules.workers = 3;
    bench.task(Mode::Sync);
    assert_eq!(bench.task(Mode::Sync).1, ["start 1"]);
    bench.pass(MS);
    let second = bench.core.workers.keys()[1];
    assert_eq!(bench.task(Mode::Sync).1, ["start 2"]);
    let third = bench.core.workers.keys()[2];
    bench.fail(second);
    bench.pass(MS);
    bench.fail(third); // was under way with the other: the wait does not double
    assert_eq!(bench.deadline(), Some(bench.now + BACKOFF_MIN));
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    bench.pass(BACKOFF_MIN);
    assert_eq!(bench.tick(), ["start 2", "start 1"]);
    let retried = *bench.core.workers.keys().last().expect("three workers");
    assert!(
        bench.deadline().is_some_and(|at| at > bench.now + MS),
        "nothing to do before a start is late"
    );
    bench.pass(MS);
    bench.fail(retried);
    assert_eq!(bench.deadline(), Some(bench.now + 2 * BACKOFF_MIN));
    // A worker that gets ready ends the back-off.
    let other = bench.core.workers.keys()[1];
    assert_ne!(other, w[0]);
    assert_eq!(bench.ready_now(other), ["send 1 1", "start 2"]);
}

#[test]
fn rule_7_a_death_costs_what_had_begun() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    (1..=4).for_each(|id| assert_eq!(bench.task(Mode::Sync).1, [format!("send 0 {id}")]));
    bench.begin(w[0], &[1, 2]);
    assert_eq!(bench.reply(w[0], &[1]), [""; 0]);
    assert_eq!(bench.exit(w[0]), ["lost 2", "start 0"]);
    let again = bench.core.workers.keys()[0];
    assert_eq!(bench.ready_now(again), ["send 0 3"]);
    assert_eq!(bench.exit(again), ["start 0"]); // it had not even arrived
    let again = bench.core.workers.keys()[0];
    assert_eq!(bench.ready_now(again), ["send 0 3"]);

    let (mut bench, w) = Bench::ready(1);
    (0..3).for_each(|_| drop(bench.task(Mode::Async)));
    bench.begin(w[0], &[0, 1]);
    assert_eq!(bench.exit(w[0]), ["lost 0", "lost 1", "start 0"]);
}

#[test]
fn rule_7_a_word_that_means_nothing_counts_as_begun() {
    let (mut bench, w) = Bench::ready(1);
    bench.task(Mode::Sync);
    bench.each(w[0], &[0], |claims, claim| claims.offer(Claim { id: 77, ..claim }));
    assert_eq!(bench.exit(w[0]), ["lost 0", "start 0"]);
}

#[test]
fn rule_8_what_has_not_begun_is_taken_back_and_never_begins() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    let keys: Vec<_> = (1..=3).map(|_| bench.task(Mode::Sync).0).collect();
    let claim = bench.core.workers.get(w[0]).expect("it lives").in_flight[1].claim;
    assert_eq!(bench.abort(keys[1]), ["cancelled 2"]);
    assert!(
        !bench
            .core
            .workers
            .get(w[0])
            .expect("it lives")
            .memory
            .as_ref()
            .expect("it is ready")
            .claims()
            .begin(claim)
    );
    assert_eq!(bench.reply(w[0], &[1, 3]), [""; 0]);
    let (key, _) = bench.task(Mode::Sync);
    assert_eq!(bench.abort(key), ["cancelled 4"]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 5"], "it is idle");
}

#[test]
fn rule_8_the_worker_is_doomed_before_it_is_killed_so_nothing_else_is_hit() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    let keys: Vec<_> = (1..=3).map(|_| bench.task(Mode::Sync).0).collect();
    bench.begin(w[0], &[1]);
    assert_eq!(bench.abort(keys[0]), ["kill 0"]);
    assert_eq!(bench.core.queued(), 2);
    assert_eq!(bench.abort(keys[0]), [""; 0]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]); // it is doomed
    assert_eq!(bench.exit(w[0]), ["cancelled 1", "start 0"]);
    assert_eq!(bench.core.queued(), 3);
}

#[test]
fn rule_8_a_task_that_is_done_is_not_killed_unless_its_reply_does_not_come() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    let (key, _) = bench.task(Mode::Sync);
    bench.task(Mode::Sync);
    bench.begin(w[0], &[1]);
    bench.finish(w[0], &[1]);
    assert_eq!(bench.abort(key), [""; 0]);
    assert_eq!(bench.core.workers.get(w[0]).expect("a worker").load, 2, "the others stay");
    assert_eq!(bench.deadline(), Some(bench.now + ABORT_GRACE));
    bench.pass(ABORT_GRACE);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.exit(w[0]), ["cancelled 1", "start 0"]);
}

#[test]
fn rule_8_the_reply_that_came_first_counts() {
    let (mut bench, w) = Bench::ready(1);
    let (key, _) = bench.task(Mode::Sync);
    bench.begin(w[0], &[0]);
    assert_eq!(bench.abort(key), ["kill 0"]);
    assert_eq!(bench.reply(w[0], &[0]), [""; 0]);
    assert_eq!(bench.exit(w[0]), ["start 0"]);
}

#[test]
fn rule_8_each_async_task_has_the_whole_grace() {
    let (mut bench, w) = Bench::ready(1);
    let keys: Vec<_> = (0..3).map(|_| bench.task(Mode::Async).0).collect();
    bench.begin(w[0], &[0, 1, 2]);
    assert_eq!(bench.abort(keys[0]), ["cancel 0 0"]);
    bench.pass(ABORT_GRACE / 2);
    assert_eq!(bench.abort(keys[1]), ["cancel 0 1"]);
    bench.reply(w[0], &[0]);
    bench.pass(ABORT_GRACE / 2);
    assert_eq!(bench.tick(), [""; 0]);
    assert_eq!(bench.deadline(), Some(bench.now + ABORT_GRACE / 2));
    bench.pass(ABORT_GRACE / 2);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.exit(w[0]), ["cancelled 1", "lost 2", "start 0"]);
}

#[test]
fn rule_9_what_is_queued_fails_with_the_last_worker() {
    let mut bench = Bench::new(2);
    bench.task(Mode::Sync);
    bench.task(Mode::Sync);
    let w = bench.core.workers.keys();
    assert_eq!(bench.fail(w[0]), [""; 0]);
    assert_eq!(bench.fail(w[1]), ["start failed 0", "start failed 1"]);
    assert_eq!(bench.submit(Mode::Sync, false).0, None);
    bench.pass(BACKOFF_MIN);
    assert_eq!(bench.task(Mode::Sync).1, ["start 1"]);
}

#[test]
fn rule_9_tasks_wait_until_as_many_starts_in_a_row_have_failed_as_are_attempted() {
    let policy = Policy { start_attempts: 3, ..Policy::default() };
    let mut bench = Bench::with_policy(1, policy);
    assert_eq!(bench.task(Mode::Sync).1, ["start 0"]);
    let mut wait = BACKOFF_MIN;
    for _ in 0..2 {
        let started = bench.core.workers.keys()[0];
        bench.pass(MS);
        assert_eq!(bench.fail(started), [""; 0], "the task waits for the next start");
        assert_eq!(bench.deadline(), Some(bench.now + wait));
        bench.task(Mode::Sync); // taken, in spite of the failed start
        bench.pass(wait);
        assert_eq!(bench.tick().len(), 1, "the next start");
        wait *= 2;
    }
    let started = bench.core.workers.keys()[0];
    bench.pass(MS);
    assert_eq!(bench.fail(started), ["start failed 0", "start failed 1", "start failed 2"]);
    assert_eq!(bench.submit(Mode::Sync, false).0, None, "told at once until the wait is over");
    bench.pass(wait);
    assert_eq!(bench.task(Mode::Sync).1.len(), 1);
    let started = bench.core.workers.keys()[0];
    bench.pass(MS);
    assert_eq!(bench.fail(started).len(), 1, "the row goes on: one more failed start is told");
    // A worker that gets ready ends the row.
    bench.pass(wait * 2);
    bench.task(Mode::Sync);
    let started = bench.core.workers.keys()[0];
    assert_eq!(bench.ready_now(started).len(), 1);
    assert!(bench.core.failure.is_none());
}

#[test]
fn rule_9_a_task_whose_retries_are_for_failed_starts_is_tried_again() {
    let retry = Retry { most: 2, starts: true, ..Retry::default() };
    let mut bench = Bench::new(1);
    let options = Options { retry, ..Options::default() };
    let (_, started) = bench.with(Mode::Sync, options.clone());
    assert_eq!(started.len(), 1);
    for round in 0..3 {
        let started = bench.core.workers.keys()[0];
        bench.pass(MS);
        let told = bench.fail(started);
        if round < 2 {
            assert_eq!(told.len(), 1);
            assert!(told[0].starts_with("noted"), "{told:?}");
            bench.pass(Duration::from_secs(1));
            assert_eq!(bench.tick().len(), 1, "another start");
        } else {
            assert_eq!(told, ["start failed 0"]);
        }
    }
    // Handed in while the wait after a failed start lasts, it waits; another is told.
    let (_, nothing) = bench.with(Mode::Sync, options);
    assert_eq!((nothing.len(), bench.submit(Mode::Sync, false).0), (0, None));
}

#[test]
fn rule_9_starts_that_fail_slowly_one_after_another_are_told_though_one_is_always_under_way() {
    let mut bench = Bench::new(2);
    bench.task(Mode::Sync);
    bench.task(Mode::Sync);
    let mut told = Vec::new();
    // Of two that are under way together, one counts.
    let failed = (1..).find(|_| {
        bench.pass(MS);
        let oldest = bench
            .core
            .workers
            .iter()
            .min_by_key(|(_, worker)| worker.started)
            .expect("one is under way")
            .0;
        told = bench.fail(oldest);
        assert_ne!(bench.core.workers.len(), 0);
        bench.pass(BACKOFF_MIN * 20);
        bench.tick();
        !told.is_empty()
    });
    assert_eq!(failed, Some(2 * STARTS_MAX as usize - 1));
    assert_eq!(told, ["start failed 0", "start failed 1"]);
}

#[test]
fn a_start_that_takes_too_long_is_given_up() {
    let mut bench = Bench::new(1);
    bench.task(Mode::Sync);
    let w = bench.core.workers.keys();
    assert_eq!(bench.deadline(), Some(bench.now + Duration::from_secs(30)));
    bench.core.hello(w[0]);
    assert_eq!(bench.deadline(), Some(bench.now + Duration::from_secs(60)));
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.tick(), ["time out 0"]);
    assert_eq!(bench.ready_now(w[0]), [""; 0]);
    assert_eq!(bench.fail(w[0]), ["start failed 0"]);
}

#[test]
fn a_drained_pool_keeps_what_it_may_still_need() {
    let (mut bench, w) = Bench::ready(1);
    bench.core.rules.workers = 2;
    bench.teach(w[0], MS / 100);
    bench.task(Mode::Sync);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 2", "start 1"]);
    bench.begin(w[0], &[1]);
    let second = bench.core.workers.keys()[1];
    assert_eq!(bench.does(|core, now, actions| core.drain(now, actions)), [""; 0]);
    assert_eq!(bench.exit(w[0]), ["lost 1"]);
    assert_eq!(bench.ready_now(second), ["send 1 2"]);
    assert_eq!(bench.reply(second, &[2]), ["retire 1"]);
    bench.pass(staff::EXIT_LIMIT);
    assert_eq!(bench.deadline(), Some(bench.now)); // it may be stopped, and never end
    assert_eq!(bench.tick(), ["kill 1"]);
    assert_eq!(bench.exit(second), ["ended"]);
}

#[test]
fn a_kill_settles_everything_at_once() {
    let mut bench = Bench::new(2);
    let (key, _) = bench.task(Mode::Sync);
    bench.task(Mode::Sync);
    let w = bench.core.workers.keys();
    bench.ready_now(w[0]);
    assert_eq!(
        bench.does(|core, now, actions| core.kill(now, actions)),
        ["kill 0", "kill 1", "closed 0", "closed 1"]
    );
    assert_eq!(bench.abort(key), [""; 0]);
    assert_eq!(bench.submit(Mode::Sync, false), (None, vec![]));
    assert_eq!(bench.exit(w[0]), [""; 0]);
    assert_eq!(bench.fail(w[1]), ["ended"]);
    assert_eq!(bench.does(|core, now, actions| core.kill(now, actions)), [""; 0]);
}

#[test]
fn a_drain_is_cut_short_at_its_limit() {
    let (mut bench, w) = Bench::ready(2);
    bench.teach(w[1], MS / 100);
    let id = bench.next;
    let sent: Vec<_> = (0..3).map(|_| bench.task(Mode::Sync).1.concat()).collect();
    assert_eq!(sent.iter().filter(|words| words.starts_with("send")).count(), 3);
    let both = [w[0], w[1]].map(|key| {
        let hand = bench.core.workers.get(key).expect("it lives");
        (key, hand.in_flight.iter().map(|flight| flight.claim.id).collect::<Vec<_>>())
    });
    for (worker, ids) in &both {
        bench.begin(*worker, &ids[..1]);
    }
    let (limit, now) = (bench.now + MS, bench.now);
    assert_eq!(bench.does(|core, _, actions| core.drain_by(limit, now, actions)), [""; 0]);
    assert_eq!(bench.deadline(), Some(limit));
    bench.pass(MS);
    let mut words = bench.tick();
    words.sort();
    assert_eq!(words, [format!("closed {}", id + 2), "kill 0".into(), "kill 1".into()]);
    // One of them answers before it dies: that counts.
    assert_eq!(bench.reply(both[0].0, &both[0].1[..1]), [""; 0]);
    assert_eq!(bench.exit(both[0].0), [""; 0]);
    assert_eq!(bench.exit(both[1].0), [format!("closed {}", both[1].1[0]), "ended".into()]);
    let cut_off = bench.core.cut_off();
    assert_eq!((&cut_off.unbegun[..], &cut_off.begun[..]), (&[id + 2][..], &both[1].1[..1]));
}

#[test]
fn an_end_asks_async_tasks_and_waits_for_them_no_longer_than_an_abort_does() {
    let (mut bench, w) = Bench::ready(1);
    (0..4).for_each(|_| drop(bench.task(Mode::Async)));
    bench.begin(w[0], &[0, 1]);
    let now = bench.now;
    assert_eq!(
        bench.does(|core, _, actions| core.drain_by(now, now, actions)),
        ["closed 2", "closed 3", "cancel 0 0", "cancel 0 1"]
    );
    assert_eq!(bench.answer(w[0], 0, Answer::Dropped), (false, vec![]));
    bench.pass(ABORT_GRACE);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.exit(w[0]), ["closed 1", "ended"]);
    assert_eq!(
        (&bench.core.cut_off().unbegun[..], &bench.core.cut_off().begun[..]),
        (&[2, 3][..], &[0, 1][..])
    );
}

#[test]
fn a_worker_that_has_nothing_left_to_do_has_a_second_to_end_whatever_the_limit_is() {
    let (mut bench, w) = Bench::ready(2);
    bench.task(Mode::Sync);
    let limit = bench.now + 2 * MS;
    assert_eq!(bench.does(|core, now, actions| core.drain_by(limit, now, actions)), ["retire 0"]);
    bench.begin(w[1], &[0]);
    bench.pass(MS);
    assert_eq!(bench.reply(w[1], &[0]), ["retire 1"]);
    assert_eq!(bench.exit(w[1]), [""; 0]);
    bench.pass(MS);
    assert_eq!(bench.tick(), [""; 0], "it may be in its exit function");
    bench.pass(ABORT_GRACE - 2 * MS);
    assert_eq!(bench.tick(), ["kill 0"], "a second after it was retired");
    assert_eq!(bench.exit(w[0]), ["ended"]);
    assert_eq!(*bench.core.cut_off(), CutOff::default());
}

#[test]
fn who_has_nothing_left_to_do_when_a_drain_is_cut_short_is_retired() {
    let (mut bench, w) = Bench::ready(2);
    // Two tasks that want an idle worker each, of which one is taken back at the limit.
    bench.task(Mode::Sync);
    bench.task(Mode::Sync);
    bench.task(Mode::Sync);
    bench.begin(w[1], &[0]);
    let now = bench.now;
    let mut words = bench.does(|core, _, actions| core.drain_by(now, now, actions));
    words.sort();
    assert_eq!(
        words,
        ["closed 1", "closed 2", "kill 1", "retire 0"],
        "the one that had not begun its task has no task now"
    );
    bench.pass(ABORT_GRACE);
    assert_eq!(bench.tick(), ["kill 0"]);
}

#[test]
fn a_worker_that_has_hung_up_when_it_was_retired_keeps_its_exit_limit() {
    let limit = Duration::from_secs(60);
    let mut bench = Bench::with_policy(1, Policy { exit_limit: limit, ..Policy::default() });
    bench.does(|core, now, actions| core.start_all(now, actions));
    let worker = bench.core.workers.keys()[0];
    bench.ready_now(worker);
    assert_eq!(bench.does(|core, now, actions| core.drain(now, actions)), ["retire 0"]);
    bench.core.hung_up(worker, bench.now + 2 * MS);
    assert_eq!(bench.core.next_deadline(), Some(bench.now + limit));
}

#[test]
fn limits_beyond_the_clock_are_none() {
    let mut bench =
        Bench::with_policy(1, Policy { exit_limit: Duration::MAX, ..Policy::default() });
    bench.core.rules.start_limit = Some(Duration::MAX);
    bench.does(|core, now, actions| core.start_all(now, actions));
    let worker = bench.core.workers.keys()[0];
    bench.core.hello(worker);
    assert_eq!(bench.core.next_deadline(), None, "it may start for ever");
    bench.ready_now(worker);
    let options = Options {
        timeout: Some(Duration::MAX),
        deadline: Some(Duration::MAX),
        ..Options::default()
    };
    assert_eq!(bench.with(Mode::Sync, options).1, ["send 0 0"]);
    bench.begin_timed(worker, 0);
    bench.core.workers.get_mut(worker).expect("it lives").look_at = Some(bench.now);
    assert_eq!(bench.tick(), [""; 0], "a look at it finds no end");
    bench.reply(worker, &[0]);
    bench.core.listen_at = None;
    assert_eq!(bench.does(|core, now, actions| core.drain(now, actions)), ["retire 0"]);
    assert_eq!(bench.core.next_deadline(), None, "it may end for ever");
    // Until somebody wants it to be over.
    let until = bench.now + 2 * ABORT_GRACE;
    bench.does(|core, now, actions| core.drain_by(until, now, actions));
    bench.pass(2 * ABORT_GRACE);
    assert_eq!(bench.tick(), ["kill 0"]);
}

#[test]
fn a_back_off_beyond_the_clock_does_not_end() {
    let (mut bench, w) = Bench::ready(1);
    let retry = Retry {
        most: 9,
        panics: true,
        wait_min: Duration::MAX,
        wait_max: Duration::MAX,
        ..Retry::default()
    };
    let (key, _) = bench.with(Mode::Sync, Options { retry, ..Options::default() });
    bench.begin(w[0], &[0]);
    assert_eq!(bench.answer(w[0], 0, Answer::Panicked), (true, vec![]));
    assert!(bench.deadline().is_some_and(|at| at > bench.now + FOR_EVER / 2));
    assert_eq!(bench.abort(key), ["cancelled 0"]);
}

#[test]
fn rule_12_a_task_of_which_items_were_taken_is_not_run_again() {
    let retry = Retry { most: 9, panics: true, ..Retry::default() };
    for (id, runs_again) in [(1003, true), (1008, false)] {
        let (mut bench, w) = Bench::ready(1);
        bench.next = id;
        bench.with(Mode::Sync, Options { retry: retry.clone(), ..Options::default() });
        bench.begin(w[0], &[id]);
        let is_known = bench.core.in_hand(w[0], id).is_some();
        assert!(is_known && bench.core.in_hand(w[0], id + 1).is_none());
        assert_eq!(bench.answer(w[0], id, Answer::Panicked).0, runs_again, "a panic");

        let (mut bench, w) = Bench::ready(1);
        bench.next = id;
        bench.with(Mode::Sync, Options { retry: retry.clone(), ..Options::default() });
        bench.begin(w[0], &[id]);
        let noted = bench.exit(w[0]).contains(&format!("noted lost {id}"));
        assert_eq!(noted, runs_again, "a death");

        // Innocent, and may be run twice: but not if the reader would see that.
        let (mut bench, w) = Bench::ready(1);
        let (spins, _) = bench.task(Mode::Async);
        bench.next = id;
        bench.with(Mode::Async, Options { idempotent: true, ..Options::default() });
        bench.begin(w[0], &[0, id]);
        bench.abort(spins);
        bench.pass(ABORT_GRACE);
        assert_eq!(bench.tick(), ["kill 0"]);
        let lost = bench.exit(w[0]).contains(&format!("lost {id}"));
        assert_eq!(lost, !runs_again, "an innocent one");
    }
}

#[test]
fn a_task_is_watched_in_its_worker_and_moves_as_any() {
    let (mut bench, w) = Bench::ready(2);
    let (key, words) = bench.task(Mode::Sync);
    assert_eq!(words, ["send 1 0"]);
    assert_eq!(bench.core.watch(key), Some(Progress::Queued));
    bench.pass(DEAF);
    bench.tick();
    bench.pass(DEAF);
    assert_eq!(bench.tick(), ["send 0 0"], "it is taken back as any");
    assert_eq!(bench.core.watch(key), Some(Progress::Queued));
    bench.each(w[0], &[0], |claims, claim| {
        assert_eq!(claims.begin_or_tell(claim), crate::wire::claim::Begun::Watched);
    });
    assert_eq!(bench.core.watch(key), Some(Progress::Started));
    bench.reply(w[0], &[0]);
    assert_eq!(bench.core.watch(key), None);
}

#[test]
fn rule_8_a_sync_task_that_yields_is_woken_when_it_is_asked() {
    let (mut bench, w) = Bench::ready(1);
    bench.next = 1003;
    let (key, _) = bench.with(Mode::Sync, Options { grace: Some(20 * MS), ..Options::default() });
    bench.begin(w[0], &[1003]);
    assert_eq!(bench.abort(key), ["ask 0 1003"]);
}

#[test]
fn what_waits_for_its_next_try_counts_as_queued() {
    let (mut bench, w) = Bench::ready(1);
    let retry = Retry { most: 9, panics: true, wait_min: MS, wait_max: MS, ..Retry::default() };
    bench.with(Mode::Sync, Options { retry, ..Options::default() });
    bench.begin(w[0], &[0]);
    bench.answer(w[0], 0, Answer::Panicked);
    let census = bench.core.census();
    assert_eq!((census.queued, census.in_hand), (1, 0));
}

#[test]
fn a_worker_holds_as_many_async_tasks_as_there_are_slots() {
    let mut bench = Bench::new(1);
    bench.core.rules.concurrency = 1 << 16;
    bench.does(|core, now, actions| core.start_all(now, actions));
    let worker = bench.core.workers.keys()[0];
    bench.does(|core, now, actions| {
        _ = core.ready(worker, Some(TestMemory::new(1 << 16)), now, actions)
    });
    let mut slots = vec![false; 1 << 16];
    for _ in 0..1 << 16 {
        bench.task(Mode::Async);
    }
    for flight in &bench.core.workers.get(worker).expect("it lives").in_flight {
        assert!(!std::mem::replace(&mut slots[usize::from(flight.claim.slot)], true), "{flight:?}");
    }
    assert_eq!(slots.iter().filter(|used| **used).count(), 1 << 16);
}

#[test]
fn a_worker_that_gets_ready_after_its_time_has_failed_to_start() {
    let mut bench = Bench::new(1);
    bench.task(Mode::Sync);
    let worker = bench.core.workers.keys()[0];
    bench.core.hello(worker);
    bench.pass(Duration::from_secs(61));
    assert_eq!(bench.tick(), ["time out 0"]);
    let mut taken = true;
    assert_eq!(
        bench.does(|core, now, actions| taken = core.ready(worker, None, now, actions)),
        [""; 0]
    );
    assert!(!taken, "so that its end is told as that of a start");
    assert_eq!(bench.fail(worker), ["start failed 0"]);
}

#[test]
fn of_several_limits_the_earliest_counts_and_a_kill_overtakes_them_all() {
    let (mut bench, w) = Bench::ready(1);
    bench.task(Mode::Sync);
    bench.begin(w[0], &[0]);
    let now = bench.now;
    for limit in [5, 2, 3] {
        assert_eq!(
            bench.does(|core, _, actions| core.drain_by(now + limit * MS, now, actions)),
            [""; 0]
        );
    }
    assert_eq!(bench.deadline(), Some(now + 2 * MS));
    assert_eq!(bench.does(|core, now, actions| core.kill(now, actions)), ["kill 0"]);
    assert_eq!(bench.deadline(), Some(now + staff::KILL_LIMIT));
    assert_eq!(bench.exit(w[0]), ["closed 0", "ended"]);
}

#[test]
fn rule_23_what_a_worker_that_stands_still_has_not_begun_goes_to_another() {
    let (mut bench, w) = Bench::ready(2);
    // The one stands still with a task, the other takes everything else.
    assert_eq!(bench.task(Mode::Sync).1, ["send 1 0"]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [""; 0]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), ["send 0 0"]);
    bench.begin(w[0], &[0]);
    bench.reply(w[0], &[0]);
    for id in 1..5 {
        assert_eq!(bench.task(Mode::Sync).1, [format!("send 0 {id}")], "it hears");
        bench.begin(w[0], &[id]);
        bench.reply(w[0], &[id]);
    }
    // When the other has its hands full, the deaf one is better than nobody; and is no longer deaf
    // when it answers.
    bench.task(Mode::Sync);
    bench.begin(w[0], &[5]);
    bench.pass(LONG);
    assert_eq!(bench.task(Mode::Sync).1, ["send 1 6"]);
    bench.pass(2 * DEAF);
    assert_eq!(bench.tick(), [""; 0], "there is nobody else");
    bench.begin(w[1], &[6]);
    bench.reply(w[1], &[6]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 1 7"]);
}

/// Async tasks may run for as long as they like: nobody waits for their answers.
#[test]
fn rule_23_a_worker_that_has_begun_all_of_its_async_tasks_is_given_more() {
    let (mut bench, w) = Bench::ready(1);
    for id in 0..2 {
        assert_eq!(bench.task(Mode::Async).1, [format!("send 0 {id}")]);
    }
    bench.begin(w[0], &[0]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [""; 0]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [""; 0], "there is nobody else");
    assert_eq!(bench.task(Mode::Async).1, [""; 0], "it is deaf");
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [""; 0], "still");
    bench.begin(w[0], &[1]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), ["send 0 2"]);
}

#[test]
fn rule_23_a_worker_more_is_started_when_only_one_that_stands_still_is_there() {
    let mut bench = Bench::new(2);
    bench.task(Mode::Sync);
    let worker = bench.core.workers.keys()[0];
    bench.ready_now(worker);
    bench.begin(worker, &[0]);
    bench.reply(worker, &[0]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 1"]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [""; 0]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), ["start 1"]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [""; 0], "one is enough");
    let next = bench.core.workers.keys()[1];
    assert_eq!(bench.ready_now(next), [""; 0]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), ["send 1 1"]);
}

#[test]
fn rule_23_holds_in_a_pool_that_drains() {
    let mut bench = Bench::new(2);
    bench.task(Mode::Sync);
    let worker = bench.core.workers.keys()[0];
    assert_eq!(bench.ready_now(worker), ["send 0 0"]);
    assert_eq!(bench.does(|core, now, actions| core.drain(now, actions)), [""; 0]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [""; 0]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), ["start 1"]);
    let next = bench.core.workers.keys()[1];
    assert_eq!(
        bench.ready_now(next),
        [""; 0],
        "it does not leave before it has taken what it was started for"
    );
    bench.pass(DEAF);
    let mut words = bench.tick();
    words.sort();
    assert_eq!(words, ["retire 0", "send 1 0"]);
    bench.exit(worker);
    bench.begin(next, &[0]);
    assert_eq!(bench.reply(next, &[0]), ["retire 1"]);
    assert_eq!(bench.exit(next), ["ended"]);
}

#[test]
fn rule_23_a_spare_takes_what_a_worker_that_stands_still_has_not_begun() {
    let mut bench = Bench::with_policy(2, Policy { spares: 1, min: 1, ..Policy::default() });
    bench.does(|core, now, actions| core.start_all(now, actions));
    for key in bench.core.workers.keys() {
        bench.ready_now(key);
    }
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 0"]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [""; 0]);
    bench.pass(DEAF);
    let mut words = bench.tick();
    words.sort();
    assert_eq!(words, ["send 1 0", "start 2"]);
}

#[test]
fn rule_23_holds_for_the_last_task_of_a_worker() {
    let mut bench = Bench::with_policy(1, Policy { max_tasks: Some(1), ..Policy::default() });
    bench.does(|core, now, actions| core.start_all(now, actions));
    let worker = bench.core.workers.keys()[0];
    bench.ready_now(worker);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 0", "start 1"], "its successor is ordered");
    let next = bench.core.workers.keys()[1];
    bench.ready_now(next);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [""; 0]);
    bench.pass(DEAF);
    let words = bench.tick();
    assert!(words.contains(&"send 1 0".into()) && words.contains(&"retire 0".into()), "{words:?}");
}

#[test]
fn rule_23_who_stands_still_for_longer_than_a_task_may_take_is_killed_if_nobody_else_can_have_it() {
    for mode in [Mode::Sync, Mode::Async] {
        let (mut bench, w) = Bench::ready(1);
        assert_eq!(bench.with(mode, timeout(5 * DEAF)).1, ["send 0 0"]);
        for _ in 0..4 {
            bench.pass(DEAF);
            assert_eq!(bench.tick(), [""; 0]);
        }
        bench.pass(DEAF);
        assert_eq!(bench.tick(), ["kill 0"]);
        assert_eq!(bench.core.why_ended(w[0]), Some(ExitReason::Unresponsive));
        assert_eq!(bench.exit(w[0]), ["start 0"]);
        let next = bench.core.workers.keys()[0];
        assert_eq!(bench.ready_now(next), ["send 0 0"], "it runs elsewhere, for the first time");
    }
}

#[test]
fn rule_23_who_stands_still_is_waited_for_if_no_task_has_a_limit_or_one_has_begun() {
    let (mut bench, _) = Bench::ready(1);
    bench.task(Mode::Sync);
    let (mut other, w) = Bench::ready(1);
    other.task(Mode::Async);
    other.with(Mode::Async, timeout(DEAF));
    other.begin(w[0], &[0]);
    for _ in 0..1000 {
        bench.pass(DEAF);
        assert_eq!(bench.tick(), [""; 0]);
        other.pass(DEAF);
        assert_eq!(other.tick(), [""; 0]);
    }
}

#[test]
fn rule_23_a_deadline_that_passed_in_a_worker_that_stands_still_has_the_next_one_replace_it() {
    let (mut bench, _) = Bench::ready(1);
    let options = Options { deadline: Some(5 * DEAF), ..Options::default() };
    bench.with(Mode::Sync, options.clone());
    for _ in 0..4 {
        bench.pass(DEAF);
        assert_eq!(bench.tick(), [""; 0]);
    }
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [format!("timed out 0 {:?}", Limit::Deadline(5 * DEAF))]);
    assert_eq!(bench.with(Mode::Sync, options).1, ["send 0 1"]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), [""; 0]);
    bench.pass(DEAF);
    assert_eq!(bench.tick(), ["kill 0"]);
}

#[test]
fn rule_23_holds_for_async_tasks_of_which_some_have_begun() {
    let (mut bench, w) = Bench::ready(2);
    (0..3).for_each(|_| drop(bench.task(Mode::Async)));
    bench.begin(w[1], &[0]);
    bench.begin(w[0], &[1]);
    for _ in 0..2 {
        bench.pass(DEAF);
        let words = bench.tick();
        assert!(words.is_empty() || words == ["send 1 2"], "{words:?}");
    }
    bench.begin(w[1], &[2]);
    assert_eq!(
        bench.task(Mode::Async).1,
        ["send 1 3"],
        "not to the one that has fewer and stands still"
    );
}

#[test]
fn a_kill_settles_what_runs_when_it_has_stopped_and_the_rest_at_once() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 10);
    let keys: Vec<_> = (0..4).map(|_| bench.task(Mode::Sync)).collect();
    let first = bench.next - 4;
    bench.begin(w[0], &[first]);
    drop(keys);
    let mut words = bench.does(|core, now, actions| core.kill(now, actions));
    words.sort();
    assert_eq!(
        words,
        [
            format!("closed {}", first + 1),
            format!("closed {}", first + 2),
            format!("closed {}", first + 3),
            "kill 0".into()
        ]
    );
    assert_eq!(bench.exit(w[0]), [format!("closed {first}"), "ended".into()]);
    assert_eq!(
        (bench.core.cut_off().unbegun.len(), &bench.core.cut_off().begun[..]),
        (3, &[first][..])
    );
}

#[test]
fn what_has_not_begun_is_aborted_at_once_wherever_it_is() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 10);
    (0..5).for_each(|_| drop(bench.task(Mode::Sync)));
    bench.begin(w[0], &[1]);
    let mut count = 0;
    let words = bench.does(|core, now, actions| count = core.abort_unbegun(now, actions));
    assert_eq!((words.len(), count), (4, 4), "{words:?}");
    assert_eq!(bench.reply(w[0], &[1]), [""; 0]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 6"]);
}

#[test]
fn a_worker_goes_for_a_reason() {
    let (mut bench, w) = Bench::ready(3);
    let key = bench.task(Mode::Sync).0;
    bench.begin(w[2], &[0]);
    assert_eq!(bench.core.why_ended(w[2]), None, "it would be its own doing");
    bench.abort(key);
    assert_eq!(bench.core.why_ended(w[2]), Some(ExitReason::TaskStopped));
    let key = bench.task(Mode::Async).0;
    bench.begin(w[1], &[1]);
    bench.abort(key);
    assert_eq!(bench.core.why_ended(w[1]), None, "it may yield");
    bench.pass(ABORT_GRACE);
    bench.tick();
    assert_eq!(bench.core.why_ended(w[1]), Some(ExitReason::TaskStopped));
    bench.does(|core, now, actions| core.kill(now, actions));
    assert_eq!(bench.core.why_ended(w[0]), Some(ExitReason::Closed));
    assert_eq!(
        bench.core.why_ended(w[2]),
        Some(ExitReason::TaskStopped),
        "the first reason counts"
    );
}

/// Each step looks at no more than what it changes, so a hundred thousand are done in no time; and
/// the queue does not keep what has gone.
#[test]
fn a_hundred_thousand_are_aborted_one_by_one() {
    for backwards in [false, true] {
        let (mut bench, _) = Bench::ready(200);
        let mut keys: Vec<_> = (0..100_200).map(|_| bench.task(Mode::Sync).0).skip(200).collect();
        if backwards {
            keys.reverse();
        }
        for key in keys {
            assert_eq!(bench.abort(key).len(), 1);
            assert!(bench.core.queue.len() <= 2 * bench.core.queued() + 32);
        }
        assert_eq!(bench.core.queued(), 0);
    }
}

fn timeout(limit: Duration) -> Options {
    Options { timeout: Some(limit), ..Options::default() }
}

#[test]
fn rule_11_a_limit_counts_from_the_true_start() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    bench.with(Mode::Sync, timeout(50 * MS));
    bench.with(Mode::Sync, timeout(50 * MS));
    bench.begin_timed(w[0], 1);
    assert!(bench.core.deadline_moved());
    assert_eq!(bench.deadline(), Some(bench.now + 50 * MS));
    bench.pass(40 * MS);
    assert_eq!(bench.reply(w[0], &[1]), [""; 0]);
    bench.pass(5 * MS);
    bench.begin_timed(w[0], 2);
    bench.pass(5 * MS);
    assert_eq!(bench.tick(), [""; 0], "it has run for 5 ms");
    assert_eq!(bench.deadline(), Some(bench.now + 45 * MS));
    bench.pass(45 * MS);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.exit(w[0]), ["timed out 2 Timeout(50ms)", "start 0"]);
}

#[test]
fn rule_11_what_has_not_begun_is_not_over_and_is_looked_at_again() {
    let (mut bench, w) = Bench::ready(1);
    bench.with(Mode::Sync, timeout(50 * MS));
    bench.pass(50 * MS);
    assert_eq!(bench.tick(), [""; 0]);
    assert_eq!(bench.deadline(), Some(bench.now + 50 * MS));
    bench.pass(10 * MS);
    bench.begin_timed(w[0], 0);
    bench.pass(40 * MS);
    assert_eq!(bench.tick(), [""; 0]);
    bench.pass(10 * MS);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.reply(w[0], &[0]), [""; 0], "the reply that came first counts");
}

#[test]
fn rule_11_a_worker_that_lies_about_the_start_gains_one_limit_at_most() {
    for lie in [0, u64::MAX, 1 << 60] {
        let (mut bench, w) = Bench::ready(1);
        bench.with(Mode::Sync, timeout(50 * MS));
        bench.each(w[0], &[0], |claims, claim| {
            claims.note_start(claim, lie);
            assert!(claims.begin(claim));
        });
        bench.pass(50 * MS);
        if bench.tick().is_empty() {
            bench.pass(50 * MS);
            assert_eq!(bench.tick(), ["kill 0"], "{lie}");
        }
    }
}

#[test]
fn rule_11_a_deadline_ends_what_waits_what_runs_and_what_is_tried_again() {
    let deadline = Options { deadline: Some(50 * MS), ..Options::default() };
    let (mut bench, w) = Bench::ready(1);
    bench.with(Mode::Sync, deadline.clone());
    bench.begin(w[0], &[0]);
    bench.with(Mode::Sync, deadline.clone());
    bench.pass(50 * MS);
    assert_eq!(bench.tick(), ["kill 0", "timed out 1 Deadline(50ms)"]);
    assert_eq!(bench.exit(w[0]), ["timed out 0 Deadline(50ms)", "start 0"]);

    let (mut bench, w) = Bench::ready(1);
    let retry =
        Retry { most: 9, panics: true, wait_min: 80 * MS, wait_max: 80 * MS, ..Retry::default() };
    bench.with(Mode::Sync, Options { retry, ..deadline });
    bench.begin(w[0], &[0]);
    assert_eq!(bench.answer(w[0], 0, Answer::Panicked), (true, vec![]));
    bench.pass(50 * MS);
    assert_eq!(bench.tick(), ["timed out 0 Deadline(50ms)"]);
    assert_eq!(bench.deadline(), None);
}

#[test]
fn rule_8_a_sync_task_with_a_grace_is_asked_before_it_is_killed() {
    let (mut bench, w) = Bench::ready(1);
    let (key, _) = bench.with(Mode::Sync, Options { grace: Some(20 * MS), ..Options::default() });
    bench.begin(w[0], &[0]);
    assert_eq!(bench.abort(key), [""; 0]);
    bench.each(w[0], &[0], |claims, claim| assert_eq!(claims.look(claim), Progress::Asked));
    assert_eq!(bench.deadline(), Some(bench.now + 20 * MS));
    bench.pass(20 * MS);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.exit(w[0]), ["cancelled 0", "start 0"]);
}

#[test]
fn rule_8_an_async_task_with_a_grace_is_asked_then_dropped_and_only_then_killed() {
    let (mut bench, w) = Bench::ready(1);
    let grace = Options { grace: Some(20 * MS), ..Options::default() };
    let (key, _) = bench.with(Mode::Async, grace.clone());
    let (polite, _) = bench.with(Mode::Async, grace.clone());
    let (yielding, _) = bench.with(Mode::Async, grace);
    bench.begin(w[0], &[0, 1, 2]);
    for (id, key) in [key, polite, yielding].into_iter().enumerate() {
        assert_eq!(bench.abort(key), [format!("ask 0 {id}")]);
    }
    bench.each(w[0], &[0, 1, 2], |claims, claim| assert_eq!(claims.look(claim), Progress::Asked));
    assert_eq!(bench.abort(key), [""; 0], "it is being asked");
    assert_eq!(bench.reply(w[0], &[1]), [""; 0], "what it answers counts");
    assert_eq!(bench.deadline(), Some(bench.now + 20 * MS));
    bench.pass(20 * MS);
    assert_eq!(bench.tick(), ["cancel 0 0", "cancel 0 2"]);
    assert_eq!(bench.answer(w[0], 2, Answer::Dropped), (false, vec![]));
    assert_eq!(bench.deadline(), Some(bench.now + 20 * MS), "as long again, up to a second");
    bench.pass(20 * MS);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.exit(w[0]), ["cancelled 0", "start 0"]);
}

#[test]
fn rule_8_a_task_that_is_done_when_its_grace_is_over_costs_nobody_else() {
    let (mut bench, w) = Bench::ready(1);
    bench.teach(w[0], MS / 100);
    let (key, _) = bench.with(Mode::Sync, Options { grace: Some(20 * MS), ..Options::default() });
    bench.task(Mode::Sync);
    bench.task(Mode::Sync);
    bench.begin(w[0], &[1]);
    assert_eq!(bench.abort(key), [""; 0]);
    bench.finish(w[0], &[1]);
    bench.begin(w[0], &[2]);
    bench.pass(20 * MS);
    assert_eq!(bench.core.overdue(None, bench.now), w, "what it has answered is to be taken in");
    assert_eq!(bench.tick(), [""; 0], "its reply may be on its way");
    bench.pass(ABORT_GRACE);
    assert_eq!(bench.tick(), ["kill 0"], "or it only says so");
    assert_eq!(bench.exit(w[0])[..2], ["cancelled 1", "lost 2"]);
}

#[test]
fn rule_12_what_failed_is_tried_again_after_its_back_off_and_not_for_ever() {
    let retry = Retry { most: 2, wait_min: 10 * MS, wait_max: 100 * MS, ..Retry::default() };
    let (mut bench, w) = Bench::ready(1);
    bench.with(Mode::Sync, Options { retry, ..timeout(50 * MS) });
    bench.begin_timed(w[0], 0);
    assert_eq!(bench.exit(w[0]), ["noted lost 0", "start 0"]);
    let again = bench.core.workers.keys()[0];
    assert_eq!(bench.ready_now(again), [""; 0]);
    assert_eq!(bench.deadline(), Some(bench.now + 10 * MS));
    bench.pass(10 * MS);
    assert_eq!(bench.tick(), ["send 0 0"]);
    bench.begin_timed(again, 0);
    bench.pass(50 * MS);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.exit(again), ["noted timed out 0", "start 0"]);
    let again = bench.core.workers.keys()[0];
    bench.ready_now(again);
    bench.pass(20 * MS);
    assert_eq!(bench.tick(), ["send 0 0"]);
    bench.begin_timed(again, 0);
    assert_eq!(bench.exit(again), ["lost 0", "start 0"], "its third");
}

#[test]
fn rule_12_only_what_its_retries_are_for_is_tried_again() {
    for panics in [false, true] {
        let (mut bench, w) = Bench::ready(1);
        let retry = Retry { most: 1, panics, ..Retry::default() };
        bench.with(Mode::Sync, Options { retry, ..Options::default() });
        bench.begin(w[0], &[0]);
        let words = if panics { vec!["send 0 0".to_string()] } else { vec![] };
        assert_eq!(bench.answer(w[0], 0, Answer::Panicked), (panics, words));
    }
    // Nobody wants it any more.
    let (mut bench, w) = Bench::ready(1);
    let retry = Retry { most: 9, ..Retry::default() };
    let (key, _) = bench.with(Mode::Sync, Options { retry, ..Options::default() });
    bench.begin(w[0], &[0]);
    assert_eq!(bench.abort(key), ["kill 0"]);
    assert_eq!(bench.exit(w[0]), ["cancelled 0", "start 0"]);
}

#[test]
fn rule_12_a_tasks_own_error_is_tried_again_as_often_as_is_wanted_and_is_then_its_value() {
    let (mut bench, w) = Bench::ready(1);
    let retry = Retry { most: 2, wait_min: 10 * MS, wait_max: 10 * MS, ..Retry::default() };
    let (key, _) = bench.with(Mode::Sync, Options { retry, ..Options::default() });
    for _ in 0..2 {
        bench.begin(w[0], &[0]);
        assert_eq!(bench.answer(w[0], 0, Answer::Again), (true, vec![]));
        bench.pass(10 * MS);
        assert_eq!(bench.tick(), ["send 0 0"]);
    }
    bench.begin(w[0], &[0]);
    assert_eq!(bench.answer(w[0], 0, Answer::Again), (false, vec![]), "its third");
    assert!(bench.core.id_of(key).is_none());
    // Of a task that has no retries it is a value like any; and of one that was to be stopped.
    bench.task(Mode::Sync);
    bench.begin(w[0], &[1]);
    assert_eq!(bench.answer(w[0], 1, Answer::Again), (false, vec![]));
    let retry = Retry { most: 2, ..Retry::default() };
    let (key, _) =
        bench.with(Mode::Sync, Options { retry, grace: Some(20 * MS), ..Options::default() });
    bench.begin(w[0], &[2]);
    bench.abort(key);
    assert_eq!(bench.answer(w[0], 2, Answer::Again), (false, vec![]));
}

#[test]
fn rule_13_an_isolated_task_is_alone_and_is_killed_at_once() {
    let (mut bench, w) = Bench::ready(1);
    bench.task(Mode::Async);
    let isolated = Options { isolated: true, ..Options::default() };
    let (key, words) = bench.with(Mode::Async, isolated);
    assert_eq!(words, [""; 0]);
    assert_eq!(bench.task(Mode::Async).1, [""; 0], "it holds back the next");
    assert_eq!(bench.reply(w[0], &[0]), ["send 0 1"]);
    bench.begin(w[0], &[1]);
    assert_eq!(bench.abort(key), ["kill 0"]);
    assert_eq!(bench.exit(w[0]), ["cancelled 1", "start 0"]);
}

#[test]
fn rule_13_an_idempotent_neighbour_runs_again() {
    let (mut bench, w) = Bench::ready(1);
    let (key, _) = bench.task(Mode::Async);
    bench.with(Mode::Async, Options { idempotent: true, ..Options::default() });
    bench.task(Mode::Async);
    bench.begin(w[0], &[0, 1, 2]);
    bench.abort(key);
    bench.pass(ABORT_GRACE);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.exit(w[0]), ["cancelled 0", "lost 2", "start 0"]);
    assert_eq!(bench.core.queued(), 1);
}

#[test]
fn rule_8_a_reply_that_is_awaited_has_its_whole_time_though_its_task_is_stopped_with_a_shorter_grace()
 {
    for mode in [Mode::Sync, Mode::Async] {
        let (mut bench, w) = Bench::ready(1);
        let (key, _) = bench.with(mode, Options { grace: Some(20 * MS), ..timeout(10 * MS) });
        bench.begin(w[0], &[0]);
        bench.finish(w[0], &[0]);
        bench.pass(10 * MS);
        assert_eq!(bench.tick(), [""; 0], "it was done in time");
        let by = bench.now + ABORT_GRACE;
        bench.pass(MS);
        assert_eq!(bench.abort(key), [""; 0], "there is nobody to ask");
        assert_eq!(bench.deadline(), Some(by));
        bench.pass(ABORT_GRACE - MS);
        assert_eq!(bench.tick(), ["kill 0"]);
        assert_eq!(bench.exit(w[0]), ["cancelled 0", "start 0"]);
    }
}

#[test]
fn rule_11_a_deadline_that_passes_while_a_limit_stops_the_task_ends_it() {
    let (mut bench, w) = Bench::ready(2);
    let retry = Retry { most: 5, ..Retry::default() };
    let options = Options {
        timeout: Some(100 * MS),
        deadline: Some(150 * MS),
        grace: Some(1000 * MS),
        retry,
        ..Options::default()
    };
    bench.with(Mode::Sync, options);
    bench.begin_timed(w[1], 0);
    bench.pass(100 * MS);
    assert_eq!(bench.tick(), [""; 0], "it is asked, by its word");
    bench.pass(50 * MS);
    assert_eq!(bench.tick(), [""; 0]);
    bench.pass(950 * MS);
    assert_eq!(bench.tick(), ["kill 1"]);
    assert_eq!(
        bench.exit(w[1])[0],
        format!("timed out 0 {:?}", Limit::Deadline(150 * MS)),
        "and is not tried again"
    );
}

#[test]
fn rule_11_a_word_that_says_done_or_taken_back_evades_no_limit() {
    let (mut bench, w) = Bench::ready(1);
    bench.with(Mode::Sync, timeout(50 * MS));
    bench.begin_timed(w[0], 0);
    bench.finish(w[0], &[0]);
    bench.pass(50 * MS);
    assert_eq!(bench.tick(), [""; 0], "it may have ended in time");
    bench.pass(ABORT_GRACE);
    assert_eq!(bench.tick(), ["kill 0"]);
    assert_eq!(bench.exit(w[0])[0], format!("timed out 0 {:?}", Limit::Timeout(50 * MS)));

    let (mut bench, w) = Bench::ready(1);
    bench.with(Mode::Sync, timeout(50 * MS));
    bench.begin_timed(w[0], 0);
    bench.each(w[0], &[0], |claims, claim| {
        claims.offer(claim);
        assert_eq!(claims.revoke(claim), Progress::Queued);
    });
    bench.pass(50 * MS);
    assert_eq!(bench.tick(), ["kill 0"]);
}

#[test]
fn rule_11_what_has_ended_in_time_and_is_heard_of_later_counts_though_others_answer_meanwhile() {
    let (mut bench, w) = Bench::ready(1);
    bench.with(Mode::Async, timeout(50 * MS));
    bench.task(Mode::Async);
    bench.begin_timed(w[0], 0);
    bench.begin_timed(w[0], 1);
    bench.finish(w[0], &[0]);
    bench.pass(50 * MS);
    assert_eq!(bench.tick(), [""; 0]);
    assert_eq!(bench.reply(w[0], &[1]), [""; 0]);
    assert_eq!(bench.deadline(), Some(bench.now + ABORT_GRACE), "it is not forgotten by that");
    assert_eq!(bench.reply(w[0], &[0]), [""; 0]);
    assert_eq!(bench.deadline(), None);
}

#[test]
fn rule_8_what_is_being_stopped_does_not_run_again_whatever_its_word_says() {
    let (mut bench, w) = Bench::ready(2);
    let options = Options { timeout: Some(50 * MS), grace: Some(50 * MS), ..Options::default() };
    assert_eq!(bench.with(Mode::Sync, options).1, ["send 1 0"]);
    bench.begin_timed(w[1], 0);
    bench.pass(50 * MS);
    assert_eq!(bench.tick(), [""; 0]);
    bench.each(w[1], &[0], |claims, claim| claims.offer(claim)); // the worker writes its own word
    bench.pass(50 * MS);
    assert_eq!(bench.tick(), ["kill 1"]);
    assert_eq!(bench.exit(w[1])[0], format!("timed out 0 {:?}", Limit::Timeout(50 * MS)));
}
