//! What kills a process kills one task: workers that segfault, abort, overflow their stack and
//! exit, among twenty good tasks that do not notice.
//!
//!     cargo run --example contained_crash

#![expect(clippy::print_stdout, reason = "an example shows what happens")]
#![expect(unsafe_code, reason = "it takes some to segfault")]

use futures::future::join_all;
use nix::sys::resource::{Resource, setrlimit};
use procpool::{Pool, TaskError, TaskErrorKind};
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::ptr;

/// How many good tasks there are.
const GOOD: u64 = 20;

// ---- in the workers

fn square(n: u64) -> u64 {
    n * n
}

fn segfault() -> u8 {
    // Not null: a debug build would catch that itself, and panic.
    let nowhere = ptr::without_provenance::<u8>(16);
    // SAFETY: a volatile read may be of memory that is none of Rust's, and is then what the
    // processor makes of it. Nothing is ever mapped in the first page, so that is SIGSEGV,
    // before there is a value.
    unsafe { nowhere.read_volatile() }
}

fn abort() {
    std::process::abort()
}

fn overflow(levels: u64) -> u64 {
    if levels == 0 {
        return 0;
    }
    // What is still to be done after the call keeps its frame on the stack.
    let frame = black_box([levels; 64]);
    overflow(levels - 1) + frame[63]
}

fn exit() {
    std::process::exit(3)
}

// ---- in the application

/// A death, as one line. `expected` is asked about it.
fn report(
    task: &str,
    outcome: Result<(), TaskError>,
    expected: impl Fn(&TaskError) -> bool,
) -> bool {
    let Err(error) = outcome else {
        println!("{task}: survived?");
        return false;
    };
    // An error is told by its kind and its facts, never by its text.
    let status = error.exit_status();
    let how = match (status.and_then(|s| s.signal()), status.and_then(|s| s.code())) {
        (Some(signal), _) => format!("signal {signal}"),
        (_, Some(code)) => format!("exit code {code}"),
        _ => "status unknown".into(),
    };
    let overflow = if error.is_stack_overflow() { ", stack overflow" } else { "" };
    let pid = error.pid().map_or("?".into(), |pid| pid.to_string());
    println!("{task}: {:?}, {how}{overflow}, pid {pid}", error.kind());
    error.kind() == TaskErrorKind::WorkerDied && expected(&error)
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    // Workers inherit it: these crashes need no core dumps.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let pool = Pool::builder().workers(4).build()?;

    // Five good tasks before each crash. They are all handed in before anything is awaited, so they
    // share workers, and some good ones stand behind a crash in its worker.
    let mut numbers = 0..GOOD;
    let mut good = Vec::new();
    let mut five_good = || good.extend(numbers.by_ref().take(5).map(|n| pool.spawn(square, n)));
    five_good();
    let segfaulted = pool.spawn(segfault, ());
    five_good();
    let aborted = pool.spawn(abort, ());
    five_good();
    let overflowed = pool.spawn(overflow, u64::MAX);
    five_good();
    let exited = pool.spawn(exit, ());

    let signal = |error: &TaskError| error.exit_status().and_then(|status| status.signal());
    let code = |error: &TaskError| error.exit_status().and_then(|status| status.code());
    let deaths = [
        report("segfault", segfaulted.await.map(drop), |e| {
            signal(e) == Some(nix::libc::SIGSEGV) && !e.is_stack_overflow()
        }),
        report("abort", aborted.await, |e| {
            signal(e) == Some(nix::libc::SIGABRT) && !e.is_stack_overflow()
        }),
        report("overflow", overflowed.await.map(drop), TaskError::is_stack_overflow),
        report("exit(3)", exited.await, |e| code(e) == Some(3)),
    ];

    let results = join_all(good).await;
    let right = (0..)
        .zip(&results)
        .filter(|(n, result)| matches!(result, Ok(square) if *square == n * n))
        .count() as u64;
    pool.shutdown().await;

    if right == GOOD {
        println!("all {GOOD} good tasks were right");
    } else {
        println!("only {right} of {GOOD} good tasks were right");
    }
    Ok(if right == GOOD && deaths == [true; 4] { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
