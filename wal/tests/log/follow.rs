//! Goal: a follower reads the bytes of the stream or gets an error, whatever happens to its files.
//! It can begin at each resume point that the log returns. Method: random runs of a writer
//! that recycles and keeps segments, with followers that are fast, slow, or read in another thread;
//! and damaged bytes.

use crate::common::{Stream, check, flush, follow_each_other, new_log, numbers_of, open_pool, shape};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use untorn_wal::{
    Disk, Log, LogError, LogFollower, LogState, Lsn, ResumePoint, Retention, SegmentCatalog, oldest_resume_point,
    resume_point_at_or_before,
    testing::{Call, Fault, Rng, SimDisk},
};

/// A writer whose transactions count from 1.
struct Writer {
    log: Log<SimDisk>,
    stream: Stream,
    log_state: LogState,
    retention: Retention,
}

impl Writer {
    fn new(disk: &SimDisk, kept: u64) -> Writer {
        let retention = Retention { bytes: kept * shape().segment_bytes(), age: Duration::MAX };
        Writer { log: new_log(disk, 3), stream: Stream::default(), log_state: LogState::default(), retention }
    }

    fn commit(&mut self, rng: &mut Rng) {
        for _ in 0..=rng.below(3) {
            let payload: Vec<u8> = (0..rng.below(9000)).map(|_| rng.number() as u8).collect();
            self.stream.push(self.stream.ends.len() as u64 + 1, &payload);
        }
        flush(&mut self.log, &self.stream, &mut self.log_state).unwrap();
        self.log_state.durable_txn = self.stream.ends.len() as u64;
        self.log_state.safe_start = self.log_state.durable;
        if rng.one_in(3) {
            self.log.pool().recycle(self.log_state.durable, self.retention).unwrap();
        }
        while self.log.pool().stats().spares < 2 {
            self.log.pool().add_spare().unwrap();
        }
    }

    /// Where transaction `txn` ends.
    fn end_of(&self, txn: u64) -> Lsn {
        txn.checked_sub(1).map_or(Lsn::ZERO, |index| self.stream.ends[index as usize])
    }
}

#[test]
fn followers_get_the_stream_or_an_error() {
    let mut gaps = 0;
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let disk = SimDisk::new(seed);
        let mut writer = Writer::new(&disk, rng.below(5));
        let mut followers: Vec<(LogFollower, u64)> =
            (1..5).map(|pace| (LogFollower::new(shape(), Lsn::ZERO), pace * pace)).collect();
        for _ in 0..120 {
            writer.commit(&mut rng);
            let durable = writer.log_state.durable;
            for (follow, pace) in &mut followers {
                if !rng.one_in(*pace) {
                    continue;
                }
                let (from, mut bytes) = (follow.position(), Vec::new());
                match follow.read(&disk, durable, &mut bytes) {
                    Ok(()) => {
                        let end = from.0 as usize + bytes.len();
                        assert!(follow.position() == Lsn(end as u64) && (from == durable || !bytes.is_empty()));
                        assert!(bytes == writer.stream.bytes[from.0 as usize..end], "seed {seed}: wrong bytes");
                    }
                    Err(LogError::Gap { .. }) => {
                        let oldest = writer.log.pool().stats().oldest.unwrap();
                        assert!(from < oldest, "seed {seed}: nothing at {from}, though the log holds {oldest}");
                        let resume_point = oldest_resume_point(&disk, &shape()).unwrap().unwrap();
                        assert!(resume_point.position > from, "seed {seed}");
                        assert_eq!(resume_point.position, writer.end_of(resume_point.txn), "seed {seed}");
                        *follow = LogFollower::new(shape(), resume_point.position);
                        gaps += 1;
                    }
                    Err(other) => panic!("seed {seed}: {other}"),
                }
            }
            let txn = rng.below(writer.stream.ends.len() as u64 + 1);
            if let Some(ResumePoint { txn: found, position }) = resume_point_at_or_before(&disk, &shape(), txn).unwrap()
            {
                assert!(found <= txn && position == writer.end_of(found), "seed {seed}");
                let mut bytes = Vec::new();
                LogFollower::new(shape(), position).read(&disk, durable, &mut bytes).unwrap();
            }
        }
    }
    assert!(gaps > 100, "only {gaps} times was anything recycled under a follower");
}

/// The numbers of the segments that are found when the log is opened now.
fn numbers_on(disk: &SimDisk) -> Vec<u64> {
    numbers_of(&SegmentCatalog::read(disk, &shape()).unwrap())
}

/// Files that were given up keep their headers, and count again when the log is opened. In whatever
/// order they are taken and deleted, the segments that are found then follow each other. The flush
/// thread may take a file while another one is about to be deleted.
#[test]
fn given_up_files_leave_no_gap() {
    let (mut surplus, mut crossed) = (0, 0);
    for seed in 0..40 {
        let mut rng = Rng(seed);
        let disk = SimDisk::new(seed);
        let mut writer = Writer::new(&disk, rng.below(5));
        for round in 0..150 {
            let pool = writer.log.pool().clone();
            match rng.below(12) {
                0 => {
                    let Writer { log, stream, log_state, .. } = &mut writer;
                    let take_spare = || {
                        let left = stream.left_after(log_state.durable);
                        if let Ok(durable) = log.start_segment(log_state, left, &mut stream.fill()) {
                            log_state.durable = durable;
                            crossed += 1;
                        }
                        let numbers = numbers_on(&disk);
                        assert!(follow_each_other(&numbers), "seed {seed}, round {round}, in a deletion: {numbers:?}");
                    };
                    let _ = pool.yield_kept(true, take_spare).unwrap();
                }
                1 => drop(pool.yield_kept(false, || ()).unwrap()),
                2 => drop(pool.remove_spare().unwrap()),
                3 => writer.retention.bytes = rng.below(5) * shape().segment_bytes(),
                4 => pool.set_spares_max(2 + rng.below(3) as usize),
                _ => writer.commit(&mut rng),
            }
            let numbers = numbers_on(&disk);
            assert!(follow_each_other(&numbers), "seed {seed}, round {round}: {numbers:?}");
            let stats = pool.stats();
            surplus += usize::from(numbers.len() > stats.segments + stats.kept);
        }
    }
    assert!(surplus > 1000, "only {surplus} times a spare had a header");
    assert!(crossed > 20, "only {crossed} times a segment was started in a deletion");
}

/// A power cut may undo any of several deletions that no sync of the directory has covered. The
/// files that remain have headers, so the segments that are found may not follow each other. The
/// log opens and holds all that is durable. A follower of its oldest segment gets bytes or a gap.
#[test]
fn a_power_cut_among_deletions_is_no_damage() {
    let (mut deletions, mut several, mut gaps) = (0, 0, 0);
    for seed in 0..30 {
        let mut rng = Rng(seed);
        let disk = SimDisk::new(seed);
        let mut writer = Writer::new(&disk, 0);
        for round in 0..40 {
            writer.commit(&mut rng);
            let pool = writer.log.pool();
            if !rng.one_in(6) {
                continue;
            }
            pool.set_spares_max(0);
            let before = disk.list().unwrap().len();
            disk.fail(Some(Call::SyncDir), 0, Fault::Io);
            let recycled = pool.recycle(writer.log_state.durable, Retention::NOTHING);
            disk.clear_faults();
            let deleted = before - disk.list().unwrap().len();
            deletions += usize::from(recycled.is_err());
            several += usize::from(deleted > 1);
            for _ in 0..4 {
                let cut = disk.power_cut(&mut rng);
                gaps += usize::from(!follow_each_other(&numbers_on(&cut)));
                if let Some(oldest) = oldest_resume_point(&cut, &shape()).unwrap() {
                    let (mut follow, mut bytes) = (LogFollower::new(shape(), oldest.position), Vec::new());
                    match follow.read(&cut, writer.log_state.durable, &mut bytes) {
                        Ok(()) | Err(LogError::Gap { .. }) => {}
                        Err(other) => panic!("seed {seed}, round {round}: {:?}: {other}", numbers_on(&cut)),
                    }
                }
                open_pool(&cut, writer.log_state.durable).unwrap();
                check(&cut, &writer.stream, writer.log_state.durable, writer.log_state.durable, "after the cut");
            }
            pool.set_spares_max(4);
            while pool.stats().spares < 2 {
                pool.add_spare().unwrap();
            }
        }
    }
    assert!(
        deletions > 50 && several > 30 && gaps > 5,
        "{deletions} deletions, {several} of several files, {gaps} gaps"
    );
}

#[test]
fn what_is_kept_can_be_read_to_its_beginning_and_is_given_up_in_order() {
    let mut rng = Rng(1);
    let disk = SimDisk::new(1);
    let mut writer = Writer::new(&disk, 4);
    while writer.log.pool().stats().kept < 4 {
        writer.commit(&mut rng);
    }
    let mut found = 0;
    loop {
        // A segment that has just begun, in the middle of a record, may state no place behind its
        // start yet.
        if let Some(resume_point) = oldest_resume_point(&disk, &shape()).unwrap() {
            let mut follow = LogFollower::new(shape(), resume_point.position);
            let mut bytes = Vec::new();
            while follow.position() < writer.log_state.durable {
                follow.read(&disk, writer.log_state.durable, &mut bytes).unwrap();
            }
            assert!(bytes == writer.stream.bytes[resume_point.position.0 as usize..]);
            found += 1;
        }
        let stats = writer.log.pool().stats();
        // The oldest position changes before a file is removed, so a reader that misses a file can
        // find the reason.
        let files = disk.list().unwrap().len();
        let mut freed = false;
        let on_freed = || {
            assert_eq!(disk.list().unwrap().len(), files);
            assert!(writer.log.pool().stats().oldest > stats.oldest);
            freed = true;
        };
        let yielded = writer.log.pool().yield_kept(true, on_freed).unwrap();
        assert_eq!(freed, yielded);
        if !yielded {
            assert_eq!(stats.kept, 0);
            break;
        }
        assert_eq!(writer.log.pool().stats().kept, stats.kept - 1);
        assert!(writer.log.pool().stats().oldest > stats.oldest);
    }
    assert!(found >= 4, "{found}");
    // The limit is an age: every segment is older.
    for _ in 0..40 {
        writer.commit(&mut rng);
    }
    assert!(writer.log.pool().stats().kept > 0);
    std::thread::sleep(Duration::from_millis(5));
    let young = Retention { bytes: u64::MAX, age: Duration::from_millis(1) };
    writer.log.pool().set_spares_max(1);
    let files = disk.list().unwrap().len();
    let mut freed = false;
    let on_freed = || {
        assert_eq!((disk.list().unwrap().len(), writer.log.pool().stats().kept), (files, 0));
        freed = true;
    };
    writer.log.pool().expire(young, on_freed).unwrap();
    assert!(freed && disk.list().unwrap().len() < files);
    assert_eq!(writer.log.pool().stats().kept, 0);
}

#[test]
fn a_follower_in_another_thread() {
    let disk = SimDisk::new(3);
    let mut writer = Writer::new(&disk, 1);
    let (durable, ended) = (AtomicU64::new(0), AtomicU64::new(0));
    let (read, gaps) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut pieces: Vec<(Lsn, Vec<u8>)> = Vec::new();
            let (mut follow, mut gaps) = (LogFollower::new(shape(), Lsn::ZERO), 0);
            while ended.load(Ordering::Acquire) == 0 {
                let (from, mut bytes) = (follow.position(), Vec::new());
                match follow.read(&disk, Lsn(durable.load(Ordering::Acquire)), &mut bytes) {
                    Ok(()) => pieces.push((from, bytes)),
                    Err(LogError::Gap { .. }) => {
                        gaps += 1;
                        if let Ok(Some(resume_point)) = oldest_resume_point(&disk, &shape()) {
                            follow = LogFollower::new(shape(), resume_point.position);
                        }
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            (pieces, gaps)
        });
        let mut rng = Rng(3);
        for _ in 0..1500 {
            writer.commit(&mut rng);
            durable.store(writer.log_state.durable.0, Ordering::Release);
        }
        ended.store(1, Ordering::Release);
        reader.join().unwrap()
    });
    let len: usize = read.iter().map(|(_, bytes)| bytes.len()).sum();
    eprintln!("{len} of {} bytes read, {gaps} gaps", writer.stream.bytes.len());
    assert!(len > 0);
    for (from, bytes) in read {
        assert!(bytes == writer.stream.bytes[from.0 as usize..][..bytes.len()], "wrong bytes at {from}");
    }
}

#[test]
fn damaged_bytes_are_never_passed_on() {
    let disk = SimDisk::new(4);
    let mut rng = Rng(4);
    let mut writer = Writer::new(&disk, 0);
    while writer.log.pool().stats().segments < 3 {
        writer.stream.push_random(&mut rng, 9000);
        flush(&mut writer.log, &writer.stream, &mut writer.log_state).unwrap();
        while writer.log.pool().stats().spares < 2 {
            writer.log.pool().add_spare().unwrap();
        }
    }
    let files: Vec<String> = (1..=3).map(|slot| format!("seg-{slot:08}")).collect();
    let mut errors = 0;
    for round in 0..600 {
        let damaged = disk.duplicate();
        let name = &files[rng.below(3) as usize];
        match round % 3 {
            0 => damaged.flip(name, rng.below(64 << 10) as usize, 1 << rng.below(8)),
            1 => {
                // A valid block from another position.
                let mut bytes = damaged.contents(name);
                let (from, to) = (rng.below(16) as usize * 4096, rng.below(16) as usize * 4096);
                bytes.copy_within(from..from + 4096, to);
                damaged.set_contents(name, &bytes);
            }
            _ => {
                let mut bytes = damaged.contents(name);
                let at = rng.below(16) as usize * 4096;
                bytes[at..at + 4096].iter_mut().for_each(|byte| *byte = rng.number() as u8);
                damaged.set_contents(name, &bytes);
            }
        }
        let mut follow = LogFollower::new(shape(), Lsn::ZERO);
        let mut bytes = Vec::new();
        while follow.position() < writer.log_state.durable {
            if follow.read(&damaged, writer.log_state.durable, &mut bytes).is_err() {
                errors += 1;
                break;
            }
        }
        assert!(bytes == writer.stream.bytes[..bytes.len()], "round {round}: wrong bytes");
        let _ = (oldest_resume_point(&damaged, &shape()), resume_point_at_or_before(&damaged, &shape(), 9));
    }
    assert!(errors > 100, "{errors}");
}
