//! The pages of a transaction that has savepoints.
//!
//! Without savepoints, a page that the transaction created is the transaction's own: it is
//! changed in place, and is used again at once when it is freed. With savepoints, that holds for
//! pages that were allocated since the newest one (`fresh`). All others belong to the state of some
//! savepoint: they are copied before a change, and are retained when they are freed (`retained`).
//!
//! **A rollback** to savepoint i returns to the transaction all pages that were allocated after the
//! savepoint. A page that was retained after it is in use again, unless it was allocated after it
//! and is returned with the others. Pages of earlier transactions that were replaced after it are
//! in use again: the list of replaced pages is cut back to its length at the savepoint.
//!
//! **The allocator is not rolled back.** A page that was taken from a free queue stays with the
//! transaction. So the queues of the image have only moved forward, as in a transaction without
//! savepoints. Rule I3 holds for the same reason: a page is taken when it may be reused, and
//! afterwards only this transaction allocates it. The pages of the queues themselves are in no
//! tree, so a list that no rollback changes records them.
//!
//! **Each page is in one place.** A page that the transaction has taken is in use by a queue, is
//! free, or is in use by a tree. The tree is one of the present state or of a savepoint. A page of
//! a tree was allocated before the first savepoint, or is in `fresh` of the interval in which it
//! was allocated. It leaves `fresh` if it is freed in that same interval. Only then is it free,
//! since no savepoint can contain it. A page that is freed in a later interval stays in `fresh` of
//! its own, and is in `retained` of the later one. It is returned once: from `fresh` at a rollback
//! to the beginning of its own interval or an earlier one, or from `retained` at the commit.

use crate::PageId;
use std::collections::HashMap;

/// The changes to pages between a savepoint and the next one.
#[derive(Default)]
struct Interval {
    /// The number of pages of earlier transactions that had been replaced when the savepoint was
    /// made.
    replaced: usize,
    /// The pages and extents that were allocated and are not free again: first page, and length in
    /// pages.
    fresh: HashMap<PageId, u32>,
    /// The pages of this transaction that were allocated before the interval and freed in it. First
    /// page and length, as above.
    retained: Vec<(PageId, u32)>,
}

/// The effect of a rollback on the pages.
pub(super) struct Undone {
    /// Pages that can be used again.
    pub(super) free: Vec<(PageId, u32)>,
    /// The number of pages of earlier transactions that stay replaced.
    pub(super) replaced: usize,
}

#[derive(Default)]
pub(super) struct Savepoints {
    intervals: Vec<Interval>,
}

impl Savepoints {
    /// Adds a savepoint of a transaction that has replaced `replaced` pages of earlier ones.
    pub(super) fn add(&mut self, replaced: usize) {
        self.intervals.push(Interval { replaced, ..Interval::default() });
    }

    /// Returns whether a page of this transaction may be changed in place, since no savepoint
    /// contains it.
    #[inline]
    pub(super) fn is_own(&self, page: PageId) -> bool {
        self.intervals.last().is_none_or(|interval| interval.fresh.contains_key(&page))
    }

    /// Records a page or extent that the transaction has allocated.
    #[inline]
    pub(super) fn note_allocated(&mut self, page: PageId, pages: u32) {
        if let Some(interval) = self.intervals.last_mut() {
            interval.fresh.insert(page, pages);
        }
    }

    /// Retains a page that this transaction created and is freeing, if a savepoint contains it.
    /// Returns whether the page was retained.
    #[inline]
    pub(super) fn retain(&mut self, page: PageId, pages: u32) -> bool {
        let Some(interval) = self.intervals.last_mut() else { return false };
        let is_retained = interval.fresh.remove(&page).is_none();
        if is_retained {
            interval.retained.push((page, pages));
        }
        is_retained
    }

    /// Removes the changes since the savepoint at `depth`, and the savepoints after it. Returns
    /// their effect on the pages.
    pub(super) fn roll_back_to(&mut self, depth: usize) -> Undone {
        let intervals = self.intervals.split_off(depth);
        let replaced = intervals.first().map_or(0, |interval| interval.replaced);
        self.add(replaced);
        Undone { free: intervals.into_iter().flat_map(|interval| interval.fresh).collect(), replaced }
    }

    /// Ends all savepoints at the commit, and returns the retained pages, which are free.
    pub(super) fn end(&mut self) -> Vec<(PageId, u32)> {
        std::mem::take(&mut self.intervals).into_iter().flat_map(|interval| interval.retained).collect()
    }
}
