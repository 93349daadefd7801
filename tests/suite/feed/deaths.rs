//! Followers and loggers that are killed, stopped or forked.

use super::*;
use crate::common::spawn;

#[test]
fn a_logger_that_is_killed_is_replaced_for_a_follower() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open();
    let keys = store.keyspace("keys").unwrap();
    let mut durable = store.changes(now(&store), Feed::Durable).unwrap();
    for n in 0..5_u64 {
        kill_logger(&store);
        // After this commit, only the follower calls.
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, b"k", &n.to_be_bytes()).unwrap();
        txn.commit().unwrap();
        assert_eq!(durable.try_next(HANGS).unwrap().unwrap().value().unwrap(), n.to_be_bytes());
    }
}

/// A visible feed delivers without the logger. A durable feed reports that the logger is stopped,
/// and misses nothing.
#[test]
fn a_stopped_logger_under_followers() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(|options| {
        options.logger_timeout(Duration::from_millis(300));
    });
    let keys = store.keyspace("keys").unwrap();
    let [mut visible, mut durable] = BOTH.map(|feed| store.changes(now(&store), feed).unwrap());
    let waiting = std::thread::spawn(move || visible.try_next(HANGS));
    let logger = store.stats().unwrap().logger_pid.unwrap();
    send(logger, Signal::STOP);
    std::thread::sleep(Duration::from_millis(200));
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(&keys, b"k", b"v").unwrap();
    txn.commit().unwrap();
    // The logger is still stopped.
    assert_eq!(text(&waiting.join().unwrap().unwrap().unwrap()), "keys/k=v.");
    for _ in 0..2 {
        assert_eq!(durable.try_next(Duration::from_millis(50)).unwrap(), None);
        assert!(matches!(durable.next(), Some(Err(Error::LoggerStalled { .. }))));
    }
    send(logger, Signal::CONT);
    assert_eq!(text(&durable.try_next(HANGS).unwrap().unwrap()), "keys/k=v.");
}

#[test]
fn a_forked_child_is_refused() {
    let _limit = limit();
    let dir = TestStore::new();
    spawn("feed::forker", &dir.path, &[]).finish();
}

/// Forks beside no other test: a child would hold the locks of all stores that are open here.
pub(super) fn forker(store: &Store) {
    let mut changes = store.changes(TxnId::ZERO, Feed::Visible).unwrap();
    // SAFETY: the child calls what is checked here and ends at once, without unwinding or running
    // destructors.
    #[allow(unsafe_code)]
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = matches!(changes.try_next(Duration::ZERO), Err(Error::Forked))
            && matches!(store.changes(TxnId::ZERO, Feed::Visible), Err(Error::Forked));
        // SAFETY: ends the process.
        #[allow(unsafe_code)]
        unsafe {
            libc::_exit(if refused { 0 } else { 1 })
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    #[allow(unsafe_code)]
    unsafe {
        libc::waitpid(child, &raw mut status, 0)
    };
    assert_eq!(status, 0);
    assert_eq!(changes.try_next(Duration::ZERO).unwrap(), None);
}

#[test]
fn a_consumer_that_is_killed_resumes_without_gap_or_duplicate() {
    let _limit = limit();
    for feed in BOTH {
        let dir = TestStore::new();
        let store = dir.open_with(small);
        store.keyspace("keys").unwrap();
        let from = now(&store);
        let writer = spawn("feed::writer", &dir.path, &["3000"]);
        let mut seen: Vec<u64> = Vec::new();
        let mut position = from;
        let name = format!("{feed:?}");
        for round in 0..8 {
            let mut consumer = spawn("feed::consumer", &dir.path, &[&position.as_u64().to_string(), &name]);
            for _ in 0..50 + round * 20 {
                note(&consumer.hear(), &mut position, &mut seen);
            }
            if round == 4 {
                kill_logger(&store);
            }
            // What the consumer printed before it was killed counts as processed, whole
            // transactions only.
            for line in consumer.kill() {
                note(&line, &mut position, &mut seen);
            }
        }
        writer.finish();
        let rest = drain(&mut store.changes(position, feed).unwrap(), now(&store));
        seen.extend(numbers(&rest));
        assert_eq!(seen, (0..3000 * 2).collect::<Vec<u64>>());
        assert_clean(&store);
    }
}
