//! Goal: calls composed of others see and change what their parts would, in one transaction or
//! none. Method: each call on a small keyspace beside what is known of it, in all of its views;
//! threads that pop and update the same keys; work that fails and that panics.

use crate::common::{TestStore, limit};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use untorn::{Durability, Error, Keyspace, Store};

fn quick(test: &TestStore) -> (Store, Keyspace) {
    let store = test.open_with(|options| {
        options.durability(Durability::Visible);
    });
    let keys = store.keyspace("keys").unwrap();
    (store, keys)
}

fn count(old: Option<&[u8]>) -> u64 {
    old.map_or(0, |old| u64::from_be_bytes(old.try_into().unwrap()))
}

#[test]
fn reads_of_a_keyspace_a_snapshot_and_a_transaction() {
    let _limit = limit();
    let test = TestStore::new();
    let (store, keys) = quick(&test);
    assert!(keys.first().unwrap().is_none() && keys.last().unwrap().is_none());
    let large = vec![7; 100_000];
    for (key, value) in [("b", &b"2"[..]), ("a", &large), ("c", b"")] {
        keys.put(key.as_bytes(), value).unwrap();
    }
    let snapshot = store.snapshot().unwrap();
    let mut txn = store.begin().unwrap();
    txn.delete(&keys, b"a").unwrap();
    txn.put(&keys, b"d", b"4").unwrap();

    assert!(keys.contains_key("a").unwrap() && keys.contains_key(b"c").unwrap());
    assert!(!keys.contains_key(vec![b'd']).unwrap() && !snapshot.contains_key(&keys, "d").unwrap());
    assert!(snapshot.contains_key(&keys, "a").unwrap());
    assert!(!txn.contains_key(&keys, "a").unwrap() && txn.contains_key(&keys, "d").unwrap());

    let (key, value) = keys.first().unwrap().unwrap();
    assert!(*key == *b"a" && value == large);
    assert_eq!(keys.last().unwrap().unwrap().0, snapshot.last(&keys).unwrap().unwrap().0);
    assert_eq!(snapshot.first(&keys).unwrap().unwrap().0, key);
    let (key, value) = txn.first(&keys).unwrap().unwrap();
    assert_eq!((&*key, value), (&b"b"[..], &b"2"[..]));
    let (key, value) = txn.last(&keys).unwrap().unwrap();
    assert_eq!((&*key, value), (&b"d"[..], &b"4"[..]));

    let names = |found: Vec<untorn::Key>| found.iter().map(|key| key[0]).collect::<Vec<u8>>();
    assert_eq!(names(keys.iter().unwrap().map(|entry| entry.unwrap().0).collect()), b"abc");
    assert_eq!(names(snapshot.iter(&keys).unwrap().rev().map(|entry| entry.unwrap().0).collect()), b"cba");
    assert_eq!(names(txn.iter(&keys).unwrap().map(|entry| entry.unwrap().0).collect()), b"bcd");

    let seen = keys.multi_get(["c", "d", "b", "c"]).unwrap();
    assert_eq!(seen.iter().map(Option::as_deref).collect::<Vec<_>>(), [Some(&b""[..]), None, Some(b"2"), Some(b"")]);
    assert_eq!(txn.multi_get(&keys, [b"d", b"a"]).unwrap(), [Some(&b"4"[..]), None]);
    txn.commit().unwrap();
    assert_eq!(snapshot.multi_get(&keys, vec![vec![b'a'], vec![b'd']]).unwrap()[0].as_ref().unwrap(), &large);
    assert!(keys.multi_get([""; 0]).unwrap().is_empty());
    // The values pin what they are of, also when their key is gone.
    assert_eq!(seen[2].as_deref(), Some(&b"2"[..]));

    store.drop_keyspace("keys").unwrap();
    let is_gone = |error| matches!(error, Some(Error::NoKeyspace { .. }));
    assert!(is_gone(keys.first().err()) && is_gone(keys.contains_key("a").err()));
    assert!(is_gone(keys.multi_get(["a"]).err()) && is_gone(keys.pop_last().err()));
    assert!(is_gone(keys.update("a", |_| None).err()));
}

#[test]
fn each_entry_is_popped_once() {
    let _limit = limit();
    let test = TestStore::new();
    let (store, keys) = quick(&test);
    store
        .transact(|txn| {
            for n in 0..200_u64 {
                txn.put(&keys, &n.to_be_bytes(), &vec![n as u8; if n % 50 == 7 { 20_000 } else { 3 }])?;
            }
            // In a transaction, of what it has written itself.
            let (key, value) = txn.pop_first(&keys)?.unwrap();
            assert_eq!((&*key, &value[..]), (&0_u64.to_be_bytes()[..], &[0; 3][..]));
            assert_eq!(&*txn.pop_last(&keys)?.unwrap().0, 199_u64.to_be_bytes());
            Ok(())
        })
        .unwrap();
    let popped = std::thread::scope(|scope| {
        let pop = |from_end: bool| {
            let keys = &keys;
            scope.spawn(move || {
                let mut mine = Vec::new();
                while let Some((key, value)) = if from_end { keys.pop_last() } else { keys.pop_first() }.unwrap() {
                    mine.push((count(Some(&key)), value));
                }
                mine
            })
        };
        let threads = [pop(false), pop(true), pop(false)];
        threads.map(|thread| thread.join().unwrap())
    });
    assert!(popped[0].is_sorted_by_key(|entry| entry.0) && popped[2].is_sorted_by_key(|entry| entry.0));
    assert!(popped[1].iter().rev().is_sorted_by_key(|entry| entry.0));
    let all: Vec<_> = popped.iter().flatten().collect();
    assert_eq!(all.len(), 198, "none twice");
    assert_eq!(all.iter().map(|entry| entry.0).collect::<BTreeSet<_>>(), (1..199).collect());
    assert!(all.iter().all(|(n, value)| value.iter().all(|byte| *byte == *n as u8)));
    assert!(keys.pop_first().unwrap().is_none() && keys.is_empty().unwrap());
    let before = store.snapshot().unwrap().txn_id();
    assert!(keys.pop_last().unwrap().is_none());
    assert_eq!(store.snapshot().unwrap().txn_id(), before);
}

#[test]
fn updates_are_atomic_and_their_closure_runs_once() {
    let _limit = limit();
    let test = TestStore::new();
    let (store, keys) = quick(&test);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let mut calls = 0;
                    let next = |old: Option<&[u8]>| {
                        calls += 1;
                        Some((count(old) + 1).to_be_bytes().to_vec())
                    };
                    keys.update("n", next).unwrap();
                    assert_eq!(calls, 1);
                }
            });
        }
    });
    let (value, version) = keys.get_versioned(b"n").unwrap().unwrap();
    assert_eq!(count(Some(&value)), 300);
    assert_eq!(version, store.snapshot().unwrap().txn_id());

    // It holds the lock, so it can't begin another transaction, and a panic leaves everything as it
    // was.
    keys.update("n", |old| {
        assert!(matches!(keys.put(b"n", b"x"), Err(Error::TransactionOpen)));
        old.map(<[u8]>::to_vec)
    })
    .unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| keys.update("n", |_| panic!("on purpose"))));
    assert!(panicked.is_err());
    assert_eq!(count(keys.get(b"n").unwrap().as_deref()), 300);
    let deleted = keys.update("n", |_| None).unwrap();
    assert!(!keys.contains_key("n").unwrap());
    // Nothing to remove: no transaction of its own.
    assert_eq!(keys.update("n", |_| None).unwrap(), deleted);
}

#[test]
fn a_transaction_that_fails_or_panics_never_was() {
    let _limit = limit();
    let test = TestStore::new();
    let (store, keys) = quick(&test);
    let sum = store.transact(|txn| {
        txn.put(&keys, b"k", b"v")?;
        txn.update(&keys, "n", |old| Some((count(old) + 1).to_be_bytes().to_vec()))?;
        Ok(7)
    });
    assert_eq!(sum.unwrap(), 7);

    let failed: untorn::Result<()> = store.transact(|txn| {
        txn.delete(&keys, b"k")?;
        txn.put(&keys, &[0; 5000], b"a key that is too long")
    });
    assert!(matches!(failed, Err(Error::Limit { .. })));
    let mine: Result<(), Box<dyn std::error::Error>> = store.transact_with(|txn| {
        txn.delete(&keys, b"k")?;
        Err("an error of the caller's".into())
    });
    assert_eq!(mine.unwrap_err().to_string(), "an error of the caller's");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        store.transact(|txn| -> untorn::Result<()> {
            txn.delete(&keys, b"k")?;
            panic!("on purpose")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(keys.get(b"k").unwrap().unwrap(), b"v");
    // The lock is free again.
    store.transact(|txn| txn.delete(&keys, b"k")).unwrap();
    assert!(!keys.contains_key("k").unwrap());
}

#[test]
fn keys_and_values_are_shown_as_bytes_that_can_be_read() {
    let _limit = limit();
    let test = TestStore::new();
    let (_store, keys) = quick(&test);
    keys.put(b"alice\n", b"1\0\xff\"").unwrap();
    let (key, value) = keys.first().unwrap().unwrap();
    assert_eq!(format!("{key:?} {value:?}"), r#"b"alice\n" b"1\x00\xff\"""#);
}
