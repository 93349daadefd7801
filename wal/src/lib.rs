//! The write-ahead log of untorn: an ordered stream of records that survives power loss.
//!
//! This crate knows bytes, positions and files. It knows no pages and no keys, and it never looks
//! into a record's payload. It is safe Rust throughout.
//!
//! # Map of the modules
//! Imports point upward in this list.
//!
//! | module | its one job |
//! |---|---|
//! | [`limits`] | sizes, and how they relate |
//! | [`lsn`] | [`Lsn`], [`SegmentNumber`], [`StoreId`] |
//! | [`error`] | [`LogError`]: what can go wrong, by what the caller can do |
//! | [`record`] | the bytes of one record; the only codec of them |
//! | [`segment`] | the bytes of segment headers and batch headers, and what they state |
//! | [`files`] | how files and folders are opened, whatever their names lead to |
//! | [`disk`] | the seam to the file system |
//! | [`segment_catalog`] | which segments there are, and which bytes of each count |
//! | [`scan`] | reading the stream back: valid, torn tail, or corrupt |
//! | [`follow`] | reading it beside a running logger, which recycles what is read |
//! | [`pool`] | the segment files: spares made ahead, recycling |
//! | [`log`] | writing: append, sync, and the one function that starts a segment |
//! | [`estimate`] | how long something will take |
//! | [`lead_time`] | how long before a deadline a flush begins |
//! | [`flush`] | policies and deadlines: when to sync |
//! | [`response`] | how long a commit can take at the most |
//! | [`planted_bugs`] | deliberate bugs that the checks must catch, in no ordinary build |
//! | [`testing`] | a disk in memory that fails and loses power on command |
//!
//! # How the pieces fit
//! Records ([`record`]) form one endless stream of bytes; a position in it is an [`Lsn`]. The log
//! writes pieces of that stream as *batches*: one write each, beginning on a fresh block, with a
//! header that says where in the stream the piece lies and what was durable when it was written.
//! Batches fill *segments*, files of one fixed size. A segment is begun at the durable position, so
//! segments may overlap: from a segment's first position on, the highest number wins.
//!
//! # Invariants
//! * A block that may hold acknowledged bytes is never written again until the checkpoint has
//!   passed it.
//! * A failed write or sync is never retried on the same segment: [`log::Log::start_segment`]
//!   writes everything that is not durable once more, elsewhere.
//! * The header of a new segment reaches the disk after its first batches have, so a segment that
//!   counts always holds what it took over from its predecessor.
//! * Bytes pass for part of the stream only with their segment's number and random salt, their own
//!   block index, the checksum of the batch before them, and their own checksums.
//! * Whatever is below a `durable` that any valid header states must be readable; otherwise opening
//!   is an error that names the file and the offset.
//!
//! # What remains
//! The last flush before a crash is acknowledged before any later header can state it. If exactly
//! its bytes rot on the disk, and nothing has been written after them, they look like a torn tail.
//! An idle store closes that window by appending one empty batch. A segment header is written into
//! one 512-byte sector, and the disk is trusted to write such a sector whole or not at all.

pub mod disk;
pub mod error;
pub mod estimate;
pub mod files;
pub mod flush;
pub mod follow;
pub mod lead_time;
pub mod limits;
pub mod log;
pub mod lsn;
pub mod planted_bugs;
pub mod pool;
pub mod record;
pub mod response;
pub mod scan;
pub mod segment;
pub mod segment_catalog;
pub mod testing;
pub mod wire;

pub use disk::{Disk, DiskFile, RealDisk, give_to_owner};
pub use error::{LogError, Result};
pub use estimate::Estimate;
pub use flush::{Due, FlushPolicy, Pending, bytes_due, due};
pub use follow::{LogFollower, ResumePoint, oldest_resume_point, resume_point_at_or_before, resume_point_from};
pub use lead_time::LeadTime;
pub use log::{Appended, Log, blocks_for};
pub use lsn::{Lsn, SegmentNumber, StoreId};
pub use pool::{PoolStats, Retention, SegmentPool};
pub use record::{Decoded, RecordKind};
pub use scan::LogScan;
pub use segment::{LogShape, LogState};
pub use segment_catalog::{BrokenSegment, SegmentCatalog, holds_batches, set_aside};

/// Text that comes from outside, from a peer or a file, as it may be printed: control characters,
/// which a terminal would obey, and those that change the direction of the text are written as
/// escapes.
#[must_use]
pub fn printable(text: &str) -> String {
    let is_plain = |c: char| {
        !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut printed, c| {
        match is_plain(c) {
            true => printed.push(c),
            false => printed.extend(c.escape_default()),
        }
        printed
    })
}
