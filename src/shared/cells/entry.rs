//! One entry of the table of cells: the words of a cell or counter, and its latch.

use super::{CellKind, damaged};
use crate::shared::control::unchecked;
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::cell::CellWords;
use crate::shared::protocols::lock;
use crate::shared::protocols::lock::{Acquired, ClientIdBits, Owner};
use crate::{Result, Version};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// One cell or counter.
#[repr(C, align(128))]
pub(crate) struct CellEntry {
    /// The words that readers and writers use.
    pub(super) hot: CellWords<Native>,
    /// The position of this entry's body, in units: a [`checked`](crate::shared::control::checked)
    /// number.
    pub(super) body: AtomicU64,
    /// The [`CellKind`], as a checked number.
    pub(super) kind: AtomicU64,
    /// No value is stored under a version below this.
    pub(super) floor: AtomicU64,
    /// The newest transaction when the entry was freed.
    pub(super) freed_txn: AtomicU64,
    /// Writers that wait for the latch sleep here.
    event: AtomicU32,
    _reserved: AtomicU32,
}

const _: () = assert!(size_of::<CellEntry>() == 128);

impl CellEntry {
    pub(crate) fn kind(&self) -> Result<CellKind> {
        let word = unchecked(self.kind.load(Ordering::Acquire));
        word.and_then(CellKind::decode).ok_or_else(|| damaged("kind of a cell"))
    }

    /// Returns whether the entry was never used.
    pub(super) fn is_unused(&self) -> bool {
        self.kind.load(Ordering::Acquire) == 0
    }

    /// Returns the number of the entry's present cell; 0 if there is none. A handle compares it
    /// before it uses the entry, and after it has read. Acquire: the entry's other words are those
    /// of this cell, or of a later one.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.hot.generation.load(Ordering::Acquire)
    }

    /// Returns the version of a cell's newest value, or the value of a counter.
    #[inline]
    pub(crate) fn newest(&self) -> u64 {
        self.hot.version.load(Ordering::Acquire)
    }

    /// Adds to a counter, wrapping. Sequentially consistent: the caller then reads the flag of
    /// [`CellsHead::mark_dirty`](super::CellsHead::mark_dirty).
    #[inline]
    pub(crate) fn add(&self, number: u64) {
        if planted_bug!("counter-by-load-and-store") {
            let value = self.hot.version.load(Ordering::SeqCst);
            std::thread::yield_now();
            self.hot.version.store(value.wrapping_add(number), Ordering::SeqCst);
        } else {
            self.hot.version.fetch_add(number, Ordering::SeqCst);
        }
    }

    /// Returns whether no committed sample holds the newest value. Called by the sampler after it
    /// has cleared the flag. Sequentially consistent: the second half of the idiom of
    /// [`crate::shared::protocols::cell`].
    pub(crate) fn is_dirty(&self) -> bool {
        self.hot.version.load(Ordering::SeqCst) != self.hot.sampled.load(Ordering::Relaxed)
    }

    /// Returns the value of a counter to the sampler. Sequentially consistent, as in `is_dirty`.
    pub(crate) fn counter_to_sample(&self) -> u64 {
        self.hot.version.load(Ordering::SeqCst)
    }

    /// Records that a committed sample holds this version of a cell, or value of a counter. Called
    /// by the sampler, which owns the writer lock. No other thread reads the word.
    pub(crate) fn set_sampled(&self, mark: u64) {
        self.hot.sampled.store(mark, Ordering::Relaxed);
    }

    /// Returns the version below which no value is stored. Called by the owner of the latch, which
    /// orders the load.
    #[inline]
    pub(crate) fn floor(&self) -> Version {
        Version::from_u64(self.floor.load(Ordering::Relaxed))
    }

    /// Acquires the latch if it is free.
    #[inline]
    pub(crate) fn try_latch(&self, me: ClientIdBits) -> std::result::Result<(), Owner> {
        lock::try_acquire::<Native>(&self.hot.latch, me)
    }

    /// Returns the owner of the latch.
    pub(crate) fn latch_owner(&self) -> Option<Owner> {
        lock::owner::<Native>(&self.hot.latch)
    }

    /// Acquires the latch from `dead`, which was found dead.
    pub(crate) fn take_over_latch(&self, dead: Owner, me: ClientIdBits) -> bool {
        lock::take_over::<Native>(&self.hot.latch, dead, me)
    }

    /// Waits for the latch until `deadline`; see [`lock::acquire`].
    pub(crate) fn wait_for_latch(
        &self,
        me: ClientIdBits,
        is_alive: &dyn Fn(ClientIdBits) -> bool,
        deadline: Option<Instant>,
    ) -> std::result::Result<Acquired, Owner> {
        lock::acquire::<Native>(&self.hot.latch, &self.event, me, is_alive, deadline)
    }

    /// Releases the latch, and wakes a waiter. Called by the owner of the latch.
    #[inline]
    pub(crate) fn release_latch(&self, me: ClientIdBits) {
        lock::release_and_wake::<Native>(&self.hot.latch, &self.event, me);
    }
}
