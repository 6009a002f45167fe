//! Stopping tasks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{Proc, Scene, gone, mark, pass, pass_async, within};
use futures::FutureExt;
use futures::future::join_all;
use procpool::{JoinHandle, TaskError, TaskErrorKind};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

fn spin(marks: PathBuf) {
    mark(marks, std::process::id());
    loop {
        std::hint::spin_loop();
    }
}

fn echo(n: u32) -> u32 {
    n
}

fn pid() -> u32 {
    std::process::id()
}

fn mark_and_pass(line: u32, gate: PathBuf, marks: PathBuf) -> u32 {
    mark(marks, line);
    pass(gate);
    line
}

/// Says where its end is noted when it is dropped.
struct Ends(PathBuf);

impl Drop for Ends {
    fn drop(&mut self) {
        mark(&self.0, "end");
    }
}

#[tokio::test]
async fn a_queued_task_that_is_aborted_never_runs() {
    let scene = Scene::new(1);
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("ran"));
    let args = |n: u32| (n, gate.path().to_owned(), marks.path().to_owned());
    let running = scene.pool.spawn(mark_and_pass, args(0));
    marks.count(1).await;
    let worker = running.worker_pid();
    let [one, two, three] = [1, 2, 3].map(|n| scene.pool.spawn(mark_and_pass, args(n)));
    two.abort();
    // At once, although the worker is busy.
    let error = within("the aborted one", two).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_cancelled(), error.pid()),
        (TaskErrorKind::Cancelled, true, None)
    );
    assert_eq!(running.worker_pid(), worker);
    assert!(!running.is_finished());
    gate.open();
    assert_eq!(within("the running one", running).await.unwrap(), 0);
    assert_eq!(within("the first", one).await.unwrap(), 1);
    assert_eq!(within("the third", three).await.unwrap(), 3);
    assert_eq!(marks.lines(), ["0", "1", "3"]);
    assert_eq!(scene.workers().len(), 1);
    scene.end().await;
}

/// As above, after tasks so short that the worker is given several at a time.
#[tokio::test]
async fn a_task_handed_to_a_busy_worker_and_aborted_never_runs() {
    let scene = Scene::new(1);
    for outcome in
        within("many short tasks", join_all((0..2000).map(|n| scene.pool.spawn(echo, n)))).await
    {
        outcome.unwrap();
    }
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("ran"));
    let args = |n: u32| (n, gate.path().to_owned(), marks.path().to_owned());
    let [running, one, two, three] = [0, 1, 2, 3].map(|n| scene.pool.spawn(mark_and_pass, args(n)));
    marks.count(1).await;
    two.abort();
    assert!(within("the aborted one", two).await.unwrap_err().is_cancelled());
    gate.open();
    for (n, handle) in [(0, running), (1, one), (3, three)] {
        assert_eq!(within("the others", handle).await.unwrap(), n);
    }
    assert_eq!(marks.lines(), ["0", "1", "3"]);
    scene.end().await;
}

#[tokio::test]
async fn a_running_sync_task_is_stopped_with_its_process() {
    let scene = Scene::new(1);
    let marks = scene.marks("started");
    let handle = scene.pool.spawn(spin, marks.path());
    marks.count(1).await;
    let worker = Proc::of(marks.lines()[0].parse().unwrap()).unwrap();
    assert_eq!(handle.worker_pid(), Some(worker.pid));
    handle.abort();
    handle.abort(); // once more changes nothing
    let error = within("the aborted one", handle).await.unwrap_err();
    assert_eq!((error.kind(), error.exit_status()), (TaskErrorKind::Cancelled, None));
    assert!(worker.is_gone(), "it has been reported as stopped");
    let next = within("the next task", scene.pool.spawn(pid, ())).await.unwrap();
    assert_ne!(Proc::of(next), Some(worker));
    scene.end().await;
}

/// What the task had started stops with it: they are one process group.
#[tokio::test]
async fn what_an_aborted_task_had_started_is_stopped_too() {
    let scene = Scene::new(1);
    let marks = scene.marks("started");
    let start_and_wait = |marks: PathBuf| {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        mark(marks, child.id());
        child.wait().unwrap();
    };
    let handle = scene.pool.spawn(start_and_wait, marks.path());
    marks.count(1).await;
    let child = Proc::of(marks.lines()[0].parse().unwrap()).unwrap();
    handle.abort();
    assert!(within("the aborted one", handle).await.unwrap_err().is_cancelled());
    gone(&[child]).await;
    scene.end().await;
}

#[tokio::test]
async fn tasks_queued_behind_an_aborted_one_run_elsewhere() {
    let scene = Scene::new(2);
    let marks = scene.marks("started");
    let (mut gate, ran) = (scene.gate("gate"), scene.marks("ran"));
    let innocent =
        scene.pool.spawn(mark_and_pass, (7, gate.path().to_owned(), marks.path().to_owned()));
    let guilty = scene.pool.spawn(spin, marks.path());
    marks.count(2).await;
    let worker = guilty.worker_pid().unwrap();
    let once = |n: u32, ran: PathBuf| {
        mark(ran, n);
        std::process::id()
    };
    let behind: Vec<_> =
        (0..20).map(|n| scene.pool.spawn(once, (n, ran.path().to_owned()))).collect();
    guilty.abort();
    assert!(within("the aborted one", guilty).await.unwrap_err().is_cancelled());
    for outcome in within("those behind it", join_all(behind)).await {
        assert_ne!(outcome.unwrap(), worker);
    }
    let mut lines: Vec<u32> = ran.lines().iter().map(|line| line.parse().unwrap()).collect();
    lines.sort_unstable();
    assert_eq!(lines, (0..20).collect::<Vec<_>>(), "each ran once");
    assert!(!innocent.is_finished());
    gate.open();
    assert_eq!(within("its neighbour", innocent).await.unwrap(), 7);
    scene.end().await;
}

/// A worker has been sent several tasks, and is stopped because of the first.
#[tokio::test]
async fn tasks_handed_to_the_worker_of_an_aborted_one_run_elsewhere_once() {
    let scene = Scene::new(1);
    let marks = scene.marks("started");
    let ran = scene.marks("ran");
    let once = |n: u32, ran: PathBuf| mark(ran, n);
    for round in 0..5 {
        for outcome in
            within("many short tasks", join_all((0..500).map(|n| scene.pool.spawn(echo, n)))).await
        {
            outcome.unwrap();
        }
        let guilty = scene.pool.spawn(spin, marks.path());
        let behind: Vec<_> = (0..10)
            .map(|n| scene.pool.spawn(once, (round * 10 + n, ran.path().to_owned())))
            .collect();
        marks.count(round as usize + 1).await;
        guilty.abort();
        assert!(within("the aborted one", guilty).await.unwrap_err().is_cancelled());
        within("those behind it", join_all(behind))
            .await
            .into_iter()
            .for_each(|outcome| outcome.unwrap());
    }
    let lines: Vec<u32> = ran.lines().iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(lines, (0..50).collect::<Vec<_>>(), "each once, in order");
    scene.end().await;
}

#[tokio::test]
async fn an_async_task_is_dropped_at_its_await_point_and_the_worker_lives() {
    let scene = Scene::new(1);
    let (starts, ends) = (scene.marks("starts"), scene.marks("ends"));
    let wait = async |starts: PathBuf, ends: PathBuf| {
        let _ends = Ends(ends);
        mark(starts, "start");
        std::future::pending::<()>().await;
    };
    let mut gate = scene.gate("gate");
    let neighbour = scene.pool.spawn(
        async |gate: PathBuf| {
            pass_async(gate).await;
            std::process::id()
        },
        gate.path(),
    );
    let args = (starts.path().to_owned(), ends.path().to_owned());
    let tasks: Vec<_> = (0..10).map(|_| scene.pool.spawn(wait, &args)).collect();
    starts.count(10).await;
    let before = scene.workers();
    assert_eq!(before.len(), 1);
    assert_eq!(ends.lines().len(), 0);
    for (done, task) in (1..).zip(tasks) {
        task.abort();
        assert!(within("the aborted one", task).await.unwrap_err().is_cancelled());
        assert_eq!(ends.lines().len(), done, "it was dropped when it was reported");
    }
    gate.open();
    assert_eq!(within("its neighbour", neighbour).await.unwrap(), before[0].pid);
    assert_eq!(scene.workers(), before);
    scene.end().await;
}

#[tokio::test]
async fn an_async_task_that_reaches_no_await_point_is_killed_in_the_end() {
    let scene = Scene::new(1);
    let starts = scene.marks("starts");
    let neighbour = scene.pool.spawn(async || std::future::pending::<()>().await, ());
    let stuck = scene.pool.spawn(async |starts: PathBuf| spin(starts), starts.path());
    starts.count(1).await;
    let workers = scene.workers();
    stuck.abort();
    assert!(within("the aborted one", stuck).await.unwrap_err().is_cancelled());
    assert!(workers[0].is_gone());
    // Async tasks in one process share its fate.
    let error = within("its neighbour", neighbour).await.unwrap_err();
    assert_eq!((error.kind(), error.pid()), (TaskErrorKind::WorkerDied, Some(workers[0].pid)));
    scene.end().await;
}

/// What `JoinHandle::abort` grants an async task.
const GRACE: Duration = Duration::from_secs(1);

/// Each abort has a grace of its own: a worker that answers all in time lives, however many there
/// are.
#[tokio::test]
async fn a_worker_that_is_never_without_an_aborted_task_lives() {
    let scene = Scene::new(1);
    let mut gate = scene.gate("gate");
    let neighbour = scene.pool.spawn(async |gate: PathBuf| pass_async(gate).await, gate.path());
    #[derive(serde::Serialize, serde::Deserialize)]
    struct SlowToDrop {
        here: u32,
    }
    impl Drop for SlowToDrop {
        fn drop(&mut self) {
            if self.here != std::process::id() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    let wait = async |slow: SlowToDrop| {
        std::future::pending::<()>().await;
        drop(slow);
    };
    // Some are always on their way behind the one that is being dropped.
    let mut aborted: VecDeque<JoinHandle<()>> = VecDeque::new();
    let start = Instant::now();
    while start.elapsed() < 2 * GRACE {
        if aborted.len() < 16 {
            let next = scene.pool.spawn(wait, SlowToDrop { here: std::process::id() });
            next.abort();
            aborted.push_back(next);
        }
        while aborted.front().is_some_and(JoinHandle::is_finished) {
            assert!(
                within("the aborted one", aborted.pop_front().unwrap())
                    .await
                    .unwrap_err()
                    .is_cancelled()
            );
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for last in aborted {
        assert!(within("the last ones", last).await.unwrap_err().is_cancelled());
    }
    gate.open();
    within("its neighbour", neighbour).await.unwrap();
    scene.end().await;
}

/// The destructor of a task that is aborted panics: its neighbours have nothing to do with that.
#[tokio::test]
async fn a_panic_while_an_aborted_task_is_dropped_costs_no_neighbour() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("bomb"));
        }
    }
    let scene = Scene::new(1);
    let (mut gate, starts) = (scene.gate("gate"), scene.marks("starts"));
    let neighbour = scene.pool.spawn(async |gate: PathBuf| pass_async(gate).await, gate.path());
    let bomb = async |starts: PathBuf| {
        let _bomb = Bomb;
        mark(starts, "start");
        std::future::pending::<()>().await;
    };
    let task = scene.pool.spawn(bomb, starts.path());
    starts.count(1).await;
    task.abort();
    let error = within("the aborted one", task).await.unwrap_err();
    assert_eq!(error.panic_message(), Some("bomb"));
    gate.open();
    within("its neighbour", neighbour).await.unwrap();
    scene.end().await;
}

/// The follow-up is never given to the worker that is about to be killed.
#[tokio::test]
async fn a_task_submitted_right_after_an_abort_is_not_given_to_the_dying_worker() {
    let scene = Scene::new(1);
    let marks = scene.marks("started");
    for round in 1..=200 {
        let running = scene.pool.spawn(spin, marks.path());
        marks.count(round).await;
        running.abort();
        let next = scene.pool.spawn(echo, 7);
        assert_eq!(within("the next task", next).await.unwrap(), 7, "round {round}");
        assert!(within("the aborted one", running).await.unwrap_err().is_cancelled());
    }
    scene.end().await;
}

/// An abort that comes as the task ends: one outcome, and the next task is not hit.
#[tokio::test]
async fn an_abort_at_the_very_end_gives_the_result_or_cancelled_and_hits_nobody_else() {
    let scene = Scene::new(2);
    let (mut done, mut cancelled) = (0, 0);
    for round in 0..300_u32 {
        let handle = scene.pool.spawn(echo, round);
        for _ in 0..round % 50 * 20 {
            std::hint::spin_loop();
        }
        if round % 3 == 0 {
            tokio::task::yield_now().await;
        }
        handle.abort();
        let next = scene.pool.spawn(echo, 7);
        match within("the aborted one", handle).await {
            Ok(n) => {
                assert_eq!(n, round);
                done += 1;
            }
            Err(error) => {
                assert!(error.is_cancelled(), "{error}");
                cancelled += 1;
            }
        }
        assert_eq!(within("the next task", next).await.unwrap(), 7);
    }
    assert_eq!(done + cancelled, 300);
    scene.end().await;
}

#[tokio::test]
async fn an_abort_after_the_end_does_nothing() {
    let scene = Scene::new(1);
    let handle = scene.pool.spawn(pid, ());
    let abort = handle.abort_handle();
    assert_eq!(abort.id(), handle.id());
    let worker = within("a task", handle).await.unwrap();
    abort.abort();
    assert_eq!(within("the next task", scene.pool.spawn(pid, ())).await.unwrap(), worker);
    abort.clone().abort();
    assert_eq!(within("the next task", scene.pool.spawn(pid, ())).await.unwrap(), worker);
    scene.end().await;
}

#[tokio::test]
async fn a_task_aborted_before_its_worker_is_ready_never_runs() {
    let dir = Scene::new(1);
    let (mut gate, starts, ran) = (dir.gate("gate"), dir.marks("starts"), dir.marks("ran"));
    let init = |gate: PathBuf, starts: PathBuf| {
        mark(starts, "start");
        pass(gate);
        Ok::<_, String>(())
    };
    let scene = Scene::with(|builder| {
        builder.workers(2).on_worker_start(init, (gate.path().to_owned(), starts.path().to_owned()))
    });
    let run = |n: u32, ran: PathBuf| mark(ran, n);
    let handles = [0, 1, 2].map(|n| scene.pool.spawn(run, (n, ran.path().to_owned())));
    starts.count(1).await;
    for handle in handles {
        assert_eq!(handle.worker_pid(), None);
        handle.abort();
        assert!(within("the aborted one", handle).await.unwrap_err().is_cancelled());
    }
    gate.open();
    scene.serves().await;
    assert_eq!(ran.lines().len(), 0);
    scene.end().await;
    dir.end().await;
}

#[tokio::test]
async fn an_abort_handle_needs_neither_the_join_handle_nor_the_pool() {
    let scene = Scene::new(1);
    let marks = scene.marks("started");
    let handle = scene.pool.spawn(spin, marks.path());
    marks.count(1).await;
    let abort = handle.abort_handle();
    drop(handle);
    let worker = scene.workers();
    std::thread::spawn(move || abort.abort()).join().unwrap();
    gone(&worker).await;
    scene.serves().await;

    let other = Scene::new(1);
    let abort = other.pool.spawn(echo, 1).abort_handle();
    other.end().await;
    abort.abort();
    scene.end().await;
}

/// Given up at random points of start-up, queueing, running and delivery, each task ends once, and
/// nothing stays.
#[tokio::test]
async fn tasks_given_up_at_any_point_leave_the_pool_idle() {
    let scene = Scene::new(2);
    let stay = |micros: u64| std::thread::sleep(Duration::from_micros(micros));
    let stay_async = async |micros: u64| tokio::time::sleep(Duration::from_micros(micros)).await;
    let mut given_up = Vec::new();
    for round in 0..500_u64 {
        let micros = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 2047;
        let mut task = if round % 2 == 0 {
            scene.pool.spawn(stay, micros)
        } else {
            scene.pool.spawn(stay_async, micros)
        };
        match tokio::time::timeout(Duration::from_millis(1), &mut task).await {
            Ok(outcome) => outcome.unwrap(),
            Err(_) => {
                task.abort();
                given_up.push(task); // the next one is handed in before this one has ended
            }
        }
    }
    for outcome in within("those given up", join_all(given_up)).await {
        assert!(outcome.as_ref().map_or_else(TaskError::is_cancelled, |()| true), "{outcome:?}");
    }
    within("workers in the place of those killed", scene.pool.ready()).await.unwrap();
    // Nothing runs and nothing is queued: two tasks, handed in last, run at once.
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let two = [0, 1].map(|n| {
        scene.pool.spawn(mark_and_pass, (n, gate.path().to_owned(), marks.path().to_owned()))
    });
    marks.count(2).await;
    gate.open();
    within("two tasks", join_all(two))
        .await
        .into_iter()
        .for_each(|outcome| assert!(outcome.is_ok()));
    scene.end().await;
}

/// `ready()` is asked while a worker is being killed and another is idle.
#[tokio::test]
async fn ready_replaces_a_worker_that_is_being_killed() {
    let scene = Scene::new(2);
    let marks = scene.marks("started");
    for round in 1..=20 {
        within("ready", scene.pool.ready()).await.unwrap();
        let running = scene.pool.spawn(spin, marks.path());
        marks.count(round).await;
        running.abort();
        within("ready again", scene.pool.ready()).await.unwrap();
        assert!(within("the aborted one", running).await.unwrap_err().is_cancelled());
        assert_eq!(scene.workers().len(), 2);
    }
    scene.end().await;
}

/// A task that found nobody idle runs on the worker that becomes ready next, not behind one that
/// does not end.
#[tokio::test]
async fn a_task_behind_one_that_does_not_end_moves_to_a_worker_that_starts() {
    let scene = Scene::new(2);
    for n in 0..2000 {
        within("a short task", scene.pool.spawn(echo, n)).await.unwrap();
    }
    // One worker, of short tasks so far; these two go to it together.
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let two = [0, 1].map(|n| {
        scene.pool.spawn(mark_and_pass, (n, gate.path().to_owned(), marks.path().to_owned()))
    });
    marks.count(2).await;
    gate.open();
    within("two tasks", join_all(two))
        .await
        .into_iter()
        .for_each(|outcome| assert!(outcome.is_ok()));
    scene.end().await;
}

/// Long enough that only a hang reaches it.
const LONG: Duration = Duration::from_secs(30);

/// Serves until it is asked to stop.
async fn polite(marks: PathBuf) -> u32 {
    mark(marks, "begun");
    tokio::select! {
        () = procpool::cancelled() => {}
        () = std::future::pending() => {}
    }
    assert!(procpool::is_cancelled());
    procpool::cancelled().await; // and it stays so
    std::process::id()
}

#[tokio::test]
async fn an_async_task_with_a_grace_is_asked_and_what_it_returns_counts() {
    let scene = Scene::new(1);
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("begun"));
    let pass_and_look = async |gate: PathBuf| {
        pass_async(gate).await;
        (procpool::is_cancelled(), procpool::cancelled().now_or_never(), std::process::id())
    };
    let neighbour = scene.pool.spawn(pass_and_look, gate.path());
    // By a handle, by a token, by a time limit; each of several is asked for itself.
    let token = CancellationToken::new();
    let aborted = scene.pool.task(polite).grace(LONG).spawn(marks.path());
    let by_token = scene.pool.task(polite).grace(LONG).cancel_on(&token).spawn(marks.path());
    marks.count(2).await;
    aborted.abort();
    let worker = within("the aborted one", aborted).await.unwrap();
    assert!(!by_token.is_finished());
    token.cancel();
    assert_eq!(within("the one with a token", by_token).await.unwrap(), worker);
    let over =
        scene.pool.task(polite).timeout(Duration::from_millis(20)).grace(LONG).spawn(marks.path());
    assert_eq!(within("the one with a limit", over).await.unwrap(), worker);
    gate.open();
    assert_eq!(within("its neighbour", neighbour).await.unwrap(), (false, None, worker));
    scene.end().await;
}

#[tokio::test]
async fn an_async_task_that_does_not_heed_is_dropped_when_its_grace_is_over() {
    let scene = Scene::new(1);
    let (mut gate, starts, ends) = (scene.gate("gate"), scene.marks("starts"), scene.marks("ends"));
    let neighbour = scene.pool.spawn(
        async |gate: PathBuf| {
            pass_async(gate).await;
            std::process::id()
        },
        gate.path(),
    );
    let deaf = async |starts: PathBuf, ends: PathBuf| {
        let _ends = Ends(ends);
        mark(&starts, "start");
        procpool::cancelled().await;
        mark(starts, "asked");
        std::future::pending::<()>().await;
    };
    let grace = Duration::from_millis(50);
    let task = scene
        .pool
        .task(deaf)
        .grace(grace)
        .spawn((starts.path().to_owned(), ends.path().to_owned()));
    starts.count(1).await;
    let workers = scene.workers();
    let aborted_at = Instant::now();
    task.abort();
    starts.count(2).await;
    assert!(within("the aborted one", task).await.unwrap_err().is_cancelled());
    assert!(aborted_at.elapsed() >= grace);
    assert_eq!(ends.lines(), ["end"], "it was dropped when it was reported");
    gate.open();
    assert_eq!(within("its neighbour", neighbour).await.unwrap(), workers[0].pid);
    // And one that reaches no await point costs its process in the end.
    let stuck =
        scene.pool.task(async |starts: PathBuf| spin(starts)).grace(grace).spawn(starts.path());
    starts.count(3).await;
    stuck.abort();
    assert!(within("the one that spins", stuck).await.unwrap_err().is_cancelled());
    assert!(workers[0].is_gone());
    scene.end().await;
}

#[tokio::test]
async fn a_pool_that_ends_with_a_limit_asks_first() {
    let scene = Scene::new(2);
    let marks = scene.marks("begun");
    let task = scene.pool.task(polite).grace(LONG).spawn(marks.path());
    let sync = |marks: PathBuf| {
        mark(marks, "begun");
        while !procpool::is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        7
    };
    let sync = scene.pool.task(sync).grace(LONG).spawn(marks.path());
    marks.count(2).await;
    let cut_off = within("the end", scene.pool.shutdown_within(Duration::ZERO)).await;
    assert!(cut_off.is_empty(), "{cut_off:?}");
    assert!(task.await.is_ok());
    assert_eq!(sync.await.unwrap(), 7);
    assert_eq!(scene.workers(), []);
}

/// A sync task may have a runtime of its own, or threads.
#[tokio::test]
async fn a_sync_task_can_await_that_it_is_asked() {
    let scene = Scene::new(1);
    let marks = scene.marks("begun");
    let serve = |marks: PathBuf| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let one = procpool::cancelled();
            let elsewhere = tokio::spawn(procpool::cancelled());
            mark(marks, "begun");
            one.await;
            elsewhere.await.unwrap();
        });
        procpool::attempt()
    };
    for round in 1..=2 {
        let task = scene.pool.task(serve).grace(LONG).spawn(marks.path());
        marks.count(round).await;
        task.abort();
        assert_eq!(within("the aborted one", task).await.unwrap(), Some(1));
    }
    scene.end().await;
}

#[tokio::test]
async fn nobody_is_asked_outside_of_a_task() {
    assert!(!procpool::is_cancelled());
    assert_eq!(procpool::cancelled().now_or_never(), None);
}
