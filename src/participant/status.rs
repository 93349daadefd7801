//! The status that a spawned logger reports to the client that spawned it, by a pipe that is its
//! standard output.
//!
//! | status | bytes |
//! |---|---|
//! | it serves | `ready` |
//! | it can't serve | `failed` and a line break, the version of the encoding, the error as a text, the error as [`codec`] encodes it |
//!
//! The client and the program that it spawns may be of different versions. The text is for that
//! case.

use crate::error::codec;
use crate::error::codec::{Coded, Encoded, Input};
use crate::error::reason::LoggerFailure;
use crate::{Error, Result};
use std::sync::Arc;
use untorn_wal::printable;
use untorn_wal::wire;

const READY: &[u8] = b"ready";
const FAILED: &[u8] = b"failed\n";

/// Returns the status of a logger that serves.
pub(crate) fn ready() -> Vec<u8> {
    READY.to_vec()
}

/// Returns the status of a logger that can't serve.
pub(crate) fn failed(error: &Error) -> Vec<u8> {
    let mut head = Encoded::default();
    u32::from(wire::VERSION).put(&mut head);
    error.to_string().put(&mut head);
    [FAILED, &head.bytes, &codec::encode(error)].concat()
}

/// Decodes the whole output of a spawned program; `None` if it ended without a status.
pub(crate) fn read(bytes: &[u8]) -> Option<Result<()>> {
    if bytes.is_empty() {
        return None;
    }
    if bytes == READY {
        return Some(Ok(()));
    }
    let status = bytes.strip_prefix(FAILED).and_then(|bytes| read_failed(bytes).ok());
    Some(Err(status.unwrap_or_else(|| foreign(printable(&String::from_utf8_lossy(bytes))))))
}

fn read_failed(bytes: &[u8]) -> codec::DecodeResult<Error> {
    let mut input = Input::new(bytes);
    let version = u32::get(&mut input)?;
    let text = String::get(&mut input)?;
    match codec::decode(input.bytes) {
        Ok(error) if version == u32::from(wire::VERSION) => Ok(reported(error)),
        _ => Ok(foreign(text)),
    }
}

fn foreign(output: String) -> Error {
    Error::LoggerUnavailable { reason: LoggerFailure::Foreign { output } }
}

/// Returns the error for a client whose logger failed with `error`. It is the same error if it
/// concerns the store's files, which the client uses as well.
fn reported(error: Error) -> Error {
    match error {
        Error::Corrupt { .. }
        | Error::Mismatch { .. }
        | Error::FormatVersion { .. }
        | Error::DiskFull { .. }
        | Error::Permission { .. }
        | Error::Io { .. } => error,
        other => Error::LoggerUnavailable { reason: LoggerFailure::Reported { error: Arc::new(other) } },
    }
}

#[cfg(test)]
mod tests {
    //! A client must decode what its logger reports, and report an error for what it can't decode.

    use super::*;

    fn read_error(bytes: &[u8]) -> Error {
        read(bytes).unwrap().unwrap_err()
    }

    #[test]
    fn a_status_is_read() {
        assert!(read(b"").is_none());
        assert!(matches!(read(&ready()), Some(Ok(()))));
        let error = read_error(&failed(&Error::corrupt("arena", 4096, "page 1")));
        assert!(matches!(&error, Error::Corrupt { file, offset: 4096, .. } if file == "arena"), "{error:?}");
        let error = read_error(&failed(&Error::Forked));
        let Error::LoggerUnavailable { reason: LoggerFailure::Reported { error } } = &error else {
            panic!("{error:?}")
        };
        assert!(matches!(**error, Error::Forked), "{error:?}");
    }

    /// The text of a status of another version is readable.
    #[test]
    fn the_status_of_another_version_is_a_text() {
        let mut bytes = failed(&Error::Stale);
        bytes[FAILED.len()] ^= 0x80;
        assert!(read_error(&bytes).to_string().contains(&Error::Stale.to_string()));
        let mut bytes = failed(&Error::Stale);
        bytes.truncate(bytes.len() - 1);
        assert!(read_error(&bytes).to_string().contains(&Error::Stale.to_string()));
    }

    #[test]
    fn the_output_of_another_program_is_named() {
        for output in [&b"hello \x1b[2J"[..], b"failed\nto start", b"readyy", b"\xff\xfe"] {
            let text = read_error(output).to_string();
            assert!(text.starts_with("no logger could be started: ") && printable(&text) == text, "{text}");
        }
    }
}
