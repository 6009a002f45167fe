//! W1: a task is handed in and awaited, one at a time; beside it a bare socket, in the same run.

use crate::child::Echo;
use crate::report::Report;
use crate::{Options, Result, place, tasks};
use procpool::Pool;
use std::time::{Duration, Instant};

const LAPS: usize = 20_000;
const WARM_UP: u64 = 200;
/// The pool and the bare socket take turns of about so many laps, so that a change of the machine's
/// mood hits both.
const BLOCK: usize = 500;
/// Laps at the start of each turn that do not count: caches, and the scheduler's idea of who runs
/// where.
const SETTLE: u64 = 20;

pub(crate) fn anywhere(options: &Options, report: &Report) -> Result<()> {
    run(options, report, "")
}

/// The same without a wake-up of another processor.
pub(crate) fn on_one_cpu(options: &Options, report: &Report) -> Result<()> {
    place::pin_to_one_cpu()?; // before any thread or process exists
    run(options, report, ", all on one cpu")
}

fn run(options: &Options, report: &Report, place: &str) -> Result<()> {
    let laps = options.laps(LAPS);
    let (pooled, bare) = place::runtime(options)?.block_on(measure(laps))?;
    report.latencies("", pooled, &format!("turns of {BLOCK}{place}"));
    report.latencies(
        "bare ",
        bare,
        &format!("turns of {BLOCK}{place}, tokio UnixStream, child on current_thread"),
    );
    Ok(())
}

async fn measure(laps: usize) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let pool = Pool::builder().workers(1).build()?;
    pool.ready().await?;
    let mut echo = Echo::start()?;
    for n in 0..WARM_UP {
        lap(&pool, n).await?;
        echo.lap().await?;
    }
    let (mut pooled, mut bare) = (Vec::with_capacity(laps), Vec::with_capacity(laps));
    while pooled.len() < laps {
        let block = BLOCK.min(laps - pooled.len());
        for n in 0..SETTLE {
            lap(&pool, n).await?;
        }
        for n in 0..block as u64 {
            let n = 1_000 + n; // so that every frame is as long as the bare ones
            let start = Instant::now();
            lap(&pool, n).await?;
            pooled.push(start.elapsed());
        }
        for _ in 0..SETTLE {
            echo.lap().await?;
        }
        for _ in 0..block {
            let start = Instant::now();
            echo.lap().await?;
            bare.push(start.elapsed());
        }
    }
    echo.stop()?;
    pool.shutdown().await;
    Ok((pooled, bare))
}

async fn lap(pool: &Pool, n: u64) -> Result<()> {
    assert_eq!(pool.spawn(tasks::identity, n).await?, n);
    Ok(())
}
