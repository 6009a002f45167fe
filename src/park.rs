//! Waiting for a future by blocking the thread, without a runtime.
//!
//! It works wherever a thread runs, also in the destructor of a thread-local variable, where
//! tokio's own blocking calls panic.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use tokio::task::coop::unconstrained;

/// A thread that waits, and whether it has been woken since it looked.
#[derive(Debug)]
pub(crate) struct Parked {
    thread: Thread,
    woken: AtomicBool,
}

impl Parked {
    /// The current thread.
    pub(crate) fn here() -> Arc<Self> {
        Arc::new(Self { thread: thread::current(), woken: AtomicBool::new(false) })
    }

    /// Whether it has been woken since this was asked before.
    pub(crate) fn was_woken(&self) -> bool {
        self.woken.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Blocks the thread until the future is ready.
///
/// # Panics
///
/// Within an async context, as tokio's blocking calls do.
#[track_caller]
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    refuse_in_async_context();
    park_until(future, None).expect("without a limit it waits until the future is ready")
}

/// Blocks the thread until the future is ready, or until then: `None`.
pub(crate) fn park_until<F: Future>(future: F, until: Option<Instant>) -> Option<F::Output> {
    // A thread that blocks cannot yield, so it polls without a budget.
    let mut future = pin!(unconstrained(future));
    let parked = Parked::here();
    let waker = Waker::from(Arc::clone(&parked));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        while !parked.was_woken() {
            match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return None,
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
    }
}

/// Tokio knows, and says so where one of its own calls would block.
///
/// # Panics
///
/// Within an async context.
#[track_caller]
pub(crate) fn refuse_in_async_context() {
    if tokio::runtime::Handle::try_current().is_err() {
        return; // that is quickly seen, and there is no such context without one
    }
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let _ = sender.send(());
    let _ = receiver.blocking_recv();
}
