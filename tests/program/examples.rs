//! The examples do what they say.

use crate::support::examples::example;
use std::process::Command;

/// What it prints.
fn run(name: &str) -> String {
    run_with(name, &[])
}

fn run_with(name: &str, args: &[&str]) -> String {
    // A crash may leave a core file where it happens.
    let directory = tempfile::tempdir().expect("a directory");
    let output =
        Command::new(example(name)).args(args).current_dir(&directory).output().expect("it starts");
    assert!(output.status.success(), "{name}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn quickstart() {
    let stdout = run("quickstart");
    let lines: Vec<_> = stdout.lines().collect();
    let [fib, crash, sum] = lines[..] else { panic!("not three lines: {stdout}") };
    assert_eq!(fib, "fib(30) = 832040");
    assert!(
        crash.starts_with("worker process ") && crash.contains("signal: 6 (SIGABRT)"),
        "{crash}"
    );
    assert_eq!(sum, "fib(0) + … + fib(24) = 121392");
}

#[test]
fn fork_tree() {
    let stdout = run("fork_tree");
    let (goes_on, exits) = stdout
        .split_once("each child exits after its hello:\n")
        .expect("two programs, one after the other");
    let hellos = |text: &str| -> Vec<(u32, u32, u32)> {
        let numbers = |line: &str| {
            let parts = line
                .strip_prefix("turn ")?
                .split([':', ',', ' '])
                .filter_map(|word| word.parse().ok())
                .collect::<Vec<u32>>();
            let [turn, pid, parent] = parts[..] else { return None };
            Some((turn, pid, parent))
        };
        text.lines().filter_map(numbers).collect()
    };
    let (tree, row) = (hellos(goes_on), hellos(exits));
    assert_eq!((tree.len(), row.len()), (7, 3), "{stdout}");
    // 1, 2 and 4 of them; and each parent has said hello in an earlier turn, or is the first.
    let root = tree.iter().find(|(turn, ..)| *turn == 0).expect("the first turn").2;
    for turn in 0..3 {
        assert_eq!(tree.iter().filter(|hello| hello.0 == turn).count(), 1 << turn, "{stdout}");
    }
    for (turn, pid, parent) in &tree {
        let is_below = |other: &(u32, u32, u32)| other.1 == *parent && other.0 < *turn;
        assert!(*parent == root || tree.iter().any(is_below), "{pid}: {stdout}");
    }
    assert!(row.iter().all(|(_, _, parent)| *parent == root), "{stdout}");
}

#[test]
fn log_search() {
    let stdout = run("log_search");
    let lines: Vec<_> = stdout.lines().collect();
    let [matches @ .., last] = &lines[..] else { panic!("no lines") };
    assert_eq!((matches.len(), *last), (3, "3 matches, and perhaps more"), "{stdout}");
    assert!(matches.iter().all(|line| line.contains("log_search.rs:") && line.contains("stream")));
    let none = run_with("log_search", &["no such word", "/proc/self/status", "/no such file"]);
    assert_eq!(none, "0 matches\n");
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
                // Whether the signal is the kernel's SIGSEGV or the SIGABRT of a handler is not
                // the point.
                "overflow: WorkerDied, signal 11, stack overflow"
                    | "overflow: WorkerDied, signal 6, stack overflow",
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
    assert_eq!(
        deaths,
        "3 processes died with the lock in their hands; the mark of that is there: true"
    );
    assert!(sum.ends_with("the application added 4001; the sum is 4001"), "{sum}");
    assert_eq!(last, "4001 of 4001 additions counted");
}

#[test]
fn map_cores() {
    let stdout = run_with("map_cores", &["50000", "3"]);
    let lines: Vec<_> = stdout.lines().collect();
    let [primes, order, processes, side_by_side, times, same, crash] = lines[..] else {
        panic!("not seven lines: {stdout}")
    };
    assert_eq!(primes, "primes below 50000: 5133");
    assert_eq!(order, "in the order of the input: true");
    // That all three had something to do is likely, but nobody's promise.
    assert!(
        processes.starts_with("worker processes: ")
            && processes.ends_with(", none of them this one: true"),
        "{processes}"
    );
    assert!(side_by_side.starts_with("blocks worked on side by side: "), "{side_by_side}");
    assert!(times.starts_with("the blocks took ") && times.ends_with(" times as fast"), "{times}");
    assert_eq!(same, "as they finish, the same results: true");
    // There are 137 primes below 50000/64, in the block that is lost.
    assert_eq!(crash, "with a crash in the last block: 1 lost, 63 blocks with 4996 primes");
}

#[test]
fn ffi_crash() {
    let stdout = run("ffi_crash");
    let lines: Vec<_> = stdout.lines().collect();
    let [good, large, again, good_after, silent, checked, good_checked, mapped] = lines[..] else {
        panic!("not eight lines: {stdout}")
    };
    assert_eq!(good, "a good picture: 10");
    // Which signal it is depends on the C library.
    let died = |line: &str, what: &str| {
        line.starts_with(&format!("{what}: WorkerDied, signal ")) && !line.ends_with("unknown")
    };
    assert!(died(large, "a picture that is too large"), "{large}");
    assert!(died(again, "memory used after it was given back"), "{again}");
    assert_eq!(good_after, "a good picture after both: 10, by a new worker");
    assert_eq!(silent, "a good picture after silent corruption: 4");
    assert!(died(checked, "the same, checked"), "{checked}");
    assert_eq!(good_checked, "a good picture, checked, by a new worker: 10");
    assert_eq!(mapped, "the library in this process: false");
}

#[test]
fn manager() {
    let stdout = run("manager");
    let lines: Vec<_> = stdout.lines().collect();
    let [dict, list, queue, maths, last] = lines[..] else { panic!("not five lines: {stdout}") };
    assert_eq!(dict, r#"[("one", Some(1)), ("two", Some(2)), ("a quarter", None)]"#);
    assert_eq!(list, "[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]");
    assert_eq!(queue, r#"[Number(42), Nothing, Text("hello")]"#);
    assert_eq!(maths, "4 + 3 = 7, 7 * 8 = 56, and this is call 3");
    assert!(last.starts_with("right: true; objects: "), "{last}");
}

#[test]
fn pipeline() {
    let stdout = run("pipeline");
    let lines: Vec<_> = stdout.lines().collect();
    let [killed, deliveries, last] = lines[..] else { panic!("not three lines: {stdout}") };
    assert_eq!(killed, "15 consumers were killed");
    let deliveries: u64 =
        deliveries.split(' ').next().and_then(|count| count.parse().ok()).expect("a number");
    assert!(deliveries >= 2_000, "{deliveries} deliveries");
    assert_eq!(last, "2000 jobs, 2000 results, all right, none lost: true");
}
