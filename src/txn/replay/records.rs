//! The records of a stream that comes in pieces.

use crate::{Error, Result, TxnId};
use std::fmt::Display;
use untorn_wal::Lsn;
use untorn_wal::record;
use untorn_wal::record::{Decoded, RecordKind};

/// Decodes a stream of records. A piece of the stream may end within a record.
#[derive(Default)]
pub(super) struct RecordStream {
    seed: u32,
    /// The bytes that are not decoded yet, and the position of the first one.
    rest: Vec<u8>,
    at: Lsn,
    /// The stream ends here, whatever bytes follow.
    end: Option<Lsn>,
}

/// A whole record.
pub(super) struct WholeRecord<'r> {
    pub(super) txn: TxnId,
    pub(super) kind: RecordKind,
    pub(super) payload: &'r [u8],
    /// The position of its first byte, and of the byte after its last one.
    pub(super) at: Lsn,
    pub(super) end: Lsn,
}

impl RecordStream {
    /// Begins at `at`, where a record begins. `seed` is the checksum seed of the store's records.
    pub(super) fn new(seed: u32, at: Lsn, end: Option<Lsn>) -> RecordStream {
        RecordStream { seed, rest: Vec::new(), at, end }
    }

    /// Adds `bytes`, and calls `on_record` with each record that is whole now, until the bytes end
    /// or are no valid record. `on_record` returns what makes the record invalid, if anything does.
    /// Returns what is wrong with the first invalid record.
    ///
    /// # Errors
    /// Those of `on_record`.
    pub(super) fn advance(
        &mut self,
        bytes: &[u8],
        mut on_record: impl FnMut(WholeRecord<'_>) -> Result<Result<(), String>>,
    ) -> Result<Option<String>> {
        self.rest.extend_from_slice(bytes);
        let mut used = 0;
        let wrong = loop {
            if self.end == Some(self.at) {
                used = self.rest.len();
                break None;
            }
            match record::decode(&self.rest[used..], self.seed, self.at) {
                Decoded::Record { txn, kind, payload, len } => {
                    let end = Lsn(self.at.0 + len as u64);
                    let record = WholeRecord { txn: TxnId::from_u64(txn), kind, payload, at: self.at, end };
                    if let Err(what) = on_record(record)? {
                        break Some(what);
                    }
                    used += len;
                    self.at = end;
                }
                Decoded::Incomplete => break None,
                Decoded::Bad(reason) => break Some(reason.to_string()),
            }
        };
        self.rest.drain(..used);
        Ok(wrong)
    }

    /// Drops the bytes that are not decoded yet.
    pub(super) fn clear(&mut self) {
        self.rest.clear();
    }

    /// Returns where the last whole record ended.
    pub(super) fn at(&self) -> Lsn {
        self.at
    }

    /// Returns whether the stream ends with a whole record.
    pub(super) fn is_whole(&self) -> bool {
        self.rest.is_empty()
    }

    /// Returns the position of the next expected byte.
    pub(super) fn next(&self) -> Lsn {
        Lsn(self.at.0 + self.rest.len() as u64)
    }

    /// Returns the error for what [`RecordStream::advance`] found to be wrong.
    pub(super) fn check(&self, wrong: Option<String>) -> Result<()> {
        wrong.map_or(Ok(()), |what| Err(damaged(self.at, what)))
    }
}

/// Returns the error for damage to the record at `at`.
pub(super) fn damaged(at: Lsn, what: impl Display) -> Error {
    Error::corrupt("wal", at.0, format!("log position {}: {what}", at.0))
}
