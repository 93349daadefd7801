//! The errors of the log, grouped by what the caller can do about them.

use crate::{Lsn, files::WrongKind};
use std::io;

/// The result of the calls of this crate.
pub type Result<T, E = LogError> = std::result::Result<T, E>;

/// An error of the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The operating system refused a call. After a failed write or sync the current segment takes
    /// no more bytes: start a new segment at the durable position.
    #[error("{what}: {source}")]
    Io {
        /// The operation that failed, and its file.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// There is no spare segment. Make a spare
    /// ([`SegmentPool::add_spare`](crate::SegmentPool::add_spare)) or recycle.
    #[error("the log has no spare segment")]
    NoRoom,
    /// The file system is full. The call can succeed once there is space again.
    #[error("no space left on the device for {what}")]
    DiskFull {
        /// The file or directory that could not be written.
        what: String,
    },
    /// Stored bytes that were acknowledged have changed.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Corrupt {
        /// The file's name in the log's directory.
        file: String,
        /// Byte offset in the file.
        offset: u64,
        /// What was expected and found.
        what: String,
    },
    /// The file belongs to another store, another format version or another segment size.
    #[error("{file} does not fit: {what}")]
    Mismatch {
        /// The file's name in the log's directory.
        file: String,
        /// What was expected and found.
        what: String,
    },
    /// The log does not reach back to the requested position.
    #[error("the log holds nothing at position {wanted}; it begins at {}", oldest.map_or("nothing".to_owned(), |l| l.to_string()))]
    Gap {
        /// The requested position.
        wanted: Lsn,
        /// The oldest position in the log.
        oldest: Option<Lsn>,
    },
    /// An earlier write or sync failed, or no segment has been started yet. Start a segment.
    #[error("the current segment takes no more bytes after a failure; a new one must be started")]
    NeedsSegment,
    /// The caller's position is not the log's position.
    #[error("the log is at position {expected}, not at {found}")]
    Position {
        /// The log's position.
        expected: Lsn,
        /// The position that the caller passed.
        found: Lsn,
    },
    /// An argument is invalid.
    #[error("{what}")]
    Invalid {
        /// A description of the error, with the limits.
        what: String,
    },
}

impl LogError {
    /// Converts a system error to its variant. A full disk or an exhausted quota is `DiskFull`; a
    /// name that does not lead to a regular file is `Mismatch`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> LogError {
        let what = what.into();
        move |source| match source.kind() {
            _ if let Some(wrong) = WrongKind::of(&source) => {
                LogError::Mismatch { file: wrong.name.clone(), what: wrong.what() }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                LogError::DiskFull { what }
            }
            _ => LogError::Io { what, source },
        }
    }
}
