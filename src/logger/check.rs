//! The checks before recovery changes a byte of any file. A store that is refused stays as it was.
//!
//! The header is compared with the log. Then the pages of the arena that show whether it is of
//! another time are checked, against their checksums and the header: the catalog, the run
//! directory, and the ends of the queues. The log is then read to its end. Its transactions are
//! compared with one another and with the catalog. At last the log is replayed in memory: see
//! [`crate::logger::rehearse`]. The rest of the arena is not read: a large store must open at once.

use crate::btree::walk::each_page;
use crate::files::dir;
use crate::files::header::CheckpointHeader;
use crate::files::log::log_error;
use crate::files::page::PageKind;
use crate::logger::adopt::Candidate;
use crate::logger::checkpoint::roots_sum;
use crate::logger::recover;
use crate::pages::extents;
use crate::shared::control::Control;
use crate::shared::memory::arena::{Arena, Pages};
use crate::shared::progress::Progress;
use crate::txn::catalog;
use crate::txn::replay::{Check, ExtentPlan};
use crate::{Error, PageId, Result, TxnId};
use untorn_wal::{LogScan, LogState, RealDisk, SegmentCatalog, SegmentNumber, StoreId};

/// The most pages of the catalog that are read: some hundred thousand keyspaces.
const CATALOG_PAGES_MAX: u64 = 4096;

/// Returns an error if the header is older than the newest checkpoint that the log records: the
/// header's pages may have been reused since. Of two checkpoints of one transaction, the log before
/// the later one may be gone.
pub(super) fn refuse_old_header(header: &CheckpointHeader, damage: Option<Error>, log_state: &LogState) -> Result<()> {
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
pub(super) fn refuse_last_segment(segment_catalog: &SegmentCatalog) -> Result<()> {
    match segment_catalog.segments.last() {
        Some(newest) if newest.header.number.0 > SegmentNumber::MAX.0 / 2 => {
            let (number, max) = (newest.header.number, SegmentNumber::MAX.0 / 2);
            let what = format!("the segment has number {number}, expected at most {max}");
            Err(Error::corrupt(&format!("{}/{}", dir::WAL, newest.file), 32, what))
        }
        _ => Ok(()),
    }
}

/// The remedy for a store that is refused.
const RESTORE_REMEDY: &str = "restore a backup into an empty directory";

/// Adds the remedy for the damage to an error.
pub(super) fn with_remedy(error: Error) -> Error {
    match error {
        Error::Corrupt { file, offset, what } if !what.contains(RESTORE_REMEDY) => {
            Error::Corrupt { file, offset, what: format!("{what}; {RESTORE_REMEDY}") }
        }
        other => other,
    }
}

/// Adds to an error about a record of the log the file and the offset of the batch that was read
/// last, if `file_position` contains them.
pub(super) fn with_file_position(error: Error, file_position: Option<(String, u64)>) -> Error {
    match (error, file_position) {
        (Error::Corrupt { file, what, .. }, Some((segment, offset))) if file == dir::WAL => {
            Error::Corrupt { file: format!("{}/{segment}", dir::WAL), offset, what }
        }
        (error, _) => error,
    }
}

/// Reads the log after the checkpoint to its end, and changes nothing. A store that can't be
/// recovered because of its log keeps every byte of every file. The large values to which the log
/// and the ring of `old` refer are verified. Returns whether the log holds anything after the
/// checkpoint, and where those values are.
///
/// The log is read once: `candidate` compares what it holds with the ring of its region.
pub(super) fn check_log(
    disk: &RealDisk,
    segment_catalog: &SegmentCatalog,
    header: &CheckpointHeader,
    arena: &Arena,
    old: Option<&Control>,
    mut candidate: Option<&mut Candidate<'_>>,
    progress: &Progress,
) -> Result<(bool, ExtentPlan)> {
    let mut segment_catalog = segment_catalog.clone();
    // The caller has checked that recovery needs none of these segments, except the newest one. If
    // that is among them, the log ends too early.
    segment_catalog.broken.clear();
    let mut scan = LogScan::of_catalog(disk, segment_catalog, header.log_position).map_err(log_error)?;
    let seed = StoreId(header.store_id).seed();
    let pages = arena.pages(header.image.high_water);
    let find_keyspace = |id| Ok(catalog::root(&pages, &header.image.catalog, id)?.is_some());
    let mut check = Check::new(seed, header.geometry.page_size, header.txn(), header.log_position, &find_keyspace);
    let mut holds_any = false;
    loop {
        let file_position = scan.file_position().map(|(file, offset)| (file.to_owned(), offset));
        let Some((lsn, bytes)) = scan.next_chunk().map_err(log_error)? else { break };
        holds_any |= !bytes.is_empty();
        if let Some(candidate) = &mut candidate {
            candidate.compare(lsn, bytes);
        }
        check.feed(bytes).map_err(|error| with_file_position(error, file_position))?;
    }
    let durable = TxnId::from_u64(scan.newest_log_state().durable_txn);
    if durable > check.last() {
        let what = format!("the log records transaction {durable} as durable, but ends with {}", check.last());
        return Err(Error::corrupt(dir::WAL, 0, what));
    }
    if let Some(candidate) = candidate {
        candidate.finish(scan.end(), &mut check);
    }
    let mut durable = scan.newest_log_state().durable.max(header.log_position);
    if let Some(old) = old {
        if let Some(bytes) = recover::ring_bytes(old, check.next())? {
            check.feed_until_bad(&bytes)?;
        }
        // A position beyond all records is of another time than the log.
        durable = durable.max(old.durable().map_or(durable, |(_, durable)| durable).min(check.next()));
    }
    let mut plan = check.into_extents();
    plan.verify(arena, durable, progress)?;
    Ok((holds_any, plan))
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
