//! One call with options of its own.

use super::Pool;
use super::join::JoinHandle;
use super::reply::Reply;
use super::results::{Results, TryResults, encode};
use super::spec::{Room, TaskSpec, Ticket};
use crate::task::ArgsFor;
use crate::wire::message;
use futures::Stream;
use futures::stream::{self, Iter};
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use tokio::sync::oneshot;

/// A task with options, made by [`Pool::call`] or [`Pool::call_named`]; `spawn` or `map` hands it in.
///
/// `Args` is the tuple of the task's arguments, `R` its result.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pool = procpool::Pool::builder().workers(1).build()?;
/// fn risky(n: u32) -> u32 { assert!(n > 0, "not zero"); n }
///
/// let error = pool.call(risky).backtrace(true).spawn(0).await.unwrap_err();
/// assert_eq!(error.panic_message(), Some("not zero"));
/// assert!(error.panic_backtrace().is_some());
/// # Ok(())
/// # }
/// ```
#[must_use = "a call does nothing until it is spawned or mapped"]
pub struct Call<'pool, Args, R> {
    pool: &'pool Pool,
    task: TaskSpec,
    types: PhantomData<fn(Args) -> R>,
}

impl<'pool, Args, R> Call<'pool, Args, R>
where
    R: DeserializeOwned,
{
    pub(super) fn new(pool: &'pool Pool, task: TaskSpec) -> Self {
        Self { pool, task, types: PhantomData }
    }

    /// Whether a panic brings its backtrace along. Default: as `RUST_BACKTRACE` says in the worker's
    /// environment, which is the pool's own unless changed.
    pub fn backtrace(mut self, wanted: bool) -> Self {
        self.task.flags = if wanted { message::FLAG_BACKTRACE } else { message::FLAG_NO_BACKTRACE };
        self
    }

    /// As [`Pool::spawn`].
    pub fn spawn<P: ArgsFor<Args>>(self, args: P) -> JoinHandle<R> {
        self.submit(&args, Room::Needed)
    }

    /// As [`Pool::spawn_wait`].
    pub async fn spawn_wait<P: ArgsFor<Args>>(self, args: P) -> JoinHandle<R> {
        let room = self.pool.engine().room().await;
        self.submit(&args, Room::Held(room))
    }

    /// As [`Pool::map`].
    pub fn map<I>(self, items: I) -> Results<Iter<I::IntoIter>, Args, R>
    where
        I: IntoIterator,
        I::Item: ArgsFor<Args>,
    {
        self.map_stream(stream::iter(items))
    }

    /// As [`Pool::map_stream`].
    pub fn map_stream<S>(self, items: S) -> Results<S, Args, R>
    where
        S: Stream,
        S::Item: ArgsFor<Args>,
    {
        Results::new(self.pool.engine(), self.task, items)
    }

    /// As [`Pool::try_map_stream`].
    pub fn try_map_stream<S, P, E>(self, items: S) -> TryResults<S, E, Args, R>
    where
        S: Stream<Item = Result<P, E>>,
        P: ArgsFor<Args>,
    {
        TryResults::new(self.pool.engine(), self.task, items)
    }

    fn submit<P: ArgsFor<Args>>(&self, args: &P, room: Room) -> JoinHandle<R> {
        let (sender, outcome) = oneshot::channel();
        let ticket: Ticket = self.pool.engine().submit(&self.task, |out, limit| encode(args, out, limit), Reply::Join(sender), room);
        JoinHandle::new(self.pool.engine(), ticket, self.task.function, outcome)
    }
}

impl<Args, R> fmt::Debug for Call<'_, Args, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("task", &self.task).finish_non_exhaustive()
    }
}
