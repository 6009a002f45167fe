//! Something that comes once, and for which any number may wait, in any runtime or in none.

use crate::lock::Lock;
use crate::panics::catch_user_panic;
use crate::park::{block_on, park_until};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What has come, or who waits for it.
#[derive(Debug)]
pub(super) struct Coming<T> {
    /// Held for some instructions; never while somebody is woken.
    state: Lock<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    waiters: Vec<oneshot::Sender<()>>,
}

impl<T: Clone> Coming<T> {
    pub(super) fn new() -> Self {
        Self { state: Lock::new(State { value: None, waiters: Vec::new() }) }
    }

    /// It has come. The first one stays.
    pub(super) fn set(&self, value: T) {
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

    pub(super) fn get(&self) -> Option<T> {
        self.lock().value.clone()
    }

    /// Is told when it comes; `None`: it has come.
    pub(super) fn waiter(&self) -> Option<oneshot::Receiver<()>> {
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

    /// Waits. Dropping the future forgets the wish, and nothing else.
    pub(super) async fn wait(&self) -> T {
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
    pub(super) fn blocking_wait(&self) -> T {
        block_on(self.wait())
    }

    /// Waits on this thread, no longer than `limit`.
    pub(super) fn blocking_wait_timeout(&self, limit: Duration) -> Option<T> {
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
        let coming = Coming::new();
        let mut waits: Vec<_> = (0..10).map(|_| Box::pin(coming.wait())).collect();
        assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()));
        coming.set(1);
        coming.set(2);
        assert!(waits.into_iter().all(|wait| wait.now_or_never() == Some(1)));
        assert_eq!((coming.get(), coming.blocking_wait()), (Some(1), 1));
    }

    #[test]
    fn a_thread_waits_no_longer_than_it_likes() {
        let coming = Coming::new();
        for limit in [Duration::ZERO, Duration::from_millis(5)] {
            assert_eq!(coming.blocking_wait_timeout(limit), None);
        }
        thread::scope(|scope| {
            let waiting = scope.spawn(|| coming.blocking_wait_timeout(Duration::MAX));
            thread::yield_now();
            coming.set(3);
            assert_eq!(waiting.join().expect("no panic"), Some(3));
        });
        assert_eq!(coming.blocking_wait_timeout(Duration::ZERO), Some(3));
    }

    #[test]
    fn those_who_give_up_are_forgotten() {
        let coming = Coming::<()>::new();
        for _ in 0..10_000 {
            assert!(coming.wait().now_or_never().is_none());
        }
        assert!(coming.lock().waiters.capacity() < 100);
    }

    #[test]
    fn a_waker_that_panics_costs_nobody_else_his_own() {
        struct Panics;
        impl ArcWake for Panics {
            fn wake_by_ref(_: &Arc<Self>) {
                panic!("a waker panics");
            }
        }
        let coming = Coming::new();
        let mut first = pin!(coming.wait());
        assert!(
            first.as_mut().poll(&mut Context::from_waker(&waker(Arc::new(Panics)))).is_pending()
        );
        let second = coming.waiter();
        coming.set(());
        assert!(second.and_then(|mut second| second.try_recv().ok()).is_some());
    }
}
