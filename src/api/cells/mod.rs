//! Cells and counters by name: creating, finding, listing and dropping them.
//!
//! A cell has a record in the keyspace [`record::KEYSPACE`], its last sample, and an entry of the
//! table in `control`, which holds its newest value. The record names the entry. The transaction
//! that created the cell is its *generation*. Record, entry and each handle contain it, so a handle
//! never uses another cell's entry.
//!
//! | creating: its owner dies | then |
//! |---|---|
//! | entry allocated, recorded as pending, filled, generation set | no record has that generation: the entry is freed |
//! | published | the record is there: the entry stays |
//!
//! | dropping: its owner dies | then |
//! |---|---|
//! | recorded as pending | the record is there: the entry stays |
//! | published, generation not cleared | no record: the entry is freed |
//!
//! In each case the next owner of the writer lock for cells does this: see [`resolve_pending`].
//!
//! **Versions** of a new cell begin above those of every cell that was dropped before, whatever its
//! name. The highest of those is in three places. The drop commits the newest version with it, to
//! the slot image (`cells_floor`). Freeing the entry records it in `control` (`versions_gone`),
//! including what was stored until then. A clean stop commits that too. After a loss,
//! [`Version::floor`] adds what may have been assigned since.

pub(crate) mod cell;
pub(crate) mod counter;
mod open;
pub(crate) mod record;
pub(crate) mod sampling;

use crate::api::store::Store;
use crate::files::dir;
use crate::participant::engine::Engine;
use crate::shared::cells::CellKind;
use crate::shared::cells::{CellEntry, CellRef, FirstValue};
use crate::shared::control::Control;
use crate::txn::write::Write;
use crate::{Error, KeyspaceId, LimitKind, Result, Version, limits};
use record::{CellRecord, KEYSPACE};
use std::ops::Bound;

/// Lookups of a cell that seems to be dropped and created meanwhile, before an error.
const LOOKUP_ATTEMPTS_MAX: u32 = 100;

/// The identity of a cell and the index of its entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CellLocation {
    pub(crate) cell: CellRef,
    pub(crate) generation: u64,
}

impl CellLocation {
    pub(crate) fn kind(&self) -> CellKind {
        self.cell.kind
    }

    /// Returns the entry, or `None` if it no longer belongs to this cell.
    #[inline]
    pub(crate) fn entry<'c>(&self, control: &'c Control) -> Option<&'c CellEntry> {
        let entry = control.entry_of(&self.cell);
        (entry.generation() == self.generation).then_some(entry)
    }
}

/// A cell or counter, as [`Store::cells`] lists it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct CellInfo {
    /// The name.
    pub name: String,
    /// The length of a cell's value in bytes; `None` for a counter.
    pub len: Option<usize>,
}

/// Returns the cell or counter of this name, if there is one.
pub(crate) fn find(store: &Store, name: &str) -> Result<Option<CellLocation>> {
    let control = &store.client().engine.control;
    for _ in 0..LOOKUP_ATTEMPTS_MAX {
        let snapshot = store.snapshot()?;
        let Some(keyspace) = snapshot.find_keyspace(KEYSPACE)? else { return Ok(None) };
        let Some(value) = snapshot.get(&keyspace, name.as_bytes())? else { return Ok(None) };
        let record = CellRecord::decode(name.as_bytes(), value)?;
        // The generation was set before the record was visible. If it has changed since, the cell
        // was dropped: the next snapshot shows that.
        if control.cell_entry(record.index as usize)?.generation() == record.generation {
            let cell = control.cell_ref(record.index as usize, record.kind)?;
            return Ok(Some(CellLocation { cell, generation: record.generation }));
        }
        std::thread::yield_now();
    }
    Err(Error::corrupt(dir::CONTROL, 0, format!("cell {name:?} is not at the index in its record")))
}

/// Returns the cell or counter of this name; creates it if there is none.
pub(crate) fn open(store: &Store, name: &str, kind: CellKind) -> Result<CellLocation> {
    loop {
        match find(store, name)? {
            Some(location) if location.kind() == kind => return Ok(location),
            Some(location) => {
                return Err(Error::OtherCell {
                    name: name.into(),
                    found: location.kind().value_len(),
                    wanted: kind.value_len(),
                });
            }
            None => create(store, name, kind)?,
        }
    }
}

fn create(store: &Store, name: &str, kind: CellKind) -> Result<()> {
    if let CellKind::Cell { len } = kind
        && !(1..=limits::CELL_LEN_MAX).contains(&len)
    {
        let (what, limit) = (LimitKind::CellLength, limits::CELL_LEN_MAX as u64);
        return Err(Error::Limit { what, found: len as u64, limit });
    }
    if name.len() > limits::CELL_NAME_LEN_MAX {
        let (what, limit) = (LimitKind::CellNameLength, limits::CELL_NAME_LEN_MAX as u64);
        return Err(Error::Limit { what, found: name.len() as u64, limit });
    }
    if store.is_read_only() {
        return Err(Error::NoCell { name: name.into() });
    }
    let engine = &store.client().engine;
    let head = engine.control.cells();
    let mut txn = store.begin()?;
    let write = txn.write_mut()?;
    resolve_pending(engine, write)?;
    let keyspace = match write.find_keyspace(KEYSPACE)? {
        Some(keyspace) => keyspace,
        None => write.create_keyspace(KEYSPACE)?,
    };
    if write.get(keyspace, name.as_bytes())?.is_some() {
        return Ok(());
    }
    let file = engine.control_file()?;
    let latch = |entry: &CellEntry| take_free_latch(engine, entry);
    let oldest = engine.control.oldest_client_txn();
    let index = engine.with_room(|| engine.control.allocate_cell(kind, &file, oldest, latch))?;
    crash_point!("cell.allocated");
    // From here on until the commit, `resolve_pending` handles any failure.
    head.set_pending(index);
    let generation = write.txn_id().as_u64();
    // Above those of all cells that were dropped: a version that a consumer has kept never refers
    // to a value of another cell.
    let version = write.cells_floor().max(head.versions_gone()).next().ok_or_else(no_version)?;
    let zeros = vec![0; kind.len()];
    let sampled = if kind == CellKind::Counter { 0 } else { version.as_u64() };
    let first = FirstValue { value: &zeros, version, floor: version, sampled };
    engine.control.begin_cell(index, generation, &first, engine.me.0)?;
    crash_point!("cell.begun");
    let version = if kind == CellKind::Counter { Version::default() } else { version };
    let record = CellRecord { kind, index: index as u32, generation, version, value: &zeros };
    write.put(keyspace, name.as_bytes(), &record.encode())?;
    txn.commit_then(|| {
        crash_point!("cell.created");
        head.clear_pending();
    })?;
    Ok(())
}

/// Drops the cell or counter of this name. Returns whether it existed.
pub(crate) fn drop_cell(store: &Store, name: &str) -> Result<bool> {
    let engine = &store.client().engine;
    let head = engine.control.cells();
    let mut txn = store.begin()?;
    let write = txn.write_mut()?;
    resolve_pending(engine, write)?;
    let Some(keyspace) = write.find_keyspace(KEYSPACE)? else { return Ok(false) };
    let Some(bytes) = write.get(keyspace, name.as_bytes())? else { return Ok(false) };
    let record = CellRecord::decode(name.as_bytes(), bytes)?;
    let (index, kind, sampled) = (record.index as usize, record.kind, record.version);
    if kind != CellKind::Counter {
        // For a later run of the store that does not have `versions_gone`. What is stored until the
        // entry is free counts as lost by a crash: see `Version::floor`.
        let newest = engine.control.cell_entry(index)?.newest();
        write.raise_cells_floor(sampled.max(Version::from_u64(newest)))?;
    }
    write.delete(keyspace, name.as_bytes())?;
    head.set_pending(index);
    txn.commit_then(|| {
        crash_point!("cell.dropped");
        // An entry that can't be found is damage, and belongs to no cell.
        let _ = engine.control.free_cell(index);
        head.clear_pending();
    })?;
    Ok(true)
}

/// Returns all cells and counters, by name.
pub(crate) fn list(store: &Store) -> Result<Vec<CellInfo>> {
    let snapshot = store.snapshot()?;
    let Some(keyspace) = snapshot.find_keyspace(KEYSPACE)? else { return Ok(Vec::new()) };
    let entries = snapshot.range(&keyspace, ..)?;
    let info = |entry: Result<(crate::Key, &[u8])>| {
        let (key, value) = entry?;
        let record = CellRecord::decode(&key, value)?;
        let name = String::from_utf8(key.into()).map_err(|_| damaged("a name that is not UTF-8"))?;
        let len = record.kind.value_len().map(|len| len as usize);
        Ok(CellInfo { name, len })
    };
    entries.map(info).collect()
}

/// Calls `visit` with the name and the contents of each record of the keyspace, as a transaction
/// sees it.
pub(crate) fn each_record(
    write: &Write<'_>,
    keyspace: KeyspaceId,
    mut visit: impl FnMut(&[u8], CellRecord<'_>) -> Result<()>,
) -> Result<()> {
    let mut cursor = write.cursor(keyspace, Bound::Unbounded, Bound::Unbounded)?;
    let mut name = Vec::new();
    while let Some(at) = cursor.next(write.work())? {
        at.key.key_into(&mut name);
        visit(&name, CellRecord::decode(&name, at.value)?)?;
    }
    Ok(())
}

/// Completes a creation or drop of a cell whose caller died or failed. Frees the entry if the cell
/// does not exist. The caller holds the writer lock.
pub(crate) fn resolve_pending(engine: &Engine, write: &Write<'_>) -> Result<()> {
    let control = &engine.control;
    let Some(pending) = control.cells().pending() else { return Ok(()) };
    // An index without an entry is damage; nothing is freed then.
    if let Ok(entry) = control.cell_entry(pending) {
        let generation = entry.generation();
        let mut is_there = false;
        if let Some(keyspace) = write.find_keyspace(KEYSPACE)? {
            each_record(write, keyspace, |_, record| {
                is_there |= record.generation == generation;
                Ok(())
            })?;
        }
        if !is_there {
            control.free_cell(pending)?;
        }
    }
    crash_point!("cell.resolved");
    control.cells().clear_pending();
    Ok(())
}

/// Takes the latch of a freed cell, from a dead writer if necessary. It does not take it from a
/// living writer, which may be about to write to the cell that had the entry.
fn take_free_latch(engine: &Engine, entry: &CellEntry) -> bool {
    match entry.try_latch(engine.me.0) {
        Ok(()) => true,
        Err(owner) => !engine.is_alive(owner.id()) && entry.take_over_latch(owner, engine.me.0),
    }
}

fn no_version() -> Error {
    let what = LimitKind::StoreCellVersions;
    Error::Limit { what, found: u64::MAX, limit: u64::MAX }
}

fn damaged(what: &str) -> Error {
    Error::corrupt(dir::ARENA, 0, format!("the cells' keyspace has {what}"))
}

impl CellKind {
    /// Returns the length of a cell's value in bytes; `None` for a counter.
    fn value_len(self) -> Option<u64> {
        match self {
            CellKind::Cell { len } => Some(len as u64),
            CellKind::Counter => None,
        }
    }
}
