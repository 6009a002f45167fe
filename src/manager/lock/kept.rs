//! The out-of-line values of a lock, which do not go into their buffer: the manager keeps each of
//! them in the place of the buffer that it stands for.
//!
//! **Invariant.** As soon as a commit is done, the manager keeps a value for the current buffer if
//! and only if that buffer's length says so. (The length of the other buffer may still say that the
//! manager keeps its value. That length is not read: its value was replaced.)

use super::word::Word;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kept<V>([Option<V>; 2]);

impl<V> Kept<V> {
    /// Of a new lock, whose value is that of the first buffer.
    pub(crate) fn new(value: Option<V>) -> Self {
        Self([value, None])
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().flatten()
    }

    /// The value of this word, if it is here.
    pub(crate) fn of(&self, word: Word) -> Option<&V> {
        self.0[1 - word.other_buffer()].as_ref()
    }

    /// This buffer's value is the lock's from now on: `fits` if it was written there. What is not
    /// needed any more comes back, to be dropped elsewhere.
    pub(crate) fn committed(&mut self, buffer: usize, value: V, fits: bool) -> [Option<V>; 2] {
        let mut old = std::mem::take(&mut self.0);
        if fits {
            old[buffer] = Some(value);
        } else {
            self.0[buffer] = Some(value);
        }
        old
    }
}
