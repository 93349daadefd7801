//! Logged extents: written once in a live transaction, taken over from the arena in recovery.

use super::Workspace;
use crate::files::extent::{LoggedExtent, VALUE_AT};
use crate::files::page::{CHECKSUM_LEN, PageWrite, extent_pages};
use crate::pages::extents::extent_len;
use crate::pages::queue;
use crate::pages::unreplayed::gaps;
use crate::{PageId, Result};
use std::ops::Range;

impl Workspace<'_> {
    /// Allocates an extent and writes the value into it, before the log record that refers to it.
    ///
    /// # Errors
    /// Those of [`PageWrite::allocate_extent`], and of the write.
    pub(crate) fn write_logged_extent(&mut self, value: &[u8]) -> Result<LoggedExtent> {
        let pages = extent_pages(self.engine.geometry.page_size, value.len() as u64);
        let page = self.allocate_extent(pages)?;
        crash_point!("extent.allocated");
        let extent = LoggedExtent { page, len: value.len() as u32, crc: crc32fast::hash(value) };
        let arena = &self.engine.arena;
        // A process that can't open the arena's file copies the value through its mapping. The
        // process may have used up its descriptors, or have dropped its rights.
        match self.engine.arena_file() {
            Ok(file) if arena.may_write_file(page, pages) => arena.write_extent(&file, &extent, self.txn, value)?,
            _ => {
                let head = extent.head(self.engine.geometry.page_size, self.txn);
                let body = self.extent_mut(page, pages)?;
                body[..VALUE_AT - CHECKSUM_LEN].copy_from_slice(&head[CHECKSUM_LEN..]);
                let (filled, rest) = body[VALUE_AT - CHECKSUM_LEN..].split_at_mut(value.len());
                filled.copy_from_slice(value);
                rest.fill(0);
            }
        }
        crash_point!("extent.written");
        Ok(extent)
    }

    /// Adopts an extent whose record is being replayed. Its bytes were verified before the replay.
    ///
    /// # Errors
    /// `Corrupt` if the extent is not one that was taken out of the queues.
    pub(crate) fn adopt_extent(&mut self, page: PageId, pages: u32) -> Result<()> {
        let len = extent_len(pages);
        if !self.unreplayed.as_ref().is_some_and(|unreplayed| unreplayed.adopt(page, len)) {
            return Err(self.engine.arena.damaged(page, "a record of the log refers to an extent that is in use"));
        }
        self.savepoints.note_allocated(page, len);
        Ok(())
    }

    /// Takes the extents of records that were not replayed yet out of the queues, in the first
    /// transaction that is replayed. The other pages of the entries that contain them stay free.
    ///
    /// # Errors
    /// `Corrupt` if the pages are neither free nor beyond the high-water mark.
    pub(crate) fn take_out_unreplayed(&mut self) -> Result<()> {
        let Some(unreplayed) = self.unreplayed.clone() else { return Ok(()) };
        let ranges = unreplayed.take_out();
        let Some(end) = ranges.last().map(|last| last.end) else { return Ok(()) };
        let high_water = self.image.high_water;
        if end > high_water {
            // Recovery has backed these pages with blocks.
            self.image.high_water = end;
            for gap in gaps(high_water..end, &ranges) {
                self.split_rests.push((PageId(gap.start), gap.end - gap.start));
            }
        }
        let len = |range: &Range<u32>| u64::from(range.end - range.start);
        let mut missing: u64 =
            ranges.iter().map(|range| len(&(range.start.min(high_water)..range.end.min(high_water)))).sum();
        let free_in = |whole: &Range<u32>| gaps(whole.clone(), &ranges).iter().map(len).sum::<u64>();
        for class in 0..self.directory()?.len() {
            let state = self.directory()?[class];
            let mut wanted = 0;
            queue::walk(&self.pages(), &self.engine.arena, &state, &mut |_, _| Ok(()), &mut |entry| {
                let whole = entry.page.0..entry.page.0 + entry.pages;
                wanted += u64::from(free_in(&whole) < len(&whole));
                Ok(())
            })?;
            while wanted > 0 {
                let Some(entry) = self.take_entry(class)? else { break };
                let whole = entry.page.0..entry.page.0 + entry.pages;
                let taken = len(&whole) - free_in(&whole);
                if taken == 0 {
                    // The commit returns the entry. No savepoint precedes it, so no rollback
                    // removes it.
                    self.freed_pages.push(entry);
                    continue;
                }
                wanted -= 1;
                missing = missing.saturating_sub(taken);
                let is_reusable = self.protected.is_reusable(&entry)?;
                for gap in gaps(whole, &ranges) {
                    let (page, pages) = (PageId(gap.start), gap.end - gap.start);
                    if is_reusable {
                        self.split_rests.push((page, pages));
                    } else {
                        self.freed_pages.push(queue::FreeEntry { page, pages, ..entry });
                    }
                }
            }
        }
        if missing > 0 {
            let what = format!("records of the log refer to extents of which {missing} pages are in use");
            return Err(self.engine.arena.damaged(PageId(ranges[0].start), what));
        }
        Ok(())
    }

    /// At a commit that recovery may checkpoint, puts the extents whose records are not replayed
    /// yet back into the queues.
    pub(super) fn return_unreplayed(&mut self) {
        let Some(unreplayed) = self.unreplayed.clone() else { return };
        for range in unreplayed.take_returned() {
            let entry = self.own_entry(PageId(range.start), range.end - range.start, false);
            self.freed_pages.push(entry);
        }
    }
}
