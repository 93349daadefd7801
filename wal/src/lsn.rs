//! Identifiers: a position in the stream, a segment, a store.

use crate::limits::RECORD_ALIGN_BYTES;
use std::fmt;

/// A position in the stream of records, in bytes. Headers of batches and segments are not part of
/// the stream. A position is always a multiple of 8, and the positions of a log only grow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The beginning of the stream.
    pub const ZERO: Lsn = Lsn(0);

    /// The highest stored position: adding to a position that was checked against it does not
    /// overflow.
    pub const MAX: Lsn = Lsn(1 << 62);

    /// Returns the position `bytes` later. The stream would take centuries to reach the end of the
    /// range. A damaged length saturates, and is then rejected as out of place.
    #[must_use]
    pub fn advanced_by(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }

    /// Returns the number of bytes between `earlier` and this position; 0 if `earlier` is later.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns whether this can be a position of a stored stream.
    #[must_use]
    pub fn is_stored(self) -> bool {
        self.is_aligned() && self <= Lsn::MAX
    }

    /// Returns whether the stream may be divided here.
    #[must_use]
    pub fn is_aligned(self) -> bool {
        self.0.is_multiple_of(RECORD_ALIGN_BYTES as u64)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of a segment. Each segment that is started gets a number above all existing numbers.
/// A file that is recycled gets a new number. 0 is never used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    /// The highest number of a segment.
    pub const MAX: SegmentNumber = SegmentNumber(1 << 62);
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The random identity of a store. Every checksum in the log depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StoreId(pub [u8; 16]);

impl StoreId {
    /// Returns the value that seeds the checksums of this store's records.
    #[must_use]
    pub fn seed(self) -> u32 {
        crc32fast::hash(&self.0)
    }
}
