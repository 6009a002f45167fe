//! The handle of an event.

use super::handle::{Handle, handle_travels, kinds};
use super::manager::Manager;
use crate::error::sync::{Error, Why};
use crate::manager::object::{Body, Part};
use crate::manager::objects::code::{Message, Wait};
use crate::manager::objects::event::{Ask, Event as Rules, Reply};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// A flag that processes share, and can wait for (Python's `Event`).
///
/// Made by [`Manager::event`]. A handle is cheap to clone, can be used from any thread and in any
/// runtime, and travels to other processes as an argument, in a result, or inside another shared
/// object.
///
/// Whoever waits when it is set is told, all at once; also when it is cleared in the next moment.
///
/// ```
/// use procpool::Manager;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let ready = Manager::new()?.event()?;
/// let waits = tokio::spawn({ let ready = ready.clone(); async move { ready.wait().await } });
/// ready.set()?;
/// waits.await.expect("no panic")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Event {
    handle: Handle,
    marker: PhantomData<()>,
}

handle_travels!(Event, kinds::EVENT);

impl Manager {
    /// Makes an event that is not set.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn event(&self) -> Result<Event, Error> {
        self.make_event(None)
    }

    /// The event of this name; makes it if there is none.
    ///
    /// # Errors
    ///
    /// As [`event`](Self::event).
    pub fn event_named(&self, name: &str) -> Result<Event, Error> {
        self.make_event(Some(name))
    }

    fn make_event(&self, name: Option<&str>) -> Result<Event, Error> {
        let handle = Handle::create(self.connection(), kinds::EVENT, Part::WHOLE, name, || {
            Box::new(Rules::new())
        })?;
        Ok(Event { handle, marker: PhantomData })
    }
}

impl Event {
    fn answered(answer: Result<Body, Error>) -> Result<bool, Error> {
        match Reply::read(&answer?.head) {
            Ok(Reply::Set) => Ok(true),
            Ok(Reply::Unset) => Ok(false),
            Ok(Reply::Done { was }) => Ok(was),
            Ok(Reply::TimedOut) => Err(Why::TimedOut.into()),
            Err(bad) => Err(Why::Decode(bad.0).into()),
        }
    }

    /// Sets it, and wakes all who wait. Says whether it was set before. Asks the manager, which
    /// answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn set(&self) -> Result<bool, Error> {
        Self::answered(self.handle.ask(Ask::Set.body()).settle())
    }

    /// Clears it. Says whether it was set before. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn clear(&self) -> Result<bool, Error> {
        Self::answered(self.handle.ask(Ask::Clear.body()).settle())
    }

    /// Whether it is set. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn is_set(&self) -> Result<bool, Error> {
        Self::answered(self.handle.ask(Ask::Wait { wait: Wait::No }.body()).settle())
    }

    /// Waits until it is set; not at all, if it is.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Nothing happens by dropping it.
    pub async fn wait(&self) -> Result<(), Error> {
        Self::answered(self.handle.ask(Ask::Wait { wait: Wait::Ever }.body()).await).map(drop)
    }

    /// As [`wait`](Self::wait), for at most `limit`.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `wait`.
    ///
    /// # Cancel safety
    ///
    /// As `wait`.
    pub async fn wait_timeout(&self, limit: Duration) -> Result<(), Error> {
        Self::answered(self.handle.ask(Ask::Wait { wait: Wait::Limit(limit) }.body()).await)
            .map(drop)
    }

    /// As [`wait`](Self::wait), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `wait`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_wait(&self) -> Result<(), Error> {
        Self::answered(self.handle.ask(Ask::Wait { wait: Wait::Ever }.body()).wait()).map(drop)
    }

    /// As [`wait_timeout`](Self::wait_timeout), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `wait_timeout`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_wait_timeout(&self, limit: Duration) -> Result<(), Error> {
        Self::answered(self.handle.ask(Ask::Wait { wait: Wait::Limit(limit) }.body()).wait())
            .map(drop)
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("handle", &self.handle).finish()
    }
}
