//! The catalog of segments: the files that are segments, and the range of valid bytes in each.
//!
//! Segments are identified by their headers; file names are only slots. A segment's bytes are valid
//! from its start up to the lowest start among the segments with higher numbers. The catalog also
//! contains the newest [`LogState`] of all valid headers, including batches beyond the end of the
//! valid data: everything that a header records as durable must be readable.

use crate::{
    Disk, DiskFile, Lsn, SegmentNumber,
    disk::AlignedBuf,
    error::{LogError, Result},
    limits::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BLOCK_BYTES},
    segment::{BATCH_MAGIC, BatchHeader, HeaderBlock, LogShape, LogState, SegmentHeader},
};
use std::io;

/// The prefix of segment files' names, before eight digits.
pub(crate) const SEGMENT_PREFIX: &str = "seg-";
/// The prefix of files that are still being made.
pub(crate) const UNFINISHED_PREFIX: &str = "new-";
/// The prefix of files that were segments, and that no log uses: see [`BrokenSegment`].
pub const BROKEN_PREFIX: &str = "broken-";

/// Returns the name of the slot with this index.
#[must_use]
pub fn slot_name(slot: u32) -> String {
    format!("{SEGMENT_PREFIX}{slot:08}")
}

/// Returns the index of the slot with this name, if it is one.
pub(crate) fn slot_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(SEGMENT_PREFIX)?;
    let plain = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// A segment file with a valid header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundSegment {
    /// The file's name in the log's directory.
    pub file: String,
    /// The segment's header.
    pub header: SegmentHeader,
    /// The header's checksum, from which the first batch is chained.
    pub header_crc: u32,
    /// The end of the valid bytes: a later segment's start. `None` for the newest segment.
    pub end: Option<Lsn>,
}

/// A segment file of the wrong size, usually a truncated one. No byte of it is used.
///
/// If recovery needs it, the open fails ([`SegmentCatalog::refuse_broken`]). If only followers need
/// it, it counts as missing: the open renames it to a name that begins with [`BROKEN_PREFIX`], and
/// keeps it for inspection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokenSegment {
    /// The file's name in the log's directory.
    pub file: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its header, if that is valid.
    pub header: Option<SegmentHeader>,
    /// Whether its header's block is complete and blank, so that it was a spare. The log writes a
    /// segment's header before it acknowledges anything in the segment.
    pub is_spare: bool,
}

/// Returns the broken files that were renamed when the log was opened, with their sizes in bytes.
/// See [`BrokenSegment`].
///
/// # Errors
/// [`LogError::Io`] if the directory can't be listed, or a file's size can't be read.
pub fn set_aside<D: Disk>(disk: &D) -> Result<Vec<(String, u64)>> {
    let names = disk.list().map_err(LogError::io("listing the log's directory"))?;
    let mut found = Vec::new();
    for name in names.into_iter().filter(|name| name.starts_with(BROKEN_PREFIX)) {
        match disk.open(&name).and_then(|file| file.size()) {
            Ok(size) => found.push((name, size)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(LogError::io(format!("measuring {name}"))(error)),
        }
    }
    found.sort();
    Ok(found)
}

/// Returns whether the file contains a valid batch header, so that it has been a segment.
///
/// # Errors
/// [`LogError::Io`] if it can't be read.
pub fn holds_batches<D: Disk>(disk: &D, shape: &LogShape, file: &str) -> Result<bool> {
    let mut buf = AlignedBuf::new(BATCH_BYTES_MAX);
    let mut found = false;
    each_batch(disk, file, shape, &mut buf, |_| found = true)?;
    Ok(found)
}

/// The segments in the log's directory.
#[derive(Clone, Debug)]
pub struct SegmentCatalog {
    /// The store's shape.
    pub shape: LogShape,
    /// The segments, by ascending number.
    pub segments: Vec<FoundSegment>,
    /// Files without a valid segment header: spares.
    pub spares: Vec<String>,
    /// The spares whose header is neither valid nor blank.
    pub damaged: Vec<String>,
    /// Files of another size than a segment's.
    pub broken: Vec<BrokenSegment>,
    /// The newest state that any header records.
    pub log_state: LogState,
}

/// How much [`SegmentCatalog::read`] reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Headers of segments only.
    Headers,
    /// Also every block of the newest segment and of files with a damaged header.
    Blocks,
}

impl SegmentCatalog {
    /// Reads the headers of all segment files.
    ///
    /// # Errors
    /// [`LogError::Mismatch`] for a foreign file, [`LogError::Corrupt`] for a file whose header is
    /// damaged while later batches follow it, [`LogError::Io`] if a file can't be read. A truncated
    /// file is no error here: see [`SegmentCatalog::refuse_broken`].
    pub fn read<D: Disk>(disk: &D, shape: &LogShape) -> Result<SegmentCatalog> {
        Self::read_to(disk, shape, Depth::Blocks)
    }

    /// Reads only the headers of segments. May be called while a logger runs.
    ///
    /// # Errors
    /// As [`SegmentCatalog::read`].
    pub fn read_headers<D: Disk>(disk: &D, shape: &LogShape) -> Result<SegmentCatalog> {
        Self::read_to(disk, shape, Depth::Headers)
    }

    pub(crate) fn read_to<D: Disk>(disk: &D, shape: &LogShape, depth: Depth) -> Result<SegmentCatalog> {
        let mut segment_catalog = SegmentCatalog {
            shape: *shape,
            segments: Vec::new(),
            spares: Vec::new(),
            damaged: Vec::new(),
            broken: Vec::new(),
            log_state: LogState::default(),
        };
        let mut names = disk.list().map_err(LogError::io("listing the log's directory"))?;
        names.retain(|name| slot_of(name).is_some());
        names.sort();
        let mut buf = AlignedBuf::new(BATCH_BYTES_MAX);
        for name in names {
            segment_catalog.look_at(disk, name, depth, &mut buf)?;
        }
        segment_catalog.segments.sort_by_key(|s| s.header.number);
        let mut starts: Vec<_> = segment_catalog.headers().map(|header| (header.number, header.start)).collect();
        starts.sort_unstable();
        let mut end = None::<Lsn>;
        for segment in segment_catalog.segments.iter_mut().rev() {
            while let Some((_, start)) = starts.pop_if(|(number, _)| *number > segment.header.number) {
                end = Some(end.map_or(start, |end| end.min(start)));
            }
            segment.end = end;
        }
        if depth == Depth::Blocks {
            segment_catalog.look_beyond(disk, &mut buf)?;
        }
        Ok(segment_catalog)
    }

    /// Returns the highest number of all segments, 0 if there is none.
    #[must_use]
    pub fn number_max(&self) -> SegmentNumber {
        self.headers().map(|header| header.number).max().unwrap_or(SegmentNumber(0))
    }

    /// Returns an error if recovery from `from` on may need a file of the wrong size. `needs_none`
    /// is whether it needs no segment, because the store was shut down in order.
    ///
    /// A file whose header is blank was a spare, and is not needed. If the header's block is
    /// incomplete, the file may have been the newest segment.
    ///
    /// # Errors
    /// [`LogError::Corrupt`].
    pub fn refuse_broken(&self, from: Lsn, needs_none: bool) -> Result<()> {
        let is_needed = |broken: &&BrokenSegment| {
            let Some(header) = &broken.header else { return !needs_none && !broken.is_spare };
            let later = self.headers().filter(|later| later.number > header.number);
            later.map(|later| later.start).min().is_none_or(|end| end > from)
        };
        match self.broken.iter().find(is_needed) {
            None => Ok(()),
            Some(broken) => Err(wrong_size(broken, &self.shape)),
        }
    }

    /// Returns the headers of all files that are or were segments.
    fn headers(&self) -> impl Iterator<Item = &SegmentHeader> {
        let broken = self.broken.iter().filter_map(|broken| broken.header.as_ref());
        self.segments.iter().map(|segment| &segment.header).chain(broken)
    }

    /// Returns the index of the segment that contains the byte at `at`.
    pub(crate) fn segment_at(&self, at: Lsn) -> Option<usize> {
        self.segments.iter().position(|s| s.header.start <= at && s.end.is_none_or(|end| at < end))
    }

    /// Returns the file that contained the byte at `at`, if it is one of the broken ones.
    pub(crate) fn broken_at(&self, at: Lsn) -> Option<&BrokenSegment> {
        let holds = |broken: &&BrokenSegment| {
            let Some(header) = &broken.header else { return false };
            let later = self.headers().filter(|later| later.number > header.number).map(|later| later.start).min();
            header.start <= at && later.is_none_or(|end| at < end)
        };
        self.broken.iter().find(holds)
    }

    /// Returns the lowest position above `at` at which a segment with valid bytes begins.
    #[must_use]
    pub fn next_start(&self, at: Lsn) -> Option<Lsn> {
        let counts = self.segments.iter().filter(|segment| segment.end.is_none_or(|end| end > segment.header.start));
        counts.map(|segment| segment.header.start).filter(|start| *start > at).min()
    }

    fn look_at<D: Disk>(&mut self, disk: &D, name: String, depth: Depth, buf: &mut AlignedBuf) -> Result<()> {
        let file = match disk.open(&name) {
            Ok(file) => file,
            // While a logger runs, a reader may see a surplus spare vanish.
            Err(e) if e.kind() == io::ErrorKind::NotFound && depth == Depth::Headers => {
                return Ok(());
            }
            Err(e) => return Err(LogError::io(format!("opening {name}"))(e)),
        };
        let size = file.size().map_err(LogError::io(format!("measuring {name}")))?;
        let block = &mut buf.bytes_mut()[..BLOCK_BYTES];
        let (there, missing) = block.split_at_mut(size.min(BLOCK_BYTES as u64) as usize);
        file.read_at(0, there).map_err(LogError::io(format!("reading {name}")))?;
        missing.fill(0);
        let block = block.first_chunk().expect("the buffer holds a block");
        // The header is checked first, so that a file with another segment size is a mismatch and
        // not damage.
        let header = SegmentHeader::decode(block, &self.shape, &name)?;
        if size != self.shape.segment_bytes() {
            let is_spare = matches!(header, HeaderBlock::Blank) && size >= BLOCK_BYTES as u64;
            let header = match header {
                HeaderBlock::Valid(header, _) => Some(header),
                HeaderBlock::Blank | HeaderBlock::Damaged => None,
            };
            self.log_state = header.map_or(self.log_state, |header| self.log_state.newest(header.log_state));
            self.broken.push(BrokenSegment { file: name, size, header, is_spare });
            return Ok(());
        }
        match header {
            HeaderBlock::Valid(header, header_crc) => {
                self.log_state = self.log_state.newest(header.log_state);
                self.segments.push(FoundSegment { file: name, header, header_crc, end: None });
            }
            HeaderBlock::Blank => self.spares.push(name),
            HeaderBlock::Damaged => {
                self.damaged.push(name.clone());
                self.spares.push(name);
            }
        }
        Ok(())
    }

    /// Collects the log states of all batch headers: in the newest segment beyond the valid bytes,
    /// and in files whose header is lost. Older segments need not be read, since the newest
    /// segment's start is a durable position above all that they state.
    fn look_beyond<D: Disk>(&mut self, disk: &D, buf: &mut AlignedBuf) -> Result<()> {
        if let Some(newest) = self.segments.last().cloned() {
            let of = (newest.header.number, newest.header.salt);
            let mut log_state = self.log_state;
            each_batch(disk, &newest.file, &self.shape, buf, |batch| {
                if (batch.number, batch.salt) == of {
                    log_state = log_state.newest(batch.log_state);
                }
            })?;
            self.log_state = log_state;
        }
        for file in self.spares.clone() {
            let damaged = self.damaged.contains(&file);
            if !damaged && !begins_with_batch(disk, &file, buf)? {
                continue;
            }
            let (mut log_state, mut newer) = (self.log_state, false);
            let number_max = self.number_max();
            each_batch(disk, &file, &self.shape, buf, |batch| {
                log_state = log_state.newest(batch.log_state);
                newer |= batch.number > number_max;
            })?;
            // A crash leaves a header old, blank or new, never damaged. So this file was in use.
            if damaged && newer {
                let what =
                    "the segment's header is damaged, and newer batches than any other segment's follow it".to_owned();
                return Err(LogError::Corrupt { file, offset: 0, what });
            }
            self.log_state = log_state;
        }
        Ok(())
    }
}

pub(crate) fn wrong_size(broken: &BrokenSegment, shape: &LogShape) -> LogError {
    let (expected, size) = (shape.segment_bytes(), broken.size);
    let whose = match &broken.header {
        Some(header) => format!("it is segment {}, which begins at position {}", header.number, header.start),
        None => "it has no valid header, so its content is unknown".to_owned(),
    };
    LogError::Corrupt {
        file: broken.file.clone(),
        offset: size.min(expected),
        what: format!("the file has {size} bytes instead of {expected}; {whose}"),
    }
}

/// Returns whether block 1 looks like a batch. If it does not and the header is blank, the file is
/// a spare that was never used and need not be read.
fn begins_with_batch<D: Disk>(disk: &D, name: &str, buf: &mut AlignedBuf) -> Result<bool> {
    let file = disk.open(name).map_err(LogError::io(format!("opening {name}")))?;
    let block = &mut buf.bytes_mut()[..BLOCK_BYTES];
    file.read_at(BLOCK_BYTES as u64, block).map_err(LogError::io(format!("reading {name}")))?;
    Ok(block.starts_with(&BATCH_MAGIC))
}

/// Calls `see` with every valid batch header of the file whose block index is the block at which
/// the header is stored.
fn each_batch<D: Disk>(
    disk: &D,
    name: &str,
    shape: &LogShape,
    buf: &mut AlignedBuf,
    mut see: impl FnMut(&BatchHeader),
) -> Result<()> {
    let file = disk.open(name).map_err(LogError::io(format!("opening {name}")))?;
    let mut block = 1;
    while block < shape.segment_blocks() {
        let count = (shape.segment_blocks() - block).min((BATCH_BYTES_MAX / BLOCK_BYTES) as u32);
        let piece = &mut buf.bytes_mut()[..count as usize * BLOCK_BYTES];
        file.read_at(u64::from(block) * BLOCK_BYTES as u64, piece).map_err(LogError::io(format!("reading {name}")))?;
        for (index, bytes) in piece.chunks_exact(BLOCK_BYTES).enumerate() {
            let at = block + index as u32;
            if let Some((header, _)) = BatchHeader::decode(&bytes[..BATCH_HEADER_BYTES], shape.store(), at) {
                see(&header);
            }
        }
        block += count;
    }
    Ok(())
}
