//! The operations of a batch, applied to a write transaction: the same for direct clients and for
//! the server.

use crate::{Error, Keyspace, Result, Store, TxnId, WriteTxn};
use std::collections::HashMap;
use std::ops::Bound;
use untorn_wal::wire::{Edge, Operation};

/// A condition of a batch that was not met.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unmet {
    /// The index of the operation, counted from 0.
    pub(crate) index: usize,
    /// The key's version; `None` if it is absent.
    pub(crate) current: Option<TxnId>,
}

/// Checks all conditions of a batch, then makes its changes. The conditions refer to the state
/// before the batch. If one is not met, nothing changes.
///
/// # Errors
/// [`Error::NoKeyspace`] for a deletion in a keyspace that does not exist; those of the changes.
pub(crate) fn apply(store: &Store, txn: &mut WriteTxn<'_>, operations: &[Operation<'_>]) -> Result<Option<Unmet>> {
    let mut keyspaces = Keyspaces { store, found: HashMap::new() };
    for (index, operation) in operations.iter().enumerate() {
        let (keyspace, key, expected) = match operation {
            Operation::ExpectVersion { keyspace, key, version } => (keyspace, key, Some(TxnId::from_u64(*version))),
            Operation::ExpectAbsent { keyspace, key } => (keyspace, key, None),
            Operation::Put { .. } | Operation::Delete { .. } | Operation::DeleteRange { .. } => continue,
        };
        let current = match keyspaces.find(keyspace)? {
            Some(keyspace) => txn.get_versioned(keyspace, key)?.map(|(_, version)| version),
            None => None,
        };
        if current != expected {
            return Ok(Some(Unmet { index, current }));
        }
    }
    for operation in operations {
        match operation {
            Operation::Put { keyspace, key, value } => {
                let keyspace = keyspaces.find_or_create(keyspace, txn)?;
                txn.put(keyspace, key, value)?;
            }
            Operation::Delete { keyspace: name, key } => {
                let found = keyspaces.find(name)?;
                let keyspace = found.ok_or_else(|| Error::NoKeyspace { name: (*name).into() })?;
                txn.delete(keyspace, key)?;
            }
            Operation::DeleteRange { keyspace: name, lower, upper } => {
                let found = keyspaces.find(name)?;
                let keyspace = found.ok_or_else(|| Error::NoKeyspace { name: (*name).into() })?;
                txn.delete_range(keyspace, (bound(*lower), bound(*upper)))?;
            }
            Operation::ExpectVersion { .. } | Operation::ExpectAbsent { .. } => {}
        }
    }
    Ok(None)
}

/// Converts an edge of the protocol to a bound.
pub(crate) fn bound(edge: Edge<'_>) -> Bound<&[u8]> {
    match edge {
        Edge::Open => Bound::Unbounded,
        Edge::With(key) => Bound::Included(key),
        Edge::Without(key) => Bound::Excluded(key),
    }
}

/// The keyspaces that a batch names, by name.
struct Keyspaces<'s, 'n> {
    store: &'s Store,
    found: HashMap<&'n str, Keyspace>,
}

impl<'n> Keyspaces<'_, 'n> {
    /// Under the writer lock, the visible state is the one from which the transaction began.
    fn find(&mut self, name: &'n str) -> Result<Option<&Keyspace>> {
        if !self.found.contains_key(name) {
            let Some(keyspace) = self.store.find_keyspace(name)? else { return Ok(None) };
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
