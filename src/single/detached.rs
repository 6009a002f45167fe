//! What is known of a daemon of the system.

use super::machine::Machine;
use crate::coop::BudgetUnit;
use crate::error::{Error, Why};
use crate::park::refuse_in_async_context;
use crate::reactor::once_event::OnceEvent;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::oneshot;

/// A daemon that was started by [`ProcessBuilder::detach`](crate::ProcessBuilder::detach).
///
/// It is no child of the application: it cannot be waited for, and its number may become another
/// process's once it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    pid: u32,
}

impl Daemon {
    /// The daemon's own process number, as it is written into a pid file.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

/// The start of a daemon; a future, see [`ProcessBuilder::detach`](crate::ProcessBuilder::detach).
///
/// # Drop
///
/// The daemon starts all the same.
///
/// # Cancel safety
///
/// Nothing is lost: it can be awaited by `&mut`, again and again.
#[must_use = "whether the daemon has started is told here"]
pub struct DaemonStart {
    state: Result<Arc<OnceEvent<Result<u32, Error>>>, Error>,
    waiting: Option<oneshot::Receiver<()>>,
    unit: BudgetUnit,
}

impl DaemonStart {
    pub(super) fn new(state: Result<Arc<OnceEvent<Result<u32, Error>>>, Error>) -> Self {
        Self { state, waiting: None, unit: BudgetUnit::default() }
    }

    /// Waits on this thread.
    ///
    /// # Errors
    ///
    /// As awaiting it.
    ///
    /// # Blocking
    ///
    /// Until the daemon has started, some milliseconds.
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, `.await` it.
    #[track_caller]
    pub fn blocking_wait(self) -> Result<Daemon, Error> {
        refuse_in_async_context();
        let event = self.state?;
        if Machine::is_forked_copy() {
            return event
                .get()
                .unwrap_or_else(|| Err(Why::Forked.into()))
                .map(|pid| Daemon { pid });
        }
        event.blocking_wait().map(|pid| Daemon { pid })
    }
}

impl Future for DaemonStart {
    type Output = Result<Daemon, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        ready!(this.unit.poll_unit(cx));
        let event = match &this.state {
            Ok(event) => event,
            Err(error) => return this.unit.per_item(Poll::Ready(Err(error.clone()))),
        };
        loop {
            if let Some(result) = event.get() {
                return this.unit.per_item(Poll::Ready(result.map(|pid| Daemon { pid })));
            }
            if Machine::is_forked_copy() {
                return Poll::Ready(Err(Why::Forked.into()));
            }
            match &mut this.waiting {
                Some(waiting) => {
                    let _ = ready!(Pin::new(waiting).poll(cx));
                    this.waiting = None;
                }
                None => this.waiting = event.waiter(),
            }
        }
    }
}

impl fmt::Debug for DaemonStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaemonStart").finish_non_exhaustive()
    }
}
