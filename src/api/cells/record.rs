//! The record of a cell or counter in the keyspace [`KEYSPACE`]: its last sample, under its name.
//!
//! ```text
//!  0  kind u8: 1 cell, 2 counter      8  generation u64: the transaction that created it
//!  1  reserved, zero (3 bytes)       16  version u64; 0 for a counter
//!  4  entry in the table u32         24  value: a cell's bytes, a counter's u64
//! ```
//! Little-endian.

use crate::shared::cells::CellKind;
use crate::{Error, Result, Version, limits};

/// The keyspace into which the logger samples cells and counters. Any process may read and follow
/// it; only the store writes it.
pub const KEYSPACE: &str = "untorn.cells";

const VALUE_AT: usize = 24;

/// A sample as a record of the keyspace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CellRecord<'v> {
    pub(crate) kind: CellKind,
    pub(crate) index: u32,
    pub(crate) generation: u64,
    pub(crate) version: Version,
    pub(crate) value: &'v [u8],
}

impl<'v> CellRecord<'v> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(VALUE_AT + self.value.len());
        bytes.push(match self.kind {
            CellKind::Cell { .. } => 1,
            CellKind::Counter => 2,
        });
        bytes.extend_from_slice(&[0; 3]);
        bytes.extend_from_slice(&self.index.to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.version.as_u64().to_le_bytes());
        bytes.extend_from_slice(self.value);
        bytes
    }

    /// # Errors
    /// [`Error::Corrupt`] that names the cell.
    pub(crate) fn decode(name: &[u8], bytes: &'v [u8]) -> Result<CellRecord<'v>> {
        let damaged = |what: &str| {
            let name = String::from_utf8_lossy(name);
            Error::corrupt(crate::files::dir::ARENA, 0, format!("the record of cell {name:?} {what}"))
        };
        let Some((fixed, value)) = bytes.split_at_checked(VALUE_AT) else { return Err(damaged("is too short")) };
        let number = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
        let kind = match (fixed[0], value.len()) {
            (1, len) if (1..=limits::CELL_LEN_MAX).contains(&len) => CellKind::Cell { len },
            (2, 8) => CellKind::Counter,
            (kind, len) => return Err(damaged(&format!("is of kind {kind} and holds {len} bytes"))),
        };
        let index = u32::from_le_bytes(fixed[4..8].try_into().expect("4 bytes"));
        if fixed[1..4] != [0; 3] || index as usize >= limits::CELLS_MAX || number(8) == 0 {
            return Err(damaged("has fields that make no sense"));
        }
        Ok(CellRecord { kind, index, generation: number(8), version: Version::from_u64(number(16)), value })
    }
}

/// A durable or visible sample of a cell or counter, as the keyspace [`KEYSPACE`] and the change
/// feed deliver it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Sample<'v> {
    /// A sample of a cell.
    Cell {
        /// The version that was sampled.
        version: Version,
        /// Its value.
        value: &'v [u8],
    },
    /// A sample of a counter: its value.
    Counter(u64),
}

impl<'v> Sample<'v> {
    /// Decodes a record of the keyspace [`KEYSPACE`]; `name` is its key.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is no such record.
    pub fn decode(name: &[u8], record: &'v [u8]) -> Result<Sample<'v>> {
        let record = CellRecord::decode(name, record)?;
        Ok(match record.kind {
            CellKind::Cell { .. } => Sample::Cell { version: record.version, value: record.value },
            CellKind::Counter => Sample::Counter(u64::from_le_bytes(record.value.try_into().expect("checked above"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the bytes of a record don't change unnoticed, and each cut of them is an error.
    #[test]
    fn golden_bytes_and_every_cut() {
        let version = Version::from_u64(0x0304);
        let cell = CellRecord { kind: CellKind::Cell { len: 3 }, index: 5, generation: 0x0102, version, value: b"abc" };
        let bytes = cell.encode();
        assert_eq!(bytes, *b"\x01\0\0\0\x05\0\0\0\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0abc");
        assert_eq!(CellRecord::decode(b"n", &bytes).unwrap(), cell);
        let count = 7u64.to_le_bytes();
        let counter =
            CellRecord { kind: CellKind::Counter, index: 1, generation: 9, version: Version::default(), value: &count };
        let bytes = counter.encode();
        assert_eq!(CellRecord::decode(b"n", &bytes).unwrap(), counter);
        assert_eq!(Sample::decode(b"n", &bytes).unwrap(), Sample::Counter(7));
        for cut in 0..bytes.len() {
            assert!(matches!(CellRecord::decode(b"n", &bytes[..cut]), Err(Error::Corrupt { .. })), "cut at {cut}");
        }
    }
}
