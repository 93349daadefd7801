//! Goal: whatever comes over the socket, the server answers with a typed error or hangs up, keeps
//! its bounds, and serves the others: garbage, half messages, lengths that lie, floods, peers that
//! take nothing, more peers than there may be.
//!
//! Method: bytes written straight to the socket, beside a well-behaved client that must not notice.
//! The random tests print the seed that replays them. At the end of each test the logger must be
//! the one of the beginning.

mod peer;
mod resources;
mod servers;

use crate::common::*;
use peer::{Raw, ServedStore};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::{Client, Error, Store};
use untorn_wal::wire::hello::{ClientHello, MAGIC, Refusal, SERVER_HELLO_BYTES, ServerHello};
use untorn_wal::wire::{
    self, Durability, Edge, FRAME_HEADER_BYTES, Failure, Feed, List, MESSAGE_BYTES_MAX, Operation, Reply, Request,
};

#[test]
fn no_version_in_common() {
    let _limit = limit();
    let served = ServedStore::new("");
    let mut late = served.raw();
    late.send(&ClientHello { oldest: wire::VERSION + 1, newest: 900 }.encode()).unwrap();
    let (hello, text) = late.hello();
    assert_eq!((hello.refusal, hello.version), (Some(Refusal::Version), 0));
    assert_eq!((hello.oldest, hello.newest), (wire::VERSION_MIN, wire::VERSION));
    assert!(text.contains("900"), "{text}");
    assert!(late.is_cut_off());
    // A later client that still speaks ours is served in ours.
    let mut both = served.raw();
    both.send(&ClientHello { oldest: 1, newest: 900 }.encode()).unwrap();
    assert_eq!(both.hello().0.version, wire::VERSION);
    // Versions that make no sense.
    for (oldest, newest) in [(0, 0), (0, 1), (2, 1)] {
        let mut odd = served.raw();
        odd.send(&ClientHello { oldest, newest }.encode()).unwrap();
        assert_eq!(odd.hello().0.refusal, Some(Refusal::Version));
    }
    served.end();
}

#[test]
fn garbage_instead_of_a_hello() {
    let _limit = limit();
    let seed = seed("--test suite messages::hostile::garbage_instead_of_a_hello");
    let mut dice = StdRng::seed_from_u64(seed);
    let served = ServedStore::new("patience 1\n");
    for round in 0..60 {
        let mut raw = served.raw();
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
    served.end();
}

#[test]
fn garbage_in_frames_is_answered() {
    let _limit = limit();
    let seed = seed("--test suite messages::hostile::garbage_in_frames_is_answered");
    let mut dice = StdRng::seed_from_u64(seed);
    let served = ServedStore::new("");
    let mut raw = served.raw().welcome();
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
            // A few of these are requests: for the names of keyspaces, or to close scans that no
            // client has opened.
            reply => assert!(body.len() < 100, "{reply:?}"),
        }
    }
    // The connection is as good as ever.
    raw.send(&wire::encode(&Request::Get { keyspace: "k", key: b"a" }).unwrap()).unwrap();
    let reply = raw.reply().unwrap();
    assert!(matches!(wire::decode(&reply), Ok(Reply::Value(Some(found))) if found.value == b"1"));
    served.end();
}

/// Valid requests of every kind, with some bytes changed, cut or added.
#[test]
fn mutated_requests() {
    let _limit = limit();
    let seed = seed("--test suite messages::hostile::mutated_requests");
    let mut dice = StdRng::seed_from_u64(seed);
    let served = ServedStore::new("");
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
    let mut raw = served.raw().welcome();
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
    served.end();
}

/// The largest numbers that fit, wherever there is one.
#[test]
fn numbers_at_their_ends() {
    let _limit = limit();
    let served = ServedStore::new("");
    served.store.cell("cell", 8).unwrap();
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
    let mut raw = served.raw().welcome();
    for request in &requests {
        raw.send(&wire::encode(request).unwrap()).unwrap();
        let reply = raw.reply().unwrap();
        wire::decode::<Reply<'_>>(&reply).unwrap();
    }
    served.end();
}

#[test]
fn lengths_that_lie() {
    let _limit = limit();
    let served = ServedStore::new("patience 2\n");
    // A frame longer than there may be is refused before it comes.
    for length in [MESSAGE_BYTES_MAX as u32 + 1, u32::MAX] {
        let mut raw = served.raw().welcome();
        raw.send(&length.to_le_bytes()).unwrap();
        let reply = raw.reply().unwrap();
        let Some(Error::Limit { found, .. }) = crate::common::error_in(&reply) else { panic!() };
        assert_eq!(found, u64::from(length));
        assert!(raw.is_cut_off());
    }
    // Lists and strings that claim more than there is.
    let mut raw = served.raw().welcome();
    let before = served.resident_bytes();
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
            assert!(matches!(crate::common::error_in(&reply), Some(Error::Protocol { .. })), "{count}");
        }
    }
    // Many peers that promise the longest frame and send nothing of it: memory comes with bytes,
    // not with promises.
    let mut liars: Vec<Raw> = (0..64).map(|_| served.raw().welcome()).collect();
    liars.iter_mut().for_each(|liar| liar.send(&(MESSAGE_BYTES_MAX as u32).to_le_bytes()).unwrap());
    let client = served.client();
    let start = Instant::now();
    for number in 0..20u32 {
        client.put("k", &number.to_be_bytes(), b"").unwrap();
    }
    assert!(start.elapsed() < HANGS);
    let grown = served.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for promises");
    for liar in &mut liars {
        assert!(liar.is_cut_off(), "half a message was waited for without end");
    }
    // Now there is room for large messages again.
    client.put("k", b"large", &vec![1; 16 << 20]).unwrap();
    drop(client);
    served.end();
}

#[test]
fn half_messages() {
    let _limit = limit();
    let served = ServedStore::new("patience 1\n");
    let put =
        wire::encode(&Request::Put { keyspace: "k", key: b"half", value: &[1; 1000], durability: Durability::Visible })
            .unwrap();
    // Cut off after every so many bytes, by hanging up.
    for end in (1..put.len()).step_by(97) {
        let mut raw = served.raw().welcome();
        raw.send(&put[..end]).unwrap();
    }
    // And by sending no more: in the hello, in the length, in the message, byte by byte.
    let mut silent = served.raw();
    silent.send(&ClientHello::OURS.encode()[..9]).unwrap();
    let (mut in_length, mut in_message) = (served.raw().welcome(), served.raw().welcome());
    in_length.send(&put[..3]).unwrap();
    in_message.send(&put[..500]).unwrap();
    let mut trickling = served.raw().welcome();
    // All of it would take ten times as long as the server has patience.
    let trickled = put.iter().all(|byte| {
        std::thread::sleep(Duration::from_millis(10));
        trickling.send(&[*byte]).is_ok()
    });
    assert!(!trickled);
    assert!(silent.is_cut_off() && in_length.is_cut_off() && in_message.is_cut_off());
    assert_eq!(served.store.find_keyspace("k").unwrap().unwrap().get(b"half").unwrap(), None);
    // Between messages a peer may be silent.
    let client = served.client();
    client.get("k", b"a").unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    let mut idle = served.raw().welcome();
    std::thread::sleep(Duration::from_millis(1500));
    idle.send(&put).unwrap();
    assert!(matches!(wire::decode(&idle.reply().unwrap()), Ok(Reply::Committed { .. })));
    client.get("k", b"a").unwrap();
    drop(client);
    served.end();
}
