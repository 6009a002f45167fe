//! What a worker can do with one record of the table: tell its name, and run it.

#![allow(
    private_interfaces,
    reason = "`Arguments` is public as a bound of hidden traits; nobody else can implement it"
)]

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;

use futures::future::LocalBoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::function::CapturesNothing;
use super::table::conjure;
use crate::wire::value::{self, DecodeError, EncodeError, Reader};

/// The functions that stand behind one record.
///
/// It is public because the traits' hidden functions return it, and opaque so that nobody else can
/// make one.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The function's type name: for people, neither unique nor stable.
    pub(crate) name: fn() -> &'static str,
    pub(crate) run: Run,
}

impl Entry {
    pub(super) fn new<F>(run: Run) -> Self {
        Self { name: std::any::type_name::<F>, run }
    }
}

/// What an init function leaves behind for the tasks of its worker.
pub(crate) type State = Box<dyn Any + Send + Sync>;

/// How to run it, from encoded arguments. None of these catches a panic.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Run {
    /// Decodes, runs, and appends the encoded result, at most `limit` bytes, to `out`. After an
    /// error `out` is as it was; after a panic (of the result's `Serialize`) it may have grown.
    Sync(RunSync),
    /// Decodes at once. The future calls the function when it is first polled, and resolves to the
    /// encoded result.
    Async(RunAsync),
    InitSync(fn(args: &[u8]) -> Result<State, RunError>),
    /// Decodes at once, calls at the first poll.
    InitAsync(fn(args: &[u8]) -> Result<Running<State>, RunError>),
}

/// See [`Run::Sync`].
pub(crate) type RunSync =
    fn(args: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<Verdict, RunError>;
/// See [`Run::Async`].
pub(crate) type RunAsync =
    fn(args: &[u8], limit: usize) -> Result<Running<(Vec<u8>, Verdict)>, RunError>;

/// An async function under way; it need not be `Send`.
pub(crate) type Running<T> = LocalBoxFuture<'static, Result<T, RunError>>;

/// How a task's record judges what the task returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Final,
    /// It is an error that is worth another try.
    Again,
}

/// Judges the results of a task. It stands in the task's record, so it runs in the worker.
pub trait Judge<R> {
    #[doc(hidden)]
    fn __is_worth_another_try(result: &R) -> bool;
}

/// Nothing that was returned is worth another try.
#[derive(Debug)]
pub(crate) enum Contented {}

impl<R> Judge<R> for Contented {
    fn __is_worth_another_try(_: &R) -> bool {
        false
    }
}

/// The errors of which the predicate `P` says so are worth another try.
#[derive(Debug)]
pub(crate) struct RetryIf<P>(PhantomData<P>);

impl<T, E, P> Judge<Result<T, E>> for RetryIf<P>
where
    P: Fn(&E) -> bool + CapturesNothing,
{
    fn __is_worth_another_try(result: &Result<T, E>) -> bool {
        result.as_ref().is_err_and(|error| conjure::<P>()(error))
    }
}

pub(super) fn judge<R, J: Judge<R>>(result: &R) -> Verdict {
    if J::__is_worth_another_try(result) { Verdict::Again } else { Verdict::Final }
}

/// Why a task or an init function gave no value, short of a panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunError {
    /// The arguments could not be decoded; the function was not called.
    Arguments(String),
    /// The result could not be encoded.
    Result(String),
    /// The encoded result is longer than it may be.
    ResultTooLarge { limit: usize },
    /// The init function's own error, as its `{:#}` shows it.
    Init(String),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arguments(why) => write!(f, "decode the arguments: {why}"),
            Self::Result(why) => write!(f, "encode the result: {why}"),
            Self::ResultTooLarge { limit } => {
                write!(f, "the encoded result exceeds {limit} bytes")
            }
            Self::Init(why) => f.write_str(why),
        }
    }
}

/// A tuple of arguments, encoded one after another without anything around them.
pub trait Arguments: Sized {
    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

macro_rules! arguments {
    () => {
        impl Arguments for () {
            fn read(_: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(())
            }
        }
    };
    ($($Arg:ident $arg:ident),+) => {
        impl<$($Arg: DeserializeOwned),+> Arguments for ($($Arg,)+) {
            fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(($(reader.next::<$Arg>()?,)+))
            }
        }
    };
}
super::function::for_each_arity!(arguments);

pub(super) fn decode<Args: Arguments>(bytes: &[u8]) -> Result<Args, RunError> {
    let mut reader = Reader::new(bytes);
    Args::read(&mut reader)
        .and_then(|args| reader.finish().map(|()| args))
        .map_err(|error| RunError::Arguments(error.to_string()))
}

pub(super) fn encode<R: Serialize>(
    result: &R,
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<(), RunError> {
    let before = out.len();
    value::encode(result, out, before.saturating_add(limit)).map_err(|error| {
        out.truncate(before);
        match error {
            EncodeError::TooLarge { .. } => RunError::ResultTooLarge { limit },
            error => RunError::Result(error.to_string()),
        }
    })
}

/// Turns what an init function returned into what its worker keeps.
pub(super) fn state<T, E>(result: Result<T, E>) -> Result<State, RunError>
where
    T: Send + Sync + 'static,
    E: fmt::Display,
{
    match result {
        Ok(state) => Ok(Box::new(state)),
        Err(error) => Err(RunError::Init(format!("{error:#}"))),
    }
}
