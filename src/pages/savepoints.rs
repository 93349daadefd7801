//! The pages of a transaction that has savepoints.
//!
//! Without savepoints a page that was born in the transaction is the transaction's own: it is changed in place, and is
//! used again at once when it is freed. With savepoints, that holds for pages that were allocated since the newest one
//! (`fresh`). All others belong to the state of some savepoint: they are copied before a change, and those that are freed
//! are set aside (`held`).
//!
//! **A rollback** to savepoint i returns to the transaction all pages that were allocated since. What was set aside since is
//! in use again, or was allocated since and is returned with the others. Pages of earlier transactions that were
//! replaced since are in use again: the list of those is cut back to its length at the savepoint.
//!
//! **The allocator is not rolled back.** A page that was taken from a free queue stays with the transaction. So the queues
//! of the image have only moved forward, as in a transaction without savepoints, and rule I3 holds for the same
//! reason: a page is taken when it may be reused, and is only ever given out by this transaction afterwards. The pages
//! of the queues themselves are in no tree, so what becomes of them is kept apart from what a rollback takes back.
//!
//! **Each page is in one place.** A page that the transaction has taken is in use by a queue, spare, or in use by a tree.
//! One that is in use by the tree of the present state, or of a savepoint's, is in `fresh` of the level at which it was
//! allocated, or was allocated before the first savepoint. It leaves `fresh` by being freed at that same level, so that no
//! savepoint can have it, and only then is it spare. A page that is freed at a later level stays in `fresh` of its own level and is in `held` of
//! the later one. It is returned once: by `fresh` at a rollback to its own level or an earlier one, or by `held` at the commit.

use crate::PageId;
use std::collections::HashMap;

/// A page or run: its first page, and how many pages it has.
pub(super) type Extent = (PageId, u32);

/// What happened to pages between a savepoint and the next one.
#[derive(Default)]
struct Level {
    /// How many pages of earlier transactions had been replaced when the savepoint was made.
    replaced: usize,
    /// What was allocated, and is not spare again.
    fresh: HashMap<PageId, u32>,
    /// What was freed, of the pages of this transaction that were allocated before.
    held: Vec<Extent>,
}

/// What is to be done at a rollback.
pub(super) struct Undone {
    /// Pages that can be used again.
    pub(super) spare: Vec<Extent>,
    /// How many of the replaced pages of earlier transactions stay so.
    pub(super) replaced: usize,
}

#[derive(Default)]
pub(super) struct Savepoints {
    levels: Vec<Level>,
}

impl Savepoints {
    /// A savepoint of a transaction that has replaced so many pages of earlier ones.
    pub(super) fn add(&mut self, replaced: usize) {
        self.levels.push(Level { replaced, ..Level::default() });
    }

    /// Whether a page of this transaction may be changed in place: no savepoint has it.
    #[inline]
    pub(super) fn is_own(&self, page: PageId) -> bool {
        self.levels.last().is_none_or(|level| level.fresh.contains_key(&page))
    }

    /// Notes what the transaction has allocated.
    #[inline]
    pub(super) fn note_allocated(&mut self, page: PageId, pages: u32) {
        if let Some(level) = self.levels.last_mut() {
            level.fresh.insert(page, pages);
        }
    }

    /// Sets aside what was born in this transaction and is being freed, if a savepoint has it. True if so.
    #[inline]
    pub(super) fn hold(&mut self, page: PageId, pages: u32) -> bool {
        let Some(level) = self.levels.last_mut() else { return false };
        let is_held = level.fresh.remove(&page).is_none();
        if is_held {
            level.held.push((page, pages));
        }
        is_held
    }

    /// Forgets all that happened since the savepoint at `depth`, and the savepoints after it.
    pub(super) fn roll_back_to(&mut self, depth: usize) -> Undone {
        let levels = self.levels.split_off(depth);
        let replaced = levels.first().map_or(0, |level| level.replaced);
        self.add(replaced);
        Undone { spare: levels.into_iter().flat_map(|level| level.fresh).collect(), replaced }
    }

    /// At the commit: what was set aside is free.
    pub(super) fn end(&mut self) -> Vec<Extent> {
        std::mem::take(&mut self.levels).into_iter().flat_map(|level| level.held).collect()
    }
}
