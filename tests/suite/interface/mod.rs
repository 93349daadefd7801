//! Goal: every call of the interface that programs outside of this repository rely on compiles as
//! they write it, and does what it documents. Method: those calls, in their order, with as few type
//! annotations as they have; each is made once.

mod access;
mod basic;
mod cursor;
mod cursor_allocations;
mod key_ranges;

use crate::common::{HANGS, TestStore, limit};
use std::time::Duration;
use untorn::{CasOutcome, Durability, Error, Feed, FlushPolicy, Result, Store, TxnId};

/// The number that follows the one in a value.
fn next(old: Option<&[u8]>) -> Vec<u8> {
    let number = old.map_or(0, |old| u64::from_be_bytes(old.try_into().expect("eight bytes")));
    (number + 1).to_be_bytes().to_vec()
}

/// What can be sent to another thread and shared by several.
fn is_shared<T: Send + Sync>(_: &T) {}

#[test]
fn each_call_compiles_and_works() -> Result<()> {
    let _limit = limit();
    let test = TestStore::new();
    let data = &test.path;
    {
        let store = Store::open(data)?;
        store.close()?;
    }
    let store = Store::options()
        .durability(Durability::Durable)
        .flush_policy(FlushPolicy::OnCommit)
        .max_size(1 << 40)
        .create(true)
        .read_only(false)
        .open(data)?;
    keyspaces(&store)?;
    transactions(&store)?;
    snapshots(&store)?;
    cells(&store)?;
    changes(&store)?;
    messages(&test, &store)?;
    assert!(store.drop_keyspace("users")?);
    store.close()?;
    let read_only = Store::options().read_only(true).open(data)?;
    assert!(matches!(read_only.begin(), Err(Error::ReadOnly)));
    read_only.close()
}

fn keyspaces(store: &Store) -> Result<()> {
    let users = store.keyspace("users")?;
    is_shared(&users);
    let same = users.clone();
    users.put("alice", "1")?;
    users.with_durability(Durability::Visible).put(b"bob", vec![1, 2])?;
    let v = users.get("alice")?;
    is_shared(&v);
    std::thread::spawn(move || assert_eq!(v.as_deref(), Some(&b"1"[..]))).join().expect("a value is 'static");
    assert!(users.contains_key("bob")? && same.len()? == 2);
    assert!(users.delete("alice")? && !users.delete("alice")?);
    assert_eq!(users.first()?.unwrap().0, users.last()?.unwrap().0);
    let values = users.multi_get(["bob", "carol"])?;
    assert!(values[0].as_ref().is_some_and(|value| **value == [1, 2]) && values[1].is_none());
    users.update("n", |old: Option<&[u8]>| Some(next(old)))?;
    users.update("n", |old| Some(next(old)))?;
    assert_eq!(users.get("n")?.unwrap(), 2_u64.to_be_bytes());
    users.update("n", |_| None)?;
    assert!(!users.contains_key("n")?);
    for kv in users.range("a"..)? {
        let (k, v) = kv?;
        is_shared(&k);
        assert_eq!((&k[..], &v[..]), (&b"bob"[..], &[1, 2][..]));
    }
    let key = Vec::from("al");
    assert_eq!(users.range("a".."c")?.rev().count(), 1);
    assert_eq!(users.range(b"a"..=b"c")?.count(), 1);
    assert_eq!(users.range(key.clone()..)?.count(), 1);
    assert_eq!(users.range(&key[..]..)?.count(), 1);
    assert_eq!(users.range(..)?.count() + users.iter()?.count() + users.prefix("bo")?.count(), 3);
    users.put("k", "old")?;
    let (value, version) = users.get_versioned("k")?.unwrap();
    assert_eq!(value, b"old");
    let CasOutcome::Swapped(swapped) = users.compare_and_swap("k", Some(version), "new")? else { panic!() };
    let CasOutcome::Mismatch { current } = users.compare_and_swap("k", None, "newer")? else { panic!() };
    assert_eq!(current, Some(swapped));
    Ok(())
}

fn transactions(store: &Store) -> Result<()> {
    let users = store.keyspace("users")?;
    let mut txn = store.begin()?;
    txn.put(&users, "k", "v")?;
    assert_eq!(txn.get(&users, "k")?, Some(&b"v"[..]));
    assert!(!txn.delete(&users, "x")?);
    assert_eq!(txn.range(&users, ..)?.count(), 2);
    let ticket = txn.commit()?;
    is_shared(&ticket);
    assert!(ticket.is_durable());
    drop(store.begin_with(Durability::Visible)?);
    drop(store.begin_timeout(HANGS)?);
    let ms20 = Duration::from_millis(20);
    let mut txn = store.begin_with(Durability::Within(ms20))?;
    txn.put(&users, "k", "w")?;
    let ticket = txn.submit()?;
    assert!(ticket.txn_id() > TxnId::ZERO);
    ticket.wait()?;
    assert!(ticket.wait_timeout(ms20)? && is_ready(ticket));
    let sum = store.transact(|txn| {
        txn.put(&users, "k", "v")?;
        Ok(7)
    })?;
    assert_eq!(sum, 7);
    Ok(())
}

/// A ticket is a future.
fn is_ready(ticket: impl Future<Output = Result<()>>) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::pin!(ticket).poll(&mut context).is_ready()
}

fn snapshots(store: &Store) -> Result<()> {
    let users = store.keyspace("users")?;
    let snap = store.snapshot()?;
    is_shared(&snap);
    let v: Option<&[u8]> = snap.get(&users, "k")?;
    users.put("k", "later")?;
    assert_eq!(v, Some(&b"v"[..]));
    for kv in snap.range(&users, "a".."c")? {
        let (key, value): (untorn::Key, &[u8]) = kv?;
        assert_eq!((&key[..], value), (&b"bob"[..], &[1, 2][..]));
    }
    let mut cur = snap.cursor(&users)?;
    let bob = (&b"bob"[..], &[1, 2][..]);
    let k = (&b"k"[..], &b"v"[..]);
    assert_eq!(cur.seek("k")?, Some(k));
    assert_eq!(cur.next()?, None);
    assert_eq!(cur.prev()?, Some(k));
    assert_eq!(cur.first()?, Some(bob));
    assert_eq!(cur.last()?, Some(k));
    let snap = store.durable_snapshot()?;
    assert_eq!(snap.get(&users, "k")?, Some(&b"later"[..]));
    store.sync()?;
    store.checkpoint()?;
    let stats: untorn::Stats = store.stats()?;
    assert_eq!(stats.keyspaces, 1);
    assert_eq!(store.keyspaces()?, ["users"]);
    Ok(())
}

fn cells(store: &Store) -> Result<()> {
    let cell = store.cell("imu", 64)?;
    is_shared(&cell);
    let mut buf = [0u8; 64];
    cell.store(&[0u8; 64])?;
    let version = cell.load(&mut buf)?;
    cell.load_version(version, &mut buf)?;
    cell.store_durable(&[0u8; 64])?;
    let hits = store.counter("hits")?;
    is_shared(&hits);
    hits.add(1)?;
    let n: u64 = hits.get()?;
    assert_eq!(n, 1);
    Ok(())
}

fn changes(store: &Store) -> Result<()> {
    let from_txn_id = store.snapshot()?.txn_id();
    store.keyspace("users")?.put("seen", "1")?;
    // It has no end.
    if let Some(event) = store.changes(from_txn_id, Feed::Durable)?.keyspace("users").next() {
        let change = event?;
        assert_eq!((change.keyspace(), change.key(), change.value()), ("users", &b"seen"[..], Some(&b"1"[..])));
        assert!(change.txn_id() > from_txn_id && change.last_in_txn());
    }
    let mut changes = store.changes(from_txn_id, Feed::Durable)?;
    assert!(changes.try_next(HANGS)?.is_some());
    Ok(())
}

fn messages(test: &TestStore, store: &Store) -> Result<()> {
    let remote = untorn::Client::connect(test.path.join("logger.sock"))?;
    is_shared(&remote);
    remote.put("users", "by message", "1")?;
    assert_eq!(remote.get("users", "by message")?.as_deref(), Some(&b"1"[..]));
    for record in remote.scan("users", "by".."c")? {
        let (key, value) = record?;
        assert_eq!((&key[..], &value[..]), (&b"by message"[..], &b"1"[..]));
    }
    let mut batch = untorn::Batch::new();
    batch.delete("users", "by message").put("users", "k", "v");
    assert!(matches!(remote.commit(&batch)?, untorn::CommitOutcome::Committed(_)));
    let stats: untorn::Stats = remote.stats()?;
    assert_eq!(stats.records, store.stats()?.records);
    remote.delete("users", "by message").map(drop)
}

/// Programs match on these.
#[test]
fn errors_have_their_names() {
    let is_known = |error: &Error| {
        matches!(
            error,
            Error::Forked
                | Error::LockTimeout { .. }
                | Error::LoggerStalled { .. }
                | Error::NotDurable { txn: _, .. }
                | Error::DiskFull { .. }
                | Error::Diverged { .. }
                | Error::Stale
                | Error::Lagged { oldest: _ }
                | Error::NeedsRecovery { .. }
                | Error::Corrupt { .. }
                | Error::UnsupportedFileSystem { .. }
                | Error::Limit { .. }
        )
    };
    assert!(is_known(&Error::Stale) && !is_known(&Error::ReadOnly));
}

/// A logger in the foreground, and its end.
#[test]
fn loggers_are_run_and_stopped_by_their_module() -> Result<()> {
    let _limit = limit();
    let test = TestStore::new();
    Store::open(&test.path)?.close()?;
    untorn::logger::stop_logger(&test.path, HANGS)?;
    let path = test.path.clone();
    let logger = std::thread::spawn(move || untorn::logger::run_logger(path));
    while !untorn::logger::stop_logger(&test.path, HANGS)? && !logger.is_finished() {}
    logger.join().expect("the logger ends")
}
