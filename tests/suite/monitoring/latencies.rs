//! Goal: the histograms count what all processes of a store do, in the class where it belongs, for
//! as long as the region lives.
//!
//! Method: known work by this process and by another one, then exact counts; a lock held for a
//! known time, then bounds that hold however slow the machine is.

use crate::common::{HANGS, Role, TestStore, limit, listen, say, spawn, wait_until};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;
use untorn::{Durability, FlushPolicy, Latency, LatencyByClass, Store};

const HELD: Duration = Duration::from_millis(60);

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    let store = Store::open(&role.store).unwrap();
    let keys = store.keyspace("keys").unwrap();
    for key in 0..role.number(0) {
        keys.put(&key.to_be_bytes(), b"by the child").unwrap();
    }
    say("done");
    listen();
}

#[test]
fn each_process_counts_in_the_class_of_its_commits() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let before = store.stats().unwrap().latencies;
    let other = spawn("monitoring::latencies::commit", &test.path, &["7"]);
    other.expect("done");
    for key in 0..5_u32 {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, &key.to_be_bytes(), b"by the parent").unwrap();
        txn.commit().unwrap();
    }
    store.sync().unwrap();
    let stats = store.stats().unwrap();
    let now = &stats.latencies;
    let count = |now: &Latency, then: &Latency| now.since(then).count();
    let urgent = |now: &LatencyByClass, then: &LatencyByClass| count(&now.urgent, &then.urgent);
    let bulk = |now: &LatencyByClass, then: &LatencyByClass| count(&now.bulk, &then.bulk);
    // Seven of the child's, whose keyspace was there; of the logger's own transactions, none is
    // urgent.
    assert_eq!(urgent(&now.lock_wait, &before.lock_wait), 7);
    assert_eq!(urgent(&now.lock_hold, &before.lock_hold), 7);
    assert!(bulk(&now.lock_hold, &before.lock_hold) >= 5);
    // Each once, also those that were durable before their caller began to wait.
    let (told, told_before) = (&now.acknowledgement, &before.acknowledgement);
    assert_eq!(count(&told.urgent, &told_before.urgent), 7, "{now:#?}");
    assert_eq!(count(&told.within, &told_before.within), 0);
    assert_eq!(u128::from(stats.fsync_ns), now.flush.sum().as_nanos());
    assert!(now.flush.count() > 0 && now.flush.mean() <= now.flush.max());

    // They are the region's, not the logger's: another one goes on counting.
    untorn::logger::stop_logger(&test.path, HANGS).unwrap();
    keys.put(b"after", b"the first logger").unwrap();
    let later = store.stats().unwrap();
    assert!(later.logger_starts > stats.logger_starts);
    assert_eq!(urgent(&later.latencies.lock_hold, &now.lock_hold), 1);

    // When all have left, the region has gone, and its figures with it.
    drop(other);
    drop(keys);
    drop(store);
    test.stop_logger();
    let anew = test.open().stats().unwrap().latencies;
    assert_eq!(anew.lock_hold.urgent.count(), 0, "{anew:#?}");
}

/// A commit that has time is put off by intent, however little that is. Counted among commits
/// without time, it looked like a delay.
#[test]
fn commits_that_have_time_are_acknowledged_apart() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let before = store.stats().unwrap().latencies.acknowledgement;
    let times = [1, 90, 150].map(Duration::from_millis);
    for time in times {
        let mut txn = store.begin_with(Durability::Within(time)).unwrap();
        txn.put(&keys, b"key", b"value").unwrap();
        txn.commit().unwrap();
    }
    let mut txn = store.begin_with(Durability::Within(times[2])).unwrap();
    txn.put(&keys, b"key", b"other").unwrap();
    // A commit whose ticket is waited for later is counted as bulk, if it is not yet durable.
    txn.submit().unwrap().wait().unwrap();
    let now = store.stats().unwrap().latencies.acknowledgement;
    assert_eq!(now.within.since(&before.within).count(), 3, "{now:#?}");
    assert_eq!(now.urgent.since(&before.urgent).count(), 0, "{now:#?}");
    assert!(now.bulk.since(&before.bulk).count() <= 1, "{now:#?}");
}

#[test]
fn a_lock_held_long_shows_with_its_holder_and_its_waiter() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let before = store.stats().unwrap().latencies;
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&keys, b"key", b"value").unwrap();
    std::thread::scope(|scope| {
        let (asking, asked) = std::sync::mpsc::channel();
        let keys = &keys;
        scope.spawn(move || {
            asking.send(()).unwrap();
            keys.put(b"other", b"value").unwrap();
        });
        asked.recv().unwrap();
        std::thread::sleep(HELD);
        txn.commit().unwrap();
    });
    let latencies = store.stats().unwrap().latencies;
    assert!(latencies.lock_hold.bulk.max() >= HELD, "{latencies:#?}");
    assert_eq!(latencies.lock_hold.bulk.percentile(100.0), latencies.lock_hold.bulk.max());
    assert_eq!(latencies.lock_wait.urgent.since(&before.lock_wait.urgent).count(), 1);
}

#[test]
fn what_the_logger_does_is_measured() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    store.keyspace("keys").unwrap().put(b"key", b"value").unwrap();
    store.cell("cell", 8).unwrap().store_durable(&[1; 8]).unwrap();
    store.checkpoint().unwrap();
    let stats = store.stats().unwrap();
    assert_eq!(stats.latencies.checkpoint.count(), stats.checkpoints);
    assert!(stats.latencies.sample.count() >= 1);
}

#[test]
fn a_wait_for_a_visible_commit_is_counted_once_it_is_durable() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.flush_policy(FlushPolicy::Every(Duration::from_secs(3600)));
    });
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    let keys = txn.keyspace("keys").unwrap();
    txn.put(&keys, b"key", b"value").unwrap();
    let ticket = txn.commit().unwrap();
    let acknowledged = || store.stats().unwrap().latencies.acknowledgement.bulk.count();
    let mut awaited = pin!(ticket.clone());
    assert!(awaited.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(acknowledged(), 0);
    store.sync().unwrap();
    // That of `sync`, and that of the task, by the thread that wakes it.
    wait_until(|| acknowledged() == 2);
    ticket.wait().unwrap();
    assert_eq!(acknowledged(), 2, "no caller has waited");
}
