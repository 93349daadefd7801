//! The extents of log records that recovery has not replayed yet.
//!
//! Replay begins with the free queues of a checkpoint. These queues may contain the pages of
//! extents that later transactions wrote. Other such extents may be beyond the checkpoint's
//! high-water mark. So the first transaction that is replayed takes all these pages out of the
//! queues, and replay adopts each extent with its record. Until then no allocation can find the
//! extent.
//!
//! All records of committed transactions after a checkpoint refer to different pages, and to none
//! that the checkpoint uses: rule I3 protects the checkpoint's pages and each extent until a later
//! checkpoint is finished ([`crate::pages::protection`]).

use crate::PageId;
use crate::system::sync::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;

/// The extents whose records are not replayed yet: the *remaining* extents.
#[derive(Default)]
pub(crate) struct UnreplayedExtents(Mutex<State>);

// Only recovery has such a value. No call that can panic runs under its lock.
impl std::panic::UnwindSafe for UnreplayedExtents {}
impl std::panic::RefUnwindSafe for UnreplayedExtents {}

#[derive(Default)]
struct State {
    /// The first page of each remaining extent, and its allocated length in pages.
    left: BTreeMap<u32, u32>,
    /// Whether the extents are in no queue.
    are_out: bool,
    /// Whether each commit returns the remaining extents to the queues.
    are_returned: bool,
}

impl UnreplayedExtents {
    /// Creates the set of these extents, which must not overlap.
    pub(crate) fn new(extents: impl Iterator<Item = Range<u32>>) -> UnreplayedExtents {
        let left = extents.map(|pages| (pages.start, pages.end - pages.start)).collect();
        UnreplayedExtents(Mutex::new(State { left, ..State::default() }))
    }

    /// Makes each commit return the remaining extents to the queues, if `are_returned`. Then a
    /// checkpoint of the commit is safe: if a power cut discards the rest of the log, no page is
    /// lost.
    pub(crate) fn return_at_commits(&self, are_returned: bool) {
        self.0.lock().are_returned = are_returned;
    }

    /// Returns the page ranges of the remaining extents, in ascending order.
    pub(crate) fn ranges(&self) -> Vec<Range<u32>> {
        self.0.lock().left.iter().map(|(page, len)| *page..page + len).collect()
    }

    /// Returns the page ranges to take out of the queues; none if they are already out.
    pub(super) fn take_out(&self) -> Vec<Range<u32>> {
        if std::mem::replace(&mut self.0.lock().are_out, true) { Vec::new() } else { self.ranges() }
    }

    /// Returns the page ranges to return to the queues at a commit, which are then no longer out.
    pub(super) fn take_returned(&self) -> Vec<Range<u32>> {
        let mut state = self.0.lock();
        if !state.are_returned || !std::mem::replace(&mut state.are_out, false) {
            return Vec::new();
        }
        drop(state);
        self.ranges()
    }

    /// Removes the extent at this page. Returns false if no remaining extent has this page and
    /// length.
    pub(super) fn adopt(&self, page: PageId, pages: u32) -> bool {
        let left = &mut self.0.lock().left;
        left.get(&page.0) == Some(&pages) && left.remove(&page.0).is_some()
    }
}

/// Returns the parts of `whole` that are in none of these ascending ranges.
pub(crate) fn gaps(whole: Range<u32>, ranges: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut found = Vec::new();
    let mut at = whole.start;
    let first = ranges.partition_point(|range| range.end <= whole.start);
    for range in ranges[first..].iter().take_while(|range| range.start < whole.end) {
        if at < range.start {
            found.push(at..range.start);
        }
        at = range.end;
    }
    if at < whole.end {
        found.push(at..whole.end);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the gaps and the ranges together are the whole, and no page is in both.
    #[test]
    fn gaps_are_what_the_ranges_leave() {
        let ranges = [3..5, 5..6, 9..12];
        for (start, end) in (0..14).flat_map(|start| (start..14).map(move |end| (start, end))) {
            let found: Vec<u32> = gaps(start..end, &ranges).into_iter().flatten().collect();
            let expected: Vec<u32> =
                (start..end).filter(|page| ranges.iter().all(|range| !range.contains(page))).collect();
            assert_eq!(found, expected, "{start}..{end}");
        }
    }
}
