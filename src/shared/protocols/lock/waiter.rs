//! The wait for a lock: one thread of one process, in the class that it has at each check.

use super::{
    Acquired, BULK_WAITERS, ClientIdBits, CommitClass, EventCounts, Next, OWNER_CHECK_INTERVAL, Owner,
    RESERVATION_TIMEOUT, Reservation, announce, announce_waiter, swap_in, take_over, wake_next,
};
use crate::shared::protocols::atomic::{Model, Woken, Word32, Word64};
use crate::system::clock;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A waiter in [`acquire_as`](super::acquire_as).
pub(super) struct Waiter<'a, M: Model> {
    pub(super) word: &'a M::U64,
    pub(super) events: &'a EventCounts<'a, M>,
    /// The bits of the classes that this waiter has waited in. It may have consumed a wake-up that
    /// another waiter of such a class needs.
    pub(super) slept: u64,
    /// Whether it is counted among the urgent waiters.
    pub(super) is_counted: bool,
}

impl<M: Model> Waiter<'_, M> {
    pub(super) fn wait(
        &mut self,
        class: &dyn Fn() -> CommitClass,
        me: ClientIdBits,
        is_alive: &dyn Fn(ClientIdBits) -> bool,
        deadline: Option<Instant>,
    ) -> Result<Acquired, Owner> {
        let (word, events) = (self.word, self.events);
        // The owner that was seen last, since when, and whether a whole interval has passed since.
        // The clock is checked as well, since signals may end every wait early.
        let mut suspect: Option<(u64, u64)> = None;
        let mut timed_out = false;
        loop {
            // The event counts are read before the class and the lock. A process that changes one
            // of those notifies later, so the wait ends at once.
            let key = events.bulk.load(Ordering::Acquire);
            let urgent = events.urgent.map(|urgent| (urgent, urgent.event.load(Ordering::Acquire)));
            let class = class();
            let (event, key) = match (class, urgent) {
                (CommitClass::Urgent, Some((urgent, key))) => (&urgent.event, key),
                _ => (events.bulk, key),
            };
            let seen = Owner(word.load(Ordering::Acquire));
            if seen.is_free_for(class) {
                if swap_in::<M>(word, seen.0, me | seen.kept() | self.slept).is_ok() {
                    return Ok(Acquired::Released);
                }
                continue;
            }
            let check_interval = if seen.is_reserved() { RESERVATION_TIMEOUT } else { OWNER_CHECK_INTERVAL };
            let (now_ns, known) = (M::now_ns(), seen.identity());
            let outlasted = suspect.is_some_and(|(before, since_ns)| {
                before == known
                    && (timed_out || u128::from(now_ns.saturating_sub(since_ns)) >= check_interval.as_nanos())
            });
            if outlasted && seen.is_reserved() {
                // The waiter that it was reserved for is dead, has given up, or does not run.
                if swap_in::<M>(word, seen.0, me | (seen.0 & BULK_WAITERS) | self.slept).is_ok() {
                    if let Some(urgent) = events.urgent {
                        urgent.count_anew();
                    }
                    return Ok(Acquired::Released);
                }
                continue;
            }
            if outlasted && !planted_bug!("lock-without-takeover") && !is_alive(seen.id()) {
                if take_over::<M>(word, seen, me) {
                    return Ok(Acquired::TakenOver(seen.id()));
                }
                continue;
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(clock::now()),
                None => OWNER_CHECK_INTERVAL,
            };
            if left.is_zero() {
                return Err(seen);
            }
            if let (CommitClass::Urgent, Some((urgent, _)), false) = (class, urgent, self.is_counted) {
                self.is_counted = true;
                urgent.count_in();
            }
            if !announce_waiter::<M>(word, seen, class) {
                continue;
            }
            self.slept |= class.flag();
            if outlasted || suspect.is_none_or(|(before, _)| before != known) {
                suspect = Some((known, now_ns));
            }
            timed_out = M::wait(event, key, left.min(check_interval)) == Woken::TimedOut && left >= check_interval;
        }
    }

    /// Passes on a wake-up that this waiter may have consumed, when it gives up.
    pub(super) fn pass_on(&self) {
        if self.slept == 0 {
            return;
        }
        loop {
            let seen = Owner(self.word.load(Ordering::Relaxed));
            if seen.is_reserved() {
                return wake_next::<M>(self.word, self.events, Next::Urgent(Reservation(seen.identity())));
            }
            if seen.id() == 0 {
                return wake_next::<M>(self.word, self.events, Next::Bulk);
            }
            if announce::<M>(self.word, seen, self.slept) {
                return;
            }
        }
    }
}
