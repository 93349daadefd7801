//! The urgent waiters of a lock, and the reservations of the lock for them.

use super::{HANDED_OVER, RESERVATION_TIMEOUT, URGENT_WAITERS, wake_one};
use crate::shared::protocols::atomic::{Model, Word32, Word64};
use std::sync::atomic::Ordering;

/// The urgent waiters of a lock, in shared memory. All zero at first.
#[repr(C)]
pub(crate) struct Urgent<M: Model> {
    /// The event count on which the urgent waiters wait.
    pub event: M::U32,
    /// The number of waiters that have announced themselves and not left. If one has died it is too
    /// large, until a reservation is taken back.
    waiting: M::U32,
    /// The number of the newest reservation. Only the lock's owner advances it.
    reservations: M::U32,
    _reserved: M::U32,
    /// The time at which a waiter last announced itself or was woken.
    pub(super) seen_ns: M::U64,
}

impl<M: Model> Urgent<M> {
    /// Returns the words of a lock without waiters.
    #[must_use]
    pub(crate) fn new() -> Urgent<M> {
        let word = || M::U32::new(0);
        Urgent { event: word(), waiting: word(), reservations: word(), _reserved: word(), seen_ns: M::U64::new(0) }
    }

    pub(super) fn count_in(&self) {
        self.seen_ns.store(M::now_ns(), Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_out(&self) {
        let mut seen = self.waiting.load(Ordering::Relaxed);
        // The count is zero if it was reset meanwhile.
        while seen > 0 {
            match self.waiting.compare_exchange(seen, seen - 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Resets the count of waiters on the way: there is none, or none that runs.
    pub(super) fn count_anew(&self) {
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// Returns the next reservation. Called by the owner of the lock.
    pub(super) fn next_reservation(&self) -> u64 {
        let number = self.reservations.load(Ordering::Relaxed).wrapping_add(1);
        self.reservations.store(number, Ordering::Relaxed);
        URGENT_WAITERS | (u64::from(number) & (HANDED_OVER - 1))
    }

    /// Wakes one waiter that sleeps. Returns whether the lock stays reserved: one was woken, or is
    /// on the way.
    pub(super) fn wake(&self) -> bool {
        let (now, seen_ns) = (M::now_ns(), self.seen_ns.load(Ordering::Relaxed));
        // Stored before the wake-up: a waiter that acquires and releases at once must see it.
        self.seen_ns.store(now, Ordering::Relaxed);
        // A time in the future is damage.
        let is_recent = now.checked_sub(seen_ns).is_some_and(|ago| u128::from(ago) < RESERVATION_TIMEOUT.as_nanos());
        wake_one::<M>(&self.event) || (is_recent && self.waiting.load(Ordering::Relaxed) > 0)
    }
}

impl<M: Model> Default for Urgent<M> {
    fn default() -> Urgent<M> {
        Urgent::new()
    }
}
