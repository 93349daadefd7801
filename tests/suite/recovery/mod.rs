//! Goal: whatever a crash or a damaged byte leaves of the log and of the checkpoint's headers,
//! recovery yields a state that was, with everything in it that was stated durable. Otherwise it
//! names the damaged file and place. It never yields another state and never panics.
//!
//! Method: a small store whose every state is known is stopped as a crash of the kernel would (its
//! logger killed, its shared region lost); copies of its files are cut or changed at one byte each
//! and recovered in this process. All bytes of the last batches and of the segments' headers are
//! tried; of the others one in a few, unless `UNTORN_SWEEP=1` asks for all.

mod adoption;
mod backups;
mod golden_store;
mod large_values;

use crate::common::program::logger as logger_program;
use crate::common::store_files::*;
use crate::common::{HANGS, Role, spawn, store_files};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::Path;
use std::time::{Duration, Instant};
use untorn::reason::LoggerFailure;
use untorn::{Error, Store};

/// Opens a damaged copy: its state, or the error. Holds the state against what must be there.
fn recover(dir: &Path, history: &History, at_least: u64, replay: &str) -> Result<u64, Error> {
    let store = in_process().open(dir)?;
    let state = read(&store).unwrap_or_else(|error| panic!("{replay}: unreadable after recovery: {error}"));
    let txn = history.find(&state).unwrap_or_else(|error| panic!("{replay}: {error}"));
    assert!(txn >= at_least, "{replay}: recovered {txn}, but {at_least} was stated durable");
    let mut problems = store.verify().unwrap().problems;
    // A damaged older header is worth knowing until the next checkpoint overwrites it.
    problems.retain(|problem| problem.file != "checkpoint");
    assert!(problems.is_empty(), "{replay}: {problems:#?}");
    Ok(txn)
}

/// A damaged log: a state that was, or `Corrupt` that names a file of the log.
fn check(dir: &Path, history: &History, at_least: u64, replay: &str) -> Option<u64> {
    let recovered = recover(dir, history, at_least, replay);
    // The logger's thread leaves when it finds its directory gone.
    store_files::remove_all(dir);
    match recovered {
        Ok(txn) => Some(txn),
        Err(Error::Corrupt { file, .. }) if file.starts_with("wal") => None,
        Err(error) => panic!("{replay}: {error:?}"),
    }
}

/// A crashed store: its files, and what they went through.
fn crashed(dir: &Path, count: u64, settle: bool, durable: impl Fn(u64) -> bool) -> (Image, History) {
    std::fs::create_dir_all(dir).unwrap();
    let live = dir.join("live");
    let store = small().open(&live).unwrap();
    let mut history = History::default();
    work(&store, &mut history, count / 2, &durable);
    store.checkpoint().unwrap();
    work(&store, &mut history, count - count / 2, &durable);
    store.sync().unwrap();
    if settle {
        // An idle logger states all that is durable in a block of its own.
        std::thread::sleep(Duration::from_millis(200));
    }
    let image = dir.join("image");
    crash_image(&store, &live, &image);
    drop(store);
    let loaded = Image::load(&image);
    store_files::remove_all(&live);
    (loaded, history)
}

fn sweeps_all() -> bool {
    std::env::var_os("UNTORN_SWEEP").is_some()
}

/// The positions to damage in the log: every byte of segment headers and of the last `whole`
/// batches, one in `stride` elsewhere where bytes are used, and a few in the padding.
fn positions(image: &Image, whole: usize, stride: usize) -> Vec<(String, usize, bool)> {
    let stride = if sweeps_all() { 1 } else { stride };
    let statements = image.statements();
    let mut found = Vec::new();
    for (index, statement) in statements.iter().enumerate() {
        // Of batches, the last ones of each file.
        let later = statements[index + 1..].iter().filter(|later| later.file == statement.file).count();
        let dense = statement.offset == 0 || later < whole;
        let covered = statement.offset..statement.offset + statement.len;
        for at in covered.clone() {
            // A long payload is damaged alike everywhere.
            let near = at < covered.start + 200 || at + 16 > covered.end;
            if (dense && near) || (at - covered.start) % stride == 0 {
                found.push((statement.file.clone(), at, true));
            }
        }
        let padded = covered.end.next_multiple_of(BLOCK);
        if padded > covered.end {
            found.push((statement.file.clone(), covered.end, false));
            found.push((statement.file.clone(), padded - 1, false));
        }
    }
    found
}

#[test]
fn log_with_one_byte_changed() {
    let dir = scratch();
    for (round, settle) in [(0, true), (1, false)] {
        let (image, history) = crashed(&dir.path().join(format!("round-{round}")), 26, settle, |step| step % 3 != 0);
        let statements = image.statements();
        let newest = history.states.last().unwrap().0;
        let (mut states, mut errors) = (0, 0);
        let started = Instant::now();
        for (number, (file, at, covered)) in positions(&image, 2, 97).into_iter().enumerate() {
            let bit = 1 << (number % 8);
            let replay = format!("round {round}: bit {bit:#04x} of byte {at} of {file}");
            let copy = numbered(dir.path(), number);
            image.lay_out(&copy, |files| files.get_mut(&file).unwrap()[at] ^= bit);
            let at_least = still_stated(&statements, &file, at..at + 1);
            match check(&copy, &history, at_least, &replay) {
                Some(txn) => {
                    states += 1;
                    assert!(covered || txn == newest, "{replay}: padding means nothing, but only {txn} came back");
                }
                None => errors += 1,
            }
        }
        eprintln!("round {round}: {states} recovered, {errors} refused in {:?}", started.elapsed());
        assert!(states > 0 && errors > 0);
    }
}

#[test]
fn log_cut_short() {
    let dir = scratch();
    let (image, history) = crashed(&dir.path().join("cut"), 26, false, |step| step % 4 != 0);
    let statements = image.statements();
    let started = Instant::now();
    let mut ends = std::collections::BTreeSet::new();
    let (mut count, mut errors) = (0, 0);
    for (number, (file, at, _)) in positions(&image, 2, 131).into_iter().enumerate() {
        // Zeros from the cut on, as in a preallocated file whose later writes never came.
        let replay = format!("zeros from byte {at} of {file}");
        let copy = numbered(dir.path(), number);
        image.lay_out(&copy, |files| files.get_mut(&file).unwrap()[at..].fill(0));
        let at_least = still_stated(&statements, &file, at..usize::MAX);
        count += 1;
        match check(&copy, &history, at_least, &replay) {
            Some(txn) => drop(ends.insert(txn)),
            None => errors += 1,
        }
    }
    eprintln!("{count} cuts: {} different ends, {errors} refused in {:?}", ends.len(), started.elapsed());
    eprintln!("{ends:?}");
    assert!(ends.len() > 1, "cuts end in different transactions");
}

/// A segment file that is shorter than it should be is refused by name, whatever its length, and
/// stays as it is.
#[test]
fn log_file_truncated() {
    let dir = scratch();
    let (image, history) = crashed(&dir.path().join("short"), 8, true, |_| true);
    let names: Vec<String> = image.files.keys().filter(|name| name.starts_with("wal/")).cloned().collect();
    let mut spares = 0;
    for (number, name) in names.iter().enumerate() {
        for (round, len) in [0, 1, 100, 4095, 4096, 5000, 65536, SEGMENT as usize - 1].into_iter().enumerate() {
            let copy = numbered(dir.path(), number * 100 + round);
            image.lay_out(&copy, |files| files.get_mut(name).unwrap().truncate(len));
            // A header's block that is there and blank shows that the file was a spare.
            let is_spare = image.files[name][..store_files::BLOCK].iter().all(|byte| *byte == 0);
            if is_spare && len >= store_files::BLOCK {
                let store = in_process().open(&copy).unwrap_or_else(|error| panic!("{name} of {len} bytes: {error}"));
                assert!(read(&store).unwrap() == *history.newest(), "{name} of {len} bytes");
                spares += 1;
            } else {
                let before = (Image::load(&copy).files, store_files::stamps(&copy));
                let error = in_process().open(&copy).unwrap_err();
                assert!(
                    matches!(&error, Error::Corrupt { file, .. } if file == name),
                    "{name} of {len} bytes: {error:?}"
                );
                let is_kept = before == (Image::load(&copy).files, store_files::stamps(&copy));
                assert!(is_kept, "{name} of {len} bytes: files were touched");
            }
            store_files::remove_all(&copy);
        }
    }
    assert!(spares > 0, "no spare was cut short: {names:?}");
}

fn serial(slot: &[u8]) -> u64 {
    u64::from_le_bytes(slot[64..72].try_into().unwrap())
}

/// Interleaving 17. Goal: a damaged newest header is never passed over in silence once the log
/// states its checkpoint, a damaged older one doesn't matter, and two damaged ones are an error.
#[test]
fn headers_with_one_byte_changed() {
    let dir = scratch();
    let (image, history) = crashed(&dir.path().join("headers"), 14, true, |_| true);
    let newest_txn = history.states.last().unwrap().0;
    let slots = &image.files["checkpoint"];
    let newest = usize::from(serial(&slots[4096..]) > serial(slots));
    let mut number = 0;
    for slot in 0..2 {
        for at in (0..304).step_by(if slot == newest { 1 } else { 5 }).chain((304..4096).step_by(293)) {
            number += 1;
            let copy = numbered(dir.path(), number);
            image.lay_out(&copy, |files| files.get_mut("checkpoint").unwrap()[slot * 4096 + at] ^= 1 << (at % 8));
            let replay = format!("byte {at} of header slot {slot}, the newest is {newest}");
            let before = Image::load(&copy);
            match recover(&copy, &history, newest_txn, &replay) {
                Ok(_) => assert_ne!(slot, newest, "{replay}: passed over"),
                Err(Error::Corrupt { file, .. }) if file == "checkpoint" => {
                    assert_eq!(slot, newest, "{replay}: refused");
                    assert!(before.files == Image::load(&copy).files, "{replay}: files were touched");
                }
                Err(error) => panic!("{replay}: {error:?}"),
            }
            store_files::remove_all(&copy);
        }
    }
    for at in (0..304).step_by(19) {
        let copy = numbered(dir.path(), 100_000 + at);
        image.lay_out(&copy, |files| {
            let slots = files.get_mut("checkpoint").unwrap();
            slots[at] ^= 4;
            slots[4096 + at] ^= 4;
        });
        let error = in_process().open(&copy).unwrap_err();
        assert!(matches!(&error, Error::Corrupt { file, .. } if file == "checkpoint"), "both, byte {at}: {error:?}");
        store_files::remove_all(&copy);
    }
}

/// A checkpoint whose header is on the disk and that no block of the log states yet: the header
/// counts if it is whole, and the one before serves if it is torn.
#[test]
fn header_that_the_log_does_not_state() {
    let dir = scratch();
    let live = dir.path().join("live");
    let store = small().open(&live).unwrap();
    let mut history = History::default();
    work(&store, &mut history, 9, |_| true);
    store.checkpoint().unwrap();
    work(&store, &mut history, 9, |_| true);
    std::thread::sleep(Duration::from_millis(200));
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    copy(&live, &before);
    store.checkpoint().unwrap();
    crash_image(&store, &live, &after);
    drop(store);
    let newest_txn = history.states.last().unwrap().0;
    // The log as it was before, with the arena and the headers after.
    let mut image = Image::load(&before);
    for (name, bytes) in Image::load(&after).files {
        if !name.starts_with("wal/") {
            image.files.insert(name, bytes);
        }
    }
    let slots = &image.files["checkpoint"];
    let newest = usize::from(serial(&slots[4096..]) > serial(slots)) * 4096;
    for torn in [None, Some(0), Some(70), Some(200), Some(303)] {
        let copy = numbered(dir.path(), torn.unwrap_or(1000));
        image.lay_out(&copy, |files| {
            if let Some(at) = torn {
                files.get_mut("checkpoint").unwrap()[newest + at..newest + 4096].fill(0xa5);
            }
        });
        recover(&copy, &history, newest_txn, &format!("torn at {torn:?}")).unwrap();
    }
    store_files::remove_all(&live);
}

/// Goal: recovery that is killed at any instant, with the power cut now and then as well, just
/// starts again. Method: real logger processes over a crashed store, killed after a random time
/// within that of a recovery.
#[test]
fn recovery_killed_again_and_again() {
    let dir = scratch();
    let (image, history) = crashed(&dir.path().join("killed"), 40, true, |step| step % 5 != 0);
    let newest_txn = history.states.last().unwrap().0;
    let seed = std::env::var("UNTORN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let mut random = Random::new(seed);
    let logger = logger_program();
    let start = |path: &Path| std::process::Command::new(logger).arg(path).spawn().unwrap();
    // How long a whole recovery takes.
    let whole = {
        let copy = dir.path().join("timed");
        image.lay_out(&copy, |_| {});
        let started = Instant::now();
        let mut child = start(&copy);
        while !copy.join("control").exists() {
            assert!(started.elapsed() < HANGS, "it does not recover");
            std::thread::sleep(Duration::from_micros(100));
        }
        let whole = started.elapsed();
        child.kill().unwrap();
        child.wait().unwrap();
        whole
    };
    for round in 0..12 {
        let copy = dir.path().join(format!("killed-{round}"));
        image.lay_out(&copy, |_| {});
        let kills = 4 + random.below(8);
        for _ in 0..kills {
            let mut child = start(&copy);
            std::thread::sleep(Duration::from_nanos(random.below(whole.as_nanos() as u64 * 5 / 4)));
            child.kill().unwrap();
            child.wait().unwrap();
            if random.below(2) == 0 {
                // The power goes too.
                let _ = std::fs::remove_file(copy.join("control"));
            }
        }
        let replay = format!("UNTORN_SEED={seed}, round {round} of {kills} kills");
        recover(&copy, &history, newest_txn, &replay).unwrap_or_else(|error| panic!("{replay}: {error}"));
        store_files::remove_all(&copy);
    }
    eprintln!("a whole recovery takes {whole:?}");
}

/// Goal: after mere process deaths nothing visible is lost, also when the region that holds it is
/// damaged afterwards: then what is durable comes back.
#[test]
fn shared_region_at_rest() {
    let dir = scratch();
    let live = dir.path().join("live");
    let store = small().flush_policy(untorn::FlushPolicy::Every(Duration::from_secs(60))).open(&live).unwrap();
    let mut history = History::default();
    work(&store, &mut history, 7, |_| false);
    store.sync().unwrap();
    let durable = history.states.last().unwrap().0;
    work(&store, &mut history, 3, |_| false);
    let visible = history.states.last().unwrap().0;
    // All die: the logger by the signal, this client by leaving a store that no logger can then
    // flush.
    let logger = store.stats().unwrap().logger_pid.unwrap();
    kill(logger);
    wait_dead(logger);
    let control = std::fs::read(live.join("control")).unwrap();
    let image_dir = dir.path().join("image");
    copy(&live, &image_dir);
    let image = Image::load(&image_dir);
    drop(store);
    let mut random = Random::new(3);
    let used = control.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    let (mut whole, mut lost) = (0, 0);
    for number in 0..150 {
        let copy = numbered(dir.path(), number);
        image.lay_out(&copy, |_| {});
        // A copied region has another inode, which distinguishes it from one in use: here that is
        // corrected.
        let path = copy.join("control");
        std::fs::write(&path, &control).unwrap();
        let mut bytes = control.clone();
        let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap());
        bytes[40..48].copy_from_slice(&inode.to_le_bytes());
        let at = match number {
            0 => None,
            n if n % 2 == 0 => Some(random.below(16 << 10) as usize),
            _ => Some(random.below(used) as usize),
        };
        if let Some(at) = at {
            bytes[at] ^= 1 << random.below(8);
        }
        std::fs::write(&path, &bytes).unwrap();
        let replay = format!("byte {at:?} of control");
        let txn = recover(&copy, &history, durable, &replay).unwrap_or_else(|error| panic!("{replay}: {error:?}"));
        assert!(at.is_some() || txn == visible, "an undamaged region gave {txn}, {visible} was visible");
        if txn == visible {
            whole += 1
        } else {
            lost += 1
        }
        store_files::remove_all(&copy);
    }
    eprintln!("{whole} with all that was visible, {lost} with less, all with what was durable");
    store_files::remove_all(&live);
}

/// Goal: if a logger can't recover, the opener gets the reason, at once, also from another process.
#[test]
fn errors_of_recovery_reach_the_caller() {
    let dir = scratch();
    let (image, _) = crashed(&dir.path().join("errors"), 8, true, |_| true);
    let newest = image.statements().into_iter().rfind(|s| s.offset > 0 && s.len > 200).unwrap();
    for thread in [false, true] {
        let copy = dir.path().join(format!("damaged-{thread}"));
        image.lay_out(&copy, |files| files.get_mut(&newest.file).unwrap()[newest.offset + 150] ^= 1);
        let started = Instant::now();
        let error = Store::options().logger_thread(thread).open(&copy).unwrap_err();
        assert!(
            matches!(&error, Error::Corrupt { file, offset, .. } if *file == newest.file && *offset == newest.offset as u64),
            "{error:?}"
        );
        assert!(started.elapsed() < HANGS, "{:?}", started.elapsed());
    }
    // A program that is no logger is named.
    let copy = dir.path().join("no-logger");
    image.lay_out(&copy, |_| {});
    let error = Store::options().logger_program("/bin/true").open(&copy).unwrap_err();
    let Error::LoggerUnavailable { reason: LoggerFailure::Programs { tried } } = &error else { panic!("{error:?}") };
    assert_eq!(tried[0].program, "/bin/true");
}

/// Goal: a logger's own limit on file sizes is not its starter's.
#[test]
fn limits_of_the_starter_are_not_the_loggers() {
    let dir = scratch();
    let path = dir.path().join("limited");
    drop(small().open(&path).unwrap());
    untorn::logger::stop_logger(&path, HANGS).unwrap();
    spawn("recovery::limited", &path, &[]).finish();
    untorn::logger::stop_logger(&path, HANGS).unwrap();
}

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    assert_eq!(role.name, "limited");
    let limit = Rlimit { current: Some(64 << 20), ..getrlimit(Resource::Fsize) };
    setrlimit(Resource::Fsize, limit).unwrap();
    let store = small().open(&role.store).unwrap();
    let pid = store.stats().unwrap().logger_pid.unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max file size")).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(fields[3], fields[4], "{line}");
}

/// Goal: the pages of a checkpoint stay as they are until the next one, those that free queues
/// consist of included.
///
/// A commit once took the next page of a queue out of a free extent, and freed no extent itself. It
/// wrote the changed extent directory over that of the checkpoint. Recovery then read the queues of
/// a transaction that it had yet to replay: pages were lost, or used twice. So here a large value
/// leaves a free extent, and some records use up the free single pages. A checkpoint then seals the
/// queues' pages, and each later commit is recovered from what the files hold just then.
#[test]
fn pages_of_a_checkpoint_stay_as_they_are() {
    let dir = scratch();
    let mut random = Random::new(5);
    for number in 0..24 {
        let live = dir.path().join(format!("live-{number}"));
        let store = small().logger_thread(true).logger_idle(Duration::from_millis(1)).open(&live).unwrap();
        let rows = store.keyspace("rows").unwrap();
        rows.put(b"large", &vec![1; 20_000 + random.below(100_000) as usize]).unwrap();
        rows.delete(b"large").unwrap();
        store.checkpoint().unwrap();
        let mut key = 0u64;
        for round in 0..8 {
            let mut txn = store.begin().unwrap();
            for _ in 0..random.below(120) {
                key += 1;
                txn.put(&rows, &key.to_be_bytes(), &[round; 200]).unwrap();
            }
            txn.put(&rows, b"last", &[round; 10]).unwrap();
            txn.commit().unwrap();
            let image = numbered(dir.path(), number * 10 + usize::from(round));
            copy(&live, &image);
            let problems = in_process().open(&image).unwrap().verify().unwrap().problems;
            store_files::remove_all(&image);
            assert!(problems.is_empty(), "store {number}, round {round}: {problems:#?}");
            if random.below(3) != 0 {
                store.checkpoint().unwrap();
            }
        }
        drop(store);
        store_files::remove_all(&live);
    }
}
