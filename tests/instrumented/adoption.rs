//! Goal: a region is continued exactly as far as it was published, wherever its last writer died;
//! and a logger that dies while it continues or recovers a store leaves no region that the next one
//! would continue wrongly.
//!
//! Method: a writer or a logger of the instrumented build is killed at a named point, and with it
//! all other processes. The next open shows by the number of loggers that the region has had
//! whether it was continued or recovered.

use crate::common::{Process, Role, spawn};
use crate::workload::assert_verified;
use crate::workload::instrumented::{self, Scenario};
use crate::workload::worker::{self, Few, number};
use std::path::Path;
use untorn_test_kit::loggers::kill_loggers;
use untorn_test_kit::memory_mark::{MARKED, drop_from_memory, is_marked};

#[test]
fn child() {
    let Some(Role { name, store: path, .. }) = Role::of_this_process() else { return };
    assert_eq!(name, "worker");
    worker::work(&path);
}

/// A worker whose client alone passes crash points, under an order.
fn worker(path: &Path, order: &str) -> Process {
    let env = [("UNTORN_CRASH", order), ("UNTORN_CRASH_CLIENT", "1")];
    instrumented::spawn("adoption::worker", path, &[], &env)
}

/// Opens the store in a process whose loggers die at `point`, until it gives up.
fn logger_dies_at(scenario: &Scenario, point: &str) {
    let mut opener = scenario.start("adoption::worker", &[], &[format!("{point}:kill")], "");
    assert!(!opener.wait(), "{point}");
    kill_loggers(&scenario.path);
}

/// Opens the store and checks all of it: its last commit, and the number of loggers of its region.
#[track_caller]
fn check(scenario: &Scenario, last: u64, loggers: u64) {
    let store = worker::options().open(&scenario.path).unwrap();
    assert_eq!(number(&store, &store.snapshot().unwrap()), last);
    assert_eq!(store.stats().unwrap().logger_starts, loggers);
    assert_verified(&store);
    let few = Few::open(store).unwrap();
    assert_eq!(few.commits(20, true).unwrap(), last + 20);
    assert_verified(&few.store);
}

/// A store whose processes were killed after so many commits.
fn killed(commits: u64) -> Scenario {
    let scenario = Scenario::new();
    let mut worker = spawn("adoption::worker", &scenario.path, &[]);
    worker.hear_prefix("ready");
    assert_eq!(worker.ask(&format!("commit {commits} durable")), commits.to_string());
    worker.kill();
    kill_loggers(&scenario.path);
    scenario
}

#[test]
fn a_writer_dies_in_a_commit() {
    let _limit = instrumented::limit_after_build();
    let points = [
        ("commit.pages_written", false),
        ("commit.record_written", false),
        ("commit.before_publish", false),
        ("commit.published", true),
        ("commit.deadline_announced", true),
    ];
    for (point, is_published) in points {
        let scenario = Scenario::new();
        // The first commit creates the keyspace.
        let mut doomed = worker(&scenario.path, &format!("{point}@15:kill"));
        doomed.hear_prefix("ready");
        assert_eq!(doomed.ask("commit 10 durable"), "10");
        doomed.tell("commit 10 visible");
        assert!(!doomed.wait(), "{point}");
        kill_loggers(&scenario.path);
        eprintln!("{point}");
        check(&scenario, if is_published { 14 } else { 13 }, 2);
    }
}

/// Recovery writes pages that the region of the dead processes does not know, before the region of
/// its own has its name. If it dies in between, the old one must not be continued.
#[test]
fn a_logger_dies_in_a_recovery() {
    let _limit = instrumented::limit_after_build();
    for point in ["recover.header_rewritten", "recover.ring_replayed", "recover.before_rename"] {
        let scenario = killed(12);
        drop_from_memory(&scenario.path, &["control"]);
        assert!(is_marked(&scenario.path, "arena"));
        logger_dies_at(&scenario, point);
        assert!(!is_marked(&scenario.path, "arena"), "{point}");
        check(&scenario, 12, 1);
    }
}

#[test]
fn a_logger_dies_in_an_adoption() {
    let _limit = instrumented::limit_after_build();
    // Before it has changed anything: each of the next ones comes as far.
    let scenario = killed(12);
    assert!(MARKED.iter().all(|name| is_marked(&scenario.path, name)));
    logger_dies_at(&scenario, "adopt.checked");
    check(&scenario, 12, 2);
    // With the region in its hands: the next one recovers the store, and passes no such point.
    let scenario = killed(12);
    let mut opener = scenario.start("adoption::worker", &[], &["adopt.attached:kill".into()], "");
    opener.hear_prefix("ready");
    assert_eq!(opener.ask("commit 5 durable"), "17");
    opener.kill();
    kill_loggers(&scenario.path);
    check(&scenario, 17, 2);
}
