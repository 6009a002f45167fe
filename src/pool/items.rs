//! The items of a map over an iterator.

use futures::Stream;
use std::pin::Pin;
use std::task::{Context, Poll};

/// An iterator as the stream that [`Pool::map`](crate::Pool::map) takes its items from.
///
/// It only names the type of a map's [`Results`](crate::Results), for those that keep them in a
/// struct: `Results<Items<std::vec::IntoIter<u64>>, (u64,), u64>`.
#[derive(Clone, Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct Items<I>(I);

impl<I> Items<I> {
    pub(super) fn new(items: impl IntoIterator<IntoIter = I>) -> Self {
        Self(items.into_iter())
    }
}

/// The iterator is never pinned.
impl<I> Unpin for Items<I> {}

impl<I: Iterator> Stream for Items<I> {
    type Item = I::Item;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.0.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}
