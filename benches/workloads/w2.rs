//! W2: many no-op tasks, handed in one by one, then all awaited.

use crate::report::{Report, seconds_since};
use crate::{Options, Result, place, tasks};
use procpool::Pool;
use std::time::Instant;

const TASKS: usize = 50_000;

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let count = options.laps(TASKS);
    let took = place::runtime(options)?.block_on(measure(count))?;
    report.figure("tasks", count as f64 / took, "tasks/s", &format!("n={count}, 2 workers"));
    Ok(())
}

async fn measure(count: usize) -> Result<f64> {
    let pool = Pool::builder().workers(2).build()?;
    pool.ready().await?;
    let start = Instant::now();
    let handles: Vec<_> = (0..count as u64).map(|n| pool.spawn(tasks::identity, n)).collect();
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(handle.await?, n);
    }
    let took = seconds_since(start);
    pool.shutdown().await;
    Ok(took)
}
