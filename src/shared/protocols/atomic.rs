//! The interface to the atomics: the processor's, or those of a model checker.
//!
//! The protocols of this folder are written once, generic over a [`Model`]. The product runs them
//! with [`Native`]. The tests in `src/shared/protocols/loom_tests/` run the same code with loom's
//! atomics, which try every interleaving and every value that the memory model lets a load return.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// How a [`Model::wait`] ended. Only a time-out is certain: any other return may be spurious.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Woken {
    /// It was woken, or the word had changed before, or the wake-up was spurious.
    Perhaps,
    /// The timeout has passed.
    TimedOut,
}

/// A family of atomics, with its fence and its futex.
pub(crate) trait Model: Sized + 'static {
    /// 64-bit words.
    type U64: Word64;
    /// 32-bit words, which can be waited on.
    type U32: Word32;
    /// How often a waiter retries before it sleeps. 0 in a model checker.
    const SPINS: u32;

    /// Fences with this ordering.
    fn fence(order: Ordering);

    /// Sleeps while `word` holds `expected`, at most for `timeout`.
    fn wait(word: &Self::U32, expected: u32, timeout: Duration) -> Woken;

    /// Wakes up to `count` sleepers of `word`, and returns how many it woke.
    fn wake(word: &Self::U32, count: u32) -> u32;

    /// Hints to the processor that a waiter spins; called between two checks.
    fn spin_hint();

    /// Nanoseconds of the monotonic clock, the same in all processes. In a model no time passes.
    fn now_ns() -> u64;
}

/// A 64-bit atomic.
pub(crate) trait Word64: Send + Sync {
    /// Returns a word with this value.
    fn new(value: u64) -> Self;
    /// Loads the value.
    fn load(&self, order: Ordering) -> u64;
    /// Stores a value.
    fn store(&self, value: u64, order: Ordering);
    /// Stores with release, then fences. A sequentially consistent load that this thread does
    /// afterwards is ordered after the store, in relation to every thread that also stores with
    /// this or fences before it loads.
    ///
    /// This is one half of Dekker's idiom: each side stores its own word, then loads the other's.
    /// The pins of readers and the flags of sleepers rest on it.
    fn store_fenced(&self, value: u64);
    /// Stores a value; returns the value before.
    fn swap(&self, value: u64, order: Ordering) -> u64;
    /// Stores `new` if the word holds `current`; otherwise returns the value found.
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64>;
    /// Adds, wrapping; returns the value before.
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
    /// Stores the larger of both values; returns the value before.
    fn fetch_max(&self, value: u64, order: Ordering) -> u64;
    /// Sets bits; returns the value before.
    fn fetch_or(&self, value: u64, order: Ordering) -> u64;
    /// Clears all other bits; returns the value before.
    fn fetch_and(&self, value: u64, order: Ordering) -> u64;
}

/// A 32-bit atomic.
pub(crate) trait Word32: Send + Sync {
    /// Returns a word with this value.
    fn new(value: u32) -> Self;
    /// Loads the value.
    fn load(&self, order: Ordering) -> u32;
    /// Stores a value.
    fn store(&self, value: u32, order: Ordering);
    /// Stores `new` if the word holds `current`; otherwise returns the value found.
    fn compare_exchange(&self, current: u32, new: u32, success: Ordering, failure: Ordering) -> Result<u32, u32>;
    /// Adds, wrapping; returns the value before.
    fn fetch_add(&self, value: u32, order: Ordering) -> u32;
}

/// The processor's own atomics and the kernel's futexes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Native {}

impl Model for Native {
    type U64 = AtomicU64;
    type U32 = AtomicU32;
    // About a microsecond: shorter than a futex round trip, longer than most critical sections.
    const SPINS: u32 = 64;

    #[inline]
    fn fence(order: Ordering) {
        std::sync::atomic::fence(order);
    }

    #[inline]
    fn wait(word: &AtomicU32, expected: u32, timeout: Duration) -> Woken {
        crate::shared::protocols::futex::wait(word, expected, timeout)
    }

    #[inline]
    fn wake(word: &AtomicU32, count: u32) -> u32 {
        crate::shared::protocols::futex::wake(word, count)
    }

    #[inline]
    fn spin_hint() {
        std::hint::spin_loop();
    }

    #[inline]
    fn now_ns() -> u64 {
        crate::system::clock::now_ns()
    }
}

impl Word64 for AtomicU64 {
    #[inline]
    fn new(value: u64) -> AtomicU64 {
        AtomicU64::new(value)
    }
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }
    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        AtomicU64::store(self, value, order);
    }
    /// One exchange instead of a store and a fence, since it is faster on x86. In the language's
    /// memory model a sequentially consistent operation before the later sequentially consistent
    /// load gives the same order as the fence would.
    #[inline]
    fn store_fenced(&self, value: u64) {
        AtomicU64::swap(self, value, Ordering::SeqCst);
    }
    #[inline]
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        AtomicU64::swap(self, value, order)
    }
    #[inline]
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        AtomicU64::compare_exchange(self, current, new, success, failure)
    }
    #[inline]
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        AtomicU64::fetch_add(self, value, order)
    }
    #[inline]
    fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        AtomicU64::fetch_max(self, value, order)
    }
    #[inline]
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        AtomicU64::fetch_or(self, value, order)
    }
    #[inline]
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        AtomicU64::fetch_and(self, value, order)
    }
}

impl Word32 for AtomicU32 {
    #[inline]
    fn new(value: u32) -> AtomicU32 {
        AtomicU32::new(value)
    }
    #[inline]
    fn load(&self, order: Ordering) -> u32 {
        AtomicU32::load(self, order)
    }
    #[inline]
    fn store(&self, value: u32, order: Ordering) {
        AtomicU32::store(self, value, order);
    }
    #[inline]
    fn compare_exchange(&self, current: u32, new: u32, success: Ordering, failure: Ordering) -> Result<u32, u32> {
        AtomicU32::compare_exchange(self, current, new, success, failure)
    }
    #[inline]
    fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        AtomicU32::fetch_add(self, value, order)
    }
}
