//! Lending cursors: over a keyspace of a snapshot, and of a write transaction.

use crate::Result;
use crate::api::keyspace::Keyspace;
use crate::api::snapshot::Snapshot;
use crate::api::write_txn::WriteTxn;
use crate::btree::point_cursor::PointCursor;
use std::fmt;

impl Snapshot {
    /// Returns a cursor over a keyspace. It moves by steps and by keys, in both directions, and
    /// allocates nothing per entry.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn cursor(&self, keyspace: &Keyspace) -> Result<Cursor<'_>> {
        Ok(Cursor { snapshot: self, point: PointCursor::new(self.root(keyspace)?) })
    }
}

impl WriteTxn<'_> {
    /// Returns a cursor over a keyspace as this transaction sees it. The transaction can't change
    /// anything while the cursor lives.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn cursor(&self, keyspace: &Keyspace) -> Result<TxnCursor<'_>> {
        Ok(TxnCursor { txn: self, point: self.point_cursor(keyspace)? })
    }
}

/// A position in a keyspace of a [`Snapshot`]; made by [`Snapshot::cursor`].
///
/// Each call moves the cursor and lends the entry at its new position. The key is lent until the
/// next call, the value for as long as the snapshot is borrowed. So a loop over a cursor allocates
/// nothing, whereas [`SnapshotRange`](crate::SnapshotRange) makes a [`Key`](crate::Key) for each
/// entry.
///
/// ```
/// # fn main() -> untorn::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("data");
/// # let store = untorn::Store::open(&path)?;
/// let users = store.keyspace("users")?;
/// store.transact(|txn| ["ann", "bob", "cyd"].iter().try_for_each(|name| txn.put(&users, name, "1")))?;
/// let snapshot = store.snapshot()?;
/// let mut cursor = snapshot.cursor(&users)?;
/// while let Some((key, value)) = cursor.next()? {
///     println!("{} {}", key.escape_ascii(), value.escape_ascii());
/// }
/// assert_eq!(cursor.seek("b")?.unwrap().0, b"bob"); // the first key that is not less
/// assert_eq!(cursor.prev()?.unwrap().0, b"ann"); // the last key that is less
/// assert!(cursor.seek("d")?.is_none());
/// assert_eq!(cursor.prev()?.unwrap().0, b"cyd"); // the same after a seek that found nothing
/// # drop((snapshot, users));
/// # store.close()?;
/// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
/// # Ok(())
/// # }
/// ```
///
/// # Where it is after each call
/// The result of `seek`, `first` and `last` does not depend on the cursor's position. That of
/// `next` and `prev` does:
///
/// | the cursor is | because | `next` | `prev` |
/// |---|---|---|---|
/// | new | [`Snapshot::cursor`] made it | the first entry | the last entry |
/// | on an entry | the last call returned it | the entry after it | the entry before it |
/// | past the end | `next` returned `None` | `None`, and it stays | the last entry |
/// | before the beginning | `prev` returned `None` | the first entry | `None`, and it stays |
/// | past the end | `seek` returned `None`: all keys are less | `None`, and it stays | the last entry |
/// | nowhere | the keyspace is empty | `None` | `None` |
/// | failed | a call returned an error | `None` | `None` |
///
/// So `seek(k)` followed by `prev()` always returns the greatest key below `k`. A loop that ignores
/// an error ends. As in LMDB, `next` and `prev` of a new cursor move to the first and the last
/// entry. RocksDB leaves them undefined there, and past either end.
///
/// A key that was lent cannot be used after the next call:
///
/// ```compile_fail,E0499
/// # fn try_it(mut cursor: untorn::Cursor<'_>) -> untorn::Result<()> {
/// let first = cursor.first()?;
/// cursor.next()?;
/// println!("{first:?}");
/// # Ok(())
/// # }
/// ```
pub struct Cursor<'s> {
    snapshot: &'s Snapshot,
    point: PointCursor,
}

impl<'s> Cursor<'s> {
    /// Moves to the first entry whose key is `key` or greater. Returns `None` if all keys are less.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn seek(&mut self, key: impl AsRef<[u8]>) -> Result<Option<(&[u8], &'s [u8])>> {
        let snapshot = self.snapshot;
        let pages = snapshot.pages()?;
        let found = self.point.seek(&pages, key.as_ref())?;
        Ok(found.map(|(key, value)| (key, snapshot.lend(value))))
    }

    /// Moves to the entry with the least key.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn first(&mut self) -> Result<Option<(&[u8], &'s [u8])>> {
        let snapshot = self.snapshot;
        let pages = snapshot.pages()?;
        let found = self.point.first(&pages)?;
        Ok(found.map(|(key, value)| (key, snapshot.lend(value))))
    }

    /// Moves to the entry with the greatest key.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn last(&mut self) -> Result<Option<(&[u8], &'s [u8])>> {
        let snapshot = self.snapshot;
        let pages = snapshot.pages()?;
        let found = self.point.last(&pages)?;
        Ok(found.map(|(key, value)| (key, snapshot.lend(value))))
    }

    /// Moves to the next entry in key order. Returns `None` past the end.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    #[allow(clippy::should_implement_trait)] // An iterator cannot lend.
    pub fn next(&mut self) -> Result<Option<(&[u8], &'s [u8])>> {
        let snapshot = self.snapshot;
        let pages = snapshot.pages()?;
        let found = self.point.next(&pages)?;
        Ok(found.map(|(key, value)| (key, snapshot.lend(value))))
    }

    /// Moves to the previous entry in key order. Returns `None` before the beginning.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn prev(&mut self) -> Result<Option<(&[u8], &'s [u8])>> {
        let snapshot = self.snapshot;
        let pages = snapshot.pages()?;
        let found = self.point.prev(&pages)?;
        Ok(found.map(|(key, value)| (key, snapshot.lend(value))))
    }
}

/// A position in a keyspace as a [`WriteTxn`] sees it; made by [`WriteTxn::cursor`].
///
/// It moves as [`Cursor`] does, by the same table, and its entries include the transaction's own
/// changes. Values are lent for as long as the transaction is borrowed.
pub struct TxnCursor<'t> {
    txn: &'t WriteTxn<'t>,
    point: PointCursor,
}

impl<'t> TxnCursor<'t> {
    /// Moves to the first entry whose key is `key` or greater. Returns `None` if all keys are less.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn seek(&mut self, key: impl AsRef<[u8]>) -> Result<Option<(&[u8], &'t [u8])>> {
        self.point.seek(self.txn.work()?, key.as_ref())
    }

    /// Moves to the entry with the least key.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn first(&mut self) -> Result<Option<(&[u8], &'t [u8])>> {
        self.point.first(self.txn.work()?)
    }

    /// Moves to the entry with the greatest key.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn last(&mut self) -> Result<Option<(&[u8], &'t [u8])>> {
        self.point.last(self.txn.work()?)
    }

    /// Moves to the next entry in key order. Returns `None` past the end.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    #[allow(clippy::should_implement_trait)] // An iterator cannot lend.
    pub fn next(&mut self) -> Result<Option<(&[u8], &'t [u8])>> {
        self.point.next(self.txn.work()?)
    }

    /// Moves to the previous entry in key order. Returns `None` before the beginning.
    ///
    /// # Errors
    /// Those of [`WriteTxn::get`].
    pub fn prev(&mut self) -> Result<Option<(&[u8], &'t [u8])>> {
        self.point.prev(self.txn.work()?)
    }
}

impl fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("txn", &self.snapshot.txn_id()).finish_non_exhaustive()
    }
}

impl fmt::Debug for TxnCursor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxnCursor").field("base", &self.txn.base_txn_id()).finish_non_exhaustive()
    }
}
