//! The checks before recovery changes a byte of any file. A store that is refused stays as it was.
//!
//! The header is compared with the log. Then the pages of the arena that show whether it is of
//! another time are checked, against their checksums and the header: the catalog, the run
//! directory, and the ends of the queues. The log is then read to its end. Its transactions are
//! compared with one another and with the catalog. At last the log is replayed in memory: see
//! [`crate::logger::rehearse`]. The rest of the arena is not read: a large store must open at once.

use crate::files::dir;
use crate::files::header::CheckpointHeader;
use crate::files::log::log_error;
use crate::logger::adopt::Candidate;
use crate::logger::recover;
use crate::shared::control::Control;
use crate::shared::memory::arena::Arena;
use crate::shared::progress::Progress;
use crate::txn::catalog;
use crate::txn::replay::{Check, ExtentPlan};
use crate::{Error, Result, TxnId};
use untorn_wal::{LogScan, RealDisk, SegmentCatalog, StoreId};

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
