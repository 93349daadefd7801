//! What the tests with several processes share: a workload whose every state shows whether it is
//! whole.
#![allow(dead_code, unreachable_pub)]

pub(crate) mod instrumented;
pub(crate) mod worker;

use crate::common::Process;
use std::path::Path;
use std::time::Duration;
use untorn::{ChangeKind, Durability, Error, Feed, Keyspace, Options, Snapshot, Store, TxnId};
use untorn_test_kit::sealed::{expect_sealed, sealed};

/// The newest transaction that a writer reported as visible, and as durable.
pub(crate) fn acknowledged(writer: &Process) -> (u64, u64) {
    let durable = writer.newest("D ");
    (writer.newest("V ").max(durable), durable)
}

/// A small store, so that rings wrap, segments fill and checkpoints come soon; patient with a slow
/// disk.
pub(crate) fn small_options() -> Options {
    let mut options = Store::options();
    options.ring_size(64 << 10).segment_size(256 << 10).checkpoint_bytes(96 << 10);
    options.logger_idle(Duration::from_secs(3)).logger_timeout(Duration::from_secs(120));
    options
}

/// Opens such a store.
pub(crate) fn open_small(path: &Path) -> Store {
    small_options().open(path).unwrap()
}

/// Keys that each writer overwrites in turn.
pub(crate) const KEYS: u64 = 40;

/// What one writer does in its n-th transaction: a value of some size under one of its keys, a
/// removal, and the same number in two keyspaces, which no snapshot may see apart.
pub(crate) struct Writer {
    pub(crate) store: Store,
    data: Keyspace,
    marks: Keyspace,
    pub(crate) name: String,
}

impl Writer {
    pub(crate) fn open(store: Store, name: &str) -> untorn::Result<Writer> {
        let (data, marks) = (store.keyspace("data")?, store.keyspace("marks")?);
        Ok(Writer { store, data, marks, name: name.to_string() })
    }

    /// The number of the last transaction that is visible.
    pub(crate) fn last(&self) -> untorn::Result<u64> {
        Ok(self.marks.get(self.name.as_bytes())?.map_or(0, |value| expect_sealed(&value)))
    }

    fn key(&self, n: u64) -> Vec<u8> {
        format!("{}/{:03}", self.name, n % KEYS).into_bytes()
    }

    /// The same transaction for a message-passing client.
    pub(crate) fn batch(name: &str, n: u64) -> untorn::Batch {
        let key = |n: u64| format!("{name}/{:03}", n % KEYS).into_bytes();
        let mut batch = untorn::Batch::new();
        batch.put("data", name.as_bytes(), &sealed(n, 30)).put("data", &key(n), &sealed(n, Writer::len(n)));
        batch.delete("data", &key(n + KEYS / 2)).put("marks", name.as_bytes(), &sealed(n, 30));
        batch
    }

    fn len(n: u64) -> usize {
        match n % 23 {
            0 => 20_000,
            1..5 => 900,
            _ => 60,
        }
    }

    pub(crate) fn commit(&self, n: u64, durability: Durability) -> untorn::Result<untorn::Ticket> {
        let mut txn = self.store.begin_with(durability)?;
        txn.put(&self.data, self.name.as_bytes(), &sealed(n, 30))?;
        txn.put(&self.data, &self.key(n), &sealed(n, Writer::len(n)))?;
        txn.delete(&self.data, &self.key(n + KEYS / 2))?;
        txn.put(&self.marks, self.name.as_bytes(), &sealed(n, 30))?;
        txn.commit()
    }
}

/// Checks one snapshot: each value whole, each writer's transaction there in both keyspaces or in
/// neither, and the keys that its last transactions left. Returns the last number of each writer.
pub(crate) fn check(store: &Store, snapshot: &Snapshot) -> std::collections::BTreeMap<String, u64> {
    let (Some(data), Some(marks)) = (store.find_keyspace("data").unwrap(), store.find_keyspace("marks").unwrap())
    else {
        return Default::default();
    };
    let mut found = std::collections::BTreeMap::new();
    let Ok(range) = snapshot.range(&marks, ..) else { return found };
    for entry in range {
        let (key, value) = entry.unwrap();
        let (name, n) = (String::from_utf8(key.to_vec()).unwrap(), expect_sealed(value));
        let in_data = snapshot.get(&data, name.as_bytes()).unwrap().map(expect_sealed);
        assert_eq!(in_data, Some(n), "half a transaction of {name} at {}", snapshot.txn_id());
        let prefix = format!("{name}/");
        let mut expected = std::collections::BTreeMap::new();
        for i in n.saturating_sub(3 * KEYS) + 1..=n {
            expected.insert(i % KEYS, i);
            expected.remove(&((i + KEYS / 2) % KEYS));
        }
        let mut there = std::collections::BTreeMap::new();
        for entry in snapshot.prefix(&data, prefix.as_bytes()).unwrap() {
            let (key, value) = entry.unwrap();
            let slot: u64 = std::str::from_utf8(&key[prefix.len()..]).unwrap().parse().unwrap();
            there.insert(slot, expect_sealed(value));
        }
        assert_eq!(there, expected, "{name} after its transaction {n}, at {}", snapshot.txn_id());
        found.insert(name, n);
    }
    found
}

/// A cell and a counter of one writer, which follow its transactions.
pub(crate) struct CellWriter {
    cell: untorn::Cell,
    count: untorn::Counter,
}

impl CellWriter {
    pub(crate) fn open(store: &Store, name: &str) -> untorn::Result<CellWriter> {
        Ok(CellWriter {
            cell: store.cell(&format!("cell of {name}"), 400)?,
            count: store.counter(&format!("count of {name}"))?,
        })
    }

    pub(crate) fn store(&self, n: u64) -> untorn::Result<untorn::Version> {
        self.count.add(1)?;
        self.cell.store(&sealed(n, 400))
    }

    pub(crate) fn store_durable(&self, n: u64) -> untorn::Result<untorn::Version> {
        self.cell.store_durable(&sealed(n, 400))
    }
}

/// What the cell and the counter of a writer hold; the cell's value must be whole.
pub(crate) fn check_cells(store: &Store, name: &str) -> (u64, u64) {
    let Some(cell) = store.find_cell(&format!("cell of {name}")).unwrap() else { return (0, 0) };
    let mut bytes = [0; 400];
    cell.load(&mut bytes).unwrap();
    let count = store.counter(&format!("count of {name}")).unwrap();
    (if bytes == [0; 400] { 0 } else { expect_sealed(&bytes) }, count.get().unwrap())
}

/// Fails the test with what verification found, if anything.
pub(crate) fn assert_verified(store: &Store) {
    let report = store.verify().unwrap();
    assert!(report.is_clean(), "{:#?}", report.problems);
    check_feed(store);
}

/// The log must contain the same history as the pages, as far back as it is retained.
pub(crate) fn check_feed(store: &Store) {
    let snapshot = store.snapshot().unwrap();
    let mut changes = match store.changes(TxnId::ZERO, Feed::Visible) {
        Err(Error::Lagged { .. }) => return,
        changes => changes.unwrap(),
    };
    let mut told = std::collections::BTreeMap::new();
    while changes.resume_from() < snapshot.txn_id() {
        let change = match changes.try_next(Duration::ZERO) {
            Err(Error::Lagged { .. }) => return,
            change => change.unwrap(),
        };
        let Some(change) = change.filter(|change| !change.keyspace().starts_with("untorn.")) else { continue };
        let at = (change.keyspace().to_string(), change.key().to_vec());
        match change.kind() {
            ChangeKind::Put => drop(told.insert(at, change.into_value().unwrap())),
            ChangeKind::Delete => assert!(told.remove(&at).is_some(), "{at:?} is deleted, but was not there"),
            _ => told.retain(|(keyspace, key), _| *keyspace != at.0 || !change.affects(key)),
        }
    }
    let mut there = std::collections::BTreeMap::new();
    for name in snapshot.keyspaces().unwrap().into_iter().filter(|name| !name.starts_with("untorn.")) {
        let keyspace = snapshot.find_keyspace(&name).unwrap().unwrap();
        for entry in snapshot.range(&keyspace, ..).unwrap() {
            let (key, value) = entry.unwrap();
            there.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    assert!(told == there, "the feed tells of {} records, the pages hold {}", told.len(), there.len());
}
