//! Goal: what peers cause in the server is bounded and shared out by user: no bytes for promises,
//! none for what a peer may not have, a reserve for the owner, and few long requests at work at
//! once.
//!
//! Method: threads of this process take other user ids and request too much, beside the owner, and
//! the logger's memory is measured. That needs root; without it the tests report that they were
//! skipped, and fail where the variable `CI` is set.

use crate::common::*;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use untorn::{Client, Durability, Error, Feed, Store};
use untorn_wal::wire::hello::{ClientHello, SERVER_HELLO_BYTES};
use untorn_wal::wire::{self, FRAME_HEADER_BYTES, List, MESSAGE_BYTES_MAX, Reply, Request};

const ALICE: u32 = 54_341;
const BOB: u32 = 54_342;
const CAROL: u32 = 54_343;

struct Server {
    at: TestStore,
    store: Store,
    public: tempfile::TempDir,
    logger: u32,
}

impl Server {
    fn new(test: &str, rules: &str) -> Option<Server> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "{test}: not root");
            eprintln!("SKIPPED {test}: not root");
            return None;
        }
        let (at, public) = (TestStore::new(), tempfile::tempdir().unwrap());
        std::fs::set_permissions(public.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir(&at.path).unwrap();
        let socket = public.path().join("untorn.sock");
        std::fs::write(at.path.join("access"), format!("socket \"{}\"\n{rules}", socket.display())).unwrap();
        let store = at.open();
        store.keyspace("public").unwrap().put(b"k", b"v").unwrap();
        let logger = store.stats().unwrap().logger_pid.unwrap();
        wait_until(|| socket.exists());
        Some(Server { at, store, public, logger })
    }

    fn socket(&self) -> PathBuf {
        self.public.path().join("untorn.sock")
    }

    /// A connection of a uid, after the hellos.
    fn raw(&self, uid: u32) -> UnixStream {
        as_user(uid, || {
            let mut stream = UnixStream::connect(self.socket()).unwrap();
            stream.set_read_timeout(Some(HANGS)).unwrap();
            stream.write_all(&ClientHello::OURS.encode()).unwrap();
            let mut hello = [0; SERVER_HELLO_BYTES];
            stream.read_exact(&mut hello).unwrap();
            stream
        })
    }

    fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.logger)).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    fn end(self) {
        assert_eq!(self.store.stats().unwrap().logger_pid, Some(self.logger), "the logger died");
        assert!(!self.at.path.join("logger.panic").exists());
        assert_clean(&self.store);
    }
}

fn reply(stream: &mut UnixStream) -> Vec<u8> {
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).unwrap();
    let mut body = vec![0; wire::frame_len(header).unwrap()];
    stream.read_exact(&mut body).unwrap();
    body
}

/// Waits until the server has read everything that was sent to it.
fn wait_until_read(stream: &UnixStream) {
    wait_until(|| {
        let mut unread: libc::c_int = 0;
        // SAFETY: the kernel writes one number to `unread`.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        unread == 0
    });
}

/// Peers that announce the longest message, and send nothing more or the beginning of it, leave
/// their room to a third user, which has no reserve as the owner has. They once had the room for
/// the announcement, and the third user got `Busy`.
#[test]
fn announced_lengths_take_no_room_of_other_users() {
    let _limit = limit();
    let rules = format!("allow {ALICE} read-only\nallow {BOB} read-only\nallow {CAROL} read-only\npatience 3600\n");
    let Some(server) = Server::new("announced_lengths_take_no_room_of_other_users", &rules) else { return };
    let value = vec![1; 200_000];
    server.store.keyspace("public").unwrap().put(b"value", &value).unwrap();
    let get = wire::encode(&Request::Get { keyspace: "public", key: b"value" }).unwrap();
    let key = vec![0; 1000];
    let long = wire::encode(&Request::MultiGet { keyspace: "public", keys: List(vec![&key; 200]) }).unwrap();
    let longest = vec![0u8; 16 << 20];
    let longest = wire::encode(&Request::MultiGet { keyspace: "public", keys: List(vec![&longest]) }).unwrap();
    let mut liars: Vec<UnixStream> = [ALICE, ALICE, BOB, BOB].iter().map(|uid| server.raw(*uid)).collect();
    let mut sent = 0;
    // Only the length; then as much as the server reads before it needs a buffer; then more.
    for end in [FRAME_HEADER_BYTES, FRAME_HEADER_BYTES + (16 << 10), 40 << 10] {
        for liar in &mut liars {
            liar.write_all(&longest[sent..end]).unwrap();
            wait_until_read(liar);
        }
        sent = end;
        // A long reply first: it does not wait for room.
        let mut carol = server.raw(CAROL);
        for _ in 0..10 {
            carol.write_all(&get).unwrap();
            let reply = reply(&mut carol);
            let error = crate::common::error_in(&reply);
            assert!(error.is_none(), "beside {sent} bytes each: {error:?}");
            assert!(matches!(wire::decode(&reply), Ok(Reply::Value(Some(found))) if found.value == value));
        }
        carol.write_all(&long).unwrap();
        assert!(matches!(wire::decode(&reply(&mut carol)), Ok(Reply::Values { values, .. }) if values.0.len() == 200));
    }
    drop(liars);
    server.end();
}

/// Peers that announce the longest message, and send some of it or nothing, leave the owner its
/// room. They once had it for the announcement.
#[test]
fn announced_lengths_take_no_room() {
    let _limit = limit();
    let rules = format!("allow {ALICE} read-only\nallow {BOB} read-only\npatience 3600\n");
    let Some(server) = Server::new("announced_lengths_take_no_room", &rules) else { return };
    let mut liars: Vec<UnixStream> = [ALICE, ALICE, BOB, BOB].iter().map(|uid| server.raw(*uid)).collect();
    liars.iter_mut().for_each(|liar| liar.write_all(&(MESSAGE_BYTES_MAX as u32).to_le_bytes()).unwrap());
    let owner = Client::connect(server.socket()).unwrap();
    for number in 0..50u32 {
        owner.put_with("public", &number.to_be_bytes(), &[1; 200_000], Durability::Visible).unwrap();
    }
    owner.put("public", b"long", &vec![1; 16 << 20]).unwrap();
    // Also when they send as much as they can, of a request that they may make.
    let keys = vec![0u8; 8 << 20];
    let request =
        wire::encode(&Request::MultiGet { keyspace: "public", keys: List(vec![&keys, &keys[1000..]]) }).unwrap();
    let mut pushing: Vec<UnixStream> = (0..16).map(|n| server.raw([ALICE, BOB][n % 2])).collect();
    for stream in &mut pushing {
        stream.set_nonblocking(true).unwrap();
    }
    let mut sent = [0; 16];
    let mut still = Instant::now();
    // Until the server takes no more. The last byte is kept back.
    while still.elapsed() < Duration::from_millis(500) {
        for (stream, sent) in pushing.iter_mut().zip(&mut sent) {
            if let Ok(count) = stream.write(&request[*sent..request.len() - 1])
                && count > 0
            {
                *sent += count;
                still = Instant::now();
            }
        }
    }
    assert!(sent.iter().any(|sent| *sent < request.len() - 1), "all of it was taken");
    for number in 0..50u32 {
        owner.put_with("public", &number.to_be_bytes(), &[2; 200_000], Durability::Visible).unwrap();
    }
    owner.put("public", b"long", &vec![2; 16 << 20]).unwrap();
    drop((liars, pushing, owner));
    server.end();
}

/// A long request without the right to it is refused by its first bytes, and the connection goes
/// on.
#[test]
fn rights_come_before_bytes() {
    let _limit = limit();
    let Some(server) = Server::new("rights_come_before_bytes", &format!("allow {ALICE} read-only \"public\"\n")) else {
        return;
    };
    let before = server.resident_bytes();
    let mut peers: Vec<UnixStream> = (0..20).map(|_| server.raw(ALICE)).collect();
    let value = vec![1; 16 << 20];
    let durability = wire::Durability::Durable;
    let put = wire::encode(&Request::Put { keyspace: "public", key: b"k", value: &value, durability }).unwrap();
    let get = wire::encode(&Request::MultiGet { keyspace: "private", keys: List(vec![&value]) }).unwrap();
    for request in [&put, &get] {
        // All but the last bytes, so that all are there at once.
        let end = request.len() - 100;
        for peer in &mut peers {
            peer.write_all(&request[..end]).unwrap();
        }
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 12 << 20, "{grown} bytes for what is not allowed");
        for peer in &mut peers {
            peer.write_all(&request[end..]).unwrap();
            let reply = reply(peer);
            assert!(matches!(crate::common::error_in(&reply), Some(Error::NotAllowed { .. })));
        }
    }
    for peer in &mut peers {
        peer.write_all(&wire::encode(&Request::Get { keyspace: "public", key: b"k" }).unwrap()).unwrap();
        assert!(matches!(wire::decode(&reply(peer)), Ok(Reply::Value(Some(found))) if found.value == b"v"));
    }
    drop(peers);
    server.end();
}

/// Feeds pass over values that their clients may not read without copying them.
#[test]
fn feeds_hold_nothing_that_may_not_be_read() {
    let _limit = limit();
    let Some(server) = Server::new("feeds_hold_nothing", &format!("allow {ALICE} read-only \"public\"\n")) else {
        return;
    };
    let from = server.store.snapshot().unwrap().txn_id();
    let (public, private) = (server.store.keyspace("public").unwrap(), server.store.keyspace("private").unwrap());
    let mut txn = server.store.begin().unwrap();
    txn.put(&public, b"before", b"1").unwrap();
    txn.put(&private, b"large", &vec![1; 60 << 20]).unwrap();
    txn.put(&public, b"after", b"2").unwrap();
    txn.commit().unwrap();
    let before = server.resident_bytes();
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::SeqCst) {
                most = most.max(server.resident_bytes());
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        let following: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    as_user(ALICE, || {
                        let client = Client::connect(server.socket()).unwrap();
                        let mut changes = client.changes(from, Feed::Visible).unwrap();
                        let mut told = Vec::new();
                        while told.len() < 2 {
                            let change = changes.try_next(HANGS).unwrap().expect("a change");
                            told.push((change.key().to_vec(), change.value().unwrap().to_vec(), change.last_in_txn()));
                        }
                        let change = |key: &[u8], value: &[u8], last| (key.to_vec(), value.to_vec(), last);
                        assert_eq!(told, [change(b"before", b"1", false), change(b"after", b"2", true)]);
                    });
                })
            })
            .collect();
        following.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::SeqCst);
        watching.join().unwrap()
    });
    assert!(most.saturating_sub(before) < 48 << 20, "{} bytes", most - before);
    server.end();
}

/// Feeds pass over values that their clients may not read even if their user has no room left: such
/// a value is not counted, so it is not copied either.
#[test]
fn feeds_need_no_room_for_what_may_not_be_read() {
    let _limit = limit();
    let rules = format!("allow {ALICE} read-only \"public\"\npatience 3600\n");
    let Some(server) = Server::new("feeds_need_no_room", &rules) else { return };
    let from = server.store.snapshot().unwrap().txn_id();
    let (public, private) = (server.store.keyspace("public").unwrap(), server.store.keyspace("private").unwrap());
    let mut txn = server.store.begin().unwrap();
    txn.put(&public, b"before", b"1").unwrap();
    txn.put(&private, b"large", &vec![1; 15 << 20]).unwrap();
    txn.put(&public, b"after", b"2").unwrap();
    txn.commit().unwrap();
    // Two requests without their last bytes take all that one user may have.
    let key = vec![0u8; 16 << 20];
    let request = wire::encode(&Request::MultiGet { keyspace: "public", keys: List(vec![&key]) }).unwrap();
    let mut pushing: Vec<UnixStream> = (0..2).map(|_| server.raw(ALICE)).collect();
    for stream in &mut pushing {
        stream.write_all(&request[..request.len() - 100]).unwrap();
        wait_until_read(stream);
    }
    for _ in 0..20 {
        as_user(ALICE, || {
            let client = Client::connect(server.socket()).unwrap();
            let mut changes = client.changes(from, Feed::Visible).unwrap();
            for key in [&b"before"[..], b"after"] {
                assert_eq!(changes.try_next(HANGS).unwrap().expect("a change").key(), key);
            }
        });
    }
    drop(pushing);
    server.end();
}

/// A value that no reply can hold is an error of each feed, which holds nothing of the value. The
/// anonymous memory is measured: `VmRSS` includes the pages of the store that the logger has read.
#[test]
fn feeds_hold_nothing_that_no_reply_can_hold() {
    let _limit = limit();
    let Some(server) = Server::new("feeds_hold_nothing_that_no_reply", &format!("allow {ALICE} read-only\n")) else {
        return;
    };
    let from = server.store.snapshot().unwrap().txn_id();
    let public = server.store.keyspace("public").unwrap();
    let mut txn = server.store.begin().unwrap();
    txn.put(&public, b"before", b"1").unwrap();
    txn.put(&public, b"large", &vec![1; 60 << 20]).unwrap();
    txn.commit().unwrap();
    let before = server.resident_bytes();
    let open = Request::Changes { from: Some(from.as_u64()), feed: wire::Feed::Visible, keyspace: None, prefix: b"" };
    let (open, next) = (wire::encode(&open).unwrap(), wire::encode(&Request::ChangesNext { wait_ms: 0 }).unwrap());
    let mut peers: Vec<UnixStream> = (0..20).map(|_| server.raw(ALICE)).collect();
    for peer in &mut peers {
        peer.write_all(&open).unwrap();
        let mut answer = reply(peer);
        while crate::common::error_in(&answer).is_none() {
            peer.write_all(&next).unwrap();
            answer = reply(peer);
        }
        let error = crate::common::error_in(&answer);
        assert!(matches!(error, Some(Error::Limit { found, .. }) if found > 60 << 20), "{error:?}");
        // All feeds are still open. 64 MiB is the bound of what they may hold together.
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 72 << 20, "{grown} bytes");
    }
    drop(peers);
    server.end();
}

/// Many long requests at once: their memory is that of a few. What a direct client's commit takes
/// meanwhile is printed, not judged.
#[test]
fn many_long_requests() {
    let _limit = limit();
    let Some(server) = Server::new("many_long_requests", &format!("allow {ALICE} read-only\n")) else { return };
    let before = server.resident_bytes();
    let keys: Vec<[u8; 4]> = (0..65_536u32).map(u32::to_be_bytes).collect();
    let keys: Vec<&[u8]> = keys.iter().map(<[u8; 4]>::as_slice).collect();
    let public = server.store.keyspace("public").unwrap();
    for chunk in keys.chunks(4096) {
        let mut txn = server.store.begin().unwrap();
        chunk.iter().for_each(|key| txn.put(&public, key, b"value").unwrap());
        txn.commit().unwrap();
    }
    let request = wire::encode(&Request::MultiGet { keyspace: "public", keys: List(keys) }).unwrap();
    let mut peers: Vec<UnixStream> = (0..120).map(|_| server.raw(ALICE)).collect();
    let mut most = 0;
    std::thread::scope(|scope| {
        for peer in &mut peers {
            let request = &request;
            scope.spawn(move || {
                // What is refused as too much is refused by a reply, or by hanging up.
                for _ in 0..2 {
                    let mut header = [0; FRAME_HEADER_BYTES];
                    if peer.write_all(request).is_err() || peer.read_exact(&mut header).is_err() {
                        return;
                    }
                    let mut body = vec![0; wire::frame_len(header).unwrap()];
                    peer.read_exact(&mut body).unwrap();
                    match wire::decode::<Reply<'_>>(&body).unwrap() {
                        Reply::Values { values, .. } => assert_eq!(values.0.len(), 65_536),
                        Reply::Failed(_) => assert!(matches!(crate::common::error_in(&body), Some(Error::Busy { .. }))),
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        let mut longest = Duration::ZERO;
        for number in 0..40u32 {
            let start = Instant::now();
            public.put(&number.to_be_bytes(), b"value").unwrap();
            longest = longest.max(start.elapsed());
            most = most.max(server.resident_bytes());
        }
        eprintln!("a direct client's durable put took at most {longest:?}");
    });
    eprintln!("the logger grew by {} MiB", most.saturating_sub(before) >> 20);
    assert!(most.saturating_sub(before) < 128 << 20, "{} bytes", most - before);
    // The owner is served beside them, and afterwards.
    let owner = Client::connect(server.socket()).unwrap();
    assert_eq!(owner.get("public", &7u32.to_be_bytes()).unwrap().unwrap(), b"value");
    assert!(matches!(
        as_user(ALICE, || Client::connect(server.socket())).unwrap().sync(),
        Err(Error::NotAllowed { .. })
    ));
    drop((owner, peers));
    server.end();
}
