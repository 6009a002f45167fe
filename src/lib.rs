// First, so that the README's links lead to this very documentation: where it is read elsewhere, it
// has its own. (Not where its programs are run as tests: they are named after the first file.)
#![cfg_attr(not(doctest), doc = include_str!("../docs/links.md"))]
#![doc = include_str!("../README.md")]
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

mod error;
mod limits;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod manager;
mod pool;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod process;
mod single;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod sync;
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
)))]
#[path = "sync/elsewhere.rs"]
mod sync;
mod task;
mod wire;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod worker;

pub use error::{Error, ErrorKind, Failure, SendError, TaskError, TaskErrorKind};
pub use limits::Limits;
pub use pool::{
    AbortHandle, Builder, Call, CutOff, Ending, Events, Function, JoinHandle, Named, Output,
    OutputLine, Pool, Results, Stats, TryResults, WorkerCount, WorkerEnd, WorkerEvent,
};
pub use single::{
    ChildStderr, ChildStdin, ChildStdout, Detached, Detaching, Parent, Process, ProcessBuilder,
    Stdio, parent,
};
pub use sync::Manager;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
pub use sync::{Array, Atomic, Element, Mutex, MutexGuard, OwnedMutexGuard, Value};
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
pub use sync::{
    Barrier, BarrierWaitResult, Channel, Condvar, Delivery, Ends, Event, Exchanged, List, Map,
    MapChange, MapWatch, Queue, QueueReceiver, QueueSender, QueueSink, QueueStream, Registered,
    RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphorePermit, Served, channel, duplex,
};
pub use task::{
    ArgsFor, ArgsTuple, Cancelled, Init, Task, attempt, cancelled, is_cancelled, state, task_id,
};

#[doc = include_str!("../docs/waiting.md")]
pub mod waiting {}

/// The programs of the documentation are compiled.
#[cfg(doctest)]
#[doc = include_str!("../docs/other_languages.md")]
struct OtherLanguages;
