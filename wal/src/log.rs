//! Writing the log: append, sync, and the one function that starts a segment. Owned by the flush
//! thread.
//!
//! The flush loop is: [`Log::append`] → [`Log::sync`] → publish the durable position. If the append
//! stopped early, [`Log::start_segment`] follows at the durable position; it continues there and
//! returns how far the stream is durable. After any failed write or sync the current segment takes
//! no more bytes. Then `start_segment` writes everything from the durable position on into another
//! file. The start of a logger and the end of recovery use `start_segment` as well.
//!
//! # How many blocks a commit needs
//! A writer must know before it commits that the log has space for its bytes. [`blocks_for`]
//! returns the blocks that a record of that length takes if it is flushed alone: full batches,
//! which have no padding, and one more whose last block may be padded. Flushing several records
//! together never takes more. Proof: take a run of consecutive batches of which only the last is
//! not full. It begins and ends between records, if a flush ends only at the end of a record or
//! after a full batch. With T bytes it takes ⌈(T + 128·⌈T/P⌉) / 4096⌉ blocks (P is the payload of a
//! full batch), and the sum over its records of ⌈(n + 128·⌈n/P⌉) / 4096⌉ is at least that, since
//! joining records increases neither of the rounded values. The end of a segment may cut a run
//! once, between two blocks, which costs one more header and so at most one block. That block, and
//! the header's, are not counted as free ([`Log::free_blocks`]). A segment that fails is abandoned.
//! Its successor takes the bytes that were not durable in no more blocks than before. It has at
//! least as many blocks left as the failed one had, if it was a spare with no fewer ready blocks.
//! Therefore the spare with the most ready blocks is never counted as free. Nor are those blocks of
//! the current segment that this spare lacks; see [`pool`](crate::pool).
//!
//! A batch without payload only records a log state, and takes one block. The caller writes it if
//! grouping has saved a block, or if no commit is pending.

use crate::{
    Disk, DiskFile, Lsn, SegmentNumber,
    disk::AlignedBuf,
    error::{LogError, Result},
    limits::{
        BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BATCH_PAYLOAD_BYTES_MAX, BLOCK_BYTES, RECORD_ALIGN_BYTES,
        SEGMENT_HEADER_BYTES,
    },
    pool::{Returned, SegmentPool, SpareBlocks, StartedSegment, now_ms},
    segment::{BatchHeader, LogShape, LogState, SegmentHeader, batch_blocks, payload_checksum},
};
use rustix::rand::{GetRandomFlags, getrandom};
use std::{io, sync::Arc};

/// Copies the bytes of the stream from a position on into a buffer.
pub type Fill<'a> = &'a mut dyn FnMut(Lsn, &mut [u8]);

/// Returns the most blocks that `len` bytes of the stream take, however they are grouped with
/// others.
#[must_use]
pub const fn blocks_for(len: u64) -> u64 {
    let full = len / BATCH_PAYLOAD_BYTES_MAX as u64;
    let rest = (len % BATCH_PAYLOAD_BYTES_MAX as u64) as usize;
    let last = if rest == 0 && full > 0 { 0 } else { batch_blocks(rest) as u64 };
    full * (BATCH_BYTES_MAX / BLOCK_BYTES) as u64 + last
}

/// The result of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Appended {
    /// The position up to which everything is written; the new bytes are not durable before the
    /// next [`Log::sync`].
    pub to: Lsn,
    /// Whether the segment is full and something is left to write, possibly only a log state. The
    /// caller then syncs and starts a segment.
    pub full: bool,
}

/// The log's writing end.
#[derive(Debug)]
pub struct Log<D: Disk> {
    pool: Arc<SegmentPool<D>>,
    current: Option<Current<D::File>>,
    buf: AlignedBuf,
    region: u64,
}

/// The segment to which batches are written.
#[derive(Debug)]
struct Current<F> {
    file: F,
    name: String,
    /// The number of ready blocks: the segment ends behind them.
    ready: u32,
    /// Whether this segment follows a segment that failed. If so, it must take every byte for which
    /// the failed segment had promised space.
    succeeds_failed: bool,
    number: SegmentNumber,
    salt: u64,
    next_block: u32,
    /// The checksum of the header before the next batch.
    chain: u32,
    /// The position of the next batch.
    written: Lsn,
    unsynced: bool,
    failed: bool,
}

impl<D: Disk> Log<D> {
    /// Returns a log that has no segment yet: the first call must be [`Log::start_segment`].
    #[must_use]
    pub fn new(pool: Arc<SegmentPool<D>>) -> Self {
        Self { pool, current: None, buf: AlignedBuf::new(BATCH_BYTES_MAX), region: 0 }
    }

    /// Sets the `region` in the headers of the log's segments. After a crash, the caller compares
    /// this value to find out whether it started the newest segment.
    #[must_use]
    pub fn with_region(self, region: u64) -> Self {
        Self { region, ..self }
    }

    /// Returns the number of the segment that was started last.
    #[must_use]
    pub fn number(&self) -> Option<SegmentNumber> {
        self.current.as_ref().map(|current| current.number)
    }

    /// Returns the pool of files.
    #[must_use]
    pub fn pool(&self) -> &Arc<SegmentPool<D>> {
        &self.pool
    }

    /// Returns the position up to which everything is written; `None` if a segment must be started
    /// first.
    #[must_use]
    pub fn written(&self) -> Option<Lsn> {
        self.current.as_ref().filter(|c| !c.failed).map(|c| c.written)
    }

    /// Returns how many blocks commits may still be charged, in the current segment and in all
    /// spares but the largest. A commit is charged the blocks of [`blocks_for`]. Returns 0 without
    /// a spare, since a segment that fails would then have no successor.
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        let Some(spares) = self.pool.spare_blocks() else { return 0 };
        let current = self.current.as_ref().filter(|c| !c.failed);
        let here = current.map_or(0, |c| c.ready.min(spares.largest).saturating_sub(c.next_block));
        // The last block of each segment covers the extra header of the cut at its end.
        u64::from(here.saturating_sub(1)) + spares.others
    }

    /// Ensures that [`Log::start_segment`] can take `len` bytes into one segment.
    ///
    /// # Errors
    /// [`LogError::DiskFull`] if no spare is large enough and the device has no space for one;
    /// nothing has changed then.
    pub fn ensure_successor(&self, len: u64) -> Result<()> {
        // The header's block, and the block that covers the cut at the segment's end.
        let blocks = blocks_for(len) + 2;
        let largest = self.pool.spare_blocks().map_or(0, |spares| u64::from(spares.largest));
        if largest >= blocks.min(u64::from(self.pool.shape().segment_blocks())) {
            return Ok(());
        }
        self.pool.add_spare_of(blocks)
    }

    /// Returns the number of ready blocks that are left in the current segment, and of all its
    /// ready blocks.
    #[must_use]
    pub fn blocks_left(&self) -> (u64, u64) {
        let current = self.current.as_ref().filter(|c| !c.failed);
        current.map_or((0, 0), |c| (u64::from(c.ready - c.next_block), u64::from(c.ready)))
    }

    /// Writes the bytes `from .. from + len` of the stream, without syncing. `from` must be
    /// [`Log::written`]. With `len` 0 writes an empty batch, which records the log state. Stops if
    /// the segment is full.
    ///
    /// # Errors
    /// [`LogError::Io`] or [`LogError::DiskFull`] if a write fails; any part may have been written,
    /// and the segment takes no more. [`LogError::NeedsSegment`] if that has happened before.
    /// [`LogError::Position`] or [`LogError::Invalid`] for a position or a length that does not
    /// fit; nothing was written then.
    pub fn append(&mut self, from: Lsn, len: u64, log_state: &LogState, fill: Fill<'_>) -> Result<Appended> {
        let current = self.current.as_mut().filter(|c| !c.failed).ok_or(LogError::NeedsSegment)?;
        if current.written != from {
            return Err(LogError::Position { expected: current.written, found: from });
        }
        check_len(len)?;
        let block = current.next_block;
        let limit = current.limit(self.pool.spare_blocks());
        let appended = current.write(limit, self.pool.shape(), &mut self.buf, len, log_state, fill);
        current.failed |= appended.is_err();
        self.pool.note_logged(current.next_block - block);
        appended
    }

    /// Makes everything written durable: [`Log::written`] is durable when this returns success.
    ///
    /// # Errors
    /// [`LogError::Io`] if the sync fails. A sync is never repeated, since the kernel may have
    /// dropped the bytes and would report success. The caller must start a segment at the durable
    /// position.
    pub fn sync(&mut self) -> Result<Lsn> {
        let current = self.current.as_mut().filter(|c| !c.failed).ok_or(LogError::NeedsSegment)?;
        if current.unsynced {
            let synced = current.file.sync().map_err(LogError::io(format!("syncing {}", current.name)));
            current.failed |= synced.is_err();
            synced?;
            current.unsynced = false;
        }
        Ok(current.written)
    }

    /// Abandons the current segment, as a failed write or sync does: its bytes past the durable
    /// position are no longer trusted, and [`Log::start_segment`] must follow.
    pub fn abandon(&mut self) {
        if let Some(current) = &mut self.current {
            current.failed = true;
        }
    }

    /// Starts a segment at the durable position `log_state.durable` with the `len` bytes of the
    /// stream that follow it, or as many of them as fit. Returns the position up to which the
    /// stream is durable.
    ///
    /// `len` must reach at least to the end of the written bytes, or, after recovery, of those that
    /// were read: the old segment's bytes from the durable position on are no longer valid. After
    /// recovery they must fit in one segment ([`Log::ensure_successor`]): a process that dies
    /// between two would leave a header that overrides bytes which no segment holds.
    ///
    /// Recovery keeps only whole records. Let R be the end of the last of them. R may be below the
    /// newest stated durable position, which is then inside a record that was never completed. In
    /// that case recovery starts the segment at R, with an [`Abort`](crate::RecordKind::Abort)
    /// record there whose payload is long enough to reach that position. So the stream remains a
    /// sequence of records, and positions that were stated durable stay readable. Otherwise
    /// recovery starts at the stated position and passes the bytes up to R; new records follow at
    /// R.
    ///
    /// The content of the spare that it takes is not trusted. First its old header is erased, then
    /// the batches are written, then the header, each synced before the next. So there is never a
    /// valid header whose batches may be missing, and an earlier failure has no effect. After an
    /// error it may be called again, and takes another spare and another number.
    ///
    /// # Errors
    /// [`LogError::NoRoom`] without a spare, [`LogError::Io`] if it can't be opened; the current
    /// segment is then as it was. [`LogError::Io`] or [`LogError::DiskFull`] if a write or sync
    /// fails; then no segment takes bytes until a start succeeds.
    pub fn start_segment(&mut self, log_state: &LogState, len: u64, fill: Fill<'_>) -> Result<Lsn> {
        check_len(len)?;
        if !log_state.durable.is_aligned() {
            return Err(LogError::Invalid { what: format!("a segment can't start at position {}", log_state.durable) });
        }
        let salt = random_salt()?;
        // The successor of a segment that failed has space for every byte that was promised there.
        let succeeds_filled = self.current.as_ref().is_some_and(|current| !current.failed);
        let (name, ready, number) = self.pool.take_spare(!succeeds_filled).ok_or(LogError::NoRoom)?;
        let file = match self.pool.disk().open(&name) {
            Ok(file) => file,
            // Nothing has changed.
            Err(error) => {
                self.pool.give_back(&name, Returned::Untouched);
                return Err(LogError::io(format!("opening {name}"))(error));
            }
        };
        // From here on the new header may reach the disk. If it does, it overrides the current
        // segment.
        if let Some(current) = &mut self.current {
            current.failed = true;
        }
        let started_ms = now_ms();
        let header = SegmentHeader {
            number,
            salt,
            start: log_state.durable,
            log_state: *log_state,
            started_ms,
            region: self.region,
        };
        let succeeds_failed = self.current.is_some() && !succeeds_filled;
        let mut left = Returned::Untouched;
        let started = self.write_segment((file, &name, ready, succeeds_failed), &header, len, fill, &mut left);
        if started.is_ok() {
            left = Returned::Started(StartedSegment { number, start: log_state.durable, started_ms });
        }
        self.pool.give_back(&name, left);
        let current = started?;
        self.pool.note_logged(current.next_block);
        let durable = current.written;
        self.current = Some(current);
        Ok(durable)
    }

    /// Writes a segment. Sets `left` to the state in which a failure leaves the file.
    fn write_segment(
        &mut self,
        (file, name, ready, succeeds_failed): (D::File, &str, u32, bool),
        header: &SegmentHeader,
        len: u64,
        fill: Fill<'_>,
        left: &mut Returned,
    ) -> Result<Current<D::File>> {
        let shape = *self.pool.shape();
        self.write_header_block(&file, name, &[])?;
        *left = Returned::Erased;
        let (bytes, crc) = header.encode(&shape);
        let mut current = Current {
            file,
            name: name.to_owned(),
            ready,
            succeeds_failed,
            number: header.number,
            salt: header.salt,
            next_block: 1,
            chain: crc,
            written: header.start,
            unsynced: false,
            failed: false,
        };
        if len > 0 {
            let _ = current.write(ready, &shape, &mut self.buf, len, &header.log_state, fill)?;
            current.file.sync().map_err(LogError::io(format!("syncing {name}")))?;
            current.unsynced = false;
        }
        // A write that fails may have written the header, and a sync that fails may have synced it.
        *left = Returned::Failed(header.number);
        self.write_header_block(&current.file, name, &bytes)?;
        Ok(current)
    }

    fn write_header_block(&mut self, file: &D::File, name: &str, header: &[u8]) -> Result<()> {
        debug_assert!(header.is_empty() || header.len() == SEGMENT_HEADER_BYTES);
        let block = &mut self.buf.bytes_mut()[..BLOCK_BYTES];
        block[..header.len()].copy_from_slice(header);
        block[header.len()..].fill(0);
        file.write_at(0, block).map_err(LogError::io(format!("writing the header of {name}")))?;
        file.sync().map_err(LogError::io(format!("syncing the header of {name}")))
    }
}

impl<F: DiskFile> Current<F> {
    /// Returns the block before which the segment takes bytes. The limit is at most the length of
    /// the largest spare. So if recovery finds bytes in this segment that no header states, they
    /// fit in that spare.
    fn limit(&self, spares: Option<SpareBlocks>) -> u32 {
        match spares {
            Some(spares) if !self.succeeds_failed => self.ready.min(spares.largest).max(self.next_block),
            _ => self.ready,
        }
    }

    fn write(
        &mut self,
        limit: u32,
        shape: &LogShape,
        buf: &mut AlignedBuf,
        len: u64,
        log_state: &LogState,
        fill: Fill<'_>,
    ) -> Result<Appended> {
        let end = self.written.advanced_by(len);
        loop {
            let room = (limit - self.next_block) as usize * BLOCK_BYTES;
            if room == 0 {
                return Ok(Appended { to: self.written, full: true });
            }
            let rest = usize::try_from(end.bytes_since(self.written)).unwrap_or(usize::MAX);
            let piece = rest.min(BATCH_PAYLOAD_BYTES_MAX).min(room - BATCH_HEADER_BYTES);
            self.write_batch(shape, buf, piece, log_state, fill)?;
            if self.written == end {
                return Ok(Appended { to: end, full: false });
            }
        }
    }

    fn write_batch(
        &mut self,
        shape: &LogShape,
        buf: &mut AlignedBuf,
        len: usize,
        log_state: &LogState,
        fill: Fill<'_>,
    ) -> Result<()> {
        let blocks = batch_blocks(len);
        let bytes = &mut buf.bytes_mut()[..blocks as usize * BLOCK_BYTES];
        let (head, rest) = bytes.split_at_mut(BATCH_HEADER_BYTES);
        let (payload, padding) = rest.split_at_mut(len);
        if len > 0 {
            fill(self.written, payload);
        }
        padding.fill(0);
        let header = BatchHeader {
            number: self.number,
            salt: self.salt,
            lsn: self.written,
            payload_len: len as u32,
            payload_crc: payload_checksum(self.salt, payload),
            chain: self.chain,
            block: self.next_block,
            log_state: *log_state,
        };
        let (encoded, crc) = header.encode(shape.store());
        head.copy_from_slice(&encoded);
        let offset = u64::from(self.next_block) * BLOCK_BYTES as u64;
        self.unsynced = true;
        self.file.write_at(offset, bytes).map_err(LogError::io(format!("writing {} at byte {offset}", self.name)))?;
        self.next_block += blocks;
        self.chain = crc;
        self.written = self.written.advanced_by(len as u64);
        Ok(())
    }
}

fn check_len(len: u64) -> Result<()> {
    if len.is_multiple_of(RECORD_ALIGN_BYTES as u64) {
        return Ok(());
    }
    Err(LogError::Invalid {
        what: format!("the stream can't be cut after {len} bytes: it must be a multiple of {RECORD_ALIGN_BYTES}"),
    })
}

fn random_salt() -> Result<u64> {
    let mut salt = [0; 8];
    loop {
        match getrandom(&mut salt, GetRandomFlags::empty()) {
            Ok(8) => return Ok(u64::from_le_bytes(salt)),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                return Err(LogError::Io {
                    what: "asking the system for random bytes".to_owned(),
                    source: io::Error::from(e),
                });
            }
        }
    }
}
