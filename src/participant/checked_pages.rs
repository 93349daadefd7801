//! Which pages this process has checked already.
//!
//! A writer takes the table for the time of its transaction.
//!
//! Before a writer copies a page, it checks the page's structure, and its checksum if it has one:
//! damage must not get a valid checksum, and the functions that change a page rely on a sound one.
//! A published page never changes, so one check for each process, page and `created_txn` suffices.
//! Decay of memory after that check is found by `untorn verify`, and by the next process.
//!
//! The table is direct-mapped. A page that is displaced from it is checked again.

use crate::{PageId, TxnId};

/// The number of entries; a power of two. The branches of a tree of five million entries fit.
const ENTRIES: usize = 4096;

#[derive(Clone, Copy)]
struct Entry {
    page: PageId,
    created_txn: TxnId,
}

/// The pages that were checked last.
#[derive(Default)]
pub(crate) struct CheckedPages {
    /// Empty until the first page is noted: most processes only read.
    entries: Vec<Entry>,
}

impl CheckedPages {
    fn index(page: PageId) -> usize {
        // Fibonacci hashing, since the numbers of branches and leaves may share their low bits.
        (page.0.wrapping_mul(0x9e37_79b9) >> (u32::BITS - ENTRIES.ilog2())) as usize
    }

    /// Returns whether a page created in `created_txn` is known to be sound.
    #[inline]
    pub(crate) fn contains(&self, page: PageId, created_txn: TxnId) -> bool {
        let entry = self.entries.get(Self::index(page));
        entry.is_some_and(|entry| entry.page == page && entry.created_txn == created_txn)
    }

    /// Records that a page created in `created_txn` is sound.
    #[inline]
    pub(crate) fn note(&mut self, page: PageId, created_txn: TxnId) {
        if self.entries.is_empty() {
            self.entries = vec![Entry { page: PageId::NONE, created_txn: TxnId::ZERO }; ENTRIES];
        }
        self.entries[Self::index(page)] = Entry { page, created_txn };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a page counts as checked only with the transaction that created it, and until another
    /// page displaces it.
    #[test]
    fn a_page_is_checked_once_for_each_birth() {
        let mut checked = CheckedPages::default();
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
