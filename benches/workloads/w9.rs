//! W9: a heavy tail. Most tasks are short, a few are five hundred times longer; how close to the
//! best order comes the pool?

use crate::cost::{Cost, Meter};
use crate::report::{Report, seconds_since};
use crate::{Options, Result, place, tasks};
use futures::StreamExt;
use std::time::{Duration, Instant};

const WORKERS: usize = 2;
const SHORT: (usize, u64) = (10_000, 200);
const LONG: (usize, u64) = (10, 100_000);

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let work = work(options);
    let sum: f64 = seconds(work.iter().sum());
    let (took, cost) = place::runtime(options)?.block_on(measure(options, &work))?;
    let note = format!(
        "n={}, {WORKERS} workers, microseconds of CPU time: {} x {}, {} x {}",
        work.len(),
        SHORT.0,
        SHORT.1,
        LONG.0,
        LONG.1
    );
    report.figure("makespan/ideal", took / (sum / WORKERS as f64), "ratio", &note);
    report.figure(
        "greedy/ideal",
        greedy(&work) / (sum / WORKERS as f64),
        "ratio",
        "the list schedule of the same durations, simulated",
    );
    report.figure("makespan/greedy", took / greedy(&work), "ratio", &note);
    report.cost("", work.len(), cost, Duration::from_secs_f64(sum), &note);
    Ok(())
}

/// Microseconds of CPU time for each task, shuffled, the same in every run.
fn work(options: &Options) -> Vec<u64> {
    let mut work = vec![SHORT.1; options.laps(SHORT.0)];
    work.extend(std::iter::repeat_n(LONG.1, options.laps(LONG.0)));
    let mut state = 1_u64;
    for at in (1..work.len()).rev() {
        // Knuth's generator (MMIX); its high bits are the good ones.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        work.swap(at, (state >> 33) as usize % (at + 1));
    }
    work
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// Each task goes to whoever is free first, at no cost.
fn greedy(work: &[u64]) -> f64 {
    let mut free_at = [0; WORKERS];
    for task in work {
        let first = free_at.iter_mut().min().expect("there are workers");
        *first += task;
    }
    seconds(free_at.into_iter().max().unwrap_or_default())
}

async fn measure(options: &Options, work: &[u64]) -> Result<(f64, Cost)> {
    let pool = place::pool(options).workers(WORKERS).build()?;
    pool.ready().await?;
    let mut meter = Meter::new()?;
    meter.start()?;
    let start = Instant::now();
    let mut results = pool.map(tasks::spin, work.iter().copied()).unordered();
    let mut ended = 0;
    while let Some(result) = results.next().await {
        result?;
        ended += 1;
    }
    let took = seconds_since(start);
    meter.stop()?;
    assert_eq!(ended, work.len());
    drop(results);
    pool.shutdown().await;
    Ok((took, meter.total()))
}
