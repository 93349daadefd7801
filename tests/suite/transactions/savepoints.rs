//! Goal: a rollback to a savepoint restores exactly what was there: records, counts, keyspaces and
//! pages, in transactions of any length; and no undone operation is seen by replay or by a feed.
//!
//! Method: random transactions against a stack of maps, read as a whole after each rollback,
//! verified after each commit, followed by both feeds, and replayed from an image of the files. The
//! rules of nesting, and what the log holds, are single tests. `UNTORN_SEED=n` replays a run.
//! Deaths are in `long_transaction_deaths.rs`.

use crate::common::{HANGS, TestStore, assert_clean, limit, seed, store_files};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use untorn::{Change, ChangeKind, Client, Durability, Error, Feed, Options, Savepoint, Store, TxnId, WriteTxn};

/// By keyspace, which may be empty, and key.
type Model = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

/// A ring that a transaction of some hundred records outgrows.
fn small(options: &mut Options) {
    options.ring_size(64 << 10).segment_size(256 << 10).max_size(256 << 20).durability(Durability::Visible);
    options.retain_changes(128 << 20, Duration::from_secs(3600));
}

fn name(number: usize) -> String {
    format!("keyspace {number}")
}

/// All that a transaction sees.
fn seen(txn: &mut WriteTxn<'_>, model: &Model) -> Model {
    let mut seen = Model::new();
    for name in model.keys() {
        let keyspace = txn.keyspace(name).unwrap();
        let entries = txn.iter(&keyspace).unwrap().map(|entry| entry.unwrap());
        seen.insert(name.clone(), entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect());
    }
    seen
}

fn visible(store: &Store) -> Model {
    let snapshot = store.snapshot().unwrap();
    let mut found = Model::new();
    for name in snapshot.keyspaces().unwrap() {
        let keyspace = snapshot.find_keyspace(&name).unwrap().unwrap();
        let entries = snapshot.range(&keyspace, ..).unwrap().map(|entry| entry.unwrap());
        let entries: BTreeMap<_, _> = entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert_eq!(snapshot.len(&keyspace).unwrap(), entries.len() as u64);
        found.insert(name, entries);
    }
    found
}

/// Takes changes over into a copy of the records.
fn follow(copy: &mut Model, change: &Change) {
    let entries = copy.entry(change.keyspace().to_string()).or_default();
    entries.retain(|key, _| !change.affects(key));
    if let Some(value) = change.value() {
        entries.insert(change.key().to_vec(), value.to_vec());
    }
}

fn without_empty(model: &Model) -> Model {
    model
        .iter()
        .filter(|(_, entries)| !entries.is_empty())
        .map(|(name, entries)| (name.clone(), entries.clone()))
        .collect()
}

/// All changes after a transaction, as a direct and a message-passing client get them.
fn changes_after(test: &TestStore, store: &Store, from: TxnId) -> Vec<Change> {
    store.sync().unwrap();
    let mut direct = store.changes(from, Feed::Durable).unwrap();
    let direct: Vec<Change> = std::iter::from_fn(|| direct.try_next(Duration::ZERO).unwrap()).collect();
    let client = Client::connect(test.path.join("logger.sock")).unwrap();
    let mut remote = client.changes(from, Feed::Durable).unwrap();
    let next = || remote.try_next(HANGS).unwrap().expect("a change that the direct feed has");
    let remote: Vec<Change> = std::iter::repeat_with(next).take(direct.len()).collect();
    assert_eq!(direct, remote);
    direct
}

/// What recovery makes of the files as a crash of the kernel leaves them.
fn replayed<T>(test: &TestStore, store: &Store, look: impl FnOnce(&Store) -> T) -> T {
    store.sync().unwrap();
    let image = test.path.with_file_name("image");
    store_files::crash_image(store, &test.path, &image);
    let mut options = Store::options();
    small(&mut options);
    let replayed = options.open(&image).unwrap();
    assert_clean(&replayed);
    let found = look(&replayed);
    drop(replayed);
    untorn::logger::stop_logger(&image, HANGS).unwrap();
    store_files::remove_all(&image);
    found
}

/// One random change, made to the transaction and to the model.
fn change(rng: &mut StdRng, txn: &mut WriteTxn<'_>, model: &mut Model) {
    let name = name(rng.random_range(0..4));
    let key = |rng: &mut StdRng| rng.random_range(0..400_u16).to_be_bytes();
    match rng.random_range(0..100) {
        0..3 => {
            let was_there = txn.drop_keyspace(&name).unwrap();
            assert_eq!(was_there, model.remove(&name).is_some());
        }
        3..8 => {
            let keyspace = txn.keyspace(&name).unwrap();
            let (start, end) = (key(rng), key(rng));
            let removed = txn.delete_range(&keyspace, start..end).unwrap();
            let entries = model.entry(name).or_default();
            let before = entries.len();
            entries.retain(|key, _| **key < start[..] || **key >= end[..]);
            assert_eq!(removed, (before - entries.len()) as u64);
        }
        8..25 => {
            let keyspace = txn.keyspace(&name).unwrap();
            let key = key(rng);
            let was_there = txn.delete(&keyspace, key).unwrap();
            assert_eq!(was_there, model.entry(name).or_default().remove(&key[..]).is_some());
        }
        _ => {
            let keyspace = txn.keyspace(&name).unwrap();
            let len = match rng.random_range(0..30) {
                0 => rng.random_range(4_000..40_000),
                1..4 => rng.random_range(500..3_000),
                _ => rng.random_range(0..100),
            };
            let (key, value) = (key(rng), vec![rng.random(); len]);
            txn.put(&keyspace, key, &value).unwrap();
            model.entry(name).or_default().insert(key.to_vec(), value);
        }
    }
}

/// One random transaction; what it leaves.
fn transaction(rng: &mut StdRng, store: &Store, model: &Model) -> Model {
    let mut now = model.clone();
    let mut stack: Vec<(Savepoint, Model)> = Vec::new();
    let mut gone: Vec<Savepoint> = Vec::new();
    let mut txn = store.begin().unwrap();
    let steps = if rng.random_bool(0.3) { rng.random_range(100..900) } else { rng.random_range(0..60) };
    for _ in 0..steps {
        match rng.random_range(0..30) {
            0 => stack.push((txn.savepoint(), now.clone())),
            1 if !stack.is_empty() => {
                let depth = rng.random_range(0..stack.len());
                gone.extend(stack.drain(depth + 1..).map(|(savepoint, _)| savepoint));
                let (savepoint, then) = &stack[depth];
                txn.rollback_to(*savepoint).unwrap();
                now.clone_from(then);
                assert!(seen(&mut txn, &now) == now);
                if let Some(savepoint) = gone.last() {
                    assert!(matches!(txn.rollback_to(*savepoint), Err(Error::Invalid { .. })));
                }
            }
            _ => change(rng, &mut txn, &mut now),
        }
    }
    assert!(seen(&mut txn, &now) == now);
    if rng.random_bool(0.15) {
        txn.rollback();
        return model.clone();
    }
    txn.commit().unwrap();
    now
}

#[test]
fn random_transactions() {
    let _limit = limit();
    let mut rng = StdRng::seed_from_u64(seed("--test suite savepoints"));
    for _ in 0..3 {
        let test = TestStore::new();
        let store = test.open_with(small);
        let from = store.snapshot().unwrap().txn_id();
        let mut model = Model::new();
        let mut pinned = Vec::new();
        for round in 0..60 {
            model = transaction(&mut rng, &store, &model);
            assert!(visible(&store) == model, "round {round}");
            let stats = store.stats().unwrap();
            let records: usize = model.values().map(BTreeMap::len).sum();
            assert_eq!((stats.records, stats.keyspaces), (records as u64, model.len() as u64));
            assert_clean(&store);
            if rng.random_bool(0.1) {
                store.checkpoint().unwrap();
            }
            if rng.random_bool(0.2) {
                pinned.push((store.snapshot().unwrap(), model.clone()));
            }
            if rng.random_bool(0.2) {
                pinned.clear();
            }
        }
        let mut copy = Model::new();
        changes_after(&test, &store, from).iter().for_each(|change| follow(&mut copy, change));
        assert!(without_empty(&copy) == without_empty(&model), "the feed");
        assert!(replayed(&test, &store, visible) == model, "replay");
    }
}

#[test]
fn savepoints_nest() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    let mut txn = store.begin().unwrap();
    let put = |txn: &mut WriteTxn<'_>, key: &str| txn.put(&keys, key, "v").unwrap();
    let list = |txn: &WriteTxn<'_>| -> String {
        txn.iter(&keys).unwrap().map(|entry| String::from_utf8(entry.unwrap().0.to_vec()).unwrap()).collect()
    };
    put(&mut txn, "a");
    let first = txn.savepoint();
    put(&mut txn, "b");
    let second = txn.savepoint();
    put(&mut txn, "c");
    let third = txn.savepoint();
    put(&mut txn, "d");
    txn.rollback_to(third).unwrap();
    assert_eq!(list(&txn), "abc");
    txn.rollback_to(second).unwrap();
    assert_eq!(list(&txn), "ab");
    // The inner one is gone, the others stay, as often as they are returned to.
    let error = txn.rollback_to(third).unwrap_err().to_string();
    assert!(error.contains("savepoint 3 of the transaction was removed by a rollback to an earlier one"), "{error}");
    put(&mut txn, "e");
    let fourth = txn.savepoint();
    put(&mut txn, "f");
    for _ in 0..2 {
        txn.rollback_to(second).unwrap();
        assert_eq!(list(&txn), "ab");
    }
    assert!(txn.rollback_to(fourth).is_err());
    txn.rollback_to(first).unwrap();
    assert_eq!(list(&txn), "a");
    assert!(txn.rollback_to(second).is_err());
    txn.commit().unwrap();
    assert_eq!(keys.len().unwrap(), 1);
    // Neither another transaction nor one of another store takes it.
    let mut txn = store.begin().unwrap();
    let error = txn.rollback_to(first).unwrap_err().to_string();
    assert!(error.contains("savepoint 1 belongs to another transaction"), "{error}");
    let own = txn.savepoint();
    assert!(own != first);
    assert!(txn.rollback_to(first).is_err());
    txn.rollback_to(own).unwrap();
}

/// A transaction of which nothing is left takes no id; what is undone before a frame is sent is not
/// in the log.
#[test]
fn what_is_undone_early_leaves_no_trace() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    let before = keys.put("a", "1").unwrap();
    let mut txn = store.begin().unwrap();
    let savepoint = txn.savepoint();
    txn.put(&keys, "b", "a value that was undone").unwrap();
    txn.keyspace("undone").unwrap();
    assert!(txn.drop_keyspace("keys").unwrap());
    assert!(matches!(txn.get(&keys, "a"), Err(Error::NoKeyspace { .. })));
    txn.rollback_to(savepoint).unwrap();
    assert_eq!(txn.get(&keys, "a").unwrap(), Some(&b"1"[..]));
    assert_eq!(txn.commit().unwrap().txn_id(), before);
    let mut txn = store.begin().unwrap();
    let savepoint = txn.savepoint();
    txn.put(&keys, "b", "a value that was undone").unwrap();
    txn.rollback_to(savepoint).unwrap();
    txn.put(&keys, "c", "a value that was kept").unwrap();
    assert!(txn.commit().unwrap().txn_id() > before);
    store.sync().unwrap();
    let is_in_log = |wanted: &[u8]| {
        let files = std::fs::read_dir(Path::new(&test.path).join("wal")).unwrap().flatten();
        let mut files = files.map(|file| std::fs::read(file.path()).unwrap());
        files.any(|bytes| bytes.windows(wanted.len()).any(|window| window == wanted))
    };
    assert!(is_in_log(b"a value that was kept") && !is_in_log(b"a value that was undone"));
    assert!(store.find_keyspace("undone").unwrap().is_none());
    assert_clean(&store);
}

/// In a transaction that streams, both feeds and replay have what was before the savepoint and
/// after the rollback.
#[test]
fn a_rollback_after_frames_were_sent() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(small);
    let (keys, dropped) = (store.keyspace("keys").unwrap(), store.keyspace("dropped").unwrap());
    dropped.put("a", "1").unwrap();
    let from = store.snapshot().unwrap().txn_id();
    let mut txn = store.begin().unwrap();
    let put = |txn: &mut WriteTxn<'_>, range: std::ops::Range<u32>, byte: u8| {
        range.for_each(|n| txn.put(&keys, n.to_be_bytes(), vec![byte; 1_000]).unwrap());
    };
    put(&mut txn, 0..100, 1);
    let savepoint = txn.savepoint();
    put(&mut txn, 50..150, 2);
    txn.put(&keys, "large", vec![2; 100_000]).unwrap();
    txn.delete_range(&keys, ..10_u32.to_be_bytes()).unwrap();
    let undone = txn.keyspace("undone").unwrap();
    txn.put(&undone, "a", "2").unwrap();
    let inner = txn.savepoint();
    assert!(txn.drop_keyspace("dropped").unwrap());
    put(&mut txn, 0..100, 3);
    txn.rollback_to(inner).unwrap();
    txn.put(&dropped, "a", "3").unwrap();
    put(&mut txn, 0..100, 3);
    txn.rollback_to(savepoint).unwrap();
    assert!(matches!(txn.get(&undone, "a"), Err(Error::NoKeyspace { .. })));
    put(&mut txn, 90..120, 4);
    txn.rollback_to(savepoint).unwrap();
    put(&mut txn, 90..110, 5);
    txn.commit().unwrap();

    let changes = changes_after(&test, &store, from);
    let told: BTreeMap<Vec<u8>, Vec<u8>> =
        changes.iter().map(|c| (c.key().to_vec(), c.value().unwrap().to_vec())).collect();
    assert!(
        changes.iter().all(|change| change.kind() == ChangeKind::Put && change.keyspace() == "keys"),
        "{changes:?}"
    );
    assert_eq!((changes.len(), changes.iter().filter(|change| change.last_in_txn()).count()), (110, 1));
    assert!(changes.last().unwrap().last_in_txn());
    let expected = (0..110_u32).map(|n| (n.to_be_bytes().to_vec(), vec![if n < 90 { 1 } else { 5 }; 1_000]));
    assert!(told == expected.collect());
    let state = visible(&store);
    assert!(state["keys"] == told && state["dropped"] == BTreeMap::from([(b"a".to_vec(), b"1".to_vec())]));
    assert!(replayed(&test, &store, visible) == state);
    // The same of a transaction of which nothing is left, though its frames are in the log.
    let mut txn = store.begin().unwrap();
    let savepoint = txn.savepoint();
    put(&mut txn, 0..200, 6);
    txn.rollback_to(savepoint).unwrap();
    txn.commit().unwrap();
    keys.put("after", "1").unwrap();
    assert_eq!(changes_after(&test, &store, from).len(), 111);
    assert_eq!(replayed(&test, &store, visible)["keys"].len(), 111);
    assert_clean(&store);
}

/// Pages that were taken for what is undone are used again: a loop of attempts does not make the
/// store larger.
#[test]
fn attempts_reuse_their_pages() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    let mut txn = store.begin().unwrap();
    for n in 0..2_000_u32 {
        txn.put(&keys, n.to_be_bytes(), vec![1; 100]).unwrap();
    }
    let savepoint = txn.savepoint();
    let attempt = |txn: &mut WriteTxn<'_>, round: u8| {
        for n in (0..2_000_u32).step_by(3) {
            txn.put(&keys, n.to_be_bytes(), vec![round; if n % 300 == 0 { 10_000 } else { 90 }]).unwrap();
        }
        txn.rollback_to(savepoint).unwrap();
    };
    for round in 0..50 {
        attempt(&mut txn, round);
    }
    txn.commit().unwrap();
    let pages = store.stats().unwrap().pages_total;
    assert!(pages < 400, "{pages} pages for 60 pages of records, twice, and 20 pages of large values");
    assert_eq!(visible(&store)["keys"].len(), 2_000);
    assert_clean(&store);
}

/// The first transaction of an incarnation notes it with its first change, which may be undone.
#[test]
fn the_first_change_of_an_incarnation_is_undone() {
    let _limit = limit();
    for count in [1, 200_u32] {
        let test = TestStore::new();
        let store = test.open_with(small);
        store.keyspace("keys").unwrap().put("before", "1").unwrap();
        replayed(&test, &store, |store| {
            let keys = store.keyspace("keys").unwrap();
            let before = store.snapshot().unwrap().txn_id();
            let mut txn = store.begin().unwrap();
            let savepoint = txn.savepoint();
            for _ in 0..2 {
                (0..count).for_each(|n| txn.put(&keys, n.to_be_bytes(), vec![1; 1_000]).unwrap());
                txn.rollback_to(savepoint).unwrap();
            }
            txn.put(&keys, "after", "1").unwrap();
            let id = txn.commit().unwrap().txn_id();
            assert!(id.incarnation() > before.incarnation(), "{id} after {before}");
            assert_clean(store);
            let state = visible(store);
            store.sync().unwrap();
            let image = test.path.with_file_name("image of the image");
            store_files::crash_image(store, &test.path.with_file_name("image"), &image);
            let mut options = Store::options();
            small(&mut options);
            let again = options.open(&image).unwrap();
            assert_clean(&again);
            assert!(visible(&again) == state && state["keys"].len() == 2);
            assert!(again.keyspace("keys").unwrap().put("later", "1").unwrap().incarnation() > id.incarnation());
            drop(again);
            untorn::logger::stop_logger(&image, HANGS).unwrap();
        });
    }
}
