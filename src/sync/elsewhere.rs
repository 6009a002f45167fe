//! Objects that processes share. On this platform there are no worker processes, and only
//! [`Manager`] exists, which says so.

pub use crate::error::sync::{Error, ErrorKind};

use crate::error::sync::Why;

/// The owner of shared objects. On this platform there is none.
#[derive(Clone, Debug)]
pub struct Manager(());

impl Manager {
    /// # Errors
    ///
    /// Always: [`Unsupported`](crate::sync::ErrorKind::Unsupported).
    pub fn new() -> Result<Self, Error> {
        Err(Why::Unsupported.into())
    }

    pub(crate) fn of_pool() -> Self {
        unreachable!("there is no pool")
    }
}

pub(crate) mod named {
    use crate::wire::value::EncodeError;
    use crate::wire::value::names::Thing;

    /// There are no handles that could be named.
    pub(crate) fn write_names(_: &[Thing], _: &mut Vec<u8>, _: usize) -> Result<(), EncodeError> {
        Ok(())
    }

    pub(crate) fn for_call(things: Vec<Thing>) -> Vec<Thing> {
        things
    }
}
