//! Goal: a page is never reused while a reader may still read it, whichever way the reader came to its snapshot.
//!
//! Method: loom runs a reader, a reclaiming writer and, for durable readers, the logger, through every interleaving
//! and every value that weak memory may return. The page is plain memory, so the checker also finds a reuse that
//! isn't ordered behind the last read. Planted bugs show that it would find what these tests are for.

mod loom_model;

use loom_model::{Patient, Plain, Role, Unfenced, Word, explore, must_be_found, role};
use std::sync::atomic::Ordering;
use untorn::TxnId;
use untorn::protocols::atomic::{Model, Word64};
use untorn::protocols::pins::{LoggerPins, ReaderSlot, scan};
use untorn::protocols::slots::swing;

const READER: u64 = 7;
const DEAD: u64 = 8;
/// What the page holds while transaction 1 may be read.
const OLD: u64 = 11;
const REUSED: u64 = 22;

/// A page born by transaction 1 and freed by transaction 2.
struct Store<M: Model> {
    committed: M::U64,
    durable: M::U64,
    logger: LoggerPins<M>,
    slot: ReaderSlot<M>,
    page: Plain,
}

impl<M: Model<U64 = Word>> Store<M> {
    /// Transaction 1 is committed; nothing is pinned.
    fn new() -> Store<M> {
        Store {
            committed: Word::new(1),
            durable: Word::new(0),
            logger: LoggerPins::default(),
            slot: ReaderSlot::default(),
            page: Plain::new(OLD),
        }
    }

    /// Transaction 1 is durable and pinned by the logger, 2 is committed; the reader has its slot.
    fn with_logger() -> Store<M> {
        let store: Store<M> = Store::new();
        store.committed.store(2, Ordering::Release);
        store.logger.start(&store.durable, TxnId::from_u64(1));
        assert!(store.slot.claim(READER));
        store
    }

    /// A client died with transaction 1 pinned.
    fn with_dead_reader() -> Store<M> {
        let store: Store<M> = Store::new();
        assert!(store.slot.claim(DEAD));
        store.slot.pin(&store.committed);
        store
    }

    /// What the owner of the writer lock does to allocate.
    fn reuse_if_unprotected(&self) -> bool {
        let mut is_protected = false;
        let protect = |pinned: TxnId| is_protected |= pinned.as_u64() == 1;
        let horizon = scan(&self.committed, &self.logger, || std::iter::once(&self.slot), protect);
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

    /// Pins after one look, as the second one is at a private copy: a planted bug.
    fn pin_without_looking_again(&self, watermark: &M::U64) -> TxnId {
        let seen = Word::new(watermark.load(Ordering::Acquire));
        self.slot.pin(&seen)
    }
}

/// Claims the slot and reads what is committed, this many times.
fn reader<M: Model<U64 = Word>>(rounds: usize) -> Role<Store<M>> {
    role(move |store: &Store<M>| {
        assert!(store.slot.claim(READER));
        for _ in 0..rounds {
            store.read(store.slot.pin(&store.committed));
            store.slot.unpin();
        }
    })
}

/// Commits transaction 2, then allocates. Its second look comes upon a reader that has just let go.
fn writer<M: Model<U64 = Word>>() -> Role<Store<M>> {
    role(|store: &Store<M>| {
        swing::<M>(&store.committed, TxnId::from_u64(2));
        let _ = store.reuse_if_unprotected() || store.reuse_if_unprotected();
    })
}

/// The writer dies between storing and fencing; its successor, here the same thread, has only its own fence.
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
        assert!(store.slot.claim(READER));
        store.read(store.pin_without_looking_again(&store.committed));
    });
    must_be_found(None, Store::new, &[reader, writer()]);
}

#[test]
fn planted_a_scan_without_its_fence() {
    must_be_found(None, Store::<Unfenced>::new, &[reader(1), successor_of_a_writer()]);
}

/// A dead owner's slot is reaped by two at once, one of them slow, while another reader takes it over.
#[test]
fn reaping_never_takes_the_next_owners_pin() {
    let slow_reaper = role(|store: &Store<Patient>| {
        let _ = store.slot.reap(DEAD);
    });
    let next_reader = role(|store: &Store<Patient>| {
        if store.slot.claim(READER) {
            store.read(store.slot.pin(&store.committed));
            store.slot.release();
        }
    });
    let reaping_writer = role(|store: &Store<Patient>| {
        swing::<Patient>(&store.committed, TxnId::from_u64(2));
        store.slot.reap(DEAD);
        store.reuse_if_unprotected();
    });
    let roles = [slow_reaper, next_reader, reaping_writer];
    explore(Some(3), Store::<Patient>::with_dead_reader, &roles, |store| {
        assert_eq!(store.slot.owner(), None);
        assert_eq!(store.slot.pinned(), None);
        assert!(store.page.read() == REUSED || store.reuse_if_unprotected(), "a dead reader's pin must end");
    });
}

/// Reads what is durable.
fn durable_reader<M: Model<U64 = Word>>() -> Role<Store<M>> {
    role(|store: &Store<M>| {
        store.read(store.slot.pin(&store.durable));
        store.slot.unpin();
    })
}

/// Moves the durable transaction on from 1 to 2.
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

/// The logger dies between storing the durable transaction and fencing; its successor goes on at once, over the pin
/// that the dead one had not dropped yet.
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

/// The fence between the logger's pins and the readers' has to make up for the one that the dead logger owes.
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
        scan(&store.committed, &store.logger, std::iter::empty, protect);
        if !is_protected {
            store.page.write(REUSED);
        }
    });
    must_be_found(Some(4), Store::with_logger, &[durable_reader(), logger(), reclaimer]);
}

/// Wherever a logger dies between pinning and dropping, its successor keeps the published transaction pinned and
/// ends with one pin only.
#[test]
fn a_loggers_successor_goes_on_with_its_pins() {
    for died_before_publishing in [true, false] {
        let successor = role(move |store: &Store<Patient>| {
            let pins = || {
                let mut pins = Vec::new();
                scan(&store.committed, &store.logger, std::iter::empty, |pinned| pins.push(pinned.as_u64()));
                pins.sort_unstable();
                pins
            };
            let next = store.logger.pin_next(&store.committed, &store.durable);
            if !died_before_publishing {
                store.durable.store(next.txn.as_u64(), Ordering::Release);
            }
            // Here it died.
            assert_eq!(pins(), [1, 2]);
            swing::<Patient>(&store.committed, TxnId::from_u64(3));
            let next = store.logger.pin_next(&store.committed, &store.durable);
            assert_eq!(pins(), [store.durable.load(Ordering::Relaxed), 3]);
            store.logger.publish(&store.durable, next);
            assert_eq!(pins(), [3]);
        });
        explore(None, Store::with_logger, &[successor], |_| {});
    }
}
