//! The bytes of segment headers and batch headers, and the log state in them, which only the logger
//! writes.
//!
//! A segment is a file of one fixed size. Block 0 is its header; batches follow from block 1 on,
//! each on a fresh block. All integers are little-endian; reserved bytes are zero and checked.
//!
//! ```text
//! segment header                          batch header
//!   0  magic "untornWS"                     0  magic "untornWB"
//!   8  format version       u32             8  segment number        u64
//!  12  blocks in a segment  u32            16  salt of the segment   u64
//!  16  store id             16 bytes       24  LSN of the payload    u64
//!  32  segment number       u64            32  payload length        u32
//!  40  salt                 u64            36  CRC-32 of the payload u32
//!  48  start LSN            u64            40  chain                 u32
//!  56  stated               48 bytes       44  block index           u32
//! 104  started, Unix ms     u64            48  stated                48 bytes
//! 112  region               u64            96  reserved              28 bytes
//! 120  reserved             u32
//! 124  CRC-32 of the above  u32           124  CRC-32 of the above   u32
//! stated: durable u64, durable txn u64, settled u64, checkpoint txn u64, checkpoint LSN u64, incarnation u32,
//!         reserved u32
//! ```
//! Three things stay the same in all versions, so that a newer file is distinguished from a damaged
//! one: the position, length and meaning of the segment header's checksum, and the positions of the
//! store id and the version. A batch header's checksum starts from the store id; the checksum of a
//! payload starts from the salt. The chain is the checksum of the previous batch header; for the
//! first batch, it is the checksum of the segment header.

use crate::le::{set_u32, set_u64, u32_at, u64_at};
use crate::{
    Lsn, SegmentNumber, StoreId,
    error::{LogError, Result},
    limits::{
        BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BATCH_PAYLOAD_BYTES_MAX, BLOCK_BYTES, SEGMENT_BYTES_MAX,
        SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES, SEGMENT_READY_BYTES_INITIAL,
    },
};

/// The version of the log's format.
pub const FORMAT_VERSION: u32 = 1;
const SEGMENT_MAGIC: [u8; 8] = *b"untornWS";
pub(crate) const BATCH_MAGIC: [u8; 8] = *b"untornWB";
const STATED_BYTES: usize = 48;
const CRC_AT: usize = 124;
const _: () = assert!(CRC_AT + 4 == SEGMENT_HEADER_BYTES && CRC_AT + 4 == BATCH_HEADER_BYTES);

/// The properties of a store's log that are fixed when the store is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogShape {
    store: StoreId,
    segment_bytes: u64,
}

impl LogShape {
    /// Returns the shape of a log of the store `store` with segments of `segment_bytes`.
    ///
    /// # Errors
    /// [`LogError::Invalid`] unless the size is a multiple of 4096 between 64 KiB and 1 GiB.
    pub fn new(store: StoreId, segment_bytes: u64) -> Result<Self> {
        let fits = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes)
            && segment_bytes.is_multiple_of(BLOCK_BYTES as u64);
        if !fits {
            return Err(LogError::Invalid {
                what: format!(
                    "a segment of {segment_bytes} bytes: it must be a multiple of {BLOCK_BYTES} between {SEGMENT_BYTES_MIN} and {SEGMENT_BYTES_MAX}"
                ),
            });
        }
        Ok(Self { store, segment_bytes })
    }

    /// Returns the store's identity.
    #[must_use]
    pub fn store(&self) -> StoreId {
        self.store
    }

    /// Returns the size of each segment in bytes.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Returns the number of ready bytes in the log's first segments, which is also the least in a
    /// spare. Small segments are ready as a whole.
    #[must_use]
    pub fn ready_bytes_initial(&self) -> u64 {
        if self.segment_bytes <= 2 * SEGMENT_READY_BYTES_INITIAL {
            self.segment_bytes
        } else {
            SEGMENT_READY_BYTES_INITIAL
        }
    }

    /// Returns the length of the longest record, with its header and padding, that may be written
    /// to this log: as much as the first batches of a fresh segment can contain. Recovery relies on
    /// it, since it may have to replace a record that a segment's end cut in two; see
    /// [`Log::start_segment`](crate::Log::start_segment).
    #[must_use]
    pub fn record_bytes_max(&self) -> u64 {
        let bytes = self.segment_bytes - BLOCK_BYTES as u64;
        let batches = bytes.div_ceil(BATCH_BYTES_MAX as u64);
        bytes - batches * BATCH_HEADER_BYTES as u64
    }

    /// Returns the number of blocks in a segment, including its header.
    #[must_use]
    pub fn segment_blocks(&self) -> u32 {
        (self.segment_bytes / BLOCK_BYTES as u64) as u32
    }
}

/// The state of the log that each segment header and batch header records. It is not part of the
/// stream. Each field only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogState {
    /// Everything below is durable: a sync of it has returned success. It may be inside a record
    /// that a segment's end cut in two.
    pub durable: Lsn,
    /// The newest transaction that is durable as a whole.
    pub durable_txn: u64,
    /// The safe start: a record begins here, and all records before it belong to transactions up to
    /// `durable_txn`, or to transactions that never commit. A reader that has consumed every
    /// transaction up to `durable_txn` resumes here. A segment may begin beyond it.
    pub safe_start: Lsn,
    /// The transaction of the newest finished checkpoint.
    pub checkpoint_txn: u64,
    /// Where replay begins after that checkpoint.
    pub checkpoint_lsn: Lsn,
    /// The incarnation of the store, raised by each recovery.
    pub incarnation: u32,
}

impl LogState {
    /// Returns the newer of both, field by field.
    #[must_use]
    pub fn newest(self, other: LogState) -> LogState {
        LogState {
            durable: self.durable.max(other.durable),
            durable_txn: self.durable_txn.max(other.durable_txn),
            safe_start: self.safe_start.max(other.safe_start),
            checkpoint_txn: self.checkpoint_txn.max(other.checkpoint_txn),
            checkpoint_lsn: self.checkpoint_lsn.max(other.checkpoint_lsn),
            incarnation: self.incarnation.max(other.incarnation),
        }
    }

    fn put(&self, out: &mut [u8]) {
        set_u64(out, 0, self.durable.0);
        set_u64(out, 8, self.durable_txn);
        set_u64(out, 16, self.safe_start.0);
        set_u64(out, 24, self.checkpoint_txn);
        set_u64(out, 32, self.checkpoint_lsn.0);
        set_u32(out, 40, self.incarnation);
        set_u32(out, 44, 0);
    }

    fn get(bytes: &[u8]) -> Option<LogState> {
        (u32_at(bytes, 44) == 0).then(|| LogState {
            durable: Lsn(u64_at(bytes, 0)),
            durable_txn: u64_at(bytes, 8),
            safe_start: Lsn(u64_at(bytes, 16)),
            checkpoint_txn: u64_at(bytes, 24),
            checkpoint_lsn: Lsn(u64_at(bytes, 32)),
            incarnation: u32_at(bytes, 40),
        })
    }
}

/// The header of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// The segment's number; above all others when it was started.
    pub number: SegmentNumber,
    /// A random value that no other segment shares.
    pub salt: u64,
    /// The position in the stream of its first batch.
    pub start: Lsn,
    /// The log state when the logger started the segment.
    pub log_state: LogState,
    /// When it was started, in milliseconds since 1970: all bytes before `start` are older.
    pub started_ms: u64,
    /// A value by which the caller recognises its segments: see
    /// [`Log::with_region`](crate::Log::with_region).
    pub region: u64,
}

/// The content of block 0 of a segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderBlock {
    /// A header, and its checksum, from which the batches are chained.
    Valid(SegmentHeader, u32),
    /// Only zeros: a spare.
    Blank,
    /// Neither a valid header nor only zeros.
    Damaged,
}

impl SegmentHeader {
    /// Returns the header's bytes and their checksum.
    #[must_use]
    pub fn encode(&self, shape: &LogShape) -> ([u8; SEGMENT_HEADER_BYTES], u32) {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        set_u32(&mut out, 8, FORMAT_VERSION);
        set_u32(&mut out, 12, shape.segment_blocks());
        out[16..32].copy_from_slice(&shape.store.0);
        set_u64(&mut out, 32, self.number.0);
        set_u64(&mut out, 40, self.salt);
        set_u64(&mut out, 48, self.start.0);
        self.log_state.put(&mut out[56..56 + STATED_BYTES]);
        set_u64(&mut out, 104, self.started_ms);
        set_u64(&mut out, 112, self.region);
        let crc = crc32fast::hash(&out[..CRC_AT]);
        set_u32(&mut out, CRC_AT, crc);
        (out, crc)
    }

    /// Reads block 0 of the segment file `file`.
    ///
    /// # Errors
    /// [`LogError::Mismatch`] if the header is valid but belongs to another store, version or
    /// segment size; [`LogError::Corrupt`] if its checksum is valid and no logger can have written
    /// it.
    pub fn decode(block: &[u8; BLOCK_BYTES], shape: &LogShape, file: &str) -> Result<HeaderBlock> {
        let mismatch = |what| Err(LogError::Mismatch { file: file.to_owned(), what });
        let bytes = &block[..SEGMENT_HEADER_BYTES];
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        if bytes[..8] != SEGMENT_MAGIC || u32_at(bytes, CRC_AT) != crc {
            let blank = bytes.iter().all(|&b| b == 0);
            return Ok(if blank { HeaderBlock::Blank } else { HeaderBlock::Damaged });
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return mismatch(format!("its format version is {version}, this program supports {FORMAT_VERSION}"));
        }
        if bytes[16..32] != shape.store.0 {
            return mismatch("it belongs to another store".to_owned());
        }
        let blocks = u32_at(bytes, 12);
        if blocks != shape.segment_blocks() {
            return mismatch(format!("it has {blocks} blocks, this store's segments have {}", shape.segment_blocks()));
        }
        let impossible = |offset, what| Err(LogError::Corrupt { file: file.to_owned(), offset, what });
        let log_state = LogState::get(&bytes[56..56 + STATED_BYTES]);
        let Some(log_state) = log_state.filter(|_| bytes[120..CRC_AT].iter().all(|&b| b == 0)) else {
            return impossible(0, "reserved bytes of the segment's header are not zero".to_owned());
        };
        let number = SegmentNumber(u64_at(bytes, 32));
        if !(SegmentNumber(1)..=SegmentNumber::MAX).contains(&number) {
            return impossible(32, format!("the segment has number {number}, expected 1 to {}", SegmentNumber::MAX));
        }
        let start = Lsn(u64_at(bytes, 48));
        let positions =
            [(48, start), (56, log_state.durable), (72, log_state.safe_start), (88, log_state.checkpoint_lsn)];
        if let Some((offset, found)) = positions.into_iter().find(|(_, position)| !position.is_stored()) {
            return impossible(offset, format!("position {found} is not a multiple of 8 up to {}", Lsn::MAX));
        }
        let (salt, started_ms, region) = (u64_at(bytes, 40), u64_at(bytes, 104), u64_at(bytes, 112));
        Ok(HeaderBlock::Valid(SegmentHeader { number, salt, start, log_state, started_ms, region }, crc))
    }
}

/// The header of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// The segment to which it was written.
    pub number: SegmentNumber,
    /// That segment's salt.
    pub salt: u64,
    /// The position of its payload in the stream.
    pub lsn: Lsn,
    /// The number of bytes of the stream in its payload; may be 0.
    pub payload_len: u32,
    /// The checksum of the payload; see [`payload_checksum`].
    pub payload_crc: u32,
    /// The checksum of the header before it.
    pub chain: u32,
    /// The block of the file at which the batch begins.
    pub block: u32,
    /// The log state when the logger wrote the batch.
    pub log_state: LogState,
}

impl BatchHeader {
    /// Returns the header's bytes and their checksum.
    #[must_use]
    pub fn encode(&self, store: StoreId) -> ([u8; BATCH_HEADER_BYTES], u32) {
        let mut out = [0; BATCH_HEADER_BYTES];
        out[..8].copy_from_slice(&BATCH_MAGIC);
        set_u64(&mut out, 8, self.number.0);
        set_u64(&mut out, 16, self.salt);
        set_u64(&mut out, 24, self.lsn.0);
        set_u32(&mut out, 32, self.payload_len);
        set_u32(&mut out, 36, self.payload_crc);
        set_u32(&mut out, 40, self.chain);
        set_u32(&mut out, 44, self.block);
        self.log_state.put(&mut out[48..48 + STATED_BYTES]);
        let crc = batch_checksum(store, &out);
        set_u32(&mut out, CRC_AT, crc);
        (out, crc)
    }

    /// Reads the batch header at the beginning of `bytes`, which are block `block` of the file.
    /// Returns `None` if there is no valid one. The caller checks whether the batch belongs there.
    #[must_use]
    pub fn decode(bytes: &[u8], store: StoreId, block: u32) -> Option<(BatchHeader, u32)> {
        let bytes = bytes.first_chunk::<BATCH_HEADER_BYTES>()?;
        if bytes[..8] != BATCH_MAGIC {
            return None;
        }
        let crc = u32_at(bytes, CRC_AT);
        if crc != batch_checksum(store, bytes) || bytes[96..CRC_AT].iter().any(|&b| b != 0) {
            return None;
        }
        let header = BatchHeader {
            number: SegmentNumber(u64_at(bytes, 8)),
            salt: u64_at(bytes, 16),
            lsn: Lsn(u64_at(bytes, 24)),
            payload_len: u32_at(bytes, 32),
            payload_crc: u32_at(bytes, 36),
            chain: u32_at(bytes, 40),
            block: u32_at(bytes, 44),
            log_state: LogState::get(&bytes[48..48 + STATED_BYTES])?,
        };
        let log_state = &header.log_state;
        let positions = [header.lsn, log_state.durable, log_state.safe_start, log_state.checkpoint_lsn];
        let sound = header.block == block
            && header.payload_len as usize <= BATCH_PAYLOAD_BYTES_MAX
            && positions.into_iter().all(Lsn::is_stored);
        sound.then_some((header, crc))
    }

    /// Returns how many blocks the batch takes.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        batch_blocks(self.payload_len as usize)
    }
}

/// Returns how many blocks a batch with a payload of `payload_len` bytes takes.
pub(crate) const fn batch_blocks(payload_len: usize) -> u32 {
    (BATCH_HEADER_BYTES + payload_len).div_ceil(BLOCK_BYTES) as u32
}

/// Returns the checksum of a batch's payload in a segment with this salt.
#[must_use]
pub fn payload_checksum(salt: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn batch_checksum(store: StoreId, header: &[u8; BATCH_HEADER_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&store.0);
    hasher.update(&header[..CRC_AT]);
    hasher.finalize()
}
