//! Goal: who waits for a sync waits until it has succeeded, and no longer than that concerns them;
//! a sync that failed for good is got over without anybody's help where no client maps the store;
//! and a file system of this kind is not used by mistake.
//!
//! Method: the recording file system of the harness, whose syncs can be held and failed, and
//! processes of the harness on it. Without root and FUSE that is said, and is an error where
//! nothing may be skipped.

use crash_harness::limits::HANGS;
use crash_harness::power::lives::Life;
use crash_harness::recorder::own_mounts;
use std::time::{Duration, Instant};
use untorn::{Client, Durability};

/// A life on an empty recorder; none where nothing can be mounted.
fn life() -> Option<Life> {
    match own_mounts().and_then(|()| Life::begin(env!("CARGO_BIN_EXE_crash-harness").into(), None)) {
        Ok(life) => Some(life),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "nothing can be mounted: {error}");
            eprintln!("SKIPPED: a test with held syncs, since nothing can be mounted here (root and FUSE): {error}");
            None
        }
    }
}

/// A sync of the log is held: whoever asked for durability waits, whoever did not, does not. It
/// fails: the log goes on elsewhere, and the answer is that it is durable.
#[test]
fn a_message_is_answered_after_the_sync() {
    let Some(mut life) = life() else { return };
    life.processes.start_writers(1, 1);
    life.processes.wait_for_writers().unwrap();
    let socket = life.processes.store.join("logger.sock");
    let (client, other) = (Client::connect(&socket).unwrap(), Client::connect(&socket).unwrap());
    client.put("k", b"before", b"").unwrap();
    life.recorder.hold_sync("wal/seg-", 0);
    std::thread::scope(|scope| {
        let durable = scope.spawn(|| client.put("k", b"durable", b""));
        let held = life.recorder.held(HANGS).expect("a sync of the log");
        other.put_with("k", b"visible", b"", Durability::Visible).unwrap();
        // The sync may be of an earlier flush, before the message was served.
        let is_visible = || other.get("k", b"durable").unwrap().is_some();
        life.wait_for("the message is served", |_| is_visible()).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(!durable.is_finished(), "answered before the sync");
        held.fail();
        durable.join().unwrap().unwrap();
    });
    drop((client, other));
    life.end(0);
}

/// A sync of the arena fails, after which a store refuses writes until all have closed it. Where
/// all clients pass messages, the logger sees to that by itself, and the next one recovers.
#[test]
fn clients_that_pass_messages_need_not_close_the_store() {
    let Some(mut life) = life() else { return };
    life.processes.start_writers(1, 1);
    life.processes.wait_for_writers().unwrap();
    life.processes.stop_logger().unwrap();
    let serving = life.processes.start_without_mark("supervised");
    let socket = life.processes.store.join("logger.sock");
    let start = Instant::now();
    let client = loop {
        match Client::options().reconnect_timeout(HANGS).connect(&socket) {
            Ok(client) => break client,
            Err(error) => assert!(start.elapsed() < HANGS, "no socket: {error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let before = client.put("k", b"before", b"1").unwrap();
    life.recorder.hold_sync("arena", 0);
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| client.checkpoint());
        life.recorder.held(HANGS).expect("a sync of the arena").fail();
        // Refused, or taken by the next logger: the request may be sent again.
        let _ = checkpoint.join().unwrap();
    });
    let start = Instant::now();
    // A logger that has recovered begins a new incarnation.
    loop {
        match client.put("k", b"after", b"2") {
            Ok(txn) if txn.incarnation() > before.incarnation() => break,
            ended => assert!(start.elapsed() < HANGS, "{ended:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(client.get("k", b"before").unwrap().unwrap(), b"1");
    drop(client);
    drop(serving);
    life.end(0);
}

/// A file system of this kind answers to nobody's locks but its own process's, as far as can be
/// known: it is refused by name, unless the options insist.
#[test]
fn such_a_file_system_is_refused_unless_insisted_on() {
    let Some(mut life) = life() else { return };
    let path = life.processes.store.clone();
    let error = untorn::Store::open(&path).unwrap_err();
    assert!(
        matches!(&error, untorn::Error::UnsupportedFileSystem { file_system, path: named, .. } if file_system == "FUSE" && *named == path),
        "{error}"
    );
    // The writers insist.
    life.processes.start_writers(1, 1);
    life.processes.wait_for_writers().unwrap();
    life.end(0);
}
