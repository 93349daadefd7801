//! Calls composed of others: existence, first and last entry, several keys at once,
//! read-modify-write, whole transactions.
//!
//! They access no pages, locks or log themselves: each consists of calls that users could make. A
//! call that reads and then writes does both in one transaction, so it reads under the writer lock.

use crate::api::keyspace::Keyspace;
use crate::api::snapshot;
use crate::api::snapshot::{Key, Range, Snapshot, SnapshotRange, Value};
use crate::api::store::Store;
use crate::api::write_txn::{TxnRange, WriteTxn};
use crate::{Error, Result, TxnId};

/// An entry, if there is one.
type FoundEntry = Option<(Key, Value)>;

impl Store {
    /// Runs `work` in a write transaction at the store's default durability. Commits if it returns
    /// `Ok`, rolls back if it returns `Err` or panics.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// let users = store.keyspace("users")?;
    /// let count = store.transact(|txn| {
    ///     txn.put(&users, b"alice", b"1")?;
    ///     txn.put(&users, b"bob", b"2")?;
    ///     Ok(2)
    /// })?;
    /// assert_eq!(users.len()?, count);
    /// # drop(users);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of `work`, [`Store::begin`] and [`WriteTxn::commit`]. After [`Error::NotDurable`], or
    /// an [`Error::LoggerStalled`] that names the transaction, the transaction is visible. After
    /// all others it has had no effect.
    pub fn transact<T>(&self, work: impl FnOnce(&mut WriteTxn<'_>) -> Result<T>) -> Result<T> {
        self.transact_with(work)
    }

    /// Does what [`Store::transact`] does, for work that fails with its own error type.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path).unwrap();
    /// # let users = store.keyspace("users").unwrap();
    /// #[derive(Debug)]
    /// enum Refused {
    ///     Taken,
    ///     Store(untorn::Error),
    /// }
    ///
    /// impl From<untorn::Error> for Refused {
    ///     fn from(error: untorn::Error) -> Refused {
    ///         Refused::Store(error)
    ///     }
    /// }
    ///
    /// let register = |name: &[u8]| {
    ///     store.transact_with(|txn| {
    ///         if txn.contains_key(&users, name)? {
    ///             return Err(Refused::Taken);
    ///         }
    ///         Ok(txn.put(&users, name, b"new")?)
    ///     })
    /// };
    /// register(b"alice").unwrap();
    /// assert!(matches!(register(b"alice"), Err(Refused::Taken)));
    /// # drop(users);
    /// # store.close().unwrap();
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5)).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of [`Store::transact`].
    pub fn transact_with<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut WriteTxn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut txn = self.begin()?;
        let done = work(&mut txn)?;
        txn.commit()?;
        Ok(done)
    }
}

impl Keyspace {
    /// Returns whether the keyspace has a visible entry for `key`.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get(key)?.is_some())
    }

    /// Returns the visible values of several keys, in the order of `keys`, all as of one
    /// transaction.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// let users = store.keyspace("users")?;
    /// users.put(b"alice", b"1")?;
    /// let values = users.multi_get(["alice", "bob"])?;
    /// assert_eq!(values[0].as_deref(), Some(&b"1"[..]));
    /// assert!(values[1].is_none());
    /// # drop((users, values));
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Option<Value>>> {
        let pin = self.store().client().pin()?;
        keys.into_iter().map(|key| snapshot::get(pin.clone(), self, key.as_ref())).collect()
    }

    /// Returns the visible entry with the least key.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn first(&self) -> Result<Option<(Key, Value)>> {
        self.iter()?.next().transpose()
    }

    /// Returns the visible entry with the greatest key.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn last(&self) -> Result<Option<(Key, Value)>> {
        self.iter()?.next_back().transpose()
    }

    /// Returns an iterator over all visible entries as of now, in key order, from both ends.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn iter(&self) -> Result<Range> {
        self.range(..)
    }

    /// Removes the entry with the least key and returns it, as one transaction at the handle's
    /// default durability. Two callers never get the same entry.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// let tasks = store.keyspace("tasks")?;
    /// tasks.put(b"09:00", b"water the plants")?;
    /// tasks.put(b"17:00", b"lock up")?;
    /// while let Some((time, task)) = tasks.pop_first()? {
    ///     println!("{time:?} {task:?}"); // b"09:00" b"water the plants", then b"17:00" b"lock up"
    /// }
    /// assert!(tasks.is_empty()?);
    /// # drop(tasks);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Keyspace::put`].
    pub fn pop_first(&self) -> Result<Option<(Key, Value)>> {
        self.pop(Keyspace::first)
    }

    /// Removes the entry with the greatest key and returns it; see [`Keyspace::pop_first`].
    ///
    /// # Errors
    /// Those of [`Keyspace::put`].
    pub fn pop_last(&self) -> Result<Option<(Key, Value)>> {
        self.pop(Keyspace::last)
    }

    fn pop(&self, find: fn(&Keyspace) -> Result<FoundEntry>) -> Result<FoundEntry> {
        let mut txn = self.store().begin()?;
        // While the transaction holds the lock, the visible state is the one from which it began.
        // So the value needs no copy.
        let Some((key, value)) = find(self)? else { return Ok(None) };
        txn.delete(self, &key)?;
        txn.commit()?;
        Ok(Some((key, value)))
    }

    /// Replaces the value of a key by the result of `change`, as one transaction at the handle's
    /// default durability. The result `None` removes the key. Returns the transaction's id.
    ///
    /// `change` gets the value, or `None` if the key is absent. It is called once, under the writer
    /// lock: it should be short, and can't begin a transaction of this store. If it panics, nothing
    /// changes.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// let visits = store.keyspace("visits")?;
    /// let next = |old: Option<&[u8]>| {
    ///     let count = old.map_or(0, |old| u64::from_be_bytes(old.try_into().expect("8 bytes")));
    ///     Some((count + 1).to_be_bytes().to_vec())
    /// };
    /// visits.update("alice", next)?;
    /// visits.update("alice", next)?;
    /// assert_eq!(visits.get(b"alice")?.unwrap(), 2_u64.to_be_bytes());
    /// visits.update("alice", |_| None)?;
    /// assert!(!visits.contains_key("alice")?);
    /// # drop(visits);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Keyspace::put`].
    pub fn update(
        &self,
        key: impl AsRef<[u8]>,
        change: impl FnOnce(Option<&[u8]>) -> Option<Vec<u8>>,
    ) -> Result<TxnId> {
        let mut txn = self.store().begin()?;
        txn.update(self, key, change)?;
        Ok(txn.commit()?.txn_id())
    }
}

impl Snapshot {
    /// Returns whether a keyspace has an entry for `key`.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn contains_key(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get(keyspace, key)?.is_some())
    }

    /// Returns the values of several keys, in the order of `keys`.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<&[u8]>>> {
        keys.into_iter().map(|key| self.get(keyspace, key)).collect()
    }

    /// Returns the entry with the least key.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn first(&self, keyspace: &Keyspace) -> Result<Option<(Key, &[u8])>> {
        self.iter(keyspace)?.next().transpose()
    }

    /// Returns the entry with the greatest key.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn last(&self, keyspace: &Keyspace) -> Result<Option<(Key, &[u8])>> {
        self.iter(keyspace)?.next_back().transpose()
    }

    /// Returns an iterator over all entries of a keyspace, in key order, from both ends.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn iter(&self, keyspace: &Keyspace) -> Result<SnapshotRange<'_>> {
        self.range(keyspace, ..)
    }
}

/// These calls include the transaction's own changes.
impl<'s> WriteTxn<'s> {
    /// Returns whether a keyspace has an entry for `key`, as this transaction sees it.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn contains_key(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get(keyspace, key)?.is_some())
    }

    /// Returns the values of several keys, in the order of `keys`, as this transaction sees them.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<&[u8]>>> {
        keys.into_iter().map(|key| self.get(keyspace, key)).collect()
    }

    /// Returns the entry with the least key, as this transaction sees it.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn first(&self, keyspace: &Keyspace) -> Result<Option<(Key, &[u8])>> {
        self.iter(keyspace)?.next().transpose()
    }

    /// Returns the entry with the greatest key, as this transaction sees it.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn last(&self, keyspace: &Keyspace) -> Result<Option<(Key, &[u8])>> {
        self.iter(keyspace)?.next_back().transpose()
    }

    /// Returns an iterator over all entries of a keyspace as this transaction sees them, in key
    /// order, from both ends.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn iter(&self, keyspace: &Keyspace) -> Result<TxnRange<'_, 's>> {
        self.range(keyspace, ..)
    }

    /// Removes the entry with the least key and returns it with a copy of its value.
    ///
    /// # Errors
    /// Those of [`WriteTxn::put`].
    pub fn pop_first(&mut self, keyspace: &Keyspace) -> Result<Option<(Key, Vec<u8>)>> {
        let found = self.first(keyspace)?.map(|(key, value)| (key, value.to_vec()));
        self.remove_found(keyspace, found)
    }

    /// Removes the entry with the greatest key and returns it with a copy of its value.
    ///
    /// # Errors
    /// Those of [`WriteTxn::put`].
    pub fn pop_last(&mut self, keyspace: &Keyspace) -> Result<Option<(Key, Vec<u8>)>> {
        let found = self.last(keyspace)?.map(|(key, value)| (key, value.to_vec()));
        self.remove_found(keyspace, found)
    }

    fn remove_found(&mut self, keyspace: &Keyspace, found: Option<(Key, Vec<u8>)>) -> Result<Option<(Key, Vec<u8>)>> {
        if let Some((key, _)) = &found {
            self.delete(keyspace, key)?;
        }
        Ok(found)
    }

    /// Replaces the value of a key by the result of `change`; `None` removes the key. See
    /// [`Keyspace::update`].
    ///
    /// # Errors
    /// Those of [`WriteTxn::put`].
    pub fn update(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        change: impl FnOnce(Option<&[u8]>) -> Option<Vec<u8>>,
    ) -> Result<()> {
        let key = key.as_ref();
        match change(self.get(keyspace, key)?) {
            Some(value) => self.put(keyspace, key, &value),
            None => self.delete(keyspace, key).map(drop),
        }
    }
}
