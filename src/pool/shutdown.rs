//! What a caller waits for when a pool ends.

use super::core::CutOff;
use super::engine::Engine;
use crate::coop::BudgetUnit;
use crate::task::TaskId;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// The end of a pool: a future that [`Pool::shutdown`](crate::Pool::shutdown),
/// [`shutdown_within`](crate::Pool::shutdown_within) and [`kill`](crate::Pool::kill) give. It is
/// ready when no task is open and every worker process has gone and been reaped, and says what was
/// cut off.
///
/// The call has begun the end already, so nothing has to be awaited. There may be many of one pool,
/// and all of them give the same; they hold no [`Pool`](crate::Pool), so the last of those may be
/// dropped meanwhile, which kills.
///
/// A process that the kernel has not ended 5 seconds after its kill (it hangs in a system call, or
/// has become another user's) is not waited for; it is reaped when it ends.
///
/// # Cancel safety
///
/// Dropped, it no longer waits; the pool ends all the same.
pub struct Shutdown {
    engine: Arc<Engine>,
    /// `None` in a forked copy of the application, which has no pool.
    ended: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    unit: BudgetUnit,
}

impl Shutdown {
    pub(super) fn of(engine: &Arc<Engine>) -> Self {
        let mut ended = engine.ended();
        let ended = async move {
            // Its sender lives in the engine, which is held.
            let _ = ended.wait_for(|ended| *ended).await;
        };
        Self {
            engine: Arc::clone(engine),
            ended: (!Engine::is_forked_copy()).then(|| Box::pin(ended) as _),
            unit: BudgetUnit::default(),
        }
    }
}

impl Future for Shutdown {
    type Output = ShutdownReport;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ShutdownReport> {
        ready!(self.unit.poll_unit(cx));
        if Engine::is_forked_copy() {
            return Poll::Ready(ShutdownReport::default());
        }
        let Some(ended) = &mut self.ended else { return Poll::Ready(ShutdownReport::default()) };
        if ended.as_mut().poll(cx).is_pending() {
            self.engine.attend();
            return Poll::Pending;
        }
        Poll::Ready(self.engine.cut_off())
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").finish_non_exhaustive()
    }
}

/// Which tasks the end of a pool has cut off, by their ids
/// ([`JoinHandle::id`](crate::JoinHandle::id)). All of them resolved to
/// [`is_pool_closed`](crate::TaskError::is_pool_closed).
///
/// Empty if the pool drained in time. A task whose result came before the end took it is not among
/// them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    unbegun: Vec<TaskId>,
    begun: Vec<TaskId>,
}

impl ShutdownReport {
    pub(super) fn of(cut_off: &CutOff) -> Self {
        let ids = |numbers: &[u64]| numbers.iter().copied().map(TaskId::of).collect();
        Self { unbegun: ids(&cut_off.unbegun), begun: ids(&cut_off.begun) }
    }

    /// Those that had not begun: no worker has run any of their code, but for earlier tries of one
    /// that is tried again.
    #[must_use]
    pub fn unbegun(&self) -> &[TaskId] {
        &self.unbegun
    }

    /// Those that had begun, or may have: they were dropped at an await point, or killed with their
    /// process.
    #[must_use]
    pub fn begun(&self) -> &[TaskId] {
        &self.begun
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.unbegun.len() + self.begun.len()
    }

    /// Nothing was cut off.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
