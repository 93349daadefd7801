//! fjall: one keyspace.

use super::locked_version;
use crate::dataset::Dataset;
use crate::store::{Engine, Entry, Mode, Reader, Result, Session, Store, add_first, existing, touch};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) struct Fjall;

/// Bytes of the block cache: as much as redb's by default.
const CACHE_BYTES: u64 = 1 << 30;

/// Longest wait for compactions.
const COMPACTION_TIMEOUT: Duration = Duration::from_secs(120);

impl Engine for Fjall {
    fn name(&self) -> &'static str {
        "fjall"
    }

    fn version(&self) -> String {
        locked_version("fjall")
    }

    fn has_many_writers(&self) -> bool {
        false
    }

    fn open(&self, path: &Path, mode: Mode, _data_bytes: u64) -> Result<Box<dyn Store>> {
        let database = Database::builder(path).cache_size(CACHE_BYTES).open()?;
        let data = database.keyspace("data", KeyspaceCreateOptions::default)?;
        Ok(Box::new(Open { database, data, mode }))
    }
}

struct Open {
    database: Database,
    data: Keyspace,
    mode: Mode,
}

impl Store for Open {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread { database: &self.database, data: &self.data, mode: self.mode }))
    }

    fn load_sorted(&self, dataset: &Dataset, salt: u64) -> Result<()> {
        let mut ingestion = self.data.start_ingestion()?;
        for index in 0..dataset.entries {
            let (key, value) = dataset.entry(index, salt);
            ingestion.write(key, value)?;
        }
        Ok(ingestion.finish()?)
    }

    fn sync(&self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    fn settle(&self) -> Result<()> {
        self.sync()?;
        self.data.rotate_memtable_and_wait()?;
        let begun = Instant::now();
        while self.database.active_compactions() > 0 && begun.elapsed() < COMPACTION_TIMEOUT {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

struct Thread<'s> {
    database: &'s Database,
    data: &'s Keyspace,
    mode: Mode,
}

impl Session for Thread<'_> {
    fn snapshot(&mut self, body: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        let snapshot = self.database.snapshot();
        body(&mut View { snapshot: &snapshot, data: self.data })
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.data.insert(key, value)?;
        if self.mode == Mode::Durable {
            self.database.persist(PersistMode::SyncAll)?;
        }
        Ok(())
    }

    fn batch(&mut self, entries: &[Entry]) -> Result<()> {
        let durability = (self.mode == Mode::Durable).then_some(PersistMode::SyncAll);
        let mut batch = self.database.batch().durability(durability);
        for (key, value) in entries {
            batch.insert(self.data, key.as_slice(), value.as_slice());
        }
        Ok(batch.commit()?)
    }

    fn increment(&mut self) -> Result<()> {
        Err("fjall is opened by one process at a time".into())
    }
}

struct View<'s> {
    snapshot: &'s Snapshot,
    data: &'s Keyspace,
}

impl Reader for View<'_> {
    fn get(&mut self, key: &[u8]) -> Result<u64> {
        existing(key, self.snapshot.get(self.data, key)?.map(|value| touch(&value)))
    }

    fn seek(&mut self, key: &[u8], count: u64) -> Result<(u64, u64)> {
        add_first(count, self.snapshot.range(self.data, key..).map(|entry| Ok(touch(&entry.value()?))))
    }
}
