//! A batch: changes, and conditions under which they are made, as one transaction by one message.

use crate::TxnId;
use crate::key_range::KeyRange;
use crate::remote::scan::edge;
use std::ops::Bound;
use untorn_wal::wire::Operation;

/// Changes and conditions for [`Client::commit`](crate::Client::commit). If all conditions are met,
/// all changes are made as one transaction; otherwise none.
///
/// Conditions refer to the store before the batch, wherever they are in it. A batch has at most
/// 65,536 changes and conditions, and 16 MiB in all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    items: Vec<Item>,
}

#[derive(Clone, Debug)]
struct Item {
    keyspace: String,
    key: Vec<u8>,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    ExpectVersion(TxnId),
    ExpectAbsent,
    Put(Vec<u8>),
    Delete,
    DeleteRange(Bound<Vec<u8>>, Bound<Vec<u8>>),
}

/// The outcome of [`Client::commit`](crate::Client::commit).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a batch may not have been committed"]
pub enum CommitOutcome {
    /// All conditions were met; this transaction made the changes.
    Committed(TxnId),
    /// A condition was not met, and nothing has changed.
    Mismatch {
        /// The index of the condition among the batch's changes and conditions, counted from 0 in
        /// the order in which they were added.
        index: usize,
        /// The key's version; `None` if it is absent.
        current: Option<TxnId>,
    },
}

impl Batch {
    /// Returns an empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Stores a value under a key; creates the keyspace if there is none.
    pub fn put(&mut self, keyspace: &str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Batch {
        self.add(keyspace, key.as_ref(), What::Put(value.as_ref().to_vec()))
    }

    /// Removes a key, if it is present.
    pub fn delete(&mut self, keyspace: &str, key: impl AsRef<[u8]>) -> &mut Batch {
        self.add(keyspace, key.as_ref(), What::Delete)
    }

    /// Removes all keys of a range, including those that earlier changes of the batch put there.
    /// See [`Client::delete_range`](crate::Client::delete_range).
    pub fn delete_range<R: KeyRange>(&mut self, keyspace: &str, range: R) -> &mut Batch {
        let (lower, upper) = range.bounds();
        self.add(keyspace, &[], What::DeleteRange(lower.map(<[u8]>::to_vec), upper.map(<[u8]>::to_vec)))
    }

    /// Adds the condition that this transaction was the last to write the key.
    pub fn expect_version(&mut self, keyspace: &str, key: impl AsRef<[u8]>, version: TxnId) -> &mut Batch {
        self.add(keyspace, key.as_ref(), What::ExpectVersion(version))
    }

    /// Adds the condition that the key is absent.
    pub fn expect_absent(&mut self, keyspace: &str, key: impl AsRef<[u8]>) -> &mut Batch {
        self.add(keyspace, key.as_ref(), What::ExpectAbsent)
    }

    /// Returns the number of changes and conditions.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns whether the batch has no changes and no conditions.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn add(&mut self, keyspace: &str, key: &[u8], what: What) -> &mut Batch {
        self.items.push(Item { keyspace: keyspace.into(), key: key.into(), what });
        self
    }

    pub(crate) fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        self.items.iter().map(|Item { keyspace, key, what }| match what {
            What::ExpectVersion(version) => Operation::ExpectVersion { keyspace, key, version: version.as_u64() },
            What::ExpectAbsent => Operation::ExpectAbsent { keyspace, key },
            What::Put(value) => Operation::Put { keyspace, key, value },
            What::Delete => Operation::Delete { keyspace, key },
            What::DeleteRange(lower, upper) => {
                let (lower, upper) = (lower.as_ref().map(Vec::as_slice), upper.as_ref().map(Vec::as_slice));
                Operation::DeleteRange { keyspace, lower: edge(lower), upper: edge(upper) }
            }
        })
    }
}
