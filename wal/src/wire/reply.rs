//! Replies of the server. The order of variants and fields is the format: only append, and raise
//! the version.

use super::List;
use bincode::{BorrowDecode, Encode};

/// A reply. Transaction ids and versions are the 64 bits of a `TxnId`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Reply<'a> {
    /// 0: the request failed.
    Failed(Failure<'a>),
    /// 1: the request succeeded, without a result.
    Done,
    /// 2: the value of a key, if it exists.
    Value(Option<FoundValue<'a>>),
    /// 3: the values of the keys, in their order.
    Values {
        /// The transaction as of which the values were read.
        txn: u64,
        /// The result for each key.
        values: List<Option<FoundValue<'a>>>,
    },
    /// 4: the transaction is committed, and as durable as requested.
    Committed {
        /// The transaction's id.
        txn: u64,
    },
    /// 5: as `Committed`, for a deletion.
    Deleted {
        /// The transaction's id.
        txn: u64,
        /// Whether the key existed.
        was_there: bool,
    },
    /// 6: a condition of the batch did not hold, and no change was made.
    Unmet {
        /// The index of the condition among the operations, from 0.
        index: u32,
        /// The key's version; `None` if it is absent.
        current: Option<u64>,
    },
    /// 7: a piece of a range.
    Piece {
        /// The scan's number; 0 if this is the last piece.
        scan: u32,
        /// The transaction as of which the range is read, the same for all pieces.
        txn: u64,
        /// The records, in the requested order.
        records: List<RangeRecord<'a>>,
    },
    /// 8: names, in the order of their creation.
    Names(List<&'a str>),
    /// 9: figures of the store, as [`super::encode_value`] encodes an `untorn::Stats`.
    Stats(&'a [u8]),
    /// 10: a cell's value.
    Cell {
        /// Its version.
        version: u64,
        /// The value; empty in the reply to a store.
        value: &'a [u8],
    },
    /// 11: a counter's value.
    Count(u64),
    /// 12: changes, in the order in which they happened.
    Changes {
        /// All changes of the feed up to and including this transaction have been sent. The next
        /// changes belong to later transactions. If the last transaction in this reply is
        /// incomplete, they begin with the rest of it.
        through: u64,
        /// The changes.
        changes: List<ChangeItem<'a>>,
    },
    /// 13: as `Committed`, of the deletion of a range.
    RangeDeleted {
        /// The transaction's id.
        txn: u64,
        /// How many keys were removed.
        removed: u64,
    },
}

/// A value that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct FoundValue<'a> {
    /// The transaction that wrote it.
    pub version: u64,
    /// The value.
    pub value: &'a [u8],
}

/// A record of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct RangeRecord<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

/// A change to a key or a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Happened<'a> {
    /// 0: the key was set to this value.
    Put(&'a [u8]),
    /// 1: the key was removed.
    Delete,
    /// 2: the keyspace was dropped with all its keys; the key is empty.
    DropKeyspace,
    /// 3, since version 2: all keys from the key on were removed.
    DeleteRange {
        /// The exclusive end of the removed range, above the key. `None` if no key from the key on
        /// remains.
        end: Option<&'a [u8]>,
    },
}

/// One changed key, or range of keys, of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct ChangeItem<'a> {
    /// The transaction.
    pub txn: u64,
    /// The keyspace's name.
    pub keyspace: &'a str,
    /// The key, or the beginning of the range.
    pub key: &'a [u8],
    /// The change to it.
    pub what: Happened<'a>,
    /// Whether this is the transaction's last change in the feed.
    pub is_last_in_txn: bool,
}

/// The reason why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Failure<'a> {
    /// The error in words, for people.
    pub text: &'a str,
    /// The error: the number of its variant, four bytes, and the variant's fields, as `untorn`
    /// encodes an `untorn::Error`.
    pub error: &'a [u8],
}
