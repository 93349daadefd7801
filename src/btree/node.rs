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
//!   (`link`). A branch may have no separator and one child: that is left when children vanish and
//!   the neighbours are too full to take the last.
//! - An empty record has offset 0.
//! - `extra` in the header: prefix length u16, heap start u16, garbage u16 (heap bytes of no live
//!   record), reserved u16.
//!
//! This layout reduces cache misses, which dominate a lookup in a large store. Header, prefix and
//! heads are together at the start of the page, where one prefetch covers them. A page is searched
//! in the dense array of heads, without unpredictable branches and without reading a key. Thanks to
//! prefix truncation, 8 bytes distinguish nearly all keys. So a lookup reads only one slot and one
//! record in addition, in which the rest of the key, the version and the value are adjacent.
//! Fixed-size heads, and separators cut to the bytes that separate, keep the fan-out high (about
//! 250 at 4 KiB) and the upper levels in cache.
//!
//! Every access to stored bytes is checked: damage is an error, never a panic. `parse` establishes
//! the properties that the other functions rely on.

use crate::files::page::PageRead;
use crate::files::page::{
    CHECKSUM_LEN, EXTENT_REF_LEN, EXTRA, HEADER_LEN, PageHeader, PageKind, StoredValue, damaged, u16_at, u32_at, u64_at,
};
use crate::ids::PageId;
use crate::{Error, Result, TxnId};
use std::cmp::Ordering;
use std::hint::select_unpredictable;

/// The length of a head in bytes.
pub(crate) const HEAD_LEN: usize = 8;
pub(crate) const LEAF_SLOT_LEN: usize = 6;
pub(crate) const BRANCH_SLOT_LEN: usize = 8;
/// The number of bytes of a leaf record before the rest of the key: the version.
pub(crate) const VERSION_LEN: usize = 8;
/// The bit of a slot's value length that marks a reference to an extent.
pub(crate) const EXTENT_BIT: u16 = 1 << 15;
/// Pages of fewer entries are searched in as many steps as one of this many.
const SEARCH_STEPS_ENTRIES_MIN: usize = 31;
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

/// Returns the head of a suffix.
#[inline(always)]
pub(crate) fn head_of(suffix: &[u8]) -> u64 {
    if let Some(bytes) = suffix.first_chunk::<HEAD_LEN>() {
        return u64::from_be_bytes(*bytes);
    }
    let mut bytes = [0; HEAD_LEN];
    bytes[..suffix.len()].copy_from_slice(suffix);
    u64::from_be_bytes(bytes)
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
    /// The record bytes after it: the value or reference in leaves, nothing in branches.
    pub(crate) value: &'a [u8],
    /// The slot's data: the value's length with its extent bit, or the child.
    pub(crate) slot_data: u32,
}

/// The key of an entry, in the parts in which the page stores it.
#[derive(Clone, Copy)]
pub(crate) struct KeyParts<'a> {
    prefix: &'a [u8],
    head: [u8; HEAD_LEN],
    head_len: usize,
    rest: &'a [u8],
}

impl KeyParts<'_> {
    pub(crate) fn len(&self) -> usize {
        self.prefix.len() + self.head_len + self.rest.len()
    }

    /// Replaces the content of `key` by this key.
    pub(crate) fn key_into(&self, key: &mut Vec<u8>) {
        key.clear();
        self.append_to(key);
    }

    pub(crate) fn append_to(&self, key: &mut Vec<u8>) {
        key.reserve(self.len());
        key.extend_from_slice(self.prefix);
        key.extend_from_slice(&self.head[..self.head_len]);
        key.extend_from_slice(self.rest);
    }

    /// Returns the key's bytes, in order.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = u8> {
        self.prefix.iter().chain(&self.head[..self.head_len]).chain(self.rest).copied()
    }

    pub(crate) fn to_vec(self) -> Vec<u8> {
        let mut key = Vec::new();
        self.append_to(&mut key);
        key
    }
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
            let levels = format!("level {} beneath level {}", node.level, parent.level);
            return Err(node.damaged(levels));
        }
        Ok(node)
    }

    #[inline(always)]
    pub(crate) fn parse(body: &'a [u8], id: PageId) -> Result<Node<'a>> {
        Node::try_parse(body, id).ok_or_else(|| explain(body, id))
    }

    #[inline(always)]
    fn try_parse(body: &'a [u8], id: PageId) -> Option<Node<'a>> {
        let header = PageHeader::read(body)?;
        let slot_len = match header.kind {
            PageKind::Leaf if header.level == 0 => LEAF_SLOT_LEN,
            PageKind::Branch if header.level > 0 && header.level <= LEVEL_MAX => BRANCH_SLOT_LEN,
            _ => return None,
        };
        if header.page != id {
            return None;
        }
        let count = usize::from(header.count);
        let prefix_len = usize::from(u16_at(body, PREFIX_LEN_AT));
        let heap_start = usize::from(u16_at(body, HEAP_START_AT));
        if heap_start > body.len() {
            return None;
        }
        let arrays = body.get(HEADER_LEN..heap_start)?;
        let (prefix, arrays) = arrays.split_at_checked(padded(prefix_len))?;
        let (heads, arrays) = arrays.split_at_checked(HEAD_LEN * count)?;
        let slots = arrays.get(..slot_len * count)?;
        Some(Node {
            body,
            id,
            level: header.level,
            prefix: &prefix[..prefix_len],
            heads: heads.as_chunks::<HEAD_LEN>().0,
            slots,
        })
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
        let (at, data) = if self.is_leaf() {
            let at = index * LEAF_SLOT_LEN;
            (at, u32::from(u16_at(self.slots, at + 4)))
        } else {
            let at = index * BRANCH_SLOT_LEN;
            (at, u32_at(self.slots, at + 4))
        };
        Slot { offset: usize::from(u16_at(self.slots, at)), suffix_len: usize::from(u16_at(self.slots, at + 2)), data }
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

    #[inline]
    fn rest(&self, slot: Slot) -> Result<&'a [u8]> {
        let len = slot.rest_len();
        if len == 0 {
            return Ok(&[]);
        }
        let at = slot.offset + self.around_rest(slot).0;
        self.body.get(at..at + len).ok_or_else(|| self.damaged("a key lies outside the page"))
    }

    /// Finds a key by its head. Reads a slot only if heads are equal.
    #[inline(always)]
    pub(crate) fn find(&self, key: &[u8]) -> Result<SearchResult> {
        let Some(suffix) = key.strip_prefix(self.prefix) else {
            let index = if key < self.prefix { 0 } else { self.count() };
            return Ok(SearchResult { index, found: false });
        };
        let head = head_of(suffix);
        let index = self.first_head_not_below(head);
        if index == self.count() || self.head(index) != head {
            return Ok(SearchResult { index, found: false });
        }
        self.find_among_equals(index, head, suffix)
    }

    /// Searches by bisection, with the same number of steps for all counts up to the next power of
    /// two, and with no other branch. So the processor predicts the loop, and continues while the
    /// page's cache lines are being loaded.
    #[inline(always)]
    fn first_head_not_below(&self, head: u64) -> usize {
        let count = self.heads.len();
        if count == 0 {
            return 0;
        }
        let mut base = 0;
        let mut step = (count.max(SEARCH_STEPS_ENTRIES_MIN) + 1).next_power_of_two() / 2;
        while step > 0 {
            let end = base + step;
            let is_below = (end <= count) & (self.head(end.min(count) - 1) < head);
            base = select_unpredictable(is_below, end, base);
            step /= 2;
        }
        base
    }

    fn find_among_equals(&self, first: usize, head: u64, suffix: &[u8]) -> Result<SearchResult> {
        let mut low = first;
        let mut high = first + 1;
        if high < self.count() && self.head(high) == head {
            high += self.heads[high..].partition_point(|stored| u64::from_le_bytes(*stored) == head);
        }
        while low < high {
            let middle = low + (high - low) / 2;
            match self.compare_beyond_head(middle, suffix)? {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => {
                    return Ok(SearchResult { index: middle, found: true });
                }
            }
        }
        Ok(SearchResult { index: low, found: false })
    }

    /// Compares an entry with a suffix that has the same head. Zero-padded heads of different
    /// lengths are equal only if the longer continues with zeros, so the shorter comes first.
    #[inline]
    fn compare_beyond_head(&self, index: usize, suffix: &[u8]) -> Result<Ordering> {
        let slot = self.slot(index);
        let in_heads = slot.suffix_len.min(HEAD_LEN).cmp(&suffix.len().min(HEAD_LEN));
        if in_heads != Ordering::Equal {
            return Ok(in_heads);
        }
        let rest = suffix.get(HEAD_LEN..).unwrap_or(&[]);
        Ok(self.rest(slot)?.cmp(rest))
    }

    /// Returns the key of an entry that exists.
    #[inline]
    pub(crate) fn key(&self, index: usize) -> Result<KeyParts<'a>> {
        let slot = self.slot(index);
        Ok(KeyParts {
            prefix: self.prefix,
            head: self.head(index).to_be_bytes(),
            head_len: slot.suffix_len.min(HEAD_LEN),
            rest: self.rest(slot)?,
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
        let payload = self.payload(index)?;
        if payload.version.len() != VERSION_LEN {
            return Err(self.damaged("an entry in a branch"));
        }
        let version = TxnId::from_u64(u64_at(payload.version, 0));
        if payload.slot_data as u16 & EXTENT_BIT == 0 {
            return Ok((version, StoredValue::Inline(payload.value)));
        }
        let reference: &[u8; EXTENT_REF_LEN] =
            payload.value.try_into().map_err(|_| self.damaged("a reference to an extent of the wrong length"))?;
        Ok((version, StoredValue::decode_extent(reference)))
    }

    /// Returns child `index` of a branch, of `count() + 1`.
    #[inline(always)]
    pub(crate) fn child(&self, index: usize) -> PageId {
        if index == 0 { PageId(u32_at(self.body, crate::files::page::LINK)) } else { PageId(self.slot(index - 1).data) }
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
        let mut live = 0;
        for index in 0..self.count() {
            let slot = self.slot(index);
            let len = self.record_len(slot);
            let inside = slot.offset >= self.heap_start() && slot.offset + len <= self.body.len();
            if !(inside || len == 0 && slot.offset == 0) {
                return Err(self.damaged(format!("record {index} lies outside the heap")));
            }
            live += len;
        }
        let heap = self.body.len() - self.heap_start();
        if live + self.garbage() != heap {
            let sum = format!("{live} live bytes and {} of garbage in a heap of {heap}", self.garbage());
            return Err(self.damaged(sum));
        }
        Ok(())
    }

    #[cold]
    pub(crate) fn damaged(&self, what: impl Into<String>) -> Error {
        damaged(self.id, self.body.len() + CHECKSUM_LEN, what)
    }
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
