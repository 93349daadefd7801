//! LMDB, through the crate `heed`.

use super::locked_version;
use crate::dataset::Dataset;
use crate::store::{
    COUNTER_KEY, Engine, Entry, LOAD_BATCH, Mode, Reader, Result, Session, Store, add_first, counter_value, existing,
    touch,
};
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, WithoutTls};
use std::ops::Bound;
use std::path::Path;

/// LMDB with these flags.
pub(crate) struct Lmdb {
    name: &'static str,
    flags: EnvFlags,
}

/// Pages are written by write calls.
pub(crate) const DEFAULT: Lmdb = Lmdb { name: "lmdb", flags: EnvFlags::empty() };

/// Pages are written through the mapping.
pub(crate) const WRITE_MAP: Lmdb = Lmdb { name: "lmdb-writemap", flags: EnvFlags::WRITE_MAP };

impl Engine for Lmdb {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> String {
        let lmdb = heed::lmdb_version();
        format!("{}.{}.{} (heed {})", lmdb.major, lmdb.minor, lmdb.patch, locked_version("heed"))
    }

    fn open(&self, path: &Path, mode: Mode, data_bytes: u64) -> Result<Box<dyn Store>> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        let map_bytes = (data_bytes * 8).max(4 << 30).next_multiple_of(1 << 20);
        options.map_size(usize::try_from(map_bytes)?).max_readers(512);
        let mut flags = self.flags;
        if mode == Mode::Visible {
            flags |= EnvFlags::NO_SYNC;
        }
        // SAFETY: only LMDB accesses its files while it has them open, and no process opens them
        // twice at a time. Without syncs, the files may be damaged by a power cut; they are removed
        // after the run.
        #[allow(unsafe_code)]
        let env = unsafe { options.flags(flags).open(path)? };
        // A killed reader prevents the reuse of pages until its slot is cleared.
        env.clear_stale_readers()?;
        let txn = env.read_txn()?;
        let found = env.open_database(&txn, None)?;
        drop(txn);
        let data = match found {
            Some(data) => data,
            None => {
                let mut txn = env.write_txn()?;
                let data = env.create_database(&mut txn, None)?;
                txn.commit()?;
                data
            }
        };
        Ok(Box::new(Open { env, data }))
    }
}

struct Open {
    env: Env<WithoutTls>,
    data: Database<Bytes, Bytes>,
}

impl Store for Open {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Thread { env: &self.env, data: self.data }))
    }

    fn load_sorted(&self, dataset: &Dataset, salt: u64) -> Result<()> {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for begin in (0..dataset.entries).step_by(LOAD_BATCH as usize) {
            let mut txn = self.env.write_txn()?;
            for index in begin..dataset.entries.min(begin + LOAD_BATCH) {
                dataset.key_into(index, &mut key);
                dataset.value_into(index, salt, &mut value);
                self.data.put_with_flags(&mut txn, PutFlags::APPEND, &key, &value)?;
            }
            txn.commit()?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }
}

struct Thread<'s> {
    env: &'s Env<WithoutTls>,
    data: Database<Bytes, Bytes>,
}

impl Session for Thread<'_> {
    fn snapshot(&mut self, body: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        let txn = self.env.read_txn()?;
        body(&mut View { txn: &txn, data: self.data })
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        self.data.put(&mut txn, key, value)?;
        Ok(txn.commit()?)
    }

    fn batch(&mut self, entries: &[Entry]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        for (key, value) in entries {
            self.data.put(&mut txn, key, value)?;
        }
        Ok(txn.commit()?)
    }

    fn increment(&mut self) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        let number = self.data.get(&txn, COUNTER_KEY)?.map_or(0, counter_value);
        self.data.put(&mut txn, COUNTER_KEY, &(number + 1).to_le_bytes())?;
        Ok(txn.commit()?)
    }
}

struct View<'t> {
    txn: &'t RoTxn<'t, WithoutTls>,
    data: Database<Bytes, Bytes>,
}

impl Reader for View<'_> {
    fn get(&mut self, key: &[u8]) -> Result<u64> {
        existing(key, self.data.get(self.txn, key)?.map(touch))
    }

    fn seek(&mut self, key: &[u8], count: u64) -> Result<(u64, u64)> {
        let range = (Bound::Included(key), Bound::Unbounded);
        add_first(count, self.data.range(self.txn, &range)?.map(|entry| Ok(touch(entry?.1))))
    }
}
