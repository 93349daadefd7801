//! Goal: if calls of the disk fail and the process dies later, the segments that the next open
//! finds still follow each other: the log reads from the oldest of them to its end. A failed call
//! may have changed the disk, so the pool must keep in memory what may be on the disk.
//!
//! Method: segments are started, freed, deleted, filled and reduced while single calls fail. After
//! each step, what is on the disk is read as the next open reads it.

use crate::common::{STORE, Stream, check, flush, new_log, new_log_of, read_all_of, shape};
use std::sync::Arc;
use std::time::Duration;
use untorn_wal::{
    Disk, Log, LogShape, LogState, Lsn, Retention, SegmentCatalog, SegmentPool,
    testing::{Call, Fault, Rng, SimDisk},
};

/// Makes one later call fail.
fn plan_failure(disk: &SimDisk, rng: &mut Rng) {
    let call = [None, Some(Call::Name), Some(Call::Write), Some(Call::Sync), Some(Call::SyncDir)];
    let fault = [Fault::Io, Fault::NoSpace, Fault::Short][rng.below(3) as usize];
    disk.fail(call[rng.below(5) as usize], rng.below(9), fault);
}

/// Writes to the log as the flush thread does, or starts a segment.
fn write(log: &mut Log<SimDisk>, stream: &mut Stream, log_state: &mut LogState, rng: &mut Rng) {
    if stream.left_after(log_state.durable) < 30_000 {
        let _ = stream.push_random(rng, 9000);
    }
    if rng.one_in(2) {
        log.abandon();
    }
    if rng.one_in(2) || flush(log, stream, log_state).is_err() {
        let left = stream.left_after(log_state.durable);
        if let Ok(durable) = log.start_segment(log_state, left, &mut stream.fill()) {
            log_state.durable = durable;
        }
    }
}

/// Changes files as the background thread does. A step that fails is repeated some time later.
fn change_files(pool: &SegmentPool<SimDisk>, durable: Lsn, rng: &mut Rng) {
    let retention = Retention { bytes: rng.below(6) * shape().segment_bytes(), age: Duration::MAX };
    let _ = match rng.below(16) {
        0..2 => pool.yield_kept(rng.one_in(2), || ()).map(drop),
        2 => pool.remove_spare().map(drop),
        3..10 => pool.recycle(durable, retention).map(drop),
        10 if rng.one_in(4) => pool.trim(2),
        11 => {
            pool.set_spares_max(2 + rng.below(6) as usize);
            Ok(())
        }
        _ => pool.add_spare_of(rng.below(16)),
    };
}

#[test]
fn the_headers_on_the_disk_follow_each_other_after_failed_calls() {
    let mut segments = 0;
    for seed in 0..120 {
        let mut rng = Rng(seed);
        let disk = SimDisk::new(seed);
        let mut log = new_log(&disk, 3);
        let pool = Arc::clone(log.pool());
        let (mut stream, mut log_state) = (Stream::default(), LogState::default());
        for step in 0..120 {
            if rng.one_in(3) {
                plan_failure(&disk, &mut rng);
            }
            match rng.one_in(2) {
                true => write(&mut log, &mut stream, &mut log_state, &mut rng),
                false => change_files(&pool, log_state.durable, &mut rng),
            }
            disk.clear_faults();
            let found = SegmentCatalog::read_headers(&disk, &shape()).unwrap().segments;
            let oldest = found.iter().map(|segment| segment.header.start).min().unwrap();
            segments += found.len();
            let numbers: Vec<u64> = found.iter().map(|segment| segment.header.number.0).collect();
            let note = format!("seed {seed}, step {step}, segments {numbers:?} from {oldest} on");
            let _ = check(&disk, &stream, oldest, log_state.durable, &note);
        }
    }
    assert!(segments > 20_000, "only {segments} segments were read");
}

/// Writes a record, and starts a segment after it.
fn start_next(log: &mut Log<SimDisk>, stream: &mut Stream, log_state: &mut LogState) {
    let _ = stream.push(1, &[7; 100]);
    flush(log, stream, log_state).unwrap();
    log_state.durable = log.start_segment(log_state, 0, &mut stream.fill()).unwrap();
}

/// The last sync of a start fails, and the header of the segment stays on the disk. In an earlier
/// version the header stayed until the file was used again. By then, the headers after it had been
/// erased.
#[test]
fn a_header_whose_sync_failed_is_erased_in_its_turn() {
    let disk = SimDisk::new(1);
    let mut log = new_log(&disk, 5);
    let pool = Arc::clone(log.pool());
    let (mut stream, mut log_state) = (Stream::default(), LogState::default());
    let _ = stream.push(1, &[7; 100]);
    let left = stream.end().0;
    disk.fail(Some(Call::Sync), 2, Fault::Io);
    log.start_segment(&log_state, left, &mut stream.fill()).unwrap_err();
    let found = SegmentCatalog::read_headers(&disk, &shape()).unwrap().segments;
    assert_eq!(found.len(), 2, "the header is on the disk");
    log_state.durable = log.start_segment(&log_state, left, &mut stream.fill()).unwrap();
    for _ in 0..2 {
        start_next(&mut log, &mut stream, &mut log_state);
    }
    pool.recycle(log_state.durable, Retention::NOTHING).unwrap();
    pool.trim(usize::MAX).unwrap();
    let found = SegmentCatalog::read_headers(&disk, &shape()).unwrap().segments;
    assert_eq!(found.len(), 1, "only the current segment has a header");
}

/// The spare that is taken has a header, and an older one can't be erased. The older header once
/// stayed on the disk alone.
#[test]
fn a_header_that_cannot_be_erased_does_not_stay_alone() {
    let shape = LogShape::new(STORE, 16 << 20).unwrap();
    for (call, fault) in [(Call::Name, Fault::Io), (Call::Write, Fault::NoSpace), (Call::Sync, Fault::Io)] {
        let disk = SimDisk::new(1);
        let mut log = new_log_of(&disk, &shape, 4);
        let pool = Arc::clone(log.pool());
        let (mut stream, mut log_state) = (Stream::default(), LogState::default());
        start_next(&mut log, &mut stream, &mut log_state);
        pool.add_spare_of(2000).unwrap();
        // The largest spare follows a segment that failed.
        log.abandon();
        let left = stream.left_after(log_state.durable);
        log_state.durable = log.start_segment(&log_state, left, &mut stream.fill()).unwrap();
        start_next(&mut log, &mut stream, &mut log_state);
        let everything = Retention { bytes: u64::MAX, age: Duration::MAX };
        pool.recycle(log_state.durable, everything).unwrap();
        while pool.yield_kept(false, || ()).unwrap() {}
        log.abandon();
        disk.fail(Some(call), 0, fault);
        log.start_segment(&log_state, 0, &mut stream.fill()).unwrap();
        let found = SegmentCatalog::read_headers(&disk, &shape).unwrap().segments;
        let oldest = found.iter().map(|segment| segment.header.start).min().unwrap();
        let (bytes, _) = read_all_of(&disk, &shape, oldest).unwrap();
        assert_eq!(oldest.advanced_by(bytes.len() as u64), stream.end(), "{call:?}");
    }
}

/// A spare could not be filled, and then not be deleted either. The next spare has its name; making
/// it once failed until the store was opened anew.
#[test]
fn a_file_that_is_left_over_does_not_end_the_making_of_spares() {
    let disk = SimDisk::new(1);
    let log = new_log(&disk, 2);
    let before = log.pool().stats().spares;
    disk.fail(Some(Call::Write), 0, Fault::NoSpace);
    // Creating succeeds, deleting under either name does not.
    (0..2).for_each(|_| disk.fail(Some(Call::Name), 1, Fault::Io));
    log.pool().add_spare().unwrap_err();
    disk.clear_faults();
    let is_left = |name: &String| name.starts_with("new-");
    assert!(disk.list().unwrap().iter().any(is_left));
    log.pool().add_spare().unwrap();
    assert_eq!(log.pool().stats().spares, before + 1);
    assert!(!disk.list().unwrap().iter().any(is_left));
}
