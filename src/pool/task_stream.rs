//! The stream of a task that yields.

use super::engine::Engine;
use super::join::AbortHandle;
use super::started::Started;
use super::yielded::{Next, Yielded};
use crate::coop::{BudgetUnit, take_unit};
use crate::error::{TaskError, What};
use crate::park::{block_on, refuse_in_async_context};
use crate::task::TaskId;
use crate::wire::value;
use futures::Stream;
use futures::stream::StreamExt;
use serde::de::DeserializeOwned;
use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The items that a task yields, as they come: a stream; and its result, by
/// [`finish`](Self::finish).
///
/// It is made by [`Pool::stream`](crate::Pool::stream). Each item is a `Result<T, TaskError>`:
///
/// * An item that cannot be decoded is an error of its own
///   ([`ResultDecode`](crate::TaskErrorKind::ResultDecode)); the stream goes on.
/// * If the task fails (a panic, the death of its worker, a time limit, …), the items that it had
///   sent come first, then one error, then the stream ends.
/// * If the task returns, the stream ends. What it returned, its own `Result` included, is what
///   [`finish`](Self::finish) gives.
///
/// # Back-pressure
///
/// The task runs ahead of the reader by at most 64 KiB of items and one more item, where each item
/// counts as 64 bytes more than its encoded length. Then it waits in its next `send`, so the memory
/// that a stream takes does not grow while the reader is slow. The wait counts for the
/// [`timeout`](crate::TaskBuilder::timeout) of the task. A sync task occupies its worker while it
/// waits, as while it computes; async tasks share theirs.
///
/// # Drop
///
/// Stops the task, as [`JoinHandle::abort`](crate::JoinHandle::abort) does: a sync one with its
/// process. One that has a [`grace`](crate::TaskBuilder::grace) finds its next `send` refused
/// ([`is_closed`](crate::YieldError::is_closed)) and can end by itself, which spares its process.
///
/// # Retries
///
/// A task that has [`retries`](crate::TaskBuilder::retries) is started anew only as long as nothing
/// was taken from the stream; what had come and was not taken is forgotten. So the reader sees the
/// items of one run. [`retry_partial`](crate::TaskBuilder::retry_partial) lets it be started anew
/// in any case.
///
/// # Cancel safety
///
/// `next()` loses nothing when it is dropped.
#[must_use = "dropping a stream stops its task"]
pub struct TaskStream<T, R> {
    items: Arc<Yielded>,
    abort: AbortHandle,
    unit: BudgetUnit,
    /// The task's failure was given.
    has_failed: bool,
    /// Never a value inside: the stream may go where they may not.
    types: PhantomData<fn() -> (T, R)>,
}

impl<T, R> TaskStream<T, R> {
    pub(super) fn new(abort: AbortHandle, items: Arc<Yielded>) -> Self {
        let unit = BudgetUnit::default();
        Self { items, abort, unit, has_failed: false, types: PhantomData }
    }

    /// Stops the task, as [`JoinHandle::abort`](crate::JoinHandle::abort) does. The items that it
    /// had sent come first, then, as a rule, an error that is
    /// [`is_cancelled`](TaskError::is_cancelled).
    pub fn abort(&self) {
        self.abort.abort();
    }

    /// A handle that can stop the task, and nothing else.
    pub fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }

    /// As [`JoinHandle::id`](crate::JoinHandle::id).
    pub fn id(&self) -> TaskId {
        self.abort.id()
    }

    /// As [`JoinHandle::started`](crate::JoinHandle::started).
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn started(&self) -> Option<Started> {
        take_unit().await;
        self.abort.started().await
    }

    /// Whether the task has ended and all of its items have been taken.
    pub fn is_finished(&self) -> bool {
        self.items.has_ended()
    }

    /// As [`JoinHandle::worker_pid`](crate::JoinHandle::worker_pid).
    pub fn worker_pid(&self) -> Option<u32> {
        self.abort.worker_pid()
    }

    fn forked(&self) -> TaskError {
        TaskError::new(What::Forked, self.abort.function())
    }

    /// The next item, encoded.
    fn poll_encoded(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let (polled, wake) = self.items.poll_next(cx.waker());
        if let (Some(wake), Some(engine)) = (wake, self.abort.engine()) {
            engine.wake_sender(self.abort.key(), &wake);
        }
        if polled.is_pending() {
            self.abort.attend();
        }
        polled
    }
}

impl<T, R: DeserializeOwned> TaskStream<T, R> {
    /// Waits until the task has ended, and gives its result. Yielded that have not been taken are
    /// thrown away.
    ///
    /// # Errors
    ///
    /// As awaiting a [`JoinHandle`](crate::JoinHandle); also after the stream has given that error.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, the stream is dropped, which stops the task. To lose nothing,
    /// take the items first, until the stream ends: then it is ready at once.
    pub async fn finish(mut self) -> Result<R, TaskError> {
        take_unit().await;
        let mut poll_rest = |cx: &mut Context<'_>| match self.poll_encoded(cx) {
            Poll::Pending if Engine::is_forked_copy() => Poll::Ready(Next::End),
            polled => polled,
        };
        while let Next::Item(_) = poll_fn(&mut poll_rest).await {
            take_unit().await;
        }
        let function = self.abort.function();
        let outcome = self.items.outcome().unwrap_or_else(|| Err(self.forked()));
        let decoded = outcome?.decode();
        decoded.map_err(|e| TaskError::new(What::ResultDecode(e.to_string()), function))
    }

    /// As [`finish`](Self::finish), and blocks this thread.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    ///
    /// # Blocking
    ///
    /// Blocks the thread until the task has ended. It works whatever the pool's runtime does.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, use [`finish`](Self::finish).
    #[track_caller]
    pub fn blocking_finish(self) -> Result<R, TaskError> {
        refuse_in_async_context();
        self.abort.attend_blocking();
        block_on(self.finish())
    }
}

impl<T: DeserializeOwned, R> TaskStream<T, R> {
    /// The next item, for which it blocks this thread; `None` when there are no more.
    ///
    /// # Errors
    ///
    /// As the stream gives.
    ///
    /// # Blocking
    ///
    /// Blocks the thread until there is an item, or the task has ended. It works whatever the
    /// pool's runtime does.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, use `next().await`.
    #[track_caller]
    pub fn blocking_next(&mut self) -> Option<Result<T, TaskError>> {
        refuse_in_async_context();
        self.abort.attend_blocking();
        block_on(self.next())
    }
}

impl<T: DeserializeOwned, R> Stream for TaskStream<T, R> {
    type Item = Result<T, TaskError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        std::task::ready!(self.unit.poll_unit(cx));
        let polled = match self.poll_encoded(cx) {
            Poll::Ready(Next::Item(item)) => {
                let function = self.abort.function();
                let item = value::decode(&item)
                    .map_err(|e| TaskError::new(What::ResultDecode(e.to_string()), function));
                Poll::Ready(Some(item))
            }
            Poll::Ready(Next::End) if self.has_failed => Poll::Ready(None),
            Poll::Ready(Next::End) => {
                let failure = self.items.outcome().and_then(Result::err);
                self.has_failed = failure.is_some();
                Poll::Ready(failure.map(Err))
            }
            Poll::Pending if self.has_failed => Poll::Ready(None),
            Poll::Pending if Engine::is_forked_copy() => {
                self.has_failed = true;
                Poll::Ready(Some(Err(self.forked())))
            }
            Poll::Pending => Poll::Pending,
        };
        self.unit.per_item(polled)
    }
}

impl<T, R> Drop for TaskStream<T, R> {
    fn drop(&mut self) {
        if self.items.drop_reader() {
            self.abort.abort();
        }
    }
}

impl<T, R> fmt::Debug for TaskStream<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskStream")
            .field("id", &self.id())
            .field("function", &self.abort.function())
            .finish_non_exhaustive()
    }
}
