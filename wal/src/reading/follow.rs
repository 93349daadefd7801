//! Reading the log while a logger runs, from the segment files.
//!
//! A follower keeps no file open between two reads, and the logger never waits for it: the segments
//! that it reads may be recycled meanwhile. So the follower reads a segment's header again after
//! each copy. Each batch contains its segment's number and salt, its own position, and checksums.
//! Thus a read returns the bytes that were written there, or an error.
//!
//! | what happens | then |
//! |---|---|
//! | the segment ends: the logger has started another | the catalog is read again, once |
//! | the segment was recycled, or removed | [`LogError::Gap`], if the new catalog does not contain the position either |
//! | bytes are damaged | [`LogError::Corrupt`] |

use crate::{
    Disk, LogState, Lsn,
    error::{LogError, Result},
    scan::{LogScan, PausedScan},
    segment::LogShape,
    segment_catalog::{Depth, SegmentCatalog},
};

/// A read returns once it has this many bytes, or slightly more.
const READ_BYTES: usize = 256 << 10;

/// A follower of the stream. Its memory is bounded by two batches.
pub struct LogFollower {
    shape: LogShape,
    position: Lsn,
    paused: Option<PausedScan>,
}

/// A position from which a follower can read. A record begins at `position`, and all records before
/// it belong to transactions up to `txn`, or to transactions that never commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResumePoint {
    /// The transaction's id.
    pub txn: u64,
    /// Where the next record begins.
    pub position: Lsn,
}

impl ResumePoint {
    fn of(log_state: &LogState) -> ResumePoint {
        ResumePoint { txn: log_state.durable_txn, position: log_state.safe_start }
    }
}

impl LogFollower {
    /// Returns a follower that begins at `from`.
    #[must_use]
    pub fn new(shape: LogShape, from: Lsn) -> LogFollower {
        LogFollower { shape, position: from, paused: None }
    }

    /// Returns the position up to which everything has been returned.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Appends the bytes from [`LogFollower::position`] on to `out`: at least one if there are any
    /// before `until`, which must be durable.
    ///
    /// # Errors
    /// [`LogError::Gap`] if the log does not contain the position any more, [`LogError::Corrupt`]
    /// for damage, [`LogError::Io`] if a file can't be read. Nothing was appended then, and the
    /// read may be tried again.
    pub fn read<D: Disk>(&mut self, disk: &D, until: Lsn, out: &mut Vec<u8>) -> Result<()> {
        if until <= self.position {
            return Ok(());
        }
        if let Some(paused) = self.paused.take()
            && self.read_on(LogScan::resume(disk, paused, until), out).is_ok()
        {
            return Ok(());
        }
        // The segment may be recycled, removed, or still being written. Reading the catalog again
        // shows which. One of several attempts succeeds without such a change.
        let mut last = Ok(());
        for _ in 0..3 {
            last = self.read_on(LogScan::follow(disk, &self.shape, self.position, until), out);
            if matches!(last, Ok(()) | Err(LogError::Mismatch { .. })) {
                break;
            }
        }
        last
    }

    fn read_on<D: Disk>(&mut self, scan: Result<LogScan<'_, D>>, out: &mut Vec<u8>) -> Result<()> {
        let mut scan = scan?;
        let len = out.len();
        while out.len() - len < READ_BYTES {
            match scan.next_chunk() {
                Ok(Some((_, bytes))) => out.extend_from_slice(bytes),
                Ok(None) if out.len() > len => break,
                // The bytes before the error are valid; the next read meets the error again.
                Err(_) if out.len() > len => {
                    self.position = scan.end();
                    return Ok(());
                }
                // `until` is durable, so more bytes exist. These files do not contain them.
                Ok(None) => return Err(LogError::Gap { wanted: self.position, oldest: None }),
                Err(error) => return Err(scan.gap_or(error)),
            }
        }
        self.position = scan.end();
        self.paused = Some(scan.pause());
        Ok(())
    }
}

/// Returns the newest resume point for a reader that has consumed every transaction up to `txn`,
/// among those that the headers of segments state. Returns `None` if none is old enough, or the log
/// does not reach back to it.
///
/// # Errors
/// Those of [`SegmentCatalog::read`].
pub fn resume_point_at_or_before<D: Disk>(disk: &D, shape: &LogShape, txn: u64) -> Result<Option<ResumePoint>> {
    let segment_catalog = SegmentCatalog::read_to(disk, shape, Depth::Headers)?;
    let resume_points = segment_catalog.segments.iter().map(|segment| ResumePoint::of(&segment.header.log_state));
    let readable = resume_points
        .filter(|resume_point| resume_point.txn <= txn && segment_catalog.segment_at(resume_point.position).is_some());
    Ok(readable.max_by_key(|resume_point| resume_point.position))
}

/// Returns the oldest resume point from which the log can be read to its end; `None` if no header
/// states one.
///
/// # Errors
/// Those of [`SegmentCatalog::read`]; [`LogError::Gap`] if a segment was recycled meanwhile.
pub fn oldest_resume_point<D: Disk>(disk: &D, shape: &LogShape) -> Result<Option<ResumePoint>> {
    let segment_catalog = SegmentCatalog::read_to(disk, shape, Depth::Headers)?;
    let mut first = None;
    for (index, segment) in segment_catalog.segments.iter().enumerate().rev() {
        let next = segment_catalog.segments.get(index + 1);
        // A missing number belongs to a segment that has been recycled, or that was never
        // completed.
        if next.is_some_and(|next| Some(next.header.number.0) != segment.header.number.0.checked_add(1)) {
            break;
        }
        if segment.end.is_none_or(|end| end > segment.header.start) {
            first = Some(index);
        }
    }
    let Some(first) = first else { return Ok(None) };
    let start = segment_catalog.segments[first].header.start;
    first_resume_point(disk, shape, &segment_catalog, start)
}

/// Returns the first resume point that is not before `start`; `None` if no header from there on
/// states one.
///
/// # Errors
/// As [`oldest_resume_point`].
pub fn resume_point_from<D: Disk>(disk: &D, shape: &LogShape, start: Lsn) -> Result<Option<ResumePoint>> {
    first_resume_point(disk, shape, &SegmentCatalog::read_to(disk, shape, Depth::Headers)?, start)
}

fn first_resume_point<D: Disk>(
    disk: &D,
    shape: &LogShape,
    segment_catalog: &SegmentCatalog,
    start: Lsn,
) -> Result<Option<ResumePoint>> {
    // A segment may begin in the middle of a record, so use the first resume point stated behind
    // its start.
    for segment in segment_catalog.segments.iter().filter(|segment| segment.header.start >= start) {
        if segment.header.log_state.safe_start >= start {
            return Ok(Some(ResumePoint::of(&segment.header.log_state)));
        }
        let mut scan = LogScan::follow(disk, shape, segment.header.start, Lsn(u64::MAX))?;
        while let Some(log_state) = scan.next_log_state()? {
            if log_state.safe_start >= start {
                return Ok(Some(ResumePoint::of(&log_state)));
            }
        }
    }
    Ok(None)
}
