//! Goal: a caller that needs a sync waits until it has succeeded, and other callers do not wait. If
//! a sync fails permanently and no client maps the store, the store recovers without intervention.
//! A store on a FUSE file system is refused unless an option allows it.
//!
//! Method: the recording file system of the harness, whose syncs can be held and made to fail, and
//! processes of the harness on it. Without root and FUSE the tests are skipped with a message. If
//! the variable CI is set, that is an error.

use crash_harness::power::lives::Life;
use crash_harness::processes::HANGS;
use crash_harness::recorder::own_mounts;
use std::time::{Duration, Instant};
use untorn::{Client, Durability};

/// Begins a life on an empty recorder. Returns `None` if nothing can be mounted.
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

/// A sync of the log is held: callers that requested durability wait, other callers do not. Then
/// the sync fails: the log continues in another segment, and the commit is durable.
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
        // The sync may belong to an earlier flush, before the message was served.
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

/// A sync of the arena fails. The store then refuses writes until all processes have closed it. If
/// all clients pass messages, the logger leaves on its own, and the next one recovers.
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
        // The request was refused, or the next logger served it; it may be sent again.
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

/// A FUSE file system may not propagate locks to other processes. A store on it is refused unless
/// the option allows it.
#[test]
fn such_a_file_system_is_refused_unless_insisted_on() {
    let Some(mut life) = life() else { return };
    let path = life.processes.store.clone();
    let error = untorn::Store::open(&path).unwrap_err();
    assert!(
        matches!(&error, untorn::Error::UnsupportedFileSystem { file_system, path: named, .. } if file_system == "FUSE" && *named == path),
        "{error}"
    );
    // The writers set the option.
    life.processes.start_writers(1, 1);
    life.processes.wait_for_writers().unwrap();
    life.end(0);
}
