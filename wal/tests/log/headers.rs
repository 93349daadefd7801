//! Goal: if the process dies at any moment, the segments that the next open finds follow each
//! other. Files that became free keep their headers for a while, so the order in which headers are
//! erased matters. Method: one thread starts segments, two others free, delete, fill and reduce
//! files. After each change of the disk, the headers on it are read.

use crate::common::{Stream, follow_each_other, new_log_of, numbers_of, shape};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::Duration;
use untorn_wal::{
    Disk, DiskFile, Log, LogState, Lsn, Retention, SegmentCatalog, SegmentPool,
    testing::{Rng, SimDisk, SimFile},
};

/// A disk that checks the headers after each change.
#[derive(Clone, Debug)]
struct CheckedDisk {
    disk: SimDisk,
    /// Makes a change and its check one step.
    changes: Arc<Mutex<Checks>>,
}

#[derive(Debug, Default)]
struct Checks {
    /// The numbers of the first state with a gap.
    gap: Option<Vec<u64>>,
    /// The number of changes.
    checked: u64,
}

#[derive(Debug)]
struct CheckedFile {
    disk: CheckedDisk,
    file: SimFile,
}

impl CheckedDisk {
    fn change<T>(&self, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut checks = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change();
        // The headers that the next open finds.
        let numbers = numbers_of(&SegmentCatalog::read_headers(&self.disk, &shape()).unwrap());
        checks.checked += 1;
        if !follow_each_other(&numbers) && checks.gap.is_none() {
            checks.gap = Some(numbers);
        }
        changed
    }

    fn file(&self, file: SimFile) -> CheckedFile {
        CheckedFile { disk: self.clone(), file }
    }
}

impl Disk for CheckedDisk {
    type File = CheckedFile;

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn open(&self, name: &str) -> io::Result<CheckedFile> {
        Ok(self.file(self.disk.open(name)?))
    }

    fn create(&self, name: &str) -> io::Result<CheckedFile> {
        Ok(self.file(self.change(|| self.disk.create(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|| self.disk.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|| self.disk.remove(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
}

impl DiskFile for CheckedFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.file.set_size(bytes)
    }

    fn ready_bytes(&self) -> io::Result<u64> {
        self.file.ready_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.change(|| self.file.write_at(offset, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

/// Starts segments, and abandons some of them, so that the largest spare is taken instead of the
/// oldest.
fn start_segments(log: &mut Log<CheckedDisk>, stream: &mut Stream, log_state: &mut LogState, rng: &mut Rng) {
    for _ in 0..60 {
        let _ = stream.push_random(rng, 9000);
        if rng.one_in(4) {
            log.abandon();
        }
        let left = stream.left_after(log_state.durable);
        if let Ok(durable) = log.start_segment(log_state, left, &mut stream.fill()) {
            log_state.durable = durable;
        } else {
            std::thread::yield_now();
        }
    }
}

/// Changes files as the logger's background threads do. Returns how many segments became free.
fn change_files(pool: &SegmentPool<CheckedDisk>, durable: &AtomicU64, rng: &mut Rng) -> usize {
    let retention = Retention { bytes: rng.below(4) * shape().segment_bytes(), age: Duration::MAX };
    match rng.below(16) {
        0..4 => return usize::from(pool.yield_kept(rng.one_in(2), || ()).unwrap()),
        4..6 => drop(pool.remove_spare().unwrap()),
        6 => pool.set_spares_max(2 + rng.below(5) as usize),
        7..10 => return pool.recycle(Lsn(durable.load(Ordering::Relaxed)), retention).unwrap(),
        10 if rng.one_in(4) => pool.trim(3).unwrap(),
        _ => pool.add_spare_of(rng.below(16)).unwrap(),
    }
    0
}

#[test]
fn the_headers_on_the_disk_follow_each_other_after_each_change() {
    let (mut checked, freed) = (0, AtomicUsize::new(0));
    for seed in 0..25 {
        let mut rng = Rng(seed);
        let disk = CheckedDisk { disk: SimDisk::new(seed), changes: Arc::default() };
        let mut log = new_log_of(&disk, &shape(), 3);
        let pool = Arc::clone(log.pool());
        let (mut stream, mut log_state) = (Stream::default(), LogState::default());
        for _ in 0..8 {
            let durable = AtomicU64::new(log_state.durable.0);
            let (others, begin) = ([rng.number(), rng.number()], Barrier::new(3));
            std::thread::scope(|scope| {
                for other in others {
                    let (pool, durable, begin, freed) = (&pool, &durable, &begin, &freed);
                    scope.spawn(move || {
                        begin.wait();
                        let mut rng = Rng(other);
                        let count: usize = (0..40).map(|_| change_files(pool, durable, &mut rng)).sum();
                        freed.fetch_add(count, Ordering::Relaxed);
                    });
                }
                begin.wait();
                start_segments(&mut log, &mut stream, &mut log_state, &mut rng);
            });
        }
        let checks = disk.changes.lock().unwrap();
        checked += checks.checked;
        assert!(checks.gap.is_none(), "seed {seed}: the segments {:?} were on the disk", checks.gap);
    }
    let freed = freed.into_inner();
    assert!(checked > 20_000 && freed > 500, "only {checked} changes, {freed} segments freed");
}

/// Of two threads that publish the oldest position, the last one publishes the newest.
#[test]
fn an_older_count_never_overwrites_a_newer_one() {
    let disk = SimDisk::new(1);
    let mut log = crate::common::new_log(&disk, 4);
    let (mut stream, mut log_state) = (Stream::default(), LogState::default());
    for _ in 0..3 {
        stream.push(1, &[7; 100]);
        let left = stream.left_after(log_state.durable);
        log_state.durable = log.start_segment(&log_state, left, &mut stream.fill()).unwrap();
    }
    let pool = Arc::clone(log.pool());
    let retention = Retention { bytes: u64::MAX, age: Duration::MAX };
    pool.recycle(log_state.durable, retention).unwrap();
    assert!(pool.stats().kept > 0);
    let published = AtomicU64::new(u64::MAX);
    let publish = |oldest: Option<Lsn>| published.store(oldest.unwrap().0, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let other = pool.publish(|stats| {
            let other = scope.spawn(|| {
                assert!(pool.yield_kept(false, || ()).unwrap());
                pool.publish(|stats| publish(stats.oldest));
            });
            // Long enough for the other thread, if nothing holds it up.
            std::thread::sleep(Duration::from_millis(50));
            publish(stats.oldest);
            other
        });
        other.join().unwrap();
    });
    assert_eq!(Some(Lsn(published.into_inner())), pool.stats().oldest);
}
