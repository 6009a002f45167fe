//! The two ends of a channel, as threads that block and tasks of runtimes use them: signals, ends
//! that are closed, processes that are killed while the other waits for them, and many users of one
//! end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use crate::support::{FUSE, in_own_process, own_dir, signal, soon, wait_until};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{Pid, gettid};
use procpool::Process;
use procpool::sync::ErrorKind;
use procpool::sync::{Channel, channel, duplex};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(20);
/// More than there is room for on the way.
const LARGE: usize = 8 << 20;

/// Runs it on a thread. Gives the thread's number, too.
fn started<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> (JoinHandle<T>, Pid) {
    let (told, hears) = mpsc::channel();
    let thread = thread::spawn(move || {
        told.send(gettid()).unwrap();
        body()
    });
    (thread, hears.recv().unwrap())
}

/// The same, and comes back when it waits in this system call.
fn blocked<T: Send + 'static>(
    call: libc::c_long,
    body: impl FnOnce() -> T + Send + 'static,
) -> (JoinHandle<T>, Pid) {
    let (thread, id) = started(body);
    let (now, call) = (format!("/proc/self/task/{id}/syscall"), format!("{call} "));
    wait_until("it waits", || {
        std::fs::read_to_string(&now).is_ok_and(|now| now.starts_with(&call))
    });
    (thread, id)
}

fn ended<T>(thread: JoinHandle<T>) -> T {
    wait_until("its end", || thread.is_finished());
    thread.join().unwrap()
}

// ---- signals

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// From now on the signal interrupts system calls, and nothing else.
#[expect(unsafe_code, reason = "a handler")]
fn be_interrupted() {
    let action = SigAction::new(SigHandler::Handler(count), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler counts in an atomic.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
}

/// Gives whether there was such a thread.
#[expect(unsafe_code, reason = "a system call without a wrapper")]
fn signal_thread(thread: Pid) -> bool {
    // SAFETY: sends a signal to a thread of this process, if there is one of that number.
    unsafe {
        libc::syscall(libc::SYS_tgkill, std::process::id(), thread.as_raw(), libc::SIGUSR1) == 0
    }
}

#[test]
fn signals_do_not_end_a_blocking_call() {
    in_own_process("own_process_that_is_interrupted");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_that_is_interrupted() {
    if own_dir().is_none() {
        return;
    }
    be_interrupted();
    let interrupt = |thread: Pid, times: u32| {
        for _ in 0..times {
            let before = SIGNALS.load(Ordering::Relaxed);
            assert!(signal_thread(thread));
            wait_until("the handler has run", || SIGNALS.load(Ordering::Relaxed) > before);
        }
    };
    let (here, there) = channel::<Vec<u8>>().unwrap();
    let (receiving, at) = blocked(libc::SYS_recvmsg, move || (there.blocking_recv(), there));
    interrupt(at, 10);
    assert!(!receiving.is_finished());
    here.blocking_send(vec![1; 10]).unwrap();
    let (received, there) = ended(receiving);
    assert_eq!(received.unwrap(), Some(vec![1; 10]));

    // In the midst of one that goes by parts.
    let (sending, at) =
        blocked(libc::SYS_sendto, move || (here.blocking_send(vec![2; LARGE]), here));
    interrupt(at, 10);
    assert!(!sending.is_finished());
    assert!(there.blocking_recv().unwrap() == Some(vec![2; LARGE]));
    let (sent, here) = ended(sending);
    sent.unwrap();

    let begun = Instant::now();
    let limit = Duration::from_millis(200);
    let (waiting, at) = started(move || here.blocking_recv_timeout(limit));
    while !waiting.is_finished() {
        signal_thread(at);
        thread::yield_now();
    }
    assert!(ended(waiting).unwrap_err().is_timeout());
    assert!(begun.elapsed() >= limit, "not before its time");
}

// ---- the other end

#[test]
fn an_end_that_is_closed_ends_the_call_that_waits_for_it() {
    let (here, there) = channel::<Vec<u8>>().unwrap();
    here.try_recv().unwrap_err();
    let (receiving, _) = blocked(libc::SYS_recvmsg, move || there.blocking_recv());
    drop(here);
    assert_eq!(ended(receiving).unwrap(), None);

    let (here, there) = channel::<Vec<u8>>().unwrap();
    here.try_recv().unwrap_err();
    let (sending, _) = blocked(libc::SYS_sendto, move || there.blocking_send(vec![3; LARGE]));
    drop(here);
    let refused = ended(sending).unwrap_err();
    assert!(refused.error().is_closed());
    assert!(refused.into_inner() == vec![3; LARGE], "the item comes back");
}

/// Takes its end, says so, and does nothing else.
fn sits(end: Channel<Vec<u8>>) {
    end.blocking_send(vec![1]).unwrap();
    loop {
        thread::park();
    }
}

/// One that sits, and its other end.
fn sitting() -> (Process<()>, Channel<Vec<u8>>) {
    let (here, there) = channel().unwrap();
    let process = Process::spawn(sits, there).unwrap();
    assert_eq!(here.blocking_recv().unwrap(), Some(vec![1]));
    (process, here)
}

#[test]
fn a_process_that_is_killed_ends_the_call_that_waits_for_it() {
    let (process, here) = sitting();
    let (receiving, _) = blocked(libc::SYS_recvmsg, move || here.blocking_recv());
    signal(process.pid(), Signal::SIGKILL);
    assert_eq!(ended(receiving).unwrap(), None);

    let (process, here) = sitting();
    let (sending, _) = blocked(libc::SYS_sendto, move || here.blocking_send(vec![2; LARGE]));
    signal(process.pid(), Signal::SIGKILL);
    assert!(ended(sending).unwrap_err().error().is_closed());

    // One that is stopped is not dead.
    let (process, here) = sitting();
    support::stop(process.pid());
    assert!(here.blocking_recv_timeout(SHORT).unwrap_err().is_timeout());
    signal(process.pid(), Signal::SIGKILL);
    assert_eq!(here.blocking_recv_timeout(FUSE).unwrap(), None);
}

#[tokio::test]
async fn a_process_that_is_killed_ends_the_task_that_waits_for_it() {
    let (process, here) = tokio::task::spawn_blocking(sitting).await.unwrap();
    let (received, sent) = soon(async {
        let wait = async { tokio::join!(here.recv(), here.send(vec![2; LARGE])) };
        let kill = async { signal(process.pid(), Signal::SIGKILL) };
        tokio::join!(biased; wait, kill).0
    })
    .await;
    assert_eq!(received.unwrap(), None);
    assert!(sent.unwrap_err().error().is_closed());
}

// ---- many users of one end

#[test]
fn threads_that_use_an_end_for_the_first_time_at_once_have_it_all() {
    for _ in 0..200 {
        let (here, _there) = channel::<u8>().unwrap();
        let first = |_| here.try_recv().unwrap_err().kind();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|n| scope.spawn(move || first(n))).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), ErrorKind::Empty);
            }
        });
    }
}

#[test]
fn a_limit_holds_while_another_thread_waits_for_the_same() {
    let (here, there) = channel::<Vec<u8>>().unwrap();
    let there = Arc::new(there);
    let first = Arc::clone(&there);
    let (receiving, _) = blocked(libc::SYS_recvmsg, move || first.blocking_recv());
    let begun = Instant::now();
    assert!(
        there.blocking_recv_timeout(SHORT).unwrap_err().is_timeout() && begun.elapsed() >= SHORT
    );
    assert_eq!(there.try_recv().unwrap_err().kind(), ErrorKind::Empty);
    // A task that gives up waiting for its turn leaves the line.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(there.recv_timeout(SHORT)).unwrap_err().is_timeout());
    // The other direction is nobody's.
    there.blocking_send(vec![1]).unwrap();
    assert_eq!(here.blocking_recv().unwrap(), Some(vec![1]));
    here.blocking_send(vec![2]).unwrap();
    assert_eq!(ended(receiving).unwrap(), Some(vec![2]));
    here.blocking_send(vec![3]).unwrap();
    assert_eq!(there.blocking_recv_timeout(FUSE).unwrap(), Some(vec![3]));
}

const ITEMS: u32 = 20_000;

/// Sends them all, and as many as it receives.
async fn floods(end: Channel<u32, Vec<u8>>) -> u64 {
    let sends = async {
        for n in 0..ITEMS {
            end.send(n).await.unwrap();
        }
    };
    let receives = async {
        let mut bytes = 0;
        while let Some(item) = end.recv().await.unwrap() {
            assert!(item.iter().all(|byte| *byte == item.len() as u8));
            bytes += item.len() as u64;
        }
        bytes
    };
    tokio::join!(sends, receives).1
}

/// Threads that block, with a limit or without, and tasks of two runtimes, some of which give up
/// again and again: each item comes to one of them, and goes whole.
#[test]
fn threads_and_tasks_may_use_one_end_together() {
    let (here, there) = duplex::<Vec<u8>, u32>().unwrap();
    let flood = Process::spawn(floods, there).unwrap();
    let here = Arc::new(here);
    let item = |n: usize| vec![(n % 251) as u8; n % 251];
    let mut threads: Vec<JoinHandle<Vec<u32>>> = Vec::new();
    let left = Arc::new(AtomicU32::new(ITEMS));
    let got = |got: &mut Vec<u32>, left: &AtomicU32, n: u32| {
        got.push(n);
        left.fetch_sub(1, Ordering::Relaxed);
    };
    for limit in [None, Some(Duration::from_micros(50))] {
        let (here, left) = (Arc::clone(&here), Arc::clone(&left));
        threads.push(thread::spawn(move || {
            let mut all = Vec::new();
            while left.load(Ordering::Relaxed) > 0 {
                // It must not take the last place when there is nothing more to come.
                let limit = limit.unwrap_or(Duration::from_millis(50));
                match here.blocking_recv_timeout(limit) {
                    Ok(Some(n)) => got(&mut all, &left, n),
                    Ok(None) => panic!("it is not closed"),
                    Err(error) => assert!(error.is_timeout(), "{error}"),
                }
            }
            all
        }));
    }
    {
        // Without a limit: as many as there are for sure.
        let (here, left) = (Arc::clone(&here), Arc::clone(&left));
        threads.push(thread::spawn(move || {
            let mut all = Vec::new();
            while left.load(Ordering::Relaxed) > ITEMS / 2 {
                let n = here.blocking_recv().unwrap().unwrap();
                got(&mut all, &left, n);
            }
            all
        }));
    }
    for limit in [Duration::from_millis(50), Duration::from_micros(20)] {
        let (here, left) = (Arc::clone(&here), Arc::clone(&left));
        threads.push(thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut all = Vec::new();
                while left.load(Ordering::Relaxed) > 0 {
                    match here.recv_timeout(limit).await {
                        Ok(Some(n)) => got(&mut all, &left, n),
                        Ok(None) => panic!("it is not closed"),
                        Err(error) => assert!(error.is_timeout(), "{error}"),
                    }
                }
                all
            })
        }));
    }
    let senders: Vec<_> = (0..2)
        .map(|by| {
            let here = Arc::clone(&here);
            thread::spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let mut bytes = 0;
                for n in 0..5_000 {
                    let item = item(n);
                    bytes += item.len() as u64;
                    if by == 0 {
                        here.blocking_send(item).unwrap()
                    } else {
                        runtime.block_on(here.send(item)).unwrap()
                    }
                }
                bytes
            })
        })
        .collect();
    let bytes: u64 = senders.into_iter().map(ended).sum();
    let all: Vec<_> = threads.into_iter().map(ended).collect();
    for one in &all {
        assert!(one.is_sorted(), "in the order in which they were sent");
    }
    assert_eq!(
        all.iter().flatten().copied().collect::<BTreeSet<_>>(),
        (0..ITEMS).collect(),
        "each"
    );
    assert_eq!(all.iter().flatten().count(), ITEMS as usize, "and none twice");
    drop(here);
    assert_eq!(flood.blocking_join().unwrap(), bytes);
}

/// A task's budget (tokio's, of 128) is no want of room, and no want of items.
#[tokio::test]
async fn what_is_tried_in_a_task_is_tried_however_often() {
    let (here, there) = channel::<u32>().unwrap();
    // Less than there is room for.
    for n in 0..200 {
        here.try_send(n).unwrap();
    }
    for n in 0..200 {
        assert_eq!(there.try_recv().unwrap(), Some(n));
    }
    assert_eq!(there.try_recv().unwrap_err().kind(), ErrorKind::Empty);
}
