//! The options of one call, as the rules need them: plain data.

use std::time::Duration;

/// Tries of a task, the first included, at most: they travel in one byte.
pub(crate) const ATTEMPTS_MAX: u32 = 255;

/// How a task is limited, stopped and tried again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    /// Of one run, from its true start.
    pub(crate) timeout: Option<Duration>,
    /// Of the whole, from submission.
    pub(crate) deadline: Option<Duration>,
    /// How long it has to stop by itself when asked.
    pub(crate) grace: Option<Duration>,
    pub(crate) isolated: bool,
    pub(crate) idempotent: bool,
    pub(crate) retry: Retry,
}

/// When a task is tried again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Retry {
    /// Tries after the first one, at most.
    pub(crate) most: u32,
    /// After these failures: the death of its worker, its time limit, a panic.
    pub(crate) deaths: bool,
    pub(crate) timeouts: bool,
    pub(crate) panics: bool,
    /// After so many failed starts of workers as the pool attempts.
    pub(crate) starts: bool,
    /// Of a task that yields, also when some of its items have been taken.
    pub(crate) partial: bool,
    /// The wait before the second try, doubled for each further one, up to `wait_max`.
    pub(crate) wait_min: Duration,
    pub(crate) wait_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            most: 0,
            deaths: true,
            timeouts: true,
            panics: false,
            starts: false,
            partial: false,
            wait_min: Duration::ZERO,
            wait_max: Duration::ZERO,
        }
    }
}

impl Retry {
    /// Whether a task with such retries waits for another start, at least at its first try.
    pub(crate) fn is_for_starts(&self) -> bool {
        self.starts && self.most > 0
    }

    /// How long to wait after the try of this number, from 1.
    pub(crate) fn wait(&self, attempt: u8) -> Duration {
        self.wait_min
            .saturating_mul(1 << u32::from(attempt.saturating_sub(1)).min(30))
            .min(self.wait_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_limit() {
        let ms = Duration::from_millis;
        let retry = Retry { wait_min: ms(10), wait_max: ms(70), ..Retry::default() };
        assert_eq!(
            [1, 2, 3, 4, 255].map(|attempt| retry.wait(attempt)),
            [ms(10), ms(20), ms(40), ms(70), ms(70)]
        );
        assert_eq!(Retry::default().wait(1), Duration::ZERO);
    }
}
