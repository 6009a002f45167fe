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

#[path = "absent.rs"]
mod absent;
pub(crate) use absent::named;
