//! The measured store: its entries, the operations on it, and how long each takes.

use crate::arguments::{Arguments, ROUNDS};
use std::hint::black_box;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use untorn::{Durability, Keyspace, Store};

/// Bytes of a key: the number in eight bytes, big-endian, then zeros.
pub(crate) const KEY_BYTES: usize = 24;
/// Bytes of a value, on every axis except the value size.
pub(crate) const VALUE_BYTES: usize = 150;
/// Reads between two readings of the clock. A put takes much longer than a reading of the clock, so
/// puts need no such interval.
const READS_BETWEEN_CLOCKS: u64 = 16;

/// The operation that a process repeats.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Looks up a random key, in one snapshot.
    Get,
    /// Overwrites a random key; the commit is visible on return.
    PutVisible,
    /// Overwrites a random key; the commit is durable on return.
    PutDurable,
}

impl Operation {
    pub(crate) const ALL: [Operation; 3] = [Operation::Get, Operation::PutVisible, Operation::PutDurable];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::PutVisible => "put, visible",
            Operation::PutDurable => "put, durable",
        }
    }
}

/// A loaded store.
pub(crate) struct Loaded {
    pub(crate) store: Store,
    pub(crate) records: Keyspace,
    pub(crate) entries: u64,
    value_bytes: usize,
    random: u64,
    dir: tempfile::TempDir,
}

impl Loaded {
    /// Fills a store in ascending order.
    pub(crate) fn new(arguments: &Arguments, entries: u64, value_bytes: usize) -> Loaded {
        let dir = tempfile::Builder::new().prefix("growth-").tempdir_in(&arguments.dir).unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let records = store.keyspace("records").unwrap();
        let mut loaded = Loaded { store, records, entries, value_bytes, random: 1, dir };
        let batch = ((8 << 20) / (KEY_BYTES + value_bytes)).clamp(1, 10_000);
        for first in (0..entries).step_by(batch) {
            let mut txn = loaded.store.begin_with(Durability::Visible).unwrap();
            for index in first..entries.min(first + batch as u64) {
                let value = noise(&mut loaded.random, value_bytes);
                txn.put(&loaded.records, key(index), value).unwrap();
            }
            txn.commit().unwrap();
        }
        loaded.settle();
        loaded
    }

    /// Opens a store that another process has loaded.
    pub(crate) fn join(path: &Path, entries: u64, random: u64) -> (Store, Runner) {
        let store = Store::open(path).unwrap();
        let records = store.keyspace("records").unwrap();
        let runner = Runner { records, entries, value_bytes: VALUE_BYTES, random };
        (store, runner)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Takes a checkpoint, so that no background work of earlier operations remains.
    pub(crate) fn settle(&self) {
        self.store.sync().unwrap();
        self.store.checkpoint().unwrap();
    }

    /// Returns the nanoseconds of each operation: the median of several rounds.
    pub(crate) fn time_all(&mut self, time_of_a_round: Duration) -> [f64; 3] {
        Operation::ALL.map(|operation| {
            let mut rounds = [0.0; ROUNDS];
            for round in &mut rounds {
                let mut runner = self.runner();
                let window = Window::new(Duration::ZERO, time_of_a_round);
                let count = runner.repeat(&self.store, operation, window);
                self.random = runner.random;
                // A single operation may take longer than the window.
                *round = window.nanos() as f64 / count.max(1) as f64;
            }
            self.settle();
            median(rounds)
        })
    }

    fn runner(&self) -> Runner {
        let records = self.records.clone();
        Runner { records, entries: self.entries, value_bytes: self.value_bytes, random: self.random }
    }

    /// Overwrites random keys, each in a commit of its own.
    pub(crate) fn overwrite(&mut self, commits: u64) {
        let mut runner = self.runner();
        let records = self.records.with_durability(Durability::Visible);
        for _ in 0..commits {
            runner.put(&records);
        }
        self.random = runner.random;
    }

    /// Takes a checkpoint. Then returns the bytes of disk blocks per entry: of all files, and of
    /// the arena alone.
    pub(crate) fn bytes_of_a_record(&self) -> [f64; 2] {
        self.settle();
        let arena = self.path().join("arena").metadata().unwrap().blocks() * 512;
        [blocks(&self.path()), arena].map(|bytes| bytes as f64 / self.entries as f64)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let _ = untorn::logger::stop_logger(self.path(), Duration::from_secs(60));
    }
}

/// The interval in which operations count, in nanoseconds of the monotonic clock. All processes
/// share this clock.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Window {
    /// Returns a window that opens after `lead`.
    pub(crate) fn new(lead: Duration, length: Duration) -> Window {
        let start = now() + lead.as_nanos() as u64;
        Window { start, end: start + length.as_nanos() as u64 }
    }

    pub(crate) fn nanos(self) -> u64 {
        self.end - self.start
    }
}

fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Repeats operations in one thread.
pub(crate) struct Runner {
    records: Keyspace,
    entries: u64,
    value_bytes: usize,
    random: u64,
}

impl Runner {
    /// Repeats an operation until the window ends. Returns how many operations ended in it.
    pub(crate) fn repeat(&mut self, store: &Store, operation: Operation, window: Window) -> u64 {
        let snapshot = store.snapshot().unwrap();
        let visible = self.records.with_durability(Durability::Visible);
        let durable = self.records.with_durability(Durability::Durable);
        let between = if operation == Operation::Get { READS_BETWEEN_CLOCKS } else { 1 };
        let mut count = 0;
        loop {
            for _ in 0..between {
                match operation {
                    Operation::Get => {
                        let key = key(next(&mut self.random) % self.entries);
                        let value = snapshot.get(&self.records, key).unwrap().expect("an entry");
                        black_box(value.iter().step_by(64).fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
                    }
                    Operation::PutVisible => self.put(&visible),
                    Operation::PutDurable => self.put(&durable),
                }
            }
            match now() {
                now if now < window.start => {}
                now if now <= window.end => count += between,
                _ => return count,
            }
        }
    }

    fn put(&mut self, records: &Keyspace) {
        let key = key(next(&mut self.random) % self.entries);
        records.put(key, noise(&mut self.random, self.value_bytes)).unwrap();
    }
}

/// Returns the key of a number. Keys ascend with their number.
fn key(index: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key
}

/// Returns a value whose first words differ from those of any other.
fn noise(random: &mut u64, bytes: usize) -> Vec<u8> {
    let mut value = vec![0x5a; bytes];
    for word in value.chunks_mut(8).take(4) {
        let noise = next(random).to_le_bytes();
        word.copy_from_slice(&noise[..word.len()]);
    }
    value
}

/// Returns the next number of a sequence (splitmix64, by Steele, Lea and Flood).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Returns the middle value.
pub(crate) fn median(mut values: [f64; ROUNDS]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[ROUNDS / 2]
}

fn blocks(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { blocks(&path) } else { path.metadata().unwrap().blocks() * 512 }).sum()
}
