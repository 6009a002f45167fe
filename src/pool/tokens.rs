//! Cancellation tokens that calls were given: whoever turns the pool is told when one is cancelled.
//!
//! A token's future is polled by whoever turns the pool, with a waker that rings an eventfd in the
//! pool's epoll set. So it works whether or not anybody polls the task's handle, and in whatever
//! runtime the token is cancelled.
//!
//! 1. A registration lives as long as its [`Registration`], which the task's cargo holds: it goes
//!    with the task.
//! 2. Futures are polled and dropped without the lock: they take locks of their own.
//! 3. The key comes after the registration, for the task may end before its submission has
//!    returned. A token that was cancelled by then is told by [`Tokens::arm`].

use super::core::TaskKey;
use crate::lock::Lock;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The tokens of one pool.
#[derive(Debug)]
pub(crate) struct Tokens {
    bell: EventFd,
    inside: Lock<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    /// Those whose waker was called.
    woken: Vec<u64>,
}

#[derive(Debug)]
struct Waiting {
    /// `None` while it is being polled.
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    task: Option<TaskKey>,
}

/// A token that is watched for a task. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Registration {
    tokens: Arc<Tokens>,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let gone = self.tokens.lock().waiting.remove(&self.number);
        drop(gone); // without the lock
    }
}

impl Tokens {
    pub(crate) fn new() -> io::Result<Self> {
        let bell =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { bell, inside: Lock::default() })
    }

    /// Wakes the driver for another reason than a token.
    pub(crate) fn wake_driver(&self) {
        // It can only fail when the counter is full, and then it is readable.
        let _ = self.bell.write(1);
    }

    /// Readable when a token may have been cancelled, or the driver is to be woken.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Watches a token for a task that is about to be handed in.
    pub(crate) fn register(self: &Arc<Self>, token: &CancellationToken) -> Registration {
        let cancelled = Some(Box::pin(token.clone().cancelled_owned()));
        let mut inside = self.lock();
        inside.next += 1;
        let number = inside.next;
        inside.waiting.insert(number, Waiting { cancelled, task: None });
        Registration { tokens: Arc::clone(self), number }
    }

    /// The task of this registration has been taken by the pool. `true`: its token is cancelled
    /// already.
    pub(crate) fn arm(self: &Arc<Self>, number: u64, task: TaskKey) -> bool {
        if let Some(waiting) = self.lock().waiting.get_mut(&number) {
            waiting.task = Some(task);
        }
        self.poll(number).is_some()
    }

    /// Tasks whose token has been cancelled since the last look.
    pub(crate) fn cancelled(self: &Arc<Self>) -> Vec<TaskKey> {
        let _ = self.bell.read();
        let woken = std::mem::take(&mut self.lock().woken);
        woken.into_iter().filter_map(|number| self.poll(number)).collect()
    }

    /// The task, if its token is cancelled; else its waker is told.
    fn poll(self: &Arc<Self>, number: u64) -> Option<TaskKey> {
        let mut cancelled = self.lock().waiting.get_mut(&number)?.cancelled.take()?;
        let waker = Waker::from(Arc::new(Bell { tokens: Arc::clone(self), number }));
        let polled = cancelled.as_mut().poll(&mut Context::from_waker(&waker));
        let mut inside = self.lock();
        let Some(waiting) = inside.waiting.get_mut(&number) else {
            drop(inside);
            return None; // the task has ended meanwhile, and its future goes here
        };
        match polled {
            Poll::Ready(()) => waiting.task,
            Poll::Pending => {
                waiting.cancelled = Some(cancelled);
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }
}

impl Registration {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

/// The waker of one registration.
struct Bell {
    tokens: Arc<Tokens>,
    number: u64,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.tokens.lock().woken.push(self.number);
        // It can only fail when the counter is full, and then it has been rung.
        let _ = self.tokens.bell.write(1);
    }
}
