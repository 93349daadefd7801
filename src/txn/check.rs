//! The checks of a store's files against its checkpoint header, before any of them changes.
//!
//! A header must not be older than the log, nor the arena be of another time than the header. The
//! logger checks this before it recovers a store, and a client before it uses one that was left in
//! order.

use crate::btree::walk::each_page;
use crate::files::dir;
use crate::files::header::CheckpointHeader;
use crate::files::page::PageKind;
use crate::pages::extents;
use crate::shared::memory::arena::{Arena, Pages};
use crate::shared::progress::Progress;
use crate::txn::catalog;
use crate::txn::roots::roots_sum;
use crate::{Error, PageId, Result, TxnId};
use untorn_wal::{LogState, SegmentCatalog, SegmentNumber};

/// The most pages of the catalog that are read: some hundred thousand keyspaces.
const CATALOG_PAGES_MAX: u64 = 4096;

/// Returns an error if the header is older than the newest checkpoint that the log records: the
/// header's pages may have been reused since. Of two checkpoints of one transaction, the log before
/// the later one may be gone.
pub(crate) fn refuse_old_header(header: &CheckpointHeader, damage: Option<Error>, log_state: &LogState) -> Result<()> {
    if header.txn().as_u64() >= log_state.checkpoint_txn && header.log_position >= log_state.checkpoint_lsn {
        return Ok(());
    }
    let newest = TxnId::from_u64(log_state.checkpoint_txn);
    Err(damage.unwrap_or_else(|| {
        Error::corrupt(
            dir::CHECKPOINT,
            0,
            format!(
                "the newest header is of transaction {}, the log records a checkpoint of {newest}: the files are of different \
                 times; restore a backup into an empty directory",
                header.txn()
            ),
        )
    }))
}

/// Returns an error if the next segment would have a number that no log accepts. No store reaches
/// that number by itself.
pub(crate) fn refuse_last_segment(segment_catalog: &SegmentCatalog) -> Result<()> {
    match segment_catalog.segments.last() {
        Some(newest) if newest.header.number.0 > SegmentNumber::MAX.0 / 2 => {
            let (number, max) = (newest.header.number, SegmentNumber::MAX.0 / 2);
            let what = format!("the segment has number {number}, expected at most {max}");
            Err(Error::corrupt(&format!("{}/{}", dir::WAL, newest.file), 32, what))
        }
        _ => Ok(()),
    }
}

/// Checks the pages that lead to all others against their checksums and the header.
pub(crate) fn check_arena(arena: &Arena, header: &CheckpointHeader, progress: &Progress) -> Result<()> {
    let image = &header.image;
    let pages = arena.pages(image.high_water);
    let check = |page: PageId, count: u32, created_txn: TxnId| -> Result<()> {
        progress.step();
        if created_txn > image.txn {
            let what = format!("page {} was born in {created_txn}, after the checkpoint of {}", page.0, image.txn);
            return Err(arena.damaged(page, what));
        }
        arena.verify_checksum(pages.body_of(page, count)?, page)
    };
    check_catalog(arena, header, &pages, &check)?;
    if !image.extent_directory.is_none() {
        check(image.extent_directory, 1, pages.created_txn(image.extent_directory)?)?;
    }
    for queue in extents::all_queues(&pages, image)?.iter().filter(|queue| !queue.head.is_none()) {
        for page in [queue.head, queue.tail] {
            let found = pages.expect(page, PageKind::FreeQueue)?;
            check(page, 1, found.created_txn)?;
        }
    }
    Ok(())
}

/// Checks that the catalog is the one of the header, and that its counts match the header's.
fn check_catalog(
    arena: &Arena,
    header: &CheckpointHeader,
    pages: &Pages<'_>,
    check: &dyn Fn(PageId, u32, TxnId) -> Result<()>,
) -> Result<()> {
    let image = &header.image;
    let (expected, root) = (header.roots_sum, image.catalog.root);
    for root in image.catalog.roots() {
        pages.check(root, 1)?;
    }
    if expected != 0 {
        let found = roots_sum(arena, &image.catalog)?;
        if found != expected {
            let what = format!(
                "the roots of the trees have checksum {found:016x}, the checkpoint records {expected:016x}: arena and \
                 checkpoint are of different times"
            );
            return Err(arena.damaged(root, what));
        }
    }
    for tree in image.catalog.recent.iter().filter(|tree| !tree.root.is_none()) {
        check(tree.root, 1, pages.created_txn(tree.root)?)?;
    }
    let mut seen = 0;
    each_page(pages, root, &mut |page| {
        seen += 1;
        check(page.page, page.pages, page.created_txn)?;
        Ok(seen < CATALOG_PAGES_MAX)
    })?;
    if seen >= CATALOG_PAGES_MAX {
        return Ok(());
    }
    let keyspaces = catalog::list(pages, &image.catalog)?;
    let records = keyspaces.iter().fold(0, |sum: u64, keyspace| sum.saturating_add(keyspace.entries));
    let counts = [("keyspaces", keyspaces.len() as u64, image.keyspaces), ("records", records, image.records)];
    match counts.into_iter().find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((what, found, expected)) => {
            Err(arena.damaged(root, format!("the catalog has {found} {what}, the checkpoint counts {expected}")))
        }
    }
}
