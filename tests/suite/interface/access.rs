//! Goal: code that is written against `StoreRead` and `StoreWrite` gets the same results from a
//! direct client and a message-passing client. Method: one script of all calls, errors among them,
//! on both kinds of client of one store; the results of each are compared.

use crate::common::{HANGS, TestStore, limit};
use std::ops::Bound;
use untorn::{Batch, Client, CommitOutcome, Durability, Error, Feed, KeyBounds, Records, StoreRead, StoreWrite, TxnId};

const ALL: KeyBounds<'_> = (Bound::Unbounded, Bound::Unbounded);

/// The results of the calls, without the ids of transactions.
#[derive(Default, Debug, PartialEq)]
struct Told(Vec<String>);

impl Told {
    fn note(&mut self, call: &str, told: impl std::fmt::Debug) {
        self.0.push(format!("{call}: {told:?}"));
    }

    fn error<T>(&mut self, call: &str, told: untorn::Result<T>) {
        let error = told.map(drop).expect_err(call);
        // The variant and its fields.
        self.note(call, error);
    }
}

fn collect(records: Records<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    records.collect::<untorn::Result<_>>().unwrap()
}

fn script(store: &dyn StoreWrite, keyspace: &str) -> Told {
    let mut told = Told::default();
    let before = store.stats().unwrap().committed;
    let mut feed = store.follow(Some(before), Feed::Visible, Some(keyspace), b"a").unwrap();
    told.error("get of a keyspace that is not there", store.get(keyspace, b"a").map_err(renamed));
    told.error("delete there", store.delete(keyspace, b"a").map_err(renamed));
    told.error("scan of it", store.scan(keyspace, ALL).map(drop).map_err(renamed));

    let first = store.put(keyspace, b"a", b"1").unwrap();
    let second = store.put(keyspace, b"ab", b"2").unwrap();
    assert!(before < first && first < second);
    assert_eq!(store.get_versioned(keyspace, b"a").unwrap(), Some((b"1".to_vec(), first)));
    told.note("get", store.get(keyspace, b"a").unwrap());
    told.note("get of nothing", store.get(keyspace, b"x").unwrap());
    told.note("multi_get", store.multi_get(keyspace, &[b"ab", b"x", b"a"]).unwrap());
    told.note("delete of nothing", store.delete(keyspace, b"x").unwrap());
    told.error("delete_range in no keyspace", store.delete_range("none at all", ALL));
    told.note(
        "delete_range of nothing",
        store.delete_range(keyspace, (Bound::Included(b"x"), Bound::Unbounded)).unwrap(),
    );

    let mut batch = Batch::new();
    batch
        .put(keyspace, "b", "3")
        .expect_version(keyspace, "a", first)
        .expect_absent(keyspace, "c")
        .delete(keyspace, "ab");
    let CommitOutcome::Committed(third) = store.commit(&batch, Durability::Visible).unwrap() else { panic!() };
    assert!(second < third);
    batch = Batch::new();
    batch.put(keyspace, "z", "").expect_absent(keyspace, "b");
    let unmet = store.commit(&batch, Durability::Durable).unwrap();
    assert_eq!(unmet, CommitOutcome::Mismatch { index: 1, current: Some(third) });
    batch = Batch::new();
    told.error("deletion in no keyspace", store.commit(batch.delete("none at all", "k"), Durability::Visible));
    batch = Batch::new();
    told.error(
        "a long key",
        store.commit(batch.put(keyspace, "n", "").put(keyspace, [7; 2000], ""), Durability::Visible),
    );
    // By message, the rights of every user exclude it.
    let reserved = store.put("untorn.mine", b"k", b"v");
    assert!(matches!(reserved, Err(Error::ReservedName { .. } | Error::NotAllowed { .. })), "{reserved:?}");
    for key in 0..100_u8 {
        store.put(keyspace, &[b'n', key], &[key; 3]).unwrap();
    }
    told.note("scan", collect(store.scan(keyspace, ALL).unwrap()));
    told.note("a part", collect(store.scan(keyspace, (Bound::Excluded(b"a"), Bound::Included(b"n\x03"))).unwrap()));
    told.note("back", collect(store.scan_back(keyspace, (Bound::Included(b"a"), Bound::Excluded(b"n\x02"))).unwrap()));
    told.note("prefix", collect(store.prefix(keyspace, b"n").unwrap()));
    told.note("is listed", store.keyspaces().unwrap().iter().any(|name| name == keyspace));

    let cell = format!("cell of {keyspace}");
    told.error("load of no cell", store.cell_load("no cell"));
    let stored = store.cell_store(&cell, &[1; 8]).unwrap();
    assert_eq!(store.cell_load(&cell).unwrap(), (vec![1; 8], stored));
    assert!(store.cell_store_durable(&cell, &[2; 8]).unwrap() > stored);
    told.note("cell", store.cell_load(&cell).unwrap().0);
    let error = store.cell_store(&cell, &[3; 9]).unwrap_err();
    assert!(matches!(error, Error::OtherCell { found: Some(8), wanted: Some(9), .. }), "{error:?}");
    let counter = format!("counter of {keyspace}");
    told.note("no counter", store.counter_get(&counter).unwrap());
    store.counter_add(&counter, 5).unwrap();
    store.counter_add(&counter, 2).unwrap();
    told.note("counter", store.counter_get(&counter).unwrap());
    assert!(matches!(store.counter_get(&cell), Err(Error::NoCell { .. })));

    store.sync().unwrap();
    let covered = store.checkpoint().unwrap();
    let stats = store.stats().unwrap();
    assert!(stats.checkpointed >= covered && stats.durable >= third);
    let mut last = TxnId::ZERO;
    for _ in 0..3 {
        let change = feed.try_next(HANGS).unwrap().expect("it was committed");
        told.note("change", (change.kind(), change.key(), change.value()));
        last = change.txn_id();
    }
    // A feed that has passed over other changes continues after those.
    assert!(last == third && feed.resume_from() >= third);
    told
}

/// Without the name of the keyspace, which is not the same for both.
fn renamed(error: Error) -> Error {
    match error {
        Error::NoKeyspace { .. } => Error::NoKeyspace { name: "of the script".into() },
        other => other,
    }
}

#[test]
fn both_kinds_of_client_are_told_the_same() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let client = Client::connect(test.path.join("logger.sock")).unwrap();
    let (direct, by_message) = (script(&store, "direct"), script(&client, "message"));
    assert!(direct.0.len() > 20);
    for (direct, by_message) in direct.0.iter().zip(&by_message.0) {
        assert_eq!(direct, by_message);
    }
    assert_eq!(direct.0.len(), by_message.0.len());
    // Each client reads what the other wrote.
    let reads: [&dyn StoreRead; 2] = [&store, &client];
    for read in reads {
        assert_eq!(read.get("direct", b"b").unwrap(), read.get("message", b"b").unwrap());
        assert_eq!(read.counter_get("counter of direct").unwrap(), read.counter_get("counter of message").unwrap());
    }
}
