//! Goal: all processes can open at once, from anywhere, and where one can't the error gives the
//! reason: first openings that race and are killed half-way, long paths, several stores and several
//! handles, read-only openers, missing rights.
//!
//! Method: real processes in the roles at the end of the file, directed by pipes, on real
//! directories. What needs root reports loudly that it is skipped, and fails where `CI` is set.

mod in_order;
mod overlay;
mod ownership;
mod removed;
mod rights;

use crate::common::{HANGS, Process, Role, TestStore, assert_clean, exists, limit, listen, say, spawn, wait_until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use untorn::{Durability, Error, FlushPolicy, Store};

/// Ten processes open a store that does not exist yet, at the same instant: one store, one logger,
/// ten clients.
#[test]
fn ten_open_a_new_store_at_once() {
    let _limit = limit();
    for _ in 0..5 {
        let test = TestStore::new();
        let mut children: Vec<Process> =
            (0..10).map(|n| spawn("opening::open", &test.path, &[&n.to_string()])).collect();
        children.iter().for_each(|child| child.expect("ready"));
        children.iter_mut().for_each(|child| child.tell("open"));
        children.iter().for_each(|child| child.expect("put"));
        let store = test.open();
        let stats = store.stats().unwrap();
        assert_eq!((stats.clients.len(), stats.logger_starts), (11, 1), "{stats:#?}");
        assert_eq!(store.keyspace("keys").unwrap().len().unwrap(), 10);
        children.into_iter().for_each(|child| drop(child.finish()));
        assert_clean(&store);
    }
}

/// Processes open a store while another one makes so many cells that the shared region grows all
/// the time. An opener once compared the size that the region states with a length that it had read
/// before. It then took the region for one of another boot.
#[test]
fn the_region_grows_while_others_open() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.durability(Durability::Visible);
    });
    let openers: Vec<Process> = (0..2).map(|_| spawn("opening::reopen", &test.path, &[])).collect();
    openers.iter().for_each(|opener| opener.expect("opening"));
    let mut snapshots = Vec::new();
    for n in 0..2000 {
        store.cell(&n.to_string(), 4096).unwrap();
        snapshots.push(store.snapshot().unwrap());
    }
    let opened: u64 = openers.into_iter().map(|opener| opener.finish()[0].parse::<u64>().unwrap()).sum();
    eprintln!("opened {opened} times");
    assert!(opened > 10);
}

/// Some of the openers of a new store, and its first loggers, are killed while they make it; the
/// others get in.
#[test]
fn openers_are_killed_while_they_make_the_store() {
    let _limit = limit();
    let seed = crate::common::seed("--test suite opening::openers_are_killed");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..12 {
        let test = TestStore::new();
        let mut children: Vec<Process> =
            (0..6).map(|n| spawn("opening::open", &test.path, &[&n.to_string()])).collect();
        children.iter().for_each(|child| child.expect("ready"));
        children.iter_mut().for_each(|child| child.tell("open"));
        let mut acknowledged = 0;
        for child in &mut children[..4] {
            std::thread::sleep(Duration::from_micros(random.random_range(0..9000)));
            acknowledged += child.kill().len() as u64;
        }
        for child in &children[4..] {
            child.expect("put");
        }
        let start = Instant::now();
        let store = test.open();
        assert!(start.elapsed() < HANGS);
        let found = store.keyspace("keys").unwrap().len().unwrap();
        assert!((acknowledged + 2..=6).contains(&found), "UNTORN_SEED={seed}, round {round}: {found} keys");
        assert_clean(&store);
    }
}

/// When no process uses the store any more, the logger leaves by itself, leaving nothing to replay,
/// and a later opener starts another.
#[test]
fn an_idle_logger_leaves() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.logger_idle(Duration::from_millis(100));
    });
    store.keyspace("keys").unwrap().put(b"k", b"v").unwrap();
    let logger = store.stats().unwrap().logger_pid.unwrap();
    // The logger stays as long as a process has the store open.
    std::thread::sleep(Duration::from_millis(400));
    assert!(exists(logger));
    let before = store.snapshot().unwrap().txn_id();
    drop(store);
    wait_until(|| !exists(logger));
    let store = test.open();
    let stats = store.stats().unwrap();
    assert_ne!(stats.logger_pid.unwrap(), logger);
    // Left in order: the same incarnation, nothing newer than the checkpoint.
    assert_eq!((stats.committed, stats.checkpointed), (before, before));
    assert_eq!(store.keyspace("keys").unwrap().get(b"k").unwrap().unwrap(), b"v");
}

/// The path of a store may be longer than what system calls, socket addresses or a shell take at
/// once.
#[test]
fn long_paths() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let mut path = dir.path().to_path_buf();
    while path.as_os_str().len() < 3800 {
        path.push("a-folder-with-a-name-of-forty-characters");
    }
    std::fs::create_dir_all(&path).unwrap();
    let path = path.join("store");
    let store = Store::open(&path).unwrap();
    let keys = store.keyspace("keys").unwrap();
    keys.put(b"k", b"v").unwrap();
    let child = spawn("opening::get", &path, &[]);
    child.expect("v");
    child.finish();
    crate::common::kill_logger(&store);
    keys.put(b"k", b"w").unwrap();
    store.checkpoint().unwrap();
    assert_clean(&store);
    drop((keys, store));
    untorn::logger::stop_logger(&path, HANGS).unwrap();
    assert_eq!(Store::open(&path).unwrap().keyspace("keys").unwrap().get(b"k").unwrap().unwrap(), b"w");
    untorn::logger::stop_logger(&path, HANGS).unwrap();
}

/// What opens in the deepest directory that a process can be in, whose path is longer than any
/// system call takes, and in one that was removed. Errors once named what was a consequence of
/// that, or a path that leads elsewhere.
#[test]
fn no_usable_path_leads_to_the_store() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let answers = |role: &str| {
        let child = spawn(&format!("opening::{role}"), dir.path(), &[]);
        let answers: Vec<String> = (0..4).map(|_| child.hear()).collect();
        child.finish();
        answers
    };
    // No program can be started at such a path; a thread is started without one.
    let [opened, by_thread, by_path, by_socket] = &answers("in-a-deep-directory")[..] else { unreachable!() };
    assert!(opened.contains("no logger can be started") && opened.contains("at most 4095"), "{opened}");
    assert!(opened.contains("/a-folder-with-a-name-of-forty-characters/store"), "{opened}");
    assert_eq!(by_thread, "opened");
    for error in [by_path, by_socket] {
        assert!(error.contains("has 4") && error.contains("at most 4095"), "{error}");
    }
    let [relative, existing, here, above] = &answers("in-a-removed-directory")[..] else { unreachable!() };
    for error in [relative, existing] {
        assert!(error.contains("store is a relative path") && error.contains("directory was removed"), "{error}");
    }
    assert!(here.contains("the directory . was removed"), "{here}");
    assert_eq!(above, "opened");
    untorn::logger::stop_logger(dir.path().join("store"), HANGS).unwrap();
}

/// Handles of one process to one directory share what they map, by whatever path; two directories
/// have nothing in common.
#[test]
fn one_store_twice_and_two_stores_in_a_process() {
    let _limit = limit();
    let test = TestStore::new();
    let other = TestStore::new();
    let one = test.open();
    let same = Store::open(test.path.join("../store")).unwrap();
    let second = other.open();
    one.keyspace("keys").unwrap().put(b"k", b"one").unwrap();
    second.keyspace("keys").unwrap().put(b"k", b"two").unwrap();
    assert_eq!(same.keyspace("keys").unwrap().get(b"k").unwrap().unwrap(), b"one");
    assert_eq!(one.stats().unwrap().clients.len(), 1);
    assert_ne!(one.stats().unwrap().logger_pid, second.stats().unwrap().logger_pid);
    // Each handle has its own defaults.
    let reader = test.open_with(|options| {
        options.read_only(true);
    });
    assert!(matches!(reader.begin(), Err(Error::ReadOnly)));
    // The last handle of the process leaves; the others go on until then.
    let value = one.keyspace("keys").unwrap().get(b"k").unwrap().unwrap();
    drop((one, reader));
    same.keyspace("keys").unwrap().put(b"k", b"three").unwrap();
    drop(same);
    assert_eq!(value, b"one", "a value keeps its snapshot");
    drop(value);
    let watcher = spawn("opening::clients", &test.path, &[]);
    watcher.expect("1");
}

/// The policy can be set at open and changed while the store runs, for all processes.
#[test]
fn flush_policies_change_at_run_time() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.durability(Durability::Visible).flush_policy(FlushPolicy::Every(Duration::from_secs(3600)));
    });
    let keys = store.keyspace("keys").unwrap();
    let commit = |key: &[u8], len: usize| {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, key, &vec![7; len]).unwrap();
        txn.commit().unwrap()
    };
    store.sync().unwrap();
    let ticket = commit(b"a", 10);
    assert!(!ticket.wait_timeout(Duration::from_millis(300)).unwrap(), "an hour has not passed");
    // Another process changes it, and what waits goes out.
    spawn("opening::policy", &test.path, &["every", "20"]).finish();
    assert!(ticket.wait_timeout(HANGS).unwrap());
    spawn("opening::policy", &test.path, &["bytes", "4000"]).finish();
    let small = commit(b"b", 1000);
    assert!(!small.wait_timeout(Duration::from_millis(200)).unwrap(), "4,000 bytes have not gathered");
    let more = commit(b"c", 3500);
    assert!(small.wait_timeout(HANGS).unwrap() && more.is_durable());
    spawn("opening::policy", &test.path, &["commit", ""]).finish();
    assert!(commit(b"d", 10).wait_timeout(HANGS).unwrap());
}

/// A read-only opener reads beside writers, also what it finds only later, and has no writable
/// mapping of the arena.
#[test]
fn read_only_maps_nothing_writable() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    keys.put(b"k", b"0").unwrap();
    let mut reader = spawn("opening::read-only", &test.path, &[]);
    reader.expect("0");
    for n in 1..200 {
        keys.put(b"k", n.to_string().as_bytes()).unwrap();
    }
    reader.tell("again");
    reader.expect("199");
    // `rw-s` or `-w-s` of the arena would be a writable mapping.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", reader.pid())).unwrap();
    let arena: Vec<&str> = maps.lines().filter(|line| line.ends_with("/arena")).collect();
    // The pages, and one page without any access that keeps the lock by which this process is
    // alive.
    let count = |access: &str| arena.iter().filter(|line| line.contains(access)).count();
    assert_eq!((arena.len(), count(" r--s "), count(" ---s ")), (2, 1, 1), "{maps}");
    reader.tell("write");
    reader.expect("refused");
    reader.finish();
    // The writer's process has such a mapping; it shows that the check above can fail.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let arena = std::fs::canonicalize(test.path.join("arena")).unwrap();
    let is_writable = |line: &str| line.ends_with(arena.to_str().unwrap()) && line.contains(" rw-s ");
    assert!(maps.lines().any(is_writable), "{maps}");
}

/// If opening fails, the error names the cause: the path, the file, the right that is missing.
#[test]
fn what_is_in_the_way_is_named() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let error = Store::options().create(false).open(&missing).unwrap_err();
    assert!(matches!(&error, Error::NotFound { path } if *path == missing), "{error}");
    assert!(!missing.exists());
    // Only the last component of the path is made.
    let error = Store::open(missing.join("below")).unwrap_err();
    assert!(error.to_string().contains("missing/below: No such file"), "{error}");
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = Store::open(&file).unwrap_err();
    assert!(error.to_string().contains("not a directory"), "{error}");
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(matches!(Store::options().create(false).open(&empty), Err(Error::NotFound { .. })));
    assert!(matches!(Store::open(""), Err(Error::Invalid { .. })));
    for (what, error) in [
        ("page size", Store::options().page_size(5000).open(&missing).unwrap_err()),
        ("ring size", Store::options().ring_size(70_000).open(&missing).unwrap_err()),
        ("segment size", Store::options().segment_size(4096).open(&missing).unwrap_err()),
        ("maximum size", Store::options().max_size(1 << 60).open(&missing).unwrap_err()),
    ] {
        assert!(error.to_string().contains(what), "{error}");
    }

    let test = TestStore::new();
    drop(test.open());
    let error = Store::options().page_size(8192).open(&test.path).unwrap_err();
    assert!(error.to_string().contains("page size of 4096"), "{error}");
}

// ---- the roles

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "open" => {
            say("ready");
            listen();
            let store = Store::open(&role.store).unwrap();
            let keys = store.keyspace("keys").unwrap();
            keys.put(role.arguments[0].as_bytes(), b"v").unwrap();
            say("put");
            listen();
        }
        "reopen" => {
            say("opening");
            let told = std::thread::spawn(listen);
            let mut opened = 0;
            while !told.is_finished() {
                Store::open(&role.store).unwrap().close().unwrap();
                opened += 1;
            }
            say(opened);
        }
        "get" => {
            let store = Store::open(&role.store).unwrap();
            let value = store.keyspace("keys").unwrap().get(b"k").unwrap().unwrap();
            say(String::from_utf8_lossy(&value));
        }
        "clients" => {
            let store = Store::open(&role.store).unwrap();
            say(store.stats().unwrap().clients.len());
        }
        "policy" => {
            let store = Store::open(&role.store).unwrap();
            let policy = match role.arguments[0].as_str() {
                "every" => FlushPolicy::Every(Duration::from_millis(role.number(1))),
                "bytes" => FlushPolicy::EveryBytes(role.number(1)),
                _ => FlushPolicy::OnCommit,
            };
            store.set_flush_policy(policy).unwrap();
        }
        "read-only" => read_only(&role),
        "as-user" => {
            let user = role.number(0) as u32;
            rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(user)).unwrap();
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(user)).unwrap();
            let store = Store::options().segment_size(1 << 18).ring_size(1 << 16).open(&role.store).unwrap();
            store.keyspace("keys").unwrap().put(role.arguments[1].as_bytes(), b"v").unwrap();
            say(store.keyspace("keys").unwrap().len().unwrap());
        }
        "in-a-deep-directory" => {
            std::env::set_current_dir(&role.store).unwrap();
            for _ in 0..110 {
                // One step at a time: no system call takes the whole path.
                std::fs::create_dir("a-folder-with-a-name-of-forty-characters").unwrap();
                std::env::set_current_dir("a-folder-with-a-name-of-forty-characters").unwrap();
            }
            say_opened(&Store::options(), "store".as_ref());
            say_opened(Store::options().logger_thread(true), "store".as_ref());
            let path = std::path::absolute("store").unwrap();
            say_opened(&Store::options(), &path);
            say(untorn::Client::connect("store/logger.sock").unwrap_err());
            untorn::logger::stop_logger("store", HANGS).unwrap();
        }
        "in-a-removed-directory" => {
            let here = role.store.join("here");
            std::fs::create_dir(&here).unwrap();
            std::env::set_current_dir(&here).unwrap();
            std::fs::remove_dir(&here).unwrap();
            say_opened(&Store::options(), "store".as_ref());
            say_opened(Store::options().create(false), "store".as_ref());
            say_opened(&Store::options(), ".".as_ref());
            // It has a path, and so can have a logger.
            say_opened(&Store::options(), "../store".as_ref());
        }
        "as-nobody" => rights::as_nobody(&role.store, role.arguments[0] == "true"),
        other => panic!("no role {other}"),
    }
}

/// Opens a store, writes to it, and prints the result.
fn say_opened(options: &untorn::Options, path: &Path) {
    match options.open(path).and_then(|store| store.keyspace("keys")?.put(b"k", b"v")) {
        Ok(_) => say("opened"),
        Err(error) => say(error),
    }
}

fn read_only(role: &Role) {
    let store = Store::options().read_only(true).open(&role.store).unwrap();
    let keys = store.keyspace("keys").unwrap();
    let tell = || say(String::from_utf8_lossy(&keys.get(b"k").unwrap().unwrap()));
    tell();
    while let Some(told) = listen() {
        if told == "again" {
            tell();
            continue;
        }
        assert!(matches!(keys.put(b"k", b"v"), Err(Error::ReadOnly)));
        assert!(matches!(keys.delete(b"k"), Err(Error::ReadOnly)));
        assert!(matches!(store.begin(), Err(Error::ReadOnly)));
        assert!(matches!(store.keyspace("new"), Err(Error::NoKeyspace { .. })));
        assert!(matches!(store.drop_keyspace("keys"), Err(Error::ReadOnly)));
        say("refused");
    }
}
