//! Goal: a feed shows nothing of a transaction that was streamed into the log and rolled back, if
//! the store was closed or killed between that and the next transaction.
//!
//! Method: a checkpoint after the rolled back frames, so that recovery begins behind them and has
//! no record to replay; then a transaction that streams as well.

use crate::common::{TestStore, kill_logger};
use std::time::Duration;
use untorn::{Durability, Feed, Options, Store, TxnId};

/// Bytes of a value that a frame of the small ring does not hold.
const LARGE: usize = 20_000;

fn small(options: &mut Options) {
    options.ring_size(64 << 10).segment_size(256 << 10).max_size(64 << 20);
}

fn stream(store: &Store, key: &str, commits: bool) {
    let keyspace = store.keyspace("keys").unwrap();
    let mut txn = store.begin_with(Durability::Durable).unwrap();
    for part in 0..3 {
        txn.put(&keyspace, format!("{key} {part}").as_bytes(), &[7; LARGE]).unwrap();
    }
    if commits {
        txn.commit().unwrap();
    } else {
        txn.rollback();
    }
}

fn followed(store: &Store, feed: Feed) -> Vec<String> {
    let end = store.snapshot().unwrap().txn_id();
    let mut changes = store.changes(TxnId::ZERO, feed).unwrap();
    let mut keys = Vec::new();
    while changes.resume_from() < end {
        if let Some(change) = changes.try_next(Duration::from_millis(20)).unwrap() {
            keys.push(String::from_utf8(change.key().to_vec()).unwrap());
        }
    }
    keys
}

fn rolls_back_before(end: impl FnOnce(&TestStore, Store)) {
    let dir = TestStore::new();
    let store = dir.open_with(small);
    stream(&store, "first", true);
    stream(&store, "rolled back", false);
    // Its position is behind the frames.
    store.checkpoint().unwrap();
    end(&dir, store);
    let store = dir.open();
    stream(&store, "last", true);
    store.sync().unwrap();
    let expected: Vec<String> =
        ["first", "last"].iter().flat_map(|key| (0..3).map(move |part| format!("{key} {part}"))).collect();
    for feed in [Feed::Durable, Feed::Visible] {
        assert_eq!(followed(&store, feed), expected, "{feed:?}");
    }
    // The same after a recovery that replays the frames.
    kill_logger(&store);
    drop(store);
    let store = dir.open();
    assert_eq!(followed(&store, Feed::Durable), expected);
}

#[test]
fn frames_rolled_back_before_a_kill_are_not_shown() {
    rolls_back_before(|_, store| {
        kill_logger(&store);
        drop(store);
    });
}

#[test]
fn frames_rolled_back_before_a_clean_end_are_not_shown() {
    rolls_back_before(|dir, store| {
        drop(store);
        dir.stop_logger();
    });
}
