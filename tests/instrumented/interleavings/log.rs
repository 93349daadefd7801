//! Goal: the orders of events around the log that break lesser designs break nothing here: streams
//! that end half-way, devices that fill at the worst moment, wakers that die before they wake.
//!
//! Method: each order is forced by hold points of the instrumented build, by signals, and by a
//! small tmpfs that the test fills. After all processes were killed and `control` was removed, as a
//! crash of the kernel leaves it, the test checks what was acknowledged.

mod full_device;

use crate::common::{HANGS, Role, limit, wait_until};
use crate::workload::assert_verified;
use crate::workload::instrumented::{self, Scenario, caught, logger_of, signal};
use crate::workload::worker::{self, Few, Figures, STREAM_VALUE, number, stream_key};
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Durability, Error, FlushPolicy, Store};
use untorn_test_kit::loggers::{crash_kernel, kill_loggers};
use untorn_test_kit::sealed::{expect_sealed, sealed};

#[test]
fn child() {
    let Some(Role { name, store: path, .. }) = Role::of_this_process() else { return };
    match name.as_str() {
        "worker" => worker::work(&path),
        other => panic!("no role {other}"),
    }
}

// ---- streams

/// How a stream ends that never commits.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Stream {
    Dies,
    RollsBack,
}

/// What comes after it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Next {
    ShortOfAnother,
    ShortOfTheSame,
    /// A transaction that streams as well, and commits.
    LongOfAnother,
}

/// Whether some file of the log holds these bytes.
fn is_in_log(path: &Path, wanted: &[u8]) -> bool {
    let files = std::fs::read_dir(path.join("wal")).unwrap().flatten();
    let mut files = files.map(|file| std::fs::read(file.path()).unwrap_or_default());
    files.any(|bytes| bytes.windows(wanted.len()).any(|window| window == wanted))
}

fn unfinished_stream(stream: Stream, next: Next, checkpoint: bool, bug: &str) {
    let what = format!("{stream:?}, {next:?}, checkpoint {checkpoint}");
    let scenario = Scenario::new();
    let mut streamer = scenario.start("interleavings::log::worker", &[], &[], bug);
    let mut other = scenario.start("interleavings::log::worker", &[], &[], bug);
    streamer.hear_prefix("ready");
    other.hear_prefix("ready");
    other.ask("commit 20 durable");
    // Three times the ring, so that most of it is durable; and nearly all of it is in the log's
    // files before it ends.
    streamer.ask("stream lost 200");
    wait_until(|| is_in_log(&scenario.path, &stream_key("lost", 185)));
    match stream {
        Stream::Dies => drop(streamer.kill()),
        Stream::RollsBack => assert_eq!(streamer.ask("rollback"), "rolled back"),
    }
    if checkpoint {
        other.ask("checkpoint");
    }
    let expected = match next {
        Next::ShortOfAnother => other.ask("commit 1 durable"),
        Next::ShortOfTheSame => streamer.ask("commit 1 durable"),
        Next::LongOfAnother => {
            other.ask("stream kept 30");
            other.ask("commit-stream");
            "20".into()
        }
    };
    streamer.kill();
    other.kill();
    crash_kernel(&scenario.path);

    let store = worker::options().open(&scenario.path).unwrap();
    assert_eq!(number(&store, &store.snapshot().unwrap()).to_string(), expected, "{what}");
    assert!(store.find_keyspace("lost").unwrap().is_none(), "{what}: the stream is there");
    let kept = store.find_keyspace("kept").unwrap();
    assert_eq!(kept.is_some(), next == Next::LongOfAnother, "{what}");
    if let Some(kept) = kept {
        assert_eq!(kept.len().unwrap(), 30);
        for i in 0..30 {
            let value = kept.get(&stream_key("kept", i)).unwrap().unwrap();
            assert_eq!((expect_sealed(&value), value.len()), (i, STREAM_VALUE), "{what}");
        }
    }
    assert_verified(&store);
}

/// Interleaving 3: a streaming writer dies, or rolls back, after the logger wrote its frames; the
/// next transaction takes the same id and its record stands behind them. If recovery took both for
/// one transaction, what was never committed would be there; if it stopped at the frames, what was
/// acknowledged would be lost.
#[test]
fn a_stream_that_never_commits_leaves_nothing_to_those_after_it() {
    let _limit = instrumented::limit_after_build();
    for checkpoint in [false, true] {
        unfinished_stream(Stream::Dies, Next::ShortOfAnother, checkpoint, "");
        unfinished_stream(Stream::RollsBack, Next::ShortOfAnother, checkpoint, "");
        unfinished_stream(Stream::RollsBack, Next::ShortOfTheSame, checkpoint, "");
        unfinished_stream(Stream::Dies, Next::LongOfAnother, checkpoint, "");
    }
    let what = caught(|| unfinished_stream(Stream::Dies, Next::LongOfAnother, false, "no-abort-record"));
    eprintln!("caught: {}", what.expect_err("two streams became one, and no check failed"));
}

// ---- wakers

/// Interleaving 15: a writer dies between its publication and waking the logger, which sleeps, and
/// between its publication and letting go of the lock, for which another waits. Neither may sleep
/// on: the logger makes the commit durable by itself, the lock is taken over.
#[test]
fn a_writer_dies_after_its_publication_without_a_wake_up() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let few = Few::open(worker::options().open(&scenario.path).unwrap()).unwrap();
    few.commits(5, true).unwrap();
    for round in 1..=5 {
        let published = scenario.hold_point("published");
        let mut writer =
            scenario.start("interleavings::log::worker", &[], &[published.at("commit.deadline_announced")], "");
        writer.hear_prefix("ready");
        let durable = few.store.durable_snapshot().unwrap().txn_id();
        // The logger has nothing to do, and sleeps.
        std::thread::sleep(Duration::from_millis(150));
        published.arm();
        writer.tell("commit 1 visible");
        published.wait();
        let waited = std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let txn = few.store.begin().unwrap();
                let taken = Instant::now();
                txn.rollback();
                taken
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waits.is_finished(), "the writer holds the lock");
            let killed = Instant::now();
            writer.kill();
            waits.join().unwrap().saturating_duration_since(killed)
        });
        // The logger gets no request here: its own time-out is 50 ms.
        let begun = Instant::now();
        wait_until(|| few.store.stats().unwrap().durable > durable);
        eprintln!("the lock after {waited:?}, durable {:?} after that", begun.elapsed());
        assert!(waited < HANGS, "the lock after {waited:?}");
        let snapshot = few.store.durable_snapshot().unwrap();
        assert_eq!(number(&few.store, &snapshot), 5 + round, "the swing had made it visible");
    }
    assert_verified(&few.store);
}

/// Interleaving 15: the logger stops, or dies, between publishing what is durable and waking its
/// waiters. They poll by themselves every few milliseconds; if they slept until woken, they would
/// wait for ever.
#[test]
fn the_logger_dies_before_it_wakes_those_it_has_served() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let published = scenario.hold_point("published");
    // Either client may start a logger; each passes the hold on to it.
    let mut clients =
        [0, 1].map(|_| scenario.start("interleavings::log::worker", &[], &[published.at("flush.before_wake")], ""));
    clients.iter().for_each(|client| drop(client.hear_prefix("ready")));
    let [first, other] = &mut clients;
    for round in 1..=3 {
        let held = Figures::ask(first).logger_pid;
        published.arm();
        let begun = Instant::now();
        // Its flush is published and no waiter woken: it returns all the same.
        first.ask("commit 1 durable");
        published.wait();
        let served = begun.elapsed();
        assert!(served < HANGS, "served after {served:?}");
        // Now a client waits that only a successor can serve.
        let heard = other.lines().len();
        other.tell("commit 1 durable");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(other.lines().len(), heard, "no process can have made that durable");
        let begun = Instant::now();
        signal(held as i32, libc::SIGKILL);
        published.release();
        let said = other.line(heard);
        eprintln!("served after {served:?}, by a successor after {:?}", begun.elapsed());
        assert!(begun.elapsed() < HANGS);
        assert_eq!(said, (2 * round).to_string());
        wait_until(|| {
            let now = Figures::ask(first).logger_pid;
            now != held && now != 0
        });
    }
    assert_eq!(first.ask("verify"), "clean");
}

/// The logger dies between two stores of an acknowledgement, which it has counted. Its successor
/// publishes the same commits again, and once counted them again.
#[test]
fn a_logger_that_dies_in_an_acknowledgement_has_counted_it() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let published = scenario.hold_point("half-published");
    let mut worker = scenario.start("interleavings::log::worker", &[], &[published.at("flush.half_published")], "");
    worker.hear_prefix("ready");
    worker.ask("commit 5 durable");
    let store = worker::options().create(false).open(&scenario.path).unwrap();
    let before = store.stats().unwrap();
    published.arm();
    let heard = worker.lines().len();
    worker.tell("commit 3 durable");
    published.wait();
    // Not held for the statement that an idle log makes: some of the three are in it.
    wait_until(|| store.stats().unwrap().acknowledged > before.acknowledged);
    signal(before.logger_pid.unwrap() as i32, libc::SIGKILL);
    published.release();
    assert_eq!(worker.line(heard), "8");
    let after = store.stats().unwrap();
    assert_eq!(after.durable.as_u64() - before.durable.as_u64(), 3);
    assert_eq!(after.acknowledged - before.acknowledged, 3);
    assert_verified(&store);
}

// ---- deadlines that no logger can serve

/// The flush thread's rounds in a second: some twenty at most while it rests.
fn rounds_in_a_second(path: &Path) -> u64 {
    use std::os::unix::fs::FileExt;
    let control = std::fs::File::open(path.join("control")).unwrap();
    let rounds = || {
        let mut bytes = [0; 8];
        control.read_exact_at(&mut bytes, untorn::internals::HEARTBEAT_AT).unwrap();
        u64::from_ne_bytes(bytes)
    };
    let before = rounds();
    std::thread::sleep(Duration::from_secs(1));
    rounds() - before
}

/// Far more than it needs, and far less than a thread has time for that does not sleep.
const ROUNDS_MAX: u64 = 2000;

/// A writer has announced a deadline and is stopped before its commit is published. Nothing can be
/// flushed for it. The flush thread once checked again and again, without a pause.
#[test]
fn a_writer_is_stopped_between_its_deadline_and_its_publication() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let published = scenario.hold_point("published");
    let mut starter = scenario.start("interleavings::log::worker", &[], &[], "");
    starter.hear_prefix("ready");
    let mut writer = scenario.start("interleavings::log::worker", &[], &[published.at("commit.before_publish")], "");
    writer.hear_prefix("ready");
    starter.ask("commit 5 durable");
    published.arm();
    let heard = writer.lines().len();
    writer.tell("commit-within 1000");
    published.wait();
    let rounds = rounds_in_a_second(&scenario.path);
    published.release();
    assert_eq!(writer.line(heard), "6");
    assert!(rounds < ROUNDS_MAX, "{rounds} rounds in a second");
}

/// The log breaks while a commit waits that had a deadline: that stays for ever.
#[test]
fn the_log_breaks_under_a_deadline() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let starter = scenario.start("interleavings::log::worker", &[], &["wal.sync@30:fail".into()], "");
    starter.hear_prefix("ready");
    let few = Few::open(worker::options().create(false).open(&scenario.path).unwrap()).unwrap();
    let logger = few.store.stats().unwrap().logger_pid.unwrap();
    // Its bytes would go to a new segment after that, which it can't open.
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is read, of a process that this test started, and nothing is written.
    #[allow(unsafe_code)]
    let limited = unsafe { libc::prlimit(logger as i32, libc::RLIMIT_NOFILE, &none, std::ptr::null_mut()) };
    assert_eq!(limited, 0);
    let within = Durability::Within(Duration::from_millis(1));
    let error = (1..200).find_map(|n| few.commit(n, within).err()).expect("the thirtieth sync fails");
    assert!(matches!(error, Error::NotDurable { .. }), "{error:?}");
    assert!(few.store.stats().unwrap().needs_recovery.is_some());
    let rounds = rounds_in_a_second(&scenario.path);
    assert_eq!(few.store.stats().unwrap().logger_pid, Some(logger), "the logger does not run");
    assert!(rounds < ROUNDS_MAX, "{rounds} rounds in a second");
}

// ---- policies and full devices

/// Interleaving 13: a flush is due only after more bytes than the ring holds. Without a limit of
/// its own, the logger would wait for bytes that no writer can bring, and the writers for room.
#[test]
fn every_so_many_bytes_more_than_the_ring_holds() {
    let _limit = limit();
    let scenario = Scenario::new();
    let mut options = worker::options();
    options.durability(Durability::Visible).flush_policy(FlushPolicy::EveryBytes(1 << 40));
    let store = options.open(&scenario.path).unwrap();
    let keys = store.keyspace("keys").unwrap();
    let begun = Instant::now();
    for n in 0..2000u64 {
        keys.put(&(n % 100).to_be_bytes(), &sealed(n, 1000)).unwrap();
    }
    let spent = begun.elapsed();
    eprintln!("2 MB through a ring of 64 KiB in {spent:?}, {} syncs", store.stats().unwrap().fsyncs);
    assert!(spent < HANGS, "{spent:?}");
    // A durable commit does not wait for that many bytes either.
    let begun = Instant::now();
    let mut txn = store.begin_with(Durability::Durable).unwrap();
    txn.put(&keys, b"durable", b"v").unwrap();
    txn.commit().unwrap().wait().unwrap();
    assert!(begun.elapsed() < HANGS);
    assert_verified(&store);
}

/// Interleaving 13 the other way round: small commits, each charged a block of the log, use that up
/// long before they fill the ring, and a flush is not due for an hour. The writer that waited for
/// the log held the lock that a checkpoint needed to make files of the log free. Only a flush would
/// have given the blocks back, and none came; the writer got `LoggerStalled`.
#[test]
fn small_visible_commits_use_up_the_log_before_a_flush_is_due() {
    let _limit = limit();
    let scenario = Scenario::new();
    let mut options = Store::options();
    options.durability(Durability::Visible).flush_policy(FlushPolicy::Every(Duration::from_secs(3600)));
    let store = options.logger_timeout(HANGS).open(&scenario.path).unwrap();
    let keys = store.keyspace("keys").unwrap();
    for n in 0..60_000u64 {
        keys.put(&(n % 1000).to_be_bytes(), b"small").unwrap_or_else(|error| panic!("commit {n}: {error}"));
    }
    store.sync().unwrap();
    assert_verified(&store);
}
