//! Reading a page of a tree: its layout, its entries, and the search in it.
//!
//! These parts follow the header, without gaps:
//!
//! | bytes | content |
//! |---|---|
//! | prefix length, rounded up to 8 | the bytes that all keys of the page begin with, zero-padded |
//! | 8 × count | key heads, ascending |
//! | 6 × count (leaf), 8 × count (branch) | slots |
//! | | free space |
//! | to the page's end | heap: records, in any order |
//!
//! A key is prefix + suffix. Its *head* is the first 8 bytes of the suffix as a big-endian number,
//! zero-padded, stored little-endian like every number: comparing heads as `u64` compares the
//! bytes. Suffix bytes beyond the head (the *rest*) are in the record; the head's bytes are not
//! stored a second time. If heads are equal, the suffix lengths decide (`"a"` < `"a\0"`), then the
//! rests.
//!
//! - Leaf slot: record offset u16, suffix length u16, value length u16, whose top bit marks a
//!   reference to an extent. Leaf record: version u64, rest, value or reference {page u32, pages
//!   u32, length u64}.
//! - Branch slot: record offset u16, suffix length u16, child u32. Branch record: rest. Child i of
//!   a branch holds the keys k with separator i-1 ≤ k < separator i; child 0 is in the header
//!   (`link`). A branch may have one child and no separator: its other children were removed, and
//!   the neighbours are too full to take the last one.
//! - An empty record has offset 0.
//! - `extra` in the header: prefix length u16, heap start u16, garbage u16 (the heap bytes that
//!   belong to no live record), reserved u16.
//!
//! This layout reduces cache misses, which dominate a lookup in a large store. Header, prefix and
//! heads are together at the start of the page, where one prefetch covers them. A page is searched
//! in the dense array of heads, without unpredictable branches and without reading a key. Thanks to
//! prefix truncation, 8 bytes distinguish nearly all keys. So a lookup reads only one slot and one
//! record in addition. In the record, version, rest of the key and value are adjacent. Fixed-size
//! heads, and separators cut to the bytes that distinguish the children, keep the fan-out high
//! (about 250 at 4 KiB) and the upper levels in cache.
//!
//! Every access to stored bytes is checked: damage is an error, never a panic. `parse` establishes
//! the properties that the other functions rely on.

mod key;

use self::key::equal;
pub(crate) use self::key::{HEAD_LEN, KeyParts, head_of};
use crate::files::page::PageRead;
use crate::files::page::{
    CHECKSUM_LEN, COUNT, EXTENT_REF_LEN, EXTRA, HEADER_LEN, KIND, LEVEL, LINK, PAGE, PageHeader, PageKind, StoredValue,
    damaged, u16_at, u32_at,
};
use crate::ids::PageId;
use crate::shared::memory::mapping::{prefetch, prefetch_bytes};
use crate::{Error, Result, TxnId};
use std::cmp::Ordering;
use std::hint::select_unpredictable;

pub(crate) const LEAF_SLOT_LEN: usize = 6;
pub(crate) const BRANCH_SLOT_LEN: usize = 8;
/// The number of bytes of a leaf record before the rest of the key: the version.
pub(crate) const VERSION_LEN: usize = 8;
/// The bit of a slot's value length that marks a reference to an extent.
pub(crate) const EXTENT_BIT: u16 = 1 << 15;
/// The maximum number of bytes of a record to prefetch. The processor detects the sequential read,
/// and prefetches the rest itself.
const PREFETCHED_MAX: usize = 512;
/// The message for damage to the offset of a key.
const KEY_OUTSIDE: &str = "a key lies outside the page";
/// The message of a panic that cannot happen: `parse` has found all slots in the page.
const SLOT_MISSING: &str = "a slot for each head";
/// All pages of up to this many entries are searched in the same number of steps.
const FEW_ENTRIES_MAX: usize = 32;
/// The bound of a page's level: 2^32 pages and two children for each branch make 32 levels.
pub(crate) const LEVEL_MAX: u8 = 40;

pub(crate) const PREFIX_LEN_AT: usize = EXTRA;
pub(crate) const HEAP_START_AT: usize = EXTRA + 2;
pub(crate) const GARBAGE_AT: usize = EXTRA + 4;
pub(crate) const RESERVED_AT: usize = EXTRA + 6;

/// Returns how many bytes a prefix takes.
#[inline(always)]
pub(crate) const fn padded(prefix_len: usize) -> usize {
    (prefix_len + 7) & !7
}

/// The result of a search: the index of a key, or the index at which it would be inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SearchResult {
    pub(crate) index: usize,
    pub(crate) found: bool,
}

/// The data of an entry besides its key, as stored.
#[derive(Clone, Copy)]
pub(crate) struct Payload<'a> {
    /// The record bytes before the rest of the key: the version in leaves, nothing in branches.
    pub(crate) version: &'a [u8],
    /// The record bytes after the rest of the key: value or reference in leaves, none in branches.
    pub(crate) value: &'a [u8],
    /// The slot's data: the value's length with its extent bit, or the child.
    pub(crate) slot_data: u32,
}

/// A slot, decoded.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) offset: usize,
    pub(crate) suffix_len: usize,
    pub(crate) data: u32,
}

impl Slot {
    /// Returns how many bytes the suffix has beyond the head.
    pub(crate) fn rest_len(self) -> usize {
        self.suffix_len.saturating_sub(HEAD_LEN)
    }
}

/// Decodes the fields that the slots of leaves and branches have in common.
#[inline(always)]
fn slot_at(slot: &[u8], data: u32) -> Slot {
    Slot { offset: usize::from(u16_at(slot, 0)), suffix_len: usize::from(u16_at(slot, 2)), data }
}

/// A leaf or branch whose arrays are known to be inside the page.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a> {
    pub(crate) body: &'a [u8],
    pub(crate) id: PageId,
    pub(crate) level: u8,
    prefix: &'a [u8],
    heads: &'a [[u8; HEAD_LEN]],
    slots: &'a [u8],
}

impl<'a> Node<'a> {
    /// Reads page `id` as a leaf or branch.
    #[inline(always)]
    pub(crate) fn open<P: PageRead>(pages: &'a P, id: PageId) -> Result<Node<'a>> {
        Node::parse(pages.body(id)?, id)
    }

    /// Reads the child `id` of `parent`. Levels strictly decrease, so no descent is endless.
    #[inline(always)]
    pub(crate) fn open_child<P: PageRead>(pages: &'a P, id: PageId, parent: &Node<'_>) -> Result<Node<'a>> {
        let node = Node::open(pages, id)?;
        if node.level + 1 != parent.level {
            return Err(wrong_level(id, node.body.len(), node.level, parent.level));
        }
        Ok(node)
    }

    #[inline(always)]
    pub(crate) fn parse(body: &'a [u8], id: PageId) -> Result<Node<'a>> {
        Node::try_parse(body, id).ok_or_else(|| explain(body, id))
    }

    #[inline(always)]
    fn try_parse(body: &'a [u8], id: PageId) -> Option<Node<'a>> {
        let header = body.first_chunk::<HEADER_LEN>()?;
        let (kind, level) = (header[KIND], header[LEVEL]);
        let is_leaf = level == 0;
        let expected = if is_leaf { PageKind::Leaf } else { PageKind::Branch };
        if kind != expected as u8 || level > LEVEL_MAX || u32_at(header, PAGE) != id.0 {
            return None;
        }
        let count = usize::from(u16_at(header, COUNT));
        let prefix_len = usize::from(u16_at(header, PREFIX_LEN_AT));
        let heap_start = usize::from(u16_at(header, HEAP_START_AT));
        let slot_len = if is_leaf { LEAF_SLOT_LEN } else { BRANCH_SLOT_LEN };
        let (heads_at, heads_len) = (padded(prefix_len), HEAD_LEN * count);
        let arrays_len = heads_at + heads_len + slot_len * count;
        // No record begins before the heap. The bytes between the arrays and the heap are not used.
        if HEADER_LEN + arrays_len > heap_start || heap_start > body.len() {
            return None;
        }
        let arrays = &body[HEADER_LEN..][..arrays_len];
        let (prefix, arrays) = arrays.split_at(heads_at);
        let (heads, slots) = arrays.split_at(heads_len);
        Some(Node { body, id, level, prefix: &prefix[..prefix_len], heads: heads.as_chunks::<HEAD_LEN>().0, slots })
    }

    #[inline]
    pub(crate) fn is_leaf(&self) -> bool {
        self.level == 0
    }

    /// Returns the number of entries of a leaf, or of separators of a branch.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.heads.len()
    }

    pub(crate) fn prefix(&self) -> &'a [u8] {
        self.prefix
    }

    pub(crate) fn created_txn(&self) -> TxnId {
        PageHeader::read(self.body).map_or(TxnId::ZERO, |header| header.created_txn)
    }

    pub(crate) fn heap_start(&self) -> usize {
        usize::from(u16_at(self.body, HEAP_START_AT))
    }

    pub(crate) fn garbage(&self) -> usize {
        usize::from(u16_at(self.body, GARBAGE_AT))
    }

    #[inline(always)]
    pub(crate) fn head(&self, index: usize) -> u64 {
        u64::from_le_bytes(self.heads[index])
    }

    /// Returns where the array of slots ends and free space begins.
    pub(crate) fn arrays_end(&self) -> usize {
        HEADER_LEN + padded(self.prefix.len()) + HEAD_LEN * self.count() + self.slots.len()
    }

    /// Returns the slot of an entry that exists.
    #[inline(always)]
    pub(crate) fn slot(&self, index: usize) -> Slot {
        if self.is_leaf() { self.leaf_slot(index) } else { self.branch_slot(index) }
    }

    #[inline(always)]
    fn leaf_slot(&self, index: usize) -> Slot {
        let slot = self.slots[index * LEAF_SLOT_LEN..].first_chunk::<LEAF_SLOT_LEN>().expect(SLOT_MISSING);
        slot_at(slot, u32::from(u16_at(slot, 4)))
    }

    #[inline(always)]
    fn branch_slot(&self, index: usize) -> Slot {
        let slot = self.slots[index * BRANCH_SLOT_LEN..].first_chunk::<BRANCH_SLOT_LEN>().expect(SLOT_MISSING);
        slot_at(slot, u32_at(slot, 4))
    }

    /// Returns the lengths of the record's parts before and after the rest of the key.
    #[inline(always)]
    fn around_rest(&self, slot: Slot) -> (usize, usize) {
        if self.is_leaf() { (VERSION_LEN, (slot.data as u16 & !EXTENT_BIT) as usize) } else { (0, 0) }
    }

    pub(crate) fn record_len(&self, slot: Slot) -> usize {
        let (version, value) = self.around_rest(slot);
        version + slot.rest_len() + value
    }

    /// Returns the rest of a key; `None` if it lies outside the page.
    #[inline(always)]
    fn rest(&self, slot: Slot) -> Option<&'a [u8]> {
        let len = slot.rest_len();
        if len == 0 {
            return Some(&[]);
        }
        let at = slot.offset + self.around_rest(slot).0;
        self.body.get(at..at + len)
    }

    /// Finds a key by its head. Reads a slot only if heads are equal.
    #[inline(always)]
    pub(crate) fn find(&self, key: &[u8]) -> Result<SearchResult> {
        let Some(suffix) = self.suffix_of(key) else {
            let index = if is_below(key, self.prefix) { 0 } else { self.count() };
            return Ok(SearchResult { index, found: false });
        };
        let head = head_of(suffix);
        let index = self.first_head_not_below(head);
        if self.heads.get(index).is_none_or(|stored| u64::from_le_bytes(*stored) != head) {
            return Ok(SearchResult { index, found: false });
        }
        if self.is_suffix(index, suffix) {
            return Ok(SearchResult { index, found: true });
        }
        find_among_equals(self.body, self.id, index, suffix)
    }

    /// Returns the part of a key after the page's prefix, if the key begins with it.
    #[inline(always)]
    fn suffix_of<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        let (beginning, suffix) = key.split_at_checked(self.prefix.len())?;
        equal(beginning, self.prefix).then_some(suffix)
    }

    /// Returns the index of the first head that is not below `head`. Bisects without unpredictable
    /// branches, so the processor continues while cache lines load. All pages of few entries, such
    /// as most leaves, take the same number of steps, so the end of the loop is predicted, too.
    #[inline(always)]
    fn first_head_not_below(&self, head: u64) -> usize {
        let count = self.heads.len();
        if count > FEW_ENTRIES_MAX {
            return self.heads.partition_point(|stored| u64::from_le_bytes(*stored) < head);
        }
        if count == 0 {
            return 0;
        }
        let (mut base, mut size) = (0, count);
        for _ in 0..FEW_ENTRIES_MAX.ilog2() {
            // `half` is 0 once one entry is left.
            let half = size / 2;
            base = select_unpredictable(self.head(base + half) < head, base + half, base);
            size -= half;
        }
        base + usize::from(self.head(base) < head)
    }

    /// Returns whether the entry, whose head is that of `suffix`, has this suffix.
    #[inline(always)]
    fn is_suffix(&self, index: usize, suffix: &[u8]) -> bool {
        let slot = self.slot(index);
        slot.suffix_len == suffix.len()
            && suffix.get(HEAD_LEN..).is_none_or(|rest| self.rest(slot).is_some_and(|stored| equal(stored, rest)))
    }

    /// Compares an entry with a suffix that has the same head. Zero-padded heads of different
    /// lengths are equal only if the longer continues with zeros, so the shorter comes first.
    /// Returns `None` if the entry's key lies outside the page.
    fn compare_beyond_head(&self, index: usize, suffix: &[u8]) -> Option<Ordering> {
        let slot = self.slot(index);
        let in_heads = slot.suffix_len.min(HEAD_LEN).cmp(&suffix.len().min(HEAD_LEN));
        if in_heads != Ordering::Equal {
            return Some(in_heads);
        }
        let rest = suffix.get(HEAD_LEN..).unwrap_or(&[]);
        Some(self.rest(slot)?.cmp(rest))
    }

    /// Returns the key of an entry that exists.
    #[inline(always)]
    pub(crate) fn key(&self, index: usize) -> Result<KeyParts<'a>> {
        let slot = self.slot(index);
        Ok(KeyParts {
            prefix: self.prefix,
            head: self.head(index).to_be_bytes(),
            head_len: slot.suffix_len.min(HEAD_LEN),
            rest: self.rest(slot).ok_or_else(|| self.damaged(KEY_OUTSIDE))?,
        })
    }

    /// Returns the data of an entry besides its key, as stored.
    #[inline(always)]
    pub(crate) fn payload(&self, index: usize) -> Result<Payload<'a>> {
        let slot = self.slot(index);
        let (version_len, value_len) = self.around_rest(slot);
        if version_len == 0 {
            return Ok(Payload { version: &[], value: &[], slot_data: slot.data });
        }
        let outside = || self.damaged("a record lies outside the page");
        let record = self.body.get(slot.offset..).ok_or_else(outside)?;
        let (version, record) = record.split_at_checked(version_len).ok_or_else(outside)?;
        let start = slot.rest_len();
        let value = record.get(start..start + value_len).ok_or_else(outside)?;
        Ok(Payload { version, value, slot_data: slot.data })
    }

    /// Returns the version and value of an entry of a leaf.
    #[inline(always)]
    pub(crate) fn entry(&self, index: usize) -> Result<(TxnId, StoredValue<'a>)> {
        if !self.is_leaf() {
            return Err(self.damaged("an entry in a branch"));
        }
        let slot = self.leaf_slot(index);
        let value_len = usize::from(slot.data as u16 & !EXTENT_BIT);
        let value_at = VERSION_LEN + slot.rest_len();
        let record = self.body.get(slot.offset..slot.offset + value_at + value_len);
        let Some((record, version)) = record.and_then(|record| Some((record, record.first_chunk::<VERSION_LEN>()?)))
        else {
            return Err(self.damaged("a record lies outside the page"));
        };
        let (version, value) = (TxnId::from_u64(u64::from_le_bytes(*version)), &record[value_at..]);
        if slot.data as u16 & EXTENT_BIT == 0 {
            return Ok((version, StoredValue::Inline(value)));
        }
        let reference: &[u8; EXTENT_REF_LEN] =
            value.try_into().map_err(|_| self.damaged("a reference to an extent of the wrong length"))?;
        Ok((version, StoredValue::decode_extent(reference)))
    }

    /// Prefetches the record of entry `index` of a leaf, if the entry exists.
    #[inline(always)]
    pub(crate) fn prefetch_record(&self, index: usize) {
        if index < self.count() {
            let slot = self.leaf_slot(index);
            let len = VERSION_LEN + slot.rest_len() + (slot.data as u16 & !EXTENT_BIT) as usize;
            let record = self.body.as_ptr().wrapping_add(slot.offset);
            prefetch_bytes(record, len.min(PREFETCHED_MAX));
            // A record seldom begins at a cache line, so its last byte may be in one more line.
            prefetch(record.wrapping_add(len));
        }
    }

    /// Returns child `index` of a branch, which has `count() + 1` children.
    #[inline(always)]
    pub(crate) fn child(&self, index: usize) -> PageId {
        if index == 0 { PageId(u32_at(self.body, LINK)) } else { PageId(self.branch_slot(index - 1).data) }
    }

    /// Returns the index of the child of a branch to which a key belongs.
    #[inline(always)]
    pub(crate) fn child_for(&self, key: &[u8]) -> Result<usize> {
        let result = self.find(key)?;
        Ok(result.index + usize::from(result.found))
    }

    /// Checks that heads ascend, that every record is in the heap, and that the heap's lengths add
    /// up. The functions that change pages rely on it.
    ///
    /// # Errors
    /// `Corrupt` at the first finding.
    pub(crate) fn audit(&self) -> Result<()> {
        if !self.heads.is_sorted_by_key(|head| u64::from_le_bytes(*head)) {
            return Err(self.damaged("heads are not in order"));
        }
        // The loop avoids branches, since a page has up to a few hundred slots.
        let (heap_start, end) = (self.heap_start(), self.body.len());
        let (mut live, mut all_inside) = (0, true);
        let mut visit = |slot: Slot, fixed: usize| {
            let len = fixed + slot.rest_len();
            live += len;
            let inside = (slot.offset >= heap_start) & (slot.offset + len <= end);
            all_inside &= inside | ((len == 0) & (slot.offset == 0));
        };
        let is_leaf = self.is_leaf();
        for slot in (0..self.count()).map(|index| self.slot(index)) {
            let fixed = VERSION_LEN + usize::from(slot.data as u16 & !EXTENT_BIT);
            visit(slot, if is_leaf { fixed } else { 0 });
        }
        if !all_inside {
            return Err(self.damaged("a record lies outside the heap"));
        }
        let heap = end - heap_start;
        if live + self.garbage() != heap {
            let sum = format!("{live} live bytes and {} of garbage in a heap of {heap}", self.garbage());
            return Err(self.damaged(sum));
        }
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn damaged(&self, what: impl Into<String>) -> Error {
        damaged(self.id, self.body.len() + CHECKSUM_LEN, what)
    }
}

// The functions below are not inlined and take no reference to a `Node`. Such a reference would
// force their callers to keep the whole node in memory instead of in registers.

#[inline(never)]
fn is_below(key: &[u8], prefix: &[u8]) -> bool {
    key < prefix
}

/// Finds a suffix among the entries with the same head. `first` is the index of the first of them.
#[inline(never)]
fn find_among_equals(body: &[u8], id: PageId, first: usize, suffix: &[u8]) -> Result<SearchResult> {
    let node = Node::parse(body, id)?;
    let head = node.head(first);
    let mut low = first;
    let mut high = first + 1;
    if high < node.count() && node.head(high) == head {
        high += node.heads[high..].partition_point(|stored| u64::from_le_bytes(*stored) == head);
    }
    while low < high {
        let middle = low + (high - low) / 2;
        match node.compare_beyond_head(middle, suffix).ok_or_else(|| node.damaged(KEY_OUTSIDE))? {
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
            Ordering::Equal => return Ok(SearchResult { index: middle, found: true }),
        }
    }
    Ok(SearchResult { index: low, found: false })
}

/// Returns the error for a page whose level is not the one below its parent's.
#[cold]
fn wrong_level(id: PageId, body_len: usize, level: u8, parent_level: u8) -> Error {
    damaged(id, body_len + CHECKSUM_LEN, format!("level {level} beneath level {parent_level}"))
}

/// Returns the error for a page that `parse` rejected.
#[cold]
fn explain(body: &[u8], id: PageId) -> Error {
    let page_size = body.len() + CHECKSUM_LEN;
    let what = match PageHeader::read(body) {
        None => "unknown kind of page".to_string(),
        Some(header) if !matches!(header.kind, PageKind::Leaf | PageKind::Branch) => {
            format!("expected a page of a tree, found {:?}", header.kind)
        }
        Some(header) if header.page != id => {
            format!("expected page {}, found page {}", id.0, header.page.0)
        }
        Some(header) => {
            let (kind, level, count) = (header.kind, header.level, header.count);
            let (prefix_len, heap_start) = (u16_at(body, PREFIX_LEN_AT), u16_at(body, HEAP_START_AT));
            format!(
                "{kind:?} of level {level}, {count} entries and {prefix_len} bytes of prefix before a heap at {heap_start}"
            )
        }
    };
    damaged(id, page_size, what)
}
