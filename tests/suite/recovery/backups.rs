//! Goal: a backup that is copied back over a store's directory is what the next open finds,
//! whatever shared region lies there; and what was visible when all processes were killed is still
//! there if nothing was copied.
//!
//! Method: a store is written to by another process, which leaves in order or is killed together
//! with the logger; files are copied over it as `cp -a` would, which keeps the inodes of those that
//! are there.

use crate::common::store_files::{all_files, kill, scratch, small};
use crate::common::{Role, exists, limit, listen, say, spawn, wait_until};
use std::fs;
use std::path::Path;
use std::time::Duration;
use untorn::{Durability, FlushPolicy, Store};

/// Not a test of its own: stores its argument, durably, and then in a commit that is only visible.
#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    {
        let store = small().open(&role.store).unwrap();
        store.keyspace("keys").unwrap();
        store.cell("cell", 8).unwrap();
    }
    // From here on nothing is flushed that nothing waits for.
    let store = small().flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).open(&role.store).unwrap();
    let keys = store.keyspace("keys").unwrap();
    let cell = store.cell("cell", 8).unwrap();
    let put = |key: &[u8]| {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, key, role.arguments[0].as_bytes()).unwrap();
        txn.commit().unwrap();
    };
    put(b"durable");
    store.sync().unwrap();
    put(b"visible");
    cell.store(&role.number(0).to_le_bytes()).unwrap();
    say(store.stats().unwrap().logger_pid.unwrap());
    listen();
}

/// Has another process store `value`, and ends it: in order, or by killing it and the logger.
fn write(path: &Path, value: &str, ends: &str) {
    let mut child = spawn("recovery::backups::writer", path, &[value]);
    let logger: u32 = child.hear().parse().unwrap();
    if ends == "killed" {
        kill(logger);
        child.kill();
        // Until its last thread has ended, it holds its byte, and the store is in use.
        wait_until(|| !exists(logger));
    } else {
        child.finish();
        untorn::logger::stop_logger(path, Duration::from_secs(60)).unwrap();
    }
}

/// Copies the files of a store over another directory, which keeps its own region.
fn copy_over(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("wal")).unwrap();
    for (name, bytes) in all_files(from).into_iter().filter(|(name, _)| name != "control") {
        fs::write(to.join(name), bytes).unwrap();
    }
}

/// What the store holds: the durable value, the visible one, that of the cell.
fn found(path: &Path) -> [String; 3] {
    found_in(small().open(path).unwrap(), path)
}

fn found_in(store: Store, path: &Path) -> [String; 3] {
    let report = store.verify().unwrap();
    assert!(report.is_clean(), "{report:#?}");
    let keys = store.keyspace("keys").unwrap();
    let text = |key: &[u8]| String::from_utf8(keys.get(key).unwrap().unwrap().to_vec()).unwrap();
    let mut value = [0; 8];
    store.cell("cell", 8).unwrap().load(&mut value).unwrap();
    let found = [text(b"durable"), text(b"visible"), u64::from_le_bytes(value).to_string()];
    drop(keys);
    store.close().unwrap();
    untorn::logger::stop_logger(path, Duration::from_secs(60)).unwrap();
    found
}

#[test]
fn a_backup_that_is_copied_back_is_what_is_found() {
    let _limit = limit();
    for ends in ["in order", "killed"] {
        for rounds in [1, 4] {
            let dir = scratch();
            let (path, backup) = (dir.path().join("store"), dir.path().join("backup"));
            write(&path, "1", "in order");
            copy_over(&path, &backup);
            for round in 0..rounds {
                write(&path, &(2 + round).to_string(), ends);
            }
            copy_over(&backup, &path);
            match small().open(&path) {
                Ok(store) => assert_eq!(found_in(store, &path), ["1", "1", "1"], "{rounds} later lives, {ends}"),
                // Segments that the backup did not have are still there.
                Err(error) => {
                    let is_damage = matches!(error, untorn::Error::Corrupt { .. });
                    assert!(rounds > 1 && is_damage, "{rounds} later lives, {ends}: {error:?}");
                }
            }
        }
    }
}

/// The directory that is copied over is a store that has lived on by itself.
#[test]
fn the_other_direction() {
    let _limit = limit();
    let dir = scratch();
    let (path, backup) = (dir.path().join("store"), dir.path().join("backup"));
    write(&path, "1", "in order");
    copy_over(&path, &backup);
    write(&backup, "2", "killed");
    write(&path, "3", "in order");
    copy_over(&path, &backup);
    assert_eq!(found(&backup), ["3", "3", "3"]);
}

/// A clean stop leaves nothing that a later open could use instead of the files; but it leaves the
/// blocks.
#[test]
fn a_clean_stop_leaves_no_region() {
    let _limit = limit();
    let dir = scratch();
    let path = dir.path().join("store");
    write(&path, "1", "in order");
    let control = fs::read(path.join("control")).unwrap();
    assert_eq!(control[..8], [0; 8]);
    assert!(control.len() > 1 << 16);
    assert_eq!(found(&path), ["1", "1", "1"]);
}

/// Mere deaths lose nothing that was visible, however often recovery itself begins.
#[test]
fn what_was_visible_is_there_after_deaths() {
    let _limit = limit();
    let dir = scratch();
    let path = dir.path().join("store");
    for value in ["1", "2", "3"] {
        write(&path, value, "killed");
    }
    assert_eq!(found(&path), ["3", "3", "3"]);
}
