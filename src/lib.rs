//! A process pool for tokio: hand a plain function and its arguments to a worker process, await the
//! result.
//!
//! ```
//! use procpool::Pool;
//!
//! fn fib(n: u64) -> u64 {
//!     if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pool = Pool::new()?; // one worker process per core, started on demand
//!     assert_eq!(pool.spawn(fib, 20).await?, 6765);
//!
//!     let error = pool.spawn(|| -> u8 { std::process::abort() }, ()).await.unwrap_err();
//!     assert!(error.is_worker_died()); // the crash cost this task, and nothing else
//!
//!     assert_eq!(pool.spawn(fib, 21).await?, 10_946); // the pool goes on
//!     Ok(())
//! }
//! ```
//!
//! Three things to know:
//!
//! 1. **A worker does not run `main`.** What `main` sets up is missing there;
//!    [`Builder::on_worker_start`] is the place for it.
//! 2. **A task captures nothing.** It is a function, or a closure without captures; values are
//!    passed as arguments.
//! 3. **Dropping a handle detaches its task**, as in tokio. Dropping the last [`Pool`] kills its
//!    workers; [`Pool::shutdown`] lets everything end first.
//!
//! # Where things are
//!
//! | I want to … | look at |
//! |---|---|
//! | run functions in worker processes | [`Pool`], [`Pool::spawn`], [`Pool::map`] |
//! | give one call options: limits, retries, cancellation | [`Pool::task`] |
//! | run one function in a process of its own | [`Process`] |
//! | share a lock, a queue, a map between processes | [`Pool::manager`], [`Manager`] |
//! | know what happened to a task | [`TaskError`] |
//! | read about all of it in order | the [`guide`] |
//!
//! The crate works on Linux (x86-64 and aarch64, kernel 5.10 or later); elsewhere it compiles, see
//! [platforms](guide::platforms).
//!
//! # Features
//!
//! * `sync` (default): shared objects, [`sync`] and [`Manager`]. Without it the crate builds faster.
//! * `anyhow`: `?` turns a [`Failure`] into an `anyhow::Error`.
//!
//! # Public dependencies
//!
//! Types of these crates stand in public signatures: `tokio`, `futures` (`Stream`, `Sink`), `serde`
//! and `tokio_util::sync::CancellationToken`.

#![cfg_attr(
    not(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(procpool_elsewhere)
    )),
    allow(
        dead_code,
        unused_imports,
        reason = "where there are no workers, nothing is sent to one"
    )
)]
#![cfg_attr(
    not(feature = "sync"),
    allow(
        dead_code,
        rustdoc::broken_intra_doc_links,
        rustdoc::private_intra_doc_links,
        reason = "some is for shared objects alone, and what is told of them is told all the same"
    )
)]

mod coop;
mod error;
#[cfg(all(fuzzing, feature = "sync"))]
#[doc(hidden)]
#[allow(missing_docs, missing_debug_implementations, reason = "not for users")]
pub mod fuzzing;
pub mod guide;
mod limits;
mod lock;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere),
    feature = "sync"
))]
mod manager;
mod panics;
mod park;
mod pool;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod process;
mod reactor;
mod single;
mod stdio;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere),
    feature = "sync"
))]
pub mod sync;
#[cfg(not(feature = "sync"))]
#[path = "sync/absent.rs"]
mod sync;
#[cfg(all(
    feature = "sync",
    not(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(procpool_elsewhere)
    ))
))]
#[path = "sync/elsewhere.rs"]
pub mod sync;
mod task;
mod template;
mod wire;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod worker;

pub use error::{Error, ErrorKind, Failure, TaskError, TaskErrorKind};
pub use limits::Limits;
pub use pool::{
    AbortHandle, Builder, Events, ExitReason, ItemResults, Items, JoinHandle, NamedTask, Pool,
    Results, SharedObject, Shutdown, ShutdownReport, Started, Stats, TaskBuilder, TaskStream,
    TryResults, WorkerCount, WorkerEvent,
};
pub use single::{
    ChildStderr, ChildStdin, ChildStdout, Daemon, DaemonStart, Parent, Process, ProcessBuilder,
    parent,
};
pub use stdio::{OutputLine, Stdio};
#[cfg(feature = "sync")]
pub use sync::Manager;
pub use task::{
    ArgsFor, ArgsTuple, Cancelled, Init, Task, TaskId, YieldError, Yielder, YieldingArgs, attempt,
    cancelled, is_cancelled, state, task_id,
};

pub use template::{Template, TemplateBuilder};

/// The README's programs are compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
