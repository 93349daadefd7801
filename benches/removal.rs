//! Measures how long the removal of a million records holds the writer lock, by `clear`,
//! by a range and by single keys. `cargo bench --bench removal`, or `-- RECORDS` for another
//! number.
//!
//! The lock is held from the end of `begin` to the end of a visible commit. The records have keys
//! of 8 bytes and values of 16 bytes. A checkpoint precedes each removal, so that the checksum of
//! every page that is read is checked.

mod bench_store;

use bench_store::BenchStore;
use std::time::{Duration, Instant};
use untorn::{FlushPolicy, Keyspace, WriteTxn};

const ROUNDS: usize = 3;

fn fill(bench: &BenchStore, keys: &Keyspace, records: u64) {
    for first in (0..records).step_by(50_000) {
        let mut txn = bench.store.begin().unwrap();
        for key in first..records.min(first + 50_000) {
            txn.put(keys, key.to_be_bytes(), [1; 16]).unwrap();
        }
        txn.commit().unwrap();
    }
    bench.store.checkpoint().unwrap();
}

/// Returns the shortest time of several rounds. Each round begins with all records.
fn measure(records: u64, remove: impl Fn(&mut WriteTxn<'_>, &Keyspace)) -> Duration {
    let bench = BenchStore::new(FlushPolicy::OnCommit);
    let keys = bench.store.keyspace("keys").unwrap();
    let round = || {
        fill(&bench, &keys, records);
        let mut txn = bench.store.begin().unwrap();
        let begun = Instant::now();
        remove(&mut txn, &keys);
        txn.commit().unwrap();
        begun.elapsed()
    };
    std::iter::repeat_with(round).take(ROUNDS).min().unwrap()
}

fn main() {
    // Cargo passes `--bench`.
    let records = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let clear = measure(records, |txn, keys| assert_eq!(txn.clear(keys).unwrap(), records));
    let range = measure(records, |txn, keys| {
        let (start, end) = (5_u64.to_be_bytes(), (records - 5).to_be_bytes());
        assert_eq!(txn.delete_range(keys, start..end).unwrap(), records - 10);
    });
    let single = measure(records, |txn, keys| {
        for key in 0..records {
            assert!(txn.delete(keys, key.to_be_bytes()).unwrap());
        }
    });
    println!("the writer lock is held, for {records} records (the shortest of {ROUNDS} rounds):");
    for (what, time) in
        [("clear", clear), ("delete_range of all but 10", range), ("one by one, in one transaction", single)]
    {
        println!("{what:32} {:9.1} ms", time.as_secs_f64() * 1e3);
    }
}
