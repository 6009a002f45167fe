//! The options of a pool.

use super::Pool;
use super::core::{Policy, Rules};
use super::engine::Engine;
use super::options::Options;
use super::size::{self, WorkerCount};
use super::spec::{Config, Hook, Surroundings};
use crate::error::{Error, Why};
use crate::limits::Limits;
use crate::stdio::{Kind, Stdio};
use crate::sync::Manager;
use crate::sync::named::{for_call, write_names};
use crate::task::{ArgsFor, Callable, Init, Task, ZeroSized, encode_args, index_of, index_of_init};
use crate::template::{Plan, Template, encode_preload};
use crate::wire::claim::SLOTS_MAX;
use crate::wire::packet::Packet;
use crate::wire::value::names;
use crate::wire::{frame, message};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A worker says hello in some milliseconds; one that has not after this long will not. Generous,
/// for machines that are overloaded at the time.
const HELLO_LIMIT: Duration = Duration::from_secs(30);
/// So many bytes of a process's name the kernel keeps (prctl(2), `PR_SET_NAME`).
const NAME_MAX: usize = 15;
/// What browsers take for the processes of their pages: enough to go before an application that
/// uses a quarter of the memory more.
const OOM_SCORE: u16 = 300;
/// How long a worker of a range may be idle, unless said otherwise: a start costs milliseconds and
/// an `init` perhaps seconds, so that a pause between two bursts of a minute or so should not cost
/// either.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The least and the greatest `frame_limit`, in bytes: a failure fits into the one, and with the
/// other the length of a frame fits into four bytes, whatever stands around a value.
const FRAME_LIMIT_MIN: usize = 1 << 10;
const FRAME_LIMIT_MAX: usize = (1 << 32) - (1 << 10);
/// Async tasks side by side in one worker, unless said otherwise.
const CONCURRENCY: usize = 128;

/// The options of a [`Pool`]; made by [`Pool::builder`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::Error> {
/// let pool = procpool::Pool::builder().workers(2).name("thumbnails").env("RUST_BACKTRACE", "1").build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    workers: Option<(usize, usize)>,
    idle_timeout: Option<Duration>,
    pub(super) policy: Policy,
    concurrency: usize,
    name: Option<String>,
    surroundings: Surroundings,
    limits: Limits,
    stdout: Stdio,
    stderr: Stdio,
    low_latency: bool,
    queue_limit: Option<usize>,
    frame_limit: usize,
    start_timeout: Option<Duration>,
    timeout: Option<Duration>,
    init: Option<Result<Hook, String>>,
    exit: Option<Result<Hook, String>>,
    manager: Option<Manager>,
    program: Option<(OsString, Vec<OsString>)>,
    template: Option<ForkFrom>,
    preload_timeout: Option<Duration>,
    #[cfg(test)]
    pub(super) launcher: Option<super::launch::Launcher>,
    /// So many items of a map travel together, however long they take.
    #[cfg(test)]
    pub(super) run_length: Option<usize>,
}

/// What workers are forked from.
#[derive(Debug)]
enum ForkFrom {
    /// A template for this pool alone; the frame of its preload function.
    Own(Result<Packet, Error>),
    Shared(Template),
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            workers: None,
            idle_timeout: None,
            policy: Policy::default(),
            concurrency: CONCURRENCY,
            name: None,
            surroundings: Surroundings {
                env: Vec::new(),
                env_clear: false,
                current_dir: None,
                group: true,
            },
            limits: Limits::new(),
            stdout: Stdio::inherit(),
            stderr: Stdio::inherit(),
            low_latency: false,
            queue_limit: None,
            frame_limit: frame::BODY_MAX_DEFAULT,
            start_timeout: None,
            timeout: None,
            init: None,
            exit: None,
            manager: None,
            program: None,
            template: None,
            preload_timeout: None,
            #[cfg(test)]
            launcher: None,
            #[cfg(test)]
            run_length: None,
        }
    }
}

impl Builder {
    /// How many workers there are: a number, or a range from the least to the most
    /// (`workers(2..=16)`). They are started as tasks need them, up to the most, and then stay;
    /// of a range those leave again that are idle for longer than
    /// [`idle_timeout`](Self::idle_timeout), down to the least. The least are not started before
    /// they are needed either: [`Pool::ready`] does that.
    ///
    /// It bounds who is given tasks. For a moment there may be more processes:
    /// [`spares`](Self::spares), a worker's successor that gets ready, and workers that have
    /// been replaced and are not done with their tasks.
    ///
    /// Default: [`std::thread::available_parallelism`], that is one per core. Zero, a range from
    /// more to fewer and more than 4,194,304 are refused by [`build`](Self::build).
    pub fn workers(mut self, workers: impl WorkerCount) -> Self {
        self.workers = Some(workers.__bounds());
        self
    }

    /// How long a worker of a range ([`workers`](Self::workers)) may be idle before it leaves.
    /// Default: one minute. [`build`](Self::build) refuses it for a fixed number of workers, of
    /// which none ever leaves for that.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.idle_timeout = Some(limit);
        self
    }

    /// So many spare workers are kept beside the others: started, `init` done, and given no task
    /// until they are needed. A spare takes the place of a worker that dies, is killed or is
    /// replaced, and of one that is not there yet when a task needs it: so that costs no start.
    /// Then another spare is started.
    ///
    /// They are started with the first worker. Default: none.
    pub fn spares(mut self, spares: usize) -> Self {
        self.policy.spares = spares;
        self
    }

    /// How many tasks one worker runs in its life, at most: for code that leaks. Then another one
    /// takes its place, which is being started while the last task runs. It may be replaced a
    /// few tasks earlier, if some that it was given go to others.
    ///
    /// Each try of a task counts. Default: no limit. Zero is refused by [`build`](Self::build).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = procpool::Pool::builder().workers(1).max_tasks_per_worker(1).build()?;
    /// let first = pool.spawn(std::process::id, ()).await?;
    /// assert_ne!(pool.spawn(std::process::id, ()).await?, first);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_tasks_per_worker(mut self, tasks: u64) -> Self {
        self.policy.max_tasks = Some(tasks);
        self
    }

    /// How long a worker is given tasks. Then it is replaced as by [`Pool::recycle`]: it serves
    /// until its successor is ready, and what it runs goes on to its end. It counts from when
    /// the worker is first given tasks or might be. Default: no limit. Zero is refused by
    /// [`build`](Self::build).
    pub fn max_lifetime(mut self, limit: Duration) -> Self {
        self.policy.lifetime = Some(limit);
        self
    }

    /// A worker that has more resident memory than this, in bytes, is replaced as by
    /// [`Pool::recycle`]: nothing is interrupted, it serves until its successor is ready. That
    /// is for what leaks; to bound what one task may take, see
    /// [`Limits::memory`](crate::Limits::memory).
    ///
    /// It is looked at when answers come, every 10 ms at most for each worker; the next task may
    /// have begun by then, and what that uses counts as well. It is `VmRSS` of
    /// proc_pid_status(5): shared memory and the program's own pages are part of it, child
    /// processes are not. Where `/proc` cannot be read nobody is replaced. A mark below what an
    /// idle worker has makes each worker be replaced after its first tasks. Default: none.
    pub fn max_resident_memory(mut self, bytes: u64) -> Self {
        self.policy.resident_max = Some(bytes);
        self
    }

    /// How many workers may end by themselves, within so much time, after they got ready and before
    /// they were given any task. After more the pool gives up: it starts none any more, and as
    /// soon as none is left that serves, every task fails
    /// with [`is_start_failed`](crate::TaskError::is_start_failed), whose source is
    /// [`is_restart_limit`](Error::is_restart_limit) and tells of the last deaths.
    /// [`WorkerEvent::GaveUp`](crate::WorkerEvent::GaveUp) tells of it, too. [`Pool::ready`]
    /// tries anew; and if a worker that is left answers a task, the pool goes on.
    ///
    /// Such deaths cost no task, so without a limit nobody would be told, and spares would be
    /// started for ever. Other deaths do not count: what dies with a task costs that task,
    /// which is told, and *the pool goes on*, however many tasks do that; and for starts that fail
    /// see [`start_attempts`](Self::start_attempts).
    ///
    /// Default: 10 plus 2 per worker, within 10 seconds.
    pub fn restart_limit(mut self, deaths: u32, within: Duration) -> Self {
        (self.policy.restarts, self.policy.restarts_within) = (Some(deaths), within);
        self
    }

    /// How many starts of workers in a row may fail before the tasks that wait for a worker are told
    /// ([`is_start_failed`](crate::TaskError::is_start_failed), with the cause of the last one).
    /// Default: 3. Zero is refused by [`build`](Self::build).
    ///
    /// Starts that fail while others are under way count as one. After each the pool waits before
    /// the next: 10 ms, doubled each time up to 5 s. A worker that gets ready ends the row; and as
    /// long as one serves, nothing fails for the others.
    ///
    /// When that many have failed and no worker is left, every queued task is told, and so is at
    /// once each task that is submitted until the wait is over. The first one after that has the
    /// pool try again: a single failed start is told then, until a worker gets ready. With
    /// [`TaskBuilder::retry_starts`](crate::TaskBuilder::retry_starts) a task waits for the next try instead.
    ///
    /// [`Pool::ready`] tells the first start that fails, whatever this says.
    pub fn start_attempts(mut self, starts: u32) -> Self {
        self.policy.start_attempts = starts;
        self
    }

    /// How many async tasks run side by side in one worker, at most. Default: 128. Sync tasks
    /// always run one at a time. Zero, and more than 65,536, are refused by
    /// [`build`](Self::build).
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.concurrency = tasks;
        self
    }

    /// The name of the worker processes, as `ps` and `/proc/PID/comm` show it, where 15 bytes of it
    /// are kept. Default: the program's own name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets a variable in the workers' environment. Default: theirs is the application's at the
    /// time each is started.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.surroundings.env.push((name.into(), Some(value.into())));
        self
    }

    /// Removes a variable from the workers' environment.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.surroundings.env.push((name.into(), None));
        self
    }

    /// Starts the workers with no variables but those set by [`env`](Self::env), before or after
    /// this call.
    pub fn env_clear(mut self) -> Self {
        self.surroundings.env_clear = true;
        self
    }

    /// The workers' current directory. Default: the application's at the time each is started; a
    /// relative path is looked up from there.
    pub fn current_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.surroundings.current_dir = Some(path.into());
        self
    }

    /// Whether each worker leads a process group of its own. Default: true.
    ///
    /// Then what stops a worker stops what it has started as well, and the terminal's Ctrl-C and
    /// Ctrl-Z reach the application alone. Without it processes that a worker has started outlive
    /// it, and both keys reach all of them: Ctrl-Z stops the workers, Ctrl-C does not end them.
    ///
    /// In either case a worker takes no notice of SIGHUP, SIGINT and SIGTERM, which mean the
    /// application. A task or [`on_worker_start`](Self::on_worker_start) that wants one of them handles it, or asks for
    /// the default action.
    pub fn process_group(mut self, own: bool) -> Self {
        self.surroundings.group = own;
        self
    }

    /// Where what the workers print to their standard output goes. Default: to the application's.
    /// (Answers do not travel by it: whatever a task writes there disturbs nothing.)
    pub fn stdout(mut self, output: impl Into<Stdio>) -> Self {
        self.stdout = output.into();
        self
    }

    /// Where what the workers print to their standard error goes, messages of panics among it.
    /// Default: to the application's. If it is captured ([`Stdio::lines`]), the last of it is
    /// part of what a task is told whose worker died
    /// ([`TaskError::stderr_tail`](crate::TaskError::stderr_tail)).
    ///
    /// What a worker prints before it has said hello (constructors of libraries may) comes there
    /// when it has; if it never does, it is part of the error of the failed start.
    pub fn stderr(mut self, output: impl Into<Stdio>) -> Self {
        self.stderr = output.into();
        self
    }

    /// What each worker may use of the machine. Default: what the application may; only that the
    /// kernel, when memory has run out, kills a worker rather than the application
    /// ([`Limits::oom_score`]).
    ///
    /// Each worker sets its limits itself, before `init` and its first task. One that cannot (the
    /// system refuses it, in a sandbox) ends, and its start has failed.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets whether each result reaches the application at once, at the expense of throughput.
    /// Default: `false`.
    ///
    /// By default a worker with many short tasks in hand wakes the pool once for many results, or
    /// after 1 ms. So a result may wait that long, but only behind a worker that has at least four
    /// tasks in hand, and that has some 3 ms of work in store; a task that is awaited before the next
    /// one is handed in never waits. With `true` a worker wakes the pool for each result, and has
    /// some 300 microseconds of work in store, so what is handed in later begins earlier. That costs
    /// several microseconds of CPU time and up to one context switch for each result; see
    /// `docs/performance.md`.
    pub fn low_latency(mut self, low_latency: bool) -> Self {
        self.low_latency = low_latency;
        self
    }

    /// How many tasks may wait for a worker, beyond those that workers have in hand. Past it
    /// [`Pool::spawn`] gives a handle that resolves at once to
    /// [`is_queue_full`](crate::TaskError::is_queue_full), and [`Pool::spawn_wait`] waits.
    ///
    /// Default: no limit. A task that waits takes its encoded arguments and some 300 bytes. `map`
    /// keeps a bound of its own and does not count. Zero is refused by [`build`](Self::build).
    pub fn queue_limit(mut self, tasks: usize) -> Self {
        self.queue_limit = Some(tasks);
        self
    }

    /// How many bytes the encoded arguments of a call, or its result, may take. What is larger is
    /// [`is_too_large`](crate::TaskError::is_too_large). Default: 1 GiB; at most 4 GiB - 1 KiB, at
    /// least 1 KiB.
    pub fn frame_limit(mut self, bytes: usize) -> Self {
        self.frame_limit = bytes;
        self
    }

    /// How long one run of a task may take, unless its call says otherwise; see
    /// [`TaskBuilder::timeout`](crate::TaskBuilder::timeout). Default: no limit.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// How long the start of a worker may take, `init` included. Then it is killed, and the start
    /// has failed. Default: 30 seconds until the process has said hello (which takes
    /// milliseconds), and no limit for `init`.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = Some(limit);
        self
    }

    /// The manager that [`Pool::manager`] gives: one that other pools, or the application itself,
    /// have as well. Default: the pool has one of its own, which is started when it is first
    /// asked for.
    ///
    /// Handles of any manager may be given to the tasks of any pool; this is only about who keeps
    /// the manager.
    #[cfg(feature = "sync")]
    pub fn manager(mut self, manager: &Manager) -> Self {
        self.manager = Some(manager.clone());
        self
    }

    /// A function that every worker runs before its first task: the place for what `main` sets up
    /// in the application (logging, a crypto provider), and for what is dear to make (a model,
    /// a connection). Workers never run the program's `main`.
    ///
    /// It is a sync or async function that returns `Result<T, E>`. The `T` stays in the worker,
    /// where tasks find it by [`procpool::state`](crate::state()); it is not encoded. An `Err`,
    /// a panic or the end of the process fails the start. After a few failed starts in a row
    /// ([`start_attempts`](Self::start_attempts)) the tasks that wait are told the cause
    /// ([`TaskErrorKind::InitFailed`](crate::TaskErrorKind::InitFailed)).
    ///
    /// The arguments are encoded now. That they cannot be encoded is an error of
    /// [`build`](Self::build). Handles of shared objects may be among them, of a manager that was
    /// made before the pool ([`manager`](Self::manager)): every worker gets references of its own.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use procpool::{Manager, Pool};
    /// use procpool::sync::{Error, Queue};
    ///
    /// fn open_log(log: Queue<String>) -> Result<Queue<String>, Error> {
    ///     log.blocking_send("started".into())?;
    ///     Ok(log) // stays in the worker
    /// }
    /// async fn work(n: u64) -> u64 {
    ///     let log = procpool::state::<Queue<String>>().unwrap();
    ///     log.send(format!("task {n}")).await.unwrap();
    ///     n * 2
    /// }
    ///
    /// let manager = Manager::new()?;
    /// let log = manager.queue(100)?;
    /// let pool = Pool::builder().workers(1).manager(&manager).on_worker_start(open_log, &log).build()?;
    /// assert_eq!(pool.spawn(work, 4).await?, 8);
    /// assert_eq!(log.recv().await?.as_deref(), Some("started"));
    /// assert_eq!(log.recv().await?.as_deref(), Some("task 4"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_worker_start<F, Args, Marker, P>(mut self, _function: F, args: P) -> Self
    where
        F: Init<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        let index = index_of_init::<F, Args, Marker>().0;
        self.init = Some(encode_hook(|out| message::init(out, index, F::__ARITY + 1), &args));
        self
    }

    /// A function that every worker runs when it ends in good order, the counterpart of
    /// [`on_worker_start`](Self::on_worker_start): the place to flush what was buffered, or to say goodbye to a
    /// server. It is a sync or async function, as a task is ([`Task`]), and what it returns is
    /// dropped. It finds what `init` left by [`procpool::state`](crate::state()).
    ///
    /// It runs when the worker has no task any more and is replaced, is not needed any longer, or
    /// the pool is shut down. It does not run when the worker is killed (to stop a task, by
    /// [`Pool::kill`], when the last [`Pool`] is dropped or the application ends) or dies. So
    /// nothing may depend on it that must not be lost.
    ///
    /// The worker has [`exit_timeout`](Self::exit_timeout) for it; then it is killed. If it panics,
    /// that ends it, and the worker ends as it would have. Neither harms anybody.
    ///
    /// The arguments are encoded now. That they cannot be encoded is an error of
    /// [`build`](Self::build). Handles of shared objects may be among them, as with
    /// [`on_worker_start`](Self::on_worker_start).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// fn goodbye(log: std::path::PathBuf) {
    ///     let _ = std::fs::write(log, "goodbye");
    /// }
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let log = dir.path().join("log");
    /// let pool = procpool::Pool::builder().workers(1).on_worker_exit(goodbye, &log).build()?;
    /// pool.spawn(|| (), ()).await?;
    /// pool.shutdown().await;
    /// assert_eq!(std::fs::read_to_string(log)?, "goodbye");
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_worker_exit<F, Args, Marker, P>(mut self, _function: F, args: P) -> Self
    where
        F: Callable<Args> + Task<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        let index = index_of::<F, Args, Marker>().0;
        self.exit = Some(encode_hook(|out| message::exit(out, index, F::__ARITY + 1), &args));
        self
    }

    /// How long a worker that is to end may take for it, its [`on_worker_exit`](Self::on_worker_exit) function and the
    /// exit handlers of libraries included; then it is killed. Default: 5 seconds. At the end
    /// of a pool by [`shutdown_within`](Pool::shutdown_within) it has no longer than that
    /// limit, but a second in any case (or this limit, if it is less). A limit beyond what the
    /// clock can hold is none.
    pub fn exit_timeout(mut self, limit: Duration) -> Self {
        self.policy.exit_limit = limit;
        self
    }

    /// Another program whose processes are the workers, in whatever language it is written, and its
    /// arguments. It speaks the protocol of this crate (`docs/protocol.md`;
    /// `docs/other_languages.md` shows one in Python) and serves tasks by name, which
    /// [`Pool::task_named`] calls.
    ///
    /// A program without a slash in its name is looked for in `PATH`, as
    /// [`std::process::Command::new`] does it. It is given one task at a time. It has no
    /// [`on_worker_start`](Self::on_worker_start): what it prepares before it says that it is ready is its own
    /// affair. Nor does it take [`limits`](Self::limits), which each worker sets for itself: a
    /// program that is to be limited is started by one that does it (`prlimit`, `systemd-run`).
    /// [`build`](Self::build) refuses both. The other options hold for it as for any worker.
    ///
    /// ```no_run
    /// use procpool::{NamedTask, Pool};
    ///
    /// const RESIZE: NamedTask<(Vec<u8>, u32), Vec<u8>> = NamedTask::new("resize.v1");
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = Pool::builder().program("python3", ["thumbnails.py"]).build()?;
    /// let small = pool.task_named(RESIZE).spawn((std::fs::read("large.png")?, 64)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn program<I>(mut self, program: impl Into<OsString>, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.program = Some((program.into(), args.into_iter().map(Into::into).collect()));
        self
    }

    /// Workers are forked from a template process, which runs the preload function once. They share
    /// the memory of what it returned until one of them writes to it, and start in a fraction of the
    /// time of a fresh start. See [`Template`] for what the preload function may do.
    ///
    /// What it returns tasks find by [`procpool::state`](crate::state()).
    /// [`on_worker_start`](Self::on_worker_start) still runs in each worker, after the fork. The
    /// template is started with the first worker, with the pool's environment and directory; if it
    /// ends, another one is started for the next worker, within
    /// [`start_attempts`](Self::start_attempts). A preload that fails is the cause of failed starts
    /// ([`PreloadFailed`](crate::ErrorKind::PreloadFailed)).
    ///
    /// With [`max_tasks_per_worker(1)`](Self::max_tasks_per_worker) and some
    /// [`spares`](Self::spares), each task has a process of its own.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use procpool::Pool;
    /// use std::convert::Infallible;
    ///
    /// fn load(len: u64) -> Result<Vec<u64>, Infallible> { Ok((0..len).collect()) }
    /// fn sum() -> u64 { procpool::state::<Vec<u64>>().unwrap().iter().sum() }
    ///
    /// let pool = Pool::builder().workers(2).template(load, 1000).build()?;
    /// assert_eq!(pool.spawn(sum, ()).await?, 499_500);
    /// # Ok(())
    /// # }
    /// ```
    pub fn template<F, Args, Marker, P>(mut self, _preload: F, args: P) -> Self
    where
        F: Init<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.template = Some(ForkFrom::Own(encode_preload::<F, Args, Marker, P>(&args)));
        self
    }

    /// How long the preload function of [`template`](Self::template) may take. Then the template is
    /// killed, and the start of its workers has failed. [`start_timeout`](Self::start_timeout) counts
    /// from the fork; and once for the template, until its preload begins. Default: no limit. Zero, and a limit without
    /// such a template, are refused by [`build`](Self::build).
    pub fn preload_timeout(mut self, limit: Duration) -> Self {
        self.preload_timeout = Some(limit);
        self
    }

    /// Workers are forked from this template, which other pools and processes may share. They have
    /// its environment and its current directory: [`build`](Self::build) refuses others.
    pub fn fork_from(mut self, template: &Template) -> Self {
        self.template = Some(ForkFrom::Shared(template.clone()));
        self
    }

    /// Builds the pool. It starts no process: workers start as calls need them, or all at
    /// [`Pool::ready`].
    ///
    /// The pool is driven by the tokio runtime in which this is called. When that does not turn (it
    /// has ended, stands between two `block_on`s, or is blocked), and outside of any, a thread
    /// of the crate's own does it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind`](crate::ErrorKind) `InvalidOption`, and what would keep workers from starting
    /// as far as it can be known: `Unsupported`, `SetUid`, `NotInProgram`, `InsideWorker`,
    /// `NestingTooDeep`, `Forked`; `Spawn` if descriptors, pidfds or threads cannot be had, or `/proc`
    /// is not mounted.
    ///
    /// # Panics
    ///
    /// In a tokio runtime that was built without `enable_io`, as tokio's own sockets do.
    pub fn build(self) -> Result<Pool, Error> {
        let invalid = |option, reason: &str| {
            Error::from(Why::InvalidOption { option, reason: reason.into() })
        };
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if matches!(stream.0, Kind::Piped) {
                return Err(invalid(
                    name,
                    "workers have no handle, which would hold the other end of a pipe; use `Stdio::lines`",
                ));
            }
        }
        let one_a_core =
            || std::thread::available_parallelism().map_or(1, NonZeroUsize::get).__bounds();
        let (min, workers) = size::checked(self.workers.unwrap_or_else(one_a_core))?;
        if min == workers && self.idle_timeout.is_some() {
            return Err(invalid(
                "idle_timeout",
                "of a fixed number of workers none leaves; give a range, as in workers(0..=8)",
            ));
        }
        let mut policy = self.policy;
        policy.min = min;
        policy.idle_limit = Some(self.idle_timeout.unwrap_or(IDLE_TIMEOUT));
        if policy.max_tasks == Some(0) {
            return Err(invalid("max_tasks_per_worker", "no task could ever run"));
        }
        if policy.lifetime == Some(Duration::ZERO) {
            return Err(invalid("max_lifetime", "no task could ever run"));
        }
        if policy.start_attempts == 0 {
            return Err(invalid("start_attempts", "no worker could ever be started"));
        }
        if policy.spares > workers.saturating_mul(64).max(1024) {
            return Err(invalid("spares", "more than the pool could ever need"));
        }
        if self.concurrency == 0 {
            return Err(invalid("concurrency", "no async task could ever run"));
        }
        if self.concurrency > SLOTS_MAX {
            return Err(invalid("concurrency", "more than 65,536 tasks in one worker"));
        }
        if self.queue_limit == Some(0) {
            return Err(invalid("queue_limit", "no task could ever be handed in"));
        }
        if self.queue_limit.is_some_and(|limit| limit > tokio::sync::Semaphore::MAX_PERMITS) {
            return Err(invalid("queue_limit", "more than a queue can hold"));
        }
        if !(FRAME_LIMIT_MIN..=FRAME_LIMIT_MAX).contains(&self.frame_limit) {
            return Err(invalid("frame_limit", "it is not between 1 KiB and 4 GiB - 1 KiB"));
        }
        if self.start_timeout == Some(Duration::ZERO) {
            return Err(invalid("start_timeout", "no worker starts in no time"));
        }
        self.limits.check()?;
        if self.program.is_some() && self.limits != Limits::new() {
            return Err(invalid(
                "limits",
                "each worker limits itself, which another program cannot be relied on to do",
            ));
        }
        let mut limits = self.limits;
        if self.program.is_none() {
            limits.asked.oom_score.get_or_insert(OOM_SCORE);
        }
        let hook = |option, function: Option<Result<Hook, String>>| match function {
            Some(Ok(hook)) if hook.frame.len() > self.frame_limit => {
                Err(invalid(option, "its arguments are larger than frame_limit"))
            }
            Some(_) if self.program.is_some() => Err(invalid(
                option,
                "the workers are another program, which has no function of this one",
            )),
            Some(Err(reason)) => {
                Err(invalid(option, &format!("its arguments cannot be encoded: {reason}")))
            }
            Some(Ok(hook)) => Ok(Some(hook)),
            None => Ok(None),
        };
        let preload_limit = self.preload_timeout;
        let has_own = matches!(self.template, Some(ForkFrom::Own(_)));
        if preload_limit.is_some() && !has_own {
            return Err(invalid("preload_timeout", "the pool has no template of its own"));
        }
        if self.template.is_some() && self.program.is_some() {
            return Err(invalid("template", "another program cannot be forked from this one"));
        }
        let template = match self.template {
            None => None,
            Some(ForkFrom::Own(preload)) => {
                let Surroundings { env, env_clear, current_dir, .. } = self.surroundings.clone();
                let name = self.name.clone();
                let preload = preload?;
                let plan = Plan {
                    env,
                    env_clear,
                    current_dir,
                    name,
                    preload_limit,
                    hello_limit: self.start_timeout,
                    preload,
                };
                Some(Template::of(plan)?)
            }
            Some(ForkFrom::Shared(template)) => {
                let Surroundings { env, env_clear, current_dir, .. } = &self.surroundings;
                if !env.is_empty() || *env_clear || current_dir.is_some() {
                    return Err(invalid(
                        "fork_from",
                        "a worker that is forked has the environment and the directory of its \
                         template: set them there",
                    ));
                }
                Some(template)
            }
        };
        let (init, exit) = (hook("init", self.init)?, hook("exit", self.exit)?);
        let mut name = self.name.unwrap_or_else(program_name);
        name.truncate(
            (0..=name.len().min(NAME_MAX)).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0),
        );
        let config = Config {
            rules: Rules {
                workers,
                concurrency: self.concurrency,
                hello_limit: HELLO_LIMIT,
                start_limit: self.start_timeout,
                low_latency: self.low_latency,
                policy,
            },
            surroundings: self.surroundings,
            name,
            limits: limits.into_message(),
            stdout: self.stdout,
            stderr: self.stderr,
            frame_limit: self.frame_limit,
            queue_limit: self.queue_limit,
            options: self
                .timeout
                .map(|timeout| Arc::new(Options { timeout: Some(timeout), ..Options::default() })),
            init,
            exit,
            program: self.program,
            #[cfg(test)]
            launcher: self.launcher,
            #[cfg(test)]
            run_length: self.run_length,
        };
        let engine = Engine::new(config, template)?;
        Ok(Pool::of(engine, self.manager))
    }
}

/// Encodes the call of a function that every worker runs: its head, the names of the shared
/// objects among its arguments, the arguments.
fn encode_hook<Args, P: ArgsFor<Args>>(
    head: impl FnOnce(&mut Vec<u8>),
    args: &P,
) -> Result<Hook, String> {
    let mut values = Vec::new();
    let limit = frame::BODY_MAX_DEFAULT;
    let (encoded, things) = names::collecting(|| encode_args(args, &mut values, limit));
    encoded.map_err(|e| e.to_string())?;
    let mut out = Vec::new();
    let start = frame::begin(&mut out);
    head(&mut out);
    write_names(&things, &mut out, limit).map_err(|e| e.to_string())?;
    out.append(&mut values);
    frame::finish(&mut out, start);
    let things = (!things.is_empty()).then(|| Arc::new(for_call(things)));
    Ok(Hook { frame: Packet::from(&mut out), things })
}

fn program_name() -> String {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(|path| path.file_name());
    name.map_or_else(|| "procpool".into(), |name| name.to_string_lossy().into_owned())
}
