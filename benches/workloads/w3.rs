//! W3: `map` over integers, one task each; and over arrays of them, one task an array.

use crate::report::{Report, seconds_since};
use crate::{Options, Result, place, tasks};
use futures::StreamExt;
use procpool::Pool;
use std::time::Instant;

const ITEMS: usize = 1_000_000;
const ARRAYS: usize = 8;

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let count = options.laps(ITEMS);
    let chunk = count / ARRAYS;
    let (single, arrays) = place::runtime(options)?.block_on(measure(count))?;
    report.figure(
        "items",
        count as f64 / single,
        "items/s",
        &format!("n={count}, 2 workers, a task and an error of its own for each item"),
    );
    let note = format!("n={}, 2 workers, a task an array", chunk * ARRAYS);
    report.figure(
        &format!("items chunk={chunk}"),
        (chunk * ARRAYS) as f64 / arrays,
        "items/s",
        &note,
    );
    Ok(())
}

async fn measure(count: usize) -> Result<(f64, f64)> {
    let chunk = count / ARRAYS;
    let pool = Pool::builder().workers(2).build()?;
    pool.ready().await?;

    let start = Instant::now();
    let mut results = pool.map(tasks::identity, 0..count as u64);
    let mut got = Vec::with_capacity(count);
    while let Some(n) = results.next().await {
        got.push(n?);
    }
    let single = seconds_since(start);
    check(got, count);

    let start = Instant::now();
    let inputs =
        (0..ARRAYS as u64).map(|i| (i * chunk as u64..(i + 1) * chunk as u64).collect::<Vec<_>>());
    let mut results = pool.map(tasks::identities, inputs);
    let mut got = Vec::with_capacity(count);
    while let Some(part) = results.next().await {
        got.extend(part?);
    }
    let arrays = seconds_since(start);
    check(got, chunk * ARRAYS);

    pool.shutdown().await;
    Ok((single, arrays))
}

fn check(got: Vec<u64>, count: usize) {
    assert!(got.into_iter().eq(0..count as u64), "not what was put in");
}
