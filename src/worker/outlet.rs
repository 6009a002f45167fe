//! Where the items of a task that yields go out: the pool's socket, as far as there is credit.
//!
//! An item may be sent by any thread of the worker, until the task has ended. So a frame is written
//! under a lock ([`inbox::send_all`]), and the outlet is closed before the task's answer is written:
//! no item comes after the answer.

use super::inbox;
use crate::process::{WorkerMemory, fork, sys};
use crate::task::{self, Outlet, Sent};
use crate::wire::claim::Claim;
use crate::wire::credit::{Credit, CreditMemory, Units, Waiter, cost};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The outlet of one task that yields.
pub(super) struct TaskOutlet {
    claim: Claim,
    /// The worker reads no messages while the task runs.
    is_sync: bool,
    memory: &'static WorkerMemory,
    socket: Arc<OwnedFd>,
    limit: usize,
    inside: Mutex<Inside>,
    /// A thread waits for credit, on behalf of futures in a sync task.
    is_watched: AtomicBool,
}

#[derive(Debug, Default)]
struct Inside {
    sent: Units,
    is_closed: bool,
}

impl TaskOutlet {
    pub(super) fn new(
        claim: Claim,
        is_sync: bool,
        memory: &'static WorkerMemory,
        socket: Arc<OwnedFd>,
        limit: usize,
    ) -> Arc<Self> {
        let (inside, is_watched) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { claim, is_sync, memory, socket, limit, inside, is_watched })
    }

    /// The task has ended: nothing is sent any more.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        // A thread that the task has left behind may wait; it finds that at the word.
        self.memory.credits().close(self.claim);
        self.memory.credits().word(self.claim).into_iter().for_each(sys::futex_wake);
    }

    /// Held over the writing of an item, so that the items of several threads come one by one.
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> Credit {
        let sent = self.lock().sent;
        self.memory.credits().look(self.claim, sent)
    }
}

impl Outlet for TaskOutlet {
    fn id(&self) -> u64 {
        self.claim.id
    }

    fn limit(&self) -> usize {
        self.limit
    }

    fn try_send(&self, frame: &[u8], value: usize) -> Sent {
        if fork::is_forked_copy() {
            return Sent::Forked;
        }
        let mut inside = self.lock();
        if inside.is_closed {
            return Sent::Closed;
        }
        match self.memory.credits().look(self.claim, inside.sent) {
            Credit::Granted => {}
            Credit::Spent(_) => return Sent::NoCredit,
            Credit::Closed => return Sent::Closed,
        }
        inside.sent = inside.sent.plus(cost(value));
        inbox::send_all(&*self.socket, frame).map_or(Sent::Closed, |()| Sent::Done)
    }

    fn notify(self: Arc<Self>) {
        if !self.is_sync {
            return self.memory.credits().wait(self.claim, Waiter::Future);
        }
        // In a runtime of the task's own. No message is read meanwhile, so a thread waits.
        if self.is_watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let id = self.claim.id;
        let watch = move || {
            self.wait();
            self.is_watched.store(false, Ordering::Release);
            task::asked(id);
        };
        if std::thread::Builder::new().name("procpool-credit".into()).spawn(watch).is_err() {
            task::asked(id); // there is no thread to be had: whoever polls looks
        }
    }

    fn wait(&self) {
        self.memory.credits().wait(self.claim, Waiter::Thread);
        if let (Credit::Spent(seen), Some(word)) =
            (self.look(), self.memory.credits().word(self.claim))
        {
            sys::futex_wait(word, seen);
        }
    }
}
