//! How public calls take part in tokio's cooperative scheduling.
//!
//! A call that is ready without waiting does not return to the runtime. A loop over such calls would
//! never yield: the task could not be aborted, no time limit around it would fire, and a
//! runtime with one thread would run nothing else. So every public async function, future, stream and
//! sink of the crate takes one [`BudgetUnit`] per call or item. When the task's budget
//! ([`tokio::task::coop`]) is used up, the call returns `Pending` once and is polled again at once.
//!
//! Threads that block (`sync/wait.rs`) poll without a budget, since they cannot yield.
//! `tests/sync/primitives.rs` goes over all calls, and `tests/tidy.rs` checks that none is missing
//! there.

use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::task::coop::poll_proceed;

/// One unit of the budget of the tokio task that polls it: a future that is `Pending` at most once.
///
/// Outside of a tokio task it is ready at once. It may be polled again after it was ready.
#[derive(Debug, Default)]
pub(crate) struct BudgetUnit {
    was_polled: bool,
}

impl BudgetUnit {
    pub(crate) fn poll_unit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The second poll proceeds in any case. Another executor may poll within the same poll of
        // the tokio task (`futures::executor::block_on`), where the budget is never refilled.
        if std::mem::replace(&mut self.was_polled, true) {
            return Poll::Ready(());
        }
        match poll_proceed(cx) {
            Poll::Ready(unit) => {
                unit.made_progress();
                Poll::Ready(())
            }
            Poll::Pending => {
                // Tokio wakes only when its scheduler runs, which such an executor prevents.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    /// For a stream or a sink: gives the result of one item, after which the next one takes a unit
    /// of its own.
    pub(crate) fn per_item<T>(&mut self, polled: Poll<T>) -> Poll<T> {
        self.was_polled = polled.is_pending();
        polled
    }
}

impl Future for BudgetUnit {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_unit(cx)
    }
}

/// Takes one unit of the budget: for the beginning of an async function.
pub(crate) fn take_unit() -> BudgetUnit {
    BudgetUnit::default()
}
