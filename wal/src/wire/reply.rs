//! What a server answers. The order of variants and fields is the format: only append, and raise
//! the version.

use super::List;
use bincode::{BorrowDecode, Encode};

/// A reply. Transaction ids and versions are the 64 bits of a `TxnId`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Reply<'a> {
    /// 0: it could not be done.
    Failed(ErrorReply<'a>),
    /// 1: it is done, and there is nothing more to say.
    Done,
    /// 2: the value of a key, if it is there.
    Value(Option<FoundValue<'a>>),
    /// 3: the values of the keys, in their order.
    Values {
        /// The transaction that this is a view of.
        txn: u64,
        /// For each key what was found.
        values: List<Option<FoundValue<'a>>>,
    },
    /// 4: the transaction is as durable as was asked for.
    Committed {
        /// Its id.
        txn: u64,
    },
    /// 5: as `Committed`, of a deletion.
    Deleted {
        /// Its id.
        txn: u64,
        /// Whether the key was there.
        was_there: bool,
    },
    /// 6: a condition of the batch did not hold, and nothing of it has happened.
    Unmet {
        /// Which of the operations it is, counted from 0.
        index: u32,
        /// The key's version; `None` if it is absent.
        current: Option<u64>,
    },
    /// 7: a piece of a range.
    Piece {
        /// The scan's number; 0 if this is the last piece.
        scan: u32,
        /// The transaction that this is a view of, the same for all pieces.
        txn: u64,
        /// The records, in the order asked for.
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
        /// The value; empty in the answer to a store.
        value: &'a [u8],
    },
    /// 11: a counter's value.
    Count(u64),
    /// 12: changes, in the order in which they happened.
    Changes {
        /// All that the feed has up to and with this transaction has been sent; what comes next is
        /// later, or is the rest of the transaction after it.
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

/// What happened to a key or a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Happened<'a> {
    /// 0: the key has this value now.
    Put(&'a [u8]),
    /// 1: the key is gone.
    Delete,
    /// 2: the keyspace is gone with all its keys; the key is empty.
    DropKeyspace,
    /// 3, since version 2: all keys from the key on are gone.
    DeleteRange {
        /// Keys from this one on stay; it is above the key. `None`: none stays.
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
    /// The key, or where the range begins.
    pub key: &'a [u8],
    /// What happened to it.
    pub what: Happened<'a>,
    /// Whether this is the transaction's last change in the feed.
    pub is_last_in_txn: bool,
}

/// Why something could not be done; `untorn::Error` has the same variants and says what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum ErrorReply<'a> {
    /// 0
    LockTimeout {
        /// How long the server waited for the writer lock, in milliseconds.
        waited_ms: u64,
        /// Who holds it.
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
        /// Why.
        reason: &'a str,
    },
    /// 3
    NotDurable {
        /// The transaction: visible, in doubt.
        txn: u64,
        /// Why.
        reason: &'a str,
    },
    /// 4
    DiskFull {
        /// What could not grow.
        what: &'a str,
    },
    /// 5
    Diverged {
        /// The id of a lost future.
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
        /// What happened.
        reason: &'a str,
    },
    /// 9
    Corrupt {
        /// The file, relative to the store's directory.
        file: &'a str,
        /// Where in it.
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
        /// Its name.
        name: &'a str,
    },
    /// 13
    NoCell {
        /// Its name.
        name: &'a str,
    },
    /// 14
    Limit {
        /// What is limited.
        what: &'a str,
        /// What was asked for.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// 15
    Invalid {
        /// What is wrong.
        what: &'a str,
    },
    /// 16
    Io {
        /// What was attempted.
        what: &'a str,
        /// The system's error number.
        errno: i32,
    },
    /// 17: the access file does not allow it.
    NotAllowed {
        /// What is not allowed.
        what: &'a str,
    },
    /// 18: the server has no room for it just now. Try again.
    Busy {
        /// What there is too much of.
        what: &'a str,
    },
    /// 19: the request was no message of this protocol.
    Protocol {
        /// What is wrong with it.
        what: &'a str,
    },
    /// 20: something else.
    Other {
        /// What.
        what: &'a str,
    },
    /// 21: only the store itself writes to keyspaces of such names.
    ReservedName {
        /// The name.
        name: &'a str,
    },
    /// 22: the cell has another length, or is a counter; or the counter is a cell.
    OtherCell {
        /// Its name.
        name: &'a str,
        /// Its length in bytes; `None` for a counter.
        found: Option<u64>,
        /// What the request needs.
        wanted: Option<u64>,
    },
    /// 23: the server is cut off from the store.
    Detached {
        /// What cuts it off.
        reason: &'a str,
    },
}
