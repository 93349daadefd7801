//! untorn as a store under test. The same runs test it and other stores, so the rows of a table are
//! comparable.

use super::{About, Change, Entries, Failure, Promise, Result, StoreUnderTest};
use crate::processes::loggers;
use crate::workload;
use std::path::Path;
use std::time::Duration;
use untorn::{Durability, Keyspace};

/// untorn, with commits that either all wait until they are durable, or do not wait.
pub struct Untorn {
    /// Whether commits wait until they are durable.
    pub durable: bool,
}

impl StoreUnderTest for Untorn {
    fn about(&self) -> About {
        About {
            name: if self.durable { "untorn" } else { "untorn-visible" },
            version: env!("CARGO_PKG_VERSION").into(),
            settings: if self.durable { "Durability::Durable" } else { "Durability::Visible, now and then sync()" }
                .into(),
            after_kill: Promise::Batch,
            after_cut: if self.durable { Promise::Batch } else { Promise::Sync },
            many_processes: true,
            control_of: &[],
        }
    }

    fn open(&self, path: &Path) -> Result<Box<dyn super::Store>> {
        let mut options = workload::options();
        options.any_file_system(true).max_size(16 << 20).logger_idle(Duration::from_secs(1));
        let store = options.open(path)?;
        let data = store.keyspace("data")?;
        let durability = if self.durable { Durability::Durable } else { Durability::Visible };
        Ok(Box::new(Open { data, store, durability }))
    }

    fn files_of_one_boot(&self) -> &'static [&'static str] {
        &["control", "logger.sock"]
    }

    fn end(&self, path: &Path) {
        loggers::kill_loggers(path);
    }
}

struct Open {
    data: Keyspace,
    store: untorn::Store,
    durability: Durability,
}

impl super::Store for Open {
    fn batch(&mut self, changes: &[Change]) -> Result<()> {
        let mut txn = self.store.begin_with(self.durability)?;
        for change in changes {
            match &change.value {
                Some(value) => drop(txn.put(&self.data, &change.key, value)?),
                None => drop(txn.delete(&self.data, &change.key)?),
            }
        }
        txn.commit()?;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        Ok(self.store.sync()?)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.data.get(key)?.map(|value| value.to_vec()))
    }

    fn snapshot(&self) -> Result<Entries> {
        let snapshot = self.store.snapshot()?;
        let mut entries = Entries::new();
        for entry in snapshot.range(&self.data, ..)? {
            let (key, value) = entry?;
            entries.insert(key.to_vec(), value.to_vec());
        }
        Ok(entries)
    }

    fn verify(&mut self) -> Result<()> {
        let mut problems = self.store.verify()?.problems;
        // A torn older header is reported until the next checkpoint overwrites it. The store uses
        // the newer one.
        problems.retain(|problem| problem.file != "checkpoint");
        if problems.is_empty() { Ok(()) } else { Err(Failure(format!("{problems:?}"))) }
    }
}
