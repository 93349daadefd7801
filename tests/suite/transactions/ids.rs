//! Goal: a transaction id, a cell's version and a keyspace's number name one thing for ever, over
//! losses, clean stops, and openings in which nothing happens. They end at an error, not at one
//! that was given before.
//!
//! Method: everything is killed and `control` removed, which takes back what the log does not hold,
//! as a power cut does. Patched headers bring the limits near.

use crate::common::store_files::{IMAGE_WORDS, image_checksum};
use crate::common::{Role, TestStore, assert_clean, exists, limit, listen, say, send, spawn, wait_until};
use rustix::process::Signal;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::time::Duration;
use untorn::{Cell, Durability, Error, FlushPolicy, Store, TxnId, Version};

/// Opens the store so that what is stored or committed without waiting is neither sampled nor
/// flushed for an hour.
fn open_slow(path: &Path) -> Store {
    let hour = Duration::from_secs(3600);
    let store = Store::options().sample_interval(hour).durability(Durability::Visible).open(path).unwrap();
    store.set_flush_policy(FlushPolicy::Every(hour)).unwrap();
    store
}

/// Kills the logger of a store that no other process has open. With `loses`, what the log does not
/// hold is lost.
fn kill_all(test: &TestStore, store: Store, loses: bool) {
    let logger = store.stats().unwrap().logger_pid.unwrap();
    send(logger, Signal::STOP);
    drop(store);
    send(logger, Signal::KILL);
    wait_until(|| !exists(logger));
    if loses {
        std::fs::remove_file(test.path.join("control")).unwrap();
    }
}

fn stored(cell: &Cell<u64>, values: std::ops::Range<u64>) -> Vec<(Version, u64)> {
    values.map(|value| (cell.store(&value).unwrap(), value)).collect()
}

/// Each version that was given names its value or nothing.
fn check(cell: &Cell<u64>, given: &[(Version, u64)]) {
    for (version, value) in given {
        match cell.load_version(*version) {
            Ok(found) => assert_eq!(found, *value, "version {version} names another value"),
            Err(error) => assert!(matches!(error, Error::Stale), "{error}"),
        }
    }
}

/// Versions that a loss took back were given again after one clean restart in which nothing was
/// stored.
#[test]
fn versions_that_a_loss_took_back() {
    let _limit = limit();
    #[derive(Clone, Copy, Debug)]
    enum Idle {
        Clean,
        Killed,
        Lost,
        OnlyRead,
    }
    use Idle::{Clean, Killed, Lost, OnlyRead};
    for lives in [&[][..], &[Clean], &[Clean, Clean], &[Killed, Clean], &[Lost, Clean], &[OnlyRead], &[Clean, Lost]] {
        let test = TestStore::new();
        let store = open_slow(&test.path);
        let cell = store.cell_of::<u64>("cell").unwrap();
        let mut given = vec![(cell.store_durable(&1).unwrap(), 1)];
        given.extend(stored(&cell, 2..6));
        drop(cell);
        kill_all(&test, store, true);
        for life in lives {
            match life {
                Clean => drop(open_slow(&test.path)),
                Killed => kill_all(&test, open_slow(&test.path), false),
                Lost => kill_all(&test, open_slow(&test.path), true),
                OnlyRead => drop(Store::options().read_only(true).open(&test.path).unwrap()),
            }
            if matches!(life, Clean | OnlyRead) {
                test.stop_logger();
            }
        }
        let store = open_slow(&test.path);
        let cell = store.cell_of::<u64>("cell").unwrap();
        assert_eq!(cell.load().unwrap(), (1, given[0].0), "{lives:?}");
        check(&cell, &given);
        for (version, _) in stored(&cell, 100..106) {
            assert!(given.iter().all(|(other, _)| *other < version), "{lives:?}: {version} was given before");
        }
        check(&cell, &given);
        // Those of this life are kept over a clean stop, and go on.
        given.extend(stored(&cell, 200..202));
        drop((cell, store));
        test.stop_logger();
        let store = open_slow(&test.path);
        let cell = store.cell_of::<u64>("cell").unwrap();
        let next = cell.store(&300).unwrap();
        assert_eq!(next.as_u64(), given.last().unwrap().0.as_u64() + 1);
        check(&cell, &given);
        drop(cell);
        assert_clean(&store);
    }
}

/// A new cell of the name of a dropped one had the same versions.
#[test]
fn versions_of_a_dropped_cell() {
    let _limit = limit();
    let test = TestStore::new();
    let mut given = Vec::new();
    let mut store = open_slow(&test.path);
    for life in 0..5 {
        let cell = store.cell_of::<u64>("cell").unwrap();
        let value = 1000 * life;
        given.extend(stored(&cell, value..value + 10));
        assert!(store.drop_cell("cell").unwrap());
        assert!(matches!(cell.load(), Err(Error::NoCell { .. })));
        match life {
            // A clean stop, a crash that loses nothing, one that loses the drop and what came
            // before it.
            1 => {
                drop((cell, store));
                test.stop_logger();
                store = open_slow(&test.path);
            }
            2 => {
                drop(cell);
                kill_all(&test, store, false);
                store = open_slow(&test.path);
            }
            3 => {
                drop(cell);
                kill_all(&test, store, true);
                store = open_slow(&test.path);
            }
            _ => {}
        }
        let cell = store.cell_of::<u64>("cell").unwrap();
        check(&cell, &given);
        let newest = cell.version().unwrap();
        if life != 3 {
            assert!(given.iter().all(|(version, _)| *version < newest), "{newest} was given before");
        }
        for (version, _) in stored(&cell, value + 100..value + 104) {
            assert!(given.iter().all(|(other, _)| *other < version), "{version} was given before");
        }
        check(&cell, &given);
    }
    assert_clean(&store);
}

/// A process that dies in its transaction, or before one, again and again.
fn in_transaction(role: &Role) {
    let store = Store::options().durability(Durability::Visible).open(&role.store).unwrap();
    let keys = store.find_keyspace("keys").unwrap().unwrap();
    let mut txn = store.begin().unwrap();
    txn.put(&keys, b"key", b"never").unwrap();
    say("in its transaction");
    listen();
}

#[test]
fn lives_without_a_commit_use_up_no_incarnation() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    store.keyspace("keys").unwrap().put(b"key", b"first").unwrap();
    kill_all(&test, store, false);
    for round in 0..8 {
        let mut child = spawn("transactions::ids::in-transaction", &test.path, &[]);
        child.expect("in its transaction");
        let watching = test.open_with(|options| {
            options.read_only(true);
        });
        let logger = watching.stats().unwrap().logger_pid.unwrap();
        child.kill();
        drop(watching);
        send(logger, Signal::KILL);
        wait_until(|| !exists(logger));
        if round % 2 == 0 {
            std::fs::remove_file(test.path.join("control")).unwrap();
        }
        if round % 3 == 0 {
            drop(test.open());
            test.stop_logger();
        }
    }
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let txn = keys.put(b"key", b"second").unwrap();
    assert_eq!(txn.incarnation(), 1, "{txn}");
    drop(keys);
    assert_clean(&store);
}

/// Ids of transactions that were visible and lost are given to no others, however often nothing is
/// committed after it.
#[test]
fn ids_that_a_loss_took_back() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let mut last = store.keyspace("keys").unwrap().put(b"key", b"durable").unwrap();
    kill_all(&test, store, true);
    for round in 0..6_u8 {
        let store = open_slow(&test.path);
        let keys = store.keyspace("keys").unwrap();
        let lost: Vec<TxnId> = (0..3).map(|_| keys.put(b"key", &[round]).unwrap()).collect();
        assert!(lost[0] > last && lost[0].incarnation() > last.incarnation(), "{} after {last}", lost[0]);
        last = lost[2];
        drop(keys);
        kill_all(&test, store, true);
        if round % 2 == 0 {
            drop(open_slow(&test.path));
            test.stop_logger();
        }
    }
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    assert_eq!(keys.get(b"key").unwrap().as_deref(), Some(&b"durable"[..]));
    assert!(matches!(store.changes(last, untorn::Feed::Durable), Err(Error::Diverged { .. })));
    assert!(keys.put(b"key", b"next").unwrap().incarnation() > last.incarnation());
    assert!(matches!(store.changes(last, untorn::Feed::Durable), Err(Error::Diverged { .. })));
    drop(keys);
    assert_clean(&store);
}

// ---- at the limits

/// Words of the image of a commit, and where a header has them.
const WORDS: usize = IMAGE_WORDS;
const IMAGE_AT: usize = 112;

/// Changes the image and the flag "left in order" in both headers of a store that lies at rest.
fn patch_header(path: &Path, clean: bool, change: impl Fn(&mut [u64])) {
    let file = OpenOptions::new().read(true).write(true).open(path.join("checkpoint")).unwrap();
    for offset in [0, 4096] {
        let mut bytes = vec![0; 4096];
        file.read_exact_at(&mut bytes, offset).unwrap();
        let mut words: Vec<u64> =
            bytes[IMAGE_AT..][..WORDS * 8].as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        change(&mut words);
        words[WORDS - 1] = image_checksum(&words);
        for (at, word) in words.iter().enumerate() {
            bytes[IMAGE_AT + at * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        bytes[80] = u8::from(clean);
        let mut crc = !0_u32;
        for byte in bytes[..12].iter().chain(&bytes[16..]) {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
            }
        }
        bytes[12..16].copy_from_slice(&(!crc).to_le_bytes());
        file.write_all_at(&bytes, offset).unwrap();
    }
    std::fs::remove_file(path.join("control")).unwrap();
}

fn made() -> TestStore {
    let test = TestStore::new();
    let store = test.open();
    store.keyspace("keys").unwrap().put(b"key", b"value").unwrap();
    let cell = store.cell_of::<u64>("cell").unwrap();
    cell.store_durable(&7).unwrap();
    drop((cell, store));
    test.stop_logger();
    test
}

fn assert_read(store: &Store) {
    let keys = store.find_keyspace("keys").unwrap().unwrap();
    assert_eq!(keys.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
    assert_eq!(store.find_cell("cell").unwrap().unwrap().size(), 8);
}

#[test]
fn the_last_transaction() {
    let _limit = limit();
    let test = made();
    let last = (1 << 44) - 1;
    patch_header(&test.path, true, |words| words[0] = last - 2);
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    for _ in 0..2 {
        keys.put(b"other", b"value").unwrap();
    }
    assert_eq!(store.stats().unwrap().committed, TxnId::from_u64(last));
    for _ in 0..2 {
        let error = keys.put(b"other", b"value").unwrap_err();
        assert!(matches!(error, Error::Limit { limit, .. } if limit == last), "{error}");
        assert!(error.to_string().contains("transactions"), "{error}");
    }
    assert_read(&store);
    drop(keys);
    drop(store);
    // So after a clean stop, and after a loss.
    test.stop_logger();
    for loses in [false, true] {
        let store = test.open();
        assert_read(&store);
        let keys = store.keyspace("keys").unwrap();
        assert!(matches!(keys.put(b"other", b"value"), Err(Error::Limit { .. })));
        drop(keys);
        kill_all(&test, store, loses);
    }
}

#[test]
fn the_last_incarnation() {
    let _limit = limit();
    let test = made();
    let last = (1_u64 << 20) - 1;
    patch_header(&test.path, false, |words| words[0] |= (last - 1) << 44);
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let txn = keys.put(b"other", b"value").unwrap();
    assert_eq!(u64::from(txn.incarnation()), last);
    let cell = store.cell_of::<u64>("cell").unwrap();
    let version = cell.store_durable(&8).unwrap();
    drop((keys, cell));
    kill_all(&test, store, true);
    for loses in [true, false, true] {
        let store = test.open();
        assert_read(&store);
        let keys = store.keyspace("keys").unwrap();
        let error = keys.put(b"other", b"value").unwrap_err();
        assert!(matches!(error, Error::Limit { limit, .. } if limit == last), "{error}");
        let cell = store.cell_of::<u64>("cell").unwrap();
        assert!(matches!(cell.store(&9), Err(Error::Limit { .. })));
        assert_eq!(cell.load().unwrap(), (8, version));
        drop((keys, cell));
        kill_all(&test, store, loses);
    }
}

#[test]
fn the_last_keyspace() {
    let _limit = limit();
    let test = made();
    patch_header(&test.path, true, |words| words[5] = u64::MAX - 1);
    let store = test.open();
    store.keyspace("last").unwrap().put(b"key", b"value").unwrap();
    assert!(matches!(store.keyspace("beyond"), Err(Error::Limit { .. })));
    // The transaction goes on without it.
    let keys = store.keyspace("keys").unwrap();
    let mut txn = store.begin().unwrap();
    assert!(matches!(txn.keyspace("beyond"), Err(Error::Limit { .. })));
    txn.put(&keys, b"other", b"value").unwrap();
    txn.commit().unwrap();
    assert_read(&store);
}

// ---- arguments, handles

/// What is wrong with an argument is found before anything is changed: the transaction goes on.
#[test]
fn a_refused_argument_leaves_the_transaction_usable() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let gone = store.keyspace("gone").unwrap();
    store.drop_keyspace("gone").unwrap();
    let (long_key, long_name) = (vec![0; 5000], "x".repeat(256));
    let mut txn = store.begin().unwrap();
    txn.put(&keys, b"before", b"1").unwrap();
    assert!(matches!(txn.keyspace(&long_name), Err(Error::Limit { .. })));
    assert!(matches!(txn.keyspace("untorn.mine"), Err(Error::ReservedName { .. })));
    assert!(matches!(txn.drop_keyspace("untorn.mine"), Err(Error::ReservedName { .. })));
    assert!(!txn.drop_keyspace(&long_name).unwrap());
    assert!(matches!(txn.put(&keys, &long_key, b""), Err(Error::Limit { .. })));
    assert!(matches!(txn.delete(&keys, &long_key), Err(Error::Limit { .. })));
    assert!(matches!(txn.put(&gone, b"key", b""), Err(Error::NoKeyspace { .. })));
    assert!(matches!(txn.delete(&gone, b"key"), Err(Error::NoKeyspace { .. })));
    assert!(matches!(txn.get(&gone, b"key"), Err(Error::NoKeyspace { .. })));
    assert!(txn.get(&keys, &long_key).is_ok_and(|found| found.is_none()) || txn.get(&keys, b"before").is_ok());
    let made = txn.keyspace(&"y".repeat(255)).unwrap();
    txn.put(&made, b"after", b"2").unwrap();
    txn.commit().unwrap();
    assert_eq!(keys.get(b"before").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(made.get(b"after").unwrap().as_deref(), Some(&b"2"[..]));
}

/// A transaction over many keyspaces finds each of them, also after some are dropped in it.
#[test]
fn a_transaction_over_many_keyspaces() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let mut txn = store.begin().unwrap();
    let name = |number: u32| format!("keyspace {number}");
    let all: Vec<_> = (0..300).map(|number| txn.keyspace(&name(number)).unwrap()).collect();
    for round in 0..2_u32 {
        for (number, keyspace) in all.iter().enumerate() {
            txn.put(keyspace, b"key", &[(number as u32 * 2 + round) as u8]).unwrap();
        }
    }
    for number in (0..300).step_by(3) {
        assert!(txn.drop_keyspace(&name(number)).unwrap());
    }
    for (number, keyspace) in all.iter().enumerate() {
        match txn.get(keyspace, b"key") {
            Ok(found) => assert_eq!(found, Some(&[(number * 2 + 1) as u8][..])),
            Err(error) => assert!(number % 3 == 0 && matches!(error, Error::NoKeyspace { .. }), "{error}"),
        }
        assert_eq!(txn.put(keyspace, b"more", b"").is_ok(), number % 3 != 0);
    }
    txn.commit().unwrap();
    assert_clean(&store);
}

/// At compile time: a host may hold each handle across `catch_unwind`.
#[test]
fn handles_are_unwind_safe() {
    fn is<T: UnwindSafe + RefUnwindSafe>() {}
    is::<Store>();
    is::<untorn::Keyspace>();
    is::<untorn::Snapshot>();
    is::<untorn::Range>();
    is::<untorn::Value>();
    is::<untorn::Ticket>();
    is::<Cell>();
    is::<Cell<u64>>();
    is::<untorn::Counter>();
    is::<untorn::Changes>();
    is::<untorn::WriteTxn<'static>>();
    is::<untorn::TxnRange<'static, 'static>>();
    is::<untorn::Options>();
    is::<untorn::Batch>();
    is::<untorn::RemoteChanges>();
    is::<untorn::Client>();
    is::<untorn::Scan<'static>>();
    is::<untorn::Key>();
    is::<untorn::Cursor<'static>>();
    is::<untorn::TxnCursor<'static>>();
    is::<untorn::SnapshotRange<'static>>();
}

#[test]
fn child() {
    match Role::of_this_process() {
        None => {}
        Some(role) => in_transaction(&role),
    }
}
