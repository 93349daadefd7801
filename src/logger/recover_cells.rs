//! Recovery of cells and counters. Each starts from its record, or from the newer value in the old
//! `control` if that may be trusted. So process deaths alone lose no value.

use crate::api::cells::record::{CellRecord, KEYSPACE};
use crate::btree::cursor::RangeCursor;
use crate::btree::search;
use crate::files::dir;
use crate::logger::sampler;
use crate::participant::engine::Engine;
use crate::shared::cells::FirstValue;
use crate::shared::control::Control;
use crate::txn::catalog;
use crate::{Error, Result, Version};
use std::fs::File;
use std::ops::Bound;

/// Fills the table of the fresh region, `file`, for values that will be stored in `incarnation`.
///
/// The floors of the versions are not stored. They are computed from the incarnation and from what
/// is durable, so the next recovery computes the same ones: see [`Version::floor`].
pub(super) fn restore(engine: &Engine, old: Option<&Control>, file: &File, incarnation: u32) -> Result<()> {
    let image = engine.control.newest()?;
    let pages = engine.arena.pages(image.high_water);
    let Some(keyspace) = catalog::find(&pages, &image.catalog, KEYSPACE)? else { return Ok(()) };
    let Some(root) = catalog::root(&pages, &image.catalog, keyspace)? else { return Ok(()) };
    let mut cursor = RangeCursor::new(root, Bound::Unbounded, Bound::Unbounded);
    let mut name = Vec::new();
    while let Some(at) = cursor.next(&pages)? {
        engine.progress.step();
        at.key.key_into(&mut name);
        let record = CellRecord::decode(&name, at.value)?;
        let index = record.index as usize;
        engine.control.place_cell(index, record.kind, file)?;
        if engine.control.cell_entry(index)?.generation() != 0 {
            let what = format!("cell {:?} has the place of another one", String::from_utf8_lossy(&name));
            return Err(Error::corrupt(dir::ARENA, 0, what));
        }
        let found = old.map_or(Ok(None), |old| newer(old, &record))?;
        let (version, value) = found.as_ref().map_or((record.version, record.value), |(v, value)| (*v, value));
        let floor = if planted_bug!("versions-go-on") {
            Version::default()
        } else {
            let found = search::get(&pages, root, &name)?;
            let committed_in = found.map_or(0, |found| found.version.incarnation());
            version.floor(committed_in, incarnation)
        };
        let sampled = sampler::mark(record.kind, record.version, record.value);
        let first = FirstValue { value, version, floor, sampled };
        engine.control.begin_cell(index, record.generation, &first, engine.me.0)?;
    }
    crash_point!("recover.cells_restored");
    Ok(())
}

/// Returns the old region's value of a cell, if the generation matches and the value is not older
/// than the record.
///
/// # Errors
/// [`Error::Io`] if the value exists and cannot be mapped: restoring the record would revert a
/// visible value.
fn newer(old: &Control, record: &CellRecord<'_>) -> Result<Option<(Version, Vec<u8>)>> {
    let Ok(entry) = old.cell_entry(record.index as usize) else { return Ok(None) };
    let is_same = entry.generation() == record.generation;
    if !is_same || entry.kind().is_ok_and(|kind| kind != record.kind) {
        return Ok(None);
    }
    match sampler::newest(old, entry) {
        Ok((version, value)) => Ok((version >= record.version).then_some((version, value))),
        Err(error @ Error::Io { .. }) => Err(error),
        Err(_) => Ok(None),
    }
}
