//! Waiting on a word of shared memory, and waking its waiters, across processes.
//!
//! The words are in a shared file mapping, so the futexes are never of the private kind, whose keys
//! are addresses of one process. Every wait has a timeout, because the process that should end it
//! may be dead. Callers check their condition again after each wait.

use crate::shared::protocols::atomic::Woken;
use rustix::io::Errno;
use rustix::thread::futex;
use rustix::thread::futex::{Flags, Timespec};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `word` holds `expected`, at most for `timeout` of CLOCK_MONOTONIC.
///
/// A signal ends the wait as a wake-up does; the caller checks its condition either way.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Duration) -> Woken {
    let timeout =
        Timespec { tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: timeout.subsec_nanos().into() };
    match futex::wait(word, Flags::empty(), expected, Some(&timeout)) {
        // AGAIN: the word had changed. INTR: a signal.
        Ok(()) | Err(Errno::AGAIN | Errno::INTR) => Woken::Perhaps,
        // Any other error means that this kernel can't wait here. Returning a time-out at once
        // makes the caller check again, which is correct but spins.
        Err(_) => Woken::TimedOut,
    }
}

/// Wakes up to `count` sleepers of `word`, and returns how many it woke. It is no error if there
/// are none.
pub(crate) fn wake(word: &AtomicU32, count: u32) -> u32 {
    // The kernel reads the count as an i32.
    let count = count.min(i32::MAX as u32);
    // The only errors concern an address that is not mapped, which a reference rules out.
    futex::wake(word, Flags::empty(), count).map_or(0, |woken| woken as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    #[test]
    fn times_out_and_notices_a_changed_word() {
        let word = AtomicU32::new(7);
        let start = Instant::now();
        assert_eq!(wait(&word, 7, Duration::from_millis(20)), Woken::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(19));
        assert_eq!(wait(&word, 8, Duration::from_secs(60)), Woken::Perhaps);
    }

    #[test]
    fn a_wake_ends_a_wait() {
        let word = Arc::new(AtomicU32::new(0));
        let waiter = {
            let word = word.clone();
            std::thread::spawn(move || {
                while word.load(Ordering::Acquire) == 0 {
                    wait(&word, 0, Duration::from_secs(60));
                }
            })
        };
        std::thread::sleep(Duration::from_millis(20));
        word.store(1, Ordering::Release);
        wake(&word, 1);
        waiter.join().unwrap();
    }
}
