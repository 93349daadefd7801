//! Goal: an urgent commit is let in before the bulk commits that wait beside it, of other processes and of its own; and who
//! is bulk gets in all the same.
//!
//! Method: one process holds the writer lock until bulk and urgent waiters have gathered behind it, in processes and threads of
//! their own, then lets go. The order of the transaction ids says in which order they were let in.

mod common;

use common::{Child, Role, TestStore, limit, listen, say};
use std::time::Duration;
use untorn::{Durability, Store};

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
        say("waits");
        let mut txn = store.begin_with(durability).unwrap();
        txn.put(&keyspace, role.name.as_bytes(), b"v").unwrap();
        say(txn.commit().unwrap().as_u64());
    }
}

/// The ids that waiters get who gather behind an open transaction, each in the order of `roles`.
fn ids(store: &Store, children: &mut [Child]) -> Vec<u64> {
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
    let _limit = limit(120);
    let dir = TestStore::new();
    let store = dir.open();
    store.keyspace("k").unwrap();
    let roles = ["bulk", "bulk", "bulk", "urgent"];
    let mut children = roles.map(|role| Child::spawn(role, &dir.path, &[]));
    children.iter().for_each(|child| child.expect("ready"));
    // On a busy machine the children may gather too late, or for so long that the bulk ones lose patience: most rounds count.
    let mut first = 0;
    let rounds = 20;
    for _ in 0..rounds {
        let ids = ids(&store, &mut children);
        first += usize::from(ids[..3].iter().all(|bulk| *bulk > ids[3]));
    }
    // Without classes a round of four has the last comer first once in four times at most.
    assert!(first * 10 > rounds * 7, "{first} of {rounds}");
    let waits = store.stats().unwrap().latencies.lock_wait;
    assert!(waits.urgent.count() >= rounds as u64 && waits.bulk.count() >= 3 * rounds as u64);
}

/// The threads of one process stand before its gate, one of them, a bulk one, in the queue of processes: it is lifted.
#[test]
fn an_urgent_thread_is_not_kept_behind_a_bulk_one_of_its_process() {
    let _limit = limit(120);
    let dir = TestStore::new();
    let store = dir.open();
    let keyspace = store.keyspace("k").unwrap();
    let mut others: Vec<Child> = (0..2).map(|_| Child::spawn("bulk", &dir.path, &[])).collect();
    let mut holder = Child::spawn("holder", &dir.path, &[]);
    others.iter().chain([&holder]).for_each(|child| child.expect("ready"));
    let commit = |durability| {
        let mut txn = store.begin_with(durability).unwrap();
        txn.put(&keyspace, b"k", b"v").unwrap();
        txn.commit().unwrap().as_u64()
    };
    let rounds = 20;
    let mut first = 0;
    for _ in 0..rounds {
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
        first += usize::from(ids.iter().all(|id| *id > urgent.min(bulk)) && ids.iter().any(|id| *id > urgent));
    }
    assert!(first * 10 > rounds * 7, "{first} of {rounds}");
}

/// Urgent commits without a pause, of two processes: a bulk one still gets its turn.
#[test]
fn bulk_commits_are_not_starved() {
    let _limit = limit(120);
    let dir = TestStore::new();
    let store = dir.open();
    let keyspace = store.keyspace("k").unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut txn = store.begin_with(Durability::Durable).unwrap();
                    txn.put(&keyspace, b"urgent", b"v").unwrap();
                    txn.commit_with(Durability::Visible).unwrap().txn_id();
                }
            });
        }
        for n in 0..20_u32 {
            let mut txn = store.begin_with(Durability::Visible).unwrap();
            txn.put(&keyspace, b"bulk", &n.to_le_bytes()).unwrap();
            txn.commit().unwrap();
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
