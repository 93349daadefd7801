//! Goal: the calls of the public interface do what they document, in one process.

use crate::common::HANGS;
use untorn::{Durability, Store};

#[test]
fn put_get_delete_and_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    {
        let store = Store::open(&path).unwrap();
        let users = store.keyspace("users").unwrap();
        let started = std::time::Instant::now();
        users.put(b"alice", b"1").unwrap();
        eprintln!("durable put {:?}", started.elapsed());
        assert_eq!(users.get(b"alice").unwrap().unwrap(), b"1");
        assert!(users.delete(b"alice").unwrap());
        assert!(users.get(b"alice").unwrap().is_none());
        for i in 0..10_000u32 {
            let mut txn = store.begin_with(Durability::Visible).unwrap();
            txn.put(&users, &i.to_be_bytes(), &[7; 100]).unwrap();
            txn.commit().unwrap();
        }
        store.sync().unwrap();
        let report = store.verify().unwrap();
        assert!(report.is_clean(), "{report:#?}");
        eprintln!("{:#?}", store.stats().unwrap());
        store.checkpoint().unwrap();
        let report = store.verify().unwrap();
        assert!(report.is_clean(), "{report:#?}");
    }
    assert!(untorn::logger::stop_logger(&path, HANGS).unwrap());
    let store = Store::open(&path).unwrap();
    let users = store.keyspace("users").unwrap();
    assert_eq!(users.len().unwrap(), 10_000);
    assert_eq!(users.range(..).unwrap().count(), 10_000);
    let report = store.verify().unwrap();
    assert!(report.is_clean(), "{report:#?}");
    drop(users);
    drop(store);
    untorn::logger::stop_logger(&path, HANGS).unwrap();
}
