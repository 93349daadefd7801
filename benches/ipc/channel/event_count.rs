//! Waits for a change in shared memory, either by sleeping on a futex or by polling.
//!
//! The event is two words: a count that a sleeper's futex watches, and whether a waiter sleeps. The
//! waiter sets the second word and then checks once more. The notifier changes the data and then
//! checks the second word. The fences put these four steps into one order. So either the waiter
//! sees the change, or the notifier sees the waiter. There is only one waiter. Neither process
//! outlives the other by long, so the timeout of the wait is only a precaution.

use super::memory::Memory;
use rustix::thread::futex::{self, Flags, Timespec};
use std::sync::atomic::{Ordering, fence};

/// The words of an event count.
pub(crate) const WORDS: usize = 16;
/// The second word has a cache line of its own.
const WAITS: usize = 8;

/// The way to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Sleep at once.
    Futex,
    /// Never sleep; yield the processor after some polls, in case another thread needs it.
    Spin,
}

/// Waits until `ready`; returns the number of system calls.
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

/// Notifies the waiter of a change; returns the number of system calls.
pub(crate) fn notify(memory: &Memory, event: usize) -> u64 {
    fence(Ordering::SeqCst);
    if memory.half(event + WAITS).load(Ordering::Relaxed) == 0 {
        return 0;
    }
    memory.half(event).fetch_add(1, Ordering::Release);
    let _ = futex::wake(memory.half(event), Flags::empty(), 1);
    1
}
