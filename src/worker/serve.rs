//! The life of a worker: HELLO, `init`, then tasks until the pool closes its side of the socket.
//!
//! **Runtime.** Sync tasks run on the main thread, outside of any runtime. The first async task
//! creates a current-thread runtime, in which async tasks run concurrently; the pool sends no sync
//! task meanwhile. From then on the worker waits for messages within that runtime, so that what a
//! task has spawned there makes progress.
//!
//! **Claims and replies.** If the process dies, the pool knows for each task whether it had begun
//! and whether it had been answered:
//!
//! * A task is claimed before it begins. A task that the pool has revoked is skipped.
//! * Its reply is committed before the next sync task begins: to the outbox if it fits there, else
//!   to the socket.
//! * Only then is the task marked as done.
//!
//! The same holds for the items of a batch (a *run* in the code), with one difference: one claim
//! begins the batch and its first item, and each further item is counted (`wire/claim.rs`).

use super::inbox::{Inbox, Next};
use super::limits::{self, TaskClock};
use super::outlet::TaskOutlet;
use super::template::{self, Left};
use super::{lifeline, once, panics, raw, start};
use crate::process::{PeerFd, WorkerMemory, fork, sys};
use crate::reactor::readiness::watch_readable;
use crate::sync::named::{self, Named, Unknown};
use crate::sync::remote::driven;
use crate::sync::{stopping, wait};
use crate::task::{self, Run, RunAsync, RunError, RunSync, Verdict};
use crate::wire::claim::{Begun, Claim, Progress};
use crate::wire::frame;
use crate::wire::message::{self, Failed, Hello, InitFailed, Message, Welcome, kind};
use crate::wire::outbox::Ring;
use crate::wire::value::names::{self, Thing};
use futures::FutureExt;
use futures::future::{AbortHandle, Abortable, Aborted, Either, select};
use futures::stream::{FuturesUnordered, StreamExt};
use nix::errno::Errno;
use std::collections::HashMap;
use std::ffi::c_int;
use std::fs::File;
use std::io::{self, IoSlice, Read, Seek, Write};
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// The handshake's messages are small.
const HANDSHAKE_LIMIT: usize = 64 << 10;

/// How this process has come to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A fresh start of the program.
    Started,
    /// A fresh start that has left its parent.
    Detached,
    /// A fork of a template.
    Forked {
        /// The application makes it the leader of a process group, before it says anything to it.
        group: bool,
    },
}

/// Serves the pool at the other end of `socket` until it closes its side, runs the one call of a
/// single process, or forks workers as a template; gives the exit code. An error means that there is
/// no such pool, or that it does not keep to the protocol.
pub(super) fn serve(socket: OwnedFd, origin: Origin) -> Result<c_int, String> {
    let is_detached = origin == Origin::Detached;
    fork::arm().map_err(|e| format!("arming the fork guard: {e}"))?;
    let group = match origin {
        Origin::Forked { group } => group,
        _ => lifeline::leads_group(),
    };
    let (lifeline, theirs) =
        lifeline::arm(group).map_err(|e| format!("arming the lifeline: {e}"))?;
    if !is_detached {
        lifeline::arm_parent_death(group)
            .map_err(|e| format!("arming the parent-death signal: {e}"))?;
    }
    let (welcome, memory) = shake_hands(&socket, theirs, origin)?;
    raw::set_comm(&welcome.name);
    start::set_depth(welcome.depth);
    if welcome.template {
        let inbox = Inbox::new(socket, welcome.frame_limit as usize);
        return match be_template(inbox, memory, lifeline)? {
            Left::Template => Ok(0),
            Left::Worker { socket, group } => serve(socket, Origin::Forked { group }),
        };
    }
    panics::install(Some(memory));
    // Without it an overflow is a plain SIGSEGV: no reason not to work.
    let _ = raw::note_stack_overflow(memory);
    let _ = raw::note_out_of_memory(memory);
    let clock = match &welcome.limits {
        Some(limits) => limits::apply(limits).map_err(|e| format!("limiting itself: {e}"))?,
        None => TaskClock::unlimited(),
    };

    let limit = welcome.frame_limit as usize;
    if let Some(single) = &welcome.single {
        raw::take_signals_back().map_err(|e| format!("setting a signal's action: {e}"))?;
        return once::serve(Inbox::new(socket, limit), limit, lifeline, single, is_detached, clock);
    }
    let _lifeline = lifeline;
    let inbox = Inbox::new(socket, limit);
    let mut worker = Worker {
        inbox,
        memory,
        out: Vec::new(),
        bell: bell(),
        limit,
        clock,
        runtime: None,
        exit: None,
    };
    wait::count_waits(memory.waits());
    // A forked copy does not have that memory.
    task::set_asked(Box::new(|slot, id| {
        !fork::is_forked_copy() && memory.claims().look(Claim { slot, id }) == Progress::Asked
    }));
    if welcome.init {
        match worker.init()? {
            Ok(kept) => task::keep(kept),
            Err(failed) => return worker.fail(failed).map(|()| 0),
        }
        panics::install(Some(memory)); // `init` may have put a hook of its own before ours
    }
    if welcome.exit {
        worker.exit = Some(worker.read_exit()?);
    }
    worker.out.clear();
    let start = frame::begin(&mut worker.out);
    message::ready(&mut worker.out);
    frame::finish(&mut worker.out, start);
    worker.inbox.send(&worker.out).map_err(lost)?;
    worker.out.clear();
    worker.run().map(|()| 0)
}

/// Preloads, and forks workers.
fn be_template(
    inbox: Inbox,
    memory: &'static WorkerMemory,
    lifeline: lifeline::Lifeline,
) -> Result<Left, String> {
    // Not with the memory, which is not mapped in the workers that are forked.
    panics::install(None);
    let mut worker = Worker {
        inbox,
        memory,
        out: Vec::new(),
        bell: bell(),
        limit: HANDSHAKE_LIMIT,
        clock: TaskClock::unlimited(),
        runtime: None,
        exit: None,
    };
    let make = || drop(make_runtime());
    let renewed = template::sockets_of_runtimes(make)
        .map_err(|e| format!("looking at the descriptors of a runtime: {e}"))?;
    let preloaded = worker.init()?;
    // Its tasks first, then the threads.
    if let Some(Watching { readiness, inside: Async { local, mut runtime } }) =
        worker.runtime.take()
    {
        {
            let _inside = runtime.enter();
            drop((readiness, local));
        }
        if let Some(runtime) = runtime.0.take() {
            template::end_runtime(runtime);
        }
    }
    template::flush();
    let ready = preloaded.and_then(|kept| {
        template::check().map_err(|reason| InitFailed::NotForkable { reason }).map(|()| kept)
    });
    match ready {
        Ok(kept) => task::keep_preloaded(kept),
        Err(failed) => return worker.fail(failed).map(|()| Left::Template),
    }
    worker.inbox.send(&in_frame(message::ready)).map_err(lost)?;
    template::serve(worker.inbox, lifeline, &renewed)
}

pub(super) fn in_frame(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, write);
    out
}

fn bell() -> Vec<u8> {
    in_frame(message::bell)
}

pub(super) fn lost(error: io::Error) -> String {
    format!("the pool's socket: {error}")
}

fn shake_hands(
    socket: &OwnedFd,
    lifeline: OwnedFd,
    origin: Origin,
) -> Result<(Welcome, &'static WorkerMemory), String> {
    let mut out = Vec::new();
    let start = frame::begin(&mut out);
    let hello = Hello {
        protocol: message::PROTOCOL,
        version: env!("CARGO_PKG_VERSION").into(),
        fingerprint: Some(task::fingerprint()),
    };
    message::control(&mut out, kind::HELLO, &hello);
    frame::finish(&mut out, start);
    // The socket is new and empty: it takes a few bytes whole.
    let sent = sys::send_with_fds(socket.as_fd(), &[IoSlice::new(&out)], &[lifeline.as_fd()])
        .map_err(lost)?;
    if sent != out.len() {
        return Err("the socket did not take the hello".into());
    }
    drop(lifeline); // from here on the application's copy is the only one

    let mut buffer = frame::FrameBuffer::new(HANDSHAKE_LIMIT);
    let mut descriptors = Vec::new();
    let range = loop {
        if let Some(range) = buffer.next_frame().map_err(|e| e.to_string())? {
            break range;
        }
        raw::wait_readable(socket.as_fd()).map_err(lost)?;
        // No more than the rest of this frame: what follows belongs to the inbox.
        let due = buffer.due();
        let received = match sys::recv_with_fds(socket.as_fd(), &mut buffer.space()[..due]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            other => other.map_err(lost)?,
        };
        if received.bytes == 0 {
            return Err("the pool has gone".into());
        }
        buffer.filled(received.bytes);
        descriptors.extend(received.fds.into_iter().map(PeerFd::trusted));
    };
    let message = Message::new(buffer.bytes(range)).map_err(|e| e.to_string())?;
    if message.kind != kind::WELCOME {
        return Err(format!("a message of kind {} instead of a welcome", message.kind));
    }
    let welcome: Welcome = message.map().map_err(|e| e.to_string())?;
    let stdin = if welcome.single.as_ref().is_some_and(|single| single.stdin) {
        descriptors.pop()
    } else {
        None
    };
    let [memory, stderr] = <[OwnedFd; 2]>::try_from(descriptors)
        .map_err(|d| format!("{} descriptors with the welcome, not 2", d.len()))?;
    if let Some(stdin) = stdin {
        nix::unistd::dup2_stdin(stdin).map_err(|e| format!("taking over standard input: {e}"))?;
    }
    let memory = WorkerMemory::from_fd(memory, welcome.slots, welcome.ring)
        .map_err(|e| format!("the worker's memory: {e}"))?;
    take_over_stderr(stderr, origin).map_err(|e| format!("taking over standard error: {e}"))?;
    // For ever: the panic hook and the signal handler use it until the process ends.
    Ok((welcome, Box::leak(Box::new(memory))))
}

/// What constructors wrote so far went to a file; it is written out, and the rest goes there
/// directly. A forked worker has had no such file, but the standard error of its template.
fn take_over_stderr(stderr: OwnedFd, origin: Origin) -> io::Result<()> {
    let mut early = Vec::new();
    if !matches!(origin, Origin::Forked { .. })
        && let Ok(early_stderr) = io::stderr().as_fd().try_clone_to_owned()
    {
        let mut file = File::from(early_stderr);
        // What is no such file (somebody has put another in its place) is left alone.
        if file.rewind().is_ok() {
            let _ = file.read_to_end(&mut early);
        }
    }
    nix::unistd::dup2_stderr(stderr)?;
    let _ = io::stderr().write_all(&early);
    Ok(())
}

struct Worker {
    inbox: Inbox,
    memory: &'static WorkerMemory,
    /// The reply that is being made.
    out: Vec<u8>,
    /// A whole frame.
    bell: Vec<u8>,
    limit: usize,
    /// Limits each sync task.
    clock: TaskClock,
    /// Made by the first async function.
    runtime: Option<Watching>,
    exit: Option<Exit>,
}

/// What is run when the pool has closed its side: a task whose result nobody wants, and its
/// arguments.
struct Exit {
    run: Run,
    args: Vec<u8>,
    things: Result<Vec<Thing>, String>,
}

/// A function that the pool has every worker run, as its frame says it.
struct Hook {
    run: Run,
    /// The references that came with it.
    things: Result<Vec<Thing>, String>,
    /// Where the arguments are in the inbox.
    args: Range<usize>,
}

/// Where async tasks run: on this thread, with what they leave behind.
///
/// Dropping it drops the tokio tasks that are left. It waits for none of the threads that
/// `spawn_blocking` has started: they end with the process, which may have exit handlers to run.
pub(super) struct Async {
    // Dropped before its runtime, in which its tasks may still have timers.
    pub(super) local: LocalSet,
    pub(super) runtime: Background,
}

/// The runtime of a pool's worker, in which it also waits for calls.
struct Watching {
    readiness: AsyncFd<OwnedFd>,
    inside: Async,
}

impl Watching {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.inside.local.block_on(&self.inside.runtime, future)
    }
}

/// A runtime whose drop waits for no thread.
pub(super) struct Background(Option<Runtime>);

impl Async {
    pub(super) fn new() -> Result<Self, String> {
        let runtime = make_runtime()?;
        Ok(Self { local: LocalSet::new(), runtime: Background(Some(runtime)) })
    }
}

impl Deref for Background {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0.as_ref().expect("the runtime is there until it is dropped")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A call, as its frame says it.
pub(super) struct Call {
    pub(super) claim: Claim,
    /// Which try of the task it is, from 1.
    attempt: u8,
    timed: bool,
    /// `None`: as the environment says.
    pub(super) backtrace: Option<bool>,
    pub(super) run: Run,
    /// It sends items.
    yields: bool,
    /// The pool was told that it has begun.
    is_told: bool,
    /// The shared objects that its arguments name.
    named: Option<Named>,
    /// Where in the frame the arguments begin; or the items.
    pub(super) args: usize,
    /// It is a run, of so many.
    pub(super) items: Option<u16>,
}

/// Which way a reply may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Any,
    /// By the socket: behind what was sent of the task before.
    Socket,
}

impl Call {
    fn way(&self) -> Way {
        if self.yields || self.is_told { Way::Socket } else { Way::Any }
    }

    /// The references that came with it: counted for this process, so they are to be taken once,
    /// also if it is not run.
    pub(super) fn receive(&mut self) -> Result<Vec<Thing>, Failed> {
        self.named.take().map_or(Ok(Vec::new()), named::received).map_err(
            |Unknown { manager, reason }| Failed::Arguments { reason, unattached: Some(manager) },
        )
    }
}

/// An encoded result, and the references that it names.
pub(super) struct Encoded {
    pub(super) value: Vec<u8>,
    pub(super) named: Vec<Thing>,
    pub(super) verdict: Verdict,
}

/// A call that breaks the protocol is no call: the worker ends.
pub(super) fn read_call(body: &[u8]) -> Result<Call, String> {
    let mut message = Message::new(body).map_err(|e| e.to_string())?;
    if message.kind == kind::RUN {
        let message::RunHead { slot, attempt, id, flags, task, items, at } =
            message::read_run(body).map_err(|e| e.to_string())?;
        let entry = task::entry(task)
            .ok_or_else(|| format!("a run of task {task}, which does not exist"))?;
        let (backtrace, run) = (wants_backtrace(flags), entry.run);
        if !matches!(run, Run::Sync(_)) {
            return Err(format!("a run of task {task}, which is not sync"));
        }
        return Ok(Call {
            claim: Claim { slot, id },
            attempt,
            timed: false,
            backtrace,
            run,
            yields: false,
            is_told: false,
            named: None,
            args: at,
            items: Some(items),
        });
    }
    if message.kind != kind::CALL {
        return Err(format!("a message of kind {} instead of a call", message.kind));
    }
    let slot = message.uint::<u16>().map_err(|e| e.to_string())?;
    let attempt = message.uint::<u8>().map_err(|e| e.to_string())?;
    let mut number = || message.uint::<u64>().map_err(|e| e.to_string());
    let (id, flags, index) = (number()?, number()?, number()?);
    let entry = u32::try_from(index)
        .ok()
        .and_then(task::entry)
        .ok_or_else(|| format!("a call of task {index}, which does not exist"))?;
    let (_, mut args) = message.rest();
    let has = |flag: u8| flags & u64::from(flag) != 0;
    let mut named = None;
    if has(message::FLAG_NAMES) {
        let (names, len) =
            Named::read(&body[args..]).map_err(|e| format!("the names of a call: {e}"))?;
        named = Some(names);
        args += len;
    }
    let backtrace = wants_backtrace(flags as u8);
    let timed = has(message::FLAG_TIMED);
    Ok(Call {
        claim: Claim { slot, id },
        attempt,
        timed,
        backtrace,
        run: entry.run,
        yields: has(message::FLAG_YIELDS),
        is_told: false,
        named,
        args,
        items: None,
    })
}

fn wants_backtrace(flags: u8) -> Option<bool> {
    let has = |flag: u8| flags & flag != 0;
    (has(message::FLAG_BACKTRACE) || has(message::FLAG_NO_BACKTRACE))
        .then(|| has(message::FLAG_BACKTRACE))
}

/// After user code: a forked copy of the worker must not touch the socket.
pub(super) fn guard_against_fork() {
    if fork::is_forked_copy() {
        raw::exit_now();
    }
}

pub(super) fn caught(payload: Box<dyn std::any::Any + Send>) -> Failed {
    let panics::Place { location, backtrace } = panics::place_of(&*payload);
    let failed =
        Failed::Panicked { message: panics::message(&*payload).to_owned(), location, backtrace };
    drop_payload(payload);
    failed
}

pub(super) fn why(error: RunError) -> Failed {
    match error {
        RunError::Arguments(reason) => Failed::Arguments { reason, unattached: None },
        RunError::Result(reason) | RunError::Init(reason) => Failed::Result { reason },
        RunError::ResultTooLarge { .. } => Failed::TooLarge,
    }
}

pub(super) type Outcome = Result<Encoded, Failed>;
/// Whether the frame was the announcement of a manager, whose socket has come with it. Without it
/// (this process could not take it in), calls that name its objects cannot decode their arguments;
/// the answer to the first one has the pool announce the manager again.
pub(super) fn attached(inbox: &mut Inbox, range: &Range<usize>) -> Result<bool, String> {
    let mut message = Message::new(inbox.bytes(range.clone())).map_err(|e| e.to_string())?;
    if message.kind != kind::ATTACH {
        return Ok(false);
    }
    let manager = message.uint().map_err(|e| e.to_string())?;
    message.end().map_err(|e| e.to_string())?;
    named::given(manager, inbox.descriptor());
    Ok(true)
}

/// Runs a task's code: handles in what it decodes are found among the references that came with the
/// call. Gives those that its result names.
pub(super) fn with_names<R>(things: Vec<Thing>, run: impl FnOnce() -> R) -> (R, Vec<Thing>) {
    if things.is_empty() {
        return names::collecting(run); // as nearly always
    }
    names::resolving(things, || names::collecting(run))
}

/// Appends the reply to a call, at most `limit` bytes. What the result names is handed over to its
/// managers.
pub(super) fn write_outcome(out: &mut Vec<u8>, id: u64, outcome: Outcome, limit: usize) {
    let start = out.len();
    let failed = match outcome {
        Ok(Encoded { value, named, verdict }) if named.is_empty() => {
            message::done(out, id);
            if verdict == Verdict::Again {
                message::worth_another_try(&mut out[start..]);
            }
            out.extend(value);
            return;
        }
        Ok(Encoded { value, named, verdict }) => {
            message::done_naming(out, id);
            if verdict == Verdict::Again {
                message::worth_another_try(&mut out[start..]);
            }
            let written = named::write_names(&named, out, start.saturating_add(limit));
            out.extend(value);
            if written.is_err() || out.len() - start > limit {
                Failed::TooLarge
            } else {
                match named::parcel(&named) {
                    Ok(()) => return,
                    Err(error) => Failed::Result { reason: error.to_string() },
                }
            }
        }
        Err(failed) => failed,
    };
    out.truncate(start);
    let mut failed = failed;
    if let Failed::Arguments { unattached, .. } = &mut failed {
        *unattached = unattached.filter(|manager| named::tell_unattached(*manager));
    }
    failed.cut(limit);
    message::failed(out, id, &failed);
}

/// A runtime for async functions.
fn make_runtime() -> Result<Runtime, String> {
    let build = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match catch_unwind(build) {
        Ok(made) => made.map_err(|e| format!("making a runtime: {e}")),
        // Tokio panics where it cannot make a socket pair.
        Err(payload) => {
            let reason = format!("making a runtime: {}", panics::message(&*payload));
            drop_payload(payload);
            Err(reason)
        }
    }
}

pub(super) type Answer = Pin<Box<dyn Future<Output = (Claim, Outcome)>>>;

impl Worker {
    fn run(mut self) -> Result<(), String> {
        loop {
            let range = match self.runtime.take() {
                None => self.inbox.wait().map_err(lost)?,
                Some(runtime) => {
                    let range = self.run_async(&runtime)?;
                    self.runtime = Some(runtime);
                    range
                }
            };
            let Some(range) = range else { break };
            if attached(&mut self.inbox, &range)? {
                continue;
            }
            let mut call = read_call(self.inbox.bytes(range.clone()))?;
            match (call.run, call.items) {
                (Run::Sync(function), Some(items)) => {
                    self.run_items(call, items, function, range)?
                }
                (Run::Sync(function), None) => {
                    let things = call.receive();
                    if self.claim(&mut call)? {
                        let args = range.start + call.args..range.end;
                        self.run_sync(&call, function, args, things);
                        self.commit(&self.memory.ring(), Some(call.claim), call.way())?;
                    }
                }
                // Those come here for which there is no runtime yet.
                (Run::Async(_), _) => match self.runtime() {
                    Ok(runtime) => {
                        self.inbox.put_back(range); // it is looked at again inside
                        self.runtime = Some(runtime);
                    }
                    Err(reason) => {
                        let _ = call.receive();
                        if self.claim(&mut call)? {
                            self.answer(call.claim.id, Err(Failed::NoRuntime { reason }));
                            self.commit(&self.memory.ring(), Some(call.claim), call.way())?;
                        }
                    }
                },
                (Run::InitSync(_) | Run::InitAsync(_), _) => {
                    return Err("a call of an init function".into());
                }
            }
        }
        self.leave()
    }

    /// Runs what the pool wants to have run when a worker ends. That it fails or panics changes
    /// nothing about the end; if it hangs, the pool kills.
    fn leave(mut self) -> Result<(), String> {
        let Some(Exit { run, args, things }) = self.exit.take() else { return Ok(()) };
        Errno::clear(); // as before each task
        task::set_current(0, 0, 0, true); // no task runs
        let limit = self.limit;
        let ran = match (run, things) {
            (_, Err(reason)) => Ok(Err(RunError::Arguments(reason))),
            (Run::Sync(function), Ok(things)) => catch_unwind(AssertUnwindSafe(|| {
                with_names(things, || function(&args, &mut Vec::new(), limit)).0.map(drop)
            })),
            (Run::Async(function), Ok(things)) => {
                let runtime = self.runtime()?;
                let ran = catch_unwind(AssertUnwindSafe(|| {
                    let future = with_names(things, || function(&args, limit)).0?;
                    driven(|| runtime.block_on(future)).map(drop)
                }));
                self.runtime = Some(runtime);
                ran
            }
            (Run::InitSync(_) | Run::InitAsync(_), _) => {
                return Err("an exit function that is an init function".into());
            }
        };
        guard_against_fork();
        match ran {
            Ok(Err(error @ RunError::Arguments(_))) => {
                eprintln!("procpool: the exit function was not run: {error}")
            }
            Ok(_) => {}
            Err(payload) => drop_payload(payload), // the panic hook has told
        }
        Ok(())
    }

    /// Takes in what is to be run at the end.
    fn read_exit(&mut self) -> Result<Exit, String> {
        let Hook { run, things, args } = self.read_hook(kind::EXIT)?;
        Ok(Exit { run, args: self.inbox.bytes(args).to_vec(), things })
    }

    /// Takes in a function that was announced, after the managers that it is the first to name.
    fn read_hook(&mut self, kind: u8) -> Result<Hook, String> {
        let range = loop {
            let range = self.inbox.wait().map_err(lost)?.ok_or("the pool has gone")?;
            if !attached(&mut self.inbox, &range)? {
                break range;
            }
        };
        let mut message =
            Message::new(self.inbox.bytes(range.clone())).map_err(|e| e.to_string())?;
        let index = (message.kind == kind).then(|| message.uint::<u32>().ok()).flatten();
        let entry = index.and_then(task::entry).ok_or("no function where one was announced")?;
        let names = range.start + message.rest().1;
        let (named, len) = Named::read(self.inbox.bytes(names..range.end))
            .map_err(|e| format!("the names of a function's arguments: {e}"))?;
        Ok(Hook {
            run: entry.run,
            things: named::received(named).map_err(|unknown| unknown.reason),
            args: names + len..range.end,
        })
    }

    /// Makes a task ours, unless the pool has taken it back.
    fn claim(&self, call: &mut Call) -> Result<bool, String> {
        let claims = self.memory.claims();
        if call.timed {
            claims.note_start(call.claim, sys::monotonic_nanos());
        }
        let begun = claims.begin_or_tell(call.claim);
        if begun == Begun::Watched {
            call.is_told = true;
            let mut out = Vec::new();
            let start = frame::begin(&mut out);
            message::started(&mut out, call.claim.id, sys::monotonic_nanos());
            frame::finish(&mut out, start);
            self.inbox.send(&out).map_err(lost)?;
        }
        Ok(begun != Begun::Not)
    }

    /// Runs what the pool has not taken back of a run, one item after another.
    fn run_items(
        &mut self,
        mut call: Call,
        items: u16,
        function: RunSync,
        range: Range<usize>,
    ) -> Result<(), String> {
        let run = call.claim;
        let claims = self.memory.claims();
        claims.set_up(run, u32::from(items));
        if !claims.begin(run) {
            return Ok(());
        }
        let ring = self.memory.ring();
        let mut at = range.start + call.args;
        for item in 0..items {
            if item > 0 && !claims.next(run, u32::from(item)) {
                claims.finish(run);
                break;
            }
            let args = message::read_item(self.inbox.bytes(0..range.end), at)
                .map_err(|e| e.to_string())?;
            at = args.end;
            call.claim.id = run.id + u64::from(item);
            self.run_sync(&call, function, args, Ok(Vec::new()));
            self.commit(&ring, (item + 1 == items).then_some(run), Way::Any)?;
        }
        Ok(())
    }

    fn run_sync(
        &mut self,
        call: &Call,
        function: RunSync,
        args: Range<usize>,
        things: Result<Vec<Thing>, Failed>,
    ) {
        panics::want_backtrace(call.backtrace);
        task::set_current(call.claim.slot, call.claim.id, call.attempt, true);
        let start = frame::begin(&mut self.out);
        message::done(&mut self.out, call.claim.id);
        let head = self.out.len();
        let outlet = self.outlet(call, true);
        let (bytes, out) = (self.inbox.bytes(args), &mut self.out);
        let limit = self.limit.saturating_sub(out.len() - start);
        // Its own state is lost with a panic, ours is only the buffer, which is cut back.
        self.clock.start();
        Errno::clear(); // what another task failed in is not this one's
        let ran = things.map(|things| {
            task::offering(outlet.clone().map(|outlet| outlet as _), || {
                with_names(things, || {
                    catch_unwind(AssertUnwindSafe(|| function(bytes, out, limit)))
                })
            })
        });
        guard_against_fork();
        outlet.iter().for_each(|outlet| outlet.close());
        self.clock.stop();
        let outcome = match ran {
            Ok((Ok(Ok(verdict)), named)) if named.is_empty() => {
                if verdict == Verdict::Again {
                    message::worth_another_try(&mut self.out[start..]);
                }
                frame::finish(&mut self.out, start);
                return;
            }
            Ok((Ok(Ok(verdict)), named)) => {
                Ok(Encoded { value: self.out.split_off(head), named, verdict })
            }
            Ok((Ok(Err(error)), _)) => Err(why(error)),
            Ok((Err(payload), _)) => Err(caught(payload)),
            Err(failed) => Err(failed),
        };
        self.out.truncate(start);
        write_outcome(&mut self.out, call.claim.id, outcome, self.limit);
        frame::finish(&mut self.out, start);
    }

    /// Where the items of a task go out, if it yields.
    fn outlet(&self, call: &Call, is_sync: bool) -> Option<Arc<TaskOutlet>> {
        let socket = || Arc::clone(&self.inbox.socket);
        call.yields.then(|| TaskOutlet::new(call.claim, is_sync, self.memory, socket(), self.limit))
    }

    /// Commits the reply in `out`: whole by the outbox or whole by the socket; then the task is
    /// done, unless it is an item of a run that goes on.
    fn commit(&mut self, ring: &Ring<'_>, claim: Option<Claim>, way: Way) -> Result<(), String> {
        let boxed = way == Way::Any && ring.put(&self.out);
        if !boxed {
            self.inbox.send(&self.out).map_err(lost)?;
        }
        if let Some(claim) = claim {
            self.memory.claims().finish(claim);
        }
        self.out.clear();
        self.out.shrink_to(self.limit.min(1 << 20));
        if boxed && ring.wants_bell() {
            self.inbox.send(&self.bell).map_err(lost)?;
        }
        Ok(())
    }

    /// Runs async tasks, and waits, until a sync call comes (which is given back) or the end.
    fn run_async(
        &mut self,
        Watching { readiness, inside: Async { runtime, local } }: &Watching,
    ) -> Result<Option<Range<usize>>, String> {
        driven(|| {
            local.block_on(runtime, async {
                let mut running: FuturesUnordered<Answer> = FuturesUnordered::new();
                let mut aborts: HashMap<u64, (AbortHandle, Way)> = HashMap::new();
                loop {
                    // All that has come is begun before anything runs on.
                    loop {
                        let range = match self.inbox.look().map_err(lost)? {
                            Next::Nothing => break,
                            Next::End => return Ok(None),
                            Next::Frame(range) => range,
                        };
                        let mut message = Message::new(self.inbox.bytes(range.clone()))
                            .map_err(|e| e.to_string())?;
                        if matches!(message.kind, kind::ASK | kind::CANCEL) {
                            let id = message.uint::<u64>().map_err(|e| e.to_string())?;
                            match aborts.get(&id) {
                                Some(_) if message.kind == kind::ASK => task::asked(id),
                                Some((abort, _)) => abort.abort(),
                                None => {}
                            }
                            continue;
                        }
                        if attached(&mut self.inbox, &range)? {
                            continue;
                        }
                        let mut call = read_call(self.inbox.bytes(range.clone()))?;
                        let Run::Async(function) = call.run else {
                            if !running.is_empty() {
                                return Err("a sync call while async tasks run".into());
                            }
                            return Ok(Some(range));
                        };
                        let things = call.receive();
                        if !self.claim(&mut call)? {
                            continue;
                        }
                        let args = self.inbox.bytes(range.start + call.args..range.end);
                        let (abort, registration) = AbortHandle::new_pair();
                        aborts.insert(call.claim.id, (abort, call.way()));
                        let outlet = self.outlet(&call, false);
                        running.push(begin(
                            &call,
                            function,
                            args,
                            self.limit,
                            registration,
                            things,
                            outlet,
                        ));
                    }
                    let finished = if running.is_empty() {
                        readiness.readable().await.map_err(lost)?.clear_ready();
                        None
                    } else {
                        match select(pin!(readiness.readable()), running.next()).await {
                            Either::Left((ready, _)) => {
                                ready.map_err(lost)?.clear_ready();
                                None
                            }
                            Either::Right((finished, _)) => finished,
                        }
                    };
                    let mut next = finished;
                    while let Some((claim, outcome)) = next {
                        let way = aborts.remove(&claim.id).map_or(Way::Any, |(_, way)| way);
                        self.answer(claim.id, outcome);
                        self.commit(&self.memory.ring(), Some(claim), way)?;
                        next = running.next().now_or_never().flatten(); // others may have ended by now
                    }
                }
            })
        })
    }

    fn answer(&mut self, id: u64, outcome: Outcome) {
        let start = frame::begin(&mut self.out);
        write_outcome(&mut self.out, id, outcome, self.limit);
        frame::finish(&mut self.out, start);
    }

    /// The runtime; makes it if there is none. That may fail for ever (`init` has forbidden a
    /// system call) or for a while (all descriptors are in use), so it costs only what wanted a
    /// runtime.
    fn runtime(&mut self) -> Result<Watching, String> {
        if let Some(runtime) = self.runtime.take() {
            return Ok(runtime);
        }
        let inside = Async::new()?;
        let watch = || {
            let _inside = inside.runtime.enter();
            watch_readable(self.inbox.socket.try_clone()?)
        };
        let readiness = watch().map_err(|e| format!("watching the pool's socket: {e}"))?;
        Ok(Watching { readiness, inside })
    }

    /// Tells why there is no worker, or no template, and waits for the end.
    fn fail(mut self, mut failed: InitFailed) -> Result<(), String> {
        failed.cut(self.limit);
        let out = in_frame(|out| message::control(out, kind::INIT_FAILED, &failed));
        self.inbox.send(&out).map_err(lost)?;
        // The pool has us now; it reads why, and kills.
        self.wait_for_the_end()
    }

    /// Runs the pool's `init` function, or the preload function of a template, and gives what it
    /// has made. The outer error breaks the protocol.
    fn init(&mut self) -> Result<Result<task::State, InitFailed>, String> {
        let Hook { run, things, args } = self.read_hook(kind::INIT)?;
        let things = match things {
            Ok(things) => things,
            Err(message) => return Ok(Err(InitFailed::Error { message })),
        };
        // An async init may leave something behind in the runtime: it is the one that tasks will
        // use.
        let made = match run {
            Run::InitSync(function) => catch_unwind(AssertUnwindSafe(|| {
                with_names(things, || function(self.inbox.bytes(args))).0
            })),
            Run::InitAsync(function) => {
                let runtime = match self.runtime() {
                    Ok(runtime) => runtime,
                    Err(message) => return Ok(Err(InitFailed::Error { message })),
                };
                let made = catch_unwind(AssertUnwindSafe(|| {
                    let future = with_names(things, || function(self.inbox.bytes(args))).0?;
                    driven(|| runtime.block_on(future))
                }));
                self.runtime = Some(runtime);
                made
            }
            _ => return Err("the init that was announced is no init function".into()),
        };
        guard_against_fork();
        Ok(match made {
            Ok(Ok(kept)) => Ok(kept),
            Ok(Err(
                RunError::Init(message) | RunError::Arguments(message) | RunError::Result(message),
            )) => Err(InitFailed::Error { message }),
            Ok(Err(RunError::ResultTooLarge { .. })) => {
                Err(InitFailed::Error { message: "its result is too large".into() })
            }
            Err(payload) => {
                let location = panics::place_of(&*payload).location;
                let message = panics::message(&*payload).to_owned();
                drop_payload(payload);
                Err(InitFailed::Panicked { message, location })
            }
        })
    }

    fn wait_for_the_end(&mut self) -> Result<(), String> {
        while self.inbox.wait().map_err(lost)?.is_some() {}
        Ok(())
    }
}

/// An async task: its panics are caught, and it can be dropped at an await point.
pub(super) fn begin(
    call: &Call,
    function: RunAsync,
    args: &[u8],
    limit: usize,
    registration: futures::future::AbortRegistration,
    things: Result<Vec<Thing>, Failed>,
    outlet: Option<Arc<TaskOutlet>>,
) -> Answer {
    let (claim, backtrace) = (call.claim, call.backtrace);
    // Decoding is user code as well. The head of a reply takes at most 16 bytes.
    panics::want_backtrace(backtrace);
    let attempt = call.attempt;
    task::set_current(claim.slot, claim.id, attempt, false);
    let made = things.map(|things| {
        let decode = || catch_unwind(AssertUnwindSafe(|| function(args, limit.saturating_sub(16))));
        let offered = outlet.clone().map(|outlet| outlet as _);
        task::offering(offered, || with_names(things, decode).0)
    });
    let future = match made {
        Ok(Ok(future)) => future.map_err(why),
        // Now, before another task panics: the hook keeps the last panic only.
        Ok(Err(payload)) => Err(caught(payload)),
        Err(failed) => Err(failed),
    };
    guard_against_fork();
    Box::pin(async move {
        let mut guarded = match future {
            Ok(future) => Box::pin(AssertUnwindSafe(future).catch_unwind()),
            Err(failed) => {
                outlet.iter().for_each(|outlet| outlet.close());
                return (claim, Err(failed));
            }
        };
        let mut named = Vec::new();
        let polled = std::future::poll_fn(|cx| {
            panics::want_backtrace(backtrace);
            Errno::clear(); // what another task failed in is not this one's
            task::set_current(claim.slot, claim.id, attempt, false);
            // Its result is encoded within its last poll.
            let polled;
            (polled, named) = with_names(Vec::new(), || guarded.as_mut().poll(cx));
            guard_against_fork();
            polled
        });
        let outcome = match Abortable::new(polled, registration).await {
            Err(Aborted) => {
                panics::want_backtrace(backtrace);
                // What it owns may panic as it is dropped: that is told, as tokio does, and costs
                // no other task. Guards of shared objects roll back.
                let dropped = catch_unwind(AssertUnwindSafe(|| stopping::drop_stopped(guarded)));
                guard_against_fork();
                Err(dropped.map_or_else(caught, |()| Failed::Cancelled))
            }
            Ok(Ok(Ok((value, verdict)))) => Ok(Encoded { value, named, verdict }),
            Ok(Ok(Err(error))) => Err(why(error)),
            Ok(Err(payload)) => Err(caught(payload)),
        };
        outlet.iter().for_each(|outlet| outlet.close());
        (claim, outcome)
    })
}

/// A payload's own drop may panic, too.
pub(super) fn drop_payload(payload: Box<dyn std::any::Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
}
