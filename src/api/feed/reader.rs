//! Records of the log by position: from the ring while it has them, otherwise from the segments.
//!
//! **The ring.** A byte is overwritten by the one that lies a ring's length further on, by a writer
//! that copies beyond what is published. Such a writer has seen that the byte is durable. It has
//! also seen, or itself published, the tail after which it writes, and it copies at most a frame at
//! once. So a copy is valid if one of two checks after it succeeds. Either its first byte is not
//! durable yet, or that byte is less than a ring's length minus one frame behind the published
//! tail. The fences in `Ring::copy_in` and `Ring::copy_out` make these checks see what the writer
//! had seen.
//!
//! **The segments** hold what is durable; `untorn_wal::LogFollower` has its own check after a read.
//!
//! Each record then carries its position and a checksum. If bytes from the ring are not a valid
//! record, they are read again from the segments if durable; otherwise they are damage.

use crate::api::feed::locate;
use crate::files::dir;
use crate::files::log::log_error;
use crate::participant::engine::Engine;
use crate::txn::stream::copied_at_once_max;
use crate::{Error, Result, TxnId};
use std::ops::Range;
use untorn_wal::record;
use untorn_wal::record::{Decoded, RecordKind};
use untorn_wal::{LogError, LogFollower, LogShape, Lsn, RealDisk, StoreId};

/// Bytes copied from the ring at once.
const COPY_BYTES: u64 = 64 << 10;
/// Searches for a position that the log should hold while segments are being recycled.
const SEGMENT_SEARCHES_MAX: u32 = 20;

/// How far a follower may read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReadLimit {
    /// Records of later transactions are not to be read yet.
    pub(crate) txn: TxnId,
    /// A record ends here.
    pub(crate) lsn: Lsn,
}

/// A record in a reader's buffer.
#[derive(Clone, Debug)]
pub(crate) struct LogRecord {
    pub(crate) txn: TxnId,
    pub(crate) kind: RecordKind,
    payload: Range<usize>,
    len: usize,
}

/// Reads records in order. Holds no file open between calls.
pub(crate) struct LogReader {
    /// The log position of `buffer[used]`.
    at: Lsn,
    buffer: Vec<u8>,
    used: usize,
    follow: Option<LogFollower>,
    /// Below this position, bytes are not read from the ring, since it has once held an invalid
    /// record.
    distrusted: Lsn,
}

/// Opens the log's files for reading.
pub(super) fn open_segments(engine: &Engine) -> Result<(RealDisk, LogShape)> {
    let disk = engine
        .dir
        .with_fd(|fd| RealDisk::open_read_only(fd, dir::WAL).map_err(Error::io("open of the log's directory")))?;
    let shape = LogShape::new(StoreId(engine.store_id), engine.geometry.segment_size).map_err(log_error)?;
    Ok((disk, shape))
}

impl LogReader {
    /// Returns a reader that begins at `at`, where a record begins.
    pub(crate) fn new(at: Lsn) -> LogReader {
        LogReader { at, buffer: Vec::new(), used: 0, follow: None, distrusted: Lsn::ZERO }
    }

    /// Returns the position at which the next record begins.
    pub(crate) fn at(&self) -> Lsn {
        self.at
    }

    pub(crate) fn payload(&self, record: &LogRecord) -> &[u8] {
        &self.buffer[record.payload.clone()]
    }

    /// Moves past the record that [`LogReader::peek`] has just returned.
    pub(crate) fn skip(&mut self, record: &LogRecord) {
        self.used += record.len;
        self.at = self.at.advanced_by(record.len as u64);
    }

    /// Returns the next record, or `None` if the bound comes first.
    ///
    /// # Errors
    /// [`Error::Lagged`] if it is gone, [`Error::Corrupt`].
    pub(crate) fn peek(&mut self, engine: &Engine, bound: ReadLimit) -> Result<Option<LogRecord>> {
        loop {
            let what = match record::decode(&self.buffer[self.used..], engine.record_seed(), self.at) {
                Decoded::Record { txn, .. } if TxnId::from_u64(txn) > bound.txn => return Ok(None),
                Decoded::Record { txn, kind, payload, len } => {
                    let start = self.used + record::encoded_len(0);
                    let payload = start..start + payload.len();
                    return Ok(Some(LogRecord { txn: TxnId::from_u64(txn), kind, payload, len }));
                }
                Decoded::Incomplete if self.end() < bound.lsn && self.buffered() <= self.record_bytes_max(engine) => {
                    self.fill(engine, bound.lsn)?;
                    continue;
                }
                Decoded::Incomplete if self.buffered() == 0 => return Ok(None),
                Decoded::Incomplete => "a record is longer than what was written".to_string(),
                Decoded::Bad(reason) => reason.to_string(),
            };
            // The ring may have been overwritten by mistake; the segments are more reliable.
            let durable = engine.control.durable().map_or(Lsn::ZERO, |(_, durable)| durable);
            let is_from_segments = self.at < self.distrusted;
            self.forget();
            if self.at >= durable || is_from_segments {
                let what = format!("log position {}: {what}", self.at);
                return Err(Error::corrupt(dir::WAL, self.at.0, what));
            }
            self.distrusted = durable;
        }
    }

    /// Returns the end of the bytes in the buffer.
    fn end(&self) -> Lsn {
        self.at.advanced_by(self.buffered() as u64)
    }

    fn buffered(&self) -> usize {
        self.buffer.len() - self.used
    }

    fn forget(&mut self) {
        self.buffer.clear();
        self.used = 0;
        self.follow = None;
    }

    /// Returns the most bytes that a record can have. No record is longer than the ring, except an
    /// abort record of recovery, which replaces one.
    fn record_bytes_max(&self, engine: &Engine) -> usize {
        engine.geometry.ring_size as usize + 2 * record::encoded_len(0)
    }

    /// Appends at least one byte, none beyond `until`.
    fn fill(&mut self, engine: &Engine, until: Lsn) -> Result<()> {
        self.buffer.drain(..std::mem::take(&mut self.used));
        let from = self.end();
        let mut waited = None;
        let mut looks = 0;
        loop {
            if from >= self.distrusted && self.copy_from_ring(engine, from, until)? {
                return Ok(());
            }
            let Some((_, durable)) = engine.control.durable() else {
                engine.await_mended(&mut waited)?;
                continue;
            };
            if durable <= from {
                // The ring holds it: the tail or the durable position has moved between the two
                // checks.
                engine.await_mended(&mut waited)?;
                continue;
            }
            let until = until.min(durable);
            let (disk, shape) = open_segments(engine)?;
            let follow = match &mut self.follow {
                Some(follow) if follow.position() == from => follow,
                other => other.insert(LogFollower::new(shape, from)),
            };
            match follow.read(&disk, until, &mut self.buffer) {
                Ok(()) => return Ok(()),
                Err(LogError::Gap { .. }) => {
                    let (oldest, position) = locate::oldest(engine)?;
                    looks += 1;
                    // `Lagged` must name a position from which this one is not reached again.
                    if position > from {
                        if planted_bug!("feed-skips-what-is-gone") {
                            self.forget();
                            self.at = position;
                            return Ok(());
                        }
                        return Err(Error::Lagged { oldest });
                    }
                    if looks > SEGMENT_SEARCHES_MAX {
                        let what = format!("log position {from}: no segment holds it, though older ones are there");
                        return Err(Error::corrupt(dir::WAL, from.0, what));
                    }
                }
                Err(error) => return Err(log_error(error)),
            }
        }
    }

    /// Appends bytes from the ring, if it has them.
    fn copy_from_ring(&mut self, engine: &Engine, from: Lsn, until: Lsn) -> Result<bool> {
        // Once it reads from the segments, it continues there until the ring is well ahead: each
        // change back costs a scan of all files.
        let is_in_segments = self.follow.as_ref().is_some_and(|follow| follow.position() == from);
        let ring_len = engine.control.ring_len()?;
        let copied_max = copied_at_once_max(engine.geometry.page_size, ring_len);
        let margin = if is_in_segments { ring_len / 2 } else { copied_max };
        if !ring_holds(engine, from, ring_len, margin)? {
            return Ok(false);
        }
        crash_point!("feed.before_copy");
        let len = self.buffer.len();
        let count = until.bytes_since(from).min(COPY_BYTES);
        self.buffer.resize(len + count as usize, 0);
        let copied = engine.control.ring()?.copy_out(from.0, &mut self.buffer[len..]);
        let is_good = copied.is_ok() && ring_holds(engine, from, ring_len, copied_max)?;
        if is_good {
            self.follow = None;
        } else {
            self.buffer.truncate(len);
        }
        Ok(is_good)
    }
}

/// Returns whether the ring, which has at least the length `ring_len`, still holds what was
/// published at `from`. It must also not be within `margin` bytes of being overwritten.
fn ring_holds(engine: &Engine, from: Lsn, ring_len: u64, margin: u64) -> Result<bool> {
    let control = &engine.control;
    if from < control.ring_base()? {
        return Ok(false);
    }
    if control.durable().is_some_and(|(_, durable)| from >= durable) {
        return Ok(true);
    }
    let tail = control.newest()?.log_tail.max(control.fixed().stream.tail());
    Ok(from.0.saturating_add(ring_len) >= tail.0.saturating_add(margin))
}
