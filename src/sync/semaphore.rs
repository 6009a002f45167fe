//! The handle of a semaphore, and its permits.

use super::handle::{Asking, Handle, handle_travels, kinds};
use super::manager::Manager;
use crate::error::sync::{Error, Why};
use crate::manager::object::{Body, Part};
use crate::manager::objects::code::{Message, Wait};
use crate::manager::objects::semaphore::{Ask, PERMITS_MAX, Reply, Semaphore as Rules};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// A number of permits that processes share.
///
/// Made by [`Manager::semaphore`] or [`Manager::bounded_semaphore`]. A handle is cheap to clone,
/// can be used from any thread and in any runtime, and travels to other processes as an argument,
/// in a result, or inside another shared object.
///
/// * Whoever waits is served in order, and nobody passes: one who waits for many permits gets them,
///   however many others want few.
/// * A [`SemaphorePermit`] gives its permits back when it is dropped; **a process that dies gives
///   back all that it had**.
/// * A bounded semaphore never has more permits than it began with, counting those that somebody
///   holds (Python's `BoundedSemaphore`).
///
/// ```
/// use procpool::Manager;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let semaphore = Manager::new()?.semaphore(2)?;
/// let permit = semaphore.acquire().await?;
/// assert_eq!(semaphore.available_permits()?, 1);
/// drop(permit);
/// assert_eq!(semaphore.available_permits()?, 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Semaphore {
    handle: Handle,
    marker: PhantomData<()>,
}

handle_travels!(Semaphore, kinds::SEMAPHORE);

impl Manager {
    /// Makes a semaphore with this number of permits; more may be [added](Semaphore::add_permits).
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](crate::sync::ErrorKind::InvalidOption) for more than `u64::MAX / 8` permits;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn semaphore(&self, permits: u64) -> Result<Semaphore, Error> {
        self.make_semaphore(None, permits, false)
    }

    /// Makes a semaphore that never has more permits than these.
    ///
    /// # Errors
    ///
    /// As [`semaphore`](Self::semaphore).
    pub fn bounded_semaphore(&self, permits: u64) -> Result<Semaphore, Error> {
        self.make_semaphore(None, permits, true)
    }

    /// The semaphore of this name; makes it, with this number of permits, if there is none.
    ///
    /// # Errors
    ///
    /// As [`semaphore`](Self::semaphore).
    pub fn semaphore_named(&self, name: &str, permits: u64) -> Result<Semaphore, Error> {
        self.make_semaphore(Some(name), permits, false)
    }

    /// The semaphore of this name; makes a [bounded](Self::bounded_semaphore) one if there is none.
    /// (One that is there is bounded as it was made.)
    ///
    /// # Errors
    ///
    /// As [`semaphore`](Self::semaphore).
    pub fn bounded_semaphore_named(&self, name: &str, permits: u64) -> Result<Semaphore, Error> {
        self.make_semaphore(Some(name), permits, true)
    }

    fn make_semaphore(
        &self,
        name: Option<&str>,
        permits: u64,
        bounded: bool,
    ) -> Result<Semaphore, Error> {
        if permits > PERMITS_MAX {
            return Err(Why::InvalidOption {
                option: "permits",
                reason: format!("more than {PERMITS_MAX}"),
            }
            .into());
        }
        let rules = || Box::new(Rules::new(permits, bounded)) as _;
        let handle = Handle::create(self.connection(), kinds::SEMAPHORE, Part::WHOLE, name, rules)?;
        Ok(Semaphore { handle, marker: PhantomData })
    }
}

impl Semaphore {
    fn ask(&self, permits: u32, wait: Wait) -> Asking {
        self.handle.ask(Ask::Acquire { permits, wait }.body())
    }

    fn acquired(
        &self,
        permits: u32,
        ticket: Option<u64>,
        answer: Result<Body, Error>,
    ) -> Result<Option<SemaphorePermit>, Error> {
        match (reply(&answer?)?, ticket) {
            (Reply::Done, Some(ticket)) => {
                Ok(Some(SemaphorePermit { handle: self.handle.clone(), ticket, permits }))
            }
            (Reply::None, _) => Ok(None),
            (other, _) => Err(strange(&other)),
        }
    }

    async fn wait(&self, permits: u32, wait: Wait) -> Result<SemaphorePermit, Error> {
        let asking = self.ask(permits, wait);
        let ticket = asking.ticket();
        self.acquired(permits, ticket, asking.await)?.ok_or_else(|| Why::TimedOut.into())
    }

    #[track_caller]
    fn block(&self, permits: u32, wait: Wait) -> Result<SemaphorePermit, Error> {
        let asking = self.ask(permits, wait);
        let ticket = asking.ticket();
        self.acquired(permits, ticket, asking.wait())?.ok_or_else(|| Why::TimedOut.into())
    }

    /// Takes one permit; waits until there is one.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::sync::ErrorKind::Closed); [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Nothing was taken, and the place in line is lost.
    pub async fn acquire(&self) -> Result<SemaphorePermit, Error> {
        self.wait(1, Wait::Ever).await
    }

    /// Takes several permits at once; waits until there are that many.
    ///
    /// # Errors
    ///
    /// [`AboveLimit`](crate::sync::ErrorKind::AboveLimit), when a bounded semaphore never has as many;
    /// and those of [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As `acquire`.
    pub async fn acquire_many(&self, permits: u32) -> Result<SemaphorePermit, Error> {
        self.wait(permits, Wait::Ever).await
    }

    /// As [`acquire`](Self::acquire); waits for at most `limit`.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `acquire`.
    ///
    /// # Cancel safety
    ///
    /// As `acquire`.
    pub async fn acquire_timeout(&self, limit: Duration) -> Result<SemaphorePermit, Error> {
        self.wait(1, Wait::Limit(limit)).await
    }

    /// As [`acquire_many`](Self::acquire_many); waits for at most `limit`.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `acquire_many`.
    ///
    /// # Cancel safety
    ///
    /// As `acquire`.
    pub async fn acquire_many_timeout(
        &self,
        permits: u32,
        limit: Duration,
    ) -> Result<SemaphorePermit, Error> {
        self.wait(permits, Wait::Limit(limit)).await
    }

    /// Takes one permit if there is one, and nobody waits for it; else `None`.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Blocking
    ///
    /// In a worker, for the round trip to the manager, which does not wait.
    pub fn try_acquire(&self) -> Result<Option<SemaphorePermit>, Error> {
        self.try_acquire_many(1)
    }

    /// Takes several permits if there are that many, and nobody waits; else `None`.
    ///
    /// # Errors
    ///
    /// As [`acquire_many`](Self::acquire_many).
    ///
    /// # Blocking
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_many(&self, permits: u32) -> Result<Option<SemaphorePermit>, Error> {
        let asking = self.ask(permits, Wait::No);
        let ticket = asking.ticket();
        self.acquired(permits, ticket, asking.settle())
    }

    /// As [`acquire`](Self::acquire), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `acquire`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_acquire(&self) -> Result<SemaphorePermit, Error> {
        self.block(1, Wait::Ever)
    }

    /// As [`acquire_many`](Self::acquire_many), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `acquire_many`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_acquire_many(&self, permits: u32) -> Result<SemaphorePermit, Error> {
        self.block(permits, Wait::Ever)
    }

    /// As [`acquire_timeout`](Self::acquire_timeout), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `acquire_timeout`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_acquire_timeout(&self, limit: Duration) -> Result<SemaphorePermit, Error> {
        self.block(1, Wait::Limit(limit))
    }

    fn status(&self) -> Result<(u64, bool), Error> {
        match reply(&self.handle.ask(Ask::Status.body()).settle()?)? {
            Reply::Status { available, closed, .. } => Ok((available, closed)),
            other => Err(strange(&other)),
        }
    }

    /// How many permits are there to be had. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn available_permits(&self) -> Result<u64, Error> {
        Ok(self.status()?.0)
    }

    /// Adds permits. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`AboveLimit`](crate::sync::ErrorKind::AboveLimit), when there would be more, counting those that
    /// are held, than the limit of a bounded semaphore (or `u64::MAX / 8`); then there are as
    /// many as before. [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn add_permits(&self, permits: u64) -> Result<(), Error> {
        done(self.handle.ask(Ask::Add { permits }.body()).settle())
    }

    /// Closes it: whoever waits, and whoever asks from now on, is told so. Permits that are held
    /// are not affected.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn close(&self) -> Result<(), Error> {
        done(self.handle.ask(Ask::Close.body()).settle())
    }

    /// Whether it was closed. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn is_closed(&self) -> Result<bool, Error> {
        Ok(self.status()?.1)
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("handle", &self.handle).finish()
    }
}

/// Permits of a [`Semaphore`].
///
/// # Drop
///
/// Gives them back; so does the death of the process.
#[must_use = "permits that are dropped at once are given back at once"]
pub struct SemaphorePermit {
    handle: Handle,
    ticket: u64,
    permits: u32,
}

impl SemaphorePermit {
    /// How many they are.
    #[must_use]
    pub fn num_permits(&self) -> u32 {
        self.permits
    }

    /// Gives some of them back, and keeps the others.
    ///
    /// # Errors
    ///
    /// [`NotHeld`](crate::sync::ErrorKind::NotHeld), when there are not that many here; nothing happens
    /// then. [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn release(&mut self, permits: u32) -> Result<(), Error> {
        if permits > self.permits {
            return Err(Why::NotHeld.into());
        }
        done(self.handle.ask(Ask::Release { acquired: self.ticket, permits }.body()).settle())?;
        self.permits -= permits;
        Ok(())
    }

    /// Never gives them back: the semaphore has that many fewer from now on.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn forget(mut self) -> Result<(), Error> {
        let permits = std::mem::take(&mut self.permits);
        done(self.handle.ask(Ask::Forget { acquired: self.ticket, permits }.body()).settle())
    }
}

impl Drop for SemaphorePermit {
    fn drop(&mut self) {
        self.handle.cancel(self.ticket);
    }
}

impl fmt::Debug for SemaphorePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SemaphorePermit").field("permits", &self.permits).finish_non_exhaustive()
    }
}

fn reply(body: &Body) -> Result<Reply, Error> {
    Reply::read(&body.head).map_err(|bad| Why::Decode(bad.0).into())
}

fn done(answer: Result<Body, Error>) -> Result<(), Error> {
    match reply(&answer?)? {
        Reply::Done => Ok(()),
        other => Err(strange(&other)),
    }
}

/// Whatever is not what was asked for, as an error.
fn strange(reply: &Reply) -> Error {
    match reply {
        Reply::TimedOut => Why::TimedOut,
        Reply::Closed => Why::Closed,
        Reply::AboveLimit { limit } => Why::AboveLimit { limit: *limit },
        Reply::NotHeld => Why::NotHeld,
        Reply::Busy => Why::TooManyRequests,
        other => Why::Decode(format!("the semaphore has answered {other:?}")),
    }
    .into()
}
