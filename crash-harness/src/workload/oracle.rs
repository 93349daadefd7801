//! Checks that must hold of a store after any failure of the processes that used it.

use crate::outcome::{Finding, Kind};
use crate::processes::sealed::unsealed;
use crate::workload::{CELL, KEYS, misbehaved};
use std::collections::BTreeMap;
use untorn::{Durability, Keyspace, Snapshot, Store, Version};

/// Number of accounts between which amounts are moved, and the initial balance of each.
pub const ACCOUNTS: u64 = 32;
const EACH: u64 = 1000;

/// Returns the key of a writer's n-th transaction.
pub fn key(name: &str, n: u64) -> Vec<u8> {
    format!("{name}/{:03}", n % KEYS).into_bytes()
}

/// Checks one snapshot: each value is whole, each writer's transaction is in both keyspaces or in
/// neither, the keys are those that its last transactions left, and the accounts have the right
/// sum. Returns the last number of each writer.
///
/// # Errors
/// The first violation.
pub fn check(snapshot: &Snapshot) -> Result<BTreeMap<String, u64>, Finding> {
    let find = |name: &str| snapshot.find_keyspace(name).map_err(misbehaved("find_keyspace"));
    if let Some(accounts) = find("accounts")? {
        check_sum(snapshot, &accounts)?;
    }
    let mut found = BTreeMap::new();
    let (Some(data), Some(marks)) = (find("data")?, find("marks")?) else { return Ok(found) };
    for entry in snapshot.range(&marks, ..).map_err(misbehaved("range"))? {
        let (name, value) = entry.map_err(misbehaved("range"))?;
        let n = unsealed(value)?;
        let name = String::from_utf8_lossy(&name).into_owned();
        check_writer(snapshot, &data, &name, n)?;
        if let Some(extra) = find(&format!("extra {name}"))? {
            check_large(snapshot, &extra, &name, n)?;
        }
        found.insert(name, n);
    }
    Ok(found)
}

fn check_writer(snapshot: &Snapshot, data: &Keyspace, name: &str, n: u64) -> Result<(), Finding> {
    let half = |what: String| Finding::new(Kind::HalfApplied, format!("{name} at {}: {what}", snapshot.txn_id()));
    let there = snapshot.get(data, name.as_bytes()).map_err(misbehaved("get"))?;
    let there = there.map(unsealed).transpose()?;
    if there != Some(n) {
        return Err(half(format!("{n} in one keyspace, {there:?} in the other")));
    }
    let mut expected = BTreeMap::new();
    for i in n.saturating_sub(3 * KEYS) + 1..=n {
        expected.insert(key(name, i), i);
        expected.remove(&key(name, i + KEYS / 2));
    }
    let mut found = BTreeMap::new();
    for entry in snapshot.prefix(data, format!("{name}/").as_bytes()).map_err(misbehaved("prefix"))? {
        let (key, value) = entry.map_err(misbehaved("prefix"))?;
        found.insert(key.to_vec(), unsealed(value)?);
    }
    if found == expected { Ok(()) } else { Err(half(format!("after {n} its keys are {found:?}"))) }
}

/// Checks the large transactions of a writer: the last one must be whole, except for keys that the
/// next transaction has overwritten.
fn check_large(snapshot: &Snapshot, extra: &Keyspace, name: &str, n: u64) -> Result<(), Finding> {
    let mut rounds = BTreeMap::<u64, u64>::new();
    for entry in snapshot.range(extra, ..).map_err(misbehaved("range"))? {
        let (_, value) = entry.map_err(misbehaved("range"))?;
        *rounds.entry(unsealed(value)?).or_default() += 1;
    }
    let whole = match rounds.iter().collect::<Vec<_>>()[..] {
        [] => true,
        [(round, count)] => [61, 6].contains(count) && *round <= n,
        _ => false,
    };
    if whole {
        return Ok(());
    }
    let what = format!("{name} at {}: parts of its large transactions: {rounds:?}", snapshot.txn_id());
    Err(Finding::new(Kind::HalfApplied, what))
}

/// Returns the version of a writer's cell and the number of its value, 0 if nothing was stored yet.
/// Returns `None` if the cell does not exist.
fn load_cell(store: &Store, name: &str) -> Result<Option<(Version, u64)>, Finding> {
    let cell = store.find_cell(&format!("cell of {name}")).map_err(misbehaved("find_cell"))?;
    let Some(cell) = cell else { return Ok(None) };
    let mut bytes = [0; CELL];
    let version = cell.load(&mut bytes).map_err(misbehaved("load"))?;
    Ok(Some((version, if bytes == [0; CELL] { 0 } else { unsealed(&bytes)? })))
}

/// Returns the values of a writer's cell and counter.
///
/// # Errors
/// A torn read, or an error of the store.
pub fn cells_of(store: &Store, name: &str) -> Result<(u64, u64), Finding> {
    let Some((_, value)) = load_cell(store, name)? else { return Ok((0, 0)) };
    let count = store.counter(&format!("count of {name}")).map_err(misbehaved("counter"))?;
    Ok((value, count.get().map_err(misbehaved("get of a counter"))?))
}

/// Checks all cells of writers: each is whole, and its version is not older than in the previous
/// check.
///
/// # Errors
/// The first violation.
pub fn check_cell_order(store: &Store, seen: &mut BTreeMap<String, (Version, u64)>) -> Result<(), Finding> {
    let snapshot = store.snapshot().map_err(misbehaved("snapshot"))?;
    let Some(marks) = snapshot.find_keyspace("marks").map_err(misbehaved("find_keyspace"))? else { return Ok(()) };
    for entry in snapshot.range(&marks, ..).map_err(misbehaved("range"))? {
        let name = String::from_utf8_lossy(&entry.map_err(misbehaved("range"))?.0).into_owned();
        let Some(now) = load_cell(store, &name)? else { continue };
        let before = seen.insert(name.clone(), now).unwrap_or(now);
        if now.0 < before.0 || (now.0 == before.0 && now.1 != before.1) {
            let what = format!("the cell of {name}: {before:?}, then {now:?}");
            return Err(Finding::new(Kind::OrderViolation, what));
        }
    }
    Ok(())
}

/// Returns the content of a snapshot: for each keyspace a hash of its entries. It omits only the
/// samples of cells, which the logger takes at its own intervals.
///
/// # Errors
/// An error of the store.
pub fn contents(snapshot: &Snapshot) -> Result<BTreeMap<String, u64>, Finding> {
    let mut contents = BTreeMap::new();
    for name in snapshot.keyspaces().map_err(misbehaved("keyspaces"))? {
        if name == untorn::CELLS_KEYSPACE {
            continue;
        }
        let keyspace = snapshot.find_keyspace(&name).map_err(misbehaved("find_keyspace"))?;
        let Some(keyspace) = keyspace else { continue };
        let mut sum = 1;
        for entry in snapshot.range(&keyspace, ..).map_err(misbehaved("range"))? {
            let (key, value) = entry.map_err(misbehaved("range"))?;
            sum = hash(hash(sum, &key), value);
        }
        contents.insert(name, sum);
    }
    Ok(contents)
}

/// Extends a hash by some bytes.
pub fn hash(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum ^ 0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Checks that no counter is ahead after all writers are dead. A writer adds one after each commit,
/// so a counter that is ahead shows that an addition was made twice. [`kept`] checks that no
/// acknowledged addition is missing. Together they show that counters are exact, except for one
/// addition that was in progress when the writer died.
///
/// # Errors
/// A counter that is ahead.
pub fn counters_not_ahead(store: &Store) -> Result<(), Finding> {
    let found = check(&store.snapshot().map_err(misbehaved("snapshot"))?)?;
    for (name, n) in found {
        let count = cells_of(store, &name)?.1;
        if count > n {
            let what = format!("{name}: {n} transactions, and its counter is {count}");
            return Err(Finding::new(Kind::OrderViolation, what));
        }
    }
    Ok(())
}

/// Checks that `verify` finds neither damage nor a page that is lost or used twice.
///
/// # Errors
/// The problems that it found.
pub fn verified(store: &Store) -> Result<(), Finding> {
    let report = store.verify().map_err(misbehaved("verify"))?;
    if report.is_clean() { Ok(()) } else { Err(Finding::new(Kind::Damaged, format!("verify: {:?}", report.problems))) }
}

/// The acknowledgements that a writer received.
#[derive(Clone, Copy, Default, Debug)]
pub struct Acknowledged {
    /// The newest transaction that was acknowledged as visible.
    pub visible: u64,
    /// The newest transaction that was acknowledged as durable.
    pub durable: u64,
    /// The newest value of its cell that was acknowledged as durable.
    pub cell: u64,
    /// Whether the writer is a message-passing client, which has no cell.
    pub is_messenger: bool,
}

impl Acknowledged {
    /// Returns the acknowledgements that a process has printed so far.
    pub fn by(process: &crate::processes::process::Process) -> Acknowledged {
        let durable = process.newest("D ");
        let cell = process.newest("C ");
        Acknowledged { visible: process.newest("V ").max(durable), durable, cell, is_messenger: false }
    }

    /// As [`Acknowledged::by`], for a message-passing client.
    pub fn by_messenger(process: &crate::processes::process::Process) -> Acknowledged {
        Acknowledged { is_messenger: true, ..Acknowledged::by(process) }
    }
}

/// Returns the acknowledgements that the found transactions imply for later checks. The
/// transactions are durable. The cells and counters of their writers may be behind.
///
/// # Errors
/// An error of the store.
fn acknowledged_by(store: &Store, found: &BTreeMap<String, u64>) -> Result<Vec<(String, Acknowledged)>, Finding> {
    let mut all = Vec::new();
    for (name, n) in found {
        // A message-passing writer has no cell.
        let is_messenger = name.starts_with('m');
        let (cell, count) = cells_of(store, name)?;
        // If a writer died between its commit and its addition, its counter is behind.
        let visible = if is_messenger { *n } else { (*n).min(cell).min(count) };
        all.push((name.clone(), Acknowledged { visible, durable: *n, cell, is_messenger }));
    }
    Ok(all)
}

/// Checks the visible content, makes it durable with a sync, and returns it as acknowledged.
///
/// # Errors
/// Those of [`check`] and of the store.
pub fn made_durable(store: &Store) -> Result<Vec<(String, Acknowledged)>, Finding> {
    let snapshot = store.snapshot().map_err(misbehaved("snapshot"))?;
    store.sync().map_err(misbehaved("sync"))?;
    acknowledged_by(store, &check(&snapshot)?)
}

/// Checks that everything acknowledged is there. After process deaths alone, that is everything
/// acknowledged as visible. After a power cut, it is everything acknowledged as durable.
///
/// # Errors
/// The lost change, or any other violation.
pub fn kept<'t>(
    store: &Store,
    acknowledged: impl IntoIterator<Item = (&'t str, Acknowledged)>,
    after_power_cut: bool,
) -> Result<(), Finding> {
    let snapshot = store.snapshot().map_err(misbehaved("snapshot"))?;
    let found = check(&snapshot)?;
    for (name, acknowledged) in acknowledged {
        let there = found.get(name).copied().unwrap_or(0);
        let (cell, count) = cells_of(store, name)?;
        let (least, cell_least) = if after_power_cut {
            (acknowledged.durable, acknowledged.cell)
        } else {
            (acknowledged.visible, acknowledged.visible.max(acknowledged.cell))
        };
        let lost = |what: String| Err(Finding::new(Kind::LostAcked, format!("{name}: {what}")));
        if there < least {
            return lost(format!("acknowledged {acknowledged:?}, transaction {there} is there"));
        }
        if acknowledged.is_messenger {
            continue;
        }
        if cell < cell_least {
            return lost(format!("acknowledged {acknowledged:?}, its cell holds {cell}"));
        }
        if !after_power_cut && count < least {
            return lost(format!("acknowledged {acknowledged:?}, its counter is {count}"));
        }
    }
    Ok(())
}

/// Accounts whose sum is constant.
pub struct Accounts(Keyspace);

impl Accounts {
    /// Opens the accounts. The first process fills them.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(store: &Store) -> untorn::Result<Accounts> {
        let mut txn = store.begin_with(Durability::Visible)?;
        let accounts = txn.keyspace("accounts")?;
        if txn.get(&accounts, &0u64.to_be_bytes())?.is_none() {
            for account in 0..ACCOUNTS {
                txn.put(&accounts, &account.to_be_bytes(), &EACH.to_le_bytes())?;
            }
        }
        txn.commit()?;
        Ok(Accounts(accounts))
    }

    /// Moves an amount, at most the balance.
    ///
    /// # Errors
    /// Those of the store.
    pub fn transfer(&self, store: &Store, from: u64, to: u64, amount: u64) -> untorn::Result<()> {
        let mut txn = store.begin_with(Durability::Visible)?;
        let balance = |value: Option<&[u8]>| value.and_then(|v| v.try_into().ok()).map_or(0, u64::from_le_bytes);
        let there = balance(txn.get(&self.0, &from.to_be_bytes())?);
        let moved = amount.min(there);
        txn.put(&self.0, &from.to_be_bytes(), &(there - moved).to_le_bytes())?;
        let there = balance(txn.get(&self.0, &to.to_be_bytes())?);
        txn.put(&self.0, &to.to_be_bytes(), &(there + moved).to_le_bytes())?;
        txn.commit().map(drop)
    }
}

fn check_sum(snapshot: &Snapshot, accounts: &Keyspace) -> Result<(), Finding> {
    let (mut sum, mut count) = (0, 0);
    for entry in snapshot.range(accounts, ..).map_err(misbehaved("range"))? {
        let (_, value) = entry.map_err(misbehaved("range"))?;
        sum += (*value).try_into().map_or(0, u64::from_le_bytes);
        count += 1;
    }
    if (sum, count) == (ACCOUNTS * EACH, ACCOUNTS) || count == 0 {
        return Ok(());
    }
    let what = format!("the accounts at {}: {count} with {sum} in all", snapshot.txn_id());
    Err(Finding::new(Kind::HalfApplied, what))
}
