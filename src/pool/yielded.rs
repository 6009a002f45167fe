//! The items of one task that yields, on their way to their reader.

use super::reply::Outcome;
use crate::wire::claim::Claim;
use crate::wire::credit::{CreditMemory, Units, WINDOW, Waiting, cost};
use crate::wire::packet::Packet;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// What the pool puts in, and the reader takes out. The reader's takings are the task's credit.
#[derive(Debug)]
pub(crate) struct Yielded {
    /// An async task's worker is told of credit by a message.
    is_async: bool,
    /// Another try may begin though items have been taken.
    may_repeat: bool,
    /// Held only to put in and take out.
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    arrived: VecDeque<Packet>,
    outcome: Option<Outcome>,
    reader: Option<Waker>,
    /// What has come and been taken in this try, and how much may come.
    came: Units,
    taken: Units,
    limit: Units,
    /// Yielded have been given to the reader, in whichever try.
    was_read: bool,
    /// The reader has gone.
    is_dropped: bool,
    /// The worker that has the task, and the claim there.
    source: Option<(Arc<dyn CreditMemory>, Claim)>,
}

/// What the reader gets.
#[derive(Debug)]
pub(crate) enum Next {
    Item(Packet),
    /// No more items come: the task has ended.
    End,
}

/// A task that waits for credit, and has some now: it is to be woken outside of all locks.
#[derive(Debug)]
pub(crate) struct Wake {
    pub(crate) memory: Arc<dyn CreditMemory>,
    pub(crate) claim: Claim,
    pub(crate) waiting: Waiting,
}

/// More came than the task had credit for.
#[derive(Debug)]
pub(crate) struct TooMany;

impl Yielded {
    pub(crate) fn new(is_async: bool, may_repeat: bool) -> Arc<Self> {
        Arc::new(Self { is_async, may_repeat, inside: Mutex::default() })
    }

    pub(crate) fn is_async(&self) -> bool {
        self.is_async
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- the pool

    /// The task is about to be sent, to be run from its beginning.
    pub(crate) fn sent(&self, memory: Arc<dyn CreditMemory>, claim: Claim) {
        memory.credits().open(claim);
        let mut inside = self.lock();
        // What a worker sent before it lost the task: no task that keeps to the protocol did.
        inside.arrived.clear();
        (inside.came, inside.taken) = (Units::default(), Units::default());
        inside.limit = Units::default().plus(WINDOW);
        if inside.is_dropped {
            memory.credits().close(claim);
        }
        inside.source = Some((memory, claim));
    }

    /// Puts in an item. Returns whom to wake, outside of all locks.
    pub(crate) fn put(&self, item: Packet) -> Result<Option<Waker>, TooMany> {
        let mut inside = self.lock();
        if !inside.came.is_below(inside.limit) {
            return Err(TooMany);
        }
        inside.came = inside.came.plus(cost(item.len()));
        if inside.is_dropped {
            return Ok(None);
        }
        inside.arrived.push_back(item);
        Ok(inside.reader.take())
    }

    /// The task has ended. Returns whom to wake, outside of all locks.
    pub(crate) fn end(&self, outcome: Outcome) -> Option<Waker> {
        let mut inside = self.lock();
        inside.source = None;
        inside.outcome = Some(outcome);
        inside.reader.take()
    }

    /// Whether another try may begin: what has not been taken is forgotten then.
    pub(crate) fn start_anew(&self) -> bool {
        let mut inside = self.lock();
        if inside.is_dropped || (inside.was_read && !self.may_repeat) {
            return false;
        }
        inside.arrived.clear();
        inside.source = None;
        true
    }

    /// The task is asked to stop: it has no credit any more.
    pub(crate) fn close(&self) -> Option<Wake> {
        let inside = self.lock();
        let (memory, claim) = inside.source.clone()?;
        let waiting = memory.credits().close(claim);
        drop(inside);
        Some(Wake { memory, claim, waiting })
    }

    // ---- the reader

    /// The next item, and a task that has got credit by that; if there is none, `waker` is told of
    /// the next.
    pub(crate) fn poll_next(&self, waker: &Waker) -> (Poll<Next>, Option<Wake>) {
        // To clone or to drop a waker may run the caller's code: not under the lock.
        let mut reader = Some(waker.clone());
        let mut inside = self.lock();
        let Some(item) = inside.arrived.pop_front() else {
            if inside.outcome.is_some() {
                return (Poll::Ready(Next::End), None);
            }
            std::mem::swap(&mut inside.reader, &mut reader);
            drop(inside);
            return (Poll::Pending, None);
        };
        inside.was_read = true;
        inside.taken = inside.taken.plus(cost(item.len()));
        let wake = inside.grant();
        (Poll::Ready(Next::Item(item)), wake)
    }

    /// Whether the task has ended, and all of its items have been taken.
    pub(crate) fn has_ended(&self) -> bool {
        let inside = self.lock();
        inside.arrived.is_empty() && inside.outcome.is_some()
    }

    /// The outcome, once there are no more items.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.lock().outcome.clone()
    }

    /// The reader has gone. `false`: the task has ended before.
    pub(crate) fn drop_reader(&self) -> bool {
        let mut inside = self.lock();
        inside.is_dropped = true;
        let left = (std::mem::take(&mut inside.arrived), inside.reader.take());
        let is_open = inside.outcome.is_none();
        drop(inside);
        drop(left);
        is_open
    }
}

impl Inside {
    /// Raises the limit if half of the window has been used.
    fn grant(&mut self) -> Option<Wake> {
        let limit = self.taken.plus(WINDOW);
        let (memory, claim) = self.source.as_ref()?;
        if limit.since(self.limit) < WINDOW / 2 {
            return None;
        }
        self.limit = limit;
        let waiting = memory.credits().grant(*claim, limit);
        (waiting != Waiting::default()).then(|| Wake {
            memory: Arc::clone(memory),
            claim: *claim,
            waiting,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::credit::{Credit, Credits, Waiter};
    use futures::task::noop_waker;
    use std::sync::atomic::AtomicU64;

    #[derive(Debug, Default)]
    struct Memory([[AtomicU64; 1]; 2]);

    impl CreditMemory for Memory {
        fn credits(&self) -> Credits<'_> {
            Credits::new(&self.0[0], &self.0[1])
        }
    }

    const CLAIM: Claim = Claim { slot: 0, id: 9 };

    fn sent() -> (Arc<Yielded>, Arc<Memory>) {
        let (items, memory) = (Yielded::new(false, false), Arc::<Memory>::default());
        items.sent(Arc::clone(&memory) as _, CLAIM);
        (items, memory)
    }

    fn take(items: &Yielded) -> Option<usize> {
        match items.poll_next(&noop_waker()).0 {
            Poll::Ready(Next::Item(item)) => Some(item.len()),
            _ => None,
        }
    }

    /// Sends as a worker does, until it has no credit.
    fn fill(items: &Yielded, memory: &Memory, sent: &mut Units, len: usize) -> usize {
        let mut count = 0;
        while memory.credits().look(CLAIM, *sent) == Credit::Granted {
            *sent = sent.plus(cost(len));
            items.put(Packet::copy_from(&vec![0; len])).expect("it has credit");
            count += 1;
        }
        count
    }

    #[test]
    fn a_task_has_credit_for_what_the_reader_has_taken() {
        for len in [0, 1, 63, 64, 1000, 1 << 20] {
            let (items, memory) = sent();
            let mut at = Units::default();
            let ahead = fill(&items, &memory, &mut at, len);
            assert_eq!(ahead, (WINDOW as usize).div_ceil(cost(len) as usize), "{len} bytes");
            let (mut came, mut taken) = (ahead, 0);
            while taken < 5000 {
                assert_eq!(take(&items), Some(len));
                taken += 1;
                came += fill(&items, &memory, &mut at, len);
                assert!(came - taken <= ahead && came > taken, "{came} {taken}");
            }
        }
    }

    #[test]
    fn what_comes_beyond_the_credit_is_refused_also_when_the_reader_has_gone() {
        for is_dropped in [false, true] {
            let (items, memory) = sent();
            if is_dropped {
                assert!(items.drop_reader());
            }
            let mut at = Units::default();
            fill(&items, &memory, &mut at, 10);
            assert!(items.put(Packet::copy_from(&[])).is_err());
            assert_eq!(take(&items).is_some(), !is_dropped);
        }
    }

    #[test]
    fn a_task_that_waits_is_told_when_it_has_credit_and_when_it_is_closed() {
        let (items, memory) = sent();
        let mut at = Units::default();
        let ahead = fill(&items, &memory, &mut at, 1);
        memory.credits().wait(CLAIM, Waiter::Future);
        let told = (0..ahead).filter_map(|_| items.poll_next(&noop_waker()).1).collect::<Vec<_>>();
        assert_eq!(told.len(), 1, "once");
        assert!(told[0].waiting.future && !told[0].waiting.thread);
        memory.credits().wait(CLAIM, Waiter::Thread);
        assert!(items.close().expect("it is there").waiting.thread);
        assert_eq!(memory.credits().look(CLAIM, at), Credit::Closed);
    }

    #[test]
    fn a_task_starts_anew_only_if_nothing_was_taken_or_that_was_asked_for() {
        for (may_repeat, takes) in [(false, false), (false, true), (true, true)] {
            let (items, memory) = (Yielded::new(false, may_repeat), Arc::<Memory>::default());
            items.sent(Arc::clone(&memory) as _, CLAIM);
            items.put(Packet::copy_from(&[1])).expect("credit");
            items.put(Packet::copy_from(&[1, 2])).expect("credit");
            assert!(!takes || take(&items) == Some(1));
            assert_eq!(items.start_anew(), may_repeat || !takes);
            if may_repeat || !takes {
                items.sent(memory, Claim { slot: 0, id: 9 });
                items.put(Packet::copy_from(&[1, 2, 3])).expect("credit");
                assert_eq!((take(&items), take(&items)), (Some(3), None));
            } else {
                assert_eq!((take(&items), take(&items)), (Some(2), None));
            }
        }
    }
}
