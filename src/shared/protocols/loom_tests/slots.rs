//! Goal: a reader of a commit slot gets the words of exactly the transaction that it requested, or
//! nothing; never a mixture of two, however long it stalls between its steps.
//!
//! Method: loom runs a reader and a writer that commits a whole lap of a small ring of slots, so
//! that it refills the one being read. Planted bugs omit the load of `committed`, and the fences,
//! and must be found.

use super::model::{Patient, Role, Unfenced, Word, explore, must_be_found, role};
use crate::TxnId;
use crate::shared::protocols::atomic::{Model, Word64};
use crate::shared::protocols::slots::{CommitSlot, Slots, publish};
use std::sync::atomic::Ordering;

/// The smallest ring from which a slot can be read.
const SLOTS: usize = 3;
const WORDS: usize = 3;

struct Region<M: Model> {
    committed: M::U64,
    slots: [CommitSlot<M, WORDS>; SLOTS],
}

impl<M: Model<U64 = Word>> Region<M> {
    fn new() -> Region<M> {
        let region = Region { committed: Word::new(0), slots: Default::default() };
        region.commit(1);
        region
    }

    fn slots(&self) -> Slots<'_, M, WORDS> {
        Slots::new(&self.slots)
    }

    fn commit(&self, sequence: u64) {
        self.slots().write(&words_of(sequence));
        publish::<M>(&self.committed, TxnId::from_u64(sequence));
    }
}

fn words_of(sequence: u64) -> [u64; WORDS] {
    [sequence, sequence * 100, sequence * 1000]
}

/// Reads the newest commit. The second load may be of a private copy, a planted bug.
fn reader<M: Model<U64 = Word>>(second_look_is_fresh: bool) -> Role<Region<M>> {
    role(move |region: &Region<M>| {
        let wanted = TxnId::from_u64(region.committed.load(Ordering::Acquire));
        let stale = Word::new(wanted.as_u64());
        let second_look = if second_look_is_fresh { &region.committed } else { &stale };
        if let Some(words) = region.slots().read(second_look, wanted) {
            assert_eq!(words, words_of(wanted.as_u64()), "a mixed slot was accepted");
        }
    })
}

/// Commits until all slots are used, then refills the first and dies before the publication.
fn lapping_writer<M: Model<U64 = Word>>() -> Role<Region<M>> {
    role(|region: &Region<M>| {
        for sequence in 2..=SLOTS as u64 {
            region.commit(sequence);
        }
        region.slots().write(&words_of(1 + SLOTS as u64));
    })
}

#[test]
fn a_mixed_slot_is_never_accepted() {
    explore(None, Region::<Patient>::new, &[reader(true), lapping_writer()], |_| {});
}

#[test]
fn planted_a_reader_that_does_not_look_at_committed_again() {
    must_be_found(None, Region::<Patient>::new, &[reader(false), lapping_writer()]);
}

#[test]
fn planted_slots_without_fences() {
    must_be_found(None, Region::<Unfenced>::new, &[reader(true), lapping_writer()]);
}

#[test]
fn a_slot_is_readable_until_nearly_lapped_and_across_incarnations() {
    use crate::shared::protocols::atomic::Native;
    use std::sync::atomic::AtomicU64;
    let slots: [CommitSlot<Native, WORDS>; 8] = Default::default();
    let slots = Slots::new(&slots);
    let incarnation = 5 << 44;
    let committed = AtomicU64::new(0);
    for sequence in 1..100 {
        // A recovery raises the incarnation and continues the sequence.
        let id = |sequence| {
            if sequence < 50 { sequence } else { incarnation | sequence }
        };
        let words = |sequence| [id(sequence), sequence * 100, sequence * 1000];
        slots.write(&words(sequence));
        publish::<Native>(&committed, TxnId::from_u64(id(sequence)));
        for back in 0..sequence.min(20) {
            let wanted = sequence - back;
            let found = slots.read(&committed, TxnId::from_u64(id(wanted)));
            assert_eq!(found, (back < 6).then(|| words(wanted)));
            assert_eq!(slots.read(&committed, TxnId::from_u64(9 << 44 | wanted)), None);
        }
        assert_eq!(slots.read(&committed, TxnId::from_u64(id(sequence + 1))), None);
    }
}
