//! Which locks each thread of this process holds, so that a ring of threads that wait for each
//! other can be told.
//!
//! Only of threads that block it is known that they do nothing else while they wait. So a thread
//! counts as waiting in `blocking_` calls only, and as holding what it got there: whatever else it
//! takes may be a task's, which another thread goes on with, in an executor that we do not know.
//!
//! A guard may be moved to another thread without a trace. So the locks of a thread that blocks
//! are told only if no other thread can have a guard: the thread is the only one of its process,
//! apart from the crate's own ([`process::thread`](crate::process::thread)). While it blocks, it starts no other.
//!
//! Of a task it cannot be known that it waits for nothing else. It may wait for one lock in one
//! branch and release another in another (`select!`, `join!`); its guard may lie where another task
//! drops it; and whoever awaits it may give up at any moment, by a time limit around it that is not
//! seen here. So an error for a ring of tasks would now and then be one where nothing is wrong.
//!
//! It costs a lock of this process for each lock that is taken, so it is off unless somebody has
//! asked for it, or debug assertions are on.

use crate::lock::Lock;
use crate::process::thread::is_the_only_one;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};

/// Whether locks are noted.
static NOTED: AtomicBool = AtomicBool::new(cfg!(debug_assertions));

/// The locks that a thread holds, by manager and object.
type Held = HashMap<ThreadId, Vec<(u64, u64)>>;

static HELD: Lock<Option<Held>> = Lock::new(None);

thread_local! {
    static BLOCKS: Cell<bool> = const { Cell::new(false) };
}

/// From now on, locks are noted.
pub(crate) fn note_from_now_on() {
    NOTED.store(true, Ordering::Relaxed);
}

/// Runs what blocks this thread.
pub(super) fn blocking<R>(wait: impl FnOnce() -> R) -> R {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            BLOCKS.set(self.0);
        }
    }
    let _reset = Reset(BLOCKS.replace(true));
    wait()
}

fn with<R>(act: impl FnOnce(&mut Held) -> R) -> R {
    act(HELD.lock().get_or_insert_default())
}

/// This thread has taken a lock. Gives who has to give it back, if it was noted.
#[inline]
pub(super) fn taken(manager: u64, object: u64) -> Option<ThreadId> {
    if !NOTED.load(Ordering::Relaxed) { None } else { note(manager, object) }
}

fn note(manager: u64, object: u64) -> Option<ThreadId> {
    if !BLOCKS.get() {
        return None;
    }
    let thread = thread::current().id();
    with(|held| held.entry(thread).or_default().push((manager, object)));
    Some(thread)
}

/// A lock that was noted has been released, on whatever thread.
pub(super) fn released(by: ThreadId, manager: u64, object: u64) {
    with(|held| {
        if let Some(locks) = held.get_mut(&by) {
            if let Some(at) = locks.iter().position(|lock| *lock == (manager, object)) {
                locks.swap_remove(at);
            }
            if locks.is_empty() {
                held.remove(&by);
            }
        }
    });
}

/// The locks of this manager that this thread holds for certain, if it blocks now.
pub(super) fn held_while_blocking(manager: u64) -> Vec<u64> {
    if !NOTED.load(Ordering::Relaxed) || !BLOCKS.get() {
        return Vec::new();
    }
    let own = |held: &mut Held| held.get(&thread::current().id()).cloned().unwrap_or_default();
    let locks: Vec<_> =
        with(own).into_iter().filter(|(of, _)| *of == manager).map(|(_, object)| object).collect();
    if locks.is_empty() || is_the_only_one() { locks } else { Vec::new() }
}
