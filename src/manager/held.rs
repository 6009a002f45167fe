//! References that values hold while they are kept in an object, or on their way.

//!
//! Objects may hold references to each other in chains of any length. The last reference to the
//! first object of a chain therefore must not drop the rest by recursion: the manager drops what
//! remains of one object with [`drop_flat`], which only notes the references that were in it, and
//! then releases the noted references in a loop.

use super::object::{Held, Part};
use std::any::Any;
use std::cell::Cell;
use std::sync::{Arc, Weak};

/// Who is told that references of values have been dropped. It may be in the midst of something: it
/// takes note.
pub(crate) trait Dropped: Send + Sync {
    fn dropped(&self, names: Vec<(u64, Part)>);
}

/// The references of one value, in the manager. Counted as long as this lives.
pub(crate) struct HeldNames {
    owner: Weak<dyn Dropped>,
    names: Vec<(u64, Part)>,
}

impl HeldNames {
    pub(super) fn of(owner: Weak<dyn Dropped>, names: impl Iterator<Item = (u64, Part)>) -> Held {
        Some(Arc::new(Self { owner, names: names.collect() }))
    }
}

impl Drop for HeldNames {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.upgrade() {
            owner.dropped(std::mem::take(&mut self.names));
        }
    }
}

thread_local! {
    /// Whether this thread is within [`drop_flat`]. Without a destructor, so that it can be used in
    /// the destructors of other thread-local values.
    static DROPPING: Cell<bool> = const { Cell::new(false) };
}

/// Drops what may hold references, without following them: their owner notes them, and the caller
/// asks the owner to release them afterwards.
pub(super) fn drop_flat<T>(what: T) {
    /// Restores the mark even if a destructor panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            DROPPING.set(self.0);
        }
    }
    let _restore = Restore(DROPPING.replace(true));
    drop(what);
}

/// Whether the references that this thread drops are released by a caller further up its stack.
pub(super) fn is_dropping() -> bool {
    DROPPING.get()
}

/// Several values' references, as one.
struct Joined(Vec<Arc<dyn Any + Send + Sync>>);

/// The references of several values, for a body that holds them all.
pub(crate) fn join(all: impl IntoIterator<Item = Held>) -> Held {
    let mut all: Vec<_> = all.into_iter().flatten().collect();
    match all.len() {
        0 => None,
        1 => all.pop(),
        _ => Some(Arc::new(Joined(all))),
    }
}

/// Calls `see` for the references of each value in it.
pub(crate) fn each(held: &Held, see: &mut dyn FnMut(&(dyn Any + Send + Sync))) {
    fn walk(one: &(dyn Any + Send + Sync), see: &mut dyn FnMut(&(dyn Any + Send + Sync))) {
        match one.downcast_ref() {
            Some(Joined(all)) => all.iter().for_each(|one| walk(&**one, see)),
            None => see(one),
        }
    }
    if let Some(held) = held {
        walk(&**held, see);
    }
}

/// The names that one value holds, if it is the manager's.
pub(crate) fn names_of(one: &(dyn Any + Send + Sync)) -> Option<&[(u64, Part)]> {
    one.downcast_ref::<HeldNames>().map(|held| &held.names[..])
}

/// The names of a body.
pub(crate) fn names(held: &Held) -> Vec<(u64, Part)> {
    let mut all = Vec::new();
    each(held, &mut |one| all.extend(names_of(one).unwrap_or_default()));
    all
}
