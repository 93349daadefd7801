//! Goal: a store that has no room left can always be made smaller. Deletes get through, one after
//! another and in several processes, on a full device as at `max_size`. If anything else holds the
//! space, the error names it. Free space serves whatever needs it, and the same few pages are
//! recycled.
//!
//! Method: small file systems that the test fills (they need root), stores with a small `max_size`,
//! snapshots in other processes, kills. A delete that fails once fails the test.

mod held_space;

use crate::common::device::{Device, Kind};
use crate::common::{Role, TestStore, assert_clean, kill_logger, limit, listen, say, spawn, wait_until};
use untorn::{Durability, Error, Keyspace, LimitKind, Store, limits};

/// A wait that lasts longer is a hang.

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    let store = Store::options().create(false).open(&role.store).unwrap();
    match role.name.as_str() {
        // Holds a snapshot of what is there now.
        "pin" => {
            let snapshot = store.snapshot().unwrap();
            say(snapshot.txn_id());
            listen();
        }
        // Deletes the keys of a range, one by one, and prints each.
        "delete" => {
            let rows = store.keyspace("rows").unwrap();
            for key in role.number(0)..role.number(1) {
                match rows.delete(&key.to_be_bytes()) {
                    Ok(was_there) => say(format!("{key} {was_there}")),
                    Err(error) => say(format!("{key}: {error}")),
                }
            }
            say("done");
            listen();
        }
        other => panic!("no role {other}"),
    }
}

// ---- full devices

fn is_full(error: &Error) -> bool {
    matches!(error, Error::DiskFull { .. })
        || matches!(error, Error::Limit { what: LimitKind::StoreSize | LimitKind::FileSize | LimitKind::MaxSize, .. })
}

/// Puts records until the store is full, first many of them in a transaction and then few; how many
/// there are.
fn fill(store: &Store, rows: &Keyspace, value: usize) -> u64 {
    let mut count = rows.len().unwrap();
    for batch in [100, 10, 1] {
        let mut refused = 0;
        while refused < 3 {
            let put = || {
                let mut txn = store.begin()?;
                for key in count..count + batch {
                    txn.put(rows, &key.to_be_bytes(), &vec![key as u8; value])?;
                }
                txn.commit().map(drop)
            };
            match put() {
                Ok(()) => count += batch,
                Err(error) if is_full(&error) => refused += 1,
                Err(error) => panic!("record {count}: {error}"),
            }
            assert!(count < 1_000_000, "the store never fills");
        }
    }
    assert_eq!(rows.len().unwrap(), count);
    count
}

/// Deletes each record as a transaction of its own.
fn delete_each(rows: &Keyspace, keys: impl IntoIterator<Item = u64>) {
    for key in keys {
        match rows.delete(&key.to_be_bytes()) {
            Ok(was_there) => assert!(was_there, "record {key}"),
            Err(error) => panic!("record {key}: {error}"),
        }
    }
}

/// Numbers below `count` in an order that has no order, each once.
fn shuffled(count: u64) -> impl Iterator<Item = u64> {
    let step = (0..).map(|n| count / 2 + 1 + n).find(|step| gcd(*step, count) == 1).unwrap_or(1);
    (0..count).map(move |n| n * step % count)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Small segments, so that a full device shows after few commits.
fn open_on(device: &Device) -> Store {
    let mut options = Store::options();
    options.ring_size(64 << 10).segment_size(256 << 10).max_size(1 << 30).durability(Durability::Visible);
    options.open(device.path()).unwrap()
}

/// A store filled its own device. The log had no room, though most pages were free and each
/// checkpoint succeeded: the last spare segment was never used, and no checkpoint freed the segment
/// that was being written.
#[test]
fn a_store_that_fills_its_own_volume_can_delete() {
    let _limit = limit();
    for (kind, mib) in [(Kind::Tmpfs, 20), (Kind::Ext4, 32)] {
        let Some(device) = Device::mount(kind, mib) else { continue };
        let store = open_on(&device);
        let rows = store.keyspace("rows").unwrap();
        let count = fill(&store, &rows, 900);
        eprintln!("{kind:?}: {count} records fill {mib} MiB");
        delete_each(&rows, shuffled(count));
        assert!(rows.is_empty().unwrap());
        // Durable ones, each a block of the log: several times what the log has.
        for round in 0..1000_u32 {
            let mut txn = store.begin_with(Durability::Durable).unwrap();
            txn.put(&rows, b"again", &round.to_be_bytes()).unwrap();
            let _ticket = txn.commit().unwrap_or_else(|error| panic!("{kind:?}, {round}: {error}"));
        }
        assert!(store.stats().unwrap().needs_recovery.is_none());
        assert_clean(&store);
    }
}

/// The device is filled by another program, at a moment when the log has one spare and the arena
/// none of what it needs to grow. Updates that replace what is there get through for ever, also
/// when the logger dies again and again.
#[test]
fn on_a_device_that_others_fill_deletes_get_through() {
    let _limit = limit();
    let Some(device) = Device::mount(Kind::Tmpfs, 12) else { return };
    let store = open_on(&device);
    let rows = store.keyspace("rows").unwrap();
    let mut txn = store.begin().unwrap();
    for key in 0..3000_u64 {
        txn.put(&rows, &key.to_be_bytes(), &[1; 300]).unwrap();
    }
    txn.commit().unwrap();
    device.fill();
    let count = fill(&store, &rows, 300);
    for (round, piece) in shuffled(count).collect::<Vec<_>>().chunks(400).enumerate() {
        delete_each(&rows, piece.iter().copied());
        if round % 3 == 0 {
            kill_logger(&store);
        }
    }
    assert_clean(&store);
    // All die, and the machine with them.
    kill_logger(&store);
    drop((rows, store));
    device.free();
    std::fs::remove_file(device.path().join("control")).unwrap();
    let store = open_on(&device);
    assert_clean(&store);
}

/// A transaction streams more than the log of a full device holds, and fails; it has used up all
/// that there was. The next one, and the same one in smaller parts, get through at once.
#[test]
fn after_a_stream_that_failed_the_next_one_gets_through() {
    let _limit = limit();
    let Some(device) = Device::mount(Kind::Tmpfs, 20) else { return };
    let store = open_on(&device);
    let rows = store.keyspace("rows").unwrap();
    let count = fill(&store, &rows, 900);
    // Of what is deleted more becomes free than the next records need.
    delete_each(&rows, 0..count / 2);
    for round in 0..5 {
        let mut txn = store.begin().unwrap();
        let mut put = 0_u32;
        // One key again and again: the log grows, the arena does not.
        let error = loop {
            match txn.put(&rows, b"one", &vec![round; 3000]) {
                Ok(()) => put += 1,
                Err(error) => break error,
            }
            assert!(put < 100_000, "the log never fills");
        };
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        txn.rollback();
        store.checkpoint().unwrap();
        let mut txn = store.begin_with(Durability::Durable).unwrap();
        for _ in 0..20 {
            txn.put(&rows, b"one", &vec![round; 3000]).unwrap_or_else(|error| panic!("{round}, {put}: {error}"));
        }
        txn.commit().unwrap_or_else(|error| panic!("{round}, {put}: {error}"));
    }
    assert_clean(&store);
}

// ---- the largest size

fn open_with_max_size(test: &TestStore, max_size: u64) -> Store {
    test.open_with(|options| {
        options.max_size(max_size).durability(Durability::Visible);
    })
}

/// At `max_size` every second delete failed, as it found only pages that the last checkpoint held.
#[test]
fn at_the_largest_size_each_delete_gets_through() {
    let _limit = limit();
    for (page_size, max_size) in [(4096, limits::MAX_SIZE_MIN), (4096, 16 << 20), (65536, 32 << 20)] {
        let test = TestStore::new();
        let store = test.open_with(|options| {
            options.max_size(max_size).page_size(page_size).durability(Durability::Visible);
        });
        let rows = store.keyspace("rows").unwrap();
        for round in 0..2 {
            let count = fill(&store, &rows, 500);
            assert!(count * 500 > max_size / 2, "{count} records of 500 bytes are all that {max_size} bytes hold");
            // Some that are chosen to be far apart in one transaction, as the documentation
            // promises.
            let mut txn = store.begin().unwrap();
            let mut far = Vec::new();
            for key in shuffled(count).take(32) {
                assert!(txn.delete(&rows, &key.to_be_bytes()).unwrap());
                far.push(key);
            }
            txn.commit().unwrap();
            eprintln!("{page_size}, {max_size}, round {round}: {count} records");
            delete_each(&rows, shuffled(count).filter(|key| !far.contains(key)));
            assert_clean(&store);
        }
    }
}

/// A keyspace that takes all of the store is dropped; so are its records, in transactions of a
/// thousand.
#[test]
fn at_the_largest_size_everything_can_be_dropped() {
    let _limit = limit();
    let test = TestStore::new();
    let store = open_with_max_size(&test, 64 << 20);
    for round in 0..3 {
        let rows = store.keyspace("rows").unwrap();
        let count = fill(&store, &rows, 3000);
        let mut txn = store.begin().unwrap();
        if round < 2 {
            assert!(txn.drop_keyspace("rows").unwrap());
            txn.commit().unwrap();
        } else {
            drop(txn);
            let mut key = 0;
            while key < count {
                let mut txn = store.begin().unwrap();
                for key in key..(key + 100).min(count) {
                    assert!(txn.delete(&rows, &key.to_be_bytes()).unwrap());
                }
                txn.commit().unwrap_or_else(|error| panic!("{key} of {count}: {error}"));
                key += 100;
            }
        }
        assert_clean(&store);
    }
}

/// Two processes delete at a full store; one is killed in the middle, and so is the logger.
#[test]
fn several_processes_delete_from_a_full_store() {
    let _limit = limit();
    let test = TestStore::new();
    let store = open_with_max_size(&test, limits::MAX_SIZE_MIN);
    let rows = store.keyspace("rows").unwrap();
    for round in 0..3 {
        let count = fill(&store, &rows, 900);
        let half = count / 2;
        let start =
            |from: u64, to: u64| spawn("space::full_store::delete", &test.path, &[&from.to_string(), &to.to_string()]);
        let (mut killed, other) = (start(0, half), start(half, count));
        for _ in 0..200 + 50 * round {
            killed.hear();
        }
        killed.kill();
        kill_logger(&store);
        for key in half..count {
            other.expect(&format!("{key} true"));
        }
        other.expect("done");
        other.finish();
        let mut txn = store.begin().unwrap();
        let left: Vec<u64> = (0..half).filter(|key| txn.get(&rows, &key.to_be_bytes()).unwrap().is_some()).collect();
        for key in &left[..left.len().min(10)] {
            assert!(txn.delete(&rows, &key.to_be_bytes()).unwrap());
        }
        txn.commit().unwrap();
        delete_each(&rows, left.iter().copied().skip(10));
        assert!(rows.is_empty().unwrap());
        assert_clean(&store);
    }
}

/// All processes are killed while the store is full and what deletes are promised is in use;
/// recovery finds room.
#[test]
fn a_full_store_is_recovered() {
    let _limit = limit();
    for is_lost in [false, true] {
        let test = TestStore::new();
        let store = open_with_max_size(&test, limits::MAX_SIZE_MIN);
        let rows = store.keyspace("rows").unwrap();
        let mut count = fill(&store, &rows, 300);
        drop((rows, store));
        for round in 0..6 {
            let store = open_with_max_size(&test, limits::MAX_SIZE_MIN);
            let rows = store.keyspace("rows").unwrap();
            assert_eq!(rows.len().unwrap(), count, "round {round}");
            for key in (0..3000_u64).filter(|key| rows.get(&key.to_be_bytes()).unwrap().is_some()).take(40) {
                assert!(rows.delete(&key.to_be_bytes()).unwrap());
                count -= 1;
            }
            store.sync().unwrap();
            kill_logger(&store);
            drop((rows, store));
            if is_lost {
                std::fs::remove_file(test.path.join("control")).unwrap();
            }
        }
        assert_clean(&open_with_max_size(&test, limits::MAX_SIZE_MIN));
    }
}

/// A transaction that streams finds no page, when the logger has most of its frames, and waits for
/// a checkpoint of what it began from. Recovery from that checkpoint needs all of its frames: it
/// must not begin behind those that were there.
#[test]
fn a_stream_that_waits_for_a_checkpoint_is_recovered_whole() {
    let _limit = limit();
    const ROWS: u64 = 2800;
    for commits in [true, false] {
        let test = TestStore::new();
        let open = || {
            test.open_with(|options| {
                options.max_size(8 << 20).ring_size(64 << 10).durability(Durability::Durable);
            })
        };
        let store = open();
        let rows = store.keyspace("rows").unwrap();
        let write = |value: u8| {
            let mut txn = store.begin().unwrap();
            for key in 0..ROWS {
                txn.put(&rows, &key.to_be_bytes(), &[value; 900])
                    .unwrap_or_else(|error| panic!("{value}, {key}: {error}"));
            }
            txn
        };
        write(1).commit().unwrap();
        store.checkpoint().unwrap();
        write(2).commit().unwrap();
        let before = store.stats().unwrap().checkpoints;
        let txn = write(3);
        assert!(store.stats().unwrap().checkpoints > before, "it found room without a checkpoint");
        match commits {
            true => drop(txn.commit().unwrap()),
            false => txn.rollback(),
        }
        kill_logger(&store);
        drop((rows, store));
        std::fs::remove_file(test.path.join("control")).unwrap();
        let store = open();
        let rows = store.keyspace("rows").unwrap();
        assert_eq!(rows.len().unwrap(), ROWS);
        for key in 0..ROWS {
            let value = rows.get(&key.to_be_bytes()).unwrap().unwrap();
            assert!(value == [if commits { 3 } else { 2 }; 900], "row {key}, committed: {commits}");
        }
        assert_clean(&store);
    }
}
