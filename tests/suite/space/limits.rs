//! Goal: every stated size works up to its limit, and exceeding one is an error that names it and
//! takes nothing with it. A store that is overwritten for ever stays as large as it was, or names
//! the reader that keeps it from that.
//!
//! Method: values, keys, names and counts at and around their limits; rounds of overwriting beside
//! checkpoints, with the number of pages watched; a snapshot that is kept, and its share in the
//! figures.

use crate::common::{HANGS, Role, TestStore, assert_clean, limit, listen, say, spawn};
use std::time::Duration;
use untorn::{Durability, Error, LimitKind, Store, limits};

fn visible(test: &TestStore) -> Store {
    test.open_with(|options| {
        options.durability(Durability::Visible);
    })
}

fn refused(error: Error, kind: LimitKind, found: u64, limit: u64) {
    let Error::Limit { what, found: has, limit: most } = &error else { panic!("{error}") };
    assert_eq!((*what, *has, *most), (kind, found, limit), "{error}");
}

/// Values of all kinds of lengths, contiguous and whole; those beyond the limit are refused, and
/// the transaction goes on.
#[test]
fn values_from_nothing_to_the_limit() {
    let _limit = limit();
    let test = TestStore::new();
    let store = visible(&test);
    let values = store.keyspace("values").unwrap();
    let page = limits::PAGE_SIZE_DEFAULT;
    let mut lengths = vec![0, 1, 7, 8, 9, 100, 16 << 10, (16 << 10) + 1, 1 << 20, (5 << 20) + 3];
    for near in [page / 4, page / 2, page, 2 * page, 9 * page] {
        lengths.extend(near - 60..near + 8);
    }
    let fill = |len: usize| (0..len).map(|i| (i * 31 + len) as u8).collect::<Vec<u8>>();
    for len in &lengths {
        values.put(&len.to_be_bytes(), &fill(*len)).unwrap();
    }
    for len in &lengths {
        assert!(values.get(&len.to_be_bytes()).unwrap().unwrap() == fill(*len), "{len} bytes");
    }
    assert_clean(&store);

    let most = limits::VALUE_LEN_MAX as usize;
    let mut huge = vec![0; most + 1];
    for (at, byte) in huge.iter_mut().enumerate().step_by(4093) {
        *byte = (at / 4093) as u8;
    }
    let mut txn = store.begin().unwrap();
    refused(txn.put(&values, b"too long", &huge).unwrap_err(), LimitKind::ValueLength, most as u64 + 1, most as u64);
    huge.truncate(most);
    txn.put(&values, b"longest", &huge).unwrap();
    txn.put(&values, b"beside it", b"v").unwrap();
    txn.commit().unwrap();
    assert!(values.get(b"longest").unwrap().unwrap() == huge);
    assert_eq!(values.get(b"beside it").unwrap().unwrap(), b"v");
    assert!(values.get(b"too long").unwrap().is_none());
    // All processes end; the value is recovered from the log and the ring.
    drop(huge);
    crate::common::kill_logger(&store);
    drop((values, store));
    let store = visible(&test);
    let values = store.keyspace("values").unwrap();
    let value = values.get(b"longest").unwrap().unwrap();
    assert_eq!(value.len(), most);
    let whole = value.iter().enumerate().all(|(at, byte)| *byte == if at % 4093 == 0 { (at / 4093) as u8 } else { 0 });
    assert!(whole, "the longest value after recovery");
}

/// Keys and names at their limits, at every page size.
#[test]
fn keys_and_names_up_to_their_limits() {
    let _limit = limit();
    for page_size in [4096, 8192, 65536] {
        let test = TestStore::new();
        let store = test.open_with(|options| {
            options.page_size(page_size).durability(Durability::Visible);
        });
        let most = limits::key_len_max(page_size);
        assert!(most >= 1000);
        let keys = store.keyspace("keys").unwrap();
        for len in [0, 1, most - 1, most] {
            for fill in 0..20u8 {
                keys.put(&vec![fill; len], &[fill; 30]).unwrap();
            }
        }
        refused(keys.put(&vec![0; most + 1], b"v").unwrap_err(), LimitKind::KeyLength, most as u64 + 1, most as u64);
        refused(keys.delete(&vec![0; most + 1]).unwrap_err(), LimitKind::KeyLength, most as u64 + 1, most as u64);
        // No key can be that long, so none is found; asking is no mistake.
        assert!(keys.get(&vec![0; most + 1]).unwrap().is_none());
        assert_eq!(keys.get(&vec![19; most]).unwrap().unwrap(), [19; 30]);
        assert_eq!(keys.len().unwrap(), 1 + 3 * 20);
        let longest = "ü".repeat(limits::KEYSPACE_NAME_LEN_MAX / 2) + "n";
        store.keyspace(&longest).unwrap().put(b"k", b"v").unwrap();
        store.keyspace("").unwrap().put(b"k", b"v").unwrap();
        refused(store.keyspace(&format!("{longest}x")).unwrap_err(), LimitKind::KeyspaceNameLength, 256, 255);
        assert_eq!(store.keyspaces().unwrap(), ["keys", &longest, ""]);
        assert_clean(&store);
    }
}

/// Thousands of keyspaces come and go, and leave nothing behind.
#[test]
fn thousands_of_keyspaces() {
    let _limit = limit();
    const COUNT: usize = 5000;
    let test = TestStore::new();
    let store = visible(&test);
    let name = |n: usize| format!("keyspace number {n}");
    let mut sizes = Vec::new();
    for round in 0..3 {
        for chunk in (0..COUNT).collect::<Vec<_>>().chunks(500) {
            let mut txn = store.begin().unwrap();
            for n in chunk {
                let keyspace = txn.keyspace(&name(*n)).unwrap();
                txn.put(&keyspace, &n.to_be_bytes(), &[round; 40]).unwrap();
            }
            txn.commit().unwrap();
        }
        let names = store.keyspaces().unwrap();
        assert_eq!(names.len(), COUNT);
        assert!(names.iter().enumerate().all(|(n, found)| *found == name(n)), "in the order of their creation");
        let one = store.find_keyspace(&name(COUNT / 2)).unwrap().unwrap();
        assert_eq!(one.get(&(COUNT / 2).to_be_bytes()).unwrap().unwrap(), [round; 40]);
        for chunk in (0..COUNT).collect::<Vec<_>>().chunks(500) {
            let mut txn = store.begin().unwrap();
            for n in chunk {
                assert!(txn.drop_keyspace(&name(*n)).unwrap());
            }
            txn.commit().unwrap();
        }
        assert!(store.keyspaces().unwrap().is_empty());
        assert!(matches!(one.get(b"k"), Err(Error::NoKeyspace { .. })));
        store.checkpoint().unwrap();
        assert_clean(&store);
        sizes.push(store.stats().unwrap().pages_total);
    }
    assert!(sizes[2] <= sizes[0] + sizes[0] / 4, "pages after each round: {sizes:?}");
}

/// Records are overwritten again and again while checkpoints are taken: the store stays as large as
/// it was.
///
/// Lists of free pages that grew the arena for their own pages, and freed those when they were used
/// up, once made it grow for ever.
#[test]
fn endless_overwriting_is_bounded() {
    let _limit = limit();
    // Small records only, then some that are runs, of lengths that vary all the time.
    for (runs, growth) in [(false, 1.5), (true, 1.25)] {
        let test = TestStore::new();
        let store = test.open_with(|options| {
            options.durability(Durability::Visible).checkpoint_bytes(1 << 20);
        });
        let rows = store.keyspace("rows").unwrap();
        let mut sizes = Vec::new();
        let checkpoints = store.stats().unwrap().checkpoints;
        for round in 0..800u64 {
            for key in 0..300u64 {
                let is_run = runs && key % 25 == 0;
                let len = if is_run { 5_000 + (key * 37 + round * 911) % 40_000 } else { 100 + (key + round) % 200 };
                rows.put(&key.to_be_bytes(), &vec![round as u8; len as usize]).unwrap();
            }
            if round % 10 == 9 {
                // The disk must not decide how many pages wait for a checkpoint.
                store.checkpoint().unwrap();
            }
            sizes.push(store.stats().unwrap().pages_total);
        }
        let checkpoints = store.stats().unwrap().checkpoints - checkpoints;
        eprintln!("runs: {runs}, {checkpoints} checkpoints, pages: {:?}", sizes.iter().step_by(50).collect::<Vec<_>>());
        assert!(checkpoints >= 80, "{checkpoints} checkpoints");
        assert!(sizes[799] as f64 <= sizes[400] as f64 * growth, "pages after each round: {sizes:?}");
        // What is deleted is used again.
        for key in 0..300u64 {
            assert!(rows.delete(&key.to_be_bytes()).unwrap());
        }
        store.checkpoint().unwrap();
        for key in 0..300u64 {
            rows.put(&key.to_be_bytes(), &[9; 200]).unwrap();
        }
        let after = store.stats().unwrap().pages_total;
        assert!(after <= sizes[799] + sizes[799] / 8, "{after} pages after deleting, {} before", sizes[799]);
        assert_clean(&store);
    }
}

/// The figures show which process pins what, since when, and the pages that this costs. They also
/// show that a pin has ended.
#[test]
fn what_a_snapshot_costs_shows() {
    let _limit = limit();
    let test = TestStore::new();
    let store = visible(&test);
    let rows = store.keyspace("rows").unwrap();
    for key in 0..300u32 {
        rows.put(&key.to_be_bytes(), &[0; 1000]).unwrap();
    }
    store.sync().unwrap();
    let readers = |own: bool| {
        let mut readers = store.stats().unwrap().readers;
        readers.retain(|reader| reader.is_loggers == own);
        readers
    };
    assert!(readers(false).is_empty());
    // The logger pins what is durable, as is everything.
    let own = readers(true);
    assert!(own.iter().any(|reader| reader.txns_behind == 0), "{own:?}");
    let mut reader = spawn("space::limits::pin", &test.path, &[]);
    reader.expect("pinned");
    let pinned = store.snapshot().unwrap().txn_id();
    for round in 1..4u8 {
        for key in 0..300u32 {
            rows.put(&key.to_be_bytes(), &[round; 1000]).unwrap();
        }
    }
    std::thread::sleep(Duration::from_millis(250));
    store.sync().unwrap();
    let found = readers(false);
    assert_eq!(found.len(), 1, "{found:?}");
    let stat = &found[0];
    assert_eq!((stat.pid, stat.txn, stat.txns_behind), (reader.pid(), pinned, 900));
    let age = Duration::from_nanos(stat.age_ns.unwrap());
    assert!((Duration::from_millis(100)..HANGS).contains(&age), "{age:?}");
    // 300 records of 1,000 bytes fill at least 75 pages, and all of those were replaced.
    let held = stat.pages_held.unwrap();
    assert!((75..200).contains(&held), "{held} pages");
    // A snapshot of now holds nothing back.
    let now = store.snapshot().unwrap();
    let found = readers(false);
    assert_eq!((found.len(), found[1].pages_held), (2, Some(0)), "{found:?}");
    drop(now);
    reader.kill();
    crate::common::wait_until(|| readers(false).is_empty());
    // What it held is used again: nothing grows.
    let before = store.stats().unwrap().pages_total;
    for key in 0..300u32 {
        rows.put(&key.to_be_bytes(), &[9; 1000]).unwrap();
    }
    assert!(store.stats().unwrap().pages_total <= before + 8);
    assert_clean(&store);
}

/// The largest size is an error that names it; the transaction is gone, the store goes on.
#[test]
fn the_largest_size_is_an_error() {
    let _limit = limit();
    let test = TestStore::new();
    let most = limits::MAX_SIZE_MIN;
    let store = test.open_with(|options| {
        options.max_size(most).durability(Durability::Visible);
    });
    let rows = store.keyspace("rows").unwrap();
    rows.put(b"kept", &[1; 3000]).unwrap();
    let fill = |store: &Store| -> untorn::Result<()> {
        let mut txn = store.begin()?;
        for key in 0..2000u32 {
            txn.put(&rows, &key.to_be_bytes(), &[2; 3000])?;
        }
        txn.commit().map(drop)
    };
    for _ in 0..3 {
        let error = fill(&store).unwrap_err();
        assert!(matches!(&error, Error::Limit { what: LimitKind::StoreSize, limit, .. } if *limit == most), "{error}");
        assert_eq!(rows.len().unwrap(), 1);
        rows.put(b"kept", &[1; 3000]).unwrap();
    }
    let error = rows.put(b"run", &vec![3; 8 << 20]).unwrap_err();
    assert!(matches!(&error, Error::Limit { limit, .. } if *limit == most), "{error}");
    store.checkpoint().unwrap();
    assert_clean(&store);
}

/// A store that has reached its size is full of pages that only a checkpoint sets free: one comes
/// by itself, though no transaction gets through that would bring it about.
#[test]
fn a_full_store_makes_room_by_itself() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.max_size(limits::MAX_SIZE_MIN).durability(Durability::Visible);
    });
    let rows = store.keyspace("rows").unwrap();
    for key in 0..150u32 {
        rows.put(&key.to_be_bytes(), &[1; 3000]).unwrap();
    }
    store.checkpoint().unwrap();
    // Replaces every page of the checkpoint, and fills the rest.
    let error = (0..100_000u32).find_map(|n| rows.put(&(n % 150 + n / 150 * 7).to_be_bytes(), &[2; 3000]).err());
    assert!(matches!(error, Some(Error::Limit { .. })), "{error:?}");
    let before = rows.len().unwrap();
    crate::common::wait_until(|| rows.delete(&0u32.to_be_bytes()).is_ok());
    assert_eq!(rows.len().unwrap(), before - 1);
    assert_clean(&store);
}

/// After an error in the middle of a change, every call of a transaction fails: its state is
/// neither old nor new.
#[test]
fn a_failed_transaction_answers_nothing() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.max_size(limits::MAX_SIZE_MIN).durability(Durability::Visible);
    });
    let rows = store.keyspace("rows").unwrap();
    rows.put(b"kept", b"v").unwrap();
    let mut txn = store.begin().unwrap();
    let error = (0..100_000u32).find_map(|n| txn.put(&rows, &n.to_be_bytes(), &[2; 3000]).err());
    assert!(matches!(error, Some(Error::Limit { .. })), "{error:?}");
    assert!(matches!(txn.get(&rows, b"kept"), Err(Error::TransactionFailed)));
    assert!(matches!(txn.range(&rows, ..), Err(Error::TransactionFailed)));
    assert!(matches!(txn.delete(&rows, b"kept"), Err(Error::TransactionFailed)));
    assert!(matches!(txn.put(&rows, b"kept", b"w"), Err(Error::TransactionFailed)));
    assert!(matches!(txn.commit(), Err(Error::TransactionFailed)));
    assert_eq!(rows.get(b"kept").unwrap().unwrap(), b"v");
    assert_eq!(rows.len().unwrap(), 1);
}

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    assert_eq!(role.name, "pin");
    let store = Store::options().read_only(true).open(&role.store).unwrap();
    let snapshot = store.snapshot().unwrap();
    say("pinned");
    listen();
    drop(snapshot);
}
