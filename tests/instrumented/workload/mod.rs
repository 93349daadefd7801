//! What the tests with several processes share: children that run a role of this test executable,
//! and a workload whose every state shows whether it is whole.
#![allow(dead_code, unreachable_pub)]

pub(crate) mod instrumented;
pub(crate) mod worker;

use crate::common::{Complaints, HANGS, role_test};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use untorn::{ChangeKind, Durability, Error, Feed, Keyspace, Options, Snapshot, Store, TxnId};

/// A child process that runs a role; killed when dropped.
pub(crate) struct Role {
    pub(crate) child: Child,
    /// The lines that it has printed so far.
    said: Arc<Mutex<Vec<String>>>,
    /// Ends when the role has, and all its lines were read.
    reader: Option<JoinHandle<()>>,
    role: String,
    complaints: Complaints,
}

impl Role {
    /// Starts `program`, a build of this test executable, in `role` for the store at `path`.
    ///
    /// `module::name` names a role: the process runs the test `module::role`, which gets `name`.
    pub(crate) fn start(program: &Path, role: &str, path: &Path, arguments: &str, env: &[(&str, &str)]) -> Role {
        let (test, name) = role_test(role, "role");
        let mut command = Command::new(program);
        command.args(["--exact", &test, "--nocapture", "--test-threads=1"]);
        command.env("UNTORN_TEST_ROLE", name).env("UNTORN_TEST_STORE", path).env("UNTORN_TEST_ARGUMENTS", arguments);
        command.envs(env.iter().copied());
        let complaints = Complaints::of(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the role starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (lines, out) = (said.clone(), child.stdout.take().expect("piped"));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // The test harness prints lines of its own, and without a line's end before the
                // role's first.
                if let Some((_, line)) = line.split_once("~ ") {
                    lines.lock().expect("not poisoned").push(line.to_string());
                }
            }
        });
        Role { child, said, reader: Some(reader), role: role.to_string(), complaints }
    }

    pub(crate) fn own(name: &str, path: &Path, arguments: &str) -> Role {
        Role::start(&std::env::current_exe().expect("known"), name, path, arguments, &[])
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.said.lock().expect("not poisoned").clone()
    }

    /// Waits until the role has printed a line that begins with `what`.
    pub(crate) fn wait_for(&self, what: &str) -> String {
        let start = Instant::now();
        loop {
            // Before the lines are searched: if the reader has ended, they are complete.
            let has_ended = self.reader.as_ref().is_none_or(JoinHandle::is_finished);
            if let Some(line) = self.lines().into_iter().find(|line| line.starts_with(what)) {
                return line;
            }
            assert!(!has_ended, "the role ended before it said {what:?}: {:?}", self.lines().last());
            assert!(start.elapsed() < HANGS, "{what:?} not heard: {:?}", self.lines().last());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends the role a line: see [`listen`].
    pub(crate) fn tell(&mut self, line: &str) {
        let _ = writeln!(self.child.stdin.as_mut().expect("piped"), "{line}");
    }

    /// Sends the role a line, and waits for its answer: the next line that it prints.
    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> String {
        let heard = self.lines().len();
        self.tell(line);
        self.hear(heard)
    }

    /// Waits for the line that the role prints after its first `heard` ones.
    #[track_caller]
    pub(crate) fn hear(&mut self, heard: usize) -> String {
        let start = Instant::now();
        loop {
            if let Some(line) = self.lines().get(heard) {
                return line.clone();
            }
            // The reader's end is checked before the child's: once the reader has ended, the last
            // line is read.
            let is_read = self.reader.as_ref().is_none_or(JoinHandle::is_finished);
            let ended = self.child.try_wait().expect("a child of ours");
            let is_over = is_read && ended.is_some() && self.lines().len() <= heard;
            assert!(!is_over, "it ended: {ended:?}, after {:?}", self.lines().last());
            assert!(start.elapsed() < HANGS, "no answer after {:?}", self.lines().last());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn signal(&self, signal: i32) {
        instrumented::signal(self.child.id() as i32, signal);
    }

    /// Kills the process and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until the role ends by itself; whether it ended well.
    pub(crate) fn end(&mut self) -> bool {
        drop(self.child.stdin.take());
        let ended = self.child.wait().expect("a child of ours");
        self.reader.take().into_iter().for_each(|reader| reader.join().expect("it reads lines"));
        ended.success()
    }

    /// The newest number that the writer reported as durable in its cell.
    pub(crate) fn acknowledged_cell(&self) -> u64 {
        self.lines().iter().filter_map(|line| line.strip_prefix("C ")?.parse().ok()).max().unwrap_or(0)
    }

    /// The newest transaction that the writer reported as visible, and as durable.
    pub(crate) fn acknowledged(&self) -> (u64, u64) {
        let (mut visible, mut durable) = (0, 0);
        for line in self.lines() {
            if let Some((kind, number)) = line.split_once(' ') {
                let number: u64 = number.parse().unwrap_or(0);
                match kind {
                    "V" => visible = number,
                    "D" => (visible, durable) = (number.max(visible), number),
                    _ => {}
                }
            }
        }
        (visible, durable)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.kill();
        self.complaints.show_on_failure(&self.role, self.child.id());
    }
}

/// A small store, so that rings wrap, segments fill and checkpoints come soon; patient with a slow
/// disk.
pub(crate) fn small_options() -> Options {
    let mut options = Store::options();
    options.ring_size(64 << 10).segment_size(256 << 10).checkpoint_bytes(96 << 10);
    options.logger_idle(Duration::from_secs(3)).logger_timeout(Duration::from_secs(120));
    options
}

/// Opens such a store.
pub(crate) fn open_small(path: &Path) -> Store {
    small_options().open(path).unwrap()
}

/// The role that this process is to play: its name, the store, the arguments. `None` in the test
/// run itself.
pub(crate) fn my_role() -> Option<(String, PathBuf, Vec<String>)> {
    let name = std::env::var("UNTORN_TEST_ROLE").ok()?;
    // The role dies with the test, however the test ends; its loggers and forked children do not.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let path = std::env::var_os("UNTORN_TEST_STORE")?;
    let arguments = std::env::var("UNTORN_TEST_ARGUMENTS").unwrap_or_default();
    Some((name, path.into(), arguments.split_whitespace().map(str::to_string).collect()))
}

/// Waits for the test's next line; `None` when there will be nothing more.
pub(crate) fn listen() -> Option<String> {
    let mut line = String::new();
    (std::io::stdin().read_line(&mut line).unwrap() > 0).then(|| line.trim_end().to_string())
}

/// Sends a line to the test.
pub(crate) fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "~ {line}");
    let _ = out.flush();
}

/// A value that shows whether it is torn: a number, and bytes that follow from it.
pub(crate) fn sealed(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < len.max(16) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// The number of a value, which must be whole.
pub(crate) fn unsealed(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    assert_eq!(bytes, sealed(number, bytes.len()), "a torn value");
    number
}

/// Keys that each writer overwrites in turn.
pub(crate) const KEYS: u64 = 40;

/// What one writer does in its n-th transaction: a value of some size under one of its keys, a
/// removal, and the same number in two keyspaces, which no snapshot may see apart.
pub(crate) struct Writer {
    pub(crate) store: Store,
    data: Keyspace,
    marks: Keyspace,
    pub(crate) name: String,
}

impl Writer {
    pub(crate) fn open(store: Store, name: &str) -> untorn::Result<Writer> {
        let (data, marks) = (store.keyspace("data")?, store.keyspace("marks")?);
        Ok(Writer { store, data, marks, name: name.to_string() })
    }

    /// The number of the last transaction that is visible.
    pub(crate) fn last(&self) -> untorn::Result<u64> {
        Ok(self.marks.get(self.name.as_bytes())?.map_or(0, |value| unsealed(&value)))
    }

    fn key(&self, n: u64) -> Vec<u8> {
        format!("{}/{:03}", self.name, n % KEYS).into_bytes()
    }

    /// The same transaction for a message-passing client.
    pub(crate) fn batch(name: &str, n: u64) -> untorn::Batch {
        let key = |n: u64| format!("{name}/{:03}", n % KEYS).into_bytes();
        let mut batch = untorn::Batch::new();
        batch.put("data", name.as_bytes(), &sealed(n, 30)).put("data", &key(n), &sealed(n, Writer::len(n)));
        batch.delete("data", &key(n + KEYS / 2)).put("marks", name.as_bytes(), &sealed(n, 30));
        batch
    }

    fn len(n: u64) -> usize {
        match n % 23 {
            0 => 20_000,
            1..5 => 900,
            _ => 60,
        }
    }

    pub(crate) fn commit(&self, n: u64, durability: Durability) -> untorn::Result<untorn::Ticket> {
        let mut txn = self.store.begin_with(durability)?;
        txn.put(&self.data, self.name.as_bytes(), &sealed(n, 30))?;
        txn.put(&self.data, &self.key(n), &sealed(n, Writer::len(n)))?;
        txn.delete(&self.data, &self.key(n + KEYS / 2))?;
        txn.put(&self.marks, self.name.as_bytes(), &sealed(n, 30))?;
        txn.commit()
    }
}

/// Checks one snapshot: each value whole, each writer's transaction there in both keyspaces or in
/// neither, and the keys that its last transactions left. Returns the last number of each writer.
pub(crate) fn check(store: &Store, snapshot: &Snapshot) -> std::collections::BTreeMap<String, u64> {
    let (Some(data), Some(marks)) = (store.find_keyspace("data").unwrap(), store.find_keyspace("marks").unwrap())
    else {
        return Default::default();
    };
    let mut found = std::collections::BTreeMap::new();
    let Ok(range) = snapshot.range(&marks, ..) else { return found };
    for entry in range {
        let (key, value) = entry.unwrap();
        let (name, n) = (String::from_utf8(key.to_vec()).unwrap(), unsealed(value));
        let in_data = snapshot.get(&data, name.as_bytes()).unwrap().map(unsealed);
        assert_eq!(in_data, Some(n), "half a transaction of {name} at {}", snapshot.txn_id());
        let prefix = format!("{name}/");
        let mut expected = std::collections::BTreeMap::new();
        for i in n.saturating_sub(3 * KEYS) + 1..=n {
            expected.insert(i % KEYS, i);
            expected.remove(&((i + KEYS / 2) % KEYS));
        }
        let mut there = std::collections::BTreeMap::new();
        for entry in snapshot.prefix(&data, prefix.as_bytes()).unwrap() {
            let (key, value) = entry.unwrap();
            let slot: u64 = std::str::from_utf8(&key[prefix.len()..]).unwrap().parse().unwrap();
            there.insert(slot, unsealed(value));
        }
        assert_eq!(there, expected, "{name} after its transaction {n}, at {}", snapshot.txn_id());
        found.insert(name, n);
    }
    found
}

/// A cell and a counter of one writer, which follow its transactions.
pub(crate) struct CellWriter {
    cell: untorn::Cell,
    count: untorn::Counter,
}

impl CellWriter {
    pub(crate) fn open(store: &Store, name: &str) -> untorn::Result<CellWriter> {
        Ok(CellWriter {
            cell: store.cell(&format!("cell of {name}"), 400)?,
            count: store.counter(&format!("count of {name}"))?,
        })
    }

    pub(crate) fn store(&self, n: u64) -> untorn::Result<untorn::Version> {
        self.count.add(1)?;
        self.cell.store(&sealed(n, 400))
    }

    pub(crate) fn store_durable(&self, n: u64) -> untorn::Result<untorn::Version> {
        self.cell.store_durable(&sealed(n, 400))
    }
}

/// What the cell and the counter of a writer hold; the cell's value must be whole.
pub(crate) fn check_cells(store: &Store, name: &str) -> (u64, u64) {
    let Some(cell) = store.find_cell(&format!("cell of {name}")).unwrap() else { return (0, 0) };
    let mut bytes = [0; 400];
    cell.load(&mut bytes).unwrap();
    let count = store.counter(&format!("count of {name}")).unwrap();
    (if bytes == [0; 400] { 0 } else { unsealed(&bytes) }, count.get().unwrap())
}

/// Fails the test with what verification found, if anything.
pub(crate) fn assert_verified(store: &Store) {
    let report = store.verify().unwrap();
    assert!(report.is_clean(), "{:#?}", report.problems);
    check_feed(store);
}

/// The log must contain the same history as the pages, as far back as it is retained.
pub(crate) fn check_feed(store: &Store) {
    let snapshot = store.snapshot().unwrap();
    let mut changes = match store.changes(TxnId::ZERO, Feed::Visible) {
        Err(Error::Lagged { .. }) => return,
        changes => changes.unwrap(),
    };
    let mut told = std::collections::BTreeMap::new();
    while changes.resume_from() < snapshot.txn_id() {
        let change = match changes.try_next(Duration::ZERO) {
            Err(Error::Lagged { .. }) => return,
            change => change.unwrap(),
        };
        let Some(change) = change.filter(|change| !change.keyspace().starts_with("untorn.")) else { continue };
        let at = (change.keyspace().to_string(), change.key().to_vec());
        match change.kind() {
            ChangeKind::Put => drop(told.insert(at, change.into_value().unwrap())),
            ChangeKind::Delete => assert!(told.remove(&at).is_some(), "{at:?} is deleted, but was not there"),
            _ => told.retain(|(keyspace, key), _| *keyspace != at.0 || !change.affects(key)),
        }
    }
    let mut there = std::collections::BTreeMap::new();
    for name in snapshot.keyspaces().unwrap().into_iter().filter(|name| !name.starts_with("untorn.")) {
        let keyspace = snapshot.find_keyspace(&name).unwrap().unwrap();
        for entry in snapshot.range(&keyspace, ..).unwrap() {
            let (key, value) = entry.unwrap();
            there.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    assert!(told == there, "the feed tells of {} records, the pages hold {}", told.len(), there.len());
}

/// Small random numbers from a printed seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// From `UNTORN_SEED`, else from the clock; printed, so that a run can be repeated.
    pub(crate) fn new(test: &str) -> Random {
        let seed = std::env::var("UNTORN_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = seed.unwrap_or_else(clock) | 1;
        eprintln!("replay: UNTORN_SEED={seed} cargo test {test}");
        Random(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
