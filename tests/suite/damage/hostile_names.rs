//! Goal: a name in a store's directory that leads to something else than the store's own regular
//! file is an error that names it. It is not followed, not waited for, not taken for a missing
//! file, and nothing is done to what it leads to.
//!
//! Method: each file and folder of a store is moved aside, and a symbolic link to it, a FIFO, a
//! socket, a directory or a regular file takes its place. The process ends itself if an open hangs.

use crate::common::store_files::{Image, in_process, kill, numbered, scratch, small, wait_dead};
use crate::common::{limit, store_files};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;
use untorn::{Error, Store};

/// A store whose processes were killed: every kind of file is there.
fn image(dir: &Path) -> Image {
    let live = dir.join("live");
    let store = small().open(&live).unwrap();
    store.keyspace("a").unwrap().put(b"key", b"value").unwrap();
    let logger = store.stats().unwrap().logger_pid.unwrap();
    kill(logger);
    wait_dead(logger);
    let mut image = Image::load(&live);
    image.files.insert("control".into(), fs::read(live.join("control")).unwrap());
    drop(store);
    store_files::remove_all(&live);
    image
}

/// Puts something else in the place of `path`, whose file is moved to `aside`.
fn replace(path: &Path, aside: &Path, kind: &str) {
    fs::rename(path, aside).unwrap();
    let node = |kind| mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, 0).unwrap();
    match kind {
        "a symbolic link" => symlink(aside, path).unwrap(),
        "a FIFO" => node(FileType::Fifo),
        "a socket" => node(FileType::Socket),
        "a directory" => fs::create_dir(path).unwrap(),
        "a regular file" => fs::write(path, b"").unwrap(),
        other => panic!("{other}"),
    }
}

/// All bytes below a directory, links and special files by their kind.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(contents(&entry.path()).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        }
        let bytes = if kind.is_file() { fs::read(entry.path()).unwrap() } else { format!("{kind:?}").into_bytes() };
        found.insert(name, bytes);
    }
    found
}

#[test]
fn each_name_that_leads_elsewhere_is_an_error() {
    let _limit = limit();
    let dir = scratch();
    let image = image(dir.path());
    let segment = image.files.iter().find(|(_, bytes)| bytes.starts_with(b"untornWS")).unwrap().0.clone();
    let spare = image.files.keys().rfind(|name| name.starts_with("wal/")).unwrap().clone();
    assert_ne!(segment, spare);
    let mut number = 0;
    for name in ["lock", "checkpoint", "arena", "control", "wal", &segment, &spare] {
        let others = if name == "wal" { "a regular file" } else { "a directory" };
        for kind in ["a symbolic link", "a FIFO", "a socket", others] {
            number += 1;
            let path = numbered(dir.path(), number);
            image.lay_out(&path, |_| {});
            replace(&path.join(name), &path.with_extension("aside"), kind);
            let before = (contents(&path), kind == "a directory" || fs::metadata(path.join(name)).is_ok());
            for options in [in_process(), Store::options()] {
                let error = options.open(&path).map(drop).unwrap_err();
                let Error::Mismatch { file, what } = &error else { panic!("{name} is {kind}: {error:?}") };
                assert_eq!((file.as_str(), what.to_string().contains(kind)), (name, true), "{name} is {kind}: {error}");
            }
            if let Err(error) = untorn::observe(&path) {
                assert!(error.to_string().contains(name), "{name} is {kind}: {error}");
            }
            let after = (contents(&path), kind == "a directory" || fs::metadata(path.join(name)).is_ok());
            assert!(before == after, "{name} is {kind}: files were touched");
            store_files::remove_all(&path);
            if path.with_extension("aside").is_dir() {
                store_files::remove_all(path.with_extension("aside"));
            }
        }
    }
}

/// A new store is not made through names that lead elsewhere, be there something at their end or
/// nothing.
#[test]
fn creation_follows_no_link() {
    let _limit = limit();
    let dir = scratch();
    for (number, name) in ["lock", "checkpoint", "wal"].into_iter().enumerate() {
        for target in ["missing", "present"] {
            let path = numbered(dir.path(), number).join(target);
            fs::create_dir_all(&path).unwrap();
            let outside = path.with_extension("outside");
            if target == "present" {
                fs::write(&outside, b"not the store's").unwrap();
            }
            symlink(&outside, path.join(name)).unwrap();
            let error = small().open(&path).map(drop).unwrap_err();
            assert!(matches!(&error, Error::Mismatch { file, .. } if file == name), "{name}: {error:?}");
            assert_eq!(outside.exists(), target == "present", "{name}: the end of the link was made");
            assert!(target == "missing" || fs::read(&outside).unwrap() == b"not the store's");
        }
    }
}

/// Root gives away only what it has made itself: a name that another user put there may lead to a
/// file of root's.
#[test]
fn root_gives_away_only_what_it_made() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: nothing to give away");
        return;
    }
    let _limit = limit();
    let dir = scratch();
    let secret = dir.path().join("secret");
    fs::write(&secret, b"root's").unwrap();
    let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
    for (number, name) in
        ["lock", "checkpoint", "arena", "control", "wal", "checkpoint.new", "arena.new"].into_iter().enumerate()
    {
        for is_hard in [false, true] {
            let path = numbered(dir.path(), number * 2 + usize::from(is_hard));
            fs::create_dir(&path).unwrap();
            let link = path.join(name);
            if is_hard {
                fs::hard_link(&secret, &link).unwrap()
            } else {
                symlink(&secret, &link).unwrap()
            }
            std::os::unix::fs::chown(&path, Some(12345), Some(12345)).unwrap();
            let opened = small().logger_thread(true).logger_idle(Duration::from_millis(1)).open(&path);
            drop(opened);
            assert_eq!(owner(&secret), 0, "{name}, hard link: {is_hard}");
            store_files::remove_all(&path);
        }
    }
    assert_eq!(fs::read(&secret).unwrap(), b"root's");
}
