//! The extents to which records of the log refer that recovery has not replayed yet.
//!
//! Replay begins with the free queues of a checkpoint. They may contain the pages of extents that
//! later transactions wrote, and pages beyond the checkpoint's high-water mark may hold others. So
//! the first transaction that is replayed takes all these pages out of the queues, and replay
//! adopts each extent with its record. Until then no allocation can find it.
//!
//! All records of committed transactions after a checkpoint refer to different pages, and to none
//! that the checkpoint uses: rule I3 protects the checkpoint's pages and each extent until a later
//! checkpoint is finished ([`crate::pages::protection`]).

use crate::PageId;
use crate::system::sync::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;

/// The extents that are left.
#[derive(Default)]
pub(crate) struct UnreplayedExtents(Mutex<State>);

// Recovery alone has one. Its lock is held for no call that can panic.
impl std::panic::UnwindSafe for UnreplayedExtents {}
impl std::panic::RefUnwindSafe for UnreplayedExtents {}

#[derive(Default)]
struct State {
    /// The first page of each, and its allocated length in pages.
    left: BTreeMap<u32, u32>,
    /// Whether the extents are in no queue.
    are_out: bool,
    /// Whether each commit returns what is left to the queues.
    are_returned: bool,
}

impl UnreplayedExtents {
    /// Returns these extents, which do not overlap.
    pub(crate) fn new(extents: impl Iterator<Item = Range<u32>>) -> UnreplayedExtents {
        let left = extents.map(|pages| (pages.start, pages.end - pages.start)).collect();
        UnreplayedExtents(Mutex::new(State { left, ..State::default() }))
    }

    /// Makes each commit return the extents that are left to the queues, if `are_returned`. Then
    /// the commit can be checkpointed: if a power cut takes the rest of the log back, no page is
    /// lost.
    pub(crate) fn return_at_commits(&self, are_returned: bool) {
        self.0.lock().are_returned = are_returned;
    }

    /// Returns the page ranges that are left, in ascending order.
    pub(crate) fn ranges(&self) -> Vec<Range<u32>> {
        self.0.lock().left.iter().map(|(page, len)| *page..page + len).collect()
    }

    /// Returns the page ranges to take out of the queues, once.
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

    /// Removes the extent at this page. Returns whether it was left, with this length.
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
