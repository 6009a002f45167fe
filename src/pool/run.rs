//! A run: items of a map that travel as one task, for a small one costs more to hand out than to
//! do.
//!
//! Each item has a number of its own, one more than the one before it, and an answer of its own.
//! What is known here is which have been answered. Which have begun, the worker's memory says
//! (`wire/claim.rs`).

/// Items of one run, at most.
pub(crate) const ITEMS_MAX: u32 = 256;
const WORDS: usize = ITEMS_MAX as usize / 64;

/// Which items of a run have been answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    items: u32,
    left: u32,
    answered: [u64; WORDS],
}

impl Run {
    /// # Panics
    ///
    /// If there are none, or more than [`ITEMS_MAX`].
    pub(crate) fn new(items: u32) -> Self {
        assert!((1..=ITEMS_MAX).contains(&items), "a run of {items} items");
        Self { items, left: items, answered: [0; WORDS] }
    }

    pub(crate) fn items(&self) -> u32 {
        self.items
    }

    /// Those that have not been answered.
    pub(crate) fn left(&self) -> u32 {
        self.left
    }

    pub(crate) fn is_answered(&self, item: u32) -> bool {
        self.answered[item as usize / 64] & 1 << (item % 64) != 0
    }

    /// This item is answered. `false`: it was before, or there is none.
    pub(crate) fn answer(&mut self, item: u32) -> bool {
        if item >= self.items || self.is_answered(item) {
            return false;
        }
        self.answered[item as usize / 64] |= 1 << (item % 64);
        self.left -= 1;
        true
    }

    /// So many have begun at least: one more than the last that was answered.
    pub(crate) fn known(&self) -> u32 {
        (0..WORDS as u32)
            .rev()
            .find_map(|at| Some(64 * at + self.answered[at as usize].checked_ilog2()? + 1))
            .unwrap_or(0)
    }

    pub(crate) fn unanswered(&self) -> impl Iterator<Item = u32> {
        (0..self.items).filter(|item| !self.is_answered(*item))
    }

    /// Takes off the items from this one on, none of which has been answered, as a run of their
    /// own.
    pub(crate) fn part(&mut self, from: u32) -> Self {
        debug_assert!(self.known() <= from, "an item was answered that has not begun");
        let rest = Self::new(self.items - from);
        self.items = from;
        self.left -= rest.items;
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_answered_once_and_in_any_order() {
        let mut run = Run::new(ITEMS_MAX);
        assert_eq!((run.known(), run.left()), (0, 256));
        for (item, known) in [(0, 1), (63, 64), (64, 65), (7, 65), (255, 256), (200, 256)] {
            assert!(run.answer(item));
            assert!(!run.answer(item), "twice");
            assert_eq!(run.known(), known);
        }
        assert!(!run.answer(256), "there is no such item");
        assert_eq!(
            (run.left(), run.unanswered().count(), run.unanswered().nth(1)),
            (250, 250, Some(2))
        );
    }

    #[test]
    fn a_run_is_parted_behind_what_has_begun() {
        let mut run = Run::new(100);
        assert!(run.answer(0) && run.answer(69));
        let rest = run.part(70);
        assert_eq!((run.items(), run.left(), rest.items(), rest.left()), (70, 68, 30, 30));
        assert!(!run.answer(70), "it is the rest's");
    }
}
