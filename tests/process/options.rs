//! What a process is started into: streams, environment, directory, name, group.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "where it goes is what is tested")]

use crate::support;
use crate::support::{in_own_process, own_dir, pid, soon};
use procpool::{Process, Stdio};
use std::io::{BufRead, Read, Write};
use std::path::Path;
use tempfile::tempdir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Writes what it reads, in capitals; says at the end how many lines it were.
fn shout() -> usize {
    let mut lines = 0;
    for line in std::io::stdin().lock().lines() {
        println!("{}", line.unwrap().to_uppercase());
        lines += 1;
    }
    eprintln!("{lines} lines");
    lines
}

#[tokio::test]
async fn piped_streams_are_async_readers_and_writers() {
    let mut child = Process::builder()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn(shout, ())
        .unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin().unwrap(), child.stdout().unwrap(), child.stderr().unwrap());
    assert!(
        child.stdin().is_none() && child.stdout().is_none() && child.stderr().is_none(),
        "taken once"
    );
    // More than a pipe takes: both sides work at once.
    let text = "some line or other\n".repeat(50_000);
    let writing = async {
        stdin.write_all(text.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
        drop(stdin);
    };
    let (mut out, mut err) = (String::new(), String::new());
    let reading = async { stdout.read_to_string(&mut out).await.unwrap() };
    soon(async { tokio::join!(writing, reading) }).await;
    soon(stderr.read_to_string(&mut err)).await.unwrap();
    assert!(out == text.to_uppercase());
    assert_eq!(err, "50000 lines\n");
    assert_eq!(soon(child).await.unwrap(), 50_000);
}

#[test]
fn pipes_are_plain_descriptors_where_there_is_no_runtime() {
    let mut first = Process::builder()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn(shout, ())
        .unwrap();
    // The output of one is the input of the next.
    let output = first.stdout().unwrap().into_owned_fd().unwrap();
    let mut second = Process::builder()
        .stdin(output)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn(shout, ())
        .unwrap();
    let mut input = std::fs::File::from(first.stdin().unwrap().into_owned_fd().unwrap());
    input.write_all(b"one\ntwo\n").unwrap();
    drop(input);
    let mut text = String::new();
    std::fs::File::from(second.stdout().unwrap().into_owned_fd().unwrap())
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "ONE\nTWO\n");
    assert_eq!((first.blocking_join().unwrap(), second.blocking_join().unwrap()), (2, 2));
}

#[tokio::test]
async fn a_watched_pipe_goes_back_to_blocking_mode() {
    let mut child = Process::builder().stdout(Stdio::piped()).spawn(|| print!("ab"), ()).unwrap();
    let mut stdout = child.stdout().unwrap();
    assert_eq!(soon(stdout.read_u8()).await.unwrap(), b'a');
    let mut rest = String::new();
    std::fs::File::from(stdout.into_owned_fd().unwrap()).read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "b");
    soon(child).await.unwrap();
}

#[tokio::test]
async fn streams_are_files_or_nothing() {
    let dir = tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::write(&input, "from a file\n").unwrap();
    let file = std::fs::File::create(&output).unwrap();
    let child = Process::builder()
        .stdin(std::fs::File::open(&input).unwrap())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn(shout, ())
        .unwrap();
    assert_eq!(soon(child).await.unwrap(), 1);
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "FROM A FILE\n1 lines\n");
    let child =
        Process::builder().stdout(Stdio::null()).stderr(Stdio::null()).spawn(shout, ()).unwrap();
    assert_eq!(
        soon(child).await.unwrap(),
        0,
        "without any word about it, there is nothing to read"
    );
}

#[test]
fn streams_are_inherited() {
    let test = "own_process_with_streams";
    let mut command = support::own_process(&std::env::current_exe().unwrap(), test, Path::new("/"));
    use std::process::Stdio;
    let mut running = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    running.stdin.take().unwrap().write_all(b"from outside\n").unwrap();
    let output = running.wait_with_output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
    assert!(out.contains("FROM OUTSIDE\n"), "{out}");
    assert!(err.contains("1 lines\n"), "{err}");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_with_streams() {
    if own_dir().is_none() {
        return;
    }
    let child = Process::builder().stdin(Stdio::inherit()).spawn(shout, ()).unwrap();
    assert_eq!(child.blocking_join().unwrap(), 1);
}

#[test]
fn an_application_without_standard_streams_has_processes_that_work() {
    in_own_process("own_process_without_streams");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_without_streams() {
    if own_dir().is_none() {
        return;
    }
    let kept: Vec<_> = (0..3)
        .map(|fd| {
            nix::fcntl::fcntl(borrowed(fd), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(20)).unwrap()
        })
        .collect();
    for fd in 0..3 {
        nix::unistd::close(fd).unwrap();
    }
    let results: Vec<_> = (0..3)
        .map(|_| {
            let child = Process::builder().stdin(Stdio::inherit()).spawn(
                || {
                    println!("to nobody");
                    5
                },
                (),
            );
            child
                .map_err(|e| e.to_string())
                .and_then(|child| child.blocking_join().map_err(|e| e.to_string()))
        })
        .collect();
    let [first, second, third] = kept[..] else { unreachable!() };
    nix::unistd::dup2_stdin(borrowed(first)).unwrap();
    nix::unistd::dup2_stdout(borrowed(second)).unwrap();
    nix::unistd::dup2_stderr(borrowed(third)).unwrap();
    assert_eq!(results, [Ok(5), Ok(5), Ok(5)]);
}

#[expect(unsafe_code, reason = "looks at descriptors by number")]
fn borrowed(fd: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: it is only handed to calls that say so if there is no such descriptor.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

#[tokio::test]
async fn environment_directory_and_mask_are_those_that_are_set() {
    let dir = tempdir().unwrap();
    let seen = || {
        let umask = nix::sys::stat::umask(nix::sys::stat::Mode::empty()).bits();
        let mut names: Vec<_> =
            std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
        names.sort();
        (names, std::env::current_dir().unwrap(), umask)
    };
    let builder = Process::builder()
        .env_clear()
        .env("A", "1")
        .env("B", "2")
        .env_remove("B")
        .current_dir(dir.path())
        .umask(0o077);
    let (names, directory, umask) = soon(builder.spawn(seen, ()).unwrap()).await.unwrap();
    assert_eq!(names, ["A=1"]);
    assert_eq!(directory, dir.path().canonicalize().unwrap());
    assert_eq!(umask, 0o077);
}

#[tokio::test]
async fn name_and_group_are_those_that_are_set() {
    let own = || {
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        (name, nix::unistd::getpgrp().as_raw() as u32, pid())
    };
    let (name, group, pid) =
        soon(Process::builder().name("a name that is too long").spawn(own, ()).unwrap())
            .await
            .unwrap();
    assert_eq!((name.as_str(), group), ("a name that is \n", pid));
    let (_, group, _) =
        soon(Process::builder().process_group(false).spawn(own, ()).unwrap()).await.unwrap();
    assert_eq!(group, nix::unistd::getpgrp().as_raw() as u32);
}

#[tokio::test]
async fn a_process_holds_few_descriptors_and_none_of_the_others() {
    let others: Vec<_> = (0..3)
        .map(|_| Process::builder().stdin(Stdio::piped()).spawn(shout, ()).unwrap())
        .collect();
    let held = || support::descriptors(pid());
    let mut held = soon(Process::spawn(held, ()).unwrap()).await.unwrap();
    // What whoever runs the tests has left open at an exec is not ours to judge.
    let ours = support::descriptors(pid());
    held.retain(|one| one.0 < 3 || !ours.contains(one));
    // The streams, its socket, its memory, its end of the lifeline, and the directory that it
    // reads.
    assert!(held.len() <= 7, "{held:?}");
    assert!(held.iter().all(|(number, what)| *number < 3 || !what.contains("pipe")), "{held:?}");
    drop(others);
}
