//! Waiting for a future by blocking the thread.
//!
//! If it waits for a manager elsewhere, the thread itself reads what that sends, so that nobody has
//! to wake it: see `remote.rs`.

use super::holding;
use super::remote::Remote;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use tokio::task::coop::unconstrained;

/// A thread that waits, and whether it has been woken since it looked.
struct Parked {
    thread: Thread,
    woken: AtomicBool,
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

/// From whom a blocked thread waits for an answer.
#[derive(Default)]
enum From {
    #[default]
    Nobody,
    One(Arc<Remote>),
    /// More than one can be read from only by their threads.
    Several,
}

thread_local! {
    /// How many times this thread is within [`park_on`].
    static BLOCKED: Cell<u32> = const { Cell::new(0) };
    static FROM: RefCell<From> = const { RefCell::new(From::Nobody) };
}

/// Whether this thread waits by blocking.
pub(super) fn is_blocked() -> bool {
    BLOCKED.get() > 0
}

/// Something is waited for from this manager, on this thread. Gives whether the thread itself will
/// read it.
pub(super) fn will_read(remote: &Arc<Remote>) -> bool {
    if BLOCKED.get() == 0 {
        return false;
    }
    FROM.with_borrow_mut(|from| match from {
        From::Nobody => {
            *from = From::One(Arc::clone(remote));
            true
        }
        From::One(other) if Arc::ptr_eq(other, remote) => true,
        From::One(_) => {
            if let From::One(other) = std::mem::replace(from, From::Several) {
                let _ = other.lean();
            }
            false
        }
        From::Several => false,
    })
}

/// Blocks the thread until the future is ready.
///
/// # Panics
///
/// Within an async context, as tokio's blocking calls do.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    refuse_in_async_context();
    holding::blocking(|| park_on(future))
}

/// As [`block_on`], also within an async context: for what comes from the manager at once.
pub(crate) fn park_on<F: Future>(future: F) -> F::Output {
    /// Puts back what was so before: a future may block within its own poll.
    struct Unblock(From);
    impl Drop for Unblock {
        fn drop(&mut self) {
            BLOCKED.set(BLOCKED.get() - 1);
            FROM.set(std::mem::take(&mut self.0));
        }
    }
    // A thread that blocks cannot yield, so it polls without a budget.
    let mut future = pin!(unconstrained(future));
    // Before anything is polled: else what waits for an answer would start the thread that reads,
    // for nothing.
    BLOCKED.set(BLOCKED.get() + 1);
    let _unblock = Unblock(FROM.take());
    // As a rule it is ready at once.
    if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return output;
    }
    let parked = Arc::new(Parked { thread: thread::current(), woken: AtomicBool::new(false) });
    let waker = Waker::from(Arc::clone(&parked));
    let mut cx = Context::from_waker(&waker);
    let woken = || parked.woken.swap(false, Ordering::AcqRel);
    loop {
        FROM.set(From::Nobody);
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        match FROM.take() {
            From::One(remote) => remote.read_until(&woken, &waker),
            From::Nobody | From::Several => {
                while !woken() {
                    thread::park();
                }
            }
        }
    }
}

/// Blocks the thread until the future is ready, or until then: `None`. For what no manager answers.
pub(super) fn park_until<F: Future>(future: F, until: Instant) -> Option<F::Output> {
    let mut future = pin!(unconstrained(future));
    let parked = Arc::new(Parked { thread: thread::current(), woken: AtomicBool::new(false) });
    let waker = Waker::from(Arc::clone(&parked));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        while !parked.woken.swap(false, Ordering::AcqRel) {
            match until.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return None,
                left => thread::park_timeout(left),
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
pub(super) fn refuse_in_async_context() {
    if tokio::runtime::Handle::try_current().is_err() {
        return; // that is quickly seen, and there is no such context without one
    }
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let _ = sender.send(());
    let _ = receiver.blocking_recv();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_another_thread_and_refuses_in_async_context() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let thread = thread::spawn(move || block_on(receiver));
        sender.send(7).expect("it waits");
        assert_eq!(thread.join().expect("no panic"), Ok(7));

        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let refused = std::panic::catch_unwind(|| runtime.block_on(async { block_on(async {}) }));
        assert!(refused.is_err());
        runtime.block_on(async { park_on(async {}) });
    }
}
