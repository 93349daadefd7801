//! Measures the cost of a cell and a counter, without contention, and of the alternatives: a mutex
//! within one process, and a transaction. `cargo bench --bench cells`

mod bench_store;

use bench_store::BenchStore;
use divan::{Bencher, black_box};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use untorn::FlushPolicy;

fn main() {
    divan::main();
}

const SIZES: [usize; 4] = [8, 64, 512, 4096];

#[divan::bench(args = SIZES, sample_size = 1000)]
fn cell_store(bencher: Bencher<'_, '_>, len: usize) {
    let bench = BenchStore::new(FlushPolicy::OnCommit);
    let cell = bench.store.cell("cell", len).unwrap();
    let value = vec![7; len];
    bencher.bench_local(|| cell.store(black_box(&value)).unwrap());
}

#[divan::bench(args = SIZES, sample_size = 1000)]
fn cell_load(bencher: Bencher<'_, '_>, len: usize) {
    let bench = BenchStore::new(FlushPolicy::OnCommit);
    let cell = bench.store.cell("cell", len).unwrap();
    let mut value = vec![0; len];
    bencher.bench_local(|| cell.load(black_box(&mut value)).unwrap());
}

/// A store under a mutex, within one process.
#[divan::bench(args = SIZES, sample_size = 1000)]
fn mutex_store(bencher: Bencher<'_, '_>, len: usize) {
    let cell = Mutex::new(vec![0; len]);
    let value = vec![7; len];
    bencher.bench_local(|| cell.lock().unwrap().copy_from_slice(black_box(&value)));
}

#[divan::bench(args = SIZES, sample_size = 1000)]
fn mutex_load(bencher: Bencher<'_, '_>, len: usize) {
    let cell = Mutex::new(vec![7; len]);
    let mut value = vec![0; len];
    bencher.bench_local(|| black_box(&mut value).copy_from_slice(&cell.lock().unwrap()));
}

#[divan::bench(sample_size = 1000)]
fn counter_add(bencher: Bencher<'_, '_>) {
    let bench = BenchStore::new(FlushPolicy::OnCommit);
    let counter = bench.store.counter("counter").unwrap();
    bencher.bench_local(|| counter.add(black_box(1)).unwrap());
}

/// One atomic addition alone.
#[divan::bench(sample_size = 1000)]
fn atomic_add(bencher: Bencher<'_, '_>) {
    let counter = AtomicU64::new(0);
    bencher.bench_local(|| counter.fetch_add(black_box(1), Ordering::SeqCst));
}

/// The same 64 bytes as a visible transaction.
#[divan::bench(sample_size = 1000)]
fn visible_put(bencher: Bencher<'_, '_>) {
    let bench = BenchStore::new(FlushPolicy::OnCommit);
    let keys = bench.store.keyspace("keys").unwrap();
    bencher.bench_local(|| keys.put(b"cell", black_box(&[7; 64])).unwrap());
}
