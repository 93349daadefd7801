//! The descent from a root to the leaf where a key belongs, for all lookups and edits by key.

use crate::Result;
use crate::btree::Entry;
use crate::btree::node::{Node, SearchResult};
use crate::files::page::PageRead;
use crate::files::page::{StoredValue, read_extent};
use crate::ids::PageId;

/// Descends from `root`, which exists, to the leaf where `key` belongs. Calls `visit` with each
/// branch and the index of the child taken.
#[inline]
pub(crate) fn descend<'a, P: PageRead>(
    pages: &'a P,
    root: PageId,
    key: &[u8],
    mut visit: impl FnMut(&Node<'a>, usize),
) -> Result<(Node<'a>, SearchResult)> {
    let mut node = Node::open(pages, root)?;
    while !node.is_leaf() {
        let index = node.child_for(key)?;
        let child = node.child(index);
        pages.prefetch(child);
        visit(&node, index);
        node = Node::open_child(pages, child, &node)?;
    }
    let search = node.find(key)?;
    Ok((node, search))
}

/// Returns the entry of a key.
///
/// # Errors
/// `Corrupt` if a page on the path is damaged.
#[inline]
pub(crate) fn get<'a, P: PageRead>(pages: &'a P, root: PageId, key: &[u8]) -> Result<Option<Entry<'a>>> {
    if root.is_none() {
        return Ok(None);
    }
    let (leaf, search) = descend(pages, root, key, |_, _| {})?;
    if !search.found {
        return Ok(None);
    }
    entry_at(pages, &leaf, search.index).map(Some)
}

/// Returns the entry at an index of a leaf, with its value, which may be in an extent.
#[inline(always)]
pub(crate) fn entry_at<'a, P: PageRead>(pages: &'a P, leaf: &Node<'a>, index: usize) -> Result<Entry<'a>> {
    match leaf.entry(index)? {
        (version, StoredValue::Inline(value)) => Ok(Entry { version, value }),
        (version, StoredValue::Extent { page, pages: count, len }) => {
            let (value, _) = read_extent(pages, page, count, len)?;
            Ok(Entry { version, value })
        }
    }
}
