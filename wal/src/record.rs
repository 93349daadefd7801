//! The bytes of one record. This is their only codec: writers encode into the ring with it, and
//! replay and the change feed decode with it.
//!
//! ```text
//!  0  payload length u32     8  LSN of the record u64    24  kind u8
//!  4  CRC-32         u32    16  transaction id    u64    25  reserved, zero (7 bytes)
//! 32  payload, zero-padded to a multiple of 8
//! ```
//! Little-endian. The checksum starts from a seed that depends on the store and covers the header
//! (with the checksum as 0) and the payload. The checksum covers the LSN, so the same bytes
//! elsewhere in the stream are not a valid record.

use crate::le::{u32_at, u64_at};
use crate::{
    Lsn,
    limits::{RECORD_ALIGN_BYTES, RECORD_HEADER_BYTES, RECORD_PAYLOAD_BYTES_MAX},
    planted_bug,
};
use std::ops::Range;

const LENGTH: Range<usize> = 0..4;
const CRC: Range<usize> = 4..8;
const LSN: Range<usize> = 8..16;
const TXN: Range<usize> = 16..24;
const KIND: usize = 24;
const RESERVED: Range<usize> = 25..32;
const _: () = assert!(RESERVED.end == RECORD_HEADER_BYTES);

/// The kind of a record: its role in its transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RecordKind {
    /// A whole transaction, committed.
    Commit = 1,
    /// A frame of a transaction that is streamed because it outgrows the ring.
    Frame = 2,
    /// The last frame of a streamed transaction; commits it.
    FrameCommit = 3,
    /// The frames since the last commit belong to a transaction that will never commit.
    Abort = 4,
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Commit),
            2 => Some(Self::Frame),
            3 => Some(Self::FrameCommit),
            4 => Some(Self::Abort),
            _ => None,
        }
    }
}

/// The content of the stream at a position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decoded<'a> {
    /// A whole record.
    Record {
        /// The transaction that the record belongs to.
        txn: u64,
        /// The record's kind.
        kind: RecordKind,
        /// The record's payload.
        payload: &'a [u8],
        /// The number of bytes of the stream that the record takes; the next record follows them.
        len: usize,
    },
    /// The bytes end before the record does. More bytes may complete it.
    Incomplete,
    /// The bytes are not a record, and further bytes can't complete them to a record.
    Bad(BadRecord),
}

/// The reason why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadRecord {
    /// The record contains another position of the stream.
    #[error("the record is at position {expected}, but its header contains position {found}")]
    Position {
        /// The position of the record.
        expected: Lsn,
        /// The position in its header.
        found: Lsn,
    },
    /// Its length is beyond the limit.
    #[error("the record's payload of {0} bytes is beyond the limit")]
    Length(u32),
    /// Its kind is unknown.
    #[error("the record's kind {0} is unknown")]
    Kind(u8),
    /// Reserved bytes or padding are not zero.
    #[error("reserved bytes of the record are not zero")]
    Reserved,
    /// The record's checksum does not match its bytes.
    #[error("the record's checksum is {found:#010x}, its bytes give {expected:#010x}")]
    Checksum {
        /// The checksum of the bytes.
        expected: u32,
        /// The checksum in the record.
        found: u32,
    },
}

/// Returns how many bytes of the stream a record with a payload of `payload_len` bytes takes.
#[must_use]
pub const fn encoded_len(payload_len: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_len).next_multiple_of(RECORD_ALIGN_BYTES)
}

/// A record whose payload is being appended. See [`begin`].
#[derive(Debug)]
#[must_use = "a record that is begun must be finished"]
pub struct Begun {
    start: usize,
}

impl Begun {
    /// Returns where in the buffer the record begins.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.start
    }
}

/// Reserves the header of a record at the end of `buf`. The caller appends the payload to `buf` and
/// then calls [`finish`], so the payload is written once, in place.
pub fn begin(buf: &mut Vec<u8>) -> Begun {
    let start = buf.len();
    buf.resize(start + RECORD_HEADER_BYTES, 0);
    Begun { start }
}

/// Completes the record that [`begin`] reserved: everything behind its header is the payload.
/// Returns how many bytes of the stream it takes.
///
/// # Panics
/// If `buf` was truncated to before the header's end, or the payload is longer than
/// [`RECORD_PAYLOAD_BYTES_MAX`]; both are mistakes of the caller.
pub fn finish(buf: &mut Vec<u8>, begun: Begun, seed: u32, lsn: Lsn, txn: u64, kind: RecordKind) -> usize {
    let payload_len = buf[begun.start + RECORD_HEADER_BYTES..].len();
    assert!(
        payload_len <= RECORD_PAYLOAD_BYTES_MAX,
        "a record's payload is limited to {RECORD_PAYLOAD_BYTES_MAX} bytes"
    );
    let record = &mut buf[begun.start..];
    record[LENGTH].copy_from_slice(&(payload_len as u32).to_le_bytes());
    record[CRC].fill(0);
    record[LSN].copy_from_slice(&lsn.0.to_le_bytes());
    record[TXN].copy_from_slice(&txn.to_le_bytes());
    record[KIND] = kind as u8;
    record[RESERVED].fill(0);
    let crc = checksum(seed, record);
    record[CRC].copy_from_slice(&crc.to_le_bytes());
    let len = encoded_len(payload_len);
    buf.resize(begun.start + len, 0);
    len
}

/// Appends a whole record to `buf` and returns how many bytes of the stream it takes.
///
/// # Panics
/// If the payload is longer than [`RECORD_PAYLOAD_BYTES_MAX`].
pub fn encode(buf: &mut Vec<u8>, seed: u32, lsn: Lsn, txn: u64, kind: RecordKind, payload: &[u8]) -> usize {
    buf.reserve(encoded_len(payload.len()));
    let begun = begin(buf);
    buf.extend_from_slice(payload);
    finish(buf, begun, seed, lsn, txn, kind)
}

/// Reads the record at the beginning of `bytes`, which are at `expected_lsn` of the stream.
#[must_use]
pub fn decode(bytes: &[u8], seed: u32, expected_lsn: Lsn) -> Decoded<'_> {
    let Some(header) = bytes.first_chunk::<RECORD_HEADER_BYTES>() else {
        return Decoded::Incomplete;
    };
    let found = Lsn(u64_at(header, LSN.start));
    if found != expected_lsn && !planted_bug!("trust-recycled-segment") {
        return Decoded::Bad(BadRecord::Position { expected: expected_lsn, found });
    }
    let payload_len = u32_at(header, LENGTH.start);
    if payload_len as usize > RECORD_PAYLOAD_BYTES_MAX {
        return Decoded::Bad(BadRecord::Length(payload_len));
    }
    let Some(kind) = RecordKind::from_byte(header[KIND]) else {
        return Decoded::Bad(BadRecord::Kind(header[KIND]));
    };
    if header[RESERVED].iter().any(|&b| b != 0) {
        return Decoded::Bad(BadRecord::Reserved);
    }
    let len = encoded_len(payload_len as usize);
    let Some(record) = bytes.get(..len) else {
        return Decoded::Incomplete;
    };
    let (covered, padding) = record.split_at(RECORD_HEADER_BYTES + payload_len as usize);
    let expected = checksum(seed, covered);
    let found = u32_at(header, CRC.start);
    if expected != found && !planted_bug!("wal-without-crc") {
        return Decoded::Bad(BadRecord::Checksum { expected, found });
    }
    if padding.iter().any(|&b| b != 0) {
        return Decoded::Bad(BadRecord::Reserved);
    }
    Decoded::Record { txn: u64_at(header, TXN.start), kind, payload: &covered[RECORD_HEADER_BYTES..], len }
}

/// Returns the checksum of a record's header and payload, with its checksum field as 0.
fn checksum(seed: u32, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&record[..CRC.start]);
    hasher.update(&[0; 4]);
    hasher.update(&record[CRC.end..]);
    hasher.finalize()
}
