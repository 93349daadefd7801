//! Commit slots: the few words that describe one committed state, and the one store that makes it
//! current.
//!
//! Slots stand in a ring, indexed by the transaction's sequence number. The owner of the writer
//! lock fills the next one, then stores the transaction's id into `committed`: the publication. A
//! reader copies the slot of a transaction that was committed, fences, and accepts the copy only if
//! `committed` has not come within two of lapping it, since then a writer may be filling it anew.
//! All words are atomic, as the copy may race with that.
//!
//! | state | its owner dies here |
//! |---|---|
//! | next slot partly or wholly filled, `committed` unmoved | nothing has happened; the next owner fills it anew |
//! | `committed` moved | everything has happened |

use crate::TxnId;
use crate::shared::protocols::atomic::{Model, Word64};
use std::sync::atomic::Ordering;

/// How many sequence numbers short of a whole lap a reader no longer trusts a slot. One would do:
/// the slot of s is filled anew only after s + count − 1 is committed.
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
    /// The fence pairs with the one in [`CommitSlot::copy`]: whoever copies any of these words and
    /// then looks at a watermark sees all that its writer had published before.
    pub(crate) fn fill(&self, words: &[u64; N]) {
        M::fence(Ordering::Release);
        for (slot, word) in self.words.iter().zip(words) {
            slot.store(*word, Ordering::Relaxed);
        }
    }

    /// Copies all words, possibly a mixture: the caller looks at a watermark afterwards to find
    /// out.
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
    /// The ring in this memory. The number of slots is part of the layout, and at least 3.
    pub(crate) fn new(slots: &'a [CommitSlot<M, N>]) -> Self {
        const { assert!(N >= 1, "a slot begins with the transaction's id") };
        assert!(slots.len() as u64 > REUSE_MARGIN, "too few commit slots for anybody to read one");
        Slots { slots }
    }

    fn slot(&self, txn: TxnId) -> &'a CommitSlot<M, N> {
        &self.slots[(txn.sequence() % self.slots.len() as u64) as usize]
    }

    /// Describes the next transaction, `words[0]`. By the owner of the writer lock, before
    /// [`publish`]; until then nothing has happened.
    pub(crate) fn write(&self, words: &[u64; N]) {
        self.slot(TxnId::from_u64(words[0])).fill(words);
    }

    /// The words of `wanted`, which was read from `committed` or from a pin that holds. None if its
    /// slot has been, or may be about to be, filled anew, or is damaged: the caller reads
    /// `committed` again.
    pub(crate) fn read(&self, committed: &M::U64, wanted: TxnId) -> Option<[u64; N]> {
        let words = self.slot(wanted).copy();
        let now = TxnId::from_u64(committed.load(Ordering::Relaxed));
        let passed = now.sequence().wrapping_sub(wanted.sequence());
        (words[0] == wanted.as_u64() && passed < self.slots.len() as u64 - REUSE_MARGIN).then_some(words)
    }
}

/// The publication (the publication): makes `txn`, whose slot is written, the current state. The
/// one store of a commit.
///
/// It is fenced, so that [`ring`](crate::shared::protocols::event_count::notify) may follow without
/// a fence of its own.
#[inline]
pub(crate) fn publish<M: Model>(committed: &M::U64, txn: TxnId) {
    committed.store_fenced(txn.as_u64());
}
