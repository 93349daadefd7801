//! Goal: a load of a cell returns a complete value, of the returned version, and does not wait for
//! a dead writer. The sampler misses no stored value.
//!
//! Method: loom runs readers and writers of a cell with two copies of two words, the least that has
//! all the cases. A writer dies at each of its steps, and another continues. Planted bugs omit the
//! fences, the second copy, or the order between a value and its flag, and must be found.

use super::model::{Patient, Role, Unfenced, Word, explore, must_be_found, role};
use crate::Version;
use crate::shared::protocols::atomic::{Model, Word64};
use crate::shared::protocols::cell::{CellView, CellWords, WriteStep, clear_dirty, mark_dirty};
use std::sync::atomic::Ordering;

/// A cell of `C` copies of two words.
struct Cell<M: Model, const C: usize> {
    words: CellWords<M, C>,
    copies: Vec<M::U64>,
    dirty: M::U64,
}

const FLOOR: Version = Version::from_u64(0);

/// Returns two words that identify their writer.
fn value(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&(!number).to_le_bytes());
    bytes
}

fn number(bytes: [u8; 16]) -> u64 {
    let (first, second) = bytes.split_at(8);
    let (first, second) =
        (u64::from_le_bytes(first.try_into().unwrap()), u64::from_le_bytes(second.try_into().unwrap()));
    assert_eq!(first, !second, "a torn value");
    first
}

impl<M: Model<U64 = Word>, const C: usize> Cell<M, C> {
    /// Holds version 1.
    fn new() -> Self {
        let words: CellWords<M, C> = CellWords::default();
        let copies = (0..2 * C).map(|_| Word::new(0)).collect();
        let cell = Cell { words, copies, dirty: Word::new(0) };
        cell.store(101, |_| true);
        cell
    }

    fn view(&self) -> CellView<'_, M, C> {
        CellView::new(&self.words, &self.copies, 16)
    }

    /// Stores a value and records its number under its version. The number is 100 above the version
    /// if no writer died before.
    fn store(&self, number: u64, may_continue: impl FnMut(WriteStep) -> bool) -> Option<Version> {
        self.view().store(&value(number), FLOOR, may_continue)
    }

    fn load(&self) -> Option<(u64, u64)> {
        let mut bytes = [0; 16];
        let version = self.view().try_load(&mut bytes)?;
        Some((version.as_u64(), number(bytes)))
    }
}

/// Loads twice; each value must be that of its version, and versions must not decrease.
fn reader<M: Model<U64 = Word>, const C: usize>() -> Role<Cell<M, C>> {
    role(|cell: &Cell<M, C>| {
        let mut newest = 0;
        for _ in 0..2 {
            if let Some((version, number)) = cell.load() {
                assert_eq!(number, 100 + version, "another version's value");
                assert!(version >= newest, "the cell went back");
                newest = version;
            }
        }
    })
}

/// Stores often enough to come back to the copy of version 1.
fn writer<M: Model<U64 = Word>, const C: usize>() -> Role<Cell<M, C>> {
    role(|cell: &Cell<M, C>| {
        for version in 2..=1 + C as u64 {
            cell.store(100 + version, |_| true);
        }
    })
}

const STEPS: [WriteStep; 5] =
    [WriteStep::Latched, WriteStep::Cleared, WriteStep::Filled(1), WriteStep::Filled(2), WriteStep::Stamped];

/// Returns a writer that dies at `step`, before its value is the newest.
fn dies<M: Model<U64 = Word>, const C: usize>(cell: &Cell<M, C>, step: WriteStep) {
    assert_eq!(cell.store(666, |at| at != step), None);
}

#[test]
fn no_value_is_torn() {
    explore(Some(3), Cell::<Patient, 2>::new, &[reader(), writer()], |_| {});
}

#[test]
fn planted_a_cell_without_fences() {
    must_be_found(Some(3), Cell::<Unfenced, 2>::new, &[reader(), writer()]);
}

/// If a writer died or is stopped, a reader gets the last complete value at its first attempt.
#[test]
fn a_reader_never_waits_for_a_writer_that_ends() {
    for step in STEPS {
        let dying = role(move |cell: &Cell<Patient, 2>| dies(cell, step));
        let reader = role(|cell: &Cell<Patient, 2>| assert_eq!(cell.load(), Some((1, 101))));
        explore(None, Cell::<Patient, 2>::new, &[reader, dying], |_| {});
    }
}

/// After a loss, versions continue from a floor far above. Whichever copy the floor maps to, the
/// first writer does not touch the newest value.
#[test]
fn a_jump_of_the_versions_spares_the_newest_value() {
    for floor in 5..9 {
        for step in STEPS {
            let dying = role(move |cell: &Cell<Patient, 2>| {
                let floor = Version::from_u64(floor);
                assert_eq!(cell.view().store(&value(666), floor, |at| at != step), None);
            });
            let reader = role(|cell: &Cell<Patient, 2>| assert_eq!(cell.load(), Some((1, 101))));
            explore(None, Cell::<Patient, 2>::new, &[reader, dying], move |cell| {
                let floor = Version::from_u64(floor);
                let version = cell.view().store(&value(7), floor, |_| true).unwrap();
                assert!(version >= floor);
                assert_eq!(cell.load(), Some((version.as_u64(), 7)));
            });
        }
    }
}

#[test]
fn planted_a_cell_of_a_single_copy() {
    let dying = role(|cell: &Cell<Patient, 1>| dies(cell, WriteStep::Filled(1)));
    let reader = role(|cell: &Cell<Patient, 1>| assert_eq!(cell.load(), Some((1, 101))));
    must_be_found(None, Cell::<Patient, 1>::new, &[reader, dying]);
}

/// After a death at each step another writer stores; no reader ever sees the dead writer's value.
#[test]
fn the_next_writer_repairs() {
    for step in STEPS {
        let writers = role(move |cell: &Cell<Patient, 2>| {
            dies(cell, step);
            cell.store(102, |_| true);
        });
        explore(Some(3), Cell::<Patient, 2>::new, &[reader(), writers], |cell| {
            assert_eq!(cell.load(), Some((2, 102)));
        });
    }
}

/// Loads version 2 of a cell whose version 2 was first written by a writer that died.
#[test]
fn a_version_that_was_never_published_is_never_loaded() {
    for step in STEPS {
        let writers = role(move |cell: &Cell<Patient, 2>| {
            dies(cell, step);
            cell.store(102, |_| true);
        });
        let asker = role(|cell: &Cell<Patient, 2>| {
            let mut bytes = [0; 16];
            if cell.view().load_version(Version::from_u64(2), &mut bytes) {
                assert_eq!(number(bytes), 102, "a value that was never published");
            }
        });
        explore(Some(3), Cell::<Patient, 2>::new, &[asker, writers], |_| {});
    }
}

/// A value that is stored while a sampler begins a round is in that round, or the flag is set.
fn sampling<const FENCED: bool>() -> [Role<Cell<Patient, 2>>; 2] {
    let writer = role(|cell: &Cell<Patient, 2>| {
        cell.store(102, |_| true);
        if FENCED {
            mark_dirty::<Patient>(&cell.dirty);
        } else if cell.dirty.load(Ordering::Relaxed) == 0 {
            cell.dirty.store(1, Ordering::Relaxed);
        }
    });
    let sampler = role(|cell: &Cell<Patient, 2>| {
        cell.dirty.swap(1, Ordering::SeqCst);
        if FENCED {
            clear_dirty::<Patient>(&cell.dirty);
        } else {
            cell.dirty.store(0, Ordering::Relaxed);
        }
        if let Some((version, _)) = cell.load() {
            cell.words.sampled.store(version, Ordering::Relaxed);
        }
    });
    [writer, sampler]
}

fn nothing_is_forgotten(cell: &Cell<Patient, 2>) {
    let (version, sampled) = (cell.words.version.load(Ordering::SeqCst), cell.words.sampled.load(Ordering::SeqCst));
    assert!(version == sampled || cell.dirty.load(Ordering::SeqCst) == 1, "a value that is never sampled");
}

#[test]
fn nothing_stored_is_forgotten_by_the_sampler() {
    explore(None, Cell::<Patient, 2>::new, &sampling::<true>(), nothing_is_forgotten);
}

#[test]
fn planted_a_flag_without_order() {
    let outcome = std::panic::catch_unwind(|| {
        explore(None, Cell::<Patient, 2>::new, &sampling::<false>(), nothing_is_forgotten);
    });
    assert!(outcome.is_err(), "the planted bug was not found");
}
