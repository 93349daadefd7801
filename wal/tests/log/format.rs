//! Goal: the bytes on disk are the documented bytes, and remain the same in later versions. Method:
//! golden bytes, computed by another program from the layout in the documentation of `record` and
//! `segment`; and random records.

use proptest::prelude::*;
use untorn_wal::{
    Decoded, LogShape, LogState, Lsn, RecordKind, SegmentNumber, StoreId,
    limits::{BLOCK_BYTES, RECORD_HEADER_BYTES},
    record::{self, BadRecord},
    segment::{BatchHeader, HeaderBlock, SegmentHeader, payload_checksum},
};

const STORE: StoreId = StoreId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
const SALT: u64 = 0xA1A2_A3A4_A5A6_A7A8;
const RECORD: &str = "0500000041e6815d001000000000000008070605040302010100000000000000\
     68656c6c6f000000";
const SEGMENT_HEADER: &str = "756e746f726e57530100000010000000000102030405060708090a0b0c0d0e0f\
     0900000000000000a8a7a6a5a4a3a2a100100000000000000010000000000000\
     0700000000000000800f00000000000005000000000000000008000000000000\
     0300000000000000001b0a2f8c0100000000000000000000000000000016cf99";
const BATCH_HEADER: &str = "756e746f726e57420900000000000000a8a7a6a5a4a3a2a10010000000000000\
     28000000e6fe34fb0016cf990100000000100000000000000700000000000000\
     800f000000000000050000000000000000080000000000000300000000000000\
     00000000000000000000000000000000000000000000000000000000fb81e070";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn log_state() -> LogState {
    LogState {
        durable: Lsn(0x1000),
        durable_txn: 7,
        safe_start: Lsn(0xf80),
        checkpoint_txn: 5,
        checkpoint_lsn: Lsn(0x800),
        incarnation: 3,
    }
}

fn golden_record() -> Vec<u8> {
    let mut buf = Vec::new();
    let len = record::encode(&mut buf, STORE.seed(), Lsn(0x1000), 0x0102_0304_0506_0708, RecordKind::Commit, b"hello");
    assert_eq!(len, buf.len());
    buf
}

fn golden_segment_header() -> (SegmentHeader, LogShape) {
    let (number, start, started_ms) = (SegmentNumber(9), Lsn(0x1000), 0x018c_2f0a_1b00);
    let header = SegmentHeader { number, salt: SALT, start, log_state: log_state(), started_ms, region: 0 };
    (header, LogShape::new(STORE, 64 << 10).unwrap())
}

#[test]
fn a_record_has_its_golden_bytes() {
    assert_eq!(hex(&golden_record()), RECORD);
}

#[test]
fn a_segment_header_has_its_golden_bytes_and_reads_back() {
    let (header, shape) = golden_segment_header();
    let (bytes, crc) = header.encode(&shape);
    assert_eq!(hex(&bytes), SEGMENT_HEADER);
    let mut block = [0; BLOCK_BYTES];
    block[..bytes.len()].copy_from_slice(&bytes);
    assert_eq!(SegmentHeader::decode(&block, &shape, "f").unwrap(), HeaderBlock::Valid(header, crc));
}

#[test]
fn a_batch_header_has_its_golden_bytes_and_reads_back_in_its_own_place_only() {
    let (segment, shape) = golden_segment_header();
    let record = golden_record();
    let header = BatchHeader {
        number: segment.number,
        salt: SALT,
        lsn: Lsn(0x1000),
        payload_len: record.len() as u32,
        payload_crc: payload_checksum(SALT, &record),
        chain: segment.encode(&shape).1,
        block: 1,
        log_state: log_state(),
    };
    let (bytes, crc) = header.encode(STORE);
    assert_eq!(hex(&bytes), BATCH_HEADER);
    assert_eq!(BatchHeader::decode(&bytes, STORE, 1), Some((header, crc)));
    assert_eq!(BatchHeader::decode(&bytes, STORE, 2), None);
    assert_eq!(BatchHeader::decode(&bytes, StoreId([9; 16]), 1), None);
}

#[test]
fn foreign_and_newer_headers_are_mismatches_and_name_the_file() {
    let (header, shape) = golden_segment_header();
    let mut block = [0; BLOCK_BYTES];
    block[..128].copy_from_slice(&header.encode(&shape).0);
    for other in [LogShape::new(StoreId([9; 16]), 64 << 10), LogShape::new(STORE, 128 << 10)] {
        let error = SegmentHeader::decode(&block, &other.unwrap(), "seg-00000001").unwrap_err();
        assert!(matches!(&error, untorn_wal::LogError::Mismatch { file, .. } if file == "seg-00000001"), "{error}");
    }
    block[8] = 2;
    let crc = crc32fast::hash(&block[..124]);
    block[124..128].copy_from_slice(&crc.to_le_bytes());
    let error = SegmentHeader::decode(&block, &shape, "seg-00000001").unwrap_err();
    assert!(error.to_string().contains("version is 2"), "{error}");
}

fn kinds() -> impl Strategy<Value = RecordKind> {
    prop_oneof![
        Just(RecordKind::Commit),
        Just(RecordKind::Frame),
        Just(RecordKind::FrameCommit),
        Just(RecordKind::Abort)
    ]
}

proptest! {
    #[test]
    fn a_record_reads_back_and_ends_where_it_says(
        payload in proptest::collection::vec(any::<u8>(), 0..300),
        (seed, lsn, txn, kind) in (any::<u32>(), any::<u64>(), any::<u64>(), kinds()),
        before in 0..40_usize,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut buf = vec![0xEE; before];
        let len = record::encode(&mut buf, seed, Lsn(lsn), txn, kind, &payload);
        prop_assert_eq!(len, record::encoded_len(payload.len()));
        prop_assert_eq!(len % 8, 0);
        let mut bytes = buf.split_off(before);
        prop_assert_eq!(bytes.len(), len);
        bytes.extend_from_slice(b"what follows");
        let expected = Decoded::Record { txn, kind, payload: &payload, len };
        prop_assert_eq!(record::decode(&bytes, seed, Lsn(lsn)), expected);
        prop_assert_eq!(record::decode(&bytes[..cut.index(len)], seed, Lsn(lsn)), Decoded::Incomplete);
        let elsewhere = record::decode(&bytes, seed, Lsn(lsn ^ 8));
        prop_assert!(matches!(elsewhere, Decoded::Bad(BadRecord::Position { .. })), "{:?}", elsewhere);
        let other_store = record::decode(&bytes, !seed, Lsn(lsn));
        prop_assert!(matches!(other_store, Decoded::Bad(BadRecord::Checksum { .. })), "{:?}", other_store);
    }

    #[test]
    fn a_record_with_a_flipped_bit_is_no_record(
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let mut bytes = Vec::new();
        let len = record::encode(&mut bytes, 1, Lsn(64), 2, RecordKind::Frame, &payload);
        bytes[at.index(len)] ^= 1_u8 << bit;
        let decoded = record::decode(&bytes, 1, Lsn(64));
        prop_assert!(!matches!(decoded, Decoded::Record { .. }), "{:?}", decoded);
    }

    #[test]
    fn random_bytes_are_no_record_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), lsn in any::<u64>()) {
        let decoded = record::decode(&bytes, 7, Lsn(lsn));
        prop_assert!(!matches!(decoded, Decoded::Record { .. }), "{:?}", decoded);
    }

    #[test]
    fn a_payload_appended_in_place_gives_the_same_bytes(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
        let (mut whole, mut pieces) = (Vec::new(), Vec::new());
        record::encode(&mut whole, 1, Lsn(8), 2, RecordKind::Commit, &payload);
        let begun = record::begin(&mut pieces);
        prop_assert_eq!(pieces.len(), RECORD_HEADER_BYTES);
        for byte in &payload {
            pieces.push(*byte);
        }
        record::finish(&mut pieces, begun, 1, Lsn(8), 2, RecordKind::Commit);
        prop_assert_eq!(whole, pieces);
    }
}
