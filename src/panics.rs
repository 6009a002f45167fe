//! User code that the crate calls where a panic must not go further: wakers, and callbacks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// Runs user code (a waker, a callback, a drop) and catches its panic: `None`.
///
/// If one waker panics, the others are woken all the same. The panic hook of the application has
/// reported the panic; there is no caller to pass it on to. A payload whose own drop panics is
/// leaked.
pub(crate) fn catch_user_panic<R>(run: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Some(result),
        Err(payload) => {
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(again); // its drop might panic as well
            }
            None
        }
    }
}

/// Wakes a task, whatever its waker does.
pub(crate) fn wake(waker: Waker) {
    catch_user_panic(|| waker.wake());
}

/// Wakes them all, whatever one of them does.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(wake);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_goes_no_further_nor_does_one_of_its_payload() {
        struct Payload(u32);
        impl Drop for Payload {
            fn drop(&mut self) {
                if self.0 > 0 {
                    std::panic::panic_any(Self(self.0 - 1));
                }
            }
        }
        assert_eq!(catch_user_panic(|| 1), Some(1));
        assert_eq!(catch_user_panic(|| panic!("a waker panics")), None::<()>);
        assert_eq!(catch_user_panic(|| std::panic::panic_any(Payload(3))), None::<()>);
    }
}
