//! The image of a commit: everything that one publication makes visible, as 64-bit words.
//!
//! A commit slot (`control`), the copy that durable readers use, and the checkpoint's header
//! contain the same words. The last word is a checksum over the others, so that a flipped bit in
//! shared memory is an error and not a wrong page number.
//!
//! | word | content (low half, high half) |
//! |---|---|
//! | 0 | transaction id |
//! | 1 | catalog root page, extent directory page |
//! | 2 | high-water mark: pages handed out so far |
//! | 3 | log position where the commit's record ends |
//! | 4 | log blocks reserved |
//! | 5 | number of the next keyspace |
//! | 6, 7 | keyspaces, records |
//! | 8 | pages in the queues |
//! | 9 | commits |
//! | 10, 11, 12 | queue of young pages: (head page, tail page), (head index, tail index), entries |
//! | 13 – 15, 16 – 18 | the same for pages protected by a checkpoint, and by a pin |
//! | 19 | the newest version that a dropped cell has had; versions of new cells are above it |
//! | 20 – 22 | the same for cold pages |
//! | 23, 24, 25 | the tree that changed last: keyspace number, root page, entries |
//! | 26 – 28 | the tree that changed before it |
//! | 29, 30 | 0 |
//! | 31 | checksum |

use crate::files::geometry::Geometry;
use crate::files::page;
use crate::{Error, KeyspaceId, PageId, Result, TxnId, Version, limits};
use untorn_wal::Lsn;

/// The number of words of an image; a multiple of the 8 words of a cache line.
pub(crate) const SLOT_WORDS: usize = 32;
/// The index of the word of `cells_floor`.
const CELLS_FLOOR_AT: usize = 19;

/// The queues of free single pages. The queue that holds a page is only a hint: rule I3 decides
/// whether the page may be reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum QueueKind {
    /// Created after the newest started checkpoint: only pins can protect them. Their number is
    /// bounded, and they are used first: see `pages::workspace`.
    Young = 0,
    /// Created before the newest started checkpoint: protected until the next checkpoint is
    /// finished.
    Checkpoint = 1,
    /// Protected by a pin when an allocation scanned them.
    Pinned = 2,
    /// Created like young pages, but in excess of their limit: used only when no other queue has a
    /// page.
    Cold = 3,
}

/// A bound that no count here can reach.
pub(crate) const COUNT_MAX: u64 = 1 << 62;

/// Returns whether the reserved bits are zero, as they are written.
pub(crate) fn is_reserved_zero(words: &[u64; SLOT_WORDS]) -> bool {
    words[2] >> 32 == 0
        && RECENT_AT.iter().all(|at| words[at + 1] >> 32 == 0)
        && words[RESERVED_AT..SLOT_WORDS - 1].iter().all(|word| *word == 0)
}

/// The number of queues of single pages.
pub(crate) const QUEUES: usize = 4;

/// The state of a FIFO queue of freed pages: where it begins and ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct QueueState {
    /// The page with the next entry to take; none if the queue was never used.
    pub(crate) head: PageId,
    /// The page to which entries are appended.
    pub(crate) tail: PageId,
    /// Index of the next entry in `head`.
    pub(crate) head_index: u32,
    /// Index after the last entry in `tail`.
    pub(crate) tail_index: u32,
    /// The number of entries in the queue.
    pub(crate) count: u64,
}

impl QueueState {
    /// The number of words of an encoded queue.
    pub(crate) const WORDS: usize = 3;

    pub(crate) fn encode(&self) -> [u64; Self::WORDS] {
        [
            self.head.0 as u64 | (self.tail.0 as u64) << 32,
            self.head_index as u64 | (self.tail_index as u64) << 32,
            self.count,
        ]
    }

    /// Returns whether a commit with this high-water mark can have the queue.
    pub(crate) fn is_possible(&self, high_water: u32, page_size: usize) -> bool {
        self.head.0.max(self.tail.0) < high_water
            && self.head.is_none() == self.tail.is_none()
            && self.head_index.max(self.tail_index) <= page::queue_capacity(page_size)
            && (self.count == 0 || !self.head.is_none())
            && self.count <= COUNT_MAX
    }

    pub(crate) fn decode(words: &[u64]) -> QueueState {
        QueueState {
            head: PageId(words[0] as u32),
            tail: PageId((words[0] >> 32) as u32),
            head_index: words[1] as u32,
            tail_index: (words[1] >> 32) as u32,
            count: words[2],
        }
    }
}

/// The first word of each queue.
const QUEUES_AT: [usize; QUEUES] = [10, 13, 16, 20];

// The last word is the checksum.
const _: () = assert!(RESERVED_AT < SLOT_WORDS);

/// The number of trees whose roots are in the image itself.
pub(crate) const RECENT_TREES: usize = 2;
/// The first word of each such tree.
const RECENT_AT: [usize; RECENT_TREES] = [23, 26];
/// The first of the words that are reserved.
const RESERVED_AT: usize = 29;

/// The root of a keyspace's tree and the number of its entries. They replace those in the catalog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecentTree {
    pub(crate) keyspace: KeyspaceId,
    pub(crate) root: PageId,
    pub(crate) entries: u64,
}

impl RecentTree {
    /// No tree. The numbers of keyspaces begin at 1.
    pub(crate) const NONE: RecentTree = RecentTree { keyspace: KeyspaceId(0), root: PageId::NONE, entries: 0 };
}

impl Default for RecentTree {
    fn default() -> Self {
        RecentTree::NONE
    }
}

/// The roots of all trees: the tree of keyspaces, and the roots that changed last.
///
/// A commit that changes one of the recent trees changes no page of the catalog. The entry in the
/// catalog is stale until another tree displaces the recent one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct CatalogState {
    /// The root of the tree of keyspaces.
    pub(crate) root: PageId,
    /// The trees that changed last, the newest first.
    pub(crate) recent: [RecentTree; RECENT_TREES],
}

impl CatalogState {
    /// Returns the recent tree of a keyspace.
    #[inline]
    pub(crate) fn recent(&self, keyspace: KeyspaceId) -> Option<RecentTree> {
        self.recent.iter().find(|tree| tree.keyspace == keyspace).copied()
    }

    /// Returns the pages that lead to all trees: the root of the catalog, and the recent roots.
    pub(crate) fn roots(&self) -> impl Iterator<Item = PageId> {
        let recent = self.recent.into_iter().map(|tree| tree.root);
        std::iter::once(self.root).chain(recent).filter(|root| !root.is_none())
    }
}

/// The state that a commit publishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SlotImage {
    pub(crate) txn: TxnId,
    pub(crate) catalog: CatalogState,
    /// The page with the queues of free extents.
    pub(crate) extent_directory: PageId,
    /// The number of pages handed out so far: every page number is below it.
    pub(crate) high_water: u32,
    /// The log position where this commit's record ends.
    pub(crate) log_tail: Lsn,
    /// The number of log blocks reserved so far, out of those that the logger granted.
    pub(crate) blocks_reserved: u64,
    /// The number that the next keyspace will have.
    pub(crate) next_keyspace: u64,
    /// The number of keyspaces.
    pub(crate) keyspaces: u64,
    /// The number of records in all keyspaces.
    pub(crate) records: u64,
    /// The number of pages in the queues, including those of extents.
    pub(crate) free_pages: u64,
    /// The number of committed transactions, without empty ones.
    pub(crate) commits: u64,
    pub(crate) queues: [QueueState; QUEUES],
    /// The newest version that a dropped cell has had, as of this commit; versions of new cells are
    /// above it.
    pub(crate) cells_floor: Version,
}

impl SlotImage {
    /// Returns the state of a new store, which has only page 0.
    pub(crate) fn empty() -> SlotImage {
        SlotImage { high_water: 1, next_keyspace: 1, ..SlotImage::default() }
    }

    pub(crate) fn encode(&self) -> [u64; SLOT_WORDS] {
        let mut words = [0; SLOT_WORDS];
        words[0] = self.txn.as_u64();
        words[1] = self.catalog.root.0 as u64 | (self.extent_directory.0 as u64) << 32;
        words[2] = self.high_water as u64;
        words[3] = self.log_tail.0;
        words[4] = self.blocks_reserved;
        words[5] = self.next_keyspace;
        words[6] = self.keyspaces;
        words[7] = self.records;
        words[8] = self.free_pages;
        words[9] = self.commits;
        for (i, queue) in self.queues.iter().enumerate() {
            let at = QUEUES_AT[i];
            words[at..at + QueueState::WORDS].copy_from_slice(&queue.encode());
        }
        words[CELLS_FLOOR_AT] = self.cells_floor.as_u64();
        for (tree, at) in self.catalog.recent.iter().zip(RECENT_AT) {
            words[at..at + 3].copy_from_slice(&[tree.keyspace.0, u64::from(tree.root.0), tree.entries]);
        }
        words[SLOT_WORDS - 1] = checksum(&words);
        words
    }

    /// Returns the index of the first word that no commit of a store of this geometry publishes,
    /// and the problem. An image from a file needs this check, since its checksum does not prove
    /// its origin.
    pub(crate) fn problem(&self, geometry: &Geometry) -> Option<(usize, String)> {
        let pages = self.high_water;
        let no_page = |page: PageId| page.0 >= pages && !page.is_none();
        let pages_max = geometry.pages_max();
        if pages == 0 || u64::from(pages) > pages_max {
            return Some((2, format!("the high-water mark is page {pages}, expected 1 to {pages_max}")));
        }
        if no_page(self.catalog.root) || no_page(self.extent_directory) {
            let (catalog, directory) = (self.catalog.root.0, self.extent_directory.0);
            let what =
                format!("the catalog is page {catalog} and the extent directory page {directory}, of {pages} pages");
            return Some((1, what));
        }
        for (tree, at) in self.catalog.recent.iter().zip(RECENT_AT) {
            let is_unused = *tree == RecentTree::NONE;
            if no_page(tree.root) || tree.entries > COUNT_MAX || (!is_unused && self.catalog.root.is_none()) {
                return Some((at, format!("{tree:?} is impossible, of {pages} pages")));
            }
            if !is_unused && !(1..self.next_keyspace).contains(&tree.keyspace.0) {
                return Some((
                    at,
                    format!("{tree:?} is of no keyspace; the next one is number {}", self.next_keyspace),
                ));
            }
        }
        let [first, second] = self.catalog.recent;
        if first.keyspace == second.keyspace && first != RecentTree::NONE {
            return Some((RECENT_AT[1], format!("keyspace number {} has two roots", first.keyspace.0)));
        }
        if !self.log_tail.is_stored() {
            return Some((3, format!("the record ends at log position {}, which is invalid", self.log_tail)));
        }
        if self.next_keyspace == 0 {
            return Some((5, "the next keyspace has number 0, expected 1 or more".into()));
        }
        let keyspaces_max = limits::KEYSPACES_MAX.min(self.next_keyspace - 1);
        let counts = [
            (6, "keyspaces", self.keyspaces, keyspaces_max),
            (7, "records", self.records, COUNT_MAX),
            (8, "free pages", self.free_pages, COUNT_MAX),
            (9, "commits", self.commits, COUNT_MAX),
        ];
        for (word, what, found, max) in counts {
            if found > max {
                return Some((word, format!("the commit counts {found} {what}, expected at most {max}")));
            }
        }
        for (index, queue) in self.queues.iter().enumerate() {
            if !queue.is_possible(pages, geometry.page_size) {
                let what = format!("queue {index} has impossible ends ({queue:?}, {pages} pages)");
                return Some((QUEUES_AT[index], what));
            }
        }
        // Each entry of these queues is a page of its own, below the high-water mark.
        let entries = self.queues.iter().fold(0, |sum: u64, queue| sum.saturating_add(queue.count));
        if entries > self.free_pages || self.free_pages >= u64::from(pages) {
            let free = self.free_pages;
            let what = format!("the commit counts {free} free pages, {entries} of them in queues, of {pages} pages");
            return Some((8, what));
        }
        None
    }

    /// Decodes the image in these words, which were read from `file`. An error names the file.
    pub(crate) fn decode(words: &[u64; SLOT_WORDS], file: &str) -> Result<SlotImage> {
        let found = words[SLOT_WORDS - 1];
        let expected = checksum(words);
        if found != expected {
            return Err(Error::corrupt(
                file,
                0,
                format!("the image of a commit has checksum {found:016x}, expected {expected:016x}"),
            ));
        }
        let mut queues = [QueueState::default(); QUEUES];
        for (i, queue) in queues.iter_mut().enumerate() {
            *queue = QueueState::decode(&words[QUEUES_AT[i]..]);
        }
        Ok(SlotImage {
            txn: TxnId::from_u64(words[0]),
            catalog: CatalogState {
                root: PageId(words[1] as u32),
                recent: RECENT_AT.map(|at| RecentTree {
                    keyspace: KeyspaceId(words[at]),
                    root: PageId(words[at + 1] as u32),
                    entries: words[at + 2],
                }),
            },
            extent_directory: PageId((words[1] >> 32) as u32),
            high_water: words[2] as u32,
            log_tail: Lsn(words[3]),
            blocks_reserved: words[4],
            next_keyspace: words[5],
            keyspaces: words[6],
            records: words[7],
            free_pages: words[8],
            commits: words[9],
            queues,
            cells_floor: Version::from_u64(words[CELLS_FLOOR_AT]),
        })
    }
}

/// Returns a multiply-and-fold hash (the mixing step of wyhash) in four independent lanes, which
/// the processor computes in parallel. Each commit and each snapshot computes it. A CRC over the
/// bytes would cost more than the copy of the slot.
pub(crate) fn checksum(words: &[u64; SLOT_WORDS]) -> u64 {
    let mut lanes: [u64; 4] =
        [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];
    for (index, &word) in words[..SLOT_WORDS - 1].iter().enumerate() {
        let lane = &mut lanes[index % 4];
        *lane = fold(*lane, word);
    }
    lanes[1..].iter().fold(lanes[0], |sum, lane| fold(sum, *lane))
}

#[inline(always)]
fn fold(sum: u64, word: u64) -> u64 {
    let wide = u128::from(word ^ sum) * 0xa076_1d64_78bd_642f_u128;
    (wide as u64) ^ ((wide >> 64) as u64) ^ word.rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a queue without pages that counts entries is refused, as are more free pages than
    /// there are pages.
    #[test]
    fn counts_that_no_commit_has() {
        let geometry = Geometry { page_size: 4096, max_size: 16 << 20, ring_size: 64 << 10, segment_size: 256 << 10 };
        let queue = |head, count| QueueState { head: PageId(head), tail: PageId(head), count, ..QueueState::default() };
        let image = |free_pages, queue| SlotImage {
            high_water: 9,
            free_pages,
            queues: [queue, QueueState::default(), QueueState::default(), QueueState::default()],
            ..SlotImage::empty()
        };
        assert_eq!(image(8, queue(3, 8)).problem(&geometry), None);
        for (free_pages, queue, word) in [(8, queue(0, 1), 10), (9, queue(3, 8), 8), (7, queue(3, 8), 8)] {
            let problem = image(free_pages, queue).problem(&geometry);
            assert_eq!(problem.as_ref().map(|problem| problem.0), Some(word), "{free_pages} {queue:?}: {problem:?}");
        }
    }

    /// Goal: an image survives its encoding, and each flipped bit is noticed.
    #[test]
    fn round_trip_and_every_flipped_bit() {
        let mut image = SlotImage::empty();
        image.txn = TxnId::from_u64(77);
        image.queues[1] = QueueState { head: PageId(3), tail: PageId(9), head_index: 4, tail_index: 5, count: 600 };
        image.cells_floor = Version::from_u64(1 << 44 | 6);
        image.queues[3] = QueueState { head: PageId(8), tail: PageId(7), head_index: 6, tail_index: 5, count: 400 };
        let words = image.encode();
        assert_eq!(SlotImage::decode(&words, "control").unwrap(), image);
        for bit in 0..SLOT_WORDS * 64 {
            let mut flipped = words;
            flipped[bit / 64] ^= 1 << (bit % 64);
            assert!(SlotImage::decode(&flipped, "control").is_err(), "bit {bit}");
        }
    }
}
