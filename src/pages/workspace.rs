//! The pages of a running write transaction: allocation, reuse, and the giving back of what it replaced.
//!
//! **I3**, the reuse rule, is kept in [`crate::pages::protection`].
//!
//! Single pages stand in four queues by what may hold them: which one is a hint that lets allocation
//! look at a bounded few entries. Extents stand in one queue for each size class; the heads and tails of
//! those are kept in a page of their own, the extent directory.
//!
//! **What is recycled.** A page that is reused is written at the next checkpoint. So the queue of young pages, which
//! is used first, holds no more than [`YOUNG_BYTES_MAX`]: updates go round these few pages, however many are free. What is freed
//! beyond that is *cold*, and used when neither a young page nor one that a checkpoint has let go can be had. A transaction that
//! takes as many pages as it frees leaves the lengths of all queues as they are; a queue consists of one page for each page
//! full of entries, and three more at most.
//!
//! **A full store.** What to do when no page can be had, and which pages are left to deletes, is in [`crate::pages::reserve`].

use crate::files::page::PageKind;
use crate::files::page::{PageRead, PageWrite};
use crate::files::page::{queue_capacity, set_identity};
use crate::files::slot::{QueueKind, QueueState, SlotImage};
use crate::pages::extents;
use crate::pages::extents::{CLASSES, class_for, class_of, extent_len, read_directory};
use crate::pages::protection::{Protected, Protection};
use crate::pages::queue;
use crate::pages::queue::FreeEntry;
use crate::pages::reserve;
use crate::pages::reserve::{Shortage, SpaceQuota};
use crate::pages::savepoints::Savepoints;
use crate::participant::engine::Engine;
use crate::shared::memory::arena::Pages;
use crate::{Error, LimitKind, PageId, Result, TxnId};
use std::collections::HashSet;
use untorn_wal::Lsn;

/// Queue entries that one allocation looks at in one queue before it goes on elsewhere.
const QUEUE_SCAN_LIMIT: u32 = 8;
/// Entries of the pinned queue that each commit looks at, going round.
const PINNED_SCAN_LIMIT: u32 = 4;
/// Entries that are looked at in each queue before a transaction fails.
const THOROUGH_SCAN_LIMIT: u32 = 512;
/// Bytes in young pages beyond which pages that become free are cold.
const YOUNG_BYTES_MAX: usize = 1 << 20;
/// Young pages that are recycled however large they are: as many as pins may hold for a moment.
const YOUNG_PAGES_MIN: usize = 64;

/// The pages of one transaction.
pub(crate) struct Workspace<'e> {
    engine: &'e Engine,
    /// What the transaction began from.
    base: SlotImage,
    /// Where the log holds the transaction's first record.
    log_from: Lsn,
    /// How much of the space the transaction may use, and the pages that it leaves, once that was asked.
    quota: SpaceQuota,
    reserved: Option<u64>,
    /// The id that the transaction will have; pages born in it carry it.
    txn: TxnId,
    protected: Protected<'e>,
    /// The state that the commit will publish.
    pub(crate) image: SlotImage,
    /// The queues of extents, once they were needed, and whether they changed.
    directory: Option<Vec<QueueState>>,
    directory_changed: bool,
    /// The directory has a page of this transaction's own.
    has_own_directory: bool,
    /// What this transaction replaced.
    freed_pages: Vec<FreeEntry>,
    /// Pages of queues that were used up. No rollback takes them back.
    consumed_queue_pages: Vec<FreeEntry>,
    /// Pages born in this transaction, or taken from a queue, that it may use (again).
    free: Vec<PageId>,
    savepoints: Savepoints,
    /// A page for the pinned queue, should that need one while pages are looked for.
    reserved_page: Option<PageId>,
    free_extents: Vec<(PageId, u32)>,
    /// What is left of free extents that were broken. Each extent was reusable as a whole, so its rest is reusable at once.
    split_rests: Vec<(PageId, u32)>,
    /// Queue pages that were held against their checksums.
    verified: HashSet<PageId>,
}

/// The pages that an entry needs which does not fit a queue's last page.
struct NewTail {
    /// The queue's first page, if it has none.
    first: Option<PageId>,
    /// The page that is reserved to follow the one that the entry goes to.
    next: PageId,
}

impl<'e> Workspace<'e> {
    /// The workspace of the transaction after `base`, whose first record the log will hold at `log_from`. The caller holds the
    /// writer lock.
    pub(crate) fn new(engine: &'e Engine, base: SlotImage, log_from: Lsn, txn: TxnId, protection: Protection) -> Self {
        let quota = if matches!(protection, Protection::Live) { SpaceQuota::Shrinking } else { SpaceQuota::All };
        Workspace {
            engine,
            base,
            log_from,
            quota,
            reserved: None,
            txn,
            protected: Protected::new(engine, base.txn, protection),
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
            split_rests: Vec::new(),
            verified: HashSet::new(),
        }
    }

    /// Sets how much of the space the transaction may use from now on.
    pub(crate) fn set_quota(&mut self, quota: SpaceQuota) {
        self.quota = quota;
        self.reserved = None;
    }

    /// As [`Workspace::set_quota`], if the transaction has done nothing yet that makes the store larger and is to do so now.
    pub(crate) fn grow(&mut self) {
        if self.quota == SpaceQuota::Shrinking {
            self.set_quota(SpaceQuota::Growing);
        }
    }

    /// Takes note of a checkpoint that was started or finished during the transaction.
    ///
    /// Queue pages that were filled in place until now are sealed from here on, if the checkpoint contains them. What the transaction
    /// put there stands behind the end that the checkpoint knows, and stays as it is.
    ///
    /// # Errors
    /// As [`Protected::refresh`].
    pub(crate) fn refresh(&mut self) -> Result<()> {
        self.protected.refresh()
    }

    /// The pages as the transaction sees them.
    pub(crate) fn pages(&self) -> Pages<'e> {
        self.engine.arena.pages(self.image.high_water)
    }

    // ---- taking

    /// A page for one use: its content is undefined.
    fn take_page(&mut self) -> Result<PageId> {
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

    /// A free page that can be reused, if a few looks find one.
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

    fn scan_limit(&self) -> u32 {
        if self.protected.is_thorough() { THOROUGH_SCAN_LIMIT } else { QUEUE_SCAN_LIMIT }
    }

    /// Takes pages from what is left of an extent that this transaction has broken.
    fn take_split_rest(&mut self, pages: u32) -> Option<PageId> {
        let at = self.split_rests.iter().rposition(|(_, left)| *left >= pages)?;
        let (page, left) = self.split_rests[at];
        if left == pages {
            self.split_rests.swap_remove(at);
        } else {
            self.split_rests[at] = (PageId(page.0 + pages), left - pages);
        }
        Some(page)
    }

    // ---- a full store

    /// Sees to it that what the transaction has to leave to others is there after it has taken so many pages: free, or at the end of
    /// the arena and backed by blocks.
    ///
    /// Free pages that the last checkpoint holds count, since another one sets them free. Those that pins hold don't.
    fn ensure_reserve(&mut self, pages: u32) -> Result<()> {
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
        // What stands in the queue of pinned pages was found held once. Most of those pins may have ended since; the logger's own move
        // on when all is durable, as it is after a checkpoint.
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

    /// After `full`, does what can be done for a page to be found: look at more entries, then have a checkpoint taken of what the
    /// transaction began from. False if nothing is left to do.
    fn free_space(&mut self, full: &Error) -> Result<bool> {
        if !reserve::is_full(full) {
            return Ok(false);
        }
        if self.protected.become_thorough() {
            return Ok(true);
        }
        // In recovery nobody takes checkpoints, and nothing but the one that it began from holds anything.
        if self.quota == SpaceQuota::All {
            return Ok(false);
        }
        let is_made = reserve::checkpoint(self.engine, &self.base, self.log_from, Shortage::Pages)?;
        self.refresh()?;
        Ok(is_made)
    }

    /// The error that is returned in place of `full`: one that names the snapshot that holds most of the free pages, if any does.
    fn explain(&self, full: Error) -> Error {
        if !reserve::is_full(&full) || self.quota == SpaceQuota::All {
            return full;
        }
        reserve::pinning_snapshot(self.engine, &self.base).unwrap_or(None).map_or(full, |what| Error::DiskFull { what })
    }

    /// The looks that follow may move entries to the pinned queue just while none can be reused that stands at the head
    /// of a queue. The page that this may need is taken as soon as one can be had.
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

    /// Takes the page at the head of one of these queues, if one can be reused, without moving any entry.
    fn take_a_head(&mut self, kinds: &[QueueKind]) -> Result<Option<PageId>> {
        for kind in kinds.iter().map(|kind| *kind as usize) {
            let mut state = self.image.queues[kind];
            let Some(entry) = self.peek(&mut state)? else { continue };
            // Also if the entry can't be taken: the head may have moved on.
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

    /// Takes the first reusable page of a queue; entries that a pin holds move to the pinned queue.
    fn take_from(&mut self, kind: QueueKind, scan_limit: u32) -> Result<Option<PageId>> {
        for _ in 0..scan_limit {
            let mut state = self.image.queues[kind as usize];
            let Some(entry) = self.peek(&mut state)? else { break };
            self.image.queues[kind as usize] = state;
            // Entries stand in the order in which they were freed: if this one waits for its commit, for
            // a checkpoint or for a scan, those behind it do as well.
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

    /// Goes round the pinned queue: takes the first reusable page, appends the others again.
    fn scan_pinned(&mut self, scan_limit: u32) -> Result<Option<PageId>> {
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

    /// The next entry of a queue; steps to the next page if the head page is used up.
    fn peek(&mut self, state: &mut QueueState) -> Result<Option<FreeEntry>> {
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
            // The used-up page is freed like any other; the checkpoint may still contain it.
            state.head = queue::next_page(&pages, &self.engine.arena, &header)?;
            state.head_index = 0;
            self.consumed_queue_pages.push(FreeEntry {
                page: header.page,
                pages: 1,
                created_txn: header.created_txn,
                freed_txn: self.txn,
            });
        }
    }

    fn skip(&mut self, state: &mut QueueState) {
        state.head_index += 1;
        state.count -= 1;
    }

    /// Grows the arena's used part by `pages`.
    fn extend(&mut self, pages: u32) -> Result<PageId> {
        let page_size = self.engine.arena.page_size() as u64;
        let first = self.image.high_water;
        let end = u64::from(first) + u64::from(pages);
        self.ensure_backed(end * page_size)?;
        self.image.high_water = end as u32;
        Ok(PageId(first))
    }

    /// Sees to it that the first `bytes` of the arena are backed by blocks.
    fn ensure_backed(&self, bytes: u64) -> Result<()> {
        let limit = self.engine.arena.max_size().min(u64::from(u32::MAX) * self.engine.arena.page_size() as u64);
        if bytes > limit {
            return Err(Error::Limit { what: LimitKind::StoreSize, found: bytes, limit });
        }
        self.engine.ensure_arena(bytes)
    }

    // ---- extents

    fn directory(&mut self) -> Result<&mut Vec<QueueState>> {
        if self.directory.is_none() {
            let mut queues = vec![QueueState::default(); CLASSES.len()];
            if !self.image.extent_directory.is_none() {
                let page = self.image.extent_directory;
                self.verify(page, self.pages().created_txn(page)?)?;
                read_directory(&self.pages(), page, &mut queues)?;
            }
            self.directory = Some(queues);
        }
        Ok(self.directory.as_mut().expect("just made"))
    }

    /// An extent of at least `pages` pages: as many as its size class says.
    fn take_extent(&mut self, pages: u32) -> Result<PageId> {
        let class = class_for(pages)?;
        let len = CLASSES[class];
        if let Some(at) = self.free_extents.iter().position(|(_, free)| *free == len) {
            return Ok(self.free_extents.swap_remove(at).0);
        }
        self.ensure_reserve(len)?;
        loop {
            if let Some(page) = self.take_split_rest(len) {
                return Ok(page);
            }
            if let Some(page) = self.find_extent(class)? {
                return Ok(page);
            }
            // An extent is split for a shorter one only when nothing else is left, so that long ones stay.
            if self.protected.is_thorough()
                && let Some(page) = self.split_extent(class + 1, len)?
            {
                return Ok(page);
            }
            match self.extend(len) {
                Err(full) if self.free_space(&full)? => {}
                extended => return extended.map_err(|full| self.explain(full)),
            }
        }
    }

    /// A free extent of this class that can be reused, if a few looks find one.
    fn find_extent(&mut self, class: usize) -> Result<Option<PageId>> {
        let len = CLASSES[class];
        for _ in 0..QUEUE_SCAN_LIMIT {
            let mut state = self.directory()?[class];
            let Some(entry) = self.peek(&mut state)? else { break };
            self.skip(&mut state);
            self.directory()?[class] = state;
            self.directory_changed = true;
            self.image.free_pages = self.image.free_pages.saturating_sub(u64::from(entry.pages));
            if !self.protected.is_reusable(&entry)? {
                self.push_extent(class, entry)?;
                continue;
            }
            if entry.pages < len {
                return Err(self.engine.arena.damaged(entry.page, "a free extent is shorter than its class"));
            }
            if entry.pages > len {
                self.split_rests.push((PageId(entry.page.0 + len), entry.pages - len));
            }
            return Ok(Some(entry.page));
        }
        Ok(None)
    }

    /// Takes a page from a free extent, so that space once used by large values serves small ones.
    fn split_any_extent(&mut self) -> Result<Option<PageId>> {
        if self.image.extent_directory.is_none() && self.directory.is_none() {
            return Ok(None);
        }
        self.split_extent(0, 1)
    }

    /// Takes pages from a free extent of this class or a longer one, if the first of a queue can be reused. What is left of it
    /// serves the same transaction.
    ///
    /// **I3** The extent is reusable as a whole or not at all; so what is left of it is, from now on, and when the transaction is
    /// rolled back the whole extent is in its queue as before.
    fn split_extent(&mut self, least: usize, pages: u32) -> Result<Option<PageId>> {
        let classes = self.directory()?.len();
        for class in least..classes {
            let mut state = self.directory()?[class];
            let Some(entry) = self.peek(&mut state)? else { continue };
            let reusable = self.protected.is_reusable(&entry)?;
            if reusable {
                self.skip(&mut state);
            }
            self.directory_changed |= state != self.directory()?[class];
            self.directory()?[class] = state;
            if !reusable {
                continue;
            }
            self.image.free_pages = self.image.free_pages.saturating_sub(u64::from(entry.pages));
            if entry.pages < pages {
                return Err(self.engine.arena.damaged(entry.page, "a free extent is shorter than its class"));
            }
            if entry.pages > pages {
                self.split_rests.push((PageId(entry.page.0 + pages), entry.pages - pages));
            }
            return Ok(Some(entry.page));
        }
        Ok(None)
    }

    // ---- savepoints

    /// Makes a savepoint of the trees' pages.
    pub(crate) fn savepoint(&mut self) {
        self.savepoints.add(self.freed_pages.len());
    }

    /// Makes the trees' pages what they were at savepoint number `depth`, counted from 0; see
    /// [`crate::pages::savepoints`].
    pub(crate) fn roll_back_to(&mut self, depth: usize) {
        let undone = self.savepoints.roll_back_to(depth);
        self.freed_pages.truncate(undone.replaced);
        undone.free.into_iter().for_each(|(page, pages)| self.reuse(page, pages));
    }

    /// Takes note of a page or extent of this transaction that can be used again.
    fn reuse(&mut self, page: PageId, pages: u32) {
        if pages == 1 {
            self.free.push(page);
        } else {
            self.free_extents.push((page, pages));
        }
    }

    // ---- giving

    /// Notes that this transaction no longer uses a page or extent.
    fn free_published(&mut self, page: PageId, pages: u32, created_txn: TxnId) {
        self.freed_pages.push(FreeEntry { page, pages, created_txn, freed_txn: self.txn });
    }

    /// Appends an entry to a queue of single pages.
    fn push(&mut self, kind: QueueKind, entry: FreeEntry) -> Result<()> {
        // Looking for a page may itself append to the pinned queue.
        let scan_limit = kind != QueueKind::Pinned;
        let page = self.page_to_append(self.image.queues[kind as usize], scan_limit)?;
        let state = self.image.queues[kind as usize];
        self.image.queues[kind as usize] = self.append(state, entry, page)?;
        self.image.free_pages += 1;
        Ok(())
    }

    fn push_extent(&mut self, class: usize, entry: FreeEntry) -> Result<()> {
        let state = self.directory()?[class];
        let page = self.page_to_append(state, true)?;
        // Looking for that page may have broken an extent of this very queue.
        let state = self.directory()?[class];
        let state = self.append(state, entry, page)?;
        self.directory()?[class] = state;
        self.directory_changed = true;
        self.image.free_pages += u64::from(entry.pages);
        Ok(())
    }

    /// Whether the next entry of a queue goes to a page that follows its tail. A page that the started checkpoint
    /// contains is sealed.
    fn needs_next_page(&self, state: &QueueState) -> Result<bool> {
        let tail = self.pages().expect(state.tail, PageKind::FreeQueue)?;
        let capacity = queue_capacity(self.engine.arena.page_size());
        let sealed = tail.created_txn <= self.protected.started() && !planted_bug!("append-to-sealed-tail");
        Ok(sealed || state.tail_index >= capacity)
    }

    /// The page that appending to this queue will take, if any: one to follow the tail. It comes from where any page
    /// comes if it `scan_limit`, else from the heads of the other queues where it can, since queues that grew the arena page
    /// by page, and freed what they had used up, would grow it for ever. Called between two changes of queues, as it takes
    /// from them.
    fn page_to_append(&mut self, state: QueueState, scan_limit: bool) -> Result<Option<NewTail>> {
        if !state.tail.is_none() && !self.needs_next_page(&state)? {
            return Ok(None);
        }
        let mut take = || if scan_limit { self.take_page() } else { self.queue_page() };
        let first = if state.tail.is_none() { Some(take()?) } else { None };
        Ok(Some(NewTail { first, next: take()? }))
    }

    fn queue_page(&mut self) -> Result<PageId> {
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

    /// Appends behind the published end; `new` is what [`Workspace::page_to_append`] gave. Looking for those pages has appended to no
    /// queue but that of pinned pages, which does not look.
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
        // SAFETY: the page was reserved for this queue and nobody reads it before the publication.
        let body = unsafe { arena.body_mut(page, 1) }?;
        queue::format_page(body, page, self.txn, next, previous_count);
        Ok(())
    }

    /// Gives everything that was freed to the queues, as the last step before the image is published.
    pub(crate) fn return_freed(&mut self) -> Result<()> {
        self.savepoints.end().into_iter().for_each(|(page, pages)| self.reuse(page, pages));
        // Going round the pinned queue, a few entries a commit, releases what is no longer held.
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
            // A queue's own next page may have come out of an extent: then the directory changes after all, and must not do so
            // in the page that the checkpoint and the last commit have.
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
                self.requeue(FreeEntry { page, pages, created_txn: self.txn, freed_txn: self.txn })?;
            } else if let Some(page) = self.free.pop().or_else(|| self.reserved_page.take()) {
                self.requeue(FreeEntry { page, pages: 1, created_txn: self.txn, freed_txn: self.txn })?;
            } else {
                return Ok(());
            }
        }
    }

    fn kind_for(&self, entry: &FreeEntry) -> QueueKind {
        let young_max = (YOUNG_BYTES_MAX / self.engine.arena.page_size()).max(YOUNG_PAGES_MIN) as u64;
        match self.protected.is_in_checkpoint(entry.created_txn) {
            true => QueueKind::Checkpoint,
            false if self.image.queues[QueueKind::Young as usize].count < young_max => QueueKind::Young,
            false => QueueKind::Cold,
        }
    }

    fn requeue(&mut self, entry: FreeEntry) -> Result<()> {
        if entry.pages > 1 {
            return self.push_extent(class_of(entry.pages), entry);
        }
        self.push(self.kind_for(&entry), entry)
    }

    /// The directory is replaced like any page; its new page must be there before the queues settle.
    fn prepare_directory(&mut self) -> Result<()> {
        let has_extents =
            self.freed_pages.iter().map(|entry| entry.pages).chain(self.split_rests.iter().map(|(_, pages)| *pages));
        let changes =
            self.directory_changed || !self.free_extents.is_empty() || has_extents.into_iter().any(|pages| pages > 1);
        if !changes {
            return Ok(());
        }
        self.directory()?;
        if !self.has_own_directory {
            let old = self.image.extent_directory;
            if !old.is_none() {
                self.free_published(old, 1, self.pages().created_txn(old)?);
            }
            self.image.extent_directory = self.take_page()?;
            self.has_own_directory = true;
        }
        self.directory_changed = true;
        Ok(())
    }

    fn write_directory(&mut self) -> Result<()> {
        if !self.directory_changed {
            return Ok(());
        }
        let page = self.image.extent_directory;
        let queues = self.directory.take().expect("changed");
        let created_txn = self.txn;
        extents::format_directory(self.body_mut(page)?, page, created_txn, &queues);
        self.directory_changed = false;
        Ok(())
    }

    /// Holds a page against its checksum if that is known to be valid.
    fn verify(&self, page: PageId, created_txn: TxnId) -> Result<()> {
        if created_txn > self.protected.finished() {
            return Ok(());
        }
        self.engine.arena.verify_checksum(self.pages().body_of(page, 1)?, page)
    }

    /// Holds a queue page against its checksum before its entries are believed: a wrong one would hand out a
    /// page that is in use. Once in a transaction; a page that is verified again and again is in the cache.
    fn verify_once(&mut self, page: PageId, created_txn: TxnId) -> Result<()> {
        if created_txn > self.protected.finished() || !self.verified.insert(page) {
            return Ok(());
        }
        self.verify(page, created_txn)
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
        let pages = if pages == 1 { 1 } else { extent_len(pages) };
        if created_txn != self.txn {
            self.free_published(id, pages, created_txn);
        } else if !self.savepoints.retain(id, pages) {
            self.reuse(id, pages);
        }
    }

    #[inline]
    fn body_mut(&mut self, id: PageId) -> Result<&mut [u8]> {
        self.pages().check(id, 1)?;
        // SAFETY: the tree asks for this only for pages born in this transaction, which nobody else
        // reaches before the publication; `&mut self` keeps other references of this transaction away.
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

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<()> {
        let pages = self.pages();
        let source = pages.body_of(from, 1)?;
        pages.check(to, 1)?;
        // Damage must not be given a fresh checksum: a page is checked before it is copied.
        self.verify(from, pages.created_txn(from)?)?;
        // SAFETY: as in `body_mut`; the two pages differ, the one being free and the other in use.
        let target = unsafe { self.engine.arena.body_mut(to, 1) }?;
        target.copy_from_slice(source);
        set_identity(target, to, self.txn);
        Ok(())
    }
}
