//! The work of the processes under test. The transactions are such that a check of any state finds
//! a transaction that is there only in part. Some processes make this check while others write.
//!
//! A writer's n-th transaction leaves marks. The oracle derives n from the marks, and the required
//! content from n.

pub mod follower;
pub mod messenger;
pub mod oracle;

use crate::outcome::{Finding, Kind};
use crate::power;
use crate::processes::HANGS;
use crate::processes::role::{Role, say};
use crate::processes::sealed::{Random, sealed, unsealed};
use oracle::Accounts;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use untorn::{Cell, Counter, Durability, Error, Keyspace, Options, Store, Ticket, TxnId};

/// Keys that each writer overwrites in turn.
pub const KEYS: u64 = 40;
/// Length of a writer's cell in bytes.
pub const CELL: usize = 400;

/// Returns options with which rings wrap, segments fill and checkpoints come soon, and with a
/// timeout that suffices for slow disks.
pub fn options() -> Options {
    let mut options = Store::options();
    options.ring_size(64 << 10).segment_size(256 << 10).checkpoint_bytes(96 << 10);
    options.logger_idle(Duration::from_secs(3)).logger_timeout(Duration::from_secs(120));
    options
}

/// Opens a store with these options.
///
/// # Errors
/// A finding: no action of the harness may keep a store from being opened.
pub fn open(path: &Path) -> Result<Store, Finding> {
    open_with(&options(), path)
}

/// Opens a store with other options. If its logger is killed repeatedly, the call fails and is
/// retried.
///
/// # Errors
/// As [`open`].
pub fn open_with(options: &Options, path: &Path) -> Result<Store, Finding> {
    let start = std::time::Instant::now();
    loop {
        match options.open(path) {
            Err(Error::LoggerUnavailable { .. }) if start.elapsed() < HANGS => {}
            opened => return opened.map_err(misbehaved("opening the store")),
        }
    }
}

/// Returns the finding for an error of a call that must not fail.
pub fn misbehaved(what: &'static str) -> impl FnOnce(Error) -> Finding {
    move |error| match error {
        Error::Corrupt { .. } => Finding::new(Kind::Damaged, format!("{what}: {error}")),
        Error::LockTimeout { .. } | Error::LoggerStalled { .. } => {
            Finding::new(Kind::BlockedReader, format!("{what}: {error}"))
        }
        error => Finding::new(Kind::Misbehaved, format!("{what}: {error}")),
    }
}

/// Plays a role.
///
/// # Errors
/// The first violation.
pub fn play(role: &Role) -> Result<(), Finding> {
    if let Some(played) = crate::kill::scenarios::play(role) {
        return played;
    }
    let argument = |at: usize| role.arguments.get(at).map_or("", String::as_str);
    match role.name.as_str() {
        "writer" => write(&role.store, argument(0), argument(1).parse().unwrap_or(u64::MAX)),
        "transfer" => transfer(&role.store, argument(0)),
        "reader" => read(&role.store),
        "holder" => hold(&role.store),
        "checkpointer" => take_checkpoints(&role.store),
        "messenger" => messenger::write(&role.store, argument(0)),
        "follower" => follower::follow(&role.store, argument(0) == "durable"),
        "stepped" => crate::step::kinds::play(&role.store, argument(0)),
        "client" => crate::history::play(role),
        "opener" => open_and_close(&role.store),
        "enduring" => crate::faults::worker::play(role),
        name if name.starts_with(power::roles::PREFIX) => power::roles::play(role),
        "load" => crate::tradeoff::load::play(role),
        "count" => crate::tradeoff::loss::play_count(role),
        "limited" => crate::faults::limits::play(role),
        "damaged" => crate::faults::at_rest::play(role),
        "cut" => crate::faults::after_cut::play(role),
        other => Err(Finding::new(Kind::Misbehaved, format!("no role {other}"))),
    }
}

/// The handles of one writer.
pub struct Writer {
    store: Store,
    data: Keyspace,
    marks: Keyspace,
    extra: Keyspace,
    cell: Cell,
    count: Counter,
    name: String,
}

impl Writer {
    /// Opens everything that the writer `name` uses.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(store: Store, name: &str) -> untorn::Result<Writer> {
        Ok(Writer {
            data: store.keyspace("data")?,
            marks: store.keyspace("marks")?,
            extra: store.keyspace(&format!("extra {name}"))?,
            cell: store.cell(&format!("cell of {name}"), CELL)?,
            count: store.counter(&format!("count of {name}"))?,
            name: name.to_string(),
            store,
        })
    }

    /// Returns the number of the last visible transaction.
    ///
    /// # Errors
    /// Those of the store.
    pub fn last(&self) -> Result<u64, Finding> {
        let value = self.marks.get(self.name.as_bytes()).map_err(misbehaved("get"))?;
        Ok(value.map_or(Ok(0), |value| unsealed(&value))?)
    }

    /// Returns the number of the last visible large transaction: see [`Writer::large`].
    ///
    /// # Errors
    /// Those of the store.
    pub fn last_large(&self) -> Result<u64, Finding> {
        let value = self.extra.get(b"large").map_err(misbehaved("get"))?;
        Ok(value.map_or(Ok(0), |value| unsealed(&value))?)
    }

    /// Commits the n-th transaction: values of some sizes under keys that are overwritten in turn,
    /// a removal, and the same number in two keyspaces.
    ///
    /// # Errors
    /// Those of the store.
    pub fn commit(&self, n: u64, durability: Durability) -> untorn::Result<()> {
        self.commit_with_ticket(n, durability).map(drop)
    }

    /// As [`Writer::commit`], and returns the ticket.
    ///
    /// # Errors
    /// Those of the store.
    pub fn commit_with_ticket(&self, n: u64, durability: Durability) -> untorn::Result<Ticket> {
        let len = match n % 23 {
            0 => 20_000,
            // Values of this length are written once, and the log refers to them.
            7 | 8 => 66_000 + (n % 3) as usize * 9_000,
            1..5 => 900,
            _ => 60,
        };
        let mut txn = self.store.begin_with(durability)?;
        txn.put(&self.data, self.name.as_bytes(), &sealed(n, 30))?;
        txn.put(&self.data, &oracle::key(&self.name, n), &sealed(n, len))?;
        txn.delete(&self.data, &oracle::key(&self.name, n + KEYS / 2))?;
        txn.put(&self.marks, self.name.as_bytes(), &sealed(n, 30))?;
        let ticket = txn.commit()?;
        self.count.add(1)?;
        self.cell.store(&sealed(n, CELL))?;
        Ok(ticket)
    }

    /// Commits a transaction larger than the ring, with a part that it rolls back. Then it performs
    /// deletes that merge pages or a range delete, a rollback, and the creation and removal of a
    /// keyspace and of a cell.
    ///
    /// # Errors
    /// Those of the store.
    pub fn large(&self, round: u64) -> untorn::Result<()> {
        let mut txn = self.store.begin_with(Durability::Visible)?;
        for i in 0..60u64 {
            txn.put(&self.extra, &i.to_be_bytes(), &sealed(round, 3000))?;
        }
        // These changes outgrow the ring, so the ring contains frames of changes that are rolled
        // back.
        let savepoint = txn.savepoint();
        for i in 0..30u64 {
            txn.put(&self.extra, &i.to_be_bytes(), &sealed(round + 1, 3000))?;
        }
        txn.rollback_to(savepoint)?;
        txn.put(&self.extra, b"large", &sealed(round, 150_000))?;
        txn.commit()?;
        // Each transaction frees the extent of the previous one, to which the log still refers.
        for _ in 0..3 {
            let mut txn = self.store.begin_with(Durability::Visible)?;
            txn.put(&self.extra, b"large", &sealed(round, 150_000))?;
            txn.commit()?;
        }
        let mut txn = self.store.begin_with(Durability::Visible)?;
        if (round / 12).is_multiple_of(2) {
            txn.delete_range(&self.extra, 5u64.to_be_bytes()..60u64.to_be_bytes())?;
        } else {
            for i in 5..60u64 {
                txn.delete(&self.extra, &i.to_be_bytes())?;
            }
        }
        let passing = format!("passing {}", self.name);
        let keyspace = txn.keyspace(&passing)?;
        txn.put(&keyspace, b"k", &sealed(round, 50))?;
        txn.commit()?;
        let mut txn = self.store.begin()?;
        for i in 100..140u64 {
            txn.put(&self.extra, &i.to_be_bytes(), &sealed(round, 3000))?;
        }
        txn.rollback();
        self.store.drop_keyspace(&passing)?;
        self.store.cell(&passing, 24)?.store(&sealed(round, 24))?;
        self.store.drop_cell(&passing).map(drop)
    }
}

/// Writes until killed or for `rounds` rounds: small transactions, a large one, at times a
/// checkpoint.
fn write(path: &Path, name: &str, rounds: u64) -> Result<(), Finding> {
    let store = open(path)?;
    let writer = Writer::open(store.clone(), name).map_err(misbehaved("opening keyspaces and cells"))?;
    let mut n = writer.last()?;
    for round in 0..rounds {
        if round == MANY_SNAPSHOTS_ROUND {
            hold_many_snapshots(&store)?;
        }
        let mut before = TxnId::ZERO;
        for _ in 0..12 {
            before = store.snapshot().map_err(misbehaved("snapshot"))?.txn_id();
            n += 1;
            let durable = n.is_multiple_of(4);
            let durability = durability(durable, n / 4);
            writer.commit(n, durability).map_err(misbehaved("commit"))?;
            say(format_args!("{} {n}", if durable { "D" } else { "V" }));
            say(format_args!("S {}", writer.cell.version().map_err(misbehaved("version"))?.as_u64()));
        }
        look(&store, before)?;
        writer.cell.store_durable(&sealed(n, CELL)).map_err(misbehaved("store_durable"))?;
        say(format_args!("C {n}"));
        writer.large(n).map_err(misbehaved("a large transaction"))?;
        if round % 3 == 2 {
            store.checkpoint().map_err(misbehaved("checkpoint"))?;
        }
    }
    Ok(())
}

/// The round before which a writer holds many snapshots. Most deaths at a point happen during the
/// writer's first commits and flushes. These must be of records that the oracle checks.
const MANY_SNAPSHOTS_ROUND: u64 = 20;

/// Holds more snapshots at once than one chunk of the reader table has slots, so that a second
/// chunk is made. Each is of another transaction, since snapshots of one transaction share a slot.
fn hold_many_snapshots(store: &Store) -> Result<(), Finding> {
    // A separate keyspace: the oracle checks every record of the others.
    let keyspace = store.keyspace("held").map_err(misbehaved("opening a keyspace"))?;
    let mut held = Vec::new();
    for _ in 0..1_100 {
        let mut txn = store.begin_with(Durability::Visible).map_err(misbehaved("begin"))?;
        txn.put(&keyspace, b"held", &sealed(0, 30)).map_err(misbehaved("put"))?;
        txn.commit().map_err(misbehaved("commit"))?;
        held.push(store.snapshot().map_err(misbehaved("snapshot"))?);
    }
    Ok(())
}

/// Alternates between the two ways to acknowledge durability: immediately, or at a deadline.
pub fn durability(durable: bool, turn: u64) -> Durability {
    match durable {
        false => Durability::Visible,
        true if turn.is_multiple_of(2) => Durability::Durable,
        true => Durability::Within(Duration::from_millis(5)),
    }
}

/// Reads in the other possible ways: the durable state, and some of the changes since a
/// transaction.
fn look(store: &Store, from: TxnId) -> Result<(), Finding> {
    let durable = store.durable_snapshot().map_err(misbehaved("durable_snapshot"))?;
    oracle::check(&durable)?;
    let mut changes = match store.changes(from, untorn::Feed::Visible) {
        // A process that was stopped for a while may lag behind.
        Err(Error::Lagged { .. }) => return Ok(()),
        changes => changes.map_err(misbehaved("changes"))?,
    };
    for _ in 0..10 {
        match changes.try_next(Duration::ZERO) {
            Ok(Some(change)) if change.txn_id() > from => {}
            Ok(Some(change)) => {
                let what = format!("a feed after {from} began with {}", change.txn_id());
                return Err(Finding::new(Kind::OrderViolation, what));
            }
            Ok(None) | Err(Error::Lagged { .. }) => break,
            Err(error) => return Err(misbehaved("a feed")(error)),
        }
    }
    Ok(())
}

/// Moves amounts between accounts, whose sum is constant, until killed.
fn transfer(path: &Path, name: &str) -> Result<(), Finding> {
    let store = open(path)?;
    let accounts = Accounts::open(&store).map_err(misbehaved("opening the accounts"))?;
    let mut random = Random::new(name.bytes().fold(0, |sum, byte| sum * 31 + u64::from(byte)));
    for n in 1.. {
        let (from, to) = (random.below(oracle::ACCOUNTS), random.below(oracle::ACCOUNTS));
        let amount = random.below(50);
        accounts.transfer(&store, from, to, amount).map_err(misbehaved("transfer"))?;
        say(format_args!("T {n}"));
    }
    Ok(())
}

/// Checks snapshots until killed. Each must be whole and repeatable, and none older than the
/// previous one. Durable ones must not be newer than visible ones. Cells must be whole, and their
/// versions must not decrease.
fn read(path: &Path) -> Result<(), Finding> {
    let store = open_with(options().read_only(true), path)?;
    let mut last = BTreeMap::new();
    let mut versions = BTreeMap::new();
    loop {
        let durable = store.durable_snapshot().map_err(misbehaved("durable_snapshot"))?;
        let durable = oracle::check(&durable)?;
        let snapshot = store.snapshot().map_err(misbehaved("snapshot"))?;
        let found = oracle::check(&snapshot)?;
        oracle::check_cell_order(&store, &mut versions)?;
        if oracle::check(&snapshot)? != found {
            return Err(Finding::new(Kind::OrderViolation, "a snapshot changed"));
        }
        for (name, n) in last.iter().chain(&durable) {
            if found.get(name).is_none_or(|now| now < n) {
                return Err(Finding::new(Kind::OrderViolation, format!("{name} went back from {n}: {found:?}")));
            }
        }
        last = found;
        say("ok");
        // Leaves processor time for the writers on a small machine.
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Holds snapshots for a while, until killed, and reads their whole content again and again. The
/// content must never change, whatever is written, killed and recovered during this time.
fn hold(path: &Path) -> Result<(), Finding> {
    let store = open(path)?;
    loop {
        let snapshot = store.snapshot().map_err(misbehaved("snapshot"))?;
        let first = oracle::contents(&snapshot)?;
        for _ in 0..20 {
            say("ok");
            std::thread::sleep(Duration::from_millis(10));
            let again = oracle::contents(&snapshot)?;
            if again != first {
                let what = format!("a snapshot of {} changed: {first:?}, then {again:?}", snapshot.txn_id());
                return Err(Finding::new(Kind::OrderViolation, what));
            }
        }
    }
}

/// Takes one checkpoint after the other, until killed. A call may fail if loggers are killed
/// repeatedly during it.
fn take_checkpoints(path: &Path) -> Result<(), Finding> {
    let store = open(path)?;
    loop {
        match store.checkpoint() {
            Ok(_) | Err(Error::LoggerUnavailable { .. }) => say("ok"),
            Err(error) => return Err(misbehaved("checkpoint")(error)),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Opens the store, reads its statistics, and closes it, until killed.
fn open_and_close(path: &Path) -> Result<(), Finding> {
    loop {
        let store = open(path)?;
        store.stats().map_err(misbehaved("stats"))?;
        store.close().map_err(misbehaved("close"))?;
        say("ok");
    }
}
