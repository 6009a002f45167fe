//! A user's own object, served to all processes.
//!
//! A thread of its own has it. That thread is a client of the manager as everybody is, and takes
//! the calls one after another (`manager/objects/registered.rs`).

use super::handle::{Asking, Handle, handle_travels, kinds};
use super::manager::Manager;
use crate::error::sync::{Error, Why};
use crate::manager::object::{Body, Part};
use crate::manager::objects::code::{Message, Wait};
use crate::manager::objects::registered::{Ask, Registered as Rules, Reply, how};
use crate::manager::state::LOCAL;
use crate::panics::catch_user_panic;
use crate::wire::packet::Packet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::Any;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use tokio::runtime::Runtime;

/// An object of yours that other processes may call: what [`Manager::register`] takes (Python's
/// `BaseManager.register`).
///
/// Its methods are the variants of [`TaskBuilder`](Self::Call), with their arguments. `call` may be
/// written as an `async fn`; it runs on a thread of the object's own, within a tokio runtime of
/// that thread, and need not be `Send`.
///
/// ```
/// use procpool::Manager;
/// use procpool::sync::Actor;
/// use serde::{Deserialize, Serialize};
///
/// struct Account {
///     balance: i64,
/// }
///
/// #[derive(Serialize, Deserialize)]
/// enum Call {
///     Deposit(i64),
///     Withdraw(i64),
/// }
///
/// impl Actor for Account {
///     type Call = Call;
///     type Reply = Result<i64, String>;
///
///     async fn call(&mut self, call: Call) -> Result<i64, String> {
///         match call {
///             Call::Deposit(sum) => self.balance += sum,
///             Call::Withdraw(sum) if sum > self.balance => return Err("not enough".into()),
///             Call::Withdraw(sum) => self.balance -= sum,
///         }
///         Ok(self.balance)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let account = Manager::new()?.register(Account { balance: 0 })?;
/// assert_eq!(account.call(Call::Deposit(50)).await?, Ok(50)); // from any process that has the handle
/// assert!(account.call(Call::Withdraw(80)).await?.is_err());
/// # Ok(())
/// # }
/// ```
pub trait Actor: Send + 'static {
    /// What can be asked of it: as a rule an enum, a variant for each method.
    type Call: Serialize + DeserializeOwned;
    /// What it answers.
    type Reply: Serialize + DeserializeOwned;

    /// Answers one call. There is never more than one at a time.
    fn call(&mut self, call: Self::Call) -> impl Future<Output = Self::Reply>;
}

/// A handle to an object that was [registered](Manager::register).
///
/// It is cheap to clone, can be used from any thread and in any runtime, and travels to other
/// processes as an argument, in a result, or inside another shared object.
pub struct ActorRef<O> {
    handle: Handle,
    marker: PhantomData<fn() -> O>,
}

handle_travels!(ActorRef<O>, kinds::REGISTERED);

impl<O> Clone for ActorRef<O> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), marker: PhantomData }
    }
}

impl<O> fmt::Debug for ActorRef<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorRef").field("handle", &self.handle).finish()
    }
}

impl Manager {
    /// Serves an object of yours to all processes that have the handle: it moves to a thread of its
    /// own, which ends, and drops it, when no handle is left in any process, or when the
    /// manager is closed.
    ///
    /// # Errors
    ///
    /// [`Memory`](crate::sync::ErrorKind::Memory), when there is no thread to be had;
    /// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    pub fn register<O: Actor>(&self, object: O) -> Result<ActorRef<O>, Error> {
        let failed = |step| move |source| Error::system(step, source);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map(Background::new)
            .map_err(failed("making the runtime of a registered object"))?;
        let handle =
            Handle::create(self.connection(), kinds::REGISTERED, Part::WHOLE, None, || {
                Box::new(Rules::new(LOCAL))
            })?;
        let served = handle.part(Part::RECEIVER)?;
        std::thread::Builder::new()
            .name("procpool-object".into())
            .spawn(move || serve(&runtime, &served, object))
            .map_err(failed("starting the thread of a registered object"))?;
        Ok(ActorRef { handle, marker: PhantomData })
    }
}

/// A runtime whose drop waits for nothing.
///
/// What an object's calls have left running does not hold up its end. If its thread cannot be
/// started, the caller drops it, in an async context perhaps, where tokio refuses to wait.
struct Background(Option<Runtime>);

impl Background {
    fn new(runtime: Runtime) -> Self {
        Self(Some(runtime))
    }

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.0.as_ref().expect("the runtime is there until it is dropped").block_on(future)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn serve<O: Actor>(runtime: &Background, handle: &Handle, mut object: O) {
    loop {
        let Ok(body) = runtime.block_on(handle.ask(Ask::Next.body())) else { break };
        let Ok(Reply::Next { call }) = Reply::read(&body.head) else { break };
        // The object is as the panic has left it; the caller is told.
        let answer =
            catch_unwind(AssertUnwindSafe(|| answer(runtime, handle, &mut object, call, &body)));
        let answer = answer.unwrap_or_else(|payload| {
            let text = message(&*payload).to_owned();
            std::mem::forget(payload); // its drop might panic as well
            failed(call, how::PANICKED, &text)
        });
        drop(body);
        if handle.tell(answer).is_err() {
            break;
        }
    }
    catch_user_panic(move || drop(object));
}

fn failed(call: u64, how: u8, text: &str) -> Body {
    Ask::Failed { call, how, text: Packet::copy_from(text.as_bytes()) }.body()
}

fn answer<O: Actor>(
    runtime: &Background,
    handle: &Handle,
    object: &mut O,
    call: u64,
    body: &Body,
) -> Body {
    let argument = match handle.decode(body) {
        Ok(argument) => argument,
        Err(error) => return failed(call, how::ARGUMENT, &reason(&error)),
    };
    let reply = runtime.block_on(object.call(argument));
    match handle.encode(&reply) {
        Ok((tail, held)) => Body::with_value(Ask::Done { call }.packet(), tail, held),
        Err(error) if error.kind() == crate::sync::ErrorKind::TooLarge => {
            failed(call, how::TOO_LARGE, "")
        }
        Err(error) => failed(call, how::RESULT, &reason(&error)),
    }
}

/// Why something could not travel, without what the error's text says around it.
fn reason(error: &Error) -> String {
    error.reason().map_or_else(|| error.to_string(), str::to_owned)
}

/// The text of a panic's payload, as std's own hook has it.
fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&'static str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("Box<dyn Any>")
}

impl<O: Actor> ActorRef<O> {
    fn start(&self, call: &O::Call, wait: Wait) -> Result<Asking, Error> {
        let (tail, held) = self.handle.encode(call)?;
        Ok(self.handle.ask(Body::with_value(Ask::Call { wait }.packet(), tail, held)))
    }

    fn finish(&self, answer: Result<Body, Error>) -> Result<O::Reply, Error> {
        let body = answer?;
        let why = match Reply::read(&body.head) {
            Ok(Reply::Done) => return self.handle.decode(&body),
            Ok(Reply::TimedOut) => Why::TimedOut,
            Ok(Reply::Failed { how, text }) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                match how {
                    how::PANICKED => Why::ObjectPanicked { message: text },
                    how::ARGUMENT => Why::Decode(text),
                    how::TOO_LARGE => Why::TooLarge { limit: crate::manager::message::VALUE_MAX },
                    _ => Why::Encode(text),
                }
            }
            other => Why::Decode(format!("the object has answered {other:?}")),
        };
        Err(why.into())
    }

    /// Calls it: waits until the calls before have been answered, and this one as well.
    ///
    /// # Errors
    ///
    /// * [`Panicked`](crate::sync::ErrorKind::Panicked): the call panicked. The object goes on, as the
    ///   panic has left it.
    /// * [`Encode`](crate::sync::ErrorKind::Encode), [`Decode`](crate::sync::ErrorKind::Decode),
    ///   [`TooLarge`](crate::sync::ErrorKind::TooLarge) (16 MiB): the call, or its result, cannot travel.
    ///   The object has seen no call that could not.
    /// * [`ManagerFull`](crate::sync::ErrorKind::ManagerFull);
    ///   [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
    ///
    /// # Cancel safety
    ///
    /// Dropped before the call has begun, it never does; later, it runs to its end, and its result
    /// is dropped.
    pub async fn call(&self, call: O::Call) -> Result<O::Reply, Error> {
        self.finish(self.start(&call, Wait::Ever)?.await)
    }

    /// As [`call`](Self::call), for at most `limit`. A call that has not begun by then never does;
    /// one that has runs to its end all the same.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::sync::ErrorKind::TimedOut), and those of `call`.
    ///
    /// # Cancel safety
    ///
    /// As `call`.
    pub async fn call_timeout(&self, call: O::Call, limit: Duration) -> Result<O::Reply, Error> {
        self.finish(self.start(&call, Wait::Limit(limit))?.await)
    }

    /// As [`call`](Self::call), blocking the thread.
    ///
    /// # Errors
    ///
    /// As `call`.
    ///
    /// # Panics
    ///
    /// Within an async context.
    #[track_caller]
    pub fn blocking_call(&self, call: O::Call) -> Result<O::Reply, Error> {
        self.finish(self.start(&call, Wait::Ever)?.wait())
    }
}
