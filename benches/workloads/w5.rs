//! W5: how long workers take to start, beside bare starts of the same program; and what an idle one
//! holds in memory. Then the same of workers that are forked from a template (`forked.rs`).

use crate::child::Starts;
use crate::cost::children;
use crate::forked::{self, pss};
use crate::report::{Report, median, seconds_since};
use crate::{Options, Result, place};
use procpool::Pool;
use std::fs;
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;
const MANY: usize = 16;

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let rounds = options.laps(ROUNDS);
    let (memory, took) = place::runtime(options)?.block_on(measure(rounds))?;
    let [two, many, bare] = took.map(median);
    let note = format!("n={rounds} median");
    report.figure("start 2", two, "ms", &format!("{note}, from build to ready()"));
    report.figure(&format!("start {MANY}"), many, "ms", &format!("{note}, from build to ready()"));
    report.figure(
        &format!("bare start {MANY}"),
        bare,
        "ms",
        &format!("{note}, std Command, to the first byte of each from main"),
    );
    let note = "PSS of the tree less the parent's before, / workers, idle";
    report.figure(&format!("memory/worker {MANY}"), memory, "MB", note);
    let isolated = options.laps(forked::ISOLATED);
    place::runtime(options)?.block_on(async {
        forked::run(rounds, isolated, report).await?;
        forked::memory(report, options.quick).await
    })
}

async fn measure(rounds: usize) -> Result<(f64, [Vec<f64>; 3])> {
    // First: later the parent's heap has grown.
    let memory = memory_per_worker().await?;
    let mut took: [Vec<f64>; 3] = Default::default();
    for round in 0..=rounds {
        let ms = [start_pool(2).await?, start_pool(MANY).await?, start_bare()?];
        if round > 0 {
            took.iter_mut().zip(ms).for_each(|(all, ms)| all.push(ms));
        }
    }
    Ok((memory, took))
}

/// Milliseconds until all are ready; they end outside of the timing.
async fn start_pool(workers: usize) -> Result<f64> {
    let start = Instant::now();
    let pool = Pool::builder().workers(workers).build()?;
    pool.ready().await?;
    let took = seconds_since(start);
    pool.shutdown().await;
    Ok(took * 1e3)
}

/// Milliseconds until all have said something; they are reaped outside of the timing.
fn start_bare() -> Result<f64> {
    let start = Instant::now();
    let children = Starts::start(MANY)?;
    let took = seconds_since(start);
    children.reap()?;
    Ok(took * 1e3)
}

async fn memory_per_worker() -> Result<f64> {
    let own = std::process::id();
    // The process that started this one has the same program mapped: it shares in the pages.
    let starter = std::os::unix::process::parent_id();
    let mut tree = vec![own];
    if fs::read_link(format!("/proc/{starter}/exe"))
        .is_ok_and(|exe| std::env::current_exe().is_ok_and(|ours| ours == exe))
    {
        tree.push(starter);
    }
    let before = pss(&tree)?;
    let pool = Pool::builder().workers(MANY).build()?;
    pool.ready().await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let workers = children()?;
    assert_eq!(workers.len(), MANY, "not all of them are children of ours");
    tree.extend(workers);
    let after = pss(&tree)?;
    pool.shutdown().await;
    Ok((after - before) / MANY as f64)
}
