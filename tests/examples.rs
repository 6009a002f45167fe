//! The examples do what they say.

mod example_binary;

use std::process::Command;

/// What it prints.
fn run(name: &str) -> String {
    // A crash may leave a core file where it happens.
    let directory = tempfile::tempdir().expect("a directory");
    let output = Command::new(example_binary::example(name)).current_dir(&directory).output().expect("it starts");
    assert!(output.status.success(), "{name}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn quickstart() {
    let stdout = run("quickstart");
    let lines: Vec<_> = stdout.lines().collect();
    let [fib, crash, sum] = lines[..] else { panic!("not three lines: {stdout}") };
    assert_eq!(fib, "fib(30) = 832040");
    assert!(crash.starts_with("worker process ") && crash.contains("signal: 6 (SIGABRT)"), "{crash}");
    assert_eq!(sum, "fib(0) + … + fib(24) = 121392");
}

#[test]
fn contained_crash() {
    let stdout = run("contained_crash");
    let lines: Vec<_> = stdout.lines().collect();
    let [deaths @ .., last] = &lines[..] else { panic!("no lines") };
    let mut pids = Vec::new();
    let mut told = Vec::new();
    for death in deaths {
        let (what, pid) = death.rsplit_once(", pid ").expect("each death tells its process");
        told.push(what);
        pids.push(pid.parse::<u32>().expect("a process id"));
    }
    assert!(
        matches!(
            told[..],
            [
                "segfault: WorkerDied, signal 11",
                "abort: WorkerDied, signal 6",
                // Whether the signal is the kernel's SIGSEGV or the SIGABRT of a handler is not the point.
                "overflow: WorkerDied, signal 11, stack overflow" | "overflow: WorkerDied, signal 6, stack overflow",
                "exit(3): WorkerDied, exit code 3",
            ]
        ),
        "{told:?}"
    );
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 4, "each death is one process's");
    assert_eq!(*last, "all 20 good tasks were right");
}

#[test]
fn shared_counter() {
    let stdout = run("shared_counter");
    let lines: Vec<_> = stdout.lines().collect();
    let [deaths, sum, last] = lines[..] else { panic!("not three lines: {stdout}") };
    assert_eq!(deaths, "3 processes died with the lock in their hands; the mark of that is there: true");
    assert!(sum.ends_with("the application added 4001; the sum is 4001"), "{sum}");
    assert_eq!(last, "4001 of 4001 additions counted");
}
