//! What workers print: where it goes, and that whatever becomes of it harms nobody.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "tasks that print")]

use crate::support;
use crate::support::{
    Proc, descriptors, die, hang, lines, note, own_dir, own_process, pid, seen, signal, soon,
    until, wait_for,
};
use nix::sys::signal::Signal;
use procpool::{Builder, Pool, Stdio, TaskErrorKind};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::tempdir;

/// A line that was captured: who printed it, its text, whether it is whole.
type Line = (u32, String, bool);

#[derive(Clone, Debug, Default)]
struct Captured(Arc<Mutex<Vec<Line>>>);

impl Captured {
    fn output(&self) -> Stdio {
        let lines = Arc::clone(&self.0);
        Stdio::lines(move |line| {
            lines.lock().unwrap().push((line.pid(), line.text().into_owned(), line.is_whole()))
        })
    }

    fn all(&self) -> Vec<Line> {
        self.0.lock().unwrap().clone()
    }

    fn texts(&self) -> Vec<String> {
        self.all().into_iter().map(|(_, text, _)| text).collect()
    }

    async fn come(&self, count: usize) -> Vec<Line> {
        until(format!("{count} lines come"), || self.0.lock().unwrap().len() >= count).await;
        self.all()
    }
}

fn builder() -> Builder {
    Pool::builder().workers(1).env("RUST_BACKTRACE", "0")
}

/// A function that blocks until the sender is dropped, having said that it was called.
fn blocking() -> (Stdio, std::sync::mpsc::Sender<()>, Receiver<()>) {
    let (opener, gate) = channel::<()>();
    let (called, calls) = channel();
    let output = Stdio::lines(move |_| {
        let _ = called.send(());
        let _ = gate.recv();
    });
    (output, opener, calls)
}

fn print(count: u32) {
    for n in 0..count {
        println!("out {n}");
        eprintln!("err {n}");
    }
}

fn write_raw(bytes: Vec<u8>) {
    nix::unistd::write(std::io::stdout(), &bytes).unwrap();
}

fn output_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
    tasks
        .filter(|task| {
            std::fs::read_to_string(task.path().join("comm"))
                .is_ok_and(|comm| comm == "procpool-output\n")
        })
        .count()
}

// ---- where it goes

#[test]
fn by_default_it_appears_where_the_applications_own_output_does() {
    let dir = tempdir().unwrap();
    let mut command = own_process(
        &std::env::current_exe().unwrap(),
        "own_process_whose_workers_print",
        dir.path(),
    );
    let output = command.stdin(std::process::Stdio::null()).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
    assert_eq!(stdout.matches("out 1").count(), 1, "{stdout}");
    assert_eq!(stderr.matches("err 1").count(), 1, "{stderr}");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_whose_workers_print() {
    if own_dir().is_none() {
        return;
    }
    soon(builder().build().unwrap().spawn(print, 2)).await.unwrap();
    soon(builder().stdout(Stdio::null()).stderr(Stdio::null()).build().unwrap().spawn(print, 2))
        .await
        .unwrap();
    let (out, err) = (Captured::default(), Captured::default());
    let pool = builder().stdout(out.output()).stderr(err.output()).build().unwrap();
    soon(pool.spawn(print, 2)).await.unwrap();
    out.come(2).await;
    err.come(2).await;
}

#[tokio::test]
async fn captured_lines_come_in_order_with_the_number_of_their_process() {
    let (out, err) = (Captured::default(), Captured::default());
    let pool =
        Pool::builder().workers(2).stdout(out.output()).stderr(err.output()).build().unwrap();
    soon(pool.ready()).await.unwrap();
    let print = |count: u32| {
        print(count);
        print(count);
        (pid(), std::thread::sleep(Duration::from_millis(20))).0
    };
    let tasks: Vec<_> = (0..6).map(|_| pool.spawn(print, 50)).collect();
    let mut pids = Vec::new();
    for task in tasks {
        pids.push(soon(task).await.unwrap());
    }
    for (captured, word) in [(&out, "out"), (&err, "err")] {
        let lines = captured.come(600).await;
        assert_eq!(lines.len(), 600);
        for pid in &pids {
            let of_one: Vec<_> = lines.iter().filter(|(by, ..)| by == pid).collect();
            assert_eq!(of_one.len(), 100 * pids.iter().filter(|other| *other == pid).count());
            for (n, (_, text, is_whole)) in of_one.iter().enumerate() {
                assert_eq!(
                    (text.as_str(), *is_whole),
                    (format!("{word} {}", n % 50).as_str(), true)
                );
            }
        }
    }
}

#[tokio::test]
async fn a_file_takes_what_all_workers_print_and_a_full_disk_is_an_error_of_who_prints() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("log");
    let log = File::options().create(true).append(true).open(&path).unwrap();
    let pool = Pool::builder().workers(2).stdout(log).build().unwrap();
    soon(pool.ready()).await.unwrap();
    for task in (0..4).map(|_| pool.spawn(print, 10)).collect::<Vec<_>>() {
        soon(task).await.unwrap();
    }
    assert_eq!(lines(&path).len(), 40);

    let full = || File::options().write(true).open("/dev/full").unwrap();
    let pool = builder().stdout(full()).stderr(full()).build().unwrap();
    let first = soon(pool.spawn(pid, ())).await.unwrap();
    let error = soon(pool.spawn(|| println!("a line"), ())).await.unwrap_err();
    assert!(
        error.is_panic() && error.panic_message().unwrap().contains("No space left"),
        "{error:?}"
    );
    let error = soon(pool.spawn(|| -> u32 { panic!("a message that nobody can print") }, ()))
        .await
        .unwrap_err();
    assert_eq!(error.panic_message(), Some("a message that nobody can print"));
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap(), first, "the worker lives");
}

/// Takes all the room that there is.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    let error = loop {
        if let Err(error) = file.write_all(&[0; 1024]) {
            break error;
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
#[ignore = "needs root"]
fn needs_root_a_disk_that_is_full_is_an_error_of_who_prints_until_there_is_room_again() {
    let (test, dir) = ("own_process_with_a_small_disk", tempdir().unwrap());
    let own = own_process(&std::env::current_exe().unwrap(), test, dir.path());
    let mut command = Command::new("unshare");
    command.args([
        "-m",
        "sh",
        "-c",
        "mount -t tmpfs -o size=64k none \"$DISK\" && exec \"$0\" \"$@\"",
    ]);
    command.arg(own.get_program()).args(own.get_args()).env("DISK", dir.path());
    command.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    support::passes(test, command);
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_with_a_small_disk() {
    let Some(dir) = own_dir() else { return };
    let (path, copy, rest) = (dir.join("log"), dir.join("copy"), dir.join("rest"));
    let append = |path: &Path| File::options().create(true).append(true).open(path).unwrap();
    // What is captured goes to the same disk, by the application.
    let (captured, copied) = (Captured::default(), append(&copy));
    let output = Stdio::lines({
        let captured = captured.clone();
        move |line| {
            let written = (&copied).write_all(format!("{}\n", line.text()).as_bytes());
            captured.0.lock().unwrap().push((
                line.pid(),
                line.text().into_owned(),
                written.is_ok(),
            ));
        }
    });
    let pool = builder().stdout(append(&path)).stderr(output).build().unwrap();
    let worker = soon(pool.spawn(pid, ())).await.unwrap();
    let prints = || println!("a line");
    let tells = || eprintln!("a line");
    for round in 1..=3 {
        fill(&rest);
        let error = soon(pool.spawn(prints, ())).await.unwrap_err();
        assert!(
            error.is_panic() && error.panic_message().unwrap().contains("No space left"),
            "{error:?}"
        );
        soon(pool.spawn(tells, ())).await.unwrap();
        until("all is captured", || captured.texts().last().is_some_and(|text| text == "a line"))
            .await;
        std::fs::remove_file(&rest).unwrap();
        let before = captured.all(); // the panic's message, and that
        assert!(before.iter().all(|(.., is_written)| !is_written), "{before:?}");
        captured.0.lock().unwrap().clear();

        soon(pool.spawn(prints, ())).await.unwrap();
        soon(pool.spawn(tells, ())).await.unwrap();
        assert_eq!(captured.come(1).await, [(worker, "a line".to_owned(), true)]);
        captured.0.lock().unwrap().clear();
        for written in [&path, &copy] {
            assert_eq!(lines(written), ["a line"], "round {round}");
            File::options().write(true).open(written).unwrap().set_len(0).unwrap();
        }
    }
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap(), worker, "it lives");
}

#[tokio::test]
async fn whatever_a_task_writes_to_its_standard_output_disturbs_nothing() {
    let captured = Captured::default();
    for output in [Stdio::null(), captured.output()] {
        let pool = builder().stdout(output).build().unwrap();
        for n in 0..20u8 {
            let bytes: Vec<u8> =
                (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8 ^ n).collect();
            soon(pool.spawn(write_raw, bytes)).await.unwrap();
        }
        assert_eq!(soon(pool.spawn(|| 7, ())).await.unwrap(), 7);
        soon(pool.shutdown()).await;
    }
}

// ---- bytes that are no lines

#[tokio::test]
async fn a_character_that_comes_in_halves_is_whole_and_what_is_none_is_replaced() {
    let captured = Captured::default();
    let pool = builder().stdout(captured.output()).build().unwrap();
    for piece in [&b"1 \xe2"[..], b"\x82", b"\xac!\n2 \xff\n"] {
        soon(pool.spawn(write_raw, piece.to_vec())).await.unwrap();
    }
    captured.come(2).await;
    soon(pool.spawn(write_raw, b"3 half a line, half a character \xf0\x9f".to_vec()))
        .await
        .unwrap();
    soon(pool.shutdown()).await;
    let lines = captured.come(3).await;
    let texts: Vec<_> =
        lines.iter().map(|(_, text, is_whole)| (text.as_str(), *is_whole)).collect();
    assert_eq!(
        texts,
        [("1 €!", true), ("2 \u{fffd}", true), ("3 half a line, half a character \u{fffd}", false)]
    );
}

#[tokio::test]
async fn ten_megabytes_come_through_whole() {
    const LINES: u32 = 100_000;
    let (out, last) = (Captured::default(), Captured::default());
    let (sum, sums) = channel();
    let output = {
        let (mut next, mut bytes) = (0, 0);
        Stdio::lines(move |line| {
            assert_eq!(line.text().split(' ').next().unwrap(), next.to_string());
            assert_eq!(line.lost(), 0);
            (next, bytes) = (next + 1, bytes + line.bytes().len() + 1);
            if next == LINES {
                sum.send(bytes).unwrap();
            }
        })
    };
    let pool = builder().stdout(output).stderr(last.output()).build().unwrap();
    let flood = || {
        let mut out = std::io::stdout().lock();
        let filler = "x".repeat(100);
        (0..LINES)
            .map(|n| writeln!(out, "{n} {filler}").map(|()| n.to_string().len() + 102).unwrap())
            .sum::<usize>()
    };
    let printed = soon(pool.spawn(flood, ())).await.unwrap();
    assert!(printed > 10_000_000);
    until("all lines come", || matches!(sums.try_recv(), Ok(bytes) if bytes == printed)).await;
    assert_eq!(out.texts().len() + last.texts().len(), 0);
}

// ---- functions that do not return, or panic

#[tokio::test]
async fn a_function_that_does_not_return_holds_up_who_prints_much_and_nobody_else() {
    let dir = tempdir().unwrap();
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let (output, opener, calls) = blocking();
    let pool = Pool::builder().workers(2).stdout(output).build().unwrap();
    let flood = |log: PathBuf| {
        println!("the first line");
        note(&log, pid());
        (0..100_000).for_each(|n| println!("{n} {:100}", ""));
    };
    let flooding = pool.spawn(flood, log.clone());
    until("it prints", || lines(&log).len() == 1).await;
    until("the function is called", || calls.try_recv().is_ok()).await;
    let worker = seen(&log)[0];
    // It waits where it prints, and everything else goes on: tasks, deaths, other pools.
    let other = soon(pool.spawn(pid, ())).await.unwrap();
    assert_ne!(other, worker.pid);
    assert!(soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().is_worker_died());
    for _ in 0..20 {
        assert_ne!(
            soon(pool.spawn(|| (println!("a little"), pid()).1, ())).await.unwrap(),
            worker.pid
        );
    }
    soon(builder().build().unwrap().spawn(pid, ())).await.unwrap();
    assert!(!flooding.is_finished());
    // It is stopped as anything is.
    flooding.abort();
    assert!(soon(flooding).await.unwrap_err().is_cancelled());
    until("it is gone", || worker.is_gone()).await;
    // And so is the pool.
    let running = pool.spawn(wait_for, (log.clone(), gate));
    soon(async {
        let all = children_of_pool(&pool).await;
        drop(pool);
        assert!(soon(running).await.unwrap_err().is_pool_closed());
        until("all workers are gone", || all.iter().all(|worker| worker.is_gone())).await;
    })
    .await;
    drop(opener);
}

async fn children_of_pool(pool: &Pool) -> Vec<Proc> {
    let pid = soon(pool.spawn(pid, ())).await.unwrap();
    Proc::of(pid).into_iter().collect()
}

#[test]
fn nothing_is_left_of_a_captured_pool_and_little_is_kept_of_the_dead() {
    support::in_own_process("own_process_whose_function_blocks");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_whose_function_blocks() {
    if own_dir().is_none() {
        return;
    }
    soon(builder().build().unwrap().spawn(pid, ())).await.unwrap();
    until("the first pool is gone", || support::children(pid()).is_empty()).await;
    let before = descriptors(pid()).len();

    let (opener, gate) = channel::<()>();
    let (lost, losses) = channel();
    let output = Stdio::lines(move |line| {
        let _ = gate.recv();
        lost.send((line.bytes().len() as u64 + 1, line.lost())).unwrap();
    });
    let pool = builder().stdout(output).build().unwrap();
    // Each dies with a pipe that is nearly full.
    const DEATHS: u64 = 40;
    const BYTES: u64 = 60_000;
    for _ in 0..DEATHS {
        let last_words = |bytes: u64| {
            write_raw([b"x".repeat(99), b"\n".to_vec()].concat().repeat(bytes as usize / 100));
            die(Signal::SIGKILL as i32);
        };
        assert!(soon(pool.spawn(last_words, BYTES)).await.unwrap_err().is_worker_died());
    }
    assert_eq!(output_threads(), 1);
    drop(pool);
    drop(opener);
    until("the thread has ended", || output_threads() == 0).await;
    let (mut came, mut missing) = (0, 0);
    for (bytes, lost) in losses.try_iter() {
        (came, missing) = (came + bytes, missing + lost);
    }
    assert!((1 << 20..(1 << 20) + 4 * BYTES).contains(&came), "{came} bytes were kept");
    assert!(came + missing <= DEATHS * BYTES, "{came} and {missing}");
    assert_eq!((came + missing) % BYTES, 0, "whole workers: {came} and {missing}");
    until("all descriptors are closed", || descriptors(pid()).len() <= before).await;
}

#[tokio::test]
async fn a_function_that_panics_gets_the_next_line() {
    let (sender, receiver) = channel();
    let output = Stdio::lines(move |line| {
        sender.send(line.text().into_owned()).unwrap();
        assert!(line.text() != "out 1", "this panic is part of a test");
    });
    let pool = builder().stdout(output).stderr(Stdio::null()).build().unwrap();
    soon(pool.spawn(print, 3)).await.unwrap();
    let mut got = Vec::new();
    until("all lines come", || {
        got.extend(receiver.try_iter());
        got.len() == 3
    })
    .await;
    assert_eq!(got, ["out 0", "out 1", "out 2"]);
}

// ---- ends

#[tokio::test]
async fn the_last_words_of_a_worker_are_part_of_the_error_of_the_task_it_died_of() {
    let captured = Captured::default();
    let pool = builder().stderr(captured.output()).build().unwrap();
    let abort = |words: String| -> u32 {
        eprint!("{words}");
        std::process::abort();
    };
    let error = soon(pool.spawn(abort, "cannot\ngo on")).await.unwrap_err();
    assert_eq!(error.stderr_tail(), Some("cannot\ngo on"));
    assert!(!error.to_string().contains("go on"));
    let flood = "0123456789abcdef€\n".repeat(10_000);
    let error = soon(pool.spawn(abort, &flood)).await.unwrap_err();
    let tail = error.stderr_tail().unwrap().strip_prefix('\u{2026}').unwrap();
    assert!(tail.len() > 16_000 && tail.len() <= 16_384 && flood.ends_with(tail), "{tail}");
    assert_eq!(
        soon(pool.spawn(die, Signal::SIGKILL as i32)).await.unwrap_err().stderr_tail(),
        Some("")
    );
    // A task that fails by itself has not lost its worker.
    assert_eq!(
        soon(pool.spawn(|| -> u32 { panic!("a panic") }, ())).await.unwrap_err().stderr_tail(),
        None
    );
    until("the panic's message comes", || {
        captured.texts().iter().any(|text| text.contains("a panic"))
    })
    .await;
    // It comes where it went, as well.
    assert!(captured.texts().contains(&"go on".to_owned()));
    // Not captured, not known.
    let pool = builder().stderr(Stdio::null()).build().unwrap();
    assert_eq!(soon(pool.spawn(abort, "cannot go on")).await.unwrap_err().stderr_tail(), None);
}

#[tokio::test]
async fn want_of_memory_is_told_by_stds_own_message_where_a_backtrace_hides_it() {
    let pool =
        builder().env("RUST_BACKTRACE", "1").stderr(Captured::default().output()).build().unwrap();
    let error =
        soon(pool.spawn(
            || std::hint::black_box(Vec::<u8>::with_capacity(isize::MAX as usize)).len(),
            (),
        ))
        .await
        .unwrap_err();
    assert!(error.is_out_of_memory(), "{error:?}: {}", error.stderr_tail().unwrap());
    let abort = || -> u32 {
        eprintln!("memory allocation of my own making failed");
        std::process::abort()
    };
    assert!(!soon(pool.spawn(abort, ())).await.unwrap_err().is_out_of_memory());
}

#[tokio::test]
async fn what_was_printed_in_an_init_that_died_is_told() {
    let die = || -> Result<(), String> {
        eprintln!("no model");
        std::process::exit(3)
    };
    let pool =
        builder().stderr(Captured::default().output()).on_worker_start(die, ()).build().unwrap();
    let error = soon(pool.spawn(pid, ())).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::InitFailed);
    assert_eq!(error.stderr_tail(), Some("no model\n"));
    assert_eq!(soon(pool.ready()).await.unwrap_err().stderr_tail(), Some("no model\n"));
}

#[tokio::test]
async fn a_process_that_is_left_behind_with_the_pipe_holds_up_nobody() {
    /// Leaves a process behind that prints for ever, out of the group's reach.
    #[expect(clippy::zombie_processes, reason = "it is left behind")]
    fn leave(log: PathBuf) {
        println!("before");
        let child = Command::new("sh")
            .args(["-c", "while echo still here; do sleep 0.01; done"])
            .process_group(0)
            .spawn()
            .unwrap();
        note(&log, child.id());
    }
    let (captured, dir) = (Captured::default(), tempdir().unwrap());
    let log = dir.path().join("log");
    let pool = builder().stdout(captured.output()).stderr(Stdio::null()).build().unwrap();
    soon(pool.spawn(leave, log.clone())).await.unwrap();
    let left = seen(&log)[0];
    captured.come(3).await;
    soon(pool.shutdown()).await;
    // The pipe is closed with its worker, so what is left behind learns that nobody reads any more.
    until("it has ended", || left.has_ended()).await;
    assert_eq!(captured.texts()[0], "before");
}

#[tokio::test]
async fn a_worker_that_closes_its_streams_goes_on() {
    let captured = Captured::default();
    let pool = builder().stdout(captured.output()).stderr(captured.output()).build().unwrap();
    let close = || {
        println!("the last line");
        let _ = nix::unistd::close(1);
        let _ = nix::unistd::close(2);
        pid()
    };
    let worker = soon(pool.spawn(close, ())).await.unwrap();
    captured.come(1).await;
    assert_eq!(soon(pool.spawn(pid, ())).await.unwrap(), worker);
    let dir = tempdir().unwrap();
    let hanging = pool.spawn(hang, dir.path().join("log"));
    until("it runs", || dir.path().join("log").exists()).await;
    signal(worker, Signal::SIGKILL);
    assert_eq!(soon(hanging).await.unwrap_err().stderr_tail(), Some(""));
    assert_eq!(captured.texts(), ["the last line"]);
}

#[tokio::test]
async fn a_flood_of_a_dying_worker_is_delivered_to_its_last_byte() {
    fn die_talking(lines: u32) {
        (0..lines).for_each(|n| println!("{n}"));
        die(Signal::SIGKILL as i32);
    }
    let captured = Captured::default();
    let pool = builder().stdout(captured.output()).build().unwrap();
    for round in 1..=5 {
        assert!(soon(pool.spawn(die_talking, 3000)).await.unwrap_err().is_worker_died());
        let lines = captured.come(round * 3000).await;
        assert_eq!(lines.len(), round * 3000);
        assert!(
            lines[(round - 1) * 3000..]
                .iter()
                .enumerate()
                .all(|(n, (_, text, whole))| *text == n.to_string() && *whole)
        );
    }
}
