//! The smallest program: a function runs in a worker process, its result is awaited here.
//!
//!     cargo run --example quickstart

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use futures::StreamExt;
use procpool::Pool;

/// What runs in a worker is a plain function; arguments and result are whatever serde can carry.
fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new()?;

    let answer = pool.spawn(fib, 30).await?;
    println!("fib(30) = {answer}");

    // A task that crashes costs itself, not the application.
    if let Err(error) = pool.spawn(|| -> () { std::process::abort() }, ()).await {
        println!("{error}");
    }

    // Over all cores; the results come as they finish.
    let mut numbers = pool.map(fib, 0..25).unordered();
    let mut sum = 0;
    while let Some(number) = numbers.next().await {
        sum += number?;
    }
    println!("fib(0) + … + fib(24) = {sum}");

    pool.shutdown().await;
    Ok(())
}
