//! Goal: a store that was left in order loses nothing, and stays in order as long as nothing was
//! written, wherever its first client dies or the logger that begins the region behind it, or both.
//!
//! Method: the client or its logger runs the instrumented build and is killed or held at a named
//! point. The next processes must find the last commit, and write after it. The ids of their
//! transactions show whether the store counts as one that has lost some.

use crate::common::{Process, Role};
use crate::workload::assert_verified;
use crate::workload::instrumented::{self, Scenario};
use crate::workload::worker::{self, Few, number};
use untorn::TxnId;
use untorn_test_kit::loggers::{kill_loggers, loggers};
use untorn_test_kit::processes::wait_until;

/// The steps of the first client.
const OF_CLIENT: [&str; 3] = ["client.region_made", "client.region_placed", "client.entered"];
/// The steps of the logger until the region is begun, and whether the header is in use by then.
const OF_LOGGER: [(&str, bool); 5] = [
    ("logger.byte_taken", false),
    ("header.before_write", false),
    ("recover.header_rewritten", true),
    ("recover.segment_started", true),
    ("region.before_begin", true),
];
/// The steps of the logger after that.
const OF_BEGUN: [&str; 2] = ["recover.done", "logger.ready"];

#[test]
fn child() {
    let Some(Role { name, store: path, .. }) = Role::of_this_process() else { return };
    assert_eq!(name, "worker");
    worker::work(&path);
}

/// A store with 12 commits that was left in order, and the last transaction.
fn left_in_order() -> (Scenario, TxnId) {
    let scenario = Scenario::new();
    let few = Few::open(worker::options().open(&scenario.path).unwrap()).unwrap();
    assert_eq!(few.commits(12, true).unwrap(), 12);
    let last = few.store.snapshot().unwrap().txn_id();
    drop(few);
    untorn::logger::stop_logger(&scenario.path, untorn_test_kit::HANGS).unwrap();
    (scenario, last)
}

/// A worker whose process, or logger, or both act at a point, once over all of them.
fn worker(scenario: &Scenario, order: &str) -> Process {
    let once = scenario.path.with_file_name("once").display().to_string();
    let env = [("UNTORN_CRASH", order), ("UNTORN_CRASH_ONCE", &once)];
    instrumented::spawn("in_order_deaths::worker", &scenario.path, &[], &env)
}

/// Opens the store and checks all of it. With `in_order`, no transaction counts as lost: the next
/// one has the next id.
#[track_caller]
fn check(scenario: &Scenario, last: TxnId, in_order: bool, after: &str) {
    let store = worker::options().open(&scenario.path).unwrap();
    assert_eq!(number(&store, &store.snapshot().unwrap()), 12, "{after}");
    assert_eq!(store.snapshot().unwrap().txn_id(), last, "{after}");
    let few = Few::open(store).unwrap();
    assert_eq!(few.commits(1, true).unwrap(), 13);
    let next = few.store.snapshot().unwrap().txn_id();
    assert_eq!(next.incarnation() == last.incarnation(), in_order, "{after}: {last}, then {next}");
    assert_eq!(few.commits(20, true).unwrap(), 33);
    assert_verified(&few.store);
}

#[test]
fn the_first_client_dies() {
    let _limit = instrumented::limit_after_build();
    for point in OF_CLIENT {
        let (scenario, last) = left_in_order();
        assert!(!worker(&scenario, &format!("{point}:kill")).wait(), "{point}");
        assert_eq!(loggers(&scenario.path), 0, "{point}");
        check(&scenario, last, true, point);
    }
}

/// The client reads while its logger is held before each step, and writes only when another logger
/// has begun the region.
#[test]
fn the_logger_dies_behind_a_client() {
    let _limit = instrumented::limit_after_build();
    for (point, _) in OF_LOGGER {
        let (scenario, last) = left_in_order();
        let hold = scenario.hold_point("hold");
        hold.arm();
        let mut client = worker(&scenario, &hold.at(point));
        client.hear_prefix("ready");
        hold.wait();
        assert_eq!(client.ask("snapshot"), format!("12 {}", last.as_u64()), "{point}");
        let heard = client.lines_count();
        client.tell("commit 1 durable");
        kill_loggers(&scenario.path);
        assert_eq!(client.line(heard), "13", "{point}");
        assert_eq!(client.ask("verify"), "clean", "{point}");
        let snapshot = client.ask("snapshot");
        assert_eq!(snapshot, format!("13 {}", last.as_u64() + 1), "{point}");
        client.kill();
        kill_loggers(&scenario.path);
        let store = worker::options().open(&scenario.path).unwrap();
        assert_eq!(number(&store, &store.snapshot().unwrap()), 13, "{point}");
        assert_verified(&store);
    }
}

/// Both die. As long as the header was not in use, the store is still in order.
#[test]
fn the_logger_and_the_client_die() {
    let _limit = instrumented::limit_after_build();
    let points = OF_LOGGER.into_iter().chain(OF_BEGUN.map(|point| (point, true)));
    for (point, is_in_use) in points {
        let (scenario, last) = left_in_order();
        let hold = scenario.hold_point("hold");
        hold.arm();
        let mut client = worker(&scenario, &hold.at(point));
        client.hear_prefix("ready");
        hold.wait();
        client.kill();
        kill_loggers(&scenario.path);
        // A region that was begun is adopted; one that was not is made anew.
        let is_begun = OF_BEGUN.contains(&point);
        check(&scenario, last, !is_in_use || is_begun, point);
    }
}

/// The client dies before its logger has come, and that logger goes on without it.
#[test]
fn the_client_dies_before_its_logger_comes() {
    let _limit = instrumented::limit_after_build();
    let (scenario, last) = left_in_order();
    let hold = scenario.hold_point("hold");
    hold.arm();
    let mut client = worker(&scenario, &hold.at("logger.byte_taken"));
    client.hear_prefix("ready");
    hold.wait();
    client.kill();
    hold.release();
    wait_until(|| instrumented::logger_of(&scenario.path).is_some());
    check(&scenario, last, true, "the client's death");
}
