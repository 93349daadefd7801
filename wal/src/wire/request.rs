//! Requests of the client. The order of variants and fields is the format: only append, and raise
//! the version.

use super::List;
use bincode::{BorrowDecode, Encode};

/// A request. Transaction ids and versions are the 64 bits of a `TxnId`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Request<'a> {
    /// 0: returns the value of a key. Reply: `Value`.
    Get {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
    },
    /// 1: returns the values of several keys as of one transaction. Reply: `Values`.
    MultiGet {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The keys.
        keys: List<&'a [u8]>,
    },
    /// 2: stores a value; creates the keyspace if there is none. Reply: `Committed`.
    Put {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// When the server replies.
        durability: Durability,
    },
    /// 3: removes a key. Reply: `Deleted`.
    Delete {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
        /// When the server replies.
        durability: Durability,
    },
    /// 4: makes all changes as one transaction, if all conditions among the operations hold;
    /// otherwise none. Conditions refer to the state before the batch. Reply: `Committed` or
    /// `Unmet`.
    Commit {
        /// The conditions and changes.
        operations: List<Operation<'a>>,
        /// When the server replies.
        durability: Durability,
    },
    /// 5: returns the first piece of a range, from a snapshot taken now. Reply: `Piece`.
    Scan {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The beginning of the range.
        lower: Edge<'a>,
        /// The end of the range.
        upper: Edge<'a>,
        /// Whether to read from the end to the beginning.
        is_reverse: bool,
        /// The most bytes of keys and values in each piece; the server has a limit of its own.
        piece_bytes: u32,
    },
    /// 6: returns the next piece of a range, from the same snapshot. Reply: `Piece`, or the failure
    /// `Stale` if the snapshot is no longer kept.
    ScanNext {
        /// The scan's number, from the previous reply.
        scan: u32,
    },
    /// 7: ends a scan. Reply: `Done`, also if there is no scan of that number.
    ScanClose {
        /// The scan's number.
        scan: u32,
    },
    /// 8: returns the names of all keyspaces that the client may read. Reply: `Names`.
    Keyspaces,
    /// 9: waits until every commit that is visible now is durable. Reply: `Done`.
    Sync,
    /// 10: requests a checkpoint of every commit that is visible now, and waits for it. Reply:
    /// `Committed` with the transaction that it covers.
    Checkpoint,
    /// 11: returns the figures of the store. Reply: `Stats`.
    Stats,
    /// 12: returns the value of a cell. Reply: `Cell`.
    CellLoad {
        /// The cell's name.
        name: &'a str,
    },
    /// 13: returns exactly this version of a cell's value. Reply: `Cell`, or the failure `Stale`.
    CellLoadVersion {
        /// The cell's name.
        name: &'a str,
        /// The version.
        version: u64,
    },
    /// 14: stores a cell's value; creates the cell, of this size, if there is none. Reply: `Cell`,
    /// without a value.
    CellStore {
        /// The cell's name.
        name: &'a str,
        /// The value, as long as the cell.
        value: &'a [u8],
        /// Whether to reply only when the value, or a later one, is durable.
        is_durable: bool,
    },
    /// 15: adds to a counter, modulo 2⁶⁴; creates it if there is none. Reply: `Done`.
    CounterAdd {
        /// The counter's name.
        name: &'a str,
        /// The amount to add.
        amount: u64,
    },
    /// 16: returns the value of a counter; 0 if there is none. Reply: `Count`.
    CounterGet {
        /// The counter's name.
        name: &'a str,
    },
    /// 17: opens the change feed of this connection, replacing an open one. Reply: `Changes`,
    /// empty, with the position where it begins.
    Changes {
        /// The transaction after which it begins; `None` for the present one.
        from: Option<u64>,
        /// The changes that the feed delivers.
        feed: Feed,
        /// If set, only changes of this keyspace are delivered.
        keyspace: Option<&'a str>,
        /// Only changes of keys that begin with this are delivered.
        prefix: &'a [u8],
    },
    /// 18: returns the next changes of the feed; waits for one if there is none. Reply: `Changes`,
    /// which is empty if the time has passed.
    ChangesNext {
        /// How long to wait, in milliseconds; at most [`super::CHANGES_WAIT_MS_MAX`].
        wait_ms: u32,
    },
    /// 19: removes all keys of a range. Reply: `RangeDeleted`.
    DeleteRange {
        /// The keyspace's name.
        keyspace: &'a str,
        /// Where the range begins.
        lower: Edge<'a>,
        /// Where it ends.
        upper: Edge<'a>,
        /// When the server replies.
        durability: Durability,
    },
}

/// When the server replies to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Durability {
    /// 0: after an fsync has covered it.
    Durable,
    /// 1: when it is visible to other clients.
    Visible,
    /// 2: after an fsync has covered it, which must happen within this time.
    Within {
        /// The time, in microseconds.
        micros: u64,
    },
}

/// One condition or change of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Operation<'a> {
    /// 0: the key exists, and was last written by this transaction.
    ExpectVersion {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
        /// The version.
        version: u64,
    },
    /// 1: the key, or the keyspace, does not exist.
    ExpectAbsent {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
    },
    /// 2: stores a value; creates the keyspace if there is none.
    Put {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// 3: removes a key, if it exists.
    Delete {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
    },
    /// 4: removes all keys of a range.
    DeleteRange {
        /// The keyspace's name.
        keyspace: &'a str,
        /// Where the range begins.
        lower: Edge<'a>,
        /// Where it ends.
        upper: Edge<'a>,
    },
}

/// The beginning or end of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Edge<'a> {
    /// 0: the first or last key of the keyspace.
    Open,
    /// 1: this key, inclusive.
    With(&'a [u8]),
    /// 2: this key, exclusive.
    Without(&'a [u8]),
}

/// The changes that a feed delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Feed {
    /// 0: changes that survive a power loss.
    Durable,
    /// 1: all visible changes.
    Visible,
}
