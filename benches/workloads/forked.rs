//! The part of W5 about workers that are forked from a template, beside a bare template: a process
//! of one thread that forks on request.

use crate::report::{Report, median, seconds_since};
use crate::{Result, child, tasks};
use procpool::{Pool, Template};
use std::convert::Infallible;
use std::fs;
use std::time::Instant;

const MANY: usize = 16;
/// Preloaded, and read by all.
const LOADED: usize = 256 << 20;
pub(crate) const ISOLATED: usize = 2000;

fn nothing() -> Result<(), Infallible> {
    Ok(())
}

pub(crate) async fn run(rounds: usize, isolated: usize, report: &Report) -> Result<()> {
    let note = format!("n={rounds} median");
    let template = Template::new(nothing, ())?;
    template.ready().await?;
    let mut zygote = child::Zygote::start()?;
    let mut took: [Vec<f64>; 4] = Default::default();
    for round in 0..=rounds {
        let ms = [
            start_forked(&template).await?,
            first_answer(Some(&template)).await?,
            zygote.lap()?,
            first_answer(None).await?,
        ];
        if round > 0 {
            took.iter_mut().zip(ms).for_each(|(all, ms)| all.push(ms));
        }
    }
    zygote.stop()?;
    let [many, forked, bare, fresh] = took.map(median);
    let from = format!("{note}, from build to ready(), the template is there");
    report.figure(&format!("start forked {MANY}"), many, "ms", &from);
    let from = format!("{note}, from spawn to the result, no worker is there");
    report.figure("fork to first answer", forked, "ms", &from);
    report.figure("start to first answer", fresh, "ms", &from);
    let from = format!("{note}, from the request to the first byte of the copy");
    report.figure("bare zygote fork", bare, "ms", &from);
    report.figure("fork/bare", forked / bare, "x", "at most 1.5");
    report.figure("fresh/fork", fresh / forked, "x", "at least 4");

    let per_second = isolated_tasks(&template, isolated).await?;
    let note = format!("n={isolated}, max_tasks_per_worker(1), 2 workers, 4 spares");
    report.figure("isolated tasks/s", per_second, "1/s", &note);
    Ok(())
}

async fn start_forked(template: &Template) -> Result<f64> {
    let start = Instant::now();
    let pool = Pool::builder().workers(MANY).fork_from(template).build()?;
    pool.ready().await?;
    let took = seconds_since(start);
    pool.shutdown().await;
    Ok(took * 1e3)
}

async fn first_answer(template: Option<&Template>) -> Result<f64> {
    let mut builder = Pool::builder().workers(1);
    if let Some(template) = template {
        builder = builder.fork_from(template);
    }
    let pool = builder.build()?;
    let start = Instant::now();
    pool.spawn(tasks::identity, 1).await?;
    let took = seconds_since(start);
    pool.shutdown().await;
    Ok(took * 1e3)
}

async fn isolated_tasks(template: &Template, count: usize) -> Result<f64> {
    let pool =
        Pool::builder().workers(2).spares(4).max_tasks_per_worker(1).fork_from(template).build()?;
    pool.ready().await?;
    let start = Instant::now();
    let all: Vec<_> = (0..count).map(|_| pool.spawn(std::process::id, ())).collect();
    for task in all {
        task.await?;
    }
    let took = seconds_since(start);
    pool.shutdown().await;
    Ok(count as f64 / took)
}

/// Memory of a template with so much preloaded and of its workers, all of which have read it.
pub(crate) async fn memory(report: &Report, quick: bool) -> Result<()> {
    let loaded = if quick { LOADED / 16 } else { LOADED };
    let mut all = Vec::new();
    for workers in [1, MANY] {
        let template = Template::new(load, loaded as u64)?;
        template.ready().await?;
        let pool = Pool::builder().workers(workers).fork_from(&template).build()?;
        pool.ready().await?;
        // Each of them, so that no page is one that it has not touched.
        let mut read = std::collections::BTreeSet::new();
        while read.len() < workers {
            for task in (0..workers).map(|_| pool.spawn(read_all, ())).collect::<Vec<_>>() {
                read.insert(task.await?);
            }
        }
        let pids: Vec<_> = read.into_iter().chain(template.pid()).collect();
        all.push(pss(&pids)?);
        pool.shutdown().await;
    }
    let (one, many) = (all[0], all[1]);
    let note =
        format!("PSS of a template with {} MiB and its workers, which read it", loaded >> 20);
    report.figure("memory forked 1", one, "MB", &note);
    report.figure(&format!("memory forked {MANY}"), many, "MB", &note);
    report.figure(&format!("memory {MANY}/1"), many / one, "x", "less than 1.15");
    Ok(())
}

fn load(bytes: u64) -> Result<Vec<u8>, Infallible> {
    Ok((0..bytes).map(|n| n as u8).collect())
}

/// Reads all, for long enough that others get their tasks, too.
fn read_all() -> u32 {
    let loaded = procpool::state::<Vec<u8>>().expect("it is preloaded");
    let sum: u64 = loaded.iter().map(|byte| u64::from(*byte)).sum();
    std::hint::black_box(sum);
    std::process::id()
}

/// The sum of their proportional set sizes, in MB.
pub(crate) fn pss(pids: &[u32]) -> Result<f64> {
    let mut kib = 0;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
        kib += line.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    Ok(kib as f64 / 1024.0)
}
