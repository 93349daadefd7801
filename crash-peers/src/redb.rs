//! redb as a store under test.

use crash_harness::processes::HANGS;
use crash_harness::store_under_test::{About, Change, Entries, Failure, Promise, Result, Store, StoreUnderTest};
use redb::{
    Builder, ConcurrencyMode, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition,
    TableError,
};
use std::path::Path;
use std::time::{Duration, Instant};

const DATA: TableDefinition<&[u8], &[u8]> = TableDefinition::new("data");

/// redb with these settings.
pub(crate) struct Redb {
    name: &'static str,
    mode: ConcurrencyMode,
    durability: Durability,
}

/// The defaults: one process, and each commit is synced.
pub(crate) const EXCLUSIVE: Redb =
    Redb { name: "redb", mode: ConcurrencyMode::ExclusiveWriter, durability: Durability::Immediate };

/// Several processes write to the store.
pub(crate) const MULTI_WRITER: Redb =
    Redb { name: "redb-multi-writer", mode: ConcurrencyMode::MultiWriter, durability: Durability::Immediate };

/// A commit survives only if a later synced commit follows, even if only the process dies.
pub(crate) const NONE: Redb =
    Redb { name: "redb-none", mode: ConcurrencyMode::ExclusiveWriter, durability: Durability::None };

impl StoreUnderTest for Redb {
    fn about(&self) -> About {
        let is_immediate = matches!(self.durability, Durability::Immediate);
        let promise = if is_immediate { Promise::Batch } else { Promise::Sync };
        About {
            name: self.name,
            version: crate::stores::locked_version("redb"),
            settings: format!("Durability::{:?}, {:?}", self.durability, self.mode),
            after_kill: promise,
            after_cut: promise,
            many_processes: self.mode == ConcurrencyMode::MultiWriter,
            control_of: &[],
        }
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Store>> {
        std::fs::create_dir_all(path)?;
        let mut builder = Builder::new();
        builder.set_concurrency_mode(self.mode).set_cache_size(16 << 20);
        let begun = Instant::now();
        let database = loop {
            match builder.create(path.join("data.redb")) {
                // The kernel releases the lock of a killed process a moment after its end.
                Err(DatabaseError::DatabaseAlreadyOpen) if begun.elapsed() < HANGS => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => break opened?,
            }
        };
        Ok(Box::new(Open { database, durability: self.durability }))
    }
}

struct Open {
    database: Database,
    durability: Durability,
}

impl Open {
    fn commit(&self, changes: &[Change], durability: Durability) -> Result<()> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(durability)?;
        {
            let mut data = txn.open_table(DATA)?;
            for change in changes {
                match &change.value {
                    Some(value) => drop(data.insert(change.key.as_slice(), value.as_slice())?),
                    None => drop(data.remove(change.key.as_slice())?),
                }
            }
        }
        Ok(txn.commit()?)
    }
}

impl Store for Open {
    fn batch(&mut self, changes: &[Change]) -> Result<()> {
        self.commit(changes, self.durability)
    }

    fn sync(&mut self) -> Result<()> {
        self.commit(&[], Durability::Immediate)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.database.begin_read()?.open_table(DATA) {
            Ok(data) => Ok(data.get(key)?.map(|value| value.value().to_vec())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn snapshot(&self) -> Result<Entries> {
        let mut entries = Entries::new();
        let data = match self.database.begin_read()?.open_table(DATA) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(entries),
            opened => opened?,
        };
        for entry in data.iter()? {
            let (key, value) = entry?;
            entries.insert(key.value().to_vec(), value.value().to_vec());
        }
        Ok(entries)
    }

    fn verify(&mut self) -> Result<()> {
        match self.database.check_integrity()? {
            true => Ok(()),
            false => Err(Failure("check_integrity repaired something".into())),
        }
    }
}
