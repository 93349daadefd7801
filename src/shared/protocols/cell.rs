//! Cells: values of fixed size, updated in place by any process, that nobody ever reads torn.
//!
//! A cell keeps the newest few values, each in a *copy* of its own, as Linux's `seqcount_latch`
//! keeps two: version v stands in copy v mod [`COPIES`]. A writer fills the copy of the oldest
//! value, then moves `version` to it. So a reader of the newest value is not touched by the writer
//! of the next one, be that alive, stopped or dead; it looks again only if writers went all the way
//! round the copies while it read one. Each copy has a *stamp*, the version that it holds, 0 while
//! it is being filled: the sequence counter of a seqlock, one per copy. Payload words are relaxed
//! atomics between fences (Boehm, "Can seqlocks get along with programming language memory
//! models?", 2012).
//!
//! Writers exclude each other by the latch, a lock of [`crate::shared::protocols::lock`]; readers
//! write nothing.
//!
//! | a writer dies | readers | the next writer |
//! |---|---|---|
//! | with the latch, nothing written | read v | takes the latch over, writes v + 1 |
//! | stamp of v + 1's copy cleared, payload partly filled | read v; v − 3, which stood there, is stale | clears and fills that copy anew |
//! | payload filled, stamp set, `version` not moved | read v; nobody takes v + 1, which is above `version` | fills that copy anew, as another v + 1 |
//! | `version` moved | read v + 1 | takes the latch over, writes v + 2 |
//!
//! Whether a value is still to be sampled, `version` says beside `sampled`; a flag that all cells
//! share says that a look at them is worth while. A writer moves `version`, then looks at the flag;
//! the sampler clears the flag, then looks at `version`; both fenced, so that one of them sees the
//! other.

use crate::Version;
use crate::shared::protocols::atomic::{Model, Word64};
use std::sync::atomic::Ordering;

/// Values that a cell keeps. With two, whoever reads 4 KiB beside a writer that never rests would
/// hardly ever succeed.
pub(crate) const COPIES: usize = 4;

/// What all who use a cell look at: one cache line. A counter keeps its value in `version`.
#[repr(C, align(64))]
pub(crate) struct CellWords<M: Model, const C: usize = COPIES> {
    /// The writer; see [`crate::shared::protocols::lock`].
    pub latch: M::U64,
    /// The newest complete value.
    pub version: M::U64,
    /// The newest value that a committed sample holds.
    pub sampled: M::U64,
    /// Which cell this is; 0 for none. A handle of another one is stale.
    pub generation: M::U64,
    /// What each copy holds.
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

/// Where a writer has come to; asked before each goes on.
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

/// A cell in shared memory: its words and its copies, each of the same number of payload words.
pub(crate) struct CellView<'a, M: Model, const C: usize = COPIES> {
    words: &'a CellWords<M, C>,
    copies: &'a [M::U64],
    /// Length of the value in bytes.
    len: usize,
}

impl<'a, M: Model, const C: usize> CellView<'a, M, C> {
    /// A cell of `len` bytes, whose copies lie in `copies` at equal distances.
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

    /// Copies the newest value to `out`; `None` if writers went round meanwhile: look again.
    #[inline]
    pub(crate) fn try_load(&self, out: &mut [u8]) -> Option<Version> {
        // Acquire pairs with the release in `store`: the copy's stamp is that of this version or of
        // a later one.
        let version = Version::from_u64(self.words.version.load(Ordering::Acquire));
        self.read(version, out).then_some(version)
    }

    /// Copies the value of exactly this version to `out`; false if it is not there any more, or not
    /// yet.
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

    /// Makes `value` the newest, as the next version, at least `floor`. The caller holds the latch.
    ///
    /// `goes_on` is asked at each step; when it says no, the writer ends there, as if it were
    /// killed.
    #[cfg(test)]
    pub(crate) fn store(
        &self,
        value: &[u8],
        floor: Version,
        mut goes_on: impl FnMut(WriteStep) -> bool,
    ) -> Option<Version> {
        let next = self.next();
        let version = if next >= floor { next } else { Self::reach(next, floor)? };
        self.store_as(value, version, &mut goes_on)
    }

    /// The version after the newest one; 0 after the last one that there is. The caller holds the
    /// latch.
    #[inline]
    pub(crate) fn next(&self) -> Version {
        Version::from_u64(self.words.version.load(Ordering::Relaxed).wrapping_add(1))
    }

    /// The version to go on from where `floor` is above `next`: one that stands in the same copy,
    /// that of the oldest value. The floor's own copy may be that of the newest value, which must
    /// not be touched. `None` if no version is left.
    #[cold]
    pub(crate) fn reach(next: Version, floor: Version) -> Option<Version> {
        let copies = C as u64;
        let ahead = (next.as_u64() % copies + copies - floor.as_u64() % copies) % copies;
        if next.as_u64() == 0 {
            return None;
        }
        floor.as_u64().checked_add(ahead).map(Version::from_u64)
    }

    /// As [`CellView::store`], with this version: of a value that comes from elsewhere.
    #[inline]
    pub(crate) fn store_as(
        &self,
        value: &[u8],
        version: Version,
        goes_on: &mut impl FnMut(WriteStep) -> bool,
    ) -> Option<Version> {
        let (stamp, payload) = self.copy(version);
        let mut pass = |step| goes_on(step).then_some(());
        pass(WriteStep::Latched)?;
        // What a weak memory model may make of this function without its fences and releases; it
        // says so in this order, since a processor that keeps stores in order shows nothing else.
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

/// Says that something is to be sampled. True if nobody had said so since the sampler last began:
/// wake it.
#[inline]
pub(crate) fn mark_dirty<M: Model>(flag: &M::U64) -> bool {
    // Sequentially consistent, after the fenced store of the version.
    flag.load(Ordering::SeqCst) == 0 && flag.swap(1, Ordering::SeqCst) == 0
}

/// The sampler begins: what is stored from now on says so anew.
#[inline]
pub(crate) fn clear_dirty<M: Model>(flag: &M::U64) {
    flag.swap(0, Ordering::SeqCst);
    // The looks at the versions, after the flag is cleared.
    M::fence(Ordering::SeqCst);
}
