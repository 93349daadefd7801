//! Goal: if a file is removed, replaced or renamed under an open store, the error names it. No
//! second set of users recovers the store beside the living one, and nothing acknowledged is lost.
//! A new `lock` once let an opener recover a store beneath its users.
//!
//! Method: a process holds the store and goes on, while this one removes and renames, opens, and
//! checks what was acknowledged.

use crate::common::{
    HANGS, Process, Role, TestStore, assert_clean, exists, kill_logger, limit, listen, say, spawn, wait_until,
};
use std::path::Path;
use std::time::Duration;
use untorn::{Durability, Error, Feed, Store};

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "holds" => holds(&role.store),
        "opens" => opens(&role.store),
        "leaves" => leaves(&role.store),
        other => panic!("no role {other}"),
    }
}

/// Has the store open and executes commands.
fn holds(path: &Path) {
    let store = Store::open(path).unwrap();
    let keys = store.keyspace("keys").unwrap();
    say("open");
    while let Some(line) = listen() {
        match line.as_str() {
            "logger" => say(store.stats().unwrap().logger_pid.unwrap_or(0)),
            "kill logger" => {
                kill_logger(&store);
                say("killed");
            }
            // Durable: it answers the error, if there is one.
            key => match keys.put(key.as_bytes(), b"value") {
                Ok(_) => say("put"),
                Err(error) => say(error),
            },
        }
    }
}

/// Opens the store, and closes it at a command. The logger stays until it is stopped.
fn leaves(path: &Path) {
    let store = Store::options().logger_idle(Duration::MAX).open(path).unwrap();
    store.keyspace("keys").unwrap().put("k", "v").unwrap();
    say(store.stats().unwrap().logger_pid.unwrap());
    listen();
    drop(store);
    say("closed");
    listen();
}

/// Tries to open the store, and prints the error.
fn opens(path: &Path) {
    match Store::open(path) {
        Ok(store) => say(format!("opened beside {}", store.stats().unwrap().clients.len() - 1)),
        Err(error) => say(error),
    }
}

fn holder(path: &Path) -> Process {
    let holder = spawn("opening::removed::holds", path, &[]);
    holder.expect("open");
    holder
}

/// The result that another process gets when it opens the store.
fn open_elsewhere(path: &Path) -> String {
    let opener = spawn("opening::removed::opens", path, &[]);
    let answer = opener.hear();
    opener.finish();
    answer
}

/// Puts until an error comes, which is returned; all before it were acknowledged.
fn put_until_refused(holder: &mut Process, acknowledged: &mut Vec<String>) -> String {
    for n in 0.. {
        let key = format!("after {n}");
        match holder.ask(&key) {
            answer if answer == "put" => acknowledged.push(key),
            answer => return answer,
        }
        // The logger leaves in its own time.
        std::thread::yield_now();
    }
    unreachable!("the loop ends by returning")
}

/// How a file of a store comes to be missing.
type Removal = fn(&Path);

/// `lock` is removed in each possible way. The opener gets the reason as an error, and so does the
/// process that goes on. When that process has closed the store, all that was acknowledged is
/// there.
#[test]
fn lock_is_removed_while_a_process_has_the_store_open() {
    let _limit = limit();
    let ways: [(&str, Removal); 3] = [
        ("removed", |path| std::fs::remove_file(path.join("lock")).unwrap()),
        ("replaced", |path| {
            std::fs::write(path.join("new"), b"").unwrap();
            std::fs::rename(path.join("new"), path.join("lock")).unwrap();
        }),
        ("renamed", |path| std::fs::rename(path.join("lock"), path.join("lock.old")).unwrap()),
    ];
    for (way, remove) in ways {
        let test = TestStore::new();
        let mut holder = holder(&test.path);
        let mut acknowledged = vec!["before".to_string()];
        assert_eq!(holder.ask("before"), "put");
        remove(&test.path);
        // Twice: the first opener has made another `lock`.
        for _ in 0..2 {
            let answer = open_elsewhere(&test.path);
            assert!(answer.starts_with("lock ") && answer.contains("removed or replaced"), "{way}: {answer}");
        }
        let answer = put_until_refused(&mut holder, &mut acknowledged);
        assert!(answer.contains("lock") && answer.contains(test.path.to_str().unwrap()), "{way}: {answer}");
        let answer = open_elsewhere(&test.path);
        assert!(answer.contains("removed or replaced"), "{way}: {answer}");
        holder.finish();
        let store = test.open();
        let keys = store.keyspace("keys").unwrap();
        let lost: Vec<_> = acknowledged.iter().filter(|key| keys.get(key.as_bytes()).unwrap().is_none()).collect();
        assert!(lost.is_empty(), "{way}: {lost:?}");
        assert_clean(&store);
        drop((keys, store));
        test.stop_logger();
    }
}

/// The last client has just closed the store, after it did nothing for a while. A logger that would
/// stay for ever notices all the same that `lock`, or the directory, is removed. It once began to
/// watch the directory only at its next check beside clients.
#[test]
fn a_removal_soon_after_the_last_client_left_is_noticed() {
    let _limit = limit();
    let ways: [Removal; 2] =
        [|path| std::fs::remove_file(path.join("lock")).unwrap(), |path| std::fs::remove_dir_all(path).unwrap()];
    for remove in ways {
        let test = TestStore::new();
        let mut client = spawn("opening::removed::leaves", &test.path, &[]);
        let logger: u32 = client.hear().parse().unwrap();
        // Until the logger rests beside the client, and then until it rests alone.
        std::thread::sleep(Duration::from_millis(2_300));
        assert_eq!(client.ask(""), "closed");
        std::thread::sleep(Duration::from_millis(1_500));
        remove(&test.path);
        wait_until(|| !exists(logger));
        client.finish();
    }
}

/// The directory is removed: a durable call answers that, not that a logger is stalled; the logger
/// leaves.
#[test]
fn the_directory_is_removed() {
    let _limit = limit();
    let test = TestStore::new();
    let mut holder = holder(&test.path);
    assert_eq!(holder.ask("before"), "put");
    let logger: u32 = holder.ask("logger").parse().unwrap();
    std::fs::remove_dir_all(&test.path).unwrap();
    let answer = put_until_refused(&mut holder, &mut Vec::new());
    let expected = format!("the directory {} was removed", test.path.display());
    assert!(answer.contains(&expected), "{answer}");
    wait_until(|| !exists(logger));
    holder.finish();
    // Another store of the same name is a new one.
    let store = test.open();
    assert!(store.find_keyspace("keys").unwrap().is_none());
}

/// Uses a store until a call returns an error.
type UseUntilError = fn(&Store) -> Option<Error>;

/// Waits for a change that never comes. Returns the error.
fn wait_for_change(store: &Store, feed: Feed) -> Option<Error> {
    let newest = store.snapshot().unwrap().txn_id();
    store.changes(newest, feed).unwrap().try_next(HANGS).err()
}

/// The directory is removed: a process that writes for the first time or grows the store, and one
/// that waits for changes, get the same error.
#[test]
fn the_directory_of_other_users_is_removed() {
    let _limit = limit();
    // Whether the process has written before, and its use of the store.
    let uses: &[(&str, bool, UseUntilError)] = &[
        ("writes first", false, |store| store.begin_with(Durability::Visible).err()),
        ("grows", true, |store| {
            let keys = store.find_keyspace("keys").unwrap().unwrap();
            (0..1000u32).find_map(|n| keys.put(n.to_be_bytes(), vec![7; 60_000]).err())
        }),
        ("waits for visible changes", true, |store| wait_for_change(store, Feed::Visible)),
        ("waits for durable changes", true, |store| wait_for_change(store, Feed::Durable)),
    ];
    for (name, has_written, use_until_error) in uses {
        let test = TestStore::new();
        let mut store = test.open();
        store.keyspace("keys").unwrap().put("k", "v").unwrap();
        if !has_written {
            drop(store);
            store = test.open();
        }
        std::fs::remove_dir_all(&test.path).unwrap();
        let error = use_until_error(&store).unwrap_or_else(|| panic!("{name}: no error"));
        let expected = format!("the directory {} was removed", test.path.display());
        assert!(matches!(error, Error::Detached { .. }) && error.to_string().contains(&expected), "{name}: {error}");
    }
}

/// The directory is renamed: its users go on, the new path leads to the same store, and a logger is
/// started for it, also when another store has taken the old path.
#[test]
fn the_directory_is_renamed() {
    let _limit = limit();
    let test = TestStore::new();
    let mut holder = holder(&test.path);
    assert_eq!(holder.ask("before"), "put");
    let renamed = test.path.with_file_name("renamed");
    std::fs::rename(&test.path, &renamed).unwrap();
    assert_eq!(holder.ask("k1"), "put");
    assert_eq!(open_elsewhere(&renamed), "opened beside 1");
    // Another store at the old path, whose logger leaves.
    drop(test.open());
    test.stop_logger();
    for key in ["k2", "k3"] {
        assert_eq!(holder.ask("kill logger"), "killed");
        assert_eq!(holder.ask(key), "put");
    }
    assert!(!untorn::logger::stop_logger(&test.path, HANGS).unwrap(), "a logger was started for the other store");
    let store = Store::open(&renamed).unwrap();
    assert_eq!(store.keyspace("keys").unwrap().len().unwrap(), 4);
    holder.finish();
    assert_clean(&store);
    drop(store);
    untorn::logger::stop_logger(&renamed, HANGS).unwrap();
}

/// `arena` is replaced: what grows or syncs it must not take the other file for it.
#[test]
fn arena_is_replaced() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    keys.put(b"k", b"v").unwrap();
    let arena = test.path.join("arena");
    std::fs::rename(&arena, test.path.join("aside")).unwrap();
    std::fs::copy(test.path.join("aside"), &arena).unwrap();
    let len = || std::fs::metadata(&arena).unwrap().len();
    let before = len();
    // Until the logger's head start is used up.
    let value = vec![7; 1 << 20];
    let refused = (0..200_u32).find_map(|n| keys.put(&n.to_be_bytes(), &value).err());
    let error = refused.expect("the arena cannot grow");
    assert!(matches!(&error, Error::Mismatch { file, .. } if file == "arena"), "{error}");
    assert_eq!(len(), before, "the other file was written to");
    std::fs::rename(test.path.join("aside"), &arena).unwrap();
    keys.put(b"l", &value).unwrap();
    assert_clean(&store);
}
