//! The layout of cells and counters in `control`: a table of entries, and after it the copies of
//! the cells' values.
//!
//! | part | offset | content |
//! |---|---|---|
//! | table | [`table_at`] | [`ENTRY_CHUNK`] entries at a time, up to [`limits::CELLS_MAX`] |
//! | bodies | after the table's end | a cell's copies, allocated once and then kept by its entry |
//!
//! Both grow within the file. A new part is written with zeros before it is used. Address space is
//! reserved for the table; the bodies are mapped when they are used
//! ([`crate::shared::memory::spans`]). The file may have a hole before each of them, which no
//! process accesses.
//!
//! Entries are allocated and freed by the owner of the writer lock. A freed entry is used again.
//! The next user of a cell's entry must hold its latch, so that no writer with a stale handle is in
//! the middle of a store. An addition to a counter takes no latch, so the entry of a counter is
//! used again only when all processes that could have a handle to the old counter are gone.
#![allow(unsafe_code)]

mod entry;
mod head;
mod kind;

use crate::files::dir;
use crate::shared::control::{Control, REOPEN_REMEDY, checked, unchecked, write_zeros};
use crate::shared::protocols::atomic::Native;
use crate::shared::protocols::cell::{COPIES, CellView, WriteStep};
use crate::{Error, LimitKind, Result, Version, limits};
pub(crate) use entry::CellEntry;
pub(crate) use head::{BODIES_BACKED_AT, CAPACITY_AT, CellsHead};
pub(crate) use kind::CellKind;
use std::fs::File;
use std::mem::size_of;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of entries by which the table grows.
const ENTRY_CHUNK: usize = 1024;
/// The number of bytes by which the bodies grow.
const BODY_CHUNK: u64 = 256 << 10;
/// The unit of a body's position and length: a cache line.
const BODY_UNIT: u64 = 64;
/// The length of the table in bytes. It is in the first span of the region's mapping.
pub(crate) const TABLE_BYTES: u64 = (limits::CELLS_MAX * size_of::<CellEntry>()) as u64;
const BODIES_BYTES: u64 = limits::CELLS_MAX as u64 * (limits::CELL_LEN_MAX * COPIES) as u64;
/// The length of the table and the bodies in bytes.
pub(crate) const RESERVED_BYTES: u64 = TABLE_BYTES + BODIES_BYTES;

const _: () = {
    assert!((ENTRY_CHUNK * size_of::<CellEntry>()).is_multiple_of(4096));
    assert!(TABLE_BYTES.is_multiple_of(4096) && BODIES_BYTES.is_multiple_of(4096));
    assert!(limits::CELL_LEN_MAX < 1 << 16);
};

/// Returns the offset of the table, which follows a reader table of its greatest size that ends at
/// `readers_end`.
fn table_at(readers_end: usize) -> u64 {
    readers_end.next_multiple_of(4096) as u64
}

fn damaged(what: &str) -> Error {
    Error::corrupt(dir::CONTROL, 0, format!("the {what} is damaged; {REOPEN_REMEDY}"))
}

impl Control {
    pub(crate) fn cells(&self) -> &CellsHead {
        &self.fixed().cells
    }

    /// Returns the number of entries that exist, checked against the file's length.
    fn cell_capacity(&self) -> Result<u64> {
        let capacity = Self::number(&self.cells().capacity, limits::CELLS_MAX as u64, "number of cells")?;
        let end = table_at(self.readers_end()) + capacity * size_of::<CellEntry>() as u64;
        // If there are no entries, the file may end before the offset of the first one.
        if capacity > 0 {
            self.check_own_file(&self.cell_table_known, end, "table of cells")?;
        }
        Ok(capacity)
    }

    /// Returns the number of bytes of bodies that exist, checked against the file's length.
    fn cell_bodies(&self) -> Result<u64> {
        let chunks = Self::number(&self.cells().bodies_backed, BODIES_BYTES / BODY_CHUNK, "room for cells")?;
        let end = table_at(self.readers_end()) + TABLE_BYTES + chunks * BODY_CHUNK;
        if chunks > 0 {
            self.check_own_file(&self.cell_bodies_known, end, "values of cells")?;
        }
        Ok(chunks * BODY_CHUNK)
    }

    fn number(word: &AtomicU64, max: u64, what: &str) -> Result<u64> {
        let number = unchecked(word.load(Ordering::Acquire)).map(u64::from);
        number.filter(|number| *number <= max).ok_or_else(|| damaged(what))
    }

    /// Initialises the words of the cells of a new region, which has none.
    pub(crate) fn format_cells(&self) {
        let head = self.cells();
        head.done_check.store(!0, Ordering::Release);
        for word in [&head.capacity, &head.bound, &head.bodies_backed, &head.bodies_used] {
            word.store(checked(0), Ordering::Release);
        }
    }

    /// Returns the number of entries that were ever used; later entries are empty.
    pub(crate) fn cell_bound(&self) -> Result<usize> {
        Ok(Self::number(&self.cells().bound, self.cell_capacity()?, "number of cells in use")? as usize)
    }

    fn entry_at(&self, index: usize) -> &CellEntry {
        // SAFETY: within the reserved range of the mapping, aligned, and in the part of the file
        // that was written according to `capacity`, as the callers have checked. An entry consists
        // of atomics, which any process may change at will.
        unsafe {
            let table = self.base().add(table_at(self.readers_end()) as usize);
            &*table.cast::<CellEntry>().add(index)
        }
    }

    /// Returns the entries that were ever used.
    pub(crate) fn cell_entries(&self) -> Result<impl ExactSizeIterator<Item = &CellEntry>> {
        Ok((0..self.cell_bound()?).map(|index| self.entry_at(index)))
    }

    /// Checks the numbers of the cells, and where each entry's copies are.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first one that is damaged.
    pub(crate) fn check_cell_entries(&self) -> Result<()> {
        let used = Self::number(&self.cells().bodies_used, BODIES_BYTES / BODY_UNIT, "room used by cells")? * BODY_UNIT;
        if used > self.cell_bodies()? {
            return Err(damaged("room used by cells"));
        }
        for entry in self.cell_entries()?.filter(|entry| entry.generation() != 0) {
            if let kind @ CellKind::Cell { .. } = entry.kind()? {
                self.body_of(entry, kind)?;
            }
        }
        Ok(())
    }

    /// Returns an entry, or an error if it was never used.
    pub(crate) fn cell_entry(&self, index: usize) -> Result<&CellEntry> {
        if index >= self.cell_bound()? {
            return Err(damaged("offset of a cell"));
        }
        Ok(self.entry_at(index))
    }

    /// Returns the offset of the copies of an entry's cell from the beginning of the bodies,
    /// checked against the file's length.
    fn body_of(&self, entry: &CellEntry, kind: CellKind) -> Result<u64> {
        let at = Self::number(&entry.body, BODIES_BYTES / BODY_UNIT, "offset of a cell's copies")? * BODY_UNIT;
        if at + kind.body_bytes() > self.cell_bodies()? {
            return Err(damaged("offset of a cell's copies"));
        }
        Ok(at)
    }

    /// Returns the cell of an entry, mapped for loads and stores.
    pub(crate) fn cell_view<'c>(&'c self, entry: &'c CellEntry) -> Result<StoredCell<'c>> {
        let kind = entry.kind()?;
        let CellKind::Cell { len } = kind else { return Err(damaged("kind of a cell")) };
        let first = self.map_copies(entry, kind)?;
        // SAFETY: mapped for as long as `self` lives, as just checked, in a part of the file that
        // was written before `bodies_backed` was stored. Aligned to a cache line; atomics alone,
        // which any process may change at will.
        let copies = unsafe { std::slice::from_raw_parts(first.as_ptr(), kind.body_bytes() as usize / 8) };
        Ok(CellView::new(&entry.hot, copies, len))
    }

    /// Returns the address of the copies of an entry's cell.
    fn map_copies(&self, entry: &CellEntry, kind: CellKind) -> Result<NonNull<AtomicU64>> {
        let start = table_at(self.readers_end()) + TABLE_BYTES + self.body_of(entry, kind)?;
        let first = self.spans().map(start..start + kind.body_bytes())?;
        Ok(NonNull::new(first.cast()).expect("nothing is mapped at address 0"))
    }

    /// Returns a reference to a cell or counter. The reference is checked here, and not at its
    /// uses.
    pub(crate) fn cell_ref(&self, index: usize, kind: CellKind) -> Result<CellRef> {
        let entry = self.cell_entry(index)?;
        if entry.kind()?.body_bytes() != kind.body_bytes() {
            return Err(damaged("kind of a cell"));
        }
        let copies = if kind == CellKind::Counter { NonNull::dangling() } else { self.map_copies(entry, kind)? };
        Ok(CellRef { region: self.base().addr(), entry: std::ptr::from_ref(entry), copies, kind })
    }

    /// Returns the entry of a reference from this mapping.
    #[inline]
    pub(crate) fn entry_of(&self, cell: &CellRef) -> &CellEntry {
        assert!(cell.region == self.base().addr(), "a cell of another region");
        // SAFETY: `cell_ref` took it from this mapping, whose base no other mapping has while this
        // one lives. Entries keep their offsets; the file never shrinks.
        unsafe { &*cell.entry }
    }

    /// Returns the cell of a reference from this mapping; `entry` is its entry, from
    /// [`Control::entry_of`]. An entry keeps its body for ever.
    #[inline]
    pub(crate) fn view_of<'c>(&'c self, cell: &CellRef, entry: &'c CellEntry) -> StoredCell<'c> {
        assert!(std::ptr::eq(cell.entry, entry), "a cell has the entry that was found with it");
        // SAFETY: `cell_ref` mapped the copies from this region, as `entry_of` has checked for the
        // entry, and checked that they are in the file. They stay mapped as long as `self` lives.
        // For the rest, see `cell_view`. A counter has no copies.
        let copies = unsafe { std::slice::from_raw_parts(cell.copies.as_ptr(), cell.kind.body_bytes() as usize / 8) };
        CellView::new(&entry.hot, copies, cell.kind.len())
    }

    // ---- by the owner of the writer lock

    /// Returns a free entry for a cell of this kind, either reused or never used before. `file` is
    /// this region.
    ///
    /// The entry of a counter is used again only if the newest transaction was `counters_before` or
    /// an older one when the counter was freed. The entry of a cell is used again only if `latch`
    /// acquires its latch, which the caller then owns.
    pub(crate) fn allocate_cell(
        &self,
        kind: CellKind,
        file: &File,
        counters_before: u64,
        latch: impl Fn(&CellEntry) -> bool,
    ) -> Result<usize> {
        let bound = self.cell_bound()?;
        let first_free = &self.cells().first_free;
        let hint = (first_free.load(Ordering::Relaxed) as usize).min(bound);
        let free = |index: &usize| self.entry_at(*index).hot.generation.load(Ordering::Acquire) == 0;
        let may_use = |index: &usize| {
            let entry = self.entry_at(*index);
            match (kind, entry.kind()) {
                (CellKind::Counter, Ok(CellKind::Counter)) => {
                    entry.freed_txn.load(Ordering::Acquire) <= counters_before
                }
                (_, Ok(old)) => old.body_bytes() == kind.body_bytes() && latch(entry),
                (_, Err(_)) => entry.is_unused(),
            }
        };
        let mut frees = (hint..bound).filter(free).peekable();
        first_free.store(frees.peek().map_or(bound, |index| *index) as u64, Ordering::Relaxed);
        let index = frees.find(may_use).unwrap_or(bound);
        self.place_cell(index, kind, file)?;
        Ok(index)
    }

    /// Sets the kind of the free entry `index`, and gives it a body if it has none. Called for a
    /// new cell, and in recovery for a cell that had this entry before.
    pub(crate) fn place_cell(&self, index: usize, kind: CellKind, file: &File) -> Result<()> {
        self.ensure_entries(index + 1, file)?;
        let entry = self.entry_at(index);
        // A process may have died after it stored the entry's kind and before the bound. The new
        // cell may then need a larger body.
        if !entry.kind().is_ok_and(|old| old.body_bytes() == kind.body_bytes()) {
            let used = &self.cells().bodies_used;
            let at = Self::number(used, BODIES_BYTES / BODY_UNIT, "room used by cells")? * BODY_UNIT;
            let end = at + kind.body_bytes().next_multiple_of(BODY_UNIT);
            self.ensure_bodies(end, file)?;
            // Clear the old kind, which does not describe the new body.
            entry.kind.store(0, Ordering::Release);
            // If the process dies after this store, one body at most belongs to no entry.
            used.store(checked((end / BODY_UNIT) as u32), Ordering::Release);
            entry.body.store(checked((at / BODY_UNIT) as u32), Ordering::Relaxed);
        }
        entry.kind.store(checked(kind.encode()), Ordering::Release);
        crash_point!("cell.entry_filled");
        let bound = self.cell_bound()?.max(index + 1);
        self.cells().bound.store(checked(bound as u32), Ordering::Release);
        Ok(())
    }

    /// Stores the first value of an allocated entry, and its generation last. Releases its latch,
    /// also on an error. After an error, the entry is free.
    pub(crate) fn begin_cell(&self, index: usize, generation: u64, first: &FirstValue<'_>, me: u64) -> Result<()> {
        let entry = self.cell_entry(index)?;
        let filled = self.fill_cell(entry, first);
        if filled.is_ok() {
            entry.hot.generation.store(generation, Ordering::SeqCst);
        }
        entry.release_latch(me);
        filled
    }

    fn fill_cell(&self, entry: &CellEntry, first: &FirstValue<'_>) -> Result<()> {
        for stamp in &entry.hot.stamps {
            stamp.store(0, Ordering::Release);
        }
        entry.floor.store(first.floor.as_u64(), Ordering::Relaxed);
        match entry.kind()? {
            CellKind::Cell { len } if len == first.value.len() => {
                let view = self.cell_view(entry)?;
                view.store_as(first.value, first.version, &mut |_: WriteStep| true);
            }
            CellKind::Counter => {
                let value: [u8; 8] = first.value.try_into().map_err(|_| damaged("value of a counter"))?;
                entry.hot.version.store(u64::from_le_bytes(value), Ordering::Release);
            }
            CellKind::Cell { .. } => return Err(damaged("length of a cell")),
        }
        entry.hot.sampled.store(first.sampled, Ordering::Relaxed);
        Ok(())
    }

    /// Frees an entry. Handles detect this by its generation.
    ///
    /// Records every version that the cell has had in [`CellsHead::versions_gone`]. The generation
    /// is cleared first, and the version is read after it. A writer checks the generation while it
    /// holds the latch, and the previous writer moved the version before it released the latch. All
    /// four accesses are sequentially consistent or fenced. So of the writers whose version is not
    /// seen here, only the first can have seen the generation: at most one more version is given.
    pub(crate) fn free_cell(&self, index: usize) -> Result<()> {
        let entry = self.cell_entry(index)?;
        entry.freed_txn.store(self.committed().as_u64(), Ordering::Release);
        let hint = &self.cells().first_free;
        hint.store(hint.load(Ordering::Relaxed).min(index as u64), Ordering::Relaxed);
        entry.hot.generation.store(0, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        if let Ok(CellKind::Cell { .. }) = entry.kind() {
            let newest = entry.hot.version.load(Ordering::SeqCst);
            self.cells().versions_gone.fetch_max(newest.saturating_add(1), Ordering::SeqCst);
        }
        Ok(())
    }

    fn ensure_entries(&self, count: usize, file: &File) -> Result<()> {
        let head = self.cells();
        let capacity = self.cell_capacity()? as usize;
        if count <= capacity {
            return Ok(());
        }
        if count > limits::CELLS_MAX {
            return Err(Error::Limit { what: LimitKind::Cells, found: count as u64, limit: limits::CELLS_MAX as u64 });
        }
        let grown = count.next_multiple_of(ENTRY_CHUNK);
        let from = table_at(self.readers_end()) + (capacity * size_of::<CellEntry>()) as u64;
        write_zeros(file, from, ((grown - capacity) * size_of::<CellEntry>()) as u64, dir::CONTROL)?;
        head.capacity.store(checked(grown as u32), Ordering::Release);
        Ok(())
    }

    fn ensure_bodies(&self, bytes: u64, file: &File) -> Result<()> {
        let head = self.cells();
        let backed = self.cell_bodies()?;
        if bytes <= backed {
            return Ok(());
        }
        let grown = bytes.next_multiple_of(BODY_CHUNK).min(BODIES_BYTES);
        let from = table_at(self.readers_end()) + TABLE_BYTES + backed;
        write_zeros(file, from, grown - backed, dir::CONTROL)?;
        head.bodies_backed.store(checked((grown / BODY_CHUNK) as u32), Ordering::Release);
        Ok(())
    }

    /// Returns the ranges of the file that hold the table and the bodies, according to the words.
    pub(crate) fn cells_ranges(&self) -> Result<[Range<u64>; 2]> {
        let head = self.cells();
        let table = table_at(self.readers_end());
        let bodies = table + TABLE_BYTES;
        let capacity = Self::number(&head.capacity, limits::CELLS_MAX as u64, "number of cells")?;
        let backed = Self::number(&head.bodies_backed, BODIES_BYTES / BODY_CHUNK, "room for cells")?;
        Ok([table..table + capacity * size_of::<CellEntry>() as u64, bodies..bodies + backed * BODY_CHUNK])
    }

    /// Returns the least length of the file for all entries and bodies that exist according to the
    /// words.
    pub(crate) fn cells_end(&self) -> Result<u64> {
        let ranges = self.cells_ranges()?;
        Ok(ranges.iter().filter(|range| !range.is_empty()).map(|range| range.end).max().unwrap_or(0))
    }
}

/// A cell of this region: see [`CellView`].
pub(crate) type StoredCell<'c> = CellView<'c, Native>;

/// A reference to a cell or counter in one mapping of `control`, checked by [`Control::cell_ref`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct CellRef {
    /// The address of the mapping that the reference belongs to.
    region: usize,
    entry: *const CellEntry,
    copies: NonNull<AtomicU64>,
    pub(crate) kind: CellKind,
}

// SAFETY: only `entry_of` and `view_of` use the addresses. Their arguments hold on any thread.
unsafe impl Send for CellRef {}
// SAFETY: as above.
unsafe impl Sync for CellRef {}

/// The first value of a cell.
pub(crate) struct FirstValue<'v> {
    pub(crate) value: &'v [u8],
    pub(crate) version: Version,
    /// No value is stored under a version below this.
    pub(crate) floor: Version,
    /// The version of a cell, or the value of a counter, in the newest committed sample.
    pub(crate) sampled: u64,
}
