//! Goal: a store of the present format opens for ever, with every kind of page, queue entry and log
//! record in it. One of the first format, which was never released, is refused and stays as it was.
//!
//! Method: `tests/golden/store-v3.txt` holds the files of a store as a kernel crash left them: a
//! checkpoint, and a log that recovery replays. It is laid out, recovered and held against what was
//! put into it. The bytes of each structure by itself have golden tests beside the code.
//! `UNTORN_GOLDEN=write` makes the file anew, for a new version of the format.

use crate::common::store_files;
use crate::common::store_files::{Image, copy, in_process, kill, read, scratch, small, wait_dead};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use untorn::{Store, WriteTxn};

/// Bytes of one line of the file.
const LINE: usize = 32;

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/store-v{version}.txt"))
}

type State = BTreeMap<(String, Vec<u8>), Vec<u8>>;

/// What a transaction does.
enum Change {
    Put(&'static str, Vec<u8>, Vec<u8>),
    Delete(&'static str, Vec<u8>),
    Drop(&'static str),
}

use Change::*;

fn put(space: &'static str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Change {
    Put(space, key.as_ref().to_vec(), value.as_ref().to_vec())
}

/// The transactions before the checkpoint.
fn before() -> Vec<Vec<Change>> {
    let mut first: Vec<Change> = (0..60).map(|i| put("small", format!("key {i:04}"), [i; 40])).collect();
    first.extend([put("small", "", "the empty key"), put("small", "empty", "")]);
    first.extend([put("large", "run", [7; 9000]), put("large", "longer run", [8; 30_000]), put("dropped", "k", "v")]);
    // Replaces pages and an extent, which the queues then hold.
    let second = vec![put("large", "run", [9; 5000]), put("small", "key 0007", "replaced"), Drop("dropped")];
    vec![first, second]
}

/// Those after it: small ones, one larger than a frame, a value that is logged in pieces, and from
/// version 3 on values in logged extents.
fn after(version: u32) -> Vec<Vec<Change>> {
    let few =
        vec![put("small", "after", "the checkpoint"), Delete("small", b"key 0003".into()), put("new", "näme", "v")];
    let mut large: Vec<Change> = (0..12).map(|i| put("new", [0, i], [i; 1000])).collect();
    large.push(put("large", "in pieces", [5; 40_000]));
    if version < 3 {
        return vec![few, large];
    }
    let once = vec![put("large", "once", [6; 70_000]), put("large", "freed", [3; 70_000])];
    vec![few, large, once, vec![Delete("large", b"freed".into()), put("large", "once", [4; 66_000])]]
}

fn expected(version: u32) -> State {
    let mut state = State::new();
    for change in before().into_iter().chain(after(version)).flatten() {
        match change {
            Put(space, key, value) => drop(state.insert((space.into(), key), value)),
            Delete(space, key) => drop(state.remove(&(space.into(), key))),
            Drop(name) => state.retain(|(space, _), _| space != name),
        }
    }
    state
}

fn begin(store: &Store, changes: Vec<Change>) -> WriteTxn<'_> {
    let mut txn = store.begin().unwrap();
    for change in changes {
        match change {
            Put(space, key, value) => {
                let keyspace = txn.keyspace(space).unwrap();
                txn.put(&keyspace, &key, &value).unwrap();
            }
            Delete(space, key) => {
                let keyspace = txn.keyspace(space).unwrap();
                assert!(txn.delete(&keyspace, &key).unwrap());
            }
            Drop(space) => assert!(txn.drop_keyspace(space).unwrap()),
        }
    }
    txn
}

#[test]
fn a_store_of_the_present_format_opens() {
    if std::env::var_os("UNTORN_GOLDEN").is_some() {
        write(&golden(3));
    }
    opens(3);
}

/// Version 2 has no logged extents. So its stores are stores of version 3.
#[test]
fn a_store_of_the_format_before_opens() {
    opens(2);
}

fn opens(version: u32) {
    let dir = scratch();
    let path = dir.path().join("store");
    load(&golden(version)).lay_out(&path, |_| {});
    let store = in_process().open(&path).unwrap();
    assert_eq!(read(&store).unwrap(), expected(version));
    let report = store.verify().unwrap();
    assert!(report.is_clean(), "{report:#?}");
    // Recovered, since it was not left in order: the second incarnation. And it goes on.
    let keyspace = store.find_keyspace("small").unwrap().unwrap();
    let txn = keyspace.put(b"more", b"v").unwrap();
    assert_eq!(txn.incarnation(), 1);
    drop((keyspace, store));
    store_files::remove_all(&path);
}

#[test]
fn a_store_of_the_first_format_is_refused() {
    let dir = scratch();
    let path = dir.path().join("store");
    let image = load(&golden(1));
    image.lay_out(&path, |_| {});
    let error = in_process().open(&path).unwrap_err();
    assert!(matches!(error, untorn::Error::FormatVersion { found: 1, known: 3, .. }), "{error:?}");
    assert!(error.to_string().contains("untorn dump"), "{error}");
    assert!(Image::load(&path).files == image.files, "the files are as they were");
    store_files::remove_all(&path);
}

/// The files of a text: `= name length`, then lines of `offset count hex`, each for so many equal
/// pieces of 32 bytes; what is not listed is zero.
fn load(path: &Path) -> Image {
    let text = std::fs::read_to_string(path).unwrap();
    let mut files = BTreeMap::new();
    let mut current: Option<(String, Vec<u8>)> = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        match (&fields[..], &mut current) {
            (["=", name, len], _) => {
                files.extend(current.replace((name.to_string(), vec![0; len.parse().unwrap()])));
            }
            ([offset, count, hex], Some((_, bytes))) => {
                let piece: Vec<u8> =
                    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
                let start: usize = offset.parse().unwrap();
                for index in 0..count.parse::<usize>().unwrap() {
                    bytes[start + index * LINE..][..LINE].copy_from_slice(&piece);
                }
            }
            _ => panic!("{line:?}"),
        }
    }
    files.extend(current);
    Image { files }
}

/// Makes such a store and its text.
fn write(path: &Path) {
    use std::fmt::Write;
    let dir = scratch();
    let (live, image) = (dir.path().join("live"), dir.path().join("image"));
    let store = small().open(&live).unwrap();
    for changes in before() {
        begin(&store, changes).commit().unwrap();
    }
    store.checkpoint().unwrap();
    for changes in after(3) {
        begin(&store, changes).commit().unwrap();
    }
    // Frames of a transaction that never commits, and an abort record before the one that follows.
    begin(&store, (0..12).map(|i| put("never", [i], [6; 1000])).collect()).rollback();
    begin(&store, vec![Delete("new", vec![0, 5])]).commit().unwrap();
    begin(&store, vec![put("new", [0, 5], [5; 1000])]).commit().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let logger = store.stats().unwrap().logger_pid.unwrap();
    kill(logger);
    wait_dead(logger);
    copy(&live, &image);
    drop(store);
    store_files::remove_all(&live);
    let mut text = String::from("# A store of format version 3: see tests/suite/recovery/golden_store.rs.\n");
    for (name, bytes) in Image::load(&image).files {
        writeln!(text, "= {name} {}", bytes.len()).unwrap();
        let pieces: Vec<&[u8]> = bytes.chunks(LINE).collect();
        let mut at = 0;
        for equal in pieces.chunk_by(|a, b| a == b) {
            if equal[0].iter().any(|byte| *byte != 0) {
                let hex: String = equal[0].iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(text, "{} {} {hex}", at * LINE, equal.len()).unwrap();
            }
            at += equal.len();
        }
    }
    std::fs::write(path, text).unwrap();
}
