//! A keyspace: one ordered map of a store, by name.

use crate::api::snapshot;
use crate::api::snapshot::{Range, Value};
use crate::api::store::Store;
use crate::api::write_txn::WriteTxn;
use crate::key_range::KeyRange;
use crate::prefix::{prefix_bounds, prefix_end};
use crate::process::client::DirectClient;
use crate::system::sync::Mutex;
use crate::{CasOutcome, Durability, Error, KeyspaceId, PageId, Result, TxnId};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A named, ordered map of keys to values; made by [`Store::keyspace`], cheap to clone.
///
/// Keys have 0 bytes to a quarter of the page size (1,024 at the default), values 0 bytes to 1 GiB.
/// Keys are ordered as byte strings. If the keyspace is dropped, its handles return
/// [`Error::NoKeyspace`], even if another of the same name was created since.
#[derive(Clone)]
pub struct Keyspace {
    store: Store,
    id: KeyspaceId,
    shared: Arc<Named>,
}

/// The prefix of the names of keyspaces that the store itself uses.
const RESERVED: &str = "untorn.";

/// Returns an error if only the store itself may create or change a keyspace of this name.
#[inline]
pub(crate) fn refuse_reserved(name: &str) -> Result<()> {
    if !name.starts_with(RESERVED) {
        return Ok(());
    }
    Err(Error::ReservedName { name: name.into() })
}

struct Named {
    name: String,
    /// The transaction for which `root` is valid; 0 while `root` changes. It only advances to newer
    /// transactions, so a reader that finds it unchanged has read an unchanged `root`.
    root_as_of: AtomicU64,
    root: AtomicU32,
    /// Excludes concurrent changes of the two above, and holds the newest transaction that they
    /// were set to.
    caching: Mutex<TxnId>,
}

impl Keyspace {
    pub(crate) fn new(store: Store, id: KeyspaceId, name: &str) -> Keyspace {
        let shared = Named {
            name: name.to_string(),
            root_as_of: AtomicU64::new(0),
            root: AtomicU32::new(0),
            caching: Mutex::new(TxnId::ZERO),
        };
        Keyspace { store, id, shared: Arc::new(shared) }
    }

    /// Returns the keyspace's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Returns a handle to the same keyspace whose one-call writes are at `durability` instead of
    /// the store's default: [`Keyspace::put`], [`Keyspace::delete`] and others. This handle is
    /// unchanged.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// use untorn::Durability;
    /// let users = store.keyspace("users")?;
    /// let quick = users.with_durability(Durability::Visible);
    /// quick.put(b"alice", b"1")?; // visible on return; the flush policy makes it durable
    /// users.put(b"bob", b"2")?; // durable on return, and "alice" with it
    /// # drop((users, quick));
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_durability(&self, durability: Durability) -> Keyspace {
        Keyspace { store: self.store.with_durability(durability), id: self.id, shared: self.shared.clone() }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn id(&self) -> KeyspaceId {
        self.id
    }

    /// Returns an error if the keyspace belongs to another store.
    #[inline]
    pub(crate) fn belongs_to(&self, client: &DirectClient) -> Result<()> {
        if std::ptr::eq(Arc::as_ptr(self.store.client()), client) {
            Ok(())
        } else {
            Err(Error::OtherStore { name: self.name().into() })
        }
    }

    /// Returns the root as of `txn`, if `txn` is the transaction for which it is cached.
    #[inline]
    pub(crate) fn cached_root(&self, txn: TxnId) -> Option<PageId> {
        let known = self.shared.root_as_of.load(Ordering::Acquire);
        // Acquire: if this root was stored after `known`, the second load sees that change.
        let root = self.shared.root.load(Ordering::Acquire);
        let still = self.shared.root_as_of.load(Ordering::Relaxed);
        (known == txn.as_u64() && still == known && known != 0).then_some(PageId(root))
    }

    pub(crate) fn cache_root(&self, txn: TxnId, root: PageId) {
        if let Some(mut newest) = self.shared.caching.try_lock()
            && txn > *newest
        {
            *newest = txn;
            self.shared.root_as_of.store(0, Ordering::Relaxed);
            // Release: a thread that sees this root also sees that the cache is no longer valid for
            // the transaction before.
            self.shared.root.store(root.0, Ordering::Release);
            self.shared.root_as_of.store(txn.as_u64(), Ordering::Release);
        }
    }

    /// Stores a value under a key, as one transaction at the handle's default durability.
    ///
    /// Waits for the writer lock (usually microseconds) and, if durable, for the logger's fsync.
    /// For many puts, a transaction ([`Store::begin`]) or visible commits are much faster.
    ///
    /// # Errors
    /// Those of [`Store::begin`] and [`crate::WriteTxn::commit`]; [`Error::Limit`] for a key or
    /// value that is too long.
    #[inline]
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<TxnId> {
        self.put_bytes(key.as_ref(), value.as_ref())
    }

    fn put_bytes(&self, key: &[u8], value: &[u8]) -> Result<TxnId> {
        let mut txn = self.store.begin()?;
        txn.put(self, key, value)?;
        Ok(txn.commit()?.txn_id())
    }

    /// Removes a key, as one transaction at the handle's default durability. Returns whether the
    /// key was present.
    ///
    /// # Errors
    /// Those of [`Keyspace::put`].
    #[inline]
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.delete_bytes(key.as_ref())
    }

    fn delete_bytes(&self, key: &[u8]) -> Result<bool> {
        let mut txn = self.store.begin()?;
        let found = txn.delete(self, key)?;
        txn.commit()?;
        Ok(found)
    }

    /// Removes all keys of a range, as one transaction at the handle's default durability. Returns
    /// the number of keys that were removed.
    ///
    /// Pages that lie within the range are freed as a whole. Each is read once, to count its
    /// entries and to find values in pages of their own; none is written. Only the pages at the two
    /// ends of the range are copied. The log and the change feed get one operation,
    /// [`ChangeKind::DeleteRange`](crate::ChangeKind::DeleteRange).
    ///
    /// The writer lock is held meanwhile. For a million records of 24 bytes that takes 12 to 18 ms;
    /// a million deletes in one transaction hold it for 1.3 s (`cargo bench --bench removal`).
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// let readings = store.keyspace("readings")?;
    /// for hour in ["08:00", "09:00", "10:00"] {
    ///     readings.put(hour, "21.5")?;
    /// }
    /// assert_eq!(readings.delete_range(.."09:30")?, 2);
    /// assert_eq!(readings.clear()?, 1);
    /// assert!(readings.is_empty()?);
    /// # drop(readings);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Keyspace::put`].
    pub fn delete_range<R: KeyRange>(&self, range: R) -> Result<u64> {
        let mut txn = self.store.begin()?;
        let removed = txn.delete_range(self, range)?;
        txn.commit()?;
        Ok(removed)
    }

    /// Removes all keys, as one transaction at the handle's default durability. Returns the number
    /// of keys that were removed. The keyspace and its handles remain valid. See
    /// [`Keyspace::delete_range`] for the cost.
    ///
    /// # Errors
    /// Those of [`Keyspace::put`].
    pub fn clear(&self) -> Result<u64> {
        self.delete_range(..)
    }

    /// Returns the visible value of a key, without copying it. Never waits for writers.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`] if the keyspace was dropped; [`Error::Corrupt`]; [`Error::Forked`].
    #[inline]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.get_bytes(key.as_ref())
    }

    #[inline]
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Value>> {
        snapshot::get(self.store.client().pin()?, self, key)
    }

    /// Returns the visible value of a key and its version: the id of the transaction that wrote it
    /// last. A key that was deleted and written again has a new version.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn get_versioned(&self, key: impl AsRef<[u8]>) -> Result<Option<(Value, TxnId)>> {
        snapshot::get_versioned(self.store.client().pin()?, self, key.as_ref())
    }

    /// Stores a value only if the key's version is `expected` (`None`: only if the key is absent),
    /// as one transaction at the handle's default durability. This is optimistic locking across
    /// processes: read a version, compute without holding a lock, swap, and retry on a mismatch.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// # let store = untorn::Store::open(&path)?;
    /// use untorn::CasOutcome;
    /// let accounts = store.keyspace("accounts")?;
    /// let CasOutcome::Swapped(first) = accounts.compare_and_swap(b"alice", None, b"1")? else { panic!() };
    /// assert_eq!(accounts.get_versioned(b"alice")?.unwrap().1, first);
    /// accounts.put(b"alice", b"2")?;
    /// let outcome = accounts.compare_and_swap(b"alice", Some(first), b"3")?;
    /// assert!(matches!(outcome, CasOutcome::Mismatch { current: Some(version) } if version > first));
    /// # drop(accounts);
    /// # store.close()?;
    /// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Keyspace::put`]. A mismatch is no error.
    pub fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        expected: Option<TxnId>,
        value: impl AsRef<[u8]>,
    ) -> Result<CasOutcome> {
        let (key, value) = (key.as_ref(), value.as_ref());
        self.compare_and(key, expected, |txn| txn.put(self, key, value))
    }

    /// Removes a key only if its version is `expected`. See [`Keyspace::compare_and_swap`].
    ///
    /// # Errors
    /// Those of [`Keyspace::put`]. A mismatch is no error.
    pub fn compare_and_delete(&self, key: impl AsRef<[u8]>, expected: TxnId) -> Result<CasOutcome> {
        let key = key.as_ref();
        self.compare_and(key, Some(expected), |txn| txn.delete(self, key).map(drop))
    }

    fn compare_and(
        &self,
        key: &[u8],
        expected: Option<TxnId>,
        change: impl FnOnce(&mut WriteTxn<'_>) -> Result<()>,
    ) -> Result<CasOutcome> {
        let mut txn = self.store.begin()?;
        let current = txn.get_versioned(self, key)?.map(|(_, version)| version);
        if current != expected {
            return Ok(CasOutcome::Mismatch { current });
        }
        change(&mut txn)?;
        Ok(CasOutcome::Swapped(txn.commit()?.txn_id()))
    }

    /// Returns an iterator over the visible entries of a range as of now, in key order, from both
    /// ends: `range("a".."c")`; see [`KeyRange`].
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn range<R: KeyRange>(&self, range: R) -> Result<Range> {
        self.range_of_bounds(range.bounds())
    }

    /// Returns an iterator over the visible entries whose keys begin with `prefix`, in key order,
    /// from both ends, as of now.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Result<Range> {
        let prefix = prefix.as_ref();
        let end = prefix_end(prefix);
        self.range_of_bounds(prefix_bounds(prefix, end.as_deref()))
    }

    fn range_of_bounds(&self, bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> Result<Range> {
        Range::new(self.store.client().pin()?, self, bounds)
    }

    /// Returns the number of entries in the keyspace. Costs as much as a `get`.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn len(&self) -> Result<u64> {
        self.store.snapshot()?.len(self)
    }

    /// Returns whether the keyspace has no entries.
    ///
    /// # Errors
    /// Those of [`Keyspace::get`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyspace").field("name", &self.name()).field("id", &self.id.0).finish()
    }
}
