//! Goal: reading damaged files returns the written bytes, up to some point at or past every stated
//! durable position, or an error that contains the file and the offset. It never returns other
//! bytes, and never panics. Method: two small segments are truncated at every byte, and changed at
//! every byte.

use crate::common::*;
use untorn_wal::{
    LogError, LogScan, LogState, Lsn, Retention, SegmentCatalog,
    limits::BLOCK_BYTES,
    testing::{Call, Fault, Rng, SimDisk},
};

/// A log of two segments, the older one with its tail superseded, the newer one with a torn last
/// batch. Also returns the newest durable position that a header states: all but the last flush.
fn sample() -> (SimDisk, Stream, Lsn) {
    let disk = SimDisk::new(1);
    let (mut log, mut stream, mut log_state) = (new_log(&disk, 2), Stream::default(), LogState::default());
    let mut rng = Rng(1);
    for len in [100, 5000, 10] {
        stream.push_random(&mut rng, len);
        flush(&mut log, &stream, &mut log_state).unwrap();
    }
    // A sync fails, so the bytes are written to a second segment.
    stream.push_random(&mut rng, 3000);
    disk.fail(Some(Call::Sync), 0, Fault::Io);
    flush(&mut log, &stream, &mut log_state).unwrap_err();
    log_state.durable =
        log.start_segment(&log_state, stream.left_after(log_state.durable), &mut stream.fill()).unwrap();
    let mut on_disk = Lsn::ZERO;
    for len in [5000, 200, 300] {
        on_disk = log_state.durable;
        stream.push_random(&mut rng, len);
        flush(&mut log, &stream, &mut log_state).unwrap();
    }
    (disk, stream, on_disk)
}

fn files(disk: &SimDisk) -> Vec<String> {
    let segment_catalog = SegmentCatalog::read(disk, &shape()).unwrap();
    segment_catalog.segments.into_iter().map(|s| s.file).collect()
}

/// Checks the result after damage: an error, or a prefix that contains all bytes that an undamaged
/// header states as durable. Returns where the prefix ends.
fn judge(disk: &SimDisk, stream: &Stream, note: &str) -> Option<Lsn> {
    match read_all(disk, Lsn::ZERO) {
        Ok((bytes, log_state)) => {
            assert!(stream.bytes.starts_with(&bytes), "{note}: wrong bytes");
            assert!(
                bytes.len() as u64 >= log_state.durable.0,
                "{note}: {} bytes, {} are stated",
                bytes.len(),
                log_state.durable
            );
            Some(Lsn(bytes.len() as u64))
        }
        Err(LogError::Corrupt { file: named, offset, what }) => {
            assert!(!what.is_empty() && offset <= shape().segment_bytes(), "{note}");
            assert!(named.starts_with("seg-"), "{note}: {named}");
            None
        }
        Err(e) => panic!("{note}: {e}"),
    }
}

#[test]
fn every_byte_flipped_in_turn() {
    let (disk, stream, last_log_state) = sample();
    assert!(last_log_state < stream.end());
    let last_file = files(&disk).pop().unwrap();
    let last_batch =
        disk.contents(&last_file).chunks(BLOCK_BYTES).rposition(|b| b.starts_with(b"untornWB")).unwrap() * BLOCK_BYTES;
    let (mut fine, mut errors) = (0, 0);
    for file in files(&disk) {
        let used = disk.contents(&file).iter().rposition(|&b| b != 0).unwrap();
        for offset in 0..used + BLOCK_BYTES {
            let mask = 1 << (offset % 8);
            disk.flip(&file, offset, mask);
            let note = format!("{file} byte {offset} ^ {mask:#x}");
            match judge(&disk, &stream, &note) {
                Some(end) => {
                    // Only the last header of all states the last but one flush, so only its own
                    // damage may hide that flush.
                    let in_last_batch = file == last_file && offset >= last_batch;
                    assert!(end >= last_log_state || in_last_batch, "{note}: lost what was stated");
                    fine += 1;
                }
                None => errors += 1,
            }
            disk.flip(&file, offset, mask);
        }
    }
    assert!(fine > 1000 && errors > 1000, "{fine} fine, {errors} errors");
}

#[test]
fn cut_at_every_byte() {
    let (disk, stream, _) = sample();
    for file in files(&disk) {
        let whole = disk.contents(&file);
        for len in 0..whole.len() {
            disk.set_contents(&file, &whole[..len]);
            match LogScan::open(&disk, &shape(), Lsn::ZERO).err() {
                Some(LogError::Corrupt { file: named, offset, .. }) => {
                    assert_eq!((named, offset), (file.clone(), len as u64))
                }
                other => panic!("{file} cut to {len} bytes: {other:?}"),
            }
        }
        disk.set_contents(&file, &whole);
    }
    check(&disk, &stream, Lsn::ZERO, stream.end(), "whole again");
}

#[test]
fn bytes_lost_from_every_byte_on() {
    let (disk, stream, _) = sample();
    for file in files(&disk) {
        let whole = disk.contents(&file);
        let used = whole.iter().rposition(|&b| b != 0).unwrap();
        for len in (0..used).filter(|at| at % BLOCK_BYTES < 130 || at % 61 == 0) {
            let mut cut = whole.clone();
            cut[len..].fill(0);
            disk.set_contents(&file, &cut);
            if len >= 128 {
                judge(&disk, &stream, &format!("{file} zero from {len} on"));
            }
        }
        disk.set_contents(&file, &whole);
    }
}

#[test]
fn a_read_error_is_an_error_and_never_a_torn_tail() {
    let (disk, stream, _) = sample();
    let mut reads = 0;
    loop {
        disk.fail(Some(Call::Read), reads, Fault::Io);
        match read_all(&disk, Lsn::ZERO) {
            Err(LogError::Io { what, .. }) => assert!(what.contains("seg-"), "{what}"),
            Err(e) => panic!("read {reads}: {e}"),
            Ok((bytes, _)) => {
                assert!(bytes == stream.bytes);
                break;
            }
        }
        reads += 1;
    }
    assert!(reads >= 5, "{reads} reads");
}

#[test]
fn what_the_log_no_longer_reaches_is_a_gap() {
    let disk = SimDisk::new(1);
    let (mut log, mut stream, mut log_state) = (new_log(&disk, 3), Stream::default(), LogState::default());
    let mut rng = Rng(2);
    while log.pool().stats().segments < 3 {
        stream.push_random(&mut rng, 3000);
        flush(&mut log, &stream, &mut log_state).unwrap();
    }
    // The oldest segment is recycled, and its file becomes another segment.
    let checkpoint = SegmentCatalog::read(&disk, &shape()).unwrap().segments[1].header.start;
    log_state.checkpoint_lsn = checkpoint;
    assert_eq!(log.pool().recycle(checkpoint, Retention::NOTHING).unwrap(), 1);
    while log.pool().stats().segments < 4 {
        stream.push_random(&mut rng, 3000);
        flush(&mut log, &stream, &mut log_state).unwrap();
    }
    check(&disk, &stream, checkpoint, log_state.durable, "from the checkpoint");
    match read_all(&disk, Lsn::ZERO) {
        Err(LogError::Gap { wanted: Lsn::ZERO, oldest }) => assert_eq!(oldest, Some(checkpoint)),
        other => panic!("{:?}", other.map(|o| o.1)),
    }
    // A segment in the middle is lost with its header.
    let middle = files(&disk)[1].clone();
    disk.set_contents(&middle, &vec![0; shape().segment_bytes() as usize]);
    assert!(matches!(read_all(&disk, checkpoint), Err(LogError::Corrupt { .. })));
    // A checkpoint beyond the end of the log states bytes as durable that the log does not contain.
    let beyond = stream.end().advanced_by(8);
    assert!(matches!(read_all(&disk, beyond), Err(LogError::Corrupt { .. })));
}

#[test]
fn an_untouched_log_is_empty_and_a_foreign_one_is_refused() {
    let disk = SimDisk::new(1);
    assert_eq!(read_all(&disk, Lsn::ZERO).unwrap().0, b"");
    assert!(matches!(read_all(&disk, Lsn(8)), Err(LogError::Gap { oldest: None, .. })));
    let (disk, _, _) = sample();
    let other = untorn_wal::LogShape::new(untorn_wal::StoreId([7; 16]), 64 << 10).unwrap();
    assert!(matches!(SegmentCatalog::read(&disk, &other), Err(LogError::Mismatch { .. })));
}
