//! Interleavings 13 and 16 on a device that is full.

use super::*;
use crate::common::device::{Device, Kind};
use untorn_test_kit::process::HoldPoint;

/// A small file system. A logger may be stopped or held, so its loggers are killed at the end.
fn mount(mib: u64) -> Option<Device> {
    Some(Device::mount(Kind::Tmpfs, mib)?.ending_loggers_by(|path| {
        kill_loggers(path);
    }))
}

/// Small segments, so that a full device shows after few commits.
fn open_on(device: &Device) -> Store {
    let mut options = Store::options();
    options.ring_size(64 << 10).segment_size(256 << 10).checkpoint_bytes(1 << 40).max_size(1 << 30);
    options.logger_idle(Duration::from_secs(3)).logger_timeout(HANGS);
    options.open(device.path()).unwrap()
}

/// Durable commits on a full device: a block of the log each, and several times as many as there
/// are. The number of the last one.
fn commit_on_a_full_device(few: &Few, from: u64) -> u64 {
    let last = from + 299;
    for n in from..=last {
        few.commit(n, Durability::Durable).map(drop).unwrap_or_else(|error| panic!("commit {n}: {error:?}"));
        assert_eq!(number(&few.store, &few.store.snapshot().unwrap()), n);
    }
    last
}

/// After all processes were killed and the kernel crashed, all that was acknowledged is there.
fn assert_recovered(device: &Device, expected: u64) {
    crash_kernel(&device.path());
    let store = open_on(device);
    assert_eq!(number(&store, &store.snapshot().unwrap()), expected);
    assert_verified(&store);
}

/// Interleaving 13: the device fills between a publication and its flush, and stays full. That
/// commit gets through, for its log space was granted before. So do all others that replace what is
/// there: when the grant is used up, a checkpoint sets the log free. A stream that no log of this
/// device can hold fails before its published. Nothing that was acknowledged is lost.
#[test]
fn the_device_fills_between_publication_and_flush() {
    let _limit = instrumented::limit_after_build();
    let Some(device) = mount(12) else { return };
    let path = device.path();
    let hold = HoldPoint::new(&path.with_file_name("flush"));
    {
        // An instrumented process starts an instrumented logger.
        let orders = hold.at("flush.before_write");
        let mut starter = instrumented::spawn("interleavings::log::worker", &path, &[], &[("UNTORN_CRASH", &orders)]);
        starter.hear_prefix("ready");
        let mut options = worker::options();
        let few = Few::open(options.logger_timeout(HANGS).open(&path).unwrap()).unwrap();
        few.commits(10, true).unwrap();
        starter.kill();
        hold.arm();
        std::thread::scope(|scope| {
            let commit = scope.spawn(|| few.commit(11, Durability::Durable).map(drop));
            hold.wait();
            // It is visible, and waits for its flush.
            wait_until(|| number(&few.store, &few.store.snapshot().unwrap()) == 11);
            device.fill();
            hold.release();
            commit.join().unwrap().unwrap();
        });
        let begun = Instant::now();
        let mut last = commit_on_a_full_device(&few, 12);
        eprintln!("{} durable commits on a full device, in {:?}", last - 11, begun.elapsed());
        // It reads on.
        for _ in 0..3 {
            assert_eq!(number(&few.store, &few.store.snapshot().unwrap()), last);
            assert_eq!(number(&few.store, &few.store.durable_snapshot().unwrap()), last);
            last = commit_on_a_full_device(&few, last + 1);
        }
        let mut txn = few.store.begin().unwrap();
        let stream = txn.keyspace("stream").unwrap();
        let refused = (0..10_000u64).find_map(|n| txn.put(&stream, b"one", &sealed(n, 3000)).err());
        assert!(matches!(refused, Some(Error::DiskFull { .. })), "{refused:?}");
        txn.rollback();
        assert_eq!(number(&few.store, &few.store.snapshot().unwrap()), last);
        assert!(few.store.stats().unwrap().needs_recovery.is_none());
        device.free();
        let begun = Instant::now();
        let mut refused = 0;
        while let Err(error) = few.commit(last + 1, Durability::Durable) {
            assert!(matches!(error, Error::DiskFull { .. }), "{error:?}");
            refused += 1;
            assert!(begun.elapsed() < HANGS, "still full after {:?}", begun.elapsed());
        }
        eprintln!("went on {:?} after there was room, refused {refused} times", begun.elapsed());
        last = few.commits(500, true).unwrap();
        assert_verified(&few.store);
        drop((few, stream));
        crash_kernel(&path);
        let store = worker::options().open(&path).unwrap();
        assert_eq!(number(&store, &store.snapshot().unwrap()), last);
        assert_verified(&store);
    }
}

/// Interleaving 13: on a full device, tiny durable commits, a block each, use up the log's budget,
/// which is counted in blocks and not in bytes, again and again. The commit that finds it used up
/// has a checkpoint taken, and the log goes on in the spare segment. All that was acknowledged
/// survives a crash whose recovery has room again.
#[test]
fn tiny_durable_commits_use_up_the_log_of_a_full_device() {
    let _limit = limit();
    let Some(device) = mount(10) else { return };
    let few = Few::open(open_on(&device)).unwrap();
    few.commits(10, true).unwrap();
    device.fill();
    let mut last = 10;
    for round in 0..5 {
        let begun = Instant::now();
        let reached = commit_on_a_full_device(&few, last + 1);
        eprintln!("round {round}: {} commits in {:?}", reached - last, begun.elapsed());
        last = reached;
        assert_eq!(few.store.durable_snapshot().unwrap().txn_id(), few.store.snapshot().unwrap().txn_id());
    }
    assert!(few.store.stats().unwrap().needs_recovery.is_none());
    device.free();
    drop(few);
    assert_recovered(&device, last);
}

/// Interleaving 16: on a full device, a stream uses up all of the log that is granted to streams
/// and aborts. A reserve is kept from streams: the next ordinary writer must get through, at once,
/// and ordinary ones after it.
#[test]
fn after_a_stream_that_filled_the_log_an_ordinary_writer_gets_through() {
    let _limit = limit();
    let Some(device) = mount(10) else { return };
    let few = Few::open(open_on(&device)).unwrap();
    few.commits(10, true).unwrap();
    let keys = few.store.keyspace("stream").unwrap();
    device.fill();
    let mut last = 10;
    for round in 0..4 {
        let mut txn = few.store.begin().unwrap();
        let mut bytes = 0;
        // One key again and again: the log grows, the arena does not.
        let error = loop {
            match txn.put(&keys, b"one", &sealed(bytes, 3000)) {
                Ok(()) => bytes += 3000,
                Err(error) => break error,
            }
            assert!(bytes < 100 << 20, "the device never filled");
        };
        assert!(matches!(error, Error::DiskFull { .. }), "{error:?}");
        drop(txn);
        let begun = Instant::now();
        for _ in 0..4 {
            last += 1;
            let committed = few.commit(last, Durability::Durable).map(drop);
            committed.unwrap_or_else(|error| panic!("round {round}, {last}: {error:?}"));
        }
        eprintln!("round {round}: a stream of {bytes} bytes, then four commits in {:?}", begun.elapsed());
    }
    assert!(keys.is_empty().unwrap());
    assert_eq!(number(&few.store, &few.store.durable_snapshot().unwrap()), last);
    device.free();
    drop((few, keys));
    assert!(logger_of(&device.path()).is_some());
    assert_recovered(&device, last);
}
