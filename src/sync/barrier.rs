//! The handle of a barrier.

use super::handle::{Handle, handle_travels, kinds};
use super::manager::Manager;
use crate::error::sync::{Error, Why};
use crate::manager::object::{Body, Part};
use crate::manager::objects::barrier::{Ask, Barrier as Rules, Reply};
use crate::manager::objects::code::{Message, Wait};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// A barrier at which a fixed number of parties, in any processes, wait for each other, round by
/// round.
///
/// Made by [`Manager::barrier`]. A handle is cheap to clone, can be used from any thread and in any
/// runtime, and travels to other processes as an argument, in a result, or inside another shared
/// object.
///
/// # When it breaks
///
/// A round is never passed by fewer than all its parties. So that nobody waits for ever for one
/// that will not come, the barrier **breaks**: when a process dies that waits, or that was in the
/// last round and still has a handle; when a party's [time runs out](Self::wait_timeout); and by
/// [`abort`](Self::abort). Then everybody who waits, and everybody who comes, gets
/// [`BrokenBarrier`](crate::sync::ErrorKind::BrokenBarrier), until it is [`reset`](Self::reset).
///
/// ```
/// use procpool::Manager;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let barrier = Manager::new()?.barrier(2)?;
/// let (a, b) = tokio::join!(barrier.wait(), barrier.wait());
/// assert!(a?.is_leader() != b?.is_leader()); // exactly one
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Barrier {
    handle: Handle,
    marker: PhantomData<()>,
}

handle_travels!(Barrier, kinds::BARRIER);

/// That a round was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierWaitResult {
    place: u32,
    round: u64,
}

impl BarrierWaitResult {
    /// True for exactly one of the parties of a round.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.place == 0
    }

    /// The party's place in the round, from 0, in the order in which they came (what Python's
    /// `wait` returns).
    #[must_use]
    pub fn place(&self) -> u32 {
        self.place
    }

    /// The number of the round, from 0.
    #[must_use]
    pub fn round(&self) -> u64 {
        self.round
    }
}

impl Manager {
    /// Makes a barrier for this number of parties.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](crate::sync::ErrorKind::InvalidOption) for 0;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn barrier(&self, parties: u32) -> Result<Barrier, Error> {
        self.make_barrier(None, parties)
    }

    /// The barrier of this name; makes it, for this number of parties, if there is none.
    ///
    /// # Errors
    ///
    /// As [`barrier`](Self::barrier).
    pub fn barrier_named(&self, name: &str, parties: u32) -> Result<Barrier, Error> {
        self.make_barrier(Some(name), parties)
    }

    fn make_barrier(&self, name: Option<&str>, parties: u32) -> Result<Barrier, Error> {
        if parties == 0 {
            return Err(Why::InvalidOption {
                option: "parties",
                reason: "nobody would pass a barrier for nobody".into(),
            }
            .into());
        }
        let handle = Handle::create(self.connection(), kinds::BARRIER, Part::WHOLE, name, || {
            Box::new(Rules::new(parties))
        })?;
        Ok(Barrier { handle, marker: PhantomData })
    }
}

impl Barrier {
    fn passed(answer: Result<Body, Error>) -> Result<BarrierWaitResult, Error> {
        match reply(&answer?)? {
            Reply::Passed { place, round } => Ok(BarrierWaitResult { place, round }),
            other => Err(strange(&other)),
        }
    }

    fn ask(&self, wait: Wait) -> super::handle::Asking {
        self.handle.ask(Ask::Wait { wait }.body())
    }

    /// Waits until all parties wait.
    ///
    /// # Errors
    ///
    /// [`BrokenBarrier`](crate::sync::ErrorKind::BrokenBarrier);
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Dropped, this party does not wait any more, and is not counted; it may come again. If the
    /// round was passed in that very moment, it was passed with this party.
    pub async fn wait(&self) -> Result<BarrierWaitResult, Error> {
        Self::passed(self.ask(Wait::Ever).await)
    }

    /// As [`wait`](Self::wait), for at most `limit`; then the barrier breaks.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), by which the barrier is broken for all the others;
    /// and those of `wait`.
    ///
    /// # Cancel safety
    ///
    /// As `wait`.
    pub async fn wait_timeout(&self, limit: Duration) -> Result<BarrierWaitResult, Error> {
        Self::passed(self.ask(Wait::Limit(limit)).await)
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
    pub fn blocking_wait(&self) -> Result<BarrierWaitResult, Error> {
        Self::passed(self.ask(Wait::Ever).wait())
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
    pub fn blocking_wait_timeout(&self, limit: Duration) -> Result<BarrierWaitResult, Error> {
        Self::passed(self.ask(Wait::Limit(limit)).wait())
    }

    fn order(&self, ask: &Ask) -> Result<(), Error> {
        match reply(&self.handle.ask(ask.body()).settle()?)? {
            Reply::Done => Ok(()),
            other => Err(strange(&other)),
        }
    }

    /// Begins a new round, and makes a broken barrier whole. Who waits gets
    /// [`BrokenBarrier`](crate::sync::ErrorKind::BrokenBarrier), for that round will not be passed. Asks
    /// the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn reset(&self) -> Result<(), Error> {
        self.order(&Ask::Reset)
    }

    /// Breaks it. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn abort(&self) -> Result<(), Error> {
        self.order(&Ask::Abort)
    }

    fn status(&self) -> Result<(u32, u32, bool), Error> {
        match reply(&self.handle.ask(Ask::Status.body()).settle()?)? {
            Reply::Status { parties, waiting, broken } => Ok((parties, waiting, broken)),
            other => Err(strange(&other)),
        }
    }

    /// For how many parties it is. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn parties(&self) -> Result<u32, Error> {
        Ok(self.status()?.0)
    }

    /// How many parties wait now. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn n_waiting(&self) -> Result<u32, Error> {
        Ok(self.status()?.1)
    }

    /// Whether it is broken. Asks the manager, which answers at once.
    ///
    /// # Errors
    ///
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn is_broken(&self) -> Result<bool, Error> {
        Ok(self.status()?.2)
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier").field("handle", &self.handle).finish()
    }
}

fn reply(body: &Body) -> Result<Reply, Error> {
    Reply::read(&body.head).map_err(|bad| Why::Decode(bad.0).into())
}

fn strange(reply: &Reply) -> Error {
    match reply {
        Reply::Broken => Why::BrokenBarrier,
        Reply::TimedOut => Why::TimedOut,
        other => Why::Decode(format!("the barrier has answered {other:?}")),
    }
    .into()
}
