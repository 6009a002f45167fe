//! What a running task can ask about itself.

use crate::coop::BudgetUnit;
use crate::lock::Lock;
use crate::panics::wake;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The task that runs, or the async one that was polled last: its slot, its number (0: none has
/// run), its try. Stored one after another: a thread that a task left behind and that reads between
/// two stores asks about a task that does not exist.
static SLOT: AtomicU16 = AtomicU16::new(0);
static ID: AtomicU64 = AtomicU64::new(0);
static ATTEMPT: AtomicU8 = AtomicU8::new(0);
static IS_SYNC: AtomicBool = AtomicBool::new(false);

/// A task that runs, or ran; 0 is none.
#[derive(Clone, Copy, Debug)]
struct Running {
    slot: u16,
    id: u64,
}

/// Whether the pool has asked the task of this slot and number to stop.
type Asked = Box<dyn Fn(u16, u64) -> bool + Send + Sync>;

static ASKED: OnceLock<Asked> = OnceLock::new();

/// In a task: whether it has been asked to stop, because it was aborted, its token was cancelled,
/// its time limit is over, or the pool ends with a limit, and has a [`grace`](crate::TaskBuilder::grace)
/// in which to do that by itself. It costs one look at shared memory.
///
/// Without a grace no task is asked: a sync one is killed, an async one dropped at an await point,
/// and this stays `false`. It may be called from any thread of the worker, and tells of the task
/// that runs; in an async task of the one that was polled last, which is this one as long as it is
/// being polled. Outside of a task of a pool it is `false`.
///
/// [`cancelled`] waits for it.
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
/// let found = pool.task(search).timeout(limit).grace(Duration::from_secs(5)).spawn(u64::MAX).await?;
/// assert!(found.is_some());
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn is_cancelled() -> bool {
    is_asked(running())
}

/// In a task: waits until it has been asked to stop, as [`is_cancelled`] tells it. What the task
/// returns then is its result.
///
/// It is about the task that runs when this is called, wherever the future is taken to and awaited.
/// It never resolves for a task that is not asked (one without a [`grace`](crate::TaskBuilder::grace)),
/// nor outside of a task of a pool.
///
/// In a sync task it can be awaited in a runtime of the task's own. There a thread looks every 10
/// ms while somebody waits; in an async task the worker is told, and nobody looks.
///
/// ```
/// use std::time::Duration;
///
/// async fn serve() -> u32 {
///     let mut served = 0;
///     loop {
///         tokio::select! {
///             () = procpool::cancelled() => return served, // says how far it came
///             () = tokio::time::sleep(Duration::from_millis(1)) => served += 1,
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pool = procpool::Pool::builder().workers(1).build()?;
/// let limit = Duration::from_millis(50);
/// let served = pool.task(serve).timeout(limit).grace(Duration::from_secs(5)).spawn(()).await?;
/// # let _ = served;
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
///
/// Dropped, it only no longer waits: a task stays asked, and the next call resolves at once.
pub fn cancelled() -> Cancelled {
    let is_sync = IS_SYNC.load(Ordering::Relaxed);
    Cancelled {
        waiter: Waiter { task: running(), ticket: None },
        is_sync,
        unit: BudgetUnit::default(),
    }
}

/// What [`cancelled`] gives: a future that resolves when a task has been asked to stop.
#[derive(Debug)]
#[must_use = "a future does nothing unless it is awaited"]
pub struct Cancelled {
    waiter: Waiter,
    /// Its worker is at work, and reads nothing while it runs.
    is_sync: bool,
    unit: BudgetUnit,
}

/// A place among those who wait for the words of a task to change.
#[derive(Debug)]
pub(super) struct Waiter {
    task: Running,
    /// Its entry among those who wait.
    ticket: Option<u64>,
}

impl Waiter {
    /// Of the async task of this number, whose worker is told by a message.
    pub(super) fn of(id: u64) -> Self {
        Self { task: Running { slot: 0, id }, ticket: None }
    }

    /// Enters this waker; to be followed by a look at the words.
    pub(super) fn enter(&mut self, waker: &Waker) {
        self.ticket = Some(WAITING.enter(self.task, self.ticket, waker));
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            WAITING.leave(ticket);
        }
    }
}

impl Future for Cancelled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiter.task.id == 0 {
            return Poll::Pending; // nobody can ask it
        }
        // First enter, then look: who asks does it the other way round.
        self.waiter.enter(cx.waker());
        if is_asked(self.waiter.task) {
            let polled = self.unit.poll_unit(cx);
            return self.unit.per_item(polled);
        }
        if self.is_sync && !WAITING.look_out() {
            cx.waker().wake_by_ref(); // there is no thread to be had: whoever polls looks
        }
        Poll::Pending
    }
}

/// A word of this task has changed: those who wait for that are woken.
pub(crate) fn asked(id: u64) {
    WAITING.wake(|task| task.id == id);
}

/// How often a sync task's word is looked at while somebody waits for it: asking is for things that
/// take longer.
const SYNC_LOOK: Duration = Duration::from_millis(10);

/// Those who wait to be asked to stop.
struct Waiting {
    inside: Lock<Inside>,
}

struct Inside {
    entries: Vec<(u64, Running, Waker)>,
    tickets: u64,
    /// There is a thread that looks; it ends when nobody waits.
    looked_after: bool,
}

static WAITING: Waiting =
    Waiting { inside: Lock::new(Inside { entries: Vec::new(), tickets: 0, looked_after: false }) };

impl Waiting {
    /// Held only to put in and take out; never over a waker's code.
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    /// Enters somebody who waits, or his new waker.
    fn enter(&self, task: Running, ticket: Option<u64>, waker: &Waker) -> u64 {
        let mut waker = waker.clone();
        let mut inside = self.lock();
        if let Some(ticket) = ticket
            && let Some((.., old)) = inside.entries.iter_mut().find(|(other, ..)| *other == ticket)
        {
            std::mem::swap(old, &mut waker);
            drop(inside);
            return ticket;
        }
        inside.tickets += 1;
        let ticket = inside.tickets;
        inside.entries.push((ticket, task, waker));
        ticket
    }

    fn leave(&self, ticket: u64) {
        let mut inside = self.lock();
        let at = inside.entries.iter().position(|(other, ..)| *other == ticket);
        let left = at.map(|at| inside.entries.swap_remove(at));
        drop(inside);
        drop(left);
    }

    fn wake(&self, is_asked: impl Fn(Running) -> bool) {
        let woken: Vec<_> =
            self.lock().entries.extract_if(.., |(_, task, _)| is_asked(*task)).collect();
        for (.., waker) in woken {
            // It may be anybody's: a panic in it must not keep the others from being told, and ends
            // no worker.
            wake(waker);
        }
    }

    /// Sees to it that a thread looks as long as somebody waits. `false`: there is none to be had.
    fn look_out(&'static self) -> bool {
        let mut inside = self.lock();
        if inside.looked_after {
            return true;
        }
        inside.looked_after = true;
        drop(inside);
        let look = move || {
            loop {
                std::thread::sleep(SYNC_LOOK);
                self.wake(is_asked);
                let mut inside = self.lock();
                if inside.entries.is_empty() {
                    inside.looked_after = false;
                    return;
                }
            }
        };
        let started = std::thread::Builder::new().name("procpool-asked".into()).spawn(look).is_ok();
        if !started {
            self.lock().looked_after = false;
        }
        started
    }
}

fn running() -> Running {
    Running { slot: SLOT.load(Ordering::Relaxed), id: ID.load(Ordering::Relaxed) }
}

fn is_asked(task: Running) -> bool {
    task.id != 0 && ASKED.get().is_some_and(|asked| asked(task.slot, task.id))
}

/// In a task: which try of it this is, from 1. See [`TaskBuilder::retries`](crate::TaskBuilder::retries).
///
/// In an async task, ask before the first await, or keep the answer: after one it tells of the task
/// that was polled last, which is this one as long as it is being polled. `None` outside of a task.
pub fn attempt() -> Option<u32> {
    match ATTEMPT.load(Ordering::Relaxed) {
        0 => None,
        attempt => Some(u32::from(attempt)),
    }
}

/// The id of a task: unique in its pool, counting from 1 in the order of submission.
///
/// It may be an argument or a result of tasks, and is displayed as its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(u64);

impl TaskId {
    pub(crate) fn of(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number: 1 for the first task of the pool. A task that the pool refused has 0.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// In a task: its id, the same as [`JoinHandle::id`](crate::JoinHandle::id) gives in the
/// application: so what a worker logs can be told apart by task. Of an async task as [`attempt`].
/// `None` outside of a task of a pool.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pool = procpool::Pool::builder().workers(1).build()?;
/// let handle = pool.spawn(procpool::task_id, ());
/// let id = handle.id();
/// assert_eq!(handle.await?, Some(id));
/// assert_eq!(procpool::task_id(), None);
/// # Ok(())
/// # }
/// ```
pub fn task_id() -> Option<TaskId> {
    Some(running().id).filter(|id| *id != 0).map(TaskId)
}

/// This task runs now.
pub(crate) fn set_current(slot: u16, id: u64, attempt: u8, is_sync: bool) {
    SLOT.store(slot, Ordering::Relaxed);
    ID.store(id, Ordering::Relaxed);
    ATTEMPT.store(attempt, Ordering::Relaxed);
    IS_SYNC.store(is_sync, Ordering::Relaxed);
}

/// How to find out whether a task was asked to stop. Called once, in a worker.
pub(crate) fn set_asked(asked: Asked) {
    let _ = ASKED.set(asked);
}
