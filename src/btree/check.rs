//! Checks every invariant of a tree, page by page. The first finding is an error that names the
//! page and the offset.
//!
//! The walk ends in spite of any damage. Levels strictly decrease, which bounds its depth. The
//! fences of different children are disjoint, and no leaf may be empty, so no leaf passes the check
//! in two places.

use crate::btree::node::{HEAD_LEN, Node, RESERVED_AT, padded};
use crate::files::page::PageRead;
use crate::files::page::{CHECKSUM_LEN, HEADER_LEN, PageHeader, PageKind, StoredValue, read_extent, u16_at};
use crate::ids::PageId;
use crate::limits::key_len_max;
use crate::{Result, TxnId};

/// A page or extent that the check has visited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageSeen {
    pub(crate) page: PageId,
    /// 1 for a page; for an extent, its length in pages.
    pub(crate) pages: u32,
    pub(crate) created_txn: TxnId,
    pub(crate) kind: PageKind,
}

/// The size of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TreeReport {
    pub(crate) entries: u64,
    /// Sum of the lengths of all keys and values, in bytes.
    pub(crate) bytes: u64,
    /// The number of pages, including those of extents.
    pub(crate) pages: u64,
    pub(crate) leaves: u64,
    pub(crate) branches: u64,
    pub(crate) extents: u64,
    /// The number of levels; 0 if the tree is empty.
    pub(crate) depth: u32,
}

/// Checks the tree at `root`. Calls `on_page` with each page and extent after its own bytes were
/// checked, parents before children.
///
/// # Errors
/// `Corrupt` at the first finding, and the errors of `on_page`.
pub(crate) fn check_tree<P: PageRead>(
    pages: &P,
    root: PageId,
    on_page: &mut dyn FnMut(PageSeen) -> Result<()>,
) -> Result<TreeReport> {
    let mut walk = TreeCheck { pages, on_page, report: TreeReport::default() };
    if !root.is_none() {
        let node = Node::open(pages, root)?;
        walk.report.depth = u32::from(node.level) + 1;
        walk.check_node(&node, Fences { lower: None, upper: None }, None)?;
    }
    Ok(walk.report)
}

/// The bounds that the parent sets on a page's keys: `lower` inclusive, `upper` exclusive.
#[derive(Clone, Copy)]
struct Fences<'a> {
    lower: Option<&'a [u8]>,
    upper: Option<&'a [u8]>,
}

struct TreeCheck<'a, P> {
    pages: &'a P,
    on_page: &'a mut dyn FnMut(PageSeen) -> Result<()>,
    report: TreeReport,
}

impl<P: PageRead> TreeCheck<'_, P> {
    fn check_node(&mut self, node: &Node<'_>, fences: Fences<'_>, parent_created_txn: Option<TxnId>) -> Result<()> {
        check_layout(node)?;
        let created_txn = node.created_txn();
        check_created_txn(node, created_txn, parent_created_txn, "its parent")?;
        let keys = check_keys(node, fences)?;
        let kind = if node.is_leaf() { PageKind::Leaf } else { PageKind::Branch };
        (self.on_page)(PageSeen { page: node.id, pages: 1, created_txn, kind })?;
        self.report.pages += 1;
        if node.is_leaf() {
            self.report.leaves += 1;
            return self.check_entries(node, created_txn, &keys);
        }
        self.report.branches += 1;
        for index in 0..=node.count() {
            let child = Node::open_child(self.pages, node.child(index), node)?;
            let fences = Fences {
                lower: if index == 0 { fences.lower } else { Some(&keys[index - 1]) },
                upper: keys.get(index).map_or(fences.upper, |key| Some(key)),
            };
            self.check_node(&child, fences, Some(created_txn))?;
        }
        Ok(())
    }

    fn check_entries(&mut self, leaf: &Node<'_>, created_txn: TxnId, keys: &[Vec<u8>]) -> Result<()> {
        if keys.is_empty() {
            return Err(leaf.damaged("an empty leaf"));
        }
        for (index, key) in keys.iter().enumerate() {
            let (version, value) = leaf.entry(index)?;
            if version > created_txn {
                return Err(
                    leaf.damaged(format!("an entry written by {version}, after the page was created in {created_txn}"))
                );
            }
            self.report.entries += 1;
            self.report.bytes += key.len() as u64;
            match value {
                StoredValue::Inline(bytes) => self.report.bytes += bytes.len() as u64,
                StoredValue::Extent { page, pages, len } => {
                    let (_, extent_created_txn) = read_extent(self.pages, page, pages, len)?;
                    if extent_created_txn != version {
                        return Err(leaf.damaged(format!(
                            "an entry written by {version} refers to an extent of {extent_created_txn}"
                        )));
                    }
                    (self.on_page)(PageSeen { page, pages, created_txn: extent_created_txn, kind: PageKind::Extent })?;
                    self.report.extents += 1;
                    self.report.pages += u64::from(pages);
                    self.report.bytes += len;
                }
            }
        }
        Ok(())
    }
}

fn check_created_txn(node: &Node<'_>, created_txn: TxnId, limit: Option<TxnId>, whose: &str) -> Result<()> {
    match limit {
        Some(limit) if created_txn > limit => {
            Err(node.damaged(format!("created in {created_txn}, after {whose} ({limit})")))
        }
        _ => Ok(()),
    }
}

/// Checks that records are in the heap without overlap, and that reserved bytes are zero.
fn check_layout(node: &Node<'_>) -> Result<()> {
    node.audit()?;
    let mut records: Vec<(usize, usize)> = (0..node.count())
        .map(|index| node.slot(index))
        .map(|slot| (slot.offset, node.record_len(slot)))
        .filter(|(_, len)| *len > 0)
        .collect();
    records.sort_unstable();
    if records.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        return Err(node.damaged("records overlap"));
    }
    let prefix_end = HEADER_LEN + node.prefix().len();
    let padding = &node.body[prefix_end..HEADER_LEN + padded(node.prefix().len())];
    let header = PageHeader::read(node.body);
    let header_ok = header.is_some_and(|header| header.pages == 1 && (!node.is_leaf() || header.link.is_none()));
    if !header_ok || u16_at(node.body, RESERVED_AT) != 0 || padding.iter().any(|byte| *byte != 0) {
        return Err(node.damaged("reserved bytes are not zero"));
    }
    Ok(())
}

/// Returns all keys of a page, after checking their order, lengths and fences.
fn check_keys(node: &Node<'_>, fences: Fences<'_>) -> Result<Vec<Vec<u8>>> {
    let limit = key_len_max(node.body.len() + CHECKSUM_LEN);
    let mut keys: Vec<Vec<u8>> = Vec::with_capacity(node.count());
    for index in 0..node.count() {
        let parts = node.key(index)?;
        if parts.len() > limit {
            return Err(node.damaged(format!("key {index} has {} bytes, the limit is {limit}", parts.len())));
        }
        let suffix_len = node.slot(index).suffix_len;
        if suffix_len < HEAD_LEN && node.head(index) << (8 * suffix_len) != 0 {
            return Err(node.damaged(format!("the head of key {index} is not padded with zeros")));
        }
        let key = parts.to_vec();
        if keys.last().is_some_and(|last| *last >= key) {
            return Err(node.damaged(format!("key {index} is not above the one before it")));
        }
        keys.push(key);
    }
    let below = fences.lower.zip(keys.first()).is_some_and(|(lower, first)| first.as_slice() < lower);
    let above = fences.upper.zip(keys.last()).is_some_and(|(upper, last)| last.as_slice() >= upper);
    if below || above {
        return Err(node.damaged("a key lies outside the separators of the parent"));
    }
    Ok(keys)
}
