//! Goal: a process that joins, leaves, forks, dies or observes from elsewhere at the worst moment
//! harms no other. No lock is kept by the dead, no client is without a logger, no copy of a store
//! or of a handle takes itself for the original.
//!
//! Method: openers and loggers of the instrumented build are held while others come or go; real
//! forks, whose children outlive their parents; copies of a store's files
//! beside the store.

#![allow(unsafe_code)]

mod forks;

use crate::common::{HANGS, Role, exists, limit, listen, say, spawn, wait_until};
use crate::workload::assert_verified;
use crate::workload::instrumented::{self, Scenario, signal};
use crate::workload::worker::{self, Few, Figures, number};
use forks::{child_drops, forks_in_transaction, forks_while_opening};
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Durability, Error, FlushPolicy, Store};
use untorn_test_kit::loggers::{crash_kernel, kill_loggers};

#[test]
fn child() {
    let Some(Role { name, store: path, arguments }) = Role::of_this_process() else { return };
    match name.as_str() {
        "worker" => worker::work(&path),
        "brief" => drop(worker::options().logger_idle(Duration::from_millis(50)).open(&path).unwrap()),
        "stranger" => stranger(&path),
        "forks-in-transaction" => forks_in_transaction(&path),
        "forks-while-opening" => forks_while_opening(&path),
        "child-drops" => child_drops(&path),
        "closes" => closes_descriptors(&path),
        other => panic!("no role {other} {arguments:?}"),
    }
}

// ---- other boots, other copies

/// Tries to open, and prints the result.
fn stranger(path: &Path) {
    let opened = worker::options().open(path);
    match &opened {
        Ok(store) => say(format_args!("opened {}", number(store, &store.snapshot().unwrap()))),
        Err(Error::Mismatch { file, .. }) => say(format_args!("mismatch {file}")),
        Err(error) => say(format_args!("{error:?}")),
    }
    listen();
}

/// Interleaving 6: a process of another boot (a container on another kernel, a directory shared by
/// two machines) opens the store while the first lives. It must not join a region that its memory
/// doesn't share, nor recover beneath living processes. When those are gone it gets in, by
/// recovery.
#[test]
fn a_process_of_another_boot_is_refused_while_the_first_lives() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let few = Few::open(worker::options().open(&scenario.path).unwrap()).unwrap();
    few.commits(10, true).unwrap();
    let logger = few.store.stats().unwrap().logger_pid;
    let other_boot = [("UNTORN_BOOT_ID", "b007")];
    for _ in 0..3 {
        let stranger = instrumented::spawn("interleavings::lives::stranger", &scenario.path, &[], &other_boot);
        assert_eq!(stranger.line(0), "mismatch control");
        few.commits(10, true).unwrap();
        drop(stranger);
    }
    // Without a logger as well: the client that lives is what counts.
    signal(logger.unwrap() as i32, libc::SIGSTOP);
    let stranger = instrumented::spawn("interleavings::lives::stranger", &scenario.path, &[], &other_boot);
    assert_eq!(stranger.line(0), "mismatch control");
    signal(logger.unwrap() as i32, libc::SIGCONT);
    drop(stranger);
    assert_eq!(few.commits(10, true).unwrap(), 50);
    let stats = few.store.stats().unwrap();
    assert_eq!((stats.logger_pid, stats.logger_starts, stats.clients.len()), (logger, 1, 1));
    assert_verified(&few.store);

    // A logger alone makes room by and by.
    worker::options().logger_idle(Duration::from_millis(100)).open(&scenario.path).unwrap();
    drop(few);
    let stranger = instrumented::spawn("interleavings::lives::stranger", &scenario.path, &[], &other_boot);
    assert_eq!(stranger.line(0), "opened 50");
    // And now it is the other way round.
    assert!(matches!(Store::open(&scenario.path), Err(Error::Mismatch { .. })));
}

/// Interleaving 6: the directory of a living store is copied, region and lock file and all, and the
/// copy is opened in the same boot. Its region states that it belongs to this boot. If that were
/// accepted, the copy would use commit slots, locks and a log ring of the other store. It recovers
/// by its files alone, and both go on.
#[test]
fn a_copied_store_goes_its_own_way() {
    let _limit = limit();
    let scenario = Scenario::new();
    let few = Few::open(worker::options().open(&scenario.path).unwrap()).unwrap();
    few.commits(40, true).unwrap();
    few.store.checkpoint().unwrap();
    few.commits(10, true).unwrap();
    // Visible and not durable: only the ring holds it.
    few.store.set_flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).unwrap();
    few.commits(7, false).unwrap();
    // Copied in the middle of a transaction, so that the region names a living owner of the lock.
    let copied = Scenario::new();
    let txn = few.store.begin().unwrap();
    let done = std::process::Command::new("cp").arg("-a").arg(&scenario.path).arg(&copied.path).status().unwrap();
    assert!(done.success());
    txn.rollback();
    few.store.set_flush_policy(FlushPolicy::OnCommit).unwrap();

    let copy = Few::open(worker::options().open(&copied.path).unwrap()).unwrap();
    assert_eq!(number(&copy.store, &copy.store.snapshot().unwrap()), 50, "what is in its files");
    let (here, there) = (few.store.stats().unwrap(), copy.store.stats().unwrap());
    assert_ne!(here.logger_pid, there.logger_pid);
    assert_eq!((there.clients.len(), there.logger_starts, there.lock_take_overs), (1, 1, 0));
    assert_eq!(number(&few.store, &few.store.snapshot().unwrap()), 57);
    // Each goes on by itself, while the other works.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| copy.commits(200, true).unwrap());
        assert_eq!(few.commits(300, true).unwrap(), 357);
        assert_eq!(other.join().unwrap(), 250);
    });
    for (few, expected) in [(&few, 357), (&copy, 250)] {
        few.store.checkpoint().unwrap();
        assert_eq!(number(&few.store, &few.store.durable_snapshot().unwrap()), expected);
        assert_verified(&few.store);
    }
    drop((few, copy));
    for (scenario, expected) in [(&scenario, 357), (&copied, 250)] {
        crash_kernel(&scenario.path);
        let store = worker::options().open(&scenario.path).unwrap();
        assert_eq!(number(&store, &store.snapshot().unwrap()), expected);
        assert_verified(&store);
    }
}

// ---- forks

/// Opens the store, closes all descriptors that the host did not open, and goes on, step by step.
fn closes_descriptors(path: &Path) {
    let few = Few::open(worker::options().open(path).unwrap()).unwrap();
    few.commits(10, true).unwrap();
    // SAFETY: this role uses no descriptors but the standard three; the store must not need any.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    // Their numbers come to name other files, which the store must leave alone.
    let others: Vec<std::fs::File> = (0..40).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    few.commits(10, true).unwrap();
    assert_eq!(number(&few.store, &few.store.snapshot().unwrap()), 20);
    // More readers than the table has at first: it grows, by a file that must be opened anew.
    let mut readers = Vec::new();
    for n in 0..1100 {
        if n % 100 == 0 {
            few.commits(1, true).unwrap();
        }
        readers.push(few.store.durable_snapshot().unwrap());
    }
    for (n, reader) in readers.iter().enumerate() {
        assert_eq!(number(&few.store, reader), 21 + n as u64 / 100);
    }
    few.store.checkpoint().unwrap();
    say("closed");
    while let Some(line) = listen() {
        match line.as_str() {
            "commit" => say(few.commits(10, true).unwrap()),
            "begin" => {
                let txn = few.store.begin().unwrap();
                say("begun");
                listen();
                txn.rollback();
                say("ended");
            }
            other => panic!("no command {other}"),
        }
    }
    drop((readers, few));
    assert!(others.iter().all(|file| file.metadata().is_ok()), "a descriptor was closed that was not the store's");
}

/// Interleaving 11: the host closes all descriptors that it did not open, right after the store was
/// opened, and their numbers come to name other files. A liveness byte held by a descriptor would
/// be free, and its owner reaped while it lives. A descriptor used unchecked would write into a
/// file of the host.
#[test]
fn the_host_closes_all_descriptors() {
    let _limit = limit();
    let scenario = Scenario::new();
    let mut host = spawn("interleavings::lives::closes", &scenario.path, &[]);
    assert_eq!(host.line(0), "closed");
    let store = worker::options().open(&scenario.path).unwrap();
    let pid = host.pid();
    let is_client = || store.stats().unwrap().clients.iter().any(|client| client.pid == pid);
    std::thread::sleep(Duration::from_millis(250));
    assert!(is_client(), "it was taken for dead");
    // Its readers hold more slots than one chunk of the table has.
    assert!(store.stats().unwrap().readers.len() > 1024);
    assert_eq!(host.ask("begin"), "begun");
    assert!(matches!(store.begin_timeout(Duration::from_millis(100)), Err(Error::LockTimeout { .. })));
    assert_eq!(host.ask("end"), "ended");
    // The logger is killed: the host, which alone waits for one, starts its successor.
    let logger = store.stats().unwrap().logger_pid.unwrap();
    drop(store);
    signal(logger as i32, libc::SIGKILL);
    wait_until(|| !exists(logger));
    assert_eq!(host.ask("commit"), "41");
    let store = worker::options().open(&scenario.path).unwrap();
    assert_ne!(store.stats().unwrap().logger_pid, Some(logger));
    assert!(store.stats().unwrap().clients.iter().any(|client| client.pid == pid));
    assert_eq!(store.stats().unwrap().reaped, 0);
    assert_verified(&store);
    assert!(host.wait(), "its descriptors, or it, came to harm");
}

// ---- the logger's leaving

/// Interleaving 14: the logger decides to leave just as a client comes: before it has the
/// initialisation lock, with it, and when its byte is free but the lock is not. The client gets in,
/// and is never left with a logger that is on its way out.
#[test]
fn the_logger_leaves_as_a_client_comes() {
    let _limit = instrumented::limit_after_build();
    for point in ["logger.unneeded", "logger.leave_begun", "logger.byte_dropped"] {
        let scenario = Scenario::new();
        let hold = scenario.hold_point("hold");
        hold.arm();
        let mut brief = scenario.start("interleavings::lives::brief", &[], &[hold.at(point)], "");
        hold.wait();
        assert!(brief.wait());
        let mut comer = spawn("interleavings::lives::worker", &scenario.path, &[]);
        std::thread::sleep(Duration::from_millis(150));
        // Without the initialisation lock, the logger has not left: the client joins it.
        let joined = point == "logger.unneeded";
        assert_eq!(!comer.lines().is_empty() && is_logger_alive(&scenario.path), joined, "{point}");
        let released = Instant::now();
        hold.release();
        comer.hear_prefix("ready");
        assert_eq!(comer.ask("commit 20 durable"), "20");
        eprintln!("{point}: durable {:?} after", released.elapsed());
        assert!(released.elapsed() < HANGS, "{point}: {:?}", released.elapsed());
        // It stays, although the idle time that the first client set is over.
        let logger = Figures::ask(&mut comer).logger_pid;
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(comer.ask("commit 20 durable"), "40");
        assert_eq!(Figures::ask(&mut comer).logger_pid, logger, "{point}");
        assert!(exists(logger as u32));
        comer.ask("checkpoint");
        assert_eq!(comer.ask("verify"), "clean");
        comer.kill();
        crash_kernel(&scenario.path);
        let store = worker::options().open(&scenario.path).unwrap();
        assert_eq!(number(&store, &store.snapshot().unwrap()), 40);
        drop(store);
        kill_loggers(&scenario.path);
    }
}

/// Whether a logger serves the store.
fn is_logger_alive(path: &Path) -> bool {
    let store = Store::options().create(false).open(path);
    store.is_ok_and(|store| store.stats().unwrap().logger_pid.is_some())
}
