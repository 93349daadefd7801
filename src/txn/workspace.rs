//! The pages of a running write transaction: allocation, reuse, and the giving back of what it replaced.
//!
//! **I3**, the reuse rule, is kept here, in [`Workspace::reusable`], and evaluated at each allocation: a freed page is not
//! reused while some protected transaction p (any pin, the newest started checkpoint C, the newest
//! finished checkpoint K) has birth ≤ p < freed, nor before the transaction that freed it is committed.
//! So pages younger than the last checkpoint and than a stalled reader recycle at once and stay hot in
//! the cache, whatever is pinned.
//!
//! Pins are collected once, after the writer lock was taken (and again after each commit under one
//! hold). A pin taken later is on the newest commit or is given up again (`shm::pins`), and a page
//! freed by then has freed ≤ committed, so it is never needed by that pin.
//!
//! Single pages stand in three queues by what may hold them: which one is a hint that lets allocation
//! look at a bounded few entries. Runs stand in one queue for each size class; the heads and tails of
//! those are kept in a page of their own, the run directory.

use super::queue::{self, Freed};
use super::runs::{self, CLASSES, class_for, class_of, read_directory, run_len};
use crate::engine::Engine;
use crate::page::format::{self, PageKind};
use crate::page::{PageRead, PageWrite};
use crate::shm::arena::Pages;
use crate::slot::{QueueKind, QueueState, SlotImage};
use crate::{Error, PageId, Result, TxnId};
use std::collections::HashSet;

/// Queue entries that one allocation looks at in one queue before it goes on elsewhere.
const LOOKS: u32 = 8;
/// Entries of the pinned queue that each commit looks at, going round.
const PINNED_LOOKS: u32 = 4;

/// The pages of one transaction.
pub(crate) struct Workspace<'e> {
    engine: &'e Engine,
    /// The id that the transaction will have; pages born in it carry it.
    txn: TxnId,
    committed: TxnId,
    /// C and K.
    started: TxnId,
    finished: TxnId,
    /// Pinned transactions, ascending.
    pins: Vec<TxnId>,
    /// The state that the commit will publish.
    pub(crate) image: SlotImage,
    /// The queues of runs, once they were needed, and whether they changed.
    directory: Option<Vec<QueueState>>,
    directory_changed: bool,
    /// The directory has a page of this transaction's own.
    has_own_directory: bool,
    /// What this transaction replaced.
    freed: Vec<Freed>,
    /// Pages born in this transaction, or taken from a queue, that it may use (again).
    spare: Vec<PageId>,
    /// A page for the pinned queue, should that need one while pages are looked for.
    aside: Option<PageId>,
    spare_runs: Vec<(PageId, u32)>,
    /// Queue pages that were held against their checksums.
    verified: HashSet<PageId>,
}

/// Whose pins count.
pub(crate) enum Protection {
    /// A live store: all pins, C and K.
    Live,
    /// Recovery, where nobody reads: its checkpoint alone.
    Recovery(TxnId),
}

impl<'e> Workspace<'e> {
    /// The workspace of the transaction after `base`. The caller holds the writer lock.
    ///
    /// # Errors
    /// As [`Engine::pins`].
    pub(crate) fn new(engine: &'e Engine, base: SlotImage, txn: TxnId, protection: Protection) -> Result<Self> {
        let (started, finished, pins) = match protection {
            Protection::Live => {
                let (started, finished) = engine.checkpoints();
                (started, finished, engine.pins()?)
            }
            Protection::Recovery(checkpoint) => (checkpoint, checkpoint, Vec::new()),
        };
        Ok(Workspace {
            engine,
            txn,
            committed: base.txn,
            started,
            finished,
            pins,
            image: base,
            directory: None,
            directory_changed: false,
            has_own_directory: false,
            freed: Vec::new(),
            spare: Vec::new(),
            aside: None,
            spare_runs: Vec::new(),
            verified: HashSet::new(),
        })
    }

    /// The pages as the transaction sees them.
    pub(crate) fn pages(&self) -> Pages<'e> {
        self.engine.arena.pages(self.image.high_water)
    }

    fn pinned(&self, entry: &Freed) -> bool {
        let first = self.pins.partition_point(|pin| *pin < entry.birth);
        self.pins.get(first).is_some_and(|pin| *pin < entry.freed)
    }

    fn held_by_checkpoint(&self, entry: &Freed) -> bool {
        let holds = |checkpoint: TxnId| entry.birth <= checkpoint && checkpoint < entry.freed;
        if planted_bug!("reuse-running-checkpoint") {
            return holds(self.finished);
        }
        holds(self.started) || holds(self.finished)
    }

    /// Rule I3.
    fn reusable(&self, entry: &Freed) -> bool {
        if planted_bug!("reuse-one-txn-early") {
            return !self.held_by_checkpoint(entry);
        }
        entry.freed <= self.committed && !self.held_by_checkpoint(entry) && !self.pinned(entry)
    }

    // ---- taking

    /// A page for one use: its content is undefined.
    fn take_page(&mut self) -> Result<PageId> {
        if let Some(page) = self.spare.pop() {
            return Ok(page);
        }
        self.set_aside()?;
        for kind in [QueueKind::Young, QueueKind::Checkpoint] {
            if let Some(page) = self.take_from(kind, LOOKS)? {
                return Ok(page);
            }
        }
        if let Some(page) = self.look_at_pinned(LOOKS)? {
            return Ok(page);
        }
        if let Some(page) = self.break_run()? {
            return Ok(page);
        }
        self.extend(1)
    }

    /// The looks that follow may move entries to the pinned queue just while none can be reused that stands at the head
    /// of a queue. The page that this may need is taken as soon as one can be had.
    fn set_aside(&mut self) -> Result<()> {
        let pinned = self.image.queues[QueueKind::Pinned as usize];
        let room = queue::capacity(self.engine.arena.page_size()).saturating_sub(pinned.tail_index);
        if self.aside.is_some() || pinned.tail.is_none() || (room > 3 * LOOKS && !self.needs_next_page(&pinned)?) {
            return Ok(());
        }
        self.aside = self.take_a_head(&[QueueKind::Young, QueueKind::Checkpoint, QueueKind::Pinned])?;
        Ok(())
    }

    /// Takes the page at the head of one of these queues, if one can be reused, without moving any entry.
    fn take_a_head(&mut self, kinds: &[QueueKind]) -> Result<Option<PageId>> {
        for kind in kinds.iter().map(|kind| *kind as usize) {
            let mut state = self.image.queues[kind];
            let Some(entry) = self.peek(&mut state)? else { continue };
            // Also if the entry can't be taken: the head may have moved on.
            self.image.queues[kind] = state;
            if self.reusable(&entry) {
                self.skip(&mut state);
                self.image.queues[kind] = state;
                self.image.free_pages -= 1;
                return Ok(Some(entry.page));
            }
        }
        Ok(None)
    }

    /// Takes the first reusable page of a queue; entries that a pin holds move to the pinned queue.
    fn take_from(&mut self, kind: QueueKind, looks: u32) -> Result<Option<PageId>> {
        for _ in 0..looks {
            let mut state = self.image.queues[kind as usize];
            let Some(entry) = self.peek(&mut state)? else { break };
            self.image.queues[kind as usize] = state;
            // Entries stand in the order in which they were freed: if this one waits for its commit or
            // for a checkpoint, those behind it do as well.
            let waits = entry.freed > self.committed || self.held_by_checkpoint(&entry);
            if waits && !self.reusable(&entry) {
                break;
            }
            self.skip(&mut state);
            self.image.queues[kind as usize] = state;
            self.image.free_pages -= 1;
            if self.reusable(&entry) {
                return Ok(Some(entry.page));
            }
            self.push(QueueKind::Pinned, entry)?;
        }
        Ok(None)
    }

    /// Goes round the pinned queue: takes the first reusable page, appends the others again.
    fn look_at_pinned(&mut self, looks: u32) -> Result<Option<PageId>> {
        let kind = QueueKind::Pinned as usize;
        for _ in 0..looks.min(self.image.queues[kind].count as u32) {
            let mut state = self.image.queues[kind];
            let Some(entry) = self.peek(&mut state)? else { break };
            self.skip(&mut state);
            self.image.queues[kind] = state;
            self.image.free_pages -= 1;
            if self.reusable(&entry) {
                return Ok(Some(entry.page));
            }
            self.push(QueueKind::Pinned, entry)?;
        }
        Ok(None)
    }

    /// The next entry of a queue; steps to the next page if the head page is used up.
    fn peek(&mut self, state: &mut QueueState) -> Result<Option<Freed>> {
        if state.count == 0 {
            return Ok(None);
        }
        let pages = self.pages();
        loop {
            let header = pages.expect(state.head, PageKind::FreeQueue)?;
            self.verify_once(state.head, header.birth)?;
            if state.head == state.tail || state.head_index < queue::sealed_count(&pages, &header)? {
                return queue::read_entry(&pages, &self.engine.arena, state.head, state.head_index).map(Some);
            }
            // The used-up page is freed like any other; the checkpoint may still contain it.
            state.head = queue::next_page(&pages, &self.engine.arena, &header)?;
            state.head_index = 0;
            self.give(header.page, 1, header.birth);
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
        let bytes = end * page_size;
        let grown = if bytes > self.engine.arena.max_size() || end > u64::from(u32::MAX) {
            Err(Error::Limit { what: "the store's size in bytes", found: bytes, limit: self.engine.arena.max_size() })
        } else {
            self.engine.ensure_arena(bytes)
        };
        if let Err(error) = grown {
            // A checkpoint may set pages free, and none comes by itself while no transaction gets through.
            self.engine.request_checkpoint(self.committed);
            return Err(error);
        }
        self.image.high_water = end as u32;
        Ok(PageId(first))
    }

    // ---- runs

    fn directory(&mut self) -> Result<&mut Vec<QueueState>> {
        if self.directory.is_none() {
            let mut queues = vec![QueueState::default(); CLASSES.len()];
            if !self.image.run_directory.is_none() {
                let page = self.image.run_directory;
                self.verify(page, self.pages().birth(page)?)?;
                read_directory(&self.pages(), page, &mut queues)?;
            }
            self.directory = Some(queues);
        }
        Ok(self.directory.as_mut().expect("just made"))
    }

    /// A run of at least `pages` pages: as many as its size class says.
    fn take_run(&mut self, pages: u32) -> Result<PageId> {
        let class = class_for(pages)?;
        let len = CLASSES[class];
        if let Some(at) = self.spare_runs.iter().position(|(_, spare)| *spare == len) {
            return Ok(self.spare_runs.swap_remove(at).0);
        }
        for _ in 0..LOOKS {
            let mut state = self.directory()?[class];
            let Some(entry) = self.peek(&mut state)? else { break };
            self.skip(&mut state);
            self.directory()?[class] = state;
            self.directory_changed = true;
            self.image.free_pages -= u64::from(entry.pages);
            if !self.reusable(&entry) {
                self.push_run(class, entry)?;
                continue;
            }
            if entry.pages < len {
                return Err(self.engine.arena.damaged(entry.page, "a free run is shorter than its class"));
            }
            if entry.pages > len {
                self.give(PageId(entry.page.0 + len), entry.pages - len, self.txn);
            }
            return Ok(entry.page);
        }
        self.extend(len)
    }

    /// Takes a page from a free run, so that space once used by large values serves small ones.
    fn break_run(&mut self) -> Result<Option<PageId>> {
        if self.image.run_directory.is_none() && self.directory.is_none() {
            return Ok(None);
        }
        let classes = self.directory()?.len();
        for class in 0..classes {
            let mut state = self.directory()?[class];
            let Some(entry) = self.peek(&mut state)? else { continue };
            let reusable = self.reusable(&entry);
            if reusable {
                self.skip(&mut state);
            }
            self.directory_changed |= state != self.directory()?[class];
            self.directory()?[class] = state;
            if !reusable {
                continue;
            }
            self.image.free_pages -= u64::from(entry.pages);
            if entry.pages > 1 {
                self.give(PageId(entry.page.0 + 1), entry.pages - 1, self.txn);
            }
            return Ok(Some(entry.page));
        }
        Ok(None)
    }

    // ---- giving

    /// Notes that this transaction no longer uses a page or run.
    fn give(&mut self, page: PageId, pages: u32, birth: TxnId) {
        self.freed.push(Freed { page, pages, birth, freed: self.txn });
    }

    /// Appends an entry to a queue of single pages.
    fn push(&mut self, kind: QueueKind, entry: Freed) -> Result<()> {
        // Looking for a page may itself append to the pinned queue.
        let looks = kind != QueueKind::Pinned;
        let page = self.page_to_append(self.image.queues[kind as usize], looks)?;
        let state = self.image.queues[kind as usize];
        self.image.queues[kind as usize] = self.append(state, entry, page)?;
        self.image.free_pages += 1;
        Ok(())
    }

    fn push_run(&mut self, class: usize, entry: Freed) -> Result<()> {
        let state = self.directory()?[class];
        let page = self.page_to_append(state, true)?;
        // Looking for that page may have broken a run of this very queue.
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
        let capacity = queue::capacity(self.engine.arena.page_size());
        let sealed = tail.birth <= self.started && !planted_bug!("append-to-sealed-tail");
        Ok(sealed || state.tail_index >= capacity)
    }

    /// The page that appending to this queue will take, if any: one to follow the tail. It comes from where any page
    /// comes if it `looks`, else from the heads of the other queues where it can, since queues that grew the arena page
    /// by page, and freed what they had used up, would grow it for ever. Called between two changes of queues, as it takes
    /// from them.
    fn page_to_append(&mut self, state: QueueState, looks: bool) -> Result<Option<PageId>> {
        if !state.tail.is_none() && !self.needs_next_page(&state)? {
            return Ok(None);
        }
        if looks { self.take_page().map(Some) } else { self.queue_page().map(Some) }
    }

    fn queue_page(&mut self) -> Result<PageId> {
        if let Some(page) = self.spare.pop().or_else(|| self.aside.take()) {
            return Ok(page);
        }
        match self.take_a_head(&[QueueKind::Young, QueueKind::Checkpoint])? {
            Some(page) => Ok(page),
            None => self.extend(1),
        }
    }

    /// Appends behind the published end; `next` is what [`Workspace::page_to_append`] gave.
    fn append(&mut self, mut state: QueueState, entry: Freed, next: Option<PageId>) -> Result<QueueState> {
        if let Some(next) = next {
            let (page, previous_count) = if state.tail.is_none() {
                let first = self.extend(1)?;
                state.head = first;
                state.head_index = 0;
                (first, 0)
            } else {
                (self.pages().expect(state.tail, PageKind::FreeQueue)?.link, state.tail_index)
            };
            self.pages().check(page, 1)?;
            self.format_queue_page(page, next, previous_count);
            state.tail = page;
            state.tail_index = 0;
        }
        queue::write_entry(&self.engine.arena, state.tail, state.tail_index, entry);
        state.tail_index += 1;
        state.count += 1;
        Ok(state)
    }

    #[allow(unsafe_code)]
    fn format_queue_page(&mut self, page: PageId, next: PageId, previous_count: u32) {
        let arena = &self.engine.arena;
        // SAFETY: the page was reserved for this queue and nobody reads it before the swing.
        let body = unsafe { arena.body_mut(page, 1) };
        queue::format_page(body, page, self.txn, next, previous_count);
    }

    /// Gives everything that was freed to the queues, as the last step before the image is published.
    pub(crate) fn settle(&mut self) -> Result<()> {
        // Going round the pinned queue, a few entries a commit, releases what is no longer held.
        if self.image.queues[QueueKind::Pinned as usize].count > 0 {
            for _ in 0..PINNED_LOOKS {
                match self.look_at_pinned(1)? {
                    Some(page) => self.spare.push(page),
                    None => continue,
                }
            }
        }
        loop {
            self.prepare_directory()?;
            self.requeue_all()?;
            // A queue's own next page may have come out of a run: then the directory changes after all, and must not do so
            // in the page that the checkpoint and the last commit have.
            if !self.directory_changed || self.has_own_directory {
                break;
            }
        }
        self.write_directory()
    }

    fn requeue_all(&mut self) -> Result<()> {
        loop {
            if let Some(entry) = self.freed.pop() {
                self.requeue(entry)?;
            } else if let Some((page, pages)) = self.spare_runs.pop() {
                self.requeue(Freed { page, pages, birth: self.txn, freed: self.txn })?;
            } else if let Some(page) = self.spare.pop().or_else(|| self.aside.take()) {
                self.requeue(Freed { page, pages: 1, birth: self.txn, freed: self.txn })?;
            } else {
                return Ok(());
            }
        }
    }

    fn kind_for(&self, entry: &Freed) -> QueueKind {
        let newest = if planted_bug!("reuse-running-checkpoint") { self.finished } else { self.started };
        if entry.birth > newest { QueueKind::Young } else { QueueKind::Checkpoint }
    }

    fn requeue(&mut self, entry: Freed) -> Result<()> {
        if entry.pages > 1 {
            return self.push_run(class_of(entry.pages), entry);
        }
        self.push(self.kind_for(&entry), entry)
    }

    /// The directory is replaced like any page; its new page must be there before the queues settle.
    fn prepare_directory(&mut self) -> Result<()> {
        let changes =
            self.directory_changed || !self.spare_runs.is_empty() || self.freed.iter().any(|entry| entry.pages > 1);
        if !changes {
            return Ok(());
        }
        self.directory()?;
        if !self.has_own_directory {
            let old = self.image.run_directory;
            if !old.is_none() {
                self.give(old, 1, self.pages().birth(old)?);
            }
            self.image.run_directory = self.take_page()?;
            self.has_own_directory = true;
        }
        self.directory_changed = true;
        Ok(())
    }

    fn write_directory(&mut self) -> Result<()> {
        if !self.directory_changed {
            return Ok(());
        }
        let page = self.image.run_directory;
        let queues = self.directory.take().expect("changed");
        let birth = self.txn;
        runs::format_directory(self.body_mut(page)?, page, birth, &queues);
        self.directory_changed = false;
        Ok(())
    }

    /// Holds a page against its checksum if that is known to be valid.
    fn verify(&self, page: PageId, birth: TxnId) -> Result<()> {
        if birth > self.finished {
            return Ok(());
        }
        self.engine.arena.verify_checksum(self.pages().body_of(page, 1)?, page)
    }

    /// Holds a queue page against its checksum before its entries are believed: a wrong one would hand out a
    /// page that is in use. Once in a transaction; a page that is verified again and again is in the cache.
    fn verify_once(&mut self, page: PageId, birth: TxnId) -> Result<()> {
        if birth > self.finished || !self.verified.insert(page) {
            return Ok(());
        }
        self.verify(page, birth)
    }
}

impl PageRead for Workspace<'_> {
    fn page_size(&self) -> usize {
        self.engine.arena.page_size()
    }

    fn body(&self, id: PageId) -> Result<&[u8]> {
        self.pages().body_of(id, 1)
    }

    fn run(&self, id: PageId, pages: u32) -> Result<&[u8]> {
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
        self.take_page()
    }

    fn allocate_run(&mut self, pages: u32) -> Result<PageId> {
        if pages == 1 { self.take_page() } else { self.take_run(pages) }
    }

    fn free(&mut self, id: PageId, pages: u32, birth: TxnId) {
        let pages = if pages == 1 { 1 } else { run_len(pages) };
        if birth != self.txn {
            self.give(id, pages, birth);
        } else if pages == 1 {
            self.spare.push(id);
        } else {
            self.spare_runs.push((id, pages));
        }
    }

    fn body_mut(&mut self, id: PageId) -> Result<&mut [u8]> {
        self.pages().body_of(id, 1)?;
        // SAFETY: the tree asks for this only for pages born in this transaction, which nobody else
        // reaches before the swing; `&mut self` keeps other references of this transaction away.
        Ok(unsafe { self.engine.arena.body_mut(id, 1) })
    }

    fn run_mut(&mut self, id: PageId, pages: u32) -> Result<&mut [u8]> {
        self.pages().body_of(id, pages)?;
        // SAFETY: as in `body_mut`.
        Ok(unsafe { self.engine.arena.body_mut(id, pages) })
    }

    fn check(&self, id: PageId, birth: TxnId) -> Result<()> {
        self.verify(id, birth)
    }

    fn copy_page(&mut self, from: PageId, to: PageId) -> Result<()> {
        let pages = self.pages();
        let source = pages.body_of(from, 1)?;
        pages.body_of(to, 1)?;
        // Damage must not be given a fresh checksum: a page is checked before it is copied.
        self.verify(from, pages.birth(from)?)?;
        // SAFETY: as in `body_mut`; the two pages differ, the one being free and the other in use.
        let target = unsafe { self.engine.arena.body_mut(to, 1) };
        target.copy_from_slice(source);
        format::set_identity(target, to, self.txn);
        Ok(())
    }
}
