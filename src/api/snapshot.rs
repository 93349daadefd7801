//! Snapshots and what they return: values, keys, ranges.

use crate::api::keyspace::Keyspace;
use crate::api::pinned::{PinnedBytes, lend};
use crate::api::store::{HandleSettings, Store};
use crate::btree::cursor::RangeCursor;
use crate::btree::search;
use crate::key_range::KeyRange;
use crate::prefix::{prefix_bounds, prefix_end};
use crate::process::client::DirectClient;
use crate::process::pin::Pin;
use crate::shared::memory::arena::Pages;
use crate::txn::catalog;
use crate::{Error, PageId, Result, TxnId};
use std::fmt;
use std::ops::{Bound, Deref};
use std::sync::Arc;

/// A repeatable view of the whole store as of one transaction.
///
/// It pins that transaction: while it lives, pages that later transactions replace are not reused.
/// So a snapshot kept for long makes the store grow (`Stats` shows which process pins which
/// transaction). Taking one costs tens of nanoseconds and never waits.
pub struct Snapshot {
    /// It also keeps the client.
    pin: Pin,
    settings: HandleSettings,
}

impl Snapshot {
    /// Returns a snapshot at `pin`, taken through a handle with these settings.
    pub(crate) fn new(settings: HandleSettings, pin: Pin) -> Snapshot {
        Snapshot { pin, settings }
    }

    #[inline]
    fn client(&self) -> &Arc<DirectClient> {
        self.pin.client()
    }

    /// Returns the transaction whose state the snapshot shows.
    pub fn txn_id(&self) -> TxnId {
        self.pin.txn()
    }

    /// Returns the value of a key. The slice borrows the snapshot: no copy, no reference count.
    ///
    /// A value is contiguous in the store whatever its length, so a large one is not copied either.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// let users = store.keyspace("users")?;
    /// users.put("alice", "1")?;
    /// let snapshot = store.snapshot()?;
    /// let alice: Option<&[u8]> = snapshot.get(&users, "alice")?;
    /// users.put("alice", "2")?; // the snapshot keeps what it saw
    /// assert_eq!(alice, Some(&b"1"[..]));
    /// # drop((snapshot, users));
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The slice cannot outlive the snapshot. [`Keyspace::get`] returns a [`Value`], which can:
    ///
    /// ```compile_fail,E0505
    /// # fn try_it(store: untorn::Store, users: untorn::Keyspace) -> untorn::Result<()> {
    /// let snapshot = store.snapshot()?;
    /// let alice = snapshot.get(&users, "alice")?;
    /// drop(snapshot);
    /// println!("{alice:?}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoKeyspace`] if the keyspace did not exist then; [`Error::Corrupt`];
    /// [`Error::Forked`].
    #[inline]
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<&[u8]>> {
        Ok(self.find(keyspace, key.as_ref())?.map(|(value, _)| value))
    }

    /// Returns the value of a key and its version: the id of the transaction that wrote it last.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    #[inline]
    pub fn get_versioned(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<(&[u8], TxnId)>> {
        self.find(keyspace, key.as_ref())
    }

    fn find(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<(&[u8], TxnId)>> {
        let pages = self.pages()?;
        let root = root(self.client(), &self.pin, keyspace)?;
        Ok(search::get(&pages, root, key)?.map(|found| (self.lend(found.value), found.version)))
    }

    /// Returns the pages of the snapshot. Each read checks here for a forked child.
    #[inline]
    pub(super) fn pages(&self) -> Result<Pages<'_>> {
        self.client().check_usable()?;
        Ok(self.pin.pages(self.client()))
    }

    /// Returns the root of a keyspace's tree in this snapshot, where a range or a cursor begins.
    pub(super) fn root(&self, keyspace: &Keyspace) -> Result<PageId> {
        self.client().check_usable()?;
        root(self.client(), &self.pin, keyspace)
    }

    /// Lends bytes of the snapshot's pages for as long as the snapshot is borrowed.
    #[inline]
    pub(super) fn lend(&self, bytes: &[u8]) -> &[u8] {
        lend(bytes, &self.pin)
    }

    /// Returns an iterator over the entries of a range, in key order, from both ends. Values borrow
    /// the snapshot.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn range<R: KeyRange>(&self, keyspace: &Keyspace, range: R) -> Result<SnapshotRange<'_>> {
        self.range_of_bounds(keyspace, range.bounds())
    }

    /// Returns an iterator over the entries whose keys begin with `prefix`. Values borrow the
    /// snapshot.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn prefix(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Result<SnapshotRange<'_>> {
        let prefix = prefix.as_ref();
        let end = prefix_end(prefix);
        self.range_of_bounds(keyspace, prefix_bounds(prefix, end.as_deref()))
    }

    fn range_of_bounds(
        &self,
        keyspace: &Keyspace,
        (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Result<SnapshotRange<'_>> {
        let cursor = RangeCursor::new(self.root(keyspace)?, lower, upper);
        Ok(SnapshotRange { snapshot: self, cursor })
    }

    /// Returns the keyspace that had this name in the snapshot, even if it was dropped since.
    ///
    /// # Errors
    /// [`Error::Corrupt`]; [`Error::Forked`].
    pub fn find_keyspace(&self, name: &str) -> Result<Option<Keyspace>> {
        self.client().check_usable()?;
        let id = catalog::find(&self.pin.pages(self.client()), &self.pin.catalog(), name)?;
        Ok(id.map(|id| Keyspace::new(Store::from_parts(self.client().clone(), self.settings), id, name)))
    }

    /// Returns the names of all keyspaces, in the order in which they were created.
    ///
    /// # Errors
    /// [`Error::Corrupt`]; [`Error::Forked`].
    pub fn keyspaces(&self) -> Result<Vec<String>> {
        self.client().check_usable()?;
        let pages = self.pin.pages(self.client());
        Ok(catalog::list(&pages, &self.pin.catalog())?.into_iter().map(|entry| entry.name).collect())
    }

    /// Returns the number of entries in a keyspace. Costs as much as a `get`.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn len(&self, keyspace: &Keyspace) -> Result<u64> {
        self.client().check_usable()?;
        keyspace.belongs_to(self.client())?;
        let pages = self.pin.pages(self.client());
        match catalog::entry(&pages, &self.pin.catalog(), keyspace.id())? {
            Some(entry) => Ok(entry.entries),
            None => Err(Error::NoKeyspace { name: keyspace.name().into() }),
        }
    }
}

impl Clone for Snapshot {
    fn clone(&self) -> Snapshot {
        Snapshot { pin: self.pin.clone(), settings: self.settings }
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("txn", &self.txn_id()).finish()
    }
}

#[inline]
fn root(client: &DirectClient, pin: &Pin, keyspace: &Keyspace) -> Result<PageId> {
    keyspace.belongs_to(client)?;
    if let Some(root) = keyspace.cached_root(pin.txn()) {
        return Ok(root);
    }
    match catalog::root(&pin.pages(client), &pin.catalog(), keyspace.id())? {
        Some(root) => {
            keyspace.cache_root(pin.txn(), root);
            Ok(root)
        }
        None => Err(Error::NoKeyspace { name: keyspace.name().into() }),
    }
}

/// Returns the value of a key in the pinned commit. The value takes the pin, so that a lookup counts
/// no second guard.
#[inline]
pub(crate) fn get(pin: Pin, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Value>> {
    Ok(get_versioned(pin, keyspace, key)?.map(|(value, _)| value))
}

#[inline]
pub(crate) fn get_versioned(pin: Pin, keyspace: &Keyspace, key: &[u8]) -> Result<Option<(Value, TxnId)>> {
    let root = root(pin.client(), &pin, keyspace)?;
    let pages = pin.pages(pin.client());
    let Some(found) = search::get(&pages, root, key)? else { return Ok(None) };
    let (bytes, version) = (std::ptr::from_ref(found.value), found.version);
    Ok(Some((Value(PinnedBytes::new(bytes, pin)), version)))
}

/// Writes bytes as the literal of a byte string, which is readable where they are ASCII.
fn fmt_bytes(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "b\"{}\"", bytes.escape_ascii())
}

/// A value in the store, without copying: it dereferences to its bytes and pins its snapshot.
///
/// Keep it only as long as it is needed; `to_vec()` makes an independent copy. It must not be read
/// in a child of `fork()`, where the store is not mapped.
pub struct Value(PinnedBytes);

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

/// The key of an entry of an iteration. Pages store keys without their common prefix, so it owns a
/// joined copy.
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

/// An iterator over the entries of a range of a [`Snapshot`], in key order, from both ends. Values
/// borrow the snapshot.
pub struct SnapshotRange<'s> {
    snapshot: &'s Snapshot,
    cursor: RangeCursor,
}

impl<'s> SnapshotRange<'s> {
    fn step(&mut self, back: bool) -> Result<Option<(Key, &'s [u8])>> {
        let snapshot = self.snapshot;
        let pages = snapshot.pages()?;
        let found = if back { self.cursor.next_back(&pages)? } else { self.cursor.next(&pages)? };
        Ok(found.map(|entry| (Key(entry.key.to_vec()), snapshot.lend(entry.value))))
    }
}

impl<'s> Iterator for SnapshotRange<'s> {
    type Item = Result<(Key, &'s [u8])>;
    fn next(&mut self) -> Option<Self::Item> {
        self.step(false).transpose()
    }
}

impl DoubleEndedIterator for SnapshotRange<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(true).transpose()
    }
}

impl fmt::Debug for SnapshotRange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotRange").field("txn", &self.snapshot.txn_id()).finish_non_exhaustive()
    }
}

/// An iterator over the entries of a range of a keyspace, in key order, from both ends. It holds a
/// snapshot of its own, and so does each [`Value`] that it yields.
pub struct Range {
    pin: Pin,
    cursor: RangeCursor,
}

impl Range {
    pub(crate) fn new(pin: Pin, keyspace: &Keyspace, (lower, upper): (Bound<&[u8]>, Bound<&[u8]>)) -> Result<Range> {
        let cursor = RangeCursor::new(root(pin.client(), &pin, keyspace)?, lower, upper);
        Ok(Range { pin, cursor })
    }

    fn step(&mut self, back: bool) -> Result<Option<(Key, Value)>> {
        let client = self.pin.client();
        client.check_usable()?;
        let pages = self.pin.pages(client);
        let found = if back { self.cursor.next_back(&pages)? } else { self.cursor.next(&pages)? };
        let Some(entry) = found else { return Ok(None) };
        Ok(Some((Key(entry.key.to_vec()), Value(PinnedBytes::new(entry.value, self.pin.clone())))))
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
