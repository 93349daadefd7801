//! Replies of the server. The order of variants and fields is the format: only append, and raise
//! the version.

use super::List;
use bincode::{BorrowDecode, Encode};

/// A reply. Transaction ids and versions are the 64 bits of a `TxnId`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Reply<'a> {
    /// 0: the request failed.
    Failed(ErrorReply<'a>),
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
        records: List<Record<'a>>,
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
        /// ones are later, or are the rest of the transaction after it.
        through: u64,
        /// The changes.
        changes: List<ChangeItem<'a>>,
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
pub struct Record<'a> {
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
        /// Keys from this one on stay; it is above the key. `None` if none stays.
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

/// The reason why a request failed. `untorn::Error` has the same variants, and documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum ErrorReply<'a> {
    /// 0
    LockTimeout {
        /// How long the server waited for the writer lock, in milliseconds.
        waited_ms: u64,
        /// The holder of the lock.
        holder: &'a str,
    },
    /// 1
    LoggerStalled {
        /// How long the server waited, in milliseconds.
        waited_ms: u64,
        /// The transaction, if it is visible.
        visible: Option<u64>,
    },
    /// 2
    LoggerUnavailable {
        /// The reason.
        reason: &'a str,
    },
    /// 3
    NotDurable {
        /// The transaction, which is visible and not known to be durable.
        txn: u64,
        /// The reason.
        reason: &'a str,
    },
    /// 4
    DiskFull {
        /// The file or structure that could not grow.
        what: &'a str,
    },
    /// 5
    Diverged {
        /// The id of a transaction that was lost.
        txn: u64,
    },
    /// 6
    Stale,
    /// 7
    Lagged {
        /// The oldest position that can still be read.
        oldest: u64,
    },
    /// 8
    NeedsRecovery {
        /// The reason.
        reason: &'a str,
    },
    /// 9
    Corrupt {
        /// The file, relative to the store's directory.
        file: &'a str,
        /// The offset in the file.
        offset: u64,
        /// What was expected and found.
        what: &'a str,
    },
    /// 10
    Mismatch {
        /// The file, relative to the store's directory.
        file: &'a str,
        /// What was expected and found.
        what: &'a str,
    },
    /// 11
    ReadOnly,
    /// 12
    NoKeyspace {
        /// The keyspace's name.
        name: &'a str,
    },
    /// 13
    NoCell {
        /// The cell's name.
        name: &'a str,
    },
    /// 14
    Limit {
        /// The limited quantity.
        what: &'a str,
        /// The requested value.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// 15
    Invalid {
        /// A description of the error.
        what: &'a str,
    },
    /// 16
    Io {
        /// The operation that failed.
        what: &'a str,
        /// The system's error number.
        errno: i32,
    },
    /// 17: the access file does not allow it.
    NotAllowed {
        /// The operation that is not allowed.
        what: &'a str,
    },
    /// 18: the server has reached a limit. The client may retry.
    Busy {
        /// The limited resource.
        what: &'a str,
    },
    /// 19: the request was no valid message of this protocol.
    Protocol {
        /// A description of the error.
        what: &'a str,
    },
    /// 20: another error.
    Other {
        /// A description of the error.
        what: &'a str,
    },
    /// 21: only the store itself writes to keyspaces of such names.
    ReservedName {
        /// The name.
        name: &'a str,
    },
    /// 22: the cell has another length, or is a counter; or the counter is a cell.
    OtherCell {
        /// The cell's name.
        name: &'a str,
        /// The cell's length in bytes; `None` for a counter.
        found: Option<u64>,
        /// The length that the request needs; `None` for a counter.
        wanted: Option<u64>,
    },
    /// 23: the server has lost its connection to the store's files.
    Detached {
        /// The reason.
        reason: &'a str,
    },
}
