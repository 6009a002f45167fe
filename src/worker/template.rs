//! A template: a worker that runs a preload function and then, instead of tasks, forks workers.
//!
//! ```text
//! application                       template                        forked worker
//!      ── FORK, a socket ─────────────▶ one thread? fork ──────────────▶ parent-death signal
//!      ◀───────────────────────────────────────────────── BORN, HELLO ─  on that socket
//!      owns it: pidfd, process group
//!      ── WELCOME, as for any worker ──────────────────────────────────▶
//! ```
//!
//! The worker is a child of the application (`process/clone.rs`). Until the application knows it, it
//! stands in the template's process group, which the template's lifeline kills. The kernel says who
//! has sent BORN. The template says on the worker's socket why it did not fork; if it dies, that
//! socket closes.

use super::inbox::Inbox;
use super::lifeline::Lifeline;
use super::serve::{drop_payload, in_frame, lost};
use super::{parent, raw};
use crate::process::clone::{self, Side};
use crate::process::{fork, sys, thread};
use crate::wire::message::{self, Message, NotForked, kind};
use nix::libc;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// How a process leaves the service of a template.
pub(super) enum Left {
    /// As the template: the application has closed its side.
    Template,
    /// As a worker that was forked; its socket.
    Worker {
        socket: OwnedFd,
        /// The application makes it the leader of a process group.
        group: bool,
    },
}

/// Serves the application until it closes its side; in each copy, returns as a worker.
pub(super) fn serve(
    mut inbox: Inbox,
    lifeline: Lifeline,
    renewed: &[RawFd],
) -> Result<Left, String> {
    loop {
        let Some(range) = inbox.wait().map_err(lost)? else { return Ok(Left::Template) };
        let mut message = Message::new(inbox.bytes(range)).map_err(|e| e.to_string())?;
        if message.kind != kind::FORK {
            return Err(format!("a message of kind {} to a template", message.kind));
        }
        let mut flag = || message.uint::<u8>().map_err(|e| e.to_string()).map(|flag| flag != 0);
        let (has_stdout, group) = (flag()?, flag()?);
        message.end().map_err(|e| e.to_string())?;
        let mut descriptor = || inbox.descriptor().ok_or("a descriptor of a fork did not arrive");
        let socket = descriptor()?;
        let stdout = if has_stdout { Some(descriptor()?) } else { None };
        match fork_one() {
            Ok(Side::Original) => {}
            Ok(Side::Copy) => {
                drop(inbox);
                drop(lifeline);
                be_born(&socket, stdout, renewed)?;
                return Ok(Left::Worker { socket, group });
            }
            Err(refused) => {
                let out = in_frame(|out| message::control(out, kind::NOT_FORKED, &refused));
                // If nobody wants to know, so be it.
                let _ = sys::send(socket.as_fd(), &out);
            }
        }
    }
}

fn fork_one() -> Result<Side, NotForked> {
    check_threads().map_err(|reason| NotForked { reason, not_forkable: true })?;
    #[expect(unsafe_code, reason = "a fork, in a process of one thread")]
    // SAFETY: that has just been checked; the process runs nothing else that could start one.
    let forked = unsafe { clone::fork_sibling() };
    forked.map_err(|e| NotForked { reason: format!("fork: {e}"), not_forkable: false })
}

/// What the copy does first. It is not told when the application knows it: it goes on to its HELLO,
/// which nobody reads before that.
fn be_born(socket: &OwnedFd, stdout: Option<OwnedFd>, renewed: &[RawFd]) -> Result<(), String> {
    let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    // The kernel clears it at a fork. Before the application takes this process out of the group
    // of the template, which dies with the application, too.
    raw::set_parent_death_signal(libc::SIGKILL)
        .map_err(failed("setting the parent-death signal"))?;
    fork::become_original();
    if parent::parent_pid().is_some_and(|pid| pid != std::os::unix::process::parent_id()) {
        raw::exit_now();
    }
    // What came was for the template.
    raw::forget_signals();
    renew(renewed).map_err(failed("renewing a socket of the runtime"))?;
    if let Some(stdout) = stdout {
        nix::unistd::dup2_stdout(stdout)
            .map_err(|e| format!("taking over standard output: {e}"))?;
    }
    // An error: nobody wants it any more.
    if sys::send(socket.as_fd(), &in_frame(message::born)).is_err() {
        raw::exit_now();
    }
    Ok(())
}

/// Whether this process, as its preload function has left it, may be forked; else why not.
pub(super) fn check() -> Result<(), String> {
    clone::check().map_err(|e| e.to_string())?;
    check_threads()?;
    let held = held_descriptors().map_err(|e| format!("reading /proc/self/fd: {e}"))?;
    if held.is_empty() {
        return Ok(());
    }
    Err(format!("it holds what processes cannot share: {}", held.join(", ")))
}

fn check_threads() -> Result<(), String> {
    match thread::others() {
        Ok(names) if names.is_empty() => Ok(()),
        Ok(names) => Err(format!("other threads run in it: {}", names.join(", "))),
        Err(error) => Err(format!("its threads cannot be counted: {error}")),
    }
}

/// Descriptors behind which a fork leaves one state to several processes: event sets (a runtime
/// that was kept), submission rings, graphics processors.
fn held_descriptors() -> io::Result<Vec<String>> {
    const ANONYMOUS: [&str; 3] =
        ["anon_inode:[eventpoll]", "anon_inode:[io_uring]", "anon_inode:[userfaultfd]"];
    const DEVICES: [&str; 4] = ["/dev/nvidia", "/dev/dri/", "/dev/kfd", "/dev/accel/"];
    let mut held = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy();
        if ANONYMOUS.contains(&&*target) || DEVICES.iter().any(|path| target.starts_with(path)) {
            held.push(target.into_owned());
        }
    }
    Ok(held)
}

/// Writes out what the preload function has left in buffers, which each copy would write again.
pub(super) fn flush() {
    let _ = io::stdout().flush();
    raw::flush_c_streams();
}

/// Ends the runtime of a preload function, with its threads if they end within a second; what is
/// left of them is found by [`check`].
pub(super) fn end_runtime(runtime: tokio::runtime::Runtime) {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(1);
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.shutdown_timeout(LIMIT);
    }));
    if let Err(payload) = ended {
        drop_payload(payload);
    }
}

/// The two sockets that the first runtime of a process leaves open for good: tokio's handler of
/// signals writes into one of them, and the runtimes read the other. In copies that shared them, the
/// signal of one would wake another. Empty if tokio is built without signals.
///
/// To be called when there has been no runtime.
pub(super) fn sockets_of_runtimes(make: impl FnOnce()) -> io::Result<Vec<RawFd>> {
    let open = || -> io::Result<Vec<RawFd>> {
        let numbers = std::fs::read_dir("/proc/self/fd")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(numbers.collect())
    };
    let before = open()?;
    make();
    let mut left = open()?;
    // The number of the directory is free again each time, and may be another's now.
    left.retain(|number| !before.contains(number));
    let is_socket = |number: &RawFd| {
        std::fs::read_link(format!("/proc/self/fd/{number}"))
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    left.retain(is_socket);
    if left.len() != 2 {
        return Ok(Vec::new());
    }
    Ok(left)
}

/// Puts a new pair in the place of these two sockets.
fn renew(sockets: &[RawFd]) -> io::Result<()> {
    let [one, other] = sockets else { return Ok(()) };
    let pair = UnixStream::pair()?;
    for (new, old) in [(pair.0, one), (pair.1, other)] {
        new.set_nonblocking(true)?;
        raw::put_in_place(new.as_raw_fd(), *old)?;
    }
    Ok(())
}
