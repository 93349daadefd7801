//! Measures the cost of a commit for its caller, by flush policy, and of a read. `cargo bench
//! --bench commits`

mod bench_store;

use bench_store::BenchStore;
use divan::{Bencher, black_box};
use std::time::Duration;
use untorn::FlushPolicy;

fn main() {
    divan::main();
}

const KEYS: u64 = 100_000;

fn visible_puts(bencher: Bencher<'_, '_>, policy: FlushPolicy) {
    let bench = BenchStore::new(policy);
    let keys = bench.store.keyspace("keys").unwrap();
    let mut txn = bench.store.begin().unwrap();
    for key in 0..KEYS {
        txn.put(&keys, &key.to_be_bytes(), &[1; 150]).unwrap();
    }
    txn.commit().unwrap();
    bench.store.sync().unwrap();
    let mut key = 0_u64;
    bencher.bench_local(|| {
        key = key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        keys.put(&((key >> 33) % KEYS).to_be_bytes(), black_box(&[2; 150])).unwrap()
    });
}

#[divan::bench(sample_size = 1000, sample_count = 60)]
fn visible_put_on_commit(bencher: Bencher<'_, '_>) {
    visible_puts(bencher, FlushPolicy::OnCommit);
}

#[divan::bench(sample_size = 1000, sample_count = 60)]
fn visible_put_every_10_ms(bencher: Bencher<'_, '_>) {
    visible_puts(bencher, FlushPolicy::Every(Duration::from_millis(10)));
}

#[divan::bench(sample_size = 1000, sample_count = 60)]
fn visible_put_every_256_kib(bencher: Bencher<'_, '_>) {
    visible_puts(bencher, FlushPolicy::EveryBytes(256 << 10));
}

#[divan::bench(sample_count = 200)]
fn durable_put(bencher: Bencher<'_, '_>) {
    let bench = BenchStore::new(FlushPolicy::OnCommit);
    let keys = bench.store.keyspace("keys").unwrap();
    bencher.bench_local(|| {
        keys.put(b"key", black_box(&[2; 150])).unwrap();
        bench.store.sync().unwrap();
    });
}

#[divan::bench(sample_size = 1000)]
fn get(bencher: Bencher<'_, '_>) {
    let bench = BenchStore::new(FlushPolicy::OnCommit);
    let keys = bench.store.keyspace("keys").unwrap();
    let mut txn = bench.store.begin().unwrap();
    for key in 0..KEYS {
        txn.put(&keys, &key.to_be_bytes(), &[1; 150]).unwrap();
    }
    txn.commit().unwrap();
    let mut key = 0_u64;
    bencher.bench_local(|| {
        key = key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        keys.get(&((key >> 33) % KEYS).to_be_bytes()).unwrap().unwrap().len()
    });
}
