//! Event counts: sleeping until a watermark in shared memory has moved.
//!
//! The event is one 32-bit word: even if no thread waits, odd if one may. A waiter makes it odd,
//! fences, checks its condition, and sleeps while the event keeps that odd value. A publisher
//! stores its watermark with [`Word64::store_fenced`], then loads the event. If it is even, the
//! publisher is done without a system call. If it is odd, the publisher advances it by one and
//! wakes all waiters. Either the publisher sees the waiter's odd value, or the waiter sees the new
//! watermark.
//!
//! The logger waits here for the ring, writers wait for `durable`, and followers for the change
//! feed.
//!
//! | state | event | which process dies | then |
//! |---|---|---|---|
//! | idle | even | – | – |
//! | waiting | odd | a waiter | one superfluous wake-up |
//! | watermark stored, event not loaded | odd | the publisher | the waiters time out |
//! | event advanced, no waiter woken yet | even | the publisher | the waiters time out |
//!
//! A client times out after at most [`EVENT_WAIT_MAX`]. The logger's threads time out after 50 ms
//! while the store is used, and after a minute while it is not, or a day if no process has it open.
//! While they rest, the logger looks for dead clients every 3 s, and wakes all waiters when it
//! finds one (`participant/rest.rs`). A client that waits for the logger wakes it at its own
//! time-out.

use crate::shared::protocols::atomic::{Model, Woken, Word32, Word64};
use crate::system::clock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The longest sleep before a waiter checks its condition again.
pub(crate) const EVENT_WAIT_MAX: Duration = Duration::from_millis(100);

/// Announces that this thread is about to sleep. The caller then checks its condition. If the
/// condition does not hold, the caller passes the key that this returns to [`wait`].
#[inline]
pub(crate) fn prepare_wait<M: Model>(event: &M::U32) -> u32 {
    let mut seen = event.load(Ordering::Acquire);
    while seen & 1 == 0 {
        match event.compare_exchange(seen, seen | 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => seen |= 1,
            Err(now) => seen = now,
        }
    }
    // Pairs with the fence in the publisher's `store_fenced`.
    M::fence(Ordering::SeqCst);
    seen
}

/// Waits until a notification after [`prepare_wait`] returned `key`, at most for `timeout`.
#[inline]
pub(crate) fn wait<M: Model>(event: &M::U32, key: u32, timeout: Duration) -> Woken {
    M::wait(event, key, timeout)
}

/// Wakes all waiters; costs one load if there are none. The caller has just stored its watermark
/// with [`Word64::store_fenced`]; without that, a waiter could be missed.
#[inline]
pub(crate) fn notify<M: Model>(event: &M::U32) {
    let seen = event.load(Ordering::SeqCst);
    if seen & 1 == 1 {
        notify_odd::<M>(event, seen);
    }
}

/// As [`notify`], if the watermark, now at `reached`, has come to the threshold that the waiter
/// announced in `word`. A waiter that is awake announces `u64::MAX`, which is never reached: it
/// checks its condition before it waits. See [`wait_from`].
#[inline]
pub(crate) fn notify_from<M: Model>(event: &M::U32, word: &M::U64, reached: u64) {
    if reached >= word.load(Ordering::SeqCst) {
        notify::<M>(event);
    }
}

/// The value of a watermark from which on a waiter is notified; see [`wait_from`].
pub(crate) struct Threshold<'a, M: Model> {
    /// Where the waiter announces it; [`notify_from`] reads it.
    pub word: &'a M::U64,
    /// The least value of the watermark that ends the wait.
    pub at_least: u64,
    /// Returns the present value of the watermark.
    pub current: &'a dyn Fn() -> u64,
}

/// As [`wait`], until [`notify_from`] reports that a watermark has come to its threshold. Does not
/// wait if one is there already.
///
/// The idiom is that of the event count: the notifier stores its watermark fenced, then loads the
/// threshold; this stores the threshold fenced, then loads the watermark.
#[inline]
pub(crate) fn wait_from<M: Model>(
    event: &M::U32,
    key: u32,
    thresholds: &[Threshold<'_, M>],
    timeout: Duration,
) -> Woken {
    for threshold in thresholds {
        threshold.word.store_fenced(threshold.at_least);
    }
    // For a `current` that does not load sequentially consistent.
    M::fence(Ordering::SeqCst);
    let has_come = thresholds.iter().any(|threshold| (threshold.current)() >= threshold.at_least);
    let woken = if has_come { Woken::Perhaps } else { wait::<M>(event, key, timeout) };
    for threshold in thresholds {
        threshold.word.store(u64::MAX, Ordering::Relaxed);
    }
    woken
}

/// Wakes all waiters, also if the word is even. For use after dead clients were reaped: one may
/// have died between its store and its wake-up.
pub(crate) fn notify_always<M: Model>(event: &M::U32) {
    M::fence(Ordering::SeqCst);
    notify::<M>(event);
    M::wake(event, u32::MAX);
}

#[cold]
fn notify_odd<M: Model>(event: &M::U32, seen: u32) {
    // If another notifier has advanced the word meanwhile, it wakes the waiters that this one saw.
    // Later waiters took their keys after this notifier's store, so they see its change.
    if event.compare_exchange(seen, seen.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire).is_ok() {
        M::wake(event, u32::MAX);
    }
}

/// Why a wait ended before its condition held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WaitError<E> {
    /// The deadline has passed.
    TimedOut,
    /// The caller's periodic check returned this error.
    Stopped(E),
}

/// Waits until `ready` returns a value, and returns that. Calls `on_tick` about once in each
/// `check_interval`, which is at most [`EVENT_WAIT_MAX`].
///
/// # Errors
/// [`WaitError::TimedOut`] at `deadline`; [`WaitError::Stopped`] with the error of `on_tick`.
pub(crate) fn wait_until<M: Model, T, E>(
    event: &M::U32,
    deadline: Option<Instant>,
    check_interval: Duration,
    mut ready: impl FnMut() -> Option<T>,
    mut on_tick: impl FnMut() -> Result<(), E>,
) -> Result<T, WaitError<E>> {
    for _ in 0..M::SPINS {
        if let Some(found) = ready() {
            return Ok(found);
        }
        M::spin_hint();
    }
    let check_interval = check_interval.min(EVENT_WAIT_MAX);
    let mut ticked = clock::now();
    loop {
        let key = prepare_wait::<M>(event);
        if let Some(found) = ready() {
            return Ok(found);
        }
        let now = clock::now();
        let left = deadline.map_or(check_interval, |deadline| deadline.saturating_duration_since(now));
        if left.is_zero() {
            return Err(WaitError::TimedOut);
        }
        // The clock counts as well: signals, and changes that concern other waiters, may end every
        // single wait early. A wait that was cut short by the deadline is no tick.
        let slept = wait::<M>(event, key, left.min(check_interval));
        if (slept == Woken::TimedOut && left >= check_interval) || clock::since(ticked) >= check_interval {
            ticked = clock::now();
            on_tick().map_err(WaitError::Stopped)?;
        }
    }
}
