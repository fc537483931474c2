//! An allocator that counts, for the tests that prove that nothing is allocated.

// A global allocator cannot be written without `unsafe`; this one only counts and forwards.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    /// Whether allocations on this thread count now.
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    if COUNTING.with(Cell::get) {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
    }
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract;
// the counters are const-initialised thread-locals without destructors, so they never allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `alloc`'s contract, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` allocates on this thread, and its result.
pub fn allocations<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = ALLOCATIONS.with(Cell::get);
    let was = COUNTING.with(|counting| counting.replace(true));
    let result = work();
    COUNTING.with(|counting| counting.set(was));
    (ALLOCATIONS.with(Cell::get) - before, result)
}

/// Runs `work` without counting, inside of [`allocations`].
#[allow(dead_code, reason = "not every test has something to leave out")]
pub fn uncounted<T>(work: impl FnOnce() -> T) -> T {
    let was = COUNTING.with(|counting| counting.replace(false));
    let result = work();
    COUNTING.with(|counting| counting.set(was));
    result
}
