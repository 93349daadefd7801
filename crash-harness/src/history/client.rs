//! Clients whose operations are recorded. They use transactions, compare-and-swap by version, or
//! messages.

use super::event::{Answer, Event, Key, Operation, Seen, What};
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::role::{Role, say};
use crate::processes::sealed::{sealed, unsealed};
use crate::workload::messenger;
use crate::workload::{self, misbehaved};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Batch, CasOutcome, Client, CommitOutcome, Durability, Error, Keyspace, Snapshot, Store, TxnId};

/// Keys of one history. There are few, so that operations conflict.
pub(super) const KEYS: Key = 4;
/// The keyspace of all histories.
pub(super) const KEYSPACE: &str = "history";

/// The instructions of a client, from its arguments.
#[derive(Clone, Debug)]
pub(super) struct Orders {
    /// The kind of client: one of [`KINDS`].
    pub(super) kind: &'static str,
    /// Its number in the history.
    pub(super) client: u32,
    /// The history's number in the store.
    pub(super) history: u32,
    pub(super) seed: u64,
    /// Number of operations.
    pub(super) operations: u32,
    /// Whether everything that is acknowledged must survive a kernel crash.
    pub(super) is_durable: bool,
}

/// The kinds of clients.
pub(super) const KINDS: [&str; 3] = ["transactions", "swaps", "messages"];

impl Orders {
    /// Encodes the instructions as arguments of a process.
    pub(super) fn arguments(&self) -> Vec<String> {
        let numbers = [u64::from(self.client), u64::from(self.history), self.seed, u64::from(self.operations)];
        let numbers = numbers.iter().map(u64::to_string);
        std::iter::once(self.kind.to_string()).chain(numbers).chain([self.is_durable.to_string()]).collect()
    }

    fn of(role: &Role) -> Option<Orders> {
        let text = |at: usize| role.arguments.get(at).map(String::as_str);
        Some(Orders {
            kind: KINDS.into_iter().find(|kind| text(0) == Some(kind))?,
            client: text(1)?.parse().ok()?,
            history: text(2)?.parse().ok()?,
            seed: text(3)?.parse().ok()?,
            operations: text(4)?.parse().ok()?,
            is_durable: text(5)?.parse().ok()?,
        })
    }
}

/// Returns the path of the file whose creation starts a history. Clients that are ready wait for
/// the file.
pub(super) fn starting_flag(store: &Path, history: u32) -> std::path::PathBuf {
    store.with_extension(format!("begin-{history}"))
}

/// Returns the key in the store for a key of a history.
pub(super) fn key_in(history: u32, key: Key) -> Vec<u8> {
    format!("{history}/{key}").into_bytes()
}

/// Plays the role of a client: performs its operations and prints an event for each.
///
/// # Errors
/// A violation that is independent of the history.
pub(crate) fn play(role: &Role) -> Result<(), Finding> {
    let wrong = || Finding::new(Kind::Misbehaved, format!("orders of a client: {:?}", role.arguments));
    let orders = Orders::of(role).ok_or_else(wrong)?;
    let mut random = StdRng::seed_from_u64(orders.seed);
    let path = &role.store;
    if orders.kind == "messages" {
        let client = messenger::connect(path)?;
        let mut by = Messages { client, orders: orders.clone(), versions: BTreeMap::new() };
        return go(path, &orders, &mut random, |random, value| by.once(random, value));
    }
    let store = workload::open(path)?;
    let keyspace = store.keyspace(KEYSPACE).map_err(misbehaved("keyspace"))?;
    let mut by = Direct { store, keyspace, orders: orders.clone(), versions: BTreeMap::new() };
    match orders.kind {
        "swaps" => go(path, &orders, &mut random, |random, value| by.swap(random, value)),
        _ => go(path, &orders, &mut random, |random, value| by.transaction(random, value)),
    }
}

fn go(
    path: &Path,
    orders: &Orders,
    random: &mut StdRng,
    mut once: impl FnMut(&mut StdRng, u64) -> untorn::Result<()>,
) -> Result<(), Finding> {
    say("ready");
    let flag = starting_flag(path, orders.history);
    while !flag.exists() {
        std::thread::sleep(Duration::from_micros(200));
    }
    for n in 1..=orders.operations {
        std::thread::sleep(Duration::from_micros(random.random_range(0..1200)));
        let value = u64::from(orders.client) * 1000 + u64::from(n);
        match once(random, value) {
            // The outcome is unknown; the checker decides which outcomes are possible.
            // `LoggerUnavailable` occurs if loggers are killed repeatedly before they are ready.
            Err(Error::InDoubt { .. } | Error::NotDurable { .. } | Error::LoggerUnavailable { .. }) => {
                Event::now(orders.client, What::InDoubt).tell()
            }
            done => done.map_err(misbehaved("an operation of a history"))?,
        }
    }
    Ok(())
}

impl Orders {
    fn key(&self, key: Key) -> Vec<u8> {
        key_in(self.history, key)
    }

    fn began(&self, operation: Operation) {
        Event::now(self.client, What::Began(operation)).tell();
    }

    fn done(&self, read: Vec<Seen>, at: Option<TxnId>) {
        self.answered(Answer::Done { read, at: at.map(TxnId::as_u64) });
    }

    fn answered(&self, answer: Answer) {
        Event::now(self.client, What::Answered(answer)).tell();
    }

    fn durability(&self, random: &mut StdRng) -> Durability {
        match random.random_range(0..3) {
            _ if self.is_durable => Durability::Durable,
            0 => Durability::Durable,
            _ => Durability::Visible,
        }
    }
}

fn bytes_of(value: u64) -> Vec<u8> {
    // Some values are large enough for pages of their own.
    sealed(value, if value.is_multiple_of(7) { 9000 } else { 30 })
}

/// Returns the number that a value contains. For a torn value, returns a number that was never
/// written.
pub(super) fn seen(found: Option<(&[u8], TxnId)>) -> Seen {
    found.map_or(Seen::Absent, |(value, version)| seen_value(value, Some(version.as_u64())))
}

fn seen_value(value: &[u8], version: Option<u64>) -> Seen {
    Seen::Present { value: Some(unsealed(value).unwrap_or(u64::MAX)), version }
}

/// Returns one to three distinct keys.
fn some_keys(random: &mut StdRng) -> Vec<Key> {
    let first = random.random_range(0..KEYS);
    (first..first + random.random_range(1..4)).map(|key| key % KEYS).collect()
}

/// A client that maps the store.
struct Direct {
    store: Store,
    keyspace: Keyspace,
    orders: Orders,
    /// The known versions, by key.
    versions: BTreeMap<Key, u64>,
}

impl Direct {
    /// Makes everything that was read durable. A read may return data that is only visible, which a
    /// kernel crash would lose after it was recorded.
    fn settle(&self) -> untorn::Result<()> {
        if self.orders.is_durable { self.store.sync() } else { Ok(()) }
    }

    fn get(&mut self, key: Key) -> untorn::Result<()> {
        self.orders.began(Operation { read: vec![key], ..Operation::default() });
        let found = self.keyspace.get_versioned(&self.orders.key(key))?;
        let found = found.as_ref().map(|(value, version)| (&**value, *version));
        self.learn(key, found.map(|(_, version)| version));
        self.settle()?;
        self.orders.done(vec![seen(found)], None);
        Ok(())
    }

    fn learn(&mut self, key: Key, version: Option<TxnId>) {
        match version {
            Some(version) => self.versions.insert(key, version.as_u64()),
            None => self.versions.remove(&key),
        };
    }

    fn snapshot(&self, snapshot: impl FnOnce() -> untorn::Result<Snapshot>, keys: &[Key]) -> untorn::Result<()> {
        self.orders.began(Operation { read: keys.to_vec(), ..Operation::default() });
        let snapshot = snapshot()?;
        let read = |key: &Key| snapshot.get_versioned(&self.keyspace, self.orders.key(*key)).map(seen);
        let read = keys.iter().map(read).collect::<untorn::Result<Vec<_>>>()?;
        let at = snapshot.txn_id();
        drop(snapshot);
        self.settle()?;
        self.orders.done(read, Some(at));
        Ok(())
    }

    fn scan(&self) -> untorn::Result<()> {
        let keys: Vec<Key> = (0..KEYS).collect();
        self.orders.began(Operation { read: keys.clone(), ..Operation::default() });
        let snapshot = self.store.snapshot()?;
        let mut found = BTreeMap::new();
        for entry in snapshot.prefix(&self.keyspace, &format!("{}/", self.orders.history).into_bytes())? {
            let (key, value) = entry?;
            found.insert(key.to_vec(), seen_value(value, None));
        }
        let at = snapshot.txn_id();
        self.settle()?;
        let read = keys.iter().map(|key| found.get(&self.orders.key(*key)).copied().unwrap_or(Seen::Absent));
        self.orders.done(read.collect(), Some(at));
        Ok(())
    }

    /// Reads some keys, then writes or removes some.
    fn read_and_write(&self, random: &mut StdRng, value: u64) -> untorn::Result<()> {
        let read = some_keys(random);
        let write: Vec<(Key, Option<u64>)> =
            some_keys(random).into_iter().map(|key| (key, random.random_bool(0.75).then_some(value))).collect();
        let durability = self.orders.durability(random);
        self.orders.began(Operation { read: read.clone(), write: write.clone(), ..Operation::default() });
        let mut txn = self.store.begin_with(durability)?;
        let found = |key: &Key| Ok(seen(txn.get_versioned(&self.keyspace, &self.orders.key(*key))?));
        let read = read.iter().map(found).collect::<untorn::Result<Vec<_>>>()?;
        let mut changes = false;
        for (key, value) in &write {
            let key = self.orders.key(*key);
            changes |= match value {
                Some(value) => txn.put(&self.keyspace, &key, &bytes_of(*value)).map(|()| true)?,
                None => txn.delete(&self.keyspace, &key)?,
            };
        }
        let ticket = txn.commit()?;
        self.settle()?;
        // If the transaction only removed keys that did not exist, it has no id of its own.
        self.orders.done(read, changes.then(|| ticket.txn_id()));
        Ok(())
    }

    fn put(&self, random: &mut StdRng, key: Key, value: u64) -> untorn::Result<()> {
        self.orders.began(Operation { write: vec![(key, Some(value))], ..Operation::default() });
        let mut txn = self.store.begin_with(self.orders.durability(random))?;
        txn.put(&self.keyspace, &self.orders.key(key), &bytes_of(value))?;
        let ticket = txn.commit()?;
        self.orders.done(Vec::new(), Some(ticket.txn_id()));
        Ok(())
    }

    fn delete(&self, key: Key) -> untorn::Result<()> {
        self.orders.began(Operation { read: vec![key], write: vec![(key, None)], ..Operation::default() });
        let was_there = self.keyspace.delete(&self.orders.key(key))?;
        self.settle()?;
        let read = if was_there { Seen::Present { value: None, version: None } } else { Seen::Absent };
        self.orders.done(vec![read], None);
        Ok(())
    }

    /// Performs an operation of a client that uses transactions.
    fn transaction(&mut self, random: &mut StdRng, value: u64) -> untorn::Result<()> {
        let key = random.random_range(0..KEYS);
        match random.random_range(0..10) {
            0 | 1 => self.get(key),
            2 if self.orders.is_durable => self.snapshot(|| self.store.durable_snapshot(), &some_keys(random)),
            2 | 3 => self.snapshot(|| self.store.snapshot(), &some_keys(random)),
            4 => self.scan(),
            5 => self.put(random, key, value),
            6 => self.delete(key),
            _ => self.read_and_write(random, value),
        }
    }

    /// Performs an operation of a client that uses compare-and-swap. At times it also requests a
    /// checkpoint, which changes no data.
    fn swap(&mut self, random: &mut StdRng, value: u64) -> untorn::Result<()> {
        let key = random.random_range(0..KEYS);
        if random.random_range(0..10) == 0 {
            self.store.checkpoint()?;
        }
        let expected = self.versions.get(&key).copied();
        match (random.random_range(0..8), expected) {
            (0..3, _) => self.get(key),
            (3, Some(version)) => self.compare(key, Some(version), None),
            _ => self.compare(key, expected, Some(value)),
        }
    }

    fn compare(&mut self, key: Key, expected: Option<u64>, value: Option<u64>) -> untorn::Result<()> {
        let (expect, write) = (vec![(key, expected)], vec![(key, value)]);
        self.orders.began(Operation { expect, write, ..Operation::default() });
        let name = self.orders.key(key);
        let version = expected.map(TxnId::from_u64);
        let outcome = match (value, version) {
            (None, Some(version)) => self.keyspace.compare_and_delete(&name, version)?,
            (value, version) => self.keyspace.compare_and_swap(&name, version, &bytes_of(value.unwrap_or(0)))?,
        };
        self.settle()?;
        match outcome {
            CasOutcome::Swapped(id) => {
                self.learn(key, value.map(|_| id));
                self.orders.done(Vec::new(), Some(id));
            }
            CasOutcome::Mismatch { current } => {
                self.learn(key, current);
                self.orders.answered(Answer::Mismatch { key, current: current.map(TxnId::as_u64) });
            }
        }
        Ok(())
    }
}

/// A message-passing client.
struct Messages {
    client: Client,
    orders: Orders,
    versions: BTreeMap<Key, u64>,
}

/// Retries a call until the server answers. A call that was refused did not happen, so it can be
/// retried.
fn patiently<T>(mut call: impl FnMut() -> untorn::Result<T>) -> untorn::Result<T> {
    let start = Instant::now();
    loop {
        match call() {
            Err(Error::Disconnected { .. } | Error::Busy { .. }) if start.elapsed() < HANGS => {
                std::thread::sleep(Duration::from_millis(1));
            }
            answered => return answered,
        }
    }
}

impl Messages {
    fn settle(&self) -> untorn::Result<()> {
        if self.orders.is_durable { patiently(|| self.client.sync()) } else { Ok(()) }
    }

    fn once(&mut self, random: &mut StdRng, value: u64) -> untorn::Result<()> {
        let key = random.random_range(0..KEYS);
        match random.random_range(0..10) {
            0..3 => self.get(key),
            3 => self.multi_get(&some_keys(random)),
            4 => self.scan(),
            5 => self.put(random, key, value),
            6 => self.delete(key),
            _ => self.batch(random, value),
        }
    }

    fn get(&mut self, key: Key) -> untorn::Result<()> {
        self.orders.began(Operation { read: vec![key], ..Operation::default() });
        let found = patiently(|| self.client.get_versioned(KEYSPACE, &self.orders.key(key)))?;
        self.settle()?;
        match &found {
            Some((_, version)) => self.versions.insert(key, version.as_u64()),
            None => self.versions.remove(&key),
        };
        let found = found.as_ref().map(|(value, version)| (value.as_slice(), *version));
        self.orders.done(vec![seen(found)], None);
        Ok(())
    }

    fn multi_get(&self, keys: &[Key]) -> untorn::Result<()> {
        self.orders.began(Operation { read: keys.to_vec(), ..Operation::default() });
        let names: Vec<Vec<u8>> = keys.iter().map(|key| self.orders.key(*key)).collect();
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let found = patiently(|| self.client.multi_get(KEYSPACE, &names))?;
        self.settle()?;
        let seen = |value: &Option<Vec<u8>>| value.as_ref().map_or(Seen::Absent, |value| seen_value(value, None));
        self.orders.done(found.iter().map(seen).collect(), None);
        Ok(())
    }

    fn scan(&self) -> untorn::Result<()> {
        let keys: Vec<Key> = (0..KEYS).collect();
        self.orders.began(Operation { read: keys.clone(), ..Operation::default() });
        let prefix = format!("{}/", self.orders.history).into_bytes();
        let (found, at) = patiently(|| {
            let scan = self.client.prefix(KEYSPACE, &prefix)?;
            let at = scan.txn_id();
            let entries = scan.map(|entry| entry.map(|(key, value)| (key.to_vec(), seen_value(&value, None))));
            Ok((entries.collect::<untorn::Result<BTreeMap<_, _>>>()?, at))
        })?;
        self.settle()?;
        let read = keys.iter().map(|key| found.get(&self.orders.key(*key)).copied().unwrap_or(Seen::Absent));
        self.orders.done(read.collect(), Some(at));
        Ok(())
    }

    fn put(&self, random: &mut StdRng, key: Key, value: u64) -> untorn::Result<()> {
        let durability = self.orders.durability(random);
        self.orders.began(Operation { write: vec![(key, Some(value))], ..Operation::default() });
        let name = self.orders.key(key);
        let id = patiently(|| self.client.put_with(KEYSPACE, &name, &bytes_of(value), durability))?;
        self.orders.done(Vec::new(), Some(id));
        Ok(())
    }

    fn delete(&self, key: Key) -> untorn::Result<()> {
        self.orders.began(Operation { read: vec![key], write: vec![(key, None)], ..Operation::default() });
        let was_there = patiently(|| self.client.delete(KEYSPACE, &self.orders.key(key)))?;
        self.settle()?;
        let read = if was_there { Seen::Present { value: None, version: None } } else { Seen::Absent };
        self.orders.done(vec![read], None);
        Ok(())
    }

    /// Writes some keys on the condition that other keys have their known versions.
    fn batch(&mut self, random: &mut StdRng, value: u64) -> untorn::Result<()> {
        let durability = self.orders.durability(random);
        let expect: Vec<(Key, Option<u64>)> =
            some_keys(random).into_iter().take(2).map(|key| (key, self.versions.get(&key).copied())).collect();
        let write: Vec<(Key, Option<u64>)> = some_keys(random).into_iter().map(|key| (key, Some(value))).collect();
        let mut batch = Batch::new();
        for (key, version) in &expect {
            match version {
                Some(version) => batch.expect_version(KEYSPACE, &self.orders.key(*key), TxnId::from_u64(*version)),
                None => batch.expect_absent(KEYSPACE, &self.orders.key(*key)),
            };
        }
        for (key, _) in &write {
            batch.put(KEYSPACE, &self.orders.key(*key), &bytes_of(value));
        }
        self.orders.began(Operation { expect: expect.clone(), write: write.clone(), ..Operation::default() });
        let outcome = patiently(|| self.client.commit_with(&batch, durability))?;
        self.settle()?;
        match outcome {
            CommitOutcome::Committed(id) => {
                self.versions.extend(write.iter().map(|(key, _)| (*key, id.as_u64())));
                self.orders.done(Vec::new(), Some(id));
            }
            CommitOutcome::Mismatch { index, current } => {
                let key = expect.get(index).map_or(Key::MAX, |(key, _)| *key);
                let current = current.map(TxnId::as_u64);
                match current {
                    Some(version) => self.versions.insert(key, version),
                    None => self.versions.remove(&key),
                };
                self.orders.answered(Answer::Mismatch { key, current });
            }
        }
        Ok(())
    }
}
