//! References that values hold while they are kept in an object, or on their way.

use super::object::{Held, Part};
use std::any::Any;
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
pub(super) fn names(held: &Held) -> Vec<(u64, Part)> {
    let mut all = Vec::new();
    each(held, &mut |one| all.extend(names_of(one).unwrap_or_default()));
    all
}
