//! The kinds of updates that are stepped through, and a digest of a store's content.

use super::trace::stand_still;
use crate::outcome::Finding;
use crate::processes::instrumented;
use crate::processes::process::start_role;
use crate::processes::role::say;
use crate::processes::sealed::sealed;
use crate::workload::oracle;
use crate::workload::{self, misbehaved};
use std::collections::BTreeMap;
use std::path::Path;
use untorn::{Durability, Keyspace, Store};

/// All kinds.
pub const KINDS: &[&str] = &[
    "counter addition",
    "cell store",
    "cell store after a dead writer",
    "small put",
    "put that overwrites",
    "put that splits",
    "delete that merges",
    "several keys",
    "large value",
    "keyspace creation",
    "keyspace drop",
    "cell creation",
    "cell drop",
    "lock take-over",
];

/// Entries of the keyspace in which pages split and merge: a page and a half.
const ENTRIES: u64 = 30;

fn value(n: u64) -> Vec<u8> {
    sealed(n, 100)
}

/// The content of a store: a hash of each keyspace and of each cell.
pub type Digest = BTreeMap<String, u64>;

/// Reads the whole content.
///
/// # Errors
/// An error of the store.
pub fn digest(store: &Store) -> Result<Digest, Finding> {
    let mut digest = oracle::contents(&store.snapshot().map_err(misbehaved("snapshot"))?)?;
    for cell in store.cells().map_err(misbehaved("cells"))? {
        let sum = match store.find_cell(&cell.name).map_err(misbehaved("find_cell"))? {
            Some(found) => {
                let mut bytes = vec![0; found.size()];
                found.load(&mut bytes).map_err(misbehaved("load"))?;
                oracle::hash(2, &bytes)
            }
            None => store.counter(&cell.name).and_then(|c| c.get()).map_err(misbehaved("counter"))?,
        };
        digest.insert(format!("cell {}", cell.name), sum);
    }
    Ok(digest)
}

struct Open {
    store: Store,
    keys: Keyspace,
}

fn open(path: &Path) -> Result<Open, Finding> {
    let mut options = workload::options();
    let store = options.durability(Durability::Visible).open(path).map_err(misbehaved("opening"))?;
    let keys = store.keyspace("keys").map_err(misbehaved("keyspace"))?;
    Ok(Open { store, keys })
}

/// Makes the store that an update of this kind starts from.
///
/// # Errors
/// Those of the store.
pub fn prepare(path: &Path, kind: &str) -> Result<(), Finding> {
    let Open { store, keys } = open(path)?;
    let made = (|| {
        let mut txn = store.begin()?;
        for i in 0..ENTRIES {
            txn.put(&keys, &(i * 2).to_be_bytes(), &value(i))?;
        }
        txn.commit()?;
        store.cell("cell", 64)?.store(&sealed(1, 64))?;
        store.counter("counter")?.add(1)?;
        store.keyspace("passing")?.put(b"k", &value(1))?;
        store.cell("passing", 64)?;
        store.checkpoint()?;
        store.sync()
    })();
    made.map_err(misbehaved("preparing"))?;
    let dead = match kind {
        "lock take-over" => "dead holder",
        "cell store after a dead writer" => "dead storer",
        _ => return Ok(()),
    };
    let mut process = start_role(&instrumented::own(), "stepped", path, &[dead], &[]);
    process.wait();
    Ok(())
}

/// Plays the stepped process: it prepares, stops, performs the update, and stops.
///
/// # Errors
/// Those of the store.
pub fn play(path: &Path, kind: &str) -> Result<(), Finding> {
    if kind == "logger" {
        return super::logger::host(path);
    }
    if kind == "recovery" {
        return super::recovery::play(path);
    }
    if let Some(operation) = kind.strip_prefix("between ") {
        return super::between::play(path, operation);
    }
    let Open { store, keys } = open(path)?;
    let cell = store.cell("cell", 64).map_err(misbehaved("cell"))?;
    let counter = store.counter("counter").map_err(misbehaved("counter"))?;
    if let Some(how) = kind.strip_prefix("dead ") {
        return die(&store, how);
    }
    // Completes the one-time setup of a first call.
    let warm = store.begin().map_err(misbehaved("begin"))?;
    drop(warm);
    stand_still(true)?;
    let done: untorn::Result<()> = (|| {
        match kind {
            "counter addition" => counter.add(5)?,
            "cell store" | "cell store after a dead writer" => drop(cell.store(&sealed(2, 64))?),
            "small put" | "lock take-over" => drop(keys.put(b"small", &value(7))?),
            "put that overwrites" => drop(keys.put(&4u64.to_be_bytes(), &value(8))?),
            "put that splits" => {
                let mut txn = store.begin()?;
                for i in 0..ENTRIES / 2 {
                    txn.put(&keys, &(i * 2 + 1).to_be_bytes(), &value(i))?;
                }
                txn.commit()?;
            }
            "delete that merges" => {
                let mut txn = store.begin()?;
                for i in 0..ENTRIES - 4 {
                    txn.delete(&keys, &(i * 2).to_be_bytes())?;
                }
                txn.commit()?;
            }
            "several keys" => {
                let mut txn = store.begin()?;
                txn.put(&keys, b"a", &value(1))?;
                txn.delete(&keys, &0u64.to_be_bytes())?;
                txn.put(&keys, b"z", &value(2))?;
                txn.commit()?;
            }
            "large value" => drop(keys.put(b"large", &sealed(3, 20_000))?),
            "keyspace creation" => drop(store.keyspace("new")?),
            "keyspace drop" => drop(store.drop_keyspace("passing")?),
            "cell creation" => drop(store.cell("new", 64)?),
            "cell drop" => drop(store.drop_cell("passing")?),
            other => panic!("no kind {other}"),
        }
        Ok(())
    })();
    stand_still(false)?;
    done.map_err(misbehaved("the update"))
}

/// Dies while it holds the writer lock, or a cell's latch with half a value written.
fn die(store: &Store, how: &str) -> Result<(), Finding> {
    if how == "holder" {
        let mut txn = store.begin().map_err(misbehaved("begin"))?;
        let keys = txn.keyspace("keys").map_err(misbehaved("keyspace"))?;
        txn.put(&keys, b"never", &value(9)).map_err(misbehaved("put"))?;
        say("ok");
        std::process::abort();
    }
    // Kills the process at some instant while it stores values. Any instruction of a store will do.
    let cell = store.cell("cell", 64).map_err(misbehaved("cell"))?;
    let pid = rustix::process::getpid();
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(3));
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    });
    loop {
        cell.store(&sealed(1, 64)).map_err(misbehaved("store"))?;
    }
}

/// Writes as the next writer does after a death; [`undo_write_on`] reverts it.
///
/// # Errors
/// Those of the store.
pub fn write_on(store: &Store) -> Result<(), Finding> {
    let wrote = (|| {
        store.keyspace("next")?.put(b"k", &value(1))?;
        let cell = store.cell("cell", 64)?;
        let mut bytes = [0; 64];
        cell.load(&mut bytes)?;
        cell.store(&bytes)?;
        store.counter("counter")?.add(0)
    })();
    wrote.map_err(misbehaved("writing on"))
}

/// Reverts [`write_on`].
///
/// # Errors
/// Those of the store.
pub fn undo_write_on(store: &Store) -> Result<(), Finding> {
    store.drop_keyspace("next").map(drop).map_err(misbehaved("drop_keyspace"))
}
