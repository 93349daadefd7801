//! The words that all cells share: requests to the sampler, its reports, and the extent of the
//! table.

use crate::Version;
use crate::shared::control::{CacheLine, Event, StatCounter};
use crate::shared::protocols::atomic::{Native, Word64};
use crate::shared::protocols::cell;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The words that all cells share.
#[repr(C)]
pub(crate) struct CellsHead {
    /// Not 0 if a cell may have a value that no sample holds: see
    /// [`crate::shared::protocols::cell`].
    dirty: CacheLine<AtomicU64>,
    /// `capacity` and `bound`: the numbers of entries that exist, and that were ever used.
    /// `bodies_backed` and `bodies_used`: the bytes of bodies that exist, in chunks, and that are
    /// allocated, in units. All are [`checked`](crate::shared::control::checked) numbers.
    pub(super) capacity: AtomicU64,
    pub(super) bound: AtomicU64,
    pub(super) bodies_backed: AtomicU64,
    pub(super) bodies_used: AtomicU64,
    /// A hint: no entry below this one is free.
    pub(super) first_free: AtomicU64,
    /// No new cell gets a version up to this one, since dropped cells may have had it. Stored by
    /// the owner of the writer lock.
    pub(super) versions_gone: AtomicU64,
    /// 1 + the entry of a cell whose creation or drop is being committed. If the process that
    /// stored it died, the next owner of the writer lock that changes cells determines which of the
    /// two it was.
    pending: AtomicU64,
    /// The newest round of sampling that is requested, and the newest one that is committed.
    wanted: CacheLine<AtomicU64>,
    done: AtomicU64,
    /// The complement of `done`: an acknowledgement needs both.
    pub(super) done_check: AtomicU64,
    /// The sampler waits here.
    pub(crate) sampler: Event,
    /// Callers that need a round wait here.
    pub(crate) done_event: Event,
    /// The number of failed rounds, and the error number of the last one: see
    /// [`crate::logger::sampler`].
    failures: AtomicU32,
    errno: AtomicU32,
    /// The time between rounds, unless the flush policy determines it.
    interval_ns: AtomicU64,
    /// For `stats`: the rounds that committed something, and the values in them.
    pub(crate) rounds: StatCounter,
    pub(crate) values: StatCounter,
}

/// The offset in [`CellsHead`] of the numbers that lead to memory.
pub(crate) const CAPACITY_AT: usize = offset_of!(CellsHead, capacity);
pub(crate) const BODIES_BACKED_AT: usize = offset_of!(CellsHead, bodies_backed);

impl CellsHead {
    /// Records that a cell has a new value, whose store was fenced. Returns true if no process had
    /// recorded that since the sampler last began: the caller then wakes the sampler.
    #[inline]
    pub(crate) fn mark_dirty(&self) -> bool {
        cell::mark_dirty::<Native>(&self.dirty)
    }

    /// Records that a cell may have a new value. Called after a death, and when a round has failed.
    pub(crate) fn set_dirty(&self) {
        self.dirty.store_fenced(1);
    }

    /// Returns whether a cell may have a new value. Called by the sampler, which has prepared its
    /// wait.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst) != 0
    }

    /// Clears the mark: later stores set it again. Called by the sampler before it reads the
    /// versions.
    pub(crate) fn clear_dirty(&self) {
        cell::clear_dirty::<Native>(&self.dirty);
    }

    /// Returns the entry of a cell whose creation or drop has begun and is not resolved; see
    /// `pending`.
    pub(crate) fn pending(&self) -> Option<usize> {
        (self.pending.load(Ordering::Acquire) as usize).checked_sub(1)
    }

    /// Records that the creation or drop of this entry's cell begins. Called by the owner of the
    /// writer lock.
    pub(crate) fn set_pending(&self, index: usize) {
        self.pending.store(index as u64 + 1, Ordering::Release);
    }

    /// Records that the creation or drop is resolved. Called by the owner of the writer lock.
    pub(crate) fn clear_pending(&self) {
        self.pending.store(0, Ordering::Release);
    }

    /// Returns the newest round that is committed; `None` while the word and its check disagree.
    pub(crate) fn done(&self) -> Option<u64> {
        let done = self.done.load(Ordering::SeqCst);
        (self.done_check.load(Ordering::Acquire) == !done).then_some(done)
    }

    /// Requests a round, and returns the number of the round that covers all stores before this
    /// call. That number is above all committed rounds, whatever `wanted` contains: even after a
    /// flipped bit in `wanted`, a store that no round has seen must not count as sampled.
    pub(crate) fn ask(&self) -> u64 {
        let done = self.done().unwrap_or(0);
        let after = |wanted: u64| wanted.max(done).saturating_add(1);
        let (Ok(wanted) | Err(wanted)) =
            self.wanted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |wanted| Some(after(wanted)));
        after(wanted)
    }

    /// Returns the newest round that is requested. Called by the sampler before it reads the
    /// versions, and after it has prepared its wait.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Returns the newest version that a dropped cell may have had.
    pub(crate) fn versions_gone(&self) -> Version {
        Version::from_u64(self.versions_gone.load(Ordering::Acquire))
    }

    /// Records that a round is committed. Called by the sampler alone, which then notifies
    /// `done_event`.
    pub(crate) fn set_done(&self, round: u64) {
        self.done_check.store(!round, Ordering::Release);
        self.done.store_fenced(round);
    }

    /// Records that a round failed, with its error number, or 0 for damage, and wakes the callers
    /// that wait for a round. Called by the sampler.
    pub(crate) fn note_failure(&self, errno: i32) {
        self.errno.store(errno as u32, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::SeqCst);
        self.done_event.notify_always();
    }

    /// Returns the number of rounds that have failed. A waiter compares it before and after its
    /// wait.
    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::SeqCst)
    }

    /// Returns the error number of the last failure that [`CellsHead::failures`] counts.
    pub(crate) fn errno(&self) -> i32 {
        self.errno.load(Ordering::Relaxed) as i32
    }

    /// Sets the time between rounds.
    pub(crate) fn set_interval(&self, interval: Duration) {
        let ns = interval.as_nanos().min(u128::from(u64::MAX)) as u64;
        self.interval_ns.store(ns, Ordering::Release);
    }

    /// Returns the time between rounds.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval_ns.load(Ordering::Acquire))
    }
}
