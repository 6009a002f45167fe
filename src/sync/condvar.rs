//! The handle of a condition variable.

use super::handle::{Handle, handle_travels, kinds};
use super::manager::Manager;
use super::mutex::MutexGuard;
use super::wait;
use crate::coop::take_unit;
use crate::error::sync::{Error, Why};
use crate::manager::object::{Body, Part};
use crate::manager::objects::code::{Message, Wait};
use crate::manager::objects::condvar::{Ask, Condvar as Rules, Reply};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// A condition variable that processes share (Python's `Condition`): to wait, without holding a
/// [`Mutex`](crate::sync::Mutex), until somebody says that what it protects has changed.
///
/// Made by [`Manager::condvar`]. A handle is cheap to clone, can be used from any thread and in any
/// runtime, and travels to other processes as an argument, in a result, or inside another shared
/// object.
///
/// * A notification after the mutex was let go is not missed: the waiting is entered with the
///   manager before.
/// * A notification of one that is on its way to somebody who gives up, or whose process dies, goes
///   to the next.
/// * As with every condition variable, a wait may end without a notification meant for it: look at
///   the condition again, or use [`wait_while`](Self::wait_while).
///
/// For a flag an [`Event`](crate::sync::Event) is simpler, for items a [`Queue`](crate::sync::Queue).
///
/// ```
/// use procpool::Manager;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let manager = Manager::new()?;
/// let (stock, changed) = (manager.mutex(0u32)?, manager.condvar()?);
/// let takes = tokio::spawn({
///     let (stock, changed) = (stock.clone(), changed.clone());
///     async move {
///         let mut stock = changed.wait_while(stock.lock().await?, |stock| *stock == 0).await?;
///         *stock -= 1;
///         Ok::<_, procpool::sync::Error>(())
///     }
/// });
/// *stock.lock().await? += 1;
/// changed.notify_one()?;
/// takes.await.expect("no panic")?;
/// assert_eq!(stock.get().await?, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Condvar {
    handle: Handle,
    marker: PhantomData<()>,
}

handle_travels!(Condvar, kinds::CONDVAR);

impl Manager {
    /// Makes a condition variable.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn condvar(&self) -> Result<Condvar, Error> {
        self.make_condvar(None)
    }

    /// The condition variable of this name; makes it if there is none.
    ///
    /// # Errors
    ///
    /// As [`condvar`](Self::condvar).
    pub fn condvar_named(&self, name: &str) -> Result<Condvar, Error> {
        self.make_condvar(Some(name))
    }

    fn make_condvar(&self, name: Option<&str>) -> Result<Condvar, Error> {
        let handle = Handle::create(self.connection(), kinds::CONDVAR, Part::WHOLE, name, || {
            Box::new(Rules::new())
        })?;
        Ok(Condvar { handle, marker: PhantomData })
    }
}

/// A place among those who wait.
struct Place<'a> {
    handle: &'a Handle,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.handle.cancel(self.ticket); // of one who was told nothing is known any more
    }
}

/// Passes a notification on, unless it has come to something.
struct PassOn<'a>(Option<&'a Handle>);

impl Drop for PassOn<'_> {
    fn drop(&mut self) {
        if let Some(handle) = self.0 {
            let _ = handle.tell(Ask::NotifyOne.body());
        }
    }
}

impl Condvar {
    async fn wait_for<'a, T: Serialize + DeserializeOwned>(
        &self,
        guard: MutexGuard<'a, T>,
        wait: Wait,
    ) -> Result<(MutexGuard<'a, T>, bool), Error> {
        let asking = self.handle.ask(Ask::Enrol.body());
        let place = asking.ticket().map(|ticket| Place { handle: &self.handle, ticket });
        done(asking.await)?;
        let place = place.expect("what was answered had a ticket");
        let lock = guard.of_lock();
        guard.commit()?;
        let answer = self.handle.ask(Ask::Await { enrolled: place.ticket, wait }.body()).await;
        let notified = match reply(&answer?)? {
            Reply::Notified => true,
            Reply::TimedOut => false,
            other => return Err(strange(&other)),
        };
        drop(place);
        let mut pass_on = PassOn(notified.then_some(&self.handle));
        let guard = MutexGuard::lock_again(lock).await?;
        pass_on.0 = None;
        Ok((guard, notified))
    }

    /// Commits and lets go the lock, waits until it is notified, and locks again.
    ///
    /// # Errors
    ///
    /// What the guard had changed cannot be committed ([`MutexGuard::commit`]); the lock cannot be
    /// had again ([`Mutex::lock`](crate::sync::Mutex::lock));
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Dropped once it was polled, what the guard had changed may be committed, and the lock is let
    /// go. A notification goes to the next.
    pub async fn wait<'a, T: Serialize + DeserializeOwned>(
        &self,
        guard: MutexGuard<'a, T>,
    ) -> Result<MutexGuard<'a, T>, Error> {
        Ok(self.wait_for(guard, Wait::Ever).await?.0)
    }

    /// As [`wait`](Self::wait), again and again while `condition` is true of the value; not at all,
    /// if it is not.
    ///
    /// # Errors
    ///
    /// As `wait`.
    ///
    /// # Cancel safety
    ///
    /// As `wait`.
    pub async fn wait_while<'a, T: Serialize + DeserializeOwned>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&T) -> bool,
    ) -> Result<MutexGuard<'a, T>, Error> {
        take_unit().await; // for a condition that is false at once
        while condition(&guard) {
            guard = self.wait(guard).await?;
        }
        Ok(guard)
    }

    /// As [`wait`](Self::wait), but it waits for a notification for at most `limit`; then it locks
    /// again all the same (which may take longer). Says whether it was notified.
    ///
    /// # Errors
    ///
    /// As `wait`.
    ///
    /// # Cancel safety
    ///
    /// As `wait`.
    pub async fn wait_timeout<'a, T: Serialize + DeserializeOwned>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> Result<(MutexGuard<'a, T>, bool), Error> {
        self.wait_for(guard, Wait::Limit(limit)).await
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
    pub fn blocking_wait<'a, T: Serialize + DeserializeOwned>(
        &self,
        guard: MutexGuard<'a, T>,
    ) -> Result<MutexGuard<'a, T>, Error> {
        wait::block_on(self.wait(guard))
    }

    /// As [`wait_while`](Self::wait_while), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `wait`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_wait_while<'a, T: Serialize + DeserializeOwned>(
        &self,
        guard: MutexGuard<'a, T>,
        condition: impl FnMut(&T) -> bool,
    ) -> Result<MutexGuard<'a, T>, Error> {
        wait::block_on(self.wait_while(guard, condition))
    }

    /// As [`wait_timeout`](Self::wait_timeout), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `wait`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_wait_timeout<'a, T: Serialize + DeserializeOwned>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> Result<(MutexGuard<'a, T>, bool), Error> {
        wait::block_on(self.wait_timeout(guard, limit))
    }

    /// Wakes the one who has waited longest, if anybody waits. Asks the manager, which answers at
    /// once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn notify_one(&self) -> Result<(), Error> {
        done(self.handle.ask(Ask::NotifyOne.body()).settle())
    }

    /// Wakes all who wait. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn notify_all(&self) -> Result<(), Error> {
        done(self.handle.ask(Ask::NotifyAll.body()).settle())
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condvar").field("handle", &self.handle).finish()
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

fn strange(reply: &Reply) -> Error {
    Why::Decode(format!("the condition variable has answered {reply:?}")).into()
}
