//! The part of the manager's memory in which one object lies, as this process sees it.

use crate::manager::lock::word::Owner;
use crate::manager::message::Place;
use crate::process::SharedMemory;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Cell {
    memory: Arc<SharedMemory>,
    start: usize,
    end: usize,
    /// How this process is called in a lock's word.
    owner: Owner,
}

impl Cell {
    /// `None` if there is no such place in the memory: whoever told it may not be trusted.
    pub(super) fn new(memory: Arc<SharedMemory>, place: Place, owner: Owner) -> Option<Self> {
        let (start, len) = (place.offset as usize, place.len as usize);
        let end = start.checked_add(len)?;
        (len >= 1 && end <= memory.words().len()).then_some(Self { memory, start, end, owner })
    }

    /// Its words. Not in a forked copy, where they are not mapped.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        &self.memory.words()[self.start..self.end]
    }

    #[inline]
    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }
}
