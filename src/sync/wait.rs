//! Waiting for a future by blocking the thread.

use super::holding;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
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
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
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
