//! Counts what tests allocate: how much memory bytes from outside can make us take.
//!
//! The test program's allocator is the system's, with two numbers a thread. So a test measures what
//! its own thread does, whatever others do beside it. A test in a process of its own can measure
//! all threads together.

#![expect(unsafe_code, reason = "an allocator that hands everything on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

thread_local! {
    /// Bytes taken by this thread and not given back by it, since it was last set to zero. Negative when it has given
    /// back what others took.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The same of all threads, as long as [`process_peak_of`] counts.
static COUNTS_ALL: AtomicBool = AtomicBool::new(false);
static ALL_LIVE: AtomicIsize = AtomicIsize::new(0);
static ALL_PEAK: AtomicIsize = AtomicIsize::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

fn took(bytes: usize) {
    // Neither has a destructor, so both are there until the thread has ended.
    let live = LIVE.get().wrapping_add_unsigned(bytes);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
    if COUNTS_ALL.load(Ordering::Relaxed) {
        let bytes = bytes as isize;
        let live = ALL_LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
        ALL_PEAK.fetch_max(live, Ordering::Relaxed);
    }
}

fn gave_back(bytes: usize) {
    LIVE.set(LIVE.get().wrapping_sub_unsigned(bytes));
    if COUNTS_ALL.load(Ordering::Relaxed) {
        ALL_LIVE.fetch_sub(bytes as isize, Ordering::Relaxed);
    }
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

/// Returns the largest number of bytes by which the memory of the whole process grew while `run`
/// ran. Only for a test that runs in a process of its own.
pub(crate) fn process_peak_of<R>(run: impl FnOnce() -> R) -> (R, usize) {
    ALL_LIVE.store(0, Ordering::Relaxed);
    ALL_PEAK.store(0, Ordering::Relaxed);
    COUNTS_ALL.store(true, Ordering::Relaxed);
    let result = run();
    COUNTS_ALL.store(false, Ordering::Relaxed);
    (result, ALL_PEAK.load(Ordering::Relaxed).unsigned_abs())
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
