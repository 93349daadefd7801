//! Goal: a sync of the arena, of large values in it or of a checkpoint's header that fails is never
//! taken for one that worked. After it there is no checkpoint any more, the mark stays, and errors
//! name it. Readers go on; after all clients have closed the store, it is whole again.
//!
//! Method: this test builds itself once more with crash points. These make a sync fail, and hold
//! the logger before it.

use crate::common::{HANGS, Role, TestStore, say, spawn, wait_until};
use crate::workload::instrumented::{self, logger_of};
use crate::workload::{Writer, acknowledged, assert_verified, check, open_small};
use std::path::Path;
use untorn::{Durability, Store};
use untorn_test_kit::loggers::kill_loggers;

#[test]
fn child() {
    let Some(Role { name, store: path, arguments }) = Role::of_this_process() else { return };
    assert_eq!(name, "busy");
    busy(&path, &arguments);
}

/// Writes, and takes checkpoints, until killed, until an error, or until so many rounds are done.
fn busy(path: &Path, arguments: &[String]) {
    let rounds: u64 = arguments.get(1).map_or(u64::MAX, |text| text.parse().unwrap());
    let store = open_small(path);
    let writer = Writer::open(store.clone(), &arguments[0]).unwrap();
    let large = store.keyspace("large").unwrap();
    let mut n = writer.last().unwrap();
    for round in 0..rounds {
        for _ in 0..12 {
            n += 1;
            let durable = n.is_multiple_of(4);
            let durability = if durable { Durability::Durable } else { Durability::Visible };
            let _ticket = writer.commit(n, durability).unwrap();
            say(format_args!("{} {n}", if durable { "D" } else { "V" }));
        }
        // Written to the arena once, and synced there before its log record.
        large.put(b"large", vec![round as u8; 70_000]).unwrap();
        if round % 3 == 2 {
            store.checkpoint().unwrap();
        }
    }
}

/// A store that a failed sync has marked, still open, and what its writer got acknowledged before
/// that.
///
/// The logger is held before the sync until another client has joined: a marked store without a
/// client is recovered at once.
fn marked(path: &Path, before: &str, point: &str, nth: u32) -> (Store, (u64, u64)) {
    assert!(spawn("failed_sync::busy", path, &["before", "4"]).wait());
    kill_loggers(path);
    let hold = path.with_extension("hold");
    let once = path.with_extension("once").to_string_lossy().into_owned();
    let orders = format!("{before}:hold={},{point}@{nth}:fail", hold.display());
    let env = [("UNTORN_CRASH", orders.as_str()), ("UNTORN_CRASH_ONCE", &once)];
    let mut role = instrumented::spawn("failed_sync::busy", path, &["writer"], &env);
    wait_until(|| hold.with_extension("reached").exists());
    let store = open_small(path);
    std::fs::write(&hold, "").unwrap();
    assert!(!role.wait(), "{point}: the writer should have met the error");
    let refused = store.begin().map(|_| ()).unwrap_err();
    assert!(matches!(refused, untorn::Error::NeedsRecovery { .. }), "{point}: {refused}");
    (store, acknowledged(&role))
}

/// A failed sync of the arena, or of the header: no checkpoint any more, a sticky mark, errors that
/// name it, readers go on. After all clients have closed the store, it is whole again.
#[test]
fn a_failed_sync_of_arena_or_header_is_sticky_until_all_have_closed() {
    // The first write of a header is recovery's.
    for (before, point, nth) in [
        ("checkpoint.pages_summed", "arena.sync", 1),
        ("checkpoint.arena_synced", "checkpoint.sync", 2),
        ("extents.before_sync", "extents.sync", 1),
    ] {
        let test = TestStore::new();
        let path = test.path.clone();
        let (store, told) = marked(&path, before, point, nth);
        assert!(store.stats().unwrap().needs_recovery.is_some());
        check(&store, &store.snapshot().unwrap());
        drop(store);
        // The logger of a marked store leaves as soon as no client uses the store; a request makes
        // it quicker.
        untorn::logger::stop_logger(&path, HANGS).unwrap();
        let store = open_small(&path);
        let found = check(&store, &store.snapshot().unwrap());
        assert!(found["writer"] >= told.1, "{point}: told {told:?}, found {found:?}");
        store.begin().unwrap().rollback();
        assert_verified(&store);
        drop(store);
        assert!(logger_of(&path).is_some());
    }
}

/// A message-passing client that comes when all clients have closed a marked store is refused, and
/// does not keep the store from its recovery.
///
/// The logger once opened the store for that client, and as any opener waited there for the logger
/// of a marked store to leave, which was itself. It did not leave, since a client was connected.
/// When it gave up, the client was let in to the region that takes no writes.
#[test]
fn a_client_by_message_is_not_let_in_to_a_marked_store_that_all_have_left() {
    let test = TestStore::new();
    let path = test.path.clone();
    let (store, _) = marked(&path, "checkpoint.pages_summed", "arena.sync", 1);
    // A client that comes earlier is served.
    drop(untorn::Client::connect(path.join("logger.sock")).unwrap());
    // The last of them has left as well.
    wait_until(|| store.stats().unwrap().clients.len() <= 1);
    drop(store);
    // The leaving logger refuses, or it has left: no process here starts another one.
    assert!(untorn::Client::connect(path.join("logger.sock")).is_err());
    let store = open_small(&path);
    store.begin().unwrap().rollback();
    assert_verified(&store);
}
