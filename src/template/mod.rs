//! Templates: processes that preload once and fork workers, which share what was loaded.
//!
//! * `nursery.rs`: the application's side of one, on the supervisor thread;
//! * `elsewhere.rs`: the same on platforms without workers.
//!
//! The template's own side is `worker/template.rs`.

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
mod nursery;
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
)))]
#[path = "elsewhere.rs"]
mod nursery;

pub(crate) use nursery::Nursery;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(procpool_elsewhere)
))]
pub(crate) use nursery::{Newborn, Request};

use crate::error::{Error, Why};
use crate::park::refuse_in_async_context;
use crate::sync::named::write_names;
use crate::task::{ArgsFor, Init, ZeroSized, encode_args, index_of_init};
use crate::wire::packet::Packet;
use crate::wire::value::names;
use crate::wire::{frame, message};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// A process that preloads once, and from which the workers of pools and single processes are
/// forked: they start in a fraction of the time of a fresh start, and share the memory of what was
/// preloaded until one of them writes to it (copy-on-write).
///
/// It is a cheap clone; several pools and processes may have one template
/// ([`Builder::fork_from`](crate::Builder::fork_from),
/// [`ProcessBuilder::fork_from`](crate::ProcessBuilder::fork_from)). A pool that has one for itself
/// is built with [`Builder::template`](crate::Builder::template).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::{Pool, Process, Template};
/// use std::convert::Infallible;
///
/// /// Runs once, in the template.
/// fn load(words: Vec<String>) -> Result<Vec<String>, Infallible> { Ok(words) }
/// /// Runs in processes that are forked from it.
/// fn count() -> usize { procpool::state::<Vec<String>>().unwrap().len() }
///
/// let template = Template::new(load, vec!["one".to_string(), "two".to_string()])?;
/// let pool = Pool::builder().workers(2).fork_from(&template).build()?;
/// assert_eq!(pool.spawn(count, ()).await?, 2);
///
/// template.ready().await?;
/// assert_eq!(Process::builder().fork_from(&template).spawn(count, ())?.await?, 2);
/// # Ok(())
/// # }
/// ```
///
/// # The preload function
///
/// It is what [`Builder::on_worker_start`](crate::Builder::on_worker_start) takes: a sync or async
/// function that returns `Result<T, E>`. The `T` stays in the template, and every process that is
/// forked from it finds it by [`procpool::state`](crate::state()). An async one runs in a
/// current-thread runtime that ends before the first fork. It runs when the first process is wanted,
/// or by [`ready`](Self::ready).
///
/// # What may be forked
///
/// Only a process of one thread. The template looks before each fork. If other threads run, or the
/// preload function has left an event set (a runtime that was kept), an `io_uring` or a graphics
/// device open, nothing is forked, and the error
/// ([`NotForkable`](crate::ErrorKind::NotForkable)) names them. What a fork duplicates without harm
/// to memory (random number generators, file offsets) the guide tells:
/// [`start_methods`](crate::guide::start_methods).
///
/// # Its end
///
/// The template ends with the last handle, pool and process builder that has it, and with the
/// application, however that ends. Processes that were forked from it are children of the
/// application, and run on. If the template ends by itself, or is killed, another one is started for
/// the next process that is wanted, and preloads again.
#[derive(Clone)]
pub struct Template {
    held: Arc<Held>,
}

/// Closed with the last handle.
struct Held(Arc<Nursery>);

impl Drop for Held {
    fn drop(&mut self) {
        Nursery::close(&self.0);
    }
}

/// The options of a [`Template`]; made by [`Template::builder`].
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct TemplateBuilder {
    pub(crate) plan: Plan,
}

/// What the template is started with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Variables to set, or to remove; of several for one name, the last counts.
    pub(crate) env: Vec<(OsString, Option<OsString>)>,
    pub(crate) env_clear: bool,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) name: Option<String>,
    pub(crate) preload_limit: Option<Duration>,
    /// How long the process may take until it says hello, if not as long as any.
    pub(crate) hello_limit: Option<Duration>,
    /// The whole `INIT` frame.
    pub(crate) preload: Packet,
}

impl TemplateBuilder {
    /// Sets a variable in the environment of the template, and so of what is forked from it.
    /// Default: the application's environment when the template is started.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.plan.env.push((name.into(), Some(value.into())));
        self
    }

    /// Removes a variable from the environment of the template.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.plan.env.push((name.into(), None));
        self
    }

    /// Starts the template with no variables but those set by [`env`](Self::env), before or after
    /// this call.
    pub fn env_clear(mut self) -> Self {
        self.plan.env_clear = true;
        self
    }

    /// The current directory of the template, and so of what is forked from it. Default: the
    /// application's when the template is started.
    pub fn current_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.plan.current_dir = Some(path.into());
        self
    }

    /// The template's name, as `ps` shows it, where 15 bytes of it are kept. Default: the program's
    /// own name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.plan.name = Some(name.into());
        self
    }

    /// How long the preload function may take. Then the template is killed, and what waits for it
    /// is told [`PreloadFailed`](crate::ErrorKind::PreloadFailed). Default: no limit. Zero is
    /// refused by [`build`](Self::build).
    pub fn preload_timeout(mut self, limit: Duration) -> Self {
        self.plan.preload_limit = Some(limit);
        self
    }

    /// Builds the template. It starts no process.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](crate::ErrorKind::InvalidOption) for a time limit of zero, for arguments
    /// that cannot be encoded, and for shared objects among them (give those to
    /// [`on_worker_start`](crate::Builder::on_worker_start): each worker has a connection of its
    /// own); and what would keep workers from starting, as of
    /// [`Builder::build`](crate::Builder::build).
    pub fn build<F, Args, Marker, P>(mut self, _preload: F, args: P) -> Result<Template, Error>
    where
        F: Init<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        self.plan.preload = encode_preload::<F, Args, Marker, P>(&args)?;
        Template::of(self.plan)
    }
}

/// Encodes the whole `INIT` frame of a preload function.
pub(crate) fn encode_preload<F, Args, Marker, P>(args: &P) -> Result<Packet, Error>
where
    F: Init<Args, Marker>,
    P: ArgsFor<Args>,
{
    let invalid = |reason: String| Error::from(Why::InvalidOption { option: "template", reason });
    let limit = frame::BODY_MAX_DEFAULT;
    let mut values = Vec::new();
    let (encoded, things) = names::collecting(|| encode_args(args, &mut values, limit));
    encoded.map_err(|e| invalid(format!("its arguments cannot be encoded: {e}")))?;
    if !things.is_empty() {
        return Err(invalid(
            "handles of shared objects cannot be preloaded; give them to on_worker_start".into(),
        ));
    }
    let mut out = Vec::new();
    let start = frame::begin(&mut out);
    message::init(&mut out, index_of_init::<F, Args, Marker>().0, F::__ARITY + 1);
    write_names(&[], &mut out, limit).map_err(|e| invalid(e.to_string()))?;
    out.append(&mut values);
    if out.len() - start > limit {
        return Err(invalid(format!("its arguments are larger than {limit} bytes")));
    }
    frame::finish(&mut out, start);
    Ok(Packet::from(&mut out))
}

impl Template {
    /// A template with the default options. It starts no process. See [`TemplateBuilder::build`].
    ///
    /// # Errors
    ///
    /// As [`TemplateBuilder::build`].
    pub fn new<F, Args, Marker, P>(preload: F, args: P) -> Result<Self, Error>
    where
        F: Init<Args, Marker>,
        P: ArgsFor<Args>,
    {
        Self::builder().build(preload, args)
    }

    /// The options of a template.
    pub fn builder() -> TemplateBuilder {
        TemplateBuilder::default()
    }

    pub(crate) fn of(plan: Plan) -> Result<Self, Error> {
        if plan.preload_limit == Some(Duration::ZERO) {
            let (option, reason) = ("preload_timeout", "nothing is loaded in no time".into());
            return Err(Why::InvalidOption { option, reason }.into());
        }
        Ok(Self { held: Arc::new(Held(Nursery::new(plan)?)) })
    }

    pub(crate) fn nursery(&self) -> &Arc<Nursery> {
        &self.held.0
    }

    /// Starts the template, if it does not run, and waits until it has preloaded.
    ///
    /// # Errors
    ///
    /// [`PreloadFailed`](crate::ErrorKind::PreloadFailed),
    /// [`NotForkable`](crate::ErrorKind::NotForkable), and those of a failed start. The next call
    /// starts it anew.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing: the template is started all the same.
    pub async fn ready(&self) -> Result<(), Error> {
        self.wanted().await.unwrap_or_else(|_| Err(Why::Forked.into()))
    }

    /// Waits on this thread; see [`ready`](Self::ready).
    ///
    /// # Errors
    ///
    /// As [`ready`](Self::ready).
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do.
    #[track_caller]
    pub fn blocking_ready(&self) -> Result<(), Error> {
        refuse_in_async_context();
        self.wanted().blocking_recv().unwrap_or_else(|_| Err(Why::Forked.into()))
    }

    fn wanted(&self) -> oneshot::Receiver<Result<(), Error>> {
        let (sender, receiver) = oneshot::channel();
        // Whoever does not wait any more need not be told.
        Nursery::want_ready(&self.held.0, Box::new(move |result| drop(sender.send(result))));
        receiver
    }

    /// The number of the template's process, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.held.0.pid()
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
