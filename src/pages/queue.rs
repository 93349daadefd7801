//! Free queues: FIFO lists of freed pages, kept in pages of the arena.
//!
//! The commit slot records the beginning and the end of a queue. So a writer that dies has neither
//! taken nor returned a page: the next writer overwrites the entries that the dead one wrote after
//! the published end. Therefore a queue page is filled in place, entry by entry, through atomic
//! words. All other pages of the arena never change once published. A page that a started
//! checkpoint contains is sealed: later entries go to the next page, so that the checkpoint's
//! checksum of the sealed page stays valid.
//!
//! | offset in the page | bytes | field |
//! |---|---|---|
//! | 0 | 8 | checksum word |
//! | 8 | 32 | header of kind `FreeQueue`; `link`: next page; `extra`: entries of the previous |
//! | 40 + 24 i | 4, 4 | entry i: first page; pages, and bit 31 if a log record may refer to them |
//! | 48 + 24 i | 8 | created_txn |
//! | 56 + 24 i | 8 | freed_txn |
//!
//! The page after the tail is reserved when the tail is made, since the link of a sealed page can't
//! change. For the same reason, the number of entries of a page is recorded in the page after it.

use crate::files::page::PageRead;
use crate::files::page::{PageHeader, PageKind};
use crate::files::page::{
    QUEUE_ENTRIES_AT as ENTRIES_AT, QUEUE_ENTRY_BYTES as ENTRY_BYTES, queue_capacity as capacity,
};
use crate::files::slot::QueueState;
use crate::shared::memory::arena::{Arena, Pages};
use crate::{PageId, Result, TxnId};

/// An entry of a free queue: a page or extent that may be reused when no pin or checkpoint protects
/// a commit from `created_txn` up to, but not including, `freed_txn`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FreeEntry {
    pub(crate) page: PageId,
    pub(crate) pages: u32,
    pub(crate) created_txn: TxnId,
    pub(crate) freed_txn: TxnId,
    /// Whether a record of the log may refer to the extent: see [`crate::pages::protection`].
    pub(crate) is_logged: bool,
}

/// The bit of an entry's length that records [`FreeEntry::is_logged`]. No extent is that long.
const LOGGED_BIT: u32 = 1 << 31;

/// Makes a page the (still empty) tail of a queue. The header's `link` is the page reserved to
/// follow it; its `extra` is the number of entries of the page before it.
pub(crate) fn format_page(body: &mut [u8], page: PageId, created_txn: TxnId, next: PageId, previous_count: u32) {
    body.fill(0);
    let header = PageHeader {
        kind: PageKind::FreeQueue,
        level: 0,
        count: 0,
        page,
        created_txn,
        pages: 1,
        link: next,
        extra: u64::from(previous_count),
    };
    header.write(body);
}

/// Returns the number of entries of the queue page `header`, which is not the tail.
pub(crate) fn sealed_count(pages: &Pages<'_>, header: &PageHeader) -> Result<u32> {
    let next = pages.expect(header.link, PageKind::FreeQueue)?;
    Ok(next.extra.min(u64::from(capacity(pages.page_size()))) as u32)
}

/// Reads entry `index` of a queue page. The writer lock or a pin orders the read after the store of
/// the entry.
pub(crate) fn read_entry(pages: &Pages<'_>, arena: &Arena, page: PageId, index: u32) -> Result<FreeEntry> {
    if index >= capacity(arena.page_size()) {
        return Err(arena.damaged(page, format!("queue page has no entry {index}")));
    }
    let at = ENTRIES_AT + index as usize * ENTRY_BYTES;
    let words: [u64; ENTRY_BYTES / 8] = arena.load_words(page, at)?;
    let entry = FreeEntry {
        page: PageId(words[0] as u32),
        pages: (words[0] >> 32) as u32 & !LOGGED_BIT,
        created_txn: TxnId::from_u64(words[1]),
        freed_txn: TxnId::from_u64(words[2]),
        is_logged: (words[0] >> 32) as u32 & LOGGED_BIT != 0,
    };
    if entry.created_txn > entry.freed_txn || pages.check(entry.page, entry.pages).is_err() {
        return Err(arena.damaged(page, format!("queue entry {index} is impossible: {entry:?}")));
    }
    Ok(entry)
}

/// Writes entry `index` of a queue page, after the published end.
pub(crate) fn write_entry(arena: &Arena, page: PageId, index: u32, entry: FreeEntry) -> Result<()> {
    let at = ENTRIES_AT + index as usize * ENTRY_BYTES;
    let pages = entry.pages | if entry.is_logged { LOGGED_BIT } else { 0 };
    let values: [u64; ENTRY_BYTES / 8] =
        [u64::from(entry.page.0) | u64::from(pages) << 32, entry.created_txn.as_u64(), entry.freed_txn.as_u64()];
    arena.store_words(page, at, &values)
}

/// Returns the page after a queue's page that is not its tail. A page without entries is damaged,
/// since each page was made for an entry. So a walk that counts entries detects a cycle of links.
pub(crate) fn next_page(pages: &Pages<'_>, arena: &Arena, header: &PageHeader) -> Result<PageId> {
    let next = pages.expect(header.link, PageKind::FreeQueue)?;
    if next.page == header.page || next.extra == 0 {
        return Err(arena.damaged(
            header.page,
            format!("a queue's page has page {} as its next page, which can't follow it", next.page.0),
        ));
    }
    Ok(next.page)
}

/// Visits the pages of a queue that have a header: all except the page reserved to follow the tail.
pub(crate) fn each_page(
    pages: &Pages<'_>,
    arena: &Arena,
    queue: &QueueState,
    on_page: &mut dyn FnMut(PageId, TxnId) -> Result<()>,
) -> Result<()> {
    let mut page = queue.head;
    // Each page but the first contains at least one of the counted entries.
    for _ in 0..=queue.count.saturating_add(1) {
        let header = pages.expect(page, PageKind::FreeQueue)?;
        on_page(page, header.created_txn)?;
        if page == queue.tail {
            return Ok(());
        }
        page = next_page(pages, arena, &header)?;
    }
    Err(arena.damaged(page, "a queue has more pages than it counts entries"))
}

/// Visits a queue's own pages (the reserved one has no header yet) and its entries.
///
/// `pages` belongs to the commit that `queue` was read from, which the caller protects.
pub(crate) fn walk(
    pages: &Pages<'_>,
    arena: &Arena,
    queue: &QueueState,
    on_page: &mut dyn FnMut(PageId, Option<TxnId>) -> Result<()>,
    on_entry: &mut dyn FnMut(FreeEntry) -> Result<()>,
) -> Result<()> {
    if queue.head.is_none() {
        return Ok(());
    }
    let mut page = queue.head;
    let mut index = queue.head_index;
    let mut left = queue.count;
    loop {
        let header = pages.expect(page, PageKind::FreeQueue)?;
        on_page(page, Some(header.created_txn))?;
        let (next, end) = match page == queue.tail {
            true => (header.link, queue.tail_index),
            false => (next_page(pages, arena, &header)?, sealed_count(pages, &header)?),
        };
        let before = left;
        while index < end {
            if left == 0 {
                return Err(arena.damaged(page, "a queue has more entries than it counts"));
            }
            left -= 1;
            on_entry(read_entry(pages, arena, page, index)?)?;
            index += 1;
        }
        if page == queue.tail {
            on_page(next, None)?;
            break;
        }
        if before == left && page != queue.head {
            return Err(arena.damaged(page, "a queue's page holds no entries"));
        }
        page = next;
        index = 0;
    }
    if left != 0 {
        return Err(arena.damaged(page, format!("a queue lacks {left} of the entries it counts")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::page::{CHECKSUM_LEN, HEADER_LEN};

    /// Goal: the header of a queue page has its golden bytes, and no byte of the page's earlier
    /// content is left.
    #[test]
    fn a_queue_page_has_its_golden_bytes() {
        let mut body = vec![0xaa; 4096 - CHECKSUM_LEN];
        format_page(&mut body, PageId(0x0102), TxnId::from_u64(0x0304), PageId(0x0506), 0x07);
        let expected = [
            [4, 0, 0, 0, 0x02, 0x01, 0, 0], // queue, level 0, count 0; page 0x102
            [0x04, 0x03, 0, 0, 0, 0, 0, 0], // created_txn
            [1, 0, 0, 0, 0x06, 0x05, 0, 0], // 1 page; the page after it
            [7, 0, 0, 0, 0, 0, 0, 0],       // entries of the page before it
        ];
        assert_eq!(body[..HEADER_LEN], *expected.as_flattened());
        assert!(body[HEADER_LEN..].iter().all(|byte| *byte == 0));
        assert_eq!((ENTRIES_AT, ENTRY_BYTES, capacity(4096)), (40, 24, 169));
    }
}
