//! Goal: the durability and the lock's time limit of a transaction are those that it began with.
//! Method: a flush policy that never flushes by itself tells a commit that waits for the disk from
//! one that does not.

use crate::common::{HANGS, TestStore, limit};
use std::time::Duration;
use untorn::{Durability, Error, FlushPolicy, Store};

/// A store whose logger flushes only for deadlines, `sync` and tickets that hurry.
fn unflushed(test: &TestStore, durability: Durability) -> Store {
    test.open_with(|options| {
        options.durability(durability).flush_policy(FlushPolicy::Every(HANGS * 10));
    })
}

#[test]
fn commit_and_submit_keep_the_durability_of_begin() {
    let _limit = limit();
    let test = TestStore::new();
    let within = Durability::Within(Duration::from_millis(5));
    let store = unflushed(&test, within);
    let keys = store.keyspace("keys").unwrap();

    // The store's default, and another one.
    let mut txn = store.begin().unwrap();
    txn.put(&keys, b"a", b"1").unwrap();
    let waited = txn.commit().unwrap();
    assert!(waited.is_durable());
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&keys, b"b", b"2").unwrap();
    let visible = txn.commit().unwrap();
    assert!(visible.txn_id() > waited.txn_id());
    assert!(!visible.is_durable(), "nothing asked for a flush");
    assert_eq!(keys.get(b"b").unwrap().unwrap(), b"2");

    // A visible commit has no deadline of its own; one that is submitted brings a flush, which
    // covers both.
    assert!(!visible.wait_timeout(Duration::from_millis(1)).unwrap());
    let mut txn = store.begin_with(within).unwrap();
    txn.put(&keys, b"c", b"3").unwrap();
    let submitted = txn.submit().unwrap();
    assert_eq!(keys.get(b"c").unwrap().unwrap(), b"3");
    assert!(submitted.wait_timeout(HANGS).unwrap());
    assert!(visible.is_durable());

    // Nothing changed: the ticket is of the transaction before.
    assert_eq!(store.begin().unwrap().commit().unwrap().txn_id(), submitted.txn_id());
}

#[test]
fn submit_returns_before_the_disk() {
    let _limit = limit();
    let test = TestStore::new();
    let store = unflushed(&test, Durability::Visible);
    let keys = store.keyspace("keys").unwrap();
    let mut txn = store.begin_with(Durability::Durable).unwrap();
    txn.put(&keys, b"a", b"1").unwrap();
    let ticket = txn.submit().unwrap();
    assert_eq!(keys.get(b"a").unwrap().unwrap(), b"1");
    assert!(!ticket.is_durable());
    store.sync().unwrap();
    assert!(ticket.is_durable());
}

#[test]
fn one_call_writes_have_the_durability_of_their_handle() {
    let _limit = limit();
    let test = TestStore::new();
    let store = unflushed(&test, Durability::Visible);
    let keys = store.keyspace("keys").unwrap();
    let patient = keys.with_durability(Durability::Within(Duration::from_millis(5)));
    assert_eq!(patient.name(), "keys");
    let is_durable = |key: &[u8]| store.durable_snapshot().unwrap().get(&keys, key).is_ok_and(|value| value.is_some());

    keys.put(b"a", b"1").unwrap();
    assert!(!is_durable(b"a"));
    patient.put(b"b", b"2").unwrap();
    assert!(is_durable(b"a") && is_durable(b"b"));
    // The handle that it was made from keeps its own, and the new one can be changed back.
    keys.put(b"c", b"3").unwrap();
    patient.with_durability(Durability::Visible).put(b"d", b"4").unwrap();
    assert!(!is_durable(b"c") && !is_durable(b"d"));
    assert!(patient.delete(b"c").unwrap());
    assert!(is_durable(b"d"));

    // It is the same keyspace of the same store: also in transactions, and when it is dropped.
    let mut txn = store.begin().unwrap();
    assert_eq!(txn.get(&patient, b"d").unwrap().unwrap(), b"4");
    txn.put(&patient, b"e", b"5").unwrap();
    txn.commit().unwrap();
    assert_eq!(keys.len().unwrap(), 4);
    store.drop_keyspace("keys").unwrap();
    assert!(matches!(patient.put(b"f", b"6"), Err(Error::NoKeyspace { .. })));
}

#[test]
fn begin_timeout_gives_up_and_names_the_holder() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let held = store.begin().unwrap();
    std::thread::scope(|scope| {
        for timeout in [Duration::ZERO, Duration::from_millis(10)] {
            let store = &store;
            scope.spawn(move || {
                let Err(Error::LockTimeout { waited, .. }) = store.begin_timeout(timeout) else {
                    panic!("the lock is held");
                };
                assert!(waited >= timeout);
            });
        }
    });
    drop(held);
    drop(store.begin_timeout(HANGS).unwrap());
}
