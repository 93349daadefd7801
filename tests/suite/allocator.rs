//! The allocator of this executable. It counts the allocations of each thread, and it can bound
//! their size. Both serve single tests, but an executable has one allocator.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

static SIZE_MAX: AtomicUsize = AtomicUsize::new(usize::MAX);

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Returns how many allocations the calling thread has made.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// Aborts this process at any later allocation of more than `bytes`, by any thread. Call it in a
/// child process only.
pub(crate) fn abort_above(bytes: usize) {
    SIZE_MAX.store(bytes, Ordering::Relaxed);
}

// SAFETY: passes every call on to the system's allocator, or ends the process.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > SIZE_MAX.load(Ordering::Relaxed) {
            std::process::abort();
        }
        // A thread that ends may allocate after its counter is gone.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `dealloc`; `alloc` got the memory from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}
