//! Rule 24 where workers go on between two looks of the rules, or read late.

use super::super::simulation::TestMemory;
use super::super::*;
use super::Parcel;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What a worker does at one of the looks that the rules take at its words.
type Meanwhile = Rc<(Cell<usize>, RefCell<Option<Box<dyn FnOnce(Claims<'_>)>>>)>;

struct Watched(TestMemory, Meanwhile);

impl Memory for Watched {
    fn claims(&self) -> Claims<'_> {
        let (looks, goes_on) = &*self.1;
        match looks.get().checked_sub(1) {
            Some(left) => looks.set(left),
            None => goes_on.take().into_iter().for_each(|goes_on| goes_on(self.0.claims())),
        }
        self.0.claims()
    }
}

struct Bench {
    core: Core<Parcel, Watched>,
    now: Instant,
    actions: Vec<Action<Parcel>>,
    next: u64,
    meanwhile: Meanwhile,
}

impl Bench {
    fn new(workers: usize) -> (Self, Vec<WorkerKey>) {
        let now = Instant::now();
        let rules = Rules {
            workers,
            concurrency: 1,
            hello_limit: Duration::from_secs(30),
            start_limit: None,
            low_latency: false,
            policy: Policy::default(),
        };
        let core = Core::new(rules, Clock { moment: now, nanos: 0 });
        let mut bench = Self { core, now, actions: Vec::new(), next: 0, meanwhile: Rc::default() };
        bench.core.start_all(now, &mut bench.actions);
        let keys = bench.core.workers.keys();
        for key in &keys {
            let memory = Watched(TestMemory::new(64), Rc::clone(&bench.meanwhile));
            assert!(bench.core.ready(*key, Some(memory), now, &mut bench.actions));
        }
        bench.actions.clear();
        (bench, keys)
    }

    fn run(&mut self, items: u32) -> TaskKey {
        let id = self.next;
        self.next += u64::from(items);
        let cargo = Parcel { id, run: Some(Run::new(items)) };
        let call = Call { cargo, id, mode: Mode::Sync, large: false, options: None };
        self.core.submit(call, self.now, &mut self.actions).expect("it is taken")
    }

    fn flight(&self, worker: WorkerKey, at: usize) -> Flight {
        self.core.workers.get(worker).expect("it lives").in_flight[at]
    }

    fn claims(&self, worker: WorkerKey) -> Claims<'_> {
        self.core
            .workers
            .get(worker)
            .and_then(|worker| worker.memory.as_ref())
            .expect("it is ready")
            .0
            .claims()
    }
}

#[test]
fn what_is_aborted_together_is_aborted_whole_whenever_its_worker_goes_on() {
    for looks in 0..12 {
        let (mut bench, w) = Bench::new(1);
        // A first task, so that it is known how short they are.
        bench.run(1);
        let first = bench.flight(w[0], 0).claim;
        assert!(bench.claims(w[0]).begin(first));
        bench.now += Duration::from_micros(1);
        bench.core.replied(w[0], first.id, Answer::Final, bench.now).expect("it has it");
        bench.core.refill(w[0], 1, bench.now, &mut bench.actions);

        bench.run(4);
        bench.run(4);
        let (one, other) = (bench.flight(w[0], 0).claim, bench.flight(w[0], 1).claim);
        bench.claims(w[0]).set_up(one, 4);
        assert!(bench.claims(w[0]).begin(one));
        let goes_on = move |claims: Claims<'_>| {
            // As soon as nothing further of the one can begin; it begins the other if it may.
            let began = (1..4).take_while(|begun| claims.next(one, *begun)).count();
            assert!(began == 0 || looks < 2);
            claims.finish(one);
            claims.set_up(other, 4);
            claims.begin(other);
        };
        bench.meanwhile.0.set(looks);
        bench.meanwhile.1.replace(Some(Box::new(goes_on)));
        bench.actions.clear();
        bench.core.abort_where(|_| true, bench.now, &mut bench.actions);
        assert!(
            bench.core.tasks.iter().all(|(_, task)| task.stopping == Some(Stop::Abort)),
            "at look {looks}"
        );
        assert_eq!(bench.core.queued(), 0, "at look {looks}");
        assert!(
            !bench.actions.iter().any(|action| matches!(action, Action::Send(..))),
            "at look {looks}"
        );
    }
}

/// A worker that stood still reads a run that was taken back from it and given to it again: by the
/// old frame it is the same.
#[test]
fn what_is_sent_anew_is_what_an_old_frame_says() {
    let (mut bench, w) = Bench::new(2);
    let run = bench.run(3);
    let old = bench.flight(w[1], 0);
    while bench.core.worker_of(run) == Some(Some(w[1])) {
        bench.now += DEAF;
        bench.core.tick(bench.now, &mut bench.actions);
    }
    assert_eq!(bench.core.worker_of(run), Some(Some(w[0])));
    let loss = Arc::new(Loss { pid: 1, status: None, note: None, bad_frame: None, stderr: None });
    bench.core.exited(w[0], &loss, bench.now, &mut bench.actions);
    let again = bench.flight(w[1], 0);
    assert_eq!((again.claim, again.items), (old.claim, old.items));
}

#[test]
fn of_a_run_that_is_never_begun_one_item_after_another_is_lost() {
    let (mut bench, _) = Bench::new(1);
    bench.run(2);
    let loss = Arc::new(Loss { pid: 1, status: None, note: None, bad_frame: None, stderr: None });
    let mut lost = Vec::new();
    for _ in 0..2 * (usize::from(MOVES_MAX) + 1) {
        let keys = bench.core.workers.keys();
        bench.core.exited(keys[0], &loss, bench.now, &mut bench.actions);
        lost.extend(bench.actions.drain(..).filter_map(|action| match action {
            Action::Settle(Parcel { id, run }, Fate::Lost(_)) => {
                Some((id, run.expect("it is one").left()))
            }
            _ => None,
        }));
        let started = bench.core.workers.keys();
        let memory = Watched(TestMemory::new(64), Rc::default());
        assert!(bench.core.ready(started[0], Some(memory), bench.now, &mut bench.actions));
    }
    assert_eq!(lost, [(0, 1), (1, 1)]);
}

#[test]
fn a_run_leaves_something_for_each_worker_also_when_there_are_more_than_at_first() {
    let (mut bench, w) = Bench::new(1);
    bench.run(1);
    bench.now += Duration::from_micros(1);
    bench.core.replied(w[0], 0, Answer::Final, bench.now).expect("it has it");
    bench.core.refill(w[0], 1, bench.now, &mut bench.actions);
    assert_eq!((bench.core.run_length(usize::MAX), bench.core.run_length(20)), (1024, 10));
    bench.core.resize(5, 5, bench.now, &mut bench.actions);
    assert_eq!((bench.core.run_length(usize::MAX), bench.core.run_length(20)), (204, 2));
}

#[test]
fn an_unkillable_worker_keeps_one_item_of_a_run_that_it_has_not_begun() {
    let (mut bench, mut keys) = Bench::new(1);
    bench.run(3);
    let loss = Arc::new(Loss { pid: 1, status: None, note: None, bad_frame: None, stderr: None });
    for _ in 0..MOVES_MAX {
        bench.core.exited(keys[0], &loss, bench.now, &mut bench.actions);
        keys = bench.core.workers.keys();
        let memory = Watched(TestMemory::new(64), Rc::default());
        assert!(bench.core.ready(keys[0], Some(memory), bench.now, &mut bench.actions));
    }
    bench.core.doom(keys[0], bench.now, &mut bench.actions);
    bench.now += bench.core.rules.policy.kill_limit;
    bench.actions.clear();
    bench.core.tick(bench.now, &mut bench.actions);
    let told = bench.actions.iter().find_map(|action| match action {
        Action::Settle(Parcel { id, run }, Fate::Unkillable(_)) => {
            Some((*id, run.as_ref().expect("it is one").left()))
        }
        _ => None,
    });
    assert_eq!((told, bench.core.queued(), bench.core.census().queued), (Some((0, 1)), 1, 2));
}
