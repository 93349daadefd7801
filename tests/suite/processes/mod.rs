//! Goal: several processes use a store at once, and none of them needs to stay alive: transactions
//! are atomic and ordered for all processes, one sync serves many, the lock outlives its owners,
//! the logger can be lost at any time.
//!
//! Method: real processes, started from this executable in the roles at the end of the file, are
//! killed and stopped at random or at chosen moments. What they report as acknowledged is what must
//! be there afterwards. Times are measured and held against bounds that a loaded machine keeps as
//! well.

mod fork_exec;
mod hook;
mod idle;
mod lock_and_logger;
mod priority;
mod random_kills;
mod roles;
mod tickets;

use crate::common::{
    HANGS, Process, Role, TestStore, assert_clean, exists, kill_logger, limit, say, send, spawn, wait_until,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roles::{hold, pairs, put, sum, transfer, visible};
use rustix::process::Signal;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use tickets::block_on;
use untorn::reason::LockHolder;
use untorn::{Durability, Error, FlushPolicy, Keyspace, Snapshot, Store};

const ACCOUNTS: u32 = 50;

const TOTAL: u64 = ACCOUNTS as u64 * 1000;

fn account(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

fn amount(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().unwrap())
}

/// Eight bytes that count, and some that make the value larger or smaller.
fn money(amount: u64, padding: usize) -> Vec<u8> {
    let mut value = amount.to_le_bytes().to_vec();
    value.resize(8 + padding, amount as u8);
    value
}

fn fill_accounts(store: &Store) {
    let mut txn = store.begin().unwrap();
    let accounts = txn.keyspace("accounts").unwrap();
    for number in 0..ACCOUNTS {
        txn.put(&accounts, &account(number), &money(1000, 0)).unwrap();
    }
    txn.commit().unwrap();
}

fn check_sum(snapshot: &Snapshot, accounts: &Keyspace) {
    let sum = |values: &mut dyn Iterator<Item = untorn::Result<(untorn::Key, &[u8])>>| {
        let (mut sum, mut count) = (0, 0);
        for entry in values {
            let (_, value) = entry.unwrap();
            let amount = amount(value);
            assert!(value[8..].iter().all(|byte| *byte == amount as u8), "a torn value");
            sum += amount;
            count += 1;
        }
        assert_eq!((sum, count), (TOTAL, ACCOUNTS));
    };
    sum(&mut snapshot.range(accounts, ..).unwrap());
    sum(&mut snapshot.range(accounts, ..).unwrap().rev());
    assert_eq!(snapshot.len(accounts).unwrap(), u64::from(ACCOUNTS));
}

/// Transactions over several keys keep their sum in every snapshot of every process; snapshots are
/// repeatable and never go back.
#[test]
fn each_snapshot_has_the_whole_sum() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.checkpoint_bytes(1 << 20);
    });
    fill_accounts(&store);
    let writers: Vec<Process> = (0..4u64)
        .map(|seed| {
            spawn("processes::transfer", &test.path, &[&seed.to_string(), ["visible", "durable"][seed as usize % 2]])
        })
        .collect();
    let readers: Vec<Process> = (0..2).map(|_| spawn("processes::sum", &test.path, &[])).collect();
    let end = Instant::now() + Duration::from_secs(4);
    let accounts = store.keyspace("accounts").unwrap();
    while Instant::now() < end {
        let durable = store.durable_snapshot().unwrap();
        let visible = store.snapshot().unwrap();
        assert!(durable.txn_id() <= visible.txn_id());
        check_sum(&durable, &accounts);
        check_sum(&visible, &accounts);
    }
    let count = |children: Vec<Process>| -> u64 {
        children.into_iter().flat_map(|child| child.finish()).map(|line| line.parse::<u64>().unwrap()).sum()
    };
    let (transfers, looks) = (count(writers), count(readers));
    eprintln!("{transfers} transfers, {looks} snapshots, {} checkpoints", store.stats().unwrap().checkpoints);
    assert!(transfers > 100 && looks > 10);
    check_sum(&store.snapshot().unwrap(), &accounts);
    assert_clean(&store);
}

/// Interleaving 21: a thread can have one transaction of a store, whatever handle it begins it on;
/// another thread waits.
#[test]
fn second_begin_of_a_thread_is_an_error() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let link = test.path.with_file_name("link");
    std::os::unix::fs::symlink(&test.path, &link).unwrap();
    let same = Store::open(&link).unwrap();
    let keys = store.keyspace("keys").unwrap();

    let txn = store.begin().unwrap();
    assert!(matches!(store.begin(), Err(Error::TransactionOpen)));
    assert!(matches!(same.begin(), Err(Error::TransactionOpen)));
    assert!(matches!(same.begin_timeout(Duration::from_secs(5)), Err(Error::TransactionOpen)));
    assert!(matches!(keys.put(b"k", b"v"), Err(Error::TransactionOpen)));
    assert!(matches!(same.keyspace("new"), Err(Error::TransactionOpen)));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let start = Instant::now();
            let error = same.begin_timeout(Duration::from_millis(50)).unwrap_err();
            assert!(
                matches!(&error, Error::LockTimeout { waited, .. } if *waited >= Duration::from_millis(50)),
                "{error}"
            );
            assert!(start.elapsed() < HANGS);
            assert!(matches!(same.begin_timeout(Duration::ZERO), Err(Error::LockTimeout { .. })));
        });
        waits.join().unwrap();
    });
    drop(txn);
    // Errors left nothing locked; a second store of the same process is another matter.
    let other = TestStore::new();
    let second = other.open();
    let one = same.begin().unwrap();
    let two = second.begin().unwrap();
    drop((one, two));
    keys.put(b"k", b"v").unwrap();
    let foreign = second.begin().unwrap();
    assert!(matches!(foreign.get(&keys, b"k"), Err(Error::OtherStore { .. })));
}

/// Threads of one process take turns, and each gets one.
#[test]
fn threads_take_turns() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.durability(Durability::Visible);
    });
    let keys = store.keyspace("keys").unwrap();
    keys.put(b"count", &0u64.to_le_bytes()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let mut txn = store.begin().unwrap();
                    let count = amount(txn.get(&keys, b"count").unwrap().unwrap());
                    txn.put(&keys, b"count", &(count + 1).to_le_bytes()).unwrap();
                    txn.commit().unwrap();
                }
            });
        }
    });
    assert_eq!(amount(&keys.get(b"count").unwrap().unwrap()), 2000);
}

/// A waiter that times out gets the lock's owner in its error. A stopped owner keeps the lock, and
/// stops no reader.
#[test]
fn stopped_lock_holder() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    keys.put(b"k", b"old").unwrap();
    let mut holder = spawn("processes::hold", &test.path, &[]);
    holder.expect("held");
    holder.signal(Signal::STOP);
    let start = Instant::now();
    let error = store.begin_timeout(Duration::from_millis(100)).unwrap_err();
    assert!(start.elapsed() < HANGS);
    let Error::LockTimeout { holder: named, .. } = &error else { panic!("{error}") };
    let Some(LockHolder::Process { pid, .. }) = named else { panic!("{error}") };
    assert_eq!(*pid, holder.pid());
    let writer = store.stats().unwrap().writer.expect("a process holds the lock");
    assert_eq!(writer.pid, holder.pid());
    assert!((Duration::from_millis(100)..HANGS).contains(&Duration::from_nanos(writer.age_ns)));
    // The option bounds every begin.
    let hasty = test.open_with(|options| {
        options.lock_timeout(Duration::from_millis(20));
    });
    assert!(matches!(hasty.begin(), Err(Error::LockTimeout { .. })));
    assert!(matches!(hasty.keyspace("keys").unwrap().put(b"k", b"new"), Err(Error::LockTimeout { .. })));
    // Readers go on, also in a process that opens only now, and so does the log.
    for _ in 0..1000 {
        assert_eq!(keys.get(b"k").unwrap().unwrap(), b"old");
        assert_eq!(keys.range(..).unwrap().count(), 1);
        store.durable_snapshot().unwrap();
    }
    store.sync().unwrap();
    let reader = spawn("processes::get", &test.path, &["k"]);
    reader.expect("old");
    drop(reader);
    holder.signal(Signal::CONT);
    holder.tell("commit");
    holder.expect("committed");
    assert_eq!(keys.get(b"k").unwrap().unwrap(), b"held");
    store.begin_timeout(HANGS).unwrap().commit().unwrap();
    holder.finish();
    assert!(store.stats().unwrap().writer.is_none());
}

/// The lock of a killed owner is taken over within milliseconds, and nothing that it had begun is
/// left.
#[test]
fn killed_lock_holder() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.durability(Durability::Visible);
    });
    let keys = store.keyspace("keys").unwrap();
    keys.put(b"k", b"old").unwrap();
    let mut times = Vec::new();
    for _ in 0..10 {
        let mut holder = spawn("processes::hold", &test.path, &[]);
        holder.expect("held");
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut txn = store.begin().unwrap();
                let taken = Instant::now();
                assert_eq!(txn.get(&keys, b"k").unwrap().unwrap(), b"old");
                txn.put(&keys, b"other", b"v").unwrap();
                txn.commit().unwrap();
                taken
            });
            std::thread::sleep(Duration::from_millis(20));
            let killed = Instant::now();
            holder.kill();
            waiting.join().unwrap().saturating_duration_since(killed)
        });
        times.push(waiting);
        assert_eq!(keys.get(b"k").unwrap().unwrap(), b"old");
    }
    times.sort();
    eprintln!("take-over after {:?} (median), {:?} (longest)", times[times.len() / 2], times[times.len() - 1]);
    assert!(times[times.len() - 1] < HANGS, "{times:?}");
    assert!(store.stats().unwrap().lock_take_overs >= 10);
    wait_until(|| store.stats().unwrap().clients.len() == 1);
    assert_clean(&store);
}

/// All processes and the logger are killed: what was visible is there when the store is opened
/// again, although nothing of it was durable.
#[test]
fn all_killed_loses_nothing_visible() {
    let _limit = limit();
    for _ in 0..5 {
        let test = TestStore::new();
        let mut writer = spawn("processes::visible", &test.path, &[]);
        let mut last = writer.hear();
        while last != "200" {
            last = writer.hear();
        }
        let logger: u32 = {
            let store = test.open();
            let stats = store.stats().unwrap();
            assert!(stats.durable < stats.committed, "nothing asks for a sync");
            stats.logger_pid.unwrap()
        };
        send(logger, Signal::STOP);
        let said = writer.kill();
        send(logger, Signal::KILL);
        wait_until(|| !exists(logger));
        let acknowledged: u64 = said.last().unwrap_or(&last).parse().unwrap();
        let store = test.open();
        let keys = store.keyspace("keys").unwrap();
        let len = keys.len().unwrap();
        assert!(len == acknowledged || len == acknowledged + 1, "{acknowledged} were acknowledged, {len} are there");
        for n in 1..=len {
            assert_eq!(amount(&keys.get(&n.to_be_bytes()).unwrap().unwrap()), n);
        }
        assert_clean(&store);
    }
}

/// The logger is killed again and again under load: durable commits go on with its successor.
#[test]
fn killed_logger() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let _ = store.keyspace("numbers").unwrap();
    let children: Vec<Process> =
        (0..3).map(|n| spawn("processes::pairs", &test.path, &[&n.to_string(), "1"])).collect();
    let mut times = Vec::new();
    for _ in 0..8 {
        kill_logger(&store);
        let start = Instant::now();
        for child in &children {
            child.heard();
            child.hear();
        }
        store.sync().unwrap();
        times.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(30));
    }
    eprintln!("went on after {times:?}");
    assert!(times.iter().all(|time| *time < HANGS));
    assert!(store.stats().unwrap().logger_starts >= 8);
    drop(children);
    assert_clean(&store);
}

/// Interleaving 14: the logger is stopped. A waiter for it gets an error after the stated time,
/// visible commits and readers go on, and no process takes its place. When the logger continues, it
/// makes up for everything.
#[test]
fn stopped_logger() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.logger_timeout(Duration::from_millis(300));
    });
    let keys = store.keyspace("keys").unwrap();
    keys.put(b"k", b"before").unwrap();
    let logger = store.stats().unwrap().logger_pid.unwrap();
    send(logger, Signal::STOP);
    // The error names the transaction that is visible all the same: it must not be taken for one
    // that has not happened.
    let stalled = |call: &dyn Fn() -> untorn::Result<()>| {
        let start = Instant::now();
        let error = call().unwrap_err();
        assert!(start.elapsed() < HANGS);
        let Error::LoggerStalled { visible, .. } = error else { panic!("{error}") };
        visible
    };
    let txn = stalled(&|| keys.put(b"k", b"stopped").map(drop));
    assert_eq!(txn, Some(store.snapshot().unwrap().txn_id()));
    assert_eq!(stalled(&|| store.sync()), txn);
    assert_eq!(stalled(&|| store.checkpoint().map(drop)), None);
    // It is visible all the same, and others may be.
    assert_eq!(keys.get(b"k").unwrap().unwrap(), b"stopped");
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&keys, b"k2", b"visible").unwrap();
    let ticket = txn.commit().unwrap();
    assert!(!ticket.wait_timeout(Duration::from_millis(10)).unwrap());
    assert_eq!(stalled(&|| ticket.wait()), Some(ticket.txn_id()));
    assert!(!ticket.is_durable());
    for _ in 0..100 {
        assert_eq!(store.snapshot().unwrap().get(&keys, b"k2").unwrap().unwrap(), b"visible");
        let durable = store.durable_snapshot().unwrap();
        assert_eq!(durable.get(&keys, b"k").unwrap().unwrap(), b"before");
    }
    let reader = spawn("processes::get", &test.path, &["k2"]);
    reader.expect("visible");
    reader.finish();
    assert_eq!(store.stats().unwrap().logger_pid, Some(logger));
    // A task that awaits gets no error while the logger stalls, but it is woken when the logger
    // goes on.
    let awaiting = std::thread::spawn({
        let ticket = ticket.clone();
        move || block_on(ticket)
    });
    std::thread::sleep(Duration::from_millis(500));
    assert!(!awaiting.is_finished());
    send(logger, Signal::CONT);
    ticket.wait().unwrap();
    awaiting.join().unwrap().unwrap();
    store.sync().unwrap();
    assert_eq!(store.durable_snapshot().unwrap().get(&keys, b"k").unwrap().unwrap(), b"stopped");
    store.checkpoint().unwrap();
    assert_clean(&store);
}

/// A writer that outruns a stopped logger waits in `begin` or `commit` for ring space, and gets the
/// same error.
#[test]
fn stopped_logger_and_a_full_ring() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.logger_timeout(Duration::from_millis(200)).ring_size(64 << 10).durability(Durability::Visible);
    });
    let keys = store.keyspace("keys").unwrap();
    store.sync().unwrap();
    let logger = store.stats().unwrap().logger_pid.unwrap();
    send(logger, Signal::STOP);
    let mut written = 0u32;
    let error = loop {
        match keys.put(&written.to_be_bytes(), &[7; 3000]) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000);
    };
    assert!(matches!(error, Error::LoggerStalled { visible: None, .. }), "{error}");
    assert!(written >= 10);
    assert_eq!(keys.len().unwrap(), u64::from(written));
    send(logger, Signal::CONT);
    keys.put(b"more", b"v").unwrap();
    store.sync().unwrap();
    assert_eq!(keys.len().unwrap(), u64::from(written) + 1);
    assert_clean(&store);
}

/// Interleaving 12: a writer is stopped inside its transaction while visible commits await their
/// flush: they get it.
#[test]
fn stopped_writer_does_not_hold_up_flushes() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    store.set_flush_policy(FlushPolicy::Every(Duration::from_millis(300))).unwrap();
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&keys, b"k", b"old").unwrap();
    let ticket = txn.commit().unwrap();
    let mut holder = spawn("processes::hold", &test.path, &[]);
    holder.expect("held");
    holder.signal(Signal::STOP);
    let start = Instant::now();
    ticket.wait().unwrap();
    store.sync().unwrap();
    assert!(start.elapsed() < HANGS);
    holder.kill();
    store.begin().unwrap().commit().unwrap();
}

// ---- the roles

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "transfer" => transfer(&role),
        "sum" => sum(&role),
        "put" => put(&role),
        "hold" => hold(&role),
        "get" => {
            let store = Store::open(&role.store).unwrap();
            let keys = store.find_keyspace("keys").unwrap().unwrap();
            let value = keys.get(role.arguments[0].as_bytes()).unwrap().unwrap();
            say(String::from_utf8_lossy(&value));
        }
        "pairs" => pairs(&role),
        "visible" => visible(&role),
        other => panic!("no role {other}"),
    }
}
