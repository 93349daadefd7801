//! Goal: a write transaction that stays open for long and the logger never wait for each other
//! without end. A call that waits for a logger that can't serve returns the reason.
//!
//! Method: transactions that outgrow the log's spares, or that just stay open, while the logger has
//! reasons to take a checkpoint or to leave; loggers whose successor finds damage, or can't be
//! started. Each call must come back within seconds.

use crate::common::program::logger as logger_program;
use crate::common::{HANGS, TestStore, kill_logger, limit, wait_until};
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use untorn::reason::{LockHolder, LoggerFailure, NotDurableReason};
use untorn::{Durability, Error, Store};

/// Runs `work` on a thread of its own; fails if it hangs.
fn within_limit<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    wait.recv_timeout(HANGS).expect("it ends")
}

/// The logger's background thread waited for the writer lock, to begin a checkpoint, while the
/// transaction that held it waited for log files, which that very thread makes.
#[test]
fn a_transaction_larger_than_the_spares_meets_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let at = path.clone();
    within_limit(move || {
        let store = Store::options()
            .ring_size(64 << 10)
            .segment_size(256 << 10)
            .checkpoint_bytes(512 << 10)
            .logger_timeout(Duration::from_secs(60))
            .open(&at)
            .unwrap();
        let rows = store.keyspace("rows").unwrap();
        let mut txn = store.begin().unwrap();
        for key in 0..8_000u32 {
            txn.put(&rows, &key.to_be_bytes(), &[7; 1000]).unwrap();
        }
        txn.commit().unwrap();
        assert_eq!(rows.len().unwrap(), 8_000);
        let report = store.verify().unwrap();
        assert!(report.is_clean(), "{report:#?}");
    });
    untorn::logger::stop_logger(&path, HANGS).unwrap();
}

/// A logger that is requested to leave takes a last checkpoint. A transaction that stays open must
/// not delay the logger, and the initialisation lock that it holds, for ever.
#[test]
fn the_logger_leaves_beside_an_open_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let store = Store::open(&path).unwrap();
    let rows = store.keyspace("rows").unwrap();
    rows.put(b"a", b"1").unwrap();
    let mut txn = store.begin_with(Durability::Durable).unwrap();
    txn.put(&rows, b"b", b"2").unwrap();
    let start = Instant::now();
    assert!(untorn::logger::stop_logger(&path, HANGS).unwrap());
    assert!(start.elapsed() < HANGS, "{:?}", start.elapsed());
    // A process that waits for a logger starts the successor.
    txn.commit().unwrap().wait().unwrap();
    assert_eq!(rows.get(b"b").unwrap().unwrap(), b"2");
    drop((rows, store));
    untorn::logger::stop_logger(&path, HANGS).unwrap();
}

/// A store whose header was lost is no empty directory: opening it must not replace its other
/// files.
#[test]
fn a_store_without_its_header_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    Store::open(&path).unwrap().keyspace("rows").unwrap().put(b"a", b"1").unwrap();
    untorn::logger::stop_logger(&path, HANGS).unwrap();
    std::fs::rename(path.join("checkpoint"), path.join("aside")).unwrap();
    assert!(matches!(Store::open(&path), Err(untorn::Error::Mismatch { .. })));
    std::fs::rename(path.join("aside"), path.join("checkpoint")).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.keyspace("rows").unwrap().get(b"a").unwrap().unwrap(), b"1");
    drop(store);
    untorn::logger::stop_logger(&path, HANGS).unwrap();
}

/// The number of a keyspace whose creation was rolled back was given to the next one, and the old
/// handle then wrote there.
#[test]
fn a_handle_of_a_rolled_back_keyspace_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let store = Store::open(&path).unwrap();
    let mut txn = store.begin().unwrap();
    let stale = txn.keyspace("stale").unwrap();
    txn.rollback();
    let other = store.keyspace("other").unwrap();
    assert!(matches!(stale.put(b"k", b"v"), Err(untorn::Error::NoKeyspace { .. })));
    assert!(matches!(stale.get(b"k"), Err(untorn::Error::NoKeyspace { .. })));
    assert!(other.is_empty().unwrap());
    drop((stale, other, store));
    untorn::logger::stop_logger(&path, HANGS).unwrap();
}

/// `Duration::MAX` means "as long as it takes". It overflowed the clock, in one place with the
/// process's local queue blocked behind it.
#[test]
fn the_longest_time_out_is_no_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let store = Store::options().logger_timeout(Duration::MAX).lock_timeout(Duration::MAX).open(&path).unwrap();
    let rows = store.keyspace("rows").unwrap();
    let mut txn = store.begin_timeout(Duration::MAX).unwrap();
    txn.put(&rows, b"a", b"1").unwrap();
    let ticket = txn.submit().unwrap();
    assert!(ticket.wait_timeout(Duration::MAX).unwrap());
    drop((ticket, rows, store));
    untorn::logger::stop_logger(&path, Duration::MAX).unwrap();
}

/// A checkpoint begins between two transactions. A thread with an open transaction can't wait for
/// it; for another thread's transaction, the wait is limited by the option.
#[test]
fn a_checkpoint_does_not_wait_for_its_own_caller() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.lock_timeout(Duration::from_millis(200));
    });
    store.keyspace("rows").unwrap().put(b"a", b"1").unwrap();
    let txn = store.begin().unwrap();
    assert!(matches!(store.checkpoint(), Err(Error::TransactionOpen)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let error = store.checkpoint().unwrap_err();
            assert!(matches!(&error, Error::LockTimeout { holder, .. } if matches!(holder, Some(LockHolder::Process { pid, .. }) if *pid == std::process::id())), "{error}");
        });
    });
    drop(txn);
    assert_eq!(store.checkpoint().unwrap(), store.snapshot().unwrap().txn_id());
}

/// The logger dies, and the log is found damaged. A waiter for a commit gets the damage and the
/// commit in its error, at once, instead of starting loggers until the timeout.
#[test]
fn what_keeps_a_successor_from_serving_is_said() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.logger_timeout(2 * HANGS);
    });
    let rows = store.keyspace("rows").unwrap();
    rows.put(b"a", b"1").unwrap();
    // A block header that another program has come to use.
    let segment = test.path.join("wal/seg-00000001");
    let file = std::fs::File::options().read(true).write(true).open(&segment).unwrap();
    let mut whole = [0; 4096];
    file.read_exact_at(&mut whole, 0).unwrap();
    kill_logger(&store);
    file.write_all_at(&[0xa5; 128], 0).unwrap();
    let start = Instant::now();
    let error = rows.put(b"b", b"2").unwrap_err();
    assert!(start.elapsed() < HANGS, "{:?}", start.elapsed());
    let Error::NotDurable { txn, reason } = &error else { panic!("{error}") };
    assert_eq!(*txn, store.snapshot().unwrap().txn_id());
    let NotDurableReason::Failed { error: cause } = reason else { panic!("{error:?}") };
    assert!(matches!(&**cause, Error::Corrupt { file, .. } if file.contains("seg-00000001")), "{error:?}");
    assert_eq!(rows.get(b"b").unwrap().unwrap(), b"2");
    // The damage is mended, and everything goes on.
    file.write_all_at(&whole, 0).unwrap();
    rows.put(b"c", b"3").unwrap();
    assert!(store.durable_snapshot().unwrap().get(&rows, b"b").unwrap().is_some());
}

/// A task that awaits a commit which no logger can take gets an error, and may await it again.
#[test]
fn an_awaited_commit_without_a_logger_is_an_error() {
    let _limit = limit();
    let test = TestStore::new();
    drop(test.open());
    // A logger serves already; another one can't be started from here.
    let store = test.open_with(|options| {
        options.logger_program("/nowhere/untorn-logger").durability(Durability::Visible);
    });
    let rows = store.keyspace("rows").unwrap();
    kill_logger(&store);
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&rows, b"a", b"1").unwrap();
    let ticket = txn.commit().unwrap();
    let mut future = pin!(ticket.clone());
    let mut context = Context::from_waker(Waker::noop());
    let mut poll = || {
        let mut answer = None;
        wait_until(|| {
            answer = match future.as_mut().poll(&mut context) {
                Poll::Ready(answer) => Some(answer),
                Poll::Pending => None,
            };
            answer.is_some()
        });
        answer.unwrap()
    };
    for _ in 0..2 {
        let error = poll().unwrap_err();
        let Error::NotDurable { txn, reason } = &error else { panic!("{error}") };
        assert_eq!(*txn, ticket.txn_id());
        let NotDurableReason::NoLogger { reason: LoggerFailure::Programs { tried } } = reason else {
            panic!("{error:?}")
        };
        assert_eq!(tried[0].program, "/nowhere/untorn-logger");
    }
    // Another process starts a logger.
    let other = std::process::Command::new(logger_program()).arg(&test.path).spawn();
    let mut other = other.unwrap();
    ticket.wait_timeout(HANGS).ok();
    wait_until(|| ticket.is_durable());
    poll().unwrap();
    drop((rows, store));
    test.stop_logger();
    other.wait().unwrap();
}

/// A kill may hit a logger before it has left its starter; the starter tries again.
#[test]
fn a_logger_that_is_killed_while_it_starts_is_started_again() {
    use std::os::unix::fs::PermissionsExt;
    let _limit = limit();
    let test = TestStore::new();
    let beside = test.path.parent().unwrap();
    let (program, mark) = (beside.join("killed-once"), beside.join("mark"));
    let logger = logger_program().display();
    let text =
        format!("#!/bin/sh\nif [ ! -e {0} ]; then : > {0}; kill -9 $$; fi\nexec {logger} \"$@\"\n", mark.display());
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let store = test.open_with(|options| {
        options.logger_program(&program);
    });
    store.keyspace("keys").unwrap().put(b"a", b"1").unwrap();
    assert!(mark.exists());
}
