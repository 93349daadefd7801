//! Goal: the removal of a range is one change: in the store, in the log, after replay, and in both
//! feeds; and the space that it frees is used again.
//!
//! Method: single removals at the limits, one transaction that streams, and images of the files as
//! a crash of the kernel leaves them. Random removals are in `model` and `feed::model`, deaths
//! in `long_transaction_deaths.rs`.

use crate::common::{HANGS, TestStore, assert_clean, limit, store_files};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;
use untorn::{Change, ChangeKind, Client, Durability, Error, Feed, Keyspace, Options, Store, TxnId};

/// A ring that a transaction of some hundred records outgrows.
fn small(options: &mut Options) {
    options.ring_size(64 << 10).segment_size(256 << 10).durability(Durability::Visible);
    options.retain_changes(64 << 20, Duration::from_secs(3600));
}

fn key(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

fn keys_of(keyspace: &Keyspace) -> Vec<Vec<u8>> {
    keyspace.iter().unwrap().map(|entry| entry.unwrap().0.to_vec()).collect()
}

/// All changes after a transaction, as a direct and a message-passing client get them.
fn changes_after(test: &TestStore, store: &Store, from: TxnId, prefix: &[u8]) -> Vec<Change> {
    store.sync().unwrap();
    let mut direct = store.changes(from, Feed::Durable).unwrap().prefix(prefix);
    let direct: Vec<Change> = std::iter::from_fn(|| direct.try_next(Duration::ZERO).unwrap()).collect();
    let client = Client::connect(test.path.join("logger.sock")).unwrap();
    let mut remote = client.changes(from, Feed::Durable).unwrap().prefix(prefix);
    let next = || remote.try_next(HANGS).unwrap().expect("a change that the direct feed has");
    let remote: Vec<Change> = std::iter::repeat_with(next).take(direct.len()).collect();
    assert_eq!(direct, remote);
    direct
}

#[test]
fn a_removal_of_nothing_is_no_transaction() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    for n in [10, 20] {
        keys.put(key(n), b"v").unwrap();
    }
    let before = store.stats().unwrap().committed;
    assert_eq!(keys.delete_range(key(11)..key(20)).unwrap(), 0);
    assert_eq!(keys.delete_range(key(20)..key(10)).unwrap(), 0);
    assert_eq!(keys.delete_range(key(10)..key(10)).unwrap(), 0);
    assert_eq!(keys.delete_range((Bound::Excluded(key(20)), Bound::Unbounded)).unwrap(), 0);
    assert_eq!(keys.delete_range(.."").unwrap(), 0);
    assert_eq!(store.keyspace("empty").unwrap().clear().unwrap(), 0);
    let created = store.stats().unwrap().committed;
    assert_eq!(created.sequence(), before.sequence() + 1, "the keyspace that was created, and nothing else");
    let mut txn = store.begin().unwrap();
    assert_eq!(txn.delete_range(&keys, ..key(10)).unwrap(), 0);
    assert_eq!(txn.commit().unwrap().txn_id(), created);
    assert_eq!(keys.len().unwrap(), 2);
}

#[test]
fn bounds_may_be_longer_than_keys() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    let (longest, shorter) = (vec![7; 1024], vec![7; 1023]);
    let [longer, zeros] = [vec![7; 1500], [&longest[..], &[0; 20]].concat()];
    let put = |key: &Vec<u8>| keys.put(key, b"v").map(|_| ()).unwrap();
    let fill = || [&longest, &shorter, &vec![7, 7, 8]].into_iter().for_each(put);
    let from = store.snapshot().unwrap().txn_id();
    fill();
    assert_eq!(keys.delete_range(&longer[..]..).unwrap(), 1);
    assert_eq!(keys_of(&keys), [shorter.clone(), longest.clone()]);
    fill();
    assert_eq!(keys.delete_range(&shorter[..]..=&longest).unwrap(), 2);
    assert_eq!(keys_of(&keys), [[7, 7, 8]]);
    fill();
    assert_eq!(keys.delete_range(..&zeros[..]).unwrap(), 2);
    fill();
    assert_eq!(keys.delete_range((Bound::Excluded(&longest[..]), Bound::Excluded(&[8][..]))).unwrap(), 1);
    assert_eq!(keys.delete_range((Bound::Excluded(&shorter[..]), Bound::Included(&longer[..]))).unwrap(), 1);
    assert_eq!(keys_of(&keys), [shorter]);
    let bounds = changes_after(&test, &store, from, b"").into_iter();
    let bounds = bounds.filter(|change| change.kind() == ChangeKind::DeleteRange);
    let longest_bound = bounds.map(|change| change.key().len().max(change.end().map_or(0, <[u8]>::len))).max();
    assert_eq!(longest_bound, Some(1025));
    // They are read from the log again.
    let state = store_files::read(&store).unwrap();
    store.sync().unwrap();
    let image = test.path.with_file_name("image");
    store_files::crash_image(&store, &test.path, &image);
    let mut options = Store::options();
    small(&mut options);
    let replayed = options.open(&image).unwrap();
    assert_eq!(store_files::read(&replayed).unwrap(), state);
    assert_clean(&replayed);
    drop(replayed);
    untorn::logger::stop_logger(&image, HANGS).unwrap();
}

#[test]
fn what_may_not_be_removed() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    store.cell("cell", 8).unwrap();
    let cells = store.find_keyspace(untorn::CELLS_KEYSPACE).unwrap().unwrap();
    assert!(matches!(cells.clear(), Err(Error::ReservedName { .. })));
    let dropped = store.keyspace("dropped").unwrap();
    store.drop_keyspace("dropped").unwrap();
    assert!(matches!(dropped.delete_range("a"..), Err(Error::NoKeyspace { name }) if name == "dropped"));
    let other = TestStore::new();
    let elsewhere = other.open().keyspace("elsewhere").unwrap();
    let mut txn = store.begin().unwrap();
    assert!(matches!(txn.delete_range(&elsewhere, ..), Err(Error::OtherStore { .. })));
    let keys = txn.keyspace("keys").unwrap();
    txn.put(&keys, "a", "1").unwrap();
    assert_eq!(txn.clear(&keys).unwrap(), 1);
    txn.commit().unwrap();
}

/// The arena does not grow when what was cleared is put again, as often as that happens; an older
/// snapshot keeps its pages.
#[test]
fn the_space_of_what_was_cleared_is_used_again() {
    const RECORDS: u32 = 100_000;
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.durability(Durability::Visible);
    });
    let (keys, others) = (store.keyspace("keys").unwrap(), store.keyspace("others").unwrap());
    others.put(b"stays", b"here").unwrap();
    let fill = || {
        for first in (0..RECORDS).step_by(10_000) {
            let put = |txn: &mut untorn::WriteTxn<'_>| {
                (first..first + 10_000).try_for_each(|n| {
                    let len = if n % 5_000 == 0 { 20_000 } else { 30 };
                    txn.put(&keys, key(n), vec![n as u8; len])
                })
            };
            store.transact(put).unwrap();
        }
        store.checkpoint().unwrap();
    };
    fill();
    let full = store.stats().unwrap();
    for _ in 0..8 {
        let snapshot = store.snapshot().unwrap();
        assert_eq!(keys.clear().unwrap(), u64::from(RECORDS));
        assert_eq!((keys.len().unwrap(), store.stats().unwrap().records), (0, 1));
        assert_eq!(snapshot.len(&keys).unwrap(), u64::from(RECORDS));
        assert!(snapshot.get(&keys, key(77)).unwrap().is_some());
        assert_clean(&store);
        drop(snapshot);
        store.checkpoint().unwrap();
        let free = store.stats().unwrap().pages_free;
        assert!(free * 10 > full.pages_total * 9, "{free} of {} pages are free", full.pages_total);
        fill();
        let total = store.stats().unwrap().pages_total;
        // The queues of freed pages take some.
        assert!(total < full.pages_total + full.pages_total / 20, "{total} pages, {full:#?}");
    }
    assert_clean(&store);
}

/// A transaction that outgrows the ring, with removals in the middle: its result, its changes, and
/// its replay.
#[test]
fn a_transaction_that_streams() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    let from = store.snapshot().unwrap().txn_id();
    let mut model = BTreeMap::new();
    let mut txn = store.begin().unwrap();
    for round in 0..4_u32 {
        for n in 0..300 {
            let value = vec![(n + round) as u8; if n % 100 == 7 { 30_000 } else { 500 }];
            txn.put(&keys, key(n), &value).unwrap();
            model.insert(key(n).to_vec(), value);
        }
        let (start, end) = (key(round * 40), key(round * 40 + 90));
        let removed = txn.delete_range(&keys, start..end).unwrap();
        let before = model.len();
        model.retain(|key, _| **key < start[..] || **key >= end[..]);
        assert_eq!(removed, (before - model.len()) as u64);
    }
    txn.commit().unwrap();
    let changes = changes_after(&test, &store, from, b"");
    let ranges = changes.iter().filter(|change| change.kind() == ChangeKind::DeleteRange).count();
    assert_eq!((ranges, changes.iter().filter(|change| change.last_in_txn()).count()), (4, 1));
    let mut copy = BTreeMap::new();
    for change in changes {
        copy.retain(|key: &Vec<u8>, _| !change.affects(key));
        if let Some(value) = change.value() {
            copy.insert(change.key().to_vec(), value.to_vec());
        }
    }
    assert!(copy == model, "the feed tells of {} records, {} are there", copy.len(), model.len());
    let state = store_files::read(&store).unwrap();
    assert_eq!(state.len(), model.len());
    let image = test.path.with_file_name("image");
    store_files::crash_image(&store, &test.path, &image);
    let mut options = Store::options();
    small(&mut options);
    let replayed = options.open(&image).unwrap();
    assert!(store_files::read(&replayed).unwrap() == state);
    assert!(store_files::read_changes(&replayed).unwrap() == state);
    assert_clean(&replayed);
    drop(replayed);
    untorn::logger::stop_logger(&image, HANGS).unwrap();
}

/// A follower that filters by a prefix gets the part of a range that has it.
#[test]
fn a_prefix_cuts_the_ranges_of_a_feed() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    let from = store.snapshot().unwrap().txn_id();
    let mut txn = store.begin().unwrap();
    for key in ["a", "ba", "bb", "bc", "c"] {
        txn.put(&keys, key, "").unwrap();
    }
    txn.commit().unwrap();
    for range in ["a".."b", "bb".."bc", "bc".."d"] {
        assert_eq!(keys.delete_range(range.clone()).unwrap(), 1 + u64::from(range.end == "d"));
    }
    assert_eq!(keys.clear().unwrap(), 1);
    let found = |prefix: &str| -> Vec<(String, Option<String>)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let changes = changes_after(&test, &store, from, prefix.as_bytes()).into_iter();
        let ranges = changes.filter(|change| change.kind() == ChangeKind::DeleteRange);
        ranges.map(|change| (text(change.key()), change.end().map(text))).collect()
    };
    let range = |start: &str, end: &str| (start.to_string(), Some(end.to_string()).filter(|end| !end.is_empty()));
    assert_eq!(found(""), [range("a", "b"), range("bb", "bc"), range("bc", "d"), range("", "")]);
    assert_eq!(found("b"), [range("bb", "bc"), range("bc", "c"), range("b", "c")]);
    assert_eq!(found("bd"), [range("bd", "be"), range("bd", "be")]);
    assert_eq!(found("e"), [range("e", "f")]);
}
