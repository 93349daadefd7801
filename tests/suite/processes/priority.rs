//! Goal: an urgent commit is let in before the bulk commits that wait beside it, of other processes
//! and of its own. Bulk commits get in all the same.
//!
//! Method: one process holds the writer lock until bulk and urgent waiters have gathered behind it,
//! in processes and threads of their own, then lets go. The order of the transaction ids is the
//! order in which they were let in.

use crate::common::{Process, Role, TestStore, limit, listen, say, spawn};
use rustix::process::Signal;
use std::time::Duration;
use untorn::{Durability, Error, Store};

/// Time enough for a waiter to fall asleep in the queue, and less than bulk commits have patience.
const GATHER: Duration = Duration::from_millis(15);

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    let store = Store::open(&role.store).unwrap();
    let keyspace = store.keyspace("k").unwrap();
    let durability = if role.name == "urgent" { Durability::Durable } else { Durability::Visible };
    say("ready");
    while listen().is_some() {
        if role.name == "holder" {
            let txn = store.begin().unwrap();
            say("holds");
            listen();
            drop(txn);
            continue;
        }
        if role.name == "storm" {
            say("storms");
            loop {
                let mut txn = store.begin_with(Durability::Durable).unwrap();
                txn.put(&keyspace, b"urgent", b"v").unwrap();
                txn.submit().unwrap();
            }
        }
        say("waits");
        let mut txn = store.begin_with(durability).unwrap();
        txn.put(&keyspace, role.name.as_bytes(), b"v").unwrap();
        say(txn.commit().unwrap().txn_id().as_u64());
    }
}

/// Plays rounds until `good` ones are so many that a `chance` of each explains them no more, by
/// five standard deviations. On a busy machine a waiter may gather too late, or lose its turn
/// because it does not run in time, so that not each round is good. Returns the number of rounds.
#[track_caller]
fn rounds_that_beat(chance: f64, mut good: impl FnMut() -> bool) -> usize {
    const ROUNDS_MAX: usize = 1000;
    let mut count = 0;
    for rounds in 1..=ROUNDS_MAX {
        count += usize::from(good());
        let expected = chance * rounds as f64;
        if rounds >= 20 && count as f64 > expected + 5.0 * (expected * (1.0 - chance)).sqrt() {
            return rounds;
        }
    }
    panic!("{count} of {ROUNDS_MAX}, which a chance of {chance} explains");
}

/// The ids that waiters get that gather behind an open transaction, each in the order of `roles`.
fn ids(store: &Store, children: &mut [Process]) -> Vec<u64> {
    let txn = store.begin().unwrap();
    for child in &mut *children {
        assert_eq!(child.ask("go"), "waits");
    }
    std::thread::sleep(GATHER);
    drop(txn);
    children.iter().map(|child| child.hear().parse().unwrap()).collect()
}

#[test]
fn urgent_processes_are_let_in_first() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    store.keyspace("k").unwrap();
    let roles = ["bulk", "bulk", "bulk", "urgent"];
    let mut children = roles.map(|role| spawn(&format!("processes::priority::{role}"), &dir.path, &[]));
    children.iter().for_each(|child| child.expect("ready"));
    // Without classes a round of four has the last comer first once in four times at most.
    let rounds = rounds_that_beat(0.25, || {
        let ids = ids(&store, &mut children);
        ids[..3].iter().all(|bulk| *bulk > ids[3])
    });
    let waits = store.stats().unwrap().latencies.lock_wait;
    assert!(waits.urgent.count() >= rounds as u64 && waits.bulk.count() >= 3 * rounds as u64);
}

/// The threads of one process wait in its local queue. The head, a bulk commit, waits in the queue
/// of processes: it is boosted.
#[test]
fn an_urgent_thread_is_not_kept_behind_a_bulk_one_of_its_process() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keyspace = store.keyspace("k").unwrap();
    let mut others: Vec<Process> = (0..2).map(|_| spawn("processes::priority::bulk", &dir.path, &[])).collect();
    let mut holder = spawn("processes::priority::holder", &dir.path, &[]);
    others.iter().chain([&holder]).for_each(|child| child.expect("ready"));
    let commit = |durability| {
        let mut txn = store.begin_with(durability).unwrap();
        txn.put(&keyspace, b"k", b"v").unwrap();
        txn.commit().unwrap().txn_id().as_u64()
    };
    // Without the boost, the bulk thread is the first of three once in three times, and the urgent
    // one is mostly the last.
    rounds_that_beat(1.0 / 3.0, || {
        assert_eq!(holder.ask("go"), "holds");
        let (bulk, urgent) = std::thread::scope(|scope| {
            others.iter_mut().for_each(|child| assert_eq!(child.ask("go"), "waits"));
            let bulk = scope.spawn(|| commit(Durability::Visible));
            std::thread::sleep(GATHER / 3);
            let urgent = scope.spawn(|| commit(Durability::Durable));
            std::thread::sleep(GATHER);
            holder.tell("let go");
            (bulk.join().unwrap(), urgent.join().unwrap())
        });
        let ids: Vec<u64> = others.iter().map(|child| child.hear().parse().unwrap()).collect();
        // The bulk thread went first, in the urgent one's stead, and that one was not the last.
        ids.iter().all(|id| *id > urgent.min(bulk)) && ids.iter().any(|id| *id > urgent)
    });
}

/// Urgent commits without a pause, of two processes: a bulk one still gets its turn.
#[test]
fn bulk_commits_are_not_starved() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keyspace = store.keyspace("k").unwrap();
    let mut storms: Vec<Process> = (0..2).map(|_| spawn("processes::priority::storm", &dir.path, &[])).collect();
    for storm in &mut storms {
        storm.expect("ready");
        assert_eq!(storm.ask("go"), "storms");
    }
    let commits = || store.stats().unwrap().commits;
    let begun = commits();
    for n in 0..20_u32 {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keyspace, b"bulk", &n.to_le_bytes()).unwrap();
        txn.commit().unwrap();
    }
    // They last for as long as this does.
    while commits() < begun + 100 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A bulk commit waits for its share of the log while urgent ones come, but never longer than its
/// caller's limit. A thread with an open transaction gets the error at once. The logger is stopped,
/// so that what is published stays pending.
#[test]
fn a_bulk_commit_that_must_not_wait_does_not_wait_for_its_share() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keyspace = store.keyspace("k").unwrap();
    let store = Store::options().durability(Durability::Visible).open(&dir.path).unwrap();
    // The ring grows until it holds several of them, which it does not do while the logger is
    // stopped.
    for _ in 0..20 {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keyspace, b"large", &[7; 200 << 10]).unwrap();
        txn.commit().unwrap();
    }
    store.sync().unwrap();
    let logger = store.stats().unwrap().logger_pid.unwrap();
    crate::common::send(logger, Signal::STOP);
    let mut txn = store.begin_with(Durability::Durable).unwrap();
    txn.put(&keyspace, b"large", &[7; 200 << 10]).unwrap();
    txn.submit().unwrap();
    let mut txn = store.begin_with(Durability::Durable).unwrap();
    txn.put(&keyspace, b"larger", &[7; 200 << 10]).unwrap();
    txn.submit().unwrap();
    // A busy machine may delay some of them; before it was mended, each took as long as bulk
    // commits have patience.
    let took = |begin: &dyn Fn()| {
        let once = |_| {
            let start = std::time::Instant::now();
            begin();
            start.elapsed()
        };
        (0..10).map(once).min().unwrap()
    };
    let tried = took(&|| drop(store.begin_timeout(Duration::ZERO).unwrap()));
    let open = store.begin_with(Durability::Durable).unwrap();
    let refused = took(&|| assert!(matches!(store.begin(), Err(Error::TransactionOpen))));
    drop(open);
    // This one waits: there is something to wait for.
    let waited = took(&|| drop(store.begin().unwrap()));
    crate::common::send(logger, Signal::CONT);
    let patience = untorn::limits::BULK_PATIENCE;
    assert!(tried < patience && refused < patience && waited >= patience, "{tried:?} {refused:?} {waited:?}");
}
