//! How one process waits for a word of shared memory to change: asleep on a futex, or by looking
//! all the time.
//!
//! The event is two words: a count that a sleeper's futex watches, and whether anybody sleeps. Who
//! waits says so and then looks once more; who changes something looks after that whether somebody
//! waits. Of these four steps, in one order for all by the fences, either the waiter sees the
//! change or the other sees the waiter. (There is one waiter; neither process outlives the other by
//! long, so a wait without time-out would do; it has one all the same.)

use super::memory::Memory;
use rustix::thread::futex::{self, Flags, Timespec};
use std::sync::atomic::{Ordering, fence};

/// Words that an event count takes.
pub(crate) const WORDS: usize = 16;
/// The second word has a cache line of its own.
const WAITS: usize = 8;

/// How to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Sleep at once.
    Futex,
    /// Never sleep; the processor is given away after some looks, should somebody else need it.
    Spin,
}

/// Waits until `ready`; how many system calls that took.
pub(crate) fn wait(memory: &Memory, event: usize, how: Wait, ready: impl Fn() -> bool) -> u64 {
    let mut calls = 0;
    let mut looks = 0_u32;
    while !ready() {
        if how == Wait::Spin {
            looks += 1;
            if looks.is_multiple_of(20_000) {
                std::thread::yield_now();
                calls += 1;
            }
            std::hint::spin_loop();
            continue;
        }
        let count = memory.half(event).load(Ordering::Acquire);
        memory.half(event + WAITS).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !ready() {
            let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
            let _ = futex::wait(memory.half(event), Flags::empty(), count, Some(&timeout));
            calls += 1;
        }
        memory.half(event + WAITS).store(0, Ordering::Relaxed);
    }
    calls
}

/// Says that something has changed; how many system calls that took.
pub(crate) fn notify(memory: &Memory, event: usize) -> u64 {
    fence(Ordering::SeqCst);
    if memory.half(event + WAITS).load(Ordering::Relaxed) == 0 {
        return 0;
    }
    memory.half(event).fetch_add(1, Ordering::Release);
    let _ = futex::wake(memory.half(event), Flags::empty(), 1);
    1
}
