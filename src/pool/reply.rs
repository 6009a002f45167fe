//! Where a task's outcome goes.

use crate::error::TaskError;
use crate::wire::packet::Packet;
pub(crate) use crate::wire::value::names::{Encoded, Things};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The encoded result of a task, or why there is none.
pub(crate) type Outcome = Result<Encoded, TaskError>;

/// What the scheduler carries for each task.
#[derive(Debug)]
pub(crate) struct Cargo {
    /// The call, ready to be written.
    pub(crate) frame: Packet,
    pub(crate) reply: Reply,
    pub(crate) function: &'static str,
    /// What few tasks have.
    pub(crate) extra: Option<Box<Extra>>,
    /// A place in the bounded backlog, held until the task is sent.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// What few tasks have, apart, so that the many are small.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// How its earlier tries failed.
    earlier: Vec<TaskError>,
    /// Watches over the token that cancels it, as long as this lives.
    #[expect(dead_code, reason = "its drop is what it is for")]
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere)))]
    token: Option<super::tokens::Registration>,
    /// The references to shared objects that its arguments name: kept until it has ended, to be sent again should it move.
    things: Things,
}

impl Extra {
    /// What a task has whose token is watched, or whose arguments name shared objects.
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere)))]
    pub(crate) fn of(token: Option<super::tokens::Registration>, things: Things) -> Option<Box<Self>> {
        (token.is_some() || things.is_some()).then(|| Box::new(Self { earlier: Vec::new(), token, things }))
    }
}

impl Cargo {
    /// The references to shared objects that its arguments name.
    pub(crate) fn things(&self) -> Things {
        self.extra.as_ref().and_then(|extra| extra.things.clone())
    }

    /// A try has failed, and another follows.
    pub(crate) fn failed(&mut self, error: TaskError) {
        self.extra.get_or_insert_default().earlier.push(error.shortened());
    }

    /// Gives the task its outcome; an error brings along those of the earlier tries.
    pub(crate) fn settle(self, outcome: Outcome) {
        let earlier = self.extra.map(|mut extra| std::mem::take(&mut extra.earlier)).unwrap_or_default();
        self.reply.settle(outcome.map_err(|error| error.after(earlier)));
    }
}

/// Who waits for a task.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A `JoinHandle`, or nobody any more.
    Join(oneshot::Sender<Outcome>),
    /// A `Results`; the number is the item's place in the input.
    Stream(Arc<Inlet>, u64),
}

impl Reply {
    pub(crate) fn settle(self, outcome: Outcome) {
        shielded(|| match self {
            Self::Join(sender) => drop(sender.send(outcome)), // it may have been detached
            Self::Stream(inlet, place) => inlet.put(place, outcome),
        });
    }

    pub(crate) fn is_of(&self, inlet: &Arc<Inlet>) -> bool {
        matches!(self, Self::Stream(own, _) if Arc::ptr_eq(own, inlet))
    }
}

/// Runs what may wake somebody. A waker is the caller's code: if it panics, that must not keep the others from being
/// told. The panic has been reported by the application's hook; there is nobody to pass it on to.
pub(crate) fn shielded(wake: impl FnOnce()) {
    if let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(wake)) {
        std::mem::forget(payload); // its drop might panic as well
    }
}

/// Outcomes of one `Results`, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Inlet {
    /// Held only to put in and take out.
    inside: Mutex<Arrived>,
}

#[derive(Debug, Default)]
struct Arrived {
    outcomes: VecDeque<(u64, Outcome)>,
    reader: Option<Waker>,
}

impl Inlet {
    fn put(&self, place: u64, outcome: Outcome) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.outcomes.push_back((place, outcome));
        let reader = inside.reader.take();
        drop(inside);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Swaps what has come into the (empty) `into`; if nothing has, `waker` is told of the next.
    pub(crate) fn poll_take(&self, into: &mut VecDeque<(u64, Outcome)>, waker: &Waker) -> Poll<()> {
        // To clone or to drop a waker may run the caller's code: not under the lock.
        let mut reader = Some(waker.clone());
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let polled = if inside.outcomes.is_empty() {
            std::mem::swap(&mut inside.reader, &mut reader);
            Poll::Pending
        } else {
            std::mem::swap(&mut inside.outcomes, into);
            Poll::Ready(())
        };
        drop(inside);
        drop(reader);
        polled
    }
}
