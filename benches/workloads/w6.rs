//! W6: a lock, alone and between two processes; a map, from the process that has it and from
//! another.

use crate::report::{Report, seconds_since};
use crate::{Options, Result, place};
use procpool::sync::{Barrier, Map, Mutex};
use procpool::{Failure, Manager, Pool};
use std::time::Instant;

const ALONE: usize = 1_000_000;
const BOTH: usize = 100_000;
const MAP: usize = 10_000;

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let runtime = place::runtime(options)?;
    let manager = Manager::new()?;

    let alone = options.laps(ALONE);
    let note = format!("n={alone}");
    let mutex = manager.mutex(0u64)?;
    let per = |seconds: f64| seconds / alone as f64 * 1e9;
    runtime.block_on(changed(&mutex, alone / 10))?;
    report.figure(
        "lock uncontended",
        per(runtime.block_on(changed(&mutex, alone))?),
        "ns",
        &format!("{note} lock().await, += 1, drop"),
    );
    report.figure(
        "lock uncontended read",
        per(runtime.block_on(looked_at(&mutex, alone))?),
        "ns",
        &format!("{note} lock().await, read, drop"),
    );
    report.figure(
        "lock uncontended blocking",
        per(blocking(&mutex, alone)?),
        "ns",
        &format!("{note} blocking_lock, += 1, drop"),
    );
    assert_eq!(mutex.blocking_get()?, (alone / 10 + 2 * alone) as u64);

    // (Threads that block, on both sides, as the peers do it; so outside of the runtime.)
    let each = options.laps(BOTH);
    let pool = Pool::builder().workers(1).build()?;
    runtime.block_on(pool.ready())?;
    let (mutex, gate) = (manager.mutex(0u64)?, manager.barrier(2)?);
    let other = pool.spawn(contend, (mutex.clone(), gate.clone(), each as u64));
    gate.blocking_wait()?;
    let start = Instant::now();
    let ours = count(&mutex, each as u64)?;
    let theirs = other.blocking_join()??;
    let took = seconds_since(start);
    assert_eq!(mutex.blocking_get()?, 2 * each as u64);
    let note = format!("2 processes, {each} each");
    report.figure(
        "lock contended",
        2.0 * each as f64 / took,
        "acquisitions/s",
        &format!("{note}, blocking_lock, += 1, drop"),
    );
    let first = ours.others_then.min(theirs.others_then);
    report.figure(
        "lock contended fairness",
        first as f64 / each as f64,
        "ratio",
        &format!("{note}, what the later one had when the first was done"),
    );
    let runs = ours.runs + theirs.runs;
    report.figure(
        "lock contended run",
        2.0 * each as f64 / runs as f64,
        "acquisitions",
        &format!("{note}, by one process one after the other, mean"),
    );

    let laps = options.laps(MAP) as u64;
    let map = manager.map::<String, u64>()?;
    let note = format!("n={laps}");
    let there = runtime.block_on(pool.spawn(map_elsewhere, (map.clone(), laps)))??;
    report.figure("dict get", there.get, "ops/s", &format!("{note} Map::get().await in a worker"));
    report.figure("dict set", there.set, "ops/s", &format!("{note} Map::set().await in a worker"));
    report.figure(
        "dict insert",
        there.insert,
        "ops/s",
        &format!("{note} Map::insert().await in a worker"),
    );
    report.figure(
        "dict set and get",
        there.both,
        "pairs/s",
        &format!("{note} Map::set().await, then Map::get().await, in a worker"),
    );
    let here = runtime.block_on(map_laps(&map, laps))?;
    report.figure(
        "dict get at home",
        here.get,
        "ops/s",
        &format!("{note} in the application, which has the manager"),
    );
    report.figure(
        "dict set at home",
        here.set,
        "ops/s",
        &format!("{note} in the application, which has the manager"),
    );
    report.figure(
        "dict insert at home",
        here.insert,
        "ops/s",
        &format!("{note} in the application, which has the manager"),
    );
    runtime.block_on(pool.shutdown());
    Ok(())
}

async fn changed(mutex: &Mutex<u64>, laps: usize) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..laps {
        *mutex.lock().await? += 1;
    }
    Ok(seconds_since(start))
}

async fn looked_at(mutex: &Mutex<u64>, laps: usize) -> Result<f64> {
    let start = Instant::now();
    let mut sum = 0u64;
    for _ in 0..laps {
        sum = sum.wrapping_add(*mutex.lock().await?);
    }
    std::hint::black_box(sum);
    Ok(seconds_since(start))
}

fn blocking(mutex: &Mutex<u64>, laps: usize) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..laps {
        *mutex.blocking_lock()? += 1;
    }
    Ok(seconds_since(start))
}

/// What one side saw.
#[derive(serde::Serialize, serde::Deserialize)]
struct Seen {
    /// How often it got the lock after the other had it.
    runs: u64,
    /// What the other had done when this one was done.
    others_then: u64,
}

fn count(mutex: &Mutex<u64>, laps: u64) -> Result<Seen, procpool::sync::Error> {
    let (mut runs, mut others_then, mut last) = (0, 0, 0);
    for lap in 1..=laps {
        let mut guard = mutex.blocking_lock()?;
        *guard += 1;
        runs += u64::from(guard.fencing_token() != last + 1);
        last = guard.fencing_token();
        others_then = *guard - lap;
    }
    Ok(Seen { runs, others_then })
}

fn contend(mutex: Mutex<u64>, gate: Barrier, laps: u64) -> Result<Seen, Failure> {
    gate.blocking_wait()?;
    Ok(count(&mutex, laps)?)
}

/// Operations in a second.
#[derive(serde::Serialize, serde::Deserialize)]
struct Rates {
    get: f64,
    set: f64,
    insert: f64,
    both: f64,
}

async fn map_laps(map: &Map<String, u64>, laps: u64) -> Result<Rates, procpool::sync::Error> {
    map.insert("a".into(), 0).await?;
    let start = Instant::now();
    for _ in 0..laps {
        map.get("a").await?;
    }
    let get = laps as f64 / seconds_since(start);
    let start = Instant::now();
    for n in 0..laps {
        map.insert("a".into(), n).await?;
    }
    let insert = laps as f64 / seconds_since(start);
    let start = Instant::now();
    for n in 0..laps {
        map.set("a".into(), n).await?;
    }
    let set = laps as f64 / seconds_since(start);
    assert_eq!(map.get("a").await?, laps.checked_sub(1));
    let start = Instant::now();
    for n in 0..laps {
        map.set("a".into(), n).await?;
        assert_eq!(map.get("a").await?, Some(n));
    }
    let both = laps as f64 / seconds_since(start);
    Ok(Rates { get, set, insert, both })
}

async fn map_elsewhere(map: Map<String, u64>, laps: u64) -> Result<Rates, Failure> {
    Ok(map_laps(&map, laps).await?)
}
