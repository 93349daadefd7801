//! fjall as a store under test: one keyspace, each batch persisted with an fsync.

use crash_harness::processes::HANGS;
use crash_harness::store_under_test::{About, Change, Entries, Promise, Result, Store, StoreUnderTest};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use std::path::Path;
use std::time::{Duration, Instant};

/// fjall.
pub(crate) struct Fjall;

/// Bytes in memory after which fjall writes a table; the default is 64 MiB. With a small value even
/// a short run writes many tables.
const MEMTABLE_BYTES: u64 = 256 << 10;

impl StoreUnderTest for Fjall {
    fn about(&self) -> About {
        About {
            name: "fjall",
            version: crate::stores::locked_version("fjall"),
            settings: format!("PersistMode::SyncAll, max_memtable_size={MEMTABLE_BYTES}"),
            after_kill: Promise::Batch,
            after_cut: Promise::Batch,
            many_processes: false,
            control_of: &[],
        }
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Store>> {
        let begun = Instant::now();
        let database = loop {
            match Database::builder(path).worker_threads(1).open() {
                // The kernel releases the lock of a killed process a moment after its end.
                Err(fjall::Error::Locked) if begun.elapsed() < HANGS => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => break opened?,
            }
        };
        let data = database.keyspace("data", || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES))?;
        Ok(Box::new(Open { database, data }))
    }
}

struct Open {
    database: Database,
    data: Keyspace,
}

impl Store for Open {
    fn batch(&mut self, changes: &[Change]) -> Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for change in changes {
            match &change.value {
                Some(value) => batch.insert(&self.data, change.key.as_slice(), value.as_slice()),
                None => batch.remove(&self.data, change.key.as_slice()),
            }
        }
        Ok(batch.commit()?)
    }

    fn sync(&mut self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.data.get(key)?.map(|value| value.to_vec()))
    }

    fn snapshot(&self) -> Result<Entries> {
        let mut entries = Entries::new();
        for entry in self.database.snapshot().iter(&self.data) {
            let (key, value) = entry.into_inner()?;
            entries.insert(key.to_vec(), value.to_vec());
        }
        Ok(entries)
    }
}
