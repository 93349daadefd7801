//! Cells: values of fixed size, updated in place by any process, and never read torn.
//!
//! A cell keeps the newest few values, each in a *copy* of its own, as Linux's `seqcount_latch`
//! keeps two. Version v is in copy v mod [`COPIES`]. A writer fills the copy of the oldest value,
//! then moves `version` to it. So the writer of the next value does not touch the copy of the
//! newest one, whether that writer is alive, stopped or dead. A reader retries only if writers
//! overwrote all copies while it read one. Each copy has a *stamp*: the version that it holds, or 0
//! while it is being filled. The stamp is the sequence counter of a seqlock, one per copy. Payload
//! words are relaxed atomics between fences (Boehm, "Can seqlocks get along with programming
//! language memory models?", 2012).
//!
//! Writers exclude each other by the latch, a lock of [`crate::shared::protocols::lock`]; readers
//! write nothing.
//!
//! | a writer dies | readers | the next writer |
//! |---|---|---|
//! | with the latch, nothing written | read v | takes the latch over, writes v + 1 |
//! | stamp of v + 1's copy cleared, payload partly filled | read v; v − 3, which that copy held, is stale | clears and fills that copy anew |
//! | payload filled, stamp set, `version` not moved | read v; v + 1 is above `version`, so no reader accepts it | fills that copy anew, as another v + 1 |
//! | `version` moved | read v + 1 | takes the latch over, writes v + 2 |
//!
//! `version` and `sampled` together show whether a value is still to be sampled. One flag, which
//! all cells share, is set if any cell may have such a value. A writer moves `version`, then loads
//! the flag. The sampler clears the flag, then loads `version`. Both fence in between, so at least
//! one of them sees the other's store.

use crate::Version;
use crate::shared::protocols::atomic::{Model, Word64};
use std::sync::atomic::Ordering;

/// The number of values that a cell keeps. With two, a reader of 4 KiB would almost never succeed
/// against a writer that stores without a pause.
pub(crate) const COPIES: usize = 4;

/// The words that every user of a cell reads: one cache line. A counter keeps its value in
/// `version`.
#[repr(C, align(64))]
pub(crate) struct CellWords<M: Model, const C: usize = COPIES> {
    /// The lock of the writers; see [`crate::shared::protocols::lock`].
    pub latch: M::U64,
    /// The newest complete value.
    pub version: M::U64,
    /// The newest value that a committed sample holds.
    pub sampled: M::U64,
    /// The number of this cell; 0 if there is none. A handle with another number is stale.
    pub generation: M::U64,
    /// The version that each copy holds.
    pub stamps: [M::U64; C],
}

impl<M: Model, const C: usize> Default for CellWords<M, C> {
    fn default() -> Self {
        let zero = || M::U64::new(0);
        CellWords {
            latch: zero(),
            version: zero(),
            sampled: zero(),
            generation: zero(),
            stamps: std::array::from_fn(|_| zero()),
        }
    }
}

/// The step that a writer has completed; passed to a test's callback, which may end the writer
/// there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WriteStep {
    /// It holds the latch.
    Latched,
    /// The stamp is cleared, nothing of the payload written.
    Cleared,
    /// This many words of the payload are written.
    Filled(usize),
    /// The stamp is set.
    Stamped,
    /// The value is the newest.
    Moved,
}

/// A view of a cell in shared memory: its words and its copies, each of the same number of payload
/// words.
pub(crate) struct CellView<'a, M: Model, const C: usize = COPIES> {
    words: &'a CellWords<M, C>,
    copies: &'a [M::U64],
    /// Length of the value in bytes.
    len: usize,
}

impl<'a, M: Model, const C: usize> CellView<'a, M, C> {
    /// Returns a view of a cell of `len` bytes, whose copies are in `copies` at equal distances.
    pub(crate) fn new(words: &'a CellWords<M, C>, copies: &'a [M::U64], len: usize) -> Self {
        assert!(copies.len() / C >= len.div_ceil(8), "copies too small for the value");
        CellView { words, copies, len }
    }

    #[inline]
    fn copy(&self, version: Version) -> (&'a M::U64, &'a [M::U64]) {
        let copies = if planted_bug!("single-copy-cell") { 1 } else { C as u64 };
        let index = (version.as_u64() % copies) as usize;
        let words = self.copies.len() / C;
        (&self.words.stamps[index], &self.copies[index * words..][..self.len.div_ceil(8)])
    }

    /// Copies the newest value to `out`. Returns `None` if writers overwrote all copies meanwhile:
    /// the caller retries.
    #[inline]
    pub(crate) fn try_load(&self, out: &mut [u8]) -> Option<Version> {
        // Acquire pairs with the release in `store`: the copy's stamp is that of this version or of
        // a later one.
        let version = Version::from_u64(self.words.version.load(Ordering::Acquire));
        self.read(version, out).then_some(version)
    }

    /// Copies the value of exactly this version to `out`. Returns false if the version is no longer
    /// there, or not yet.
    #[inline]
    pub(crate) fn load_version(&self, version: Version, out: &mut [u8]) -> bool {
        // A value above `version` may be one that its dead writer never published.
        version.as_u64() <= self.words.version.load(Ordering::Acquire) && self.read(version, out)
    }

    #[inline]
    fn read(&self, version: Version, out: &mut [u8]) -> bool {
        let (stamp, payload) = self.copy(version);
        // Acquire pairs with the release of the stamp in `store`: the payload is at least that of
        // this version.
        if stamp.load(Ordering::Acquire) != version.as_u64() {
            return false;
        }
        let (whole, rest) = out.as_chunks_mut::<8>();
        for (bytes, word) in whole.iter_mut().zip(payload) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        if let (false, Some(word)) = (rest.is_empty(), payload.last()) {
            let len = rest.len();
            rest.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes()[..len]);
        }
        // Pairs with the fence in `store`: if any word was of a later value, the stamp is seen
        // cleared, or later.
        M::fence(Ordering::Acquire);
        stamp.load(Ordering::Relaxed) == version.as_u64() || planted_bug!("read-cell-once")
    }

    /// Makes `value` the newest, as the next version or one that is at least `floor`. The caller
    /// holds the latch.
    ///
    /// `may_continue` is called after each step. If it returns false, the writer ends there, as if
    /// it were killed.
    #[cfg(test)]
    pub(crate) fn store(
        &self,
        value: &[u8],
        floor: Version,
        mut may_continue: impl FnMut(WriteStep) -> bool,
    ) -> Option<Version> {
        let next = self.next();
        let version = if next >= floor { next } else { Self::reach(next, floor)? };
        self.store_as(value, version, &mut may_continue)
    }

    /// Returns the version after the newest one; 0 after the last possible one. The caller holds
    /// the latch.
    #[inline]
    pub(crate) fn next(&self) -> Version {
        Version::from_u64(self.words.version.load(Ordering::Relaxed).wrapping_add(1))
    }

    /// Returns the version to continue from if `floor` is above `next`: at least `floor`, and in
    /// the same copy as `next`, which holds the oldest value. The copy of `floor` itself may hold
    /// the newest value, which must not be touched. Returns `None` if no version is left.
    #[cold]
    pub(crate) fn reach(next: Version, floor: Version) -> Option<Version> {
        let copies = C as u64;
        let ahead = (next.as_u64() % copies + copies - floor.as_u64() % copies) % copies;
        if next.as_u64() == 0 {
            return None;
        }
        floor.as_u64().checked_add(ahead).map(Version::from_u64)
    }

    /// Stores `value` as [`CellView::store`] does, as this version.
    #[inline]
    pub(crate) fn store_as(
        &self,
        value: &[u8],
        version: Version,
        may_continue: &mut impl FnMut(WriteStep) -> bool,
    ) -> Option<Version> {
        let (stamp, payload) = self.copy(version);
        let mut pass = |step| may_continue(step).then_some(());
        pass(WriteStep::Latched)?;
        // The planted bug stores in an order that a weak memory model allows without the fences and
        // releases. It needs to store in that order, since a processor that keeps stores in order
        // never shows it.
        let comes_early = planted_bug!("seqlock-without-fence");
        if comes_early {
            stamp.store(version.as_u64(), Ordering::Relaxed);
            self.words.version.store(version.as_u64(), Ordering::Relaxed);
        } else {
            stamp.store(0, Ordering::Relaxed);
        }
        pass(WriteStep::Cleared)?;
        // Pairs with the fence in `read`.
        M::fence(Ordering::Release);
        let (whole, rest) = value.as_chunks::<8>();
        for (index, (bytes, word)) in whole.iter().zip(payload).enumerate() {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
            pass(WriteStep::Filled(index + 1))?;
        }
        if let (false, Some(word)) = (rest.is_empty(), payload.last()) {
            let mut bytes = [0; 8];
            bytes[..rest.len()].copy_from_slice(rest);
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
            pass(WriteStep::Filled(payload.len()))?;
        }
        stamp.store(version.as_u64(), Ordering::Release);
        pass(WriteStep::Stamped)?;
        self.words.version.store_fenced(version.as_u64());
        pass(WriteStep::Moved)?;
        Some(version)
    }
}

/// Marks that a value is to be sampled. Returns true if the mark was not set since the sampler last
/// began: the caller then wakes the sampler.
#[inline]
pub(crate) fn mark_dirty<M: Model>(flag: &M::U64) -> bool {
    // Sequentially consistent, after the fenced store of the version.
    flag.load(Ordering::SeqCst) == 0 && flag.swap(1, Ordering::SeqCst) == 0
}

/// Clears the mark when a round of the sampler begins. Later stores set it again.
#[inline]
pub(crate) fn clear_dirty<M: Model>(flag: &M::U64) {
    flag.swap(0, Ordering::SeqCst);
    // The sampler loads the versions after it has cleared the flag.
    M::fence(Ordering::SeqCst);
}
