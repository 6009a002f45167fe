//! The options of a process.

use super::Process;
use super::detached::DaemonStart;
use super::machine;
use crate::error::{Error, Why};
use crate::limits::Limits;
use crate::stdio::{Kind, Stdio};
use crate::sync::named::{for_call, write_names};
use crate::task::{ArgsFor, Callable, Task, ZeroSized, encode_args, index_of};
use crate::template::Template;
use crate::wire::message::Callee;
use crate::wire::value::EncodeError;
use crate::wire::value::names::{self, Thing};
use crate::wire::{frame, message};
use std::ffi::OsString;
use std::path::PathBuf;

/// The number of the one call.
const CALL: u64 = 1;

/// The options of a [`Process`]; made by [`Process::builder`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procpool::Process;
///
/// let child = Process::builder()
///     .name("reader")
///     .env("LANG", "C")
///     .current_dir("/")
///     .kill_on_drop(true)
///     .spawn(|| std::env::current_dir().unwrap(), ())?;
/// assert_eq!(child.await?, std::path::Path::new("/"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `spawn` or `detach`"]
pub struct ProcessBuilder {
    env: Vec<(OsString, Option<OsString>)>,
    env_clear: bool,
    current_dir: Option<PathBuf>,
    name: Option<String>,
    group: bool,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    daemon: bool,
    umask: Option<u32>,
    limits: Limits,
    kill_on_drop: bool,
    template: Option<Template>,
}

/// What is to be started.
#[derive(Debug)]
pub(super) struct Order {
    /// Variables to set, or to remove; of several for one name, the last counts.
    pub(super) env: Vec<(OsString, Option<OsString>)>,
    pub(super) env_clear: bool,
    pub(super) current_dir: Option<PathBuf>,
    pub(super) name: Option<String>,
    pub(super) group: bool,
    pub(super) stdin: Stdio,
    pub(super) stdout: Stdio,
    pub(super) stderr: Stdio,
    /// It ends with its parent.
    pub(super) tied: bool,
    pub(super) detach: bool,
    pub(super) umask: Option<u32>,
    pub(super) limits: Option<message::Limits>,
    pub(super) function: &'static str,
    /// The whole `CALL` frame.
    pub(super) call: Vec<u8>,
    /// The shared objects that it names.
    pub(super) things: Vec<Thing>,
    /// It is forked from it.
    pub(super) template: Option<Template>,
}

impl Default for ProcessBuilder {
    fn default() -> Self {
        Self {
            env: Vec::new(),
            env_clear: false,
            current_dir: None,
            name: None,
            group: true,
            stdin: None,
            stdout: None,
            stderr: None,
            daemon: true,
            umask: None,
            limits: Limits::new(),
            kill_on_drop: false,
            template: None,
        }
    }
}

impl ProcessBuilder {
    /// Sets a variable in the process's environment. Default: its environment is the application's
    /// at the time of the start.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), Some(value.into())));
        self
    }

    /// Removes a variable from the process's environment.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.env.push((name.into(), None));
        self
    }

    /// Starts the process with no variables but those set by [`env`](Self::env), before or after
    /// this call.
    pub fn env_clear(mut self) -> Self {
        self.env_clear = true;
        self
    }

    /// The process's current directory; a relative path is looked up from the application's.
    /// Default: the application's; for [`detach`](Self::detach) the root directory, so that no
    /// file system is kept from being unmounted.
    pub fn current_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(path.into());
        self
    }

    /// The process's name, as `ps` and `/proc/PID/comm` show it, where 15 bytes of it are kept.
    /// Default: the program's own name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether the process leads a process group of its own. Default: true.
    ///
    /// Then [`kill`](Process::kill) ends what it has started as well, what is left of its group
    /// ends with it, and the terminal's Ctrl-C and Ctrl-Z reach the application alone. Without
    /// it both reach the process directly, and processes that it has started outlive it. A
    /// process that is to read from the application's terminal needs `false`: the kernel stops
    /// a background group that tries (`SIGTTIN`, termios(3)).
    ///
    /// A process that is [detached](Self::detach) stands in a session of its own, whatever is said
    /// here.
    pub fn process_group(mut self, own: bool) -> Self {
        self.group = own;
        self
    }

    /// The process's standard input. Default: nothing, as for the workers of a pool: two who read
    /// from one terminal get in each other's way.
    pub fn stdin(mut self, stream: impl Into<Stdio>) -> Self {
        self.stdin = Some(stream.into());
        self
    }

    /// The process's standard output. Default: the application's; for [`detach`](Self::detach)
    /// nothing.
    pub fn stdout(mut self, stream: impl Into<Stdio>) -> Self {
        self.stdout = Some(stream.into());
        self
    }

    /// The process's standard error. Default: the application's; for [`detach`](Self::detach)
    /// nothing.
    ///
    /// What the process writes there before it has taken up its work (constructors of libraries
    /// may) is kept in memory until then, and part of the error should it fail to start.
    pub fn stderr(mut self, stream: impl Into<Stdio>) -> Self {
        self.stderr = Some(stream.into());
        self
    }

    /// Whether the process ends with the application. Default: true.
    ///
    /// * `true`: when the application ends, however it does (it returns, exits, crashes, is
    ///   killed), the kernel kills the process, with its group if it leads one, at once.
    /// * `false`: it goes on. As long as the application lives, all is as with `true`: the handle
    ///   waits, signals, and gets the result, and the application reaps it. When the application
    ///   has ended, init adopts the process; the result of its function is thrown away when it
    ///   comes, and so is its error. Pipes to it are closed. What it leaves of its group when it
    ///   ends is left alone then. The streams that it has inherited it keeps open: whoever reads
    ///   the application's output to its end waits for it, too, unless it is given others.
    ///
    ///   The application's exit does not wait for it to end; it waits only (by an exit handler, some
    ///   milliseconds after the start at most) until the process has all that it needs. An
    ///   application that is *killed* before that takes the process along; [`Process::started`]
    ///   tells when that is over.
    ///
    /// These are Python's words, with one difference: there a process that is not a daemon is
    /// waited for at exit. Here that is said in the program, by awaiting it. For a daemon of
    /// the operating system see [`detach`](Self::detach).
    pub fn daemon(mut self, ends_with_parent: bool) -> Self {
        self.daemon = ends_with_parent;
        self
    }

    /// The process's file mode creation mask (umask(2)), at most `0o777`. Default: the
    /// application's.
    pub fn umask(mut self, mask: u32) -> Self {
        self.umask = Some(mask);
        self
    }

    /// What the process may use of the machine. Default: what the application may. It sets its
    /// limits itself, before its function runs; see [`Limits`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Whether dropping the handle kills the process. Default: false, it runs on. See [`Process`],
    /// *Drop*.
    pub fn kill_on_drop(mut self, kill: bool) -> Self {
        self.kill_on_drop = kill;
        self
    }

    /// The process is forked from this template, and finds what that has preloaded by
    /// [`procpool::state`](crate::state()). It has the template's environment and current directory:
    /// [`spawn`](Self::spawn) refuses others. See [`Template`].
    pub fn fork_from(mut self, template: &Template) -> Self {
        self.template = Some(template.clone());
        self
    }

    /// Starts the process, and gives its handle. As [`Process::spawn`], with these options.
    ///
    /// # Errors
    ///
    /// See [`Process::spawn`]; and [`InvalidOption`](crate::ErrorKind::InvalidOption). With
    /// [`fork_from`](Self::fork_from), [`TemplateNotReady`](crate::ErrorKind::TemplateNotReady) if
    /// the template has not preloaded, which is started then;
    /// [`ForkFailed`](crate::ErrorKind::ForkFailed) and
    /// [`NotForkable`](crate::ErrorKind::NotForkable).
    ///
    /// # Blocking
    ///
    /// For the exec, some 2 ms, as `tokio::process::Command::spawn` does; for 30 seconds at most. Or
    /// for the fork, some 100 us; for 5 seconds at most.
    pub fn spawn<F, Args, Marker, P>(
        self,
        _function: F,
        args: P,
    ) -> Result<Process<F::Output>, Error>
    where
        F: Callable<Args> + Task<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        let kill_on_drop = self.kill_on_drop;
        let (machine, streams) = machine::spawn(self.order::<F, Args, Marker, P>(&args, false)?)?;
        Ok(Process::new(machine, streams, kill_on_drop))
    }

    /// Starts a daemon of the operating system: a process that has nothing to do with the
    /// application any more.
    ///
    /// It is started by a double fork: adopted by init (or by the nearest subreaper, prctl(2)), in
    /// a session of its own and not the leader of it, so that it never gets a controlling
    /// terminal. It begins in the directory `/`, with its standard streams at `/dev/null`,
    /// unless said otherwise here; [`umask`](Self::umask), environment and name are as
    /// set here. It holds no pipe, socket or file of the application's, whatever that left open at
    /// an exec. What its function returns is thrown away; its exit code is 0 for a return and
    /// 101 for a panic. `procpool::parent()` is `None` there.
    ///
    /// The future resolves when the daemon has all that it needs and what started it has ended. It
    /// need not be polled for that, and dropping it changes nothing. The application's exit
    /// waits until then, as for [`daemon(false)`](Self::daemon).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use procpool::Process;
    ///
    /// fn serve(seconds: u64) { std::thread::sleep(std::time::Duration::from_secs(seconds)) }
    ///
    /// let daemon = Process::builder().name("sleeper").umask(0o027).detach(serve, 0).await?;
    /// assert_ne!(daemon.pid(), std::process::id());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Through the future: those of [`spawn`](Self::spawn);
    /// [`DiedAtStart`](crate::ErrorKind::DiedAtStart) if the second fork fails, with the reason
    /// in [`stderr_tail`](crate::Error::stderr_tail);
    /// [`InvalidOption`](crate::ErrorKind::InvalidOption) for a stream that is piped, and for
    /// [`kill_on_drop`](Self::kill_on_drop).
    pub fn detach<F, Args, Marker, P>(self, _function: F, args: P) -> DaemonStart
    where
        F: Callable<Args> + Task<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let () = ZeroSized::<F>::PROVEN;
        DaemonStart::new(self.order::<F, Args, Marker, P>(&args, true).and_then(machine::detach))
    }

    fn order<F, Args, Marker, P>(self, args: &P, detach: bool) -> Result<Order, Error>
    where
        F: Callable<Args> + Task<Args, Marker>,
        P: ArgsFor<Args>,
    {
        let invalid = |option, reason: &str| {
            Err(Error::from(Why::InvalidOption { option, reason: reason.into() }))
        };
        if self.umask.is_some_and(|mask| mask > 0o777) {
            return invalid("umask", "a mask has nine bits");
        }
        self.limits.check()?;
        if detach && self.kill_on_drop {
            return invalid("kill_on_drop", "a detached process has no handle");
        }
        for (name, stream) in
            [("stdin", &self.stdin), ("stdout", &self.stdout), ("stderr", &self.stderr)]
        {
            if matches!(stream, Some(Stdio(Kind::Lines(_)))) {
                return invalid(
                    name,
                    "`Stdio::lines` is for workers of a pool; use `Stdio::piped`",
                );
            }
            if detach && matches!(stream, Some(Stdio(Kind::Piped))) {
                return invalid(
                    name,
                    "a detached process has no handle, which would hold the other end of a pipe",
                );
            }
        }
        if self.template.is_some() {
            if detach {
                return invalid("fork_from", "a process that detaches itself is started afresh");
            }
            if !self.env.is_empty() || self.env_clear || self.current_dir.is_some() {
                return invalid(
                    "fork_from",
                    "a process that is forked has the environment and the directory of its \
                     template: set them there",
                );
            }
        }
        let function = std::any::type_name::<F>();
        let mut call = Vec::new();
        let start = frame::begin(&mut call);
        message::call(
            &mut call,
            CALL,
            0,
            Callee::Index(index_of::<F, Args, Marker>().0),
            F::__ARITY,
        );
        let limit = frame::BODY_MAX_DEFAULT;
        let room = limit - (call.len() - start);
        let why = |error| match error {
            EncodeError::TooLarge { .. } => Why::ArgumentTooLarge { function, limit },
            error => Why::ArgumentEncode { function, reason: error.to_string() },
        };
        let begun = call.len();
        let (encoded, things) = names::collecting(|| encode_args(args, &mut call, room));
        encoded.map_err(why)?;
        if !things.is_empty() {
            // It is known only now that there are names, which stand before the arguments.
            let args = call.split_off(begun);
            call.truncate(start);
            message::call(
                &mut call,
                CALL,
                message::FLAG_NAMES,
                Callee::Index(index_of::<F, Args, Marker>().0),
                F::__ARITY + 1,
            );
            write_names(&things, &mut call, start + limit).map_err(why)?;
            call.extend(args);
            if call.len() - start > limit {
                return Err(Why::ArgumentTooLarge { function, limit }.into());
            }
        }
        frame::finish(&mut call, start);
        let output = || if detach { Stdio::null() } else { Stdio::inherit() };
        Ok(Order {
            env: self.env,
            env_clear: self.env_clear,
            current_dir: self.current_dir.or_else(|| detach.then(|| "/".into())),
            name: self.name,
            group: self.group && !detach,
            stdin: self.stdin.unwrap_or_else(Stdio::null),
            stdout: self.stdout.unwrap_or_else(output),
            stderr: self.stderr.unwrap_or_else(output),
            tied: self.daemon && !detach,
            detach,
            umask: self.umask,
            limits: self.limits.into_message(),
            function,
            call,
            things: for_call(things),
            template: self.template,
        })
    }
}
