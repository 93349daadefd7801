//! Which pages this process has checked already.
//!
//! Before a writer copies a page, it checks the page's structure, and its checksum if it has one:
//! damage must not get a valid checksum, and the functions that change a page rely on a sound one.
//! A published page never changes, so one check for each process, page and `created_txn` suffices.
//! Decay of memory after that check is found by `untorn verify`, and by the next process.
//!
//! The table is direct-mapped. A page that is displaced from it is checked again.
//!
//! Only the owner of the writer lock uses the table, so one thread of the process at a time, and
//! the lock orders their accesses. The words are atomic so that the table can be shared; their
//! accesses are relaxed.

use crate::{PageId, TxnId};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The number of entries; a power of two. The branches of a tree of five million entries fit.
const ENTRIES: usize = 4096;

#[derive(Default)]
struct CheckedPage {
    /// 0, which is no page of a tree or queue, if the entry was never used.
    page: AtomicU32,
    created_txn: AtomicU64,
}

/// The pages that were checked last.
#[derive(Default)]
pub(crate) struct CheckedPages {
    /// Made for the first page that is noted: most processes only read.
    entries: OnceLock<Box<[CheckedPage]>>,
}

impl CheckedPages {
    fn index(page: PageId) -> usize {
        // Fibonacci hashing, since the numbers of branches and leaves may share their low bits.
        (page.0.wrapping_mul(0x9e37_79b9) >> (u32::BITS - ENTRIES.ilog2())) as usize
    }

    /// Returns whether a page created in `created_txn` is known to be sound.
    #[inline]
    pub(crate) fn contains(&self, page: PageId, created_txn: TxnId) -> bool {
        let Some(entries) = self.entries.get() else { return false };
        let entry = &entries[Self::index(page)];
        entry.page.load(Ordering::Relaxed) == page.0
            && entry.created_txn.load(Ordering::Relaxed) == created_txn.as_u64()
    }

    /// Records that a page created in `created_txn` is sound.
    #[inline]
    pub(crate) fn note(&self, page: PageId, created_txn: TxnId) {
        let entries = self.entries.get_or_init(|| (0..ENTRIES).map(|_| CheckedPage::default()).collect());
        let entry = &entries[Self::index(page)];
        entry.page.store(page.0, Ordering::Relaxed);
        entry.created_txn.store(created_txn.as_u64(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a page counts as checked only with the transaction that created it, and until another
    /// page displaces it.
    #[test]
    fn a_page_is_checked_once_for_each_birth() {
        let checked = CheckedPages::default();
        let (first, second) = (TxnId::from_u64(7), TxnId::from_u64(8));
        assert!(!checked.contains(PageId(1), first));
        checked.note(PageId(1), first);
        assert!(checked.contains(PageId(1), first));
        assert!(!checked.contains(PageId(1), second) && !checked.contains(PageId(2), first));
        let other =
            (2..).map(PageId).find(|page| CheckedPages::index(*page) == CheckedPages::index(PageId(1))).unwrap();
        checked.note(other, second);
        assert!(!checked.contains(PageId(1), first) && checked.contains(other, second));
    }
}
