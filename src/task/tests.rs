//! Every way to name a task and to give its arguments, run through the table as a worker would.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::entry::Entry;
use super::table::{TaskIndex, len};
use super::*;
use crate::wire::value::{EncodeError, Reader};

const LIMIT: usize = 1 << 20;

/// What the pool's `spawn` looks like to inference.
fn spawn<A, M, F, P>(f: F, args: P) -> Joined<F::Output>
where
    F: Task<A, M>,
    P: ArgsFor<A>,
{
    let () = ZeroSized::<F>::PROVEN;
    let _ = f;
    let mut bytes = Vec::new();
    encode_args(&args, &mut bytes, LIMIT).expect("the arguments encode");
    Joined { index: index_of::<F, A, M>(), args: bytes, result: PhantomData }
}

/// And its `map`.
fn map<A, M, F, I>(f: F, items: I) -> Vec<F::Output>
where
    F: Task<A, M>,
    I: IntoIterator,
    I::Item: ArgsFor<A>,
{
    items.into_iter().map(|item| spawn(f, item).get()).collect()
}

/// And the builder's `init`.
fn init<A, M, F, P>(f: F, args: P) -> Result<F::State, RunError>
where
    F: Init<A, M>,
    P: ArgsFor<A>,
{
    let () = ZeroSized::<F>::PROVEN;
    let _ = f;
    let mut bytes = Vec::new();
    encode_args(&args, &mut bytes, LIMIT).expect("the arguments encode");
    let state = match found(index_of_init::<F, A, M>()).run {
        Run::InitSync(run) => run(&bytes)?,
        Run::InitAsync(run) => block_on(run(&bytes)?)?,
        other => panic!("not an init function: {other:?}"),
    };
    Ok(*state.downcast().expect("the state has its type"))
}

struct Joined<R> {
    index: TaskIndex,
    args: Vec<u8>,
    result: PhantomData<R>,
}

impl<R: DeserializeOwned> Joined<R> {
    fn run(&self, limit: usize) -> Result<R, RunError> {
        let out = match found(self.index).run {
            Run::Sync(run) => {
                let mut out = b"before".to_vec();
                let result = run(&self.args, &mut out, limit);
                assert!(out.starts_with(b"before"));
                if let Err(error) = result {
                    assert_eq!(out, b"before");
                    return Err(error);
                }
                out.split_off(b"before".len())
            }
            Run::Async(run) => block_on(run(&self.args, limit)?)?.0,
            other => panic!("not a task: {other:?}"),
        };
        let mut reader = Reader::new(&out);
        let value = reader.next().expect("the result decodes");
        reader.finish().expect("nothing follows the result");
        Ok(value)
    }

    fn get(self) -> R {
        self.run(LIMIT).expect("the task runs")
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn found(index: TaskIndex) -> Entry {
    entry(index.0).expect("the record is in the table")
}

fn index<A, M, F: Task<A, M>>(_: F) -> TaskIndex {
    index_of::<F, A, M>()
}

fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
}

async fn fetch(host: String, port: u16) -> Result<Vec<u8>, String> {
    if port == 0 {
        return Err("no port".to_owned());
    }
    Ok(format!("{host}:{port}").into_bytes())
}

#[test]
fn the_front_page_infers() {
    assert_eq!(spawn(fib, 20).get(), 6765);
    assert_eq!(spawn(fetch, ("host".into(), 80)).get(), Ok(b"host:80".to_vec()));
    assert_eq!(spawn(fetch, ("host".into(), 0)).get(), Err("no port".to_owned()));
    assert_eq!(spawn(|s: String| s.to_uppercase(), "x").get(), "X");
    assert_eq!(map(fib, 0..10), [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]);
}

#[test]
fn arguments_may_be_borrowed() {
    fn count(text: String) -> usize {
        text.len()
    }
    fn sum(numbers: Vec<u32>) -> u32 {
        numbers.iter().sum()
    }
    fn stem(path: PathBuf) -> Option<PathBuf> {
        path.file_stem().map(PathBuf::from)
    }
    fn join(a: String, b: Vec<u8>) -> String {
        format!("{a}{b:?}")
    }

    let text = "four".to_owned();
    assert_eq!(spawn(count, "four").get(), 4);
    assert_eq!(spawn(count, text.as_str()).get(), 4);
    assert_eq!(spawn(count, &text).get(), 4);
    assert_eq!(spawn(count, text).get(), 4);
    assert_eq!(spawn(count, "four".to_owned() + "!").get(), 5);
    assert_eq!(map(count, "a bc def".split(' ')), [1, 2, 3]);

    let numbers = vec![1, 2, 3];
    assert_eq!(spawn(sum, &numbers[1..]).get(), 5);
    assert_eq!(spawn(sum, [1, 2].as_slice()).get(), 3);
    assert_eq!(spawn(sum, &numbers).get(), 6);
    assert_eq!(map(sum, numbers.chunks(2)), [3, 3]);
    assert_eq!(spawn(sum, numbers).get(), 6);
    assert_eq!(spawn(sum, vec![]).get(), 0);

    let path = Path::new("/a/b.c");
    let owned = path.to_owned();
    let b = Some(PathBuf::from("b"));
    assert_eq!(spawn(stem, path).get(), b);
    assert_eq!(spawn(stem, &owned).get(), b);
    assert_eq!(spawn(stem, owned).get(), b);

    let pair = ("a".to_owned(), vec![1, 2]);
    assert_eq!(spawn(join, &pair).get(), "a[1, 2]");
    assert_eq!(map(join, [pair.clone(), pair.clone()].iter()), ["a[1, 2]"; 2]);
    assert_eq!(spawn(join, pair).get(), "a[1, 2]");
}

#[test]
fn arguments_need_be_neither_send_nor_static() {
    #[derive(Serialize, Deserialize)]
    struct NotSend(String, PhantomData<Rc<()>>);
    fn len(text: NotSend) -> usize {
        text.0.len()
    }

    assert_eq!(spawn(len, NotSend("abc".into(), PhantomData)).get(), 3);
    let borrowed = String::from("only here");
    assert_eq!(spawn(|s: String| s.len(), &*borrowed).get(), 9);
}

#[test]
fn maps_spread_tuples_and_take_references() {
    fn add(a: u64, b: u64) -> u64 {
        a + b
    }
    fn add_pair((a, b): (u64, u64)) -> u64 {
        a + b
    }
    let pairs = vec![(1, 2), (3, 4)];
    assert_eq!(map(add, pairs.iter()), [3, 7]);
    assert_eq!(map(add_pair, pairs.iter()), [3, 7]);
    assert_eq!(map(add_pair, &pairs), [3, 7]);
    assert_eq!(map(add, (0..3).zip(10..)), [10, 12, 14]);
    assert_eq!(map(add, pairs.clone()), [3, 7]);
    assert_eq!(map(add_pair, pairs), [3, 7]);
    assert_eq!(spawn(add_pair, (1, 2)).get(), 3);
    assert_eq!(spawn(|pair: (u8, u8)| pair.0 + pair.1, (1, 2)).get(), 3);
    let numbers: Vec<u64> = vec![3, 4];
    assert_eq!(map(fib, numbers.iter()), [2, 3]);
    assert_eq!(map(fib, &numbers), [2, 3]);
    assert_eq!(map(|s: String| s.len(), ["a", "bb"]), [1, 2]);
    assert_eq!(map(|| 7, [(), ()]), [7, 7]);
}

#[test]
fn functions_of_no_to_eight_arguments() {
    fn f0() -> u8 {
        0
    }
    fn f1(a: u8) -> u8 {
        a
    }
    fn f2(a: u8, b: u8) -> u8 {
        a + b
    }
    fn f3(a: u8, b: u8, c: u8) -> u8 {
        f2(a, b) + c
    }
    fn f4(a: u8, b: u8, c: u8, d: u8) -> u8 {
        f3(a, b, c) + d
    }
    fn f5(a: u8, b: u8, c: u8, d: u8, e: u8) -> u8 {
        f4(a, b, c, d) + e
    }
    fn f6(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8) -> u8 {
        f5(a, b, c, d, e) + f
    }
    fn f7(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8) -> u8 {
        f6(a, b, c, d, e, f) + g
    }
    #[expect(clippy::too_many_arguments, reason = "eight are allowed")]
    fn f8(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: String) -> u8 {
        f7(a, b, c, d, e, f, g) + h.len() as u8
    }
    assert_eq!(spawn(f0, ()).get(), 0);
    assert_eq!(spawn(f1, 1).get(), 1);
    assert_eq!(spawn(f2, (1, 2)).get(), 3);
    assert_eq!(spawn(f3, (1, 2, 3)).get(), 6);
    assert_eq!(spawn(f4, (1, 2, 3, 4)).get(), 10);
    assert_eq!(spawn(f5, (1, 2, 3, 4, 5)).get(), 15);
    assert_eq!(spawn(f6, (1, 2, 3, 4, 5, 6)).get(), 21);
    assert_eq!(spawn(f7, (1, 2, 3, 4, 5, 6, 7)).get(), 28);
    assert_eq!(spawn(f8, (1, 2, 3, 4, 5, 6, 7, "12345678".into())).get(), 36);

    async fn a0() -> u8 {
        0
    }
    #[expect(clippy::too_many_arguments, reason = "eight are allowed")]
    async fn a8(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: String) -> u8 {
        f8(a, b, c, d, e, f, g, h)
    }
    assert_eq!(spawn(a0, ()).get(), 0);
    assert_eq!(spawn(a8, &(1, 2, 3, 4, 5, 6, 7, "12345678".into())).get(), 36);
}

#[test]
fn all_shapes_of_functions_and_closures() {
    fn work<T: Into<u64> + Serialize>(n: T) -> u64 {
        n.into() * 2
    }
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Point<T> {
        x: T,
    }
    impl<T: std::ops::Add<Output = T> + Copy> Point<T> {
        fn twice(self) -> Self {
            Self { x: self.x + self.x }
        }
    }
    fn nested(map: BTreeMap<String, Option<Vec<u8>>>) -> Result<u8, Option<String>> {
        map.into_values().flatten().flatten().max().ok_or(None)
    }

    assert_eq!(spawn(work::<u32>, 4).get(), 8);
    assert_eq!(spawn(work::<u8>, 4).get(), 8);
    assert_eq!(spawn(Point::<i32>::twice, Point { x: 2 }).get(), Point { x: 4 });
    assert_eq!(spawn(String::into_bytes, "a").get(), b"a");
    assert_eq!(spawn(u64::pow, (2, 10)).get(), 1024);
    assert_eq!(spawn(Some::<u8>, 1).get(), Some(1));
    assert_eq!(spawn(nested, BTreeMap::from([("a".into(), Some(vec![1]))])).get(), Ok(1));
    assert_eq!(spawn(nested, BTreeMap::new()).get(), Err(None));

    assert_eq!(spawn(|| 1, ()).get(), 1);
    assert_eq!(spawn(|x: u8, y: u8| x - y, (3, 1)).get(), 2);
    assert_eq!(spawn(|x: u8| async move { x + 1 }, 1).get(), 2);
    assert_eq!(spawn(async |x: u8, y: u8| x + y, (1, 2)).get(), 3);
    assert_eq!(spawn(async || {}, ()).get(), ());
    let local = |x: u8| x;
    assert_eq!(spawn(local, 3).get(), spawn(local, 3).get());

    // A future that is not Send.
    let not_send = |x: u8| async move {
        let here = Rc::new(x);
        std::future::ready(()).await;
        *here
    };
    assert_eq!(spawn(not_send, 5).get(), 5);

    // A future that is written by hand.
    struct Now(u8);
    impl Future for Now {
        type Output = u8;
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u8> {
            Poll::Ready(self.0)
        }
    }
    assert_eq!(spawn(|x: u8| Now(x), 6).get(), 6);
}

#[test]
fn generic_callers_need_no_annotation() {
    fn twice<A, M, F: Task<A, M>>(f: F, args: impl ArgsFor<A> + Copy) -> [F::Output; 2] {
        [spawn(f, args).get(), spawn(f, args).get()]
    }
    assert_eq!(twice(fib, 10), [55, 55]);
    assert_eq!(twice(async |x: u8| x, 3), [3, 3]);
}

#[test]
fn functions_of_one_name_are_kept_apart() {
    macro_rules! pair {
        () => {
            [index(|x: u8| x + 1), index(|x: u8| x + 2)]
        };
    }
    let [a, b] = pair!();
    let run = |index: TaskIndex| {
        let joined: Joined<u8> = Joined { index, args: vec![1], result: PhantomData };
        joined.get()
    };
    assert_ne!(a, b);
    assert_eq!((run(a), run(b)), (2, 3));

    let name = |index| (found(index).name)();
    assert_eq!(name(a), name(b));
    assert!(name(a).ends_with("{{closure}}"), "{}", name(a));
    assert!(name(index(fib)).ends_with("task::tests::fib"));
}

#[test]
fn tasks_in_code_that_never_runs_are_in_the_table() {
    fn only_mentioned() {}
    if std::hint::black_box(false) {
        index(only_mentioned);
    }
    assert!(names().iter().any(|name| name.ends_with("only_mentioned")));
}

fn names() -> Vec<&'static str> {
    (0..len()).filter_map(|index| entry(index as u32)).map(|entry| (entry.name)()).collect()
}

#[test]
fn every_index_within_the_table_has_an_entry_and_no_other() {
    assert!(supported());
    assert!(len() > 10);
    assert_eq!(names().len(), len());
    let end = len() as u32;
    for index in [end, end + 1, u32::MAX / 8, u32::MAX - 1, TaskIndex::NOWHERE.0] {
        assert!(entry(index).is_none(), "{index}");
    }
    let distinct: HashSet<_> = [index(fib), index(fetch), index(|| ())].into();
    assert_eq!(distinct.len(), 3);
    assert_eq!(index(fib), index(fib));
    let built_in = names().into_iter().filter(|name| name.contains("BuiltIn"));
    assert_eq!(built_in.count(), 1);
}

#[test]
fn the_table_lies_in_the_test_binary() {
    assert_eq!(in_main_executable(), Ok(()));
    assert_eq!(fingerprint(), fingerprint());
    assert_ne!(fingerprint(), 0xcbf2_9ce4_8422_2325, "the hash of nothing");
}

#[test]
fn arguments_that_do_not_decode_are_refused_before_the_call() {
    fn never(_: u8) {
        panic!("called");
    }
    async fn never_async(_: u8) {
        panic!("called");
    }
    let refused = |mut joined: Joined<()>, args: &[u8]| {
        joined.args = args.to_vec();
        assert!(matches!(joined.run(LIMIT), Err(RunError::Arguments(_))), "{args:?}");
    };
    for args in [&[][..], &[0xc1], &[0xa1, b'x'], &[1, 1], &[0xcd, 1]] {
        refused(spawn(never, 1), args);
        refused(spawn(never_async, 1), args);
    }
    refused(spawn(|| (), ()), &[1]);
}

#[test]
fn results_that_do_not_encode_leave_nothing_behind() {
    #[derive(Deserialize)]
    struct Stubborn;
    impl Serialize for Stubborn {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("will not"))
        }
    }
    for result in [spawn(|| (1, Stubborn), ()), spawn(async || (1, Stubborn), ())] {
        match result.run(LIMIT) {
            Err(RunError::Result(why)) => assert!(why.contains("will not"), "{why}"),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("encoded"),
        }
    }
    fn text(len: usize) -> String {
        "x".repeat(len)
    }
    assert_eq!(spawn(text, 10).run(11).map(|text| text.len()), Ok(10));
    for limit in [0, 1, 10] {
        let error = RunError::ResultTooLarge { limit };
        assert_eq!(spawn(text, 10).run(limit), Err(error.clone()));
        assert_eq!(spawn(async |len: usize| text(len), 10).run(limit), Err(error));
    }
}

#[test]
fn the_limit_of_arguments_is_that_of_all_together() {
    fn fits<A, M, F: Task<A, M>>(_: F, args: impl ArgsFor<A>, limit: usize) -> bool {
        let mut out = b"before".to_vec();
        match encode_args(&args, &mut out, limit) {
            Ok(()) => true,
            Err(EncodeError::TooLarge { limit: told }) => {
                assert_eq!(told, limit);
                assert_eq!(out, b"before");
                false
            }
            Err(other) => panic!("{other}"),
        }
    }
    let three = |a: u8, b: String, c: u8| (a, b, c);
    // One byte, three bytes, one byte.
    assert!(fits(three, (1, "xy".into(), 2), 5));
    for limit in 0..5 {
        assert!(!fits(three, (1, "xy".into(), 2), limit), "{limit}");
    }
    assert!(fits(|| (), (), 0));
    assert!(fits(three, (1, "xy".into(), 2), usize::MAX));
}

#[test]
fn an_async_task_is_called_when_it_is_first_polled() {
    fn called(_: u8) -> std::future::Ready<u8> {
        panic!("called")
    }
    let Run::Async(run) = found(index(called)).run else {
        panic!("not async");
    };
    drop(run(&[1], LIMIT).expect("decodes"));
}

#[test]
fn init_functions_keep_a_state_or_say_why_not() {
    struct Model(String);
    #[derive(Debug)]
    struct Chain;
    impl fmt::Display for Chain {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(if f.alternate() { "outer: inner" } else { "outer" })
        }
    }
    fn load(path: PathBuf) -> Result<Model, Chain> {
        let path = path.to_str().ok_or(Chain)?;
        if path.is_empty() { Err(Chain) } else { Ok(Model(path.to_owned())) }
    }
    async fn connect(host: String, port: u16) -> std::io::Result<u16> {
        if host.is_empty() { Err(std::io::Error::other("no host")) } else { Ok(port) }
    }

    assert_eq!(init(load, Path::new("a")).map(|model| model.0), Ok("a".to_owned()));
    assert_eq!(
        init(load, Path::new("")).map(|model| model.0),
        Err(RunError::Init("outer: inner".to_owned()))
    );
    assert_eq!(init(connect, ("h".into(), 80)), Ok(80));
    assert_eq!(init(connect, (String::new(), 80)), Err(RunError::Init("no host".to_owned())));
    assert_eq!(init(|| Ok::<_, String>(()), ()), Ok(()));
    assert_eq!(init(async || Err::<(), _>("no"), ()), Err(RunError::Init("no".to_owned())));
    assert_eq!(init(|x: u8| async move { Ok::<_, String>(x) }, 1), Ok(1));
}
