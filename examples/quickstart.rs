//! The smallest program: a function runs in a worker process, its result is awaited here.
//!
//!     cargo run --example quickstart

use futures::StreamExt;
use procpool::Pool;

fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::new()?;

    let answer = pool.spawn(fib, 30).await?;
    println!("fib(30) = {answer}");

    // A task that crashes costs itself, not the application.
    let crash = pool.spawn(|| -> () { std::process::abort() }, ()).await;
    println!("{}", crash.unwrap_err());

    // Over all cores, as they finish.
    let mut numbers = pool.map(fib, 0..25).unordered();
    let mut sum = 0;
    while let Some(number) = numbers.next().await {
        sum += number?;
    }
    println!("fib(0) + … + fib(24) = {sum}");

    pool.shutdown().await;
    Ok(())
}
