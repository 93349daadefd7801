//! Adoption: a logger continues the region of processes that have all died, as it continues the
//! region of living ones, in place of a recovery. So an open after kills costs no replay.
//!
//! A region that a client still uses is known to be whole: the client has mapped it. Without a
//! client, nothing else is known than what is in the files. So a region is adopted only if all of
//! this holds, and the store is recovered from the checkpoint and the log otherwise:
//!
//! | condition | what it excludes |
//! |---|---|
//! | `control` and `arena` have their marks | the kernel dropped stores that were not on the disk, or the files are copies ([`memory_mark`]); a recovery has begun to write pages |
//! | the header is not one of a store left in order | a backup from before this region's life |
//! | the region is of this boot and of this log, and not poisoned | the checks of `prepare`, which hold for each use of it |
//! | every number of the region leads to memory that exists | damage |
//! | the ring has not lost its growth | a store that stays slow until it is left in order |
//! | the newest image is whole, and the pages that lead to all others are those of its transaction | damage, pages of another time |
//! | the newest header is of the finished checkpoint or of the started one; checkpoint ≤ durable ≤ committed | files of another time |
//! | each cell has the entry that its record names | damage |
//! | each large value to which the log or the ring refers matches its checksum | damage |
//! | the ring repeats the log, and continues it up to the newest commit | a log of another time, damage, a commit whose record is missing |
//!
//! The last condition implies I2 for the adopted state: the log and the ring together hold exactly
//! the commits up to `committed`, which is what a recovery from them would find. The flush that
//! every logger begins with makes the rest of them durable, and publishes that (I4).
//!
//! What the dead held is freed: no client lives, and none joins before the initialisation lock is
//! free. Their locks need nothing: the next owner takes them over. Their settings go back to the
//! defaults, as in a fresh region.
//!
//! | step | the logger dies after it | then |
//! |---|---|---|
//! | all is checked | nothing has changed | adopted |
//! | the mark of `arena` is removed | | recovered: a region beneath which a logger dies is not tried again |
//! | the rest of the ring is in a new segment, and durable | the region is as a dead logger leaves it | recovered |
//! | the mark is set again | done | adopted |

use crate::api::cells::record::{CellRecord, KEYSPACE};
use crate::btree::cursor::RangeCursor;
use crate::files::dir;
use crate::files::dir::Dir;
use crate::files::header::CheckpointHeader;
use crate::files::memory_mark;
use crate::files::slot::SlotImage;
use crate::logger::process::Logger;
use crate::logger::sampler;
use crate::process::region::default_settings;
use crate::shared::control::{Control, LogRing};
use crate::shared::memory::arena::Arena;
use crate::txn::replay::Check;
use crate::txn::{catalog, roots, stream};
use crate::{ClientId, Error, Result, TxnId};
use std::fs::File;
use std::ops::{Bound, Range};
use untorn_wal::{LogState, Lsn};

/// Why a region is not adopted: for the log of events.
type Doubt = String;

/// A region that may be adopted, while the log is compared with its ring.
pub(super) struct Candidate<'c> {
    newest: SlotImage,
    /// The header's transaction, and the position from which the log is read.
    checkpoint: (TxnId, Lsn),
    ring: LogRing<'c>,
    /// The part of the stream that the ring holds for certain.
    held: Range<Lsn>,
    buffer: Vec<u8>,
    verdict: Result<(), Doubt>,
}

fn doubt(error: Error) -> Doubt {
    error.to_string()
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> Doubt) -> Result<(), Doubt> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// The files of the store that a candidate is compared with.
pub(super) struct Files<'f> {
    pub(super) dir: &'f Dir,
    pub(super) arena_file: &'f File,
    pub(super) arena: &'f Arena,
    pub(super) header: &'f CheckpointHeader,
    pub(super) log_state: &'f LogState,
}

impl<'c> Candidate<'c> {
    /// Checks everything but the log.
    ///
    /// # Errors
    /// The reason why the store is recovered instead.
    pub(super) fn new(control: &'c Control, files: &Files<'_>) -> Result<Candidate<'c>, Doubt> {
        let header = files.header;
        let control_file = files.dir.need_file(dir::CONTROL, true).map_err(doubt)?;
        control.refuse_other_file(&control_file).map_err(doubt)?;
        // A file that nothing marks shows that the file system does not give the mark by itself.
        let other = files.dir.need_file(dir::CHECKPOINT, false).map_err(doubt)?;
        let is_kept =
            memory_mark::has(&control_file) && memory_mark::has(files.arena_file) && !memory_mark::has(&other);
        ensure(is_kept, || "the kernel may have dropped the memory of the dead processes".into())?;
        ensure(!header.clean, || "the header states that the store was left in order".into())?;
        control.check_numbers().map_err(doubt)?;
        let can_grow = control.ring_reach().map_err(doubt)? == header.geometry.ring_size;
        ensure(can_grow, || "the ring could not grow; that of a new region can".into())?;
        let newest = control.newest().map_err(doubt)?;
        if let Some((_, what)) = newest.problem(&header.geometry) {
            return Err(what);
        }
        let tail = newest.log_tail.max(control.fixed().stream.tail());
        let held = held(control, header, files.log_state, tail)?;
        check_checkpoint(control, header, &newest)?;
        roots::check_roots(files.arena, &newest, header.txn()).map_err(doubt)?;
        check_cells(control, files.arena, &newest).map_err(doubt)?;
        let ring = control.ring().map_err(doubt)?;
        let checkpoint = (header.txn(), header.log_position);
        Ok(Candidate { newest, checkpoint, ring, held, buffer: Vec::new(), verdict: Ok(()) })
    }

    /// Compares bytes of the log with the ring.
    pub(super) fn compare(&mut self, lsn: Lsn, bytes: &[u8]) {
        let end = lsn.advanced_by(bytes.len() as u64);
        let from = lsn.max(self.held.start);
        if self.verdict.is_err() || end <= from {
            return;
        }
        self.verdict = ensure(end <= self.held.end, || format!("the log continues at {end}, beyond the ring"))
            .and_then(|()| copy_out(self.ring, from..end, &mut self.buffer))
            .and_then(|()| {
                let is_same = self.buffer == bytes[from.bytes_since(lsn) as usize..];
                ensure(is_same, || format!("the ring differs from the log between {from} and {end}"))
            });
    }

    /// Ends the comparison. `log_end` is where the log ends, and `check` has checked its records.
    /// Those that only the ring holds are checked here.
    pub(super) fn finish(&mut self, log_end: Lsn, check: &mut Check<'_>) {
        if self.verdict.is_ok() {
            self.verdict = self.continue_log(log_end, check);
        }
    }

    fn continue_log(&mut self, log_end: Lsn, check: &mut Check<'_>) -> Result<(), Doubt> {
        let Range { start, end } = self.held.clone();
        ensure(start <= log_end && log_end <= end, || format!("the log ends at {log_end}, the ring at {end}"))?;
        let mut from = log_end;
        while from < end {
            let to = end.min(from.advanced_by(1 << 20));
            copy_out(self.ring, from..to, &mut self.buffer)?;
            check.feed(&self.buffer).map_err(doubt)?;
            from = to;
        }
        let (last, last_end) = (check.last(), check.committed_end());
        ensure(check.end() == Some(end), || format!("the ring ends within a record, at {end}"))?;
        ensure(last == self.newest.txn, || format!("{last} is the last commit of the log, not {}", self.newest.txn))?;
        let (checkpointed, position) = self.checkpoint;
        let is_its_end = match last_end {
            Some(last_end) => last_end == self.newest.log_tail,
            None => last == checkpointed && self.newest.log_tail <= position,
        };
        ensure(is_its_end, || format!("the commit of {last} does not end at {}", self.newest.log_tail))
    }

    /// Returns the reason why the store is recovered instead, if there is one.
    pub(super) fn verdict(self) -> Result<(), Doubt> {
        self.verdict
    }
}

fn copy_out(ring: LogRing<'_>, range: Range<Lsn>, buffer: &mut Vec<u8>) -> Result<(), Doubt> {
    buffer.resize(range.end.bytes_since(range.start) as usize, 0);
    ring.copy_out(range.start.0, buffer).map_err(|_| "the ring does not reach".to_string())
}

/// Returns the part of the stream that the ring holds for certain, up to its published `tail`.
///
/// It begins at a position that was durable when the last logger died, or earlier. Bytes before
/// that are overwritten only by a record that is not published, and such a record has a greatest
/// length.
fn held(control: &Control, header: &CheckpointHeader, log_state: &LogState, tail: Lsn) -> Result<Range<Lsn>, Doubt> {
    let durable = &control.fixed().durable;
    let inherited = durable.inherited_lsn();
    let base = control.ring_base().map_err(doubt)?;
    let len = control.ring_len().map_err(doubt)?;
    let is_possible = [inherited, base, tail].iter().all(|position| position.is_stored());
    // The last logger made the log durable up to the checkpoint before it wrote the header. What
    // the log states as durable was published, or the logger died just before that.
    let is_ordered = base.max(header.log_position) <= inherited && inherited.max(log_state.durable) <= tail;
    ensure(is_possible && is_ordered && tail.bytes_since(inherited) <= len, || {
        format!("the ring begins at {base} and ends at {tail}, {inherited} is durable, {} checked", header.log_position)
    })?;
    let beyond = stream::copied_at_once_max(header.geometry.page_size, len);
    let oldest = Lsn(tail.0.saturating_sub(len.saturating_sub(beyond)).next_multiple_of(8));
    Ok(oldest.min(inherited).max(base).max(header.log_position)..tail)
}

/// Checks the words of the checkpoints against the newest header and the newest commit.
fn check_checkpoint(control: &Control, header: &CheckpointHeader, newest: &SlotImage) -> Result<(), Doubt> {
    let words = &control.fixed().checkpoint;
    let (started, finished) = words.started_and_finished();
    let (position, serial) = (words.finished_lsn(), words.serial());
    let is_of_header = match words.is_running() {
        false => (header.txn(), header.log_position, header.serial) == (finished, position, serial),
        // Its logger may have died before or after it wrote the header.
        true => {
            let (image, _) = control.started_checkpoint().map_err(doubt)?;
            let is_possible = image.problem(&header.geometry).is_none();
            let is_of_one = header.txn() == finished || header.txn() == started;
            let is_of_serial = (serial..=serial.saturating_add(1)).contains(&header.serial);
            is_possible && is_of_one && is_of_serial && position <= header.log_position
        }
    };
    ensure(is_of_header, || format!("the newest header is of {}, the region counts {finished}", header.txn()))?;
    let durable = control.fixed().durable.half_published_txn().min(control.fixed().durable.last_txn());
    ensure(finished <= durable && durable <= newest.txn && started <= newest.txn, || {
        format!("checkpoint {finished}, started {started}, durable {durable}, committed {}", newest.txn)
    })
}

/// Checks that each record of a cell has its entry, with a value that can be read.
fn check_cells(control: &Control, arena: &Arena, newest: &SlotImage) -> Result<()> {
    control.check_cell_entries()?;
    let pages = arena.pages(newest.high_water);
    let Some(keyspace) = catalog::find(&pages, &newest.catalog, KEYSPACE)? else { return Ok(()) };
    let Some(root) = catalog::root(&pages, &newest.catalog, keyspace)? else { return Ok(()) };
    let mut cursor = RangeCursor::new(root, Bound::Unbounded, Bound::Unbounded);
    let mut name = Vec::new();
    while let Some(at) = cursor.next(&pages)? {
        at.key.key_into(&mut name);
        let record = CellRecord::decode(&name, at.value)?;
        let entry = control.cell_entry(record.index as usize)?;
        let (version, _) = sampler::newest(control, entry)?;
        if entry.generation() != record.generation || entry.kind()? != record.kind || version < record.version {
            let what = format!("the entry of cell {:?} is another one's", String::from_utf8_lossy(&name));
            return Err(Error::corrupt(dir::CONTROL, 0, what));
        }
    }
    Ok(())
}

/// Begins the adoption: until [`end`], the next logger would recover the store. Frees what the dead
/// processes held, and resets what they had set.
pub(super) fn begin(control: &Control, arena_file: &File, me: ClientId) -> Result<()> {
    crash_point!("adopt.checked");
    memory_mark::clear(arena_file)?;
    default_settings(control);
    let fixed = control.fixed();
    fixed.logger.forget_requests();
    // The flag that a cell is dirty may be missing: its writer died before it set it.
    control.cells().set_dirty();
    let mut clients: u64 = 0;
    for (owner, entry) in control.joined_clients() {
        clients += u64::from(entry.reap(owner));
    }
    fixed.counters.reaped_clients.add(clients);
    // All of them, also those that no map names.
    control.reap_readers(true, me.0, |_| true, |_| fixed.counters.reaped_readers.add(1));
    Ok(())
}

/// Ends the adoption: the region can be adopted again.
pub(super) fn end(logger: &Logger) -> Result<()> {
    crash_point!("adopt.attached");
    memory_mark::set(&logger.engine.arena_file()?);
    tracing::info!(committed = %logger.engine.control.committed(), "continued the region of processes that have all died");
    Ok(())
}
