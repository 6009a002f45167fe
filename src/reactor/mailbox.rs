//! What any number of threads put in, and one reader takes out.

use crate::lock::Lock;
use crate::panics::wake;
use std::task::{Poll, Waker};

/// A content, and the reader that waits for it to change.
#[derive(Debug, Default)]
pub(crate) struct Mailbox<T> {
    /// Held only to change the content. Wakers are the user's code: they are cloned, called and
    /// dropped without it.
    inside: Lock<Inside<T>>,
}

#[derive(Debug, Default)]
struct Inside<T> {
    content: T,
    reader: Option<Waker>,
}

impl<T> Mailbox<T> {
    /// Changes the content, and then wakes the reader.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T)) {
        let mut inside = self.inside.lock();
        change(&mut inside.content);
        let reader = inside.reader.take();
        drop(inside);
        if let Some(reader) = reader {
            wake(reader);
        }
    }

    /// Takes out what `take` finds. If that is pending, `waker` is woken by the next change.
    pub(crate) fn poll<R>(&self, waker: &Waker, take: impl FnOnce(&mut T) -> Poll<R>) -> Poll<R> {
        let mut reader = Some(waker.clone());
        let mut inside = self.inside.lock();
        let polled = take(&mut inside.content);
        if polled.is_pending() {
            std::mem::swap(&mut inside.reader, &mut reader);
        }
        drop(inside);
        drop(reader);
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Counts(AtomicU32);

    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_reader_is_woken_by_the_next_change_and_by_no_later_one() {
        let (mailbox, counts) = (Mailbox::<VecDeque<u32>>::default(), Arc::<Counts>::default());
        let waker = Waker::from(Arc::clone(&counts));
        let take = || {
            mailbox.poll(&waker, |content| content.pop_front().map_or(Poll::Pending, Poll::Ready))
        };
        mailbox.change(|content| content.push_back(1));
        assert_eq!((take(), counts.0.load(Ordering::Relaxed)), (Poll::Ready(1), 0));
        assert!(take().is_pending() && take().is_pending());
        mailbox.change(|content| content.push_back(2));
        mailbox.change(|content| content.push_back(3));
        assert_eq!(counts.0.load(Ordering::Relaxed), 1);
        assert_eq!((take(), take()), (Poll::Ready(2), Poll::Ready(3)));
    }

    #[test]
    fn a_waker_that_panics_keeps_nothing_from_being_put_in() {
        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("a waker panics");
            }
        }
        let mailbox = Mailbox::<u32>::default();
        let pending = |_: &mut u32| Poll::<()>::Pending;
        assert!(mailbox.poll(&Waker::from(Arc::new(Panics)), pending).is_pending());
        mailbox.change(|content| *content = 1);
        assert_eq!(mailbox.poll(Waker::noop(), |content| Poll::Ready(*content)), Poll::Ready(1));
    }
}
