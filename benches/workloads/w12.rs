//! W12: many workers whose tasks wait. What does the pool's own part of each cost?

use crate::cost::{Cost, Meter};
use crate::report::{Report, seconds_since};
use crate::{Options, Result, place, tasks};
use futures::StreamExt;
use std::time::{Duration, Instant};

const WORKERS: usize = 64;
const TASKS: usize = 100_000;

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let count = options.laps(TASKS);
    let (took, cost) = place::runtime(options)?.block_on(measure(options, count))?;
    let note = format!("n={count}, {WORKERS} workers, tasks that sleep for 1 ms, map");
    report.figure("tasks", count as f64 / took, "tasks/s", &note);
    report.cost("", count, cost, Duration::ZERO, &note);
    Ok(())
}

async fn measure(options: &Options, count: usize) -> Result<(f64, Cost)> {
    let pool = place::pool(options).workers(WORKERS).build()?;
    pool.ready().await?;
    let mut meter = Meter::new()?;
    meter.start()?;
    let start = Instant::now();
    let mut results = pool.map(tasks::sleep, std::iter::repeat_n(1, count)).unordered();
    let mut ended = 0;
    while let Some(result) = results.next().await {
        result?;
        ended += 1;
    }
    let took = seconds_since(start);
    meter.stop()?;
    assert_eq!(ended, count);
    drop(results);
    pool.shutdown().await;
    Ok((took, meter.total()))
}
