//! Goal: a version names one write of one key for ever. It moves with each write, survives replay,
//! and distinguishes a deleted and rewritten key from the old one. A swap that expects it excludes
//! all others, over processes that are killed.
//!
//! Method: single calls first; then processes that count one key up by swaps, killed at random,
//! whose acknowledged swaps must all be in the sum, none twice.

use crate::common::{Process, Role, TestStore, assert_clean, kill_logger, limit, listen, say, seed, spawn};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use untorn::{CasOutcome, Durability, Keyspace, Store, TxnId};

fn version(keyspace: &Keyspace, key: &[u8]) -> Option<TxnId> {
    keyspace.get_versioned(key).unwrap().map(|(_, version)| version)
}

#[test]
fn a_version_is_the_transaction_of_the_last_write() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let first = keys.put(b"a", b"1").unwrap();
    let other = keys.put(b"b", b"1").unwrap();
    assert_eq!((version(&keys, b"a"), version(&keys, b"b"), version(&keys, b"c")), (Some(first), Some(other), None));
    let snapshot = store.snapshot().unwrap();
    let large = vec![7; 100_000];
    let second = keys.put(b"a", &large).unwrap();
    assert!(second > other);
    let (value, found) = keys.get_versioned(b"a").unwrap().unwrap();
    assert!(value == large && found == second);
    let (value, found) = snapshot.get_versioned(&keys, b"a").unwrap().unwrap();
    assert_eq!((value, found), (&b"1"[..], first));

    let mut txn = store.begin().unwrap();
    assert_eq!(txn.get_versioned(&keys, b"a").unwrap().unwrap().1, second);
    txn.put(&keys, b"a", b"3").unwrap();
    let (value, own) = txn.get_versioned(&keys, b"a").unwrap().unwrap();
    assert_eq!(value, b"3");
    assert_eq!(txn.commit().unwrap().txn_id(), own, "what a transaction wrote has its id");

    // The same bytes, deleted and written again, are another write.
    keys.delete(b"a").unwrap();
    assert_eq!(version(&keys, b"a"), None);
    let third = keys.put(b"a", b"3").unwrap();
    assert!(third > own);
    assert_eq!(version(&keys, b"a"), Some(third));
}

#[test]
fn a_swap_happens_only_at_the_version_that_is_expected() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let before = store.stats().unwrap().committed;
    let no = TxnId::from_u64(1);
    assert_eq!(keys.compare_and_swap(b"a", Some(no), b"x").unwrap(), CasOutcome::Mismatch { current: None });
    assert_eq!(store.stats().unwrap().committed, before, "a mismatch is no transaction");
    let CasOutcome::Swapped(first) = keys.compare_and_swap(b"a", None, b"1").unwrap() else { panic!() };
    assert_eq!(keys.compare_and_swap(b"a", None, b"2").unwrap(), CasOutcome::Mismatch { current: Some(first) });
    let CasOutcome::Swapped(second) = keys.compare_and_swap(b"a", Some(first), b"2").unwrap() else { panic!() };
    assert_eq!(keys.get(b"a").unwrap().unwrap(), b"2");
    assert_eq!(keys.compare_and_delete(b"a", first).unwrap(), CasOutcome::Mismatch { current: Some(second) });
    assert!(matches!(keys.compare_and_delete(b"a", second).unwrap(), CasOutcome::Swapped(txn) if txn > second));
    assert!(keys.get(b"a").unwrap().is_none());
}

/// Versions outlive the logger, and what is replayed has the versions that it had.
#[test]
fn versions_survive_replay() {
    let _limit = limit();
    let test = TestStore::new();
    let mut known = Vec::new();
    {
        let store = test.open();
        let keys = store.keyspace("keys").unwrap();
        for round in 0..200u32 {
            let key = (round % 40).to_be_bytes().to_vec();
            let version = keys.put(&key, &vec![1; (round as usize * 977) % 9000]).unwrap();
            known.retain(|(other, _)| *other != key);
            known.push((key, version));
            if round == 100 {
                store.checkpoint().unwrap();
            }
        }
        // Without a last checkpoint: the next logger replays.
        kill_logger(&store);
    }
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    for (key, expected) in known {
        assert_eq!(version(&keys, &key), Some(expected));
        assert!(matches!(keys.compare_and_swap(&key, Some(expected), b"").unwrap(), CasOutcome::Swapped(_)));
    }
    assert_clean(&store);
}

#[test]
fn counting_by_swaps_loses_nothing_to_kills() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let mut random = StdRng::seed_from_u64(seed("--test suite versions::counting_by_swaps"));
    let (mut acknowledged, mut kills) = (0u64, 0u64);
    let mut children: Vec<Process> =
        (0..3).map(|_| spawn("transactions::versions::swapper", &test.path, &[])).collect();
    for child in &children {
        child.expect("ready");
    }
    while kills < 15 {
        std::thread::sleep(Duration::from_millis(random.random_range(5..60)));
        let killed = random.random_range(0..children.len());
        acknowledged += children[killed].kill().len() as u64;
        kills += 1;
        children[killed] = spawn("transactions::versions::swapper", &test.path, &[]);
        children[killed].expect("ready");
    }
    for child in &mut children {
        acknowledged += child.kill().len() as u64;
        kills += 1;
    }
    let counted = keys.get(b"count").unwrap().map_or(0, |value| u64::from_le_bytes((*value).try_into().unwrap()));
    // A killed process may have swapped once without having reported it.
    assert!((acknowledged..=acknowledged + kills).contains(&counted), "{counted} counted, {acknowledged} said");
    assert!(acknowledged > 0);
    assert_clean(&store);
}

/// Counts one key up by swaps, and prints each that succeeded.
fn swapper(role: &Role) {
    let store = Store::options().durability(Durability::Visible).open(&role.store).unwrap();
    let keys = store.keyspace("keys").unwrap();
    say("ready");
    loop {
        let (count, version) = match keys.get_versioned(b"count").unwrap() {
            Some((value, version)) => (u64::from_le_bytes((*value).try_into().unwrap()), Some(version)),
            None => (0, None),
        };
        let next = (count + 1).to_le_bytes();
        if let CasOutcome::Swapped(_) = keys.compare_and_swap(b"count", version, &next).unwrap() {
            say("swapped");
        }
    }
}

#[test]
fn child() {
    match Role::of_this_process() {
        None => {}
        Some(role) if role.name == "swapper" => swapper(&role),
        Some(_) => drop(listen()),
    }
}
