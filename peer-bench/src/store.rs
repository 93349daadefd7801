//! The traits by which the workloads use every store: an engine opens a store, a store opens one
//! session for each thread, a session reads snapshots and writes.
//!
//! The traits add one or two virtual calls to an operation, the same ones for every store.

use crate::dataset::Dataset;
use std::path::Path;

/// Any failure of a store, a worker or the machine.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The result of most functions of this program.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A key and a value.
pub(crate) type Entry = (Vec<u8>, Vec<u8>);

/// The guarantee of a commit when it returns. `docs/performance.md` lists the settings that each
/// store needs for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// An fsync has covered the commit.
    Durable,
    /// The commit does not wait for an fsync; a power cut may lose the commit.
    Visible,
}

/// One row of the table: a library with one choice of settings.
pub(crate) trait Engine: Sync {
    /// Name on the command line and in the results.
    fn name(&self) -> &'static str;

    /// Version of the library.
    fn version(&self) -> String;

    /// Whether several processes may write at once.
    fn has_many_writers(&self) -> bool {
        true
    }

    /// Whether commits without an fsync are possible.
    fn has_visible_commits(&self) -> bool {
        true
    }

    /// Opens the store in the directory `path`, which exists. `data_bytes` bounds the keys and
    /// values that the store will hold; engines with a map of fixed size reserve a multiple of it.
    fn open(&self, path: &Path, mode: Mode, data_bytes: u64) -> Result<Box<dyn Store>>;

    /// Ends the helper processes that outlive the last close of the store, and waits for their end.
    fn after_close(&self, _path: &Path) -> Result<()> {
        Ok(())
    }

    /// Kills the helper processes that outlive the processes of the store.
    fn kill_helpers(&self, _path: &Path) -> Result<()> {
        Ok(())
    }
}

/// An open store.
pub(crate) trait Store: Send + Sync {
    /// Creates the state of one thread.
    fn session(&self) -> Result<Box<dyn Session + '_>>;

    /// Loads entries 0 to `dataset.entries` in ascending order into the empty store, by the
    /// fastest documented way.
    fn load_sorted(&self, dataset: &Dataset, salt: u64) -> Result<()> {
        let mut session = self.session()?;
        let mut entries = Vec::new();
        for begin in (0..dataset.entries).step_by(LOAD_BATCH as usize) {
            entries.clear();
            entries.extend((begin..dataset.entries.min(begin + LOAD_BATCH)).map(|index| dataset.entry(index, salt)));
            session.batch(&entries)?;
        }
        Ok(())
    }

    /// Makes all commits durable.
    fn sync(&self) -> Result<()>;

    /// Syncs, takes a checkpoint where the store has one, and waits for work in the background.
    fn settle(&self) -> Result<()> {
        self.sync()
    }
}

/// Entries in a transaction of a sorted load.
pub(crate) const LOAD_BATCH: u64 = 10_000;

/// The operations of one thread on a store.
pub(crate) trait Session: Send {
    /// Takes a snapshot (begins a read transaction) and passes a reader of it to `body`.
    fn snapshot(&mut self, body: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()>;

    /// Writes one entry in a transaction of its own.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()>;

    /// Writes all entries in one transaction.
    fn batch(&mut self, entries: &[Entry]) -> Result<()>;

    /// Adds one to the number at [`COUNTER_KEY`], atomically among all processes.
    fn increment(&mut self) -> Result<()>;
}

/// Where [`Session::increment`] counts, in eight little-endian bytes, in stores without counters.
pub(crate) const COUNTER_KEY: &[u8] = b"counter";

/// Returns the number that the bytes of a counter hold.
pub(crate) fn counter_value(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// Reads one snapshot. Every method touches each cache line of the values that it reads, and
/// returns their sum, so that no read is optimized away.
pub(crate) trait Reader {
    /// Looks up a key, which must exist.
    fn get(&mut self, key: &[u8]) -> Result<u64>;

    /// Reads up to `count` entries in order, from the first key that is not less than `key`.
    /// Returns the number of entries and the sum.
    fn seek(&mut self, key: &[u8], count: u64) -> Result<(u64, u64)>;
}

/// Reads one byte of each cache line.
#[inline]
pub(crate) fn touch(bytes: &[u8]) -> u64 {
    let sum: u64 = bytes.iter().step_by(64).map(|byte| u64::from(*byte)).sum();
    sum + bytes.last().map_or(0, |byte| u64::from(*byte))
}

/// Returns what [`Reader::get`] found under a key.
#[inline]
pub(crate) fn existing(key: &[u8], touched: Option<u64>) -> Result<u64> {
    touched.ok_or_else(|| missing(key))
}

/// Adds up the first `count` results of [`touch`], as [`Reader::seek`] does.
#[inline]
pub(crate) fn add_first(count: u64, touched: impl Iterator<Item = Result<u64>>) -> Result<(u64, u64)> {
    let (mut read, mut sum) = (0, 0);
    for value in touched.take(usize::try_from(count)?) {
        sum += value?;
        read += 1;
    }
    Ok((read, sum))
}

/// The error for a key that should exist.
#[cold]
fn missing(key: &[u8]) -> Error {
    format!("key {} is missing", key.escape_ascii()).into()
}
