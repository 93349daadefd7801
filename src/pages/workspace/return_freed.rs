//! The return of freed pages to the free queues, as the last step of a commit before its image is
//! published.
//!
//! Entries are appended after the published end of a queue, so a writer that dies has returned no
//! page. An append may need a page for the queue itself. That page comes from the queues as well.

use super::Workspace;
use crate::files::page::{PageKind, queue_capacity};
use crate::files::slot::{QueueKind, QueueState};
use crate::pages::extents::class_of;
use crate::pages::queue;
use crate::pages::queue::FreeEntry;
use crate::{PageId, Result};

/// The number of entries of the pinned queue that each commit checks.
const PINNED_SCAN_LIMIT: u32 = 4;
/// The limit of the total size of young pages in bytes. Pages that become free beyond it are cold.
const YOUNG_BYTES_MAX: usize = 1 << 20;
/// The limit of young pages is at least this number, whatever the page size: enough that briefly
/// pinned pages do not exhaust the queue.
const YOUNG_PAGES_MIN: usize = 64;

/// The pages that a queue needs for an entry that does not fit its last page.
struct NewTail {
    /// The queue's first page, if the queue has no page yet.
    first: Option<PageId>,
    /// The page that is reserved to follow the page of the entry.
    next: PageId,
}

impl Workspace<'_> {
    /// Returns all freed pages to the queues. The image is final after this.
    pub(crate) fn return_freed(&mut self) -> Result<()> {
        self.savepoints.end().into_iter().for_each(|(page, pages)| self.reuse_unless_logged(page, pages));
        self.return_unreplayed();
        // Rotating the pinned queue by a few entries in each commit finds pages that are no longer
        // pinned.
        if self.image.queues[QueueKind::Pinned as usize].count > 0 {
            for _ in 0..PINNED_SCAN_LIMIT {
                match self.scan_pinned(1)? {
                    Some(page) => self.free.push(page),
                    None => continue,
                }
            }
        }
        loop {
            self.prepare_directory()?;
            self.requeue_all()?;
            // A queue's own next page may have been split from an extent. Then the directory
            // changes after all. The loop then gives it a page of this transaction, since the page
            // that the checkpoint and the last commit contain must not change.
            if !self.directory_changed || self.has_own_directory {
                break;
            }
        }
        self.write_directory()
    }

    fn requeue_all(&mut self) -> Result<()> {
        loop {
            if let Some(entry) = self.freed_pages.pop().or_else(|| self.consumed_queue_pages.pop()) {
                self.requeue(entry)?;
            } else if let Some((page, pages)) = self.free_extents.pop().or_else(|| self.split_rests.pop()) {
                self.requeue(self.own_entry(page, pages, false))?;
            } else if let Some((page, pages)) = self.freed_logged.pop() {
                self.requeue(self.own_entry(page, pages, true))?;
            } else if let Some(page) = self.free.pop().or_else(|| self.reserved_page.take()) {
                self.requeue(self.own_entry(page, 1, false))?;
            } else {
                return Ok(());
            }
        }
    }

    /// Returns the queue entry of pages that no earlier transaction uses.
    pub(super) fn own_entry(&self, page: PageId, pages: u32, is_logged: bool) -> FreeEntry {
        FreeEntry { page, pages, created_txn: self.txn, freed_txn: self.txn, is_logged }
    }

    fn requeue(&mut self, entry: FreeEntry) -> Result<()> {
        if entry.pages > 1 {
            return self.push_extent(class_of(entry.pages), entry);
        }
        self.push(self.kind_for(&entry), entry)
    }

    fn kind_for(&self, entry: &FreeEntry) -> QueueKind {
        let young_max = (YOUNG_BYTES_MAX / self.engine.arena.page_size()).max(YOUNG_PAGES_MIN) as u64;
        match self.protected.is_in_checkpoint(entry.created_txn) {
            true => QueueKind::Checkpoint,
            false if self.image.queues[QueueKind::Young as usize].count < young_max => QueueKind::Young,
            false => QueueKind::Cold,
        }
    }

    /// Appends an entry to a queue of single pages.
    pub(super) fn push(&mut self, kind: QueueKind, entry: FreeEntry) -> Result<()> {
        // The search for a page may itself append to the pinned queue.
        let may_scan = kind != QueueKind::Pinned;
        let page = self.page_to_append(self.image.queues[kind as usize], may_scan)?;
        let state = self.image.queues[kind as usize];
        self.image.queues[kind as usize] = self.append(state, entry, page)?;
        self.image.free_pages += 1;
        Ok(())
    }

    pub(super) fn push_extent(&mut self, class: usize, entry: FreeEntry) -> Result<()> {
        let state = self.directory()?[class];
        let page = self.page_to_append(state, true)?;
        // The search for that page may have split an extent of this very queue.
        let state = self.directory()?[class];
        let state = self.append(state, entry, page)?;
        self.directory()?[class] = state;
        self.directory_changed = true;
        self.image.free_pages += u64::from(entry.pages);
        Ok(())
    }

    /// Returns whether the next entry of a queue goes to a page after its tail. A page that the
    /// started checkpoint contains is sealed.
    pub(super) fn needs_next_page(&self, state: &QueueState) -> Result<bool> {
        let tail = self.pages().expect(state.tail, PageKind::FreeQueue)?;
        let capacity = queue_capacity(self.engine.arena.page_size());
        let sealed = tail.created_txn <= self.protected.started() && !planted_bug!("append-to-sealed-tail");
        Ok(sealed || state.tail_index >= capacity)
    }

    /// Takes the pages that the next append to this queue needs, if any. If `may_scan`, these pages
    /// come from any queue; otherwise from the heads of the other queues where possible. If queues
    /// took their pages from the end of the arena, and freed their consumed pages, the arena would
    /// grow without end. Must not be called in the middle of a change of a queue, since it may
    /// change any queue.
    fn page_to_append(&mut self, state: QueueState, may_scan: bool) -> Result<Option<NewTail>> {
        if !state.tail.is_none() && !self.needs_next_page(&state)? {
            return Ok(None);
        }
        let mut take = || if may_scan { self.take_page() } else { self.queue_page() };
        let first = if state.tail.is_none() { Some(take()?) } else { None };
        Ok(Some(NewTail { first, next: take()? }))
    }

    /// Appends an entry after the published end; `new` is the result of
    /// [`Workspace::page_to_append`]. The search for those pages appended to no queue but the
    /// pinned one, for which pages are taken without a scan.
    fn append(&mut self, mut state: QueueState, entry: FreeEntry, new: Option<NewTail>) -> Result<QueueState> {
        if let Some(NewTail { first, next }) = new {
            let (page, previous_count) = match first {
                Some(first) => {
                    state.head = first;
                    state.head_index = 0;
                    (first, 0)
                }
                None => (self.pages().expect(state.tail, PageKind::FreeQueue)?.link, state.tail_index),
            };
            self.pages().check(page, 1)?;
            self.format_queue_page(page, next, previous_count)?;
            state.tail = page;
            state.tail_index = 0;
        }
        queue::write_entry(&self.engine.arena, state.tail, state.tail_index, entry)?;
        state.tail_index += 1;
        state.count += 1;
        Ok(state)
    }

    #[allow(unsafe_code)]
    fn format_queue_page(&mut self, page: PageId, next: PageId, previous_count: u32) -> Result<()> {
        let arena = &self.engine.arena;
        // SAFETY: the page was reserved for this queue, and no reader reaches it before the
        // publication.
        let body = unsafe { arena.body_mut(page, 1) }?;
        queue::format_page(body, page, self.txn, next, previous_count);
        Ok(())
    }
}
