//! The changes to the branches above a changed leaf: new children after a split, and pages that
//! vanish or merge.
//!
//! All pages of the path belong to this transaction. A separator is never replaced by another one,
//! only inserted or removed, so that a removal never makes a page overflow. In return, a branch may
//! keep one child and no separator until a neighbour has space for that child.

use crate::btree::edit::{Path, ensure_sound, write_group};
use crate::btree::node::{LEVEL_MAX, Node, Payload};
use crate::btree::node_mut;
use crate::btree::rebuild::{EntryList, NodeIdentity};
use crate::files::page::PageWrite;
use crate::ids::PageId;
use crate::{Error, LimitKind, Result};

/// A new page, to be inserted into the level above with the separator before it.
pub(crate) struct PendingSplit {
    pub(crate) separator: Vec<u8>,
    pub(crate) page: PageId,
}

/// Inserts the pages split off from the path's leaf into the branches above, which may split in
/// turn.
pub(crate) fn insert_children<W: PageWrite>(
    pages: &mut W,
    root: &mut PageId,
    path: &Path,
    mut pending: Vec<PendingSplit>,
) -> Result<()> {
    for step in path.branches.iter().rev() {
        let mut split: Vec<PendingSplit> = Vec::new();
        for child in pending {
            // An insertion before this one may have split the branch. The child goes to the last
            // part whose separator is not above the child's.
            let parts = split.iter().filter(|part| part.separator <= child.separator);
            let target = parts.max_by(|a, b| a.separator.cmp(&b.separator)).map_or(step.page, |part| part.page);
            split.extend(insert_child(pages, target, &child, path.is_last)?);
        }
        split.sort_by(|a, b| a.separator.cmp(&b.separator));
        pending = split;
        if pending.is_empty() {
            return Ok(());
        }
    }
    grow(pages, root, pending)
}

/// Inserts one child. If the branch must be split for it, returns its new right part.
fn insert_child<W: PageWrite>(
    pages: &mut W,
    branch: PageId,
    child: &PendingSplit,
    is_last: bool,
) -> Result<Option<PendingSplit>> {
    let created_txn = pages.txn_id();
    let body = pages.body_mut(branch)?;
    let node = Node::parse(body, branch)?;
    let result = node.find(&child.separator)?;
    if result.found {
        return Err(node.damaged("the separator of a new page exists already"));
    }
    let first_child = node.child(0);
    let payload = Payload { version: &[], value: &[], slot_data: child.page.0 };
    if node_mut::insert(body, branch, result.index, &child.separator, payload)? {
        return Ok(None);
    }
    let limit = body.len();
    let mut items = EntryList::read(&Node::parse(body, branch)?)?;
    items.insert(result.index, &child.separator, payload);
    let n = items.len();
    if let Some(prefix_len) = items.fit(0..n, limit) {
        items.write(0..n, prefix_len, body, NodeIdentity { id: branch, created_txn, first_child });
        return Ok(None);
    }
    // At the tree's right edge, as in leaves, the left part stays full; the right one gets two
    // children.
    let up = if is_last && result.index + 1 == n && n > 2 { Some(n - 2) } else { items.cut(limit) };
    let Some(up) = up else {
        return Err(Node::parse(body, branch)?.damaged("longer separators than can be written"));
    };
    write_group(&items, 0..up, body, NodeIdentity { id: branch, created_txn, first_child })?;
    let right = pages.allocate()?;
    let identity = NodeIdentity { id: right, created_txn, first_child: items.child(up) };
    write_group(&items, up + 1..n, pages.body_mut(right)?, identity)?;
    Ok(Some(PendingSplit { separator: items.key(up).to_vec(), page: right }))
}

/// Puts a new root above the old one and the pages that were split off from it.
fn grow<W: PageWrite>(pages: &mut W, root: &mut PageId, pending: Vec<PendingSplit>) -> Result<()> {
    let old = Node::open(pages, *root)?;
    if old.level == LEVEL_MAX {
        return Err(Error::Limit {
            what: LimitKind::TreeLevels,
            found: u64::from(LEVEL_MAX) + 1,
            limit: LEVEL_MAX.into(),
        });
    }
    let mut items = EntryList::new(old.level + 1);
    for (index, child) in pending.iter().enumerate() {
        items.insert(index, &child.separator, Payload { version: &[], value: &[], slot_data: child.page.0 });
    }
    let id = pages.allocate()?;
    let identity = NodeIdentity { id, created_txn: pages.txn_id(), first_child: *root };
    write_group(&items, 0..items.len(), pages.body_mut(id)?, identity)?;
    *root = id;
    Ok(())
}

/// Removes empty pages, merges underfull ones, and lowers the root, after a removal from the path's
/// leaf.
pub(crate) fn settle<W: PageWrite>(pages: &mut W, root: &mut PageId, path: &Path) -> Result<()> {
    let created_txn = pages.txn_id();
    let mut page = path.leaf;
    let mut is_empty = Node::open(pages, page)?.count() == 0;
    for step in path.branches.iter().rev() {
        if is_empty {
            pages.free(page, 1, created_txn);
            // A branch whose only child vanishes is empty itself.
            is_empty = Node::open(pages, step.page)?.count() == 0;
            if !is_empty {
                node_mut::remove_child(pages.body_mut(step.page)?, step.page, step.index)?;
            }
        } else if !merge(pages, step.page, step.index)? {
            return Ok(());
        }
        page = step.page;
    }
    if is_empty {
        pages.free(page, 1, created_txn);
        *root = PageId::NONE;
        return Ok(());
    }
    lower_root(pages, root)
}

/// Merges the underfull pages on the path to `key`, after a range was removed. Returns true if any
/// were merged. Other pages on the path, or next to it, may then fit together.
pub(crate) fn mend<W: PageWrite>(pages: &mut W, root: &mut PageId, key: &[u8]) -> Result<bool> {
    let mut path = Path::find(pages, *root, key)?;
    let below_root = path.branches.iter().skip(1).map(|step| step.page).chain([path.leaf]);
    let mut is_underfull = false;
    for page in below_root.take(path.branches.len()) {
        is_underfull |= wants_merge(&Node::open(pages, page)?);
    }
    // If no page is underfull, the path is not copied.
    if !is_underfull {
        return Ok(false);
    }
    path.own(pages, root)?;
    let mut merged = false;
    for step in path.branches.iter().rev() {
        merged |= merge(pages, step.page, step.index)?;
    }
    Ok(merged)
}

/// Makes the root's child the root, while the root has only one child.
pub(crate) fn lower_root<W: PageWrite>(pages: &mut W, root: &mut PageId) -> Result<()> {
    loop {
        let node = Node::open(pages, *root)?;
        if node.is_leaf() || node.count() > 0 {
            return Ok(());
        }
        let (id, created_txn, child) = (node.id, node.created_txn(), node.child(0));
        Node::open_child(pages, child, &node)?;
        pages.free(id, 1, created_txn);
        *root = child;
    }
}

/// Returns how many bytes of a page's body are in use. In a page that was not checked yet, the
/// garbage count may exceed the page's size.
fn used(node: &Node<'_>) -> usize {
    (node.arrays_end() + node.body.len() - node.heap_start()).saturating_sub(node.garbage())
}

/// Returns whether a page is so empty that it is merged with a neighbour.
fn wants_merge(node: &Node<'_>) -> bool {
    used(node) <= node.body.len() / 3
}

/// Merges child `index` of a branch with a neighbour, if the child is underfull and both fit one
/// page. Some space must be left, so that the next insertion does not split the page again. The
/// neighbour is read and freed, not written. Returns true if they were merged.
fn merge<W: PageWrite>(pages: &mut W, branch: PageId, index: usize) -> Result<bool> {
    let created_txn = pages.txn_id();
    let parent = Node::open(pages, branch)?;
    let node = Node::open_child(pages, parent.child(index), &parent)?;
    let size = node.body.len();
    if !wants_merge(&node) {
        return Ok(false);
    }
    let limit = size / 8 * 7;
    for left in [index.checked_sub(1), Some(index)].into_iter().flatten() {
        if left == parent.count() {
            continue;
        }
        let neighbour = if left == index { index + 1 } else { left };
        let other = Node::open_child(pages, parent.child(neighbour), &parent)?;
        ensure_sound(pages, &other)?;
        if used(&node) + used(&other) > size + size / 4 {
            continue;
        }
        let (first, second) = if left == index { (&node, &other) } else { (&other, &node) };
        let mut items = EntryList::read(first)?;
        let first_child = if node.is_leaf() { PageId::NONE } else { first.child(0) };
        if !node.is_leaf() {
            let between = parent.key(left)?.to_vec();
            let payload = Payload { version: &[], value: &[], slot_data: second.child(0).0 };
            items.insert(items.len(), &between, payload);
        }
        items.append(second)?;
        let n = items.len();
        let Some(prefix_len) = items.fit(0..n, limit) else {
            continue;
        };
        let (id, gone, gone_created_txn) = (node.id, other.id, other.created_txn());
        items.write(0..n, prefix_len, pages.body_mut(id)?, NodeIdentity { id, created_txn, first_child });
        let body = pages.body_mut(branch)?;
        node_mut::set_child(body, branch, left, id)?;
        node_mut::remove_child(body, branch, left + 1)?;
        pages.free(gone, 1, gone_created_txn);
        return Ok(true);
    }
    Ok(false)
}
