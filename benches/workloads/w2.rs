//! W2: many no-op tasks, handed in one by one, then all awaited.

use crate::cost::{Cost, Meter};
use crate::report::{Report, seconds_since};
use crate::{Options, Result, place, tasks};
use std::time::{Duration, Instant};

const TASKS: usize = 50_000;

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let count = options.laps(TASKS);
    let (took, cost) = place::runtime(options)?.block_on(measure(options, count))?;
    let note = format!("n={count}, 2 workers");
    report.figure("tasks", count as f64 / took, "tasks/s", &note);
    report.cost("", count, cost, Duration::ZERO, &note);
    Ok(())
}

async fn measure(options: &Options, count: usize) -> Result<(f64, Cost)> {
    let pool = place::pool(options).workers(2).build()?;
    pool.ready().await?;
    let mut meter = Meter::new()?;
    meter.start()?;
    let start = Instant::now();
    let handles: Vec<_> = (0..count as u64).map(|n| pool.spawn(tasks::identity, n)).collect();
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(handle.await?, n);
    }
    let took = seconds_since(start);
    meter.stop()?;
    pool.shutdown().await;
    Ok((took, meter.total()))
}
