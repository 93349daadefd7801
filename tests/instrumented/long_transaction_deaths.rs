//! Goal: a transaction that removes a range, or returns to a savepoint, happens as a whole or not
//! at all, wherever its writer, or every process, dies.
//!
//! Method: writers that are killed at each point between the first frame of the log and the end of
//! the commit (by the instrumented build). A living process checks at once; then
//! all are killed, with and without the loss of the shared region, and the store is opened again.

use crate::common::{Role, listen, say};
use crate::workload::assert_verified;
use crate::workload::instrumented::{self, Scenario};
use std::collections::BTreeMap;
use std::path::Path;
use untorn::{Durability, Error, Keyspace, Options, Snapshot, Store, WriteTxn};
use untorn_test_kit::loggers::{crash_kernel, kill_loggers};
use untorn_test_kit::sealed::{expect_sealed, sealed};

const ROWS: u64 = 2_000;
/// The rows that go.
const START: u64 = 300;
const END: u64 = 1_700;

#[test]
fn child() {
    let Some(Role { name, store: path, arguments }) = Role::of_this_process() else { return };
    match name.as_str() {
        "remover" => remove(&path, &arguments),
        other => panic!("no role {other}"),
    }
}

fn options() -> Options {
    let mut options = crate::workload::worker::options();
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

/// How the transaction removes the range.
#[derive(Clone, Copy, PartialEq, Debug)]
enum How {
    Short,
    /// It streams before and after the removal.
    Long,
    /// It streams, and returns to savepoints in between, after frames of what is undone were sent.
    WithSavepoints,
}

impl How {
    fn parse(name: &str) -> How {
        *[How::Short, How::Long, How::WithSavepoints].iter().find(|how| format!("{how:?}") == name).unwrap()
    }
}

/// A transaction that removes the range, and has records in a keyspace of its own.
fn transaction<'s>(store: &'s Store, rows: &Keyspace, how: How) -> WriteTxn<'s> {
    let mut txn = store.begin().unwrap();
    let filler = txn.keyspace("filler").unwrap();
    let count = if how == How::Short { 1 } else { 200 };
    let fill = |txn: &mut WriteTxn<'_>, first: u64| {
        (first..first + count).for_each(|n| txn.put(&filler, n.to_be_bytes(), sealed(n, 1_000)).unwrap());
    };
    fill(&mut txn, 0);
    if how == How::WithSavepoints {
        let outer = txn.savepoint();
        let undone = txn.keyspace("undone").unwrap();
        txn.put(&undone, "a", "1").unwrap();
        assert!(txn.delete_range(rows, ..100_u64.to_be_bytes()).unwrap() > 0);
        let inner = txn.savepoint();
        fill(&mut txn, 100);
        txn.rollback_to(inner).unwrap();
        fill(&mut txn, 500);
        txn.rollback_to(outer).unwrap();
    }
    let removed = txn.delete_range(rows, START.to_be_bytes()..END.to_be_bytes()).unwrap();
    assert_eq!(removed, END - START);
    fill(&mut txn, 1_000);
    txn
}

/// The role: removes at a command, and reports that. A logger that dies as it starts is started
/// again.
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
        transaction(&store, &rows, How::parse(&arguments[0])).commit().unwrap();
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
            assert_eq!(expect_sealed(value), n);
            (n, value.len())
        })
        .collect();
    let whole = |is_removed: bool| {
        let rows = (0..ROWS).filter(|n| !is_removed || !(START..END).contains(n));
        rows.map(|n| (n, len(n))).collect::<BTreeMap<_, _>>()
    };
    let is_removed = found.len() < ROWS as usize;
    assert!(found == whole(is_removed), "{} rows are there", found.len());
    let filler = snapshot.find_keyspace("filler").unwrap();
    assert_eq!(filler.is_some(), is_removed, "half a transaction");
    let count = filler.map_or(0, |filler| snapshot.len(&filler).unwrap());
    assert!([0, 2, 400].contains(&count), "{count} records beside the rows");
    assert!(snapshot.find_keyspace("undone").unwrap().is_none(), "what was undone is there");
    is_removed
}

/// The writer dies at a point; what others see of it at once and after the death of all.
fn dies_at(point: &str, how: How, is_visible: bool) {
    for loses_region in [false, true] {
        let scenario = Scenario::new();
        let what = format!("{point}, {how:?}, region lost: {loses_region}");
        let store = options().open(&scenario.path).unwrap();
        fill(&store);
        if loses_region {
            store.checkpoint().unwrap();
        }
        let orders = [format!("{point}:kill")];
        let mut writer = scenario.start("long_transaction_deaths::remover", &[&format!("{how:?}")], &orders, "");
        writer.hear_prefix("ready");
        writer.tell("remove");
        writer.wait();
        assert!(!writer.lines().iter().any(|line| line == "removed"), "{what}");
        assert_eq!(is_removed(&store, &store.snapshot().unwrap()), is_visible, "{what}");
        assert_verified(&store);
        if loses_region {
            store.sync().unwrap();
        }
        drop(store);
        if loses_region {
            crash_kernel(&scenario.path);
        } else {
            kill_loggers(&scenario.path);
        }
        let store = options().open(&scenario.path).unwrap();
        assert_eq!(is_removed(&store, &store.snapshot().unwrap()), is_visible, "{what}, after all died");
        assert_verified(&store);
        // The store goes on, with the pages that were freed.
        if !is_visible {
            let rows = store.keyspace("rows").unwrap();
            transaction(&store, &rows, how).commit().unwrap();
        }
        assert!(is_removed(&store, &store.snapshot().unwrap()), "{what}");
        fill(&store);
        assert_verified(&store);
    }
}

#[test]
fn a_writer_that_dies_removes_all_or_nothing() {
    let _limit = instrumented::limit_after_build();
    for point in ["commit.pages_written", "commit.record_written", "commit.before_publish"] {
        [How::Short, How::Long, How::WithSavepoints].iter().for_each(|how| dies_at(point, *how, false));
    }
    for point in ["commit.published", "commit.deadline_announced"] {
        [How::Short, How::WithSavepoints].iter().for_each(|how| dies_at(point, *how, true));
    }
    for point in ["stream.frame_copied", "stream.frame_published@20"] {
        dies_at(point, How::Long, false);
    }
    // Some 25 frames each before the savepoint, before and after the first rollback, and after the
    // second one.
    for nth in [35, 60, 78, 90] {
        dies_at(&format!("stream.frame_published@{nth}"), How::WithSavepoints, false);
    }
}

/// The logger that replays a removal is killed behind each transaction, and its successor replays
/// it again.
#[test]
fn a_replay_that_dies_is_done_again() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let store = options().open(&scenario.path).unwrap();
    fill(&store);
    let rows = store.keyspace("rows").unwrap();
    transaction(&store, &rows, How::WithSavepoints).commit().unwrap();
    store.sync().unwrap();
    drop((rows, store));
    crash_kernel(&scenario.path);
    let once = scenario.path.with_file_name("once").to_string_lossy().into_owned();
    let orders =
        [("UNTORN_CRASH", "replay.committed@0:kill"), ("UNTORN_CRASH_ONCE", &once), ("UNTORN_CRASH_TIMES", "3")];
    let mut opener = instrumented::spawn("long_transaction_deaths::remover", &scenario.path, &["Short"], &orders);
    opener.hear_prefix("ready");
    assert!(Path::new(&format!("{once}-replay.committed-3")).exists(), "the logger was killed three times");
    opener.kill();
    let store = options().open(&scenario.path).unwrap();
    assert!(is_removed(&store, &store.snapshot().unwrap()));
    assert_verified(&store);
}
