//! Goal: whatever is done through the public interface, in whatever order, the store holds what an
//! ordinary map would, and its snapshots hold what that map held then.
//!
//! Method: random sequences of operations, by two handles and by another process, which is killed
//! now and then, are done to a store and to a model made of `BTreeMap`s. The flush policy is an
//! interval far longer than the test, so that it is known exactly what is durable: what was visible
//! at the last sync or checkpoint, or when a logger was succeeded or the store reopened. All reads
//! are compared, also from snapshots taken long before. In the end the store is verified.

mod map;
mod operations;
mod peer;

use crate::common::{Process, Role, TestStore, assert_clean, kill_logger, limit, listen, say, spawn};
use map::{bounds_of, compare, in_range, remove_range};
use operations::{Change, Op, op};
use peer::{bound_in_hex, digest, hex, peer_transaction};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use untorn::{Durability, Error, FlushPolicy, Keyspace, Snapshot, Store};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// The keyspaces that exist, with what is in them.
type Model = BTreeMap<usize, Map>;

type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

const KEYSPACES: usize = 3;

const HANDLES: usize = 2;

struct World {
    store: TestStore,
    handles: Vec<Store>,
    /// By handle and number; made when first used, forgotten when dropped.
    keyspaces: Vec<Vec<Option<Keyspace>>>,
    snapshots: Vec<(Snapshot, Arc<Model>)>,
    /// The other process, once it is needed, and what it must see in the snapshots that it has
    /// kept.
    peer: Option<(Process, Vec<String>)>,
    visible: Model,
    durable: Arc<Model>,
    /// Makes the values different.
    counter: u64,
}

fn value(counter: u64, len: usize) -> Vec<u8> {
    counter.to_le_bytes().iter().copied().cycle().take(len).collect()
}

fn open(store: &TestStore) -> Store {
    store.open_with(|options| {
        options.durability(Durability::Visible).flush_policy(FlushPolicy::Every(Duration::from_secs(3600)));
    })
}

fn name(keyspace: usize) -> String {
    format!("keyspace {keyspace}")
}

impl World {
    fn new() -> World {
        let store = TestStore::new();
        let mut world = World {
            handles: Vec::new(),
            keyspaces: Vec::new(),
            store,
            snapshots: Vec::new(),
            peer: None,
            visible: Model::new(),
            durable: Arc::new(Model::new()),
            counter: 0,
        };
        world.open();
        world
    }

    fn open(&mut self) {
        self.handles = (0..HANDLES).map(|_| open(&self.store)).collect();
        self.keyspaces = vec![vec![None; KEYSPACES]; HANDLES];
    }

    /// All that is visible is durable now.
    fn synced(&mut self) {
        self.durable = Arc::new(self.visible.clone());
    }

    fn keyspace(&mut self, handle: usize, keyspace: usize) -> Keyspace {
        if self.keyspaces[handle][keyspace].is_none() {
            self.visible.entry(keyspace).or_default();
            self.keyspaces[handle][keyspace] = Some(self.handles[handle].keyspace(&name(keyspace)).unwrap());
        }
        self.keyspaces[handle][keyspace].clone().unwrap()
    }

    /// Forgets the handles to a keyspace that was dropped; each must return `NoKeyspace`.
    fn forget_keyspace(&mut self, keyspace: usize) {
        for handle in 0..HANDLES {
            if let Some(old) = self.keyspaces[handle][keyspace].take() {
                assert!(matches!(old.get(b"a"), Err(Error::NoKeyspace { .. })));
                assert!(matches!(old.put(b"a", b""), Err(Error::NoKeyspace { .. })));
            }
        }
    }

    fn fresh_value(&mut self, len: usize) -> Vec<u8> {
        self.counter += 1;
        value(self.counter, len)
    }

    fn single(&mut self, handle: usize, change: Change) {
        match change {
            Change::Put { keyspace, key, len } => {
                let value = self.fresh_value(len);
                self.keyspace(handle, keyspace).put(&key, &value).unwrap();
                self.visible.get_mut(&keyspace).unwrap().insert(key, value);
            }
            Change::Delete { keyspace, key } => {
                let found = self.keyspace(handle, keyspace).delete(&key).unwrap();
                assert_eq!(found, self.visible.get_mut(&keyspace).unwrap().remove(&key).is_some());
            }
            Change::DeleteRange { keyspace, bounds } => {
                let keys = self.keyspace(handle, keyspace);
                let before = self.handles[handle].snapshot().unwrap().txn_id();
                let removed = keys.delete_range(bounds_of(&bounds)).unwrap();
                assert_eq!(removed, remove_range(self.visible.get_mut(&keyspace).unwrap(), &bounds));
                let after = self.handles[handle].snapshot().unwrap().txn_id();
                assert_eq!(before == after, removed == 0, "a removal of nothing is no transaction");
            }
            Change::Drop { keyspace } => {
                let found = self.handles[handle].drop_keyspace(&name(keyspace)).unwrap();
                assert_eq!(found, self.visible.remove(&keyspace).is_some());
                self.forget_keyspace(keyspace);
            }
            Change::Look { keyspace, bounds } => self.range(handle, None, keyspace, &bounds, 0),
        }
    }

    fn txn(&mut self, handle: usize, changes: Vec<Change>, commit: bool) {
        let store = self.handles[handle].clone();
        let mut model = self.visible.clone();
        let mut dropped = Vec::new();
        let mut txn = store.begin().unwrap();
        let before = txn.base_txn_id();
        for change in changes {
            match change {
                Change::Put { keyspace, key, len } => {
                    let value = self.fresh_value(len);
                    let handle = txn.keyspace(&name(keyspace)).unwrap();
                    txn.put(&handle, &key, &value).unwrap();
                    assert!(txn.get(&handle, &key).unwrap() == Some(&value[..]));
                    model.entry(keyspace).or_default().insert(key, value);
                }
                Change::Delete { keyspace, key } => {
                    let handle = txn.keyspace(&name(keyspace)).unwrap();
                    let found = txn.delete(&handle, &key).unwrap();
                    assert_eq!(found, model.entry(keyspace).or_default().remove(&key).is_some());
                    assert!(txn.get(&handle, &key).unwrap().is_none());
                }
                Change::DeleteRange { keyspace, bounds } => {
                    let handle = txn.keyspace(&name(keyspace)).unwrap();
                    let removed = txn.delete_range(&handle, bounds_of(&bounds)).unwrap();
                    assert_eq!(removed, remove_range(model.entry(keyspace).or_default(), &bounds));
                    assert!(txn.range(&handle, bounds_of(&bounds)).unwrap().next().is_none());
                }
                Change::Drop { keyspace } => {
                    let found = txn.drop_keyspace(&name(keyspace)).unwrap();
                    assert_eq!(found, model.remove(&keyspace).is_some());
                    dropped.push(keyspace);
                }
                Change::Look { keyspace, bounds } => {
                    let handle = txn.keyspace(&name(keyspace)).unwrap();
                    model.entry(keyspace).or_default();
                    let found = txn.range(&handle, bounds_of(&bounds)).unwrap();
                    compare(found, in_range(model.get(&keyspace), &bounds), self.counter);
                }
            }
        }
        if commit {
            let id = txn.commit().unwrap().txn_id();
            assert!(id >= before);
            self.visible = model;
            dropped.into_iter().for_each(|keyspace| self.forget_keyspace(keyspace));
        } else {
            txn.rollback();
        }
    }

    fn peer(&mut self) -> &mut (Process, Vec<String>) {
        let path = &self.store.path;
        self.peer.get_or_insert_with(|| (spawn("model::peer", path, &[]), Vec::new()))
    }

    fn peer_txn(&mut self, changes: Vec<Change>, commit: bool) {
        let mut model = self.visible.clone();
        let mut dropped = Vec::new();
        let mut answers = Vec::new();
        self.peer().0.tell("txn");
        for change in changes {
            let line = match change {
                Change::Put { keyspace, key, len } => {
                    self.counter += 1;
                    let line = format!("put {keyspace} {} {} {len}", hex(&key), self.counter);
                    model.entry(keyspace).or_default().insert(key, value(self.counter, len));
                    line
                }
                Change::Delete { keyspace, key } => {
                    answers.push(model.entry(keyspace).or_default().remove(&key).is_some().to_string());
                    format!("delete {keyspace} {}", hex(&key))
                }
                Change::DeleteRange { keyspace, bounds } => {
                    answers.push(remove_range(model.entry(keyspace).or_default(), &bounds).to_string());
                    format!("range {keyspace} {} {}", bound_in_hex(&bounds.0), bound_in_hex(&bounds.1))
                }
                Change::Drop { keyspace } => {
                    answers.push(model.remove(&keyspace).is_some().to_string());
                    dropped.push(keyspace);
                    format!("drop {keyspace}")
                }
                Change::Look { .. } => continue,
            };
            self.peer().0.tell(&line);
        }
        let peer = &mut self.peer().0;
        peer.tell(if commit { "commit" } else { "rollback" });
        answers.iter().for_each(|answer| peer.expect(answer));
        peer.expect("done");
        if commit {
            self.visible = model;
            dropped.into_iter().for_each(|keyspace| self.forget_keyspace(keyspace));
        }
    }

    fn peer_look(&mut self, durable: bool, keep: bool) {
        let expected = digest(if durable { &self.durable } else { &self.visible });
        let (peer, kept) = self.peer();
        peer.tell(&format!("look {durable} {keep}"));
        peer.expect(&expected);
        if keep {
            kept.push(expected);
        }
    }

    fn peer_kept(&mut self) {
        let Some((peer, kept)) = &mut self.peer else { return };
        peer.tell("kept");
        kept.iter().for_each(|expected| peer.expect(expected));
    }

    /// Where a read goes, and what it must find.
    fn view(&self, snapshot: Option<usize>) -> (Option<&Snapshot>, &Model) {
        match snapshot.and_then(|index| self.snapshots.get(index)) {
            Some((snapshot, model)) => (Some(snapshot), model),
            None => (None, &self.visible),
        }
    }

    /// A handle to a keyspace, if it exists now.
    fn existing(&mut self, handle: usize, keyspace: usize) -> Option<Keyspace> {
        let found = self.handles[handle].find_keyspace(&name(keyspace)).unwrap();
        assert_eq!(found.is_some(), self.visible.contains_key(&keyspace));
        found
    }

    fn range(&mut self, handle: usize, snapshot: Option<usize>, keyspace: usize, bounds: &Bounds, turns: u64) {
        let Some(keys) = self.existing(handle, keyspace) else { return };
        match self.view(snapshot) {
            (None, model) => {
                compare(keys.range(bounds_of(bounds)).unwrap(), in_range(model.get(&keyspace), bounds), turns);
            }
            (Some(snapshot), model) => match snapshot.range(&keys, bounds_of(bounds)) {
                Ok(found) => compare(found, in_range(model.get(&keyspace), bounds), turns),
                // It was created, perhaps anew, since.
                Err(error) => assert!(matches!(error, Error::NoKeyspace { .. }), "{error}"),
            },
        }
    }

    fn prefix(&mut self, handle: usize, snapshot: Option<usize>, keyspace: usize, prefix: &[u8], turns: u64) {
        let Some(keys) = self.existing(handle, keyspace) else { return };
        let (snapshot, model) = self.view(snapshot);
        let expected = model.get(&keyspace).into_iter().flatten().filter(|(key, _)| key.starts_with(prefix)).collect();
        let Some(snapshot) = snapshot else {
            return compare(keys.prefix(prefix).unwrap(), expected, turns);
        };
        match snapshot.prefix(&keys, prefix) {
            Ok(found) => compare(found, expected, turns),
            Err(error) => assert!(matches!(error, Error::NoKeyspace { .. }), "{error}"),
        }
    }

    fn get(&mut self, handle: usize, snapshot: Option<usize>, keyspace: usize, key: &[u8]) {
        let Some(keys) = self.existing(handle, keyspace) else { return };
        let (snapshot, model) = self.view(snapshot);
        let expected = model.get(&keyspace).and_then(|map| map.get(key));
        let expected = expected.map(|value| &value[..]);
        let Some(snapshot) = snapshot else {
            return assert!(keys.get(key).unwrap().as_deref() == expected, "{key:?}");
        };
        match snapshot.get(&keys, key) {
            Ok(found) => assert!(found == expected, "{key:?}"),
            Err(error) => assert!(matches!(error, Error::NoKeyspace { .. }), "{error}"),
        }
    }

    /// All that a snapshot has: keyspaces, also those dropped since, counts and entries.
    fn check_whole(&self, snapshot: &Snapshot, model: &Model) {
        let mut names = snapshot.keyspaces().unwrap();
        names.sort();
        assert_eq!(names, model.keys().map(|keyspace| name(*keyspace)).collect::<Vec<_>>());
        for keyspace in (0..KEYSPACES).filter(|keyspace| !model.contains_key(keyspace)) {
            assert!(snapshot.find_keyspace(&name(keyspace)).unwrap().is_none());
        }
        for (keyspace, map) in model {
            let keys = snapshot.find_keyspace(&name(*keyspace)).unwrap().unwrap();
            assert_eq!(snapshot.len(&keys).unwrap(), map.len() as u64);
            let all = (Bound::Unbounded, Bound::Unbounded);
            compare(snapshot.range(&keys, ..).unwrap(), in_range(Some(map), &all), self.counter);
        }
    }

    fn check_now(&self) {
        let store = &self.handles[0];
        let (visible, durable) = (store.snapshot().unwrap(), store.durable_snapshot().unwrap());
        if self.visible == *self.durable {
            assert_eq!(visible.txn_id(), durable.txn_id(), "{:#?}", store.stats().unwrap());
        }
        self.check_whole(&visible, &self.visible);
        self.check_whole(&durable, &self.durable);
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Single(handle, change) => self.single(handle, change),
            Op::Txn { handle, changes, commit } => self.txn(handle, changes, commit),
            Op::Fill { keyspace, first, count, len } => {
                let keys = self.keyspace(0, keyspace);
                let value = self.fresh_value(len);
                let mut txn = self.handles[0].begin_with(Durability::Visible).unwrap();
                for n in first..first + count {
                    let key = format!("key-{n:05}").into_bytes();
                    txn.put(&keys, &key, &value).unwrap();
                    self.visible.get_mut(&keyspace).unwrap().insert(key, value.clone());
                }
                txn.commit().unwrap();
            }
            Op::Snapshot { handle, durable } => {
                let store = &self.handles[handle];
                let (snapshot, model) = if durable {
                    (store.durable_snapshot().unwrap(), self.durable.clone())
                } else {
                    (store.snapshot().unwrap(), Arc::new(self.visible.clone()))
                };
                self.check_whole(&snapshot, &model);
                self.snapshots.push((snapshot, model));
            }
            Op::Forget(index) => {
                if index < self.snapshots.len() {
                    let (snapshot, model) = self.snapshots.swap_remove(index);
                    self.check_whole(&snapshot, &model);
                }
            }
            Op::Range { handle, snapshot, keyspace, bounds, turns } => {
                self.range(handle, snapshot, keyspace, &bounds, turns);
            }
            Op::Prefix { handle, snapshot, keyspace, prefix, turns } => {
                self.prefix(handle, snapshot, keyspace, &prefix, turns);
            }
            Op::Get { handle, snapshot, keyspace, key } => self.get(handle, snapshot, keyspace, &key),
            Op::PeerTxn { changes, commit } => self.peer_txn(changes, commit),
            Op::PeerLook { durable, keep } => self.peer_look(durable, keep),
            Op::PeerKept => self.peer_kept(),
            Op::KillPeer => self.peer = None,
            Op::Sync => {
                self.handles[0].sync().unwrap();
                self.synced();
                self.check_now();
            }
            Op::Checkpoint => {
                self.handles[1].checkpoint().unwrap();
                self.synced();
                self.check_now();
            }
            Op::KillLogger => {
                kill_logger(&self.handles[0]);
                // Its successor makes all durable that it finds published. A durable commit would
                // start one, but would wait for the flush policy if another waiter had started it
                // before; a sync requests a flush.
                let mut txn = self.handles[0].begin_with(Durability::Visible).unwrap();
                txn.keyspace("short-lived").unwrap();
                txn.commit().unwrap();
                self.handles[0].sync().unwrap();
                assert!(self.handles[0].drop_keyspace("short-lived").unwrap());
                self.handles[0].sync().unwrap();
                self.synced();
                self.check_now();
            }
            Op::Reopen { stop_logger } => {
                for (snapshot, model) in std::mem::take(&mut self.snapshots) {
                    self.check_whole(&snapshot, &model);
                }
                self.peer_kept();
                self.peer = None;
                if !stop_logger {
                    kill_logger(&self.handles[0]);
                }
                self.keyspaces.clear();
                self.handles.clear();
                if stop_logger {
                    self.store.stop_logger();
                }
                self.open();
                self.synced();
                self.check_now();
            }
        }
    }

    fn finish(mut self) {
        self.peer_kept();
        for (snapshot, model) in std::mem::take(&mut self.snapshots) {
            self.check_whole(&snapshot, &model);
        }
        self.check_now();
        let records: usize = self.visible.values().map(Map::len).sum();
        let stats = self.handles[0].stats().unwrap();
        assert_eq!((stats.records, stats.keyspaces), (records as u64, self.visible.len() as u64));
        assert_eq!(self.handles[0].verify().unwrap().entries, records as u64);
        assert_clean(&self.handles[0]);
        // With the checksums that only a checkpoint writes.
        self.handles[0].checkpoint().unwrap();
        assert_clean(&self.handles[0]);
    }
}

/// Not a test of its own: the other process.
#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    assert_eq!(role.name, "peer");
    let store = Store::options().durability(Durability::Visible).open(&role.store).unwrap();
    let mut kept: Vec<Snapshot> = Vec::new();
    let look = |snapshot: &Snapshot| {
        let mut model = Model::new();
        for keyspace in (0..KEYSPACES).filter(|keyspace| snapshot.keyspaces().unwrap().contains(&name(*keyspace))) {
            let keys = snapshot.find_keyspace(&name(keyspace)).unwrap().unwrap();
            let entries = snapshot.range(&keys, ..).unwrap().map(|entry| entry.unwrap());
            model.insert(keyspace, entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect());
        }
        digest(&model)
    };
    while let Some(line) = listen() {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["txn"] => peer_transaction(&store),
            ["look", durable, keep] => {
                let snapshot = if durable == "true" { store.durable_snapshot() } else { store.snapshot() }.unwrap();
                say(look(&snapshot));
                if keep == "true" {
                    kept.push(snapshot);
                }
            }
            ["kept"] => kept.iter().for_each(|snapshot| say(look(snapshot))),
            _ => panic!("{line}"),
        }
    }
}

#[test]
fn behaves_like_a_map() {
    let _limit = limit();
    let seed = crate::common::seed("--test suite model");
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(40);
    let config = Config { cases, max_shrink_iters: 300, failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&prop::collection::vec(op(), 20..120), |ops| {
        let mut world = World::new();
        ops.into_iter().for_each(|op| world.run(op));
        world.finish();
        Ok::<(), TestCaseError>(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, ops)) => panic!("{reason}; operations: {ops:?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}
