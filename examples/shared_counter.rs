//! Many processes, one lock, the right sum: also when some of them are killed while they hold it.
//!
//!     cargo run --release --example shared_counter -- 1000
//!
//! The argument says how often each of twenty tasks adds one (default: 200).

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use futures::StreamExt;
use procpool::Pool;
use procpool::sync::{Mutex, Value};

/// What the lock protects: it travels between processes as any value of serde's does.
#[derive(serde::Serialize, serde::Deserialize)]
struct Ledger {
    sum: u64,
    /// How much each process has added.
    by_process: Vec<(u32, u64)>,
}

/// Runs in the workers; `Mutex` is an argument like any other.
fn add(ledger: Mutex<Ledger>, times: u64) -> Result<(), procpool::Failure> {
    let me = std::process::id();
    for _ in 0..times {
        let mut ledger = ledger.blocking_lock()?;
        ledger.sum += 1;
        match ledger.by_process.iter_mut().find(|(pid, _)| *pid == me) {
            Some((_, count)) => *count += 1,
            None => ledger.by_process.push((me, 1)),
        }
    } // each guard commits as it is dropped
    Ok(())
}

/// Takes the lock, spoils the sum, and dies with it.
fn vandal(ledger: Mutex<Ledger>, deaths: Value<u64>) {
    let Ok(mut ledger) = ledger.blocking_lock() else { return };
    ledger.sum = 0;
    let _ = deaths.fetch_add(1);
    std::process::abort();
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let times: u64 = std::env::args().nth(1).map_or(Ok(200), |times| times.parse())?;
    let pool = Pool::builder().workers(4).build()?;
    let ledger = pool.manager().mutex(Ledger { sum: 0, by_process: Vec::new() })?;
    let deaths = pool.manager().value(0u64)?;

    let vandals: Vec<_> =
        (0..3).map(|_| pool.spawn(vandal, (ledger.clone(), deaths.clone()))).collect();
    let mut adding = pool.map(add, (0..20).map(|_| (ledger.clone(), times))).unordered();
    // The application takes part as well, without a worker.
    ledger.lock().await?.sum += 1;
    while let Some(done) = adding.next().await {
        done?.map_err(|failure| failure.to_string())?;
    }
    for vandal in vandals {
        assert!(vandal.await.is_err(), "it has died");
    }

    let guard = ledger.lock().await?;
    println!(
        "{} processes died with the lock in their hands; the mark of that is there: {}",
        deaths.load()?,
        guard.recovered()
    );
    let by_process: u64 = guard.by_process.iter().map(|(_, count)| count).sum();
    println!(
        "{} processes and the application added {}; the sum is {}",
        guard.by_process.len(),
        by_process + 1,
        guard.sum
    );
    drop(guard);
    pool.shutdown().await;

    let sum = ledger.get().await?.sum;
    assert_eq!(sum, 20 * times + 1);
    println!("{sum} of {} additions counted", 20 * times + 1);
    Ok(())
}
