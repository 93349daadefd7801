//! Goal: the first client of a store that was left in order reads before a logger is there, and
//! nothing else changes: what recovery refuses is refused with the same error, no write happens
//! before a logger has begun the region, and the region is the one that recovery makes.
//!
//! Method: a logger program that never serves shows what needs no logger. A logger that runs as a
//! thread makes the region itself, as for any other store: a copy of each store is opened by it,
//! and the two opens are compared.

use crate::common::device::{Device, Kind};
use crate::common::store_files;
use crate::common::{HANGS, Process, TestStore, assert_clean, limit, spawn};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use untorn::{Durability, Error, Store};

/// The keys of [`left_in_order`].
const KEYS: u64 = 40;

/// A change of the store, or of the file, at a path.
type Change = fn(&Path);

/// A store with [`KEYS`] entries that was left in order.
fn left_in_order() -> TestStore {
    let test = TestStore::new();
    fill_and_leave(&test.path);
    test
}

/// Makes a store with [`KEYS`] entries, and leaves it in order.
fn fill_and_leave(path: &Path) {
    let store = Store::open(path).unwrap();
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    let keys = txn.keyspace("keys").unwrap();
    for n in 0..KEYS {
        txn.put(&keys, n.to_string(), vec![n as u8; 100]).unwrap();
    }
    txn.commit().unwrap().wait().unwrap();
    drop((keys, store));
    untorn::logger::stop_logger(path, HANGS).unwrap();
}

/// Opens a store whose logger never serves.
fn open_without_logger(path: &Path) -> untorn::Result<Store> {
    Store::options().logger_program("/bin/false").open(path)
}

fn assert_no_logger(error: &Error) {
    assert!(matches!(error, Error::LoggerUnavailable { .. }) && error.to_string().contains("false"), "{error}");
}

/// Reads need no logger. A write reports why there is none, and has no effect. The store is still
/// in order afterwards.
#[test]
fn reads_need_no_logger() {
    let _limit = limit();
    let test = left_in_order();
    for read_only in [false, true, false] {
        let store = Store::options().read_only(read_only).logger_program("/bin/false").open(&test.path).unwrap();
        let keys = store.find_keyspace("keys").unwrap().unwrap();
        assert_eq!(keys.get("7").unwrap().unwrap(), vec![7; 100]);
        assert_eq!(store.durable_snapshot().unwrap().len(&keys).unwrap(), KEYS);
        let committed = store.snapshot().unwrap().txn_id();
        if !read_only {
            assert_no_logger(&keys.put("7", "new").unwrap_err());
            assert_no_logger(&store.cell("cell", 8).unwrap_err());
            assert_no_logger(&store.keyspace("more").unwrap_err());
        }
        assert_eq!(store.stats().unwrap().logger_pid, None);
        assert_eq!(store.snapshot().unwrap().txn_id(), committed);
        assert_eq!(keys.get("7").unwrap().unwrap(), vec![7; 100]);
    }
    let store = test.open();
    let before = store.snapshot().unwrap().txn_id();
    store.keyspace("keys").unwrap().put("7", "new").unwrap();
    // Of the same incarnation: nothing was lost.
    assert_eq!(store.snapshot().unwrap().txn_id().as_u64(), before.as_u64() + 1);
    assert_clean(&store);
}

/// A client whose logger could not be started writes once another process has started one.
#[test]
fn a_later_logger_begins_the_region() {
    let _limit = limit();
    let test = left_in_order();
    let store = open_without_logger(&test.path).unwrap();
    let keys = store.find_keyspace("keys").unwrap().unwrap();
    let snapshot = store.snapshot().unwrap();
    assert_no_logger(&keys.put("7", "a").unwrap_err());
    let mut second = spawn("opening::open", &test.path, &["second"]);
    second.expect("ready");
    second.tell("open");
    second.expect("put");
    keys.put("7", "new").unwrap();
    assert_eq!(keys.len().unwrap(), KEYS + 1);
    assert_eq!(snapshot.get(&keys, b"7").unwrap().unwrap(), vec![7; 100]);
    assert_eq!(store.stats().unwrap().logger_starts, 1);
    second.finish();
    assert_clean(&store);
}

/// What the first client leaves to a logger: stores with cells, empty stores, logs without spares,
/// arenas with holes.
#[test]
fn unusual_stores_wait_for_a_logger() {
    let _limit = limit();
    let change: [(&str, Change); 4] = [
        ("cells", |path| {
            let store = Store::open(path).unwrap();
            store.cell("cell", 8).unwrap().store_durable(&[1; 8]).unwrap();
        }),
        ("a rollback", |path| {
            let store = Store::open(path).unwrap();
            let keys = store.keyspace("keys").unwrap();
            let mut txn = store.begin().unwrap();
            for n in 0..3000_u32 {
                txn.put(&keys, n.to_be_bytes(), [0; 1000]).unwrap();
            }
        }),
        ("no spares", |path| {
            for entry in std::fs::read_dir(path.join("wal")).unwrap() {
                let path = entry.unwrap().path();
                if std::fs::read(&path).unwrap()[..4096].iter().all(|byte| *byte == 0) {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }),
        ("a hole", |path| {
            let arena = std::fs::OpenOptions::new().read(true).write(true).open(path.join("arena")).unwrap();
            let len = arena.metadata().unwrap().len();
            let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&arena, flags, len - 65536, 65536).unwrap();
        }),
    ];
    for (what, change) in change {
        let test = left_in_order();
        change(&test.path);
        test.stop_logger();
        let error = open_without_logger(&test.path).map(drop).expect_err(what);
        assert_no_logger(&error);
        let store = test.open();
        assert!(store.keyspace("keys").unwrap().len().unwrap() >= KEYS, "{what}");
        assert_clean(&store);
    }
    let test = TestStore::new();
    drop(test.open());
    test.stop_logger();
    assert_no_logger(&open_without_logger(&test.path).map(drop).unwrap_err());
}

/// On a full device the client makes no region: the logger may lack blocks that are needed to open
/// the store.
#[test]
fn a_store_on_a_full_device_waits_for_a_logger() {
    let _limit = limit();
    let Some(device) = Device::mount(Kind::Ext4, 100) else { return };
    let path = device.path();
    fill_and_leave(&path);
    drop(open_without_logger(&path).unwrap());
    device.fill();
    assert_no_logger(&open_without_logger(&path).map(drop).unwrap_err());
    assert_eq!(open_by(&path, false), Ok(KEYS));
    untorn::logger::stop_logger(&path, HANGS).unwrap();
}

/// A call that stops the logger after a client has left finds the logger that the client spawned.
#[test]
fn a_client_that_leaves_at_once_leaves_its_logger_to_be_stopped() {
    let _limit = limit();
    let test = left_in_order();
    for _ in 0..10 {
        let store = test.open();
        assert_eq!(store.find_keyspace("keys").unwrap().unwrap().len().unwrap(), KEYS);
        drop(store);
        assert!(untorn::logger::stop_logger(&test.path, HANGS).unwrap(), "no logger was found");
        // It has left, and in order.
        drop(open_without_logger(&test.path).unwrap());
    }
}

/// Several processes open the store at once: one of them makes the region, one logger begins it.
#[test]
fn several_processes_open_at_once() {
    let _limit = limit();
    for round in 0..8 {
        let test = left_in_order();
        let mut children: Vec<Process> =
            (0..4).map(|n| spawn("opening::open", &test.path, &[&format!("new {n}")])).collect();
        children.iter().for_each(|child| child.expect("ready"));
        children.iter_mut().for_each(|child| child.tell("open"));
        children.iter().for_each(|child| child.expect("put"));
        let store = test.open();
        let stats = store.stats().unwrap();
        assert_eq!((stats.clients.len(), stats.logger_starts), (5, 1), "round {round}: {stats:#?}");
        assert_eq!(store.keyspace("keys").unwrap().len().unwrap(), KEYS + 4);
        children.into_iter().for_each(|child| drop(child.finish()));
        assert_clean(&store);
    }
}

/// Opens a store by itself, or by a logger that makes the region (`thread`). Returns its number of
/// entries, or the error.
fn open_by(path: &Path, thread: bool) -> Result<u64, String> {
    let opened = Store::options().logger_thread(thread).open(path);
    let read = opened.and_then(|store| store.keyspace("keys")?.len());
    read.map_err(|error| error.to_string().replace(&path.display().to_string(), "PATH"))
}

/// An open succeeds only if that of a logger would: files that are cut, missing, replaced or
/// changed in a byte are refused with the same error.
#[test]
fn damaged_stores_are_refused_as_by_a_logger() {
    let _limit = limit();
    let seed = crate::common::seed("--test suite opening::in_order::damaged_stores");
    let mut random = StdRng::seed_from_u64(seed);
    let test = left_in_order();
    let whole = TestStore::new();
    store_files::copy(&test.path, &whole.path);
    let names = |path: &Path| -> Vec<PathBuf> {
        let listed = [path.to_path_buf(), path.join("wal")].map(|folder| std::fs::read_dir(folder).unwrap());
        let files = listed.into_iter().flatten().map(|entry| entry.unwrap().path());
        files.filter(|path| path.is_file()).map(|file| file.strip_prefix(path).unwrap().into()).collect()
    };
    let mut refused = 0;
    let mut compare = |what: &str, change: &mut dyn FnMut(&Path)| {
        let [by_client, by_logger] = [false, true].map(|thread| {
            let copy = TestStore::new();
            store_files::copy(&test.path, &copy.path);
            change(&copy.path);
            open_by(&copy.path, thread)
        });
        assert_eq!(by_client, by_logger, "UNTORN_SEED={seed}: {what}");
        refused += u32::from(by_client.is_err());
    };
    compare("nothing", &mut |_| {});
    for name in names(&whole.path) {
        let shown = name.display().to_string();
        compare(&format!("{shown} removed"), &mut |path| std::fs::remove_file(path.join(&name)).unwrap());
        compare(&format!("{shown} cut"), &mut |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path.join(&name)).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        });
        // The first pages of each file, and those of the tree of keyspaces, lead to all others.
        for _ in 0..5 {
            let file_len = std::fs::metadata(test.path.join(&name)).unwrap().len();
            if file_len == 0 {
                continue;
            }
            let at = random.random_range(0..file_len.min(128 << 10));
            let with = random.random_range(1..=255_u8);
            compare(&format!("{shown} changed at {at}"), &mut |path| {
                let file = std::fs::OpenOptions::new().read(true).write(true).open(path.join(&name)).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ with], at).unwrap();
            });
        }
    }
    eprintln!("{refused} opens were refused");
    assert!(refused > 3, "{refused}");
}

/// Files that are no regular files are refused, or replaced, as by a logger.
#[test]
fn foreign_files_are_refused_as_by_a_logger() {
    let _limit = limit();
    let make: [(&str, Change); 3] = [
        ("a symbolic link", |path| {
            let target = path.with_extension("target");
            std::fs::rename(path, &target).or_else(|_| std::fs::write(&target, b"x")).unwrap();
            std::os::unix::fs::symlink(&target, path).unwrap();
        }),
        ("a FIFO", |path| {
            let _ = std::fs::remove_file(path);
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }),
        ("a folder", |path| {
            let _ = std::fs::remove_file(path);
            std::fs::create_dir(path).unwrap();
        }),
    ];
    let outcome = |name: &str, make: Change, thread: bool| {
        let test = left_in_order();
        make(&test.path.join(name));
        open_by(&test.path, thread)
    };
    for (kind, make) in make {
        for name in ["arena", "checkpoint", "control", "control.new", "lock"] {
            assert_eq!(outcome(name, make, false), outcome(name, make, true), "{name} is {kind}");
        }
    }
}

/// The words of the shared region that differ from one life to the next, as offsets: random ids,
/// times, process ids, waits of threads, figures.
const OF_ONE_LIFE: [(Range<usize>, &str); 9] = [
    (0x28..0x30, "the inode"),
    (0x58..0x60, "the region's number"),
    (0xc0..0xd0, "the holder of the writer lock"),
    (0x200..0x218, "the time of the last urgent commit"),
    (0x280..0x2a0, "the sleep of the flush thread"),
    (0x2b0..0x2b8, "the logger's process id"),
    (0x308..0x320, "the logger's heartbeat and times"),
    (0x2860..0x29c0, "figures, and the sleep of the sampler"),
    (0x9000..0xd040, "latencies, and the client's entry"),
];

/// The words of the shared region.
fn words_of_region(store: &Path) -> Vec<u64> {
    let bytes = std::fs::read(store.join("control")).unwrap();
    bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect()
}

/// The words of the region that the logger has begun, and the ids of the next transactions, are the
/// same after each of the two opens.
#[test]
fn the_region_is_the_one_that_recovery_makes() {
    let _limit = limit();
    let test = left_in_order();
    let [by_client, by_logger] = [false, true].map(|thread| {
        let copy = TestStore::new();
        store_files::copy(&test.path, &copy.path);
        let store = copy.open_with(|options| {
            options.logger_thread(thread);
        });
        // Waits for the logger, and changes nothing.
        drop(store.begin().unwrap());
        let words = words_of_region(&copy.path);
        store.keyspace("keys").unwrap().put("7", "new").unwrap();
        let next = store.snapshot().unwrap().txn_id();
        assert_clean(&store);
        (words, next)
    });
    assert_eq!(by_client.1, by_logger.1);
    assert_eq!(by_client.0.len(), by_logger.0.len());
    for (index, (one, other)) in by_client.0.iter().zip(&by_logger.0).enumerate() {
        let is_of_one_life = OF_ONE_LIFE.iter().any(|(range, _)| range.contains(&(index * 8)));
        assert!(one == other || is_of_one_life, "at {:#x}: {one:#x}, {other:#x}", index * 8);
    }
}
