//! Recovery: one path, whatever happened.
//!
//! The newest valid header, written and synced again before anything is allocated, so that what was read
//! is what the disk holds; the log since then, replayed through the normal write path; then, if the old
//! `control` is of this boot and carries no sticky mark, what stood in its ring and the log did not
//! have yet, so that mere process deaths lose nothing visible; then a new segment. Unless the store was left in order, the
//! next transaction begins a new incarnation. The fresh `control` gets its name last: a crash in recovery
//! just starts it again.

use super::flush::Flusher;
use super::process::{Logger, default_settings, log_error};
use super::recover_cells;
use crate::dir::{self, Dir};
use crate::engine::Engine;
use crate::header::Header;
use crate::ids::INCARNATION_MAX;
use crate::shm::atomic::Native;
use crate::shm::control::Control;
use crate::shm::ring::Ring;
use crate::txn::replay::Replay;
use crate::{Error, Result};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use untorn_wal::record::{self, RecordKind};
use untorn_wal::{LogShape, Lsn, RealDisk, Scan, Stated};

/// Name of a region that is not in use yet.
const FRESH: &str = "control.new";

/// What replay found.
pub(super) struct Recovered {
    /// The newest that the log's headers state.
    stated: Stated,
    /// From where the stream is written to a new segment, and its bytes from there on.
    from: Lsn,
    bytes: Vec<u8>,
    /// Where the last whole record ends.
    end: Lsn,
    /// What the old region holds is of the same time as the log.
    counts_old: bool,
}

/// Makes a region that holds the checkpoint's state, under a name that nobody opens.
pub(super) fn fresh_control(dir: &Dir, header: &Header) -> Result<(Control, File)> {
    let file = dir.make_file(FRESH)?;
    dir::set_no_cow(&file);
    let control = Control::format(&file, header.store_id, &header.geometry, dir::boot_id()?)?;
    default_settings(&control);
    let fixed = control.fixed();
    let mut image = header.image;
    image.blocks_charged = 0;
    image.log_tail = header.log_position;
    let txn = image.txn.as_u64();
    control.slots().write(&image.encode());
    fixed.committed.store(txn, Ordering::Release);
    fixed.durable.txn_check.store(!txn, Ordering::Relaxed);
    fixed.durable.lsn.store(header.log_position.0, Ordering::Relaxed);
    fixed.durable.lsn_check.store(!header.log_position.0, Ordering::Relaxed);
    fixed.logger_pins.start(&fixed.durable.txn, image.txn);
    fixed.durable_slots[0].fill(&image.encode());
    fixed.stream.tail.store(header.log_position.0, Ordering::Relaxed);
    let checkpoint = &fixed.checkpoint;
    checkpoint.started.store(txn, Ordering::Relaxed);
    checkpoint.finished.store(txn, Ordering::Relaxed);
    checkpoint.finished_lsn.store(header.log_position.0, Ordering::Relaxed);
    checkpoint.started_lsn.store(header.log_position.0, Ordering::Relaxed);
    Ok((control, file))
}

/// Brings the fresh region to the newest state that can be had.
pub(super) fn replay(
    engine: &Engine,
    header: &Header,
    disk: &RealDisk,
    shape: &LogShape,
    old: Option<&Control>,
) -> Result<Recovered> {
    let began = Instant::now();
    // Again, since the copy that was read may be one that never reached the disk; into the other slot, so
    // that a cut here leaves this one. Not in order any more, either. Before all that may find the device full: the log
    // below this checkpoint is given up then, and the header before may still need it.
    let header_file = engine.dir.need_file(dir::CHECKPOINT, true)?;
    let serial = Header::next_serial(header.serial)?;
    if !planted_bug!("trust-read-header") {
        Header { clean: false, serial, ..*header }.write(&header_file)?;
    }
    engine.control.fixed().checkpoint.serial.store(serial, Ordering::Release);
    let len = engine.arena_file()?.metadata().map_err(Error::io("stat of arena"))?.len();
    let whole = len - len % crate::limits::GROWTH_PIECE;
    // A power cut may have kept the file's length and lost blocks before it. Only what the checkpoint's sync
    // covered is known to be there; the rest is written with zeros again before any page of it is handed out.
    let used = u64::from(header.image.high_water) * engine.geometry.page_size as u64;
    let known = used.next_multiple_of(crate::limits::GROWTH_PIECE);
    back_with_blocks(&engine.arena_file()?, whole.min(known))?;
    engine.control.set_arena_bytes(whole.min(known));
    crash_point!("recover.header_rewritten");

    let mut scan = Scan::open(disk, shape, header.log_position).map_err(log_error)?;
    let stated = scan.max_stated();
    let mut replay = Replay::new(engine, header.txn(), header.log_position);
    let mut recovered = Recovered {
        stated,
        from: stated.durable.max(header.log_position),
        bytes: Vec::new(),
        end: Lsn::ZERO,
        counts_old: false,
    };
    while let Some((lsn, bytes)) = scan.next_chunk().map_err(log_error)? {
        recovered.keep(lsn, bytes);
        replay.feed(bytes)?;
    }
    crash_point!("recover.log_replayed");
    if let Some(old) = old.filter(|old| old.poison() == 0) {
        let next = replay.next();
        if let Some(bytes) = ring_bytes(old, next)? {
            replay.feed_until_bad(&bytes)?;
            recovered.keep(next, &bytes);
        }
        // What it calls durable is in the log, or at least in its ring. If not, the log is of an earlier time.
        recovered.counts_old = old.durable().is_none_or(|(_, durable)| durable <= next.max(replay.next()));
        if !recovered.counts_old {
            engine.control.begin_region()?;
        }
    }
    crash_point!("recover.ring_replayed");
    let (end, _) = replay.finish();
    recovered.end = end;
    recovered.cut(engine)?;
    let committed = engine.control.committed();
    let transactions = committed.sequence().saturating_sub(header.txn().sequence());
    let bytes = end.0.saturating_sub(header.log_position.0);
    let took_ms = began.elapsed().as_millis() as u64;
    tracing::info!(checkpointed = %header.txn(), %committed, transactions, bytes, took_ms, "log replayed");
    Ok(recovered)
}

/// Sees to it that storing into the arena needs no new blocks: a copy of a store may have holes, or share its blocks with
/// the original, and a store into either on a full disk would be a SIGBUS.
fn back_with_blocks(file: &File, len: u64) -> Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    for flags in [FallocateFlags::UNSHARE_RANGE, FallocateFlags::empty()] {
        match fallocate(file, flags, 0, len) {
            Err(Errno::NOSPC | Errno::DQUOT) => return Err(Error::DiskFull { what: dir::ARENA.into() }),
            // Where the first is not known, nothing is shared; where neither is, there is nothing to be done.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {}
            Err(errno) => return Err(Error::sys("allocating the arena's blocks")(errno)),
        }
    }
    Ok(())
}

/// The published bytes of the old ring from `from` on.
fn ring_bytes(old: &Control, from: Lsn) -> Result<Option<Vec<u8>>> {
    let fixed = old.fixed();
    let Ok(image) = old.newest() else { return Ok(None) };
    let tail = image.log_tail.0.max(fixed.stream.tail.load(Ordering::Acquire));
    let ring = Ring::<Native>::new(old.ring());
    let Some(len) = tail.checked_sub(from.0) else { return Ok(None) };
    if len == 0 || len > ring.capacity() as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    Ok(ring.copy_out(from.0, &mut bytes).is_ok().then_some(bytes))
}

impl Recovered {
    /// Keeps what stands from `from` on: it was read, but nobody knows whether it is on the disk.
    fn keep(&mut self, lsn: Lsn, bytes: &[u8]) {
        let end = Lsn(lsn.0 + bytes.len() as u64);
        if end > self.from {
            let skip = self.from.0.saturating_sub(lsn.0) as usize;
            self.bytes.extend_from_slice(&bytes[skip..]);
        }
    }

    /// Cuts the stream behind the last whole record. If a position inside a record that never became whole
    /// was stated durable, an abort record reaches over it: positions never go back.
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
}

/// Starts the new segment, sets the incarnation to come, and puts the fresh region in place.
pub(super) fn finish(
    logger: Arc<Logger>,
    header: &Header,
    recovered: Recovered,
    control_file: &File,
    old: Option<&Control>,
) -> Result<Flusher> {
    let engine = &logger.engine;
    let fixed = engine.control.fixed();
    if planted_bug!("region-removed-first") {
        engine.dir.remove_file(dir::CONTROL)?;
    }
    let last = engine.control.committed();
    let stated = Stated {
        durable: recovered.from,
        durable_txn: header.txn().as_u64(),
        settled: header.log_position,
        checkpoint_txn: header.txn().as_u64(),
        checkpoint_lsn: header.log_position,
        incarnation: last.incarnation(),
    };
    let stated = Stated { durable: recovered.from, ..recovered.stated.newest(stated) };
    let mut flusher = Flusher::new(logger.clone(), stated);
    flusher.start_recovered(&recovered.bytes)?;
    crash_point!("recover.segment_started");
    // All up to the end is durable now; the words say so before the first flush publishes them anew.
    fixed.durable.lsn.store(recovered.end.0, Ordering::Release);
    fixed.durable.lsn_check.store(!recovered.end.0, Ordering::Release);
    fixed.stream.tail.store(recovered.end.0, Ordering::Release);
    flusher.flush(true)?;
    // Left in order, the store goes on with the ids and versions that follow. Else some may be lost: what comes next is of
    // an incarnation that nothing was given of. Its first commit begins it: see `Engine::state_incarnation`.
    let used = last.incarnation().max(stated.incarnation);
    let untouched = header.clean && last == header.txn() && recovered.bytes.is_empty() && used == last.incarnation();
    let incarnation = if untouched { used } else { used.min(INCARNATION_MAX) + 1 };
    engine.control.begin_incarnation(incarnation, untouched);
    recover_cells::restore(engine, old.filter(|_| recovered.counts_old), control_file, incarnation)?;
    crash_point!("recover.before_rename");
    control_file.sync_all().map_err(Error::io("sync of control"))?;
    engine.dir.rename_file(FRESH, dir::CONTROL)?;
    crash_point!("recover.done");
    Ok(flusher)
}
