//! Producers, a bounded queue, and consumers that get killed: nothing is lost, and nothing is done
//! twice that counts.
//!
//!     cargo run --example pipeline
//!
//! Consumers lease their jobs, so what a dead one had is delivered again. What a job has come to is
//! written under the job's own name before it is acknowledged: doing it again writes the same.

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procpool::sync::{Map, QueueReceiver, QueueSender, Value};
use procpool::{JoinHandle, Manager, Pool, TaskError};
use std::time::Duration;

const PRODUCERS: u64 = 2;
const CONSUMERS: usize = 3;
/// Jobs of each producer.
const JOBS: u64 = 1_000;
/// Consumers that are killed, one after another.
const KILLS: u32 = 15;

fn work(job: u64) -> u64 {
    (0..10_000).fold(job, |n, _| {
        std::hint::black_box(n.wrapping_mul(6_364_136_223_846_793_005).rotate_left(17))
    })
}

// ---- in the workers

/// Sends its jobs; waits while the queue is full.
fn produce(jobs: QueueSender<u64>, producer: u64) -> Result<(), procpool::Failure> {
    for n in 0..JOBS {
        jobs.blocking_send(producer * JOBS + n)?;
    }
    Ok(())
}

/// Does jobs until there are no more, and all that others had are done. `tally`: how many
/// deliveries there were, how many of them of a job that was delivered before, and how many
/// acknowledgements.
fn consume(
    jobs: QueueReceiver<u64>,
    results: Map<u64, u64>,
    tally: [Value<u64>; 3],
) -> Result<(), procpool::Failure> {
    let [deliveries, again, done] = tally;
    while let Some(mut job) = jobs.blocking_lease()? {
        deliveries.fetch_add(1)?;
        if job.deliveries() > 1 {
            again.fetch_add(1)?;
        }
        results.blocking_insert(*job, work(*job))?;
        // An acknowledgement either counts or does not: a process that is killed here has sent it,
        // or not.
        job.blocking_ack()?;
        done.fetch_add(1)?;
    }
    Ok(())
}

// ---- in the application

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder().workers(PRODUCERS as usize + CONSUMERS + 1).build()?; // nobody stands behind another
    let manager: &Manager = pool.manager();
    let (sender, receiver) = manager.queue::<u64>(64)?.split()?;
    let results = manager.map::<u64, u64>()?;
    let tally = [manager.value(0)?, manager.value(0)?, manager.value(0)?];
    let consumer = || pool.spawn(consume, (receiver.clone(), results.clone(), tally.clone()));

    let producers: Vec<_> =
        (0..PRODUCERS).map(|n| pool.spawn(produce, (sender.clone(), n))).collect();
    let mut consumers: Vec<_> = (0..CONSUMERS).map(|_| consumer()).collect();

    let mut killed = 0;
    for n in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let victim = std::mem::replace(&mut consumers[n as usize % CONSUMERS], consumer());
        while !victim.is_finished() {
            // One that had not begun is not lost with its process, and runs in another: then that
            // is killed.
            if let Some(pid) = victim.worker_pid() {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        killed += u32::from(died(victim).await?);
    }
    for producer in producers {
        producer.await??;
    }
    drop(sender); // nobody can send any more, so the queue closes
    for consumer in consumers {
        consumer.await??;
    }

    let entries = results.entries().await?;
    let jobs = PRODUCERS * JOBS;
    let right = entries.iter().filter(|(job, result)| *job < jobs && *result == work(*job)).count();
    let [deliveries, again, done] = [tally[0].load()?, tally[1].load()?, tally[2].load()?];
    println!("{killed} consumers were killed");
    println!(
        "{deliveries} deliveries, {again} of them of a job that a dead consumer had; {done} consumers' acknowledgements"
    );
    println!(
        "{jobs} jobs, {right} results, all right, none lost: {}",
        right as u64 == jobs && entries.len() as u64 == jobs
    );
    pool.shutdown().await;
    Ok(())
}

/// Whether a consumer was killed before it had ended.
async fn died(
    consumer: JoinHandle<Result<(), procpool::Failure>>,
) -> Result<bool, Box<dyn std::error::Error>> {
    match consumer.await {
        Err(error) if TaskError::is_worker_died(&error) => Ok(true),
        Err(error) => Err(error.into()),
        Ok(ended) => {
            ended?;
            Ok(false)
        }
    }
}
