//! What a task is, and how a worker finds it.
//!
//! * [`Task`] tells which functions can be tasks and what their result is; [`ArgsFor`] how their
//!   arguments may be given; [`Init`] which functions can set up a worker.
//! * [`state`](state()) is what an init function left for the tasks of its worker.
//! * The linker collects one record per task that the program mentions. [`index_of`] gives a task's
//!   place in that table, which is what travels; [`entry()`] gives, for a place, the functions that
//!   decode, run and encode.
//!
//! Nothing here knows of processes, sockets or pools. Panics pass through: whoever runs one catches
//! them.

mod args;
mod current;
mod entry;
mod function;
mod init;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod yielder;

pub use args::{ArgsFor, ArgsTuple};
pub use current::{Cancelled, TaskId, attempt, cancelled, is_cancelled, task_id};
pub use function::Task;

pub(crate) use function::Callable;
pub use init::Init;
pub use state::state;
pub use yielder::{YieldError, Yielder, YieldingArgs};

pub(crate) use args::encode_args;
pub(crate) use current::{asked, set_asked, set_current};
pub(crate) use entry::{Contented, RetryIf, Run, RunAsync, RunError, RunSync, State, Verdict};
pub(crate) use function::CapturesNothing;
pub(crate) use state::{keep, keep_preloaded};
pub(crate) use table::{
    ZeroSized, entry, fingerprint, in_main_executable, index_of, index_of_init, index_of_judged,
    supported,
};
pub(crate) use yielder::{Outlet, Sent, offering};
