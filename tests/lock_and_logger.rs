//! Goal: a write transaction that stays open for long and the logger never wait for each other without end.
//!
//! Method: transactions that outgrow the log's spares, or that just stay open, while the logger has reasons to
//! take a checkpoint or to leave; each call must come back within seconds.

use std::sync::mpsc;
use std::time::{Duration, Instant};
use untorn::{Durability, Store};

/// Runs `work` on a thread of its own; fails if it takes longer than `limit`.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    wait.recv_timeout(limit).expect("it came to an end in time")
}

/// The logger's background thread waited for the writer lock, to begin a checkpoint, while the transaction that
/// held it waited for log files, which that very thread makes.
#[test]
fn a_transaction_larger_than_the_spares_meets_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let at = path.clone();
    within(Duration::from_secs(30), move || {
        let store = Store::options()
            .ring_size(64 << 10)
            .segment_size(256 << 10)
            .checkpoint_bytes(512 << 10)
            .logger_timeout(Duration::from_secs(3))
            .open(&at)
            .unwrap();
        let rows = store.keyspace("rows").unwrap();
        let mut txn = store.begin().unwrap();
        for key in 0..8_000u32 {
            txn.put(&rows, &key.to_be_bytes(), &[7; 1000]).unwrap();
        }
        txn.commit().unwrap();
        assert_eq!(rows.len().unwrap(), 8_000);
        let report = store.verify().unwrap();
        assert!(report.is_clean(), "{report:#?}");
    });
    untorn::stop_logger(&path, Duration::from_secs(10)).unwrap();
}

/// A logger that is told to leave wants a last checkpoint; a transaction that stays open must not keep it,
/// and the initialisation lock that it holds, for ever.
#[test]
fn the_logger_leaves_beside_an_open_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let store = Store::open(&path).unwrap();
    let rows = store.keyspace("rows").unwrap();
    rows.put(b"a", b"1").unwrap();
    let mut txn = store.begin().unwrap();
    txn.put(&rows, b"b", b"2").unwrap();
    let start = Instant::now();
    assert!(untorn::stop_logger(&path, Duration::from_secs(10)).unwrap());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // A successor is started by whoever waits for it.
    txn.commit_with(Durability::Durable).unwrap().wait().unwrap();
    assert_eq!(rows.get(b"b").unwrap().unwrap(), b"2");
    drop((rows, store));
    untorn::stop_logger(&path, Duration::from_secs(10)).unwrap();
}

/// A store whose header was lost is no empty directory: opening it must not replace the rest of it.
#[test]
fn a_store_without_its_header_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    Store::open(&path).unwrap().keyspace("rows").unwrap().put(b"a", b"1").unwrap();
    untorn::stop_logger(&path, Duration::from_secs(10)).unwrap();
    std::fs::rename(path.join("checkpoint"), path.join("aside")).unwrap();
    assert!(matches!(Store::open(&path), Err(untorn::Error::Mismatch { .. })));
    std::fs::rename(path.join("aside"), path.join("checkpoint")).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.keyspace("rows").unwrap().get(b"a").unwrap().unwrap(), b"1");
    drop(store);
    untorn::stop_logger(&path, Duration::from_secs(10)).unwrap();
}

/// The number of a keyspace whose creation was rolled back was given to the next one, and the old handle then
/// wrote there.
#[test]
fn a_handle_of_a_rolled_back_keyspace_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let store = Store::open(&path).unwrap();
    let mut txn = store.begin().unwrap();
    let stale = txn.keyspace("stale").unwrap();
    txn.rollback();
    let other = store.keyspace("other").unwrap();
    assert!(matches!(stale.put(b"k", b"v"), Err(untorn::Error::NoKeyspace { .. })));
    assert!(matches!(stale.get(b"k"), Err(untorn::Error::NoKeyspace { .. })));
    assert!(other.is_empty().unwrap());
    drop((stale, other, store));
    untorn::stop_logger(&path, Duration::from_secs(10)).unwrap();
}

/// `Duration::MAX` means "as long as it takes". It overflowed the clock, in one place with the process's gate to
/// the writer lock closed behind it.
#[test]
fn the_longest_time_out_is_no_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let store = Store::options().logger_timeout(Duration::MAX).lock_timeout(Duration::MAX).open(&path).unwrap();
    let rows = store.keyspace("rows").unwrap();
    let mut txn = store.try_begin(Duration::MAX).unwrap();
    txn.put(&rows, b"a", b"1").unwrap();
    let ticket = txn.commit_with(Durability::Visible).unwrap();
    assert!(ticket.wait_timeout(Duration::MAX).unwrap());
    drop((ticket, rows, store));
    untorn::stop_logger(&path, Duration::MAX).unwrap();
}
