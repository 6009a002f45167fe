//! The handle of a read-write lock, and its guards.

use super::handle::{Asking, Handle, kinds};
use super::manager::Manager;
use super::{handle, stopping, wait};
use crate::error::sync::{Error, Why};
use crate::lock::Lock;
use crate::manager::object::{Body, Held, Part};
use crate::manager::objects::code::{Message, Wait};
use crate::manager::objects::rwlock::{Ask, Reply, RwLock as Rules};
use crate::wire::packet::Packet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

/// A value that processes share: many may read it at once, or one may change it.
///
/// Made by [`Manager::rwlock`]. A handle is cheap to clone, can be used from any thread and in any
/// runtime, and travels to other processes as an argument, in a result, or inside another shared
/// object.
///
/// **A write guard that is dropped commits**, as that of a [`Mutex`](crate::sync::Mutex) does, and as
/// there it rolls back when its process dies, its thread panics, its task is aborted, or the value
/// cannot be encoded; the next is told by [`recovered`](RwLockWriteGuard::recovered).
///
/// Whoever waits is served in order: readers that come after a waiting writer wait behind it. So do
/// not take the lock again while you hold it.
///
/// A guard holds the value as it was when the lock was taken; a value that a process has read
/// before is not sent to it again while it has not changed. For a number that many change, a
/// [`Mutex`](crate::sync::Mutex) is quicker: it needs no message.
///
/// ```
/// use procpool::Manager;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let names = Manager::new()?.rwlock(vec!["a".to_string()])?;
/// names.write().await?.push("b".into()); // committed when the guard is dropped
/// let (one, two) = (names.read().await?, names.read().await?); // both at once
/// assert_eq!((one.len(), two.len()), (2, 2));
/// # Ok(())
/// # }
/// ```
pub struct RwLock<T> {
    handle: Handle,
    /// The value that came last, with its version, if it is worth keeping. Held only to look at
    /// it.
    last: Arc<Lock<Option<(u64, Body)>>>,
    marker: PhantomData<fn() -> T>,
}

/// A shorter value is not kept, in bytes: it costs no more to send than to say that it is the same.
const WORTH_KEEPING: usize = 1 << 10;

impl<T> Serialize for RwLock<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.handle.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for RwLock<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Handle::deserialize(kinds::RW_LOCK, deserializer).map(Self::new)
    }
}

impl<T> Clone for RwLock<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), last: Arc::clone(&self.last), marker: PhantomData }
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").field("handle", &self.handle).finish()
    }
}

impl Manager {
    /// Makes a read-write lock with this value.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::sync::ErrorKind::Encode), [`TooLarge`](crate::sync::ErrorKind::TooLarge) (16 MiB),
    /// [`ForeignHandle`](crate::sync::ErrorKind::ForeignHandle) if the value holds a handle of another
    /// manager; [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn rwlock<T: Serialize>(&self, value: T) -> Result<RwLock<T>, Error> {
        self.make_rwlock(None, &value)
    }

    /// The read-write lock of this name; makes it, with this value, if there is none. `T` must be
    /// what it was made with: that is noticed only when the value cannot be decoded.
    ///
    /// # Errors
    ///
    /// As [`rwlock`](Self::rwlock).
    pub fn rwlock_named<T: Serialize>(&self, name: &str, value: T) -> Result<RwLock<T>, Error> {
        self.make_rwlock(Some(name), &value)
    }

    fn make_rwlock<T: Serialize>(&self, name: Option<&str>, value: &T) -> Result<RwLock<T>, Error> {
        let connection = self.connection();
        let (value, held) = handle::encode(value)?;
        let held = connection.local()?.hold(&connection.names(&held)?)?;
        let made = Handle::create(connection, kinds::RW_LOCK, Part::WHOLE, name, || {
            Box::new(Rules::new(value, held))
        })?;
        Ok(RwLock::new(made))
    }
}

/// What came with a lock.
struct Locked {
    handle: Handle,
    ticket: u64,
    fence: u64,
    recovered: bool,
}

impl<T> RwLock<T> {
    fn new(handle: Handle) -> Self {
        Self { handle, last: Arc::default(), marker: PhantomData }
    }

    fn have(&self) -> u64 {
        self.last.lock().as_ref().map_or(0, |(version, _)| *version)
    }
}

impl<T: DeserializeOwned> RwLock<T> {
    /// The value of an answer; it may be one that came before.
    fn value(&self, version: u64, came: bool, body: Body) -> Result<T, Error> {
        let mut last = self.last.lock();
        let body = if came {
            let keep = body.tail.len() >= WORTH_KEEPING
                && last.as_ref().is_none_or(|(before, _)| *before < version);
            let old = if keep { last.replace((version, body.clone())) } else { None };
            drop(last);
            drop(old); // the references in it are let go without the lock
            body
        } else {
            let kept =
                last.as_ref().filter(|(kept, _)| *kept == version).map(|(_, body)| body.clone());
            drop(last);
            match kept {
                Some(body) => body,
                // Another thread has had a newer one meanwhile.
                None => self.handle.ask(Ask::Get { have: 0 }.body()).settle()?,
            }
        };
        self.handle.decode(&body)
    }

    fn ask(&self, write: bool, wait: Wait) -> Asking {
        let have = self.have();
        let ask = if write { Ask::Write { wait, have } } else { Ask::Read { wait, have } };
        self.handle.ask(ask.body())
    }

    /// `None`: not without waiting.
    fn locked(
        &self,
        ticket: Option<u64>,
        answer: Result<Body, Error>,
    ) -> Result<Option<(Locked, T)>, Error> {
        let body = answer?;
        match (reply(&body)?, ticket) {
            (Reply::Locked { version, fence, recovered, value }, Some(ticket)) => {
                let value =
                    self.value(version, value, body).inspect_err(|_| self.handle.cancel(ticket))?;
                Ok(Some((Locked { handle: self.handle.clone(), ticket, fence, recovered }, value)))
            }
            (Reply::None, _) => Ok(None),
            (other, _) => Err(strange(&other)),
        }
    }

    async fn wait(&self, write: bool, wait: Wait) -> Result<(Locked, T), Error> {
        let asking = self.ask(write, wait);
        let ticket = asking.ticket();
        self.locked(ticket, asking.await)?.ok_or_else(|| Why::TimedOut.into())
    }

    fn try_now(&self, write: bool) -> Result<Option<(Locked, T)>, Error> {
        let asking = self.ask(write, Wait::No);
        let ticket = asking.ticket();
        self.locked(ticket, asking.settle())
    }

    /// Waits until nobody writes and nobody is in line before, and reads.
    ///
    /// # Errors
    ///
    /// [`Decode`](crate::sync::ErrorKind::Decode), when the value is not a `T`;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Nothing was locked, and the place in line is lost.
    pub async fn read(&self) -> Result<RwLockReadGuard<T>, Error> {
        self.wait(false, Wait::Ever).await.map(RwLockReadGuard::new)
    }

    /// As [`read`](Self::read); waits for at most `limit`.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `read`.
    ///
    /// # Cancel safety
    ///
    /// As `read`.
    pub async fn read_timeout(&self, limit: Duration) -> Result<RwLockReadGuard<T>, Error> {
        self.wait(false, Wait::Limit(limit)).await.map(RwLockReadGuard::new)
    }

    /// Reads, if nobody writes or waits; else `None`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    ///
    /// # Blocking
    ///
    /// In a worker, for the round trip to the manager, which does not wait.
    pub fn try_read(&self) -> Result<Option<RwLockReadGuard<T>>, Error> {
        Ok(self.try_now(false)?.map(RwLockReadGuard::new))
    }

    /// As [`read`](Self::read), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `read`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_read(&self) -> Result<RwLockReadGuard<T>, Error> {
        wait::block_on(self.read())
    }

    /// As [`read_timeout`](Self::read_timeout), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `read_timeout`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_read_timeout(&self, limit: Duration) -> Result<RwLockReadGuard<T>, Error> {
        wait::block_on(self.read_timeout(limit))
    }

    /// The value as it was committed last, without the lock. The manager answers at once.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn get(&self) -> Result<T, Error> {
        let body = self.handle.ask(Ask::Get { have: self.have() }.body()).await?;
        self.value_in(body)
    }

    /// As [`get`](Self::get), for threads: the manager answers at once, so it may be called
    /// anywhere.
    ///
    /// # Errors
    ///
    /// As `get`.
    pub fn blocking_get(&self) -> Result<T, Error> {
        let body = self.handle.ask(Ask::Get { have: self.have() }.body()).settle()?;
        self.value_in(body)
    }

    fn value_in(&self, body: Body) -> Result<T, Error> {
        match reply(&body)? {
            Reply::Locked { version, value, .. } => self.value(version, value, body),
            other => Err(strange(&other)),
        }
    }
}

impl<T: Serialize + DeserializeOwned> RwLock<T> {
    /// Waits until nobody reads or writes and nobody is in line before, and locks for writing.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// Nothing was locked, and the place in line is lost.
    pub async fn write(&self) -> Result<RwLockWriteGuard<T>, Error> {
        self.wait(true, Wait::Ever).await.map(RwLockWriteGuard::new)
    }

    /// As [`write`](Self::write); waits for at most `limit`.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `write`.
    ///
    /// # Cancel safety
    ///
    /// As `write`.
    pub async fn write_timeout(&self, limit: Duration) -> Result<RwLockWriteGuard<T>, Error> {
        self.wait(true, Wait::Limit(limit)).await.map(RwLockWriteGuard::new)
    }

    /// Locks for writing, if nobody reads, writes or waits; else `None`.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    ///
    /// # Blocking
    ///
    /// In a worker, for the round trip to the manager, which does not wait.
    pub fn try_write(&self) -> Result<Option<RwLockWriteGuard<T>>, Error> {
        Ok(self.try_now(true)?.map(RwLockWriteGuard::new))
    }

    /// As [`write`](Self::write), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `write`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_write(&self) -> Result<RwLockWriteGuard<T>, Error> {
        wait::block_on(self.write())
    }

    /// As [`write_timeout`](Self::write_timeout), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `write_timeout`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_write_timeout(&self, limit: Duration) -> Result<RwLockWriteGuard<T>, Error> {
        wait::block_on(self.write_timeout(limit))
    }
}

/// The value of a [`RwLock`], while nobody changes it.
///
/// # Drop
///
/// Lets go the lock.
#[must_use = "a guard that is dropped at once lets go at once"]
pub struct RwLockReadGuard<T> {
    locked: Locked,
    value: T,
}

impl<T> RwLockReadGuard<T> {
    fn new((locked, value): (Locked, T)) -> Self {
        Self { locked, value }
    }

    /// Whether a writer before did not end well: see [`RwLockWriteGuard::recovered`].
    pub fn recovered(&self) -> bool {
        self.locked.recovered
    }
}

impl<T> Deref for RwLockReadGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for RwLockReadGuard<T> {
    fn drop(&mut self) {
        self.locked.handle.cancel(self.locked.ticket);
    }
}

impl<T: fmt::Debug> fmt::Debug for RwLockReadGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RwLockReadGuard").field(&self.value).finish()
    }
}

/// The value of a [`RwLock`], to be changed.
///
/// # Drop
///
/// Commits what was changed, and lets go the lock; rolls back in a panic and while its task is
/// being aborted. A failure to commit rolls back, and is told to the next by
/// [`recovered`](Self::recovered); [`commit`](Self::commit) tells it to you.
#[must_use = "a guard that is dropped at once lets go at once"]
pub struct RwLockWriteGuard<T> {
    locked: Locked,
    /// `None` only while it is being ended.
    value: Option<T>,
    changed: bool,
    unmark: bool,
    /// The thread was panicking when it was locked, which is nothing that happened to the guard.
    panicking: bool,
    encode: fn(&T) -> Result<(Packet, Held), Error>,
}

const THERE: &str = "the value is there until the guard has ended";

impl<T: Serialize> RwLockWriteGuard<T> {
    fn new((locked, value): (Locked, T)) -> Self {
        let panicking = std::thread::panicking();
        Self {
            locked,
            value: Some(value),
            changed: false,
            unmark: false,
            panicking,
            encode: handle::encode,
        }
    }
}

impl<T> RwLockWriteGuard<T> {
    /// What is to be said at the end; the value is gone then. An error: it cannot be encoded.
    fn last_words(&mut self, downgrade: bool) -> Result<Body, Error> {
        let write = self.locked.ticket;
        let mark = self.unmark.then_some(false);
        if !self.changed {
            return Ok(Ask::Release { write, downgrade, mark }.body());
        }
        let (value, held) = (self.encode)(self.value.as_ref().expect(THERE))?;
        Ok(Body::with_value(Ask::Commit { write, downgrade, mark }.packet(), value, held))
    }

    /// Ends it, and says so to the manager.
    fn end(&mut self) -> Result<Asking, Error> {
        let words = self.last_words(false);
        if let Err(error) = words {
            self.value = None;
            // The lock is let go all the same.
            self.locked.handle.cancel(self.locked.ticket);
            return Err(error);
        }
        let asking = self.locked.handle.ask(words?);
        self.value = None;
        Ok(asking)
    }

    /// Commits what was changed, and lets go the lock. As dropping it does, which cannot tell an
    /// error.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::sync::ErrorKind::Encode), [`TooLarge`](crate::sync::ErrorKind::TooLarge) (16 MiB):
    /// then the value is what it was, and the lock is let go.
    /// [`ManagerFull`](crate::sync::ErrorKind::ManagerFull),
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// It is committed once this was polled.
    pub async fn commit(mut self) -> Result<(), Error> {
        let asking = self.end()?;
        self.released(asking.await)
    }

    /// As [`commit`](Self::commit), for threads: the manager answers at once, so it may be called
    /// anywhere.
    ///
    /// # Errors
    ///
    /// As `commit`.
    pub fn blocking_commit(mut self) -> Result<(), Error> {
        let asking = self.end()?;
        self.released(asking.settle())
    }

    fn released(&self, answer: Result<Body, Error>) -> Result<(), Error> {
        let answer = answer.and_then(|body| match reply(&body)? {
            Reply::Released { .. } => Ok(()),
            other => Err(strange(&other)),
        });
        // What the manager has refused, for want of memory, has not let go the lock.
        answer.inspect_err(|_| self.locked.handle.cancel(self.locked.ticket))
    }

    /// Throws away what was changed, and lets go the lock.
    pub fn rollback(mut self) {
        self.value = None;
        let write = self.locked.ticket;
        let mark = self.unmark.then_some(false);
        let _ = self.locked.handle.tell(Ask::Release { write, downgrade: false, mark }.body());
    }

    /// Whether somebody who wrote before did not end as he should: his process died, his thread
    /// panicked, his task was aborted, or what he had changed could not be encoded. The value
    /// is what was committed before that; what the lock protects beside it may be half done. It
    /// stays so until somebody [clears](Self::clear_recovered) it.
    pub fn recovered(&self) -> bool {
        self.locked.recovered && !self.unmark
    }

    /// From the end of this guard on, [`recovered`](Self::recovered) is no longer said.
    pub fn clear_recovered(&mut self) {
        self.unmark = true;
    }

    /// A number that is higher than that of every write guard of this lock before, in any process:
    /// for a store that refuses what comes from one who has lost the lock meanwhile.
    pub fn fencing_token(&self) -> u64 {
        self.locked.fence
    }
}

impl<T: DeserializeOwned> RwLockWriteGuard<T> {
    /// Commits what was changed, and goes on as a reader; no writer comes between.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit). The lock is let go then.
    ///
    /// # Cancel safety
    ///
    /// It is committed once this was polled, and the lock is let go.
    pub async fn downgrade(mut self) -> Result<RwLockReadGuard<T>, Error> {
        let body = self.last_words(true)?; // an error: dropping lets go
        let value = self.value.take().expect(THERE);
        let locked = &self.locked;
        let locked = Locked {
            handle: locked.handle.clone(),
            ticket: locked.ticket,
            fence: locked.fence,
            recovered: self.recovered(),
        };
        let guard = RwLockReadGuard { locked, value };
        match reply(&guard.locked.handle.ask(body).await?)? {
            Reply::Released { .. } => Ok(guard),
            other => Err(strange(&other)),
        }
    }
}

impl<T> Deref for RwLockWriteGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect(THERE)
    }
}

impl<T> DerefMut for RwLockWriteGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.changed = true;
        self.value.as_mut().expect(THERE)
    }
}

impl<T> Drop for RwLockWriteGuard<T> {
    fn drop(&mut self) {
        if self.value.is_none() {
            return; // ended
        }
        let (handle, write) = (self.locked.handle.clone(), self.locked.ticket);
        let bad = || Ask::Release { write, downgrade: false, mark: Some(true) }.body();
        let failed = std::thread::panicking() && !self.panicking || stopping::is_stopping();
        // Encoding runs the user's code, which may panic: then this says so.
        let mut otherwise = SayOnPanic(Some((&handle, bad())));
        let words = if failed { bad() } else { self.last_words(false).unwrap_or_else(|_| bad()) };
        otherwise.0 = None;
        let commits = !words.tail.is_empty();
        let told = handle.tell(words);
        // The manager may have no room for it, or it may be too large to be sent. Then this lets
        // go; else nobody minds it.
        if commits || told.is_err() {
            let _ = handle.tell(bad());
        }
    }
}

struct SayOnPanic<'a>(Option<(&'a Handle, Body)>);

impl Drop for SayOnPanic<'_> {
    fn drop(&mut self) {
        if let Some((handle, body)) = self.0.take() {
            let _ = handle.tell(body);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for RwLockWriteGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RwLockWriteGuard").field(&self.value).finish()
    }
}

fn reply(body: &Body) -> Result<Reply, Error> {
    Reply::read(&body.head).map_err(|bad| Why::Decode(bad.0).into())
}

fn strange(reply: &Reply) -> Error {
    match reply {
        Reply::None | Reply::TimedOut => Why::TimedOut,
        Reply::NotHeld => Why::NotHeld,
        Reply::Busy => Why::TooManyRequests,
        other => Why::Decode(format!("the lock has answered {other:?}")),
    }
    .into()
}
