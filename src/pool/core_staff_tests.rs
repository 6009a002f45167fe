//! Each rule of the staff by itself; see `core_staff.rs` for their numbers.

use super::super::tests::{Bench, MS};
use super::*;
use crate::pool::core::{Duty, LONG, Mode};

const SECOND: Duration = Duration::from_secs(1);

/// All workers are there and idle, the spares too.
fn manned(workers: usize, policy: Policy) -> (Bench, Vec<WorkerKey>) {
    let mut bench = Bench::with_policy(workers, policy);
    bench.does(|core, now, actions| core.start_all(now, actions));
    let keys = bench.core.workers.keys();
    for key in &keys {
        assert_eq!(bench.ready_now(*key), [""; 0]);
    }
    (bench, keys)
}

fn duty(bench: &Bench, key: WorkerKey) -> Option<Duty> {
    bench.core.workers.get(key).map(|worker| worker.post.duty)
}

/// The worker whose start was ordered last.
fn newest(bench: &Bench) -> WorkerKey {
    let starting = bench
        .core
        .workers
        .iter()
        .filter(|(_, worker)| matches!(worker.state, State::Starting { .. }));
    starting.max_by_key(|(key, worker)| (worker.started, *key)).expect("one is starting").0
}

#[test]
fn rule_16_the_old_one_serves_until_its_successor_is_ready() {
    let (mut bench, w) = manned(1, Policy { lifetime: Some(SECOND), ..Policy::default() });
    bench.teach(w[0], MS / 100);
    bench.pass(SECOND);
    assert_eq!(bench.tick(), ["start 1"]);
    assert_eq!(bench.tick(), [""; 0], "one is enough");
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 1"]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 2"]);
    bench.begin(w[0], &[1]);
    let next = newest(&bench);
    assert_eq!(bench.ready_now(next), ["send 1 2"], "what has not begun moves on");
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    assert_eq!(bench.reply(w[0], &[1]), ["retire 0"]);
    assert_eq!(bench.core.why_ended(w[0]), Some(ExitReason::TooOld));
    assert_eq!(bench.exit(w[0]), [""; 0], "it is replaced already");
    assert_eq!(bench.deadline(), Some(bench.now + SECOND), "the age of the new one");
}

#[test]
fn rule_16_a_long_async_task_goes_on_and_its_worker_is_given_nothing_more() {
    let (mut bench, w) = manned(1, Policy::default());
    assert_eq!(bench.task(Mode::Async).1, ["send 0 0"]);
    bench.begin(w[0], &[0]);
    let mut generation = 0;
    assert_eq!(
        bench.does(|core, now, actions| generation = core.recycle(now, actions)),
        ["start 1"]
    );
    assert!(bench.core.stands(generation));
    let next = newest(&bench);
    assert_eq!(bench.ready_now(next), [""; 0]);
    assert!(!bench.core.stands(generation), "it is replaced, though it is not empty");
    assert_eq!(bench.task(Mode::Async).1, ["send 1 1"]);
    bench.pass(1000 * SECOND);
    assert_eq!(bench.tick(), [""; 0]);
    assert_eq!(bench.reply(w[0], &[0]), ["retire 0"]);
    assert_eq!(bench.core.why_ended(w[0]), Some(ExitReason::Recycled));
}

#[test]
fn rule_16_a_quarter_at_a_time() {
    let (mut bench, w) = manned(8, Policy::default());
    let mut generation = 0;
    let started = bench.does(|core, now, actions| generation = core.recycle(now, actions));
    assert_eq!(started, ["start 8", "start 9"]);
    let mut replaced = 0;
    while bench.core.stands(generation) {
        let next = newest(&bench);
        let words = bench.ready_now(next);
        assert_eq!(words.iter().filter(|word| word.starts_with("retire")).count(), 1, "{words:?}");
        replaced += 1;
        let census = bench.core.census();
        assert_eq!(census.idle, 8, "never fewer than before");
        assert!(census.starting <= 2);
    }
    assert_eq!(replaced, 8);
    assert!(w.iter().all(|key| duty(&bench, *key) == Some(Duty::Off)));
    assert_eq!(bench.core.census().starting, 0);
}

#[test]
fn rule_16_what_is_too_large_is_replaced_and_is_looked_at_now_and_then_only() {
    let (mut bench, w) = manned(1, Policy { resident_max: Some(1000), ..Policy::default() });
    bench.task(Mode::Sync);
    assert_eq!(bench.reply(w[0], &[0]), ["weigh 0"]);
    assert_eq!(bench.does(|core, now, actions| core.weighed(w[0], 1000, now, actions)), [""; 0]);
    bench.task(Mode::Sync);
    assert_eq!(bench.reply(w[0], &[1]), [""; 0], "it was just weighed");
    assert!(bench.core.deadline_moved());
    assert_eq!(bench.deadline(), Some(bench.now + WEIGH_EVERY));
    bench.pass(WEIGH_EVERY);
    assert_eq!(bench.tick(), ["weigh 0"]);
    assert_eq!(bench.deadline(), None, "it has answered nothing since");
    assert_eq!(
        bench.does(|core, now, actions| core.weighed(w[0], 1001, now, actions)),
        ["start 1"]
    );
    let next = newest(&bench);
    assert_eq!(bench.ready_now(next), ["retire 0"]);
    assert_eq!(bench.core.why_ended(w[0]), Some(ExitReason::MemoryMark));
}

#[test]
fn rule_16_a_start_that_fails_leaves_the_old_one_at_work() {
    let (mut bench, w) = manned(1, Policy::default());
    assert_eq!(bench.does(|core, now, actions| _ = core.recycle(now, actions)), ["start 1"]);
    let next = newest(&bench);
    assert_eq!(bench.fail(next), [""; 0]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 0"]);
    bench.begin(w[0], &[0]);
    bench.pass(LONG * 10);
    assert_eq!(bench.tick(), ["start 1"]);
    let next = newest(&bench);
    assert_eq!(bench.ready_now(next), [""; 0]);
    assert_eq!(bench.reply(w[0], &[0]), ["retire 0"]);
}

#[test]
fn rule_17_the_last_task_orders_a_successor_and_nobody_serves_more() {
    let (mut bench, w) = manned(1, Policy { max_tasks: Some(2), ..Policy::default() });
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 0"]);
    assert_eq!(bench.reply(w[0], &[0]), [""; 0]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 1", "start 1"]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    assert_eq!(bench.reply(w[0], &[1]), [""; 0], "it waits for its successor");
    let next = newest(&bench);
    assert_eq!(bench.ready_now(next), ["send 1 2", "retire 0"]);
    assert_eq!(bench.core.why_ended(w[0]), Some(ExitReason::TasksServed));
    assert_eq!(bench.exit(w[0]), [""; 0]);
}

#[test]
fn rule_17_a_death_in_the_last_task_is_a_death() {
    let (mut bench, w) = manned(1, Policy { max_tasks: Some(1), ..Policy::default() });
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 0", "start 1"]);
    bench.begin(w[0], &[0]);
    assert_eq!(bench.core.why_ended(w[0]), None);
    assert_eq!(bench.exit(w[0]), ["lost 0"]);
    let next = newest(&bench);
    assert_eq!(bench.ready_now(next), [""; 0]);
    assert_eq!(duty(&bench, next), Some(Duty::On), "it takes the vacant place");
    assert_eq!(bench.task(Mode::Sync).1, ["send 1 1", "start 0"]);
}

#[test]
fn rule_17_a_pool_that_drains_replaces_whom_it_needs() {
    let (mut bench, w) = manned(1, Policy { max_tasks: Some(1), ..Policy::default() });
    (0..3).for_each(|_| drop(bench.task(Mode::Sync)));
    assert_eq!(bench.does(|core, now, actions| core.drain(now, actions)), [""; 0]);
    let next = newest(&bench);
    assert_eq!(bench.reply(w[0], &[0]), [""; 0], "its successor is still to come");
    assert_eq!(bench.ready_now(next), ["send 1 1", "start 2", "retire 0"]);
    let last = newest(&bench);
    assert_eq!(bench.exit(w[0]), [""; 0]);
    assert_eq!(bench.reply(next, &[1]), [""; 0]);
    assert_eq!(
        bench.ready_now(last),
        ["send 2 2", "retire 1"],
        "nobody waits any more, so nobody else is started"
    );
    assert_eq!(bench.exit(next), [""; 0]);
    assert_eq!(bench.reply(last, &[2]), ["retire 2"]);
    assert_eq!(bench.exit(last), ["ended"]);
}

#[test]
fn rule_17_a_pool_that_drains_replaces_whom_it_needs_when_a_pause_is_over() {
    let (mut bench, w) = manned(1, Policy { max_tasks: Some(1), spares: 1, ..Policy::default() });
    // The spare is killed by somebody.
    assert_eq!(bench.exit(w[1]), [""; 0], "the next one comes after a pause");
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 0"]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    assert_eq!(bench.does(|core, now, actions| core.drain(now, actions)), [""; 0]);
    assert_eq!(bench.reply(w[0], &[0]), [""; 0], "it is the last that it may run");
    // Nothing else will happen.
    let pause = bench.deadline().expect("it is looked again");
    bench.now = pause;
    assert_eq!(bench.tick(), ["start 1"]);
    assert_eq!(bench.deadline().filter(|at| *at <= pause), None, "the pause is over");
    let next = newest(&bench);
    assert_eq!(bench.ready_now(next), ["send 1 1", "retire 0"]);
}

#[test]
fn rule_18_a_spare_stands_in_at_once() {
    let (mut bench, w) = manned(1, Policy { spares: 1, ..Policy::default() });
    assert_eq!(w.len(), 2);
    assert_eq!(bench.core.census().spare, 1);
    let (key, words) = bench.task(Mode::Sync);
    assert_eq!(words, ["send 0 0"]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0], "it has no place yet");
    bench.begin(w[0], &[0]);
    assert_eq!(
        bench.abort(key),
        ["kill 0", "send 1 1", "start 2"],
        "who is being killed does not keep its place; another spare is ordered"
    );
    assert_eq!(bench.tick(), [""; 0]);
    assert_eq!(bench.exit(w[0]), ["cancelled 0"]);
}

#[test]
fn rule_18_a_spare_that_nobody_needs_takes_a_vacant_place_or_leaves() {
    let (mut bench, w) = manned(2, Policy::default());
    bench.does(|core, now, actions| _ = core.recycle(now, actions));
    let next = newest(&bench);
    bench.does(|core, now, actions| core.resize(1, 1, now, actions));
    assert_eq!(duty(&bench, w[0]), Some(Duty::Off));
    assert_eq!(bench.exit(w[1]), [""; 0], "it died idle");
    assert_eq!(bench.ready_now(next), [""; 0]);
    assert_eq!(duty(&bench, next), Some(Duty::On));
    assert_eq!(bench.task(Mode::Sync).1, ["send 2 0"]);
}

#[test]
fn rule_19_the_longest_idle_leave_down_to_the_least() {
    let (mut bench, w) = manned(3, Policy { idle_limit: Some(SECOND), ..Policy::default() });
    bench.does(|core, now, actions| core.resize(1, 3, now, actions));
    assert_eq!(bench.deadline(), Some(bench.now + SECOND));
    bench.pass(SECOND / 2);
    assert_eq!(bench.task(Mode::Async).1, ["send 2 0"]);
    bench.reply(w[2], &[0]);
    bench.pass(SECOND / 2);
    assert_eq!(bench.tick(), ["retire 0", "retire 1"]);
    assert_eq!(bench.core.why_ended(w[0]), Some(ExitReason::Idle));
    bench.pass(SECOND);
    assert_eq!(bench.tick(), [""; 0], "the last one stays");
    assert_eq!(
        bench.deadline(),
        Some(bench.now - SECOND + 5 * SECOND),
        "those that leave have their time"
    );
    assert_eq!((bench.exit(w[0]), bench.exit(w[1])), (vec![], vec![]));
    assert_eq!(bench.task(Mode::Sync).1, ["send 2 1"]);
    assert_eq!(bench.task(Mode::Sync).1, ["start 1"], "and it grows again");
}

#[test]
fn rule_19_a_pool_may_shrink_to_nobody() {
    let (mut bench, w) =
        manned(1, Policy { min: 0, idle_limit: Some(SECOND), ..Policy::default() });
    bench.pass(SECOND);
    assert_eq!(bench.tick(), ["retire 0"]);
    assert_eq!(bench.task(Mode::Sync).1, ["start 1"], "none is sent to a worker that is leaving");
    assert_eq!(bench.exit(w[0]), [""; 0]);
}

#[test]
fn rule_20_fewer_lose_their_places_in_order_and_nothing_is_interrupted() {
    let (mut bench, w) = manned(3, Policy::default());
    bench.does(|core, now, actions| core.resize(4, 4, now, actions));
    (0..3).for_each(|_| drop(bench.task(Mode::Async)));
    bench.begin(w[0], &[2]);
    bench.begin(w[1], &[1]);
    bench.begin(w[2], &[0]);
    assert_eq!(bench.submit(Mode::Sync, true).1, ["start 3"]);
    let starting = newest(&bench);
    assert_eq!(bench.reply(w[1], &[1]), ["send 1 3"]);
    bench.begin(w[1], &[3]);
    assert_eq!(bench.reply(w[1], &[3]), [""; 0]);
    assert_eq!(bench.does(|core, now, actions| core.resize(3, 3, now, actions)), [""; 0]);
    assert_eq!(duty(&bench, starting), Some(Duty::Spare));
    assert_eq!(bench.ready_now(starting), ["retire 3"]);
    assert_eq!(bench.core.why_ended(starting), Some(ExitReason::Surplus));
    assert_eq!(bench.does(|core, now, actions| core.resize(1, 1, now, actions)), ["retire 1"]);
    let stays = [w[0], w[2]].map(|key| duty(&bench, key));
    assert!(stays.contains(&Some(Duty::On)) && stays.contains(&Some(Duty::Off)));
    let (leaves, id) = if stays[0] == Some(Duty::Off) { (w[0], 2) } else { (w[2], 0) };
    assert!(bench.reply(leaves, &[id])[0].starts_with("retire"));
    assert_eq!(bench.core.why_ended(leaves), Some(ExitReason::Resized));
}

#[test]
fn rule_21_workers_that_end_before_they_are_given_a_task_halt_the_pool() {
    let (mut bench, mut w) =
        manned(1, Policy { restarts: Some(3), restarts_within: SECOND, ..Policy::default() });
    for _ in 0..3 {
        assert_eq!(bench.exit(w[0]), [""; 0]);
        bench.does(|core, now, actions| core.start_all(now, actions));
        w = bench.core.workers.keys();
        bench.ready_now(w[0]);
    }
    assert!(bench.core.halted().is_none());
    let (_, words) = bench.task(Mode::Sync);
    assert_eq!(words, ["send 0 0"]);
    bench.task(Mode::Sync);
    assert_eq!(bench.exit(w[0]), ["start 0"], "with a task in hand it does not count");
    w = bench.core.workers.keys();
    bench.ready_now(w[0]);
    bench.core.workers.get_mut(w[0]).expect("it lives").used = false;
    assert!(bench.exit(w[0]).is_empty() || bench.core.halted().is_some());
    let cause = bench.core.halted().expect("it has had enough").clone();
    assert!(cause.is_restart_limit() && cause.pid() == Some(1), "{cause}");
    assert_eq!(bench.submit(Mode::Sync, false).0, None);
    assert_eq!(bench.core.queued(), 0, "what waited has failed");
    bench.does(|core, now, actions| core.revive(now, actions));
    assert_eq!(bench.task(Mode::Sync).1, ["start 0"]);
}

#[test]
fn rule_21_a_budget_without_end_keeps_three_ends_and_not_every_one() {
    let policy =
        Policy { restarts: Some(u32::MAX), restarts_within: Duration::MAX, ..Policy::default() };
    let (mut bench, _) = manned(1, policy);
    for _ in 0..100 {
        bench.does(|core, now, actions| core.start_all(now, actions));
        for key in bench.core.workers.keys() {
            bench.ready_now(key);
            bench.exit(key);
        }
    }
    assert_eq!((bench.core.staff.deaths.len(), bench.core.staff.last_ends.len()), (100, 3));
}

#[test]
fn rule_21_only_deaths_of_the_period_count() {
    let (mut bench, mut w) =
        manned(1, Policy { restarts: Some(3), restarts_within: SECOND, ..Policy::default() });
    for _ in 0..20 {
        bench.pass(SECOND / 2);
        assert_eq!(bench.exit(w[0]), [""; 0]);
        bench.does(|core, now, actions| core.start_all(now, actions));
        w = bench.core.workers.keys();
        bench.ready_now(w[0]);
    }
    assert!(bench.core.halted().is_none());
}

#[test]
fn rule_21_an_answer_shows_that_it_works() {
    let (mut bench, w) = manned(2, Policy { restarts: Some(0), ..Policy::default() });
    let (_, words) = bench.task(Mode::Sync);
    assert_eq!(words, ["send 1 0"]);
    assert_eq!(bench.exit(w[0]), [""; 0]);
    assert!(bench.core.halted().is_some());
    assert_eq!(
        bench.task(Mode::Sync).1,
        [""; 0],
        "one is left, so it is not refused; but nobody is started"
    );
    assert_eq!(bench.reply(w[1], &[0]), ["send 1 1"]);
    assert!(bench.core.halted().is_none());
}

#[test]
fn rule_21_spares_that_end_at_once_are_not_started_without_a_pause() {
    let (mut bench, w) = manned(1, Policy { spares: 1, ..Policy::default() });
    assert_eq!(bench.exit(w[1]), [""; 0]);
    assert_eq!(bench.deadline(), Some(bench.now + BACKOFF_MIN));
    bench.pass(BACKOFF_MIN);
    assert_eq!(bench.tick(), ["start 1"]);
}

#[test]
fn rule_22_what_the_kernel_cannot_end_is_told_and_replaced() {
    let (mut bench, w) = manned(1, Policy::default());
    bench.teach(w[0], MS / 100);
    let (key, _) = bench.task(Mode::Sync);
    bench.begin(w[0], &[1]);
    assert_eq!(bench.abort(key), ["kill 0"]);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    assert_eq!(bench.deadline(), Some(bench.now + KILL_LIMIT));
    bench.pass(KILL_LIMIT);
    assert_eq!(bench.core.unended(bench.now), [w[0]]);
    assert_eq!(bench.tick(), ["unkillable 1 0", "start 1"]);
    assert_eq!(bench.core.census().leaving, 1, "it is not forgotten");
    let next = newest(&bench);
    assert_eq!(bench.ready_now(next), ["send 1 2"]);
    bench.reply(next, &[2]);
    assert_eq!(bench.does(|core, now, actions| core.drain(now, actions)), ["retire 1"]);
    assert_eq!(bench.exit(next), ["ended"], "the end does not wait for it");
}

#[test]
fn rule_22_one_that_ends_late_is_reaped_and_costs_nobody_else() {
    let (mut bench, w) = manned(1, Policy::default());
    let (key, _) = bench.task(Mode::Sync);
    bench.begin(w[0], &[0]);
    bench.abort(key);
    bench.pass(KILL_LIMIT);
    assert_eq!(bench.tick(), ["unkillable 0 0"]);
    assert_eq!(bench.exit(w[0]), [""; 0]);
    assert_eq!(bench.core.census().leaving, 0);
    assert_eq!(bench.task(Mode::Sync).1, ["start 0"]);
}

#[test]
fn rule_22_a_kill_ends_a_pool_whose_process_does_not_end() {
    let (mut bench, w) = manned(2, Policy::default());
    bench.task(Mode::Sync);
    bench.begin(w[1], &[0]);
    assert_eq!(bench.does(|core, now, actions| core.kill(now, actions)), ["kill 0", "kill 1"]);
    assert_eq!(bench.exit(w[0]), [""; 0]);
    bench.pass(KILL_LIMIT);
    assert_eq!(bench.tick(), ["unkillable 0 1", "ended"]);
}

#[test]
fn a_recycled_pool_exchanges_its_spares_and_those_that_are_starting() {
    let (mut bench, w) = manned(1, Policy { spares: 1, ..Policy::default() });
    let mut generation = 0;
    let words = bench.does(|core, now, actions| generation = core.recycle(now, actions));
    assert_eq!(words, ["retire 1", "start 2", "start 3"], "a new spare, and the successor");
    let (a, b) = (bench.core.workers.keys()[2], bench.core.workers.keys()[3]);
    assert_eq!(bench.ready_now(a), ["retire 0"]);
    assert!(!bench.core.stands(generation));
    assert_eq!(bench.ready_now(b), [""; 0]);
    assert_eq!((duty(&bench, a), duty(&bench, b)), (Some(Duty::On), Some(Duty::Spare)));
    assert_eq!(bench.core.why_ended(w[1]), Some(ExitReason::Recycled));

    let mut bench = Bench::with_policy(1, Policy::default());
    bench.task(Mode::Sync);
    let first = newest(&bench);
    bench.does(|core, now, actions| _ = core.recycle(now, actions));
    assert_eq!(bench.ready_now(first), ["send 0 0", "start 1"], "it has read what it read before");
}

#[test]
fn rule_17_who_waited_for_his_successor_leaves_when_nothing_is_queued_any_more_and_the_pool_ends() {
    let (mut bench, w) = manned(2, Policy { max_tasks: Some(2), ..Policy::default() });
    assert_eq!(bench.task(Mode::Sync).1, ["send 1 0"]);
    assert_eq!(bench.reply(w[1], &[0]), [""; 0]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 1 1", "start 2"]);
    assert_eq!(bench.task(Mode::Sync).1, ["send 0 2"]);
    bench.begin(w[0], &[2]);
    let (queued, words) = bench.task(Mode::Sync);
    assert_eq!(words, [""; 0]);
    assert_eq!(bench.does(|core, now, actions| core.drain(now, actions)), [""; 0]);
    let next = newest(&bench);
    assert_eq!(bench.fail(next), [""; 0]);
    assert_eq!(bench.reply(w[1], &[1]), [""; 0], "somebody is to take his place first");
    assert_eq!(bench.abort(queued), ["cancelled 3", "retire 1"]);
    assert_eq!(bench.exit(w[1]), [""; 0]);
    assert_eq!(bench.reply(w[0], &[2]), ["retire 0"]);
    assert_eq!(bench.exit(w[0]), ["ended"]);
}

#[test]
fn a_backlog_waits_for_sync_tasks_alone_if_all_workers_run_one_and_none_is_being_started() {
    let (mut bench, w) = manned(2, Policy::default());
    let _ = bench.task(Mode::Sync);
    assert!(!bench.core.has_backlog(), "one is idle");
    let _ = bench.task(Mode::Sync);
    assert_eq!((bench.core.has_backlog(), bench.core.all_at_sync_tasks()), (false, None));
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    assert_eq!((bench.core.has_backlog(), bench.core.all_at_sync_tasks()), (true, Some(w)));
    bench.does(|core, now, actions| core.resize(1, 3, now, actions));
    assert_eq!(bench.core.all_at_sync_tasks(), None, "one is being started");

    let (mut bench, _) = manned(1, Policy::default());
    let _ = bench.task(Mode::Async);
    assert_eq!(bench.task(Mode::Sync).1, [""; 0]);
    assert_eq!((bench.core.has_backlog(), bench.core.all_at_sync_tasks()), (true, None));
}
