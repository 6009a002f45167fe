//! Starting a worker, on a launcher's thread.

use super::capture::{Capture, Streams};
use super::core::WorkerKey;
use super::engine::Engine;
use super::spec::{Config, Surroundings};
use crate::error::{Error, Why};
use crate::process::{
    Child, PeerSocket, Spawn, WorkerMemory, oom_kills, spawn_with_stdout, standard,
};
use crate::reactor::launcher::{self, Launch};
use crate::reactor::supervisor;
use crate::template::{Newborn, Nursery, Request, Template};
use crate::worker::{self, MARKER};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::ffi::OsStr;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

/// What the variable holds for a worker that is another program: the version of the protocol.
const PROTOCOL_MARKER: &str = "protocol-2";

/// A process that has just been started.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(super) child: Child,
    pub(super) socket: PeerSocket,
    pub(super) memory: Arc<WorkerMemory>,
    /// `None`: it has been forked, and no constructor has written anything.
    pub(super) early_stderr: Option<File>,
    pub(super) streams: Streams,
    pub(super) oom_kills: Option<u64>,
}

/// Has a process started for this worker, and has the supervisor tell the pool.
///
/// `None`, the pool being dropped, cannot be: whoever acts for it holds it.
pub(super) fn order(engine: Option<Arc<Engine>>, key: WorkerKey) {
    let Some(engine) = engine else { return };
    if let Some(template) = engine.template() {
        return supervisor::run(move || {
            if !engine.is_wanted(key) {
                return engine.started(key, Err(Why::PoolClosed.into()));
            }
            fork(&engine, key, &template);
        });
    }
    let starter = Arc::clone(&engine);
    let start = move || {
        if !starter.is_wanted(key) {
            return Err(Why::PoolClosed.into());
        }
        #[cfg(test)]
        if let Some(Launcher(launch)) = &starter.config.launcher {
            return launch();
        }
        launch(&starter.config, starter.capture.as_ref())
    };
    let teller = Arc::clone(&engine);
    // Without a limit here: the core has one, and calls it off.
    let launch = Launch::new(None, start, move |launched| {
        if let Some(launched) = launched {
            supervisor::run(move || teller.started(key, launched));
        }
    });
    engine.launching(key, &launch);
    launcher::begin(launch);
}

/// Has the pool's template fork a process for this worker, and tell the pool.
fn fork(engine: &Arc<Engine>, key: WorkerKey, template: &Template) {
    let config = &engine.config;
    let prepared = Prepared::new(config, engine.capture.as_ref());
    let mut prepared = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return engine.started(key, Err(error)),
    };
    engine.limit_start(key, None);
    // A request that waits keeps no pool.
    let (wanted, told) = (Arc::downgrade(engine), Arc::downgrade(engine));
    let request = Request {
        stdout: prepared.streams.their_stdout.take(),
        group: config.surroundings.group,
        limit: config.rules.start_limit_to_hello(),
        is_wanted: Box::new(move || wanted.upgrade().is_some_and(|engine| engine.is_wanted(key))),
        then: Box::new(move |newborn| {
            let Some(engine) = told.upgrade() else { return };
            engine.limit_start(key, Some(Instant::now()));
            let launched = newborn
                .and_then(|Newborn { child, socket }| prepared.launched(child, socket, None));
            engine.started(key, launched);
        }),
    };
    Nursery::fork(template.nursery(), request);
}

/// What is made for a worker before its process.
struct Prepared {
    memory: WorkerMemory,
    streams: Streams,
    oom_kills: Option<u64>,
}

impl Prepared {
    fn new(config: &Config, capture: Option<&Capture>) -> Result<Self, Error> {
        let memory = WorkerMemory::create(config.slots())
            .map_err(|e| Error::spawn("making a worker's memory", e))?;
        let streams = Streams::open(capture, &config.stdout, &config.stderr)
            .map_err(|e| Error::spawn("opening a worker's standard streams", e))?;
        Ok(Self { memory, streams, oom_kills: oom_kills::count() })
    }

    fn launched(
        self,
        child: Child,
        socket: PeerSocket,
        early_stderr: Option<File>,
    ) -> Result<Launched, Error> {
        let Self { memory, streams, oom_kills } = self;
        streams
            .watch(child.pid())
            .map_err(|e| Error::spawn("watching a worker's standard streams", e))?;
        Ok(Launched { child, socket, memory: Arc::new(memory), early_stderr, streams, oom_kills })
    }
}

/// Starts something that a test wants instead of a worker.
#[cfg(test)]
#[derive(Clone)]
pub(crate) struct Launcher(pub(super) Arc<dyn Fn() -> Result<Launched, Error> + Send + Sync>);

#[cfg(test)]
impl std::fmt::Debug for Launcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Launcher")
    }
}

fn launch(config: &Config, capture: Option<&Capture>) -> Result<Launched, Error> {
    if config.program.is_none() {
        worker::check_privileges()?; // they may have changed since the pool was built
    }
    let step = |step| move |errno: nix::errno::Errno| Error::spawn(step, errno.into());
    let (socket, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .map_err(step("making a worker's socket"))?;
    // Until it has said hello, what it writes to its standard error is kept: it may be all that is
    // ever learnt of a failed start.
    let no_stderr = |e| Error::spawn("making a worker's first standard error", e);
    let early_stderr = standard::early_stderr().map_err(no_stderr)?;
    let stderr = early_stderr.try_clone().map_err(no_stderr)?;
    let mut prepared = Prepared::new(config, capture)?;
    let stdout = prepared.streams.their_stdout.take();
    // What is no version makes no worker of a program that happens to hold this crate.
    let marker = if config.program.is_some() { PROTOCOL_MARKER } else { env!("CARGO_PKG_VERSION") };
    let marker = (MARKER, OsStr::new(marker));
    let Surroundings { env, env_clear, current_dir, group } = config.surroundings.clone();
    let spawned = Spawn { program: config.program.clone(), env, env_clear, current_dir, group };
    let child = spawn_with_stdout(&spawned, theirs, stdout, stderr.into(), marker)
        .map_err(|e| Error::spawn("starting a worker process", e))?;
    prepared.launched(child, socket.into(), Some(early_stderr))
}
