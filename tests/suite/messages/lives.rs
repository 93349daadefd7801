//! Sockets; clients and loggers that exit, die, stop or fork while they are connected.

use super::*;

/// The logger stays while a client is connected, and leaves when none is.
#[test]
fn the_logger_stays_for_messages_and_leaves_without() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open_with(|options| {
        options.logger_idle(Duration::from_millis(100));
    });
    let pid = store.stats().unwrap().logger_pid.unwrap();
    let client = at.client();
    drop(store);
    std::thread::sleep(Duration::from_millis(500));
    assert!(exists(pid));
    client.put("k", b"a", b"1").unwrap();
    let second = at.client();
    drop(client);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(second.get("k", b"a").unwrap().unwrap(), b"1");
    drop(second);
    wait_until(|| !exists(pid));
    assert!(!at.socket().exists(), "the socket stayed");
    assert!(matches!(Client::connect(at.socket()), Err(Error::NotFound { .. })));
    // It left in order, and what it acknowledged is there.
    let store = at.open();
    assert_eq!(&*store.find_keyspace("k").unwrap().unwrap().get(b"a").unwrap().unwrap(), b"1");
}

/// A logger that is requested to leave ends the connections. A client goes on with the next logger.
#[test]
fn a_logger_that_is_told_to_leave_and_the_next_one() {
    let _limit = limit();
    let at = TestStore::new();
    std::fs::create_dir(&at.path).unwrap();
    std::fs::write(at.path.join("access"), "patience 3600\n").unwrap();
    let store = at.open();
    let keyspace = store.keyspace("k").unwrap();
    let client = at.client();
    client.put("k", b"a", b"1").unwrap();
    let mut scan = client.scan("k", ..).unwrap();
    // Connections do not hold it up: the server has more patience with them than a hanging test.
    at.stop_logger();
    keyspace.put(b"b", b"2").unwrap();
    assert_eq!(client.get("k", b"b").unwrap().unwrap(), b"2");
    client.put("k", b"c", b"3").unwrap();
    // All of the scan was there in its first piece.
    assert!(scan.next().unwrap().is_ok() && scan.next().is_none());
    drop(store);
    drop(keyspace);
    // Also while requests wait: for the writer lock here, which a direct client holds.
    let mut holder = spawn("messages::holder", &at.path, &[]);
    holder.expect("holding");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.put("k", b"d", b""));
        std::thread::sleep(Duration::from_millis(300));
        at.stop_logger();
        let ended = waiting.join().unwrap();
        assert!(matches!(ended, Err(Error::InDoubt { .. } | Error::LockTimeout { .. })), "{ended:?}");
    });
    holder.tell("end");
    holder.finish();
}

#[test]
fn the_logger_is_killed() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let keyspace = store.keyspace("k").unwrap();
    fill(&keyspace);
    let client = at.client();
    let mut scan = client.scan("k", ..).unwrap();
    scan.next().unwrap().unwrap();
    // No process starts another logger before the next write.
    let pid = store.stats().unwrap().logger_pid.unwrap();
    send(pid, Signal::KILL);
    wait_until(|| !exists(pid));
    let quick = Client::options().reconnect_timeout(Duration::from_millis(50)).connect(at.socket());
    assert!(matches!(quick, Err(Error::Disconnected { .. })), "{quick:?}");
    // A read finds the next logger by itself.
    std::thread::scope(|scope| {
        let read = scope.spawn(|| client.get("k", b"later").unwrap());
        std::thread::sleep(Duration::from_millis(100));
        keyspace.put(b"later", b"1").unwrap();
        let read = read.join().unwrap();
        assert!(read.is_none() || read.unwrap() == b"1");
    });
    // The scan's snapshot died with the logger, and the scan does not go on with another.
    let last = scan.by_ref().last().unwrap();
    assert!(matches!(last, Err(Error::Disconnected { .. })), "{last:?}");
    // A write whose answer is lost is in doubt: the logger is stopped, so that it can't answer, and
    // killed then.
    let pid = store.stats().unwrap().logger_pid.unwrap();
    send(pid, Signal::STOP);
    std::thread::scope(|scope| {
        let write = scope.spawn(|| client.put("k", b"doubt", b""));
        std::thread::sleep(Duration::from_millis(200));
        send(pid, Signal::KILL);
        assert!(matches!(write.join().unwrap(), Err(Error::InDoubt { .. })));
    });
    // A write that could not be sent has not happened, and is sent again.
    keyspace.put(b"start", b"another").unwrap();
    client.put("k", b"doubt", b"2").unwrap();
    kill_logger(&store);
    std::thread::scope(|scope| {
        let write = scope.spawn(|| client.put("k", b"again", b"3").unwrap());
        std::thread::sleep(Duration::from_millis(100));
        keyspace.put(b"start", b"another").unwrap();
        write.join().unwrap();
    });
    assert_eq!(&*keyspace.get(b"again").unwrap().unwrap(), b"3");
    assert_clean(&store);
}

/// What was acknowledged while the logger is killed again and again is there.
#[test]
fn acknowledged_writes_survive_kills() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let mut putters: Vec<Process> =
        (0..4).map(|number| spawn("messages::putter", &at.path, &[&format!("k{number}"), "100000"])).collect();
    putters.iter().for_each(|putter| putter.expect("ready"));
    let own = store.keyspace("own").unwrap();
    for life in 0..4u64 {
        std::thread::sleep(Duration::from_millis(300));
        kill_logger(&store);
        // Message-passing clients start no logger; this one does.
        own.put(b"life", &life.to_le_bytes()).unwrap();
    }
    for (index, putter) in putters.iter_mut().enumerate() {
        let acknowledged = putter.kill();
        assert!(acknowledged.len() > 10, "{acknowledged:?}");
        let keyspace = store.find_keyspace(&format!("k{index}")).unwrap().unwrap();
        for number in acknowledged.iter().map(|said| said.parse::<u64>().unwrap()) {
            assert_eq!(&*keyspace.get(&number.to_be_bytes()).unwrap().unwrap(), number.to_le_bytes());
        }
    }
    assert_clean(&store);
}

#[test]
fn clients_that_die_or_stop_block_no_other() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    store.keyspace("k").unwrap().put(b"big", &vec![1; 8 << 20]).unwrap();
    std::fs::write(at.path.join("access"), "patience 1\n").unwrap();
    let mut children: Vec<Process> = (0..4).map(|_| spawn("messages::silent", &at.path, &[])).collect();
    for child in &children {
        child.expect("connected");
        child.signal(Signal::STOP);
    }
    let client = at.client();
    let start = Instant::now();
    for number in 0..50u32 {
        client.put("k", &number.to_be_bytes(), b"").unwrap();
        assert!(start.elapsed() < HANGS);
    }
    // The stopped ones are cut off, and pin nothing.
    wait_until(|| store.stats().unwrap().readers.iter().all(|reader| reader.is_loggers));
    children.iter_mut().for_each(|child| drop(child.kill()));
    drop(client);
    at.client().get("k", b"big").unwrap();
}

#[test]
fn long_paths_and_names() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let mut path = dir.path().to_path_buf();
    for _ in 0..3 {
        path.push("d".repeat(100));
        std::fs::create_dir(&path).unwrap();
    }
    let path = path.join("store");
    let store = untorn::Store::open(&path).unwrap();
    let client = Client::connect(path.join("logger.sock")).unwrap();
    client.put("k", b"a", b"1").unwrap();
    drop(client);
    // The policy's place, whose directory has a long name.
    let socket = path.join("elsewhere.sock");
    std::fs::write(path.join("access"), format!("socket {:?}\n", socket.display().to_string())).unwrap();
    wait_until(|| socket.exists() && !path.join("logger.sock").exists());
    let client = Client::connect(&socket).unwrap();
    assert_eq!(client.get("k", b"a").unwrap().unwrap(), b"1");
    drop(client);
    drop(store);
    untorn::logger::stop_logger(&path, HANGS).unwrap();
    assert!(!socket.exists());
}

/// Inside of a process that uses the store itself, and in a child of it.
#[test]
fn a_logger_thread_serves_messages_too() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open_with(|options| {
        options.logger_thread(true);
    });
    let client = at.client();
    client.put("k", b"a", b"1").unwrap();
    assert_eq!(&*store.find_keyspace("k").unwrap().unwrap().get(b"a").unwrap().unwrap(), b"1");
    at.stop_logger();
    // The next one is a thread again.
    store.keyspace("k").unwrap().put(b"b", b"2").unwrap();
    assert_eq!(client.get("k", b"b").unwrap().unwrap(), b"2");
    assert_eq!(store.stats().unwrap().logger_pid, Some(std::process::id()));
    drop(store);
    assert_eq!(client.get("k", b"b").unwrap().unwrap(), b"2");
}

#[test]
fn what_is_no_socket() {
    let _limit = limit();
    let at = TestStore::new();
    let _store = at.open();
    assert!(matches!(Client::connect(&at.path), Err(Error::Invalid { .. })));
    assert!(matches!(Client::connect(at.path.join("arena")), Err(Error::Invalid { .. })));
    assert!(matches!(Client::connect(at.path.join("none")), Err(Error::NotFound { .. })));
}

/// A child that outlives its parent keeps none of its connections open: neither a client's, whose
/// permit the server gives to another, nor a server's.
#[test]
fn children_keep_no_connections() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    let client = at.client();
    client.put("k", b"a", b"1").unwrap();
    let clients = store.stats().unwrap().clients.len();
    assert_eq!(clients, 2, "this process, and the logger, for message-passing clients");
    let mut forker = spawn("messages::forker", &at.path, &[]);
    forker.expect("forked");
    // The client's process ends, and its child does not: the server detects the end.
    forker.kill();
    drop(client);
    wait_until(|| store.stats().unwrap().clients.len() == 1);
    // A child of a process with a logger thread does not keep clients waiting for its dead parent.
    drop(store);
    at.stop_logger();
    let mut forker = spawn("messages::serving forker", &at.path, &[]);
    forker.expect("forked");
    let client = Client::options().reconnect_timeout(Duration::ZERO).connect(at.socket()).unwrap();
    client.get("k", b"a").unwrap();
    forker.kill();
    let start = Instant::now();
    assert!(matches!(client.get("k", b"a"), Err(Error::Disconnected { .. })));
    assert!(matches!(Client::connect(at.socket()), Err(Error::Disconnected { .. })));
    assert!(start.elapsed() < HANGS, "{:?}", start.elapsed());
    std::fs::write(at.path.join("end"), "").unwrap();
}

/// A host that closes descriptors it did not open breaks a connection, and no more: its own files
/// get none of our bytes.
#[test]
fn the_host_closes_descriptors() {
    let _limit = limit();
    let at = TestStore::new();
    let store = at.open();
    store.keyspace("k").unwrap().put(b"a", b"1").unwrap();
    let host = spawn("messages::closer", &at.path, &[]);
    host.expect("untouched");
    host.finish();
}

/// A client connects just as the idle logger leaves: if the connection was accepted, it is served.
#[test]
fn the_logger_leaves_as_a_client_connects() {
    use rand::{Rng, SeedableRng};
    let _limit = limit();
    let seed = seed("--test suite messages::lives::the_logger_leaves_as_a_client_connects");
    let mut dice = rand::rngs::StdRng::seed_from_u64(seed);
    let at = TestStore::new();
    drop(at.open());
    at.stop_logger();
    let (mut served, mut refused) = (0, 0);
    for round in 0..60u32 {
        let idle = Duration::from_millis(dice.random_range(1..40));
        let delay = Duration::from_micros(dice.random_range(0..120_000));
        std::thread::scope(|scope| {
            let logger = scope.spawn(|| untorn::logger::LoggerOptions::default().idle(idle).run(&at.path));
            std::thread::sleep(delay);
            match Client::connect(at.socket()) {
                Ok(client) => {
                    client.put("k", &round.to_be_bytes(), b"").unwrap();
                    std::thread::sleep(2 * idle);
                    client.get("k", &round.to_be_bytes()).unwrap().unwrap();
                    served += 1;
                }
                Err(Error::NotFound { .. } | Error::Disconnected { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            let start = Instant::now();
            logger.join().unwrap().unwrap();
            assert!(start.elapsed() < HANGS, "round {round}: {:?}", start.elapsed());
        });
    }
    assert!(served > 5 && refused > 0, "served {served}, refused {refused}");
}
