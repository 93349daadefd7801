//! The operations that a log record carries. They are logical: they name keys, not pages.
//!
//! | byte | operation | then |
//! |---|---|---|
//! | 1 | put | keyspace u64, key length u16, value length u32, key, value |
//! | 2 | delete | keyspace u64, key length u16, key |
//! | 3 | create keyspace | keyspace u64, name length u16, name |
//! | 4 | drop keyspace | keyspace u64, name length u16, name |
//! | 5 | put of a large value | keyspace u64, key length u16, value length u32, key; its bytes follow in 6 |
//! | 6 | bytes of the large value | length u32, bytes |
//! | 7 | new incarnation | last id of the one before, u64 |
//! | 8 | versions of dropped cells | the newest one, u64 |
//! | 9 | delete range | keyspace u64, start length u16, end length u16, start, end |
//! | 10 | savepoint | number of savepoints before it, u32 |
//! | 11 | rollback to a savepoint | number of savepoints before it, u32 |
//! | 12 | put of a value in a logged extent | keyspace u64, key length u16, value length u32, first page u32, CRC-32 of the value u32, key |
//!
//! A range contains its start and not its end. An empty end means the end of the keyspace: no key
//! is below the empty key, so no range could end there.
//!
//! A rollback undoes all operations since its savepoint, and removes the savepoints after it.
//!
//! All numbers are little-endian. An operation never spans two records.

use crate::files::extent::LoggedExtent;
use crate::{KeyspaceId, PageId, TxnId, Version};

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op<'a> {
    Put {
        keyspace: KeyspaceId,
        key: &'a [u8],
        value: &'a [u8],
    },
    Delete {
        keyspace: KeyspaceId,
        key: &'a [u8],
    },
    CreateKeyspace {
        keyspace: KeyspaceId,
        name: &'a str,
    },
    /// The name is for followers of the log, since the catalog no longer contains it.
    DropKeyspace {
        keyspace: KeyspaceId,
        name: &'a str,
    },
    LargePut {
        keyspace: KeyspaceId,
        key: &'a [u8],
        len: u32,
    },
    LargeBytes(&'a [u8]),
    /// The value is in the arena, in an extent that the transaction wrote before.
    PutExtent {
        keyspace: KeyspaceId,
        key: &'a [u8],
        extent: LoggedExtent,
    },
    Incarnation {
        last: TxnId,
    },
    /// Dropped cells have had versions up to this one.
    CellsFloor(Version),
    /// All keys from `start` on, below `end` if there is one.
    DeleteRange {
        keyspace: KeyspaceId,
        start: &'a [u8],
        end: Option<&'a [u8]>,
    },
    /// A rollback can undo the operations that follow.
    Savepoint {
        depth: u32,
    },
    /// Undoes all operations since the savepoint; the savepoint stays.
    RollBack {
        depth: u32,
    },
}

/// Values longer than this are logged in pieces, so that no record outgrows the ring.
pub(crate) const LARGE_VALUE_BYTES_MIN: usize = 16 << 10;

impl Op<'_> {
    /// Returns how many bytes the operation takes.
    pub(crate) fn encoded_len(&self) -> usize {
        1 + match self {
            Op::Put { key, value, .. } => 14 + key.len() + value.len(),
            Op::Delete { key, .. } => 10 + key.len(),
            Op::CreateKeyspace { name, .. } | Op::DropKeyspace { name, .. } => 10 + name.len(),
            Op::Incarnation { .. } | Op::CellsFloor(_) => 8,
            Op::LargePut { key, .. } => 14 + key.len(),
            Op::LargeBytes(bytes) => 4 + bytes.len(),
            Op::PutExtent { key, .. } => 22 + key.len(),
            Op::Savepoint { .. } | Op::RollBack { .. } => 4,
            Op::DeleteRange { start, end, .. } => 12 + start.len() + end.map_or(0, <[u8]>::len),
        }
    }

    /// Appends the operation.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let code_and_id = |out: &mut Vec<u8>, code: u8, id: u64| {
            out.push(code);
            out.extend_from_slice(&id.to_le_bytes());
        };
        match self {
            Op::Put { keyspace, key, value } => {
                code_and_id(out, 1, keyspace.0);
                out.extend_from_slice(&(key.len() as u16).to_le_bytes());
                out.extend_from_slice(&(value.len() as u32).to_le_bytes());
                out.extend_from_slice(key);
                out.extend_from_slice(value);
            }
            Op::Delete { keyspace, key } => {
                code_and_id(out, 2, keyspace.0);
                out.extend_from_slice(&(key.len() as u16).to_le_bytes());
                out.extend_from_slice(key);
            }
            Op::CreateKeyspace { keyspace, name } | Op::DropKeyspace { keyspace, name } => {
                code_and_id(out, if matches!(self, Op::CreateKeyspace { .. }) { 3 } else { 4 }, keyspace.0);
                out.extend_from_slice(&(name.len() as u16).to_le_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Op::LargePut { keyspace, key, len } => {
                code_and_id(out, 5, keyspace.0);
                out.extend_from_slice(&(key.len() as u16).to_le_bytes());
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(key);
            }
            Op::LargeBytes(bytes) => {
                out.push(6);
                out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Op::PutExtent { keyspace, key, extent } => {
                code_and_id(out, 12, keyspace.0);
                out.extend_from_slice(&(key.len() as u16).to_le_bytes());
                for number in [extent.len, extent.page.0, extent.crc] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out.extend_from_slice(key);
            }
            Op::Incarnation { last } => code_and_id(out, 7, last.as_u64()),
            Op::CellsFloor(version) => code_and_id(out, 8, version.as_u64()),
            Op::Savepoint { depth } | Op::RollBack { depth } => {
                out.push(if matches!(self, Op::Savepoint { .. }) { 10 } else { 11 });
                out.extend_from_slice(&depth.to_le_bytes());
            }
            Op::DeleteRange { keyspace, start, end } => {
                let end = end.unwrap_or_default();
                code_and_id(out, 9, keyspace.0);
                out.extend_from_slice(&(start.len() as u16).to_le_bytes());
                out.extend_from_slice(&(end.len() as u16).to_le_bytes());
                out.extend_from_slice(start);
                out.extend_from_slice(end);
            }
        }
    }
}

/// Decodes the operations of one record.
pub(crate) struct Ops<'a> {
    rest: &'a [u8],
}

impl<'a> Ops<'a> {
    pub(crate) fn new(payload: &'a [u8]) -> Ops<'a> {
        Ops { rest: payload }
    }

    /// Returns how many bytes are not decoded yet.
    pub(crate) fn rest(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| format!("an operation needs {len} bytes, {} are left", self.rest.len()))?;
        self.rest = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn decode(&mut self) -> Result<Op<'a>, String> {
        let code = self.number::<1>()?;
        Ok(match code {
            1 => {
                let keyspace = KeyspaceId(self.number::<8>()?);
                let key_len = self.number::<2>()? as usize;
                let value_len = self.number::<4>()? as usize;
                Op::Put { keyspace, key: self.take(key_len)?, value: self.take(value_len)? }
            }
            2 => {
                let keyspace = KeyspaceId(self.number::<8>()?);
                let key_len = self.number::<2>()? as usize;
                Op::Delete { keyspace, key: self.take(key_len)? }
            }
            3 | 4 => {
                let keyspace = KeyspaceId(self.number::<8>()?);
                let name_len = self.number::<2>()? as usize;
                let name = std::str::from_utf8(self.take(name_len)?)
                    .map_err(|_| "a keyspace's name is not UTF-8".to_string())?;
                if code == 3 { Op::CreateKeyspace { keyspace, name } } else { Op::DropKeyspace { keyspace, name } }
            }
            5 => {
                let keyspace = KeyspaceId(self.number::<8>()?);
                let key_len = self.number::<2>()? as usize;
                let len = self.number::<4>()? as u32;
                Op::LargePut { keyspace, key: self.take(key_len)?, len }
            }
            6 => {
                let len = self.number::<4>()? as usize;
                Op::LargeBytes(self.take(len)?)
            }
            7 => Op::Incarnation { last: TxnId::from_u64(self.number::<8>()?) },
            8 => Op::CellsFloor(Version::from_u64(self.number::<8>()?)),
            9 => {
                let keyspace = KeyspaceId(self.number::<8>()?);
                let start_len = self.number::<2>()? as usize;
                let end_len = self.number::<2>()? as usize;
                let start = self.take(start_len)?;
                let end = Some(self.take(end_len)?).filter(|end| !end.is_empty());
                if end.is_some_and(|end| end <= start) {
                    return Err("a range ends before its start".into());
                }
                Op::DeleteRange { keyspace, start, end }
            }
            10 => Op::Savepoint { depth: self.number::<4>()? as u32 },
            11 => Op::RollBack { depth: self.number::<4>()? as u32 },
            12 => {
                let keyspace = KeyspaceId(self.number::<8>()?);
                let key_len = self.number::<2>()? as usize;
                let len = self.number::<4>()? as u32;
                let page = PageId(self.number::<4>()? as u32);
                let extent = LoggedExtent { page, len, crc: self.number::<4>()? as u32 };
                Op::PutExtent { keyspace, key: self.take(key_len)?, extent }
            }
            other => return Err(format!("{other} is no operation")),
        })
    }
}

impl<'a> Iterator for Ops<'a> {
    /// An operation, or a description of what is wrong with the bytes.
    type Item = Result<Op<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let op = self.decode();
        if op.is_err() {
            self.rest = &[];
        }
        Some(op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each operation survives its encoding, and each cut of the bytes is an error.
    #[test]
    fn round_trip_and_every_cut() {
        let keyspace = KeyspaceId(7);
        let ops = [
            Op::Put { keyspace, key: b"", value: b"" },
            Op::Put { keyspace, key: b"key", value: &[9; 300] },
            Op::Delete { keyspace, key: b"gone" },
            Op::CreateKeyspace { keyspace, name: "näme" },
            Op::DropKeyspace { keyspace, name: "" },
            Op::LargePut { keyspace, key: b"large", len: 1 << 30 },
            Op::LargeBytes(&[1, 2, 3]),
            Op::PutExtent { keyspace, key: b"once", extent: LoggedExtent { page: PageId(9), len: 1 << 30, crc: 8 } },
            Op::Incarnation { last: TxnId::from_u64(99) },
            Op::CellsFloor(Version::from_u64(98)),
            Op::DeleteRange { keyspace, start: b"", end: None },
            Op::DeleteRange { keyspace, start: b"from", end: Some(b"to") },
            Op::Savepoint { depth: 3 },
            Op::RollBack { depth: 2 },
        ];
        for op in ops {
            let mut bytes = Vec::new();
            op.encode(&mut bytes);
            assert_eq!(bytes.len(), op.encoded_len());
            assert_eq!(Ops::new(&bytes).collect::<Result<Vec<_>, _>>().unwrap(), [op]);
            for cut in 1..bytes.len() {
                assert!(Ops::new(&bytes[..cut]).any(|op| op.is_err()), "{op:?} cut at {cut}");
            }
        }
    }

    /// Goal: no transaction removes an empty or inverted range, so none is read from a log either.
    #[test]
    fn a_range_that_ends_before_its_start_is_refused() {
        for (start, end) in [("b", "a"), ("b", "b")] {
            let (start, end) = (start.as_bytes(), Some(end.as_bytes()));
            let mut bytes = Vec::new();
            Op::DeleteRange { keyspace: KeyspaceId(1), start, end }.encode(&mut bytes);
            let error = Ops::new(&bytes).next().unwrap().unwrap_err();
            assert_eq!(error, "a range ends before its start");
        }
    }

    /// Goal: the bytes of each operation don't change unnoticed.
    #[test]
    fn golden_bytes() {
        let keyspace = KeyspaceId(0x0102);
        let extent = LoggedExtent { page: PageId(0x0304), len: 0x01_0000, crc: 0x0506_0708 };
        let golden: [(Op<'_>, &[u8]); 13] = [
            (
                Op::PutExtent { keyspace, key: b"k", extent },
                b"\x0c\x02\x01\0\0\0\0\0\0\x01\0\0\0\x01\0\x04\x03\0\0\x08\x07\x06\x05k",
            ),
            (Op::Put { keyspace, key: b"k", value: b"val" }, b"\x01\x02\x01\0\0\0\0\0\0\x01\0\x03\0\0\0kval"),
            (Op::Delete { keyspace, key: b"k" }, b"\x02\x02\x01\0\0\0\0\0\0\x01\0k"),
            (Op::CreateKeyspace { keyspace, name: "ab" }, b"\x03\x02\x01\0\0\0\0\0\0\x02\0ab"),
            (Op::DropKeyspace { keyspace, name: "ab" }, b"\x04\x02\x01\0\0\0\0\0\0\x02\0ab"),
            (Op::LargePut { keyspace, key: b"k", len: 0x8000 }, b"\x05\x02\x01\0\0\0\0\0\0\x01\0\0\x80\0\0k"),
            (Op::LargeBytes(b"bytes"), b"\x06\x05\0\0\0bytes"),
            (Op::Incarnation { last: TxnId::from_u64(9) }, b"\x07\x09\0\0\0\0\0\0\0"),
            (Op::CellsFloor(Version::from_u64(9)), b"\x08\x09\0\0\0\0\0\0\0"),
            (Op::DeleteRange { keyspace, start: b"k", end: Some(b"kz") }, b"\x09\x02\x01\0\0\0\0\0\0\x01\0\x02\0kkz"),
            (Op::DeleteRange { keyspace, start: b"", end: None }, b"\x09\x02\x01\0\0\0\0\0\0\0\0\0\0"),
            (Op::Savepoint { depth: 0x0102 }, b"\x0a\x02\x01\0\0"),
            (Op::RollBack { depth: 0x0102 }, b"\x0b\x02\x01\0\0"),
        ];
        for (op, bytes) in golden {
            let mut encoded = Vec::new();
            op.encode(&mut encoded);
            assert_eq!(encoded, bytes, "{op:?}");
        }
    }
}
