//! Stores as files: a small workload whose every state is known, copies of a store's directory, and
//! the headers of the log in it. Shared by the tests that damage files.
#![allow(unreachable_pub)]
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use untorn::{Durability, Options, Store};
pub(crate) use untorn_test_kit::sealed::Random;

/// The content of a store: (keyspace, key) → value.
pub(crate) type State = BTreeMap<(String, Vec<u8>), Vec<u8>>;

pub(crate) const RING: u64 = 64 << 10;
pub(crate) const SEGMENT: u64 = 256 << 10;
pub(crate) const BLOCK: usize = 4096;

/// Returns options for a store of the smallest size.
pub(crate) fn small() -> Options {
    let mut options = Store::options();
    options.ring_size(RING).segment_size(SEGMENT).max_size(16 << 20);
    options
}

/// Returns the same options, with recovery by a thread of this process. That is fast, and no other
/// process remains.
pub(crate) fn in_process() -> Options {
    let mut options = Store::options();
    options.logger_thread(true).logger_idle(Duration::from_millis(1)).create(false);
    options
}

/// Returns a directory for stores. It is in memory if there is such a file system, because these
/// tests sync thousands of times.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

/// The states of a workload. Each has the sequence number of the transaction that led to it.
#[derive(Clone, Default)]
pub(crate) struct History {
    pub states: Vec<(u64, State)>,
}

impl History {
    pub(crate) fn newest(&self) -> &State {
        &self.states.last().unwrap().1
    }

    /// Returns the transaction that led to this state, or an error if the store never had it.
    pub(crate) fn find(&self, state: &State) -> Result<u64, String> {
        match self.states.iter().rev().find(|(_, known)| known == state) {
            Some((txn, _)) => Ok(*txn),
            None => Err(format!("a state that never was: {:?}", state.keys().collect::<Vec<_>>())),
        }
    }
}

/// Commits `count` transactions: single keys, several keys in several keyspaces, deletes, a large
/// value, a transaction larger than the ring, and one that is rolled back after it has streamed.
/// `durable` selects the transactions whose durability is waited for.
pub(crate) fn work(store: &Store, history: &mut History, count: u64, durable: impl Fn(u64) -> bool) {
    if history.states.is_empty() {
        history.states.push((0, State::new()));
    }
    let note = |history: &mut History, ticket: untorn::Ticket, state: State| {
        history.states.push((ticket.txn_id().sequence(), state));
    };
    for _ in 0..count {
        let step = history.states.len() as u64;
        let mut state = history.newest().clone();
        let durability = if durable(step) { Durability::Durable } else { Durability::Visible };
        let mut txn = store.begin_with(durability).unwrap();
        let mut put = |txn: &mut untorn::WriteTxn<'_>, space: &str, key: &[u8], value: &[u8]| {
            let keyspace = txn.keyspace(space).unwrap();
            txn.put(&keyspace, key, value).unwrap();
            state.insert((space.to_string(), key.to_vec()), value.to_vec());
        };
        put(&mut txn, "a", b"step", &step.to_le_bytes());
        match step % 12 {
            1 | 7 => {
                for i in 0..6u64 {
                    put(&mut txn, "b", format!("many {i}").as_bytes(), &bytes(step * 10 + i, 40));
                    put(&mut txn, "c", format!("other {step} {i}").as_bytes(), &bytes(step, 90));
                }
            }
            3 => put(&mut txn, "a", b"large", &bytes(step, 30_000)),
            5 if step < 12 => put(&mut txn, "b", b"larger than the ring", &bytes(step, 90_000)),
            6 => {
                // This transaction streams and never commits, so its frames stay in the log.
                let keyspace = txn.keyspace("b").unwrap();
                for i in 0..20u64 {
                    txn.put(&keyspace, &i.to_le_bytes(), &bytes(i, 1000)).unwrap();
                }
                txn.rollback();
                txn = store.begin_with(durability).unwrap();
                put(&mut txn, "a", b"step", &step.to_le_bytes());
            }
            9 => {
                let keyspace = txn.keyspace("b").unwrap();
                txn.delete(&keyspace, b"many 1").unwrap();
                state.remove(&("b".to_string(), b"many 1".to_vec()));
            }
            _ => put(&mut txn, "a", format!("key {step}").as_bytes(), &bytes(step, 60)),
        }
        let ticket = txn.commit().unwrap();
        note(history, ticket, state);
    }
}

/// Returns the whole content of a store.
pub(crate) fn read(store: &Store) -> untorn::Result<State> {
    let snapshot = store.snapshot()?;
    let mut state = State::new();
    for name in snapshot.keyspaces()? {
        // Because of damage, a name may be listed that can't be found.
        let Some(keyspace) = store.find_keyspace(&name)? else { continue };
        for entry in snapshot.range(&keyspace, ..)? {
            let (key, value) = entry?;
            state.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    Ok(state)
}

/// Returns the same content in another way: from all changes, beginning with the first.
pub(crate) fn read_changes(store: &Store) -> untorn::Result<State> {
    let until = store.durable_snapshot()?.txn_id();
    let mut changes = store.changes(untorn::TxnId::ZERO, untorn::Feed::Durable)?;
    let mut state = State::new();
    while changes.resume_from() < until {
        let Some(change) = changes.try_next(Duration::ZERO)? else { continue };
        let at = (change.keyspace().to_string(), change.key().to_vec());
        if change.kind() == untorn::ChangeKind::DeleteRange {
            state.retain(|(name, key), _| *name != at.0 || !change.affects(key));
            continue;
        }
        match (change.kind(), change.into_value()) {
            (untorn::ChangeKind::Put, Some(value)) => drop(state.insert(at, value)),
            (untorn::ChangeKind::Delete, None) => assert!(state.remove(&at).is_some(), "{at:?} was not there"),
            (untorn::ChangeKind::DropKeyspace, None) => state.retain(|(name, _), _| *name != at.0),
            other => panic!("{other:?}"),
        }
    }
    Ok(state)
}

/// Kills the store's logger, waits until it is gone, and copies the directory as the crash left it.
pub(crate) fn crash_image(store: &Store, from: &Path, to: &Path) {
    let logger = store.stats().unwrap().logger_pid.expect("a logger runs");
    kill(logger);
    wait_dead(logger);
    copy(from, to);
}

/// Kills one process that this test started, by its id.
pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process id");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Waits until a killed process no longer runs. Its parent may reap it seconds later.
pub(crate) fn wait_dead(pid: u32) {
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.trim_start().chars().next()
    };
    while state().is_some_and(|state| state != 'Z' && state != 'X') {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Copies a store's directory, including holes in its files. The shared region and the lock are not
/// copied.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("wal")).unwrap();
    fs::write(to.join("lock"), b"").unwrap();
    for name in ["arena", "checkpoint"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    for entry in fs::read_dir(from.join("wal")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join("wal").join(entry.file_name())).unwrap();
    }
}

/// A store's files in memory. They can be laid out again and again with changes.
pub(crate) struct Image {
    pub files: BTreeMap<String, Vec<u8>>,
}

/// Number of words in the image of a commit.
pub(crate) const IMAGE_WORDS: usize = 32;

/// Returns the checksum of all words except the last, as `docs/format.md` describes it.
pub(crate) fn image_checksum(words: &[u64]) -> u64 {
    let fold = |sum: u64, word: u64| {
        let wide = u128::from(word ^ sum) * 0xa076_1d64_78bd_642f_u128;
        (wide as u64) ^ ((wide >> 64) as u64) ^ word.rotate_left(29)
    };
    let mut lanes: [u64; 4] =
        [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];
    for (index, word) in words[..IMAGE_WORDS - 1].iter().enumerate() {
        lanes[index % 4] = fold(lanes[index % 4], *word);
    }
    lanes[1..].iter().fold(lanes[0], |sum, lane| fold(sum, *lane))
}

impl Image {
    pub(crate) fn load(dir: &Path) -> Image {
        let mut files = BTreeMap::new();
        for name in ["arena", "checkpoint"] {
            files.insert(name.to_string(), fs::read(dir.join(name)).unwrap());
        }
        for entry in fs::read_dir(dir.join("wal")).unwrap() {
            let entry = entry.unwrap();
            let name = format!("wal/{}", entry.file_name().to_string_lossy());
            files.insert(name, fs::read(entry.path()).unwrap());
        }
        Image { files }
    }

    /// Writes the files into the new directory `dir`, after `change` has changed them.
    pub(crate) fn lay_out(&self, dir: &Path, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) {
        let mut files = self.files.clone();
        change(&mut files);
        fs::create_dir_all(dir.join("wal")).unwrap();
        fs::write(dir.join("lock"), b"").unwrap();
        for (name, bytes) in &files {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    /// Returns the positions of the log's headers, and the newest durable transaction that each
    /// contains. The headers are decoded here by hand, so that the check does not depend on the
    /// code under test.
    pub(crate) fn statements(&self) -> Vec<Statement> {
        let mut found = Vec::new();
        for (file, bytes) in self.files.iter().filter(|(name, _)| name.starts_with("wal/")) {
            let mut end = 0;
            for (index, block) in bytes.chunks(BLOCK).enumerate() {
                let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
                let offset = index * BLOCK;
                let (stated, len) = match &block[..8] {
                    b"untornWS" => (word(56 + 8), 0),
                    b"untornWB" if offset >= end => (word(48 + 8), word(32) as u32 as usize),
                    _ => continue,
                };
                end = offset + 128 + len;
                found.push(Statement {
                    file: file.clone(),
                    offset,
                    len: 128 + len,
                    txn: untorn::TxnId::from_u64(stated).sequence(),
                });
            }
        }
        found
    }
}

/// A header of the log, and the extent of the data that belongs to it.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub file: String,
    pub offset: usize,
    /// Bytes that its checksums cover, from the header on.
    pub len: usize,
    /// The newest durable transaction that the header contains.
    pub txn: u64,
}

/// Returns the newest durable transaction in the headers that lie outside the damaged bytes.
pub(crate) fn still_stated(statements: &[Statement], file: &str, damaged: std::ops::Range<usize>) -> u64 {
    let whole = |statement: &&Statement| {
        statement.file != file || statement.offset + 128 <= damaged.start || statement.offset >= damaged.end
    };
    statements.iter().filter(whole).map(|statement| statement.txn).max().unwrap_or(0)
}

/// Returns the bytes of every file in a store's directory, whatever its name. A store that is
/// refused must keep all of them.
pub(crate) fn all_files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for folder in ["", "wal/"] {
        let Ok(entries) = fs::read_dir(dir.join(folder)) else { continue };
        for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
            found.insert(format!("{folder}{}", entry.file_name().to_string_lossy()), fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// Returns a path for the next copy.
pub(crate) fn numbered(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("copy-{number}"))
}

/// Removes a store's directory. Retries, because a thread of the logger may be creating a file in
/// it.
pub fn remove_all(path: impl AsRef<std::path::Path>) {
    while std::fs::remove_dir_all(&path).is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Returns the size and the time of the last change of every file and directory in a store's
/// directory. The size of a directory is 0.
pub(crate) fn stamps(dir: &Path) -> BTreeMap<String, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    let mut add = |name: String, path: &Path| {
        let stat = fs::metadata(path).unwrap();
        let len = if stat.is_dir() { 0 } else { stat.len() };
        found.insert(name, (len, stat.modified().unwrap()));
    };
    for folder in ["", "wal/"] {
        let path = dir.join(folder);
        let Ok(entries) = fs::read_dir(&path) else { continue };
        add(format!("{folder}."), &path);
        for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
            add(format!("{folder}{}", entry.file_name().to_string_lossy()), &entry.path());
        }
    }
    found
}
