//! What happens to a pool's workers, told as it happens.

use super::engine::Engine;
use super::stats::ExitReason;
use crate::coop::BudgetUnit;
use crate::error::Error;
use crate::lock::Lock;
use crate::reactor::mailbox::Mailbox;
use futures::Stream;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

/// So many events are kept for who is slow; more would be of no use, and the memory is bounded by
/// it.
const KEPT: usize = 256;

/// What has happened to a worker.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WorkerEvent {
    /// It is ready for tasks.
    #[non_exhaustive]
    Started {
        /// Its process.
        pid: u32,
    },
    /// It has gone, and its process has been reaped.
    #[non_exhaustive]
    Exited {
        /// Its process, if there ever was one.
        pid: Option<u32>,
        /// Why it has gone.
        why: ExitReason,
        /// How its process ended, if that is known.
        status: Option<ExitStatus>,
        /// Why it did not get ready, if it did not. `None` for a start that was called off because
        /// the pool ended.
        cause: Option<Error>,
    },
    /// Workers have ended by themselves too often before they were given any task: the pool starts
    /// none any more, until [`Pool::ready`](crate::Pool::ready) is called or a worker that is
    /// left answers a task. See [`Builder::restart_limit`](crate::Builder::restart_limit).
    #[non_exhaustive]
    GaveUp {
        /// What tasks are told.
        cause: Error,
    },
    /// Every worker has waited for a shared object for a second or more, in a sync task, while tasks
    /// are queued. If what they wait for must come from a queued task, nothing will move: the pool
    /// needs more workers. It is told once, until one of them goes on or is replaced.
    ///
    /// A wait for a [`Channel`](crate::sync::Channel), and one in an async task, counts as work.
    #[non_exhaustive]
    Blocked {
        /// What they wait for, as far as it belongs to a [`Manager`](crate::Manager) of this
        /// process: each object once, in no order.
        objects: Vec<SharedObject>,
    },
    /// So many events before the next one have been lost, because they were not taken in time.
    #[non_exhaustive]
    Lagged {
        /// How many.
        events: u64,
    },
}

/// A shared object, as [`WorkerEvent::Blocked`] names it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedObject {
    /// The type of its handles: `"Queue"`, for example.
    pub kind: &'static str,
    /// Its name, if it was made with one.
    pub name: Option<String>,
}

/// The events of a pool's workers, from the call of [`Pool::events`](crate::Pool::events) on: a
/// stream, which ends when the pool has ended.
///
/// The pool never waits for it: the last 256 events are kept until they are taken, older ones are
/// lost, and their number is told ([`WorkerEvent::Lagged`]). There may be many such streams, and
/// each has them all. It holds no [`Pool`](crate::Pool).
///
/// # Cancel safety
///
/// `next()` loses nothing when it is dropped.
#[must_use = "streams do nothing unless polled"]
pub struct Events {
    engine: Weak<Engine>,
    feed: Arc<Feed>,
    unit: BudgetUnit,
}

type Feed = Mailbox<Told>;

#[derive(Debug, Default)]
struct Told {
    events: VecDeque<WorkerEvent>,
    missed: u64,
    ended: bool,
}

/// All streams of one pool.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    /// `None` when the pool has ended. Held only to copy what is in it.
    open: Lock<Option<Vec<Weak<Feed>>>>,
}

impl Feeds {
    pub(crate) fn new() -> Self {
        Self { open: Lock::new(Some(Vec::new())) }
    }

    pub(crate) fn subscribe(&self, engine: Weak<Engine>) -> Events {
        let feed = Arc::<Feed>::default();
        match &mut *self.open.lock() {
            Some(feeds) => {
                feeds.retain(|feed| feed.strong_count() > 0);
                feeds.push(Arc::downgrade(&feed));
            }
            None => feed.change(|told| told.ended = true),
        }
        Events { engine, feed, unit: BudgetUnit::default() }
    }

    /// A stream that has ended.
    pub(crate) fn none() -> Events {
        Self::default().subscribe(Weak::new())
    }

    pub(crate) fn tell(&self, event: &WorkerEvent) {
        let feeds: Vec<_> = match &mut *self.open.lock() {
            Some(feeds) => {
                feeds.retain(|feed| feed.strong_count() > 0);
                feeds.iter().filter_map(Weak::upgrade).collect()
            }
            None => return,
        };
        for feed in feeds {
            feed.change(|told| {
                if told.events.len() == KEPT {
                    told.events.pop_front();
                    told.missed += 1;
                }
                told.events.push_back(event.clone());
            });
        }
    }

    /// Whether somebody takes the events.
    pub(crate) fn is_any_open(&self) -> bool {
        let open = self.open.lock();
        open.iter().flatten().any(|feed| feed.strong_count() > 0)
    }

    /// Nothing more will happen.
    pub(crate) fn close(&self) {
        let feeds = self.open.lock().take();
        for feed in feeds.iter().flatten().filter_map(Weak::upgrade) {
            feed.change(|told| told.ended = true);
        }
    }
}

impl Stream for Events {
    type Item = WorkerEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WorkerEvent>> {
        ready!(self.unit.poll_unit(cx));
        if Engine::is_forked_copy() {
            return Poll::Ready(None);
        }
        let polled = self.feed.poll(cx.waker(), |told| {
            if told.missed > 0 {
                Poll::Ready(Some(WorkerEvent::Lagged { events: std::mem::take(&mut told.missed) }))
            } else if let Some(event) = told.events.pop_front() {
                Poll::Ready(Some(event))
            } else if told.ended {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        });
        if polled.is_pending()
            && let Some(engine) = self.engine.upgrade()
        {
            engine.attend();
        }
        self.unit.per_item(polled)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, StreamExt};

    #[test]
    fn streams_that_are_dropped_are_forgotten_though_nothing_happens() {
        let feeds = Feeds::new();
        let kept = feeds.subscribe(Weak::new());
        (0..100).for_each(|_| drop(feeds.subscribe(Weak::new())));
        assert!(feeds.open.lock().as_ref().is_some_and(|feeds| feeds.len() <= 2));
        drop(kept);
    }

    #[test]
    fn the_oldest_are_lost_first_and_counted() {
        let feeds = Feeds::new();
        let (mut slow, mut other) = (feeds.subscribe(Weak::new()), feeds.subscribe(Weak::new()));
        for pid in 0..KEPT as u32 + 7 {
            feeds.tell(&WorkerEvent::Started { pid });
            assert!(
                matches!(other.next().now_or_never(), Some(Some(WorkerEvent::Started { pid: told })) if told == pid)
            );
        }
        feeds.close();
        feeds.tell(&WorkerEvent::Started { pid: 0 });
        assert!(matches!(
            slow.next().now_or_never(),
            Some(Some(WorkerEvent::Lagged { events: 7 }))
        ));
        for pid in 7..KEPT as u32 + 7 {
            assert!(
                matches!(slow.next().now_or_never(), Some(Some(WorkerEvent::Started { pid: told })) if told == pid)
            );
        }
        for mut ended in [slow, other, feeds.subscribe(Weak::new())] {
            assert!(matches!(ended.next().now_or_never(), Some(None)));
        }
    }
}
