//! The store's errors as they cross the socket: each with its fields, and back.

use crate::{Error, LimitKind, TxnId};
use std::io;
use std::time::Duration;
use untorn_wal::printable;
use untorn_wal::wire;
use untorn_wal::wire::{ErrorReply, Reply};

/// The longest text of an error that is sent, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// The reply that tells a client of an error.
pub(crate) fn encode(error: &Error) -> Vec<u8> {
    let text = error.to_string();
    let failure = match error {
        Error::LockTimeout { waited, holder } => ErrorReply::LockTimeout { waited_ms: millis(*waited), holder },
        Error::LoggerStalled { waited, visible } => {
            ErrorReply::LoggerStalled { waited_ms: millis(*waited), visible: visible.map(TxnId::as_u64) }
        }
        Error::LoggerUnavailable { reason } => ErrorReply::LoggerUnavailable { reason },
        Error::NotDurable { txn, reason } => ErrorReply::NotDurable { txn: txn.as_u64(), reason: cut(reason) },
        Error::DiskFull { what } => ErrorReply::DiskFull { what },
        Error::Diverged { txn } => ErrorReply::Diverged { txn: txn.as_u64() },
        Error::Stale => ErrorReply::Stale,
        Error::Lagged { oldest } => ErrorReply::Lagged { oldest: oldest.as_u64() },
        Error::NeedsRecovery { reason } => ErrorReply::NeedsRecovery { reason: cut(reason) },
        Error::Corrupt { file, offset, what } => ErrorReply::Corrupt { file, offset: *offset, what: cut(what) },
        Error::Mismatch { file, what } => ErrorReply::Mismatch { file, what: cut(what) },
        Error::ReadOnly => ErrorReply::ReadOnly,
        Error::NoKeyspace { name } => ErrorReply::NoKeyspace { name },
        Error::NoCell { name } => ErrorReply::NoCell { name },
        Error::Limit { what, found, limit } => ErrorReply::Limit { what: what.text(), found: *found, limit: *limit },
        Error::ReservedName { name } => ErrorReply::ReservedName { name },
        Error::OtherCell { name, found, wanted } => ErrorReply::OtherCell { name, found: *found, wanted: *wanted },
        Error::Detached { reason } => ErrorReply::Detached { reason: cut(reason) },
        Error::Invalid { what } => ErrorReply::Invalid { what: cut(what) },
        Error::Io { what, source } => {
            let errno = source.raw_os_error().unwrap_or(libc::EIO);
            ErrorReply::Io { what: cut(what), errno }
        }
        Error::NotAllowed { what } => ErrorReply::NotAllowed { what: cut(what) },
        Error::Busy { what } => ErrorReply::Busy { what: cut(what) },
        Error::Protocol { what } => ErrorReply::Protocol { what: cut(what) },
        _ => ErrorReply::Other { what: cut(&text) },
    };
    wire::encode(&Reply::Failed(failure)).expect("an error is shorter than a message may be")
}

/// The error that a server told of.
pub(crate) fn decode(failure: &ErrorReply<'_>) -> Error {
    match *failure {
        ErrorReply::LockTimeout { waited_ms, holder } => {
            Error::LockTimeout { waited: Duration::from_millis(waited_ms), holder: printable(holder) }
        }
        ErrorReply::LoggerStalled { waited_ms, visible } => {
            Error::LoggerStalled { waited: Duration::from_millis(waited_ms), visible: visible.map(TxnId::from_u64) }
        }
        ErrorReply::LoggerUnavailable { reason } => Error::LoggerUnavailable { reason: printable(reason) },
        ErrorReply::NotDurable { txn, reason } => {
            Error::NotDurable { txn: TxnId::from_u64(txn), reason: printable(reason) }
        }
        ErrorReply::DiskFull { what } => Error::DiskFull { what: printable(what) },
        ErrorReply::Diverged { txn } => Error::Diverged { txn: TxnId::from_u64(txn) },
        ErrorReply::Stale => Error::Stale,
        ErrorReply::Lagged { oldest } => Error::Lagged { oldest: TxnId::from_u64(oldest) },
        ErrorReply::NeedsRecovery { reason } => Error::NeedsRecovery { reason: printable(reason) },
        ErrorReply::Corrupt { file, offset, what } => Error::corrupt(&printable(file), offset, printable(what)),
        ErrorReply::Mismatch { file, what } => Error::Mismatch { file: printable(file), what: printable(what) },
        ErrorReply::ReadOnly => Error::ReadOnly,
        ErrorReply::NoKeyspace { name } => Error::NoKeyspace { name: printable(name) },
        ErrorReply::NoCell { name } => Error::NoCell { name: printable(name) },
        ErrorReply::Limit { what, found, limit } => Error::Limit { what: LimitKind::from_text(what), found, limit },
        ErrorReply::ReservedName { name } => Error::ReservedName { name: printable(name) },
        ErrorReply::OtherCell { name, found, wanted } => Error::OtherCell { name: printable(name), found, wanted },
        ErrorReply::Detached { reason } => Error::Detached { reason: format!("server: {}", printable(reason)) },
        ErrorReply::Invalid { what } => Error::Invalid { what: printable(what) },
        ErrorReply::Io { what, errno } => {
            Error::Io { what: format!("server: {}", printable(what)), source: io::Error::from_raw_os_error(errno) }
        }
        ErrorReply::NotAllowed { what } => Error::NotAllowed { what: printable(what) },
        ErrorReply::Busy { what } => Error::Busy { what: printable(what) },
        ErrorReply::Protocol { what } => Error::Protocol { what: printable(what) },
        ErrorReply::Other { what } => Error::Io { what: "server".into(), source: io::Error::other(printable(what)) },
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().min(u128::from(u64::MAX)) as u64
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    //! Each error must come out at the other side as what it was.

    use super::*;

    #[test]
    fn errors_cross_with_their_fields() {
        let txn = TxnId::from_u64(77);
        let second = Duration::from_secs(1);
        let errors = [
            Error::LockTimeout { waited: second, holder: "h".into() },
            Error::LoggerStalled { waited: second, visible: Some(txn) },
            Error::LoggerStalled { waited: second, visible: None },
            Error::LoggerUnavailable { reason: "r".into() },
            Error::NotDurable { txn, reason: "r".into() },
            Error::DiskFull { what: "the log".into() },
            Error::Diverged { txn },
            Error::Stale,
            Error::Lagged { oldest: txn },
            Error::NeedsRecovery { reason: "r".into() },
            Error::corrupt("arena", 4096, "w"),
            Error::Mismatch { file: "wal".into(), what: "w".into() },
            Error::ReadOnly,
            Error::NoKeyspace { name: "n".into() },
            Error::NoCell { name: "n".into() },
            Error::Limit { what: LimitKind::KeyLength, found: 2000, limit: 1024 },
            Error::ReservedName { name: "untorn.n".into() },
            Error::OtherCell { name: "n".into(), found: Some(8), wanted: None },
            Error::Invalid { what: "w".into() },
            Error::NotAllowed { what: "w".into() },
            Error::Busy { what: "w".into() },
            Error::Protocol { what: "w".into() },
        ];
        for error in errors {
            let frame = encode(&error);
            let Ok(Reply::Failed(failure)) = wire::decode(&frame[wire::FRAME_HEADER_BYTES..]) else {
                panic!("{error}")
            };
            assert_eq!(format!("{:?}", decode(&failure)), format!("{error:?}"));
        }
    }

    /// Whatever text a server sends, the error has none that a terminal obeys.
    #[test]
    fn texts_of_a_server_are_printable() {
        let failures = [
            ErrorReply::Limit { what: "a\u{1b}[2J", found: 2, limit: 1 },
            ErrorReply::Mismatch { file: "\u{7}", what: "\u{202e}" },
            ErrorReply::Corrupt { file: "\n", offset: 1, what: "\0" },
        ];
        for failure in failures {
            let text = decode(&failure).to_string();
            assert_eq!(printable(&text), text, "{failure:?}");
        }
    }

    /// A limit of a server of another version is one, whatever it is called.
    #[test]
    fn an_unknown_limit_is_a_limit() {
        let error = decode(&ErrorReply::Limit { what: "the number of moons", found: 2, limit: 1 });
        assert!(matches!(error, Error::Limit { what: LimitKind::Other, found: 2, limit: 1 }), "{error:?}");
    }

    #[test]
    fn other_errors_cross_as_text_and_long_texts_are_cut() {
        let frame = encode(&Error::TransactionOpen);
        let Ok(Reply::Failed(failure)) = wire::decode(&frame[wire::FRAME_HEADER_BYTES..]) else { panic!() };
        assert!(decode(&failure).to_string().contains("open"), "{failure:?}");
        let frame = encode(&Error::Invalid { what: "ü".repeat(10_000) });
        assert!(frame.len() < 2 * TEXT_BYTES_MAX);
    }
}
