//! The pages of a running write transaction: those that it creates, and those of earlier
//! transactions that it replaces.
//!
//! - `allocate`: single pages, from the free queues or the end of the arena; the steps if neither
//!   has one
//! - `allocate_extents`: extents, and the extent directory
//! - `logged`: logged extents: writing them, and taking them over in recovery
//! - `return_freed`: the return of freed pages to the queues, at the commit
//!
//! Single pages are in four queues, according to the checkpoints and pins that may protect them
//! from reuse. The queue of a page is a hint: it lets an allocation scan a bounded number of
//! entries. Rule **I3** decides; [`crate::pages::protection`] enforces it. Extents are in one queue
//! for each size class. The ends of those queues are in a page of their own, the extent directory.
//!
//! **Recycling.** A page that is reused is written again at the next checkpoint. So the queue of
//! young pages, which is used first, has at most `YOUNG_BYTES_MAX`: updates reuse these few pages,
//! however many are free. Pages that become free beyond that are *cold*. They are used when there
//! is no young page, and none that a checkpoint has released. A transaction that takes as many
//! pages as it frees leaves the lengths of all queues unchanged. A queue consists of one page for
//! each page full of entries, and at most three more.
//!
//! **A full store.** [`crate::pages::reserve`] contains the checkpoint that a writer requests when
//! it finds no page, and the pages that are reserved for deletes.

mod allocate;
mod allocate_extents;
mod logged;
mod return_freed;

use crate::files::extent::may_be_logged;
use crate::files::page::{PageRead, PageWrite};
use crate::files::slot::{QueueState, SlotImage};
use crate::pages::extents::extent_len;
use crate::pages::protection::{Protected, Protection};
use crate::pages::queue::FreeEntry;
use crate::pages::reserve::SpaceQuota;
use crate::pages::savepoints::Savepoints;
use crate::pages::unreplayed::UnreplayedExtents;
use crate::participant::engine::Engine;
use crate::shared::memory::arena::Pages;
use crate::{PageId, Result, TxnId};
use std::ops::Range;
use std::sync::Arc;
use untorn_wal::Lsn;

/// The pages of one transaction.
pub(crate) struct Workspace<'e> {
    engine: &'e Engine,
    /// The commit that the transaction began from.
    base: SlotImage,
    /// Log position of the transaction's first record.
    log_from: Lsn,
    /// How much of the store the transaction may use, and the number of pages that it must leave,
    /// once that was computed.
    quota: SpaceQuota,
    reserved: Option<u64>,
    /// The id that the transaction will have, and the `created_txn` of its pages.
    txn: TxnId,
    protected: Protected<'e>,
    /// The state that the commit will publish.
    pub(crate) image: SlotImage,
    /// The queues of extents, once they were read, and whether they changed.
    directory: Option<Vec<QueueState>>,
    directory_changed: bool,
    /// Whether the directory is in a page of this transaction.
    has_own_directory: bool,
    /// Pages of earlier transactions that this one replaced.
    freed_pages: Vec<FreeEntry>,
    /// Pages of queues whose entries were all taken. A rollback to a savepoint does not undo that.
    consumed_queue_pages: Vec<FreeEntry>,
    /// Pages that this transaction created or took from a queue, and may use.
    free: Vec<PageId>,
    savepoints: Savepoints,
    /// A page for the pinned queue, in case the queue needs one during an allocation.
    reserved_page: Option<PageId>,
    /// Extents that this transaction created or took from a queue, and may use.
    free_extents: Vec<(PageId, u32)>,
    /// Extents of this transaction that it has freed, to which its log record may refer.
    freed_logged: Vec<(PageId, u32)>,
    /// The extents of records that recovery has not replayed yet.
    unreplayed: Option<Arc<UnreplayedExtents>>,
    /// The rests of free extents that were split. Each extent was reusable as a whole, so its rest
    /// is reusable at once.
    split_rests: Vec<(PageId, u32)>,
}

impl<'e> Workspace<'e> {
    /// Creates the workspace of the transaction after `base`. Its first record will be at
    /// `log_from` in the log. The caller holds the writer lock.
    pub(crate) fn new(engine: &'e Engine, base: SlotImage, log_from: Lsn, txn: TxnId, protection: Protection) -> Self {
        let quota = if matches!(protection, Protection::Live) { SpaceQuota::Shrinking } else { SpaceQuota::All };
        Workspace {
            engine,
            base,
            log_from,
            quota,
            reserved: None,
            txn,
            protected: Protected::new(engine, base.txn, &protection),
            image: base,
            directory: None,
            directory_changed: false,
            has_own_directory: false,
            freed_pages: Vec::new(),
            consumed_queue_pages: Vec::new(),
            free: Vec::new(),
            savepoints: Savepoints::default(),
            reserved_page: None,
            free_extents: Vec::new(),
            freed_logged: Vec::new(),
            unreplayed: match protection {
                Protection::Live => None,
                Protection::Recovery(_, unreplayed) => Some(unreplayed),
            },
            split_rests: Vec::new(),
        }
    }

    /// Sets how much of the store the transaction may use from now on.
    pub(crate) fn set_quota(&mut self, quota: SpaceQuota) {
        self.quota = quota;
        self.reserved = None;
    }

    /// Takes the quota of a growing transaction, if the transaction has only deleted so far.
    pub(crate) fn grow(&mut self) {
        if self.quota == SpaceQuota::Shrinking {
            self.set_quota(SpaceQuota::Growing);
        }
    }

    /// Reads which checkpoints were started or finished during the transaction.
    ///
    /// From here on, queue pages that such a checkpoint contains are sealed. Entries that the
    /// transaction appended to them lie after the end that the checkpoint records, and stay there.
    ///
    /// # Errors
    /// As [`Protected::refresh`].
    pub(crate) fn refresh(&mut self) -> Result<()> {
        self.protected.refresh()
    }

    /// Returns the pages as the transaction sees them.
    pub(crate) fn pages(&self) -> Pages<'e> {
        self.engine.arena.pages(self.image.high_water)
    }

    /// Makes a savepoint of the trees' pages.
    pub(crate) fn savepoint(&mut self) {
        self.savepoints.add(self.freed_pages.len());
    }

    /// Returns the trees' pages to their state at savepoint number `depth`, counted from 0; see
    /// [`crate::pages::savepoints`]. If `is_cut`, the log record refers to no value that was put
    /// after the savepoint.
    pub(crate) fn roll_back_to(&mut self, depth: usize, is_cut: bool) {
        let undone = self.savepoints.roll_back_to(depth);
        self.freed_pages.truncate(undone.replaced);
        for (page, pages) in undone.free {
            if is_cut { self.reuse(page, pages) } else { self.reuse_unless_logged(page, pages) }
        }
    }

    /// Makes a page or extent of this transaction available to it again.
    fn reuse(&mut self, page: PageId, pages: u32) {
        if pages == 1 {
            self.free.push(page);
        } else {
            self.free_extents.push((page, pages));
        }
    }

    /// Makes a page or extent of this transaction available to it again, unless the transaction's
    /// log record may refer to it. Then the extent keeps its bytes, so that each record refers to
    /// its own bytes, even if a frame with the record was already published.
    fn reuse_unless_logged(&mut self, page: PageId, pages: u32) {
        if may_be_logged(self.page_size(), pages) {
            self.freed_logged.push((page, pages));
        } else {
            self.reuse(page, pages);
        }
    }

    /// Records that this transaction replaced a page or extent of an earlier one.
    fn free_published(&mut self, page: PageId, pages: u32, created_txn: TxnId, is_logged: bool) {
        self.freed_pages.push(FreeEntry { page, pages, created_txn, freed_txn: self.txn, is_logged });
    }

    /// Verifies the checksum of a page, if a finished checkpoint has stored it.
    fn verify(&self, page: PageId, created_txn: TxnId) -> Result<()> {
        if created_txn > self.protected.finished() {
            return Ok(());
        }
        self.engine.arena.verify_checksum(self.pages().body_of(page, 1)?, page)
    }

    /// Verifies the checksum of a queue page before its entries are used: a wrong entry would hand
    /// out a page that is in use. Each page is verified once in a process.
    fn verify_once(&self, page: PageId, created_txn: TxnId) -> Result<()> {
        if created_txn > self.protected.finished() || self.is_checked(page, created_txn) {
            return Ok(());
        }
        self.verify(page, created_txn)?;
        self.note_checked(page, created_txn);
        Ok(())
    }
}

impl PageRead for Workspace<'_> {
    fn page_size(&self) -> usize {
        self.engine.arena.page_size()
    }

    fn body(&self, id: PageId) -> Result<&[u8]> {
        self.pages().body_of(id, 1)
    }

    fn extent(&self, id: PageId, pages: u32) -> Result<&[u8]> {
        self.pages().body_of(id, pages)
    }

    fn prefetch(&self, id: PageId) {
        self.pages().prefetch(id);
    }
}

#[allow(unsafe_code)]
impl PageWrite for Workspace<'_> {
    fn txn_id(&self) -> TxnId {
        self.txn
    }

    fn allocate(&mut self) -> Result<PageId> {
        let page = self.take_page()?;
        self.savepoints.note_allocated(page, 1);
        Ok(page)
    }

    fn allocate_extent(&mut self, pages: u32) -> Result<PageId> {
        if pages == 1 {
            return self.allocate();
        }
        let page = self.take_extent(pages)?;
        self.savepoints.note_allocated(page, extent_len(pages));
        Ok(page)
    }

    #[inline]
    fn is_own(&self, id: PageId, created_txn: TxnId) -> bool {
        created_txn == self.txn && self.savepoints.is_own(id)
    }

    fn free(&mut self, id: PageId, pages: u32, created_txn: TxnId) {
        let is_logged = may_be_logged(self.page_size(), pages);
        let pages = if pages == 1 { 1 } else { extent_len(pages) };
        if created_txn != self.txn {
            self.free_published(id, pages, created_txn, is_logged);
        } else if !self.savepoints.retain(id, pages) {
            self.reuse_unless_logged(id, pages);
        }
    }

    #[inline]
    fn body_mut(&mut self, id: PageId) -> Result<&mut [u8]> {
        self.pages().check(id, 1)?;
        // SAFETY: the tree calls this only for pages that this transaction created. No other
        // process or thread reaches them before the publication; `&mut self` excludes other
        // references of this transaction.
        unsafe { self.engine.arena.body_mut(id, 1) }
    }

    fn extent_mut(&mut self, id: PageId, pages: u32) -> Result<&mut [u8]> {
        self.pages().check(id, pages)?;
        // SAFETY: as in `body_mut`.
        unsafe { self.engine.arena.body_mut(id, pages) }
    }

    fn check(&self, id: PageId, created_txn: TxnId) -> Result<()> {
        self.verify(id, created_txn)
    }

    fn copy_page(&mut self, from: PageId, to: PageId, unused: Range<usize>) -> Result<()> {
        let pages = self.pages();
        let source = pages.body_of(from, 1)?;
        pages.check(to, 1)?;
        if unused.start > unused.end || unused.end > source.len() {
            return Err(self.engine.arena.damaged(from, format!("free space at {unused:?}")));
        }
        // SAFETY: as in `body_mut`. The two pages differ, since `to` was free and `from` is in use.
        let target = unsafe { self.engine.arena.body_mut(to, 1) }?;
        target[..unused.start].copy_from_slice(&source[..unused.start]);
        target[unused.end..].copy_from_slice(&source[unused.end..]);
        Ok(())
    }

    #[inline]
    fn is_checked(&self, id: PageId, created_txn: TxnId) -> bool {
        self.engine.checked_pages.contains(id, created_txn)
    }

    #[inline]
    fn note_checked(&self, id: PageId, created_txn: TxnId) {
        self.engine.checked_pages.note(id, created_txn);
    }
}
