//! Goal: whatever comes over the socket, the server answers with a typed error or hangs up, keeps its bounds, and serves
//! the others: garbage, half messages, lengths that lie, floods, peers that take nothing, more peers than there may be.
//!
//! Method: bytes written straight to the socket, beside a well-behaved client that must not notice. The random tests
//! print the seed that replays them. At the end of each test the logger must be the one of the beginning.

mod common;

use common::*;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Client, Error, Store};
use untorn_wal::wire::hello::{ClientHello, MAGIC, Refusal, SERVER_HELLO_BYTES, ServerHello};
use untorn_wal::wire::{
    self, Durability, Edge, ErrorReply, FRAME_HEADER_BYTES, Feed, List, MESSAGE_BYTES_MAX, Operation, Reply, Request,
};

/// A store with a logger, and a policy that is quick to lose patience.
struct Victim {
    at: TestStore,
    store: Store,
    logger: u32,
}

impl Victim {
    fn new(access: &str) -> Victim {
        let at = TestStore::new();
        let store = at.open();
        std::fs::write(at.path.join("access"), access).unwrap();
        let logger = store.stats().unwrap().logger_pid.unwrap();
        // The policy is in force when it is looked at next.
        std::thread::sleep(Duration::from_millis(100));
        store.keyspace("k").unwrap().put(b"a", b"1").unwrap();
        Victim { at, store, logger }
    }

    fn client(&self) -> Client {
        Client::connect(self.at.path.join("logger.sock")).unwrap()
    }

    fn raw(&self) -> Raw {
        Raw::connect(&self.at.path.join("logger.sock"))
    }

    /// The logger is what it was, and serves.
    fn end(self) {
        assert_eq!(self.client().get("k", b"a").unwrap().unwrap(), b"1");
        assert_eq!(self.store.stats().unwrap().logger_pid, Some(self.logger), "the logger died");
        assert!(!self.at.path.join("logger.panic").exists());
        assert_clean(&self.store);
    }

    fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.logger)).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

/// A connection without manners.
struct Raw(UnixStream);

impl Raw {
    fn connect(path: &Path) -> Raw {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(HANGS)).unwrap();
        stream.set_write_timeout(Some(HANGS)).unwrap();
        Raw(stream)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// The server's hello and its text.
    fn hello(&mut self) -> (ServerHello, String) {
        let mut bytes = [0; SERVER_HELLO_BYTES];
        self.0.read_exact(&mut bytes).unwrap();
        let hello = ServerHello::decode(&bytes).unwrap();
        let mut text = vec![0; hello.text_bytes];
        self.0.read_exact(&mut text).unwrap();
        (hello, String::from_utf8(text).unwrap())
    }

    fn welcome(mut self) -> Raw {
        self.send(&ClientHello::OURS.encode()).unwrap();
        assert_eq!(self.hello().0.refusal, None);
        self
    }

    fn frame(&mut self, body: &[u8]) -> io::Result<()> {
        self.send(&(body.len() as u32).to_le_bytes())?;
        self.send(body)
    }

    fn reply(&mut self) -> io::Result<Vec<u8>> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.0.read_exact(&mut header)?;
        let mut body = vec![0; wire::frame_len(header).unwrap()];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }

    /// Whether the server has hung up, within its patience.
    fn is_cut_off(&mut self) -> bool {
        let mut bytes = [0; 1 << 16];
        loop {
            match self.0.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}

#[test]
fn no_version_in_common() {
    let _limit = limit();
    let victim = Victim::new("");
    let mut late = victim.raw();
    late.send(&ClientHello { oldest: wire::VERSION + 1, newest: 900 }.encode()).unwrap();
    let (hello, text) = late.hello();
    assert_eq!((hello.refusal, hello.version), (Some(Refusal::Version), 0));
    assert_eq!((hello.oldest, hello.newest), (wire::VERSION_MIN, wire::VERSION));
    assert!(text.contains("900"), "{text}");
    assert!(late.is_cut_off());
    // A later client that still speaks ours is served in ours.
    let mut both = victim.raw();
    both.send(&ClientHello { oldest: 1, newest: 900 }.encode()).unwrap();
    assert_eq!(both.hello().0.version, wire::VERSION);
    // Versions that make no sense.
    for (oldest, newest) in [(0, 0), (0, 1), (2, 1)] {
        let mut odd = victim.raw();
        odd.send(&ClientHello { oldest, newest }.encode()).unwrap();
        assert_eq!(odd.hello().0.refusal, Some(Refusal::Version));
    }
    victim.end();
}

/// A server that speaks another protocol, or a later version of ours.
#[test]
fn servers_that_a_client_does_not_understand() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut later = Vec::from(MAGIC);
    [0u16, 7, 9, 1].iter().for_each(|number| later.extend_from_slice(&number.to_le_bytes()));
    later.extend_from_slice(&4u32.to_le_bytes());
    later.extend_from_slice(b"newe");
    let mut wrong_welcome = Vec::from(MAGIC);
    [9u16, 7, 9, 0].iter().for_each(|number| wrong_welcome.extend_from_slice(&number.to_le_bytes()));
    wrong_welcome.extend_from_slice(&0u32.to_le_bytes());
    let mut long_text = Vec::from(MAGIC);
    [0u16, 7, 9, 1].iter().for_each(|number| long_text.extend_from_slice(&number.to_le_bytes()));
    long_text.extend_from_slice(&u32::MAX.to_le_bytes());
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let said = [http, later, wrong_welcome, long_text, Vec::new()];
    let ends = said.len();
    let server = std::thread::spawn(move || {
        for bytes in said {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&bytes).unwrap();
        }
    });
    for index in 0..ends {
        let error = Client::connect(&path).unwrap_err();
        match index {
            4 => assert!(matches!(error, Error::Disconnected { .. }), "{error}"),
            _ => assert!(matches!(error, Error::Protocol { .. }), "{index}: {error}"),
        }
    }
    server.join().unwrap();
}

#[test]
fn garbage_instead_of_a_hello() {
    let _limit = limit();
    let seed = seed("--test messages_hostile garbage_instead_of_a_hello");
    let mut dice = StdRng::seed_from_u64(seed);
    let victim = Victim::new("patience 1\n");
    for round in 0..60 {
        let mut raw = victim.raw();
        let mut bytes = vec![0; dice.random_range(0..2000)];
        dice.fill_bytes(&mut bytes);
        if round % 3 == 0 {
            bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
        }
        let _ = raw.send(&bytes);
        if bytes.len() >= 16 {
            assert_eq!(raw.hello().0.refusal, Some(Refusal::Version));
        }
        if round % 4 == 0 {
            assert!(raw.is_cut_off());
        }
    }
    victim.end();
}

#[test]
fn garbage_in_frames_is_answered() {
    let _limit = limit();
    let seed = seed("--test messages_hostile garbage_in_frames_is_answered");
    let mut dice = StdRng::seed_from_u64(seed);
    let victim = Victim::new("");
    let mut raw = victim.raw().welcome();
    for _ in 0..2000 {
        let mut body = vec![0; dice.random_range(0..300)];
        dice.fill_bytes(&mut body);
        if body.len() > 4 && dice.random() {
            // A known request at least.
            body[..4].copy_from_slice(&dice.random_range(0..20u32).to_le_bytes());
        }
        raw.frame(&body).unwrap();
        let reply = raw.reply().unwrap();
        match wire::decode::<Reply<'_>>(&reply).unwrap() {
            Reply::Failed(_) => {}
            // A few of these are requests: for the names of keyspaces, or to close scans that nobody has opened.
            reply => assert!(body.len() < 100, "{reply:?}"),
        }
    }
    // The connection is as good as ever.
    raw.send(&wire::encode(&Request::Get { keyspace: "k", key: b"a" }).unwrap()).unwrap();
    let reply = raw.reply().unwrap();
    assert!(matches!(wire::decode(&reply), Ok(Reply::Value(Some(found))) if found.value == b"1"));
    victim.end();
}

/// Valid requests of every kind, with some bytes changed, cut or added.
#[test]
fn mutated_requests() {
    let _limit = limit();
    let seed = seed("--test messages_hostile mutated_requests");
    let mut dice = StdRng::seed_from_u64(seed);
    let victim = Victim::new("");
    let durability = Durability::Visible;
    let operations = vec![
        Operation::ExpectAbsent { keyspace: "m", key: b"x" },
        Operation::ExpectVersion { keyspace: "m", key: b"x", version: 7 },
        Operation::Put { keyspace: "m", key: b"x", value: b"y" },
        Operation::Delete { keyspace: "m", key: b"x" },
    ];
    let requests = [
        Request::Get { keyspace: "m", key: b"key" },
        Request::MultiGet { keyspace: "m", keys: List(vec![b"a", b"b", b"c"]) },
        Request::Put { keyspace: "m", key: b"key", value: b"value", durability },
        Request::Delete { keyspace: "m", key: b"key", durability },
        Request::Commit { operations: List(operations), durability: Durability::Within { micros: 5 } },
        Request::Scan { keyspace: "m", lower: Edge::With(b"a"), upper: Edge::Open, is_reverse: true, piece_bytes: 9 },
        Request::ScanNext { scan: 1 },
        Request::ScanClose { scan: 1 },
        Request::Keyspaces,
        Request::Stats,
        Request::CellLoad { name: "cell" },
        Request::CellLoadVersion { name: "cell", version: 1 },
        Request::CellStore { name: "cell", value: b"12345678", is_durable: false },
        Request::CounterAdd { name: "counter", amount: 1 },
        Request::CounterGet { name: "counter" },
        Request::Changes { from: Some(0), feed: Feed::Visible, keyspace: Some("m"), prefix: b"p" },
        Request::ChangesNext { wait_ms: 0 },
    ];
    let mut raw = victim.raw().welcome();
    for round in 0..4000 {
        let mut body = wire::encode(&requests[round % requests.len()]).unwrap().split_off(FRAME_HEADER_BYTES);
        for _ in 0..dice.random_range(0..4) {
            let at = dice.random_range(0..body.len());
            match dice.random_range(0..4) {
                0 => body.truncate(at.max(1)),
                1 => body.insert(at, dice.random()),
                // Lengths that lie.
                2 => body[at] = 0xff,
                _ => body[at] ^= 1 << dice.random_range(0..8),
            }
        }
        // A wait would only take time.
        if body.starts_with(&18u32.to_le_bytes()) && body.len() == 8 {
            body[4..].fill(0);
        }
        raw.frame(&body).unwrap();
        let reply = raw.reply().unwrap();
        wire::decode::<Reply<'_>>(&reply).unwrap();
    }
    victim.end();
}

/// The largest numbers that fit, wherever there is one.
#[test]
fn numbers_at_their_ends() {
    let _limit = limit();
    let victim = Victim::new("");
    victim.store.cell("cell", 8).unwrap();
    let max = u64::MAX;
    let expect = vec![Operation::ExpectVersion { keyspace: "k", key: b"a", version: max }];
    let scan =
        |edge| Request::Scan { keyspace: "k", lower: edge, upper: edge, is_reverse: false, piece_bytes: u32::MAX };
    let requests = [
        Request::Commit { operations: List(expect), durability: Durability::Within { micros: max } },
        Request::Put { keyspace: "k", key: b"b", value: b"", durability: Durability::Within { micros: max } },
        Request::CellLoadVersion { name: "cell", version: max },
        Request::CellLoadVersion { name: "cell", version: 0 },
        Request::CounterAdd { name: "counter", amount: max },
        Request::CounterAdd { name: "counter", amount: max },
        Request::Changes { from: Some(max), feed: Feed::Durable, keyspace: None, prefix: b"" },
        Request::Changes { from: Some(1 << 63), feed: Feed::Visible, keyspace: Some(""), prefix: b"" },
        Request::Changes { from: Some(0), feed: Feed::Visible, keyspace: None, prefix: b"" },
        Request::ScanNext { scan: u32::MAX },
        Request::ScanClose { scan: u32::MAX },
        scan(Edge::With(b"")),
        scan(Edge::Without(b"")),
        scan(Edge::Without(b"a")),
        scan(Edge::With(&[0xff; 20_000])),
        Request::Scan {
            keyspace: "k",
            lower: Edge::With(b"b"),
            upper: Edge::Without(b"a"),
            is_reverse: true,
            piece_bytes: 0,
        },
        Request::CellStore { name: "new", value: b"", is_durable: true },
        Request::CellStore { name: "", value: b"1", is_durable: false },
        Request::MultiGet { keyspace: "k", keys: List(vec![b""; 65_536]) },
        Request::ChangesNext { wait_ms: u32::MAX },
    ];
    let mut raw = victim.raw().welcome();
    for request in &requests {
        raw.send(&wire::encode(request).unwrap()).unwrap();
        let reply = raw.reply().unwrap();
        wire::decode::<Reply<'_>>(&reply).unwrap();
    }
    victim.end();
}

#[test]
fn lengths_that_lie() {
    let _limit = limit();
    let victim = Victim::new("patience 2\n");
    // A frame longer than there may be is refused before it comes.
    for length in [MESSAGE_BYTES_MAX as u32 + 1, u32::MAX] {
        let mut raw = victim.raw().welcome();
        raw.send(&length.to_le_bytes()).unwrap();
        let reply = raw.reply().unwrap();
        let Ok(Reply::Failed(ErrorReply::Limit { found, .. })) = wire::decode(&reply) else { panic!() };
        assert_eq!(found, u64::from(length));
        assert!(raw.is_cut_off());
    }
    // Lists and strings that claim more than there is.
    let mut raw = victim.raw().welcome();
    let before = victim.resident_bytes();
    for count in [65_537u64, 1 << 20, 1 << 40, u64::MAX] {
        for tag in [1u32, 4] {
            let mut body = tag.to_le_bytes().to_vec();
            if tag == 1 {
                body.extend_from_slice(&1u64.to_le_bytes());
                body.push(b'k');
            }
            body.extend_from_slice(&count.to_le_bytes());
            raw.frame(&body).unwrap();
            let reply = raw.reply().unwrap();
            assert!(matches!(wire::decode(&reply), Ok(Reply::Failed(ErrorReply::Protocol { .. }))), "{count}");
        }
    }
    // Many peers that promise the longest frame and send nothing of it: memory comes with bytes, not with promises.
    let mut liars: Vec<Raw> = (0..64).map(|_| victim.raw().welcome()).collect();
    liars.iter_mut().for_each(|liar| liar.send(&(MESSAGE_BYTES_MAX as u32).to_le_bytes()).unwrap());
    let client = victim.client();
    let start = Instant::now();
    for number in 0..20u32 {
        client.put("k", &number.to_be_bytes(), b"").unwrap();
    }
    assert!(start.elapsed() < HANGS);
    let grown = victim.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for promises");
    for liar in &mut liars {
        assert!(liar.is_cut_off(), "half a message was waited for without end");
    }
    // Now there is room for large messages again.
    client.put("k", b"large", &vec![1; 16 << 20]).unwrap();
    drop(client);
    victim.end();
}

#[test]
fn half_messages() {
    let _limit = limit();
    let victim = Victim::new("patience 1\n");
    let put =
        wire::encode(&Request::Put { keyspace: "k", key: b"half", value: &[1; 1000], durability: Durability::Visible })
            .unwrap();
    // Cut off after every so many bytes, by hanging up.
    for end in (1..put.len()).step_by(97) {
        let mut raw = victim.raw().welcome();
        raw.send(&put[..end]).unwrap();
    }
    // And by sending no more: in the hello, in the length, in the message, byte by byte.
    let mut silent = victim.raw();
    silent.send(&ClientHello::OURS.encode()[..9]).unwrap();
    let (mut in_length, mut in_message) = (victim.raw().welcome(), victim.raw().welcome());
    in_length.send(&put[..3]).unwrap();
    in_message.send(&put[..500]).unwrap();
    let mut trickling = victim.raw().welcome();
    // All of it would take ten times as long as the server has patience.
    let trickled = put.iter().all(|byte| {
        std::thread::sleep(Duration::from_millis(10));
        trickling.send(&[*byte]).is_ok()
    });
    assert!(!trickled);
    assert!(silent.is_cut_off() && in_length.is_cut_off() && in_message.is_cut_off());
    assert_eq!(victim.store.find_keyspace("k").unwrap().unwrap().get(b"half").unwrap(), None);
    // Between messages a peer may be silent.
    let client = victim.client();
    client.get("k", b"a").unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    let mut idle = victim.raw().welcome();
    std::thread::sleep(Duration::from_millis(1500));
    idle.send(&put).unwrap();
    assert!(matches!(wire::decode(&idle.reply().unwrap()), Ok(Reply::Committed { .. })));
    client.get("k", b"a").unwrap();
    drop(client);
    victim.end();
}

/// Requests without end, and nobody who reads the replies.
#[test]
fn floods() {
    let _limit = limit();
    let victim = Victim::new("patience 1\n");
    victim.store.keyspace("k").unwrap().put(b"big", &vec![1; 4 << 20]).unwrap();
    let before = victim.resident_bytes();
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
            let (victim, request) = (&victim, if number % 2 == 0 { &get } else { &scan });
            scope.spawn(move || {
                let mut raw = victim.raw().welcome();
                let mut sent = 0u64;
                while raw.send(request).is_ok() {
                    sent += 1;
                    assert!(sent < 1 << 20, "a peer that takes nothing is served without end");
                }
            });
        }
        let client = victim.client();
        let start = Instant::now();
        let mut most = 0;
        for number in 0..100u32 {
            client.put("k", &number.to_be_bytes(), b"").unwrap();
            most = most.max(victim.resident_bytes());
        }
        assert!(start.elapsed() < HANGS);
        assert!(most.saturating_sub(before) < 200 << 20, "{} bytes", most - before);
    });
    wait_until(|| victim.store.stats().unwrap().readers.iter().all(|reader| reader.is_loggers));
    victim.end();
}

/// What a connection keeps from one request to the next is small, whatever it was asked for.
#[test]
fn long_edges_and_prefixes_are_not_kept() {
    let _limit = limit();
    let victim = Victim::new("");
    let keyspace = victim.store.keyspace("k").unwrap();
    let longest = vec![b'b'; 1024];
    keyspace.put(&longest, b"2").unwrap();
    keyspace.put(b"c", b"3").unwrap();
    // Such an edge lies where it would lie for a direct client.
    let client = victim.client();
    let edge = vec![b'b'; 20_000];
    let keys = |scan: untorn::Scan<'_>| scan.map(|record| record.unwrap().0).collect::<Vec<_>>();
    assert_eq!(keys(client.scan("k", &edge[..]..).unwrap()), [b"c".to_vec()]);
    assert_eq!(keys(client.scan("k", ..=&edge[..]).unwrap()), [b"a".to_vec(), longest.clone()]);
    assert_eq!(keys(client.scan_back("k", ..&edge[..]).unwrap()), [longest.clone(), b"a".to_vec()]);
    let before = victim.resident_bytes();
    let far = vec![0xff; 6 << 20];
    let scan =
        Request::Scan { keyspace: "k", lower: Edge::Open, upper: Edge::With(&far), is_reverse: false, piece_bytes: 1 };
    let scan = wire::encode(&scan).unwrap();
    let follow = Request::Changes { from: None, feed: Feed::Visible, keyspace: None, prefix: &far };
    let follow = wire::encode(&follow).unwrap();
    let mut raws = Vec::new();
    for _ in 0..8 {
        let mut raw = victim.raw().welcome();
        for _ in 0..8 {
            raw.send(&scan).unwrap();
            let reply = raw.reply().unwrap();
            assert!(matches!(wire::decode(&reply), Ok(Reply::Piece { scan: 1.., .. })));
        }
        raw.send(&follow).unwrap();
        let reply = raw.reply().unwrap();
        assert!(matches!(wire::decode(&reply), Ok(Reply::Failed(ErrorReply::Limit { .. }))));
        raws.push(raw);
    }
    let grown = victim.resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes for 64 open scans");
    drop((raws, client));
    victim.end();
}

/// The memory of long messages is used again for a moment, and goes although all who sent them are still there.
#[test]
fn memory_of_long_messages_goes_back() {
    let _limit = limit();
    let victim = Victim::new("");
    let clients: Vec<Client> = (0..4).map(|_| victim.client()).collect();
    clients.iter().for_each(|client| assert_eq!(client.get("k", b"a").unwrap().unwrap(), b"1"));
    let before = victim.resident_bytes();
    for (number, client) in clients.iter().enumerate() {
        let value = vec![number as u8; 16 << 20];
        client.put("k", b"long", &value).unwrap();
        assert!(client.get("k", b"long").unwrap().unwrap() == value);
    }
    wait_until(|| victim.resident_bytes() < before + (6 << 20));
    // A shorter one has nothing of the longer ones that were in the same memory.
    for (client, bytes) in clients.iter().zip([100_000, 5 << 20, 9 << 20, 1 << 20]) {
        let value = vec![9; bytes];
        client.put("k", b"shorter", &value).unwrap();
        assert!(client.get("k", b"shorter").unwrap().unwrap() == value);
    }
    drop(clients);
    victim.end();
}

/// Feeds whose next change is a large one, and that are not asked for it.
#[test]
fn feeds_that_are_left_lying() {
    let _limit = limit();
    let victim = Victim::new("");
    let keyspace = victim.store.keyspace("k").unwrap();
    let from = victim.store.snapshot().unwrap().txn_id();
    keyspace.put(b"small", b"").unwrap();
    keyspace.put(b"large", &vec![7; 16 << 20]).unwrap();
    // In one transaction, more than one of them too large for a piece.
    let mut txn = victim.store.begin().unwrap();
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
    let before = victim.resident_bytes();
    let mut raws: Vec<Raw> = (0..24).map(|_| victim.raw().welcome()).collect();
    for raw in &mut raws {
        raw.send(&open).unwrap();
        raw.reply().unwrap();
        assert_eq!(keys(raw), [b"small".to_vec()]);
    }
    let grown = victim.resident_bytes().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes for feeds that nobody reads");
    // There is no room for what these take, and they tell all the same what there was to tell, in order, once.
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
    victim.end();
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
        .args(["-c", "ulimit -n 64 && exec \"$0\" \"$1\" --idle never", env!("CARGO_BIN_EXE_untorn-logger")])
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

/// A commit may have much time, but a seat and its thread are not held for that when their peer has gone; the commit stands.
#[test]
fn who_hangs_up_before_a_deadline_frees_the_seat() {
    let _limit = limit();
    let victim = Victim::new("connections 1\npatience 3600\n");
    let keys = victim.store.keyspace("k").unwrap();
    let mut peer = victim.raw().welcome();
    let durability = Durability::Within { micros: 3_000_000_000 };
    let request = Request::Put { keyspace: "k", key: b"b", value: b"1", durability };
    peer.send(&wire::encode(&request).unwrap()).unwrap();
    wait_until(|| keys.get(b"b").unwrap().is_some());
    // Who only says no more waits for its answer.
    peer.0.shutdown(std::net::Shutdown::Write).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(Client::connect(victim.at.path.join("logger.sock")).is_err());
    drop(peer);
    wait_until(|| Client::connect(victim.at.path.join("logger.sock")).is_ok());
    assert_eq!(keys.get(b"b").unwrap().unwrap(), b"1");
    // Its seat is taken until it is noticed that this one has gone as well.
    wait_until(|| Client::connect(victim.at.path.join("logger.sock")).is_ok());
    drop(keys);
}

/// A logger that is told to leave asks for the flush of a commit that still has time, and says that it is durable. It once left its
/// client in doubt, though a flush followed.
#[test]
fn a_commit_that_has_time_is_answered_when_the_logger_leaves() {
    let _limit = limit();
    let victim = Victim::new("patience 3600\n");
    let keys = victim.store.keyspace("k").unwrap();
    let client = victim.client();
    let time = untorn::Durability::Within(Duration::from_secs(1000));
    std::thread::scope(|scope| {
        let put = scope.spawn(|| client.put_with("k", b"b", b"1", time));
        wait_until(|| keys.get(b"b").unwrap().is_some());
        let begun = Instant::now();
        untorn::logger::stop_logger(&victim.at.path, HANGS).unwrap();
        match put.join().unwrap() {
            Ok(_) => {}
            // A flush that takes a second is not waited for.
            Err(Error::NotDurable { .. }) if begun.elapsed() >= Duration::from_secs(1) => {}
            Err(error) => panic!("{error:?}, after {:?}", begun.elapsed()),
        }
    });
    assert_clean(&victim.store);
}

/// Somebody who connects all the time does not keep the socket from being moved.
#[test]
fn the_socket_moves_in_a_storm() {
    let _limit = limit();
    let victim = Victim::new("");
    let (old, new) = (victim.at.path.join("logger.sock"), victim.at.path.join("other.sock"));
    std::fs::write(victim.at.path.join("access"), format!("socket \"{}\"\n", new.display())).unwrap();
    wait_until(|| {
        drop(UnixStream::connect(&old));
        std::thread::sleep(Duration::from_millis(20));
        new.exists()
    });
    wait_until(|| !old.exists());
    std::fs::remove_file(victim.at.path.join("access")).unwrap();
    wait_until(|| old.exists());
    victim.end();
}

/// Servers that answer everything and tell nothing: a client notices, or its time is over.
#[test]
fn servers_that_lead_on() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut raw = Raw(stream.unwrap());
                let mut hello = [0; 16];
                raw.0.read_exact(&mut hello).unwrap();
                raw.send(&ServerHello::encode(wire::VERSION, None, "")).unwrap();
                while let Ok(request) = raw.reply() {
                    let reply = match wire::decode::<Request<'_>>(&request).unwrap() {
                        // There is always more, and never anything.
                        Request::Scan { .. } | Request::ScanNext { .. } => {
                            Reply::Piece { scan: 1, txn: 1, records: List(Vec::new()) }
                        }
                        Request::Changes { .. } => Reply::Changes { through: 1, changes: List(Vec::new()) },
                        // It hangs up.
                        _ => return,
                    };
                    raw.send(&wire::encode(&reply).unwrap()).unwrap();
                }
            });
        }
    });
    let client = Client::connect(&path).unwrap();
    let ended = client.scan("k", ..).map(Iterator::count);
    assert!(matches!(ended, Err(Error::Protocol { .. })), "{ended:?}");
    let mut changes = client.changes_from_now(untorn::Feed::Visible).unwrap();
    let ended = changes.try_next(Duration::from_millis(300));
    assert!(matches!(ended, Err(Error::Disconnected { .. })), "{ended:?}");
}

/// What a server says is printed by programs: it is no command for their terminals.
#[test]
fn texts_of_a_server_are_plain() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let evil = "a\u{1b}]0;title\u{7}\u{9b}2J\nuntorn: fine\r\u{202e}b";
    let server = std::thread::spawn(move || {
        let refuse = |raw: &mut Raw| raw.send(&ServerHello::encode(0, Some(Refusal::NotAllowed), evil)).unwrap();
        refuse(&mut Raw(listener.accept().unwrap().0));
        let mut raw = Raw(listener.accept().unwrap().0);
        raw.send(&ServerHello::encode(wire::VERSION, None, evil)).unwrap();
        let mut hello = [0; 16];
        raw.0.read_exact(&mut hello).unwrap();
        for failure in
            [ErrorReply::NotAllowed { what: evil }, ErrorReply::Corrupt { file: evil, offset: 1, what: evil }]
        {
            raw.reply().unwrap();
            raw.send(&wire::encode(&Reply::Failed(failure)).unwrap()).unwrap();
        }
    });
    let check = |text: String| {
        assert!(text.contains("title") && !text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
    };
    check(Client::connect(&path).unwrap_err().to_string());
    let client = Client::connect(&path).unwrap();
    check(client.notice().unwrap());
    for _ in 0..2 {
        check(client.get("k", b"k").unwrap_err().to_string());
    }
    drop(client);
    server.join().unwrap();
}

/// Connections that come and go, without a word or with half of one.
#[test]
fn storms_of_connections() {
    let _limit = limit();
    let seed = seed("--test messages_hostile storms_of_connections");
    let victim = Victim::new("patience 1\nconnections 1000\n");
    let client = victim.client();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let victim = &victim;
            scope.spawn(move || {
                let mut dice = StdRng::seed_from_u64(seed ^ number);
                let mut kept = Vec::new();
                for _ in 0..300 {
                    let mut raw = victim.raw();
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
    victim.end();
}

#[test]
fn no_more_connections_than_there_may_be() {
    let _limit = limit();
    let victim = Victim::new("connections 3\n");
    let clients: Vec<Client> = (0..3).map(|_| victim.client()).collect();
    let refused = Client::connect(victim.at.path.join("logger.sock"));
    assert!(matches!(&refused, Err(Error::Busy { what }) if what.contains('3')), "{refused:?}");
    // Those that are there are served; a seat that is left can be taken.
    clients.iter().for_each(|client| drop(client.get("k", b"a").unwrap()));
    drop(clients);
    wait_until(|| Client::connect(victim.at.path.join("logger.sock")).is_ok());
    wait_until(|| victim.store.stats().unwrap().clients.len() == 1);
    victim.end();
}

/// Nobody who is idle costs anything: no thread of the logger spins.
#[test]
fn idle_connections_do_not_spin() {
    let _limit = limit();
    let victim = Victim::new("");
    let clients: Vec<Client> = (0..50).map(|_| victim.client()).collect();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", victim.logger)).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(3));
    let used = ticks() - before;
    // A hundred ticks are a second.
    assert!(used < 60, "{used} ticks in 3 s of silence");
    drop(clients);
    victim.end();
}
