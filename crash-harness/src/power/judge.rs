//! The checks of a store after a power cut, given the acknowledgements before it.

use crate::outcome::{Finding, Kind};
use crate::processes::sealed::{sealed, unsealed};
use crate::workload::oracle;
use crate::workload::{CELL, Writer, misbehaved};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use untorn::{ChangeKind, Durability, Error, Feed, Options, Snapshot, Store};

/// Number of transactions of a writer before each of its large transactions.
pub const PER_ROUND: u64 = 12;

/// The acknowledgements before the cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcknowledgedAtCut {
    /// For each writer, the last transaction and the last large transaction that were acknowledged
    /// as durable.
    durable: BTreeMap<String, u64>,
    large: BTreeMap<String, u64>,
    /// For each writer's cell, the newest value that was acknowledged as durable, and the value of
    /// each version.
    cells: BTreeMap<String, u64>,
    versions: BTreeMap<String, BTreeMap<u64, u64>>,
    /// The transactions of earlier writers that a previous recovery found. Exactly these must
    /// remain.
    found: BTreeMap<String, u64>,
    found_all: bool,
}

impl AcknowledgedAtCut {
    /// Adds a mark; see [`super::roles`].
    ///
    /// # Errors
    /// If two values have the same version.
    pub fn hear(&mut self, mark: &str) -> Result<(), Finding> {
        let mut words = mark.split(' ');
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_string());
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match kind {
            "D" => drop(self.durable.insert(name, number())),
            "L" => drop(self.large.insert(name, number())),
            "C" => drop(self.cells.insert(name, number())),
            "S" => {
                let (n, version) = (number(), number());
                let before = self.versions.entry(name.clone()).or_default().insert(version, n);
                if before.is_some_and(|before| before != n) {
                    let what = format!("version {version} of {name} identifies two values");
                    return Err(Finding::new(Kind::OrderViolation, what));
                }
            }
            "F" => drop(self.found.insert(name, number())),
            "F." => self.found_all = true,
            _ => {}
        }
        Ok(())
    }

    /// Discards the result of an earlier life's recovery, because another recovery follows.
    pub fn next_life(mut self) -> AcknowledgedAtCut {
        self.found.clear();
        self.found_all = false;
        self
    }

    /// Returns whether nothing was acknowledged yet.
    fn is_nothing(&self) -> bool {
        self.durable.is_empty() && self.cells.is_empty()
    }
}

/// Plays the role of a new process that recovers a store and checks it. The arguments are the path
/// of the acknowledgements, and whether there is a store.
///
/// # Errors
/// The first violation.
pub fn play(path: &Path, acknowledged: &str, has_store: &str) -> Result<(), Finding> {
    let acknowledged = std::fs::read(acknowledged).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let acknowledged: AcknowledgedAtCut =
        acknowledged.ok_or_else(|| Finding::new(Kind::Misbehaved, "the acknowledgements can't be read"))?;
    examine(path, has_store == "true", &acknowledged)
}

/// Returns options under which a thread of this process recovers the store, so that no other
/// process remains.
fn in_process() -> Options {
    let mut options = Store::options();
    options.logger_thread(true).logger_idle(Duration::from_millis(1)).create(false);
    options
}

/// Recovers the store at `path` and checks everything that must hold.
///
/// # Errors
/// The first violation.
pub fn examine(path: &Path, has_store: bool, acknowledged: &AcknowledgedAtCut) -> Result<(), Finding> {
    if !has_store && !acknowledged.is_nothing() {
        return Err(Finding::new(Kind::LostAcked, "the store is gone"));
    }
    // If the cut came before the store existed, nothing was acknowledged, and a store can be
    // created.
    let store = in_process().create(!has_store).open(path).map_err(misbehaved("recovering the store"))?;
    let snapshot = store.snapshot().map_err(misbehaved("snapshot"))?;
    let found = oracle::check(&snapshot)?;
    let lost = |what: String| Err(Finding::new(Kind::LostAcked, what));
    for (name, n) in &acknowledged.durable {
        let there = found.get(name).copied().unwrap_or(0);
        if there < *n {
            return lost(format!("{name}: {n} was acknowledged as durable, {there} is there"));
        }
    }
    for (name, n) in &found {
        check_large(&snapshot, name, *n, acknowledged.large.get(name).copied().unwrap_or(0))?;
    }
    for (name, least) in &acknowledged.cells {
        let (n, _) = oracle::cells_of(&store, name)?;
        if n < *least {
            return lost(format!("{name}: {least} was durable in its cell, {n} is there"));
        }
    }
    for name in found.keys() {
        check_versions(&store, name, acknowledged)?;
    }
    if acknowledged.found_all {
        // The writers of the first life write no more.
        let first = |found: &BTreeMap<String, u64>| {
            found.clone().into_iter().filter(|(name, _)| name.starts_with('w')).collect::<BTreeMap<_, _>>()
        };
        if first(&found) != first(&acknowledged.found) {
            let what = format!("a recovery found {:?}, the next one {:?}", first(&acknowledged.found), first(&found));
            return Err(Finding::new(Kind::OrderViolation, what));
        }
    }
    let mut problems = store.verify().map_err(misbehaved("verify"))?.problems;
    // A torn older header is reported until the next checkpoint overwrites it.
    problems.retain(|problem| problem.file != "checkpoint");
    if !problems.is_empty() {
        return Err(Finding::new(Kind::Damaged, format!("verify: {problems:?}")));
    }
    check_history(&store)?;
    check_progress(&store)
}

/// Checks the order of large transactions. The last large transaction must be the one that precedes
/// the n-th transaction, and no acknowledged one may be missing.
fn check_large(snapshot: &Snapshot, name: &str, n: u64, acknowledged: u64) -> Result<(), Finding> {
    // Only some writers have large transactions.
    let extra = snapshot.find_keyspace(&format!("extra {name}")).map_err(misbehaved("find_keyspace"))?;
    let large = match extra {
        Some(extra) => match snapshot.get(&extra, b"large").map_err(misbehaved("get"))? {
            Some(value) => unsealed(value)?,
            None => 0,
        },
        None if name.starts_with('m') => return Ok(()),
        None => 0,
    };
    if large < acknowledged {
        let what = format!("{name}: its large transaction {acknowledged} was durable, {large} is there");
        return Err(Finding::new(Kind::LostAcked, what));
    }
    if (large..=large + PER_ROUND).contains(&n) {
        return Ok(());
    }
    Err(Finding::new(Kind::OrderViolation, format!("{name}: the large transaction {large} beside {n}")))
}

/// Checks that a version identifies one value, even if it was returned before the cut, and is never
/// assigned again.
fn check_versions(store: &Store, name: &str, acknowledged: &AcknowledgedAtCut) -> Result<(), Finding> {
    let Some(versions) = acknowledged.versions.get(name) else { return Ok(()) };
    let cell = store.find_cell(&format!("cell of {name}")).map_err(misbehaved("find_cell"))?;
    let Some(cell) = cell else { return Ok(()) };
    let version = cell.version().map_err(misbehaved("version"))?.as_u64();
    let (n, _) = oracle::cells_of(store, name)?;
    let of_version = versions.get(&version).copied().unwrap_or(n);
    let wrong = |what: String| Err(Finding::new(Kind::OrderViolation, format!("{name}: {what}")));
    if n != of_version {
        return wrong(format!("version {version} had the value {of_version}, and has {n}"));
    }
    let next = cell.store(&sealed(n, CELL)).map_err(misbehaved("store"))?.as_u64();
    if versions.contains_key(&next) {
        return wrong(format!("version {next} was assigned again"));
    }
    Ok(())
}

/// All records by keyspace and key. Samples of cells are left out, because they are committed at
/// any time.
type Records = BTreeMap<(String, Vec<u8>), Vec<u8>>;

fn is_ordinary(keyspace: &str) -> bool {
    !keyspace.starts_with("untorn.")
}

/// Checks that the log contains the same history as the pages, if the log is retained from the
/// beginning.
fn check_history(store: &Store) -> Result<(), Finding> {
    let until = store.durable_snapshot().map_err(misbehaved("durable_snapshot"))?.txn_id();
    let mut changes = match store.changes(untorn::TxnId::ZERO, Feed::Durable) {
        Err(Error::Lagged { .. }) => return Ok(()),
        changes => changes.map_err(misbehaved("changes"))?,
    };
    let mut acknowledged = Records::new();
    while changes.resume_from() < until {
        let change = match changes.try_next(Duration::ZERO) {
            Err(Error::Lagged { .. }) => return Ok(()),
            change => change.map_err(misbehaved("a feed"))?,
        };
        let Some(change) = change.filter(|change| is_ordinary(change.keyspace())) else { continue };
        let at = (change.keyspace().to_string(), change.key().to_vec());
        if change.kind() == ChangeKind::DeleteRange {
            acknowledged.retain(|(name, key), _| *name != at.0 || !change.affects(key));
            continue;
        }
        match (change.kind(), change.into_value()) {
            (ChangeKind::Put, Some(value)) => drop(acknowledged.insert(at, value)),
            (ChangeKind::Delete, None) if acknowledged.remove(&at).is_some() => {}
            (ChangeKind::DropKeyspace, None) => acknowledged.retain(|(name, _), _| *name != at.0),
            (kind, _) => {
                let what = format!("the feed delivers {kind:?} of {at:?}, which was not there");
                return Err(Finding::new(Kind::OrderViolation, what));
            }
        }
    }
    let mut there = Records::new();
    let snapshot = store.snapshot().map_err(misbehaved("snapshot"))?;
    let names = snapshot.keyspaces().map_err(misbehaved("keyspaces"))?;
    for name in names.into_iter().filter(|name| is_ordinary(name)) {
        let keyspace = snapshot.find_keyspace(&name).map_err(misbehaved("find_keyspace"))?;
        let Some(keyspace) = keyspace else {
            return Err(Finding::new(Kind::HalfApplied, format!("the keyspace {name} is listed but not there")));
        };
        for entry in snapshot.range(&keyspace, ..).map_err(misbehaved("range"))? {
            let (key, value) = entry.map_err(misbehaved("range"))?;
            there.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    if acknowledged == there {
        return Ok(());
    }
    let what = format!("the feed delivers {} records, the pages hold {}", acknowledged.len(), there.len());
    Err(Finding::new(Kind::OrderViolation, what))
}

/// Checks that a new writer can work.
fn check_progress(store: &Store) -> Result<(), Finding> {
    let writer = Writer::open(store.clone(), "later").map_err(misbehaved("opening keyspaces and cells"))?;
    for n in writer.last()? + 1..writer.last()? + 4 {
        writer.commit(n, Durability::Durable).map_err(misbehaved("commit"))?;
    }
    let last = writer.last()?;
    let durable = store.durable_snapshot().map_err(misbehaved("durable_snapshot"))?;
    let found = oracle::check(&durable)?;
    if found.get("later") == Some(&last) {
        return Ok(());
    }
    Err(Finding::new(Kind::LostAcked, format!("afterwards: {last} is durable, {:?} is there", found.get("later"))))
}
