//! An arena in memory for tests. It checks which pages a transaction may change, and records which
//! are allocated.

use crate::files::page::CHECKSUM_LEN;
use crate::files::page::{PageRead, PageWrite};
use crate::ids::PageId;
use crate::{Error, Result, TxnId};
use std::collections::BTreeMap;
use std::ops::Range;

/// A page or extent that was freed, with its length and the transactions that created and freed it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FreedExtent {
    pub(crate) page: PageId,
    pub(crate) pages: u32,
    pub(crate) created_txn: TxnId,
    pub(crate) freed_txn: TxnId,
}

#[derive(Clone)]
pub(crate) struct TestPages {
    page_size: usize,
    pub(crate) bytes: Vec<u8>,
    txn: TxnId,
    /// Every page and extent that is allocated, with its length and created_txn.
    pub(crate) live: BTreeMap<PageId, (u32, TxnId)>,
    /// Extents that are freed, but may still be read by older snapshots.
    pub(crate) freed: Vec<FreedExtent>,
    /// Single pages that may be allocated again.
    reusable: Vec<PageId>,
    /// Whether a page may be freed twice, as an edit of a damaged tree may do. The tests of damage
    /// check only that no call panics.
    pub(crate) tolerant: bool,
}

impl TestPages {
    pub(crate) fn new(page_size: usize) -> TestPages {
        TestPages {
            page_size,
            bytes: vec![0; page_size],
            txn: TxnId::from_u64(1),
            live: BTreeMap::new(),
            freed: Vec::new(),
            reusable: Vec::new(),
            tolerant: false,
        }
    }

    /// Returns an arena of these pages, in the transaction `txn`, which may free unknown pages:
    /// those of a damaged tree.
    pub(crate) fn holding(page_size: usize, bytes: Vec<u8>, txn: TxnId) -> TestPages {
        TestPages { bytes, txn, tolerant: true, ..TestPages::new(page_size) }
    }

    pub(crate) fn next_txn(&mut self) {
        self.txn = self.txn.next_in(self.txn.incarnation()).expect("few transactions");
    }

    /// Recycles all freed pages that no root of transaction `oldest` or later needs, and overwrites
    /// their bytes.
    pub(crate) fn release(&mut self, oldest: TxnId) {
        for freed in std::mem::take(&mut self.freed) {
            if freed.freed_txn <= oldest || freed.created_txn == freed.freed_txn {
                self.recycle(freed.page, freed.pages);
            } else {
                self.freed.push(freed);
            }
        }
    }

    fn recycle(&mut self, id: PageId, pages: u32) {
        let start = id.0 as usize * self.page_size;
        self.bytes[start..start + pages as usize * self.page_size].fill(0xDB);
        self.reusable.extend((id.0..id.0 + pages).map(PageId));
    }

    fn range(&self, id: PageId, pages: u32) -> Result<std::ops::Range<usize>> {
        let start = id.0 as usize * self.page_size;
        let end = start + pages as usize * self.page_size;
        if id.is_none() || pages == 0 || end > self.bytes.len() {
            return Err(Error::corrupt("arena", start as u64, format!("no page {}", id.0)));
        }
        Ok(start + CHECKSUM_LEN..end)
    }

    fn take(&mut self, pages: u32) -> PageId {
        if let (1, Some(id)) = (pages, self.reusable.pop()) {
            return id;
        }
        let id = PageId((self.bytes.len() / self.page_size) as u32);
        self.bytes.resize(self.bytes.len() + pages as usize * self.page_size, 0xAA);
        id
    }

    fn own(&self, id: PageId, pages: u32) {
        if self.tolerant {
            return;
        }
        assert_eq!(self.live.get(&id), Some(&(pages, self.txn)), "{id:?} is not of this transaction");
    }
}

impl PageRead for TestPages {
    fn page_size(&self) -> usize {
        self.page_size
    }

    fn body(&self, id: PageId) -> Result<&[u8]> {
        Ok(&self.bytes[self.range(id, 1)?])
    }

    fn extent(&self, id: PageId, pages: u32) -> Result<&[u8]> {
        Ok(&self.bytes[self.range(id, pages)?])
    }
}

impl PageWrite for TestPages {
    fn txn_id(&self) -> TxnId {
        self.txn
    }

    fn allocate(&mut self) -> Result<PageId> {
        self.allocate_extent(1)
    }

    fn allocate_extent(&mut self, pages: u32) -> Result<PageId> {
        let id = self.take(pages);
        assert!(self.live.insert(id, (pages, self.txn)).is_none(), "{id:?} was handed out twice");
        Ok(id)
    }

    fn free(&mut self, id: PageId, pages: u32, created_txn: TxnId) {
        if self.tolerant {
            return;
        }
        assert_eq!(self.live.remove(&id), Some((pages, created_txn)), "{id:?} was not there to be freed");
        if created_txn == self.txn {
            self.recycle(id, pages);
        } else {
            self.freed.push(FreedExtent { page: id, pages, created_txn, freed_txn: self.txn });
        }
    }

    fn body_mut(&mut self, id: PageId) -> Result<&mut [u8]> {
        self.extent_mut(id, 1)
    }

    fn extent_mut(&mut self, id: PageId, pages: u32) -> Result<&mut [u8]> {
        self.own(id, pages);
        let range = self.range(id, pages)?;
        Ok(&mut self.bytes[range])
    }

    fn copy_page(&mut self, from: PageId, to: PageId, unused: Range<usize>) -> Result<()> {
        self.own(to, 1);
        let from = self.range(from, 1)?;
        let to = self.range(to, 1)?;
        self.bytes.copy_within(from.start..from.start + unused.start, to.start);
        self.bytes.copy_within(from.start + unused.end..from.end, to.start + unused.end);
        Ok(())
    }
}
