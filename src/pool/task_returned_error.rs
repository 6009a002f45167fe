//! The own error of a task's earlier try, as its caller gets it. (Errors know nothing of values; so
//! it is decoded here.)

use crate::error::TaskError;
use crate::wire::value;
use serde::de::{DeserializeOwned, IgnoredAny};

impl TaskError {
    /// The error that the task itself returned, of one of the
    /// [`earlier_attempts`](Self::earlier_attempts) that was
    /// [tried again](crate::TaskBuilder::retry_if) for it. `None` if this is something else, if it is no
    /// `E`, if it names shared objects, or if the encoded result took more than 16 KiB: then it
    /// was not kept.
    #[must_use]
    pub fn task_returned_error<E: DeserializeOwned>(&self) -> Option<E> {
        value::decode::<Result<IgnoredAny, E>>(self.own_result()?).ok()?.err()
    }
}
