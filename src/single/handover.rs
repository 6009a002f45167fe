//! The exit of the application waits for those who are to outlive it.
//!
//! A process that goes on after its parent has, some milliseconds after its start, all that it
//! needs. A program that starts one and returns from `main` at once would end before that, and the
//! process with it, its function never called. So a handler of `exit` waits for as long as it
//! takes. Whoever ends by a signal or by `_exit` waits for nothing.

use crate::lock::Lock;
use crate::process::{fork, sys};
use crate::reactor::supervisor;
use std::sync::{Condvar, Once};
use std::time::Duration;

/// The longest that an exit is held up: so long a process may take until it has said hello.
const LIMIT: Duration = Duration::from_secs(30);

static OPEN: Lock<usize> = Lock::new(0);
static CLOSED: Condvar = Condvar::new();

/// One that is under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Handover(());

impl Handover {
    pub(super) fn begin() -> Self {
        static REGISTERED: Once = Once::new();
        // Without memory for it, the exit does not wait.
        REGISTERED.call_once(|| _ = sys::at_exit(wait));
        *OPEN.lock() += 1;
        Self(())
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if fork::is_forked_copy() {
            return;
        }
        *OPEN.lock() -= 1;
        CLOSED.notify_all();
    }
}

extern "C" fn wait() {
    // The supervisor thread hands over; and in a forked copy there is none.
    if fork::is_forked_copy() || supervisor::is_this_thread() {
        return;
    }
    let open = OPEN.lock();
    let _ = CLOSED.wait_timeout_while(open, LIMIT, |open| *open > 0);
}
