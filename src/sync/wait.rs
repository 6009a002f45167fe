//! Waiting for a future by blocking the thread.
//!
//! If it waits for a manager elsewhere, the thread itself reads what that sends, so that nobody has
//! to wake it: see `remote.rs`.

use super::holding;
use super::remote::Remote;
use crate::park::{Parked, refuse_in_async_context};
use crate::process::fork;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use tokio::task::coop::unconstrained;

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
    /// Without a destructor: a thread may wait as late as in the destructor of another variable.
    static FROM: RefCell<ManuallyDrop<From>> =
        const { RefCell::new(ManuallyDrop::new(From::Nobody)) };
    /// Where this thread counts the beginnings and ends of its waits, see [`count_waits`].
    static COUNTED: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
}

/// Has the waits of this thread, which runs tasks, counted in this word, where the pool sees them.
pub(crate) fn count_waits(word: &'static AtomicU64) {
    COUNTED.set(Some(word));
}

/// A wait that is counted: the word is odd until this is dropped.
struct Counted(&'static AtomicU64);

impl Counted {
    /// `None` on a thread whose waits are not counted, and for a wait within another one.
    fn begin() -> Option<Self> {
        // A forked copy does not have that memory.
        let word = COUNTED.get().filter(|_| BLOCKED.get() == 1 && !fork::is_forked_copy())?;
        // Nobody but this thread counts there.
        word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        Some(Self(word))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !fork::is_forked_copy() {
            self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }
}

/// Gives from whom this thread has waited so far.
fn replace_from(from: From) -> From {
    ManuallyDrop::into_inner(FROM.replace(ManuallyDrop::new(from)))
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
    FROM.with_borrow_mut(|from| match &mut **from {
        From::Nobody => {
            **from = From::One(Arc::clone(remote));
            true
        }
        From::One(other) if Arc::ptr_eq(other, remote) => true,
        From::One(_) => {
            if let From::One(other) = std::mem::replace(&mut **from, From::Several) {
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
#[track_caller]
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
            replace_from(std::mem::take(&mut self.0));
        }
    }
    // A thread that blocks cannot yield, so it polls without a budget.
    let mut future = pin!(unconstrained(future));
    // Before anything is polled: else what waits for an answer would start the thread that reads,
    // for nothing.
    BLOCKED.set(BLOCKED.get() + 1);
    let _unblock = Unblock(replace_from(From::Nobody));
    // As a rule it is ready at once.
    if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return output;
    }
    let _counted = Counted::begin();
    let parked = Parked::here();
    let waker = Waker::from(Arc::clone(&parked));
    let mut cx = Context::from_waker(&waker);
    let woken = || parked.was_woken();
    loop {
        replace_from(From::Nobody);
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        match replace_from(From::Nobody) {
            From::One(remote) => remote.read_until(&woken, &waker),
            From::Nobody | From::Several => {
                while !woken() {
                    thread::park();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_thread_that_runs_tasks_each_wait_is_counted_once_and_only_if_it_blocks() {
        static WORD: AtomicU64 = AtomicU64::new(0);
        let wait_for_one = || {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            // Sent by the second poll: the first one finds nothing.
            let mut sender = Some(sender);
            let mut receiver = Box::pin(receiver);
            let mut polls = 0;
            block_on(std::future::poll_fn(|cx| {
                polls += 1;
                let odd = WORD.load(Ordering::Relaxed) % 2;
                park_on(async {}); // a wait within it
                assert_eq!(WORD.load(Ordering::Relaxed) % 2, odd);
                if polls == 2 {
                    let _ = sender.take().map(|sender| sender.send(odd));
                }
                receiver.as_mut().poll(cx)
            }))
        };
        assert_eq!(wait_for_one(), Ok(0), "a thread that runs no tasks");
        count_waits(&WORD);
        assert_eq!(wait_for_one(), Ok(1));
        assert_eq!(WORD.load(Ordering::Relaxed), 2);
        block_on(async {});
        assert_eq!(WORD.load(Ordering::Relaxed), 2, "it did not block");
    }

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
