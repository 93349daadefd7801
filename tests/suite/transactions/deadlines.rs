//! Goal: a commit that has time is durable when it returns, and its flush is put off as far as
//! deadlines allow and no further. One flush serves all waiting commits; a more urgent flush covers
//! them too. No commit waits for an hour because a process died.
//!
//! Method: commits with an hour of time, which only an action of the test makes durable in a test's
//! time; the counters show how many flushes that took.

use crate::common::{TestStore, kill_logger, limit, wait_until};
use std::time::Duration;
use untorn::{Client, Durability, Error, FlushPolicy, Keyspace, Store};

const HOUR: Duration = Duration::from_secs(3600);

/// A commit of one record.
fn put(store: &Store, keyspace: &Keyspace, key: &str, value: &[u8], durability: Durability) {
    let mut txn = store.begin_with(durability).unwrap();
    txn.put(keyspace, key.as_bytes(), value).unwrap();
    txn.commit().unwrap();
}

/// Puts records in as many threads, each with an hour of time, and calls `hurry` when all are
/// visible; then all must return.
fn put_beside(store: &Store, keyspace: &Keyspace, threads: usize, value: &[u8], hurry: impl FnOnce()) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || put(store, keyspace, &format!("beside {thread}"), value, Durability::Within(HOUR)));
        }
        wait_until(|| keyspace.prefix(b"beside ").unwrap().count() == threads);
        hurry();
    });
    assert_eq!(store.durable_snapshot().unwrap().prefix(keyspace, b"beside ").unwrap().count(), threads);
}

#[test]
fn one_urgent_commit_takes_all_that_wait_along() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keyspace = store.keyspace("k").unwrap();
    let before = store.stats().unwrap().deadlines;
    put_beside(&store, &keyspace, 8, b"v", || {
        // Time enough for a logger that does not put anything off.
        std::thread::sleep(Duration::from_millis(200));
        let waiting = store.stats().unwrap().deadlines;
        assert_eq!((waiting.commits, waiting.met, waiting.missed), (8, 0, 0));
        assert_eq!(waiting.flushes, before.flushes, "a flush although all commits have time");
        put(&store, &keyspace, "urgent", b"v", Durability::Durable);
    });
    let after = store.stats().unwrap().deadlines;
    assert_eq!((after.met, after.missed, after.met_share), (8, 0, Some(1.0)));
    // Two, if a flush began between the urgent commit's word and its publication.
    let flushes = after.flushes - before.flushes;
    assert!((1..=2).contains(&flushes), "{after:?}");
    assert_eq!(after.flushes_saved - before.flushes_saved, 9 - flushes);
}

/// A transaction that changes nothing has read what another one made. It must not wait as long as
/// that one may: an hour.
#[test]
fn a_commit_that_changes_nothing_waits_for_no_other() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keyspaces = ["k", "l", "m"].map(|name| store.keyspace(name).unwrap());
    let within = Durability::Within(Duration::from_millis(20));
    put_beside(&store, &keyspaces[0], 2, b"v", || assert!(!keyspaces[0].delete(b"absent").unwrap()));
    put_beside(&store, &keyspaces[1], 2, b"v", || {
        store.begin().unwrap().commit().unwrap();
    });
    put_beside(&store, &keyspaces[2], 2, b"v", || {
        store.begin_with(within).unwrap().commit().unwrap();
    });
    // Transactions that changed nothing are no commits, and kept no deadline.
    let deadlines = store.stats().unwrap().deadlines;
    assert_eq!((deadlines.commits, deadlines.met + deadlines.missed), (6, 6));
}

#[test]
fn a_shorter_deadline_or_a_sync_does_so_too() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let (keyspace, with_sync) = (store.keyspace("k").unwrap(), store.keyspace("l").unwrap());
    store.set_flush_policy(FlushPolicy::Every(HOUR)).unwrap();
    put_beside(&store, &keyspace, 2, b"v", || {
        put(&store, &keyspace, "shorter", b"v", Durability::Within(Duration::from_millis(20)));
    });
    put_beside(&store, &with_sync, 2, b"w", || store.sync().unwrap());
}

/// What has a deadline is flushed for it although the policy of the other commits has no end.
#[test]
fn a_deadline_comes_by_itself_and_may_be_missed() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(|options| {
        options.flush_policy(FlushPolicy::Every(HOUR));
    });
    let mut txn = store.begin_with(Durability::Within(Duration::from_millis(30))).unwrap();
    let keyspace = txn.keyspace("k").unwrap();
    txn.commit().unwrap();
    // There is no time for this one.
    put(&store, &keyspace, "late", b"v", Durability::Within(Duration::from_nanos(1)));
    let deadlines = store.stats().unwrap().deadlines;
    assert_eq!(deadlines.commits, 2);
    assert_eq!(deadlines.met + deadlines.missed, 2);
    assert!(deadlines.missed >= 1, "{deadlines:?}");
    assert!(deadlines.flush_estimate_ns > 0 && deadlines.wake_estimate_ns > 0, "{deadlines:?}");
}

/// A deadline of zero is none: no commit is counted as one with time.
#[test]
fn no_time_at_all_is_durable() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(|options| {
        options.durability(Durability::Within(Duration::ZERO));
    });
    store.keyspace("k").unwrap().put(b"k", b"v").unwrap();
    let stats = store.stats().unwrap();
    assert_eq!((stats.durable, stats.deadlines.commits), (stats.committed, 0));
}

/// The longest time that there is is no time in the past.
#[test]
fn for_ever_is_until_the_next_sync() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keyspace = store.keyspace("k").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| put(&store, &keyspace, "k", b"v", Durability::Within(Duration::MAX)));
        wait_until(|| keyspace.get(b"k").unwrap().is_some());
        std::thread::sleep(Duration::from_millis(200));
        let stats = store.stats().unwrap();
        assert!(stats.durable < stats.committed, "{stats:?}");
        store.sync().unwrap();
    });
}

#[test]
fn a_half_full_ring_is_flushed_whatever_time_there_is() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(|options| {
        options.ring_size(64 << 10);
    });
    let keyspace = store.keyspace("k").unwrap();
    // That was an urgent commit: while it is recent, those with much time may use a quarter of the
    // ring only, and are flushed earlier.
    std::thread::sleep(Duration::from_millis(1200));
    // Five of these are more than half of it; none is so long that it would be sent in pieces.
    put_beside(&store, &keyspace, 5, &[7; 7_500], || {});
}

/// The logger dies while a commit waits, having taken its deadline or not; its successor begins
/// with a flush of everything.
#[test]
fn the_logger_dies_while_a_commit_has_time() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keyspace = store.keyspace("k").unwrap();
    put_beside(&store, &keyspace, 2, b"v", || kill_logger(&store));
    assert!(store.stats().unwrap().logger_starts >= 2);
}

/// A message client's commit has time as well, beyond its patience for an answer; and it counts.
#[test]
fn by_message() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    store.keyspace("k").unwrap();
    let path = dir.path.join("logger.sock");
    wait_until(|| path.exists());
    let remote = Client::options().answer_timeout(Duration::from_secs(3)).connect(&path).unwrap();
    let durability = Durability::Within(Duration::from_secs(5));
    remote.put_with("k", b"a", b"1", durability).unwrap();
    let stats = store.stats().unwrap();
    assert_eq!(stats.durable, stats.committed);
    assert_eq!((stats.deadlines.commits, stats.deadlines.met + stats.deadlines.missed), (1, 1));
}

/// A commit by message may have no more time than the server has patience: a connection and its
/// thread are held for as long.
#[test]
fn by_message_there_is_no_more_time_than_patience() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keyspace = store.keyspace("k").unwrap();
    let path = dir.path.join("logger.sock");
    wait_until(|| path.exists());
    let remote = Client::connect(&path).unwrap();
    match remote.put_with("k", b"a", b"1", Durability::Within(Duration::from_secs(11))) {
        Err(Error::Limit { found, limit, .. }) => assert_eq!((found, limit), (11_000_000, 10_000_000)),
        other => panic!("{other:?}"),
    }
    assert!(keyspace.get(b"a").unwrap().is_none());
}
