//! Templates where there are no workers: none can be built, and so nothing else is ever asked.

use super::Plan;
use crate::error::{Error, Why};
use std::sync::Arc;

/// There is none.
#[derive(Debug)]
pub(crate) enum Nursery {}

impl Nursery {
    pub(crate) fn new(_: Plan) -> Result<Arc<Self>, Error> {
        Err(Why::Unsupported.into())
    }

    pub(crate) fn close(this: &Arc<Self>) {
        match **this {}
    }

    pub(crate) fn want_ready(this: &Arc<Self>, _: Box<dyn FnOnce(Result<(), Error>) + Send>) {
        match **this {}
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        match *self {}
    }
}
