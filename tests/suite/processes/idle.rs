//! Goal: a logger costs nothing while its store is not used. It once woke up 122 times a second for
//! each open store.
//!
//! Method: the voluntary context switches of all its threads, which the kernel counts, beside a
//! client that does nothing and beside none. A busy machine adds none of these. Then everything
//! that a logger does at rest must still be done: news wakes it, and dead processes are found.

use crate::common::{HANGS, Role, TestStore, exists, limit, say, spawn, wait_until};
use std::time::{Duration, Instant};
use untorn::{Durability, Store};

/// For how long wake-ups are counted at a time, and how often at most: the store may have to
/// settle.
const WINDOW: Duration = Duration::from_secs(8);
const WINDOWS: usize = 4;

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    let store = Store::open(&role.store).unwrap();
    let _snapshot = store.snapshot().unwrap();
    say("open");
    crate::common::listen();
}

/// How often the threads of a process have gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let count = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    status.map(count).sum()
}

/// Sleeps a second of a process that is left alone.
fn sleeps_a_second(pid: u32) -> f64 {
    let (began, before) = (Instant::now(), sleeps(pid));
    std::thread::sleep(WINDOW);
    (sleeps(pid) - before) as f64 / began.elapsed().as_secs_f64()
}

#[track_caller]
fn assert_rests(pid: u32, most: f64) {
    let mut found = Vec::new();
    for _ in 0..WINDOWS {
        found.push(sleeps_a_second(pid));
        if found.last().is_some_and(|rate| *rate < most) {
            eprintln!("sleeps a second: {found:.3?}");
            return;
        }
    }
    panic!("sleeps a second: {found:.3?}, expected below {most}");
}

#[test]
fn a_logger_rests_beside_a_client_that_does_nothing() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    let cell = store.cell("cell", 8).unwrap();
    keys.put(b"k", b"v").unwrap();
    let logger = store.stats().unwrap().logger_pid.unwrap();
    assert_rests(logger, 1.0);
    // All that wakes it still does.
    keys.put(b"k", b"durable").unwrap();
    assert_rests(logger, 1.0);
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&keys, b"k", b"visible").unwrap();
    let ticket = txn.commit().unwrap();
    wait_until(|| ticket.is_durable());
    let mut txn = store.begin_with(Durability::Within(Duration::from_millis(200))).unwrap();
    txn.put(&keys, b"k", b"within").unwrap();
    let ticket = txn.commit().unwrap();
    wait_until(|| ticket.is_durable());
    assert_rests(logger, 1.0);
    cell.store_durable(&[7; 8]).unwrap();
    store.checkpoint().unwrap();
    assert_rests(logger, 1.0);
    let messages = untorn::Client::connect(test.path.join("logger.sock")).unwrap();
    assert_eq!(messages.get("keys", b"k").unwrap().unwrap(), b"within");
    drop(messages);
    assert_eq!(store.stats().unwrap().logger_pid, Some(logger));
    assert_eq!(store.stats().unwrap().logger_starts, 1);
}

/// A process is killed beside a logger that rests, and no other process makes a request.
#[test]
fn a_logger_that_rests_finds_the_dead() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let mut child = spawn("processes::idle::idle", &test.path, &[]);
    child.expect("open");
    let logger = store.stats().unwrap().logger_pid.unwrap();
    assert_rests(logger, 1.0);
    assert_eq!(store.stats().unwrap().clients.len(), 2);
    let killed = child.pid();
    child.kill();
    wait_until(|| {
        let stats = store.stats().unwrap();
        stats.clients.len() == 1 && stats.readers.iter().all(|reader| reader.pid != killed)
    });
    // It leaves when the last client has, also one that is killed.
    let mut child = spawn("processes::idle::idle", &test.path, &[]);
    child.expect("open");
    Store::options().logger_idle(Duration::from_millis(100)).open(&test.path).unwrap();
    drop(store);
    child.kill();
    wait_until(|| !exists(logger));
}

/// For how long a logger that is alone must not wake at all.
const ALONE_WINDOW: Duration = Duration::from_secs(15);

/// The threads of a process do not wake once in a long time.
#[track_caller]
fn assert_sleeps(pid: u32) {
    let mut found = Vec::new();
    for _ in 0..WINDOWS {
        let before = sleeps(pid);
        std::thread::sleep(ALONE_WINDOW);
        found.push(sleeps(pid) - before);
        if found.last() == Some(&0) {
            return;
        }
    }
    panic!("times that the threads slept in {ALONE_WINDOW:?}: {found:?}, expected none");
}

fn live(path: &std::path::Path) -> untorn::Stats {
    match untorn::observe(path).unwrap() {
        untorn::Observation::Live(stats) => *stats,
        other => panic!("{other:?}"),
    }
}

/// A logger that no process uses woke up to four times in ten seconds, to check its directory and
/// its socket. Now nothing wakes it, and all that ends its sleep still does: a join, a message, a
/// change of the socket, and the time to leave.
#[test]
fn a_logger_that_is_alone_does_not_wake() {
    let _limit = limit();
    let test = TestStore::new();
    let opened_once = |idle: Duration| {
        let store = test.open_with(|options| {
            options.logger_idle(idle);
        });
        store.keyspace("keys").unwrap().put(b"k", b"v").unwrap();
        store.stats().unwrap().logger_pid.unwrap()
    };
    let logger = opened_once(Duration::from_secs(3600));
    assert_sleeps(logger);
    // A join ends that at once: the death of the process that joined is noticed, though it left no
    // news.
    let mut child = spawn("processes::idle::idle", &test.path, &[]);
    child.expect("open");
    assert_eq!(live(&test.path).clients.len(), 1);
    child.kill();
    wait_until(|| live(&test.path).clients.is_empty());
    // If the socket is removed, the logger makes it again. If the access file names another path,
    // the socket moves there.
    assert_sleeps(logger);
    std::fs::remove_file(test.path.join("logger.sock")).unwrap();
    wait_until(|| test.path.join("logger.sock").exists());
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("socket");
    std::fs::write(test.path.join("access"), format!("socket \"{}\"\n", moved.display())).unwrap();
    wait_until(|| moved.exists());
    std::fs::remove_file(test.path.join("access")).unwrap();
    wait_until(|| test.path.join("logger.sock").exists());
    assert_sleeps(logger);
    let messages = untorn::Client::connect(test.path.join("logger.sock")).unwrap();
    assert_eq!(messages.get("keys", b"k").unwrap().unwrap(), b"v");
    drop(messages);
    assert_eq!(live(&test.path).logger_pid, Some(logger));
    // It leaves when it is time, which another client shortens.
    assert_eq!(opened_once(Duration::from_secs(2)), logger);
    wait_until(|| !exists(logger));
}

#[test]
fn a_logger_without_clients_rests_until_it_leaves() {
    let _limit = limit();
    let test = TestStore::new();
    let opened_once = || {
        let store = test.open_with(|options| {
            options.logger_idle(Duration::from_secs(3600));
        });
        store.keyspace("keys").unwrap().put(b"k", b"v").unwrap();
        store.stats().unwrap().logger_pid.unwrap()
    };
    let logger = opened_once();
    assert_rests(logger, 0.5);
    // A request to leave makes it leave at once.
    assert!(untorn::logger::stop_logger(&test.path, HANGS).unwrap());
    wait_until(|| !exists(logger));
    // A logger whose directory is removed notices that.
    let logger = opened_once();
    assert_rests(logger, 0.5);
    std::fs::remove_dir_all(&test.path).unwrap();
    wait_until(|| !exists(logger));
}
