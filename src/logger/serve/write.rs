//! Writes by message: one transaction each, begun when the whole request is there, and answered when it is as durable as
//! was asked for.
//!
//! Nothing is waited for without looking now and then whether the logger is to leave. The writer lock is let go at the
//! swing, so that commits of many connections share one fsync.

use super::LOCK_PATIENCE;
use super::answer::{Session, cut_name, refuse_unless};
use super::policy::Rights;
use crate::{Error, Keyspace, Result, Ticket, TxnId, WriteTxn};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use untorn_wal::wire::{Durability, Operation, Reply};

/// Between two looks whether the logger is to leave.
pub(super) const SLICE: Duration = Duration::from_millis(100);
/// How long an answer waits for the flush, beyond the time that the write itself allows.
const FLUSH_PATIENCE: Duration = Duration::from_secs(30);

impl Session<'_> {
    pub(super) fn put(
        &self,
        rights: &Rights<'_>,
        name: &str,
        key: &[u8],
        value: &[u8],
        durability: Durability,
    ) -> Result<TxnId> {
        refuse_unless(rights.may_write(name), "writing", "keyspace", name)?;
        let mut txn = self.begin()?;
        let keyspace = txn.keyspace(name)?;
        txn.put(&keyspace, key, value)?;
        self.finish(txn, durability)
    }

    /// The transaction, and whether the key was there.
    pub(super) fn delete(
        &self,
        rights: &Rights<'_>,
        name: &str,
        key: &[u8],
        durability: Durability,
    ) -> Result<(TxnId, bool)> {
        refuse_unless(rights.may_write(name), "writing", "keyspace", name)?;
        let mut txn = self.begin()?;
        // Under the writer lock, what is visible is what the transaction began from.
        let keyspace = self.store.find_keyspace(name)?.ok_or_else(|| Error::NoKeyspace { name: cut_name(name) })?;
        let was_there = txn.delete(&keyspace, key)?;
        Ok((self.finish(txn, durability)?, was_there))
    }

    pub(super) fn commit(
        &self,
        rights: &Rights<'_>,
        operations: &[Operation<'_>],
        durability: Durability,
    ) -> Result<Reply<'static>> {
        for operation in operations {
            match operation {
                Operation::ExpectVersion { keyspace, .. } | Operation::ExpectAbsent { keyspace, .. } => {
                    refuse_unless(rights.may_read(keyspace), "reading", "keyspace", keyspace)?;
                }
                Operation::Put { keyspace, .. } | Operation::Delete { keyspace, .. } => {
                    refuse_unless(rights.may_write(keyspace), "writing", "keyspace", keyspace)?;
                }
            }
        }
        let mut txn = self.begin()?;
        let mut keyspaces = Keyspaces { session: self, found: HashMap::new() };
        for (index, operation) in operations.iter().enumerate() {
            let (keyspace, key, expected) = match operation {
                Operation::ExpectVersion { keyspace, key, version } => (keyspace, key, Some(*version)),
                Operation::ExpectAbsent { keyspace, key } => (keyspace, key, None),
                Operation::Put { .. } | Operation::Delete { .. } => continue,
            };
            let current = match keyspaces.find(keyspace)? {
                Some(keyspace) => txn.get_versioned(keyspace, key)?.map(|(_, version)| version.as_u64()),
                None => None,
            };
            if current != expected {
                return Ok(Reply::Unmet { index: index as u32, current });
            }
        }
        for operation in operations {
            match operation {
                Operation::Put { keyspace, key, value } => {
                    let keyspace = keyspaces.find_or_create(keyspace, &mut txn)?;
                    txn.put(keyspace, key, value)?;
                }
                Operation::Delete { keyspace: name, key } => {
                    let found = keyspaces.find(name)?;
                    let keyspace = found.ok_or_else(|| Error::NoKeyspace { name: cut_name(name) })?;
                    txn.delete(keyspace, key)?;
                }
                Operation::ExpectVersion { .. } | Operation::ExpectAbsent { .. } => {}
            }
        }
        Ok(Reply::Committed { txn: self.finish(txn, durability)?.as_u64() })
    }

    fn begin(&self) -> Result<WriteTxn<'_>> {
        let start = Instant::now();
        loop {
            match self.store.try_begin(SLICE) {
                Err(Error::LockTimeout { holder, .. }) => {
                    let waited = start.elapsed();
                    if waited >= LOCK_PATIENCE || self.shared.is_closing() {
                        return Err(Error::LockTimeout { waited, holder });
                    }
                }
                other => return other,
            }
        }
    }

    /// Commits, and waits as long as the durability asked for takes.
    fn finish(&self, txn: WriteTxn<'_>, durability: Durability) -> Result<TxnId> {
        let (durability, patience) = match durability {
            Durability::Visible => (crate::Durability::Visible, None),
            Durability::Durable => (crate::Durability::Durable, Some(FLUSH_PATIENCE)),
            Durability::Within { micros } => {
                let time = Duration::from_micros(micros);
                (crate::Durability::Within(time), Some(FLUSH_PATIENCE.saturating_add(time)))
            }
        };
        let ticket = txn.make_visible(durability, || {})?;
        if let Some(patience) = patience.filter(|_| !planted_bug!("message-answered-before-sync")) {
            self.wait(&ticket, patience)?;
            ticket.count_acknowledged();
        }
        Ok(ticket.txn_id())
    }

    fn wait(&self, ticket: &Ticket, patience: Duration) -> Result<()> {
        let start = Instant::now();
        while !ticket.wait_timeout(SLICE)? {
            if self.shared.is_closing() {
                let reason = "the logger is leaving, and did not wait for the flush".into();
                return Err(Error::NotDurable { txn: ticket.txn_id(), reason });
            }
            if start.elapsed() >= patience {
                return Err(Error::LoggerStalled { waited: start.elapsed(), visible: Some(ticket.txn_id()) });
            }
        }
        Ok(())
    }
}

/// The keyspaces that a batch names.
struct Keyspaces<'s, 'n> {
    session: &'s Session<'s>,
    found: HashMap<&'n str, Keyspace>,
}

impl<'n> Keyspaces<'_, 'n> {
    fn find(&mut self, name: &'n str) -> Result<Option<&Keyspace>> {
        if !self.found.contains_key(name) {
            let Some(keyspace) = self.session.store.find_keyspace(name)? else { return Ok(None) };
            self.found.insert(name, keyspace);
        }
        Ok(self.found.get(name))
    }

    fn find_or_create(&mut self, name: &'n str, txn: &mut WriteTxn<'_>) -> Result<&Keyspace> {
        if !self.found.contains_key(name) {
            self.found.insert(name, txn.keyspace(name)?);
        }
        Ok(&self.found[name])
    }
}
