//! Whether what is dropped on this thread is dropped because its task is being aborted.

use std::cell::Cell;

thread_local! {
    static STOPPING: Cell<bool> = const { Cell::new(false) };
}

/// Guards that are dropped on this thread now are those of a task that is being aborted: they roll
/// back.
#[inline]
pub(crate) fn is_stopping() -> bool {
    STOPPING.try_with(Cell::get).unwrap_or(false)
}

/// Drops the future of a task that is being aborted.
pub(crate) fn drop_stopped<T>(task: T) {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            STOPPING.set(self.0);
        }
    }
    let _reset = Reset(STOPPING.replace(true));
    drop(task);
}
