//! Goal: a process that waits while another one recovers, takes over or leaves the store waits as
//! long as that one makes progress. It gives up when that one makes none. An open once failed after
//! a fixed time while the log was still being replayed.
//!
//! Method: instrumented processes whose loggers sleep at each record that they replay, or at each
//! piece of work that they show. So the whole takes several times the limit of the one that waits.
//! Another process is held. The limit of an open, which no option lowers, is lowered by a variable.

use crate::common::{Process, Role, listen, say};
use crate::workload::instrumented::{self, Scenario};
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Durability, Store};
use untorn_test_kit::loggers::kill_loggers;
use untorn_test_kit::memory_mark::{MARKED, drop_from_memory};

/// How long a waiter goes without visible progress: many times as long as a piece of work takes
/// here.
const LIMIT: Duration = Duration::from_secs(3);
/// Work that is slowed takes longer than this.
const LONG: Duration = Duration::from_secs(7);
/// Commits in the log, and pages in the checkpoint.
const COUNT: u32 = 350;

#[test]
fn child() {
    let Some(Role { name, store: path, .. }) = Role::of_this_process() else { return };
    match name.as_str() {
        "fills" => fills(&path),
        "opens" => {
            let opened = Store::options().logger_timeout(LIMIT).open(&path);
            match opened.and_then(|store| store.keyspace("keys")?.len()) {
                Ok(keys) => say(format_args!("opened {keys}")),
                Err(error) => say(error),
            }
        }
        other => panic!("no role {other}"),
    }
}

/// Fills the store, a commit for each key, and then executes commands.
fn fills(path: &Path) {
    let mut options = Store::options();
    options.logger_idle(Duration::from_millis(50)).logger_timeout(LIMIT);
    let store = options.open(path).unwrap();
    let keys = store.keyspace("keys").unwrap();
    for n in 0..COUNT {
        let durability = if n + 1 < COUNT { Durability::Visible } else { Durability::Durable };
        let mut txn = store.begin_with(durability).unwrap();
        txn.put(&keys, &n.to_be_bytes(), &[7; 2000]).unwrap();
        txn.commit().unwrap();
    }
    say(format_args!("filled {}", store.stats().unwrap().logger_pid.unwrap()));
    while let Some(line) = listen() {
        match line.as_str() {
            "put" => match keys.put(b"k", b"v") {
                Ok(_) => say("put"),
                Err(error) => say(error),
            },
            other => panic!("not told {other}"),
        }
    }
}

/// A store whose log is to be replayed.
fn left_in_disorder() -> Scenario {
    let scenario = Scenario::new();
    let mut filler = instrumented::spawn("progress::fills", &scenario.path, &[], &[]);
    filler.hear_prefix("filled");
    // The logger first: it would leave the store in order. The filler is stopped, or it might start
    // another one.
    filler.stop();
    kill_loggers(&scenario.path);
    filler.kill();
    // Otherwise the next logger would continue the region, and replay nothing.
    drop_from_memory(&scenario.path, &MARKED);
    scenario
}

/// Opens the store, by a process under these orders.
fn opener(scenario: &Scenario, orders: &str) -> Process {
    let ms = LIMIT.as_millis().to_string();
    instrumented::spawn(
        "progress::opens",
        &scenario.path,
        &[],
        &[("UNTORN_CRASH", orders), ("UNTORN_OPEN_TIMEOUT_MS", &ms)],
    )
}

#[test]
fn an_open_waits_as_long_as_recovery_makes_progress() {
    let _limit = instrumented::limit_after_build();
    let scenario = left_in_disorder();
    let began = Instant::now();
    let opener = opener(&scenario, "replay.committed@0:pause=25");
    assert_eq!(opener.line(0), format!("opened {COUNT}"));
    assert!(began.elapsed() > LONG, "recovery was not slowed: {:?}", began.elapsed());
}

#[test]
fn an_open_gives_up_when_recovery_makes_no_progress() {
    let _limit = instrumented::limit_after_build();
    let scenario = left_in_disorder();
    let hold = scenario.hold_point("hold");
    hold.arm();
    let stalled = opener(&scenario, &hold.at("recover.log_replayed"));
    hold.wait();
    let error = stalled.line(0);
    assert!(error.contains("has made no progress for 3s"), "{error}");
    // The logger is alive and goes on.
    hold.release();
    assert_eq!(opener(&scenario, "").line(0), format!("opened {COUNT}"));
}

#[test]
fn an_open_waits_as_long_as_a_logger_that_leaves_makes_progress() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let hold = scenario.hold_point("hold");
    let orders = format!("{},progress.stepped@0:pause=40", hold.at("logger.leave_begun"));
    let mut filler = instrumented::spawn("progress::fills", &scenario.path, &[], &[("UNTORN_CRASH", &orders)]);
    filler.hear_prefix("filled");
    hold.arm();
    assert!(filler.wait());
    hold.wait();
    let opener = opener(&scenario, "");
    let began = Instant::now();
    hold.release();
    assert_eq!(opener.line(0), format!("opened {COUNT}"));
    assert!(began.elapsed() > LONG, "leaving was not slowed: {:?}", began.elapsed());
}

/// A client waits for its commit while a new logger takes over from one that was killed.
#[test]
fn a_commit_waits_as_long_as_a_new_logger_makes_progress() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let orders = [("UNTORN_CRASH", "progress.stepped@0:pause=700")];
    let mut filler = instrumented::spawn("progress::fills", &scenario.path, &[], &orders);
    filler.hear_prefix("filled");
    kill_loggers(&scenario.path);
    let began = Instant::now();
    assert_eq!(filler.ask("put"), "put");
    assert!(began.elapsed() > LONG, "taking over was not slowed: {:?}", began.elapsed());
}
