//! What a client asks for. The order of variants and fields is the format: only append, and raise
//! the version.

use super::List;
use bincode::{BorrowDecode, Encode};

/// A request. Transaction ids and versions are the 64 bits of a `TxnId`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Request<'a> {
    /// 0: the value of a key. Answer: `Value`.
    Get {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
    },
    /// 1: the values of several keys as of one transaction. Answer: `Values`.
    MultiGet {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The keys.
        keys: List<&'a [u8]>,
    },
    /// 2: stores a value; makes the keyspace if there is none. Answer: `Committed`.
    Put {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// When to answer.
        durability: Durability,
    },
    /// 3: removes a key. Answer: `Deleted`.
    Delete {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
        /// When to answer.
        durability: Durability,
    },
    /// 4: all of the operations as one transaction, if all conditions among them hold; else
    /// nothing. Conditions are about what was there before the batch. Answer: `Committed` or
    /// `Unmet`.
    Commit {
        /// The conditions and changes.
        operations: List<Operation<'a>>,
        /// When to answer.
        durability: Durability,
    },
    /// 5: the first piece of a range, of a snapshot taken now. Answer: `Piece`.
    Scan {
        /// The keyspace's name.
        keyspace: &'a str,
        /// Where the range begins.
        lower: Edge<'a>,
        /// Where it ends.
        upper: Edge<'a>,
        /// From the end to the beginning.
        is_reverse: bool,
        /// The most bytes of keys and values in each piece; the server has a limit of its own.
        piece_bytes: u32,
    },
    /// 6: the next piece of a range, of the same snapshot. Answer: `Piece`, or the failure `Stale`
    /// if the snapshot is no longer kept.
    ScanNext {
        /// The scan's number, as the piece before said.
        scan: u32,
    },
    /// 7: the scan is no longer needed. Answer: `Done`, also if there is none of that number.
    ScanClose {
        /// The scan's number.
        scan: u32,
    },
    /// 8: the names of all keyspaces that the client may read. Answer: `Names`.
    Keyspaces,
    /// 9: answers when all that is visible now is durable. Answer: `Done`.
    Sync,
    /// 10: has a checkpoint taken of all that is visible now. Answer: `Committed` with what it
    /// covers.
    Checkpoint,
    /// 11: figures of the store. Answer: `Figures`.
    Stats,
    /// 12: the value of a cell. Answer: `Cell`.
    CellLoad {
        /// The cell's name.
        name: &'a str,
    },
    /// 13: exactly this version of a cell's value. Answer: `Cell`, or the failure `Stale`.
    CellLoadVersion {
        /// The cell's name.
        name: &'a str,
        /// The version.
        version: u64,
    },
    /// 14: stores a cell's value; makes the cell, of this size, if there is none. Answer: `Cell`,
    /// without a value.
    CellStore {
        /// The cell's name.
        name: &'a str,
        /// The value, as long as the cell.
        value: &'a [u8],
        /// Whether to answer only when the value, or a later one, is durable.
        is_durable: bool,
    },
    /// 15: adds to a counter, modulo 2⁶⁴; makes it if there is none. Answer: `Done`.
    CounterAdd {
        /// The counter's name.
        name: &'a str,
        /// How much.
        amount: u64,
    },
    /// 16: the value of a counter; 0 if there is none. Answer: `Count`.
    CounterGet {
        /// The counter's name.
        name: &'a str,
    },
    /// 17: opens the change feed of this connection, in place of one that is open. Answer:
    /// `Changes`, empty, with where it begins.
    Changes {
        /// The transaction after which it begins; `None`: now.
        from: Option<u64>,
        /// Which changes.
        feed: Feed,
        /// Only those of this keyspace.
        keyspace: Option<&'a str>,
        /// Only those of keys that begin with this.
        prefix: &'a [u8],
    },
    /// 18: the next changes of the feed; waits for one if there is none. Answer: `Changes`, empty
    /// when the time is over.
    ChangesNext {
        /// How long to wait, in milliseconds; at most [`super::CHANGES_WAIT_MS_MAX`].
        wait_ms: u32,
    },
    /// 19: removes all keys of a range. Answer: `RangeDeleted`.
    DeleteRange {
        /// The keyspace's name.
        keyspace: &'a str,
        /// Where the range begins.
        lower: Edge<'a>,
        /// Where it ends.
        upper: Edge<'a>,
        /// When to answer.
        durability: Durability,
    },
}

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Durability {
    /// 0: when an fsync has covered it.
    Durable,
    /// 1: when others can see it.
    Visible,
    /// 2: when an fsync has covered it, for which there is so much time.
    Within {
        /// The time, in microseconds.
        micros: u64,
    },
}

/// One condition or change of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Operation<'a> {
    /// 0: the key is there, last written by this transaction.
    ExpectVersion {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
        /// The version.
        version: u64,
    },
    /// 1: the key, or the keyspace, is not there.
    ExpectAbsent {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
    },
    /// 2: stores a value; makes the keyspace if there is none.
    Put {
        /// The keyspace's name.
        keyspace: &'a str,
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// 3: removes a key, if it is there.
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

/// Where a range begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Edge<'a> {
    /// 0: at the first or last key there is.
    Open,
    /// 1: at this key, with it.
    With(&'a [u8]),
    /// 2: at this key, without it.
    Without(&'a [u8]),
}

/// Which changes a feed has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Feed {
    /// 0: those that survive a power loss.
    Durable,
    /// 1: all that others can see.
    Visible,
}
