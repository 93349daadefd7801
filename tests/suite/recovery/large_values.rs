//! Goal: large values, which are written once, survive a crash like any others. The log refers to
//! their extents, which keep their bytes as long as recovery may need them. A damaged one is named.
//!
//! Method: after each of many transactions the files are copied as a crash of the kernel would
//! leave them, and the copy is recovered in this process and compared with what was put.

use super::*;
use std::ops::ControlFlow;
use untorn::{Durability, Feed, WriteTxn};

const LARGE: usize = 64 << 10;

fn options() -> untorn::Options {
    let mut options = Store::options();
    options.ring_size(64 << 10).segment_size(256 << 10).max_size(64 << 20);
    options
}

/// A value that no other seed gives.
fn value(seed: u64, len: usize) -> Vec<u8> {
    seed.to_le_bytes().into_iter().cycle().take(len).enumerate().map(|(at, byte)| byte ^ (at >> 9) as u8).collect()
}

/// One transaction of the history. Breaks if it must not be committed.
fn change(txn: &mut WriteTxn<'_>, state: &mut State, step: u64) -> ControlFlow<()> {
    let keyspace = txn.keyspace("values").unwrap();
    let name = |key: &[u8]| ("values".to_string(), key.to_vec());
    let len = LARGE + (step as usize * 7919) % 90_000;
    let key = format!("key {}", step % 3).into_bytes();
    let put = |txn: &mut WriteTxn<'_>, state: &mut State, key: &[u8], value: Vec<u8>| {
        txn.put(&keyspace, key, &value).unwrap();
        state.insert(name(key), value);
    };
    let stream = |txn: &mut WriteTxn<'_>| {
        for i in 0..12u64 {
            txn.put(&keyspace, format!("frame {i}").as_bytes(), &value(step, 9000)).unwrap();
        }
    };
    match step % 9 {
        // The first extent is freed in the transaction that wrote it.
        1 => {
            put(txn, state, &key, value(step + 1000, len));
            put(txn, state, &key, value(step, len));
        }
        // The log record is cut back, and the extent used again.
        2 => {
            let savepoint = txn.savepoint();
            txn.put(&keyspace, &key, &value(step + 1000, len)).unwrap();
            txn.rollback_to(savepoint).unwrap();
            put(txn, state, &key, value(step, len));
        }
        // Frames with the first extent were sent, so it stays.
        3 => {
            let savepoint = txn.savepoint();
            txn.put(&keyspace, &key, &value(step + 1000, len)).unwrap();
            stream(txn);
            txn.rollback_to(savepoint).unwrap();
            put(txn, state, &key, value(step, len));
        }
        // A stream that never commits. The next transaction reuses its extent and its id.
        4 => {
            txn.put(&keyspace, &key, &value(step + 1000, len)).unwrap();
            stream(txn);
            return ControlFlow::Break(());
        }
        5 => {
            assert_eq!(txn.delete(&keyspace, &key).unwrap(), state.remove(&name(&key)).is_some());
        }
        6 => {
            txn.delete_range(&keyspace, &b"key 1"[..]..&b"key 9"[..]).unwrap();
            state.retain(|(_, key), _| !(&b"key 1"[..]..&b"key 9"[..]).contains(&&key[..]));
            put(txn, state, b"key 1", value(step, len));
        }
        _ => put(txn, state, &key, value(step, len)),
    }
    ControlFlow::Continue(())
}

/// Goal: each committed state recovers from what a crash leaves, whatever freed and reused the
/// extents before, with checkpoints and without.
#[test]
fn each_state_recovers() {
    for checkpoint_every in [7, 1000] {
        let dir = scratch();
        let (live, image) = (dir.path().join("live"), dir.path().join("image"));
        let store = options().open(&live).unwrap();
        let mut state = State::new();
        for step in 0..36 {
            let mut txn = store.begin_with(Durability::Durable).unwrap();
            match change(&mut txn, &mut state, step) {
                ControlFlow::Continue(()) => drop(txn.commit().unwrap()),
                ControlFlow::Break(()) => {
                    txn.rollback();
                    continue;
                }
            }
            copy(&live, &image);
            // The second recovery starts from what the first one left.
            for _ in 0..2 {
                let copied = in_process().open(&image).unwrap_or_else(|error| panic!("step {step}: {error}"));
                assert!(read(&copied).unwrap() == state, "step {step}: another state");
                let report = copied.verify().unwrap();
                assert!(report.is_clean(), "step {step}: {report:#?}");
                // Live pages are reused from here on.
                let keyspace = copied.keyspace("values").unwrap();
                keyspace.put(b"after", &value(step, LARGE)).unwrap();
                keyspace.delete(b"after").unwrap();
                assert!(copied.verify().unwrap().is_clean(), "step {step}");
            }
            store_files::remove_all(&image);
            if step % checkpoint_every == checkpoint_every - 1 {
                store.checkpoint().unwrap();
            }
        }
        assert!(store.verify().unwrap().is_clean());
        drop(store);
        store_files::remove_all(&live);
    }
}

/// Goal: a large value of a durable record that does not match the log is damage: the open names
/// it, and no file changes.
#[test]
fn a_damaged_value_is_named() {
    let dir = scratch();
    let (live, image, damaged) = (dir.path().join("live"), dir.path().join("image"), dir.path().join("damaged"));
    let store = options().open(&live).unwrap();
    let keyspace = store.keyspace("values").unwrap();
    keyspace.put(b"key", &value(1, LARGE)).unwrap();
    // The header of this record's batch states that the value is durable.
    keyspace.put(b"next", b"small").unwrap();
    crash_image(&store, &live, &image);
    let whole = Image::load(&image);
    let arena = &whole.files["arena"];
    let needle = &value(1, LARGE)[..64];
    let at = arena.windows(needle.len()).position(|bytes| bytes == needle).unwrap();
    for offset in [at, at + LARGE - 1, at - 20] {
        whole.lay_out(&damaged, |files| files.get_mut("arena").unwrap()[offset] ^= 1);
        let before = Image::load(&damaged).files;
        match in_process().open(&damaged).unwrap_err() {
            Error::Corrupt { file, offset: found, what } => {
                assert_eq!((file.as_str(), found), ("arena", (at - 40) as u64), "{what}");
                assert!(what.contains("does not match the checksum in the log"), "{what}");
            }
            other => panic!("{other:?}"),
        }
        assert!(Image::load(&damaged).files == before, "a refused store has changed");
        store_files::remove_all(&damaged);
    }
    drop((keyspace, store));
    store_files::remove_all(&live);
}

/// Goal: a follower that reads a large value after its extent was reused lags, and continues from
/// the id that it gets. No value is another one's.
#[test]
fn a_follower_of_a_reused_extent_lags() {
    let dir = scratch();
    let live = dir.path().join("live");
    let store = options().retain_changes(64 << 20, Duration::MAX).open(&live).unwrap();
    let keyspace = store.keyspace("values").unwrap();
    let begin = store.snapshot().unwrap().txn_id();
    let follow = |from| store.changes(from, Feed::Durable).unwrap();
    let txns: Vec<_> = (0..3).map(|i| keyspace.put(b"key", &value(i, LARGE)).unwrap()).collect();
    // Nothing was reused before a checkpoint.
    let mut changes = follow(begin);
    for i in 0..3 {
        let change = changes.try_next(HANGS).unwrap().unwrap();
        assert_eq!((change.txn_id(), change.value()), (txns[i as usize], Some(&value(i, LARGE)[..])));
    }
    store.checkpoint().unwrap();
    for i in 10..14u64 {
        keyspace.put(&i.to_be_bytes(), &value(i, LARGE)).unwrap();
    }
    let mut changes = follow(begin);
    let Err(Error::Lagged { oldest }) = changes.try_next(HANGS) else { panic!("the value is still there") };
    assert_eq!(oldest, txns[2]);
    let mut changes = follow(oldest);
    for i in 10..14u64 {
        assert_eq!(changes.try_next(HANGS).unwrap().unwrap().value(), Some(&value(i, LARGE)[..]));
    }
    drop((changes, keyspace));
    drop(store);
    store_files::remove_all(&live);
}

/// Goal: overwriting a large value for long takes bounded space. An extent waits for a checkpoint,
/// and its bytes count toward the next one.
#[test]
fn overwriting_takes_bounded_space() {
    let dir = scratch();
    let live = dir.path().join("live");
    let store = options().checkpoint_bytes(1 << 20).open(&live).unwrap();
    let keyspace = store.keyspace("values").unwrap();
    for i in 0..600u64 {
        keyspace.put(b"key", &value(i, 4 * LARGE)).unwrap();
    }
    let used = std::fs::metadata(live.join("arena")).unwrap().len();
    assert!(used <= 24 << 20, "{used} bytes for a value of {}", 4 * LARGE);
    drop((keyspace, store));
    store_files::remove_all(&live);
}
