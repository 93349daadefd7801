//! The region of a store that was left in order, made by its first client.
//!
//! A store that was left in order needs no recovery: the checkpoint holds everything. So its first
//! client does not wait for a logger before it reads. Under the initialisation lock it makes the
//! region itself, as recovery would, and puts it in place. It then enters as any client does, and
//! spawns a logger behind it. The logger *begins* the region: it makes the header durable that no
//! longer states that the store is in order, starts a segment, and then stores the incarnation
//! (`logger/process/prepare.rs`).
//!
//! Until then clients change nothing in the region but their own entries and pins, and the settings
//! ([`Control::is_begun`]): each call that writes waits first
//! ([`Engine::await_begun`](crate::participant::engine::Engine::await_begun)). No log space is
//! granted either. So nothing is lost if processes die:
//!
//! | step | the client dies after it | the logger dies after it |
//! |---|---|---|
//! | the region is made | the store is still in order; the next opener uses the file's blocks | |
//! | the region is in place | its number is in no segment, so the next logger or client makes another | |
//! | the client has entered | as above | |
//! | the header is in use | the logger continues | beside a client, the next logger does the same again; without one, the store is recovered from the same checkpoint and an empty log |
//! | a segment is started | as above | as above |
//! | the region is begun | as for any region | as for any region |
//!
//! An open must not succeed that recovery would refuse. So the client makes the checks that the
//! logger makes before a byte changes. If any of them fails, or the case is unusual, the client
//! makes no region, and waits for a logger, which returns the error.

use crate::api::cells::record;
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::header::CheckpointHeader;
use crate::files::log::{log_error, open_log};
use crate::files::memory_mark;
use crate::participant::options::Options;
use crate::process::region;
use crate::shared::control::Control;
use crate::shared::memory::arena::Arena;
use crate::shared::progress::Progress;
use crate::txn::{catalog, check};
use crate::{Result, TxnId, limits};
use rustix::fs::fstatvfs;
use std::os::unix::fs::MetadataExt;
use untorn_wal::{LogScan, LogShape, SegmentCatalog, StoreId};

/// Spare segments that the logger needs before it grants log space.
const SPARES_MIN: usize = 2;
/// Bytes in a block of `stat`.
const STAT_BLOCK_BYTES: u64 = 512;

/// Makes the region of a store that was left in order and that no process has open, and puts it in
/// place. Returns `None` if the logger must make it: the store was not left in order, or has cells,
/// or is damaged, or anything else is unusual. The caller holds the initialisation lock.
pub(crate) fn make_region(dir: &Dir, header: &CheckpointHeader, options: &Options) -> Option<Control> {
    let is_candidate = header.clean
        // An empty store has nothing to read.
        && header.txn() != TxnId::ZERO
        // Behind the checkpoint are frames of a transaction that rolled back: see
        // `Recovered::abort_stream_before`.
        && header.image.log_tail >= header.log_position
        && !options.logger_thread
        && !options.is_of_logger
        && !dir.is_foreign();
    if !is_candidate {
        return None;
    }
    let progress = Progress::default();
    match is_in_order(dir, header, &progress).and_then(|is_in_order| match is_in_order {
        true => put_region(dir, header).map(Some),
        false => Ok(None),
    }) {
        Ok(region) => region,
        Err(error) => {
            tracing::debug!(%error, "the region of a store that was left in order is left to the logger");
            None
        }
    }
}

/// Makes the checks of the logger. Returns false if the logger must decide.
fn is_in_order(dir: &Dir, header: &CheckpointHeader, progress: &Progress) -> Result<bool> {
    header.refuse_exhausted()?;
    // There a file of a lower layer is replaced when it is first opened for writing.
    if dir.with_fd(|fd| dir::file_system(fd))?.0 == "overlayfs" {
        return Ok(false);
    }
    let disk = open_log(dir)?;
    let shape = LogShape::new(StoreId(header.store_id), header.geometry.segment_size).map_err(log_error)?;
    let segment_catalog = SegmentCatalog::read(&disk, &shape).map_err(log_error)?;
    check::refuse_old_header(header, None, &segment_catalog.log_state)?;
    check::refuse_last_segment(&segment_catalog)?;
    let is_whole = segment_catalog.broken.is_empty() && segment_catalog.damaged.is_empty();
    if !is_whole || segment_catalog.spares.len() < SPARES_MIN {
        return Ok(false);
    }
    let durable_txn = segment_catalog.log_state.durable_txn;
    let mut scan = LogScan::of_catalog(&disk, segment_catalog, header.log_position).map_err(log_error)?;
    while let Some((_, bytes)) = scan.next_chunk().map_err(log_error)? {
        if !bytes.is_empty() {
            return Ok(false);
        }
    }
    if durable_txn.max(scan.newest_log_state().durable_txn) > header.txn().as_u64() {
        return Ok(false);
    }
    // For writing, as the logger opens them: a handle without the right to write waits for it.
    let arena_file = dir.need_file(dir::ARENA, true)?;
    dir.need_file(dir::CHECKPOINT, true)?;
    // The logger gives the arena the blocks that it lacks, and a copy those that it shares with the
    // original. On a full disk that fails.
    let stat = arena_file.metadata().map_err(crate::Error::io("stat of arena"))?;
    let used = u64::from(header.image.high_water) * header.geometry.page_size as u64;
    let known = limits::arena_size_for(used).min(header.geometry.max_size);
    let space = fstatvfs(&arena_file).map_err(crate::Error::sys("statvfs of arena"))?;
    let available = space.f_bavail.saturating_mul(space.f_frsize);
    let is_backed = stat.len() >= known && stat.blocks().saturating_mul(STAT_BLOCK_BYTES) >= known;
    if !is_backed || available < known.saturating_add(SPARES_MIN as u64 * header.geometry.segment_size) {
        return Ok(false);
    }
    let arena = Arena::open(&arena_file, header.store_id, &header.geometry, header.image.high_water)?;
    check::check_arena(&arena, header, progress)?;
    let pages = arena.pages(header.image.high_water);
    Ok(catalog::find(&pages, &header.image.catalog, record::KEYSPACE)?.is_none())
}

/// Makes the region under a name that no client opens, and then gives it its name.
///
/// Nothing is synced: the region is of no use after this boot, whatever the disk has of it.
fn put_region(dir: &Dir, header: &CheckpointHeader) -> Result<Control> {
    // The files may still have the marks of the life before. No region is adopted that no logger
    // has begun.
    memory_mark::clear_all(dir)?;
    region::release_control(dir)?;
    let file = region::fresh_file(dir)?;
    let control = Control::format(&file, header.store_id, &header.geometry, dir::boot_id()?)?;
    region::begin_at(&control, header);
    control.fixed().logger.settings.set_retention(header.retention);
    crash_point!("client.region_made");
    dir.rename_loosely(region::FRESH, dir::CONTROL)?;
    crash_point!("client.region_placed");
    Ok(control)
}
