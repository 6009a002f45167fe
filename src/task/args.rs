//! How the arguments of a task may be given.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::function::for_each_arity;
use crate::wire::value::{self, EncodeError};

/// What can be given as the arguments of a task whose argument types are `Args`.
///
/// Arguments are encoded in the call that takes them, so they need be neither `Send` nor `'static`,
/// and a reference does as well as the value.
///
/// | the task takes        | it is given                                                                   |
/// |-----------------------|-------------------------------------------------------------------------------|
/// | nothing               | `()`                                                                          |
/// | one `A`               | `A` or `&A`; `&[T]` for a `Vec<T>`, `&str` for a `String`, `&Path` or `&str` for a `PathBuf` |
/// | two to eight: `A, B`  | the tuple `(A, B)`, or a reference to it                                      |
///
/// So `map` spreads an iterator over tuples `(A, B)` over the two arguments of a function, and a
/// function whose only argument is a tuple takes the same tuples whole.
///
/// ```
/// fn fits<Args, M>(_: impl procpool::Task<Args, M>, _: impl procpool::ArgsFor<Args>) {}
///
/// fn fib(n: u64) -> u64 { n }
/// fn lines(text: String) -> usize { text.lines().count() }
/// fn add(a: u64, b: u64) -> u64 { a + b }
/// fn swap(pair: (u64, u64)) -> (u64, u64) { (pair.1, pair.0) }
///
/// fits(fib, 35);
/// fits(fib, &35);
/// fits(lines, "one\ntwo");
/// fits(add, (1, 2));
/// fits(swap, (1, 2));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not fit a task whose arguments are `{Args}`",
    label = "these arguments do not fit the task",
    note = "a task without arguments takes `()`; a task of one argument takes it bare, or a reference to it (`&str` \
            for a `String`, `&[T]` for a `Vec<T>`, `&Path` or `&str` for a `PathBuf`)",
    note = "a task of two to eight arguments takes a tuple of just as many owned values, or a reference to one"
)]
pub trait ArgsFor<Args> {
    #[doc(hidden)]
    fn __encode(&self, encoder: &mut Encoder<'_>);
}

/// A tuple of the arguments of a task, of none to eight: what [`Named`](crate::NamedTask) names them
/// by.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no tuple of arguments",
    note = "a task without arguments has `()`, a task of one argument `(A,)`"
)]
pub trait ArgsTuple {
    #[doc(hidden)]
    const __ARITY: u32;
}

/// Takes the arguments of one call, one after another.
#[derive(Debug)]
pub struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    /// How long `out` may become.
    end: usize,
    /// The first failure; nothing is encoded after it.
    result: Result<(), EncodeError>,
}

impl Encoder<'_> {
    fn put<T: Serialize + ?Sized>(&mut self, value: &T) {
        if self.result.is_ok() {
            self.result = value::encode(value, self.out, self.end);
        }
    }
}

/// Appends `args` to `out`, by at most `limit` bytes. After an error `out` is as it was.
pub(crate) fn encode_args<Args, P: ArgsFor<Args>>(
    args: &P,
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<(), EncodeError> {
    let before = out.len();
    let mut encoder = Encoder { end: before.saturating_add(limit), out, result: Ok(()) };
    args.__encode(&mut encoder);
    encoder.result.map_err(|error| {
        out.truncate(before);
        match error {
            // The argument was told what the others had left; the caller is told what all may have.
            EncodeError::TooLarge { .. } => EncodeError::TooLarge { limit },
            error => error,
        }
    })
}

impl<A: Serialize> ArgsFor<(A,)> for A {
    fn __encode(&self, encoder: &mut Encoder<'_>) {
        encoder.put(self);
    }
}

impl<A: Serialize> ArgsFor<(A,)> for &A {
    fn __encode(&self, encoder: &mut Encoder<'_>) {
        encoder.put(*self);
    }
}

impl ArgsFor<(String,)> for &str {
    fn __encode(&self, encoder: &mut Encoder<'_>) {
        encoder.put(*self);
    }
}

impl<T: Serialize> ArgsFor<(Vec<T>,)> for &[T] {
    fn __encode(&self, encoder: &mut Encoder<'_>) {
        encoder.put(*self);
    }
}

impl ArgsFor<(PathBuf,)> for &Path {
    fn __encode(&self, encoder: &mut Encoder<'_>) {
        encoder.put(*self);
    }
}

impl ArgsFor<(PathBuf,)> for &str {
    fn __encode(&self, encoder: &mut Encoder<'_>) {
        encoder.put(*self);
    }
}

// For two arguments and more, the tuple by value is the only implementation whose `Self` is a
// tuple, and the reference to it the only one for a reference to a tuple. That is what lets
// `("host".into(), 80)` infer.
macro_rules! args {
    () => {
        impl ArgsFor<()> for () {
            fn __encode(&self, _: &mut Encoder<'_>) {}
        }
    };
    ($Arg:ident $arg:ident) => {};
    ($($Arg:ident $arg:ident),+) => {
        impl<$($Arg: Serialize),+> ArgsFor<($($Arg,)+)> for ($($Arg,)+) {
            fn __encode(&self, encoder: &mut Encoder<'_>) {
                let ($($arg,)+) = self;
                $(encoder.put($arg);)+
            }
        }

        impl<$($Arg: Serialize),+> ArgsFor<($($Arg,)+)> for &($($Arg,)+) {
            fn __encode(&self, encoder: &mut Encoder<'_>) {
                let ($($arg,)+) = self;
                $(encoder.put($arg);)+
            }
        }
    };
}
for_each_arity!(args);

macro_rules! tuple {
    ($($Arg:ident $arg:ident),*) => {
        impl<$($Arg),*> ArgsTuple for ($($Arg,)*) {
            const __ARITY: u32 = {
                const NAMES: &[&str] = &[$(stringify!($arg)),*];
                NAMES.len() as u32
            };
        }
    };
}
for_each_arity!(tuple);
