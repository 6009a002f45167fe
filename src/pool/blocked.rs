//! Whether all workers of a pool wait for shared objects while tasks are queued: then the pool says
//! so ([`WorkerEvent::Blocked`](crate::WorkerEvent::Blocked)).
//!
//! A worker counts the waits of the thread that runs its sync tasks
//! ([`WorkerMemory::waits`](crate::process::WorkerMemory::waits)), so two looks that find the same
//! odd number find the same wait. The pool looks once a [`LOOK`], and only while somebody takes its
//! events and it has a backlog.

use super::core::WorkerKey;
use std::time::{Duration, Instant};

/// Between two looks: so long a worker has waited, at least, that counts as blocked.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// What has been seen so far.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    /// Somebody takes the pool's events.
    pub(super) on: bool,
    /// When to look next.
    pub(super) at: Option<Instant>,
    /// The wait that each worker was in at the last look, if all were in one.
    seen: Vec<(WorkerKey, u64)>,
    told: bool,
}

impl Blocked {
    /// A look, a [`LOOK`] or more after the last one, which finds these counts of waits; `None` if
    /// there is no backlog, or not all workers are at sync tasks. Gives whether it is to be told
    /// that all are blocked: once, until something changes.
    pub(super) fn look(&mut self, counts: Option<Vec<(WorkerKey, u64)>>) -> bool {
        let counts = counts.filter(|counts| counts.iter().all(|(_, count)| count % 2 == 1));
        let counts = counts.unwrap_or_default();
        if counts.is_empty() || counts != self.seen {
            (self.seen, self.told) = (counts, false);
            return false;
        }
        !std::mem::replace(&mut self.told, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(blocked: &mut Blocked, counts: &[u64]) -> bool {
        let keys = (0..).map(WorkerKey::from_u64);
        blocked.look(Some(keys.zip(counts.iter().copied()).collect()))
    }

    #[test]
    fn it_is_told_once_when_every_worker_is_in_the_same_wait_at_two_looks() {
        let mut blocked = Blocked::default();
        assert!(!look(&mut blocked, &[1, 7]));
        assert!(look(&mut blocked, &[1, 7]));
        assert!(!look(&mut blocked, &[1, 7]), "it was told");
        assert!(!look(&mut blocked, &[1, 9]), "another wait");
        assert!(look(&mut blocked, &[1, 9]));
    }

    #[test]
    fn it_is_not_told_of_workers_that_are_slow_or_wait_for_less_than_that() {
        let mut blocked = Blocked::default();
        for n in 0..10 {
            assert!(!look(&mut blocked, &[1, 2]), "the second one waits for nothing");
            assert!(!look(&mut blocked, &[1, 3 + 2 * n]), "another wait each time");
        }
        for _ in 0..3 {
            assert!(!look(&mut blocked, &[1, 1]));
            assert!(!blocked.look(None), "no backlog in between");
        }
        assert!(!blocked.look(Some(Vec::new())) && !blocked.look(Some(Vec::new())), "no worker");
    }
}
