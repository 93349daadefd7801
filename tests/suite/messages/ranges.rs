//! Ranges of keys that are deleted by message.

use super::*;
use rand::{Rng, SeedableRng};

/// A random bound, of a key that may be longer than any key of the store.
fn bound(dice: &mut rand::rngs::StdRng) -> Bound<Vec<u8>> {
    let mut key = vec![dice.random_range(b'a'..b'g'); dice.random_range(0..3)];
    if dice.random_range(0..10) == 0 {
        key.resize(2000, b'c');
    }
    match dice.random_range(0..4) {
        0 => Bound::Unbounded,
        1 => Bound::Excluded(key),
        _ => Bound::Included(key),
    }
}

/// Whether a key lies in a range whose bounds may be in the wrong order.
fn is_in(key: &[u8], (lower, upper): &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> bool {
    let is_above = match lower {
        Bound::Unbounded => true,
        Bound::Included(lower) => key >= &lower[..],
        Bound::Excluded(lower) => key > &lower[..],
    };
    is_above
        && match upper {
            Bound::Unbounded => true,
            Bound::Included(upper) => key <= &upper[..],
            Bound::Excluded(upper) => key < &upper[..],
        }
}

/// Random ranges, deleted by a request or in a batch, against a map in memory.
#[test]
fn ranges_are_deleted_as_by_a_direct_client() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let client = at.client();
    assert!(matches!(client.delete_range("k", ..), Err(Error::NoKeyspace { name }) if name == "k"));
    let mut batch = Batch::new();
    assert!(matches!(client.commit(batch.delete_range("k", "a"..)), Err(Error::NoKeyspace { .. })));
    let keyspace = store.keyspace("k").unwrap();
    let mut dice = rand::rngs::StdRng::seed_from_u64(seed("ranges_are_deleted_as_by_a_direct_client"));
    let mut model = BTreeMap::new();
    for round in 0..100u32 {
        for _ in 0..dice.random_range(0..30) {
            let key = vec![dice.random_range(b'a'..b'g'); dice.random_range(0..4)];
            keyspace.with_durability(Durability::Visible).put(&key, round.to_le_bytes()).unwrap();
            model.insert(key, round.to_le_bytes().to_vec());
        }
        let range = (bound(&mut dice), bound(&mut dice));
        let before = model.len();
        model.retain(|key, _| !is_in(key, &range));
        if dice.random() {
            assert_eq!(client.delete_range("k", range.clone()).unwrap(), (before - model.len()) as u64, "{range:?}");
        } else {
            let mut batch = Batch::new();
            batch.put("k", "first", "gone").delete_range("k", range.clone()).put("k", "last", "there");
            assert!(matches!(client.commit(&batch).unwrap(), CommitOutcome::Committed(_)));
            if !is_in(b"first", &range) {
                model.insert(b"first".to_vec(), b"gone".to_vec());
            }
            model.insert(b"last".to_vec(), b"there".to_vec());
        }
        let found: BTreeMap<Vec<u8>, Vec<u8>> = client.scan("k", ..).unwrap().map(Result::unwrap).collect();
        assert_eq!(found, model, "{range:?}");
    }
    assert_eq!(client.delete_range("k", ..).unwrap(), model.len() as u64);
    assert_eq!(client.keyspaces().unwrap(), ["k"]);
    assert_clean(&store);
}

/// A condition that does not hold keeps a batch from deleting a range. A follower gets a deleted
/// range as one change.
#[test]
fn conditions_and_followers_of_ranges() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let client = at.client();
    for key in ["a", "b", "c"] {
        client.put("k", key, key).unwrap();
    }
    let version = client.get_versioned("k", "b").unwrap().unwrap().1;
    let mut batch = Batch::new();
    batch.delete_range("k", "a".."c").expect_absent("k", "c");
    let refused = client.commit(&batch).unwrap();
    assert!(matches!(refused, CommitOutcome::Mismatch { index: 1, current: Some(_) }), "{refused:?}");
    assert_eq!(client.scan("k", ..).unwrap().count(), 3);
    let mut changes = client.changes(store.snapshot().unwrap().txn_id(), untorn::Feed::Visible).unwrap();
    let mut batch = Batch::new();
    batch.delete_range("k", "a".."c").expect_version("k", "b", version);
    let CommitOutcome::Committed(txn) = client.commit(&batch).unwrap() else { panic!() };
    assert_eq!(client.scan("k", ..).unwrap().count(), 1);
    let change = changes.try_next(HANGS).unwrap().unwrap();
    assert_eq!((change.txn_id(), change.kind()), (txn, untorn::ChangeKind::DeleteRange));
    assert_eq!((change.key(), change.end()), (&b"a"[..], Some(&b"c"[..])));
}

/// The logger is killed while it deletes a range: all of its keys are there, or none. If the call
/// succeeded, none is there.
#[test]
fn a_range_is_deleted_as_a_whole() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let keyspace = store.keyspace("k").unwrap();
    let mut dice = rand::rngs::StdRng::seed_from_u64(seed("a_range_is_deleted_as_a_whole"));
    for _ in 0..8 {
        let mut txn = store.begin().unwrap();
        for number in 0..5000u32 {
            txn.put(&keyspace, number.to_be_bytes(), [7; 100]).unwrap();
        }
        txn.commit().unwrap();
        let socket = at.socket();
        let mut client = None;
        wait_until(|| {
            client = Client::connect(&socket).ok();
            client.is_some()
        });
        let client = client.unwrap();
        let told = std::thread::scope(|scope| {
            let told = scope.spawn(|| client.delete_range("k", ..));
            std::thread::sleep(Duration::from_micros(dice.random_range(0..3000)));
            kill_logger(&store);
            told.join().unwrap()
        });
        // Any write waits until the next logger has settled what the killed one left.
        store.keyspace("other").unwrap().put("k", "v").unwrap();
        let left = keyspace.len().unwrap();
        assert!(left == 0 || left == 5000, "{left} keys are left, {told:?}");
        if let Ok(removed) = told {
            assert_eq!((removed, left), (5000, 0));
        }
    }
    assert_clean(&store);
}
