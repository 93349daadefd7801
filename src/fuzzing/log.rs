//! The stream of records, and the segments that hold it.

use crate::TxnId;
use crate::fuzzing::{crc, set_u32, sized, u32_at, u64_at};
use crate::txn::ops::Ops;
use crate::txn::replay::Check;
use untorn_wal::limits::BLOCK_BYTES;
use untorn_wal::record;
use untorn_wal::record::Decoded;
use untorn_wal::segment::{BatchHeader, HeaderBlock, SegmentHeader};
use untorn_wal::segment_catalog::slot_name;
use untorn_wal::testing::SimDisk;
use untorn_wal::{
    LogError, LogFollower, LogScan, LogShape, Lsn, SegmentCatalog, StoreId, oldest_resume_point,
    resume_point_at_or_before,
};

/// The id of the store that the stream of [`records`] belongs to.
pub(super) const RECORDS_STORE: StoreId = StoreId([7; 16]);
/// Size of the segments of [`segments`].
pub(super) const SEGMENT: usize = 256 << 10;
/// Bytes before the segments: the position from which the log is read.
pub(super) const FROM_BYTES: usize = 8;

/// A piece of the stream: records one after the other, the first at the position that it contains.
pub fn records(bytes: &[u8]) {
    let from = if bytes.len() >= 16 { Lsn(u64_at(bytes, 8)) } else { Lsn::ZERO };
    check_records(bytes, from);
    let mut sealed = bytes.to_vec();
    seal_records(&mut sealed, from, RECORDS_STORE.seed());
    check_records(&sealed, from);
}

/// Corrects positions and checksums of the records, as far as their lengths lead.
pub(super) fn seal_records(bytes: &mut [u8], from: Lsn, seed: u32) {
    let mut at = 0;
    while at + 32 <= bytes.len() {
        let len = u32_at(bytes, at) as usize;
        let Some(record) = bytes.get_mut(at..at.saturating_add(32).saturating_add(len)) else { return };
        record[8..16].copy_from_slice(&from.0.wrapping_add(at as u64).to_le_bytes());
        record[4..8].fill(0);
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(record);
        let sum = hasher.finalize();
        set_u32(record, 4, sum);
        at += record::encoded_len(len);
    }
}

fn check_records(bytes: &[u8], from: Lsn) {
    let seed = RECORDS_STORE.seed();
    let (mut at, mut txns) = (0, Vec::new());
    while let Decoded::Record { txn, kind, payload, len } =
        record::decode(&bytes[at..], seed, from.advanced_by(at as u64))
    {
        assert!(len.is_multiple_of(8) && len == record::encoded_len(payload.len()) && at + len <= bytes.len());
        let lsn = from.advanced_by(at as u64);
        let mut encoded = Vec::new();
        assert_eq!(record::encode(&mut encoded, seed, lsn, txn, kind, payload), len);
        assert_eq!(encoded, bytes[at..at + len], "a record encodes to other bytes");
        assert_eq!(record::decode(&bytes[at..at + len - 1], seed, lsn), Decoded::Incomplete);
        check_ops(payload);
        txns.push((txn, at + len));
        at += len;
    }
    check_feed(bytes, from, seed);
}

fn check_ops(payload: &[u8]) {
    let mut ops = Ops::new(payload);
    loop {
        let at = payload.len() - ops.rest();
        match ops.next() {
            Some(Ok(op)) => {
                let mut encoded = Vec::new();
                op.encode(&mut encoded);
                assert_eq!(encoded, payload[at..at + encoded.len()], "an operation encodes to other bytes");
                assert_eq!(payload.len() - ops.rest(), at + encoded.len());
            }
            Some(Err(what)) => {
                assert!(!what.is_empty() && ops.next().is_none(), "operations follow one that is none");
                return;
            }
            None => return,
        }
    }
}

/// Checks that the check before recovery has the same result wherever the stream is cut.
fn check_feed(bytes: &[u8], from: Lsn, seed: u32) {
    let base = match record::decode(bytes, seed, from) {
        Decoded::Record { txn, .. } => TxnId::from_u64(txn.saturating_sub(1)),
        _ => TxnId::ZERO,
    };
    let fed = |size: usize| {
        // Every other keyspace number exists.
        let mut check = Check::new(seed, 4096, base, from, &|keyspace| Ok(keyspace.0 % 2 == 1));
        let failed = bytes.chunks(size).find_map(|piece| check.feed(piece).err()).map(|error| error.to_string());
        (failed, check.last())
    };
    let whole = fed(bytes.len().max(1));
    for size in [1 + bytes.len() / 3, 4096, 33] {
        assert_eq!(fed(size), whole, "the stream in pieces of {size} bytes");
    }
}

/// Eight bytes with the position from which to read, and then the files of a log, of which the last
/// may be cut short.
pub fn segments(bytes: &[u8]) {
    let Some((from, files)) = bytes.split_at_checked(FROM_BYTES) else { return };
    let from = Lsn(u64_at(from, 0));
    let store = StoreId(if files.len() >= 32 { sized(&files[16..32]) } else { [0; 16] });
    let mut files: Vec<Vec<u8>> = files.chunks(SEGMENT).take(6).map(<[u8]>::to_vec).collect();
    check_log(&files, store, from);
    files.iter_mut().for_each(|file| seal_segment(file, store));
    check_log(&files, store, from);
}

/// Corrects all checksums of a segment: the header's, and each batch's with its payload and its
/// chain.
pub(super) fn seal_segment(segment: &mut [u8], store: StoreId) {
    if segment.len() < BLOCK_BYTES || !segment.starts_with(b"untornWS") {
        return;
    }
    let mut chain = crc(&[&segment[..124]]);
    set_u32(segment, 124, chain);
    let mut at = BLOCK_BYTES;
    while segment.get(at..at + 8) == Some(b"untornWB") && at + 128 <= segment.len() {
        let len = u32_at(segment, at + 32) as usize;
        let Some(end) = at.checked_add(128).and_then(|start| start.checked_add(len)) else { return };
        if end > segment.len() {
            return;
        }
        set_u32(segment, at + 40, chain);
        let payload = crc(&[&segment[at + 16..at + 24], &segment[at + 128..end]]);
        set_u32(segment, at + 36, payload);
        chain = crc(&[&store.0, &segment[at..at + 124]]);
        set_u32(segment, at + 124, chain);
        at = end.next_multiple_of(BLOCK_BYTES);
    }
}

fn check_log(files: &[Vec<u8>], store: StoreId, from: Lsn) {
    let shape = LogShape::new(store, SEGMENT as u64).expect("a size that a segment may have");
    for file in files {
        check_headers(file, &shape);
    }
    let disk = SimDisk::new(1);
    for (slot, file) in files.iter().enumerate() {
        disk.set_contents(&slot_name(slot as u32 + 1), file);
    }
    let bytes_max = files.iter().map(Vec::len).sum::<usize>();
    if let Ok(segment_catalog) = SegmentCatalog::read(&disk, &shape) {
        assert!(segment_catalog.segments.is_sorted_by_key(|segment| segment.header.number));
        assert!(segment_catalog.segments.len() + segment_catalog.spares.len() <= files.len());
    }
    let anchors = [Ok(None), oldest_resume_point(&disk, &shape), resume_point_at_or_before(&disk, &shape, u64::MAX)];
    let anchors = anchors.into_iter().filter_map(Result::ok).flatten().map(|resume_point| resume_point.position);
    for from in anchors.chain([from, Lsn::ZERO]) {
        let read = read_log(&disk, &shape, from, bytes_max);
        assert_eq!(read, read_log(&disk, &shape, from, bytes_max), "the log reads differently the second time");
        let Ok(read) = read else { continue };
        let end = from.advanced_by(read.len() as u64);
        let (mut follow, mut followed) = (LogFollower::new(shape, from), Vec::new());
        while follow.position() < end {
            let (before, len) = (follow.position(), followed.len());
            match follow.read(&disk, end, &mut followed) {
                Ok(()) => assert!(follow.position() > before, "a follower does not advance"),
                Err(error) => panic!("a follower can't read what recovery can: {error}"),
            }
            assert_eq!(follow.position().bytes_since(before) as usize, followed.len() - len);
        }
        assert_eq!(followed, read);
    }
}

/// Returns what recovery reads from there on, or its error.
fn read_log(disk: &SimDisk, shape: &LogShape, from: Lsn, bytes_max: usize) -> Result<Vec<u8>, String> {
    let read = || -> Result<Vec<u8>, LogError> {
        let mut scan = LogScan::open(disk, shape, from)?;
        let durable = scan.newest_log_state().durable.max(from);
        let mut bytes = Vec::new();
        while let Some((lsn, chunk)) = scan.next_chunk()? {
            assert_eq!(lsn, from.advanced_by(bytes.len() as u64), "a gap in the stream");
            assert!(!chunk.is_empty());
            bytes.extend_from_slice(chunk);
            assert!(bytes.len() <= bytes_max, "more bytes than the files have");
        }
        assert_eq!(scan.end(), from.advanced_by(bytes.len() as u64));
        let is_empty = scan.segment_catalog().segments.is_empty();
        assert!(scan.end() >= durable || is_empty, "what was stated durable was not read");
        Ok(bytes)
    };
    read().map_err(|error| error.to_string())
}

/// Decodes headers of a segment and of batches at any position.
fn check_headers(file: &[u8], shape: &LogShape) {
    for (block, bytes) in file.chunks(BLOCK_BYTES).enumerate() {
        if let Some((header, crc)) = BatchHeader::decode(bytes, shape.store(), block as u32) {
            assert_eq!(header.encode(shape.store()), (sized(&bytes[..128]), crc), "a batch's header");
            assert!(header.lsn <= Lsn::MAX && header.log_state.durable <= Lsn::MAX && header.blocks() <= 256);
        }
        if let Some(bytes) = bytes.first_chunk::<BLOCK_BYTES>()
            && let Ok(HeaderBlock::Valid(header, crc)) = SegmentHeader::decode(bytes, shape, "seg-00000001")
        {
            assert_eq!(header.encode(shape), (sized(&bytes[..128]), crc), "a segment's header");
            assert!(header.number.0 > 0 && header.start <= Lsn::MAX && header.log_state.checkpoint_lsn <= Lsn::MAX);
        }
    }
}
