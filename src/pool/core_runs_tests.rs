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
        let rules = Rules { workers, concurrency: 1, hello_limit: Duration::from_secs(30), start_limit: None, policy: Policy::default() };
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
        self.core.workers.get(worker).and_then(|worker| worker.memory.as_ref()).expect("it is ready").0.claims()
    }
}

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
            Action::Settle(Parcel { id, run }, Fate::Lost(_)) => Some((id, run.expect("it is one").left())),
            _ => None,
        }));
        let started = bench.core.workers.keys();
        let memory = Watched(TestMemory::new(64), Rc::default());
        assert!(bench.core.ready(started[0], Some(memory), bench.now, &mut bench.actions));
    }
    assert_eq!(lost, [(0, 1), (1, 1)]);
}
