//! W3: `map` over integers, one task each; and over arrays of them, one task an array.

use crate::cost::{Cost, Meter};
use crate::report::{Report, seconds_since};
use crate::{Options, Result, place, tasks};
use futures::StreamExt;
use std::time::{Duration, Instant};

const ITEMS: usize = 1_000_000;
const ARRAYS: usize = 8;

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let count = options.laps(ITEMS);
    let chunk = count / ARRAYS;
    let [(single, single_cost), (arrays, arrays_cost)] =
        place::runtime(options)?.block_on(measure(options, count))?;
    let note = format!("n={count}, 2 workers, a task and an error of its own for each item");
    report.figure("items", count as f64 / single, "items/s", &note);
    report.cost("", count, single_cost, Duration::ZERO, &note);
    let note = format!("n={}, 2 workers, a task an array", chunk * ARRAYS);
    report.figure(
        &format!("items chunk={chunk}"),
        (chunk * ARRAYS) as f64 / arrays,
        "items/s",
        &note,
    );
    let suffix = format!(" chunk={chunk}");
    report.cost(&suffix, chunk * ARRAYS, arrays_cost, Duration::ZERO, &note);
    Ok(())
}

async fn measure(options: &Options, count: usize) -> Result<[(f64, Cost); 2]> {
    let chunk = count / ARRAYS;
    let pool = place::pool(options).workers(2).build()?;
    pool.ready().await?;

    let mut meter = Meter::new()?;
    meter.start()?;
    let start = Instant::now();
    let mut results = pool.map(tasks::identity, 0..count as u64);
    let mut got = Vec::with_capacity(count);
    while let Some(n) = results.next().await {
        got.push(n?);
    }
    let single = seconds_since(start);
    meter.stop()?;
    let single = (single, meter.total());
    check(got, count);

    let mut meter = Meter::new()?;
    meter.start()?;
    let start = Instant::now();
    let inputs =
        (0..ARRAYS as u64).map(|i| (i * chunk as u64..(i + 1) * chunk as u64).collect::<Vec<_>>());
    let mut results = pool.map(tasks::identities, inputs);
    let mut got = Vec::with_capacity(count);
    while let Some(part) = results.next().await {
        got.extend(part?);
    }
    let arrays = seconds_since(start);
    meter.stop()?;
    check(got, chunk * ARRAYS);

    pool.shutdown().await;
    Ok([single, (arrays, meter.total())])
}

fn check(got: Vec<u64>, count: usize) {
    assert!(got.into_iter().eq(0..count as u64), "not what was put in");
}
