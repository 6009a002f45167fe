//! The pool: its handle here, and behind it
//!
//! * `builder.rs`, `call.rs`: the options of a pool, and of one call; `named.rs`: a task of another program;
//! * `spec.rs`: what both come to; `options.rs`: limits and retries of a call; `elsewhere.rs`: the engine of platforms without workers;
//! * `join.rs`, `results.rs`: what a caller waits for; `reply.rs`: how it gets there;
//! * `core.rs`: the rules, pure; `slots.rs`: its table; `loss.rs`: what a death cost;
//! * `tokens.rs`: the cancellation tokens that calls were given;
//! * `engine.rs`: the rules under their lock, and the hands that do what they say;
//! * `driver.rs`: what happens at the descriptors; `link.rs`: one worker's; `launch.rs`: its start.

mod builder;
mod call;
mod core;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere)))]
mod driver;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere)))]
mod engine;
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere))))]
#[path = "elsewhere.rs"]
mod engine;
#[cfg(all(test, target_os = "linux"))]
mod hostile_workers;
mod join;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere)))]
mod launch;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere)))]
mod link;
mod loss;
mod named;
mod options;
mod reply;
mod results;
mod slots;
mod spec;
#[cfg(all(test, target_os = "linux"))]
mod strange_workers;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(procpool_elsewhere)))]
mod tokens;

pub use builder::Builder;
pub use call::Call;
pub use join::{AbortHandle, JoinHandle};
pub use named::Named;
pub use results::{Results, TryResults};

use self::core::Mode;
use crate::error::Error;
use crate::sync::Manager;
use crate::task::{ArgsFor, ArgsTuple, Run, Task, ZeroSized, index_of};
use crate::wire::message::Callee;
use engine::Engine;
use futures::Stream;
use futures::stream::Iter;
use serde::de::DeserializeOwned;
use spec::TaskSpec;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// A pool of worker processes.
///
/// It is a cheap handle: clones share the workers. Tasks may be handed in from any thread, inside and
/// outside of any runtime.
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
/// # Drop
///
/// Dropping the last handle kills the workers; tasks that have not ended resolve to
/// [`is_pool_closed`](crate::TaskError::is_pool_closed). [`shutdown`](Self::shutdown) lets them end first.
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
    /// A pool with the default options: one worker a core, started as calls need them. See
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
        Self { last: Arc::new(Last { engine, manager: manager.map(OnceLock::from).unwrap_or_default() }) }
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.last.engine
    }

    /// How many worker processes the pool has at most; see [`Builder::workers`].
    pub fn workers(&self) -> usize {
        self.engine().config().rules.workers
    }

    /// Hands in a task and returns at once: the function runs in a worker, the handle is a future of
    /// its result.
    ///
    /// The function is any `fn` or a closure that captures nothing, sync or async, of up to 8 arguments
    /// (see [`Task`]). The arguments are encoded here and now, so they need be neither `Send` nor
    /// `'static`: none are `()`; a single one is given as it is or borrowed; two to eight as a tuple
    /// (see [`ArgsFor`]).
    ///
    /// # Errors
    ///
    /// All come through the handle, at once if the task was not taken: see
    /// [`TaskErrorKind`](crate::TaskErrorKind).
    pub fn spawn<F, Args, Marker, P>(&self, function: F, args: P) -> JoinHandle<F::Output>
    where
        F: Task<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.call(function).spawn(args)
    }

    /// As [`spawn`](Self::spawn), but waits first until the backlog has room
    /// ([`Builder::queue_limit`]); without such a limit it does not wait.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, nothing has been handed in. Those who wait are served in order; a
    /// place in that order is lost.
    pub async fn spawn_wait<F, Args, Marker, P>(&self, function: F, args: P) -> JoinHandle<F::Output>
    where
        F: Task<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.call(function).spawn_wait(args).await
    }

    /// A call with options.
    pub fn call<F, Args, Marker>(&self, _function: F) -> Call<'_, Args, F::Output>
    where
        F: Task<Args, Marker>,
    {
        let () = ZeroSized::<F>::PROVEN;
        let mode = match F::__entry().run {
            Run::Async(_) => Mode::Async,
            _ => Mode::Sync,
        };
        let callee = Callee::Index(index_of::<F, Args, Marker>().0);
        let options = self.engine().config().options.clone();
        let function = std::any::type_name::<F>();
        Call::new(self, TaskSpec { callee, arity: F::__ARITY, mode, flags: 0, options, token: None, function })
    }

    /// A call of a task that another program serves by name: of a pool built with
    /// [`Builder::program`], which shows an example.
    ///
    /// # Errors
    ///
    /// As for any task, and through the handle: that the program serves no task of this name, or that this pool's workers
    /// are this program itself, whose tasks have no names, is
    /// [`is_unknown_task`](crate::TaskError::is_unknown_task). What the program says of an error in its task comes as
    /// [`is_panic`](crate::TaskError::is_panic).
    pub fn call_named<Args, R>(&self, task: Named<Args, R>) -> Call<'_, Args, R>
    where
        Args: ArgsTuple,
        R: DeserializeOwned,
    {
        let (callee, function) = (Callee::Name(task.name()), task.name());
        let options = self.engine().config().options.clone();
        Call::new(self, TaskSpec { callee, arity: Args::__ARITY, mode: Mode::Sync, flags: 0, options, token: None, function })
    }

    /// Runs the function over all items, and gives a stream of the results.
    ///
    /// Tuples are spread over a function's arguments. There is no chunk size: small calls travel
    /// together by themselves, and each item keeps an error of its own. See [`Results`] for order and
    /// back-pressure.
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
    pub fn map<F, Args, Marker, I>(&self, function: F, items: I) -> Results<Iter<I::IntoIter>, Args, F::Output>
    where
        F: Task<Args, Marker>,
        I: IntoIterator,
        I::Item: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.call(function).map(items)
    }

    /// As [`map`](Self::map), over a stream.
    pub fn map_stream<F, Args, Marker, S>(&self, function: F, items: S) -> Results<S, Args, F::Output>
    where
        F: Task<Args, Marker>,
        S: Stream,
        S::Item: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.call(function).map_stream(items)
    }

    /// As [`map_stream`](Self::map_stream), over a stream of `Result`s. The source's error comes once,
    /// after the results of the items before it, and ends the stream.
    pub fn try_map_stream<F, Args, Marker, S, P, E>(&self, function: F, items: S) -> TryResults<S, E, Args, F::Output>
    where
        F: Task<Args, Marker>,
        S: Stream<Item = Result<P, E>>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.call(function).try_map_stream(items)
    }

    /// The manager of this pool: the owner of objects that its tasks share. It is the one that the pool was built with
    /// ([`Builder::manager`]), else one that is started now, the first time that it is asked for.
    ///
    /// If it cannot be started, what is made by it says why.
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
    pub fn manager(&self) -> &Manager {
        self.last.manager.get_or_init(Manager::of_pool)
    }

    /// Starts all workers and waits until they are ready, `init` included.
    ///
    /// # Errors
    ///
    /// The cause, as soon as one start fails (the others go on); `PoolClosed`.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it no longer waits; the workers start all the same.
    pub async fn ready(&self) -> Result<(), Error> {
        self.engine().ready().await
    }

    /// Closes the pool: takes no more tasks, lets those that are here run to their end, and waits for
    /// that and for the end of every worker process.
    ///
    /// It may be called more than once, and by several at a time: all return when the pool has ended.
    /// Tasks handed in meanwhile are [`is_pool_closed`](crate::TaskError::is_pool_closed). It waits as
    /// long as the tasks take; to cut that short, drop the pool.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it no longer waits; the pool stays closed and ends all the same.
    pub async fn shutdown(&self) {
        self.engine().shutdown().await;
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.engine().config().name)
            .field("workers", &self.engine().config().rules.workers)
            .finish_non_exhaustive()
    }
}
