//! Reading the stream back, one batch at a time: valid, torn tail, or corrupt.
//!
//! A batch is valid if its header and payload are whole and it continues the one before. What follows the
//! last valid batch is a torn tail if nothing there is known to be durable; below a durable position that any
//! header states (or below the position where the caller begins, which a checkpoint vouches for) it is damage
//! to acknowledged data, an error. A read error is an error, never a torn tail.

use crate::{
    Disk, DiskFile, Lsn,
    disk::AlignedBuf,
    error::{LogError, Result},
    limits::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BLOCK_BYTES},
    planted_bug,
    segment::{BatchHeader, HeaderBlock, LogShape, SegmentHeader, Stated, payload_checksum},
    survey::{Depth, Survey, wrong_size},
};
use std::ops::Range;

/// A reader of the stream from one position on. Its memory is bounded by two batches.
pub struct Scan<'d, D: Disk> {
    disk: &'d D,
    survey: Survey,
    /// The position up to which everything has been returned.
    position: Lsn,
    /// Everything below must be readable.
    durable: Lsn,
    /// A follower stops here.
    until: Option<Lsn>,
    place: Option<Place<D::File>>,
    window: Window,
}

/// A follower between two reads: it holds no file open, since its host may close what it doesn't know.
pub(crate) struct Paused {
    pub(crate) survey: Survey,
    position: Lsn,
    durable: Lsn,
    place: Option<Place<()>>,
    window: Window,
}

/// Where in the files the scan stands.
struct Place<F> {
    file: F,
    /// Index among the survey's segments.
    segment: usize,
    block: u32,
    chain: u32,
    /// Position of the batch at `block`.
    lsn: Lsn,
}

/// A piece of the current file.
struct Window {
    buf: AlignedBuf,
    blocks: Range<u32>,
}

/// A batch that was read whole.
struct Batch {
    lsn: Lsn,
    /// Its payload's place in the window.
    payload: Range<usize>,
    stated: Stated,
    /// Where the next batch begins, and the checksum that it must name.
    next_block: u32,
    next_chain: u32,
}

impl Window {
    fn has(&self, block: u32, count: u32) -> bool {
        block >= self.blocks.start && block + count <= self.blocks.end
    }

    /// Makes sure that so many blocks of the file are at hand, and returns where in the buffer they begin.
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

impl<'d, D: Disk> Scan<'d, D> {
    /// Surveys the log and prepares to read everything from `from` on: where the newest checkpoint says that
    /// replay begins. A log in which no segment was ever started is empty.
    ///
    /// # Errors
    /// Those of [`Survey::take`], and [`LogError::Gap`] if the log does not reach back to `from`.
    pub fn open(disk: &'d D, shape: &LogShape, from: Lsn) -> Result<Self> {
        Self::begin(disk, Survey::take(disk, shape)?, from, None)
    }

    /// As [`Scan::open`], of a log that was surveyed just now.
    ///
    /// # Errors
    /// As [`Scan::open`].
    pub fn of_survey(disk: &'d D, survey: Survey, from: Lsn) -> Result<Self> {
        Self::begin(disk, survey, from, None)
    }

    /// Prepares to read from `from` up to `until`, which must be durable, beside a running logger. Headers of
    /// segments are all it looks at beforehand.
    ///
    /// An error [`LogError::Corrupt`] or [`LogError::Gap`] may mean that the segment has been recycled
    /// meanwhile; it has if opening again answers [`LogError::Gap`].
    ///
    /// # Errors
    /// As [`Scan::open`].
    pub fn follow(disk: &'d D, shape: &LogShape, from: Lsn, until: Lsn) -> Result<Self> {
        Self::begin(disk, Survey::take_to(disk, shape, Depth::Headers)?, from, Some(until))
    }

    fn begin(disk: &'d D, survey: Survey, from: Lsn, until: Option<Lsn>) -> Result<Self> {
        if until.is_none() {
            survey.refuse_broken(from, false)?;
        }
        let durable = survey.stated.durable.max(from).max(until.unwrap_or_default());
        let window = Window { buf: AlignedBuf::new(BATCH_BYTES_MAX), blocks: 0..0 };
        let mut scan = Self { disk, survey, position: from, durable, until, place: None, window };
        let untouched = scan.survey.segments.is_empty() && scan.survey.damaged.is_empty() && scan.durable == Lsn::ZERO;
        if !untouched {
            scan.seek()?;
        }
        Ok(scan)
    }

    /// What the survey found.
    #[must_use]
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// The newest that any header states, those beyond the end of the valid data included.
    #[must_use]
    pub fn max_stated(&self) -> Stated {
        self.survey.stated
    }

    /// Up to where everything has been returned; once [`Scan::next_chunk`] has returned `None`, the end of
    /// the log.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.position
    }

    /// The file, and the offset in it, of the batch that comes next, or in which the last chunk
    /// lies.
    #[must_use]
    pub fn place(&self) -> Option<(&str, u64)> {
        let place = self.place.as_ref()?;
        Some((&self.survey.segments[place.segment].file, u64::from(place.block) * BLOCK_BYTES as u64))
    }

    /// Where the segment after the current position begins, as of the last look at the files: where
    /// a reader goes on that has met damage.
    #[must_use]
    pub fn next_start(&self) -> Option<Lsn> {
        self.survey.next_start(self.position)
    }

    /// Lets a follower read on, up to a new durable position.
    pub fn extend(&mut self, until: Lsn) {
        self.until = Some(until);
        self.durable = self.durable.max(until);
        self.window.blocks = 0..0;
    }

    /// Lets go of the files. To be resumed.
    pub(crate) fn pause(self) -> Paused {
        let Scan { survey, position, durable, place, window, .. } = self;
        let place =
            place.map(|Place { segment, block, chain, lsn, .. }| Place { file: (), segment, block, chain, lsn });
        Paused { survey, position, durable, place, window }
    }

    /// Goes on where a follower paused.
    ///
    /// # Errors
    /// [`LogError::Gap`] if the segment has been recycled, [`LogError::Io`] if it can't be opened.
    pub(crate) fn resume(disk: &'d D, paused: Paused, until: Lsn) -> Result<Self> {
        let Paused { survey, position, durable, place, window } = paused;
        let mut scan = Self { disk, survey, position, durable, until: None, place: None, window };
        if let Some(Place { segment, block, chain, lsn, .. }) = place {
            let name = &scan.survey.segments[segment].file;
            let file = disk.open(name).map_err(|error| not_there(error, name, scan.position))?;
            scan.place = Some(Place { file, segment, block, chain, lsn });
            scan.refuse_recycled()?;
        }
        if scan.durable < until {
            scan.extend(until);
        }
        scan.until = Some(until);
        Ok(scan)
    }

    /// An error if the segment has come to hold other bytes. Recycling blanks the header before it writes any batch, so a
    /// header that still stands after something was copied vouches for the copy.
    fn refuse_recycled(&self) -> Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        let found = &self.survey.segments[place.segment];
        let mut block = AlignedBuf::new(BLOCK_BYTES);
        place.file.read_at(0, block.bytes_mut()).map_err(LogError::io(format!("reading {}", found.file)))?;
        let block = block.bytes().first_chunk().expect("the buffer holds a block");
        match SegmentHeader::decode(block, &self.survey.shape, &found.file)? {
            HeaderBlock::Valid(header, _) if header == found.header => Ok(()),
            _ => Err(LogError::Gap { wanted: self.position, oldest: None }),
        }
    }

    /// The error of a follower: what looks like damage is a gap if the segment after this one has been recycled, or if
    /// this one has.
    #[must_use]
    pub fn gap_or(&self, error: LogError) -> LogError {
        let (LogError::Corrupt { .. }, Some(place)) = (&error, &self.place) else { return error };
        let numbers = |index: usize| self.survey.segments.get(index).map(|segment| segment.header.number.0);
        let next_is_missing =
            numbers(place.segment + 1) > numbers(place.segment).map(|number| number.saturating_add(1));
        if next_is_missing || self.refuse_recycled().is_err() {
            return LogError::Gap { wanted: self.position, oldest: None };
        }
        error
    }

    /// What the header of the batch at the current place states; `None` where there is no whole batch. Goes on to the next
    /// one, without returning its bytes.
    pub(crate) fn next_stated(&mut self) -> Result<Option<Stated>> {
        if self.place.is_none() {
            return Ok(None);
        }
        let Ok(batch) = self.read_batch()? else { return Ok(None) };
        let stated = batch.stated;
        self.step_past(&batch);
        Ok(Some(stated))
    }

    /// The next bytes of the stream and their position; `None` at the end. Chunks are cut as they were
    /// written, not at the bounds of records.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] for damage below a durable position, [`LogError::Io`] if a file can't be read.
    pub fn next_chunk(&mut self) -> Result<Option<(Lsn, &[u8])>> {
        let Some((lsn, range)) = self.advance()? else {
            return Ok(None);
        };
        Ok(Some((lsn, &self.window.buf.bytes()[range])))
    }

    fn advance(&mut self) -> Result<Option<(Lsn, Range<usize>)>> {
        let mut reloaded = false;
        loop {
            if self.until.is_some_and(|until| self.position >= until) {
                return Ok(None);
            }
            let Some(place) = &self.place else {
                if self.until.is_none() {
                    return Ok(None);
                }
                // A follower that began before the first segment was started.
                self.survey = Survey::take_to(self.disk, &self.survey.shape, Depth::Headers)?;
                self.seek()?;
                continue;
            };
            let end = self.survey.segments[place.segment].end;
            if end.is_some_and(|end| self.position >= end) {
                self.seek()?;
                continue;
            }
            let batch = match self.read_batch()? {
                Ok(batch) => batch,
                Err((_, lsn)) if lsn >= self.durable => return Ok(None),
                // A follower's segment may have ended since: the logger has started another.
                Err(_) if self.until.is_some() && !reloaded => {
                    reloaded = true;
                    self.survey = Survey::take_to(self.disk, &self.survey.shape, Depth::Headers)?;
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

    /// Goes to the start of the segment that holds the current position.
    fn seek(&mut self) -> Result<()> {
        self.place = None;
        self.window.blocks = 0..0;
        let Some(segment) = self.survey.segment_at(self.position) else {
            if let Some(broken) = self.survey.broken_at(self.position) {
                return Err(wrong_size(broken, &self.survey.shape));
            }
            // A file that has lost its header is the likely place of what is missing.
            if let Some(file) = self.survey.damaged.first() {
                let what =
                    format!("the segment's header is damaged, and no other segment holds position {}", self.position);
                return Err(LogError::Corrupt { file: file.clone(), offset: 0, what });
            }
            let oldest =
                self.survey.segments.iter().filter(|s| Some(s.header.start) != s.end).map(|s| s.header.start).min();
            return Err(LogError::Gap { wanted: self.position, oldest });
        };
        let found = &self.survey.segments[segment];
        let opened = self.disk.open(&found.file);
        let file = match self.until {
            Some(_) => opened.map_err(|error| not_there(error, &found.file, self.position))?,
            None => opened.map_err(LogError::io(format!("opening {}", found.file)))?,
        };
        self.place = Some(Place { file, segment, block: 1, chain: found.header_crc, lsn: found.header.start });
        Ok(())
    }

    /// Reads the batch at the current place, or says why there is none, and at which position.
    fn read_batch(&mut self) -> Result<std::result::Result<Batch, (String, Lsn)>> {
        let Some(place) = &self.place else { unreachable!("advance has checked the place") };
        let found = &self.survey.segments[place.segment];
        let blocks = found.header.blocks;
        let bad = |what: String| Ok(Err((what, place.lsn)));
        if place.block >= blocks {
            return bad(format!("the segment ends at position {}", place.lsn));
        }
        let name = &found.file;
        let had = self.window.blocks.clone();
        let head = self.window.get(&place.file, name, place.block, 1, blocks)?;
        let store = self.survey.shape.store();
        let Some((header, crc)) = BatchHeader::decode(&self.window.buf.bytes()[head..], store, place.block) else {
            return bad("there is no whole batch header".to_owned());
        };
        let trusts_all = planted_bug!("trust-recycled-segment");
        if (header.number, header.salt) != (found.header.number, found.header.salt) && !trusts_all {
            return bad("the batch belongs to another segment".to_owned());
        }
        if (header.lsn != place.lsn || header.chain != place.chain) && !trusts_all {
            return bad(format!("the batch at position {} does not continue the one before", header.lsn));
        }
        if header.blocks() > blocks - place.block {
            return bad("the batch is longer than the segment".to_owned());
        }
        let start = self.window.get(&place.file, name, place.block, header.blocks(), blocks)? + BATCH_HEADER_BYTES;
        if self.until.is_some() && self.window.blocks != had {
            self.refuse_recycled()?;
        }
        let payload = start..start + header.payload_len as usize;
        let found = payload_checksum(header.salt, &self.window.buf.bytes()[payload.clone()]);
        if found != header.payload_crc && !planted_bug!("wal-without-crc") {
            return bad(format!("the batch's checksum is {:#010x}, its bytes give {found:#010x}", header.payload_crc));
        }
        let (next_block, next_chain) = (place.block + header.blocks(), crc);
        Ok(Ok(Batch { lsn: place.lsn, payload, stated: header.stated, next_block, next_chain }))
    }

    fn step_past(&mut self, batch: &Batch) {
        if let Some(place) = &mut self.place {
            place.block = batch.next_block;
            place.chain = batch.next_chain;
            place.lsn = batch.lsn.advanced_by(batch.payload.len() as u64);
        }
    }

    /// Damage at the current place.
    fn corrupt(&self, what: String) -> LogError {
        let Some(place) = &self.place else { unreachable!("damage is found at a place") };
        // What follows a segment that ends too early is missing altogether, perhaps with its header.
        let file = match self.survey.damaged.first() {
            Some(damaged) if self.survey.segments[place.segment].end.is_some() => {
                let what = format!("the segment's header is damaged; before it, {what}");
                return LogError::Corrupt { file: damaged.clone(), offset: 0, what };
            }
            _ => self.survey.segments[place.segment].file.clone(),
        };
        let offset = u64::from(place.block) * BLOCK_BYTES as u64;
        LogError::Corrupt { file, offset, what: format!("{what}; positions up to {} are durable", self.durable) }
    }
}

/// A follower can't open a segment: the logger may have deleted it just now.
fn not_there(error: std::io::Error, name: &str, wanted: Lsn) -> LogError {
    match error.kind() {
        std::io::ErrorKind::NotFound => LogError::Gap { wanted, oldest: None },
        _ => LogError::io(format!("opening {name}"))(error),
    }
}
