//! A web service whose requests are answered in worker processes: what crashes one costs that
//! request a 500, and nothing else.
//!
//!     cargo run --release --example web_service -- ADDRESS
//!
//! ADDRESS is 127.0.0.1:3000 if it is left out. It prints `listening on …`, and serves
//!
//! * `GET /primes/LIMIT`: how many prime numbers there are below LIMIT (anything up to 10,000,000);
//! * `GET /crash/HOW`: what a bug would do, HOW being `segfault`, `abort`, `exit`, `overflow` or
//!   `panic`;
//! * `GET /hang`: a request that never ends by itself. Hang up, and its worker is free again; after
//!   the deadline it is, too.
//!
//! Ctrl-C or SIGTERM: it takes no more connections, answers the requests that it has, ends its
//! workers, and exits with 0.

#![expect(clippy::print_stdout, reason = "an example shows what happens")]
#![expect(unsafe_code, reason = "it takes some to segfault")]

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use procpool::{JoinHandle, Pool, TaskError, TaskErrorKind};
use serde::de::DeserializeOwned;
use std::error::Error;
use std::hint::black_box;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// So many requests may wait for a worker; those beyond are told to come again.
const BACKLOG: usize = 1000;
/// A request is answered within this time, the wait for a worker included.
const DEADLINE: Duration = Duration::from_secs(60);

// ---- in the workers

fn primes(limit: u64) -> u64 {
    (2..limit).filter(|n| (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d))).count()
        as u64
}

fn crash(how: String) -> String {
    match how.as_str() {
        // SAFETY: nothing is ever mapped in the first page: a volatile read of it ends the process.
        "segfault" => unsafe { std::ptr::without_provenance::<u8>(16).read_volatile() }.to_string(),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(0),
        "overflow" => overflow(u64::MAX).to_string(),
        "panic" => panic!("a bug"),
        _ => format!("{how} crashes nothing"),
    }
}

fn overflow(levels: u64) -> u64 {
    if levels == 0 { 0 } else { overflow(levels - 1) + black_box([levels; 64])[63] }
}

fn hang() {
    loop {
        std::thread::park();
    }
}

// ---- in the application

/// What a request is answered with when there is no answer.
type Refusal = (StatusCode, String);

/// Awaits a task for a request. When the client hangs up, axum drops the handler, and this with it:
/// then the task is stopped, too. (Without `abort_on_drop` it would go on.)
async fn answer<R: DeserializeOwned>(task: JoinHandle<R>) -> Result<R, Refusal> {
    task.abort_on_drop().await.map_err(refusal)
}

fn refusal(error: TaskError) -> Refusal {
    // The log has all of it; the client learns what concerns the client.
    eprintln!("{error}");
    match error.kind() {
        TaskErrorKind::QueueFull => {
            (StatusCode::SERVICE_UNAVAILABLE, "too busy, come again".into())
        }
        TaskErrorKind::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "it took too long".into()),
        TaskErrorKind::PoolClosed => (StatusCode::SERVICE_UNAVAILABLE, "shutting down".into()),
        kind => (StatusCode::INTERNAL_SERVER_ERROR, format!("{kind:?}")),
    }
}

async fn get_primes(State(pool): State<Pool>, Path(limit): Path<u64>) -> Result<String, Refusal> {
    if limit > 10_000_000 {
        return Err((StatusCode::BAD_REQUEST, "at most 10000000".into()));
    }
    answer(pool.task(primes).deadline(DEADLINE).spawn(limit)).await.map(|count| count.to_string())
}

async fn get_crash(State(pool): State<Pool>, Path(how): Path<String>) -> Result<String, Refusal> {
    answer(pool.task(crash).deadline(DEADLINE).spawn(how)).await
}

async fn get_hang(State(pool): State<Pool>) -> Result<(), Refusal> {
    answer(pool.task(hang).deadline(DEADLINE).spawn(())).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".into());
    // First the signals: from here on neither ends this process. (Workers leave both to it.)
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    // A standby worker takes the place of one that a request has crashed, without a start.
    let pool = Pool::builder().queue_limit(BACKLOG).spares(1).build()?;
    pool.ready().await?; // rather fail now than at the first request

    let routes = Router::new()
        .route("/primes/{limit}", get(get_primes))
        .route("/crash/{how}", get(get_crash))
        .route("/hang", get(get_hang))
        .with_state(pool.clone());
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    let stop = async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    };
    axum::serve(listener, routes).with_graceful_shutdown(stop).await?;
    pool.shutdown().await;
    println!("ended");
    Ok(())
}
