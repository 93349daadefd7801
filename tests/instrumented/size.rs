//! Goal: a store takes little of the disk until it holds much, and each of its parts grows when it
//! is needed. A process that is killed between the steps of growing leaves a store that goes on.
//!
//! Method: the blocks of all files are counted as `du` counts them, while the store is open.
//! Processes with crash points die at the steps of the ring's and the client table's growth.

use crate::common::{Role, TestStore, assert_clean, kill_logger, limit, listen, say, spawn, wait_until};
use crate::workload::instrumented::{self, Scenario};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use untorn::{Durability, Feed, FlushPolicy, Options, Store};

/// A store with one record takes fewer bytes of the disk.
const SMALL: u64 = 6_000_000;
/// Bytes of a value that is written often.
const VALUE: usize = 1000;
/// So many of them are several laps of a ring that has not grown.
const ROUNDS: u64 = 1000;

#[test]
fn child() {
    let Some(Role { name, store: path, arguments }) = Role::of_this_process() else { return };
    match name.as_str() {
        "writer" => {
            let store = open(&path);
            say("open");
            write(&store, arguments[0].parse().unwrap());
            say("written");
        }
        "crowded" => {
            let store = open(&path);
            let keys = store.keyspace("keys").unwrap();
            say("open");
            listen();
            for n in 0..ROUNDS {
                let mut txn = store.begin_with(Durability::Visible).unwrap();
                txn.put(&keys, "key", [n as u8; VALUE]).unwrap();
                let _ticket = txn.commit().unwrap();
            }
            say("written");
            listen();
        }
        "opener" => {
            let store = Store::open(&path).unwrap();
            say("open");
            listen();
            drop(store);
        }
        other => panic!("no role {other}"),
    }
}

/// A store whose commits are flushed when half of the ring waits for that, or after a second.
fn open(path: &Path) -> Store {
    Store::options().flush_policy(FlushPolicy::EveryBytes(1 << 30)).open(path).unwrap()
}

/// Commits so many values, each in a transaction of its own, under keys that follow those that are
/// there.
fn write(store: &Store, count: u64) {
    let keys = store.keyspace("keys").unwrap();
    let first = keys.len().unwrap();
    for n in first..first + count {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, &n.to_be_bytes(), &[n as u8; VALUE]).unwrap();
        let _ticket = txn.commit().unwrap();
    }
}

/// Bytes of the blocks of a file, or of a directory and all in it.
fn blocks(path: &Path) -> u64 {
    let stat = std::fs::symlink_metadata(path).unwrap();
    let mut sum = stat.blocks() * 512;
    if stat.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            sum += blocks(&entry.unwrap().path());
        }
    }
    sum
}

/// What each entry of the store's directory takes, for the message of a failure.
fn parts(path: &Path) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), blocks(&entry.path()))).collect()
}

#[track_caller]
fn assert_small(store: &Store, path: &Path) {
    // All that the logger makes ahead is there, and what recovery needed is given back.
    store.checkpoint().unwrap();
    wait_until(|| store.stats().unwrap().wal_spares >= 2);
    let stats = store.stats().unwrap();
    let log = (stats.wal_segments, stats.wal_spares, stats.wal_kept);
    assert!(blocks(path) < SMALL, "{} bytes: {:?}, segments, spares, kept: {log:?}", blocks(path), parts(path));
}

fn small(set: impl Fn(&mut Options)) {
    let test = TestStore::new();
    for life in ["new", "left in order", "killed"] {
        let store = test.open_with(&set);
        store.keyspace("keys").unwrap().put(b"key", life.as_bytes()).unwrap();
        assert_small(&store, &test.path);
        if life == "left in order" {
            // The next open recovers from the log.
            store.keyspace("keys").unwrap().put(b"key", b"again").unwrap();
            kill_logger(&store);
            drop(store);
        } else {
            drop(store);
            test.stop_logger();
        }
    }
    let store = test.open_with(&set);
    assert_eq!(store.keyspace("keys").unwrap().get(b"key").unwrap().unwrap(), b"killed"[..]);
    assert_clean(&store);
}

#[test]
fn a_store_with_one_record_is_small() {
    let _limit = limit();
    small(|_| {});
}

#[test]
fn a_store_that_keeps_its_log_for_followers_is_small() {
    let _limit = limit();
    small(|options| {
        options.retain_changes(1 << 30, Duration::MAX);
    });
}

/// Each part grows: the arena, the log's files and its ring.
#[test]
fn what_is_used_grows() {
    let _limit = limit();
    let test = TestStore::new();
    let store = open(&test.path);
    let before = parts(&test.path);
    write(&store, 12_000);
    store.sync().unwrap();
    let of = |parts: &[(String, u64)], name: &str| parts.iter().find(|part| part.0 == name).unwrap().1;
    for name in ["arena", "wal", "control"] {
        let after = parts(&test.path);
        assert!(of(&after, name) >= 2 * of(&before, name), "{name}: {before:?} {after:?}");
    }
    // The ring has its full size.
    assert!(of(&parts(&test.path), "control") > 2 << 20);
    assert_eq!(store.keyspace("keys").unwrap().len().unwrap(), 12_000);
    assert_clean(&store);
}

/// One transaction that is much larger than the first ring and the first segments.
#[test]
fn a_large_first_transaction_makes_room_for_itself() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let mut txn = store.begin().unwrap();
    for n in 0_u64..400 {
        // Larger values are not in the log.
        txn.put(&keys, &n.to_be_bytes(), &vec![n as u8; 50_000]).unwrap();
    }
    let _ticket = txn.commit().unwrap();
    kill_logger(&store);
    drop((keys, store));
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    for n in 0_u64..400 {
        assert_eq!(keys.get(&n.to_be_bytes()).unwrap().unwrap(), vec![n as u8; 50_000][..]);
    }
    assert_clean(&store);
}

/// Writers die at each step of the ring's growth. All that was visible stays, the next writer grows
/// the ring, and a follower gets each change once.
#[test]
fn writers_die_while_the_ring_grows() {
    let _limit = instrumented::limit_after_build();
    for point in ["ring.zeroed", "ring.grown"] {
        let scenario = Scenario::new();
        let store = open(&scenario.path);
        let _keys = store.keyspace("keys").unwrap();
        let mut changes = store.changes(store.snapshot().unwrap().txn_id(), Feed::Visible).unwrap();
        for nth in 1..=2 {
            let orders = [format!("{point}@{nth}:kill")];
            let mut writer = scenario.start("size::writer", &["4000"], &orders, "");
            writer.hear_prefix("open");
            assert!(!writer.wait(), "{point}: the writer was not killed");
        }
        let control = scenario.path.join("control");
        assert!(blocks(&control) < 2 << 20, "{point}: the ring has its full size already");
        let keys = store.keyspace("keys").unwrap();
        let died_with = keys.len().unwrap();
        assert!(died_with > 0);
        write(&store, 6000);
        store.sync().unwrap();
        assert!(blocks(&control) > 2 << 20, "{point}: the ring has not grown");
        for n in 0..died_with + 6000 {
            assert_eq!(keys.get(&n.to_be_bytes()).unwrap().unwrap(), [n as u8; VALUE][..], "{point}: {n}");
        }
        let mut seen = 0_u64;
        while seen < died_with + 6000 {
            let change = changes.try_next(crate::common::HANGS).unwrap().expect("there are more changes");
            assert_eq!(change.key(), seen.to_be_bytes(), "{point}");
            seen += 1;
        }
        kill_logger(&store);
        drop((keys, changes, store));
        let store = open(&scenario.path);
        assert_eq!(store.keyspace("keys").unwrap().len().unwrap(), died_with + 6000, "{point}");
        assert_clean(&store);
    }
}

/// A ring that can't grow keeps its length, for all processes, and each commit gets through it. A
/// follower gets each change.
#[test]
fn a_ring_that_cannot_grow_is_used_in_laps() {
    let _limit = limit();
    let test = TestStore::new();
    let store = open(&test.path);
    let keys = store.keyspace("keys").unwrap();
    let mut changes = store.changes(store.snapshot().unwrap().txn_id(), Feed::Visible).unwrap();
    let mut writer = spawn("size::crowded", &test.path, &[]);
    writer.hear_prefix("open");
    // The file that a writer would have to open.
    let [control, away] = ["control", "control.away"].map(|name| test.path.join(name));
    std::fs::rename(&control, &away).unwrap();
    writer.tell("go");
    writer.hear_prefix("written");
    std::fs::rename(&away, &control).unwrap();
    write(&store, 1000);
    store.sync().unwrap();
    assert!(blocks(&control) < 1 << 20, "the ring has grown: {}", blocks(&control));
    for n in 0..ROUNDS {
        let change = changes.try_next(crate::common::HANGS).unwrap().expect("there are more changes");
        assert_eq!(change.value().unwrap(), [n as u8; VALUE], "{n}");
    }
    assert_eq!(keys.get("key").unwrap().unwrap(), [(ROUNDS - 1) as u8; VALUE][..]);
    writer.kill();
    kill_logger(&store);
    drop((keys, changes, store));
    // The next region's ring grows.
    let store = open(&test.path);
    assert_eq!(store.keyspace("keys").unwrap().len().unwrap(), 1001);
    write(&store, 6000);
    store.sync().unwrap();
    assert!(blocks(&control) > 2 << 20, "the ring has not grown");
    assert_clean(&store);
}

/// More clients than the first page of their table holds, of which one dies while it makes the
/// second.
#[test]
fn a_client_dies_while_the_client_table_grows() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let store = Store::open(&scenario.path).unwrap();
    let mut others: Vec<_> = (0..63).map(|_| spawn("size::opener", &scenario.path, &[])).collect();
    others.iter().for_each(|other| drop(other.hear_prefix("open")));
    let mut opener = scenario.start("size::opener", &[], &["clients.zeroed:kill".to_string()], "");
    assert!(!opener.wait(), "the client was not killed");
    let more: Vec<_> = (0..2).map(|_| spawn("size::opener", &scenario.path, &[])).collect();
    more.iter().for_each(|other| drop(other.hear_prefix("open")));
    assert_eq!(store.stats().unwrap().clients.len(), 66);
    // Those of the second page are reaped like all others.
    drop(others.split_off(32));
    drop(more);
    wait_until(|| store.stats().unwrap().clients.len() == 33);
    assert_clean(&store);
}
