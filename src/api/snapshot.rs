//! Snapshots and what is read from them: values, keys, ranges.

use crate::api::held::Held;
use crate::api::keyspace::Keyspace;
use crate::api::store::Store;
use crate::btree::cursor::Cursor;
use crate::btree::search;
use crate::key_range::KeyRange;
use crate::prefix::{prefix_bounds, prefix_end};
use crate::process::client::Client;
use crate::process::pin::Pin;
use crate::txn::catalog;
use crate::{Error, PageId, Result, TxnId};
use std::fmt;
use std::ops::{Bound, Deref};
use std::sync::Arc;

/// A repeatable view of the whole store as of one transaction.
///
/// It pins that transaction: pages that later transactions replace are not reused while it lives, so a
/// snapshot kept for long makes the store grow (`Stats` shows who pins what). Taking one costs tens of
/// nanoseconds and never waits.
pub struct Snapshot {
    store: Store,
    pin: Pin,
}

impl Snapshot {
    pub(crate) fn new(store: Store, pin: Pin) -> Snapshot {
        Snapshot { store, pin }
    }

    #[inline]
    fn client(&self) -> &Arc<Client> {
        self.store.client()
    }

    /// The transaction that this is a view of.
    pub fn txn_id(&self) -> TxnId {
        self.pin.txn()
    }

    /// The value of a key, without copying it.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`] if the keyspace did not exist then; [`Error::Corrupt`]; [`Error::Forked`].
    #[inline]
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.get_bytes(keyspace, key.as_ref())
    }

    fn get_bytes(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Value>> {
        self.client().check_usable()?;
        get(self.client(), &self.pin, keyspace, key)
    }

    /// The value of a key, and its version: the id of the transaction that wrote it last.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn get_versioned(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<(Value, TxnId)>> {
        self.client().check_usable()?;
        get_versioned(self.client(), &self.pin, keyspace, key.as_ref())
    }

    /// The entries of a range, in key order, from both ends.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn range<R: KeyRange>(&self, keyspace: &Keyspace, range: R) -> Result<Range> {
        self.range_of_bounds(keyspace, range.bounds())
    }

    /// The entries whose keys begin with `prefix`.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn prefix(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Result<Range> {
        let prefix = prefix.as_ref();
        let end = prefix_end(prefix);
        self.range_of_bounds(keyspace, prefix_bounds(prefix, end.as_deref()))
    }

    fn range_of_bounds(&self, keyspace: &Keyspace, bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> Result<Range> {
        self.client().check_usable()?;
        Range::new(self.client().clone(), self.pin.clone(), keyspace, bounds)
    }

    /// The keyspace that had this name then, also if it was dropped since.
    ///
    /// # Errors
    /// [`Error::Corrupt`]; [`Error::Forked`].
    pub fn find_keyspace(&self, name: &str) -> Result<Option<Keyspace>> {
        self.client().check_usable()?;
        let id = catalog::find(&self.pin.pages(self.client()), self.pin.catalog(), name)?;
        Ok(id.map(|id| Keyspace::new(self.store.clone(), id, name)))
    }

    /// The names of all keyspaces, in the order in which they were created.
    ///
    /// # Errors
    /// [`Error::Corrupt`]; [`Error::Forked`].
    pub fn keyspaces(&self) -> Result<Vec<String>> {
        self.client().check_usable()?;
        let pages = self.pin.pages(self.client());
        Ok(catalog::list(&pages, self.pin.catalog())?.into_iter().map(|entry| entry.name).collect())
    }

    /// How many entries a keyspace has. Costs as much as a `get`.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn len(&self, keyspace: &Keyspace) -> Result<u64> {
        self.client().check_usable()?;
        keyspace.belongs_to(self.client())?;
        let pages = self.pin.pages(self.client());
        match catalog::entry(&pages, self.pin.catalog(), keyspace.id())? {
            Some(entry) => Ok(entry.entries),
            None => Err(Error::NoKeyspace { name: keyspace.name().into() }),
        }
    }
}

impl Clone for Snapshot {
    fn clone(&self) -> Snapshot {
        Snapshot { store: self.store.clone(), pin: self.pin.clone() }
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("txn", &self.txn_id()).finish()
    }
}

#[inline]
fn root(client: &Client, pin: &Pin, keyspace: &Keyspace) -> Result<PageId> {
    keyspace.belongs_to(client)?;
    if let Some(root) = keyspace.cached_root(pin.txn()) {
        return Ok(root);
    }
    match catalog::root(&pin.pages(client), pin.catalog(), keyspace.id())? {
        Some(root) => {
            keyspace.cache_root(pin.txn(), root);
            Ok(root)
        }
        None => Err(Error::NoKeyspace { name: keyspace.name().into() }),
    }
}

#[inline]
pub(crate) fn get(client: &Client, pin: &Pin, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Value>> {
    Ok(get_versioned(client, pin, keyspace, key)?.map(|(value, _)| value))
}

#[inline]
pub(crate) fn get_versioned(
    client: &Client,
    pin: &Pin,
    keyspace: &Keyspace,
    key: &[u8],
) -> Result<Option<(Value, TxnId)>> {
    let root = root(client, pin, keyspace)?;
    let pages = pin.pages(client);
    Ok(search::get(&pages, root, key)?.map(|found| (Value(Held::new(found.value, pin.clone())), found.version)))
}

/// Writes bytes as the literal of a byte string, which can be read where they are ASCII.
fn fmt_bytes(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "b\"{}\"", bytes.escape_ascii())
}

/// A value in the store, without copying: it dereferences to its bytes and pins its snapshot.
///
/// Keep it only as long as it is needed; `to_vec()` frees it from the store. It must not be read in a
/// child of `fork()`, where the store is not mapped.
pub struct Value(Held);

impl Deref for Value {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_bytes(self, f)
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Value {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for Value {}

/// A key that an iteration came to. Pages keep keys without their common prefix, so it owns a joined copy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub(crate) Vec<u8>);

impl Deref for Key {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_bytes(self, f)
    }
}

impl From<Key> for Vec<u8> {
    fn from(key: Key) -> Vec<u8> {
        key.0
    }
}

/// The entries of a range of a snapshot, in key order, from both ends.
pub struct Range {
    client: Arc<Client>,
    pin: Pin,
    cursor: Cursor,
}

impl Range {
    pub(crate) fn new(
        client: Arc<Client>,
        pin: Pin,
        keyspace: &Keyspace,
        (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Result<Range> {
        let cursor = Cursor::new(root(&client, &pin, keyspace)?, lower, upper);
        Ok(Range { client, pin, cursor })
    }

    fn step(&mut self, back: bool) -> Result<Option<(Key, Value)>> {
        self.client.check_usable()?;
        let pages = self.pin.pages(&self.client);
        let found = if back { self.cursor.next_back(&pages)? } else { self.cursor.next(&pages)? };
        Ok(found.map(|entry| {
            let mut key = Vec::new();
            entry.key.key_into(&mut key);
            (Key(key), Value(Held::new(entry.value, self.pin.clone())))
        }))
    }
}

impl Iterator for Range {
    type Item = Result<(Key, Value)>;
    fn next(&mut self) -> Option<Self::Item> {
        self.step(false).transpose()
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(true).transpose()
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Range").field("txn", &self.pin.txn()).finish_non_exhaustive()
    }
}
