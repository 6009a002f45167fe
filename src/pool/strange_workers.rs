//! Tests with workers that are none: other programs, and bytes that no worker of ours would send.
//!
//! The pool is a real one; only what it starts is replaced. As a rule that is a process that
//! sleeps, and a thread of the test says on the socket what that process is to have said.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::zombie_processes, reason = "the pool reaps what it is given")]

use super::capture::Streams;
use super::launch::{Launched, Launcher};
use super::{Builder, NamedTask, Pool};
use crate::error::{Error, ErrorKind, TaskErrorKind};
use crate::process::{Child, WorkerMemory, sys};
use crate::task;
use crate::wire::claim::Claim;
use crate::wire::frame::{self, FrameBuffer};
use crate::wire::message::{self, Hello, Message, kind};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Only a hang takes this long.
pub(super) const HANG: Duration = Duration::from_secs(30);

/// What is started: `command`, with one end of a socket pair as its standard input. Gives the
/// pool's end, and beside it what a player of that process needs: a copy of its own end, and its
/// memory.
pub(super) fn launch(command: &mut Command) -> (Launched, UnixStream, Arc<WorkerMemory>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let early_stderr = File::from(memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC).unwrap());
    command
        .stdin(OwnedFd::from(theirs.try_clone().unwrap()))
        .stderr(early_stderr.try_clone().unwrap())
        .stdout(Stdio::null());
    let child = command.process_group(0).spawn().unwrap();
    let child = Child::adopt(child.id(), true).unwrap();
    let memory = Arc::new(WorkerMemory::create(1024).unwrap());
    (
        Launched {
            child,
            socket: ours.into(),
            memory: Arc::clone(&memory),
            early_stderr: Some(early_stderr),
            streams: Streams::default(),
            oom_kills: None,
        },
        theirs,
        memory,
    )
}

pub(super) fn builder(
    launcher: impl Fn() -> Result<Launched, Error> + Send + Sync + 'static,
) -> Builder {
    let mut builder = Pool::builder().workers(1);
    builder.launcher = Some(Launcher(Arc::new(launcher)));
    builder
}

/// A pool that starts this shell command.
fn pool_of_shells(script: &'static str) -> Pool {
    builder(move || {
        let (launched, theirs, _) = launch(Command::new("sh").args(["-c", script]));
        drop(theirs);
        Ok(launched)
    })
    .build()
    .unwrap()
}

/// A worker that is played by a thread of the test.
pub(super) struct Player {
    pub(super) socket: UnixStream,
    pub(super) memory: Arc<WorkerMemory>,
    pub(super) incoming: FrameBuffer,
}

impl Player {
    pub(super) fn new(socket: UnixStream, memory: Arc<WorkerMemory>) -> Self {
        Self { socket, memory, incoming: FrameBuffer::new(1 << 20) }
    }

    fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let bytes = framed(write);
        self.socket.write_all(&bytes).unwrap();
    }

    fn say_with(&mut self, descriptors: &[BorrowedFd<'_>], write: impl FnOnce(&mut Vec<u8>)) {
        let bytes = framed(write);
        match sys::send_with_fds(self.socket.as_fd(), &[IoSlice::new(&bytes)], descriptors) {
            // The pool has had the kernel refuse them.
            Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) => {
                self.socket.write_all(&bytes).unwrap()
            }
            sent => assert_eq!(sent.unwrap(), bytes.len()),
        }
    }

    /// The body of the next frame; empty when the pool has closed.
    pub(super) fn hear(&mut self) -> Vec<u8> {
        loop {
            if let Some(range) = self.incoming.next_frame().unwrap() {
                return self.incoming.bytes(range).to_vec();
            }
            match self.socket.read(self.incoming.space()) {
                Ok(0) | Err(_) => return Vec::new(),
                Ok(n) => self.incoming.filled(n),
            }
        }
    }

    pub(super) fn hello(&mut self, change: impl FnOnce(&mut Hello)) {
        let mut hello = hello();
        change(&mut hello);
        let (_kept, lifeline) = UnixStream::pair().unwrap();
        self.say_with(&[lifeline.as_fd()], |out| message::control(out, kind::HELLO, &hello));
    }

    pub(super) fn become_ready(&mut self) {
        self.hello(|_| {});
        assert_eq!(Message::new(&self.hear()).unwrap().kind, kind::WELCOME);
        self.say(message::ready);
    }

    /// The next call, not claimed.
    pub(super) fn unclaimed(&mut self) -> Claim {
        let body = self.hear();
        let mut message = Message::new(&body).unwrap();
        assert_eq!(message.kind, kind::CALL);
        let slot = message.uint().unwrap();
        assert_eq!(message.uint::<u8>().unwrap(), 1, "the first try");
        Claim { slot, id: message.uint().unwrap() }
    }

    /// The number of the next call, which has begun.
    pub(super) fn call(&mut self) -> u64 {
        let claim = self.unclaimed();
        assert!(self.memory.claims().begin(claim));
        claim.id
    }

    pub(super) fn answer(&mut self, id: u64, value: u8) {
        self.say(|out| {
            message::done(out, id);
            out.push(value);
        });
    }

    /// Until the pool has done with us.
    pub(super) fn wait(&mut self) {
        while !self.hear().is_empty() {}
    }
}

pub(super) fn hello() -> Hello {
    Hello {
        protocol: message::PROTOCOL,
        version: env!("CARGO_PKG_VERSION").into(),
        fingerprint: Some(task::fingerprint()),
    }
}

pub(super) fn framed(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, |out| write(out));
    out
}

/// A pool whose n-th worker (from 0) is played by `play(n, …)`.
pub(super) fn played(play: impl Fn(usize, &mut Player) + Send + Sync + 'static) -> Builder {
    let (play, started) = (Arc::new(play), AtomicUsize::new(0));
    builder(move || {
        let (launched, socket, memory) = launch(Command::new("sleep").arg("1000"));
        let (play, n) = (Arc::clone(&play), started.fetch_add(1, Ordering::Relaxed));
        std::thread::spawn(move || play(n, &mut Player::new(socket, memory)));
        Ok(launched)
    })
}

fn echo(n: u8) -> u8 {
    n
}

pub(super) async fn start_error(pool: &Pool) -> Error {
    tokio::time::timeout(HANG, pool.ready())
        .await
        .expect("it hangs")
        .expect_err("that is no worker")
}

/// Aborted in the order of submission, each abort makes room for the next task.
#[tokio::test]
async fn of_large_tasks_that_are_aborted_one_by_one_only_what_was_begun_is_sent() {
    fn length(text: String) -> u8 {
        text.len() as u8
    }
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (gone, heard) = (std::sync::Mutex::new(gone), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&heard);
    let pool = played(move |_, player| {
        player.become_ready();
        gone.lock().unwrap().recv().unwrap(); // until then it reads nothing
        loop {
            let claim = player.unclaimed();
            count.fetch_add(1, Ordering::Relaxed);
            if player.memory.claims().begin(claim) {
                player.answer(claim.id, 42);
                return player.wait();
            }
        }
    });
    let pool = pool.build().unwrap();
    tokio::time::timeout(HANG, pool.ready()).await.expect("it hangs").unwrap();
    let text = "x".repeat(900_000); // more than a socket takes
    let tasks: Vec<_> = (0..10).map(|_| pool.spawn(length, &text)).collect();
    tasks.iter().for_each(super::JoinHandle::abort);
    let last = pool.spawn(echo, 1);
    go.send(()).unwrap();
    assert_eq!(tokio::time::timeout(HANG, last).await.expect("it hangs").unwrap(), 42);
    for task in tasks {
        assert!(task.await.unwrap_err().is_cancelled());
    }
    assert_eq!(heard.load(Ordering::Relaxed), 2, "the first one and the last one");
}

#[tokio::test]
async fn another_program_that_answers_is_told_as_such_and_killed() {
    let pool = pool_of_shells("echo 'mysql_native_password' >&0; echo noise >&2; exec sleep 1000");
    let error = start_error(&pool).await;
    assert_eq!(error.kind(), ErrorKind::NotAWorker);
    assert!(error.pid().is_some());
    let task =
        tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap_err();
    assert_eq!(task.kind(), TaskErrorKind::StartFailed);
    tokio::time::timeout(HANG, pool.shutdown()).await.expect("it hangs");
}

#[tokio::test]
async fn another_program_that_reads_its_input_gets_nothing_to_read() {
    let pool = builder(|| {
        let (launched, theirs, _) = launch(
            Command::new("sh").args(["-c", "read line <&0; echo got \"$line\" >&2; exit 7"]),
        );
        drop(theirs);
        Ok(launched)
    })
    .start_timeout(Duration::from_millis(300))
    .build()
    .unwrap();
    let error = start_error(&pool).await;
    assert_eq!(error.kind(), ErrorKind::StartTimeout);
    assert_eq!(error.stderr_tail(), Some(""), "it got something");
}

#[tokio::test]
async fn a_death_before_the_hello_brings_status_and_the_tail_of_stderr_once() {
    let pool = pool_of_shells("echo 'cannot find libanything.so' >&2; exit 3");
    let error = start_error(&pool).await;
    assert_eq!(error.kind(), ErrorKind::DiedAtStart);
    assert_eq!(error.exit_status().unwrap().code(), Some(3));
    assert_eq!(error.stderr_tail(), Some("cannot find libanything.so\n"));
    assert_eq!(error.to_string().matches("libanything").count(), 1);
    let pool = pool_of_shells("kill -KILL $$");
    let task =
        tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap_err();
    let status = task.exit_status().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
}

#[tokio::test]
async fn a_process_that_closes_its_socket_and_lives_is_no_worker() {
    let pool = pool_of_shells("exec <&-; exec sleep 1000");
    assert_eq!(start_error(&pool).await.kind(), ErrorKind::NotAWorker);
}

#[tokio::test]
async fn another_version_protocol_or_build_is_refused_with_the_reason() {
    type Change = fn(&mut Hello);
    let changes: [(Change, &str); 3] = [
        (|hello| hello.protocol += 1, "version 3 of the protocol"),
        (|hello| hello.version = "0.0.1".into(), "version 0.0.1 of this crate"),
        (|hello| hello.fingerprint = Some(1), "another build"),
    ];
    for (change, reason) in changes {
        let pool = played(move |_, player| {
            player.hello(change);
            assert!(player.hear().is_empty(), "nothing is said to it");
        })
        .build()
        .unwrap();
        let error = start_error(&pool).await;
        assert_eq!(error.kind(), ErrorKind::NotAWorker);
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn a_hello_with_too_few_or_too_many_descriptors_is_refused() {
    for count in [0, 2] {
        let pool = played(move |_, player| {
            let (a, b) = UnixStream::pair().unwrap();
            player.say_with(&[a.as_fd(), b.as_fd()][..count], |out| {
                message::control(out, kind::HELLO, &hello())
            });
            player.wait();
        })
        .build()
        .unwrap();
        assert_eq!(start_error(&pool).await.kind(), ErrorKind::NotAWorker, "{count} descriptors");
    }
}

#[tokio::test]
async fn messages_out_of_their_place_fail_the_start() {
    for step in 0..4 {
        let pool = played(move |_, player| {
            match step {
                0 => player.say(message::ready),
                1 => {
                    player.hello(|_| {});
                    player.hello(|_| {});
                }
                2 => {
                    player.hello(|_| {});
                    player.answer(1, 0);
                }
                _ => player.say(|out| out.extend([0xc1; 64])),
            }
            player.wait();
        })
        .build()
        .unwrap();
        assert_eq!(start_error(&pool).await.kind(), ErrorKind::NotAWorker, "step {step}");
    }
}

#[tokio::test]
async fn a_played_worker_serves() {
    let pool = played(|_, player| {
        player.become_ready();
        for n in 0..3 {
            let id = player.call();
            player.answer(id, n);
        }
        player.wait();
    })
    .build()
    .unwrap();
    for n in 0..3 {
        assert_eq!(
            tokio::time::timeout(HANG, pool.spawn(echo, 9)).await.expect("it hangs").unwrap(),
            n
        );
    }
}

/// The least that another program says, in a language that knows neither descriptors nor shared
/// memory.
#[tokio::test]
async fn a_worker_of_another_program_is_given_one_task_at_a_time_and_dies_of_that_one() {
    const ECHO: NamedTask<(u8,), u8> = NamedTask::new("echo.v1");
    let pool = played(|n, player| {
        let least =
            Hello { protocol: message::PROTOCOL, version: String::new(), fingerprint: None };
        player.say(|out| message::control(out, kind::HELLO, &least));
        assert_eq!(Message::new(&player.hear()).unwrap().kind, kind::WELCOME);
        player.say(message::ready);
        for round in 0..200 {
            let body = player.hear();
            let Ok(mut message) = Message::new(&body) else { return };
            let (slot, attempt) = (message.uint::<u16>().unwrap(), message.uint::<u8>().unwrap());
            let (id, flags) = (message.uint().unwrap(), message.uint::<u8>().unwrap());
            assert_eq!((slot, attempt, flags, message.rest().0), (0, 1, 0, 2));
            assert!(body[message.rest().1..].starts_with(b"\xa7echo.v1"), "{body:?}");
            if round % 50 == 49 {
                // Whatever its pace was so far: there is nothing behind it.
                std::thread::sleep(Duration::from_millis(5));
                assert_eq!(sys::queued(player.socket.as_fd()).unwrap(), 0);
                assert!(player.incoming.next_frame().unwrap().is_none());
            }
            if n == 0 && round == 150 {
                break; // with this one unanswered
            }
            player.answer(id, *body.last().unwrap());
        }
        player.socket.shutdown(std::net::Shutdown::Both).unwrap();
    })
    .program("another", ["program"])
    .build()
    .unwrap();
    let handles: Vec<_> =
        (0..300).map(|n| (n, pool.task_named(ECHO).spawn(n as u8 & 0x7f))).collect();
    for (n, handle) in handles {
        match tokio::time::timeout(HANG, handle).await.expect("it hangs") {
            Ok(value) => assert_eq!((value, n == 150), (n as u8 & 0x7f, false)),
            Err(error) => {
                assert_eq!((error.kind(), n), (TaskErrorKind::ProtocolViolation, 150), "{error}")
            }
        }
    }
}

/// What a worker may do wrong in the middle of its work, and what its task is told.
#[tokio::test]
async fn rubbish_in_the_place_of_an_answer_costs_that_task_and_the_worker() {
    type Play = fn(&mut Player, u64);
    let plays: [(&str, Play, TaskErrorKind); 10] = [
        ("an unknown number", |p, id| p.answer(id + 1000, 1), TaskErrorKind::ProtocolViolation),
        (
            "a frame of 4 GiB",
            |p, _| p.socket.write_all(&[0xff; 4]).unwrap(),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "a line of text, which is a length that may be",
            |p, _| p.socket.write_all(b"\n\n  a line").unwrap(),
            TaskErrorKind::ProtocolViolation,
        ),
        ("no message", |p, _| p.say(|out| out.push(0xc0)), TaskErrorKind::ProtocolViolation),
        (
            "a result that is missing",
            |p, id| p.say(|out| out.extend([0x92, kind::DONE, id as u8])),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "a failure that is none",
            |p, id| p.say(|out| out.extend([0x93, kind::FAILED, id as u8, 0xa1, b'?'])),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "a kind that does not exist",
            |p, _| p.say(|out| out.extend([0x91, 99])),
            TaskErrorKind::ProtocolViolation,
        ),
        ("a second hello", |p, _| p.hello(|_| {}), TaskErrorKind::ProtocolViolation),
        (
            "half a frame, and the end",
            |p, _| {
                p.socket.write_all(&[9, 0, 0, 0, 0x92]).unwrap();
                p.socket.shutdown(std::net::Shutdown::Both).unwrap();
            },
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "the end",
            |p, _| p.socket.shutdown(std::net::Shutdown::Both).unwrap(),
            TaskErrorKind::ProtocolViolation,
        ),
    ];
    for (what, play, expected) in plays {
        let pool = played(move |n, player| {
            player.become_ready();
            let id = player.call();
            if n == 0 {
                play(player, id);
            } else {
                player.answer(id, 42);
            }
            player.wait();
        })
        .build()
        .unwrap();
        let error = tokio::time::timeout(HANG, pool.spawn(echo, 1))
            .await
            .expect("it hangs")
            .expect_err(what);
        assert_eq!(error.kind(), expected, "{what}: {error}");
        // The pool goes on, with another worker.
        assert_eq!(
            tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap(),
            42,
            "{what}"
        );
    }
}

#[tokio::test]
async fn an_answer_given_twice_or_unasked_ends_the_worker_and_resolves_nothing_else() {
    let pool = played(|n, player| {
        player.become_ready();
        let id = player.call();
        player.answer(id, 1);
        if n == 0 {
            player.answer(id, 2);
        }
        player.wait();
    })
    .build()
    .unwrap();
    assert_eq!(
        tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap(),
        1
    );
    // Whether it still reaches the first worker or not: it is never told the second answer.
    match tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs") {
        Ok(value) => assert_eq!(value, 1),
        Err(error) => assert!(
            matches!(error.kind(), TaskErrorKind::ProtocolViolation | TaskErrorKind::WorkerDied),
            "{error}"
        ),
    }
}

/// What a worker may write into the memory that it shares with the pool, and what its task is told.
#[tokio::test]
async fn whatever_stands_in_its_memory_costs_a_worker_at_most_its_own_task() {
    type Play = fn(&mut Player, Claim);
    fn put(player: &Player, body: &[u8]) -> bool {
        player.memory.ring().put(&framed(|out| out.extend(body)))
    }
    let plays: [(&str, Play, TaskErrorKind); 9] = [
        (
            "a tail beyond the ring",
            |p, _| p.memory.ring().tail.store(1 << 20, Ordering::Release),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "a tail that goes back",
            |p, _| p.memory.ring().tail.store(u64::MAX - 7, Ordering::Release),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "a tail within a word",
            |p, _| p.memory.ring().tail.store(12, Ordering::Release),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "nothing but zeros",
            |p, _| p.memory.ring().tail.store(800, Ordering::Release),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "a frame that is cut",
            |p, _| assert!(p.memory.ring().put(&[200, 0, 0, 0, 1, 2, 3])),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "a frame of 4 GiB",
            |p, _| assert!(p.memory.ring().put(&[0xff; 64])),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "a hello in the outbox",
            |p, _| assert!(put(p, &[0x91, kind::HELLO])),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "an answer to nothing",
            |p, _| assert!(put(p, &[0x93, kind::DONE, 99, 1])),
            TaskErrorKind::ProtocolViolation,
        ),
        (
            "words of no meaning, and the end",
            |p, _| {
                p.memory.claims().offer(Claim { slot: 0, id: 1 << 60 });
                p.socket.shutdown(std::net::Shutdown::Both).unwrap();
            },
            TaskErrorKind::ProtocolViolation,
        ),
    ];
    for (what, play, expected) in plays {
        let pool = played(move |n, player| {
            player.become_ready();
            let claim = player.unclaimed();
            assert!(player.memory.claims().begin(claim));
            if n == 0 {
                play(player, claim);
                let _ = player.socket.write_all(&framed(message::bell));
            } else {
                player.answer(claim.id, 42);
            }
            player.wait();
        })
        .build()
        .unwrap();
        let error = tokio::time::timeout(HANG, pool.spawn(echo, 1))
            .await
            .expect("it hangs")
            .expect_err(what);
        assert_eq!(error.kind(), expected, "{what}: {error}");
        assert_eq!(
            tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap(),
            42,
            "{what}"
        );
    }
}

/// A worker that answers without having claimed its task, and by the outbox: it is what any other
/// would be.
#[tokio::test]
async fn a_reply_counts_more_than_a_word() {
    let pool = played(|_, player| {
        player.become_ready();
        for n in 0..3 {
            let claim = player.unclaimed();
            assert!(player.memory.ring().put(&framed(|out| {
                message::done(out, claim.id);
                out.push(n);
            })));
            if player.memory.ring().wants_bell() {
                player.socket.write_all(&framed(message::bell)).unwrap();
            }
        }
        player.wait();
    })
    .build()
    .unwrap();
    for n in 0..3 {
        assert_eq!(
            tokio::time::timeout(HANG, pool.spawn(echo, 9)).await.expect("it hangs").unwrap(),
            n
        );
    }
}

async fn echo_async(n: u8) -> u8 {
    n
}

/// A worker with much in hand that answers little. What it answers comes in time though it does not
/// ring, and from then on it is to ring for each reply and the pool sleeps.
#[tokio::test]
async fn a_worker_that_rings_late_and_becomes_slow_is_not_looked_at_for_ever() {
    const TASKS: u8 = 32;
    const AT_ONCE: u64 = 8;
    let (told, slow) = tokio::sync::oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let pool = played(move |_, player| {
        player.become_ready();
        let claims: Vec<_> = (0..TASKS).map(|_| player.unclaimed()).collect();
        let memory = Arc::clone(&player.memory);
        let ring = memory.ring();
        let put = |at: u64| {
            let claim = claims[at as usize];
            assert!(memory.claims().begin(claim));
            assert!(ring.put(&framed(|out| {
                message::done(out, claim.id);
                out.push(at as u8);
            })));
            memory.claims().finish(claim);
        };
        let armed = |what: &dyn Fn(u64) -> bool| {
            let end = std::time::Instant::now() + HANG;
            while !what(ring.ring_at.load(Ordering::Acquire)) {
                assert!(std::time::Instant::now() < end, "the doorbell is not armed");
                std::thread::sleep(Duration::from_micros(100));
            }
        };
        (0..AT_ONCE).for_each(put);
        assert!(ring.wants_bell());
        player.socket.write_all(&framed(message::bell)).unwrap();
        // For as many as came at once, unless a millisecond has passed since.
        armed(&|at| (AT_ONCE + 1..=2 * AT_ONCE).contains(&at));
        put(AT_ONCE);
        if ring.wants_bell() {
            player.socket.write_all(&framed(message::bell)).unwrap();
        }
        armed(&|at| at == AT_ONCE + 2);
        told.lock().unwrap().take().unwrap().send(()).unwrap();
        player.wait();
    })
    .build()
    .unwrap();
    let mut handles: Vec<_> = (0..TASKS).map(|n| pool.spawn(echo_async, n)).collect();
    for (n, handle) in handles.drain(..=AT_ONCE as usize).enumerate() {
        let answer = tokio::time::timeout(HANG, handle).await.expect("it hangs").unwrap();
        assert_eq!(usize::from(answer), n);
    }
    tokio::time::timeout(HANG, slow).await.expect("it hangs").unwrap();
    assert!(pool.engine().moderation.get().unwrap().is_none(), "a timer runs");
}

/// What ends the process before anything was begun moves the task, but not for ever.
#[tokio::test]
async fn a_frame_that_kills_whoever_reads_it_costs_its_own_task_and_not_the_pool() {
    let pool = played(|n, player| {
        player.become_ready();
        let claim = player.unclaimed();
        if n < 3 {
            player.socket.shutdown(std::net::Shutdown::Both).unwrap();
        } else {
            player.answer(claim.id, n as u8);
        }
        player.wait();
    })
    .build()
    .unwrap();
    let error = tokio::time::timeout(HANG, pool.spawn(echo, 1))
        .await
        .expect("it hangs")
        .expect_err("its third death is its own");
    assert_eq!(error.kind(), TaskErrorKind::ProtocolViolation);
    assert_eq!(
        tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap(),
        3
    );
}

#[tokio::test]
async fn a_result_nested_too_deeply_is_an_error_of_its_task_alone() {
    let pool = played(|_, player| {
        player.become_ready();
        let id = player.call();
        player.say(|out| {
            message::done(out, id);
            out.extend([0x91; 100_000]);
            out.push(0xc0);
        });
        let id = player.call();
        player.answer(id, 5);
        player.wait();
    })
    .build()
    .unwrap();
    let error =
        tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ResultDecode);
    assert_eq!(
        tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap(),
        5
    );
}

/// Whether a value is worth another try is for the worker to say; how often it is tried, for the
/// call.
#[tokio::test]
async fn an_answer_that_is_worth_another_try_is_tried_as_often_as_the_call_says() {
    let pool = played(|_, player| {
        player.become_ready();
        for value in 1..=4 {
            let call = player.hear();
            let mut message = Message::new(&call).unwrap();
            let slot = message.uint().unwrap();
            let attempt: u8 = message.uint().unwrap();
            let claim = Claim { slot, id: message.uint().unwrap() };
            assert_eq!(attempt, [1, 1, 2, 3][usize::from(value) - 1]);
            assert!(player.memory.claims().begin(claim));
            player.say(|out| {
                let start = out.len();
                message::done(out, claim.id);
                message::worth_another_try(&mut out[start..]);
                out.push(value);
            });
        }
        player.wait();
    })
    .build()
    .unwrap();
    assert_eq!(
        tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap(),
        1
    );
    let retried = pool.task(echo).retries(2).spawn(1);
    assert_eq!(tokio::time::timeout(HANG, retried).await.expect("it hangs").unwrap(), 4);
}

#[tokio::test]
async fn half_an_answer_and_silence_can_be_aborted() {
    let pool = played(|_, player| {
        player.become_ready();
        let id = player.call();
        let answer = framed(|out| message::done(out, id));
        player.socket.write_all(&answer[..answer.len() - 1]).unwrap();
        player.wait();
    })
    .build()
    .unwrap();
    let handle = pool.spawn(echo, 1);
    while handle.worker_pid().is_none() {
        assert!(!handle.is_finished(), "it ends before it is aborted");
        tokio::task::yield_now().await;
    }
    handle.abort();
    assert!(
        tokio::time::timeout(HANG, handle).await.expect("it hangs").unwrap_err().is_cancelled()
    );
}

#[tokio::test]
async fn a_worker_that_rings_for_nothing_breaks_the_protocol() {
    let pool = played(|n, player| {
        player.become_ready();
        let id = player.call();
        if n == 0 {
            let bells = framed(message::bell).repeat(1000);
            let _ = player.socket.write_all(&bells);
            return player.wait();
        }
        let answer = framed(|out| {
            message::done(out, id);
            out.push(42);
        });
        assert!(player.memory.ring().put(&answer));
        player.memory.claims().finish(Claim { slot: 0, id });
        player.say(message::bell);
        player.wait();
    });
    let pool = pool.build().unwrap();
    let error = tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs");
    let error = error.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ProtocolViolation);
    assert!(error.to_string().contains("it rang"), "{error}");
    let answer = tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs");
    assert_eq!(answer.unwrap(), 42);
}

/// A bell behind it is taken for its next bytes.
#[tokio::test]
async fn half_a_frame_hides_no_answer_and_its_worker_is_ended() {
    let pool = played(|_, player| {
        player.become_ready();
        for value in [1, 2] {
            let id = player.call();
            if value == 1 {
                let half = framed(|out| out.extend([0x93, kind::DONE, 100, 0xc4, 200, 1]));
                let more = 1000_u32.to_le_bytes();
                player.socket.write_all(&[&more, &half[4..]].concat()).unwrap();
            }
            let answer = framed(|out| {
                message::done(out, id);
                out.push(value);
            });
            assert!(player.memory.ring().put(&answer));
            player.memory.claims().finish(Claim { slot: 0, id });
            player.say(message::bell);
        }
        player.call(); // and silence
        player.wait();
    })
    .build()
    .unwrap();
    for value in [1, 2] {
        let answer = tokio::time::timeout(HANG, pool.spawn(echo, 1)).await;
        assert_eq!(answer.expect("it hangs").unwrap(), value);
    }
    let error = tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs");
    let error = error.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ProtocolViolation);
    assert!(error.to_string().contains("did not go on"), "{error}");
}

#[tokio::test]
async fn a_start_that_the_system_refuses_is_told_to_its_tasks_and_the_pool_recovers() {
    let pool = builder({
        let tries = AtomicUsize::new(0);
        move || {
            if tries.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(Error::spawn(
                    "starting a worker process",
                    std::io::Error::from_raw_os_error(11),
                ));
            }
            let (launched, socket, memory) = launch(Command::new("sleep").arg("1000"));
            std::thread::spawn(move || {
                let mut player = Player::new(socket, memory);
                player.become_ready();
                let id = player.call();
                player.answer(id, 3);
                player.wait();
            });
            Ok(launched)
        }
    })
    .start_attempts(1)
    .build()
    .unwrap();
    let error =
        tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::StartFailed);
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("starting a worker"), "{source}");
    loop {
        // Until the back-off has passed, the same cause is told at once.
        match tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs") {
            Ok(value) => break assert_eq!(value, 3),
            Err(error) => assert_eq!(error.kind(), TaskErrorKind::StartFailed),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_start_that_was_ordered_before_a_kill_is_not_made_after_it() {
    let count = Arc::new(AtomicUsize::new(0));
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let counted = Arc::clone(&count);
    let starts = move || {
        counted.fetch_add(1, Ordering::AcqRel);
        let _ = gate.lock().unwrap().recv_timeout(HANG);
        Err(Error::spawn("testing", std::io::Error::other("no")))
    };
    let pool = builder(starts).workers(3).build().unwrap();
    let tasks: Vec<_> = (0..3).map(|_| pool.spawn(std::process::id, ())).collect();
    while count.load(Ordering::Acquire) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ending = pool.kill();
    go.send(()).unwrap();
    tokio::time::timeout(HANG, ending).await.unwrap();
    for task in tasks {
        assert!(task.await.unwrap_err().is_pool_closed());
    }
    assert_eq!(count.load(Ordering::Acquire), 1, "the one that was under way");
}
