//! What comes back: values, panics, errors.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{Proc, Scene, mark, pass, within};
use futures::StreamExt;
use futures::future::join_all;
use procpool::{Failure, TaskErrorKind};
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::{Error as _, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

fn echo<T>(value: T) -> T {
    value
}

fn pid() -> u32 {
    std::process::id()
}

// ---- panics

#[tokio::test]
async fn a_panic_brings_its_message_and_its_place() {
    let scene = Scene::new(1);
    let text = || -> () { panic!("a literal") };
    let string = || -> () { std::panic::panic_any(String::from("a string")) };
    let formatted = |n: u32| -> () { panic!("number {n}") };
    let number = || -> () { std::panic::panic_any(42_u8) };
    let from_async = async || -> () {
        tokio::task::yield_now().await;
        panic!("in async")
    };
    let before_await = |n: u32| {
        assert!(n == 0, "before the future");
        async {}
    };
    let handles = [
        (scene.pool.spawn(text, ()), "a literal"),
        (scene.pool.spawn(string, ()), "a string"),
        (scene.pool.spawn(formatted, 7), "number 7"),
        (scene.pool.spawn(number, ()), "Box<dyn Any>"),
        (scene.pool.spawn(from_async, ()), "in async"),
        (scene.pool.spawn(before_await, 1), "before the future"),
    ];
    for (handle, message) in handles {
        let error = within("a panic", handle).await.unwrap_err();
        assert_eq!((error.kind(), error.panic_message()), (TaskErrorKind::Panicked, Some(message)));
        assert!(
            error.is_panic()
                && !error.is_worker_died()
                && !error.is_cancelled()
                && !error.is_unserializable()
        );
        let place = error.panic_location().unwrap();
        let (file, line) = place.split_once(':').unwrap();
        assert_eq!(file, file!());
        assert!(line.split(':').all(|number| number.parse::<u32>().is_ok()), "{place}");
        assert!(error.pid().is_some());
        assert_eq!(error.exit_status(), None);
        assert!(error.function().contains("pool::outcomes"));
        assert!(
            error.to_string().contains(message) && error.to_string().contains(place),
            "{error}"
        );
        scene.serves().await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_long_panic_message_is_cut_and_marked_and_shown_without_controls() {
    let scene = Scene::new(1);
    let panic = || -> () { std::panic::resume_unwind(Box::new("\x1b[2J\n".repeat(1 << 18))) };
    let error = within("a panic", scene.pool.spawn(panic, ())).await.unwrap_err();
    let message = error.panic_message().unwrap();
    assert!(message.len() <= 16 << 10 && message.starts_with("\x1b[2J\n\x1b[2J\n"));
    assert!(message.ends_with('\u{2026}'));
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains('\x1b') && shown.contains('\u{2026}'), "{shown}");
    }
    scene.end().await;
}

#[tokio::test]
async fn a_resumed_panic_is_told_with_its_own_place_or_none() {
    fn resumed_of_another_thread() {
        drop(std::panic::catch_unwind(|| panic!("caught")));
        let payload = std::thread::spawn(|| panic!("of a thread")).join().unwrap_err();
        std::panic::resume_unwind(payload)
    }
    async fn resumed_in_async() {
        drop(std::panic::catch_unwind(|| panic!("caught {}", 1)));
        std::panic::resume_unwind(Box::new(String::from("made by hand")))
    }
    fn resumed_itself(number: u32) {
        let payload = std::panic::catch_unwind(|| panic!("its own {number}")).unwrap_err();
        std::panic::resume_unwind(payload)
    }
    let scene = Scene::new(1);
    for (task, message, has_place) in [
        (scene.pool.spawn(resumed_of_another_thread, ()), "of a thread", false),
        (scene.pool.spawn(resumed_in_async, ()), "made by hand", false),
        (scene.pool.spawn(resumed_itself, 2), "its own 2", true),
    ] {
        let error = within("a panic", task).await.unwrap_err();
        assert_eq!(error.panic_message(), Some(message));
        assert_eq!(error.panic_location().is_some(), has_place, "{error}");
    }
    scene.end().await;
}

#[tokio::test]
async fn a_panic_hook_that_a_task_sets_leaves_later_tasks_their_places() {
    fn takes_the_hook() {
        drop(std::panic::take_hook());
    }
    fn sets_a_hook(marks: PathBuf) {
        std::panic::set_hook(Box::new(move |_| mark(&marks, "called")));
    }
    fn plain() {
        panic!("plain")
    }
    let scene = Scene::new(1);
    let marks = scene.marks("the task's own hook");
    within("a task", scene.pool.spawn(takes_the_hook, ())).await.unwrap();
    let error = within("a panic", scene.pool.spawn(plain, ())).await.unwrap_err();
    assert!(error.panic_location().is_some(), "{error}");
    for _ in 0..2 {
        within("a task", scene.pool.spawn(sets_a_hook, marks.path())).await.unwrap();
        let error = within("a panic", scene.pool.spawn(plain, ())).await.unwrap_err();
        assert!(error.panic_location().is_some(), "{error}");
    }
    assert_eq!(marks.lines().len(), 2); // it is called as well
    scene.end().await;
}

#[tokio::test]
async fn a_payload_whose_drop_panics_costs_its_own_task_only() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("bomb");
        }
    }
    let scene = Scene::new(1);
    let first = within("a task", scene.pool.spawn(pid, ())).await.unwrap();
    let sync =
        within("a bomb", scene.pool.spawn(|| -> () { std::panic::panic_any(Bomb) }, ())).await;
    assert_eq!(sync.unwrap_err().panic_message(), Some("Box<dyn Any>"));
    let from_async = within(
        "an async bomb",
        scene.pool.spawn(async || -> () { std::panic::panic_any(Bomb) }, ()),
    )
    .await;
    assert_eq!(from_async.unwrap_err().panic_message(), Some("Box<dyn Any>"));
    assert_eq!(within("the next task", scene.pool.spawn(pid, ())).await.unwrap(), first);
    scene.end().await;
}

#[tokio::test]
async fn a_backtrace_comes_when_it_is_asked_for() {
    #[inline(never)]
    fn deep_inside() {
        panic!("deep");
    }
    let scene = Scene::with(|builder| {
        builder.workers(1).env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE")
    });
    for wanted in [true, false, true] {
        let error = within("a panic", scene.pool.task(deep_inside).backtrace(wanted).spawn(()))
            .await
            .unwrap_err();
        assert_eq!(
            error.panic_backtrace().is_some_and(|text| text.contains("deep_inside")),
            wanted
        );
        assert_eq!(error.panic_backtrace().is_some(), wanted);
        let in_async = async || deep_inside();
        let error = within("an async panic", scene.pool.task(in_async).backtrace(wanted).spawn(()))
            .await
            .unwrap_err();
        assert_eq!(
            error.panic_backtrace().is_some_and(|text| text.contains("deep_inside")),
            wanted
        );
        let mut results = scene.pool.task(deep_inside).backtrace(wanted).map([()]);
        let error = within("a panic of a map", results.next()).await.unwrap().unwrap_err();
        assert_eq!(error.panic_backtrace().is_some(), wanted);
    }
    let error = within("a panic", scene.pool.spawn(deep_inside, ())).await.unwrap_err();
    assert_eq!(error.panic_backtrace(), None);
    scene.end().await;

    // By default it is as the worker's environment says.
    let scene = Scene::with(|builder| builder.workers(1).env("RUST_BACKTRACE", "1"));
    let error = within("a panic", scene.pool.spawn(deep_inside, ())).await.unwrap_err();
    assert!(error.panic_backtrace().unwrap().contains("deep_inside"));
    let error = within("a panic", scene.pool.task(deep_inside).backtrace(false).spawn(()))
        .await
        .unwrap_err();
    assert_eq!(error.panic_backtrace(), None, "it was declined");
    scene.end().await;
}

// ---- a task's own errors

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Refusal {
    TooBig { size: u64, limit: u64 },
    NamedTask(String),
}

#[derive(Debug)]
struct Link(&'static str, Option<Box<Link>>);

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Link {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.1.as_deref().map(|error| error as _)
    }
}

#[tokio::test]
async fn a_tasks_own_error_comes_as_the_value_that_it_is() {
    let scene = Scene::new(1);
    let refuse =
        |size: u64| if size > 10 { Err(Refusal::TooBig { size, limit: 10 }) } else { Ok(size) };
    assert_eq!(
        within("an error", scene.pool.spawn(refuse, 11)).await.unwrap(),
        Err(Refusal::TooBig { size: 11, limit: 10 })
    );
    assert_eq!(within("a value", scene.pool.spawn(refuse, 10)).await.unwrap(), Ok(10));
    let named = async |name: String| Err::<(), _>(Refusal::NamedTask(name));
    assert_eq!(
        within("an async error", scene.pool.spawn(named, "n")).await.unwrap(),
        Err(Refusal::NamedTask("n".into()))
    );

    let chain = || -> Result<(), Failure> {
        Err(Link("outer", Some(Box::new(Link("middle", Some(Box::new(Link("inner", None))))))))?;
        Ok(())
    };
    let failure = within("a chain", scene.pool.spawn(chain, ())).await.unwrap().unwrap_err();
    assert_eq!(failure.message(), "outer");
    assert_eq!(failure.sources().collect::<Vec<_>>(), ["middle", "inner"]);
    assert!(failure.debug().starts_with("Link("));

    // Three classes: an error of its own is no TaskError; a panic and a death are two kinds.
    let panicked =
        within("a panic", scene.pool.spawn(|| -> u8 { panic!("p") }, ())).await.unwrap_err();
    let died = within("a death", scene.pool.spawn(|| -> u8 { std::process::abort() }, ()))
        .await
        .unwrap_err();
    assert_eq!(
        (panicked.kind(), died.kind()),
        (TaskErrorKind::Panicked, TaskErrorKind::WorkerDied)
    );
    assert_eq!(died.exit_status().and_then(|status| status.signal()), Some(6));
    scene.end().await;
}

/// An error of that many sources, of which none formats its own.
#[derive(Debug)]
struct Deep(u32);

impl fmt::Display for Deep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} below", self.0)
    }
}

impl std::error::Error for Deep {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // One static per level: a chain of boxes would recurse in the task.
        static LEVELS: OnceLock<Vec<Deep>> = OnceLock::new();
        let levels = LEVELS.get_or_init(|| (0..self.0).map(Deep).collect());
        self.0.checked_sub(1).map(|below| &levels[below as usize] as _)
    }
}

#[tokio::test]
async fn a_failure_keeps_a_bounded_number_of_sources_however_it_was_made() {
    let scene = Scene::new(1);
    let deep = |levels: u32| -> Result<(), Failure> { Ok(Err(Deep(levels))?) };
    /// What a worker may send in the place of a failure.
    #[derive(Serialize)]
    struct Forged {
        message: String,
        debug: String,
        sources: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Received(Failure);
    impl Serialize for Received {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let sources = vec!["a source".to_owned(); 200_000];
            Forged { message: "forged".into(), debug: String::new(), sources }.serialize(serializer)
        }
    }
    let forged = || Received(Failure::msg("replaced"));
    let made = within("a failure", scene.pool.spawn(deep, 200_000)).await.unwrap().unwrap_err();
    let received = within("a forged one", scene.pool.spawn(forged, ())).await.unwrap().0;
    assert_eq!(received.message(), "forged");
    for failure in [made, received] {
        let sources: Vec<_> = failure.sources().collect();
        assert_eq!(sources.len(), 128);
        assert!(sources[127].contains("not kept"), "{}", sources[127]);
        // Formatting and dropping it recurse in most programs: on a thread with a small stack.
        let error: Box<dyn std::error::Error + Send + Sync> = failure.into();
        let small = std::thread::Builder::new().stack_size(64 << 10);
        small.spawn(move || drop(error)).unwrap().join().unwrap();
    }
    scene.end().await;
}

#[tokio::test]
async fn an_error_of_a_task_is_cheap_to_clone_and_says_what_it_is() {
    let scene = Scene::new(1);
    let error =
        within("a panic", scene.pool.spawn(|| -> u8 { panic!("p") }, ())).await.unwrap_err();
    let copy = error.clone();
    assert_eq!(copy.to_string(), error.to_string());
    assert!(format!("{error:?}").starts_with("TaskError { kind: Panicked"), "{error:?}");
    let as_error: Box<dyn std::error::Error + Send + Sync> = error.into();
    assert!(as_error.source().is_none());
    scene.end().await;
}

// ---- values that cannot travel

/// Does what it is told when it is encoded or decoded, here or in a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Trick {
    encode: Act,
    decode: Act,
    here: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Act {
    Nothing,
    Refuse,
    RefuseInWorker,
    RefuseHere,
    PanicInWorker,
    ExitInWorker(i32),
    AbortInWorker,
}

impl Act {
    /// `Err`: refuse.
    fn act(self, here: u32) -> Result<(), &'static str> {
        let in_worker = here != std::process::id();
        match self {
            Self::Refuse => Err("refused"),
            Self::RefuseInWorker if in_worker => Err("refused"),
            Self::RefuseHere if !in_worker => Err("refused"),
            Self::PanicInWorker if in_worker => panic!("a panic in a codec"),
            Self::ExitInWorker(code) if in_worker => std::process::exit(code),
            Self::AbortInWorker if in_worker => std::process::abort(),
            _ => Ok(()),
        }
    }
}

impl Trick {
    fn new(encode: Act, decode: Act) -> Self {
        Self { encode, decode, here: std::process::id() }
    }
}

impl Serialize for Trick {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Half of it is written when it happens.
        let mut seq = serializer.serialize_seq(Some(1004))?;
        seq.serialize_element(&self.encode)?;
        seq.serialize_element(&self.decode)?;
        seq.serialize_element(&self.here)?;
        for n in 0..1000_u32 {
            seq.serialize_element(&n)?;
        }
        self.encode.act(self.here).map_err(S::Error::custom)?;
        seq.serialize_element(&())?;
        seq.end()
    }
}

impl<'de> Deserialize<'de> for Trick {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Trick;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a trick")
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<Trick, A::Error> {
                let missing = || A::Error::custom("it ends early");
                let encode = seq.next_element()?.ok_or_else(missing)?;
                let decode: Act = seq.next_element()?.ok_or_else(missing)?;
                let here = seq.next_element()?.ok_or_else(missing)?;
                decode.act(here).map_err(A::Error::custom)?;
                for n in 0..1000_u32 {
                    if seq.next_element()? != Some(n) {
                        return Err(missing());
                    }
                }
                seq.next_element::<()>()?.ok_or_else(missing)?;
                Ok(Trick { encode, decode, here })
            }
        }
        deserializer.deserialize_seq(Visitor)
    }
}

#[tokio::test]
async fn an_argument_that_cannot_be_encoded_is_seen_by_no_worker() {
    let scene = Scene::new(2);
    let ran = scene.marks("ran");
    let run = |_: Trick, n: u32, ran: PathBuf| {
        mark(ran, n);
        n
    };
    let handles: Vec<_> = (0..200)
        .map(|n| {
            let trick =
                Trick::new(if n % 2 == 0 { Act::Nothing } else { Act::Refuse }, Act::Nothing);
            scene.pool.spawn(run, (trick, n, ran.path().to_owned()))
        })
        .collect();
    for (n, outcome) in (0..).zip(within("200 tasks", join_all(handles)).await) {
        match outcome {
            Ok(value) => assert_eq!((value, n % 2), (n, 0)),
            Err(error) => {
                assert_eq!((error.kind(), n % 2), (TaskErrorKind::ArgumentEncode, 1));
                assert!(
                    error.is_unserializable() && error.to_string().contains("refused"),
                    "{error}"
                );
                assert_eq!(error.pid(), None);
            }
        }
    }
    assert_eq!(ran.lines().len(), 100);
    scene.end().await;
}

#[tokio::test]
async fn a_result_that_cannot_be_encoded_half_way_costs_no_worker() {
    let scene = Scene::new(2);
    within("ready", scene.pool.ready()).await.unwrap();
    let before: HashSet<u32> = scene.workers().iter().map(|worker| worker.pid).collect();
    for _ in 0..20 {
        let trick = Trick::new(Act::RefuseInWorker, Act::Nothing);
        let bad: Vec<_> = (0..4).map(|_| scene.pool.spawn(echo::<Trick>, trick)).collect();
        let bad_async = scene.pool.spawn(async |trick: Trick| trick, trick);
        let good = scene.pool.spawn(echo::<Vec<u32>>, vec![1, 2, 3]);
        for outcome in within("results", join_all(bad.into_iter().chain([bad_async]))).await {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), TaskErrorKind::ResultEncode);
            assert!(error.is_unserializable() && error.to_string().contains("refused"), "{error}");
            assert!(before.contains(&error.pid().unwrap()));
        }
        assert_eq!(within("the next frame", good).await.unwrap(), [1, 2, 3]);
    }
    assert_eq!(scene.workers().iter().map(|worker| worker.pid).collect::<HashSet<_>>(), before);
    scene.end().await;
}

#[tokio::test]
async fn a_result_that_cannot_be_decoded_costs_its_own_task_only() {
    let scene = Scene::new(2);
    let (mut gate, marks) = (scene.gate("gate"), scene.marks("started"));
    let long = |gate: PathBuf, marks: PathBuf| {
        mark(marks, "");
        pass(gate);
        7
    };
    let neighbour = scene.pool.spawn(long, (gate.path().to_owned(), marks.path().to_owned()));
    marks.count(1).await;
    let trick = Trick::new(Act::Nothing, Act::RefuseHere);
    let error = within("the result", scene.pool.spawn(echo::<Trick>, trick)).await.unwrap_err();
    assert_eq!((error.kind(), error.is_unserializable()), (TaskErrorKind::ResultDecode, true));
    let mut results =
        scene.pool.map(echo::<Trick>, [trick, Trick::new(Act::Nothing, Act::Nothing)]);
    assert_eq!(
        within("one of a map", results.next()).await.unwrap().unwrap_err().kind(),
        TaskErrorKind::ResultDecode
    );
    within("the next of the map", results.next()).await.unwrap().unwrap();
    scene.serves().await;
    assert!(!neighbour.is_finished());
    gate.open();
    assert_eq!(within("its neighbour", neighbour).await.unwrap(), 7);
    scene.end().await;
}

#[tokio::test]
async fn codecs_that_refuse_panic_exit_or_abort_in_the_worker_cost_their_own_task() {
    let scene = Scene::new(1);
    use Act::{AbortInWorker, ExitInWorker, Nothing, PanicInWorker, RefuseInWorker};
    let acts = [RefuseInWorker, PanicInWorker, ExitInWorker(0), ExitInWorker(3), AbortInWorker];
    for act in acts {
        for (trick, decoding) in
            [(Trick::new(Nothing, act), true), (Trick::new(act, Nothing), false)]
        {
            let sync = scene.pool.spawn(echo::<Trick>, trick);
            let sync = within("a sync task", sync).await.unwrap_err();
            let from_async = scene.pool.spawn(async |trick: Trick| trick, trick);
            let from_async = within("an async task", from_async).await.unwrap_err();
            for error in [sync, from_async] {
                let context = format!("{act:?}, decoding: {decoding}: {error}");
                assert!(error.pid().is_some(), "{context}");
                match act {
                    RefuseInWorker if decoding => {
                        assert_eq!(error.kind(), TaskErrorKind::ArgumentDecode, "{context}")
                    }
                    RefuseInWorker => {
                        assert_eq!(error.kind(), TaskErrorKind::ResultEncode, "{context}")
                    }
                    PanicInWorker => {
                        assert_eq!(error.panic_message(), Some("a panic in a codec"), "{context}");
                        assert!(
                            error.panic_location().is_some_and(|place| place.starts_with(file!())),
                            "{context}"
                        );
                    }
                    ExitInWorker(code) => {
                        assert_eq!(error.kind(), TaskErrorKind::WorkerDied, "{context}");
                        assert_eq!(
                            error.exit_status().and_then(|status| status.code()),
                            Some(code),
                            "{context}"
                        );
                    }
                    _ => {
                        assert_eq!(error.kind(), TaskErrorKind::WorkerDied, "{context}");
                        assert_eq!(
                            error.exit_status().and_then(|status| status.signal()),
                            Some(6),
                            "{context}"
                        );
                    }
                }
            }
            scene.serves().await;
        }
    }
    scene.end().await;
}

// ---- sizes

#[tokio::test]
async fn byte_strings_of_every_size_come_back_equal_in_both_directions_at_once() {
    let scene = Scene::new(1);
    let buffer: usize =
        std::fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap().trim().parse().unwrap();
    let sizes = [
        0,
        1,
        127,
        128,
        255,
        256,
        4095,
        4096,
        65_535,
        65_536,
        65_537,
        buffer - 1,
        buffer,
        buffer + 1,
        (1 << 20) + 1,
        64 << 20,
    ];
    let bytes =
        |len: usize| ByteBuf::from((0..len).map(|n| (n ^ (n >> 8)) as u8).collect::<Vec<_>>());
    let round = async |size: usize| {
        let sent = bytes(size);
        assert!(
            within("a sync echo", scene.pool.spawn(echo::<ByteBuf>, &sent)).await.unwrap() == sent,
            "{size} bytes"
        );
        assert!(
            within("an async echo", scene.pool.spawn(async |b: ByteBuf| b, &sent)).await.unwrap()
                == sent,
            "{size} bytes"
        );
    };
    for size in sizes {
        round(size).await;
    }
    // Many at once, to and fro; async ones answer while others are still being sent.
    join_all(sizes[..15].iter().cycle().take(60).map(|size| round(*size))).await;
    scene.end().await;
}

#[tokio::test]
async fn arguments_and_results_beyond_the_frame_limit_are_refused() {
    const LIMIT: usize = 10_000;
    let scene = Scene::with(|builder| builder.workers(1).frame_limit(LIMIT));
    let worker = within("a task", scene.pool.spawn(pid, ())).await.unwrap();
    let make = |len: usize| ByteBuf::from(vec![1; len]);
    let make_async = async |len: usize| ByteBuf::from(vec![1; len]);
    for len in [LIMIT, LIMIT + 1, 10 * LIMIT, 1000 * LIMIT] {
        let argument = within("an argument", scene.pool.spawn(|b: ByteBuf| b.len(), make(len)))
            .await
            .unwrap_err();
        let spread = within(
            "two arguments",
            scene
                .pool
                .spawn(|a: ByteBuf, b: ByteBuf| a.len() + b.len(), (make(len / 2), make(len / 2))),
        )
        .await
        .unwrap_err();
        for error in [argument, spread] {
            assert_eq!(
                (error.kind(), error.is_too_large(), error.pid()),
                (TaskErrorKind::TooLarge, true, None)
            );
            assert_eq!(error.size_limit(), Some(LIMIT));
        }
        let result = within("a result", scene.pool.spawn(make, len)).await.unwrap_err();
        let from_async =
            within("an async result", scene.pool.spawn(make_async, len)).await.unwrap_err();
        for error in [result, from_async] {
            assert_eq!(
                (error.kind(), error.is_too_large(), error.pid()),
                (TaskErrorKind::TooLarge, true, Some(worker))
            );
            assert_eq!(error.size_limit(), Some(LIMIT));
        }
    }
    let fits = LIMIT - 100;
    assert_eq!(
        within("what fits", scene.pool.spawn(echo::<ByteBuf>, make(fits))).await.unwrap().len(),
        fits
    );
    assert_eq!(within("the same worker", scene.pool.spawn(pid, ())).await.unwrap(), worker);
    scene.end().await;
}

/// A panic's message is no result, but it travels in a frame, too.
#[tokio::test]
async fn messages_longer_than_a_frame_still_end_their_task() {
    const LIMIT: usize = 10_000;
    let scene = Scene::with(|builder| builder.workers(1).frame_limit(LIMIT));
    let worker = Proc::of(within("a task", scene.pool.spawn(pid, ())).await.unwrap()).unwrap();
    let panic = |len: usize| -> u8 { std::panic::resume_unwind(Box::new("m".repeat(len))) };
    let panic_async =
        async |len: usize| -> u8 { std::panic::resume_unwind(Box::new("m".repeat(len))) };
    #[derive(Debug, Deserialize)]
    struct Long;
    impl Serialize for Long {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(S::Error::custom("m".repeat(5 * LIMIT)))
        }
    }
    for len in [LIMIT / 2, LIMIT - 1, LIMIT, LIMIT + 1, 50 * LIMIT] {
        let sync = within("a panic", scene.pool.spawn(panic, len)).await.unwrap_err();
        let from_async =
            within("an async panic", scene.pool.spawn(panic_async, len)).await.unwrap_err();
        for error in [sync, from_async] {
            assert_eq!(error.kind(), TaskErrorKind::Panicked, "{len}");
            assert!(error.panic_message().unwrap().starts_with("mmmm"), "{len}");
        }
    }
    let error = within("a long reason", scene.pool.spawn(|| Long, ())).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ResultEncode);
    assert!(!worker.is_gone(), "the worker keeps to the protocol");
    scene.end().await;
}

// ---- the space of values

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Newtype(Option<Option<u8>>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pair(i8, String);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
enum Key {
    Unit,
    Newtype(i64),
    Tuple(u8, char),
    Struct { a: bool, b: Option<()> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", content = "c")]
enum Adjacent {
    A,
    B(Option<Option<u32>>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(i64),
    Text(String),
    Fields { x: Option<u8>, y: f64 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Internal {
    Small { n: u8 },
    Large { n: u64, note: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    id: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    note: Option<String>,
    #[serde(flatten)]
    inner: Inner,
    #[serde(flatten)]
    rest: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    left: Option<u8>,
    right: String,
}

async fn same<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug + 'static>(
    scene: &Scene,
    values: impl IntoIterator<Item = T>,
) {
    for value in values {
        let back = within("an echo", scene.pool.spawn(echo::<T>, &value)).await;
        assert_eq!(back.as_ref().ok(), Some(&value), "{back:?}");
        // Next to others, and inside.
        let wrapped = (1_u8, vec![Some(value), None], "end".to_owned());
        let turn = |a: u8, values: Vec<Option<T>>, end: String| (end, values, a);
        let back = within("an echo within others", scene.pool.spawn(turn, &wrapped)).await.unwrap();
        assert_eq!((back.2, back.1, back.0), wrapped);
    }
}

#[tokio::test]
async fn numbers_at_their_ends_come_back_equal() {
    let scene = Scene::new(1);
    let edges = [
        0, 1, -1, 31, 32, -32, -33, 127, 128, -128, -129, 255, 256, 32_767, 32_768, -32_769,
        65_535, 65_536,
    ];
    let edges = edges.into_iter().chain([
        i64::from(i32::MIN),
        i64::from(i32::MAX),
        i64::from(u32::MAX) + 1,
        i64::MIN,
        i64::MAX,
    ]);
    same::<i64>(&scene, edges).await;
    same::<u64>(&scene, [0, 127, 128, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX]).await;
    same::<i128>(&scene, [0, -1, i128::from(u64::MAX) + 1, i128::MIN, i128::MAX]).await;
    same::<u128>(&scene, [0, 1, u128::from(u64::MAX) + 1, u128::MAX]).await;
    same::<(i8, u8, i16, u16)>(&scene, [(i8::MIN, u8::MAX, i16::MIN, u16::MAX)]).await;
    for bits in [
        0,
        1,
        f64::NAN.to_bits(),
        (-0.0_f64).to_bits(),
        f64::INFINITY.to_bits(),
        f64::NEG_INFINITY.to_bits(),
        f64::MIN_POSITIVE.to_bits(),
        0x7ff0_0000_dead_beef,
    ] {
        let value = f64::from_bits(bits);
        let back = within("an f64", scene.pool.spawn(echo::<f64>, value)).await.unwrap();
        assert_eq!((back.to_bits(), back.is_nan()), (bits, value.is_nan()));
    }
    for bits in [
        0,
        1,
        f32::NAN.to_bits(),
        (-0.0_f32).to_bits(),
        f32::INFINITY.to_bits(),
        f32::NEG_INFINITY.to_bits(),
        f32::MAX.to_bits(),
        0.1_f32.to_bits(),
    ] {
        let value = f32::from_bits(bits);
        let back = within("an f32", scene.pool.spawn(echo::<f32>, value)).await.unwrap();
        assert_eq!((back.to_bits(), back.is_nan()), (bits, value.is_nan()));
    }
    scene.end().await;
}

#[tokio::test]
async fn texts_bytes_and_times_come_back_equal() {
    let scene = Scene::new(1);
    same::<String>(
        &scene,
        [
            String::new(),
            "\0".into(),
            "a\0b".into(),
            "🦀𝄞é".into(),
            "x".repeat(31),
            "x".repeat(32),
            "x".repeat(70_000),
        ],
    )
    .await;
    same::<char>(&scene, ['\0', 'a', 'é', '\u{10ffff}']).await;
    same::<Vec<u8>>(&scene, [vec![], vec![0], vec![0xc0, 0xff, 0x80], (0..=255).collect()]).await;
    same::<ByteBuf>(&scene, [ByteBuf::new(), ByteBuf::from((0..=255).collect::<Vec<u8>>())]).await;
    same::<[u8; 4]>(&scene, [[0, 127, 128, 255]]).await;
    same::<Duration>(&scene, [Duration::ZERO, Duration::new(1, 999_999_999), Duration::MAX]).await;
    same::<PathBuf>(&scene, [PathBuf::new(), "/a b/ü".into()]).await;
    let after = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5);
    same::<SystemTime>(&scene, [SystemTime::UNIX_EPOCH, after]).await;
    // serde itself cannot carry a time before 1970: an error, never another time.
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    match within("a time before 1970", scene.pool.spawn(echo::<SystemTime>, before)).await {
        Ok(back) => assert_eq!(back, before),
        Err(error) => assert_eq!(error.kind(), TaskErrorKind::ArgumentEncode),
    }
    let made_there = within(
        "made there",
        scene.pool.spawn(|| SystemTime::UNIX_EPOCH - Duration::from_secs(1), ()),
    )
    .await;
    match made_there {
        Ok(back) => assert_eq!(back, before),
        Err(error) => assert_eq!(error.kind(), TaskErrorKind::ResultEncode),
    }
    use std::os::unix::ffi::OsStringExt;
    let not_text = PathBuf::from(std::ffi::OsString::from_vec(vec![b'a', 0xff]));
    let error = within("a path that is no text", scene.pool.spawn(echo::<PathBuf>, not_text))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ArgumentEncode);
    assert!(error.reason().unwrap().contains("UTF-8"), "{error}");
    scene.end().await;
}

#[tokio::test]
async fn options_and_units_at_any_depth_come_back_equal() {
    let scene = Scene::new(1);
    same::<Option<Option<u32>>>(&scene, [None, Some(None), Some(Some(0))]).await;
    same::<Option<Option<Option<()>>>>(
        &scene,
        [None, Some(None), Some(Some(None)), Some(Some(Some(())))],
    )
    .await;
    same::<Option<()>>(&scene, [None, Some(())]).await;
    same::<Option<Unit>>(&scene, [None, Some(Unit)]).await;
    same::<()>(&scene, [()]).await;
    same::<Unit>(&scene, [Unit]).await;
    same::<Newtype>(&scene, [Newtype(None), Newtype(Some(None)), Newtype(Some(Some(1)))]).await;
    same::<Option<Newtype>>(&scene, [None, Some(Newtype(None)), Some(Newtype(Some(None)))]).await;
    same::<Vec<Option<Option<String>>>>(
        &scene,
        [vec![], vec![None, Some(None), Some(Some(String::new()))]],
    )
    .await;
    same::<Result<Option<()>, Option<String>>>(
        &scene,
        [Ok(None), Ok(Some(())), Err(None), Err(Some("e".into()))],
    )
    .await;
    same::<std::marker::PhantomData<u8>>(&scene, [std::marker::PhantomData]).await;
    scene.end().await;
}

#[tokio::test]
async fn maps_structs_and_enums_of_each_shape_come_back_equal() {
    let scene = Scene::new(1);
    let keys = [
        Key::Unit,
        Key::Newtype(-5),
        Key::Tuple(1, 'x'),
        Key::Struct { a: true, b: Some(()) },
        Key::Struct { a: false, b: None },
    ];
    same::<Key>(&scene, keys.clone()).await;
    same::<BTreeMap<Key, Option<Key>>>(
        &scene,
        [BTreeMap::new(), keys.iter().map(|key| (key.clone(), Some(key.clone()))).collect()],
    )
    .await;
    same::<HashMap<i32, String>>(
        &scene,
        [HashMap::new(), (-2..3).map(|n| (n, n.to_string())).collect()],
    )
    .await;
    same::<BTreeMap<Vec<u8>, ()>>(&scene, [[(vec![], ()), (vec![1, 2], ())].into()]).await;
    same::<BTreeMap<Option<(u8, bool)>, f32>>(
        &scene,
        [[(None, 0.5), (Some((1, true)), 1.5)].into()],
    )
    .await;
    same::<Pair>(&scene, [Pair(-1, "p".into())]).await;
    same::<Adjacent>(
        &scene,
        [Adjacent::A, Adjacent::B(None), Adjacent::B(Some(None)), Adjacent::B(Some(Some(3)))],
    )
    .await;
    same::<Untagged>(
        &scene,
        [Untagged::Number(-1), Untagged::Text("1".into()), Untagged::Fields { x: None, y: 0.5 }],
    )
    .await;
    same::<Internal>(
        &scene,
        [
            Internal::Small { n: 1 },
            Internal::Large { n: u64::MAX, note: None },
            Internal::Large { n: 1, note: Some("x".into()) },
        ],
    )
    .await;
    let flat = |note: Option<&str>, left| Flat {
        id: 1,
        note: note.map(str::to_owned),
        inner: Inner { left, right: "r".into() },
        rest: [("a".to_owned(), 1), ("b".to_owned(), -1)].into(),
    };
    same::<Flat>(&scene, [flat(None, None), flat(Some("n"), Some(3))]).await;
    same::<(Vec<Flat>, Option<Flat>)>(
        &scene,
        [(vec![flat(None, Some(0)), flat(Some(""), None)], None)],
    )
    .await;
    scene.end().await;
}

/// Lists within lists.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Nest(Vec<Nest>);

impl Nest {
    fn of(depth: usize) -> Self {
        (1..depth).fold(Self(Vec::new()), |inner, _| Self(vec![inner]))
    }

    fn depth(&self) -> usize {
        self.0.first().map_or(1, |inner| 1 + inner.depth())
    }
}

#[tokio::test]
async fn nesting_beyond_the_limit_is_an_error_on_either_side_and_no_stack_overflow() {
    let scene = Scene::new(1);
    let worker = within("a task", scene.pool.spawn(pid, ())).await.unwrap();
    for depth in [1, 10, 100, 250] {
        assert_eq!(
            within("a nest", scene.pool.spawn(echo::<Nest>, Nest::of(depth)))
                .await
                .unwrap()
                .depth(),
            depth
        );
    }
    for depth in [300, 1000, 5000] {
        let error =
            within("too deep a nest", scene.pool.spawn(|nest: Nest| nest.depth(), Nest::of(depth)))
                .await
                .unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::ArgumentEncode, "{error}");
        let error =
            within("too deep a result", scene.pool.spawn(Nest::of, depth)).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::ResultEncode, "{error}");
    }
    assert_eq!(within("the same worker", scene.pool.spawn(pid, ())).await.unwrap(), worker);
    scene.end().await;
}
