//! What a direct client and a message-passing client have in common, as two traits: reading and
//! writing a store.
//!
//! A program that uses the traits works on a [`Store`] as well as on a [`Client`]; the command line
//! `untorn` is one. They name keyspaces by strings and return copies, as the socket does. They
//! exclude what only a direct client can do: snapshots, transactions, references into the store.

use crate::api::batch;
use crate::api::cells;
use crate::shared::cells::CellKind;
use crate::{
    Batch, Change, Changes, Client, CommitOutcome, Durability, Error, Feed, Keyspace, RemoteChanges, Result, Stats,
    Store, TxnId, Version,
};
use std::ops::Bound;
use std::time::Duration;

/// The records of a range, in the requested order: keys and values.
pub type Records<'s> = Box<dyn Iterator<Item = Result<(Vec<u8>, Vec<u8>)>> + 's>;

/// The two bounds of a range of keys.
pub type KeyBounds<'k> = (Bound<&'k [u8]>, Bound<&'k [u8]>);

/// Reading a store, direct or by message.
///
/// ```
/// # fn main() -> untorn::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("data");
/// use untorn::{Batch, Client, Durability, Store, StoreRead, StoreWrite};
///
/// fn rename(store: &dyn StoreWrite, old: &str, new: &str) -> untorn::Result<()> {
///     let Some(value) = store.get("users", old.as_bytes())? else { return Ok(()) };
///     let mut batch = Batch::new();
///     batch.delete("users", old).put("users", new, value);
///     let _ = store.commit(&batch, Durability::Durable)?;
///     Ok(())
/// }
///
/// let store = Store::open(&path)?;
/// let client = Client::connect(path.join("logger.sock"))?;
/// StoreWrite::put(&store, "users", b"ann", b"1")?;
/// rename(&client, "ann", "bob")?;
/// rename(&store, "bob", "cyd")?;
/// let found = StoreRead::prefix(&store, "users", b"")?.collect::<untorn::Result<Vec<_>>>()?;
/// assert_eq!(found, [(b"cyd".to_vec(), b"1".to_vec())]);
/// # drop((client, store));
/// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(10))?;
/// # Ok(())
/// # }
/// ```
pub trait StoreRead {
    /// Returns the visible value of a key and its version: the transaction that wrote it.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`]; those of [`Keyspace::get`] or [`Client::get`].
    fn get_versioned(&self, keyspace: &str, key: &[u8]) -> Result<Option<(Vec<u8>, TxnId)>>;

    /// Returns the visible value of a key.
    ///
    /// # Errors
    /// Those of [`StoreRead::get_versioned`].
    fn get(&self, keyspace: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.get_versioned(keyspace, key)?.map(|(value, _)| value))
    }

    /// Returns the visible values of several keys, all as of one transaction.
    ///
    /// # Errors
    /// Those of [`StoreRead::get_versioned`].
    fn multi_get(&self, keyspace: &str, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>>;

    /// Returns the visible records of a range, in key order, as of one transaction.
    ///
    /// # Errors
    /// Those of [`StoreRead::get_versioned`].
    fn scan(&self, keyspace: &str, bounds: KeyBounds<'_>) -> Result<Records<'_>>;

    /// Returns the records of [`StoreRead::scan`] in reverse key order.
    ///
    /// # Errors
    /// Those of [`StoreRead::get_versioned`].
    fn scan_back(&self, keyspace: &str, bounds: KeyBounds<'_>) -> Result<Records<'_>>;

    /// Returns the visible records whose keys begin with `prefix`; see [`StoreRead::scan`].
    ///
    /// # Errors
    /// Those of [`StoreRead::get_versioned`].
    fn prefix(&self, keyspace: &str, prefix: &[u8]) -> Result<Records<'_>> {
        let end = crate::prefix::prefix_end(prefix);
        self.scan(keyspace, crate::prefix::prefix_bounds(prefix, end.as_deref()))
    }

    /// Returns the names of the keyspaces that the caller may read, in the order in which they were
    /// created.
    ///
    /// # Errors
    /// Those of [`Store::keyspaces`] and [`Client::keyspaces`].
    fn keyspaces(&self) -> Result<Vec<String>>;

    /// Returns the newest value of a cell and its version.
    ///
    /// # Errors
    /// [`Error::NoCell`]; those of [`Cell::load`](crate::Cell::load) and [`Client::cell_load`].
    fn cell_load(&self, name: &str) -> Result<(Vec<u8>, Version)>;

    /// Returns the value of a counter; 0 if there is none.
    ///
    /// # Errors
    /// [`Error::NoCell`] if it is a cell.
    fn counter_get(&self, name: &str) -> Result<u64>;

    /// Returns figures of the store as of now.
    ///
    /// # Errors
    /// Those of [`Store::stats`] and [`Client::stats`].
    fn stats(&self) -> Result<Stats>;

    /// Returns the changes after transaction `from`, or from now on. They are those of one keyspace
    /// or of all, and of keys that begin with `prefix`.
    ///
    /// # Errors
    /// Those of [`Store::changes`] and [`Client::changes`].
    fn follow(
        &self,
        from: Option<TxnId>,
        feed: Feed,
        keyspace: Option<&str>,
        prefix: &[u8],
    ) -> Result<Box<dyn Follow + Send>>;
}

/// Writing a store, direct or by message.
pub trait StoreWrite: StoreRead {
    /// Stores a value under a key, as one transaction at the handle's default durability; creates
    /// the keyspace if there is none.
    ///
    /// # Errors
    /// Those of [`Keyspace::put`] and [`Client::put`].
    fn put(&self, keyspace: &str, key: &[u8], value: &[u8]) -> Result<TxnId>;

    /// Removes a key, as one transaction at the handle's default durability. Returns whether the
    /// key was present.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`]; those of [`StoreWrite::put`].
    fn delete(&self, keyspace: &str, key: &[u8]) -> Result<bool>;

    /// Removes all keys of a range, as one transaction at the handle's default durability. Returns
    /// the number of keys that were removed.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`]; those of [`StoreWrite::put`].
    fn delete_range(&self, keyspace: &str, bounds: KeyBounds<'_>) -> Result<u64>;

    /// Commits a batch as one transaction, if all of its conditions are met.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`] for a deletion in a keyspace that does not exist; those of
    /// [`StoreWrite::put`].
    fn commit(&self, batch: &Batch, durability: Durability) -> Result<CommitOutcome>;

    /// Stores the value of a cell and returns its version. Creates the cell if there is none.
    ///
    /// # Errors
    /// Those of [`Cell::store`](crate::Cell::store) and [`Client::cell_store`].
    fn cell_store(&self, name: &str, value: &[u8]) -> Result<Version>;

    /// Stores a value as [`StoreWrite::cell_store`] does; on return the value, or a later one, is
    /// durable.
    ///
    /// # Errors
    /// Those of [`StoreWrite::cell_store`].
    fn cell_store_durable(&self, name: &str, value: &[u8]) -> Result<Version>;

    /// Adds to a counter. Creates the counter if there is none.
    ///
    /// # Errors
    /// Those of [`Counter::add`](crate::Counter::add) and [`Client::counter_add`].
    fn counter_add(&self, name: &str, amount: u64) -> Result<()>;

    /// Returns when everything that was visible at the call is durable.
    ///
    /// # Errors
    /// Those of [`Store::sync`] and [`Client::sync`].
    fn sync(&self) -> Result<()>;

    /// Takes a checkpoint and returns the newest transaction that it covers.
    ///
    /// # Errors
    /// Those of [`Store::checkpoint`] and [`Client::checkpoint`].
    fn checkpoint(&self) -> Result<TxnId>;
}

/// A feed of the changes of a store, direct or by message; made by [`StoreRead::follow`].
pub trait Follow {
    /// Returns the next change, if one arrives within `timeout`.
    ///
    /// # Errors
    /// Those of [`Changes::try_next`] and [`RemoteChanges::try_next`].
    fn try_next(&mut self, timeout: Duration) -> Result<Option<Change>>;

    /// Returns the transaction after which a new feed continues without a gap.
    fn resume_from(&self) -> TxnId;
}

// ---- direct

fn existing(store: &Store, name: &str) -> Result<Keyspace> {
    store.find_keyspace(name)?.ok_or_else(|| Error::NoKeyspace { name: name.into() })
}

fn copied((key, value): (crate::Key, crate::Value)) -> (Vec<u8>, Vec<u8>) {
    (key.into(), value.to_vec())
}

impl StoreRead for Store {
    fn get_versioned(&self, keyspace: &str, key: &[u8]) -> Result<Option<(Vec<u8>, TxnId)>> {
        let found = existing(self, keyspace)?.get_versioned(key)?;
        Ok(found.map(|(value, version)| (value.to_vec(), version)))
    }

    fn multi_get(&self, keyspace: &str, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>> {
        let found = existing(self, keyspace)?.multi_get(keys)?;
        Ok(found.into_iter().map(|value| value.map(|value| value.to_vec())).collect())
    }

    fn scan(&self, keyspace: &str, bounds: KeyBounds<'_>) -> Result<Records<'_>> {
        let range = existing(self, keyspace)?.range(bounds)?;
        Ok(Box::new(range.map(|record| record.map(copied))))
    }

    fn scan_back(&self, keyspace: &str, bounds: KeyBounds<'_>) -> Result<Records<'_>> {
        let range = existing(self, keyspace)?.range(bounds)?.rev();
        Ok(Box::new(range.map(|record| record.map(copied))))
    }

    fn keyspaces(&self) -> Result<Vec<String>> {
        Store::keyspaces(self)
    }

    fn cell_load(&self, name: &str) -> Result<(Vec<u8>, Version)> {
        let cell = self.find_cell(name)?.ok_or_else(|| Error::NoCell { name: name.into() })?;
        let mut value = vec![0; cell.size()];
        let version = cell.load(&mut value)?;
        Ok((value, version))
    }

    fn counter_get(&self, name: &str) -> Result<u64> {
        // A call that only reads creates no keyspace.
        match cells::find(self, name)? {
            Some(location) if location.kind() == CellKind::Counter => self.counter(name)?.get(),
            Some(_) => Err(Error::NoCell { name: name.into() }),
            None => Ok(0),
        }
    }

    fn stats(&self) -> Result<Stats> {
        Store::stats(self)
    }

    fn follow(
        &self,
        from: Option<TxnId>,
        feed: Feed,
        keyspace: Option<&str>,
        prefix: &[u8],
    ) -> Result<Box<dyn Follow + Send>> {
        let from = match (from, feed) {
            (Some(txn), _) => txn,
            (None, Feed::Visible) => self.snapshot()?.txn_id(),
            (None, Feed::Durable) => self.durable_snapshot()?.txn_id(),
        };
        let changes = self.changes(from, feed)?.prefix(prefix);
        Ok(Box::new(match keyspace {
            Some(name) => changes.keyspace(name),
            None => changes,
        }))
    }
}

impl StoreWrite for Store {
    fn put(&self, keyspace: &str, key: &[u8], value: &[u8]) -> Result<TxnId> {
        self.keyspace(keyspace)?.put(key, value)
    }

    fn delete(&self, keyspace: &str, key: &[u8]) -> Result<bool> {
        existing(self, keyspace)?.delete(key)
    }

    fn delete_range(&self, keyspace: &str, bounds: KeyBounds<'_>) -> Result<u64> {
        existing(self, keyspace)?.delete_range(bounds)
    }

    fn commit(&self, batch: &Batch, durability: Durability) -> Result<CommitOutcome> {
        let operations: Vec<_> = batch.operations().collect();
        let mut txn = self.begin_with(durability)?;
        Ok(match batch::apply(self, &mut txn, &operations)? {
            Some(unmet) => CommitOutcome::Mismatch { index: unmet.index, current: unmet.current },
            None => CommitOutcome::Committed(txn.commit()?.txn_id()),
        })
    }

    fn cell_store(&self, name: &str, value: &[u8]) -> Result<Version> {
        self.cell(name, value.len())?.store(value)
    }

    fn cell_store_durable(&self, name: &str, value: &[u8]) -> Result<Version> {
        self.cell(name, value.len())?.store_durable(value)
    }

    fn counter_add(&self, name: &str, amount: u64) -> Result<()> {
        self.counter(name)?.add(amount)
    }

    fn sync(&self) -> Result<()> {
        Store::sync(self)
    }

    fn checkpoint(&self) -> Result<TxnId> {
        Store::checkpoint(self)
    }
}

impl Follow for Changes {
    fn try_next(&mut self, timeout: Duration) -> Result<Option<Change>> {
        Changes::try_next(self, timeout)
    }

    fn resume_from(&self) -> TxnId {
        Changes::resume_from(self)
    }
}

// ---- by message

impl StoreRead for Client {
    fn get_versioned(&self, keyspace: &str, key: &[u8]) -> Result<Option<(Vec<u8>, TxnId)>> {
        Client::get_versioned(self, keyspace, key)
    }

    fn multi_get(&self, keyspace: &str, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>> {
        Client::multi_get(self, keyspace, keys)
    }

    fn scan(&self, keyspace: &str, bounds: KeyBounds<'_>) -> Result<Records<'_>> {
        Ok(Box::new(Client::scan(self, keyspace, bounds)?))
    }

    fn scan_back(&self, keyspace: &str, bounds: KeyBounds<'_>) -> Result<Records<'_>> {
        Ok(Box::new(Client::scan_back(self, keyspace, bounds)?))
    }

    fn keyspaces(&self) -> Result<Vec<String>> {
        Client::keyspaces(self)
    }

    fn cell_load(&self, name: &str) -> Result<(Vec<u8>, Version)> {
        Client::cell_load(self, name)
    }

    fn counter_get(&self, name: &str) -> Result<u64> {
        Client::counter_get(self, name)
    }

    fn stats(&self) -> Result<Stats> {
        Client::stats(self)
    }

    fn follow(
        &self,
        from: Option<TxnId>,
        feed: Feed,
        keyspace: Option<&str>,
        prefix: &[u8],
    ) -> Result<Box<dyn Follow + Send>> {
        let changes = match from {
            Some(txn) => self.changes(txn, feed)?,
            None => self.changes_from_now(feed)?,
        };
        let changes = changes.prefix(prefix);
        Ok(Box::new(match keyspace {
            Some(name) => changes.keyspace(name),
            None => changes,
        }))
    }
}

impl StoreWrite for Client {
    fn put(&self, keyspace: &str, key: &[u8], value: &[u8]) -> Result<TxnId> {
        Client::put(self, keyspace, key, value)
    }

    fn delete(&self, keyspace: &str, key: &[u8]) -> Result<bool> {
        Client::delete(self, keyspace, key)
    }

    fn delete_range(&self, keyspace: &str, bounds: KeyBounds<'_>) -> Result<u64> {
        Client::delete_range(self, keyspace, bounds)
    }

    fn commit(&self, batch: &Batch, durability: Durability) -> Result<CommitOutcome> {
        self.commit_with(batch, durability)
    }

    fn cell_store(&self, name: &str, value: &[u8]) -> Result<Version> {
        Client::cell_store(self, name, value)
    }

    fn cell_store_durable(&self, name: &str, value: &[u8]) -> Result<Version> {
        Client::cell_store_durable(self, name, value)
    }

    fn counter_add(&self, name: &str, amount: u64) -> Result<()> {
        Client::counter_add(self, name, amount)
    }

    fn sync(&self) -> Result<()> {
        Client::sync(self)
    }

    fn checkpoint(&self) -> Result<TxnId> {
        Client::checkpoint(self)
    }
}

impl Follow for RemoteChanges {
    fn try_next(&mut self, timeout: Duration) -> Result<Option<Change>> {
        RemoteChanges::try_next(self, timeout)
    }

    fn resume_from(&self) -> TxnId {
        RemoteChanges::resume_from(self)
    }
}
