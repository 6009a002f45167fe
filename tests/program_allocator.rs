//! A program with a global allocator that is not the system's: this very test program.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use crate::support::{die, pid, soon};
use procpool::Pool;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering};

/// mimalloc, and a count, by which one sees that it is the one.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator")]
// SAFETY: all is mimalloc's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller has promised.
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller has promised.
        unsafe { mimalloc::MiMalloc.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocates here and on other threads, and gives back what others have allocated.
fn allocate(blocks: usize) -> (u32, usize, usize) {
    let before = COUNT.load(Ordering::Relaxed);
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            std::thread::spawn(move || {
                (0..blocks).map(|n| vec![thread as u8; n]).collect::<Vec<_>>()
            })
        })
        .collect();
    let bytes = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .map(|block| block.len())
        .sum();
    (pid(), bytes, COUNT.load(Ordering::Relaxed) - before)
}

#[tokio::test]
async fn workers_have_the_programs_allocator_from_their_first_moment() {
    let pool = Pool::builder().workers(2).build().unwrap();
    for round in 0..3 {
        let tasks: Vec<_> = (0..4).map(|_| pool.spawn(allocate, 500)).collect();
        for task in tasks {
            let (worker, bytes, count) = soon(task).await.unwrap();
            assert_ne!(worker, pid());
            assert_eq!(bytes, 4 * 500 * 499 / 2);
            assert!(count > 4 * 499, "{count}");
        }
        let echoed =
            soon(pool.spawn(async |bytes: Vec<u8>| bytes, vec![round; 1 << 20])).await.unwrap();
        assert_eq!(echoed, vec![round; 1 << 20]);
        assert!(soon(pool.spawn(die, nix::libc::SIGKILL)).await.unwrap_err().is_worker_died());
    }
    soon(pool.shutdown()).await;
}
