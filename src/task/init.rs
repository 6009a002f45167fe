//! Which functions can set up a worker.

use std::fmt::Display;
use std::future::Future;

use super::entry::{self, Entry, Run};
use super::function::{AsyncFn, CapturesNothing, MustBeOwnedLikeString, SyncFn, for_each_arity};
use super::table::conjure;

/// A function that sets up a worker before it runs tasks.
///
/// A worker never runs the program's `main`. What `main` sets up for itself (logging, statics, a
/// connection) is not there; an init function is the place for it.
///
/// What a [`Task`](crate::Task) may be holds for an init function as well: a sync or async function
/// or a closure that captures nothing, of at most eight owned arguments that are `Serialize +
/// DeserializeOwned`. But it returns `Result<T, E>`, where `T: Send + Sync + 'static` stays in the
/// worker for the tasks to read and is never encoded, and `E: Display` tells why the worker cannot
/// be used. A function that has nothing to leave behind returns `Result<(), E>`.
///
/// ```
/// fn is_init<Args, M>(_: impl procpool::Init<Args, M>) {}
///
/// struct Model(Vec<u8>);
///
/// fn load(path: std::path::PathBuf) -> std::io::Result<Model> {
///     Ok(Model(std::fs::read(path)?))
/// }
/// async fn connect(host: String, port: u16) -> Result<(), String> { Err(format!("{host}:{port}")) }
///
/// is_init(load);
/// is_init(connect);
/// ```
///
/// `Args` and `Marker` are always inferred; it is the `Result` that tells a sync function from an
/// async one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a function that can set up a worker process",
    label = "not an init function",
    note = "it must return `Result<T, E>`, or a future of one, with `T: Send + Sync + 'static` and `E: Display`; \
            `Result<(), E>` if there is nothing to keep",
    note = "its arguments must be owned values that are `Serialize + DeserializeOwned`, not references: take `String` \
            instead of `&str`, `Vec<T>` instead of `&[T]` (the caller may still pass the reference)",
    note = "it cannot capture variables: pass them as arguments",
    note = "it takes at most 8 arguments; put more into a struct"
)]
pub trait Init<Args, Marker>: Copy + Send + Sync + 'static {
    /// What the function leaves in the worker.
    type State: Send + Sync + 'static;

    /// How many arguments.
    #[doc(hidden)]
    const __ARITY: u32;

    #[doc(hidden)]
    fn __entry() -> Entry;
}

macro_rules! init {
    ($($Arg:ident $arg:ident),*) => {
        impl<F, T, E, $($Arg,)*> Init<($($Arg,)*), SyncFn> for F
        where
            F: Fn($($Arg),*) -> Result<T, E> + CapturesNothing,
            $($Arg: for<'any> MustBeOwnedLikeString<'any>,)*
            T: Send + Sync + 'static,
            E: Display,
        {
            type State = T;

            const __ARITY: u32 = <[&str]>::len(&[$(stringify!($arg)),*]) as u32;

            fn __entry() -> Entry {
                Entry::new::<F>(Run::InitSync(|bytes| {
                    let ($($arg,)*) = entry::decode(bytes)?;
                    entry::state(conjure::<F>()($($arg),*))
                }))
            }
        }

        impl<F, Fut, T, E, $($Arg,)*> Init<($($Arg,)*), AsyncFn> for F
        where
            F: Fn($($Arg),*) -> Fut + CapturesNothing,
            Fut: Future<Output = Result<T, E>> + 'static,
            $($Arg: for<'any> MustBeOwnedLikeString<'any> + 'static,)*
            T: Send + Sync + 'static,
            E: Display,
        {
            type State = T;

            const __ARITY: u32 = <[&str]>::len(&[$(stringify!($arg)),*]) as u32;

            fn __entry() -> Entry {
                Entry::new::<F>(Run::InitAsync(|bytes| {
                    let ($($arg,)*) = entry::decode(bytes)?;
                    Ok(Box::pin(async move { entry::state(conjure::<F>()($($arg),*).await) }))
                }))
            }
        }
    };
}
for_each_arity!(init);
