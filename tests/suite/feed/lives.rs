//! Goal: feeds survive what happens to processes and disks: all processes are killed at random, the
//! device is full of what was kept for followers, a host closes the descriptors that it did not
//! open.
//!
//! Method: real processes; a small tmpfs of its own where a device must fill.

use crate::common::device::{Device, Kind};
use crate::common::{HANGS, Process, Role, TestStore, assert_clean, kill_logger, limit, say, seed, spawn};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use untorn::{Durability, Error, Feed, Options, Store, TxnId};

fn small(options: &mut Options) {
    options.ring_size(64 << 10).segment_size(256 << 10).checkpoint_bytes(300 << 10).max_size(256 << 20);
}

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    let store = Store::open(&role.store).unwrap();
    match role.name.as_str() {
        "writer" => count_on(&store, role.number(0)),
        "consumer" => consume(&store, TxnId::from_u64(role.number(0)), &role.arguments[1]),
        "host" => close_and_follow(&store),
        other => panic!("no role {other}"),
    }
}

/// Counts on from what is there, twice in each transaction, until it is killed. Some transactions
/// stream, some of these roll back.
fn count_on(store: &Store, seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    let keys = store.keyspace("counts").unwrap();
    loop {
        let durability = if dice.random_range(0..10) == 0 { Durability::Durable } else { Durability::Visible };
        let mut txn = store.begin_with(durability).unwrap();
        let n = txn.get(&keys, b"one").unwrap().map_or(0, number) + 1;
        let streams = dice.random_range(0..20) == 0;
        for part in 0..if streams { 120_u64 } else { dice.random_range(0..3) } {
            let value = [&n.to_be_bytes()[..], &vec![7; dice.random_range(0..1500)]].concat();
            txn.put(&keys, &[&b"part"[..], &part.to_be_bytes()].concat(), &value).unwrap();
        }
        txn.put(&keys, b"one", &n.to_be_bytes()).unwrap();
        if streams && dice.random() {
            txn.rollback();
            continue;
        }
        txn.put(&keys, b"two", &n.to_be_bytes()).unwrap();
        txn.commit().unwrap();
        // The test is about the moments of the deaths; the pause limits what must be read
        // afterwards.
        std::thread::sleep(Duration::from_micros(300));
    }
}

fn number(value: &[u8]) -> u64 {
    u64::from_be_bytes(value[..8].try_into().unwrap())
}

/// Prints the id and the number of each transaction that has arrived whole.
fn consume(store: &Store, from: TxnId, feed: &str) {
    let feed = if feed == "Durable" { Feed::Durable } else { Feed::Visible };
    let mut one = None;
    for change in store.changes(from, feed).unwrap() {
        let change = change.unwrap();
        if change.key() == b"one" {
            one = Some(number(change.value().unwrap()));
        }
        if change.last_in_txn() {
            assert_eq!((change.key(), number(change.value().unwrap())), (&b"two"[..], one.take().unwrap()));
            say(format_args!("{} {}", change.txn_id().as_u64(), number(change.value().unwrap())));
        }
    }
}

/// Records the output of a consumer.
fn note(lines: Vec<String>, position: &mut TxnId, seen: &mut Vec<u64>) {
    for line in lines {
        let (txn, n) = line.split_once(' ').unwrap();
        *position = TxnId::from_u64(txn.parse().unwrap());
        seen.push(n.parse().unwrap());
    }
}

#[test]
fn all_processes_are_killed_again_and_again() {
    let _limit = limit();
    let seed = seed("--test suite feed::lives::all_processes_are_killed");
    let mut dice = StdRng::seed_from_u64(seed);
    for feed in [Feed::Visible, Feed::Durable] {
        let dir = TestStore::new();
        // Two writers write faster than a consumer follows that is killed all the time.
        drop(dir.open_with(|options| {
            small(options);
            options.retain_changes(u64::MAX, Duration::MAX);
        }));
        let (mut position, mut seen) = (TxnId::ZERO, Vec::new());
        for life in 0..12_u64 {
            let arguments = [(seed ^ life).to_string()];
            let mut writers: Vec<Process> =
                (0..2).map(|_| spawn("feed::lives::writer", &dir.path, &[&arguments[0]])).collect();
            let from = position.as_u64().to_string();
            let mut consumer = spawn("feed::lives::consumer", &dir.path, &[&from, &format!("{feed:?}")]);
            note(vec![consumer.hear()], &mut position, &mut seen);
            std::thread::sleep(Duration::from_millis(dice.random_range(0..250)));
            let store = dir.open();
            let mut lines = Vec::new();
            for step in [0, 1, 2, 3] {
                // In a different order each time; sometimes some of them live on for a while.
                match (step + life) % 4 {
                    0 => drop(writers.remove(0)),
                    1 => lines = consumer.kill(),
                    2 => kill_logger(&store),
                    _ => drop(writers.pop()),
                }
                std::thread::sleep(Duration::from_millis(dice.random_range(0..10)));
            }
            note(lines, &mut position, &mut seen);
            kill_logger(&store);
        }
        let store = dir.open();
        store.sync().unwrap();
        let mut changes = store.changes(position, feed).unwrap().prefix(b"two");
        let end = store.snapshot().unwrap().txn_id();
        while changes.resume_from() < end {
            seen.extend(
                changes.try_next(Duration::from_millis(20)).unwrap().map(|change| number(change.value().unwrap())),
            );
        }
        let last = store.keyspace("counts").unwrap().get(b"two").unwrap().map_or(0, |value| number(&value));
        assert_eq!(seen, (1..=last).collect::<Vec<u64>>());
        assert!(last > 100, "{last}");
        assert_clean(&store);
    }
}

// ---- a full device

/// What is kept for followers takes all room that is left, and gives way before any commit fails:
/// for the log, and for the arena, until nothing is kept any more.
#[test]
fn on_a_full_device_what_is_kept_gives_way() {
    let _limit = limit();
    let Some(device) = Device::mount(Kind::Tmpfs, 24) else { return };
    let mut options = Store::options();
    small(&mut options);
    options.retain_changes(u64::MAX, Duration::MAX).logger_timeout(HANGS);
    let store = options.open(device.path()).unwrap();
    let keys = store.keyspace("keys").unwrap();
    let commit = |key: u64, value: &[u8]| {
        let mut txn = store.begin_with(Durability::Visible)?;
        txn.put(&keys, &key.to_be_bytes(), value)?;
        txn.commit().map(drop)
    };
    // The log, twice what the device holds.
    for n in 0..48_000_u64 {
        commit(n % 50, &[n as u8; 950]).unwrap_or_else(|error| panic!("{n}: {error}"));
    }
    store.sync().unwrap();
    let kept = store.stats().unwrap().wal_kept;
    assert!(kept > 30, "{kept}");
    let changes = |from| store.changes(from, Feed::Durable).and_then(|mut changes| changes.try_next(HANGS));
    let Err(Error::Lagged { oldest }) = changes(TxnId::ZERO) else { panic!("the device holds all of it") };
    assert!(changes(oldest).unwrap().is_some());
    // The arena.
    let mut n = 1000;
    let refused = loop {
        if let Err(error) = commit(n, &vec![n as u8; 30_000]) {
            break error;
        }
        n += 1;
        assert!(n < 2000, "the device never filled");
    };
    assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
    let stats = store.stats().unwrap();
    eprintln!(
        "{kept} segments were kept, then {} values of 30,000 bytes found room: {} kept",
        n - 1000,
        stats.wal_kept
    );
    // What it freed while the commit was refused may be more than one.
    assert!(stats.wal_kept <= 3 && n > 1300, "{} kept, refused at {n}", stats.wal_kept);
    assert!(stats.needs_recovery.is_none());
    assert_clean(&store);
}

// ---- descriptors

/// A host closes all descriptors that it did not open between two calls; the feed goes on, and
/// closes only its own.
#[test]
fn the_host_closes_all_descriptors() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    let host = spawn("feed::lives::host", &dir.path, &[]);
    host.expect("closed");
    for n in 0..2000_u64 {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, b"k", &[&n.to_be_bytes()[..], &[1; 900]].concat()).unwrap();
        txn.commit().unwrap();
    }
    store.sync().unwrap();
    host.expect("2000 in order, nothing of others closed");
    host.finish();
}

fn close_and_follow(store: &Store) {
    let mut changes = store.changes(store.snapshot().unwrap().txn_id(), Feed::Durable).unwrap();
    let close = || {
        for fd in 3..1024 {
            // SAFETY: closing a number touches no memory; whatever was behind it is not ours to
            // care for here.
            #[allow(unsafe_code)]
            unsafe {
                libc::close(fd)
            };
        }
    };
    close();
    say("closed");
    // Its number is one that the store used to have.
    let mut own: Vec<std::fs::File> = (0..8).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    for n in 0..2000 {
        let change = changes.try_next(HANGS).unwrap().unwrap();
        assert_eq!(number(change.value().unwrap()), n);
        if n == 500 {
            // Far enough behind to need the segments.
            std::thread::sleep(Duration::from_millis(500));
            own.clear();
            close();
            own.extend((0..8).map(|_| std::fs::File::open("/dev/null").unwrap()));
        }
    }
    drop(changes);
    assert!(own.iter().all(|file| file.metadata().is_ok()));
    say("2000 in order, nothing of others closed");
}

// ---- cells

/// Samples of cells are changes of a keyspace like any other.
#[test]
fn samples_of_cells_are_in_the_feed_unless_filtered_out() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let from = store.snapshot().unwrap().txn_id();
    store.cell("imu", 8).unwrap().store_durable(&[7; 8]).unwrap();
    let users = store.keyspace("users").unwrap();
    let last = users.put(b"k", b"v").unwrap();
    let read = |mut changes: untorn::Changes| {
        let mut names = Vec::new();
        while changes.resume_from() < last {
            names.extend(
                changes.try_next(Duration::from_millis(20)).unwrap().map(|change| change.keyspace().to_string()),
            );
        }
        names
    };
    let all = read(store.changes(from, Feed::Durable).unwrap());
    assert!(all.iter().any(|name| name == untorn::CELLS_KEYSPACE) && all.last().unwrap() == "users", "{all:?}");
    assert_eq!(read(store.changes(from, Feed::Durable).unwrap().keyspace("users")), ["users"]);
}
