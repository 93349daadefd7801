//! The bytes that all pages have in common: the header, and the extent that holds a large value.
//!
//! Offsets are offsets in the *body*, that is, the offset in the page minus the 8 bytes of the
//! checksum word. All numbers are little-endian. `docs/format.md` describes the same layout, and
//! golden tests keep the two consistent.
//!
//! | offset | bytes | field | |
//! |---|---|---|---|
//! | 0 | 1 | kind | [`PageKind`] |
//! | 1 | 1 | level | 0 in leaves and all pages outside of trees; a branch's level is one above its children's |
//! | 2 | 2 | count | entries (leaf), separators (branch); other kinds define their own use |
//! | 4 | 4 | page | the page's own number, which reveals a page in the wrong place |
//! | 8 | 8 | created_txn | the transaction that created the page |
//! | 16 | 4 | pages | length of the extent in pages; 1 for everything else |
//! | 20 | 4 | link | branch: first child; queues: next page; otherwise 0 |
//! | 24 | 8 | extra | node: see `node`; extent: length of the value in bytes |

use crate::ids::PageId;
use crate::limits::{PAGE_SIZE_MAX, PAGE_SIZE_MIN, VALUE_LEN_MAX};
use crate::{Error, LimitKind, Result, TxnId};
use std::ops::Range;
pub(crate) use untorn_wal::le::{set_u16, set_u32, set_u64, u16_at, u32_at, u64_at};

/// The length of an entry of a free queue in bytes: page and count, created_txn, freed_txn.
pub(crate) const QUEUE_ENTRY_BYTES: usize = 24;
/// The offset of the entries in a queue page.
pub(crate) const QUEUE_ENTRIES_AT: usize = CHECKSUM_LEN + HEADER_LEN;

const _: () = assert!(QUEUE_ENTRIES_AT.is_multiple_of(8));

/// Returns the number of entries that a queue page holds.
pub(crate) const fn queue_capacity(page_size: usize) -> u32 {
    ((page_size - QUEUE_ENTRIES_AT) / QUEUE_ENTRY_BYTES) as u32
}

/// A source from which pages are read.
///
/// A page's *body* is the page without its first 8 bytes. Those are the checksum word, which is
/// atomic and outside every reference. So a body is immutable for as long as a pin protects it.
pub(crate) trait PageRead {
    /// Returns the size of a page in bytes, a power of two.
    fn page_size(&self) -> usize;

    /// Returns the body of page `id`: `page_size - 8` bytes.
    ///
    /// # Errors
    /// `Corrupt` unless 0 < id < high-water mark.
    fn body(&self, id: PageId) -> Result<&[u8]>;

    /// Returns the body of the extent of `pages` contiguous pages from `id`: one header, then bytes
    /// to the end of the extent.
    ///
    /// # Errors
    /// `Corrupt` unless all pages are below the high-water mark.
    fn extent(&self, id: PageId, pages: u32) -> Result<&[u8]>;

    /// Hints that the first cache lines of the page will be read soon.
    fn prefetch(&self, _id: PageId) {}

    /// Hints that these bytes of the page will be read soon.
    fn prefetch_part(&self, _id: PageId, _part: Range<usize>) {}
}

/// The working state of one write transaction, which allocates and frees pages.
pub(crate) trait PageWrite: PageRead {
    /// Returns the id that the transaction will have, which is the created_txn of its pages.
    fn txn_id(&self) -> TxnId;

    /// Allocates a page with undefined content.
    ///
    /// # Errors
    /// `DiskFull`, and other errors that prevent the arena from growing.
    fn allocate(&mut self) -> Result<PageId>;

    /// Allocates an extent of contiguous pages with undefined content.
    ///
    /// # Errors
    /// As [`PageWrite::allocate`].
    fn allocate_extent(&mut self, pages: u32) -> Result<PageId>;

    /// Returns whether a page created in `created_txn` may be changed in place: it was allocated in
    /// this transaction, and after the last savepoint if there is one.
    fn is_own(&self, _id: PageId, created_txn: TxnId) -> bool {
        created_txn == self.txn_id()
    }

    /// Frees `pages` pages from `id`, which were created in `created_txn`. They are reusable at
    /// once if [`PageWrite::is_own`] holds for the page.
    fn free(&mut self, id: PageId, pages: u32, created_txn: TxnId);

    /// Returns the body of a page that was allocated in this transaction, for writing.
    ///
    /// # Errors
    /// `Corrupt` if the page does not exist.
    fn body_mut(&mut self, id: PageId) -> Result<&mut [u8]>;

    /// Returns the body of an extent that was allocated in this transaction, for writing.
    ///
    /// # Errors
    /// `Corrupt` if the pages do not exist.
    fn extent_mut(&mut self, id: PageId, pages: u32) -> Result<&mut [u8]>;

    /// Copies the body of `from` into `to`, which was just allocated, except for the bytes in
    /// `unused`, which stay undefined. The caller has checked `from`.
    ///
    /// # Errors
    /// `Corrupt` if a page does not exist, or is shorter than `unused`.
    fn copy_page(&mut self, from: PageId, to: PageId, unused: Range<usize>) -> Result<()>;

    /// Returns whether the page was already checked in this process: both its structure and its
    /// checksum.
    fn is_checked(&self, _id: PageId, _created_txn: TxnId) -> bool {
        false
    }

    /// Records that the page was checked, or was written by the running transaction.
    fn note_checked(&self, _id: PageId, _created_txn: TxnId) {}

    /// Verifies the checksum of a page created in `created_txn`, if it has one, before its content
    /// is copied.
    ///
    /// # Errors
    /// `Corrupt` if the checksum does not match.
    fn check(&self, _id: PageId, _created_txn: TxnId) -> Result<()> {
        Ok(())
    }
}

/// The number of bytes before the body: the checksum word.
pub(crate) const CHECKSUM_LEN: usize = 8;
/// The length of the header at the start of each body in bytes.
pub(crate) const HEADER_LEN: usize = 32;

pub(crate) const KIND: usize = 0;
pub(crate) const LEVEL: usize = 1;
pub(crate) const COUNT: usize = 2;
pub(crate) const PAGE: usize = 4;
const CREATED_TXN: usize = 8;
const PAGES: usize = 16;
pub(crate) const LINK: usize = 20;
pub(crate) const EXTRA: usize = 24;

const _: () = {
    assert!(LEVEL == KIND + 1 && COUNT == LEVEL + 1 && PAGE == COUNT + 2 && CREATED_TXN == PAGE + 4);
    assert!(PAGES == CREATED_TXN + 8 && LINK == PAGES + 4 && EXTRA == LINK + 4 && HEADER_LEN == EXTRA + 8);
    assert!(HEADER_LEN.is_multiple_of(8) && CHECKSUM_LEN == 8, "heads start at a multiple of 8 bytes");
    assert!(PAGE_SIZE_MIN.is_power_of_two() && PAGE_SIZE_MAX.is_power_of_two());
    assert!(PAGE_SIZE_MAX - CHECKSUM_LEN <= u16::MAX as usize, "offsets in a body fit 16 bits");
};

/// The kind of a page's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum PageKind {
    /// Entries of a tree.
    Leaf = 1,
    /// Separators and children of a tree.
    Branch = 2,
    /// A large value, contiguous.
    Extent = 3,
    /// A piece of a queue of freed pages.
    FreeQueue = 4,
    /// Free extents by size class.
    ExtentDirectory = 5,
}

impl PageKind {
    #[inline]
    fn from_byte(byte: u8) -> Option<PageKind> {
        Some(match byte {
            1 => PageKind::Leaf,
            2 => PageKind::Branch,
            3 => PageKind::Extent,
            4 => PageKind::FreeQueue,
            5 => PageKind::ExtentDirectory,
            _ => return None,
        })
    }
}

/// The header of a page, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageHeader {
    pub(crate) kind: PageKind,
    pub(crate) level: u8,
    pub(crate) count: u16,
    pub(crate) page: PageId,
    pub(crate) created_txn: TxnId,
    /// The length of an extent in pages; 1 for other kinds.
    pub(crate) pages: u32,
    pub(crate) link: PageId,
    pub(crate) extra: u64,
}

impl PageHeader {
    /// Decodes the header. Returns `None` if the kind is unknown, or the body is too short for a
    /// header.
    #[inline]
    pub(crate) fn read(body: &[u8]) -> Option<PageHeader> {
        let bytes = body.first_chunk::<HEADER_LEN>()?;
        Some(PageHeader {
            kind: PageKind::from_byte(bytes[KIND])?,
            level: bytes[LEVEL],
            count: u16_at(bytes, COUNT),
            page: PageId(u32_at(bytes, PAGE)),
            created_txn: TxnId::from_u64(u64_at(bytes, CREATED_TXN)),
            pages: u32_at(bytes, PAGES),
            link: PageId(u32_at(bytes, LINK)),
            extra: u64_at(bytes, EXTRA),
        })
    }

    /// Returns the header of page `id`, which must be of this kind.
    ///
    /// # Errors
    /// `Corrupt` if the page is of another kind, or contains another page number.
    pub(crate) fn expect(body: &[u8], kind: PageKind, id: PageId, page_size: usize) -> Result<PageHeader> {
        match PageHeader::read(body) {
            Some(header) if header.kind == kind && header.page == id => Ok(header),
            Some(header) => Err(damaged(
                id,
                page_size,
                format!("expected {kind:?} page {}, found {:?} page {}", id.0, header.kind, header.page.0),
            )),
            None => Err(damaged(id, page_size, "unknown kind of page")),
        }
    }

    /// Encodes the header to the start of the body.
    pub(crate) fn write(&self, body: &mut [u8]) {
        body[KIND] = self.kind as u8;
        body[LEVEL] = self.level;
        set_u16(body, COUNT, self.count);
        set_u32(body, PAGE, self.page.0);
        set_u64(body, CREATED_TXN, self.created_txn.as_u64());
        set_u32(body, PAGES, self.pages);
        set_u32(body, LINK, self.link.0);
        set_u64(body, EXTRA, self.extra);
    }
}

/// Sets the new number and created_txn of a page that was copied.
pub(crate) fn set_identity(body: &mut [u8], id: PageId, created_txn: TxnId) {
    set_u32(body, PAGE, id.0);
    set_u64(body, CREATED_TXN, created_txn.as_u64());
}

/// Returns the error for damage found in page `id`.
#[cold]
pub(crate) fn damaged(id: PageId, page_size: usize, what: impl Into<String>) -> Error {
    Error::corrupt("arena", u64::from(id.0) * page_size as u64, what)
}

/// Returns the length in pages of the extent for a value of this length.
///
/// # Panics
/// Never for lengths up to `VALUE_LEN_MAX`, which callers have checked.
pub(crate) fn extent_pages(page_size: usize, value_len: u64) -> u32 {
    let bytes = value_len + (CHECKSUM_LEN + HEADER_LEN) as u64;
    u32::try_from(bytes.div_ceil(page_size as u64)).expect("a value of at most 1 GiB")
}

/// Allocates an extent and copies the value into it.
///
/// # Errors
/// `Limit` if the value is longer than 1 GiB, and those of [`PageWrite::allocate_extent`].
pub(crate) fn write_extent<W: PageWrite>(pages: &mut W, value: &[u8]) -> Result<StoredValue<'static>> {
    let len = value.len() as u64;
    if len > VALUE_LEN_MAX {
        return Err(Error::Limit { what: LimitKind::ValueLength, found: len, limit: VALUE_LEN_MAX });
    }
    let count = extent_pages(pages.page_size(), len);
    let page = pages.allocate_extent(count)?;
    let created_txn = pages.txn_id();
    let body = pages.extent_mut(page, count)?;
    write_extent_header(body, page, count, len, created_txn);
    let (filled, rest) = body[HEADER_LEN..].split_at_mut(value.len());
    filled.copy_from_slice(value);
    rest.fill(0);
    Ok(StoredValue::Extent { page, pages: count, len })
}

/// Writes the header of an extent whose bytes the caller writes from `HEADER_LEN` on.
pub(crate) fn write_extent_header(body: &mut [u8], page: PageId, pages: u32, len: u64, created_txn: TxnId) {
    let header = PageHeader {
        kind: PageKind::Extent,
        level: 0,
        count: 0,
        page,
        created_txn,
        pages,
        link: PageId::NONE,
        extra: len,
    };
    header.write(body);
}

/// Returns the value in an extent, after comparing its header with the reference to it.
///
/// # Errors
/// `Corrupt` if the extent is not the one that the reference was made for.
pub(crate) fn read_extent<P: PageRead>(source: &P, page: PageId, pages: u32, len: u64) -> Result<(&[u8], TxnId)> {
    let page_size = source.page_size();
    if len > VALUE_LEN_MAX || pages != extent_pages(page_size, len) {
        return Err(damaged(page, page_size, format!("a reference to an extent of {pages} pages for {len} bytes")));
    }
    let body = source.extent(page, pages)?;
    let header = PageHeader::expect(body, PageKind::Extent, page, page_size)?;
    if header.pages != pages || header.extra != len {
        let found = format!("{} pages with {} bytes", header.pages, header.extra);
        return Err(damaged(
            page,
            page_size,
            format!("expected an extent of {pages} pages with {len} bytes, found {found}"),
        ));
    }
    let value = body.get(HEADER_LEN..HEADER_LEN + len as usize);
    Ok((value.ok_or_else(|| damaged(page, page_size, "the extent is too short"))?, header.created_txn))
}

/// A value as stored in an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StoredValue<'a> {
    /// In the leaf itself.
    Inline(&'a [u8]),
    /// In an extent of its own.
    Extent {
        /// First page of the extent.
        page: PageId,
        /// Length of the extent in pages.
        pages: u32,
        /// Length of the value in bytes.
        len: u64,
    },
}

/// The length in bytes of a reference to an extent in an entry.
pub(crate) const EXTENT_REF_LEN: usize = 16;

impl StoredValue<'_> {
    /// Encodes a reference: page, pages, length.
    pub(crate) fn encode_extent(page: PageId, pages: u32, len: u64) -> [u8; EXTENT_REF_LEN] {
        let mut bytes = [0; EXTENT_REF_LEN];
        set_u32(&mut bytes, 0, page.0);
        set_u32(&mut bytes, 4, pages);
        set_u64(&mut bytes, 8, len);
        bytes
    }

    pub(crate) fn decode_extent(bytes: &[u8; EXTENT_REF_LEN]) -> StoredValue<'static> {
        StoredValue::Extent { page: PageId(u32_at(bytes, 0)), pages: u32_at(bytes, 4), len: u64_at(bytes, 8) }
    }
}
