//! Tests with processes that are none of ours: other programs, and bytes that no process of ours
//! would send.
//!
//! The machine is a real one; only what it starts is replaced, by a process that sleeps. The test
//! says on the socket what that process is to have said, and drives the machine itself.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::zombie_processes, reason = "the machine reaps what it is given")]

use super::Process;
use super::builder::Order;
use super::machine::{self, Given, Launched, Machine};
use super::streams::Streams;
use crate::error::{Error, ErrorKind, TaskErrorKind};
use crate::process::testing::{Barrier, children, in_own_process, is_own_process, wait_until};
use crate::process::{Child, standard, sys};
use crate::reactor::Source;
use crate::reactor::once_event::OnceEvent;
use crate::stdio::Stdio;
use crate::task;
use crate::wire::frame;
use crate::wire::message::{self, Callee, Failed, Hello, kind};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(30);

/// A process that is played by the test.
struct Played {
    process: Process<u8>,
    socket: Option<UnixStream>,
    started: Arc<OnceEvent<Result<u32, Error>>>,
}

fn order(detach: bool) -> Order {
    Order {
        env: Vec::new(),
        env_clear: false,
        current_dir: None,
        name: None,
        group: true,
        stdin: Stdio::null(),
        stdout: Stdio::null(),
        stderr: Stdio::null(),
        tied: true,
        detach,
        umask: None,
        limits: None,
        function: "a function",
        call: framed(|out| message::call(out, 1, 0, Callee::Index(0), 0)),
        things: Vec::new(),
        template: None,
    }
}

impl Played {
    fn of(script: &str, detach: bool, limit: Duration) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let early_stderr = standard::early_stderr().unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .stdin(OwnedFd::from(theirs.try_clone().unwrap()))
            .stderr(early_stderr.try_clone().unwrap());
        let child = command.process_group(0).spawn().unwrap();
        let child = Child::adopt(child.id(), true).unwrap();
        let order = order(detach);
        let given = Given { stdin: None, stderr: standard::null().unwrap(), handover: None };
        let started = Arc::new(OnceEvent::new());
        let launched = Launched { child, socket: ours.into(), early_stderr: Some(early_stderr) };
        let machine = Machine::new(order, given, launched, Arc::clone(&started), limit).unwrap();
        Self {
            process: Process::new(machine, Streams::default(), false),
            socket: Some(theirs),
            started,
        }
    }

    fn sleeping() -> Self {
        Self::of("exec sleep 1000", false, HANG)
    }

    fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.say_bytes(&framed(write));
    }

    fn say_bytes(&mut self, bytes: &[u8]) {
        self.socket.as_mut().unwrap().write_all(bytes).unwrap();
        self.drive();
    }

    /// A hello with so many descriptors.
    fn hello(&mut self, descriptors: usize, change: impl FnOnce(&mut Hello)) {
        let mut hello = Hello {
            protocol: message::PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            fingerprint: Some(task::fingerprint()),
        };
        change(&mut hello);
        let (_kept, lifeline) = UnixStream::pair().unwrap();
        let bytes = framed(|out| message::control(out, kind::HELLO, &hello));
        let fds = vec![lifeline.as_fd(); descriptors];
        sys::send_with_fds(self.socket.as_ref().unwrap().as_fd(), &[IoSlice::new(&bytes)], &fds)
            .unwrap();
        self.drive();
    }

    fn ready(&mut self) {
        self.hello(1, |_| {});
        self.say(message::ready);
        assert!(matches!(self.started.get(), Some(Ok(_))));
    }

    /// Makes a pass. Returns whether it goes on.
    fn drive(&self) -> bool {
        let machine = &*self.process.machine;
        machine.reactor().drive(machine);
        !machine.reactor().has_ended()
    }

    /// Drives until the end.
    fn end(&self) {
        let start = Instant::now();
        while self.drive() {
            assert!(start.elapsed() < HANG, "it does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!self.process.is_alive());
    }

    /// It never starts, as it should; gives the cause.
    fn fails_to_start(&self) -> Error {
        self.end();
        let error = self.process.try_join().unwrap().unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::StartFailed, "{error:?}");
        self.started.get().unwrap().unwrap_err()
    }

    /// The process is killed because of what it said.
    fn is_bad(&self) {
        self.end();
        let error = self.process.try_join().unwrap().unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::ProtocolViolation, "{error:?}");
        assert_eq!(self.process.exit_status().unwrap().signal(), Some(9));
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}

fn framed(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, |out| write(out));
    out
}

#[test]
fn a_good_one_is_served() {
    let mut played = Played::sleeping();
    assert!(played.drive() && played.started.get().is_none());
    played.ready();
    played.say(|out| {
        message::done(out, 1);
        out.push(7);
    });
    // An answer is no end.
    assert!(played.drive() && played.process.try_join().is_none() && played.process.is_alive());
    played.process.kill().unwrap();
    played.end();
    assert_eq!(
        played.process.try_join().unwrap().unwrap(),
        7,
        "a whole answer counts, however it ended then"
    );
    // The welcome and the call have come, and then the end.
    let mut all = Vec::new();
    played.socket.as_mut().unwrap().read_to_end(&mut all).unwrap();
    assert!(all.ends_with(&framed(|out| message::call(out, 1, 0, Callee::Index(0), 0))));
}

#[test]
fn nothing_is_said_to_what_has_not_said_hello() {
    for bytes in [
        &b"#!/usr/bin/python\n"[..],
        &[0xff; 64],
        &framed(message::ready),
        &framed(|out| message::done(out, 1)),
    ] {
        let mut played = Played::sleeping();
        played.say_bytes(bytes);
        assert_eq!(played.fails_to_start().kind(), ErrorKind::NotAWorker);
        let mut heard = Vec::new();
        let _ = played.socket.as_mut().unwrap().read_to_end(&mut heard); // a reset is no word either
        assert!(heard.is_empty());
    }
}

#[test]
fn a_hello_of_another_kind_is_refused() {
    let changes: [fn(&mut Hello); 3] =
        [|h| h.protocol += 1, |h| h.version.push('x'), |h| h.fingerprint = Some(1)];
    for change in changes {
        let mut played = Played::sleeping();
        played.hello(1, change);
        assert_eq!(played.fails_to_start().kind(), ErrorKind::NotAWorker);
    }
    for descriptors in [0, 2] {
        let mut played = Played::sleeping();
        played.hello(descriptors, |_| {});
        assert_eq!(played.fails_to_start().kind(), ErrorKind::NotAWorker);
    }
}

#[test]
fn what_never_says_hello_is_ended_and_its_last_words_are_told() {
    let played =
        Played::of("echo not today >&2; exec sleep 1000", false, Duration::from_millis(300));
    let error = played.fails_to_start();
    assert_eq!((error.kind(), error.is_timeout()), (ErrorKind::StartTimeout, true));
    let played = Played::of("echo not today >&2; exit 3", false, HANG);
    let error = played.fails_to_start();
    assert_eq!(error.kind(), ErrorKind::DiedAtStart);
    assert_eq!(
        (error.stderr_tail(), error.exit_status().unwrap().code()),
        (Some("not today\n"), Some(3))
    );
    // Also if it hangs up first.
    let mut played = Played::of("exec <&-; exec sleep 1000", false, Duration::from_millis(300));
    played.socket = None;
    assert_eq!(played.fails_to_start().kind(), ErrorKind::StartTimeout);
}

#[test]
fn rubbish_in_the_place_of_an_answer_ends_the_process() {
    let failed = Failed::Panicked { message: "m".into(), location: None, backtrace: None };
    let answers: [Vec<u8>; 8] = [
        vec![0xff; 64],
        framed(|_| {}),
        framed(message::ready),
        framed(|out| message::done(out, 2)),
        framed(|out| {
            message::done(out, 2);
            out.push(1);
        }),
        framed(|out| message::failed(out, 0, &failed)),
        framed(|out| message::detached(out, 1)),
        framed(|out| message::cancel(out, 1)),
    ];
    for answer in answers {
        let mut played = Played::sleeping();
        played.ready();
        played.say_bytes(&answer);
        played.is_bad();
    }
    // What is an answer and holds no value is an error of the value alone.
    let mut played = Played::sleeping();
    played.ready();
    played.say(|out| {
        message::done(out, 1);
        out.extend([0xc1, 0xc1]);
    });
    played.process.kill().unwrap();
    played.end();
    assert_eq!(played.process.try_join().unwrap().unwrap_err().kind(), TaskErrorKind::ResultDecode);
}

#[test]
fn half_an_answer_and_the_end_is_a_death() {
    let mut played = Played::sleeping();
    played.ready();
    let whole = framed(|out| {
        message::done(out, 1);
        out.push(7);
    });
    played.say_bytes(&whole[..whole.len() - 1]);
    played.process.terminate().unwrap();
    played.end();
    let error = played.process.try_join().unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.exit_status().unwrap().signal()),
        (TaskErrorKind::WorkerDied, Some(15))
    );
}

#[test]
fn a_daemon_that_dies_before_it_has_its_call_has_not_started() {
    for says in [false, true] {
        let mut played = Played::of("exit 0", true, HANG);
        let start = Instant::now();
        while played.process.is_alive() {
            assert!(start.elapsed() < HANG);
        }
        assert!(played.drive(), "the one that forks ends first");
        if says {
            played.hello(1, |_| {});
            played.say_bytes(&framed(message::ready));
        }
        played.socket = None;
        let start = Instant::now();
        while played.drive() {
            assert!(start.elapsed() < HANG);
        }
        let error = played.started.get().unwrap().unwrap_err();
        let expected = if says { ErrorKind::NotAWorker } else { ErrorKind::DiedAtStart };
        assert_eq!(error.kind(), expected, "READY is for those that are no daemons");
    }
}

#[test]
fn a_child_that_is_held_up_before_its_exec_is_an_error_in_time() {
    in_own_process("single::strange_processes::own_process_held_up");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_held_up() {
    if !is_own_process() {
        return;
    }
    let limit = Duration::from_millis(50);
    let _barrier = Barrier::new();
    let error = machine::spawn_within(limit, order(false)).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StartTimeout, "{error}");
    assert!(error.is_timeout() && error.time_limit() == Some(limit) && error.pid().is_none());
    wait_until("it is killed and reaped", || children().is_empty());
}
