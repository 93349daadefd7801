//! The write-ahead log of untorn: an ordered stream of records that survives power loss.
//!
//! This crate deals with bytes, positions and files. It has no notion of pages or keys, and never
//! interprets a record's payload. It contains no unsafe code.
//!
//! # Map of the modules
//! Imports point upward in this list.
//!
//! | module | its purpose |
//! |---|---|
//! | [`limits`] | sizes, and how they relate |
//! | [`lsn`] | [`Lsn`], [`SegmentNumber`], [`StoreId`] |
//! | [`error`] | [`LogError`]: errors, by what the caller can do about them |
//! | [`record`] | the bytes of one record; their only codec |
//! | [`segment`] | the bytes of segment headers and batch headers, and the log state in them |
//! | [`files`] | opening and creating files and folders safely |
//! | [`disk`] | the interface to the file system |
//! | [`segment_catalog`] | the segments of a log, and the range of valid bytes in each |
//! | [`scan`] | reading the stream back: valid, torn tail, or corrupt |
//! | [`follow`] | reading the stream while a logger runs and recycles segments |
//! | [`pool`] | the segment files: spares made ahead, recycling |
//! | [`log`] | writing: append, sync, and the one function that starts a segment |
//! | [`estimate`] | estimates of durations |
//! | [`lead_time`] | how long before a deadline a flush begins |
//! | [`flush`] | policies and deadlines: when to sync |
//! | [`response`] | bounds of the time that a commit takes |
//! | [`planted_bugs`] | deliberate bugs that the checks must catch; absent from ordinary builds |
//! | [`testing`] | a disk in memory that fails and loses power on command |
//!
//! Files of one subject share a folder: `storage` ([`files`], [`disk`], [`testing`]), `segments`
//! ([`segment`], [`segment_catalog`], [`pool`]), `reading` ([`scan`], [`follow`]) and `timing`
//! ([`estimate`], [`lead_time`], [`flush`], [`response`]).
//!
//! # How the pieces fit
//! Records ([`record`]) form one endless stream of bytes; a position in it is an [`Lsn`]. The log
//! writes pieces of that stream as *batches*. Each batch is one write, and begins on a fresh block.
//! The header of a batch contains the position of the piece in the stream, and the log state at the
//! time of the write, such as the durable position. Batches fill *segments*, files of one fixed
//! size. A segment begins at the durable position, so segments may overlap: from a segment's first
//! position on, the segment with the highest number is valid.
//!
//! # Invariants
//! * A block that may hold acknowledged bytes is never written again until the checkpoint has
//!   passed it.
//! * A failed write or sync is never retried on the same segment: [`log::Log::start_segment`]
//!   writes everything that is not durable once more, to another file.
//! * The header of a new segment reaches the disk after its first batches, so a valid segment
//!   always contains the bytes that it took over from the previous one.
//! * A batch is accepted as part of the stream only if it contains its segment's number and random
//!   salt, its own block index, the checksum of the batch before it, and valid checksums of its
//!   own.
//! * Every byte below a `durable` position that any valid header states must be readable; otherwise
//!   opening fails with an error that contains the file and the offset.
//!
//! # Remaining risk
//! The last flush before a crash is acknowledged before any later header can state it. If exactly
//! its bytes are damaged on the disk, and nothing was written after them, they look like a torn
//! tail. An idle store removes this risk by appending one empty batch. A segment header is written
//! into one 512-byte sector, and this crate assumes that the disk writes such a sector whole or not
//! at all.

#[cfg(not(target_os = "linux"))]
compile_error!("untorn-wal runs on Linux only: it uses direct I/O and holes of files as Linux defines them");

pub mod error;
pub mod le;
pub mod limits;
pub mod log;
pub mod lsn;
pub mod planted_bugs;
mod reading;
pub mod record;
mod segments;
mod storage;
mod timing;
pub mod wire;

pub use reading::{follow, scan};
pub use segments::{pool, segment, segment_catalog};
pub use storage::{disk, files, testing};
pub use timing::{estimate, flush, lead_time, response};

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

/// Returns text from a peer or a file in a form that is safe to print. Control characters, which a
/// terminal would execute, and characters that change the direction of the text are written as
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

/// Makes `cargo test` compile and run the program in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
