//! One call with options of its own.

use super::Pool;
use super::core::Mode;
use super::items::Items;
use super::join::{AbortHandle, JoinHandle};
use super::options::{ATTEMPTS_MAX, Options};
use super::reply::Reply;
use super::results::{Results, TryResults, encode};
use super::spec::{Room, TaskSpec, Ticket};
use super::task_stream::TaskStream;
use super::yielded::Yielded;
use crate::coop::take_unit;
use crate::task::{
    ArgsFor, CapturesNothing, RetryIf, Task, YieldingArgs, ZeroSized, index_of_judged,
};
use crate::wire::message::{self, Callee};
use futures::Stream;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// A task with options, made by [`Pool::task`] or [`Pool::task_named`]; `spawn` or `map` hands it
/// in.
///
/// `Args` is the tuple of the task's arguments, `R` its result; `F` stands for its function, where
/// that is known.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pool = procpool::Pool::builder().workers(1).build()?;
/// fn risky(n: u32) -> u32 { assert!(n > 0, "not zero"); n }
///
/// let error = pool.task(risky).backtrace(true).spawn(0).await.unwrap_err();
/// assert_eq!(error.panic_message(), Some("not zero"));
/// assert!(error.panic_backtrace().is_some());
/// # Ok(())
/// # }
/// ```
#[must_use = "a call does nothing until it is spawned or mapped"]
pub struct TaskBuilder<'pool, Args, R, F = ()> {
    pool: &'pool Pool,
    task: TaskSpec,
    types: PhantomData<fn(Args, F) -> R>,
}

/// So that many calls may be made with the same options.
impl<Args, R, F> Clone for TaskBuilder<'_, Args, R, F> {
    fn clone(&self) -> Self {
        Self { pool: self.pool, task: self.task.clone(), types: PhantomData }
    }
}

/// The function of a [`TaskBuilder`] that is a task of this program, as a type: nothing but that. Its
/// `Marker` is that of [`Task`].
pub struct Function<F, Marker>(PhantomData<fn(F, Marker)>);

impl<F, Marker> fmt::Debug for Function<F, Marker> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::any::type_name::<F>())
    }
}

impl<'pool, Args, R, F> TaskBuilder<'pool, Args, R, F>
where
    R: DeserializeOwned,
{
    pub(super) fn new(pool: &'pool Pool, task: TaskSpec) -> Self {
        Self { pool, task, types: PhantomData }
    }

    /// Whether a panic brings its backtrace along. Default: as `RUST_BACKTRACE` says in the
    /// worker's environment, which is the pool's own unless changed.
    pub fn backtrace(mut self, wanted: bool) -> Self {
        self.task.flags = if wanted { message::FLAG_BACKTRACE } else { message::FLAG_NO_BACKTRACE };
        self
    }

    fn options(&mut self) -> &mut Options {
        Arc::make_mut(self.task.options.get_or_insert_default())
    }

    /// Limits one run of the task, from its beginning in a worker; the wait in the queue is limited by
    /// [`deadline`](Self::deadline) alone. Default: the pool's
    /// ([`Builder::timeout`](crate::Builder::timeout)), which by default is none.
    ///
    /// It counts from the moment at which the task begins in its worker, not from submission, and
    /// anew for each [retry](Self::retries). When it is over the task is stopped as by
    /// [`abort`](JoinHandle::abort): a sync task is killed with its process, also one that
    /// spins, is stopped by a signal, or ignores signals; an async one is dropped at its next
    /// await point, and if it reaches none in a second, its process is killed. (With a
    /// [`grace`](Self::grace) it is asked first.) Then the handle resolves to
    /// [`is_timeout`](crate::TaskError::is_timeout). A result that comes just before counts.
    /// A limit beyond what the clock can hold is none.
    ///
    /// A worker that stands still (somebody has stopped its process, or an earlier task has left
    /// something spinning in it) begins nothing: what it was given goes to another one as soon
    /// as another is free. If none is, it is killed after this time
    /// ([`Unresponsive`](crate::ExitReason::Unresponsive)), and the task begins elsewhere; without a
    /// limit it is waited for.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.options().timeout = Some(limit);
        self
    }

    /// Limits the whole, from submission: the wait in the queue, all retries, and the waits between
    /// them; a single run is limited by [`timeout`](Self::timeout). A service that must answer within
    /// a time wants this one. Default: no limit. A task that is over it is stopped as by
    /// [`timeout`](Self::timeout), with the same error; one that waits never runs.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.options().deadline = Some(limit);
        self
    }

    /// How long a task that is to stop has to do so by itself: because it was aborted, its token
    /// was cancelled, its time limit is over, or the pool ends with a limit
    /// ([`shutdown_within`](Pool::shutdown_within)). Default: none, it is stopped at once.
    ///
    /// It is *asked*: [`is_cancelled`](crate::is_cancelled) tells it, and
    /// [`cancelled`](crate::cancelled()) resolves. What it returns then is its result. If it
    /// has not ended when the grace is over, it is stopped as one without a grace: a
    /// sync task is killed with its process; an async one is dropped at its next await point, and
    /// if it reaches none in as long again, or a second if that is less, its process is killed.
    /// While it is being asked, a second reason to stop it changes nothing about the time.
    ///
    /// An [`isolated`](Self::isolated) task is never asked. A task of [another
    /// program](crate::Builder::program) cannot find out that it is asked; it has the time all
    /// the same.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.options().grace = Some(grace);
        self
    }

    /// Cancels the task when the token is cancelled, as [`abort`](JoinHandle::abort) does, whether
    /// or not anybody holds or polls its handle. Of a `map` the token cancels every item that
    /// is in flight, and each one that is pulled afterwards.
    ///
    /// ```
    /// use tokio_util::sync::CancellationToken;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = procpool::Pool::builder().workers(1).build()?;
    /// let token = CancellationToken::new();
    /// let handle = pool.task(|| -> () { loop { std::thread::park() } }).cancel_on(&token).spawn(());
    /// token.cancel();
    /// assert!(handle.await.unwrap_err().is_cancelled());
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel_on(mut self, token: &CancellationToken) -> Self {
        self.task.token = Some(token.clone());
        self
    }

    /// The task has its worker to itself while it runs, and to stop it is always to kill that
    /// process: what it has left there (threads, tokio tasks) ends with it. Default: no; async
    /// tasks share a worker.
    pub fn isolated(mut self, wanted: bool) -> Self {
        self.options().isolated = wanted;
        self
    }

    /// Whether the task may be run twice. When its worker is killed only to stop another task in it
    /// (as it may be for async ones), it runs again, and that counts as no attempt. Default:
    /// no; it is told that its worker died.
    pub fn idempotent(mut self, wanted: bool) -> Self {
        self.options().idempotent = wanted;
        self
    }

    /// How often the task is tried again after it has failed: when its worker died, when its
    /// [`timeout`](Self::timeout) was over, if [wanted](Self::retry_panics) when it panicked,
    /// if [wanted](Self::retry_starts) when no worker could be started for it, and if
    /// [wanted](Self::retry_if) when it returned an error. Default: 0. At most 254.
    ///
    /// A task that has not begun when its worker dies runs elsewhere in any case, and that counts
    /// as no attempt. A task can tell which try it is by [`attempt`](crate::attempt()); the
    /// error of the last try has those of the earlier ones in
    /// [`earlier_attempts`](crate::TaskError::earlier_attempts).
    pub fn retries(mut self, most: u32) -> Self {
        self.options().retry.most = most.min(ATTEMPTS_MAX - 1);
        self
    }

    /// Whether a panic is worth another try. Default: no.
    pub fn retry_panics(mut self, wanted: bool) -> Self {
        self.options().retry.panics = wanted;
        self
    }

    /// Whether the end of the time limit is worth another try. Default: yes.
    pub fn retry_timeouts(mut self, wanted: bool) -> Self {
        self.options().retry.timeouts = wanted;
        self
    }

    /// Whether failed starts of workers are worth another try: each time as many have failed in a
    /// row as the pool attempts ([`Builder::start_attempts`](crate::Builder::start_attempts)), the
    /// task is tried again instead of being told
    /// ([`is_start_failed`](crate::TaskError::is_start_failed)). Default: no. A pool that has given
    /// up ([`Builder::restart_limit`](crate::Builder::restart_limit)) starts nothing, so there it
    /// is told in any case.
    pub fn retry_starts(mut self, wanted: bool) -> Self {
        self.options().retry.starts = wanted;
        self
    }

    /// Whether a task that yields ([`stream`](Self::stream)) is worth another try also when items of
    /// it have been taken. Default: no, as the reader would see them again. With it, the items of
    /// the next try follow those that were taken; what had come and was not taken is forgotten.
    /// [`attempt`](crate::attempt()) in the items tells the tries apart.
    pub fn retry_partial(mut self, wanted: bool) -> Self {
        self.options().retry.partial = wanted;
        self
    }

    /// The wait before the first retry, doubled for each further one up to `most`. Default: none.
    pub fn backoff(mut self, first: Duration, most: Duration) -> Self {
        let retry = &mut self.options().retry;
        (retry.wait_min, retry.wait_max) = (first, most.max(first));
        self
    }

    /// As [`Pool::spawn`].
    pub fn spawn<P: ArgsFor<Args>>(self, args: P) -> JoinHandle<R> {
        self.submit(&args, Room::Needed)
    }

    /// As [`Pool::spawn_wait`].
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn spawn_wait<P: ArgsFor<Args>>(self, args: P) -> JoinHandle<R> {
        take_unit().await;
        let room = self.pool.engine().room().await;
        self.submit(&args, Room::Held(room))
    }

    /// As [`Pool::map`].
    pub fn map<I>(self, items: I) -> Results<Items<I::IntoIter>, Args, R>
    where
        I: IntoIterator,
        I::Item: ArgsFor<Args>,
    {
        self.map_stream(Items::new(items))
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
        let ticket: Ticket = self.pool.engine().submit(
            &self.task,
            |out, limit| encode(args, out, limit),
            Reply::Join(sender),
            room,
        );
        JoinHandle::new(self.pool.engine(), ticket, self.task.function, outcome)
    }
}

impl<Args, R, F, Marker> TaskBuilder<'_, Args, R, Function<F, Marker>>
where
    R: DeserializeOwned,
    Args: YieldingArgs,
    Args::Item: DeserializeOwned,
{
    /// As [`Pool::stream`].
    pub fn stream<P: ArgsFor<Args::Given>>(self, args: P) -> TaskStream<Args::Item, R> {
        let mut task = self.task;
        task.flags |= message::FLAG_YIELDS;
        let may_repeat = task.options.as_ref().is_some_and(|options| options.retry.partial);
        let items = Yielded::new(task.mode == Mode::Async, may_repeat);
        let engine = self.pool.engine();
        let encode_given = |out: &mut Vec<u8>, limit: usize| {
            encode::<Args::Given, P>(&args, out, limit.saturating_sub(1))?;
            out.push(NIL); // what the worker makes the `Yielder` of
            Ok(())
        };
        let reply = Reply::Yielded(Arc::clone(&items));
        let ticket = engine.submit(&task, encode_given, reply, Room::Needed);
        TaskStream::new(AbortHandle::new(engine, ticket, task.function), items)
    }
}

/// A value of nothing, encoded.
const NIL: u8 = 0xc0;

impl<Args, T, E, F, Marker> TaskBuilder<'_, Args, Result<T, E>, Function<F, Marker>>
where
    F: Task<Args, Marker, Output = Result<T, E>>,
{
    /// Which errors of the task's own are worth another try. Default: none, an error that a task
    /// returns is a value like any.
    ///
    /// It goes with [`retries`](Self::retries), which says how many tries there are, and
    /// [`backoff`](Self::backoff). If the last one fails, too, its error is the result, as the
    /// value that it is. Where the end of the task is another one, a death say, the errors of
    /// the earlier tries are among its
    /// [`earlier_attempts`](crate::TaskError::earlier_attempts), and
    /// [`task_returned_error`](crate::TaskError::task_returned_error) gives them.
    ///
    /// The predicate is a function, or a closure that captures nothing. It runs in the worker,
    /// right after the task and as a part of it: under its time limit, and if it panics, the
    /// task has panicked. It is asked after the last try as well. (A task of
    /// [another program](crate::Builder::program) says itself what is worth another try.)
    ///
    /// ```
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Debug, PartialEq, Serialize, Deserialize)]
    /// enum FetchError { Busy, NoSuchHost }
    ///
    /// impl FetchError {
    ///     fn is_transient(&self) -> bool { *self == Self::Busy }
    /// }
    ///
    /// async fn fetch(host: String) -> Result<String, FetchError> {
    ///     match procpool::attempt() {
    ///         _ if host.is_empty() => Err(FetchError::NoSuchHost),
    ///         Some(1 | 2) => Err(FetchError::Busy), // this time
    ///         _ => Ok(host),
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = procpool::Pool::builder().workers(1).build()?;
    /// let page = pool.task(fetch).retries(3).retry_if(|e| e.is_transient()).spawn("host").await?;
    /// assert_eq!(page, Ok("host".into()));
    /// let page = pool.task(fetch).retries(3).retry_if(FetchError::is_transient).spawn("").await?; // the first try's
    /// assert_eq!(page, Err(FetchError::NoSuchHost));
    /// # Ok(())
    /// # }
    /// ```
    pub fn retry_if<P>(mut self, _predicate: P) -> Self
    where
        P: Fn(&E) -> bool + CapturesNothing,
    {
        let () = ZeroSized::<P>::PROVEN_PREDICATE;
        self.task.callee = Callee::Index(index_of_judged::<F, Args, Marker, RetryIf<P>>().0);
        self
    }
}

impl<Args, R, F> fmt::Debug for TaskBuilder<'_, Args, R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskBuilder").field("task", &self.task).finish_non_exhaustive()
    }
}
