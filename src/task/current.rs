//! What a running task can ask about itself.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

/// The task that runs, or the async one that was polled last: its slot, its number (0: none has run), its try. Stored one
/// after another: a thread that a task left behind and that reads between two stores asks about a task that does not exist.
static SLOT: AtomicU16 = AtomicU16::new(0);
static ID: AtomicU64 = AtomicU64::new(0);
static ATTEMPT: AtomicU8 = AtomicU8::new(0);

/// Whether the pool has asked the task of this slot and number to stop.
type Asked = Box<dyn Fn(u16, u64) -> bool + Send + Sync>;

static ASKED: OnceLock<Asked> = OnceLock::new();

/// In a task: whether it has been asked to stop, because it was aborted or its time limit is over, and has a
/// [`grace`](crate::Call::grace) in which to do that by itself. It costs one look at shared memory.
///
/// For sync tasks. Without a grace a task is not asked but killed; an async task is dropped at an await point instead, and
/// this stays `false` in it. It may be called from any thread of the worker, and tells of the task that runs.
/// Outside of a task it is `false`.
///
/// ```
/// use std::time::Duration;
///
/// fn search(limit: u64) -> Option<u64> {
///     (0..limit).take_while(|_| !procpool::is_cancelled()).last() // gives up, and says how far it came
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pool = procpool::Pool::builder().workers(1).build()?;
/// let limit = Duration::from_millis(20);
/// let found = pool.call(search).timeout(limit).grace(Duration::from_secs(5)).spawn(u64::MAX).await?;
/// assert!(found.is_some());
/// # Ok(())
/// # }
/// ```
pub fn is_cancelled() -> bool {
    let id = ID.load(Ordering::Relaxed);
    id != 0 && ASKED.get().is_some_and(|asked| asked(SLOT.load(Ordering::Relaxed), id))
}

/// In a task: which try of it this is, from 1. See [`Call::retries`](crate::Call::retries).
///
/// In an async task, ask before the first await, or keep the answer: after one it tells of the task that was polled last, which is
/// this one as long as it is being polled. `None` outside of a task.
pub fn attempt() -> Option<u32> {
    match ATTEMPT.load(Ordering::Relaxed) {
        0 => None,
        attempt => Some(u32::from(attempt)),
    }
}

/// This task runs now.
pub(crate) fn set_current(slot: u16, id: u64, attempt: u8) {
    SLOT.store(slot, Ordering::Relaxed);
    ID.store(id, Ordering::Relaxed);
    ATTEMPT.store(attempt, Ordering::Relaxed);
}

/// How to find out whether a task was asked to stop. Called once, in a worker.
pub(crate) fn set_asked(asked: Asked) {
    let _ = ASKED.set(asked);
}
