//! The changes that a feed yields, to direct and to message-passing clients.

use crate::TxnId;
use std::fmt;
use std::sync::Arc;

/// Selects which commits a feed delivers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feed {
    /// Every visible commit, as soon as it is visible. A power loss may take back a delivered
    /// commit: a consumer that resumes from it then gets
    /// [`Error::Diverged`](crate::Error::Diverged).
    Visible,
    /// Only durable commits, which nothing takes back.
    Durable,
}

/// The kind of a change to a key or a keyspace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ChangeKind {
    /// The key has a new value.
    Put,
    /// The key was removed.
    Delete,
    /// The whole keyspace was dropped, with all its keys; key and value are empty.
    DropKeyspace,
    /// All keys from [`Change::key`] up to, but not including, [`Change::end`] were removed. The
    /// change does not list them.
    DeleteRange,
}

/// One changed key, a range of keys that was removed, or a keyspace that was dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Change {
    pub(crate) txn: TxnId,
    pub(crate) keyspace: Arc<str>,
    pub(crate) kind: ChangeKind,
    pub(crate) key: Vec<u8>,
    /// The end of a range that was removed, if it has one.
    pub(crate) end: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) last: bool,
}

impl Change {
    /// Returns the transaction that made the change.
    pub fn txn_id(&self) -> TxnId {
        self.txn
    }

    /// Returns the name of the keyspace, even if it was dropped since.
    pub fn keyspace(&self) -> &str {
        &self.keyspace
    }

    /// Returns the kind of the change.
    pub fn kind(&self) -> ChangeKind {
        self.kind
    }

    /// Returns the key; for a range, its first key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Returns the exclusive end of a removed range. `None` if the range has no upper bound, and
    /// for all other kinds of changes. Bounds may be one byte longer than a key can be.
    pub fn end(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }

    /// Returns whether the change sets or removes `key`, if that is a key of the same keyspace.
    ///
    /// ```
    /// # fn main() -> untorn::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("data");
    /// use std::collections::BTreeMap;
    /// use std::time::Duration;
    /// use untorn::{Feed, Store};
    ///
    /// let store = Store::open(&path)?;
    /// let from = store.snapshot()?.txn_id();
    /// let mut changes = store.changes(from, Feed::Visible)?.keyspace("users");
    /// let users = store.keyspace("users")?;
    /// users.put("alice", "1")?;
    /// users.put("bob", "2")?;
    /// users.delete_range(.."b")?;
    ///
    /// let mut copy = BTreeMap::new();
    /// while let Some(change) = changes.try_next(Duration::ZERO)? {
    ///     copy.retain(|key: &Vec<u8>, _| !change.affects(key));
    ///     if let Some(value) = change.value() {
    ///         copy.insert(change.key().to_vec(), value.to_vec());
    ///     }
    /// }
    /// assert_eq!(copy, BTreeMap::from([(b"bob".to_vec(), b"2".to_vec())]));
    /// # drop((changes, users, store));
    /// # untorn::logger::stop_logger(&path, Duration::from_secs(5))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn affects(&self, key: &[u8]) -> bool {
        match self.kind {
            ChangeKind::Put | ChangeKind::Delete => key == self.key,
            ChangeKind::DropKeyspace => true,
            ChangeKind::DeleteRange => *key >= *self.key && self.end.as_ref().is_none_or(|end| *key < **end),
        }
    }

    /// Returns the new value; `None` if the key, the range or the keyspace was removed.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// Returns the new value, without copying it.
    pub fn into_value(self) -> Option<Vec<u8>> {
        self.value
    }

    /// Returns whether this is the last change of its transaction, among those that the feed
    /// delivers.
    pub fn last_in_txn(&self) -> bool {
        self.last
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change")
            .field("txn", &self.txn)
            .field("keyspace", &self.keyspace)
            .field("kind", &self.kind)
            .field("key", &self.key.escape_ascii().to_string())
            .field("end", &self.end.as_ref().map(|end| end.escape_ascii().to_string()))
            .field("value_len", &self.value.as_ref().map(Vec::len))
            .field("last", &self.last)
            .finish()
    }
}
