//! Commit slots: the few words that describe one committed state, and the one store that makes it
//! the newest.
//!
//! The slots form a ring, indexed by the transaction's sequence number. The owner of the writer
//! lock fills the next slot, then stores the transaction's id into `committed`: the publication. A
//! reader copies the slot of a committed transaction, fences, and then loads `committed`. It
//! accepts the copy only if `committed` is not within two of lapping the slot, since a writer may
//! then be filling it anew. All words are atomic, since the copy may race with that.
//!
//! | state | its owner dies here |
//! |---|---|
//! | next slot partly or wholly filled, `committed` unmoved | nothing has happened; the next owner fills it anew |
//! | `committed` moved | everything has happened |

use crate::TxnId;
use crate::shared::protocols::atomic::{Model, Word64};
use std::sync::atomic::Ordering;

/// How many sequence numbers before a whole lap a reader rejects a slot. One would suffice: the
/// slot of s is filled anew only after s + count − 1 is committed.
const REUSE_MARGIN: u64 = 2;

/// `N` words describing one committed state; word 0 is the transaction's id.
#[repr(C)]
pub(crate) struct CommitSlot<M: Model, const N: usize> {
    words: [M::U64; N],
}

impl<M: Model, const N: usize> Default for CommitSlot<M, N> {
    fn default() -> Self {
        CommitSlot { words: std::array::from_fn(|_| M::U64::new(0)) }
    }
}

impl<M: Model, const N: usize> CommitSlot<M, N> {
    /// Writes all words. One writer at a time.
    ///
    /// The fence pairs with the one in [`CommitSlot::copy`]: a reader that copies any of these
    /// words and then loads a watermark sees everything that the slot's writer had published
    /// before.
    pub(crate) fn fill(&self, words: &[u64; N]) {
        M::fence(Ordering::Release);
        for (slot, word) in self.words.iter().zip(words) {
            slot.store(*word, Ordering::Relaxed);
        }
    }

    /// Copies all words, possibly a mixture of two images: the caller checks a watermark
    /// afterwards.
    pub(crate) fn copy(&self) -> [u64; N] {
        let words = std::array::from_fn(|index| self.words[index].load(Ordering::Relaxed));
        M::fence(Ordering::Acquire);
        words
    }
}

/// The ring of commit slots.
pub(crate) struct Slots<'a, M: Model, const N: usize> {
    slots: &'a [CommitSlot<M, N>],
}

impl<M: Model, const N: usize> Clone for Slots<'_, M, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Model, const N: usize> Copy for Slots<'_, M, N> {}

impl<'a, M: Model, const N: usize> Slots<'a, M, N> {
    /// Returns the ring in this memory. The number of slots is part of the layout, and at least 3.
    pub(crate) fn new(slots: &'a [CommitSlot<M, N>]) -> Self {
        const { assert!(N >= 1, "a slot begins with the transaction's id") };
        assert!(slots.len() as u64 > REUSE_MARGIN, "too few commit slots for a reader");
        Slots { slots }
    }

    fn slot(&self, txn: TxnId) -> &'a CommitSlot<M, N> {
        &self.slots[(txn.sequence() % self.slots.len() as u64) as usize]
    }

    /// Fills the slot of the next transaction, whose id is `words[0]`. Called by the owner of the
    /// writer lock before [`publish`]; until then the transaction is not committed.
    pub(crate) fn write(&self, words: &[u64; N]) {
        self.slot(TxnId::from_u64(words[0])).fill(words);
    }

    /// Returns the words of `wanted`, which was read from `committed` or from a pin that holds.
    /// Returns `None` if the slot has been filled anew, may be about to be, or is damaged: the
    /// caller reads `committed` again.
    pub(crate) fn read(&self, committed: &M::U64, wanted: TxnId) -> Option<[u64; N]> {
        let words = self.slot(wanted).copy();
        let now = TxnId::from_u64(committed.load(Ordering::Relaxed));
        let passed = now.sequence().wrapping_sub(wanted.sequence());
        (words[0] == wanted.as_u64() && passed < self.slots.len() as u64 - REUSE_MARGIN).then_some(words)
    }
}

/// Publishes `txn`, whose slot is filled: the one store that makes a commit the newest.
///
/// The store is fenced, so that [`notify`](crate::shared::protocols::event_count::notify) may
/// follow without a fence of its own.
#[inline]
pub(crate) fn publish<M: Model>(committed: &M::U64, txn: TxnId) {
    committed.store_fenced(txn.as_u64());
}
