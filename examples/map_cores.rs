//! All cores at work on one job: the prime numbers below a limit, block by block. `map` gives the
//! results in order; `unordered` gives them as they finish; what crashes costs its own item.
//!
//!     cargo run --release --example map_cores -- LIMIT WORKERS
//!
//! LIMIT is 4,000,000 if it is left out, WORKERS the number of cores.

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use futures::StreamExt;
use nix::time::{ClockId, clock_gettime};
use procpool::Pool;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::error::Error;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

/// Into so many blocks the job is cut. There is nothing to tune: many more are as good.
const BLOCKS: u64 = 64;

// ---- in the workers

/// What a worker says about one block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Found {
    first: u64,
    primes: u64,
    /// Which process, and when: to see who worked side by side.
    pid: u32,
    begun: Duration,
    ended: Duration,
}

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// The task. It takes two arguments: `map` spreads a pair over them.
fn count(first: u64, end: u64) -> Found {
    let begun = now();
    let primes = (first..end).filter(|n| is_prime(*n)).count() as u64;
    Found { first, primes, pid: std::process::id(), begun, ended: now() }
}

/// The same with a bug, as a library might have it: one block ends the process.
fn count_or_crash(first: u64, end: u64) -> u64 {
    if first == 0 {
        std::process::abort();
    }
    count(first, end).primes
}

/// One clock for all processes.
fn now() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock"))
}

// ---- in the application

/// How many blocks were being worked on at once, at most.
fn side_by_side(found: &[Found]) -> i64 {
    let begun = found.iter().map(|block| (block.begun, 1));
    let ended = found.iter().map(|block| (block.ended, -1));
    let mut events: Vec<_> = begun.chain(ended).collect();
    events.sort_unstable(); // at the same moment, an end comes before a beginning
    let running = events.iter().scan(0, |running, (_, change)| {
        *running += change;
        Some(*running)
    });
    running.max().unwrap_or(0)
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let limit: u64 = args.first().map_or(Ok(4_000_000), |limit| limit.parse())?;
    let workers = match args.get(1) {
        Some(workers) => workers.parse()?,
        None => available_parallelism()?.get(),
    };
    let pool = Pool::builder().workers(workers).build()?;
    pool.ready().await?; // so that the work is measured, not the start
    // The last numbers take longest: they come first, so that no worker is left alone with them at
    // the end.
    let blocks = || (0..BLOCKS).rev().map(move |n| (n * limit / BLOCKS, (n + 1) * limit / BLOCKS));

    // In order: the results stand where the items stood, whoever was first.
    let start = now();
    let mut in_order = Vec::new();
    let mut results = pool.map(count, blocks());
    while let Some(found) = results.next().await {
        in_order.push(found?);
    }
    let took = now() - start;
    let is_in_order = in_order.iter().map(|found| found.first).eq(blocks().map(|(first, _)| first));
    let primes: u64 = in_order.iter().map(|found| found.primes).sum();
    let processes: BTreeSet<_> = in_order.iter().map(|found| found.pid).collect();
    println!("primes below {limit}: {primes}");
    println!("in the order of the input: {is_in_order}");
    println!(
        "worker processes: {}, none of them this one: {}",
        processes.len(),
        !processes.contains(&std::process::id())
    );
    println!("blocks worked on side by side: {}", side_by_side(&in_order));
    let worked: Duration = in_order.iter().map(|found| found.ended - found.begun).sum();
    println!(
        "the blocks took {worked:.1?}, the map {took:.1?}: {:.2} times as fast",
        worked.as_secs_f64() / took.as_secs_f64()
    );

    // As they finish: the same results, none of which waits for a slower one before it.
    let mut as_finished = Vec::new();
    let mut results = pool.map(count, blocks()).unordered();
    while let Some(found) = results.next().await {
        as_finished.push(found?);
    }
    let counts = |found: &[Found]| {
        found.iter().map(|found| (found.first, found.primes)).collect::<BTreeSet<_>>()
    };
    let is_same = counts(&as_finished) == counts(&in_order) && as_finished.len() == in_order.len();
    println!("as they finish, the same results: {is_same}");

    // Every item has an error of its own: one block is lost, with its process, and no other.
    let outcomes: Vec<_> = pool.map(count_or_crash, blocks()).collect().await;
    let rest: u64 = outcomes.iter().flatten().sum();
    let lost: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    let is_last =
        lost.iter().all(|error| error.is_worker_died() && error.item() == Some(BLOCKS - 1));
    println!(
        "with a crash in the last block: {} lost, {} blocks with {rest} primes",
        lost.len(),
        outcomes.len() - lost.len()
    );
    let is_contained = lost.len() == 1
        && is_last
        && rest + in_order.last().map_or(0, |found| found.primes) == primes;

    pool.shutdown().await;
    Ok(if is_in_order && is_same && is_contained { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
