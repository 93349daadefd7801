//! A walk over the pages of a tree, parents before children. Its visitor can skip subtrees.

use crate::btree::check::PageSeen;
use crate::btree::node::Node;
use crate::files::page::PageRead;
use crate::files::page::{PageKind, StoredValue, damaged, read_extent};
use crate::{PageId, Result, TxnId};

/// Calls `visit` with each page and extent. If `visit` returns `false`, the pages below are
/// skipped.
///
/// # Errors
/// `Corrupt` if a page can't be read, and the errors of `visit`.
pub(crate) fn each_page<P: PageRead>(
    pages: &P,
    root: PageId,
    visit: &mut dyn FnMut(PageSeen) -> Result<bool>,
) -> Result<()> {
    if root.is_none() {
        return Ok(());
    }
    descend(pages, &Node::open(pages, root)?, None, visit)
}

fn descend<P: PageRead>(
    pages: &P,
    node: &Node<'_>,
    parent: Option<TxnId>,
    visit: &mut dyn FnMut(PageSeen) -> Result<bool>,
) -> Result<()> {
    let created_txn = node.created_txn();
    // A transaction that copies a page copies those above it. So a page newer than its parent is
    // damaged. It must not pass for a page that has no checksum yet.
    if parent.is_some_and(|parent| created_txn > parent) {
        return Err(node.damaged(format!("created in {created_txn}, after its parent")));
    }
    let kind = if node.is_leaf() { PageKind::Leaf } else { PageKind::Branch };
    if !visit(PageSeen { page: node.id, pages: 1, created_txn, kind })? {
        return Ok(());
    }
    if node.is_leaf() {
        for index in 0..node.count() {
            if let (_, StoredValue::Extent { page, pages: count, len }) = node.entry(index)? {
                let (_, extent_created_txn) = read_extent(pages, page, count, len)?;
                if extent_created_txn > created_txn {
                    return Err(damaged(
                        page,
                        pages.page_size(),
                        format!("created in {extent_created_txn}, after its leaf"),
                    ));
                }
                visit(PageSeen { page, pages: count, created_txn: extent_created_txn, kind: PageKind::Extent })?;
            }
        }
        return Ok(());
    }
    for index in 0..=node.count() {
        // Levels strictly decrease, so the walk ends whatever the pages contain.
        descend(pages, &Node::open_child(pages, node.child(index), node)?, Some(created_txn), visit)?;
    }
    Ok(())
}
