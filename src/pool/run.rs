//! A run: items of a map that travel as one task, for a small one costs more to hand out than to
//! do.
//!
//! Each item has a number of its own, one more than the one before it, and an answer of its own.
//! What is known here is which have been answered. Which have begun, the worker's memory says
//! (`wire/claim.rs`).

/// Items of one run, at most.
pub(crate) const ITEMS_MAX: u32 = 4096;
const WORD: u32 = u64::BITS;

/// Which items of a run have been answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    items: u32,
    left: u32,
    /// A bit for each item.
    answered: Box<[u64]>,
}

impl Run {
    /// # Panics
    ///
    /// If there are none, or more than [`ITEMS_MAX`].
    pub(crate) fn new(items: u32) -> Self {
        assert!((1..=ITEMS_MAX).contains(&items), "a run of {items} items");
        let words = items.div_ceil(WORD) as usize;
        Self { items, left: items, answered: vec![0; words].into() }
    }

    pub(crate) fn items(&self) -> u32 {
        self.items
    }

    /// Those that have not been answered.
    pub(crate) fn left(&self) -> u32 {
        self.left
    }

    pub(crate) fn is_answered(&self, item: u32) -> bool {
        let word = self.answered.get((item / WORD) as usize);
        word.is_some_and(|word| word & 1 << (item % WORD) != 0)
    }

    /// The items from this one on are answered, at most so many, up to the first that was before or
    /// that there is not. Says how many.
    pub(crate) fn answer(&mut self, first: u32, most: u32) -> u32 {
        let end = first.saturating_add(most).min(self.items);
        let mut at = first;
        while at < end {
            let Some(word) = self.answered.get_mut((at / WORD) as usize) else { break };
            let (bit, wanted) = (at % WORD, (end - at).min(WORD - at % WORD));
            let free = (*word >> bit).trailing_zeros().min(wanted);
            if free > 0 {
                *word |= u64::MAX >> (WORD - free) << bit;
            }
            at += free;
            if free < wanted {
                break;
            }
        }
        let count = at.saturating_sub(first);
        self.left -= count;
        count
    }

    /// So many have begun at least: one more than the last that was answered.
    pub(crate) fn known(&self) -> u32 {
        let last = self.answered.iter().enumerate().rfind(|(_, word)| **word != 0);
        last.map_or(0, |(at, word)| WORD * at as u32 + word.ilog2() + 1)
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
        self.answered = self.answered[..from.div_ceil(WORD) as usize].into();
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_answered_once_and_in_any_order() {
        let mut run = Run::new(256);
        assert_eq!((run.known(), run.left()), (0, 256));
        for (item, known) in [(0, 1), (63, 64), (64, 65), (7, 65), (255, 256), (200, 256)] {
            assert_eq!(run.answer(item, 1), 1);
            assert_eq!(run.answer(item, 1), 0, "twice");
            assert_eq!(run.known(), known);
        }
        assert_eq!(run.answer(256, 1), 0, "there is no such item");
        assert_eq!(
            (run.left(), run.unanswered().count(), run.unanswered().nth(1)),
            (250, 250, Some(2))
        );
    }

    #[test]
    fn items_are_answered_in_rows_up_to_one_that_was() {
        for items in [1, 2, 63, 64, 65, 130, 300] {
            for first in 0..items {
                for most in [0, 1, 2, 63, 64, 65, 128, 200, u32::MAX] {
                    for hole in [None, Some(first + 70), Some(first + 1), Some(items - 1)] {
                        let mut run = Run::new(items);
                        let hole = hole.filter(|hole| run.answer(*hole, 1) == 1);
                        let mut one_by_one = run.clone();
                        let stops = |item: &u32| hole != Some(*item);
                        let row = (first..items.min(first.saturating_add(most))).take_while(stops);
                        let expected = row.map(|item| one_by_one.answer(item, 1)).sum::<u32>();
                        assert_eq!(run.answer(first, most), expected);
                        assert_eq!(run, one_by_one);
                    }
                }
            }
        }
    }

    #[test]
    fn a_run_is_parted_behind_what_has_begun() {
        let mut run = Run::new(100);
        assert!(run.answer(0, 1) == 1 && run.answer(69, 1) == 1);
        let rest = run.part(70);
        assert_eq!((run.items(), run.left(), rest.items(), rest.left()), (70, 68, 30, 30));
        assert_eq!(run.answer(70, 1), 0, "it is the rest's");
    }
}
