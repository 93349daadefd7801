//! The processes that use a store of any kind. Their batches are such that a check of any state
//! finds a batch that is there only in part. Other processes make this check.
//!
//! A writer's n-th batch is a function of n, so the writer's mark determines everything that must
//! be there.

use super::judge::{self, AcknowledgedBatches};
use super::{Change, Store, StoreUnderTest};
use crate::outcome::{Finding, Kind};
use crate::processes::role::{self, Role, say};
use crate::processes::sealed::{sealed, unsealed};
use crate::recorder::MARK;
use crate::workload::KEYS;
use crate::workload::oracle;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// One batch in this many sets the large value.
pub const LARGE_EACH: u64 = 16;
/// Length of the large value in bytes.
const LARGE: usize = 90_000;
/// Number of batches between two syncs of a store that promises durability only with a sync.
const SYNC_EACH: u64 = 8;
/// Number of batches after which a writer checks a snapshot.
const LOOK_EACH: u64 = 12;

/// Number of retries of a stubborn writer.
const ATTEMPTS: u32 = 4;

/// The name under which a check writes.
pub const LATER: &str = "later";

/// Prefix of a finding about a store that panicked.
pub const PANICKED: &str = "it panicked";

/// The lines of a stubborn writer, and the figures that count them.
pub const FATES: [(&str, &str); 4] = [
    ("E", "batches that failed"),
    ("R", "batches that succeeded when tried again"),
    ("O", "times the store had to be opened again"),
    ("G", "writers that gave up"),
];

/// Returns the key of a writer's mark.
pub fn mark(name: &str) -> Vec<u8> {
    format!("mark/{name}").into_bytes()
}

/// Returns the key of a writer's large value.
pub fn large(name: &str) -> Vec<u8> {
    format!("large/{name}").into_bytes()
}

/// Returns the n-th batch of a writer.
pub fn batch(name: &str, n: u64) -> Vec<Change> {
    let len = match n % 23 {
        0 => 20_000,
        1..5 => 900,
        _ => 60,
    };
    let put = |key: Vec<u8>, len: usize| Change { key, value: Some(sealed(n, len)) };
    let mut changes = vec![
        put(mark(name), 30),
        put(oracle::key(name, n), len),
        Change { key: oracle::key(name, n + KEYS / 2), value: None },
    ];
    if n.is_multiple_of(LARGE_EACH) {
        changes.push(put(large(name), LARGE));
    }
    changes
}

/// Plays a role of this module.
///
/// The first argument is the name of the store under test; the others belong to the role.
pub fn play(role: &Role, tested_stores: &[&dyn StoreUnderTest]) -> ExitCode {
    let argument = |at: usize| role.arguments.get(at).map_or("", String::as_str);
    let Some(tested) = super::find(tested_stores, argument(0)) else {
        eprintln!("no store is named {:?}", argument(0));
        return ExitCode::FAILURE;
    };
    let play = || match role.name.as_str() {
        "subject-writer" => {
            let rounds = argument(2).parse().unwrap_or(u64::MAX);
            write(tested, &role.store, argument(1), rounds, argument(3) == "stubborn")
        }
        "subject-reader" => read(tested, &role.store),
        "subject-presser" => press(&role.store),
        "subject-check" => check(tested, &role.store, argument(1) == "abandon"),
        other => Err(Finding::new(Kind::Misbehaved, format!("no role {other}"))),
    };
    // The text of a store's panic becomes part of the finding.
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(play)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Finding::new(Kind::Misbehaved, format!("{PANICKED}: {}", text.unwrap_or("without words"))))
    });
    role::end_of(played)
}

/// Prints the acknowledgements of a writer for the harness. If the store is on a recorder, it also
/// writes them into the record.
struct Voice<'a> {
    name: &'a str,
    marks: Option<File>,
}

impl Voice<'_> {
    fn say(&mut self, what: &str, n: u64) -> Result<(), Finding> {
        if let Some(marks) = &mut self.marks {
            // One write call is one mark.
            let line = format!("{what} {} {n}", self.name);
            marks.write_all(line.as_bytes()).map_err(|error| super::Failure::from(error).finding("a mark"))?;
        }
        say(format_args!("{what} {n}"));
        Ok(())
    }
}

/// Writes batches until killed, or a number of them, and continues after the last batch that is
/// there. The line `B n` means that it continues after the n-th batch, `V n` that the n-th batch
/// has returned, and `S n` that a sync after it has returned. A writer that is not stubborn ends
/// with the first failure.
fn write(tested: &dyn StoreUnderTest, path: &Path, name: &str, rounds: u64, stubborn: bool) -> Result<(), Finding> {
    let about = tested.about();
    let syncs = about.after_kill == super::Promise::Sync || about.after_cut == super::Promise::Sync;
    let marks = File::options().write(true).open(path.with_file_name(MARK)).ok();
    let mut voice = Voice { name, marks };
    let mut store = if stubborn { open_again(tested, path)? } else { open(tested, path)? };
    let mut n = last(&*store, name)?;
    voice.say("B", n)?;
    for round in 1..=rounds {
        n += 1;
        let sync = syncs && round.is_multiple_of(SYNC_EACH);
        for attempt in 0.. {
            let done = store.batch(&batch(name, n)).and_then(|()| if sync { store.sync() } else { Ok(()) });
            let Err(failure) = done else {
                if attempt > 0 {
                    voice.say("R", n)?;
                }
                break;
            };
            if !stubborn {
                return Err(failure.finding("batch"));
            }
            voice.say("E", n)?;
            if attempt == ATTEMPTS {
                voice.say("G", n)?;
                return Ok(());
            }
            // After two failures the writer reopens the store and continues after the last batch
            // that is there. Batches without a promise may be gone.
            if attempt > 0 {
                voice.say("O", n)?;
                drop(store);
                store = open_again(tested, path)?;
                let there = last(&*store, name)?;
                voice.say("B", there)?;
                n = there + 1;
            }
        }
        voice.say("V", n)?;
        if sync {
            voice.say("S", n)?;
        }
        if round.is_multiple_of(LOOK_EACH) {
            let found = judge::whole(&store.snapshot().map_err(|failure| failure.finding("snapshot"))?)?;
            if found.get(name) != Some(&n) {
                let what = format!("{name} wrote {n}, and reads {:?}", found.get(name));
                return Err(Finding::new(Kind::OrderViolation, what));
            }
        }
    }
    Ok(())
}

/// Returns the number of the last batch of a writer that is there.
fn last(store: &dyn Store, name: &str) -> Result<u64, Finding> {
    let value = store.get(&mark(name)).map_err(|failure| failure.finding("get"))?;
    Ok(value.map_or(Ok(0), |value| unsealed(&value))?)
}

fn open(tested: &dyn StoreUnderTest, path: &Path) -> Result<Box<dyn Store>, Finding> {
    tested.open(path).map_err(|failure| failure.finding("opening the store"))
}

/// Opens the store after a failure, with retries.
fn open_again(tested: &dyn StoreUnderTest, path: &Path) -> Result<Box<dyn Store>, Finding> {
    (0..ATTEMPTS).find_map(|_| tested.open(path).ok()).map_or_else(|| open(tested, path), Ok)
}

/// Checks snapshots until killed: each must be whole, and none older than the previous one.
fn read(tested: &dyn StoreUnderTest, path: &Path) -> Result<(), Finding> {
    let store = open(tested, path)?;
    let mut last = BTreeMap::<String, u64>::new();
    loop {
        let found = judge::whole(&store.snapshot().map_err(|failure| failure.finding("snapshot"))?)?;
        if let Some((name, n)) = last.iter().find(|(name, n)| found.get(*name).is_none_or(|now| now < n)) {
            return Err(Finding::new(Kind::OrderViolation, format!("{name} went back from {n}: {found:?}")));
        }
        last = found;
        say("ok");
        // Leaves processor time for the writers on a small machine.
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Opens the store after a failure, prints the last batch of each writer, checks the content, and
/// writes more. Then it closes the store or ends as if killed. The line `F name n` means that the
/// n-th batch of this writer is its last one there.
fn check(tested: &dyn StoreUnderTest, path: &Path, abandon: bool) -> Result<(), Finding> {
    let mut store = open(tested, path)?;
    for (name, n) in judge::whole(&store.snapshot().map_err(|failure| failure.finding("snapshot"))?)? {
        say(format_args!("F {name} {n}"));
    }
    store.verify().map_err(|failure| Finding::new(Kind::Damaged, format!("its own check: {}", failure.0)))?;
    let name = LATER;
    let write_more = |store: &mut dyn Store| {
        let last = store.get(&mark(name))?.map_or(0, |value| unsealed(&value).unwrap_or(0));
        for n in last + 1..last + 4 {
            store.batch(&batch(name, n))?;
        }
        store.sync()?;
        Ok(last + 3)
    };
    let last = write_more(&mut *store).map_err(|failure: super::Failure| failure.finding("writing on"))?;
    let found = judge::whole(&store.snapshot().map_err(|failure| failure.finding("snapshot"))?)?;
    if found.get(name) != Some(&last) {
        return Err(Finding::new(Kind::OrderViolation, format!("wrote {last} afterwards, and reads {found:?}")));
    }
    say(format_args!("L {last}"));
    if abandon {
        std::mem::forget(store);
    }
    Ok(())
}

/// Makes the kernel write back dirty pages of the store's files all the time, until killed. The
/// kernel may do so at any time. Without this process, a store that syncs in the wrong order could
/// pass.
fn press(path: &Path) -> Result<(), Finding> {
    loop {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            // Closing this descriptor releases only locks of this process, not those of the store's
            // processes.
            let Ok(file) = File::options().read(true).open(entry.path()) else { continue };
            let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
            // SAFETY: the descriptor is open; the call accesses no memory of this process.
            #[allow(unsafe_code)]
            unsafe {
                libc::sync_file_range(file.as_raw_fd(), 0, 0, flags)
            };
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Returns the acknowledgements among the lines of a process.
pub fn acknowledged(name: &str, lines: &[String]) -> AcknowledgedBatches {
    let mut acknowledged = AcknowledgedBatches::default();
    for line in lines {
        if let Some((what, n)) = line.split_once(' ') {
            acknowledged.hear(&format!("{what} {name} {n}"));
        }
    }
    acknowledged
}
