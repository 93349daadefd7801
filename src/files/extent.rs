//! Logged extents: the extents of large values, which are written to the arena once. A log record
//! refers to such an extent instead of containing its bytes.
//!
//! The header of a logged extent has level 1; that of any other extent has level 0. The record
//! contains the first page, the length of the value and its CRC-32. So recovery recognises an
//! extent whose bytes are not those that the transaction wrote.

use crate::files::page::{CHECKSUM_LEN, HEADER_LEN, PageHeader, PageKind, extent_pages};
use crate::{PageId, TxnId};
use std::ops::Range;

/// The minimum length in bytes of a value that is written once, to a logged extent.
pub(crate) const LOGGED_VALUE_BYTES_MIN: usize = 64 << 10;

/// The level in the header of a logged extent.
const LOGGED_LEVEL: u8 = 1;

/// The bytes of an extent before its value: the checksum word and the page header.
pub(crate) const VALUE_AT: usize = CHECKSUM_LEN + HEADER_LEN;

/// A reference from the log to an extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LoggedExtent {
    pub(crate) page: PageId,
    /// The length of the value in bytes.
    pub(crate) len: u32,
    /// The CRC-32 of the value.
    pub(crate) crc: u32,
}

/// Returns whether an extent of this length may be a logged one.
#[inline]
pub(crate) fn may_be_logged(page_size: usize, pages: u32) -> bool {
    pages >= extent_pages(page_size, LOGGED_VALUE_BYTES_MIN as u64)
}

/// Returns whether this is the body of a logged extent.
pub(crate) fn is_logged(body: &[u8]) -> bool {
    PageHeader::read(body).is_some_and(|header| header.kind == PageKind::Extent && header.level == LOGGED_LEVEL)
}

impl LoggedExtent {
    /// Returns the number of pages that the value takes.
    pub(crate) fn pages(&self, page_size: usize) -> u32 {
        extent_pages(page_size, u64::from(self.len))
    }

    /// Returns the pages that the value takes.
    pub(crate) fn page_range(&self, page_size: usize) -> Range<u32> {
        self.page.0..self.page.0.saturating_add(self.pages(page_size))
    }

    /// Returns the header of the extent.
    fn header(&self, page_size: usize, created_txn: TxnId) -> PageHeader {
        PageHeader {
            kind: PageKind::Extent,
            level: LOGGED_LEVEL,
            count: 0,
            page: self.page,
            created_txn,
            pages: self.pages(page_size),
            link: PageId::NONE,
            extra: u64::from(self.len),
        }
    }

    /// Returns the bytes of the extent before the value. The checksum word is 0 until a checkpoint
    /// stores it.
    pub(crate) fn head(&self, page_size: usize, created_txn: TxnId) -> [u8; VALUE_AT] {
        let mut bytes = [0; VALUE_AT];
        self.header(page_size, created_txn).write(&mut bytes[CHECKSUM_LEN..]);
        bytes
    }

    /// Returns the value in an extent's body if `created_txn` wrote this very value there. Calls
    /// `on_step` after each piece of at most 4 MiB that was read.
    pub(crate) fn find_value<'b>(
        &self,
        body: &'b [u8],
        page_size: usize,
        created_txn: TxnId,
        on_step: &mut dyn FnMut(),
    ) -> Option<&'b [u8]> {
        if PageHeader::read(body)? != self.header(page_size, created_txn) {
            return None;
        }
        let value = body.get(HEADER_LEN..HEADER_LEN + self.len as usize)?;
        let mut hasher = crc32fast::Hasher::new();
        for piece in value.chunks(4 << 20) {
            hasher.update(piece);
            on_step();
        }
        (hasher.finalize() == self.crc).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an extent is recognised only if each bit of its header and value is as it was written.
    #[test]
    fn every_flipped_bit_is_detected() {
        let value = vec![0x5a; LOGGED_VALUE_BYTES_MIN];
        let extent = LoggedExtent { page: PageId(7), len: value.len() as u32, crc: crc32fast::hash(&value) };
        let txn = TxnId::from_u64(9);
        let mut bytes = extent.head(4096, txn).to_vec();
        bytes.extend_from_slice(&value);
        let body = &mut bytes[CHECKSUM_LEN..];
        assert_eq!(extent.find_value(body, 4096, txn, &mut || ()), Some(&value[..]));
        assert!(is_logged(body) && extent.find_value(body, 4096, TxnId::from_u64(8), &mut || ()).is_none());
        for bit in (0..8 * HEADER_LEN).chain((8 * HEADER_LEN..8 * body.len()).step_by(7919)) {
            body[bit / 8] ^= 1 << (bit % 8);
            assert!(extent.find_value(body, 4096, txn, &mut || ()).is_none(), "bit {bit}");
            body[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
