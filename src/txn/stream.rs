//! Writing a transaction's log record into the ring.
//!
//! A record is copied into the ring beyond the published tail; then the publication of the commit
//! publishes both the record and the new pages. A transaction that outgrows a frame streams: it
//! publishes each full frame by storing the frame's end into `stream.tail`, which only grows. So
//! the logger can flush frames and free ring space while the transaction continues. If a streaming
//! writer died or rolled back, the next writer finds `stream.tail` beyond the slot's tail, and
//! writes an abort record before its own (also in recovery).
//!
//! Each record is charged, in blocks, against what the logger has preallocated and granted: a
//! publication never happens without log space. Streams leave a reserve, so that an ordinary commit
//! still succeeds after a stream that filled the disk and aborted.

use crate::error::reason::Space;
use crate::files::dir;
use crate::files::slot::SlotImage;
use crate::participant::engine::Engine;
use crate::system::clock;
use crate::{Error, LimitKind, Result, TxnId, limits};
use untorn_wal::record;
use untorn_wal::record::{Begun, RecordKind};
use untorn_wal::{Lsn, blocks_for};

use crate::pages::reserve;
use crate::pages::reserve::Shortage;
use crate::txn::ops::{LARGE_VALUE_BYTES_MIN, Op};

/// The number of log blocks that streams leave: enough for an abort record and many ordinary
/// commits.
const STREAM_RESERVE_BLOCKS: u64 = 32;

/// The longest frame, in bytes.
const FRAME_BYTES_MAX: usize = 256 << 10;

/// Returns the length in bytes after which a frame is sent ahead, with a ring of this length.
const fn frame_bytes(ring_len: u64) -> usize {
    let share = ring_len as usize / 8;
    if share < FRAME_BYTES_MAX { share } else { FRAME_BYTES_MAX }
}

/// An operation has a key and a value, or the two bounds of a range.
const _: () = assert!(limits::key_len_max(limits::PAGE_SIZE_MAX) <= LARGE_VALUE_BYTES_MIN);

/// Returns the greatest number of bytes copied beyond the published tail at once: an abort record,
/// then one frame or one operation, whichever is longer.
pub(crate) const fn copied_at_once_max(page_size: usize, ring_len: u64) -> u64 {
    let operation = 16 + limits::key_len_max(page_size) + LARGE_VALUE_BYTES_MIN;
    let one_operation = operation + 2 * record::encoded_len(0);
    let frame = frame_bytes(ring_len);
    (if frame > one_operation { frame } else { one_operation }) as u64 + 8
}

/// The log record of a running transaction.
pub(crate) struct Stream {
    /// The commit that the transaction began from, and the position of its first record.
    base: SlotImage,
    from: Lsn,
    /// Whether a checkpoint was started for this record and the transaction's workspace has not
    /// been refreshed since.
    has_checkpointed: bool,
    buffer: Vec<u8>,
    begun: Begun,
    /// The position at which the buffer will be written.
    at: Lsn,
    reserved_blocks: u64,
    seed: u32,
    txn: TxnId,
    /// The ring's length in use: only the owner of the writer lock changes it.
    ring_len: u64,
    /// The length in bytes after which a frame is sent ahead.
    frame_bytes: usize,
    /// Whether frames of this transaction are in the ring already.
    pub(crate) streaming: bool,
    /// The number of those frames.
    frames: u64,
    empty: bool,
    /// The bytes of the extents to which the record in the buffer refers.
    extent_bytes: u64,
}

/// A boundary between two operations in the log record.
pub(super) struct Boundary {
    frames: u64,
    len: usize,
    empty: bool,
}

impl Stream {
    /// Begins the record of transaction `txn` after `base`. The caller holds the writer lock.
    pub(crate) fn begin(engine: &Engine, base: &SlotImage, txn: TxnId) -> Result<Stream> {
        let (tail, reserved_blocks) = engine.control.fixed().stream.tail_and_reserved();
        let reserved_blocks = reserved_blocks.max(base.blocks_reserved);
        let at = base.log_tail.max(tail);
        // No frame is published before the ring has space for it.
        let reach = engine.control.durable().map(|(_, durable)| durable.advanced_by(engine.geometry.ring_size));
        if reach.is_some_and(|reach| at > reach) {
            return Err(Error::corrupt(dir::CONTROL, 0, format!("the log's tail {at} is beyond the ring")));
        }
        let mut buffer = Vec::with_capacity(1024);
        let seed = engine.record_seed();
        if tail > base.log_tail && !planted_bug!("no-abort-record") {
            record::encode(&mut buffer, seed, at, txn.as_u64(), RecordKind::Abort, &[]);
        }
        let begun = record::begin(&mut buffer);
        let ring_len = engine.control.ring_len()?;
        Ok(Stream {
            base: *base,
            from: at,
            has_checkpointed: false,
            buffer,
            begun,
            at,
            reserved_blocks,
            seed,
            txn,
            ring_len,
            frame_bytes: frame_bytes(ring_len),
            streaming: false,
            frames: 0,
            empty: true,
            extent_bytes: 0,
        })
    }

    /// Returns the position of the transaction's first record.
    pub(crate) fn from(&self) -> Lsn {
        self.from
    }

    /// Returns whether a checkpoint was started since the last call.
    pub(crate) fn take_checkpointed(&mut self) -> bool {
        std::mem::take(&mut self.has_checkpointed)
    }

    /// Adds an operation. Sends a frame ahead if the buffer is long enough and the ring can't grow.
    pub(crate) fn add(&mut self, engine: &Engine, op: Op<'_>) -> Result<()> {
        let len = self.buffer.len() + op.encoded_len();
        if !self.empty && len > self.frame_bytes {
            // The ring length for which frames are this long.
            self.grow_ring(engine, engine.control.ring_base()?.advanced_by(8 * len as u64))?;
            if len > self.frame_bytes {
                self.send_frame(engine)?;
            }
        }
        op.encode(&mut self.buffer);
        if let Op::PutExtent { extent, .. } = op {
            self.extent_bytes += u64::from(extent.len);
        }
        self.empty = false;
        Ok(())
    }

    /// Returns the boundary before the next operation.
    pub(super) fn boundary(&self) -> Boundary {
        Boundary { frames: self.frames, len: self.buffer.len(), empty: self.empty }
    }

    /// Removes all operations from `boundary` on. Returns false if this is impossible, because a
    /// frame was sent since.
    pub(super) fn cut_back(&mut self, boundary: &Boundary) -> bool {
        if self.frames != boundary.frames {
            return false;
        }
        self.buffer.truncate(boundary.len);
        self.empty = boundary.empty;
        true
    }

    fn send_frame(&mut self, engine: &Engine) -> Result<()> {
        let (end, reserved_blocks) = self.copy_in(engine, RecordKind::Frame, STREAM_RESERVE_BLOCKS)?;
        crash_point!("stream.frame_copied");
        engine.control.fixed().stream.append(end, reserved_blocks);
        crash_point!("stream.frame_published");
        engine.control.fixed().logger.wake_flusher_at(end);
        self.at = end;
        self.reserved_blocks = reserved_blocks;
        self.streaming = true;
        self.frames += 1;
        self.buffer.clear();
        self.begun = record::begin(&mut self.buffer);
        self.empty = true;
        Ok(())
    }

    /// Copies the last record of the transaction into the ring, beyond the published tail. Returns
    /// where it ends, and how many blocks are charged then. The transaction is not committed yet.
    pub(crate) fn finish(&mut self, engine: &Engine) -> Result<(Lsn, u64)> {
        let kind = if self.streaming { RecordKind::FrameCommit } else { RecordKind::Commit };
        self.copy_in(engine, kind, 0)
    }

    fn copy_in(&mut self, engine: &Engine, kind: RecordKind, reserve: u64) -> Result<(Lsn, u64)> {
        let begun = std::mem::replace(&mut self.begun, record::begin(&mut Vec::new()));
        // An abort record may come before this one, whose position is then later.
        let position = Lsn(self.at.0 + begun.offset() as u64);
        record::finish(&mut self.buffer, begun, self.seed, position, self.txn.as_u64(), kind);
        let len = self.buffer.len() as u64;
        let end = Lsn(self.at.0 + len);
        let reserved_blocks = self.reserved_blocks + blocks_for(len);
        self.wait_for_room(engine, end, reserved_blocks + reserve)?;
        engine.control.ring()?.copy_in(self.at.0, &self.buffer).map_err(|_| Error::Limit {
            what: LimitKind::LogRecord,
            found: len,
            limit: self.ring_len,
        })?;
        // Before the publication of the record: see `StreamWords::extents_end`.
        if self.extent_bytes > 0 {
            engine.control.fixed().stream.note_extents(end, std::mem::take(&mut self.extent_bytes));
        }
        Ok((end, reserved_blocks))
    }

    /// Grows the ring to `end` if it is in its first lap, and the frame length with it.
    fn grow_ring(&mut self, engine: &Engine, end: Lsn) -> Result<()> {
        self.ring_len = engine.control.grow_ring(end, || engine.control_file())?;
        self.frame_bytes = frame_bytes(self.ring_len);
        Ok(())
    }

    /// Waits until the ring has space up to `end` and the logger has granted `reserved_blocks`
    /// blocks.
    ///
    /// **I5**, the ring's part: bytes are reused only when durable.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if the device has no space for more of the log, and a checkpoint frees
    /// none.
    fn wait_for_room(&mut self, engine: &Engine, end: Lsn, reserved_blocks: u64) -> Result<()> {
        self.grow_ring(engine, end)?;
        if engine.control.durable().is_none_or(|(_, lsn)| end.0 > lsn.0 + self.ring_len) {
            let needed = Lsn(end.0.saturating_sub(self.ring_len).next_multiple_of(8));
            engine.wait_durable(needed, true, None)?;
        }
        if reserved_blocks <= engine.control.fixed().durable.credit() {
            return Ok(());
        }
        let waited = loop {
            match wait_for_grant(engine, reserved_blocks) {
                Err(Error::DiskFull { .. }) => {}
                waited => break waited,
            }
            self.has_checkpointed = true;
            match reserve::checkpoint(engine, &self.base, self.from, Shortage::Log) {
                Ok(true) => {}
                Ok(false) => break Err(no_log(engine)),
                Err(error) => break Err(error),
            }
        };
        engine.control.fixed().logger.end_credit_request();
        waited
    }
}

/// Returns the error of a log that can't grow.
fn no_log(engine: &Engine) -> Error {
    let kept = engine.control.fixed().counters.wal_kept();
    Error::DiskFull { what: if kept == 0 { Space::Log } else { Space::RetainedLog { segments: kept } } }
}

/// Waits until the logger has granted `reserved_blocks` blocks. The caller ends the request.
fn wait_for_grant(engine: &Engine, reserved_blocks: u64) -> Result<()> {
    let words = &engine.control.fixed().durable;
    let start = clock::now();
    let logger = &engine.control.fixed().logger;
    // The logger counts failed preallocations. The first failure may be of an attempt that began
    // before this request, and before a checkpoint freed space. So only the second one proves that
    // space is lacking.
    let failures = logger.log_failures();
    logger.request_credit(reserved_blocks);
    let mut watch = engine.watch_logger();
    let mut block_credit = (words.credit_by_waiter(), clock::now());
    words.event.wait_until(
        crate::participant::engine::LOGGER_RECHECK_INTERVAL,
        || {
            if reserved_blocks <= words.credit_by_waiter() {
                return Some(Ok(()));
            }
            if logger.log_failures().wrapping_sub(failures) >= 2 {
                let errno = logger.log_errno();
                return Some(Err(match errno {
                    libc::ENOSPC => Error::DiskFull { what: Space::Log },
                    _ => Error::io("making a log segment")(std::io::Error::from_raw_os_error(errno)),
                }));
            }
            engine.control.refuse_poisoned().err().map(Err)
        },
        || {
            watch.check(engine, start)?;
            // If the logger is alive and grants nothing within the timeout, report it as stalled.
            let now = words.credit_by_waiter();
            if now != block_credit.0 {
                block_credit = (now, clock::now());
            } else if clock::since(block_credit.1) > engine.logger_timeout {
                return Err(Error::LoggerStalled { waited: clock::since(start), visible: None });
            }
            logger.background.notify();
            Ok(())
        },
    )
}
