//! Which functions are tasks.

use std::future::Future;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::entry::{self, Arguments, Entry, Judge, Run};
use super::table::conjure;

/// A function that can be run in a worker process: a *task*.
///
/// It is implemented for functions and closures, and nobody needs to implement it, or to name it
/// except in generic code of their own. A task is
///
/// * a plain function, an `async fn`, a function with its generics filled in (`work::<u32>`), an
///   associated function (`Image::decode`), or a closure that captures nothing, `|x: u64| x + 1`,
///   `|x: u64| async move { x + 1 }` or `async |x: u64| x + 1`;
/// * of no more than eight arguments;
/// * whose arguments and result are owned values that serde can encode and decode. The argument
///   types of a closure must be written out.
///
/// The future of an async function need not be `Send`. A task's own `Result` is a result like any
/// other.
///
/// ```
/// fn is_task<Args, M>(_: impl procpool::Task<Args, M>) {}
///
/// fn add(a: u64, b: u64) -> u64 { a + b }
/// async fn fetch(host: String, port: u16) -> Result<Vec<u8>, String> { Err(format!("{host}:{port}")) }
///
/// is_task(add);
/// is_task(fetch);
/// is_task(|text: String| text.to_uppercase());
/// is_task(String::into_bytes);
/// ```
///
/// # What cannot be a task, and what to do
///
/// **A closure that captures.** The worker is another process: of a closure's variables nothing is
/// there. Pass them as arguments: not `pool.spawn(move |x: u64| x + offset, 1)`, but
/// `pool.spawn(|x: u64, offset: u64| x + offset, (1, offset))`. This is found by `cargo build`;
/// `cargo check` does not see it. A function pointer (`let f: fn(u64) -> u64 = …`) is a variable
/// too: name the function itself.
///
/// **A function that takes a reference.** In the worker there is nobody to borrow from. Take the
/// owned type, `String` for `&str`, `Vec<T>` for `&[T]`, `PathBuf` for `&Path`. The caller may
/// still [hand over](crate::ArgsFor) the reference: `pool.spawn(count, "some text")` with `fn
/// count(text: String) -> usize`.
///
/// ```compile_fail,E0277
/// # fn is_task<Args, M>(_: impl procpool::Task<Args, M>) {}
/// fn count(text: &str) -> usize { text.len() }
/// is_task(count);
/// ```
///
/// **A result that does not travel.** `std::io::Error`, `anyhow::Error` and most other errors are
/// not `Serialize`: let the function return `Result<T, procpool::Failure>`, into which `?` turns
/// any error. For types of your own, derive `Serialize` and `Deserialize`.
///
/// **A function of more than eight arguments.** Put them into a struct.
///
/// # Captured values of no size
///
/// A worker creates the task's value itself. That is sound for functions and for closures that
/// capture nothing. The crate refuses a closure that captures something with a size, but stable
/// Rust offers no way to refuse one that captures a value **without** a size, unless its alignment
/// gives it away. Such a value can be a *proof token*: a type that can be obtained only by doing
/// something first, such as initializing a static, and whose methods rely on that. The worker has
/// not done it, so using the token there is undefined behavior. The same holds for a private
/// function that a library returns as `impl Fn` only after some initialization.
///
/// Do not capture such a token. Call what returns the token within the task, or in an
/// [`Init`](crate::Init) function. The macro [`task!`](crate::task!) checks this at compile time:
/// `pool.spawn(procpool::task!(work), 1)` accepts named functions and closures without any capture,
/// and nothing else. Use it where tasks are written by code that you do not review.
///
/// # Type parameters
///
/// `Args` is the tuple of the function's arguments: `()`, `(A,)`, `(A, B)` and so on. `Marker` is
/// how the compiler tells sync and async functions apart. Both are always inferred; leave them to
/// be inferred in generic code as well:
///
/// ```
/// fn describe<Args, M, F: procpool::Task<Args, M>>(_: F) -> &'static str {
///     std::any::type_name::<F::Output>()
/// }
///
/// async fn answer() -> u8 { 42 }
/// assert_eq!(describe(answer), "u8");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a function that a worker process can run",
    label = "not a task",
    note = "its arguments must be owned values that are `Serialize + DeserializeOwned`, not references: take `String` \
            instead of `&str`, `Vec<T>` instead of `&[T]` (the caller may still pass the reference); types of your own \
            derive serde's `Serialize` and `Deserialize`",
    note = "its result must be `Serialize + DeserializeOwned`: `io::Error`, `anyhow::Error`, `procpool::Error` and \
            most other errors are not; return `Result<T, procpool::Failure>`, into which `?` turns any error",
    note = "it cannot capture variables: pass them as arguments",
    note = "it is handed over itself, not a pointer to it, a call of it or an `async` block: `spawn(add, (1, 2))`; a \
            method of `&self` within a closure: `|s: Shape| s.area()`; a parameter of your own function is `impl \
            Task<(u64,), M>`, not `impl Fn(u64)`",
    note = "memory is not shared: instead of `Arc<Mutex<T>>` and channels, pass handles of `Manager::mutex` and \
            `Manager::queue`",
    note = "it takes at most 8 arguments; put more into a struct"
)]
pub trait Task<Args, Marker>: Callable<Args> + Copy + Send + Sync + 'static {
    /// What the function returns, or what its future resolves to.
    type Output: Serialize + DeserializeOwned;

    /// How many arguments.
    #[doc(hidden)]
    const __ARITY: u32;

    /// Its record, with what judges its results.
    #[doc(hidden)]
    fn __entry<J: Judge<Self::Output>>() -> Entry;
}

/// Checks at compile time that a task captures nothing, not even a value of no size.
///
/// The macro takes a function or a closure and returns it unchanged. It costs nothing at run time.
/// It works for everything that takes a [`Task`], an [`Init`](crate::Init) function or
/// the predicate of [`retry_if`](crate::TaskBuilder::retry_if).
///
/// The expression is evaluated by the compiler, as that of a `const`. Therefore it cannot mention a
/// local variable, and it cannot call a function that is not `const`. What remains is the same in
/// each process that runs the program, so a worker may create it again.
/// [`Task`](crate::Task#captured-values-of-no-size) explains what can go wrong otherwise.
///
/// ```
/// # fn is_task<Args, M>(_: impl procpool::Task<Args, M>) {}
/// fn add(a: u64, b: u64) -> u64 { a + b }
///
/// is_task(procpool::task!(add));
/// is_task(procpool::task!(|text: String| text.to_uppercase()));
/// is_task(procpool::task!(async |n: u64| n + 1));
/// ```
///
/// A token that proves something about this process does not pass:
///
/// ```compile_fail,E0435
/// # fn is_task<Args, M>(_: impl procpool::Task<Args, M>) {}
/// # mod table {
/// #     #[derive(Clone, Copy)]
/// #     pub struct Ready(());
/// #     pub fn init() -> Ready { Ready(()) }
/// #     impl Ready { pub fn get(self, at: usize) -> u64 { at as u64 } }
/// # }
/// let ready = table::init();
/// is_task(procpool::task!(move |at: usize| ready.get(at)));
/// ```
#[macro_export]
macro_rules! task {
    ($function:expr) => {
        const { $function }
    };
}

/// `for<'any> MustBeOwnedLikeString<'any>` is `Serialize + DeserializeOwned` by another name.
///
/// For `&str`, `&[u8]` and `&Path`, which can be decoded where the encoded bytes live long enough,
/// the compiler does not say that [`Task`] is not implemented, with its advice. It says that an
/// implementation 'is not general enough', and names the trait that is asked for here. So the name
/// carries the advice.
pub trait MustBeOwnedLikeString<'any>: Serialize + Deserialize<'any> {}

impl<'any, T: Serialize + Deserialize<'any>> MustBeOwnedLikeString<'any> for T {}

/// What shows of a closure that captures nothing before its size is known.
///
/// It is a trait of its own for the sake of its message: else the compiler says that some captured
/// `String` is not `Copy`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` captures variables, which are not there in a worker process",
    label = "captures variables",
    note = "a task is a function, or a closure that captures nothing: pass what it needs as arguments"
)]
pub trait CapturesNothing: Copy + Send + Sync + 'static {}

#[diagnostic::do_not_recommend]
impl<F: Copy + Send + Sync + 'static> CapturesNothing for F {}

/// The marker of sync functions.
#[derive(Debug)]
pub enum SyncFn {}

/// The marker of async functions.
#[derive(Debug)]
pub enum AsyncFn {}

/// Calls a macro once for each number of arguments, with a type and a variable for each.
macro_rules! for_each_arity {
    ($apply:ident) => {
        $apply!();
        $apply!(A1 a1);
        $apply!(A1 a1, A2 a2);
        $apply!(A1 a1, A2 a2, A3 a3);
        $apply!(A1 a1, A2 a2, A3 a3, A4 a4);
        $apply!(A1 a1, A2 a2, A3 a3, A4 a4, A5 a5);
        $apply!(A1 a1, A2 a2, A3 a3, A4 a4, A5 a5, A6 a6);
        $apply!(A1 a1, A2 a2, A3 a3, A4 a4, A5 a5, A6 a6, A7 a7);
        $apply!(A1 a1, A2 a2, A3 a3, A4 a4, A5 a5, A6 a6, A7 a7, A8 a8);
    };
}
pub(super) use for_each_arity;

/// A function that is called with these arguments.
///
/// It stands beside [`Task`] in each bound. It depends on nothing but the function, so the compiler
/// knows the arguments by it, and then names the one type for which [`Task`] does not hold.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a function that a worker process can run",
    label = "not a task",
    note = "its arguments must be owned values that are `Serialize + DeserializeOwned`, not references: take `String` \
            instead of `&str`, `Vec<T>` instead of `&[T]` (the caller may still pass the reference); types of your own \
            derive serde's `Serialize` and `Deserialize`",
    note = "its result must be `Serialize + DeserializeOwned`: `io::Error`, `anyhow::Error`, `procpool::Error` and \
            most other errors are not; return `Result<T, procpool::Failure>`, into which `?` turns any error",
    note = "it cannot capture variables: pass them as arguments",
    note = "it is handed over itself, not a pointer to it, a call of it or an `async` block: `spawn(add, (1, 2))`; a \
            method of `&self` within a closure: `|s: Shape| s.area()`; a parameter of your own function is `impl \
            Task<(u64,), M>`, not `impl Fn(u64)`",
    note = "memory is not shared: instead of `Arc<Mutex<T>>` and channels, pass handles of `Manager::mutex` and \
            `Manager::queue`",
    note = "it takes at most 8 arguments; put more into a struct"
)]
pub trait Callable<Args> {}

/// What a task may take: an owned value that travels.
///
/// It is a trait of its own so that the compiler names the argument that does not.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent to a worker as an argument",
    label = "does not implement `Serialize + DeserializeOwned`",
    note = "types of your own derive serde's `Serialize` and `Deserialize`; take `String` instead of `&str`, `Vec<T>` \
            instead of `&[T]` (the caller may still pass the reference); a method of `&self` within a closure: `|s: \
            Shape| s.area()`",
    note = "memory is not shared: instead of `Arc<Mutex<T>>` and channels, pass handles of `Manager::mutex` and \
            `Manager::queue`"
)]
pub trait Argument: for<'any> MustBeOwnedLikeString<'any> + 'static {}

#[diagnostic::do_not_recommend]
impl<T: for<'any> MustBeOwnedLikeString<'any> + 'static> Argument for T {}

/// What a task may return: a value that travels, or a future of one. `Marker` tells these apart.
///
/// It is a trait of its own so that the compiler names the result that does not travel.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot come back from a worker as the result of a task",
    label = "neither `Serialize + DeserializeOwned` nor a future of what is",
    note = "types of your own derive serde's `Serialize` and `Deserialize`",
    note = "`io::Error`, `anyhow::Error`, `procpool::Error` and most other errors cannot travel: return `Result<T, \
            procpool::Failure>`, into which `?` turns any error",
    note = "memory is not shared: instead of `Arc<Mutex<T>>` and channels, pass handles of `Manager::mutex` and \
            `Manager::queue`"
)]
pub trait Outcome<Marker>: Sized {
    type Value: Serialize + DeserializeOwned;

    /// The record of the function `F`, which is called by `C`.
    fn entry<F, C: Call<Self>, J: Judge<Self::Value>>() -> Entry;
}

/// How a function is called with arguments that have been decoded.
pub trait Call<R> {
    type Args: Arguments + 'static;

    fn call(args: Self::Args) -> R;
}

impl<R: for<'any> MustBeOwnedLikeString<'any>> Outcome<SyncFn> for R {
    type Value = R;

    fn entry<F, C: Call<Self>, J: Judge<R>>() -> Entry {
        Entry::new::<F>(Run::Sync(|bytes, out, limit| {
            let result = C::call(entry::decode(bytes)?);
            let verdict = entry::judge::<R, J>(&result);
            entry::encode(&result, out, limit)?;
            Ok(verdict)
        }))
    }
}

impl<Fut> Outcome<AsyncFn> for Fut
where
    Fut: Future + 'static,
    Fut::Output: for<'any> MustBeOwnedLikeString<'any>,
{
    type Value = Fut::Output;

    fn entry<F, C: Call<Self>, J: Judge<Fut::Output>>() -> Entry {
        Entry::new::<F>(Run::Async(|bytes, limit| {
            let args = entry::decode::<C::Args>(bytes)?;
            Ok(Box::pin(async move {
                let result = C::call(args).await;
                let verdict = entry::judge::<Fut::Output, J>(&result);
                let mut out = Vec::new();
                entry::encode(&result, &mut out, limit)?;
                Ok((out, verdict))
            }))
        }))
    }
}

/// The function `F`, which a worker makes out of nothing.
#[derive(Debug)]
pub(super) struct Conjured<F, Args>(PhantomData<fn(F, Args)>);

macro_rules! impl_task {
    ($($Arg:ident $arg:ident),*) => {
        impl<F, R, $($Arg: Argument,)*> Call<R> for Conjured<F, ($($Arg,)*)>
        where
            F: Fn($($Arg),*) -> R + CapturesNothing,
        {
            type Args = ($($Arg,)*);

            fn call(($($arg,)*): Self::Args) -> R {
                conjure::<F>()($($arg),*)
            }
        }

        #[diagnostic::do_not_recommend]
        impl<F, R, $($Arg,)*> Callable<($($Arg,)*)> for F where F: Fn($($Arg),*) -> R {}

        impl<F, R, Marker, $($Arg,)*> Task<($($Arg,)*), Marker> for F
        where
            F: Fn($($Arg),*) -> R + CapturesNothing,
            $($Arg: Argument,)*
            R: Outcome<Marker>,
        {
            type Output = R::Value;

            const __ARITY: u32 = <[&str]>::len(&[$(stringify!($arg)),*]) as u32;

            fn __entry<J: Judge<R::Value>>() -> Entry {
                R::entry::<F, Conjured<F, ($($Arg,)*)>, J>()
            }
        }
    };
}
for_each_arity!(impl_task);
