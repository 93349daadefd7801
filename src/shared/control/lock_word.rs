//! A lock of the region: the writer lock or the growth lock. The protocol is that of
//! [`crate::shared::protocols::lock`].

use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::lock;
use crate::shared::protocols::lock::{Acquired, ClientIdBits, CommitClass, EventCounts, Owner, Reservation};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// A lock, and its last recorded holder, for display.
#[repr(C)]
pub(crate) struct LockWord {
    word: AtomicU64,
    holder_since_ns: AtomicU64,
    event: AtomicU32,
    holder_pid: AtomicU32,
    /// The urgent waiters; used by the writer lock only.
    urgent: lock::Urgent<Native>,
}

impl LockWord {
    #[inline]
    fn events(&self) -> EventCounts<'_, Native> {
        EventCounts::two(&self.urgent, &self.event)
    }

    /// Acquires the lock if that needs no wait. `class` is called only if the lock is not free.
    #[inline]
    pub(crate) fn try_acquire(&self, class: &dyn Fn() -> CommitClass, me: ClientIdBits) -> bool {
        // The lock is nearly always free, and then the class does not matter.
        lock::try_acquire::<Native>(&self.word, me).is_ok()
            || lock::try_acquire_as::<Native>(&self.word, class(), me).is_ok()
    }

    /// Waits for the lock until `deadline`; see [`lock::acquire_as`].
    pub(crate) fn acquire_as(
        &self,
        class: &dyn Fn() -> CommitClass,
        me: ClientIdBits,
        is_alive: &dyn Fn(ClientIdBits) -> bool,
        deadline: Option<Instant>,
    ) -> Result<Acquired, Owner> {
        lock::acquire_as::<Native>(&self.word, &self.events(), class, me, is_alive, deadline)
    }

    /// Releases the lock, and wakes the next waiter. Called by the owner.
    #[inline]
    pub(crate) fn release(&self, me: ClientIdBits) {
        lock::release_and_wake_next::<Native>(&self.word, &self.events(), me);
    }

    /// Leaves the lock reserved for an urgent waiter; see [`lock::release_to_urgent`]. Called by
    /// the owner.
    pub(crate) fn release_to_urgent(&self, me: ClientIdBits) -> Option<Reservation> {
        lock::release_to_urgent::<Native>(&self.word, &self.events(), me)
    }

    /// Takes back a reservation that no waiter will use.
    pub(crate) fn take_back(&self, reservation: Reservation) {
        lock::take_back::<Native>(&self.word, &self.events(), reservation);
    }

    /// Returns the owner.
    #[inline]
    pub(crate) fn owner(&self) -> Option<Owner> {
        lock::owner::<Native>(&self.word)
    }

    /// Wakes all urgent waiters: a process may have died before it woke one of them.
    pub(crate) fn wake_urgent(&self) {
        lock::wake_all::<Native>(&self.urgent.event);
    }

    /// Wakes all other waiters.
    pub(crate) fn wake_bulk(&self) {
        lock::wake_all::<Native>(&self.event);
    }

    /// Records the owner, for display. Called by the owner.
    #[inline]
    pub(crate) fn set_holder(&self, pid: u32, now_ns: u64) {
        self.holder_pid.store(pid, Ordering::Relaxed);
        self.holder_since_ns.store(now_ns, Ordering::Relaxed);
    }

    /// Returns the process id of the last owner that recorded itself. If an owner died before it
    /// recorded itself, this is the id of the previous owner.
    pub(crate) fn holder_pid(&self) -> u32 {
        self.holder_pid.load(Ordering::Relaxed)
    }

    /// Returns when the last owner recorded itself, on that owner's monotonic clock.
    #[inline]
    pub(crate) fn holder_since_ns(&self) -> u64 {
        self.holder_since_ns.load(Ordering::Relaxed)
    }
}
