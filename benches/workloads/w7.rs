//! W7: a queue, one producer and one consumer; ping-pong over two queues and over a channel, beside
//! a bare socket in the same run; and over a channel by threads that block.

use crate::child::Echo;
use crate::report::{Report, seconds_since};
use crate::{Options, Result, place};
use procpool::sync::{Channel, Queue};
use procpool::{Failure, Manager, Process};
use std::error::Error;
use std::time::{Duration, Instant};

const ITEMS: usize = 200_000;
const LAPS: usize = 20_000;
const CAPACITY: usize = 1024;
const WARM_UP: u64 = 200;
/// The three take turns of about so many laps, so that a change of the machine's mood hits all.
const BLOCK: usize = 500;
/// Laps at the start of each turn that do not count.
const SETTLE: u64 = 20;

pub(crate) fn anywhere(options: &Options, report: &Report) -> Result<()> {
    run(options, report, "")
}

pub(crate) fn on_one_cpu(options: &Options, report: &Report) -> Result<()> {
    place::pin_to_one_cpu()?; // before any thread or process exists
    run(options, report, ", all on one cpu")
}

fn run(options: &Options, report: &Report, place: &str) -> Result<()> {
    let (items, laps) = (options.laps(ITEMS) as u64, options.laps(LAPS));
    let runtime = place::runtime(options)?;
    runtime.block_on(async {
        let note = format!("n={items} capacity={CAPACITY}{place}");
        report.figure(
            "items",
            out_of_a_process(items).await?,
            "items/s",
            &format!("{note}, send().await there, recv().await here"),
        );
        report.figure(
            "items there",
            into_a_process(items).await?,
            "items/s",
            &format!("{note}, send().await here, recv().await there"),
        );
        report.figure(
            "items between",
            between(items).await?,
            "items/s",
            &format!("{note}, between two other processes"),
        );
        let Laps { queue, channel, bare } = ping_pong(laps).await?;
        let note = format!("turns of {BLOCK}{place}");
        report.latencies("ping-pong ", queue, &format!("{note}, two queues of a manager"));
        report.latencies("channel ping-pong ", channel, &note);
        report.latencies(
            "bare ",
            bare,
            &format!("{note}, tokio UnixStream, child on current_thread"),
        );
        Ok::<_, Box<dyn Error>>(())
    })?;
    let note = format!("blocking_send and blocking_recv on both sides{place}");
    report.latencies("channel blocking ping-pong ", blocking_ping_pong(laps)?, &note);
    Ok(())
}

// ---- items

async fn produce(gate: Queue<u64>, items: Queue<u64>, count: u64) -> Result<(), Failure> {
    items.send(u64::MAX).await?; // up
    gate.recv().await?;
    for n in 0..count {
        items.send(n).await?;
    }
    Ok(())
}

async fn consume(gate: Queue<u64>, items: Queue<u64>, count: u64) -> Result<u64, Failure> {
    gate.send(u64::MAX).await?; // up
    let mut sum = 0;
    for _ in 0..count {
        sum += items.recv().await?.ok_or("the queue was closed").map_err(Failure::msg)?;
    }
    Ok(sum)
}

fn sum_of(items: u64) -> u64 {
    items * (items - 1) / 2
}

async fn out_of_a_process(items: u64) -> Result<f64> {
    let manager = Manager::new()?;
    let (gate, queue) = (manager.queue(1)?, manager.queue(CAPACITY)?);
    let process = Process::spawn(produce, (gate.clone(), queue.clone(), items))?;
    queue.recv().await?;
    gate.send(0).await?;
    let start = Instant::now();
    let mut sum = 0;
    for _ in 0..items {
        sum += queue.recv().await?.ok_or("closed")?;
    }
    let took = seconds_since(start);
    assert_eq!(sum, sum_of(items));
    process.await??;
    Ok(items as f64 / took)
}

async fn into_a_process(items: u64) -> Result<f64> {
    let manager = Manager::new()?;
    let (gate, queue) = (manager.queue(1)?, manager.queue(CAPACITY)?);
    let process = Process::spawn(consume, (gate.clone(), queue.clone(), items))?;
    gate.recv().await?;
    let start = Instant::now();
    for n in 0..items {
        queue.send(n).await?;
    }
    queue.join().await?;
    let took = seconds_since(start);
    assert_eq!(process.await??, sum_of(items));
    Ok(items as f64 / took)
}

async fn between(items: u64) -> Result<f64> {
    let manager = Manager::new()?;
    let (gate, up, queue) = (manager.queue(1)?, manager.queue(1)?, manager.queue(CAPACITY)?);
    let consumer = Process::spawn(consume, (up.clone(), queue.clone(), items))?;
    up.recv().await?;
    let producer = Process::spawn(produce_from_zero, (gate.clone(), queue.clone(), items))?;
    gate.send(0).await?;
    gate.send(1).await?; // the first has been taken
    let start = Instant::now();
    producer.await??;
    assert_eq!(consumer.await??, sum_of(items));
    Ok(items as f64 / seconds_since(start))
}

async fn produce_from_zero(gate: Queue<u64>, items: Queue<u64>, count: u64) -> Result<(), Failure> {
    gate.recv().await?;
    for n in 0..count {
        items.send(n).await?;
    }
    Ok(())
}

// ---- ping-pong

struct Laps {
    queue: Vec<Duration>,
    channel: Vec<Duration>,
    bare: Vec<Duration>,
}

async fn echo_queue(there: Queue<u64>, back: Queue<u64>) -> Result<(), Failure> {
    while let Some(n) = there.recv().await? {
        back.send(n).await?;
    }
    Ok(())
}

async fn echo_channel(end: Channel<u64>) -> Result<(), Failure> {
    while let Some(n) = end.recv().await? {
        end.send(n).await?;
    }
    Ok(())
}

async fn queue_lap(there: &Queue<u64>, back: &Queue<u64>, n: u64) -> Result<()> {
    there.send(n).await?;
    assert_eq!(back.recv().await?, Some(n));
    Ok(())
}

async fn channel_lap(end: &Channel<u64>, n: u64) -> Result<()> {
    end.send(n).await?;
    assert_eq!(end.recv().await?, Some(n));
    Ok(())
}

async fn ping_pong(laps: usize) -> Result<Laps> {
    let manager = Manager::new()?;
    let (there, back) = (manager.queue(CAPACITY)?, manager.queue(CAPACITY)?);
    let by_queue = Process::spawn(echo_queue, (there.clone(), back.clone()))?;
    let (here, far) = procpool::sync::channel()?;
    let by_channel = Process::spawn(echo_channel, far)?;
    let mut echo = Echo::start()?;
    for n in 0..WARM_UP {
        queue_lap(&there, &back, n).await?;
        channel_lap(&here, n).await?;
        echo.lap().await?;
    }
    let [mut queue, mut channel, mut bare] = [(); 3].map(|()| Vec::with_capacity(laps));
    while queue.len() < laps {
        let block = BLOCK.min(laps - queue.len());
        for n in 0..SETTLE {
            queue_lap(&there, &back, n).await?;
        }
        for n in 0..block as u64 {
            let start = Instant::now();
            queue_lap(&there, &back, n).await?;
            queue.push(start.elapsed());
        }
        for n in 0..SETTLE {
            channel_lap(&here, n).await?;
        }
        for n in 0..block as u64 {
            let start = Instant::now();
            channel_lap(&here, n).await?;
            channel.push(start.elapsed());
        }
        for _ in 0..SETTLE {
            echo.lap().await?;
        }
        for _ in 0..block {
            let start = Instant::now();
            echo.lap().await?;
            bare.push(start.elapsed());
        }
    }
    there.close()?;
    by_queue.await??;
    drop(here);
    by_channel.await??;
    echo.stop()?;
    Ok(Laps { queue, channel, bare })
}

// ---- by threads that block, as the peers do

fn blocking_echo_channel(end: Channel<u64>) -> Result<(), Failure> {
    while let Some(n) = end.blocking_recv()? {
        end.blocking_send(n)?;
    }
    Ok(())
}

fn blocking_ping_pong(laps: usize) -> Result<Vec<Duration>> {
    let (here, far) = procpool::sync::channel()?;
    let process = Process::spawn(blocking_echo_channel, far)?;
    let lap = |n| -> Result<()> {
        here.blocking_send(n)?;
        assert_eq!(here.blocking_recv()?, Some(n));
        Ok(())
    };
    (0..WARM_UP).try_for_each(lap)?;
    let mut took = Vec::with_capacity(laps);
    for n in 0..laps as u64 {
        let start = Instant::now();
        lap(n)?;
        took.push(start.elapsed());
    }
    drop(here);
    process.blocking_join()??;
    Ok(took)
}
