//! Goal: a page is never reused while a reader may still read it, however the reader got its
//! snapshot.
//!
//! Method: loom runs a reader, a reclaiming writer and, for durable readers, the logger, through
//! every interleaving and every value that weak memory may return. The page is plain memory, so the
//! checker also finds a reuse that isn't ordered behind the last read. The scan finds the reader's
//! slot by the occupancy map, whose flag other threads clear and set meanwhile. Planted bugs show
//! that the tests find the errors that they are for.

use super::model::{Patient, Plain, Role, Unfenced, Word, explore, must_be_found, role};
use crate::TxnId;
use crate::shared::protocols::atomic::{Model, Word64};
use crate::shared::protocols::occupancy::Occupancy;
use crate::shared::protocols::pins::{LoggerPins, ReaderSlot, claim_lowest, reap, release, scan};
use crate::shared::protocols::slots::publish;
use std::sync::atomic::Ordering;

const READER: u64 = 7;
const DEAD: u64 = 8;
const REAPER: u64 = 9;
/// The content of the page while transaction 1 may be read.
const OLD: u64 = 11;
const REUSED: u64 = 22;

/// One area of one word.
type Map<M> = Occupancy<M, 1, 1, 1>;

/// A page created by transaction 1 and freed by transaction 2, and two reader slots of one area.
struct Store<M: Model> {
    committed: M::U64,
    durable: M::U64,
    logger: LoggerPins<M>,
    map: Map<M>,
    slot: ReaderSlot<M>,
    neighbour: ReaderSlot<M>,
    page: Plain,
}

impl<M: Model<U64 = Word>> Store<M> {
    /// Returns a region in which transaction 1 is committed and nothing is pinned.
    fn new() -> Store<M> {
        Store {
            committed: Word::new(1),
            durable: Word::new(0),
            logger: LoggerPins::default(),
            map: Map::default(),
            slot: ReaderSlot::default(),
            neighbour: ReaderSlot::default(),
            page: Plain::new(OLD),
        }
    }

    /// Returns a region in which transaction 1 is durable and pinned by the logger, and 2 is
    /// committed. The reader has its slot.
    fn with_logger() -> Store<M> {
        let store: Store<M> = Store::new();
        store.committed.store(2, Ordering::Release);
        store.logger.start(&store.durable, TxnId::from_u64(1));
        store.enter(READER);
        store
    }

    /// Returns a region in which a client died with transaction 1 pinned.
    fn with_dead_reader() -> Store<M> {
        let store: Store<M> = Store::new();
        store.enter(DEAD);
        store.slot.pin(&store.committed);
        store
    }

    /// Returns a region in which the neighbouring slot has an owner that pins nothing.
    fn with_neighbour() -> Store<M> {
        let store: Store<M> = Store::new();
        assert!(store.neighbour.claim(REAPER));
        store.map.enter(1);
        store
    }

    fn slot_at(&self, index: usize) -> &ReaderSlot<M> {
        if index == 0 { &self.slot } else { &self.neighbour }
    }

    /// Claims the slot and enters it in the map. False if it has an owner.
    fn try_enter(&self, me: u64) -> bool {
        let is_claimed = self.slot.claim(me);
        if is_claimed {
            self.map.enter(0);
        }
        is_claimed
    }

    fn enter(&self, me: u64) {
        assert!(self.try_enter(me));
    }

    fn release(&self) {
        release(&self.map, 0, &self.slot);
    }

    fn reap(&self, dead: u64) -> bool {
        reap(&self.map, 0, &self.slot, dead, REAPER)
    }

    /// Allocates as the owner of the writer lock does.
    fn reuse_if_unprotected(&self) -> bool {
        let mut is_protected = false;
        let protect = |pinned: TxnId| is_protected |= pinned.as_u64() == 1;
        let slot = |index| Some(self.slot_at(index));
        let horizon = scan(&self.committed, &self.logger, &self.map, slot, protect);
        let reusable = horizon.as_u64() >= 2 && !is_protected;
        if reusable {
            self.page.write(REUSED);
        }
        reusable
    }

    fn read(&self, pinned: TxnId) {
        if pinned.as_u64() == 1 {
            assert_eq!(self.page.read(), OLD, "a reader of transaction 1 reads a reused page");
        }
    }

    /// Pins after one load, since the second load is of a private copy: a planted bug.
    fn pin_without_looking_again(&self, watermark: &M::U64) -> TxnId {
        let seen = Word::new(watermark.load(Ordering::Acquire));
        self.slot.pin(&seen)
    }
}

/// Claims the slot and reads what is committed, this many times.
fn reader<M: Model<U64 = Word>>(rounds: usize) -> Role<Store<M>> {
    role(move |store: &Store<M>| {
        store.enter(READER);
        for _ in 0..rounds {
            store.read(store.slot.pin(&store.committed));
            store.slot.unpin();
        }
    })
}

/// Commits transaction 2, then allocates. Its second scan may meet a reader that has just unpinned.
fn writer<M: Model<U64 = Word>>() -> Role<Store<M>> {
    role(|store: &Store<M>| {
        publish::<M>(&store.committed, TxnId::from_u64(2));
        let _ = store.reuse_if_unprotected() || store.reuse_if_unprotected();
    })
}

/// The writer dies between its store and its fence. The next writer, here the same thread, has only
/// its own fence.
fn successor_of_a_writer<M: Model<U64 = Word>>() -> Role<Store<M>> {
    role(|store: &Store<M>| {
        store.committed.store(2, Ordering::Release);
        store.reuse_if_unprotected();
    })
}

#[test]
fn a_pinned_page_is_not_reused() {
    explore(None, Store::<Patient>::new, &[reader(1), writer()], |_| {});
    explore(Some(3), Store::<Patient>::new, &[reader(2), writer()], |_| {});
}

#[test]
fn a_pinned_page_is_not_reused_after_a_writers_death() {
    explore(None, Store::<Patient>::new, &[reader(1), successor_of_a_writer()], |_| {});
}

#[test]
fn planted_a_reader_that_does_not_look_again() {
    let reader = role(|store: &Store<Patient>| {
        store.enter(READER);
        store.read(store.pin_without_looking_again(&store.committed));
    });
    must_be_found(None, Store::new, &[reader, writer()]);
}

#[test]
fn planted_a_scan_without_its_fence() {
    must_be_found(None, Store::<Unfenced>::new, &[reader(1), successor_of_a_writer()]);
}

/// Two processes reap a dead owner's slot at once, one of them slow, while another reader takes it
/// over.
#[test]
fn reaping_never_takes_the_next_owners_pin() {
    let slow_reaper = role(|store: &Store<Patient>| {
        let _ = store.reap(DEAD);
    });
    let next_reader = role(|store: &Store<Patient>| {
        if store.try_enter(READER) {
            store.read(store.slot.pin(&store.committed));
            store.release();
        }
    });
    let reaping_writer = role(|store: &Store<Patient>| {
        publish::<Patient>(&store.committed, TxnId::from_u64(2));
        store.reap(DEAD);
        store.reuse_if_unprotected();
    });
    let roles = [slow_reaper, next_reader, reaping_writer];
    explore(Some(3), Store::<Patient>::with_dead_reader, &roles, |store| {
        assert_eq!(store.slot.owner(), None);
        assert_eq!(store.slot.pinned(), None);
        assert!(store.page.read() == REUSED || store.reuse_if_unprotected(), "a dead reader's pin must end");
    });
}

/// The owner of the neighbouring slot frees it, and with it the last bit of the area: it may clear
/// the flag.
fn leaving_neighbour<M: Model<U64 = Word>>() -> Role<Store<M>> {
    role(|store: &Store<M>| release(&store.map, 1, &store.neighbour))
}

#[test]
fn a_neighbour_that_leaves_never_hides_a_pin() {
    let roles = [reader(1), successor_of_a_writer(), leaving_neighbour()];
    explore(Some(4), Store::<Patient>::with_neighbour, &roles, |store| {
        // It does not leave a slot behind that no scan finds, either.
        assert_eq!(entered(&store.map), [0]);
    });
}

/// A reader frees its slot, while the next owner claims it and a scan runs.
#[test]
fn a_slot_that_goes_from_hand_to_hand_hides_no_pin() {
    let passing = || {
        role(|store: &Store<Patient>| {
            let slot = |index| store.slot_at(index);
            if let Some(index) = claim_lowest(&store.map, 0..64, slot, READER) {
                store.read(store.slot_at(index).pin(&store.committed));
                release(&store.map, index, store.slot_at(index));
            }
        })
    };
    explore(Some(2), Store::<Patient>::new, &[passing(), passing(), successor_of_a_writer()], |store| {
        assert!(entered(&store.map).is_empty());
        assert!(store.page.read() == REUSED || store.reuse_if_unprotected(), "no pin is left");
    });
}

fn entered<M: Model>(map: &Map<M>) -> Vec<usize> {
    let mut found = Vec::new();
    map.for_each(|index| found.push(index));
    found
}

#[test]
fn planted_a_reader_that_pins_before_it_is_entered() {
    let reader = role(|store: &Store<Patient>| {
        assert!(store.slot.claim(READER));
        let pinned = store.slot.pin(&store.committed);
        store.map.enter(0);
        store.read(pinned);
    });
    must_be_found(None, Store::new, &[reader, successor_of_a_writer()]);
}

/// The owner of the last bit clears the flag, even if the summary word has changed.
#[test]
fn planted_a_flag_that_is_cleared_without_a_second_look() {
    let clearing = role(|store: &Store<Patient>| {
        if store.map.areas[0][0].fetch_and(!2, Ordering::AcqRel) & !2 == 0 {
            store.map.summaries[0].fetch_and(!1, Ordering::AcqRel);
        }
    });
    must_be_found(Some(4), Store::with_neighbour, &[reader(1), successor_of_a_writer(), clearing]);
}

/// A reaper that frees the slot first and clears its bit afterwards takes the next owner's bit.
#[test]
fn planted_a_reaper_that_clears_the_bit_of_a_slot_that_is_not_its_own() {
    let slow_reaper = role(|store: &Store<Patient>| {
        if store.slot.take_over(DEAD, 0) {
            store.map.leave(0);
        }
    });
    let next_reader = role(|store: &Store<Patient>| {
        if store.try_enter(READER) {
            store.read(store.slot.pin(&store.committed));
        }
    });
    must_be_found(Some(3), Store::with_dead_reader, &[slow_reaper, next_reader, successor_of_a_writer()]);
}

/// Reads what is durable.
fn durable_reader<M: Model<U64 = Word>>() -> Role<Store<M>> {
    role(|store: &Store<M>| {
        store.read(store.slot.pin(&store.durable));
        store.slot.unpin();
    })
}

/// Advances the durable transaction from 1 to 2.
fn logger<M: Model<U64 = Word>>() -> Role<Store<M>> {
    role(|store: &Store<M>| {
        let next = store.logger.pin_next(&store.committed, &store.durable);
        assert_eq!(next.txn.as_u64(), 2);
        store.logger.publish(&store.durable, next);
    })
}

fn reclaimer<M: Model<U64 = Word>>() -> Role<Store<M>> {
    role(|store: &Store<M>| {
        let _ = store.reuse_if_unprotected();
    })
}

#[test]
fn a_durable_readers_page_is_not_reused_while_the_logger_moves_on() {
    let roles = [durable_reader(), logger(), reclaimer()];
    explore(Some(4), Store::<Patient>::with_logger, &roles, |_| {});
}

#[test]
fn planted_a_durable_reader_that_does_not_look_again() {
    let reader = role(|store: &Store<Patient>| store.read(store.pin_without_looking_again(&store.durable)));
    must_be_found(Some(4), Store::with_logger, &[reader, logger(), reclaimer()]);
}

/// The logger dies between its store of the durable transaction and its fence. The next logger
/// continues at once, and replaces the pin that the dead one had not dropped yet.
fn logger_and_successor<M: Model<U64 = Word>>() -> Role<Store<M>> {
    role(|store: &Store<M>| {
        let next = store.logger.pin_next(&store.committed, &store.durable);
        store.durable.store(next.txn.as_u64(), Ordering::Release);
        let _ = store.logger.pin_next(&store.committed, &store.durable);
    })
}

#[test]
fn a_durable_readers_page_is_not_reused_when_a_successor_moves_on() {
    let roles = [durable_reader(), logger_and_successor(), reclaimer()];
    explore(Some(4), Store::<Patient>::with_logger, &roles, |_| {});
}

/// The fence between the logger's pins and the readers' replaces the one that the dead logger did
/// not make.
#[test]
fn planted_a_scan_for_durable_readers_without_fences() {
    let roles = [durable_reader(), logger_and_successor(), reclaimer()];
    must_be_found(Some(4), Store::<Unfenced>::with_logger, &roles);
}

#[test]
fn planted_a_scan_that_reads_the_readers_before_the_logger() {
    let reclaimer = role(|store: &Store<Patient>| {
        Patient::fence(Ordering::SeqCst);
        let mut is_protected = store.slot.pinned().is_some_and(|pinned| pinned.as_u64() == 1);
        let protect = |pinned: TxnId| is_protected |= pinned.as_u64() == 1;
        scan(&store.committed, &store.logger, &Map::default(), |_| None, protect);
        if !is_protected {
            store.page.write(REUSED);
        }
    });
    must_be_found(Some(4), Store::with_logger, &[durable_reader(), logger(), reclaimer]);
}

/// Wherever a logger dies between pinning and dropping, the next one keeps the published
/// transaction pinned and ends with only one pin.
#[test]
fn a_loggers_successor_goes_on_with_its_pins() {
    for died_before_publishing in [true, false] {
        let successor = role(move |store: &Store<Patient>| {
            let pins = || {
                let mut pins = Vec::new();
                scan(&store.committed, &store.logger, &store.map, |_| None, |pinned| pins.push(pinned.as_u64()));
                pins.sort_unstable();
                pins
            };
            let next = store.logger.pin_next(&store.committed, &store.durable);
            if !died_before_publishing {
                store.durable.store(next.txn.as_u64(), Ordering::Release);
            }
            // The logger died here.
            assert_eq!(pins(), [1, 2]);
            publish::<Patient>(&store.committed, TxnId::from_u64(3));
            let next = store.logger.pin_next(&store.committed, &store.durable);
            assert_eq!(pins(), [store.durable.load(Ordering::Relaxed), 3]);
            store.logger.publish(&store.durable, next);
            assert_eq!(pins(), [3]);
        });
        explore(None, Store::with_logger, &[successor], |_| {});
    }
}
