//! W10: real work in many small pieces, over two workers, against a loop.

use crate::cost::{Cost, Meter, own_cpu};
use crate::report::{Report, seconds_since};
use crate::{Options, Result, place, tasks};
use futures::StreamExt;
use std::time::{Duration, Instant};

const ITEMS: usize = 20_000;
/// The loop and the pool take turns, so that a change of the machine's mood hits both.
const TURNS: u64 = 5;

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let count = options.laps(ITEMS) as u64;
    let (alone, pooled, work, cost) = place::runtime(options)?.block_on(measure(options, count))?;
    let note = format!("n={count} in {TURNS} turns");
    report.figure("sequential", alone, "s", &format!("{note}, a loop in the parent"));
    report.figure("speed-up default", alone / pooled, "x", &format!("{note}, 2 workers, map"));
    report.cost("", count as usize, cost, work, &note);
    Ok(())
}

async fn measure(options: &Options, count: u64) -> Result<(f64, f64, Duration, Cost)> {
    let pool = place::pool(options).workers(2).build()?;
    pool.ready().await?;
    let (mut alone, mut pooled, mut work) = (0.0, 0.0, Duration::ZERO);
    let mut meter = Meter::new()?;
    for turn in 0..TURNS {
        let seeds = turn * count / TURNS..(turn + 1) * count / TURNS;

        let (start, cpu) = (Instant::now(), own_cpu());
        let wanted: Vec<_> = seeds.clone().map(tasks::sha).collect();
        alone += seconds_since(start);
        work += own_cpu() - cpu;

        meter.start()?;
        let start = Instant::now();
        let mut results = pool.map(tasks::sha, seeds);
        let mut got = Vec::with_capacity(wanted.len());
        while let Some(byte) = results.next().await {
            got.push(byte?);
        }
        pooled += seconds_since(start);
        meter.stop()?;
        assert_eq!(got, wanted);
    }
    pool.shutdown().await;
    Ok((alone, pooled, work, meter.total()))
}
