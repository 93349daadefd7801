//! Goal: the orders of events that would make a feed skip, repeat or invent something don't.
//!
//! Method: each order is forced, as in `interleavings`. A worker commits step by step; a follower
//! prints what its feed delivers. Both are processes of this executable with crash points. Planted
//! bugs show that the checks can fail.

use crate::common::{HANGS, Process, Role, say, wait_until};
use crate::workload::assert_verified;
use crate::workload::instrumented::{self, Scenario, caught};
use crate::workload::worker::{self, Few};
use std::path::Path;
use std::time::Duration;
use untorn::{Error, Feed, FlushPolicy, Store, TxnId};
use untorn_test_kit::loggers::crash_kernel;
use untorn_test_kit::sealed::expect_sealed;

#[test]
fn child() {
    let Some(Role { name, store: path, arguments }) = Role::of_this_process() else { return };
    match name.as_str() {
        "worker" => worker::work(&path),
        "follower" => follow(&path, &arguments),
        other => panic!("no role {other}"),
    }
}

/// The role: `from feed`. Prints `n number txn` for each commit of a worker, `s keyspace` once for
/// each transaction that changed another keyspace, `e error` when it ends.
fn follow(path: &Path, arguments: &[String]) {
    let store = worker::options().read_only(true).open(path).unwrap();
    let from = TxnId::from_u64(arguments[0].parse().unwrap());
    let feed = if arguments[1] == "durable" { Feed::Durable } else { Feed::Visible };
    let mut changes = match store.changes(from, feed) {
        Ok(changes) => changes,
        Err(error) => return say(format_args!("e {error:?}")),
    };
    say("ready");
    loop {
        match changes.try_next(HANGS) {
            Ok(None) => {}
            Ok(Some(change)) if change.keyspace() == "few" => {
                if change.key() == b"last" {
                    say(format_args!("n {} {}", expect_sealed(change.value().unwrap()), change.txn_id().as_u64()));
                }
            }
            Ok(Some(change)) if change.last_in_txn() => say(format_args!("s {}", change.keyspace())),
            Ok(Some(_)) => {}
            Err(error) => return say(format_args!("e {error:?}")),
        }
    }
}

/// The commits that a follower has printed, in its order, and their ids.
fn told(follower: &Process) -> Vec<(u64, TxnId)> {
    let lines = follower.lines().into_iter();
    let parse = |line: String| {
        let mut words = line.strip_prefix("n ")?.split(' ').map(|word| word.parse::<u64>().unwrap());
        Some((words.next()?, TxnId::from_u64(words.next()?)))
    };
    lines.filter_map(parse).collect()
}

fn numbers(follower: &Process) -> Vec<u64> {
    told(follower).into_iter().map(|(number, _)| number).collect()
}

fn start_worker(scenario: &Scenario, bug: &str) -> Process {
    let worker = scenario.start("interleavings::feed::worker", &[], &[], bug);
    worker.hear_prefix("ready");
    worker
}

fn now(path: &Path) -> TxnId {
    worker::options().read_only(true).open(path).unwrap().snapshot().unwrap().txn_id()
}

/// Interleaving 22. A consumer reads visible commits and records its position; the kernel crashes
/// before a sync has covered them. Its position names nothing any more, also after other commits
/// have taken their place.
#[test]
fn a_consumer_resumes_from_an_id_that_a_crash_took_back() {
    let _limit = instrumented::limit_after_build();
    let scenario = Scenario::new();
    let mut lost = Vec::new();
    let mut kept: Option<TxnId> = None;
    for life in 0..3 {
        let mut worker = start_worker(&scenario, "");
        worker.ask("commit 5 durable");
        let from = now(&scenario.path);
        let store = worker::options().open(&scenario.path).unwrap();
        store.set_flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).unwrap();
        // The logger reads the policy when it wakes.
        std::thread::sleep(Duration::from_millis(120));
        // What was lost before is refused, and what was durable goes on.
        for id in &lost {
            for feed in [Feed::Visible, Feed::Durable] {
                match store.changes(*id, feed) {
                    Err(Error::Diverged { txn }) => assert_eq!(txn, *id),
                    other => panic!("life {life}: {other:?}"),
                }
            }
        }
        if let Some(kept) = kept {
            let mut changes = store.changes(kept, Feed::Durable).unwrap().prefix(b"last");
            let next = changes.try_next(HANGS).unwrap().unwrap();
            assert_eq!(expect_sealed(next.value().unwrap()), 5 * life + 1);
        }
        drop(store);
        let follower =
            scenario.start("interleavings::feed::follower", &[&from.as_u64().to_string(), "visible"], &[], "");
        follower.hear_prefix("ready");
        worker.ask("commit 4 visible");
        wait_until(|| told(&follower).len() == 4);
        let heard = told(&follower);
        drop((worker, follower));
        crash_kernel(&scenario.path);
        lost.extend(heard.into_iter().map(|(_, id)| id));
        kept = Some(from);
    }
    let store = worker::options().open(&scenario.path).unwrap();
    let few = Few::open(store).unwrap();
    assert_eq!(few.commits(1, true).unwrap(), 16, "what was only visible was to be lost");
    assert!(lost.iter().all(|id| matches!(few.store.changes(*id, Feed::Visible), Err(Error::Diverged { .. }))));
    assert_verified(&few.store);
}

/// A follower stops between its check of the ring and its copy, while writers lap the ring. It
/// notices, and goes on from the segments.
#[test]
fn the_ring_is_overwritten_under_a_follower() {
    let _limit = instrumented::limit_after_build();
    for feed in ["visible", "durable"] {
        let scenario = Scenario::new();
        let mut worker = start_worker(&scenario, "");
        let hold = scenario.hold_point("copy");
        let orders = [hold.at("feed.before_copy")];
        let follower = scenario.start("interleavings::feed::follower", &["0", feed], &orders, "");
        follower.hear_prefix("ready");
        for round in 0..5 {
            hold.arm();
            worker.ask("commit 3 durable");
            hold.wait();
            worker.ask("commit 700 durable");
            hold.release();
            wait_until(|| told(&follower).len() == 703 * (round + 1));
        }
        assert_eq!(numbers(&follower), (1..=5 * 703).collect::<Vec<_>>());
    }
}

/// A transaction streams while it is followed, and rolls back, or its process is killed; then
/// others commit. A feed delivers nothing of it before it commits, nor afterwards.
fn a_stream_is_followed(bug: &str) {
    let scenario = Scenario::new();
    let mut worker = start_worker(&scenario, "");
    worker.ask("commit 1 durable");
    let followers =
        ["visible", "durable"].map(|feed| scenario.start("interleavings::feed::follower", &["0", feed], &[], bug));
    followers.iter().for_each(|follower| drop(follower.hear_prefix("ready")));
    let quiet = |name: &str| {
        let said = |follower: &Process| follower.lines().contains(&format!("s {name}"));
        assert!(!followers.iter().any(said), "a feed tells of a transaction that has not committed: {name}");
    };
    let hears = |count: usize, name: &str| {
        // A follower that has printed what it must not, or has failed, may print no more.
        let has_ended = |follower: &Process| {
            follower.lines().iter().any(|line| line.starts_with("e ") || *line == format!("s {name}"))
        };
        wait_until(|| followers.iter().all(|follower| told(follower).len() >= count || has_ended(follower)));
        quiet(name);
        assert!(followers.iter().all(|follower| told(follower).len() == count));
    };
    worker.ask("stream rolled-back 200");
    std::thread::sleep(Duration::from_millis(100));
    quiet("rolled-back");
    worker.ask("rollback");
    worker.ask("commit 3 durable");
    hears(4, "rolled-back");
    worker.ask("stream killed 200");
    worker.kill();
    let mut worker = start_worker(&scenario, "");
    worker.ask("commit 3 durable");
    hears(7, "killed");
    worker.ask("stream committed 200");
    std::thread::sleep(Duration::from_millis(100));
    quiet("committed");
    worker.ask("commit-stream");
    for follower in &followers {
        follower.hear_prefix("s committed");
        assert_eq!(numbers(follower), (1..=7).collect::<Vec<_>>());
    }
}

#[test]
fn streams_are_followed_that_commit_and_that_do_not() {
    let _limit = instrumented::limit_after_build();
    a_stream_is_followed("");
}

#[test]
fn planted_a_stream_that_is_told_before_it_commits_is_caught() {
    let _limit = instrumented::limit_after_build();
    let error = caught(|| a_stream_is_followed("feed-open-stream")).expect_err("the bug was not caught");
    eprintln!("feed-open-stream, caught: {error}");
}

/// What no sync has covered is not in the durable feed.
fn the_durable_feed_waits(bug: &str) {
    let scenario = Scenario::new();
    let mut worker = start_worker(&scenario, "");
    worker.ask("commit 2 durable");
    let store = worker::options().open(&scenario.path).unwrap();
    store.set_flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).unwrap();
    std::thread::sleep(Duration::from_millis(120));
    let follower = scenario.start("interleavings::feed::follower", &["0", "durable"], &[], bug);
    wait_until(|| told(&follower).len() == 2);
    worker.ask("commit 2 visible");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(numbers(&follower), [1, 2]);
    store.sync().unwrap();
    wait_until(|| told(&follower).len() == 4);
}

#[test]
fn planted_a_durable_feed_ahead_of_the_sync_is_caught() {
    let _limit = instrumented::limit_after_build();
    the_durable_feed_waits("");
    let error = caught(|| the_durable_feed_waits("feed-before-fsync")).expect_err("the bug was not caught");
    eprintln!("feed-before-fsync, caught: {error}");
}

/// A follower stops while everything that it has not read is recycled. It gets an error, and not
/// what comes next.
fn the_log_is_recycled_under_a_follower(bug: &str) {
    let scenario = Scenario::new();
    let store = worker::options().retain_changes(0, Duration::ZERO).open(&scenario.path).unwrap();
    let mut worker = start_worker(&scenario, "");
    let hold = scenario.hold_point("copy");
    let orders = [hold.at("feed.before_copy")];
    hold.arm();
    worker.ask("commit 3 durable");
    let follower = scenario.start("interleavings::feed::follower", &["0", "durable"], &orders, bug);
    hold.wait();
    let is_gone = |store: &Store| {
        let mut changes = store.changes(TxnId::ZERO, Feed::Durable)?;
        changes.try_next(Duration::ZERO)
    };
    let mut count = 3;
    while !matches!(is_gone(&store), Err(Error::Lagged { .. })) {
        worker.ask("commit 2000 durable");
        worker.ask("checkpoint");
        count += 2000;
    }
    hold.release();
    if bug.is_empty() {
        assert!(follower.hear_prefix("e ").starts_with("e Lagged"), "{:?}", follower.lines().last());
    } else {
        wait_until(|| numbers(&follower).last() == Some(&count));
    }
    let told = numbers(&follower);
    assert_eq!(told, (1..=told.len() as u64).collect::<Vec<_>>(), "a gap");
}

#[test]
fn planted_a_gap_where_the_log_is_gone_is_caught() {
    let _limit = instrumented::limit_after_build();
    the_log_is_recycled_under_a_follower("");
    let bug = "feed-skips-what-is-gone";
    let error = caught(|| the_log_is_recycled_under_a_follower(bug)).expect_err("the bug was not caught");
    assert!(error.contains("a gap"), "{error}");
    eprintln!("{bug}, caught: {}", error.lines().next().unwrap_or_default());
}
