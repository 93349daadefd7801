//! Goal: whatever the log's files and the ring contain, reading the changes never panics, never
//! hangs, and never delivers one that did not happen. It delivers the true ones up to some place,
//! and then an error.
//!
//! Method: the files of a store with a known history are damaged by random bits, blocks of garbage,
//! and whole blocks of other places (whose own checksums are right). The ring in shared memory is
//! damaged by random bits. The store is open all the while. A feed is read from some place on and
//! compared with the history. Then the damage is reverted. `proptest` chooses and shrinks.

use crate::common::HANGS;
use crate::common::store_files::{History, remove_all, scratch, small, work};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Change, Feed, Store, TxnId};

const BLOCK: u64 = 4096;

#[derive(Clone, Debug)]
enum Damage {
    Bit {
        file: prop::sample::Index,
        at: u64,
        bit: u8,
    },
    /// Most headers of batches lie in the first bytes of a block.
    HeaderBit {
        file: prop::sample::Index,
        block: u64,
        at: u64,
        bit: u8,
    },
    Garbage {
        file: prop::sample::Index,
        block: u64,
        seed: u8,
    },
    Zeros {
        file: prop::sample::Index,
        block: u64,
    },
    Copied {
        from: (prop::sample::Index, u64),
        to: (prop::sample::Index, u64),
    },
    RingBit {
        at: u64,
        bit: u8,
    },
}

fn damage(blocks: u64, ring: u64) -> impl Strategy<Value = Damage> {
    let file = any::<prop::sample::Index>;
    // Most of what is used of a segment lies at its beginning.
    let block = prop_oneof![3 => 0..4_u64, 3 => 0..blocks / 4, 1 => 0..blocks];
    let position = (file(), block.clone());
    prop_oneof![
        (file(), 0..blocks * BLOCK, 0..8_u8).prop_map(|(file, at, bit)| Damage::Bit { file, at, bit }),
        (file(), block.clone(), 0..128_u64, 0..8_u8).prop_map(|(file, block, at, bit)| Damage::HeaderBit {
            file,
            block,
            at,
            bit
        }),
        (file(), block.clone(), any::<u8>()).prop_map(|(file, block, seed)| Damage::Garbage { file, block, seed }),
        (file(), block).prop_map(|(file, block)| Damage::Zeros { file, block }),
        (position.clone(), position).prop_map(|(from, to)| Damage::Copied { from, to }),
        (0..ring, 0..8_u8).prop_map(|(at, bit)| Damage::RingBit { at, bit }),
    ]
}

/// What was changed, to be put back.
struct Undo<'a> {
    file: &'a File,
    at: u64,
    bytes: Vec<u8>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.file.write_all_at(&self.bytes, self.at).unwrap();
    }
}

fn overwrite<'a>(file: &'a File, at: u64, bytes: &[u8]) -> Undo<'a> {
    let mut old = vec![0; bytes.len()];
    file.read_exact_at(&mut old, at).unwrap();
    file.write_all_at(bytes, at).unwrap();
    Undo { file, at, bytes: old }
}

fn flip(file: &File, at: u64, bit: u8) -> Undo<'_> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    overwrite(file, at, &[byte[0] ^ 1 << bit])
}

/// The open store, its files, and what happened in it.
struct Scenario {
    store: Store,
    files: Vec<File>,
    control: File,
    ring_at: u64,
    truth: Vec<Change>,
}

fn open(path: &Path, name: &str) -> File {
    File::options().read(true).write(true).open(path.join(name)).unwrap()
}

impl Scenario {
    fn new(path: &Path) -> Scenario {
        let store = small().open(path).unwrap();
        let mut history = History::default();
        while store.stats().unwrap().wal_segments + store.stats().unwrap().wal_kept < 4 {
            work(&store, &mut history, 30, |step| step % 7 == 0);
        }
        let short = store.keyspace("short-lived").unwrap();
        short.put(b"k", b"v").unwrap();
        store.drop_keyspace("short-lived").unwrap();
        let last = store.keyspace("a").unwrap().put(b"the last one of all", b"v").unwrap();
        let mut changes = store.changes(TxnId::ZERO, Feed::Durable).unwrap();
        let mut truth = Vec::new();
        while changes.resume_from() < last {
            truth.extend(changes.try_next(HANGS).unwrap());
        }
        // What has become durable is stated once more, and then the files rest.
        std::thread::sleep(Duration::from_millis(300));
        let names = std::fs::read_dir(path.join("wal")).unwrap().map(|entry| entry.unwrap().path());
        let files = names.map(|name| open(Path::new("/"), name.to_str().unwrap())).collect();
        let control = open(path, "control");
        let bytes = std::fs::read(path.join("control")).unwrap();
        let key = b"the last one of all";
        let found = bytes.windows(key.len()).position(|window| window == key).expect("the ring holds it");
        // The part of the ring before it; all of it has been flushed.
        Scenario { store, files, control, ring_at: found as u64 - RING_PART, truth }
    }

    fn apply(&self, damage: &Damage) -> Undo<'_> {
        let file = |index: &prop::sample::Index| index.get(&self.files);
        match damage {
            Damage::Bit { file: index, at, bit } => flip(file(index), *at, *bit),
            Damage::HeaderBit { file: index, block, at, bit } => flip(file(index), block * BLOCK + at, *bit),
            Damage::Garbage { file: index, block, seed } => {
                let garbage: Vec<u8> = (0..BLOCK).map(|at| (at as u8).wrapping_mul(31).wrapping_add(*seed)).collect();
                overwrite(file(index), block * BLOCK, &garbage)
            }
            Damage::Zeros { file: index, block } => overwrite(file(index), block * BLOCK, &[0; BLOCK as usize]),
            Damage::Copied { from, to } => {
                let mut block = [0; BLOCK as usize];
                file(&from.0).read_exact_at(&mut block, from.1 * BLOCK).unwrap();
                overwrite(file(&to.0), to.1 * BLOCK, &block)
            }
            Damage::RingBit { at, bit } => flip(&self.control, self.ring_at + at, *bit),
        }
    }

    /// Reads on after the change number `after`; true if that met an error.
    fn read(&self, after: Option<usize>, feed: Feed) -> Result<bool, TestCaseError> {
        let from = after.map_or(TxnId::ZERO, |index| self.truth[index].txn_id());
        let first = self.truth.iter().position(|change| change.txn_id() > from).unwrap_or(self.truth.len());
        let mut expected = self.truth[first..].iter();
        let last = self.truth.last().expect("not empty").txn_id();
        let mut changes = match self.store.changes(from, feed) {
            Ok(changes) => changes,
            Err(untorn::Error::Lagged { oldest }) => {
                prop_assert!(oldest > from);
                return Ok(true);
            }
            Err(_) => return Ok(true),
        };
        let start = Instant::now();
        while changes.resume_from() < last {
            prop_assert!(start.elapsed() < HANGS, "it hangs");
            match changes.try_next(Duration::ZERO) {
                Ok(Some(change)) => prop_assert_eq!(Some(&change), expected.next()),
                Ok(None) => {}
                Err(_) => return Ok(true),
            }
        }
        prop_assert_eq!(expected.next(), None);
        Ok(false)
    }
}

/// Feeds that are read.
const CASES: u32 = 1500;

/// Bytes of the ring that are damaged: such as were just flushed, and would still be read from
/// there.
const RING_PART: u64 = 8 << 10;

#[test]
fn damaged_logs_tell_nothing_wrong() {
    let dir = scratch();
    let path = dir.path().join("store");
    let scenario = Scenario::new(&path);
    assert!(scenario.truth.len() > 100, "{}", scenario.truth.len());
    let blocks = scenario.files[0].metadata().unwrap().len() / BLOCK;
    let mut runner =
        TestRunner::new(Config { cases: CASES, failure_persistence: None, max_shrink_iters: 200, ..Config::default() });
    let strategy = (
        prop::collection::vec(damage(blocks, RING_PART), 0..5),
        prop::option::of(any::<prop::sample::Index>()),
        prop_oneof![Just(Feed::Visible), Just(Feed::Durable)],
    );
    let errors = std::cell::Cell::new(0);
    let ran = runner.run(&strategy, |(damages, after, feed)| {
        let mut undo = Vec::new();
        for damage in &damages {
            undo.push(scenario.apply(damage));
        }
        let after = after.map(|index| index.index(scenario.truth.len()));
        let met_error = scenario.read(after, feed);
        // The last one first, since they may overlap.
        while let Some(last) = undo.pop() {
            drop(last);
        }
        let met_error = met_error?;
        errors.set(errors.get() + u32::from(met_error));
        prop_assert!(!damages.is_empty() || !met_error, "an error without any damage");
        let is_of_files = damages.iter().any(|damage| !matches!(damage, Damage::RingBit { .. }));
        prop_assert!(!met_error || is_of_files, "damage to the ring was not made good by the files");
        Ok(())
    });
    eprintln!("{} of {CASES} feeds met an error", errors.get());
    drop(scenario);
    remove_all(&path);
    ran.unwrap();
    assert!(errors.get() > 40);
}
