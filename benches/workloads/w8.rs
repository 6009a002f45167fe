//! W8: what a death and a time limit cost. Only the task concerned fails; how soon does the next
//! one run, and how late is a limit?

use crate::report::{Report, median};
use crate::{Options, Result, place, tasks};
use procpool::Pool;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const TRIALS: usize = 100;
const LIMIT: Duration = Duration::from_millis(20);

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let trials = options.laps(TRIALS).max(2);
    let dir = std::env::temp_dir().join(format!("procpool-w8-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let result = place::runtime(options)?.block_on(async {
        deaths(trials, &dir, report).await?;
        limits(trials, report).await
    });
    fs::remove_dir_all(&dir)?;
    result
}

/// From the kernel's word that a worker has ended (its pidfd is readable, as an observer of our own
/// sees it) to the start of the next task, which only a replacement can run.
async fn deaths(trials: usize, dir: &Path, report: &Report) -> Result<()> {
    let pool = Pool::builder().workers(1).build()?;
    pool.ready().await?;
    let mut next = Vec::new();
    for trial in 0..trials {
        let mark = dir.join(trial.to_string());
        let victim = pool.spawn(mark_and_spin, &*mark);
        let queued = pool.spawn(nanos_now, ());
        let pid = loop {
            match fs::read_to_string(&mark)
                .ok()
                .and_then(|text| text.strip_suffix('\n')?.parse::<i32>().ok())
            {
                Some(pid) => break pid,
                None => tokio::task::yield_now().await,
            }
        };
        let observer = std::thread::spawn(move || observe_the_end(pid));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        let error = victim.await.expect_err("it was killed");
        assert!(error.is_worker_died(), "{error}");
        let begun = queued.await?;
        let ended = observer.join().expect("the observer")?;
        next.push(begun.saturating_sub(ended) as f64 / 1e6);
    }
    pool.shutdown().await;
    let note = format!(
        "n={trials}, median, from the process's end to the start of the next task in a new one"
    );
    report.figure("next task", median(next), "ms", &note);
    Ok(())
}

/// How long after its limit a task is told to be over it, with its process gone.
async fn limits(trials: usize, report: &Report) -> Result<()> {
    let pool = Pool::builder().workers(1).build()?;
    pool.ready().await?;
    for (name, task) in [
        ("spinning", spin as fn(&Pool) -> procpool::JoinHandle<()>),
        ("stopped", stop),
        ("ignoring SIGTERM", ignore),
    ] {
        let mut late = Vec::new();
        for _ in 0..trials {
            pool.spawn(tasks::identity, 1).await?; // a worker is there
            let start = Instant::now();
            let error = task(&pool).await.expect_err("it never ends");
            assert!(error.is_timeout(), "{error}");
            late.push(start.elapsed().saturating_sub(LIMIT).as_secs_f64() * 1e3);
        }
        late.sort_unstable_by(f64::total_cmp);
        let note =
            format!("n={trials}, {name}, limit {LIMIT:?}, from submission to an idle worker");
        report.figure("limit overshoot p50", late[late.len() / 2], "ms", &note);
        report.figure("limit overshoot p99", late[late.len() * 99 / 100], "ms", &note);
    }
    pool.shutdown().await;
    Ok(())
}

fn spin(pool: &Pool) -> procpool::JoinHandle<()> {
    let task = || -> () {
        loop {
            std::hint::spin_loop();
        }
    };
    pool.task(task).timeout(LIMIT).spawn(())
}

fn stop(pool: &Pool) -> procpool::JoinHandle<()> {
    let task = || {
        nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGSTOP)
            .expect("a signal to oneself")
    };
    pool.task(task).timeout(LIMIT).spawn(())
}

fn ignore(pool: &Pool) -> procpool::JoinHandle<()> {
    let task = || -> () {
        // Blocked is as good as ignored, and needs no handler.
        let term = nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGTERM);
        term.thread_block().expect("a signal mask");
        loop {
            std::thread::park();
        }
    };
    pool.task(task).timeout(LIMIT).spawn(())
}

fn mark_and_spin(mark: PathBuf) {
    fs::write(mark, format!("{}\n", std::process::id())).expect("a mark");
    loop {
        std::hint::spin_loop();
    }
}

fn nanos_now() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// When the process was seen to have ended.
fn observe_the_end(pid: i32) -> nix::Result<u64> {
    // As the kernel reports it to anybody: it is a zombie, or gone.
    let stat = format!("/proc/{pid}/stat");
    while fs::read_to_string(&stat).is_ok_and(|stat| {
        !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X'))
    }) {
        std::hint::spin_loop();
    }
    Ok(nanos_now())
}
