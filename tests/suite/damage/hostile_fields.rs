//! Goal: a checksum proves no authorship: any process can write fitting bytes. Whatever a field of
//! a checksummed structure contains, opening the store answers, without a panic, a fault, a hang or
//! a huge allocation. A store that is refused keeps every byte, and the error names a file and what
//! is wrong with it.
//!
//! Method: each field of each structure at rest is set to extreme values, and all checksums over it
//! are made to fit. Each changed store is opened, read, written to and verified in another process,
//! which dies of any panic of any thread, and of any allocation that the store does not justify.
//! `UNTORN_SWEEP=1` tries every value in every structure.

mod checksums;
mod opener;

use crate::allocator::abort_above;
use crate::common::store_files::{
    BLOCK, History, Image, Random, all_files, crash_image, in_process, numbered, read, scratch, small, work,
};
use crate::common::{Role, limit, listen, say, send, spawn, store_files};
use checksums::{Field, Seal, batches, fields, patch, seal_image, seal_record, set_u32, u64_at, values};
use opener::{Opener, stamps, use_store, use_while_forged};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use untorn::internals::{CHECKED_CELL_NUMBERS, CHECKED_NUMBERS, IMAGES_AT, READER_CHUNK};
use untorn::{Durability, Error, Store};

const PAGE: usize = 4096;
/// More than any single buffer that a store of these sizes needs.
const ALLOCATION_MAX: usize = 64 << 20;

// ---- the process that opens

/// Not a test of its own: opens each path that it is given, and prints how that ended.
#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    abort_above(ALLOCATION_MAX);
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::abort();
    }));
    if role.name == "joined" {
        return use_while_forged(&role);
    }
    while let Some(path) = listen() {
        match use_store(Path::new(&path)) {
            Ok(()) => say("opened"),
            Err(Error::FormatVersion { file, found, .. }) => say(format_args!("refused {file}: format {found}")),
            Err(Error::Corrupt { file, what, .. }) if !file.is_empty() => say(format_args!("refused {file}: {what}")),
            Err(Error::Mismatch { file, what }) if !file.is_empty() => say(format_args!("refused {file}: {what}")),
            // A value of the log that the store has no room for.
            Err(error @ Error::Limit { .. }) => say(format_args!("limited {error}")),
            Err(error) => say(format_args!("odd {error:?}")),
        }
    }
}

// ---- the test

fn sweeps_all() -> bool {
    std::env::var_os("UNTORN_SWEEP").is_some()
}

/// A crashed store, whose log holds what the checkpoint lacks, or one that was left in order.
fn image(dir: &Path, clean: bool) -> Image {
    std::fs::create_dir_all(dir).unwrap();
    let live = dir.join("live");
    let store = small().open(&live).unwrap();
    let mut history = History::default();
    work(&store, &mut history, 14, |_| true);
    store.checkpoint().unwrap();
    if !clean {
        work(&store, &mut history, 8, |_| true);
    }
    store.sync().unwrap();
    let to = dir.join("image");
    if clean {
        drop(store);
        untorn::logger::stop_logger(&live, Duration::from_secs(30)).unwrap();
        store_files::copy(&live, &to);
    } else {
        crash_image(&store, &live, &to);
        drop(store);
    }
    let image = Image::load(&to);
    store_files::remove_all(&live);
    image
}

#[test]
fn each_field_of_each_checksummed_structure() {
    // The sweep opens a store some hundred thousand times; a store that hangs is found by the wait
    // for its answer.
    let _limit = (!sweeps_all()).then(limit);
    let dir = scratch();
    for clean in [true, false] {
        let image = image(&dir.path().join(format!("clean-{clean}")), clean);
        let mut opener = Opener::new(dir.path());
        let mut random = Random::new(5);
        for field in fields(&image) {
            let bytes = &image.files[&field.file];
            let old = (0..field.width).rev().fold(0, |n, index| n << 8 | u64::from(bytes[field.at + index]));
            // Of pages there are many, which are alike.
            let share = if sweeps_all() { 1 } else { if matches!(field.seal, Seal::Page(_)) { 48 } else { 4 } };
            for value in values(old, field.width) {
                if random.below(share) == 0 {
                    opener.open(&image, &field, value);
                }
            }
        }
        eprintln!("clean={clean}: {} opened, {} refused", opener.opened, opener.refused);
        assert!(opener.opened > 0 && opener.refused > 0);
        opener.child.finish();
    }
}

/// A record whose checksum fits, and which no transaction can have written, refuses the open before
/// recovery changes a file.
#[test]
fn impossible_records_are_refused_before_recovery() {
    let _limit = limit();
    let dir = scratch();
    let image = image(&dir.path().join("records"), false);
    let mut opener = Opener::new(dir.path());
    // Those behind the checkpoint: each transaction was durable before the next one began, so each
    // has a batch of its own.
    let records: Vec<(String, usize)> = image
        .files
        .iter()
        .filter(|(_, bytes)| bytes.starts_with(b"untornWS"))
        .flat_map(|(file, bytes)| batches(bytes).into_iter().map(move |(batch, len)| (file.clone(), batch, len)))
        .filter(|(file, batch, len)| {
            // A whole transaction that begins by putting a key.
            let record = &image.files[file][batch + 128..];
            *len > 64 && record[24] == 1 && record[32] == 1
        })
        .map(|(file, batch, _)| (file, batch + 128))
        .collect();
    let newest = records.iter().max_by_key(|(file, record)| u64_at(&image.files[file], record + 8)).unwrap();
    for (at, width, value, what) in [
        (16, 8, 1, "does not follow"),
        (24, 1, 3, "ends without having begun"),
        (32, 1, 2, "operation"),
        (32, 1, 5, "operation"),
        (33, 8, 999, "keyspace number 999, which the pages don't have"),
        (33, 8, 0, "keyspace number 0, which the pages don't have"),
    ] {
        let (file, record) = newest.clone();
        let field = Field { file, at: record + at, width, seal: Seal::Record(record) };
        let said = opener.open(&image, &field, value);
        assert!(said.starts_with("refused wal") && said.contains(what), "{what}: {said}");
    }
    opener.child.finish();
}

/// Asserts that the files open to an error of the log which contains `what`, that a second open
/// answers the same, and that neither of them changes a file.
fn assert_record_is_refused(
    dir: &Path,
    image: &Image,
    change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>),
    what: &str,
) {
    let path = dir.join("refused");
    image.lay_out(&path, change);
    let before = (all_files(&path), stamps(&path));
    let mut answers = Vec::new();
    for options in [in_process(), Store::options()] {
        let error = options.open(&path).map(drop).unwrap_err();
        let Error::Corrupt { file, what: found, .. } = &error else { panic!("{what}: {error:?}") };
        assert!(file.starts_with("wal/seg-") && found.contains(what), "{what}: {error}");
        assert!(found.contains("log position") && found.contains("restore a backup"), "{what}: {error}");
        answers.push(error.to_string());
        assert!(before == (all_files(&path), stamps(&path)), "{what}: files were touched");
    }
    assert_eq!(answers[0], answers[1]);
    store_files::remove_all(&path);
}

/// Replaces the one place of the log that holds `old` by `new`, which is as long. It lies in the
/// first record of a batch.
fn patch_log(files: &mut BTreeMap<String, Vec<u8>>, old: &[u8], new: &[u8]) {
    let store = files["checkpoint"][16..32].to_vec();
    let mut places = Vec::new();
    for (file, bytes) in files.iter().filter(|(_, bytes)| bytes.starts_with(b"untornWS")) {
        for (batch, len) in batches(bytes) {
            let payload = batch + 128..batch + 128 + len;
            let found = bytes[payload.clone()].windows(old.len()).position(|window| window == old);
            places.extend(found.map(|at| (file.clone(), payload.start, payload.start + at)));
        }
    }
    let [(file, record, at)] = &places[..] else { panic!("{old:?} stands in {places:?}") };
    let bytes = files.get_mut(file).unwrap();
    bytes[*at..at + new.len()].copy_from_slice(new);
    seal_record(bytes, *record, &store);
}

/// The bytes of an operation with a key or a name that is not long.
fn operation(kind: u8, keyspace: u64, name: &[u8]) -> Vec<u8> {
    [&[kind][..], &keyspace.to_le_bytes(), &(name.len() as u16).to_le_bytes(), name].concat()
}

/// Records that each could have been written, but not onto these pages, are refused before recovery
/// changes a file.
#[test]
fn records_that_the_pages_contradict_are_refused_before_recovery() {
    let _limit = limit();
    let dir = scratch();
    let live = dir.path().join("live");
    let store = small().open(&live).unwrap();
    let a = store.keyspace("a").unwrap();
    for i in 0..300u64 {
        a.put(&i.to_be_bytes(), &[7; 100]).unwrap();
    }
    store.checkpoint().unwrap();
    // Each is durable before the next one begins, so each has a batch of its own.
    a.delete(&9u64.to_be_bytes()).unwrap();
    let d = store.keyspace("d").unwrap();
    d.put(b"key", b"value").unwrap();
    a.put(b"later", &[1; 100]).unwrap();
    crash_image(&store, &live, &dir.path().join("image"));
    drop(store);
    let image = Image::load(&dir.path().join("image"));

    let deleted = |key: u64| operation(2, 1, &key.to_be_bytes());
    let absent = |files: &mut BTreeMap<String, Vec<u8>>| patch_log(files, &deleted(9), &deleted(900));
    assert_record_is_refused(dir.path(), &image, absent, "deletes a key that the pages don't have");
    let created = |name: &[u8]| operation(3, 2, name);
    let twice = |files: &mut BTreeMap<String, Vec<u8>>| patch_log(files, &created(b"d"), &created(b"a"));
    assert_record_is_refused(dir.path(), &image, twice, "creates keyspace \"a\", which the pages have as number 1");
}

/// The log creates one keyspace more than a store may have. The count is the header's, whose
/// catalog is too large to be counted at open.
#[test]
fn a_keyspace_beyond_the_limit_is_refused_before_recovery() {
    let _limit = limit();
    let dir = scratch();
    let live = dir.path().join("live");
    let store = small().max_size(256 << 20).open(&live).unwrap();
    for batch in 0..10 {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        for i in 0..4000 {
            txn.keyspace(&format!("{:0>250}", batch * 4000 + i)).unwrap();
        }
        txn.commit().unwrap();
    }
    store.checkpoint().unwrap();
    store.keyspace("one more").unwrap();
    store.sync().unwrap();
    crash_image(&store, &live, &dir.path().join("image"));
    drop(store);
    let image = Image::load(&dir.path().join("image"));
    store_files::remove_all(&live);
    let counted = |files: &mut BTreeMap<String, Vec<u8>>| {
        for slot in 0..2 {
            // The number of the next keyspace, and how many there are: see `docs/format.md`.
            for (word, value) in [(5, (1 << 20) + 1), (6, 1 << 20)] {
                let at = slot * BLOCK + 112 + 8 * word;
                let field = Field { file: "checkpoint".into(), at, width: 8, seal: Seal::Slot(slot) };
                assert!(u64_at(&files["checkpoint"], at) <= 40_001, "a count of keyspaces stands there");
                patch(files, &field, value);
            }
        }
    };
    assert_record_is_refused(dir.path(), &image, counted, "the number of keyspaces is 1048577, the limit is 1048576");
}

/// Numbers that took the logger down: each of them by name, in both slots at once, so that no other
/// header serves.
#[test]
fn sizes_that_no_store_has_are_refused_by_name() {
    let _limit = limit();
    let dir = scratch();
    let image = image(&dir.path().join("sizes"), true);
    for (at, value, what) in [
        (32, 0, "page size"),
        (32, 1 << 63, "page size"),
        (40, 0x1000, "maximum size"),
        (40, u64::MAX, "maximum size"),
        (40, (16 << 20) + 4096, "maximum size"),
        (48, 0, "ring size"),
        (48, 1 << 40, "ring size"),
        (56, 0, "segment size"),
        (56, 8191, "segment size"),
        (72, 3, "log position"),
        (112 + 16, 0, "high-water mark"),
        (112 + 16, u64::from(u32::MAX), "high-water mark"),
    ] {
        let path = numbered(dir.path(), at * 7 + value as usize % 5);
        image.lay_out(&path, |files| {
            for slot in 0..2 {
                let field =
                    Field { file: "checkpoint".into(), at: slot * BLOCK + at, width: 8, seal: Seal::Slot(slot) };
                patch(files, &field, value);
            }
        });
        for options in [in_process(), Store::options()] {
            let before = all_files(&path);
            let error = options.open(&path).map(drop).unwrap_err();
            let Error::Corrupt { file, offset, what: found } = &error else { panic!("{what} {value}: {error:?}") };
            assert!(file == "checkpoint" && *offset as usize % BLOCK == at && found.contains(what), "{what}: {error}");
            assert!(before == all_files(&path), "{what} {value}: files were touched");
        }
        store_files::remove_all(&path);
    }
}

/// An image in the shared region whose checksum fits, and whose pages lie below the store's limit
/// but beyond the arena's file, is refused by each use that reads it. A load from such a page would
/// be a SIGBUS.
#[test]
fn a_forged_high_water_mark_is_refused() {
    use std::os::unix::fs::FileExt;
    const IMAGE: usize = store_files::IMAGE_WORDS * 8;
    let _limit = limit();
    let dir = scratch();
    let path = dir.path().join("store");
    let store = small().open(&path).unwrap();
    let mut history = History::default();
    work(&store, &mut history, 6, |_| true);
    store.sync().unwrap();
    let mut child = spawn("damage::hostile_fields::joined", &path, &[]);
    child.expect("joined");

    let control = std::fs::File::options().read(true).write(true).open(path.join("control")).unwrap();
    let arena_len = std::fs::metadata(path.join("arena")).unwrap().len();
    let pages_max = (16 << 20) / PAGE as u32;
    assert!(arena_len < 16 << 20, "the arena has room to grow");
    let newest = {
        let mut word = [0; 8];
        control.read_exact_at(&mut word, 128).unwrap();
        u64::from_le_bytes(word)
    };
    // Both places of durable images, and the one slot of the newest transaction.
    let [slots, durable] = IMAGES_AT;
    let places = |from: u64, count: usize| (0..count).map(move |index| from + (index * IMAGE) as u64);
    let image_at = |at: u64| {
        let mut image = [0; IMAGE];
        control.read_exact_at(&mut image, at).unwrap();
        image
    };
    let of_newest = |at: &u64| u64_at(&image_at(*at), 0) == newest;
    let slot = places(slots, 64).find(of_newest).unwrap();
    let durable = places(durable, 2).collect();
    let logger = store.stats().unwrap().logger_pid.unwrap();
    let mut refused = 0;
    for (tasks, places) in [(&["newest", "begin", "verify", "stats"][..], vec![slot]), (&["durable"][..], durable)] {
        let is_slot = places == [slot];
        if is_slot {
            // A logger that reads the forged image marks the log as broken, and the store takes no
            // more writes.
            send(logger, Signal::STOP);
        }
        let before: Vec<_> = places.iter().map(|at| image_at(*at)).collect();
        for (at, image) in places.iter().zip(&before) {
            let mut image = *image;
            // The catalog is the last page below the forged mark.
            set_u32(&mut image, 8, pages_max - 1);
            set_u32(&mut image, 16, pages_max);
            seal_image(&mut image);
            control.write_all_at(&image, *at).unwrap();
        }
        for task in tasks {
            let said = child.ask(task);
            eprintln!("{task}: {said}");
            match *task {
                // The logger writes a damaged image of a durable transaction anew. The process has
                // survived until then.
                "durable" => {}
                _ => assert!(said.starts_with("refused control: the high-water mark"), "{task}: {said}"),
            }
            refused += 1;
        }
        if is_slot {
            let said = spawn("damage::hostile_fields::opener", &path, &[]).ask(path.to_str().unwrap());
            assert!(said.starts_with("refused control: the high-water mark"), "{said}");
        }
        for (at, image) in places.iter().zip(&before) {
            control.write_all_at(image, *at).unwrap();
        }
        send(logger, Signal::CONT);
        for task in tasks {
            assert_eq!(child.ask(task), "good", "{task}, with the image as it was");
        }
    }
    assert_eq!(refused, 5);
    child.finish();
    drop(store);
    untorn::logger::stop_logger(&path, Duration::from_secs(30)).unwrap();
}

/// A number with its complement, as the region holds it.
fn checked(number: u32) -> u64 {
    u64::from(number) | u64::from(!number) << 32
}

/// A length in the shared region may fit its complement although the file is shorter. Each process
/// that relies on it refuses it, and so does each one that joins. Such a process once died of a
/// SIGBUS.
#[test]
fn a_forged_length_is_refused() {
    use std::os::unix::fs::FileExt;
    let _limit = limit();
    let dir = scratch();
    type Prepare<'a> = &'a dyn Fn(&Store);
    let no_cells: Prepare<'_> = &|_| {};
    let one_counter: Prepare<'_> = &|store| store.counter("counter").unwrap().add(1).unwrap();
    let one_cell: Prepare<'_> = &|store| {
        store.cell("cell", 4096).unwrap().store(&[1; 4096]).unwrap();
    };
    // Which number, what is done by it, the forged number, and how many words from there on hold
    // it.
    for (name, task, forged, words, prepare) in [
        ("arena-pieces", "fill", checked(7), 1, no_cells),
        ("reader-chunk", "pins", checked(2), 1, no_cells),
        ("cell-bodies", "create", checked(2000), 1, one_cell),
        ("cell-entries", "create", checked(60_000), 2, one_counter),
    ] {
        let path = dir.path().join(name);
        let store = small().open(&path).unwrap();
        store.keyspace("a").unwrap().put(b"key", b"value").unwrap();
        prepare(&store);
        store.sync().unwrap();
        let mut child = spawn("damage::hostile_fields::joined", &path, &[]);
        child.expect("joined");
        let at = CHECKED_NUMBERS.iter().chain(CHECKED_CELL_NUMBERS).find(|(of, _)| *of == name).unwrap().1;
        let control = std::fs::File::options().read(true).write(true).open(path.join("control")).unwrap();
        let mut before = [0; 16];
        control.read_exact_at(&mut before, at).unwrap();
        let len = std::fs::metadata(path.join("arena")).unwrap().len();
        assert!(len < 14 << 20, "the forged length of the arena is beyond the file");
        for word in 0..words {
            control.write_all_at(&forged.to_le_bytes(), at + 8 * word).unwrap();
        }
        let said = child.ask(task);
        eprintln!("{name}: {said}");
        assert!(said.starts_with("refused control: "), "{name}: {said}");
        assert!(said.contains("file is shorter; stop all processes"), "{name}: {said}");
        let said = spawn("damage::hostile_fields::opener", &path, &[]).ask(path.to_str().unwrap());
        eprintln!("{name}, by a process that joins: {said}");
        assert!(said.starts_with("refused control: ") && said.contains("stop all processes"), "{name}: {said}");
        control.write_all_at(&before, at).unwrap();
        assert_eq!(child.ask("stats"), "good", "{name}, with the number as it was");
        child.finish();
        drop(store);
        untorn::logger::stop_logger(&path, Duration::from_secs(30)).unwrap();
    }
}

/// A length of the log's ring may be a possible one and still be wrong: records would be copied to
/// and from other places of the ring. A process that has read the true length refuses it, and what
/// was acknowledged before is there after the next recovery.
#[test]
fn a_forged_length_of_the_ring_is_refused() {
    use std::os::unix::fs::FileExt;
    let _limit = limit();
    let dir = scratch();
    // The ring has 64 pages, and each number is that of a shorter ring.
    for (name, pages) in [("ring-length", 16), ("ring-length", 32), ("ring-reach", 16), ("ring-reach", 32)] {
        let path = dir.path().join(format!("{name}-{pages}"));
        let store = small().ring_size(256 << 10).segment_size(1 << 20).open(&path).unwrap();
        let a = store.keyspace("a").unwrap();
        let put = |number: u64| -> untorn::Result<()> {
            let mut txn = store.begin()?;
            (0..20).try_for_each(|i: u64| txn.put(&a, &(20 * number + i).to_be_bytes(), &[7; 900]))?;
            txn.commit().map(drop)
        };
        // Two laps.
        (0..30).for_each(|number| put(number).unwrap());
        let at = CHECKED_NUMBERS.iter().find(|(of, _)| *of == name).unwrap().1;
        let control = std::fs::File::options().write(true).open(path.join("control")).unwrap();
        control.write_all_at(&checked(pages).to_le_bytes(), at).unwrap();
        let refused = (30..100).find_map(|number| put(number).err().map(|error| (number, error)));
        let (number, error) = refused.unwrap_or_else(|| panic!("{name}: {pages} pages are accepted"));
        eprintln!("{name}: {error}");
        let is_clear = matches!(error, Error::Corrupt { .. } | Error::NeedsRecovery { .. } | Error::NotDurable { .. });
        assert!(is_clear, "{name}: {error:?}");
        drop(store);
        untorn::logger::stop_logger(&path, Duration::from_secs(30)).unwrap();
        let store = in_process().open(&path).unwrap();
        let a = store.find_keyspace("a").unwrap().unwrap();
        for key in 0..20 * number {
            assert!(a.get(&key.to_be_bytes()).unwrap().is_some_and(|value| value[..] == [7; 900]), "{name}: {key}");
        }
    }
}
