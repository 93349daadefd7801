//! The names of keyspaces by their numbers. A number is never used for another keyspace.
//!
//! The newest catalog has the existing keyspaces. The name of one that was dropped since is in the
//! operation that dropped it, further on in the log.

use crate::api::feed::reader::{LogReader, ReadLimit};
use crate::files::dir;
use crate::process::client::DirectClient;
use crate::txn::catalog;
use crate::txn::ops::{Op, Ops};
use crate::{Error, KeyspaceId, Result};
use std::collections::HashMap;
use std::sync::Arc;
use untorn_wal::Lsn;

/// The names that a follower has looked up.
#[derive(Default)]
pub(crate) struct KeyspaceNames {
    known: HashMap<KeyspaceId, Arc<str>>,
}

impl KeyspaceNames {
    pub(crate) fn learn(&mut self, id: KeyspaceId, name: &str) {
        if self.known.get(&id).is_none_or(|known| **known != *name) {
            self.known.insert(id, name.into());
        }
    }

    /// Forgets a keyspace that has no further changes. A follower may outlive many keyspaces.
    pub(crate) fn forget(&mut self, id: KeyspaceId) {
        self.known.remove(&id);
    }

    /// Returns a name that was looked up before.
    pub(crate) fn get(&self, id: KeyspaceId) -> Option<&Arc<str>> {
        self.known.get(&id)
    }

    /// Returns the name of a keyspace. A record at `from` or later, but not beyond the newest
    /// transaction, refers to it.
    pub(crate) fn find(&mut self, client: &Arc<DirectClient>, id: KeyspaceId, from: Lsn) -> Result<&Arc<str>> {
        if !self.known.contains_key(&id) {
            self.look_up(client, id, from)?;
        }
        Ok(&self.known[&id])
    }

    fn look_up(&mut self, client: &Arc<DirectClient>, id: KeyspaceId, from: Lsn) -> Result<()> {
        let (pin, image) = client.pin_image()?;
        if let Some(entry) = catalog::entry(&pin.pages(client), &image.catalog, id)? {
            self.learn(id, &entry.name);
            return Ok(());
        }
        drop(pin);
        let mut reader = LogReader::new(from);
        let bound = ReadLimit { txn: image.txn, lsn: image.log_tail };
        while let Some(record) = reader.peek(&client.engine, bound)? {
            for op in Ops::new(reader.payload(&record)) {
                // A drop by a transaction that rolled back also gives the name: the keyspace
                // existed.
                if let Ok(Op::DropKeyspace { keyspace, name }) = op {
                    self.learn(keyspace, name);
                }
            }
            reader.skip(&record);
            if self.known.contains_key(&id) {
                return Ok(());
            }
        }
        let what = format!("the log changes keyspace {}, which is neither there nor was dropped", id.0);
        Err(Error::corrupt(dir::WAL, from.0, what))
    }
}
