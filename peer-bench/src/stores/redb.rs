//! redb.

use super::locked_version;
use crate::store::{
    COUNTER_KEY, Engine, Entry, Mode, Reader, Result, Session, Store, add_first, counter_value, existing, touch,
};
use redb::{
    Builder, ConcurrencyMode, Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition,
};
use std::path::Path;

const DATA: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("data");

/// redb in this mode.
pub(crate) struct Redb {
    name: &'static str,
    mode: ConcurrencyMode,
}

/// The default: one process.
pub(crate) const EXCLUSIVE: Redb = Redb { name: "redb", mode: ConcurrencyMode::ExclusiveWriter };

/// Several processes write. Commits are always durable in this mode.
pub(crate) const MULTI_WRITER: Redb = Redb { name: "redb-multi-writer", mode: ConcurrencyMode::MultiWriter };

impl Engine for Redb {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> String {
        locked_version("redb")
    }

    fn has_many_writers(&self) -> bool {
        self.mode == ConcurrencyMode::MultiWriter
    }

    fn has_visible_commits(&self) -> bool {
        self.mode != ConcurrencyMode::MultiWriter
    }

    fn open(&self, path: &Path, mode: Mode, _data_bytes: u64) -> Result<Box<dyn Store>> {
        let database = Builder::new().set_concurrency_mode(self.mode).create(path.join("data.redb"))?;
        let is_durable = mode == Mode::Durable || !self.has_visible_commits();
        let durability = if is_durable { Durability::Immediate } else { Durability::None };
        Ok(Box::new(Open { database, durability }))
    }
}

struct Open {
    database: Database,
    durability: Durability,
}

impl Store for Open {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread { database: &self.database, durability: self.durability }))
    }

    fn sync(&self) -> Result<()> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        Ok(txn.commit()?)
    }
}

struct Thread<'s> {
    database: &'s Database,
    durability: Durability,
}

impl Session for Thread<'_> {
    fn snapshot(&mut self, body: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        let table = self.database.begin_read()?.open_table(DATA)?;
        body(&mut View { table })
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(self.durability)?;
        txn.open_table(DATA)?.insert(key, value)?;
        Ok(txn.commit()?)
    }

    fn batch(&mut self, entries: &[Entry]) -> Result<()> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(self.durability)?;
        {
            let mut table = txn.open_table(DATA)?;
            for (key, value) in entries {
                table.insert(key.as_slice(), value.as_slice())?;
            }
        }
        Ok(txn.commit()?)
    }

    fn increment(&mut self) -> Result<()> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(self.durability)?;
        {
            let mut table = txn.open_table(DATA)?;
            let number = table.get(COUNTER_KEY)?.map_or(0, |value| counter_value(value.value()));
            table.insert(COUNTER_KEY, (number + 1).to_le_bytes().as_slice())?;
        }
        Ok(txn.commit()?)
    }
}

struct View {
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Reader for View {
    fn get(&mut self, key: &[u8]) -> Result<u64> {
        existing(key, self.table.get(key)?.map(|value| touch(value.value())))
    }

    fn seek(&mut self, key: &[u8], count: u64) -> Result<(u64, u64)> {
        add_first(count, self.table.range(key..)?.map(|entry| Ok(touch(entry?.1.value()))))
    }
}
