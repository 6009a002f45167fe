//! A value that is set once, and that any number of threads or tasks can wait for, in any runtime
//! or none.

use crate::lock::Lock;
use crate::panics::catch_user_panic;
use crate::park::{block_on, park_until};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// See the module.
#[derive(Debug)]
pub(crate) struct OnceEvent<T> {
    /// Held for some instructions; never while somebody is woken.
    state: Lock<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    waiters: Vec<oneshot::Sender<()>>,
}

impl<T: Clone> OnceEvent<T> {
    pub(crate) fn new() -> Self {
        Self { state: Lock::new(State { value: None, waiters: Vec::new() }) }
    }

    /// Sets the value, unless it is set, and wakes all that wait for it.
    pub(crate) fn set(&self, value: T) {
        let waiters = {
            let mut state = self.lock();
            if state.value.is_some() {
                return;
            }
            state.value = Some(value);
            std::mem::take(&mut state.waiters)
        };
        for waiter in waiters {
            catch_user_panic(|| waiter.send(()));
        }
    }

    pub(crate) fn get(&self) -> Option<T> {
        self.lock().value.clone()
    }

    /// Returns what resolves when the value is set; `None` if it is.
    pub(crate) fn waiter(&self) -> Option<oneshot::Receiver<()>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        if state.value.is_some() {
            return None;
        }
        // Those who do not wait any more are forgotten before room is made for more.
        let mut given_up = Vec::new();
        if state.waiters.len() == state.waiters.capacity() {
            (given_up, state.waiters) = std::mem::take(&mut state.waiters)
                .into_iter()
                .partition(oneshot::Sender::is_closed);
        }
        state.waiters.push(sender);
        drop(state);
        drop(given_up); // with what is left of their wakers
        Some(receiver)
    }

    /// Waits for the value. Dropping the future loses nothing.
    pub(crate) async fn wait(&self) -> T {
        loop {
            if let Some(value) = self.get() {
                return value;
            }
            if let Some(waiter) = self.waiter() {
                let _ = waiter.await;
            }
        }
    }

    /// Waits on this thread. Panics in an async context.
    pub(crate) fn blocking_wait(&self) -> T {
        block_on(self.wait())
    }

    /// Waits on this thread, no longer than `limit`.
    pub(crate) fn blocking_wait_timeout(&self, limit: Duration) -> Option<T> {
        // What the clock cannot hold is for ever.
        park_until(self.wait(), Instant::now().checked_add(limit))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::task::{ArcWake, waker};
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::Context;
    use std::thread;

    #[test]
    fn the_first_that_comes_stays_and_everybody_gets_it() {
        let event = OnceEvent::new();
        let mut waits: Vec<_> = (0..10).map(|_| Box::pin(event.wait())).collect();
        assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()));
        event.set(1);
        event.set(2);
        assert!(waits.into_iter().all(|wait| wait.now_or_never() == Some(1)));
        assert_eq!((event.get(), event.blocking_wait()), (Some(1), 1));
    }

    #[test]
    fn a_thread_waits_no_longer_than_it_likes() {
        let event = OnceEvent::new();
        for limit in [Duration::ZERO, Duration::from_millis(5)] {
            assert_eq!(event.blocking_wait_timeout(limit), None);
        }
        thread::scope(|scope| {
            let waiting = scope.spawn(|| event.blocking_wait_timeout(Duration::MAX));
            thread::yield_now();
            event.set(3);
            assert_eq!(waiting.join().expect("no panic"), Some(3));
        });
        assert_eq!(event.blocking_wait_timeout(Duration::ZERO), Some(3));
    }

    #[test]
    fn those_who_give_up_are_forgotten() {
        let event = OnceEvent::<()>::new();
        for _ in 0..10_000 {
            assert!(event.wait().now_or_never().is_none());
        }
        assert!(event.lock().waiters.capacity() < 100);
    }

    #[test]
    fn a_waker_that_panics_costs_nobody_else_his_own() {
        struct Panics;
        impl ArcWake for Panics {
            fn wake_by_ref(_: &Arc<Self>) {
                panic!("a waker panics");
            }
        }
        let event = OnceEvent::new();
        let mut first = pin!(event.wait());
        assert!(
            first.as_mut().poll(&mut Context::from_waker(&waker(Arc::new(Panics)))).is_pending()
        );
        let second = event.waiter();
        event.set(());
        assert!(second.and_then(|mut second| second.try_recv().ok()).is_some());
    }
}
