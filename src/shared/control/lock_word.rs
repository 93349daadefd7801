//! A lock of the region: the writer lock or the growth lock. The protocol is that of
//! [`crate::shared::protocols::lock`].

use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::lock;
use crate::shared::protocols::lock::{Acquired, ClientIdBits, CommitClass, EventCounts, Owner, Reservation};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// A lock, and its holder, for people to read.
#[repr(C)]
pub(crate) struct LockWord {
    word: AtomicU64,
    holder_since_ns: AtomicU64,
    event: AtomicU32,
    holder_pid: AtomicU32,
    /// Of the writer lock.
    urgent: lock::Urgent<Native>,
}

impl LockWord {
    #[inline]
    fn events(&self) -> EventCounts<'_, Native> {
        EventCounts::two(&self.urgent, &self.event)
    }

    /// Acquires the lock if that takes no wait. `class` is asked only if the lock is not free.
    #[inline]
    pub(crate) fn try_acquire(&self, class: &dyn Fn() -> CommitClass, me: ClientIdBits) -> bool {
        // Nearly always free, and then nobody's class matters.
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

    /// By the owner: releases the lock, and wakes the next waiter.
    #[inline]
    pub(crate) fn release(&self, me: ClientIdBits) {
        lock::release_and_wake_next::<Native>(&self.word, &self.events(), me);
    }

    /// By the owner: leaves the lock reserved for an urgent waiter; see
    /// [`lock::release_to_urgent`].
    pub(crate) fn release_to_urgent(&self, me: ClientIdBits) -> Option<Reservation> {
        lock::release_to_urgent::<Native>(&self.word, &self.events(), me)
    }

    /// Takes back a reservation that no waiter will use.
    pub(crate) fn take_back(&self, reservation: Reservation) {
        lock::take_back::<Native>(&self.word, &self.events(), reservation);
    }

    /// The owner.
    #[inline]
    pub(crate) fn owner(&self) -> Option<Owner> {
        lock::owner::<Native>(&self.word)
    }

    /// Wakes all urgent waiters: one may wait for a process that died before it woke them.
    pub(crate) fn wake_urgent(&self) {
        lock::wake_all::<Native>(&self.urgent.event);
    }

    /// Wakes all other waiters.
    pub(crate) fn wake_bulk(&self) {
        lock::wake_all::<Native>(&self.event);
    }

    /// By the owner: records itself, for people to read.
    #[inline]
    pub(crate) fn set_holder(&self, pid: u32, now_ns: u64) {
        self.holder_pid.store(pid, Ordering::Relaxed);
        self.holder_since_ns.store(now_ns, Ordering::Relaxed);
    }

    /// The process id of the last owner that has recorded itself. An owner that died before it
    /// could leaves that of the owner before.
    pub(crate) fn holder_pid(&self) -> u32 {
        self.holder_pid.load(Ordering::Relaxed)
    }

    /// When the last owner has recorded itself, on its monotonic clock.
    #[inline]
    pub(crate) fn holder_since_ns(&self) -> u64 {
        self.holder_since_ns.load(Ordering::Relaxed)
    }
}
