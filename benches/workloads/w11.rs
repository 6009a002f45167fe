//! W11: a steady stream of short tasks at half load. What does a result wait for?

use crate::cost::{Cost, Meter};
use crate::report::Report;
use crate::{Options, Result, place, tasks};
use procpool::Pool;
use std::time::{Duration, Instant};

const WORKERS: u64 = 2;
const TASK_MICROS: u64 = 200;
/// One every 200 us: half of what two workers can do.
const INTERVAL: Duration = Duration::from_micros(2 * TASK_MICROS / WORKERS);
const IDLE_LAPS: usize = 500;
const TASKS: usize = 10_000;

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let laps = [options.laps(IDLE_LAPS), options.laps(TASKS)];
    let (idle, stream, cost) = place::runtime(options)?.block_on(measure(options, laps))?;
    let what = format!("{WORKERS} workers, tasks of {TASK_MICROS} us");
    report.latencies("idle ", idle, &format!("{what}, one every 5 ms"));
    let note = format!("{what}, one every {} us", INTERVAL.as_micros());
    report.latencies("stream ", stream, &note);
    let work = Duration::from_micros(TASK_MICROS) * laps[1] as u32;
    report.cost("", laps[1], cost, work, &format!("n={} {note}", laps[1]));
    Ok(())
}

async fn measure(
    options: &Options,
    [idle_laps, count]: [usize; 2],
) -> Result<(Vec<Duration>, Vec<Duration>, Cost)> {
    let pool = place::pool(options).workers(WORKERS as usize).build()?;
    pool.ready().await?;
    let mut meter = Meter::new()?;
    let idle = stream(&pool, idle_laps, Duration::from_millis(5)).await?;
    meter.start()?;
    let laps = stream(&pool, count, INTERVAL).await?;
    meter.stop()?;
    pool.shutdown().await;
    Ok((idle, laps, meter.total()))
}

/// Hands in a task at each interval, whatever has become of the earlier ones (an open loop). A
/// thread does it, whose sleep is finer than the runtime's timer.
async fn stream(pool: &Pool, count: usize, interval: Duration) -> Result<Vec<Duration>> {
    let (pool, runtime) = (pool.clone(), tokio::runtime::Handle::current());
    let laps = tokio::task::spawn_blocking(move || {
        let start = Instant::now();
        let hand_in = |at| {
            std::thread::sleep((interval * at).saturating_sub(start.elapsed()));
            let began = Instant::now();
            let handle = pool.spawn(tasks::spin, TASK_MICROS);
            runtime.spawn(async move { handle.await.map(|_| began.elapsed()) })
        };
        (0..count as u32).map(hand_in).collect::<Vec<_>>()
    });
    let mut took = Vec::with_capacity(count);
    for lap in laps.await? {
        took.push(lap.await??);
    }
    Ok(took)
}
