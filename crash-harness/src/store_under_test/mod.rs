//! Any store under test, not only untorn: the interface that it must implement, and runs that use
//! only this interface.
//!
//! | module | its one job |
//! |---|---|
//! | [`work`] | the processes that use a store through the interface |
//! | [`judge`] | the checks of a store, according to its own promises |
//! | [`kills`], [`cuts`], [`faults`], [`errors`] | killed processes, power cuts, failing syncs, any failing call |
//! | [`untorn`] | untorn as one store among others |
//!
//! A store is added by implementing [`StoreUnderTest`] and [`Store`]. For example, this store
//! writes a new file and renames it for each batch:
//!
//! ```
//! use crash_harness::store_under_test::{About, Change, Entries, Promise, Result, Store, StoreUnderTest};
//! use std::collections::BTreeMap;
//! use std::fs::{self, File};
//! use std::io::Write;
//! use std::path::{Path, PathBuf};
//!
//! struct OneFile;
//!
//! impl StoreUnderTest for OneFile {
//!     fn about(&self) -> About {
//!         About {
//!             name: "one-file",
//!             version: "1".into(),
//!             settings: "written anew, synced, renamed, directory synced".into(),
//!             after_kill: Promise::Batch,
//!             after_cut: Promise::Batch,
//!             many_processes: false,
//!             control_of: &[],
//!         }
//!     }
//!
//!     fn open(&self, path: &Path) -> Result<Box<dyn Store>> {
//!         fs::create_dir_all(path)?;
//!         let mut entries = BTreeMap::new();
//!         if let Ok(text) = fs::read_to_string(path.join("data")) {
//!             for line in text.lines() {
//!                 let (key, value) = line.split_once(' ').ok_or("a line without a value")?;
//!                 entries.insert(from_hex(key)?, from_hex(value)?);
//!             }
//!         }
//!         Ok(Box::new(Open { dir: path.into(), entries }))
//!     }
//! }
//!
//! struct Open {
//!     dir: PathBuf,
//!     entries: BTreeMap<Vec<u8>, Vec<u8>>,
//! }
//!
//! impl Store for Open {
//!     fn batch(&mut self, changes: &[Change]) -> Result<()> {
//!         for change in changes {
//!             match &change.value {
//!                 Some(value) => drop(self.entries.insert(change.key.clone(), value.clone())),
//!                 None => drop(self.entries.remove(&change.key)),
//!             }
//!         }
//!         let mut new = File::create(self.dir.join("new"))?;
//!         for (key, value) in &self.entries {
//!             writeln!(new, "{} {}", to_hex(key), to_hex(value))?;
//!         }
//!         new.sync_all()?;
//!         fs::rename(self.dir.join("new"), self.dir.join("data"))?;
//!         Ok(File::open(&self.dir)?.sync_all()?)
//!     }
//!
//!     fn sync(&mut self) -> Result<()> {
//!         Ok(())
//!     }
//!
//!     fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
//!         Ok(self.entries.get(key).cloned())
//!     }
//!
//!     fn snapshot(&self) -> Result<Entries> {
//!         Ok(self.entries.clone())
//!     }
//! }
//! # fn to_hex(bytes: &[u8]) -> String {
//! #     bytes.iter().map(|byte| format!("{byte:02x}")).collect()
//! # }
//! # fn from_hex(text: &str) -> Result<Vec<u8>> {
//! #     (0..text.len() / 2).map(|i| Ok(u8::from_str_radix(&text[2 * i..2 * i + 2], 16)?)).collect()
//! # }
//! # let dir = tempfile::tempdir().unwrap();
//! # let mut store = OneFile.open(dir.path()).unwrap();
//! # store.put(b"k", b"v").unwrap();
//! # drop(store);
//! # assert_eq!(OneFile.open(dir.path()).unwrap().get(b"k").unwrap().unwrap(), b"v");
//! ```

pub mod cuts;
pub mod errors;
pub mod faults;
pub mod judge;
pub mod kills;
pub mod untorn;
pub mod work;

use crate::outcome::{Finding, Kind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// All entries of a store, in the order of the keys.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// An error of a store, as text.
#[derive(Debug)]
pub struct Failure(pub String);

/// What the calls of a store return.
pub type Result<T> = std::result::Result<T, Failure>;

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(error.to_string())
    }
}

impl Failure {
    /// Converts the failure of a call that must not fail into a finding.
    pub fn finding(self, doing: &str) -> Finding {
        Finding::new(Kind::Misbehaved, format!("{doing}: {}", self.0))
    }
}

/// The point from which a store promises to keep a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// From the return of [`Store::batch`] on.
    Batch,
    /// From the return of the next [`Store::sync`] on. Before that, only the order is kept.
    Sync,
}

impl std::fmt::Display for Promise {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Promise::Batch => "each commit",
            Promise::Sync => "synced commits",
        })
    }
}

/// The description of a store for reports and checks. The checks expect only what the store's
/// documentation promises.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// The name of the store's row, for the command line.
    pub name: &'static str,
    /// The store's version.
    pub version: String,
    /// The relevant settings.
    pub settings: String,
    /// What survives the death of its processes.
    pub after_kill: Promise,
    /// What survives a power cut.
    pub after_cut: Promise,
    /// Whether several processes may open it and write to it.
    pub many_processes: bool,
    /// Runs in which these settings are known to break the promises (controls). A violation there
    /// is expected and not reported; its absence is reported.
    pub control_of: &'static [&'static str],
}

/// A change to one key.
#[derive(Clone, Debug)]
pub struct Change {
    /// The key.
    pub key: Vec<u8>,
    /// Its new value; `None` removes the key.
    pub value: Option<Vec<u8>>,
}

/// A kind of store with its settings.
pub trait StoreUnderTest: Sync {
    /// Returns its description and promises.
    fn about(&self) -> About;

    /// Opens the store in the directory `path`, and creates one if there is none. The directory
    /// itself may be missing.
    ///
    /// # Errors
    /// Those of the store.
    fn open(&self, path: &Path) -> Result<Box<dyn Store>>;

    /// Returns prefixes of the names of files that have no meaning after a power cut. Most stores
    /// have none.
    fn files_of_one_boot(&self) -> &'static [&'static str] {
        &[]
    }

    /// Ends the processes that a store started by itself, after its other processes were killed.
    fn end(&self, _path: &Path) {}
}

/// A store that is open in this process.
pub trait Store {
    /// Makes all these changes atomically.
    ///
    /// # Errors
    /// Those of the store.
    fn batch(&mut self, changes: &[Change]) -> Result<()>;

    /// Makes all earlier batches durable.
    ///
    /// # Errors
    /// Those of the store.
    fn sync(&mut self) -> Result<()>;

    /// Returns the value of a key.
    ///
    /// # Errors
    /// Those of the store.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Returns all entries, from one state of the store.
    ///
    /// # Errors
    /// Those of the store.
    fn snapshot(&self) -> Result<Entries>;

    /// Sets one key.
    ///
    /// # Errors
    /// Those of the store.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.batch(&[Change { key: key.to_vec(), value: Some(value.to_vec()) }])
    }

    /// Runs the store's own check of its files, if it has one.
    ///
    /// # Errors
    /// The problems that it found.
    fn verify(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Returns the store under test with this name.
pub fn find<'a>(tested_stores: &[&'a dyn StoreUnderTest], name: &str) -> Option<&'a dyn StoreUnderTest> {
    tested_stores.iter().copied().find(|tested| tested.about().name == name)
}
