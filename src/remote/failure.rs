//! The store's errors as they cross the socket: each with its fields, and back.

use crate::{Error, LimitKind, TxnId};
use std::io;
use std::time::Duration;
use untorn_wal::printable;
use untorn_wal::wire;
use untorn_wal::wire::{Failure, Reply};

/// The longest text of an error that is sent, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// The reply that tells a client of an error.
pub(crate) fn encode(error: &Error) -> Vec<u8> {
    let text = error.to_string();
    let failure = match error {
        Error::LockTimeout { waited, holder } => Failure::LockTimeout { waited_ms: millis(*waited), holder },
        Error::LoggerStalled { waited, visible } => {
            Failure::LoggerStalled { waited_ms: millis(*waited), visible: visible.map(TxnId::as_u64) }
        }
        Error::LoggerUnavailable { reason } => Failure::LoggerUnavailable { reason },
        Error::NotDurable { txn, reason } => Failure::NotDurable { txn: txn.as_u64(), reason: cut(reason) },
        Error::DiskFull { what } => Failure::DiskFull { what },
        Error::Diverged { txn } => Failure::Diverged { txn: txn.as_u64() },
        Error::Stale => Failure::Stale,
        Error::Lagged { oldest } => Failure::Lagged { oldest: oldest.as_u64() },
        Error::NeedsRecovery { reason } => Failure::NeedsRecovery { reason: cut(reason) },
        Error::Corrupt { file, offset, what } => Failure::Corrupt { file, offset: *offset, what: cut(what) },
        Error::Mismatch { file, what } => Failure::Mismatch { file, what: cut(what) },
        Error::ReadOnly => Failure::ReadOnly,
        Error::NoKeyspace { name } => Failure::NoKeyspace { name },
        Error::NoCell { name } => Failure::NoCell { name },
        Error::Limit { what, found, limit } => Failure::Limit { what: what.text(), found: *found, limit: *limit },
        Error::ReservedName { name } => Failure::ReservedName { name },
        Error::OtherCell { name, found, wanted } => Failure::OtherCell { name, found: *found, wanted: *wanted },
        Error::Detached { reason } => Failure::Detached { reason: cut(reason) },
        Error::Invalid { what } => Failure::Invalid { what: cut(what) },
        Error::Io { what, source } => {
            let errno = source.raw_os_error().unwrap_or(libc::EIO);
            Failure::Io { what: cut(what), errno }
        }
        Error::NotAllowed { what } => Failure::NotAllowed { what: cut(what) },
        Error::Busy { what } => Failure::Busy { what: cut(what) },
        Error::Protocol { what } => Failure::Protocol { what: cut(what) },
        _ => Failure::Other { what: cut(&text) },
    };
    wire::encode(&Reply::Failed(failure)).expect("an error is shorter than a message may be")
}

/// The error that a server told of.
pub(crate) fn decode(failure: &Failure<'_>) -> Error {
    match *failure {
        Failure::LockTimeout { waited_ms, holder } => {
            Error::LockTimeout { waited: Duration::from_millis(waited_ms), holder: printable(holder) }
        }
        Failure::LoggerStalled { waited_ms, visible } => {
            Error::LoggerStalled { waited: Duration::from_millis(waited_ms), visible: visible.map(TxnId::from_u64) }
        }
        Failure::LoggerUnavailable { reason } => Error::LoggerUnavailable { reason: printable(reason) },
        Failure::NotDurable { txn, reason } => {
            Error::NotDurable { txn: TxnId::from_u64(txn), reason: printable(reason) }
        }
        Failure::DiskFull { what } => Error::DiskFull { what: printable(what) },
        Failure::Diverged { txn } => Error::Diverged { txn: TxnId::from_u64(txn) },
        Failure::Stale => Error::Stale,
        Failure::Lagged { oldest } => Error::Lagged { oldest: TxnId::from_u64(oldest) },
        Failure::NeedsRecovery { reason } => Error::NeedsRecovery { reason: printable(reason) },
        Failure::Corrupt { file, offset, what } => Error::corrupt(&printable(file), offset, printable(what)),
        Failure::Mismatch { file, what } => Error::Mismatch { file: printable(file), what: printable(what) },
        Failure::ReadOnly => Error::ReadOnly,
        Failure::NoKeyspace { name } => Error::NoKeyspace { name: printable(name) },
        Failure::NoCell { name } => Error::NoCell { name: printable(name) },
        Failure::Limit { what, found, limit } => Error::Limit { what: LimitKind::from_text(what), found, limit },
        Failure::ReservedName { name } => Error::ReservedName { name: printable(name) },
        Failure::OtherCell { name, found, wanted } => Error::OtherCell { name: printable(name), found, wanted },
        Failure::Detached { reason } => Error::Detached { reason: format!("server: {}", printable(reason)) },
        Failure::Invalid { what } => Error::Invalid { what: printable(what) },
        Failure::Io { what, errno } => {
            Error::Io { what: format!("server: {}", printable(what)), source: io::Error::from_raw_os_error(errno) }
        }
        Failure::NotAllowed { what } => Error::NotAllowed { what: printable(what) },
        Failure::Busy { what } => Error::Busy { what: printable(what) },
        Failure::Protocol { what } => Error::Protocol { what: printable(what) },
        Failure::Other { what } => Error::Io { what: "server".into(), source: io::Error::other(printable(what)) },
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
            Failure::Limit { what: "a\u{1b}[2J", found: 2, limit: 1 },
            Failure::Mismatch { file: "\u{7}", what: "\u{202e}" },
            Failure::Corrupt { file: "\n", offset: 1, what: "\0" },
        ];
        for failure in failures {
            let text = decode(&failure).to_string();
            assert_eq!(printable(&text), text, "{failure:?}");
        }
    }

    /// A limit of a server of another version is one, whatever it is called.
    #[test]
    fn an_unknown_limit_is_a_limit() {
        let error = decode(&Failure::Limit { what: "the number of moons", found: 2, limit: 1 });
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
