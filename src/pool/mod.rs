//! The pool: its handle here, and behind it
//!
//! * `builder.rs`, `call.rs`, `size.rs`: the options of a pool, and of one call; `named.rs`: a task
//!   of another program;
//! * `spec.rs`: what both come to; `options.rs`: limits and retries of a call; `elsewhere.rs`: the
//!   engine of platforms without workers;
//! * `join.rs`, `results.rs`, `task_stream.rs`, `shutdown.rs`: what a caller waits for; `items.rs`: what
//!   a map is over; `reply.rs`, `yielded.rs`: how it gets there;
//! * `run.rs`: items that travel together; `core_runs.rs`: the rules of those;
//! * `core.rs`: the rules, pure; `core_stop.rs`: those of stopping a task; `core_deaf.rs`: of
//!   workers that stand still; `core_ending.rs`: of the end; `core_staff.rs`: those of who is
//!   there; `slots.rs`: their table; `loss.rs`: what a death cost;
//! * `stats.rs`, `events.rs`: what is counted and told of it; `blocked.rs`: whether all workers
//!   wait;
//! * `capture.rs`: how what workers print gets to where it goes;
//! * `tokens.rs`: the cancellation tokens that calls were given;
//! * `engine.rs`: the rules under their lock, and the hands that do what they say;
//! * `driver.rs`: what happens at the descriptors; `link.rs`: one worker's; `launch.rs`: its start.

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod blocked;
mod builder;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod capture;
mod core;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod driver;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod engine;
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
)))]
#[path = "elsewhere.rs"]
mod engine;
mod events;
#[cfg(all(test, target_os = "linux", feature = "sync"))]
mod held_descriptors;
#[cfg(all(test, target_os = "linux", feature = "sync"))]
mod hostile_workers;
mod items;
mod join;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod launch;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod link;
mod loss;
mod named;
mod options;
mod reply;
mod results;
mod run;
mod shutdown;
mod size;
mod slots;
mod spec;
mod started;
mod stats;
#[cfg(all(test, target_os = "linux"))]
mod strange_runs;
#[cfg(all(test, target_os = "linux"))]
mod strange_workers;
mod task_builder;
mod task_returned_error;
mod task_stream;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod tokens;
#[cfg(all(test, target_os = "linux"))]
mod unkillable_workers;
mod yielded;

pub use builder::Builder;
pub use events::{Events, SharedObject, WorkerEvent};
pub use items::Items;
pub use join::{AbortHandle, JoinHandle};
pub use named::NamedTask;
pub use results::{ItemResults, Results, TryResults};
pub use shutdown::{Shutdown, ShutdownReport};
pub use size::WorkerCount;
pub use started::Started;
pub use stats::{ExitReason, Stats};
pub use task_builder::TaskBuilder;
pub use task_stream::TaskStream;

use self::core::Mode;
use crate::coop::take_unit;
use crate::error::Error;
use crate::sync::Manager;
use crate::task::{
    ArgsFor, ArgsTuple, Callable, Contented, Run, Task, YieldingArgs, ZeroSized, index_of,
};
use crate::wire::message::Callee;
use engine::Engine;
use futures::Stream;
use serde::de::DeserializeOwned;
use spec::TaskSpec;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A pool of worker processes.
///
/// It is a cheap handle: clones share the workers. Tasks may be handed in from any thread, inside
/// and outside of any runtime.
///
/// ```
/// use procpool::Pool;
///
/// fn fib(n: u64) -> u64 { if n < 2 { n } else { fib(n - 1) + fib(n - 2) } }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = Pool::new()?;
/// assert_eq!(pool.spawn(fib, 20).await?, 6765);
/// # Ok(())
/// # }
/// ```
///
/// # How a pool ends
///
/// | | new tasks | tasks that wait | tasks that run | the processes |
/// |---|---|---|---|---|
/// | [`shutdown()`](Self::shutdown) | refused | run | run to their end | end when nothing is left to do; their exit function ([`Builder::on_worker_exit`]) and what exit handlers they have run |
/// | `shutdown()` and [`abort_queued()`](Self::abort_queued) | refused | cancelled | run to their end | the same |
/// | [`shutdown_within(limit)`](Self::shutdown_within) | refused | run; at the limit closed | the same; at the limit async ones are dropped at an await point, sync ones die with their process; those with a [`grace`](TaskBuilder::grace) are asked first | end, or are killed at the limit: those of sync tasks at once, others when an async task has not yielded, or an exit function not ended, for a second |
/// | [`kill()`](Self::kill) | refused | closed at once | closed when their process has ended | are killed |
/// | the last `Pool` is dropped | | as by `kill()` | as by `kill()` | as by `kill()` |
/// | the runtime that built it ends | taken | run | run | go on; a thread of the crate's own drives the pool |
/// | `main` returns, `std::process::exit`, a panic that ends the program, SIGTERM, SIGINT, SIGKILL | | | | are killed by the kernel, spinning and stopped ones, too |
/// | a fork of the application | refused in the copy | unharmed | unharmed | belong to the original alone |
///
/// *Refused* and *closed* tasks resolve to [`is_pool_closed`](crate::TaskError::is_pool_closed),
/// *cancelled* ones to [`is_cancelled`](crate::TaskError::is_cancelled). A process that the kernel
/// cannot end within 5 seconds of its kill, since it hangs in a system call, is not waited for.
/// What kills a worker kills its process group with it ([`Builder::process_group`]). Each way
/// overtakes the ones above it: one may `kill` what is being shut down.
///
/// # Drop
///
/// Dropping the last handle kills the workers, without waiting for that; handles of tasks that have
/// not ended resolve to [`is_pool_closed`](crate::TaskError::is_pool_closed) as by
/// [`kill`](Self::kill). [`shutdown`](Self::shutdown) lets them end first.
#[derive(Clone)]
pub struct Pool {
    last: Arc<Last>,
}

/// Held by the handles alone, so that the last one to go is seen.
struct Last {
    engine: Arc<Engine>,
    manager: OnceLock<Manager>,
}

impl Drop for Last {
    fn drop(&mut self) {
        self.engine.kill();
    }
}

impl Pool {
    /// A pool with the default options: one worker per core, started as calls need them. See
    /// [`Builder::build`].
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// The options of a pool.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn of(engine: Arc<Engine>, manager: Option<Manager>) -> Self {
        Self {
            last: Arc::new(Last {
                engine,
                manager: manager.map(OnceLock::from).unwrap_or_default(),
            }),
        }
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.last.engine
    }

    /// How many workers the pool has at most, at the moment; see [`Builder::workers`] and
    /// [`resize`](Self::resize).
    #[must_use]
    pub fn workers(&self) -> usize {
        self.engine().workers()
    }

    /// Hands in a task and returns at once: the function runs in a worker, the handle is a future
    /// of its result.
    ///
    /// The function is any `fn` or a closure that captures nothing, sync or async, of up to 8
    /// arguments (see [`Task`]). The arguments are encoded here and now, so they need be
    /// neither `Send` nor `'static`: none are `()`; a single one is given as it is or borrowed;
    /// two to eight as a tuple (see [`ArgsFor`]).
    ///
    /// # Errors
    ///
    /// All come through the handle, at once if the task was not taken: see
    /// [`TaskErrorKind`](crate::TaskErrorKind).
    #[doc(alias = "apply_async")]
    #[doc(alias = "submit")]
    pub fn spawn<F, Args, Marker, P>(&self, function: F, args: P) -> JoinHandle<F::Output>
    where
        F: Callable<Args> + Task<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.task(function).spawn(args)
    }

    /// As [`spawn`](Self::spawn), but waits first until the backlog has room
    /// ([`Builder::queue_limit`]); without such a limit it does not wait.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, nothing has been handed in. Those who wait are served in order;
    /// a place in that order is lost.
    pub async fn spawn_wait<F, Args, Marker, P>(
        &self,
        function: F,
        args: P,
    ) -> JoinHandle<F::Output>
    where
        F: Callable<Args> + Task<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.task(function).spawn_wait(args).await
    }

    /// Hands in a task that yields items while it runs, and returns at once: the stream gives the
    /// items as they come, and [`finish`](TaskStream::finish) the task's result.
    ///
    /// The function takes a [`Yielder`](crate::Yielder) as its last argument; the caller gives the
    /// others, as to [`spawn`](Self::spawn). A sync task sends by
    /// [`blocking_send`](crate::Yielder::blocking_send), an async one by
    /// [`send`](crate::Yielder::send). Both wait while the reader is slow, so memory stays bounded:
    /// see [`TaskStream`], also for what dropping it does, for retries and for limits.
    ///
    /// ```
    /// use futures::StreamExt;
    /// use procpool::{Error, Pool, Yielder};
    ///
    /// fn lines(text: String, out: Yielder<String>) -> Result<usize, procpool::Failure> {
    ///     for line in text.lines() {
    ///         out.blocking_send(line.to_uppercase())?;
    ///     }
    ///     Ok(text.len())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = Pool::builder().workers(1).build()?;
    /// let mut lines = pool.stream(lines, "one\ntwo");
    /// assert_eq!(lines.next().await.transpose()?, Some("ONE".into()));
    /// assert_eq!(lines.next().await.transpose()?, Some("TWO".into()));
    /// assert!(lines.next().await.is_none());
    /// assert_eq!(lines.finish().await??, 7);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// All come through the stream, after the items that had come before.
    pub fn stream<F, Args, Marker, P>(
        &self,
        function: F,
        args: P,
    ) -> TaskStream<Args::Item, F::Output>
    where
        F: Task<Args, Marker>,
        Args: YieldingArgs,
        Args::Item: DeserializeOwned,
        P: ArgsFor<Args::Given>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.task(function).stream(args)
    }

    /// A call with options.
    pub fn task<F, Args, Marker>(
        &self,
        _function: F,
    ) -> TaskBuilder<'_, Args, F::Output, task_builder::Function<F, Marker>>
    where
        F: Callable<Args> + Task<Args, Marker>,
    {
        let () = ZeroSized::<F>::PROVEN;
        let mode = match F::__entry::<Contented>().run {
            Run::Async(_) => Mode::Async,
            _ => Mode::Sync,
        };
        let callee = Callee::Index(index_of::<F, Args, Marker>().0);
        let options = self.engine().config().options.clone();
        let function = std::any::type_name::<F>();
        TaskBuilder::new(
            self,
            TaskSpec { callee, arity: F::__ARITY, mode, flags: 0, options, token: None, function },
        )
    }

    /// A call of a task that another program serves by name: of a pool built with
    /// [`Builder::program`], which shows an example.
    ///
    /// # Errors
    ///
    /// As for any task, and through the handle: that the program serves no task of this name, or
    /// that this pool's workers are this program itself, whose tasks have no names, is
    /// [`is_unknown_task`](crate::TaskError::is_unknown_task). What the program says of an error in
    /// its task comes as [`is_panic`](crate::TaskError::is_panic).
    pub fn task_named<Args, R>(&self, task: NamedTask<Args, R>) -> TaskBuilder<'_, Args, R>
    where
        Args: ArgsTuple,
        R: DeserializeOwned,
    {
        let (callee, function) = (Callee::Name(task.name()), task.name());
        let options = self.engine().config().options.clone();
        TaskBuilder::new(
            self,
            TaskSpec {
                callee,
                arity: Args::__ARITY,
                mode: Mode::Sync,
                flags: 0,
                options,
                token: None,
                function,
            },
        )
    }

    /// Runs the function over all items, and gives a stream of the results.
    ///
    /// Tuples are spread over a function's arguments. There is no chunk size: small calls travel
    /// together by themselves, and each item keeps an error of its own: one that ends its worker is
    /// the only one lost. See [`Results`] for order and back-pressure.
    ///
    /// ```
    /// use futures::StreamExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = procpool::Pool::builder().workers(2).build()?;
    /// let mut squares = pool.map(|n: u64| n * n, 0..100);
    /// let mut sum = 0;
    /// while let Some(square) = squares.next().await {
    ///     sum += square?;
    /// }
    /// assert_eq!(sum, 328_350);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "imap")]
    #[doc(alias = "starmap")]
    pub fn map<F, Args, Marker, I>(
        &self,
        function: F,
        items: I,
    ) -> Results<Items<I::IntoIter>, Args, F::Output>
    where
        F: Callable<Args> + Task<Args, Marker>,
        I: IntoIterator,
        I::Item: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.task(function).map(items)
    }

    /// As [`map`](Self::map), over a stream.
    pub fn map_stream<F, Args, Marker, S>(
        &self,
        function: F,
        items: S,
    ) -> Results<S, Args, F::Output>
    where
        F: Callable<Args> + Task<Args, Marker>,
        S: Stream,
        S::Item: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.task(function).map_stream(items)
    }

    /// As [`map_stream`](Self::map_stream), over a stream of `Result`s. The source's error comes
    /// once, after the results of the items before it, and ends the stream.
    pub fn try_map_stream<F, Args, Marker, S, P, E>(
        &self,
        function: F,
        items: S,
    ) -> TryResults<S, E, Args, F::Output>
    where
        F: Callable<Args> + Task<Args, Marker>,
        S: Stream<Item = Result<P, E>>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.task(function).try_map_stream(items)
    }

    /// The manager of this pool: the owner of objects that its tasks share. It is the one that the
    /// pool was built with ([`Builder::manager`]), else one that is started now, the first time
    /// that it is asked for.
    ///
    /// If it cannot be started, what is made by it says why. When it is closed, says
    /// [`Manager`](Manager#drop).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = procpool::Pool::builder().workers(2).build()?;
    /// let total = pool.manager().mutex(0u64)?;
    /// *total.lock().await? += 1;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "sync")]
    pub fn manager(&self) -> &Manager {
        self.last.manager.get_or_init(Manager::of_pool)
    }

    /// Starts all workers and waits until they are ready, `init` included: as many as there are in
    /// any case, which is the lower end of a range ([`Builder::workers`]) and at least one, and
    /// the spares.
    ///
    /// In a pool that has given up, because too many workers ended by themselves
    /// ([`Builder::restart_limit`]), it tries anew.
    ///
    /// # Errors
    ///
    /// The cause, as soon as one start fails (the others go on), or as soon as the pool gives up;
    /// `PoolClosed`; `Forked`.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it no longer waits; the workers start all the same.
    pub async fn ready(&self) -> Result<(), Error> {
        take_unit().await;
        self.engine().ready().await
    }

    /// How many workers there are to be from now on: a number, or a range (`pool.resize(0..=8)`),
    /// as for [`Builder::workers`]. It is done by the call, which waits for nothing.
    ///
    /// Of more, those that are needed are started when tasks need them. Of fewer, those that are
    /// too many are given nothing more: who is idle ends at once, who is at work when its tasks
    /// have ended, however long that takes; what it has not begun goes to the others. Nothing
    /// that runs is interrupted.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), procpool::Error> {
    /// let pool = procpool::Pool::builder().workers(2).build()?;
    /// pool.resize(8)?;
    /// assert_eq!(pool.workers(), 8);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidOption` for a number that makes no sense, see there; `PoolClosed`; `Forked`.
    pub fn resize(&self, workers: impl WorkerCount) -> Result<(), Error> {
        let (min, max) = size::checked(workers.__bounds())?;
        self.engine().resize(min, max)
    }

    /// Replaces all workers that are there, one after another: so that new ones read a new model or
    /// configuration in their `init`, say. It is begun by the call; what it gives is ready when
    /// all have been replaced.
    ///
    /// A worker serves until its successor is ready. Then it is given nothing more, gives back what
    /// it has not begun, and ends when its tasks have ended; so nothing is interrupted, and
    /// there is never less capacity than before. For a quarter of the workers, at least for
    /// one, this is under way at a time. A worker whose tasks go on for long is *replaced* all
    /// the same: it is not waited for.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = procpool::Pool::builder().workers(1).build()?;
    /// let before = pool.spawn(std::process::id, ()).await?;
    /// pool.recycle().await?;
    /// assert_ne!(pool.spawn(std::process::id, ()).await?, before);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The cause, as soon as the start of a worker fails: the old ones serve on, and are replaced
    /// when starts succeed again. `PoolClosed`, `Forked`.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it no longer waits; the workers are replaced all the same.
    pub fn recycle(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let engine = Arc::clone(self.engine());
        let generation = engine.recycle();
        async move {
            take_unit().await;
            engine.recycled(generation).await
        }
    }

    /// How the pool stands, and what it has done so far: workers at work and idle, tasks that wait,
    /// tasks that failed and how, workers that ended and why.
    ///
    /// It costs as much as there are workers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.engine().stats()
    }

    /// What happens to the workers from now on, as a stream: which get ready, which go and why, and
    /// whether all of them wait for shared objects while tasks are queued.
    ///
    /// ```
    /// use futures::StreamExt;
    /// use procpool::{Pool, ExitReason, WorkerEvent};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = Pool::builder().workers(1).build()?;
    /// let mut events = pool.events();
    /// pool.spawn(|| -> () { std::process::exit(7) }, ()).await.unwrap_err();
    /// assert!(matches!(events.next().await, Some(WorkerEvent::Started { .. })));
    /// assert!(matches!(events.next().await, Some(WorkerEvent::Exited { why: ExitReason::Died, .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn events(&self) -> Events {
        self.engine().events()
    }

    /// Closes the pool: takes no more tasks, and lets those that are here run to their end. What it
    /// gives is ready when that is so and every worker process has gone.
    ///
    /// The pool is closed by the call itself; whether one awaits the [`Shutdown`] is all the same to
    /// it. It may be called more than once, and by several at a time. Tasks handed in
    /// afterwards are [`is_pool_closed`](crate::TaskError::is_pool_closed). It takes as long as
    /// the tasks take, and for ever if one hangs or its process is stopped;
    /// [`shutdown_within`](Self::shutdown_within) does not.
    #[doc(alias = "close")]
    #[doc(alias = "join")]
    pub fn shutdown(&self) -> Shutdown {
        self.engine().drain(None);
        Shutdown::of(self.engine())
    }

    /// As [`shutdown`](Self::shutdown), but what has not ended by then is cut off, and told in the
    /// [`ShutdownReport`].
    ///
    /// At the limit, what waits is resolved, and what runs is stopped as by an
    /// [abort](JoinHandle::abort): async tasks are dropped at their next await point, and their
    /// process is killed if they reach none within a second; the processes of sync
    /// tasks are killed; and a task with a [`grace`](TaskBuilder::grace) is asked first, and has that much
    /// longer. All of these tasks are [`is_pool_closed`](crate::TaskError::is_pool_closed). A
    /// worker that has nothing left to do, and has not ended (it runs its exit function, or
    /// stands still), is killed at the limit as well, but not before it has had a second, or its
    /// [`exit_timeout`](Builder::exit_timeout) if that is shorter. The limit counts from the call;
    /// of several calls the earliest counts. A limit beyond what the clock can hold is none.
    pub fn shutdown_within(&self, limit: Duration) -> Shutdown {
        self.engine().drain(Some(limit));
        Shutdown::of(self.engine())
    }

    /// Ends the pool at once: all workers are killed, and all tasks that have not ended resolve to
    /// [`is_pool_closed`](crate::TaskError::is_pool_closed), those that run when their process has
    /// ended: what is told to have stopped has stopped. What it gives is ready when all have
    /// gone.
    ///
    /// The kill is in the call itself; whether one awaits the [`Shutdown`] is all the same to it.
    pub fn kill(&self) -> Shutdown {
        self.engine().kill();
        Shutdown::of(self.engine())
    }

    /// Aborts every task that has not begun, and says how many that were. What runs is left alone.
    /// Together with [`shutdown`](Self::shutdown) it drops the queue.
    pub fn abort_queued(&self) -> usize {
        self.engine().abort_unbegun()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.engine().config().name)
            .field("workers", &self.engine().workers())
            .finish_non_exhaustive()
    }
}
