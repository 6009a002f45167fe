//! An item of a queue that is leased.

use super::handle::Handle;
use super::queue::done;
use crate::error::sync::Error;
use crate::manager::objects::code::Message;
use crate::manager::objects::queue::Ask;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// An item of a [`Queue`](crate::sync::Queue) that is leased: it is done with only when it is
/// [acknowledged](Self::ack).
///
/// # Drop
///
/// Dropped without that, it goes back to its place in the queue and is delivered again, to whoever
/// asks first; so it does when this process dies. An item that makes its consumers fail comes again
/// and again: look at [`deliveries`](Self::deliveries), and acknowledge one that has failed too
/// often.
#[must_use = "an item that is let go without `ack` is delivered again"]
pub struct Delivery<T> {
    handle: Handle,
    lease: u64,
    deliveries: u32,
    /// It is ended: acknowledged or rejected.
    ended: bool,
    /// Always there, until [`into_inner`](Self::into_inner).
    value: Option<T>,
}

const THERE: &str = "the value is there until it is taken out, with which the delivery ends";

impl<T> Delivery<T> {
    pub(super) fn new(handle: Handle, lease: u64, deliveries: u32, value: T) -> Self {
        Self { handle, lease, deliveries, ended: false, value: Some(value) }
    }

    /// How often the item has been delivered, this time included: 1 the first time. What was on its
    /// way to a call that was dropped does not count.
    pub fn deliveries(&self) -> u32 {
        self.deliveries
    }

    /// Acknowledges it: the item is done with, and leaves the queue. The value stays here.
    ///
    /// # Errors
    ///
    /// [`NotHeld`](crate::sync::ErrorKind::NotHeld): the lease has run out, so that somebody else may
    /// have the item, or it was acknowledged before.
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// It is acknowledged once this was polled; but whether the lease was still held is not known.
    pub async fn ack(&mut self) -> Result<(), Error> {
        self.ended = true;
        done(self.handle.ask(Ask::Acknowledge { lease: self.lease }.body()).await)
    }

    /// As [`ack`](Self::ack), for threads: the manager answers at once, so it may be called
    /// anywhere.
    ///
    /// # Errors
    ///
    /// As `ack`.
    pub fn blocking_ack(&mut self) -> Result<(), Error> {
        self.ended = true;
        done(self.handle.ask(Ask::Acknowledge { lease: self.lease }.body()).settle())
    }

    /// Lets it go: the item goes back to its place and is delivered again. Dropping does the same,
    /// and does not say whether it was still held.
    ///
    /// # Errors
    ///
    /// As [`ack`](Self::ack).
    ///
    /// # Cancel safety
    ///
    /// It is let go in any case, for it goes with this.
    pub async fn reject(mut self) -> Result<(), Error> {
        self.ended = true;
        done(self.handle.ask(Ask::Reject { lease: self.lease }.body()).await)
    }

    /// As [`reject`](Self::reject), for threads: the manager answers at once, so it may be called
    /// anywhere.
    ///
    /// # Errors
    ///
    /// As `ack`.
    pub fn blocking_reject(mut self) -> Result<(), Error> {
        self.ended = true;
        done(self.handle.ask(Ask::Reject { lease: self.lease }.body()).settle())
    }

    /// From now on the lease lasts this long, whatever it had been; then the item is delivered
    /// again.
    ///
    /// # Errors
    ///
    /// As [`ack`](Self::ack).
    ///
    /// # Cancel safety
    ///
    /// It holds once this was polled; but whether the lease was still held is not known.
    pub async fn extend(&mut self, limit: Duration) -> Result<(), Error> {
        done(self.handle.ask(Ask::Extend { lease: self.lease, limit: Some(limit) }.body()).await)
    }

    /// As [`extend`](Self::extend), for threads: the manager answers at once, so it may be called
    /// anywhere.
    ///
    /// # Errors
    ///
    /// As `ack`.
    pub fn blocking_extend(&mut self, limit: Duration) -> Result<(), Error> {
        done(self.handle.ask(Ask::Extend { lease: self.lease, limit: Some(limit) }.body()).settle())
    }

    /// The value. Unless it was acknowledged, the item goes back and is delivered again.
    pub fn into_inner(mut self) -> T {
        self.value.take().expect(THERE)
    }

    fn let_go(&mut self) {
        if !self.ended {
            self.ended = true;
            // An error: the manager is closed, and the queue with it.
            let _ = self
                .handle
                .giving_up(|| self.handle.tell(Ask::Reject { lease: self.lease }.body()));
        }
    }
}

impl<T> Deref for Delivery<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect(THERE)
    }
}

impl<T> DerefMut for Delivery<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect(THERE)
    }
}

impl<T> Drop for Delivery<T> {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl<T: fmt::Debug> fmt::Debug for Delivery<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("value", &self.value)
            .field("deliveries", &self.deliveries)
            .finish_non_exhaustive()
    }
}
