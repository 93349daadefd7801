//! The check of the pages from which all others of a commit are reached: the catalog, the root of
//! each keyspace, the extent directory, and the ends of the free queues.

use crate::btree::node::Node;
use crate::btree::walk::each_page;
use crate::files::page::PageKind;
use crate::files::slot::{CatalogState, SlotImage};
use crate::pages::extents;
use crate::shared::memory::arena::{Arena, Pages};
use crate::txn::catalog;
use crate::{PageId, Result, TxnId};

/// The most pages of the catalog that are read: some hundred thousand keyspaces.
const CATALOG_PAGES_MAX: u64 = 4096;

/// Returns the folded checksum words of the pages that lead to all trees; 0 without such pages.
pub(crate) fn roots_sum(arena: &Arena, catalog: &CatalogState) -> Result<u64> {
    catalog.roots().try_fold(0, |sum: u64, root| Ok(sum.rotate_left(1) ^ arena.checksum_word(root)?))
}

/// Checks these pages of the commit of `image`, whose checkpoint is of `checkpointed`. A page up to
/// that checkpoint has a checksum; a later one gets it with the next checkpoint.
///
/// # Errors
/// [`Error::Corrupt`](crate::Error::Corrupt) if a page can't be one of this commit, or if the
/// catalog's counts are not those of the image.
pub(crate) fn check_roots(arena: &Arena, image: &SlotImage, checkpointed: TxnId) -> Result<()> {
    let pages = arena.pages(image.high_water);
    let mut newest = TxnId::ZERO;
    let mut check = |root: PageId| -> Result<()> {
        let created_txn = check_root(arena, &pages, image, checkpointed, root)?;
        newest = newest.max(created_txn);
        Ok(())
    };
    let mut seen = 0;
    each_page(&pages, image.catalog.root, &mut |page| {
        seen += 1;
        check(page.page)?;
        Ok(seen < CATALOG_PAGES_MAX)
    })?;
    image.catalog.recent.iter().try_for_each(|tree| check(tree.root))?;
    // Each commit writes a new root. So pages of an earlier time, for example of a backup that was
    // copied over the file, lack the newest one. A commit that only empties a keyspace looks alike.
    if newest != image.txn {
        let what = format!("the newest root was created in {newest}, the newest commit is {}", image.txn);
        return Err(arena.damaged(image.catalog.root, what));
    }
    if seen < CATALOG_PAGES_MAX {
        let keyspaces = catalog::list(&pages, &image.catalog)?;
        for keyspace in &keyspaces {
            check_root(arena, &pages, image, checkpointed, keyspace.root)?;
        }
        let records = keyspaces.iter().fold(0, |sum: u64, keyspace| sum.saturating_add(keyspace.entries));
        if (keyspaces.len() as u64, records) != (image.keyspaces, image.records) {
            let what = format!(
                "the catalog has {} keyspaces and {records} records, the commit counts {} and {}",
                keyspaces.len(),
                image.keyspaces,
                image.records
            );
            return Err(arena.damaged(image.catalog.root, what));
        }
    }
    for queue in extents::all_queues(&pages, image)?.iter().filter(|queue| !queue.head.is_none()) {
        pages.expect(queue.head, PageKind::FreeQueue)?;
        pages.expect(queue.tail, PageKind::FreeQueue)?;
    }
    Ok(())
}

/// Checks the root of a tree, or another page of the catalog. Returns the transaction that created
/// it; [`TxnId::ZERO`] without a page.
fn check_root(arena: &Arena, pages: &Pages<'_>, image: &SlotImage, checkpointed: TxnId, root: PageId) -> Result<TxnId> {
    if root.is_none() {
        return Ok(TxnId::ZERO);
    }
    let node = Node::open(pages, root)?;
    node.audit()?;
    let created_txn = node.created_txn();
    if created_txn > image.txn {
        return Err(arena.damaged(root, format!("page {} was created in {created_txn}, after {}", root.0, image.txn)));
    }
    if created_txn <= checkpointed {
        arena.verify_checksum(pages.body_of(root, 1)?, root)?;
    }
    Ok(created_txn)
}
