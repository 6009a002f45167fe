//! Tasks by name, for workers that are another program.

use std::fmt;
use std::marker::PhantomData;

/// A task that another program serves under a name: what
/// [`Pool::task_named`](crate::Pool::task_named) calls.
///
/// It says once what is passed and what comes back. `Args` is the tuple of the arguments, `()`,
/// `(A,)`, `(A, B)` and so on, given as to any task (see [`ArgsFor`](crate::ArgsFor)); `R` is the
/// result. Nobody can check that the other program means the same by the name: what it sends that
/// is no `R` is [`ResultDecode`](crate::TaskErrorKind::ResultDecode), what it cannot read it
/// answers with an error of its own. So let the name change with the meaning, as `resize.v2` after
/// `resize.v1`.
///
/// ```
/// use procpool::NamedTask;
///
/// const RESIZE: NamedTask<(Vec<u8>, u32), Vec<u8>> = NamedTask::new("resize.v1");
/// assert_eq!(RESIZE.name(), "resize.v1");
/// ```
pub struct NamedTask<Args, R> {
    name: &'static str,
    types: PhantomData<fn(Args) -> R>,
}

impl<Args, R> NamedTask<Args, R> {
    /// The task of this name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, types: PhantomData }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

// Derived ones would ask the same of `Args` and `R`.
impl<Args, R> Clone for NamedTask<Args, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Args, R> Copy for NamedTask<Args, R> {}

impl<Args, R> fmt::Debug for NamedTask<Args, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NamedTask").field(&self.name).finish()
    }
}
