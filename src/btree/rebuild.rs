//! Rebuilding pages: the entries of one page (of two, for a merge) are read into a list, and pages
//! are written from the list.
//!
//! Compaction, a change of prefix, splits and merges all do this: read, change the list, write. The
//! prefix of a page is chosen only here: the prefix that all its keys share, or a shorter one if
//! the page fits only with that. A long prefix of few keys can cost a few bytes more than it saves.
//! A subset of a page's entries always fits with that page's own prefix.

use crate::btree::node::{
    GARBAGE_AT, HEAD_LEN, HEAP_START_AT, Node, PREFIX_LEN_AT, Payload, RESERVED_AT, Slot, VERSION_LEN, head_of, padded,
};
use crate::btree::node_mut::{slot_len, write_record, write_slot};
use crate::files::page::{CHECKSUM_LEN, HEADER_LEN, PageHeader, PageKind, set_u16, set_u64};
use crate::ids::PageId;
use crate::{Result, TxnId};
use std::ops::Range;

/// One entry: its key and then its record bytes are in `EntryList::bytes`.
#[derive(Clone, Copy)]
struct EntryBytes {
    at: usize,
    key_len: usize,
    /// The number of record bytes besides the rest of the key.
    data_len: usize,
    slot: u32,
}

/// Entries in order, independent of any page.
pub(crate) struct EntryList {
    level: u8,
    bytes: Vec<u8>,
    list: Vec<EntryBytes>,
    /// Length of the prefix in the page that was read first.
    prefix_len: usize,
}

/// The identity of a page that is written from a list.
#[derive(Clone, Copy)]
pub(crate) struct NodeIdentity {
    pub(crate) id: PageId,
    pub(crate) created_txn: TxnId,
    /// Child 0 of a branch.
    pub(crate) first_child: PageId,
}

impl EntryList {
    pub(crate) fn new(level: u8) -> EntryList {
        EntryList { level, bytes: Vec::new(), list: Vec::new(), prefix_len: 0 }
    }

    /// Reads the entries of a page, with capacity for one more.
    ///
    /// # Errors
    /// `Corrupt` if an entry lies outside the page.
    pub(crate) fn read(node: &Node<'_>) -> Result<EntryList> {
        let mut items = EntryList::new(node.level);
        items.prefix_len = node.prefix().len();
        items.append(node)?;
        Ok(items)
    }

    /// Appends the entries of a page whose keys come after these.
    ///
    /// # Errors
    /// `Corrupt` if an entry lies outside the page.
    pub(crate) fn append(&mut self, node: &Node<'_>) -> Result<()> {
        self.bytes.reserve(2 * node.body.len());
        self.list.reserve(node.count() + 1);
        for index in 0..node.count() {
            let at = self.bytes.len();
            node.key(index)?.append_to(&mut self.bytes);
            let item = self.finish(at, node.payload(index)?);
            self.list.push(item);
        }
        Ok(())
    }

    pub(crate) fn insert(&mut self, index: usize, key: &[u8], payload: Payload<'_>) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(key);
        let item = self.finish(at, payload);
        self.list.insert(index, item);
    }

    /// Appends the data of the key that was written at `at`.
    fn finish(&mut self, at: usize, payload: Payload<'_>) -> EntryBytes {
        let key_len = self.bytes.len() - at;
        self.bytes.extend_from_slice(payload.version);
        self.bytes.extend_from_slice(payload.value);
        EntryBytes { at, key_len, data_len: payload.version.len() + payload.value.len(), slot: payload.slot_data }
    }

    pub(crate) fn remove(&mut self, range: Range<usize>) {
        self.list.drain(range);
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn key(&self, index: usize) -> &[u8] {
        let item = self.list[index];
        &self.bytes[item.at..item.at + item.key_len]
    }

    /// Returns the child that belongs to separator `index`.
    pub(crate) fn child(&self, index: usize) -> PageId {
        PageId(self.list[index].slot)
    }

    /// Returns how many bytes of a body entry `index` takes with this prefix.
    fn weight(&self, index: usize, prefix_len: usize) -> usize {
        let item = self.list[index];
        HEAD_LEN + slot_len(self.level) + item.key_len.saturating_sub(prefix_len + HEAD_LEN) + item.data_len
    }

    fn size(&self, range: Range<usize>, prefix_len: usize) -> usize {
        range.fold(HEADER_LEN + padded(prefix_len), |sum, index| sum + self.weight(index, prefix_len))
    }

    /// Returns the prefix length with which these entries fit into `limit` bytes of a body, if
    /// there is one.
    pub(crate) fn fit(&self, range: Range<usize>, limit: usize) -> Option<usize> {
        if range.is_empty() {
            return Some(0);
        }
        let shared = shared_len(self.key(range.start), self.key(range.end - 1));
        // A page of one entry gets the prefix of the page that was read. If its whole key were the
        // prefix, each of the next insertions would have to shorten it.
        let kept = self.prefix_len.min(shared);
        let candidates = if range.len() == 1 && kept > 0 { [kept, shared, 0] } else { [shared, kept, 0] };
        candidates.into_iter().find(|prefix_len| self.size(range.clone(), *prefix_len) <= limit)
    }

    /// Returns where to cut a list that does not fit one page, so that both sides fit and are about
    /// equal. In a leaf, the entry at the cut goes to the right page; in a branch, it goes to the
    /// parent. Returns `None` if one entry in between would need a page of its own. That happens
    /// only in leaves, since any three separators of a branch fit together.
    pub(crate) fn cut(&self, limit: usize) -> Option<usize> {
        let n = self.len();
        let skip = usize::from(self.level > 0);
        let shared = shared_len(self.key(0), self.key(n - 1));
        let total = self.size(0..n, shared);
        let mut left = 0;
        let middle = (0..n)
            .find(|index| {
                left += self.weight(*index, shared);
                2 * left >= total
            })
            .unwrap_or(n - 1);
        let (low, high) = (1, n - 1 - skip);
        let both_fit = |cut: usize| self.fit(0..cut, limit).is_some() && self.fit(cut + skip..n, limit).is_some();
        // Try the cuts nearest to the middle first. The first one nearly always fits.
        (0..n)
            .flat_map(|distance| [middle.checked_sub(distance), Some(middle + 1 + distance)])
            .flatten()
            .filter(|cut| (low..=high).contains(cut))
            .find(|cut| both_fit(*cut))
    }

    /// Writes a page of these entries, which fit with this prefix. All bytes of the body are
    /// written.
    pub(crate) fn write(&self, range: Range<usize>, prefix_len: usize, body: &mut [u8], identity: NodeIdentity) {
        let count = range.len();
        let slot_len = slot_len(self.level);
        let version_len = if self.level == 0 { VERSION_LEN } else { 0 };
        PageHeader {
            kind: if self.level == 0 { PageKind::Leaf } else { PageKind::Branch },
            level: self.level,
            count: count as u16,
            page: identity.id,
            created_txn: identity.created_txn,
            pages: 1,
            link: identity.first_child,
            extra: 0,
        }
        .write(body);
        let heads = HEADER_LEN + padded(prefix_len);
        let slots = heads + HEAD_LEN * count;
        body[HEADER_LEN..heads].fill(0);
        if count > 0 {
            body[HEADER_LEN..HEADER_LEN + prefix_len].copy_from_slice(&self.key(range.start)[..prefix_len]);
        }
        let mut heap_start = body.len();
        for (index, item) in self.list[range].iter().enumerate() {
            let (key, data) = self.bytes[item.at..item.at + item.key_len + item.data_len].split_at(item.key_len);
            let suffix = key.get(prefix_len..).unwrap_or(&[]);
            let rest = suffix.get(HEAD_LEN..).unwrap_or(&[]);
            let (version, tail) = data.split_at(version_len);
            set_u64(body, heads + index * HEAD_LEN, head_of(suffix));
            let start = write_record(body, heap_start, version, rest, tail);
            let offset = if start == heap_start { 0 } else { start };
            let slot = Slot { offset, suffix_len: suffix.len(), data: item.slot };
            write_slot(body, slots + index * slot_len, slot_len, slot);
            heap_start = start;
        }
        body[slots + slot_len * count..heap_start].fill(0);
        set_u16(body, PREFIX_LEN_AT, prefix_len as u16);
        set_u16(body, HEAP_START_AT, heap_start as u16);
        set_u16(body, GARBAGE_AT, 0);
        set_u16(body, RESERVED_AT, 0);
    }
}

/// Returns the length of the common prefix of two keys.
pub(crate) fn shared_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Returns the shortest key that separates `left` from `right`: above `left`, not above `right`.
pub(crate) fn separator<'a>(left: &[u8], right: &'a [u8]) -> &'a [u8] {
    &right[..(shared_len(left, right) + 1).min(right.len())]
}

/// Returns the greatest length of key plus value that is stored in a leaf: three such entries
/// always fit one page.
pub(crate) fn inline_len_max(page_size: usize) -> usize {
    (page_size - CHECKSUM_LEN - HEADER_LEN) / 3 - HEAD_LEN - slot_len(0) - VERSION_LEN
}
