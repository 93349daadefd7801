//! The directory of log segments, and the conversion of the log's errors.

use crate::Error;
use crate::Result;
use crate::error::reason::{MismatchKind, Space};
use crate::files::dir::{self, Dir};
use untorn_wal::LogError;
use untorn_wal::RealDisk;

/// Opens the folder of the log.
pub(crate) fn open_log(dir: &Dir) -> Result<RealDisk> {
    dir.with_fd(|fd| RealDisk::open_under(fd, dir::WAL).map_err(Error::io("open of the log's directory")))
}

/// Converts an error of the log to one of the store.
pub(crate) fn log_error(error: LogError) -> Error {
    match error {
        LogError::Io { what, source } => Error::io(format!("wal: {what}"))(source),
        LogError::NoRoom | LogError::DiskFull { .. } => Error::DiskFull { what: Space::Log },
        LogError::Corrupt { file, offset, what } => {
            Error::Corrupt { file: format!("{}/{file}", dir::WAL), offset, what }
        }
        LogError::Mismatch { file, what } => {
            Error::Mismatch { file: format!("{}/{file}", dir::WAL), what: MismatchKind::Segment { what } }
        }
        other => Error::corrupt(dir::WAL, 0, other.to_string()),
    }
}
