//! The workloads. Each prepares a store, then calls one function of the library many times inside a
//! function named `counted_…`. Callgrind collects only in that function.

use crate::callgrind::Counts;
use std::hint::black_box;
use std::time::Duration;
use untorn::{Cursor, Durability, FlushPolicy, Keyspace, Snapshot, Store};

/// The workloads, in the order in which they run.
pub(crate) const NAMES: [&str; 10] = [
    "get",
    "snapshot_get",
    "seek_10",
    "scan",
    "cursor_seek_10",
    "cursor_scan",
    "put",
    "put_pinned",
    "delete",
    "commit_10",
];

/// Entries in the store before a workload begins: 24-byte keys and 150-byte values, four levels of
/// pages.
const ENTRIES: u64 = 50_000;
/// Snapshots that are open in `put_pinned`.
const SNAPSHOTS: usize = 4_000;
/// Calls before the counted ones, which warm up the caches of the process; and the counted calls.
const WARM_UP: u64 = 100;
const CALLS: u64 = 2_000;

/// Returns the number of calls by which a workload's count is divided.
pub(crate) fn calls(name: &str) -> u64 {
    // A scan is one call that passes every entry.
    if name == "scan" || name == "cursor_scan" { ENTRIES } else { CALLS }
}

/// Runs one workload. Under callgrind, only its counted part is collected.
pub(crate) fn run(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = Store::options()
        .durability(Durability::Visible)
        // No flush happens in the counted part; the logger's own work is never counted.
        .flush_policy(FlushPolicy::Every(Duration::from_secs(3600)))
        // Valgrind refuses a large reservation of address space.
        .max_size(1 << 30)
        .open(&path)
        .unwrap();
    let keys = store.keyspace("keys").unwrap();
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    for number in 0..ENTRIES {
        txn.put(&keys, &key(number), &value(number)).unwrap();
    }
    txn.commit().unwrap();
    store.checkpoint().unwrap();
    match name {
        "get" => run_calls(|number| get(&keys, number), counted_get),
        "snapshot_get" => run_calls(|number| snapshot_get(&store, &keys, number), counted_snapshot_get),
        "seek_10" => run_calls(|number| seek_10(&keys, number), counted_seek_10),
        "scan" => {
            scan(&keys);
            counted_scan(&mut || scan(&keys));
        }
        "cursor_seek_10" => {
            let snapshot = store.snapshot().unwrap();
            let mut cursor = snapshot.cursor(&keys).unwrap();
            run_calls(|number| cursor_seek_10(&mut cursor, number), counted_cursor_seek_10);
        }
        "cursor_scan" => {
            let snapshot = store.snapshot().unwrap();
            cursor_scan(&snapshot, &keys);
            counted_cursor_scan(&mut || cursor_scan(&snapshot, &keys));
        }
        "put" => run_calls(|number| put(&keys, number), counted_put),
        "put_pinned" => {
            let _snapshots: Vec<Snapshot> = (0..SNAPSHOTS).map(|_| store.snapshot().unwrap()).collect();
            run_calls(|number| put(&keys, number), counted_put_pinned);
        }
        "delete" => run_calls(|number| delete(&keys, number), counted_delete),
        "commit_10" => run_calls(|number| commit_10(&store, &keys, number), counted_commit_10),
        _ => panic!("no workload {name:?}; there are {NAMES:?}"),
    }
    drop((keys, store));
    untorn::logger::stop_logger(&path, Duration::from_secs(30)).unwrap();
}

fn run_calls(mut call: impl FnMut(u64), counted: impl Fn(&mut dyn FnMut())) {
    (0..WARM_UP).for_each(&mut call);
    let mut number = WARM_UP;
    counted(&mut || {
        for _ in 0..CALLS {
            call(number);
            number += 1;
        }
    });
}

/// Defines the functions in which callgrind collects. They differ only in their names, which are
/// passed to callgrind.
macro_rules! counted {
    ($($name:ident),*) => {$(
        #[inline(never)]
        fn $name(calls: &mut dyn FnMut()) {
            calls();
            // Prevents functions of equal bodies from being merged into one symbol.
            black_box(stringify!($name));
        }
    )*};
}
counted!(
    counted_get,
    counted_snapshot_get,
    counted_seek_10,
    counted_scan,
    counted_cursor_seek_10,
    counted_cursor_scan,
    counted_put,
    counted_put_pinned,
    counted_delete,
    counted_commit_10
);

fn get(keys: &Keyspace, number: u64) {
    black_box(keys.get(&key(number * 7_919 % ENTRIES)).unwrap().unwrap());
}

fn snapshot_get(store: &Store, keys: &Keyspace, number: u64) {
    let snapshot = store.snapshot().unwrap();
    black_box(snapshot.get(keys, &key(number * 7_919 % ENTRIES)).unwrap().unwrap());
}

// The counted work is that of the iterator behind the `map`.
#[allow(clippy::suspicious_map)]
fn seek_10(keys: &Keyspace, number: u64) {
    let from = key(number * 7_919 % (ENTRIES - 10));
    assert_eq!(keys.range(&from[..]..).unwrap().take(10).map(|entry| black_box(entry).unwrap()).count(), 10);
}

#[allow(clippy::suspicious_map)]
fn scan(keys: &Keyspace) {
    assert_eq!(keys.range(..).unwrap().map(|entry| black_box(entry).unwrap()).count() as u64, ENTRIES);
}

fn cursor_seek_10(cursor: &mut Cursor<'_>, number: u64) {
    black_box(cursor.seek(key(number * 7_919 % (ENTRIES - 10))).unwrap().unwrap());
    for _ in 1..10 {
        black_box(cursor.next().unwrap().unwrap());
    }
}

fn cursor_scan(snapshot: &Snapshot, keys: &Keyspace) {
    let (mut cursor, mut count) = (snapshot.cursor(keys).unwrap(), 0);
    while let Some(entry) = cursor.next().unwrap() {
        black_box(entry);
        count += 1;
    }
    assert_eq!(count, ENTRIES);
}

fn put(keys: &Keyspace, number: u64) {
    keys.put(&key(number * 7_919 % ENTRIES), &value(number + 1)).unwrap();
}

fn delete(keys: &Keyspace, number: u64) {
    assert!(keys.delete(&key(number * 7_919 % ENTRIES)).unwrap());
}

fn commit_10(store: &Store, keys: &Keyspace, number: u64) {
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    for step in 0..10 {
        txn.put(keys, &key((number * 7_919 + step * 4_801) % ENTRIES), &value(number + 1)).unwrap();
    }
    txn.commit().unwrap();
}

/// Returns a key of decimal digits; the keys of one page differ in the last few.
fn key(number: u64) -> [u8; 24] {
    let mut key = *b"key:00000000000000000000";
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    key
}

fn value(number: u64) -> [u8; 150] {
    let mut value = [0x5a; 150];
    value[..8].copy_from_slice(&number.to_le_bytes());
    value
}

impl Counts {
    /// Orders two runs of one workload by their instructions.
    pub(crate) fn compare(&self, other: &Counts) -> std::cmp::Ordering {
        self.total.total_cmp(&other.total)
    }
}
