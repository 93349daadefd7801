//! Goal: cells and counters keep their contract in one process and several: whole values, versions
//! that name one value each, exclusion of writers, no lost addition, names and generations, and
//! durability by sampling.
//!
//! Method: single calls with what they must answer; then processes that store and add, killed and
//! stopped at random, whose values carry their own checksum, while others check every load. What
//! only a power cut can show is in the harness's suite `power`. What needs a death at a certain
//! instruction is in `crash-harness kill` and `loom_tests/cell.rs`.

mod kills;
mod model;
mod older_values;

use crate::common::{HANGS, Role, TestStore, assert_clean, kill_logger, limit, listen, say, seed, spawn, wait_until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use untorn::{CELLS_KEYSPACE, Cell, Durability, Error, FlushPolicy, Sample, Store, Version};

/// A value that shows whether it is whole: a number, filler that follows from it, and a checksum.
fn whole(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((0..len - 12).map(|at| (number as usize * 31 + at) as u8));
    let sum = crc(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum: u32, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The number in a value; a torn one ends the test. All zeros is the value that a cell is created
/// with.
#[track_caller]
fn number(bytes: &[u8]) -> u64 {
    if bytes.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let (value, sum) = bytes.split_at(bytes.len() - 4);
    assert_eq!(crc(value), u32::from_le_bytes(sum.try_into().unwrap()), "a torn value");
    u64::from_le_bytes(value[..8].try_into().unwrap())
}

fn load(cell: &Cell) -> (u64, Version) {
    let mut bytes = vec![0; cell.size()];
    let version = cell.load(&mut bytes).unwrap();
    (number(&bytes), version)
}

#[test]
fn values_of_every_size() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    for len in [1, 2, 7, 8, 9, 63, 64, 65, 1000, 4095, 4096] {
        let cell = store.cell(&format!("of {len}"), len).unwrap();
        let mut bytes = vec![9; len];
        let first = cell.load(&mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "a new cell is zero");
        let mut versions = vec![first];
        for round in 1..20u8 {
            let value: Vec<u8> = (0..len).map(|at| round ^ at as u8).collect();
            let version = cell.store(&value).unwrap();
            assert!(version > versions[versions.len() - 1]);
            versions.push(version);
            assert_eq!(cell.load(&mut bytes).unwrap(), version);
            assert_eq!(bytes, value);
            assert_eq!(cell.version().unwrap(), version);
            // The newest few are still there, each under its own version and no other.
            for (back, version) in versions.iter().rev().enumerate() {
                match cell.load_version(*version, &mut bytes) {
                    Ok(()) => {
                        let of = round - back as u8;
                        assert!(back < 4 && (of == 0 || bytes.iter().enumerate().all(|(at, b)| *b == of ^ at as u8)));
                    }
                    Err(Error::Stale) => assert!(back >= 4, "version {back} before the newest is gone"),
                    Err(error) => panic!("{error}"),
                }
            }
        }
        let next = Version::from_u64(versions[versions.len() - 1].as_u64() + 1);
        assert!(matches!(cell.load_version(next, &mut bytes), Err(Error::Stale)));
        assert!(matches!(cell.store(&vec![0; len + 1]), Err(Error::OtherCell { .. })));
        assert!(matches!(cell.load(&mut vec![0; len - 1]), Err(Error::OtherCell { .. })));
    }
    assert_clean(&store);
}

#[test]
fn names_kinds_and_limits() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let cell = store.cell("imu", 64).unwrap();
    assert!(matches!(store.cell("imu", 32), Err(Error::OtherCell { .. })));
    assert!(matches!(store.counter("imu"), Err(Error::OtherCell { .. })));
    assert!(matches!(store.cell("x", 0), Err(Error::Limit { .. })));
    assert!(matches!(store.cell("x", 4097), Err(Error::Limit { limit: 4096, .. })));
    assert!(matches!(store.cell(&"x".repeat(256), 8), Err(Error::Limit { limit: 255, .. })));
    store.cell(&"x".repeat(255), 8).unwrap();
    let hits = store.counter("hits").unwrap();
    assert!(store.find_cell("hits").unwrap().is_none());
    assert_eq!(store.find_cell("imu").unwrap().unwrap().size(), 64);
    assert!(store.find_cell("none").unwrap().is_none());
    let names: Vec<_> = store.cells().unwrap().into_iter().map(|info| (info.name, info.len)).collect();
    assert_eq!(names, [("hits".into(), None), ("imu".into(), Some(64)), ("x".repeat(255), Some(8))]);

    let reader = Store::options().read_only(true).open(&test.path).unwrap();
    assert!(matches!(reader.cell("imu", 64).unwrap().store(&[1; 64]), Err(Error::ReadOnly)));
    assert!(matches!(reader.counter("hits").unwrap().add(1), Err(Error::ReadOnly)));
    assert!(matches!(reader.cell("none", 8), Err(Error::NoCell { .. })));
    cell.store(&[7; 64]).unwrap();
    let mut bytes = [0; 64];
    reader.cell("imu", 64).unwrap().load(&mut bytes).unwrap();
    assert_eq!(bytes, [7; 64]);
    hits.add(3).unwrap();
    hits.sub(1).unwrap();
    assert_eq!(reader.counter("hits").unwrap().get().unwrap(), 2);
    hits.sub(3).unwrap();
    assert_eq!(hits.get().unwrap(), u64::MAX, "it wraps around");

    // The keyspace of the samples can be read, and changed by the store alone.
    store.sync().unwrap();
    let samples = store.keyspace(CELLS_KEYSPACE).unwrap();
    let record = samples.get(b"imu").unwrap().unwrap();
    let Sample::Cell { version, value } = Sample::decode(b"imu", &record).unwrap() else { panic!() };
    assert_eq!((value, version), (&[7; 64][..], cell.version().unwrap()));
    assert!(matches!(samples.put(b"imu", b""), Err(Error::ReservedName { .. })));
    assert!(matches!(samples.delete(b"imu"), Err(Error::ReservedName { .. })));
    assert!(matches!(store.drop_keyspace(CELLS_KEYSPACE), Err(Error::ReservedName { .. })));
    assert!(matches!(store.keyspace("untorn.other"), Err(Error::ReservedName { .. })));
}

#[test]
fn plain_types() {
    #[derive(Clone, Copy, PartialEq, Debug, bytemuck::Pod, bytemuck::Zeroable)]
    #[repr(C)]
    struct Reading {
        at_ns: u64,
        values: [f32; 6],
    }
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let cell = store.cell_of::<Reading>("reading").unwrap();
    let reading = Reading { at_ns: 5, values: [0.5; 6] };
    let version = cell.store(&reading).unwrap();
    assert_eq!(cell.load().unwrap(), (reading, version));
    let durable = cell.store_durable(&Reading { at_ns: 6, ..reading }).unwrap();
    assert_eq!(cell.load_version(version).unwrap(), reading);
    assert_eq!(cell.load_version(durable).unwrap().at_ns, 6);
    assert!(matches!(store.cell_of::<u64>("reading"), Err(Error::OtherCell { .. })));
}

/// A handle of a dropped cell errs, whatever is made in its place.
#[test]
fn a_stale_handle_errs() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let mut bytes = [0; 40];
    for round in 0..50u8 {
        let old = store.cell("a", 40).unwrap();
        let count = store.counter("n").unwrap();
        old.store(&[round; 40]).unwrap();
        count.add(1).unwrap();
        let version = old.version().unwrap();
        assert!(store.drop_cell("a").unwrap() && store.drop_cell("n").unwrap());
        assert!(!store.drop_cell("a").unwrap());
        for again in [false, true] {
            assert!(matches!(old.load(&mut bytes), Err(Error::NoCell { .. })), "made again: {again}");
            assert!(matches!(old.store(&[1; 40]), Err(Error::NoCell { .. })));
            assert!(matches!(old.load_version(version, &mut bytes), Err(Error::NoCell { .. })));
            assert!(matches!(old.store_durable(&[1; 40]), Err(Error::NoCell { .. })));
            assert!(matches!(count.add(1), Err(Error::NoCell { .. })));
            assert!(matches!(count.get(), Err(Error::NoCell { .. })));
            if !again {
                let new = store.cell("a", 40).unwrap();
                new.load(&mut bytes).unwrap();
                assert_eq!(bytes, [0; 40]);
                assert_eq!(store.counter("n").unwrap().get().unwrap(), 0);
            }
        }
    }
    store.sync().unwrap();
    assert_eq!(store.keyspace(CELLS_KEYSPACE).unwrap().len().unwrap(), 2);
    assert_clean(&store);
}

#[test]
fn many_thousands() {
    const COUNT: u64 = 10_000;
    let _limit = limit();
    let test = TestStore::new();
    {
        let store = test.open_with(|options| {
            options.durability(Durability::Visible);
        });
        let name = |index: u64| format!("cell/{index:05}");
        let cells: Vec<Cell> = (0..COUNT).map(|index| store.cell(&name(index), 24).unwrap()).collect();
        for (index, cell) in cells.iter().enumerate() {
            cell.store(&whole(index as u64, 24)).unwrap();
        }
        store.sync().unwrap();
        for (index, cell) in cells.iter().enumerate().step_by(2) {
            cell.store(&whole(index as u64 + 7, 24)).unwrap();
        }
        assert_eq!(store.cells().unwrap().len() as u64, COUNT);
    }
    test.stop_logger();
    let store = test.open();
    for index in (0..COUNT).step_by(97) {
        let cell = store.find_cell(&format!("cell/{index:05}")).unwrap().unwrap();
        assert_eq!(load(&cell).0, if index % 2 == 0 { index + 7 } else { index });
    }
    assert_clean(&store);
}

/// A million stores make a handful of records: what is overwritten before a sample is never logged.
#[test]
fn stores_coalesce_into_one_record_per_sample() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.flush_policy(FlushPolicy::Every(Duration::from_millis(50)));
    });
    let cell = store.cell("busy", 64).unwrap();
    let counter = store.counter("busy too").unwrap();
    store.sync().unwrap();
    let (before, start) = (store.stats().unwrap(), Instant::now());
    for round in 0..1_000_000u64 {
        cell.store(&whole(round, 64)).unwrap();
        counter.add(1).unwrap();
    }
    let rounds = start.elapsed().as_millis() as u64 / 50 + 2;
    store.sync().unwrap();
    let after = store.stats().unwrap();
    let (samples, values) =
        (after.cells.samples - before.cells.samples, after.cells.sampled_values - before.cells.sampled_values);
    assert!(samples >= 1 && samples <= rounds + 1, "{samples} samples in {rounds} intervals");
    assert!(values <= 2 * samples);
    assert!(after.wal_bytes - before.wal_bytes < 100_000, "{} bytes of log", after.wal_bytes - before.wal_bytes);
}

/// What was stored and then synced, or stored durably, is in a durable record.
#[test]
fn sync_and_store_durable_wait_for_the_sample() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        // Nothing is sampled or flushed by itself while the test lasts.
        options.flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).durability(Durability::Visible);
    });
    let cell = store.cell("a", 64).unwrap();
    let count = store.counter("n").unwrap();
    let durable = |name: &str| {
        let snapshot = store.durable_snapshot().unwrap();
        let keyspace = snapshot.find_keyspace(CELLS_KEYSPACE).unwrap().unwrap();
        let record = snapshot.get(&keyspace, name.as_bytes()).unwrap().unwrap();
        match Sample::decode(name.as_bytes(), record).unwrap() {
            Sample::Cell { value, .. } => number(value),
            Sample::Counter(value) => value,
            _ => unreachable!(),
        }
    };
    for round in 1..40 {
        if round % 2 == 0 {
            cell.store_durable(&whole(round, 64)).unwrap();
        } else {
            cell.store(&whole(round, 64)).unwrap();
            count.add(1).unwrap();
            store.sync().unwrap();
            assert_eq!(durable("n"), round.div_ceil(2));
        }
        assert_eq!(durable("a"), round);
    }
    // The sampler needs the lock that this thread holds.
    let txn = store.begin().unwrap();
    assert!(matches!(store.sync(), Err(Error::TransactionOpen)));
    assert!(matches!(cell.store_durable(&whole(99, 64)), Err(Error::TransactionOpen)));
    cell.store(&whole(100, 64)).unwrap();
    assert_eq!(load(&cell).0, 100);
    drop(txn);
    store.sync().unwrap();
    assert_eq!(durable("a"), 100);
}

/// A transaction that is open for long holds samples up: durable stores and `sync` return an error.
#[test]
fn a_long_transaction_holds_the_sampler_up() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.lock_timeout(Duration::from_millis(300));
    });
    let cell = store.cell("a", 64).unwrap();
    let holder = spawn("cells::holder", &test.path, &[]);
    holder.expect("holding");
    let start = Instant::now();
    let failed = cell.store_durable(&whole(1, 64)).unwrap_err();
    assert!(matches!(failed, Error::NotDurable { .. }), "{failed}");
    assert!((Duration::from_millis(300)..HANGS).contains(&start.elapsed()));
    assert!(matches!(store.sync(), Err(Error::LockTimeout { .. })));
    // Stores and loads go on.
    cell.store(&whole(2, 64)).unwrap();
    assert_eq!(load(&cell).0, 2);
    drop(holder);
    cell.store_durable(&whole(3, 64)).unwrap();
}

/// A process that only stores into cells gets a new logger after the last one was killed.
#[test]
fn stores_alone_bring_a_dead_logger_back() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let cell = store.cell("a", 64).unwrap();
    for round in 1..4u64 {
        // No sample gets through, so what is stored now stays unsampled until the logger is dead.
        let txn = store.begin().unwrap();
        for _ in 0..80 {
            cell.store(&whole(round, 64)).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_logger(&store);
        drop(txn);
        let before = store.stats().unwrap().cells.samples;
        wait_until(|| {
            cell.store(&whole(round, 64)).unwrap();
            store.stats().unwrap().cells.samples > before
        });
    }
}

/// The time between samples is that of the policy in force, not of the one when the last sample was
/// taken.
#[test]
fn a_shorter_time_between_samples_counts_at_once() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).durability(Durability::Visible);
    });
    let cell = store.cell("a", 64).unwrap();
    cell.store_durable(&whole(1, 64)).unwrap();
    let before = store.stats().unwrap().cells.samples;
    cell.store(&whole(2, 64)).unwrap();
    store.set_flush_policy(FlushPolicy::OnCommit).unwrap();
    wait_until(|| store.stats().unwrap().cells.samples > before);
}

/// The last sample of a logger that leaves may be larger than the log that is there: more of it is
/// made meanwhile.
#[test]
fn a_logger_leaves_with_more_to_sample_than_there_is_log() {
    let _limit = limit();
    let test = TestStore::new();
    {
        let store = test.open_with(|options| {
            options.ring_size(64 << 10).segment_size(256 << 10).durability(Durability::Visible);
        });
        let cells: Vec<Cell> = (0..600).map(|index| store.cell(&format!("{index}"), 4096).unwrap()).collect();
        store.set_flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).unwrap();
        store.sync().unwrap();
        for cell in &cells {
            cell.store(&whole(5, 4096)).unwrap();
        }
    }
    test.stop_logger();
    let store = test.open();
    assert_eq!(load(&store.cell("599", 4096).unwrap()).0, 5);
    assert_clean(&store);
}

fn holder(role: &Role) {
    let store = Store::open(&role.store).unwrap();
    let _txn = store.begin().unwrap();
    say("holding");
    listen();
}

fn storer(role: &Role) {
    let store = Store::open(&role.store).unwrap();
    let cell = store.find_cell(&role.arguments[0]).unwrap().unwrap();
    say("storing");
    for number in u64::from(std::process::id()) << 32.. {
        let version = cell.store(&whole(number, cell.size())).unwrap();
        let mut bytes = vec![0; cell.size()];
        // This very value, or, beside the other writer, nothing.
        match cell.load_version(version, &mut bytes) {
            Ok(()) => assert_eq!(self::number(&bytes), number),
            Err(Error::Stale) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn checker(role: &Role) {
    let store = Store::options().read_only(true).open(&role.store).unwrap();
    let cell = store.find_cell(&role.arguments[0]).unwrap().unwrap();
    say("checking");
    let stopped = std::thread::spawn(listen);
    let mut newest = Version::default();
    while !stopped.is_finished() {
        let (_, version) = load(&cell);
        assert!(version >= newest, "the cell went back");
        newest = version;
    }
}

fn adder(role: &Role) {
    let store = Store::open(&role.store).unwrap();
    let (total, own) = (store.counter("total").unwrap(), store.counter(&role.arguments[0]).unwrap());
    say("adding");
    loop {
        total.add(1).unwrap();
        own.add(1).unwrap();
    }
}

fn all(role: &Role) {
    let mut options = Store::options();
    options.flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).durability(Durability::Visible);
    let store = options.open(&role.store).unwrap();
    let round = role.number(0);
    let cell = store.cell("a", 200).unwrap();
    // Past the sampler's first round.
    store.sync().unwrap();
    let version = cell.store(&whole(round, 200)).unwrap();
    store.counter("n").unwrap().add(round).unwrap();
    say("stored");
    say(version.as_u64());
    say(store.stats().unwrap().logger_pid.unwrap());
    listen();
}

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "holder" => holder(&role),
        "storer" => storer(&role),
        "checker" => checker(&role),
        "adder" => adder(&role),
        "all" => all(&role),
        other => panic!("no role {other}"),
    }
}
