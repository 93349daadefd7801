//! One checkpoint: from the started transaction C to the finished one, K = C.
//!
//! | step | dies here | then |
//! |---|---|---|
//! | C and its image are recorded under the writer lock, by the logger or by a writer ([`crate::pages::reserve`]) | after it | the successor finds C ≠ K and takes this same C |
//! | the log is made durable up to C | | as above |
//! | checksums into all pages created in (K, C] | | as above: every one is written again, unconditionally |
//! | fdatasync of the arena | it failed, or its result is unknown | those stores made each page dirty again, so the sync writes them anew |
//! | header into the slot that does not hold K, fdatasync | | recovery takes the newer header if it is whole |
//! | a block of the log records K | | the successor writes the header once more |
//! | segments are recycled | | as above; they hold nothing that the header needs |
//! | K is published | | |
//!
//! **C never changes until K = C**, and rule I3 protects both meanwhile: the pages of the header
//! that counts are never overwritten, whichever of the two that is.

use crate::btree::walk::each_page;
use crate::files::dir;
use crate::files::extent::is_logged;
use crate::files::header::CheckpointHeader;
use crate::files::slot::SlotImage;
use crate::logger::background;
use crate::logger::process::Logger;
use crate::pages::{extents, queue};
use crate::participant::engine::Engine;
use crate::participant::rest::LOGGER_POLL_INTERVAL;
use crate::shared::control::Poison;
use crate::shared::memory::arena::Pages;
use crate::system::clock;
use crate::txn::catalog;
use crate::txn::roots::roots_sum;
use crate::{Error, PageId, Result, TxnId};
use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::Duration;
use untorn_wal::Lsn;

/// Time between checkpoints after a failure, or when a full device is the reason for them.
const CHECKPOINT_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Log segments beyond those for the volume between checkpoints: loggers that die early leave many
/// that are nearly empty.
const SEGMENTS_BEYOND_CHECKPOINT: u64 = 4;

/// Runs the checkpoint thread: takes checkpoints as they become due, until the logger ends. It
/// takes the writer lock only for the start of a checkpoint, to copy one slot.
pub(super) fn run(logger: &Logger) {
    let event = &logger.engine.control.fixed().logger.background;
    let mut retry_at = clock::now();
    loop {
        let wait_key = event.prepare_wait();
        if logger.background_ending.load(Ordering::SeqCst) {
            return;
        }
        crash_point!("checkpoint.round_begun");
        if clock::now() >= retry_at && is_due(logger) {
            match take(logger, false, LOGGER_POLL_INTERVAL) {
                Err(Error::LockTimeout { .. }) => continue,
                // An error that lasts is recorded in `control`.
                Err(error) => {
                    tracing::warn!(%error, "a checkpoint failed; another one will be tried");
                    note_failure(&logger.engine, &error);
                    retry_at = clock::now() + CHECKPOINT_RETRY_DELAY;
                }
                // On a full device, checkpoints without a pause would only add to the load.
                Ok(()) if logger.is_starved.load(Ordering::SeqCst) => retry_at = clock::now() + CHECKPOINT_RETRY_DELAY,
                Ok(()) => {}
            }
        }
        let nap = if clock::now() < retry_at { LOGGER_POLL_INTERVAL } else { logger.rest.nap(LOGGER_POLL_INTERVAL) };
        event.wait(wait_key, nap);
    }
}

/// Returns whether a checkpoint is due. If the log is starved, or a writer waits for log, one is
/// taken early, for the segments that it frees.
fn is_due(logger: &Logger) -> bool {
    let engine = &logger.engine;
    let fixed = engine.control.fixed();
    let words = &fixed.logger;
    let (_, finished) = engine.control.fixed().checkpoint.started_and_finished();
    if engine.control.fixed().checkpoint.is_running() || words.requested_checkpoint() > finished {
        return true;
    }
    let Some((_, durable)) = engine.control.durable() else { return false };
    let extents = fixed.stream.extent_bytes_since_checkpoint();
    let volume = durable.bytes_since(fixed.checkpoint.finished_lsn()).saturating_add(extents);
    let volume_max = words.settings.checkpoint_bytes();
    let segment_bytes_max = volume_max.saturating_add(SEGMENTS_BEYOND_CHECKPOINT * engine.geometry.segment_size);
    // Larger spares come first.
    let is_log_wanted =
        words.requested_credit() > fixed.durable.credit_by_waiter() && background::has_full_spares(&logger.pool);
    let is_log_short = is_log_wanted
        || logger.is_starved.load(Ordering::SeqCst)
        || logger.pool.stats().segment_bytes > segment_bytes_max;
    volume >= volume_max || (volume > 0 && is_log_short)
}

/// Takes a checkpoint, or finishes the one that a dead logger began. With `clean`, no process can
/// commit after it. Does nothing if nothing has been committed since the last one.
///
/// Waits at most `patience` for the writer lock: its holder may be stopped, or may keep its
/// transaction open for hours.
///
/// # Errors
/// [`Error::LockTimeout`] if the lock was not free: nothing has begun, and the caller may retry
/// later.
pub(super) fn take(logger: &Logger, clean: bool, patience: Duration) -> Result<()> {
    let engine = &logger.engine;
    engine.control.refuse_poisoned()?;
    let arena_file = engine.arena_file()?;
    // Loaded before the start: later extents count for the next checkpoint.
    let (extent_bytes, _) = engine.control.fixed().stream.extent_bytes();
    let (mut started, finished) = engine.control.fixed().checkpoint.started_and_finished();
    refuse_unknown(engine, started, finished)?;
    if !engine.control.fixed().checkpoint.is_running() {
        match start(logger, finished, clean, patience)? {
            Some(txn) => started = txn,
            None => return Ok(()),
        }
    }
    let began = clock::now();
    tracing::debug!(committed = %started, checkpointed = %finished, "checkpoint started");
    crash_point!("checkpoint.started");
    let (image, log_position) = engine.control.started_checkpoint()?;
    // Up to the position, not only to the image's tail. Frames of a transaction that rolled back
    // lie between, and a header must not contain a position that a power cut may take back.
    engine.wait_durable(log_position, true, None)?;
    crash_point!("checkpoint.log_durable");
    let pages = engine.arena.pages(image.high_water);
    let early_header = planted_bug!("header-before-pages");
    if early_header {
        write_header(logger, &image, log_position, clean)?;
    }
    let summed = sum_pages(engine, &arena_file, &pages, &image, finished)?;
    crash_point!("checkpoint.pages_summed");
    if let Err(error) = crate::system::write_back::sync(&arena_file, "arena.sync") {
        // The state of the pages in the kernel is unknown: no further checkpoint, no recycling.
        engine.set_poison(Poison::Arena, error.raw_os_error().unwrap_or(libc::EIO));
        return Err(Error::Io { what: "sync of arena".into(), source: error });
    }
    engine.progress.step();
    crash_point!("checkpoint.arena_synced");
    if !early_header {
        write_header(logger, &image, log_position, clean)?;
    }
    crash_point!("checkpoint.header_written");
    logger.state_checkpoint(started, log_position)?;
    crash_point!("checkpoint.stated");
    let words = &engine.control.fixed().checkpoint;
    words.set_finished_lsn(log_position);
    let count = || logger.count_segments();
    let freed = logger.pool.recycle_with(log_position, engine.control.fixed().logger.settings.retention(), count);
    logger.count_segments();
    logger.grant_again();
    engine.control.fixed().stream.set_checkpointed_extent_bytes(extent_bytes);
    // Counted first: a caller whose request for a checkpoint returns finds it in the figures.
    let counters = &engine.control.fixed().counters;
    counters.checkpoints.add(1);
    counters.checkpoint_pages.add(summed);
    let spent = clock::since(began).as_nanos() as u64;
    engine.control.fixed().latencies.checkpoint.record(spent);
    words.finish(started);
    tracing::debug!(checkpointed = %started, pages = summed, checkpoint_ns = spent, "checkpoint finished");
    let freed = freed.map_err(crate::files::log::log_error)?;
    if freed > 0 {
        tracing::debug!(segments = freed, "log segments recycled");
    }
    Ok(())
}

/// Takes a checkpoint of the newest commit in recovery, where no other thread or process uses the
/// store. Returns its header.
///
/// `before` is the newest checkpoint so far. The log is durable up to `log_position`, at or beyond
/// which no byte of that commit or of an earlier one lies.
///
/// # Errors
/// On any error, `before` stays the newest checkpoint.
pub(super) fn take_replayed(engine: &Engine, before: &CheckpointHeader, log_position: Lsn) -> Result<CheckpointHeader> {
    let image = engine.control.newest()?;
    let arena_file = engine.arena_file()?;
    sum_pages(engine, &arena_file, &engine.arena.pages(image.high_water), &image, before.txn())?;
    crate::system::write_back::sync(&arena_file, "arena.sync").map_err(Error::io("sync of arena"))?;
    engine.progress.step();
    crash_point!("recover.checkpoint_synced");
    let words = &engine.control.fixed().checkpoint;
    let serial = CheckpointHeader::next_serial(words.serial())?;
    let roots_sum = roots_sum(&engine.arena, &image.catalog)?;
    let header = CheckpointHeader { serial, log_position, clean: false, roots_sum, image, ..*before };
    header.write(&engine.dir.need_file(dir::CHECKPOINT, true)?)?;
    words.set_serial(serial);
    words.note_replayed(image.txn, log_position);
    Ok(header)
}

/// Records C and its image, under the writer lock. Returns `None` if there is nothing new.
fn start(logger: &Logger, finished: TxnId, clean: bool, patience: Duration) -> Result<Option<TxnId>> {
    let engine = &logger.engine;
    let fixed = engine.control.fixed();
    logger.with_writer_lock(patience, || {
        if engine.control.fixed().checkpoint.is_running() {
            // A writer has started one meanwhile. C never changes until K = C.
            return Ok(Some(engine.control.fixed().checkpoint.started_and_finished().0));
        }
        let image = engine.control.newest()?;
        let words = &fixed.checkpoint;
        let position = image.log_tail.max(fixed.stream.tail());
        let moved = position > words.finished_lsn();
        if image.txn == finished && !moved && !clean {
            return Ok(None);
        }
        words.start(&image, position);
        Ok(Some(image.txn))
    })
}

/// Reports to the waiters for a checkpoint that an attempt failed.
pub(super) fn note_failure(engine: &Engine, error: &Error) {
    let (errno, offset) = match error {
        Error::Corrupt { offset, .. } => (0, *offset),
        other => (other.errno(), 0),
    };
    engine.control.fixed().checkpoint.note_failure(errno, offset);
}

fn write_header(logger: &Logger, image: &SlotImage, log_position: Lsn, clean: bool) -> Result<()> {
    let engine = &logger.engine;
    // A failure to open the file is no reason to poison the store: nothing was written.
    let file = engine.dir.need_file(dir::CHECKPOINT, true)?;
    let words = &engine.control.fixed().checkpoint;
    let header = CheckpointHeader {
        store_id: engine.store_id,
        geometry: engine.geometry,
        serial: CheckpointHeader::next_serial(last_serial(&file, words.serial())?)?,
        log_position,
        clean,
        retention: engine.control.fixed().logger.settings.retention(),
        roots_sum: roots_sum(&engine.arena, &image.catalog)?,
        image: *image,
    };
    if let Err(error) = header.write(&file) {
        engine.set_poison(Poison::Header, error.errno());
        return Err(error);
    }
    // The slot of the newest header is never written next: the serial moves only after success.
    words.set_serial(header.serial);
    Ok(())
}

/// Returns the serial of the newest header whose writing has succeeded. That is the serial in
/// `control`, if a header has it: a newer header may be what a failed sync left in the cache.
/// Otherwise the word is damaged, and the newest header in the file counts.
fn last_serial(file: &File, noted: u64) -> Result<u64> {
    let (headers, damage) = CheckpointHeader::read_slots(file)?;
    match headers.last() {
        _ if headers.iter().any(|header| header.serial == noted) => Ok(noted),
        Some(newest) => Ok(newest.serial),
        None => Err(damage.expect("two slots, none valid")),
    }
}

/// Returns an error if no header is of the checkpoint that counts as finished. The word is then
/// damaged. With it, too few pages would get checksums, and the wrong pages would be protected.
///
/// One case is not an error: both headers are of the checkpoint that was started after it. Its
/// logger died after writing the header and before publishing K, and so did the successor that
/// wrote it again. A word older than the headers only adds pages that get checksums or protection.
fn refuse_unknown(engine: &Engine, started: TxnId, finished: TxnId) -> Result<()> {
    let (headers, damage) = CheckpointHeader::read_slots(&engine.dir.need_file(dir::CHECKPOINT, false)?)?;
    let is_written_again = finished < started && headers.iter().any(|header| header.txn() == started);
    if damage.is_none() && !is_written_again && headers.iter().all(|header| header.txn() != finished) {
        return Err(Error::corrupt(dir::CONTROL, 0, format!("no header is of the finished checkpoint {finished}")));
    }
    Ok(())
}

/// Writes the checksums of all pages of C that were created after K, and returns their number.
///
/// A page created at or before K has only descendants that were too, so the walk does not descend
/// there.
fn sum_pages(engine: &Engine, file: &File, pages: &Pages<'_>, image: &SlotImage, finished: TxnId) -> Result<u64> {
    let mut summed = 0;
    let mut roots = vec![image.catalog.root];
    roots.extend(catalog::list(pages, &image.catalog)?.into_iter().map(|entry| entry.root));
    for root in roots {
        each_page_born_after(pages, root, finished, &mut |page, count| {
            summed += u64::from(count);
            sum(engine, file, pages, page, count)
        })?;
    }
    if !image.extent_directory.is_none() && pages.created_txn(image.extent_directory)? > finished {
        sum(engine, file, pages, image.extent_directory, 1)?;
        summed += 1;
    }
    let queues = extents::all_queues(pages, image)?;
    for state in queues.iter().filter(|state| !state.head.is_none()) {
        queue::each_page(pages, &engine.arena, state, &mut |page, created_txn| {
            if created_txn > finished {
                summed += 1;
                sum(engine, file, pages, page, 1)?;
            }
            Ok(())
        })?;
    }
    Ok(summed)
}

fn each_page_born_after(
    pages: &Pages<'_>,
    root: PageId,
    finished: TxnId,
    on_page: &mut dyn FnMut(PageId, u32) -> Result<()>,
) -> Result<()> {
    each_page(pages, root, &mut |seen| {
        if seen.created_txn <= finished {
            return Ok(false);
        }
        on_page(seen.page, seen.pages)?;
        Ok(true)
    })
}

fn sum(engine: &Engine, file: &File, pages: &Pages<'_>, page: PageId, count: u32) -> Result<()> {
    engine.progress.step();
    let body = pages.body_of(page, count)?;
    if planted_bug!("sum-once") && engine.arena.verify_checksum(body, page).is_ok() {
        return Ok(());
    }
    engine.arena.store_checksum(body, page)?;
    // The log is durable up to C, so the logged extents of C are too: a flush has synced each
    // before its record, and a failed sync of extents ends all acknowledgements and checkpoints
    // (`logger/flush/extents.rs`). Writing them once more would double the cost of large values.
    // The store of the checksum has made the first page dirty.
    if is_logged(body) {
        return Ok(());
    }
    engine.arena.redirty_interior(file, page, body)
}
