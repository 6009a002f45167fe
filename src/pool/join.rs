//! The handle of one task.

use super::core::TaskKey;
use super::engine::Engine;
use super::reply::Outcome;
use super::spec::Ticket;
use super::started::Started;
use crate::coop::take_unit;
use crate::error::{TaskError, What};
use crate::park::{block_on, park_until, refuse_in_async_context};
use crate::task::TaskId;
use serde::de::DeserializeOwned;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The handle of a task that was handed to a [`Pool`](crate::Pool): a future of its result.
///
/// It resolves to `Result<R, TaskError>`; a task's own `Result` stays inside the `Ok`. The result
/// is decoded where it is awaited.
///
/// It may be awaited in any runtime, or in none by [`blocking_join`](Self::blocking_join), and
/// holds on to nothing but the outcome: the pool may be dropped before it.
///
/// # Drop
///
/// Detaches: the task runs on, and its result is thrown away, as with tokio's `JoinHandle`. Use
/// [`abort`](Self::abort) to stop it, or [`abort_on_drop`](Self::abort_on_drop) to have that done.
///
/// # Cancel safety
///
/// Awaiting by `&mut` and dropping that future loses nothing.
///
/// # Panics
///
/// If polled again after it has given its result.
#[must_use = "dropping a handle detaches its task, and its result is lost"]
pub struct JoinHandle<R> {
    outcome: oneshot::Receiver<Outcome>,
    abort: AbortHandle,
    on_drop: Option<AbortOnDrop>,
    /// Never an `R` inside: the handle may go where `R` may not.
    result: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned> JoinHandle<R> {
    pub(super) fn new(
        engine: &Arc<Engine>,
        ticket: Ticket,
        function: &'static str,
        outcome: oneshot::Receiver<Outcome>,
    ) -> Self {
        Self {
            outcome,
            abort: AbortHandle::new(engine, ticket, function),
            on_drop: None,
            result: PhantomData,
        }
    }

    /// Asks whether the task has ended, and never waits: `None` while it has not.
    ///
    /// # Panics
    ///
    /// If the result has been taken before.
    #[track_caller]
    pub fn try_join(&mut self) -> Option<Result<R, TaskError>> {
        // The channel itself would only say that it is closed.
        assert!(!self.outcome.is_terminated(), "`try_join` called after the result has been taken");
        match self.outcome.try_recv() {
            Ok(outcome) => Some(self.decode(Ok(outcome))),
            Err(oneshot::error::TryRecvError::Closed) => Some(self.decode(Err(()))),
            Err(oneshot::error::TryRecvError::Empty) if Engine::is_forked_copy() => {
                Some(Err(self.forked()))
            }
            Err(oneshot::error::TryRecvError::Empty) => {
                self.abort.attend(); // whoever polls in a loop waits, too
                None
            }
        }
    }

    /// Waits for the task on this thread.
    ///
    /// # Errors
    ///
    /// As awaiting the handle.
    ///
    /// # Blocking
    ///
    /// Blocks the thread until the task has ended. It works whatever the pool's runtime does.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, `.await` it. Also if the result
    /// has been taken before.
    #[track_caller]
    pub fn blocking_join(mut self) -> Result<R, TaskError> {
        refuse_in_async_context();
        assert!(
            !self.outcome.is_terminated(),
            "`blocking_join` called after the result has been taken"
        );
        if Engine::is_forked_copy() {
            return self.try_join().unwrap_or_else(|| Err(self.forked()));
        }
        self.abort.attend_blocking();
        let Self { outcome, abort, on_drop: _on_drop, .. } = self;
        decode(block_on(outcome).map_err(|_| ()), abort.function)
    }

    /// As [`blocking_join`](Self::blocking_join), no longer than `limit`. `None` if the task has
    /// not ended by then: it goes on, and can be asked for again.
    ///
    /// # Errors
    ///
    /// As awaiting the handle.
    ///
    /// # Blocking
    ///
    /// Blocks the thread up to the limit.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, use `tokio::time::timeout` with
    /// `&mut handle`. Also if the result has been taken before.
    #[track_caller]
    pub fn blocking_join_timeout(&mut self, limit: Duration) -> Option<Result<R, TaskError>> {
        refuse_in_async_context();
        assert!(
            !self.outcome.is_terminated(),
            "`blocking_join_timeout` called after the result has been taken"
        );
        // What the clock cannot hold is for ever.
        let until = Instant::now().checked_add(limit);
        self.abort.attend_blocking();
        park_until(self, until)
    }

    /// Whoever settles the task is in the original process.
    fn forked(&self) -> TaskError {
        TaskError::new(What::Forked, self.abort.function)
    }

    fn decode(&self, outcome: Result<Outcome, ()>) -> Result<R, TaskError> {
        decode(outcome, self.abort.function)
    }
}

fn decode<R: DeserializeOwned>(
    outcome: Result<Outcome, ()>,
    function: &'static str,
) -> Result<R, TaskError> {
    // Whoever has the other end settles it, always; else the pool itself has been torn down.
    let encoded = outcome.unwrap_or_else(|()| Err(TaskError::new(What::PoolClosed, function)))?;
    encoded.decode().map_err(|e| TaskError::new(What::ResultDecode(e.to_string()), function))
}

impl<R> JoinHandle<R> {
    /// Stops the task. The handle then resolves, as a rule, to an error that is
    /// [`is_cancelled`](TaskError::is_cancelled); if the task had ended by itself just before, to
    /// its result.
    ///
    /// A task that waits in the pool is removed and never runs. A running sync task can only be
    /// stopped with its process, which is killed; tasks that stood behind it in that worker run
    /// elsewhere. A running async task is dropped at its next await point; if it reaches none
    /// within a second, its process is killed, and the other async tasks in it are told that
    /// their worker died. A task with a [`grace`](crate::TaskBuilder::grace) is asked first. When the
    /// handle has resolved, the task does not run any more.
    pub fn abort(&self) {
        self.abort.abort();
    }

    /// From now on, dropping the handle before the task has ended stops the task, as
    /// [`abort`](Self::abort) does. Default: dropping it detaches.
    ///
    /// So a task ends with the future that awaits it: in a `select!`, under `tokio::time::timeout`,
    /// or when a client goes away.
    pub fn abort_on_drop(mut self) -> Self {
        self.on_drop = Some(AbortOnDrop(self.abort.clone()));
        self
    }

    /// A handle that can stop the task, and nothing else.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }

    /// The task's id. [`task_id`](crate::task_id) gives the same within the task.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.abort.id()
    }

    /// Waits until the task has begun to run, and says when and where; so a queue is told apart from
    /// work. `None`: the task has ended, or it ended without having begun.
    ///
    /// Of a task that is tried again, the try that is under way counts. It costs a message from the
    /// worker; a task that nobody asks about costs nothing.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = procpool::Pool::builder().workers(1).build()?;
    /// # fn work() -> u32 { std::thread::sleep(std::time::Duration::from_millis(50)); std::process::id() }
    /// let submitted = std::time::Instant::now();
    /// let task = pool.spawn(work, ());
    /// if let Some(started) = task.started().await {
    ///     println!("it has waited for {:?}", started.at() - submitted);
    ///     assert_eq!(started.pid(), task.await?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropped, it only no longer waits.
    pub async fn started(&self) -> Option<Started> {
        take_unit().await;
        self.abort.started().await
    }

    /// Whether the result is there.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.outcome.is_terminated() || !self.outcome.is_empty()
    }

    /// The process that has the task. `None` while it waits for a worker, and after it has ended.
    ///
    /// A worker may have several short tasks in hand, so the process need not have begun this one.
    #[must_use]
    pub fn worker_pid(&self) -> Option<u32> {
        self.abort.worker_pid()
    }
}

impl<R: DeserializeOwned> Future for JoinHandle<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match Pin::new(&mut self.outcome).poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(self.decode(outcome.map_err(|_| ()))),
            Poll::Pending if Engine::is_forked_copy() => Poll::Ready(Err(self.forked())),
            Poll::Pending => {
                self.abort.attend();
                Poll::Pending
            }
        }
    }
}

impl<R> fmt::Debug for JoinHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            .field("id", &self.id())
            .field("function", &self.abort.function)
            .finish_non_exhaustive()
    }
}

/// Stops its task when it is dropped; one that has ended is not touched.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Stops a task, see [`JoinHandle::abort`]. Dropping it does nothing.
#[derive(Clone)]
pub struct AbortHandle {
    /// Not held: the pool's descriptors go with the pool.
    engine: Weak<Engine>,
    ticket: Ticket,
    function: &'static str,
}

impl AbortHandle {
    pub(super) fn new(engine: &Arc<Engine>, ticket: Ticket, function: &'static str) -> Self {
        Self { engine: Arc::downgrade(engine), ticket, function }
    }

    pub(super) fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.upgrade()
    }

    pub(super) fn key(&self) -> Option<TaskKey> {
        self.ticket.key
    }

    pub(super) fn function(&self) -> &'static str {
        self.function
    }

    pub(super) async fn started(&self) -> Option<Started> {
        // Not held over the wait: the pool's descriptors go with the pool.
        let mut news = self.engine.upgrade()?.watch_start(self.ticket.key?)?;
        loop {
            if let Some(started) = *news.borrow_and_update() {
                return Some(started);
            }
            self.attend();
            if news.changed().await.is_err() {
                return *news.borrow();
            }
        }
    }

    pub(super) fn worker_pid(&self) -> Option<u32> {
        self.ticket.key.and_then(|key| self.engine.upgrade()?.worker_pid(key))
    }

    /// As [`JoinHandle::abort`].
    pub fn abort(&self) {
        if let (Some(key), Some(engine)) = (self.ticket.key, self.engine.upgrade()) {
            engine.abort(key);
        }
    }

    /// Whether the task has ended. Its handle may be told an instant later.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match (self.ticket.key, self.engine.upgrade()) {
            (Some(key), Some(engine)) => !engine.is_open(key),
            _ => true,
        }
    }

    /// Somebody waits.
    pub(super) fn attend(&self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.attend();
        }
    }

    /// Somebody waits who blocks a thread.
    pub(super) fn attend_blocking(&self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.attend_blocking();
        }
    }

    /// As [`JoinHandle::id`].
    #[must_use]
    pub fn id(&self) -> TaskId {
        TaskId::of(self.ticket.id)
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle")
            .field("id", &self.id())
            .field("function", &self.function)
            .finish_non_exhaustive()
    }
}
