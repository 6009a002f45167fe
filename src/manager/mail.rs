//! Where a client's answers arrive, each under the ticket of its request, and who waits for them.
//!
//! One for each connection. Whoever has something for a ticket puts it in; whoever has the ticket's
//! future looks. Held only for that: wakers are called, cloned and dropped without the lock, and
//! behind a guard that catches panics, for they are the caller's code.

use super::message::Refusal;
use super::object::Body;
use crate::lock::Lock;
use crate::panics::{wake, wake_all};
use crate::process::PeerFd;
use std::collections::HashMap;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

/// What has come for a ticket.
#[derive(Debug)]
pub(crate) enum Arrived {
    Answer {
        body: Body,
        offer: bool,
    },
    Refused(Refusal),
    /// A lock is waited for in a ring: this one.
    Deadlock(String),
    /// A lock is granted: at this version of its word. A later one replaces an earlier one.
    Granted(u64),
    Mapped(PeerFd),
}

#[derive(Debug)]
enum Slot {
    Waiting(Option<Waker>),
    Come(Arrived),
}

#[derive(Debug, Default)]
struct Inside {
    /// Why nothing will come any more.
    closed: Option<Refusal>,
    slots: HashMap<u64, Slot>,
    next: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    inside: Lock<Inside>,
    /// As within: for those who use the shared memory only.
    closed: AtomicBool,
}

impl Mail {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    /// A new ticket, under which something may arrive from now on.
    pub(crate) fn open(&self) -> Result<u64, Refusal> {
        let mut inside = self.lock();
        if let Some(why) = inside.closed {
            return Err(why);
        }
        inside.next += 1;
        let ticket = inside.next;
        inside.slots.insert(ticket, Slot::Waiting(None));
        Ok(ticket)
    }

    /// The last ticket that was opened: who opens one after this has a higher one.
    pub(crate) fn newest(&self) -> u64 {
        self.lock().next
    }

    /// What has come; else `waker` is told when something does.
    pub(crate) fn poll(&self, ticket: u64, waker: &Waker) -> Poll<Arrived> {
        // To clone or to drop one may run the caller's code.
        let waker = waker.clone();
        let mut inside = self.lock();
        match inside.slots.get_mut(&ticket) {
            None => Poll::Ready(Arrived::Refused(Refusal::Closed)),
            Some(slot @ Slot::Come(_)) => {
                let Slot::Come(arrived) = std::mem::replace(slot, Slot::Waiting(None)) else {
                    unreachable!("it has just been seen")
                };
                Poll::Ready(arrived)
            }
            Some(Slot::Waiting(old)) => {
                let old = old.replace(waker);
                drop(inside);
                drop(old);
                Poll::Pending
            }
        }
    }

    /// Nobody waits under this ticket any more. Gives what had come and was not taken.
    pub(crate) fn forget(&self, ticket: u64) -> Option<Arrived> {
        let slot = self.lock().slots.remove(&ticket);
        match slot {
            Some(Slot::Come(arrived)) => Some(arrived),
            // A waker is dropped here, without the lock.
            _ => None,
        }
    }

    /// Something has come. What nobody waits for comes back.
    pub(crate) fn deliver(&self, ticket: u64, arrived: Arrived) -> Option<Arrived> {
        let mut inside = self.lock();
        let Some(slot) = inside.slots.get_mut(&ticket) else { return Some(arrived) };
        // Two threads may bring them, the later one first. A refusal is the last that comes.
        match (&*slot, &arrived) {
            (Slot::Come(Arrived::Granted(old)), Arrived::Granted(new)) if old > new => return None,
            (Slot::Come(Arrived::Refused(_) | Arrived::Deadlock(_)), Arrived::Granted(_)) => {
                return None;
            }
            _ => {}
        }
        let old = std::mem::replace(slot, Slot::Come(arrived));
        drop(inside);
        match old {
            Slot::Waiting(Some(waker)) => wake(waker),
            Slot::Waiting(None) => {}
            Slot::Come(old) => drop(old),
        }
        None
    }

    /// Whether somebody waits for something that has not come.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.lock().slots.values().any(|slot| matches!(slot, Slot::Waiting(Some(_))))
    }

    /// Nothing will come any more: everyone is told.
    pub(crate) fn close(&self) {
        self.close_with(Refusal::Closed);
    }

    /// As [`close`](Self::close), for this reason. The first reason counts.
    pub(crate) fn close_with(&self, why: Refusal) {
        let mut inside = self.lock();
        let why = *inside.closed.get_or_insert(why);
        self.closed.store(true, Ordering::Release);
        let mut wake = Vec::new();
        for slot in inside.slots.values_mut() {
            // What has come stays: it was on its way before the end.
            if let Slot::Waiting(waker) = slot {
                wake.extend(waker.take());
                *slot = Slot::Come(Arrived::Refused(why));
            }
        }
        drop(inside);
        wake_all(wake);
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Wake;

    struct Panics;

    impl Wake for Panics {
        fn wake(self: std::sync::Arc<Self>) {
            panic!("a waker that panics");
        }
    }

    #[test]
    fn what_comes_is_taken_once_and_a_waker_that_panics_harms_nobody() {
        let mail = Mail::default();
        let (a, b) = (mail.open().expect("open"), mail.open().expect("open"));
        let waker = Waker::from(std::sync::Arc::new(Panics));
        assert!(mail.poll(a, &waker).is_pending() && mail.poll(b, &waker).is_pending());
        assert!(mail.deliver(a, Arrived::Granted(2)).is_none());
        assert!(mail.deliver(a, Arrived::Granted(1)).is_none());
        assert!(matches!(mail.poll(a, &waker), Poll::Ready(Arrived::Granted(2))));
        assert!(mail.poll(a, &waker).is_pending());
        mail.close();
        assert!(matches!(mail.poll(b, &waker), Poll::Ready(Arrived::Refused(Refusal::Closed))));
        assert!(matches!(mail.open(), Err(Refusal::Closed)));
        assert!(mail.deliver(77, Arrived::Granted(1)).is_some());
    }
}
