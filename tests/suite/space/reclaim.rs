//! Goal: whatever transactions do to pages, extents and queues, no page is lost, used twice or
//! reused while a reader needs it, and the logger may die at any time.
//!
//! Method: random transactions (small and large values, deletes, streams, roll-backs, dropped
//! keyspaces) against a model. Beside them there are pinned snapshots whose content is recorded,
//! checkpoints, and SIGKILLs of the logger; now and then everything is verified. `UNTORN_SEED=n`
//! replays a run.

use crate::common::HANGS;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use untorn::{Durability, Snapshot, Store};

type Model = BTreeMap<u16, Vec<u8>>;

fn value(rng: &mut StdRng) -> Vec<u8> {
    let len = match rng.random_range(0..20) {
        0 => rng.random_range(4_000..60_000),
        1 => rng.random_range(1_000..9_000),
        _ => rng.random_range(0..300),
    };
    vec![rng.random(); len]
}

fn assert_sees(snapshot: &Snapshot, store: &Store, model: &Model, seed: u64) {
    let rows = store.keyspace("rows").unwrap();
    let mut expected = model.iter();
    for found in snapshot.range(&rows, ..).unwrap() {
        let (key, value) = found.unwrap();
        let (model_key, model_value) = expected.next().expect("no more than the model has");
        assert_eq!(&key[..], model_key.to_be_bytes(), "UNTORN_SEED={seed}");
        assert!(value == *model_value, "UNTORN_SEED={seed}");
    }
    assert!(expected.next().is_none(), "UNTORN_SEED={seed}");
}

/// The process of this store's logger: one that runs this very test, not another process that has
/// its id by now.
fn logger(store: &Store) -> Option<rustix::process::Pid> {
    let pid = store.stats().unwrap().logger_pid.filter(|pid| *pid != std::process::id())?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    (program == std::env::current_exe().unwrap()).then(|| rustix::process::Pid::from_raw(pid as i32))?
}

fn kill(pid: rustix::process::Pid) {
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

#[test]
fn pages_are_neither_lost_nor_used_twice() {
    let seed = std::env::var("UNTORN_SEED").ok().map_or_else(rand::random, |text| text.parse().unwrap());
    println!("UNTORN_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let open = || {
        let mut options = Store::options();
        options.ring_size(64 << 10).segment_size(256 << 10).checkpoint_bytes(400 << 10).open(&path).unwrap()
    };
    let mut store = open();
    let mut model = Model::new();
    let mut pins: Vec<(Snapshot, Model)> = Vec::new();
    store.keyspace("rows").unwrap();
    let end = Instant::now() + Duration::from_secs(12);
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        let rows = store.keyspace("rows").unwrap();
        let durability = if rng.random_bool(0.1) { Durability::Durable } else { Durability::Visible };
        let mut txn = store.begin_with(durability).unwrap();
        let mut next = model.clone();
        let steps = if rng.random_bool(0.05) { rng.random_range(100..600) } else { rng.random_range(1..12) };
        for _ in 0..steps {
            let key: u16 = rng.random_range(0..800);
            if rng.random_bool(0.35) {
                assert_eq!(txn.delete(&rows, &key.to_be_bytes()).unwrap(), next.remove(&key).is_some());
            } else {
                let value = value(&mut rng);
                txn.put(&rows, &key.to_be_bytes(), &value).unwrap();
                next.insert(key, value);
            }
        }
        if rng.random_bool(0.03) {
            let temporary = txn.keyspace("temporary").unwrap();
            for key in 0..rng.random_range(1..400u32) {
                txn.put(&temporary, &key.to_be_bytes(), &[1; 100]).unwrap();
            }
        } else if rng.random_bool(0.03) {
            txn.drop_keyspace("temporary").unwrap();
        }
        if rng.random_bool(0.2) {
            txn.rollback();
        } else {
            txn.commit().unwrap();
            model = next;
        }
        if rng.random_bool(0.05) {
            pins.push((store.snapshot().unwrap(), model.clone()));
        }
        if pins.len() > 6 || (!pins.is_empty() && rng.random_bool(0.03)) {
            let (snapshot, seen) = pins.swap_remove(rng.random_range(0..pins.len()));
            assert_sees(&snapshot, &store, &seen, seed);
        }
        if rng.random_bool(0.01) {
            store.checkpoint().unwrap();
        }
        if rng.random_bool(0.005)
            && let Some(pid) = logger(&store)
        {
            kill(pid);
        }
        if round % 60 == 0 {
            let report = store.verify().unwrap();
            assert!(report.is_clean(), "UNTORN_SEED={seed}, round {round}: {report:#?}");
            assert_sees(&store.snapshot().unwrap(), &store, &model, seed);
        }
        if rng.random_bool(0.003) {
            // All processes leave; the logger is killed, so that recovery has the ring to read.
            pins.clear();
            let pid = logger(&store);
            drop((rows, store));
            if let Some(pid) = pid {
                kill(pid);
            }
            store = open();
            let report = store.verify().unwrap();
            assert!(report.is_clean(), "UNTORN_SEED={seed}, round {round}: {report:#?}");
            assert_sees(&store.snapshot().unwrap(), &store, &model, seed);
        }
    }
    println!("{round} rounds, {:#?}", store.stats().unwrap());
    pins.clear();
    drop(store);
    untorn::logger::stop_logger(&path, HANGS).unwrap();
}

/// A queue of free pages that needed a page for itself once took it from the end of the arena. That
/// happened in the middle of a change, or when the last spare page was to be entered into a full
/// queue. It cost a few pages for each checkpoint, and one for each hundred small commits. A store
/// that overwrote the same keys grew for ever, nine tenths of it free.
#[test]
fn overwriting_the_same_keys_does_not_grow_the_store() {
    for (records, small, rounds) in [(400u32, 0, 150), (100, 20, 400), (4, 200, 300)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let mut options = Store::options();
        options.ring_size(64 << 10).segment_size(1 << 20).checkpoint_bytes(128 << 10);
        options.durability(Durability::Visible).logger_idle(Duration::from_secs(1));
        let store = options.open(&path).unwrap();
        let (rows, few) = (store.keyspace("rows").unwrap(), store.keyspace("few").unwrap());
        let large = store.keyspace("large").unwrap();
        let mut settled = None;
        for round in 0..rounds {
            let mut txn = store.begin().unwrap();
            for key in 0..records {
                txn.put(&rows, &key.to_be_bytes(), &vec![round as u8; 900]).unwrap();
            }
            txn.put(&large, b"large", &vec![round as u8; 9000]).unwrap();
            txn.commit().unwrap();
            for key in 0..small {
                few.put(&[key as u8 % 8], &[round as u8; 100]).unwrap();
            }
            if round == rounds / 3 {
                settled = Some(store.stats().unwrap());
            }
        }
        let (settled, stats) = (settled.expect("passed by"), store.stats().unwrap());
        let checkpoints = stats.checkpoints - settled.checkpoints;
        let (was, is) = (settled.pages_total, stats.pages_total);
        println!("{records} + {small}: {was} pages, {is} after {checkpoints} more checkpoints");
        // How many there are, the disk decides.
        assert!(checkpoints > 1, "{checkpoints} checkpoints");
        assert!(is <= was + was / 4 + 16, "{was} pages, {is} after {checkpoints} more checkpoints");
        let report = store.verify().unwrap();
        assert!(report.is_clean(), "{report:#?}");
        drop((rows, few, large, store));
        untorn::logger::stop_logger(&path, HANGS).unwrap();
    }
}
