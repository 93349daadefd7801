//! Goal: a change feed by message delivers what a direct one delivers, in the same order, as far as
//! its client may read it. It goes on where it was when loggers die, and never leaves a gap.
//!
//! Method: direct feeds and feeds by message of one store, whose items must be the same, while
//! writers write, loggers are killed and connections break.

use crate::common::*;
use rustix::process::Signal;
use std::time::{Duration, Instant};
use untorn::{Change, ChangeKind, Client, Error, Feed, RemoteChanges, Store, TxnId};

const SECOND: Duration = Duration::from_secs(1);

struct ServedStore {
    at: TestStore,
    store: Store,
}

impl ServedStore {
    fn new() -> ServedStore {
        let at = TestStore::new();
        let store = at.open();
        ServedStore { at, store }
    }

    fn client(&self) -> Client {
        Client::connect(self.at.path.join("logger.sock")).unwrap()
    }

    /// All durable changes after `from`, as a direct client reads them.
    fn direct(&self, from: TxnId) -> Vec<Change> {
        self.store.sync().unwrap();
        let mut changes = self.store.changes(from, Feed::Durable).unwrap();
        std::iter::from_fn(|| changes.try_next(Duration::ZERO).unwrap()).collect()
    }
}

#[track_caller]
fn take(changes: &mut RemoteChanges, count: usize) -> Vec<Change> {
    let next = || changes.try_next(HANGS).unwrap().expect("there are more");
    std::iter::repeat_with(next).take(count).collect()
}

#[test]
fn the_same_as_a_direct_feed() {
    let _limit = limit();
    let served = ServedStore::new();
    let client = served.client();
    let from = served.store.snapshot().unwrap().txn_id();
    let mut now = client.changes_from_now(Feed::Visible).unwrap();
    assert!(now.try_next(Duration::ZERO).unwrap().is_none());
    let (a, b) = (served.store.keyspace("a").unwrap(), served.store.keyspace("b").unwrap());
    // Small ones, a transaction larger than a piece and than the ring, a large value, deletions, a
    // drop.
    for number in 0..100u32 {
        let mut txn = served.store.begin_with(untorn::Durability::Visible).unwrap();
        txn.put(&a, &number.to_be_bytes(), b"1").unwrap();
        txn.put(&b, &number.to_be_bytes(), &[2; 100]).unwrap();
        txn.delete(&a, &(number / 2).to_be_bytes()).unwrap();
        txn.commit().unwrap().wait_timeout(Duration::ZERO).unwrap();
    }
    let mut txn = served.store.begin().unwrap();
    for number in 0..3000u32 {
        txn.put(&b, &number.to_be_bytes(), &vec![3; 2000]).unwrap();
    }
    txn.commit().unwrap();
    a.put(b"before", &vec![5; 900_000]).unwrap();
    // Ranges, with an end and without one; and one that a transaction removed among other changes.
    assert_eq!(b.delete_range(500_u32.to_be_bytes()..1500_u32.to_be_bytes()).unwrap(), 1000);
    let mut txn = served.store.begin().unwrap();
    txn.put(&b, &2999_u32.to_be_bytes(), b"last").unwrap();
    assert_eq!(txn.delete_range(&b, 2500_u32.to_be_bytes()..).unwrap(), 500);
    txn.put(&b, &2600_u32.to_be_bytes(), b"again").unwrap();
    txn.commit().unwrap();
    a.put(b"large", &vec![4; 16 << 20]).unwrap();
    served.store.drop_keyspace("a").unwrap();
    client.put("c", b"k", b"").unwrap();

    let expected = served.direct(from);
    assert!(expected.iter().any(|change| change.kind() == ChangeKind::DropKeyspace));
    let ranges = expected.iter().filter(|change| change.kind() == ChangeKind::DeleteRange);
    assert_eq!(ranges.map(|change| change.end().is_some()).collect::<Vec<_>>(), [true, false]);
    assert_eq!(take(&mut now, expected.len()), expected);
    assert_eq!(now.resume_from(), expected.last().unwrap().txn_id());
    assert!(now.try_next(Duration::ZERO).unwrap().is_none());
    let mut durable = client.changes(from, Feed::Durable).unwrap();
    assert_eq!(take(&mut durable, expected.len()), expected);

    // Filters.
    let mut some = client.changes(from, Feed::Durable).unwrap().keyspace("b").prefix(&[0, 0, 0]);
    let mut direct = served.store.changes(from, Feed::Durable).unwrap().keyspace("b").prefix(&[0, 0, 0]);
    let wanted: Vec<Change> = std::iter::from_fn(|| direct.try_next(Duration::ZERO).unwrap()).collect();
    assert!(wanted.len() > 200 && wanted.len() < expected.len());
    assert_eq!(take(&mut some, wanted.len()), wanted);
    assert!(some.try_next(SECOND / 10).unwrap().is_none());
    // Also what does not match counts as delivered.
    assert_eq!(some.resume_from(), expected.last().unwrap().txn_id());

    // From in between, as from a place that was noted.
    let middle = &expected[150];
    let mut rest = client.changes(middle.txn_id(), Feed::Durable).unwrap();
    let after: Vec<Change> = expected.iter().filter(|change| change.txn_id() > middle.txn_id()).cloned().collect();
    assert_eq!(take(&mut rest, after.len()), after);
}

#[test]
fn places_that_are_not_there() {
    let _limit = limit();
    let served = ServedStore::new();
    let client = served.client();
    client.put("k", b"a", b"").unwrap();
    let future = TxnId::from_u64(served.store.snapshot().unwrap().txn_id().as_u64() + 100);
    let lost = client.changes(future, Feed::Visible);
    assert!(matches!(lost, Err(Error::Diverged { txn }) if txn == future), "{lost:?}");
    // A value that no message holds ends the feed there, with an error that does not go away.
    let from = served.store.snapshot().unwrap().txn_id();
    let keyspace = served.store.keyspace("k").unwrap();
    keyspace.put(b"b", b"before").unwrap();
    keyspace.put(b"c", &vec![0; 17 << 20]).unwrap();
    keyspace.put(b"d", b"after").unwrap();
    let mut changes = client.changes(from, Feed::Durable).unwrap();
    assert_eq!(take(&mut changes, 1)[0].key(), b"b");
    for _ in 0..2 {
        assert!(matches!(changes.try_next(SECOND), Err(Error::Limit { .. })));
    }
    let next = TxnId::from_u64(changes.resume_from().as_u64() + 1);
    assert_eq!(take(&mut client.changes(next, Feed::Durable).unwrap(), 1)[0].key(), b"d");
}

#[test]
fn waiting() {
    let _limit = limit();
    let at = TestStore::new();
    std::fs::create_dir(&at.path).unwrap();
    std::fs::write(at.path.join("access"), "patience 3600\n").unwrap();
    let served = ServedStore { store: at.open(), at };
    let client = served.client();
    client.put("k", b"a", b"").unwrap();
    let mut changes = client.changes_from_now(Feed::Durable).unwrap();
    let start = Instant::now();
    assert!(changes.try_next(SECOND / 2).unwrap().is_none());
    assert!(start.elapsed() >= SECOND / 2 && start.elapsed() < HANGS);
    // A waiting client gets the change when it happens, and delays no other request meanwhile.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| changes.next().unwrap().unwrap());
        std::thread::sleep(SECOND / 4);
        client.put("k", b"b", b"2").unwrap();
        assert_eq!(waiting.join().unwrap().key(), b"b");
    });
    // Waiting clients do not delay a logger that was requested to leave.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| changes.next().unwrap());
        std::thread::sleep(SECOND / 4);
        served.at.stop_logger();
        served.store.find_keyspace("k").unwrap().unwrap().put(b"c", b"3").unwrap();
        assert_eq!(waiting.join().unwrap().unwrap().key(), b"c");
    });
}

/// While loggers are killed, and then compared with what a direct client reads.
#[test]
fn loggers_die_under_a_feed() {
    let _limit = limit();
    let served = ServedStore::new();
    let from = served.store.snapshot().unwrap().txn_id();
    let client = served.client();
    let keyspace = served.store.keyspace("k").unwrap();
    let (writes, lives) = (1500u32, 5);
    std::thread::scope(|scope| {
        let followers: Vec<_> = [Feed::Durable, Feed::Visible]
            .into_iter()
            .map(|feed| {
                let mut changes = client.changes(from, feed).unwrap();
                scope.spawn(move || {
                    let mut heard: Vec<Change> = Vec::new();
                    while heard.last().is_none_or(|change| change.key() != b"end") {
                        match changes.try_next(SECOND) {
                            Ok(change) => heard.extend(change),
                            Err(Error::Disconnected { .. }) => {
                                // Broken off within a transaction, which comes again.
                                heard.retain(|change| change.txn_id() <= changes.resume_from());
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                    heard
                })
            })
            .collect();
        for number in 0..writes {
            let mut txn = served.store.begin_with(untorn::Durability::Visible).unwrap();
            for part in 0..number % 5 + 1 {
                txn.put(&keyspace, &(number % 40 * 8 + part).to_be_bytes(), &number.to_le_bytes()).unwrap();
            }
            txn.commit().unwrap();
            if number % (writes / lives) == writes / lives / 2 {
                let pid = served.store.stats().unwrap().logger_pid;
                pid.into_iter().for_each(|pid| send(pid, Signal::KILL));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        keyspace.put(b"end", b"").unwrap();
        let expected = served.direct(from);
        for follower in followers {
            assert!(follower.join().unwrap() == expected, "a feed by message differs from a direct one");
        }
    });
    assert!(served.store.stats().unwrap().logger_starts >= u64::from(lives));
}

/// A client gets no change that it may not read. Each of its transactions has a last change all the
/// same.
#[test]
fn only_what_may_be_read() {
    let _limit = limit();
    let Some((served, socket, _public)) = with_prefix("only_what_may_be_read", "public.") else { return };
    let from = served.store.snapshot().unwrap().txn_id();
    let names = ["public.a", "secret", "public.b"];
    let keyspaces = names.map(|name| served.store.keyspace(name).unwrap());
    for number in 0..60u32 {
        let mut txn = served.store.begin_with(untorn::Durability::Visible).unwrap();
        // Every order, and transactions without a readable change.
        for digit in 0..4 {
            let which = number / 3u32.pow(digit) % 3;
            txn.put(&keyspaces[which as usize], &[digit as u8], &number.to_le_bytes()).unwrap();
        }
        // Ranges follow the rights of their keyspace, too.
        txn.delete_range(&keyspaces[number as usize % 3], [1]..[3]).unwrap();
        txn.commit().unwrap().wait_timeout(Duration::ZERO).unwrap();
    }
    let mut expected = served.direct(from);
    expected.retain(|change| change.keyspace().starts_with("public."));
    let mut changes = connect_as_other(&socket, |client| client.changes(from, Feed::Durable).unwrap());
    let heard = take(&mut changes, expected.len());
    let position = |change: &Change| (change.txn_id(), change.keyspace().to_string(), change.key().to_vec());
    assert!(heard.iter().map(position).eq(expected.iter().map(position)));
    for (index, change) in heard.iter().enumerate() {
        let is_last = heard.get(index + 1).is_none_or(|next| next.txn_id() != change.txn_id());
        assert_eq!(change.last_in_txn(), is_last, "{index}");
    }
    assert!(changes.try_next(SECOND / 10).unwrap().is_none());
    let named = connect_as_other(&socket, |client| client.changes(from, Feed::Durable).unwrap().keyspace("secret"));
    let refused = { named }.try_next(SECOND);
    assert!(matches!(refused, Err(Error::NotAllowed { .. })), "{refused:?}");
}

const OTHER_UID: u32 = 54_323;

fn with_prefix(test: &str, prefix: &str) -> Option<(ServedStore, std::path::PathBuf, tempfile::TempDir)> {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "{test}: not root");
        eprintln!("SKIPPED {test}: not root");
        return None;
    }
    let public = tempfile::tempdir().unwrap();
    std::fs::set_permissions(public.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let socket = public.path().join("untorn.sock");
    let served = ServedStore::new();
    let rule = format!("socket \"{}\"\nallow {OTHER_UID} read-only \"{prefix}\"\n", socket.display());
    std::fs::write(served.at.path.join("access"), rule).unwrap();
    wait_until(|| socket.exists());
    Some((served, socket, public))
}

fn connect_as_other<T: Send>(socket: &std::path::Path, then: impl FnOnce(Client) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let id = rustix::process::Uid::from_raw(OTHER_UID);
        let connecting = scope.spawn(move || {
            rustix::thread::set_thread_res_uid(id, id, id).unwrap();
            then(Client::connect(socket).unwrap())
        });
        connecting.join().unwrap()
    })
}
