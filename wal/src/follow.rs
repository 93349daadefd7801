//! Following the stream beside a running logger: copies of its bytes, from the segment files.
//!
//! A follower keeps no file open between two reads, holds nothing back, and is never waited for: the segments that it
//! reads may be recycled under it. So it looks at a segment's header again after each copy, and each batch carries its segment's
//! number and salt, its own position and checksums: what it returns is what was written there, or an error.
//!
//! | what happens | then |
//! |---|---|
//! | the segment ends: the logger has started another | the survey is taken again, once |
//! | the segment was recycled, or removed | [`LogError::Gap`], if another survey does not find the position either |
//! | bytes are damaged | [`LogError::Corrupt`] |

use crate::{
    Disk, Lsn, Stated,
    error::{LogError, Result},
    scan::{Paused, Scan},
    segment::LogShape,
    survey::{Depth, Survey},
};

/// A read returns once it has as many bytes as this, or a little more.
const READ_BYTES: usize = 256 << 10;

/// A follower of the stream. Its memory is bounded by two batches.
pub struct Follow {
    shape: LogShape,
    position: Lsn,
    paused: Option<Paused>,
}

/// A place to begin at: a record begins at `position`, and all before it is of transactions up to `txn`, or of none
/// that commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Anchor {
    /// The transaction's id.
    pub txn: u64,
    /// Where the next record begins.
    pub position: Lsn,
}

impl Anchor {
    fn of(stated: &Stated) -> Anchor {
        Anchor { txn: stated.durable_txn, position: stated.settled }
    }
}

impl Follow {
    /// A follower that begins at `from`.
    #[must_use]
    pub fn new(shape: LogShape, from: Lsn) -> Follow {
        Follow { shape, position: from, paused: None }
    }

    /// Up to where everything has been returned.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Appends the bytes from [`Follow::position`] on to `out`: at least one if there are any before `until`, which
    /// must be durable.
    ///
    /// # Errors
    /// [`LogError::Gap`] if the log does not hold the position any more, [`LogError::Corrupt`] for damage,
    /// [`LogError::Io`] if a file can't be read. Nothing was appended then, and the read may be tried again.
    pub fn read<D: Disk>(&mut self, disk: &D, until: Lsn, out: &mut Vec<u8>) -> Result<()> {
        if until <= self.position {
            return Ok(());
        }
        if let Some(paused) = self.paused.take()
            && self.read_on(Scan::resume(disk, paused, until), out).is_ok()
        {
            return Ok(());
        }
        // Recycled, removed, or just being written: a fresh look tells, and of several in a row one is not disturbed.
        let mut last = Ok(());
        for _ in 0..3 {
            last = self.read_on(Scan::follow(disk, &self.shape, self.position, until), out);
            if matches!(last, Ok(()) | Err(LogError::Mismatch { .. })) {
                break;
            }
        }
        last
    }

    fn read_on<D: Disk>(&mut self, scan: Result<Scan<'_, D>>, out: &mut Vec<u8>) -> Result<()> {
        let mut scan = scan?;
        let len = out.len();
        while out.len() - len < READ_BYTES {
            match scan.next_chunk() {
                Ok(Some((_, bytes))) => out.extend_from_slice(bytes),
                Ok(None) if out.len() > len => break,
                // What came before is good; the next read meets this again.
                Err(_) if out.len() > len => {
                    self.position = scan.end();
                    return Ok(());
                }
                // `until` is durable, so there is more, and this is not it.
                Ok(None) => return Err(LogError::Gap { wanted: self.position, oldest: None }),
                Err(error) => return Err(scan.gap_or(error)),
            }
        }
        self.position = scan.end();
        self.paused = Some(scan.pause());
        Ok(())
    }
}

/// The newest place to begin at for somebody who knows all up to `txn`, among those that the headers of segments state;
/// `None` if there is none so old, or the log does not reach back to it.
///
/// # Errors
/// Those of [`Survey::take`].
pub fn anchor_at_or_before<D: Disk>(disk: &D, shape: &LogShape, txn: u64) -> Result<Option<Anchor>> {
    let survey = Survey::take_to(disk, shape, Depth::Headers)?;
    let anchors = survey.segments.iter().map(|segment| Anchor::of(&segment.header.stated));
    let readable = anchors.filter(|anchor| anchor.txn <= txn && survey.segment_at(anchor.position).is_some());
    Ok(readable.max_by_key(|anchor| anchor.position))
}

/// The oldest place to begin at from which the log can be read to its end; `None` if no header states one.
///
/// # Errors
/// Those of [`Survey::take`]; [`LogError::Gap`] if a segment was recycled meanwhile.
pub fn oldest_anchor<D: Disk>(disk: &D, shape: &LogShape) -> Result<Option<Anchor>> {
    let survey = Survey::take_to(disk, shape, Depth::Headers)?;
    let mut first = None;
    for (index, segment) in survey.segments.iter().enumerate().rev() {
        let next = survey.segments.get(index + 1);
        // A number that is missing was a segment that has been recycled, or one that never came to be.
        if next.is_some_and(|next| Some(next.header.number.0) != segment.header.number.0.checked_add(1)) {
            break;
        }
        if segment.end.is_none_or(|end| end > segment.header.start) {
            first = Some(index);
        }
    }
    let Some(first) = first else { return Ok(None) };
    let start = survey.segments[first].header.start;
    first_anchor(disk, shape, &survey, start)
}

/// The first place to begin at that is not before `start`; `None` if no header from there on states
/// one.
///
/// # Errors
/// As [`oldest_anchor`].
pub fn anchor_from<D: Disk>(disk: &D, shape: &LogShape, start: Lsn) -> Result<Option<Anchor>> {
    first_anchor(disk, shape, &Survey::take_to(disk, shape, Depth::Headers)?, start)
}

fn first_anchor<D: Disk>(disk: &D, shape: &LogShape, survey: &Survey, start: Lsn) -> Result<Option<Anchor>> {
    // A segment may begin in the middle of a record: the first place that is stated behind its start.
    for segment in survey.segments.iter().filter(|segment| segment.header.start >= start) {
        if segment.header.stated.settled >= start {
            return Ok(Some(Anchor::of(&segment.header.stated)));
        }
        let mut scan = Scan::follow(disk, shape, segment.header.start, Lsn(u64::MAX))?;
        while let Some(stated) = scan.next_stated()? {
            if stated.settled >= start {
                return Ok(Some(Anchor::of(&stated)));
            }
        }
    }
    Ok(None)
}
