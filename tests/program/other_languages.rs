//! A worker written in another language, from `docs/protocol.md` alone, serves a real pool.
//!
//! What it is written in is Python, and one package for MessagePack, in an environment that the
//! gate makes.

#![cfg(feature = "sync")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{FUSE, Proc, gone, until, within};
use futures::StreamExt;
use procpool::sync::Mutex;
use procpool::{Builder, ErrorKind, Limits, NamedTask, Pool, TaskErrorKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Python, with the package.
fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python3")
}

fn builder() -> Builder {
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/other_languages/tasks.py");
    Pool::builder().program(python(), [tasks]).workers(2)
}

const ADD: NamedTask<(i64, i64), i64> = NamedTask::new("add.v1");
const PID: NamedTask<(), u32> = NamedTask::new("pid.v1");
const FAIL: NamedTask<(String,), ()> = NamedTask::new("fail.v1");
const WAIT: NamedTask<(PathBuf, PathBuf), u32> = NamedTask::new("wait.v1");

async fn serves(pool: &Pool) {
    assert_eq!(within("a sum", pool.task_named(ADD).spawn((40, 2))).await.unwrap(), 42);
}

#[tokio::test]
#[ignore = "needs python"]
async fn needs_python_tasks_are_called_by_name_and_mapped() {
    let pool = builder().build().unwrap();
    within("ready", pool.ready()).await.unwrap();
    serves(&pool).await;
    within("nothing", pool.task_named(NamedTask::<(), ()>::new("nothing.v1")).spawn(()))
        .await
        .unwrap();
    let sums: Vec<i64> =
        pool.task_named(ADD).map((0..500).zip(1..)).map(Result::unwrap).collect().await;
    assert_eq!(sums, (0..500).map(|n| 2 * n + 1).collect::<Vec<_>>());
    within("shut down", pool.shutdown()).await;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    name: String,
    maybe: Option<Option<u8>>,
    unit: Option<()>,
    list: Vec<u16>,
    bytes: Vec<u8>,
    string: serde_bytes::ByteBuf,
    shapes: Vec<Shape>,
    map: BTreeMap<Vec<u16>, (i8, f64)>,
    wide: (i128, u128),
    result: Result<u8, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Shape {
    Unit,
    New(i64),
    Tuple(char, bool),
    Struct { a: f32 },
}

#[tokio::test]
#[ignore = "needs python"]
async fn needs_python_values_of_every_kind_come_back_as_they_were_sent() {
    let pool = builder().build().unwrap();
    let echo = NamedTask::<(Vec<Record>,), Vec<Record>>::new("echo.v1");
    let record = Record {
        name: "é\0😀".into(),
        maybe: Some(None),
        unit: Some(()),
        list: vec![1, 2, 65_535],
        bytes: vec![0, 255],
        string: vec![7; 16].into(),
        shapes: vec![
            Shape::Unit,
            Shape::New(i64::MIN),
            Shape::Tuple('ß', true),
            Shape::Struct { a: -0.5 },
        ],
        map: BTreeMap::from([(vec![1, 300], (-1, f64::INFINITY)), (vec![], (0, -0.0))]),
        wide: (i128::MIN, u128::MAX),
        result: Err("no".into()),
    };
    let empty = Record {
        name: String::new(),
        maybe: None,
        unit: None,
        list: vec![],
        bytes: vec![],
        string: vec![].into(),
        shapes: vec![],
        map: BTreeMap::new(),
        wide: (0, u128::from(u64::MAX) + 1),
        result: Ok(200),
    };
    let other = Record { maybe: Some(Some(5)), bytes: vec![1; 70_000], ..record.clone() };
    let records = vec![record, empty, other];
    assert_eq!(within("records", pool.task_named(echo).spawn(&records)).await.unwrap(), records);

    // As they look there.
    async fn looks<T: Serialize>(pool: &Pool, value: T, expected: &str) {
        let describe = NamedTask::<(T,), String>::new("describe.v1");
        assert_eq!(
            within("a description", pool.task_named(describe).spawn(&value)).await.unwrap(),
            expected
        );
    }
    looks(&pool, (1u8, "x", None::<u8>, true), "[1, 'x', None, True]").await;
    looks(&pool, vec![1u8, 2], "b'\\x01\\x02'").await;
    looks(&pool, (Some(5), Some(None::<u8>), Some(Some(()))), "[5, Some(None), Some(Some(None))]")
        .await;
    looks(
        &pool,
        (Shape::Unit, Shape::New(-1), Shape::Struct { a: 0.5 }),
        "['Unit', {'New': -1}, {'Struct': {'a': 0.5}}]",
    )
    .await;
    looks(
        &pool,
        BTreeMap::from([(vec![300u16], i128::MAX)]),
        &format!("Pairs[[300]: {}]", i128::MAX),
    )
    .await;
    looks(
        &pool,
        (u64::MAX, i64::MIN, 1u128 << 127),
        &format!("[{}, {}, {}]", u64::MAX, i64::MIN, 1u128 << 127),
    )
    .await;
}

#[tokio::test]
#[ignore = "needs python"]
async fn needs_python_what_goes_wrong_in_a_task_is_told_and_costs_that_task_alone() {
    let pool = builder().workers(1).frame_limit(4096).build().unwrap();
    let before = within("a number", pool.task_named(PID).spawn(())).await.unwrap();
    // Its own error is a value.
    let halve = NamedTask::<(u32,), Result<u32, String>>::new("halve.v1");
    assert_eq!(within("half", pool.task_named(halve).spawn(8)).await.unwrap(), Ok(4));
    assert_eq!(
        within("half", pool.task_named(halve).spawn(7)).await.unwrap(),
        Err("7 is odd".into())
    );
    // An exception.
    let error = within("an exception", pool.task_named(FAIL).spawn("not today")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.function(), error.pid()),
        (TaskErrorKind::Panicked, "fail.v1", Some(before))
    );
    assert_eq!(error.panic_message(), Some("ValueError: not today"));
    assert!(error.panic_location().unwrap().contains("tasks.py:"), "{error}");
    assert!(error.panic_backtrace().unwrap().starts_with("Traceback"), "{error}");
    let error = within("an exception", pool.task_named(FAIL).backtrace(false).spawn("no"))
        .await
        .unwrap_err();
    assert_eq!(error.panic_backtrace(), None);
    // One that is longer than a frame.
    let error =
        within("an exception", pool.task_named(FAIL).spawn("é".repeat(1000))).await.unwrap_err();
    assert!(
        error.is_panic() && error.panic_message().unwrap().starts_with("ValueError: éé"),
        "{error}"
    );
    // Arguments that do not fit the function, or that nobody there can read.
    let error =
        within("an exception", pool.task_named(NamedTask::<(u8,), i64>::new("add.v1")).spawn(1))
            .await
            .unwrap_err();
    assert!(
        error.is_panic()
            && error.panic_message().unwrap().contains("missing 1 required positional argument"),
        "{error}"
    );
    // A result that cannot be written, one that is too large, and one of another type.
    let error =
        within("an error", pool.task_named(NamedTask::<(), ()>::new("no value.v1")).spawn(()))
            .await
            .unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ResultEncode);
    let error = within(
        "an error",
        pool.task_named(NamedTask::<(u32,), Vec<u8>>::new("large.v1")).spawn(5000),
    )
    .await
    .unwrap_err();
    assert!(error.is_too_large(), "{error}");
    let error =
        within("an error", pool.task_named(NamedTask::<(), String>::new("pid.v1")).spawn(()))
            .await
            .unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ResultDecode);
    // A name that it does not serve.
    let error = within("an error", pool.task_named(NamedTask::<(), ()>::new("echo.v2")).spawn(()))
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.pid()), (TaskErrorKind::UnknownTask, Some(before)));
    assert!(error.is_unknown_task() && error.to_string().contains("echo.v2"), "{error}");
    // All of it in one process, which goes on.
    assert_eq!(within("a number", pool.task_named(PID).spawn(())).await.unwrap(), before);
}

#[tokio::test]
#[ignore = "needs python"]
async fn needs_python_its_end_costs_the_task_that_ran_and_no_other() {
    let pool = builder().workers(1).build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let first = pool.task_named(WAIT).spawn(&(log.clone(), gate.clone()));
    let crash = pool.task_named(NamedTask::<(), ()>::new("crash.v1")).spawn(());
    let queued: Vec<_> = (0..5).map(|n| pool.task_named(ADD).spawn((n, n))).collect();
    until("it runs", || log.exists()).await;
    std::fs::write(&gate, "").unwrap();
    let pid = within("the first", first).await.unwrap();
    let error = within("a crash", crash).await.unwrap_err();
    assert_eq!((error.kind(), error.pid()), (TaskErrorKind::WorkerDied, Some(pid)), "{error}");
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&error.exit_status().unwrap()),
        Some(11)
    );
    for (n, sum) in (0..).zip(queued) {
        assert_eq!(within("a sum", sum).await.unwrap(), 2 * n);
    }
    for code in [0, 3] {
        let error =
            within("an exit", pool.task_named(NamedTask::<(i32,), ()>::new("exit.v1")).spawn(code))
                .await
                .unwrap_err();
        assert_eq!(error.exit_status().and_then(|status| status.code()), Some(code), "{error}");
    }
    serves(&pool).await;
}

#[tokio::test]
#[ignore = "needs python"]
async fn needs_python_no_more_than_one_task_at_a_time_is_in_its_hands() {
    let pool = builder().build().unwrap();
    within("ready", pool.ready()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    // One worker is held up; all that comes goes to the other, whatever its pace was.
    let mut quick = pool.task_named(ADD).map((0..200).zip(0..)).unordered();
    while let Some(sum) = within("a sum", quick.next()).await {
        sum.unwrap();
    }
    let held = pool.task_named(WAIT).spawn(&(log.clone(), gate.clone()));
    until("it runs", || log.exists()).await;
    for n in 0..200 {
        assert_eq!(within("a sum", pool.task_named(ADD).spawn((n, 1))).await.unwrap(), n + 1);
    }
    std::fs::write(&gate, "").unwrap();
    within("the one that waited", held).await.unwrap();
}

#[tokio::test]
#[ignore = "needs python"]
async fn needs_python_a_task_is_stopped_with_its_process_and_what_that_had_started() {
    let pool = builder().workers(1).build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let handle = pool.task_named(NamedTask::<(PathBuf,), ()>::new("sleep.v1")).spawn(&log);
    let line = || std::fs::read_to_string(&log).unwrap_or_default();
    until("it runs", || line().ends_with('\n')).await;
    let processes: Vec<_> =
        line().split_whitespace().map(|pid| Proc::of(pid.parse().unwrap()).unwrap()).collect();
    handle.abort();
    assert!(within("the abort", handle).await.unwrap_err().is_cancelled());
    assert!(processes[0].is_gone());
    gone(&processes).await;
    serves(&pool).await;
    // A limit, and retries: of that, and of a crash.
    let sleep = NamedTask::<(PathBuf,), ()>::new("sleep.v1");
    let limited = pool
        .task_named(sleep)
        .timeout(Duration::from_millis(100))
        .retries(1)
        .spawn(dir.path().join("limited"));
    let error = within("the limit", limited).await.unwrap_err();
    assert!(error.is_timeout() && error.earlier_attempts().len() == 1, "{error:?}");
    let crash = pool.task_named(NamedTask::<(), ()>::new("crash.v1")).retries(2).spawn(());
    let error = within("the crashes", crash).await.unwrap_err();
    assert!(error.is_worker_died() && error.earlier_attempts().len() == 2, "{error:?}");
    serves(&pool).await;
}

#[derive(Debug, PartialEq, Deserialize)]
struct Surroundings {
    marker: Option<String>,
    stdin: String,
    variable: Option<String>,
    blocked: u64,
    leads: bool,
    arguments: Vec<String>,
    prepared: Vec<String>,
}

#[tokio::test]
#[ignore = "needs python"]
async fn needs_python_it_stands_where_any_worker_stands_and_prepares_before_it_is_ready() {
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/other_languages/tasks.py");
    let args = [tasks.as_os_str(), "an argument".as_ref()];
    let pool = Pool::builder()
        .program(python(), args)
        .workers(1)
        .env("PROCPOOL_TEST_VARIABLE", "set")
        .build()
        .unwrap();
    within("ready", pool.ready()).await.unwrap();
    let found = within(
        "its surroundings",
        pool.task_named(NamedTask::<(), Surroundings>::new("surroundings.v1")).spawn(()),
    )
    .await
    .unwrap();
    let expected = Surroundings {
        marker: None,
        stdin: "/dev/null".into(),
        variable: Some("set".into()),
        blocked: 0,
        leads: true,
        arguments: vec!["an argument".into()],
        prepared: vec!["prepared".into()],
    };
    assert_eq!(found, expected);
}

#[tokio::test]
#[ignore = "needs python"]
async fn needs_python_its_start_fails_with_the_reason() {
    // What it says itself.
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/other_languages/tasks.py");
    let pool = Pool::builder()
        .program(python(), [tasks.as_os_str(), "fail in init".as_ref()])
        .build()
        .unwrap();
    let error = within("a start", pool.task_named(PID).spawn(())).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::InitFailed);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("RuntimeError: there is no model"), "{cause}");
    // What it says to nobody in particular.
    let pool = Pool::builder().program(python(), ["-c", "import no_such_module"]).build().unwrap();
    let error = within("a start", pool.ready()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DiedAtStart);
    assert!(error.stderr_tail().unwrap().contains("ModuleNotFoundError"), "{error}");
    // By hand it is no worker.
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/other_languages/tasks.py");
    let output = std::process::Command::new(python())
        .arg(tasks)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(126));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be a worker"));
}

#[tokio::test]
#[ignore = "needs python"]
async fn needs_python_the_pool_ends_it_and_leaves_nothing() {
    let pool = builder().build().unwrap();
    within("ready", pool.ready()).await.unwrap();
    let pid = within("a number", pool.task_named(PID).spawn(())).await.unwrap();
    let idle = Proc::of(pid).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (log, gate) = (dir.path().join("log"), dir.path().join("gate"));
    let running = pool.task_named(WAIT).spawn(&(log.clone(), gate.clone()));
    until("it runs", || log.exists()).await;
    // Its intake is closed; what runs goes on to its end.
    let ending = pool.clone();
    let shutdown = tokio::spawn(async move { ending.shutdown().await });
    while !within("a refusal", pool.task_named(PID).spawn(()))
        .await
        .is_err_and(|error| error.is_pool_closed())
    {}
    std::fs::write(&gate, "").unwrap();
    let last = within("the one that ran", running).await.unwrap();
    tokio::time::timeout(FUSE, shutdown).await.expect("shut down").unwrap();
    assert!(idle.is_gone());
    assert!(Proc::of(last).is_none());
    // A pool that is dropped takes along what runs.
    let pool = builder().workers(1).build().unwrap();
    let busy = pool
        .task_named(NamedTask::<(PathBuf,), ()>::new("sleep.v1"))
        .spawn(dir.path().join("sleeps"));
    let line = || std::fs::read_to_string(dir.path().join("sleeps")).unwrap_or_default();
    until("it runs", || line().ends_with('\n')).await;
    let processes: Vec<_> =
        line().split_whitespace().map(|pid| Proc::of(pid.parse().unwrap()).unwrap()).collect();
    drop(pool);
    assert!(within("the task", busy).await.unwrap_err().is_pool_closed());
    gone(&processes).await;
}

// ---- without any other language

fn double(n: u32) -> u32 {
    2 * n
}

#[tokio::test]
async fn what_is_no_task_of_these_workers_is_told_without_asking_one() {
    // A function of this program, for another program's processes.
    let pool = Pool::builder().program("/nonexistent/program", [""; 0]).build().unwrap();
    let error = within("an error", pool.spawn(double, 1)).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::UnknownTask);
    assert_eq!(error.pid(), None);
    // A name, for this program's.
    let pool = Pool::builder().workers(1).build().unwrap();
    let error = within("an error", pool.task_named(ADD).spawn((1, 2))).await.unwrap_err();
    assert_eq!((error.kind(), error.function()), (TaskErrorKind::UnknownTask, "add.v1"));
    assert_eq!(within("a result", pool.spawn(double, 2)).await.unwrap(), 4);
    let mut errors = pool.task_named(ADD).map([(1, 2), (3, 4)]);
    while let Some(result) = within("an error", errors.next()).await {
        assert!(result.unwrap_err().is_unknown_task());
    }
}

#[tokio::test]
async fn another_program_is_given_no_shared_objects() {
    let pool = Pool::builder().program("/nonexistent/program", [""; 0]).build().unwrap();
    let total = pool.manager().mutex(0u64).unwrap();
    let error = within(
        "an error",
        pool.task_named(NamedTask::<(Mutex<u64>,), ()>::new("add.v1")).spawn(&total),
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ArgumentEncode);
    assert!(error.to_string().contains("another program"), "{error}");
}

#[tokio::test]
async fn a_program_that_is_none_or_no_worker_fails_the_start() {
    let pool = Pool::builder().program("/nonexistent/program", [""; 0]).build().unwrap();
    let error = within("a start", pool.ready()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Spawn);
    let pool =
        Pool::builder().program("sh", ["-c", "echo 'no worker' >&2; exit 3"]).build().unwrap();
    let error = within("a start", pool.ready()).await.unwrap_err();
    assert_eq!((error.kind(), error.stderr_tail()), (ErrorKind::DiedAtStart, Some("no worker\n")));
    let pool = Pool::builder()
        .program("sleep", ["1000"])
        .start_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let error = within("a start", pool.ready()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StartTimeout);
    // This very program is no worker that serves by name: it runs as if it had been started by
    // anybody.
    let this = std::env::current_exe().unwrap();
    let pool = Pool::builder()
        .program(this, ["--list", "--format", "terse", "--exact", "nothing"])
        .build()
        .unwrap();
    let error = within("a start", pool.ready()).await.unwrap_err();
    assert_eq!(error.exit_status().unwrap().code(), Some(0), "{error}");
}

fn prepare() -> Result<(), String> {
    Ok(())
}

#[test]
fn another_program_has_no_init_of_this_one_and_does_not_limit_itself() {
    let limits = Limits::new().memory(1 << 30);
    let error = Pool::builder().program("true", [""; 0]).limits(limits).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("limits"), "{error}");
    let error =
        Pool::builder().program("true", [""; 0]).on_worker_start(prepare, ()).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("init"), "{error}");
}
