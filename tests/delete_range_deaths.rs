//! Goal: a removal of a range happens as a whole or not at all, wherever its writer, or every process, dies.
//!
//! Method: writers that are killed at each point between the first frame of the log and the end of the commit (victims:
//! this executable with crash points). A process that lives looks at once; then all are killed, with and without
//! the loss of the shared region, and the store is opened again.

mod common;
mod workload;

use common::limit;
use std::collections::BTreeMap;
use std::path::Path;
use untorn::{Durability, Error, Keyspace, Options, Snapshot, Store, WriteTxn};
use workload::victim::{Scene, kernel_crash, kill_loggers};
use workload::{assert_verified, listen, my_role, say, sealed, unsealed};

const ROWS: u64 = 2_000;
/// The rows that go.
const START: u64 = 300;
const END: u64 = 1_700;

#[test]
fn role() {
    let Some((name, path, arguments)) = my_role() else { return };
    match name.as_str() {
        "remover" => remove(&path, &arguments),
        other => panic!("no role {other}"),
    }
}

fn victim() -> &'static Path {
    workload::victim::build("delete_range_deaths")
}

fn options() -> Options {
    let mut options = workload::worker::options();
    options.durability(Durability::Visible);
    options
}

fn len(n: u64) -> usize {
    if n.is_multiple_of(250) { 20_000 } else { 64 }
}

fn fill(store: &Store) {
    let rows = store.keyspace("rows").unwrap();
    let mut txn = store.begin_with(Durability::Durable).unwrap();
    for n in 0..ROWS {
        txn.put(&rows, n.to_be_bytes(), sealed(n, len(n))).unwrap();
    }
    txn.commit().unwrap();
}

/// A transaction that marks its number and removes the range; a long one streams before and after the removal.
fn transaction<'s>(store: &'s Store, rows: &Keyspace, is_long: bool) -> WriteTxn<'s> {
    let mut txn = store.begin().unwrap();
    let filler = txn.keyspace("filler").unwrap();
    let count = if is_long { 200 } else { 1 };
    let fill = |txn: &mut WriteTxn<'_>, first: u64| {
        (first..first + count).for_each(|n| txn.put(&filler, n.to_be_bytes(), sealed(n, 1_000)).unwrap());
    };
    fill(&mut txn, 0);
    let removed = txn.delete_range(rows, START.to_be_bytes()..END.to_be_bytes()).unwrap();
    assert_eq!(removed, END - START);
    fill(&mut txn, 1_000);
    txn
}

/// The role: removes when it is told so, and says so. A logger that dies as it starts is started again.
fn remove(path: &Path, arguments: &[String]) {
    let store = loop {
        match options().open(path) {
            Err(Error::LoggerUnavailable { .. }) => say("no logger"),
            opened => break opened.unwrap(),
        }
    };
    let rows = store.keyspace("rows").unwrap();
    say("ready");
    while listen().is_some() {
        transaction(&store, &rows, arguments[0] == "long").commit().unwrap();
        say("removed");
    }
}

/// Whether the removal is there; it must be whole, and so must the rest of its transaction.
fn is_removed(store: &Store, snapshot: &Snapshot) -> bool {
    let rows = store.find_keyspace("rows").unwrap().unwrap();
    let found: BTreeMap<u64, usize> = snapshot
        .range(&rows, ..)
        .unwrap()
        .map(|entry| {
            let (key, value) = entry.unwrap();
            let n = u64::from_be_bytes((*key).try_into().unwrap());
            assert_eq!(unsealed(&value), n);
            (n, value.len())
        })
        .collect();
    let whole = |is_removed: bool| {
        let rows = (0..ROWS).filter(|n| !is_removed || !(START..END).contains(n));
        rows.map(|n| (n, len(n))).collect::<BTreeMap<_, _>>()
    };
    let is_removed = found.len() < ROWS as usize;
    assert!(found == whole(is_removed), "{} rows are there", found.len());
    assert_eq!(snapshot.find_keyspace("filler").unwrap().is_some(), is_removed, "half a transaction");
    is_removed
}

/// The writer dies at a point; what others see of it at once and after the death of all.
fn dies_at(point: &str, is_long: bool, is_visible: bool) {
    for loses_region in [false, true] {
        let scene = Scene::new();
        let what = format!("{point}, long: {is_long}, region lost: {loses_region}");
        let store = options().open(&scene.path).unwrap();
        fill(&store);
        if loses_region {
            store.checkpoint().unwrap();
        }
        let orders = [format!("{point}:kill")];
        let mut writer = scene.victim(victim(), "remover", if is_long { "long" } else { "short" }, &orders, "");
        writer.wait_for("ready");
        writer.tell("remove");
        writer.child.wait().unwrap();
        assert!(!writer.lines().iter().any(|line| line == "removed"), "{what}");
        assert_eq!(is_removed(&store, &store.snapshot().unwrap()), is_visible, "{what}");
        assert_verified(&store);
        if loses_region {
            store.sync().unwrap();
        }
        drop(store);
        if loses_region {
            kernel_crash(&scene.path)
        } else {
            kill_loggers(&scene.path)
        }
        let store = options().open(&scene.path).unwrap();
        assert_eq!(is_removed(&store, &store.snapshot().unwrap()), is_visible, "{what}, after all died");
        assert_verified(&store);
        // The store goes on, with the pages that were freed.
        if !is_visible {
            let rows = store.keyspace("rows").unwrap();
            transaction(&store, &rows, is_long).commit().unwrap();
        }
        assert!(is_removed(&store, &store.snapshot().unwrap()), "{what}");
        fill(&store);
        assert_verified(&store);
    }
}

#[test]
fn a_writer_that_dies_removes_all_or_nothing() {
    victim();
    let _limit = limit();
    for point in ["commit.pages_written", "commit.record_written", "commit.before_swing"] {
        dies_at(point, false, false);
        dies_at(point, true, false);
    }
    for point in ["commit.swung", "commit.after_swing"] {
        dies_at(point, false, true);
        dies_at(point, true, true);
    }
    for point in ["stream.before_tail", "stream.after_tail", "stream.after_tail@20"] {
        dies_at(point, true, false);
    }
}

/// The logger that replays a removal is killed behind each transaction, and its successor replays it again.
#[test]
fn a_replay_that_dies_is_done_again() {
    victim();
    let _limit = limit();
    let scene = Scene::new();
    let store = options().open(&scene.path).unwrap();
    fill(&store);
    let rows = store.keyspace("rows").unwrap();
    transaction(&store, &rows, true).commit().unwrap();
    store.sync().unwrap();
    drop((rows, store));
    kernel_crash(&scene.path);
    let once = scene.path.with_file_name("once").to_string_lossy().into_owned();
    let orders =
        [("UNTORN_CRASH", "replay.committed@0:kill"), ("UNTORN_CRASH_ONCE", &once), ("UNTORN_CRASH_TIMES", "3")];
    let mut opener = workload::Role::start(victim(), "remover", &scene.path, "short", &orders);
    opener.wait_for("ready");
    assert!(Path::new(&format!("{once}-replay.committed-3")).exists(), "the logger was killed three times");
    opener.kill();
    let store = options().open(&scene.path).unwrap();
    assert!(is_removed(&store, &store.snapshot().unwrap()));
    assert_verified(&store);
}
