//! Any store under test, not only untorn: what it must be able to do, and runs that need nothing
//! more than that.
//!
//! | module | its one job |
//! |---|---|
//! | [`work`] | what the processes do with a store whose kind they don't know |
//! | [`judge`] | what must hold afterwards, by what the store itself promises |
//! | [`kills`], [`cuts`], [`faults`], [`errors`] | processes that are killed, power that goes, syncs that fail, any call that fails |
//! | [`untorn`] | untorn, in the place of one store among others |
//!
//! A store is added by implementing [`StoreUnderTest`] and [`Store`], for example a file that is
//! written anew and renamed for each batch:
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

/// All that a store holds, in the order of the keys.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a store refused or could not do, in its own words.
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
    /// As a finding, where this call must not fail.
    pub fn finding(self, doing: &str) -> Finding {
        Finding::new(Kind::Misbehaved, format!("{doing}: {}", self.0))
    }
}

/// From when on a store promises to keep what it was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// From the return of [`Store::batch`] on.
    Batch,
    /// From the return of the next [`Store::sync`] on; before that only the order is kept.
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

/// What a report says of a store, and what the checks hold it to: nothing but its own
/// documentation's word.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// The row's name, for the command line.
    pub name: &'static str,
    /// The store's version.
    pub version: String,
    /// The settings that matter.
    pub settings: String,
    /// What outlives the death of its processes.
    pub after_kill: Promise,
    /// What outlives a power cut.
    pub after_cut: Promise,
    /// Whether several processes may have it open and write to it.
    pub many_processes: bool,
    /// The runs in which these settings are known not to keep the promises: the checks must find
    /// something there, and it is no violation.
    pub control_of: &'static [&'static str],
}

/// A change to one key.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which key.
    pub key: Vec<u8>,
    /// Its new value; `None` takes it out.
    pub value: Option<Vec<u8>>,
}

/// A kind of store with its settings.
pub trait StoreUnderTest: Sync {
    /// What it is, and promises.
    fn about(&self) -> About;

    /// Opens the store in the directory `path`, and makes one if there is none. The directory
    /// itself may be missing.
    ///
    /// # Errors
    /// Those of the store.
    fn open(&self, path: &Path) -> Result<Box<dyn Store>>;

    /// Files that mean nothing after a power cut, by how their names begin; most stores have none.
    fn files_of_one_boot(&self) -> &'static [&'static str] {
        &[]
    }

    /// Ends what a store left running when its processes were killed, if it starts any by itself.
    fn end(&self, _path: &Path) {}
}

/// A store that is open in this process.
pub trait Store {
    /// Makes all these changes, or none.
    ///
    /// # Errors
    /// Those of the store.
    fn batch(&mut self, changes: &[Change]) -> Result<()>;

    /// Makes durable whatever [`Store::batch`] did before.
    ///
    /// # Errors
    /// Those of the store.
    fn sync(&mut self) -> Result<()>;

    /// The value of a key.
    ///
    /// # Errors
    /// Those of the store.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// All entries, of one and the same state.
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

    /// The store's own check of its files, where it has one.
    ///
    /// # Errors
    /// What is wrong with them.
    fn verify(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The store under test of this name.
pub fn find<'a>(tested_stores: &[&'a dyn StoreUnderTest], name: &str) -> Option<&'a dyn StoreUnderTest> {
    tested_stores.iter().copied().find(|tested| tested.about().name == name)
}
