//! Goal: a commit that was promised blocks gets them, however commits are grouped and whichever
//! single call fails; spares are made, recycled and deleted as documented; and a real directory
//! behaves like the disk in memory. Method: random groupings against the count of free blocks; a
//! temporary directory.

use crate::common::*;
use std::{fs::File, sync::Arc};
use untorn_wal::{
    Disk, DiskFile, Log, LogError, LogScan, LogShape, LogState, Lsn, RealDisk, Retention, SegmentCatalog, SegmentPool,
    blocks_for,
    limits::{BATCH_PAYLOAD_BYTES_MAX, SEGMENT_BYTES_DEFAULT},
    record,
    testing::{Call, Fault, Rng, SimDisk},
};

#[test]
fn a_block_count_includes_every_header_and_the_padding() {
    assert_eq!(blocks_for(0), 1);
    assert_eq!(blocks_for(4096 - 128), 1);
    assert_eq!(blocks_for(4096 - 120), 2);
    let full = BATCH_PAYLOAD_BYTES_MAX as u64;
    assert_eq!(blocks_for(full), 256);
    assert_eq!(blocks_for(full + 8), 257);
    assert_eq!(blocks_for(3 * full), 768);
}

#[test]
fn whatever_was_given_room_fits_even_if_a_sync_fails() {
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let disk = SimDisk::new(seed);
        let (mut log, mut stream, mut log_state) = (new_log(&disk, 3), Stream::default(), LogState::default());
        let mut budget = log.free_blocks();
        assert_eq!(budget, 15 - 1 + 2 * 14);
        loop {
            // A group of commits, each of which claims its own blocks before it is visible.
            let mut claimed = false;
            for _ in 0..=rng.below(5) {
                let payload = if rng.one_in(4) { rng.below(30_000) } else { rng.below(400) } as usize;
                let Some(rest) = budget.checked_sub(blocks_for(record::encoded_len(payload) as u64)) else {
                    continue;
                };
                budget = rest;
                stream.push(1, &vec![1; payload]);
                claimed = true;
            }
            if !claimed {
                break; // A flush of nothing would write an empty batch: no block is claimed for it.
            }
            if rng.one_in(30) {
                disk.fail(Some(Call::Sync), 0, Fault::Io);
            }
            if let Err(error) = flush(&mut log, &stream, &mut log_state) {
                assert!(matches!(error, LogError::Io { .. }), "seed {seed}: {error}");
                // The one spare that is never counted pays for this; there is room for one failure.
                log_state.durable =
                    log.start_segment(&log_state, stream.left_after(log_state.durable), &mut stream.fill()).unwrap();
                while log_state.durable < stream.end() {
                    log_state.durable = log
                        .start_segment(&log_state, stream.left_after(log_state.durable), &mut stream.fill())
                        .unwrap();
                }
                break;
            }
            // The blocks that grouping saved are free again.
            assert!(
                log.free_blocks() >= budget || log.pool().stats().spares == 0,
                "seed {seed}: {} < {budget}",
                log.free_blocks()
            );
            if rng.one_in(2) {
                budget = budget.max(log.free_blocks());
            }
        }
        assert_eq!(log_state.durable, stream.end(), "seed {seed}");
        check(&disk, &stream, Lsn::ZERO, stream.end(), "all is there");
    }
}

/// Files that grow: what was promised fits whatever the sizes of the spares. This also holds if a
/// sync fails while the newest spares are larger than the current segment, or if a device without
/// room has left small ones.
#[test]
fn what_was_given_room_fits_while_the_files_grow() {
    let shape = LogShape::new(STORE, 8 << 20).unwrap();
    let mut failures = 0;
    for seed in 0..100 {
        let mut rng = Rng(seed);
        let disk = SimDisk::new(seed);
        let (mut log, mut stream, mut log_state) =
            (new_log_of(&disk, &shape, 2), Stream::default(), LogState::default());
        assert_eq!(log.pool().stats().bytes, 3 * (128 << 10));
        let fails_at = 1 + rng.below(60);
        let mut budget = log.free_blocks();
        for round in 0..80 {
            for _ in 0..rng.below(6) {
                let payload = if rng.one_in(3) { rng.below(250_000) } else { rng.below(2000) } as usize;
                let blocks = blocks_for(record::encoded_len(payload) as u64);
                if blocks <= budget {
                    budget -= blocks;
                    stream.push(1, &vec![1; payload]);
                }
            }
            if stream.left_after(log_state.durable) == 0 {
                log.pool().add_spare().unwrap();
                budget = budget.max(log.free_blocks());
                continue;
            }
            if round == fails_at {
                disk.fail(Some(Call::Sync), 0, Fault::Io);
            }
            if flush(&mut log, &stream, &mut log_state).is_err() {
                failures += 1;
                while log_state.durable < stream.end() {
                    log_state.durable = log
                        .start_segment(&log_state, stream.left_after(log_state.durable), &mut stream.fill())
                        .unwrap();
                }
                break;
            }
            if log.pool().stats().spares < 2 && rng.one_in(2) {
                log.pool().add_spare().unwrap();
            }
            budget = budget.max(log.free_blocks());
        }
        assert_eq!(log_state.durable, stream.end(), "seed {seed}");
        let (bytes, _) = read_all_of(&disk, &shape, Lsn::ZERO).unwrap();
        assert!(bytes == stream.bytes, "seed {seed}: wrong bytes");
    }
    assert!(failures > 25, "only {failures} syncs failed: nothing was tested");
}

/// A pool whose spares have 2 MiB, 1 MiB and 512 KiB of ready blocks.
fn pool_of_unequal_spares(disk: &SimDisk, shape: &LogShape) -> Arc<SegmentPool<SimDisk>> {
    let segment_catalog = SegmentCatalog::read(disk, shape).unwrap();
    let pool = SegmentPool::open(Arc::new(disk.clone()), &segment_catalog, Lsn::ZERO, Retention::NOTHING).unwrap();
    for blocks in [128, 256, 512] {
        pool.add_spare_of(blocks).unwrap();
    }
    pool
}

/// A segment takes no more than the largest spare has, for recovery may have to write all that no
/// header states to that spare.
#[test]
fn a_segment_takes_no_more_than_the_largest_spare() {
    let shape = LogShape::new(STORE, 8 << 20).unwrap();
    let disk = SimDisk::new(1);
    let mut log = Log::new(pool_of_unequal_spares(&disk, &shape));
    let (mut stream, state) = (Stream::default(), LogState::default());
    log.start_segment(&state, 0, &mut stream.fill()).unwrap();
    assert_eq!(log.blocks_left(), (511, 512));
    assert!(log.pool().lacks_successor());
    for _ in 0..14 {
        stream.push(1, &[7; 100_000]);
    }
    let appended = log.append(Lsn::ZERO, stream.left_after(Lsn::ZERO), &state, &mut stream.fill()).unwrap();
    assert!(appended.full && appended.to < stream.end());
    assert_eq!(log.blocks_left(), (256, 512));
    // With a spare of the same size, the segment takes more bytes.
    log.pool().add_spare().unwrap();
    assert!(!log.pool().lacks_successor());
    let appended = log.append(appended.to, stream.left_after(appended.to), &state, &mut stream.fill()).unwrap();
    assert!(!appended.full && appended.to == stream.end());
}

/// What was read from the log goes to one segment: a large enough spare is made, or nothing is
/// written.
#[test]
fn recovery_has_a_spare_that_takes_all_that_was_read() {
    let shape = LogShape::new(STORE, 8 << 20).unwrap();
    let disk = SimDisk::new(1);
    let log = Log::new(pool_of_unequal_spares(&disk, &shape));
    log.ensure_successor(2_000_000).unwrap();
    assert_eq!(log.pool().stats().spares, 3);
    disk.fail(Some(Call::Write), 0, Fault::NoSpace);
    assert!(matches!(log.ensure_successor(3_000_000), Err(LogError::DiskFull { .. })));
    assert_eq!(log.pool().stats().spares, 3);
    log.ensure_successor(3_000_000).unwrap();
    assert_eq!(log.pool().stats().spares, 4);
    let mut stream = Stream::default();
    for _ in 0..28 {
        stream.push(1, &[7; 100_000]);
    }
    let mut log = log;
    let durable = log.start_segment(&LogState::default(), stream.left_after(Lsn::ZERO), &mut stream.fill()).unwrap();
    assert_eq!(durable, stream.end());
}

/// Spares double with what is logged, up to the largest size; once they have, small files are
/// deleted, and never one that was promised.
#[test]
fn the_files_grow_with_what_is_logged_and_small_ones_go() {
    let shape = LogShape::new(STORE, 4 << 20).unwrap();
    let disk = SimDisk::new(1);
    let (mut log, mut stream, mut log_state) = (new_log_of(&disk, &shape, 2), Stream::default(), LogState::default());
    let mut sizes = Vec::new();
    for _ in 0..600 {
        stream.push(1, &[7; 30_000]);
        flush(&mut log, &stream, &mut log_state).unwrap();
        while log.pool().stats().spares < 2 {
            let before = log.pool().stats().bytes;
            log.pool().add_spare().unwrap();
            sizes.push((log.pool().stats().bytes - before) >> 10);
        }
    }
    assert!(sizes.is_sorted() && sizes.first() < sizes.last() && sizes.last() == Some(&4096), "{sizes:?}");
    let promised = log.free_blocks();
    let before = log.pool().stats();
    assert!(log.pool().recycle(log_state.durable, Retention::NOTHING).unwrap() > 0);
    let after = log.pool().stats();
    assert!(log.free_blocks() >= promised);
    assert!(after.bytes < before.bytes, "{before:?} {after:?}: no small file was deleted");
    // The next life finds them again as they are.
    let spares = SegmentCatalog::read(&disk, &shape).unwrap().spares;
    assert!(spares.iter().all(|name| disk.open(name).unwrap().ready_bytes().unwrap() >= 2 << 20));
    drop(log);
    let segment_catalog = SegmentCatalog::read(&disk, &shape).unwrap();
    let pool =
        SegmentPool::open(Arc::new(disk.clone()), &segment_catalog, log_state.durable, Retention::NOTHING).unwrap();
    assert_eq!(pool.stats().bytes, after.bytes);
}

#[test]
fn without_a_spare_there_is_no_room_and_the_segment_stays_as_it_was() {
    let disk = SimDisk::new(1);
    let (mut log, mut stream, mut log_state) = (new_log(&disk, 0), Stream::default(), LogState::default());
    assert_eq!(log.free_blocks(), 0);
    assert!(matches!(log.start_segment(&log_state, 0, &mut |_, _| ()), Err(LogError::NoRoom)));
    stream.push(1, b"still works");
    flush(&mut log, &stream, &mut log_state).unwrap();
    assert!(matches!(log.append(Lsn::ZERO, 8, &log_state, &mut |_, _| ()), Err(LogError::Position { .. })));
    assert!(matches!(log.append(log_state.durable, 7, &log_state, &mut |_, _| ()), Err(LogError::Invalid { .. })));
    log.pool().add_spare().unwrap();
    assert_eq!(log.free_blocks(), 13);
}

#[test]
fn a_full_disk_is_told_apart_and_leaves_no_file_behind() {
    let disk = SimDisk::new(1);
    let pool = open_pool(&disk, Lsn::ZERO).unwrap();
    disk.fail(Some(Call::Write), 0, Fault::NoSpace);
    assert!(matches!(pool.add_spare(), Err(LogError::DiskFull { .. })));
    assert_eq!(pool.stats(), untorn_wal::PoolStats::default());
    assert!(SegmentCatalog::read(&disk, &shape()).unwrap().spares.is_empty());
    pool.add_spare().unwrap();
    // Unfinished files of a dead process are removed.
    disk.set_contents("new-00000007", b"half");
    assert_eq!(open_pool(&disk, Lsn::ZERO).unwrap().stats().spares, 1);
    assert!(!untorn_wal::Disk::list(&disk).unwrap().contains(&"new-00000007".to_owned()));
}

#[test]
fn surplus_spares_are_deleted() {
    let disk = SimDisk::new(1);
    let log = new_log(&disk, 6);
    log.pool().set_spares_max(2);
    assert_eq!(log.pool().recycle(Lsn::ZERO, Retention::NOTHING).unwrap(), 0);
    let stats = log.pool().stats();
    assert_eq!((stats.segments, stats.spares, stats.bytes), (1, 2, 3 * 65536));
    assert_eq!(SegmentCatalog::read(&disk, &shape()).unwrap().spares.len(), 2);
}

#[test]
fn a_real_directory_holds_a_log_under_a_long_path() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(200)).join("e".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    let parent = File::open(&deep).unwrap();
    for segment_bytes in [64 << 10, SEGMENT_BYTES_DEFAULT] {
        let name = format!("wal-{segment_bytes}");
        let disk = Arc::new(RealDisk::create_under(&parent, &name).unwrap());
        let shape = LogShape::new(STORE, segment_bytes).unwrap();
        let pool = SegmentPool::open(
            Arc::clone(&disk),
            &SegmentCatalog::read(&*disk, &shape).unwrap(),
            Lsn::ZERO,
            Retention::NOTHING,
        )
        .unwrap();
        for _ in 0..4 {
            pool.add_spare().unwrap();
        }
        let mut log = Log::new(pool);
        let (mut stream, mut log_state, mut rng) = (Stream::default(), LogState::default(), Rng(1));
        log.start_segment(&log_state, 0, &mut |_, _| ()).unwrap();
        for _ in 0..40 {
            stream.push_random(&mut rng, 3000);
            let from = log.written().unwrap();
            let mut appended = log.append(from, stream.left_after(from), &log_state, &mut stream.fill()).unwrap();
            log_state.durable = log.sync().unwrap();
            while appended.full {
                log_state.durable =
                    log.start_segment(&log_state, stream.left_after(log_state.durable), &mut stream.fill()).unwrap();
                appended.full = log_state.durable < stream.end();
            }
        }
        let reopened = RealDisk::open_under(&parent, &name).unwrap();
        let mut scan = LogScan::open(&reopened, &shape, Lsn::ZERO).unwrap();
        let mut bytes = Vec::new();
        while let Some((_, chunk)) = scan.next_chunk().unwrap() {
            bytes.extend_from_slice(chunk);
        }
        assert!(bytes == stream.bytes);
        assert!(scan.newest_log_state().durable > Lsn::ZERO);
        give_space_back(&disk, &shape, log, &stream, &log_state);
    }
}

/// The log ends: two small spares remain, and the log is as it was. A pool of the same files
/// continues with them.
fn give_space_back(
    disk: &Arc<RealDisk>,
    shape: &LogShape,
    mut log: Log<RealDisk>,
    stream: &Stream,
    log_state: &LogState,
) {
    let pool = Arc::clone(log.pool());
    for _ in 0..4 {
        pool.add_spare_of(u64::from(shape.segment_blocks())).unwrap();
    }
    let before = pool.stats();
    pool.trim(2).unwrap();
    let after = pool.stats();
    assert_eq!((after.spares, after.segments), (2, before.segments));
    assert_eq!(after.bytes - after.segment_bytes, 2 * shape.ready_bytes_initial());
    pool.trim(2).unwrap();
    assert_eq!(pool.stats(), after);
    let segment_catalog = SegmentCatalog::read(&**disk, shape).unwrap();
    let again = SegmentPool::open(Arc::clone(disk), &segment_catalog, Lsn::ZERO, Retention::NOTHING).unwrap();
    assert_eq!(again.stats(), after);
    let mut scan = LogScan::open(&**disk, shape, Lsn::ZERO).unwrap();
    let mut bytes = Vec::new();
    while let Some((_, chunk)) = scan.next_chunk().unwrap() {
        bytes.extend_from_slice(chunk);
    }
    assert!(bytes == stream.bytes, "the log is as it was");
    // Segments that a checkpoint has freed keep their headers, also small ones beside a large
    // spare.
    for _ in 0..2 {
        log.start_segment(log_state, 0, &mut |_, _| unreachable!("nothing is to be copied")).unwrap();
    }
    pool.recycle(stream.end(), Retention::NOTHING).unwrap();
    pool.add_spare_of(u64::from(shape.segment_blocks())).unwrap();
    let spares = pool.stats().spares;
    pool.trim(spares).unwrap();
    let (after, expected) = (pool.stats(), spares as u64 * shape.ready_bytes_initial());
    assert_eq!((after.spares, after.bytes - after.segment_bytes), (spares, expected));
}
