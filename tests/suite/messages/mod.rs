//! Goal: message-passing clients get what the store has, by every operation, and the same answers
//! as a direct client. What was acknowledged is as durable as requested. Clients and loggers come,
//! go and die in any order.
//!
//! Method: direct and message-passing clients of one store, in this process and in others, each
//! checking what the other did.

#![allow(unsafe_code)]

mod access;
mod bounds;
mod feed;
mod hostile;
mod lives;
mod ranges;

use crate::common::*;
use crate::common::{Role, listen, say};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use untorn::{Batch, CasOutcome, Client, CommitOutcome, Durability, Error, FlushPolicy, Keyspace, TxnId};

/// Forks, reports that, and keeps both alive: this process until it is killed, the child until
/// there is a file of the name `end` in the store's directory.
fn fork_and_wait(store: &Path, in_child: impl FnOnce()) -> ! {
    // SAFETY: the child calls nothing that a thread it has not got could have locked. The exception
    // is this library, which documents its behaviour after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        in_child();
        let start = Instant::now();
        // The test gets no more output of this process when the parent is gone. SAFETY: the child
        // writes there no more.
        unsafe { libc::close(1) };
        while store.exists() && !store.join("end").exists() && start.elapsed() < HANGS {
            std::thread::sleep(Duration::from_millis(5));
        }
        // SAFETY: ends the child without what its parent would do at its end.
        unsafe { libc::_exit(0) };
    }
    say("forked");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

trait Socket {
    fn socket(&self) -> PathBuf;
    fn client(&self) -> Client;
}

impl Socket for TestStore {
    fn socket(&self) -> PathBuf {
        self.path.join("logger.sock")
    }

    fn client(&self) -> Client {
        Client::connect(self.socket()).unwrap()
    }
}

/// More than one piece of a scan holds.
fn fill(keyspace: &Keyspace) {
    for number in 0..300u32 {
        keyspace.put(&number.to_be_bytes(), &[1; 8000]).unwrap();
    }
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

type Bounds<'k> = (Bound<&'k [u8]>, Bound<&'k [u8]>);

fn collect(scan: untorn::Scan<'_>) -> Records {
    scan.map(Result::unwrap).collect()
}

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    let socket = role.store.join("logger.sock");
    match &*role.name {
        // Puts, and prints what was acknowledged.
        "putter" => {
            let client = Client::connect(socket).unwrap();
            let name = role.arguments[0].clone();
            say("ready");
            for number in 0..role.number(1) {
                match client.put(&name, &number.to_be_bytes(), &number.to_le_bytes()) {
                    Ok(_) => say(number),
                    Err(Error::InDoubt { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        // Requests a lot and reads no reply.
        "silent" => {
            let client = Client::connect(socket).unwrap();
            client.get("k", b"big").unwrap();
            say("connected");
            loop {
                client.get("k", b"big").unwrap();
            }
        }
        // A direct client that holds the writer lock.
        "holder" => {
            let store = untorn::Store::open(&role.store).unwrap();
            let txn = store.begin().unwrap();
            say("holding");
            listen();
            drop(txn);
        }
        "forker" => {
            let client = Client::connect(socket).unwrap();
            client.get("k", b"a").unwrap();
            fork_and_wait(&role.store, || assert!(matches!(client.get("k", b"a"), Err(Error::Forked))));
        }
        "serving forker" => {
            let store = untorn::Store::options().logger_thread(true).open(&role.store).unwrap();
            let client = Client::connect(socket).unwrap();
            client.get("k", b"a").unwrap();
            fork_and_wait(&role.store, || assert!(matches!(store.snapshot(), Err(Error::Forked))));
        }
        "closer" => {
            let client = Client::connect(socket).unwrap();
            let mut foreign = Vec::new();
            for fd in 3..64 {
                // SAFETY: this process has nothing open beyond the standard three but what the host
                // is to close.
                unsafe { libc::close(fd) };
            }
            for number in 0..64 {
                foreign.push(std::fs::File::create_new(role.store.join(format!("foreign {number}"))).unwrap());
            }
            assert_eq!(client.get("k", b"a").unwrap().unwrap(), b"1");
            client.put("k", b"b", b"2").unwrap();
            drop(client);
            for file in &foreign {
                assert_eq!(file.metadata().unwrap().len(), 0, "a foreign file was written to");
            }
            drop(foreign);
            say("untouched");
        }
        name => panic!("{name}"),
    }
}

#[test]
fn every_operation() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let client = at.client();
    let direct = store.keyspace("direct").unwrap();
    direct.put(b"k", b"v").unwrap();

    // Reads see what direct clients wrote, and the other way round.
    assert_eq!(client.get("direct", b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(client.get("direct", b"absent").unwrap(), None);
    let first = client.put("users", b"alice", b"1").unwrap();
    let users = store.find_keyspace("users").unwrap().unwrap();
    let (value, version) = users.get_versioned(b"alice").unwrap().unwrap();
    assert_eq!((&*value, version), (&b"1"[..], first));
    assert_eq!(client.get_versioned("users", b"alice").unwrap(), Some((b"1".to_vec(), first)));
    assert_eq!(client.keyspaces().unwrap(), ["direct", "users"]);

    // Keyspaces that are not there.
    assert!(matches!(client.get("none", b"k"), Err(Error::NoKeyspace { name }) if name == "none"));
    assert!(matches!(client.delete("none", b"k"), Err(Error::NoKeyspace { .. })));
    assert!(matches!(client.scan("none", ..), Err(Error::NoKeyspace { .. })));
    assert!(matches!(client.multi_get("none", &[b"k"]), Err(Error::NoKeyspace { .. })));

    // Deletes.
    assert!(client.delete("users", b"alice").unwrap());
    assert!(!client.delete("users", b"alice").unwrap());
    assert_eq!(client.get("users", b"alice").unwrap(), None);

    // Several keys at once.
    client.put("users", b"", b"empty key").unwrap();
    client.put("users", b"e", b"").unwrap();
    let values = client.multi_get("users", ["e", "absent", "", "e"]).unwrap();
    assert_eq!(values, [Some(b"".to_vec()), None, Some(b"empty key".to_vec()), Some(b"".to_vec())]);
    assert_eq!(client.multi_get("users", [""; 0]).unwrap(), Vec::<Option<Vec<u8>>>::new());

    // The store as a whole.
    let covered = client.checkpoint().unwrap();
    let stats = client.stats().unwrap();
    assert!(stats.checkpointed >= covered && stats.keyspaces == 2, "{stats:?}");
    // One type, by message and direct; the server is a client, too.
    let direct: untorn::Stats = store.stats().unwrap();
    assert_eq!(
        (stats.committed, stats.page_size, stats.max_size),
        (direct.committed, direct.page_size, direct.max_size)
    );
    assert!(stats.clients.iter().map(|client| client.id).eq(direct.clients.iter().map(|client| client.id)));
    assert!(stats.latencies.flush.count() >= 1 && stats.logger_pid == direct.logger_pid);
    client.put_with("users", b"v", b"", Durability::Visible).unwrap();
    client.sync().unwrap();
    assert!(store.stats().unwrap().durable >= users.get_versioned(b"v").unwrap().unwrap().1);
    assert_eq!(client.notice(), None);
    assert_clean(&store);
}

#[test]
fn limits_are_errors_that_name_them() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let client = at.client();
    let long = vec![7; 16 << 20];
    client.put("k", b"16 MiB", &long).unwrap();
    assert_eq!(client.get("k", b"16 MiB").unwrap().unwrap(), long);
    assert_eq!(collect(client.scan("k", ..).unwrap()), [(b"16 MiB".to_vec(), long.clone())]);
    assert!(matches!(
        client.put("k", b"more", &vec![7; 17 << 20]),
        Err(Error::Limit { what: untorn::LimitKind::MessageLength, .. })
    ));
    assert!(matches!(client.put("k", &[1; 2000], b""), Err(Error::Limit { found: 2000, limit: 1024, .. })));
    assert!(matches!(client.put(&"n".repeat(256), b"", b""), Err(Error::Limit { found: 256, limit: 255, .. })));
    let too_many: Vec<&[u8]> = vec![b"k"; 65_537];
    assert!(matches!(client.multi_get("k", &too_many), Err(Error::Limit { found: 65_537, limit: 65_536, .. })));
    assert!(matches!(client.multi_get("k", &[b"16 MiB", b"16 MiB"]), Err(Error::Limit { .. })));
    // A direct client may store what no message can hold.
    store.keyspace("k").unwrap().put(b"longer", &vec![7; 17 << 20]).unwrap();
    assert!(matches!(client.get("k", b"longer"), Err(Error::Limit { .. })));
    assert!(client.prefix("k", b"longer").is_err());
    // A batch that goes wrong in the middle leaves nothing.
    let mut batch = Batch::new();
    batch.put("k", b"a", b"").put("new", b"b", b"").put("k", &[1; 2000], b"");
    assert!(matches!(client.commit(&batch), Err(Error::Limit { .. })));
    assert_eq!(client.get("k", b"a").unwrap(), None);
    assert_eq!(client.keyspaces().unwrap(), ["k"]);
    // The client goes on after each of these.
    assert!(matches!(client.put("untorn.own", b"k", b""), Err(Error::NotAllowed { .. })));
    client.put("k", b"a", b"").unwrap();
}

#[test]
fn scans_are_of_one_snapshot() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let keyspace = store.keyspace("k").unwrap();
    let mut model = BTreeMap::new();
    let mut txn = store.begin().unwrap();
    for number in 0..5000u32 {
        let (key, value) = (number.to_be_bytes().to_vec(), vec![number as u8; 1000]);
        txn.put(&keyspace, &key, &value).unwrap();
        model.insert(key, value);
    }
    let as_of = txn.commit().unwrap().txn_id();
    let model: Records = model.into_iter().collect();
    let client = at.client();

    // Five pieces, and writes between them.
    let mut scan = client.scan("k", ..).unwrap();
    assert_eq!(scan.txn_id(), as_of);
    let mut seen: Records = Vec::new();
    for index in 0..5000u32 {
        if index % 500 == 3 {
            keyspace.put(&index.to_be_bytes(), b"new").unwrap();
            client.delete("k", &(4999 - index).to_be_bytes()).unwrap();
            keyspace.put(&[index as u8, 0xff, 0xff], b"between").unwrap();
        }
        seen.push(scan.next().unwrap().unwrap());
    }
    assert!(scan.next().is_none());
    assert!(seen == model, "a scan saw what was written meanwhile");

    // Each range as a direct client has it, from both ends.
    let key = |number: u32| number.to_be_bytes();
    let snapshot = store.snapshot().unwrap();
    let (low, high) = (key(100), key(2700));
    let bounds: [Bounds<'_>; 7] = [
        (Bound::Unbounded, Bound::Unbounded),
        (Bound::Included(&low), Bound::Excluded(&high)),
        (Bound::Excluded(&low), Bound::Included(&high)),
        (Bound::Included(&high), Bound::Unbounded),
        (Bound::Unbounded, Bound::Excluded(&low)),
        (Bound::Included(&low), Bound::Included(&low)),
        (Bound::Included(b"z"), Bound::Unbounded),
    ];
    for bounds in bounds {
        let expected = snapshot.range(&keyspace, bounds).unwrap();
        let mut expected: Records = expected.map(|kv| kv.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect();
        assert!(collect(client.scan("k", bounds).unwrap()) == expected, "{bounds:?}");
        expected.reverse();
        assert!(collect(client.scan_back("k", bounds).unwrap()) == expected, "{bounds:?}");
    }
    // Edges in the wrong order hold nothing.
    for bounds in
        [(Bound::Included(&high[..]), Bound::Included(&low[..])), (Bound::Excluded(&low), Bound::Excluded(&low))]
    {
        assert!(collect(client.scan("k", bounds).unwrap()).is_empty());
    }
    let prefixed = collect(client.prefix("k", &[0, 0, 1]).unwrap());
    assert!(prefixed.iter().all(|(key, _)| key.starts_with(&[0, 0, 1])) && prefixed.len() >= 250);

    // A client has so many open, and those that are dropped count no longer.
    let open: Vec<_> = (0..8).map(|_| client.scan("k", ..).unwrap()).collect();
    assert!(matches!(client.scan("k", ..), Err(Error::Limit { limit: 8, .. })));
    drop(open);
    let _open: Vec<_> = (0..8).map(|_| client.scan("k", ..).unwrap()).collect();
}

#[test]
fn a_scan_that_is_left_lying_lets_its_snapshot_go() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let keyspace = store.keyspace("k").unwrap();
    fill(&keyspace);
    let client = at.client();
    let mut scan = client.scan("k", ..).unwrap();
    let as_of = scan.txn_id();
    let is_pinned = || store.stats().unwrap().readers.iter().any(|reader| reader.txn == as_of);
    // The flush pins what is durable, and that moves on.
    keyspace.put(b"later", b"").unwrap();
    scan.next().unwrap().unwrap();
    assert!(is_pinned());
    wait_until(|| !is_pinned());
    let last = scan.last().unwrap();
    assert!(matches!(last, Err(Error::Stale)), "{last:?}");
    client.get("k", b"").unwrap();
}

#[test]
fn batches_and_their_conditions() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let client = at.client();
    let version = client.put("a", b"x", b"1").unwrap();

    let mut batch = Batch::new();
    batch.put("b", b"y", b"2").expect_version("a", b"x", version).delete("a", b"x").expect_absent("a", b"z");
    assert_eq!(batch.len(), 4);
    let CommitOutcome::Committed(second) = client.commit(&batch).unwrap() else { panic!() };
    assert_eq!(client.get("a", b"x").unwrap(), None);
    assert_eq!(client.get_versioned("b", b"y").unwrap().unwrap().1, second);
    // The key is gone, so the same batch does nothing now, and returns the index of the failed
    // condition.
    assert_eq!(client.commit(&batch).unwrap(), CommitOutcome::Mismatch { index: 1, current: None });
    assert_eq!(client.get_versioned("b", b"y").unwrap().unwrap().1, second);
    let mut batch = Batch::new();
    batch.put("c", b"never", b"").expect_absent("none", b"k").expect_absent("b", b"y");
    assert_eq!(client.commit(&batch).unwrap(), CommitOutcome::Mismatch { index: 2, current: Some(second) });
    assert_eq!(client.keyspaces().unwrap(), ["a", "b"]);
    // Conditions are about what was there before.
    let mut batch = Batch::new();
    batch.put("b", b"n", b"").expect_absent("b", b"n").put("b", b"n", b"last").delete("b", b"y");
    assert!(matches!(client.commit(&batch).unwrap(), CommitOutcome::Committed(_)));
    assert_eq!(client.get("b", b"n").unwrap().unwrap(), b"last");
    // Nothing, and nothing but conditions.
    let before = store.snapshot().unwrap().txn_id();
    assert_eq!(client.commit(&Batch::new()).unwrap(), CommitOutcome::Committed(before));
    let mut batch = Batch::new();
    assert_eq!(client.commit(batch.expect_absent("b", b"y")).unwrap(), CommitOutcome::Committed(before));
    let mut batch = Batch::new();
    assert!(matches!(client.commit(batch.delete("none", b"y")), Err(Error::NoKeyspace { .. })));
    // One key.
    let CasOutcome::Swapped(first) = client.compare_and_swap("b", b"cas", None, b"1").unwrap() else { panic!() };
    let again = client.compare_and_swap("b", b"cas", None, b"2").unwrap();
    assert_eq!(again, CasOutcome::Mismatch { current: Some(first) });
    let lost = Some(TxnId::from_u64(first.as_u64() + 1));
    assert_eq!(
        client.compare_and_swap("b", b"cas", lost, b"2").unwrap(),
        CasOutcome::Mismatch { current: Some(first) }
    );
    assert!(matches!(client.compare_and_swap("b", b"cas", Some(first), b"2").unwrap(), CasOutcome::Swapped(_)));
    assert_clean(&store);
}

#[test]
fn cells_and_counters() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let client = at.client();
    assert!(matches!(client.cell_load("imu"), Err(Error::NoCell { name }) if name == "imu"));
    let first = client.cell_store("imu", &[1; 16]).unwrap();
    assert_eq!(client.cell_load("imu").unwrap(), (vec![1; 16], first));
    let cell = store.find_cell("imu").unwrap().unwrap();
    let second = cell.store(&[2; 16]).unwrap();
    assert_eq!(client.cell_load("imu").unwrap(), (vec![2; 16], second));
    assert_eq!(client.cell_load_version("imu", first).unwrap(), [1; 16]);
    for _ in 0..10 {
        client.cell_store("imu", &[3; 16]).unwrap();
    }
    assert!(matches!(client.cell_load_version("imu", first), Err(Error::Stale)));
    assert!(matches!(
        client.cell_store("imu", &[0; 15]),
        Err(Error::OtherCell { found: Some(16), wanted: Some(15), .. })
    ));
    assert!(client.cell_store("large", &[0; 4097]).is_err());
    assert!(client.cell_store("empty", &[]).is_err());
    assert!(matches!(client.cell_store("untorn.own", &[0; 8]), Err(Error::NotAllowed { .. })));
    client.cell_store_durable("imu", &[4; 16]).unwrap();

    assert_eq!(client.counter_get("hits").unwrap(), 0);
    assert!(store.cells().unwrap().iter().all(|cell| cell.name != "hits"), "reading made a counter");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = at.client();
                (0..100).for_each(|_| client.counter_add("hits", 2).unwrap());
            });
        }
    });
    assert_eq!(client.counter_get("hits").unwrap(), 800);
    assert_eq!(store.counter("hits").unwrap().get().unwrap(), 800);
    assert!(client.counter_add("imu", 1).is_err() && client.counter_get("imu").is_err());
    client.sync().unwrap();
    // What was durable is there when all processes have gone.
    drop((client, cell, store));
    at.stop_logger();
    let store = at.open();
    let client = at.client();
    assert_eq!(client.cell_load("imu").unwrap().0, [4; 16]);
    assert_eq!(client.counter_get("hits").unwrap(), 800);
    assert_clean(&store);
}

/// No increment of many clients that swap by versions gets lost.
#[test]
fn many_clients_at_once() {
    let _limit = limit();
    let at = TestStore::new();
    // The same on every disk: a commit waits some milliseconds for the flush, and others come
    // meanwhile.
    let store = at.open_with(|options| {
        options.flush_policy(FlushPolicy::Every(Duration::from_millis(10)));
    });
    let fsyncs = store.stats().unwrap().fsyncs;
    let (clients, rounds) = (32, 20u64);
    std::thread::scope(|scope| {
        for number in 0..clients {
            let at = &at;
            scope.spawn(move || {
                let client = at.client();
                for round in 0..rounds {
                    client.put(&format!("own {number}"), &round.to_be_bytes(), &round.to_le_bytes()).unwrap();
                    loop {
                        let found = client.get_versioned("shared", b"sum");
                        let found = if let Err(Error::NoKeyspace { .. }) = found { None } else { found.unwrap() };
                        let sum = found.as_ref().map_or(0, |(v, _)| u64::from_le_bytes(v[..].try_into().unwrap()));
                        let version = found.map(|(_, version)| version);
                        let outcome = client.compare_and_swap("shared", b"sum", version, &(sum + 1).to_le_bytes());
                        if let CasOutcome::Swapped(_) = outcome.unwrap() {
                            break;
                        }
                    }
                }
            });
        }
    });
    let sum = store.find_keyspace("shared").unwrap().unwrap().get(b"sum").unwrap().unwrap();
    assert_eq!(u64::from_le_bytes(sum[..].try_into().unwrap()), clients * rounds);
    for number in 0..clients {
        assert_eq!(store.find_keyspace(&format!("own {number}")).unwrap().unwrap().len().unwrap(), rounds);
    }
    let stats = store.stats().unwrap();
    let acknowledged = clients * rounds * 2;
    let fsyncs = stats.fsyncs - fsyncs;
    assert!(fsyncs < acknowledged / 4, "{fsyncs} fsyncs for {acknowledged} commits");
    assert_clean(&store);
}

#[test]
fn a_visible_write_is_answered_before_the_flush() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open_with(|options| {
        options.flush_policy(FlushPolicy::Every(Duration::from_secs(3600)));
    });
    let client = at.client();
    let start = Instant::now();
    let txn = client.put_with("k", b"a", b"", Durability::Visible).unwrap();
    let mut batch = Batch::new();
    batch.put("k", b"b", b"");
    let _ = client.commit_with(&batch, Durability::Visible).unwrap();
    assert!(start.elapsed() < HANGS);
    assert!(store.stats().unwrap().durable < txn);
    client.sync().unwrap();
    assert!(store.stats().unwrap().durable > txn);
    // A durable put waits for the flush, which the store's `sync` requests here.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.put("k", b"c", b"").unwrap());
        let keyspace = store.find_keyspace("k").unwrap().unwrap();
        wait_until(|| keyspace.get(b"c").unwrap().is_some());
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        store.sync().unwrap();
        let txn = waiting.join().unwrap();
        assert!(store.stats().unwrap().durable >= txn);
    });
}
