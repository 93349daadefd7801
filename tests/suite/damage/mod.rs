//! Goal: damaged bytes are found, named, and never passed on as good ones; foreign, shortened and
//! newer files are refused as they are; and bits that flip in the live shared region lead to errors
//! at worst.
//!
//! Method: a small store's files are changed at rest or, through the file, beneath the mapping, and
//! then verified, read, written to and recovered. What `verify` calls clean must be what was
//! stored. Random choices follow `UNTORN_SEED`.

mod hostile_fields;
mod hostile_names;
mod kept_log;
mod live_region;

use crate::common::store_files::*;
use crate::common::{HANGS, store_files, wait_until};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use untorn::{Durability, Error, Feed, Options, Store, TxnId};

const PAGE: usize = 4096;

fn seed() -> u64 {
    std::env::var("UNTORN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(11)
}

/// A store in good order: `clean` leaves nothing to replay.
fn image(dir: &Path, clean: bool) -> (Image, History) {
    std::fs::create_dir_all(dir).unwrap();
    let live = dir.join("live");
    let store = small().open(&live).unwrap();
    let mut history = History::default();
    work(&store, &mut history, 40, |_| false);
    store.checkpoint().unwrap();
    if !clean {
        work(&store, &mut history, 20, |_| false);
    }
    store.sync().unwrap();
    let to = dir.join("image");
    if clean {
        drop(store);
        untorn::logger::stop_logger(&live, HANGS).unwrap();
        copy(&live, &to);
    } else {
        crash_image(&store, &live, &to);
        drop(store);
    }
    let image = Image::load(&to);
    store_files::remove_all(&live);
    (image, history)
}

fn flip(file: &std::fs::File, at: u64, bits: u8) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ bits], at).unwrap();
}

/// Every byte of a page that the finished checkpoint uses counts. A flipped bit in the checksum
/// word finds these pages; their number must fit the number of checksums that `verify` reports as
/// compared.
#[test]
fn verify_finds_each_flipped_byte_of_used_pages() {
    let dir = scratch();
    let (image, history) = image(dir.path(), true);
    let path = dir.path().join("open");
    image.lay_out(&path, |_| {});
    let store = in_process().open(&path).unwrap();
    assert_eq!(read(&store).unwrap(), *history.newest());
    let report = store.verify().unwrap();
    assert!(report.is_clean(), "{report:#?}");
    let arena = std::fs::File::options().read(true).write(true).open(path.join("arena")).unwrap();
    let found = |at: u64| {
        flip(&arena, at, 1 << (at % 8));
        let problems = store.verify().unwrap().problems;
        // Reads of damaged pages may answer anything but a panic.
        let _ = read(&store);
        flip(&arena, at, 1 << (at % 8));
        problems
    };
    let in_use: Vec<u64> = (1..report.pages).filter(|page| !found(page * PAGE as u64 + 3).is_empty()).collect();
    // An extent has one checksum for all its pages, and may have a few pages more than it needs.
    let expected = report.checksums..=report.checksums + report.reachable_pages;
    assert!(expected.contains(&(in_use.len() as u64)), "{} pages, {report:?}", in_use.len());
    let mut random = Random::new(seed());
    for number in 0..4000 {
        let page = in_use[random.below(in_use.len() as u64) as usize];
        // Headers and heads more often than the rest.
        let within = if number % 2 == 0 { random.below(128) } else { random.below(PAGE as u64) };
        let problems = found(page * PAGE as u64 + within);
        assert!(problems.iter().any(|problem| problem.file == "arena"), "byte {within} of page {page}: {problems:?}");
    }
    assert!(store.verify().unwrap().is_clean());
    drop(store);
    store_files::remove_all(&path);
}

/// What can be done to a store, errors and all, as long as it goes on. Values that are written are
/// known ones, not read from the store: reads don't verify checksums.
fn disturb(store: &Store, state: &State, random: &mut Random) {
    let entries: Vec<_> = state.iter().collect();
    for _ in 0..6 {
        let Ok(mut txn) = store.begin_with(Durability::Visible) else { continue };
        let done = (|| -> untorn::Result<()> {
            for _ in 0..1 + random.below(4) {
                let ((space, key), value) = entries[random.below(entries.len() as u64) as usize];
                let keyspace = txn.keyspace(space)?;
                // Removed and stored again: the state stays what it was, the pages don't.
                txn.delete(&keyspace, key)?;
                txn.put(&keyspace, key, value)?;
                txn.put(&keyspace, b"passing by", &[1; 500])?;
                txn.delete(&keyspace, b"passing by")?;
            }
            Ok(())
        })();
        if done.is_ok() {
            drop(txn.commit());
        }
    }
    if random.below(3) == 0
        && let Ok(mut txn) = store.begin_with(Durability::Visible)
    {
        let dropped = txn.keyspace("passing").and_then(|_| txn.drop_keyspace("passing"));
        if dropped.is_ok() {
            drop(txn.commit());
        }
    }
}

/// Damage in a page of the checkpoint, then recovery, writes and another checkpoint: what `verify`
/// then finds clean is what was stored. No damage has got a fresh checksum. A store may be refused,
/// before recovery or for a page that only the replay of the log reads. It then keeps every byte of
/// every file, and is refused again.
#[test]
fn damage_is_never_laundered() {
    let dir = scratch();
    for clean in [true, false] {
        let (image, history) = image(&dir.path().join(format!("{clean}")), clean);
        let used = image.files["arena"].iter().rposition(|byte| *byte != 0).unwrap() as u64;
        let mut random = Random::new(seed());
        let (mut refused, mut noticed, mut harmless) = (0, 0, 0);
        let started = Instant::now();
        for number in 0..500 {
            let page = 1 + random.below(used / PAGE as u64);
            let within = if number % 2 == 0 { random.below(128) } else { random.below(PAGE as u64) };
            let (at, bits) = ((page * PAGE as u64 + within) as usize, 1u8 << random.below(8));
            let replay = format!("UNTORN_SEED={} clean={clean} number {number}: byte {within} of page {page}", seed());
            let path = numbered(dir.path(), number);
            image.lay_out(&path, |files| files.get_mut("arena").unwrap()[at] ^= bits);
            let before = (all_files(&path), stamps(&path));
            match in_process().open(&path) {
                Ok(store) => {
                    disturb(&store, history.newest(), &mut random);
                    let _ = store.checkpoint();
                    let report = store.verify().unwrap();
                    if report.is_clean() {
                        let state = read(&store).unwrap_or_else(|error| panic!("{replay}: clean, and yet {error}"));
                        assert!(state == *history.newest(), "{replay}: clean, but not what was stored");
                        harmless += 1;
                    } else {
                        noticed += 1;
                    }
                }
                Err(error @ Error::Corrupt { .. }) => {
                    let said = error.to_string();
                    assert!(said.starts_with("arena is damaged at byte "), "{replay}: {said}");
                    assert!(said.contains("restore a backup"), "{replay}: no remedy: {said}");
                    let again = in_process().open(&path).map(drop).unwrap_err();
                    assert_eq!(said, again.to_string(), "{replay}: the second open");
                    assert!(before == (all_files(&path), stamps(&path)), "{replay}: files were touched: {said}");
                    refused += 1;
                }
                Err(error) => panic!("{replay}: {error:?}"),
            }
            store_files::remove_all(&path);
        }
        eprintln!("clean={clean}: {refused} refused, {noticed} noticed, {harmless} harmless, {:?}", started.elapsed());
        assert!(noticed + refused > 0 && harmless > 0);
    }
}

/// A checkpoint that meets damage fails its waiters with that error, at once.
#[test]
fn checkpoint_reports_damage() {
    let dir = scratch();
    let path = dir.path().join("store");
    let store = small().open(&path).unwrap();
    let keyspace = store.keyspace("a").unwrap();
    for i in 0..200u32 {
        keyspace.put(&i.to_be_bytes(), &[7; 200]).unwrap();
    }
    store.checkpoint().unwrap();
    // One more commit, whose new pages are then damaged: their kind, which the checkpoint's walk
    // needs.
    keyspace.put(&7u32.to_be_bytes(), &[8; 200]).unwrap();
    let arena = std::fs::File::options().read(true).write(true).open(path.join("arena")).unwrap();
    let pages = store.stats().unwrap().pages_total;
    let newest = store.stats().unwrap().committed;
    for page in 1..pages {
        let mut created_txn = [0; 8];
        arena.read_exact_at(&mut created_txn, page * PAGE as u64 + 16).unwrap();
        if u64::from_le_bytes(created_txn) == newest.as_u64() {
            flip(&arena, page * PAGE as u64 + 8, 0x40);
        }
    }
    let started = Instant::now();
    let error = store.checkpoint().unwrap_err();
    assert!(matches!(&error, Error::Corrupt { file, .. } if file == "arena"), "{error:?}");
    assert!(started.elapsed() < HANGS);
    assert!(!store.verify().unwrap().is_clean());
    kill(store.stats().unwrap().logger_pid.unwrap());
}

/// Opens a changed copy, which must be refused with an error that names `name`, and left as it is.
fn refused(path: &Path, name: &str, what: &str) {
    let before = Image::load_all(path);
    for options in [in_process(), Store::options()] {
        let started = Instant::now();
        let error = options.open(path).map(|_| ()).unwrap_err();
        let named = match &error {
            Error::Corrupt { file, .. } | Error::Mismatch { file, .. } | Error::FormatVersion { file, .. } => {
                file == name
            }
            Error::Io { what, .. } => what.contains(name),
            _ => false,
        };
        assert!(named, "{what}: the error names another file than {name}: {error:?}");
        assert!(started.elapsed() < HANGS, "{what}: {:?}", started.elapsed());
    }
    let after = Image::load_all(path);
    let names = |image: &BTreeMap<String, Vec<u8>>| image.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after), "{what}: files came or went");
    assert!(before == after, "{what}: files were touched");
    store_files::remove_all(path);
}

#[test]
fn foreign_and_short_and_newer_files() {
    let dir = scratch();
    let (ours, _) = image(&dir.path().join("ours"), false);
    let (foreign, _) = image(&dir.path().join("foreign"), false);
    let mut number = 0;
    let mut try_with = |name: &str, what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        number += 1;
        let path = numbered(dir.path(), number);
        ours.lay_out(&path, |files| change(files.get_mut(name).unwrap()));
        refused(&path, name, &format!("{name} {what}"));
    };
    for len in [0, 1, 100, 4095, 4096, 8191] {
        try_with("checkpoint", &format!("of {len} bytes"), &|bytes| bytes.truncate(len));
    }
    // Its pages need the size of a new arena, and it may have grown beyond.
    for len in [0, 1, 39, 4096, (256 << 10) - 4096, (256 << 10) - 1] {
        try_with("arena", &format!("of {len} bytes"), &|bytes| bytes.truncate(len));
    }
    // A header of the next version, whole, in both slots, in the newer, in the older.
    let newer = |slots: &'static [usize]| {
        move |bytes: &mut Vec<u8>| {
            for slot in slots {
                let slot = &mut bytes[slot * 4096..][..4096];
                slot[8] += 1;
                // A field that this version does not have.
                slot[4000] = 1;
                let sum = [&slot[..12], &slot[16..]].iter().fold(crc32fast::Hasher::new(), |mut sum, part| {
                    sum.update(part);
                    sum
                });
                slot[12..16].copy_from_slice(&sum.finalize().to_le_bytes());
            }
        }
    };
    try_with("checkpoint", "of another version", &newer(&[0, 1]));
    try_with("checkpoint", "of another version in slot 0", &newer(&[0]));
    try_with("checkpoint", "of another version in slot 1", &newer(&[1]));
    try_with("checkpoint", "full of something else", &|bytes| bytes.fill(0x55));
    try_with("arena", "with another beginning", &|bytes| bytes[..40].fill(0x55));
    for name in ["arena", "checkpoint"] {
        let other = foreign.files[name].clone();
        // A foreign checkpoint shows by the arena, or by the log, which is surveyed first.
        let names = if name == "checkpoint" { "wal/seg-00000001" } else { name };
        number_of(&ours, dir.path(), name, other, names);
    }
    let segments: Vec<String> = ours.files.keys().filter(|name| name.starts_with("wal/")).cloned().collect();
    for (index, name) in segments.iter().enumerate() {
        let block = &ours.files[name][..4096];
        if block.starts_with(b"untornWS") {
            let newer = |bytes: &mut Vec<u8>| {
                bytes[8] += 1;
                let sum = crc32fast::hash(&bytes[..124]);
                bytes[124..128].copy_from_slice(&sum.to_le_bytes());
            };
            let path = numbered(dir.path(), 5000 + index);
            ours.lay_out(&path, |files| newer(files.get_mut(name).unwrap()));
            refused(&path, name, &format!("{name} of another version"));
        }
        let path = numbered(dir.path(), 6000 + index);
        let other =
            foreign.files.iter().find(|(name, bytes)| name.starts_with("wal/") && bytes.starts_with(b"untornWS"));
        ours.lay_out(&path, |files| *files.get_mut(name).unwrap() = other.unwrap().1.clone());
        refused(&path, name, &format!("{name} of another store"));
    }
    for name in ["arena", "checkpoint"] {
        let path = numbered(dir.path(), 7000 + name.len());
        ours.lay_out(&path, |files| drop(files.remove(name)));
        let before = Image::load_all(&path);
        let error = Store::options().logger_thread(true).open(&path).map(|_| ()).unwrap_err();
        assert!(matches!(&error, Error::Mismatch { file, .. } if file == name), "{name} missing: {error:?}");
        assert!(before == Image::load_all(&path), "{name} missing: files were touched");
    }
}

fn number_of(ours: &Image, dir: &Path, name: &str, other: Vec<u8>, names: &str) {
    let path = numbered(dir, 8000 + name.len());
    ours.lay_out(&path, |files| drop(files.insert(name.to_string(), other)));
    refused(&path, names, &format!("{name} of another store"));
}

/// A shared region that is malformed, or belongs to another store, is treated as stale: the store
/// is recovered from its files.
#[test]
fn shared_region_of_something_else() {
    let dir = scratch();
    let (image, history) = image(dir.path(), false);
    for (number, bytes) in [vec![], vec![0x55; 1 << 20], vec![0; 600_000], vec![1; 17]].into_iter().enumerate() {
        let path = numbered(dir.path(), number);
        image.lay_out(&path, |_| {});
        std::fs::write(path.join("control"), bytes).unwrap();
        std::fs::write(path.join("control.new"), b"left behind").unwrap();
        let store = in_process().open(&path).unwrap();
        assert_eq!(read(&store).unwrap(), *history.newest());
        drop(store);
        store_files::remove_all(&path);
    }
}

impl Image {
    /// Every file of a directory, whatever its name; the empty `lock` and the shared region come
    /// and go.
    fn load_all(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for folder in ["", "wal/"] {
            let Ok(entries) = std::fs::read_dir(dir.join(folder)) else { continue };
            for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
                let name = format!("{folder}{}", entry.file_name().to_string_lossy());
                if name != "lock" && name != "control.new" {
                    found.insert(name, std::fs::read(entry.path()).unwrap());
                }
            }
        }
        found
    }
}
