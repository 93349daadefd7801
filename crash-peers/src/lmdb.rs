//! LMDB as a store under test, through the crate `heed`.

use crash_harness::store_under_test::{About, Change, Entries, Promise, Result, Store, StoreUnderTest};
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, WithoutTls};
use std::path::Path;

/// LMDB with these flags.
pub(crate) struct Lmdb {
    name: &'static str,
    flags: EnvFlags,
    control_of: &'static [&'static str],
}

/// Pages are written by write calls, then synced, then the meta page is written through a
/// descriptor with `O_DSYNC`.
pub(crate) const DEFAULT: Lmdb = Lmdb { name: "lmdb", flags: EnvFlags::empty(), control_of: &[] };

/// Pages are written through the mapping.
pub(crate) const WRITE_MAP: Lmdb = Lmdb { name: "lmdb-writemap", flags: EnvFlags::WRITE_MAP, control_of: &[] };

/// Nothing is synced. According to its documentation, LMDB may then lose and damage data in a power
/// cut: a control of the checks.
pub(crate) const NO_SYNC: Lmdb = Lmdb { name: "lmdb-nosync", flags: EnvFlags::NO_SYNC, control_of: &["cuts"] };

impl StoreUnderTest for Lmdb {
    fn about(&self) -> About {
        let lmdb = heed::lmdb_version();
        About {
            name: self.name,
            version: format!(
                "{}.{}.{} (heed {})",
                lmdb.major,
                lmdb.minor,
                lmdb.patch,
                crate::stores::locked_version("heed")
            ),
            settings: if self.flags.is_empty() {
                "default flags".into()
            } else {
                self.flags.iter_names().map(|(name, _)| format!("MDB_{}", name.replace('_', ""))).collect::<String>()
            },
            after_kill: Promise::Batch,
            after_cut: Promise::Batch,
            many_processes: true,
            control_of: self.control_of,
        }
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Store>> {
        std::fs::create_dir_all(path)?;
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(64 << 20).max_readers(126);
        // SAFETY: only LMDB accesses its files while it has them open, and no process opens them
        // twice. The control omits syncs. A missing sync has an effect only after a power cut, in
        // copies of the files.
        #[allow(unsafe_code)]
        let env = unsafe { options.flags(self.flags).open(path)? };
        // LMDB's documentation recommends this after opening: a killed reader prevents the reuse of
        // pages until its slot is cleared.
        env.clear_stale_readers()?;
        let mut txn = env.write_txn()?;
        let data = env.create_database(&mut txn, None)?;
        txn.commit()?;
        Ok(Box::new(Open { env, data }))
    }
}

struct Open {
    env: Env<WithoutTls>,
    data: Database<Bytes, Bytes>,
}

impl Store for Open {
    fn batch(&mut self, changes: &[Change]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        for change in changes {
            match &change.value {
                Some(value) => self.data.put(&mut txn, &change.key, value)?,
                None => drop(self.data.delete(&mut txn, &change.key)?),
            }
        }
        Ok(txn.commit()?)
    }

    fn sync(&mut self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let txn = self.env.read_txn()?;
        Ok(self.data.get(&txn, key)?.map(<[u8]>::to_vec))
    }

    fn snapshot(&self) -> Result<Entries> {
        let txn = self.env.read_txn()?;
        let mut entries = Entries::new();
        for entry in self.data.iter(&txn)? {
            let (key, value) = entry?;
            entries.insert(key.to_vec(), value.to_vec());
        }
        Ok(entries)
    }
}
