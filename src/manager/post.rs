//! Who turns a manager while somebody in the application waits for it: one task of one runtime,
//! which has the *post*.
//!
//! Without it, what a worker writes wakes the supervisor, and what that delivers wakes the
//! runtime: one wake-up more than it takes. So whoever waits in a runtime that can watch
//! descriptors takes the post, if nobody has it, and its task watches the manager's epoll set until
//!
//! * it has turned some times without anything for the application: what workers do among
//!   themselves wakes no runtime;
//! * its runtime goes, or drops the task;
//! * the manager is closed;
//! * it has not turned in time, and the supervisor has taken over. It may not even be polled any more;
//!   so it is not waited for: its task is aborted, which its runtime may see whenever it likes.
//!   Until that task has ended, its runtime is not given the post again: it may be that it is not
//!   polled at all, and would pile up tasks and descriptors.
//!
//! Nothing depends on the one who has the post: whatever it does not do, the supervisor does, a moment
//! later. Each has a number of its own, so one that has lost the post and comes late knows it.

use crate::lock::Lock;
use std::sync::MutexGuard;
use tokio::runtime::Id;
use tokio::task::AbortHandle;

/// Turns in a row with nothing for the application, after which the post is left.
pub(crate) const USELESS_MAX: u32 = 16;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Post {
    inside: Lock<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    holder: Option<Holder>,
    /// Who has lost it, and is there still.
    late: Vec<(u64, Id)>,
    /// How many have had it.
    given: u64,
    /// Nobody may have it any more.
    closed: bool,
}

#[derive(Debug)]
struct Holder {
    number: u64,
    runtime: Id,
    /// Its task, once there is one.
    task: Option<AbortHandle>,
    /// Turns in a row with nothing for the application.
    useless: u32,
}

/// What one finds who waits in some runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Vacant,
    /// A task of the same runtime has it.
    Own,
    Others,
}

impl Post {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    pub(crate) fn is_vacant(&self) -> bool {
        self.lock().holder.is_none()
    }

    /// Looks at it from this runtime, or from none.
    pub(crate) fn look(&self, from: Option<Id>) -> Seen {
        match &self.lock().holder {
            None => Seen::Vacant,
            Some(holder) if Some(holder.runtime) == from => Seen::Own,
            Some(_) => Seen::Others,
        }
    }

    /// Takes it: under this number. `None`: another one was faster, or this runtime has lost it and
    /// has not seen it yet.
    pub(crate) fn take(&self, runtime: Id) -> Option<u64> {
        let mut inside = self.lock();
        if inside.closed
            || inside.holder.is_some()
            || inside.late.iter().any(|(_, late)| *late == runtime)
        {
            return None;
        }
        inside.given += 1;
        let number = inside.given;
        inside.holder = Some(Holder { number, runtime, task: None, useless: 0 });
        Some(number)
    }

    /// Who has taken it does it by this task; which is aborted if he has lost it by now.
    pub(crate) fn by(&self, number: u64, task: AbortHandle) {
        let mut inside = self.lock();
        match &mut inside.holder {
            Some(holder) if holder.number == number => holder.task = Some(task),
            _ => {
                drop(inside);
                task.abort();
            }
        }
    }

    pub(crate) fn is_held_by(&self, number: u64) -> bool {
        self.lock().holder.as_ref().is_some_and(|holder| holder.number == number)
    }

    /// Its holder has turned, for the application or not. `false`: it is to be left.
    pub(crate) fn turned(&self, number: u64, useful: bool) -> bool {
        match &mut self.lock().holder {
            Some(holder) if holder.number == number => {
                holder.useless = if useful { 0 } else { holder.useless + 1 };
                holder.useless < USELESS_MAX
            }
            _ => false,
        }
    }

    /// This one is there no longer. Gives whether it was this one's, and is vacant now.
    pub(crate) fn leave(&self, number: u64) -> bool {
        let mut inside = self.lock();
        inside.late.retain(|(late, _)| *late != number);
        inside.holder.take_if(|holder| holder.number == number).is_some()
    }

    /// Whoever has it loses it.
    pub(crate) fn vacate(&self) {
        let mut inside = self.lock();
        let lost = inside.holder.take();
        inside.late.extend(lost.as_ref().map(|holder| (holder.number, holder.runtime)));
        drop(inside);
        if let Some(task) = lost.and_then(|holder| holder.task) {
            task.abort(); // without the lock: it may drop the task here
        }
    }

    /// As [`vacate`](Self::vacate), for ever.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.vacate();
    }

    /// How many have had it.
    #[cfg(test)]
    pub(crate) fn given(&self) -> u64 {
        self.lock().given
    }
}
