//! A program that is started with the worker's variable set, but not by a pool.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::fixtures;
use crate::support::fixtures::Ran;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const VARIABLE: &str = "PROCPOOL_WORKER";
/// Nothing that a worker understands, and long enough for any message to be whole.
const GARBAGE: [u8; 4096] = [0x5a; 4096];

fn program() -> PathBuf {
    fixtures::build("program", "dev").join("fixture-program")
}

/// Marked as a worker, and told what `main` would do.
fn marked(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("build").env(VARIABLE, env!("CARGO_PKG_VERSION"));
    command
}

/// The same, as a child of a shell: what the shell was given was made by the child's grandparent.
fn marked_grandchild(program: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"PROCPOOL_WORKER=$1 "$2" build; exit $?"#, "sh", env!("CARGO_PKG_VERSION")])
        .arg(program);
    command
}

/// It ends with a code of its own, says why, and `main` has not run.
fn assert_refused(what: &str, why: &str, ran: &Ran) {
    assert_eq!((ran.status.code(), &*ran.stdout), (Some(126), ""), "{what}: {ran:#?}");
    let stderr = ran.stderr.trim_end();
    let said =
        stderr.strip_prefix("procpool: this process was started as a worker and cannot be one: ");
    assert!(
        said.is_some_and(|said| said.contains(why) && !said.contains('\n')),
        "{what}: {ran:#?}"
    );
}

/// What a worker says first, as its parent hears it.
fn earlier_hello(program: &Path) -> Vec<u8> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let child = marked(program)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut hello = vec![0; 4096];
    let len = ours.read(&mut hello).unwrap();
    hello.truncate(len);
    assert!(
        hello.windows(5).any(|bytes| bytes == env!("CARGO_PKG_VERSION").as_bytes()),
        "{hello:?}"
    );
    // The lifeline came with it, was not taken, and so has closed.
    let ran = fixtures::wait(child);
    assert_eq!((ran.status.signal(), &*ran.stdout, &*ran.stderr), (Some(9), "", ""));
    hello
}

#[test]
fn what_is_no_socket_is_refused() {
    let program = program();
    assert_refused(
        "nothing",
        "no socket of a pool",
        &fixtures::finish(marked(&program).stdin(Stdio::null())),
    );
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&GARBAGE).unwrap();
    assert_refused(
        "a pipe",
        "no socket of a pool",
        &fixtures::finish(marked(&program).stdin(reader)),
    );
    let file = std::fs::File::open(&program).unwrap();
    assert_refused(
        "a file",
        "no socket of a pool",
        &fixtures::finish(marked(&program).stdin(file)),
    );
    let mut closed = Command::new("sh");
    closed
        .args(["-c", r#"PROCPOOL_WORKER=$1 exec "$2" build <&-"#, "sh", env!("CARGO_PKG_VERSION")])
        .arg(&program);
    assert_refused("closed", "no socket of a pool", &fixtures::finish(&mut closed));
}

#[test]
fn a_socket_of_another_process_is_refused_whatever_it_says() {
    let program = program();
    let hello = earlier_hello(&program);
    for (what, bytes) in [("nothing", &[][..]), ("garbage", &GARBAGE), ("an earlier hello", &hello)]
    {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(bytes).unwrap();
        let ran = fixtures::finish(marked_grandchild(&program).stdin(OwnedFd::from(theirs)));
        assert_refused(what, "not made by its parent", &ran);
        // It has not answered: nothing of it can be learnt that way.
        ours.set_nonblocking(true).unwrap();
        let answer = ours.read(&mut [0; 16]);
        assert!(matches!(answer, Ok(0)) || answer.is_err(), "{what}: {answer:?}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut ours, _) = listener.accept().unwrap();
    ours.write_all(&hello).unwrap();
    assert_refused(
        "a network",
        "no socket of a pool",
        &fixtures::finish(marked(&program).stdin(OwnedFd::from(theirs))),
    );
}

/// Who answers a hello with anything but a welcome is no pool, even if it is the parent.
#[test]
fn a_parent_that_is_no_pool_is_refused() {
    let program = program();
    let hello = earlier_hello(&program);
    for (what, bytes) in [("garbage", &GARBAGE[..]), ("a hello", &hello)] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(bytes).unwrap();
        let ran = fixtures::finish(marked(&program).stdin(OwnedFd::from(theirs)));
        assert_refused(what, "", &ran);
    }
}

/// It is another crate's worker, or nobody's: `main` runs, but makes no pool whose workers would do
/// the same.
#[test]
fn another_versions_mark_is_left_alone_but_no_pool_is_built() {
    let program = program();
    for mark in ["999.0.0", ""] {
        let ran = fixtures::finish(marked(&program).env(VARIABLE, mark).stdin(Stdio::null()));
        let printed = ran.printed();
        assert!(printed.starts_with("main\nInsideWorker: "), "{printed}");
    }
}
