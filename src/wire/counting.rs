//! Counts what tests allocate: how much memory bytes from outside can make us take.
//!
//! The test program's allocator is the system's, with two numbers a thread. So a test measures what
//! its own thread does, whatever others do beside it.

#![expect(unsafe_code, reason = "an allocator that hands everything on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes taken by this thread and not given back by it, since it was last set to zero. Negative when it has given
    /// back what others took.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

fn took(bytes: usize) {
    // Neither has a destructor, so both are there until the thread has ended.
    let live = LIVE.get().wrapping_add_unsigned(bytes);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

fn gave_back(bytes: usize) {
    LIVE.set(LIVE.get().wrapping_sub_unsigned(bytes));
}

// SAFETY: every call goes to the system's allocator with the arguments that it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        gave_back(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        took(size); // the old and the new one are there at the same time, as a rule
        gave_back(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs something, and gives the largest amount of memory that this thread held for it at any one
/// time, in bytes.
pub(crate) fn peak_of<R>(run: impl FnOnce() -> R) -> (R, usize) {
    LIVE.set(0);
    PEAK.set(0);
    let result = run();
    (result, PEAK.get().unsigned_abs())
}

#[test]
fn what_is_held_at_one_time_is_counted() {
    let ((), peak) = peak_of(|| {
        drop(Vec::<u8>::with_capacity(1000));
        drop(vec![0u8; 3000]);
        drop(std::hint::black_box(Box::new([1u8; 500])));
    });
    assert!((3000..3500).contains(&peak), "{peak}");
}
