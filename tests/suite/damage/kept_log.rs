//! Goal: damage in a segment that only followers of the log need is reported by `verify`, with file
//! and offset, and by a feed that needs it; it refuses no open. Damage in what recovery needs
//! refuses the open, and every file stays as it was.
//!
//! Method: a store that keeps many segments for followers, left in order or as a crash leaves it;
//! each kind of damage is done to its oldest segment, to one in the middle, and to the newest.

use crate::common::store_files::{
    BLOCK, History, Image, SEGMENT, State, all_files, crash_image, in_process, numbered, read, scratch,
};
use crate::common::{limit, store_files};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use untorn::{Error, Feed, Options, Store, TxnId};

type Files = BTreeMap<String, Vec<u8>>;
/// What is done to the files.
type Damage = Box<dyn FnOnce(&mut Files)>;
/// A problem that `verify` reports: file, offset, and what is wrong.
type Problem = (String, u64, String);

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn crc(parts: &[&[u8]]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().to_le_bytes()
}

/// A store whose log fills several segments, most of which a checkpoint has passed.
fn image(dir: &Path, clean: bool) -> (Image, State) {
    std::fs::create_dir_all(dir).unwrap();
    let live = dir.join("live");
    let mut options = store_files::small();
    options.retain_changes(u64::MAX, Duration::MAX);
    let store = options.open(&live).unwrap();
    let mut history = History::default();
    for round in 0..8u64 {
        store_files::work(&store, &mut history, 6, |_| true);
        let keyspace = store.keyspace("bulk").unwrap();
        let mut txn = store.begin().unwrap();
        for n in 0..20u64 {
            txn.put(&keyspace, &n.to_le_bytes(), &[round as u8; 9000]).unwrap();
        }
        txn.commit().unwrap();
        if round % 2 == 1 {
            store.checkpoint().unwrap();
        }
    }
    store_files::work(&store, &mut history, 3, |_| true);
    store.sync().unwrap();
    assert!(store.verify().unwrap().is_clean());
    let (state, to) = (read(&store).unwrap(), dir.join("image"));
    copy_at_rest(store, &live, &to, clean);
    (Image::load(&to), state)
}

/// Ends the processes of a store, in order or as a crash does, and moves its files.
fn copy_at_rest(store: Store, live: &Path, to: &Path, clean: bool) {
    if clean {
        drop(store);
        untorn::logger::stop_logger(live, crate::common::HANGS).unwrap();
        store_files::copy(live, to);
    } else {
        crash_image(&store, live, to);
        drop(store);
    }
    store_files::remove_all(live);
}

/// Lays an image out in a directory, changed by `damage`, for the time of a check.
fn with_copy<T>(image: &Image, path: &Path, damage: impl FnOnce(&mut Files), check: impl FnOnce(&Path) -> T) -> T {
    image.lay_out(path, damage);
    let result = check(path);
    store_files::remove_all(path);
    result
}

/// Opens a store, which must be refused and stay as it was. Returns the error.
fn refusal(options: &Options, path: &Path, replay: &str) -> Error {
    let before = all_files(path);
    let error = options.open(path).map(drop).unwrap_err();
    assert!(before == all_files(path), "{replay}: files were touched");
    error
}

/// The segments in the order of their numbers, and how many of them lie below the checkpoint as a
/// whole.
fn segments(files: &Files) -> (Vec<String>, usize) {
    let mut found: Vec<(u64, u64, String)> = files
        .iter()
        .filter(|(name, bytes)| name.starts_with("wal/") && bytes.starts_with(b"untornWS"))
        .map(|(name, bytes)| (word(bytes, 32), word(bytes, 48), name.clone()))
        .collect();
    found.sort();
    let checkpoint = files["checkpoint"].chunks(BLOCK).max_by_key(|slot| word(slot, 64)).unwrap();
    let position = word(checkpoint, 72);
    let kept = found.windows(2).filter(|pair| pair[1].1 <= position).count();
    (found.into_iter().map(|(_, _, name)| name).collect(), kept)
}

/// Flips a bit in the payload of the first batch that has one.
fn flip_payload(bytes: &mut [u8]) {
    let mut at = BLOCK;
    while word(bytes, at + 32) as u32 == 0 {
        at += BLOCK;
    }
    bytes[at + 128 + 20] ^= 4;
}

/// Damages the first record of the segment, and has the checksums of batches and headers fit.
fn damage_a_record(files: &mut Files, name: &str) {
    let store = files["checkpoint"][16..32].to_vec();
    let segment = files.get_mut(name).unwrap();
    let mut at = BLOCK;
    let (mut chain, mut is_done) = (segment[124..128].to_vec(), false);
    while segment.get(at..at + 8) == Some(b"untornWB") {
        let len = word(segment, at + 32) as u32 as usize;
        // The third batch that holds records.
        if len > 64 && !is_done && at > 6 * BLOCK {
            segment[at + 128 + 32 + 9] ^= 1;
            is_done = true;
        }
        segment[at + 40..at + 44].copy_from_slice(&chain);
        let payload = crc(&[&segment[at + 16..at + 24], &segment[at + 128..at + 128 + len]]);
        segment[at + 36..at + 40].copy_from_slice(&payload);
        let header = crc(&[&store, &segment[at..at + 124]]);
        segment[at + 124..at + 128].copy_from_slice(&header);
        chain = header.to_vec();
        at += (128 + len).next_multiple_of(BLOCK);
    }
    assert!(is_done);
}

/// Opens a store that must hold all its values. Returns the problems that `verify` finds in the
/// log, and the result of a feed of all changes.
fn look(path: &Path, state: &State) -> (Vec<Problem>, Result<(), Error>) {
    let store = in_process().open(path).unwrap();
    assert!(read(&store).unwrap() == *state);
    let report = store.verify().unwrap();
    let problems = report.problems.into_iter().map(|problem| (problem.file, problem.offset, problem.what)).collect();
    let until = store.durable_snapshot().unwrap().txn_id();
    let follow = |from: TxnId| -> untorn::Result<()> {
        let mut changes = store.changes(from, Feed::Durable)?;
        while changes.resume_from() < until {
            changes.try_next(Duration::ZERO)?;
        }
        Ok(())
    };
    // A consumer that needs no lost bytes reads on.
    follow(until).unwrap();
    (problems, follow(TxnId::ZERO))
}

/// Segments are known to be whole before any of them is damaged: the whole log is read, and by a
/// feed as well.
#[test]
fn a_whole_log_is_clean() {
    let _limit = limit();
    let dir = scratch();
    for clean in [true, false] {
        let (image, state) = image(&dir.path().join(format!("whole-{clean}")), clean);
        let (names, kept) = segments(&image.files);
        assert!(kept >= 4, "{kept} of {names:?}");
        let path = dir.path().join(format!("copy-{clean}"));
        let (problems, followed) = with_copy(&image, &path, |_| {}, |path| look(path, &state));
        assert!(problems.is_empty(), "{problems:?}");
        followed.unwrap();
    }
}

#[test]
fn damage_that_only_followers_meet() {
    let _limit = limit();
    let dir = scratch();
    let mut number = 0;
    for clean in [true, false] {
        let (image, state) = image(&dir.path().join(format!("clean-{clean}")), clean);
        let (names, kept) = segments(&image.files);
        for name in [&names[0], &names[kept / 2]] {
            let mut cases: Vec<(String, Damage)> = Vec::new();
            // Without a header nothing shows that recovery does without the segment, unless the
            // store was left in order.
            for len in [0, 100, 128, 4095, 4096, 5000, SEGMENT as usize / 2, SEGMENT as usize - 1] {
                if clean || len >= 128 {
                    let name = name.clone();
                    let cut = move |files: &mut Files| files.get_mut(&name).unwrap().truncate(len);
                    cases.push((format!("{len} bytes"), Box::new(cut)));
                }
            }
            let one = name.clone();
            cases.push(("a longer file".into(), Box::new(move |files| files.get_mut(&one).unwrap().push(7))));
            let one = name.clone();
            cases.push(("a flipped bit".into(), Box::new(move |files| flip_payload(files.get_mut(&one).unwrap()))));
            let one = name.clone();
            cases.push(("no header".into(), Box::new(move |files| files.get_mut(&one).unwrap()[50] ^= 1)));
            let one = name.clone();
            cases.push(("a damaged record".into(), Box::new(move |files| damage_a_record(files, &one))));
            for (what, damage) in cases {
                number += 1;
                let replay = format!("clean={clean}: {name}: {what}");
                eprintln!("{replay}");
                let (problems, followed) = with_copy(&image, &numbered(dir.path(), number), damage, |path| {
                    let found = look(path, &state);
                    // The next open succeeds as well.
                    drop(in_process().open(path).unwrap());
                    found
                });
                eprintln!("{problems:?} {followed:?}");
                let names_file = |problem: &&Problem| {
                    problem.0 == *name || problem.0.starts_with("wal/broken-") && problem.2.contains("bytes instead of")
                };
                assert!(problems.iter().any(|problem| names_file(&problem)), "{replay}: {problems:?}");
                assert!(problems.iter().all(|problem| problem.0.starts_with("wal")), "{replay}: {problems:?}");
                // A feed of all that is kept. A feed that begins behind the oldest segment does not
                // read its damage.
                match followed {
                    Err(Error::Lagged { oldest }) => assert!(oldest > TxnId::ZERO, "{replay}"),
                    Err(Error::Corrupt { file, .. }) => assert!(file.starts_with("wal"), "{replay}: {file}"),
                    other => panic!("{replay}: {other:?}"),
                }
            }
        }
    }
}

/// What recovery needs: the newest segment, and those from the checkpoint on.
#[test]
fn damage_that_recovery_meets_refuses_the_open() {
    let _limit = limit();
    let dir = scratch();
    let (image, _) = image(&dir.path().join("crashed"), false);
    let (names, kept) = segments(&image.files);
    for (number, name) in names[kept..].iter().enumerate() {
        for (round, len) in [0, 100, 128, 5000, SEGMENT as usize - 1].into_iter().enumerate() {
            let path = numbered(dir.path(), number * 10 + round);
            let replay = format!("{name} of {len} bytes");
            let cut = |files: &mut Files| files.get_mut(name).unwrap().truncate(len);
            let error = with_copy(&image, &path, cut, |path| refusal(&in_process(), path, &replay));
            let is_named = matches!(&error, Error::Corrupt { file, .. } if file == name);
            assert!(is_named, "{replay}: {error:?}");
        }
    }
}

/// A segment in the middle that is not there is a gap in what is kept.
#[test]
fn a_missing_segment_is_a_gap() {
    let _limit = limit();
    let dir = scratch();
    let (image, state) = image(&dir.path().join("crashed"), false);
    let (names, kept) = segments(&image.files);
    let remove = |files: &mut Files| drop(files.remove(&names[kept / 2]));
    let (problems, followed) = with_copy(&image, &dir.path().join("copy"), remove, |path| look(path, &state));
    assert!(problems.iter().any(|(file, _, what)| file == "wal" && what.contains("no segment holds")), "{problems:?}");
    assert!(matches!(followed, Err(Error::Lagged { .. })), "{followed:?}");
}

/// An arena of an earlier time in place of the one that the checkpoint is of.
#[test]
fn an_arena_of_an_earlier_time_is_refused() {
    let _limit = limit();
    let dir = scratch();
    for clean in [true, false] {
        let live = dir.path().join(format!("live-{clean}"));
        let store = store_files::small().open(&live).unwrap();
        let mut history = History::default();
        store_files::work(&store, &mut history, 4, |_| true);
        store.checkpoint().unwrap();
        let earlier = std::fs::read(live.join("arena")).unwrap();
        store_files::work(&store, &mut history, 6, |_| true);
        store.checkpoint().unwrap();
        store_files::work(&store, &mut history, 2, |_| true);
        store.sync().unwrap();
        let to = dir.path().join(format!("copy-{clean}"));
        copy_at_rest(store, &live, &to, clean);
        std::fs::write(to.join("arena"), &earlier).unwrap();
        for options in [in_process(), Store::options()] {
            let error = refusal(&options, &to, &format!("clean={clean}"));
            let Error::Corrupt { file, what, .. } = &error else { panic!("clean={clean}: {error:?}") };
            assert!(file == "arena" && what.contains("of different times"), "clean={clean}: {error}");
        }
    }
}
