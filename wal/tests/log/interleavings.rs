//! Goal: the log survives interleavings that are known to break other designs. Method: each
//! interleaving runs step by step on a disk in memory. That disk loses the pages that a failed sync
//! left clean.

use crate::common::*;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use untorn_wal::{
    Disk, Log, LogError, LogScan, LogState, Lsn, Retention, SegmentCatalog, SegmentPool,
    limits::BLOCK_BYTES,
    testing::{Call, Fault, SimDisk, SimFile},
};

fn started(disk: &SimDisk) -> (Log<SimDisk>, Stream, LogState) {
    (new_log(disk, 4), Stream::default(), LogState::default())
}

fn newest_file(disk: &SimDisk) -> String {
    SegmentCatalog::read(disk, &shape()).unwrap().segments.pop().unwrap().file
}

/// fdatasync fails, and the logger is killed before it handles the failure. Its successor finds the
/// bytes in clean pages of the page cache. A sync would return success, although the bytes never
/// reached the disk. So the successor writes everything past the durable position again.
#[test]
fn a_failed_sync_whose_logger_is_killed_loses_nothing_that_is_acknowledged_later() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (mut log, mut stream, mut log_state) = started(&disk);
        stream.push(1, b"first");
        flush(&mut log, &stream, &mut log_state).unwrap();
        let acknowledged = log_state.durable;
        stream.push(2, &[2; 9000]);
        disk.fail(Some(Call::Sync), 0, Fault::Io);
        flush(&mut log, &stream, &mut log_state).unwrap_err();
        assert_eq!(log_state.durable, acknowledged);
        drop(log);

        let (cached, _) = check(&disk, &stream, Lsn::ZERO, acknowledged, "through the page cache");
        assert_eq!(cached, stream.end(), "the cache shows what the disk may not have");
        let mut successor = Log::new(open_pool(&disk, Lsn::ZERO).unwrap());
        let left = stream.left_after(log_state.durable);
        log_state.durable = successor.start_segment(&log_state, left, &mut stream.fill()).unwrap();
        assert_eq!(log_state.durable, stream.end());
        let after = disk.power_cut_keeping(|_, _| false);
        check(&after, &stream, Lsn::ZERO, log_state.durable, "after a power cut");
    }
}

/// A power cut keeps record 2 and not record 1. After recovery a record of the same length takes
/// 1's place and is acknowledged. The power is cut again: record 2 must not reappear behind it.
#[test]
fn a_record_of_a_lost_future_never_follows_its_replacement() {
    let disk = SimDisk::new(1);
    let (mut log, mut stream, mut log_state) = started(&disk);
    stream.push(1, b"kept");
    flush(&mut log, &stream, &mut log_state).unwrap();
    let kept = stream.clone();
    for (txn, payload) in [(2, b"record 1"), (3, b"record 2")] {
        let from = stream.end();
        stream.push(txn, payload);
        let _ = log.append(from, stream.left_after(from), &log_state, &mut stream.fill()).unwrap();
    }
    // Block 1 holds what was kept, 2 holds record 1, 3 holds record 2.
    let record_2 = 3 * BLOCK_BYTES / 512;
    let disk = disk.power_cut_keeping(|_, sector| sector >= record_2);
    let end = check(&disk, &kept, Lsn::ZERO, log_state.durable, "after the first cut").0;
    assert!(disk.contents(&newest_file(&disk))[3 * BLOCK_BYTES..].starts_with(b"untornWB"), "record 2 is on the disk");

    let mut replaced = kept.clone();
    let mut log = Log::new(open_pool(&disk, Lsn::ZERO).unwrap());
    log.pool().add_spare().unwrap();
    log_state.durable = log.start_segment(&log_state, 0, &mut |_, _| unreachable!()).unwrap();
    assert_eq!(log_state.durable, end);
    replaced.push(2, b"instead!");
    flush(&mut log, &replaced, &mut log_state).unwrap();
    assert_eq!(replaced.end(), kept.end().advanced_by(40));
    for keep in [false, true] {
        let after = disk.power_cut_keeping(|_, _| keep);
        assert_eq!(check(&after, &replaced, Lsn::ZERO, log_state.durable, "after the second cut").0, replaced.end());
    }
}

/// As before, but the recovered log is written to the very same file again: only salt and number
/// distinguish the old batch from a new one.
#[test]
fn old_batches_in_a_recycled_file_never_pass() {
    let disk = SimDisk::new(1);
    let (mut log, mut stream, mut log_state) = started(&disk);
    for txn in 0..4 {
        stream.push(txn, &[7; 3000]);
        flush(&mut log, &stream, &mut log_state).unwrap();
    }
    let old_file = newest_file(&disk);
    let old = disk.contents(&old_file);
    log.start_segment(&log_state, 0, &mut |_, _| unreachable!()).unwrap();
    log_state.checkpoint_lsn = log_state.durable;
    assert_eq!(log.pool().recycle(log_state.checkpoint_lsn, Retention::NOTHING).unwrap(), 1);
    while newest_file(&disk) != old_file {
        log.pool().add_spare().unwrap();
        log.start_segment(&log_state, 0, &mut |_, _| unreachable!()).unwrap();
    }
    // There is one new batch. The old batches behind it are still complete.
    stream.push(9, &[9; 3000]);
    flush(&mut log, &stream, &mut log_state).unwrap();
    let now = disk.contents(&old_file);
    assert!(now[2 * BLOCK_BYTES..] == old[2 * BLOCK_BYTES..] && old[2 * BLOCK_BYTES..].starts_with(b"untornWB"));
    let (end, _) = check(&disk, &stream, log_state.checkpoint_lsn, log_state.durable, "with old batches behind");
    assert_eq!(end, stream.end());
    // The old batch 1 in the place of the new batch 1 is not accepted: the scan returns no bytes.
    let mut forged = now.clone();
    forged[BLOCK_BYTES..2 * BLOCK_BYTES].copy_from_slice(&old[BLOCK_BYTES..2 * BLOCK_BYTES]);
    disk.set_contents(&old_file, &forged);
    let (bytes, _) = read_all(&disk, log_state.checkpoint_lsn).unwrap();
    assert!(bytes.is_empty());
}

/// Two loggers in turn start segments at the same position, and only the second acknowledges. What
/// the first wrote past that position never counts, whichever of its blocks reached the disk.
#[test]
fn of_two_segments_with_the_same_start_the_later_counts() {
    let disk = SimDisk::new(1);
    let (mut log, mut stream, mut log_state) = started(&disk);
    stream.push(1, b"before both");
    flush(&mut log, &stream, &mut log_state).unwrap();
    let before = stream.clone();

    let mut first = Log::new(open_pool(&disk, Lsn::ZERO).unwrap());
    first.start_segment(&log_state, 0, &mut |_, _| unreachable!()).unwrap();
    stream.push(2, b"of the first logger");
    let _ =
        first.append(log_state.durable, stream.left_after(log_state.durable), &log_state, &mut stream.fill()).unwrap();
    drop((log, first));

    let disk = disk.power_cut_keeping(|_, _| true);
    let mut second = Log::new(open_pool(&disk, Lsn::ZERO).unwrap());
    assert_eq!(second.start_segment(&log_state, 0, &mut |_, _| unreachable!()).unwrap(), log_state.durable);
    let mut stream = before;
    stream.push(2, b"of the second logger");
    flush(&mut second, &stream, &mut log_state).unwrap();
    let starts: Vec<Lsn> =
        SegmentCatalog::read(&disk, &shape()).unwrap().segments.iter().map(|s| s.header.start).collect();
    assert_eq!(starts[1], starts[2]);
    assert_eq!(check(&disk, &stream, Lsn::ZERO, log_state.durable, "the second counts").0, stream.end());
}

/// An acknowledged flush that nothing states yet, and recovery starts a segment at the last stated
/// position. If the power fails between its header and its batches, the acknowledged bytes must
/// still be found.
#[test]
fn a_segment_counts_only_once_it_holds_what_it_takes_over() {
    let base = SimDisk::new(1);
    let (mut log, mut stream, mut log_state) = started(&base);
    for txn in 0..3 {
        stream.push(txn, &[txn as u8; 5000]);
        flush(&mut log, &stream, &mut log_state).unwrap();
    }
    let acknowledged = log_state.durable;
    let (_, on_disk) = read_all(&base, Lsn::ZERO).unwrap();
    assert!(on_disk.durable < acknowledged);
    // Every write and every sync of the start fails in turn, and any choice of sectors survives.
    for call in [Call::Write, Call::Sync] {
        for after in 0..3 {
            for survivors in 0..64_u64 {
                let disk = base.duplicate();
                let mut log = Log::new(open_pool(&disk, Lsn::ZERO).unwrap());
                disk.fail(Some(call), after, Fault::Short);
                log.start_segment(&on_disk, stream.left_after(on_disk.durable), &mut stream.fill()).unwrap_err();
                assert!(log.written().is_none());
                let cut = disk.power_cut_keeping(|_, sector| survivors >> (sector / 8 % 6) & 1 == 1);
                check(&cut, &stream, Lsn::ZERO, acknowledged, &format!("{call:?} {after}, survivors {survivors:#b}"));
            }
        }
    }
}

/// After a failure nothing is written to or synced on the same segment, whatever the caller tries.
#[test]
fn a_failed_segment_takes_no_more_bytes() {
    for (call, fault) in [(Call::Sync, Fault::Io), (Call::Write, Fault::NoSpace), (Call::Write, Fault::Short)] {
        let disk = SimDisk::new(1);
        let (mut log, mut stream, mut log_state) = started(&disk);
        stream.push(1, &[1; 5000]);
        disk.fail(Some(call), 0, fault);
        let error = flush(&mut log, &stream, &mut log_state).unwrap_err();
        assert_eq!(matches!(error, LogError::DiskFull { .. }), fault == Fault::NoSpace, "{error}");
        let syncs = disk.syncs();
        assert!(matches!(log.sync(), Err(LogError::NeedsSegment)));
        assert!(matches!(log.append(Lsn::ZERO, 0, &log_state, &mut |_, _| ()), Err(LogError::NeedsSegment)));
        assert_eq!(disk.syncs(), syncs);
        log_state.durable =
            log.start_segment(&log_state, stream.left_after(log_state.durable), &mut stream.fill()).unwrap();
        assert_eq!(
            check(&disk.power_cut_keeping(|_, _| false), &stream, Lsn::ZERO, log_state.durable, "").0,
            stream.end()
        );
    }
}

/// While a logger runs, a reader follows the durable position across segments. The reader gets an
/// error if it falls too far behind.
#[test]
fn a_follower_reads_across_segments_and_falls_behind() {
    let disk = SimDisk::new(1);
    let (mut log, mut stream, mut log_state) = started(&disk);
    let mut follower = LogScan::follow(&disk, &shape(), Lsn::ZERO, Lsn::ZERO).unwrap();
    let mut bytes = Vec::new();
    for txn in 0..60 {
        stream.push(txn, &[txn as u8; 3000]);
        flush(&mut log, &stream, &mut log_state).unwrap();
        // These bytes are written but not durable, so the reader must not return them.
        stream.push(txn, b"not yet");
        let _ = log
            .append(log_state.durable, stream.left_after(log_state.durable), &log_state, &mut stream.fill())
            .unwrap();
        // Sometimes in the middle of a batch.
        follower.extend(if txn % 3 == 0 { Lsn(log_state.durable.0 - 1000 / 8 * 8) } else { log_state.durable });
        while let Some((lsn, chunk)) = follower.next_chunk().unwrap() {
            assert_eq!(lsn.0, bytes.len() as u64);
            bytes.extend_from_slice(chunk);
        }
        assert_eq!(follower.end().0, bytes.len() as u64);
        log.pool().add_spare().unwrap();
    }
    assert!(log.pool().stats().segments > 2);
    assert!(bytes.len() as u64 == log_state.durable.0 && stream.bytes.starts_with(&bytes));
    log_state.checkpoint_lsn = log_state.durable;
    assert!(log.pool().recycle(log_state.checkpoint_lsn, Retention::NOTHING).unwrap() > 1);
    log.start_segment(&log_state, stream.left_after(log_state.durable), &mut stream.fill()).unwrap();
    log.start_segment(&LogState { durable: stream.end(), ..log_state }, 0, &mut |_, _| unreachable!()).unwrap();
    let oldest = log.pool().stats().oldest;
    assert!(oldest > Some(Lsn::ZERO));
}

/// A disk on which another thread makes a spare just before a file is removed.
struct Crossed {
    disk: SimDisk,
    pool: Mutex<Weak<SegmentPool<Crossed>>>,
}

impl Disk for Crossed {
    type File = SimFile;
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn open(&self, name: &str) -> io::Result<SimFile> {
        self.disk.open(name)
    }
    fn create(&self, name: &str) -> io::Result<SimFile> {
        self.disk.create(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let pool = std::mem::take(&mut *self.pool.lock().unwrap());
        if let Some(pool) = pool.upgrade() {
            pool.add_spare().unwrap();
        }
        self.disk.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
}

/// One thread deletes a surplus spare while another makes one. The new file must not get the name
/// that is about to be removed. Otherwise it would be gone while the pool counts on it, perhaps
/// with a segment in it already.
#[test]
fn a_spare_that_is_made_while_another_is_deleted_stays() {
    let disk = Arc::new(Crossed { disk: SimDisk::new(1), pool: Mutex::default() });
    let segment_catalog = SegmentCatalog::read(&*disk, &shape()).unwrap();
    let pool = SegmentPool::open(disk.clone(), &segment_catalog, Lsn::ZERO, Retention::NOTHING).unwrap();
    (0..3).for_each(|_| pool.add_spare().unwrap());
    pool.set_spares_max(2);
    *disk.pool.lock().unwrap() = Arc::downgrade(&pool);
    pool.recycle(Lsn::ZERO, Retention::NOTHING).unwrap();
    assert_eq!((pool.stats().spares, disk.list().unwrap().len()), (3, 3));
}

/// A file that could not be deleted is still a spare, and is deleted the next time.
#[test]
fn a_surplus_spare_that_cannot_be_deleted_is_not_forgotten() {
    let disk = SimDisk::new(1);
    let pool = open_pool(&disk, Lsn::ZERO).unwrap();
    (0..4).for_each(|_| pool.add_spare().unwrap());
    pool.set_spares_max(1);
    disk.fail(Some(Call::Name), 1, Fault::Io);
    pool.recycle(Lsn::ZERO, Retention::NOTHING).unwrap_err();
    assert_eq!((pool.stats().spares, disk.list().unwrap().len()), (3, 3));
    pool.recycle(Lsn::ZERO, Retention::NOTHING).unwrap();
    assert_eq!((pool.stats().spares, disk.list().unwrap().len()), (1, 1));
}
