//! Reading the stream back, one batch at a time: valid, torn tail, or corrupt.
//!
//! A batch is valid if its header and payload are complete and it continues the batch before. If no
//! byte behind the last valid batch is known to be durable, an invalid batch there is a torn tail.
//! An invalid batch below a durable position that any header states is damage to acknowledged data,
//! which is an error. The same applies below the position where the caller begins, which a
//! checkpoint guarantees. A read error is an error, never a torn tail.

use crate::{
    Disk, DiskFile, Lsn,
    disk::AlignedBuf,
    error::{LogError, Result},
    limits::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BLOCK_BYTES},
    planted_bug,
    segment::{BatchHeader, HeaderBlock, LogShape, LogState, SegmentHeader, payload_checksum},
    segment_catalog::{Depth, SegmentCatalog, wrong_size},
};
use std::ops::Range;

/// A reader of the stream from one position on. Its memory is bounded by two batches.
pub struct LogScan<'d, D: Disk> {
    disk: &'d D,
    segment_catalog: SegmentCatalog,
    /// The position up to which everything has been returned.
    position: Lsn,
    /// The position below which everything must be readable.
    durable: Lsn,
    /// The position at which a follower stops.
    until: Option<Lsn>,
    cursor: Option<ScanPosition<D::File>>,
    read_buffer: ReadBuffer,
}

/// The scan of a follower between two reads. It holds no file open, since the host may close
/// descriptors that it does not know.
pub(crate) struct PausedScan {
    pub(crate) segment_catalog: SegmentCatalog,
    position: Lsn,
    durable: Lsn,
    cursor: Option<ScanPosition<()>>,
    read_buffer: ReadBuffer,
}

/// The scan's position in the files.
struct ScanPosition<F> {
    file: F,
    /// The index among the segments of the catalog.
    segment: usize,
    block: u32,
    chain: u32,
    /// The position of the batch at `block`.
    lsn: Lsn,
}

/// A piece of the current file.
struct ReadBuffer {
    buf: AlignedBuf,
    blocks: Range<u32>,
}

/// A complete batch in the read buffer.
struct BatchSpan {
    lsn: Lsn,
    /// The payload's range in the read buffer.
    payload: Range<usize>,
    log_state: LogState,
    /// Where the next batch begins, and the checksum that it must contain.
    next_block: u32,
    next_chain: u32,
}

impl ReadBuffer {
    fn has(&self, block: u32, count: u32) -> bool {
        block >= self.blocks.start && block + count <= self.blocks.end
    }

    /// Ensures that `count` blocks of the file are in the buffer, and returns where in it they
    /// begin.
    fn get<F: DiskFile>(&mut self, file: &F, name: &str, block: u32, count: u32, blocks: u32) -> Result<usize> {
        if !self.has(block, count) {
            self.blocks = 0..0;
            let ahead = (blocks - block).min((BATCH_BYTES_MAX / BLOCK_BYTES) as u32);
            let bytes = &mut self.buf.bytes_mut()[..ahead as usize * BLOCK_BYTES];
            let offset = u64::from(block) * BLOCK_BYTES as u64;
            file.read_at(offset, bytes).map_err(LogError::io(format!("reading {name} at byte {offset}")))?;
            self.blocks = block..block + ahead;
        }
        Ok((block - self.blocks.start) as usize * BLOCK_BYTES)
    }
}

impl<'d, D: Disk> LogScan<'d, D> {
    /// Reads the log's catalog and prepares to read everything from `from` on, the position where
    /// replay begins after the newest checkpoint. A log in which no segment was ever started is
    /// empty.
    ///
    /// # Errors
    /// Those of [`SegmentCatalog::read`], and [`LogError::Gap`] if the log does not reach back to
    /// `from`.
    pub fn open(disk: &'d D, shape: &LogShape, from: Lsn) -> Result<Self> {
        Self::begin(disk, SegmentCatalog::read(disk, shape)?, from, None)
    }

    /// Prepares to read as [`LogScan::open`], with a catalog that was just read.
    ///
    /// # Errors
    /// As [`LogScan::open`].
    pub fn of_catalog(disk: &'d D, segment_catalog: SegmentCatalog, from: Lsn) -> Result<Self> {
        Self::begin(disk, segment_catalog, from, None)
    }

    /// Prepares to read from `from` up to `until`, which must be durable, while a logger runs. The
    /// preparation reads only the headers of segments.
    ///
    /// A [`LogError::Corrupt`] or [`LogError::Gap`] may mean that the segment has been recycled
    /// meanwhile. If reopening returns [`LogError::Gap`], it was recycled.
    ///
    /// # Errors
    /// As [`LogScan::open`].
    pub fn follow(disk: &'d D, shape: &LogShape, from: Lsn, until: Lsn) -> Result<Self> {
        Self::begin(disk, SegmentCatalog::read_to(disk, shape, Depth::Headers)?, from, Some(until))
    }

    fn begin(disk: &'d D, segment_catalog: SegmentCatalog, from: Lsn, until: Option<Lsn>) -> Result<Self> {
        if until.is_none() {
            segment_catalog.refuse_broken(from, false)?;
        }
        let durable = segment_catalog.log_state.durable.max(from).max(until.unwrap_or_default());
        let read_buffer = ReadBuffer { buf: AlignedBuf::new(BATCH_BYTES_MAX), blocks: 0..0 };
        let mut scan = Self { disk, segment_catalog, position: from, durable, until, cursor: None, read_buffer };
        let untouched = scan.segment_catalog.segments.is_empty()
            && scan.segment_catalog.damaged.is_empty()
            && scan.durable == Lsn::ZERO;
        if !untouched {
            scan.seek()?;
        }
        Ok(scan)
    }

    /// Returns the catalog that the scan uses.
    #[must_use]
    pub fn segment_catalog(&self) -> &SegmentCatalog {
        &self.segment_catalog
    }

    /// Returns the newest log state in any header, including headers beyond the end of the valid
    /// data.
    #[must_use]
    pub fn newest_log_state(&self) -> LogState {
        self.segment_catalog.log_state
    }

    /// Returns the position up to which everything has been returned. Once [`LogScan::next_chunk`]
    /// has returned `None`, this is the end of the log.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.position
    }

    /// Returns the file and the offset in it of the next batch, or of the batch that contains the
    /// last chunk.
    #[must_use]
    pub fn file_position(&self) -> Option<(&str, u64)> {
        let cursor = self.cursor.as_ref()?;
        Some((&self.segment_catalog.segments[cursor.segment].file, u64::from(cursor.block) * BLOCK_BYTES as u64))
    }

    /// Returns where the segment after the current position begins, as of the last catalog: where a
    /// reader resumes after damage.
    #[must_use]
    pub fn next_start(&self) -> Option<Lsn> {
        self.segment_catalog.next_start(self.position)
    }

    /// Extends a follower's limit to a new durable position.
    pub fn extend(&mut self, until: Lsn) {
        self.until = Some(until);
        self.durable = self.durable.max(until);
        self.read_buffer.blocks = 0..0;
    }

    /// Closes the files. [`LogScan::resume`] continues the scan.
    pub(crate) fn pause(self) -> PausedScan {
        let LogScan { segment_catalog, position, durable, cursor, read_buffer, .. } = self;
        let cursor = cursor.map(|ScanPosition { segment, block, chain, lsn, .. }| ScanPosition {
            file: (),
            segment,
            block,
            chain,
            lsn,
        });
        PausedScan { segment_catalog, position, durable, cursor, read_buffer }
    }

    /// Continues where a follower paused.
    ///
    /// # Errors
    /// [`LogError::Gap`] if the segment has been recycled, [`LogError::Io`] if it can't be opened.
    pub(crate) fn resume(disk: &'d D, paused: PausedScan, until: Lsn) -> Result<Self> {
        let PausedScan { segment_catalog, position, durable, cursor, read_buffer } = paused;
        let mut scan = Self { disk, segment_catalog, position, durable, until: None, cursor: None, read_buffer };
        if let Some(ScanPosition { segment, block, chain, lsn, .. }) = cursor {
            let name = &scan.segment_catalog.segments[segment].file;
            let file = disk.open(name).map_err(|error| not_there(error, name, scan.position))?;
            scan.cursor = Some(ScanPosition { file, segment, block, chain, lsn });
            scan.refuse_recycled()?;
        }
        if scan.durable < until {
            scan.extend(until);
        }
        scan.until = Some(until);
        Ok(scan)
    }

    /// Returns an error if the segment has been recycled. Recycling erases the header before it
    /// writes any batch, so if the header is unchanged after a copy, the copied bytes were those of
    /// the segment.
    fn refuse_recycled(&self) -> Result<()> {
        let Some(cursor) = &self.cursor else { return Ok(()) };
        let found = &self.segment_catalog.segments[cursor.segment];
        let mut block = AlignedBuf::new(BLOCK_BYTES);
        cursor.file.read_at(0, block.bytes_mut()).map_err(LogError::io(format!("reading {}", found.file)))?;
        let block = block.bytes().first_chunk().expect("the buffer holds a block");
        match SegmentHeader::decode(block, &self.segment_catalog.shape, &found.file)? {
            HeaderBlock::Valid(header, _) if header == found.header => Ok(()),
            _ => Err(LogError::Gap { wanted: self.position, oldest: None }),
        }
    }

    /// Returns the error for a follower: apparent damage is a gap if this segment, or the one after
    /// it, has been recycled.
    #[must_use]
    pub fn gap_or(&self, error: LogError) -> LogError {
        let (LogError::Corrupt { .. }, Some(cursor)) = (&error, &self.cursor) else { return error };
        let numbers = |index: usize| self.segment_catalog.segments.get(index).map(|segment| segment.header.number.0);
        let next_is_missing =
            numbers(cursor.segment + 1) > numbers(cursor.segment).map(|number| number.saturating_add(1));
        if next_is_missing || self.refuse_recycled().is_err() {
            return LogError::Gap { wanted: self.position, oldest: None };
        }
        error
    }

    /// Returns the log state in the header of the batch at the current position; `None` if there is
    /// no complete batch. Moves to the next batch without returning its bytes.
    pub(crate) fn next_log_state(&mut self) -> Result<Option<LogState>> {
        if self.cursor.is_none() {
            return Ok(None);
        }
        let Ok(batch) = self.read_batch()? else { return Ok(None) };
        let log_state = batch.log_state;
        self.step_past(&batch);
        Ok(Some(log_state))
    }

    /// Returns the next bytes of the stream and their position; `None` at the end. Chunks are
    /// divided as they were written, not at the boundaries of records.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] for damage below a durable position, [`LogError::Io`] if a file can't
    /// be read.
    pub fn next_chunk(&mut self) -> Result<Option<(Lsn, &[u8])>> {
        let Some((lsn, range)) = self.advance()? else {
            return Ok(None);
        };
        Ok(Some((lsn, &self.read_buffer.buf.bytes()[range])))
    }

    fn advance(&mut self) -> Result<Option<(Lsn, Range<usize>)>> {
        let mut reloaded = false;
        loop {
            if self.until.is_some_and(|until| self.position >= until) {
                return Ok(None);
            }
            let Some(cursor) = &self.cursor else {
                if self.until.is_none() {
                    return Ok(None);
                }
                // The follower began before the first segment was started.
                self.segment_catalog = SegmentCatalog::read_to(self.disk, &self.segment_catalog.shape, Depth::Headers)?;
                self.seek()?;
                continue;
            };
            let end = self.segment_catalog.segments[cursor.segment].end;
            if end.is_some_and(|end| self.position >= end) {
                self.seek()?;
                continue;
            }
            let batch = match self.read_batch()? {
                Ok(batch) => batch,
                Err((_, lsn)) if lsn >= self.durable => return Ok(None),
                // A follower's segment may have ended since, if the logger has started another
                // segment.
                Err(_) if self.until.is_some() && !reloaded => {
                    reloaded = true;
                    self.segment_catalog =
                        SegmentCatalog::read_to(self.disk, &self.segment_catalog.shape, Depth::Headers)?;
                    self.seek()?;
                    continue;
                }
                Err((what, _)) => return Err(self.corrupt(what)),
            };
            let batch_end = batch.lsn.advanced_by(batch.payload.len() as u64);
            let stop = [end, self.until].into_iter().flatten().fold(batch_end, Lsn::min);
            if stop > self.position {
                let first = batch.payload.start + self.position.bytes_since(batch.lsn) as usize;
                let len = stop.bytes_since(self.position) as usize;
                let lsn = std::mem::replace(&mut self.position, stop);
                if stop == batch_end || Some(stop) == end {
                    self.step_past(&batch);
                }
                return Ok(Some((lsn, first..first + len)));
            }
            self.step_past(&batch);
        }
    }

    /// Moves to the start of the segment that contains the current position.
    fn seek(&mut self) -> Result<()> {
        self.cursor = None;
        self.read_buffer.blocks = 0..0;
        let Some(segment) = self.segment_catalog.segment_at(self.position) else {
            if let Some(broken) = self.segment_catalog.broken_at(self.position) {
                return Err(wrong_size(broken, &self.segment_catalog.shape));
            }
            // The missing bytes are probably in a file whose header is invalid.
            if let Some(file) = self.segment_catalog.damaged.first() {
                let what =
                    format!("the segment's header is damaged, and no other segment holds position {}", self.position);
                return Err(LogError::Corrupt { file: file.clone(), offset: 0, what });
            }
            let oldest = self
                .segment_catalog
                .segments
                .iter()
                .filter(|s| Some(s.header.start) != s.end)
                .map(|s| s.header.start)
                .min();
            return Err(LogError::Gap { wanted: self.position, oldest });
        };
        let found = &self.segment_catalog.segments[segment];
        let opened = self.disk.open(&found.file);
        let file = match self.until {
            Some(_) => opened.map_err(|error| not_there(error, &found.file, self.position))?,
            None => opened.map_err(LogError::io(format!("opening {}", found.file)))?,
        };
        self.cursor = Some(ScanPosition { file, segment, block: 1, chain: found.header_crc, lsn: found.header.start });
        Ok(())
    }

    /// Reads the batch at the current position. If there is none, returns the reason, and its
    /// position.
    fn read_batch(&mut self) -> Result<std::result::Result<BatchSpan, (String, Lsn)>> {
        let Some(cursor) = &self.cursor else { unreachable!("advance has checked the place") };
        let found = &self.segment_catalog.segments[cursor.segment];
        let blocks = self.segment_catalog.shape.segment_blocks();
        let bad = |what: String| Ok(Err((what, cursor.lsn)));
        if cursor.block >= blocks {
            return bad(format!("the segment ends at position {}", cursor.lsn));
        }
        let name = &found.file;
        let had = self.read_buffer.blocks.clone();
        let head = self.read_buffer.get(&cursor.file, name, cursor.block, 1, blocks)?;
        let store = self.segment_catalog.shape.store();
        let Some((header, crc)) = BatchHeader::decode(&self.read_buffer.buf.bytes()[head..], store, cursor.block)
        else {
            return bad("there is no valid batch header".to_owned());
        };
        let trusts_all = planted_bug!("trust-recycled-segment");
        if (header.number, header.salt) != (found.header.number, found.header.salt) && !trusts_all {
            return bad("the batch belongs to another segment".to_owned());
        }
        if (header.lsn != cursor.lsn || header.chain != cursor.chain) && !trusts_all {
            return bad(format!("the batch at position {} does not continue the one before", header.lsn));
        }
        if header.blocks() > blocks - cursor.block {
            return bad("the batch is longer than the segment".to_owned());
        }
        let start =
            self.read_buffer.get(&cursor.file, name, cursor.block, header.blocks(), blocks)? + BATCH_HEADER_BYTES;
        if self.until.is_some() && self.read_buffer.blocks != had {
            self.refuse_recycled()?;
        }
        let payload = start..start + header.payload_len as usize;
        let found = payload_checksum(header.salt, &self.read_buffer.buf.bytes()[payload.clone()]);
        if found != header.payload_crc && !planted_bug!("wal-without-crc") {
            return bad(format!("the batch's checksum is {:#010x}, its bytes give {found:#010x}", header.payload_crc));
        }
        let (next_block, next_chain) = (cursor.block + header.blocks(), crc);
        Ok(Ok(BatchSpan { lsn: cursor.lsn, payload, log_state: header.log_state, next_block, next_chain }))
    }

    fn step_past(&mut self, batch: &BatchSpan) {
        if let Some(cursor) = &mut self.cursor {
            cursor.block = batch.next_block;
            cursor.chain = batch.next_chain;
            cursor.lsn = batch.lsn.advanced_by(batch.payload.len() as u64);
        }
    }

    /// Returns the error for damage at the current position.
    fn corrupt(&self, what: String) -> LogError {
        let Some(cursor) = &self.cursor else { unreachable!("damage is found at a place") };
        // The segment that should follow one that ends too early is missing, possibly because its
        // header is damaged.
        let file = match self.segment_catalog.damaged.first() {
            Some(damaged) if self.segment_catalog.segments[cursor.segment].end.is_some() => {
                let what = format!("the segment's header is damaged; before it, {what}");
                return LogError::Corrupt { file: damaged.clone(), offset: 0, what };
            }
            _ => self.segment_catalog.segments[cursor.segment].file.clone(),
        };
        let offset = u64::from(cursor.block) * BLOCK_BYTES as u64;
        LogError::Corrupt { file, offset, what: format!("{what}; positions up to {} are durable", self.durable) }
    }
}

/// Returns the error of a follower that can't open a segment. The logger may have just deleted the
/// segment.
fn not_there(error: std::io::Error, name: &str, wanted: Lsn) -> LogError {
    match error.kind() {
        std::io::ErrorKind::NotFound => LogError::Gap { wanted, oldest: None },
        _ => LogError::io(format!("opening {name}"))(error),
    }
}
