//! Goal: a cursor finds what a map has, stays where its documentation states past either end and
//! after a seek that finds nothing, and lends the documented entry. Method: each cell of the table
//! in `Cursor`'s documentation; random walks beside a `BTreeMap` over keyspaces of one leaf and of
//! many, in snapshots and in a transaction with changes of its own. `UNTORN_SEED=n` replays a walk.

use crate::common::{TestStore, limit};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::ops::Bound;
use untorn::{Cursor, Durability, Keyspace, Store, TxnCursor};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;
type Found = Option<(Vec<u8>, Vec<u8>)>;

/// A call of a cursor.
#[derive(Clone, Debug)]
enum Call {
    Seek(Vec<u8>),
    Next,
    Prev,
    First,
    Last,
}

/// Where a cursor is, by its documentation.
#[derive(Clone, Debug, PartialEq)]
enum At {
    New,
    On(Vec<u8>),
    End,
    Beginning,
}

/// The documented result of each call.
fn expected(model: &Model, at: &mut At, call: &Call) -> Found {
    let after = |key: &Vec<u8>| model.range::<Vec<u8>, _>((Bound::Excluded(key), Bound::Unbounded)).next();
    let before = |key: &Vec<u8>| model.range::<Vec<u8>, _>((Bound::Unbounded, Bound::Excluded(key))).next_back();
    let (found, otherwise) = match (call, &*at) {
        (Call::Seek(key), _) => (model.range(key.clone()..).next(), At::End),
        (Call::First, _) | (Call::Next, At::New | At::Beginning) => (model.first_key_value(), At::Beginning),
        (Call::Last, _) | (Call::Prev, At::New | At::End) => (model.last_key_value(), At::End),
        (Call::Next, At::On(key)) => (after(key), At::End),
        (Call::Prev, At::On(key)) => (before(key), At::Beginning),
        (Call::Next, At::End) => (None, At::End),
        (Call::Prev, At::Beginning) => (None, At::Beginning),
    };
    *at = found.map_or(otherwise, |(key, _)| At::On(key.clone()));
    found.map(|(key, value)| (key.clone(), value.clone()))
}

/// Makes a call of either kind of cursor.
macro_rules! make {
    ($cursor:expr, $call:expr) => {{
        let found = match $call {
            Call::Seek(key) => $cursor.seek(key),
            Call::Next => $cursor.next(),
            Call::Prev => $cursor.prev(),
            Call::First => $cursor.first(),
            Call::Last => $cursor.last(),
        };
        found.unwrap().map(|(key, value)| (key.to_vec(), value.to_vec()))
    }};
}

fn fill(store: &Store, keys: &Keyspace, random: &mut StdRng, count: usize) -> Model {
    let mut model = Model::new();
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    for _ in 0..count {
        let (key, value) = (a_key(random), a_value(random));
        txn.put(keys, &key, &value).unwrap();
        model.insert(key, value);
    }
    txn.commit().unwrap();
    model
}

/// Few letters, so that some are met again and prefixes are shared.
fn a_key(random: &mut StdRng) -> Vec<u8> {
    let length = random.random_range(0..=12);
    (0..length).map(|_| *b"aab\0\xff".get(random.random_range(0..5)).unwrap()).collect()
}

/// Some lie outside of their leaf, across pages.
fn a_value(random: &mut StdRng) -> Vec<u8> {
    let length =
        if random.random_ratio(1, 20) { random.random_range(5_000..40_000) } else { random.random_range(0..200) };
    vec![random.random(); length]
}

/// A call that takes the walk to all places: ends as well as the middle.
fn a_call(random: &mut StdRng, model: &Model) -> Call {
    match random.random_range(0..20) {
        0 => Call::First,
        1 => Call::Last,
        2 => Call::Seek(a_key(random)),
        3 => Call::Seek(model.keys().nth(random.random_range(0..model.len().max(1))).cloned().unwrap_or_default()),
        4 => Call::Seek(vec![255; 20]),
        5..=12 => Call::Next,
        _ => Call::Prev,
    }
}

fn walk(random: &mut StdRng, model: &Model, mut make: impl FnMut(&Call) -> Found) {
    let mut at = At::New;
    let mut made = Vec::new();
    for _ in 0..400 {
        let call = a_call(random, model);
        // Mostly in one direction for a while, so that leaves are left at both sides.
        let times = if matches!(call, Call::Next | Call::Prev) { random.random_range(1..30) } else { 1 };
        for _ in 0..times {
            made.push(call.clone());
            let before = at.clone();
            let expected = expected(model, &mut at, &call);
            assert!(
                make(&call) == expected,
                "{call:?} from {before:?}; after {:?}",
                &made[made.len().saturating_sub(20)..]
            );
        }
    }
}

#[test]
fn walks_as_over_a_map() {
    let _limit = limit();
    let seed = std::env::var("UNTORN_SEED").map_or(rand::random(), |seed| seed.parse().unwrap());
    eprintln!("UNTORN_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let test = TestStore::new();
    let store = test.open();
    for count in [0, 1, 3, 30, 3_000] {
        let keys = store.keyspace(&format!("keys {count}")).unwrap();
        let mut model = fill(&store, &keys, &mut random, count);
        let snapshot = store.snapshot().unwrap();
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        {
            let mut cursor = snapshot.cursor(&keys).unwrap();
            walk(&mut random, &model, |call| make!(cursor, call));
        }
        let seen = model.clone();
        for key in seen.keys().step_by(3) {
            txn.delete(&keys, key).unwrap();
            model.remove(key);
        }
        for _ in 0..count / 3 {
            let (key, value) = (a_key(&mut random), a_value(&mut random));
            txn.put(&keys, &key, &value).unwrap();
            model.insert(key, value);
        }
        {
            let mut cursor = txn.cursor(&keys).unwrap();
            walk(&mut random, &model, |call| make!(cursor, call));
        }
        txn.commit().unwrap();
        // The snapshot keeps what it saw.
        let mut cursor = snapshot.cursor(&keys).unwrap();
        walk(&mut random, &seen, |call| make!(cursor, call));
    }
}

// ---- the table

fn three(test: &TestStore) -> (Store, Keyspace) {
    let store = test.open_with(|options| {
        options.durability(Durability::Visible);
    });
    let keys = store.keyspace("keys").unwrap();
    for key in ["b", "d", "f"] {
        keys.put(key, key.repeat(3)).unwrap();
    }
    (store, keys)
}

#[test]
fn each_cell_of_the_table() {
    let _limit = limit();
    let test = TestStore::new();
    let (store, keys) = three(&test);
    let snapshot = store.snapshot().unwrap();
    // How the cursor gets there, and what `next` and `prev` then find; `.` is nothing.
    let cells: [(&[Call], &str, &str); 8] = [
        (&[], "b", "f"),
        (&[Call::First], "d", "."),
        (&[Call::Seek("c".into())], "f", "b"),
        (&[Call::Last], ".", "d"),
        (&[Call::Last, Call::Next], ".", "f"),
        (&[Call::First, Call::Prev], "b", "."),
        (&[Call::Seek("g".into())], ".", "f"),
        (&[Call::Seek("g".into()), Call::Next, Call::Next], ".", "f"),
    ];
    for (way, next, prev) in cells {
        for (call, expected) in [(Call::Next, next), (Call::Prev, prev)] {
            let mut cursor = snapshot.cursor(&keys).unwrap();
            for step in way {
                make!(cursor, step);
            }
            let found = make!(cursor, &call).map_or(".".into(), |(key, _)| String::from_utf8(key).unwrap());
            assert_eq!(found, expected, "{call:?} after {way:?}");
            if found == "." {
                // It stays past that end.
                assert!(make!(cursor, &call).is_none(), "{call:?} twice after {way:?}");
            }
        }
    }
    let empty = store.keyspace("empty").unwrap();
    let snapshot = store.snapshot().unwrap();
    let mut cursor = snapshot.cursor(&empty).unwrap();
    for call in [Call::Next, Call::Prev, Call::First, Call::Prev, Call::Last, Call::Next, Call::Seek(Vec::new())] {
        assert!(make!(cursor, &call).is_none(), "{call:?}");
    }
}

/// Values are lent for as long as the snapshot, whatever the cursor does, and whatever becomes of
/// the keys.
#[test]
fn values_outlive_the_cursor() {
    let _limit = limit();
    let test = TestStore::new();
    let (store, keys) = three(&test);
    let large = vec![7; 3 << 20];
    keys.put("large", &large).unwrap();
    let snapshot = store.snapshot().unwrap();
    let mut values = Vec::new();
    {
        let mut cursor = snapshot.cursor(&keys).unwrap();
        while let Some((_, value)) = cursor.next().unwrap() {
            values.push(value);
        }
    }
    let got = snapshot.get(&keys, "large").unwrap().unwrap();
    for round in 0..50_u8 {
        store.transact(|txn| keys_of().try_for_each(|key| txn.put(&keys, key, vec![round; 1 << 16]))).unwrap();
    }
    store.drop_keyspace("keys").unwrap();
    store.checkpoint().unwrap();
    assert_eq!(values[..3], [b"bbb", b"ddd", b"fff"]);
    assert!(values[3] == large && got == large);
    // A reference into the store, not a copy of it.
    assert_eq!(values[3].as_ptr(), got.as_ptr());
}

fn keys_of() -> impl Iterator<Item = &'static str> {
    ["b", "d", "f", "large"].into_iter()
}

/// What can be sent and shared.
#[test]
fn a_snapshot_cursor_may_change_threads() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<Cursor<'_>>();
    sync::<Cursor<'_>>();
    send::<untorn::SnapshotRange<'_>>();
    sync::<untorn::SnapshotRange<'_>>();
    let _ = std::any::type_name::<TxnCursor<'_>>();
}

#[test]
fn a_cursor_of_another_store_or_a_missing_keyspace_is_an_error() {
    let _limit = limit();
    let (test, other) = (TestStore::new(), TestStore::new());
    let (store, _) = three(&test);
    let (_other_store, foreign) = three(&other);
    let before = store.snapshot().unwrap();
    assert!(matches!(before.cursor(&foreign), Err(untorn::Error::OtherStore { .. })));
    let new = store.keyspace("new").unwrap();
    assert!(matches!(before.cursor(&new), Err(untorn::Error::NoKeyspace { .. })));
    assert!(store.snapshot().unwrap().cursor(&new).is_ok());
}
