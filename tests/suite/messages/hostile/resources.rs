//! Hostile clients that use up what the server has: memory, connections, descriptors, time.

use super::*;
use crate::common::program::logger as logger_program;

/// Clients send requests without end and read no replies.
#[test]
fn floods() {
    let _limit = limit();
    let served = ServedStore::new("patience 1\n");
    served.store.keyspace("k").unwrap().put(b"big", &vec![1; 4 << 20]).unwrap();
    let before = served.resident_bytes();
    let get = wire::encode(&Request::Get { keyspace: "k", key: b"big" }).unwrap();
    let scan = wire::encode(&Request::Scan {
        keyspace: "k",
        lower: Edge::Open,
        upper: Edge::Open,
        is_reverse: false,
        piece_bytes: 1,
    })
    .unwrap();
    std::thread::scope(|scope| {
        for number in 0..16 {
            let (served, request) = (&served, if number % 2 == 0 { &get } else { &scan });
            scope.spawn(move || {
                let mut raw = served.raw().welcome();
                let mut sent = 0u64;
                while raw.send(request).is_ok() {
                    sent += 1;
                    assert!(sent < 1 << 20, "a peer that takes nothing is served without end");
                }
            });
        }
        let client = served.client();
        let start = Instant::now();
        let mut most = 0;
        for number in 0..100u32 {
            client.put("k", &number.to_be_bytes(), b"").unwrap();
            most = most.max(served.resident_bytes());
        }
        assert!(start.elapsed() < HANGS);
        assert!(most.saturating_sub(before) < 200 << 20, "{} bytes", most - before);
    });
    wait_until(|| served.store.stats().unwrap().readers.iter().all(|reader| reader.is_loggers));
    served.end();
}

/// What a connection keeps from one request to the next is small, whatever the request was.
#[test]
fn long_edges_and_prefixes_are_not_kept() {
    let _limit = limit();
    let served = ServedStore::new("");
    let keyspace = served.store.keyspace("k").unwrap();
    let longest = vec![b'b'; 1024];
    keyspace.put(&longest, b"2").unwrap();
    keyspace.put(b"c", b"3").unwrap();
    // Such an edge lies where it would lie for a direct client.
    let client = served.client();
    let edge = vec![b'b'; 20_000];
    let keys = |scan: untorn::Scan<'_>| scan.map(|record| record.unwrap().0).collect::<Vec<_>>();
    assert_eq!(keys(client.scan("k", &edge[..]..).unwrap()), [b"c".to_vec()]);
    assert_eq!(keys(client.scan("k", ..=&edge[..]).unwrap()), [b"a".to_vec(), longest.clone()]);
    assert_eq!(keys(client.scan_back("k", ..&edge[..]).unwrap()), [longest.clone(), b"a".to_vec()]);
    let before = served.resident_bytes();
    let far = vec![0xff; 6 << 20];
    let scan =
        Request::Scan { keyspace: "k", lower: Edge::Open, upper: Edge::With(&far), is_reverse: false, piece_bytes: 1 };
    let scan = wire::encode(&scan).unwrap();
    let follow = Request::Changes { from: None, feed: Feed::Visible, keyspace: None, prefix: &far };
    let follow = wire::encode(&follow).unwrap();
    let mut raws = Vec::new();
    for _ in 0..8 {
        let mut raw = served.raw().welcome();
        for _ in 0..8 {
            raw.send(&scan).unwrap();
            let reply = raw.reply().unwrap();
            assert!(matches!(wire::decode(&reply), Ok(Reply::Piece { scan: 1.., .. })));
        }
        raw.send(&follow).unwrap();
        let reply = raw.reply().unwrap();
        assert!(matches!(crate::common::error_in(&reply), Some(Error::Limit { .. })));
        raws.push(raw);
    }
    let grown = served.resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes for 64 open scans");
    drop((raws, client));
    served.end();
}

/// The memory of long messages is reused for a moment, then released although all their senders are
/// still connected.
#[test]
fn memory_of_long_messages_goes_back() {
    let _limit = limit();
    let served = ServedStore::new("");
    let clients: Vec<Client> = (0..4).map(|_| served.client()).collect();
    clients.iter().for_each(|client| assert_eq!(client.get("k", b"a").unwrap().unwrap(), b"1"));
    let before = served.resident_bytes();
    for (number, client) in clients.iter().enumerate() {
        let value = vec![number as u8; 16 << 20];
        client.put("k", b"long", &value).unwrap();
        assert!(client.get("k", b"long").unwrap().unwrap() == value);
    }
    wait_until(|| served.resident_bytes() < before + (6 << 20));
    // A shorter one has nothing of the longer ones that were in the same memory.
    for (client, bytes) in clients.iter().zip([100_000, 5 << 20, 9 << 20, 1 << 20]) {
        let value = vec![9; bytes];
        client.put("k", b"shorter", &value).unwrap();
        assert!(client.get("k", b"shorter").unwrap().unwrap() == value);
    }
    drop(clients);
    served.end();
}

/// Feeds whose next change is a large one, which their clients do not request.
#[test]
fn feeds_that_are_left_lying() {
    let _limit = limit();
    let served = ServedStore::new("");
    let keyspace = served.store.keyspace("k").unwrap();
    let from = served.store.snapshot().unwrap().txn_id();
    keyspace.put(b"small", b"").unwrap();
    keyspace.put(b"large", &vec![7; 16 << 20]).unwrap();
    // In one transaction, more than one of them too large for a piece.
    let mut txn = served.store.begin().unwrap();
    for number in 0..40u32 {
        txn.put(&keyspace, &number.to_be_bytes(), &vec![number as u8; 300_000]).unwrap();
    }
    txn.commit().unwrap();
    let open = Request::Changes { from: Some(from.as_u64()), feed: Feed::Durable, keyspace: None, prefix: b"" };
    let (open, next) = (wire::encode(&open).unwrap(), wire::encode(&Request::ChangesNext { wait_ms: 0 }).unwrap());
    let keys = |raw: &mut Raw| -> Vec<Vec<u8>> {
        raw.send(&next).unwrap();
        let reply = raw.reply().unwrap();
        let Ok(Reply::Changes { changes, .. }) = wire::decode(&reply) else { panic!() };
        changes.0.iter().map(|change| change.key.to_vec()).collect()
    };
    let before = served.resident_bytes();
    let mut raws: Vec<Raw> = (0..24).map(|_| served.raw().welcome()).collect();
    for raw in &mut raws {
        raw.send(&open).unwrap();
        raw.reply().unwrap();
        assert_eq!(keys(raw), [b"small".to_vec()]);
    }
    let grown = served.resident_bytes().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes for feeds that no client reads");
    // There is no room for what these take. They deliver all the changes all the same, in order,
    // once.
    for raw in raws.iter_mut().rev().take(2) {
        let mut told = Vec::new();
        while told.len() < 41 {
            told.extend(keys(raw));
        }
        assert_eq!(told[0], b"large");
        assert!(told[1..].iter().eq((0..40u32).map(|number| number.to_be_bytes()).collect::<Vec<_>>().iter()));
        assert!(keys(raw).is_empty());
    }
    drop(raws);
    served.end();
}

/// As many connections as a process may have files open: the log goes on all the same.
#[test]
fn connections_leave_descriptors_for_the_log() {
    let _limit = limit();
    let at = TestStore::new();
    drop(at.open_with(|options| {
        options.ring_size(64 << 10).segment_size(256 << 10);
    }));
    at.stop_logger();
    std::fs::write(at.path.join("access"), "connections 1000\n").unwrap();
    let mut logger = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" \"$1\" --idle never", logger_program().to_str().unwrap()])
        .arg(&at.path)
        .spawn()
        .unwrap();
    let socket = at.path.join("logger.sock");
    wait_until(|| Client::connect(&socket).is_ok());
    let client = Client::connect(&socket).unwrap();
    let crowd: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for number in 0..40u32 {
        client.put("k", &number.to_be_bytes(), &[1; 60_000]).unwrap();
    }
    client.checkpoint().unwrap();
    drop((crowd, client));
    at.stop_logger();
    assert!(logger.wait().unwrap().success());
}

/// A commit may have much time. If its peer has gone, the connection permit and the thread are
/// released all the same; the commit stays.
#[test]
fn a_peer_that_disconnects_before_a_deadline_frees_its_connection() {
    let _limit = limit();
    let served = ServedStore::new("connections 1\npatience 3600\n");
    let keys = served.store.keyspace("k").unwrap();
    let mut peer = served.raw().welcome();
    let durability = Durability::Within { micros: 3_000_000_000 };
    let request = Request::Put { keyspace: "k", key: b"b", value: b"1", durability };
    peer.send(&wire::encode(&request).unwrap()).unwrap();
    wait_until(|| keys.get(b"b").unwrap().is_some());
    // A peer that shuts down only its sending side still waits for its answer.
    peer.0.shutdown(std::net::Shutdown::Write).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(Client::connect(served.at.path.join("logger.sock")).is_err());
    drop(peer);
    wait_until(|| Client::connect(served.at.path.join("logger.sock")).is_ok());
    assert_eq!(keys.get(b"b").unwrap().unwrap(), b"1");
    // Its permit is in use until the server notices that this peer has gone as well.
    wait_until(|| Client::connect(served.at.path.join("logger.sock")).is_ok());
    drop(keys);
}

/// A logger that is requested to leave flushes a commit that still has time, and answers that it is
/// durable. It once left its client in doubt, though a flush followed.
#[test]
fn a_commit_that_has_time_is_answered_when_the_logger_leaves() {
    let _limit = limit();
    let served = ServedStore::new("patience 3600\n");
    let keys = served.store.keyspace("k").unwrap();
    let client = served.client();
    let time = untorn::Durability::Within(Duration::from_secs(1000));
    std::thread::scope(|scope| {
        let put = scope.spawn(|| client.put_with("k", b"b", b"1", time));
        wait_until(|| keys.get(b"b").unwrap().is_some());
        let begun = Instant::now();
        untorn::logger::stop_logger(&served.at.path, HANGS).unwrap();
        match put.join().unwrap() {
            Ok(_) => {}
            // A flush that takes a second is not waited for.
            Err(Error::NotDurable { .. }) if begun.elapsed() >= Duration::from_secs(1) => {}
            Err(error) => panic!("{error:?}, after {:?}", begun.elapsed()),
        }
    });
    assert_clean(&served.store);
}

/// A client that connects all the time does not keep the socket from being moved.
#[test]
fn the_socket_moves_in_a_storm() {
    let _limit = limit();
    let served = ServedStore::new("");
    let (old, new) = (served.at.path.join("logger.sock"), served.at.path.join("other.sock"));
    std::fs::write(served.at.path.join("access"), format!("socket \"{}\"\n", new.display())).unwrap();
    wait_until(|| {
        drop(UnixStream::connect(&old));
        std::thread::sleep(Duration::from_millis(20));
        new.exists()
    });
    wait_until(|| !old.exists());
    std::fs::remove_file(served.at.path.join("access")).unwrap();
    wait_until(|| old.exists());
    served.end();
}

/// Connections that come and go, without a word or with half of one.
#[test]
fn storms_of_connections() {
    let _limit = limit();
    let seed = seed("--test suite messages::hostile::resources::storms_of_connections");
    let served = ServedStore::new("patience 1\nconnections 1000\n");
    let client = served.client();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let served = &served;
            scope.spawn(move || {
                let mut dice = StdRng::seed_from_u64(seed ^ number);
                let mut kept = Vec::new();
                for _ in 0..300 {
                    let mut raw = served.raw();
                    let hello = ClientHello::OURS.encode();
                    let _ = raw.send(&hello[..dice.random_range(0..=hello.len())]);
                    if dice.random_range(0..10) == 0 {
                        kept.push(raw);
                    }
                }
            });
        }
        for number in 0..200u32 {
            client.put("k", &number.to_be_bytes(), b"").unwrap();
        }
    });
    drop(client);
    served.end();
}

#[test]
fn no_more_connections_than_there_may_be() {
    let _limit = limit();
    let served = ServedStore::new("connections 3\n");
    let clients: Vec<Client> = (0..3).map(|_| served.client()).collect();
    let refused = Client::connect(served.at.path.join("logger.sock"));
    assert!(matches!(&refused, Err(Error::Busy { what }) if what.contains('3')), "{refused:?}");
    // Connected clients are served; a released permit can be taken.
    clients.iter().for_each(|client| drop(client.get("k", b"a").unwrap()));
    drop(clients);
    wait_until(|| Client::connect(served.at.path.join("logger.sock")).is_ok());
    wait_until(|| served.store.stats().unwrap().clients.len() == 1);
    served.end();
}

/// Idle connections cost nothing: no thread of the logger spins.
#[test]
fn idle_connections_do_not_spin() {
    let _limit = limit();
    let served = ServedStore::new("");
    let clients: Vec<Client> = (0..50).map(|_| served.client()).collect();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", served.logger)).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(3));
    let used = ticks() - before;
    // A hundred ticks are a second.
    assert!(used < 60, "{used} ticks in 3 s of silence");
    drop(clients);
    served.end();
}
