//! What can go wrong with the log, by what the caller can do about it.

use crate::{Lsn, files::WrongKind};
use std::io;

/// What the calls of this crate return.
pub type Result<T, E = LogError> = std::result::Result<T, E>;

/// An error of the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The operating system refused a call. After a failed write or sync the current segment takes
    /// no more bytes: start a new one from the durable position.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, on which file.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// There is no spare segment. Make one
    /// ([`SegmentPool::add_spare`](crate::SegmentPool::add_spare)) or recycle.
    #[error("the log has no spare segment")]
    NoRoom,
    /// The file system is full. Goes away when there is room again.
    #[error("no space left on the device for {what}")]
    DiskFull {
        /// What could not be written.
        what: String,
    },
    /// Stored bytes that were acknowledged are not what was written.
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
    /// The log does not reach back to the position that was asked for.
    #[error("the log holds nothing at position {wanted}; it begins at {}", oldest.map_or("nothing".to_owned(), |l| l.to_string()))]
    Gap {
        /// The position that was asked for.
        wanted: Lsn,
        /// The oldest position that is there.
        oldest: Option<Lsn>,
    },
    /// An earlier write or sync failed, or no segment has been started yet. Start one.
    #[error("the current segment takes no more bytes after a failure; a new one must be started")]
    NeedsSegment,
    /// The caller's position is not where the log stands.
    #[error("the log stands at position {expected}, not at {found}")]
    Position {
        /// Where the log stands.
        expected: Lsn,
        /// What the caller passed.
        found: Lsn,
    },
    /// An argument makes no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong, with its limits.
        what: String,
    },
}

impl LogError {
    /// Turns a system error into the fitting variant: a full disk or an exhausted quota is
    /// `DiskFull`, a name that leads to no regular file is `Mismatch`.
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
