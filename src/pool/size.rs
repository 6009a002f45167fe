//! How many workers a pool is to have.

use crate::error::{Error, Why};
use std::ops::RangeInclusive;

/// So many process numbers Linux has at most (proc_sys_kernel(5), `pid_max`).
const WORKERS_MAX: usize = 1 << 22;

/// A number of workers, or a range of them: what [`Builder::workers`](crate::Builder::workers) and
/// [`Pool::resize`](crate::Pool::resize) take.
///
/// It is implemented for `usize` and `RangeInclusive<usize>`, and for nothing else.
pub trait WorkerCount: sealed::Sealed {
    #[doc(hidden)]
    fn __bounds(self) -> (usize, usize);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for usize {}
    impl Sealed for super::RangeInclusive<usize> {}
}

impl WorkerCount for usize {
    fn __bounds(self) -> (usize, usize) {
        (self, self)
    }
}

impl WorkerCount for RangeInclusive<usize> {
    fn __bounds(self) -> (usize, usize) {
        self.into_inner()
    }
}

/// The least and the most; or why that makes no sense.
pub(super) fn checked((min, max): (usize, usize)) -> Result<(usize, usize), Error> {
    let reason = if max == 0 {
        "a pool without workers would never do anything"
    } else if min > max {
        "a range from more to fewer"
    } else if max > WORKERS_MAX {
        "more than there can be processes (4,194,304)"
    } else {
        return Ok((min, max));
    };
    Err(Why::InvalidOption { option: "workers", reason: reason.into() }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_that_make_no_sense_are_refused() {
        assert_eq!(checked(3.__bounds()).ok(), Some((3, 3)));
        assert_eq!(checked((0..=8).__bounds()).ok(), Some((0, 8)));
        #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
        let nonsense =
            [0.__bounds(), (0..=0).__bounds(), (5..=4).__bounds(), usize::MAX.__bounds()];
        for bounds in nonsense {
            assert!(
                checked(bounds).is_err_and(|error| error.to_string().contains("workers")),
                "{bounds:?}"
            );
        }
    }
}
