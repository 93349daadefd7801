//! Extents: contiguous pages that hold one large value. This file contains their size classes, and
//! the format of the page with their free queues.
//!
//! The extent directory is a page with one [`QueueState`] for each size class, in the order of the
//! classes:
//!
//! | body offset | bytes | field |
//! |---|---|---|
//! | 0 | 32 | page header, kind `ExtentDirectory` |
//! | 32 + 24 i | 4, 4 | queue of class i: head page, tail page |
//! | 40 + 24 i | 4, 4 | index of the next entry in the head, index after the last in the tail |
//! | 48 + 24 i | 8 | entries |

use crate::files::page::PageRead;
use crate::files::page::{CHECKSUM_LEN, HEADER_LEN, PageHeader, PageKind, damaged};
use crate::files::slot::{QueueState, SlotImage};
use crate::shared::memory::arena::Pages;
use crate::{Error, LimitKind, PageId, Result, TxnId};

/// Reads the queues of extents.
pub(crate) fn read_directory(pages: &Pages<'_>, page: PageId, queues: &mut [QueueState]) -> Result<()> {
    pages.expect(page, PageKind::ExtentDirectory)?;
    let body = pages.body_of(page, 1)?;
    for (class, state) in queues.iter_mut().enumerate() {
        let mut words = [0; QueueState::WORDS];
        for (i, word) in words.iter_mut().enumerate() {
            let at = HEADER_LEN + (class * QueueState::WORDS + i) * 8;
            *word = u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"));
        }
        *state = QueueState::decode(&words);
        if !state.is_possible(pages.high_water(), pages.page_size()) {
            let what = format!("the queue of extent class {class} has impossible ends: {state:?}");
            return Err(damaged(page, pages.page_size(), what));
        }
    }
    Ok(())
}

/// Formats a page as the directory of these queues.
pub(crate) fn format_directory(body: &mut [u8], page: PageId, created_txn: TxnId, queues: &[QueueState]) {
    body.fill(0);
    let header = PageHeader {
        kind: PageKind::ExtentDirectory,
        level: 0,
        count: 0,
        page,
        created_txn,
        pages: 1,
        link: PageId::NONE,
        extra: 0,
    };
    header.write(body);
    for (class, state) in queues.iter().enumerate() {
        for (i, word) in state.encode().into_iter().enumerate() {
            let at = HEADER_LEN + (class * QueueState::WORDS + i) * 8;
            body[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Returns all free queues of a commit, those of single pages first.
pub(crate) fn all_queues(pages: &Pages<'_>, image: &SlotImage) -> Result<Vec<QueueState>> {
    let mut queues = image.queues.to_vec();
    if !image.extent_directory.is_none() {
        let mut classes = vec![QueueState::default(); CLASSES.len()];
        read_directory(pages, image.extent_directory, &mut classes)?;
        queues.extend(classes);
    }
    Ok(queues)
}

/// The number of size classes.
const CLASS_COUNT: usize = 72;

/// The lengths of extents in pages: all from 2 to 9, then four lengths for each doubling. The
/// latter include one page for the header, since the length of a value is often a power of two. At
/// most a quarter of an extent is unused.
pub(crate) static CLASSES: [u32; CLASS_COUNT] = {
    let mut classes = [0; CLASS_COUNT];
    let mut i = 0;
    while i < 8 {
        classes[i] = i as u32 + 2;
        i += 1;
    }
    let mut shift = 1;
    while i < CLASS_COUNT {
        let mut quarter = 5;
        while quarter <= 8 && i < CLASS_COUNT {
            classes[i] = (quarter << shift) + 1;
            i += 1;
            quarter += 1;
        }
        shift += 1;
    }
    classes
};

const _: () = assert!(CLASS_COUNT * QueueState::WORDS * 8 + HEADER_LEN + CHECKSUM_LEN <= 4096);
// The longest extent: 1 GiB in the smallest pages, and its header.
const _: () = assert!(CLASSES[CLASS_COUNT - 1] > (1 << 18));

/// Returns the first class whose extents have at least this many pages.
pub(crate) fn class_for(pages: u32) -> Result<usize> {
    let class = CLASSES.partition_point(|len| *len < pages);
    if class == CLASSES.len() {
        return Err(Error::Limit {
            what: LimitKind::ValueLength,
            found: u64::from(pages),
            limit: u64::from(CLASSES[CLASS_COUNT - 1]),
        });
    }
    Ok(class)
}

/// Returns the last class whose extents have at most this many pages: the class that a free extent
/// of this length can serve.
pub(crate) fn class_of(pages: u32) -> usize {
    CLASSES.partition_point(|len| *len <= pages) - 1
}

/// Returns the length of the extent that is allocated for `pages` pages.
pub(crate) fn extent_len(pages: u32) -> u32 {
    if pages <= 1 { pages } else { class_for(pages).map_or(pages, |class| CLASSES[class]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every extent length has a class that holds it, with bounded waste, and a free extent
    /// of any length falls into a class that it can serve.
    #[test]
    fn size_classes() {
        for pages in 2..=CLASSES[CLASS_COUNT - 1] {
            let len = extent_len(pages);
            assert!(len >= pages && f64::from(len) <= f64::from(pages) * 1.25 + 1.0, "{pages} {len}");
            assert!(CLASSES[class_of(pages)] <= pages);
        }
        assert_eq!(extent_len(257), 257);
        assert_eq!(extent_len((1 << 18) + 1), (1 << 18) + 1);
    }
}
