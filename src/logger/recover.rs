//! Recovery: one path, whatever happened.
//!
//! - The newest valid header is written and synced again before anything is allocated, so that what
//!   was read is what the disk holds.
//! - The log since then is replayed through the normal write path.
//! - Then the ring of the old `control` is replayed, if that is of this boot and not poisoned. It
//!   holds what the log did not have yet, so process deaths alone lose nothing visible.
//! - Then a new segment starts.
//!
//! Unless the store was left in order, the next transaction begins a new incarnation. The fresh
//! `control` gets its name last: after a crash in recovery, recovery starts again.
//!
//! **On a full disk** recovery takes no block that it does not have:
//!
//! | what it needs | where that comes from |
//! |---|---|
//! | a region | the blocks of the old `control` or of a `control.new`, which is where an attempt that died left them |
//! | a segment | a spare, or a segment that is kept for followers; else a checkpoint of what has been replayed, below which segments are free |
//! | pages for the values of cells | a checkpoint, which frees what only the one before it held |
//!
//! An old `control` of this boot holds what the log does not have yet. The new region is then made
//! in memory, and takes those blocks when the log has all of it: see [`settle`].

mod extents;

use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::header::CheckpointHeader;
use crate::files::log::log_error;
use crate::files::memory_mark;
use crate::files::slot::SlotImage;
use crate::ids::INCARNATION_MAX;
use crate::logger::flush::Flusher;
use crate::logger::process::{Logger, default_settings};
use crate::logger::{checkpoint, recover_cells, sampler};
use crate::participant::engine::Engine;
use crate::shared::control::Control;
use crate::system::clock;
use crate::txn::replay::{ExtentPlan, Replay};
use crate::{Error, Result, limits};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;
use untorn_wal::record;
use untorn_wal::record::RecordKind;
use untorn_wal::{LogScan, LogShape, LogState, Lsn, RealDisk, SegmentPool};

/// Name of a region that is not in use yet.
const FRESH: &str = "control.new";

/// How long the only thread of a recovery waits for the writer lock, which is free.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of the replay.
pub(super) struct Recovered {
    /// The newest log state in the log's headers.
    log_state: LogState,
    /// The position from which the log is written to a new segment, and its bytes from there on.
    from: Lsn,
    bytes: Vec<u8>,
    /// How many of those bytes come from the log rather than from the ring of the old region.
    read: usize,
    /// Where the last whole record ends.
    end: Lsn,
    /// Whether the log has no byte beyond the checkpoint.
    is_log_empty: bool,
    /// Whether the contents of the old region are of the same time as the log.
    counts_old: bool,
    /// The newest checkpoint: the one at which the replay began, or one that it took.
    header: CheckpointHeader,
}

/// The file of a region that is not in use yet.
pub(super) struct RegionFile {
    file: File,
    /// Whether the region is in memory because the device lacks blocks.
    pub(super) is_memory: bool,
}

/// Makes a region that holds the checkpoint's state, under a name that no client opens, or in
/// memory.
///
/// `old` is the region that still counts. Without one, a file of that name holds nothing of value,
/// and its blocks are reused. `in_memory` skips the attempt to make a file while an old region
/// exists, because a file lacked blocks in a later step.
pub(super) fn fresh_control(
    dir: &Dir,
    header: &CheckpointHeader,
    old: Option<&Control>,
    pool: &SegmentPool<RealDisk>,
    in_memory: bool,
) -> Result<(Control, RegionFile)> {
    if old.is_none() && is_own_file(dir, dir::CONTROL)? {
        // From here on there is no `control`: the log has everything that counts.
        dir.rename_loosely(dir::CONTROL, FRESH)?;
    }
    let boot_id = dir::boot_id()?;
    let format = |file: &File| Control::format(file, header.store_id, &header.geometry, boot_id);
    let format_in_memory = || {
        // The rest of recovery may need the few blocks that the file got.
        dir.remove_file(FRESH)?;
        let file = memory_file()?;
        Ok((format(&file)?, RegionFile { file, is_memory: true }))
    };
    let (control, file) = loop {
        if in_memory && old.is_some() {
            break format_in_memory()?;
        }
        let file = match dir.open_file(FRESH, true)? {
            Some(file) if is_own_file(dir, FRESH)? => file,
            _ => {
                let file = dir.create_empty_file(FRESH)?;
                dir::set_no_cow(&file);
                file
            }
        };
        match format(&file) {
            Ok(control) => break (control, RegionFile { file, is_memory: false }),
            Err(Error::DiskFull { .. }) if pool.yield_kept(true, || ()).map_err(log_error)? => {}
            Err(Error::DiskFull { .. }) if old.is_some() => break format_in_memory()?,
            Err(Error::DiskFull { .. }) if pool.remove_spare().map_err(log_error)? => {}
            Err(error) => return Err(error),
        }
    };
    begin_at(&control, header);
    Ok((control, file))
}

/// Sets the newest state of a region that was just formatted to the checkpoint that `header`
/// describes.
pub(super) fn begin_at(control: &Control, header: &CheckpointHeader) {
    default_settings(control);
    control.begin_at(&SlotImage { blocks_reserved: 0, log_tail: header.log_position, ..header.image });
}

/// Returns whether there is a file of this name that no other store shares by a link.
fn is_own_file(dir: &Dir, name: &str) -> Result<bool> {
    let Some(file) = dir.open_file(name, false)? else { return Ok(false) };
    let stat = file.metadata().map_err(Error::io(format!("stat of {name}")))?;
    Ok(stat.is_file() && stat.nlink() == 1)
}

pub(super) fn memory_file() -> Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let file = memfd_create("untorn-control", MemfdFlags::CLOEXEC);
    Ok(file.map_err(Error::sys("making a file in memory for control"))?.into())
}

/// Recovers the newest possible state into the fresh region.
pub(super) fn replay(
    engine: &Engine,
    header: &CheckpointHeader,
    pool: &SegmentPool<RealDisk>,
    disk: &RealDisk,
    shape: &LogShape,
    old: Option<&Control>,
    plan: &ExtentPlan,
) -> Result<Recovered> {
    let began = clock::now();
    // The header is written again, because the copy that was read may never have reached the disk.
    // It goes into the other slot, so that a power cut during the write leaves this one, and it no
    // longer marks the store as in order. This comes before every step that may find the device
    // full: such a step gives up the log below this checkpoint, which the older header may still
    // need.
    let header_file = engine.dir.need_file(dir::CHECKPOINT, true)?;
    let serial = CheckpointHeader::next_serial(header.serial)?;
    if !planted_bug!("trust-read-header") {
        CheckpointHeader { clean: false, serial, ..*header }.write(&header_file)?;
    }
    engine.control.fixed().checkpoint.set_serial(serial);
    let len = engine.arena_file()?.metadata().map_err(Error::io("stat of arena"))?.len();
    let whole = len - len % limits::ARENA_SIZE_INITIAL;
    // A power cut may have kept the file's length and lost blocks before it. Only the blocks that
    // the checkpoint's sync covered are known to exist. The rest is written with zeros again before
    // any page of it is handed out.
    let used = u64::from(header.image.high_water) * engine.geometry.page_size as u64;
    let known = limits::arena_size_for(used);
    extents::back_arena(engine, whole.min(known), plan)?;
    engine.progress.step();
    crash_point!("recover.header_rewritten");

    let mut scan = LogScan::open(disk, shape, header.log_position).map_err(log_error)?;
    let log_state = scan.newest_log_state();
    let mut replay = Replay::new(engine, header.txn(), header.log_position, plan);
    let from = log_state.durable.max(header.log_position);
    let mut recovered = Recovered {
        log_state,
        from,
        bytes: Vec::new(),
        read: 0,
        end: Lsn::ZERO,
        is_log_empty: false,
        counts_old: false,
        header: *header,
    };
    // Up to `from` everything is known to be durable, so a checkpoint may be taken there. Beyond
    // it, bytes that were read may never have reached the disk. One spare is for the segment that
    // follows. Without a second spare, no commit would be granted log space.
    let mut needs_segment = pool.stats().spares < 2;
    replay.make_commits_whole(needs_segment);
    while let Some((lsn, bytes)) = scan.next_chunk().map_err(log_error)? {
        recovered.keep(lsn, bytes);
        let durable = from.0.saturating_sub(lsn.0).min(bytes.len() as u64) as usize;
        if needs_segment && durable < bytes.len() {
            replay.feed(&bytes[..durable])?;
            recovered.free_segments(engine, &mut replay, pool)?;
            needs_segment = false;
            replay.make_commits_whole(false);
            replay.feed(&bytes[durable..])?;
        } else {
            replay.feed(bytes)?;
        }
    }
    if needs_segment {
        recovered.free_segments(engine, &mut replay, pool)?;
    }
    recovered.read = recovered.bytes.len();
    crash_point!("recover.log_replayed");
    if let Some(old) = old {
        let next = replay.next();
        if let Some(bytes) = ring_bytes(old, next)? {
            replay.feed_until_bad(&bytes)?;
            recovered.keep(next, &bytes);
        }
        // What the old region records as durable is in the log, or at least in its own ring. If
        // not, the log is of an earlier time.
        recovered.counts_old = old.durable().is_none_or(|(_, durable)| durable <= next.max(replay.next()));
        if !recovered.counts_old {
            engine.control.begin_region()?;
        }
    }
    crash_point!("recover.ring_replayed");
    extents::sync_again(engine, plan, from)?;
    let safe_start = replay.safe_start();
    let (end, _) = replay.finish();
    recovered.end = end;
    recovered.cut(engine)?;
    recovered.is_log_empty = recovered.bytes.is_empty();
    if safe_start == header.log_position {
        recovered.abort_stream_before(engine, header);
    }
    let committed = engine.control.committed();
    let transactions = committed.sequence().saturating_sub(header.txn().sequence());
    let bytes = end.0.saturating_sub(header.log_position.0);
    let took_ms = clock::since(began).as_millis() as u64;
    tracing::info!(checkpointed = %header.txn(), %committed, transactions, bytes, took_ms, "log replayed");
    Ok(recovered)
}

/// Returns the published bytes of the old ring from `from` on.
pub(super) fn ring_bytes(old: &Control, from: Lsn) -> Result<Option<Vec<u8>>> {
    let fixed = old.fixed();
    let Ok(image) = old.newest() else { return Ok(None) };
    let tail = image.log_tail.max(fixed.stream.tail());
    let Ok(ring) = old.ring() else { return Ok(None) };
    let Some(len) = tail.0.checked_sub(from.0) else { return Ok(None) };
    if len == 0 || len > ring.capacity() as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    Ok(ring.copy_out(from.0, &mut bytes).is_ok().then_some(bytes))
}

impl Recovered {
    /// Keeps the bytes from `from` on: they were read, but may not be on the disk.
    fn keep(&mut self, lsn: Lsn, bytes: &[u8]) {
        let end = Lsn(lsn.0 + bytes.len() as u64);
        if end > self.from {
            let skip = self.from.0.saturating_sub(lsn.0) as usize;
            self.bytes.extend_from_slice(&bytes[skip..]);
        }
    }

    /// Takes a checkpoint of what has been replayed if there are too few spares and no space for
    /// one. The segments below the checkpoint then become free.
    ///
    /// The log is durable up to the checkpoint, and the older checkpoint's pages are unchanged. The
    /// older one counts until the new header is on the disk. From then on, the replay protects the
    /// new one.
    fn free_segments(&mut self, engine: &Engine, replay: &mut Replay<'_>, pool: &SegmentPool<RealDisk>) -> Result<()> {
        let position = replay.safe_start();
        if position > self.header.log_position && engine.control.committed() != self.header.txn() {
            self.header = checkpoint::take_replayed(engine, &self.header, position)?;
            replay.protect(self.header.txn());
            pool.recycle(position, self.header.retention).map_err(log_error)?;
        }
        crash_point!("recover.segments_freed");
        crate::logger::background::ensure_spares(pool, 2)
    }

    /// Cuts the log after the last whole record. If a position inside an incomplete record was
    /// recorded as durable, an abort record fills the log up to that position: positions never go
    /// back.
    fn cut(&mut self, engine: &Engine) -> Result<()> {
        if self.end >= self.from {
            self.bytes.truncate((self.end.0 - self.from.0) as usize);
            return Ok(());
        }
        let gap = (self.from.0 - self.end.0) as usize;
        let payload = vec![0; gap.saturating_sub(record::encoded_len(0))];
        let txn = engine.control.committed().as_u64();
        self.bytes.clear();
        let seed = engine.record_seed();
        record::encode(&mut self.bytes, seed, self.end, txn, RecordKind::Abort, &payload);
        self.from = self.end;
        self.end = Lsn(self.end.0 + self.bytes.len() as u64);
        Ok(())
    }

    /// Appends an abort record if the checkpoint's position is behind the frames of a transaction
    /// that never committed. The next transaction writes one only if the published tail is behind
    /// the newest commit, which the fresh region does not show. Without an abort record, a follower
    /// that reads from an earlier position takes the frames for the beginning of the next stream.
    fn abort_stream_before(&mut self, engine: &Engine, header: &CheckpointHeader) {
        if header.image.log_tail >= header.log_position {
            return;
        }
        let len = self.bytes.len();
        let txn = engine.control.committed().as_u64();
        record::encode(&mut self.bytes, engine.record_seed(), self.end, txn, RecordKind::Abort, &[]);
        self.end = Lsn(self.end.0 + (self.bytes.len() - len) as u64);
    }
}

/// Starts the new segment, sets the incarnation to come, and puts the fresh region in place.
pub(super) fn finish(
    logger: Arc<Logger>,
    recovered: Recovered,
    region: RegionFile,
    old: Option<&Control>,
) -> Result<Flusher> {
    let engine = &logger.engine;
    let header = &recovered.header;
    let fixed = engine.control.fixed();
    if planted_bug!("region-removed-first") {
        engine.dir.remove_file(dir::CONTROL)?;
    }
    let last = engine.control.committed();
    let log_state = LogState {
        durable: recovered.from,
        durable_txn: header.txn().as_u64(),
        safe_start: header.log_position,
        checkpoint_txn: header.txn().as_u64(),
        checkpoint_lsn: header.log_position,
        incarnation: last.incarnation(),
    };
    let log_state = LogState { durable: recovered.from, ..recovered.log_state.newest(log_state) };
    let mut flusher = Flusher::new(logger.clone(), log_state);
    flusher.start_recovered(&recovered.bytes, recovered.read)?;
    engine.progress.step();
    crash_point!("recover.segment_started");
    // Everything up to the end is durable now. The words record that before the first flush
    // publishes them anew.
    fixed.durable.set_lsn(recovered.end);
    fixed.stream.set_tail(recovered.end);
    engine.control.begin_ring(recovered.end);
    flusher.flush(true)?;
    // A store that was left in order continues with the next ids and versions. Otherwise some of
    // those may be lost, so the next transaction gets an incarnation in which nothing was assigned
    // yet. The first commit begins it: see `Engine::state_incarnation`.
    let used = last.incarnation().max(log_state.incarnation);
    let untouched = header.clean && last == header.txn() && recovered.is_log_empty && used == last.incarnation();
    let incarnation = if untouched { used } else { used.min(INCARNATION_MAX) + 1 };
    engine.control.begin_incarnation(incarnation, untouched);
    recover_cells::restore(engine, old.filter(|_| recovered.counts_old), &region.file, incarnation)?;
    crash_point!("recover.before_rename");
    if region.is_memory {
        settle(&logger, &mut flusher, &recovered, &region.file)?;
    } else {
        region.file.sync_all().map_err(Error::io("sync of control"))?;
    }
    engine.progress.step();
    engine.dir.rename_file(FRESH, dir::CONTROL)?;
    // The arena last: it is marked only while `control` is the region of its pages.
    memory_mark::set(&engine.control_file()?);
    memory_mark::set(&engine.arena_file()?);
    crash_point!("recover.done");
    Ok(flusher)
}

/// Moves a region that was made in memory to the blocks of the old `control`.
///
/// | state | dies here |
/// |---|---|
/// | the log is durable up to the newest commit of the old region, and the newest values of its cells are committed | the old region counts, and has nothing that the log lacks |
/// | the old region has the name of one that is not in use | there is no region: recovery uses the log, and takes those blocks |
/// | its bytes are partly or wholly the new ones | as above |
/// | it has its name again | done |
fn settle(logger: &Logger, flusher: &mut Flusher, recovered: &Recovered, memory: &File) -> Result<()> {
    let engine = &logger.engine;
    let parts = sampler::parts(engine)?;
    if !parts.is_empty() {
        // No other thread records it.
        flusher.state_incarnation(engine.control.incarnation()?)?;
    }
    let mut newest = recovered.header;
    for part in &parts {
        // No other thread grants log space. The part goes into the segment just started or into the
        // spare, or the flush fails. That flush publishes the grant anew.
        engine.control.fixed().durable.set_credit(u64::MAX);
        match sampler::commit_part(logger, part, SAMPLE_TIMEOUT) {
            Err(Error::DiskFull { .. } | Error::Limit { .. }) if engine.control.committed() != newest.txn() => {
                // The log is durable up to here: see `finish`, and the flush below.
                let position = recovered.end.max(engine.control.newest()?.log_tail);
                newest = checkpoint::take_replayed(engine, &newest, position)?;
                sampler::commit_part(logger, part, SAMPLE_TIMEOUT)?;
            }
            committed => committed?,
        }
        flusher.flush(false)?;
    }
    engine.dir.rename_loosely(dir::CONTROL, FRESH)?;
    crash_point!("recover.region_taken");
    engine.control.move_to(memory, &engine.dir.need_file(FRESH, true)?)
}
