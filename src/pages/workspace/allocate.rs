//! Allocation of single pages: from the rest of a split extent, from the free queues, or at the end
//! of the arena.
//!
//! An allocation scans a bounded number of entries. If it finds no page and the arena can't grow,
//! it scans more entries; after that it requests a checkpoint ([`crate::pages::reserve`]), which
//! releases the pages that only the last checkpoint protects.

use super::Workspace;
use crate::files::page::{PageKind, queue_capacity};
use crate::files::slot::{QueueKind, QueueState};
use crate::pages::queue::FreeEntry;
use crate::pages::reserve::{Shortage, SpaceQuota};
use crate::pages::{queue, reserve};
use crate::{Error, LimitKind, PageId, Result};

/// The number of entries that one allocation scans in one queue.
pub(super) const QUEUE_SCAN_LIMIT: u32 = 8;
/// The number of entries that an allocation scans in each queue before the transaction fails.
const THOROUGH_SCAN_LIMIT: u32 = 512;

impl Workspace<'_> {
    /// Takes a page. Its content is undefined.
    pub(super) fn take_page(&mut self) -> Result<PageId> {
        if let Some(page) = self.free.pop() {
            return Ok(page);
        }
        self.ensure_reserve(1)?;
        loop {
            if let Some(page) = self.find_page()? {
                return Ok(page);
            }
            match self.extend(1) {
                Err(full) if self.free_space(&full)? => {}
                extended => return extended.map_err(|full| self.explain(full)),
            }
        }
    }

    /// Takes a free page that may be reused, if a bounded scan finds one.
    fn find_page(&mut self) -> Result<Option<PageId>> {
        if let Some(page) = self.take_split_rest(1) {
            return Ok(Some(page));
        }
        self.reserve_page()?;
        let scan_limit = self.scan_limit();
        for kind in [QueueKind::Young, QueueKind::Checkpoint, QueueKind::Cold] {
            if let Some(page) = self.take_from(kind, scan_limit)? {
                return Ok(Some(page));
            }
        }
        if let Some(page) = self.scan_pinned(scan_limit)? {
            return Ok(Some(page));
        }
        self.split_any_extent()
    }

    /// Returns how many entries of each queue to scan.
    fn scan_limit(&self) -> u32 {
        if self.protected.is_thorough() { THOROUGH_SCAN_LIMIT } else { QUEUE_SCAN_LIMIT }
    }

    /// Takes pages from the rest of an extent that this transaction has split.
    pub(super) fn take_split_rest(&mut self, pages: u32) -> Option<PageId> {
        let at = self.split_rests.iter().rposition(|(_, left)| *left >= pages)?;
        let (page, left) = self.split_rests[at];
        if left == pages {
            self.split_rests.swap_remove(at);
        } else {
            self.split_rests[at] = (PageId(page.0 + pages), left - pages);
        }
        Some(page)
    }

    /// Checks that the pages which this transaction must leave to others exist after it has taken
    /// `pages`. These pages are free, or are at the end of the arena and backed by blocks.
    ///
    /// Free pages that only the last checkpoint protects count, since another checkpoint releases
    /// them. Pinned pages do not count.
    pub(super) fn ensure_reserve(&mut self, pages: u32) -> Result<()> {
        let page_size = self.engine.arena.page_size();
        let left = *self.reserved.get_or_insert_with(|| {
            let most = self.engine.arena.max_size() / page_size as u64;
            self.quota.reserved_pages(page_size, self.image.high_water, most)
        });
        if left == 0 {
            return Ok(());
        }
        let pinned = self.image.queues[QueueKind::Pinned as usize].count;
        let end = |held: u64, work: &Self| {
            let split_rests: u64 = work.split_rests.iter().map(|(_, pages)| u64::from(*pages)).sum();
            let free = (work.image.free_pages + split_rests).saturating_sub(held);
            let end = (u64::from(work.image.high_water) + u64::from(pages) + left).saturating_sub(free);
            end * page_size as u64
        };
        let bytes = end(pinned, self);
        let backed = self.engine.control.arena_bytes().unwrap_or(0);
        if bytes <= backed {
            return Ok(());
        }
        let Err(full) = self.ensure_backed(bytes) else { return Ok(()) };
        // Each page in the pinned queue was pinned when a scan moved it there. Most of those pins
        // may have ended since. The logger's own pins advance when all commits are durable, as they
        // are after a checkpoint.
        while end(0, self) <= backed {
            let held = reserve::count_pinned(&self.pages(), &self.engine.arena, &self.base, self.protected.pins()?)?;
            if end(held, self) <= backed {
                return Ok(());
            }
            if !self.free_space(&full)? {
                break;
            }
        }
        Err(self.explain(full))
    }

    /// Takes the next step to find a page after the error `full`. The first step scans more
    /// entries, the second checkpoints the commit that the transaction began from. Returns false if
    /// no step is left.
    pub(super) fn free_space(&mut self, full: &Error) -> Result<bool> {
        if !reserve::is_full(full) {
            return Ok(false);
        }
        if self.protected.become_thorough() {
            return Ok(true);
        }
        // Recovery has only the checkpoint that it began from.
        if self.quota == SpaceQuota::All {
            return Ok(false);
        }
        let is_made = reserve::checkpoint(self.engine, &self.base, self.log_from, Shortage::Pages)?;
        self.refresh()?;
        Ok(is_made)
    }

    /// Returns the error for `full`. If one snapshot pins most of the free pages, the error
    /// describes it.
    pub(super) fn explain(&self, full: Error) -> Error {
        if !reserve::is_full(&full) || self.quota == SpaceQuota::All {
            return full;
        }
        reserve::pinning_snapshot(self.engine, &self.base).unwrap_or(None).map_or(full, |what| Error::DiskFull { what })
    }

    /// Reserves a page for the pinned queue, if the queue may need one soon. A later scan may move
    /// entries there while no page at the head of a queue is reusable, so the page is taken
    /// beforehand.
    fn reserve_page(&mut self) -> Result<()> {
        let pinned = self.image.queues[QueueKind::Pinned as usize];
        let room = queue_capacity(self.engine.arena.page_size()).saturating_sub(pinned.tail_index);
        if self.reserved_page.is_some()
            || pinned.tail.is_none()
            || (room > 3 * QUEUE_SCAN_LIMIT && !self.needs_next_page(&pinned)?)
        {
            return Ok(());
        }
        let kinds = [QueueKind::Young, QueueKind::Checkpoint, QueueKind::Cold, QueueKind::Pinned];
        self.reserved_page = self.take_a_head(&kinds)?;
        Ok(())
    }

    /// Takes the page at the head of one of these queues, if one is reusable, without moving any
    /// entry.
    fn take_a_head(&mut self, kinds: &[QueueKind]) -> Result<Option<PageId>> {
        for kind in kinds.iter().map(|kind| *kind as usize) {
            let mut state = self.image.queues[kind];
            let Some(entry) = self.peek(&mut state)? else { continue };
            // Even if the entry can't be taken, the head may have advanced.
            self.image.queues[kind] = state;
            if self.protected.is_reusable(&entry)? {
                self.skip(&mut state);
                self.image.queues[kind] = state;
                self.image.free_pages = self.image.free_pages.saturating_sub(1);
                return Ok(Some(entry.page));
            }
        }
        Ok(None)
    }

    /// Takes the first reusable page of a queue. Entries that a pin protects move to the pinned
    /// queue.
    fn take_from(&mut self, kind: QueueKind, scan_limit: u32) -> Result<Option<PageId>> {
        for _ in 0..scan_limit {
            let mut state = self.image.queues[kind as usize];
            let Some(entry) = self.peek(&mut state)? else { break };
            self.image.queues[kind as usize] = state;
            // Entries are in the order in which they were freed. If this entry waits for its
            // commit, for a checkpoint or for a scan of the pins, so do the entries after it.
            let is_reusable = self.protected.is_reusable(&entry)?;
            if !is_reusable && self.protected.waits(&entry) {
                break;
            }
            self.skip(&mut state);
            self.image.queues[kind as usize] = state;
            self.image.free_pages = self.image.free_pages.saturating_sub(1);
            if is_reusable {
                return Ok(Some(entry.page));
            }
            self.push(QueueKind::Pinned, entry)?;
        }
        Ok(None)
    }

    /// Rotates the pinned queue: takes the first reusable page, and appends the others again.
    pub(super) fn scan_pinned(&mut self, scan_limit: u32) -> Result<Option<PageId>> {
        let kind = QueueKind::Pinned as usize;
        for _ in 0..scan_limit.min(self.image.queues[kind].count as u32) {
            let mut state = self.image.queues[kind];
            let Some(entry) = self.peek(&mut state)? else { break };
            self.skip(&mut state);
            self.image.queues[kind] = state;
            self.image.free_pages = self.image.free_pages.saturating_sub(1);
            if self.protected.is_reusable(&entry)? {
                return Ok(Some(entry.page));
            }
            self.push(QueueKind::Pinned, entry)?;
        }
        Ok(None)
    }

    /// Returns the first entry of a queue. Moves the head to the next page if all entries of its
    /// page are taken.
    pub(super) fn peek(&mut self, state: &mut QueueState) -> Result<Option<FreeEntry>> {
        if state.count == 0 {
            return Ok(None);
        }
        let pages = self.pages();
        loop {
            let header = pages.expect(state.head, PageKind::FreeQueue)?;
            self.verify_once(state.head, header.created_txn)?;
            if state.head == state.tail || state.head_index < queue::sealed_count(&pages, &header)? {
                return queue::read_entry(&pages, &self.engine.arena, state.head, state.head_index).map(Some);
            }
            // The old head is freed like any other page, since the checkpoint may contain it.
            state.head = queue::next_page(&pages, &self.engine.arena, &header)?;
            state.head_index = 0;
            self.consumed_queue_pages.push(FreeEntry {
                page: header.page,
                pages: 1,
                created_txn: header.created_txn,
                freed_txn: self.txn,
                is_logged: false,
            });
        }
    }

    /// Removes the entry that [`Workspace::peek`] returned.
    pub(super) fn skip(&mut self, state: &mut QueueState) {
        state.head_index += 1;
        state.count -= 1;
    }

    /// Grows the arena's used part by `pages`.
    pub(super) fn extend(&mut self, pages: u32) -> Result<PageId> {
        let page_size = self.engine.arena.page_size() as u64;
        let first = self.image.high_water;
        let end = u64::from(first) + u64::from(pages);
        self.ensure_backed(end * page_size)?;
        self.image.high_water = end as u32;
        Ok(PageId(first))
    }

    /// Grows the file so that its first `bytes` are backed by blocks.
    fn ensure_backed(&self, bytes: u64) -> Result<()> {
        let limit = self.engine.arena.max_size().min(u64::from(u32::MAX) * self.engine.arena.page_size() as u64);
        if bytes > limit {
            return Err(Error::Limit { what: LimitKind::StoreSize, found: bytes, limit });
        }
        self.engine.ensure_arena(bytes)
    }

    /// Takes a page for a queue, without moving entries between queues where possible.
    pub(super) fn queue_page(&mut self) -> Result<PageId> {
        if let Some(page) = self.free.pop().or_else(|| self.reserved_page.take()) {
            return Ok(page);
        }
        loop {
            if let Some(page) = self.take_split_rest(1) {
                return Ok(page);
            }
            if let Some(page) = self.take_a_head(&[QueueKind::Young, QueueKind::Checkpoint, QueueKind::Cold])? {
                return Ok(page);
            }
            match self.extend(1) {
                Err(full) if self.free_space(&full)? => {}
                extended => return extended.map_err(|full| self.explain(full)),
            }
        }
    }
}
