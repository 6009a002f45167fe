//! The fault table: everything that can go wrong in a worker, at every place where it can, and what
//! is told of it.
//!
//! Each row is a fault and each column the moment at which it happens. A cell says what the task is
//! told; or, where nobody can be told (an idle worker), what becomes of the worker; or why there
//! cannot be such a case. After each case the next task is done, and when its pool has gone nothing
//! is left in this process: no child, zombie, descriptor, thread, mapping of shared memory or file.
//!
//! The test prints how many cases it has seen in each cell, and fails if a cell is empty:
//! `cargo test --test faults table:: -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    unsafe_code,
    reason = "a constructor that fails, and tasks that meddle with descriptors that are not theirs"
)]

use crate::support::{
    FUSE, Proc, children, descriptors, lines, note, own_dir, own_process, pid, signal, soon, state,
    threads, until, wait_until,
};
use futures::StreamExt;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use procpool::{
    ExitReason, JoinHandle, Limits, Pool, Stdio, TaskBuilder, TaskError, TaskErrorKind, TaskId,
    WorkerEvent,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

// ---- the table

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Fault {
    TaskReturnedError,
    Panic,
    PanicInDrop,
    ExitZero,
    ExitOne,
    Abort,
    Kill,
    Stop,
    StackOverflow,
    OutOfMemory,
    Hang,
    CloseDescriptor,
    Rubbish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// The task's argument is being decoded.
    Decoding,
    /// The sync task runs.
    Sync,
    /// The async task runs, and two others with it.
    Async,
    /// The task's result is being encoded; or dropped, after that.
    Encoding,
    /// The worker is in the middle of writing 8 MiB; a thread that the task has left does it.
    Writing,
    /// Nothing runs; a thread that an earlier task has left does it.
    Idle,
    /// Before the worker has said hello; a constructor of the program does it.
    Starting,
    Init,
    /// A sync task runs, another waits, and the pool is being shut down.
    Draining,
}

use Place::{Async, Decoding, Draining, Encoding, Idle, Init, Starting, Sync, Writing};

const PLACES: [Place; 9] =
    [Decoding, Sync, Async, Encoding, Writing, Idle, Starting, Init, Draining];

/// What is told of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Value,
    /// The task's own `Err`, which is a value.
    TaskReturnedError,
    Panicked,
    Exited(i32),
    Killed(Signal),
    StackOverflow,
    OutOfMemory,
    ArgumentDecode,
    ResultEncode,
    ProtocolViolation,
    TimedOut,
    Closed,
    /// No worker, for the first process did not become one: it ended so, if it was the one that
    /// ended itself.
    StartFailed(Option<End>),
    InitFailed(Option<End>),
    /// Nobody was told, and the worker goes on.
    Lives,
    /// Nobody was told; there is another worker.
    Replaced,
    Other(TaskErrorKind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Code(i32),
    By(Signal),
}

#[derive(Clone, Copy, Debug)]
enum Cell {
    Is(Told),
    OneOf(&'static [Told]),
    /// The worker stands still, which is no end: what waits behind its task runs elsewhere. The
    /// case is seen to all its ends: it is continued, a time limit is over, the pool is closed
    /// with a limit.
    StandsStill,
    Never(&'static str),
}

use Cell::{Is, Never, OneOf, StandsStill};
use End::{By, Code};
use Signal::{SIGABRT, SIGKILL, SIGSEGV};
use Told::{Exited, InitFailed, Killed, Lives, Replaced, StartFailed, Value};

/// What the program ends with when it finds that it cannot be a worker.
const REFUSED: i32 = 126;
/// How a worker ends that has come so far that it owns its descriptors, when one of them is found
/// closed: in debug builds, std aborts.
const ROBBED: End = if cfg!(debug_assertions) { By(SIGABRT) } else { Code(REFUSED) };

const NO_TASK: Cell = Never("there is no task that could return it");
const NO_MAIN: Cell = Never("what runs before `main` returns nothing");
const DIED_STARTING: Cell = Is(StartFailed(Some(By(SIGABRT))));

#[rustfmt::skip]
const TABLE: [(Fault, [Cell; 9]); 13] = [
    //                       Decoding                  Sync                      Async                     Encoding                  Writing                    Idle            Starting                             Init                                Draining
    (Fault::TaskReturnedError,        [Is(Told::ArgumentDecode), Is(Told::TaskReturnedError),      Is(Told::TaskReturnedError),       Is(Told::ResultEncode),   Is(Told::TaskReturnedError),        NO_TASK,        NO_MAIN,                             Is(InitFailed(None)),               Is(Told::TaskReturnedError)]),
    (Fault::Panic,           [Is(Told::Panicked),      Is(Told::Panicked),       Is(Told::Panicked),       Is(Told::Panicked),       Is(Value),                 Is(Lives),      DIED_STARTING,                       Is(InitFailed(None)),               Is(Told::Panicked)]),
    (Fault::PanicInDrop,     [Is(Told::Panicked),      Is(Told::Panicked),       Is(Told::Panicked),       Is(Told::Panicked),       Is(Value),                 Is(Lives),      DIED_STARTING,                       Is(InitFailed(None)),               Is(Told::Panicked)]),
    (Fault::ExitZero,        [Is(Exited(0)),           Is(Exited(0)),            Is(Exited(0)),            Is(Exited(0)),            Is(Exited(0)),             Is(Replaced),   Is(StartFailed(Some(Code(0)))),      Is(InitFailed(Some(Code(0)))),      Is(Exited(0))]),
    (Fault::ExitOne,         [Is(Exited(1)),           Is(Exited(1)),            Is(Exited(1)),            Is(Exited(1)),            Is(Exited(1)),             Is(Replaced),   Is(StartFailed(Some(Code(1)))),      Is(InitFailed(Some(Code(1)))),      Is(Exited(1))]),
    (Fault::Abort,           [Is(Killed(SIGABRT)),     Is(Killed(SIGABRT)),      Is(Killed(SIGABRT)),      Is(Killed(SIGABRT)),      Is(Killed(SIGABRT)),       Is(Replaced),   Is(StartFailed(Some(By(SIGABRT)))),  Is(InitFailed(Some(By(SIGABRT)))),  Is(Killed(SIGABRT))]),
    (Fault::Kill,            [Is(Killed(SIGKILL)),     Is(Killed(SIGKILL)),      Is(Killed(SIGKILL)),      Is(Killed(SIGKILL)),      Is(Killed(SIGKILL)),       Is(Replaced),   Is(StartFailed(Some(By(SIGKILL)))),  Is(InitFailed(Some(By(SIGKILL)))),  Is(Killed(SIGKILL))]),
    (Fault::Stop,            [StandsStill,             StandsStill,              StandsStill,              StandsStill,              StandsStill,               StandsStill,    StandsStill,                         StandsStill,                        StandsStill]),
    // On a thread, and before there is a handler for it, it is a fault like others.
    (Fault::StackOverflow,   [Is(Told::StackOverflow), Is(Told::StackOverflow),  Is(Told::StackOverflow),  Is(Told::StackOverflow),  Is(Killed(SIGSEGV)),       Is(Replaced),   Is(StartFailed(Some(By(SIGSEGV)))),  Is(InitFailed(Some(By(SIGSEGV)))),  Is(Told::StackOverflow)]),
    (Fault::OutOfMemory,     [Is(Told::OutOfMemory),   Is(Told::OutOfMemory),    Is(Told::OutOfMemory),    Is(Told::OutOfMemory),    Is(Told::OutOfMemory),     Is(Replaced),   DIED_STARTING,                       Is(InitFailed(Some(By(SIGABRT)))),  Is(Told::OutOfMemory)]),
    // A thread that hangs holds up nobody.
    (Fault::Hang,            [Is(Told::TimedOut),      Is(Told::TimedOut),       Is(Told::TimedOut),       Is(Told::TimedOut),       Is(Value),                 Is(Lives),      Is(StartFailed(None)),               Is(InitFailed(None)),               Is(Told::TimedOut)]),
    // A small answer is committed to memory, and a system call that waits (as that of an idle worker does, if it has got there) keeps its
    // socket open.
    (Fault::CloseDescriptor, [Is(Value),               Is(Value),                Is(Value),                Is(Value),                Is(Value),                 OneOf(&[Lives, Replaced]), Is(StartFailed(Some(Code(REFUSED)))), Is(InitFailed(Some(ROBBED))),      Is(Value)]),
    // What is written into the middle of a value is taken for a part of it; what is too long by that is seen.
    (Fault::Rubbish,         [Is(Told::ProtocolViolation),      Is(Told::ProtocolViolation),       Is(Told::ProtocolViolation),       Is(Told::ProtocolViolation),       OneOf(&[Value, Told::ProtocolViolation]), Is(Replaced), Is(StartFailed(None)),         Is(StartFailed(None)),              Is(Told::ProtocolViolation)]),
];

/// What is told of the two that run beside an async task: of one like any other, and of one that
/// may run again.
fn neighbours(fault: Fault, told: Told) -> [Told; 2] {
    match (fault, told) {
        // Their worker cannot go on without its descriptors.
        (Fault::CloseDescriptor, _) => match ROBBED {
            Code(code) => [Exited(code); 2],
            By(signal) => [Killed(signal); 2],
        },
        (_, Value | Told::TaskReturnedError | Told::Panicked) => [Value; 2],
        // Killed for another's sake.
        (_, Told::TimedOut) => [Killed(SIGKILL), Value],
        (_, ended) => [ended; 2],
    }
}

// ---- committing a fault

const BYTES: usize = 8 << 20;
/// What a worker may have, and what is more than that.
const MEMORY: u64 = 2 << 30;
const TOO_MUCH: usize = 3 << 30;

/// Whoever drops it panics.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a panic in drop");
    }
}

#[expect(unconditional_recursion, reason = "it is to overflow the stack")]
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    overflow(depth + 1) + frame[0]
}

/// All sockets of this process: the pool's, and the lifeline.
fn sockets() -> Vec<i32> {
    let is_socket = |fd: &i32| {
        std::fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    (0..64).filter(is_socket).collect()
}

/// A line that somebody prints to the wrong descriptor. As the length of a frame it is one that is
/// allowed.
const RUBBISH: &str = "\n\n  a line of text\n";

/// Returns where that is possible after the fault.
fn commit(fault: Fault) -> Result<(), String> {
    match fault {
        Fault::TaskReturnedError => return Err("an error of its own".into()),
        Fault::Panic => panic!("a panic"),
        Fault::PanicInDrop => drop(Bomb),
        Fault::ExitZero => std::process::exit(0),
        Fault::ExitOne => std::process::exit(1),
        Fault::Abort => std::process::abort(),
        Fault::Kill => signal(pid(), SIGKILL),
        Fault::Stop => signal(pid(), Signal::SIGSTOP),
        Fault::StackOverflow => drop(overflow(0)),
        Fault::OutOfMemory => drop(std::hint::black_box(vec![1u8; TOO_MUCH])),
        Fault::Hang => hang(),
        Fault::CloseDescriptor => {
            for fd in sockets() {
                // SAFETY: it is not sound at all, and what becomes of the process is the question.
                unsafe { libc::close(fd) };
            }
        }
        Fault::Rubbish => {
            for fd in sockets() {
                // SAFETY: the bytes are those of a string.
                unsafe {
                    libc::send(fd, RUBBISH.as_ptr().cast(), RUBBISH.len(), libc::MSG_NOSIGNAL)
                };
            }
            hang();
        }
    }
    Ok(())
}

fn hang() {
    loop {
        std::thread::park();
    }
}

// ---- tasks

/// An argument that does it when it is decoded.
#[derive(Serialize)]
struct Argument(Option<Fault>);

impl<'de> Deserialize<'de> for Argument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fault = Option::deserialize(deserializer)?;
        fault.map_or(Ok(()), commit).map_err(serde::de::Error::custom)?;
        Ok(Self(fault))
    }
}

/// A result that does it when it is encoded, or when it is dropped after that.
#[derive(Debug)]
struct Payload {
    fault: Option<Fault>,
    bytes: Vec<u8>,
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fault = self.fault.filter(|fault| *fault != Fault::PanicInDrop);
        fault.map_or(Ok(()), commit).map_err(serde::ser::Error::custom)?;
        serializer.serialize_bytes(&self.bytes)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_bytes::ByteBuf::deserialize(deserializer).map(|bytes| Self::of(bytes.into_vec()))
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if self.fault == Some(Fault::PanicInDrop) {
            panic!("a panic in drop");
        }
    }
}

impl Payload {
    fn of(bytes: Vec<u8>) -> Self {
        Self { fault: None, bytes }
    }

    fn small() -> Self {
        Self::of(vec![7])
    }
}

type Answer = Result<Payload, String>;

fn take(_argument: Argument) -> Answer {
    Ok(Payload::small())
}

fn run(fault: Fault) -> Answer {
    commit(fault).map(|()| Payload::small())
}

async fn run_async(fault: Fault) -> Answer {
    tokio::task::yield_now().await;
    commit(fault).map(|()| Payload::small())
}

fn give(fault: Fault) -> Answer {
    Ok(Payload { fault: Some(fault), bytes: vec![7] })
}

/// Says that it has begun, and waits until `gate` exists.
async fn stand_by(log: PathBuf, gate: PathBuf) -> Answer {
    note(&log, pid());
    while !gate.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(Payload::small())
}

/// A large answer, in the midst of which a thread does it, and notes that it was so.
fn write(fault: Fault, log: PathBuf) -> Answer {
    if fault == Fault::TaskReturnedError {
        note(&log, "an error is a value like others");
        return Err("7".repeat(BYTES));
    }
    let (begun, has_begun) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let sockets = sockets();
        begun.send(()).unwrap();
        let is_under_way = |fd: &i32| {
            let mut unread: libc::c_int = 0;
            // SAFETY: asks for a number; SIOCOUTQ is the same request (unix(7)).
            unsafe { libc::ioctl(*fd, libc::TIOCOUTQ, &raw mut unread) == 0 && unread > 64 << 10 }
        };
        while !sockets.iter().any(is_under_way) {}
        note(&log, "in the midst");
        commit(fault)
    });
    has_begun.recv().unwrap();
    Ok(Payload::of(vec![7; BYTES]))
}

/// Leaves a thread that does it when `gate` exists.
fn leave(fault: Fault, gate: PathBuf) -> u32 {
    std::thread::spawn(move || {
        wait_until("the gate opens", || gate.exists());
        std::fs::write(gate.with_extension("done"), "").unwrap();
        commit(fault)
    });
    pid()
}

/// Does it in the first process that comes here.
fn set_up(fault: Fault, once: PathBuf) -> Result<(), String> {
    if std::fs::remove_file(once).is_ok() { commit(fault) } else { Ok(()) }
}

fn drain(fault: Fault, log: PathBuf, gate: PathBuf) -> Answer {
    note(&log, pid());
    wait_until("the gate opens", || gate.exists());
    run(fault)
}

// ---- a constructor

/// Set for workers in which the constructor is to do it: the fault, and the file that only the
/// first one finds.
const AT_START: &str = "PROCPOOL_TEST_FAULT_AT_START";

// SAFETY: `.init_array` holds pointers to functions that may be called with the arguments of
// `main`, or without. In any process but such a worker it looks at the environment, which nobody
// changes at that time.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = at_start;

extern "C" fn at_start() {
    let Ok(text) = std::env::var(AT_START) else { return };
    let (fault, once) = text.split_once(' ').unwrap();
    if std::fs::remove_file(once).is_err() {
        return;
    }
    let fault =
        TABLE.iter().map(|(fault, _)| *fault).find(|known| format!("{known:?}") == fault).unwrap();
    if fault == Fault::OutOfMemory {
        // The pool's limits come later.
        let (_, most) = getrlimit(Resource::RLIMIT_AS).unwrap();
        setrlimit(Resource::RLIMIT_AS, MEMORY, most).unwrap();
    }
    commit(fault).unwrap();
}

// ---- one case

/// So long may a task run that does not end. Others are not limited.
const LIMIT: Duration = Duration::from_millis(50);
/// So long may a start take that does not end.
const START_LIMIT: Duration = Duration::from_secs(1);

/// Set in a process in which workers are forked from a template. (The constructor runs in that.)
const TEMPLATE: &str = "PROCPOOL_TEST_TEMPLATE";

fn over_a_template() -> bool {
    std::env::var_os(TEMPLATE).is_some()
}

/// How a worker that stands still is got rid of, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Continued,
    Limited,
    Closed,
}

/// The scene of one case.
struct Case {
    fault: Fault,
    dir: TempDir,
    pool: Pool,
}

impl Case {
    fn new(fault: Fault, place: Place, workers: usize, start_limit: Option<Duration>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let once = dir.path().join("once");
        let mut builder = Pool::builder()
            .start_attempts(1) // the first start has the fault, and is to be told
            .workers(workers)
            // With a backtrace, std hides what it aborts for.
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .limits(Limits::new().memory(MEMORY).core_size(0));
        if over_a_template() {
            builder = builder.template(|| Ok::<_, String>(()), ());
        }
        if matches!(place, Starting | Init) {
            std::fs::write(&once, "").unwrap();
        }
        match place {
            Starting => builder = builder.env(AT_START, format!("{fault:?} {}", once.display())),
            Init => builder = builder.on_worker_start(set_up, (fault, once)),
            _ => {}
        }
        if let Some(limit) = start_limit {
            builder = builder.start_timeout(limit);
        }
        Self { fault, dir, pool: builder.build().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, gate: &str) {
        std::fs::write(self.path(gate), "").unwrap();
    }

    fn log_of(&self, name: &str) -> Vec<String> {
        lines(&self.path(name))
    }

    /// Hands in the task of a column in which one task does it.
    fn spawn(&self, place: Place, limit: Option<Duration>) -> JoinHandle<Answer> {
        fn limited<'a, A, F>(
            call: TaskBuilder<'a, A, Answer, F>,
            limit: Option<Duration>,
        ) -> TaskBuilder<'a, A, Answer, F> {
            match limit {
                Some(limit) => call.timeout(limit),
                None => call,
            }
        }
        let (pool, fault) = (&self.pool, self.fault);
        match place {
            Decoding => limited(pool.task(take), limit).spawn(Argument(Some(fault))),
            Sync => limited(pool.task(run), limit).spawn(fault),
            Async => limited(pool.task(run_async), limit).grace(LIMIT).spawn(fault),
            Encoding => limited(pool.task(give), limit).spawn(fault),
            Writing => limited(pool.task(write), limit).spawn((fault, self.path("log"))),
            Draining => {
                limited(pool.task(drain), limit).spawn((fault, self.path("log"), self.path("gate")))
            }
            Starting | Init => pool.spawn(take, Argument(None)),
            Idle => unreachable!("no task does it"),
        }
    }

    /// Two async tasks in one worker, which run.
    async fn spawn_neighbours(&self) -> [JoinHandle<Answer>; 2] {
        let args = || (self.path("neighbours"), self.path("gate"));
        let both = [
            self.pool.spawn(stand_by, args()),
            self.pool.task(stand_by).idempotent(true).spawn(args()),
        ];
        until("the neighbours run", || self.log_of("neighbours").len() == 2).await;
        both
    }

    /// The next task is done.
    async fn serves(&self, whatever_comes_first: bool) {
        let start = Instant::now();
        // A start that has failed is tried again after a while, or at once by `ready`.
        while let Err(error) = soon(self.pool.ready()).await {
            assert!(whatever_comes_first && start.elapsed() < FUSE, "{error:?}");
        }
        let next = soon(self.pool.spawn(take, Argument(None))).await;
        assert_eq!(told(&next), Value, "the next task: {next:?}");
    }
}

fn told(result: &Result<Answer, TaskError>) -> Told {
    let error = match result {
        Ok(Ok(_)) => return Value,
        Ok(Err(_)) => return Told::TaskReturnedError,
        Err(error) => error,
    };
    let end = error.exit_status().map(|status| match status.signal() {
        Some(signal) => By(Signal::try_from(signal).unwrap()),
        None => Code(status.code().unwrap()),
    });
    match error.kind() {
        TaskErrorKind::Panicked
            if error.panic_message().is_some_and(|text| text.starts_with("a panic")) =>
        {
            Told::Panicked
        }
        TaskErrorKind::WorkerDied if error.is_stack_overflow() => Told::StackOverflow,
        TaskErrorKind::WorkerDied if error.is_out_of_memory() => Told::OutOfMemory,
        TaskErrorKind::WorkerDied => match end {
            Some(Code(code)) => Exited(code),
            Some(By(signal)) => Killed(signal),
            None => Told::Other(TaskErrorKind::WorkerDied),
        },
        TaskErrorKind::ArgumentDecode => Told::ArgumentDecode,
        TaskErrorKind::ResultEncode => Told::ResultEncode,
        TaskErrorKind::ProtocolViolation => Told::ProtocolViolation,
        TaskErrorKind::TimedOut => Told::TimedOut,
        TaskErrorKind::PoolClosed => Told::Closed,
        TaskErrorKind::StartFailed => StartFailed(end),
        TaskErrorKind::InitFailed => InitFailed(end),
        kind => Told::Other(kind),
    }
}

/// The one child that stands still.
async fn stopped() -> u32 {
    let stopped = || children(pid()).into_iter().find(|child| state(*child) == Some('T'));
    until("a worker stands still", || stopped().is_some()).await;
    stopped().unwrap()
}

/// What is told of a fault at this place. `None`: it happened too late, and proves nothing.
async fn observe(fault: Fault, place: Place) -> Option<Told> {
    let start_limit =
        (fault == Fault::Hang && matches!(place, Starting | Init)).then_some(START_LIMIT);
    let limit = (fault == Fault::Hang && place != Writing).then_some(LIMIT);
    let case = Case::new(fault, place, 1, start_limit);
    let seen = match place {
        Decoding | Sync | Encoding => {
            let task = case.spawn(place, limit);
            let behind = case.pool.spawn(take, Argument(None));
            let seen = told(&soon(task).await);
            assert_eq!(told(&soon(behind).await), Value, "what waited behind it");
            seen
        }
        Async => {
            let beside = case.spawn_neighbours().await;
            let seen = told(&soon(case.spawn(place, limit)).await);
            let expected = neighbours(fault, seen);
            if expected[0] != Value {
                // Else they might be done before it ends.
                until("the first neighbour has ended", || beside[0].is_finished()).await;
            }
            case.open("gate");
            for (neighbour, expected) in beside.into_iter().zip(expected) {
                assert_eq!(told(&soon(neighbour).await), expected, "a neighbour");
            }
            seen
        }
        Writing => {
            let task = case.spawn(place, limit);
            let worker = worker_of(&task).await;
            let result = soon(task).await;
            if case.log_of("log").is_empty() {
                return None;
            }
            let ends = !matches!(
                fault,
                Fault::Panic
                    | Fault::PanicInDrop
                    | Fault::Hang
                    | Fault::CloseDescriptor
                    | Fault::Rubbish
            );
            if ends && matches!(result, Ok(Ok(_))) {
                return None; // it came too late: all had been written
            }
            if let (Ok(Ok(payload)), true) = (&result, fault != Fault::Rubbish) {
                assert!(payload.bytes == vec![7; BYTES], "another value");
            }
            if let Ok(Err(text)) = &result {
                assert_eq!(text.len(), BYTES);
            }
            if fault == Fault::Rubbish {
                // Whatever it is given until then may be lost with it.
                until("it is gone", || worker.is_gone()).await;
            }
            told(&result)
        }
        Idle => {
            let mut events = case.pool.events();
            let worker =
                Proc::of(soon(case.pool.spawn(leave, (fault, case.path("gate")))).await.unwrap())
                    .unwrap();
            case.open("gate");
            until("it is done", || case.path("gate.done").exists()).await;
            if !matches!(
                fault,
                Fault::Panic | Fault::PanicInDrop | Fault::Hang | Fault::CloseDescriptor
            ) {
                until("it is gone", || worker.is_gone()).await;
                let why = if fault == Fault::Rubbish {
                    ExitReason::ProtocolViolation
                } else {
                    ExitReason::Died
                };
                let is_its_end = |event: &WorkerEvent| matches!(event, WorkerEvent::Exited { pid, why: end, .. } if *pid == Some(worker.pid) && *end == why);
                while !is_its_end(&soon(events.next()).await.unwrap()) {}
            }
            if soon(case.pool.spawn(pid, ())).await.unwrap() == worker.pid {
                Lives
            } else {
                Replaced
            }
        }
        Starting | Init => told(&soon(case.spawn(place, None)).await),
        Draining => {
            let task = case.spawn(place, limit);
            until("it runs", || !case.log_of("log").is_empty()).await;
            let behind = case.pool.spawn(take, Argument(None));
            let end = case.pool.shutdown();
            case.open("gate");
            let seen = told(&soon(task).await);
            assert_eq!(told(&soon(behind).await), Value, "what waited behind it");
            assert!(soon(end).await.is_empty(), "nothing was cut off");
            return Some(seen);
        }
    };
    case.serves(start_limit.is_some()).await;
    soon(case.pool.shutdown()).await;
    Some(seen)
}

/// The process that a task is in.
async fn worker_of(task: &JoinHandle<Answer>) -> Proc {
    until("it is in a worker", || task.worker_pid().is_some() || task.is_finished()).await;
    task.worker_pid().and_then(Proc::of).expect("a task that takes some time")
}

/// A worker stands still, and then that happens.
async fn observe_stopped(place: Place, then: Then) -> Option<()> {
    let start_limit =
        (then == Then::Limited && matches!(place, Starting | Init)).then_some(START_LIMIT);
    let limit = (then == Then::Limited).then_some(LIMIT);
    // Two, so that one of them can take what the other has in hand; but neighbours shall be
    // together.
    let workers = if matches!(place, Async | Starting | Init) { 1 } else { 2 };
    let case = Case::new(Fault::Stop, place, workers, start_limit);
    let has_behind = workers > 1;
    if has_behind {
        soon(case.pool.ready()).await.unwrap();
    }
    let beside = if place == Async { Some(case.spawn_neighbours().await) } else { None };
    let task = match place {
        Idle => {
            let worker =
                soon(case.pool.spawn(leave, (Fault::Stop, case.path("gate")))).await.unwrap();
            case.open("gate");
            assert_eq!(stopped().await, worker);
            None
        }
        _ => Some(case.spawn(place, limit)),
    };
    let mut end = None;
    if place == Draining {
        until("it runs", || !case.log_of("log").is_empty()).await;
    }
    if let (Some(task), Writing) = (&task, place) {
        until("it is in the midst, or done", || {
            !case.log_of("log").is_empty() || task.is_finished()
        })
        .await;
        if case.log_of("log").is_empty() {
            return None;
        }
    }
    let behind: Vec<_> = if has_behind {
        (0..4).map(|_| case.pool.spawn(take, Argument(None))).collect()
    } else {
        Vec::new()
    };
    if place == Draining {
        end = Some(case.pool.shutdown());
        case.open("gate");
    }
    // With a limit it may be over before we look.
    let worker = if then == Then::Limited { None } else { Some(stopped().await) };
    for behind in behind {
        assert_eq!(told(&soon(behind).await), Value, "what another could take");
    }
    if place == Writing
        && task.as_ref().is_some_and(JoinHandle::is_finished)
        && then != Then::Limited
    {
        return None; // it was stopped too late: all had been written
    }
    if then != Then::Limited {
        assert!(task.as_ref().is_none_or(|task| !task.is_finished()), "it stands still");
    }
    let expected = match then {
        Then::Continued => Value,
        Then::Limited if place == Starting => StartFailed(None),
        Then::Limited if place == Init => InitFailed(None),
        Then::Limited => Told::TimedOut,
        Then::Closed => Told::Closed,
    };
    let mut cut_off = None;
    match then {
        Then::Continued => signal(worker.unwrap(), Signal::SIGCONT),
        Then::Limited => {}
        Then::Closed => cut_off = Some(case.pool.shutdown_within(LIMIT)),
    }
    if let Some(task) = task {
        let id = task.id();
        assert_eq!(told(&soon(task).await), expected);
        if let Some(cut_off) = cut_off {
            let begun: &[TaskId] = if matches!(place, Starting | Init) { &[] } else { &[id] };
            let cut_off = soon(cut_off).await;
            assert!(begun.iter().all(|id| cut_off.begun().contains(id)), "{cut_off:?}");
        }
    } else if let Some(cut_off) = cut_off {
        assert!(soon(cut_off).await.is_empty());
    }
    if let Some(beside) = beside {
        let expected = match then {
            Then::Continued => [Value; 2],
            Then::Limited => neighbours(Fault::Stop, Told::TimedOut),
            Then::Closed => [Told::Closed; 2],
        };
        if then == Then::Limited {
            until("the first neighbour has ended", || beside[0].is_finished()).await;
        }
        case.open("gate");
        for (neighbour, expected) in beside.into_iter().zip(expected) {
            assert_eq!(told(&soon(neighbour).await), expected, "a neighbour");
        }
    }
    match end {
        Some(end) => assert_eq!(soon(end).await.is_empty(), then != Then::Closed),
        None if then == Then::Closed => {}
        None => {
            case.serves(start_limit.is_some()).await;
            soon(case.pool.shutdown()).await;
        }
    }
    Some(())
}

// ---- what is left

/// What this process has of the kernel.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    children: Vec<u32>,
    descriptors: usize,
    threads: usize,
    /// Mappings of shared memory.
    mappings: usize,
    files: Vec<PathBuf>,
}

impl Left {
    fn is_no_more_than(&self, before: &Self) -> bool {
        let counts =
            |left: &Self| [left.children.len(), left.descriptors, left.threads, left.mappings];
        counts(self).iter().zip(counts(before)).all(|(now, before)| *now <= before)
            && self.files == before.files
    }
}

fn left() -> Left {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let shared =
        |line: &&str| line.split_whitespace().nth(1).is_some_and(|rights| rights.ends_with('s'));
    let below = |dir: &Path| {
        std::fs::read_dir(dir)
            .map_or_else(|_| Vec::new(), |dir| dir.map(|entry| entry.unwrap().path()).collect())
    };
    let mut files: Vec<_> = below(Path::new("/dev/shm"));
    files.retain(|path| path.to_string_lossy().contains("procpool"));
    files.extend(below(&own_dir().unwrap()));
    Left {
        children: children(pid()),
        descriptors: descriptors(pid()).len(),
        threads: threads(),
        mappings: maps.lines().filter(shared).count(),
        files,
    }
}

// ---- all cases

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TaskReturnedError => "own error",
            Self::Panic => "panic",
            Self::PanicInDrop => "panic in drop",
            Self::ExitZero => "exit 0",
            Self::ExitOne => "exit 1",
            Self::Abort => "abort",
            Self::Kill => "SIGKILL",
            Self::Stop => "SIGSTOP",
            Self::StackOverflow => "stack overflow",
            Self::OutOfMemory => "out of memory",
            Self::Hang => "hang",
            Self::CloseDescriptor => "closing ours",
            Self::Rubbish => "rubbish to it",
        })
    }
}

/// Prints the count of each cell, and names those that cannot be.
fn print(counts: &BTreeMap<(Fault, Place), usize>) {
    let heads = PLACES.map(|place| format!("{:>9}", format!("{place:?}").to_lowercase()));
    let mut text = format!("\n{:15}{}\n", "", heads.concat());
    let mut reasons = String::new();
    for (fault, cells) in TABLE {
        text += &format!("{fault:15}");
        for (place, cell) in PLACES.into_iter().zip(cells) {
            match cell {
                Never(reason) => {
                    text += &format!("{:>9}", "-");
                    reasons +=
                        &format!("- {fault}, {}: {reason}\n", format!("{place:?}").to_lowercase());
                }
                _ => text += &format!("{:>9}", counts.get(&(fault, place)).unwrap_or(&0)),
            }
        }
        text += "\n";
    }
    eprintln!("{text}\n{reasons}");
}

#[test]
fn every_fault_at_every_place_is_told_as_what_it_is_and_leaves_nothing() {
    see_every_fault(|_| {});
}

#[test]
fn the_same_holds_for_workers_that_are_forked_from_a_template() {
    see_every_fault(|command| {
        command.env(TEMPLATE, "1");
    });
}

fn see_every_fault(prepare: fn(&mut std::process::Command)) {
    let (test, dir) = ("own_process_with_every_fault", tempfile::tempdir().unwrap());
    let mut command = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    prepare(&mut command);
    let output = command.env("TMPDIR", dir.path()).current_dir(dir.path()).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    eprintln!("{stderr}");
    assert!(output.status.success() && stdout.contains("1 passed"), "{}\n{stdout}", output.status);
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_with_every_fault() {
    if own_dir().is_none() {
        return;
    }
    // What stays for good is made now: the supervisor.
    let first = Pool::builder().workers(1).build().unwrap();
    soon(first.spawn(pid, ())).await.unwrap();
    soon(first.shutdown()).await;
    drop(first);
    let mut before = left();
    assert_eq!(before.children, [0; 0]);

    let only = std::env::var("PROCPOOL_FAULT").unwrap_or_default();
    let mut counts = BTreeMap::new();
    let mut wrong = Vec::new();
    for (fault, cells) in TABLE {
        for (place, cell) in PLACES.into_iter().zip(cells) {
            let name = format!("{fault}, {place:?}");
            if !name.contains(&only) {
                continue;
            }
            let began = Instant::now();
            let count: &mut usize = counts.entry((fault, place)).or_default();
            match cell {
                Never(_) => continue,
                StandsStill => {
                    for then in [Then::Continued, Then::Limited, Then::Closed] {
                        // In an idle worker there is no task that has a limit.
                        if (place, then) == (Idle, Then::Limited) {
                            continue;
                        }
                        while began.elapsed() < FUSE {
                            if observe_stopped(place, then).await.is_some() {
                                *count += 1;
                                break;
                            }
                        }
                    }
                }
                Is(_) | OneOf(_) => {
                    while began.elapsed() < FUSE {
                        let Some(seen) = observe(fault, place).await else { continue };
                        *count += 1;
                        let is_expected = match cell {
                            // The pool sees the end of the socket of a forked worker as it starts,
                            // and kills the worker, unless the worker has ended by then.
                            Is(StartFailed(Some(Code(REFUSED)))) if over_a_template() => {
                                matches!(seen, StartFailed(Some(Code(REFUSED) | By(SIGKILL))))
                            }
                            Is(told) => told == seen,
                            OneOf(all) => all.contains(&seen),
                            _ => unreachable!(),
                        };
                        if !is_expected {
                            wrong.push(format!("{name}: {seen:?}, not {cell:?}"));
                        }
                        break;
                    }
                }
            }
            if std::env::var_os("PROCPOOL_FAULT").is_some() {
                eprintln!("{name}: {:?}", began.elapsed());
            }
            let start = Instant::now();
            loop {
                let now = left();
                if now.is_no_more_than(&before) {
                    before = now; // something of the first pool may have been there yet
                    break;
                }
                assert!(start.elapsed() < FUSE, "left of {name}: {:?}\nbefore: {before:?}", left());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    print(&counts);
    assert!(wrong.is_empty(), "{wrong:#?}");
    if only.is_empty() {
        let cells = TABLE.iter().flat_map(|(fault, cells)| {
            PLACES.iter().zip(cells).map(move |(place, cell)| (*fault, *place, cell))
        });
        let can_be = cells.filter(|(.., cell)| !matches!(cell, Never(_)));
        let empty: Vec<_> = can_be
            .filter(|(fault, place, _)| {
                counts.get(&(*fault, *place)).is_none_or(|count| *count == 0)
            })
            .collect();
        assert!(empty.is_empty(), "cells without a case: {empty:?}");
    }
}
