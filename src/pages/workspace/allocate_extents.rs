//! Allocation of extents, and the extent directory of the transaction.
//!
//! An extent is taken from the queue of its size class. A longer one is split only if no other free
//! space is left, so that long extents remain. A single page is taken from an extent if no queue of
//! single pages has a reusable one. So space once used by large values can serve small ones.

use super::Workspace;
use super::allocate::QUEUE_SCAN_LIMIT;
use crate::files::page::PageWrite;
use crate::files::slot::QueueState;
use crate::pages::extents;
use crate::pages::extents::{CLASSES, class_for, read_directory};
use crate::pages::queue::FreeEntry;
use crate::{PageId, Result};

impl Workspace<'_> {
    /// Returns the queues of extents; reads them at the first call.
    pub(super) fn directory(&mut self) -> Result<&mut Vec<QueueState>> {
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

    /// Takes an extent of the smallest size class with at least `pages` pages.
    pub(super) fn take_extent(&mut self, pages: u32) -> Result<PageId> {
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
            // Split a longer extent only if no other free space is left.
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

    /// Takes the first entry out of the queue of this class, if there is one.
    pub(super) fn take_entry(&mut self, class: usize) -> Result<Option<FreeEntry>> {
        let mut state = self.directory()?[class];
        let Some(entry) = self.peek(&mut state)? else { return Ok(None) };
        self.skip(&mut state);
        self.directory()?[class] = state;
        self.directory_changed = true;
        self.image.free_pages = self.image.free_pages.saturating_sub(u64::from(entry.pages));
        Ok(Some(entry))
    }

    /// Takes a free extent of this class that may be reused, if a bounded scan finds one.
    fn find_extent(&mut self, class: usize) -> Result<Option<PageId>> {
        let len = CLASSES[class];
        for _ in 0..QUEUE_SCAN_LIMIT {
            let Some(entry) = self.take_entry(class)? else { break };
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

    /// Takes a page from a free extent of the smallest class whose first extent is reusable.
    pub(super) fn split_any_extent(&mut self) -> Result<Option<PageId>> {
        if self.image.extent_directory.is_none() && self.directory.is_none() {
            return Ok(None);
        }
        self.split_extent(0, 1)
    }

    /// Takes pages from a free extent of this class or a longer one, if the first extent of a queue
    /// is reusable. The rest of the extent serves the same transaction.
    ///
    /// **I3** An extent is reusable as a whole or not at all, so its rest is reusable from now on.
    /// If the transaction rolls back, the whole extent is in its queue as before.
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

    /// Replaces the page of the directory, if the directory changes. The new page must be allocated
    /// before the queues are final.
    pub(super) fn prepare_directory(&mut self) -> Result<()> {
        let has_extents =
            self.freed_pages.iter().map(|entry| entry.pages).chain(self.split_rests.iter().map(|(_, pages)| *pages));
        let changes = self.directory_changed
            || !self.free_extents.is_empty()
            || !self.freed_logged.is_empty()
            || has_extents.into_iter().any(|pages| pages > 1);
        if !changes {
            return Ok(());
        }
        self.directory()?;
        if !self.has_own_directory {
            let old = self.image.extent_directory;
            if !old.is_none() {
                self.free_published(old, 1, self.pages().created_txn(old)?, false);
            }
            self.image.extent_directory = self.take_page()?;
            self.has_own_directory = true;
        }
        self.directory_changed = true;
        Ok(())
    }

    pub(super) fn write_directory(&mut self) -> Result<()> {
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
}
