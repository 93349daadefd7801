//! Goal: a feed delivers every committed change, once, in order, by transactions, to each consumer,
//! from any position; if it can't, it returns an error.
//!
//! Method: one thing at a time, through the public API, with other processes where they matter.
//! `model` compares random histories.

mod deaths;
mod fuzz;
mod lives;
mod model;
mod retention;
mod rolled_back;

use crate::common::{HANGS, Role, TestStore, assert_clean, kill_logger, limit, listen, say, send, wait_until};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use untorn::{Change, ChangeKind, Changes, Durability, Error, Feed, Options, Store, TxnId};

const BOTH: [Feed; 2] = [Feed::Visible, Feed::Durable];

/// A small ring and small segments, so that little data goes far.
fn small(options: &mut Options) {
    options.ring_size(64 << 10).segment_size(256 << 10).max_size(256 << 20);
}

fn now(store: &Store) -> TxnId {
    store.snapshot().unwrap().txn_id()
}

/// All changes up to `until`.
fn drain(changes: &mut Changes, until: TxnId) -> Vec<Change> {
    let mut found = Vec::new();
    while changes.resume_from() < until {
        match changes.try_next(Duration::from_millis(100)).unwrap() {
            Some(change) => found.push(change),
            None => assert!(changes.resume_from() <= until),
        }
    }
    found
}

/// A change as text.
fn text(change: &Change) -> String {
    let value = change.value().map_or("-".into(), |value| value.escape_ascii().to_string());
    let mark = if change.last_in_txn() { "." } else { "," };
    format!("{}/{}={value}{mark}", change.keyspace(), change.key().escape_ascii())
}

fn texts(changes: &[Change]) -> Vec<String> {
    changes.iter().map(text).collect()
}

#[test]
fn every_change_in_order_and_by_transaction() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let (users, other) = (store.keyspace("users").unwrap(), store.keyspace("other").unwrap());
    users.put(b"a", b"1").unwrap();
    let mut txn = store.begin().unwrap();
    txn.put(&users, b"b", b"2").unwrap();
    txn.put(&other, b"c", b"3").unwrap();
    txn.delete(&users, b"a").unwrap();
    txn.commit().unwrap();
    let mut rolled_back = store.begin().unwrap();
    rolled_back.put(&users, b"never", b"").unwrap();
    rolled_back.rollback();
    let last = users.put(b"d", b"").unwrap();
    for feed in BOTH {
        let from = |from| drain(&mut store.changes(from, feed).unwrap(), last);
        let all = from(TxnId::ZERO);
        assert_eq!(texts(&all), ["users/a=1.", "users/b=2,", "other/c=3,", "users/a=-.", "users/d=."]);
        let kinds: Vec<ChangeKind> = all.iter().map(Change::kind).collect();
        use ChangeKind::{Delete, Put};
        assert_eq!(kinds, [Put, Put, Put, Delete, Put]);
        assert_eq!(all[4].txn_id(), last);
        // From each transaction on, the rest.
        for (index, change) in all.iter().enumerate().filter(|(_, change)| change.last_in_txn()) {
            assert_eq!(from(change.txn_id()), all[index + 1..]);
        }
    }
}

#[test]
fn filters_by_keyspace_and_prefix() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let (users, other) = (store.keyspace("users").unwrap(), store.keyspace("other").unwrap());
    let mut txn = store.begin().unwrap();
    for (keyspace, key) in [(&users, "ab1"), (&other, "ab2"), (&users, "ac3"), (&users, "ab4"), (&other, "x")] {
        txn.put(keyspace, key.as_bytes(), b"v").unwrap();
    }
    let first = txn.commit().unwrap().txn_id();
    let last = other.put(b"ab5", b"v").unwrap();
    let all = || store.changes(TxnId::ZERO, Feed::Visible).unwrap();
    let mut of_users = all().keyspace("users");
    assert_eq!(texts(&drain(&mut of_users, last)), ["users/ab1=v,", "users/ac3=v,", "users/ab4=v."]);
    let mut by_prefix = all().keyspace("users").prefix(b"ab");
    assert_eq!(by_prefix.try_next(HANGS).unwrap().unwrap().key(), b"ab1");
    assert_eq!(by_prefix.resume_from().sequence(), first.sequence() - 1, "the transaction is not done");
    let last_one = by_prefix.try_next(HANGS).unwrap().unwrap();
    assert_eq!((text(&last_one).as_str(), by_prefix.resume_from()), ("users/ab4=v.", first));
    assert_eq!(texts(&drain(&mut all().prefix(b"ab5"), last)), ["other/ab5=v."]);
    assert_eq!(drain(&mut all().keyspace("unused"), last), []);
}

#[test]
fn a_key_that_changes_twice_in_a_transaction_comes_once() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    let from = now(&store);
    let mut txn = store.begin().unwrap();
    for (key, value) in [(b"a", b"1"), (b"b", b"1"), (b"a", b"2")] {
        txn.put(&keys, key, value).unwrap();
    }
    txn.delete(&keys, b"b").unwrap();
    let small_one = txn.commit().unwrap().txn_id();
    assert_eq!(texts(&drain(&mut store.changes(from, Feed::Visible).unwrap(), small_one)), ["keys/a=2,", "keys/b=-."]);
    // Also in one that streams.
    let mut txn = store.begin().unwrap();
    for round in 0..4_u64 {
        for key in 0..100_u64 {
            txn.put(&keys, &key.to_be_bytes(), &[&round.to_be_bytes()[..], &[7; 500]].concat()).unwrap();
        }
    }
    let streamed = txn.commit().unwrap().txn_id();
    let changes = drain(&mut store.changes(small_one, Feed::Durable).unwrap(), streamed);
    assert_eq!(changes.len(), 100);
    for (key, change) in changes.iter().enumerate() {
        assert_eq!(change.key(), (key as u64).to_be_bytes());
        assert_eq!(change.value().unwrap()[..8], 3_u64.to_be_bytes());
        assert_eq!(change.last_in_txn(), key == 99);
    }
}

#[test]
fn waits_and_wakes() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keys = store.keyspace("keys").unwrap();
    for feed in BOTH {
        let mut changes = store.changes(now(&store), feed).unwrap();
        let start = Instant::now();
        assert_eq!(changes.try_next(Duration::from_millis(150)).unwrap(), None);
        assert!(start.elapsed() >= Duration::from_millis(150));
        let waiting = std::thread::spawn(move || changes.next().unwrap().unwrap());
        std::thread::sleep(Duration::from_millis(300));
        keys.put(b"woken", b"up").unwrap();
        assert_eq!(text(&waiting.join().unwrap()), "keys/woken=up.");
    }
}

/// Commits that need no flush for long, and for which no waiter wakes the logger, are delivered
/// within milliseconds.
#[test]
fn visible_commits_are_told_soon_under_any_policy() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keys = store.keyspace("keys").unwrap();
    store.set_flush_policy(untorn::FlushPolicy::Every(Duration::from_secs(600))).unwrap();
    let mut changes = store.changes(now(&store), Feed::Visible).unwrap();
    let (sender, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(Some(change)) = changes.try_next(HANGS) {
            let _ = sender.send((Instant::now(), change));
        }
    });
    let mut delays = Vec::new();
    for n in 0..40_u64 {
        std::thread::sleep(Duration::from_millis(10));
        let start = Instant::now();
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, b"k", &n.to_be_bytes()).unwrap();
        txn.commit().unwrap();
        let (at, change) = told.recv_timeout(HANGS).unwrap();
        assert_eq!(change.value().unwrap(), n.to_be_bytes());
        delays.push(at.saturating_duration_since(start));
    }
    delays.sort();
    eprintln!("told after {:?} (median), {:?} (longest)", delays[20], delays[39]);
    // A busy machine delays some of them, a missing wake-up delays all.
    assert!(delays[0] < Duration::from_millis(30), "{delays:?}");
}

/// Others commit faster than this feed reads, and nothing of it is wanted.
#[test]
fn a_deadline_holds_where_nothing_that_comes_is_wanted() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keys = store.keyspace("keys").unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let value = vec![7; 30_000];
            while !ended.load(Ordering::Relaxed) {
                let mut txn = store.begin_with(Durability::Visible).unwrap();
                txn.put(&keys, b"k", &value).unwrap();
                txn.commit().unwrap();
            }
        });
        let mut answers = Vec::new();
        for feed in BOTH.into_iter().cycle().take(20) {
            let mut changes = store.changes(now(&store), feed).unwrap().keyspace("unused");
            let start = Instant::now();
            answers.push((changes.try_next(Duration::from_millis(20)), start.elapsed()));
        }
        ended.store(true, Ordering::Relaxed);
        for (answer, took) in answers {
            assert!(matches!(answer, Ok(None)) && took < HANGS, "{answer:?} after {took:?}");
        }
    });
}

#[test]
fn the_durable_feed_tells_nothing_that_is_only_visible() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(|options| {
        options.flush_policy(untorn::FlushPolicy::Every(Duration::from_secs(600)));
    });
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    let keys = txn.keyspace("keys").unwrap();
    txn.commit().unwrap();
    store.sync().unwrap();
    let from = now(&store);
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&keys, b"k", b"v").unwrap();
    txn.commit().unwrap();
    let mut visible = store.changes(from, Feed::Visible).unwrap();
    let mut durable = store.changes(from, Feed::Durable).unwrap();
    assert_eq!(text(&visible.try_next(HANGS).unwrap().unwrap()), "keys/k=v.");
    assert_eq!(durable.try_next(Duration::from_millis(300)).unwrap(), None);
    store.sync().unwrap();
    assert_eq!(text(&durable.try_next(HANGS).unwrap().unwrap()), "keys/k=v.");
}

#[test]
fn transactions_larger_than_the_ring_come_whole_or_not_at_all() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    let from = now(&store);
    let value = |n: u64| [&n.to_be_bytes()[..], &[n as u8; 900]].concat();
    let large = vec![5_u8; 300_000];
    // One that rolls back after it has streamed, one that commits, with a large value within, and a
    // short one.
    let mut txn = store.begin().unwrap();
    for n in 0..500_u64 {
        txn.put(&keys, &[&b"never"[..], &n.to_be_bytes()].concat(), &value(n)).unwrap();
    }
    txn.rollback();
    let mut txn = store.begin().unwrap();
    for n in 0..500_u64 {
        txn.put(&keys, &n.to_be_bytes(), &value(n)).unwrap();
        if n == 250 {
            txn.put(&keys, b"large", &large).unwrap();
        }
    }
    let streamed = txn.commit().unwrap().txn_id();
    let last = keys.put(b"short", b"").unwrap();
    for feed in BOTH {
        let changes = drain(&mut store.changes(from, feed).unwrap(), last);
        assert_eq!(changes.len(), 502);
        let (short, of_stream) = changes.split_last().unwrap();
        assert_eq!(short.key(), b"short");
        let mut n = 0_u64;
        for (index, change) in of_stream.iter().enumerate() {
            assert_eq!((change.txn_id(), change.last_in_txn()), (streamed, index == 500));
            if change.key() == b"large" {
                assert_eq!(change.value().unwrap(), large);
            } else {
                assert_eq!((change.key(), change.value().unwrap()), (&n.to_be_bytes()[..], &value(n)[..]));
                n += 1;
            }
        }
        // Only the large value, and then it is the last of its transaction.
        let large_only = drain(&mut store.changes(from, feed).unwrap().prefix(b"large"), last);
        assert_eq!((large_only.len(), large_only[0].last_in_txn()), (1, true));
    }
    assert_clean(&store);
}

#[test]
fn dropped_keyspaces_keep_their_names() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(small);
    let old = store.keyspace("name").unwrap();
    old.put(b"of the old", b"1").unwrap();
    let from = now(&store);
    old.put(b"k", b"1").unwrap();
    store.drop_keyspace("name").unwrap();
    let new = store.keyspace("name").unwrap();
    let last = new.put(b"k", b"2").unwrap();
    let expected = ["name/k=1.", "name/=-.", "name/k=2."];
    // The number was created before `from`, and the catalog has forgotten it.
    let changes = drain(&mut store.changes(from, Feed::Durable).unwrap(), last);
    assert_eq!(texts(&changes), expected);
    assert_eq!(changes[1].kind(), ChangeKind::DropKeyspace);
    assert_eq!(texts(&drain(&mut store.changes(from, Feed::Visible).unwrap().keyspace("name"), last)), expected);
    assert_eq!(drain(&mut store.changes(from, Feed::Visible).unwrap().keyspace("other"), last), []);
}

#[test]
fn ids_that_name_nothing_diverge() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let last = store.keyspace("keys").unwrap().put(b"k", b"v").unwrap();
    for wrong in [last.as_u64() + 1, u64::MAX, last.as_u64() + (1 << 44)] {
        let wrong = TxnId::from_u64(wrong);
        match store.changes(wrong, Feed::Visible) {
            Err(Error::Diverged { txn }) => assert_eq!(txn, wrong),
            other => panic!("{other:?}"),
        }
    }
    assert!(store.changes(last, Feed::Visible).is_ok());
}

/// Writes about so many bytes, in transactions of one key each; how many.
fn write(store: &Store, bytes: usize, tag: u64) -> u64 {
    let keys = store.keyspace("keys").unwrap();
    let count = (bytes / 1000) as u64;
    for n in 0..count {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, &(n % 100).to_be_bytes(), &[&(tag + n).to_be_bytes()[..], &[1; 950]].concat()).unwrap();
        txn.commit().unwrap();
    }
    store.sync().unwrap();
    count
}

/// The numbers that [`write`] gave, after `from`.
fn numbers(changes: &[Change]) -> Vec<u64> {
    changes.iter().map(|change| u64::from_be_bytes(change.value().unwrap()[..8].try_into().unwrap())).collect()
}

#[test]
fn from_the_beginning_over_checkpoints_and_restarts() {
    let _limit = limit();
    let dir = TestStore::new();
    let mut count = 0;
    for life in 0..4 {
        let store = dir.open_with(small);
        count += write(&store, 600_000, count);
        store.checkpoint().unwrap();
        count += write(&store, 100_000, count);
        if life == 1 {
            kill_logger(&store);
            count += write(&store, 100_000, count);
        }
        for feed in BOTH {
            let changes = drain(&mut store.changes(TxnId::ZERO, feed).unwrap(), now(&store));
            assert_eq!(numbers(&changes), (0..count).collect::<Vec<_>>(), "life {life}");
        }
        assert_clean(&store);
        drop(store);
        match life {
            0 => dir.stop_logger(),
            // Everything dies but the region; then without the region.
            _ => {
                let store = dir.open_with(small);
                kill_logger(&store);
                drop(store);
                if life == 2 {
                    std::fs::remove_file(dir.path.join("control")).unwrap();
                }
            }
        }
    }
}

/// A transaction that streams over several segments, others that roll back, and more commits than
/// the slots remember: a consumer that has read up to any of them resumes with the next.
#[test]
fn from_each_transaction_on() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(small);
    let keys = store.keyspace("keys").unwrap();
    let mut last = now(&store);
    for round in 0..4_u64 {
        for n in 0..30 {
            last = keys.put(&[round as u8, n], &[n; 300]).unwrap();
        }
        let mut txn = store.begin().unwrap();
        for n in 0..900_u64 {
            txn.put(&keys, &n.to_be_bytes(), &[round as u8; 900]).unwrap();
        }
        if round % 2 == 0 {
            last = txn.commit().unwrap().txn_id();
        } else {
            txn.rollback();
        }
    }
    for n in 0..100 {
        last = keys.put(b"k", &[n; 300]).unwrap();
    }
    let all = drain(&mut store.changes(TxnId::ZERO, Feed::Durable).unwrap(), last);
    assert_eq!(all.len(), 4 * 30 + 2 * 900 + 100);
    for recovered in [false, true] {
        let store = dir.open();
        for (index, change) in all.iter().enumerate().filter(|(_, change)| change.last_in_txn()) {
            // The very next one, and now and then the rest.
            let mut changes = store.changes(change.txn_id(), Feed::Durable).unwrap();
            let next = all.get(index + 1);
            if let Some(next) = next {
                assert_eq!(changes.try_next(Duration::ZERO).unwrap().as_ref(), Some(next), "after {}", change.txn_id());
            }
            if index % 7 == 0 {
                let mut changes = store.changes(change.txn_id(), Feed::Durable).unwrap();
                assert!(drain(&mut changes, last) == all[index + 1..], "after {}", change.txn_id());
            }
        }
        if !recovered {
            kill_logger(&store);
        }
    }
}

/// A line of the consumer: a transaction, and the numbers in it.
fn note(line: &str, position: &mut TxnId, seen: &mut Vec<u64>) {
    let mut numbers = line.split(' ').map(|number| number.parse().unwrap());
    *position = TxnId::from_u64(numbers.next().unwrap());
    seen.extend(numbers);
}

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    let store = Store::open(&role.store).unwrap();
    match role.name.as_str() {
        "writer" => {
            let keys = store.keyspace("keys").unwrap();
            for n in 0..role.number(0) {
                let mut txn = store.begin_with(Durability::Visible).unwrap();
                for half in 0..2 {
                    let value = [&(2 * n + half).to_be_bytes()[..], &[3; 200]].concat();
                    txn.put(&keys, &(2 * (n % 50) + half).to_be_bytes(), &value).unwrap();
                }
                txn.commit().unwrap();
                if n % 10 == 0 {
                    std::thread::sleep(Duration::from_millis(3));
                }
            }
            store.sync().unwrap();
        }
        "consumer" => {
            let feed = if role.arguments[1] == "Durable" { Feed::Durable } else { Feed::Visible };
            let mut line = String::new();
            for change in store.changes(TxnId::from_u64(role.number(0)), feed).unwrap() {
                let change = change.unwrap();
                if line.is_empty() {
                    line = change.txn_id().as_u64().to_string();
                }
                line += &format!(" {}", numbers(std::slice::from_ref(&change))[0]);
                if change.last_in_txn() {
                    say(std::mem::take(&mut line));
                }
            }
        }
        "forker" => deaths::forker(&store),
        other => panic!("no role {other}"),
    }
    let _ = listen;
}
